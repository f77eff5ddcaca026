/* SPDX-License-Identifier: MIT */
/* core/pin.c: G2 (a pinned folio stays), G6 (of a pin and a move one wins), G7 (NOWAIT never sleeps). */
#include "fixture.h"

#include <sched.h>
#include <signal.h>
#include <time.h>

static int pin_pages(struct fake *f, uint32_t vpn, uint32_t pages, uint32_t flags, struct sublet_pin *pin)
{
	return sublet_pin(f->engine_mm[0], addr_of(f, 0, vpn), pages * PAGE, flags, NULL, pin);
}

static void pin_bad_arguments(void **unused)
{
	static struct fake f;
	struct sublet_pin pin;
	(void)unused;

	fixture_open(&f, NULL);
	uint32_t vpn = map_pages(&f, 100, SUBLET_MOVABLE);
	char *a = addr_of(&f, 0, vpn);
	struct sublet_mm *mm = f.engine_mm[0];
	assert_int_equal(sublet_pin(mm, a, 0, SUBLET_PIN_READ, NULL, &pin), -EINVAL);
	assert_int_equal(sublet_pin(mm, a, PAGE, 0, NULL, &pin), -EINVAL);
	assert_int_equal(sublet_pin(mm, a, PAGE, SUBLET_PIN_NOWAIT, NULL, &pin), -EINVAL);
	assert_int_equal(sublet_pin(mm, a, PAGE, SUBLET_PIN_READ | 1u << 9, NULL, &pin), -EINVAL);
	assert_int_equal(sublet_pin(mm, a, UINT64_MAX, SUBLET_PIN_READ, NULL, &pin), -EINVAL);
	assert_int_equal(sublet_pin(mm, NULL, PAGE, SUBLET_PIN_READ, NULL, &pin), -EINVAL);
	assert_int_equal(sublet_pin(mm, a - 1 - vpn * PAGE, 2, SUBLET_PIN_READ, NULL, &pin), -EINVAL);
	assert_int_equal(sublet_pin(mm, a, 101 * PAGE, SUBLET_PIN_READ, NULL, &pin), -EFAULT);
	assert_int_equal(sublet_unpin(&pin), -EINVAL);
	/* All or nothing: the failure above left no reference. */
	struct sublet_claim claim;
	assert_int_equal(claim_take(&f, bytes_of(&f, f.options.area_frames), NULL, &claim), 0);
	claim_give(&f, &claim);
	/* One byte is enough; two times unpinned is an error. */
	assert_int_equal(sublet_pin(mm, a + 5, 1, SUBLET_PIN_READ, NULL, &pin), 0);
	assert_int_equal(pin.pages, 1);
	assert_int_equal(sublet_unpin(&pin), 0);
	assert_int_equal(sublet_unpin(&pin), -EINVAL);
	fixture_close(&f);
}

/* G2, over ranges of many folios and blocks: frames are the same from pin to unpin; neighbours move. */
static void pin_holds(void **unused)
{
	static struct fake f;
	uint64_t state = seed_get("pin_holds");
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .virtual_time = true });
	uint32_t area = f.options.area_frames, vpn = map_pages(&f, area - 512, SUBLET_MOVABLE);
	fill(&f, 0, vpn, area - 512, 1);
	for (uint32_t round = 0; round < 60; round++) {
		struct sublet_pin pin;
		struct sublet_claim claim;
		uint32_t first = below(&state, area - 512),
			 pages = 1 + below(&state, min_u32(700, area - 512 - first));
		assert_int_equal(pin_pages(&f, vpn + first, pages, SUBLET_PIN_WRITE, &pin), 0);
		fake_device_hold(&f.mm[0], vpn + first, pages, 1);
		for (uint32_t i = 0; i < 20; i++)
			sublet__chaos_move(f.arena, f.engine_mm[0], rng(&state));
		struct sublet_claim_options o = { SUBLET_OPTIONS(sublet_claim_options),
						  .deadline_ns = SUBLET_MS };
		if (!claim_take(&f, (1 + below(&state, 2000)) * PAGE, &o, &claim))
			claim_give(&f, &claim);
		fake_device_hold(&f.mm[0], vpn + first, pages, -1);
		assert_int_equal(sublet_unmap(f.engine_mm[0], addr_of(&f, 0, vpn), (area - 512) * PAGE),
				 -EBUSY);
		assert_int_equal(sublet_unpin(&pin), 0);
		fixture_verify(&f);
	}
	check_fill(&f, 0, vpn, area - 512, 1);
	assert_int_equal(sublet_unmap(f.engine_mm[0], addr_of(&f, 0, vpn), (area - 512) * PAGE), 0);
	fixture_close(&f);
}

