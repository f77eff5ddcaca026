/* SPDX-License-Identifier: MIT */
/*
 * sublet/notifier.h: be told before the frames under a range of addresses change.
 *
 * For whoever keeps a translation of its own (a device's page table, a registration cache) and does not want to pin.
 * The engine calls invalidate() before it moves, discards, unmaps or protects any page that the range touches. When the
 * callback has returned 0, the driver uses no frame that it looked up before (G4).
 *
 * Building a translation without a pin races with moves. The collision-retry sequence settles it:
 *
 *   again:
 *       err = sublet_notifier_read_begin(&n, timeout_ns, &seq);     waits out invalidations of the range
 *       count = sublet_mm_extents(mm, addr, bytes, 0, extents, max);
 *       lock(driver);
 *       if (sublet_notifier_read_retry(&n, seq)) {                  an invalidation began meanwhile
 *           unlock(driver);
 *           goto again;
 *       }
 *       put the extents into the translation
 *       unlock(driver);
 *
 * with a callback that takes the same lock(driver) to remove them. Either the callback comes later, and removes what was
 * put in; or it came before, and the retry sees it. There is no loop inside read_begin, so the caller bounds the whole.
 *
 * Who looks up under a pin needs none of this, and may keep what was found after the unpin, as a registration cache
 * does: when the memory moves later, a callback comes after the unpin and before the move. (It may be the second for
 * one move: the first came before the pin.)
 *
 * Which lock may a callback take? The mover holds the lock of a page-table block meanwhile. A callback may call
 * sublet_notifier_remove on any notifier, sublet_iopt_*, sublet_mm_extents, and sublet_pin with NOWAIT and without
 * LONGTERM; it must not map, unmap, pin otherwise, claim, or wait for another thread that does, and must not touch movable
 * memory of the range.
 */
#ifndef SUBLET_NOTIFIER_H
#define SUBLET_NOTIFIER_H

#include <sublet/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Why. */
enum sublet_notifier_event {
	SUBLET_NOTIFIER_MOVE = 1, /* the bytes go to other frames; or become copy-on-write for a fork() */
	SUBLET_NOTIFIER_DISCARD,  /* the bytes are given up */
	SUBLET_NOTIFIER_UNMAP,    /* the addresses go, or their memory does */
	SUBLET_NOTIFIER_PROTECT,  /* the program changes the protection; seen under `sublet run` only */
	SUBLET_NOTIFIER_EXIT,     /* the mm ends; the notifier is removed when the callback has returned */
};

/* What is about to happen, for the time of the callback. */
struct sublet_invalidation {
	struct sublet_mm *mm;
	uint64_t addr; /* of the whole change, which may reach beyond the notifier's range on both sides */
	uint64_t bytes;
	uint32_t event;     /* enum sublet_notifier_event */
	uint32_t may_block; /* 0: the callback must not sleep, and may decline */
};

struct sublet_notifier_ops {
	uint64_t size_bytes; /* SUBLET_OPTIONS(sublet_notifier_ops) */
	/*
	 * Stop using the frames under the part of the range that inv covers. Returns 0; or -EAGAIN where inv->may_block is 0
	 * and it would have to wait: the engine leaves the memory alone and tries again later, like with a short
	 * pin. With may_block any answer but 0 is an error of the driver, and ignored, with one exception: -EBUSY when
	 * memory goes (UNMAP, DISCARD) says that the device cannot be stopped and may still write there. Then the memory
	 * stays, and sublet_unmap answers -EBUSY, as for a pin.
	 * May run on several threads at once for one notifier.
	 */
	int (*invalidate)(void *ctx, const struct sublet_invalidation *inv);
};

/* A notifier that is registered, in the caller's memory: a handle, may be copied. */
struct sublet_notifier {
	struct sublet_mm *mm;
	uint64_t id;
	uint64_t hint; /* where the index has it: only to be faster */
};

