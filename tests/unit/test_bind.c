/* SPDX-License-Identifier: MIT */
/*
 * Translations of tracked buffers on a simulated device: bound by the first job, evicted by whatever changes the memory,
 * bound again (G1, G4, G7). What races with that is in test_bind_race.c, who waits while one is in use in test_gate.c. The
 * simulated device counts every access through a translation that is missing, stale, or that leads elsewhere than the
 * addresses do.
 */
#include "fake_device.h"

#include <sublet/iopt.h>

#include <sched.h>

#define SHORT_NS (60 * SUBLET_MS)
#define LONG_NS  (10 * SUBLET_SEC)
#define HUGE     512u /* pages of 2 MiB */

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

static void sleep_ms(uint32_t ms)
{
	f.platform.ops->sleep_ns(&f, ms * SUBLET_MS);
}

static int64_t move_at(uint32_t vpn)
{
	static const struct sublet__window_range any = { .to = MOVE_AREA_FIRST };
	return sublet__move_page(f.engine_mm[0], vpn, &any);
}

/* ---- what is bound ---- */

static bool is_translated(struct sublet_bo handle, uint32_t page, uint32_t *pfn)
{
	const struct sublet__bo *bo = &fd.device->bo[(uint32_t)handle.id - 1];
	struct sublet_extent extent;

	if (!bo->is_bound || sublet_iopt_translate(sublet_device_iopt(fd.device), bo->iova + page * PAGE,
						   SUBLET_IOPT_READ, &extent))
		return false;
	*pfn = (uint32_t)(extent.offset_bytes / PAGE);
	return true;
}

/* Whether the device still has what it walked for the page. */
static bool is_kept(struct sublet_bo handle, uint32_t page)
{
	const struct sublet__bo *bo = &fd.device->bo[(uint32_t)handle.id - 1];
	return fd.tlb[bo->iova / PAGE + page] != 0;
}

/* Each page is translated to where it is, or not at all (G4); returns how many are. */
static uint32_t check_bound(struct sublet_bo bo, uint32_t vpn, uint32_t pages)
{
	uint32_t count = 0, pfn;

	for (uint32_t i = 0; i < pages; i++) {
		if (!is_translated(bo, i, &pfn)) {
			if (fd.device->bo[(uint32_t)bo.id - 1].is_bound && is_kept(bo, i))
				fail_msg("page %u: the device was not told to forget it", vpn + i);
			continue;
		}
		count++;
		if (pfn != fake_pfn_of(&f.mm[0], vpn + i))
			fail_msg("page %u is translated to another frame", vpn + i);
	}
	assert_int_equal(info_of(&fd, bo).bound_bytes, count * PAGE);
	return count;
}

/* The device reads what the program wrote, and the program what the device wrote (G1). */
static void check_both_ways(struct sublet_bo bo, uint32_t vpn, uint32_t pages, uint64_t value)
{
	struct sublet_job sum = job_of(SUBLET_JOB_SUM, pages);
	uint64_t result = 0;

	for (uint32_t i = 0; i < pages; i++)
		for (uint32_t w = 0; w < FAKE_WORDS; w++)
			assert_true(fake_write(&f.mm[0], vpn + i, w, value));
	struct sublet_fence fence = go(&fd, &sum, bo, no_bo);
	fake_device_step(&fd);
	assert_int_equal(sublet_fence_wait(&fence, LONG_NS, NULL, &result), 0);
	assert_int_equal(fence_end(&fence), 0);
	assert_int_equal(result, value * FAKE_WORDS * pages);
	dma_fill(&fd, bo, pages, value + 1);
	check_pattern(&f, vpn, pages, value + 1);
}

/* ---- evicted and bound again ---- */

