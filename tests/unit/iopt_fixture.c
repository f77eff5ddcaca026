/* SPDX-License-Identifier: MIT */
/* See iopt_fixture.h. */
#include "iopt_fixture.h"

static void device_flush(void *ctx, uint64_t iova, uint64_t bytes)
{
	struct device *device = ctx;

	device->flushes++;
	device->iova = iova;
	device->bytes = bytes;
	if (device->during)
		device->during(device);
}

void open_arena(struct fake *f)
{
	fixture_open(f, &(struct fake_options){
				.area_frames = 1 << 18, .normal_frames = 1 << 18, .mm_pages = 512 });
}

struct sublet_iopt *open_table(struct fake *f, struct device *device, uint64_t first, uint64_t aperture)
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

void close_table(struct sublet_iopt *iopt)
{
	iopt_check(iopt);
	sublet_iopt_destroy(iopt);
}

struct sublet_iopt_stats stats_now(struct sublet_iopt *iopt)
{
	struct sublet_iopt_stats stats = { SUBLET_OPTIONS(sublet_iopt_stats) };

	iopt_check(iopt);
	assert_int_equal(sublet_iopt_stats(iopt, &stats), 0);
	assert_int_equal(stats.filled_bytes,
			 stats.entries_4k * PAGE + stats.entries_2m * M2 + stats.entries_1g * G1);
	return stats;
}

void entries_are(struct sublet_iopt *iopt, uint64_t small, uint64_t large, uint64_t huge)
{
	struct sublet_iopt_stats stats = stats_now(iopt);

	assert_int_equal(stats.entries_4k, small);
	assert_int_equal(stats.entries_2m, large);
	assert_int_equal(stats.entries_1g, huge);
}

uint64_t map_at(struct sublet_iopt *iopt, uint64_t iova, uint64_t bytes)
{
	assert_int_equal(sublet_iopt_map(iopt, &iova, bytes, 0, 0, RW), 0);
	return iova;
}

int fill_one(struct sublet_iopt *iopt, uint64_t iova, uint64_t offset, uint64_t bytes, uint32_t flags)
{
	return sublet_iopt_fill(iopt, iova, &(struct sublet_extent){ offset, bytes }, 1, flags);
}

void leads_to(struct sublet_iopt *iopt, uint64_t iova, uint64_t offset, uint64_t bytes)
{
	struct sublet_extent e = { 0, 0 };

	assert_int_equal(sublet_iopt_translate(iopt, iova, SUBLET_IOPT_READ, &e), 0);
	assert_int_equal(e.offset_bytes, offset);
	assert_int_equal(e.bytes, bytes);
}

void leads_nowhere(struct sublet_iopt *iopt, uint64_t iova)
{
	struct sublet_extent e = { 1, 2 };

	assert_int_equal(sublet_iopt_translate(iopt, iova, SUBLET_IOPT_READ, &e), -EFAULT);
	assert_int_equal(e.offset_bytes, 1);
	assert_int_equal(e.bytes, 2);
}
