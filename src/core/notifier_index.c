/* SPDX-License-Identifier: MIT */
/*
 * The index of notifiers: which ranges of one mm does [first, end) touch?
 *
 * Levels of flat arrays of bins. A bin of level k covers 4^k pages; a range goes to the lowest level whose
 * bins are at least as long as it, into the bin of its first page. So a range of level k reaches at most
 * into the next bin, and a query looks at the bins of its own pages and at one more before them. Level 0 has
 * ranges of one page, which reach nowhere:
 *
 *   level 1   |     a--|--a     |       |  b--b |     query of page q: bins q / 4 - 1 and q / 4
 *   level 0   | | |c| | | | | | | | |d| | | | | |                      bin q
 *
 * A bin is a doubly linked list by node number. Insertion, removal and the query of a page are a few
 * loads, however many ranges there are; a balanced tree has a dozen or two, each behind the last (the kernel's
 * interval tree needs 200 to 300 atomic adds of time for a query among a million). The word of a bin with one node
 * says where in the bin that is, so that a neighbour which is not touched is not looked at. Levels without nodes are
 * skipped by a bitmap; empty stretches of a level by a count for each 64 bins, read eight at once.
 *
 * Nothing is rebalanced, so a walk can stop anywhere, and go on from its cursor, as long as whoever removes a node
 * moves cursors off it.
 */
#include "core/engine.h"

#include <errno.h>
#include <string.h>

#define WALK_BUDGET   64    /* cache lines under one hold of the lock: ten microseconds if all miss */
#define FREE_AHEAD    8u    /* free nodes that are loaded before they are taken */
#define PEEK_BINS     4u    /* a query of more bins is not worth loading before the lock is taken */
#define PAGE_CHUNKS   16u   /* chunks whose bins share 4 KiB */
#define CHUNK_TOUCHED 0x80u /* of a chunk's count: its bins were used before */
#define CHUNK_COUNT   0x7fu
#define CHUNKS_COUNT  0x7f7f7f7f7f7f7f7full /* of eight */

/* The word of a bin: its first node; and more of them, or where the only one is (head_alone). */
#define HEAD_NODE          0x07ffffffu
#define HEAD_QUARTER_SHIFT 27u
#define HEAD_COUNT_SHIFT   29u
#define HEAD_MORE          (1u << 31)

static uint32_t level_of(uint32_t pages)
{
	return pages <= 1 ? 0 : (log2_floor(pages - 1) + 2) / 2;
}

static uint32_t bin_of(uint32_t first, uint32_t level)
{
	return (uint32_t)((uint64_t)first >> 2 * level);
}

/*
 * The word of a bin that has only node i: where in the bin it is, in quarters of the bin. At level 1 those are pages,
 * so that the word tells exactly; above it tells mostly. A range of level k is longer than a quarter of a bin and
 * not longer than the bin, so it touches 2 to 5 of them.
 */
static uint32_t head_alone(const struct sublet__notifiers *n, uint32_t i, uint32_t level)
{
	const struct sublet__notifier_node *node = notifier_node(n, i);

	if (!level)
		return i;
	uint32_t quarter = bin_of(node->first, level - 1);
	uint32_t last = bin_of(node->end - 1, level - 1);
	return i | (quarter & 3) << HEAD_QUARTER_SHIFT | (last - quarter - 1) << HEAD_COUNT_SHIFT;
}

/* Whether the only node of a bin of level >= 1 may touch [first, end), by the bin's word. */
static bool head_touches(uint32_t head, uint64_t bin, uint32_t level, uint32_t first, uint32_t end)
{
	uint64_t quarter = bin * 4 + (head >> HEAD_QUARTER_SHIFT & 3);

	return quarter << (2 * level - 2) < end &&
	       (quarter + (head >> HEAD_COUNT_SHIFT & 3) + 2) << (2 * level - 2) > first;
}

/* ---- walking ---- */

