/* SPDX-License-Identifier: MIT */
/*
 * rcache.h: a registration cache of UCX (ucs_rcache, what its InfiniBand, KNEM and other transports keep registrations
 * in) whose registrations note where the memory is.
 */
#ifndef SUBLET_TESTS_ADAPTERS_RCACHE_H
#define SUBLET_TESTS_ADAPTERS_RCACHE_H

#include "world.h"

#include <ucs/memory/rcache.h>

struct region {
	ucs_rcache_region_t super;
	struct place place; /* when it was registered */
};

struct rcache {
	ucs_rcache_t *cache;
	_Atomic uint64_t registrations;
	_Atomic uint64_t deregistrations;
	void (*on_register)(const void *addr, uint64_t bytes); /* NULL: nothing */
};

/* A cache that hears of unmapped memory from UCM, as the transports' do. */
void rcache_open(struct rcache *rc);
void rcache_close(struct rcache *rc);

/* As the transports do it; put every region that was got. NULL: UCX refused. */
struct region *rcache_get(struct rcache *rc, const void *addr, uint64_t bytes);
void rcache_put(struct rcache *rc, struct region *region);

#endif
