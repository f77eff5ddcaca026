/* SPDX-License-Identifier: MIT */
/*
 * core/iopt.c: what sublet/iopt.h promises, sentence by sentence: tables, mappings. What is filled in and what the device
 * is told is in test_iopt_fill.c, the random and the exhaustive tests in test_iopt_model.c and test_iopt_walk.c.
 */
#include "iopt_fixture.h"

/* ---- create, destroy ---- */

static void iopt_create(void **unused)
{
	static const struct {
		uint64_t first, aperture;
		uint32_t mappings, disabled;
		int err;
	} row[] = {
		{ 0, 0, 0, 0, -EINVAL },
		{ 0, 4095, 0, 0, -EINVAL },
		{ 1, PAGE, 0, 0, -EINVAL },
		{ 0, (16ull << 40) + PAGE, 0, 0, -EINVAL },
		{ 0 - 2 * PAGE, 2 * PAGE, 0, 0, -EINVAL },
		{ 0 - 3 * PAGE, 2 * PAGE, 0, 0, 0 },
		{ 0, PAGE, (1u << 30) + 1, 0, -EINVAL },
		{ 0, PAGE, 1, 4, -EINVAL },
		{ 0, PAGE, 1, 3, 0 },
		{ PAGE, PAGE, 1, 0, 0 },
	};
	static struct fake f;
	struct sublet_iopt *iopt;
	(void)unused;

	open_arena(&f);
	int64_t before = atomic_load(&f.reserved_bytes);
	for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
		struct sublet_iopt_options o = { SUBLET_OPTIONS(sublet_iopt_options),
						 .first_bytes = row[i].first,
						 .aperture_bytes = row[i].aperture,
						 .mappings_max = row[i].mappings,
						 .large_disabled = row[i].disabled };
		assert_int_equal(sublet_iopt_create(f.arena, &o, &iopt), row[i].err);
		if (!row[i].err)
			close_table(iopt);
		assert_int_equal(atomic_load(&f.reserved_bytes), before);
	}
	assert_int_equal(sublet_iopt_create(f.arena, NULL, &iopt), -EINVAL);
	struct sublet_iopt_options o = { .size_bytes = 16, .aperture_bytes = PAGE };
	assert_int_equal(sublet_iopt_create(f.arena, &o, &iopt), -EINVAL);
	/* What an older program did not know is 0, whatever lies behind it. */
	o = (struct sublet_iopt_options){ .size_bytes = offsetof(struct sublet_iopt_options, mappings_max),
					  .aperture_bytes = PAGE,
					  .large_disabled = 99 };
	assert_int_equal(sublet_iopt_create(f.arena, &o, &iopt), 0);
	sublet_iopt_destroy(iopt);
	sublet_iopt_destroy(NULL);
	o.size_bytes = sizeof o, o.large_disabled = 0;
	fake_fail(&f, 1u << FAKE_RESERVE, 1, -ENOMEM, false);
	assert_int_equal(sublet_iopt_create(f.arena, &o, &iopt), -ENOMEM);
	assert_true(fake_fail_end(&f));
	fixture_close(&f);
}

/* Everything else takes no memory, and gives none back. */
static void iopt_allocates_nothing(void **unused)
{
	static struct fake f;
	struct device device;
	(void)unused;

	open_arena(&f);
	struct sublet_iopt *iopt = open_table(&f, &device, 0, 3 * G1);
	uint64_t calls = atomic_load(&f.calls[FAKE_RESERVE]);
	int64_t bytes = atomic_load(&f.reserved_bytes);
	uint64_t at = map_at(iopt, SUBLET_IOVA_ANY, G1);
	assert_int_equal(fill_one(iopt, at, 0, G1, 0), 0);
	assert_int_equal(sublet_iopt_clear(iopt, at + PAGE, PAGE, 0), 0);
	assert_int_equal(sublet_iopt_unmap(iopt, at, G1, 0), 0);
	assert_int_equal(atomic_load(&f.calls[FAKE_RESERVE]), calls);
	assert_int_equal(atomic_load(&f.reserved_bytes), bytes);
	close_table(iopt);
	fixture_close(&f);
}

