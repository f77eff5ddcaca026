/* SPDX-License-Identifier: MIT */
/*
 * core/claim.h: one claim under way, and who of its three files does what.
 *
 *   claim.c      chooses windows, one after the other; takes, holds and gives back
 *   empty.c      empties the window that was chosen
 *   blockers.c   says what was in the way
 */
#ifndef SUBLET_CORE_CLAIM_H
#define SUBLET_CORE_CLAIM_H

#include "core/engine.h"

#define CLAIM_WINDOWS_MAX 8u /* tried by one claim */

/* On the stack of whoever claims. */
struct sublet__claim_job {
	struct sublet_arena *arena;
	struct sublet_claim *claim;
	struct sublet__claim_slot *slot;
	uint32_t frames;
	uint32_t align_frames;
	uint32_t flags;
	uint64_t deadline_ns; /* absolute, of the whole claim */

	/* the window being emptied */
	struct sublet__isolation window;
	struct sublet__window_range range;
	sublet__a32 next_block; /* workers take pageblocks from here */
	sublet__a32 block_end;
	sublet__a32 fatal; /* -errno that ends this window at once, as uint32_t; 0: none */
	sublet__a64 moved_frames, dropped_frames, zeroed_frames;
	sublet__a64 zeroing_ns;            /* of all threads, and not in claim->zeroing_ns yet */
	sublet__a32 came;                  /* threads that took a pageblock of it, the caller included */
	sublet__a32 short_of_room;         /* some move of this window found no destination at once */
	bool claims_in_way;                /* there would be room if other claims were released */
	struct sublet__lock blockers_lock; /* protects claim->blockers and count; claim_lock nests in it */

	uint32_t stuck[CLAIM_WINDOWS_MAX]; /* pageblocks marked stuck by this claim */
	uint32_t stuck_count;
};

/* A folio that stands in the way of a window for good, or for now. */
static inline bool word_blocks(const struct sublet_arena *arena, uint32_t word)
{
	enum sublet__frame_state state = word_state(word);
	return (state == FRAME_MOVABLE && a32_load_relaxed(&arena->stays)) || state == FRAME_CLAIMED ||
	       state == FRAME_PARKED || state == FRAME_ISOLATED || (word & (FRAME_HELD | FRAME_PROTECTED));
}

/* ---- core/empty.c ---- */
/* Empty the isolated window until until_ns, or say what stopped it: -EBUSY, -ENOMEM; *stuck_pfn is where. */
int sublet__window_empty(struct sublet__claim_job *job, uint64_t until_ns, uint32_t *stuck_pfn);

/* ---- core/blockers.c; claim_lock is not held ---- */
/* Name [pfn, pfn + frames), once for each kind. */
void sublet__blocker_add(struct sublet__claim_job *job, uint32_t kind, uint32_t pfn, uint32_t frames,
			 int error);
/* Name the folio at pfn, whose head is `word`: it cannot move; it would not move now. */
void sublet__blocker_immovable(struct sublet__claim_job *job, uint32_t pfn, uint32_t word);
void sublet__blocker_busy(struct sublet__claim_job *job, uint32_t pfn, uint32_t word);
/* Name whatever of the area cannot move. */
void sublet__blockers_immovable(struct sublet__claim_job *job);
/* Whether time may help: somebody is named who will go. */
bool sublet__blockers_pass(const struct sublet__claim_job *job);

#endif
