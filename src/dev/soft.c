/* SPDX-License-Identifier: MIT */
/*
 * `soft`: a DMA engine in software, and the oracle of the tests.
 *
 * One thread does the jobs in the order they came. It knows no address but iova: it walks the device's page table, keeps
 * what it walked in a small TLB, and touches the backing through the linear map where the translation leads, wherever
 * that is. So a mistake above it is a wrong byte somewhere, as with hardware; and unlike hardware it looks afterwards
 * whether its access was right, and counts those that were not:
 *
 *   missing    no translation, or one that does not allow the access
 *   stale      what it used, out of its TLB perhaps, is not what the page table says now. While a job is in flight its
 *              translations do not change.
 *   untrue     the addresses of the buffer lead to other frames than the device used: the memory moved under a job,
 *              or the translation was built from what was there before a move (G4); or a child of fork() shares them.
 *
 * Accesses are made in chunks of at most 64 KiB, each in a window, so that flush can wait for what is under way:
 *
 *   device's thread                          flush (the entry is cleared already)
 *   ---------------                          -----
 *   window: odd                              epoch + 1
 *   epoch changed? forget the TLB            window odd? wait until it changes
 *   TLB or walk -> frames                    return
 *   access
 *   window: even
 *
 * All four of the upper two lines are seq_cst. Either the thread sees the new epoch, and walks what is cleared; or it
 * opened its window before flush looks, and flush waits for its end.
 */
#include "core/device.h"
#include "dev/collapser.h"
#include "linux/linux.h"

#include <errno.h>
#include <string.h>

#define CHUNK_BYTES    (64 * SUBLET_KIB)
#define TLB_ENTRIES    64u
#define ALIGN_BYTES    8u
#define APERTURE_BYTES (64 * SUBLET_GIB) /* defaults */
#define JOBS_MAX       64u
#define BOS_MAX        1024u
#define SLOW_NS        (500 * SUBLET_MS)
#define WINDOW_LOOKS   200u /* before flush sleeps */
#define JOB_ABANDONED  1    /* neither done nor failed: there was a reset */
#define QUEUE_MAX      (1u << 16)

enum { STOP_JOB = 1, STOP_END = 2 };

struct tlb_entry {
	uint64_t first; /* iova; first == end: empty */
	uint64_t end;
	uint64_t offset; /* of first, in the backing */
	uint32_t flags;  /* what it was walked for */
};

struct soft {
	struct sublet_arena *arena;
	struct sublet_device *device;
	size_t memory_bytes;
	uint64_t bytes_per_s;
	uint64_t delay_ns;
	struct sublet__thread thread;
	bool has_thread;
	struct sublet__collapser collapser;

	struct sublet__lock lock; /* protects the queue, fault, is_busy; nests in nothing, holds nothing */
	uint32_t queued;
	uint32_t head;
	uint32_t jobs_max;
	uint32_t fault; /* enum sublet_soft_fault; 0: none */
	bool is_busy;
	sublet__a32 bell; /* changes when somebody should look again; parked on by the thread and by reset */
	sublet__a32 stop; /* STOP_JOB: abandon what is being done; STOP_END: and end */

	sublet__a32 window; /* odd: an access is under way; parked on by flush */
	sublet__a32 flushers;
	sublet__a32 epoch; /* of flushes */
	sublet__a64 bad_accesses;

	/* the thread's own */
	uint32_t tlb_epoch;
	uint64_t next_ns; /* speed limit: no chunk begins before */
	struct tlb_entry tlb[TLB_ENTRIES];

	struct sublet_device_work queue[]; /* [jobs_max], a ring */
};

/* One side of a chunk. */
struct access {
	const struct sublet_device_buffer *buffer;
	uint64_t done; /* bytes of the job before it */
	uint32_t flags;
	uint64_t offset; /* where the translation leads */
	uint64_t bytes;  /* how far it leads, up to a chunk */
};

/* ---- the TLB and the window ---- */