static void bound_by_the_first_job(void **unused)
{
	(void)unused;

	setup(NULL, NULL);
	uint32_t vpn = map_pages(&f, 64, SUBLET_MOVABLE);
	struct sublet_bo bo = bo_over(&fd, vpn, 64, SUBLET_BO_TRACKED);
	assert_int_equal(check_bound(bo, vpn, 64), 0);
	assert_true(move_at(vpn) > 0);
	assert_int_equal(info_of(&fd, bo).evictions, 0); /* there was nothing to evict */
	dma_fill(&fd, bo, 1, 4);
	assert_int_equal(check_bound(bo, vpn, 64), 64);
	dma_fill(&fd, bo, 64, 4);
	struct sublet_device_info info = fake_device_info(&fd);
	assert_int_equal(info.binds, 1);
	assert_int_equal(info.rebinds, 0);
	teardown();
}

/* A move evicts what it moves and no more; the next job binds that again, and nothing was lost either way. */
static void part_eviction(void **unused)
{
	const uint32_t pages = 3 * HUGE;
	(void)unused;

	setup(&(struct fake_options){ .run_pages_max = 64 }, NULL);
	uint32_t vpn = map_pages(&f, pages, SUBLET_MOVABLE);
	struct sublet_bo bo = bo_over(&fd, vpn, pages, SUBLET_BO_TRACKED);
	dma_fill(&fd, bo, pages, 4);
	uint64_t iova = fd.device->bo[0].iova;
	assert_int_equal(move_at(vpn + HUGE + 100), 64);
	assert_int_equal(check_bound(bo, vpn, pages), pages - 64);
	assert_int_equal(info_of(&fd, bo).evictions, 1);
	check_pattern(&f, vpn, pages, 4);
	check_both_ways(bo, vpn, pages, 17);
	assert_int_equal(check_bound(bo, vpn, pages), pages);
	assert_int_equal(fd.device->bo[0].iova, iova); /* kept */
	struct sublet_device_info info = fake_device_info(&fd);
	assert_int_equal(info.binds, 1);
	assert_int_equal(info.rebinds, 1);
	assert_int_equal(info.evictions, 1);
	assert_int_equal(info.evictions_lru, 0);
	assert_int_equal(info_of(&fd, bo).binds, 2);
	teardown();
}

/* Only the pages of the bo count, however far the change reaches; beside it nothing happens. */
static void change_beyond_the_bo(void **unused)
{
	(void)unused;

	setup(&(struct fake_options){ .run_pages_max = 64 }, NULL);
	uint32_t vpn = map_pages(&f, 192, SUBLET_MOVABLE);
	struct sublet_bo middle = bo_over(&fd, vpn + 80, 20, SUBLET_BO_TRACKED);
	struct sublet_bo across = bo_over(&fd, vpn + 120, 20, SUBLET_BO_TRACKED);
	struct sublet_bo beside = bo_over(&fd, vpn + 130, 20, SUBLET_BO_TRACKED);
	dma_fill(&fd, middle, 20, 1);
	dma_fill(&fd, across, 20, 2);
	dma_fill(&fd, beside, 20, 3);
	assert_int_equal(move_at(vpn + 64), 64);
	assert_int_equal(check_bound(middle, vpn + 80, 20), 0);
	assert_int_equal(check_bound(across, vpn + 120, 20), 12);
	assert_int_equal(check_bound(beside, vpn + 130, 20), 20);
	check_both_ways(middle, vpn + 80, 20, 9);
	check_both_ways(across, vpn + 120, 20, 19);
	teardown();
}

