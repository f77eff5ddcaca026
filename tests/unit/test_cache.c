/* SPDX-License-Identifier: MIT */
/* core/cache.c: caches of units, and their recall by a claim (order R1: a cached folio is never missed). */
#include "fixture.h"

enum { UNIT_ORDER = 4, UNIT_FRAMES = 16 };

static const uint32_t area_only[ZONES] = { ZONE_AREA, ZONE_AREA };

static uint32_t cached_in(const struct sublet_arena *arena, uint32_t first, uint32_t end)
{
	uint32_t n = 0;
	for (uint32_t pfn = first; pfn < end; pfn++) {
		uint32_t word = a32_load_acquire(&arena->frames[pfn].word);
		n += (word & FRAME_HEAD) && word_state(word) == FRAME_CACHED;
	}
	return n;
}

/* A unit that is put is cached, is taken again by the same slot, and counts as free. */
static void cache_put_take(void **unused)
{
	static struct fake f;
	(void)unused;

	fixture_open(&f, NULL);
	fake_thread_slot = 3;
	uint32_t pfn = sublet__folio_take(f.arena, UNIT_ORDER, area_only);
	assert_true(cached_in(f.arena, 0, f.options.area_frames) > 0); /* a batch was fetched */
	sublet__frames_put(f.arena, pfn, UNIT_FRAMES, ACCOUNT_MOVABLE);
	assert_int_equal(sublet__folio_take(f.arena, UNIT_ORDER, area_only), pfn);
	sublet__frames_put(f.arena, pfn, UNIT_FRAMES, ACCOUNT_MOVABLE);
	fixture_verify(&f);
	assert_int_equal(stats_of(&f).area_free_bytes, stats_of(&f).area_bytes);
	fake_thread_slot = -1;
	fixture_close(&f);
}

/* More puts than a cache holds overflow to the zone; nothing is lost (G8). */
static void cache_overflow(void **unused)
{
	static struct fake f;
	uint32_t pfn[100];
	(void)unused;

	fixture_open(&f, NULL);
	fake_thread_slot = 5;
	for (uint32_t i = 0; i < 100; i++)
		pfn[i] = sublet__folio_take(f.arena, UNIT_ORDER, area_only);
	for (uint32_t i = 0; i < 100; i++)
		sublet__frames_put(f.arena, pfn[i], UNIT_FRAMES, ACCOUNT_MOVABLE);
	assert_true(cached_in(f.arena, 0, f.options.area_frames) <= ENGINE_CACHE_FOLIOS + 1);
	fixture_verify(&f);
	sublet__cache_drain(f.arena);
	assert_int_equal(cached_in(f.arena, 0, f.options.area_frames), 0);
	assert_int_equal(f.arena->zone[ZONE_AREA].free_frames, f.options.area_frames);
	fake_thread_slot = -1;
	fixture_close(&f);
}

/* Folios hidden in the caches of many slots: a window over all of the area finds every one. */
static void cache_recall_all_slots(void **unused)
{
	static struct fake f;
	struct sublet_claim claim;
	(void)unused;

	fixture_open(&f, NULL);
	for (int slot = 0; slot < 40; slot++) {
		fake_thread_slot = slot;
		uint32_t pfn = sublet__folio_take(f.arena, UNIT_ORDER, area_only);
		sublet__frames_put(f.arena, pfn, UNIT_FRAMES, ACCOUNT_MOVABLE);
	}
	fake_thread_slot = -1;
	assert_true(cached_in(f.arena, 0, f.options.area_frames) > 100);
	assert_int_equal(claim_take(&f, bytes_of(&f, f.options.area_frames), NULL, &claim), 0);
	assert_int_equal(claim.moved_bytes, 0);
	for (uint32_t c = 0; c < ENGINE_CACHES; c++) /* open again */
		assert_int_equal(a32_load_acquire(&f.arena->cache[c].top), 0);
	claim_give(&f, &claim);
	fixture_close(&f);
}

/* A unit freed inside an isolated pageblock does not enter a cache, even outside the window. */
static void cache_refuses_isolated(void **unused)
{
	static struct fake f;
	(void)unused;

	fixture_open(&f, NULL);
	uint32_t pfn = sublet__folio_take(f.arena, UNIT_ORDER, area_only);
	struct sublet__isolation w = { .first_pfn = pfn, .end_pfn = pfn + 1 };
	sublet__isolate(f.arena, &w);
	sublet__cache_recall(f.arena, w.first_pfn, w.end_pfn);
	sublet__frames_put(f.arena, pfn, UNIT_FRAMES, ACCOUNT_MOVABLE);
	assert_int_equal(sublet__isolated_frames(f.arena, &w), 1);
	assert_int_equal(cached_in(f.arena, pfn, pfn + UNIT_FRAMES), 0);
	sublet__isolate_undo(f.arena, &w);
	fixture_close(&f);
}

