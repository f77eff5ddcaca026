/* SPDX-License-Identifier: MIT */
/* bench.h: what bench_ofi and bench_ucx share. */
#ifndef SUBLET_TESTS_ADAPTERS_BENCH_H
#define SUBLET_TESTS_ADAPTERS_BENCH_H

#include <stdint.h>

#define BENCH_RANGE_BYTES 4096u

/*
 * With `count` ranges of the heap cached, print the medians of a notification that drops none of them and of one that drops
 * one, and of a hit. `cache` asks for BENCH_RANGE_BYTES at addr and lets go of them: cached from then on. hit: its name.
 */
void bench_measure(const char *heap, uint32_t count, void (*cache)(const char *addr), const char *hit);

#endif
