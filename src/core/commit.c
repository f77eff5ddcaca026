/* SPDX-License-Identifier: MIT */
/*
 * Memory that comes and goes under addresses that stay: decommit and commit (for allocators), lock
 * and unlock (for caches whose contents may be dropped).
 *
 * Decommit works on pages, but frames come and go by units of 64 KiB, so that a heap full of small
 * holes does not shatter into kernel mappings. A decommitted page is marked PTE_HOLE; when all pages
 * of a unit are holes, the unit's memory goes (PTE_GONE). Commit turns holes whose memory stayed back
 * into pages by zeroing them, and gives gone units fresh memory.
 *
 * Reserved addresses (sublet__mm_reserve) are for allocators, which take addresses by doubling steps and use
 * them from front to back, in pieces of 4 KiB up. All of a step at once would be memory that nobody may ever touch; its
 * pieces alone would be 64 KiB of kernel mapping each, and never a huge page. So a commit looks at what lies
 * behind it: where that is reserved, and enough for another commit like this, the rest of the 2 MiB block gets memory
 * too, as holes (PTE_HOLE, PTE_FRESH). At the end of a step, where the next piece may not fit, nothing is
 * given ahead, nor where the area is nearly full. What was decommitted once is never given ahead: its owner wanted
 * to be rid of it.
 *
 * Discardable memory carries FRAME_DROPPABLE. Unlocked, its folios are DISCARDABLE and their
 * reference count is frozen, so nothing can pin them and a claim may take them at once. INTACT is a
 * promise about every byte (G1), so a page given anew is PTE_FRESH until a lock has told of it.
 *
 * Both work on units of 64 KiB, whatever size the folios have: a folio that reaches beyond the range is cut at its edge.
 * Unlock takes the units that lie in the range as a whole, lock those that it touches, so that neither ever gives up a
 * byte that somebody counts on. To the kernel unlocked memory is nothing, and its edges are counted as mappings.
 */
#include "core/call.h"

#include <errno.h>

#define AHEAD_ROOM    32u /* of the area, so great a part must be free for memory that nobody asked for yet */
#define HIDE_MAPPINGS 2u  /* kernel mappings that a range gains when only its middle is unlocked */

/* ---- decommit ---- */

static bool entry_is_gone(uint32_t pte)
{
	return !(pte & PTE_PRESENT) && (pte_kind(pte) == PTE_GONE || pte_kind(pte) == PTE_RESERVED);
}

static bool page_is_hole(uint32_t pte)
{
	return (pte & PTE_HOLE) || entry_is_gone(pte);
}

/* Whether all mapped pages of the unit are holes, and some of them still have memory. */
static bool unit_is_empty(const struct sublet_mm *mm, uint32_t vpn)
{
	bool memory = false;

	for (uint32_t at = vpn; at < vpn + unit_pages(mm->arena); at++) {
		uint32_t pte = a32_load_relaxed(&mm->pte[at]);
		if (pte && !page_is_hole(pte))
			return false;
		memory |= (pte & PTE_PRESENT) || pte_is_plain(pte);
	}
	return memory;
}

/* Pages of the unit that are mapped at all: they are its first ones. */
static uint32_t unit_mapped_pages(const struct sublet_mm *mm, uint32_t vpn)
{
	uint32_t pages = 0;
	while (pages < unit_pages(mm->arena) && a32_load_relaxed(&mm->pte[vpn + pages]))
		pages++;
	return pages;
}

/* Only for whoever checks the program. */
static void touchable(const struct sublet_mm *mm, uint32_t vpn, uint32_t pages, bool may)
{
	if (mm->config.ops->touchable)
		mm->config.ops->touchable(mm->config.ctx, vpn, pages, may);
}

