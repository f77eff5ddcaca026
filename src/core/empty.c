/* SPDX-License-Identifier: MIT */
/*
 * Emptying the window that a claim has isolated.
 *
 *   recall cached frames
 *   a look at each folio               a pageblock at a time, several workers; no lock of the arena held. What
 *                                      moves or can be dropped goes; pageblocks that are empty are zeroed warm
 *   wait for what is stuck             back-off, with a look at what is left after each, up to the deadline
 *   zero the rest
 *
 * What is held for good ends the window at once (window_fail). Memory to move to is made by dropping discardable
 * memory outside of the window, where there is none.
 */
#include "core/claim.h"

#include <errno.h>

#define ROOM_TRIES SUBLET__RUN_PAGES_MAX /* drops for one run to move: a page each at worst */

static void window_fail(struct sublet__claim_job *job, int err)
{
	uint32_t none = 0;
	a32_cas_acq_rel(&job->fatal, &none, (uint32_t)err); /* the first one counts */
}

static bool window_failed(const struct sublet__claim_job *job)
{
	return a32_load_acquire(&job->fatal) != 0;
}

/*
 * A move found no destination. Whether there is room all the same, on its way through somebody's hands
 * (a thread that zeroes, a move that gives its source back): then it is worth another look.
 */
static bool room_is_coming(struct sublet__claim_job *job)
{
	struct sublet_arena *arena = job->arena;
	uint32_t blocks = arena->frames_total >> arena->pageblock_order;
	uint64_t room = sublet__cache_frames(arena);

	for (uint32_t pb = 0; pb < blocks; pb++)
		room += sublet__account_get(&arena->pageblocks[pb], ACCOUNT_FREE);
	bool coming = room >= job->frames - sublet__isolated_frames(arena, &job->window);
	a32_store_relaxed(&job->short_of_room, 1);
	return coming;
}

/* Drop the first discardable memory of a pageblock that lies outside the window; returns the frames. */
static uint32_t block_drop(struct sublet__claim_job *job, uint32_t pb)
{
	struct sublet_arena *arena = job->arena;
	struct sublet__window_range outside = { .nowait = job->range.nowait,
						.until_ns = job->range.until_ns };
	uint32_t pfn = pb << arena->pageblock_order, end = (pb + 1) << arena->pageblock_order;

	while (pfn < end) {
		uint32_t word = a32_load_acquire(&arena->frames[pfn].word);
		uint32_t next = pfn + ((word & FRAME_HEAD) ? 1u << word_order(word) : 1);
		bool in_window = pfn < job->window.end_pfn && next > job->window.first_pfn;
		if ((word & FRAME_HEAD) && word_state(word) == FRAME_DISCARDABLE && !in_window) {
			outside.first_pfn = pfn; /* this folio and no other */
			outside.end_pfn = next;
			int64_t done = sublet__drop_folio(arena, pfn, &outside);
			if (done > 0)
				return (uint32_t)done;
		}
		pfn = next;
	}
	return 0;
}

/* Drop discardable memory outside of the windows, to make room for what moves. False: there is none. */
static bool room_make(struct sublet__claim_job *job)
{
	struct sublet_arena *arena = job->arena;
	uint32_t blocks = arena->frames_total >> arena->pageblock_order;
	uint32_t first = job->window.first_pfn >> arena->pageblock_order;
	uint32_t last = (job->window.end_pfn - 1) >> arena->pageblock_order;

	for (uint32_t pb = 0; pb < blocks; pb++) {
		const struct sublet__pageblock *block = &arena->pageblocks[pb];
		uint32_t own = pb >= first && pb <= last;
		/* relaxed: what is freed in the window of another claim would be no room; we look again */
		if (!sublet__account_get(block, ACCOUNT_DISCARDABLE) ||
		    a32_load_relaxed(&block->isolated) > own)
			continue;
		uint32_t done = block_drop(job, pb);
		a64_add_relaxed(&job->dropped_frames, done);
		if (done)
			return true;
	}
	return false;
}

