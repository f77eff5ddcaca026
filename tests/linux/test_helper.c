/* SPDX-License-Identifier: MIT */
/*
 * linux/helper.c, thread.c and thread_memory.c: orders, tasks, what is a thread's own, the life of the helper, and a helper
 * that somebody ends. Each test is a process of its own (helper_world.h). What the helper may do: test_confine.c.
 */
#include "helper_world.h"

#include <dirent.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif

enum { ORDERS = 2000, THREADS = 4, TASKS = 40 };

/* ---- orders ---- */

static int add_one(void *arg)
{
	CHECK(sublet__helper_is_here());
	CHECK(sublet__descriptors_are_here());
	return ++*(int *)arg;
}

static int answer_minus_five(void *arg)
{
	(void)arg;
	return -5;
}

static void program_orders(void)
{
	int value = 0;

	helper_begin();
	CHECK(helper_pid() != getpid());
	CHECK(!sublet__descriptors_are_here());
	for (int i = 1; i <= ORDERS; i++)
		CHECK(sublet__helper_call(add_one, &value) == i && value == i);
	CHECK(sublet__helper_call(answer_minus_five, NULL) == -5);
}

static void test_orders(void **context)
{
	(void)context;
	program_run(program_orders);
}

static int shared_value; /* orders are one at a time, so no atomic is needed */

static void *give_orders(void *arg)
{
	for (int i = 0; i < ORDERS; i++)
		CHECK(sublet__helper_call(add_one, &shared_value) > 0);
	return arg;
}

static void program_orders_of_threads(void)
{
	pthread_t thread[THREADS];

	helper_begin();
	for (int i = 0; i < THREADS; i++)
		CHECK(pthread_create(&thread[i], NULL, give_orders, NULL) == 0);
	for (int i = 0; i < THREADS; i++)
		CHECK(pthread_join(thread[i], NULL) == 0);
	CHECK(shared_value == THREADS * ORDERS);
}

static void test_orders_of_several_threads(void **context)
{
	(void)context;
	program_run(program_orders_of_threads);
}

/* Where a function ran: the pid, and whether that was a task. */
struct where {
	int pid;
	bool is_task;
	int answer;
};

static int look_where(void *arg)
{
	struct where *w = arg;

	w->pid = (int)syscall(SYS_getpid);
	w->is_task = sublet__helper_is_here();
	return w->answer;
}

static int ask_twice(void *arg)
{
	struct where *w = arg;

	CHECK(sublet__helper_is_here());
	w[0].answer = 17;
	CHECK(sublet__order_ask(look_where, &w[0]) == 17);
	w[1].answer = -3;
	CHECK(sublet__order_ask(look_where, &w[1]) == -3);
	return 4;
}

static void program_asked(void)
{
	helper_begin();
	CHECK(sublet__order_ask(look_where, NULL) == -EPERM);
	for (int round = 0; round < ORDERS; round++) {
		struct where w[2] = { { .pid = 0 }, { .pid = 0 } };
		CHECK(sublet__helper_call(ask_twice, w) == 4);
		for (int i = 0; i < 2; i++)
			CHECK(w[i].pid == getpid() && !w[i].is_task);
	}
}

/* A task has the thread that waits for it do something, with the rights of that thread. */
static void test_a_task_asks(void **context)
{
	(void)context;
	program_run(program_asked);
}

/* ---- tasks ---- */

static __thread int marked = 42;
static __thread int unmarked;
static __thread char aligned[64] __attribute__((aligned(64))) = "as it was linked";
static sublet__a32 tasks_seen;

static void *look_at_own(void *arg)
{
	int mine = (int)(uintptr_t)arg;

	CHECK(sublet__helper_is_here());
	CHECK(marked == 42 && unmarked == 0 && errno == 0);
	CHECK(!strcmp(aligned, "as it was linked") && ((uintptr_t)aligned & 63) == 0);
	marked = unmarked = mine;
	aligned[0] = (char)mine;
	for (int i = 0; i < 50; i++) {
		CHECK(syscall(SYS_futex, NULL, -1, 0, NULL, NULL, 0) == -1);
		errno = 1000 + mine;
		sublet__raw_sleep_ns(100 * SUBLET_US);
		CHECK(marked == mine && unmarked == mine && aligned[0] == (char)mine && errno == 1000 + mine);
	}
	a32_add_acq_rel(&tasks_seen, 1);
	return NULL;
}

static int threads_of(pid_t pid)
{
	char path[64];
	int count = 0;

	snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
	DIR *d = opendir(path);
	CHECK(d);
	for (struct dirent *e = readdir(d); e; e = readdir(d))
		count += e->d_name[0] != '.';
	closedir(d);
	return count;
}

