/* SPDX-License-Identifier: MIT */
/*
 * What is compared, and when: of what a step changes.
 *
 *   C1  at each step, what it changed: a folio's state by the picture in core/frame.h; FROZEN in all but MOVABLE; no
 *       long-term pin in the area (G3); a page-table entry against the kernel's page, its folio and the way back;
 *       the counts of a pageblock, which add up to its frames
 *   C2  when a lock is dropped, what it guards: the block's page table against the kernel's pages and the frames; free
 *       lists and isolations of the zone; the claim table; the caches; each translation of the device against the
 *       pages (G4)
 *   C3  every so many steps, and C4  with nobody in the engine: check_whole.c
 *
 * All of them read the engine's own structures, with is_quiet set: the few functions of it that they call take no steps.
 */
#include "sim.h"

#include <string.h>

enum touch {
	TOUCH_NOTHING = 0,
	TOUCH_REF,
	TOUCH_WORD,
	TOUCH_ENTRY,
	TOUCH_COUNTS,
	TOUCH_RECORD,
	TOUCH_NOTIFIERS,
	TOUCH_BLOCK_LOCK,
	TOUCH_ZONE_LOCK,
	TOUCH_CLAIM_LOCK,
	TOUCH_CACHE_LOCK,
	TOUCH_CACHE_TOP,
	TOUCH_DEVICE_LOCK,
};

void check_reset(struct sim *s)
{
	memset(s->state, FRAME_FREE, sizeof s->state);
	s->touch = TOUCH_NOTHING;
}

/* ---- what a step may change ---- */

static bool lies_in(const volatile void *at, const volatile void *from, size_t bytes, size_t *offset)
{
	*offset = (size_t)((const volatile char *)at - (const volatile char *)from);
	return *offset < bytes;
}

static bool note_of_mm(struct sim *s, const volatile void *at)
{
	size_t offset;

	for (uint32_t m = 0; m < s->mms; m++) {
		const struct sublet_mm *mm = s->mm[m].mm;
		if (mm && lies_in(at, mm->pte, mm->config.pages * sizeof *mm->pte, &offset)) {
			s->touch = TOUCH_ENTRY;
			s->touch_at = m << 16 | (uint32_t)(offset / sizeof *mm->pte);
			return true;
		}
		if (mm && at == &mm->notifiers.lock.word) {
			s->touch = TOUCH_NOTIFIERS;
			s->touch_at = m;
			return true;
		}
		if (mm && lies_in(at, mm->block, mm->blocks * sizeof *mm->block, &offset)) {
			s->touch = TOUCH_BLOCK_LOCK;
			s->touch_at = m << 16 | (uint32_t)(offset / sizeof *mm->block);
			return true;
		}
	}
	return false;
}

static void note_lock(struct sim *s, const volatile void *at)
{
	const struct sublet_arena *arena = s->arena;
	size_t offset;

	if (at == &arena->claim_lock.word) {
		s->touch = TOUCH_CLAIM_LOCK;
	} else if (lies_in(at, arena->cache, sizeof arena->cache, &offset)) {
		s->touch_at = (uint32_t)(offset / sizeof arena->cache[0]);
		s->touch = at == &arena->cache[s->touch_at].top ? TOUCH_CACHE_TOP : TOUCH_CACHE_LOCK;
	}
	for (uint32_t i = 0; i < ZONES; i++)
		if (at == &arena->zone[i].lock.word) {
			s->touch = TOUCH_ZONE_LOCK;
			s->touch_at = i;
		}
	for (uint32_t i = 0; i < SIM_DEVICES_MAX; i++)
		if (s->device[i].device && at == &s->device[i].device->lock.word) {
			s->touch = TOUCH_DEVICE_LOCK;
			s->touch_at = i;
		}
}

