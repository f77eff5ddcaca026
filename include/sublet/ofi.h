/* SPDX-License-Identifier: MIT */
/*
 * sublet/ofi.h: libfabric's registration caches hear of memory that moves. Library: libsublet-ofi.
 *
 * A libfabric provider for a real network card keeps registrations of memory for the next time. What tells it that
 * the frames behind an address have changed is a memory monitor. Neither of libfabric's own sees a move: one watches
 * calls of munmap() and the like; the other registers the memory with a userfaultfd of its own, and a mapping can
 * have one only, so such memory does not move at all. This library puts a monitor in their place that is told by a
 * notifier (sublet/notifier.h), so that an entry is gone from the cache before its frames change.
 *
 * What the program must keep to:
 *
 *   - Memory is pinned (sublet/pin.h) or claimed for as long as a registration of it is in use: from fi_mr_reg to
 *     fi_close; from fi_send, fi_read, ... to its completion where the provider registers by itself; for as long as
 *     a peer may use its key. Nobody can ask libfabric whether a registration is in use: when its memory moves, the
 *     cache forgets it, and the card goes on with the old frames.
 *   - Only what lies in a watched range as a whole is cached. Everything else, the plain heap included, is registered
 *     and deregistered each time: with this monitor nobody watches its munmap().
 *   - The process's malloc must not live in a watched range, since the cache allocates while it holds the lock that a
 *     move waits for. Under `sublet run` it does not: that heap is in an mm which a program cannot watch.
 *
 * What is not promised: the cache takes a dropped registration from the card later, when it next looks something up.
 * Until then the card still has the translation to the old frames; no transfer of this process can find it.
 *
 * Every call may come from any thread, but not from a callback of a notifier, or of libfabric.
 */
#ifndef SUBLET_OFI_H
#define SUBLET_OFI_H

#include <sublet/types.h>

#ifdef __cplusplus
extern "C" {
#endif

struct sublet_ofi;
struct sublet_ofi_watch;

/*
 * Become libfabric's monitor of ordinary memory, whatever FI_MR_CACHE_MONITOR says. Once in a process, before its
 * first domain with a cache.
 * -EBUSY       such a domain is open, or another monitor was imported
 * -EOPNOTSUPP  this libfabric takes no monitor
 * -ENOMEM
 */
SUBLET_API SUBLET_NODISCARD int sublet_ofi_open(struct sublet_ofi **ofi);

/*
 * Stop being the monitor. From then on no domain with a cache can be opened, unless by another sublet_ofi_open.
 * No domain may be opened or closed meanwhile. NULL: 0.
 * -EBUSY  a domain with a cache is open, or a range is watched; nothing has changed
 */
SUBLET_API SUBLET_NODISCARD int sublet_ofi_close(struct sublet_ofi *ofi);

/*
 * Let registrations in [addr, addr + bytes) of the mm's window be cached, and drop them when their memory moves, is
 * discarded, unmapped, protected or shared with a child of fork(). The range need not be mapped: that of a whole heap
 * is as good as that of one buffer.
 * A watch of memory that is moved by a call with no time to wait may still wait for the cache's lock, which is held
 * for a look-up, never for a registration.
 * -EINVAL  the range wraps, is empty or not of this mm
 * -EEXIST  it overlaps with one that is watched
 * -ENOMEM  or too many notifiers
 */
SUBLET_API SUBLET_NODISCARD int sublet_ofi_watch(struct sublet_ofi *ofi, struct sublet_mm *mm,
						 const void *addr, uint64_t bytes,
						 struct sublet_ofi_watch **watch);

/*
 * End a watch: what is cached of its range is dropped, and nothing of it is cached any more. The arena may be gone by
 * then. NULL is a no-op.
 */
SUBLET_API void sublet_ofi_unwatch(struct sublet_ofi_watch *watch);

#ifdef __cplusplus
}
#endif
#endif
