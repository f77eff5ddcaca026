/* SPDX-License-Identifier: MIT */
/*
 * Claiming a contiguous window, and giving it back.
 *
 *   choose and isolate a window        claim_lock: one step, so two claims never choose the same
 *   empty it (core/empty.c)            up to this window's share of the deadline
 *   commit                             or undo the isolation and try the next window
 *
 * Windows of a pageblock or more start at a pageblock (or at the asked alignment); the chooser of
 * core/window.c finds the cheapest. For smaller ones the cheapest pageblock is searched for a place: a
 * free one, else one without a pin. If neither finds one, the area is scanned for any window without
 * something immovable, so that a claim fails only if there is none (G10).
 *
 * Where every window holds another claim, or memory that a child of a fork() shares, the claim looks again and again,
 * up to its deadline.
 *
 * A window whose deadline passes marks the pageblock that was stuck for as long as the claim lasts,
 * so that the next choice avoids it. What moved out of a failed window stays where it is: it is
 * valid there, and the window is cheaper next time (G5, G7).
 */
#include "core/claim.h"

#include "core/call.h"

#include <errno.h>
#include <string.h>

/* ---- choosing ---- */

/*
 * Where [pfn, end) meets the window of another claim, the end of that, else pfn. Two isolations never
 * overlap: each counts the frames that became ISOLATED in it. The list changes under claim_lock, held here.
 */
static uint32_t isolation_skip(const struct sublet_arena *arena, uint32_t pfn, uint32_t end)
{
	const struct sublet__isolation *i = arena->zone[ZONE_AREA].isolations;

	while (i && (pfn >= i->end_pfn || end <= i->first_pfn))
		i = i->next;
	return i ? i->end_pfn : pfn;
}

enum scan {
	SCAN_FREE = 0, /* only what is free already */
	SCAN_UNPINNED, /* nothing that a pin holds at this moment */
	SCAN_ANY,      /* nothing that blocks: pins are waited for */
};

static bool scan_avoids(const struct sublet_arena *arena, uint32_t pfn, uint32_t word, enum scan scan)
{
	enum sublet__frame_state state = word_state(word);

	if (word_blocks(arena, word))
		return true;
	if (scan == SCAN_FREE)
		return state != FRAME_FREE && state != FRAME_CACHED;
	/* relaxed: a pin that comes or goes meanwhile is waited for, as always */
	return scan == SCAN_UNPINNED && state == FRAME_MOVABLE &&
	       (a32_load_relaxed(&arena->frames[pfn].ref) & REF_COUNT_MASK);
}

/* The first aligned window in [pfn, end) without anything that blocks or is to be avoided; ENGINE_NONE. */
static uint32_t window_scan(const struct sublet__claim_job *job, uint32_t pfn, uint32_t end, enum scan scan)
{
	const struct sublet_arena *arena = job->arena;
	uint32_t align = job->align_frames, at = pfn, start;

	for (start = (pfn + align - 1) & ~(align - 1); start < end && job->frames <= end - start;) {
		uint32_t skip = isolation_skip(arena, start, start + job->frames);
		if (skip != start) {
			start = (skip + align - 1) & ~(align - 1);
			continue;
		}
		if (at >= start + job->frames)
			return start;
		uint32_t word = a32_load_acquire(&arena->frames[at].word);
		uint32_t next = at + ((word & FRAME_HEAD) ? 1u << word_order(word) : 1);
		if ((word & FRAME_HEAD) && next > start && scan_avoids(arena, at, word, scan))
			start = (next + align - 1) & ~(align - 1);
		at = next;
	}
	return ENGINE_NONE;
}

static uint32_t window_choose_small(struct sublet__claim_job *job)
{
	struct sublet_arena *arena = job->arena;
	uint32_t step = max_u32(1, job->align_frames >> arena->pageblock_order);
	uint64_t cost;
	uint32_t pb = sublet__window_cheapest(arena, 1, step, &cost);

	if (job->flags & SUBLET_CLAIM_DEAREST)
		pb = sublet__window_dearest(arena, 1, step, &cost);
	if (pb == ENGINE_NONE)
		return ENGINE_NONE;
	uint32_t first = pb << arena->pageblock_order, end = (pb + 1) << arena->pageblock_order;
	uint32_t pfn = (job->flags & SUBLET_CLAIM_DEAREST) ? ENGINE_NONE
							   : window_scan(job, first, end, SCAN_FREE);
	return pfn == ENGINE_NONE ? window_scan(job, first, end, SCAN_UNPINNED) : pfn;
}