/* Free the memory of [vpn, vpn + pages), all of it holes; a unit with a pinned folio keeps it. */
static int holes_free(struct sublet_mm *mm, uint32_t vpn, uint32_t pages)
{
	uint32_t unit = unit_pages(mm->arena);

	if (!sublet__mm_freeze(mm, vpn, pages)) {
		for (uint32_t at = vpn; pages > unit && at < vpn + pages; at += unit)
			(void)holes_free(mm, at, min_u32(unit, vpn + pages - at));
		return 0;
	}
	struct sublet__invalidation told;
	if (sublet__invalidate_begin(mm, &told, vpn, pages, SUBLET_NOTIFIER_DISCARD, true)) {
		sublet__mm_unfreeze(mm, vpn, pages); /* in use by what cannot be stopped: like a pin */
		return 0;
	}
	int err = mm->config.ops->unmap(mm->config.ctx, vpn, pages);
	if (err)
		sublet__mm_unfreeze(mm, vpn, pages);
	else
		sublet__mm_strip(mm, vpn, pages, PTE_GONE);
	sublet__invalidate_end(mm, &told);
	return err;
}

/* Nothing in the block of vpn is in use: what was given ahead has nobody left to wait for. */
static bool block_is_idle(const struct sublet_mm *mm, uint32_t vpn)
{
	uint32_t first = vpn & ~(ENGINE_BLOCK_PAGES - 1),
		 end = min_u32(first + ENGINE_BLOCK_PAGES, mm->config.pages);

	for (uint32_t at = first; at < end; at++) {
		uint32_t pte = a32_load_relaxed(&mm->pte[at]);
		if (pte && !page_is_hole(pte))
			return false;
	}
	return true;
}

/* One block's part of a decommit; block lock held. */
static int block_decommit(struct sublet_mm *mm, uint32_t vpn, uint32_t pages)
{
	uint32_t unit = unit_pages(mm->arena), run = 0, run_pages = 0;
	int err = 0;

	for (uint32_t at = vpn; at < vpn + pages; at++) {
		uint32_t pte = a32_load_relaxed(&mm->pte[at]);
		/* a hole that was given ahead keeps what it knows of its bytes */
		if (!(pte & PTE_HOLE) && ((pte & PTE_PRESENT) || pte_is_plain(pte)))
			a32_store_release(&mm->pte[at], pte | PTE_HOLE);
	}
	touchable(mm, vpn, pages, false);
	if (block_is_idle(mm, vpn)) {
		vpn &= ~(ENGINE_BLOCK_PAGES - 1);
		pages = min_u32(ENGINE_BLOCK_PAGES, mm->config.pages - vpn);
	}
	for (uint32_t at = vpn & ~(unit - 1); at < vpn + pages && !err; at += unit) {
		bool empty = unit_is_empty(mm, at);
		if (run_pages &&
		    (!empty || run + run_pages != at)) { /* behind the end of a mapping is nothing to free */
			err = holes_free(mm, run, run_pages);
			run_pages = 0;
		}
		if (empty) {
			run = run_pages ? run : at;
			run_pages = at + unit_mapped_pages(mm, at) - run;
		}
	}
	if (run_pages && !err)
		err = holes_free(mm, run, run_pages);
	return err;
}

/* range_is for a part of one block; block lock held, or a move could give the frame to somebody else. */
static bool block_is(const struct sublet_mm *mm, uint32_t vpn, uint32_t pages, uint32_t word_flags)
{
	for (uint32_t at = vpn; at < vpn + pages;) {
		uint32_t pte = a32_load_relaxed(&mm->pte[at]), step = 1;
		if (!pte)
			return false;
		if (pte & PTE_PRESENT) {
			const struct sublet__frame *f =
				&mm->arena->frames[sublet__frame_head(mm->arena, pte_pfn(pte))];
			uint32_t word = a32_load_relaxed(&f->word);
			if ((word & FRAME_DROPPABLE) != word_flags)
				return false;
			step = a32_load_relaxed(&f->a) + (1u << word_order(word)) - at;
		} else if ((pte_kind(pte) == PTE_DROPPED) != (word_flags != 0)) {
			return false;
		}
		at += step;
	}
	return true;
}

