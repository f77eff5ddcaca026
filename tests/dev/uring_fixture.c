/* SPDX-License-Identifier: MIT */
#include "uring_fixture.h"

#include "core/arena.h"
#include "linux/instance.h"
#include "linux/linux.h"

#include <errno.h>
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

const char *const way_name[WAYS] = { "claimed", "pinned", "tracked" };

struct chaos {
	struct sublet__thread thread;
	struct sublet_arena *arena;
	uint64_t seed;
	_Atomic bool stop;
	uint64_t moved_bytes;
	uint64_t claims;
};

/* ---- small things ---- */

uint64_t random_next(uint64_t *state)
{
	uint64_t z = *state += 0x9E3779B97F4A7C15u; /* splitmix64 */

	z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
	z = (z ^ z >> 27) * 0x94D049BB133111EBu;
	return z ^ z >> 31;
}

uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * SUBLET_SEC + (uint64_t)t.tv_nsec;
}

uint64_t seed_get(const char *test)
{
	const char *given = getenv("SUBLET_SEED");
	uint64_t seed = given ? strtoull(given, NULL, 0) : now_ns();

	print_message("%s: SUBLET_SEED=%#llx\n", test, (unsigned long long)seed);
	return seed;
}

uint64_t status_kib(const char *name)
{
	unsigned long long kib = 0;
	char line[256];
	FILE *f = fopen("/proc/self/status", "re");

	assert_non_null(f);
	while (fgets(line, sizeof line, f))
		if (!strncmp(line, name, strlen(name)) && line[strlen(name)] == ':')
			kib = strtoull(line + strlen(name) + 1, NULL, 10);
	fclose(f);
	return kib;
}

uint32_t fds_count(void)
{
	DIR *dir = opendir("/proc/self/fd");
	uint32_t count = 0;

	assert_non_null(dir);
	while (readdir(dir))
		count++;
	closedir(dir);
	return count;
}

/* ---- files ---- */