/* Choose a window and isolate it; claim_lock makes this one step. False: there is none. */
static bool window_choose(struct sublet__claim_job *job)
{
	struct sublet_arena *arena = job->arena;
	uint32_t block_frames = 1u << arena->pageblock_order, pfn = ENGINE_NONE, pb;
	uint32_t count = (job->frames + block_frames - 1) / block_frames;
	uint32_t step = max_u32(1, job->align_frames / block_frames);
	uint64_t cost;

	engine_lock(arena, &arena->claim_lock);
	if (job->frames < block_frames) {
		pfn = window_choose_small(job);
	} else {
		pb = (job->flags & SUBLET_CLAIM_DEAREST) ? sublet__window_dearest(arena, count, step, &cost)
							 : sublet__window_cheapest(arena, count, step, &cost);
		if (pb == ENGINE_NONE && (job->flags & SUBLET_CLAIM_DEAREST))
			pb = sublet__window_cheapest(arena, count, step, &cost);
		if (pb != ENGINE_NONE)
			pfn = pb << arena->pageblock_order;
	}
	/* The tree is as good as what was accounted before; that two isolations never overlap is certain. */
	if (pfn != ENGINE_NONE && isolation_skip(arena, pfn, pfn + job->frames) != pfn)
		pfn = ENGINE_NONE;
	for (enum scan scan = SCAN_UNPINNED; pfn == ENGINE_NONE && scan <= SCAN_ANY; scan++)
		pfn = window_scan(job, 0, arena->zone[ZONE_AREA].frames, scan);
	if (pfn != ENGINE_NONE) {
		job->window = (struct sublet__isolation){ .first_pfn = pfn, .end_pfn = pfn + job->frames };
		sublet__isolate(arena, &job->window);
	}
	engine_unlock(arena, &arena->claim_lock);
	return pfn != ENGINE_NONE;
}

static void stuck_mark(struct sublet__claim_job *job, uint32_t pfn)
{
	struct sublet_arena *arena = job->arena;
	uint32_t pb = pfn >> arena->pageblock_order;

	if (job->stuck_count == CLAIM_WINDOWS_MAX ||
	    pb >= arena->zone[ZONE_AREA].frames >> arena->pageblock_order)
		return;
	job->stuck[job->stuck_count++] = pb;
	a32_add_acq_rel(&arena->pageblocks[pb].stuck, 1);
	sublet__window_touch(arena, pb);
}

static void stuck_unmark(struct sublet__claim_job *job)
{
	for (uint32_t i = 0; i < job->stuck_count; i++) {
		a32_sub_acq_rel(&job->arena->pageblocks[job->stuck[i]].stuck, 1);
		sublet__window_touch(job->arena, job->stuck[i]);
	}
	job->stuck_count = 0;
}

/* ---- what there is, for -ENOMEM ---- */

static void shortfall_fill(struct sublet__claim_job *job)
{
	struct sublet_arena *arena = job->arena;
	uint64_t free_frames = 0, droppable = 0, claimed = 0;
	uint32_t blocks = arena->frames_total >> arena->pageblock_order;

	for (uint32_t pb = 0; pb < blocks; pb++) {
		free_frames += sublet__account_get(&arena->pageblocks[pb], ACCOUNT_FREE);
		droppable += sublet__account_get(&arena->pageblocks[pb], ACCOUNT_DISCARDABLE);
		claimed += sublet__account_get(&arena->pageblocks[pb], ACCOUNT_CLAIMED);
	}
	uint64_t have = free_frames + droppable + sublet__cache_frames(arena);
	uint32_t shift = frames_bytes_shift(arena);
	have = have < arena->zone[ZONE_AREA].frames ? have : arena->zone[ZONE_AREA].frames;
	job->claim->claimable_bytes = have << shift;
	job->claim->shortfall_bytes = have < job->frames ? (job->frames - have) << shift : 0;
	job->claims_in_way = have < job->frames && have + claimed >= job->frames;
}

