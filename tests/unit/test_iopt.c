/* SPDX-License-Identifier: MIT */
/* core/iopt.c: what sublet/iopt.h promises, sentence by sentence. The random and the exhaustive tests are in
   test_iopt_model.c and test_iopt_walk.c. */
#include "fixture.h"

#include "iopt_check.h"

#include <pthread.h>
#include <stdatomic.h>

#define M2 (2 * SUBLET_MIB)
#define G1 SUBLET_GIB
#define RW (SUBLET_IOPT_READ | SUBLET_IOPT_WRITE)

/* What the device is told. */
struct device {
	uint32_t flushes;
	uint64_t iova, bytes; /* of the last one */
	struct sublet_iopt *iopt;
	void (*during)(struct device *device);
};

static void device_flush(void *ctx, uint64_t iova, uint64_t bytes)
{
	struct device *device = ctx;

	device->flushes++;
	device->iova = iova;
	device->bytes = bytes;
	if (device->during)
		device->during(device);
}

/* The arena of a test has 2 GiB of frames, which cost 128 bytes each here. */
static void open_arena(struct fake *f)
{
	fixture_open(f, &(struct fake_options){
				.area_frames = 1 << 18, .normal_frames = 1 << 18, .mm_pages = 512 });
}

static struct sublet_iopt *open_table(struct fake *f, struct device *device, uint64_t first,
				      uint64_t aperture)
{
	struct sublet_iopt *iopt = NULL;
	struct sublet_iopt_options options = { SUBLET_OPTIONS(sublet_iopt_options), .first_bytes = first,
					       .aperture_bytes = aperture };

	if (device) {
		*device = (struct device){ 0 };
		options.flush = device_flush;
		options.ctx = device;
	}
	assert_int_equal(sublet_iopt_create(f->arena, &options, &iopt), 0);
	iopt_check(iopt);
	if (device)
		device->iopt = iopt;
	return iopt;
}

static void close_table(struct sublet_iopt *iopt)
{
	iopt_check(iopt);
	sublet_iopt_destroy(iopt);
}

static struct sublet_iopt_stats stats_now(struct sublet_iopt *iopt)
{
	struct sublet_iopt_stats stats = { SUBLET_OPTIONS(sublet_iopt_stats) };

	iopt_check(iopt);
	assert_int_equal(sublet_iopt_stats(iopt, &stats), 0);
	assert_int_equal(stats.filled_bytes,
			 stats.entries_4k * PAGE + stats.entries_2m * M2 + stats.entries_1g * G1);
	return stats;
}

static void entries_are(struct sublet_iopt *iopt, uint64_t small, uint64_t large, uint64_t huge)
{
	struct sublet_iopt_stats stats = stats_now(iopt);

	assert_int_equal(stats.entries_4k, small);
	assert_int_equal(stats.entries_2m, large);
	assert_int_equal(stats.entries_1g, huge);
}

static uint64_t map_at(struct sublet_iopt *iopt, uint64_t iova, uint64_t bytes)
{
	assert_int_equal(sublet_iopt_map(iopt, &iova, bytes, 0, 0, RW), 0);
	return iova;
}

static int fill_one(struct sublet_iopt *iopt, uint64_t iova, uint64_t offset, uint64_t bytes, uint32_t flags)
{
	return sublet_iopt_fill(iopt, iova, &(struct sublet_extent){ offset, bytes }, 1, flags);
}

static void leads_to(struct sublet_iopt *iopt, uint64_t iova, uint64_t offset, uint64_t bytes)
{
	struct sublet_extent e = { 0, 0 };

	assert_int_equal(sublet_iopt_translate(iopt, iova, SUBLET_IOPT_READ, &e), 0);
	assert_int_equal(e.offset_bytes, offset);
	assert_int_equal(e.bytes, bytes);
}

static void leads_nowhere(struct sublet_iopt *iopt, uint64_t iova)
{
	struct sublet_extent e = { 1, 2 };

	assert_int_equal(sublet_iopt_translate(iopt, iova, SUBLET_IOPT_READ, &e), -EFAULT);
	assert_int_equal(e.offset_bytes, 1);
	assert_int_equal(e.bytes, 2);
}

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
		cmocka_unit_test(iopt_create),
		cmocka_unit_test(iopt_allocates_nothing),
		cmocka_unit_test(iopt_map_refuses),
		cmocka_unit_test(iopt_never_zero),
		cmocka_unit_test(iopt_too_many),
		cmocka_unit_test(iopt_alignment),
		cmocka_unit_test(iopt_large_disabled),
		cmocka_unit_test(iopt_unmap_refuses),
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
		cmocka_unit_test(iopt_stats),
		cmocka_unit_test(iopt_large_frames),
		cmocka_unit_test(iopt_destroy_full),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
