/* SPDX-License-Identifier: MIT */
/*
 * sublet/claim.h: take a contiguous window of the area for a device, and give it back.
 *
 * Claims, releases, maps and moves may all run at once; claims on disjoint windows do not wait for
 * each other, and no global lock is held while memory is copied.
 */
#ifndef SUBLET_CLAIM_H
#define SUBLET_CLAIM_H

#include <sublet/types.h>

#ifdef __cplusplus
extern "C" {
#endif

enum sublet_claim_flags {
	SUBLET_CLAIM_NOWAIT = 1u << 0, /* never wait for a pin or for another thread: -EBUSY instead */
	SUBLET_CLAIM_NOZERO = 1u << 1, /* hand out frames as they are: for a device that may see old bytes */
	/* the dearest claimable window instead of the cheapest: to measure the worst case; the cheapest is often the
	   window released last */
	SUBLET_CLAIM_DEAREST = 1u << 2,
};

struct sublet_claim_options {
	uint64_t size_bytes;  /* SUBLET_OPTIONS(sublet_claim_options) */
	uint64_t align_bytes; /* of the offset in the backing, a power of two up to 1 GiB; 0: one frame */
	uint64_t deadline_ns; /* how long the call may take when somebody holds memory; 0: one second */
	uint32_t flags;       /* enum sublet_claim_flags */
	uint32_t reserved;
	const char *owner; /* named when this claim is in somebody's way; NULL: "claim". Copied */
};

/* Why a window could not be had. */
enum sublet_blocker_kind {
	SUBLET_BLOCKER_NONE = 0,
	SUBLET_BLOCKER_PIN,       /* a short pin that was not released before the deadline */
	SUBLET_BLOCKER_CLAIM,     /* another claim */
	SUBLET_BLOCKER_CHILD,     /* a child of fork() that still shares the memory */
	SUBLET_BLOCKER_PROTECTED, /* memory whose protection the program changed */
	SUBLET_BLOCKER_MAPPINGS,  /* the kernel-mapping budget is spent */
	SUBLET_BLOCKER_NOROOM,    /* bytes that have nowhere to go */
	SUBLET_BLOCKER_PLATFORM, /* the system refused a step: error has its -errno; -EOPNOTSUPP: under valgrind,
	                             where memory does not move, and no window is tried that some lies in */
	SUBLET_BLOCKER_NOTIFIER, /* somebody who was told declined up to the deadline: a device at work, say */
	SUBLET_BLOCKER_WATCHED,  /* memory that the program registered with a userfaultfd of its own */
	SUBLET_BLOCKER_CALL, /* memory in the hand of a call that is not over yet, in this or another thread */
};

struct sublet_blocker {
	uint32_t kind;         /* enum sublet_blocker_kind */
	int32_t error;         /* BLOCKER_PLATFORM: -errno; BLOCKER_CHILD: its pid */
	uint64_t offset_bytes; /* in the area; BLOCKER_NOROOM: 0 */
	uint64_t bytes;
	uint64_t age_ns;                /* how long it has been there; 0: not known */
	char owner[SUBLET_OWNER_BYTES]; /* "" where there is none */
};

/* A claim names so many places. Each user is named before any user is named twice. */
#define SUBLET_BLOCKERS_MAX 8

/* A claim, and what it cost; filled in by sublet_claim on failure too (blockers, counters). */
struct sublet_claim {
	uint64_t id;           /* never 0 while held; unique in its arena */
	void *addr;            /* in the linear map of this process */
	uint64_t bytes;        /* as asked, rounded up to frames */
	uint64_t offset_bytes; /* in the area: the same for every device that registered it */
	uint64_t latency_ns;   /* of the whole call */
	uint64_t moved_bytes;
	uint64_t dropped_bytes; /* discardable contents given up */
	uint64_t zeroed_bytes;
	uint64_t zeroing_ns; /* part of latency_ns spent on that; of several threads, their mean */
	uint64_t waited_ns;  /* spent waiting for pins and other threads */
	uint32_t waits;
	uint32_t windows_tried;
	uint64_t shortfall_bytes; /* -ENOMEM: bytes that had nowhere to go */
	uint64_t claimable_bytes; /* -ENOMEM: roughly what would have been had */
	uint32_t blocker_count;
	uint32_t reserved;
	struct sublet_blocker blockers[SUBLET_BLOCKERS_MAX];
};

/*
 * Take `bytes` contiguous bytes of the area. The programs that live there keep running; what they
 * wrote moves elsewhere at their own addresses. options may be NULL.
 * The window belongs to the caller until sublet_release; its frames never move and are zeroed
 * unless SUBLET_CLAIM_NOZERO.
 * May be called from any thread with 32 KiB of stack left that is not lent memory itself, and not from
 * a signal handler. Signals are held back on the calling thread while a run is blocked.
 *
 * -EINVAL  bytes is 0, align_bytes is no power of two or above 1 GiB, unknown flags, or as for every struct
 * -E2BIG   bytes is more than the area has; or as for every struct (sublet/types.h)
 * -EDEADLK the calling thread's stack lies in lent memory
 * -ENOMEM  shortfall_bytes have nowhere to go
 * -EBUSY   somebody holds memory in every window that was tried: see blockers. What will not go by itself (its protection
 *          was changed, or it does not move under valgrind) is not waited for
 * After any error everything is as it was, but that some memory may have moved (G5).
 */
SUBLET_API SUBLET_NODISCARD int sublet_claim(struct sublet_arena *arena, uint64_t bytes,
					     const struct sublet_claim_options *options,
					     struct sublet_claim *claim);

/*
 * Give a claim back: the window is lent again at once. The device must be done with it.
 * Only id is read from *claim, which becomes 0.
 * -EINVAL  the claim is not held (released twice, or of another arena)
 * -EBUSY   a buffer object is over it (sublet/bo.h)
 */
SUBLET_API SUBLET_NODISCARD int sublet_release(struct sublet_arena *arena, struct sublet_claim *claim);

/*
 * Describe blocker i of a failed claim in one line of plain text, with a final NUL, at most `bytes`.
 * Returns its length without the NUL, as snprintf does; -EINVAL where there is no such blocker.
 */
SUBLET_API SUBLET_NODISCARD int sublet_blocker_describe(const struct sublet_claim *claim, uint32_t i,
							char *text, size_t bytes);

#ifdef __cplusplus
}
#endif
#endif