/* Free and droppable memory anywhere must cover the window: refuse before anything moves. */
static bool room_is_enough(struct sublet__claim_job *job)
{
	shortfall_fill(job);
	bool enough = !job->claim->shortfall_bytes;
	job->claim->shortfall_bytes = enough ? 0 : job->claim->shortfall_bytes;
	return enough;
}

static int noroom(struct sublet__claim_job *job)
{
	shortfall_fill(job);
	if (job->claims_in_way) {
		sublet__blockers_immovable(job);
		job->claim->shortfall_bytes = 0;
		return -EBUSY;
	}
	if (!job->claim->shortfall_bytes) /* it was there when the claim began, and went meanwhile */
		job->claim->shortfall_bytes = 1ull << frames_bytes_shift(job->arena);
	sublet__blocker_add(job, SUBLET_BLOCKER_NOROOM, 0,
			    (uint32_t)(job->claim->shortfall_bytes >> frames_bytes_shift(job->arena)), 0);
	return -ENOMEM;
}

/* ---- the claim ---- */

static int windows_try(struct sublet__claim_job *job)
{
	struct sublet_arena *arena = job->arena;
	int err = -EBUSY;

	for (uint32_t i = 0; i < CLAIM_WINDOWS_MAX; i++) {
		uint32_t stuck_pfn;
		uint64_t now = engine_now(arena);
		if (i && now >= job->deadline_ns)
			break;
		if (!window_choose(job)) {
			sublet__blockers_immovable(job);
			break;
		}
		job->claim->windows_tried++;
		a64_add_relaxed(&arena->counters.windows_tried, 1);
		/* Half of the time that is left for each window: the last look is at the deadline itself. */
		uint64_t left = job->deadline_ns > now ? job->deadline_ns - now : 0;
		err = sublet__window_empty(job, i + 1 < CLAIM_WINDOWS_MAX ? now + left / 2 : job->deadline_ns,
					   &stuck_pfn);
		if (!err)
			return 0;
		engine_lock(arena, &arena->claim_lock);
		sublet__isolate_undo(arena, &job->window);
		engine_unlock(arena, &arena->claim_lock);
		if (err == -ENOMEM)
			return noroom(job);
		stuck_mark(job, stuck_pfn);
	}
	return err;
}

/*
 * Windows, and while none can be had because of other claims or of children of a fork: wait and look again, up to
 * the deadline. Pins are waited for with the window isolated (window_wait); nobody can tell where a claim will end.
 */
static int claim_try(struct sublet__claim_job *job)
{
	struct sublet_arena *arena = job->arena;
	const struct sublet__platform *p = &arena->platform;

	for (struct sublet__backoff backoff = { 0 };;) {
		for (uint32_t i = 0; i < a32_load_acquire(&arena->mm_count); i++)
			sublet__mm_relieve(arena->mm[i]);
		if (a32_load_relaxed(&arena->stays))
			sublet__cache_drain(
				arena); /* what is cached looks like what is mapped, until it is recalled */
		int err = room_is_enough(job) ? windows_try(job) : noroom(job);
		uint64_t now = engine_now(arena);
		stuck_unmark(job);
		if (err != -EBUSY || (job->flags & SUBLET_CLAIM_NOWAIT) || now >= job->deadline_ns ||
		    !sublet__blockers_pass(job))
			return err;
		backoff_sleep(p, &backoff, now, job->deadline_ns);
		job->claim->waits++;
		job->claim->waited_ns += engine_now(arena) - now;
		job->claim->blocker_count = 0; /* what is in the way is seen anew */
	}
}

static struct sublet__claim_slot *slot_take(struct sublet_arena *arena, const char *owner, bool is_guests)
{
	struct sublet__claim_slot *slot = NULL;

