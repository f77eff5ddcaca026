/* SPDX-License-Identifier: MIT */
/*
 * The benchmark: `make bench`, or build/bench/sublet-bench [RESULTS.json [SECTION...]], where a section is one of the
 * names at the end of this file.
 *
 * Prints one row a figure with its reference and what it must reach, and writes the same as JSON.
 */
#include "bench.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#define ROWS_MAX 192

static struct bench_row rows[ROWS_MAX];
static uint32_t row_count;

uint64_t bench_now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * SUBLET_SEC + (uint64_t)t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

double bench_quantile(double *values, uint32_t count, uint32_t permille)
{
	qsort(values, count, sizeof *values, by_value);
	return values[(uint64_t)(count - 1) * permille / 1000];
}

void bench_fail(const char *what, int error)
{
	fprintf(stderr, "sublet-bench: %s: %s\n", what, strerror(-error));
	exit(1);
}

struct sublet_arena *bench_arena(enum sublet_backing backing, uint64_t area_mib, uint64_t normal_mib)
{
	struct sublet_arena *arena;
	struct sublet_arena_options options = { SUBLET_OPTIONS(sublet_arena_options),
						.area_bytes = area_mib * SUBLET_MIB,
						.normal_bytes = normal_mib * SUBLET_MIB, .backing = backing };
	int err = sublet_arena_create(&options, &arena);

	if (!err)
		return arena;
	printf("  left out: %s\n", strerror(-err));
	return NULL;
}

double bench_atomic_ns(void)
{
	static _Atomic uint64_t word;
	double best[9];

	for (int r = 0; r < 9; r++) {
		uint64_t start = bench_now_ns();
		for (int i = 0; i < 1000000; i++)
			atomic_fetch_add_explicit(&word, 1, memory_order_acq_rel);
		best[r] = (double)(bench_now_ns() - start) / 1e6;
	}
	return bench_quantile(best, 9, 500);
}

void bench_add(struct bench_row row, double *values, uint32_t count)
{
	row.low = bench_quantile(values, count, 250);
	row.high = bench_quantile(values, count, 750);
	row.value = bench_quantile(values, count, 500);
	row.repeats = count;
	printf("  %-58s %8.2f %-12s [%.2f .. %.2f]", row.name, row.value, row.unit, row.low, row.high);
	if (row.must > 0)
		printf("  must %g", row.must);
	if (row.goal > 0)
		printf("  goal %g", row.goal);
	if (row.reference_ns > 0)
		printf("  (reference %.3g us)", row.reference_ns / 1e3);
	printf("\n");
	fflush(stdout);
	if (row_count < ROWS_MAX)
		rows[row_count++] = row;
}

static cJSON *row_json(const struct bench_row *row)
{
	cJSON *o = cJSON_CreateObject();

	cJSON_AddStringToObject(o, "name", row->name);
	cJSON_AddStringToObject(o, "unit", row->unit);
	cJSON_AddNumberToObject(o, "value", row->value);
	cJSON_AddNumberToObject(o, "quartile_low", row->low);
	cJSON_AddNumberToObject(o, "quartile_high", row->high);
	cJSON_AddNumberToObject(o, "repeats", row->repeats);
	cJSON_AddStringToObject(o, "reference", row->reference);
	cJSON_AddNumberToObject(o, "reference_ns", row->reference_ns);
	if (row->must > 0)
		cJSON_AddNumberToObject(o, "must", row->must);
	if (row->goal > 0)
		cJSON_AddNumberToObject(o, "goal", row->goal);
	return o;
}

int bench_write(const char *path)
{
	struct utsname name;
	cJSON *top = cJSON_CreateObject(), *list;

	if (!uname(&name)) {
		cJSON_AddStringToObject(top, "kernel", name.release);
		cJSON_AddStringToObject(top, "machine", name.machine);
	}
	cJSON_AddNumberToObject(top, "cpus", (double)sysconf(_SC_NPROCESSORS_ONLN));
	cJSON_AddStringToObject(top, "version", sublet_version());
	list = cJSON_AddArrayToObject(top, "rows");
	for (uint32_t i = 0; i < row_count; i++)
		cJSON_AddItemToArray(list, row_json(&rows[i]));

	char *text = cJSON_Print(top);
	cJSON_Delete(top);
	FILE *f = text ? fopen(path, "w") : NULL;
	int err = f ? 0 : -errno;
	if (f) {
		err = fprintf(f, "%s\n", text) < 0 ? -EIO : 0;
		err = fclose(f) ? -errno : err;
	}
	cJSON_free(text);
	return err;
}

static void bench_all_claims(void)
{
	bench_claims(SUBLET_BACKING_HUGETLB, "hugetlb");
	bench_claims(SUBLET_BACKING_THP, "huge tmpfs");
	bench_claims(SUBLET_BACKING_MEMFD, "memfd");
}

static const struct section {
	const char *name;
	const char *title;
	void (*run)(void);
} sections[] = {
	{ "claims",
	  "claim 64 MiB from a full area (each claim moves all of it), x libc memcpy of the same bytes",
	  bench_all_claims },
	{ "free", "claims that move nothing", bench_free_claims },
	{ "fragmented",
	  "claims from a fragmented arena: 256 MiB, half full, long-term pins and bound buffers in it",
	  bench_fragmented },
	{ "window", "choosing a window", bench_window },
	{ "small", "small operations, in uncontended atomic adds", bench_small },
	{ "notifiers", "notifiers: tiny ranges in random order", bench_notifiers },
	{ "iopt", "device page tables, in uncontended atomic adds", bench_iopt },
#ifdef BENCH_URING
	{ "device", "handing memory to a device", bench_device },
#endif
#ifdef BENCH_UCX
	/* Last: it loads a library that patches libc. */
	{ "ucx", "for comparison: UCX's registration cache, in uncontended atomic adds", bench_ucx },
#endif
};

static bool is_wanted(const char *name, int argc, char **argv)
{
	for (int i = 2; i < argc; i++)
		if (!strcmp(argv[i], name))
			return true;
	return argc <= 2;
}

int main(int argc, char **argv)
{
	const char *path = argc > 1 ? argv[1] : "results.json";

	for (size_t i = 0; i < sizeof sections / sizeof *sections; i++) {
		if (!is_wanted(sections[i].name, argc, argv))
			continue;
		printf("%s\n", sections[i].title);
		sections[i].run();
	}
	int err = bench_write(path);
	if (err)
		bench_fail(path, err);
	printf("written to %s\n", path);
	return 0;
}
