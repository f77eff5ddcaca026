/* SPDX-License-Identifier: MIT */
/*
 * Jobs: submitted, completed, waited for.
 *
 * A job is submitted in two steps. First everything that it needs is made ready, by as many looks as that takes: each of
 * its buffers bound and open for new jobs, a slot free, no reset under way. The look that finds all of it ready takes
 * the references in the same breath, under the lock; from there on no notifier's callback lets the memory go (G4), and
 * only then the backend hears of the job, without the lock, because it may complete it at once.
 *
 *   submit                                     a move of the memory
 *   ------                                     --------------------
 *   lock                                       callback: lock
 *     all ready? bo.jobs++, RUNNING              bo.jobs > 0: close the gate, decline
 *   unlock                                       else: clear the translation, flush
 *   ops.submit                                 unlock
 *
 * Of the two that meet at the lock one is first. If it is the job, the move comes back later, and the gate sees to it that
 * it finds the buffer idle then (G10). If it is the move, the job finds a gap, and binds the buffer again.
 */
#include "core/device.h"

#include <errno.h>

#define TIMEOUT_NS (5 * SUBLET_SEC)  /* where the job names none */
#define AGAIN_NS   (20 * SUBLET_US)  /* before another look at what was just being changed */
#define SHARED_NS  (200 * SUBLET_US) /* and at what a child of fork() shares */

/* A job on its way in. */
struct request {
	struct sublet_device *device;
	struct sublet_job job;
	uint32_t count; /* of buffers; 0: a range */
	uint64_t id[2];
	struct sublet__bo *bo[2]; /* as of the last look; only with the lock held */
	struct sublet_mm *mm;     /* of a range */
	void *addr;
	struct sublet__job *slot; /* NULL: not taken yet */
	uint64_t job_id;
	uint64_t until_ns;  /* for binding */
	uint64_t shared_ns; /* a child of fork() may share a buffer until then; 0: none did */
};

/* ---- what an op needs ---- */

static uint32_t op_feature(uint32_t op)
{
	return op == SUBLET_JOB_READ || op == SUBLET_JOB_WRITE ? SUBLET_DEVICE_FILES : SUBLET_DEVICE_COPY;
}

static uint32_t op_buffers(uint32_t op)
{
	return op == SUBLET_JOB_COPY ? 2 : 1;
}

/* Whether the op writes to buffer i. */
static bool op_writes(uint32_t op, uint32_t i)
{
	return op == SUBLET_JOB_COPY ? i == 1 : op == SUBLET_JOB_FILL || op == SUBLET_JOB_READ;
}

/* What can be checked of a job without its buffers. */
static int request_init(struct request *rq, struct sublet_device *device, const struct sublet_job *job,
			uint32_t count)
{
	int err = call_device(device);

	*rq = (struct request){ .device = device };
	if (!err)
		err = sublet__struct_in(&rq->job, sizeof rq->job, job, FIRST_JOB);
	if (err)
		return err;
	const struct sublet_device_limits *l = &device->limits;
	uint64_t unaligned = l->align_bytes - 1;
	job = &rq->job;
	if (job->op < SUBLET_JOB_COPY || job->op > SUBLET_JOB_WRITE || count != op_buffers(job->op) ||
	    !job->bytes || job->bytes > l->job_bytes_max || (job->bytes & unaligned) ||
	    (job->file_offset_bytes & unaligned))
		return -EINVAL;
	if (!device_has(device, op_feature(job->op)))
		return -EOPNOTSUPP;
	if (!job->timeout_ns)
		rq->job.timeout_ns = TIMEOUT_NS;
	rq->until_ns = time_after(engine_now(device->arena), rq->job.timeout_ns);
	return 0;
}

/* ---- making ready; lock held ---- */

/* Look up the buffers, and refuse what can be refused. */
static int buffers_find(struct request *rq)
{
	const struct sublet_job *job = &rq->job;

	for (uint32_t i = 0; i < rq->count; i++) {
		uint64_t offset = job->offset_bytes[i];
		struct sublet__bo *bo = sublet__bo_find(rq->device, rq->id[i]);
		if (!bo || offset > bo->bytes || job->bytes > bo->bytes - offset ||
		    (offset & (rq->device->limits.align_bytes - 1)))
			return -EINVAL;
		rq->bo[i] = bo;
	}
	for (uint32_t i = 0; i < rq->count; i++) {
		if (op_writes(job->op, i) && (rq->bo[i]->flags & SUBLET_BO_READONLY))
			return -EACCES;
		if (rq->bo[i]->is_dead)
			return -EFAULT;
	}
	return 0;
}

