/* SPDX-License-Identifier: MIT */
/*
 * Moving live memory.
 *
 * The unit of work is a run: neighbouring folios of one block that are to go, found around one of
 * them, at most as long as the platform blocks at once. A folio as large as the address allows is taken
 * for each part of the run, so a move also heals: scattered frames come out contiguous, and their
 * kernel mappings merge.
 *
 *   lock the block
 *     a fork under way?                  may refuse: -EAGAIN
 *     take destinations                  may refuse: -ENOMEM, -ENOSPC; nothing has happened yet
 *     tell notifiers                     may refuse: -EAGAIN, a device is at work; no translation is left (G4)
 *     [track, copy]                      pre-copy, while the program goes on writing (run_tracks)
 *     freeze the folios                  may refuse: -EAGAIN, somebody pinned one (G6)
 *     [tell notifiers again]             where somebody pinned since they were told (L5)
 *     block                              accesses wait from here on
 *     copy [only what was written since]
 *     remap                              may refuse: the platform leaves all as it was (G5)
 *     publish entries                    no turning back
 *     wake
 *     notifiers: it is over
 *     put the old frames
 *   unlock the block
 *
 * (L1) From block to wake no lock is taken and nothing is allocated: the stack or heap of a thread
 * that holds a lock may lie in the very run. All that can block or refuse is done before or after.
 *
 * (L2) A folio pinned for writing at any time since its pre-copy began is copied again whole: a
 * device's write leaves no mark in the page table. The mark is REF_WRITTEN, cleared before track and
 * looked at when the folio is frozen.
 *
 * (L5) A registration cache keeps what it looked up under a pin, and waits for its callback instead of
 * asking read_retry. So when a pin came and went between the callbacks and the freeze, they are called again:
 *
 *   mover                          who uses the cache
 *   -----                          ------------------
 *   clear REF_PINNED
 *   callback: cache forgets
 *                                  pin (sets REF_PINNED), register, cache remembers, unpin
 *   freeze; REF_PINNED is set
 *   callback: cache forgets
 *   block, copy, publish
 *                                  pin: waits for the mover, and finds the new frames
 */
#include "core/engine.h"

#include <errno.h>

#define CALM_RUNS       7u
#define MAPPINGS_MARGIN 64u /* kernel mappings that blocking splits off for a while, on all workers */

struct run {
	struct sublet_arena *arena;
	struct sublet_mm *mm;
	uint32_t vpn;
	uint32_t pages;
	uint32_t map_flags;
	uint32_t word_flags; /* FRAME_DROPPABLE, or 0: neighbouring mappings of both kinds share no folio */
	uint32_t src_runs;   /* kernel mappings now, and after the move */
	uint32_t dst_runs;
	bool tracked;
	bool pinned; /* a folio was, between run_move's look at it and the freeze */
	struct sublet__invalidation told;
	uint64_t blocked_at_ns;
	uint64_t dirty[ENGINE_BLOCK_PAGES / 64];
	uint32_t count;
	struct sublet__segment segs[ENGINE_BLOCK_PAGES];
};

/* ---- finding the run; block lock held ---- */

static bool in_range(const struct sublet__window_range *range, uint32_t head, uint32_t order)
{
	return range->first_pfn == range->end_pfn ||
	       (head < range->end_pfn && head + (1u << order) > range->first_pfn);
}

/* Whether the folio under page `at` may move; *head and *order say which it is. */
static int page_check(const struct run *r, uint32_t at, const struct sublet__window_range *range,
		      uint32_t *head, uint32_t *order)
{
	uint32_t pte = a32_load_relaxed(&r->mm->pte[at]);

	if (!(pte & PTE_PRESENT))
		return -ENOENT;
	*head = sublet__frame_head(r->arena, pte_pfn(pte));
	const struct sublet__frame *f = &r->arena->frames[*head];
	uint32_t word = a32_load_relaxed(&f->word);
	*order = word_order(word);
	uint32_t first = a32_load_relaxed(&f->a);
	if (word_state(word) != FRAME_MOVABLE || !in_range(range, *head, *order) ||
	    (range->end_vpn && (first < range->first_vpn || first + (1u << *order) > range->end_vpn)))
		return -ENOENT;
	if (word & (FRAME_HELD | FRAME_PROTECTED))
		return -EBUSY;
	return (a32_load_relaxed(&f->ref) & (REF_COUNT_MASK | REF_FROZEN)) ? -EAGAIN : 0;
}

