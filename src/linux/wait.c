/* SPDX-License-Identifier: MIT */
/*
 * linux/wait.c: clock, futex, a lock and the signal mask, for every thread that runs code of ours.
 *
 * Nothing here allocates. Waiting is bare futexes: a thread that moves memory must not wait for lent memory, and a task of
 * the helper must not use what libc shares with its own threads only. Thread-local data is initial-exec, because the
 * dynamic model calls malloc at first use.
 */
#include "linux/helper.h"
#include "linux/platform.h"
#include "linux/raw.h"

#include <limits.h>
#include <signal.h>
#include <stdbool.h>

#include <linux/futex.h>

#define NS_PER_S 1000000000ull

/* ---- time and waiting ---- */

uint64_t sublet__now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

static struct timespec to_timespec(uint64_t ns)
{
	return (struct timespec){ .tv_sec = (time_t)(ns / NS_PER_S), .tv_nsec = (long)(ns % NS_PER_S) };
}

void sublet__futex_wait(const void *word, uint32_t expected, uint64_t timeout_ns)
{
	uint64_t guard_ns = sublet__helper_wait_ns();
	uint64_t ns = timeout_ns < guard_ns ? timeout_ns : guard_ns;
	struct timespec t = to_timespec(ns);

	/* A thread that wakes up early looks at the word again. */
	syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, ns == UINT64_MAX ? NULL : &t, NULL, 0);
	sublet__helper_check();
}

void sublet__futex_wake(const void *word, uint32_t count)
{
	syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count < INT_MAX ? count : INT_MAX, NULL, NULL, 0);
}

void sublet__lock(sublet__a32 *lock)
{
	uint32_t expected = 0;

	if (a32_cas_acq_rel(lock, &expected, 1))
		return;
	while (a32_exchange_acq_rel(lock, 2))
		sublet__futex_wait(lock, 2, UINT64_MAX);
}

void sublet__unlock(sublet__a32 *lock)
{
	if (a32_exchange_acq_rel(lock, 0) == 2)
		sublet__futex_wake(lock, 1);
}

/* ---- signals ---- */

static __thread struct {
	uint64_t saved; /* the kernel's sigset_t */
	uint32_t depth;
} signals __attribute__((tls_model("initial-exec")));

void sublet__signals_block(void)
{
	uint64_t all = ~(uint64_t)0;

	/* Not libc's, which leaves its own two signals open; the handler of one runs on this thread too. */
	if (!signals.depth)
		syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, &signals.saved, sizeof all);
	signals.depth++;
}

void sublet__signals_unblock(void)
{
	uint64_t saved = signals.saved;

	if (signals.depth && --signals.depth == 0)
		syscall(SYS_rt_sigprocmask, SIG_SETMASK, &saved, NULL, sizeof saved);
}
