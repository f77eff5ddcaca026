/* SPDX-License-Identifier: MIT */
/*
 * What stopped CMA: a page of the area that somebody holds for a session. One page in the middle of live memory, and a
 * claim of the whole area, on real memory: with a long-term pin or a tracked buffer it succeeds (G3, G4, G10); with a
 * short pin that is kept it fails at its deadline and says whose it is (G5, G7); and where the program keeps the memory
 * from moving by a userfaultfd of its own, it says that.
 */
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
#include <sublet/notifier.h>
#include <sublet/pin.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define AREA  (32 * SUBLET_MIB)
#define HEAP  (12 * SUBLET_MIB)
#define WORDS (HEAP / 8)
#define PAGE  ((uint64_t)4096)
#define KEY   0x9e3779b97f4a7c15ull

static struct sublet_arena *arena;
static struct sublet_mm *mm;
static uint64_t *heap;
static char *held; /* the page */

static uint64_t wall_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * SUBLET_SEC + (uint64_t)ts.tv_nsec;
}

static struct sublet_extent place_of(const void *addr)
{
	struct sublet_extent e = { 0, 0 };

	assert_int_equal(sublet_mm_extents(mm, addr, PAGE, 0, &e, 1), 1);
	return e;
}

/* *state: the backing. */
static int setup(void **state)
{
	struct sublet_arena_options o = { SUBLET_OPTIONS(sublet_arena_options), .area_bytes = AREA,
					  .normal_bytes = AREA,
					  .backing = *(const enum sublet_backing *)*state };
	void *memory;
	int err = sublet_arena_create(&o, &arena);

	if (err == -EOPNOTSUPP)
		skip();
	assert_int_equal(err, 0);
	mm = sublet_arena_mm(arena);
	assert_int_equal(sublet_map(mm, HEAP, SUBLET_MOVABLE, &memory), 0);
	heap = memory;
	for (uint64_t i = 0; i < WORDS; i++)
		heap[i] = i * KEY;
	held = (char *)heap + HEAP / 2 + 5 * PAGE;
	assert_true(place_of(held).offset_bytes < AREA); /* where it is in the way */
	return 0;
}

/* All bytes are as they were but for those of the page, and all frames can be had again (G1, G8). */
static int teardown(void **state)
{
	uint64_t first = (uint64_t)(held - (char *)heap) / 8;
	struct sublet_claim claim;
	(void)state;

	for (uint64_t i = 0; i < WORDS; i++)
		if (heap[i] != i * KEY && !(i >= first && i < first + PAGE / 8))
			fail_msg("word %llu is wrong", (unsigned long long)i);
	assert_int_equal(sublet_unmap(mm, heap, HEAP), 0);
	assert_int_equal(sublet_claim(arena, AREA, NULL, &claim), 0);
	assert_int_equal(sublet_release(arena, &claim), 0);
	assert_int_equal(sublet_arena_destroy(arena), 0);
	return 0;
}

static int claim_all(struct sublet_claim *claim, uint64_t deadline_ns)
{
	struct sublet_claim_options o = { SUBLET_OPTIONS(sublet_claim_options), .deadline_ns = deadline_ns };

	return sublet_claim(arena, AREA, &o, claim);
}

static void longterm(void **state)
{
	struct sublet_arena_info info = { SUBLET_OPTIONS(sublet_arena_info) };
	struct sublet_extent before, after;
	struct sublet_claim claim;
	struct sublet_pin pin;
	(void)state;

	assert_int_equal(sublet_arena_info(arena, &info), 0);
	assert_int_equal(sublet_pin(mm, held, PAGE, SUBLET_PIN_WRITE | SUBLET_PIN_LONGTERM, "session", &pin),
			 0);
	assert_int_equal(sublet_pin_extents(&pin, 0, &before, 1), 1);
	assert_true(before.offset_bytes >= AREA); /* G3 */
	char *device = (char *)info.linear + before.offset_bytes;
	memset(device, 0x11, PAGE);
	for (unsigned char round = 1; round <= 3; round++) {
		assert_int_equal(claim_all(&claim, SUBLET_SEC), 0);
		assert_int_equal(claim.blocker_count, 0);
		assert_int_equal(sublet_pin_extents(&pin, 0, &after, 1), 1);
		assert_int_equal(after.offset_bytes, before.offset_bytes); /* G2 */
		assert_memory_equal(held, device, PAGE);
		memset(device, round, PAGE); /* it goes on while the area is the claim's */
		assert_int_equal(held[PAGE - 1], round);
		assert_int_equal(sublet_release(arena, &claim), 0);
	}
	assert_int_equal(sublet_unpin(&pin), 0);
	assert_int_equal(held[0], 3);
}

/* What a device does with the page. */
static int work(struct sublet_device *device, struct sublet_bo bo, uint32_t op, uint64_t pattern,
		uint64_t *sum)
{
	struct sublet_job job = { SUBLET_OPTIONS(sublet_job), .op = op, .bytes = PAGE, .pattern = pattern };
	struct sublet_fence fence;
	int err = sublet_submit(device, &job, &bo, 1, &fence);

	if (err)
		return err;
	err = sublet_fence_wait(&fence, 5 * SUBLET_SEC, NULL, sum);
	assert_int_equal(sublet_fence_put(&fence), 0);
	return err;
}

