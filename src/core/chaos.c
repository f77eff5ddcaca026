/* SPDX-License-Identifier: MIT */
/*
 * Moves that nobody asked for: one step of the torture mode, and putting scattered memory in line
 * again before the budget of kernel mappings is spent.
 */
#include "core/engine.h"

#define BLOCKS_LOOKED 512u /* page-table blocks looked at for one that is mapped; then none is */

#define RELIEF_RUNS 64u /* moved at one time to merge mappings */

static uint64_t mix(uint64_t *state)
{
	/* splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014 */
	uint64_t z = (*state += 0x9e3779b97f4a7c15ull);
	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return z ^ z >> 31;
}

/* A mapped page of a random block, at or after a random place in it; ENGINE_NONE: nothing is there. */
static uint32_t page_pick(const struct sublet_mm *mm, uint64_t *random)
{
	uint32_t blocks = a32_load_acquire(&mm->blocks_used);

	for (uint32_t tries = 0; blocks && tries < BLOCKS_LOOKED; tries++) {
		uint32_t first = (uint32_t)(mix(random) % blocks) * ENGINE_BLOCK_PAGES;
		uint32_t skip = (uint32_t)(mix(random) % ENGINE_BLOCK_PAGES);
		for (uint32_t i = 0; i < ENGINE_BLOCK_PAGES; i++) {
			uint32_t vpn = first + (skip + i) % ENGINE_BLOCK_PAGES;
			if (vpn < mm->config.pages && (a32_load_relaxed(&mm->pte[vpn]) & PTE_PRESENT))
				return vpn;
		}
	}
	return ENGINE_NONE;
}

static uint32_t linearise(struct sublet_mm *mm, uint32_t runs)
{
	struct sublet__window_range merge = { .to = MOVE_AREA_FIRST, .nowait = true, .linearise = true };
	uint32_t blocks = a32_load_acquire(&mm->blocks_used), merged = 0;

	for (uint32_t block = 0; block < blocks && merged < runs; block++) {
		if (a32_load_relaxed(&mm->block_mappings[block]) <=
		    2) /* relaxed: the move looks again, locked */
			continue;
		uint32_t end = min_u32((block + 1) * ENGINE_BLOCK_PAGES, mm->config.pages);
		for (uint32_t vpn = block * ENGINE_BLOCK_PAGES; vpn < end && merged < runs;) {
			int64_t moved = (a32_load_relaxed(&mm->pte[vpn]) & PTE_PRESENT)
						? sublet__move_page(mm, vpn, &merge)
						: 0;
			merged += moved > 0;
			vpn = moved > 0 ? vpn + (uint32_t)moved : vpn + unit_pages(mm->arena);
		}
	}
	a64_add_relaxed(&mm->arena->counters.linearised_runs, merged);
	return merged;
}

void sublet__mm_relieve(struct sublet_mm *mm)
{
	uint32_t limit = mm->config.mapping_limit;

	/* relaxed: a budget with a margin */
	if (a32_load_relaxed(&mm->mapping_count) > limit / 4 * 3)
		(void)linearise(mm, RELIEF_RUNS);
}

uint64_t sublet__chaos_move(struct sublet_arena *arena, struct sublet_mm *mm, uint64_t random)
{
	struct sublet__window_range any = { .to = MOVE_AREA_FIRST };
	uint32_t vpn = page_pick(mm, &random);

	if (vpn == ENGINE_NONE)
		return 0;
	sublet__mm_relieve(mm);
	any.to = mix(&random) & 1 ? MOVE_AREA_FIRST : MOVE_NORMAL_FIRST;
	int64_t moved = sublet__move_page(mm, vpn, &any);
	return moved > 0 ? (uint64_t)moved << frames_bytes_shift(arena) : 0;
}