/* When to look again at the gates of the buffers; 0: all are open. */
static uint64_t gates_look(const struct request *rq, uint64_t now_ns)
{
	uint64_t until_ns = 0;

	for (uint32_t i = 0; i < rq->count; i++) {
		uint64_t gate_ns = sublet__bo_gate(rq->bo[i], now_ns);
		until_ns = gate_ns > until_ns ? gate_ns : until_ns;
	}
	return until_ns;
}

static struct sublet__bo *buffer_not_ready(const struct request *rq)
{
	for (uint32_t i = 0; i < rq->count; i++)
		if (!bo_is_ready(rq->bo[i]))
			return rq->bo[i];
	return NULL;
}

static bool slot_is_ready(const struct request *rq)
{
	const struct sublet_device *device = rq->device;

	return device->running_count < device->limits.jobs_max &&
	       (rq->slot || device->job_free != ENGINE_NONE);
}

/* A buffer cannot be bound now: whether to look again, after how long. A child of fork() that shares it may exec soon. */
static uint64_t bind_again_ns(struct request *rq, int err, uint64_t now_ns)
{
	if (err != -EBUSY) {
		rq->shared_ns = 0;
		return err == -EAGAIN ? AGAIN_NS : 0;
	}
	if (!rq->shared_ns)
		rq->shared_ns = time_after(now_ns, ENGINE_CHILD_NS);
	return now_ns < rq->shared_ns ? SHARED_NS : 0;
}

/* One look. 0: all is ready. -EAGAIN: look again, later or at once; what was to be done for it is done. */
static int request_look(struct request *rq)
{
	struct sublet_device *device = rq->device;
	const struct sublet__platform *p = &device->arena->platform;
	uint64_t now = engine_now(device->arena), until_ns = rq->until_ns;

	if (device->is_dead)
		return -ENODEV;
	int err = buffers_find(rq);
	if (err)
		return err;
	uint64_t gate_ns = gates_look(rq, now);
	struct sublet__bo *bo = buffer_not_ready(rq);
	if (!bo)
		rq->shared_ns = 0; /* somebody else may have bound what was shared */
	if (!device->is_resetting && !gate_ns && !bo && slot_is_ready(rq))
		return 0;
	if (now >= rq->until_ns)
		return rq->shared_ns ? -EBUSY : -ETIMEDOUT;
	if (!device->is_resetting && !gate_ns && bo) {
		err = sublet__bo_bind(bo, rq->id, rq->count, rq->until_ns);
		uint64_t again_ns = bind_again_ns(rq, err, now);
		if (!again_ns)
			return err ? err : -EAGAIN;
		device_unlock(device);
		p->ops->sleep_ns(p->ctx, again_ns);
		device_lock(device);
		return -EAGAIN;
	}
	if (gate_ns && gate_ns < until_ns)
		until_ns = gate_ns;
	sublet__device_wait(device, &device->pulse, until_ns);
	return -EAGAIN;
}

/* ---- the life of a job; lock held ---- */

static struct sublet__job *job_find(struct sublet_device *device, uint64_t id)
{
	uint32_t slot = (uint32_t)id - 1;

	if (slot >= device->jobs || device->job[slot].generation != id >> 32 ||
	    device->job[slot].state == JOB_FREE)
		return NULL;
	return &device->job[slot];
}

static void job_wake(struct sublet_device *device, struct sublet__job *job)
{
	const struct sublet__platform *p = &device->arena->platform;

	/* release: pairs with the load in sublet__device_wait */
	a32_store_release(&job->word, a32_load_relaxed(&job->word) + 1);
	if (device->waiters)
		p->ops->unpark(p->ctx, &job->word, UINT32_MAX);
}

