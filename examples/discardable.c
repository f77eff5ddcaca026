/* SPDX-License-Identifier: MIT */
/*
 * sublet/map.h: a cache whose contents may be dropped when a device wants the room, and sublet/stats.h to see it happen.
 *
 *   cc discardable.c $(pkg-config --cflags --libs sublet)
 */
#include <sublet/arena.h>
#include <sublet/claim.h>
#include <sublet/map.h>
#include <sublet/stats.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define SLOTS      128u
#define SLOT_BYTES (SUBLET_MIB / 4)

static int fail(const char *what, int err)
{
	fprintf(stderr, "%s: %s\n", what, strerror(-err));
	return 1;
}

int main(void)
{
	struct sublet_arena_options options = { SUBLET_OPTIONS(sublet_arena_options),
						.area_bytes = 64 * SUBLET_MIB };
	struct sublet_stats stats = { SUBLET_OPTIONS(sublet_stats) };
	struct sublet_arena *arena;
	struct sublet_claim claim;
	uint32_t intact = 0;
	void *cache;
	int err = sublet_arena_create(&options, &arena);

	if (err)
		return fail("create an arena (sublet doctor says more)", err);
	struct sublet_mm *mm = sublet_arena_mm(arena);

	/* It is mapped locked: fill it, then unlock what nobody needs at the moment. */
	err = sublet_map(mm, SLOTS * SLOT_BYTES, SUBLET_DISCARDABLE, &cache);
	if (err)
		return fail("map", err);
	memset(cache, 'c', SLOTS * SLOT_BYTES);
	for (uint32_t i = 0; i < SLOTS; i++) {
		err = sublet_unlock(mm, (char *)cache + i * SLOT_BYTES, SLOT_BYTES);
		if (err) /* SUBLET_KEPT: nothing here pins the cache, or forks */
			return fail("unlock", err);
	}

	/* A device takes most of the area: nothing is copied, what has to go is dropped. */
	err = sublet_claim(arena, 48 * SUBLET_MIB, NULL, &claim);
	if (err)
		return fail("claim", err);
	printf("claimed 48 MiB in %llu us: %llu MiB dropped, %llu moved\n",
	       (unsigned long long)(claim.latency_ns / SUBLET_US),
	       (unsigned long long)(claim.dropped_bytes / SUBLET_MIB),
	       (unsigned long long)(claim.moved_bytes / SUBLET_MIB));
	uint64_t dropped = claim.dropped_bytes;
	if (dropped < 16 * SUBLET_MIB || claim.moved_bytes)
		return fail("48 of 64 MiB are claimed, 32 of them were the cache", -EIO);
	err = sublet_release(arena, &claim);
	if (err)
		return fail("release", err);

	/* Before each use: lock, and see whether it is still what was put there. */
	for (uint32_t i = 0; i < SLOTS; i++) {
		char *slot = (char *)cache + i * SLOT_BYTES;
		int state = sublet_lock(mm, slot, SLOT_BYTES);
		if (state < 0)
			return fail("lock", state);
		if (state == SUBLET_INTACT && (slot[0] != 'c' || slot[SLOT_BYTES - 1] != 'c'))
			return fail("intact, but not what was put there", -EIO);
		if (state == SUBLET_DISCARDED)
			memset(slot, 'c', SLOT_BYTES); /* compute it again */
		intact += state == SUBLET_INTACT;
		err = sublet_unlock(mm, slot, SLOT_BYTES);
		if (err)
			return fail("unlock", err);
	}
	if (intact * SLOT_BYTES != SLOTS * SLOT_BYTES - dropped)
		return fail("not what was dropped was lost", -EIO);
	err = sublet_arena_stats(arena, &stats);
	if (err)
		return fail("stats", err);
	printf("%u of %u slots were intact; the area holds %llu MiB that may be dropped\n", intact, SLOTS,
	       (unsigned long long)(stats.area_discardable_bytes / SUBLET_MIB));
	if (stats.area_discardable_bytes != SLOTS * SLOT_BYTES)
		return fail("some of the cache cannot be dropped any more", -EIO);
	err = sublet_arena_destroy(arena);
	return err ? fail("destroy the arena", err) : 0;
}
