/* SPDX-License-Identifier: MIT */
/*
 * The buddy allocator of one zone, and the isolation of windows.
 *
 * Free memory stands in lists by order, linked through the frames themselves. A list has known-zero
 * folios at its head and the others at its tail, so that whoever needs zeros finds them first.
 *
 * Isolation is how a claim empties a window without stopping the world: the window is listed in the
 * zone, its free folios leave the lists at once, and whatever is freed inside it later becomes
 * ISOLATED instead of free. Nothing can be handed out of it any more, so the number of frames that
 * are not yet isolated only falls. The caches of core/cache.c are the one place where free memory
 * hides from the lists; sublet__isolate leaves them to sublet__cache_recall, which must follow.
 *
 * Everything that a pageblock counts changes by one addition to one word (sublet__account), so
 * the counts of a block add up to its frames at every instant.
 */
#include "core/engine.h"

#define ORDER_TOP(arena) ((arena)->pageblock_order)
#define ZERO_WAIT_NS     (20 * SUBLET_US) /* zeroing 2 MiB takes about three of them */
#define ZERO_WAITS_MAX   500u

/* Units of several frames are cached. Frames of 2 MiB are not: a few in each cache would be an area's worth. */
static bool cache_holds(const struct sublet_arena *arena, uint32_t frames)
{
	return arena->unit_order && frames == unit_pages(arena);
}

/* ---- accounting ---- */

void sublet__account(struct sublet_arena *arena, uint32_t pfn, uint32_t frames, enum sublet__account from,
		     enum sublet__account to)
{
	while (frames && from != to) {
		uint32_t block_frames = 1u << arena->pageblock_order;
		uint32_t part = min_u32(frames, block_frames - pfn % block_frames);
		struct sublet__pageblock *pb = pageblock_of(arena, pfn);
		uint64_t delta =
			((uint64_t)part << (to * ACCOUNT_BITS)) - ((uint64_t)part << (from * ACCOUNT_BITS));

		/* seq_cst, with the load in sublet__window_touch: either that sees the block clean and
		   marks it dirty, or the chooser, which cleaned it, sees this addition */
		a64_add_seq_cst(&pb->counts, delta);
		if (pfn < arena->zone[ZONE_NORMAL].first_pfn)
			sublet__window_touch(arena, pfn >> arena->pageblock_order);
		pfn += part;
		frames -= part;
	}
}

uint32_t sublet__account_get(const struct sublet__pageblock *pb, enum sublet__account what)
{
	return (uint32_t)(a64_load_relaxed(&pb->counts) >> (what * ACCOUNT_BITS)) &
	       ((1u << ACCOUNT_BITS) - 1);
}

/* ---- free lists; zone lock held ---- */

static void list_add(struct sublet_arena *arena, struct sublet__zone *zone, uint32_t pfn, uint32_t order,
		     uint32_t zero)
{
	struct sublet__frame *f = &arena->frames[pfn];
	uint32_t next = zero ? zone->head[order] : ENGINE_NONE;
	uint32_t prev = zero ? ENGINE_NONE : zone->tail[order];

	a32_store_relaxed(&f->ref, REF_FROZEN);
	a32_store_relaxed(&f->a, next);
	a32_store_relaxed(&f->b, prev);
	a32_store_release(&f->word, frame_word(FRAME_FREE, order, zero));
	if (next != ENGINE_NONE)
		a32_store_relaxed(&arena->frames[next].b, pfn);
	else
		zone->tail[order] = pfn;
	if (prev != ENGINE_NONE)
		a32_store_relaxed(&arena->frames[prev].a, pfn);
	else
		zone->head[order] = pfn;
	zone->free_frames += 1u << order;
}

static void list_del(struct sublet_arena *arena, struct sublet__zone *zone, uint32_t pfn, uint32_t order)
{
	struct sublet__frame *f = &arena->frames[pfn];
	uint32_t next = a32_load_relaxed(&f->a), prev = a32_load_relaxed(&f->b);

	if (next != ENGINE_NONE)
		a32_store_relaxed(&arena->frames[next].b, prev);
	else
		zone->tail[order] = prev;
	if (prev != ENGINE_NONE)
		a32_store_relaxed(&arena->frames[prev].a, next);
	else
		zone->head[order] = next;
	zone->free_frames -= 1u << order;
}

