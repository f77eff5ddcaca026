/* SPDX-License-Identifier: MIT */
/*
 * Devices, on a simulated one: how they are made and closed, and what becomes of the jobs of one that hangs or dies: how
 * long who waits for it, who resets it, what comes too late (G7, G11).
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

static void sleep_ms(uint32_t ms)
{
	f.platform.ops->sleep_ns(&f, ms * SUBLET_MS);
}

/* ---- creation ---- */

static int create(const struct sublet_device_limits *limits, const struct sublet_device_ops *ops)
{
	struct sublet_device *device;
	return sublet_device_create(f.arena, ops, NULL, limits, &device);
}

static int no_submit(void *ctx, const struct sublet_device_work *work)
{
	(void)ctx, (void)work;
	return -EIO;
}

static int no_attach(void *ctx, uint32_t slot, void *addr, uint64_t bytes)
{
	(void)ctx, (void)slot, (void)addr, (void)bytes;
	return -EIO;
}

static void no_detach(void *ctx, uint32_t slot)
{
	(void)ctx, (void)slot;
}

static int no_reset(void *ctx)
{
	(void)ctx;
	return 0;
}

static void no_close(void *ctx)
{
	(void)ctx;
}

static void create_refuses(void **unused)
{
	const struct sublet_device_ops good_ops = { SUBLET_OPTIONS(sublet_device_ops),
						    .submit = no_submit,
						    .attach = no_attach,
						    .detach = no_detach,
						    .reset = no_reset,
						    .close = no_close };
	const struct sublet_device_limits good = { SUBLET_OPTIONS(sublet_device_limits),
						   .features = SUBLET_DEVICE_COPY,
						   .bos_max = 4,
						   .jobs_max = 4,
						   .align_bytes = 1,
						   .job_bytes_max = 1 << 20,
						   .bo_bytes_max = 1 << 20 };
	(void)unused;

	fixture_open(&f, NULL);
#define REFUSED(field, value)                                     \
	do {                                                      \
		struct sublet_device_limits l = good;             \
		l.field = value;                                  \
		assert_int_equal(create(&l, &good_ops), -EINVAL); \
	} while (0)
	REFUSED(bos_max, 0);
	REFUSED(jobs_max, 0);
	REFUSED(jobs_max, UINT32_MAX);
	REFUSED(bos_max, UINT32_MAX);
	REFUSED(align_bytes, 0);
	REFUSED(align_bytes, 3);
	REFUSED(align_bytes, 8192);
	REFUSED(job_bytes_max, 0);
	REFUSED(bo_bytes_max, 0);
	REFUSED(aperture_bytes, 1 << 20);                           /* without a page table */
	REFUSED(features, SUBLET_DEVICE_COPY | SUBLET_DEVICE_IOPT); /* without an aperture */
	REFUSED(aperture_first_bytes, 1 << 20);                     /* without a page table */
	REFUSED(features, 1u << 20);
	REFUSED(size_bytes, 0);
#undef REFUSED
	struct sublet_device_limits large = { .size_bytes = 8 * SUBLET_KIB };
	assert_int_equal(create(&large, &good_ops), -E2BIG);
#define WITHOUT(op)                                           \
	do {                                                  \
		struct sublet_device_ops o = good_ops;        \
		o.op = NULL;                                  \
		assert_int_equal(create(&good, &o), -EINVAL); \
	} while (0)
	WITHOUT(submit);
	WITHOUT(attach);
	WITHOUT(detach);
	WITHOUT(reset);
	WITHOUT(close);
#undef WITHOUT
	struct sublet_device_ops unsized = { .submit = good_ops.submit };
	assert_int_equal(create(&good, &unsized), -EINVAL);
	assert_int_equal(create(&good, NULL), -EINVAL);
	assert_int_equal(create(NULL, &good_ops), -EINVAL);
	fixture_close(&f); /* nothing was left behind */
}

