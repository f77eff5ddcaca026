/* SPDX-License-Identifier: MIT */
/*
 * Bad use, on the public interface and on real memory: each is refused with the error that its header names, and
 * nothing is lost by it. After each case every byte is as it was, and the whole area can be claimed (G5, G8).
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
#include <sublet/stats.h>

#include <errno.h>
#include <string.h>

#define AREA  (16 * SUBLET_MIB)
#define BYTES (4 * SUBLET_MIB)
#define PAGE  ((uint64_t)4096)

#define LONGTERM (SUBLET_PIN_WRITE | SUBLET_PIN_LONGTERM)

static struct sublet_arena *arena;
static struct sublet_mm *mm;
static char *memory;

static uint64_t pins_listed(void)
{
	struct sublet_pin_info info[8];
	uint64_t next = 0;

	return sublet_pin_list(arena, &next, 8, info);
}

static int setup(void **state)
{
	struct sublet_arena_options o = { SUBLET_OPTIONS(sublet_arena_options), .area_bytes = AREA,
					  .normal_bytes = AREA };
	void *addr;
	(void)state;

	assert_int_equal(sublet_arena_create(&o, &arena), 0);
	mm = sublet_arena_mm(arena);
	assert_int_equal(sublet_map(mm, BYTES, SUBLET_MOVABLE, &addr), 0);
	memory = addr;
	for (uint64_t i = 0; i < BYTES; i++)
		memory[i] = (char)(i * 7 + i / PAGE);
	return 0;
}

static int teardown(void **state)
{
	struct sublet_notifier_stats notifiers = { SUBLET_OPTIONS(sublet_notifier_stats) };
	struct sublet_stats stats = { SUBLET_OPTIONS(sublet_stats) };
	struct sublet_claim claim;
	(void)state;

	assert_int_equal(sublet_claim(arena, AREA, NULL, &claim), 0);
	assert_int_equal(sublet_release(arena, &claim), 0);
	for (uint64_t i = 0; i < BYTES; i++)
		if (memory[i] != (char)(i * 7 + i / PAGE))
			fail_msg("byte %llu is wrong", (unsigned long long)i);
	assert_int_equal(sublet_unmap(mm, memory, BYTES), 0);
	assert_int_equal(pins_listed(), 0);
	assert_int_equal(sublet_notifier_stats(mm, &notifiers), 0);
	assert_int_equal(notifiers.registered, 0);
	assert_int_equal(sublet_arena_stats(arena, &stats), 0);
	assert_int_equal(stats.lent_bytes, 0);
	assert_int_equal(stats.area_claimed_bytes, 0);
	assert_int_equal(sublet_arena_destroy(arena), 0);
	return 0;
}

/* ---- pins ---- */

static void unpin_twice(void **unused)
{
	static const uint32_t flags[] = { SUBLET_PIN_READ, SUBLET_PIN_WRITE, LONGTERM };
	struct sublet_pin pin = { 0 }, copy, other;
	struct sublet_extent e;
	(void)unused;

	assert_int_equal(sublet_unpin(&pin), -EINVAL); /* never pinned */
	for (uint32_t i = 0; i < 3; i++) {
		assert_int_equal(sublet_pin(mm, memory, PAGE, flags[i], "twice", &pin), 0);
		assert_int_equal(sublet_pin(mm, memory, PAGE, flags[i], "other", &other), 0);
		copy = pin;
		assert_int_equal(sublet_unpin(&pin), 0);
		assert_int_equal(sublet_unpin(&pin), -EINVAL);
		assert_int_equal(sublet_pin_extents(&pin, 0, &e, 1), -EINVAL);
		assert_int_equal(sublet_unpin(&copy), -EINVAL);
		assert_int_equal(pins_listed(), 1);
		assert_int_equal(sublet_unmap(mm, memory, BYTES), -EBUSY); /* the other's pin holds */
		assert_int_equal(sublet_unpin(&other), 0);
	}
}

static void pin_of_nothing(void **unused)
{
	const uint32_t flags[] = { SUBLET_PIN_READ, LONGTERM };
	struct sublet_pin pin;
	void *gone;
	(void)unused;

	assert_int_equal(sublet_map(mm, BYTES, SUBLET_MOVABLE, &gone), 0);
	assert_int_equal(sublet_unmap(mm, gone, BYTES), 0);
	for (uint32_t i = 0; i < 2; i++) {
		assert_int_equal(sublet_pin(mm, gone, PAGE, flags[i], NULL, &pin), -EFAULT);
		assert_int_equal(sublet_unpin(&pin), -EINVAL);
		/* Mapped at first: all or nothing. */
		assert_int_equal(sublet_unmap(mm, memory + BYTES / 2, BYTES / 2), 0);
		assert_int_equal(sublet_pin(mm, memory, BYTES, flags[i], NULL, &pin), -EFAULT);
		assert_int_equal(sublet_pin(mm, memory + BYTES / 2 - 1, 2, flags[i], NULL, &pin), -EFAULT);
		assert_int_equal(sublet_unmap(mm, memory, BYTES / 2), 0); /* nothing of it is pinned */
		void *addr;
		assert_int_equal(sublet_map(mm, BYTES, SUBLET_MOVABLE, &addr), 0);
		memory = addr;
		for (uint64_t b = 0; b < BYTES; b++)
			memory[b] = (char)(b * 7 + b / PAGE);
	}
	/* Not of this mm at all. */
	assert_int_equal(sublet_pin(mm, &pin, sizeof pin, SUBLET_PIN_READ, NULL, &pin), -EINVAL);
	assert_int_equal(sublet_pin(mm, NULL, PAGE, SUBLET_PIN_READ, NULL, &pin), -EINVAL);
}

