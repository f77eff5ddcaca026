/* SPDX-License-Identifier: MIT */
/* core/claim.c, core/empty.c: G5, G9, G10. Who is in the way is in test_blockers.c. */
#include "fixture.h"

#include <string.h>

#define OPTIONS(...) (&(struct sublet_claim_options){ SUBLET_OPTIONS(sublet_claim_options), __VA_ARGS__ })

/* Every size from a page to the area, half lent: it is had as long as there is room, and is zero (G9). */
static void claim_sizes(void **unused)
{
	static struct fake f;
	struct sublet_claim claim;
	(void)unused;

	for (uint32_t workers = 1; workers <= 3; workers += 2) {
		fixture_open(&f, &(struct fake_options){ .workers = workers, .dirty_zero_frames = true });
		uint32_t area = f.options.area_frames, vpn = map_pages(&f, area / 2, SUBLET_MOVABLE);
		fill(&f, 0, vpn, area / 2, 1);
		for (uint32_t frames = 1; frames <= area; frames += frames < 40 ? 1 : 173) {
			int err = claim_take(&f, frames * PAGE, NULL, &claim);
			bool fits = frames <= area / 2 + f.options.normal_frames;
			assert_int_equal(err, fits ? 0 : -ENOMEM);
			fixture_verify(&f);
			if (err)
				continue;
			assert_int_equal(stats_of(&f).area_claimed_bytes, frames * PAGE);
			claim_give(&f, &claim);
		}
		check_fill(&f, 0, vpn, area / 2, 1);
		fixture_close(&f);
	}
}

/* A claim is released in its own arena, and in no other that has one like it. */
static void claim_of_another_arena(void **unused)
{
	static struct fake f, elsewhere;
	struct sublet_claim claim, other, copy;
	(void)unused;

	fixture_open(&f, NULL);
	fixture_open(&elsewhere, NULL);
	assert_int_equal(claim_take(&f, 16 * PAGE, NULL, &claim), 0);
	assert_int_equal(claim_take(&elsewhere, 16 * PAGE, NULL, &other), 0);
	copy = claim;
	assert_int_equal(sublet_release(elsewhere.arena, &copy), -EINVAL);
	copy = other;
	assert_int_equal(sublet_release(f.arena, &copy), -EINVAL);
	claim_give(&f, &claim);
	claim_give(&elsewhere, &other);
	fixture_close(&elsewhere);
	fixture_close(&f);
}

static void claim_alignments(void **unused)
{
	static struct fake f;
	struct sublet_claim claim, small;
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .area_frames = 1u << 18, .mm_pages = 1u << 12 });
	uint32_t vpn = map_pages(&f, 1 << 12, SUBLET_MOVABLE);
	fill(&f, 0, vpn, 1 << 12, 2);
	assert_int_equal(claim_take(&f, PAGE, NULL, &small), 0); /* something at an odd place */
	for (uint64_t align = 1; align <= SUBLET_GIB / 2; align *= 2)
		for (uint64_t bytes = PAGE; bytes <= 64 * SUBLET_MIB; bytes *= 8) {
			assert_int_equal(claim_take(&f, bytes, OPTIONS(.align_bytes = align), &claim), 0);
			claim_give(&f, &claim);
		}
	claim_give(&f, &small);
	assert_int_equal(claim_take(&f, PAGE, OPTIONS(.align_bytes = SUBLET_GIB), &claim), 0);
	assert_int_equal(claim.offset_bytes, 0);
	assert_int_equal(claim_take(&f, PAGE, OPTIONS(.align_bytes = SUBLET_GIB), &small), -EBUSY);
	assert_int_equal(small.blockers[0].kind, SUBLET_BLOCKER_CLAIM);
	claim_give(&f, &claim);
	check_fill(&f, 0, vpn, 1 << 12, 2);
	fixture_close(&f);
}

