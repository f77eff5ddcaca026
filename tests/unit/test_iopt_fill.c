/* SPDX-License-Identifier: MIT */
/* core/iopt.c: filling and clearing, the sizes of entries, permissions, and what the device is told when (G4). */
#include "iopt_fixture.h"

#include <pthread.h>
#include <stdatomic.h>

/* ---- fill, clear ---- */

static void iopt_fill_refuses(void **unused)
{
	static const struct {
		uint64_t iova, offset, bytes, offset2, bytes2;
		uint32_t flags;
		int err;
	} row[] = {
		{ M2, 0, 0, 0, PAGE, 0, -EINVAL },
		{ M2, 0, PAGE, 0, 0, 0, -EINVAL },
		{ M2, 0, PAGE - 1, 0, PAGE, 0, -EINVAL },
		{ M2, 5, PAGE, 0, PAGE, 0, -EINVAL },
		{ M2, 0, PAGE, 2 * G1, PAGE, 0, -EINVAL },
		{ M2, 0, PAGE, 2 * G1 - PAGE, 2 * PAGE, 0, -EINVAL },
		{ M2, 0, PAGE, 2 * PAGE, 0 - PAGE, 0, -EINVAL },
		{ M2, 0, PAGE, 0 - PAGE, PAGE, 0, -EINVAL },
		{ M2 + 8, 0, PAGE, 0, PAGE, 0, -EINVAL },
		{ M2, 0, PAGE, 0, PAGE, SUBLET_IOPT_READ, -EINVAL },
		{ M2, 0, PAGE, 0, PAGE, 8, -EINVAL },
		{ M2 - PAGE, 0, PAGE, 0, PAGE, 0, -ENOENT },
		{ 2 * M2 - PAGE, 0, PAGE, 0, PAGE, 0, -ENOENT },
		{ 2 * M2, 0, PAGE, 0, PAGE, 0, -ENOENT },
		{ M2, 0, M2, 0, PAGE, 0, -ENOENT },
		{ M2, 0, 2 * G1, 0, 2 * G1, 0, -ENOENT },
		{ 0 - PAGE, 0, PAGE, 0, PAGE, 0, -ENOENT },
	};
	static struct fake f;
	struct device device;
	(void)unused;

	open_arena(&f);
	struct sublet_iopt *iopt = open_table(&f, &device, 0, G1);
	map_at(iopt, M2, M2);
	map_at(iopt, 2 * M2 + PAGE, M2);
	for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
		struct sublet_extent e[2] = { { row[i].offset, row[i].bytes },
					      { row[i].offset2, row[i].bytes2 } };
		int err = sublet_iopt_fill(iopt, row[i].iova, e, 2, row[i].flags);
		if (err != row[i].err)
			fail_msg("row %zu: %d", i, err);
		entries_are(iopt, 0, 0, 0);
	}
	assert_int_equal(sublet_iopt_fill(iopt, M2, NULL, 0, 0), -EINVAL);
	assert_int_equal(fill_one(iopt, M2, 2 * G1 - PAGE, PAGE, 0), 0);
	assert_int_equal(device.flushes, 0);
	close_table(iopt);
	fixture_close(&f);
}

static void iopt_clear_refuses(void **unused)
{
	static const struct {
		uint64_t iova, bytes;
		uint32_t flags;
		int err;
	} row[] = {
		{ M2, 0, 0, -EINVAL },         { M2, 100, 0, -EINVAL },
		{ M2 + 1, PAGE, 0, -EINVAL },  { M2, PAGE, RW, -EINVAL },
		{ M2, PAGE, 8, -EINVAL },      { M2 - PAGE, PAGE, 0, -ENOENT },
		{ M2 - PAGE, M2, 0, -ENOENT }, { M2, M2 + PAGE, 0, -ENOENT },
		{ 2 * M2, PAGE, 0, -ENOENT },  { 2 * M2 - PAGE, 2 * PAGE, 0, -ENOENT },
		{ M2, 0 - PAGE, 0, -ENOENT },
	};
	static struct fake f;
	struct device device;
	(void)unused;

	open_arena(&f);
	struct sublet_iopt *iopt = open_table(&f, &device, 0, G1);
	map_at(iopt, M2, M2);
	assert_int_equal(fill_one(iopt, M2, M2, M2, 0), 0);
	for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
		assert_int_equal(sublet_iopt_clear(iopt, row[i].iova, row[i].bytes, row[i].flags),
				 row[i].err);
		entries_are(iopt, 0, 1, 0);
	}
	assert_int_equal(device.flushes, 0);
	assert_int_equal(sublet_iopt_clear(iopt, M2, M2, 0), 0);
	entries_are(iopt, 0, 0, 0);
	assert_int_equal(stats_now(iopt).mapped_bytes, M2);
	assert_int_equal(device.flushes, 1);
	/* Nothing is left to remove: no flush. */
	assert_int_equal(sublet_iopt_clear(iopt, M2, M2, 0), 0);
	assert_int_equal(device.flushes, 1);
	close_table(iopt);
	fixture_close(&f);
}