/* ---- ranges ---- */

static int told(void *ctx, const struct sublet_invalidation *inv)
{
	(void)ctx, (void)inv;
	return 0;
}

static const struct sublet_notifier_ops ops = { SUBLET_OPTIONS(sublet_notifier_ops), .invalidate = told };

/* Everything that takes a range, with one that wraps, is empty, or ends beyond the window. */
static void ranges_that_wrap(void **unused)
{
	const uint64_t to_the_top = 0 - (uint64_t)(uintptr_t)memory;
	const uint64_t bytes[] = { 0,
				   UINT64_MAX,
				   UINT64_MAX - PAGE + 1,
				   to_the_top,
				   to_the_top + 1,
				   to_the_top + PAGE,
				   (uint64_t)1 << 63 };
	struct sublet_notifier notifier;
	struct sublet_device *device;
	struct sublet_extent e;
	struct sublet_pin pin;
	struct sublet_bo bo;
	(void)unused;

	assert_int_equal(sublet_device_open_soft(arena, NULL, &device), 0);
	for (uint32_t i = 0; i < sizeof bytes / sizeof *bytes; i++) {
		assert_int_equal(sublet_pin(mm, memory, bytes[i], SUBLET_PIN_READ, NULL, &pin), -EINVAL);
		assert_int_equal(sublet_pin(mm, memory, bytes[i], LONGTERM, NULL, &pin), -EINVAL);
		assert_int_equal(sublet_mm_extents(mm, memory, bytes[i], 0, &e, 1), -EINVAL);
		assert_int_equal(sublet_notifier_add(mm, memory, bytes[i], &ops, NULL, NULL, &notifier),
				 -EINVAL);
		assert_int_equal(sublet_unmap(mm, memory, bytes[i]), -EINVAL);
		int err = sublet_bo_create(device, mm, memory, bytes[i], SUBLET_BO_TRACKED, NULL, &bo);
		assert_true(err == -EINVAL || err == -E2BIG);
		err = sublet_bo_create(device, mm, memory, bytes[i], SUBLET_BO_PINNED, NULL, &bo);
		assert_true(err == -EINVAL || err == -E2BIG);
	}
	sublet_device_close(device);
}

/* ---- notifiers ---- */

static void notifier_removed_twice(void **unused)
{
	struct sublet_notifier notifier, copy, next, none = { 0 };
	uint64_t seq;
	(void)unused;

	assert_int_equal(sublet_notifier_remove(&none), -EINVAL);
	assert_int_equal(sublet_notifier_add(mm, memory, PAGE, &ops, NULL, NULL, &notifier), 0);
	copy = notifier;
	assert_int_equal(sublet_notifier_remove(&notifier), 0);
	assert_int_equal(sublet_notifier_remove(&notifier), -EINVAL);
	assert_int_equal(sublet_notifier_remove(&copy), -EINVAL);
	/* Nor when its place is another's. */
	assert_int_equal(sublet_notifier_add(mm, memory, PAGE, &ops, NULL, NULL, &next), 0);
	assert_int_equal(sublet_notifier_remove(&copy), -EINVAL);
	assert_int_equal(sublet_notifier_read_begin(&copy, 0, &seq), -EINVAL);
	assert_true(sublet_notifier_read_retry(&copy, seq = 0));
	assert_int_equal(sublet_notifier_read_begin(&next, 0, &seq), 0);
	assert_int_equal(sublet_notifier_remove(&next), 0);
}

/* ---- devices ---- */

