/* SPDX-License-Identifier: MIT */
/*
 * iova space: exact best fit over ranges, in the time of a walk down a balanced tree.
 *
 * Best fit with alignment needs more than a tree by size: a range may be large enough and still hold no aligned start.
 * So each node of that tree also knows the most room behind an aligned start in its subtree, for the two alignments
 * that large entries want. A search goes to the first node, in the order of size then address, that has enough room;
 * subtrees without are not entered. Other alignments, and offsets, look at every range of a suitable size.
 *
 * The trees are AVL trees, linked through the ranges themselves: at most 1.44 log2(n) high, 46 for all the ranges that
 * 32 bits can name, which bounds the recursion. A range that shrinks or grows at its end keeps its place by address.
 */
#include "core/iova.h"

#include <errno.h>

static struct sublet__iova_range *range_of(const struct sublet__iova *iova, uint32_t id)
{
	return &iova->range[id];
}

/* How many pages a range has from its first start on that is a multiple of align plus offset. */
static uint64_t room_behind(const struct sublet__iova_range *r, uint64_t align, uint64_t offset)
{
	uint64_t skip = (offset - r->start) & (align - 1);

	return skip < r->pages ? r->pages - skip : 0;
}

/* ---- the trees ---- */

static bool comes_before(const struct sublet__iova *iova, enum sublet__iova_tree tree, uint32_t a, uint32_t b)
{
	const struct sublet__iova_range *x = range_of(iova, a), *y = range_of(iova, b);

	return tree == IOVA_BY_SIZE && x->pages != y->pages ? x->pages < y->pages : x->start < y->start;
}

static uint32_t height_of(const struct sublet__iova *iova, enum sublet__iova_tree tree, uint32_t id)
{
	return range_of(iova, id)->height[tree]; /* 0 of IOVA_NONE */
}

/* What a node knows of its subtree, from its children. */
static void node_update(struct sublet__iova *iova, enum sublet__iova_tree tree, uint32_t id)
{
	struct sublet__iova_range *r = range_of(iova, id);
	const struct sublet__iova_range *left = range_of(iova, r->child[tree][0]);
	const struct sublet__iova_range *right = range_of(iova, r->child[tree][1]);

	r->height[tree] =
		(uint8_t)(1 + (left->height[tree] > right->height[tree] ? left : right)->height[tree]);
	if (tree != IOVA_BY_SIZE)
		return;
	for (uint32_t k = 0; k < IOVA_ALIGNS; k++) {
		uint64_t most = room_behind(r, IOVA_ALIGN_PAGES(k), 0);
		most = left->room[k] > most ? left->room[k] : most;
		r->room[k] = right->room[k] > most ? right->room[k] : most;
	}
}

/* The child on `side` takes its parent's place; returns it. */
static uint32_t node_rotate(struct sublet__iova *iova, enum sublet__iova_tree tree, uint32_t id,
			    uint32_t side)
{
	struct sublet__iova_range *r = range_of(iova, id);
	uint32_t up = r->child[tree][side];

	r->child[tree][side] = range_of(iova, up)->child[tree][!side];
	range_of(iova, up)->child[tree][!side] = id;
	node_update(iova, tree, id);
	node_update(iova, tree, up);
	return up;
}

/* A child changed by one: make the node right again. Returns who stands there now. */
static uint32_t node_balance(struct sublet__iova *iova, enum sublet__iova_tree tree, uint32_t id)
{
	uint32_t *child = range_of(iova, id)->child[tree];

	for (uint32_t side = 0; side < 2; side++) {
		if (height_of(iova, tree, child[side]) <= height_of(iova, tree, child[!side]) + 1)
			continue;
		const uint32_t *below = range_of(iova, child[side])->child[tree];
		if (height_of(iova, tree, below[side]) < height_of(iova, tree, below[!side]))
			child[side] = node_rotate(iova, tree, child[side], !side);
		return node_rotate(iova, tree, id, side);
	}
	node_update(iova, tree, id);
	return id;
}

static uint32_t node_insert(struct sublet__iova *iova, enum sublet__iova_tree tree, uint32_t at, uint32_t id)
{
	if (at == IOVA_NONE) {
		range_of(iova, id)->child[tree][0] = range_of(iova, id)->child[tree][1] = IOVA_NONE;
		node_update(iova, tree, id);
		return id;
	}
	uint32_t *child = &range_of(iova, at)->child[tree][comes_before(iova, tree, at, id)];
	*child = node_insert(iova, tree, *child, id);
	return node_balance(iova, tree, at);
}

