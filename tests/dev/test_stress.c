/* SPDX-License-Identifier: MIT */
/*
 * Everything at once, on real memory: two address spaces, programs that write, short and long-term pins through which a
 * device writes, tracked buffers that the soft device copies, fills and sums, memory that is unmapped under its buffers,
 * claims of random windows with DMA into them, and torture moves. In the second run the device hangs, fails and is slow,
 * and a thread stops for a while with a short pin in its hand.
 *
 * Held: every byte is what its last writer wrote (G1), pinned memory stays (G2), no long-term pin in the area (G3), the
 * device makes no access through a dead translation (G4), claims succeed (G10) or name who is in the way (G7, G11), and at the
 * end every frame is free (G8).
 *
 * What waits is bounded: a submit and a claim without faults by MOST_NS, a claim with faults by its deadline and
 * LATE_NS. Not counted is what the kernel keeps everybody waiting for (docs/hazards.md): a thread of its own that walks
 * the mappings of a file, and is preempted in the middle of that, holds up all who map it. A canary that maps and
 * unmaps a page of the arena's file tells how long.
 *
 * STRESS_SECONDS (10) is the length of each run, SEED replays the choices of each thread, not their interleaving.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "core/engine.h"
#include "linux/instance.h"

#include <sublet/arena.h>
#include <sublet/bo.h>
#include <sublet/notifier.h>
#include <sublet/pin.h>

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define AREA           ((uint64_t)96 << 20)
#define NORMAL         ((uint64_t)48 << 20)
#define REGION         ((uint64_t)6 << 20) /* of each worker in each mm */
#define REGION_WORDS   (REGION / 8)
#define CLAIM_MOST     ((uint64_t)16 << 20)
#define JOB_TIMEOUT_NS (60 * SUBLET_MS)
#define LONG_NS        (60 * SUBLET_SEC) /* timeouts that are not to be reached */
#define MOST_NS        (2 * SUBLET_SEC)  /* two CPUs, ten threads, and whatever else the machine does */
#define LATE_NS        (500 * SUBLET_MS)
#define STALL_NS       (20 * SUBLET_MS) /* a slower canary is the kernel's doing */
#define STUCK_OWNER    "stopped thread"

struct world {
	struct sublet_arena *arena;
	struct sublet_mm *mm[2];
	struct sublet_device *device;
	char *linear;
	int fd;
	uint64_t seed;
	bool faults;
	_Atomic bool stop;
	_Atomic uint64_t slowest_ns, slowest_submit_ns; /* without the stalls in them */
	_Atomic uint64_t writes, short_pins, long_pins, refused_pins, jobs, failed_jobs, unmaps, claims,
		failed_claims, moves;
};

static struct world world;

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * SUBLET_SEC + (uint64_t)t.tv_nsec;
}

static uint64_t rng(uint64_t *s)
{
	*s ^= *s << 13, *s ^= *s >> 7, *s ^= *s << 17;
	return *s;
}

/* Not cmocka's, which may not be used on other threads: say what is wrong, and end. */
#define CHECK(what, ...)                                                                   \
	do {                                                                               \
		if (!(what)) {                                                             \
			fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #what);         \
			fprintf(stderr, __VA_ARGS__);                                      \
			fprintf(stderr, " (SEED=%llu)\n", (unsigned long long)world.seed); \
			abort();                                                           \
		}                                                                          \
	} while (0)

static uint64_t *region_map(struct sublet_mm *mm, uint64_t bytes)
{
	void *p;
	int err = sublet_map(mm, bytes, SUBLET_MOVABLE, &p);

	CHECK(!err, "map: %d", err);
	return p;
}

static void region_unmap(struct sublet_mm *mm, void *p, uint64_t bytes)
{
	int err = sublet_unmap(mm, p, bytes);

	CHECK(!err, "unmap: %d", err);
}

static void nap(uint64_t ns)
{
	struct timespec t = { (time_t)(ns / SUBLET_SEC), (long)(ns % SUBLET_SEC) };

	nanosleep(&t, NULL);
}

/* ---- how long the kernel kept everybody waiting ---- */

static struct {
	pthread_mutex_t lock;
	uint64_t ns;       /* in all, of stalls that are over */
	uint64_t since_ns; /* the canary is in the kernel; 0: it is not */
} stall = { .lock = PTHREAD_MUTEX_INITIALIZER };