/* Without a page table a buffer goes as a whole, and comes as a whole. */
static void attached_as_a_whole(void **unused)
{
	(void)unused;

	setup(&(struct fake_options){ .run_pages_max = 16 },
	      &(struct fake_device_options){ .features = SUBLET_DEVICE_COPY });
	uint32_t vpn = map_pages(&f, 64, SUBLET_MOVABLE);
	struct sublet_bo bo;
	assert_int_equal(sublet_bo_create(fd.device, f.engine_mm[0], (char *)addr_of(&f, 0, vpn) + 8,
					  60 * PAGE, SUBLET_BO_TRACKED, NULL, &bo),
			 0);
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 60);
	for (uint32_t round = 1; round < 4; round++) {
		struct sublet_fence fence = go(&fd, &job, bo, no_bo);
		assert_int_equal(fd.attaches, round);
		assert_ptr_equal(fd.attached[0], addr_of(&f, 0, vpn)); /* whole pages */
		assert_int_equal(fd.attached_bytes[0], 61 * PAGE);
		assert_true(fake_device_step(&fd));
		assert_int_equal(fence_end(&fence), 0);
		assert_true(move_at(vpn + 16) > 0);
		assert_int_equal(fd.detaches, round);
		assert_int_equal(info_of(&fd, bo).bound_bytes, 0);
		assert_true(move_at(vpn) > 0); /* nothing left to take away */
		assert_int_equal(info_of(&fd, bo).evictions, round);
	}
	fd.attach_error = -EINVAL;
	assert_int_equal(submit_error(&fd, &job, bo), -EINVAL);
	fd.attach_error = 0;
	teardown();
}

/*
 * Evictions all over a bo, more than it keeps apart, in any order, with jobs in between: what is bound is right at each
 * step, and what is not is not translated. SEED=n replays.
 */
static void gaps_at_random(void **unused)
{
	enum { PAGES = 400, STEPS = 3000 };
	static bool want[PAGES]; /* bound, as far as the model knows */
	uint64_t state = seed_get("gaps");
	(void)unused;

	setup(&(struct fake_options){ .run_pages_max = 1 }, NULL);
	uint32_t vpn = map_pages(&f, PAGES, SUBLET_MOVABLE);
	struct sublet_mm *mm = f.engine_mm[0];
	struct sublet_bo bo = bo_over(&fd, vpn, PAGES, SUBLET_BO_TRACKED);
	for (uint32_t step = 0; step < STEPS; step++) {
		if (below(&state, 12) == 0) {
			dma_fill(&fd, bo, PAGES, step);
			assert_int_equal(check_bound(bo, vpn, PAGES), PAGES);
			for (uint32_t i = 0; i < PAGES; i++)
				want[i] = true;
			continue;
		}
		uint32_t first = below(&state, PAGES), most = below(&state, 5) ? 6 : 200;
		uint32_t pages = 1 + below(&state, most), pfn;
		pages = pages < PAGES - first ? pages : PAGES - first;
		struct sublet__invalidation told;
		assert_int_equal(sublet__invalidate_begin(mm, &told, vpn + first, pages, SUBLET_NOTIFIER_MOVE,
							  step & 1),
				 0);
		for (uint32_t i = first; i < first + pages; i++)
			want[i] = false;
		uint32_t bound = check_bound(bo, vpn, PAGES), most_bound = 0;
		for (uint32_t i = 0; i < PAGES; i++) {
			most_bound += want[i];
			if (!want[i] && is_translated(bo, i, &pfn))
				fail_msg("step %u: page %u is still translated", step, i);
		}
		/* To keep few gaps some more is given up: never more than lies between two of them. */
		assert_true(bound <= most_bound);
		assert_true(fd.device->bo[0].gaps <= BO_GAPS);
		sublet__invalidate_end(mm, &told);
	}
	teardown();
}

/* With few evictions only what was evicted is given up. */
static void gaps_are_exact(void **unused)
{
	(void)unused;

	setup(&(struct fake_options){ .run_pages_max = 1 }, NULL);
	uint32_t vpn = map_pages(&f, 100, SUBLET_MOVABLE);
	struct sublet_bo bo = bo_over(&fd, vpn, 100, SUBLET_BO_TRACKED);
	dma_fill(&fd, bo, 100, 1);
	static const uint32_t page[] = { 50, 10, 90, 30, 70, 0, 99, 52 };
	for (uint32_t i = 0; i < 8; i++) {
		struct sublet__invalidation told;
		assert_int_equal(sublet__invalidate_begin(f.engine_mm[0], &told, vpn + page[i], 1,
							  SUBLET_NOTIFIER_MOVE, false),
				 0);
		sublet__invalidate_end(f.engine_mm[0], &told);
		assert_int_equal(check_bound(bo, vpn, 100), 99 - i);
		assert_int_equal(info_of(&fd, bo).evictions, i + 1);
	}
	/* Again: nothing is left there to evict. One more than are kept apart: the nearest two (50, 52) join. */
	struct sublet__invalidation told;
	assert_int_equal(
		sublet__invalidate_begin(f.engine_mm[0], &told, vpn + 90, 1, SUBLET_NOTIFIER_MOVE, false), 0);
	sublet__invalidate_end(f.engine_mm[0], &told);
	assert_int_equal(info_of(&fd, bo).evictions, 8);
	assert_int_equal(
		sublet__invalidate_begin(f.engine_mm[0], &told, vpn + 80, 1, SUBLET_NOTIFIER_MOVE, false), 0);
	sublet__invalidate_end(f.engine_mm[0], &told);
	assert_int_equal(check_bound(bo, vpn, 100), 90);
	dma_fill(&fd, bo, 100, 2);
	assert_int_equal(check_bound(bo, vpn, 100), 100);
	teardown();
}

