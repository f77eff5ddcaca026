/* SPDX-License-Identifier: MIT */
/*
 * Buffer objects: made, ended, listed. What gives them a translation is core/bind.c.
 *
 * A slot of the table is FREE, MAKING, LIVE, GOING. A handle leads to a LIVE one only, and carries the slot's generation, so
 * a handle that was destroyed leads nowhere even when the slot is in use again. MAKING and GOING are for what must be
 * done without the device's lock: pinning, and adding and removing the notifier, which wait for moves and callbacks.
 */
#include "core/device.h"

#include <errno.h>

#define PAGE_MASK       (SUBLET_IOPT_PAGE_BYTES - 1)
#define EXTENTS_AT_ONCE 32

struct sublet__bo *sublet__bo_find(struct sublet_device *device, uint64_t id)
{
	uint32_t slot = (uint32_t)id - 1;

	if (slot >= device->limits.bos_max || device->bo[slot].generation != id >> 32 ||
	    device->bo[slot].state != BO_LIVE)
		return NULL;
	return &device->bo[slot];
}

/* ---- making ---- */

/* Take a slot for a bo that looks like `plan`. -ENODEV, -ENOSPC */
static int bo_take(struct sublet_device *device, const struct sublet__bo *plan, const char *owner,
		   struct sublet__bo **out)
{
	int err = -ENOSPC;

	device_lock(device);
	if (device->is_dead) {
		err = -ENODEV;
	} else if (device->bo_free != ENGINE_NONE) {
		struct sublet__bo *bo = &device->bo[device->bo_free];
		uint32_t generation = bo->generation;
		device->bo_free = bo->next_free;
		*bo = *plan;
		bo->device = device;
		bo->generation = generation;
		bo->state = BO_MAKING;
		bo->since_ns = engine_now(device->arena);
		sublet__owner_copy(bo->owner, owner);
		*out = bo;
		err = 0;
	}
	device_unlock(device);
	return err;
}

static void bo_free(struct sublet__bo *bo)
{
	struct sublet_device *device = bo->device;

	device_lock(device);
	bo->state = BO_FREE;
	bo->generation++;
	bo->next_free = device->bo_free;
	device->bo_free = bo_slot(bo);
	device_unlock(device);
}

static void bo_publish(struct sublet__bo *bo, struct sublet_bo *handle)
{
	struct sublet_device *device = bo->device;

	device_lock(device);
	bo->state = BO_LIVE;
	uint64_t id = bo_id(bo);
	device_unlock(device);
	*handle = (struct sublet_bo){ device, id };
}

/* What a claim names when the notifier declined: "device:owner", cut to what fits. */
static void tag_make(char tag[SUBLET_OWNER_BYTES], const char *device, const char *owner)
{
	size_t at = 0;

	for (; *device && at + 1 < SUBLET_OWNER_BYTES; at++)
		tag[at] = *device++;
	if (at + 1 < SUBLET_OWNER_BYTES)
		tag[at++] = ':';
	for (; *owner && at + 1 < SUBLET_OWNER_BYTES; at++)
		tag[at] = *owner++;
	tag[at] = 0;
}

/* The device is told nothing yet; what holds the memory, or watches it. */
static int bo_secure(struct sublet__bo *bo)
{
	void *pages = (void *)(uintptr_t)bo->base;
	char tag[SUBLET_OWNER_BYTES];
	uint32_t access = SUBLET_PIN_READ | ((bo->flags & SUBLET_BO_READONLY) ? 0 : SUBLET_PIN_WRITE);

	if (bo->flags & SUBLET_BO_PINNED)
		return sublet_pin(bo->mm, pages, bo->span, access | SUBLET_PIN_LONGTERM, bo->owner, &bo->pin);
	tag_make(tag, bo->device->name, bo->owner);
	return sublet_notifier_add(bo->mm, pages, bo->span, &sublet__bo_notifier_ops, bo, tag, &bo->notifier);
}