	engine_lock(arena, &arena->claim_lock);
	for (uint32_t i = 0; i < ENGINE_CLAIMS_MAX; i++) {
		if (arena->claim[i].id)
			continue;
		slot = &arena->claim[i];
		slot->id = ++arena->claim_generation * ENGINE_CLAIMS_MAX + i;
		slot->frames = 0; /* not to be released before it is complete */
		slot->is_guests = is_guests;
		slot->since_ns = engine_now(arena);
		sublet__owner_copy(slot->owner, owner ? owner : "claim");
		break;
	}
	engine_unlock(arena, &arena->claim_lock);
	return slot;
}

/* For a checker of programs. */
static void hand(struct sublet_arena *arena, uint32_t pfn, uint32_t frames, enum sublet__handed how)
{
	const struct sublet__platform *p = &arena->platform;

	if (p->ops->handed)
		p->ops->handed(p->ctx, pfn, frames, how);
}

static void claim_finish(struct sublet__claim_job *job, int err, uint64_t start_ns)
{
	struct sublet_arena *arena = job->arena;
	struct sublet_claim *claim = job->claim;
	struct sublet__counters *n = &arena->counters;
	uint32_t shift = frames_bytes_shift(arena);

	claim->moved_bytes = a64_load_relaxed(&job->moved_frames) << shift;
	claim->dropped_bytes = a64_load_relaxed(&job->dropped_frames) << shift;
	claim->zeroed_bytes = a64_load_relaxed(&job->zeroed_frames) << shift;
	a64_add_relaxed(&n->zeroed_frames, a64_load_relaxed(&job->zeroed_frames));

	engine_lock(arena, &arena->claim_lock);
	if (err) {
		job->slot->id = 0;
	} else {
		sublet__isolate_commit(arena, &job->window, (uint32_t)(job->slot - arena->claim));
		job->slot->first_pfn = job->window.first_pfn;
		job->slot->frames = job->frames;
		claim->id = job->slot->id;
	}
	engine_unlock(arena, &arena->claim_lock);
	claim->latency_ns = engine_now(arena) - start_ns;
	a64_add_relaxed(&n->claims, 1);
	if (err) {
		a64_add_relaxed(err == -ENOMEM ? &n->claims_noroom : &n->claims_busy, 1);
		return;
	}
	claim->blocker_count = 0; /* what was in the way of windows before this one */
	claim->bytes = (uint64_t)job->frames << shift;
	claim->offset_bytes = (uint64_t)job->window.first_pfn << shift;
	claim->addr = arena->linear ? (char *)arena->linear + claim->offset_bytes : NULL;
	hand(arena, job->window.first_pfn, job->frames,
	     job->flags & SUBLET_CLAIM_NOZERO ? SUBLET__HANDED_STALE : SUBLET__HANDED_ZEROED);
	a64_add_relaxed(&n->claims_succeeded, 1);
	a64_add_relaxed(&n->claims_held, 1);
	sublet__histogram_add(&arena->claim_ns, claim->latency_ns);
}

/* Read the options, whatever version they are of. */
static int options_read(const struct sublet_claim_options *from, struct sublet_claim_options *to)
{
	*to = (struct sublet_claim_options){ .size_bytes = sizeof *to };
	int err = from ? sublet__struct_in(to, sizeof *to, from, FIRST_CLAIM_OPTIONS) : 0;
	if (err || to->reserved)
		return err ? err : -EINVAL;
	if (!to->deadline_ns)
		to->deadline_ns = ENGINE_DEADLINE_NS;
	uint64_t align = to->align_bytes ? to->align_bytes : 1;
	if ((align & (align - 1)) || align > SUBLET_GIB ||
	    (to->flags & ~(uint32_t)(SUBLET_CLAIM_NOWAIT | SUBLET_CLAIM_NOZERO | SUBLET_CLAIM_DEAREST)))
		return -EINVAL;
	to->align_bytes = align;
	return 0;
}

/* A thread whose stack lies in lent memory would block its own stack, and sleep on it for ever. */
static bool stack_is_lent(struct sublet_arena *arena)
{
	for (uint32_t i = 0; i < a32_load_acquire(&arena->mm_count); i++)
		if (sublet__mm_contains(arena->mm[i], __builtin_frame_address(0), 1))
			return true;
	return false;
}