/* Take the first node out of the subtree at `at`. */
static uint32_t node_take_first(struct sublet__iova *iova, enum sublet__iova_tree tree, uint32_t at,
				uint32_t *first)
{
	uint32_t *child = range_of(iova, at)->child[tree];

	if (child[0] == IOVA_NONE) {
		*first = at;
		return child[1];
	}
	child[0] = node_take_first(iova, tree, child[0], first);
	return node_balance(iova, tree, at);
}

static uint32_t node_remove(struct sublet__iova *iova, enum sublet__iova_tree tree, uint32_t at, uint32_t id)
{
	uint32_t *child = range_of(iova, at)->child[tree], heir;

	if (at != id) {
		uint32_t side = comes_before(iova, tree, at, id);
		child[side] = node_remove(iova, tree, child[side], id);
		return node_balance(iova, tree, at);
	}
	if (child[1] == IOVA_NONE)
		return child[0];
	uint32_t right = node_take_first(iova, tree, child[1], &heir);
	range_of(iova, heir)->child[tree][0] = child[0];
	range_of(iova, heir)->child[tree][1] = right;
	return node_balance(iova, tree, heir);
}

static void tree_insert(struct sublet__iova *iova, enum sublet__iova_tree tree, uint32_t id)
{
	iova->root[tree] = node_insert(iova, tree, iova->root[tree], id);
}

/* While its start and pages are what they were when it was inserted. */
static void tree_remove(struct sublet__iova *iova, enum sublet__iova_tree tree, uint32_t id)
{
	iova->root[tree] = node_remove(iova, tree, iova->root[tree], id);
}

/* ---- ranges ---- */

/* A new range behind `prev`, not in any tree yet. There are always enough: sublet__iova_ranges. */
static uint32_t range_new(struct sublet__iova *iova, uint32_t prev, uint64_t start, uint64_t pages)
{
	uint32_t id = iova->spare, next = range_of(iova, prev)->next;

	if (id != IOVA_NONE)
		iova->spare = range_of(iova, id)->next;
	else
		id = iova->fresh++;
	*range_of(iova, id) =
		(struct sublet__iova_range){ .start = start, .pages = pages, .prev = prev, .next = next };
	range_of(iova, prev)->next = id;
	if (next != IOVA_NONE)
		range_of(iova, next)->prev = id;
	return id;
}

/* Out of the list of neighbours; in no tree any more. */
static void range_drop(struct sublet__iova *iova, uint32_t id)
{
	struct sublet__iova_range *r = range_of(iova, id);

	range_of(iova, r->prev)->next = r->next;
	if (r->next != IOVA_NONE)
		range_of(iova, r->next)->prev = r->prev;
	r->next = iova->spare;
	iova->spare = id;
}

/* Cut [start, start + pages) out of a free range. */
static uint32_t range_cut(struct sublet__iova *iova, uint32_t id, uint64_t start, uint64_t pages)
{
	struct sublet__iova_range *r = range_of(iova, id);
	uint64_t before = start - r->start, after = r->pages - before - pages;

	tree_remove(iova, IOVA_BY_SIZE, id);
	if (before) {
		r->pages = before;
		tree_insert(iova, IOVA_BY_SIZE, id);
		id = range_new(iova, id, start, pages);
		tree_insert(iova, IOVA_BY_ADDRESS, id);
		r = range_of(iova, id);
	}
	r->pages = pages;
	r->is_taken = true;
	if (after) {
		uint32_t rest = range_new(iova, id, start + pages, after);
		tree_insert(iova, IOVA_BY_ADDRESS, rest);
		tree_insert(iova, IOVA_BY_SIZE, rest);
	}
	iova->taken++;
	iova->taken_pages += pages;
	return id;
}

/* Free `id` swallows its free right neighbour; neither is in the tree by size. */
static void range_join(struct sublet__iova *iova, uint32_t id, uint32_t next)
{
	tree_remove(iova, IOVA_BY_ADDRESS, next);
	range_of(iova, id)->pages += range_of(iova, next)->pages;
	range_drop(iova, next);
}

static bool range_is_free(const struct sublet__iova *iova, uint32_t id)
{
	return id != IOVA_NONE && !range_of(iova, id)->is_taken;
}