/* Whether all of the range is mapped, and movable (word_flags 0) or discardable (FRAME_DROPPABLE). */
static bool range_is(struct sublet_mm *mm, uint32_t vpn, uint32_t pages, uint32_t word_flags)
{
	bool is = true;

	for_each_block(at, count, vpn, vpn + pages) {
		engine_lock(mm->arena, block_lock_of(mm, at));
		is = is && block_is(mm, at, count, word_flags);
		engine_unlock(mm->arena, block_lock_of(mm, at));
	}
	return is;
}

static int movable_range(struct sublet_mm *mm, const void *addr, uint64_t bytes, uint32_t *vpn,
			 uint32_t *pages)
{
	uint64_t frame_bytes = 1ull << frames_bytes_shift(mm->arena);
	int err = sublet__mm_range(mm, addr, bytes, vpn, pages);

	if (err || (uintptr_t)addr % frame_bytes || bytes % frame_bytes || !range_is(mm, *vpn, *pages, 0))
		return -EINVAL;
	return 0;
}

static void range_decommit(struct sublet_mm *mm, uint32_t vpn, uint32_t end)
{
	for_each_block(at, count, vpn, end) {
		engine_lock(mm->arena, block_lock_of(mm, at));
		/* Without a kernel mapping to spare the memory stays behind its holes: nothing is lost. */
		(void)block_decommit(mm, at, count);
		engine_unlock(mm->arena, block_lock_of(mm, at));
	}
}

int sublet_decommit(struct sublet_mm *mm, void *addr, uint64_t bytes)
{
	uint32_t vpn, pages;
	int err = call_mm(mm);

	if (!err)
		err = movable_range(mm, addr, bytes, &vpn, &pages);
	if (err)
		return err;
	range_decommit(mm, vpn, vpn + pages);
	return 0;
}

/* ---- commit ---- */

/* Show the holes of [vpn, vpn + pages) that have memory, zeroed. */
static void holes_fill(struct sublet_mm *mm, uint32_t vpn, uint32_t pages)
{
	for (uint32_t at = vpn; at < vpn + pages; at++) {
		uint32_t pte = a32_load_relaxed(&mm->pte[at]);
		if (!(pte & PTE_HOLE))
			continue;
		touchable(mm, at, 1, true);
		if (!(pte & PTE_FRESH))
			mm->config.ops->clear(mm->config.ctx, at, 1);
		a32_store_release(&mm->pte[at], pte & ~(PTE_HOLE | PTE_FRESH));
	}
}

/*
 * Fresh memory for the gone pages of the units that [vpn, vpn + pages) touches, and for those up to `last`; pages
 * outside the range stay holes, also where only some of the memory could be had.
 */
static int units_give(struct sublet_mm *mm, uint32_t vpn, uint32_t pages, uint32_t last, uint32_t flags)
{
	uint32_t unit = unit_pages(mm->arena), end = vpn + pages;
	int err = 0;

	last = (last + unit - 1) & ~(unit - 1);
	for (uint32_t at = vpn & ~(unit - 1), run; at < last && !err; at += run ? run : 1) {
		for (run = 0; at + run < last && entry_is_gone(a32_load_relaxed(&mm->pte[at + run]));)
			run++;
		if (run)
			err = sublet__mm_give(mm, at, run, flags);
		for (uint32_t p = at; p < at + run; p++) {
			uint32_t pte = a32_load_relaxed(&mm->pte[p]);
			if ((p < vpn || p >= end) && !entry_is_gone(pte)) {
				a32_store_release(&mm->pte[p], pte | PTE_HOLE | PTE_FRESH);
				touchable(mm, p, 1, false);
			}
		}
	}
	return err;
}

/*
 * The end of what a commit of [vpn, end) makes ready: `end`, or further in its 2 MiB. Behind `end` as many pages must be
 * reserved as are committed. What lies in other blocks is read without their locks: it is a guess.
 */