void check_note(struct sim *s, const volatile void *at)
{
	const struct sublet_arena *arena = s->arena;
	size_t offset;

	s->touch = TOUCH_NOTHING;
	s->touch_at = 0;
	if (!at || !arena)
		return;
	if (lies_in(at, arena->frames, s->frames * sizeof *arena->frames, &offset)) {
		uint32_t member = (uint32_t)(offset % sizeof *arena->frames / sizeof(uint32_t));
		if (member > 1)
			return;
		s->touch = member ? TOUCH_WORD : TOUCH_REF;
		s->touch_at = (uint32_t)(offset / sizeof *arena->frames);
	} else if (lies_in(at, arena->pageblocks,
			   (s->frames >> arena->pageblock_order) * sizeof *arena->pageblocks, &offset)) {
		if (offset % sizeof *arena->pageblocks)
			return;
		s->touch = TOUCH_COUNTS;
		s->touch_at = (uint32_t)(offset / sizeof *arena->pageblocks);
	} else if (lies_in(at, arena->pins, arena->pins_max * sizeof *arena->pins, &offset)) {
		if (offset % sizeof *arena->pins)
			return;
		s->touch = TOUCH_RECORD;
		s->touch_at = (uint32_t)(offset / sizeof *arena->pins);
	} else if (!note_of_mm(s, at)) {
		note_lock(s, at);
	}
	s->touch_word = at;
	s->touch_old = *(const volatile uint32_t *)at;
}

/* ---- C1 ---- */

static void word_check(struct sim *s, uint32_t pfn, uint32_t word)
{
	uint32_t state = word_state(word), order = word_order(word), frames = 1u << order;
	uint32_t ref = a32_load_relaxed(&s->arena->frames[pfn].ref), from = s->state[pfn];

	if (!(word & FRAME_HEAD))
		return;
	if (pfn & (frames - 1) || pfn + frames > s->frames)
		sim_violation(s, "frame %u heads a folio of order %u", pfn, order);
	if (from != state) {
		if (!cover_is_known(COVER_FRAME, from, state))
			sim_violation(s, "folio %u: %s -> %s", pfn, cover_state_name(COVER_FRAME, from),
				      cover_state_name(COVER_FRAME, state));
		cover_transition(s, COVER_FRAME, from, state);
		sim_trace(s, "folio %llu of %llu frames: %s -> %s", pfn, frames,
			  (uintptr_t)cover_state_name(COVER_FRAME, from),
			  (uintptr_t)cover_state_name(COVER_FRAME, state));
	}
	memset(&s->state[pfn], (int)state, frames);
	if (state != FRAME_MOVABLE && !(ref & REF_FROZEN))
		sim_violation(s, "folio %u is %s, and not frozen", pfn, cover_state_name(COVER_FRAME, state));
}

static uint32_t ref_kind(uint32_t ref)
{
	return (ref & REF_FROZEN) ? 2 : (ref & REF_COUNT_MASK) ? 1 : 0;
}

static void ref_check(struct sim *s, uint32_t pfn, uint32_t ref, uint32_t old)
{
	uint32_t word = a32_load_relaxed(&s->arena->frames[pfn].word);

	if ((word & FRAME_HEAD) && ref_kind(old) != ref_kind(ref))
		cover_transition(s, COVER_REF, ref_kind(old), ref_kind(ref));
	if ((ref ^ old) & (REF_FROZEN | REF_COUNT_MASK))
		sim_trace(s,
			  (ref & REF_FROZEN) ? "ref of frame %llu: %llu short, %llu long, frozen"
					     : "ref of frame %llu: %llu short, %llu long",
			  pfn, ref & REF_SHORT_MASK, (ref & REF_LONG_MASK) / REF_LONG_ONE, 0);
	if (ref & REF_FROZEN)
		return;
	if ((ref & REF_LONG_MASK) && pfn < s->area_frames)
		sim_violation(s, "a long-term pin of frame %u, in the area (G3)", pfn);
	if ((word & FRAME_HEAD) && word_state(word) != FRAME_MOVABLE)
		sim_violation(s, "folio %u is %s, and not frozen any more", pfn,
			      cover_state_name(COVER_FRAME, word_state(word)));
}

static uint32_t entry_kind(uint32_t pte)
{
	if (pte & PTE_PRESENT)
		return (pte & PTE_HOLE) ? 2 : 1;
	switch (pte_kind(pte)) {
	case PTE_GONE:
		return 3;
	case PTE_DROPPED:
		return 4;
	case PTE_PLAIN:
		return (pte & PTE_HOLE) ? 6 : 5;
	case PTE_RESERVED:
		return 7;
	default:
		return 0;
	}
}