static bool is_free_head(const struct sublet_arena *arena, uint32_t pfn, uint32_t order)
{
	uint32_t word = a32_load_relaxed(&arena->frames[pfn].word);
	return (word & FRAME_HEAD) && word_state(word) == FRAME_FREE && word_order(word) == order;
}

/* Insert a folio and merge it with its free buddies. */
static void buddy_insert(struct sublet_arena *arena, struct sublet__zone *zone, uint32_t pfn, uint32_t order,
			 uint32_t zero)
{
	while (order < ORDER_TOP(arena)) {
		uint32_t buddy = pfn ^ (1u << order);
		if (!is_free_head(arena, buddy, order))
			break;
		zero &= a32_load_relaxed(&arena->frames[buddy].word);
		list_del(arena, zone, buddy, order);
		a32_store_relaxed(&arena->frames[max_u32(pfn, buddy)].word, 0);
		pfn = min_u32(pfn, buddy);
		order++;
	}
	list_add(arena, zone, pfn, order, zero & FRAME_ZERO);
}

/* zero_first: for somebody who wants zeros; else from the other end, so that those are kept. */
static uint32_t zone_take_locked(struct sublet_arena *arena, struct sublet__zone *zone, uint32_t order,
				 bool zero_first)
{
	uint32_t from = order;
	while (from <= ORDER_TOP(arena) && zone->head[from] == ENGINE_NONE)
		from++;
	if (from > ORDER_TOP(arena))
		return ENGINE_NONE;

	uint32_t pfn = zero_first ? zone->head[from] : zone->tail[from];
	uint32_t zero = a32_load_relaxed(&arena->frames[pfn].word) & FRAME_ZERO;
	list_del(arena, zone, pfn, from);
	while (from > order) {
		from--;
		list_add(arena, zone, pfn + (1u << from), from, zero);
	}
	/* release: a walker that sees BUSY must not see the links as anything else */
	a32_store_release(&arena->frames[pfn].word, frame_word(FRAME_BUSY, order, zero));
	return pfn;
}

/* ---- taking ---- */

void sublet__zone_init(struct sublet_arena *arena, uint32_t which, uint32_t first_pfn, uint32_t frames,
		       bool zeroed)
{
	struct sublet__zone *zone = &arena->zone[which];
	uint32_t block_frames = 1u << arena->pageblock_order;

	zone->first_pfn = first_pfn;
	zone->frames = frames;
	for (uint32_t order = 0; order <= ENGINE_ORDER_MAX; order++)
		zone->head[order] = zone->tail[order] = ENGINE_NONE;
	for (uint32_t pfn = first_pfn; pfn < first_pfn + frames; pfn += block_frames) {
		uint64_t all_free = (uint64_t)block_frames << (ACCOUNT_FREE * ACCOUNT_BITS);
		a64_add_relaxed(&pageblock_of(arena, pfn)->counts, all_free);
		list_add(arena, zone, pfn, arena->pageblock_order, zeroed ? FRAME_ZERO : 0);
	}
}

uint32_t sublet__zone_take_batch(struct sublet_arena *arena, uint32_t order, uint32_t *pfn, uint32_t count)
{
	struct sublet__zone *zone = &arena->zone[ZONE_AREA];
	uint32_t taken = 0;

	engine_lock(arena, &zone->lock);
	while (taken < count && (pfn[taken] = zone_take_locked(arena, zone, order, true)) != ENGINE_NONE)
		taken++;
	engine_unlock(arena, &zone->lock);
	for (uint32_t i = 0; i < taken; i++)
		sublet__account(arena, pfn[i], 1u << order, ACCOUNT_FREE, ACCOUNT_MOVABLE);
	return taken;
}

static uint32_t folio_take_once(struct sublet_arena *arena, uint32_t order, const uint32_t zones[ZONES],
				bool zero_first)
{
	uint32_t pfn = ENGINE_NONE;

	for (uint32_t i = 0; i < ZONES && pfn == ENGINE_NONE; i++) {
		struct sublet__zone *zone = &arena->zone[zones[i]];
		if (zones[i] == ZONE_AREA && cache_holds(arena, 1u << order))
			pfn = sublet__cache_take(arena);
		if (pfn != ENGINE_NONE)
			break;
		engine_lock(arena, &zone->lock);
		pfn = zone_take_locked(arena, zone, order, zero_first);
		engine_unlock(arena, &zone->lock);
		if (pfn != ENGINE_NONE) /* a cached folio is accounted MOVABLE already */
			sublet__account(arena, pfn, 1u << order, ACCOUNT_FREE, ACCOUNT_MOVABLE);
	}
	return pfn;
}