/*
 * From the start of a chunk to the next chunk with a bin in use, or to where the budget ends: counts are looked at
 * one by one up to a multiple of eight, then eight at a time. Not inlined: it is seldom called, and would cost the query
 * of a page its registers.
 */
__attribute__((noinline)) static uint64_t chunks_skip(const struct sublet__notifier_level *l, uint64_t bin,
						      uint64_t bin_end, int32_t *budget)
{
	uint64_t at = bin / NOTIFIER_CHUNK_BINS, end = (bin_end - 1) / NOTIFIER_CHUNK_BINS + 1, eight;
	int32_t left = *budget;

	while (at < end && left > 0) {
		/* There are counts up to a multiple of PAGE_CHUNKS. */
		memcpy(&eight, &l->used[at & ~(uint64_t)7], sizeof eight);
		if (at % 8 == 0 && !(eight & CHUNKS_COUNT)) {
			at += 8;
			left--;
		} else if (l->used[at] & CHUNK_COUNT) {
			break;
		} else {
			at++;
		}
	}
	*budget = left - 1;
	return at * NOTIFIER_CHUNK_BINS;
}

bool sublet__notifier_walk_batch(const struct sublet__notifiers *n, struct sublet__notifier_walk *w)
{
	const struct sublet__notifier_level *l = &n->level[w->level];
	uint32_t first = w->first, end = w->end, level = w->level, i = w->node, count = 0;
	uint64_t bin = w->bin, bin_end = w->bin_end;
	int32_t budget = WALK_BUDGET;
	bool last = false;

	for (;;) {
		for (; i; i = notifier_node(n, i)->next) {
			const struct sublet__notifier_node *node = notifier_node(n, i);
			if (count == NOTIFIER_BATCH || --budget < 0)
				goto out;
			if (node->first < end && node->end > first)
				w->hit[count++] = i;
		}
		if (bin < bin_end) {
			if (bin_end - bin > 2 && bin % NOTIFIER_CHUNK_BINS == 0) {
				bin = chunks_skip(l, bin, bin_end, &budget);
				if (bin >= bin_end)
					continue;
			}
			if (budget < 0 || count == NOTIFIER_BATCH)
				goto out;
			uint32_t head = a32_load_relaxed(&l->head[bin]);
			i = head & HEAD_NODE;
			if (i && !(head & HEAD_MORE)) {
				if (!level) {
					w->hit[count++] = i;
					i = NOTIFIER_NONE;
				} else if (!head_touches(head, bin, level, first, end)) {
					i = NOTIFIER_NONE;
				}
			}
			bin++;
		} else if (w->levels) {
			level = (uint32_t)__builtin_ctz(w->levels);
			w->levels &= w->levels - 1;
			l = &n->level[level];
			bin = bin_of(first, level);
			bin -= level && bin;
			bin_end = (uint64_t)bin_of(end - 1, level) + 1;
		} else {
			last = true;
			goto out;
		}
	}
out:
	w->count = count;
	w->node = i;
	w->level = level;
	w->bin = bin;
	w->bin_end = bin_end;
	return last;
}

/* ---- nodes ---- */

static uint32_t *free_slot(const struct sublet__notifiers *n, uint32_t at)
{
	return &n->segment[at >> NOTIFIER_SEGMENT_SHIFT]->free[at & (NOTIFIER_SEGMENT_NODES - 1)];
}

uint32_t sublet__notifier_node_take(struct sublet__notifiers *n)
{
	if (n->nodes_free) {
		uint32_t at = --n->nodes_free;
		/* After removals in random order free nodes are anywhere: load those that are to be taken soon. */
		if (at >= FREE_AHEAD) {
			uint32_t soon = *free_slot(n, at - FREE_AHEAD);
			__builtin_prefetch(notifier_node(n, soon), 1);
			__builtin_prefetch(notifier_client(n, soon), 1);
		}
		return *free_slot(n, at);
	}
	/* pairs with grow_nodes: its segment is there */
	if (n->nodes_used >= a32_load_acquire(&n->nodes_ready))
		return NOTIFIER_NONE;
	return n->nodes_used++;
}

