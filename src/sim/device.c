/* SPDX-License-Identifier: MIT */
/*
 * Devices of a simulated world. One kind has a page table and a TLB that keeps what it walked until it is told to forget
 * it; the other is told of each buffer, and keeps the frames that it had then, as a kernel's registration does. Each
 * has an engine, a fiber that does one job after the other, a word at a time.
 *
 * An access is a violation unless the frame is the one that the program's page has at this moment, and nobody is
 * moving it (G4). Illnesses come with a job: it is slow, hangs until a reset, fails, or the device dies of it. A
 * reset stops all at once; or fails; or, of a device that cannot be stopped, says so, and the access goes on.
 */
#include "sim.h"

#include <stdlib.h>
#include <string.h>

#define TLB_ENTRIES 1024u

/* ---- what it can reach ---- */

/* The page of a tracked or pinned buffer, or range, that this access is for. */
static struct sim_page *page_of(struct sim *s, const struct sublet_device_buffer *b, uint32_t i, uint32_t *mm,
				uint32_t *vpn)
{
	for (*mm = 0; *mm < s->mms && s->mm[*mm].mm != b->mm; ++*mm)
		;
	*vpn = (uint32_t)(((uint64_t)(uintptr_t)b->addr - s->mm[*mm].base) >> s->frame_shift) + i;
	return &s->mm[*mm].page[*vpn];
}

static uint32_t frame_by_table(struct sim_device *d, const struct sublet_device_buffer *b, uint32_t i,
			       uint32_t flags)
{
	struct sim *s = d->sim;
	uint64_t iova = b->iova + ((uint64_t)i << s->frame_shift), at = iova / SUBLET_IOPT_PAGE_BYTES;
	struct sublet_extent extent;

	int err = sublet_iopt_translate(sublet_device_iopt(d->device), iova, flags, &extent);
	if (err)
		sim_violation(s, "device %u: access to iova %llx: %d (G4)", d->index,
			      (unsigned long long)iova, err);
	if (at >= d->tlb_entries)
		sim_violation(s, "device %u: iova %llx is beyond its aperture", d->index,
			      (unsigned long long)iova);
	if (!d->tlb[at])
		d->tlb[at] = extent.offset_bytes + 1;
	return (uint32_t)((d->tlb[at] - 1) >> s->frame_shift);
}

/* The frame that the device reaches for page i of a buffer. */
static uint32_t frame_of(struct sim_device *d, const struct sim_job *job, uint32_t which, uint32_t i,
			 uint32_t flags)
{
	const struct sublet_device_buffer *b = &job->work.buffer[which];
	struct sim *s = d->sim;

	if (b->slot == UINT32_MAX)
		return job->frame[i];
	if (d->has_iopt)
		return frame_by_table(d, b, i, flags);
	if (!d->slot[b->slot].is_attached)
		sim_violation(s, "device %u uses buffer %u, which is not attached", d->index, b->slot);
	return d->slot[b->slot].frame[(b->offset_bytes >> s->frame_shift) + i];
}

/* What an access needs to be right at this instant. NULL: of a claim. */
static struct sim_page *access_check(struct sim_device *d, const struct sublet_device_buffer *b, uint32_t i,
				     uint32_t pfn)
{
	struct sim *s = d->sim;
	uint32_t mm, vpn;

	if (!b->mm) {
		if (!(s->owner[pfn] & OWNER_CLAIM))
			sim_violation(s, "device %u reaches frame %u, which no claim has", d->index, pfn);
		return NULL;
	}
	struct sim_page *p = page_of(s, b, i, &mm, &vpn);
	if (p->kind != KIND_SHARED || p->pfn != pfn)
		sim_violation(s, "device %u reaches frame %u for mm %u page %u, which is at %u (G4)",
			      d->index, pfn, mm, vpn, p->kind == KIND_SHARED ? p->pfn : UINT32_MAX);
	bool is_moving = (p->blocked && !p->remapped) || (p->tracked && b->is_tracked);
	if (is_moving)
		sim_violation(s, "device %u reaches frame %u for mm %u page %u while it moves (G2, G4)",
			      d->index, pfn, mm, vpn);
	return p;
}

