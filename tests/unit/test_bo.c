/* SPDX-License-Identifier: MIT */
/*
 * Buffer objects on a simulated device: the three kinds, what is refused, how they end, who holds what meanwhile. How
 * translations come and go is in test_bind.c.
 */
#include "fake_device.h"

#include <sublet/iopt.h>

#define SHORT_NS (60 * SUBLET_MS)
#define LONG_NS  (10 * SUBLET_SEC)

static struct fake f;
static struct fake_device fd;
static struct sublet_bo no_bo;

static void setup(const struct fake_device_options *options)
{
	fixture_open(&f, &(struct fake_options){ .mms = 2 });
	fake_device_open(&fd, &f, options);
}

static void teardown(void)
{
	fake_device_close(&fd);
	fixture_close(&f);
}

static int create(void *addr, uint64_t bytes, uint32_t flags)
{
	struct sublet_bo bo;
	return sublet_bo_create(fd.device, f.engine_mm[0], addr, bytes, flags, NULL, &bo);
}

/* ---- making ---- */

static void create_refuses(void **unused)
{
	static struct fake elsewhere;
	struct sublet_bo bo;
	(void)unused;

	setup(&(struct fake_device_options){ .bos_max = 4, .bo_bytes_max = 16 * PAGE, .align_bytes = 512 });
	fixture_open(&elsewhere, NULL);
	char *addr = addr_of(&f, 0, map_pages(&f, 64, SUBLET_MOVABLE));
	const uint32_t t = SUBLET_BO_TRACKED, p = SUBLET_BO_PINNED;

	assert_int_equal(create(addr, 0, t), -EINVAL);
	assert_int_equal(create(addr, UINT64_MAX, t), -EINVAL);
	assert_int_equal(create(NULL, PAGE, t), -EINVAL);
	assert_int_equal(create(addr, PAGE, 0), -EINVAL);
	assert_int_equal(create(addr, PAGE, t | p), -EINVAL);
	assert_int_equal(create(addr, PAGE, SUBLET_BO_CLAIMED), -EINVAL);
	assert_int_equal(create(addr, PAGE, t | SUBLET_BO_CLAIMED), -EINVAL);
	assert_int_equal(create(addr, PAGE, t | 1u << 9), -EINVAL);
	assert_int_equal(create(addr, PAGE, SUBLET_BO_READONLY), -EINVAL);
	assert_int_equal(create(addr + 8, PAGE, t), -EINVAL); /* not aligned as the device wants */
	assert_int_equal(create(addr, 16 * PAGE + 1, t), -E2BIG);
	assert_int_equal(create(addr + 512, 16 * PAGE, t), -E2BIG); /* with whole pages */
	assert_int_equal(create(addr, 17 * PAGE, p), -E2BIG);
	assert_int_equal(sublet_bo_create(fd.device, elsewhere.engine_mm[0], addr, PAGE, t, NULL, &bo),
			 -EINVAL);
	assert_int_equal(create(addr + 64 * PAGE, PAGE, p), -EFAULT); /* nothing there to pin */
	for (uint32_t i = 0; i < 4; i++)
		assert_int_equal(create(addr + i * PAGE, PAGE, i & 1 ? t : p),
				 0); /* the refused took no slot */
	assert_int_equal(create(addr, PAGE, t), -ENOSPC);
	assert_int_equal(create(addr, PAGE, p), -ENOSPC);
	fixture_close(&elsewhere);
	teardown();
}

/* ---- claimed ---- */