/* The head of a frame's folio, which must be mapped, and lead back to the page. */
static uint32_t way_back_check(struct sim *s, uint32_t m, uint32_t vpn, uint32_t pfn)
{
	const struct sublet_arena *arena = s->arena;

	if (pfn >= s->frames)
		sim_violation(s, "mm %u page %u leads to frame %u, of %u", m, vpn, pfn, s->frames);
	uint32_t head = sublet__frame_head(arena, pfn);
	if (head == ENGINE_NONE)
		sim_violation(s, "mm %u page %u leads to frame %u, which is of no folio", m, vpn, pfn);
	const struct sublet__frame *f = &arena->frames[head];
	uint32_t state = word_state(a32_load_relaxed(&f->word));
	if (state != FRAME_MOVABLE && state != FRAME_DISCARDABLE)
		sim_violation(s, "mm %u page %u leads to frame %u, which is %s", m, vpn, pfn,
			      cover_state_name(COVER_FRAME, state));
	if (a32_load_relaxed(&f->b) != m || a32_load_relaxed(&f->a) + (pfn - head) != vpn)
		sim_violation(s, "mm %u page %u leads to frame %u, whose folio leads to mm %u page %u", m,
			      vpn, pfn, a32_load_relaxed(&f->b), a32_load_relaxed(&f->a) + (pfn - head));
	return head;
}

static void entry_check(struct sim *s, uint32_t m, uint32_t vpn, uint32_t pte, uint32_t old)
{
	const struct sim_page *p = &s->mm[m].page[vpn];
	uint32_t from = entry_kind(old), to = entry_kind(pte);
	bool is_other = (pte & PTE_PRESENT) && (!(old & PTE_PRESENT) || pte_pfn(old) != pte_pfn(pte));

	if (from != to) {
		if (!cover_is_known(COVER_ENTRY, from, to))
			sim_violation(s, "entry of mm %u page %u: %s -> %s", m, vpn,
				      cover_state_name(COVER_ENTRY, from), cover_state_name(COVER_ENTRY, to));
		cover_transition(s, COVER_ENTRY, from, to);
	}
	if ((old & PTE_PRESENT) && (!(pte & PTE_PRESENT) || is_other)) {
		uint32_t head = sublet__frame_head(s->arena, pte_pfn(old));
		if (head != ENGINE_NONE && !(a32_load_relaxed(&s->arena->frames[head].ref) & REF_FROZEN))
			sim_violation(s, "mm %u page %u leaves frame %u, which is not frozen (G2)", m, vpn,
				      pte_pfn(old));
	}
	if (!is_other)
		return;
	sim_trace(s, "entry of mm %llu page %llu: frame %llu", m, vpn, pte_pfn(pte), 0);
	uint32_t head = way_back_check(s, m, vpn, pte_pfn(pte));
	if (!(a32_load_relaxed(&s->arena->frames[head].ref) & REF_FROZEN))
		sim_violation(s,
			      "mm %u page %u leads to frame %u, which can be pinned before all its entries "
			      "are there",
			      m, vpn, pte_pfn(pte));
	if (p->kind == KIND_NONE || p->kind == KIND_PLAIN || p->pfn != pte_pfn(pte))
		sim_violation(s, "mm %u page %u is said to lead to frame %u; the kernel's leads to %u", m,
			      vpn, pte_pfn(pte), p->kind == KIND_NONE ? UINT32_MAX : p->pfn);
}

static void counts_check(struct sim *s, uint32_t pb)
{
	uint32_t sum = 0, frames = 1u << s->arena->pageblock_order;

	for (uint32_t i = 0; i < ACCOUNTS; i++) {
		uint32_t count = sublet__account_get(&s->arena->pageblocks[pb], (enum sublet__account)i);
		if (count > frames)
			sim_violation(s, "pageblock %u counts %u frames of kind %u", pb, count, i);
		sum += count;
	}
	if (sum != frames)
		sim_violation(s, "the counts of pageblock %u add up to %u", pb, sum);
}