static uint32_t ahead_end(const struct sublet_mm *mm, uint32_t vpn, uint32_t end)
{
	const struct sublet_arena *arena = mm->arena;
	uint32_t area = arena->zone[ZONE_AREA].frames, at = end;
	uint32_t block = 1u << arena->pageblock_order, block_end = (end + block - 1) & ~(block - 1);
	uint32_t enough = end + (end - vpn),
		 stop = min_u32(enough > block_end ? enough : block_end, mm->config.pages);

	if (a64_load_relaxed(&arena->lent_frames) > area - area / AHEAD_ROOM)
		return end;
	while (at < stop && a32_load_relaxed(&mm->pte[at]) == PTE_RESERVED)
		at++;
	return at < enough ? end : min_u32(at, block_end);
}

/* One block's part [at, at + count) of a commit, and what is made ready behind it; block lock held. */
static int block_commit(struct sublet_mm *mm, uint32_t at, uint32_t count, uint32_t last, uint32_t flags)
{
	holes_fill(mm, at, count);
	/* Ahead goes what the arena has; should that not do, the rest of what was asked for comes from elsewhere. */
	if (last > at + count)
		(void)units_give(mm, at, count, last, flags & ~(uint32_t)SUBLET_PLAIN_OK);
	return units_give(mm, at, count, at + count, flags);
}

/* Under the lock: what a neighbour's commit gives ahead here is no hole yet for an instant (units_give). */
static bool range_is_holes(struct sublet_mm *mm, uint32_t vpn, uint32_t pages)
{
	bool is = true;

	for_each_block(at, count, vpn, vpn + pages) {
		engine_lock(mm->arena, block_lock_of(mm, at));
		for (uint32_t page = at; page < at + count; page++)
			is = is && page_is_hole(a32_load_relaxed(&mm->pte[page]));
		engine_unlock(mm->arena, block_lock_of(mm, at));
	}
	return is;
}

int sublet_commit(struct sublet_mm *mm, void *addr, uint64_t bytes, uint32_t flags)
{
	uint32_t vpn, pages;
	int err = call_mm(mm);

	if (!err)
		err = movable_range(mm, addr, bytes, &vpn, &pages);
	if (err)
		return err;
	/* All holes, or a failure half way could not tell what to undo. */
	if ((flags & ~(uint32_t)SUBLET_PLAIN_OK) || !range_is_holes(mm, vpn, pages))
		return -EINVAL;
	uint32_t end = vpn + pages, ahead = ahead_end(mm, vpn, end);
	for_each_block(at, count, vpn, end) {
		engine_lock(mm->arena, block_lock_of(mm, at));
		err = block_commit(mm, at, count, at + count == end ? ahead : at + count,
				   flags | SUBLET_MOVABLE);
		if (err) /* what this block already got becomes holes again; so do the blocks before */
			(void)block_decommit(mm, at, count);
		engine_unlock(mm->arena, block_lock_of(mm, at));
		if (err) {
			range_decommit(mm, vpn, at);
			return err;
		}
	}
	return 0;
}

/* ---- discardable memory ---- */

/* Freeze a folio and call it discardable. A pinned one stays locked; so does one that a child shares. */
static bool folio_unlock(struct sublet_arena *arena, uint32_t pfn, uint32_t word)
{
	struct sublet__frame *f = &arena->frames[pfn];

	if (word_state(word) != FRAME_MOVABLE || (word & FRAME_HELD) || !ref_freeze(f))
		return false;
	uint32_t next = (word & ~FRAME_STATE_MASK) | FRAME_DISCARDABLE;
	a32_store_release(&f->word, next);
	sublet__account(arena, pfn, 1u << word_order(word), mapped_account(word), mapped_account(next));
	return true;
}

static void folio_lock(struct sublet_arena *arena, uint32_t pfn, uint32_t flags)
{
	struct sublet__frame *f = &arena->frames[pfn];
	uint32_t word = a32_load_relaxed(&f->word);
	uint32_t next = (word & ~FRAME_STATE_MASK) | FRAME_MOVABLE | flags;

	a32_store_release(&f->word, next);
	sublet__account(arena, pfn, 1u << word_order(word), mapped_account(word), mapped_account(next));
	a32_store_release(&f->ref, 0); /* pairs with ref_take */
}

