/* SPDX-License-Identifier: MIT */
/*
 * Devices that cannot even be stopped: the jobs that they were given are lost, whoever waits for them is told, and the
 * memory stays held until the device says that it is done, if it ever does (G2, G7, G11).
 */
#include "fake_device.h"

#define SHORT_NS (60 * SUBLET_MS)
#define LONG_NS  (10 * SUBLET_SEC) /* never reached: a test that waits so long fails */

static struct fake f;
static struct fake_device fd;

static struct sublet_bo no_bo;

/* An arena with a device, and a tracked bo of `pages` pages. */
static struct sublet_bo setup(const struct fake_device_options *options, uint32_t pages)
{
	fixture_open(&f, NULL);
	fake_device_open(&fd, &f, options);
	return bo_over(&fd, map_pages(&f, pages, SUBLET_MOVABLE), pages, SUBLET_BO_TRACKED);
}

static void teardown(void)
{
	fake_device_close(&fd);
	fixture_close(&f);
}

/* A job that hangs in a device that cannot be stopped; its id. The fence has ended. */
static uint64_t job_lose(struct sublet_bo bo)
{
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 1);
	struct sublet_device_work work;

	job.timeout_ns = SHORT_NS;
	fd.reset_error = -EINPROGRESS;
	struct sublet_fence fence = go(&fd, &job, bo, no_bo);
	assert_true(fake_device_take(&fd, &work));
	assert_int_equal(sublet_fence_wait(&fence, LONG_NS, NULL, NULL), -ENODEV);
	assert_int_equal(fence_end(&fence), -ENODEV);
	assert_int_equal(fake_device_info(&fd).dead, 1);
	assert_int_equal(fake_device_info(&fd).jobs_failed, 1);
	return work.id;
}

/* Its memory stays where it is, whatever is asked for, until the device is done with it (G2, G11). */
static void lost_tracked(void **unused)
{
	struct sublet_claim_options o = { SUBLET_OPTIONS(sublet_claim_options),
					  .deadline_ns = 5 * SUBLET_MS };
	const struct sublet__window_range any = { .to = MOVE_AREA_FIRST };
	struct sublet_claim claim;
	(void)unused;

	for (uint32_t mode = 0; mode < 4; mode++) {
		setup(&(struct fake_device_options){ .features = mode & 1 ? SUBLET_DEVICE_COPY : 0 }, 4);
		struct sublet_mm *mm = f.engine_mm[0];
		uint32_t vpn = map_pages(&f, 16, SUBLET_MOVABLE), pfn = fake_pfn_of(&f.mm[0], vpn);
		struct sublet_bo bo = bo_over(&fd, vpn, 16, SUBLET_BO_TRACKED);
		uint64_t id = job_lose(bo);
		/* what the device may still use it keeps, until then (G4) */
		assert_int_equal(mode & 1 ? fd.attaches - fd.detaches : fake_device_info(&fd).iopt.mappings,
				 1);
		for (uint32_t round = 0; round < 2; round++) { /* with its handle, and without */
			assert_int_equal(sublet__move_page(mm, vpn, &any), -EAGAIN);
			assert_int_equal(sublet_unmap(mm, addr_of(&f, 0, vpn), 16 * PAGE), -EBUSY);
			assert_int_equal(sublet_claim(f.arena, f.options.area_frames * PAGE, &o, &claim),
					 -EBUSY);
			assert_int_equal(fake_pfn_of(&f.mm[0], vpn), pfn);
			if (!round && mode & 2)
				break;
			if (!round)
				assert_int_equal(sublet_bo_destroy(&bo), 0);
		}
		sublet_device_complete(fd.device, id, 0, 0);
		sublet_device_complete(fd.device, id, 0, 0);
		assert_true(sublet__move_page(mm, vpn, &any) > 0);
		assert_int_equal(sublet_unmap(mm, addr_of(&f, 0, vpn), 16 * PAGE), 0);
		assert_int_equal(fake_device_info(&fd).iopt.mappings, 0);
		if (bo.device)
			assert_int_equal(sublet_bo_destroy(&bo), 0);
		teardown();
	}
}