/* Out of line: what allocators ask for goes by the shortest way. */
__attribute__((noinline)) static uint32_t folio_take_slowly(struct sublet_arena *arena, uint32_t order,
							    const uint32_t zones[ZONES], bool zero_first)
{
	uint32_t pfn = folio_take_once(arena, order, zones, zero_first);

	/* The last free memory may lie in the caches of other threads. */
	if (pfn == ENGINE_NONE && (order == arena->unit_order || order == 0)) {
		sublet__cache_drain(arena);
		pfn = folio_take_once(arena, order, zones, zero_first);
	}
	/* Or in the hand that zeroes it: not for long, but that thread may have been preempted. */
	const struct sublet__platform *p = &arena->platform;
	for (uint32_t i = 0; pfn == ENGINE_NONE && order == 0 && i < ZERO_WAITS_MAX; i++) {
		if (!a32_load_seq_cst(&arena->zeroing)) /* it came back just now, or never left */
			return folio_take_once(arena, order, zones, zero_first);
		p->ops->sleep_ns(p->ctx, ZERO_WAIT_NS);
		pfn = folio_take_once(arena, order, zones, zero_first);
	}
	return pfn;
}

static inline uint32_t folio_take(struct sublet_arena *arena, uint32_t order, const uint32_t zones[ZONES],
				  bool zero_first)
{
	uint32_t pfn = ENGINE_NONE;

	if (zones[0] == ZONE_AREA && cache_holds(arena, 1u << order))
		pfn = sublet__cache_take(arena);
	return pfn != ENGINE_NONE ? pfn : folio_take_slowly(arena, order, zones, zero_first);
}

uint32_t sublet__folio_take(struct sublet_arena *arena, uint32_t order, const uint32_t zones[ZONES])
{
	return folio_take(arena, order, zones, true);
}

uint32_t sublet__folio_take_any(struct sublet_arena *arena, uint32_t order, const uint32_t zones[ZONES])
{
	return folio_take(arena, order, zones, false);
}

/* ---- putting; zone lock held ---- */

static struct sublet__isolation *isolation_of(const struct sublet__zone *zone, uint32_t pfn, uint32_t end,
					      bool *whole)
{
	for (struct sublet__isolation *i = zone->isolations; i; i = i->next)
		if (pfn < i->end_pfn && end > i->first_pfn) {
			*whole = pfn >= i->first_pfn && end <= i->end_pfn;
			return i;
		}
	return NULL;
}

static void isolation_add(struct sublet_arena *arena, struct sublet__isolation *isolation, uint32_t pfn,
			  uint32_t order, uint32_t zero, enum sublet__account from)
{
	a32_store_relaxed(&arena->frames[pfn].ref, REF_FROZEN);
	a32_store_release(&arena->frames[pfn].word, frame_word(FRAME_ISOLATED, order, zero));
	isolation->isolated_frames += 1u << order;
	sublet__account(arena, pfn, 1u << order, from, ACCOUNT_ISOLATED);
}

/* Put one aligned piece, cutting it where an isolation begins or ends inside it. */
static void piece_put(struct sublet_arena *arena, struct sublet__zone *zone, uint32_t pfn, uint32_t order,
		      uint32_t zero, enum sublet__account from)
{
	bool whole = true;
	struct sublet__isolation *isolation = NULL;

	if (a32_load_relaxed(&pageblock_of(arena, pfn)->isolated)) /* changes under the zone lock only */
		isolation = isolation_of(zone, pfn, pfn + (1u << order), &whole);
	if (!isolation) {
		if (from != ACCOUNT_FREE)
			sublet__account(arena, pfn, 1u << order, from, ACCOUNT_FREE);
		buddy_insert(arena, zone, pfn, order, zero);
	} else if (whole) {
		isolation_add(arena, isolation, pfn, order, zero, from);
	} else {
		piece_put(arena, zone, pfn, order - 1, zero, from);
		piece_put(arena, zone, pfn + (1u << (order - 1)), order - 1, zero, from);
	}
}

