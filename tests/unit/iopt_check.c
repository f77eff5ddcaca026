/* SPDX-License-Identifier: MIT */
#include "iopt_check.h"

#include "fixture.h"

/* ---- iova space ---- */

struct tree_walk {
	const struct sublet__iova *iova;
	enum sublet__iova_tree tree;
	uint32_t nodes;
	uint32_t last; /* in order */
};

static uint64_t room_most(const struct sublet__iova_range *r, uint32_t k)
{
	uint64_t align = IOVA_ALIGN_PAGES(k), start = (r->start + align - 1) / align * align;

	return start < r->start + r->pages ? r->start + r->pages - start : 0;
}

static uint64_t max_of(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

static void node_check(struct tree_walk *w, uint32_t id)
{
	const struct sublet__iova_range *all = w->iova->range, *r = &all[id];
	const uint32_t *child = r->child[w->tree];

	if (!id)
		return;
	node_check(w, child[0]);
	if (w->last) {
		const struct sublet__iova_range *last = &all[w->last];
		bool in_order = w->tree == IOVA_BY_SIZE && last->pages != r->pages ? last->pages < r->pages
										   : last->start < r->start;
		assert_true(in_order);
	}
	w->last = id;
	w->nodes++;
	node_check(w, child[1]);
	int left = all[child[0]].height[w->tree], right = all[child[1]].height[w->tree];
	assert_int_equal(r->height[w->tree], 1 + (left > right ? left : right));
	assert_true(left - right <= 1 && right - left <= 1);
	for (uint32_t k = 0; w->tree == IOVA_BY_SIZE && k < IOVA_ALIGNS; k++)
		assert_int_equal(r->room[k], max_of(room_most(r, k),
						    max_of(all[child[0]].room[k], all[child[1]].room[k])));
}

static uint32_t tree_check(const struct sublet__iova *iova, enum sublet__iova_tree tree)
{
	struct tree_walk w = { .iova = iova, .tree = tree };

	node_check(&w, iova->root[tree]);
	return w.nodes;
}

void iova_check(const struct sublet__iova *iova)
{
	const struct sublet__iova_range *all = iova->range;
	uint64_t at = iova->first, taken_pages = 0;
	uint32_t taken = 0, ranges = 0, spare = 0, prev = 0;

	for (uint32_t id = all[0].next; id; prev = id, id = all[id].next) {
		assert_int_equal(all[id].start, at);
		assert_true(all[id].pages > 0);
		assert_int_equal(all[id].prev, prev);
		assert_true(!prev || all[prev].is_taken || all[id].is_taken);
		at += all[id].pages;
		taken += all[id].is_taken;
		taken_pages += all[id].is_taken ? all[id].pages : 0;
		ranges++;
	}
	assert_int_equal(at, iova->end);
	assert_int_equal(taken, iova->taken);
	assert_int_equal(taken_pages, iova->taken_pages);
	assert_int_equal(tree_check(iova, IOVA_BY_ADDRESS), ranges);
	assert_int_equal(tree_check(iova, IOVA_BY_SIZE), ranges - taken);
	for (uint32_t id = iova->spare; id; id = all[id].next)
		spare++;
	assert_int_equal(ranges + spare + 1, iova->fresh);
	assert_true(iova->fresh <= sublet__iova_ranges(iova->taken_max));
	assert_true(iova->taken <= iova->taken_max);
}

/* ---- the table ---- */

struct table_walk {
	const struct sublet_iopt *iopt;
	uint64_t entries[IOPT_LEVELS];
};

static void entry_check(const struct sublet_iopt *iopt, uint32_t level, uint64_t pn, uint64_t entry)
{
	const struct sublet__iova_range *m = &iopt->iova.range[sublet__iova_find(&iopt->iova, pn)];
	uint64_t offset = entry & ~ENTRY_FLAGS;

	assert_true(level < iopt->levels);
	assert_true(m->is_taken && pn >= m->start && pn + level_pages(level) <= m->start + m->pages);
	assert_int_equal(entry & ENTRY_ACCESS, m->flags);
	assert_int_equal(entry & ENTRY_FLAGS & ~(ENTRY_ACCESS | ENTRY_LOWER), 0);
	assert_int_equal(offset % level_bytes(level), 0);
	assert_true(offset + level_bytes(level) <= iopt->backing_bytes);
}

/* Check a slot and those below; returns whether it is not empty. `above` is what an entry above says here, or 0. */
static bool slot_check(struct table_walk *w, uint32_t level, uint64_t pn, uint64_t above)
{
	uint64_t entry = entry_get(w->iopt, level, pn), pages, used = 0;

	if (entry)
		entry_check(w->iopt, level, pn, entry);
	if (above)
		assert_int_equal(entry & ~ENTRY_LOWER, above);
	else if (entry)
		w->entries[level]++;
	if (!level) {
		assert_int_equal(entry & ENTRY_LOWER, 0);
		return entry;
	}
	pages = level_pages(level - 1);
	uint16_t known = *used_at(w->iopt, level, pn);
	if (entry)
		assert_int_equal(known, entry & ENTRY_LOWER ? IOPT_BELOW : 0);
	for (uint64_t i = 0; i < IOPT_BELOW; i++) {
		uint64_t at = pn + i * pages;
		if (at + pages <= w->iopt->first || at >= w->iopt->first + w->iopt->pages)
			continue;
		uint64_t said = entry & ENTRY_LOWER ? (entry & ~ENTRY_LOWER) + i * level_bytes(level - 1) : 0;
		used += slot_check(w, level - 1, at, said);
	}
	assert_int_equal(known, used);
	return entry || used;
}

void iopt_check(const struct sublet_iopt *iopt)
{
	struct table_walk w = { .iopt = iopt };
	const struct sublet__iopt_level *top = &iopt->level[IOPT_TOP];

	iova_check(&iopt->iova);
	for (uint64_t slot = 0; slot < top->slots; slot++)
		slot_check(&w, IOPT_TOP, (top->first + slot) << (IOPT_TOP * IOPT_LEVEL_BITS), 0);
	for (uint32_t level = 0; level < IOPT_LEVELS; level++)
		assert_int_equal(w.entries[level], iopt->entries[level]);
}
