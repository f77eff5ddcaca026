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
 * Discardable memory carries FRAME_DROPPABLE. Unlocked, its folios are DISCARDABLE and their
 * reference count is frozen, so nothing can pin them and a claim may take them at once. INTACT is a
 * promise about every byte (G1), so a page given anew is PTE_FRESH until a lock has told of it.
 */
#include "core/engine.h"

#include <errno.h>

/* ---- decommit ---- */

static bool page_is_hole(uint32_t pte)
{
	return (pte & PTE_HOLE) || (!(pte & PTE_PRESENT) && pte_kind(pte) == PTE_GONE);
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

/* Free the memory of [vpn, vpn + pages), all of it holes; a pinned folio keeps it until later. */
static int holes_free(struct sublet_mm *mm, uint32_t vpn, uint32_t pages)
{
	if (!sublet__mm_freeze(mm, vpn, pages))
		return 0;
	int err = mm->config.ops->unmap(mm->config.ctx, vpn, pages);
	if (err)
		sublet__mm_unfreeze(mm, vpn, pages);
	else
		sublet__mm_strip(mm, vpn, pages, PTE_GONE);
	return err;
}

/* One block's part of a decommit; block lock held. */
static int block_decommit(struct sublet_mm *mm, uint32_t vpn, uint32_t pages)
{
	uint32_t unit = unit_pages(mm->arena), run = 0, run_pages = 0;
	int err = 0;

	for (uint32_t at = vpn; at < vpn + pages; at++) {
		uint32_t pte = a32_load_relaxed(&mm->pte[at]);
		if ((pte & PTE_PRESENT) || pte_is_plain(pte))
			a32_store_release(&mm->pte[at], pte | PTE_HOLE);
	}
	for (uint32_t at = vpn & ~(unit - 1); at < vpn + pages && !err; at += unit) {
		if (unit_is_empty(mm, at)) {
			run = run_pages ? run : at;
			run_pages = at + unit_mapped_pages(mm, at) - run;
		} else if (run_pages) {
			err = holes_free(mm, run, run_pages);
			run_pages = 0;
		}
	}
	if (run_pages && !err)
		err = holes_free(mm, run, run_pages);
	return err;
}

static bool range_is(const struct sublet_mm *mm, uint32_t vpn, uint32_t pages, uint32_t word_flags)
{
	for (uint32_t at = vpn; at < vpn + pages; at++) {
		uint32_t pte = a32_load_acquire(&mm->pte[at]);
		if (!pte)
			return false;
		if (pte & PTE_PRESENT) {
			uint32_t head = sublet__frame_head(mm->arena, pte_pfn(pte));
			if (head != ENGINE_NONE &&
			    (a32_load_relaxed(&mm->arena->frames[head].word) & FRAME_DROPPABLE) != word_flags)
				return false;
		} else if ((pte_kind(pte) == PTE_DROPPED) != (word_flags != 0)) {
			return false;
		}
	}
	return true;
}

static int movable_range(const struct sublet_mm *mm, const void *addr, uint64_t bytes, uint32_t *vpn, uint32_t *pages)
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
	int err = movable_range(mm, addr, bytes, &vpn, &pages);

	if (err)
		return err;
	range_decommit(mm, vpn, vpn + pages);
	return 0;
}

/* ---- commit ---- */

/* Zero and show the holes of [vpn, vpn + pages) that have memory. */
static void holes_fill(struct sublet_mm *mm, uint32_t vpn, uint32_t pages)
{
	for (uint32_t at = vpn; at < vpn + pages; at++) {
		uint32_t pte = a32_load_relaxed(&mm->pte[at]);
		if (!(pte & PTE_HOLE))
			continue;
		mm->config.ops->clear(mm->config.ctx, at, 1);
		a32_store_release(&mm->pte[at], pte & ~PTE_HOLE);
	}
}

static bool page_is_gone(const struct sublet_mm *mm, uint32_t vpn)
{
	uint32_t pte = a32_load_relaxed(&mm->pte[vpn]);
	return !(pte & PTE_PRESENT) && pte_kind(pte) == PTE_GONE;
}

/*
 * Fresh memory for the gone pages of the units that [vpn, vpn + pages) touches; pages outside it stay
 * holes, also where only some of the memory could be had.
 */
static int units_give(struct sublet_mm *mm, uint32_t vpn, uint32_t pages, uint32_t flags)
{
	uint32_t unit = unit_pages(mm->arena), end = vpn + pages, last = (end + unit - 1) & ~(unit - 1);
	int err = 0;

	for (uint32_t at = vpn & ~(unit - 1), run; at < last && !err; at += run ? run : 1) {
		for (run = 0; at + run < last && page_is_gone(mm, at + run);)
			run++;
		if (run)
			err = sublet__mm_give(mm, at, run, flags);
		for (uint32_t p = at; p < at + run; p++)
			if ((p < vpn || p >= end) && !page_is_gone(mm, p))
				a32_store_release(&mm->pte[p], a32_load_relaxed(&mm->pte[p]) | PTE_HOLE);
	}
	return err;
}

