/* SPDX-License-Identifier: MIT */
/* calls_world.h: an arena with one of everything that a public call can be made on, for tests of the calls' common rules. */
#ifndef TESTS_LINUX_CALLS_WORLD_H
#define TESTS_LINUX_CALLS_WORLD_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <sublet/arena.h>
#include <sublet/bo.h>
#include <sublet/claim.h>
#include <sublet/client.h>
#include <sublet/device.h>
#include <sublet/iopt.h>
#include <sublet/map.h>
#include <sublet/notifier.h>
#include <sublet/pin.h>
#include <sublet/stats.h>

#define AREA  (32 * SUBLET_MIB)
#define BYTES (4 * SUBLET_MIB)

struct world {
	struct sublet_arena_options options;
	struct sublet_arena *arena;
	struct sublet_mm *mm;
	char *memory;   /* BYTES, movable */
	char *cache;    /* BYTES, discardable, locked */
	uint32_t exits; /* of the notifier */

	struct sublet_claim claim; /* held */
	struct sublet_pin pin;     /* held, of half of memory */
	struct sublet_notifier notifier;
	struct sublet_device *device; /* soft */
	struct sublet_iopt *device_iopt;
	struct sublet_bo bo; /* pinned, of the cache */
	struct sublet_job job;
	struct sublet_fence fence;
	struct sublet_iopt *iopt;
	uint64_t iova; /* a page of it is mapped */
	struct sublet_client *client;

	/* for answers */
	struct sublet_arena *other;
	struct sublet_mm *mm2;
	struct sublet_arena_info info;
	struct sublet_stats stats;
	struct sublet_pageblock block;
	struct sublet_pin_info pin_info;
	struct sublet_bo_info bo_info;
	struct sublet_notifier_stats notifier_stats;
	struct sublet_device_info device_info;
	struct sublet_iopt_stats iopt_stats;
	struct sublet_iopt_options iopt_options;
};

extern const struct sublet_notifier_ops world_notifier_ops; /* ctx: the world */
extern const struct sublet_device_ops world_device_ops;     /* ctx: anything */
extern const struct sublet_device_limits world_limits;

/* Under which the arena of this process is served. */
const char *world_name(void);
void world_open(struct world *w);
/* All is there, and works. */
void world_check(struct world *w);
/* Give all of it back, the arena too. */
void world_close(struct world *w);

#endif
