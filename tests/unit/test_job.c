/* SPDX-License-Identifier: MIT */
/*
 * Jobs and fences, on a simulated device: what is refused, what is waited for and how long, and who may ask how it
 * went.
 */
#include "fake_device.h"

#include <sched.h>

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

static void sleep_ms(uint32_t ms)
{
	f.platform.ops->sleep_ns(&f, ms * SUBLET_MS);
}

/* ---- what submit refuses ---- */

static void submit_refuses(void **unused)
{
	static struct fake_device other;
	struct sublet_bo bo = setup(&(struct fake_device_options){ .align_bytes = 8 }, 4),
			 bos[2] = { bo, bo };
	struct sublet_job good = job_of(SUBLET_JOB_FILL, 2), job;
	(void)unused;

	fake_device_open(&other, &f, NULL);
#define REFUSED(error, what)                                          \
	do {                                                          \
		job = good;                                           \
		what;                                                 \
		assert_int_equal(submit_error(&fd, &job, bo), error); \
	} while (0)
	REFUSED(-EINVAL, job.op = 0);
	REFUSED(-EINVAL, job.op = 6);
	REFUSED(-EINVAL, job.op = SUBLET_JOB_COPY); /* wants two */
	REFUSED(-EINVAL, job.bytes = 0);
	REFUSED(-EINVAL, job.bytes = 4 * PAGE + 8);
	REFUSED(-EINVAL, job.bytes = UINT64_MAX - 7);
	REFUSED(-EINVAL, job.bytes = 4);
	REFUSED(-EINVAL, job.offset_bytes[0] = 2 * PAGE + 8);
	REFUSED(-EINVAL, job.offset_bytes[0] = UINT64_MAX - 7);
	REFUSED(-EINVAL, job.offset_bytes[0] = 4);
	REFUSED(-EINVAL, job.size_bytes = 8);
	REFUSED(-EOPNOTSUPP, job.op = SUBLET_JOB_READ);
	REFUSED(-EOPNOTSUPP, job.op = SUBLET_JOB_WRITE);
#undef REFUSED
	assert_int_equal(sublet_submit(fd.device, NULL, bos, 1, NULL), -EINVAL);
	assert_int_equal(sublet_submit(fd.device, &good, bos, 0, NULL), -EINVAL);
	assert_int_equal(sublet_submit(fd.device, &good, bos, 2, NULL), -EINVAL);
	assert_int_equal(sublet_submit(other.device, &good, bos, 1, NULL), -EINVAL);
	bos[0].id += (uint64_t)1 << 32;
	assert_int_equal(sublet_submit(fd.device, &good, bos, 1, NULL), -EINVAL);
	bos[0].id = 0;
	assert_int_equal(sublet_submit(fd.device, &good, bos, 1, NULL), -EINVAL);
	job = good;
	assert_int_equal(sublet_submit_range(fd.device, &job, f.engine_mm[0], addr_of(&f, 0, 0), NULL),
			 -EOPNOTSUPP);
	assert_int_equal(fd.submits, 0);
	assert_int_equal(fake_device_info(&fd).binds, 0);
	/* The last byte may be touched; nobody needs to ask how it went. */
	job.offset_bytes[0] = 2 * PAGE;
	assert_int_equal(submit_error(&fd, &job, bo), 0);
	assert_true(fake_device_step(&fd));
	fake_device_close(&other);
	teardown();
}

/* A longer struct of a newer program is good if what we do not know is 0; a shorter one has defaults. */
static void job_has_versions(void **unused)
{
	struct {
		struct sublet_job job;
		uint64_t newer;
	} wide = { .job = job_of(SUBLET_JOB_FILL, 1) };
	struct sublet_bo bo = setup(&(struct fake_device_options){ .at_once = true }, 4);
	(void)unused;

	wide.job.size_bytes = sizeof wide;
	assert_int_equal(submit_error(&fd, &wide.job, bo), 0);
	wide.newer = 1;
	assert_int_equal(submit_error(&fd, &wide.job, bo), -E2BIG);
	wide.job.size_bytes = offsetof(struct sublet_job, timeout_ns);
	wide.job.timeout_ns = 1; /* is not looked at */
	assert_int_equal(submit_error(&fd, &wide.job, bo), 0);
	teardown();
}

