/* SPDX-License-Identifier: MIT */
/*
 * core/backoff.h: waiting for what nobody announces: a pin that goes, a claim that is released, a child that execs.
 *
 * Whoever ends a pin wakes nobody: that would cost each of them something, and most are waited for by none. So who waits looks
 * again and again, soon at first, twice as late each time, and never later than BACKOFF_MOST_NS: that is how long it may take
 * to see that the way is free, whatever was waited for and however long. Without a cap the last look would come as late as all
 * the others together.
 */
#ifndef SUBLET_CORE_BACKOFF_H
#define SUBLET_CORE_BACKOFF_H

#include "core/platform.h"

#define BACKOFF_FIRST_NS ((uint64_t)20000)
#define BACKOFF_MOST_NS  ((uint64_t)1000000)

/* All zeros at first. */
struct sublet__backoff {
	uint64_t last_ns; /* how long the last sleep was */
};

/* Sleep before the next look; not beyond until_ns, which has not passed at `now_ns`. */
static inline void backoff_sleep(const struct sublet__platform *platform, struct sublet__backoff *backoff,
				 uint64_t now_ns, uint64_t until_ns)
{
	uint64_t ns = backoff->last_ns ? 2 * backoff->last_ns : BACKOFF_FIRST_NS;

	ns = ns < BACKOFF_MOST_NS ? ns : BACKOFF_MOST_NS;
	backoff->last_ns = ns;
	platform->ops->sleep_ns(platform->ctx, ns < until_ns - now_ns ? ns : until_ns - now_ns);
}

#endif