/* The folio under page `at`: its head, its word, and the page it begins at; false: no memory there. */
static bool folio_at(const struct sublet_mm *mm, uint32_t at, uint32_t *head, uint32_t *word, uint32_t *first)
{
	uint32_t pte = a32_load_relaxed(&mm->pte[at]);

	if (!(pte & PTE_PRESENT))
		return false;
	*head = sublet__frame_head(mm->arena, pte_pfn(pte));
	*word = a32_load_relaxed(&mm->arena->frames[*head].word);
	*first = a32_load_relaxed(&mm->arena->frames[*head].a);
	return true;
}

/*
 * Unlocked folios [vpn, end) become inaccessible; false: the kernel refuses, or it would take more of its mappings than may
 * be used, and they are locked again.
 */
static bool hide(struct sublet_mm *mm, uint32_t vpn, uint32_t end)
{
	if (end == vpn)
		return true;
	bool fits = a32_load_relaxed(&mm->mapping_count) + HIDE_MAPPINGS <= mm->config.mapping_limit;
	if (fits && !mm->config.ops->unmap(mm->config.ctx, vpn, end - vpn))
		return true;
	for (uint32_t at = vpn, head, word, first; at < end && folio_at(mm, at, &head, &word, &first);) {
		folio_lock(mm->arena, head, 0);
		at += 1u << word_order(word);
	}
	return false;
}

/* Unlock the folio at `at`, cut to what of it lies in the range. *next: the first page behind it. */
static bool page_unlock(struct sublet_mm *mm, uint32_t at, uint32_t vpn, uint32_t pages, uint32_t *next)
{
	uint32_t head, word, first;
	bool is_whole = true;

	if (!folio_at(mm, at, &head, &word, &first)) {
		*next = at + 1;
		return false;
	}
	*next = first + (1u << word_order(word));
	if (word_state(word) != FRAME_MOVABLE || (word & FRAME_HELD))
		return false;
	if (first < vpn || *next > vpn + pages) {
		is_whole = sublet__mm_cut(mm, first, *next, vpn, pages);
		(void)folio_at(mm, at, &head, &word, &first);
		*next = first + (1u << word_order(word));
	}
	return is_whole && folio_unlock(mm->arena, head, word);
}

/* Whether something of a range that was to be unlocked is still locked. */
static bool page_is_kept(const struct sublet_mm *mm, uint32_t at)
{
	uint32_t head, word, first;

	return folio_at(mm, at, &head, &word, &first) && word_state(word) == FRAME_MOVABLE;
}

/* Unlock a range of one block, whole units; block lock held. False: something of it stays locked. */
static bool block_unlock(struct sublet_mm *mm, uint32_t vpn, uint32_t pages)
{
	uint32_t run = vpn, end = vpn + pages;
	bool all = true;

	a32_store_relaxed(&mm->has_unlocked, 1);
	uint32_t before = sublet__mm_mappings_of(mm, vpn, pages);
	for (uint32_t at = vpn, next; at < end; at = next) {
		if (page_unlock(mm, at, vpn, pages, &next))
			continue;
		all = !page_is_kept(mm, at) && all;
		all = hide(mm, run, min_u32(at, end)) && all;
		run = next;
	}
	if (run < end)
		all = hide(mm, run, end) && all;
	sublet__mm_mappings_changed(mm, vpn, pages, before);
	return all;
}