static int claim_for(struct sublet_arena *arena, uint64_t bytes, const struct sublet_claim_options *options,
		     struct sublet_claim *claim, bool is_guests)
{
	struct sublet_claim_options o;
	int err = claim ? call_arena(arena) : -EINVAL;

	if (claim)
		*claim = (struct sublet_claim){ 0 };
	if (!err)
		err = bytes ? options_read(options, &o) : -EINVAL;
	if (err)
		return err;
	uint32_t shift = frames_bytes_shift(arena);
	uint64_t start_ns = engine_now(arena), area = (uint64_t)arena->zone[ZONE_AREA].frames << shift;
	if (bytes > area) {
		claim->claimable_bytes = area;
		return -E2BIG;
	}
	if (stack_is_lent(arena))
		return -EDEADLK;
	struct sublet__claim_job job = {
		.arena = arena,
		.claim = claim,
		.frames = (uint32_t)((bytes + (1ull << shift) - 1) >> shift),
		.align_frames = max_u32(1, (uint32_t)(o.align_bytes >> shift)),
		.flags = o.flags,
		.deadline_ns = o.deadline_ns < UINT64_MAX - start_ns ? start_ns + o.deadline_ns : UINT64_MAX,
	};
	job.slot = slot_take(arena, o.owner, is_guests);
	if (!job.slot) {
		sublet__blocker_add(&job, SUBLET_BLOCKER_CLAIM, 0, arena->zone[ZONE_AREA].frames, 0);
		return -EBUSY;
	}
	err = claim_try(&job);
	claim_finish(&job, err, start_ns);
	return err;
}

int sublet_claim(struct sublet_arena *arena, uint64_t bytes, const struct sublet_claim_options *options,
		 struct sublet_claim *claim)
{
	return claim_for(arena, bytes, options, claim, false);
}

int sublet__claim_for_guest(struct sublet_arena *arena, uint64_t bytes,
			    const struct sublet_claim_options *options, struct sublet_claim *claim)
{
	return claim_for(arena, bytes, options, claim, true);
}

int sublet_release(struct sublet_arena *arena, struct sublet_claim *claim)
{
	uint32_t pfn, frames;
	int err = claim ? call_arena(arena) : -EINVAL;

	if (err)
		return err;
	engine_lock(arena, &arena->claim_lock);
	struct sublet__claim_slot *slot = &arena->claim[claim->id % ENGINE_CLAIMS_MAX];
	if (!claim->id || slot->id != claim->id || !slot->frames) {
		engine_unlock(arena, &arena->claim_lock);
		return -EINVAL;
	}
	if (slot->users) {
		engine_unlock(arena, &arena->claim_lock);
		return -EBUSY;
	}
	pfn = slot->first_pfn;
	frames = slot->frames;
	slot->frames = 0; /* a second release of it fails from here on */
	engine_unlock(arena, &arena->claim_lock);

	hand(arena, pfn, frames, SUBLET__HANDED_BACK); /* before they are somebody else's */
	sublet__frames_put(arena, pfn, frames, ACCOUNT_CLAIMED);
	engine_lock(arena, &arena->claim_lock);
	slot->id = 0;
	engine_unlock(arena, &arena->claim_lock);
	a64_sub_relaxed(&arena->counters.claims_held, 1);
	claim->id = 0;
	return 0;
}

int sublet__claim_hold(struct sublet_arena *arena, uint64_t id, uint64_t *offset_bytes, uint64_t *bytes)
{
	uint32_t shift = frames_bytes_shift(arena);
	int err = -EINVAL;

	engine_lock(arena, &arena->claim_lock);
	struct sublet__claim_slot *slot = &arena->claim[id % ENGINE_CLAIMS_MAX];
	if (id && slot->id == id && slot->frames) {
		slot->users++;
		*offset_bytes = (uint64_t)slot->first_pfn << shift;
		*bytes = (uint64_t)slot->frames << shift;
		err = 0;
	}
	engine_unlock(arena, &arena->claim_lock);
	return err;
}

void sublet__claim_drop(struct sublet_arena *arena, uint64_t id)
{
	engine_lock(arena, &arena->claim_lock);
	arena->claim[id % ENGINE_CLAIMS_MAX].users--;
	engine_unlock(arena, &arena->claim_lock);
}