static void window_open(struct soft *soft)
{
	a32_add_seq_cst(&soft->window, 1); /* odd; pairs with soft_flush, see the picture */
	uint32_t epoch = a32_load_seq_cst(&soft->epoch);
	if (epoch == soft->tlb_epoch)
		return;
	memset(soft->tlb, 0, sizeof soft->tlb);
	soft->tlb_epoch = epoch;
}

static void window_close(struct soft *soft)
{
	const struct sublet__platform *p = &soft->arena->platform;

	a32_add_seq_cst(&soft->window, 1); /* even; seq_cst with flushers: one of the two sees the other */
	if (a32_load_seq_cst(&soft->flushers))
		p->ops->unpark(p->ctx, &soft->window, UINT32_MAX);
}

static void soft_flush(void *ctx, uint64_t iova, uint64_t bytes)
{
	struct soft *soft = ctx;
	const struct sublet__platform *p = &soft->arena->platform;

	(void)iova, (void)bytes; /* so small a TLB is forgotten as a whole */
	a32_add_seq_cst(&soft->epoch, 1);
	uint32_t window = a32_load_seq_cst(&soft->window);
	if (!(window & 1))
		return;
	for (uint32_t i = 0; i < WINDOW_LOOKS; i++)
		if (a32_load_acquire(&soft->window) != window) /* pairs with window_close */
			return;
	a32_add_seq_cst(&soft->flushers, 1);
	while (a32_load_seq_cst(&soft->window) == window)
		p->ops->park(p->ctx, &soft->window, window, UINT64_MAX);
	a32_sub_acq_rel(&soft->flushers, 1);
}

/* Translate one side of a chunk. 0, -EFAULT, -EACCES */
static int access_translate(struct soft *soft, struct access *a)
{
	uint64_t iova = a->buffer->iova + a->done;
	struct tlb_entry *e = &soft->tlb[iova / CHUNK_BYTES % TLB_ENTRIES];
	struct sublet_extent extent;

	if (iova < e->first || iova >= e->end || (a->flags & ~e->flags)) {
		int err = sublet_iopt_translate(soft->device->iopt, iova, a->flags, &extent);
		if (err)
			return err;
		uint64_t end = (iova / CHUNK_BYTES + 1) * CHUNK_BYTES;
		end = extent.bytes < end - iova ? iova + extent.bytes : end;
		*e = (struct tlb_entry){ iova, end, extent.offset_bytes, a->flags };
	}
	a->offset = e->offset + (iova - e->first);
	a->bytes = e->end - iova;
	return 0;
}

/* Whether the addresses of the buffer lead to the frames that were used, and those are no child's. */
static bool access_was_true(const struct soft *soft, const struct access *a, uint64_t bytes)
{
	const struct sublet_arena *arena = soft->arena;
	const struct sublet_mm *mm = a->buffer->mm;
	uint32_t shift = frames_bytes_shift(arena);
	uint64_t page_bytes = 1ull << shift, end = a->offset + bytes;
	uint64_t at = (uint64_t)(uintptr_t)a->buffer->addr + a->done - mm->config.base;
	uint32_t vpn = (uint32_t)(at >> shift);

	for (uint64_t offset = a->offset & ~(page_bytes - 1); offset < end; offset += page_bytes, vpn++) {
		/* Pairs with run_publish and segment_publish, though only a mistake makes it change under a job. */
		uint32_t pte = a32_load_acquire(&mm->pte[vpn]), pfn = (uint32_t)(offset >> shift);
		if (!(pte & PTE_PRESENT) || pte_pfn(pte) != pfn)
			return false;
		uint32_t head = sublet__frame_head(arena, pfn);
		if (head != ENGINE_NONE && (a32_load_acquire(&arena->frames[head].word) & FRAME_HELD))
			return false;
	}
	return true;
}

/* Whether what was just accessed was right: still translated so, and still where the addresses lead. */
static bool access_was_right(const struct soft *soft, const struct access *a, uint64_t bytes)
{
	struct sublet_extent now;

	return !sublet_iopt_translate(soft->device->iopt, a->buffer->iova + a->done, a->flags, &now) &&
	       now.offset_bytes == a->offset && (!a->buffer->mm || access_was_true(soft, a, bytes));
}

