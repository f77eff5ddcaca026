/* SPDX-License-Identifier: MIT */
/*
 * The arena of the adapters' tests, and what listens in.
 *
 * sublet_notifier_add is defined here too, so that the adapter's call finds this one first. It adds the notifier for
 * real, with a callback around the adapter's: it counts what the other library allocates in there, and can let the
 * test do something at the worst moment, when the cache was told and the memory has not moved yet.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "world.h"

#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct sublet_arena *world_arena;
struct sublet_mm *world_mm;
void (*world_after_callback)(const struct sublet_invalidation *inv);
_Atomic uint64_t world_allocations;
_Atomic uint64_t world_callbacks;

static _Thread_local bool is_in_callback;

/* ---- callbacks ---- */

#define WRAPPED_MAX 64u

struct wrapped {
	const struct sublet_notifier_ops *ops;
	void *ctx;
};
static struct wrapped wrapped[WRAPPED_MAX];
static _Atomic uint32_t wrapped_count;

static int wrapped_invalidate(void *ctx, const struct sublet_invalidation *inv)
{
	const struct wrapped *w = ctx;

	is_in_callback = true;
	int err = w->ops->invalidate(w->ctx, inv);
	is_in_callback = false;
	world_callbacks++;
	if (world_after_callback)
		world_after_callback(inv);
	return err;
}

void world_tell(const void *addr, uint64_t bytes)
{
	const struct sublet_invalidation inv = {
		.mm = world_mm, .addr = (uintptr_t)addr, .bytes = bytes, .event = SUBLET_NOTIFIER_MOVE
	};
	const struct wrapped *w = &wrapped[(wrapped_count - 1) % WRAPPED_MAX];

	(void)w->ops->invalidate(w->ctx, &inv);
}

static const struct sublet_notifier_ops wrapped_ops = { SUBLET_OPTIONS(sublet_notifier_ops),
							.invalidate = wrapped_invalidate };

int sublet_notifier_add(struct sublet_mm *mm, const void *addr, uint64_t bytes,
			const struct sublet_notifier_ops *ops, void *ctx, const char *owner,
			struct sublet_notifier *notifier)
{
	int (*real)(struct sublet_mm *, const void *, uint64_t, const struct sublet_notifier_ops *, void *,
		    const char *, struct sublet_notifier *);
	*(void **)&real = dlsym(RTLD_NEXT, "sublet_notifier_add");
	struct wrapped *w = &wrapped[wrapped_count++ % WRAPPED_MAX];

	*w = (struct wrapped){ ops, ctx };
	return real(mm, addr, bytes, &wrapped_ops, w, owner, notifier);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && !defined(__clang__)
void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t count, size_t bytes);
void *__libc_realloc(void *p, size_t bytes);
void *__libc_memalign(size_t align, size_t bytes);
void __libc_free(void *p);

void *malloc(size_t bytes)
{
	world_allocations += is_in_callback;
	return __libc_malloc(bytes);
}

void *calloc(size_t count, size_t bytes)
{
	world_allocations += is_in_callback;
	return __libc_calloc(count, bytes);
}

void *realloc(void *p, size_t bytes)
{
	world_allocations += is_in_callback;
	return __libc_realloc(p, bytes);
}

int posix_memalign(void **p, size_t align, size_t bytes)
{
	world_allocations += is_in_callback;
	*p = __libc_memalign(align, bytes);
	return *p ? 0 : ENOMEM;
}

void free(void *p)
{
	world_allocations += is_in_callback && p;
	__libc_free(p);
}
#endif

/* ---- memory ---- */

char *world_open(uint64_t normal_bytes)
{
	struct sublet_arena_options options = { SUBLET_OPTIONS(sublet_arena_options),
						.area_bytes = AREA_BYTES, .normal_bytes = normal_bytes };
	void *heap;
	int err = sublet_arena_create(&options, &world_arena);

	if (err) {
		print_message("no arena: %s\n", strerror(-err));
		return NULL;
	}
	world_mm = sublet_arena_mm(world_arena);
	assert_int_equal(sublet_map(world_mm, HEAP_BYTES, SUBLET_MOVABLE, &heap), 0);
	memset(heap, 1, HEAP_BYTES);
	return heap;
}