/* The largest entry that iova, frames and contiguity allow; extents that continue each other are one. */
static void iopt_largest_entries(void **unused)
{
	static struct fake f;
	struct sublet_extent e[4];
	(void)unused;

	open_arena(&f);
	struct sublet_iopt *iopt = open_table(&f, NULL, 0, 4 * G1);
	map_at(iopt, G1 - M2, G1 + 2 * M2);
	assert_int_equal(fill_one(iopt, G1 - M2, G1 - M2, G1 + M2, 0), 0);
	entries_are(iopt, 0, 1, 1);
	assert_int_equal(fill_one(iopt, G1 - M2, 0, M2 + G1 + M2, 0), 0); /* frames at an odd 2 MiB */
	entries_are(iopt, 0, 514, 0);
	assert_int_equal(fill_one(iopt, G1 - M2, PAGE, 2 * M2, 0), 0); /* frames at an odd page */
	entries_are(iopt, 1024, 512, 0);
	e[0] = (struct sublet_extent){ M2, 100 * PAGE };
	e[1] = (struct sublet_extent){ M2 + 100 * PAGE, 411 * PAGE };
	e[2] = (struct sublet_extent){ 2 * M2 - PAGE, PAGE };
	e[3] = (struct sublet_extent){ 9 * M2, M2 };
	assert_int_equal(sublet_iopt_fill(iopt, G1 - M2, e, 4, 0), 0);
	entries_are(iopt, 0, 514, 0);
	assert_int_equal(stats_now(iopt).merges, 0);
	leads_to(iopt, G1 - M2 + 7 * PAGE, M2 + 7 * PAGE, M2 - 7 * PAGE);
	leads_to(iopt, G1 + M2 - 1, 10 * M2 - 1, 1);
	assert_int_equal(sublet_iopt_unmap(iopt, G1 - M2, G1 + 2 * M2, 0), 0);
	entries_are(iopt, 0, 0, 0);
	close_table(iopt);
	fixture_close(&f);
}

/* Clearing a part splits, filling it in again merges, at both sizes. */
static void iopt_split_and_merge(void **unused)
{
	static struct fake f;
	(void)unused;

	open_arena(&f);
	struct sublet_iopt *iopt = open_table(&f, NULL, 0, 2 * G1);
	map_at(iopt, G1, G1);
	assert_int_equal(fill_one(iopt, G1, 0, G1, 0), 0);
	for (uint64_t round = 1; round < 4; round++) {
		uint64_t at = round * 77 * PAGE;
		assert_int_equal(sublet_iopt_clear(iopt, G1 + at, PAGE, 0), 0);
		entries_are(iopt, 511, 511, 0);
		assert_int_equal(stats_now(iopt).splits, 2 * round);
		leads_nowhere(iopt, G1 + at + 9);
		leads_to(iopt, G1 + at - 1, at - 1, 1);
		leads_to(iopt, G1 + at + PAGE, at + PAGE, PAGE);
		assert_int_equal(fill_one(iopt, G1 + at, at, PAGE, 0), 0);
		entries_are(iopt, 0, 0, 1);
		assert_int_equal(stats_now(iopt).merges, 2 * round);
		leads_to(iopt, G1 + at, at, G1 - at);
	}
	/* A 2 MiB part splits the 1 GiB entry alone. */
	assert_int_equal(sublet_iopt_clear(iopt, G1 + 8 * M2, M2, 0), 0);
	entries_are(iopt, 0, 511, 0);
	assert_int_equal(stats_now(iopt).splits, 7);
	/* Other frames: no merge. */
	assert_int_equal(fill_one(iopt, G1 + 8 * M2, G1, M2, 0), 0);
	entries_are(iopt, 0, 512, 0);
	assert_int_equal(fill_one(iopt, G1 + 8 * M2, 8 * M2, M2, 0), 0);
	entries_are(iopt, 0, 0, 1);
	assert_int_equal(stats_now(iopt).merges, 7);
	close_table(iopt);
	fixture_close(&f);
}