/* Make some of the unlocked folios [vpn, end), which lie end to end, accessible again and lock them. */
static int show_some(struct sublet_mm *mm, uint32_t vpn, uint32_t end, uint32_t *done)
{
	struct sublet__segment segs[ENGINE_GIVE_SEGMENTS];
	uint32_t count = 0, at = vpn, head, word, first;
	/* seq_cst, with fork_begin, as in sublet__mm_populate */
	bool fork = a32_load_seq_cst(&mm->fork_pending);
	uint32_t flags = fork ? SUBLET__MAP_PRIVATE : SUBLET__MAP_SHARED;

	for (; at < end && folio_at(mm, at, &head, &word, &first); at += 1u << word_order(word)) {
		struct sublet__segment *last = count ? &segs[count - 1] : NULL;
		if (last && last->dst_pfn + last->pages == head)
			last->pages += 1u << word_order(word);
		else if (count < ENGINE_GIVE_SEGMENTS)
			segs[count++] =
				(struct sublet__segment){ at, 1u << word_order(word), ENGINE_NONE, head };
		else
			break;
	}
	*done = at;
	if (sublet__mm_flagged(mm, vpn, at - vpn, PTE_LOCKED))
		flags |= SUBLET__MAP_LOCKED;
	/* Unlocking told nobody, for the frames stay. Now they become copy-on-write: no device may know them any more. */
	struct sublet__invalidation told;
	bool tell = fork && count;
	if (tell)
		(void)sublet__invalidate_begin(mm, &told, vpn, at - vpn, SUBLET_NOTIFIER_MOVE, true);
	int err = count ? mm->config.ops->map(mm->config.ctx, segs, count, flags) : 0;
	for (at = vpn; !err && at < *done && folio_at(mm, at, &head, &word, &first);
	     at += 1u << word_order(word))
		folio_lock(mm->arena, head, fork ? FRAME_HELD : 0);
	if (tell)
		sublet__invalidate_end(mm, &told);
	return err;
}

static int show(struct sublet_mm *mm, uint32_t vpn, uint32_t end)
{
	int err = 0;

	for (uint32_t at = vpn, next; at < end && !err; at = next)
		err = show_some(mm, at, end, &next);
	return err;
}

/* Lock a range of one block, whole units; block lock held. What lies beyond it stays unlocked. */
static int block_lock(struct sublet_mm *mm, uint32_t vpn, uint32_t pages)
{
	uint32_t run = 0, run_end = 0, head, word, first, before = sublet__mm_mappings_of(mm, vpn, pages);
	int err = 0;

	for (uint32_t at = vpn, next; at < vpn + pages && !err; at = next) {
		bool memory = folio_at(mm, at, &head, &word, &first);
		bool unlocked = memory && word_state(word) == FRAME_DISCARDABLE;
		if (unlocked) {
			/* it is frozen: it can always be cut */
			(void)sublet__mm_cut(mm, first, first + (1u << word_order(word)), vpn, pages);
			(void)folio_at(mm, at, &head, &word, &first);
		}
		next = memory ? first + (1u << word_order(word)) : at + 1;
		if (unlocked) {
			run = run_end > run ? run : first;
			run_end = next;
		} else if (run_end > run) {
			err = show(mm, run, run_end);
			run = run_end = 0;
		}
	}
	if (run_end > run && !err)
		err = show(mm, run, run_end);
	sublet__mm_mappings_changed(mm, vpn, pages, before);
	return err;
}

/*
 * Fresh memory for the dropped pages of a range of one block. They are marked PTE_FRESH, also where only
 * some of it could be had: whichever sublet_lock succeeds on them first has to say that they were dropped.
 */
static int dropped_give(struct sublet_mm *mm, uint32_t vpn, uint32_t pages)
{
	int err = 0;

	for (uint32_t at = vpn, run; at < vpn + pages && !err; at += run ? run : 1) {
		for (run = 0; at + run < vpn + pages && a32_load_relaxed(&mm->pte[at + run]) == PTE_DROPPED;)
			run++;
		if (run)
			err = sublet__mm_give(mm, at, run, SUBLET_DISCARDABLE);
		for (uint32_t p = at; p < at + run; p++) {
			uint32_t pte = a32_load_relaxed(&mm->pte[p]);
			if (pte & PTE_PRESENT)
				a32_store_release(&mm->pte[p], pte | PTE_FRESH);
		}
	}
	return err;
}

/* All of the range is locked and has memory: whether some of it was dropped, which is told only once. */
static int range_fresh(struct sublet_mm *mm, uint32_t vpn, uint32_t pages)
{
	int result = SUBLET_INTACT;

	for_each_block(at, count, vpn, vpn + pages) {
		engine_lock(mm->arena, block_lock_of(mm, at));
		for (uint32_t p = at; p < at + count; p++) {
			uint32_t pte = a32_load_relaxed(&mm->pte[p]);
			if (!(pte & PTE_FRESH))
				continue;
			a32_store_release(&mm->pte[p], pte & ~PTE_FRESH);
			result = SUBLET_DISCARDED;
		}
		engine_unlock(mm->arena, block_lock_of(mm, at));
	}
	return result;
}