/* So far in all; between two calls: of that time. */
static uint64_t stalled(void)
{
	pthread_mutex_lock(&stall.lock);
	uint64_t now = now_ns(), sum = stall.ns;
	if (stall.since_ns && now > stall.since_ns + STALL_NS)
		sum += now - stall.since_ns;
	pthread_mutex_unlock(&stall.lock);
	return sum;
}

static void stall_set(uint64_t since_ns)
{
	pthread_mutex_lock(&stall.lock);
	uint64_t now = now_ns();
	if (!since_ns && now > stall.since_ns + STALL_NS)
		stall.ns += now - stall.since_ns;
	stall.since_ns = since_ns;
	pthread_mutex_unlock(&stall.lock);
}

static void *canary(void *arg)
{
	(void)arg;
	while (!world.stop) {
		stall_set(now_ns());
		void *p = mmap(NULL, 4096, PROT_READ, MAP_SHARED, world.fd, 0);
		CHECK(p != MAP_FAILED, "canary: %d", errno);
		CHECK(!munmap(p, 4096), "canary: %d", errno);
		stall_set(0);
		nap(2 * SUBLET_MS);
	}
	return NULL;
}

/* How long it took since then, when `before` had been stalled, without the stalls. */
static uint64_t took_ns(uint64_t since_ns, uint64_t before)
{
	uint64_t stalls = stalled() - before, ns = now_ns() - since_ns;

	return ns > stalls ? ns - stalls : 0;
}

static void most(_Atomic uint64_t *slowest, uint64_t ns)
{
	uint64_t old = *slowest;

	while (old < ns && !atomic_compare_exchange_weak(slowest, &old, ns))
		;
}

/* ---- an ordinary program ---- */

static void *writer(void *arg)
{
	uint64_t seed = world.seed + (uintptr_t)arg, *shadow = calloc(REGION_WORDS, 8);
	struct sublet_mm *mm = world.mm[(uintptr_t)arg % 2];
	volatile uint64_t *p = region_map(mm, REGION);

	CHECK(shadow != NULL, "no memory");
	while (!atomic_load_explicit(&world.stop, memory_order_relaxed)) {
		for (uint32_t i = 0; i < 256; i++) {
			uint64_t at = rng(&seed) % REGION_WORDS;
			CHECK(p[at] == shadow[at], "word %llu is %llx, not %llx", (unsigned long long)at,
			      (unsigned long long)p[at], (unsigned long long)shadow[at]);
			p[at] = shadow[at] = seed;
		}
		world.writes += 256;
		nap(20000); /* two CPUs, ten threads */
	}
	for (uint64_t at = 0; at < REGION_WORDS; at++)
		CHECK(p[at] == shadow[at], "word %llu", (unsigned long long)at);
	region_unmap(mm, (void *)(uintptr_t)p, REGION);
	free(shadow);
	return NULL;
}

/* ---- pins: a device that writes to where the pin says the bytes are ---- */

static void pin_dma(const struct sublet_pin *pin, uint64_t *addr, uint64_t bytes, uint64_t value,
		    bool longterm)
{
	struct sublet_extent e[16], again[16];
	int n;

	for (uint64_t at = 0; (n = sublet_pin_extents(pin, at, e, 16)) != 0;) {
		CHECK(n > 0, "extents: %d", n);
		for (int i = 0; i < n; i++) {
			CHECK(!longterm || e[i].offset_bytes >= AREA, "long-term pin in the area");
			for (uint64_t b = 0; b < e[i].bytes; b += 8)
				*(volatile uint64_t *)(void *)(world.linear + e[i].offset_bytes + b) = value;
		}
		CHECK(sublet_pin_extents(pin, at, again, 16) == n && !memcmp(e, again, (size_t)n * sizeof *e),
		      "pinned memory moved");
		for (int i = 0; i < n; i++)
			at += e[i].bytes;
	}
	for (uint64_t w = 0; w < bytes / 8; w++)
		CHECK(((volatile uint64_t *)addr)[w] == value, "word %llu after DMA", (unsigned long long)w);
}