/* Two mappings that share a 2 MiB slot never share an entry, wherever in it the border is, whichever is filled last. */
static void border_check(struct sublet_iopt *iopt, uint64_t pages)
{
	uint64_t border = M2 + pages * PAGE;

	map_at(iopt, M2, pages * PAGE);
	map_at(iopt, border, 2 * M2 - border);
	for (int round = 0; round < 2; round++) {
		assert_int_equal(fill_one(iopt, M2, M2, pages * PAGE, 0), 0);
		entries_are(iopt, round ? 512 : pages, 0, 0);
		assert_int_equal(fill_one(iopt, border, border, 2 * M2 - border, 0), 0);
		entries_are(iopt, 512, 0, 0);
	}
	leads_to(iopt, border - 1, border - 1, 1);
	leads_to(iopt, border, border, PAGE);
	assert_int_equal(sublet_iopt_unmap(iopt, M2, pages * PAGE, 0), 0);
	entries_are(iopt, 512 - pages, 0, 0);
	assert_int_equal(sublet_iopt_unmap(iopt, border, 2 * M2 - border, 0), 0);
}

/* Small entries that happen to be in order, but are not aligned, or not all of one mapping, stay small. */
static void iopt_no_merge(void **unused)
{
	static struct fake f;
	(void)unused;

	open_arena(&f);
	struct sublet_iopt *iopt = open_table(&f, NULL, 0, G1);
	border_check(iopt, 1);
	border_check(iopt, 256);
	border_check(iopt, 511);
	map_at(iopt, 2 * M2, M2);
	for (uint64_t at = 0; at < M2; at += M2 / 4)
		assert_int_equal(fill_one(iopt, 2 * M2 + at, PAGE + at, M2 / 4, 0), 0);
	entries_are(iopt, 512, 0, 0);
	assert_int_equal(stats_now(iopt).merges, 0);
	close_table(iopt);
	fixture_close(&f);
}

/* ---- permission ---- */

static void iopt_access(void **unused)
{
	static struct fake f;
	struct sublet_extent e;
	(void)unused;

	open_arena(&f);
	struct sublet_iopt *iopt = open_table(&f, NULL, M2, G1);
	for (uint32_t may = 1; may < 4; may++) {
		uint64_t at = SUBLET_IOVA_ANY;
		assert_int_equal(sublet_iopt_map(iopt, &at, 2 * M2, 0, 0, may | SUBLET_IOPT_NOFLUSH), 0);
		assert_int_equal(fill_one(iopt, at, 2 * M2, M2 + PAGE, 0), 0);
		for (uint32_t want = 0; want < 4; want++) {
			int err = want & ~may ? -EACCES : 0;
			assert_int_equal(sublet_iopt_translate(iopt, at + 9, want, &e), err);
			assert_int_equal(sublet_iopt_translate(iopt, at + M2 + PAGE - 1, want, &e), err);
			assert_int_equal(sublet_iopt_translate(iopt, at + M2 + PAGE, want, &e), -EFAULT);
		}
	}
	leads_nowhere(iopt, 0);
	leads_nowhere(iopt, M2 - 1);
	leads_nowhere(iopt, M2 + G1);
	leads_nowhere(iopt, UINT64_MAX);
	close_table(iopt);
	fixture_close(&f);
}

/* ---- flush ---- */

