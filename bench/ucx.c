/* SPDX-License-Identifier: MIT */
/*
 * A hit in UCX's registration cache: what a transport pays in each transfer to learn that a buffer needs no
 * registration, and what our notifiers' index is compared with.
 *
 * UCX patches libc when it is loaded, so it is loaded here and not before: the other rows are measured without it.
 */
#include "bench.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucs/memory/rcache.h>

#define HITS          200000u
#define REPEATS       15u
#define REGION_BYTES  4096u
#define SPACING_BYTES 8192u /* so that neighbours are not merged */

static ucs_status_t region_register(void *ctx, ucs_rcache_t *cache, void *arg, ucs_rcache_region_t *region,
				    uint16_t flags)
{
	(void)ctx, (void)cache, (void)arg, (void)region, (void)flags;
	return UCS_OK;
}

static void region_deregister(void *ctx, ucs_rcache_t *cache, ucs_rcache_region_t *region)
{
	(void)ctx, (void)cache, (void)region;
}

static void region_dump(void *ctx, ucs_rcache_t *cache, ucs_rcache_region_t *region, char *text, size_t bytes)
{
	(void)ctx, (void)cache, (void)region;
	if (bytes)
		text[0] = '\0';
}

static struct {
	__typeof__(ucs_rcache_create) *create;
	__typeof__(ucs_rcache_destroy) *destroy;
	__typeof__(ucs_rcache_get) *get;
	__typeof__(ucs_rcache_region_put) *put;
} ucs;

static bool ucs_load(void)
{
	void *library = dlopen("libucs.so.0", RTLD_NOW);

	if (!library)
		return false;
	*(void **)&ucs.create = dlsym(library, "ucs_rcache_create");
	*(void **)&ucs.destroy = dlsym(library, "ucs_rcache_destroy");
	*(void **)&ucs.get = dlsym(library, "ucs_rcache_get");
	*(void **)&ucs.put = dlsym(library, "ucs_rcache_region_put");
	return ucs.create && ucs.destroy && ucs.get && ucs.put;
}

/* Nothing is registered for real, so nothing need be mapped there. */
static void use(ucs_rcache_t *cache, uint64_t number)
{
	void *addr = (void *)(uintptr_t)(SUBLET_GIB << 10 | number * SPACING_BYTES);
	ucs_rcache_region_t *region;

	if (ucs.get(cache, addr, REGION_BYTES, PROT_READ | PROT_WRITE, NULL, &region) != UCS_OK)
		bench_fail("ucs_rcache_get", -ENOMEM);
	ucs.put(cache, region);
}

static void hit_row(uint32_t regions, const char *name)
{
	static const ucs_rcache_ops_t ops = { region_register, region_deregister, region_dump };
	ucs_rcache_params_t params = { .region_struct_size = sizeof(ucs_rcache_region_t),
				       .alignment = REGION_BYTES,
				       .max_alignment = REGION_BYTES,
				       .ops = &ops,
				       .flags = UCS_RCACHE_FLAG_NO_PFN_CHECK,
				       .max_regions = -1ul,
				       .max_size = -1ul,
				       .max_unreleased = -1ul };
	double adds[REPEATS], atomic = 0;
	ucs_rcache_t *cache;
	uint64_t s = 12345;

	if (ucs.create(&params, "bench", NULL, &cache) != UCS_OK)
		bench_fail("ucs_rcache_create", -ENOMEM);
	for (uint32_t i = 0; i < regions; i++)
		use(cache, i);
	for (uint32_t r = 0; r < REPEATS; r++) {
		atomic = bench_atomic_ns();
		uint64_t start = bench_now_ns();
		for (uint32_t i = 0; i < HITS; i++) {
			s ^= s << 13, s ^= s >> 7, s ^= s << 17;
			use(cache, s % regions);
		}
		adds[r] = (double)(bench_now_ns() - start) / HITS / atomic;
	}
	bench_add((struct bench_row){ .name = name,
				      .unit = "atomic adds",
				      .reference = "an uncontended atomic add",
				      .reference_ns = atomic },
		  adds, REPEATS);
	ucs.destroy(cache);
}

void bench_ucx(void)
{
	if (!ucs_load()) {
		printf("  left out: no libucs.so.0\n");
		return;
	}
	hit_row(1000, "UCX rcache hit, 1,000 regions");
	hit_row(1000000, "UCX rcache hit, 1,000,000 regions, random order");
}
