/* SPDX-License-Identifier: MIT */
/*
 * Claiming a contiguous window, and giving it back.
 *
 *   choose and isolate a window        claim_lock: one step, so two claims never choose the same
 *   recall cached frames
 *   empty it, a pageblock at a time    several workers; no lock of the arena held
 *   wait for what is stuck             back-off, up to this window's share of the deadline
 *   zero, commit                       or undo the isolation and try the next window
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
#include "core/engine.h"

#include <errno.h>
#include <string.h>

#define WINDOWS_MAX   8u                    /* tried by one claim */
#define ROOM_TRIES    SUBLET__RUN_PAGES_MAX /* drops for one run to move: a page each at worst */
#define WAIT_FIRST_NS (20 * SUBLET_US)      /* between looks at what is stuck; doubles up to */
#define WAIT_MOST_NS  (1 * SUBLET_MS)

struct claim_job {
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
	sublet__a64 moved_frames, dropped_frames, zeroed_frames, zeroing_ns;
	sublet__a32 short_of_room;         /* some move of this window found no destination at once */
	bool claims_in_way;                /* there would be room if other claims were released */
	uint32_t threads;                  /* that empty and zero the window, the caller included */
	struct sublet__lock blockers_lock; /* protects claim->blockers and count; claim_lock nests in it */

	uint32_t stuck[WINDOWS_MAX]; /* pageblocks marked stuck by this claim */
	uint32_t stuck_count;
};

/* ---- blockers ---- */

/* Who has the frame at pfn. blockers_lock is held, and claim_lock is not. */
static void claim_describe(struct sublet_arena *arena, uint32_t pfn, struct sublet_blocker *b)
{
	engine_lock(arena, &arena->claim_lock);
	uint32_t word = a32_load_acquire(&arena->frames[pfn].word),
		 slot = a32_load_relaxed(&arena->frames[pfn].a);
	if ((word & FRAME_HEAD) && word_state(word) == FRAME_CLAIMED && slot < ENGINE_CLAIMS_MAX) {
		sublet__owner_copy(b->owner, arena->claim[slot].owner);
		b->age_ns = engine_now(arena) - arena->claim[slot].since_ns;
	}
	engine_unlock(arena, &arena->claim_lock);
}

/*
 * Who has pinned the folio at pfn, if it is listed; or who declined when the run around it was to move. The folio may be
 * gone by now: then nobody is named, or whoever is at its address.
 */
static bool user_find(struct sublet_arena *arena, uint32_t kind, uint32_t pfn, char owner[SUBLET_OWNER_BYTES],
		      uint64_t *age_ns)
{
	const struct sublet__frame *f = &arena->frames[pfn];
	uint32_t index = a32_load_relaxed(&f->b), vpn = a32_load_relaxed(&f->a),
		 run = arena->platform.run_pages_max;

	*age_ns = 0;
	if (index >= a32_load_acquire(&arena->mm_count))
		return false;
	if (kind == SUBLET_BLOCKER_PIN)
		return sublet__pin_owner(arena->mm[index], vpn, 1u << word_order(a32_load_relaxed(&f->word)),
					 owner, age_ns);
	return sublet__notifier_decliner(arena->mm[index], vpn & ~(run - 1), run, owner);
}

static void blocker_add(struct claim_job *job, uint32_t kind, uint32_t pfn, uint32_t frames, int error)
{
	struct sublet_arena *arena = job->arena;
	struct sublet_claim *claim = job->claim;
	uint32_t shift = frames_bytes_shift(arena);
	uint64_t offset = (uint64_t)pfn << shift;

	engine_lock(arena, &job->blockers_lock);
	for (uint32_t i = 0; i < claim->blocker_count; i++)
		if (claim->blockers[i].kind == kind && claim->blockers[i].offset_bytes == offset)
			goto out; /* named already, by an earlier look */
	if (claim->blocker_count < SUBLET_BLOCKERS_MAX) {
		struct sublet_blocker *b = &claim->blockers[claim->blocker_count++];
		*b = (struct sublet_blocker){ .kind = kind,
					      .error = error,
					      .offset_bytes = offset,
					      .bytes = (uint64_t)frames << shift };
		if (kind == SUBLET_BLOCKER_CLAIM)
			claim_describe(arena, pfn, b);
		else if (kind == SUBLET_BLOCKER_PIN || kind == SUBLET_BLOCKER_NOTIFIER)
			(void)user_find(arena, kind, pfn, b->owner, &b->age_ns);
	}
out:
	engine_unlock(arena, &job->blockers_lock);
}