static void claimed(void **unused)
{
	struct sublet_claim claim, copy;
	struct sublet_bo bo, second;
	struct sublet_extent extent[3];
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 8);
	(void)unused;

	setup(NULL);
	assert_int_equal(claim_take(&f, 8 * PAGE, NULL, &claim), 0);
	copy = claim;
	copy.id += 1;
	assert_int_equal(sublet_bo_create_claim(fd.device, &copy, 0, NULL, &bo), -EINVAL);
	assert_int_equal(sublet_bo_create_claim(fd.device, &claim, SUBLET_BO_TRACKED, NULL, &bo), -EINVAL);
	assert_int_equal(sublet_bo_create_claim(fd.device, &claim, SUBLET_BO_PINNED, NULL, &bo), -EINVAL);
	assert_int_equal(sublet_bo_create_claim(fd.device, &claim, 0, "frame", &bo), 0);
	assert_int_equal(sublet_bo_create_claim(fd.device, &claim, SUBLET_BO_READONLY, NULL, &second), 0);
	copy = claim;
	assert_int_equal(sublet_release(f.arena, &copy), -EBUSY);

	assert_int_equal(sublet_bo_extents(&bo, 0, extent, 3), 1);
	assert_int_equal(extent[0].offset_bytes, claim.offset_bytes);
	assert_int_equal(extent[0].bytes, 8 * PAGE);
	assert_int_equal(sublet_bo_extents(&bo, 3 * PAGE + 5, extent, 3), 1);
	assert_int_equal(extent[0].offset_bytes, claim.offset_bytes + 3 * PAGE + 5);
	assert_int_equal(extent[0].bytes, 5 * PAGE - 5);
	assert_int_equal(sublet_bo_extents(&bo, 8 * PAGE, extent, 3), 0);
	assert_int_equal(sublet_bo_extents(&bo, 8 * PAGE + 1, extent, 3), -EINVAL);
	assert_int_equal(sublet_bo_extents(&bo, 0, extent, 0), -EINVAL);

	job.pattern = 0x55;
	job.offset_bytes[0] = PAGE;
	assert_int_equal(submit_error(&fd, &job, bo), -EINVAL); /* a page beyond */
	job.bytes -= PAGE;
	assert_int_equal(submit_error(&fd, &job, second), -EACCES);
	struct sublet_fence fence = go(&fd, &job, bo, no_bo);
	assert_true(fake_device_step(&fd));
	assert_int_equal(fence_end(&fence), 0);
	uint32_t pfn = (uint32_t)(claim.offset_bytes / PAGE);
	for (uint32_t i = 0; i < 8; i++)
		assert_int_equal(fake_frame_read(&f, pfn + i, 3), i ? 0x55 : claim.id << 32 | pfn);

	struct sublet_bo_info info = info_of(&fd, bo);
	assert_int_equal(info.flags, SUBLET_BO_CLAIMED);
	assert_int_equal(info.bound_bytes, 8 * PAGE);
	assert_string_equal(info.owner, "frame");
	assert_string_equal(info_of(&fd, second).owner, "bo");
	assert_int_equal(sublet_bo_destroy(&bo), 0);
	assert_int_equal(sublet_release(f.arena, &copy), -EBUSY); /* the other one */
	assert_int_equal(sublet_bo_destroy(&second), 0);
	for (uint32_t i = 0; i < 8; i++)
		for (uint32_t w = 0; w < FAKE_WORDS; w++) /* as claim_give wants to find it */
			fake_frame_write(&f, pfn + i, w, claim.id << 32 | (pfn + i));
	copy = claim;
	claim_give(&f, &claim);
	assert_int_equal(sublet_bo_create_claim(fd.device, &copy, 0, NULL, &bo), -EINVAL);
	teardown();
}

/* What is refused keeps no hold on the claim. */
static void claimed_refused(void **unused)
{
	struct sublet_claim claim;
	struct sublet_bo bo;
	(void)unused;

	setup(&(struct fake_device_options){ .bos_max = 1, .bo_bytes_max = 8 * PAGE });
	bo_over(&fd, map_pages(&f, 8, SUBLET_MOVABLE), 8, SUBLET_BO_TRACKED);
	assert_int_equal(claim_take(&f, 16 * PAGE, NULL, &claim), 0);
	assert_int_equal(sublet_bo_create_claim(fd.device, &claim, 0, NULL, &bo), -E2BIG);
	claim_give(&f, &claim);
	assert_int_equal(claim_take(&f, 8 * PAGE, NULL, &claim), 0);
	assert_int_equal(sublet_bo_create_claim(fd.device, &claim, 0, NULL, &bo), -ENOSPC);
	sublet_device_died(fd.device);
	assert_int_equal(sublet_bo_create_claim(fd.device, &claim, 0, NULL, &bo), -ENODEV);
	claim_give(&f, &claim);
	teardown();
}

/* ---- pinned ---- */