/* G7: while the block's lock is taken by a move, NOWAIT reports instead of waiting. */
struct nowait {
	struct fake *f;
	uint32_t vpn;
	int result;
	bool seen;
};

static void nowait_hook(void *arg, enum fake_op op, struct fake_mm *mm, uint32_t vpn, uint32_t pages)
{
	struct nowait *n = arg;
	struct sublet_pin pin;

	(void)mm, (void)vpn, (void)pages;
	if (op != FAKE_REMAP || n->seen)
		return;
	n->seen = true;
	n->result = pin_pages(n->f, n->vpn, 1, SUBLET_PIN_READ | SUBLET_PIN_NOWAIT, &pin);
}

static void pin_nowait(void **unused)
{
	static struct fake f;
	struct sublet_claim claim;
	(void)unused;

	fixture_open(&f, NULL);
	uint32_t vpn = map_pages(&f, 16, SUBLET_MOVABLE);
	struct nowait n = { .f = &f, .vpn = vpn };
	f.hook = nowait_hook;
	f.hook_arg = &n;
	assert_int_equal(claim_take(&f, bytes_of(&f, f.options.area_frames), NULL, &claim), 0);
	assert_true(n.seen);
	assert_int_equal(n.result, -EAGAIN);
	f.hook = NULL;
	claim_give(&f, &claim);
	fixture_close(&f);
}

enum { RACE_PAGES = 256, RACE_THREADS = 3 };

struct race {
	struct fake *f;
	uint32_t vpn;
	_Atomic bool stop;
	_Atomic uint64_t pins, moves, rounds;
};

/* A device that writes through pins; its frames must stay what they were. */
static void *race_main(void *arg)
{
	struct race *r = arg;
	uint64_t state = wall_ns();

	for (uint64_t n = 1; !atomic_load(&r->stop); n++) {
		struct sublet_pin pin;
		struct sublet_extent extent;
		uint32_t first = below(&state, RACE_PAGES),
			 pages = 1 + below(&state, min_u32(40, RACE_PAGES - first));
		uint32_t word = below(&state, FAKE_WORDS);
		int err = pin_pages(r->f, r->vpn + first, pages, SUBLET_PIN_WRITE, &pin);
		if (err)
			fail_msg("pin: %d", err);
		/* At once, all of it, and where it stays: the entries behind the first are as good as that (G2). */
		uint64_t covered = 0;
		for (; covered < pin.bytes; covered += extent.bytes) {
			err = sublet_pin_extents(&pin, covered, &extent, 1);
			if (err != 1)
				fail_msg("where pinned memory is: %d", err);
		}
		fake_device_hold(&r->f->mm[0], r->vpn + first, pages, 1);
		uint32_t pfn = fake_pfn_of(&r->f->mm[0], r->vpn + first);
		fake_frame_write(r->f, pfn, word, rng(&state));
		fake_device_hold(&r->f->mm[0], r->vpn + first, pages, -1);
		if (sublet_unpin(&pin))
			fail_msg("unpin");
		atomic_fetch_add_explicit(&r->pins, 1, memory_order_relaxed);
	}
	return NULL;
}

/* G2, G6 under load: nothing hangs, no frame that is held is taken away, and moves do happen. */
static void pin_move_race(void **unused)
{
	static struct fake f;
	struct race race = { .f = &f };
	pthread_t thread[RACE_THREADS];
	uint64_t until = wall_ns() + soak_ns(1.5), state = seed_get("pin_move_race");
	(void)unused;

	fixture_open(&f, NULL);
	race.vpn = map_pages(&f, RACE_PAGES, SUBLET_MOVABLE);
	threads_begin();
	for (uint32_t i = 0; i < RACE_THREADS; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, race_main, &race), 0);
	while (wall_ns() < until)
		atomic_fetch_add(&race.moves, sublet__chaos_move(f.arena, f.engine_mm[0], rng(&state)) > 0);
	atomic_store(&race.stop, true);
	for (uint32_t i = 0; i < RACE_THREADS; i++)
		pthread_join(thread[i], NULL);
	threads_end();
	print_message("%llu pins, %llu moves, %llu refused\n", (unsigned long long)atomic_load(&race.pins),
		      (unsigned long long)atomic_load(&race.moves),
		      (unsigned long long)a64_load_relaxed(&f.arena->counters.moves_refused));
	assert_true(atomic_load(&race.pins) > 0 && atomic_load(&race.moves) > 0);
	/* Nothing is pinned any more (G8). */
	assert_int_equal(sublet_unmap(f.engine_mm[0], addr_of(&f, 0, race.vpn), RACE_PAGES * PAGE), 0);
	fixture_close(&f);
}