/* What cannot move at pfn: its kind, and for a child its pid. */
static uint32_t immovable_kind(const struct claim_job *job, uint32_t pfn, uint32_t word, int *pid)
{
	const struct sublet_arena *arena = job->arena;
	uint32_t index = a32_load_relaxed(&arena->frames[pfn].b);

	*pid = 0;
	if (word_state(word) == FRAME_CLAIMED || word_state(word) == FRAME_ISOLATED)
		return SUBLET_BLOCKER_CLAIM;
	if (word_state(word) != FRAME_PARKED && (!(word & FRAME_HELD) || (word & FRAME_PROTECTED)))
		return SUBLET_BLOCKER_PROTECTED;
	if (index < a32_load_acquire(&arena->mm_count))
		*pid = (int)a32_load_relaxed(&arena->mm[index]->child_pid);
	return SUBLET_BLOCKER_CHILD;
}

static void immovable_name(struct claim_job *job, uint32_t pfn, uint32_t word)
{
	int pid;
	uint32_t kind = immovable_kind(job, pfn, word, &pid);

	blocker_add(job, kind, pfn, 1u << word_order(word), pid);
}

static void window_fail(struct claim_job *job, int err)
{
	uint32_t none = 0;
	a32_cas_acq_rel(&job->fatal, &none, (uint32_t)err); /* the first one counts */
}

static bool window_failed(const struct claim_job *job)
{
	return a32_load_acquire(&job->fatal) != 0;
}

/* ---- emptying a window ---- */

/*
 * A move found no destination. Whether there is room all the same, on its way through somebody's hands
 * (a thread that zeroes, a move that gives its source back): then it is worth another look.
 */
static bool room_is_coming(struct claim_job *job)
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
static uint32_t block_drop(struct claim_job *job, uint32_t pb)
{
	struct sublet_arena *arena = job->arena;
	struct sublet__window_range outside = { .nowait = job->range.nowait };
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
static bool room_make(struct claim_job *job)
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

static int64_t folio_move(struct claim_job *job, uint32_t pfn)
{
	int64_t done = sublet__move_folio(job->arena, pfn, &job->range);

	for (uint32_t tries = 0; done == -ENOMEM && tries < ROOM_TRIES && room_make(job); tries++)
		done = sublet__move_folio(job->arena, pfn, &job->range);
	return done;
}

/* A folio that would not move now: somebody has pinned it, or was told and declined. */
static void busy_name(struct claim_job *job, uint32_t pfn, uint32_t word)
{
	struct sublet_arena *arena = job->arena;
	bool pinned = a32_load_relaxed(&arena->frames[pfn].ref) & REF_COUNT_MASK;
	char owner[SUBLET_OWNER_BYTES];
	uint64_t age_ns;

	if (!pinned && user_find(arena, SUBLET_BLOCKER_NOTIFIER, pfn, owner, &age_ns))
		blocker_add(job, SUBLET_BLOCKER_NOTIFIER, pfn, 1u << word_order(word), 0);
	else
		blocker_add(job, SUBLET_BLOCKER_PIN, pfn, 1u << word_order(word), 0);
}

/* Deal with one folio of the window. False: something is still there, look again later. */
static bool folio_empty(struct claim_job *job, uint32_t pfn, uint32_t word, bool name_pins)
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
		busy_name(job, pfn, word);
	if (done >= 0 || done == -EAGAIN)
		return done > 0;
	if (done == -EBUSY)
		immovable_name(job, pfn, word);
	else if (done == -ENOSPC)
		blocker_add(job, SUBLET_BLOCKER_MAPPINGS, pfn, 1u << word_order(word), (int)done);
	else if (done != -ENOMEM)
		blocker_add(job, SUBLET_BLOCKER_PLATFORM, pfn, 1u << word_order(word), (int)done);
	window_fail(job, done == -ENOMEM ? -ENOMEM : -EBUSY);
	return false;
}

