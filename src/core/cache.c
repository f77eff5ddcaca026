/* SPDX-License-Identifier: MIT */
/*
 * Per-thread caches of folios of unit order (64 KiB), the size that allocators take and give most.
 *
 * A cache is one line: a single folio in `top`, put and taken by one atomic step each, and behind it a stack with a lock
 * of its own, uncontended but for threads that share a slot and for a claim that recalls. Cached folios are the "hidden
 * references" that make the kernel's claims fail for no reason; here they cannot hide, because of this order (R1):
 *
 *   claim                                     thread that frees
 *   -----                                     -----------------
 *   pageblock.isolated++   (zone lock)        top: 0 -> folio           or: lock its cache
 *   for each cache:                                                     isolated?  yes: to the zone instead
 *     exchange top for SHUT,                                            no: put into the stack
 *     lock, take out what is in the window,                             unlock
 *     unlock
 *
 * If the thread's step comes first, the recall finds the folio; if it comes second, `top` is shut, and the lock has made
 * `isolated` visible to it. No third order exists. What was shut opens when the last isolation ends.
 */
#include "core/engine.h"

/* Kept out of the short ways through here, which are some twenty instructions and must not save registers for these. */
#define COLD __attribute__((noinline))

#define TOP_SHUT    UINT32_MAX /* no pfn + 1 */
#define CACHE_BATCH (ENGINE_CACHE_FOLIOS / 2)

static struct sublet__cache *cache_of(struct sublet_arena *arena)
{
	const struct sublet__platform *p = &arena->platform;
	return &arena->cache[p->ops->thread_slot(p->ctx) % ENGINE_CACHES];
}

/* Empty, lock held: a batch from the zone. */
static void stack_refill(struct sublet_arena *arena, struct sublet__cache *cache)
{
	uint32_t batch[CACHE_BATCH];

	cache->count = sublet__zone_take_batch(arena, arena->unit_order, batch, CACHE_BATCH);
	for (uint32_t i = 0; i < cache->count; i++) {
		/* turned round: they go out in ascending order, and neighbours share a kernel mapping */
		uint32_t pfn = batch[cache->count - 1 - i];
		struct sublet__frame *f = &arena->frames[pfn];
		uint32_t zero = a32_load_relaxed(&f->word) & FRAME_ZERO;
		cache->pfn[i] = pfn;
		a32_store_release(&f->word, frame_word(FRAME_CACHED, arena->unit_order, zero));
	}
}

COLD static uint32_t stack_take(struct sublet_arena *arena, struct sublet__cache *cache)
{
	uint32_t pfn = ENGINE_NONE;

	spin_take(&arena->platform, &cache->lock);
	if (cache->count == 0)
		stack_refill(arena, cache);
	if (cache->count) {
		pfn = cache->pfn[--cache->count];
		struct sublet__frame *f = &arena->frames[pfn];
		uint32_t zero = a32_load_relaxed(&f->word) & FRAME_ZERO;
		a32_store_release(&f->word, frame_word(FRAME_BUSY, arena->unit_order, zero));
	}
	spin_drop(&cache->lock);
	return pfn;
}

uint32_t sublet__cache_take(struct sublet_arena *arena)
{
	struct sublet__cache *cache = cache_of(arena);
	uint32_t top = a32_load_relaxed(&cache->top);

	/* Pairs with top_put. Never known to be zero: what was put was in use. */
	if (top == 0 || top == TOP_SHUT || !a32_cas_acq_rel(&cache->top, &top, 0))
		return stack_take(arena, cache);
	a32_store_release(&arena->frames[top - 1].word, frame_word(FRAME_BUSY, arena->unit_order, 0));
	return top - 1;
}

/* CACHED folios back to the lists of the zone. */
static void cache_flush(struct sublet_arena *arena, const uint32_t *pfn, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++)
		sublet__folios_free(arena, pfn[i], unit_pages(arena), ACCOUNT_MOVABLE);
}

/* One folio again, whatever it was cut into. */
static void heads_to_unit(struct sublet_arena *arena, uint32_t pfn)
{
	if (word_order(a32_load_relaxed(&arena->frames[pfn].word)) != arena->unit_order)
		for (uint32_t i = 1; i < unit_pages(arena); i++)
			a32_store_relaxed(&arena->frames[pfn + i].word, 0);
	a32_store_relaxed(&arena->frames[pfn].ref, REF_FROZEN);
	a32_store_release(&arena->frames[pfn].word, frame_word(FRAME_CACHED, arena->unit_order, 0));
}

