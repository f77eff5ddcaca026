/* SPDX-License-Identifier: MIT */
/* linux/platform.h: clock, futex, threads and frames for the engine (struct sublet__platform_ops). */
#ifndef SUBLET_LINUX_PLATFORM_H
#define SUBLET_LINUX_PLATFORM_H

#include "core/atomic.h"
#include "core/platform.h"

#include "linux/thread.h"

#include <sched.h>
#include <stdbool.h>

#define SUBLET__WORKERS_MAX 64u

struct sublet__linux_platform;

struct sublet__worker {
	struct sublet__linux_platform *platform;
	uint32_t index; /* 1 .. workers - 1; 0 is whoever calls parallel() */
	struct sublet__thread thread;
	/* Of whoever owns the workers: */
	bool is_kept_off; /* of the caller's CPU; `cpus` are to be given back */
	cpu_set_t cpus;
};

struct sublet__linux_platform {
	uint8_t *linear; /* NULL in a child of fork(), which has none of it */
	uint32_t frame_shift;
	uint32_t workers;  /* the caller included */
	uint32_t at_least; /* of them take part always, the others once a CPU is idle */
	uint32_t cpus;
	int load_fd; /* /proc/loadavg, -1: none */
	/*
	 * One job at a time. job = number << 8 | threads wanted: a worker learns in one load whether a
	 * job is new and whether it may take part. Who takes part counts itself into `running`, which is
	 * possible until it falls to 0; only then may fn and arg be read, and they do not change before
	 * all are out again.
	 */
	sublet__a32 busy;    /* 1 while a caller owns the workers */
	sublet__a32 job;     /* futex */
	sublet__a32 running; /* futex: who takes part, the caller included; 0: the job is over */
	sublet__a32 stop;
	void (*fn)(void *arg, uint32_t worker);
	void *arg;
	struct sublet__worker worker[SUBLET__WORKERS_MAX];
};

extern const struct sublet__platform_ops sublet__linux_platform_ops;

/* workers 0: chosen from the CPUs. -errno of the first thread that could not be started; then none runs. */
int sublet__linux_platform_start(struct sublet__linux_platform *p, uint8_t *linear, uint32_t frame_shift,
				 uint32_t workers);
void sublet__linux_platform_stop(struct sublet__linux_platform *p);
/* In a child of fork(): there are no workers, and no frames. */
void sublet__linux_platform_fork_child(struct sublet__linux_platform *p);

/* ---- for this layer ---- */

void sublet__futex_wait(const void *word, uint32_t expected, uint64_t timeout_ns);
void sublet__futex_wake(const void *word, uint32_t count);
/* A lock for short sections of this layer: 0 free, 1 held, 2 held and waited for. */
void sublet__lock(sublet__a32 *lock);
void sublet__unlock(sublet__a32 *lock);
uint64_t sublet__now_ns(void);

/*
 * Keep every signal from the calling thread until as many calls of unblock. Around what blocks lent memory on a
 * thread of the program: a handler that touched that memory would sleep until the thread it runs on goes on.
 * unblock without block does nothing.
 */
void sublet__signals_block(void);
void sublet__signals_unblock(void);

#endif