static void *pinner(void *arg)
{
	bool longterm = (uintptr_t)arg & 4;
	uint64_t seed = world.seed + (uintptr_t)arg;
	struct sublet_mm *mm = world.mm[(uintptr_t)arg % 2];
	uint64_t *p = region_map(mm, REGION);

	while (!world.stop) {
		uint64_t first = rng(&seed) % REGION_WORDS, most = REGION_WORDS - first;
		uint64_t words = 1 + rng(&seed) % (most < 40000 ? most : 40000);
		struct sublet_pin pin;
		uint64_t before = stalled();
		int err = sublet_pin(mm, p + first, words * 8,
				     SUBLET_PIN_WRITE | (longterm ? SUBLET_PIN_LONGTERM : 0),
				     rng(&seed) % 4 ? "pinner" : NULL, &pin);
		/* Of long-term pins the normal zone may have no room for all: then it says so. Any waits for a move, but
		   not for ever. */
		CHECK(!err || (longterm && err == -ENOMEM) || (err == -EBUSY && stalled() > before),
		      "pin: %d", err);
		if (err) {
			world.refused_pins++;
			continue;
		}
		pin_dma(&pin, p + first, words * 8, rng(&seed), longterm);
		if (longterm)
			nap(rng(&seed) % (5 * SUBLET_MS));
		err = sublet_unpin(&pin);
		CHECK(!err, "unpin: %d", err);
		(*(longterm ? &world.long_pins : &world.short_pins))++;
	}
	region_unmap(mm, p, REGION);
	return NULL;
}

/* Stops now and then with a short pin in its hand, for longer than claims are ready to wait. */
static void *stopper(void *arg)
{
	uint64_t seed = world.seed + (uintptr_t)arg;
	uint64_t *p = region_map(world.mm[0], REGION);

	while (!world.stop) {
		struct sublet_pin pin;
		int err = sublet_pin(world.mm[0], p + rng(&seed) % (REGION_WORDS - 512), 4096,
				     SUBLET_PIN_READ, STUCK_OWNER, &pin);
		CHECK(!err, "pin: %d", err);
		nap(300 * SUBLET_MS);
		err = sublet_unpin(&pin);
		CHECK(!err, "unpin: %d", err);
		nap(100 * SUBLET_MS);
	}
	region_unmap(world.mm[0], p, REGION);
	return NULL;
}

/* ---- tracked buffers ---- */

/* Run one job to its end; 0 or its error. Without faults every job that is submitted succeeds. */
static int job_run(const struct sublet_job *job, const struct sublet_bo *bos, uint32_t count,
		   uint64_t *result)
{
	struct sublet_fence fence;
	bool done = false;
	uint64_t since = now_ns(), before = stalled();
	int err = sublet_submit(world.device, job, bos, count, &fence);
	uint64_t submit_ns = took_ns(since, before);

	most(&world.slowest_submit_ns, submit_ns);
	CHECK(submit_ns < MOST_NS, "submit took %llu ms", (unsigned long long)(submit_ns / SUBLET_MS));
	if (err) {
		CHECK(world.faults && err == -ETIMEDOUT, "submit: %d", err);
		return err;
	}
	for (uint32_t tries = 0; !done; tries++) {
		CHECK(tries < 100, "a fence that is never done");
		err = sublet_fence_wait(&fence, SUBLET_SEC, &done, result);
	}
	CHECK(!err || (world.faults && (err == -EIO || err == -ETIMEDOUT)), "job: %d", err);
	int put = sublet_fence_put(&fence);
	CHECK(!put, "fence put: %d", put);
	world.jobs++;
	world.failed_jobs += err != 0;
	return err;
}

static uint64_t sum_of(const uint64_t *p, uint64_t words)
{
	uint64_t sum = 0;

	for (uint64_t i = 0; i < words; i++)
		sum += p[i];
	return sum;
}

