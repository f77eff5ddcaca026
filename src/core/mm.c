/* SPDX-License-Identifier: MIT */
/*
 * One address space: its window of addresses, its page table, and what maps and unmaps.
 *
 * The page table is a flat array with one 32-bit entry a page; it is reserved for the whole window
 * at creation and never unmapped while the mm lives, so a reader without a lock (a pin) never walks
 * into freed memory. Entries are written under the lock of their block of 512 pages.
 *
 * Addresses are handed out in units of 64 KiB (of one frame, where frames are larger), first fit, so
 * that a heap stays dense and its kernel mappings merge. Inside a unit, frames come in folios as
 * large as address and length allow; a folio never crosses a block.
 *
 * A block's kernel mappings are counted whenever the block changes: neighbours that continue each
 * other (the next frame, or nothing after nothing) share one. The sum is the budget that moves
 * are charged against.
 */
#include "core/call.h"

#include <errno.h>
#include <string.h>

#define UNMAP_NS (330 * SUBLET_MS) /* pins are waited for */

/* ---- addresses ---- */

static bool unit_used(const struct sublet_mm *mm, uint32_t unit)
{
	return mm->va_used[unit / 64] >> (unit % 64) & 1;
}

static void unit_set(uint64_t *bits, uint32_t unit, bool set)
{
	if (set)
		bits[unit / 64] |= 1ull << (unit % 64);
	else
		bits[unit / 64] &= ~(1ull << (unit % 64));
}

/* What is left of a mapping behind a part that goes is one of its own. */
static void units_mark(struct sublet_mm *mm, uint32_t unit, uint32_t count, bool used)
{
	uint32_t end = unit + count;

	for (uint32_t u = unit; u < end; u++) {
		unit_set(mm->va_used, u, used);
		unit_set(mm->va_first, u, used && u == unit);
	}
	if (!used && end < mm->va_units && unit_used(mm, end))
		unit_set(mm->va_first, end, true);
}

bool sublet__mm_ends_at(struct sublet_mm *mm, uint32_t vpn)
{
	uint32_t unit = vpn >> mm->arena->unit_order;

	engine_lock(mm->arena, &mm->va_lock);
	bool ends = unit >= mm->va_units || !unit_used(mm, unit) ||
		    (mm->va_first[unit / 64] >> (unit % 64) & 1);
	engine_unlock(mm->arena, &mm->va_lock);
	return ends;
}

static uint32_t units_of(const struct sublet_arena *arena, uint32_t pages)
{
	return (pages + unit_pages(arena) - 1) >> arena->unit_order;
}

static uint32_t unit_first_used(const struct sublet_mm *mm, uint32_t unit, uint32_t end)
{
	while (unit < end) {
		uint64_t word = mm->va_used[unit / 64] >> (unit % 64);
		if (word)
			return min_u32(end, unit + (uint32_t)__builtin_ctzll(word));
		unit += 64 - unit % 64;
	}
	return end;
}

/* The first unit from `unit` on whose address is a multiple of `align` units; the window may begin anywhere. */
static uint64_t unit_aligned(const struct sublet_mm *mm, uint32_t unit, uint32_t align)
{
	uint64_t base = mm->config.base >> (frames_bytes_shift(mm->arena) + mm->arena->unit_order);
	return ((base + unit + align - 1) & ~(uint64_t)(align - 1)) - base;
}

static uint32_t va_take(struct sublet_mm *mm, uint32_t units, uint32_t align)
{
	uint32_t found = ENGINE_NONE;

	engine_lock(mm->arena, &mm->va_lock);
	while (mm->va_low < mm->va_units && unit_used(mm, mm->va_low))
		mm->va_low++;
	uint64_t at = unit_aligned(mm, mm->va_low, align);
	while (at < mm->va_units && units <= mm->va_units - at) {
		uint32_t first = (uint32_t)at, used = unit_first_used(mm, first, first + units);
		if (used == first + units) {
			found = first;
			units_mark(mm, first, units, true);
			break;
		}
		at = unit_aligned(mm, used + 1, align);
	}
	engine_unlock(mm->arena, &mm->va_lock);
	return found;
}