static void iopt_flush(void **unused)
{
	static struct fake f;
	struct device d;
	(void)unused;

	open_arena(&f);
	struct sublet_iopt *iopt = open_table(&f, &d, 0, G1);
	map_at(iopt, 4 * M2, 8 * M2);
	map_at(iopt, 64 * M2, M2);
	sublet_iopt_flush(iopt);
	assert_int_equal(fill_one(iopt, 4 * M2, 0, 8 * M2, 0), 0);
	assert_int_equal(fill_one(iopt, 64 * M2, 0, M2, 0), 0);
	assert_int_equal(d.flushes, 0);

	/* A part of a large entry, and no more than that. */
	assert_int_equal(sublet_iopt_clear(iopt, 5 * M2 + PAGE, 2 * PAGE, 0), 0);
	assert_int_equal(d.flushes, 1);
	assert_true(d.iova == 5 * M2 + PAGE && d.bytes == 2 * PAGE);

	/* Several, then one flush for all of them. */
	assert_int_equal(sublet_iopt_clear(iopt, 6 * M2, M2, SUBLET_IOPT_NOFLUSH), 0);
	assert_int_equal(sublet_iopt_clear(iopt, 4 * M2, PAGE, SUBLET_IOPT_NOFLUSH), 0);
	assert_int_equal(sublet_iopt_unmap(iopt, 64 * M2, M2, SUBLET_IOPT_NOFLUSH), 0);
	assert_int_equal(d.flushes, 1);
	sublet_iopt_flush(iopt);
	assert_int_equal(d.flushes, 2);
	assert_true(d.iova == 4 * M2 && d.bytes == 61 * M2);
	sublet_iopt_flush(iopt);
	assert_int_equal(d.flushes, 2);

	/* Replacing removes; so does replacing by the same frames. Filling what was empty does not. */
	assert_int_equal(fill_one(iopt, 6 * M2, 0, M2, 0), 0);
	assert_int_equal(d.flushes, 2);
	assert_int_equal(fill_one(iopt, 6 * M2, M2, M2, 0), 0);
	assert_int_equal(d.flushes, 3);
	assert_true(d.iova == 6 * M2 && d.bytes == M2);
	assert_int_equal(fill_one(iopt, 6 * M2 + PAGE, PAGE, PAGE, SUBLET_IOPT_NOFLUSH), 0);
	assert_int_equal(d.flushes, 3);

	/* One that flushes takes along what others left. */
	assert_int_equal(sublet_iopt_unmap(iopt, 4 * M2, 8 * M2, 0), 0);
	assert_int_equal(d.flushes, 4);
	sublet_iopt_flush(iopt);
	assert_int_equal(d.flushes, 4);
	assert_int_equal(stats_now(iopt).flushes, 4);
	close_table(iopt);
	fixture_close(&f);
}

/* iova that was unmapped without a flush is somebody else's at once: his fill flushes what the device may still know. */
static void iopt_flush_before_reuse(void **unused)
{
	static struct fake f;
	struct device d;
	(void)unused;

	open_arena(&f);
	struct sublet_iopt *iopt = open_table(&f, &d, 0, G1);
	map_at(iopt, M2, M2);
	assert_int_equal(fill_one(iopt, M2, 0, M2, 0), 0);
	assert_int_equal(sublet_iopt_unmap(iopt, M2, M2, SUBLET_IOPT_NOFLUSH), 0);
	map_at(iopt, M2 + PAGE, PAGE);
	map_at(iopt, 8 * M2, PAGE);
	assert_int_equal(fill_one(iopt, 8 * M2, 0, PAGE, 0), 0);
	assert_int_equal(d.flushes, 0);
	assert_int_equal(fill_one(iopt, M2 + PAGE, 7 * M2, PAGE, 0), 0);
	assert_int_equal(d.flushes, 1);
	assert_true(d.iova == M2 && d.bytes == M2);
	close_table(iopt);
	fixture_close(&f);
}

/* While a device flushes, it may walk, and others may change the table. */
static void change_during(struct device *d)
{
	struct sublet_extent e;

	d->during = NULL;
	assert_int_equal(sublet_iopt_translate(d->iopt, M2, SUBLET_IOPT_READ, &e), -EFAULT);
	map_at(d->iopt, 16 * M2, M2);
	assert_int_equal(fill_one(d->iopt, 16 * M2, 0, M2, SUBLET_IOPT_NOFLUSH), 0);
	assert_int_equal(sublet_iopt_clear(d->iopt, 16 * M2, PAGE, SUBLET_IOPT_NOFLUSH), 0);
	stats_now(d->iopt);
}