void sublet__notifier_node_put(struct sublet__notifiers *n, uint32_t i)
{
	*free_slot(n, n->nodes_free++) = i;
}

static void chunk_touch(struct sublet__notifiers *n, struct sublet__notifier_level *l, uint32_t chunk)
{
	uint32_t first = chunk & ~(PAGE_CHUNKS - 1), touched = 0;

	for (uint32_t i = first; i < first + PAGE_CHUNKS; i++)
		touched |= l->used[i];
	if (!(touched & CHUNK_TOUCHED))
		n->touched_bytes += PAGE_CHUNKS * (NOTIFIER_CHUNK_BINS * sizeof *l->head + sizeof *l->used);
	l->used[chunk] |= CHUNK_TOUCHED;
}

void sublet__notifier_link(struct sublet__notifiers *n, uint32_t i)
{
	struct sublet__notifier_node *node = notifier_node(n, i);
	uint32_t first = node->first, level = level_of(node->end - first);
	uint32_t bin = bin_of(first, level), chunk = bin / NOTIFIER_CHUNK_BINS;
	struct sublet__notifier_level *l = &n->level[level];
	uint32_t next = a32_load_relaxed(&l->head[bin]) & HEAD_NODE;

	node->next = next;
	node->prev = NOTIFIER_NONE;
	/* release: pairs with peek, which then sees i's segment */
	a32_store_release(&l->head[bin], next ? i | HEAD_MORE : head_alone(n, i, level));
	if (next) {
		notifier_node(n, next)->prev = i;
	} else {
		if (!(l->used[chunk] & CHUNK_TOUCHED))
			chunk_touch(n, l, chunk);
		l->used[chunk]++;
	}
	if (!l->nodes++)
		/* release: pairs with the prefetches, which then see the level's bins */
		a32_store_release(&n->occupied, a32_load_relaxed(&n->occupied) | 1u << level);
}

void sublet__notifier_unlink(struct sublet__notifiers *n, uint32_t i)
{
	struct sublet__notifier_node *node = notifier_node(n, i);
	uint32_t first = node->first, level = level_of(node->end - first);
	uint32_t bin = bin_of(first, level), next = node->next, prev = node->prev;
	struct sublet__notifier_level *l = &n->level[level];

	if (next)
		notifier_node(n, next)->prev = prev;
	if (prev)
		notifier_node(n, prev)->next = next;
	if (!prev && !next) {
		a32_store_release(&l->head[bin], NOTIFIER_NONE); /* as in link; below too */
		l->used[bin / NOTIFIER_CHUNK_BINS]--;
	} else if (!prev) {
		bool more = notifier_node(n, next)->next;
		a32_store_release(&l->head[bin], more ? next | HEAD_MORE : head_alone(n, next, level));
	} else if (!next && !notifier_node(n, prev)->prev) {
		a32_store_release(&l->head[bin], head_alone(n, prev, level));
	}
	if (!--l->nodes)
		a32_store_release(&n->occupied, a32_load_relaxed(&n->occupied) & ~(1u << level));
}

/* ---- memory ---- */

static int level_reserve(struct sublet_mm *mm, uint32_t level)
{
	const struct sublet__platform *p = &mm->arena->platform;
	struct sublet__notifier_level *l = &mm->notifiers.level[level];
	size_t bins = (size_t)bin_of(mm->config.pages - 1, level) + 1;
	/* Whole pages of bins, so that counts may be read eight, and touched chunks 16 at a time. */
	size_t chunks = (bins + PAGE_CHUNKS * NOTIFIER_CHUNK_BINS - 1) / (PAGE_CHUNKS * NOTIFIER_CHUNK_BINS) *
			PAGE_CHUNKS;
	size_t bytes = chunks * NOTIFIER_CHUNK_BINS * sizeof *l->head + chunks * sizeof *l->used;
	uint8_t *memory = p->ops->reserve(p->ctx, bytes);

	if (!memory)
		return -ENOMEM;
	l->head = (sublet__a32 *)(void *)memory;
	l->used = memory + chunks * NOTIFIER_CHUNK_BINS * sizeof *l->head;
	l->memory = memory;
	l->memory_bytes = bytes;
	return 0;
}

