/* SPDX-License-Identifier: MIT */
/* linux/platform.c: the workers. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "linux/platform.h"

#include <sched.h>
#include <stdatomic.h>
#include <string.h>

enum { WORKERS = 3, ROUNDS = 200, LONGEST_NS = 100000000 };

struct job {
	struct sublet__linux_platform *platform;
	cpu_set_t allowed[WORKERS];
	_Atomic uint32_t in; /* bit of each who took part */
	_Atomic uint32_t alone;
	uint32_t cpu; /* of the caller */
};

static void alone(void *arg, uint32_t worker)
{
	struct job *j = arg;

	assert_int_equal(worker, 0);
	atomic_fetch_add(&j->alone, 1);
}

static void take_part(void *arg, uint32_t worker)
{
	const struct sublet__platform_ops *ops = &sublet__linux_platform_ops;
	struct job *j = arg;

	sched_getaffinity(0, sizeof j->allowed[worker], &j->allowed[worker]);
	atomic_fetch_or(&j->in, 1u << worker);
	if (worker)
		return;
	/* The pool has one job at a time: whoever asks for another one meanwhile does it alone. */
	ops->parallel(j->platform, WORKERS, alone, j);
	/* Not for ever: on a busy machine a worker may come too late. */
	uint64_t start_ns = sublet__now_ns();
	while (atomic_load(&j->in) != (1u << WORKERS) - 1 && sublet__now_ns() - start_ns < LONGEST_NS)
		sched_yield();
}

static void masks_must_be(struct sublet__linux_platform *p, const cpu_set_t *expected)
{
	cpu_set_t now;

	for (uint32_t i = 1; i < WORKERS; i++) {
		assert_int_equal(sched_getaffinity((pid_t)p->worker[i].thread.tid, sizeof now, &now), 0);
		assert_true(CPU_EQUAL(&now, expected));
	}
}

/* Workers stay off the CPU on which the job's caller runs, and have theirs back when it is over. */
static void test_workers_elsewhere(void **state)
{
	static struct sublet__linux_platform platform;
	const struct sublet__platform_ops *ops = &sublet__linux_platform_ops;
	cpu_set_t all, one;
	uint32_t helped = 0;

	(void)state;
	assert_int_equal(sched_getaffinity(0, sizeof all, &all), 0);
	assert_int_equal(sublet__linux_platform_start(&platform, NULL, 12, WORKERS), 0);
	for (uint32_t round = 0; round < ROUNDS; round++) {
		struct job j = { .platform = &platform, .cpu = round % CPU_SETSIZE };
		while (!CPU_ISSET(j.cpu, &all))
			j.cpu = (j.cpu + 1) % CPU_SETSIZE;
		CPU_ZERO(&one);
		CPU_SET(j.cpu, &one);
		assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
		ops->parallel(&platform, WORKERS, take_part, &j);
		assert_int_equal(sched_setaffinity(0, sizeof all, &all), 0);
		masks_must_be(&platform, &all);
		assert_int_equal(j.alone, 1);
		assert_true(j.in & 1);
		for (uint32_t i = 1; i < WORKERS; i++) {
			if (!(j.in >> i & 1))
				continue;
			helped++;
			if (CPU_COUNT(&all) > 1)
				assert_int_equal(CPU_ISSET(j.cpu, &j.allowed[i]), 0);
			assert_int_equal(CPU_COUNT(&j.allowed[i]), CPU_COUNT(&all) - (CPU_COUNT(&all) > 1));
		}
	}
	assert_true(helped > ROUNDS / 2);
	sublet__linux_platform_stop(&platform);
}

/* Whoever may run on one CPU only is left there, and helps. */
static void test_workers_on_one_cpu(void **state)
{
	static struct sublet__linux_platform platform;
	const struct sublet__platform_ops *ops = &sublet__linux_platform_ops;
	cpu_set_t all, one;

	(void)state;
	assert_int_equal(sched_getaffinity(0, sizeof all, &all), 0);
	CPU_ZERO(&one);
	CPU_SET((uint32_t)sched_getcpu(), &one);
	assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
	assert_int_equal(sublet__linux_platform_start(&platform, NULL, 12, WORKERS), 0);
	struct job j = { .platform = &platform };
	ops->parallel(&platform, WORKERS, take_part, &j);
	masks_must_be(&platform, &one);
	sublet__linux_platform_stop(&platform);
	assert_int_equal(sched_setaffinity(0, sizeof all, &all), 0);
	for (uint32_t i = 1; i < WORKERS; i++)
		if (j.in >> i & 1)
			assert_true(CPU_EQUAL(&j.allowed[i], &one));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_workers_elsewhere),
		cmocka_unit_test(test_workers_on_one_cpu),
	};
	return cmocka_run_group_tests_name("linux platform", tests, NULL, NULL);
}
