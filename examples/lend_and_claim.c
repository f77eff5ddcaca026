/* SPDX-License-Identifier: MIT */
/*
 * An arena in one process: lend the area to ordinary memory, claim a contiguous window of it back,
 * and see that nobody's bytes were lost.
 *
 *   cc lend_and_claim.c $(pkg-config --cflags --libs sublet)
 */
#include <sublet/arena.h>
#include <sublet/claim.h>
#include <sublet/map.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>

static int fail(const char *what, int err)
{
	fprintf(stderr, "%s: %s\n", what, strerror(-err));
	return 1;
}

int main(void)
{
	struct sublet_arena *arena;
	struct sublet_arena_options options = { SUBLET_OPTIONS(sublet_arena_options),
						.area_bytes = 128 * SUBLET_MIB };
	int err = sublet_arena_create(&options, &arena);
	if (err)
		return fail("create an arena (sublet doctor says more)", err);

	/* Ordinary memory at a stable address. It fills the whole area. */
	void *cache;
	err = sublet_map(sublet_arena_mm(arena), 128 * SUBLET_MIB, SUBLET_MOVABLE, &cache);
	if (err)
		return fail("map", err);
	memset(cache, 'x', 128 * SUBLET_MIB);

	/* 64 MiB in one piece, though everything is in use: what lives there moves. */
	struct sublet_claim claim;
	struct sublet_claim_options how = { SUBLET_OPTIONS(sublet_claim_options),
					    .deadline_ns = 100 * SUBLET_MS, .owner = "example" };
	err = sublet_claim(arena, 64 * SUBLET_MIB, &how, &claim);
	if (err) {
		char line[200];
		for (uint32_t i = 0; i < claim.blocker_count; i++)
			if (sublet_blocker_describe(&claim, i, line, sizeof line) > 0)
				fprintf(stderr, "in the way: %s\n", line);
		return fail("claim", err);
	}
	printf("claimed %llu MiB at offset %llu in %llu us, moved %llu MiB\n",
	       (unsigned long long)(claim.bytes / SUBLET_MIB), (unsigned long long)claim.offset_bytes,
	       (unsigned long long)(claim.latency_ns / SUBLET_US),
	       (unsigned long long)(claim.moved_bytes / SUBLET_MIB));

	if (claim.bytes != 64 * SUBLET_MIB || claim.moved_bytes < 64 * SUBLET_MIB || ((char *)claim.addr)[0])
		return fail("64 MiB were asked for, all of them in use, and zeroed", -EIO);

	/* The device writes into its buffer ... */
	memset(claim.addr, 'd', claim.bytes);
	/* ... and the program's memory is what it was. */
	for (uint64_t i = 0; i < 128 * SUBLET_MIB; i += 4096)
		if (((const char *)cache)[i] != 'x')
			return fail("a byte was lost", -EIO);

	err = sublet_release(arena, &claim);
	if (err)
		return fail("release", err);
	err = sublet_arena_destroy(arena);
	return err ? fail("destroy the arena", err) : 0;
}