static int bad_access(struct soft *soft)
{
	a64_add_relaxed(&soft->bad_accesses, 1);
	return -EIO;
}

/* ---- one chunk ---- */

static void chunk_fill(uint64_t *to, uint64_t pattern, uint64_t bytes)
{
	for (uint64_t i = 0; i < bytes / 8; i++)
		to[i] = pattern;
}

static uint64_t chunk_sum(const uint64_t *from, uint64_t bytes)
{
	uint64_t sum = 0;

	for (uint64_t i = 0; i < bytes / 8; i++)
		sum += __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? from[i] : __builtin_bswap64(from[i]);
	return sum;
}

/* Do a chunk of the job at `done`, at most *bytes, which becomes how much it was. 0 or -EIO. */
static int chunk_do(struct soft *soft, const struct sublet_device_work *work, uint64_t done, uint64_t *bytes,
		    uint64_t *sum)
{
	bool is_copy = work->op == SUBLET_JOB_COPY;
	struct access a[2] = {
		{ &work->buffer[0], done,
		  work->op == SUBLET_JOB_FILL ? SUBLET_IOPT_WRITE : SUBLET_IOPT_READ },
		{ &work->buffer[1], done, SUBLET_IOPT_WRITE },
	};
	uint8_t *linear = soft->arena->linear;
	bool right = true;

	window_open(soft);
	for (uint32_t i = 0; i <= is_copy; i++) {
		if (access_translate(soft, &a[i])) {
			window_close(soft);
			return bad_access(soft);
		}
		*bytes = a[i].bytes < *bytes ? a[i].bytes : *bytes;
	}
	uint64_t *at = (uint64_t *)(void *)(linear + a[0].offset);
	if (is_copy)
		memmove(linear + a[1].offset, at, *bytes); /* two buffers may be over the same memory */
	else if (work->op == SUBLET_JOB_FILL)
		chunk_fill(at, work->pattern, *bytes);
	else
		*sum += chunk_sum(at, *bytes);
	for (uint32_t i = 0; i <= is_copy; i++)
		right &= access_was_right(soft, &a[i], *bytes);
	window_close(soft);
	return right ? 0 : bad_access(soft);
}

/* ---- jobs, on the device's thread ---- */

/* Sleep until until_ns; false: the job is to be abandoned. */
static bool sleep_until(struct soft *soft, uint64_t until_ns)
{
	const struct sublet__platform *p = &soft->arena->platform;

	for (;;) {
		uint32_t bell = a32_load_acquire(&soft->bell); /* before stop: pairs with bell_ring */
		if (a32_load_acquire(&soft->stop))
			return false;
		uint64_t now = engine_now(soft->arena);
		if (now >= until_ns)
			return true;
		p->ops->park(p->ctx, &soft->bell, bell, until_ns == UINT64_MAX ? UINT64_MAX : until_ns - now);
	}
}

static bool speed_limit(struct soft *soft, uint64_t bytes)
{
	if (!soft->bytes_per_s)
		return !a32_load_acquire(&soft->stop); /* pairs with soft_reset and soft_close */
	uint64_t now = engine_now(soft->arena);
	soft->next_ns = (soft->next_ns > now ? soft->next_ns : now) + bytes * SUBLET_SEC / soft->bytes_per_s;
	return sleep_until(soft, soft->next_ns);
}

/* The middle of a job was reached that is to go wrong. */
static int fault_do(struct soft *soft, uint32_t fault)
{
	if (fault == SUBLET_SOFT_ERROR)
		return -EIO;
	if (fault == SUBLET_SOFT_DIE)
		return -ENODEV;
	(void)sleep_until(soft, UINT64_MAX); /* hangs */
	return JOB_ABANDONED;
}

