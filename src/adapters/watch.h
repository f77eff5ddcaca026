/* SPDX-License-Identifier: MIT */
/*
 * adapters/watch.h: what the adapters share: a notifier over a range, in the words of a registration cache.
 *
 * A cache knows one event, "these addresses are no longer what they were", and has one answer, to forget them. So
 * every event of a notifier is passed on as that, cut to the watched range.
 */
#ifndef SUBLET_ADAPTERS_WATCH_H
#define SUBLET_ADAPTERS_WATCH_H

#include <sublet/notifier.h>

#include <stdatomic.h>

struct sublet__watch {
	uint64_t addr;
	uint64_t bytes;
	struct sublet_notifier notifier;
	/* Make the cache forget the range. Runs in callbacks, on several threads at once. */
	void (*drop)(struct sublet__watch *watch, uint64_t addr, uint64_t bytes);
	_Atomic bool has_ended; /* the mm is gone, and the notifier with it */
};

/* addr, bytes and drop are set. As sublet_notifier_add. */
int sublet__watch_begin(struct sublet__watch *watch, struct sublet_mm *mm, const char *owner);

/* No callback runs or will run when this has returned. */
void sublet__watch_end(struct sublet__watch *watch);

#endif
