/* SPDX-License-Identifier: MIT */
/*
 * What it costs to hand memory to a device: binding, evicting and binding again of tracked buffers, long-term pins that
 * have to move memory and that need not, and reading a file by each way there is.
 *
 * io_uring's own registration of the very same memory is what buffers are compared with, measured right beside them: of
 * a buffer of a new ring (io_uring_register_buffers), and of an entry of a sparse table (IORING_REGISTER_BUFFERS_UPDATE).
 */
#include "bench.h"

#include "core/device.h"
#include "linux/linux.h"

#include <sublet/claim.h>
#include <sublet/device.h>

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define AREA_MIB   256u
#define NORMAL_MIB 128u
#define REPEATS    25u

static void must(int err, const char *what)
{
	if (err)
		bench_fail(what, err);
}

static void *map_touched(struct sublet_arena *arena, uint64_t bytes)
{
	void *memory;

	must(sublet_map(sublet_arena_mm(arena), bytes, SUBLET_MOVABLE, &memory), "sublet_map");
	memset(memory, 1, bytes);
	return memory;
}

static uint32_t vpn_of(const struct sublet_mm *mm, const void *addr)
{
	return (uint32_t)(((uintptr_t)addr - mm->config.base) >> frames_bytes_shift(mm->arena));
}

/* ---- io_uring's own registration ---- */

enum { REGISTER, UPDATE, EMPTY, RING_STEPS };

static void ring_open(struct io_uring *ring)
{
	must(io_uring_queue_init(4, ring, 0), "io_uring_queue_init");
}

static void ring_sample(void *memory, uint64_t bytes, double ns[RING_STEPS])
{
	struct iovec all = { memory, bytes }, none = { NULL, 0 };
	struct io_uring ring;

	ring_open(&ring);
	uint64_t start = bench_now_ns();
	must(io_uring_register_buffers(&ring, &all, 1), "io_uring_register_buffers");
	ns[REGISTER] = (double)(bench_now_ns() - start);
	io_uring_queue_exit(&ring);

	ring_open(&ring);
	must(io_uring_register_buffers_sparse(&ring, 1), "io_uring_register_buffers_sparse");
	start = bench_now_ns();
	int set = io_uring_register_buffers_update_tag(&ring, 0, &all, NULL, 1);
	uint64_t middle = bench_now_ns();
	int empty = io_uring_register_buffers_update_tag(&ring, 0, &none, NULL, 1);
	ns[EMPTY] = (double)(bench_now_ns() - middle);
	ns[UPDATE] = (double)(middle - start);
	if (set != 1 || empty != 1)
		bench_fail("io_uring_register_buffers_update_tag", set != 1 ? set : empty);
	io_uring_queue_exit(&ring);
}

/* ---- tracked buffers ---- */

enum { BIND, EVICT, REBIND, BO_STEPS };

/* What a job does first for a buffer that it finds not bound. */
static double bind_ns(struct sublet_device *device, const struct sublet_bo *handle)
{
	uint64_t start = bench_now_ns(), until_ns = start + SUBLET_SEC;

	device_lock(device);
	struct sublet__bo *bo = sublet__bo_find(device, handle->id);
	while (!bo_is_ready(bo)) {
		int err = sublet__bo_bind(bo, NULL, 0, until_ns);
		if (err && err != -EAGAIN)
			bench_fail("bind", err);
	}
	device_unlock(device);
	return (double)(bench_now_ns() - start);
}

/* What a move does before and after. */
static double evict_ns(struct sublet_mm *mm, const void *memory, uint64_t bytes)
{
	uint32_t pages = (uint32_t)(bytes >> frames_bytes_shift(mm->arena));
	struct sublet__invalidation told;
	uint64_t start = bench_now_ns();

	must(sublet__invalidate_begin(mm, &told, vpn_of(mm, memory), pages, SUBLET_NOTIFIER_MOVE, false),
	     "invalidate");
	sublet__invalidate_end(mm, &told);
	return (double)(bench_now_ns() - start);
}

static void bo_sample(struct sublet_device *device, void *memory, uint64_t bytes, double ns[BO_STEPS])
{
	struct sublet_mm *mm = sublet_arena_mm(device->arena);
	struct sublet_bo bo;

	must(sublet_bo_create(device, mm, memory, bytes, SUBLET_BO_TRACKED, "bench", &bo),
	     "sublet_bo_create");
	ns[BIND] = bind_ns(device, &bo);
	ns[EVICT] = evict_ns(mm, memory, bytes);
	ns[REBIND] = bind_ns(device, &bo);
	must(sublet_bo_destroy(&bo), "sublet_bo_destroy");
}