int sublet_bo_create(struct sublet_device *device, struct sublet_mm *mm, void *addr, uint64_t bytes,
		     uint32_t flags, const char *owner, struct sublet_bo *handle)
{
	uint32_t kind = flags & (SUBLET_BO_TRACKED | SUBLET_BO_PINNED), vpn, pages;
	uint64_t at = (uint64_t)(uintptr_t)addr;
	struct sublet__bo *bo;
	int err = mm && handle ? call_device(device) : -EINVAL;

	if (err)
		return err;
	if ((flags & ~(kind | SUBLET_BO_READONLY)) ||
	    (kind != SUBLET_BO_TRACKED && kind != SUBLET_BO_PINNED) || mm->arena != device->arena ||
	    (at & (device->limits.align_bytes - 1)) || sublet__mm_range(mm, addr, bytes, &vpn, &pages))
		return -EINVAL;
	struct sublet__bo plan = {
		.flags = flags,
		.mm = mm,
		.addr = at,
		.bytes = bytes,
		.base = at & ~PAGE_MASK,
		.span = ((at + bytes + PAGE_MASK) & ~PAGE_MASK) - (at & ~PAGE_MASK),
	};
	plan.is_bound = kind == SUBLET_BO_PINNED && device_has(device, SUBLET_DEVICE_REGISTERED);
	if (plan.span > device->limits.bo_bytes_max && !plan.is_bound)
		return -E2BIG;
	err = bo_take(device, &plan, owner ? owner : "bo", &bo);
	if (err)
		return err;
	err = bo_secure(bo);
	if (err)
		bo_free(bo);
	else
		bo_publish(bo, handle);
	return err;
}

int sublet_bo_create_claim(struct sublet_device *device, const struct sublet_claim *claim, uint32_t flags,
			   const char *owner, struct sublet_bo *handle)
{
	struct sublet__bo *bo;
	int err = claim && handle ? call_device(device) : -EINVAL;

	if (err)
		return err;
	struct sublet__bo plan = { .flags = flags | SUBLET_BO_CLAIMED, .claim_id = claim->id };
	if ((flags & ~(uint32_t)SUBLET_BO_READONLY) ||
	    sublet__claim_hold(device->arena, claim->id, &plan.base, &plan.span))
		return -EINVAL;
	plan.bytes = plan.span;
	plan.addr = (uint64_t)(uintptr_t)device->arena->linear + plan.base;
	plan.is_bound = device_has(device, SUBLET_DEVICE_REGISTERED);
	err = plan.span > device->limits.bo_bytes_max && !plan.is_bound ? -E2BIG : 0;
	if (!err)
		err = bo_take(device, &plan, owner ? owner : "bo", &bo);
	if (err)
		sublet__claim_drop(device->arena, claim->id);
	else
		bo_publish(bo, handle);
	return err;
}

/* ---- ending ---- */

/* Nothing of the device leads to the memory any more: let go of it. */
static void bo_release(struct sublet__bo *bo)
{
	if (bo->flags & SUBLET_BO_PINNED)
		(void)!sublet_unpin(&bo->pin); /* held since it was made */
	else if (bo->flags & SUBLET_BO_CLAIMED)
		sublet__claim_drop(bo->device->arena, bo->claim_id);
}

void sublet__bo_finish(struct sublet__bo *bo)
{
	struct sublet_device *device = bo->device;

	/* The translation goes first: once nobody tells the bo any more, its memory may change at any moment (G4). */
	device_lock(device);
	while (device->is_resetting && !device->iopt) /* one call of the backend at a time */
		sublet__device_wait(device, &device->pulse, UINT64_MAX);
	sublet__bo_unbind(bo);
	device_unlock(device);
	if (bo->flags & SUBLET_BO_TRACKED) /* -EINVAL: its mm has ended, and it is gone */
		(void)!sublet_notifier_remove(&bo->notifier);
	bo_release(bo);
	bo_free(bo);
}

int sublet_bo_destroy(struct sublet_bo *handle)
{
	struct sublet_device *device = handle ? handle->device : NULL;
	int err = call_device(device);

	if (err)
		return err;
	device_lock(device);
	struct sublet__bo *bo = sublet__bo_find(device, handle->id);
	if (!bo) {
		device_unlock(device);
		return -EINVAL;
	}
	bo->state = BO_GOING;
	sublet__device_pulse(device); /* jobs that wait to use it find that it is gone */
	while (bo->jobs > bo->lost)
		sublet__device_wait(device, &device->pulse, UINT64_MAX); /* each to its deadline at most */
	bo->is_abandoned = bo->lost > 0;
	bool is_free = !bo->lost;
	device_unlock(device);
	if (is_free)
		sublet__bo_finish(bo);
	*handle = (struct sublet_bo){ 0 };
	return 0;
}

/* ---- questions ---- */