static void iopt_change_during_flush(void **unused)
{
	static struct fake f;
	struct device d;
	(void)unused;

	open_arena(&f);
	struct sublet_iopt *iopt = open_table(&f, &d, 0, G1);
	map_at(iopt, M2, M2);
	assert_int_equal(fill_one(iopt, M2, 0, M2, 0), 0);
	d.during = change_during;
	assert_int_equal(sublet_iopt_clear(iopt, M2, M2, 0), 0);
	/* What was removed meanwhile waits for the next flush. */
	assert_int_equal(d.flushes, 1);
	assert_true(d.iova == M2 && d.bytes == M2);
	sublet_iopt_flush(iopt);
	assert_int_equal(d.flushes, 2);
	assert_true(d.iova == 16 * M2 && d.bytes == PAGE);
	close_table(iopt);
	fixture_close(&f);
}

/* ---- a fill that meets somebody else's flush ---- */

struct slow {
	struct sublet_iopt *iopt;
	_Atomic uint32_t phase; /* 1: the flush is under way, 2: it may end, 3: it has ended */
};

static void slow_flush(void *ctx, uint64_t iova, uint64_t bytes)
{
	struct slow *s = ctx;

	(void)iova, (void)bytes;
	atomic_store(&s->phase, 1);
	while (atomic_load(&s->phase) != 2)
		;
	struct timespec ts = { 0, 20000000 };
	nanosleep(&ts, NULL);
	atomic_store(&s->phase, 3);
}

static void *slow_main(void *arg)
{
	struct slow *s = arg;

	if (sublet_iopt_unmap(s->iopt, M2, M2, 0))
		fail_msg("unmap");
	return NULL;
}

/* G4: the range is free as soon as it is unmapped, but who fills it waits until the device has forgotten it. */
static void iopt_fill_waits(void **unused)
{
	static struct fake f;
	struct slow s = { 0 };
	struct sublet_iopt_options o = { SUBLET_OPTIONS(sublet_iopt_options), .aperture_bytes = G1,
					 .flush = slow_flush, .ctx = &s };
	pthread_t thread;
	(void)unused;

	open_arena(&f);
	assert_int_equal(sublet_iopt_create(f.arena, &o, &s.iopt), 0);
	map_at(s.iopt, M2, M2);
	assert_int_equal(fill_one(s.iopt, M2, 0, M2, 0), 0);
	threads_begin();
	assert_int_equal(pthread_create(&thread, NULL, slow_main, &s), 0);
	while (atomic_load(&s.phase) != 1)
		;
	map_at(s.iopt, M2, M2);
	map_at(s.iopt, 8 * M2, M2);
	assert_int_equal(fill_one(s.iopt, 8 * M2, 0, M2, 0), 0);
	assert_int_equal(atomic_load(&s.phase), 1); /* elsewhere: no waiting */
	assert_int_equal(fill_one(s.iopt, M2, M2, PAGE, SUBLET_IOPT_NOFLUSH), 0);
	assert_int_equal(atomic_load(&s.phase), 1);
	atomic_store(&s.phase, 2);
	assert_int_equal(fill_one(s.iopt, M2 + PAGE, M2 + PAGE, PAGE, 0), 0);
	assert_int_equal(atomic_load(&s.phase), 3);
	pthread_join(thread, NULL);
	threads_end();
	assert_int_equal(stats_now(s.iopt).flushes, 1);
	close_table(s.iopt);
	fixture_close(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(iopt_fill_refuses),
		cmocka_unit_test(iopt_clear_refuses),
		cmocka_unit_test(iopt_largest_entries),
		cmocka_unit_test(iopt_split_and_merge),
		cmocka_unit_test(iopt_no_merge),
		cmocka_unit_test(iopt_access),
		cmocka_unit_test(iopt_flush),
		cmocka_unit_test(iopt_flush_before_reuse),
		cmocka_unit_test(iopt_change_during_flush),
		cmocka_unit_test(iopt_fill_waits),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
