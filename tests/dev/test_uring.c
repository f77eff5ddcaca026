/* SPDX-License-Identifier: MIT */
/*
 * dev/uring.c: bytes go where they should, whichever way, whatever moves meanwhile (G1, G2, G4), and what is
 * registered, when.
 *
 * SUBLET_URING_TEST_BYTES makes the files larger than 128 MiB.
 */
#include "uring_fixture.h"

#include "core/arena.h"

#include <sublet/pin.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <unistd.h>

#define PAGE         ((uint64_t)4096)
#define BUFFERS      4u
#define BUFFER_BYTES (5 * SUBLET_MIB) /* not a multiple of what jobs are cut into */

static uint64_t file_bytes(void)
{
	const char *given = getenv("SUBLET_URING_TEST_BYTES");
	uint64_t bytes = given ? strtoull(given, NULL, 0) : 128 * SUBLET_MIB;

	return bytes / PAGE * PAGE;
}

/* ---- files through buffers, while memory moves ---- */

/* One pass over the file, all buffers in flight. */
static void pass(struct world *w, struct buffer *buffer, uint32_t op, uint64_t bytes, uint64_t salt)
{
	struct sublet_fence fence[BUFFERS] = { 0 };
	uint64_t at[BUFFERS] = { 0 }, length[BUFFERS] = { 0 }, next = 0, result;

	for (uint32_t i = 0, busy = BUFFERS; busy; i = (i + 1) % BUFFERS) {
		if (fence[i].device) {
			assert_int_equal(fence_end(&fence[i], &result), 0);
			assert_int_equal(result, length[i]);
			if (op == SUBLET_JOB_READ)
				words_check(buffer[i].memory, length[i], at[i], salt);
			fence[i].device = NULL;
		}
		if (next >= bytes) {
			busy--;
			continue;
		}
		at[i] = next;
		length[i] = bytes - next < BUFFER_BYTES ? bytes - next : BUFFER_BYTES;
		next += length[i];
		if (op == SUBLET_JOB_WRITE)
			words_fill(buffer[i].memory, length[i], at[i], salt);
		else
			memset(buffer[i].memory, 0, length[i]);
		struct sublet_job job = job_of(w, op, length[i], at[i]);
		assert_int_equal(sublet_submit(w->device, &job, &buffer[i].bo, 1, &fence[i]), 0);
	}
}

static void round_trip(struct world *w, enum way way)
{
	struct buffer buffer[BUFFERS];
	uint64_t start = now_ns();

	for (uint32_t i = 0; i < BUFFERS; i++)
		buffer_open(w, way, BUFFER_BYTES, 0, &buffer[i]);
	struct sublet_device_info before = info_of(w->device);
	pass(w, buffer, SUBLET_JOB_WRITE, file_bytes(), way);
	pass(w, buffer, SUBLET_JOB_READ, file_bytes(), way);
	struct sublet_device_info after = info_of(w->device);
	for (uint32_t i = 0; i < BUFFERS; i++)
		buffer_close(w, &buffer[i]);
	print_message("%s: %llu MiB written and read back in %.2f s; binds %llu, evictions %llu, "
		      "registrations %llu\n",
		      way_name[way], (unsigned long long)(file_bytes() >> 20),
		      (double)(now_ns() - start) / 1e9,
		      (unsigned long long)(after.binds + after.rebinds - before.binds - before.rebinds),
		      (unsigned long long)(after.evictions - before.evictions),
		      (unsigned long long)(after.registrations - before.registrations));
	if (way == TRACKED) {
		assert_true(after.evictions > before.evictions);
		assert_true(after.rebinds > before.rebinds);
	} else {
		assert_int_equal(after.evictions, before.evictions);
		assert_int_equal(after.registrations, before.registrations);
	}
}

static void files_round_trip(bool direct)
{
	struct world w;

	world_open(&w, direct ? O_DIRECT : 0);
	struct chaos *chaos = chaos_start(&w, seed_get("files_round_trip"));
	for (enum way way = CLAIMED; way < WAYS; way++)
		round_trip(&w, way);
	chaos_stop(chaos);
	world_close(&w);
}

