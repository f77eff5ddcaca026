/* SPDX-License-Identifier: MIT */
/* core/window.c: the chooser against a search of every window. Part of G10: a window that exists is found. */
#include "fixture.h"

enum { KIND_FREE = 0, KIND_DROPPABLE, KIND_MOVABLE, KIND_CLAIMED, KINDS };

static const uint64_t kind_cost[KINDS] = { 0, 1, 16, WINDOW_BLOCKED };
static const enum sublet__account kind_account[KINDS] = { ACCOUNT_FREE, ACCOUNT_DISCARDABLE, ACCOUNT_MOVABLE,
							  ACCOUNT_CLAIMED };

/* The least (or greatest claimable) sum over all starts; UINT64_MAX: none. */
static uint64_t brute(const uint64_t *cost, uint32_t blocks, uint32_t count, uint32_t step, bool dearest)
{
	uint64_t best = UINT64_MAX;

	for (uint32_t at = 0; at + count <= blocks; at += step) {
		uint64_t sum = 0;
		for (uint32_t i = at; i < at + count; i++)
			sum += cost[i];
		if (sum >= (dearest ? WINDOW_STUCK : WINDOW_BLOCKED))
			continue;
		if (best == UINT64_MAX || (dearest ? sum > best : sum < best))
			best = sum;
	}
	return best;
}

static void compare(struct fake *f, const uint64_t *cost, uint32_t blocks, uint32_t count, uint32_t step)
{
	for (uint32_t dearest = 0; dearest < 2; dearest++) {
		uint64_t want = brute(cost, blocks, count, step, dearest), have = 0, sum = 0;
		uint32_t at = dearest ? sublet__window_dearest(f->arena, count, step, &have)
				      : sublet__window_cheapest(f->arena, count, step, &have);
		if (want == UINT64_MAX) {
			assert_int_equal(at, ENGINE_NONE);
			continue;
		}
		assert_true(at != ENGINE_NONE && at % step == 0 && at + count <= blocks);
		for (uint32_t i = at; i < at + count; i++)
			sum += cost[i];
		assert_int_equal(have, want);
		assert_int_equal(sum, want);
	}
}

static void kind_set(struct fake *f, uint32_t pfn, uint8_t *kind, uint8_t to)
{
	if (*kind != to)
		sublet__account(f->arena, pfn, 1, kind_account[*kind], kind_account[to]);
	*kind = to;
}

/* Every area of 1 to 6 blocks, every kind of block, every length, steps 1, 2 and 4. */
static void window_enumerated(void **unused)
{
	(void)unused;

	for (uint32_t blocks = 1; blocks <= 6; blocks++) {
		static struct fake f;
		uint8_t kind[6] = { 0 };
		uint64_t cost[6];
		fixture_open(&f, &(struct fake_options){
					 .frame_shift = 21, .area_frames = blocks, .run_pages_max = 1 });
		for (uint32_t n = 0; n < 1u << (2 * blocks); n++) {
			for (uint32_t i = 0; i < blocks; i++) {
				kind_set(&f, i, &kind[i], n >> (2 * i) & 3);
				cost[i] = kind_cost[kind[i]];
			}
			for (uint32_t count = 1; count <= blocks; count++)
				for (uint32_t step = 1; step <= 4; step *= 2)
					compare(&f, cost, blocks, count, step);
		}
		uint64_t none;
		assert_int_equal(sublet__window_cheapest(f.arena, blocks + 1, 1, &none), ENGINE_NONE);
		for (uint32_t i = 0; i < blocks; i++)
			kind_set(&f, i, &kind[i], KIND_FREE);
		fixture_close(&f);
	}
}

/* Random costs, changed a few at a time so that stale sums would show. */
static void window_random(void **unused)
{
	enum { BLOCKS = 300, CHANGES = 4000 };
	static struct fake f;
	static uint8_t kind[BLOCKS];
	static uint64_t cost[BLOCKS];
	uint64_t state = seed_get("window_random");
	(void)unused;

	fixture_open(&f,
		     &(struct fake_options){ .frame_shift = 21, .area_frames = BLOCKS, .run_pages_max = 1 });
	for (uint32_t n = 0; n < CHANGES; n++) {
		uint32_t many = below(&state, 8), blocked = n % 3;
		for (uint32_t i = 0; i < many; i++) {
			uint32_t at = below(&state, BLOCKS);
			uint32_t to = below(&state, 40);
			kind_set(&f, at, &kind[at], (uint8_t)(to < blocked ? KIND_CLAIMED : to % 3));
			cost[at] = kind_cost[kind[at]];
		}
		uint32_t step = 1u << below(&state, 6);
		compare(&f, cost, BLOCKS, 1 + below(&state, n % 7 ? 20 : BLOCKS), step);
	}
	for (uint32_t i = 0; i < BLOCKS; i++)
		kind_set(&f, i, &kind[i], KIND_FREE);
	fixture_close(&f);
}