/* ---- map, unmap ---- */

static void iopt_map_refuses(void **unused)
{
	static const struct {
		uint64_t iova, bytes, align, offset;
		uint32_t flags;
		int err;
	} row[] = {
		{ SUBLET_IOVA_ANY, 0, 0, 0, RW, -EINVAL },
		{ SUBLET_IOVA_ANY, 4097, 0, 0, RW, -EINVAL },
		{ 64 * PAGE + 1, PAGE, 0, 0, RW, -EINVAL },
		{ SUBLET_IOVA_ANY, PAGE, 2048, 0, RW, -EINVAL },
		{ SUBLET_IOVA_ANY, PAGE, 3 * PAGE, 0, RW, -EINVAL },
		{ SUBLET_IOVA_ANY, PAGE, 2 * PAGE, 5, RW, -EINVAL },
		{ SUBLET_IOVA_ANY, PAGE, 0, 0, 0, -EINVAL },
		{ SUBLET_IOVA_ANY, PAGE, 0, 0, SUBLET_IOPT_NOFLUSH, -EINVAL },
		{ SUBLET_IOVA_ANY, PAGE, 0, 0, RW | 8, -EINVAL },
		{ 0, PAGE, 0, 0, RW, -ERANGE },
		{ 31 * PAGE, PAGE, 0, 0, RW, -ERANGE },
		{ 96 * PAGE, PAGE, 0, 0, RW, -ERANGE },
		{ 95 * PAGE, 2 * PAGE, 0, 0, RW, -ERANGE },
		{ 95 * PAGE, 0 - PAGE, 0, 0, RW, -ERANGE },
		{ 0 - PAGE, 2 * PAGE, 0, 0, RW, -ERANGE },
		{ 40 * PAGE, PAGE, 0, 0, RW, -EEXIST },
		{ 39 * PAGE, 2 * PAGE, 0, 0, RW, -EEXIST },
		{ 43 * PAGE, 2 * PAGE, 0, 0, RW, -EEXIST },
		{ 32 * PAGE, 64 * PAGE, 0, 0, RW, -EEXIST },
		{ SUBLET_IOVA_ANY, 53 * PAGE, 0, 0, RW, -ENOSPC },
		{ SUBLET_IOVA_ANY, 0 - PAGE, 0, 0, RW, -ENOSPC },
		{ SUBLET_IOVA_ANY, PAGE, 128 * PAGE, 0, RW, -ENOSPC },
		{ SUBLET_IOVA_ANY, PAGE, 128 * PAGE, 42 * PAGE, RW, -ENOSPC },
		{ SUBLET_IOVA_ANY, PAGE, 1ull << 63, 0, RW, -ENOSPC },
	};
	static struct fake f;
	(void)unused;

	open_arena(&f);
	struct sublet_iopt *iopt = open_table(&f, NULL, 32 * PAGE, 64 * PAGE);
	map_at(iopt, 40 * PAGE, 4 * PAGE);
	for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
		uint64_t iova = row[i].iova;
		int err =
			sublet_iopt_map(iopt, &iova, row[i].bytes, row[i].align, row[i].offset, row[i].flags);
		if (err != row[i].err)
			fail_msg("row %zu: %d", i, err);
		assert_int_equal(iova, row[i].iova);
		assert_int_equal(stats_now(iopt).mappings, 1);
		assert_int_equal(stats_now(iopt).mapped_bytes, 4 * PAGE);
		assert_int_equal(stats_now(iopt).largest_free_bytes, 52 * PAGE);
	}
	close_table(iopt);
	fixture_close(&f);
}

