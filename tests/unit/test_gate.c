/* SPDX-License-Identifier: MIT */
/*
 * The gate of a tracked buffer that is in use, on a simulated device: a move gets the memory however soon the device
 * resubmits (G10), and the device gets to work however often moves come (G7).
 */
#include "fake_device.h"

#include <sched.h>

#define LONG_NS (10 * SUBLET_SEC)
#define HUGE    512u /* pages of 2 MiB */

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

/* Leases are short, and the machine may be busy: what is measured in them is, in time that passes by waiting only. */
static const struct fake_options virtual_time = { .virtual_time = true };

static uint64_t now_ns(void)
{
	return f.platform.ops->now_ns(&f);
}

static int64_t move_at(uint32_t vpn)
{
	static const struct sublet__window_range any = { .to = MOVE_AREA_FIRST };
	return sublet__move_page(f.engine_mm[0], vpn, &any);
}

static void in_use_declines(void **unused)
{
	(void)unused;

	for (uint32_t attach = 0; attach < 2; attach++) {
		setup(&virtual_time,
		      &(struct fake_device_options){ .features = attach ? SUBLET_DEVICE_COPY : 0 });
		uint32_t vpn = map_pages(&f, 64, SUBLET_MOVABLE);
		struct sublet_bo bo = bo_over(&fd, vpn, 64, SUBLET_BO_TRACKED);
		struct sublet_job job = job_of(SUBLET_JOB_FILL, 1);
		struct sublet_fence fence = go(&fd, &job, bo, no_bo);
		/* not a page that the job touches: all the same */
		assert_int_equal(move_at(vpn + 40), -EAGAIN);
		assert_int_equal(info_of(&fd, bo).evictions, 0);
		assert_int_equal(info_of(&fd, bo).bound_bytes, 64 * PAGE);

		/* New jobs wait: not for ever, the move may have given up. */
		job.timeout_ns = 5 * SUBLET_MS;
		assert_int_equal(submit_error(&fd, &job, bo), -ETIMEDOUT);
		job.timeout_ns = LONG_NS;
		uint64_t start = now_ns();
		struct sublet_fence second = go(&fd, &job, bo, no_bo);
		assert_in_range(now_ns() - start, 5 * SUBLET_MS, SUBLET_SEC);
		assert_true(fake_device_step(&fd) && fake_device_step(&fd));
		assert_int_equal(fence_end(&fence), 0);
		assert_int_equal(fence_end(&second), 0);
		assert_true(move_at(vpn + 40) > 0);
		assert_int_equal(info_of(&fd, bo).evictions, 1);
		teardown();
	}
}

/* Each look of the mover renews the gate; once it got through, the wait is short. */
static void gate_is_renewed(void **unused)
{
	(void)unused;

	setup(&virtual_time, NULL);
	uint32_t vpn = map_pages(&f, 16, SUBLET_MOVABLE);
	struct sublet_bo bo = bo_over(&fd, vpn, 16, SUBLET_BO_TRACKED);
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 1);
	struct sublet_fence fence = go(&fd, &job, bo, no_bo);
	job.timeout_ns = SUBLET_MS;
	for (uint32_t i = 0; i < 8; i++) { /* 40 ms */
		assert_int_equal(move_at(vpn), -EAGAIN);
		sleep_ms(4);
		assert_int_equal(submit_error(&fd, &job, bo), -ETIMEDOUT);
	}
	assert_true(fake_device_step(&fd));
	assert_int_equal(fence_end(&fence), 0);
	assert_true(move_at(vpn) > 0);
	job.timeout_ns = LONG_NS;
	uint64_t start = now_ns();
	fence = go(&fd, &job, bo, no_bo);
	assert_true(now_ns() - start >= SUBLET_MS); /* one more look for those that declined */
	assert_true(fake_device_step(&fd));
	assert_int_equal(fence_end(&fence), 0);

	/* An idle bo has no gate. */
	assert_true(move_at(vpn) > 0);
	assert_int_equal(fd.device->bo[0].gate_until_ns > now_ns(), 0);
	teardown();
}

static uint64_t gate_of(uint32_t slot)
{
	device_lock(fd.device);
	uint64_t until_ns = fd.device->bo[slot].gate_until_ns;
	device_unlock(fd.device);
	return until_ns;
}