int sublet__notifier_grow_level(struct sublet_mm *mm, uint32_t pages)
{
	struct sublet__notifiers *n = &mm->notifiers;
	uint32_t level = level_of(pages), bit = 1u << level;
	int err = 0;

	if (a32_load_acquire(&n->levels_ready) & bit) /* pairs with the release below */
		return 0;
	engine_lock(mm->arena, &n->growth_lock);
	if (!(a32_load_relaxed(&n->levels_ready) & bit)) {
		err = level_reserve(mm, level);
		if (!err)
			a32_or_acq_rel(&n->levels_ready, bit); /* release: the pointers are there */
	}
	engine_unlock(mm->arena, &n->growth_lock);
	return err;
}

int sublet__notifier_grow_nodes(struct sublet_mm *mm, uint32_t nodes)
{
	const struct sublet__platform *p = &mm->arena->platform;
	struct sublet__notifiers *n = &mm->notifiers;
	uint32_t segment = nodes / NOTIFIER_SEGMENT_NODES;
	int err = 0;

	if (segment == NOTIFIER_SEGMENTS)
		return -ENOMEM;
	engine_lock(mm->arena, &n->growth_lock);
	if (a32_load_relaxed(&n->nodes_ready) <= nodes) {
		n->segment[segment] = p->ops->reserve(p->ctx, sizeof *n->segment[segment]);
		if (n->segment[segment])
			/* pairs with handle_node and node_take: who may use the node sees the segment */
			a32_store_release(&n->nodes_ready, (segment + 1) * NOTIFIER_SEGMENT_NODES);
		else
			err = -ENOMEM;
	}
	engine_unlock(mm->arena, &n->growth_lock);
	return err;
}

void sublet__notifier_memory_free(struct sublet_mm *mm)
{
	const struct sublet__platform *p = &mm->arena->platform;
	struct sublet__notifiers *n = &mm->notifiers;

	for (uint32_t level = 0; level < NOTIFIER_LEVELS; level++)
		if (n->level[level].memory)
			p->ops->unreserve(p->ctx, n->level[level].memory, n->level[level].memory_bytes);
	for (uint32_t i = 0; i < NOTIFIER_SEGMENTS && n->segment[i]; i++)
		p->ops->unreserve(p->ctx, n->segment[i], sizeof *n->segment[i]);
}

/* ---- prefetching ---- */

/* The first node of a bin, and its client. */
static void peek(const struct sublet__notifiers *n, const sublet__a32 *head, uint64_t bin)
{
	/* pairs with link and unlink: the node's segment is there */
	uint32_t i = a32_load_acquire(&head[bin]) & HEAD_NODE;

	if (i) {
		__builtin_prefetch(notifier_node(n, i), 1);
		__builtin_prefetch(notifier_client(n, i), 1);
	}
}

void sublet__notifier_prefetch_query(const struct sublet__notifiers *n, uint32_t first, uint32_t end)
{
	/* pairs with link: the bins are there */
	for (uint32_t levels = a32_load_acquire(&n->occupied); levels; levels &= levels - 1) {
		uint32_t level = (uint32_t)__builtin_ctz(levels);
		uint64_t bin = bin_of(first, level), bin_end = (uint64_t)bin_of(end - 1, level) + 1;
		for (bin -= level && bin; bin < bin_end && bin_end - bin <= PEEK_BINS; bin++)
			peek(n, n->level[level].head, bin);
	}
}

