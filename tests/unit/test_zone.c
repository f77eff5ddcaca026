/* SPDX-License-Identifier: MIT */
/* core/zone.c: the buddy allocator and the isolation of windows. Holds G8 (frames are conserved). */
#include "fixture.h"

#include <string.h>

static const uint32_t area_only[ZONES] = { ZONE_AREA, ZONE_AREA };
static const uint32_t area_first[ZONES] = { ZONE_AREA, ZONE_NORMAL };

static uint32_t free_of_order(const struct sublet_arena *arena, uint32_t zone, uint32_t order)
{
	uint32_t n = 0;
	for (uint32_t pfn = arena->zone[zone].head[order]; pfn != ENGINE_NONE;
	     pfn = a32_load_relaxed(&arena->frames[pfn].a))
		n++;
	return n;
}

static void shuffle(uint32_t *v, uint32_t n, uint64_t *state)
{
	for (uint32_t i = n; i > 1; i--) {
		uint32_t j = below(state, i), t = v[i - 1];
		v[i - 1] = v[j];
		v[j] = t;
	}
}

/* G8: every frame is handed out once, none twice, and all merge back to whole pageblocks. */
static void zone_split_merge(void **unused)
{
	static struct fake f;
	uint64_t state = seed_get("zone_split_merge");
	(void)unused;

	for (uint32_t order = 0; order <= 9; order++) {
		if (order == 4)
			continue; /* the caches' own size: test_cache.c */
		fixture_open(&f, NULL);
		uint32_t n = f.frames >> order, *got = calloc(n, sizeof *got);
		uint8_t *seen = calloc(f.frames, 1);
		for (uint32_t i = 0; i < n; i++) {
			got[i] = sublet__folio_take(f.arena, order, area_first);
			assert_true(got[i] != ENGINE_NONE && got[i] % (1u << order) == 0);
			for (uint32_t p = got[i]; p < got[i] + (1u << order); p++)
				assert_int_equal(seen[p]++, 0);
		}
		assert_int_equal(sublet__folio_take(f.arena, order, area_first), ENGINE_NONE);
		assert_int_equal(sublet__folio_take(f.arena, 0, area_first), ENGINE_NONE);
		shuffle(got, n, &state);
		for (uint32_t i = 0; i < n; i++)
			sublet__frames_put(f.arena, got[i], 1u << order, ACCOUNT_MOVABLE);
		assert_int_equal(free_of_order(f.arena, ZONE_AREA, 9), 8);
		assert_int_equal(free_of_order(f.arena, ZONE_NORMAL, 9), 2);
		free(got);
		free(seen);
		fixture_close(&f);
	}
}

/* Known-zero folios are handed out first, and a merge with one that is not is not zero (G9). */
static void zone_zero_lists(void **unused)
{
	static struct fake f;
	uint32_t pfn, word;
	(void)unused;

	fixture_open(&f, NULL);
	pfn = sublet__folio_take(f.arena, 0, area_only);
	assert_true(a32_load_relaxed(&f.arena->frames[pfn].word) & FRAME_ZERO);
	/* merges up: its pageblock is not zero any more */
	sublet__frames_put(f.arena, pfn, 1, ACCOUNT_MOVABLE);
	for (uint32_t i = 0; i < 8; i++) {
		pfn = sublet__folio_take(f.arena, 9, area_only);
		word = a32_load_relaxed(&f.arena->frames[pfn].word);
		assert_int_equal(!!(word & FRAME_ZERO), i < 7);
	}
	for (uint32_t pb = 0; pb < 8; pb++)
		sublet__frames_put(f.arena, pb * 512, 512, ACCOUNT_MOVABLE);
	assert_false(a32_load_relaxed(&f.arena->frames[0].word) & FRAME_ZERO);
	fixture_close(&f);
}