/* Copies between the two address spaces, fills and sums; the program writes and reads between the jobs. */
static void *dma(void *arg)
{
	uint64_t seed = world.seed + (uintptr_t)arg, result;
	uint64_t *p[2];
	struct sublet_bo bo[2];

	for (uint32_t i = 0; i < 2; i++) {
		p[i] = region_map(world.mm[i], REGION);
		int err = sublet_bo_create(world.device, world.mm[i], p[i], REGION, SUBLET_BO_TRACKED, "dma",
					   &bo[i]);
		CHECK(!err, "bo: %d", err);
	}
	while (!world.stop) {
		uint64_t words = 1 + rng(&seed) % 60000, from = rng(&seed) % (REGION_WORDS - words);
		uint64_t to = rng(&seed) % (REGION_WORDS - words);
		struct sublet_job job = { SUBLET_OPTIONS(sublet_job), .bytes = words * 8,
					  .offset_bytes = { from * 8, to * 8 }, .pattern = rng(&seed),
					  .timeout_ns = world.faults ? JOB_TIMEOUT_NS : LONG_NS };
		for (uint64_t i = 0; i < words; i += 1 + rng(&seed) % 64)
			p[0][from + i] = seed;
		job.op = SUBLET_JOB_COPY;
		if (!job_run(&job, bo, 2, &result))
			CHECK(!memcmp(p[0] + from, p[1] + to, words * 8), "copied bytes differ");
		job.op = SUBLET_JOB_SUM;
		if (!job_run(&job, bo, 1, &result))
			CHECK(result == sum_of(p[0] + from, words), "sum");
		job.op = SUBLET_JOB_FILL;
		if (!job_run(&job, bo, 1, &result))
			CHECK(sum_of(p[0] + from, words) == words * job.pattern, "fill");
	}
	for (uint32_t i = 0; i < 2; i++) {
		int err = sublet_bo_destroy(&bo[i]);
		CHECK(!err, "bo destroy: %d", err);
		region_unmap(world.mm[i], p[i], REGION);
	}
	return NULL;
}

/* Unmaps memory under a buffer that is at work: an error on the fence or none, and never an access afterwards. */
static void *unmapper(void *arg)
{
	uint64_t seed = world.seed + (uintptr_t)arg, bytes = REGION / 4;

	while (!world.stop) {
		struct sublet_mm *mm = world.mm[rng(&seed) % 2];
		uint64_t *p = region_map(mm, bytes);
		struct sublet_job job = { SUBLET_OPTIONS(sublet_job), .op = SUBLET_JOB_FILL, .bytes = bytes,
					  .timeout_ns = world.faults ? JOB_TIMEOUT_NS : LONG_NS };
		struct sublet_bo bo;
		struct sublet_fence fence;
		bool done;
		int err = sublet_bo_create(world.device, mm, p, bytes, SUBLET_BO_TRACKED, "unmapped", &bo);
		CHECK(!err, "bo: %d", err);
		int submitted = sublet_submit(world.device, &job, &bo, 1, &fence);
		CHECK(!submitted || submitted == -ETIMEDOUT, "submit: %d", submitted);
		if (rng(&seed) % 2)
			nap(rng(&seed) % SUBLET_MS);
		region_unmap(mm, p, bytes);
		err = sublet_submit(world.device, &job, &bo, 1, NULL);
		CHECK(err == -EFAULT, "submit after unmap: %d", err);
		if (!submitted) {
			err = sublet_fence_wait(&fence, SUBLET_SEC, &done, NULL);
			CHECK(done, "a fence under unmapped memory: %d", err);
			err = sublet_fence_put(&fence);
			CHECK(!err, "put: %d", err);
		}
		err = sublet_bo_destroy(&bo);
		CHECK(!err, "bo destroy: %d", err);
		world.unmaps++;
		nap(2 * SUBLET_MS);
	}
	return NULL;
}

/* ---- claims ---- */

/* With the device into the window, and out of it. */
static void claim_use(struct sublet_claim *claim, uint64_t *seed)
{
	const uint64_t *p = claim->addr;
	struct sublet_job job = { SUBLET_OPTIONS(sublet_job), .op = SUBLET_JOB_FILL, .bytes = claim->bytes,
				  .pattern = rng(seed),
				  .timeout_ns = world.faults ? JOB_TIMEOUT_NS : LONG_NS };
	struct sublet_bo bo;

	for (uint64_t i = 0; i < claim->bytes / 8; i += 1 + rng(seed) % 100)
		CHECK(!p[i], "claimed memory is not zero (G9)");
	int err = sublet_bo_create_claim(world.device, claim, 0, "window", &bo);
	CHECK(!err, "bo over claim: %d", err);
	err = sublet_release(world.arena, claim);
	CHECK(err == -EBUSY, "release under a bo: %d", err);
	if (!job_run(&job, &bo, 1, NULL))
		for (uint64_t i = 0; i < claim->bytes / 8; i += 1 + rng(seed) % 100)
			CHECK(p[i] == job.pattern, "DMA into the window");
	err = sublet_bo_destroy(&bo);
	CHECK(!err, "bo destroy: %d", err);
}