/* iova 0 is never handed out, to nobody who asks for anything nor for it. */
static void iopt_never_zero(void **unused)
{
	static struct fake f;
	uint64_t iova = SUBLET_IOVA_ANY;
	(void)unused;

	open_arena(&f);
	struct sublet_iopt *iopt = open_table(&f, NULL, 0, 4 * PAGE);
	assert_int_equal(sublet_iopt_map(iopt, &iova, 4 * PAGE, 0, 0, RW), -ENOSPC);
	assert_int_equal(sublet_iopt_map(iopt, &iova, 3 * PAGE, 0, 0, RW), 0);
	assert_int_equal(iova, PAGE);
	iova = 0;
	assert_int_equal(sublet_iopt_map(iopt, &iova, PAGE, 0, 0, RW), -ERANGE);
	leads_nowhere(iopt, 0);
	close_table(iopt);
	iopt = open_table(&f, NULL, 0, PAGE);
	iova = SUBLET_IOVA_ANY;
	assert_int_equal(sublet_iopt_map(iopt, &iova, PAGE, 0, 0, RW), -ENOSPC);
	close_table(iopt);
	fixture_close(&f);
}

static void iopt_too_many(void **unused)
{
	static struct fake f;
	struct sublet_iopt *iopt;
	struct sublet_iopt_options o = { SUBLET_OPTIONS(sublet_iopt_options), .aperture_bytes = G1,
					 .mappings_max = 2 };
	uint64_t iova = SUBLET_IOVA_ANY, at[2];
	(void)unused;

	open_arena(&f);
	assert_int_equal(sublet_iopt_create(f.arena, &o, &iopt), 0);
	for (int round = 0; round < 3; round++) {
		at[0] = map_at(iopt, SUBLET_IOVA_ANY, M2);
		at[1] = map_at(iopt, 64 * M2, PAGE);
		assert_int_equal(sublet_iopt_map(iopt, &iova, PAGE, 0, 0, RW), -ENOSPC);
		iova = 32 * M2;
		assert_int_equal(sublet_iopt_map(iopt, &iova, PAGE, 0, 0, RW), -ENOSPC);
		iova = SUBLET_IOVA_ANY;
		assert_int_equal(sublet_iopt_unmap(iopt, at[0], M2, 0), 0);
		assert_int_equal(sublet_iopt_unmap(iopt, at[1], PAGE, 0), 0);
	}
	close_table(iopt);
	fixture_close(&f);
}

/* align 0: 1 GiB, 2 MiB or 4 KiB by size; smaller where there is no room; the offset goes on top. */
static void iopt_alignment(void **unused)
{
	static struct fake f;
	uint64_t iova;
	(void)unused;

	open_arena(&f);
	struct sublet_iopt *iopt = open_table(&f, NULL, PAGE, 4 * G1);
	assert_int_equal(map_at(iopt, SUBLET_IOVA_ANY, M2 - PAGE), PAGE);
	assert_int_equal(map_at(iopt, SUBLET_IOVA_ANY, G1), G1);
	assert_int_equal(map_at(iopt, SUBLET_IOVA_ANY, M2), M2);
	assert_int_equal(map_at(iopt, SUBLET_IOVA_ANY, G1 - M2 - PAGE) % M2, 0);
	iova = SUBLET_IOVA_ANY;
	assert_int_equal(sublet_iopt_map(iopt, &iova, G1, 0, G1 - M2, RW), 0);
	assert_int_equal(iova, 4 * G1 - M2 - G1);
	/* Left: up to 3 GiB - 2 MiB, and a piece at the end that holds no multiple of 1 GiB plus that much. */
	iova = SUBLET_IOVA_ANY;
	assert_int_equal(sublet_iopt_map(iopt, &iova, PAGE, 8 * PAGE, 3 * PAGE, RW), 0);
	assert_int_equal(iova % (8 * PAGE), 3 * PAGE);
	close_table(iopt);

	iopt = open_table(&f, NULL, PAGE, G1 + M2);
	assert_int_equal(map_at(iopt, SUBLET_IOVA_ANY, G1), M2);
	close_table(iopt);
	iopt = open_table(&f, NULL, PAGE, G1);
	assert_int_equal(map_at(iopt, SUBLET_IOVA_ANY, G1), PAGE);
	close_table(iopt);
	fixture_close(&f);
}

