/* SPDX-License-Identifier: MIT */
/* core/stats.c: histograms against sorted lists, snapshots of older and newer callers, pageblocks. */
#include "fixture.h"

#include <sublet/notifier.h>

#include <string.h>

static int compare_u64(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return x < y ? -1 : x > y;
}

/* Floors ascend, and every value lies between the floor of its bucket and the next one. */
static void stats_buckets(void **unused)
{
	uint64_t state = seed_get("stats_buckets");
	(void)unused;

	for (uint32_t i = 0; i + 1 < SUBLET_HISTOGRAM_BUCKETS; i++)
		assert_true(sublet_histogram_floor_ns(i) < sublet_histogram_floor_ns(i + 1));
	for (uint32_t n = 0; n < 20000; n++) {
		struct sublet__histogram h;
		uint64_t ns = n < 5000 ? n : rng(&state) >> below(&state, 64);
		uint32_t bucket = 0;
		memset(&h, 0, sizeof h);
		sublet__histogram_add(&h, ns);
		while (!a64_load_relaxed(&h.bucket[bucket]))
			bucket++;
		assert_true(ns >= sublet_histogram_floor_ns(bucket));
		if (bucket + 1 < SUBLET_HISTOGRAM_BUCKETS)
			assert_true(ns < sublet_histogram_floor_ns(bucket + 1));
	}
}

/* A percentile is at least the true one, and at most a quarter of a power of two above it. */
static void stats_percentiles(void **unused)
{
	enum { SAMPLES = 997 };
	static uint64_t ns[SAMPLES];
	uint64_t state = seed_get("stats_percentiles");
	static const uint32_t permille[] = { 1, 10, 250, 500, 900, 990, 999, 1000, 4000 };
	(void)unused;

	for (uint32_t round = 0; round < 50; round++) {
		struct sublet_histogram h = { 0 };
		struct sublet__histogram raw;
		uint32_t count = 1 + below(&state, SAMPLES);
		memset(&raw, 0, sizeof raw);
		for (uint32_t i = 0; i < count; i++) {
			ns[i] = rng(&state) >> (24 + below(&state, 40));
			sublet__histogram_add(&raw, ns[i]);
		}
		qsort(ns, count, sizeof *ns, compare_u64);
		h.count = a64_load_relaxed(&raw.count);
		h.max_ns = a64_load_relaxed(&raw.max_ns);
		for (uint32_t i = 0; i < SUBLET_HISTOGRAM_BUCKETS; i++)
			h.bucket[i] = a64_load_relaxed(&raw.bucket[i]);
		assert_int_equal(h.max_ns, ns[count - 1]);
		for (uint32_t i = 0; i < sizeof permille / sizeof *permille; i++) {
			uint32_t p = permille[i] < 1000 ? permille[i] : 1000;
			uint64_t rank = ((uint64_t)count * p + 999) / 1000, have;
			uint64_t want = ns[rank ? rank - 1 : 0];
			have = sublet_histogram_percentile_ns(&h, permille[i]);
			assert_true(have >= want);
			assert_true(have <= want + want / 4 + 1);
		}
	}
	struct sublet_histogram none = { 0 };
	assert_int_equal(sublet_histogram_percentile_ns(&none, 500), 0);
}

/* A caller's size is respected: no byte beyond it is written, what we do not know is 0, too small is refused. */
static void stats_sizes(void **unused)
{
	enum { KNOWN = sizeof(struct sublet_stats), MORE = 64, FIRST = 16 };
	static struct fake f;
	union {
		struct sublet_stats stats;
		unsigned char bytes[KNOWN + 2 * MORE];
	} room;
	(void)unused;

	fixture_open(&f, NULL);
	for (size_t size = 0; size <= KNOWN + MORE; size += 8) {
		memset(&room, 0xee, sizeof room);
		room.stats.size_bytes = size;
		assert_int_equal(sublet_arena_stats(f.arena, &room.stats), size < FIRST ? -EINVAL : 0);
		assert_int_equal(room.stats.size_bytes, size);
		for (size_t i = KNOWN; i < size; i++)
			assert_int_equal(room.bytes[i], 0);
		for (size_t i = size < FIRST ? 8 : size; i < sizeof room; i++)
			assert_int_equal(room.bytes[i], 0xee);
	}
	room.stats.size_bytes = UINT64_MAX;
	assert_int_equal(sublet_arena_stats(f.arena, &room.stats), -E2BIG);
	fixture_close(&f);
}