/* A pin may be one without a tag; and what an unmap that waits for a hung device has taken is in nobody's memory. */
static void blocker_check(const struct sublet_blocker *b)
{
	CHECK(b->owner[0] || b->kind == SUBLET_BLOCKER_PIN || b->kind == SUBLET_BLOCKER_CALL,
	      "blocker of kind %u without a name", b->kind);
}

static void *claimer(void *arg)
{
	uint64_t seed = world.seed + (uintptr_t)arg;

	while (!world.stop) {
		struct sublet_claim_options o = {
			SUBLET_OPTIONS(sublet_claim_options),
			.flags = rng(&seed) % 2 ? SUBLET_CLAIM_DEAREST : 0,
			.align_bytes = 4096ull << rng(&seed) % 10, .owner = "claimer",
			/* or long enough for whoever is preempted with a pin in its hand */
			.deadline_ns = world.faults ? 100 * SUBLET_MS : LONG_NS
		};
		struct sublet_claim claim;
		uint64_t since = now_ns(), before = stalled();
		int err = sublet_claim(world.arena, 1 + rng(&seed) % CLAIM_MOST, &o, &claim);
		for (uint32_t i = 0; err && !world.faults && i < claim.blocker_count; i++) {
			char line[200];
			if (sublet_blocker_describe(&claim, i, line, sizeof line) > 0)
				fprintf(stderr, "in the way: %s\n", line);
		}
		uint64_t claim_ns = took_ns(since, before);
		most(&world.slowest_ns, claim_ns);
		CHECK(claim_ns < (world.faults ? o.deadline_ns + LATE_NS : MOST_NS), "claim took %llu ms",
		      (unsigned long long)(claim_ns / SUBLET_MS));
		/* Bounded references only: it succeeds (G10). With faults it may fail, and then says because of whom. */
		CHECK(!err || (world.faults && err == -EBUSY && claim.blocker_count), "claim: %d", err);
		if (err) {
			for (uint32_t i = 0; i < claim.blocker_count; i++)
				blocker_check(&claim.blockers[i]);
			world.failed_claims++;
			continue;
		}
		claim_use(&claim, &seed);
		err = sublet_release(world.arena, &claim);
		CHECK(!err, "release: %d", err);
		world.claims++;
	}
	return NULL;
}

/* ---- torture, and the eye that never closes ---- */

static void longterm_check(void)
{
	for (uint32_t pfn = 0; pfn < world.arena->zone[ZONE_AREA].frames; pfn++)
		if (a32_load_acquire(&world.arena->frames[pfn].ref) & REF_LONG_MASK)
			CHECK(!(a32_load_acquire(&world.arena->frames[pfn].word) & FRAME_HEAD),
			      "long-term pin in the area, frame %u (G3)", pfn);
}

static void *torturer(void *arg)
{
	uint64_t seed = world.seed + (uintptr_t)arg;

	while (!world.stop) {
		for (uint32_t i = 0; i < 8; i++)
			world.moves += sublet__chaos_move(world.arena, world.mm[rng(&seed) % 2], rng(&seed)) >
				       0;
		longterm_check();
		if (world.faults && rng(&seed) % 8 == 0) {
			/* hang, slow, error */
			enum sublet_soft_fault fault = SUBLET_SOFT_HANG + rng(&seed) % 3;
			int err = sublet_device_soft_fault(world.device, fault);
			CHECK(!err, "fault: %d", err);
		}
		if (rng(&seed) % 16 == 0)
			(void)sublet_device_collapse(world.device, 4 << 20);
		nap(SUBLET_MS);
	}
	return NULL;
}

static void world_open(bool faults)
{
	struct sublet_arena_options o = { SUBLET_OPTIONS(sublet_arena_options), .area_bytes = AREA,
					  .normal_bytes = NORMAL };
	struct sublet_soft_options soft = { SUBLET_OPTIONS(sublet_soft_options), .name = "soft0" };
	struct sublet_arena_info info = { SUBLET_OPTIONS(sublet_arena_info) };
	const char *seed = getenv("SEED");

	world = (struct world){ .faults = faults };
	stall.ns = 0;
	world.seed = seed ? strtoull(seed, NULL, 0) : now_ns() | 1;
	print_message("SEED=%llu\n", (unsigned long long)world.seed);
	assert_int_equal(sublet_arena_create(&o, &world.arena), 0);
	world.mm[0] = sublet_arena_mm(world.arena);
	assert_int_equal(sublet_arena_mm_add(world.arena, &world.mm[1]), 0);
	assert_int_equal(sublet_arena_info(world.arena, &info), 0);
	world.linear = info.linear;
	world.fd = info.fd;
	assert_int_equal(sublet_device_open_soft(world.arena, &soft, &world.device), 0);
}

