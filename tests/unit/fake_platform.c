/* SPDX-License-Identifier: MIT */
/* The SIMULATED platform's own half: time, waiting, memory, frames, threads. See fake_platform.h. */
#include "fake_platform.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define PARK_BUCKETS 64u
#define WORKERS_MAX  8u
#define RESERVE_MAPPED \
	(1u << 20) /* bytes from which on a reservation is committed on first touch, as it should */
#define PARK_VIRTUAL_NS 2000000u /* of real time, for others to wake us; then the clock goes on */

_Thread_local int fake_thread_blocked;
_Thread_local int fake_thread_slot = -1;

static struct {
	pthread_mutex_t lock;
	pthread_cond_t wake;
} park_bucket[PARK_BUCKETS];
static pthread_once_t park_once = PTHREAD_ONCE_INIT;
static _Atomic uint32_t slot_next;

static void park_setup(void)
{
	for (uint32_t i = 0; i < PARK_BUCKETS; i++) {
		pthread_condattr_t attr;
		pthread_condattr_init(&attr);
		pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
		pthread_mutex_init(&park_bucket[i].lock, NULL);
		pthread_cond_init(&park_bucket[i].wake, &attr);
		pthread_condattr_destroy(&attr);
	}
}

void fake_violation(struct fake *fake, const char *what, uint64_t where)
{
	if (atomic_fetch_add(&fake->violations, 1) == 0)
		snprintf(fake->text, sizeof fake->text, "%s at %llu", what, (unsigned long long)where);
	if (getenv("FAKE_ABORT")) {
		fprintf(stderr, "fake: %s at %llu\n", what, (unsigned long long)where);
		abort();
	}
}

int fake_enter(struct fake *fake, enum fake_op op, struct fake_mm *mm, uint32_t vpn, uint32_t pages)
{
	atomic_fetch_add_explicit(&fake->calls[op], 1, memory_order_relaxed);
	if (fake->hook)
		fake->hook(fake->hook_arg, op, mm, vpn, pages);
	if (!(atomic_load_explicit(&fake->fail_mask, memory_order_relaxed) & (1u << op)))
		return 0;
	int64_t n = atomic_fetch_add(&fake->fail_count, 1) + 1, at = atomic_load(&fake->fail_at);
	return at && (n == at || (n > at && fake->fail_persistent)) ? fake->fail_errno : 0;
}

void fake_fail(struct fake *fake, uint32_t mask, int64_t at, int error, bool persistent)
{
	fake->fail_errno = error;
	atomic_store(&fake->fail_persistent, persistent);
	atomic_store(&fake->fail_count, 0);
	atomic_store(&fake->fail_at, at);
	atomic_store(&fake->fail_mask, mask);
}

bool fake_fail_end(struct fake *fake)
{
	int64_t at = atomic_exchange(&fake->fail_at, 0);
	atomic_store(&fake->fail_mask, 0);
	return at && atomic_load(&fake->fail_count) >= at;
}

/* ---- time and waiting ---- */