/* The one who unmaps is who resets: too late to refuse, but not to say no. Nor does a decommit free anything. */
static void lost_while_unmapping(void **unused)
{
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 1);
	struct sublet_device_work work;
	(void)unused;

	for (uint32_t decommit = 0; decommit < 2; decommit++) {
		setup(NULL, 4);
		struct sublet_mm *mm = f.engine_mm[0];
		uint32_t vpn = map_pages(&f, 16, SUBLET_MOVABLE);
		void *addr = addr_of(&f, 0, vpn);
		struct sublet_bo bo = bo_over(&fd, vpn, 16, SUBLET_BO_TRACKED);
		fill(&f, 0, vpn, 16, 1);
		job.timeout_ns = SHORT_NS;
		fd.reset_error = -EINPROGRESS;
		assert_int_equal(submit_error(&fd, &job, bo), 0);
		assert_true(fake_device_take(&fd, &work));
		uint64_t used = stats_of(&f).area_movable_bytes + stats_of(&f).normal_used_bytes;
		if (decommit)
			assert_int_equal(sublet_decommit(mm, addr, 16 * PAGE), 0);
		else
			assert_int_equal(sublet_unmap(mm, addr, 16 * PAGE), -EBUSY);
		assert_int_equal(fd.resets, 1);
		assert_int_equal(stats_of(&f).area_movable_bytes + stats_of(&f).normal_used_bytes, used);
		if (!decommit)
			check_fill(&f, 0, vpn, 16, 1);
		sublet_device_complete(fd.device, work.id, 0, 0);
		assert_int_equal(sublet_unmap(mm, addr, 16 * PAGE), 0);
		teardown();
	}
}

static size_t pins_listed(void)
{
	struct sublet_pin_info pin[4];
	uint64_t next = 0;

	return sublet_pin_list(f.arena, &next, 4, pin);
}

static void lost_pinned_and_claimed(void **unused)
{
	struct sublet_claim claim, copy;
	struct sublet_bo bo;
	(void)unused;

	for (uint32_t kind = 0; kind < 2; kind++) {
		setup(NULL, 4);
		assert_int_equal(claim_take(&f, 16 * PAGE, NULL, &claim), 0);
		if (kind)
			bo = bo_over(&fd, map_pages(&f, 16, SUBLET_MOVABLE), 16, SUBLET_BO_PINNED);
		else
			assert_int_equal(sublet_bo_create_claim(fd.device, &claim, 0, NULL, &bo), 0);
		uint64_t id = job_lose(bo);
		assert_int_equal(sublet_bo_destroy(&bo), 0);
		copy = claim;
		assert_int_equal(pins_listed(), kind);
		if (!kind)
			assert_int_equal(sublet_release(f.arena, &copy), -EBUSY);
		sublet_device_complete(fd.device, id, 0, 0);
		assert_int_equal(pins_listed(), 0);
		claim_give(&f, &claim);
		teardown();
	}
}

/* A world with a job over a range of memory that the device has, hangs at, and cannot be stopped from; its id. */
static uint64_t range_lose(struct sublet_fence *fence)
{
	struct sublet_job job = job_of(SUBLET_JOB_READ, 4);
	struct sublet_device_work work;

	setup(&(struct fake_device_options){ .features = SUBLET_DEVICE_FILES | SUBLET_DEVICE_RANGES }, 4);
	fd.reset_error = -EINPROGRESS;
	job.timeout_ns = SHORT_NS;
	assert_int_equal(sublet_submit_range(fd.device, &job, f.engine_mm[0], addr_of(&f, 0, 0), fence), 0);
	assert_true(fake_device_take(&fd, &work));
	assert_int_equal(sublet_fence_wait(fence, LONG_NS, NULL, NULL), -ENODEV);
	return work.id;
}

static void lost_range(void **unused)
{
	struct sublet_fence fence;
	(void)unused;

	uint64_t id = range_lose(&fence);
	assert_int_equal(pins_listed(), 1);
	assert_int_equal(fence_end(&fence), -ENODEV);
	assert_int_equal(pins_listed(), 1);
	sublet_device_complete(fd.device, id, 0, 0);
	assert_int_equal(pins_listed(), 0);
	teardown();
}

/*
 * It could not be stopped, and then it died: it accesses nothing any more, so the memory of what it lost is free at once,
 * with its handle and without; and what it says of those jobs later is nobody's business (G8, G11).
 */
