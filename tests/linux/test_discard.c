/* SPDX-License-Identifier: MIT */
/*
 * Discardable memory in pieces, on real memory: whatever the pieces are, what was unlocked can be dropped, what is locked
 * keeps its bytes, and what a call did not do it says (sublet/map.h).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <sublet/arena.h>
#include <sublet/claim.h>
#include <sublet/map.h>
#include <sublet/pin.h>
#include <sublet/stats.h>

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define AREA  (64 * SUBLET_MIB)
#define CACHE (32 * SUBLET_MIB)
#define UNIT  (64 * SUBLET_KIB)

static struct sublet_arena *arena;
static struct sublet_mm *mm;
static char *cache;

static void open_arena(enum sublet_backing backing, uint64_t mapping_limit)
{
	struct sublet_arena_options o = { SUBLET_OPTIONS(sublet_arena_options), .area_bytes = AREA,
					  .normal_bytes = AREA, .backing = backing,
					  .mapping_limit = mapping_limit };
	void *addr;

	assert_int_equal(sublet_arena_create(&o, &arena), 0);
	mm = sublet_arena_mm(arena);
	assert_int_equal(sublet_map(mm, CACHE, SUBLET_DISCARDABLE, &addr), 0);
	cache = addr;
	memset(cache, 'c', CACHE);
}

static uint64_t discardable(void)
{
	struct sublet_stats stats = { SUBLET_OPTIONS(sublet_stats) };

	assert_int_equal(sublet_arena_stats(arena, &stats), 0);
	return stats.area_discardable_bytes;
}

/* Each size of a piece, on each backing: all of it is unlocked, and half of it locked again. */
static void test_pieces(void **unused)
{
	static const enum sublet_backing backing[] = { SUBLET_BACKING_AUTO, SUBLET_BACKING_MEMFD };
	static const uint64_t piece[] = { UNIT,      3 * UNIT,       4 * UNIT,       SUBLET_MIB,
					  33 * UNIT, 2 * SUBLET_MIB, 4 * SUBLET_MIB, CACHE };
	struct sublet_claim claim;
	(void)unused;

	for (size_t k = 0; k < sizeof piece / sizeof *piece * 2; k++) {
		uint64_t bytes = piece[k / 2], locked = 0;
		open_arena(backing[k % 2], 0);
		for (uint64_t at = 0; at < CACHE; at += bytes)
			assert_int_equal(sublet_unlock(mm, cache + at,
						       bytes < CACHE - at ? bytes : CACHE - at),
					 SUBLET_UNLOCKED);
		assert_int_equal(discardable(), CACHE);
		for (uint64_t at = 0; at < CACHE; at += 2 * bytes) {
			uint64_t some = bytes < CACHE - at ? bytes : CACHE - at;
			assert_int_equal(sublet_lock(mm, cache + at, some), SUBLET_INTACT);
			locked += some;
		}
		assert_int_equal(discardable(), CACHE - locked);
		assert_int_equal(sublet_claim(arena, AREA, NULL, &claim), 0);
		assert_int_equal(claim.dropped_bytes, CACHE - locked);
		assert_int_equal(sublet_release(arena, &claim), 0);
		for (uint64_t at = 0; at < CACHE; at += bytes) {
			uint64_t some = bytes < CACHE - at ? bytes : CACHE - at;
			bool kept = at / bytes % 2 == 0;
			assert_int_equal(sublet_lock(mm, cache + at, some),
					 kept ? SUBLET_INTACT : SUBLET_DISCARDED);
			for (uint64_t i = 0; i < some; i += 511)
				assert_int_equal(cache[at + i], kept ? 'c' : 0);
		}
		assert_int_equal(sublet_arena_destroy(arena), 0);
	}
}