/* A backend that was built before limits grew: what is beyond its size is not read. */
static void limits_have_versions(void **unused)
{
	const struct sublet_device_ops ops = { SUBLET_OPTIONS(sublet_device_ops), .submit = no_submit,
					       .reset = no_reset, .close = no_close };
	struct sublet_device_limits old = { .size_bytes = offsetof(struct sublet_device_limits,
								   aperture_first_bytes),
					    .features = SUBLET_DEVICE_IOPT,
					    .bos_max = 4,
					    .jobs_max = 4,
					    .align_bytes = 1,
					    .job_bytes_max = SUBLET_MIB,
					    .bo_bytes_max = SUBLET_MIB,
					    .aperture_bytes = SUBLET_MIB,
					    .aperture_first_bytes = 7 };
	struct sublet_device *device;
	(void)unused;

	fixture_open(&f, NULL);
	assert_int_equal(sublet_device_create(f.arena, &ops, NULL, &old, &device), 0);
	sublet_device_close(device);
	old.size_bytes = sizeof old;
	assert_int_equal(sublet_device_create(f.arena, &ops, NULL, &old, &device), -EINVAL);
	fixture_close(&f);
}

/* A device whose addresses begin above 0: every buffer's is one of them, and the first page is as good as any. */
static void aperture_begins_high(void **unused)
{
	const uint64_t first = 3 * SUBLET_GIB;
	const uint32_t pages = 4;
	(void)unused;

	struct sublet_bo bo = setup(&(struct fake_device_options){ .aperture_first_bytes = first,
								   .aperture_bytes = pages * PAGE,
								   .at_once = true },
				    pages);
	struct sublet_extent extent;
	dma_fill(&fd, bo, pages, 0x5151);
	check_pattern(&f, 0, pages, 0x5151);
	struct sublet_iopt *iopt = sublet_device_iopt(fd.device);
	assert_int_equal(sublet_iopt_translate(iopt, first, 0, &extent), 0);
	assert_int_equal(sublet_iopt_translate(iopt, first - 1, 0, &extent), -EFAULT);
	teardown();
}

static void create_out_of_memory(void **unused)
{
	bool reached = true;
	(void)unused;

	fixture_open(&f, NULL);
	for (int64_t at = 1; reached; at++) {
		fake_fail(&f, 1u << FAKE_RESERVE, at, -ENOMEM, false);
		int err = fake_device_try(&fd, &f, NULL);
		reached = fake_fail_end(&f);
		assert_int_equal(err, reached ? -ENOMEM : 0);
	}
	teardown();
}

static void sixteen_devices(void **unused)
{
	static struct fake_device many[17];
	(void)unused;

	fixture_open(&f, NULL);
	for (uint32_t i = 0; i < 16; i++)
		fake_device_open(&many[i], &f, NULL);
	assert_int_equal(fake_device_try(&many[16], &f, NULL), -ENOSPC);
	fake_device_close(&many[7]);
	fake_device_open(&many[16], &f, NULL); /* one went, one came */
	for (uint32_t i = 0; i < 17; i++)
		if (i != 7)
			fake_device_close(&many[i]);
	sublet_device_close(NULL);
	fixture_close(&f);
}

static void info_has_versions(void **unused)
{
	struct sublet_device_info info = { 0 };
	struct {
		struct sublet_device_info info;
		uint64_t guard;
	} wide = { .info.size_bytes = sizeof wide, .guard = 7 };
	(void)unused;

	setup(&(struct fake_device_options){ .align_bytes = 8 }, 4);
	assert_int_equal(sublet_device_info(fd.device, &info), -EINVAL);
	info.size_bytes = offsetof(struct sublet_device_info, features);
	assert_int_equal(sublet_device_info(fd.device, &info), 0);
	assert_string_equal(info.name, "fake");
	assert_int_equal(info.features, 0); /* did not ask for it */
	assert_int_equal(sublet_device_info(fd.device, &wide.info), 0);
	assert_int_equal(wide.guard, 0); /* of a newer program: what we do not know is 0 */
	assert_int_equal(wide.info.features, SUBLET_DEVICE_IOPT | SUBLET_DEVICE_COPY);
	assert_int_equal(wide.info.bos_max, 16);
	assert_int_equal(wide.info.jobs_max, 8);
	assert_int_equal(wide.info.align_bytes, 8);
	assert_int_equal(wide.info.aperture_bytes, 256 * SUBLET_MIB);
	assert_int_equal(wide.info.dead, 0);
	teardown();
}