void sublet__notifier_prefetch_add(const struct sublet__notifiers *n, uint32_t first, uint32_t end)
{
	uint32_t level = level_of(end - first);

	/* Not a load, to look at the first node as well: a load may be made to wait for stores of the add before this one,
	   or not, as the compiler happened to lay out the code (measured: 50 or 80 atomic adds; this way 45). */
	__builtin_prefetch(&n->level[level].head[bin_of(first, level)], 1);
}

uint64_t sublet__notifier_hint(uint32_t first, uint32_t pages)
{
	return (uint64_t)level_of(pages) << 32 | first;
}

void sublet__notifier_prefetch_remove(const struct sublet__notifiers *n, uint32_t i, uint64_t hint)
{
	uint32_t level = (uint32_t)(hint >> 32) % NOTIFIER_LEVELS;

	__builtin_prefetch(notifier_node(n, i), 1);
	/* The handle is the caller's memory: any level may come out, which must have bins (pairs with grow_level). */
	if (a32_load_acquire(&n->levels_ready) >> level & 1)
		__builtin_prefetch(&n->level[level].head[bin_of((uint32_t)hint, level)], 1);
}

/* ---- checking ---- */

static const char *bin_check(const struct sublet__notifiers *n, uint32_t level, uint64_t bin, uint32_t *nodes)
{
	uint32_t prev = NOTIFIER_NONE;

	uint32_t head = a32_load_relaxed(&n->level[level].head[bin]), i = head & HEAD_NODE;

	if (head && head != (notifier_node(n, i)->next ? i | HEAD_MORE : head_alone(n, i, level)))
		return "notifier: wrong word of a bin";
	for (; i; i = notifier_node(n, i)->next) {
		const struct sublet__notifier_node *node = notifier_node(n, i);
		uint32_t first = node->first, end = node->end;
		if (node->prev != prev)
			return "notifier: broken list";
		if (end <= first || level_of(end - first) != level || bin_of(first, level) != bin)
			return "notifier: in a wrong bin";
		if (!(a32_load_relaxed(&node->generation) & 1))
			return "notifier: listed, but not registered";
		if (a32_load_relaxed(&node->active) && !n->active)
			return "notifier: active without an invalidation";
		if (++*nodes > n->registered)
			return "notifier: list without end";
		prev = i;
	}
	return NULL;
}

static const char *level_check(const struct sublet_mm *mm, uint32_t level, uint32_t *nodes)
{
	const struct sublet__notifiers *n = &mm->notifiers;
	const struct sublet__notifier_level *l = &n->level[level];
	uint64_t bins = l->head ? (uint64_t)bin_of(mm->config.pages - 1, level) + 1 : 0;
	uint32_t before = *nodes;

	for (uint64_t bin = 0; bin < bins; bin += NOTIFIER_CHUNK_BINS) {
		uint32_t used = 0;
		for (uint64_t at = bin; at < bin + NOTIFIER_CHUNK_BINS && at < bins; at++) {
			const char *what = bin_check(n, level, at, nodes);
			if (what)
				return what;
			used += !!a32_load_relaxed(&l->head[at]);
		}
		if (used != (l->used[bin / NOTIFIER_CHUNK_BINS] & CHUNK_COUNT))
			return "notifier: wrong count of bins in use";
	}
	if (*nodes - before != l->nodes || (l->nodes != 0) != (a32_load_relaxed(&n->occupied) >> level & 1))
		return "notifier: wrong count of a level";
	return NULL;
}

const char *sublet__notifier_index_check(const struct sublet_mm *mm)
{
	const char *what = NULL;
	uint32_t nodes = 0;

	for (uint32_t level = 0; level < NOTIFIER_LEVELS && !what; level++)
		what = level_check(mm, level, &nodes);
	if (!what && nodes != mm->notifiers.registered)
		what = "notifier: wrong count of registered ones";
	return what;
}