static int64_t folio_move(struct sublet__claim_job *job, uint32_t pfn)
{
	int64_t done = sublet__move_folio(job->arena, pfn, &job->range);

	for (uint32_t tries = 0; done == -ENOMEM && tries < ROOM_TRIES && room_make(job); tries++)
		done = sublet__move_folio(job->arena, pfn, &job->range);
	return done;
}

/* Deal with one folio of the window. False: something is still there, look again later. */
static bool folio_empty(struct sublet__claim_job *job, uint32_t pfn, uint32_t word, bool name_pins)
{
	int64_t done = 0;

	switch (word_state(word)) {
	case FRAME_ISOLATED:
		return true;
	case FRAME_MOVABLE:
		done = (word & (FRAME_HELD | FRAME_PROTECTED)) ? -EBUSY : folio_move(job, pfn);
		if (done > 0)
			a64_add_relaxed(&job->moved_frames, (uint64_t)done);
		break;
	case FRAME_DISCARDABLE:
		done = (word & (FRAME_HELD | FRAME_PROTECTED))
			       ? -EBUSY
			       : sublet__drop_folio(job->arena, pfn, &job->range);
		if (done > 0)
			a64_add_relaxed(&job->dropped_frames, (uint64_t)done);
		break;
	case FRAME_CLAIMED:
	case FRAME_PARKED:
		done = -EBUSY;
		break;
	default: /* FREE, CACHED, BUSY: in somebody's hand, for less than a move */
		return false;
	}
	if (done == -ENOMEM && room_is_coming(job))
		return false;
	if (done == -EAGAIN && name_pins)
		sublet__blocker_busy(job, pfn, word);
	if (done >= 0 || done == -EAGAIN)
		return done > 0;
	if (done == -EBUSY)
		sublet__blocker_immovable(job, pfn, word);
	else if (done == -EADDRINUSE)
		sublet__blocker_add(job, SUBLET_BLOCKER_WATCHED, pfn, 1u << word_order(word), 0);
	else if (done == -ENOSPC)
		sublet__blocker_add(job, SUBLET_BLOCKER_MAPPINGS, pfn, 1u << word_order(word), (int)done);
	else if (done != -ENOMEM)
		sublet__blocker_add(job, SUBLET_BLOCKER_PLATFORM, pfn, 1u << word_order(word), (int)done);
	window_fail(job, done == -ENOMEM ? -ENOMEM : -EBUSY);
	return false;
}

/* One look at each folio of [pfn, end). Returns the first place where something is still there, or end. */
static uint32_t range_empty(struct sublet__claim_job *job, uint32_t pfn, uint32_t end, bool name_pins)
{
	struct sublet_arena *arena = job->arena;
	uint32_t left = end;
	uint32_t head = sublet__frame_head(arena, pfn); /* a small window may begin inside a folio */

	if (head != ENGINE_NONE)
		pfn = head;
	while (pfn < end && !window_failed(job)) {
		uint32_t word = a32_load_acquire(&arena->frames[pfn].word);
		bool is_head = word & FRAME_HEAD;
		if (!is_head || !folio_empty(job, pfn, word, name_pins))
			left = min_u32(left, pfn);
		/* Look again at where something was: a folio that moved may have left several behind. */
		word = a32_load_acquire(&arena->frames[pfn].word);
		pfn += (word & FRAME_HEAD) ? 1u << word_order(word) : 1;
	}
	return left;
}

static bool block_clear(struct sublet__claim_job *job, uint32_t first, uint32_t end)
{
	struct sublet_arena *arena = job->arena;
	for (uint32_t pfn = first; pfn < end;) {
		uint32_t word = a32_load_acquire(&arena->frames[pfn].word);
		if (!(word & FRAME_HEAD) || word_state(word) != FRAME_ISOLATED)
			return false;
		pfn += 1u << word_order(word);
	}
	return true;
}

static void range_zero(struct sublet__claim_job *job, uint32_t first, uint32_t end, bool warm)
{
	uint64_t start_ns = engine_now(job->arena);

	a64_add_relaxed(&job->zeroed_frames, sublet__isolated_zero(job->arena, first, end, warm));
	a64_add_relaxed(&job->zeroing_ns, engine_now(job->arena) - start_ns);
}

