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

#include "bench.h"
#include "nic.h"

#include <sublet/ofi.h>

static struct fid_domain *domain;

/* Register and close: cached from here on. */
static void cache(const char *addr)
{
	struct fid_mr *mr;

	assert_int_equal(fi_mr_reg(domain, addr, BENCH_RANGE_BYTES, FI_SEND | FI_RECV, 0, 0, 0, &mr, NULL),
			 0);
	assert_int_equal(fi_close(&mr->fid), 0);
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
	bench_measure(heap, 1, cache, "hit and close");
	bench_measure(heap, 1000, cache, "hit and close");
	sublet_ofi_unwatch(watch);
	nic_domain_close(domain);
	world_close();
	return 0;
}