/* 0, -EIO, -ENODEV: the device died, or JOB_ABANDONED. */
static int job_do(struct soft *soft, const struct sublet_device_work *work, uint32_t fault, uint64_t *result)
{
	bool is_slow = fault == SUBLET_SOFT_SLOW;
	uint64_t sum = 0, bytes, wait_ns = soft->delay_ns + (is_slow ? SLOW_NS : 0);
	uint64_t fault_at = fault && !is_slow ? work->bytes / 2 / ALIGN_BYTES * ALIGN_BYTES : work->bytes;

	if (wait_ns && !sleep_until(soft, time_after(engine_now(soft->arena), wait_ns)))
		return JOB_ABANDONED;
	for (uint64_t done = 0; done < fault_at; done += bytes) {
		bytes = fault_at - done;
		int err = chunk_do(soft, work, done, &bytes, &sum);
		if (err)
			return err;
		if (!speed_limit(soft, bytes))
			return JOB_ABANDONED;
	}
	*result = work->op == SUBLET_JOB_SUM ? sum : work->bytes;
	return fault_at < work->bytes ? fault_do(soft, fault) : 0;
}

static void bell_ring(struct soft *soft)
{
	const struct sublet__platform *p = &soft->arena->platform;

	/* release: pairs with who looks at what changed, and then parks on it */
	a32_add_acq_rel(&soft->bell, 1);
	p->ops->unpark(p->ctx, &soft->bell, UINT32_MAX);
}

/* Lock held, dropped meanwhile. */
static void bell_wait(struct soft *soft)
{
	const struct sublet__platform *p = &soft->arena->platform;
	uint32_t bell = a32_load_acquire(&soft->bell); /* pairs with bell_ring */

	engine_unlock(soft->arena, &soft->lock);
	p->ops->park(p->ctx, &soft->bell, bell, UINT64_MAX);
	engine_lock(soft->arena, &soft->lock);
}

/* Take the next job out of the queue; false: the device is closed. */
static bool job_next(struct soft *soft, struct sublet_device_work *work, uint32_t *fault)
{
	engine_lock(soft->arena, &soft->lock);
	while (!soft->queued && a32_load_acquire(&soft->stop) != STOP_END) /* pairs with soft_close */
		bell_wait(soft);
	bool found = soft->queued > 0;
	if (found) {
		*work = soft->queue[soft->head];
		soft->head = (soft->head + 1) % soft->jobs_max;
		soft->queued--;
		*fault = soft->fault;
		soft->fault = 0;
		soft->is_busy = true;
	}
	engine_unlock(soft->arena, &soft->lock);
	return found;
}

static void *soft_main(void *arg)
{
	struct soft *soft = arg;
	struct sublet_device_work work;
	uint64_t result = 0;
	uint32_t fault;

	while (job_next(soft, &work, &fault)) {
		int status = job_do(soft, &work, fault, &result);
		if (status == -ENODEV)
			sublet_device_died(soft->device);
		else if (status != JOB_ABANDONED)
			sublet_device_complete(soft->device, work.id, status, status ? 0 : result);
		engine_lock(soft->arena, &soft->lock);
		soft->is_busy = false;
		engine_unlock(soft->arena, &soft->lock);
		bell_ring(soft);
	}
	return NULL;
}

/* ---- what the library calls ---- */

static int soft_submit(void *ctx, const struct sublet_device_work *work)
{
	struct soft *soft = ctx;

	engine_lock(soft->arena, &soft->lock);
	soft->queue[(soft->head + soft->queued++) % soft->jobs_max] = *work; /* there is room: jobs_max */
	engine_unlock(soft->arena, &soft->lock);
	bell_ring(soft);
	return 0;
}

/* Abandon what is queued and what is being done, and see that the thread has let go of it. */
static int soft_reset(void *ctx)
{
	struct soft *soft = ctx;

	engine_lock(soft->arena, &soft->lock);
	soft->queued = 0;
	a32_store_release(&soft->stop, STOP_JOB); /* pairs with sleep_until and speed_limit */
	bell_ring(soft);
	while (soft->is_busy)
		bell_wait(soft);
	a32_store_release(&soft->stop, 0);
	engine_unlock(soft->arena, &soft->lock);
	return 0;
}

