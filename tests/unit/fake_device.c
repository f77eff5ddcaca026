/* SPDX-License-Identifier: MIT */
/* The SIMULATED device. See fake_device.h. */
#include "fake_device.h"

#include <stdio.h>

#define PAGE_SHIFT 12u

static void bad(struct fake_device *fd, const char *what, uint64_t where)
{
	if (atomic_fetch_add(&fd->bad, 1) == 0)
		snprintf(fd->text, sizeof fd->text, "%s at %llx", what, (unsigned long long)where);
	if (getenv("FAKE_ABORT"))
		abort();
}

static void call_begin(struct fake_device *fd, const char *what)
{
	if (atomic_fetch_add(&fd->in_call, 1))
		bad(fd, what, 0);
}

static void call_end(struct fake_device *fd)
{
	atomic_fetch_sub(&fd->in_call, 1);
}

/* ---- accesses ---- */

static uint32_t translate(struct fake_device *fd, const struct sublet_device_buffer *b, uint32_t page,
			  uint32_t flags)
{
	uint64_t iova = b->iova + page * PAGE,
		 *tlb = &fd->tlb[(iova - fd->options.aperture_first_bytes) >> PAGE_SHIFT];
	struct sublet_extent extent;
	int err = sublet_iopt_translate(sublet_device_iopt(fd->device), iova, flags, &extent);

	if (err) {
		bad(fd, err == -EACCES ? "access that is not allowed" : "access without translation", iova);
		return 0;
	}
	pthread_mutex_lock(&fd->lock);
	uint64_t kept = *tlb ? *tlb - 1 : extent.offset_bytes;
	*tlb = kept + 1;
	pthread_mutex_unlock(&fd->lock);
	if (kept != extent.offset_bytes)
		bad(fd, "stale translation", iova);
	return (uint32_t)(kept >> fd->f->options.frame_shift);
}

/* The frame of page `page` of a buffer, by whatever the device has. */
static uint32_t frame_of(struct fake_device *fd, const struct sublet_device_buffer *b, uint32_t page,
			 uint32_t flags)
{
	struct sublet_extent extent;
	uint32_t shift = fd->f->options.frame_shift, pfn;

	if (!b->addr) {
		assert_int_equal(sublet_bo_extents(&b->bo, b->offset_bytes + page * PAGE, &extent, 1), 1);
		pfn = (uint32_t)(extent.offset_bytes >> shift);
	} else {
		pfn = fake_pfn_of(&fd->f->mm[0], vpn_of(fd->f, 0, (char *)b->addr + page * PAGE));
	}
	if (sublet_device_iopt(fd->device)) {
		uint32_t used = translate(fd, b, page, flags);
		if (used != pfn)
			bad(fd, "translation to other frames than the addresses have", b->iova);
		return used;
	}
	if (b->slot != UINT32_MAX && b->is_tracked && !fd->attached[b->slot])
		bad(fd, "buffer used that is not attached", b->slot);
	return pfn;
}

static bool writes(uint32_t op, uint32_t i)
{
	return op == SUBLET_JOB_COPY ? i : op == SUBLET_JOB_FILL || op == SUBLET_JOB_READ;
}

uint64_t fake_device_do(struct fake_device *fd, const struct sublet_device_work *work)
{
	uint64_t sum = 0;
	bool is_copy = work->op == SUBLET_JOB_COPY;

	for (uint32_t page = 0; page < work->bytes / PAGE; page++) {
		uint32_t pfn[2];
		for (uint32_t i = 0; i <= is_copy; i++)
			pfn[i] = frame_of(fd, &work->buffer[i], page,
					  writes(work->op, i) ? SUBLET_IOPT_WRITE : SUBLET_IOPT_READ);
		for (uint32_t w = 0; w < FAKE_WORDS; w++) {
			uint64_t value = fake_frame_read(fd->f, pfn[0], w);
			sum += value;
			if (work->op == SUBLET_JOB_FILL || work->op == SUBLET_JOB_READ)
				fake_frame_write(fd->f, pfn[0], w, work->pattern);
			else if (is_copy)
				fake_frame_write(fd->f, pfn[1], w, value);
		}
	}
	return work->op == SUBLET_JOB_SUM ? sum : work->bytes;
}

/* ---- ops ---- */

static int op_submit(void *ctx, const struct sublet_device_work *work)
{
	struct fake_device *fd = ctx;

	atomic_fetch_add(&fd->submits, 1);
	if (atomic_load(&fd->in_reset))
		bad(fd, "job submitted during a reset", work->id);
	if (fd->on_submit)
		fd->on_submit(fd, work);
	if (fd->submit_error < 0)
		return fd->submit_error;
	if (fd->options.at_once) {
		sublet_device_complete(fd->device, work->id, 0, fake_device_do(fd, work));
		return fd->submit_error;
	}
	pthread_mutex_lock(&fd->lock);
	if (fd->queued == fd->options.jobs_max)
		bad(fd, "more jobs than jobs_max", fd->queued);
	else
		fd->queue[fd->queued++] = *work;
	pthread_mutex_unlock(&fd->lock);
	return fd->submit_error;
}