/* ---- fences ---- */

static void fence_life(void **unused)
{
	struct sublet_bo bo = setup(NULL, 4);
	struct sublet_job job = job_of(SUBLET_JOB_SUM, 4);
	uint64_t result = 77;
	bool done = true;
	(void)unused;

	dma_fill(&fd, bo, 4, 5);
	struct sublet_fence fence = go(&fd, &job, bo, no_bo), copy = fence;
	assert_int_equal(sublet_fence_wait(&fence, 0, &done, &result), -ETIMEDOUT);
	assert_false(done);
	assert_int_equal(sublet_fence_wait(&fence, SUBLET_MS, &done, &result), -ETIMEDOUT);
	assert_false(done);
	assert_int_equal(result, 77);
	assert_int_equal(info_of(&fd, bo).jobs, 1);
	assert_true(fake_device_step(&fd));
	assert_int_equal(info_of(&fd, bo).jobs, 0);
	for (uint32_t i = 0; i < 3; i++) { /* as often as one likes */
		result = 0;
		assert_int_equal(sublet_fence_wait(&copy, i * SUBLET_MS, &done, &result), 0);
		assert_true(done);
		assert_int_equal(result, 5 * FAKE_WORDS * 4);
	}
	assert_int_equal(sublet_fence_wait(&fence, 0, NULL, NULL), 0);
	assert_int_equal(sublet_fence_put(&fence), 0);
	assert_int_equal(sublet_fence_put(&fence), -EINVAL);
	assert_int_equal(sublet_fence_put(&copy), -EINVAL);
	assert_int_equal(sublet_fence_wait(&copy, LONG_NS, &done, NULL), -EINVAL);
	assert_int_equal(sublet_fence_wait(&fence, LONG_NS, &done, NULL), -EINVAL);

	/* Put before the job is done: it goes on. And the slot serves another, which the old handle is not. */
	fence = go(&fd, &job, bo, no_bo);
	copy = fence;
	assert_int_equal(sublet_fence_put(&fence), 0);
	assert_int_equal(sublet_fence_wait(&copy, LONG_NS, NULL, NULL), -EINVAL);
	assert_int_equal(sublet_fence_put(&copy), -EINVAL);
	assert_int_equal(info_of(&fd, bo).jobs, 1);
	assert_true(fake_device_step(&fd));
	fence = go(&fd, &job, bo, no_bo);
	assert_true(fence.id != copy.id);
	assert_int_equal(sublet_fence_wait(&copy, 0, NULL, NULL), -EINVAL);
	assert_true(fake_device_step(&fd));
	assert_int_equal(fence_end(&fence), 0);
	struct sublet_device_info info = fake_device_info(&fd);
	assert_int_equal(info.jobs, 4);
	assert_int_equal(info.jobs_failed, 0);
	assert_int_equal(info.job_bytes, 4 * 4 * PAGE);
	teardown();
}

static void *wait_for_it(void *arg)
{
	return (void *)(intptr_t)sublet_fence_wait(arg, LONG_NS, NULL, NULL);
}

/* Who waits for a fence that is put finds it gone, at once, though its job goes on. */
static void put_while_waited_for(void **unused)
{
	struct sublet_bo bo = setup(NULL, 4);
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 4);
	pthread_t thread;
	void *err;
	(void)unused;

	job.timeout_ns = 2 * LONG_NS;
	struct sublet_fence fence = go(&fd, &job, bo, no_bo), copy = fence;
	uint64_t start = wall_ns();
	threads_begin();
	pthread_create(&thread, NULL, wait_for_it, &copy);
	sleep_ms(20);
	assert_int_equal(sublet_fence_put(&fence), 0);
	pthread_join(thread, &err);
	threads_end();
	assert_int_equal((intptr_t)err, -EINVAL);
	assert_true(wall_ns() - start < LONG_NS / 2);
	assert_true(fake_device_step(&fd));
	teardown();
}