/* A run of frames given back in one call may begin in the area and end in the normal zone. */
static void zone_put_over_boundary(void **unused)
{
	static struct fake f;
	(void)unused;

	fixture_open(&f, NULL);
	for (uint32_t i = 0; i < 10; i++)
		assert_int_not_equal(sublet__folio_take(f.arena, 9, area_first), ENGINE_NONE);
	sublet__frames_put(f.arena, 0, f.frames, ACCOUNT_MOVABLE);
	assert_int_equal(f.arena->zone[ZONE_AREA].free_frames, f.options.area_frames);
	assert_int_equal(f.arena->zone[ZONE_NORMAL].free_frames, f.options.normal_frames);
	fixture_close(&f);
}

enum { HELD_MAX = 2000 };

struct holding {
	uint32_t pfn;
	uint32_t order;
};

/* Take random folios until about `frames` are held. */
static uint32_t take_some(struct fake *f, struct holding *held, uint32_t frames, uint64_t *state)
{
	uint32_t n = 0;

	while (frames && n < HELD_MAX) {
		uint32_t order = below(state, 8), pfn = sublet__folio_take(f->arena, order, area_only);
		if (pfn == ENGINE_NONE)
			break;
		held[n++] = (struct holding){ pfn, order };
		frames -= frames < 1u << order ? frames : 1u << order;
	}
	return n;
}

static uint32_t overlap(uint32_t pfn, uint32_t frames, const struct sublet__isolation *w)
{
	uint32_t lo = max_u32(pfn, w->first_pfn), hi = min_u32(pfn + frames, w->end_pfn);
	return hi > lo ? hi - lo : 0;
}

static uint32_t outstanding(const struct holding *held, uint32_t n, const struct sublet__isolation *w)
{
	uint32_t frames = 0;
	for (uint32_t i = 0; i < n; i++)
		frames += overlap(held[i].pfn, 1u << held[i].order, w);
	return frames;
}

/* One round: two disjoint windows at any frame, frees into them, nothing out of them, undo or commit. */
static void isolation_round(struct fake *f, uint64_t *state)
{
	static struct holding held[HELD_MAX];
	struct sublet_arena *arena = f->arena;
	uint32_t cut[4], area = f->options.area_frames;
	uint32_t n = take_some(f, held, below(state, area), state);

	for (uint32_t i = 0; i < 4; i++)
		cut[i] = below(state, area);
	for (uint32_t i = 0; i < 4; i++)
		for (uint32_t j = i + 1; j < 4; j++)
			if (cut[j] < cut[i]) {
				uint32_t t = cut[i];
				cut[i] = cut[j];
				cut[j] = t;
			}
	struct sublet__isolation w[2] = { { .first_pfn = cut[0], .end_pfn = cut[1] + 1 },
					  { .first_pfn = max_u32(cut[2], cut[1] + 1),
					    .end_pfn = cut[3] + 2 } };
	w[1].end_pfn = max_u32(min_u32(w[1].end_pfn, area), w[1].first_pfn);
	uint32_t windows = w[1].end_pfn > w[1].first_pfn ? 2 : 1;
	for (uint32_t i = 0; i < windows; i++) {
		sublet__isolate(arena, &w[i]);
		sublet__cache_recall(arena, w[i].first_pfn, w[i].end_pfn);
	}
	while (n) {
		for (uint32_t i = 0; i < windows; i++)
			assert_int_equal(sublet__isolated_frames(arena, &w[i]),
					 w[i].end_pfn - w[i].first_pfn - outstanding(held, n, &w[i]));
		uint32_t order = below(state, 5), pfn = sublet__folio_take(arena, order, area_only);
		if (pfn != ENGINE_NONE) {
			for (uint32_t i = 0; i < windows; i++)
				assert_int_equal(overlap(pfn, 1u << order, &w[i]), 0);
			sublet__frames_put(arena, pfn, 1u << order, ACCOUNT_MOVABLE);
		}
		uint32_t i = below(state, n);
		sublet__frames_put(arena, held[i].pfn, 1u << held[i].order, ACCOUNT_MOVABLE);
		held[i] = held[--n];
	}
	for (uint32_t i = 0; i < windows; i++) {
		uint32_t frames = w[i].end_pfn - w[i].first_pfn;
		assert_int_equal(sublet__isolated_frames(arena, &w[i]), frames);
		if (rng(state) & 1) {
			sublet__isolate_undo(arena, &w[i]);
			continue;
		}
		sublet__isolated_zero(arena, w[i].first_pfn, w[i].end_pfn, false);
		sublet__isolate_commit(arena, &w[i], 0);
		for (uint32_t pfn = w[i].first_pfn; pfn < w[i].end_pfn;) {
			uint32_t word = a32_load_relaxed(&arena->frames[pfn].word);
			assert_true((word & FRAME_HEAD) && word_state(word) == FRAME_CLAIMED);
			pfn += 1u << word_order(word);
		}
		sublet__frames_put(arena, w[i].first_pfn, frames, ACCOUNT_CLAIMED);
	}
}