static void direct_round_trip(void **unused)
{
	(void)unused;
	if (!has_direct())
		skip();
	files_round_trip(true);
}

static void buffered_round_trip(void **unused)
{
	(void)unused;
	files_round_trip(false);
}

/* ---- any job, at any place ---- */

/* Random jobs of all kinds on one file, against a copy of the file in memory. */
static void random_jobs(void **unused)
{
	const uint64_t bytes = 24 * SUBLET_MIB, buffer_bytes = 6 * SUBLET_MIB;
	struct buffer buffer[WAYS];
	struct world w;
	uint64_t state = seed_get("random_jobs"), result;
	char *shadow = calloc(1, bytes), *got = malloc(buffer_bytes);
	(void)unused;

	assert_true(shadow && got);
	world_open(&w, 0);
	assert_int_equal(ftruncate(w.fd, (off_t)bytes), 0);
	struct chaos *chaos = chaos_start(&w, random_next(&state));
	for (uint32_t i = 0; i < WAYS; i++)
		buffer_open(&w, (enum way)i, buffer_bytes, 0, &buffer[i]);
	for (uint32_t round = 0; round < 400; round++) {
		struct buffer *b = &buffer[random_next(&state) % WAYS];
		bool is_write = random_next(&state) % 2, is_range = random_next(&state) % 4 == 0;
		uint64_t most = (uint64_t)1 << random_next(&state) % 23;
		uint64_t length = 1 + random_next(&state) % most,
			 from = random_next(&state) % (buffer_bytes - length);
		uint64_t at = random_next(&state) % (bytes - length);
		struct sublet_job job = job_of(&w, is_write ? SUBLET_JOB_WRITE : SUBLET_JOB_READ, length, at);
		struct sublet_fence fence;
		job.offset_bytes[0] = from;
		if (is_write) {
			words_fill(b->memory + from, length, at, round);
			memcpy(shadow + at, b->memory + from, length);
		} else {
			memset(b->memory, 0x5a, buffer_bytes);
		}
		if (is_range && b->way != CLAIMED) {
			assert_int_equal(sublet_submit_range(w.device, &job, w.mm, b->memory + from, &fence),
					 0);
			assert_int_equal(fence_end(&fence, &result), 0);
		} else {
			assert_int_equal(job_do(&w, &job, &b->bo, &result), 0);
		}
		assert_int_equal(result, length);
		if (is_write)
			continue;
		assert_memory_equal(b->memory + from, shadow + at, length);
		memset(b->memory + from, 0x5a, length);
		memset(got, 0x5a, buffer_bytes); /* and not a byte beside */
		assert_memory_equal(b->memory, got, buffer_bytes);
	}
	for (uint64_t at = 0; at < bytes; at += buffer_bytes) {
		assert_int_equal(pread(w.fd, got, buffer_bytes, (off_t)at), buffer_bytes);
		assert_memory_equal(got, shadow + at, buffer_bytes);
	}
	chaos_stop(chaos);
	for (uint32_t i = 0; i < WAYS; i++)
		buffer_close(&w, &buffer[i]);
	world_close(&w);
	free(shadow);
	free(got);
}