/* ---- unmapping ---- */

/* The memory goes: the bo is dead, for part of it too, and whoever gets the addresses next has nothing of it. */
static void unmap_kills(void **unused)
{
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 1);
	(void)unused;

	for (uint32_t mode = 0; mode < 4; mode++) { /* whole or part; bound or not */
		setup(NULL, NULL);
		struct sublet_mm *mm = f.engine_mm[0];
		uint32_t vpn = map_pages(&f, 64, SUBLET_MOVABLE), from = mode & 1 ? 32 : 0;
		struct sublet_bo bo = bo_over(&fd, vpn, 64, SUBLET_BO_TRACKED);
		if (mode & 2)
			dma_fill(&fd, bo, 64, 1);
		assert_int_equal(sublet_unmap(mm, addr_of(&f, 0, vpn + from), (64 - from) * PAGE), 0);
		assert_int_equal(submit_error(&fd, &job, bo), -EFAULT);
		assert_true(info_of(&fd, bo).bound_bytes <= from * PAGE);
		uint32_t again = map_pages(&f, 64 - from, SUBLET_MOVABLE);
		if (!from)
			assert_int_equal(again, vpn);
		check_zero(&f, 0, again, 64 - from);
		assert_int_equal(submit_error(&fd, &job, bo), -EFAULT);
		assert_int_equal(sublet_bo_destroy(&bo), 0);
		struct sublet_bo fresh = bo_over(&fd, again, 64 - from, SUBLET_BO_TRACKED);
		dma_fill(&fd, fresh, 64 - from, 2);
		teardown();
	}
}

static void *complete_later(void *arg)
{
	sleep_ms(20);
	assert_true(fake_device_step(&fd));
	return arg;
}

static void *unmap_thread(void *arg)
{
	uint32_t *vpn = arg;
	return (void *)(intptr_t)sublet_unmap(f.engine_mm[0], addr_of(&f, 0, *vpn), 16 * PAGE);
}

static bool someone_waits(uint32_t slot)
{
	device_lock(fd.device);
	bool waits = fd.device->bo[slot].blocking > 0;
	device_unlock(fd.device);
	return waits;
}

/* Unmapping waits for the job in flight; meanwhile new ones fail, at once. */
static void unmap_waits(void **unused)
{
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 16);
	pthread_t unmapper, completer_thread;
	void *err;
	(void)unused;

	for (uint32_t attach = 0; attach < 2; attach++) {
		setup(NULL, &(struct fake_device_options){ .features = attach ? SUBLET_DEVICE_COPY : 0 });
		uint32_t vpn = map_pages(&f, 16, SUBLET_MOVABLE);
		struct sublet_bo bo = bo_over(&fd, vpn, 16, SUBLET_BO_TRACKED);
		struct sublet_fence fence = go(&fd, &job, bo, no_bo);
		threads_begin();
		uint64_t start = wall_ns();
		pthread_create(&unmapper, NULL, unmap_thread, &vpn);
		pthread_create(&completer_thread, NULL, complete_later, NULL);
		while (!someone_waits(0) && wall_ns() - start < SUBLET_SEC)
			sched_yield();
		assert_int_equal(submit_error(&fd, &job, bo), -EFAULT);
		pthread_join(unmapper, &err);
		assert_int_equal((intptr_t)err, 0);
		assert_int_equal(fence_end(&fence), 0); /* before the memory went */
		pthread_join(completer_thread, NULL);
		threads_end();
		assert_in_range(wall_ns() - start, 15 * SUBLET_MS, LONG_NS / 2);
		assert_int_equal(fd.resets, 0);
		teardown();
	}
}