/* Nothing is lost (G8), and the device saw no dead translation (G4). */
static void world_close(void)
{
	struct sublet_device_info info = { SUBLET_OPTIONS(sublet_device_info) };
	struct sublet_stats stats = { SUBLET_OPTIONS(sublet_stats) };
	struct sublet_pin_info pin;
	uint64_t next = 0;
	char text[256];

	assert_int_equal(sublet_device_info(world.device, &info), 0);
	print_message(
		"%llu writes, %llu short and %llu long-term pins (%llu refused), %llu jobs (%llu failed), "
		"%llu unmaps, %llu claims (%llu failed, the slowest took %llu ms), %llu moves; the slowest "
		"submit took %llu ms; the kernel stalled for %llu ms\n",
		(unsigned long long)world.writes, (unsigned long long)world.short_pins,
		(unsigned long long)world.long_pins, (unsigned long long)world.refused_pins,
		(unsigned long long)world.jobs, (unsigned long long)world.failed_jobs,
		(unsigned long long)world.unmaps, (unsigned long long)world.claims,
		(unsigned long long)world.failed_claims, (unsigned long long)(world.slowest_ns / SUBLET_MS),
		(unsigned long long)world.moves, (unsigned long long)(world.slowest_submit_ns / SUBLET_MS),
		(unsigned long long)(stalled() / SUBLET_MS));
	print_message("device: %llu binds, %llu rebinds, %llu evictions, %llu resets, %llu MiB collapsed, "
		      "%llu bad accesses\n",
		      (unsigned long long)info.binds, (unsigned long long)info.rebinds,
		      (unsigned long long)info.evictions, (unsigned long long)info.resets,
		      (unsigned long long)(info.collapsed_bytes >> 20),
		      (unsigned long long)info.bad_accesses);
	assert_int_equal(info.bad_accesses, 0);
	assert_true(info.evictions > 0 && info.rebinds > 0);
	assert_int_equal(sublet_pin_list(world.arena, &next, 1, &pin), 0);
	sublet_device_close(world.device);
	assert_int_equal(sublet_arena_stats(world.arena, &stats), 0);
	assert_int_equal(stats.area_free_bytes, AREA);
	assert_int_equal(stats.normal_free_bytes, NORMAL);
	sublet__zeroer_stop(sublet__instance_of(world.arena)); /* verify wants nobody else at work */
	if (sublet__arena_verify(world.arena, text, sizeof text))
		fail_msg("verify: %s", text);
	assert_int_equal(sublet_arena_destroy(world.arena), 0);
}

static void run(bool faults)
{
	static const struct {
		void *(*main)(void *arg);
		uintptr_t arg;
		bool only_faults;
	} threads[] = {
		{ writer, 0, false },    { writer, 1, false },   { pinner, 0, false },
		{ pinner, 1, false },    { pinner, 4, false },   { pinner, 5, false },
		{ dma, 8, false },       { unmapper, 9, false }, { claimer, 10, false },
		{ torturer, 11, false }, { canary, 12, false },  { stopper, 13, true },
	};
	enum { THREADS = sizeof threads / sizeof *threads };
	const char *seconds = getenv("STRESS_SECONDS");
	pthread_t thread[THREADS];

	world_open(faults);
	for (uint32_t i = 0; i < THREADS; i++)
		if (faults || !threads[i].only_faults)
			assert_int_equal(
				pthread_create(&thread[i], NULL, threads[i].main, (void *)threads[i].arg), 0);
	nap((seconds ? strtoull(seconds, NULL, 10) : 10) * SUBLET_SEC);
	world.stop = true;
	for (uint32_t i = 0; i < THREADS; i++)
		if (faults || !threads[i].only_faults)
			pthread_join(thread[i], NULL);
	assert_true(world.claims && world.jobs && world.unmaps && world.long_pins && world.short_pins &&
		    world.moves);
	world_close();
}

static void stress(void **unused)
{
	(void)unused;
	run(false);
}

static void stress_with_faults(void **unused)
{
	(void)unused;
	run(true);
	assert_true(world.failed_jobs > 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(stress), cmocka_unit_test(stress_with_faults) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
