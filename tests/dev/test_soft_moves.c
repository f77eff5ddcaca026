/* SPDX-License-Identifier: MIT */
/*
 * The DMA engine in software while its memory moves: devices, moves and claims all at once, where not one byte may be
 * wrong and not one access bad (G1, G4, G10, G11). SEED=n replays the choices of the random test, UNIT_SECONDS=n makes it
 * longer.
 */
#include "soft_fixture.h"

#include <sublet/stats.h>

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- moves and claims ---- */

/* Claims take the memory away again and again; every byte is right in both directions, each time. */
static void moved_by_claims(void **unused)
{
	struct sublet_claim_options o = { SUBLET_OPTIONS(sublet_claim_options),
					  .flags = SUBLET_CLAIM_DEAREST };
	static const enum sublet_backing backing[] = { SUBLET_BACKING_MEMFD, SUBLET_BACKING_THP };
	const uint64_t bytes = 12 * MIB;
	struct sublet_claim claim;
	(void)unused;

	for (uint32_t b = 0; b < 2; b++) {
		uint64_t state = b;
		arena_open(backing[b], 32 * MIB, 32 * MIB);
		assert_int_equal(sublet_device_open_soft(arena, NULL, &device), 0);
		uint64_t *from = map(bytes), *to = map(bytes);
		struct sublet_bo source = bo_over(from, bytes, SUBLET_BO_TRACKED, NULL);
		struct sublet_bo target = bo_over(to, bytes, SUBLET_BO_TRACKED, NULL);
		for (uint32_t round = 0; round < 12; round++) {
			for (uint64_t i = 0; i < bytes / 8; i++)
				from[i] = rng(&state);
			if (sublet_claim(arena, (1 + round % 4) * 5 * MIB, &o, &claim))
				fail_msg("claim failed");
			struct sublet_job copy = job_of(SUBLET_JOB_COPY, bytes),
					  sum = job_of(SUBLET_JOB_SUM, bytes);
			assert_int_equal(run(&copy, source, target), bytes);
			assert_memory_equal(from, to, bytes);
			assert_int_equal(sublet_release(arena, &claim), 0);
			assert_int_equal(run(&sum, target, no_bo), sum_of(from, bytes));
		}
		struct sublet_device_info info = info_now();
		assert_true(info.evictions > 0 && info.rebinds > 0);
		assert_int_equal(info.binds, 2);
		teardown();
	}
}

/* A claim meets a device that hangs. With less time than the job has it names it; with more it gets the memory. */
static void claim_and_a_hung_device(void **unused)
{
	struct sublet_claim_options o = { SUBLET_OPTIONS(sublet_claim_options) };
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 16 * MIB);
	struct sublet_claim claim;
	(void)unused;

	setup(NULL);
	struct sublet_bo bo = bo_over(map(30 * MIB), 30 * MIB, SUBLET_BO_TRACKED, "frame ring");
	(void)run(&job, bo, no_bo);
	assert_int_equal(sublet_device_soft_fault(device, SUBLET_SOFT_HANG), 0);
	job.timeout_ns = 2 * SUBLET_SEC; /* room for a machine with other things to do than the first claim */
	uint64_t start = wall_ns();
	struct sublet_fence fence = go(&job, bo, no_bo);
	o.deadline_ns = 100 * SUBLET_MS;
	assert_int_equal(sublet_claim(arena, 16 * MIB, &o, &claim), -EBUSY);
	assert_true(wall_ns() - start < job.timeout_ns);
	assert_true(claim.blocker_count > 0);
	bool named = false;
	for (uint32_t i = 0; i < claim.blocker_count; i++)
		named |= claim.blockers[i].kind == SUBLET_BLOCKER_NOTIFIER &&
			 !strcmp(claim.blockers[i].owner, "soft:frame ring");
	assert_true(named);
	o.deadline_ns = LONG_NS;
	assert_int_equal(sublet_claim(arena, 16 * MIB, &o, &claim), 0);
	assert_in_range(wall_ns() - start, job.timeout_ns, LONG_NS);
	assert_int_equal(fence_end(&fence, NULL), -ETIMEDOUT);
	assert_int_equal(info_now().resets, 1);
	(void)run(&job, bo, no_bo);
	assert_int_equal(sublet_release(arena, &claim), 0);
	teardown();
}