/* ---- a device that does not answer ---- */

static void hung_job(void **unused)
{
	struct sublet_bo bo = setup(NULL, 4);
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 1);
	struct sublet_device_work work[3];
	bool done = false;
	(void)unused;

	job.timeout_ns = LONG_NS;
	struct sublet_fence other = go(&fd, &job, bo, no_bo);
	job.timeout_ns = 10 * SHORT_NS; /* so far away that this thread may lose its CPU before it looks */
	uint64_t start = wall_ns();
	struct sublet_fence hung = go(&fd, &job, bo, no_bo);
	assert_true(fake_device_take(&fd, &work[0]) && fake_device_take(&fd, &work[1]));
	/* Before its time nothing happens; to look alone resets nothing, ever. */
	assert_int_equal(sublet_fence_wait(&hung, SHORT_NS / 3, &done, NULL), -ETIMEDOUT);
	assert_false(done);
	assert_int_equal(sublet_fence_wait(&hung, LONG_NS, &done, NULL), -ETIMEDOUT);
	assert_true(done);
	assert_in_range(wall_ns() - start, job.timeout_ns, LONG_NS / 2);
	assert_int_equal(fd.resets, 1);
	assert_int_equal(fence_end(&other), -EIO);
	assert_int_equal(info_of(&fd, bo).jobs, 0);

	/* What the device still says about those jobs is nobody's business, even if their slots are in use again. */
	struct sublet_fence next[2] = { go(&fd, &job, bo, no_bo), go(&fd, &job, bo, no_bo) };
	assert_int_equal(fence_end(&hung), -ETIMEDOUT);
	struct sublet_fence third = go(&fd, &job, bo, no_bo);
	sublet_device_complete(fd.device, work[0].id, 0, 1);
	sublet_device_complete(fd.device, work[1].id, -EIO, 1);
	sublet_device_complete(fd.device, UINT64_MAX, 0, 1);
	sublet_device_complete(fd.device, 0, 0, 1);
	for (uint32_t i = 0; i < 2; i++)
		assert_int_equal(sublet_fence_wait(&next[i], 0, NULL, NULL), -ETIMEDOUT);
	assert_int_equal(info_of(&fd, bo).jobs, 3);
	while (fake_device_step(&fd))
		;
	assert_int_equal(fence_end(&next[0]), 0);
	assert_int_equal(fence_end(&next[1]), 0);
	assert_int_equal(fence_end(&third), 0);
	struct sublet_device_info info = fake_device_info(&fd);
	assert_int_equal(info.jobs_failed, 2);
	assert_int_equal(info.resets, 1);
	assert_int_equal(info.dead, 0);
	teardown();
}

static void look_does_not_reset(void **unused)
{
	struct sublet_bo bo = setup(NULL, 4);
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 1);
	(void)unused;

	job.timeout_ns = SHORT_NS;
	struct sublet_fence fence = go(&fd, &job, bo, no_bo);
	sleep_ms(80);
	assert_int_equal(sublet_fence_wait(&fence, 0, NULL, NULL), -ETIMEDOUT);
	assert_int_equal(fd.resets, 0);
	assert_true(fake_device_step(&fd)); /* late, but well */
	assert_int_equal(fence_end(&fence), 0);
	teardown();
}