static void va_put(struct sublet_mm *mm, uint32_t unit, uint32_t count)
{
	engine_lock(mm->arena, &mm->va_lock);
	units_mark(mm, unit, count, false);
	mm->va_low = min_u32(mm->va_low, unit);
	engine_unlock(mm->arena, &mm->va_lock);
}

static void *mm_address(const struct sublet_mm *mm, uint32_t vpn)
{
	return (void *)(uintptr_t)(mm->config.base + ((uint64_t)vpn << frames_bytes_shift(mm->arena)));
}

bool sublet__mm_contains(const struct sublet_mm *mm, const void *addr, uint64_t bytes)
{
	uint64_t start = (uint64_t)(uintptr_t)addr, base = mm->config.base;
	uint64_t end = base + ((uint64_t)mm->config.pages << frames_bytes_shift(mm->arena));

	return start < end && (start >= base || bytes > base - start);
}

/* ---- kernel mappings ---- */

static bool pte_continues(uint32_t before, uint32_t pte)
{
	if ((pte & PTE_PRESENT) != (before & PTE_PRESENT))
		return false;
	if (pte & PTE_PRESENT)
		return pte_pfn(pte) == pte_pfn(before) + 1 &&
		       !((pte ^ before) & (PTE_LOCKED | PTE_PROTECTED));
	return pte_is_plain(pte) == pte_is_plain(before);
}

/* What the kernel has at the page: nothing, too, where its discardable memory is unlocked. */
static uint32_t pte_visible(const struct sublet_mm *mm, uint32_t pte)
{
	if (!(pte & PTE_PRESENT) || !a32_load_relaxed(&mm->has_unlocked))
		return pte;
	uint32_t head = sublet__frame_head(mm->arena, pte_pfn(pte));
	bool hidden = head != ENGINE_NONE &&
		      word_state(a32_load_relaxed(&mm->arena->frames[head].word)) == FRAME_DISCARDABLE;
	return hidden ? 0 : pte;
}

/* Kernel mappings that begin in [vpn, end). */
static uint32_t mappings_begin(const struct sublet_mm *mm, uint32_t vpn, uint32_t end)
{
	uint32_t raw = vpn ? a32_load_relaxed(&mm->pte[vpn - 1]) : 0, before = pte_visible(mm, raw),
		 count = 0;

	for (uint32_t at = vpn; at < end; at++) {
		uint32_t pte = a32_load_relaxed(&mm->pte[at]);
		/* A frame that is no head belongs to the folio of the one before it. */
		bool goes_on = (pte & raw & PTE_PRESENT) && pte_pfn(pte) == pte_pfn(raw) + 1 &&
			       !(a32_load_relaxed(&mm->arena->frames[pte_pfn(pte)].word) & FRAME_HEAD);
		uint32_t visible = goes_on ? (before ? pte : 0) : pte_visible(mm, pte);
		count += !pte_continues(before, visible);
		before = visible;
		raw = pte;
	}
	return count;
}

uint32_t sublet__mm_mappings_recount(struct sublet_mm *mm, uint32_t block)
{
	uint32_t first = block * ENGINE_BLOCK_PAGES, old = a32_load_relaxed(&mm->block_mappings[block]);
	uint32_t count = mappings_begin(mm, first, min_u32(first + ENGINE_BLOCK_PAGES, mm->config.pages));

	a32_store_relaxed(&mm->block_mappings[block], count);
	a32_add_relaxed(&mm->mapping_count, count - old); /* relaxed: a budget, checked with a margin */
	return count;
}

