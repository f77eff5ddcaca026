/* SPDX-License-Identifier: MIT */
/*
 * Which futex calls become private: libc's syscall() with the bridge's in front of it, and behind it a recorder. The
 * lent window is one array here.
 */
#include "bridge/bridge.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#define PRIVATE FUTEX_PRIVATE_FLAG
#define WAITV   449
#define WAKE2   454
#define WAIT2   455
#define REQUEUE 456

struct sublet__bridge sublet__bridge;
struct sublet__real sublet__real;

static uint32_t lent[1024], other[2];

struct waiter {
	uint64_t value, addr;
	uint32_t flags, reserved;
};

struct call {
	long number, arg[6];
	uint32_t flags[3]; /* of the array that arg[0] led to */
};
static struct call calls[2];
static volatile int
	count; /* libc promises that syscall() does not come back to this file, and here it does */
static long results[2];

static long record(long number, long a, long b, long c, long d, long e, long f)
{
	struct call *call = &calls[count];

	assert_true(count < 2);
	*call = (struct call){ .number = number, .arg = { a, b, c, d, e, f } };
	if ((number == WAITV || number == REQUEUE) && a > 4096)
		for (int i = 0; i < (number == REQUEUE ? 2 : 3); i++)
			call->flags[i] = ((const struct waiter *)a)[i].flags;
	return results[count++];
}

long sublet__fork_syscall(long number, long a, long b, long c, long d, long e, long f)
{
	return record(-number, a, b, c, d, e, f);
}

/* The page of a lent word is not there `away` times. */
static int away, settled, kept;

static bool is_lent(const void *addr)
{
	return (uintptr_t)addr >= (uintptr_t)lent && (uintptr_t)addr < (uintptr_t)(lent + 1024);
}

enum sublet__owner sublet__bridge_owner(const void *addr, size_t bytes)
{
	(void)bytes;
	return is_lent(addr) ? SUBLET__OWNER_LENT : SUBLET__OWNER_OTHER;
}

void sublet__sticky_add(const void *addr, size_t bytes)
{
	assert_true(is_lent(addr) && bytes == sizeof(uint32_t));
	kept++;
}

static int populate(void *addr, size_t bytes, int advice)
{
	assert_true(((uintptr_t)addr & 4095) == 0 && bytes == 4096 && advice == 23);
	settled++;
	return 0;
}

static long fault(long number, long a, long b, long c, long d, long e, long f)
{
	(void)number, (void)a, (void)b, (void)c, (void)d, (void)e, (void)f;
	if (away-- <= 0)
		return 7;
	errno = EFAULT;
	return -1;
}

bool sublet__mm_contains(const struct sublet_mm *mm, const void *addr, uint64_t bytes)
{
	(void)mm;
	return (uintptr_t)addr + bytes > (uintptr_t)lent && (uintptr_t)addr < (uintptr_t)(lent + 1024);
}

static int setup(void **context)
{
	(void)context;
	atomic_store(&sublet__bridge.mm, (struct sublet_mm *)lent); /* any but NULL */
	sublet__real.syscall = record;
	memset(results, 0, sizeof(results));
	count = 0;
	return 0;
}

/* One call that gets `op`, and nothing else changed. */
static void expect_op(const uint32_t *addr, int op, const uint32_t *addr2, int expected)
{
	count = 0;
	results[0] = 5;
	assert_int_equal(syscall(SYS_futex, addr, op, 11, 12, addr2, 13), 5);
	assert_int_equal(count, 1);
	assert_int_equal(calls[0].number, SYS_futex);
	assert_int_equal(calls[0].arg[0], (long)addr);
	assert_int_equal((int)calls[0].arg[1], expected);
	assert_int_equal(calls[0].arg[2], 11);
	assert_int_equal(calls[0].arg[3], 12);
	assert_int_equal(calls[0].arg[4], (long)addr2);
	assert_int_equal(calls[0].arg[5], 13);
}

