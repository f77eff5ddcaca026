/* SPDX-License-Identifier: MIT */
/*
 * Birth and death of a device; waiting for it, and what happens when it does not answer.
 *
 * Nobody waits for a device for ever (G7, G11). Each job has a deadline. Whoever waits, for a fence, for room, for a
 * buffer to fall idle, sleeps until the earliest deadline at most, and then resets the device himself:
 *
 *   resetting set        no job is submitted from here on
 *   submitting falls to 0: the backend knows every job that is in flight
 *   ops.reset            without the lock; the backend stops
 *   fail what is left    a completion that comes later names a job that is gone: ignored, ids carry a generation
 *   resetting clear
 *
 * One thread resets at a time; the others wait for it as for anything else. A device that cannot be reset is dead: it has
 * no jobs and no translations, and refuses new ones. Some cannot even be stopped (a disk that has a request may write to
 * memory minutes later): their jobs are lost. They have failed for whoever waits, but the memory stays theirs, under the
 * owner's name: it does not move, is not unmapped, stays pinned or claimed, until the device says that it is done, with
 * the job or with everything (G11).
 */
#include "core/device.h"

#include <errno.h>
#include <string.h>

#define BOS_MAX  (1u << 20)
#define JOBS_MAX (1u << 16)

/* ---- waiting ---- */

void sublet__device_pulse(struct sublet_device *device)
{
	const struct sublet__platform *p = &device->arena->platform;

	/* release: pairs with the load in sublet__device_wait; both are made under the lock, and park compares again */
	a32_store_release(&device->pulse, a32_load_relaxed(&device->pulse) + 1);
	if (device->waiters)
		p->ops->unpark(p->ctx, &device->pulse, UINT32_MAX);
}

static uint64_t deadline_first(const struct sublet_device *device)
{
	uint64_t first = UINT64_MAX;

	for (uint32_t i = 0; i < device->running_count; i++) {
		const struct sublet__job *job = &device->job[device->running[i]];
		if (job->state == JOB_RUNNING && job->deadline_ns < first)
			first = job->deadline_ns;
	}
	return first;
}

/* Lock held, dropped meanwhile; see the essay. */
static void device_reset(struct sublet_device *device)
{
	device->is_resetting = true;
	while (device->submitting) /* each is a call of the backend that only starts a job */
		sublet__device_wait(device, &device->pulse, UINT64_MAX);
	device_unlock(device);
	int err = device->ops.reset(device->ctx);
	device_lock(device);
	device->count.resets++;
	device->is_dead |= err < 0;
	sublet__jobs_fail(device, err != -EINPROGRESS || device->has_died);
	if (device->is_dead)
		sublet__device_unbind_all(device);
	device->is_resetting = false;
	sublet__device_pulse(device);
}

void sublet__device_wait(struct sublet_device *device, const sublet__a32 *word, uint64_t until_ns)
{
	const struct sublet__platform *p = &device->arena->platform;
	uint64_t now = engine_now(device->arena), wake_ns = until_ns;

	if (!device->is_resetting && !device->is_dead) { /* else its end is what to wait for */
		uint64_t deadline_ns = deadline_first(device);
		if (deadline_ns <= now) {
			device_reset(device);
			return;
		}
		wake_ns = deadline_ns < until_ns ? deadline_ns : until_ns;
	}
	if (wake_ns <= now)
		return;
	uint32_t expected = a32_load_acquire(word); /* pairs with whoever changes it, under the lock */
	device->waiters++;
	device_unlock(device);
	p->ops->park(p->ctx, word, expected, wake_ns == UINT64_MAX ? UINT64_MAX : wake_ns - now);
	device_lock(device);
	device->waiters--;
}

void sublet__devices_check(struct sublet_arena *arena)
{
	struct sublet_device *device;

	for (uint32_t i = 0; (device = sublet__device_get(arena, &i)) != NULL; i++) {
		device_lock(device);
		if (!device->is_resetting && !device->is_dead && deadline_first(device) <= engine_now(arena))
			device_reset(device);
		device_unlock(device);
		sublet__device_put(device);
	}
}

void sublet_device_died(struct sublet_device *device)
{
	if (call_device(device))
		return;
	device_lock(device);
	device->is_dead = device->has_died = true;
	/* Who is resetting it finds it dead, and does the rest: no two calls of the backend at once. */
	if (!device->is_resetting) {
		sublet__jobs_fail(device, true);
		sublet__device_unbind_all(device);
	}
	sublet__device_pulse(device);
	device_unlock(device);
}

/* ---- the list of the arena ---- */

struct sublet_device *sublet__device_get(struct sublet_arena *arena, uint32_t *index)
{
	struct sublet_device *device = NULL;

