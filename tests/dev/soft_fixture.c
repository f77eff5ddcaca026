/* SPDX-License-Identifier: MIT */
/* See soft_fixture.h. */
#include "soft_fixture.h"

#include <time.h>

struct sublet_arena *arena;
struct sublet_mm *mm;
struct sublet_device *device;
struct sublet_bo no_bo;

uint64_t wall_ns(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * SUBLET_SEC + (uint64_t)ts.tv_nsec;
}

uint64_t rng(uint64_t *state)
{
	uint64_t z = (*state += 0x9e3779b97f4a7c15ull); /* splitmix64 */
	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return z ^ z >> 31;
}

uint64_t below(uint64_t *state, uint64_t n)
{
	return rng(state) % n;
}

struct sublet_soft_options soft_options(void)
{
	return (struct sublet_soft_options){ SUBLET_OPTIONS(sublet_soft_options) };
}

void arena_open(enum sublet_backing backing, uint64_t area_bytes, uint64_t normal_bytes)
{
	struct sublet_arena_options o = { SUBLET_OPTIONS(sublet_arena_options), .area_bytes = area_bytes,
					  .normal_bytes = normal_bytes, .backing = backing };

	assert_int_equal(sublet_arena_create(&o, &arena), 0);
	mm = sublet_arena_mm(arena);
}

void arena_close(void)
{
	char text[200] = "";

	sublet__zeroer_stop(sublet__instance_of(arena)); /* nothing else may run meanwhile */
	if (sublet__arena_verify(arena, text, sizeof text))
		fail_msg("verify: %s", text);
	assert_int_equal(sublet_arena_destroy(arena), 0);
}

void setup(const struct sublet_soft_options *options)
{
	arena_open(SUBLET_BACKING_MEMFD, 32 * MIB, 32 * MIB);
	assert_int_equal(sublet_device_open_soft(arena, options, &device), 0);
}

struct sublet_device_info info_now(void)
{
	struct sublet_device_info info = { SUBLET_OPTIONS(sublet_device_info) };

	assert_int_equal(sublet_device_info(device, &info), 0);
	return info;
}

void teardown(void)
{
	uint64_t bad = info_now().bad_accesses;

	sublet_device_close(device);
	arena_close();
	assert_int_equal(bad, 0);
}

uint64_t *map(uint64_t bytes)
{
	void *addr;

	assert_int_equal(sublet_map(mm, bytes, SUBLET_MOVABLE, &addr), 0);
	return addr;
}

struct sublet_bo bo_over(void *addr, uint64_t bytes, uint32_t flags, const char *owner)
{
	struct sublet_bo bo;

	assert_int_equal(sublet_bo_create(device, mm, addr, bytes, flags, owner, &bo), 0);
	return bo;
}

struct sublet_job job_of(uint32_t op, uint64_t bytes)
{
	return (struct sublet_job){ SUBLET_OPTIONS(sublet_job), .op = op, .bytes = bytes };
}

struct sublet_fence go(const struct sublet_job *job, struct sublet_bo first, struct sublet_bo second)
{
	struct sublet_bo bos[2] = { first, second };
	struct sublet_fence fence;
	int err = sublet_submit(device, job, bos, job->op == SUBLET_JOB_COPY ? 2 : 1, &fence);

	if (err)
		fail_msg("submit: %d", err);
	return fence;
}

int fence_end(struct sublet_fence *fence, uint64_t *result)
{
	bool done = false;
	int err = sublet_fence_wait(fence, LONG_NS, &done, result);

	assert_true(done);
	assert_int_equal(sublet_fence_put(fence), 0);
	return err;
}

uint64_t run(const struct sublet_job *job, struct sublet_bo first, struct sublet_bo second)
{
	struct sublet_fence fence = go(job, first, second);
	uint64_t result = 0;
	int err = fence_end(&fence, &result);

	if (err)
		fail_msg("job: %d", err);
	return result;
}

uint64_t sum_of(const uint64_t *words, uint64_t bytes)
{
	uint64_t sum = 0;

	for (uint64_t i = 0; i < bytes / 8; i++)
		sum += words[i];
	return sum;
}
