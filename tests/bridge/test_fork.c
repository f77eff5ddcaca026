/* SPDX-License-Identifier: MIT */
/* How fork() fails: the interposer alone, with a platform that says what it is told to. */
#include "bridge/bridge.h"
#include "linux/linux.h"

#include <errno.h>
#include <setjmp.h>
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
	check(-EAGAIN, EAGAIN); /* a pin that does not end */
	check(-EINVAL, ENOMEM);
	assert_int_equal(prepared, 1);
	state = SUBLET__OWNER_CHILD;
	check(-EAGAIN, 0);
	assert_int_equal(prepared, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(test_fork) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
