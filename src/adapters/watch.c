/* SPDX-License-Identifier: MIT */
/*
 * From a notifier to a cache, for all adapters.
 *
 * The callback never declines. Neither cache says whether a registration is in use, and dropping one that is not takes
 * no waiting: the cache's lock is held for look-ups only. The adapters' sources say which locks that are.
 */
#include "adapters/watch.h"

static int watch_invalidate(void *ctx, const struct sublet_invalidation *inv)
{
	struct sublet__watch *watch = ctx;
	uint64_t first = inv->addr > watch->addr ? inv->addr : watch->addr;
	uint64_t end = watch->addr + watch->bytes;

	if (inv->addr + inv->bytes < end)
		end = inv->addr + inv->bytes;
	if (first < end)
		watch->drop(watch, first, end - first);
	/* Last: once it is seen, the notifier and the mm may be forgotten. */
	if (inv->event == SUBLET_NOTIFIER_EXIT)
		atomic_store_explicit(&watch->has_ended, true,
				      memory_order_release); /* pairs with watch_end */
	return 0;
}

static const struct sublet_notifier_ops watch_ops = { SUBLET_OPTIONS(sublet_notifier_ops),
						      .invalidate = watch_invalidate };

int sublet__watch_begin(struct sublet__watch *watch, struct sublet_mm *mm, const char *owner)
{
	atomic_init(&watch->has_ended, false);
	return sublet_notifier_add(mm, (const void *)(uintptr_t)watch->addr, watch->bytes, &watch_ops, watch,
				   owner, &watch->notifier);
}

void sublet__watch_end(struct sublet__watch *watch)
{
	if (atomic_load_explicit(&watch->has_ended, memory_order_acquire)) /* pairs with watch_invalidate */
		return;
	int err = sublet_notifier_remove(&watch->notifier);
	(void)err; /* it is registered, and this is no callback */
}