static void heads_clear(struct sublet_arena *arena, uint32_t pfn, uint32_t end)
{
	while (pfn < end) {
		uint32_t word = a32_load_relaxed(&arena->frames[pfn].word);
		a32_store_relaxed(&arena->frames[pfn].ref, REF_FROZEN);
		a32_store_relaxed(&arena->frames[pfn].word, 0);
		pfn += (word & FRAME_HEAD) ? 1u << word_order(word) : 1;
	}
}

__attribute__((noinline)) static void frames_put_slowly(struct sublet_arena *arena, uint32_t pfn,
							uint32_t frames, enum sublet__account from)
{
	const struct sublet__zone *zone = zone_of(arena, pfn);
	uint32_t zone_end = zone->first_pfn + zone->frames;

	if (pfn + frames > zone_end) { /* the end of the area and the start of the normal zone, in one run */
		sublet__frames_put(arena, zone_end, pfn + frames - zone_end, from);
		frames = zone_end - pfn;
	}
	sublet__folios_free(arena, pfn, frames, from);
}

void sublet__frames_put(struct sublet_arena *arena, uint32_t pfn, uint32_t frames, enum sublet__account from)
{
	if (cache_holds(arena, frames) && !(pfn & (frames - 1)) && pfn < arena->zone[ZONE_NORMAL].first_pfn &&
	    from == ACCOUNT_MOVABLE && sublet__cache_put(arena, pfn))
		return;
	frames_put_slowly(arena, pfn, frames, from);
}

/*
 * Somebody may want to zero what was freed: one store and one call when nobody does already. But not while a window is
 * being emptied: a thread that is woken there counts as one that wants to run, and keeps the claim's workers out.
 */
static void zero_want(struct sublet_arena *arena)
{
	uint32_t no = 0;

	if (a32_load_relaxed(&arena->zero_wanted) || !a32_cas_seq_cst(&arena->zero_wanted, &no, 1))
		return;                          /* pairs with sublet__arena_zero_wait */
	if (!a32_load_seq_cst(&arena->emptying)) /* pairs with sublet__emptying_end */
		arena->platform.ops->unpark(arena->platform.ctx, &arena->zero_wanted, 1);
}

void sublet__emptying_begin(struct sublet_arena *arena)
{
	a32_add_seq_cst(&arena->emptying, 1);
}

void sublet__emptying_end(struct sublet_arena *arena)
{
	/* Either zero_want sees that the last one is over, or this sees what it wants. */
	a32_add_seq_cst(&arena->emptying, ~0u);
	if (a32_load_seq_cst(&arena->zero_wanted))
		arena->platform.ops->unpark(arena->platform.ctx, &arena->zero_wanted, 1);
}

void sublet__folios_free(struct sublet_arena *arena, uint32_t pfn, uint32_t frames, enum sublet__account from)
{
	struct sublet__zone *zone = zone_of(arena, pfn);

	engine_lock(arena, &zone->lock);
	heads_clear(arena, pfn, pfn + frames);
	while (frames) {
		uint32_t order = order_fitting(pfn, frames, ORDER_TOP(arena));
		piece_put(arena, zone, pfn, order, 0, from);
		pfn += 1u << order;
		frames -= 1u << order;
	}
	engine_unlock(arena, &zone->lock);
	zero_want(arena);
}

/* ---- isolation ---- */

/* A free folio that leaves its list: the part inside goes to the isolation, the rest back to the lists. */
static void free_cut(struct sublet_arena *arena, struct sublet__zone *zone,
		     struct sublet__isolation *isolation, uint32_t pfn, uint32_t order, uint32_t zero)
{
	uint32_t end = pfn + (1u << order);

	if (pfn >= isolation->first_pfn && end <= isolation->end_pfn) {
		isolation_add(arena, isolation, pfn, order, zero, ACCOUNT_FREE);
	} else if (end <= isolation->first_pfn || pfn >= isolation->end_pfn) {
		list_add(arena, zone, pfn, order, zero);
	} else {
		free_cut(arena, zone, isolation, pfn, order - 1, zero);
		free_cut(arena, zone, isolation, pfn + (1u << (order - 1)), order - 1, zero);
	}
}

