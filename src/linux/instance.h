/* SPDX-License-Identifier: MIT */
/*
 * linux/instance.h: one arena as this layer sees it; the engine's owner object.
 *
 * Lock order: the lock of fork.c, and nothing inside it but engine calls made by a fork handler.
 */
#ifndef SUBLET_LINUX_INSTANCE_H
#define SUBLET_LINUX_INSTANCE_H

#include "core/arena.h"
#include "linux/backing.h"
#include "linux/linux.h"
#include "linux/mm.h"
#include "linux/platform.h"

#define SUBLET__COMPANIONS_MAX 4u
#define SUBLET__MMS_MAX        64u /* as many as the engine takes */

struct sublet__chaos {
	sublet__a32 running; /* futex: 1 while the thread lives and is wanted */
	struct sublet__thread thread;
	uint64_t period_ns;
	uint64_t seed;
};

struct sublet__zeroer {
	sublet__a32 running; /* futex: 1 while the thread lives and is wanted */
	struct sublet__thread thread;
};

struct sublet__instance {
	struct sublet_arena *arena; /* the engine */
	struct sublet__backing backing;
	struct sublet__linux_mm mm[SUBLET__MMS_MAX];
	uint32_t mms; /* guarded by the lock of fork.c, but only grows */
	struct sublet__linux_platform platform;
	uint64_t area_bytes;
	uint64_t normal_bytes;
	uint64_t mapping_limit;
	struct sublet__chaos chaos;
	struct sublet__zeroer zeroer;

	/* Companions are added by any thread, and only go with the arena. */
	sublet__a32 companion_lock;
	uint32_t companions;
	struct sublet__linux_companion companion[SUBLET__COMPANIONS_MAX];

	struct sublet__instance *next; /* guarded by the lock of fork.c */
	uint32_t fork_epoch;           /* likewise: changes when a fork begins, and when it ends */
	uint32_t restored_epoch;       /* of fork: all is shared as of then; the watcher's own */
	uint32_t asked_epoch;          /* the watcher's own: what it looks into */
	uint32_t asked_mms;
	uint32_t asked_mm_epoch[SUBLET__MMS_MAX];
	sublet__a32 again; /* restore once more, whatever restored_epoch says */

	sublet__a32 in_child; /* written once, in a child of fork() */
	uint32_t *here;       /* a page of its own: 1; 0 in a child */
};

struct sublet__instance *sublet__instance_of(struct sublet_arena *arena);
/* Stop the torture thread if it runs. */
void sublet__chaos_stop(struct sublet__instance *instance);
/* The thread that zeroes free memory: runs as long as the arena. -errno of the thread. */
int sublet__zeroer_start(struct sublet__instance *instance);
void sublet__zeroer_stop(struct sublet__instance *instance);

#endif