static void job_free(struct sublet_device *device, struct sublet__job *job)
{
	job->state = JOB_FREE;
	job->generation++;
	job->next_free = device->job_free;
	device->job_free = (uint32_t)(job - device->job);
}

static void buffer_describe(const struct request *rq, uint32_t i, struct sublet_device_buffer *buffer)
{
	const struct sublet__bo *bo = rq->bo[i];
	uint64_t offset = rq->job.offset_bytes[i];
	bool is_claim = bo->flags & SUBLET_BO_CLAIMED;

	*buffer = (struct sublet_device_buffer){
		.slot = bo_slot(bo),
		.is_tracked = (bo->flags & SUBLET_BO_TRACKED) != 0,
		.mm = bo->mm,
		.addr = is_claim ? NULL : (void *)(uintptr_t)(bo->addr + offset),
		.iova = rq->device->iopt ? bo->iova + (is_claim ? 0 : bo->addr - bo->base) + offset : 0,
		.offset_bytes = offset,
		.bo = { rq->device, bo_id(bo) },
	};
}

/* Take a slot; there is one. */
static void job_take(struct request *rq)
{
	struct sublet_device *device = rq->device;

	rq->slot = &device->job[device->job_free];
	device->job_free = rq->slot->next_free;
	rq->slot->state = JOB_MAKING;
}

/* Take the references on the buffers: from here on the job is in flight. */
static void job_start(struct request *rq, bool has_fence)
{
	struct sublet_device *device = rq->device;
	struct sublet__job *job = rq->slot;

	job->state = JOB_RUNNING;
	job->has_fence = has_fence;
	job->is_settled = false;
	job->bos = rq->count;
	job->deadline_ns = time_after(engine_now(device->arena), rq->job.timeout_ns);
	job->running_at = device->running_count;
	device->running[device->running_count++] = (uint32_t)(job - device->job);
	device->submitting++;
	device->count.jobs++;
	rq->job_id = handle_make(job->generation, (uint32_t)(job - device->job));
	job->work = (struct sublet_device_work){
		.id = rq->job_id,
		.op = rq->job.op,
		.fd = rq->job.fd,
		.bytes = rq->job.bytes,
		.file_offset_bytes = rq->job.file_offset_bytes,
		.pattern = rq->job.pattern,
		.buffer[0] = { .slot = UINT32_MAX, .mm = rq->mm, .addr = rq->addr },
	};
	for (uint32_t i = 0; i < rq->count; i++) {
		job->bo[i] = bo_slot(rq->bo[i]);
		rq->bo[i]->jobs++;
		rq->bo[i]->gate_since_ns = 0;
		sublet__bo_touch(rq->bo[i]);
		buffer_describe(rq, i, &job->work.buffer[i]);
	}
}

/* Drops the lock where the job has a pin. */
static void job_unpin(struct sublet_device *device, struct sublet__job *job)
{
	if (!job->has_pin)
		return;
	device_unlock(device);
	(void)!sublet_unpin(&job->pin); /* it is held: has_pin */
	device_lock(device);
	job->has_pin = false;
}

/* A job is over for whoever waits for it. */
static void job_settle(struct sublet_device *device, struct sublet__job *job, int status, uint64_t result)
{
	if (status)
		device->count.jobs_failed++;
	else
		device->count.job_bytes += job->work.op == SUBLET_JOB_SUM ? job->work.bytes : result;
	job->status = status;
	job->result = result;
	job->is_settled = true;
	job_wake(device, job);
}

/* A job is over for its memory. May drop the lock. */
static void job_release(struct sublet_device *device, struct sublet__job *job)
{
	job->state = JOB_ENDING;
	job_unpin(device, job);
	for (uint32_t i = 0; i < job->bos; i++)
		device->bo[job->bo[i]].jobs--;
	uint32_t last = device->running[--device->running_count];
	device->running[job->running_at] = last;
	device->job[last].running_at = job->running_at;
	job->state = JOB_DONE;
}

static void job_end(struct sublet_device *device, struct sublet__job *job, int status, uint64_t result)
{
	job_release(device, job);
	job_settle(device, job, status, result);
	if (!job->has_fence)
		job_free(device, job);
	sublet__device_pulse(device);
}