/* Pinned memory in many more pieces than are looked up at a time. */
static void pinned_in_pieces(void **unused)
{
	enum { PIECES = 48 };
	const uint64_t unit = 64 * SUBLET_KIB, bytes = PIECES * unit;
	struct sublet_extent extent[PIECES + 1];
	struct buffer b;
	struct world w;
	void *memory;
	(void)unused;

	world_open_on(&w, arena_open(AREA_BYTES, 32 * SUBLET_MIB, SUBLET_BACKING_AUTO), 0);
	/* Fill the normal zone with long-term pins, and open every other unit of it. */
	uint64_t all = 32 * SUBLET_MIB - 2 * SUBLET_MIB, units = all / unit;
	assert_int_equal(sublet_map(w.mm, all, SUBLET_MOVABLE, &memory), 0);
	struct sublet_pin *pin = calloc(units, sizeof *pin);
	assert_non_null(pin);
	sublet_pin_limit(w.mm, UINT64_MAX);
	uint32_t held = 0;
	for (uint64_t i = 0; i < units; i++)
		held += !sublet_pin(w.mm, (char *)memory + i * unit, unit,
				    SUBLET_PIN_WRITE | SUBLET_PIN_LONGTERM, "filler", &pin[i]);
	for (uint32_t i = 0; i < held; i += 2)
		assert_int_equal(sublet_unpin(&pin[i]), 0);
	for (uint32_t i = 0; i < held; i += 2)
		assert_int_equal(sublet_unmap(w.mm, (char *)memory + i * unit, unit), 0);
	assert_true(held > 3 * PIECES);
	buffer_open(&w, PINNED, bytes, 0, &b);
	int count = sublet_bo_extents(&b.bo, 0, extent, PIECES + 1);
	assert_true(count > 16);
	words_fill(b.memory, bytes, 0, 1);
	struct sublet_job job = job_of(&w, SUBLET_JOB_WRITE, bytes, 0);
	assert_int_equal(job_do(&w, &job, &b.bo, NULL), 0);
	memset(b.memory, 0, bytes);
	job.op = SUBLET_JOB_READ;
	assert_int_equal(job_do(&w, &job, &b.bo, NULL), 0);
	words_check(b.memory, bytes, 0, 1);
	buffer_close(&w, &b);
	for (uint32_t i = 1; i < held; i += 2)
		assert_int_equal(sublet_unpin(&pin[i]), 0);
	world_close(&w);
	free(pin);
}

/* ---- files that end, and refusals ---- */

