/* SPDX-License-Identifier: MIT */
/*
 * What one move of 64 MiB costs with the operations of src/linux alone, as a multiple of libc's memcpy
 * of the same bytes, and how long a writer waits. Not a test: bench/ measures whole claims.
 *
 *   bench_moves [backing] [technique] [pages of a run] [populate]
 */
#include "linux/backing.h"
#include "linux/copy.h"
#include "linux/mm.h"
#include "linux/platform.h"
#include "linux/proc.h"
#include "linux/uapi.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define LEN  ((size_t)64 << 20)
#define REPS 15
#define HIST 4096

static struct sublet__backing B;
static struct sublet__linux_mm M;
static _Atomic int stop, measuring;
static uint32_t histogram[HIST]; /* of writer stalls, in 0.5 us */
static uint64_t stores, longest;
static bool populate;

static void pin_cpu(int cpu, int priority)
{
	struct sched_param p = { .sched_priority = priority };
	cpu_set_t s;

	CPU_ZERO(&s);
	CPU_SET((size_t)cpu, &s);
	pthread_setaffinity_np(pthread_self(), sizeof s, &s);
	(void)pthread_setschedparam(pthread_self(), priority ? SCHED_FIFO : SCHED_OTHER, &p);
}

static void *writer(void *arg)
{
	uint64_t s = 88172645463325252ull;

	(void)arg;
	pin_cpu(1, 1);
	while (!stop) {
		s ^= s << 13, s ^= s >> 7, s ^= s << 17;
		volatile uint64_t *p = (uint64_t *)M.base + s % (LEN / 8);
		int now_measuring = measuring;
		uint64_t t0 = sublet__now_ns();
		*p = s;
		uint64_t t = sublet__now_ns() - t0;
		if (!now_measuring)
			continue;
		stores++;
		histogram[t / 500 < HIST ? t / 500 : HIST - 1]++;
		longest = t > longest ? t : longest;
	}
	return NULL;
}

static double percentile_us(double share)
{
	uint64_t sum = 0, want = (uint64_t)((double)stores * share);

	for (int i = 0; i < HIST; i++) {
		sum += histogram[i];
		if (sum > want)
			return (i + 1) * 0.5;
	}
	return HIST * 0.5;
}

static void move_run(const struct sublet__segment *s)
{
	const struct sublet__mm_ops *ops = &sublet__linux_mm_ops;
	uint64_t bitmap[SUBLET__RUN_PAGES_MAX / 64] = { 0 };
	bool track = M.technique == SUBLET_TECHNIQUE_PRECOPY;
	int err = 0;

	if (track) {
		err |= ops->track(&M, s->vpn, s->pages);
		sublet__copy(sublet__mm_frame(&M, s->dst_pfn), sublet__mm_frame(&M, s->src_pfn),
			     sublet__mm_bytes(&M, s->pages));
	}
	err |= ops->block(&M, s->vpn, s->pages);
	if (track) {
		ops->dirty(&M, s->vpn, s->pages, bitmap);
		for (uint32_t i = 0; i < s->pages; i++)
			if (bitmap[i / 64] >> (i % 64) & 1)
				sublet__copy(sublet__mm_frame(&M, s->dst_pfn + i),
					     sublet__mm_frame(&M, s->src_pfn + i), sublet__mm_bytes(&M, 1));
	} else {
		sublet__copy(sublet__mm_frame(&M, s->dst_pfn), sublet__mm_frame(&M, s->src_pfn),
			     sublet__mm_bytes(&M, s->pages));
	}
	err |= ops->remap(&M, s, 1, 0);
	ops->wake(&M, s->vpn, s->pages);
	if (populate)
		madvise((void *)sublet__mm_addr(&M, s->vpn), sublet__mm_bytes(&M, s->pages),
			SUBLET__MADV_POPULATE_READ);
	if (err)
		abort();
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static double one(uint32_t run, bool there, double *reference)
{
	uint32_t pages = (uint32_t)(LEN >> M.shift), from = there ? 0 : pages, to = there ? pages : 0;
	struct sublet__segment all = { 0, pages, 0, from };

	sublet__linux_mm_ops.map(&M, &all, 1, 0);
	madvise((void *)M.base, LEN, SUBLET__MADV_POPULATE_WRITE);
	sublet__cache_flush(B.linear, 2 * LEN);
	uint64_t t = sublet__now_ns();
	memcpy(sublet__mm_frame(&M, to), sublet__mm_frame(&M, from), LEN);
	*reference = (double)(sublet__now_ns() - t);
	sublet__cache_flush(B.linear, 2 * LEN);
	usleep(1000);
	measuring = 1;
	t = sublet__now_ns();
	for (uint32_t at = 0; at < pages; at += run) {
		struct sublet__segment s = { at, run, from + at, to + at };
		move_run(&s);
	}
	double ratio = (double)(sublet__now_ns() - t) / *reference;
	measuring = 0;
	return ratio;
}

int main(int argc, char **argv)
{
	static const char *const backings[] = { "auto", "hugetlb", "thp", "memfd" };
	static const char *const techniques[] = { "auto", "precopy", "zap", "wp" };
	struct sublet_arena_options o = { SUBLET_OPTIONS(sublet_arena_options) };
	double ratio[REPS], reference[REPS], quiet;
	pthread_t thread;

	o.backing = argc > 1 ? (enum sublet_backing)atoi(argv[1]) : SUBLET_BACKING_AUTO;
	sublet__copy_choose();
	int err = sublet__backing_open(&B, &o, 2 * LEN);
	if (!err)
		err = sublet__linux_mm_open(&M, &B, argc > 2 ? (enum sublet_technique)atoi(argv[2]) : 0,
					    2 * LEN);
	if (err) {
		printf("error %d\n", err);
		return 1;
	}
	uint32_t run = argc > 3 && atoi(argv[3]) ? (uint32_t)atoi(argv[3]) : sublet__linux_mm_run_pages(&M);
	populate = argc > 4;
	pin_cpu(0, 1);
	for (int i = 0; i < REPS; i++)
		ratio[i] = one(run, i % 2, &reference[i]);
	qsort(ratio, REPS, sizeof *ratio, by_value);
	quiet = ratio[REPS / 2];
	pthread_create(&thread, NULL, writer, NULL);
	for (int i = 0; i < REPS; i++)
		ratio[i] = one(run, i % 2, &reference[i]);
	stop = 1;
	pthread_join(thread, NULL);
	qsort(ratio, REPS, sizeof *ratio, by_value);
	qsort(reference, REPS, sizeof *reference, by_value);
	printf("%-8s %-8s run %4u KiB%s: memcpy %5.2f ms, quiet %4.2f, writer %4.2f x; waits p99 %.1f p99.9 "
	       "%.1f "
	       "p99.99 %.1f max %.0f us\n",
	       backings[B.kind], techniques[M.technique], run << M.shift >> 10, populate ? " populate" : "",
	       reference[REPS / 2] * 1e-6, quiet, ratio[REPS / 2], percentile_us(.99), percentile_us(.999),
	       percentile_us(.9999), (double)longest * 1e-3);
	return 0;
}
