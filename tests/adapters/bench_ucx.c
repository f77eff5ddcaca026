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

#include "bench.h"
#include "rcache.h"

#include <sublet/ucx.h>

static struct rcache rc;

static void cache(const char *addr)
{
	struct region *region = rcache_get(&rc, addr, BENCH_RANGE_BYTES);

	assert_non_null(region);
	rcache_put(&rc, region);
}

int main(void)
{
	struct sublet_ucx_watch *watch;
	const char *heap = world_open(AREA_BYTES);

	if (!heap)
		return 77;
	rcache_open(&rc);
	assert_int_equal(sublet_ucx_watch(world_mm, heap, HEAP_BYTES, &watch), 0);
	bench_measure(heap, 1, cache, "hit and put");
	bench_measure(heap, 1000, cache, "hit and put");
	sublet_ucx_unwatch(watch);
	rcache_close(&rc);
	world_close();
	return 0;
}