uint32_t sublet__mm_mappings_of(const struct sublet_mm *mm, uint32_t vpn, uint32_t pages)
{
	/* The page behind the range may stop or start continuing it, unless it is another block's. */
	uint32_t last = min_u32((vpn / ENGINE_BLOCK_PAGES + 1) * ENGINE_BLOCK_PAGES, mm->config.pages);

	return mappings_begin(mm, vpn, min_u32(vpn + pages + 1, last));
}

void sublet__mm_mappings_changed(struct sublet_mm *mm, uint32_t vpn, uint32_t pages, uint32_t before)
{
	uint32_t delta = sublet__mm_mappings_of(mm, vpn, pages) - before;
	sublet__a32 *block = &mm->block_mappings[vpn / ENGINE_BLOCK_PAGES];
	uint32_t count = a32_load_relaxed(block);

	/* A neighbouring block may have changed unseen: never below 0, and the next recount mends it. */
	if ((int32_t)delta < 0 && count < 0u - delta)
		delta = 0u - count;
	a32_store_relaxed(block, count + delta);
	a32_add_relaxed(&mm->mapping_count, delta); /* relaxed: a budget, checked with a margin */
}

bool sublet__mm_flagged(const struct sublet_mm *mm, uint32_t vpn, uint32_t pages, uint32_t flag)
{
	for (uint32_t at = vpn; at < vpn + pages; at++)
		if (a32_load_relaxed(&mm->pte[at]) & flag)
			return true;
	return false;
}

/* ---- giving memory ---- */

/* The area may be lent as a whole, and the normal zone stays the room that claims move into. */
bool sublet__mm_lend(struct sublet_arena *arena, uint32_t pages)
{
	if (a64_add_relaxed(&arena->lent_frames, pages) + pages <= arena->zone[ZONE_AREA].frames)
		return true;
	a64_sub_relaxed(&arena->lent_frames, pages);
	return false;
}

/* Take folios for [vpn, vpn + pages) into segments that lie end to end; returns the pages taken. */
static uint32_t folios_take(struct sublet_mm *mm, uint32_t vpn, uint32_t pages, struct sublet__segment *segs,
			    uint32_t *count)
{
	static const uint32_t zones[ZONES] = { ZONE_AREA, ZONE_NORMAL };
	const struct sublet__platform *p = &mm->arena->platform;
	struct sublet_arena *arena = mm->arena;
	uint32_t done = 0, n = 0;

	while (done < pages && n < ENGINE_GIVE_SEGMENTS) {
		uint32_t order = order_fitting(vpn + done, pages - done, arena->order_max);
		uint32_t pfn = sublet__folio_take(arena, order, zones);
		while (pfn == ENGINE_NONE && order > 0)
			pfn = sublet__folio_take(arena, --order, zones);
		if (pfn == ENGINE_NONE)
			break;
		if (!(a32_load_relaxed(&arena->frames[pfn].word) & FRAME_ZERO)) {
			p->ops->zero(p->ctx, pfn, 1u << order, false);
			a64_add_relaxed(&arena->counters.zeroed_frames, 1u << order);
		}
		struct sublet__segment *last = n ? &segs[n - 1] : NULL;
		if (last && last->dst_pfn + last->pages == pfn)
			last->pages += 1u << order;
		else
			segs[n++] = (struct sublet__segment){ vpn + done, 1u << order, ENGINE_NONE, pfn };
		done += 1u << order;
	}
	*count = n;
	return done;
}