static void completed_within_submit(void **unused)
{
	struct sublet_bo bo = setup(&(struct fake_device_options){ .at_once = true, .jobs_max = 1 }, 4);
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 4);
	(void)unused;

	for (uint32_t i = 0; i < 100; i++) {
		struct sublet_fence fence = go(&fd, &job, bo, no_bo);
		assert_int_equal(fence_end(&fence), 0);
		assert_int_equal(submit_error(&fd, &job, bo), 0); /* no fence: the slot is free at once */
	}
	teardown();
}

static void backend_refuses_the_job(void **unused)
{
	struct sublet_bo bo = setup(&(struct fake_device_options){ .jobs_max = 2 }, 4);
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 4);
	struct sublet_fence fence = { 0 };
	(void)unused;

	fd.submit_error = -ENOBUFS;
	for (uint32_t i = 0; i < 3 * DEVICE_FENCES_SPARE; i++)
		assert_int_equal(sublet_submit(fd.device, &job, &bo, 1, i % 2 ? &fence : NULL), -ENOBUFS);
	assert_null(fence.device);
	assert_int_equal(info_of(&fd, bo).jobs, 0);
	fd.submit_error = 0;
	dma_fill(&fd, bo, 4, 3);
	assert_int_equal(fake_device_info(&fd).jobs_failed, 3 * DEVICE_FENCES_SPARE);
	teardown();
}

/* ---- room for jobs ---- */

static void *complete_later(void *arg)
{
	(void)arg;
	sleep_ms(20);
	assert_true(fake_device_step(&fd));
	return NULL;
}

static void job_slots(void **unused)
{
	struct sublet_bo bo = setup(&(struct fake_device_options){ .jobs_max = 3 }, 4);
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 1);
	struct sublet_fence fence[3];
	pthread_t thread;
	(void)unused;

	for (uint32_t i = 0; i < 3; i++)
		fence[i] = go(&fd, &job, bo, no_bo);
	job.timeout_ns = SHORT_NS;
	uint64_t start = wall_ns();
	assert_int_equal(submit_error(&fd, &job, bo), -ETIMEDOUT);
	assert_true(wall_ns() - start >= SHORT_NS);
	assert_int_equal(fd.resets, 0); /* those in flight have their own, longer time */
	threads_begin();
	pthread_create(&thread, NULL, complete_later, NULL);
	job.timeout_ns = LONG_NS;
	start = wall_ns();
	struct sublet_fence last = go(&fd, &job, bo, no_bo); /* as soon as one is done */
	assert_true(wall_ns() - start < LONG_NS / 2);
	pthread_join(thread, NULL);
	threads_end();
	while (fake_device_step(&fd))
		;
	for (uint32_t i = 0; i < 3; i++)
		assert_int_equal(fence_end(&fence[i]), 0);
	assert_int_equal(fence_end(&last), 0);
	teardown();
}

/* Fences that nobody puts hold no place in flight; but there is an end to them. */
static void fences_kept(void **unused)
{
	static struct sublet_fence fence[DEVICE_FENCES_SPARE + 2];
	struct sublet_bo bo = setup(&(struct fake_device_options){ .jobs_max = 2, .at_once = true }, 4);
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 1);
	(void)unused;

	for (uint32_t i = 0; i < DEVICE_FENCES_SPARE + 2; i++)
		fence[i] = go(&fd, &job, bo, no_bo);
	job.timeout_ns = SHORT_NS;
	assert_int_equal(submit_error(&fd, &job, bo), -ETIMEDOUT);
	assert_int_equal(fence_end(&fence[5]), 0);
	assert_int_equal(submit_error(&fd, &job, bo), 0);
	for (uint32_t i = 0; i < DEVICE_FENCES_SPARE + 2; i++)
		if (i != 5)
			assert_int_equal(fence_end(&fence[i]), 0);
	teardown();
}