/* What the kernel writes: the call is made again when the page is there, and a PI word stays where it is. */
static void test_kernel_writes(void **context)
{
	static const struct {
		int op, words; /* how many of them are waited for */
		bool keep;
	} cases[] = {
		{ FUTEX_LOCK_PI, 1, true },         { 13 /* LOCK_PI2 */, 1, true },
		{ FUTEX_TRYLOCK_PI, 1, true },      { FUTEX_UNLOCK_PI, 1, true },
		{ FUTEX_WAIT_REQUEUE_PI, 2, true }, { FUTEX_CMP_REQUEUE_PI, 2, true },
		{ FUTEX_WAKE_OP, 2, false },        { FUTEX_WAIT, 0, false },
		{ FUTEX_WAKE, 0, false },           { FUTEX_CMP_REQUEUE, 0, false },
	};

	(void)context;
	sublet__real.syscall = fault;
	sublet__real.madvise = populate;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		for (int flag = 0; flag <= PRIVATE; flag += PRIVATE) {
			away = 3, settled = kept = 0;
			assert_int_equal(syscall(SYS_futex, lent, cases[i].op | flag, 1, 0, lent + 9, 0),
					 cases[i].words ? 7 : -1);
			assert_int_equal(settled, 3 * cases[i].words);
			assert_int_equal(kept, cases[i].keep ? 3 * cases[i].words : 0);
			/* Not lent: the program's own mistake. */
			away = 1;
			assert_int_equal(syscall(SYS_futex, other, cases[i].op | PRIVATE, 1, 0, other, 0),
					 -1);
			assert_int_equal(errno, EFAULT);
		}
	/* Only the second one is lent; with the flag it is one call, and without two, of which the second one wakes. */
	away = 3, settled = kept = 0;
	assert_int_equal(syscall(SYS_futex, other, FUTEX_WAKE_OP | PRIVATE, 1, 1, lent + 9, 0), 7);
	assert_int_equal(settled, 3);
	away = 3, settled = 0;
	assert_int_equal(syscall(SYS_futex, other, FUTEX_WAKE_OP, 1, 1, lent + 9, 0), 14);
	assert_int_equal(settled, 3);
	assert_int_equal(kept, 0);
	/* A word that the kernel clears at the end of a thread stays too, and waits for it stay process-shared. */
	sublet__real.syscall = record;
	kept = 0;
	count = 0;
	assert_int_equal(syscall(SYS_set_tid_address, other), 0);
	assert_int_equal(kept, 0);
	count = 0;
	assert_int_equal(syscall(SYS_set_tid_address, lent + 500), 0);
	assert_int_equal(kept, 1);
	expect_op(&lent[500], FUTEX_WAIT, NULL, FUTEX_WAIT);
	sublet__futex_forget(lent + 500, 4);
	expect_op(&lent[500], FUTEX_WAIT, NULL, FUTEX_WAIT | PRIVATE);
	/* Not for ever. */
	sublet__real.syscall = fault;
	away = 1000000;
	assert_int_equal(syscall(SYS_futex, lent, FUTEX_LOCK_PI, 0, 0, NULL, 0), -1);
	assert_int_equal(errno, EFAULT);
}

static void test_one_address(void **context)
{
	static const int ops[] = {
		FUTEX_WAIT,        FUTEX_WAKE,        FUTEX_WAIT_BITSET,
		FUTEX_WAKE_BITSET, FUTEX_LOCK_PI,     FUTEX_UNLOCK_PI,
		FUTEX_TRYLOCK_PI,  13 /* LOCK_PI2 */, FUTEX_WAIT_BITSET | FUTEX_CLOCK_REALTIME
	};

	(void)context;
	for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); i++) {
		/* The fifth argument of these is no address that matters. */
		expect_op(&lent[3], ops[i], NULL, ops[i] | PRIVATE);
		expect_op(&lent[1023], ops[i], other, ops[i] | PRIVATE);
		expect_op(&lent[0], ops[i] | PRIVATE, NULL, ops[i] | PRIVATE);
		expect_op(&other[0], ops[i], lent, ops[i]);
		expect_op(&other[0], ops[i] | PRIVATE, NULL, ops[i] | PRIVATE);
	}
	atomic_store(&sublet__bridge.mm, NULL);
	expect_op(&lent[3], FUTEX_WAIT, NULL, FUTEX_WAIT);
}

static void test_two_addresses(void **context)
{
	static const int ops[] = { FUTEX_REQUEUE, FUTEX_CMP_REQUEUE, FUTEX_WAKE_OP, FUTEX_WAIT_REQUEUE_PI,
				   FUTEX_CMP_REQUEUE_PI };

	(void)context;
	for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); i++) {
		expect_op(&lent[0], ops[i], &lent[9], ops[i] | PRIVATE);
		expect_op(&other[0], ops[i], &other[1], ops[i]);
		expect_op(&lent[0], ops[i] | PRIVATE, &other[1], ops[i] | PRIVATE); /* as the program says */
	}
}