/* Add what `threads` spent zeroing to the time of the claim: their mean, for they did it side by side. */
static void zeroing_count(struct sublet__claim_job *job, uint32_t threads)
{
	job->claim->zeroing_ns += a64_load_relaxed(&job->zeroing_ns) / max_u32(1, threads);
	a64_store_relaxed(&job->zeroing_ns, 0);
}

/* What a worker does: empty pageblocks, and zero those that are empty while they are warm. */
static void worker_empty(void *arg, uint32_t worker)
{
	struct sublet__claim_job *job = arg;
	uint32_t shift = job->arena->pageblock_order;
	bool counted = false;

	(void)worker;
	for (;;) {
		uint32_t pb = a32_add_relaxed(&job->next_block, 1);
		if (pb >= a32_load_relaxed(&job->block_end) || window_failed(job))
			return;
		if (!counted)
			a32_add_relaxed(&job->came, 1);
		counted = true;
		uint32_t first = max_u32(pb << shift, job->window.first_pfn);
		uint32_t end = min_u32((pb + 1) << shift, job->window.end_pfn);
		/* What is copied away is in the cache afterwards, what was free is not. */
		bool warm = sublet__account_get(&job->arena->pageblocks[pb], ACCOUNT_MOVABLE) >=
			    (end - first) / 2;
		range_empty(job, first, end, false);
		if (!(job->flags & SUBLET_CLAIM_NOZERO) && block_clear(job, first, end))
			range_zero(job, first, end, warm);
	}
}

static bool window_clear(struct sublet__claim_job *job)
{
	return sublet__isolated_frames(job->arena, &job->window) == job->frames;
}

/* No time is left. What is not named by now is in nobody's address space: a call has taken it, or is giving it back. */
static int window_given_up(struct sublet__claim_job *job, uint32_t stuck_pfn)
{
	uint32_t pfn = min_u32(stuck_pfn, job->window.end_pfn - 1);

	if (window_failed(job))
		return (int)a32_load_relaxed(&job->fatal);
	if (!job->claim->blocker_count && a32_load_relaxed(&job->short_of_room))
		return -ENOMEM;
	if (!job->claim->blocker_count)
		sublet__blocker_add(job, SUBLET_BLOCKER_CALL, pfn, 1, 0);
	return -EBUSY;
}

/* Pins of what is stuck, and of what would move along with it, are held off after a while (G10); *held: in this mm. */
static void pins_hold_off(const struct sublet__claim_job *job, uint32_t stuck_pfn, uint64_t waited_ns,
			  struct sublet_mm **held)
{
	struct sublet_arena *arena = job->arena;
	const struct sublet__frame *f = &arena->frames[min_u32(stuck_pfn, job->window.end_pfn - 1)];
	/* relaxed: what is read of a folio that is going elsewhere keeps the wrong pins waiting, until the next look */
	uint32_t word = a32_load_relaxed(&f->word), index = a32_load_relaxed(&f->b);
	uint32_t vpn = a32_load_relaxed(&f->a) & ~(ENGINE_BLOCK_PAGES - 1);
	struct sublet_mm *mm = NULL;

	if ((word & FRAME_HEAD) && word_state(word) == FRAME_MOVABLE &&
	    index < a32_load_acquire(&arena->mm_count)) /* pairs with sublet__mm_create */
		mm = arena->mm[index];
	if (*held && *held != mm)
		sublet__pins_let_in(*held);
	if (mm)
		sublet__pins_hold_off(mm, vpn, ENGINE_BLOCK_PAGES, waited_ns);
	*held = mm;
}