static int droppable_range(struct sublet_mm *mm, const void *addr, uint64_t bytes, uint32_t *vpn,
			   uint32_t *pages)
{
	int err = sublet__mm_range(mm, addr, bytes, vpn, pages);
	return !err && range_is(mm, *vpn, *pages, FRAME_DROPPABLE) ? 0 : -EINVAL;
}

/*
 * The units that lie in [addr, addr + bytes) as a whole; the last one of a mapping may be short, and of its last page a part
 * will do, for sublet_map rounds up. False: there is none. The range is mapped.
 */
static bool units_inside(struct sublet_mm *mm, const void *addr, uint64_t bytes, uint32_t *vpn,
			 uint32_t *pages)
{
	uint32_t shift = frames_bytes_shift(mm->arena), unit = unit_pages(mm->arena);
	uint64_t unit_bytes = (uint64_t)unit << shift, from = (uint64_t)(uintptr_t)addr - mm->config.base;
	uint64_t first = (from + unit_bytes - 1) & ~(unit_bytes - 1),
		 end = (from + bytes) & ~(unit_bytes - 1);
	uint32_t end_page = (uint32_t)((from + bytes + (1ull << shift) - 1) >> shift);

	/* What is mapped of a unit are its first pages (unit_mapped_pages). */
	if (end_page % unit ? !a32_load_relaxed(&mm->pte[end_page])
			    : end < (uint64_t)end_page << shift && sublet__mm_ends_at(mm, end_page))
		end = (uint64_t)end_page << shift;
	*vpn = (uint32_t)(first >> shift);
	*pages = (uint32_t)((end - first) >> shift);
	return first < end;
}

static bool range_unlock(struct sublet_mm *mm, uint32_t vpn, uint32_t pages)
{
	bool all = true;

	for_each_block(at, count, vpn, vpn + pages) {
		engine_lock(mm->arena, block_lock_of(mm, at));
		all = block_unlock(mm, at, count) && all;
		engine_unlock(mm->arena, block_lock_of(mm, at));
	}
	return all;
}

int sublet_unlock(struct sublet_mm *mm, void *addr, uint64_t bytes)
{
	uint32_t vpn, pages;
	int err = call_mm(mm);

	if (!err)
		err = droppable_range(mm, addr, bytes, &vpn, &pages);
	if (err)
		return err;
	if (!units_inside(mm, addr, bytes, &vpn, &pages))
		return -EINVAL;
	return range_unlock(mm, vpn, pages) ? SUBLET_UNLOCKED : SUBLET_KEPT;
}

int sublet_lock(struct sublet_mm *mm, void *addr, uint64_t bytes)
{
	uint32_t vpn, pages, undo_vpn, undo_pages;
	int err = call_mm(mm);

	if (!err)
		err = droppable_range(mm, addr, bytes, &vpn, &pages);
	if (err)
		return err;
	uint32_t unit = unit_pages(mm->arena);
	uint32_t first = vpn & ~(unit - 1),
		 end = min_u32((vpn + pages + unit - 1) & ~(unit - 1), mm->config.pages);
	for_each_block(at, count, first, end) {
		engine_lock(mm->arena, block_lock_of(mm, at));
		err = block_lock(mm, at, count);
		err = err ? err : dropped_give(mm, at, count);
		engine_unlock(mm->arena, block_lock_of(mm, at));
		if (err) {
			/* Of a unit that is only touched another part may be somebody's, who locked it before. */
			if (units_inside(mm, addr, bytes, &undo_vpn, &undo_pages))
				(void)range_unlock(mm, undo_vpn, undo_pages);
			return err;
		}
	}
	return range_fresh(mm, vpn, pages);
}