/* A device that hangs holds up an unmap until its job's time has passed, no longer (G7, G11). */
static void unmap_resets_a_hung_device(void **unused)
{
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 16);
	(void)unused;

	for (uint32_t attach = 0; attach < 2; attach++) {
		setup(NULL, &(struct fake_device_options){ .features = attach ? SUBLET_DEVICE_COPY : 0 });
		uint32_t vpn = map_pages(&f, 16, SUBLET_MOVABLE);
		struct sublet_bo bo = bo_over(&fd, vpn, 16, SUBLET_BO_TRACKED);
		job.timeout_ns = SHORT_NS;
		uint64_t start = wall_ns();
		struct sublet_fence fence = go(&fd, &job, bo, no_bo);
		assert_int_equal(sublet_unmap(f.engine_mm[0], addr_of(&f, 0, vpn), 16 * PAGE), 0);
		assert_in_range(wall_ns() - start, SHORT_NS, LONG_NS / 2);
		assert_int_equal(fd.resets, 1);
		assert_int_equal(fence_end(&fence), -ETIMEDOUT);
		teardown();
	}
}

/* So does a long-term pin that has to move the memory out of the area first (G11). */
static void pin_resets_a_hung_device(void **unused)
{
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 16);
	struct sublet_pin pin;
	(void)unused;

	setup(NULL, NULL);
	uint32_t vpn = map_pages(&f, 16, SUBLET_MOVABLE);
	struct sublet_bo bo = bo_over(&fd, vpn, 16, SUBLET_BO_TRACKED);
	job.timeout_ns = SHORT_NS;
	uint64_t start = wall_ns();
	struct sublet_fence fence = go(&fd, &job, bo, no_bo);
	assert_int_equal(sublet_pin(f.engine_mm[0], addr_of(&f, 0, vpn), 16 * PAGE,
				    SUBLET_PIN_WRITE | SUBLET_PIN_LONGTERM, NULL, &pin),
			 0);
	assert_in_range(wall_ns() - start, SHORT_NS, LONG_NS / 2);
	assert_int_equal(fd.resets, 1);
	assert_int_equal(fence_end(&fence), -ETIMEDOUT);
	assert_int_equal(sublet_unpin(&pin), 0);
	teardown();
}

/* ---- other events ---- */

static void discardable(void **unused)
{
	struct sublet_claim_options o = { SUBLET_OPTIONS(sublet_claim_options) };
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 1);
	struct sublet_claim claim;
	(void)unused;

	setup(&(struct fake_options){ .area_frames = 2 * HUGE, .normal_frames = HUGE }, NULL);
	struct sublet_mm *mm = f.engine_mm[0];
	uint32_t vpn = map_pages(&f, 64, SUBLET_DISCARDABLE);
	struct sublet_bo bo = bo_over(&fd, vpn, 64, SUBLET_BO_TRACKED);
	dma_fill(&fd, bo, 64, 1);
	assert_int_equal(sublet_unlock(mm, addr_of(&f, 0, vpn), 64 * PAGE), 0);
	assert_int_equal(claim_take(&f, 2 * HUGE * PAGE, &o, &claim), 0);
	assert_true(claim.dropped_bytes > 0);
	assert_int_equal(check_bound(bo, vpn, 64), 0);
	assert_int_equal(submit_error(&fd, &job, bo), -EFAULT);
	claim_give(&f, &claim);
	assert_int_equal(sublet_lock(mm, addr_of(&f, 0, vpn), 64 * PAGE), SUBLET_DISCARDED);
	dma_fill(&fd, bo, 64, 2);
	check_pattern(&f, vpn, 64, 2);
	teardown();
}

