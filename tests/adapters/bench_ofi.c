/* SPDX-License-Identifier: MIT */
/*
 * What a notification costs through libfabric's monitor: with 1 and 1,000 registrations cached, where it drops none and
 * where it drops one. And a hit of that cache, which is what it all is for. Medians.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "nic.h"

#include <sublet/ofi.h>

#include <stdio.h>

#define RANGE_BYTES 4096u
#define ROUNDS      1000u
#define LOOPS       100u

static struct fid_domain *domain;

/* Register and close: cached from here on. */
static void cache(const char *addr)
{
	struct fid_mr *mr;

	assert_int_equal(fi_mr_reg(domain, addr, RANGE_BYTES, FI_SEND | FI_RECV, 0, 0, 0, &mr, NULL), 0);
	assert_int_equal(fi_close(&mr->fid), 0);
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
	printf("%5u cached | drops none %4llu ns | drops one %4llu ns | hit and close %4llu ns\n", count,
	       (unsigned long long)world_median(none_ns, ROUNDS),
	       (unsigned long long)world_median(one_ns, ROUNDS),
	       (unsigned long long)world_median(hit_ns, ROUNDS));
	world_tell(heap, HEAP_BYTES);
}

int main(void)
{
	struct sublet_ofi_watch *watch;
	struct sublet_ofi *ofi;

	nic_plug();
	const char *heap = world_open(AREA_BYTES);
	if (!heap)
		return 77;
	assert_int_equal(sublet_ofi_open(&ofi), 0);
	assert_int_equal(nic_domain_open(&domain), 0);
	assert_int_equal(sublet_ofi_watch(ofi, world_mm, heap, HEAP_BYTES, &watch), 0);
	measure(heap, 1);
	measure(heap, 1000);
	sublet_ofi_unwatch(watch);
	nic_domain_close(domain);
	world_close();
	return 0;
}