/* The folios of a segment become memory of the mm: state first, then the entries that lead to it, then pins. */
static void segment_publish(struct sublet_mm *mm, const struct sublet__segment *seg, uint32_t pte_flags,
			    uint32_t word_flags)
{
	struct sublet_arena *arena = mm->arena;

	for (uint32_t i = 0; i < seg->pages;) {
		struct sublet__frame *f = &arena->frames[seg->dst_pfn + i];
		uint32_t order = word_order(a32_load_relaxed(&f->word));
		a32_store_relaxed(&f->a, seg->vpn + i);
		a32_store_relaxed(&f->b, mm->index);
		a32_store_release(&f->word, frame_word(FRAME_MOVABLE, order, word_flags));
		i += 1u << order;
	}
	for (uint32_t i = 0; i < seg->pages; i++)
		a32_store_release(&mm->pte[seg->vpn + i], pte_make(seg->dst_pfn + i, pte_flags));
	for (uint32_t i = 0; i < seg->pages;) { /* last: as in run_publish */
		struct sublet__frame *f = &arena->frames[seg->dst_pfn + i];
		a32_store_release(&f->ref, 0); /* pairs with the acquire in sublet_pin */
		i += 1u << word_order(a32_load_relaxed(&f->word));
	}
	if (word_flags & (FRAME_HELD | FRAME_PROTECTED))
		sublet__account(arena, seg->dst_pfn, seg->pages, ACCOUNT_MOVABLE, ACCOUNT_HELD);
}

int sublet__mm_populate(struct sublet_mm *mm, uint32_t vpn, uint32_t pages, uint32_t pte_flags,
			uint32_t word_flags)
{
	struct sublet__segment segs[ENGINE_GIVE_SEGMENTS];
	uint32_t count, map_flags = SUBLET__MAP_SHARED;
	uint32_t done = folios_take(mm, vpn, pages, segs, &count);

	if (!done)
		return -ENOMEM;
	/* seq_cst, with fork_begin: it sets fork_pending, then visits this block under its lock */
	if (a32_load_seq_cst(&mm->fork_pending)) {
		map_flags = SUBLET__MAP_PRIVATE;
		word_flags |= FRAME_HELD;
	}
	int err = mm->config.ops->map(mm->config.ctx, segs, count, map_flags);
	if (err) {
		for (uint32_t i = 0; i < count; i++)
			sublet__frames_put(mm->arena, segs[i].dst_pfn, segs[i].pages, ACCOUNT_MOVABLE);
		return err;
	}
	uint32_t before = sublet__mm_mappings_of(mm, vpn, done);
	for (uint32_t i = 0; i < count; i++)
		segment_publish(mm, &segs[i], pte_flags, word_flags);
	sublet__mm_mappings_changed(mm, vpn, done, before);
	return (int)done;
}

/* ---- taking memory away ---- */

static void cut(struct sublet_mm *mm, uint32_t pfn, uint32_t order, uint32_t vpn, uint32_t lo, uint32_t hi,
		uint32_t word)
{
	struct sublet_arena *arena = mm->arena;
	uint32_t end = vpn + (1u << order);
	bool inside = vpn >= lo && end <= hi, outside = end <= lo || vpn >= hi;
	struct sublet__frame *f = &arena->frames[pfn];

	if (!inside && !outside) {
		uint32_t half = 1u << (order - 1);
		cut(mm, pfn, order - 1, vpn, lo, hi, word);
		cut(mm, pfn + half, order - 1, vpn + half, lo, hi, word);
		return;
	}
	/* Of a folio with protected pages only the pieces that have some stay protected. */
	uint32_t next = (word & ~(FRAME_ORDER_MASK | FRAME_PROTECTED)) | order << FRAME_ORDER_SHIFT;
	if ((word & FRAME_PROTECTED) && sublet__mm_flagged(mm, vpn, end - vpn, PTE_PROTECTED))
		next |= FRAME_PROTECTED;
	else if ((word & FRAME_PROTECTED) && (word & FRAME_HELD))
		a32_store_seq_cst(&mm->fork_held, 1); /* something to restore, for the next fork_restore */
	sublet__account(arena, pfn, end - vpn, mapped_account(word), mapped_account(next));
	a32_store_relaxed(&f->a, vpn);
	a32_store_relaxed(&f->b, mm->index);
	/* Before it is a head that anybody can find: a frame that was none yet has never been frozen. */
	a32_store_relaxed(&f->ref, REF_FROZEN);
	a32_store_release(&f->word, next);
	/* release: a pin that succeeds on this piece sees its order */
	a32_store_release(&f->ref, outside && word_state(word) == FRAME_MOVABLE ? 0 : REF_FROZEN);
}

