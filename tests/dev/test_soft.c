/* SPDX-License-Identifier: MIT */
/*
 * The DMA engine in software on real memory: what it does, how it fails, that it notices what it is there to notice.
 */
#include "soft_fixture.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

/* ---- what it does ---- */

static void three_kinds(void **unused)
{
	struct sublet_claim claim;
	struct sublet_bo bo[3];
	uint64_t state = 1;
	(void)unused;

	setup(NULL);
	const uint64_t bytes = 3 * MIB - 4096 + 24; /* over chunks, pages and their ends */
	uint64_t *memory[3] = { map(4 * MIB), map(4 * MIB) };
	assert_int_equal(sublet_claim(arena, 4 * MIB, NULL, &claim), 0);
	memory[2] = claim.addr;
	bo[0] = bo_over(memory[0], 4 * MIB, SUBLET_BO_TRACKED, NULL);
	bo[1] = bo_over(memory[1], 4 * MIB, SUBLET_BO_PINNED, NULL);
	assert_int_equal(sublet_bo_create_claim(device, &claim, 0, NULL, &bo[2]), 0);
	for (uint32_t from = 0; from < 3; from++)
		for (uint32_t to = 0; to < 3; to++) {
			struct sublet_job job = job_of(SUBLET_JOB_FILL, 4 * MIB);
			job.pattern = rng(&state);
			assert_int_equal(run(&job, bo[to], no_bo), 4 * MIB);
			for (uint64_t i = 0; i < 4 * MIB / 8; i++)
				assert_true(memory[to][i] == job.pattern);
			if (from == to)
				continue;
			for (uint64_t i = 0; i < 4 * MIB / 8; i++)
				memory[from][i] = rng(&state);
			struct sublet_job copy = job_of(SUBLET_JOB_COPY, bytes);
			copy.offset_bytes[0] = 4096 - 8;
			copy.offset_bytes[1] = 65536 + 16;
			assert_int_equal(run(&copy, bo[from], bo[to]), bytes);
			assert_memory_equal((char *)memory[from] + 4096 - 8, (char *)memory[to] + 65536 + 16,
					    bytes);
			assert_true(memory[to][65536 / 8 + 1] == job.pattern); /* nothing beside it */
			assert_true(memory[to][(65536 + 16 + bytes) / 8] == job.pattern);
			struct sublet_job sum = job_of(SUBLET_JOB_SUM, bytes);
			sum.offset_bytes[0] = 8;
			assert_int_equal(run(&sum, bo[from], no_bo), sum_of(memory[from] + 1, bytes));
		}
	assert_int_equal(sublet_bo_destroy(&bo[2]), 0);
	assert_int_equal(sublet_release(arena, &claim), 0);
	teardown();
}

static void options(void **unused)
{
	struct sublet_soft_options o = soft_options();
	(void)unused;

	arena_open(SUBLET_BACKING_MEMFD, 8 * MIB, 8 * MIB);
	o.reserved = 1;
	assert_int_equal(sublet_device_open_soft(arena, &o, &device), -EINVAL);
	o = soft_options();
	o.aperture_bytes = 4095;
	assert_int_equal(sublet_device_open_soft(arena, &o, &device), -EINVAL);
	o.size_bytes = 0;
	assert_int_equal(sublet_device_open_soft(arena, &o, &device), -EINVAL);
	o = soft_options();
	o.name = "dma0";
	o.aperture_bytes = MIB;
	o.jobs_max = 3;
	o.bos_max = 5;
	for (uint32_t i = 0; i < 40; i++) { /* opened and closed, nothing is left */
		assert_int_equal(sublet_device_open_soft(arena, &o, &device), 0);
		struct sublet_device_info info = info_now();
		assert_string_equal(info.name, "dma0");
		assert_int_equal(info.aperture_bytes, MIB);
		assert_int_equal(info.jobs_max, 3);
		assert_int_equal(info.bos_max, 5);
		assert_int_equal(info.features, SUBLET_DEVICE_IOPT | SUBLET_DEVICE_COPY);
		sublet_device_close(device);
	}
	arena_close();
}

static void speed(void **unused)
{
	struct sublet_soft_options o = soft_options();
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 2 * MIB);
	(void)unused;

	o.bytes_per_s = 20 * MIB;
	o.delay_ns = 30 * SUBLET_MS;
	setup(&o);
	struct sublet_bo bo = bo_over(map(2 * MIB), 2 * MIB, SUBLET_BO_TRACKED, NULL);
	uint64_t start = wall_ns();
	(void)run(&job, bo, no_bo);
	assert_in_range(wall_ns() - start, 120 * SUBLET_MS, 2 * SUBLET_SEC);
	teardown();
}