/* G8, and the first half of G10: from isolation on, what is not yet isolated only falls. */
static void zone_isolation(void **unused)
{
	static struct fake f;
	uint64_t state = seed_get("zone_isolation");
	(void)unused;

	for (uint32_t round = 0; round < 150; round++) {
		fixture_open(&f, &(struct fake_options){ .area_frames = 4 * 512 });
		isolation_round(&f, &state);
		isolation_round(&f, &state);
		fixture_close(&f);
	}
}

/* An undone window is free again as a whole, and known zeros stay known. */
static void zone_isolation_undo(void **unused)
{
	static struct fake f;
	(void)unused;

	fixture_open(&f, NULL);
	struct sublet__isolation w = { .first_pfn = 3, .end_pfn = 700 };
	sublet__isolate(f.arena, &w);
	assert_int_equal(sublet__isolated_frames(f.arena, &w), 697);
	assert_int_equal(sublet__isolated_zero(f.arena, 3, 700, false), 0);
	sublet__isolate_undo(f.arena, &w);
	assert_int_equal(free_of_order(f.arena, ZONE_AREA, 9), 8);
	for (uint32_t pb = 0; pb < 8; pb++)
		assert_true(a32_load_relaxed(&f.arena->frames[pb * 512].word) & FRAME_ZERO);
	fixture_close(&f);
}

/* The checker of the checkers: verify notices a count, a list and a head that are wrong. */
static void zone_verify_fires(void **unused)
{
	static struct fake f;
	char text[160];
	(void)unused;

	fixture_open(&f, NULL);
	sublet__account(f.arena, 0, 1, ACCOUNT_FREE, ACCOUNT_MOVABLE);
	assert_int_equal(sublet__arena_verify(f.arena, text, sizeof text), -EUCLEAN);
	assert_non_null(strstr(text, "account"));
	sublet__account(f.arena, 0, 1, ACCOUNT_MOVABLE, ACCOUNT_FREE);
	fixture_verify(&f);
	uint32_t pfn = sublet__folio_take(f.arena, 0, area_only);
	assert_int_equal(sublet__arena_verify(f.arena, text, sizeof text), -EUCLEAN);
	sublet__frames_put(f.arena, pfn, 1, ACCOUNT_MOVABLE);
	fixture_verify(&f);
	f.arena->zone[0].free_frames++;
	assert_int_equal(sublet__arena_verify(f.arena, text, sizeof text), -EUCLEAN);
	f.arena->zone[0].free_frames--;
	fixture_close(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(zone_split_merge),       cmocka_unit_test(zone_zero_lists),
		cmocka_unit_test(zone_put_over_boundary), cmocka_unit_test(zone_isolation),
		cmocka_unit_test(zone_isolation_undo),    cmocka_unit_test(zone_verify_fires),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
