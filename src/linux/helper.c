/* SPDX-License-Identifier: MIT */
/*
 * linux/helper.c: the life of the helper process.
 *
 * clone(CLONE_VM) without CLONE_THREAD, FILES, FS and SIGHAND: the helper has the program's memory, and a process of its
 * own for all the rest. The program stays single-threaded for the kernel (unshare, setns) and for libc; its filters,
 * limits, descriptors and signals do not meet ours; a claim works while the program is stopped.
 *
 *   its parent          An intermediate process that ends at once, so that the helper belongs to init and wait() of the
 *                       program never sees it. Where init is the program itself, or the program reaps orphans, the helper
 *                       is its child without a signal at its end: only wait calls with __WALL or __WCLONE see it.
 *   its session         its own: Ctrl-C, kill(-pgid) and the end of a terminal do not reach it. All signals are blocked.
 *   its directory       /, so that it keeps no file system from being unmounted.
 *   its descriptors     what the arena needs, and standard error where that is a terminal, a device or a file. A pipe or a
 *                       socket has a reader that waits for its end, which the helper would delay.
 *
 * Its end: with the program, that is at exit, by a signal, at exec. Nothing signals exec to another process. But the
 * kernel clears the word of set_tid_address when the main thread leaves its address space, by exec or by its end, if
 * somebody else uses that address space, and wakes a futex there; libc has one for the main thread. The helper's first
 * task waits on it. The kernel wakes one waiter, which may be the wrong one: somebody may join the main thread. So the task
 * passes the wake on. A main thread that ended alone (pthread_exit) looks the same: then the pidfd of the program tells
 * whether it lives, and kcmp whether its address space still is this one. A main thread that has ended has none, which
 * /proc/PID/status says; where there is no /proc, the helper ends with the main thread.
 *
 * An order is how a thread of the program has a task do something: one slot, two futex words, and the same
 * calls that any lock of libc makes. The first task takes orders and never takes a lock of the engine, so a caller
 * may hold one.
 *
 * Rejected: threads in the program (what they broke is above); a process that shares the area by its file only, as a
 * second engine or an agent would: each move changes the program's mappings, which no other process can do.
 */
#include "linux/helper.h"

#include "linux/platform.h"
#include "linux/proc.h"
#include "linux/raw.h"

#include <sublet/types.h>

#include <limits.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <linux/futex.h>
#include <linux/kcmp.h>

#define WAITV_SIZE_U32 2u
#define WAITV_PRIVATE  128u

#define NAME            "sublet-helper"
#define STATUS_FD       (STDERR_FILENO + 1)
#define BETWEEN_BYTES   ((size_t)16 << 10) /* stack of the intermediate process */
#define LOOK_NS         SUBLET_SEC         /* the first task looks after the program at least so often */
#define LOOK_OLD_NS     (10 * SUBLET_MS)   /* and so often on a kernel without futex_waitv (before 5.16) */
#define LOOK_CLOSELY_NS SUBLET_MS          /* for a while after the main thread has gone, and then */
#define LOOK_GONE_NS    (50 * SUBLET_MS)
#define CLOSELY_TIMES   200u
#define GUARD_NS        (100 * SUBLET_MS) /* how late a waiting thread learns that the helper has gone */

/* Of an order: posted by a thread of the program under the lock, done by a task. ASKED: the thread has to do something. */
enum order_state { ORDER_NONE, ORDER_POSTED, ORDER_ASKED, ORDER_DONE };

/* As the kernel has it (struct futex_waitv), which is newer than some headers. */
struct waitv {
	uint64_t expected;
	uint64_t word;
	uint32_t flags;
	uint32_t reserved;
};

/* One for the process. Written by the start, which is alone; what changes later says so. */
static struct {
	sublet__a32 exists; /* 1: descriptors are the helper's; set before the first call of it */
	sublet__a32 tid;    /* of the first task; the kernel clears it at its end */
	const sublet__a32 *
		alive; /* the word of the main thread of the program, not 0 while it is in this address space */
	sublet__a32 own_word; /* instead, where libc's cannot be found */
	pid_t program_pid;
	struct sublet__thread_memory memory; /* of the first task */
	int program_pidfd;                   /* in the helper's table, like the next */
	int status_fd;                       /* /proc/PID/status of the program; -1: there is none */
	struct sublet__order order;
	/* The first task's own: */
	bool is_confined;
	int unlink_dir; /* -1: nothing to remove */
	const char *unlink_file;
	struct sublet__thread
		*waiting; /* tasks that start when the helper has been confined, the newest first */
	uint32_t looks;   /* after the main thread had gone */
} helper = { .program_pidfd = -1, .status_fd = -1, .unlink_dir = -1 };