/* A read beyond the end gives what there is. */
static void file_is_short(void **unused)
{
	static const uint64_t lengths[] = { 0,
					    1,
					    511,
					    512,
					    4095,
					    4096,
					    5000,
					    SUBLET_MIB - 1,
					    SUBLET_MIB,
					    SUBLET_MIB + 1,
					    3 * SUBLET_MIB + 777 };
	const uint64_t bytes = 5 * SUBLET_MIB;
	char *seen = malloc(bytes);
	struct world w;
	(void)unused;

	assert_non_null(seen);
	for (int direct = 0; direct <= has_direct(); direct++) {
		world_open(&w, direct ? O_DIRECT : 0);
		for (uint32_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
			for (enum way way = CLAIMED; way < WAYS; way++) {
				uint64_t length = lengths[i], result = 77;
				struct buffer b;
				buffer_open(&w, way, bytes, 0, &b);
				words_fill(seen, length, 0, i);
				assert_int_equal(ftruncate(w.fd, 0), 0);
				assert_int_equal(fcntl(w.fd, F_SETFL, 0), 0);
				assert_int_equal(pwrite(w.fd, seen, length, 0), length);
				assert_int_equal(fcntl(w.fd, F_SETFL, direct ? O_DIRECT : 0), 0);
				memset(b.memory, 0x33, bytes);
				struct sublet_job job = job_of(&w, SUBLET_JOB_READ, bytes, 0);
				assert_int_equal(job_do(&w, &job, &b.bo, &result), 0);
				assert_int_equal(result, length);
				words_check(b.memory, length, 0, i);
				/* O_DIRECT may clear the rest. */
				for (uint64_t at = length; at < bytes && !direct; at++)
					if (b.memory[at] != 0x33)
						fail_msg("byte %llu was written", (unsigned long long)at);
				buffer_close(&w, &b);
			}
		world_close(&w);
	}
	free(seen);
}

static int job_error(struct world *w, const struct buffer *b, uint32_t op, int fd, uint64_t bytes,
		     uint64_t at)
{
	struct sublet_job job = job_of(w, op, bytes, at);

	job.fd = fd;
	return job_do(w, &job, &b->bo, NULL);
}

static void jobs_refused(void **unused)
{
	struct buffer b, readonly, unmapped;
	int pipe_fd[2];
	struct world w;
	(void)unused;

	world_open(&w, 0);
	buffer_open(&w, CLAIMED, SUBLET_MIB, 0, &b);
	buffer_open(&w, TRACKED, SUBLET_MIB, SUBLET_BO_READONLY, &readonly);
	buffer_open(&w, TRACKED, SUBLET_MIB, 0, &unmapped);
	assert_int_equal(pipe(pipe_fd), 0);
	char path[64];
	snprintf(path, sizeof path, "/proc/self/fd/%d", w.fd);
	int read_fd = open(path, O_RDONLY | O_CLOEXEC), write_fd = open(path, O_WRONLY | O_CLOEXEC);
	int append_fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC), dir_fd = open("/", O_RDONLY | O_CLOEXEC);
	int path_fd = open(path, O_PATH | O_CLOEXEC);
	assert_true(read_fd >= 0 && write_fd >= 0 && append_fd >= 0 && dir_fd >= 0 && path_fd >= 0);

	assert_int_equal(job_error(&w, &b, SUBLET_JOB_READ, -1, PAGE, 0), -EBADF);
	assert_int_equal(job_error(&w, &b, SUBLET_JOB_READ, 99999, PAGE, 0), -EBADF);
	assert_int_equal(job_error(&w, &b, SUBLET_JOB_READ, write_fd, PAGE, 0), -EBADF);
	assert_int_equal(job_error(&w, &b, SUBLET_JOB_WRITE, read_fd, PAGE, 0), -EBADF);
	assert_int_equal(job_error(&w, &b, SUBLET_JOB_READ, path_fd, PAGE, 0), -EBADF);
	assert_int_equal(job_error(&w, &b, SUBLET_JOB_WRITE, append_fd, PAGE, 0), -EINVAL);
	assert_int_equal(job_error(&w, &b, SUBLET_JOB_READ, pipe_fd[0], PAGE, 0), -ESPIPE);
	assert_int_equal(job_error(&w, &b, SUBLET_JOB_READ, dir_fd, PAGE, 0), -EISDIR);
	/* -1: "here" */
	assert_int_equal(job_error(&w, &b, SUBLET_JOB_READ, w.fd, PAGE, UINT64_MAX), -EINVAL);
	assert_int_equal(job_error(&w, &b, SUBLET_JOB_READ, w.fd, PAGE, INT64_MAX), -EINVAL);
	assert_int_equal(job_error(&w, &b, SUBLET_JOB_READ, w.fd, SUBLET_MIB + 1, 0), -EINVAL);
	assert_int_equal(job_error(&w, &b, SUBLET_JOB_FILL, w.fd, PAGE, 0), -EOPNOTSUPP);
	assert_int_equal(job_error(&w, &b, SUBLET_JOB_SUM, w.fd, PAGE, 0), -EOPNOTSUPP);
	assert_int_equal(job_error(&w, &readonly, SUBLET_JOB_READ, w.fd, PAGE, 0), -EACCES);
	assert_int_equal(job_error(&w, &readonly, SUBLET_JOB_WRITE, w.fd, PAGE, 0), 0);
	assert_int_equal(job_error(&w, &unmapped, SUBLET_JOB_WRITE, w.fd, PAGE, 0), 0);
	assert_int_equal(sublet_unmap(w.mm, unmapped.memory, SUBLET_MIB), 0);
	assert_int_equal(job_error(&w, &unmapped, SUBLET_JOB_WRITE, w.fd, PAGE, 0), -EFAULT);
	/* After all of that it works. */
	words_fill(b.memory, SUBLET_MIB, 0, 9);
	assert_int_equal(job_error(&w, &b, SUBLET_JOB_WRITE, w.fd, SUBLET_MIB, 0), 0);
	memset(b.memory, 0, SUBLET_MIB);
	assert_int_equal(job_error(&w, &b, SUBLET_JOB_READ, w.fd, SUBLET_MIB, 0), 0);
	words_check(b.memory, SUBLET_MIB, 0, 9);
	assert_int_equal(sublet_bo_destroy(&unmapped.bo), 0);
	buffer_close(&w, &readonly);
	buffer_close(&w, &b);
	for (uint32_t i = 0; i < 2; i++)
		close(pipe_fd[i]);
	close(read_fd), close(write_fd), close(append_fd), close(dir_fd), close(path_fd);
	world_close(&w);
}