int file_open(int flags)
{
	const char *dir = getenv("SUBLET_URING_TEST_DIR");
	char path[4096];

	dir = dir ? dir : getenv("SUBLET_BUILD");
	snprintf(path, sizeof path, "%s/uring-test-XXXXXX", dir ? dir : ".");
	int fd = mkostemp(path, flags | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	unlink(path);
	return fd;
}

bool has_direct(void)
{
	int fd = file_open(O_DIRECT);

	if (fd >= 0)
		close(fd);
	else
		print_message("no O_DIRECT on the file system of the tests: %s\n", strerror(-fd));
	return fd >= 0;
}

/* ---- the world ---- */

struct sublet_arena *arena_open(uint64_t area_bytes, uint64_t normal_bytes, enum sublet_backing backing)
{
	struct sublet_arena_options options = { SUBLET_OPTIONS(sublet_arena_options),
						.area_bytes = area_bytes, .normal_bytes = normal_bytes,
						.backing = backing };
	struct sublet_arena *arena;
	int err = sublet_arena_create(&options, &arena);

	if (err) {
		print_message("no arena: %s\n", strerror(-err));
		skip();
	}
	return arena;
}

void world_open_on(struct world *w, struct sublet_arena *arena, int flags)
{
	*w = (struct world){ .arena = arena, .mm = sublet_arena_mm(arena), .fd = file_open(flags) };
	if (w->fd < 0)
		print_message("no file: %s\n", strerror(-w->fd));
	int err = w->fd < 0 ? w->fd : sublet_device_open_uring(w->arena, NULL, &w->device);
	if (err == -EOPNOTSUPP)
		print_message("no io_uring here\n");
	if (w->fd < 0 || err == -EOPNOTSUPP) {
		assert_int_equal(sublet_arena_destroy(w->arena), 0);
		if (w->fd >= 0)
			close(w->fd);
		skip();
	}
	assert_int_equal(err, 0);
}

void world_open(struct world *w, int flags)
{
	world_open_on(w, arena_open(AREA_BYTES, NORMAL_BYTES, SUBLET_BACKING_AUTO), flags);
}

void world_close(struct world *w)
{
	char text[160];

	if (w->device)
		assert_int_equal(info_of(w->device).bad_accesses, 0);
	sublet_device_close(w->device);
	sublet__zeroer_stop(sublet__instance_of(w->arena)); /* nothing else may run meanwhile */
	if (sublet__arena_verify(w->arena, text, sizeof text))
		fail_msg("%s", text);
	assert_int_equal(sublet_arena_destroy(w->arena), 0);
	close(w->fd);
}

void buffer_open(struct world *w, enum way way, uint64_t bytes, uint32_t flags, struct buffer *b)
{
	void *memory = NULL;
	int err;

	*b = (struct buffer){ .way = way, .bytes = bytes };
	if (way == CLAIMED) {
		assert_int_equal(sublet_claim(w->arena, bytes, NULL, &b->claim), 0);
		b->memory = b->claim.addr;
		err = sublet_bo_create_claim(w->device, &b->claim, flags, "test", &b->bo);
	} else {
		assert_int_equal(sublet_map(w->mm, bytes, SUBLET_MOVABLE, &memory), 0);
		b->memory = memory;
		flags |= way == PINNED ? SUBLET_BO_PINNED : SUBLET_BO_TRACKED;
		err = sublet_bo_create(w->device, w->mm, memory, bytes, flags, "test", &b->bo);
	}
	assert_int_equal(err, 0);
}

void buffer_close(struct world *w, struct buffer *b)
{
	assert_int_equal(sublet_bo_destroy(&b->bo), 0);
	if (b->way == CLAIMED)
		assert_int_equal(sublet_release(w->arena, &b->claim), 0);
	else
		assert_int_equal(sublet_unmap(w->mm, b->memory, b->bytes), 0);
}

struct sublet_device_info info_of(struct sublet_device *device)
{
	struct sublet_device_info info = { SUBLET_OPTIONS(sublet_device_info) };

	assert_int_equal(sublet_device_info(device, &info), 0);
	return info;
}

struct sublet_job job_of(const struct world *w, uint32_t op, uint64_t bytes, uint64_t file_offset_bytes)
{
	return (struct sublet_job){ SUBLET_OPTIONS(sublet_job),
				    .op = op,
				    .fd = w->fd,
				    .bytes = bytes,
				    .file_offset_bytes = file_offset_bytes,
				    .timeout_ns = 60 * SUBLET_SEC };
}

int fence_end(const struct sublet_fence *fence, uint64_t *result)
{
	bool done = false;
	int err = sublet_fence_wait(fence, 100 * SUBLET_SEC, &done, result);

	assert_true(done);
	assert_int_equal(sublet_fence_put(&(struct sublet_fence){ fence->device, fence->id }), 0);
	return err;
}

int job_do(struct world *w, const struct sublet_job *job, const struct sublet_bo *bo, uint64_t *result)
{
	struct sublet_fence fence;
	int err = sublet_submit(w->device, job, bo, 1, &fence);

	return err ? err : fence_end(&fence, result);
}

void world_works(struct world *w)
{
	struct buffer b;
	int fd = w->fd;

	w->fd = file_open(0);
	buffer_open(w, CLAIMED, SUBLET_MIB, 0, &b);
	words_fill(b.memory, SUBLET_MIB, 0, 5);
	struct sublet_job job = job_of(w, SUBLET_JOB_WRITE, SUBLET_MIB, 0);
	assert_int_equal(job_do(w, &job, &b.bo, NULL), 0);
	memset(b.memory, 0, SUBLET_MIB);
	job.op = SUBLET_JOB_READ;
	assert_int_equal(job_do(w, &job, &b.bo, NULL), 0);
	words_check(b.memory, SUBLET_MIB, 0, 5);
	buffer_close(w, &b);
	close(w->fd);
	w->fd = fd;
}

/* ---- bytes ---- */

static uint64_t word_at(uint64_t file_offset_bytes, uint64_t salt)
{
	uint64_t state = file_offset_bytes ^ salt << 40;

	return random_next(&state);
}

void words_fill(char *memory, uint64_t bytes, uint64_t file_offset_bytes, uint64_t salt)
{
	for (uint64_t i = 0; i < bytes; i += 8) {
		uint64_t word = word_at(file_offset_bytes + i, salt);
		memcpy(memory + i, &word, bytes - i < 8 ? (size_t)(bytes - i) : 8);
	}
}

void words_check(const char *memory, uint64_t bytes, uint64_t file_offset_bytes, uint64_t salt)
{
	for (uint64_t i = 0; i < bytes; i += 8) {
		uint64_t word = word_at(file_offset_bytes + i, salt);
		if (memcmp(memory + i, &word, bytes - i < 8 ? (size_t)(bytes - i) : 8))
			fail_msg("wrong bytes at %#llx of the file",
				 (unsigned long long)(file_offset_bytes + i));
	}
}

/* ---- chaos ---- */

static void chaos_claim(struct chaos *chaos, uint64_t random)
{
	struct sublet_arena_info info = { SUBLET_OPTIONS(sublet_arena_info) };
	struct sublet_claim_options options = { SUBLET_OPTIONS(sublet_claim_options),
						.deadline_ns = 20 * SUBLET_MS,
						.flags = random & 1 ? SUBLET_CLAIM_DEAREST : 0 };
	struct sublet_claim claim;

	must(sublet_arena_info(chaos->arena, &info) == 0);
	if (sublet_claim(chaos->arena, 1 + (random >> 1) % (info.area_bytes / 8), &options, &claim))
		return;
	chaos->claims++;
	usleep(200);
	must(sublet_release(chaos->arena, &claim) == 0);
}

static void *chaos_main(void *arg)
{
	struct chaos *chaos = arg;
	uint64_t state = chaos->seed;

	while (!chaos->stop) {
		uint64_t random = random_next(&state);
		if (random % 16)
			chaos->moved_bytes +=
				sublet__chaos_move(chaos->arena, sublet_arena_mm(chaos->arena), random / 16);
		else
			chaos_claim(chaos, random_next(&state));
		usleep(100);
	}
	return NULL;
}

struct chaos *chaos_start(struct world *w, uint64_t seed)
{
	struct chaos *chaos = calloc(1, sizeof *chaos);

	assert_non_null(chaos);
	chaos->arena = w->arena;
	chaos->seed = seed;
	assert_int_equal(sublet__linux_thread_start(&chaos->thread, "chaos", chaos_main, chaos), 0);
	return chaos;
}

void chaos_stop(struct chaos *chaos)
{
	chaos->stop = true;
	sublet__linux_thread_join(&chaos->thread);
	print_message("chaos: moved %llu MiB, claimed %llu windows\n",
		      (unsigned long long)(chaos->moved_bytes >> 20), (unsigned long long)chaos->claims);
	free(chaos);
}