void world_close(void)
{
	assert_int_equal(sublet_arena_destroy(world_arena), 0);
	world_arena = NULL;
	world_mm = NULL;
}

char *world_map_outside(uint64_t bytes)
{
	struct sublet_pin pin;
	void *memory;

	assert_int_equal(sublet_map(world_mm, bytes, SUBLET_MOVABLE, &memory), 0);
	memset(memory, 2, bytes);
	/* A long-term pin moves it out, and nothing moves it back. */
	assert_int_equal(
		sublet_pin(world_mm, memory, bytes, SUBLET_PIN_READ | SUBLET_PIN_LONGTERM, NULL, &pin), 0);
	assert_int_equal(sublet_unpin(&pin), 0);
	return memory;
}

void world_claim_all(void)
{
	struct sublet_claim_options how = { SUBLET_OPTIONS(sublet_claim_options),
					    .deadline_ns = 20 * SUBLET_SEC };
	struct sublet_claim claim;

	assert_int_equal(sublet_claim(world_arena, AREA_BYTES, &how, &claim), 0);
	assert_int_equal(sublet_release(world_arena, &claim), 0);
}

uint32_t world_churn(uint32_t claims)
{
	struct sublet_claim_options how = { SUBLET_OPTIONS(sublet_claim_options),
					    .flags = SUBLET_CLAIM_DEAREST, .deadline_ns = 20 * SUBLET_SEC };
	uint32_t moved = 0;
	void *filler;

	assert_int_equal(sublet_map(world_mm, AREA_BYTES - HEAP_BYTES, SUBLET_MOVABLE, &filler), 0);
	for (uint32_t i = 0; i < claims; i++) {
		struct sublet_claim claim;
		assert_int_equal(sublet_claim(world_arena, AREA_BYTES / 2, &how, &claim), 0);
		moved += claim.moved_bytes > 0;
		assert_int_equal(sublet_release(world_arena, &claim), 0);
	}
	return moved;
}

void world_refill(char *addr, uint64_t bytes)
{
	assert_int_equal(sublet_decommit(world_mm, addr, bytes), 0);
	assert_int_equal(sublet_commit(world_mm, addr, bytes, 0), 0);
	memset(addr, 3, bytes);
}

uint64_t world_notifiers(void)
{
	struct sublet_notifier_stats stats = { SUBLET_OPTIONS(sublet_notifier_stats) };

	assert_int_equal(sublet_notifier_stats(world_mm, &stats), 0);
	return stats.registered;
}

struct place world_place(const void *addr, uint64_t bytes)
{
	struct place p = { 0 };

	p.count = sublet_mm_extents(world_mm, addr, bytes, 0, p.extents, PLACE_MAX);
	return p;
}

bool world_place_equal(const struct place *a, const struct place *b)
{
	return a->count == b->count && a->count > 0 &&
	       !memcmp(a->extents, b->extents, (size_t)a->count * sizeof a->extents[0]);
}

/* ---- time ---- */

uint64_t world_now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * SUBLET_SEC + (uint64_t)t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

uint64_t world_median(uint64_t *values, uint32_t count)
{
	qsort(values, count, sizeof *values, by_value);
	return values[count / 2];
}

/* ---- hangs ---- */

static void watchdog_bark(int signal)
{
	static const char text[] = "the test hangs\n";

	(void)signal;
	if (write(STDERR_FILENO, text, sizeof text - 1) < 0)
		_exit(2);
	_exit(1);
}

void world_watchdog(unsigned int seconds)
{
	signal(SIGALRM, watchdog_bark);
	alarm(seconds);
}