/* ---- a pin that is interrupted at any instruction, and finds its frame somebody else's ---- */

enum { REUSE_UNITS = 24, REUSE_THREADS = 2 };

static void interrupt(int signal)
{
	struct timespec ts = { 0, 100000 };
	int saved = errno;

	(void)signal;
	nanosleep(&ts, NULL);
	errno = saved;
}

static void *reuse_main(void *arg)
{
	struct race *r = arg;
	uint64_t state = wall_ns();

	while (!atomic_load(&r->stop)) {
		struct sublet_pin pin;
		uint32_t page = below(&state, REUSE_UNITS * 16);
		if (pin_pages(r->f, r->vpn + page, 1, SUBLET_PIN_READ, &pin))
			fail_msg("pin");
		if (pin.pages != 1 || sublet_unpin(&pin))
			fail_msg("unpin");
		atomic_fetch_add_explicit(&r->pins, 1, memory_order_relaxed);
	}
	return NULL;
}

/* Every folio's count is 0 again: a reference taken on a stranger's folio is given back to the stranger. */
static void counts_are_zero(struct fake *f, uint32_t vpn, uint32_t pages)
{
	for (uint32_t at = vpn; at < vpn + pages; at++) {
		uint32_t head =
			sublet__frame_head(f->arena, pte_pfn(a32_load_relaxed(&f->engine_mm[0]->pte[at])));
		assert_int_equal(
			a32_load_relaxed(&f->arena->frames[head].ref) & (REF_FROZEN | REF_COUNT_MASK), 0);
	}
}

/*
 * G6: between reading an entry and taking the reference a frame may become another page's. Few frames,
 * so that they are used again at once; signals that stop the pinning threads at every instruction.
 */
static void pin_reuse_race(void **unused)
{
	static struct fake f;
	struct race race = { .f = &f };
	struct sigaction action = { .sa_handler = interrupt, .sa_flags = SA_RESTART }, old;
	pthread_t thread[REUSE_THREADS];
	uint64_t until = wall_ns() + soak_ns(1.5), state = seed_get("pin_reuse_race"), signals = 0;
	(void)unused;

	assert_int_equal(sigaction(SIGUSR1, &action, &old), 0);
	fixture_open(&f, &(struct fake_options){ .area_frames = 512,
						 .normal_frames = FAKE_NORMAL_NONE,
						 .run_pages_max = 16 });
	map_pages(&f, 512 - (REUSE_UNITS + 1) * 16, SUBLET_MOVABLE);
	race.vpn = map_pages(&f, REUSE_UNITS * 16, SUBLET_MOVABLE);
	threads_begin();
	for (uint32_t i = 0; i < REUSE_THREADS; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, reuse_main, &race), 0);
	while (wall_ns() < until) {
		struct sublet__window_range anywhere = { .to = MOVE_AREA_FIRST };
		pthread_kill(thread[signals++ % REUSE_THREADS], SIGUSR1);
		for (uint32_t i = 0; i < 20; i++)
			sublet__move_page(f.engine_mm[0], race.vpn + below(&state, REUSE_UNITS * 16),
					  &anywhere);
	}
	atomic_store(&race.stop, true);
	for (uint32_t i = 0; i < REUSE_THREADS; i++)
		pthread_join(thread[i], NULL);
	threads_end();
	sigaction(SIGUSR1, &old, NULL);
	print_message("%llu pins, %llu signals, %llu moves\n", (unsigned long long)atomic_load(&race.pins),
		      (unsigned long long)signals,
		      (unsigned long long)a64_load_relaxed(&f.arena->counters.moves));
	counts_are_zero(&f, race.vpn, REUSE_UNITS * 16);
	fixture_close(&f);
}