/* Of a mixed pair nobody is requeued: whoever would be is woken. */
static void test_mixed_requeue(void **context)
{
	static const int ops[] = { FUTEX_REQUEUE, FUTEX_CMP_REQUEUE };

	(void)context;
	for (int i = 0; i < 2; i++)
		for (int side = 0; side < 2; side++) {
			uint32_t *from = side ? lent : other, *to = side ? other : lent;

			count = 0;
			results[0] = 3;
			assert_int_equal(syscall(SYS_futex, from, ops[i], 1, 7, to, 13), 3);
			assert_int_equal(count, 1);
			assert_int_equal(calls[0].arg[0], (long)from);
			assert_int_equal(calls[0].arg[1], ops[i] | (side ? PRIVATE : 0));
			assert_int_equal(calls[0].arg[2], 8);
			assert_int_equal(calls[0].arg[3], 0);
			assert_int_equal(calls[0].arg[4], (long)from);
			assert_int_equal(calls[0].arg[5], 13);
		}
	count = 0;
	(void)syscall(SYS_futex, lent, FUTEX_REQUEUE, 1, (long)INT_MAX, other, 0);
	assert_int_equal(calls[0].arg[2], INT_MAX);
	errno = 0;
	assert_int_equal(syscall(SYS_futex, lent, FUTEX_REQUEUE, 1, -1L, other, 0), -1);
	assert_int_equal(errno, EINVAL);
	assert_int_equal(count, 1);
	for (int op = FUTEX_WAIT_REQUEUE_PI; op <= FUTEX_CMP_REQUEUE_PI; op++) {
		errno = 0;
		assert_int_equal(syscall(SYS_futex, lent, op, 1, 1, other, 0), -1);
		assert_int_equal(errno, ENOSYS);
	}
	assert_int_equal(count, 1);
}

/* The operation and the second wake in one call, the first wake in another. */
static void test_mixed_wake_op(void **context)
{
	(void)context;
	for (int side = 0; side < 2; side++) {
		uint32_t *from = side ? lent : other, *to = side ? other : lent;

		count = 0;
		results[0] = 2;
		results[1] = 1;
		assert_int_equal(syscall(SYS_futex, from, FUTEX_WAKE_OP, 4, 5, to, 13), 3);
		assert_int_equal(count, 2);
		assert_int_equal(calls[0].arg[1], FUTEX_WAKE_OP | (side ? 0 : PRIVATE));
		assert_true(calls[0].arg[0] != (long)from && calls[0].arg[0] != (long)to);
		assert_int_equal(calls[0].arg[3], 5);
		assert_int_equal(calls[0].arg[4], (long)to);
		assert_int_equal(calls[0].arg[5], 13);
		assert_int_equal(calls[1].arg[0], (long)from);
		assert_int_equal(calls[1].arg[1], FUTEX_WAKE | (side ? PRIVATE : 0));
		assert_int_equal(calls[1].arg[2], 4);
		count = 0;
		results[0] = -1;
		assert_int_equal(syscall(SYS_futex, from, FUTEX_WAKE_OP, 4, 5, to, 13), -1);
		assert_int_equal(count, 1);
	}
}

static void test_new_calls(void **context)
{
	struct waiter w[3] = { { .addr = (uintptr_t)&other[0], .flags = 2 },
			       { .addr = (uintptr_t)&lent[0], .flags = 2 },
			       { .addr = (uintptr_t)&lent[1], .flags = 2 | PRIVATE } };

	(void)context;
	(void)syscall(WAKE2, &lent[0], ~0ul, 1, 2);
	assert_int_equal(calls[0].arg[3], 2 | PRIVATE);
	(void)syscall(WAIT2, &other[0], 1, ~0ul, 2, NULL, 0);
	assert_int_equal(calls[1].arg[3], 2);
	count = 0;
	(void)syscall(WAITV, w, 3, 0, NULL, 1);
	assert_int_equal(calls[0].flags[0], 2);
	assert_int_equal(calls[0].flags[1], 2 | PRIVATE);
	assert_int_equal(calls[0].flags[2], 2 | PRIVATE);
	assert_int_equal(calls[0].arg[1], 3);
	assert_int_equal(calls[0].arg[4], 1);
	assert_int_equal(w[1].flags, 2); /* the program's array is the program's */
	(void)syscall(REQUEUE, w, 0, 1, 9);
	assert_int_equal(calls[1].flags[1], 2 | PRIVATE);
	assert_int_equal(calls[1].arg[2], 1);
	assert_int_equal(calls[1].arg[3], 9);
	count = 0;
	w[1].flags |= PRIVATE;
	(void)syscall(WAITV, w, 3, 0, NULL, 1);
	assert_int_equal(calls[0].arg[0], (long)w); /* nothing to add */
	(void)syscall(WAITV, NULL, 0, 0, NULL, 0);
	assert_int_equal(calls[1].arg[0], 0);
	count = 0;
	(void)syscall(WAITV, 16, 129, 0, NULL, 0); /* not looked at */
	assert_int_equal(calls[0].arg[0], 16);
}