bool sublet__mm_freeze(struct sublet_mm *mm, uint32_t vpn, uint32_t pages)
{
	struct sublet_arena *arena = mm->arena;

	for (uint32_t at = vpn; at < vpn + pages;) {
		uint32_t pte = a32_load_relaxed(&mm->pte[at]);
		if (!(pte & PTE_PRESENT)) {
			at++;
			continue;
		}
		uint32_t head = sublet__frame_head(arena, pte_pfn(pte));
		struct sublet__frame *f = &arena->frames[head];
		uint32_t word = a32_load_relaxed(&f->word), order = word_order(word);
		uint32_t first = a32_load_relaxed(&f->a), end = first + (1u << order);

		if (word_state(word) == FRAME_MOVABLE && !ref_freeze(f)) {
			sublet__mm_unfreeze(mm, vpn, at - vpn);
			return false;
		}
		if (first < vpn || end > vpn + pages)
			cut(mm, head, order, first, vpn, vpn + pages, word);
		at = end;
	}
	return true;
}

void sublet__mm_unfreeze(struct sublet_mm *mm, uint32_t vpn, uint32_t pages)
{
	struct sublet_arena *arena = mm->arena;

	for (uint32_t at = vpn; at < vpn + pages;) {
		uint32_t pte = a32_load_relaxed(&mm->pte[at]);
		uint32_t step = 1;
		if (pte & PTE_PRESENT) {
			/* a head: ranges hold whole folios */
			struct sublet__frame *f = &arena->frames[pte_pfn(pte)];
			uint32_t word = a32_load_relaxed(&f->word);
			if (word_state(word) == FRAME_MOVABLE)
				a32_store_release(&f->ref, 0);
			step = 1u << word_order(word);
		}
		at += step;
	}
}

bool sublet__mm_cut(struct sublet_mm *mm, uint32_t first, uint32_t end, uint32_t vpn, uint32_t pages)
{
	uint32_t low = max_u32(first, vpn), high = min_u32(end, vpn + pages);

	if (low == first && high == end)
		return true;
	if (!sublet__mm_freeze(mm, low, high - low))
		return false;
	sublet__mm_unfreeze(mm, low, high - low);
	return true;
}

/* Folios that leave together, contiguous and accounted alike: one visit to the zone for all of them. */
struct leaving {
	uint32_t pfn;
	uint32_t frames;
	enum sublet__account account;
};

static void leaving_flush(struct sublet_arena *arena, struct leaving *l)
{
	if (l->frames)
		sublet__frames_put(arena, l->pfn, l->frames, l->account);
	l->frames = 0;
}

/* False: no child shares it any more. Said under the lock, since fork_restore empties the list once. */
static bool folio_park(struct sublet_mm *mm, uint32_t pfn, uint32_t word)
{
	struct sublet_arena *arena = mm->arena;

	engine_lock(arena, &mm->parked_lock);
	bool is_shared = !sublet__mm_is_restored(mm);
	if (is_shared) {
		a32_store_relaxed(&arena->frames[pfn].a, mm->parked);
		mm->parked = pfn;
		a32_store_release(&arena->frames[pfn].word, frame_word(FRAME_PARKED, word_order(word), 0));
	}
	engine_unlock(arena, &mm->parked_lock);
	return is_shared;
}