static void unmap_under_work(void **unused)
{
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 4 * MIB);
	(void)unused;

	for (uint32_t hang = 0; hang < 2; hang++) {
		setup(NULL);
		uint64_t *memory = map(4 * MIB);
		struct sublet_bo bo = bo_over(memory, 4 * MIB, SUBLET_BO_TRACKED, NULL);
		assert_int_equal(sublet_device_soft_fault(device, hang ? SUBLET_SOFT_HANG : SUBLET_SOFT_SLOW),
				 0);
		job.timeout_ns = hang ? 100 * SUBLET_MS : LONG_NS;
		uint64_t start = wall_ns();
		struct sublet_fence fence = go(&job, bo, no_bo);
		assert_int_equal(sublet_unmap(mm, memory, 4 * MIB), 0);
		assert_in_range(wall_ns() - start, 100 * SUBLET_MS, 4 * SUBLET_SEC);
		assert_int_equal(fence_end(&fence, NULL), hang ? -ETIMEDOUT : 0);
		assert_int_equal(sublet_submit(device, &job, &bo, 1, NULL), -EFAULT);
		teardown();
	}
}

/* ---- large entries ---- */

/* Memory in pieces of 64 KiB, with a device at work on it: by and by it lies together, in the background. */
static void collapsed_in_the_background(void **unused)
{
	enum { UNITS = 64 * 16 };
	struct sublet_soft_options o = soft_options();
	struct sublet_job sum = job_of(SUBLET_JOB_SUM, 8 * MIB);
	static void *unit[UNITS];
	void *addr;
	(void)unused;

	o.collapse_bytes_per_s = 64 * MIB;
	arena_open(SUBLET_BACKING_THP, 64 * MIB, 2 * MIB);
	assert_int_equal(sublet_device_open_soft(arena, &o, &device), 0);
	/* Fill the area, free every other unit, and map in the holes. */
	for (uint32_t i = 0; i < UNITS; i++)
		unit[i] = map(65536);
	for (uint32_t i = 0; i < UNITS; i += 2)
		assert_int_equal(sublet_unmap(mm, unit[i], 65536), 0);
	assert_int_equal(sublet_map_aligned(mm, 8 * MIB, 2 * MIB, SUBLET_MOVABLE, &addr), 0);
	for (uint32_t i = 1; i < UNITS; i += 2)
		assert_int_equal(sublet_unmap(mm, unit[i], 65536), 0);
	uint64_t *words = addr, state = 3;
	for (uint64_t i = 0; i < MIB; i++)
		words[i] = rng(&state);
	struct sublet_bo bo = bo_over(words, 8 * MIB, SUBLET_BO_TRACKED, NULL);
	uint64_t want = sum_of(words, 8 * MIB), until = wall_ns() + LONG_NS, small = 0;
	do {
		assert_true(run(&sum, bo, no_bo) == want);
		struct sublet_device_info info = info_now();
		small = small ? small : info.iopt.entries_4k;
		if (info.iopt.entries_2m == 4)
			break;
		usleep(1000);
	} while (wall_ns() < until);
	print_message("  entries of 4 KiB at first %llu, collapsed %llu MiB\n", (unsigned long long)small,
		      (unsigned long long)(info_now().collapsed_bytes / MIB));
	assert_int_equal(info_now().iopt.entries_2m, 4);
	assert_true(sum_of(words, 8 * MIB) == want);
	assert_true(small > 0);
	teardown();
}

/* ---- everything at once ---- */

enum { WORKERS = 3, BOS_EACH = 3 };

static _Atomic bool stop;

struct worker {
	pthread_t thread;
	uint64_t state;
	struct piece {
		uint64_t *memory;
		uint64_t mapped_bytes;
		uint64_t *words; /* the bo's first; up to a page into the mapping */
		uint64_t bytes;
		struct sublet_bo bo;
		struct sublet_claim claim; /* id 0: none */
	} piece[BOS_EACH];
};

static void piece_end(struct piece *p)
{
	if (p->bo.device)
		assert_int_equal(sublet_bo_destroy(&p->bo), 0);
	if (p->claim.id)
		assert_int_equal(sublet_release(arena, &p->claim), 0);
	else if (p->memory)
		assert_int_equal(sublet_unmap(mm, p->memory, p->mapped_bytes), 0);
	*p = (struct piece){ 0 };
}