static void put(struct sim_device *d, struct sim_page *p, uint32_t pfn, uint32_t w, uint64_t value)
{
	d->sim->word[pfn][w] = value;
	if (p)
		p->value[w] = value;
}

/* ---- its engine ---- */

struct work_result {
	int status;
	uint64_t result;
};

static bool is_forgotten(const struct sim_device *d, uint32_t generation)
{
	return d->generation != generation || d->is_closed;
}

static void word_do(struct sim_device *d, const struct sim_job *job, uint32_t i, uint32_t w, uint64_t *sum)
{
	struct sim *s = d->sim;
	const struct sublet_device_work *work = &job->work;
	const struct sublet_device_buffer *b = work->buffer;
	uint32_t is_write = work->op == SUBLET_JOB_FILL;
	uint32_t pfn = frame_of(d, job, 0, i, is_write ? SUBLET_IOPT_WRITE : SUBLET_IOPT_READ);
	struct sim_page *p = access_check(d, &b[0], i, pfn);

	*sum += s->word[pfn][w];
	if (is_write)
		put(d, p, pfn, w, work->pattern);
	if (work->op != SUBLET_JOB_COPY)
		return;
	uint32_t to = frame_of(d, job, 1, i, SUBLET_IOPT_WRITE);
	put(d, access_check(d, &b[1], i, to), to, w, s->word[pfn][w]);
}

/* False: a reset came in between, and nobody wants to hear of this job. */
static bool work_do(struct sim_device *d, const struct sim_job *job, uint32_t generation, enum sim_ill ill,
		    struct work_result *r)
{
	struct sim *s = d->sim;
	const struct sublet_device_work *work = &job->work;
	uint32_t pages = (uint32_t)(work->bytes >> s->frame_shift);
	uint64_t sum = 0;

	*r = (struct work_result){ .status = 0 };
	for (uint32_t i = 0; i < pages; i++) {
		if (i == pages / 2 && ill == ILL_ERROR) {
			r->status = -EIO;
			return true;
		}
		for (uint32_t w = 0; w < SIM_WORDS; w++) {
			sim_step(s);
			if (is_forgotten(d, generation))
				return false;
			s->is_quiet = true; /* one instant: a walk, and the access by what it found */
			word_do(d, job, i, w, &sum);
			s->is_quiet = false;
		}
	}
	r->result = work->op == SUBLET_JOB_SUM ? sum : work->bytes;
	return true;
}

static void engine_job(struct sim_fiber *self, struct sim_device *d)
{
	static const char *const events[ILLS] = { "device: job done", "device: slow", "device: hangs",
						  "device: job fails", "device: dies" };
	struct sim *s = d->sim;
	const struct sim_job job = d->queue[0];
	uint32_t generation = d->generation;
	enum sim_ill ill = !s->no_faults && sim_one_in(s, 6) ? (enum sim_ill)(1 + sim_below(s, ILLS - 1))
							     : ILL_NOT;
	struct work_result r;

	if (ill == ILL_DIE && !sim_one_in(s, 4))
		ill = ILL_NOT;
	for (uint32_t i = 1; i < d->queued; i++)
		d->queue[i - 1] = d->queue[i];
	d->queued--;
	d->job = job;
	d->is_working = true;
	cover_event(s, events[ill]);
	sim_trace(s, "device %llu begins job %llu: op %llu, illness %llu", d->index, job.work.id, job.work.op,
		  ill);
	if (ill == ILL_SLOW)
		sim_sleep(s, sim_below(s, 3000) * SUBLET_US);
	for (uint32_t waits = 0;
	     ill == ILL_HANG && !is_forgotten(d, generation) && !(d->unstoppable && waits > 100); waits++)
		sim_sleep(s, SUBLET_MS);
	if (is_forgotten(d, generation) || !work_do(d, &job, generation, ill, &r))
		return;
	self->depth++;
	self->op_since_ns = s->now_ns;
	self->op_since_step = s->steps;
	if (ill == ILL_DIE) {
		d->generation++; /* from here on it accesses nothing, and takes nothing */
		d->has_died = true;
		d->queued = 0;
		sublet_device_died(d->device);
	} else {
		sublet_device_complete(d->device, job.work.id, r.status, r.result);
	}
	self->depth--;
	sim_trace(s, "device %llu ended job %llu: %llu", d->index, job.work.id, (uint64_t)(int64_t)r.status,
		  0);
}