/* ---- ranges ---- */

static void range_is_pinned(void **unused)
{
	const struct fake_device_options files = { .features = SUBLET_DEVICE_FILES | SUBLET_DEVICE_RANGES,
						   .align_bytes = 512,
						   .jobs_max = 1 };
	struct sublet_job job = job_of(SUBLET_JOB_READ, 8);
	struct sublet_fence fence;
	(void)unused;

	setup(&files, 4);
	uint32_t vpn = map_pages(&f, 16, SUBLET_MOVABLE);
	struct sublet_mm *mm = f.engine_mm[0];
	char *addr = addr_of(&f, 0, vpn);
	job.pattern = 9;
	assert_int_equal(sublet_submit_range(fd.device, &job, mm, addr + 1, &fence), -EINVAL);
	assert_int_equal(sublet_submit_range(fd.device, &job, mm, addr + 16 * PAGE, &fence), -EFAULT);
	assert_int_equal(sublet_submit_range(fd.device, &job, mm, NULL, &fence), -EINVAL);
	job.op = SUBLET_JOB_COPY;
	assert_int_equal(sublet_submit_range(fd.device, &job, mm, addr, &fence), -EINVAL);
	job.op = SUBLET_JOB_FILL;
	assert_int_equal(sublet_submit_range(fd.device, &job, mm, addr, &fence), -EOPNOTSUPP);
	job.op = SUBLET_JOB_READ;

	assert_int_equal(sublet_submit_range(fd.device, &job, mm, addr, &fence), 0);
	struct sublet_pin_info pin;
	uint64_t next = 0;
	assert_int_equal(sublet_pin_list(f.arena, &next, 1, &pin), 1);
	assert_string_equal(pin.owner, "fake");
	assert_int_equal(pin.flags & (SUBLET_PIN_READ | SUBLET_PIN_WRITE), SUBLET_PIN_WRITE);
	assert_int_equal(sublet_unmap(mm, addr, 16 * PAGE), -EBUSY);
	struct sublet_device_work work;
	uint64_t moved = fake_device_info(&fd).job_bytes;
	assert_true(fake_device_take(&fd, &work));
	(void)fake_device_do(&fd, &work);
	sublet_device_complete(fd.device, work.id, 0, 1000); /* the end of the file */
	assert_int_equal(fence_end(&fence), 0);
	assert_int_equal(fake_device_info(&fd).job_bytes, moved + 1000);
	check_pattern(&f, vpn, 8, 9);

	/* Also where it fails, is reset, or was not started. */
	job.op = SUBLET_JOB_WRITE;
	job.timeout_ns = SHORT_NS;
	assert_int_equal(sublet_submit_range(fd.device, &job, mm, addr, &fence), 0);
	assert_int_equal(sublet_fence_wait(&fence, LONG_NS, NULL, NULL), -ETIMEDOUT);
	assert_int_equal(fence_end(&fence), -ETIMEDOUT);
	fd.submit_error = -EIO;
	assert_int_equal(sublet_submit_range(fd.device, &job, mm, addr, &fence), -EIO);
	next = 0;
	assert_int_equal(sublet_pin_list(f.arena, &next, 1, &pin), 0);
	assert_int_equal(sublet_unmap(mm, addr, 16 * PAGE), 0);
	teardown();
}

/* A slot that a job gives back, because its memory could not be pinned, is announced to who waits for one. */
static void range_gives_its_slot_back(void **unused)
{
	const struct fake_device_options files = { .features = SUBLET_DEVICE_FILES | SUBLET_DEVICE_RANGES };
	struct sublet_job job = job_of(SUBLET_JOB_READ, 4);
	(void)unused;

	setup(&files, 4);
	char *addr = addr_of(&f, 0, map_pages(&f, 16, SUBLET_MOVABLE));
	uint32_t pulse = a32_load_acquire(&fd.device->pulse), slot = fd.device->job_free;
	assert_int_equal(sublet_submit_range(fd.device, &job, f.engine_mm[0], addr + 16 * PAGE, NULL),
			 -EFAULT);
	assert_int_equal(fd.device->job_free, slot);
	assert_int_not_equal(a32_load_acquire(&fd.device->pulse), pulse);
	teardown();
}