/* ---- C2 ---- */

static void page_check(struct sim *s, uint32_t m, uint32_t vpn, uint32_t pte)
{
	const struct sim_page *p = &s->mm[m].page[vpn];
	uint32_t kind = p->kind;

	if (p->blocked || p->tracked)
		sim_violation(s, "mm %u page %u is left blocked", m, vpn);
	if (!(pte & PTE_PRESENT)) {
		if (kind != (uint32_t)(pte_is_plain(pte) ? KIND_PLAIN : KIND_NONE))
			sim_violation(s, "mm %u page %u: the entry says %s, the kernel's page is %s", m, vpn,
				      cover_state_name(COVER_ENTRY, entry_kind(pte)),
				      cover_state_name(COVER_PAGE, kind));
		return;
	}
	uint32_t head = way_back_check(s, m, vpn, pte_pfn(pte));
	uint32_t word = a32_load_relaxed(&s->arena->frames[head].word);
	if (word_state(word) == FRAME_DISCARDABLE ? kind != KIND_NONE : p->pfn != pte_pfn(pte))
		sim_violation(s, "mm %u page %u: the entry leads to frame %u, the kernel's page is %s at %u",
			      m, vpn, pte_pfn(pte), cover_state_name(COVER_PAGE, kind), p->pfn);
	uint32_t shared = (word & FRAME_HELD) ? KIND_PRIVATE : KIND_SHARED;
	if (word_state(word) == FRAME_MOVABLE && kind != shared &&
	    !(shared == KIND_PRIVATE && kind == KIND_COPIED))
		sim_violation(s, "mm %u page %u: the kernel's page is %s, the folio %sheld", m, vpn,
			      cover_state_name(COVER_PAGE, kind), (word & FRAME_HELD) ? "" : "not ");
	bool frozen = a32_load_relaxed(&s->arena->frames[head].ref) & REF_FROZEN;
	if (frozen != (word_state(word) == FRAME_DISCARDABLE))
		sim_violation(s, "mm %u page %u: the folio at %u is left %sfrozen", m, vpn, head,
			      frozen ? "" : "not ");
}

static void block_check(struct sim *s, uint32_t m, uint32_t block)
{
	const struct sublet_mm *mm = s->mm[m].mm;
	uint32_t end = min_u32((block + 1) * ENGINE_BLOCK_PAGES, mm->config.pages);

	for (uint32_t vpn = block * ENGINE_BLOCK_PAGES; vpn < end; vpn++) {
		uint32_t pte = a32_load_relaxed(&mm->pte[vpn]);
		if (pte || s->mm[m].page[vpn].kind)
			page_check(s, m, vpn, pte);
	}
}

static void list_check(struct sim *s, const struct sublet__zone *zone, uint32_t order, uint32_t *free_frames)
{
	const struct sublet_arena *arena = s->arena;
	uint32_t prev = ENGINE_NONE;

	for (uint32_t pfn = zone->head[order]; pfn != ENGINE_NONE;
	     pfn = a32_load_relaxed(&arena->frames[pfn].a)) {
		uint32_t word = pfn < s->frames ? a32_load_relaxed(&arena->frames[pfn].word) : 0;
		if (!(word & FRAME_HEAD) || word_state(word) != FRAME_FREE || word_order(word) != order ||
		    a32_load_relaxed(&arena->frames[pfn].b) != prev)
			sim_violation(s, "the list of free folios of order %u is broken at %u", order, pfn);
		*free_frames += 1u << order;
		prev = pfn;
		for (uint32_t i = pfn; i < pfn + (1u << order); i++) {
			if (s->owner[i] || s->child[i] || s->held[i])
				sim_violation(s, "frame %u is free, and in use (owner %x)", i, s->owner[i]);
			if ((word & FRAME_ZERO) && (s->word[i][0] || s->word[i][1]))
				sim_violation(s, "frame %u is said to be zero (G9)", i);
		}
	}
	if (zone->tail[order] != prev)
		sim_violation(s, "the list of free folios of order %u ends at %u, not %u", order, prev,
			      zone->tail[order]);
}