static void pageblocks_isolated(struct sublet_arena *arena, const struct sublet__isolation *isolation,
				uint32_t delta)
{
	uint32_t last = (isolation->end_pfn - 1) >> arena->pageblock_order;
	for (uint32_t pb = isolation->first_pfn >> arena->pageblock_order; pb <= last; pb++) {
		/* release: a thread that frees into its cache looks at it under the cache lock,
		   which sublet__cache_recall takes after this (R1) */
		a32_add_acq_rel(&arena->pageblocks[pb].isolated, delta);
		sublet__window_touch(arena, pb); /* it costs WINDOW_BLOCKED meanwhile */
	}
}

void sublet__isolate(struct sublet_arena *arena, struct sublet__isolation *isolation)
{
	struct sublet__zone *zone = zone_of(arena, isolation->first_pfn);
	uint32_t pfn = isolation->first_pfn;

	engine_lock(arena, &zone->lock);
	isolation->isolated_frames = 0;
	isolation->next = zone->isolations;
	zone->isolations = isolation;
	pageblocks_isolated(arena, isolation, 1);
	arena->isolations++;

	uint32_t head = sublet__frame_head(arena, pfn); /* the window may begin inside a free folio */
	if (head != ENGINE_NONE)
		pfn = head;
	while (pfn < isolation->end_pfn) {
		/* Whatever is not FREE cannot become free while the zone lock is held: step over it. */
		uint32_t word = a32_load_acquire(&arena->frames[pfn].word);
		uint32_t step = (word & FRAME_HEAD) ? 1u << word_order(word) : 1;
		if ((word & FRAME_HEAD) && word_state(word) == FRAME_FREE) {
			list_del(arena, zone, pfn, word_order(word));
			free_cut(arena, zone, isolation, pfn, word_order(word), word & FRAME_ZERO);
		}
		pfn += step;
	}
	engine_unlock(arena, &zone->lock);
}

static void isolation_unlist(struct sublet_arena *arena, struct sublet__zone *zone,
			     struct sublet__isolation *isolation)
{
	struct sublet__isolation **link = &zone->isolations;
	while (*link != isolation)
		link = &(*link)->next;
	*link = isolation->next;
	pageblocks_isolated(arena, isolation, UINT32_MAX); /* minus one */
	if (--arena->isolations == 0)
		sublet__cache_open(arena);
}

static bool is_isolated_head(const struct sublet_arena *arena, uint32_t pfn, uint32_t *word)
{
	*word = a32_load_acquire(&arena->frames[pfn].word);
	return (*word & FRAME_HEAD) && word_state(*word) == FRAME_ISOLATED;
}

void sublet__isolate_undo(struct sublet_arena *arena, struct sublet__isolation *isolation)
{
	struct sublet__zone *zone = zone_of(arena, isolation->first_pfn);
	uint32_t word;

	engine_lock(arena, &zone->lock);
	isolation_unlist(arena, zone, isolation);
	for (uint32_t pfn = isolation->first_pfn; pfn < isolation->end_pfn;) {
		uint32_t step = 1;
		if (is_isolated_head(arena, pfn, &word)) {
			step = 1u << word_order(word);
			piece_put(arena, zone, pfn, word_order(word), word & FRAME_ZERO, ACCOUNT_ISOLATED);
		} else if (word & FRAME_HEAD) {
			step = 1u << word_order(word);
		}
		pfn += step;
	}
	engine_unlock(arena, &zone->lock);
}

void sublet__isolate_commit(struct sublet_arena *arena, struct sublet__isolation *isolation, uint32_t slot)
{
	struct sublet__zone *zone = zone_of(arena, isolation->first_pfn);
	uint32_t word;

	engine_lock(arena, &zone->lock);
	isolation_unlist(arena, zone, isolation);
	for (uint32_t pfn = isolation->first_pfn;
	     pfn < isolation->end_pfn && is_isolated_head(arena, pfn, &word);) {
		uint32_t order = word_order(word);
		a32_store_relaxed(&arena->frames[pfn].a, slot);
		a32_store_release(&arena->frames[pfn].word, frame_word(FRAME_CLAIMED, order, 0));
		sublet__account(arena, pfn, 1u << order, ACCOUNT_ISOLATED, ACCOUNT_CLAIMED);
		pfn += 1u << order;
	}
	engine_unlock(arena, &zone->lock);
}