static bool top_put(struct sublet_arena *arena, struct sublet__cache *cache, uint32_t pfn)
{
	uint32_t none = 0;

	if (a32_load_relaxed(&cache->top))
		return false;
	heads_to_unit(arena, pfn);
	/* pairs with sublet__cache_take, and with the recall (R1) */
	return a32_cas_acq_rel(&cache->top, &none, pfn + 1);
}

COLD static bool stack_put(struct sublet_arena *arena, struct sublet__cache *cache, uint32_t pfn)
{
	spin_take(&arena->platform, &cache->lock);
	/* acquire by the cache lock; pairs with pageblocks_isolated (R1) */
	if (a32_load_relaxed(&pageblock_of(arena, pfn)->isolated)) {
		spin_drop(&cache->lock);
		return false;
	}
	if (cache->count == ENGINE_CACHE_FOLIOS) {
		cache_flush(arena, cache->pfn, CACHE_BATCH);
		cache->count -= CACHE_BATCH;
		for (uint32_t i = 0; i < cache->count; i++)
			cache->pfn[i] = cache->pfn[i + CACHE_BATCH];
	}
	heads_to_unit(arena, pfn);
	cache->pfn[cache->count++] = pfn;
	spin_drop(&cache->lock);
	return true;
}

bool sublet__cache_put(struct sublet_arena *arena, uint32_t pfn)
{
	struct sublet__cache *cache = cache_of(arena);

	return top_put(arena, cache, pfn) || stack_put(arena, cache, pfn);
}

uint32_t sublet__cache_frames(struct sublet_arena *arena)
{
	uint32_t folios = 0;

	for (uint32_t c = 0; c < ENGINE_CACHES; c++) {
		uint32_t top = a32_load_relaxed(&arena->cache[c].top);
		spin_take(&arena->platform, &arena->cache[c].lock);
		folios += arena->cache[c].count + (top != 0 && top != TOP_SHUT);
		spin_drop(&arena->cache[c].lock);
	}
	return folios << arena->unit_order;
}

static void top_flush(struct sublet_arena *arena, uint32_t top)
{
	uint32_t pfn = top - 1;

	if (top != 0 && top != TOP_SHUT)
		cache_flush(arena, &pfn, 1);
}

static void stack_recall(struct sublet_arena *arena, struct sublet__cache *cache, uint32_t first_pfn,
			 uint32_t end_pfn)
{
	spin_take(&arena->platform, &cache->lock);
	for (uint32_t i = 0; i < cache->count;) {
		uint32_t pfn = cache->pfn[i];
		if (pfn < end_pfn && pfn + unit_pages(arena) > first_pfn) {
			cache->pfn[i] = cache->pfn[--cache->count];
			cache_flush(arena, &pfn, 1);
		} else {
			i++;
		}
	}
	spin_drop(&cache->lock);
}

void sublet__cache_recall(struct sublet_arena *arena, uint32_t first_pfn, uint32_t end_pfn)
{
	for (uint32_t c = 0; c < ENGINE_CACHES; c++) {
		/* pairs with top_put (R1) */
		uint32_t top = a32_exchange_acq_rel(&arena->cache[c].top, TOP_SHUT);
		top_flush(arena, top);
		stack_recall(arena, &arena->cache[c], first_pfn, end_pfn);
	}
}

void sublet__cache_drain(struct sublet_arena *arena)
{
	for (uint32_t c = 0; c < ENGINE_CACHES; c++) {
		uint32_t top = a32_load_relaxed(&arena->cache[c].top);
		if (top != 0 && top != TOP_SHUT && a32_cas_acq_rel(&arena->cache[c].top, &top, 0))
			top_flush(arena, top);
		stack_recall(arena, &arena->cache[c], 0, arena->frames_total);
	}
}

void sublet__cache_open(struct sublet_arena *arena)
{
	for (uint32_t c = 0; c < ENGINE_CACHES; c++) {
		uint32_t shut = TOP_SHUT;
		(void)a32_cas_acq_rel(&arena->cache[c].top, &shut, 0);
	}
}
