/* SPDX-License-Identifier: MIT */
/*
 * Devices at work: opened and closed, buffers of the three kinds, jobs, fences; and what becomes of them when a device is
 * ill. What a job accesses is checked by the device itself (device.c).
 */
#include "sim.h"

#define BOS (SIM_BOS_MAX * SIM_DEVICES_MAX)

static const char owner[] = "bo";

/* A device that is open, and one user of it more; NULL. */
static struct sim_device *device_get(struct sim *s)
{
	struct sim_device *d = &s->device[sim_below(s, SIM_DEVICES_MAX)];

	if (!d->device || d->is_busy)
		return NULL;
	d->users++;
	return d;
}

static void do_device(struct sim *s)
{
	struct sim_device *d = &s->device[sim_below(s, SIM_DEVICES_MAX)];

	/* Closed with jobs that it still has, what cannot be stopped keeps its memory for ever. */
	if (d->is_busy || d->users || (d->device && (!d->device->is_dead || d->device->running_count)))
		return;
	d->is_busy = true;
	if (!d->device) {
		sim_enter(s, "open device %llu", (uint64_t)(d - s->device), 0, 0);
		int err = sim_leave(s, device_open(s, d));
		if (err && !(err == -ENOMEM && s->faults))
			sim_violation(s, "device: %d", err);
	} else {
		sim_enter(s, "close device %llu, which is dead", d->index, 0, 0);
		device_close(s, d);
		(void)sim_leave(s, 0);
	}
	d->is_busy = false;
}

/* ---- buffers ---- */

static void bo_pin(struct sim *s, struct sim_bo *b, int by)
{
	struct sim_region *r = &s->region[b->region];

	for (uint32_t i = 0; i < b->pages; i++) {
		if (by > 0)
			b->pfn[i] = s->mm[r->mm].page[b->vpn + i].pfn;
		s->held[b->pfn[i]] = (uint8_t)(s->held[b->pfn[i]] + by);
	}
	r->pins += (uint32_t)by;
}

static int bo_make(struct sim *s, struct sim_device *d, struct sim_bo *b, struct sim_region *r,
		   uint32_t flags)
{
	struct sim_range range = range_of(s, r, 1 + sim_below(s, 8));

	b->region = (uint32_t)(r - s->region);
	b->generation = r->generation;
	b->vpn = r->vpn + range.first;
	b->pages = range.pages;
	sim_enter(s,
		  (flags & SUBLET_BO_PINNED) ? "pinned buffer of mm %llu: page %llu, %llu pages"
					     : "tracked buffer of mm %llu: page %llu, %llu pages",
		  r->mm, b->vpn, b->pages);
	int err = sublet_bo_create(d->device, s->mm[r->mm].mm, mm_addr(s, r->mm, b->vpn),
				   (uint64_t)b->pages << s->frame_shift, flags, owner, &b->bo);
	if (!err && (flags & SUBLET_BO_PINNED))
		bo_pin(s, b, 1);
	return sim_leave(s, err);
}

static int bo_make_claim(struct sim *s, struct sim_device *d, struct sim_bo *b)
{
	uint32_t i = sim_below(s, SIM_CLAIMS_MAX);
	struct sim_claim *c = &s->claim[i];

	if (c->is_busy || !c->frames || c->frames > SIM_PIN_PAGES)
		return -EAGAIN;
	c->is_busy = true;
	b->claim = i;
	b->vpn = 0;
	b->pages = c->frames;
	sim_enter(s, "buffer of a claim of %llu frames", c->frames, 0, 0);
	int err = sim_leave(s, sublet_bo_create_claim(d->device, &c->claim, 0, owner, &b->bo));
	c->is_written |= !err;
	b->is_live = !err;
	c->is_busy = false;
	return err;
}

static void do_bo(struct sim *s)
{
	struct sim_device *d = device_get(s);
	struct sim_region *r = d ? region_get(s, true) : NULL;
	struct sim_bo *b = NULL;
	uint32_t kind = sim_below(s, 5);

	for (uint32_t i = 0; d && i < BOS && !b; i++)
		b = s->bo[i].is_live || s->bo[i].is_busy ? NULL : &s->bo[i];
	if (b && r) {
		*b = (struct sim_bo){ .is_busy = true, .device = d->index, .claim = SIM_CLAIMS_MAX };
		b->flags = kind == 0 ? SUBLET_BO_CLAIMED : kind == 1 ? SUBLET_BO_PINNED : SUBLET_BO_TRACKED;
		int err = kind == 0 ? bo_make_claim(s, d, b) : bo_make(s, d, b, r, b->flags);
		b->is_live = !err;
		b->is_busy = false;
		d->users += !err;
		if (err == -EINVAL)
			sim_violation(s, "buffer: %d", err);
	}
	if (r)
		region_put(r);
	if (d)
		d->users--;
}

