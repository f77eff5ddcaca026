/* SPDX-License-Identifier: MIT */
/*
 * core/invalidate.h: what core/invalidate.c and core/notifier.c share, and nobody else needs: the lock, the list of
 * invalidations under way, and who is inside which callback.
 */
#ifndef SUBLET_CORE_INVALIDATE_H
#define SUBLET_CORE_INVALIDATE_H

#include "core/engine.h"

enum sublet__invalidation_phase {
	PHASE_QUERY = 0, /* only looks */
	PHASE_BEGUN,     /* counted by every notifier in range (N1) */
	PHASE_ENDING,
};

static inline void notifiers_lock(struct sublet_mm *mm)
{
	struct sublet__notifiers *n = &mm->notifiers;

	if (spin_try(&n->lock))
		return;
	a32_add_relaxed(&n->waiting, 1); /* relaxed: a hint */
	spin_take(&mm->arena->platform, &n->lock);
	a32_sub_relaxed(&n->waiting, 1);
}

static inline void notifiers_unlock(struct sublet_mm *mm)
{
	spin_drop(&mm->notifiers.lock);
}

static inline void notifiers_wake(struct sublet_mm *mm, const sublet__a32 *word)
{
	mm->arena->platform.ops->unpark(mm->arena->platform.ctx, word, UINT32_MAX);
}

/* List an invalidation, or a query that pauses, so that whoever is added or removed finds it; lock held. */
void sublet__invalidation_list(struct sublet__notifiers *n, struct sublet__invalidation *inv);
void sublet__invalidation_unlist(struct sublet__notifiers *n, struct sublet__invalidation *inv);

/* Drop the lock for a moment between two batches of a listed walk, for those who spin for it. */
void sublet__notifier_walk_pause(struct sublet_mm *mm);

/* The invalidation whose callback this thread is inside, innermost first; NULL: none. */
struct sublet__invalidation *sublet__invalidation_inside(void);

#endif