void sublet__iova_init(struct sublet__iova *iova, uint32_t taken_max, uint64_t first, uint64_t end)
{
	*iova = (struct sublet__iova){
		.range = iova->range, .taken_max = taken_max, .first = first, .end = end, .fresh = 1
	};
	if (first == end)
		return;
	uint32_t all = range_new(iova, IOVA_NONE, first, end - first);
	tree_insert(iova, IOVA_BY_ADDRESS, all);
	tree_insert(iova, IOVA_BY_SIZE, all);
}

/* ---- what is wanted ---- */

struct want {
	uint64_t pages;
	uint64_t align;
	uint64_t offset;
	uint32_t k; /* of the tree's alignments; IOVA_ALIGNS: none of them */
};

/* The first range of the subtree, by size then address, that holds what is wanted. */
static uint32_t best_fit(const struct sublet__iova *iova, uint32_t at, const struct want *want)
{
	const struct sublet__iova_range *r = range_of(iova, at);

	if (at == IOVA_NONE || (want->k < IOVA_ALIGNS && r->room[want->k] < want->pages))
		return IOVA_NONE;
	if (r->pages >= want->pages) {
		uint32_t found = best_fit(iova, r->child[IOVA_BY_SIZE][0], want);
		if (found != IOVA_NONE)
			return found;
		if (room_behind(r, want->align, want->offset) >= want->pages)
			return at;
	}
	return best_fit(iova, r->child[IOVA_BY_SIZE][1], want);
}

uint32_t sublet__iova_take(struct sublet__iova *iova, uint64_t pages, uint64_t align, uint64_t offset)
{
	struct want want = { .pages = pages, .align = align, .offset = offset, .k = IOVA_ALIGNS };

	if (iova->taken == iova->taken_max)
		return IOVA_NONE;
	for (uint32_t k = 0; k < IOVA_ALIGNS; k++)
		if (align == IOVA_ALIGN_PAGES(k) && !offset)
			want.k = k;
	uint32_t id = best_fit(iova, iova->root[IOVA_BY_SIZE], &want);
	if (id == IOVA_NONE)
		return IOVA_NONE;
	const struct sublet__iova_range *r = range_of(iova, id);
	return range_cut(iova, id, r->start + r->pages - room_behind(r, align, offset), pages);
}

/* The range that pn lies in, taken or free. */
static uint32_t range_find(const struct sublet__iova *iova, uint64_t pn)
{
	uint32_t at = iova->root[IOVA_BY_ADDRESS];

	while (at != IOVA_NONE) {
		const struct sublet__iova_range *r = range_of(iova, at);
		if (pn >= r->start && pn - r->start < r->pages)
			return at;
		at = r->child[IOVA_BY_ADDRESS][pn > r->start];
	}
	return IOVA_NONE;
}

int sublet__iova_take_at(struct sublet__iova *iova, uint64_t start, uint64_t pages, uint32_t *id)
{
	if (start < iova->first || start >= iova->end || pages > iova->end - start)
		return -ERANGE;
	uint32_t at = range_find(iova, start);
	const struct sublet__iova_range *r = range_of(iova, at);
	if (r->is_taken || r->start + r->pages - start < pages)
		return -EEXIST;
	if (iova->taken == iova->taken_max)
		return -ENOSPC;
	*id = range_cut(iova, at, start, pages);
	return 0;
}

uint32_t sublet__iova_find(const struct sublet__iova *iova, uint64_t pn)
{
	uint32_t id = range_find(iova, pn);

	return range_of(iova, id)->is_taken ? id : IOVA_NONE;
}

void sublet__iova_give(struct sublet__iova *iova, uint32_t id)
{
	struct sublet__iova_range *r = range_of(iova, id);
	uint32_t prev = r->prev, next = r->next;

	iova->taken--;
	iova->taken_pages -= r->pages;
	r->is_taken = false;
	if (range_is_free(iova, next)) {
		tree_remove(iova, IOVA_BY_SIZE, next);
		range_join(iova, id, next);
	}
	if (range_is_free(iova, prev)) {
		tree_remove(iova, IOVA_BY_SIZE, prev);
		range_join(iova, prev, id);
		id = prev;
	}
	tree_insert(iova, IOVA_BY_SIZE, id);
}

uint64_t sublet__iova_largest(const struct sublet__iova *iova)
{
	uint32_t at = iova->root[IOVA_BY_SIZE];

	while (range_of(iova, at)->child[IOVA_BY_SIZE][1] != IOVA_NONE)
		at = range_of(iova, at)->child[IOVA_BY_SIZE][1];
	return range_of(iova, at)->pages;
}