static void claim_bad_arguments(void **unused)
{
	static struct fake f;
	struct sublet_claim claim, twice;
	(void)unused;

	fixture_open(&f, NULL);
	uint64_t area = bytes_of(&f, f.options.area_frames);
	assert_int_equal(claim_take(&f, 0, NULL, &claim), -EINVAL);
	assert_int_equal(claim_take(&f, PAGE, OPTIONS(.align_bytes = 3), &claim), -EINVAL);
	assert_int_equal(claim_take(&f, PAGE, OPTIONS(.align_bytes = 2 * SUBLET_GIB), &claim), -EINVAL);
	assert_int_equal(claim_take(&f, PAGE, OPTIONS(.flags = 1u << 7), &claim), -EINVAL);
	assert_int_equal(claim_take(&f, PAGE, &(struct sublet_claim_options){ .deadline_ns = 1 }, &claim),
			 -EINVAL);
	assert_int_equal(claim_take(&f, area + 1, NULL, &claim), -E2BIG);
	assert_int_equal(claim_take(&f, UINT64_MAX, NULL, &claim), -E2BIG);
	/* an older program's shorter options, without an owner */
	struct sublet_claim_options old = { .size_bytes = offsetof(struct sublet_claim_options, owner),
					    .owner = (const char *)1 };
	assert_int_equal(claim_take(&f, area, &old, &claim), 0);
	assert_int_equal(claim.bytes, area);
	twice = claim;
	claim_give(&f, &claim);
	assert_int_equal(sublet_release(f.arena, &claim), -EINVAL);
	assert_int_equal(sublet_release(f.arena, &twice), -EINVAL);
	twice.id = UINT64_MAX;
	assert_int_equal(sublet_release(f.arena, &twice), -EINVAL);
	fixture_close(&f);
}

static uint32_t helped(struct fake *f, uint32_t flags)
{
	struct sublet_claim claim;
	uint32_t before = atomic_load(&f->parallel_calls);

	assert_int_equal(claim_take(f, 4 * SUBLET_MIB, OPTIONS(.flags = flags), &claim), 0);
	claim_give(f, &claim); /* scribbled on */
	return atomic_load(&f->parallel_calls) - before;
}

/* Helpers are called to copy and to zero, and not for what takes less time than it takes to wake them. */
static void claim_helpers(void **unused)
{
	static struct fake f;
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .workers = 3 });
	assert_int_equal(helped(&f, 0), 0); /* free, and zero */
	assert_int_equal(helped(&f, SUBLET_CLAIM_NOZERO), 0);
	assert_int_equal(helped(&f, 0), 1); /* free, and written to */
	uint32_t all = f.options.area_frames, vpn = map_pages(&f, all, SUBLET_DISCARDABLE);
	assert_int_equal(sublet_unlock(f.engine_mm[0], addr_of(&f, 0, vpn), all * PAGE), 0);
	assert_int_equal(helped(&f, SUBLET_CLAIM_NOZERO), 0);
	fixture_close(&f);

	fixture_open(&f, &(struct fake_options){ .workers = 3 });
	vpn = map_pages(&f, all, SUBLET_DISCARDABLE);
	assert_int_equal(sublet_unlock(f.engine_mm[0], addr_of(&f, 0, vpn), all * PAGE), 0);
	assert_int_equal(helped(&f, 0), 1);
	fixture_close(&f);

	fixture_open(&f, &(struct fake_options){ .workers = 3 });
	(void)map_pages(&f, all, SUBLET_MOVABLE);
	assert_int_equal(helped(&f, SUBLET_CLAIM_NOZERO), 1);
	fixture_close(&f);
}

/* G9, and NOZERO: old bytes are seen by nobody who did not ask for them. */
static void claim_zeroing(void **unused)
{
	static struct fake f;
	struct sublet_claim claim;
	(void)unused;

	fixture_open(&f, NULL);
	assert_int_equal(claim_take(&f, 4 * SUBLET_MIB, NULL, &claim), 0);
	assert_int_equal(claim.zeroed_bytes, 0); /* known zeros are not zeroed again */
	claim_give(&f, &claim);
	assert_int_equal(claim_take(&f, 4 * SUBLET_MIB, OPTIONS(.flags = SUBLET_CLAIM_NOZERO), &claim), 0);
	assert_int_equal(claim.zeroed_bytes, 0);
	claim_give(&f, &claim);
	assert_int_equal(claim_take(&f, bytes_of(&f, f.options.area_frames), NULL, &claim), 0);
	assert_int_equal(claim.zeroed_bytes, 4 * SUBLET_MIB);
	claim_give(&f, &claim);
	check_zero(&f, 0, map_pages(&f, f.options.area_frames, SUBLET_MOVABLE), f.options.area_frames);
	fixture_close(&f);
}

