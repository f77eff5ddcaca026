/* SPDX-License-Identifier: MIT */
/* How fork() and clone() fail: the interposers alone, with a platform that says what it is told to. */
#include "bridge/bridge.h"
#include "linux/linux.h"

#include <errno.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

struct sublet__bridge sublet__bridge;
struct sublet__real sublet__real;

static int prepare_result, prepared, forked;
static enum sublet__owner state = SUBLET__OWNER_LENT;

int sublet__linux_fork_prepare(void)
{
	prepared++;
	return prepare_result;
}

static int told_child, told_parent;

void sublet__linux_fork_child(void)
{
	told_child++;
}

void sublet__linux_fork_cancel(void)
{
	told_parent++;
}

enum sublet__owner sublet__bridge_state(void)
{
	return state;
}

/* All of it is lent but what is in here. */
static pid_t outside;
static int kept, known, known_max = 1;

enum sublet__owner sublet__bridge_owner(const void *addr, size_t bytes)
{
	assert_int_equal(bytes, sizeof(pid_t));
	return addr == &outside ? SUBLET__OWNER_OTHER : state;
}

void sublet__sticky_add(const void *addr, size_t bytes)
{
	assert_non_null(addr);
	assert_int_equal(bytes, sizeof(pid_t));
	kept++;
}

bool sublet__futex_kernel_wakes(const void *word)
{
	assert_non_null(word);
	return known++ < known_max;
}

static pid_t pretend(void)
{
	forked++;
	return 4711;
}

void *sublet__real_find(_Atomic(void *) *slot, const char *name)
{
	(void)slot, (void)name;
	return __extension__(void *) pretend;
}

static void check(int result, int expected_errno)
{
	prepared = forked = 0;
	prepare_result = result;
	errno = 0;
	assert_int_equal(fork(), expected_errno ? -1 : 4711);
	assert_int_equal(errno, expected_errno);
	assert_int_equal(forked, expected_errno == 0);
}

static void test_fork(void **context)
{
	(void)context;
	check(0, 0);
	check(-ENOMEM, ENOMEM);
	check(-EPIPE, ENOMEM); /* the helper process has ended */
	check(-EINVAL, ENOMEM);
	assert_int_equal(prepared, 1);
	state = SUBLET__OWNER_CHILD;
	check(-ENOMEM, 0);
	assert_int_equal(prepared, 0);
}

/* A tid in lent memory stays where it is, and is known to be woken by the kernel. */
static void test_clone_tid(void **context)
{
	const int thread = CLONE_VM | CLONE_CHILD_CLEARTID;
	pid_t tid;

	(void)context;
	state = SUBLET__OWNER_LENT;
	assert_int_equal(clone(NULL, NULL, thread, NULL, NULL, NULL, &outside), 4711);
	assert_int_equal(clone(NULL, NULL, CLONE_VM, NULL, NULL, NULL, &tid), 4711);
	assert_int_equal(kept + known, 0);
	assert_int_equal(clone(NULL, NULL, thread, NULL, NULL, NULL, &tid), 4711);
	assert_int_equal(kept, 1);
	assert_int_equal(known, 1);
	errno = 0;
	assert_int_equal(clone(NULL, NULL, thread, NULL, NULL, NULL, &tid), -1);
	assert_int_equal(errno, EAGAIN);
	state = SUBLET__OWNER_CHILD;
	assert_int_equal(clone(NULL, NULL, CLONE_CHILD_CLEARTID | SIGCHLD, NULL, NULL, NULL, &tid), 4711);
	assert_int_equal(known, 2);
}

/* ---- by syscall() ---- */

static long kernel_answer;
static int kernel_calls;

static long kernel(long number, long a, long b, long c, long d, long e, long f)
{
	(void)number, (void)a, (void)b, (void)c, (void)d, (void)e, (void)f;
	kernel_calls++;
	return kernel_answer;
}

static void check_call(const long *call, long answer, int error, int child, int parent)
{
	int expected = error ? 0 : 1;

	told_child = told_parent = kernel_calls = prepared = errno = 0;
	kernel_answer = answer;
	assert_int_equal(sublet__fork_syscall(call[0], call[1], call[2], 0, 0, 0, 0), error ? -1 : answer);
	assert_int_equal(errno, error);
	assert_int_equal(kernel_calls, expected);
	assert_int_equal(told_child, child);
	assert_int_equal(told_parent, parent);
}

static void test_syscall(void **context)
{
	uint64_t args[11] = { 0 };
	const long fork_like[] = { SYS_clone, SIGCHLD, 0 }, with_stack[] = { SYS_clone, SIGCHLD, 4096 },
		   thread[] = { SYS_clone, CLONE_VM, 4096 };
	const long clone3[] = { SUBLET__CALL_CLONE3, (long)args, sizeof(args) },
		   question[] = { SUBLET__CALL_CLONE3, 0, 0 };

	(void)context;
	sublet__real.syscall = kernel;
	state = SUBLET__OWNER_LENT;
	prepare_result = 0;
	check_call(fork_like, 0, 0, 1, 0);
	assert_int_equal(prepared, 1);
	check_call(fork_like, 4711, 0, 0, 1);
	check_call(fork_like, -1, 0, 0, 1); /* what was prepared is taken back */
	check_call(clone3, 0, 0, 1, 0);
	check_call(clone3, 4711, 0, 0, 1);
	check_call(with_stack, 0, ENOSYS, 0, 0);
	check_call(thread, 4711, 0, 0, 0);
	check_call(question, -1, 0, 0, 0);
	args[5] = 4096;
	check_call(clone3, 0, ENOSYS, 0, 0);
	args[0] = CLONE_VM;
	check_call(clone3, 4711, 0, 0, 0);
	assert_int_equal(prepared, 0);
#ifdef SYS_fork
	check_call((const long[]){ SYS_fork, 4711, 4711 }, 0, 0, 1, 0);
#endif
	prepare_result = -ENOMEM;
	check_call(fork_like, 0, ENOMEM, 0, 0);
	state = SUBLET__OWNER_STUCK;
	check_call(fork_like, 0, ENOMEM, 0, 0);
	/* Nothing of a child's is shared, but its own children are told. */
	state = SUBLET__OWNER_CHILD;
	check_call(fork_like, 0, 0, 1, 0);
	assert_int_equal(prepared, 0);
	state = SUBLET__OWNER_OTHER;
	check_call(fork_like, 0, 0, 0, 0);
	check_call(with_stack, 4711, 0, 0, 0);
	prepare_result = 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(test_fork), cmocka_unit_test(test_clone_tid),
					    cmocka_unit_test(test_syscall) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