/* A table without large entries does not waste room for them, and has none. */
static void iopt_large_disabled(void **unused)
{
	static struct fake f;
	(void)unused;

	open_arena(&f);
	for (uint32_t disabled = 0; disabled < 4; disabled++) {
		struct sublet_iopt *iopt;
		struct sublet_iopt_options o = { SUBLET_OPTIONS(sublet_iopt_options),
						 .aperture_bytes = 4 * G1, .large_disabled = disabled };
		assert_int_equal(sublet_iopt_create(f.arena, &o, &iopt), 0);
		uint64_t at = map_at(iopt, SUBLET_IOVA_ANY, G1);
		assert_int_equal(at, disabled & 1 ? PAGE : disabled ? M2 : G1);
		assert_int_equal(sublet_iopt_unmap(iopt, at, G1, 0), 0);
		map_at(iopt, G1, G1);
		assert_int_equal(fill_one(iopt, G1, G1, G1, 0), 0);
		entries_are(iopt, disabled & 1 ? 1 << 18 : 0, disabled == 2 ? 512 : 0, !disabled);
		leads_to(iopt, G1 + M2 + 5, G1 + M2 + 5,
			 disabled & 1 ? PAGE - 5
			 : disabled   ? M2 - 5
				      : G1 - M2 - 5);
		assert_int_equal(sublet_iopt_clear(iopt, G1 + M2, PAGE, 0), 0);
		assert_int_equal(fill_one(iopt, G1 + M2, G1 + M2, PAGE, 0), 0);
		entries_are(iopt, disabled & 1 ? 1 << 18 : 0, disabled == 2 ? 512 : 0, !disabled);
		assert_int_equal(sublet_iopt_unmap(iopt, G1, G1, 0), 0);
		entries_are(iopt, 0, 0, 0);
		close_table(iopt);
	}
	fixture_close(&f);
}

/* Only a mapping, whole, can be unmapped; all else changes nothing. */
static void iopt_unmap_refuses(void **unused)
{
	static const uint64_t row[][2] = {
		{ M2, M2 - PAGE },   { M2, M2 + PAGE }, { M2 + PAGE, M2 - PAGE }, { M2, 2 * M2 },
		{ M2 + 1, M2 },      { M2, M2 + 1 },    { M2 - 1, M2 },           { 0, M2 },
		{ M2, 0 },           { 4 * M2, M2 },    { M2, 0 - PAGE },         { 0 - PAGE, PAGE },
		{ M2 + PAGE, PAGE }, { PAGE, 4 * M2 },  { 2 * M2, 2 * M2 },
	};
	static struct fake f;
	struct device device;
	(void)unused;

	open_arena(&f);
	struct sublet_iopt *iopt = open_table(&f, &device, 0, G1);
	map_at(iopt, M2, M2);
	map_at(iopt, 2 * M2, M2);
	assert_int_equal(fill_one(iopt, M2, M2, M2, 0), 0);
	assert_int_equal(fill_one(iopt, 2 * M2, 2 * M2, M2, 0), 0);
	for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
		assert_int_equal(sublet_iopt_unmap(iopt, row[i][0], row[i][1], 0), -ENOENT);
		entries_are(iopt, 0, 2, 0);
		assert_int_equal(stats_now(iopt).mappings, 2);
	}
	assert_int_equal(sublet_iopt_unmap(iopt, M2, M2, SUBLET_IOPT_READ), -EINVAL);
	assert_int_equal(device.flushes, 0);
	assert_int_equal(sublet_iopt_unmap(iopt, M2, M2, 0), 0);
	assert_int_equal(sublet_iopt_unmap(iopt, M2, M2, 0), -ENOENT);
	leads_nowhere(iopt, M2);
	leads_to(iopt, 2 * M2, 2 * M2, M2);
	close_table(iopt);
	fixture_close(&f);
}

