/* SPDX-License-Identifier: MIT */
/*
 * Claims: of memory that somebody uses, and of free and droppable memory.
 *
 * The area is full, and each claim asks for the dearest window, so it moves all of its bytes. The
 * reference, libc's memcpy between two cold buffers of the same backing, is timed right before
 * each claim. Claims waive the zeroing (a row of its own has it): the figures of the design are of
 * moving.
 */
#include "bench.h"

#include "linux/linux.h"

#include <sublet/claim.h>
#include <sublet/map.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define AREA_MIB    128u /* half of what the writer writes to is moved by each claim */
#define NORMAL_MIB  64u  /* fills with the first claim; from then on all moves stay inside the area */
#define CLAIM_BYTES (64 * SUBLET_MIB)
#define REPEATS     25u

static void claim_or_die(struct sublet_arena *arena, uint64_t bytes, uint32_t flags,
			 struct sublet_claim *claim)
{
	struct sublet_claim_options options = { SUBLET_OPTIONS(sublet_claim_options), .flags = flags };
	int err = sublet_claim(arena, bytes, &options, claim);

	if (err)
		bench_fail("sublet_claim", err);
}

static void release_or_die(struct sublet_arena *arena, struct sublet_claim *claim)
{
	int err = sublet_release(arena, claim);

	if (err)
		bench_fail("sublet_release", err);
}

/* ---- a thread that writes all over the lent memory and notes how long each write took ---- */

struct writer {
	uint64_t *words;
	uint64_t count;
	atomic_bool stop;
	atomic_bool timed; /* only while a claim runs */
	struct sublet_histogram waits;
};

static void wait_add(struct sublet_histogram *h, uint64_t ns)
{
	uint32_t low = 0, high = SUBLET_HISTOGRAM_BUCKETS - 1;

	while (low < high) {
		uint32_t middle = (low + high + 1) / 2;
		if (sublet_histogram_floor_ns(middle) <= ns)
			low = middle;
		else
			high = middle - 1;
	}
	h->bucket[low]++;
	h->count++;
	h->max_ns = ns > h->max_ns ? ns : h->max_ns;
}

static void *writer_run(void *arg)
{
	struct writer *w = arg;
	uint64_t s = 88172645463325252ull;

	while (!atomic_load_explicit(&w->stop, memory_order_relaxed)) {
		s ^= s << 13;
		s ^= s >> 7;
		s ^= s << 17;
		uint64_t start = bench_now_ns();
		w->words[s % w->count] = s;
		uint64_t took = bench_now_ns() - start;
		if (atomic_load_explicit(&w->timed, memory_order_relaxed))
			wait_add(&w->waits, took);
	}
	return NULL;
}

/* ---- claims of memory in use ---- */

/* A program that has been running has its pages mapped: an unmapped page costs a claim nothing. */
static void pages_touch(const void *memory)
{
	const volatile char *p = memory;

	for (uint64_t at = 0; at < AREA_MIB * SUBLET_MIB; at += 4096)
		(void)p[at];
}

static void claims_timed(struct sublet_arena *arena, const void *memory, struct writer *w, uint32_t flags,
			 double *ratios, double *memcpy_ns)
{
	for (uint32_t i = 0; i < REPEATS; i++) {
		struct sublet_claim claim;
		uint64_t reference;
		int err = sublet__linux_memcpy_ns(arena, CLAIM_BYTES, &reference);

		if (err)
			bench_fail("memcpy reference", err);
		pages_touch(memory);
		if (w)
			atomic_store(&w->timed, true);
		claim_or_die(arena, CLAIM_BYTES, flags | SUBLET_CLAIM_DEAREST, &claim);
		if (w)
			atomic_store(&w->timed, false);
		if (claim.moved_bytes != CLAIM_BYTES)
			bench_fail("a claim moved less than all of its window", -1);
		ratios[i] = (double)claim.latency_ns / (double)reference;
		memcpy_ns[i] = (double)reference;
		release_or_die(arena, &claim);
	}
}

static void claims_row(struct sublet_arena *arena, const void *memory, struct writer *w, uint32_t flags,
		       const char *name, double must, double goal)
{
	double ratios[REPEATS], memcpy_ns[REPEATS];
	struct bench_row row = { .name = name,
				 .unit = "x memcpy",
				 .must = must,
				 .goal = goal,
				 .reference = "libc memcpy of 64 MiB, cold, same backing, one thread" };

	claims_timed(arena, memory, w, flags, ratios, memcpy_ns);
	row.reference_ns = bench_quantile(memcpy_ns, REPEATS, 500);
	bench_add(row, ratios, REPEATS);
}

