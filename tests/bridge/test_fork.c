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
#include <unistd.h>

#include <cmocka.h>

struct sublet__bridge sublet__bridge;

static int prepare_result, prepared, forked;
static enum sublet__owner state = SUBLET__OWNER_LENT;

int sublet__linux_fork_prepare(void)
{
	prepared++;
	return prepare_result;
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

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(test_fork), cmocka_unit_test(test_clone_tid) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