static void isolations_check(struct sim *s, const struct sublet__zone *zone)
{
	for (const struct sublet__isolation *i = zone->isolations; i; i = i->next) {
		uint32_t isolated = 0;
		for (uint32_t pfn = i->first_pfn; pfn < i->end_pfn; pfn++) {
			if (s->state[pfn] == FRAME_FREE)
				sim_violation(s, "frame %u is free, in the isolated window %u to %u", pfn,
					      i->first_pfn, i->end_pfn);
			isolated += s->state[pfn] == FRAME_ISOLATED;
		}
		if (isolated != i->isolated_frames)
			sim_violation(s, "%u frames of the window %u to %u are isolated, %u counted",
				      isolated, i->first_pfn, i->end_pfn, i->isolated_frames);
	}
}

static void zone_check(struct sim *s, uint32_t which)
{
	const struct sublet__zone *zone = &s->arena->zone[which];
	uint32_t listed = 0, counted = 0;

	for (uint32_t order = 0; order <= s->arena->pageblock_order; order++)
		list_check(s, zone, order, &listed);
	for (uint32_t pfn = zone->first_pfn; pfn < zone->first_pfn + zone->frames; pfn++) {
		uint32_t word = a32_load_relaxed(&s->arena->frames[pfn].word);
		if ((word & FRAME_HEAD) && word_state(word) == FRAME_FREE)
			counted += 1u << word_order(word);
	}
	if (listed != counted || listed != zone->free_frames)
		sim_violation(s, "zone %u: %u frames are free, %u listed, %u counted", which, counted, listed,
			      zone->free_frames);
	isolations_check(s, zone);
}

static void claims_check(struct sim *s)
{
	for (uint32_t i = 0; i < SIM_CLAIM_SLOTS; i++) {
		const struct sublet__claim_slot *slot = &s->arena->claim[i];
		if (!slot->id)
			continue;
		for (uint32_t pfn = slot->first_pfn; pfn < slot->first_pfn + slot->frames;) {
			uint32_t word = a32_load_relaxed(&s->arena->frames[pfn].word);
			if (!(word & FRAME_HEAD) || word_state(word) != FRAME_CLAIMED ||
			    a32_load_relaxed(&s->arena->frames[pfn].a) != i)
				sim_violation(s, "frame %u of claim %u is %s, of slot %u", pfn, i,
					      cover_state_name(COVER_FRAME, word_state(word)),
					      a32_load_relaxed(&s->arena->frames[pfn].a));
			pfn += 1u << word_order(word);
		}
	}
}

static void cached_check(struct sim *s, uint32_t which, uint32_t pfn)
{
	uint32_t word = a32_load_relaxed(&s->arena->frames[pfn].word);

	if (!(word & FRAME_HEAD) || word_state(word) != FRAME_CACHED)
		sim_violation(s, "cache %u has frame %u, which is %s", which, pfn,
			      cover_state_name(COVER_FRAME, word_state(word)));
}

static void cache_check(struct sim *s, uint32_t which)
{
	const struct sublet__cache *cache = &s->arena->cache[which];

	for (uint32_t i = 0; i < cache->count; i++)
		cached_check(s, which, cache->pfn[i]);
}

/* A folio that was just put into `top`: 1 + its first frame; 0 and ~0 are none. */
static void top_check(struct sim *s, uint32_t which, uint32_t top)
{
	if (top != 0 && top != UINT32_MAX)
		cached_check(s, which, top - 1);
}

static bool in_gap(const struct sublet__bo *bo, uint64_t at)
{
	for (uint32_t i = 0; i < bo->gaps; i++)
		if (at >= bo->gap[i].from && at < bo->gap[i].end)
			return true;
	return false;
}