/* One look at each folio of [pfn, end). Returns the first place where something is still there, or end. */
static uint32_t range_empty(struct claim_job *job, uint32_t pfn, uint32_t end, bool name_pins)
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

static bool block_clear(struct claim_job *job, uint32_t first, uint32_t end)
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

static void range_zero(struct claim_job *job, uint32_t first, uint32_t end)
{
	uint64_t start_ns = engine_now(job->arena);

	a64_add_relaxed(&job->zeroed_frames, sublet__isolated_zero(job->arena, first, end));
	a64_add_relaxed(&job->zeroing_ns, engine_now(job->arena) - start_ns);
}

/* What a worker does: empty pageblocks, and zero those that are empty while they are warm. */
static void worker_empty(void *arg, uint32_t worker)
{
	struct claim_job *job = arg;
	uint32_t shift = job->arena->pageblock_order;

	(void)worker;
	for (;;) {
		uint32_t pb = a32_add_relaxed(&job->next_block, 1);
		if (pb >= a32_load_relaxed(&job->block_end) || window_failed(job))
			return;
		uint32_t first = max_u32(pb << shift, job->window.first_pfn);
		uint32_t end = min_u32((pb + 1) << shift, job->window.end_pfn);
		range_empty(job, first, end, false);
		if (!(job->flags & SUBLET_CLAIM_NOZERO) && block_clear(job, first, end))
			range_zero(job, first, end);
	}
}

static bool window_clear(struct claim_job *job)
{
	return sublet__isolated_frames(job->arena, &job->window) == job->frames;
}

/* After the first pass: look again and again at what is left, until `until_ns`. */
static int window_wait(struct claim_job *job, uint64_t until_ns, uint32_t *stuck_pfn)
{
	struct sublet_arena *arena = job->arena;
	const struct sublet__platform *p = &arena->platform;
	uint64_t wait_ns = WAIT_FIRST_NS;

	while (!window_clear(job)) {
		if (window_failed(job))
			return (int)a32_load_relaxed(&job->fatal);
		uint64_t now = engine_now(arena);
		bool last = now >= until_ns || (job->flags & SUBLET_CLAIM_NOWAIT);
		*stuck_pfn = range_empty(job, job->window.first_pfn, job->window.end_pfn, last);
		if (window_clear(job))
			break;
		if (last)
			return window_failed(job) ? (int)a32_load_relaxed(&job->fatal)
			       : a32_load_relaxed(&job->short_of_room) && !job->claim->blocker_count ? -ENOMEM
												     : -EBUSY;
		wait_ns = wait_ns < until_ns - now ? wait_ns : until_ns - now;
		p->ops->sleep_ns(p->ctx, wait_ns);
		sublet__devices_check(
			arena); /* what hangs holds memory no longer than its job may take (G11) */
		job->claim->waits++;
		job->claim->waited_ns += engine_now(arena) - now;
		wait_ns = 2 * wait_ns < WAIT_MOST_NS ? 2 * wait_ns : WAIT_MOST_NS;
	}
	return 0;
}