static void pinned(void **unused)
{
	struct sublet_extent extent[40];
	struct sublet_pin_info pin;
	uint64_t next = 0;
	(void)unused;

	for (uint32_t attach = 0; attach < 2; attach++) {
		setup(attach ? &(struct fake_device_options){ .features = SUBLET_DEVICE_COPY } : NULL);
		uint32_t vpn = map_pages(&f, 64, SUBLET_MOVABLE);
		struct sublet_bo bo;
		assert_int_equal(sublet_bo_create(fd.device, f.engine_mm[0],
						  (char *)addr_of(&f, 0, vpn + 3) + 100, 20 * PAGE,
						  SUBLET_BO_PINNED, "rx", &bo),
				 0);
		next = 0;
		assert_int_equal(sublet_pin_list(f.arena, &next, 1, &pin), 1);
		assert_string_equal(pin.owner, "rx");
		assert_int_equal(pin.bytes, 21 * PAGE); /* whole pages */
		assert_true(pin.flags & SUBLET_PIN_LONGTERM && pin.flags & SUBLET_PIN_WRITE);
		for (uint32_t i = 3; i < 24; i++) /* out of the area (G3) */
			assert_true(fake_pfn_of(&f.mm[0], vpn + i) >= f.options.area_frames);

		int n = sublet_bo_extents(&bo, 50, extent, 40);
		uint64_t bytes = 0;
		assert_in_range(n, 1, 21);
		for (int i = 0; i < n; i++)
			bytes += extent[i].bytes;
		assert_int_equal(bytes, 20 * PAGE - 50); /* exactly its own bytes */
		assert_int_equal(extent[0].offset_bytes, fake_pfn_of(&f.mm[0], vpn + 3) * PAGE + 150);
		assert_int_equal(sublet_bo_extents(&bo, 20 * PAGE, extent, 40), 0);
		assert_int_equal(sublet_bo_extents(&bo, 20 * PAGE + 1, extent, 40), -EINVAL);

		struct sublet_bo whole = bo_over(&fd, vpn + 32, 8, SUBLET_BO_PINNED);
		assert_int_equal(info_of(&fd, whole).bound_bytes, 0);
		dma_fill(&fd, whole, 8, 0x77);
		check_pattern(&f, vpn + 32, 8, 0x77);
		assert_int_equal(info_of(&fd, whole).bound_bytes, 8 * PAGE);
		assert_int_equal(info_of(&fd, whole).binds, 1);
		assert_int_equal(sublet_unmap(f.engine_mm[0], addr_of(&f, 0, vpn), 64 * PAGE), -EBUSY);
		assert_int_equal(sublet_bo_destroy(&bo), 0);
		assert_int_equal(sublet_bo_destroy(&whole), 0);
		assert_int_equal(sublet_unmap(f.engine_mm[0], addr_of(&f, 0, vpn), 64 * PAGE), 0);
		teardown();
	}
}

/* A device that reads only is not promised more. */
static void readonly(void **unused)
{
	struct sublet_job job = job_of(SUBLET_JOB_SUM, 4), copy = job_of(SUBLET_JOB_COPY, 4);
	struct sublet_pin_info pin;
	struct sublet_extent extent;
	uint64_t next = 0;
	(void)unused;

	setup(&(struct fake_device_options){ .at_once = true });
	uint32_t vpn = map_pages(&f, 16, SUBLET_MOVABLE);
	fill(&f, 0, vpn, 16, 3);
	struct sublet_bo to = bo_over(&fd, vpn + 8, 8, SUBLET_BO_TRACKED);
	for (uint32_t kind = SUBLET_BO_TRACKED; kind <= SUBLET_BO_PINNED; kind <<= 1) {
		struct sublet_bo bo = bo_over(&fd, vpn, 8, kind | SUBLET_BO_READONLY);
		struct sublet_bo into[2] = { to, bo };
		struct sublet_fence fence = go(&fd, &job, bo, no_bo);
		assert_int_equal(fence_end(&fence), 0);
		fence = go(&fd, &copy, bo, to);
		assert_int_equal(fence_end(&fence), 0);
		assert_int_equal(sublet_submit(fd.device, &copy, into, 2, NULL), -EACCES);
		job.op = SUBLET_JOB_FILL;
		assert_int_equal(submit_error(&fd, &job, bo), -EACCES);
		job.op = SUBLET_JOB_SUM;
		/* And its page table says so too. */
		uint64_t iova = fd.device->bo[(uint32_t)bo.id - 1].iova;
		assert_int_equal(sublet_iopt_translate(sublet_device_iopt(fd.device), iova, SUBLET_IOPT_READ,
						       &extent),
				 0);
		assert_int_equal(sublet_iopt_translate(sublet_device_iopt(fd.device), iova, SUBLET_IOPT_WRITE,
						       &extent),
				 -EACCES);
		if (kind == SUBLET_BO_PINNED) {
			assert_int_equal(sublet_pin_list(f.arena, &next, 1, &pin), 1);
			assert_false(pin.flags & SUBLET_PIN_WRITE);
		}
		assert_int_equal(sublet_bo_destroy(&bo), 0);
	}
	teardown();
}

