/* SPDX-License-Identifier: MIT */
/*
 * sublet/pin.h: hold memory where it is, for one I/O or for a session, and see what that does to a claim.
 *
 *   cc pin.c $(pkg-config --cflags --libs sublet)
 */
#include <sublet/arena.h>
#include <sublet/claim.h>
#include <sublet/map.h>
#include <sublet/pin.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define AREA (64 * SUBLET_MIB)

static int fail(const char *what, int err)
{
	fprintf(stderr, "%s: %s\n", what, strerror(-err));
	return 1;
}

/* All of the area, so that whatever is pinned in it is in the way. */
static int claim_all(struct sublet_arena *arena)
{
	struct sublet_claim_options options = { SUBLET_OPTIONS(sublet_claim_options),
						.deadline_ns = 50 * SUBLET_MS };
	struct sublet_claim claim;
	char line[200];
	int err = sublet_claim(arena, AREA, &options, &claim);

	if (!err) {
		printf("  a claim of all %llu MiB: granted, %llu MiB moved\n",
		       (unsigned long long)(AREA / SUBLET_MIB),
		       (unsigned long long)(claim.moved_bytes / SUBLET_MIB));
		return sublet_release(arena, &claim);
	}
	for (uint32_t i = 0; i < claim.blocker_count; i++)
		if (sublet_blocker_describe(&claim, i, line, sizeof line) > 0)
			printf("  a claim of it all: in the way is %s\n", line);
	return err;
}

int main(void)
{
	struct sublet_arena_options options = { SUBLET_OPTIONS(sublet_arena_options), .area_bytes = AREA,
						.normal_bytes = AREA };
	struct sublet_arena *arena;
	struct sublet_extent extents[8];
	struct sublet_pin pin;
	void *buffer;
	int err = sublet_arena_create(&options, &arena);

	if (err)
		return fail("create an arena (sublet doctor says more)", err);
	struct sublet_mm *mm = sublet_arena_mm(arena);
	err = sublet_map(mm, 8 * SUBLET_MIB, SUBLET_MOVABLE, &buffer);
	if (err)
		return fail("map", err);

	/* Short: for one I/O. The memory stays where it is, so it must not be kept for long. */
	err = sublet_pin(mm, buffer, 3 * SUBLET_MIB, SUBLET_PIN_WRITE, "one read", &pin);
	if (err)
		return fail("pin", err);
	int count = sublet_pin_extents(&pin, 0, extents, 8);
	if (count <= 0)
		return fail("extents", count);
	printf("short pin: %d extents, the first at offset %llu\n", count,
	       (unsigned long long)extents[0].offset_bytes);
	err = claim_all(arena);
	if (err != -EBUSY)
		return fail("a short pin has to be in the way", err);
	err = sublet_unpin(&pin);
	if (err)
		return fail("unpin", err);

	/* Long-term: for a session. It moves out of the area first, and is in nobody's way. */
	err = sublet_pin(mm, buffer, 3 * SUBLET_MIB, SUBLET_PIN_WRITE | SUBLET_PIN_LONGTERM, "receive ring",
			 &pin);
	if (err == -ENOMEM && pin.longterm_limit_bytes)
		fprintf(stderr, "over the limit of %llu bytes\n",
			(unsigned long long)pin.longterm_limit_bytes);
	if (err)
		return fail("long-term pin", err);
	count = sublet_pin_extents(&pin, 0, extents, 8);
	if (count <= 0)
		return fail("extents", count);
	/* A device is given these: offsets in the backing, which it has registered once. */
	for (int i = 0; i < count; i++)
		if (extents[i].offset_bytes < AREA)
			return fail("a long-term pin in the area", -EIO);
	for (int i = 0; i < count; i++)
		printf("long-term pin: %llu KiB at offset %llu MiB\n",
		       (unsigned long long)(extents[i].bytes / SUBLET_KIB),
		       (unsigned long long)(extents[i].offset_bytes / SUBLET_MIB));
	err = claim_all(arena);
	if (err)
		return fail("claim beside a long-term pin", err);
	err = sublet_unpin(&pin);
	if (err)
		return fail("unpin", err);
	err = sublet_arena_destroy(arena);
	return err ? fail("destroy the arena", err) : 0;
}
