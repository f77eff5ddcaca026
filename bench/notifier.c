/* SPDX-License-Identifier: MIT */
/*
 * Notifiers: insert, query and remove tiny ranges in random order, a thousand or millions, in one mm or in 64; and
 * what an invalidation costs.
 *
 * Two references: an uncontended atomic add, for what the code does; and a dependent random load over as
 * many bytes as the ranges take, for what the memory does: no index can find anything with less than one.
 */
#include "bench.h"

#include "core/engine.h"

#include <sublet/notifier.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE         4096u
#define MMS_MAX      64u
#define SLICE        5000u /* operations timed together: a slice that was interrupted is one sample of many */
#define SAMPLES_MAX  4096u
#define QUERIES      400000u
#define RANGES_COUNT 1000000u
#define CHASES       40u
#define CHASE_LOADS  20000u
#define LONG_QUERIES 2000u
#define ROWS_NAMES   64u

/* One setting: ranges of 4 KiB, an unused page between two; or of 64 to 4,096 bytes anywhere in 8 KiB. */
struct setting {
	const char *name;
	uint32_t ranges;
	uint32_t mms;
	uint32_t rounds;
	bool ragged;
	bool has_targets;
};

struct samples {
	uint32_t count;
	uint64_t since_ns;
	double ns[SAMPLES_MAX]; /* of one operation, by slices */
};

struct item {
	uint64_t addr;
	uint32_t bytes;
	uint32_t mm;
};

struct bench_notifiers {
	const struct setting *setting;
	struct sublet_arena *arena;
	struct sublet_mm *mm[MMS_MAX];
	struct item *item;
	struct sublet_notifier *notifier;
	struct item *query; /* addr is a page; bytes unused */
	uint64_t random;
	double atomic_ns;
	struct samples insert, query_page, invalidate, remove;
};

static int invalidate(void *ctx, const struct sublet_invalidation *inv)
{
	(void)ctx, (void)inv;
	return 0;
}

static const struct sublet_notifier_ops ops = { SUBLET_OPTIONS(sublet_notifier_ops), invalidate };

static uint64_t rng(struct bench_notifiers *b)
{
	b->random ^= b->random << 13;
	b->random ^= b->random >> 7;
	b->random ^= b->random << 17;
	return b->random;
}

static void *array(size_t count, size_t bytes)
{
	void *memory = calloc(count, bytes);

	if (!memory)
		bench_fail("calloc", -12);
	return memory;
}

