/* SPDX-License-Identifier: MIT */
/*
 * sublet/device.h with real files: a copy of a file by io_uring, in through a buffer that may move, out through one that
 * was claimed; and what was registered with the kernel for it.
 *
 *   cc uring.c $(pkg-config --cflags --libs sublet)
 */
#include <sublet/arena.h>
#include <sublet/bo.h>
#include <sublet/claim.h>
#include <sublet/device.h>
#include <sublet/map.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define AREA        (64 * SUBLET_MIB)
#define CHUNK       SUBLET_MIB
#define FILE_CHUNKS 8

static struct sublet_device *device;

static int fail(const char *what, int err)
{
	fprintf(stderr, "%s: %s\n", what, strerror(-err));
	return 1;
}

/* One I/O, and wait for it. More of them at once is what a fence is for: see sublet/device.h. */
static int transfer(uint32_t op, int fd, uint64_t file_offset_bytes, struct sublet_bo bo)
{
	struct sublet_job job = { SUBLET_OPTIONS(sublet_job), .op = op, .fd = fd, .bytes = CHUNK,
				  .file_offset_bytes = file_offset_bytes };
	struct sublet_fence fence;
	uint64_t moved;
	int err = sublet_submit(device, &job, &bo, 1, &fence);

	if (err)
		return err;
	err = sublet_fence_wait(&fence, 5 * SUBLET_SEC, NULL, &moved);
	int put = sublet_fence_put(&fence);
	return err ? err : put ? put : moved == CHUNK ? 0 : -EIO;
}

static int registrations(void)
{
	struct sublet_device_info info = { SUBLET_OPTIONS(sublet_device_info) };
	int err = sublet_device_info(device, &info);

	return err ? err : (int)info.registrations;
}

/* All of the area that is free or can be made free, for a moment: whatever lives there moves out of the way. */
static int claim_all(struct sublet_arena *arena)
{
	struct sublet_claim claim;
	int err = sublet_claim(arena, AREA - CHUNK, NULL, &claim);

	return err ? err : sublet_release(arena, &claim);
}

/* The chunk comes in where the program can use it like any memory, and goes out from where the device has it. */
static int copy(struct sublet_arena *arena, int from, int to, char *in, char *out,
		const struct sublet_bo bo[2])
{
	for (uint64_t at = 0; at < FILE_CHUNKS * CHUNK; at += CHUNK) {
		int err = transfer(SUBLET_JOB_READ, from, at, bo[0]);
		if (!err && at == CHUNK)
			err = claim_all(arena); /* in the middle of it all the buffer moves */
		if (err)
			return err;
		memcpy(out, in, CHUNK);
		err = transfer(SUBLET_JOB_WRITE, to, at, bo[1]);
		if (err)
			return err;
	}
	return 0;
}

static bool is_copy(int from, int to)
{
	static char a[CHUNK], b[CHUNK];

	for (uint64_t i = 0; i < FILE_CHUNKS; i++)
		if (pread(from, a, CHUNK, (off_t)(i * CHUNK)) != CHUNK ||
		    pread(to, b, CHUNK, (off_t)(i * CHUNK)) != CHUNK || memcmp(a, b, CHUNK))
			return false;
	return true;
}

static int file_make(bool filled)
{
	char path[] = "/tmp/sublet-example-XXXXXX";
	static char chunk[CHUNK];
	int fd = mkstemp(path);

	if (fd < 0)
		return -errno;
	unlink(path);
	for (int i = 0; filled && i < FILE_CHUNKS; i++) {
		memset(chunk, 'a' + i, CHUNK);
		if (write(fd, chunk, CHUNK) != CHUNK)
			return -EIO;
	}
	return fd;
}

int main(void)
{
	struct sublet_arena_options options = { SUBLET_OPTIONS(sublet_arena_options), .area_bytes = AREA,
						.normal_bytes = AREA };
	struct sublet_arena *arena;
	struct sublet_claim claim;
	struct sublet_bo bo[2];
	void *memory;
	int err = sublet_arena_create(&options, &arena);

	if (err)
		return fail("create an arena (sublet doctor says more)", err);
	err = sublet_device_open_uring(arena, NULL, &device);
	if (err == -EOPNOTSUPP) {
		printf("no io_uring here\n");
		sublet_arena_destroy(arena);
		return 77;
	}
	if (err)
		return fail("open the device", err);

	/* The device knows the whole arena since it was opened, so a claimed buffer is registered already. */
	err = sublet_claim(arena, CHUNK, NULL, &claim);
	if (!err)
		err = sublet_bo_create_claim(device, &claim, 0, "out", &bo[1]);
	/* A tracked one is put into io_uring's table when it is used, and taken out when its memory has to move. */
	if (!err)
		err = sublet_map(sublet_arena_mm(arena), CHUNK, SUBLET_MOVABLE, &memory);
	if (!err)
		err = sublet_bo_create(device, sublet_arena_mm(arena), memory, CHUNK, SUBLET_BO_TRACKED, "in",
				       &bo[0]);
	if (err)
		return fail("make the buffers", err);

	int from = file_make(true), to = file_make(false), before = registrations();
	if (from < 0 || to < 0)
		return fail("make a file", from < 0 ? from : to);
	err = copy(arena, from, to, memory, claim.addr, bo);
	if (err)
		return fail("copy", err);
	if (!is_copy(from, to))
		return fail("the copy is not what was copied", -EIO);
	printf("%d chunks copied, byte for byte\n", FILE_CHUNKS);
	/* In, out when it moved, in again: none for each I/O, none at all for the claimed buffer. */
	int told = registrations() - before;
	if (told != 3)
		return fail("the kernel is told of a buffer that moved, and of no other", -EIO);
	printf("the kernel was told of a buffer %d times\n", told);

	close(from);
	close(to);
	err = sublet_bo_destroy(&bo[1]);
	if (!err)
		err = sublet_release(arena, &claim);
	if (err)
		return fail("release", err);
	sublet_device_close(device); /* and the other buffer */
	err = sublet_arena_destroy(arena);
	return err ? fail("destroy the arena", err) : 0;
}