/* The counters after a known history. */
static void stats_counters(void **unused)
{
	static struct fake f;
	struct sublet_claim claim;
	struct sublet_stats s;
	(void)unused;

	fixture_open(&f, NULL);
	uint32_t vpn = map_pages(&f, 512, SUBLET_MOVABLE), drop = map_pages(&f, 512, SUBLET_DISCARDABLE);
	assert_int_equal(sublet_unlock(f.engine_mm[0], addr_of(&f, 0, drop), 512 * PAGE), 0);
	s = stats_of(&f);
	assert_int_equal(s.area_movable_bytes, 512 * PAGE);
	assert_int_equal(s.area_discardable_bytes, 512 * PAGE);
	assert_int_equal(s.lent_bytes, 1024 * PAGE);
	assert_int_equal(claim_take(&f, bytes_of(&f, f.options.area_frames), NULL, &claim), 0);
	s = stats_of(&f);
	assert_int_equal(s.area_claimed_bytes, s.area_bytes);
	assert_int_equal(s.moved_bytes, 512 * PAGE);
	assert_int_equal(s.dropped_bytes, 512 * PAGE);
	assert_int_equal(s.claims_held, 1);
	assert_int_equal(s.normal_used_bytes, 512 * PAGE);
	struct sublet_claim second;
	assert_int_equal(claim_take(&f, PAGE, NULL, &second), -EBUSY);
	assert_int_equal(claim_take(&f, bytes_of(&f, f.options.area_frames), NULL, &second), -EBUSY);
	assert_int_equal(second.blockers[0].kind, SUBLET_BLOCKER_CLAIM);
	claim_give(&f, &claim);
	s = stats_of(&f);
	assert_int_equal(s.claims, 3);
	assert_int_equal(s.claims_succeeded, 1);
	assert_int_equal(s.claims_busy, 2);
	assert_int_equal(s.claims_noroom, 0);
	assert_int_equal(s.claims_held, 0);
	assert_int_equal(s.claim_ns.count, 1);
	assert_int_equal(s.blocked_ns.count, s.moves);
	sublet__arena_note_outside(f.arena, 12345);
	assert_int_equal(stats_of(&f).plain_bytes, 12345);
	check_zero(&f, 0, vpn, 512);
	fixture_close(&f);
}

static void stats_pageblocks(void **unused)
{
	static struct fake f;
	struct sublet_pageblock pb[10];
	struct sublet_claim claim;
	uint32_t movable = 0, claimed = 0;
	(void)unused;

	fixture_open(&f, NULL);
	map_pages(&f, 700, SUBLET_MOVABLE);
	assert_int_equal(claim_take(&f, 300 * PAGE, NULL, &claim), 0);
	assert_int_equal(sublet_arena_pageblocks(f.arena, 0, 10, pb), 8);
	assert_int_equal(sublet_arena_pageblocks(f.arena, 7, 10, pb), 1);
	assert_int_equal(sublet_arena_pageblocks(f.arena, 8, 10, pb), 0);
	assert_int_equal(sublet_arena_pageblocks(f.arena, SIZE_MAX, 10, pb), 0);
	assert_int_equal(sublet_arena_pageblocks(f.arena, 0, 8, pb), 8);
	for (uint32_t i = 0; i < 8; i++) {
		assert_int_equal(pb[i].free_frames + pb[i].movable_frames + pb[i].discardable_frames +
					 pb[i].claimed_frames + pb[i].held_frames + pb[i].isolated_frames,
				 512);
		movable += pb[i].movable_frames;
		claimed += pb[i].claimed_frames;
	}
	assert_true(movable >= 700 && movable <= 700 + 32 * 14 * 16); /* cached units count as movable */
	assert_int_equal(claimed, 300);
	claim_give(&f, &claim);
	fixture_close(&f);
}

