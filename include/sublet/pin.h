/* SPDX-License-Identifier: MIT */
/*
 * sublet/pin.h: hold memory where it is, for one I/O or for a session.
 *
 * The kernel and devices take references that nobody else sees (O_DIRECT, io_uring, vmsplice, RDMA, VFIO, ...): they
 * keep the frame, not the address. Pin the range first, submit, wait for completion, unpin. Two classes:
 *
 *   short       soon gone. Allowed anywhere; a claim waits for it up to the claim's deadline, then names it.
 *   long-term   for a session. The memory is first moved out of every area, to the normal zone, so a long-term pin
 *               is never in the way of a claim (G3). Counted against a limit per mm.
 *
 * What a pin does not promise: that the range is contiguous, nor that the memory may be unmapped meanwhile
 * (sublet_unmap answers -EBUSY).
 *
 * A child of fork() does not have pinned memory: those addresses are not mapped there, and who touches them gets
 * SIGSEGV (MADV_DONTFORK, as RDMA does it). The parent keeps the memory, and every pin holds on.
 *   long-term  always left out, and nothing beside the pinned pages
 *   short      fork() waits until it ends, a second at most for all pins and device jobs together; what is pinned
 *              then is left out, by whole folios: up to 2 MiB around it, the child's heap perhaps
 * A pin that is forgotten so costs each fork() a second. The next child has the memory when the pin is gone. A child that
 * only calls exec is rarely hurt. posix_spawn(), vfork(), system() and popen() wait for no pin and leave nothing out,
 * because they share the address space until they exec.
 *
 * Short pins that overlap without end starve nobody: when a claim or a long-term pin has waited 2 ms for pins of
 * 512 pages (2 MiB, of pages of 4 KiB), new ones of those pages are held off, for a quarter of a second at most; when
 * fork() has, new ones of all pages. Whoever holds a pin and takes another waits as long.
 */
#ifndef SUBLET_PIN_H
#define SUBLET_PIN_H

#include <sublet/types.h>

#ifdef __cplusplus
extern "C" {
#endif

enum sublet_pin_flags {
	SUBLET_PIN_READ = 1u << 0,  /* a device reads the memory */
	SUBLET_PIN_WRITE = 1u << 1, /* a device writes the memory */
	SUBLET_PIN_NOWAIT =
		1u << 2, /* -EAGAIN instead of waiting for a move in progress, or for short pins */
	SUBLET_PIN_LONGTERM = 1u << 3, /* for a session: out of the area first */
};

/* A pin, in the caller's memory; opaque but for the two limits. Must not be copied while it is held. */
struct sublet_pin {
	struct sublet_mm *mm;
	uint64_t first; /* page index in the mm */
	uint64_t pages;
	uint32_t record;
	uint32_t flags;
	uint64_t addr;
	uint64_t bytes;
	uint64_t longterm_bytes; /* -ENOMEM: what this mm has long-term pinned, this pin not counted */
	uint64_t
		longterm_limit_bytes; /* -ENOMEM: the limit; 0 where it was not the limit that refused, or is 0 */
};

/*
 * Pin every folio under [addr, addr + bytes). All or nothing.
 * A short pin takes no lock and makes no system call unless the range is being moved at this moment. A long-term one
 * moves what lies in an area, and waits up to a second for short pins in its way. Where somebody unmaps memory in the same
 * 2 MiB that a device's job is on, a short pin of what is being changed there waits as long as that, but with NOWAIT:
 * up to the job's timeout.
 * Plain memory (SUBLET_PLAIN_OK) never moves: a short pin of it succeeds, and holds no frames; it does not keep it from being
 * unmapped or decommitted.
 * owner is copied, up to 31 bytes; it names the pin in sublet_pin_list, `sublet pins` and to claims that it blocks. NULL: a
 * short pin is counted but not listed, which is cheaper; a long-term one is listed as "pin".
 * May be called from any thread; not from a signal handler, nor from a notifier's callback if LONGTERM; there with NOWAIT.
 *
 * -EINVAL  the range wraps, is empty, is not of this mm, or flags make no sense
 * -EFAULT  part of the range is not mapped, or discardable and unlocked, or begins a folio that is decommitted (a
 *          decommitted page in the middle of one is not noticed); LONGTERM: or is plain memory, not the arena's
 * -EBUSY   a child of fork() shares the memory, and did not exec or end for a third of a second, or others took turns
 *          (NOWAIT: it does, or did until a few milliseconds ago); or is about to, while fork() waits as long for pins,
 *          the caller's own perhaps; or the folio has too many pins; LONGTERM: or a short pin in its way was not
 *          released for a second, or the memory may not move (its protection was changed, or the program registered it
 *          with a userfaultfd)
 * -ENOMEM  LONGTERM: over the limit of the mm (see the two members of *pin), or the normal zone is full
 * -EAGAIN  NOWAIT, and the range is being moved, or pins are held off, or LONGTERM would have to wait
 * -ENOSPC  LONGTERM: more pins at once than can be listed (65,536 in an arena). A short pin with an owner tag is held all
 *          the same, and is not listed then
 * -EOPNOTSUPP  LONGTERM: under valgrind memory does not move, and this lies in the area
 */
SUBLET_API SUBLET_NODISCARD int sublet_pin(struct sublet_mm *mm, const void *addr, uint64_t bytes,
					   uint32_t flags, const char *owner, struct sublet_pin *pin);

/*
 * Release a pin; any thread may. -EINVAL: the pin is not held (released twice). A second release by way of
 * a copy is noticed too where the pin is listed (it has an owner tag or is long-term).
 */
SUBLET_API SUBLET_NODISCARD int sublet_unpin(struct sublet_pin *pin);

/*
 * Where the pinned bytes are: fill in at most `count` extents, adjacent ones merged, from byte `from_bytes` of the
 * pinned range on. Returns how many were filled in (0: from_bytes is the end). Their bytes add up to what they cover,
 * so the next call starts there. Valid until unpin.
 * -EINVAL  the pin is not held, from_bytes is beyond the end, or count is 0
 * -EFAULT  the next byte lies in plain memory, which has no frames in the backing, or was decommitted since: its
 *          frames are held until unpin all the same
 */
SUBLET_API SUBLET_NODISCARD int sublet_pin_extents(const struct sublet_pin *pin, uint64_t from_bytes,
						   struct sublet_extent *extents, uint32_t count);

/*
 * Limit of all long-term pins of the mm together, rounded down to frames; 0: none at all. Until it is called the limit is
 * half of the normal zone. Pins that are held already stay, and above the limit.
 */
SUBLET_API void sublet_pin_limit(struct sublet_mm *mm, uint64_t bytes);

/* One pin that carries an owner tag. */
struct sublet_pin_info {
	uint64_t addr;
	uint64_t bytes;
	uint64_t age_ns;
	uint32_t flags; /* READ, WRITE, LONGTERM */
	uint32_t mm;    /* index of the mm in its arena */
	char owner[SUBLET_OWNER_BYTES];
};

/*
 * Copy out the pins that are held, at most `count`, beginning with number *next (0 at first), and set *next to where
 * to go on. Returns how many were written, 0 at the end. A snapshot that is not atomic.
 */
SUBLET_API size_t sublet_pin_list(struct sublet_arena *arena, uint64_t *next, size_t count,
				  struct sublet_pin_info *out);

#ifdef __cplusplus
}
#endif
#endif