/* A device that knows area and normal zone already is told of tracked buffers only. */
static void registered(void **unused)
{
	struct sublet_claim claim;
	struct sublet_bo claimed_bo;
	(void)unused;

	setup(&(struct fake_device_options){ .features = SUBLET_DEVICE_COPY | SUBLET_DEVICE_REGISTERED,
					     .at_once = true });
	uint32_t vpn = map_pages(&f, 32, SUBLET_MOVABLE);
	assert_int_equal(claim_take(&f, 8 * PAGE, NULL, &claim), 0);
	assert_int_equal(sublet_bo_create_claim(fd.device, &claim, SUBLET_BO_READONLY, NULL, &claimed_bo), 0);
	struct sublet_bo pinned_bo = bo_over(&fd, vpn, 8, SUBLET_BO_PINNED);
	struct sublet_bo tracked = bo_over(&fd, vpn + 16, 8, SUBLET_BO_TRACKED);
	struct sublet_job sum = job_of(SUBLET_JOB_SUM, 8);
	struct sublet_fence fence = go(&fd, &sum, claimed_bo, no_bo);
	assert_int_equal(fence_end(&fence), 0);
	dma_fill(&fd, pinned_bo, 8, 4);
	check_pattern(&f, vpn, 8, 4);
	assert_int_equal(fd.attaches, 0);
	assert_int_equal(info_of(&fd, pinned_bo).bound_bytes, 8 * PAGE);
	dma_fill(&fd, tracked, 8, 5);
	assert_int_equal(fd.attaches, 1);
	sublet_device_died(fd.device); /* takes away what it gave, and no more */
	assert_int_equal(fd.detaches, 1);
	assert_int_equal(sublet_bo_destroy(&claimed_bo), 0);
	claim_give(&f, &claim);
	teardown();
}

/* What needs no entry of its own may be larger than one. */
static void registered_has_no_limit(void **unused)
{
	struct sublet_claim claim;
	struct sublet_bo bo;
	(void)unused;

	setup(&(struct fake_device_options){ .features = SUBLET_DEVICE_COPY | SUBLET_DEVICE_REGISTERED,
					     .bo_bytes_max = 8 * PAGE });
	uint32_t vpn = map_pages(&f, 32, SUBLET_MOVABLE);
	assert_int_equal(create(addr_of(&f, 0, vpn), 9 * PAGE, SUBLET_BO_TRACKED), -E2BIG);
	assert_int_equal(create(addr_of(&f, 0, vpn), 9 * PAGE, SUBLET_BO_PINNED), 0);
	assert_int_equal(claim_take(&f, 9 * PAGE, NULL, &claim), 0);
	assert_int_equal(sublet_bo_create_claim(fd.device, &claim, 0, NULL, &bo), 0);
	assert_int_equal(sublet_bo_destroy(&bo), 0);
	claim_give(&f, &claim);
	teardown();
}

/* What can never be bound is refused before it is made: the first page of the aperture is nobody's. */
static void larger_than_the_aperture(void **unused)
{
	struct sublet_device_info info = { SUBLET_OPTIONS(sublet_device_info) };
	struct sublet_claim claim;
	struct sublet_bo bo;
	(void)unused;

	setup(&(struct fake_device_options){ .aperture_bytes = 9 * PAGE, .bos_max = 1, .at_once = true });
	uint32_t vpn = map_pages(&f, 32, SUBLET_MOVABLE);
	assert_int_equal(sublet_device_info(fd.device, &info), 0);
	assert_int_equal(info.bo_bytes_max, 8 * PAGE);
	assert_int_equal(create(addr_of(&f, 0, vpn), 9 * PAGE, SUBLET_BO_TRACKED), -E2BIG);
	assert_int_equal(create(addr_of(&f, 0, vpn), 9 * PAGE, SUBLET_BO_PINNED), -E2BIG);
	assert_int_equal(stats_of(&f).longterm_bytes, 0);
	assert_int_equal(stats_of(&f).notifiers, 0);
	assert_int_equal(claim_take(&f, 9 * PAGE, NULL, &claim), 0);
	assert_int_equal(sublet_bo_create_claim(fd.device, &claim, 0, NULL, &bo), -E2BIG);
	claim_give(&f, &claim); /* nobody is over it */
	/* One that is no larger has all it needs. */
	bo = bo_over(&fd, vpn, 8, SUBLET_BO_TRACKED);
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 8);
	assert_int_equal(submit_error(&fd, &job, bo), 0);
	teardown();
}

