/* SPDX-License-Identifier: MIT */
/*
 * linux/helper.h: the helper process, which does our work beside an unmodified program.
 *
 * `sublet run` promises a program that it is alone: no thread, no descriptor and no handler of ours in its process. So
 * what needs them runs in a second process that shares the program's memory and nothing else. Its threads are called
 * tasks here. helper.c has the life of that process, confine.c its rights.
 *
 * A program that uses the library has no helper: every function here then does the plain thing.
 */
#ifndef SUBLET_LINUX_HELPER_H
#define SUBLET_LINUX_HELPER_H

#include "linux/raw.h"
#include "linux/thread.h"

#include <sched.h>
#include <stdint.h>
#include <sys/types.h>

/* A task is a thread of the helper's process. The filter of confine.c allows clone with these flags only. */
#define SUBLET__TASK_CLONE_FLAGS                                                                           \
	(CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | CLONE_SETTLS | \
	 CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID)

/*
 * Whether it can be started: not after unshare(CLONE_NEWPID) or setns(), which put the children of a process into another
 * pid namespace. The first one there is its init, which a helper must not be: with it the namespace ends.
 */
bool sublet__helper_is_possible(void);
/*
 * Start the helper of this process, once, from the main thread while it is the only one. Tasks that are started before
 * sublet__helper_confine run after it. -errno of clone, of memory, or -EOPNOTSUPP; then there is none.
 */
int sublet__helper_start(void);
/* Give up the rights that only the start needs, and run the tasks. -errno; the helper goes on with its rights then. */
int sublet__helper_confine(void);
/*
 * Have the helper remove `file` of the directory `dir`, a descriptor of its own, at its end. Once, on a task, before
 * sublet__helper_confine. `file` stays where it is. Nothing is removed where the kernel has no Landlock (before 5.13, or
 * not switched on): the right to remove files is not kept without a limit to that directory.
 */
void sublet__helper_unlink_at_end(int dir, const char *file);
/* End it. For a start that failed later. */
void sublet__helper_stop(void);

/* Whether this process has one, ended or not: then descriptors of ours are numbers in the helper's table alone. */
bool sublet__helper_exists(void);
/* Whether the calling thread is one of its tasks. */
bool sublet__helper_is_here(void);
/* Whether the calling thread may use descriptors of ours: there is no helper, or the thread is its task. */
static inline bool sublet__descriptors_are_here(void)
{
	return !sublet__helper_exists() || sublet__helper_is_here();
}
/* Close a descriptor of ours; nothing where it is -1, or a number in the helper's table only. */
static inline void sublet__fd_drop(int fd)
{
	if (fd >= 0 && sublet__descriptors_are_here())
		sublet__raw_close(fd);
}
/* In a child of fork(), which has no helper. Descriptors are to be dropped before. */
void sublet__helper_fork_child(void);

/* On a task: the program's /proc/PID/status, a new number each time; -1: there is no /proc, or the thread is no task. */
int sublet__helper_status_fd(void);

/* The process that the memory belongs to. getpid() of a task is the helper's number. */
pid_t sublet__program_pid(void);

/*
 * An order: a thread of the program has a task call a function, and waits for the answer. One at a time; others wait for
 * the lock. A task that takes orders sleeps on `bell`, which counts them and other reasons to look around.
 */
struct sublet__order {
	sublet__a32 lock;  /* sublet__lock */
	sublet__a32 state; /* futex: see helper.c */
	sublet__a32 bell;  /* futex */
	int (*fn)(void *arg);
	void *arg;
	int result;
};
/* fn(arg) by the task that takes orders here. -EPIPE: the helper has ended. A thread of the program only. */
int sublet__order_give(struct sublet__order *order, int (*fn)(void *arg), void *arg);
/* The task: do what is ordered, if anything is. */
void sublet__order_take(struct sublet__order *order);
/*
 * A task that is doing an order has the thread that gave it call fn(arg): with the rights of the program, which may be
 * more than the helper's. -EPERM: the calling thread is no such task.
 */
int sublet__order_ask(int (*fn)(void *arg), void *arg);
/* Wake the task that sleeps on the bell, for another reason. */
void sublet__order_ring(struct sublet__order *order);
/* In a child of fork(): nobody waits. */
void sublet__order_clear(struct sublet__order *order);

/*
 * Have the helper's first task call fn(arg), and wait for its answer. fn must not take a lock of the engine: the caller
 * may hold one. Without a helper, or on a task, it is a plain call. -EPIPE: the helper has ended.
 */
int sublet__helper_call(int (*fn)(void *arg), void *arg);

/* Start a task on the prepared thread object: fn, arg and name are set. On a task only. -errno of clone or memory. */
int sublet__helper_task_start(struct sublet__thread *thread);

/*
 * Somebody may end the helper (SIGKILL). What it held, the engine's locks included, stays as it was then, so the engine
 * is not to be entered again, and a thread that waits in it must get out.
 *
 * sublet__helper_guard calls fn(arg), which may enter the engine, on a thread of the program. False: the helper has
 * ended, and fn did not begin or was left in the middle, by a jump. fn holds no lock but the engine's, and nothing that
 * its caller needs. Calls may nest; the outermost one is returned from.
 */
bool sublet__helper_guard(void (*fn)(void *arg), void *arg);
/* Whether it has ended though the program has not. */
bool sublet__helper_is_gone(void);
/* Called where a thread of the program waits: jumps out if the helper is gone. */
void sublet__helper_check(void);
/* How long such a wait may last until it has to call sublet__helper_check; UINT64_MAX where it need not. */
uint64_t sublet__helper_wait_ns(void);

/*
 * To go on would lose the program's data: end the program, by SIGABRT where it is another process, then the caller's.
 */
_Noreturn void sublet__program_abort(void);

/*
 * confine.c: for helper.c. Take from the calling task, and from all that it starts from then on, what it does not need.
 * program_pidfd, remove_dir: descriptors that it keeps a right for, or -1. *can_remove: whether files of remove_dir may be
 * removed. -errno
 */
int sublet__confine(int program_pidfd, int remove_dir, bool *can_remove);

#endif
