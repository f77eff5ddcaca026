/* SPDX-License-Identifier: MIT */
/*
 * An arena with a uring device on it, a file on a real file system, and a thread that moves memory and claims windows
 * all the time. Where SUBLET_URING_TEST_DIR does not say otherwise, the file is in the build folder.
 */
#ifndef SUBLET_TESTS_URING_FIXTURE_H
#define SUBLET_TESTS_URING_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <sublet/arena.h>
#include <sublet/bo.h>
#include <sublet/claim.h>
#include <sublet/device.h>
#include <sublet/map.h>

#include <stdlib.h>

/* For threads, where an assertion of cmocka has nowhere to jump to. */
#define must(what)                                                                       \
	do {                                                                             \
		if (!(what)) {                                                           \
			print_error("%s:%d: not true: %s\n", __FILE__, __LINE__, #what); \
			abort();                                                         \
		}                                                                        \
	} while (0)

/* The three kinds of buffers. */
enum way { CLAIMED, PINNED, TRACKED, WAYS };
extern const char *const way_name[WAYS];

struct world {
	struct sublet_arena *arena;
	struct sublet_device *device;
	struct sublet_mm *mm;
	int fd;
};

struct buffer {
	enum way way;
	char *memory; /* as the program sees it */
	uint64_t bytes;
	struct sublet_claim claim;
	struct sublet_bo bo;
};

/* A thread of sublet__chaos_move and claims of random windows. */
struct chaos;

uint64_t random_next(uint64_t *state);
uint64_t seed_get(const char *test); /* prints it; SUBLET_SEED replays */
uint64_t now_ns(void);
/* kB in a line of /proc/self/status. */
uint64_t status_kib(const char *name);
uint32_t fds_count(void);

/* A file without a name; -errno. */
int file_open(int flags);
/* Whether such a file may be O_DIRECT; says so if not. */
bool has_direct(void);

#define AREA_BYTES   (160 * SUBLET_MIB)
#define NORMAL_BYTES (96 * SUBLET_MIB)

/* Skips the test where there is no arena to be had. */
struct sublet_arena *arena_open(uint64_t area_bytes, uint64_t normal_bytes, enum sublet_backing backing);
/* Skips the test where there is no io_uring. flags: of the file. */
void world_open(struct world *w, int flags);
void world_open_on(struct world *w, struct sublet_arena *arena, int flags);
/* Closes what is open, and checks the arena first. */
void world_close(struct world *w);

void buffer_open(struct world *w, enum way way, uint64_t bytes, uint32_t flags, struct buffer *b);
void buffer_close(struct world *w, struct buffer *b);

struct sublet_device_info info_of(struct sublet_device *device);
struct sublet_job job_of(const struct world *w, uint32_t op, uint64_t bytes, uint64_t file_offset_bytes);
/* Submit, wait, and give the job's answer; *result may be NULL. */
int job_do(struct world *w, const struct sublet_job *job, const struct sublet_bo *bo, uint64_t *result);
int fence_end(const struct sublet_fence *fence, uint64_t *result);

/* The device still works: some bytes to a file, and back. */
void world_works(struct world *w);

/* Words that belong to a place in the file. */
void words_fill(char *memory, uint64_t bytes, uint64_t file_offset_bytes, uint64_t salt);
void words_check(const char *memory, uint64_t bytes, uint64_t file_offset_bytes, uint64_t salt);

struct chaos *chaos_start(struct world *w, uint64_t seed);
void chaos_stop(struct chaos *chaos);

#endif
