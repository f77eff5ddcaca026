/* SPDX-License-Identifier: MIT */
/*
 * sublet/bo.h: the three kinds of buffers of a device, and what a claim does to each. The device is the DMA engine in
 * software, so that this runs anywhere.
 *
 *   cc bo.c $(pkg-config --cflags --libs sublet)
 */
#include <sublet/arena.h>
#include <sublet/bo.h>
#include <sublet/claim.h>
#include <sublet/device.h>
#include <sublet/map.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define AREA  (64 * SUBLET_MIB)
#define BYTES (8 * SUBLET_MIB)

static struct sublet_device *device;

static int fail(const char *what, int err)
{
	fprintf(stderr, "%s: %s\n", what, strerror(-err));
	return 1;
}

/* Have the device fill a buffer, and wait for it. */
static int fill(struct sublet_bo bo, uint64_t pattern)
{
	struct sublet_job job = { SUBLET_OPTIONS(sublet_job), .op = SUBLET_JOB_FILL, .bytes = BYTES,
				  .pattern = pattern };
	struct sublet_fence fence;
	int err = sublet_submit(device, &job, &bo, 1, &fence);

	if (err)
		return err;
	err = sublet_fence_wait(&fence, SUBLET_SEC, NULL, NULL);
	int put = sublet_fence_put(&fence);
	return err ? err : put;
}

static void list(struct sublet_arena *arena)
{
	struct sublet_bo_info info[8];
	uint64_t next = 0;
	size_t count = sublet_bo_list(arena, &next, 8, info);

	for (size_t i = 0; i < count; i++)
		printf("  %-8s %llu MiB, of which %llu are bound; bound %llu times, evicted %llu\n",
		       info[i].owner, (unsigned long long)(info[i].bytes / SUBLET_MIB),
		       (unsigned long long)(info[i].bound_bytes / SUBLET_MIB),
		       (unsigned long long)info[i].binds, (unsigned long long)info[i].evictions);
}

/* How much of a buffer the device knows now. */
static uint64_t bound_bytes(struct sublet_arena *arena, const char *owner)
{
	struct sublet_bo_info info[8];
	uint64_t next = 0;
	size_t count = sublet_bo_list(arena, &next, 8, info);

	for (size_t i = 0; i < count; i++)
		if (!strcmp(info[i].owner, owner))
			return info[i].bound_bytes;
	return UINT64_MAX;
}

static int make(struct sublet_arena *arena, struct sublet_claim *claim, void *memory[2],
		struct sublet_bo bo[3])
{
	struct sublet_mm *mm = sublet_arena_mm(arena);
	int err = sublet_map(mm, BYTES, SUBLET_MOVABLE, &memory[0]);

	if (!err)
		err = sublet_map(mm, BYTES, SUBLET_MOVABLE, &memory[1]);
	/* In one piece, and it stays; taken from the area for as long as it is held. */
	if (!err)
		err = sublet_claim(arena, BYTES, NULL, claim);
	if (!err)
		err = sublet_bo_create_claim(device, claim, 0, "claimed", &bo[0]);
	/* Anywhere, and it stays; moved out of the area first, and counted against a limit. */
	if (!err)
		err = sublet_bo_create(device, mm, memory[0], BYTES, SUBLET_BO_PINNED, "pinned", &bo[1]);
	/* Anywhere, and it may move at any time: costs nobody anything. */
	if (!err)
		err = sublet_bo_create(device, mm, memory[1], BYTES, SUBLET_BO_TRACKED, "tracked", &bo[2]);
	return err;
}

int main(void)
{
	struct sublet_arena_options options = { SUBLET_OPTIONS(sublet_arena_options), .area_bytes = AREA,
						.normal_bytes = AREA };
	struct sublet_claim claim, all;
	struct sublet_arena *arena;
	struct sublet_bo bo[3];
	void *memory[2];
	int err = sublet_arena_create(&options, &arena);

	if (err)
		return fail("create an arena (sublet doctor says more)", err);
	err = sublet_device_open_soft(arena, NULL, &device);
	if (err)
		return fail("open a device", err);
	err = make(arena, &claim, memory, bo);
	if (err)
		return fail("make the buffers", err);
	for (uint32_t i = 0; i < 3 && !err; i++)
		err = fill(bo[i], 1 + i);
	if (err)
		return fail("fill", err);
	printf("three buffers, after their first job:\n");
	list(arena);

	/* All that is left of the area: what the tracked buffer lives in has to go elsewhere. */
	err = sublet_claim(arena, AREA - BYTES, NULL, &all);
	if (err)
		return fail("claim the rest", err);
	printf("after a claim of the rest of the area (%llu MiB moved):\n",
	       (unsigned long long)(all.moved_bytes / SUBLET_MIB));
	list(arena);
	if (((uint64_t *)memory[1])[0] != 3 || ((uint64_t *)memory[1])[BYTES / 8 - 1] != 3)
		return fail("what the device wrote was lost", -EIO);
	if (bound_bytes(arena, "tracked"))
		return fail("the tracked one moved, and the device still knows the old place", -EIO);
	printf("the tracked one holds what the device wrote\n");
	err = fill(bo[2], 4); /* binds it again, to where it is now */
	if (err)
		return fail("fill it again", err);
	if (bound_bytes(arena, "tracked") != BYTES || ((uint64_t *)memory[1])[0] != 4)
		return fail("the second job did not bind it again, or wrote elsewhere", -EIO);
	printf("and after its next job:\n");
	list(arena);

	err = sublet_release(arena, &claim);
	if (err != -EBUSY)
		return fail("a claim under a buffer was released", err);
	printf("to release a claim under a buffer: %s\n", strerror(-err));
	err = sublet_bo_destroy(&bo[0]);
	if (!err)
		err = sublet_release(arena, &claim);
	if (!err)
		err = sublet_release(arena, &all);
	if (err)
		return fail("release", err);
	sublet_device_close(device); /* and its buffers */
	err = sublet_arena_destroy(arena);
	return err ? fail("destroy the arena", err) : 0;
}