static void program_tasks(void)
{
	static struct sublet__thread early[3], late[TASKS];

	CHECK(sublet__helper_start() == 0);
	for (int i = 0; i < 3; i++)
		CHECK(sublet__linux_thread_start(&early[i], "early", look_at_own,
						 (void *)(uintptr_t)(i + 1)) == 0);
	CHECK(a32_load_acquire(&tasks_seen) == 0); /* they run when the helper has been confined */
	CHECK(sublet__helper_confine() == 0);
	marked = 7;
	unmarked = 8;
	strcpy(aligned, "changed");
	errno = 9;
	for (int i = 0; i < TASKS; i++)
		CHECK(sublet__linux_thread_start(&late[i], "a name of more than fifteen bytes", look_at_own,
						 (void *)(uintptr_t)(i + 10)) == 0);
	CHECK(threads_of(getpid()) == 1);
	for (int i = 0; i < TASKS; i++)
		sublet__linux_thread_join(&late[i]);
	for (int i = 0; i < 3; i++)
		sublet__linux_thread_join(&early[i]);
	CHECK(a32_load_acquire(&tasks_seen) == TASKS + 3);
	CHECK(marked == 7 && unmarked == 8 && !strcmp(aligned, "changed"));
	CHECK(threads_of(helper_pid()) == 1);
}

/* Variables of a thread, errno among them, are each task's own, and begin as the linker has them. */
static void test_tasks(void **context)
{
	(void)context;
	program_run(program_tasks);
}

static void program_never_confined(void)
{
	static struct sublet__thread waiting;

	CHECK(sublet__helper_start() == 0);
	CHECK(sublet__linux_thread_start(&waiting, "never", look_at_own, NULL) == 0);
	int pidfd = (int)syscall(SYS_pidfd_open, helper_pid(), 0);
	CHECK(pidfd >= 0);
	sublet__helper_stop();
	CHECK(!sublet__helper_exists());
	sublet__linux_thread_join(&waiting);
	CHECK(ends_soon(pidfd));
	CHECK(a32_load_acquire(&tasks_seen) == 0);
}

/* A start that failed later: the helper is stopped, and tasks that waited for it never ran. */
static void test_stopped_before_its_tasks(void **context)
{
	(void)context;
	program_run(program_never_confined);
}

static void *be_of_libc(void *arg)
{
	(void)look_where(arg);
	return NULL;
}

/* Without a helper all is the plain thing. */
static void program_without(void)
{
	static struct sublet__thread thread;
	struct where w = { .answer = 3 };

	CHECK(!sublet__helper_exists() && !sublet__helper_is_here() && !sublet__helper_is_gone());
	CHECK(sublet__descriptors_are_here());
	CHECK(sublet__helper_call(look_where, &w) == 3 && w.pid == getpid() && !w.is_task);
	CHECK(sublet__helper_confine() == 0);
	CHECK(sublet__program_pid() == getpid());
	CHECK(sublet__helper_wait_ns() == UINT64_MAX);
	CHECK(sublet__linux_thread_start(&thread, "of-libc", be_of_libc, &w) == 0);
	sublet__linux_thread_join(&thread);
	CHECK(!w.is_task && w.pid == getpid());
	sublet__helper_stop();
}

static void test_without_a_helper(void **context)
{
	(void)context;
	program_run(program_without);
}

/* ---- its life ---- */

static char folder[64];
static int told[2];

static void folder_make(void)
{
	char path[128];

	strcpy(folder, "/tmp/sublet-helper-XXXXXX");
	assert_non_null(mkdtemp(folder));
	snprintf(path, sizeof path, "%s/" FILE_AT_END, folder);
	FILE *file = fopen(path, "w");
	assert_non_null(file);
	fclose(file);
	assert_int_equal(pipe(told), 0);
}

/* The file is gone if the kernel has Landlock; then the folder is empty. */
static void folder_remove(void)
{
	char path[128];

	snprintf(path, sizeof path, "%s/" FILE_AT_END, folder);
	if (syscall(SYS_landlock_create_ruleset, NULL, 0, 1u) > 0)
		assert_int_equal(access(path, F_OK), -1);
	(void)unlink(path);
	assert_int_equal(rmdir(folder), 0);
	close(told[0]);
	close(told[1]);
}

/* A program says the pid of its helper. */
static void tell_helper(void)
{
	pid_t pid = helper_pid();

	CHECK(write(told[1], &pid, sizeof pid) == sizeof pid);
}