/* A translation that is there leads to where the program's page is now, and nobody is moving it. */
static void translation_check(struct sim *s, const struct sim_device *d, const struct sublet__bo *bo,
			      uint64_t at)
{
	struct sublet_extent extent = { 0, 0 };
	uint32_t i = (uint32_t)(bo - d->device->bo), index = (uint32_t)(at >> s->frame_shift), m = 0;
	bool gap = d->has_iopt && in_gap(bo, at);

	if (d->has_iopt) {
		int err = sublet_iopt_translate(d->device->iopt, bo->iova + at, 0, &extent);
		if (!err == gap)
			sim_violation(s, "device %u buffer %u at %llu: a gap %s translation", d->index, i,
				      (unsigned long long)at,
				      gap ? "with a" : "is not listed, and there is no");
		if (gap)
			return;
	} else {
		extent.offset_bytes = (uint64_t)d->slot[i].frame[index] << s->frame_shift;
	}
	uint32_t pfn = (uint32_t)(extent.offset_bytes >> s->frame_shift);
	if (!bo->mm) {
		if (extent.offset_bytes != bo->base + at)
			sim_violation(s, "device %u buffer %u leads to frame %u, beside its claim", d->index,
				      i, pfn);
		return;
	}
	while (s->mm[m].mm != bo->mm)
		m++;
	uint32_t vpn = (uint32_t)((bo->base - s->mm[m].base) >> s->frame_shift) + index;
	const struct sim_page *p = &s->mm[m].page[vpn];
	/* Unlocked discardable memory keeps its frames, and what a device knows of them. */
	uint32_t pte = a32_load_relaxed(&bo->mm->pte[vpn]);
	bool unlocked = p->kind == KIND_NONE && (pte & PTE_PRESENT) && s->state[pfn] == FRAME_DISCARDABLE;
	if (unlocked ? pte_pfn(pte) != pfn
		     : p->kind != KIND_SHARED || p->pfn != pfn || p->blocked || p->tracked)
		sim_violation(
			s, "device %u buffer %u translates mm %u page %u to frame %u; it is %s at %u%s (G4)",
			d->index, i, m, vpn, pfn, cover_state_name(COVER_PAGE, p->kind), p->pfn,
			p->blocked || p->tracked ? ", on its way" : "");
}

/* A slot of the claim table that names no frames is being taken, or on its way out: by what it was before. */
static uint32_t claim_of(const struct sublet__claim_slot *slot, uint32_t was)
{
	if (!slot->id)
		return 0;
	return slot->frames ? 2 : was >= 2 ? 3 : 1;
}

/* For coverage; the claim table's lock was held just now. */
static void claims_look(struct sim *s)
{
	for (uint32_t i = 0; i < SIM_CLAIM_SLOTS; i++) {
		uint32_t was = s->claim_state[i], is = claim_of(&s->arena->claim[i], was);
		if (is != was)
			cover_transition(s, COVER_CLAIM, was, is);
		s->claim_state[i] = (uint8_t)is;
	}
}

static uint32_t notifier_of(const struct sublet__notifiers *n, uint32_t i)
{
	const struct sublet__notifier_node *node = notifier_node(n, i);

	if (a32_load_relaxed(&node->generation) & 1)
		return a32_load_relaxed(&node->active) ? 2 : 1;
	return a32_load_relaxed(&notifier_client(n, i)->busy) ? 3 : 0;
}

/* For coverage; the lock of the mm's notifiers was held just now. */
static void notifiers_look(struct sim *s, uint32_t m)
{
	const struct sublet__notifiers *n = &s->mm[m].mm->notifiers;

	for (uint32_t i = 1; i < n->nodes_used && i < SIM_NOTIFIERS; i++) {
		uint32_t was = s->notifier_state[m][i], is = notifier_of(n, i);
		if (is != was)
			cover_transition(s, COVER_NOTIFIER, was, is);
		s->notifier_state[m][i] = (uint8_t)is;
	}
}

static uint32_t device_of(const struct sublet_device *device)
{
	return device->is_closing     ? DEVICE_CLOSES
	       : device->is_resetting ? DEVICE_RESETS
	       : device->is_dead      ? DEVICE_DEAD
				      : DEVICE_WORKS;
}

static uint32_t bound_of(const struct sublet__bo *bo)
{
	return bo->lost ? 4 : bo->jobs ? 3 : !bo->is_bound ? 0 : bo->gaps ? 1 : 2;
}