static bool joins(const struct run *r, uint32_t at, const struct sublet__window_range *range, uint32_t *head,
		  uint32_t *order)
{
	if (page_check(r, at, range, head, order))
		return false;
	if ((a32_load_relaxed(&r->arena->frames[*head].word) & FRAME_DROPPABLE) != r->word_flags)
		return false;
	bool locked = sublet__mm_flagged(r->mm, a32_load_relaxed(&r->arena->frames[*head].a), 1u << *order,
					 PTE_LOCKED);
	return locked == !!(r->map_flags & SUBLET__MAP_LOCKED);
}

static int run_find(struct run *r, uint32_t vpn, const struct sublet__window_range *range)
{
	uint32_t most = r->arena->platform.run_pages_max, low = vpn & ~(most - 1);
	uint32_t high = min_u32(low + most, r->mm->config.pages), head, order;
	int err = page_check(r, vpn, range, &head, &order);

	if (err)
		return err;
	uint32_t first = a32_load_relaxed(&r->arena->frames[head].a), end = first + (1u << order);
	r->word_flags = a32_load_relaxed(&r->arena->frames[head].word) & FRAME_DROPPABLE;
	r->map_flags = sublet__mm_flagged(r->mm, first, end - first, PTE_LOCKED) ? SUBLET__MAP_LOCKED : 0;
	while (first > low && joins(r, first - 1, range, &head, &order))
		first -= 1u << order;
	while (end < high && joins(r, end, range, &head, &order))
		end += 1u << order;
	r->vpn = first;
	r->pages = end - first;
	return 0;
}

/* ---- destinations ---- */

static void destinations_put(struct run *r)
{
	uint32_t last_pfn = ENGINE_NONE, last_pages = 0;

	for (uint32_t i = 0; i < r->count; i++) {
		const struct sublet__segment *seg = &r->segs[i];
		if (last_pages && last_pfn + last_pages == seg->dst_pfn &&
		    seg->dst_pfn % (1u << r->arena->pageblock_order)) {
			last_pages += seg->pages;
			continue;
		}
		if (last_pages)
			sublet__frames_put(r->arena, last_pfn, last_pages, ACCOUNT_MOVABLE);
		last_pfn = seg->dst_pfn;
		last_pages = seg->pages;
	}
	if (last_pages)
		sublet__frames_put(r->arena, last_pfn, last_pages, ACCOUNT_MOVABLE);
	r->count = 0;
}

/* Append the pages of one destination folio, cut where the source is not contiguous. */
static void segments_add(struct run *r, uint32_t vpn, uint32_t pages, uint32_t dst_pfn)
{
	for (uint32_t i = 0; i < pages; i++) {
		uint32_t src = pte_pfn(a32_load_relaxed(&r->mm->pte[vpn + i]));
		struct sublet__segment *last = r->count ? &r->segs[r->count - 1] : NULL;
		bool src_on = last && last->src_pfn + last->pages == src;
		bool dst_on = last && last->dst_pfn + last->pages == dst_pfn + i;

		r->src_runs += !src_on;
		r->dst_runs += !dst_on;
		if (src_on && dst_on)
			last->pages++;
		else
			r->segs[r->count++] = (struct sublet__segment){ vpn + i, 1, src, dst_pfn + i };
	}
}