static void bo_over_a_freed_claim(void **unused)
{
	struct sublet_claim claim, freed, next;
	struct sublet_device *device;
	struct sublet_bo bo;
	(void)unused;

	assert_int_equal(sublet_device_open_soft(arena, NULL, &device), 0);
	assert_int_equal(sublet_claim(arena, SUBLET_MIB, NULL, &claim), 0);
	freed = claim;
	assert_int_equal(sublet_release(arena, &claim), 0);
	assert_int_equal(sublet_bo_create_claim(device, &claim, 0, NULL, &bo), -EINVAL);
	assert_int_equal(sublet_bo_create_claim(device, &freed, 0, NULL, &bo), -EINVAL);
	assert_int_equal(sublet_claim(arena, SUBLET_MIB, NULL, &next), 0); /* the same window */
	assert_int_equal(next.offset_bytes, freed.offset_bytes);
	assert_int_equal(sublet_bo_create_claim(device, &freed, 0, NULL, &bo), -EINVAL);
	assert_int_equal(sublet_release(arena, &freed), -EINVAL);
	/* And one that is not to be freed: a buffer is over it. */
	assert_int_equal(sublet_bo_create_claim(device, &next, 0, NULL, &bo), 0);
	assert_int_equal(sublet_release(arena, &next), -EBUSY);
	assert_int_equal(sublet_bo_destroy(&bo), 0);
	assert_int_equal(sublet_bo_destroy(&bo), -EINVAL);
	assert_int_equal(sublet_release(arena, &next), 0);
	sublet_device_close(device);
}

/* The second device: files where io_uring is to be had, else another soft one. */
static struct sublet_device *second_open(void)
{
	struct sublet_device *device;

	if (sublet_device_open_uring(arena, NULL, &device))
		assert_int_equal(sublet_device_open_soft(arena, NULL, &device), 0);
	return device;
}

/* One that it takes. */
static uint32_t op_of(struct sublet_device *device)
{
	struct sublet_device_info info = { SUBLET_OPTIONS(sublet_device_info) };

	assert_int_equal(sublet_device_info(device, &info), 0);
	return info.features & SUBLET_DEVICE_FILES ? SUBLET_JOB_READ : SUBLET_JOB_FILL;
}

static void wrong_device(void **unused)
{
	struct sublet_arena_options o = { SUBLET_OPTIONS(sublet_arena_options), .area_bytes = AREA };
	struct sublet_job job = { SUBLET_OPTIONS(sublet_job), .op = SUBLET_JOB_FILL, .bytes = PAGE };
	struct sublet_device *device, *second, *far_device;
	struct sublet_arena *elsewhere;
	struct sublet_fence fence;
	struct sublet_claim claim;
	struct sublet_bo bo, strange;
	(void)unused;

	assert_int_equal(sublet_arena_create(&o, &elsewhere), 0);
	assert_int_equal(sublet_device_open_soft(arena, NULL, &device), 0);
	assert_int_equal(sublet_device_open_soft(elsewhere, NULL, &far_device), 0);
	second = second_open();
	assert_int_equal(sublet_bo_create(device, mm, memory, BYTES, SUBLET_BO_TRACKED, NULL, &bo), 0);
	assert_int_equal(sublet_submit(far_device, &job, &bo, 1, &fence), -EINVAL);
	job.op = op_of(second);
	assert_int_equal(sublet_submit(second, &job, &bo, 1, &fence), -EINVAL);
	/* A handle that was made up: no buffer of that device. */
	strange = (struct sublet_bo){ .device = second, .id = bo.id };
	assert_int_equal(sublet_submit(second, &job, &strange, 1, &fence), -EINVAL);
	assert_int_equal(sublet_bo_destroy(&strange), -EINVAL);
	/* Memory of another arena, a claim of another arena. */
	assert_int_equal(sublet_bo_create(far_device, mm, memory, PAGE, SUBLET_BO_TRACKED, NULL, &strange),
			 -EINVAL);
	assert_int_equal(sublet_claim(elsewhere, PAGE, NULL, &claim), 0);
	assert_int_equal(sublet_bo_create_claim(device, &claim, 0, NULL, &strange), -EINVAL);
	assert_int_equal(sublet_release(arena, &claim), -EINVAL);
	assert_int_equal(sublet_release(elsewhere, &claim), 0);
	/* A range where the device takes only buffers, a buffer that is gone. */
	job.op = SUBLET_JOB_FILL;
	assert_int_equal(sublet_submit_range(device, &job, mm, memory, &fence), -EOPNOTSUPP);
	assert_int_equal(sublet_bo_destroy(&bo), 0);
	assert_int_equal(sublet_submit(device, &job, &bo, 1, &fence), -EINVAL);
	struct sublet_device_info info = { SUBLET_OPTIONS(sublet_device_info) };
	assert_int_equal(sublet_device_info(device, &info), 0);
	assert_int_equal(info.jobs + info.binds + info.bad_accesses, 0);
	sublet_device_close(far_device);
	sublet_device_close(second);
	sublet_device_close(device);
	assert_int_equal(sublet_arena_destroy(elsewhere), 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(unpin_twice),           TEST(pin_of_nothing),
		TEST(ranges_that_wrap),      TEST(notifier_removed_twice),
		TEST(bo_over_a_freed_claim), TEST(wrong_device),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