/* The device could not be stopped: whoever waits is told, and the memory stays in use. */
static void job_lose(struct sublet_device *device, struct sublet__job *job, int status)
{
	job->state = JOB_LOST;
	device->lost_count++;
	for (uint32_t i = 0; i < job->bos; i++)
		device->bo[job->bo[i]].lost++;
	job_settle(device, job, status, 0);
	sublet__device_pulse(device);
}

/* The device is done with a lost job after all, or for good. Drops the lock to end buffers that were destroyed meanwhile. */
static void job_recover(struct sublet_device *device, struct sublet__job *job)
{
	uint32_t bos = job->bos, slot[2] = { job->bo[0], job->bo[1] };

	device->lost_count--;
	for (uint32_t i = 0; i < bos; i++)
		device->bo[slot[i]].lost--;
	job_release(device, job);
	for (uint32_t i = 0; i < bos; i++)
		if (!device->bo[slot[i]].lost) /* the dead device has nothing left that it may access there */
			sublet__bo_unbind(&device->bo[slot[i]]);
	if (!job->has_fence)
		job_free(device, job);
	sublet__device_pulse(device);
	for (uint32_t i = 0; i < bos; i++) {
		struct sublet__bo *bo = &device->bo[slot[i]];
		if (!bo->is_abandoned || bo->jobs)
			continue;
		bo->is_abandoned = false; /* one thread ends it */
		device_unlock(device);
		sublet__bo_finish(bo);
		device_lock(device);
	}
}

/* Why a job fails that was in flight when all had to end. */
static int fail_status(const struct sublet_device *device, const struct sublet__job *job, uint64_t now_ns)
{
	if (device->is_closing)
		return -ECANCELED;
	for (uint32_t i = 0; i < job->bos; i++)
		if (device->bo[job->bo[i]].state == BO_GOING)
			return -ECANCELED;
	if (device->is_dead)
		return -ENODEV;
	return job->deadline_ns <= now_ns ? -ETIMEDOUT : -EIO;
}

void sublet__jobs_fail(struct sublet_device *device, bool is_stopped)
{
	uint64_t now = engine_now(device->arena);

	for (uint32_t i = 0; i < device->running_count;) {
		struct sublet__job *job = &device->job[device->running[i]];
		if (job->state == JOB_ENDING || (job->state == JOB_LOST && !is_stopped)) {
			i++; /* whoever completed it is about to end it; or the device may still be at it */
			continue;
		}
		if (job->state == JOB_LOST)
			job_recover(device, job);
		else if (is_stopped)
			job_end(device, job, fail_status(device, job, now), 0);
		else
			job_lose(device, job, fail_status(device, job, now));
		i = 0; /* another has its place; and while its pin was released anything may have changed */
	}
}

static int request_ready(struct request *rq)
{
	int err;

	do
		err = request_look(rq);
	while (err == -EAGAIN); /* until rq->until_ns */
	return err;
}

/*
 * All is ready: go. Lock held, dropped meanwhile. A job that the backend did not start never was; unless the device died at
 * the same moment, and it was failed with all others.
 */
static int request_go(struct request *rq, bool has_fence)
{
	struct sublet_device *device = rq->device;

	job_start(rq, has_fence);
	device_unlock(device);
	int err = device->ops.submit(device->ctx, &rq->slot->work);
	err = err < 0 ? err : 0;
	device_lock(device);
	if (!--device->submitting && (device->is_resetting || device->is_closing))
		sublet__device_pulse(device);
	struct sublet__job *job = err ? job_find(device, rq->job_id) : NULL;
	if (job && job->state == JOB_DONE) {
		job_free(device, job);
		sublet__device_pulse(device);
	} else if (job) {
		job->has_fence = false;
		if (job->state == JOB_RUNNING)
			job_end(device, job, err, 0);
	}
	return err;
}

/* ---- the calls ---- */

int sublet_submit(struct sublet_device *device, const struct sublet_job *job, const struct sublet_bo *bos,
		  uint32_t count, struct sublet_fence *fence)
{
	struct request rq;
	int err = request_init(&rq, device, job, count);

	if (!err && !bos)
		err = -EINVAL;
	for (uint32_t i = 0; i < count && !err; i++) {
		rq.id[i] = bos[i].id;
		err = bos[i].device == device ? 0 : -EINVAL;
	}
	if (err)
		return err;
	rq.count = count;
	device_lock(device);
	err = request_ready(&rq);
	if (!err) {
		job_take(&rq);
		err = request_go(&rq, fence != NULL);
	}
	device_unlock(device);
	if (!err && fence)
		*fence = (struct sublet_fence){ device, rq.job_id };
	return err;
}