/* Empty the isolated window, or say what stopped it; *stuck_pfn is where. */
static int window_empty(struct claim_job *job, uint64_t until_ns, uint32_t *stuck_pfn)
{
	struct sublet_arena *arena = job->arena;
	const struct sublet__platform *p = &arena->platform;
	uint32_t shift = arena->pageblock_order;
	uint32_t first = job->window.first_pfn >> shift, end = ((job->window.end_pfn - 1) >> shift) + 1;

	*stuck_pfn = job->window.first_pfn;
	a32_store_relaxed(&job->next_block, first);
	a32_store_relaxed(&job->block_end, end);
	a32_store_relaxed(&job->fatal, 0);
	a32_store_relaxed(&job->short_of_room, 0);
	job->range = (struct sublet__window_range){ .first_pfn = job->window.first_pfn,
						    .end_pfn = job->window.end_pfn,
						    .nowait = job->flags & SUBLET_CLAIM_NOWAIT };
	sublet__emptying_begin(arena);
	sublet__cache_recall(arena, job->window.first_pfn, job->window.end_pfn);
	job->threads = max_u32(1, min_u32(p->workers, end - first));
	if (job->threads > 1)
		p->ops->parallel(p->ctx, job->threads, worker_empty, job);
	else
		worker_empty(job, 0);
	sublet__emptying_end(arena);

	int err = window_wait(job, until_ns, stuck_pfn);
	if (!err && !(job->flags & SUBLET_CLAIM_NOZERO))
		range_zero(job, job->window.first_pfn, job->window.end_pfn);
	return err;
}

/* ---- choosing ---- */

/* A folio that stands in the way of a window for good, or for now. */
static bool word_blocks(uint32_t word)
{
	enum sublet__frame_state state = word_state(word);
	return state == FRAME_CLAIMED || state == FRAME_PARKED || state == FRAME_ISOLATED ||
	       (word & (FRAME_HELD | FRAME_PROTECTED));
}

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

	if (word_blocks(word))
		return true;
	if (scan == SCAN_FREE)
		return state != FRAME_FREE && state != FRAME_CACHED;
	/* relaxed: a pin that comes or goes meanwhile is waited for, as always */
	return scan == SCAN_UNPINNED && state == FRAME_MOVABLE &&
	       (a32_load_relaxed(&arena->frames[pfn].ref) & REF_COUNT_MASK);
}

/* The first aligned window in [pfn, end) without anything that blocks or is to be avoided; ENGINE_NONE. */
static uint32_t window_scan(const struct claim_job *job, uint32_t pfn, uint32_t end, enum scan scan)
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

/* No window is free of them: name the first of what cannot move, neighbours of one kind together. */
static void immovables_name(struct claim_job *job)
{
	const struct sublet_arena *arena = job->arena;
	uint32_t end = arena->zone[ZONE_AREA].frames, first = 0, kind = SUBLET_BLOCKER_NONE, slot = 0;
	int pid = 0;

	for (uint32_t pfn = 0; pfn <= end && job->claim->blocker_count < SUBLET_BLOCKERS_MAX;) {
		uint32_t word = pfn < end ? a32_load_acquire(&arena->frames[pfn].word) : 0;
		bool blocks = (word & FRAME_HEAD) && word_blocks(word);
		int now_pid = 0;
		uint32_t now = blocks ? immovable_kind(job, pfn, word, &now_pid) : SUBLET_BLOCKER_NONE;
		uint32_t now_slot = now == SUBLET_BLOCKER_CLAIM ? a32_load_relaxed(&arena->frames[pfn].a) : 0;
		if (now != kind || now_slot != slot) {
			if (kind != SUBLET_BLOCKER_NONE)
				blocker_add(job, kind, first, pfn - first, pid);
			kind = now;
			slot = now_slot;
			pid = now_pid;
			first = pfn;
		}
		pfn += (word & FRAME_HEAD) ? 1u << word_order(word) : 1;
	}
	if (!job->claim->blocker_count) /* a window that another claim is only about to empty */
		blocker_add(job, SUBLET_BLOCKER_CLAIM, 0, job->frames, 0);
}

static uint32_t window_choose_small(struct claim_job *job)
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
static bool window_choose(struct claim_job *job)
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

static void stuck_mark(struct claim_job *job, uint32_t pfn)
{
	struct sublet_arena *arena = job->arena;
	uint32_t pb = pfn >> arena->pageblock_order;

	if (job->stuck_count == WINDOWS_MAX || pb >= arena->zone[ZONE_AREA].frames >> arena->pageblock_order)
		return;
	job->stuck[job->stuck_count++] = pb;
	a32_add_acq_rel(&arena->pageblocks[pb].stuck, 1);
	sublet__window_touch(arena, pb);
}