/* Blocks of many frames: costs add up over their counts. More than 64 blocks: two words of dirty bits. */
static void window_counts(void **unused)
{
	enum { BLOCKS = 70 };
	static struct fake f;
	static uint32_t movable[BLOCKS], dropped[BLOCKS];
	static uint64_t cost[BLOCKS];
	uint64_t state = seed_get("window_counts");
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .area_frames = BLOCKS * 512, .mm_pages = 512 });
	for (uint32_t n = 0; n < 2000; n++) {
		uint32_t at = below(&state, BLOCKS), m = below(&state, 257), d = below(&state, 257);
		sublet__account(f.arena, at * 512, movable[at], ACCOUNT_MOVABLE, ACCOUNT_FREE);
		sublet__account(f.arena, at * 512, dropped[at], ACCOUNT_DISCARDABLE, ACCOUNT_FREE);
		sublet__account(f.arena, at * 512, movable[at] = m, ACCOUNT_FREE, ACCOUNT_MOVABLE);
		sublet__account(f.arena, at * 512, dropped[at] = d, ACCOUNT_FREE, ACCOUNT_DISCARDABLE);
		cost[at] = 16ull * m + d;
		compare(&f, cost, BLOCKS, 1 + below(&state, BLOCKS), 1u << below(&state, 4));
	}
	for (uint32_t at = 0; at < BLOCKS; at++) {
		sublet__account(f.arena, at * 512, movable[at], ACCOUNT_MOVABLE, ACCOUNT_FREE);
		sublet__account(f.arena, at * 512, dropped[at], ACCOUNT_DISCARDABLE, ACCOUNT_FREE);
	}
	fixture_close(&f);
}

/* A pageblock that was stuck is avoided while there is another, and taken when there is none. */
static void window_stuck(void **unused)
{
	static struct fake f;
	uint64_t cost;
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .frame_shift = 21, .area_frames = 3, .run_pages_max = 1 });
	for (uint32_t pb = 0; pb < 3; pb += 2) {
		a32_add_acq_rel(&f.arena->pageblocks[pb].stuck, 1);
		sublet__window_touch(f.arena, pb);
	}
	assert_int_equal(sublet__window_cheapest(f.arena, 1, 1, &cost), 1);
	assert_int_equal(cost, 0);
	assert_int_not_equal(sublet__window_cheapest(f.arena, 2, 1, &cost), ENGINE_NONE);
	for (uint32_t pb = 0; pb < 3; pb += 2) {
		a32_sub_acq_rel(&f.arena->pageblocks[pb].stuck, 1);
		sublet__window_touch(f.arena, pb);
	}
	fixture_close(&f);
}

/* A block that somebody's isolation overlaps is not offered, however movable it looks. */
static void window_isolated(void **unused)
{
	static struct fake f;
	uint64_t cost;
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .area_frames = 2 * 512, .no_track = true });
	map_pages(&f, 1024, SUBLET_MOVABLE);
	struct sublet__isolation w = { .first_pfn = 100, .end_pfn = 200 };
	sublet__isolate(f.arena, &w);
	assert_int_equal(sublet__isolated_frames(f.arena, &w), 0);
	assert_int_equal(sublet__window_cheapest(f.arena, 1, 1, &cost), 1);
	assert_int_equal(sublet__window_cheapest(f.arena, 2, 1, &cost), ENGINE_NONE);
	sublet__isolate_undo(f.arena, &w);
	assert_int_equal(sublet__window_cheapest(f.arena, 2, 1, &cost), 0);
	fixture_close(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(window_enumerated), cmocka_unit_test(window_random),
		cmocka_unit_test(window_counts),     cmocka_unit_test(window_stuck),
		cmocka_unit_test(window_isolated),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
