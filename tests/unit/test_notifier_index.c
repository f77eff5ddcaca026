/* SPDX-License-Identifier: MIT */
/* core/notifier_index.c: with many nodes, over large windows, in 64 mms at once. Its answers: tests/model. */
#include "fixture.h"

#include <sublet/notifier.h>

struct range {
	struct sublet_notifier notifier;
	uint32_t first;
	uint32_t end;
	bool live;
	uint32_t calls;
};

static int range_invalidate(void *ctx, const struct sublet_invalidation *inv)
{
	struct range *r = ctx;

	(void)inv;
	r->calls++;
	return 0;
}

static const struct sublet_notifier_ops ops = { SUBLET_OPTIONS(sublet_notifier_ops), range_invalidate };

static void range_add(struct sublet_mm *mm, struct range *r, uint32_t first, uint32_t end)
{
	uint64_t from = mm->config.base + first * PAGE;

	*r = (struct range){ .first = first, .end = end, .live = true };
	assert_int_equal(sublet_notifier_add(mm, (void *)(uintptr_t)from, (end - first) * PAGE, &ops, r,
					     "range", &r->notifier),
			 0);
}

static void check_index(struct sublet_mm *mm)
{
	const char *what = sublet__notifier_index_check(mm);

	if (what)
		fail_msg("%s", what);
}

/* ---- many ---- */

/* More than one segment of nodes; a walk over all of them stops for breath, and misses nobody. */
static void many(void **unused)
{
	static struct fake f;
	enum { COUNT = 150000 };
	struct range *r = calloc(COUNT, sizeof *r);
	struct sublet__invalidation inv;
	struct sublet_notifier_stats stats = { SUBLET_OPTIONS(sublet_notifier_stats) };
	uint64_t state = seed_get("many"), before;
	(void)unused;

	assert_non_null(r);
	fixture_open(
		&f, &(struct fake_options){ .area_frames = 512, .normal_frames = 512, .mm_pages = 1u << 18 });
	struct sublet_mm *mm = f.engine_mm[0];
	for (uint32_t i = 0; i < COUNT; i++) {
		uint32_t first = below(&state, mm->config.pages - 4);
		range_add(mm, &r[i], first, first + 1 + below(&state, 4));
	}
	assert_int_equal(sublet_notifier_stats(mm, &stats), 0);
	assert_int_equal(stats.registered, COUNT);
	/* 100 bytes each, and bins of 4 bytes a page on at most three levels. */
	assert_in_range(stats.memory_bytes, COUNT * 100, COUNT * 100 + 2 * mm->config.pages * 4ull);
	before = stats.memory_bytes;
	assert_int_equal(sublet__notifier_count(mm, 0, mm->config.pages), COUNT);
	assert_int_equal(sublet__invalidate_begin(mm, &inv, 0, mm->config.pages, SUBLET_NOTIFIER_UNMAP, true),
			 0);
	for (uint32_t i = 0; i < COUNT; i++)
		assert_int_equal(r[i].calls, 1);
	sublet__invalidate_end(mm, &inv);
	for (uint32_t i = 0; i < COUNT; i++)
		assert_int_equal(sublet_notifier_remove(&r[i].notifier), 0);
	/* Nodes are used again before there are new ones. */
	for (uint32_t i = 0; i < COUNT; i++)
		range_add(mm, &r[i], i, i + 1);
	assert_int_equal(sublet_notifier_stats(mm, &stats), 0);
	assert_in_range(stats.memory_bytes, before, before + mm->config.pages * 4ull + 4096);
	check_index(mm);
	fixture_close(&f);
	free(r);
}

/* A few in a window of 64 GiB: a query of all of it does not look at 16 million bins. */
static void sparse(void **unused)
{
	static struct fake f;
	struct range r[3];
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .area_frames = 512, .normal_frames = 512 });
	struct sublet__mm_config config = f.engine_mm[0]->config;
	struct sublet_mm *mm;
	config.base = 1ull << 40;
	config.pages = 1u << 24;
	assert_int_equal(sublet__mm_create(f.arena, &config, &mm), 0);
	range_add(mm, &r[0], 0, 1);
	range_add(mm, &r[1], 9000000, 9000001);
	range_add(mm, &r[2], config.pages - 1, config.pages);
	uint64_t start = wall_ns();
	for (uint32_t i = 0; i < 100; i++) {
		assert_int_equal(sublet__notifier_count(mm, 0, config.pages), 3);
		assert_int_equal(sublet__notifier_count(mm, 1, config.pages - 1), 2);
		assert_int_equal(sublet__notifier_count(mm, 1, config.pages - 2), 1);
		assert_int_equal(sublet__notifier_count(mm, 8999999, 1), 0);
	}
	/* 300 walks over 64 MiB of bins would take seconds; over their counts, milliseconds. */
	assert_true(wall_ns() - start < SUBLET_SEC);
	fixture_close(&f);
}

/* Each mm has an index of its own: the same addresses' numbers, other notifiers (G9). */
static void mms_64(void **unused)
{
	static struct fake f;
	static struct range r[ENGINE_MMS_MAX][50];
	struct sublet__invalidation inv;
	(void)unused;

	fixture_open(&f,
		     &(struct fake_options){ .area_frames = 512, .normal_frames = 512, .mm_pages = 4096 });
	for (uint32_t m = 1; m < ENGINE_MMS_MAX; m++) {
		struct sublet__mm_config config = f.engine_mm[0]->config;
		struct sublet_mm *mm;
		config.base = (uint64_t)(m + 1) << 40;
		assert_int_equal(sublet__mm_create(f.arena, &config, &mm), 0);
	}
	for (uint32_t m = 0; m < ENGINE_MMS_MAX; m++)
		for (uint32_t i = 0; i < 50; i++)
			range_add(sublet__arena_mm(f.arena, m), &r[m][i], i * 2 + m % 2, i * 2 + m % 2 + 1);
	for (uint32_t m = 0; m < ENGINE_MMS_MAX; m++) {
		struct sublet_mm *mm = sublet__arena_mm(f.arena, m);
		assert_int_equal(
			sublet__invalidate_begin(mm, &inv, m % 50 * 2, 2, SUBLET_NOTIFIER_MOVE, false), 0);
		sublet__invalidate_end(mm, &inv);
		check_index(mm);
	}
	for (uint32_t m = 0; m < ENGINE_MMS_MAX; m++)
		for (uint32_t i = 0; i < 50; i++)
			assert_int_equal(r[m][i].calls, i == m % 50);
	fixture_close(&f);
	for (uint32_t m = 0; m < ENGINE_MMS_MAX; m++)
		for (uint32_t i = 0; i < 50; i++)
			assert_int_equal(r[m][i].calls, 1 + (i == m % 50)); /* and the end */
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(many),
		cmocka_unit_test(sparse),
		cmocka_unit_test(mms_64),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
