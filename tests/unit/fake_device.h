/* SPDX-License-Identifier: MIT */
/*
 * fake_device.h: a SIMULATED device over the simulated platform. The test decides when a job is done: it does the oldest one
 * by hand, or has each done at once.
 *
 * It notices, and counts in `bad`, what the library promises a backend: calls one at a time, no job during a reset, no
 * access but through a translation that is there, that was not removed, and that leads where the addresses lead.
 * What it walked it keeps until it is told to forget it. Jobs are whole pages.
 */
#ifndef TESTS_UNIT_FAKE_DEVICE_H
#define TESTS_UNIT_FAKE_DEVICE_H

#include "fixture.h"

#include "core/device.h"

#define FAKE_DEVICE_JOBS 64u
#define FAKE_DEVICE_BOS  64u
#define FAKE_DEVICE_TLB  65536u /* pages of aperture that it can keep */

struct fake_device_options {
	uint32_t features;       /* 0: IOPT | COPY */
	uint32_t bos_max;        /* 0: 16 */
	uint32_t jobs_max;       /* 0: 8 */
	uint64_t aperture_bytes; /* 0: 256 MiB, where it has an iopt */
	uint64_t aperture_first_bytes;
	uint64_t align_bytes;  /* 0: 1 */
	uint64_t bo_bytes_max; /* 0: 128 MiB */
	uint32_t large_disabled;
	bool at_once; /* a job is done, and completed, before submit returns */
};

struct fake_device {
	struct fake *f;
	struct sublet_device *device;
	struct fake_device_options options;
	pthread_mutex_t lock; /* protects the queue */
	struct sublet_device_work queue[FAKE_DEVICE_JOBS];
	uint32_t queued;
	uint64_t *tlb; /* [FAKE_DEVICE_TLB]: offset + 1 */
	void *attached[FAKE_DEVICE_BOS];
	uint64_t attached_bytes[FAKE_DEVICE_BOS];
	_Atomic uint32_t in_call; /* of those that come one at a time */
	_Atomic bool in_reset;
	_Atomic uint32_t submits, flushes, attaches, detaches, resets, closes, bad;
	char text[128]; /* of the first bad one */

	/* what the next calls answer */
	int submit_error;
	int reset_error;
	int attach_error;
	_Atomic uint32_t attach_most; /* -ENOSPC beyond; 0: no limit */
	/* Called in submit and in reset, before anything else; may be NULL. */
	void (*on_submit)(struct fake_device *fd, const struct sublet_device_work *work);
	void (*on_reset)(struct fake_device *fd);
	void (*on_flush)(struct fake_device *fd);
	void *arg;
};

/* -errno of sublet_device_create. */
int fake_device_try(struct fake_device *fd, struct fake *f, const struct fake_device_options *options);
void fake_device_open(struct fake_device *fd, struct fake *f, const struct fake_device_options *options);
/* Close the device, and fail if it saw anything bad. */
void fake_device_close(struct fake_device *fd);
/* Do the accesses of a job now; its result. */
uint64_t fake_device_do(struct fake_device *fd, const struct sublet_device_work *work);
/* Take the oldest job out of the queue; false: there is none. */
bool fake_device_take(struct fake_device *fd, struct sublet_device_work *work);
/* Do the oldest job, and complete it. */
bool fake_device_step(struct fake_device *fd);
struct sublet_device_info fake_device_info(struct fake_device *fd);

/* ---- short forms, for tests ---- */

/* A tracked (or other) bo over pages of mm 0. */
struct sublet_bo bo_over(struct fake_device *fd, uint32_t vpn, uint32_t pages, uint32_t flags);
struct sublet_job job_of(uint32_t op, uint32_t pages);
/* Submit one job; fails the test on an error. */
struct sublet_fence go(struct fake_device *fd, const struct sublet_job *job, struct sublet_bo first,
		       struct sublet_bo second);
/* Fill a bo's first pages with a pattern by the device; done when it returns. */
void dma_fill(struct fake_device *fd, struct sublet_bo bo, uint32_t pages, uint64_t pattern);
/* Check each word of pages. */
void check_pattern(struct fake *f, uint32_t vpn, uint32_t pages, uint64_t pattern);
/* The status of a job that is done, and the fence put. */
int fence_end(struct sublet_fence *fence);
/* Submit for its error. */
int submit_error(struct fake_device *fd, const struct sublet_job *job, struct sublet_bo bo);
struct sublet_bo_info info_of(struct fake_device *fd, struct sublet_bo bo);

#endif