/* ---- tracked: what cannot be bound ---- */

static int fill_once(struct sublet_bo bo, uint32_t pages)
{
	struct sublet_job job = job_of(SUBLET_JOB_FILL, pages);

	job.timeout_ns = SHORT_NS;
	return submit_error(&fd, &job, bo);
}

/* Memory that is not there yet: the bo is good, its jobs are not, until the memory comes. */
static void tracked_before_its_memory(void **unused)
{
	(void)unused;

	for (uint32_t attach = 0; attach < 2; attach++) {
		setup(&(struct fake_device_options){ .features = attach ? SUBLET_DEVICE_COPY : 0,
						     .at_once = true });
		uint32_t vpn = map_pages(&f, 32, SUBLET_MOVABLE);
		struct sublet_mm *mm = f.engine_mm[0];
		assert_int_equal(sublet_decommit(mm, addr_of(&f, 0, vpn + 16), 16 * PAGE), 0);
		struct sublet_bo bo = bo_over(&fd, vpn, 32, SUBLET_BO_TRACKED);
		/* all of it must be there, not what the job touches */
		assert_int_equal(fill_once(bo, 1), -EFAULT);
		assert_int_equal(sublet_commit(mm, addr_of(&f, 0, vpn + 16), 16 * PAGE, 0), 0);
		dma_fill(&fd, bo, 32, 8);
		check_pattern(&f, vpn, 32, 8);
		/* Given up again, and back: another time. */
		assert_int_equal(sublet_decommit(mm, addr_of(&f, 0, vpn), 16 * PAGE), 0);
		assert_int_equal(fill_once(bo, 1), -EFAULT);
		assert_int_equal(sublet_commit(mm, addr_of(&f, 0, vpn), 16 * PAGE, 0), 0);
		dma_fill(&fd, bo, 32, 9);
		check_pattern(&f, vpn, 32, 9);
		teardown();
	}
}

static void tracked_plain_memory(void **unused)
{
	struct sublet_claim claim;
	void *addr;
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .area_frames = 512, .normal_frames = 512 });
	fake_device_open(&fd, &f, NULL);
	assert_int_equal(claim_take(&f, 512 * PAGE, NULL, &claim), 0);
	map_pages(&f, 512, SUBLET_MOVABLE);
	assert_int_equal(sublet_map(f.engine_mm[0], 16 * PAGE, SUBLET_MOVABLE | SUBLET_PLAIN_OK, &addr), 0);
	struct sublet_bo bo = bo_over(&fd, vpn_of(&f, 0, addr), 16, SUBLET_BO_TRACKED);
	assert_int_equal(fill_once(bo, 1), -EFAULT);
	claim_give(&f, &claim);
	teardown();
}

static void *child_ends(void *mm)
{
	f.platform.ops->sleep_ns(&f, 20 * SUBLET_MS);
	assert_int_equal(sublet__mm_fork_restore(mm, sublet__mm_fork_epoch(mm)), 0);
	return NULL;
}

/* It is waited for, a third of a second: most children exec at once. */
static void tracked_while_a_child_shares(void **unused)
{
	struct sublet_mm *mm;
	(void)unused;

	setup(&(struct fake_device_options){ .at_once = true });
	mm = f.engine_mm[0];
	uint32_t vpn = map_pages(&f, 32, SUBLET_MOVABLE);
	struct sublet_bo bo = bo_over(&fd, vpn, 32, SUBLET_BO_TRACKED);
	dma_fill(&fd, bo, 32, 1);
	assert_int_equal(fork_begin(mm), 0); /* tells it first */
	assert_int_equal(info_of(&fd, bo).bound_bytes, 0);
	sublet__mm_fork_end(mm, 4711);
	assert_int_equal(fill_once(bo, 1),
			 -EBUSY); /* its own timeout is shorter than the wait for the child */
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 1);
	assert_int_equal(submit_error(&fd, &job, bo), -EBUSY);
	check_pattern(&f, vpn, 32, 1);

	pthread_t thread; /* and one that execs soon */
	assert_int_equal(pthread_create(&thread, NULL, child_ends, mm), 0);
	dma_fill(&fd, bo, 32, 2);
	pthread_join(thread, NULL);
	check_pattern(&f, vpn, 32, 2);
	teardown();
}