static void check_resets_the_overdue(void **unused)
{
	static struct fake_device other;
	struct sublet_bo bo = setup(NULL, 4);
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 1);
	(void)unused;

	fake_device_open(&other, &f, NULL);
	struct sublet_bo second = bo_over(&other, map_pages(&f, 4, SUBLET_MOVABLE), 4, SUBLET_BO_TRACKED);
	job.timeout_ns = LONG_NS;
	struct sublet_fence patient = go(&fd, &job, bo, no_bo);
	job.timeout_ns = SHORT_NS;
	struct sublet_fence fence = go(&other, &job, second, no_bo);
	sleep_ms(80);
	sublet__devices_check(f.arena);
	assert_int_equal(other.resets, 1);
	assert_int_equal(fd.resets, 0);
	assert_int_equal(fence_end(&fence), -ETIMEDOUT);
	sublet__devices_check(f.arena);
	assert_int_equal(other.resets, 1);
	assert_true(fake_device_step(&fd));
	assert_int_equal(fence_end(&patient), 0);
	fake_device_close(&other);
	teardown();
}

/* Who wants memory that a hung device looks at resets it: nobody else may ever come, and a pin waits a second only. */
static void pinners_reset_the_overdue(void **unused)
{
	struct sublet_bo bo = setup(NULL, 4);
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 1);
	struct sublet_pin pin;
	(void)unused;

	job.timeout_ns = SHORT_NS;
	struct sublet_fence fence = go(&fd, &job, bo, no_bo);
	assert_int_equal(sublet_pin(f.engine_mm[0], addr_of(&f, 0, 0), PAGE,
				    SUBLET_PIN_READ | SUBLET_PIN_LONGTERM, NULL, &pin),
			 0);
	assert_int_equal(fd.resets, 1);
	assert_int_equal(fence_end(&fence), -ETIMEDOUT);
	assert_int_equal(sublet_unpin(&pin), 0);
	teardown();
}

/* A dead device: jobs fail, translations are gone, new work is refused, everything can still be ended. */
static void assert_dead(struct sublet_bo bo, struct sublet_fence *fence, int status)
{
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 1);
	struct sublet_device_info info = fake_device_info(&fd);
	struct sublet_bo another;

	assert_int_equal(fence_end(fence), status);
	assert_int_equal(info.dead, 1);
	assert_int_equal(info.iopt.mappings, 0);
	assert_int_equal(info_of(&fd, bo).bound_bytes, 0);
	assert_int_equal(info_of(&fd, bo).jobs, 0);
	assert_int_equal(submit_error(&fd, &job, bo), -ENODEV);
	assert_int_equal(sublet_bo_create(fd.device, f.engine_mm[0], addr_of(&f, 0, 0), PAGE,
					  SUBLET_BO_TRACKED, NULL, &another),
			 -ENODEV);
	assert_int_equal(sublet_bo_destroy(&bo), 0);
}

static void reset_fails(void **unused)
{
	struct sublet_bo bo = setup(NULL, 4);
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 1);
	(void)unused;

	job.timeout_ns = SHORT_NS;
	struct sublet_fence fence = go(&fd, &job, bo, no_bo);
	fd.reset_error = -EIO;
	assert_int_equal(sublet_fence_wait(&fence, LONG_NS, NULL, NULL), -ENODEV);
	assert_dead(bo, &fence, -ENODEV);
	assert_int_equal(fd.resets, 1);
	teardown();
}

static void device_dies(void **unused)
{
	struct sublet_bo bo = setup(NULL, 4);
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 1);
	struct sublet_fence fence = go(&fd, &job, bo, no_bo);
	struct sublet_device_work work;
	(void)unused;

	assert_true(fake_device_take(&fd, &work));
	sublet_device_died(fd.device);
	assert_int_equal(fd.resets, 0);
	sublet_device_complete(fd.device, work.id, 0, 1); /* too late */
	assert_dead(bo, &fence, -ENODEV);
	teardown();
}