struct bo_rows {
	const char *size;
	uint64_t bytes;
};

static void row_of(const char *what, const char *size, double *ratio, double register_ns)
{
	static char names[64][80];
	static uint32_t used;
	char *name = names[used++ % 64];

	snprintf(name, sizeof names[0], "%s, %s", what, size);
	bench_add((struct bench_row){ .name = name,
				      .unit = "x register",
				      .reference = "io_uring_register_buffers of the same memory",
				      .reference_ns = register_ns },
		  ratio, REPEATS);
}

static void bo_rows(struct sublet_device *soft, struct sublet_device *uring, const struct bo_rows *rows)
{
	static const char *const what[] = { "io_uring: set a sparse entry",
					    "io_uring: empty it",
					    "soft: bind a tracked buffer",
					    "soft: evict it",
					    "soft: bind it again",
					    "uring: bind a tracked buffer",
					    "uring: evict it",
					    "uring: bind it again" };
	enum { SOFT = RING_STEPS - 1, URING = SOFT + BO_STEPS, ALL = URING + BO_STEPS };
	static double ratio[ALL][REPEATS], registered[REPEATS];
	void *memory = map_touched(soft->arena, rows->bytes);

	for (uint32_t r = 0; r <= REPEATS; r++) {
		uint32_t slot = r ? r - 1 : 0; /* the first round only warms up */
		double ring[RING_STEPS], ns[ALL];
		ring_sample(memory, rows->bytes, ring);
		memcpy(ns, ring + 1, sizeof ring - sizeof *ring);
		bo_sample(soft, memory, rows->bytes, ns + SOFT);
		bo_sample(uring, memory, rows->bytes, ns + URING);
		registered[slot] = ring[REGISTER];
		for (uint32_t i = 0; i < ALL; i++)
			ratio[i][slot] = ns[i] / ring[REGISTER];
	}
	double reference = bench_quantile(registered, REPEATS, 500);
	for (uint32_t i = 0; i < ALL; i++)
		row_of(what[i], rows->size, ratio[i], reference);
	must(sublet_unmap(sublet_arena_mm(soft->arena), memory, rows->bytes), "sublet_unmap");
}

/* ---- long-term pins ---- */

static bool in_area(struct sublet_mm *mm, const void *addr)
{
	struct sublet_extent e;

	if (sublet_mm_extents(mm, addr, 1, 0, &e, 1) != 1)
		bench_fail("sublet_mm_extents", -EAGAIN);
	return e.offset_bytes >> frames_bytes_shift(mm->arena) < mm->arena->zone[ZONE_AREA].frames;
}

/* Back into the area, whatever a pin or a claim moved out. */
static void move_back(struct sublet_mm *mm, const char *memory, uint64_t bytes)
{
	const struct sublet__window_range back = { .to = MOVE_AREA_ONLY };

	for (uint64_t at = 0; at < bytes; at += SUBLET_IOPT_PAGE_BYTES)
		if (!in_area(mm, memory + at) && sublet__move_page(mm, vpn_of(mm, memory + at), &back) <= 0)
			bench_fail("a move back into the area", -EBUSY);
}

static double longterm_ns(struct sublet_mm *mm, void *memory, uint64_t bytes)
{
	struct sublet_pin pin;
	uint64_t start = bench_now_ns();

	must(sublet_pin(mm, memory, bytes, SUBLET_PIN_WRITE | SUBLET_PIN_LONGTERM, "bench", &pin),
	     "sublet_pin");
	must(sublet_unpin(&pin), "sublet_unpin");
	return (double)(bench_now_ns() - start);
}