static void engine_main(struct sim_fiber *self, void *arg)
{
	struct sim_device *d = arg;
	struct sim *s = d->sim;

	self->op = "device's engine";
	while (!d->is_closed) {
		uint32_t signal = d->signal;
		if (d->queued)
			engine_job(self, d);
		else
			sim_park(s, &d->signal, signal, UINT64_MAX);
		d->is_working = false;
	}
	d->has_engine = false;
}

static bool job_uses(const struct sim *s, const struct sim_job *job, uint32_t mm, uint32_t vpn,
		     uint32_t pages)
{
	uint64_t from = s->mm[mm].base + ((uint64_t)vpn << s->frame_shift);
	uint64_t end = from + ((uint64_t)pages << s->frame_shift);

	for (uint32_t i = 0; i < 1 + (job->work.op == SUBLET_JOB_COPY); i++) {
		uint64_t addr = (uint64_t)(uintptr_t)job->work.buffer[i].addr;
		if (job->work.buffer[i].mm == s->mm[mm].mm && addr < end && addr + job->work.bytes > from)
			return true;
	}
	return false;
}

bool device_uses(const struct sim *s, uint32_t mm, uint32_t vpn, uint32_t pages)
{
	for (uint32_t n = 0; n < SIM_DEVICES_MAX; n++) {
		const struct sim_device *d = &s->device[n];
		if (d->is_working && job_uses(s, &d->job, mm, vpn, pages))
			return true;
		for (uint32_t i = 0; i < d->queued; i++)
			if (job_uses(s, &d->queue[i], mm, vpn, pages))
				return true;
	}
	return false;
}

static void engine_signal(struct sim_device *d)
{
	d->signal++;
	sim_unpark(d->sim, &d->signal, 1);
}

/* ---- ops ---- */

static void call_begin(struct sim_device *d, const char *what)
{
	if (d->in_call++)
		sim_violation(d->sim, "device %u: %s during another call", d->index, what);
}

static int op_submit(void *ctx, const struct sublet_device_work *work)
{
	struct sim_device *d = ctx;
	struct sim *s = d->sim;
	uint32_t mm, vpn;

	sim_step(s);
	if (d->in_reset)
		sim_violation(s, "device %u: submit during a reset", d->index);
	int err = d->has_died ? -ENODEV : sim_fault(s, CALL_SUBMIT);
	if (err)
		return err;
	if (d->queued == SIM_JOBS_MAX)
		sim_violation(s, "device %u: more jobs than it takes", d->index);
	struct sim_job *job = &d->queue[d->queued++];
	job->work = *work;
	/* A range is pinned by now: these are its frames until the job is done. */
	for (uint32_t i = 0; work->buffer[0].slot == UINT32_MAX && i < work->bytes >> s->frame_shift; i++)
		job->frame[i] = page_of(s, &work->buffer[0], i, &mm, &vpn)->pfn;
	engine_signal(d);
	return 0;
}

static void op_flush(void *ctx, uint64_t iova, uint64_t bytes)
{
	struct sim_device *d = ctx;

	sim_step(d->sim);
	for (uint64_t at = iova; at < iova + bytes && at / SUBLET_IOPT_PAGE_BYTES < d->tlb_entries;
	     at += SUBLET_IOPT_PAGE_BYTES)
		d->tlb[at / SUBLET_IOPT_PAGE_BYTES] = 0;
}