static void die_at_submit(struct fake_device *dev, const struct sublet_device_work *work)
{
	(void)work;
	sublet_device_died(dev->device);
}

static void device_dies_in_submit(void **unused)
{
	(void)unused;

	for (uint32_t i = 0; i < 4; i++) {
		struct sublet_bo bo = setup(NULL, 4);
		struct sublet_job job = job_of(SUBLET_JOB_FILL, 1);
		struct sublet_fence fence = { 0 }, *want = i & 1 ? &fence : NULL;
		fd.on_submit = die_at_submit;
		fd.submit_error = i & 2 ? -EIO : 0;
		assert_int_equal(sublet_submit(fd.device, &job, &bo, 1, want), fd.submit_error);
		if (want && !fd.submit_error) {
			assert_dead(bo, &fence, -ENODEV);
		} else {
			assert_null(fence.device);
			assert_int_equal(info_of(&fd, bo).jobs, 0);
		}
		fd.queued = 0; /* it is dead */
		teardown();
	}
}

/* A backend that answers with a count, say, where 0 or -errno is asked for, has done what it was told. */
static void answers_above_zero(void **unused)
{
	const struct fake_device_options none = { .features = SUBLET_DEVICE_COPY };
	bool done;
	(void)unused;

	for (uint32_t i = 0; i < 2; i++) {
		struct sublet_bo bo = setup(i ? &none : NULL, 4);
		struct sublet_job job = job_of(SUBLET_JOB_FILL, 1);
		fd.submit_error = fd.attach_error = fd.reset_error = 7;
		struct sublet_fence fence = go(&fd, &job, bo, no_bo);
		assert_int_equal(info_of(&fd, bo).jobs, 1);
		assert_true(fake_device_step(&fd));
		assert_int_equal(fence_end(&fence), 0);
		job.timeout_ns = SHORT_NS;
		fence = go(&fd, &job, bo, no_bo); /* hangs */
		assert_int_equal(sublet_fence_wait(&fence, LONG_NS, &done, NULL), -ETIMEDOUT);
		assert_int_equal(fence_end(&fence), -ETIMEDOUT);
		assert_int_equal(fd.resets, 1);
		job.timeout_ns = 0;
		fence = go(&fd, &job, bo, no_bo); /* not dead */
		assert_true(fake_device_step(&fd));
		assert_int_equal(fence_end(&fence), 0);
		fd.submit_error = fd.attach_error = fd.reset_error = 0;
		teardown();
	}
}

/* ---- a reset and others at the same time ---- */

static _Atomic uint32_t stage;

static void reset_slowly(struct fake_device *dev)
{
	(void)dev;
	atomic_store(&stage, 1);
	sleep_ms(30);
}

static void *unmap_bo(void *arg)
{
	return (void *)(intptr_t)sublet_unmap(f.engine_mm[0], arg, 16 * PAGE);
}

static bool someone_waits(struct sublet_bo bo)
{
	device_lock(fd.device);
	bool waits = fd.device->bo[(uint32_t)bo.id - 1].blocking > 0;
	device_unlock(fd.device);
	return waits;
}

/*
 * While an unmap waits for a job that hangs, nobody else waits beyond his own deadline for what lies beside that memory
 * (G7), and the device is named.
 */