/* A helper of a program that has just started: a pidfd. */
static int helper_of(pid_t program)
{
	pid_t pid = 0;

	assert_int_equal(read(told[0], &pid, sizeof pid), sizeof pid);
	assert_int_not_equal(pid, program);
	int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	assert_true(pidfd >= 0);
	return pidfd;
}

static void end_is_seen(void (*program)(void), int signal)
{
	folder_make();
	pid_t pid = program_start(program);
	int pidfd = helper_of(pid);

	if (signal)
		assert_int_equal(kill(pid, signal), 0);
	assert_true(ends_soon(pidfd));
	close(pidfd);
	(void)kill(pid, SIGKILL);
	(void)program_wait(pid);
	folder_remove();
}

static void program_returns(void)
{
	helper_begin_in(folder);
	tell_helper();
}

static void program_waits(void)
{
	helper_begin_in(folder);
	tell_helper();
	for (;;)
		pause();
}

static void program_executes(void)
{
	helper_begin_in(folder);
	tell_helper();
	execl("/bin/sh", "sh", "-c", "sleep 600", (char *)NULL);
	_exit(1);
}

static void *go_on_alone(void *arg)
{
	int value = 0;

	/* The kernel says that the main thread has left the address space; the helper must not believe that. */
	(void)pthread_join(*(pthread_t *)arg, NULL);
	for (int i = 1; i <= 400; i++) {
		CHECK(sublet__helper_call(add_one, &value) == i);
		sublet__raw_sleep_ns(SUBLET_MS);
	}
	_exit(0);
}

static void program_main_thread_ends(void)
{
	static pthread_t main_thread, other;

	main_thread = pthread_self();
	helper_begin_in(folder);
	tell_helper();
	CHECK(pthread_create(&other, NULL, go_on_alone, &main_thread) == 0);
	pthread_exit(NULL);
}

static void *execute(void *arg)
{
	execl("/bin/sh", "sh", "-c", "sleep 600", (char *)NULL);
	_exit(1);
	return arg;
}

static void program_other_thread_executes(void)
{
	pthread_t other;

	helper_begin_in(folder);
	tell_helper();
	CHECK(pthread_create(&other, NULL, execute, NULL) == 0);
	for (;;)
		pause();
}

static void program_is_reaper(void)
{
	CHECK(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0);
	program_waits();
}

static void test_ends_with_the_program(void **context)
{
	(void)context;
	end_is_seen(program_returns, 0);
	end_is_seen(program_waits, SIGTERM);
	end_is_seen(program_waits, SIGKILL);
	end_is_seen(program_is_reaper, SIGKILL);
}

static void test_ends_at_exec(void **context)
{
	(void)context;
	end_is_seen(program_executes, 0);
	end_is_seen(program_other_thread_executes, 0);
}

static void test_main_thread_that_ends_alone(void **context)
{
	(void)context;
	folder_make();
	pid_t pid = program_start(program_main_thread_ends);
	int pidfd = helper_of(pid);
	assert_int_equal(program_wait(pid), 0);
	assert_true(ends_soon(pidfd));
	close(pidfd);
	folder_remove();
}

static void program_waits_for_children(void)
{
	int status;

	helper_begin();
	errno = 0;
	CHECK(waitpid(-1, &status, __WALL) == -1 && errno == ECHILD);
	CHECK(waitpid(-1, &status, WNOHANG | (int)__WCLONE) == -1 && errno == ECHILD);
	CHECK(status_number(helper_pid(), "PPid", 10) != (uint64_t)getpid());
}

static void program_reaper_waits_for_children(void)
{
	int status;

	CHECK(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0);
	helper_begin();
	errno = 0;
	CHECK(waitpid(-1, &status, 0) == -1 && errno == ECHILD);
	/* The documented case: only who asks for children without a signal sees it. */
	CHECK(waitpid(-1, &status, WNOHANG | __WALL) == 0);
	CHECK(status_number(helper_pid(), "PPid", 10) == (uint64_t)getpid());
}

static void test_wait_does_not_see_it(void **context)
{
	(void)context;
	program_run(program_waits_for_children);
	program_run(program_reaper_waits_for_children);
}

static void program_in_a_group(void)
{
	CHECK(setpgid(0, 0) == 0);
	helper_begin();
	pid_t helper = helper_pid();
	CHECK(getpgid(helper) == helper && getsid(helper) == helper);
	CHECK(status_number(helper, "SigBlk", 16) != UINT64_MAX);
	CHECK((~status_number(helper, "SigBlk", 16) & ~(1ull << (SIGKILL - 1)) & ~(1ull << (SIGSTOP - 1))) ==
	      0);
	CHECK(signal(SIGTERM, SIG_IGN) != SIG_ERR);
	CHECK(kill(0, SIGTERM) == 0 && kill(helper, SIGTERM) == 0 && kill(helper, SIGINT) == 0);
	CHECK(helper_pid() == helper);
}