static int destinations_take(struct run *r, enum sublet__move_to to)
{
	static const uint32_t order_of[][ZONES] = {
		[MOVE_NORMAL_FIRST] = { ZONE_NORMAL, ZONE_AREA },
		[MOVE_AREA_FIRST] = { ZONE_AREA, ZONE_NORMAL },
		[MOVE_NORMAL_ONLY] = { ZONE_NORMAL, ZONE_NORMAL },
		[MOVE_AREA_ONLY] = { ZONE_AREA, ZONE_AREA },
	};
	const uint32_t *zones = order_of[to];

	for (uint32_t done = 0; done < r->pages;) {
		uint32_t order = order_fitting(r->vpn + done, r->pages - done, r->arena->order_max);
		uint32_t pfn = sublet__folio_take_any(r->arena, order, zones);
		while (pfn == ENGINE_NONE && order > 0)
			pfn = sublet__folio_take_any(r->arena, --order, zones);
		if (pfn == ENGINE_NONE) {
			destinations_put(r);
			return -ENOMEM;
		}
		segments_add(r, r->vpn + done, 1u << order, pfn);
		done += 1u << order;
	}
	return 0;
}

/* ---- the move itself ---- */

static void run_copy(const struct run *r)
{
	const struct sublet__platform *p = &r->arena->platform;
	for (uint32_t i = 0; i < r->count; i++)
		p->ops->copy(p->ctx, r->segs[i].dst_pfn, r->segs[i].src_pfn, r->segs[i].pages);
}

/* Call fn for each source folio: only while the entries still lead to them. */
static bool sources_each(struct run *r, uint32_t pages,
			 bool (*fn)(struct run *r, uint32_t at, struct sublet__frame *f))
{
	for (uint32_t i = 0; i < pages;) {
		struct sublet__frame *f =
			&r->arena->frames[pte_pfn(a32_load_relaxed(&r->mm->pte[r->vpn + i]))];
		if (!fn(r, i, f))
			return false;
		i += 1u << word_order(a32_load_relaxed(&f->word));
	}
	return true;
}

static bool pinned_clear(struct run *r, uint32_t at, struct sublet__frame *f)
{
	(void)r, (void)at;
	/* Pairs with ref_take: a pin from here on sets them again (L2, L5). One that is there already may have set
	   them for a write that is still to come, and would leave no trace: the folio is not to move now. */
	return !(a32_and_acq_rel(&f->ref, ~(REF_WRITTEN | REF_PINNED)) & REF_COUNT_MASK);
}

static bool source_unfreeze(struct run *r, uint32_t at, struct sublet__frame *f)
{
	(void)r, (void)at;
	a32_and_acq_rel(&f->ref, ~REF_FROZEN);
	return true;
}

/* Freeze; pages of a folio that a device may have written count as dirty (L2). */
static bool source_freeze(struct run *r, uint32_t at, struct sublet__frame *f)
{
	if (!ref_freeze(f)) {
		sources_each(r, at, source_unfreeze);
		return false;
	}
	uint32_t ref = a32_load_relaxed(&f->ref);
	r->pinned = r->pinned || (ref & REF_PINNED);
	if (ref & REF_WRITTEN)
		for (uint32_t i = 0; i < 1u << word_order(a32_load_relaxed(&f->word)); i++)
			r->dirty[(at + i) / 64] |= 1ull << ((at + i) % 64);
	return true;
}

static bool is_dirty(const struct run *r, uint32_t i)
{
	return r->dirty[i / 64] >> (i % 64) & 1;
}

/* Copy again what was written since the pre-copy; returns the frames. */
static uint32_t run_recopy(const struct run *r)
{
	const struct sublet__platform *p = &r->arena->platform;
	uint32_t copied = 0;

	for (uint32_t s = 0; s < r->count; s++) {
		const struct sublet__segment *seg = &r->segs[s];
		for (uint32_t i = 0; i < seg->pages;) {
			uint32_t n = 0;
			while (i + n < seg->pages && is_dirty(r, seg->vpn - r->vpn + i + n))
				n++;
			if (n)
				p->ops->copy(p->ctx, seg->dst_pfn + i, seg->src_pfn + i, n);
			copied += n;
			i += n ? n : 1;
		}
	}
	return copied;
}