static void lost_then_died(void **unused)
{
	struct sublet_claim claim, copy;
	(void)unused;

	for (uint32_t kind = 0; kind < 8; kind++) {
		bool is_gone = kind & 4; /* the handle */
		setup(&(struct fake_device_options){ .features = kind & 1 ? SUBLET_DEVICE_COPY : 0 }, 4);
		struct sublet_mm *mm = f.engine_mm[0];
		uint32_t vpn = map_pages(&f, 16, SUBLET_MOVABLE);
		struct sublet_bo bo = bo_over(&fd, vpn, 16, SUBLET_BO_TRACKED), over;
		if (kind & 2) {
			assert_int_equal(claim_take(&f, 16 * PAGE, NULL, &claim), 0);
			assert_int_equal(sublet_bo_create_claim(fd.device, &claim, 0, NULL, &over), 0);
		} else {
			over = bo;
		}
		uint64_t id = job_lose(over);
		if (is_gone)
			assert_int_equal(sublet_bo_destroy(&over), 0);
		sublet_device_died(fd.device);
		assert_int_equal(fd.device->lost_count, 0);
		assert_int_equal(fd.device->running_count, 0);
		assert_int_equal(fake_device_info(&fd).iopt.mappings, 0);
		assert_int_equal(fd.attaches, fd.detaches);
		assert_int_equal(fake_device_info(&fd).jobs_failed, 1); /* it had failed before */
		sublet_device_complete(fd.device, id, 0, 0);
		sublet_device_died(fd.device);
		assert_int_equal(sublet_unmap(mm, addr_of(&f, 0, vpn), 16 * PAGE), 0);
		if (!is_gone)
			assert_int_equal(sublet_bo_destroy(&over), 0);
		if (kind & 2) {
			copy = claim;
			claim_give(&f, &copy);
		}
		teardown();
	}
}

static void die_in_reset(struct fake_device *dev)
{
	sublet_device_died(dev->device);
}

/* It says that it died while it is being reset, and reset that it cannot be stopped: what it said by itself holds. */
static void died_in_reset(void **unused)
{
	struct sublet_bo bo = setup(NULL, 16);
	(void)unused;

	fd.on_reset = die_in_reset;
	job_lose(bo);
	assert_int_equal(fd.device->lost_count, 0);
	assert_int_equal(fake_device_info(&fd).iopt.mappings, 0);
	assert_int_equal(info_of(&fd, bo).jobs, 0);
	assert_int_equal(sublet_unmap(f.engine_mm[0], addr_of(&f, 0, 0), 16 * PAGE), 0);
	assert_int_equal(sublet_bo_destroy(&bo), 0);
	teardown();
}

/* The range of a lost job is not pinned any more, and its fence can still be asked and put: its slot is free then. */
static void lost_range_then_died(void **unused)
{
	struct sublet_fence fence;
	(void)unused;

	(void)range_lose(&fence);
	uint32_t slot = (uint32_t)fence.id - 1;
	sublet_device_died(fd.device);
	assert_int_equal(pins_listed(), 0);
	assert_int_equal(fd.device->job[slot].state, JOB_DONE);
	assert_int_equal(fence_end(&fence), -ENODEV);
	assert_int_equal(fd.device->job[slot].state, JOB_FREE);
	teardown();
}

/* Closed with a lost job: that does not wait. What it may still write to stays held for good. */
static void lost_and_closed(void **unused)
{
	struct sublet_bo bo = setup(NULL, 16);
	struct sublet_mm *mm = f.engine_mm[0];
	(void)unused;

	job_lose(bo);
	struct sublet_iopt *iopt = sublet_device_iopt(fd.device);
	size_t bytes = fd.device->memory_bytes;
	sublet_device_close(fd.device);
	assert_int_equal(fd.closes, 1);
	assert_int_equal(sublet_unmap(mm, addr_of(&f, 0, 0), 16 * PAGE), -EBUSY);
	sublet__notifiers_exit(mm); /* the arena goes: now nothing leads to the tables any more */
	sublet_iopt_destroy(iopt);
	f.platform.ops->unreserve(&f, fd.device, bytes);
	free(fd.tlb);
	fixture_close(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(lost_tracked),
		cmocka_unit_test(lost_while_unmapping),
		cmocka_unit_test(lost_pinned_and_claimed),
		cmocka_unit_test(lost_range),
		cmocka_unit_test(lost_then_died),
		cmocka_unit_test(died_in_reset),
		cmocka_unit_test(lost_range_then_died),
		cmocka_unit_test(lost_and_closed),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