static void longterm_rows(struct sublet_arena *arena, const char *moves, const char *stays, uint64_t bytes)
{
	struct sublet_mm *mm = sublet_arena_mm(arena);
	double moved[REPEATS], stayed[REPEATS], copied[REPEATS], atomic = 0;
	void *memory = map_touched(arena, bytes);

	for (uint32_t r = 0; r < REPEATS; r++) {
		uint64_t reference;
		must(sublet__linux_memcpy_ns(arena, bytes, &reference), "memcpy reference");
		copied[r] = (double)reference;
		atomic = bench_atomic_ns();
		move_back(mm, memory, bytes);
		memset(memory, (int)r, bytes); /* mapped, and in whatever cache it is after use */
		moved[r] = longterm_ns(mm, memory, bytes) / (double)reference;
		stayed[r] = longterm_ns(mm, memory, bytes) / atomic;
	}
	bench_add((struct bench_row){ .name = moves,
				      .unit = "x memcpy",
				      .reference = "libc memcpy of as much, cold, same backing, one thread",
				      .reference_ns = bench_quantile(copied, REPEATS, 500) },
		  moved, REPEATS);
	bench_add((struct bench_row){ .name = stays,
				      .unit = "atomic adds",
				      .reference = "an uncontended atomic add",
				      .reference_ns = atomic },
		  stayed, REPEATS);
	must(sublet_unmap(mm, memory, bytes), "sublet_unmap");
}

/* ---- reading a file ---- */

#define FILE_BYTES (64 * SUBLET_MIB)
#define JOB_BYTES  (128 * SUBLET_KIB)
#define DEPTH      8u
#define PASSES     9u

enum way { CLAIMED, PINNED, TRACKED, PLAIN, WAYS };

struct reader {
	struct sublet_device *device;
	struct sublet_mm *mm;
	struct sublet_claim claim;
	struct sublet_bo bo[PLAIN];
	char *memory[WAYS];
	int fd;
};

static int file_make(int flags)
{
	const char *dir = getenv("SUBLET_BENCH_DIR");
	static char block[JOB_BYTES];
	char path[4096];

	snprintf(path, sizeof path, "%s/sublet-bench-XXXXXX", dir ? dir : ".");
	int fd = mkostemp(path, O_CLOEXEC);
	if (fd < 0)
		bench_fail(path, -errno);
	for (uint64_t at = 0; at < FILE_BYTES; at += sizeof block)
		if (pwrite(fd, block, sizeof block, (off_t)at) != (ssize_t)sizeof block)
			bench_fail("a file to read", -errno);
	if (fsync(fd))
		bench_fail("fsync", -errno);
	int reading = open(path, O_RDONLY | O_CLOEXEC | flags);
	unlink(path);
	close(fd);
	return reading;
}

static void reader_open(struct reader *r, struct sublet_device *device)
{
	const uint64_t bytes = DEPTH * JOB_BYTES;

	*r = (struct reader){ .device = device, .mm = sublet_arena_mm(device->arena), .fd = -1 };
	must(sublet_claim(device->arena, bytes, NULL, &r->claim), "sublet_claim");
	for (uint32_t way = PINNED; way < WAYS; way++)
		r->memory[way] = map_touched(device->arena, bytes);
	must(sublet_bo_create_claim(device, &r->claim, 0, "bench", &r->bo[CLAIMED]),
	     "sublet_bo_create_claim");
	must(sublet_bo_create(device, r->mm, r->memory[PINNED], bytes, SUBLET_BO_PINNED, "bench",
			      &r->bo[PINNED]),
	     "sublet_bo_create");
	must(sublet_bo_create(device, r->mm, r->memory[TRACKED], bytes, SUBLET_BO_TRACKED, "bench",
			      &r->bo[TRACKED]),
	     "sublet_bo_create");
}

static void reader_close(struct reader *r)
{
	for (uint32_t way = CLAIMED; way < PLAIN; way++)
		must(sublet_bo_destroy(&r->bo[way]), "sublet_bo_destroy");
	for (uint32_t way = PINNED; way < WAYS; way++)
		must(sublet_unmap(r->mm, r->memory[way], DEPTH * JOB_BYTES), "sublet_unmap");
	must(sublet_release(r->device->arena, &r->claim), "sublet_release");
}

static void job_start(struct reader *r, enum way way, uint32_t slot, uint64_t at, struct sublet_fence *fence)
{
	struct sublet_job job = {
		SUBLET_OPTIONS(sublet_job),           .op = SUBLET_JOB_READ,  .fd = r->fd, .bytes = JOB_BYTES,
		.offset_bytes = { slot * JOB_BYTES }, .file_offset_bytes = at
	};

	must(way == PLAIN
		     ? sublet_submit_range(r->device, &job, r->mm, r->memory[PLAIN] + slot * JOB_BYTES, fence)
		     : sublet_submit(r->device, &job, &r->bo[way], 1, fence),
	     "submit");
}