/* Signals to the program's group do not reach it, and those to itself wait for ever. */
static void test_signals(void **context)
{
	(void)context;
	program_run(program_in_a_group);
}

/* ---- a helper that somebody ends ---- */

static sublet__a32 held;
static bool was_left = true;

static int hold(void *arg)
{
	(void)arg;
	sublet__lock(&held);
	return 0;
}

static void wait_for_held(void *arg)
{
	(void)arg;
	sublet__lock(&held);
	was_left = false; /* never: nobody gives it back */
}

static void wait_nested(void *arg)
{
	CHECK(sublet__helper_guard(wait_for_held, arg));
	was_left = false;
}

static void *kill_helper(void *arg)
{
	/* 2: somebody waits */
	while (a32_load_acquire(&held) != 2)
		sublet__raw_sleep_ns(SUBLET_MS);
	CHECK(kill(*(pid_t *)arg, SIGKILL) == 0);
	return arg;
}

static void guard_is_left(void (*fn)(void *arg))
{
	static pid_t helper;
	pthread_t killer;

	helper_begin();
	helper = helper_pid();
	CHECK(sublet__helper_call(hold, NULL) == 0);
	CHECK(pthread_create(&killer, NULL, kill_helper, &helper) == 0);
	CHECK(!sublet__helper_guard(fn, NULL));
	CHECK(pthread_join(killer, NULL) == 0);
	CHECK(was_left && sublet__helper_is_gone() && sublet__helper_exists());
	CHECK(!sublet__helper_guard(fn, NULL));
	CHECK(sublet__helper_call(answer_minus_five, NULL) == -EPIPE);
	sublet__helper_check(); /* outside a guard: nothing */
}

static void program_waits_for_a_lock(void)
{
	guard_is_left(wait_for_held);
}

static void program_waits_nested(void)
{
	guard_is_left(wait_nested);
}

static void test_killed_with_a_lock_held(void **context)
{
	(void)context;
	program_run(program_waits_for_a_lock);
	program_run(program_waits_nested);
}

static int hold_and_sleep(void *arg)
{
	a32_store_release(&held, 2);
	for (;;)
		sublet__raw_sleep_ns(SUBLET_SEC);
	return arg != NULL;
}

static void program_waits_for_an_order(void)
{
	pid_t helper;
	pthread_t killer;

	helper_begin();
	helper = helper_pid();
	CHECK(pthread_create(&killer, NULL, kill_helper, &helper) == 0);
	CHECK(sublet__helper_call(hold_and_sleep, NULL) == -EPIPE);
	CHECK(pthread_join(killer, NULL) == 0);
	/* The next one does not wait for the lock of the order, nor for the helper. */
	CHECK(sublet__helper_call(answer_minus_five, NULL) == -EPIPE);
}

static void test_killed_in_an_order(void **context)
{
	(void)context;
	program_run(program_waits_for_an_order);
}

static void program_forks(void)
{
	int value = 0, status;

	helper_begin();
	pid_t pid = fork();
	if (pid == 0) {
		sublet__helper_fork_child();
		CHECK(!sublet__helper_exists() && !sublet__helper_is_gone());
		struct where w = { .answer = 1 };
		CHECK(sublet__helper_call(look_where, &w) == 1 && w.pid == getpid());
		_exit(0);
	}
	CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0);
	CHECK(sublet__helper_call(add_one, &value) == 1);
}

/* A child has none, and its end is not taken for the program's. */
static void test_a_child_of_fork(void **context)
{
	(void)context;
	program_run(program_forks);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_orders),
		cmocka_unit_test(test_orders_of_several_threads),
		cmocka_unit_test(test_a_task_asks),
		cmocka_unit_test(test_tasks),
		cmocka_unit_test(test_stopped_before_its_tasks),
		cmocka_unit_test(test_without_a_helper),
		cmocka_unit_test(test_ends_with_the_program),
		cmocka_unit_test(test_ends_at_exec),
		cmocka_unit_test(test_main_thread_that_ends_alone),
		cmocka_unit_test(test_wait_does_not_see_it),
		cmocka_unit_test(test_signals),
		cmocka_unit_test(test_killed_with_a_lock_held),
		cmocka_unit_test(test_killed_in_an_order),
		cmocka_unit_test(test_a_child_of_fork),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