static void bo_destroy(struct sim *s, struct sim_bo *b)
{
	b->is_busy = true;
	if (b->flags & SUBLET_BO_PINNED)
		bo_pin(s, b, -1);
	sim_enter(s, "destroy buffer %llu of device %llu", (uint64_t)(b - s->bo), b->device, 0);
	if (sim_leave(s, sublet_bo_destroy(&b->bo)))
		sim_violation(s, "a buffer that exists cannot be destroyed");
	b->is_live = b->is_busy = false;
	s->device[b->device].users--;
}

static void do_bo_destroy(struct sim *s)
{
	struct sim_bo *b = &s->bo[sim_below(s, BOS)];

	if (b->is_live && !b->is_busy && !b->users)
		bo_destroy(s, b);
}

/* ---- jobs ---- */

/* Whether the memory of a buffer is still there for it, and stays while it is submitted: one user more of its region. */
static bool bo_get(struct sim *s, struct sim_bo *b)
{
	struct sim_region *r = &s->region[b->region];

	/* Its memory was unmapped: jobs on it must be refused from then on, whatever is mapped there now. */
	if (b->claim == SIM_CLAIMS_MAX && r->generation != b->generation && !r->is_exclusive) {
		r->users++;
		b->users++;
		return true;
	}
	if (b->claim == SIM_CLAIMS_MAX) {
		struct sim_range range = { b->vpn - r->vpn, b->pages };
		if (r->generation != b->generation || r->is_exclusive || r->is_unlocked ||
		    range.first + range.pages > r->pages || !range_is_live(s, r, range))
			return false;
		r->users++;
	}
	b->users++;
	return true;
}

static void bo_put(struct sim *s, struct sim_bo *b)
{
	b->users--;
	if (b->claim == SIM_CLAIMS_MAX)
		s->region[b->region].users--;
}

/* A second buffer of the same device. */
static struct sim_bo *bo_other(struct sim *s, const struct sim_bo *b)
{
	uint32_t first = sim_below(s, BOS);

	for (uint32_t i = 0; i < BOS; i++) {
		struct sim_bo *o = &s->bo[(first + i) % BOS];
		if (o != b && o->is_live && !o->is_busy && o->device == b->device)
			return o;
	}
	return NULL;
}

static bool overlap(struct sim *s, const struct sim_bo *a, const struct sim_bo *b)
{
	return a->claim == b->claim &&
	       (a->claim != SIM_CLAIMS_MAX || s->region[a->region].mm == s->region[b->region].mm) &&
	       a->vpn < b->vpn + b->pages && b->vpn < a->vpn + a->pages;
}

static void fence_keep(struct sim *s, struct sim_actor *a, struct sublet_fence fence, uint32_t device)
{
	for (uint32_t i = 0; i < 2; i++)
		if (!a->fence[i].is_held) {
			a->fence[i].fence = fence;
			a->fence[i].device = device;
			a->fence[i].is_held = true;
			s->device[device].users++;
			return;
		}
	sim_enter(s, "put the fence", 0, 0, 0);
	if (sim_leave(s, sublet_fence_put(&fence)))
		sim_violation(s, "a fence that is held cannot be put");
}

static void submit_answer(struct sim *s, int err)
{
	bool ok = !err || err == -EFAULT || err == -EBUSY || err == -ENOSPC || err == -ETIMEDOUT ||
		  err == -ENODEV || ((err == -ENOMEM || err == -EIO) && s->faults) || err == -EAGAIN;

	sim_answer(s, "submit", err);
	if (!ok)
		sim_violation(s, "submit: %d", err);
}

static struct sublet_job job_make(struct sim *s, uint32_t op, uint32_t pages)
{
	return (struct sublet_job){ SUBLET_OPTIONS(sublet_job), .op = op,
				    .bytes = (uint64_t)pages << s->frame_shift,
				    .pattern = sim_random(s) >> 20 | 1,
				    .timeout_ns = (50 + sim_below(s, 10000)) * SUBLET_US };
}

static void do_submit(struct sim *s, struct sim_actor *a)
{
	struct sim_bo *b[2] = { &s->bo[sim_below(s, BOS)], NULL };
	uint32_t count = 1, pages;

	for (uint32_t i = 0; i < BOS && (!b[0]->is_live || b[0]->is_busy); i++)
		b[0] = &s->bo[(uint32_t)(b[0] - s->bo + 1) % BOS];
	if (!b[0]->is_live || b[0]->is_busy || !bo_get(s, b[0]))
		return;
	b[1] = sim_one_in(s, 2) ? bo_other(s, b[0]) : NULL;
	if (b[1] && (overlap(s, b[0], b[1]) || !bo_get(s, b[1])))
		b[1] = NULL;
	pages = 1 + sim_below(s, b[1] ? min_u32(b[0]->pages, b[1]->pages) : b[0]->pages);
	count += b[1] != NULL;
	struct sublet_job job = job_make(s,
					 b[1]               ? SUBLET_JOB_COPY
					 : sim_one_in(s, 3) ? SUBLET_JOB_SUM
							    : SUBLET_JOB_FILL,
					 pages);
	struct sublet_bo bos[2] = { b[0]->bo };
	for (uint32_t i = 0; i < count; i++) {
		bos[i] = b[i]->bo;
		job.offset_bytes[i] = (uint64_t)sim_below(s, b[i]->pages - pages + 1) << s->frame_shift;
	}
	struct sublet_fence fence;
	struct sim_device *d = &s->device[b[0]->device];
	sim_enter(s, "submit to device %llu: op %llu, %llu pages", d->index, job.op, pages);
	int err = sim_leave(s, sublet_submit(d->device, &job, bos, count, &fence));
	submit_answer(s, err);
	for (uint32_t i = 0; i < count; i++) {
		if (!err && b[i]->claim == SIM_CLAIMS_MAX &&
		    s->region[b[i]->region].generation != b[i]->generation)
			sim_violation(s, "a job on buffer %u, whose memory was unmapped, is taken (G4)",
				      (uint32_t)(b[i] - s->bo));
		bo_put(s, b[i]);
	}
	if (!err)
		fence_keep(s, a, fence, d->index);
}