static __thread bool is_task __attribute__((tls_model("initial-exec")));
static __thread struct sublet__order *doing __attribute__((tls_model("initial-exec")));
static __thread jmp_buf *guard __attribute__((tls_model("initial-exec")));

bool sublet__helper_exists(void)
{
	/* Relaxed: set before the program runs, and cleared in a child of fork() while it has one thread. */
	return a32_load_relaxed(&helper.exists);
}

bool sublet__helper_is_here(void)
{
	return is_task;
}

pid_t sublet__program_pid(void)
{
	return is_task ? helper.program_pid : getpid();
}

int sublet__helper_status_fd(void)
{
	return is_task && helper.status_fd >= 0
		       ? (int)syscall(SYS_fcntl, helper.status_fd, F_DUPFD_CLOEXEC, 0)
		       : -1;
}

bool sublet__helper_is_gone(void)
{
	/* Acquire: pairs with the kernel's store at the end of the task. */
	return sublet__helper_exists() && !is_task && !a32_load_acquire(&helper.tid);
}

/* ---- the first task ---- */

static bool program_has_ended(void)
{
	struct pollfd p = { .fd = helper.program_pidfd, .events = POLLIN };

	return helper.program_pidfd >= 0 && sublet__raw_poll(&p, 1, 0) > 0;
}

/*
 * The main thread has left its address space, and not for another one: it ends, and its pid stays the program's. Its state
 * says so only later.
 */
static bool main_thread_has_no_memory(void)
{
	char text[4096];
	long n = sublet__raw_pread(helper.status_fd, text, sizeof text - 1, 0);

	if (n <= 0)
		return false;
	text[n] = 0;
	return n < (long)sizeof text - 1 && !strstr(text, "\nVmSize:");
}

/* Whether the program still runs in this address space. The main thread has left it. */
static bool program_is_here(void)
{
	if (program_has_ended())
		return false;
	return main_thread_has_no_memory() ||
	       syscall(SYS_kcmp, helper.program_pid, syscall(SYS_getpid), KCMP_VM, 0, 0) == 0;
}

/* The program has gone. First the file: as long as it is there, somebody answers at it. */
static _Noreturn void end(void)
{
	if (helper.unlink_dir >= 0)
		(void)syscall(SYS_unlinkat, helper.unlink_dir, helper.unlink_file, 0);
	for (;;)
		syscall(SYS_exit_group, 0);
}