/* ---- a pin of a folio that is being cut ---- */

static _Atomic bool other_stopped;

static void stop_other(int signal)
{
	struct timespec ts = { 0, 10000 };
	int saved = errno;

	(void)signal;
	atomic_store(&other_stopped, true);
	nanosleep(&ts, NULL);
	atomic_store(&other_stopped, false);
	errno = saved;
}

static void *cut_pin_main(void *arg)
{
	struct race *r = arg;
	struct sublet_mm *mm = r->f->engine_mm[0];
	uint64_t state = wall_ns();

	while (!atomic_load(&r->stop)) {
		struct sublet_pin pin;
		uint32_t vpn = r->vpn + below(&state, 64);
		atomic_fetch_add(&r->rounds, 1);
		int err = pin_pages(r->f, vpn, 1, SUBLET_PIN_READ | SUBLET_PIN_NOWAIT, &pin);
		if (err == -EAGAIN)
			continue;
		/* The other thread was stopped somewhere: hold the pin until it has gone on. */
		for (uint64_t until = 0; atomic_load(&other_stopped) || until > wall_ns();)
			until = until ? until : wall_ns() + 5000;
		uint32_t head = sublet__frame_head(r->f->arena, pte_pfn(a32_load_relaxed(&mm->pte[vpn])));
		if (err || head == ENGINE_NONE ||
		    !(a32_load_relaxed(&r->f->arena->frames[head].ref) & REF_COUNT_MASK))
			fail_msg("a pin that holds nothing: %d", err);
		if (sublet_unpin(&pin))
			fail_msg("unpin");
		atomic_fetch_add_explicit(&r->pins, 1, memory_order_relaxed);
		/* Nothing is pinned for a while: the cutter needs all of the folio. */
		for (uint64_t until = wall_ns() + 2000; wall_ns() < until;)
			;
	}
	return NULL;
}

/* Block lock held: one folio of order 6 again, as if it had just come from a larger one. */
static bool cut_undo(struct race *r)
{
	struct sublet_mm *mm = r->f->engine_mm[0];
	uint32_t pfn = pte_pfn(a32_load_relaxed(&mm->pte[r->vpn]));
	struct sublet__frame *f = &r->f->arena->frames[pfn];

	if (!sublet__mm_freeze(mm, r->vpn, 64))
		return false;
	for (uint32_t i = 1; i < 64; i++)
		a32_store_release(&f[i].word, 0);
	a32_store_release(&f->word, frame_word(FRAME_MOVABLE, 6, 0));
	/* Nobody may be left who found one of them as a folio's first: the pinner has begun anew twice. */
	for (uint64_t rounds = atomic_load(&r->rounds);
	     atomic_load(&r->rounds) < rounds + 2 && !atomic_load(&r->stop);)
		sched_yield();
	for (uint32_t i = 1; i < 64; i++)
		a32_store_relaxed(&f[i].ref, 0); /* as of a frame that never was one */
	a32_store_release(&f->ref, 0);
	return true;
}

/* Cuts the folio at random places; interrupted at any instruction of it. */
static void *cut_main(void *arg)
{
	struct race *r = arg;
	struct sublet_mm *mm = r->f->engine_mm[0];
	uint64_t state = wall_ns();

	while (!atomic_load(&r->stop)) {
		uint32_t first = below(&state, 64), pages = 1 + below(&state, 64 - first);
		engine_lock(r->f->arena, block_lock_of(mm, r->vpn));
		if (cut_undo(r) && sublet__mm_freeze(mm, r->vpn + first, pages)) {
			sublet__mm_unfreeze(mm, r->vpn + first, pages);
			atomic_fetch_add_explicit(&r->moves, 1, memory_order_relaxed);
		}
		engine_unlock(r->f->arena, block_lock_of(mm, r->vpn));
	}
	return NULL;
}

/* Moves the folio to and fro; interrupted at any instruction of it. */
static void *shift_main(void *arg)
{
	struct race *r = arg;
	struct sublet__window_range anywhere = { .to = MOVE_AREA_FIRST };

	while (!atomic_load(&r->stop))
		if (sublet__move_page(r->f->engine_mm[0], r->vpn, &anywhere) > 0)
			atomic_fetch_add_explicit(&r->moves, 1, memory_order_relaxed);
	return NULL;
}