/* For coverage; the device's lock is held, or was just now. */
static void device_look(struct sim *s, struct sim_device *d)
{
	uint32_t device = device_of(d->device);

	if (device != d->state)
		cover_transition(s, COVER_DEVICE, d->state, device);
	d->state = (uint8_t)device;
	for (uint32_t i = 0; i < SIM_BOS_MAX; i++) {
		const struct sublet__bo *bo = &d->device->bo[i];
		uint32_t bound = bound_of(bo);
		if (bo->state != d->bo_state[i])
			cover_transition(s, COVER_BO, d->bo_state[i], bo->state);
		if (bound != d->bo_bound[i])
			cover_transition(s, COVER_BOUND, d->bo_bound[i], bound);
		d->bo_state[i] = (uint8_t)bo->state;
		d->bo_bound[i] = (uint8_t)bound;
	}
	for (uint32_t i = 0; i < sizeof d->job_state; i++) {
		uint32_t state = d->device->job[i].state;
		if (state != d->job_state[i]) {
			cover_transition(s, COVER_JOB, d->job_state[i], state);
			sim_trace(s, "job %llu of device %llu: %s -> %s", i, d->index,
				  (uintptr_t)cover_state_name(COVER_JOB, d->job_state[i]),
				  (uintptr_t)cover_state_name(COVER_JOB, state));
		}
		d->job_state[i] = (uint8_t)state;
	}
}

static void device_check(struct sim *s, struct sim_device *d)
{
	for (uint32_t i = 0; i < SIM_BOS_MAX; i++) {
		const struct sublet__bo *bo = &d->device->bo[i];
		if (bo->state == BO_FREE || !bo->is_bound)
			continue;
		for (uint64_t at = 0; at < bo->span; at += (uint64_t)1 << s->frame_shift)
			translation_check(s, d, bo, at);
	}
}

static void lock_dropped(struct sim *s)
{
	switch (s->touch) {
	case TOUCH_BLOCK_LOCK:
		block_check(s, s->touch_at >> 16, s->touch_at & 0xffff);
		break;
	case TOUCH_ZONE_LOCK:
		zone_check(s, s->touch_at);
		break;
	case TOUCH_CLAIM_LOCK:
		claims_look(s);
		claims_check(s);
		break;
	case TOUCH_CACHE_LOCK:
		cache_check(s, s->touch_at);
		break;
	case TOUCH_NOTIFIERS:
		notifiers_look(s, s->touch_at);
		break;
	case TOUCH_DEVICE_LOCK:
		device_look(s, &s->device[s->touch_at]);
		device_check(s, &s->device[s->touch_at]);
		break;
	default:
		break;
	}
}

static void touched_check(struct sim *s)
{
	uint32_t touch = s->touch, at = s->touch_at;

	for (uint32_t i = 0; i < SIM_DEVICES_MAX; i++)
		if (s->device[i].device && a32_load_relaxed(&s->device[i].device->lock.word))
			device_look(s, &s->device[i]);
	if (touch == TOUCH_NOTHING)
		return;
	uint32_t now = *(const volatile uint32_t *)s->touch_word, old = s->touch_old;
	if (now != old) {
		if (touch == TOUCH_WORD)
			word_check(s, at, now);
		else if (touch == TOUCH_REF)
			ref_check(s, at, now, old);
		else if (touch == TOUCH_ENTRY)
			entry_check(s, at >> 16, at & 0xffff, now, old);
		else if (touch == TOUCH_COUNTS)
			counts_check(s, at);
		else if (touch == TOUCH_RECORD)
			cover_transition(s, COVER_PIN, old & 3, now & 3);
		else if (touch == TOUCH_CACHE_TOP)
			top_check(s, at, now);
		else if (!now)
			lock_dropped(s);
	}
	s->touch = TOUCH_NOTHING;
}

void check_touched(struct sim *s)
{
	s->is_quiet = true;
	touched_check(s);
	s->is_quiet = false;
}

void check_guarded(struct sim *s)
{
	for (uint32_t m = 0; m < s->mms; m++)
		for (uint32_t i = 0; i < s->mm[m].mm->blocks; i++)
			block_check(s, m, i);
	for (uint32_t i = 0; i < ZONES; i++)
		zone_check(s, i);
	claims_check(s);
}