/* A frozen folio leaves the page table: to the free lists, or, while a child shares it, to the parked list. */
static void folio_leave(struct sublet_mm *mm, uint32_t pfn, uint32_t word, struct leaving *l)
{
	struct sublet_arena *arena = mm->arena;
	uint32_t frames = 1u << word_order(word);
	enum sublet__account account = mapped_account(word);

	a64_sub_relaxed(&arena->lent_frames, frames);
	if ((word & FRAME_HELD) && folio_park(mm, pfn, word))
		return;
	a32_store_release(&arena->frames[pfn].word, frame_word(FRAME_BUSY, word_order(word), 0));
	if (l->frames &&
	    (l->pfn + l->frames != pfn || l->account != account || pfn % (1u << arena->pageblock_order) == 0))
		leaving_flush(arena, l);
	if (!l->frames)
		*l = (struct leaving){ pfn, 0, account };
	l->frames += frames;
}

void sublet__mm_strip(struct sublet_mm *mm, uint32_t vpn, uint32_t pages, uint32_t entry)
{
	struct sublet_arena *arena = mm->arena;
	bool is_mapped = entry != PTE_DROPPED; /* that was unlocked: not mapped, before or after */
	uint32_t before = is_mapped ? sublet__mm_mappings_of(mm, vpn, pages) : 0;
	struct leaving leaving = { 0 };

	for (uint32_t at = vpn; at < vpn + pages;) {
		uint32_t pte = a32_load_relaxed(&mm->pte[at]), step = 1;
		if (pte & PTE_PRESENT) {
			uint32_t pfn = pte_pfn(pte), word = a32_load_relaxed(&arena->frames[pfn].word);
			step = 1u << word_order(word);
			for (uint32_t i = 0; i < step; i++)
				a32_store_release(&mm->pte[at + i], entry);
			folio_leave(mm, pfn, word, &leaving);
		} else {
			if (pte_is_plain(pte))
				a64_sub_relaxed(&arena->plain_pages, 1);
			a32_store_release(&mm->pte[at], entry);
		}
		at += step;
	}
	leaving_flush(arena, &leaving);
	if (is_mapped)
		sublet__mm_mappings_changed(mm, vpn, pages, before);
}

/* ---- map, unmap ---- */

static void blocks_used_raise(struct sublet_mm *mm, uint32_t vpn_end)
{
	uint32_t want = (vpn_end + ENGINE_BLOCK_PAGES - 1) / ENGINE_BLOCK_PAGES;
	uint32_t have = a32_load_relaxed(&mm->blocks_used);

	while (have < want && !a32_cas_seq_cst(&mm->blocks_used, &have, want))
		;
}

/* Ordinary memory for a range of one block; block lock held. */
static int plain_give(struct sublet_mm *mm, uint32_t vpn, uint32_t pages)
{
	int err = mm->config.ops->map_plain(mm->config.ctx, vpn, pages);

	if (err)
		return err;
	uint32_t before = sublet__mm_mappings_of(mm, vpn, pages);
	for (uint32_t i = 0; i < pages; i++)
		a32_store_release(&mm->pte[vpn + i], PTE_PLAIN);
	a64_add_relaxed(&mm->arena->plain_pages, pages);
	sublet__mm_mappings_changed(mm, vpn, pages, before);
	return 0;
}

int sublet__mm_give(struct sublet_mm *mm, uint32_t vpn, uint32_t pages, uint32_t flags)
{
	struct sublet_arena *arena = mm->arena;
	uint32_t word_flags = (flags & SUBLET_DISCARDABLE) ? FRAME_DROPPABLE : 0;

	for (uint32_t done = 0; done < pages;) {
		uint32_t left = pages - done;
		int got = -ENOMEM;
		if (sublet__mm_lend(arena, left)) {
			got = sublet__mm_populate(mm, vpn + done, left, 0, word_flags);
			a64_sub_relaxed(&arena->lent_frames, left - (uint32_t)(got > 0 ? got : 0));
		}
		if (got < 0 && (flags & SUBLET_PLAIN_OK)) {
			got = plain_give(mm, vpn + done, left);
			got = got ? got : (int)left;
		}
		if (got < 0)
			return got;
		done += (uint32_t)got;
	}
	return 0;
}

