/* SPDX-License-Identifier: MIT */
/*
 * The cache of the UCX tests: UCX's own, with registrations that touch no device.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "rcache.h"

#include <stdio.h>
#include <ucm/api/ucm.h>

static ucs_status_t region_register(void *ctx, ucs_rcache_t *cache, void *arg, ucs_rcache_region_t *super,
				    uint16_t flags)
{
	struct rcache *rc = ctx;
	struct region *region = (struct region *)super;
	const void *addr = (const void *)region->super.super.start;
	uint64_t bytes = region->super.super.end - region->super.super.start;

	(void)cache, (void)arg, (void)flags;
	if (rc->on_register)
		rc->on_register(addr, bytes);
	region->place = world_mm ? world_place(addr, bytes) : (struct place){ 0 };
	rc->registrations++;
	return UCS_OK;
}

static void region_deregister(void *ctx, ucs_rcache_t *cache, ucs_rcache_region_t *super)
{
	struct rcache *rc = ctx;

	(void)cache, (void)super;
	rc->deregistrations++;
}

static void region_dump(void *ctx, ucs_rcache_t *cache, ucs_rcache_region_t *super, char *text, size_t bytes)
{
	(void)ctx, (void)cache, (void)super;
	snprintf(text, bytes, "-");
}

void rcache_open(struct rcache *rc)
{
	static const ucs_rcache_ops_t ops = { region_register, region_deregister, region_dump };
	ucs_rcache_params_t params = {
		.region_struct_size = sizeof(struct region),
		.alignment = 4096,
		.max_alignment = 4096,
		.ucm_events = UCM_EVENT_VM_UNMAPPED,
		.ucm_event_priority = 1000,
		.ops = &ops,
		.context = rc,
		.flags = UCS_RCACHE_FLAG_NO_PFN_CHECK,
		.max_regions = -1ul,
		.max_size = -1ul,
		.max_unreleased = -1ul,
	};

	*rc = (struct rcache){ 0 };
	assert_int_equal(ucs_rcache_create(&params, "test", NULL, &rc->cache), UCS_OK);
}

void rcache_close(struct rcache *rc)
{
	ucs_rcache_destroy(rc->cache);
}

struct region *rcache_get(struct rcache *rc, const void *addr, uint64_t bytes)
{
	ucs_rcache_region_t *region;

	if (ucs_rcache_get(rc->cache, (void *)(uintptr_t)addr, bytes, PROT_READ | PROT_WRITE, NULL,
			   &region) != UCS_OK)
		return NULL;
	return (struct region *)region;
}

void rcache_put(struct rcache *rc, struct region *region)
{
	ucs_rcache_region_put(rc->cache, &region->super);
}