static void stuck_unmark(struct claim_job *job)
{
	for (uint32_t i = 0; i < job->stuck_count; i++) {
		a32_sub_acq_rel(&job->arena->pageblocks[job->stuck[i]].stuck, 1);
		sublet__window_touch(job->arena, job->stuck[i]);
	}
	job->stuck_count = 0;
}

/* ---- what there is, for -ENOMEM ---- */

static void shortfall_fill(struct claim_job *job)
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
static bool room_is_enough(struct claim_job *job)
{
	shortfall_fill(job);
	bool enough = !job->claim->shortfall_bytes;
	job->claim->shortfall_bytes = enough ? 0 : job->claim->shortfall_bytes;
	return enough;
}

static int noroom(struct claim_job *job)
{
	shortfall_fill(job);
	if (job->claims_in_way) {
		immovables_name(job);
		job->claim->shortfall_bytes = 0;
		return -EBUSY;
	}
	if (!job->claim->shortfall_bytes) /* it was there when the claim began, and went meanwhile */
		job->claim->shortfall_bytes = 1ull << frames_bytes_shift(job->arena);
	blocker_add(job, SUBLET_BLOCKER_NOROOM, 0,
		    (uint32_t)(job->claim->shortfall_bytes >> frames_bytes_shift(job->arena)), 0);
	return -ENOMEM;
}

/* ---- the claim ---- */