static void *submits_until_timeout(void *arg)
{
	const struct sublet_bo *bo = arg;
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 1);
	job.timeout_ns = 2 * SHORT_NS;
	return (void *)(intptr_t)sublet_submit(fd.device, &job, bo, 1, NULL);
}

/* Once the child is gone it is the device that these wait for, whichever of them bound the buffer. */
static void a_child_shared_before(void **unused)
{
	struct sublet_mm *mm;
	pthread_t thread[4], child;
	void *err;
	(void)unused;

	setup(&(struct fake_device_options){ .jobs_max = 1 });
	mm = f.engine_mm[0];
	uint32_t vpn = map_pages(&f, 64, SUBLET_MOVABLE);
	struct sublet_bo bo = bo_over(&fd, vpn, 32, SUBLET_BO_TRACKED);
	assert_int_equal(fork_begin(mm), 0);
	sublet__mm_fork_end(mm, 4711);
	struct sublet_bo other = bo_over(&fd, map_pages(&f, 64, SUBLET_MOVABLE), 32, SUBLET_BO_TRACKED);
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 1);
	struct sublet_fence fence = go(&fd, &job, other, no_bo); /* takes the only slot */
	for (uint32_t i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, submits_until_timeout, &bo), 0);
	assert_int_equal(pthread_create(&child, NULL, child_ends, mm), 0);
	pthread_join(child, NULL);
	for (uint32_t i = 0; i < 4; i++) {
		pthread_join(thread[i], &err);
		assert_int_equal((intptr_t)err, -ETIMEDOUT);
	}
	assert_true(fake_device_step(&fd));
	assert_int_equal(fence_end(&fence), 0);
	teardown();
}

/* ---- ending ---- */

static void *complete_later(void *arg)
{
	struct sublet_device_work work;
	struct sublet_extent extent;

	f.platform.ops->sleep_ns(&f, 20 * SUBLET_MS);
	while (fake_device_take(&fd, &work)) {
		/* While it is waited for, the backend may still ask where it is. */
		if (arg)
			assert_int_equal(sublet_bo_extents(&work.buffer[0].bo, 0, &extent, 1), *(int *)arg);
		sublet_device_complete(fd.device, work.id, 0, fake_device_do(&fd, &work));
	}
	return NULL;
}

static void destroy_twice(void **unused)
{
	static struct fake_device other;
	(void)unused;

	setup(NULL);
	fake_device_open(&other, &f, NULL);
	uint32_t vpn = map_pages(&f, 4, SUBLET_MOVABLE);
	struct sublet_bo bo = bo_over(&fd, vpn, 4, SUBLET_BO_TRACKED), copy = bo,
			 wrong = { other.device, bo.id };
	assert_int_equal(sublet_bo_destroy(&wrong), -EINVAL);
	assert_int_equal(sublet_bo_destroy(&bo), 0);
	assert_null(bo.device);
	assert_int_equal(sublet_bo_destroy(&bo), -EINVAL);
	assert_int_equal(sublet_bo_destroy(&copy), -EINVAL);
	struct sublet_bo next = bo_over(&fd, vpn, 4, SUBLET_BO_TRACKED);
	assert_int_equal((uint32_t)next.id, (uint32_t)copy.id); /* the same slot */
	assert_int_equal(sublet_bo_destroy(&copy), -EINVAL);
	assert_int_equal(fill_once(copy, 1), -EINVAL);
	struct sublet_extent extent;
	assert_int_equal(sublet_bo_extents(&copy, 0, &extent, 1), -EINVAL);
	assert_int_equal(sublet_bo_extents(&bo, 0, &extent, 1), -EINVAL);
	assert_int_equal(sublet_bo_extents(&next, 0, &extent, 1), -EOPNOTSUPP);
	dma_fill(&fd, next, 4, 1);
	fake_device_close(&other);
	teardown();
}