static void blocks_lock(struct sublet_mm *mm, uint32_t vpn, uint32_t pages)
{
	for_each_block(at, count, vpn, vpn + pages)
		engine_lock(mm->arena, block_lock_of(mm, at)); /* ascending: see the lock order */
}

static void blocks_unlock(struct sublet_mm *mm, uint32_t vpn, uint32_t pages)
{
	for_each_block(at, count, vpn, vpn + pages)
		engine_unlock(mm->arena, block_lock_of(mm, at));
}

/* Freeze the range in all of its blocks, or in none. Block locks held. */
static bool blocks_freeze(struct sublet_mm *mm, uint32_t vpn, uint32_t pages)
{
	for_each_block(at, count, vpn, vpn + pages)
		if (!sublet__mm_freeze(mm, at, count)) {
			for_each_block(back, part, vpn, at)
				sublet__mm_unfreeze(mm, back, part);
			return false;
		}
	return true;
}

/*
 * False: something is pinned. Else *err says how it went. Notifiers are told when it is certain that the memory goes, with
 * the block locks held: a callback waits for its device at most, and no device's work waits for those locks.
 */
static bool range_unmap_once(struct sublet_mm *mm, uint32_t vpn, uint32_t pages, int *err)
{
	struct sublet__invalidation told;

	blocks_lock(mm, vpn, pages);
	bool frozen = blocks_freeze(mm, vpn, pages);
	if (frozen) {
		*err = sublet__invalidate_begin(mm, &told, vpn, pages, SUBLET_NOTIFIER_UNMAP, true);
		bool is_told = !*err; /* else a device that cannot be stopped may still write there */
		if (is_told)
			*err = mm->config.ops->unmap(mm->config.ctx, vpn, pages);
		for_each_block(at, count, vpn, vpn + pages) {
			if (*err)
				sublet__mm_unfreeze(mm, at, count);
			else
				sublet__mm_strip(mm, at, count, 0);
		}
		if (is_told)
			sublet__invalidate_end(mm, &told);
	}
	blocks_unlock(mm, vpn, pages);
	return frozen;
}

/*
 * A pin of other memory may hold a reference here for an instant, if the frames were its own just
 * before (core/pin.c): only what is still pinned after a while is reported.
 */
static int range_unmap(struct sublet_mm *mm, uint32_t vpn, uint32_t pages)
{
	const struct sublet__platform *p = &mm->arena->platform;
	struct sublet__backoff backoff = { 0 };
	uint64_t until_ns = 0;
	int err = -EBUSY;

	while (!range_unmap_once(mm, vpn, pages, &err)) {
		uint64_t now = engine_now(mm->arena);
		until_ns = until_ns ? until_ns : now + UNMAP_NS;
		if (now >= until_ns)
			break;
		backoff_sleep(p, &backoff, now, until_ns);
	}
	return err;
}

/* Addresses that nobody uses; *pages is bytes in frames. */
static int addresses_take(struct sublet_mm *mm, uint64_t bytes, uint64_t align_bytes, uint32_t *vpn,
			  uint32_t *pages)
{
	struct sublet_arena *arena = mm->arena;
	uint32_t shift = frames_bytes_shift(arena), unit_shift = shift + arena->unit_order;
	uint64_t pages64 = (bytes + (1ull << shift) - 1) >> shift;

	if (!bytes || !align_bytes || (align_bytes & (align_bytes - 1)) || align_bytes > SUBLET_GIB)
		return -EINVAL;
	if (bytes > UINT64_MAX - (1ull << shift) || pages64 > mm->config.pages)
		return -ENOMEM;
	uint32_t align = align_bytes >> unit_shift ? (uint32_t)(align_bytes >> unit_shift) : 1;
	uint32_t unit = va_take(mm, units_of(arena, (uint32_t)pages64), align);
	if (unit == ENGINE_NONE)
		return -ENOMEM;
	*pages = (uint32_t)pages64;
	*vpn = unit << arena->unit_order;
	blocks_used_raise(mm, *vpn + *pages);
	return 0;
}

