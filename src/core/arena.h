/* SPDX-License-Identifier: MIT */
/*
 * core/arena.h: the engine's door for the layers above it (src/linux, src/sim, src/bridge).
 *
 * Programs use the public headers; a platform creates the engine with sublet__arena_init, gives it
 * at least one mm, and tells it about fork.
 */
#ifndef SUBLET_CORE_ARENA_H
#define SUBLET_CORE_ARENA_H

#include "core/platform.h"

#include <sublet/claim.h>
#include <sublet/stats.h>

struct sublet__arena_config {
	struct sublet__platform platform;
	uint32_t area_frames;   /* pfn 0 .. area_frames - 1; whole pageblocks */
	uint32_t normal_frames; /* the next pfns; whole pageblocks */
	bool zeroed;            /* all frames are known to be zero */
	void *linear;           /* address of pfn 0, only reported in claims */
};

/* Create an engine over the frames. -EINVAL: sizes that do not fit. -ENOMEM: no memory for metadata. */
int sublet__arena_init(const struct sublet__arena_config *config, struct sublet_arena **arena);
/* What each public call answers first (core/call.h), for layers that do not see the engine's structures. */
int sublet__arena_call(const struct sublet_arena *arena);
/*
 * -EBUSY: a device, a page table of one, a claim of this process or a pin is left, and leads to the arena. Nobody else is in
 * a call.
 */
int sublet__arena_busy(struct sublet_arena *arena);
/* The address spaces are about to go: notifiers are told, and removed. While their memory is still mapped. */
void sublet__arena_exit(struct sublet_arena *arena);
/*
 * Free the engine's memory, after arena_exit where that was not called. No mm op is called: the platform tears its
 * mappings down itself.
 */
void sublet__arena_fini(struct sublet_arena *arena);
/* Worst-case size of the engine's structures. */
uint64_t sublet__arena_metadata_bytes(const struct sublet_arena *arena);

/* The platform object that embeds the engine, for layers above: set once after init. */
void sublet__arena_set_owner(struct sublet_arena *arena, void *owner);
void *sublet__arena_owner(struct sublet_arena *arena);

/* Add an address space. -ENOMEM: no memory for its page table, or too many mms. */
int sublet__mm_create(struct sublet_arena *arena, const struct sublet__mm_config *config,
		      struct sublet_mm **mm);
struct sublet_mm *sublet__arena_mm(struct sublet_arena *arena, uint32_t index);
struct sublet_arena *sublet__mm_arena(struct sublet_mm *mm);

/* Whether [addr, addr + bytes) touches the mm's window. */
bool sublet__mm_contains(const struct sublet_mm *mm, const void *addr, uint64_t bytes);

/*
 * Addresses without memory, for an allocator that takes more than it uses: as sublet_map_aligned of movable
 * memory that was decommitted at once. What sublet_commit is asked for it gives; where as much again lies behind it,
 * and there is plenty of room, it makes the memory up to the next 2 MiB boundary ready as well (huge pages, and fewer
 * kernel mappings). That counts as lent, and goes when nothing of its 2 MiB is committed any more. -EINVAL, -ENOMEM
 */
int sublet__mm_reserve(struct sublet_mm *mm, uint64_t bytes, uint64_t align_bytes, void **addr);

/*
 * As sublet_claim, for another process: its claim does not keep the arena from being destroyed, which that process is told
 * in its own way.
 */
int sublet__claim_for_guest(struct sublet_arena *arena, uint64_t bytes,
			    const struct sublet_claim_options *options, struct sublet_claim *claim);

/* Bytes of the program's heap that lie outside every window: added to plain_bytes, each call on top of the last. */
void sublet__arena_note_outside(struct sublet_arena *arena, uint64_t bytes);

/*
 * Fork, called in this order by the thread that forks:
 *   fork_begin   every lent mapping turns private; no move starts until fork_end
 *   fork_end     in the parent, child_pid > 0, or <= 0 when the fork failed or the pid is not known yet
 * and later, from any thread:
 *   fork_restore once no child shares the memory: shared again, run by run. -EAGAIN: some runs are
 *                pinned or could not be restored yet, call again.
 *
 * A child does not have all of it: fork_begin waits until until_ns (of the platform's clock; one for all mms of a fork)
 * for short pins and for devices that decline their invalidation, since what a device writes must not be lost in a
 * snapshot. The folios that are still in use then are left out of the child, as those under a long-term pin are:
 * the addresses are not mapped there. The parent keeps them as they are, pins included.
 *
 * Between fork_begin and fork_restore the frames are held: a claim names child_pid as the blocker.
 * fork_begin may be called again before restore (a second child). -ENOMEM: a run could not be made
 * private, or be left out; the caller must not fork, and calls fork_end(mm, 0). A pin or a device is never an error.
 *
 * Each fork_begin makes a new epoch. The platform reads the epoch, makes sure that no process shares
 * the memory any more, and passes that epoch to fork_restore, which restores nothing that a fork
 * begun since may share: -EAGAIN then.
 */
#define SUBLET__FORK_WAIT_NS (1 * SUBLET_SEC) /* what a fork waits in all, from its beginning */
int sublet__mm_fork_begin(struct sublet_mm *mm, uint64_t until_ns);
void sublet__mm_fork_end(struct sublet_mm *mm, int32_t child_pid);
/* The child that a claim names from now on; any thread, at any time between fork_end and fork_restore. */
void sublet__mm_fork_child(struct sublet_mm *mm, int32_t child_pid);
uint32_t sublet__mm_fork_epoch(const struct sublet_mm *mm);
int sublet__mm_fork_restore(struct sublet_mm *mm, uint32_t epoch);

/*
 * State that the program set on its own memory, for ranges of the window (page-aligned outwards):
 * a locked range is locked again after each remap; a folio with a protected page does not move, and is
 * not restored after a fork while it has one. Ranges that are not mapped are ignored.
 * note_protected(true) tells whether some page is mapped, and each mapped page had the mark before.
 * note_protected(false) returns true where a folio that a fork made private may be restored now: the caller has the
 * platform call sublet__mm_fork_restore again.
 */
void sublet__mm_note_locked(struct sublet_mm *mm, const void *addr, uint64_t bytes, bool locked);
bool sublet__mm_note_protected(struct sublet_mm *mm, const void *addr, uint64_t bytes, bool is_protected);

/*
 * Zeroing ahead of time, for a thread of the platform's with nothing better to do: a claim or a map
 * that finds known zeros need not make them. step: zero one free folio; false: there is none left.
 * wait: sleep until memory was freed, or somebody called wake.
 */
bool sublet__arena_zero_step(struct sublet_arena *arena);
void sublet__arena_zero_wait(struct sublet_arena *arena);
void sublet__arena_zero_wake(struct sublet_arena *arena);

/*
 * One step of the torture mode: move the live run that `random` picks, to other frames.
 * Returns the bytes moved, 0 where nothing could be moved.
 */
uint64_t sublet__chaos_move(struct sublet_arena *arena, struct sublet_mm *mm, uint64_t random);

/*
 * Check every invariant of the engine's structures (docs/architecture.md, "Invariants"). Nothing
 * else may run meanwhile. Returns 0, or writes one line to text and returns -EUCLEAN.
 */
int sublet__arena_verify(struct sublet_arena *arena, char *text, size_t bytes);

#endif