/* A piece of memory of some kind, with a bo over it. */
static void piece_make(struct worker *w, struct piece *p)
{
	struct sublet_claim_options o = { SUBLET_OPTIONS(sublet_claim_options), .deadline_ns = 50 * SUBLET_MS,
					  .flags = below(&w->state, 2) ? SUBLET_CLAIM_DEAREST : 0 };
	uint64_t kind = below(&w->state, 8), most = below(&w->state, 3) ? MIB : 6 * MIB;
	uint64_t skip = 8 * below(&w->state, 512);

	p->bytes = 8 * (1 + below(&w->state, most / 8));
	if (kind == 0 && !sublet_claim(arena, p->bytes, &o, &p->claim)) {
		p->memory = p->words = p->claim.addr;
		assert_int_equal(sublet_bo_create_claim(device, &p->claim, 0, NULL, &p->bo), 0);
		return;
	}
	p->mapped_bytes = p->bytes + skip;
	p->memory = map(p->mapped_bytes);
	p->words = p->memory + skip / 8;
	int err = kind == 1 ? sublet_bo_create(device, mm, p->words, p->bytes, SUBLET_BO_PINNED, NULL, &p->bo)
			    : -ENOMEM;
	if (err) /* the limit of long-term pins, or not wanted */
		p->bo = bo_over(p->words, p->bytes, SUBLET_BO_TRACKED, NULL);
}

static void words_check(const struct piece *p, uint64_t from, uint64_t bytes, const uint64_t *want,
			const char *what)
{
	if (memcmp(p->words + from / 8, want, bytes))
		fail_msg("%s: wrong bytes", what);
}

/* Submit; where the aperture is full of what others are using, again a little later. */
static void job_go(const struct sublet_job *job, struct sublet_bo a, struct sublet_bo b,
		   struct sublet_fence *fence)
{
	struct sublet_bo bos[2] = { a, b };
	uint64_t until = wall_ns() + LONG_NS;
	int err;

	while ((err = sublet_submit(device, job, bos, job->op == SUBLET_JOB_COPY ? 2 : 1, fence)) ==
		       -ENOSPC &&
	       wall_ns() < until)
		usleep(100);
	if (err)
		fail_msg("submit: %d", err);
}

/* Write by hand, copy by the device to another piece, read by hand; then the sum of it, by both. */
static void step(struct worker *w, uint64_t *want)
{
	struct piece *a = &w->piece[below(&w->state, BOS_EACH)], *b = &w->piece[below(&w->state, BOS_EACH)];
	if (a == b)
		return;
	uint64_t most = a->bytes < b->bytes ? a->bytes : b->bytes;
	uint64_t bytes = 8 * (1 + below(&w->state, most / 8));
	struct sublet_job copy = job_of(SUBLET_JOB_COPY, bytes), sum = job_of(SUBLET_JOB_SUM, bytes);
	uint64_t result = 0, chunks = below(&w->state, 3);

	copy.offset_bytes[0] = 8 * below(&w->state, (a->bytes - bytes) / 8 + 1);
	copy.offset_bytes[1] = 8 * below(&w->state, (b->bytes - bytes) / 8 + 1);
	for (uint64_t i = 0; i < bytes / 8; i++)
		want[i] = rng(&w->state);
	memcpy(a->words + copy.offset_bytes[0] / 8, want, bytes);
	struct sublet_fence fence, second;
	job_go(&copy, a->bo, b->bo, &fence);
	/* More of the same behind it, so that the buffers are in use without a pause. */
	for (uint64_t i = 0; i < chunks; i++)
		job_go(&copy, a->bo, b->bo, NULL);
	sum.offset_bytes[0] = copy.offset_bytes[1];
	job_go(&sum, b->bo, no_bo, &second);
	assert_int_equal(fence_end(&fence, NULL), 0);
	assert_int_equal(fence_end(&second, &result), 0); /* behind all others */
	words_check(b, copy.offset_bytes[1], bytes, want, "copied by the device");
	assert_true(result == sum_of(want, bytes));
	struct sublet_job fill = job_of(SUBLET_JOB_FILL, bytes);
	fill.offset_bytes[0] = copy.offset_bytes[0];
	fill.pattern = rng(&w->state);
	job_go(&fill, a->bo, no_bo, &fence);
	assert_int_equal(fence_end(&fence, NULL), 0);
	for (uint64_t i = 0; i < bytes / 8; i++)
		if (a->words[fill.offset_bytes[0] / 8 + i] != fill.pattern)
			fail_msg("filled by the device: wrong word %llu", (unsigned long long)i);
}

static void *worker_main(void *arg)
{
	struct worker *w = arg;
	uint64_t *want = malloc(6 * MIB);

	for (uint32_t i = 0; i < BOS_EACH; i++)
		piece_make(w, &w->piece[i]);
	while (!atomic_load(&stop)) {
		if (below(&w->state, 24) == 0) {
			struct piece *p = &w->piece[below(&w->state, BOS_EACH)];
			piece_end(p);
			piece_make(w, p);
		}
		step(w, want);
	}
	for (uint32_t i = 0; i < BOS_EACH; i++)
		piece_end(&w->piece[i]);
	free(want);
	return NULL;
}