/* One thread pins pages of a folio of 64, and another one, which signals stop at any instruction, is in `main`. */
static void pin_beside(void *(*main)(void *))
{
	static struct fake f;
	struct race race = { .f = &f };
	struct sigaction action = { .sa_handler = stop_other, .sa_flags = SA_RESTART }, old;
	pthread_t pinner, other;
	uint64_t until = wall_ns() + soak_ns(1.5);

	assert_int_equal(sigaction(SIGUSR1, &action, &old), 0);
	fixture_open(&f, NULL);
	race.vpn = map_pages(&f, 64, SUBLET_MOVABLE);
	threads_begin();
	assert_int_equal(pthread_create(&pinner, NULL, cut_pin_main, &race), 0);
	assert_int_equal(pthread_create(&other, NULL, main, &race), 0);
	while (wall_ns() < until || (!atomic_load(&race.moves) && wall_ns() < until + 20 * SUBLET_SEC)) {
		struct timespec ts = { 0, 50000 };
		pthread_kill(other, SIGUSR1);
		nanosleep(&ts, NULL);
	}
	atomic_store(&race.stop, true);
	pthread_join(pinner, NULL);
	pthread_join(other, NULL);
	threads_end();
	sigaction(SIGUSR1, &old, NULL);
	print_message("%llu pins, %llu cuts or moves\n", (unsigned long long)atomic_load(&race.pins),
		      (unsigned long long)atomic_load(&race.moves));
	assert_true(atomic_load(&race.pins) > 0 && atomic_load(&race.moves) > 0);
	counts_are_zero(&f, race.vpn, 64);
	fixture_close(&f);
}

/* G2, G6: a pin of a page whose folio is being cut into pieces holds the piece. */
static void pin_cut_race(void **unused)
{
	(void)unused;
	pin_beside(cut_main);
}

/* G2, G6: a pin of a page whose folio has just moved holds the whole of the new folio. */
static void pin_publish_race(void **unused)
{
	(void)unused;
	pin_beside(shift_main);
}

/* G7, G10: the gate keeps new pins of its pages away by turns, nobody for ever, and no other pins. */
static void pin_gate(void **unused)
{
	static const struct {
		uint32_t waited_ms;
		bool is_closed;
	} turns[] = { { 0, false },   { 1, false },   { 2, true },  { 249, true },
		      { 250, false }, { 499, false }, { 500, true } };
	static struct fake f;
	struct sublet_pin pin;
	(void)unused;

	fixture_open(&f, NULL);
	uint32_t vpn = map_pages(&f, 100, SUBLET_MOVABLE), nowait = SUBLET_PIN_READ | SUBLET_PIN_NOWAIT;
	struct sublet_mm *mm = f.engine_mm[0];
	for (uint32_t t = 0; t < sizeof turns / sizeof *turns; t++) {
		sublet__pins_hold_off(mm, vpn + 10, 20, turns[t].waited_ms * SUBLET_MS);
		int err = pin_pages(&f, vpn + 29, 1, nowait, &pin);
		assert_int_equal(err, turns[t].is_closed ? -EAGAIN : 0);
		if (!err)
			assert_int_equal(sublet_unpin(&pin), 0);
		assert_int_equal(pin_pages(&f, vpn, 10, nowait, &pin), 0);
		assert_int_equal(sublet_unpin(&pin), 0);
		assert_int_equal(pin_pages(&f, vpn + 30, 70, nowait, &pin), 0);
		assert_int_equal(sublet_unpin(&pin), 0);
	}
	assert_int_equal(pin_pages(&f, vpn, 100, nowait, &pin), -EAGAIN);
	assert_int_equal(pin_pages(&f, vpn, 100, SUBLET_PIN_READ, &pin),
			 0); /* nobody opened it: not for ever */
	assert_int_equal(sublet_unpin(&pin), 0);
	sublet__pins_let_in(mm);
	assert_int_equal(pin_pages(&f, vpn, 100, nowait, &pin), 0);
	assert_int_equal(sublet_unpin(&pin), 0);
	fixture_close(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(pin_bad_arguments), cmocka_unit_test(pin_holds),
		cmocka_unit_test(pin_nowait),        cmocka_unit_test(pin_move_race),
		cmocka_unit_test(pin_reuse_race),    cmocka_unit_test(pin_cut_race),
		cmocka_unit_test(pin_publish_race),  cmocka_unit_test(pin_gate),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
