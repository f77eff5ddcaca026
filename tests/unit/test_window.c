/* SPDX-License-Identifier: MIT */
/* core/window.c: what the chooser avoids. That it finds the cheapest window is held by tests/model. */
#include "fixture.h"

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

/* What was unmapped makes its pageblock cheaper for the next choice. */
static void window_freed(void **unused)
{
	static struct fake f;
	uint64_t cost;
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .area_frames = 4 * 512, .no_track = true });
	uint32_t vpn = map_pages(&f, 4 * 512, SUBLET_MOVABLE);
	assert_int_not_equal(sublet__window_cheapest(f.arena, 1, 1, &cost), ENGINE_NONE);
	assert_true(cost > 0);
	assert_int_equal(sublet_unmap(f.engine_mm[0], addr_of(&f, 0, vpn + 512), 512 * PAGE), 0);
	sublet__cache_drain(f.arena);
	uint32_t pb = sublet__window_cheapest(f.arena, 1, 1, &cost);
	assert_int_not_equal(pb, ENGINE_NONE);
	assert_int_equal(sublet__account_get(&f.arena->pageblocks[pb], ACCOUNT_FREE), 512);
	assert_int_equal(cost, 0);
	fixture_close(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(window_stuck),
		cmocka_unit_test(window_isolated),
		cmocka_unit_test(window_freed),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