/*
 * From here on the entries lead to the new folios. Nobody may pin one before all of its entries do: a pin looks at
 * one entry of a folio, and answers for all.
 */
static void run_publish(struct run *r)
{
	struct sublet_arena *arena = r->arena;

	for (uint32_t s = 0; s < r->count; s++)
		for (uint32_t i = 0; i < r->segs[s].pages; i++) {
			uint32_t vpn = r->segs[s].vpn + i, pfn = r->segs[s].dst_pfn + i;
			struct sublet__frame *f = &arena->frames[pfn];
			uint32_t word = a32_load_relaxed(&f->word), old = a32_load_relaxed(&r->mm->pte[vpn]);

			/* A head, as taken: the others have none. Its first page comes first. */
			if ((word & FRAME_HEAD) && word_state(word) == FRAME_BUSY) {
				a32_store_relaxed(&f->a, vpn);
				a32_store_relaxed(&f->b, r->mm->index);
				a32_store_release(&f->word,
						  frame_word(FRAME_MOVABLE, word_order(word), r->word_flags));
			}
			a32_store_release(&r->mm->pte[vpn], pte_make(pfn, old & PTE_FLAGS & ~PTE_PRESENT));
		}
	for (uint32_t i = 0; i < r->pages;) {
		struct sublet__frame *f = &arena->frames[pte_pfn(a32_load_relaxed(&r->mm->pte[r->vpn + i]))];
		a32_store_release(&f->ref, 0); /* pairs with ref_take */
		i += 1u << word_order(a32_load_relaxed(&f->word));
	}
}

static void sources_put(struct run *r)
{
	for (uint32_t i = 0; i < r->count;) {
		uint32_t pfn = r->segs[i].src_pfn, pages = r->segs[i].pages;
		/* Folios were cut at destinations too: put them whole again. */
		for (i++; i < r->count && r->segs[i].src_pfn == pfn + pages &&
			  (pfn + pages) % (1u << r->arena->pageblock_order);
		     i++)
			pages += r->segs[i].pages;
		sublet__frames_put(r->arena, pfn, pages, ACCOUNT_MOVABLE);
	}
}

/* Freeze; whoever keeps what was looked up under a pin has forgotten it when this returns 0 (L5). */
static int run_freeze(struct run *r)
{
	for (uint32_t i = 0; i < ENGINE_BLOCK_PAGES / 64; i++)
		r->dirty[i] = 0;
	r->pinned = false;
	if (!sources_each(r, r->pages, source_freeze))
		return -EAGAIN;
	int err = r->pinned ? sublet__invalidate_again(r->mm, &r->told) : 0;
	if (err)
		sources_each(r, r->pages, source_unfreeze);
	return err;
}

/* Block, copy, remap, wake, all of it frozen. Nothing is changed when it fails. */
static int run_switch(struct run *r)
{
	const struct sublet__mm_ops *ops = r->mm->config.ops;
	void *ctx = r->mm->config.ctx;
	int err;

	r->blocked_at_ns = engine_now(r->arena);
	err = ops->block(ctx, r->vpn, r->pages);
	if (err == -EADDRINUSE && !r->tracked)
		goto unfreeze;
	if (err)
		goto unblock;
	if (r->tracked) {
		ops->dirty(ctx, r->vpn, r->pages, r->dirty);
		uint32_t copied = run_recopy(r);
		a64_add_relaxed(&r->arena->counters.recopied_frames, copied);
		a32_store_relaxed(&r->mm->calm, copied ? 0 : CALM_RUNS);
	} else {
		run_copy(r);
	}
	err = ops->remap(ctx, r->segs, r->count, r->map_flags);
	if (err)
		goto unblock;
	run_publish(r);
	ops->wake(ctx, r->vpn, r->pages);
	sublet__histogram_add(&r->arena->blocked_ns, engine_now(r->arena) - r->blocked_at_ns);
	return 0;

unblock:
	ops->unblock(ctx, r->vpn, r->pages);
unfreeze:
	sources_each(r, r->pages, source_unfreeze);
	return err;
}