static void protect(void **unused)
{
	(void)unused;

	setup(NULL, NULL);
	uint32_t vpn = map_pages(&f, 64, SUBLET_MOVABLE);
	struct sublet_bo bo = bo_over(&fd, vpn, 64, SUBLET_BO_TRACKED);
	dma_fill(&fd, bo, 64, 1);
	sublet__mm_note_protected(f.engine_mm[0], addr_of(&f, 0, vpn + 16), 16 * PAGE, true);
	assert_int_equal(check_bound(bo, vpn, 64), 48);
	dma_fill(&fd, bo, 64, 2);
	sublet__mm_note_protected(f.engine_mm[0], addr_of(&f, 0, vpn + 16), 16 * PAGE, false);
	dma_fill(&fd, bo, 64, 3);
	check_pattern(&f, vpn, 64, 3);
	teardown();
}

/* ---- room ---- */

/* An aperture for two of three: the one that was used least recently goes. */
static void aperture_is_full(void **unused)
{
	struct sublet_bo bo[4];
	(void)unused;

	setup(NULL, &(struct fake_device_options){ .aperture_bytes = 40 * PAGE });
	uint32_t vpn = map_pages(&f, 64, SUBLET_MOVABLE);
	for (uint32_t i = 0; i < 4; i++)
		bo[i] = bo_over(&fd, vpn + 16 * i, 16, i == 3 ? SUBLET_BO_PINNED : SUBLET_BO_TRACKED);
	dma_fill(&fd, bo[0], 16, 0);
	dma_fill(&fd, bo[1], 16, 1);
	dma_fill(&fd, bo[0], 16, 0);
	dma_fill(&fd, bo[2], 16, 2); /* instead of 1 */
	assert_int_equal(check_bound(bo[0], vpn, 16), 16);
	assert_int_equal(check_bound(bo[1], vpn + 16, 16), 0);
	assert_int_equal(info_of(&fd, bo[1]).evictions, 1);
	dma_fill(&fd, bo[3], 16, 3); /* a pinned one has no more right, and no less */
	assert_int_equal(check_bound(bo[0], vpn, 16), 0);
	dma_fill(&fd, bo[1], 16, 1);
	dma_fill(&fd, bo[0], 16, 0);
	assert_int_equal(info_of(&fd, bo[3]).bound_bytes, 0);
	struct sublet_device_info info = fake_device_info(&fd);
	assert_int_equal(info.evictions_lru, 4);
	assert_int_equal(info.evictions, 0);
	assert_int_equal(info.binds, 4);
	assert_int_equal(info.rebinds, 2);
	for (uint32_t i = 0; i < 4; i++) {
		dma_fill(&fd, bo[i], 16, 10 + i);
		check_pattern(&f, vpn + 16 * i, 16, 10 + i);
	}
	teardown();
}

/* What is in use stays; and of a job's own buffers none goes for the other. */
static void aperture_in_use(void **unused)
{
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 16), copy = job_of(SUBLET_JOB_COPY, 16);
	struct sublet_bo bo[4];
	(void)unused;

	setup(NULL, &(struct fake_device_options){ .aperture_bytes = 40 * PAGE });
	uint32_t vpn = map_pages(&f, 96, SUBLET_MOVABLE);
	for (uint32_t i = 0; i < 3; i++)
		bo[i] = bo_over(&fd, vpn + 16 * i, 16, SUBLET_BO_TRACKED);
	bo[3] = bo_over(&fd, vpn + 48, 30, SUBLET_BO_TRACKED);
	struct sublet_fence fence[2] = { go(&fd, &job, bo[0], no_bo), go(&fd, &job, bo[1], no_bo) };
	assert_int_equal(submit_error(&fd, &job, bo[2]), -ENOSPC);
	assert_true(fake_device_step(&fd));
	assert_int_equal(submit_error(&fd, &job, bo[2]), 0); /* in the place of the idle one */
	assert_true(fake_device_step(&fd) && fake_device_step(&fd));
	assert_int_equal(fence_end(&fence[0]), 0);
	assert_int_equal(fence_end(&fence[1]), 0);
	fence[0] = go(&fd, &copy, bo[0], bo[1]);
	assert_true(fake_device_step(&fd));
	assert_int_equal(fence_end(&fence[0]), 0);
	struct sublet_bo both[2] = { bo[0], bo[3] };
	assert_int_equal(sublet_submit(fd.device, &copy, both, 2, NULL), -ENOSPC); /* never fit together */
	both[0] = bo[3];
	both[1] = bo[0];
	assert_int_equal(sublet_submit(fd.device, &copy, both, 2, NULL), -ENOSPC);
	dma_fill(&fd, bo[3], 30, 1);
	teardown();
}

