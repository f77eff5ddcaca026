/* SPDX-License-Identifier: MIT */
/*
 * The memory of a tracked buffer changes after bind has looked where it is, and before it takes the lock: what it saw is
 * not used (G4, G6). sublet_mm_extents is wrapped, to do something at that one place.
 */
#include "fake_device.h"

#include <sublet/iopt.h>

#define SHORT_NS (60 * SUBLET_MS)
#define LONG_NS  (10 * SUBLET_SEC)

static struct fake f;
static struct fake_device fd;

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

/* ---- after each look at the page table, and before the lock ---- */

int __real_sublet_mm_extents(struct sublet_mm *mm, const void *addr, uint64_t bytes, uint64_t from_bytes,
			     struct sublet_extent *extents, uint32_t count);
int __wrap_sublet_mm_extents(struct sublet_mm *mm, const void *addr, uint64_t bytes, uint64_t from_bytes,
			     struct sublet_extent *extents, uint32_t count);

static _Thread_local void (*after_look)(void);

int __wrap_sublet_mm_extents(struct sublet_mm *mm, const void *addr, uint64_t bytes, uint64_t from_bytes,
			     struct sublet_extent *extents, uint32_t count)
{
	int n = __real_sublet_mm_extents(mm, addr, bytes, from_bytes, extents, count);
	void (*act)(void) = after_look;

	after_look = NULL;
	if (act)
		act();
	return n;
}

/* ---- what happens there ---- */

static uint32_t act_vpn;

static void act_move(void)
{
	static const struct sublet__window_range any = { .to = MOVE_AREA_FIRST };

	assert_true(sublet__move_page(f.engine_mm[0], act_vpn, &any) > 0);
}

static void moved_after_the_look(void **unused)
{
	(void)unused;

	for (uint32_t attach = 0; attach < 2; attach++) {
		setup(NULL, &(struct fake_device_options){ .features = attach ? SUBLET_DEVICE_COPY : 0 });
		uint32_t vpn = map_pages(&f, 16, SUBLET_MOVABLE);
		struct sublet_bo bo = bo_over(&fd, vpn, 16, SUBLET_BO_TRACKED);
		act_vpn = vpn;
		after_look = act_move;
		dma_fill(&fd, bo, 16, 3);
		check_pattern(&f, vpn, 16, 3);
		assert_null(after_look);
		teardown();
	}
}

static struct sublet__invalidation act_told;

static void act_begin(void)
{
	assert_int_equal(sublet__invalidate_begin(f.engine_mm[0], &act_told, act_vpn, 16,
						  SUBLET_NOTIFIER_MOVE, false),
			 0);
}

/* While an invalidation is under way nothing is bound, and a job waits for its end, up to its own time. */
static void binding_waits_for_the_end(void **unused)
{
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 1);
	(void)unused;

	setup(NULL, NULL);
	uint32_t vpn = map_pages(&f, 16, SUBLET_MOVABLE);
	struct sublet_bo bo = bo_over(&fd, vpn, 16, SUBLET_BO_TRACKED);
	act_vpn = vpn;
	after_look = act_begin;
	job.timeout_ns = SHORT_NS;
	uint64_t start = wall_ns();
	assert_int_equal(submit_error(&fd, &job, bo), -ETIMEDOUT);
	assert_in_range(wall_ns() - start, SHORT_NS, LONG_NS / 2);
	assert_int_equal(info_of(&fd, bo).bound_bytes, 0);
	assert_int_equal(fake_device_info(&fd).iopt.filled_bytes, 0);
	sublet__invalidate_end(f.engine_mm[0], &act_told);
	dma_fill(&fd, bo, 16, 1);
	teardown();
}

static struct sublet_bo act_bo;

static void act_destroy(void)
{
	struct sublet_bo again;

	assert_int_equal(sublet_bo_destroy(&act_bo), 0);
	/* And the slot has another owner at once. */
	again = bo_over(&fd, act_vpn, 8, SUBLET_BO_TRACKED);
	dma_fill(&fd, again, 8, 4);
}

static void destroyed_after_the_look(void **unused)
{
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 1);
	(void)unused;

	for (uint32_t attach = 0; attach < 2; attach++) {
		setup(NULL, &(struct fake_device_options){ .features = attach ? SUBLET_DEVICE_COPY : 0 });
		uint32_t vpn = map_pages(&f, 16, SUBLET_MOVABLE);
		struct sublet_bo bo = bo_over(&fd, vpn, 16, SUBLET_BO_TRACKED);
		act_bo = bo;
		act_vpn = vpn;
		after_look = act_destroy;
		assert_int_equal(submit_error(&fd, &job, bo), -EINVAL);
		assert_int_equal(fake_device_info(&fd).binds, 1);
		teardown();
	}
}

static void act_unmap(void)
{
	assert_int_equal(sublet_unmap(f.engine_mm[0], addr_of(&f, 0, act_vpn), 16 * PAGE), 0);
}

static void unmapped_after_the_look(void **unused)
{
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 1);
	(void)unused;

	setup(NULL, NULL);
	act_vpn = map_pages(&f, 16, SUBLET_MOVABLE);
	struct sublet_bo bo = bo_over(&fd, act_vpn, 16, SUBLET_BO_TRACKED);
	after_look = act_unmap;
	assert_int_equal(submit_error(&fd, &job, bo), -EFAULT);
	assert_int_equal(fake_device_info(&fd).iopt.filled_bytes, 0);
	teardown();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(moved_after_the_look),
		cmocka_unit_test(binding_waits_for_the_end),
		cmocka_unit_test(destroyed_after_the_look),
		cmocka_unit_test(unmapped_after_the_look),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