static int decline(void *ctx, const struct sublet_invalidation *inv)
{
	(void)ctx;
	return inv->may_block ? 0 : -EAGAIN;
}

/* Pins, limits, notifiers and invalidations are the sums over all address spaces. */
static void stats_of_all_mms(void **unused)
{
	static const struct sublet_notifier_ops ops = { SUBLET_OPTIONS(sublet_notifier_ops),
							.invalidate = decline };
	struct fake_options options = { .mms = 2 };
	static struct fake f;
	struct sublet_pin pin[3];
	struct sublet_notifier notifier[3];
	struct sublet__invalidation inv;
	void *addr[2];
	(void)unused;

	fixture_open(&f, &options);
	struct sublet_stats s = stats_of(&f);
	assert_int_equal(s.longterm_bytes, 0);
	assert_int_equal(s.longterm_limit_bytes, 2 * (s.normal_bytes / 2));
	assert_int_equal(s.notifiers, 0);
	uint64_t before = s.invalidations;
	for (uint32_t i = 0; i < 2; i++) {
		sublet_pin_limit(f.engine_mm[i], (100 + i) * PAGE);
		assert_int_equal(sublet_map(f.engine_mm[i], 64 * PAGE, SUBLET_MOVABLE, &addr[i]), 0);
		assert_int_equal(sublet_pin(f.engine_mm[i], addr[i], (10 + i) * PAGE,
					    SUBLET_PIN_READ | SUBLET_PIN_LONGTERM, NULL, &pin[i]),
				 0);
	}
	/* a short one counts nothing, a second one over the same memory counts again */
	assert_int_equal(sublet_pin(f.engine_mm[0], addr[0], 64 * PAGE, SUBLET_PIN_READ, "short", &pin[2]),
			 0);
	assert_int_equal(sublet_unpin(&pin[2]), 0);
	assert_int_equal(sublet_pin(f.engine_mm[0], addr[0], 5 * PAGE, SUBLET_PIN_READ | SUBLET_PIN_LONGTERM,
				    NULL, &pin[2]),
			 0);
	for (uint32_t i = 0; i < 3; i++)
		assert_int_equal(sublet_notifier_add(f.engine_mm[i % 2], addr[i % 2], 64 * PAGE, &ops, NULL,
						     NULL, &notifier[i]),
				 0);
	s = stats_of(&f);
	assert_int_equal(s.longterm_bytes, 26 * PAGE);
	assert_int_equal(s.longterm_limit_bytes, 201 * PAGE);
	assert_int_equal(s.notifiers, 3);
	before = s.invalidations;
	for (uint32_t i = 0; i < 2; i++) {
		uint32_t vpn = vpn_of(&f, i, addr[i]);
		assert_int_equal(sublet__invalidate_begin(f.engine_mm[i], &inv, vpn, 1, SUBLET_NOTIFIER_MOVE,
							  true),
				 0);
		sublet__invalidate_end(f.engine_mm[i], &inv);
		assert_int_equal(sublet__invalidate_begin(f.engine_mm[i], &inv, vpn, 1, SUBLET_NOTIFIER_MOVE,
							  false),
				 -EAGAIN);
	}
	s = stats_of(&f);
	assert_int_equal(s.invalidations, before + 4);
	/* the second of mm 0 is not asked after the first declined */
	assert_int_equal(s.invalidations_declined, 2);
	for (uint32_t i = 0; i < 3; i++) {
		assert_int_equal(sublet_notifier_remove(&notifier[i]), 0);
		assert_int_equal(sublet_unpin(&pin[i]), 0);
	}
	sublet_pin_limit(f.engine_mm[0], UINT64_MAX);
	s = stats_of(&f);
	assert_int_equal(s.longterm_bytes, 0);
	assert_int_equal(s.notifiers, 0);
	assert_true(s.longterm_limit_bytes == UINT64_MAX); /* and not what is left of an overflow */
	fixture_close(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(stats_buckets),    cmocka_unit_test(stats_percentiles),
		cmocka_unit_test(stats_sizes),      cmocka_unit_test(stats_counters),
		cmocka_unit_test(stats_pageblocks), cmocka_unit_test(stats_of_all_mms),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
