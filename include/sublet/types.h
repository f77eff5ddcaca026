/* SPDX-License-Identifier: MIT */
/*
 * sublet/types.h: the words that every other header uses.
 *
 * Glossary (one word per idea; docs/architecture.md has the pictures):
 *
 *   frame     one base page of real memory, 4 KiB, or 2 MiB on a hugetlb backing
 *   pfn       index of a frame in its arena
 *   folio     2^order frames, aligned, that are allocated, referenced and moved as one
 *   arena     everything one struct sublet_arena manages
 *   area      a contiguous range of frames that devices register once; lent while not claimed
 *   normal    the zone that is never claimed: room for what moves out of an area
 *   mm        one address space: a window of reserved addresses and its page table
 *   movable   memory at a stable address whose frames may change at any time
 *   discardable  movable memory whose contents may be dropped instead of moved
 *   pin       a counted reference that stops a folio from moving; short: waited for; long-term: moved out of areas
 *             first
 *   notifier  a range with a callback that is told before frames under it change
 *   iopt      a device's own table from iova to frames
 *   bo        a device's view of some range; tracked: bound without a pin, evicted by a notifier
 *   claim     a contiguous window of an area, taken for a device
 *   blocker   whatever made a window unclaimable
 *
 * Conventions of the whole library:
 *   - every call that can fail returns 0 or -errno, and refuses before its first visible change;
 *   - units stand last in a name (_bytes, _ns, _pfn, _frames);
 *   - every call is thread-safe unless its comment says otherwise;
 *   - C++: some structs are named like a function (as stat is), so write `struct sublet_pin`; SUBLET_OPTIONS needs C++20,
 *     before it set size_bytes by hand.
 *
 * NULL. A pointer that no comment calls optional ("may be NULL", a default) must lead somewhere; else the answer is -EINVAL. Of a
 * call that answers no -errno it is what "nothing there" is: 0 entries, NULL, true of read_retry; destroy, close, unwatch and
 * other calls that return nothing do nothing. A handle that is all zeros (struct sublet_bo, sublet_fence, sublet_pin,
 * sublet_notifier) is as NULL is.
 *
 * Structs that begin with size_bytes may be of an older or a newer program than the library; write
 * { SUBLET_OPTIONS(sublet_claim_options), .deadline_ns = ... }, and a member that is 0 has its default.
 *   -EINVAL  size_bytes is less than the first version of the struct had; or a member called reserved is not 0
 *   -E2BIG   size_bytes is above 4096; or of options: something is not 0 that this library does not know
 * Of what a call fills in, as much is written as size_bytes says, with 0 for what this library does not know.
 *
 * fork(). All that a process has of this library is its own. A child gets copies, which lead to memory, threads and sockets of
 * its parent's; the child may read and write lent memory (sublet/arena.h), and nothing else. However it was forked, there
 *   -EPERM   is what every call answers that is given an object of the parent's, a connection too, and nothing has changed
 *   0        entries are in every list, and bytes are collapsed
 *   true     is what sublet_notifier_read_retry answers: nothing that was read may be used
 * Calls that return nothing do nothing; sublet_client_close closes the child's copy of the socket. What is only read from the
 * copy stays as it is: sublet_arena_mm, sublet_device_iopt, sublet_client_instance, sublet_blocker_describe, histograms. So an
 * inherited device can be given no work, and an inherited ring of io_uring is closed in the child (sublet/device.h). A child
 * of fork() may create an arena, and connect, for itself; one that was made by the bare system call may not, as it may
 * not call much of libc. vfork() and posix_spawn() share all memory until they exec: there is no copy.
 */
#ifndef SUBLET_TYPES_H
#define SUBLET_TYPES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SUBLET_VERSION       "0.1.0"
#define SUBLET_VERSION_MAJOR 0
#define SUBLET_VERSION_MINOR 1
#define SUBLET_VERSION_PATCH 0

#define SUBLET_API       __attribute__((visibility("default")))
#define SUBLET_NODISCARD __attribute__((warn_unused_result))

#define SUBLET_OPTIONS(type) .size_bytes = sizeof(struct type)

#define SUBLET_US  ((uint64_t)1000)
#define SUBLET_MS  ((uint64_t)1000000)
#define SUBLET_SEC ((uint64_t)1000000000)

#define SUBLET_KIB ((uint64_t)1 << 10)
#define SUBLET_MIB ((uint64_t)1 << 20)
#define SUBLET_GIB ((uint64_t)1 << 30)

/* Longest names, in bytes with the final NUL. */
#define SUBLET_NAME_BYTES  64
#define SUBLET_OWNER_BYTES 32

struct sublet_arena;
struct sublet_mm;

/*
 * A piece of memory as a device sees it: `bytes` contiguous bytes of the arena's backing. The offset counts from
 * the backing's first byte: the area comes first, the normal zone right behind it, and the linear map and whatever
 * registered it have the same order. Fixed for as long as the memory is pinned or claimed.
 */
struct sublet_extent {
	uint64_t offset_bytes;
	uint64_t bytes;
};

/* Purpose: the version of the library that is loaded, as "major.minor.patch". Never NULL, never freed. */
SUBLET_API const char *sublet_version(void);

#ifdef __cplusplus
}
#endif
#endif
