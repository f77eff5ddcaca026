/* SPDX-License-Identifier: MIT */
/*
 * sublet/pin.h: hold memory where it is for the time of one I/O.
 *
 * The kernel takes references that nobody else sees (O_DIRECT, io_uring, vmsplice, ...): it keeps the
 * frame, not the address. Pin the range first, submit, wait for completion, unpin.
 *
 * What a pin does not promise: that a claim waits for it for ever (a claim waits until its own
 * deadline, then names the pin), nor that the range is contiguous. A fork() waits up to a second for pins
 * to end, then fails with EAGAIN under `sublet run`, and ends a library program with a message: what a
 * device writes under a pin must not get lost in a snapshot. Memory must not be unmapped or decommitted
 * while it is pinned.
 */
#ifndef SUBLET_PIN_H
#define SUBLET_PIN_H

#include <sublet/types.h>

#ifdef __cplusplus
extern "C" {
#endif

enum sublet_pin_flags {
	SUBLET_PIN_READ = 1u << 0,   /* a device reads the memory */
	SUBLET_PIN_WRITE = 1u << 1,  /* a device writes the memory */
	SUBLET_PIN_NOWAIT = 1u << 2, /* -EAGAIN instead of waiting for a move in progress */
};

/* A pin, in the caller's memory; opaque but for its size. Must not be copied while it is held. */
struct sublet_pin {
	struct sublet_mm *mm;
	uint64_t first; /* page index in the mm */
	uint64_t pages;
	uint64_t reserved;
};

/*
 * Pin every folio under [addr, addr + bytes). Takes no lock and makes no system call unless the
 * range is being moved at this moment. All or nothing.
 *
 * -EINVAL  the range wraps, is empty, is not of this mm, or flags make no sense
 * -EFAULT  part of the range is not mapped, or discardable and unlocked, or begins a folio that is
 *          decommitted (a decommitted page in the middle of one is not noticed)
 * -EBUSY   a child of fork() still shares the memory, or the folio has too many pins
 * -EAGAIN  SUBLET_PIN_NOWAIT, and the range is being moved
 */
SUBLET_API SUBLET_NODISCARD int sublet_pin(struct sublet_mm *mm, const void *addr, uint64_t bytes, uint32_t flags,
					   struct sublet_pin *pin);

/*
 * Release a pin; any thread may. -EINVAL: the pin is not held (released twice).
 */
SUBLET_API SUBLET_NODISCARD int sublet_unpin(struct sublet_pin *pin);

#ifdef __cplusplus
}
#endif
#endif