/* What O_DIRECT wants aligned is asked of the file, and refused before anything is submitted. */
static void direct_wants_blocks(void **unused)
{
	struct world w;
	(void)unused;

	if (!has_direct())
		skip();
	world_open(&w, O_DIRECT);
	for (enum way way = CLAIMED; way < WAYS; way++) {
		struct buffer b;
		buffer_open(&w, way, SUBLET_MIB, 0, &b);
		for (uint32_t part = 0; part < 3; part++) {
			struct sublet_job job = job_of(&w, SUBLET_JOB_WRITE, 2 * PAGE, PAGE);
			assert_int_equal(job_do(&w, &job, &b.bo, NULL), 0);
			*(part == 0   ? &job.bytes
			  : part == 1 ? &job.file_offset_bytes
				      : &job.offset_bytes[0]) += 8;
			uint64_t jobs = info_of(w.device).jobs_failed;
			struct sublet_fence fence;
			assert_int_equal(sublet_submit(w.device, &job, &b.bo, 1, &fence), -EINVAL);
			assert_true(info_of(w.device).jobs_failed <= jobs + 1);
		}
		struct sublet_job job = job_of(&w, SUBLET_JOB_WRITE, PAGE, 0);
		struct sublet_fence fence;
		if (way != CLAIMED)
			assert_int_equal(sublet_submit_range(w.device, &job, w.mm, b.memory + 8, &fence),
					 -EINVAL);
		buffer_close(&w, &b);
	}
	world_close(&w);
}

/* The file system fails a job in the middle of it. */
static void job_fails_half_way(void **unused)
{
	const struct rlimit small = { 2 * SUBLET_MIB + 512 * SUBLET_KIB, RLIM_INFINITY };
	struct rlimit before;
	struct buffer b;
	struct world w;
	uint64_t result = 77;
	(void)unused;

	for (int direct = 0; direct <= has_direct(); direct++) {
		world_open(&w, direct ? O_DIRECT : 0);
		buffer_open(&w, CLAIMED, 8 * SUBLET_MIB, 0, &b);
		assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
		assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0); /* SIGXFSZ is blocked on our threads */
		struct sublet_job job = job_of(&w, SUBLET_JOB_WRITE, 8 * SUBLET_MIB, 0);
		assert_int_equal(job_do(&w, &job, &b.bo, &result), -EFBIG);
		assert_int_equal(result, 0);
		assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
		assert_int_equal(job_do(&w, &job, &b.bo, &result), 0);
		assert_int_equal(result, 8 * SUBLET_MIB);
		assert_int_equal(info_of(w.device).jobs_failed, 1);
		buffer_close(&w, &b);
		world_close(&w);
	}
}

/* ---- what is registered, and when ---- */

/* Nothing more of the process is registered than `kib`; a kernel worker may be a moment late. */
static void pinned_becomes(uint64_t kib)
{
	for (uint32_t i = 0; i < 1000 && status_kib("VmPin") != kib; i++)
		usleep(1000);
	assert_int_equal(status_kib("VmPin"), kib);
}

static void move_some(struct world *w, uint64_t *state)
{
	uint64_t evictions = info_of(w->device).evictions;

	for (uint32_t i = 0; i < 1000 && info_of(w->device).evictions == evictions; i++)
		sublet__chaos_move(w->arena, w->mm, random_next(state));
	assert_int_equal(info_of(w->device).evictions, evictions + 1);
}

/*
 * Claimed and pinned memory never; tracked memory by the first job that uses it and by the first after a move. Once it is
 * evicted the kernel holds none of its frames for it (G4).
 */