static void do_submit_range(struct sim *s, struct sim_actor *a)
{
	struct sim_device *d = device_get(s);
	struct sim_region *r = d ? region_get(s, true) : NULL;
	struct sublet_fence fence;

	if (r && !r->may_be_plain) {
		struct sim_range range = range_of(s, r, SIM_PIN_PAGES);
		struct sublet_job job =
			job_make(s, sim_one_in(s, 2) ? SUBLET_JOB_SUM : SUBLET_JOB_FILL, range.pages);
		if (range_is_live(s, r, range)) {
			sim_enter(s, "submit to device %llu: mm %llu page %llu", d->index, r->mm,
				  r->vpn + range.first);
			int err = sim_leave(s, sublet_submit_range(d->device, &job, s->mm[r->mm].mm,
								   mm_addr(s, r->mm, r->vpn + range.first),
								   &fence));
			submit_answer(s, err);
			if (!err)
				fence_keep(s, a, fence, d->index);
		}
	}
	if (r)
		region_put(r);
	if (d)
		d->users--;
}

static void fence_wait(struct sim *s, struct sim_actor *a, uint32_t i, uint64_t timeout_ns)
{
	uint64_t result;
	bool done;

	sim_enter(s, "wait for a fence of device %llu, %llu us", a->fence[i].device, timeout_ns / 1000, 0);
	int err = sim_leave(s, sublet_fence_wait(&a->fence[i].fence, timeout_ns, &done, &result));
	if (!done)
		return;
	sim_answer(s, "fence", err);
	if (err && err != -EIO && err != -ETIMEDOUT && err != -ENODEV && err != -ECANCELED)
		sim_violation(s, "fence: %d", err);
	sim_enter(s, "put the fence", 0, 0, 0);
	if (sim_leave(s, sublet_fence_put(&a->fence[i].fence)))
		sim_violation(s, "a fence that is held cannot be put");
	a->fence[i].is_held = false;
	s->device[a->fence[i].device].users--;
}

void work_device(struct sim *s, struct sim_actor *a, enum sim_op op)
{
	struct sim_device *d;

	if (op == OP_DEVICE) {
		do_device(s);
	} else if (op == OP_BO) {
		do_bo(s);
	} else if (op == OP_BO_DESTROY) {
		do_bo_destroy(s);
	} else if (op == OP_SUBMIT) {
		do_submit(s, a);
	} else if (op == OP_SUBMIT_RANGE) {
		do_submit_range(s, a);
	} else if (op == OP_FENCE) {
		for (uint32_t i = 0; i < 2; i++)
			if (a->fence[i].is_held)
				fence_wait(s, a, i, sim_below(s, 3000) * SUBLET_US);
	} else if ((d = device_get(s)) != NULL) {
		sim_enter(s, "collapse on device %llu", d->index, 0, 0);
		(void)sublet_device_collapse(d->device, (uint64_t)64 << s->frame_shift);
		(void)sim_leave(s, 0);
		cover_event(s, "collapse");
		d->users--;
	}
}

void work_device_end(struct sim *s, struct sim_actor *a)
{
	for (uint32_t i = 0; i < 2; i++)
		for (uint32_t tries = 0; a->fence[i].is_held; tries++) {
			if (tries == 100)
				sim_violation(
					s, "a fence is not done after a hundred times its job's time (G7)");
			fence_wait(s, a, i, 20 * SUBLET_MS);
		}
}

void work_device_close(struct sim *s)
{
	for (uint32_t i = 0; i < BOS; i++)
		if (s->bo[i].is_live)
			bo_destroy(s, &s->bo[i]);
	for (uint32_t i = 0; i < SIM_DEVICES_MAX; i++) {
		struct sim_device *d = &s->device[i];
		if (!d->device)
			continue;
		if (d->users)
			sim_violation(s, "device %u has %u users at the end", i, d->users);
		/* What it had when it could not be stopped it ends some day. */
		for (uint32_t tries = 0; d->unstoppable && d->device->running_count; tries++) {
			if (tries == 1000)
				sim_violation(s, "device %u never ends %u jobs", i, d->device->running_count);
			sim_sleep(s, SUBLET_MS);
		}
		sim_enter(s, "close device %llu", i, 0, 0);
		device_close(s, d);
		(void)sim_leave(s, 0);
	}
}
