/* SPDX-License-Identifier: MIT */
/*
 * linux/linux.h: what the Linux platform offers to the layers above it (control, bridge, cli).
 *
 * All threads that this layer starts block every signal, so that a program's handlers never run on
 * them, and none of them touches lent memory (a thread that moves memory must not wait for it).
 */
#ifndef SUBLET_LINUX_LINUX_H
#define SUBLET_LINUX_LINUX_H

#include "linux/thread.h"

#include <sublet/arena.h>

/* What this machine and user can do; every field is found by trying, not by version numbers alone. */
struct sublet__linux_facts {
	char kernel_release[65];
	bool userfaultfd;        /* one with kernel faults could be opened */
	bool userfaultfd_device; /* ... by way of /dev/userfaultfd */
	int userfaultfd_error;   /* -errno of the attempt that came nearest */
	uint64_t userfaultfd_features;
	bool feature_minor; /* minor faults on shmem: zap */
	bool feature_minor_hugetlb;
	bool feature_writeprotect; /* write-protection of shmem */
	bool feature_wp_async;     /* asynchronous write-protection and PAGEMAP_SCAN: pre-copy */
	bool huge_tmpfs;           /* a private tmpfs with huge=always could be made */
	int huge_tmpfs_error;
	uint64_t hugetlb_free_pages;     /* of 2 MiB */
	uint64_t memory_available_bytes; /* MemAvailable, or what a control group leaves where that is less */
	char memory_limit[256];          /* the file with that group's limit; empty: the machine decides */
	uint64_t memlock_bytes;          /* soft limit; UINT64_MAX: none, or this process may exceed it */
	uint64_t max_map_count;
	bool seccomp_filter; /* filters are to be had without privilege */
	uint32_t cpus;       /* this process may run on */
};

/* Find out. Never fails: what cannot be found out is false, 0, or an error field. */
void sublet__linux_facts_get(struct sublet__linux_facts *facts);

/*
 * Start a thread with every signal blocked, a task of the helper where there is one (linux/helper.h). name: at most 15
 * characters. -errno of pthread_create or clone, -EPIPE of a helper that has ended. May be called by any layer. `thread`
 * stays where it is until sublet__linux_thread_join, which waits for the end of fn.
 *
 * fn may run on a task, so it calls nothing of libc that knows threads: no mutex, condition variable or malloc of libc's.
 */
int sublet__linux_thread_start(struct sublet__thread *thread, const char *name, void *(*fn)(void *),
			       void *arg);
void sublet__linux_thread_join(struct sublet__thread *thread);

/*
 * Something that lives with the arena (the control server): stop() runs first thing in
 * sublet_arena_destroy, fork_child() in a child right after fork (close descriptors, touch no
 * thread; async-signal-safe calls only). At most four per arena. -ENOSPC
 */
struct sublet__linux_companion {
	void (*stop)(void *arg);
	void (*fork_child)(void *arg);
	void *arg;
};
int sublet__linux_companion_add(struct sublet_arena *arena, const struct sublet__linux_companion *companion);

/*
 * Fork, for a layer that interposes fork() itself. The pthread_atfork handlers of this layer abort
 * the process when lent memory cannot be kept apart from a child, because they cannot refuse;
 * sublet__linux_fork_prepare called just before by the same thread can: -ENOMEM, or -EPIPE when the helper
 * process has ended, and fork() must not be called (it answers the same). What is pinned, or used by a device, for more
 * than a second is no error: the child does not have it (core/arena.h).
 * After 0 either fork() follows (the handlers then know) or sublet__linux_fork_cancel; until then the
 * thread is not cancelled. A process that comes without handlers calls sublet__linux_fork_child before it touches
 * lent memory, and its parent sublet__linux_fork_cancel.
 */
int sublet__linux_fork_prepare(void);
/* Register the handlers now and not with the first arena: for a layer whose arena a task of the helper creates. -errno */
int sublet__linux_fork_register(void);
void sublet__linux_fork_cancel(void);
void sublet__linux_fork_child(void);

/*
 * Have the engine's sublet__mm_fork_restore called once more, soon and by another thread, though
 * everything was shared again: what sublet__mm_note_protected asks for. Cheap; any thread, any time.
 */
void sublet__linux_fork_again(struct sublet_arena *arena);

/*
 * Whether the program has asked the kernel to lock what it maps from now on, mlockall(MCL_FUTURE): addresses that lent
 * memory leaves behind are unlocked then, or they would count as locked. Any thread, any time.
 */
void sublet__linux_lock_future(bool locks);

/*
 * Whether this process is a child of fork() of the one that created the arena: its lent memory is
 * ordinary copy-on-write memory here, at the same addresses, and no call may be made on the arena
 * but this one and sublet_arena_destroy, which does nothing. Cheap: one load.
 */
bool sublet__linux_in_child(struct sublet_arena *arena);

/*
 * A word that is 1 here, and 0 in every child that this process forks, by whatever call: the kernel clears it there. It has a
 * page of its own. -errno of the mapping
 */
int sublet__here_open(uint32_t **here);
void sublet__here_close(uint32_t *here);

/*
 * Move a new descriptor of ours out of the low numbers: programs choose those by number, and daemons
 * close everything from 3 on. Returns the number to use from here on, close-on-exec; the same one
 * where there is no higher, or fd is negative.
 *
 * fd_least is where those numbers begin: a little below the limit of open files, where nobody who chooses a number
 * by hand looks for one, or below FD_END where the limit is higher (the kernel copies as many entries at each fork).
 */
#define SUBLET__FD_END 4096u
int sublet__linux_fd_high(int fd);
uint32_t sublet__linux_fd_least(void);

/*
 * Give the calling thread, and those that it starts later, a table of descriptors of its own, with
 * nothing in it but fds[] and what the engine needs for this arena, under the same numbers. At most 8
 * fds. -errno: the kernel has no such thing, and the thread goes on with the program's table.
 */
int sublet__linux_fds_apart(struct sublet_arena *arena, const int *fds, uint32_t count);

/*
 * Torture mode: a thread that every period_ns moves one live run to other frames, and now and then
 * claims and releases a random window (64 KiB to an eighth of the area). Stopped by
 * sublet_arena_destroy. -EINVAL: period 0; -EALREADY: it runs; -errno of the thread.
 */
int sublet__linux_chaos_start(struct sublet_arena *arena, uint64_t period_ns, uint64_t seed);

/*
 * Time a libc memcpy of `bytes` between two fresh, populated, cold buffers made of the arena's kind
 * of backing; the median of three. -ENOMEM, -EINVAL (0 or more than the arena holds).
 */
int sublet__linux_memcpy_ns(struct sublet_arena *arena, uint64_t bytes, uint64_t *elapsed_ns);

#endif