static void op_flush(void *ctx, uint64_t iova, uint64_t bytes)
{
	struct fake_device *fd = ctx;

	atomic_fetch_add(&fd->flushes, 1);
	if (fd->on_flush)
		fd->on_flush(fd);
	pthread_mutex_lock(&fd->lock);
	for (uint64_t at = iova; at < iova + bytes; at += PAGE)
		fd->tlb[(at - fd->options.aperture_first_bytes) >> PAGE_SHIFT] = 0;
	pthread_mutex_unlock(&fd->lock);
}

static int op_attach(void *ctx, uint32_t slot, void *addr, uint64_t bytes)
{
	struct fake_device *fd = ctx;
	int err = fd->attach_error;

	call_begin(fd, "attach during another call");
	uint32_t now = atomic_load(&fd->attaches) - atomic_load(&fd->detaches);
	if (err >= 0 && fd->attach_most && now >= fd->attach_most)
		err = -ENOSPC;
	if (err >= 0) {
		if (fd->attached_bytes[slot])
			bad(fd, "attached twice", slot);
		fd->attached[slot] = addr;
		fd->attached_bytes[slot] = bytes;
		atomic_fetch_add(&fd->attaches, 1);
	}
	call_end(fd);
	return err;
}

static void op_detach(void *ctx, uint32_t slot)
{
	struct fake_device *fd = ctx;

	call_begin(fd, "detach during another call");
	if (!fd->attached_bytes[slot]) /* the address of a claim may be NULL: its offset */
		bad(fd, "detached, but not attached", slot);
	fd->attached[slot] = NULL;
	fd->attached_bytes[slot] = 0;
	atomic_fetch_add(&fd->detaches, 1);
	call_end(fd);
}

static int op_reset(void *ctx)
{
	struct fake_device *fd = ctx;

	call_begin(fd, "reset during another call");
	atomic_store(&fd->in_reset, true);
	if (fd->on_reset)
		fd->on_reset(fd);
	pthread_mutex_lock(&fd->lock);
	fd->queued = 0;
	pthread_mutex_unlock(&fd->lock);
	atomic_fetch_add(&fd->resets, 1);
	atomic_store(&fd->in_reset, false);
	call_end(fd);
	return fd->reset_error;
}

static void op_close(void *ctx)
{
	struct fake_device *fd = ctx;

	call_begin(fd, "close during another call");
	if (fd->queued)
		bad(fd, "closed with jobs in flight", fd->queued);
	for (uint32_t i = 0; i < FAKE_DEVICE_BOS; i++)
		if (fd->attached_bytes[i])
			bad(fd, "closed with a buffer attached", i);
	atomic_fetch_add(&fd->closes, 1);
	call_end(fd);
}

static void op_count(void *ctx, struct sublet_device_info *info)
{
	struct fake_device *fd = ctx;

	call_begin(fd, "count during another call");
	info->registrations = atomic_load(&fd->attaches) + atomic_load(&fd->detaches);
	info->bad_accesses = atomic_load(&fd->bad);
	call_end(fd);
}

/* ---- open, close ---- */

int fake_device_try(struct fake_device *fd, struct fake *f, const struct fake_device_options *options)
{
	static const struct sublet_device_ops ops = {
		SUBLET_OPTIONS(sublet_device_ops),
		.submit = op_submit,
		.flush = op_flush,
		.attach = op_attach,
		.detach = op_detach,
		.reset = op_reset,
		.close = op_close,
		.count = op_count,
	};
	struct fake_device_options o = options ? *options : (struct fake_device_options){ 0 };

	o.features = o.features ? o.features : SUBLET_DEVICE_IOPT | SUBLET_DEVICE_COPY;
	o.bos_max = o.bos_max ? o.bos_max : 16;
	o.jobs_max = o.jobs_max ? o.jobs_max : 8;
	o.align_bytes = o.align_bytes ? o.align_bytes : 1;
	o.bo_bytes_max = o.bo_bytes_max ? o.bo_bytes_max : 128 * SUBLET_MIB;
	if (o.features & SUBLET_DEVICE_IOPT)
		o.aperture_bytes = o.aperture_bytes ? o.aperture_bytes : 256 * SUBLET_MIB;
	*fd = (struct fake_device){ .f = f, .options = o };
	pthread_mutex_init(&fd->lock, NULL);
	fd->tlb = calloc(FAKE_DEVICE_TLB, sizeof *fd->tlb);
	struct sublet_device_limits limits = {
		SUBLET_OPTIONS(sublet_device_limits),
		.name = "fake",
		.features = o.features,
		.bos_max = o.bos_max,
		.jobs_max = o.jobs_max,
		.large_disabled = o.large_disabled,
		.align_bytes = o.align_bytes,
		.job_bytes_max = 64 * SUBLET_MIB,
		.bo_bytes_max = o.bo_bytes_max,
		.aperture_bytes = o.aperture_bytes,
		.aperture_first_bytes = o.aperture_first_bytes,
	};
	int err = sublet_device_create(f->arena, &ops, fd, &limits, &fd->device);
	if (err)
		free(fd->tlb);
	return err;
}