void bench_claims(enum sublet_backing backing, const char *name)
{
	static char names[16][80];
	static uint32_t used;
	bool huge = backing == SUBLET_BACKING_HUGETLB, thp = backing == SUBLET_BACKING_THP;
	struct sublet_arena *arena;
	struct writer w = { 0 };
	pthread_t thread;
	uint64_t reference;
	void *memory;

	printf(" %s\n", name);
	arena = bench_arena(backing, AREA_MIB, NORMAL_MIB);
	if (!arena)
		return;
	int err = sublet__linux_memcpy_ns(arena, CLAIM_BYTES, &reference);
	if (err) { /* two such blocks beside the arena, and huge pages are few */
		printf("  left out, no memory for the reference: %s\n", strerror(-err));
		if (sublet_arena_destroy(arena))
			bench_fail("destroy the arena", -1);
		return;
	}
	err = sublet_map(sublet_arena_mm(arena), AREA_MIB * SUBLET_MIB, SUBLET_MOVABLE, &memory);
	if (err)
		bench_fail("sublet_map", err);
	memset(memory, 1, AREA_MIB * SUBLET_MIB);

	char *idle = names[used++], *zero = names[used++], *busy = names[used++], *wait = names[used++];
	snprintf(idle, 80, "%s: nobody writing", name);
	snprintf(zero, 80, "%s: nobody writing, zeroed too", name);
	snprintf(busy, 80, "%s: a thread writing all over it", name);
	snprintf(wait, 80, "%s: a write waits, p99.9", name);
	claims_row(arena, memory, NULL, SUBLET_CLAIM_NOZERO, idle,
		   huge  ? 0.8
		   : thp ? 1.0
			 : 1.8,
		   huge  ? 0.6
		   : thp ? 0.65
			 : 1.3);
	claims_row(arena, memory, NULL, 0, zero, 0, 0);
	w.words = memory;
	w.count = AREA_MIB * SUBLET_MIB / sizeof *w.words;
	if (pthread_create(&thread, NULL, writer_run, &w))
		bench_fail("pthread_create", -1);
	claims_row(arena, memory, &w, SUBLET_CLAIM_NOZERO, busy,
		   huge  ? 0.95
		   : thp ? 1.4
			 : 3.0,
		   huge  ? 0.75
		   : thp ? 1.0
			 : 2.0);
	atomic_store(&w.stop, true);
	pthread_join(thread, NULL);
	double us = (double)sublet_histogram_percentile_ns(&w.waits, 999) / 1e3;
	bench_add((struct bench_row){ .name = wait,
				      .unit = "us",
				      .must = huge  ? 300
					      : thp ? 130
						    : 120,
				      .goal = huge ? 150 : 60,
				      .reference = "none: a time" },
		  &us, 1);
	if (sublet_arena_destroy(arena))
		bench_fail("destroy the arena", -1);
}

/* ---- claims that need not move anything ---- */

void bench_free_claims(void)
{
	struct sublet_arena *arena = bench_arena(SUBLET_BACKING_AUTO, AREA_MIB, NORMAL_MIB);
	double free_us[REPEATS], drop_ns[REPEATS], drop_us[REPEATS];
	struct sublet_claim claim;

	if (!arena)
		return;
	for (uint32_t i = 0; i < REPEATS; i++) {
		claim_or_die(arena, CLAIM_BYTES, SUBLET_CLAIM_NOZERO, &claim);
		free_us[i] = (double)claim.latency_ns / 1e3;
		release_or_die(arena, &claim);
	}
	bench_add((struct bench_row){ .name = "64 MiB from free frames",
				      .unit = "us",
				      .must = 50,
				      .goal = 10,
				      .reference = "none: a time" },
		  free_us, REPEATS);
	for (uint32_t i = 0; i < REPEATS; i++) {
		/* 64 KiB mappings, so that each is a folio of its own, over the whole area */
		struct sublet_mm *mm = sublet_arena_mm(arena);
		static void *maps[AREA_MIB * 16];
		for (uint32_t m = 0; m < AREA_MIB * 16; m++)
			if (sublet_map(mm, 64 * SUBLET_KIB, SUBLET_DISCARDABLE, &maps[m]) ||
			    !memset(maps[m], 1, 64 * SUBLET_KIB) ||
			    sublet_unlock(mm, maps[m], 64 * SUBLET_KIB))
				bench_fail("map discardable", -1);
		claim_or_die(arena, CLAIM_BYTES, SUBLET_CLAIM_NOZERO | SUBLET_CLAIM_DEAREST, &claim);
		double folios = (double)claim.dropped_bytes / (64.0 * 1024);
		drop_us[i] = (double)claim.latency_ns / 1e3;
		drop_ns[i] = folios > 0 ? (double)claim.latency_ns / folios : 0;
		release_or_die(arena, &claim);
		for (uint32_t m = 0; m < AREA_MIB * 16; m++)
			if (sublet_unmap(mm, maps[m], 64 * SUBLET_KIB))
				bench_fail("unmap", -1);
	}
	bench_add((struct bench_row){ .name = "64 MiB from discardable folios of 64 KiB, the whole claim",
				      .unit = "us",
				      .must = 50 + 102.4,
				      .goal = 10 + 30.7,
				      .reference = "none: a time" },
		  drop_us, REPEATS);
	bench_add((struct bench_row){ .name = "the same, by folio dropped",
				      .unit = "ns",
				      .reference = "none: a time" },
		  drop_ns, REPEATS);
	if (sublet_arena_destroy(arena))
		bench_fail("destroy the arena", -1);
}
