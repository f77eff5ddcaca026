/* SPDX-License-Identifier: MIT */
/* bench.h: the measurement. */
#include "bench.h"

#include "world.h"

#include <stdio.h>

#define ROUNDS 1000u
#define LOOPS  100u

void bench_measure(const char *heap, uint32_t count, void (*cache)(const char *addr), const char *hit)
{
	const char *nothing = heap + (uint64_t)count * 2 * BENCH_RANGE_BYTES;
	static uint64_t none_ns[ROUNDS], one_ns[ROUNDS], hit_ns[ROUNDS];
	uint64_t start;

	for (uint32_t i = 0; i < count; i++)
		cache(heap + (uint64_t)i * 2 * BENCH_RANGE_BYTES);
	for (uint32_t r = 0; r < ROUNDS; r++) {
		const char *at = heap + (uint64_t)(r * 7919 % count) * 2 * BENCH_RANGE_BYTES;
		start = world_now_ns();
		for (uint32_t i = 0; i < LOOPS; i++)
			world_tell(nothing, BENCH_RANGE_BYTES);
		none_ns[r] = (world_now_ns() - start) / LOOPS;
		start = world_now_ns();
		for (uint32_t i = 0; i < LOOPS; i++)
			cache(at);
		hit_ns[r] = (world_now_ns() - start) / LOOPS;
		start = world_now_ns();
		world_tell(at, BENCH_RANGE_BYTES);
		one_ns[r] = world_now_ns() - start;
		cache(at);
	}
	printf("%5u cached | drops none %4llu ns | drops one %4llu ns | %s %4llu ns\n", count,
	       (unsigned long long)world_median(none_ns, ROUNDS),
	       (unsigned long long)world_median(one_ns, ROUNDS), hit,
	       (unsigned long long)world_median(hit_ns, ROUNDS));
	world_tell(heap, HEAP_BYTES);
}