/* Pin the range of a job that has its slot, and see that all is still ready; lock held, dropped meanwhile. */
static int range_pin(struct request *rq)
{
	struct sublet_device *device = rq->device;
	uint32_t flags = op_writes(rq->job.op, 0) ? SUBLET_PIN_WRITE : SUBLET_PIN_READ;

	device_unlock(device);
	int err = sublet_pin(rq->mm, rq->addr, rq->job.bytes, flags, device->name, &rq->slot->pin);
	device_lock(device);
	rq->slot->has_pin = !err;
	if (!err)
		err = request_ready(rq);
	if (err) {
		job_unpin(device, rq->slot);
		job_free(device, rq->slot);
		sublet__device_pulse(device); /* somebody may wait for a slot */
	}
	return err;
}

int sublet_submit_range(struct sublet_device *device, const struct sublet_job *job, struct sublet_mm *mm,
			void *addr, struct sublet_fence *fence)
{
	struct request rq;
	int err = request_init(&rq, device, job, 1);

	if (!err && !device_has(device, SUBLET_DEVICE_RANGES))
		err = -EOPNOTSUPP;
	if (!err &&
	    (!mm || mm->arena != device->arena || ((uintptr_t)addr & (device->limits.align_bytes - 1))))
		err = -EINVAL;
	if (err)
		return err;
	rq.mm = mm;
	rq.addr = addr;
	device_lock(device);
	err = request_ready(&rq);
	if (!err) {
		job_take(&rq);
		err = range_pin(&rq);
	}
	if (!err)
		err = request_go(&rq, fence != NULL);
	device_unlock(device);
	if (!err && fence)
		*fence = (struct sublet_fence){ device, rq.job_id };
	return err;
}

void sublet_device_complete(struct sublet_device *device, uint64_t work_id, int status, uint64_t result)
{
	if (call_device(device))
		return;
	device_lock(device);
	struct sublet__job *job = job_find(device, work_id);
	if (job && job->state == JOB_RUNNING)
		job_end(device, job, status, result);
	else if (job && job->state == JOB_LOST)
		job_recover(device, job);
	device_unlock(device);
}

int sublet_fence_wait(const struct sublet_fence *fence, uint64_t timeout_ns, bool *done, uint64_t *result)
{
	struct sublet_device *device = fence ? fence->device : NULL;
	const struct sublet__job *job;
	int err = call_device(device);

	if (err)
		return err;
	uint64_t id = fence->id, value = 0, until_ns;
	until_ns = time_after(engine_now(device->arena), timeout_ns);
	device_lock(device);
	while ((job = job_find(device, id)) && job->has_fence && !job->is_settled) {
		if (!timeout_ns || engine_now(device->arena) >= until_ns) {
			err = -ETIMEDOUT;
			break;
		}
		sublet__device_wait(device, &job->word, until_ns);
	}
	bool is_done = !err;
	if (!job || !job->has_fence) {
		err = -EINVAL;
	} else if (is_done) {
		err = job->status;
		value = job->result;
	}
	device_unlock(device);
	if (done)
		*done = is_done;
	if (result && is_done)
		*result = value;
	return err;
}

int sublet_fence_put(struct sublet_fence *fence)
{
	struct sublet_device *device = fence ? fence->device : NULL;
	int err = call_device(device);

	if (err)
		return err;
	device_lock(device);
	struct sublet__job *job = job_find(device, fence->id);
	bool is_held = job && job->has_fence;
	if (is_held) {
		job->has_fence = false;
		job_wake(device, job); /* whoever waits for it finds it gone */
		if (job->state == JOB_DONE) {
			job_free(device, job);
			sublet__device_pulse(device);
		}
	}
	device_unlock(device);
	if (!is_held)
		return -EINVAL;
	*fence = (struct sublet_fence){ 0 };
	return 0;
}
