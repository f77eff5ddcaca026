/* SPDX-License-Identifier: MIT */
/*
 * What a notification costs through UCM: with 1 and 1,000 regions cached, where it drops none and where it drops one.
 * And a hit of that cache, which is what it all is for; bench/ucx.c has it with a million regions.
 * Medians.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "rcache.h"

#include <sublet/ucx.h>

#include <stdio.h>

#define RANGE_BYTES 4096u
#define ROUNDS      1000u
#define LOOPS       100u

static struct rcache rc;

static void cache(const char *addr)
{
	struct region *region = rcache_get(&rc, addr, RANGE_BYTES);

	assert_non_null(region);
	rcache_put(&rc, region);
}

static void measure(const char *heap, uint32_t count)
{
	const char *nothing = heap + (uint64_t)count * 2 * RANGE_BYTES;
	static uint64_t none_ns[ROUNDS], one_ns[ROUNDS], hit_ns[ROUNDS];
	uint64_t start;

	for (uint32_t i = 0; i < count; i++)
		cache(heap + (uint64_t)i * 2 * RANGE_BYTES);
	for (uint32_t r = 0; r < ROUNDS; r++) {
		const char *at = heap + (uint64_t)(r * 7919 % count) * 2 * RANGE_BYTES;
		start = world_now_ns();
		for (uint32_t i = 0; i < LOOPS; i++)
			world_tell(nothing, RANGE_BYTES);
		none_ns[r] = (world_now_ns() - start) / LOOPS;
		start = world_now_ns();
		for (uint32_t i = 0; i < LOOPS; i++)
			cache(at);
		hit_ns[r] = (world_now_ns() - start) / LOOPS;
		start = world_now_ns();
		world_tell(at, RANGE_BYTES);
		one_ns[r] = world_now_ns() - start;
		cache(at);
	}
	printf("%5u cached | drops none %4llu ns | drops one %4llu ns | hit and put %4llu ns\n", count,
	       (unsigned long long)world_median(none_ns, ROUNDS),
	       (unsigned long long)world_median(one_ns, ROUNDS),
	       (unsigned long long)world_median(hit_ns, ROUNDS));
	world_tell(heap, HEAP_BYTES);
}

int main(void)
{
	struct sublet_ucx_watch *watch;
	const char *heap = world_open(AREA_BYTES);

	if (!heap)
		return 77;
	rcache_open(&rc);
	assert_int_equal(sublet_ucx_watch(world_mm, heap, HEAP_BYTES, &watch), 0);
	measure(heap, 1);
	measure(heap, 1000);
	sublet_ucx_unwatch(watch);
	rcache_close(&rc);
	world_close();
	return 0;
}
