/* SPDX-License-Identifier: MIT */
/*
 * core/frame.h: what is known about one frame, in 16 bytes.
 *
 * Only the first frame of a folio (its head) carries the folio's state; the others have no HEAD bit
 * and nothing in them may be trusted. State machine of a folio:
 *
 *            take                    map                     unlock
 *   FREE ----------> BUSY ----------------------> MOVABLE <----------> DISCARDABLE
 *    ^ \              |  ^                          |  |      lock          |
 *    |  \ isolate     |  | move: source, or unmap   |  | unmap while        | drop
 *    |   v            |  +--------------------------+  | a child shares it  v
 *    | ISOLATED <-----+ put, inside an isolated        v                  BUSY
 *    |   |              window                       PARKED
 *    |   | claim done        release                   | fork_restore
 *    |   +----------> CLAIMED ------> FREE <-----------+
 *    +--- put, isolation undone
 *   CACHED: BUSY's twin, free memory in a thread's cache (core/cache.c); a claim recalls it.
 *
 * The picture is the usual way; all there is:
 *
 *   from         to                       by
 *   FREE         BUSY                     who takes memory, or zeroes it ahead
 *                ISOLATED                 a claim: sublet__isolate
 *   CACHED       BUSY                     sublet__cache_take
 *                FREE, ISOLATED           a recall, or a cache that is full
 *   BUSY         MOVABLE                  segment_publish, run_publish
 *                FREE, CACHED, ISOLATED   sublet__frames_put
 *   MOVABLE      DISCARDABLE              sublet_unlock
 *                BUSY                     unmap, decommit: folio_leave
 *                PARKED                   the same while a child shares it
 *                FREE, CACHED, ISOLATED   the source of a move, put back
 *   DISCARDABLE  MOVABLE                  sublet_lock
 *                BUSY                     unmap, or dropped
 *   PARKED       FREE, ISOLATED           fork_restore; ISOLATED inside the window of a claim
 *   ISOLATED     CLAIMED                  sublet__isolate_commit
 *                FREE                     sublet__isolate_undo
 *   CLAIMED      FREE                     sublet_release
 *
 *   state        may be trusted                                    changed under
 *   FREE         a, b: links of the free list                      zone lock
 *   CACHED       nothing but order                                 cache lock
 *   BUSY         nothing but order; one thread has it in hand      that thread
 *   MOVABLE      a: vpn, b: mm; pte[vpn + i] maps pfn + i          block lock of (mm, vpn)
 *   DISCARDABLE  as MOVABLE; ref is FROZEN: nobody may pin it      block lock of (mm, vpn)
 *   PARKED       a: next in the mm's parked list                   mm's parked lock
 *   ISOLATED     nothing but order; belongs to one isolation       zone lock
 *   CLAIMED      a: slot in the claim table                        claim lock
 *
 * ref counts pins, short and long-term ones apart: a long-term one is only ever taken under the block lock, when
 * the folio lies in the normal zone (G3). FROZEN keeps new ones out: while the folio moves, and in every state but MOVABLE,
 * so that a pin that raced with a move can never take a reference on somebody else's folio that is
 * not mapped. So ref is none, pinned or FROZEN, and goes from none to each of the two and back, never from one of them
 * to the other (G2). PINNED remembers that a pin was there since the flag was cleared, WRITTEN that one for
 * writing was.
 */
#ifndef SUBLET_CORE_FRAME_H
#define SUBLET_CORE_FRAME_H

#include "core/atomic.h"

#include <errno.h>

struct sublet__frame {
	sublet__a32 ref;
	sublet__a32 word;
	sublet__a32 a;
	sublet__a32 b;
};

_Static_assert(sizeof(struct sublet__frame) == 16, "at most 16 bytes a frame");

enum sublet__frame_state {
	FRAME_FREE = 0,
	FRAME_CACHED,
	FRAME_BUSY,
	FRAME_MOVABLE,
	FRAME_DISCARDABLE,
	FRAME_PARKED,
	FRAME_ISOLATED,
	FRAME_CLAIMED,
};

#define FRAME_STATE_MASK  0x7u
#define FRAME_HEAD        (1u << 3)
#define FRAME_ORDER_SHIFT 4
#define FRAME_ORDER_MASK  (0xfu << FRAME_ORDER_SHIFT)
#define FRAME_ZERO        (1u << 8)  /* every byte is known to be 0; free memory only */
#define FRAME_HELD        (1u << 9)  /* a child of fork() shares it: must not move or be reused */
#define FRAME_PROTECTED   (1u << 10) /* the program changed its protection: must not move */
#define FRAME_DROPPABLE   (1u << 11) /* part of a discardable mapping, locked or not */

#define REF_FROZEN     (1u << 31)
#define REF_WRITTEN    (1u << 30)
#define REF_PINNED     (1u << 29)
#define REF_LONG_ONE   (1u << 19) /* long-term pins count from here, short ones from 1 */
#define REF_SHORT_MASK (REF_LONG_ONE - 1)
#define REF_COUNT_MASK (REF_PINNED - 1)
#define REF_LONG_MASK  (REF_COUNT_MASK & ~REF_SHORT_MASK)

/* Keep new pins out, unless there are some. The caller holds the folio's block lock. */
static inline bool ref_freeze(struct sublet__frame *f)
{
	uint32_t ref = a32_load_relaxed(&f->ref);
	/* acquire: pairs with the release in sublet_unpin, so that the pin's user is done (G2, G6) */
	return !(ref & (REF_FROZEN | REF_COUNT_MASK)) && a32_cas_seq_cst(&f->ref, &ref, ref | REF_FROZEN);
}

/* Take one more reference of a class. -EAGAIN: FROZEN; -EBUSY: no more of that class can be counted. */
static inline int ref_take(struct sublet__frame *f, uint32_t one, uint32_t mask, uint32_t write)
{
	uint32_t ref = a32_load_relaxed(&f->ref);

	do {
		if (ref & REF_FROZEN)
			return -EAGAIN;
		if ((ref & mask) == mask)
			return -EBUSY;
		/* seq_cst: pairs with ref_freeze; acquire: pairs with segment_publish and run_publish */
	} while (!a32_cas_seq_cst(&f->ref, &ref, (ref + one) | write | REF_PINNED));
	return 0;
}

/*
 * Give a reference back. Ordinary memory under a pin (the arena was full) has none; should its owner have
 * replaced it meanwhile, against the rules, the folio there now is somebody's that we never took.
 */
static inline void ref_drop(struct sublet__frame *f, uint32_t one, uint32_t mask)
{
	uint32_t ref = a32_load_relaxed(&f->ref);

	/* release: pairs with ref_freeze */
	while (!(ref & REF_FROZEN) && (ref & mask) && !a32_cas_acq_rel(&f->ref, &ref, ref - one))
		;
}

static inline uint32_t frame_word(enum sublet__frame_state state, uint32_t order, uint32_t flags)
{
	return (uint32_t)state | FRAME_HEAD | order << FRAME_ORDER_SHIFT | flags;
}

static inline enum sublet__frame_state word_state(uint32_t word)
{
	return (enum sublet__frame_state)(word & FRAME_STATE_MASK);
}

static inline uint32_t word_order(uint32_t word)
{
	return (word & FRAME_ORDER_MASK) >> FRAME_ORDER_SHIFT;
}

#endif