static void unmap_holds_up_nobody(void **unused)
{
	struct sublet_claim_options options = { SUBLET_OPTIONS(sublet_claim_options),
						.deadline_ns = 50 * SUBLET_MS };
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 1);
	struct sublet_claim claim;
	struct sublet_pin pin;
	pthread_t thread;
	void *status;
	(void)unused;

	setup(NULL, 4);
	uint32_t vpn = map_pages(&f, 16, SUBLET_MOVABLE), beside = map_pages(&f, 16, SUBLET_MOVABLE);
	struct sublet_bo bo = bo_over(&fd, vpn, 16, SUBLET_BO_TRACKED);
	job.timeout_ns = 5 * SUBLET_SEC;
	struct sublet_fence hung = go(&fd, &job, bo, no_bo);
	uint64_t start_ns = wall_ns();
	threads_begin();
	pthread_create(&thread, NULL, unmap_bo, addr_of(&f, 0, vpn));
	while (!someone_waits(bo)) /* with the lock of the block */
		sleep_ms(1);
	assert_int_equal(sublet_claim(f.arena, stats_of(&f).area_bytes, &options, &claim), -EBUSY);
	assert_true(claim.blocker_count > 0);
	assert_int_equal(claim.blockers[0].kind, SUBLET_BLOCKER_NOTIFIER);
	assert_string_equal(claim.blockers[0].owner, "fake:test");
	assert_int_equal(sublet_pin(f.engine_mm[0], addr_of(&f, 0, beside), PAGE,
				    SUBLET_PIN_READ | SUBLET_PIN_LONGTERM, NULL, &pin),
			 -EBUSY);
	/* The claim's 50 ms and the pin's second, and what the machine does beside it; but not the job's five. */
	assert_true(wall_ns() - start_ns < 4 * SUBLET_SEC);
	pthread_join(thread, &status);
	threads_end();
	assert_int_equal((intptr_t)status, 0);
	assert_int_equal(fence_end(&hung), -ETIMEDOUT);
	teardown();
}

static void *wait_fence(void *arg)
{
	struct sublet_fence *fence = arg;
	return (void *)(intptr_t)sublet_fence_wait(fence, LONG_NS, NULL, NULL);
}

/* While one thread resets, another submits: the backend hears of that job only afterwards (the fake would tell). */
static void submit_waits_for_reset(void **unused)
{
	struct sublet_bo bo = setup(NULL, 4);
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 1);
	pthread_t thread;
	void *status;
	(void)unused;

	fd.on_reset = reset_slowly;
	atomic_store(&stage, 0);
	job.timeout_ns = SHORT_NS;
	struct sublet_fence hung = go(&fd, &job, bo, no_bo);
	threads_begin();
	pthread_create(&thread, NULL, wait_fence, &hung);
	while (!atomic_load(&stage))
		sleep_ms(1);
	job.timeout_ns = LONG_NS;
	struct sublet_fence fence = go(&fd, &job, bo, no_bo);
	assert_int_equal(fd.resets, 1);
	pthread_join(thread, &status);
	threads_end();
	assert_int_equal((intptr_t)status, -ETIMEDOUT);
	assert_true(fake_device_step(&fd));
	assert_int_equal(fence_end(&fence), 0);
	assert_int_equal(fence_end(&hung), -ETIMEDOUT);
	teardown();
}

static void submit_slowly(struct fake_device *dev, const struct sublet_device_work *work)
{
	if (work->pattern != 1)
		return;
	atomic_store(&stage, 1);
	sleep_ms(200);
	if (dev->resets)
		fail_msg("reset while a job was being submitted");
}

static void *submit_one(void *arg)
{
	struct sublet_bo *bo = arg;
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 1);

	job.pattern = 1;
	return (void *)(intptr_t)submit_error(&fd, &job, *bo);
}

/* A reset waits for the backend to have heard of every job in flight, so that none of them outlives it. */
static void reset_waits_for_submit(void **unused)
{
	struct sublet_bo bo = setup(NULL, 4);
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 1);
	pthread_t thread;
	void *err;
	(void)unused;

	fd.on_submit = submit_slowly;
	atomic_store(&stage, 0);
	job.timeout_ns = SHORT_NS;
	threads_begin();
	pthread_create(&thread, NULL, submit_one, &bo);
	while (!atomic_load(&stage))
		sleep_ms(1);
	struct sublet_fence hung = go(&fd, &job, bo, no_bo);
	assert_int_equal(sublet_fence_wait(&hung, LONG_NS, NULL, NULL), -ETIMEDOUT);
	pthread_join(thread, &err);
	threads_end();
	assert_int_equal((intptr_t)err, 0);
	assert_int_equal(info_of(&fd, bo).jobs, 0); /* failed with the reset */
	assert_int_equal(fd.queued, 0);
	assert_int_equal(fence_end(&hung), -ETIMEDOUT);
	teardown();
}

