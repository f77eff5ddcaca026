/* SPDX-License-Identifier: MIT */
/*
 * Birth and death of an engine, and of its address spaces; what the layers above tell it.
 *
 * All metadata is one reservation of the platform, laid out here; memory that is never touched
 * costs nothing. Nothing is allocated after creation.
 */
#include "core/call.h"

#include <errno.h>
#include <string.h>

static const uint32_t always_here = 1;

static size_t align_up(size_t n, size_t to)
{
	return (n + to - 1) / to * to;
}

/* Lay out parts one after the other; with base NULL only their size is wanted. */
static void *lay(char *base, size_t *at, size_t bytes)
{
	void *part = base ? base + *at : NULL;
	*at += align_up(bytes, 64);
	return part;
}

static size_t arena_lay(struct sublet_arena *arena, char *base)
{
	uint32_t pageblocks = arena->frames_total >> arena->pageblock_order;
	uint32_t area_blocks = arena->zone[ZONE_AREA].frames >> arena->pageblock_order;
	size_t at = align_up(sizeof *arena, 64), words;

	arena->frames = lay(base, &at, (size_t)arena->frames_total * sizeof *arena->frames);
	arena->pageblocks = lay(base, &at, (size_t)pageblocks * sizeof *arena->pageblocks);
	arena->pins = lay(base, &at, (size_t)arena->pins_max * sizeof *arena->pins);
	arena->claim = lay(base, &at, ENGINE_CLAIMS_MAX * sizeof *arena->claim);
	arena->tree_leaves = sublet__window_leaves(area_blocks);
	words = ((size_t)arena->tree_leaves + 63) / 64;
	arena->tree_sum = lay(base, &at, 2 * sizeof *arena->tree_sum * (size_t)arena->tree_leaves);
	arena->tree_min = lay(base, &at, 2 * sizeof *arena->tree_min * (size_t)arena->tree_leaves);
	arena->dirty = lay(base, &at, words * sizeof *arena->dirty);
	arena->dirty_top = lay(base, &at, (words + 63) / 64 * sizeof *arena->dirty_top);
	return at;
}

int sublet__arena_init(const struct sublet__arena_config *config, struct sublet_arena **out)
{
	const struct sublet__platform *p = &config->platform;
	uint32_t pageblock_order = p->frame_shift < 21 ? 21 - p->frame_shift : 0;
	uint32_t block_mask = (1u << pageblock_order) - 1;
	uint64_t total = (uint64_t)config->area_frames + config->normal_frames;
	struct sublet_arena plan = { 0 };

	if (!config->area_frames || total >= ENGINE_PFN_MAX || (config->area_frames & block_mask) ||
	    (config->normal_frames & block_mask) || !p->run_pages_max ||
	    p->run_pages_max > ENGINE_BLOCK_PAGES || (p->run_pages_max & (p->run_pages_max - 1)))
		return -EINVAL;
	plan.platform = *p;
	plan.frames_total = (uint32_t)total;
	plan.pageblock_order = pageblock_order;
	plan.unit_order = p->frame_shift < 16 ? 16 - p->frame_shift : 0;
	plan.order_max = min_u32(pageblock_order, log2_floor(p->run_pages_max));
	plan.unit_order = min_u32(plan.unit_order, plan.order_max);
	plan.linear = config->linear;
	plan.pins_max = sublet__pins_max(plan.frames_total);
	plan.zone[ZONE_AREA].frames = config->area_frames;
	plan.metadata_bytes = arena_lay(&plan, NULL);

	char *memory = p->ops->reserve(p->ctx, plan.metadata_bytes);
	if (!memory)
		return -ENOMEM;
	struct sublet_arena *arena = (struct sublet_arena *)(void *)memory;
	memcpy(arena, &plan, sizeof plan);
	arena_lay(arena, memory);
	arena->here = p->here ? p->here : &always_here;
	arena->zone[ZONE_NORMAL].first_pfn = config->area_frames; /* before zone_init: zone_of looks at it */
	sublet__zone_init(arena, ZONE_AREA, 0, config->area_frames, config->zeroed);
	sublet__zone_init(arena, ZONE_NORMAL, config->area_frames, config->normal_frames, config->zeroed);
	sublet__window_init(arena);
	/* So that no two arenas of a process have claims of the same id: they lie many pages apart. */
	arena->claim_generation = (uint64_t)(uintptr_t)arena >> 12 << ENGINE_CLAIMS_SHIFT;
	*out = arena;
	return 0;
}

static size_t mm_lay(struct sublet_mm *mm, char *base)
{
	size_t at = align_up(sizeof *mm, 64);

	mm->pte = lay(base, &at, (size_t)mm->config.pages * sizeof *mm->pte);
	mm->block = lay(base, &at, (size_t)mm->blocks * sizeof *mm->block);
	mm->block_mappings = lay(base, &at, (size_t)mm->blocks * sizeof *mm->block_mappings);
	mm->va_used = lay(base, &at, ((size_t)mm->va_units + 63) / 64 * sizeof *mm->va_used);
	mm->va_first = lay(base, &at, ((size_t)mm->va_units + 63) / 64 * sizeof *mm->va_first);
	return at;
}

