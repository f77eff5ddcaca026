/* SPDX-License-Identifier: MIT */
/*
 * world.h: what the tests of the adapters share: an arena with memory that moves when it should, where a range is,
 * and a hand in the callbacks of the notifiers that an adapter adds.
 */
#ifndef SUBLET_TESTS_ADAPTERS_WORLD_H
#define SUBLET_TESTS_ADAPTERS_WORLD_H

#include <sublet/arena.h>
#include <sublet/claim.h>
#include <sublet/map.h>
#include <sublet/notifier.h>
#include <sublet/pin.h>

#define AREA_BYTES (16 * SUBLET_MIB)
#define HEAP_BYTES (8 * SUBLET_MIB)
#define PLACE_MAX  24u

/* Where a range is. */
struct place {
	int count; /* or -errno */
	struct sublet_extent extents[PLACE_MAX];
};

extern struct sublet_arena *world_arena;
extern struct sublet_mm *world_mm;

/* An arena, and HEAP_BYTES of movable memory in its area, every page touched. NULL: cannot be had here. */
char *world_open(uint64_t normal_bytes);
void world_close(void);

/* Movable memory outside the area: claims do not move it. */
char *world_map_outside(uint64_t bytes);

/* Claim the whole area and release it: what lies in it moves out. Asserts success. */
void world_claim_all(void);
/*
 * Claim and release windows that are full of live memory, again and again. To be called with a normal zone of half the
 * area, which this fills up: from then on what one claim moves into the area's free half is what the next moves out.
 * Returns how many claims moved something.
 */
uint32_t world_churn(uint32_t claims);
/* Bring all of [addr, addr + bytes) back into the area, so that the next claim moves it again. */
void world_refill(char *addr, uint64_t bytes);

/* Notifiers that are registered. */
uint64_t world_notifiers(void);

struct place world_place(const void *addr, uint64_t bytes);
bool world_place_equal(const struct place *a, const struct place *b);

/* Called on the mover's thread when the adapter's callback has returned, before anything moves; NULL: nothing. */
extern void (*world_after_callback)(const struct sublet_invalidation *inv);
/* Calls of malloc and its family from inside the adapter's callbacks. */
extern _Atomic uint64_t world_allocations;
extern _Atomic uint64_t world_callbacks;

/* Call the adapter's callback of the notifier that was added last, as the engine does. */
void world_tell(const void *addr, uint64_t bytes);

uint64_t world_now_ns(void);
/* Sorts. */
uint64_t world_median(uint64_t *values, uint32_t count);

/* End the process with a message if the test hangs longer than that. */
void world_watchdog(unsigned int seconds);

#endif
