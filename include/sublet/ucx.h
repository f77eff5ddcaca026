/* SPDX-License-Identifier: MIT */
/*
 * sublet/ucx.h: UCX's registration caches hear of memory that moves. Library: libsublet-ucx.
 *
 * UCX keeps registrations of memory for the next time, and watches calls of munmap() and the like to learn which are
 * stale. It does not see a move. This library passes on what a notifier (sublet/notifier.h) says, by ucm_vm_munmap(),
 * so that an entry is gone from every cache of the process before its frames change.
 *
 * What the program must keep to:
 *
 *   - Memory is pinned (sublet/pin.h) or claimed for as long as a registration of it is in use: while a request on
 *     it is under way, between ucp_mem_map and ucp_mem_unmap, for as long as a peer may use its key. UCX does not
 *     say whether a region is in use: when its memory moves, the cache forgets it, and the card goes on with the old
 *     frames.
 *   - Memory is watched before UCX first sees it.
 *
 * UCX's own watch of munmap() stays as it is, and is needed for memory that no watch covers. A program all of whose
 * buffers are watched may spare UCX the patching of libc: UCX_MEM_MMAP_HOOK_MODE=none in the environment, and
 * ucm_set_external_event(UCM_EVENT_VM_UNMAPPED) before its first context.
 *
 * What is not promised: the cache takes a dropped registration from the card later, when it next has to register
 * something. Until then the card still has the translation to the old frames; no transfer of this process can find it.
 *
 * Every call may come from any thread, but not from a callback of a notifier, or of UCX.
 */
#ifndef SUBLET_UCX_H
#define SUBLET_UCX_H

#include <sublet/types.h>

#ifdef __cplusplus
extern "C" {
#endif

struct sublet_ucx_watch;

/*
 * Drop cached registrations in [addr, addr + bytes) of the mm's window when their memory moves, is discarded, unmapped,
 * protected or shared with a child of fork(). The range need not be mapped: that of a whole heap is as good as that
 * of one buffer. Watches may overlap.
 * -EINVAL  the range wraps, is empty or not of this mm
 * -ENOMEM  or too many notifiers
 */
SUBLET_API SUBLET_NODISCARD int sublet_ucx_watch(struct sublet_mm *mm, const void *addr, uint64_t bytes,
						 struct sublet_ucx_watch **watch);

/*
 * End a watch, and drop what is cached of its range. UCX must not be given memory of the range from here on, unless
 * another watch covers it or it never moves. The arena may be gone by then. NULL is a no-op.
 */
SUBLET_API void sublet_ucx_unwatch(struct sublet_ucx_watch *watch);

#ifdef __cplusplus
}
#endif
#endif