/* Several that wait for the same hung device: one reset. */
static void one_reset_for_many(void **unused)
{
	struct sublet_bo bo = setup(NULL, 4);
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 1);
	pthread_t thread[6];
	void *status;
	(void)unused;

	fd.on_reset = reset_slowly;
	job.timeout_ns = SHORT_NS;
	struct sublet_fence hung = go(&fd, &job, bo, no_bo);
	threads_begin();
	for (uint32_t i = 0; i < 6; i++)
		pthread_create(&thread[i], NULL, wait_fence, &hung);
	for (uint32_t i = 0; i < 6; i++) {
		pthread_join(thread[i], &status);
		assert_int_equal((intptr_t)status, -ETIMEDOUT);
	}
	threads_end();
	assert_int_equal(fd.resets, 1);
	assert_int_equal(fence_end(&hung), -ETIMEDOUT);
	teardown();
}

/* ---- closing ---- */

static void *complete_later(void *arg)
{
	(void)arg;
	sleep_ms(20);
	assert_true(fake_device_step(&fd));
	return NULL;
}

static void close_waits(void **unused)
{
	struct sublet_bo bo = setup(NULL, 4);
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 4);
	struct sublet_claim claim;
	struct sublet_bo other;
	pthread_t thread;
	(void)unused;

	assert_int_equal(claim_take(&f, 4 * PAGE, NULL, &claim), 0);
	assert_int_equal(sublet_bo_create_claim(fd.device, &claim, 0, NULL, &other), 0);
	uint32_t vpn = map_pages(&f, 16, SUBLET_MOVABLE);
	bo_over(&fd, vpn, 16, SUBLET_BO_PINNED);
	go(&fd, &job, bo, no_bo);
	threads_begin();
	pthread_create(&thread, NULL, complete_later, NULL);
	fake_device_close(&fd);
	pthread_join(thread, NULL);
	threads_end();
	assert_int_equal(fd.resets, 0);
	claim_give(&f, &claim); /* nobody is over it any more, nor pins */
	assert_int_equal(sublet_unmap(f.engine_mm[0], addr_of(&f, 0, vpn), 16 * PAGE), 0);
	fixture_close(&f);
}

static void close_resets(void **unused)
{
	struct sublet_bo bo = setup(NULL, 4);
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 4);
	(void)unused;

	job.timeout_ns = SHORT_NS;
	uint64_t start = wall_ns();
	go(&fd, &job, bo, no_bo);
	fake_device_close(&fd);
	assert_int_equal(fd.resets, 1);
	assert_in_range(wall_ns() - start, SHORT_NS, LONG_NS / 2);
	fixture_close(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(create_refuses),
		cmocka_unit_test(limits_have_versions),
		cmocka_unit_test(aperture_begins_high),
		cmocka_unit_test(create_out_of_memory),
		cmocka_unit_test(sixteen_devices),
		cmocka_unit_test(info_has_versions),
		cmocka_unit_test(hung_job),
		cmocka_unit_test(look_does_not_reset),
		cmocka_unit_test(check_resets_the_overdue),
		cmocka_unit_test(pinners_reset_the_overdue),
		cmocka_unit_test(reset_fails),
		cmocka_unit_test(device_dies),
		cmocka_unit_test(device_dies_in_submit),
		cmocka_unit_test(answers_above_zero),
		cmocka_unit_test(unmap_holds_up_nobody),
		cmocka_unit_test(submit_waits_for_reset),
		cmocka_unit_test(reset_waits_for_submit),
		cmocka_unit_test(one_reset_for_many),
		cmocka_unit_test(close_waits),
		cmocka_unit_test(close_resets),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