static void job_end(struct sublet_fence *fence)
{
	uint64_t result = 0;

	must(sublet_fence_wait(fence, 60 * SUBLET_SEC, NULL, &result), "a read");
	must(sublet_fence_put(fence), "sublet_fence_put");
	if (result != JOB_BYTES)
		bench_fail("a short read", -EIO);
}

/* ns of the whole file, DEPTH jobs in flight. */
static double file_read(struct reader *r, enum way way)
{
	struct sublet_fence fence[DEPTH];
	uint64_t start = bench_now_ns(), jobs = FILE_BYTES / JOB_BYTES;

	for (uint64_t i = 0; i < jobs + DEPTH; i++) {
		uint32_t slot = (uint32_t)(i % DEPTH);
		if (i >= DEPTH)
			job_end(&fence[slot]);
		if (i < jobs)
			job_start(r, way, slot, i * JOB_BYTES, &fence[slot]);
	}
	return (double)(bench_now_ns() - start);
}

static void read_rows(struct reader *r, int flags, const char *const name[PLAIN])
{
	double speed[PLAIN][PASSES], plain[PASSES];

	r->fd = file_make(flags);
	if (r->fd < 0) {
		printf("  left out: no O_DIRECT here; SUBLET_BENCH_DIR says where else\n");
		return;
	}
	for (uint32_t pass = 0; pass <= PASSES; pass++) {
		uint32_t slot = pass ? pass - 1 : 0; /* the first pass only warms up */
		plain[slot] = file_read(r, PLAIN);
		for (uint32_t way = CLAIMED; way < PLAIN; way++)
			speed[way][slot] = plain[slot] / file_read(r, way);
	}
	double reference = bench_quantile(plain, PASSES, 500);
	for (uint32_t way = CLAIMED; way < PLAIN; way++)
		bench_add(
			(struct bench_row){
				.name = name[way],
				.unit = "x plain",
				.reference = "throughput of plain reads, each under a short pin: 64 MiB",
				.reference_ns = reference },
			speed[way], PASSES);
	close(r->fd);
}

static void all_read_rows(struct sublet_device *device)
{
	static const char *const direct[] = { "O_DIRECT reads of 128 KiB: claimed buffer",
					      "O_DIRECT reads of 128 KiB: long-term pinned",
					      "O_DIRECT reads of 128 KiB: tracked" };
	static const char *const cached[] = { "cached reads of 128 KiB: claimed buffer",
					      "cached reads of 128 KiB: long-term pinned",
					      "cached reads of 128 KiB: tracked" };
	struct reader r;

	reader_open(&r, device);
	read_rows(&r, O_DIRECT, direct);
	read_rows(&r, 0, cached);
	reader_close(&r);
}

void bench_device(void)
{
	static const struct bo_rows sizes[] = { { "64 KiB", 64 * SUBLET_KIB },
						{ "2 MiB", 2 * SUBLET_MIB },
						{ "32 MiB", 32 * SUBLET_MIB } };
	struct sublet_arena *arena = bench_arena(SUBLET_BACKING_AUTO, AREA_MIB, NORMAL_MIB);
	struct sublet_device *soft, *uring;

	if (!arena)
		return;
	int err = sublet_device_open_uring(arena, NULL, &uring);
	if (err) {
		printf("  left out: no io_uring here: %s\n", strerror(-err));
		if (sublet_arena_destroy(arena))
			bench_fail("destroy the arena", -1);
		return;
	}
	must(sublet_device_open_soft(arena, NULL, &soft), "sublet_device_open_soft");
	for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
		bo_rows(soft, uring, &sizes[i]);
	longterm_rows(arena, "long-term pin + unpin of 64 KiB, moved out first",
		      "long-term pin + unpin of 64 KiB, out already", 64 * SUBLET_KIB);
	longterm_rows(arena, "long-term pin + unpin of 2 MiB, moved out first",
		      "long-term pin + unpin of 2 MiB, out already", 2 * SUBLET_MIB);
	longterm_rows(arena, "long-term pin + unpin of 32 MiB, moved out first",
		      "long-term pin + unpin of 32 MiB, out already", 32 * SUBLET_MIB);
	all_read_rows(uring);
	sublet_device_close(uring);
	sublet_device_close(soft);
	if (sublet_arena_destroy(arena))
		bench_fail("destroy the arena", -1);
}