/* ns of a load whose address is what the last one loaded, at random over so many bytes. */
static double chase_ns(uint64_t bytes)
{
	uint64_t lines = bytes / 64, at = 0, seed = 88172645463325252u;
	double ns[CHASES];
	uint32_t *order = array(lines, sizeof *order);
	uint64_t *memory = mmap(NULL, lines * 64, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		bench_fail("mmap", -12);
	for (uint64_t i = 0; i < lines; i++)
		order[i] = (uint32_t)i;
	for (uint64_t i = lines - 1; i; i--) { /* one circle through all lines */
		seed = seed * 6364136223846793005u + 1442695040888963407u;
		uint64_t j = (seed >> 33) % i;
		uint32_t other = order[i];
		order[i] = order[j];
		order[j] = other;
	}
	for (uint64_t i = 0; i < lines; i++)
		memory[i * 8] = order[i];
	for (uint32_t i = 0; i < CHASE_LOADS; i++)
		at = memory[at * 8];
	for (uint32_t r = 0; r < CHASES; r++) {
		uint64_t start = bench_now_ns();
		for (uint32_t i = 0; i < CHASE_LOADS; i++)
			at = memory[at * 8];
		ns[r] = (double)(bench_now_ns() - start) / CHASE_LOADS;
	}
	memory[0] = at; /* the loads are not for nothing */
	munmap(memory, lines * 64);
	free(order);
	return bench_quantile(ns, CHASES, 500);
}

/* The add at its fastest, which is when nobody disturbed it. */
static double atomic_ns(void)
{
	double best = bench_atomic_ns();

	for (uint32_t i = 0; i < 2; i++) {
		double again = bench_atomic_ns();
		best = again < best ? again : best;
	}
	return best;
}

/* Between two operations: `done` of them are over. */
static void samples_take(struct samples *s, uint32_t done, uint32_t all)
{
	uint32_t slice = all < SLICE ? all : SLICE;

	if (done % slice)
		return;
	uint64_t now = bench_now_ns();
	if (done && s->count < SAMPLES_MAX)
		s->ns[s->count++] = (double)(now - s->since_ns) / slice;
	s->since_ns = now;
}

/* ---- setting up ---- */

static void mms_open(struct bench_notifiers *b)
{
	uint32_t pages = (b->setting->ranges / b->setting->mms + 1) * 2 + 512;
	struct sublet_arena_options o = { SUBLET_OPTIONS(sublet_arena_options), .area_bytes = 64 * SUBLET_MIB,
					  .window_bytes = (uint64_t)(pages + 32768) * PAGE };
	int err = sublet_arena_create(&o, &b->arena);

	if (err)
		bench_fail("sublet_arena_create", err);
	b->mm[0] = sublet_arena_mm(b->arena);
	for (uint32_t m = 1; m < b->setting->mms; m++) {
		/* Nothing is ever mapped in these, so nobody calls their operations. */
		struct sublet__mm_config config = b->mm[0]->config;
		config.base = (uint64_t)m << 40;
		config.pages = pages;
		err = sublet__mm_create(b->arena, &config, &b->mm[m]);
		if (err)
			bench_fail("sublet__mm_create", err);
	}
}

static void items_shuffle(struct bench_notifiers *b)
{
	for (uint32_t i = b->setting->ranges - 1; i; i--) {
		uint32_t j = (uint32_t)(rng(b) % i);
		struct item other = b->item[i];
		b->item[i] = b->item[j];
		b->item[j] = other;
	}
}

static void handles_shuffle(struct bench_notifiers *b)
{
	for (uint32_t i = b->setting->ranges - 1; i; i--) {
		uint32_t j = (uint32_t)(rng(b) % i);
		struct sublet_notifier other = b->notifier[i];
		b->notifier[i] = b->notifier[j];
		b->notifier[j] = other;
	}
}

static void open_setting(struct bench_notifiers *b, const struct setting *setting)
{
	*b = (struct bench_notifiers){ .setting = setting, .random = 88172645463325252u };
	mms_open(b);
	b->item = array(setting->ranges, sizeof *b->item);
	b->notifier = array(setting->ranges, sizeof *b->notifier);
	b->query = array(QUERIES, sizeof *b->query);
	for (uint32_t i = 0; i < setting->ranges; i++) {
		struct item *it = &b->item[i];
		it->mm = i % setting->mms;
		it->bytes = setting->ragged ? 64 + (uint32_t)(rng(b) % (PAGE - 63)) : PAGE;
		it->addr = b->mm[it->mm]->config.base + (uint64_t)(i / setting->mms) * 2 * PAGE;
		if (setting->ragged)
			it->addr += rng(b) % (2 * PAGE - it->bytes + 1);
	}
}

static void close_setting(struct bench_notifiers *b)
{
	if (sublet_arena_destroy(b->arena))
		bench_fail("destroy the arena", -1);
	free(b->item);
	free(b->notifier);
	free(b->query);
}

/* ---- one round ---- */

static void insert_all(struct bench_notifiers *b)
{
	for (uint32_t i = 0; i < b->setting->ranges; i++) {
		const struct item *it = &b->item[i];
		samples_take(&b->insert, i, b->setting->ranges);
		int err = sublet_notifier_add(b->mm[it->mm], (void *)(uintptr_t)it->addr, it->bytes, &ops,
					      NULL, NULL, &b->notifier[i]);
		if (err)
			bench_fail("sublet_notifier_add", err);
	}
	samples_take(&b->insert, b->setting->ranges, b->setting->ranges);
}

/* Pages of ranges that are there, at random. */
static void queries_pick(struct bench_notifiers *b)
{
	for (uint32_t i = 0; i < QUERIES; i++) {
		const struct item *it = &b->item[rng(b) % b->setting->ranges];
		b->query[i] = (struct item){ (it->addr - b->mm[it->mm]->config.base) / PAGE, 0, it->mm };
	}
}

static void query_some(struct bench_notifiers *b)
{
	uint64_t found = 0;

	for (uint32_t i = 0; i < QUERIES; i++) {
		samples_take(&b->query_page, i, QUERIES);
		found += sublet__notifier_count(b->mm[b->query[i].mm], (uint32_t)b->query[i].addr, 1);
	}
	if (found < QUERIES)
		bench_fail("a query found nothing", -22);
}

static void invalidate_some(struct bench_notifiers *b)
{
	for (uint32_t i = 0; i < QUERIES; i++) {
		struct sublet__invalidation inv;
		struct sublet_mm *mm = b->mm[b->query[i].mm];
		samples_take(&b->invalidate, i, QUERIES);
		if (sublet__invalidate_begin(mm, &inv, (uint32_t)b->query[i].addr, 1, SUBLET_NOTIFIER_MOVE,
					     false))
			bench_fail("sublet__invalidate_begin", -11);
		sublet__invalidate_end(mm, &inv);
	}
}

static void remove_all(struct bench_notifiers *b)
{
	for (uint32_t i = 0; i < b->setting->ranges; i++) {
		samples_take(&b->remove, i, b->setting->ranges);
		int err = sublet_notifier_remove(&b->notifier[i]);
		if (err)
			bench_fail("sublet_notifier_remove", err);
	}
	samples_take(&b->remove, b->setting->ranges, b->setting->ranges);
}

static uint64_t memory_bytes(struct bench_notifiers *b)
{
	uint64_t bytes = 0;

	for (uint32_t m = 0; m < b->setting->mms; m++) {
		struct sublet_notifier_stats stats = { SUBLET_OPTIONS(sublet_notifier_stats) };
		int err = sublet_notifier_stats(b->mm[m], &stats);
		if (err)
			bench_fail("sublet_notifier_stats", err);
		bytes += stats.memory_bytes;
	}
	return bytes;
}

/* ---- rows ---- */

static void row(struct bench_notifiers *b, const char *what, const struct samples *samples, double unit_ns,
		const char *unit, double must, double goal)
{
	static char names[ROWS_NAMES][64];
	static uint32_t used;
	static double values[SAMPLES_MAX];
	char *name = names[used++ % ROWS_NAMES];

	snprintf(name, sizeof names[0], "%s, %s", what, b->setting->name);
	for (uint32_t i = 0; i < samples->count; i++)
		values[i] = samples->ns[i] / unit_ns;
	bench_add((struct bench_row){ .name = name,
				      .unit = unit,
				      .must = must,
				      .goal = goal,
				      .reference = goal > 0 ? "a dependent random load over as many bytes"
							    : "an uncontended atomic add",
				      .reference_ns = unit_ns },
		  values, samples->count);
}

static void rows(struct bench_notifiers *b)
{
	const char *adds = "atomic adds";
	bool targets = b->setting->has_targets;

	row(b, "notifier insert", &b->insert, b->atomic_ns, adds, targets ? 60 : 0, 0);
	row(b, "notifier query", &b->query_page, b->atomic_ns, adds, targets ? 40 : 0, 0);
	row(b, "notifier remove", &b->remove, b->atomic_ns, adds, targets ? 60 : 0, 0);
	row(b, "begin + callback + end", &b->invalidate, b->atomic_ns, adds, 0, 0);
	if (!targets)
		return;
	double bytes = (double)memory_bytes(b), per_range = bytes / b->setting->ranges;
	double load = chase_ns((uint64_t)bytes);
	row(b, "notifier insert", &b->insert, load, "loads", 0, 3);
	row(b, "notifier query", &b->query_page, load, "loads", 0, 2);
	row(b, "notifier remove", &b->remove, load, "loads", 0, 3);
	bench_add((struct bench_row){ .name = "notifier memory, of nodes and bins, a range",
				      .unit = "bytes",
				      .reference = "kernel: mmu_interval_notifier 88" },
		  &per_range, 1);
}

static void setting_run(const struct setting *setting)
{
	static struct bench_notifiers b;

	open_setting(&b, setting);
	for (uint32_t r = 0; r <= setting->rounds; r++) {
		double now_ns = atomic_ns();
		b.atomic_ns = r && b.atomic_ns < now_ns ? b.atomic_ns : now_ns;
		items_shuffle(&b);
		insert_all(&b);
		queries_pick(&b);
		query_some(&b);
		invalidate_some(&b);
		handles_shuffle(&b);
		remove_all(&b);
		if (!r) /* the first round touches the memory, and is forgotten */
			b.insert.count = b.query_page.count = b.invalidate.count = b.remove.count = 0;
	}
	rows(&b);
	close_setting(&b);
}

/* `pages` pages at a time, at random. */
static void query_long(struct bench_notifiers *b, uint32_t pages, const char *what)
{
	uint32_t places = 2 * RANGES_COUNT / pages;

	b->query_page.count = 0;
	for (uint32_t i = 0; i < LONG_QUERIES; i++) {
		b->query_page.since_ns = bench_now_ns();
		sublet__notifier_count(b->mm[0], (uint32_t)(rng(b) % places) * pages, pages);
		b->query_page.ns[b->query_page.count++] = (double)(bench_now_ns() - b->query_page.since_ns);
	}
	row(b, what, &b->query_page, b->atomic_ns, "atomic adds", 0, 0);
}

/* Queries of more than a page: a run of 2 MiB that is full of ranges, and 8 GiB with next to nothing in them. */
static void long_queries(void)
{
	static const struct setting setting = { "256 hits", RANGES_COUNT, 1, 1, false, false };
	static const struct setting sparse = { "3 hits", RANGES_COUNT, 1, 1, false, false };
	static struct bench_notifiers b;

	open_setting(&b, &setting);
	b.atomic_ns = atomic_ns();
	items_shuffle(&b);
	insert_all(&b);
	query_long(&b, 512, "notifier query of 2 MiB");
	for (uint32_t i = 3; i < RANGES_COUNT; i++)
		if (sublet_notifier_remove(&b.notifier[i]))
			bench_fail("sublet_notifier_remove", -22);
	b.setting = &sparse;
	query_long(&b, 2 * RANGES_COUNT, "notifier query of 8 GiB");
	close_setting(&b);
}

/* An invalidation where nobody ever registered: what every move pays. */
static void nobody(void)
{
	static const struct setting setting = { "nobody registered", 1, 1, 1, false, false };
	static struct bench_notifiers b;

	open_setting(&b, &setting);
	b.atomic_ns = atomic_ns();
	queries_pick(&b);
	invalidate_some(&b);
	row(&b, "begin + end", &b.invalidate, b.atomic_ns, "atomic adds", 0, 0);
	close_setting(&b);
}

void bench_notifiers(void)
{
	static const struct setting settings[] = {
		{ "1,000 ranges", 1000, 1, 9, false, false },
		{ "10,000", 10000, 1, 5, false, false },
		{ "100,000", 100000, 1, 3, false, false },
		{ "1,000,000", RANGES_COUNT, 1, 2, false, true },
		{ "1,000,000 ragged", RANGES_COUNT, 1, 1, true, false },
		{ "1,000,000 in 64 mms", RANGES_COUNT, 64, 1, false, false },
		{ "4,000,000", 4 * RANGES_COUNT, 1, 1, false, false },
		{ "4,000,000 in 64 mms", 4 * RANGES_COUNT, 64, 1, false, false },
	};

	nobody();
	for (uint32_t i = 0; i < sizeof settings / sizeof *settings; i++)
		setting_run(&settings[i]);
	long_queries();
}