/* Sixteen jobs in flight, each behind the other. */
static void queue(void **unused)
{
	struct sublet_soft_options o = soft_options();
	struct sublet_fence fence[16];
	(void)unused;

	o.jobs_max = 16;
	o.delay_ns = SUBLET_MS;
	setup(&o);
	uint64_t *memory = map(MIB);
	struct sublet_bo bo = bo_over(memory, MIB, SUBLET_BO_TRACKED, NULL);
	for (uint32_t round = 0; round < 4; round++) {
		for (uint64_t i = 0; i < 16; i++) {
			struct sublet_job job = job_of(SUBLET_JOB_FILL, 65536);
			job.offset_bytes[0] = 49152 * i; /* each over the end of the one before */
			job.pattern = 100 * round + i;
			fence[i] = go(&job, bo, no_bo);
		}
		for (uint64_t i = 0; i < 16; i++)
			assert_int_equal(fence_end(&fence[i], NULL), 0);
		for (uint64_t i = 0; i < 16; i++) /* in order */
			assert_int_equal(memory[(49152 * (i + 1)) / 8 - 1], 100 * round + i);
	}
	teardown();
}

/* ---- how it fails ---- */

static void faults(void **unused)
{
	struct sublet_job job = job_of(SUBLET_JOB_FILL, MIB);
	(void)unused;

	setup(NULL);
	uint64_t *memory = map(MIB);
	struct sublet_bo bo = bo_over(memory, MIB, SUBLET_BO_TRACKED, NULL);
	assert_int_equal(sublet_device_soft_fault(device, 0), -EINVAL);
	assert_int_equal(sublet_device_soft_fault(device, SUBLET_SOFT_DIE + 1), -EINVAL);

	job.pattern = 1;
	assert_int_equal(sublet_device_soft_fault(device, SUBLET_SOFT_SLOW), 0);
	uint64_t start = wall_ns();
	(void)run(&job, bo, no_bo);
	assert_in_range(wall_ns() - start, 500 * SUBLET_MS, 5 * SUBLET_SEC);

	job.pattern = 2;
	assert_int_equal(sublet_device_soft_fault(device, SUBLET_SOFT_ERROR), 0);
	struct sublet_fence fence = go(&job, bo, no_bo);
	assert_int_equal(fence_end(&fence, NULL), -EIO);
	assert_true(memory[0] == 2 && memory[MIB / 8 - 1] == 1); /* half way */

	job.pattern = 3;
	job.timeout_ns = 50 * SUBLET_MS;
	assert_int_equal(sublet_device_soft_fault(device, SUBLET_SOFT_HANG), 0);
	fence = go(&job, bo, no_bo);
	struct sublet_fence behind = go(&job, bo, no_bo);
	start = wall_ns();
	assert_int_equal(fence_end(&fence, NULL), -ETIMEDOUT);
	assert_true(wall_ns() - start < 2 * SUBLET_SEC);
	int err = fence_end(&behind, NULL);
	assert_true(err == -EIO || err == -ETIMEDOUT);
	job.pattern = 4;
	(void)run(&job, bo, no_bo); /* it works again */
	assert_int_equal(sum_of(memory, MIB), 4 * MIB / 8);

	assert_int_equal(sublet_device_soft_fault(device, SUBLET_SOFT_DIE), 0);
	fence = go(&job, bo, no_bo);
	assert_int_equal(fence_end(&fence, NULL), -ENODEV);
	assert_int_equal(sublet_submit(device, &job, &bo, 1, NULL), -ENODEV);
	assert_int_equal(info_now().dead, 1);
	assert_int_equal(info_now().resets, 1);
	teardown();
}

static void close_while_hung(void **unused)
{
	struct sublet_job job = job_of(SUBLET_JOB_FILL, MIB);
	(void)unused;

	setup(NULL);
	struct sublet_bo bo = bo_over(map(MIB), MIB, SUBLET_BO_TRACKED, NULL);
	job.timeout_ns = 100 * SUBLET_MS;
	for (uint32_t i = 0; i < 2; i++) { /* bo_destroy first, then close itself */
		assert_int_equal(sublet_device_soft_fault(device, SUBLET_SOFT_HANG), 0);
		uint64_t start = wall_ns();
		struct sublet_fence fence = go(&job, bo, no_bo);
		if (i == 0) {
			assert_int_equal(sublet_bo_destroy(&bo), 0);
			assert_int_equal(fence_end(&fence, NULL), -ECANCELED);
			bo = bo_over(map(MIB), MIB, SUBLET_BO_TRACKED, NULL);
		} else {
			teardown();
		}
		assert_in_range(wall_ns() - start, 100 * SUBLET_MS, 5 * SUBLET_SEC);
	}
}

/* ---- that it notices ---- */

/* Translations changed behind the library's back: wrong frames, none, read-only ones, old ones out of the TLB. */
static void oracle(void **unused)
{
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 65536);
	(void)unused;

	setup(NULL);
	uint64_t *memory = map(MIB);
	memset(memory, 1, MIB);
	struct sublet_bo bo = bo_over(memory, 65536, SUBLET_BO_TRACKED, NULL);
	struct sublet_bo other = bo_over(memory + 65536 / 8, 65536, SUBLET_BO_TRACKED, NULL);
	struct sublet_iopt *iopt = sublet_device_iopt(device);
	uint64_t iova[2], bad = 0;
	struct sublet_extent extent[2];
	for (uint32_t i = 0; i < 2; i++) {
		(void)run(&job, i ? other : bo, no_bo);
		iova[i] = device->bo[i].iova;
		assert_int_equal(sublet_iopt_translate(iopt, iova[i], SUBLET_IOPT_READ, &extent[i]), 0);
		extent[i].bytes = 4096;
	}
	struct sublet_fence fence;