/* ---- many threads ---- */

enum { THREADS = 4 };

static _Atomic bool stop, stop_completer;
static struct sublet_bo shared_bo;

static void *completer(void *arg)
{
	(void)arg;
	while (!atomic_load(&stop_completer))
		if (!fake_device_step(&fd))
			sched_yield();
	return NULL;
}

struct pair {
	struct sublet_fence fence;
	_Atomic uint32_t turn; /* 1: the partner may wait for it */
};

static struct pair pair[THREADS];

/* Waits for a fence that its owner may put at any moment: the answer is its end, or that it is gone. */
static void *partner(void *arg)
{
	struct pair *p = arg;

	while (!atomic_load(&stop)) {
		if (atomic_load(&p->turn) != 1) {
			sched_yield();
			continue;
		}
		struct sublet_fence copy = p->fence;
		int err = sublet_fence_wait(&copy, LONG_NS, NULL, NULL);
		assert_true(err == 0 || err == -EINVAL);
		atomic_store(&p->turn, 0);
	}
	return NULL;
}

static void *submitter(void *arg)
{
	struct pair *p = arg;
	uint64_t state = (uint64_t)(p - pair);

	while (!atomic_load(&stop)) {
		struct sublet_job job = job_of(SUBLET_JOB_SUM, 1 + below(&state, 4));
		bool share = !atomic_load(&p->turn);
		struct sublet_fence fence = go(&fd, &job, shared_bo, no_bo);
		uint64_t result = 1;
		bool done = false;
		if (share) {
			p->fence = fence;
			atomic_store(&p->turn, 1);
		}
		if (below(&state, 3)) {
			assert_int_equal(sublet_fence_wait(&fence, LONG_NS, &done, &result), 0);
			assert_true(done);
			assert_int_equal(result, 6 * FAKE_WORDS * (job.bytes / PAGE));
		}
		assert_int_equal(sublet_fence_put(&fence), 0);
	}
	return NULL;
}

static void fences_of_many_threads(void **unused)
{
	pthread_t thread[2 * THREADS + 1];
	(void)unused;

	shared_bo = setup(NULL, 4);
	dma_fill(&fd, shared_bo, 4, 6);
	atomic_store(&stop, false);
	atomic_store(&stop_completer, false);
	threads_begin();
	pthread_create(&thread[2 * THREADS], NULL, completer, NULL);
	for (uint32_t i = 0; i < THREADS; i++) {
		pthread_create(&thread[i], NULL, submitter, &pair[i]);
		pthread_create(&thread[THREADS + i], NULL, partner, &pair[i]);
	}
	uint64_t until = wall_ns() + soak_ns(0.5);
	while (wall_ns() < until)
		sleep_ms(10);
	atomic_store(&stop, true);
	for (uint32_t i = 0; i < 2 * THREADS; i++)
		pthread_join(thread[i], NULL);
	atomic_store(&stop_completer, true); /* nobody waits for it any more */
	pthread_join(thread[2 * THREADS], NULL);
	threads_end();
	while (fake_device_step(&fd))
		;
	struct sublet_device_info info = fake_device_info(&fd);
	assert_true(info.jobs > 100);
	assert_int_equal(info.jobs_failed, 0);
	assert_int_equal(info.resets, 0);
	teardown();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(submit_refuses),
		cmocka_unit_test(job_has_versions),
		cmocka_unit_test(fence_life),
		cmocka_unit_test(put_while_waited_for),
		cmocka_unit_test(completed_within_submit),
		cmocka_unit_test(backend_refuses_the_job),
		cmocka_unit_test(job_slots),
		cmocka_unit_test(fences_kept),
		cmocka_unit_test(range_is_pinned),
		cmocka_unit_test(range_gives_its_slot_back),
		cmocka_unit_test(fences_of_many_threads),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