	engine_lock(arena, &arena->device_lock);
	while (*index < ENGINE_DEVICES_MAX && !(device = arena->device[*index]))
		(*index)++;
	if (device)
		device->users++;
	engine_unlock(arena, &arena->device_lock);
	return device;
}

void sublet__device_put(struct sublet_device *device)
{
	engine_lock(device->arena, &device->arena->device_lock);
	device->users--;
	engine_unlock(device->arena, &device->arena->device_lock);
}

static int list_add(struct sublet_device *device)
{
	struct sublet_arena *arena = device->arena;
	int err = -ENOSPC;

	engine_lock(arena, &arena->device_lock);
	for (uint32_t i = 0; i < ENGINE_DEVICES_MAX && err; i++)
		if (!arena->device[i]) {
			arena->device[i] = device;
			err = 0;
		}
	engine_unlock(arena, &arena->device_lock);
	return err;
}

/* Out of the list, and nobody who found it there has it in hand any more: what they do is bounded (G7). */
static void list_remove(struct sublet_device *device)
{
	struct sublet_arena *arena = device->arena;
	const struct sublet__platform *p = &arena->platform;

	engine_lock(arena, &arena->device_lock);
	for (uint32_t i = 0; i < ENGINE_DEVICES_MAX; i++)
		if (arena->device[i] == device)
			arena->device[i] = NULL;
	while (device->users) {
		engine_unlock(arena, &arena->device_lock);
		p->ops->sleep_ns(p->ctx, 10 * SUBLET_US);
		engine_lock(arena, &arena->device_lock);
	}
	engine_unlock(arena, &arena->device_lock);
}

/* ---- create, close ---- */

static bool ops_make_sense(const struct sublet_device_ops *ops, const struct sublet_device_limits *limits)
{
	bool has_iopt = limits->features & SUBLET_DEVICE_IOPT;

	return ops->submit && ops->reset && ops->close && (has_iopt || (ops->attach && ops->detach));
}

static bool limits_make_sense(const struct sublet_device_limits *l)
{
	const uint32_t known = SUBLET_DEVICE_IOPT | SUBLET_DEVICE_COPY | SUBLET_DEVICE_FILES |
			       SUBLET_DEVICE_REGISTERED | SUBLET_DEVICE_RANGES;
	bool has_iopt = l->features & SUBLET_DEVICE_IOPT;

	return !(l->features & ~known) && l->bos_max && l->bos_max <= BOS_MAX && l->jobs_max &&
	       l->jobs_max <= JOBS_MAX && l->align_bytes && l->align_bytes <= DEVICE_ALIGN_MAX &&
	       !(l->align_bytes & (l->align_bytes - 1)) && l->job_bytes_max && l->bo_bytes_max &&
	       has_iopt == (l->aperture_bytes != 0) && (has_iopt || !l->aperture_first_bytes) &&
	       !(has_iopt && (l->features & SUBLET_DEVICE_REGISTERED));
}

/* What the device takes in one buffer; no more than its aperture has room for, in which iova 0 is nobody's. */
static uint64_t bo_bytes_most(const struct sublet_device_limits *l)
{
	uint64_t nobodys = l->aperture_first_bytes ? 0 : SUBLET_IOPT_PAGE_BYTES;
	bool has_room = l->aperture_bytes >= SUBLET_IOPT_PAGE_BYTES; /* else there is no such table */
	uint64_t room = has_room ? l->aperture_bytes - nobodys : UINT64_MAX;

	return l->bo_bytes_max < room ? l->bo_bytes_max : room;
}

/* Lay out the tables behind the device; returns the size of all of it. */
static size_t device_lay(struct sublet_device *device, char *base)
{
	size_t bo_at = (sizeof *device + 63) & ~(size_t)63;
	size_t job_at = bo_at + (size_t)device->limits.bos_max * sizeof *device->bo;
	size_t running_at = job_at + (size_t)device->jobs * sizeof *device->job;

	if (base) {
		device->bo = (struct sublet__bo *)(void *)(base + bo_at);
		device->job = (struct sublet__job *)(void *)(base + job_at);
		device->running = (uint32_t *)(void *)(base + running_at);
	}
	return running_at + (size_t)device->limits.jobs_max * sizeof *device->running;
}

static void tables_init(struct sublet_device *device)
{
	device->bo_free = device->job_free = 0;
	device->lru_head = device->lru_tail = ENGINE_NONE;
	for (uint32_t i = 0; i < device->limits.bos_max; i++) {
		device->bo[i].device = device;
		device->bo[i].next_free = i + 1 < device->limits.bos_max ? i + 1 : ENGINE_NONE;
	}
	for (uint32_t i = 0; i < device->jobs; i++)
		device->job[i].next_free = i + 1 < device->jobs ? i + 1 : ENGINE_NONE;
}