static void soft_close(void *ctx)
{
	struct soft *soft = ctx;
	const struct sublet__platform p = soft->arena->platform;

	sublet__collapser_stop(&soft->collapser);
	a32_store_release(&soft->stop, STOP_END); /* pairs with job_next */
	bell_ring(soft);
	if (soft->has_thread)
		sublet__linux_thread_join(&soft->thread);
	p.ops->unreserve(p.ctx, soft, soft->memory_bytes);
}

static void soft_count(void *ctx, struct sublet_device_info *info)
{
	const struct soft *soft = ctx;

	info->bad_accesses = a64_load_relaxed(&soft->bad_accesses);
}

static const struct sublet_device_ops soft_ops = {
	SUBLET_OPTIONS(sublet_device_ops),
	.submit = soft_submit,
	.flush = soft_flush,
	.reset = soft_reset,
	.close = soft_close,
	.count = soft_count,
};

/* ---- open ---- */

static int options_read(const struct sublet_soft_options *given, struct sublet_soft_options *o)
{
	*o = (struct sublet_soft_options){ 0 };
	int err = given ? sublet__struct_in(o, sizeof *o, given, FIRST_SOFT_OPTIONS) : 0;
	if (err)
		return err;
	o->name = o->name ? o->name : "soft";
	o->aperture_bytes = o->aperture_bytes ? o->aperture_bytes : APERTURE_BYTES;
	o->jobs_max = o->jobs_max ? o->jobs_max : JOBS_MAX;
	o->bos_max = o->bos_max ? o->bos_max : BOS_MAX;
	return o->reserved || o->jobs_max > QUEUE_MAX ? -EINVAL : 0;
}

int sublet_device_open_soft(struct sublet_arena *arena, const struct sublet_soft_options *options,
			    struct sublet_device **out)
{
	struct sublet_soft_options o;
	int err = out ? call_arena(arena) : -EINVAL;

	if (!err)
		err = options_read(options, &o);
	if (err)
		return err;
	const struct sublet__platform *p = &arena->platform;
	const struct sublet_device_limits limits = {
		SUBLET_OPTIONS(sublet_device_limits),
		.name = o.name,
		.features = SUBLET_DEVICE_IOPT | SUBLET_DEVICE_COPY,
		.bos_max = o.bos_max,
		.jobs_max = o.jobs_max,
		.large_disabled = o.large_disabled,
		.align_bytes = ALIGN_BYTES,
		.job_bytes_max = o.aperture_bytes,
		.bo_bytes_max = o.aperture_bytes,
		.aperture_bytes = o.aperture_bytes,
	};
	size_t bytes = sizeof(struct soft) + o.jobs_max * sizeof(struct sublet_device_work);
	struct soft *soft = p->ops->reserve(p->ctx, bytes);
	if (!soft)
		return -ENOMEM;
	soft->arena = arena;
	soft->memory_bytes = bytes;
	soft->bytes_per_s = o.bytes_per_s;
	soft->delay_ns = o.delay_ns;
	soft->jobs_max = o.jobs_max;
	err = sublet_device_create(arena, &soft_ops, soft, &limits, &soft->device);
	if (err) {
		p->ops->unreserve(p->ctx, soft, bytes);
		return err;
	}
	struct sublet_device *device = soft->device;
	err = sublet__linux_thread_start(&soft->thread, "sublet-soft", soft_main, soft);
	soft->has_thread = !err;
	if (!err && o.collapse_bytes_per_s)
		err = sublet__collapser_start(&soft->collapser, device, o.collapse_bytes_per_s);
	if (err)
		sublet_device_close(device);
	else
		*out = device;
	return err;
}

int sublet_device_soft_fault(struct sublet_device *device, enum sublet_soft_fault fault)
{
	int err = call_device(device);

	if (err)
		return err;
	if (device->ops.submit != soft_submit || (unsigned int)fault < SUBLET_SOFT_HANG ||
	    (unsigned int)fault > SUBLET_SOFT_DIE)
		return -EINVAL;
	struct soft *soft = device->ctx;
	engine_lock(soft->arena, &soft->lock);
	soft->fault = fault;
	engine_unlock(soft->arena, &soft->lock);
	return 0;
}