static void table_is_full(void **unused)
{
	struct sublet_bo bo[3];
	(void)unused;

	setup(NULL, &(struct fake_device_options){ .features = SUBLET_DEVICE_COPY });
	fd.attach_most = 2;
	uint32_t vpn = map_pages(&f, 48, SUBLET_MOVABLE);
	for (uint32_t i = 0; i < 3; i++) {
		bo[i] = bo_over(&fd, vpn + 16 * i, 16, SUBLET_BO_TRACKED);
		dma_fill(&fd, bo[i], 16, i);
	}
	assert_int_equal(fake_device_info(&fd).evictions_lru, 1);
	assert_int_equal(info_of(&fd, bo[0]).bound_bytes, 0);
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 16);
	struct sublet_fence fence[2] = { go(&fd, &job, bo[1], no_bo), go(&fd, &job, bo[2], no_bo) };
	assert_int_equal(submit_error(&fd, &job, bo[0]), -ENOSPC);
	assert_true(fake_device_step(&fd) && fake_device_step(&fd));
	assert_int_equal(fence_end(&fence[0]), 0);
	assert_int_equal(fence_end(&fence[1]), 0);
	dma_fill(&fd, bo[0], 16, 9);
	teardown();
}

/* ---- large entries ---- */

static void in_step_with_its_addresses(void **unused)
{
	(void)unused;

	setup(&(struct fake_options){ .run_pages_max = 512 }, NULL);
	uint32_t vpn = map_pages(&f, 3 * HUGE, SUBLET_MOVABLE);
	struct sublet_bo bo = bo_over(&fd, vpn + 8, 3 * HUGE - 16, SUBLET_BO_TRACKED);
	struct sublet_bo small = bo_over(&fd, vpn, HUGE / 2, SUBLET_BO_TRACKED);
	dma_fill(&fd, bo, 1, 1);
	dma_fill(&fd, small, 1, 1);
	struct sublet_device_info info = fake_device_info(&fd);
	assert_int_equal(info.iopt.entries_2m, 1);
	assert_int_equal((fd.device->bo[0].iova - (uintptr_t)addr_of(&f, 0, vpn + 8)) % (2 * SUBLET_MIB), 0);
	/* Where a large entry cannot be, no room is wasted on it. */
	assert_true(info.iopt.largest_free_bytes >= 256 * SUBLET_MIB - 12 * SUBLET_MIB);
	teardown();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(bound_by_the_first_job),
		cmocka_unit_test(part_eviction),
		cmocka_unit_test(change_beyond_the_bo),
		cmocka_unit_test(attached_as_a_whole),
		cmocka_unit_test(gaps_at_random),
		cmocka_unit_test(gaps_are_exact),
		cmocka_unit_test(unmap_kills),
		cmocka_unit_test(unmap_waits),
		cmocka_unit_test(unmap_resets_a_hung_device),
		cmocka_unit_test(pin_resets_a_hung_device),
		cmocka_unit_test(discardable),
		cmocka_unit_test(protect),
		cmocka_unit_test(aperture_is_full),
		cmocka_unit_test(aperture_in_use),
		cmocka_unit_test(table_is_full),
		cmocka_unit_test(in_step_with_its_addresses),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