static void tracked(void **state)
{
	struct sublet_device_info info = { SUBLET_OPTIONS(sublet_device_info) };
	struct sublet_device *device;
	struct sublet_claim claim;
	struct sublet_bo bo;
	uint64_t sum;
	(void)state;

	assert_int_equal(sublet_device_open_soft(arena, NULL, &device), 0);
	assert_int_equal(sublet_bo_create(device, mm, held, PAGE, SUBLET_BO_TRACKED, "session", &bo), 0);
	assert_int_equal(work(device, bo, SUBLET_JOB_FILL, 7, NULL), 0);
	assert_true(place_of(held).offset_bytes < AREA); /* binding moves nothing */

	assert_int_equal(claim_all(&claim, SUBLET_SEC), 0);
	assert_true(place_of(held).offset_bytes >= AREA);
	for (uint64_t i = 0; i < PAGE / 8; i++)
		assert_int_equal(((uint64_t *)held)[i], 7); /* what it wrote came along */
	((uint64_t *)held)[0] = 8;
	assert_int_equal(sublet_device_info(device, &info), 0);
	assert_int_equal(info.evictions, 1);
	assert_int_equal(info.rebinds, 0);

	/* And it finds the new place, in both directions. */
	assert_int_equal(work(device, bo, SUBLET_JOB_SUM, 0, &sum), 0);
	assert_int_equal(sum, 7 * (PAGE / 8) + 1);
	assert_int_equal(work(device, bo, SUBLET_JOB_FILL, 9, NULL), 0);
	for (uint64_t i = 0; i < PAGE / 8; i++)
		assert_int_equal(((uint64_t *)held)[i], 9);
	assert_int_equal(sublet_device_info(device, &info), 0);
	assert_int_equal(info.rebinds, 1);
	assert_int_equal(info.bad_accesses, 0);
	assert_int_equal(sublet_release(arena, &claim), 0);
	assert_int_equal(sublet_bo_destroy(&bo), 0);
	sublet_device_close(device);
}

static void short_kept_too_long(void **state)
{
	const uint64_t deadline_ns = 200 * SUBLET_MS;
	struct sublet_claim claim;
	struct sublet_pin pin;
	char text[200];
	(void)state;

	assert_int_equal(sublet_pin(mm, held, PAGE, SUBLET_PIN_WRITE, "session", &pin), 0);
	uint64_t offset = place_of(held).offset_bytes, start = wall_ns();
	assert_int_equal(claim_all(&claim, deadline_ns), -EBUSY);
	/*
	 * Copying what does move is part of it; the rest of the slack is for a machine with other things to do.
	 * tests/unit/test_blockers.c holds the deadline itself to 2 ms, in virtual time.
	 */
	assert_in_range(wall_ns() - start, deadline_ns, deadline_ns + 5 * SUBLET_SEC);
	assert_int_equal(place_of(held).offset_bytes, offset); /* G2 */
	assert_int_equal(claim.blocker_count, 1);
	const struct sublet_blocker *b = &claim.blockers[0];
	assert_int_equal(b->kind, SUBLET_BLOCKER_PIN);
	assert_string_equal(b->owner, "session");
	assert_true(b->age_ns >= deadline_ns / 2);
	assert_true(b->offset_bytes <= offset && offset < b->offset_bytes + b->bytes);
	assert_true(sublet_blocker_describe(&claim, 0, text, sizeof text) > 0);
	assert_non_null(strstr(text, "a short pin that was not released in time 'session'"));
	assert_int_equal(sublet_unpin(&pin), 0);
	assert_int_equal(claim_all(&claim, SUBLET_SEC), 0);
	assert_int_equal(sublet_release(arena, &claim), 0);
}

/* As libfabric's own monitor does with memory that it caches a registration of. */
static int watch_faults(const char *addr, uint64_t bytes)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register r = { .range = { (uintptr_t)addr, bytes },
				     .mode = UFFDIO_REGISTER_MODE_MISSING };
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (uffd < 0)
		return -1;
	assert_int_equal(ioctl(uffd, UFFDIO_API, &api), 0);
	assert_int_equal(ioctl(uffd, UFFDIO_REGISTER, &r), 0);
	return uffd;
}

static void watched_by_others(void **state)
{
	struct sublet_claim claim;
	struct sublet_pin pin;
	char text[200];
	int uffd = watch_faults(held, PAGE);
	(void)state;

	if (uffd < 0) {
		print_message("no userfaultfd but by /dev/userfaultfd: not tried\n");
		return;
	}
	uint64_t offset = place_of(held).offset_bytes, start = wall_ns();
	assert_int_equal(claim_all(&claim, 20 * SUBLET_SEC), -EBUSY);
	assert_true(wall_ns() - start < 10 * SUBLET_SEC); /* time does not help */
	assert_true(claim.blocker_count > 0);
	const struct sublet_blocker *b = &claim.blockers[0];
	assert_int_equal(b->kind, SUBLET_BLOCKER_WATCHED);
	assert_true(b->offset_bytes <= offset && offset < b->offset_bytes + b->bytes);
	assert_true(sublet_blocker_describe(&claim, 0, text, sizeof text) > 0);
	assert_non_null(strstr(text, "userfaultfd"));
	assert_int_equal(sublet_pin(mm, held, PAGE, SUBLET_PIN_READ | SUBLET_PIN_LONGTERM, NULL, &pin),
			 -EBUSY);
	assert_int_equal(close(uffd), 0);
	assert_int_equal(claim_all(&claim, SUBLET_SEC), 0);
	assert_int_equal(sublet_release(arena, &claim), 0);
}

#define ON(test, backing)                                                              \
	{                                                                              \
#test " " #backing, test, setup, teardown, (void *)(uintptr_t)&backing \
	}

int main(void)
{
	static const enum sublet_backing memfd = SUBLET_BACKING_MEMFD, thp = SUBLET_BACKING_THP;
	const struct CMUnitTest tests[] = {
		ON(longterm, memfd),
		ON(longterm, thp),
		ON(tracked, memfd),
		ON(tracked, thp),
		ON(short_kept_too_long, memfd),
		ON(short_kept_too_long, thp),
		ON(watched_by_others, memfd),
		ON(watched_by_others, thp),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