int sublet__arena_call(const struct sublet_arena *arena)
{
	return call_arena(arena);
}

/* A claim of this process, that no device which cannot be stopped has for good. */
static bool claims_any(struct sublet_arena *arena)
{
	bool any = false;

	engine_lock(arena, &arena->claim_lock);
	for (uint32_t i = 0; i < ENGINE_CLAIMS_MAX && !any; i++) {
		const struct sublet__claim_slot *slot = &arena->claim[i];
		any = slot->id && !slot->is_guests &&
		      !(slot->users && a32_load_relaxed(&arena->devices_lost));
	}
	engine_unlock(arena, &arena->claim_lock);
	return any;
}

int sublet__arena_busy(struct sublet_arena *arena)
{
	bool any = a32_load_relaxed(&arena->iopts);

	engine_lock(arena, &arena->device_lock);
	for (uint32_t i = 0; i < ENGINE_DEVICES_MAX; i++)
		any |= arena->device[i] != NULL;
	engine_unlock(arena, &arena->device_lock);
	any = any || claims_any(arena);
	/* What was closed and could not be stopped may have pins for good. */
	any = any || (!a32_load_relaxed(&arena->devices_lost) && sublet__pins_any(arena));
	return any ? -EBUSY : 0;
}

void sublet__arena_exit(struct sublet_arena *arena)
{
	for (uint32_t i = 0; i < a32_load_acquire(&arena->mm_count); i++)
		sublet__notifiers_exit(arena->mm[i]);
}

void sublet__arena_fini(struct sublet_arena *arena)
{
	struct sublet__platform p = arena->platform;

	sublet__arena_exit(arena);
	for (uint32_t i = 0; i < a32_load_acquire(&arena->mm_count); i++) {
		sublet__notifier_memory_free(arena->mm[i]);
		struct sublet_mm plan = *arena->mm[i];
		p.ops->unreserve(p.ctx, arena->mm[i], mm_lay(&plan, NULL));
	}
	p.ops->unreserve(p.ctx, arena, arena->metadata_bytes);
}

uint64_t sublet__arena_metadata_bytes(const struct sublet_arena *arena)
{
	uint64_t bytes = arena->metadata_bytes;

	/* Of a page table only as much is touched as there are frames to map. */
	for (uint32_t i = 0; i < a32_load_acquire(&arena->mm_count); i++)
		bytes += sizeof(struct sublet_mm) + (uint64_t)arena->frames_total * sizeof(sublet__a32);
	return bytes;
}

void sublet__arena_set_owner(struct sublet_arena *arena, void *owner)
{
	arena->owner = owner;
}

void *sublet__arena_owner(struct sublet_arena *arena)
{
	return arena->owner;
}

int sublet__mm_create(struct sublet_arena *arena, const struct sublet__mm_config *config,
		      struct sublet_mm **out)
{
	const struct sublet__platform *p = &arena->platform;
	struct sublet_mm plan = { .arena = arena, .config = *config, .parked = ENGINE_NONE };
	int err = 0;

	if (!config->pages || config->base % (2 * SUBLET_MIB))
		return -EINVAL;
	plan.blocks = (config->pages + ENGINE_BLOCK_PAGES - 1) / ENGINE_BLOCK_PAGES;
	plan.va_units = config->pages >> arena->unit_order;
	plan.notifiers.nodes_used = NOTIFIER_NONE + 1;
	size_t bytes = mm_lay(&plan, NULL);
	char *memory = p->ops->reserve(p->ctx, bytes);
	if (!memory)
		return -ENOMEM;
	struct sublet_mm *mm = (struct sublet_mm *)(void *)memory;
	memcpy(mm, &plan, sizeof plan);
	mm_lay(mm, memory);
	mm->here = arena->here;
	a64_store_relaxed(&mm->longterm_limit_pages, arena->zone[ZONE_NORMAL].frames / 2);

	engine_lock(arena, &arena->mm_lock);
	mm->index = a32_load_relaxed(&arena->mm_count);
	if (mm->index == ENGINE_MMS_MAX) {
		err = -ENOMEM;
	} else {
		arena->mm[mm->index] = mm;
		if (config->features & SUBLET__MM_STAYS)
			a32_store_relaxed(&arena->stays,
					  1); /* nothing is mapped yet that a claim could meet */
		a32_store_release(&arena->mm_count, mm->index + 1); /* pairs with folio_lock_block */
	}
	engine_unlock(arena, &arena->mm_lock);
	if (err)
		p->ops->unreserve(p->ctx, memory, bytes);
	else
		*out = mm;
	return err;
}