/* Two bos in one run, in use at different moments: the one that was cleared stays so until the other is idle too. */
static void gate_waits_for_the_others(void **unused)
{
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 1);
	struct sublet_device_work work[2];
	struct sublet_bo bo[2];
	(void)unused;

	setup(&virtual_time, NULL);
	uint32_t vpn = map_pages(&f, 16, SUBLET_MOVABLE);
	for (uint32_t i = 0; i < 2; i++) {
		bo[i] = bo_over(&fd, vpn, 16, SUBLET_BO_TRACKED);
		assert_int_equal(submit_error(&fd, &job, bo[i]), 0);
		assert_true(fake_device_take(&fd, &work[i]));
	}
	assert_int_equal(move_at(vpn), -EAGAIN);
	uint32_t first = gate_of(0) ? 0 : 1; /* who is asked first; the other was not asked */
	assert_true(gate_of(first) && !gate_of(!first));
	sublet_device_complete(fd.device, work[first].id, 0, 0);
	job.timeout_ns = SUBLET_MS;
	for (uint32_t i = 0; i < 12; i++) {
		assert_int_equal(move_at(vpn), -EAGAIN); /* the other one */
		sleep_ms(3);
		assert_int_equal(submit_error(&fd, &job, bo[first]), -ETIMEDOUT);
	}
	sublet_device_complete(fd.device, work[!first].id, 0, 0);
	assert_true(move_at(vpn) > 0);
	uint64_t start = now_ns();
	job.timeout_ns = LONG_NS;
	assert_int_equal(submit_error(&fd, &job, bo[first]), 0); /* long before the lease is over */
	assert_true(now_ns() - start < 15 * SUBLET_MS);
	assert_true(fake_device_step(&fd));
	teardown();
}

/* A move that comes again and again and never goes through: every second a job gets in. */
static void gate_has_an_end(void **unused)
{
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 1);
	(void)unused;

	setup(&virtual_time, NULL);
	uint32_t vpn = map_pages(&f, 16, SUBLET_MOVABLE);
	struct sublet_bo bo = bo_over(&fd, vpn, 16, SUBLET_BO_TRACKED);
	for (uint32_t round = 0; round < 2; round++) {
		job.timeout_ns = LONG_NS;
		assert_int_equal(submit_error(&fd, &job, bo), 0); /* stays in flight */
		job.timeout_ns = SUBLET_MS;
		uint64_t start = now_ns();
		do {
			assert_int_equal(move_at(vpn), -EAGAIN);
			sleep_ms(1);
		} while (submit_error(&fd, &job, bo) && now_ns() - start < LONG_NS / 2);
		assert_in_range(now_ns() - start, 900 * SUBLET_MS, 1500 * SUBLET_MS);
		while (fake_device_step(&fd))
			;
	}
	teardown();
}

/* Moves that all go through keep a gate closed for a moment only, though each is there before the moment is over. */
static void gate_ends_when_moves_go_through(void **unused)
{
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 1);
	(void)unused;

	setup(&virtual_time, NULL);
	uint32_t vpn = map_pages(&f, 16, SUBLET_MOVABLE);
	struct sublet_bo bo = bo_over(&fd, vpn, 16, SUBLET_BO_TRACKED);
	assert_int_equal(submit_error(&fd, &job, bo), 0);
	assert_int_equal(move_at(vpn), -EAGAIN);
	assert_true(fake_device_step(&fd));
	uint64_t start = now_ns();
	while (gate_of(0) > now_ns() && now_ns() - start < LONG_NS) {
		assert_true(move_at(vpn) > 0);
		f.platform.ops->sleep_ns(&f, SUBLET_MS / 2);
	}
	assert_in_range(now_ns() - start, 40 * SUBLET_MS, 100 * SUBLET_MS);
	teardown();
}

static _Atomic bool stop;

static void *move_always(void *arg)
{
	uint32_t *vpn = arg;

	while (!atomic_load(&stop))
		(void)move_at(*vpn);
	return NULL;
}