uint32_t sublet__isolated_frames(struct sublet_arena *arena, struct sublet__isolation *isolation)
{
	struct sublet__zone *zone = zone_of(arena, isolation->first_pfn);
	engine_lock(arena, &zone->lock);
	uint32_t frames = isolation->isolated_frames;
	engine_unlock(arena, &zone->lock);
	return frames;
}

uint32_t sublet__isolated_dirty(const struct sublet_arena *arena, uint32_t first_pfn, uint32_t end_pfn,
				uint32_t enough)
{
	uint32_t dirty = 0, word;

	for (uint32_t pfn = first_pfn; pfn < end_pfn && dirty < enough;) {
		bool isolated = is_isolated_head(arena, pfn, &word);
		uint32_t step = (word & FRAME_HEAD) ? 1u << word_order(word) : 1;
		dirty += isolated && !(word & FRAME_ZERO) ? step : 0;
		pfn += step;
	}
	return dirty;
}

/* Only the claimer calls this, on its own isolation: ISOLATED heads there change by nobody else. */
uint32_t sublet__isolated_zero(struct sublet_arena *arena, uint32_t first_pfn, uint32_t end_pfn, bool warm)
{
	const struct sublet__platform *p = &arena->platform;
	uint32_t zeroed = 0, word;

	for (uint32_t pfn = first_pfn; pfn < end_pfn;) {
		uint32_t step = 1;
		if (is_isolated_head(arena, pfn, &word)) {
			step = 1u << word_order(word);
			if (!(word & FRAME_ZERO)) {
				p->ops->zero(p->ctx, pfn, step, warm);
				a32_store_release(&arena->frames[pfn].word, word | FRAME_ZERO);
				zeroed += step;
			}
		} else if (word & FRAME_HEAD) {
			step = 1u << word_order(word);
		}
		pfn += step;
	}
	return zeroed;
}

/* ---- zeroing free memory ahead of time ---- */

/* Take the largest free folio that is not known to be zero out of its list; ENGINE_NONE. Zone lock held. */
static uint32_t dirty_take(struct sublet_arena *arena, struct sublet__zone *zone, uint32_t *order)
{
	for (uint32_t o = ORDER_TOP(arena) + 1; o-- > 0;) {
		uint32_t pfn = zone->tail[o];
		if (pfn == ENGINE_NONE || (a32_load_relaxed(&arena->frames[pfn].word) & FRAME_ZERO))
			continue;
		list_del(arena, zone, pfn, o);
		a32_store_release(&arena->frames[pfn].word, frame_word(FRAME_BUSY, o, 0));
		*order = o;
		return pfn;
	}
	return ENGINE_NONE;
}

bool sublet__arena_zero_step(struct sublet_arena *arena)
{
	const struct sublet__platform *p = &arena->platform;

	for (uint32_t z = 0; z < ZONES; z++) {
		struct sublet__zone *zone = &arena->zone[z];
		uint32_t order;

		/* Counted before it leaves the list: who finds the list empty then sees that it comes back. */
		a32_add_seq_cst(&arena->zeroing, 1);
		engine_lock(arena, &zone->lock);
		uint32_t pfn = dirty_take(arena, zone, &order);
		engine_unlock(arena, &zone->lock);
		if (pfn == ENGINE_NONE) {
			a32_sub_acq_rel(&arena->zeroing, 1);
			continue;
		}
		/* BUSY meanwhile, and accounted free: a claim of it waits for no more than this. */
		p->ops->zero(p->ctx, pfn, 1u << order, false);
		a64_add_relaxed(&arena->counters.zeroed_frames, 1u << order);
		engine_lock(arena, &zone->lock);
		a32_store_relaxed(&arena->frames[pfn].word, 0);
		piece_put(arena, zone, pfn, order, FRAME_ZERO, ACCOUNT_FREE);
		engine_unlock(arena, &zone->lock);
		a32_sub_acq_rel(&arena->zeroing, 1);
		return true;
	}
	return false;
}

void sublet__arena_zero_wait(struct sublet_arena *arena)
{
	const struct sublet__platform *p = &arena->platform;

	while (!a32_exchange_acq_rel(&arena->zero_wanted, 0)) /* pairs with zero_want */
		p->ops->park(p->ctx, &arena->zero_wanted, 0, UINT64_MAX);
}

void sublet__arena_zero_wake(struct sublet_arena *arena)
{
	zero_want(arena);
}