/* The tid of a thread that the program made itself: the kernel wakes it without the flag. */
static void test_kernel_words(void **context)
{
	(void)context;
	memset(lent, 1, sizeof(lent)); /* the threads are alive */
	assert_true(sublet__futex_kernel_wakes(&lent[5]));
	assert_true(sublet__futex_kernel_wakes(&lent[5]));
	expect_op(&lent[5], FUTEX_WAIT, NULL, FUTEX_WAIT);
	expect_op(&lent[4], FUTEX_WAIT, NULL, FUTEX_WAIT | PRIVATE);
	expect_op(&lent[6], FUTEX_WAIT, NULL, FUTEX_WAIT | PRIVATE);
	for (int i = 0; i < 63; i++)
		assert_true(sublet__futex_kernel_wakes(&lent[100 + i]));
	assert_false(sublet__futex_kernel_wakes(&lent[200]));
	sublet__futex_forget(&lent[6], 94 * sizeof(lent[0])); /* up to [99] */
	expect_op(&lent[5], FUTEX_WAIT, NULL, FUTEX_WAIT);
	expect_op(&lent[100], FUTEX_WAIT, NULL, FUTEX_WAIT);
	sublet__futex_forget(lent, 6 * sizeof(lent[0]));
	expect_op(&lent[5], FUTEX_WAIT, NULL, FUTEX_WAIT | PRIVATE);
	expect_op(&lent[162], FUTEX_WAIT, NULL, FUTEX_WAIT);
	assert_true(sublet__futex_kernel_wakes(&lent[200]));
	/* Where it is full, those whose threads have ended make room. */
	assert_false(sublet__futex_kernel_wakes(&lent[201]));
	lent[150] = 0;
	assert_true(sublet__futex_kernel_wakes(&lent[201]));
	expect_op(&lent[201], FUTEX_WAIT, NULL, FUTEX_WAIT);
	expect_op(&lent[150], FUTEX_WAIT, NULL, FUTEX_WAIT | PRIVATE);
	assert_false(sublet__futex_kernel_wakes(&lent[202]));
	sublet__futex_forget(lent, sizeof(lent));
	expect_op(&lent[200], FUTEX_WAIT, NULL, FUTEX_WAIT | PRIVATE);
	memset(lent, 0, sizeof(lent));
}

/* All arguments arrive, errno is the call's, and before libc was looked up it is the kernel itself. */
static void test_everything_else(void **context)
{
	struct call *c = &calls[0];

	(void)context;
	results[0] = 77;
	assert_int_equal(syscall(100000, 1, 2, 3, 4, 5, 6), 77);
	assert_int_equal(c->number, 100000);
	for (int i = 0; i < 6; i++)
		assert_int_equal(c->arg[i], i + 1);
	sublet__real.syscall = __wrap_syscall;
	errno = 0;
	assert_int_equal(syscall(SYS_getpid), getpid());
	assert_int_equal(errno, 0);
	assert_int_equal(syscall(SYS_close, -1), -1);
	assert_int_equal(errno, EBADF);
	assert_int_equal(syscall(SYS_futex, lent, FUTEX_WAIT, lent[0] + 1, NULL, NULL, 0), -1);
	assert_int_equal(errno, EAGAIN);
	assert_int_equal(syscall(SYS_futex, lent, FUTEX_CMP_REQUEUE, 1, 1, other, lent[0] + 1), -1);
	assert_int_equal(errno, EAGAIN);
	assert_int_equal(syscall(SYS_futex, lent, FUTEX_CMP_REQUEUE, 1, 1, other, lent[0]), 0);
	assert_int_equal(syscall(SYS_futex, lent, FUTEX_WAKE_OP, 1, 1, other,
				 FUTEX_OP(FUTEX_OP_SET, 9, FUTEX_OP_CMP_EQ, 0)),
			 0);
	assert_int_equal(other[0], 9);
}

/* What makes a process is another file's business, with all of its arguments. */
static void test_new_processes(void **context)
{
	static const long numbers[] = { SYS_clone, SUBLET__CALL_CLONE3 };

	(void)context;
	for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
		count = 0;
		(void)syscall(numbers[i], 1, 2, 3, 4, 5, 6);
		assert_int_equal(count, 1);
		assert_int_equal(calls[0].number, -numbers[i]);
		for (long k = 0; k < 6; k++)
			assert_int_equal(calls[0].arg[k], k + 1);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(test_one_address, setup),
		cmocka_unit_test_setup(test_two_addresses, setup),
		cmocka_unit_test_setup(test_mixed_requeue, setup),
		cmocka_unit_test_setup(test_mixed_wake_op, setup),
		cmocka_unit_test_setup(test_new_calls, setup),
		cmocka_unit_test_setup(test_kernel_words, setup),
		cmocka_unit_test_setup(test_kernel_writes, setup),
		cmocka_unit_test_setup(test_new_processes, setup),
		cmocka_unit_test_setup(test_everything_else, setup),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