/* ---- the rest ---- */

static void iopt_stats(void **unused)
{
	static struct fake f;
	struct sublet_iopt_stats s = { 0 };
	(void)unused;

	open_arena(&f);
	struct sublet_iopt *iopt = open_table(&f, NULL, 0, 16 * M2);
	assert_int_equal(sublet_iopt_stats(iopt, &s), -EINVAL);
	s.size_bytes = offsetof(struct sublet_iopt_stats, filled_bytes);
	s.filled_bytes = 77;
	map_at(iopt, 4 * M2, M2 + PAGE);
	assert_int_equal(fill_one(iopt, 4 * M2, 0, M2 + PAGE, 0), 0);
	assert_int_equal(sublet_iopt_stats(iopt, &s), 0);
	assert_true(s.mappings == 1 && s.mapped_bytes == M2 + PAGE && s.filled_bytes == 77);
	s = stats_now(iopt);
	assert_true(s.filled_bytes == M2 + PAGE && s.entries_4k == 1 && s.entries_2m == 1 && !s.entries_1g);
	assert_int_equal(s.largest_free_bytes, 11 * M2 - PAGE);
	assert_true(!s.splits && !s.merges && !s.flushes);
	close_table(iopt);
	fixture_close(&f);
}

/* Frames of 2 MiB: entries may still be smaller than a frame. */
static void iopt_large_frames(void **unused)
{
	static struct fake f;
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .frame_shift = 21, .area_frames = 600, .run_pages_max = 1 });
	struct sublet_iopt *iopt = open_table(&f, NULL, 0, 4 * G1);
	uint64_t at = map_at(iopt, SUBLET_IOVA_ANY, G1 + M2 + PAGE);
	uint64_t end = 602 * M2;
	assert_int_equal(fill_one(iopt, at, 0, G1, 0), 0);
	assert_int_equal(fill_one(iopt, at + G1, end - M2 - PAGE, M2 + PAGE, 0), 0);
	entries_are(iopt, 513, 0, 1);
	leads_to(iopt, at + G1 + M2, end - PAGE, PAGE);
	assert_int_equal(fill_one(iopt, at + G1, end - M2, M2 + PAGE, 0), -EINVAL);
	assert_int_equal(fill_one(iopt, at + G1, end - M2, M2, 0), 0);
	entries_are(iopt, 1, 1, 1);
	close_table(iopt);
	fixture_close(&f);
}

/* A table may be destroyed with everything in it. */
static void iopt_destroy_full(void **unused)
{
	static struct fake f;
	struct device d;
	(void)unused;

	open_arena(&f);
	struct sublet_iopt *iopt = open_table(&f, &d, 0, G1);
	map_at(iopt, M2, M2);
	assert_int_equal(fill_one(iopt, M2, 0, M2, 0), 0);
	assert_int_equal(sublet_iopt_clear(iopt, M2, PAGE, SUBLET_IOPT_NOFLUSH), 0);
	sublet_iopt_destroy(iopt);
	assert_int_equal(d.flushes, 0);
	fixture_close(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(iopt_create),         cmocka_unit_test(iopt_allocates_nothing),
		cmocka_unit_test(iopt_map_refuses),    cmocka_unit_test(iopt_never_zero),
		cmocka_unit_test(iopt_too_many),       cmocka_unit_test(iopt_alignment),
		cmocka_unit_test(iopt_large_disabled), cmocka_unit_test(iopt_unmap_refuses),
		cmocka_unit_test(iopt_stats),          cmocka_unit_test(iopt_large_frames),
		cmocka_unit_test(iopt_destroy_full),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