/* Returns how long the next wait may last. Ends the helper with the program. */
static uint64_t look_after_program(void)
{
	if (a32_load_acquire(helper.alive)) {
		if (program_has_ended()) /* a kernel that does not clear the word while it writes a core */
			end();
		return LOOK_NS;
	}
	if (!program_is_here())
		end();
	/* For a thread that joins the main thread. */
	if (!helper.looks)
		(void)syscall(SYS_futex, helper.alive, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
	/* An exec clears the word before it changes the address space. */
	return helper.looks++ < CLOSELY_TIMES ? LOOK_CLOSELY_NS : LOOK_GONE_NS;
}

/* Until the bell rings, the main thread leaves, or the time is over. */
static void wait_for_both(uint32_t bell, uint64_t ns)
{
	uint32_t alive = a32_load_acquire(helper.alive);
	struct waitv words[2] = {
		{ .expected = bell,
		  .word = (uintptr_t)&helper.order.bell,
		  .flags = WAITV_SIZE_U32 | WAITV_PRIVATE },
		/* The kernel's wake at the end of a thread is of the process-shared kind. */
		{ .expected = alive, .word = (uintptr_t)helper.alive, .flags = WAITV_SIZE_U32 },
	};
	uint64_t until = sublet__now_ns() + ns;
	struct timespec t = { (time_t)(until / SUBLET_SEC), (long)(until % SUBLET_SEC) };

	if (syscall(SYS_futex_waitv, words, alive ? 2u : 1u, 0, &t, CLOCK_MONOTONIC) < 0 && errno == ENOSYS)
		sublet__futex_wait(&helper.order.bell, bell, ns < LOOK_OLD_NS ? ns : LOOK_OLD_NS);
}

/* Standard error is kept under its number where nobody waits for its end. */
static void descriptors_close(void)
{
	struct stat st;
	bool keep = !fstat(STDERR_FILENO, &st) && (S_ISREG(st.st_mode) || S_ISCHR(st.st_mode));

	/* It becomes the first one after standard error, so that all others can go at once. */
	if (helper.status_fd >= 0 && helper.status_fd != STATUS_FD)
		helper.status_fd = (int)syscall(SYS_dup3, helper.status_fd, STATUS_FD, O_CLOEXEC);
	(void)syscall(SYS_close_range, 0u, (unsigned int)STDERR_FILENO - 1, 0);
	if (!keep)
		sublet__raw_close(STDERR_FILENO);
	(void)syscall(SYS_close_range, (unsigned int)STATUS_FD + (helper.status_fd >= 0), UINT_MAX, 0);
	/* The low numbers stay taken: a message must not be written into a file of the arena. */
	long fd;
	do
		fd = syscall(SYS_eventfd2, 0, O_CLOEXEC);
	while (fd >= 0 && fd < STDERR_FILENO);
}

/* As far as that is allowed: to no limit, or to the hard one. */
static void limit_lift(__rlimit_resource_t which)
{
	struct rlimit limit = { RLIM_INFINITY, RLIM_INFINITY };

	if (which != RLIMIT_NOFILE && !setrlimit(which, &limit))
		return;
	if (!getrlimit(which, &limit)) {
		limit.rlim_cur = limit.rlim_max;
		(void)setrlimit(which, &limit);
	}
}

/* Limits that are about this process alone. Those about memory stay the program's until its arena has been sized. */
static void limits_own(void)
{
	static const struct rlimit none = { 0, 0 };

	limit_lift(RLIMIT_NOFILE);
	limit_lift(RLIMIT_FSIZE);
	limit_lift(RLIMIT_CPU);
	/* Its core would be all of the program's memory. */
	(void)setrlimit(RLIMIT_CORE, &none);
}

/* What clone() starts, and never comes back from. */
static int first_task(void *arg)
{
	(void)arg;
	is_task = true;
	(void)syscall(SYS_setsid);
	(void)syscall(SYS_chdir, "/");
	(void)prctl(PR_SET_NAME, NAME);
	descriptors_close();
	limits_own();
	helper.program_pidfd = (int)syscall(SYS_pidfd_open, helper.program_pid, 0);
	while (true) {
		uint32_t bell = a32_load_acquire(&helper.order.bell);
		sublet__order_take(&helper.order);
		wait_for_both(bell, look_after_program());
	}
	return 0;
}

/* ---- start ---- */

bool sublet__helper_is_possible(void)
{
	char own[64], of_children[64];
	long n = syscall(SYS_readlinkat, AT_FDCWD, "/proc/self/ns/pid", own, sizeof own);

	/* Without /proc it is not known, and rare. A namespace without an init yet has no name. */
	return n <= 0 || (syscall(SYS_readlinkat, AT_FDCWD, "/proc/self/ns/pid_for_children", of_children,
				  sizeof of_children) == n &&
			  !memcmp(own, of_children, (size_t)n));
}

/* With every signal blocked, which the helper inherits. */
static int clone_first(void *arg)
{
	int flags = CLONE_VM | CLONE_SETTLS | CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID;

	(void)arg;
	return clone(first_task, helper.memory.stack, flags, NULL, &helper.tid, helper.memory.pointer,
		     &helper.tid) < 0
		       ? errno
		       : 0;
}

/* The program would become the parent of an orphan. */
static bool is_reaper(void)
{
	int subreaper = 0;

	return getpid() == 1 || (!prctl(PR_GET_CHILD_SUBREAPER, &subreaper) && subreaper);
}

/*
 * By way of a process that ends at once. CLONE_VFORK: it runs on the thread area of the caller, which sleeps until then.
 * Its end has no signal, so no handler of the program is told, and wait() needs __WALL to see it.
 */
static int clone_as_orphan(void)
{
	char *stack = mmap(NULL, BETWEEN_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int status = 0;

	if (stack == MAP_FAILED)
		return -ENOMEM;
	pid_t pid = clone(clone_first, stack + BETWEEN_BYTES, CLONE_VM | CLONE_VFORK, NULL);
	int err = pid < 0 ? -errno : 0;
	while (!err && waitpid(pid, &status, __WALL) < 0)
		err = errno == EINTR ? 0 : -errno;
	(void)munmap(stack, BETWEEN_BYTES);
	return err ? err : -WEXITSTATUS(status);
}

int sublet__helper_start(void)
{
	void *word = NULL;
	int err = sublet__thread_memory_learn();

	if (err)
		return err;
	helper.program_pid = getpid();
	if (prctl(PR_GET_TID_ADDRESS, &word) || !word) {
		/* A kernel without CONFIG_CHECKPOINT_RESTORE. libc cannot join the main thread then, which nobody does. */
		a32_store_relaxed(&helper.own_word, (uint32_t)helper.program_pid);
		word = &helper.own_word;
		(void)syscall(SYS_set_tid_address, word);
	}
	helper.alive = word;
	err = sublet__thread_memory_create(&helper.memory);
	if (err)
		return err;
	a32_store_release(&helper.exists, 1);
	/* Opened here, where `self` is the program; the helper has a copy. */
	int status_fd = helper.status_fd = sublet__raw_open(AT_FDCWD, "/proc/self/status", O_RDONLY);
	sublet__signals_block();
	err = is_reaper() ? -clone_first(NULL) : clone_as_orphan();
	sublet__signals_unblock();
	if (status_fd >= 0)
		sublet__raw_close(status_fd);
	if (err) {
		a32_store_release(&helper.exists, 0);
		sublet__thread_memory_destroy(helper.memory.map);
	}
	return err;
}

static int end_here(void *arg)
{
	(void)arg;
	end();
}

void sublet__helper_unlink_at_end(int dir, const char *file)
{
	helper.unlink_dir = dir;
	helper.unlink_file = file;
}

void sublet__helper_stop(void)
{
	if (!sublet__helper_exists())
		return;
	(void)sublet__helper_call(end_here, NULL);
	a32_store_release(&helper.exists, 0);
}

void sublet__helper_fork_child(void)
{
	a32_store_release(&helper.exists, 0);
	sublet__order_clear(&helper.order);
}

/* ---- tasks ---- */

static int task_main(void *arg)
{
	struct sublet__thread *t = arg;

	is_task = true;
	(void)prctl(PR_SET_NAME, t->name);
	(void)t->fn(t->arg);
	return 0;
}

static int task_clone(struct sublet__thread *t)
{
	struct sublet__thread_memory memory;
	int err = sublet__thread_memory_create(&memory);

	if (err)
		return err;
	t->map = memory.map;
	if (clone(task_main, memory.stack, SUBLET__TASK_CLONE_FLAGS, t, &t->tid, memory.pointer, &t->tid) >=
	    0)
		return 0;
	err = -errno;
	sublet__thread_memory_destroy(memory.map);
	return err;
}

int sublet__helper_task_start(struct sublet__thread *t)
{
	t->is_task = true;
	t->map = NULL;
	a32_store_relaxed(&t->tid, 0);
	if (helper.is_confined)
		return task_clone(t);
	t->next = helper.waiting;
	helper.waiting = t;
	return 0;
}

static int confine(void *arg)
{
	(void)arg;
	bool can_remove = false;

	/* For its files, which a fork on huge pages will want to read (private.c). */
	(void)sublet__memory_available();
	limit_lift(RLIMIT_AS);
	limit_lift(RLIMIT_DATA);
	limit_lift(RLIMIT_MEMLOCK);
	int err = sublet__confine(helper.program_pidfd, helper.unlink_dir, &can_remove);

	helper.is_confined = true;
	if (!can_remove)
		helper.unlink_dir = -1;
	while (!err && helper.waiting) {
		struct sublet__thread *t = helper.waiting;
		helper.waiting = t->next;
		err = task_clone(t);
	}
	return err;
}

int sublet__helper_confine(void)
{
	return sublet__helper_exists() ? sublet__helper_call(confine, NULL) : 0;
}

/* ---- orders ---- */

void sublet__order_ring(struct sublet__order *order)
{
	/* Pairs with the task's load before it looks around: it does not go to sleep on a bell that has rung since. */
	(void)a32_add_acq_rel(&order->bell, 1);
	sublet__futex_wake(&order->bell, 1);
}

int sublet__order_give(struct sublet__order *order, int (*fn)(void *arg), void *arg)
{
	uint32_t state;
	int result;

	sublet__lock(&order->lock);
	order->fn = fn;
	order->arg = arg;
	/* Pairs with sublet__order_take. */
	a32_store_release(&order->state, ORDER_POSTED);
	sublet__order_ring(order);
	while ((state = a32_load_acquire(&order->state)) != ORDER_DONE && !sublet__helper_is_gone()) {
		if (state == ORDER_POSTED) {
			sublet__futex_wait(&order->state, state, UINT64_MAX);
			continue;
		}
		order->result = order->fn(order->arg);
		/* Pairs with the load in sublet__order_ask. */
		a32_store_release(&order->state, ORDER_POSTED);
		sublet__futex_wake(&order->state, 1);
	}
	result = state == ORDER_DONE ? order->result : -EPIPE;
	a32_store_release(&order->state, ORDER_NONE);
	sublet__unlock(&order->lock);
	return result;
}

void sublet__order_take(struct sublet__order *order)
{
	/* Pairs with the store in sublet__order_give: fn and arg are there. */
	if (a32_load_acquire(&order->state) != ORDER_POSTED)
		return;
	doing = order;
	order->result = order->fn(order->arg);
	doing = NULL;
	a32_store_release(&order->state, ORDER_DONE);
	sublet__futex_wake(&order->state, 1);
}

int sublet__order_ask(int (*fn)(void *arg), void *arg)
{
	struct sublet__order *order = doing;

	if (!order)
		return -EPERM;
	order->fn = fn;
	order->arg = arg;
	/* Pairs with the load in sublet__order_give. */
	a32_store_release(&order->state, ORDER_ASKED);
	sublet__futex_wake(&order->state, 1);
	while (a32_load_acquire(&order->state) == ORDER_ASKED)
		sublet__futex_wait(&order->state, ORDER_ASKED, UINT64_MAX);
	return order->result;
}

void sublet__order_clear(struct sublet__order *order)
{
	a32_store_release(&order->lock, 0);
	a32_store_release(&order->state, ORDER_NONE);
}

int sublet__helper_call(int (*fn)(void *arg), void *arg)
{
	return sublet__descriptors_are_here() ? fn(arg) : sublet__order_give(&helper.order, fn, arg);
}

/* ---- a helper that somebody ended ---- */

bool sublet__helper_guard(void (*fn)(void *arg), void *arg)
{
	jmp_buf here;

	if (sublet__descriptors_are_here() || guard) {
		fn(arg);
		return true;
	}
	if (sublet__helper_is_gone())
		return false;
	if (_setjmp(here)) {
		guard = NULL;
		return false;
	}
	guard = &here;
	fn(arg);
	guard = NULL;
	return true;
}

void sublet__helper_check(void)
{
	if (guard && sublet__helper_is_gone())
		longjmp(*guard, 1);
}

uint64_t sublet__helper_wait_ns(void)
{
	return sublet__descriptors_are_here() ? UINT64_MAX : GUARD_NS;
}

_Noreturn void sublet__program_abort(void)
{
	if (is_task) {
		(void)syscall(SYS_pidfd_send_signal, helper.program_pidfd, SIGABRT, NULL, 0);
		/* A program that handles the signal, or runs as another user by now, is not to go on either. */
		(void)syscall(SYS_pidfd_send_signal, helper.program_pidfd, SIGKILL, NULL, 0);
		syscall(SYS_exit_group, 1);
	}
	abort();
}
