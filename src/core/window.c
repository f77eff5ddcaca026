/* SPDX-License-Identifier: MIT */
/*
 * Choosing the cheapest window to claim.
 *
 * The kernel's first fit moves pages that it need not move. Here a tree over the area's pageblocks
 * keeps, for each node, the sum and the least of its blocks' costs: a copied frame costs 16, a
 * dropped one 1, and a block that cannot be emptied WINDOW_BLOCKED. Blocks change far more often
 * than anybody claims, so a change only marks its block dirty (two bits, set once), and the tree is
 * brought up to date, for the dirty blocks alone, when a claim asks.
 *
 * The search is branch and bound over the first block s of the window. For all s in [a, b]:
 *   - the blocks [b, a + count) are in every such window: their sum is a lower bound;
 *   - count times the least cost in [a, b + count) is another.
 * A range whose bound is not below the best window found so far is cut off. Each bound is
 * O(log blocks); on an area with structure the search visits a few ranges, and equal costs
 * everywhere, the worst case of a naive search, are cut off by the second bound at once. Occupancy
 * at random defeats the bounds: then the search is cut short after VISITS_MAX ranges, each step of
 * which went to the more promising half first. It is exact up to 2 GiB or so, and within a few percent of
 * the cheapest window on areas of any size (`make bench`, "choosing a window").
 */
#include "core/engine.h"

#define COST_COPY  16u
#define COST_DROP  1u
#define VISITS_MAX 1000u

uint32_t sublet__window_leaves(uint32_t pageblocks)
{
	uint32_t leaves = 1;
	while (leaves < pageblocks)
		leaves <<= 1;
	return leaves;
}

void sublet__window_touch(struct sublet_arena *arena, uint32_t pageblock)
{
	sublet__a64 *word = &arena->dirty[pageblock / 64], *top = &arena->dirty_top[pageblock / 4096];
	uint64_t bit = 1ull << (pageblock % 64), top_bit = 1ull << (pageblock / 64 % 64);

	/* seq_cst against refresh, which clears the bits before it reads the counts; we look at them after
	   we wrote those. Both bits: whoever set the first may not have come to the second yet, and a
	   refresh meanwhile would pass over this block. Looked at first, since they are nearly always set,
	   and then their lines stay shared. */
	if ((a64_load_seq_cst(word) & bit) && (a64_load_seq_cst(top) & top_bit))
		return;
	a64_or_seq_cst(word, bit);
	a64_or_seq_cst(top, top_bit);
}

static uint64_t block_cost(const struct sublet_arena *arena, const struct sublet__pageblock *pb)
{
	uint64_t cost = (uint64_t)sublet__account_get(pb, ACCOUNT_MOVABLE) * COST_COPY +
			(uint64_t)sublet__account_get(pb, ACCOUNT_DISCARDABLE) * COST_DROP;

	if (sublet__account_get(pb, ACCOUNT_CLAIMED) || sublet__account_get(pb, ACCOUNT_HELD) ||
	    sublet__account_get(pb, ACCOUNT_ISOLATED) || a32_load_acquire(&pb->isolated))
		cost += WINDOW_BLOCKED;
	if (a32_load_relaxed(&arena->stays) && sublet__account_get(pb, ACCOUNT_MOVABLE))
		cost += WINDOW_BLOCKED;
	if (a32_load_relaxed(&pb->stuck))
		cost += WINDOW_STUCK;
	return cost;
}

static void leaf_update(struct sublet_arena *arena, uint32_t pageblock)
{
	uint32_t node = arena->tree_leaves + pageblock;

	arena->tree_sum[node] = arena->tree_min[node] = block_cost(arena, &arena->pageblocks[pageblock]);
	for (node /= 2; node; node /= 2) {
		uint64_t left = arena->tree_min[2 * node], right = arena->tree_min[2 * node + 1];
		arena->tree_sum[node] = arena->tree_sum[2 * node] + arena->tree_sum[2 * node + 1];
		arena->tree_min[node] = left < right ? left : right;
	}
}

static uint32_t area_blocks(const struct sublet_arena *arena)
{
	return arena->zone[ZONE_AREA].frames >> arena->pageblock_order;
}

/* Bring the tree up to date; claim_lock held. */
static void refresh(struct sublet_arena *arena)
{
	uint32_t words = (arena->tree_leaves + 63) / 64;

	for (uint32_t t = 0; t * 64 < words; t++) {
		uint64_t top = a64_exchange_seq_cst(&arena->dirty_top[t], 0);
		for (; top; top &= top - 1) {
			uint32_t w = t * 64 + (uint32_t)__builtin_ctzll(top);
			uint64_t bits = a64_exchange_seq_cst(&arena->dirty[w], 0);
			for (; bits; bits &= bits - 1)
				leaf_update(arena, w * 64 + (uint32_t)__builtin_ctzll(bits));
		}
	}
}