static uint32_t destroyed_vpn;

static void move_during_flush(struct fake_device *unused)
{
	static const struct sublet__window_range any = { .to = MOVE_AREA_FIRST };
	(void)unused;

	assert_int_equal(sublet__move_page(f.engine_mm[0], destroyed_vpn, &any), -EAGAIN);
}

/* Its memory moves only after the device has forgotten it, also when it goes (G4). */
static void destroy_forgets_first(void **unused)
{
	(void)unused;

	setup(NULL);
	destroyed_vpn = map_pages(&f, 4, SUBLET_MOVABLE);
	struct sublet_bo bo = bo_over(&fd, destroyed_vpn, 4, SUBLET_BO_TRACKED);
	dma_fill(&fd, bo, 4, 1);
	fd.on_flush = move_during_flush;
	uint32_t flushes = fd.flushes;
	assert_int_equal(sublet_bo_destroy(&bo), 0);
	assert_true(fd.flushes > flushes);
	fd.on_flush = NULL;
	teardown();
}

static void destroy_waits(void **unused)
{
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 4);
	pthread_t thread;
	(void)unused;

	for (uint32_t kind = SUBLET_BO_TRACKED; kind <= SUBLET_BO_PINNED; kind <<= 1) {
		int answer = kind == SUBLET_BO_PINNED ? 1 : -EOPNOTSUPP;
		setup(NULL);
		uint32_t vpn = map_pages(&f, 4, SUBLET_MOVABLE);
		struct sublet_bo bo = bo_over(&fd, vpn, 4, kind);
		job.pattern = 3;
		struct sublet_fence fence = go(&fd, &job, bo, no_bo);
		threads_begin();
		pthread_create(&thread, NULL, complete_later, &answer);
		assert_int_equal(sublet_bo_destroy(&bo), 0);
		assert_int_equal(fence_end(&fence), 0); /* done by now, and done well */
		pthread_join(thread, NULL);
		threads_end();
		check_pattern(&f, vpn, 4, 3);
		assert_int_equal(fake_device_info(&fd).iopt.mappings, 0);
		teardown();
	}
}

static void destroy_with_hung_job(void **unused)
{
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 4);
	(void)unused;

	setup(NULL);
	uint32_t vpn = map_pages(&f, 8, SUBLET_MOVABLE);
	struct sublet_bo bo = bo_over(&fd, vpn, 4, SUBLET_BO_TRACKED);
	struct sublet_bo other = bo_over(&fd, vpn + 4, 4, SUBLET_BO_TRACKED);
	job.timeout_ns = LONG_NS;
	struct sublet_fence bystander = go(&fd, &job, other, no_bo);
	job.timeout_ns = SHORT_NS;
	uint64_t start = wall_ns();
	struct sublet_fence fence = go(&fd, &job, bo, no_bo);
	assert_int_equal(sublet_bo_destroy(&bo), 0);
	assert_in_range(wall_ns() - start, SHORT_NS, LONG_NS / 2);
	assert_int_equal(fd.resets, 1);
	assert_int_equal(fence_end(&fence), -ECANCELED);
	assert_int_equal(fence_end(&bystander), -EIO);
	dma_fill(&fd, other, 4, 1);
	teardown();
}

static void *destroy_later(void *arg)
{
	f.platform.ops->sleep_ns(&f, 20 * SUBLET_MS);
	assert_int_equal(sublet_bo_destroy(arg), 0);
	return NULL;
}

/* A job that waits for a bo finds out at once that it goes. */
static void destroy_under_a_waiting_submit(void **unused)
{
	(void)unused;

	setup(NULL);
	struct sublet_bo bo = bo_over(&fd, map_pages(&f, 4, SUBLET_MOVABLE), 4, SUBLET_BO_TRACKED);
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 4);
	pthread_t thread;
	struct sublet_bo copy = bo;
	dma_fill(&fd, bo, 4, 1);
	device_lock(fd.device);
	fd.device->bo[(uint32_t)bo.id - 1].gate_until_ns = wall_ns() + LONG_NS;
	fd.device->bo[(uint32_t)bo.id - 1].gate_offset = BO_NOWHERE;
	device_unlock(fd.device);
	threads_begin();
	pthread_create(&thread, NULL, destroy_later, &copy);
	uint64_t start = wall_ns();
	assert_int_equal(submit_error(&fd, &job, bo), -EINVAL);
	assert_true(wall_ns() - start < LONG_NS / 4);
	pthread_join(thread, NULL);
	threads_end();
	teardown();
}