/* As sublet__bo_find; and one that is being destroyed, as long as a job uses it, for the sake of that. */
static const struct sublet__bo *bo_find_used(struct sublet_device *device, uint64_t id)
{
	uint32_t slot = (uint32_t)id - 1;

	if (slot < device->limits.bos_max && device->bo[slot].generation == id >> 32 &&
	    device->bo[slot].state == BO_GOING && device->bo[slot].jobs)
		return &device->bo[slot];
	return sublet__bo_find(device, id);
}

/* Where its bytes are from from_bytes on; lock held. */
static int extents_of(const struct sublet__bo *bo, uint64_t from_bytes, struct sublet_extent *extent,
		      uint32_t count)
{
	uint64_t left = bo->bytes - from_bytes;
	int n;

	if (!left)
		return 0;
	if (bo->flags & SUBLET_BO_CLAIMED) {
		extent[0] = (struct sublet_extent){ bo->base + from_bytes, left };
		return 1;
	}
	n = sublet_pin_extents(&bo->pin, bo->addr - bo->base + from_bytes, extent, count);
	for (int i = 0; i < n; i++) { /* whole pages are pinned: cut what is beyond its last byte */
		if (extent[i].bytes >= left) {
			extent[i].bytes = left;
			return i + 1;
		}
		left -= extent[i].bytes;
	}
	return n;
}

int sublet_bo_extents(const struct sublet_bo *handle, uint64_t from_bytes, struct sublet_extent *extents,
		      uint32_t count)
{
	struct sublet_extent
		found[EXTENTS_AT_ONCE]; /* the caller's may lie in memory that moves: not under the lock */
	struct sublet_device *device = handle ? handle->device : NULL;
	int n = extents && count ? call_device(device) : -EINVAL;

	if (n)
		return n;
	n = -EINVAL;
	device_lock(device);
	const struct sublet__bo *bo = bo_find_used(device, handle->id);
	if (bo && (bo->flags & SUBLET_BO_TRACKED))
		n = -EOPNOTSUPP;
	else if (bo && from_bytes <= bo->bytes)
		n = extents_of(bo, from_bytes, found, min_u32(count, EXTENTS_AT_ONCE));
	device_unlock(device);
	for (int i = 0; i < n; i++)
		extents[i] = found[i];
	return n;
}

static void bo_describe(const struct sublet__bo *bo, struct sublet_bo_info *info)
{
	const struct sublet_device *device = bo->device;

	*info = (struct sublet_bo_info){
		.addr = bo->addr,
		.bytes = bo->bytes,
		.age_ns = engine_now(device->arena) - bo->since_ns,
		.binds = bo->binds,
		.evictions = bo->evictions,
		.bound_bytes = bo->is_bound ? bo->span : 0,
		.flags = bo->flags,
		.jobs = bo->jobs,
		.mm = bo->mm ? bo->mm->index : 0,
	};
	for (uint32_t i = 0; i < bo->gaps; i++)
		info->bound_bytes -= bo->gap[i].end - bo->gap[i].from;
	sublet__owner_copy(info->owner, bo->owner);
	sublet__owner_copy(info->device, device->name);
}

/* The next live bo of the device at or after *slot; false: no more. */
static bool bo_next(struct sublet_device *device, uint32_t *slot, struct sublet_bo_info *info)
{
	bool found = false;

	device_lock(device);
	for (; *slot < device->limits.bos_max && !found; (*slot)++)
		if (device->bo[*slot].state == BO_LIVE) {
			bo_describe(&device->bo[*slot], info);
			found = true;
		}
	device_unlock(device);
	return found;
}

/* *next: index of the device in its arena, and slot there. */
size_t sublet_bo_list(struct sublet_arena *arena, uint64_t *next, size_t count, struct sublet_bo_info *out)
{
	struct sublet_device *device;
	struct sublet_bo_info info;
	size_t n = 0;

	if (!next || !out || call_arena(arena))
		return 0;
	uint32_t index = (uint32_t)(*next >> 32), slot = (uint32_t)*next;
	while (n < count) {
		uint32_t at = index;
		device = sublet__device_get(arena, &index);
		if (!device)
			break;
		slot = index == at ? slot : 0;
		bool found = bo_next(device, &slot, &info);
		sublet__device_put(device);
		if (found) {
			out[n++] = info;
		} else {
			index++;
			slot = 0;
		}
	}
	*next = (uint64_t)index << 32 | slot;
	return n;
}