/*
 * Whether to pre-copy this run. It costs a third of a claim (two more shoot-downs of the CPUs' translations, and the
 * huge entry), and spares writers a copy's length of waiting: worth it where somebody writes, wasted where nobody
 * does. So the runs that are moved tell: after one that nobody wrote to meanwhile, the next CALM_RUNS go without.
 */
static bool run_tracks(const struct run *r)
{
	struct sublet_mm *mm = r->mm;

	if (!(mm->config.features & SUBLET__MM_TRACK))
		return false;
	uint32_t calm = a32_load_relaxed(&mm->calm);
	if (!calm)
		return true;
	/* Of two at once one is lost, and a reset may be: a few runs more without pre-copy. */
	a32_store_relaxed(&mm->calm, calm - 1);
	return false;
}

/* Copy while the program goes on writing, where that pays. */
static void run_precopy(struct run *r)
{
	struct sublet_mm *mm = r->mm;

	if (!run_tracks(r))
		return;
	/* Without it the copy is made while blocked, which is always right. */
	r->tracked = !mm->config.ops->track(mm->config.ctx, r->vpn, r->pages);
	if (r->tracked)
		run_copy(r);
}

/* Everybody is told: move, unless somebody pins a folio before it is frozen. */
static int run_told(struct run *r)
{
	run_precopy(r);
	int err = run_freeze(r);
	if (!err)
		return run_switch(r);
	if (r->tracked)
		r->mm->config.ops->unblock(r->mm->config.ctx, r->vpn, r->pages);
	return err;
}

static int run_move(struct run *r, const struct sublet__window_range *range)
{
	struct sublet_mm *mm = r->mm;
	int err = destinations_take(r, range->to);

	if (err)
		return err;
	uint32_t mappings = a32_load_relaxed(&mm->mapping_count);
	if (range->linearise
		    ? r->dst_runs >= r->src_runs
		    : r->dst_runs > r->src_runs && mappings + r->dst_runs - r->src_runs + MAPPINGS_MARGIN >
							   mm->config.mapping_limit) {
		destinations_put(r);
		return -ENOSPC;
	}
	/* Whoever declines is no worse than a pin: back out, come back later. */
	err = sources_each(r, r->pages, pinned_clear) ? 0 : -EAGAIN;
	if (!err)
		err = sublet__invalidate_begin(mm, &r->told, r->vpn, r->pages, SUBLET_NOTIFIER_MOVE, false);
	if (!err) {
		err = run_told(r);
		sublet__invalidate_end(mm, &r->told);
	}
	if (err) {
		destinations_put(r);
		return err;
	}
	sources_put(r);
	sublet__mm_mappings_recount(mm, r->vpn / ENGINE_BLOCK_PAGES);
	return 0;
}

static bool block_take(struct sublet_mm *mm, uint32_t vpn, const struct sublet__window_range *range)
{
	uint64_t until_ns = range->until_ns ? range->until_ns : UINT64_MAX;

	return range->nowait ? lock_try(block_lock_of(mm, vpn))
			     : lock_take_until(&mm->arena->platform, block_lock_of(mm, vpn), until_ns);
}

/* Block lock held: move the run around vpn. */
int64_t sublet__move_locked(struct sublet_mm *mm, uint32_t vpn, const struct sublet__window_range *range)
{
	struct sublet_arena *arena = mm->arena;
	struct run r;

	r.arena = arena;
	r.mm = mm;
	r.src_runs = r.dst_runs = r.count = 0;
	r.tracked = false;
	int err = run_find(&r, vpn, range);
	/* What is not private during a fork was pinned when fork_begin came by, or in use, and no child inherits it; a
	   remap would make it inherited, and shared (G1). seq_cst: pairs with fork_begin, as in core/longterm.c. */
	if (!err && a32_load_seq_cst(&mm->fork_pending))
		err = -EAGAIN;
	if (!err)
		err = run_move(&r, range);
	if (err == -ENOENT)
		return 0;
	if (err) {
		a64_add_relaxed(&arena->counters.moves_refused, 1);
		return err;
	}
	a64_add_relaxed(&arena->counters.moves, 1);
	a64_add_relaxed(&arena->counters.moved_frames, r.pages);
	return r.pages;
}

