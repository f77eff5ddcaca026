/* SPDX-License-Identifier: MIT */
/* Collapse, on a simulated device: what lies scattered is moved together, where that helps and disturbs nobody. */
#include "fake_device.h"

#define HUGE 512u /* pages of 2 MiB */

static struct fake f;
static struct fake_device fd;
static struct sublet_bo no_bo;

static void setup(const struct fake_options *platform, const struct fake_device_options *options)
{
	fixture_open(&f, platform);
	fake_device_open(&fd, &f, options);
}

static void teardown(void)
{
	fake_device_close(&fd);
	fixture_close(&f);
}

/* A bo whose memory lies in pieces of 64 KiB; the rest of the area free. */
static struct sublet_bo scattered(uint32_t *vpn, uint32_t pages)
{
	const uint32_t unit = 16, units = f.options.area_frames / unit;
	static uint32_t all[4096];

	/* Fill the area with units, free every other one: what is mapped next lies in these. */
	for (uint32_t i = 0; i < units; i++)
		all[i] = map_pages(&f, unit, SUBLET_MOVABLE);
	for (uint32_t i = 0; i < units; i += 2)
		assert_int_equal(sublet_unmap(f.engine_mm[0], addr_of(&f, 0, all[i]), unit * PAGE), 0);
	void *addr;
	assert_int_equal(
		sublet_map_aligned(f.engine_mm[0], pages * PAGE, 2 * SUBLET_MIB, SUBLET_MOVABLE, &addr), 0);
	*vpn = vpn_of(&f, 0, addr);
	for (uint32_t i = 1; i < units; i += 2)
		assert_int_equal(sublet_unmap(f.engine_mm[0], addr_of(&f, 0, all[i]), unit * PAGE), 0);
	return bo_over(&fd, *vpn, pages, SUBLET_BO_TRACKED);
}

static void collapse(void **unused)
{
	const struct fake_options platform = { .run_pages_max = 512,
					       .area_frames = 16 * HUGE,
					       .normal_frames = FAKE_NORMAL_NONE };
	uint32_t vpn;
	(void)unused;

	setup(&platform, NULL);
	struct sublet_bo bo = scattered(&vpn, 4 * HUGE);
	fill(&f, 0, vpn, 4 * HUGE, 6);
	assert_int_equal(sublet_device_collapse(fd.device, UINT64_MAX), 0); /* not bound: nothing to gain */
	struct sublet_job sum = job_of(SUBLET_JOB_SUM, 1);
	struct sublet_fence fence = go(&fd, &sum, bo, no_bo);
	assert_int_equal(fake_device_info(&fd).iopt.entries_2m, 0);
	assert_int_equal(sublet_device_collapse(fd.device, UINT64_MAX), 0); /* in use: not even asked */
	struct sublet_notifier_stats stats = { SUBLET_OPTIONS(sublet_notifier_stats) };
	assert_int_equal(sublet_notifier_stats(f.engine_mm[0], &stats), 0);
	assert_int_equal(stats.declined, 0);
	/* And where the job comes between the look and the move, its gate stays open. */
	const struct sublet__window_range any = { .to = MOVE_AREA_FIRST };
	fd.device->bo[0].is_collapsing = true;
	assert_int_equal(sublet__move_page(f.engine_mm[0], vpn, &any), -EAGAIN);
	assert_int_equal(fd.device->bo[0].gate_until_ns, 0);
	fd.device->bo[0].is_collapsing = false;
	assert_true(fake_device_step(&fd));
	assert_int_equal(fence_end(&fence), 0);
	assert_int_equal(sublet_device_collapse(fd.device, 0), 0);
	/* One piece at a time, each a different one. */
	assert_int_equal(sublet_device_collapse(fd.device, 1), 2 * SUBLET_MIB);
	assert_int_equal((uint32_t)(info_of(&fd, bo).bound_bytes / PAGE), 3 * HUGE);
	assert_int_equal(sublet_device_collapse(fd.device, 1), 2 * SUBLET_MIB);
	assert_int_equal((uint32_t)(info_of(&fd, bo).bound_bytes / PAGE), 2 * HUGE);
	assert_int_equal(sublet_device_collapse(fd.device, UINT64_MAX), 4 * SUBLET_MIB);
	fence = go(&fd, &sum, bo, no_bo);
	assert_true(fake_device_step(&fd));
	assert_int_equal(fence_end(&fence), 0);
	struct sublet_device_info info = fake_device_info(&fd);
	assert_int_equal(info.iopt.entries_2m, 4);
	assert_int_equal(info.iopt.entries_4k, 0);
	assert_int_equal(info.collapsed_bytes, 8 * SUBLET_MIB);
	assert_int_equal(sublet_device_collapse(fd.device, UINT64_MAX), 0); /* done */
	check_fill(&f, 0, vpn, 4 * HUGE, 6);
	teardown();

	/* Where large entries or large folios cannot be, nothing is moved for them. */
	setup(&platform, &(struct fake_device_options){ .large_disabled = 1 });
	bo = scattered(&vpn, HUGE);
	dma_fill(&fd, bo, HUGE, 1);
	assert_int_equal(sublet_device_collapse(fd.device, UINT64_MAX), 0);
	teardown();
	setup(&(struct fake_options){ .run_pages_max = 128,
				      .area_frames = 16 * HUGE,
				      .normal_frames = FAKE_NORMAL_NONE },
	      NULL);
	bo = scattered(&vpn, HUGE);
	dma_fill(&fd, bo, HUGE, 1);
	assert_int_equal(sublet_device_collapse(fd.device, UINT64_MAX), 0);
	teardown();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(collapse),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