int sublet_map_aligned(struct sublet_mm *mm, uint64_t bytes, uint64_t align_bytes, uint32_t flags,
		       void **addr)
{
	uint32_t kind = flags & (SUBLET_MOVABLE | SUBLET_DISCARDABLE), vpn, pages;
	int err = addr ? call_mm(mm) : -EINVAL;

	if (err)
		return err;
	struct sublet_arena *arena = mm->arena;
	if ((kind != SUBLET_MOVABLE && kind != SUBLET_DISCARDABLE) ||
	    (flags & ~(uint32_t)(SUBLET_MOVABLE | SUBLET_DISCARDABLE | SUBLET_PLAIN_OK)) ||
	    (kind == SUBLET_DISCARDABLE && (flags & SUBLET_PLAIN_OK)))
		return -EINVAL;
	err = addresses_take(mm, bytes, align_bytes, &vpn, &pages);
	if (err)
		return err;
	for_each_block(at, count, vpn, vpn + pages) {
		engine_lock(arena, block_lock_of(mm, at));
		err = sublet__mm_give(mm, at, count, flags);
		engine_unlock(arena, block_lock_of(mm, at));
		if (err) {
			/* nobody knows these addresses yet, so nothing is pinned; where the kernel
			   cannot even unmap them they stay taken */
			if (!range_unmap(mm, vpn, at + count - vpn))
				va_put(mm, vpn >> arena->unit_order, units_of(arena, pages));
			return err;
		}
	}
	*addr = mm_address(mm, vpn);
	return 0;
}

int sublet__mm_reserve(struct sublet_mm *mm, uint64_t bytes, uint64_t align_bytes, void **addr)
{
	uint32_t vpn, pages;
	int err = addresses_take(mm, bytes, align_bytes, &vpn, &pages);

	if (err)
		return err;
	/* To the kernel the addresses are what they were: nothing, which continues nothing. */
	for_each_block(at, count, vpn, vpn + pages) {
		engine_lock(mm->arena, block_lock_of(mm, at));
		for (uint32_t i = 0; i < count; i++)
			a32_store_release(&mm->pte[at + i], PTE_RESERVED);
		engine_unlock(mm->arena, block_lock_of(mm, at));
	}
	*addr = mm_address(mm, vpn);
	return 0;
}

int sublet_map(struct sublet_mm *mm, uint64_t bytes, uint32_t flags, void **addr)
{
	return sublet_map_aligned(mm, bytes, bytes >= 2 * SUBLET_MIB ? 2 * SUBLET_MIB : 1, flags, addr);
}

/* Whether every page of the range is mapped, and the range ends with its unit or its mapping. */
static bool range_is_unmappable(const struct sublet_mm *mm, uint32_t vpn, uint32_t pages)
{
	uint32_t unit = unit_pages(mm->arena), end = vpn + pages;

	if (vpn % unit)
		return false;
	for (uint32_t at = vpn; at < end; at++)
		if (!a32_load_relaxed(&mm->pte[at]))
			return false;
	for (uint32_t at = end; at % unit; at++)
		if (a32_load_relaxed(&mm->pte[at]))
			return false;
	return true;
}

int sublet_unmap(struct sublet_mm *mm, void *addr, uint64_t bytes)
{
	uint32_t vpn, pages;
	int err = call_mm(mm);

	if (err)
		return err;
	struct sublet_arena *arena = mm->arena;
	err = sublet__mm_range(mm, addr, bytes, &vpn, &pages);
	if (err || (uintptr_t)addr % (1ull << frames_bytes_shift(arena)) ||
	    !range_is_unmappable(mm, vpn, pages))
		return -EINVAL;
	err = range_unmap(mm, vpn, pages);
	if (!err)
		va_put(mm, vpn >> arena->unit_order, units_of(arena, pages));
	return err;
}