static int op_attach(void *ctx, uint32_t slot, void *addr, uint64_t bytes)
{
	struct sim_device *d = ctx;
	struct sim *s = d->sim;
	uint32_t mm, vpn;

	call_begin(d, "attach");
	sim_step(s);
	int err = sim_fault(s, CALL_ATTACH);
	if (!err && d->slot[slot].is_attached)
		sim_violation(s, "device %u: buffer %u is attached twice", d->index, slot);
	struct sublet_device_buffer b = { .addr = addr };
	for (uint32_t i = 0; !err && i < s->mms; i++)
		if (sublet__mm_contains(s->mm[i].mm, addr, 1))
			b.mm = s->mm[i].mm;
	uint32_t claimed = (uint32_t)(((uint64_t)(uintptr_t)addr - SIM_LINEAR) >> s->frame_shift);
	for (uint32_t i = 0; !err && i < bytes >> s->frame_shift; i++)
		d->slot[slot].frame[i] = b.mm ? page_of(s, &b, i, &mm, &vpn)->pfn : claimed + i;
	d->slot[slot].is_attached |= !err;
	d->in_call--;
	return err;
}

static void op_detach(void *ctx, uint32_t slot)
{
	struct sim_device *d = ctx;

	call_begin(d, "detach");
	sim_step(d->sim);
	if (!d->slot[slot].is_attached)
		sim_violation(d->sim, "device %u: buffer %u is detached, but not attached", d->index, slot);
	d->slot[slot].is_attached = false;
	d->in_call--;
}

static int op_reset(void *ctx)
{
	struct sim_device *d = ctx;
	struct sim *s = d->sim;

	call_begin(d, "reset");
	d->in_reset++;
	sim_trace(s, "device %llu is reset", d->index, 0, 0, 0);
	sim_step(s);
	int err = d->unstoppable ? -EINPROGRESS : d->reset_fails ? -EIO : 0;
	if (err != -EINPROGRESS) {
		d->generation++;
		d->queued = 0;
		engine_signal(d);
	}
	sim_step(s);
	cover_event(s, !err          ? "device: reset"
		       : err == -EIO ? "device: reset fails"
				     : "device: cannot be stopped");
	d->in_reset--;
	d->in_call--;
	return err;
}

static void op_close(void *ctx)
{
	struct sim_device *d = ctx;

	call_begin(d, "close");
	for (uint32_t i = 0; i < SIM_BOS_MAX; i++)
		if (d->slot[i].is_attached)
			sim_violation(d->sim, "device %u is closed with buffer %u attached", d->index, i);
	d->is_closed = true;
	engine_signal(d);
	while (d->has_engine) /* it may be on its way out of sublet_device_complete */
		sim_sleep(d->sim, 10 * SUBLET_US);
	check_touched(d->sim);
	cover_transition(d->sim, COVER_DEVICE, d->state, DEVICE_NONE);
	d->device = NULL; /* nothing of it is looked at from here on */
	d->in_call--;
}

static void op_count(void *ctx, struct sublet_device_info *info)
{
	struct sim_device *d = ctx;

	call_begin(d, "count");
	info->bad_accesses = 0;
	d->in_call--;
}

/* ---- open, close, check ---- */