void sublet__window_init(struct sublet_arena *arena)
{
	for (uint32_t i = 0; i < 2 * arena->tree_leaves; i++)
		arena->tree_min[i] = arena->tree_sum[i] = i >= arena->tree_leaves ? WINDOW_BLOCKED : 0;
	for (uint32_t pb = 0; pb < area_blocks(arena); pb++)
		sublet__window_touch(arena, pb);
	for (uint32_t node = arena->tree_leaves - 1; node; node--) {
		arena->tree_sum[node] = arena->tree_sum[2 * node] + arena->tree_sum[2 * node + 1];
		arena->tree_min[node] = WINDOW_BLOCKED;
	}
	refresh(arena);
}

static uint64_t range_sum(const struct sublet_arena *arena, uint32_t first, uint32_t end)
{
	uint64_t sum = 0;
	uint32_t l = first + arena->tree_leaves, r = end + arena->tree_leaves;

	for (; l < r; l /= 2, r /= 2) {
		if (l & 1)
			sum += arena->tree_sum[l++];
		if (r & 1)
			sum += arena->tree_sum[--r];
	}
	return sum;
}

static uint64_t range_min(const struct sublet_arena *arena, uint32_t first, uint32_t end)
{
	uint64_t least = UINT64_MAX;
	uint32_t l = first + arena->tree_leaves, r = end + arena->tree_leaves;

	for (; l < r; l /= 2, r /= 2) {
		uint64_t v = UINT64_MAX;
		if (l & 1)
			v = arena->tree_min[l++];
		least = v < least ? v : least;
		if (r & 1) {
			v = arena->tree_min[--r];
			least = v < least ? v : least;
		}
	}
	return least;
}

struct search {
	const struct sublet_arena *arena;
	uint32_t count;
	uint32_t step;
	uint64_t best_cost;
	uint32_t best;
	uint32_t visits; /* ranges that may still be looked at */
};

/* Lower bound of the windows that start at a * step .. b * step. */
static uint64_t bound(const struct search *s, uint32_t a, uint32_t b)
{
	uint32_t first = a * s->step, last = b * s->step;
	uint64_t least = range_min(s->arena, first, last + s->count);
	uint64_t low = least > UINT64_MAX / s->count ? UINT64_MAX : least * s->count;

	if (last < first + s->count) {
		uint64_t common = range_sum(s->arena, last, first + s->count);
		low = common > low ? common : low;
	}
	return low;
}

/* The starts a .. b, whose lower bound is `low`. Depth is log2 of the number of starts. */
static void descend(struct search *s, uint32_t a, uint32_t b, uint64_t low)
{
	if (low >= s->best_cost || !s->visits)
		return;
	s->visits--;
	if (a == b) {
		s->best_cost = low; /* of one start the bound is the cost itself */
		s->best = a * s->step;
		return;
	}
	uint32_t middle = a + (b - a) / 2;
	uint64_t left = bound(s, a, middle), right = bound(s, middle + 1, b);
	if (left <= right)
		descend(s, a, middle, left);
	descend(s, middle + 1, b, right);
	if (left > right)
		descend(s, a, middle, left);
}

uint32_t sublet__window_cheapest(struct sublet_arena *arena, uint32_t count, uint32_t step, uint64_t *cost)
{
	struct search s = { arena, count, step, WINDOW_BLOCKED, ENGINE_NONE, VISITS_MAX };
	uint32_t last;

	if (count > area_blocks(arena))
		return ENGINE_NONE;
	refresh(arena);
	last = (area_blocks(arena) - count) / step;
	descend(&s, 0, last, bound(&s, 0, last));
	*cost = s.best_cost;
	return s.best;
}

/* To measure the worst case: every start is looked at, there is no bound to cut by. */
uint32_t sublet__window_dearest(struct sublet_arena *arena, uint32_t count, uint32_t step, uint64_t *cost)
{
	uint32_t best = ENGINE_NONE;

	if (count > area_blocks(arena))
		return ENGINE_NONE;
	refresh(arena);
	for (uint32_t at = 0; at + count <= area_blocks(arena); at += step) {
		uint64_t sum = range_sum(arena, at, at + count);
		if (sum < WINDOW_STUCK && (best == ENGINE_NONE || sum > *cost)) {
			best = at;
			*cost = sum;
		}
	}
	return best;
}