struct sublet_mm *sublet__arena_mm(struct sublet_arena *arena, uint32_t index)
{
	return index < a32_load_acquire(&arena->mm_count) ? arena->mm[index] : NULL;
}

struct sublet_arena *sublet__mm_arena(struct sublet_mm *mm)
{
	return mm->arena;
}

void sublet__arena_note_outside(struct sublet_arena *arena, uint64_t bytes)
{
	a64_add_relaxed(&arena->outside_bytes, bytes);
}

/* ---- what the program does to its own memory ---- */

/* The part of [addr, addr + bytes) that lies in the window, as pages; false: none. */
static bool window_part(const struct sublet_mm *mm, const void *addr, uint64_t bytes, uint32_t *vpn,
			uint32_t *pages)
{
	uint64_t start = (uint64_t)(uintptr_t)addr,
		 end = bytes > UINT64_MAX - start ? UINT64_MAX : start + bytes;
	uint64_t low = mm->config.base;
	uint64_t high = low + ((uint64_t)mm->config.pages << frames_bytes_shift(mm->arena));

	start = start > low ? start : low;
	end = end < high ? end : high;
	return start < end && !sublet__mm_range(mm, (void *)(uintptr_t)start, end - start, vpn, pages);
}

void sublet__mm_note_locked(struct sublet_mm *mm, const void *addr, uint64_t bytes, bool locked)
{
	uint32_t vpn, pages;

	if (!window_part(mm, addr, bytes, &vpn, &pages))
		return;
	for_each_block(at, count, vpn, vpn + pages) {
		engine_lock(mm->arena, block_lock_of(mm, at));
		for (uint32_t i = at; i < at + count; i++) {
			uint32_t pte = a32_load_relaxed(&mm->pte[i]);
			if (pte & PTE_PRESENT)
				a32_store_release(&mm->pte[i], locked ? pte | PTE_LOCKED : pte & ~PTE_LOCKED);
		}
		sublet__mm_mappings_recount(mm, at / ENGINE_BLOCK_PAGES);
		engine_unlock(mm->arena, block_lock_of(mm, at));
	}
}

/*
 * A folio is protected while one of its pages is: one page that is unprotected does not free its
 * neighbours. True: the folio may move again, but a fork made it private.
 */
static bool folio_protect(struct sublet_mm *mm, uint32_t head)
{
	struct sublet__frame *f = &mm->arena->frames[head];
	uint32_t word = a32_load_relaxed(&f->word), pages = 1u << word_order(word);
	bool now = sublet__mm_flagged(mm, a32_load_relaxed(&f->a), pages, PTE_PROTECTED);
	uint32_t next = now ? word | FRAME_PROTECTED : word & ~FRAME_PROTECTED;

	if (next == word)
		return false;
	a32_store_release(&f->word, next);
	sublet__account(mm->arena, head, pages, mapped_account(word), mapped_account(next));
	return !now && (word & FRAME_HELD);
}

bool sublet__mm_note_protected(struct sublet_mm *mm, const void *addr, uint64_t bytes, bool is_protected)
{
	uint32_t vpn, pages;
	bool again = false, had = is_protected, any = false;

	if (!window_part(mm, addr, bytes, &vpn, &pages))
		return false;
	struct sublet__invalidation told;
	(void)sublet__invalidate_begin(mm, &told, vpn, pages, SUBLET_NOTIFIER_PROTECT, true);
	for_each_block(at, count, vpn, vpn + pages) {
		engine_lock(mm->arena, block_lock_of(mm, at));
		for (uint32_t i = at; i < at + count; i++) {
			uint32_t pte = a32_load_relaxed(&mm->pte[i]);
			if (!(pte & PTE_PRESENT))
				continue;
			any = true;
			had &= (pte & PTE_PROTECTED) != 0;
			a32_store_release(&mm->pte[i],
					  is_protected ? pte | PTE_PROTECTED : pte & ~PTE_PROTECTED);
		}
		for (uint32_t i = at; i < at + count;) {
			uint32_t pte = a32_load_relaxed(&mm->pte[i]), step = 1;
			if (pte & PTE_PRESENT) {
				uint32_t head = sublet__frame_head(mm->arena, pte_pfn(pte));
				again |= folio_protect(mm, head);
				step = head +
				       (1u << word_order(a32_load_relaxed(&mm->arena->frames[head].word))) -
				       pte_pfn(pte);
			}
			i += step;
		}
		sublet__mm_mappings_recount(mm, at / ENGINE_BLOCK_PAGES);
		engine_unlock(mm->arena, block_lock_of(mm, at));
	}
	sublet__invalidate_end(mm, &told);
	if (again)
		a32_store_seq_cst(&mm->fork_held, 1); /* something to restore, for the next fork_restore */
	return again || (any && had);
}