/* A pin in the cheapest window is gone round (G10), and one that ends in time is waited for. */
struct unpin_later {
	struct fake *f;
	struct sublet_pin pin;
	uint32_t vpn;
	uint32_t sleeps;
};

static void unpin_hook(void *arg, enum fake_op op, struct fake_mm *mm, uint32_t vpn, uint32_t pages)
{
	struct unpin_later *u = arg;

	(void)mm, (void)vpn, (void)pages;
	if (op == FAKE_SLEEP && u->sleeps && --u->sleeps == 0) {
		fake_device_hold(&u->f->mm[0], u->vpn, 1, -1);
		assert_int_equal(sublet_unpin(&u->pin), 0);
	}
}

static void claim_pins_around(void **unused)
{
	static struct fake f;
	struct sublet_claim claim;
	(void)unused;

	for (uint32_t n = 0; n < 512; n += 17) {
		fixture_open(&f, &(struct fake_options){ .virtual_time = true });
		uint32_t vpn = map_pages(&f, 512, SUBLET_MOVABLE);
		struct unpin_later u = { .f = &f, .vpn = vpn + n, .sleeps = 3 };
		assert_int_equal(sublet_pin(f.engine_mm[0], addr_of(&f, 0, vpn + n), PAGE, SUBLET_PIN_READ,
					    NULL, &u.pin),
				 0);
		fake_device_hold(&f.mm[0], vpn + n, 1, 1);
		/* seven blocks without the pin */
		assert_int_equal(claim_take(&f, 6 * 512 * PAGE, NULL, &claim), 0);
		assert_int_equal(claim.waits, 0);
		claim_give(&f, &claim);
		f.hook_arg = &u;
		f.hook = unpin_hook;
		assert_int_equal(claim_take(&f, 8 * 512 * PAGE, OPTIONS(.deadline_ns = SUBLET_SEC), &claim),
				 0);
		f.hook = NULL;
		assert_int_equal(u.sleeps, 0);
		assert_true(claim.waits >= 3 && claim.blocker_count == 0);
		claim_give(&f, &claim);
		fixture_close(&f);
	}
}

/* A small claim finds the free frames of a pageblock beside a pin that stays (G10). */
static void claim_small_beside_pin(void **unused)
{
	static struct fake f;
	struct sublet_claim claim;
	struct sublet_pin pin[16];
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .area_frames = 512, .virtual_time = true });
	uint32_t vpn = map_pages(&f, 256, SUBLET_MOVABLE);
	for (uint32_t i = 0; i < 256 / 16; i++)
		assert_int_equal(sublet_pin(f.engine_mm[0], addr_of(&f, 0, vpn + i * 16), PAGE,
					    SUBLET_PIN_READ, NULL, &pin[i]),
				 0);
	for (uint32_t frames = 1; frames <= 256; frames *= 2) {
		assert_int_equal(claim_take(&f, frames * PAGE, OPTIONS(.flags = SUBLET_CLAIM_NOWAIT), &claim),
				 0);
		assert_int_equal(claim.moved_bytes, 0);
		claim_give(&f, &claim);
	}
	assert_int_equal(claim_take(&f, 257 * PAGE, OPTIONS(.flags = SUBLET_CLAIM_NOWAIT), &claim), -EBUSY);
	for (uint32_t i = 0; i < 256 / 16; i++)
		assert_int_equal(sublet_unpin(&pin[i]), 0);
	fixture_close(&f);
}

/* The cheapest window is found, and the dearest when that is asked for. */
static void claim_cheapest_dearest(void **unused)
{
	static struct fake f;
	struct sublet_claim claim;
	(void)unused;

	fixture_open(&f, NULL);
	uint32_t vpn = map_pages(&f, 4 * 512, SUBLET_MOVABLE);
	fill(&f, 0, vpn, 4 * 512, 8);
	assert_int_equal(claim_take(&f, 4 * 512 * PAGE, NULL, &claim), 0);
	assert_int_equal(claim.moved_bytes, 0);
	claim_give(&f, &claim);
	assert_int_equal(claim_take(&f, 512 * PAGE, OPTIONS(.flags = SUBLET_CLAIM_DEAREST), &claim), 0);
	assert_int_equal(claim.moved_bytes, 512 * PAGE);
	claim_give(&f, &claim);
	check_fill(&f, 0, vpn, 4 * 512, 8);
	fixture_close(&f);
}