static bool range_is_holes(const struct sublet_mm *mm, uint32_t vpn, uint32_t pages)
{
	for (uint32_t at = vpn; at < vpn + pages; at++)
		if (!page_is_hole(a32_load_relaxed(&mm->pte[at])))
			return false;
	return true;
}

int sublet_commit(struct sublet_mm *mm, void *addr, uint64_t bytes, uint32_t flags)
{
	uint32_t vpn, pages;
	int err = movable_range(mm, addr, bytes, &vpn, &pages);

	/* All holes, or a failure half way could not tell what to undo. */
	if (err || (flags & ~(uint32_t)SUBLET_PLAIN_OK) || !range_is_holes(mm, vpn, pages))
		return -EINVAL;
	for_each_block(at, count, vpn, vpn + pages) {
		engine_lock(mm->arena, block_lock_of(mm, at));
		holes_fill(mm, at, count);
		err = units_give(mm, at, count, flags | SUBLET_MOVABLE);
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

static void folio_unlock(struct sublet_arena *arena, uint32_t pfn, uint32_t word)
{
	struct sublet__frame *f = &arena->frames[pfn];
	uint32_t ref = a32_load_relaxed(&f->ref);

	/* A pinned folio stays locked; so does one that a child of fork() shares. */
	if (word_state(word) != FRAME_MOVABLE || (word & FRAME_HELD) || (ref & (REF_FROZEN | REF_COUNT_MASK)) ||
	    !a32_cas_seq_cst(&f->ref, &ref, REF_FROZEN))
		return;
	uint32_t next = (word & ~FRAME_STATE_MASK) | FRAME_DISCARDABLE;
	a32_store_release(&f->word, next);
	sublet__account(arena, pfn, 1u << word_order(word), mapped_account(word), mapped_account(next));
}

static void folio_lock(struct sublet_arena *arena, uint32_t pfn, uint32_t word)
{
	struct sublet__frame *f = &arena->frames[pfn];

	if (word_state(word) != FRAME_DISCARDABLE)
		return;
	uint32_t next = (word & ~FRAME_STATE_MASK) | FRAME_MOVABLE;
	a32_store_release(&f->word, next);
	sublet__account(arena, pfn, 1u << word_order(word), mapped_account(word), mapped_account(next));
	a32_store_release(&f->ref, 0);
}

/* Call fn on each folio of a range of one block: those that lie in it, or those that touch it. */
static void folios_each(struct sublet_mm *mm, uint32_t vpn, uint32_t pages, bool whole,
			void (*fn)(struct sublet_arena *arena, uint32_t pfn, uint32_t word))
{
	struct sublet_arena *arena = mm->arena;

	for (uint32_t at = vpn; at < vpn + pages;) {
		uint32_t pte = a32_load_relaxed(&mm->pte[at]), step = 1;
		if (pte & PTE_PRESENT) {
			uint32_t head = sublet__frame_head(arena, pte_pfn(pte));
			uint32_t word = a32_load_relaxed(&arena->frames[head].word);
			uint32_t first = a32_load_relaxed(&arena->frames[head].a);
			step = first + (1u << word_order(word)) - at;
			if (!whole || (first >= vpn && at + step <= vpn + pages))
				fn(arena, head, word);
		}
		at += step;
	}
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

static int droppable_range(const struct sublet_mm *mm, const void *addr, uint64_t bytes, uint32_t *vpn, uint32_t *pages)
{
	int err = sublet__mm_range(mm, addr, bytes, vpn, pages);
	return !err && range_is(mm, *vpn, *pages, FRAME_DROPPABLE) ? 0 : -EINVAL;
}

static void range_unlock(struct sublet_mm *mm, uint32_t vpn, uint32_t pages)
{
	for_each_block(at, count, vpn, vpn + pages) {
		engine_lock(mm->arena, block_lock_of(mm, at));
		folios_each(mm, at, count, true, folio_unlock);
		engine_unlock(mm->arena, block_lock_of(mm, at));
	}
}

int sublet_unlock(struct sublet_mm *mm, void *addr, uint64_t bytes)
{
	uint32_t vpn, pages;
	int err = droppable_range(mm, addr, bytes, &vpn, &pages);

	if (!err)
		range_unlock(mm, vpn, pages);
	return err;
}

int sublet_lock(struct sublet_mm *mm, void *addr, uint64_t bytes)
{
	uint32_t vpn, pages;
	int err = droppable_range(mm, addr, bytes, &vpn, &pages);

	if (err)
		return err;
	for_each_block(at, count, vpn, vpn + pages) {
		engine_lock(mm->arena, block_lock_of(mm, at));
		folios_each(mm, at, count, false, folio_lock);
		err = dropped_give(mm, at, count);
		engine_unlock(mm->arena, block_lock_of(mm, at));
		if (err) {
			range_unlock(mm, vpn, pages);
			return err;
		}
	}
	return range_fresh(mm, vpn, pages);
}