/* Nothing is said to be unlocked that is not. */
static void test_what_is_kept(void **unused)
{
	struct sublet_pin pin;
	(void)unused;

	open_arena(SUBLET_BACKING_AUTO, 0);
	assert_int_equal(sublet_unlock(mm, cache, 4096), -EINVAL);
	assert_int_equal(sublet_unlock(mm, cache + UNIT / 2, UNIT), -EINVAL);
	assert_int_equal(sublet_unlock(mm, cache, UNIT - 1), -EINVAL);
	assert_int_equal(discardable(), 0);
	assert_int_equal(sublet_pin(mm, cache + UNIT, 1, SUBLET_PIN_READ, "test", &pin), 0);
	assert_int_equal(sublet_unlock(mm, cache, CACHE), SUBLET_KEPT);
	assert_int_equal(discardable(), CACHE - 2 * SUBLET_MIB);
	assert_int_equal(cache[2 * SUBLET_MIB - 1], 'c');
	assert_int_equal(sublet_unpin(&pin), 0);
	assert_int_equal(sublet_unlock(mm, cache, CACHE), SUBLET_UNLOCKED);
	assert_int_equal(discardable(), CACHE);
	assert_int_equal(sublet_arena_destroy(arena), 0);

	/* So many pieces take more kernel mappings than may be used. */
	uint64_t kept = 0;
	open_arena(SUBLET_BACKING_AUTO, 100);
	for (uint64_t at = 0; at < CACHE; at += 2 * UNIT) {
		int answer = sublet_unlock(mm, cache + at, UNIT);
		assert_in_range(answer, SUBLET_UNLOCKED, SUBLET_KEPT);
		kept += answer == SUBLET_KEPT;
		if (answer == SUBLET_KEPT)
			assert_int_equal(cache[at], 'c');
	}
	assert_in_range(kept, 1, CACHE / UNIT / 2 - 10);
	assert_int_equal(discardable(), CACHE / 2 - kept * UNIT);
	assert_int_equal(sublet_arena_destroy(arena), 0);
}

static atomic_bool stop;

static void *claimer(void *unused)
{
	struct sublet_claim_options o = { SUBLET_OPTIONS(sublet_claim_options),
					  .flags = SUBLET_CLAIM_DEAREST };
	struct sublet_claim claim;
	(void)unused;

	for (uint64_t n = 1; !atomic_load(&stop); n++)
		if (!sublet_claim(arena, n % 16 * SUBLET_MIB + 4096, &o, &claim)) {
			memset(claim.addr, 'd', claim.bytes);
			if (sublet_release(arena, &claim))
				abort();
		}
	return NULL;
}

/* A cache with slots of 256 KiB at work, while a device takes windows and gives them back. */
static void test_cache_under_claims(void **unused)
{
	enum { SLOT = 256 * 1024, SLOTS = 32 * 4, ROUNDS = 1000, MOST = 100 * ROUNDS };
	uint32_t lost = 0, state = 1;
	pthread_t thread;
	(void)unused;

	open_arena(SUBLET_BACKING_AUTO, 0);
	atomic_store(&stop, false);
	assert_int_equal(pthread_create(&thread, NULL, claimer, NULL), 0);
	for (uint32_t i = 0; i < SLOTS; i++) {
		memset(cache + i * SLOT, (int)i, SLOT);
		assert_true(sublet_unlock(mm, cache + i * SLOT, SLOT) >= 0);
	}
	for (uint32_t n = 0; n < ROUNDS || (!lost && n < MOST); n++) {
		state = state * 1103515245 + 12345;
		uint32_t i = state >> 16 & (SLOTS - 1);
		char *slot = cache + i * SLOT;
		int answer = sublet_lock(mm, slot, SLOT);
		if (answer == -ENOMEM)
			continue; /* the area is claimed */
		assert_in_range(answer, SUBLET_INTACT, SUBLET_DISCARDED);
		for (uint32_t b = 0; b < SLOT; b += 4096)
			assert_true(slot[b] == (char)i || (answer == SUBLET_DISCARDED && !slot[b]));
		lost += answer == SUBLET_DISCARDED;
		memset(slot, (int)i, SLOT);
		assert_true(sublet_unlock(mm, slot, SLOT) >= 0);
	}
	atomic_store(&stop, true);
	pthread_join(thread, NULL);
	print_message("%u times a slot had been dropped\n", lost);
	assert_true(lost);
	assert_int_equal(sublet_arena_destroy(arena), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_pieces),
		cmocka_unit_test(test_what_is_kept),
		cmocka_unit_test(test_cache_under_claims),
	};
	return cmocka_run_group_tests_name("linux discard", tests, NULL, NULL);
}
