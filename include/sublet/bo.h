/* SPDX-License-Identifier: MIT */
/*
 * sublet/bo.h: buffer objects, a device's view of some range. Three kinds, three contracts:
 *
 *   claimed   over a claim. Contiguous, never moves, never evicted.
 *   pinned    over movable memory, under a long-term pin: out of the area, never moves, counted against the limit.
 *   tracked   over movable memory, without a pin. The memory may move at any time: then the buffer is evicted (no new
 *             work, wait for what is in flight, unmap, flush), and bound again by the next job that uses it.
 *
 * A move that meets a tracked buffer in use does not wait with the memory locked: it backs off, holds new jobs of
 * that buffer off for a while, and comes back, as it does for a short pin. Unmapping the memory waits, bounded by the
 * timeouts of the jobs in flight, and so does meanwhile who maps, unmaps, forks or pins in the same 2 MiB
 * (sublet/map.h, sublet/pin.h); claims and long-term pins keep to their own deadlines.
 */
#ifndef SUBLET_BO_H
#define SUBLET_BO_H

#include <sublet/claim.h>
#include <sublet/device.h>

#ifdef __cplusplus
extern "C" {
#endif

enum sublet_bo_flags {
	SUBLET_BO_TRACKED = 1u << 0,
	SUBLET_BO_PINNED = 1u << 1,
	SUBLET_BO_CLAIMED = 1u << 2,  /* only reported */
	SUBLET_BO_READONLY = 1u << 3, /* the device may not write */
};

/*
 * A buffer over [addr, addr + bytes) of an mm: flags has SUBLET_BO_TRACKED or SUBLET_BO_PINNED. The device is given
 * whole pages, so it can reach up to a page beyond both ends. owner (NULL: "bo") is copied.
 * A tracked buffer is not bound before its first job; its memory need not be mapped before that.
 * -EINVAL   range or flags make no sense; the device wants another alignment
 * -E2BIG    more than the device takes in one buffer (pinned and claimed ones: unless SUBLET_DEVICE_REGISTERED)
 * -ENOSPC   too many buffers
 * -ENODEV   the device is dead
 * and, PINNED, the errors of sublet_pin; TRACKED, those of sublet_notifier_add
 */
SUBLET_API SUBLET_NODISCARD int sublet_bo_create(struct sublet_device *device, struct sublet_mm *mm,
						 void *addr, uint64_t bytes, uint32_t flags,
						 const char *owner, struct sublet_bo *bo);

/*
 * A buffer over a claim of the device's arena. While it exists sublet_release answers -EBUSY.
 * -EINVAL: the claim is not held (released already, or of another arena). Else as above.
 */
SUBLET_API SUBLET_NODISCARD int sublet_bo_create_claim(struct sublet_device *device,
						       const struct sublet_claim *claim, uint32_t flags,
						       const char *owner, struct sublet_bo *bo);

/*
 * Destroy it. Jobs in flight that use it are waited for, each up to its timeout; then the device is reset and they
 * fail. A device that could then not be stopped (a disk that hangs) may still write to its memory: the handle is given
 * back all the same, but the memory stays held, cannot be unmapped or moved, and is named by its owner.
 * -EINVAL: it does not exist (destroyed twice).
 */
SUBLET_API SUBLET_NODISCARD int sublet_bo_destroy(struct sublet_bo *bo);

/*
 * Where the bytes of a claimed or pinned buffer are: as sublet_pin_extents. For backends; may be called from submit, and
 * from any thread while a job that uses the buffer is in flight.
 * -EOPNOTSUPP  it is tracked: nobody but the library knows, and only while a job is in flight
 */
SUBLET_API SUBLET_NODISCARD int sublet_bo_extents(const struct sublet_bo *bo, uint64_t from_bytes,
						  struct sublet_extent *extents, uint32_t count);

struct sublet_bo_info {
	uint64_t addr; /* in the mm; a claim's: in the linear map */
	uint64_t bytes;
	uint64_t age_ns;
	uint64_t binds;
	uint64_t evictions;
	uint64_t bound_bytes; /* that the device can reach now */
	uint32_t flags;       /* enum sublet_bo_flags */
	uint32_t jobs;        /* in flight */
	uint32_t mm;
	uint32_t reserved;
	char owner[SUBLET_OWNER_BYTES];
	char device[SUBLET_OWNER_BYTES];
};

/* Copy out the buffers of all devices of the arena; as sublet_pin_list. */
SUBLET_API size_t sublet_bo_list(struct sublet_arena *arena, uint64_t *next, size_t count,
				 struct sublet_bo_info *out);

#ifdef __cplusplus
}
#endif
#endif