#define NOTICED(change)                                           \
	do {                                                      \
		change;                                           \
		fence = go(&job, bo, no_bo);                      \
		assert_int_equal(fence_end(&fence, NULL), -EIO);  \
		assert_int_equal(info_now().bad_accesses, ++bad); \
	} while (0)
#define FILL(with, flags) assert_int_equal(sublet_iopt_fill(iopt, iova[0], &extent[with], 1, flags), 0)
	/* the wrong frames; then the right ones, but the TLB still has the wrong ones */
	NOTICED(FILL(1, 0));
	NOTICED(FILL(0, SUBLET_IOPT_NOFLUSH));
	sublet_iopt_flush(iopt);
	(void)run(&job, bo, no_bo);
	/* none; and none, but the TLB has it still */
	NOTICED(assert_int_equal(sublet_iopt_clear(iopt, iova[0], 4096, 0), 0));
	FILL(0, 0);
	(void)run(&job, bo, no_bo);
	NOTICED(assert_int_equal(sublet_iopt_clear(iopt, iova[0], 4096, SUBLET_IOPT_NOFLUSH), 0));
	FILL(0, 0);
	(void)run(&job, bo, no_bo);
#undef FILL
	/* what the device may only read */
	struct sublet_bo readonly = bo_over(memory, 65536, SUBLET_BO_TRACKED | SUBLET_BO_READONLY, NULL);
	job.op = SUBLET_JOB_SUM;
	(void)run(&job, readonly, no_bo);
	device_lock(device);
	device->bo[2].flags &= ~(uint32_t)SUBLET_BO_READONLY; /* the library would refuse it */
	device_unlock(device);
	bo = readonly;
	job.op = SUBLET_JOB_FILL;
	NOTICED((void)0);
#undef NOTICED
	sublet_device_close(device);
	arena_close();
}

/*
 * A flush waits for the access that is under way: translations change while the device writes, and whatever it had begun
 * is over when the change returns. Where it had not begun it goes elsewhere, and says so; that is not the point here.
 */
static void flush_waits_for_accesses(void **unused)
{
	enum { ROUNDS = 400, CHUNKS = 64 };
	const uint64_t bytes = CHUNKS * 65536;
	struct sublet_job job = job_of(SUBLET_JOB_FILL, bytes);
	struct sublet_claim claim[2];
	struct sublet_extent extent[2];
	struct sublet_bo bo;
	uint64_t state = 5, hit = 0;
	(void)unused;

	setup(NULL);
	for (uint32_t i = 0; i < 2; i++) {
		assert_int_equal(sublet_claim(arena, bytes, NULL, &claim[i]), 0);
		extent[i] = (struct sublet_extent){ claim[i].offset_bytes, bytes };
	}
	assert_int_equal(sublet_bo_create_claim(device, &claim[0], 0, NULL, &bo), 0);
	(void)run(&job, bo, no_bo);
	uint64_t start = wall_ns(), iova = device->bo[0].iova;
	(void)run(&job, bo, no_bo);
	uint64_t job_ns = wall_ns() - start;
	struct sublet_iopt *iopt = sublet_device_iopt(device);
	volatile uint64_t *words = claim[0].addr;
	for (uint64_t i = 0; i < ROUNDS; i++) {
		struct sublet_fence fence = go(&job, bo, no_bo);
		/* not spinning: the device may want this CPU */
		usleep((useconds_t)below(&state, job_ns / 1000 + 1));
		assert_int_equal(sublet_iopt_fill(iopt, iova, &extent[1], 1, 0), 0);
		/* The last word of each chunk, wherever the device is: ours alone from here on. */
		for (uint64_t c = 0; c < CHUNKS; c++)
			words[(c + i) % CHUNKS * 8192 + 8191] = i + 1;
		hit += fence_end(&fence, NULL) != 0;
		for (uint64_t c = 0; c < CHUNKS; c++)
			assert_int_equal(words[c * 8192 + 8191], i + 1);
		assert_int_equal(sublet_iopt_fill(iopt, iova, &extent[0], 1, 0), 0);
	}
	assert_true(hit > 0);
	print_message("  %llu of %u were changed under an access\n", (unsigned long long)hit, ROUNDS);
	sublet_device_close(device);
	for (uint32_t i = 0; i < 2; i++)
		assert_int_equal(sublet_release(arena, &claim[i]), 0);
	arena_close();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(three_kinds), cmocka_unit_test(options),
		cmocka_unit_test(speed),       cmocka_unit_test(queue),
		cmocka_unit_test(faults),      cmocka_unit_test(close_while_hung),
		cmocka_unit_test(oracle),      cmocka_unit_test(flush_waits_for_accesses),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