/* After the first pass: look again and again at what is left, until `until_ns`. */
static int window_wait(struct sublet__claim_job *job, uint64_t until_ns, uint32_t *stuck_pfn)
{
	struct sublet_arena *arena = job->arena;
	const struct sublet__platform *p = &arena->platform;
	struct sublet__backoff backoff = { 0 };
	uint64_t since_ns = engine_now(arena);
	struct sublet_mm *held = NULL;
	int err = 0;

	while (!window_clear(job)) {
		if (window_failed(job)) {
			err = (int)a32_load_relaxed(&job->fatal);
			break;
		}
		uint64_t now = engine_now(arena);
		bool last = now >= until_ns || (job->flags & SUBLET_CLAIM_NOWAIT);
		*stuck_pfn = range_empty(job, job->window.first_pfn, job->window.end_pfn, last);
		if (window_clear(job))
			break;
		if (last) {
			err = window_given_up(job, *stuck_pfn);
			break;
		}
		pins_hold_off(job, *stuck_pfn, now - since_ns, &held);
		backoff_sleep(p, &backoff, now, until_ns);
		/* what hangs holds memory no longer than its job may take (G11) */
		sublet__devices_check(arena);
		job->claim->waits++;
		job->claim->waited_ns += engine_now(arena) - now;
	}
	if (held)
		sublet__pins_let_in(held);
	return err;
}

/*
 * How many take part. Copying and zeroing is shared out. Giving up discardable memory is not: it is short work under
 * locks of the zone, which two do more slowly than one; nor is a window that was free, which takes less time than it
 * takes to wake somebody.
 */
static uint32_t workers_wanted(const struct sublet__claim_job *job, uint32_t first_block, uint32_t end_block)
{
	const struct sublet_arena *arena = job->arena;
	uint32_t enough = 1u << arena->pageblock_order, frames = 0;
	bool zeroes = !(job->flags & SUBLET_CLAIM_NOZERO);

	for (uint32_t pb = first_block; pb < end_block && frames < enough; pb++) {
		frames += sublet__account_get(&arena->pageblocks[pb], ACCOUNT_MOVABLE);
		if (zeroes)
			frames += sublet__account_get(&arena->pageblocks[pb], ACCOUNT_DISCARDABLE);
	}
	if (frames < enough && zeroes)
		frames += sublet__isolated_dirty(arena, job->window.first_pfn, job->window.end_pfn, enough);
	return frames < enough ? 1 : max_u32(1, min_u32(arena->platform.workers, end_block - first_block));
}

/* Empty the isolated window, or say what stopped it; *stuck_pfn is where. */
int sublet__window_empty(struct sublet__claim_job *job, uint64_t until_ns, uint32_t *stuck_pfn)
{
	struct sublet_arena *arena = job->arena;
	const struct sublet__platform *p = &arena->platform;
	uint32_t shift = arena->pageblock_order;
	uint32_t first = job->window.first_pfn >> shift, end = ((job->window.end_pfn - 1) >> shift) + 1;

	*stuck_pfn = job->window.first_pfn;
	a32_store_relaxed(&job->next_block, first);
	a32_store_relaxed(&job->block_end, end);
	a32_store_relaxed(&job->came, 0);
	a32_store_relaxed(&job->fatal, 0);
	a32_store_relaxed(&job->short_of_room, 0);
	job->range = (struct sublet__window_range){ .first_pfn = job->window.first_pfn,
						    .end_pfn = job->window.end_pfn,
						    .until_ns = until_ns,
						    .nowait = job->flags & SUBLET_CLAIM_NOWAIT };
	sublet__emptying_begin(arena);
	sublet__cache_recall(arena, job->window.first_pfn, job->window.end_pfn);
	uint32_t threads = workers_wanted(job, first, end);
	if (threads > 1)
		p->ops->parallel(p->ctx, threads, worker_empty, job);
	else
		worker_empty(job, 0);
	/* relaxed: who came has left, which parallel() waits for */
	zeroing_count(job, a32_load_relaxed(&job->came));
	sublet__emptying_end(arena);

	int err = window_wait(job, until_ns, stuck_pfn);
	if (!err && !(job->flags & SUBLET_CLAIM_NOZERO)) {
		range_zero(job, job->window.first_pfn, job->window.end_pfn, false);
		zeroing_count(job, 1);
	}
	return err;
}