void fake_device_open(struct fake_device *fd, struct fake *f, const struct fake_device_options *options)
{
	assert_int_equal(fake_device_try(fd, f, options), 0);
}

void fake_device_close(struct fake_device *fd)
{
	sublet_device_close(fd->device);
	assert_int_equal(fd->closes, 1);
	assert_int_equal(fd->attaches, fd->detaches);
	if (fd->bad)
		fail_msg("device: %s (%u times)", fd->text, fd->bad);
	free(fd->tlb);
	pthread_mutex_destroy(&fd->lock);
}

bool fake_device_take(struct fake_device *fd, struct sublet_device_work *work)
{
	pthread_mutex_lock(&fd->lock);
	bool found = fd->queued > 0;
	if (found) {
		*work = fd->queue[0];
		fd->queued--;
		for (uint32_t i = 0; i < fd->queued; i++)
			fd->queue[i] = fd->queue[i + 1];
	}
	pthread_mutex_unlock(&fd->lock);
	return found;
}

bool fake_device_step(struct fake_device *fd)
{
	struct sublet_device_work work;

	if (!fake_device_take(fd, &work))
		return false;
	sublet_device_complete(fd->device, work.id, 0, fake_device_do(fd, &work));
	return true;
}

struct sublet_device_info fake_device_info(struct fake_device *fd)
{
	struct sublet_device_info info = { SUBLET_OPTIONS(sublet_device_info) };

	assert_int_equal(sublet_device_info(fd->device, &info), 0);
	return info;
}

/* ---- short forms ---- */

struct sublet_bo bo_over(struct fake_device *fd, uint32_t vpn, uint32_t pages, uint32_t flags)
{
	struct sublet_bo bo;

	assert_int_equal(sublet_bo_create(fd->device, fd->f->engine_mm[0], addr_of(fd->f, 0, vpn),
					  bytes_of(fd->f, pages), flags, "test", &bo),
			 0);
	return bo;
}

struct sublet_job job_of(uint32_t op, uint32_t pages)
{
	return (struct sublet_job){ SUBLET_OPTIONS(sublet_job), .op = op, .bytes = pages * PAGE };
}

struct sublet_fence go(struct fake_device *fd, const struct sublet_job *job, struct sublet_bo first,
		       struct sublet_bo second)
{
	struct sublet_bo bos[2] = { first, second };
	struct sublet_fence fence;

	assert_int_equal(sublet_submit(fd->device, job, bos, job->op == SUBLET_JOB_COPY ? 2 : 1, &fence), 0);
	return fence;
}

int fence_end(struct sublet_fence *fence)
{
	bool done = false;
	int err = sublet_fence_wait(fence, 0, &done, NULL);

	assert_true(done);
	assert_int_equal(sublet_fence_put(fence), 0);
	return err;
}

void dma_fill(struct fake_device *fd, struct sublet_bo bo, uint32_t pages, uint64_t pattern)
{
	struct sublet_job job = job_of(SUBLET_JOB_FILL, pages);
	job.pattern = pattern;
	struct sublet_fence fence = go(fd, &job, bo, bo);

	while (fake_device_step(fd))
		;
	assert_int_equal(fence_end(&fence), 0);
}

void check_pattern(struct fake *f, uint32_t vpn, uint32_t pages, uint64_t pattern)
{
	for (uint32_t i = 0; i < pages; i++)
		for (uint32_t w = 0; w < FAKE_WORDS; w++) {
			uint64_t have = 0;
			assert_true(fake_read(&f->mm[0], vpn + i, w, &have));
			if (have != pattern)
				fail_msg("page %u word %u: want %llx, have %llx", vpn + i, w,
					 (unsigned long long)pattern, (unsigned long long)have);
		}
}

int submit_error(struct fake_device *fd, const struct sublet_job *job, struct sublet_bo bo)
{
	return sublet_submit(fd->device, job, &bo, 1, NULL);
}

struct sublet_bo_info info_of(struct fake_device *fd, struct sublet_bo bo)
{
	uint64_t next = (uint32_t)bo.id - 1; /* device 0 of its arena; slots begin at 1 in an id */
	struct sublet_bo_info info;

	assert_int_equal(sublet_bo_list(fd->f->arena, &next, 1, &info), 1);
	return info;
}