/* Nor do moves that all go through, one after the other without a pause, keep a device from its work. */
static void moves_do_not_starve_a_device(void **unused)
{
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 16);
	pthread_t thread;
	(void)unused;

	setup(NULL, NULL);
	uint32_t vpn = map_pages(&f, 16, SUBLET_MOVABLE);
	struct sublet_bo bo = bo_over(&fd, vpn, 16, SUBLET_BO_TRACKED);
	atomic_store(&stop, false);
	threads_begin();
	pthread_create(&thread, NULL, move_always, &vpn);
	uint64_t start = wall_ns();
	for (uint32_t i = 0; i < 10; i++) {
		job.timeout_ns = LONG_NS;
		struct sublet_fence fence = go(&fd, &job, bo, no_bo);
		sleep_ms(1);
		assert_true(fake_device_step(&fd));
		assert_int_equal(fence_end(&fence), 0);
	}
	assert_true(wall_ns() - start < 5 * SUBLET_SEC);
	atomic_store(&stop, true);
	pthread_join(thread, NULL);
	threads_end();
	teardown();
}

enum { BOS = 6 };

static _Atomic bool stop_completer;
static struct sublet_bo load_bo[BOS];

static void *completer(void *arg)
{
	(void)arg;
	while (!atomic_load(&stop_completer))
		if (!fake_device_step(&fd))
			sched_yield();
	return NULL;
}

/* Keeps the bo in use: the next job goes in before the last one is done. */
static void *resubmitter(void *arg)
{
	struct sublet_bo *bo = arg;
	struct sublet_job job = job_of(SUBLET_JOB_SUM, 1);
	struct sublet_fence last = go(&fd, &job, *bo, no_bo), next;

	while (!atomic_load(&stop)) {
		next = go(&fd, &job, *bo, no_bo);
		assert_int_equal(sublet_fence_wait(&last, LONG_NS, NULL, NULL), 0);
		assert_int_equal(sublet_fence_put(&last), 0);
		last = next;
	}
	assert_int_equal(sublet_fence_wait(&last, LONG_NS, NULL, NULL), 0);
	assert_int_equal(sublet_fence_put(&last), 0);
	return NULL;
}

/* Devices that resubmit at once, on bos that share the memory that a claim wants: it gets it (G10). */
static void claims_are_not_starved(void **unused)
{
	struct sublet_claim_options o = { SUBLET_OPTIONS(sublet_claim_options),
					  .deadline_ns = 2 * SUBLET_SEC };
	pthread_t thread[BOS + 1];
	struct sublet_claim claim;
	(void)unused;

	setup(&(struct fake_options){ .area_frames = 2 * HUGE,
				      .normal_frames = 2 * HUGE,
				      .run_pages_max = 512 },
	      &(struct fake_device_options){ .jobs_max = 2 * BOS + 2 });
	uint32_t vpn = map_pages(&f, 2 * HUGE, SUBLET_MOVABLE);
	fill(&f, 0, vpn, 2 * HUGE, 5);
	for (uint32_t i = 0; i < BOS; i++)
		load_bo[i] = bo_over(&fd, vpn + i * 7, 2 * HUGE - 2 * i * 7, SUBLET_BO_TRACKED);
	atomic_store(&stop, false);
	atomic_store(&stop_completer, false);
	threads_begin();
	for (uint32_t i = 0; i < BOS; i++)
		pthread_create(&thread[i], NULL, resubmitter, &load_bo[i]);
	pthread_create(&thread[BOS], NULL, completer, NULL);
	for (uint32_t i = 0; i < 5; i++) {
		sleep_ms(20);
		int err = claim_take(&f, 2 * HUGE * PAGE, &o, &claim);
		if (err)
			fail_msg("claim %u: %d after %u waits", i, err, claim.waits);
		claim_give(&f, &claim);
		while (move_at(vpn) < 0 || move_at(vpn + HUGE) < 0) /* back into the area, somehow */
			sched_yield();
	}
	atomic_store(&stop, true);
	for (uint32_t i = 0; i < BOS; i++)
		pthread_join(thread[i], NULL);
	atomic_store(&stop_completer, true);
	pthread_join(thread[BOS], NULL);
	threads_end();
	check_fill(&f, 0, vpn, 2 * HUGE, 5);
	teardown();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(in_use_declines),
		cmocka_unit_test(gate_is_renewed),
		cmocka_unit_test(gate_waits_for_the_others),
		cmocka_unit_test(gate_has_an_end),
		cmocka_unit_test(gate_ends_when_moves_go_through),
		cmocka_unit_test(moves_do_not_starve_a_device),
		cmocka_unit_test(claims_are_not_starved),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
