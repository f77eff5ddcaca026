/* SPDX-License-Identifier: MIT */
/* control/server.h: the control server's own structures; server.c and connection.c only. */
#ifndef SUBLET_CONTROL_SERVER_H
#define SUBLET_CONTROL_SERVER_H

#include "control/instance.h"
#include "control/protocol.h"
#include "linux/platform.h"

#include <stdatomic.h>
#include <sys/types.h>

#define SUBLET__SLOTS           32u               /* connections at once, those that linger included */
#define SUBLET__CLAIMS_PER_SLOT 1024u             /* a connection may hold */
#define SUBLET__CLAIM_SLICE_NS  SUBLET_SEC        /* longest single wait inside the engine */
#define SUBLET__STALE_NS        (2 * SUBLET_SEC)  /* for the helper of a process that called exec to end */
#define SUBLET__SETTLE_NS       (200 * SUBLET_MS) /* from a driver's end to the release of what it held */

/*
 * A descriptor of ours in somebody else's process, and what it was when we got it. fd is atomic for
 * fork_child and stop, which look at it from outside; it becomes -1 before it is closed, and is
 * closed only while it still is what it was.
 */
struct sublet__fd {
	_Atomic int fd; /* -1: none */
	uint64_t ino;
	uint64_t dev;
};

/*
 * One connection and the thread that serves it. The thread is started with the slot's first
 * connection and kept for the next ones.
 *
 *   FREE --assign--> LIVE --closed, holds nothing--------------------> FREE
 *                     +-----closed, holds claims--> LINGER --ended---> FREE
 *
 * state is guarded by the server's lock. While LIVE everything else belongs to the slot's thread,
 * while LINGER to the accepting thread; but that claims[] of a LINGER slot whose process lives (ended_ns 0)
 * belong to whoever has the lock: other connections of that process add to them and release them.
 */
enum sublet__slot_state {
	SUBLET__SLOT_FREE = 0,
	SUBLET__SLOT_LIVE,
	SUBLET__SLOT_LINGER,
};

struct sublet__slot {
	struct sublet__server *server;
	enum sublet__slot_state state;
	bool has_thread;
	struct sublet__thread thread;
	sublet__a32 wake; /* futex: counts calls of its thread */
	struct sublet__fd conn;
	struct sublet__fd pidfd; /* of the process that connected; -1: pidfd_error says why there is none */
	int pidfd_error;
	pid_t pid;
	uint64_t ended_ns; /* LINGER: when its process ended; 0: it lives */
	uint32_t claim_count;
	uint64_t claims[SUBLET__CLAIMS_PER_SLOT]; /* ids that the peer holds */
	uint64_t untold; /* the one in the last reply, until the next request shows that it was read; or 0 */
	union {
		struct sublet__hello hello;
		struct sublet_arena_info info;
		struct sublet_claim claim;
		struct sublet_stats stats;
		struct sublet_pageblock pageblocks[SUBLET__PAGEBLOCKS_MAX];
		struct sublet__pins_reply pins;
		struct sublet__bos_reply bos;
		uint64_t ns;
	} reply;
};

struct sublet__server {
	struct sublet_arena *arena;
	pid_t pid; /* that serves: a child of fork() must not stop it */
	uid_t uid; /* whose connections are taken */
	size_t map_bytes;
	struct sublet__thread thread; /* accepts, and releases what lingers */
	sublet__a32 lock; /* guards slot states and `stopping`; nests in nothing, nothing nests in it */
	sublet__a32 memcpy_lock; /* one measurement at a time: they disturb each other */
	_Atomic bool stopping;
	_Atomic bool own_table; /* conn and pidfd are numbers in the table of the server's threads alone */
	struct sublet__fd listen;
	struct sublet__fd dir;
	struct sublet__fd wake[2]; /* a socket pair: all threads poll [0], [1] wakes the accepting one */
	char name[SUBLET_NAME_BYTES];
	char file[SUBLET__FILE_BYTES];
	struct sublet__slot slots[SUBLET__SLOTS];
};

/* Whether it is still what it was: the host may have closed it and got the number again. */
bool sublet__fd_ours(const struct sublet__fd *fd);

/*
 * Release a claim of a connection that has ended, for another one of the same process. -EINVAL: there is none
 * with that id. Waits for a connection of that process that is just ending, a few seconds at most.
 */
int sublet__server_release_orphan(struct sublet__slot *slot, uint64_t id);

/* Answer requests until the peer goes away, misbehaves, or the server stops (connection.c). */
void sublet__connection_serve(struct sublet__slot *slot);

#endif