/* G10: filled at random, fragmented, with pins that end: every size that there is room for is had. */
static void claim_fragmented(void **unused)
{
	enum { MAPS = 400 };
	static struct fake f;
	static uint32_t vpn[MAPS], pages[MAPS];
	uint64_t state = seed_get("claim_fragmented");
	(void)unused;

	for (uint32_t round = 0; round < 12; round++) {
		fixture_open(&f, &(struct fake_options){ .workers = 1 + round % 3 });
		uint32_t n = 0, area = f.options.area_frames;
		for (uint64_t lent = 0; n < MAPS && lent < area;) {
			pages[n] = 1 + below(&state,
					     min_u32(below(&state, 20) ? 30 : 500, area - (uint32_t)lent));
			vpn[n] = map_pages(&f, pages[n], SUBLET_MOVABLE);
			lent += pages[n++];
		}
		for (uint32_t i = 0; i < n; i++)
			if (rng(&state) & 1) {
				assert_int_equal(sublet_unmap(f.engine_mm[0], addr_of(&f, 0, vpn[i]),
							      pages[i] * PAGE),
						 0);
				pages[i] = 0;
			} else {
				fill(&f, 0, vpn[i], pages[i], i);
			}
		struct sublet_stats s = stats_of(&f);
		uint64_t room = s.area_free_bytes + s.normal_free_bytes - 2 * f.options.run_pages_max * PAGE;
		for (uint64_t mib = 2; mib <= 16 && mib * SUBLET_MIB <= room; mib += 2) {
			struct sublet_claim claim;
			assert_int_equal(claim_take(&f, mib * SUBLET_MIB, NULL, &claim), 0);
			fixture_verify(&f);
			claim_give(&f, &claim);
		}
		for (uint32_t i = 0; i < n; i++)
			check_fill(&f, 0, vpn[i], pages[i], i);
		fixture_close(&f);
	}
}

/* A claim that comes while another empties its window keeps clear of it, moved or not. */
struct second {
	struct fake *f;
	struct sublet_claim claim;
	uint64_t bytes;
	int err;
	bool done;
};

static void second_hook(void *arg, enum fake_op op, struct fake_mm *mm, uint32_t vpn, uint32_t pages)
{
	struct second *s = arg;

	(void)mm, (void)vpn, (void)pages;
	if (op != FAKE_TRACK || s->done)
		return;
	s->done = true;
	s->err = claim_take(s->f, s->bytes, OPTIONS(.flags = SUBLET_CLAIM_NOWAIT), &s->claim);
}

static void claim_inside_claim(void **unused)
{
	static struct fake f;
	struct sublet_claim claim;
	(void)unused;

	for (uint32_t frames = 100; frames <= 400; frames += 50) {
		struct second second = { .f = &f, .bytes = frames * PAGE };
		fixture_open(&f, &(struct fake_options){ .area_frames = 512, .virtual_time = true });
		uint32_t vpn = map_pages(&f, 400, SUBLET_MOVABLE);
		fill(&f, 0, vpn, 400, 1);
		f.hook_arg = &second;
		f.hook = second_hook;
		assert_int_equal(claim_take(&f, 300 * PAGE, OPTIONS(.flags = SUBLET_CLAIM_DEAREST), &claim),
				 0);
		f.hook = NULL;
		assert_true(second.done);
		if (frames > 212) {
			assert_int_equal(second.err, -EBUSY);
			assert_int_equal(second.claim.blockers[0].kind, SUBLET_BLOCKER_CLAIM);
		}
		fixture_verify(&f);
		check_fill(&f, 0, vpn, 400, 1);
		if (!second.err)
			claim_give(&f, &second.claim);
		claim_give(&f, &claim);
		fixture_close(&f);
	}
}

