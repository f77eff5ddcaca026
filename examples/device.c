/* SPDX-License-Identifier: MIT */
/*
 * sublet/device.h, for whoever writes a backend: the least that is a device. It has no page table, is told which buffers
 * there are, and does its work at once, on the thread that submits. A real one would start a transfer in submit, and
 * call sublet_device_complete when the interrupt comes.
 *
 *   cc device.c $(pkg-config --cflags --libs sublet)
 */
#include <sublet/arena.h>
#include <sublet/bo.h>
#include <sublet/claim.h>
#include <sublet/device.h>
#include <sublet/map.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define AREA    (64 * SUBLET_MIB)
#define BYTES   SUBLET_MIB
#define BUFFERS 8

struct engine {
	struct sublet_device *device;
	void *buffer[BUFFERS]; /* what the device knows; NULL: nothing */
	uint32_t attached;
};

static int fail(const char *what, int err)
{
	fprintf(stderr, "%s: %s\n", what, strerror(-err));
	return 1;
}

/* ---- the backend ---- */

/* No job is in flight on it, and its memory does not move until detach has returned. */
static int engine_attach(void *ctx, uint32_t slot, void *addr, uint64_t bytes)
{
	struct engine *e = ctx;

	(void)bytes;
	e->buffer[slot] = addr;
	e->attached++;
	return 0;
}

static void engine_detach(void *ctx, uint32_t slot)
{
	struct engine *e = ctx;

	e->buffer[slot] = NULL;
}

static int engine_submit(void *ctx, const struct sublet_device_work *work)
{
	struct engine *e = ctx;

	/* The buffer is attached, and stays so until the job is completed: nobody moves it meanwhile. */
	memset(work->buffer[0].addr, (int)work->pattern, work->bytes);
	sublet_device_complete(e->device, work->id, 0, work->bytes);
	return 0;
}

/* All work was done at once, so there is nothing to stop. */
static int engine_reset(void *ctx)
{
	(void)ctx;
	return 0;
}

static void engine_close(void *ctx)
{
	struct engine *e = ctx;

	printf("the device was told of a buffer %u times\n", e->attached);
}

static const struct sublet_device_ops ops = {
	SUBLET_OPTIONS(sublet_device_ops), .submit = engine_submit, .attach = engine_attach,
	.detach = engine_detach,           .reset = engine_reset,   .close = engine_close,
};

static const struct sublet_device_limits limits = {
	SUBLET_OPTIONS(sublet_device_limits),
	.name = "memset",
	.features = SUBLET_DEVICE_COPY,
	.bos_max = BUFFERS,
	.jobs_max = 16,
	.align_bytes = 1,
	.job_bytes_max = BYTES,
	.bo_bytes_max = BYTES,
};

/* ---- who uses it ---- */

static int work(struct sublet_device *device, struct sublet_bo bo, uint8_t value)
{
	struct sublet_job job = { SUBLET_OPTIONS(sublet_job), .op = SUBLET_JOB_FILL, .bytes = BYTES,
				  .pattern = value };
	struct sublet_fence fence;
	int err = sublet_submit(device, &job, &bo, 1, &fence);

	if (err)
		return err;
	err = sublet_fence_wait(&fence, SUBLET_SEC, NULL, NULL);
	int put = sublet_fence_put(&fence);
	return err ? err : put;
}

int main(void)
{
	struct sublet_arena_options options = { SUBLET_OPTIONS(sublet_arena_options), .area_bytes = AREA,
						.normal_bytes = AREA };
	static struct engine engine;
	struct sublet_arena *arena;
	struct sublet_bo bo;
	void *memory;
	int err = sublet_arena_create(&options, &arena);

	if (err)
		return fail("create an arena (sublet doctor says more)", err);
	err = sublet_device_create(arena, &ops, &engine, &limits, &engine.device);
	if (!err)
		err = sublet_map(sublet_arena_mm(arena), BYTES, SUBLET_MOVABLE, &memory);
	if (!err)
		err = sublet_bo_create(engine.device, sublet_arena_mm(arena), memory, BYTES,
				       SUBLET_BO_TRACKED, "ring", &bo);
	if (err)
		return fail("make a device and a buffer", err);

	/* Each round somebody claims all of the area. The first time the buffer's memory has to move out of it, and the
	   device is told before; from then on it is in nobody's way. */
	for (uint8_t round = 1; round <= 4 && !err; round++) {
		struct sublet_claim claim;
		err = work(engine.device, bo, round);
		if (!err)
			err = sublet_claim(arena, AREA, NULL, &claim);
		if (!err)
			err = sublet_release(arena, &claim);
		for (uint64_t i = 0; i < BYTES && !err; i++)
			err = ((uint8_t *)memory)[i] == round ? 0 : -EIO;
		if (!err)
			printf("round %u: every byte is there\n", round);
	}
	if (err)
		return fail("work", err);
	struct sublet_device_info info = { SUBLET_OPTIONS(sublet_device_info) };
	err = sublet_device_info(engine.device, &info);
	if (err)
		return fail("ask the device", err);
	if (info.jobs != 4 || info.evictions != 1 || engine.attached != 2)
		return fail("four jobs, and one move that the device is told of", -EIO);
	printf("%llu jobs, %llu evictions\n", (unsigned long long)info.jobs,
	       (unsigned long long)info.evictions);
	sublet_device_close(engine.device);
	err = sublet_arena_destroy(arena);
	return err ? fail("destroy the arena", err) : 0;
}