int device_open(struct sim *s, struct sim_device *d)
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
	uint32_t index = (uint32_t)(d - s->device);
	uint64_t *tlb = calloc(TLB_ENTRIES, sizeof *tlb);

	if (!tlb)
		sim_violation(s, "no memory for a TLB");
	*d = (struct sim_device){
		.sim = s, .index = index, .is_busy = true, .tlb = tlb, .tlb_entries = TLB_ENTRIES
	};
	d->has_iopt = !sim_one_in(s, 3);
	d->unstoppable = !s->no_faults && sim_one_in(s, 4);
	d->reset_fails = !s->no_faults && sim_one_in(s, 8);
	struct sublet_device_limits limits = {
		SUBLET_OPTIONS(sublet_device_limits),
		.name = "sim",
		.features = SUBLET_DEVICE_COPY | SUBLET_DEVICE_RANGES |
			    (d->has_iopt ? SUBLET_DEVICE_IOPT : 0),
		.bos_max = SIM_BOS_MAX,
		.jobs_max = 1 + sim_below(s, SIM_JOBS_MAX),
		.align_bytes = 1,
		.job_bytes_max = SUBLET_GIB,
		.bo_bytes_max = SUBLET_GIB,
		/* small: buffers push each other out */
		.aperture_bytes = d->has_iopt ? ((uint64_t)16 << s->frame_shift) + SUBLET_IOPT_PAGE_BYTES : 0,
	};
	int err = sublet_device_create(s->arena, &ops, d, &limits, &d->device);
	d->has_engine = !err;
	if (!err) {
		d->state = DEVICE_WORKS;
		cover_transition(s, COVER_DEVICE, DEVICE_NONE, DEVICE_WORKS);
	}
	if (!err && !sched_spawn(s, "engine", index, true, engine_main, d))
		sim_violation(s, "no fiber for a device");
	if (err) {
		free(tlb);
		*d = (struct sim_device){ .sim = s, .index = index, .is_busy = true };
	}
	return err;
}

void device_close(struct sim *s, struct sim_device *d)
{
	sublet_device_close(d->device);
	if (!d->is_closed)
		sim_violation(s, "device %u is closed, and was not told", d->index);
	free(d->tlb);
	d->tlb = NULL;
}

static void bo_frames_check(struct sim_device *d, const struct sublet__bo *bo, uint32_t i, uint32_t mm,
			    uint32_t vpn, const char *what)
{
	struct sim *s = d->sim;
	struct sublet_extent extent;
	uint64_t offset = ((uint64_t)(vpn) << s->frame_shift) + s->mm[mm].base - bo->base;

	if (!d->has_iopt) {
		if (d->slot[i].is_attached)
			sim_violation(s, "%s of mm %u page %u while device %u has buffer %u attached (G4)",
				      what, mm, vpn, d->index, i);
		return;
	}
	s->is_quiet = true;
	int err = sublet_iopt_translate(d->device->iopt, bo->iova + offset, 0, &extent);
	s->is_quiet = false;
	if (!err)
		sim_violation(s, "%s of mm %u page %u while device %u translates it to frame %u (G4)", what,
			      mm, vpn, d->index, (uint32_t)(extent.offset_bytes >> s->frame_shift));
}

void device_frames_check(struct sim *s, uint32_t mm, uint32_t vpn, uint32_t pages, const char *what)
{
	for (uint32_t n = 0; n < SIM_DEVICES_MAX; n++) {
		struct sim_device *d = &s->device[n];
		for (uint32_t i = 0; d->device && i < SIM_BOS_MAX; i++) {
			const struct sublet__bo *bo = &d->device->bo[i];
			if (bo->state == BO_FREE || !bo->is_bound || bo->mm != s->mm[mm].mm)
				continue;
			for (uint32_t at = vpn; at < vpn + pages; at++) {
				uint64_t addr = s->mm[mm].base + ((uint64_t)at << s->frame_shift);
				if (addr >= bo->base && addr < bo->base + bo->span)
					bo_frames_check(d, bo, i, mm, at, what);
			}
		}
	}
	for (uint32_t n = 0; n < SIM_DRIVERS_MAX; n++) {
		const struct sim_driver *d = &s->driver[n];
		for (uint32_t i = 0; d->is_registered && d->mm == mm && i < d->pages; i++)
			if (d->frame[i] && d->vpn + i - vpn < pages)
				sim_violation(s,
					      "%s of mm %u page %u while driver %u keeps frame %u of it (G4)",
					      what, mm, d->vpn + i, n, d->frame[i] - 1);
	}
}