static void registered_when_used(void **unused)
{
	const uint64_t bytes = 16 * SUBLET_MIB;
	uint64_t state = seed_get("registered_when_used");
	struct buffer b[WAYS];
	struct world w;
	(void)unused;

	/* Small pages: the kernel counts pages that are part of a large one only once. */
	world_open_on(&w, arena_open(AREA_BYTES, NORMAL_BYTES, SUBLET_BACKING_MEMFD), 0);
	uint64_t linear_kib = status_kib("VmPin"), bo_kib = linear_kib ? bytes / SUBLET_KIB : 0;
	assert_int_equal(info_of(w.device).registrations, 1);
	if (!linear_kib)
		print_message("the kernel does not say what is registered\n");
	for (enum way way = CLAIMED; way < WAYS; way++)
		buffer_open(&w, way, bytes, 0, &b[way]);
	assert_int_equal(info_of(w.device).registrations, 1);
	for (uint32_t round = 0; round < 4; round++) {
		pinned_becomes(linear_kib);
		for (enum way way = CLAIMED; way < 2 * WAYS; way++)
			assert_int_equal(job_error(&w, &b[way % WAYS], SUBLET_JOB_WRITE, w.fd, bytes, 0), 0);
		assert_int_equal(status_kib("VmPin"), linear_kib + bo_kib);
		assert_int_equal(info_of(w.device).registrations, 2 + 2 * round);
		assert_int_equal(info_of(w.device).binds, 1);
		assert_int_equal(info_of(w.device).rebinds, round);
		move_some(&w, &state);
		assert_int_equal(info_of(w.device).registrations, 3 + 2 * round);
	}
	assert_int_equal(job_error(&w, &b[TRACKED], SUBLET_JOB_WRITE, w.fd, bytes, 0), 0);
	for (enum way way = CLAIMED; way < WAYS; way++)
		buffer_close(&w, &b[way]);
	pinned_becomes(linear_kib);
	world_close(&w);
	assert_int_equal(status_kib("VmPin"), 0);
}

/* Each entry of the table takes 1 GiB: a claim that lies across the border of two. */
static void across_entries(void **unused)
{
	const uint64_t bytes = 48 * SUBLET_MIB, area = SUBLET_GIB + 64 * SUBLET_MIB;
	struct sublet_claim_options dear = { SUBLET_OPTIONS(sublet_claim_options),
					     .align_bytes = 32 * SUBLET_MIB };
	struct sublet_claim low, claim;
	struct sublet_bo bo;
	struct world w;
	(void)unused;

	world_open_on(&w, arena_open(area, 64 * SUBLET_MIB, SUBLET_BACKING_AUTO), 0);
	assert_int_equal(info_of(w.device).registrations, 2);
	assert_int_equal(sublet_claim(w.arena, SUBLET_GIB - 32 * SUBLET_MIB, NULL, &low), 0);
	assert_int_equal(sublet_claim(w.arena, bytes, &dear, &claim), 0);
	if (claim.offset_bytes >= SUBLET_GIB || claim.offset_bytes + bytes <= SUBLET_GIB)
		fail_msg("the claim is at %llu MiB", (unsigned long long)(claim.offset_bytes / SUBLET_MIB));
	assert_int_equal(sublet_bo_create_claim(w.device, &claim, 0, "border", &bo), 0);
	words_fill(claim.addr, bytes, 0, 3);
	struct sublet_job job = job_of(&w, SUBLET_JOB_WRITE, bytes - 4096 - 100, 0);
	job.offset_bytes[0] = 100;
	assert_int_equal(job_do(&w, &job, &bo, NULL), 0);
	memset(claim.addr, 0, bytes);
	job.op = SUBLET_JOB_READ;
	assert_int_equal(job_do(&w, &job, &bo, NULL), 0);
	char *expected = malloc(bytes);
	assert_non_null(expected);
	words_fill(expected, bytes, 0, 3);
	assert_memory_equal((char *)claim.addr + 100, expected + 100, job.bytes);
	free(expected);
	assert_int_equal(sublet_bo_destroy(&bo), 0);
	assert_int_equal(sublet_release(w.arena, &claim), 0);
	assert_int_equal(sublet_release(w.arena, &low), 0);
	world_close(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(direct_round_trip),    cmocka_unit_test(buffered_round_trip),
		cmocka_unit_test(random_jobs),          cmocka_unit_test(pinned_in_pieces),
		cmocka_unit_test(file_is_short),        cmocka_unit_test(jobs_refused),
		cmocka_unit_test(direct_wants_blocks),  cmocka_unit_test(job_fails_half_way),
		cmocka_unit_test(registered_when_used), cmocka_unit_test(across_entries),
	};

	return cmocka_run_group_tests_name("uring", tests, NULL, NULL);
}