/*
 * Register [addr, addr + bytes) of the mm's window; it need not be mapped. Ranges may overlap, touch, nest, and be
 * equal. ops, and ctx as far as the callback needs it, must live until the notifier is removed. owner is a tag (NULL:
 * "notifier") by which a claim names it when its callback declined up to the claim's deadline. *notifier is filled in
 * before the first callback, which may come before this has returned.
 *
 * -EINVAL  the range wraps, is empty or not of this mm; ops without a callback; the mm is ending
 * -ENOMEM  16,777,216 notifiers in this mm, or no memory for the index
 */
SUBLET_API SUBLET_NODISCARD int sublet_notifier_add(struct sublet_mm *mm, const void *addr, uint64_t bytes,
						    const struct sublet_notifier_ops *ops, void *ctx,
						    const char *owner, struct sublet_notifier *notifier);

/*
 * Remove it. When this has returned, no callback of it runs or will run, other than the one that called it. From
 * inside a callback of the same notifier it does not wait for that callback; if two callbacks of one notifier on
 * two threads both remove it, one gets -EINVAL at once and the other waits for that callback to return.
 * -EINVAL   it is not registered (removed twice, or told SUBLET_NOTIFIER_EXIT). Not to be called once the arena is
 *           destroyed: EXIT has told it by then, and the handle leads nowhere
 * -EDEADLK  called from inside a callback, it would wait for a callback on another thread that is itself waiting, in a
 *           call of this function, for the caller's: it is registered as before. Seen within one arena only: callbacks of
 *           two arenas that remove each other's notifiers wait for ever, so none may remove one of another arena
 */
SUBLET_API SUBLET_NODISCARD int sublet_notifier_remove(struct sublet_notifier *notifier);

/*
 * Begin to read the range's page table: wait until no invalidation of the range is in progress, at most timeout_ns, and
 * set *seq. timeout_ns 0: never sleeps.
 * -EAGAIN     timeout_ns is 0, and an invalidation is in progress
 * -ETIMEDOUT  one is still in progress after timeout_ns
 * -EINVAL     not registered
 */
SUBLET_API SUBLET_NODISCARD int sublet_notifier_read_begin(const struct sublet_notifier *notifier,
							   uint64_t timeout_ns, uint64_t *seq);

/* Whether what was read since read_begin returned seq must not be used. To be asked under the callback's lock. */
SUBLET_API SUBLET_NODISCARD bool sublet_notifier_read_retry(const struct sublet_notifier *notifier,
							    uint64_t seq);

/*
 * Look up, without pinning, where [addr + from_bytes, addr + bytes) is now: at most `count` extents, adjacent ones
 * merged. Returns how many (0: from_bytes is bytes). Never sleeps, takes no lock. What it says may be wrong by the time
 * it returns: use it only between read_begin and read_retry.
 * -EINVAL  the range wraps, is empty or not of this mm, from_bytes is beyond it, count is 0
 * -EFAULT  the next byte is not mapped, or unlocked discardable, or plain memory
 * -EBUSY   a child of fork() shares it: what a device wrote would get lost
 * -EAGAIN  it is being changed at this moment
 */
SUBLET_API SUBLET_NODISCARD int sublet_mm_extents(struct sublet_mm *mm, const void *addr, uint64_t bytes,
						  uint64_t from_bytes, struct sublet_extent *extents,
						  uint32_t count);

struct sublet_notifier_stats {
	uint64_t size_bytes;    /* SUBLET_OPTIONS(sublet_notifier_stats), set by the caller */
	uint64_t registered;    /* now */
	uint64_t invalidations; /* that began */
	uint64_t callbacks;
	uint64_t declined;
	uint64_t memory_bytes; /* of the index and its nodes, as far as they were touched */
};

/* Fill in *stats for one mm. -EINVAL: stats->size_bytes is not set. */
SUBLET_API SUBLET_NODISCARD int sublet_notifier_stats(struct sublet_mm *mm,
						      struct sublet_notifier_stats *stats);

#ifdef __cplusplus
}
#endif
#endif