int64_t sublet__move_page(struct sublet_mm *mm, uint32_t vpn, const struct sublet__window_range *range)
{
	if (!block_take(mm, vpn, range))
		return -EAGAIN;
	int64_t moved = sublet__move_locked(mm, vpn, range);
	engine_unlock(mm->arena, block_lock_of(mm, vpn));
	return moved;
}

/*
 * Find the page a mapped folio belongs to, and lock its block; NULL: it is not mapped any more
 * (*err 0), or the lock is taken (-EAGAIN). What was read before the lock is checked after it.
 */
static struct sublet_mm *folio_lock_block(struct sublet_arena *arena, uint32_t pfn,
					  const struct sublet__window_range *range, uint32_t *vpn, int *err)
{
	const struct sublet__frame *f = &arena->frames[pfn];
	uint32_t index = a32_load_relaxed(&f->b);

	*vpn = a32_load_relaxed(&f->a);
	*err = 0;
	if (index >= a32_load_acquire(&arena->mm_count)) /* pairs with sublet__mm_create */
		return NULL;
	struct sublet_mm *mm = arena->mm[index];
	if (*vpn >= mm->config.pages)
		return NULL;
	if (!block_take(mm, *vpn, range)) {
		*err = -EAGAIN;
		return NULL;
	}
	uint32_t pte = a32_load_relaxed(&mm->pte[*vpn]);
	if ((pte & PTE_PRESENT) && pte_pfn(pte) == pfn && (a32_load_relaxed(&f->word) & FRAME_HEAD))
		return mm;
	engine_unlock(arena, block_lock_of(mm, *vpn));
	return NULL;
}

int64_t sublet__move_folio(struct sublet_arena *arena, uint32_t pfn, const struct sublet__window_range *range)
{
	uint32_t vpn;
	int err;
	struct sublet_mm *mm = folio_lock_block(arena, pfn, range, &vpn, &err);

	if (!mm)
		return err;
	int64_t moved = sublet__move_locked(mm, vpn, range);
	engine_unlock(arena, block_lock_of(mm, vpn));
	return moved;
}

/* Drops the folio at pfn, and its neighbours that may be dropped too. Nothing is to be unmapped: unlock did it. */
int64_t sublet__drop_folio(struct sublet_arena *arena, uint32_t pfn, const struct sublet__window_range *range)
{
	uint32_t vpn, end;
	int err;
	struct sublet_mm *mm = folio_lock_block(arena, pfn, range, &vpn, &err);

	if (!mm)
		return err;
	uint32_t limit = min_u32((vpn / ENGINE_BLOCK_PAGES + 1) * ENGINE_BLOCK_PAGES, mm->config.pages);
	for (end = vpn; end < limit;) {
		uint32_t pte = a32_load_relaxed(&mm->pte[end]);
		uint32_t word = (pte & PTE_PRESENT) ? a32_load_relaxed(&arena->frames[pte_pfn(pte)].word) : 0;
		if (!(word & FRAME_HEAD) || word_state(word) != FRAME_DISCARDABLE ||
		    (word & (FRAME_HELD | FRAME_PROTECTED)) ||
		    !in_range(range, pte_pfn(pte), word_order(word)))
			break;
		end += 1u << word_order(word);
	}
	struct sublet__invalidation told;
	if (end > vpn)
		err = sublet__invalidate_begin(mm, &told, vpn, end - vpn, SUBLET_NOTIFIER_DISCARD, false);
	if (end > vpn && !err) {
		sublet__mm_strip(mm, vpn, end - vpn, PTE_DROPPED);
		a64_add_relaxed(&arena->counters.dropped_frames, end - vpn);
		sublet__invalidate_end(mm, &told);
	}
	engine_unlock(arena, block_lock_of(mm, vpn));
	return err ? err : (int64_t)(end - vpn);
}
