/* SPDX-License-Identifier: MIT */
/*
 * Scenarios: devices, buffers of the three kinds, jobs.
 *
 * Jobs go through threads of the library, so most count the calls of all threads. A job has a timeout: one that hangs
 * because a call failed ends with it.
 */
#include "scenarios.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define JOB_BYTES      ((size_t)128 << 10)
#define JOB_TIMEOUT_NS (100 * SUBLET_MS)

static int open_soft(struct world *w)
{
	const struct sublet_soft_options options = { SUBLET_OPTIONS(sublet_soft_options),
						     .aperture_bytes = SUBLET_GIB,
						     .collapse_bytes_per_s = 64 * SUBLET_MIB };

	return sublet_device_open_soft(w->arena, &options, &w->device);
}

static int open_uring(struct world *w)
{
	return sublet_device_open_uring(w->arena, NULL, &w->device);
}

static void device_close(struct world *w)
{
	sublet_device_close(w->device);
}

static void soft_make(struct world *w)
{
	must(!open_soft(w));
}

static void uring_make(struct world *w)
{
	char path[] = "/tmp/sublet-fault-XXXXXX";
	int err = open_uring(w);

	if (err == -EOPNOTSUPP)
		_exit(CHILD_SKIPPED);
	must(!err);
	w->fd = mkstemp(path);
	must(w->fd >= 0 && !unlink(path) && !ftruncate(w->fd, (off_t)HEAP_BYTES));
}

static void uring_end(struct world *w)
{
	sublet_device_close(w->device);
	close(w->fd);
}

/* ---- buffers ---- */

static int bo_tracked(struct world *w)
{
	return sublet_bo_create(w->device, w->mm, w->heap, JOB_BYTES, SUBLET_BO_TRACKED, "test", &w->bo);
}

static int bo_pinned(struct world *w)
{
	return sublet_bo_create(w->device, w->mm, w->heap, JOB_BYTES, SUBLET_BO_PINNED, "test", &w->bo);
}

static void claim_make(struct world *w)
{
	must(!sublet_claim(w->arena, JOB_BYTES, NULL, &w->claim));
}

static int bo_claimed(struct world *w)
{
	return sublet_bo_create_claim(w->device, &w->claim, 0, "test", &w->bo);
}

static void bo_end(struct world *w)
{
	must(!sublet_bo_destroy(&w->bo));
}

static void soft_and_claim(struct world *w)
{
	soft_make(w);
	claim_make(w);
}

static void uring_and_claim(struct world *w)
{
	uring_make(w);
	claim_make(w);
}

static void soft_and_claim_end(struct world *w)
{
	device_close(w);
	must(!sublet_release(w->arena, &w->claim));
}

static void uring_and_claim_end(struct world *w)
{
	uring_end(w);
	(void)!sublet_release(w->arena, &w->claim); /* -EBUSY: the device died with it in use */
}

/* ---- jobs ---- */

/* The job's own answer, whichever call gives it. */
static int job_end(const struct sublet_fence *fence, uint64_t *result)
{
	bool done = false;
	int err = sublet_fence_wait(fence, 10 * SUBLET_SEC, &done, result);

	must(done);
	must(!sublet_fence_put(&(struct sublet_fence){ fence->device, fence->id }));
	return err;
}

/* The device reads the heap and adds it up. */
static int sum(struct world *w)
{
	const struct sublet_job job = { SUBLET_OPTIONS(sublet_job), .op = SUBLET_JOB_SUM, .bytes = JOB_BYTES,
					.timeout_ns = JOB_TIMEOUT_NS };
	struct sublet_fence fence;
	uint64_t result = 0, wanted = 0;
	int err = sublet_submit(w->device, &job, &w->bo, 1, &fence);

	err = err ? err : job_end(&fence, &result);
	for (size_t i = 0; i < JOB_BYTES / 8; i++)
		wanted += heap_word(i);
	if (!err && result != wanted)
		wrong("the device read other bytes than the program wrote (G4)");
	return err;
}

static int bind_sum(struct world *w, int (*bo)(struct world *))
{
	int err = bo(w);

	if (err)
		return err;
	err = sum(w);
	bo_end(w);
	return err;
}

static int tracked_sum(struct world *w)
{
	return bind_sum(w, bo_tracked);
}

static int pinned_sum(struct world *w)
{
	return bind_sum(w, bo_pinned);
}