/* Free memory in the caches of other threads is still found by whoever needs the last of it (G10). */
static void cache_last_memory(void **unused)
{
	static struct fake f;
	void *addr[14];
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .area_frames = 512, .normal_frames = FAKE_NORMAL_NONE });
	fake_thread_slot = 1;
	for (uint32_t i = 0; i < 14; i++)
		assert_int_equal(sublet_map(f.engine_mm[0], UNIT, SUBLET_MOVABLE, &addr[i]), 0);
	for (uint32_t i = 0; i < 14; i++)
		assert_int_equal(sublet_unmap(f.engine_mm[0], addr[i], UNIT), 0);
	fake_thread_slot = 2;
	assert_true(cached_in(f.arena, 0, 512) > 7);
	fill(&f, 0, map_pages(&f, 512, SUBLET_MOVABLE), 512, 1);
	fake_thread_slot = -1;
	fixture_close(&f);
}

struct churn {
	struct fake *f;
	_Atomic bool stop;
	_Atomic uint64_t rounds;
};

static void *churn_main(void *arg)
{
	struct churn *c = arg;
	uint32_t held[8], n = 0;
	uint64_t state = wall_ns();

	while (!atomic_load(&c->stop)) {
		if (n < 8 && (rng(&state) & 1)) {
			held[n] = sublet__folio_take(c->f->arena, UNIT_ORDER, area_only);
			n += held[n] != ENGINE_NONE;
		} else if (n) {
			sublet__frames_put(c->f->arena, held[--n], UNIT_FRAMES, ACCOUNT_MOVABLE);
		}
		atomic_fetch_add_explicit(&c->rounds, 1, memory_order_relaxed);
	}
	while (n)
		sublet__frames_put(c->f->arena, held[--n], UNIT_FRAMES, ACCOUNT_MOVABLE);
	return NULL;
}

/* Folios of [first, end) that lie in a cache, whatever their frames say at the moment. */
static uint32_t hidden_in(struct fake *f, uint32_t first, uint32_t end)
{
	uint32_t n = 0;

	for (uint32_t c = 0; c < ENGINE_CACHES; c++) {
		struct sublet__cache *cache = &f->arena->cache[c];
		uint32_t top = a32_load_acquire(&cache->top);
		n += top > first && top <= end;
		spin_take(&f->arena->platform, &cache->lock);
		for (uint32_t i = 0; i < cache->count; i++)
			n += cache->pfn[i] >= first && cache->pfn[i] < end;
		spin_drop(&cache->lock);
	}
	return n;
}

/* R1 under load: after isolate and recall no folio of the window is in a cache, and none comes into one. */
static void cache_recall_race(void **unused)
{
	static struct fake f;
	struct churn churn = { .f = &f };
	pthread_t thread[3];
	uint64_t until = wall_ns() + soak_ns(1.0), state = seed_get("cache_recall_race");
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .area_frames = 2 * 512 });
	threads_begin();
	for (uint32_t i = 0; i < 3; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, churn_main, &churn), 0);
	while (wall_ns() < until) {
		uint32_t first = below(&state, 1000), end = first + 1 + below(&state, 1024 - first - 1);
		struct sublet__isolation w = { .first_pfn = first, .end_pfn = end };
		sublet__isolate(f.arena, &w);
		sublet__cache_recall(f.arena, first, end);
		for (uint32_t look = 0; look < 3; look++)
			assert_int_equal(hidden_in(&f, first, end), 0);
		sublet__isolate_undo(f.arena, &w);
	}
	atomic_store(&churn.stop, true);
	for (uint32_t i = 0; i < 3; i++)
		pthread_join(thread[i], NULL);
	threads_end();
	print_message("%llu takes and puts\n", (unsigned long long)atomic_load(&churn.rounds));
	fixture_close(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(cache_put_take),         cmocka_unit_test(cache_overflow),
		cmocka_unit_test(cache_recall_all_slots), cmocka_unit_test(cache_refuses_isolated),
		cmocka_unit_test(cache_last_memory),      cmocka_unit_test(cache_recall_race),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
