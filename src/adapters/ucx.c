/* SPDX-License-Identifier: MIT */
/*
 * UCX: what a notifier says becomes a ucm_vm_munmap().
 *
 * UCM is the part of UCX that watches memory. Its handlers are the registration caches (ucs_rcache), each of which
 * on an "unmapped" event tries for the lock of its page table. If that is free, it takes out the regions at once.
 * If it is not, it queues the range under a spin lock, and the next look-up serves the queue before anything else. So
 * when ucm_vm_munmap() has returned, no look-up that begins later finds a region of the range. Deregistering is left
 * to the next look-up that misses; nothing is allocated from malloc or given back to it on the way.
 *
 * Locks, first taken first:
 *
 *   mm.block[]           held by the mover
 *     ucm event lock     to read; written only while a handler is added or removed
 *       rcache page table  only tried
 *       rcache lock        a spin lock
 *
 * A thread inside UCX that holds one of the last two may wait for the mover (to register memory faults it in, and its
 * callback may even make a long-term pin): the mover does not wait for it. The event lock is held to read by a thread
 * that UCX's patched munmap() leads through, for the time of the system call; readers do not wait for readers.
 *
 * Rejected: setting the event external (ucm_set_external_event) on the program's behalf. It would stop UCX from
 * watching munmap() of memory that no watch covers.
 */
#include <sublet/ucx.h>

#include "adapters/watch.h"

#include <errno.h>
#include <stdlib.h>
#include <ucm/api/ucm.h>

struct sublet_ucx_watch {
	struct sublet__watch watch;
};

static void ucx_drop(struct sublet__watch *watch, uint64_t addr, uint64_t bytes)
{
	(void)watch;
	ucm_vm_munmap((void *)(uintptr_t)addr, bytes);
}

int sublet_ucx_watch(struct sublet_mm *mm, const void *addr, uint64_t bytes, struct sublet_ucx_watch **watch)
{
	struct sublet_ucx_watch *w = watch ? malloc(sizeof *w) : NULL;

	if (!w)
		return watch ? -ENOMEM : -EINVAL;
	w->watch = (struct sublet__watch){ .addr = (uintptr_t)addr, .bytes = bytes, .drop = ucx_drop };
	int err = sublet__watch_begin(&w->watch, mm, "ucx");
	if (err) {
		free(w);
		return err;
	}
	*watch = w;
	return 0;
}

void sublet_ucx_unwatch(struct sublet_ucx_watch *watch)
{
	if (!watch)
		return;
	/* In this order: what a look-up brought in meanwhile goes too. */
	sublet__watch_end(&watch->watch);
	ucx_drop(&watch->watch, watch->watch.addr, watch->watch.bytes);
	free(watch);
}