/* The mm ends before its bos: they are dead, and end like others. */
static void mm_ends(void **unused)
{
	(void)unused;

	setup(&(struct fake_device_options){ .at_once = true });
	struct sublet_bo bo = bo_over(&fd, map_pages(&f, 4, SUBLET_MOVABLE), 4, SUBLET_BO_TRACKED), late;
	struct sublet_bo unbound = bo_over(&fd, map_pages(&f, 4, SUBLET_MOVABLE), 4, SUBLET_BO_TRACKED);
	dma_fill(&fd, bo, 4, 1);
	sublet__notifiers_exit(f.engine_mm[0]);
	assert_int_equal(info_of(&fd, bo).bound_bytes, 0);
	assert_int_equal(fill_once(bo, 1), -EFAULT);
	assert_int_equal(fill_once(unbound, 1), -EFAULT);
	assert_int_equal(sublet_bo_create(fd.device, f.engine_mm[0], addr_of(&f, 0, 0), PAGE,
					  SUBLET_BO_TRACKED, NULL, &late),
			 -EINVAL);
	assert_int_equal(sublet_bo_destroy(&bo), 0);
	assert_int_equal(sublet_bo_destroy(&unbound), 0);
	teardown();
}

/* ---- listing ---- */

static void list_all(void **unused)
{
	static struct fake_device other;
	struct sublet_bo_info info[8];
	uint64_t next = 0;
	(void)unused;

	setup(NULL);
	fake_device_open(&other, &f, NULL);
	uint32_t vpn = map_pages(&f, 64, SUBLET_MOVABLE);
	assert_int_equal(sublet_bo_list(f.arena, &next, 8, info), 0);
	next = 0;
	struct sublet_bo bo[5];
	for (uint32_t i = 0; i < 5; i++)
		bo[i] = bo_over(i < 2 ? &fd : &other, vpn + i, i + 1, SUBLET_BO_TRACKED);
	assert_int_equal(sublet_bo_destroy(&bo[3]), 0);
	dma_fill(&fd, bo[1], 2, 1);
	size_t n = 0, got;
	while ((got = sublet_bo_list(f.arena, &next, 3, info + n)))
		n += got;
	assert_int_equal(n, 4);
	static const uint32_t want[4] = { 0, 1, 2, 4 };
	for (uint32_t i = 0; i < 4; i++) {
		assert_int_equal(info[i].addr, (uintptr_t)addr_of(&f, 0, vpn + want[i]));
		assert_int_equal(info[i].bytes, (want[i] + 1) * PAGE);
		assert_int_equal(info[i].bound_bytes, want[i] == 1 ? 2 * PAGE : 0);
		assert_int_equal(info[i].binds, want[i] == 1);
		assert_int_equal(info[i].flags, SUBLET_BO_TRACKED);
		assert_int_equal(info[i].mm, 0);
		assert_true(info[i].age_ns < LONG_NS);
		assert_string_equal(info[i].owner, "test");
		assert_string_equal(info[i].device, "fake");
	}
	assert_int_equal(sublet_bo_list(f.arena, &next, 8, info), 0); /* the end stays the end */
	fake_device_close(&other);
	teardown();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(create_refuses),
		cmocka_unit_test(claimed),
		cmocka_unit_test(claimed_refused),
		cmocka_unit_test(pinned),
		cmocka_unit_test(readonly),
		cmocka_unit_test(registered),
		cmocka_unit_test(registered_has_no_limit),
		cmocka_unit_test(larger_than_the_aperture),
		cmocka_unit_test(tracked_before_its_memory),
		cmocka_unit_test(tracked_plain_memory),
		cmocka_unit_test(tracked_while_a_child_shares),
		cmocka_unit_test(a_child_shared_before),
		cmocka_unit_test(destroy_twice),
		cmocka_unit_test(destroy_forgets_first),
		cmocka_unit_test(destroy_waits),
		cmocka_unit_test(destroy_with_hung_job),
		cmocka_unit_test(destroy_under_a_waiting_submit),
		cmocka_unit_test(mm_ends),
		cmocka_unit_test(list_all),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
