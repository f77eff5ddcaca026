/* SPDX-License-Identifier: MIT */
/*
 * sublet/map.h: ordinary memory at stable addresses that lives in the lent area.
 *
 * Which calls may run at the same time on overlapping ranges:
 *
 *              map   unmap   decommit/commit   lock/unlock   load/store   claim
 *   map        yes   -       -                 -             -            yes
 *   unmap      -     no      no                no            no           yes
 *   decommit   -     no      no                no            no           yes
 *   lock       -     no      no                yes           yes          yes
 *   claim      yes   yes     yes               yes           yes          yes
 *
 * "no": the caller keeps them apart, as with free(); on ranges that do not overlap everything may run at once.
 */
#ifndef SUBLET_MAP_H
#define SUBLET_MAP_H

#include <sublet/types.h>

#ifdef __cplusplus
extern "C" {
#endif

enum sublet_map_flags {
	SUBLET_MOVABLE = 1u << 0,     /* contents are kept when a claim needs the frames */
	SUBLET_DISCARDABLE = 1u << 1, /* contents may be dropped while unlocked; starts locked */
	SUBLET_PLAIN_OK = 1u << 2, /* where the arena is full, take ordinary memory of the process instead of
	                                 failing; shows in the statistics as plain */
};

/*
 * Map `bytes` of zeroed, readable and writable memory at a new, stable address.
 * bytes is rounded up to frames; the address is aligned to 64 KiB, to 2 MiB if bytes is that large.
 * flags: exactly one of MOVABLE and DISCARDABLE, and PLAIN_OK if wanted.
 * Not promised: which frames, nor that they stay. Loads and stores never notice a move, save
 * for waiting a short time; a device or another process that was told a frame does (see sublet/pin.h).
 * Memory that a child of fork() still shares does not move. Do not change its protection: a move undoes what mprotect
 * did. Only under `sublet run` is that seen, and what is protected stays where it is.
 *
 * -EINVAL  bytes is 0, or flags make no sense
 * -ENOMEM  movable memory would outgrow the area, or no addresses are left
 */
SUBLET_API SUBLET_NODISCARD int sublet_map(struct sublet_mm *mm, uint64_t bytes, uint32_t flags, void **addr);

/*
 * As sublet_map, with an alignment of the address, in bytes: a power of two up to 1 GiB.
 * -EINVAL also: align_bytes is no power of two, or larger than 1 GiB
 */
SUBLET_API SUBLET_NODISCARD int sublet_map_aligned(struct sublet_mm *mm, uint64_t bytes, uint64_t align_bytes,
						   uint32_t flags, void **addr);

/*
 * Give back addresses and memory. Any part of a mapping, in whole units of 64 KiB (of frames, where
 * they are larger) but for the end of the mapping. Frames that a child of fork() shares return when it has ended.
 * Where a device works on it (a tracked bo), waits for those jobs, each up to its timeout; who maps or unmaps memory in the
 * same 2 MiB, or forks, waits as well.
 * -EINVAL  the range is not mapped as a whole, or is not aligned
 * -EBUSY   a pin holds some of it, or a device that cannot be stopped does; or a short pin holds memory right beside it:
 *          it holds all that moves along with its own, up to 2 MiB. Nothing was unmapped. Pins are waited for a third
 *          of a second
 */
SUBLET_API SUBLET_NODISCARD int sublet_unmap(struct sublet_mm *mm, void *addr, uint64_t bytes);

/*
 * Give back the memory of a range, and keep its addresses; until sublet_commit the range must not be
 * touched (it may fault, or not). Any page-aligned part. Movable memory only.
 * Frames return by units of 64 KiB (frames, where they are larger), when the last page of one is decommitted. 0 is the answer
 * also where none returned yet: to a part of a unit; where a pin, a device that cannot be stopped or a child of fork()
 * holds them; or where the kernel has no mapping to spare. The first come back with the rest of the unit, the others when
 * the range is decommitted once more, or unmapped; lent_bytes of sublet_arena_stats has them until then.
 * -EINVAL  the range is not mapped as a whole, or is not page-aligned
 */
SUBLET_API SUBLET_NODISCARD int sublet_decommit(struct sublet_mm *mm, void *addr, uint64_t bytes);

/*
 * Make a decommitted range usable again; it reads as zeros. flags: SUBLET_PLAIN_OK or 0.
 * -EINVAL  as for sublet_decommit, or a page of it is not decommitted
 * -ENOMEM  no frames; what was committed already of the range stays decommitted
 */
SUBLET_API SUBLET_NODISCARD int sublet_commit(struct sublet_mm *mm, void *addr, uint64_t bytes,
					      uint32_t flags);

/* What became of discardable memory while it was unlocked: what sublet_lock answers. */
enum sublet_lock_result {
	SUBLET_INTACT = 0,    /* every byte is as it was at unlock */
	SUBLET_DISCARDED = 1, /* some of the range was dropped; those parts read as zeros */
};

/* What sublet_unlock answers. */
enum sublet_unlock_result {
	SUBLET_UNLOCKED = 0, /* a claim may drop each unit of the range */
	SUBLET_KEPT = 1,     /* some of them stay locked; unlock them again later */
};

/*
 * Lock discardable memory: from here until sublet_unlock its contents are kept. Units of 64 KiB (frames, where they are
 * larger) are locked, each that the range touches. Locks do not count: one unlock undoes any number of them. Of two
 * threads that lock the same dropped memory one is told so.
 * Returns SUBLET_INTACT, SUBLET_DISCARDED, or
 * -EINVAL  the range is not discardable memory as a whole
 * -ENOMEM  there are no frames for the parts that were dropped, or no kernel mapping; the range is unlocked, those parts
 *          that were locked before too
 */
SUBLET_API SUBLET_NODISCARD int sublet_lock(struct sublet_mm *mm, void *addr, uint64_t bytes);

/*
 * Unlock discardable memory: a claim may drop it from now on. It must not be touched until locked
 * again: most of it is inaccessible (SIGSEGV; system calls fail with EFAULT).
 * Units of 64 KiB (frames, where they are larger) are unlocked, each that lies in the range as a whole; the last one of a
 * mapping may be shorter. Where the range begins or ends inside of one, that unit stays as it is.
 * Costs about what munmap costs, and sublet_lock what mmap and its faults cost, so that a claim of
 * unlocked memory costs next to nothing. Pieces that are unlocked apart from each other take up kernel mappings, two at
 * most each.
 * Returns SUBLET_UNLOCKED; or SUBLET_KEPT where something of it stays locked, and keeps its contents: a pin holds it, or
 * holds what moves along with it, up to 2 MiB; or a child of fork() shares it; or the kernel mappings are spent
 * (options.mapping_limit). Or
 * -EINVAL  the range is not discardable memory as a whole, or no unit lies in it as a whole
 */
SUBLET_API SUBLET_NODISCARD int sublet_unlock(struct sublet_mm *mm, void *addr, uint64_t bytes);

#ifdef __cplusplus
}
#endif
#endif