struct several {
	struct fake *f;
	_Atomic bool *stop;
	uint64_t seed;
	uint32_t had, busy;
};

static void *several_main(void *arg)
{
	struct several *s = arg;

	while (!atomic_load(s->stop)) {
		struct sublet_claim claim;
		struct sublet_claim_options o = { SUBLET_OPTIONS(sublet_claim_options),
						  .deadline_ns = SUBLET_MS, .flags = below(&s->seed, 8) };
		int err = claim_take(s->f, (1 + below(&s->seed, below(&s->seed, 2) ? 1500 : 40)) * PAGE, &o,
				     &claim);
		if (!err)
			claim_give(s->f, &claim);
		else if (err != -EBUSY && err != -ENOMEM)
			fail_msg("claim: %d", err);
		s->had += !err;
		s->busy += err != 0;
	}
	return NULL;
}

/* Several claims at once on an area in use: windows never overlap (the fake would see two owners). */
static void claim_several(void **unused)
{
	static struct fake f;
	struct several s[3];
	pthread_t thread[3];
	_Atomic bool stop = false;
	uint64_t seed = seed_get("claim_several"), until = wall_ns() + soak_ns(1.5);
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .workers = 2 });
	uint32_t vpn = map_pages(&f, 3000, SUBLET_MOVABLE);
	fill(&f, 0, vpn, 3000, 3);
	threads_begin();
	for (uint32_t i = 0; i < 3; i++) {
		s[i] = (struct several){ .f = &f, .stop = &stop, .seed = seed + i };
		assert_int_equal(pthread_create(&thread[i], NULL, several_main, &s[i]), 0);
	}
	while (wall_ns() < until)
		check_fill(&f, 0, vpn, 3000, 3);
	atomic_store(&stop, true);
	for (uint32_t i = 0; i < 3; i++) {
		pthread_join(thread[i], NULL);
		print_message("%u claims had, %u not\n", s[i].had, s[i].busy);
		assert_true(s[i].had > 0);
	}
	threads_end();
	assert_int_equal(stats_of(&f).claims_held, 0);
	check_fill(&f, 0, vpn, 3000, 3);
	fixture_close(&f);
}

/* The chooser's tree is behind: a window that another claim empties is still not chosen again (G2). */
static void claim_stale_tree(void **unused)
{
	static struct fake f;
	struct sublet_claim claim;
	(void)unused;

	for (uint32_t lost = 0; lost < 2; lost++) {
		fixture_open(&f, NULL);
		struct sublet__isolation other = { .first_pfn = 0, .end_pfn = 1024 };
		/* a thread that has marked the block, and was stopped before it marked the word */
		a64_or_seq_cst(&f.arena->dirty[0], 3);
		a64_exchange_seq_cst(&f.arena->dirty_top[0], 0);
		engine_lock(f.arena, &f.arena->claim_lock);
		sublet__isolate(f.arena, &other);
		engine_unlock(f.arena, &f.arena->claim_lock);
		if (lost) { /* the tree knows nothing of it */
			a64_exchange_seq_cst(&f.arena->dirty[0], 0);
			a64_exchange_seq_cst(&f.arena->dirty_top[0], 0);
		}
		assert_int_equal(claim_take(&f, 1024 * PAGE, NULL, &claim), 0);
		assert_true(claim.offset_bytes >= 1024 * PAGE);
		engine_lock(f.arena, &f.arena->claim_lock);
		sublet__isolate_undo(f.arena, &other);
		engine_unlock(f.arena, &f.arena->claim_lock);
		claim_give(&f, &claim);
		fixture_close(&f);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(claim_helpers),          cmocka_unit_test(claim_sizes),
		cmocka_unit_test(claim_of_another_arena), cmocka_unit_test(claim_alignments),
		cmocka_unit_test(claim_bad_arguments),    cmocka_unit_test(claim_zeroing),
		cmocka_unit_test(claim_pins_around),      cmocka_unit_test(claim_small_beside_pin),
		cmocka_unit_test(claim_cheapest_dearest), cmocka_unit_test(claim_fragmented),
		cmocka_unit_test(claim_inside_claim),     cmocka_unit_test(claim_several),
		cmocka_unit_test(claim_stale_tree),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
