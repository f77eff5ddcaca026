/* SPDX-License-Identifier: MIT */
/*
 * bench.h: what the benchmark's parts share: clock, medians, and the table that is both printed and
 * written to results.json.
 *
 * Absolute times of a busy machine mean little. Every figure is a ratio against a reference that is
 * measured in the same run, right beside it, and a median of repeated runs.
 */
#ifndef SUBLET_BENCH_H
#define SUBLET_BENCH_H

#include <sublet/arena.h>
#include <sublet/stats.h>

#include <stdint.h>

#define BENCH_REPEATS_MAX 64

/* What a row must reach, as design figures: 0 where there is none. */
struct bench_row {
	const char *name;
	const char *unit;      /* of value, must and goal */
	double value;          /* median */
	double low, high;      /* quartiles */
	const char *reference; /* what it is measured against, in words */
	double reference_ns;   /* the reference itself, median */
	double must, goal;     /* at most; success rates (unit "%"): at least */
	uint32_t repeats;
};

uint64_t bench_now_ns(void);
/* Sorts values; p of 1000. */
double bench_quantile(double *values, uint32_t count, uint32_t permille);
/* Add a row from samples: prints it at once. */
void bench_add(struct bench_row row, double *values, uint32_t count);
/* Write all rows; -errno. */
int bench_write(const char *path);
/* ns of one uncontended atomic add, measured now. */
double bench_atomic_ns(void);

/* The parts; each prints a line and returns where a backing is not to be had. */
void bench_claims(enum sublet_backing backing, const char *name);
void bench_free_claims(void);
void bench_fragmented(void);
void bench_device(void); /* where liburing was there at build time */
void bench_iopt(void);
void bench_small(void);
void bench_ucx(void); /* where UCX was there at build time */
void bench_window(void);
void bench_notifiers(void);

/* Create an arena or say why not; NULL. */
struct sublet_arena *bench_arena(enum sublet_backing backing, uint64_t area_mib, uint64_t normal_mib);
void bench_fail(const char *what, int error);

#endif