static _Atomic uint64_t claims_done, claims_failed;

static void *claimer_main(void *arg)
{
	uint64_t *state = arg;

	while (!atomic_load(&stop)) {
		struct sublet_claim_options o = { SUBLET_OPTIONS(sublet_claim_options),
						  .deadline_ns = 200 * SUBLET_MS,
						  .flags = below(state, 4) ? SUBLET_CLAIM_DEAREST : 0 };
		struct sublet_claim claim;
		if (!sublet_claim(arena, 4096 + below(state, 12 * MIB), &o, &claim)) {
			/* whoever still looks here sees something else */
			memset(claim.addr, 0xcc, claim.bytes);
			atomic_fetch_add(&claims_done, 1);
			assert_int_equal(sublet_release(arena, &claim), 0);
		} else {
			atomic_fetch_add(&claims_failed, 1);
		}
	}
	return NULL;
}

/* Enough of each happened to be worth a look. */
static bool storm_was_seen(void)
{
	struct sublet_device_info info = info_now();

	return info.jobs > 50 && atomic_load(&claims_done) > 0 && info.evictions > 0;
}

static void storm(enum sublet_backing backing, uint64_t seed, uint64_t ns)
{
	struct sublet_soft_options o = soft_options();
	static struct worker worker[WORKERS];
	pthread_t claimer;
	uint64_t claimer_state = seed + 99;

	o.aperture_bytes = 24 * MIB; /* a little small, so that it is fought for */
	o.collapse_bytes_per_s = 64 * MIB;
	arena_open(backing, 64 * MIB, 64 * MIB);
	assert_int_equal(sublet_device_open_soft(arena, &o, &device), 0);
	assert_int_equal(sublet__linux_chaos_start(arena, 200 * SUBLET_US, seed), 0);
	atomic_store(&stop, false);
	atomic_store(&claims_done, 0);
	atomic_store(&claims_failed, 0);
	setenv("CMOCKA_TEST_ABORT", "1", 1);
	for (uint32_t i = 0; i < WORKERS; i++) {
		worker[i] = (struct worker){ .state = seed * WORKERS + i };
		pthread_create(&worker[i].thread, NULL, worker_main, &worker[i]);
	}
	pthread_create(&claimer, NULL, claimer_main, &claimer_state);
	usleep((useconds_t)(ns / 1000));
	for (uint64_t until = wall_ns() + LONG_NS; !storm_was_seen() && wall_ns() < until;)
		usleep(10000); /* a slow machine */
	atomic_store(&stop, true);
	for (uint32_t i = 0; i < WORKERS; i++)
		pthread_join(worker[i].thread, NULL);
	pthread_join(claimer, NULL);
	unsetenv("CMOCKA_TEST_ABORT");
	struct sublet_device_info info = info_now();
	print_message("  %llu jobs, %llu MiB, %llu claims and %llu not; binds %llu, again %llu, evicted "
		      "%llu, for room %llu, "
		      "collapsed %llu MiB, resets %llu\n",
		      (unsigned long long)info.jobs, (unsigned long long)(info.job_bytes / MIB),
		      (unsigned long long)claims_done, (unsigned long long)claims_failed,
		      (unsigned long long)info.binds, (unsigned long long)info.rebinds,
		      (unsigned long long)info.evictions, (unsigned long long)info.evictions_lru,
		      (unsigned long long)(info.collapsed_bytes / MIB), (unsigned long long)info.resets);
	assert_true(storm_was_seen());
	assert_int_equal(info.jobs_failed, 0);
	assert_int_equal(info.resets, 0);
	assert_int_equal(info.iopt.mappings, 0);
	sublet_device_close(device);
	sublet__chaos_stop(sublet__instance_of(arena));
	arena_close();
	assert_int_equal(info.bad_accesses, 0);
}

static void everything_at_once(void **unused)
{
	const char *given = getenv("SEED"), *seconds = getenv("UNIT_SECONDS");
	uint64_t seed = given ? strtoull(given, NULL, 0) : wall_ns() % 1000000007u;
	uint64_t ns = (uint64_t)((seconds ? strtod(seconds, NULL) : 5) * 1e9);
	(void)unused;

	print_message("everything at once: SEED=%llu\n", (unsigned long long)seed);
	storm(SUBLET_BACKING_MEMFD, seed, ns / 2);
	storm(SUBLET_BACKING_THP, seed + 1, ns / 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(moved_by_claims),    cmocka_unit_test(claim_and_a_hung_device),
		cmocka_unit_test(unmap_under_work),   cmocka_unit_test(collapsed_in_the_background),
		cmocka_unit_test(everything_at_once),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