static int iopt_make(struct sublet_device *device)
{
	struct sublet_iopt_options options = {
		SUBLET_OPTIONS(sublet_iopt_options),
		.first_bytes = device->limits.aperture_first_bytes,
		.aperture_bytes = device->limits.aperture_bytes,
		.mappings_max = device->limits.bos_max,
		.large_disabled = device->limits.large_disabled,
		.flush = device->ops.flush,
		.ctx = device->ctx,
	};
	return device_has(device, SUBLET_DEVICE_IOPT)
		       ? sublet_iopt_create(device->arena, &options, &device->iopt)
		       : 0;
}

static void device_free(struct sublet_device *device)
{
	const struct sublet__platform *p = &device->arena->platform;

	sublet_iopt_destroy(device->iopt);
	p->ops->unreserve(p->ctx, device, device->memory_bytes);
}

int sublet_device_create(struct sublet_arena *arena, const struct sublet_device_ops *ops, void *ctx,
			 const struct sublet_device_limits *limits, struct sublet_device **out)
{
	struct sublet_device plan = { .arena = arena, .ctx = ctx };
	int err = out ? call_arena(arena) : -EINVAL;

	if (!err)
		err = sublet__struct_in(&plan.limits, sizeof plan.limits, limits, FIRST_DEVICE_LIMITS);
	if (!err)
		err = sublet__struct_in(&plan.ops, sizeof plan.ops, ops, FIRST_DEVICE_OPS);
	if (err)
		return err;
	if (!limits_make_sense(&plan.limits) || !ops_make_sense(&plan.ops, &plan.limits))
		return -EINVAL;
	const struct sublet__platform *p = &arena->platform;
	plan.limits.bo_bytes_max = bo_bytes_most(&plan.limits);
	plan.jobs = plan.limits.jobs_max + DEVICE_FENCES_SPARE;
	plan.memory_bytes = device_lay(&plan, NULL);
	char *memory = p->ops->reserve(p->ctx, plan.memory_bytes);
	if (!memory)
		return -ENOMEM;
	struct sublet_device *device = (struct sublet_device *)(void *)memory;
	memcpy(device, &plan, sizeof plan);
	device_lay(device, memory);
	sublet__owner_copy(device->name, plan.limits.name ? plan.limits.name : "device");
	device->limits.name = device->name;
	tables_init(device);
	err = iopt_make(device);
	if (!err)
		err = list_add(device);
	if (err) {
		device_free(device);
		return err;
	}
	*out = device;
	return 0;
}

void sublet_device_close(struct sublet_device *device)
{
	if (call_device(device))
		return;
	list_remove(device);
	device_lock(device);
	device->is_closing = true;
	while (device->running_count > device->lost_count || device->submitting)
		sublet__device_wait(device, &device->pulse, UINT64_MAX);
	device_unlock(device);
	for (uint32_t i = 0; i < device->limits.bos_max; i++) {
		struct sublet_bo bo = { .device = device, .id = bo_id(&device->bo[i]) };
		(void)!sublet_bo_destroy(&bo); /* -EINVAL: the slot is free */
	}
	device->ops.close(device->ctx);
	/* With lost jobs its tables live on: notifiers lead there, and hold what the device may still access. */
	if (device->lost_count)
		a32_add_relaxed(&device->arena->devices_lost, 1);
	else
		device_free(device);
}

/* ---- questions ---- */

struct sublet_iopt *sublet_device_iopt(struct sublet_device *device)
{
	return device ? device->iopt : NULL;
}

int sublet_device_info(struct sublet_device *device, struct sublet_device_info *info)
{
	struct sublet_device_info all;
	int err = call_device(device);

	if (!err)
		err = sublet__struct_out_check(info, FIRST_DEVICE_INFO);
	if (err)
		return err;
	const struct sublet_device_limits *l = &device->limits;
	device_lock(device);
	while (device->is_resetting) /* the backend is asked too, one call at a time */
		sublet__device_wait(device, &device->pulse, UINT64_MAX);
	all = device->count;
	all.dead = device->is_dead;
	if (device->ops.count)
		device->ops.count(device->ctx, &all);
	device_unlock(device);
	memcpy(all.name, device->name, sizeof all.name);
	all.features = l->features;
	all.bos_max = l->bos_max;
	all.jobs_max = l->jobs_max;
	all.align_bytes = l->align_bytes;
	all.job_bytes_max = l->job_bytes_max;
	all.bo_bytes_max = l->bo_bytes_max;
	all.aperture_bytes = l->aperture_bytes;
	all.iopt = (struct sublet_iopt_stats){ SUBLET_OPTIONS(sublet_iopt_stats) };
	if (device->iopt && sublet_iopt_stats(device->iopt, &all.iopt))
		return -EINVAL;
	sublet__struct_out(info, &all, sizeof all);
	return 0;
}