static int windows_try(struct claim_job *job)
{
	struct sublet_arena *arena = job->arena;
	int err = -EBUSY;

	for (uint32_t i = 0; i < WINDOWS_MAX; i++) {
		uint32_t stuck_pfn;
		uint64_t now = engine_now(arena);
		if (i && now >= job->deadline_ns)
			break;
		if (!window_choose(job)) {
			immovables_name(job);
			break;
		}
		job->claim->windows_tried++;
		a64_add_relaxed(&arena->counters.windows_tried, 1);
		/* Half of the time that is left for each window: the last look is at the deadline itself. */
		uint64_t left = job->deadline_ns > now ? job->deadline_ns - now : 0;
		err = window_empty(job, i + 1 < WINDOWS_MAX ? now + left / 2 : job->deadline_ns, &stuck_pfn);
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

/* Whether time may help: somebody is in the way who will go. */
static bool worth_waiting(const struct claim_job *job)
{
	for (uint32_t i = 0; i < job->claim->blocker_count; i++) {
		uint32_t kind = job->claim->blockers[i].kind;
		if (kind == SUBLET_BLOCKER_PIN || kind == SUBLET_BLOCKER_CLAIM ||
		    kind == SUBLET_BLOCKER_CHILD || kind == SUBLET_BLOCKER_NOTIFIER)
			return true;
	}
	return false;
}

/*
 * Windows, and while none can be had because of other claims or of children of a fork: wait and look again, up to
 * the deadline. Pins are waited for with the window isolated (window_wait); nobody can tell where a claim will end.
 */
static int claim_try(struct claim_job *job)
{
	struct sublet_arena *arena = job->arena;
	const struct sublet__platform *p = &arena->platform;

	for (uint64_t wait_ns = WAIT_FIRST_NS;;) {
		for (uint32_t i = 0; i < a32_load_acquire(&arena->mm_count); i++)
			sublet__mm_relieve(arena->mm[i]);
		int err = room_is_enough(job) ? windows_try(job) : noroom(job);
		uint64_t now = engine_now(arena);
		stuck_unmark(job);
		if (err != -EBUSY || (job->flags & SUBLET_CLAIM_NOWAIT) || now >= job->deadline_ns ||
		    !worth_waiting(job))
			return err;
		wait_ns = wait_ns < job->deadline_ns - now ? wait_ns : job->deadline_ns - now;
		p->ops->sleep_ns(p->ctx, wait_ns);
		job->claim->waits++;
		job->claim->waited_ns += engine_now(arena) - now;
		job->claim->blocker_count = 0; /* what is in the way is seen anew */
		wait_ns = 2 * wait_ns < WAIT_MOST_NS ? 2 * wait_ns : WAIT_MOST_NS;
	}
}

static struct sublet__claim_slot *slot_take(struct sublet_arena *arena, const char *owner)
{
	struct sublet__claim_slot *slot = NULL;

	engine_lock(arena, &arena->claim_lock);
	for (uint32_t i = 0; i < ENGINE_CLAIMS_MAX; i++) {
		if (arena->claim[i].id)
			continue;
		slot = &arena->claim[i];
		slot->id = ++arena->claim_generation * ENGINE_CLAIMS_MAX + i;
		slot->frames = 0; /* not to be released before it is complete */
		slot->since_ns = engine_now(arena);
		sublet__owner_copy(slot->owner, owner ? owner : "claim");
		break;
	}
	engine_unlock(arena, &arena->claim_lock);
	return slot;
}

static void claim_finish(struct claim_job *job, int err, uint64_t start_ns)
{
	struct sublet_arena *arena = job->arena;
	struct sublet_claim *claim = job->claim;
	struct sublet__counters *n = &arena->counters;
	uint32_t shift = frames_bytes_shift(arena);

	claim->moved_bytes = a64_load_relaxed(&job->moved_frames) << shift;
	claim->dropped_bytes = a64_load_relaxed(&job->dropped_frames) << shift;
	claim->zeroed_bytes = a64_load_relaxed(&job->zeroed_frames) << shift;
	claim->zeroing_ns = a64_load_relaxed(&job->zeroing_ns) / max_u32(1, job->threads);
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
	a64_add_relaxed(&n->claims_succeeded, 1);
	a64_add_relaxed(&n->claims_held, 1);
	sublet__histogram_add(&arena->claim_ns, claim->latency_ns);
}

/* Read the options, whatever version they are of. */
static int options_read(const struct sublet_claim_options *from, struct sublet_claim_options *to)
{
	*to = (struct sublet_claim_options){ .size_bytes = sizeof *to };
	if (from) {
		if (from->size_bytes < offsetof(struct sublet_claim_options, owner))
			return -EINVAL;
		memcpy(to, from, from->size_bytes < sizeof *to ? (size_t)from->size_bytes : sizeof *to);
	}
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

int sublet_claim(struct sublet_arena *arena, uint64_t bytes, const struct sublet_claim_options *options,
		 struct sublet_claim *claim)
{
	uint32_t shift = frames_bytes_shift(arena);
	uint64_t start_ns = engine_now(arena), area = (uint64_t)arena->zone[ZONE_AREA].frames << shift;
	struct sublet_claim_options o;

	*claim = (struct sublet_claim){ 0 };
	if (!bytes || options_read(options, &o))
		return -EINVAL;
	if (bytes > area) {
		claim->claimable_bytes = area;
		return -E2BIG;
	}
	if (stack_is_lent(arena))
		return -EDEADLK;
	struct claim_job job = {
		.arena = arena,
		.claim = claim,
		.frames = (uint32_t)((bytes + (1ull << shift) - 1) >> shift),
		.align_frames = max_u32(1, (uint32_t)(o.align_bytes >> shift)),
		.flags = o.flags,
		.deadline_ns = o.deadline_ns < UINT64_MAX - start_ns ? start_ns + o.deadline_ns : UINT64_MAX,
	};
	job.slot = slot_take(arena, o.owner);
	if (!job.slot) {
		blocker_add(&job, SUBLET_BLOCKER_CLAIM, 0, arena->zone[ZONE_AREA].frames, 0);
		return -EBUSY;
	}
	int err = claim_try(&job);
	claim_finish(&job, err, start_ns);
	return err;
}

int sublet_release(struct sublet_arena *arena, struct sublet_claim *claim)
{
	uint32_t pfn, frames;

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