/* A buffer is in the way, is evicted, and is bound again. */
static int tracked_claim_sum(struct world *w)
{
	const struct sublet_claim_options options = { SUBLET_OPTIONS(sublet_claim_options),
						      .flags = SUBLET_CLAIM_DEAREST,
						      .deadline_ns = 30 * SUBLET_MS };
	int err = sublet_claim(w->arena, 2 * SUBLET_MIB, &options, &w->claim);

	if (!err)
		must(!sublet_release(w->arena, &w->claim));
	return err ? err : sum(w);
}

static void bound_make(struct world *w)
{
	soft_make(w);
	must(!bo_tracked(w));
	must(!sum(w));
}

static void bound_end(struct world *w)
{
	struct sublet_device_info info = { SUBLET_OPTIONS(sublet_device_info) };

	must(!sublet_device_info(w->device, &info));
	if (info.bad_accesses)
		wrong("the device made %llu accesses that it must not make (G4)",
		      (unsigned long long)info.bad_accesses);
	bo_end(w);
	device_close(w);
}

/* To the file and back; what is read is what was written. */
static int file_job(struct world *w, uint32_t op)
{
	const struct sublet_job job = { SUBLET_OPTIONS(sublet_job), .op = op, .fd = w->fd, .bytes = JOB_BYTES,
					.timeout_ns = JOB_TIMEOUT_NS };
	struct sublet_fence fence;
	int err = sublet_submit(w->device, &job, &w->bo, 1, &fence);

	return err ? err : job_end(&fence, NULL);
}

static int file_jobs(struct world *w, int (*bo)(struct world *))
{
	char back[4096];
	int err = bo(w);

	if (err)
		return err;
	err = file_job(w, SUBLET_JOB_WRITE);
	if (!err && (pread(w->fd, back, sizeof back, 0) != sizeof back ||
		     (bo != bo_claimed && memcmp(back, w->heap, sizeof back))))
		wrong("the file has other bytes than the program (G4)");
	if (!err)
		err = file_job(w, SUBLET_JOB_READ);
	bo_end(w);
	return err;
}

static int file_tracked(struct world *w)
{
	return file_jobs(w, bo_tracked);
}

static int file_pinned(struct world *w)
{
	return file_jobs(w, bo_pinned);
}

static int file_claimed(struct world *w)
{
	return file_jobs(w, bo_claimed);
}

static int file_range(struct world *w)
{
	const struct sublet_job job = { SUBLET_OPTIONS(sublet_job), .op = SUBLET_JOB_WRITE, .fd = w->fd,
					.bytes = JOB_BYTES, .timeout_ns = JOB_TIMEOUT_NS };
	struct sublet_fence fence;
	int err = sublet_submit_range(w->device, &job, w->mm, w->heap, &fence);

	return err ? err : job_end(&fence, NULL);
}

/* Once a job's calls have failed for good the device may be dead: then a new one works. */
const struct scenario device_scenarios[] = {
	{ "device_open_soft", MAY_SUCCEED, NULL, open_soft, device_close, NULL },
	{ "device_open_uring", MAY_SUCCEED, NULL, open_uring, device_close, NULL },
	{ "bo_create (tracked)", MAY_SUCCEED, soft_make, bo_tracked, bo_end, device_close },
	{ "bo_create (pinned)", MAY_SUCCEED | MAY_ABORT, soft_make, bo_pinned, bo_end, device_close },
	{ "bo_create_claim", MAY_SUCCEED, soft_and_claim, bo_claimed, bo_end, soft_and_claim_end },
	{ "submit (tracked)", MAY_SUCCEED, soft_make, tracked_sum, NULL, device_close },
	{ "submit (pinned)", MAY_SUCCEED | MAY_ABORT, soft_make, pinned_sum, NULL, device_close },
	{ "claim under a tracked buffer", MAY_SUCCEED | MAY_ABORT, bound_make, tracked_claim_sum, NULL,
	  bound_end },
	{ "uring, tracked", ALL_CALLS | MAY_SUCCEED | MAY_DIE, uring_make, file_tracked, NULL, uring_end },
	{ "uring, pinned", ALL_CALLS | MAY_SUCCEED | MAY_DIE | MAY_ABORT, uring_make, file_pinned, NULL,
	  uring_end },
	{ "uring, claimed", ALL_CALLS | MAY_SUCCEED | MAY_DIE, uring_and_claim, file_claimed, NULL,
	  uring_and_claim_end },
	{ "uring, submit_range", ALL_CALLS | MAY_SUCCEED | MAY_DIE, uring_make, file_range, NULL, uring_end },
	{ NULL },
};