static uint64_t real_now_ns(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static uint64_t ops_now_ns(void *ctx)
{
	struct fake *fake = ctx;
	return fake->options.virtual_time ? atomic_fetch_add(&fake->clock_ns, 100) : real_now_ns();
}

static void ops_sleep_ns(void *ctx, uint64_t ns)
{
	struct fake *fake = ctx;
	struct timespec ts = { (time_t)(ns / 1000000000u), (long)(ns % 1000000000u) };

	fake_enter(fake, FAKE_SLEEP, NULL, 0, 0);
	if (fake_thread_blocked)
		fake_violation(fake, "sleep between block and wake (L1)", 0);
	if (fake->options.virtual_time)
		atomic_fetch_add(&fake->clock_ns, ns);
	else
		nanosleep(&ts, NULL);
}

static uint32_t bucket_of_word(const void *word)
{
	return (uint32_t)((uintptr_t)word / 4 * 2654435761u >> 16) % PARK_BUCKETS;
}

static void ops_park(void *ctx, const void *word, uint32_t expected, uint64_t timeout_ns)
{
	const _Atomic uint32_t *at = word;
	struct fake *fake = ctx;
	uint32_t b = bucket_of_word(word);

	if (fake_thread_blocked)
		fake_violation(ctx, "lock waited for between block and wake (L1)", 0);
	pthread_mutex_lock(&park_bucket[b].lock);
	if (atomic_load(at) == expected) {
		if (timeout_ns == UINT64_MAX) {
			pthread_cond_wait(&park_bucket[b].wake, &park_bucket[b].lock);
		} else {
			bool is_virtual = fake->options.virtual_time;
			uint64_t wait = is_virtual && timeout_ns > PARK_VIRTUAL_NS ? PARK_VIRTUAL_NS
										   : timeout_ns;
			uint64_t until = real_now_ns() + wait;
			struct timespec ts = { (time_t)(until / 1000000000u), (long)(until % 1000000000u) };
			int timed_out =
				pthread_cond_timedwait(&park_bucket[b].wake, &park_bucket[b].lock, &ts);
			if (is_virtual && timed_out)
				atomic_fetch_add(&fake->clock_ns, timeout_ns);
		}
	}
	pthread_mutex_unlock(&park_bucket[b].lock);
}

static void ops_unpark(void *ctx, const void *word, uint32_t count)
{
	uint32_t b = bucket_of_word(word);

	(void)ctx, (void)count; /* buckets are shared: wake all, they look again */
	pthread_mutex_lock(&park_bucket[b].lock);
	pthread_cond_broadcast(&park_bucket[b].wake);
	pthread_mutex_unlock(&park_bucket[b].lock);
}

static uint32_t ops_thread_slot(void *ctx)
{
	static _Thread_local uint32_t own;

	fake_enter(ctx, FAKE_SLOT, NULL, 0, 0);
	if (fake_thread_slot >= 0)
		return (uint32_t)fake_thread_slot;
	if (!own)
		own = atomic_fetch_add(&slot_next, 1) + 1;
	return own;
}

/* ---- memory ---- */

static void *ops_reserve(void *ctx, size_t bytes)
{
	struct fake *fake = ctx;
	size_t rounded = (bytes + 63) / 64 * 64;
	void *memory;

	if (fake_enter(fake, FAKE_RESERVE, NULL, 0, 0))
		return NULL;
	if (fake_thread_blocked)
		fake_violation(fake, "memory reserved between block and wake (L1)", 0);
	if (bytes >= RESERVE_MAPPED) {
		memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		memory = memory == MAP_FAILED ? NULL : memory;
	} else {
		memory = aligned_alloc(64, rounded);
		if (memory)
			memset(memory, 0, rounded);
	}
	if (memory)
		atomic_fetch_add(&fake->reserved_bytes, (int64_t)bytes);
	return memory;
}

static void ops_unreserve(void *ctx, void *memory, size_t bytes)
{
	struct fake *fake = ctx;
	atomic_fetch_sub(&fake->reserved_bytes, (int64_t)bytes);
	if (bytes >= RESERVE_MAPPED)
		munmap(memory, bytes);
	else
		free(memory);
}

/* ---- frames ---- */

static bool frames_ok(struct fake *fake, const char *what, uint32_t pfn, uint32_t frames)
{
	if (frames && pfn < fake->frames && frames <= fake->frames - pfn)
		return true;
	fake_violation(fake, what, pfn);
	return false;
}

/* Nobody uses a frame that is about to be written by the engine. */
static void frame_must_be_free(struct fake *fake, const char *what, uint32_t pfn)
{
	if (atomic_load(&fake->owner[pfn]) || atomic_load(&fake->child[pfn]) || atomic_load(&fake->held[pfn]))
		fake_violation(fake, what, pfn);
}

static void ops_copy(void *ctx, uint32_t dst_pfn, uint32_t src_pfn, uint32_t frames)
{
	struct fake *fake = ctx;

	fake_enter(fake, FAKE_COPY, NULL, dst_pfn, frames);
	if (!frames_ok(fake, "copy from frames that are not there", src_pfn, frames) ||
	    !frames_ok(fake, "copy to frames that are not there", dst_pfn, frames))
		return;
	if (dst_pfn < src_pfn + frames && src_pfn < dst_pfn + frames)
		fake_violation(fake, "copy of overlapping frames", src_pfn);
	for (uint32_t i = 0; i < frames; i++) {
		frame_must_be_free(fake, "copy over a frame in use", dst_pfn + i);
		if (!(atomic_load(&fake->owner[src_pfn + i]) & FAKE_OWNER_PAGE))
			fake_violation(fake, "copy of a frame that is not mapped", src_pfn + i);
		for (uint32_t w = 0; w < FAKE_WORDS; w++)
			fake_frame_write(fake, dst_pfn + i, w, fake_frame_read(fake, src_pfn + i, w));
	}
}

static void ops_zero(void *ctx, uint32_t pfn, uint32_t frames, bool warm)
{
	struct fake *fake = ctx;

	fake_enter(fake, FAKE_ZERO, NULL, pfn, frames);
	atomic_fetch_add(warm ? &fake->zeroed_warm : &fake->zeroed_cold, frames);
	if (!frames_ok(fake, "zero of frames that are not there", pfn, frames))
		return;
	for (uint32_t i = 0; i < frames; i++) {
		frame_must_be_free(fake, "zero of a frame in use", pfn + i);
		for (uint32_t w = 0; w < FAKE_WORDS; w++)
			fake_frame_write(fake, pfn + i, w, 0);
	}
}

uint64_t fake_frame_read(struct fake *fake, uint32_t pfn, uint32_t word)
{
	return atomic_load_explicit(&fake->word[(size_t)pfn * FAKE_WORDS + word], memory_order_relaxed);
}

void fake_frame_write(struct fake *fake, uint32_t pfn, uint32_t word, uint64_t value)
{
	atomic_store_explicit(&fake->word[(size_t)pfn * FAKE_WORDS + word], value, memory_order_relaxed);
}

void fake_own(struct fake *fake, uint32_t pfn, uint32_t frames, uint32_t tag)
{
	for (uint32_t i = pfn; i < pfn + frames; i++) {
		uint64_t old = atomic_exchange(&fake->owner[i], tag ? FAKE_OWNER_CLAIM | tag : 0);
		if (tag ? old : !(old & FAKE_OWNER_CLAIM))
			fake_violation(fake,
				       tag ? "claim of a frame in use" : "release of a frame not claimed", i);
		if (atomic_load(&fake->child[i]) || atomic_load(&fake->held[i]))
			fake_violation(fake, "claim of a frame that a child or a device holds", i);
	}
}

/* ---- threads ---- */

struct worker {
	pthread_t thread;
	void (*fn)(void *arg, uint32_t worker);
	void *arg;
	uint32_t index;
};

static void *worker_main(void *arg)
{
	struct worker *w = arg;
	w->fn(w->arg, w->index);
	return NULL;
}

static void ops_parallel(void *ctx, uint32_t threads, void (*fn)(void *arg, uint32_t worker), void *arg)
{
	struct fake *fake = ctx;
	struct worker worker[WORKERS_MAX];
	uint32_t started = 1;

	atomic_fetch_add(&fake->parallel_calls, 1);
	if (pthread_mutex_trylock(&fake->workers_lock)) {
		fn(arg, 0);
		return;
	}
	for (; started < threads && started < WORKERS_MAX; started++) {
		worker[started] = (struct worker){ .fn = fn, .arg = arg, .index = started };
		if (pthread_create(&worker[started].thread, NULL, worker_main, &worker[started]))
			break;
	}
	fn(arg, 0);
	for (uint32_t i = 1; i < started; i++)
		pthread_join(worker[i].thread, NULL);
	pthread_mutex_unlock(&fake->workers_lock);
}

static const struct sublet__platform_ops platform_ops = {
	.now_ns = ops_now_ns,
	.coarse_ns = ops_now_ns,
	.sleep_ns = ops_sleep_ns,
	.park = ops_park,
	.unpark = ops_unpark,
	.thread_slot = ops_thread_slot,
	.reserve = ops_reserve,
	.unreserve = ops_unreserve,
	.copy = ops_copy,
	.zero = ops_zero,
	.parallel = ops_parallel,
};

/* ---- open, close ---- */

static void defaults_fill(struct fake_options *o)
{
	uint32_t block;

	o->frame_shift = o->frame_shift ? o->frame_shift : 12;
	block = o->frame_shift < 21 ? 1u << (21 - o->frame_shift) : 1;
	o->area_frames = o->area_frames ? o->area_frames : 8 * block;
	o->normal_frames = o->normal_frames ? o->normal_frames : 2 * block;
	o->normal_frames = o->normal_frames == FAKE_NORMAL_NONE ? 0 : o->normal_frames;
	o->run_pages_max = o->run_pages_max ? o->run_pages_max : 64;
	o->workers = o->workers ? o->workers : 1;
	o->mm_pages = o->mm_pages ? o->mm_pages : 4 * o->area_frames;
	o->mms = o->mms ? o->mms : 1;
	o->mapping_limit = o->mapping_limit ? o->mapping_limit : 1u << 24;
}

static int engine_open(struct fake *fake)
{
	const struct fake_options *o = &fake->options;
	struct sublet__arena_config config = {
		.platform = fake->platform,
		.area_frames = o->area_frames,
		.normal_frames = o->normal_frames,
		.zeroed = !o->dirty_zero_frames,
	};
	int err = sublet__arena_init(&config, &fake->arena);

	for (uint32_t i = 0; i < o->mms && !err; i++) {
		struct sublet__mm_config mm = {
			.ops = &fake_mm_ops,
			.ctx = &fake->mm[i],
			.base = fake->mm[i].base,
			.pages = o->mm_pages,
			.features = o->stays      ? SUBLET__MM_STAYS
				    : o->no_track ? 0
						  : SUBLET__MM_TRACK,
			.mapping_limit = o->mapping_limit,
		};
		err = sublet__mm_create(fake->arena, &mm, &fake->engine_mm[i]);
	}
	return err;
}

int fake_open(struct fake *fake, const struct fake_options *options)
{
	struct fake_options *o = &fake->options;
	int err = 0;

	pthread_once(&park_once, park_setup);
	memset(fake, 0, sizeof *fake);
	*o = *options;
	defaults_fill(o);
	fake->frames = o->area_frames + o->normal_frames;
	fake->word = calloc((size_t)fake->frames * FAKE_WORDS, sizeof *fake->word);
	fake->owner = calloc(fake->frames, sizeof *fake->owner);
	fake->held = calloc(fake->frames, sizeof *fake->held);
	fake->child = calloc(fake->frames, sizeof *fake->child);
	pthread_mutex_init(&fake->workers_lock, NULL);
	atomic_store(&fake->clock_ns, 1000000);
	fake->platform = (struct sublet__platform){ &platform_ops, fake, o->frame_shift, o->run_pages_max,
						    o->workers };
	if (!fake->word || !fake->owner || !fake->held || !fake->child)
		err = -ENOMEM;
	for (size_t i = 0; !err && o->dirty_zero_frames && i < (size_t)fake->frames * FAKE_WORDS; i++)
		atomic_store(&fake->word[i], 0xdeadbeefdeadbeefu);
	for (uint32_t i = 0; i < o->mms && !err; i++)
		err = fake_mm_open(fake, i);
	return err ? err : engine_open(fake);
}

void fake_close(struct fake *fake)
{
	if (fake->arena)
		sublet__arena_fini(fake->arena);
	for (uint32_t i = 0; i < FAKE_MMS_MAX; i++)
		fake_mm_close(&fake->mm[i]);
	pthread_mutex_destroy(&fake->workers_lock);
	free((void *)(uintptr_t)fake->word);
	free((void *)(uintptr_t)fake->owner);
	free((void *)(uintptr_t)fake->held);
	free((void *)(uintptr_t)fake->child);
}
