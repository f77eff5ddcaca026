/* SPDX-License-Identifier: MIT */
/* core/move.c: G1 (bytes survive), L2 (device writes during a pre-copy survive), G5 and G6 (back-out). */
#include "fixture.h"

static const struct sublet__window_range anywhere = { .first_pfn = 0 };

static int64_t move_at(struct fake *f, uint32_t vpn)
{
	return sublet__move_page(f->engine_mm[0], vpn, &anywhere);
}

/* A run of many folios moves as one, in few pieces, and comes out in line. */
static void move_run(void **unused)
{
	static struct fake f;
	(void)unused;

	for (uint32_t no_track = 0; no_track < 2; no_track++)
		for (uint32_t run = 1; run <= 512; run *= 2) {
			fixture_open(&f,
				     &(struct fake_options){ .run_pages_max = run, .no_track = no_track });
			uint32_t vpn = map_pages(&f, 600, SUBLET_MOVABLE);
			fill(&f, 0, vpn, 600, run);
			int64_t moved = move_at(&f, vpn + 300);
			assert_int_equal(moved, run);
			for (uint32_t at = 0; at < 600; at += 7)
				assert_true(move_at(&f, vpn + at) > 0);
			check_fill(&f, 0, vpn, 600, run);
			assert_int_equal(move_at(&f, vpn + 600), 0); /* nothing is there */
			fixture_close(&f);
		}
}

static void write_when_tracked(void *arg, enum fake_op op, struct fake_mm *mm, uint32_t vpn, uint32_t pages)
{
	struct fake *f = arg;

	(void)mm, (void)pages;
	if (op == FAKE_BLOCK)
		assert_true(fake_write(&f->mm[0], vpn, 3, 7));
}

/* Runs are pre-copied while somebody writes; where nobody does, only one in a few is, to find out. */
static void move_precopy_where_written(void **unused)
{
	enum { MOVES = 80, RUN = 64 };
	static struct fake f;
	(void)unused;

	for (uint32_t writer = 0; writer < 2; writer++) {
		fixture_open(&f, NULL);
		uint32_t vpn = map_pages(&f, RUN, SUBLET_MOVABLE);
		fill(&f, 0, vpn, RUN, 1);
		f.hook = writer ? write_when_tracked : NULL;
		f.hook_arg = &f;
		for (uint32_t i = 0; i < MOVES; i++)
			assert_int_equal(move_at(&f, vpn), RUN);
		assert_int_equal(f.calls[FAKE_TRACK], writer ? MOVES : MOVES / 8);
		/* And back at once, as soon as one of the few finds a write. */
		f.hook = write_when_tracked;
		for (uint32_t i = 0; i < MOVES; i++)
			assert_int_equal(move_at(&f, vpn), RUN);
		assert_in_range(f.calls[FAKE_TRACK], writer ? 2 * MOVES : MOVES, 2 * MOVES);
		f.hook = NULL;
		fixture_close(&f);
	}
}

/* ---- a hook that acts in the middle of a move, where another thread might ---- */

enum { ACT_PROGRAM = 0, ACT_DEVICE, ACT_PIN_HELD, ACT_PIN_RELEASE_LATER, ACTS };

struct act {
	struct fake *f;
	uint32_t vpn;
	uint32_t what;
	uint64_t at; /* act at the at-th hook call */
	uint64_t count;
	bool done;
	uint64_t value;
	struct sublet_pin pin;
	bool pinned;
	enum fake_op op;
};

static void act_release(struct act *a)
{
	if (!a->pinned)
		return;
	a->pinned = false;
	fake_device_hold(&a->f->mm[0], a->vpn, 1, -1);
	assert_int_equal(sublet_unpin(&a->pin), 0);
}

static void act_pin(struct act *a)
{
	int err = sublet_pin(a->f->engine_mm[0], addr_of(a->f, 0, a->vpn), PAGE,
			     SUBLET_PIN_WRITE | SUBLET_PIN_NOWAIT, NULL, &a->pin);
	a->pinned = !err;
	if (err)
		assert_int_equal(err, -EAGAIN);
	else
		fake_device_hold(&a->f->mm[0], a->vpn, 1, 1);
}

static void act_hook(void *arg, enum fake_op op, struct fake_mm *mm, uint32_t vpn, uint32_t pages)
{
	struct act *a = arg;
	bool blocked = a->f->mm[0].page[a->vpn].blocked;

	(void)mm, (void)vpn, (void)pages;
	a->count++;
	/* The pin of ACT_PIN_RELEASE_LATER lasts over several ops, and the device writes at the end. */
	if (a->pinned && a->what == ACT_PIN_RELEASE_LATER && a->count > a->at && op == FAKE_BLOCK) {
		fake_frame_write(a->f, fake_pfn_of(&a->f->mm[0], a->vpn), 3, a->value);
		a->done = true;
		act_release(a);
	}
	if (a->count != a->at)
		return;
	a->op = op;
	if (a->what == ACT_PROGRAM && !blocked) {
		a->done = fake_write(&a->f->mm[0], a->vpn, 3, a->value);
	} else if (a->what != ACT_PROGRAM) {
		act_pin(a);
		if (a->pinned && a->what == ACT_DEVICE) {
			fake_frame_write(a->f, fake_pfn_of(&a->f->mm[0], a->vpn), 3, a->value);
			a->done = true;
			act_release(a);
		}
	}
}

/*
 * Every instant of a move at which the platform is called: there the program writes, or a device pins,
 * writes and unpins (at once, or just before the block), or pins and stays. Whatever it was, the write
 * is read back (G1, L2), and a pin that stays stops the move, which leaves all as it was (G2, G5, G6).
 */
static void move_act_everywhere(void **unused)
{
	static struct fake f;
	(void)unused;

	for (uint32_t mode = 0; mode < 2 * ACTS; mode++)
		for (uint64_t at = 1, reached = 1; reached; at++) {
			fixture_open(&f, &(struct fake_options){ .no_track = mode / ACTS });
			/* one unit: taking its destination from the area asks for the thread's slot */
			uint32_t vpn = map_pages(&f, 16, SUBLET_MOVABLE);
			fill(&f, 0, vpn, 16, 1);
			struct act a = {
				.f = &f, .vpn = vpn + 5, .what = mode % ACTS, .at = at, .value = 0xabcdef
			};
			struct sublet__window_range area = { .to = MOVE_AREA_FIRST };
			f.hook_arg = &a;
			f.hook = act_hook;
			uint32_t before = fake_pfn_of(&f.mm[0], vpn + 5);
			int64_t moved = sublet__move_page(f.engine_mm[0], vpn, &area);
			f.hook = NULL;
			reached = a.count >= at;
			if (a.pinned) {
				assert_int_equal(before == fake_pfn_of(&f.mm[0], vpn + 5), moved == -EAGAIN);
				act_release(&a);
			}
			uint64_t value = 0;
			assert_true(fake_read(&f.mm[0], vpn + 5, 3, &value));
			if (a.done && value != 0xabcdef)
				fail_msg("mode %u: the write at call %u (op %u) is lost", mode, (uint32_t)at,
					 a.op);
			assert_true(fake_write(&f.mm[0], vpn + 5, 3, 1)); /* nothing stays blocked */
			assert_true(moved == 16 || moved == -EAGAIN);
			fixture_verify(&f);
			assert_int_equal(move_at(&f, vpn), 16);
			fixture_close(&f);
		}
}

/* Map pages of one frame each, no two of them neighbours; the area has 512 frames. */
static uint32_t map_scattered(struct fake *f, uint32_t pages)
{
	static const uint32_t area[ZONES] = { ZONE_AREA, ZONE_AREA };
	uint32_t single[512];

	for (uint32_t n = 0; n < 512; n++)
		single[n] = sublet__folio_take(f->arena, 0, area);
	for (uint32_t n = 0; n < 2 * pages; n += 2)
		sublet__frames_put(f->arena, single[n], 1, ACCOUNT_MOVABLE);
	uint32_t vpn = map_pages(f, pages, SUBLET_MOVABLE);
	for (uint32_t n = 1; n < 512; n += n + 1 < 2 * pages ? 2 : 1)
		sublet__frames_put(f->arena, single[n], 1, ACCOUNT_MOVABLE);
	return vpn;
}

/*
 * A device writes to what the pre-copy has copied already, and is gone before the freeze: between the copies of two
 * pieces of the run. No page table knows of it; it is copied again all the same (L2, G1).
 */
static void move_device_writes_what_was_copied(void **unused)
{
	enum { PAGES = 16 };
	static struct fake f;
	(void)unused;

	for (uint64_t at = 1; at < PAGES; at++) {
		fixture_open(&f,
			     &(struct fake_options){ .area_frames = 512, .normal_frames = FAKE_NORMAL_NONE });
		uint32_t vpn = map_scattered(&f, PAGES);
		fill(&f, 0, vpn, PAGES, 1);
		/* the at-th call after that of track comes before the at-th piece is copied */
		struct act a = { .f = &f, .vpn = vpn, .what = ACT_DEVICE, .value = 0xabcdef };
		f.hook_arg = &a;
		f.hook = act_hook;
		a.at = 1 + at + 1;
		assert_int_equal(move_at(&f, vpn), PAGES);
		f.hook = NULL;
		assert_int_equal(a.op, FAKE_COPY);
		assert_true(a.done);
		uint64_t value = 0;
		assert_true(fake_read(&f.mm[0], vpn, 3, &value));
		assert_int_equal(value, 0xabcdef);
		fixture_close(&f);
	}
}

/* A folio in the middle of the run is pinned during the pre-copy: those before it, frozen by then, can be pinned too. */
static void move_meets_a_pin_half_way(void **unused)
{
	enum { PAGES = 16 };
	static struct fake f;
	struct sublet_pin pin;
	(void)unused;

	for (uint32_t page = 0; page < PAGES; page++) {
		fixture_open(&f,
			     &(struct fake_options){ .area_frames = 512, .normal_frames = FAKE_NORMAL_NONE });
		uint32_t vpn = map_scattered(&f, PAGES);
		struct act a = { .f = &f, .vpn = vpn + page, .what = ACT_PIN_HELD, .at = 3 };
		f.hook_arg = &a;
		f.hook = act_hook;
		assert_int_equal(move_at(&f, vpn), -EAGAIN);
		f.hook = NULL;
		assert_true(a.pinned);
		fixture_verify(&f);
		assert_int_equal(sublet_pin(f.engine_mm[0], addr_of(&f, 0, vpn), PAGES * PAGE,
					    SUBLET_PIN_WRITE | SUBLET_PIN_NOWAIT, NULL, &pin),
				 0);
		assert_int_equal(sublet_unpin(&pin), 0);
		act_release(&a);
		assert_int_equal(move_at(&f, vpn), PAGES);
		fixture_close(&f);
	}
}

/* G5: each platform call of a move fails in turn, once and for good; bytes, frames and counts stay. */
static void move_failures(void **unused)
{
	static struct fake f;
	(void)unused;

	for (uint32_t mode = 0; mode < 4; mode++)
		for (int64_t n = 1, reached = 1; reached; n++) {
			fixture_open(&f, &(struct fake_options){ .no_track = mode & 1 });
			uint32_t vpn = map_pages(&f, 100, SUBLET_MOVABLE), pfn[100];
			fill(&f, 0, vpn, 100, 2);
			for (uint32_t i = 0; i < 100; i++)
				pfn[i] = fake_pfn_of(&f.mm[0], vpn + i);
			fake_fail(&f, FAKE_CAN_FAIL, n, -ENOSYS, mode & 2);
			int64_t moved = move_at(&f, vpn);
			reached = fake_fail_end(&f);
			assert_true(moved == 64 || (reached && moved == -ENOSYS));
			for (uint32_t i = 0; i < 100 && moved < 0; i++)
				assert_int_equal(fake_pfn_of(&f.mm[0], vpn + i), pfn[i]);
			fixture_verify(&f);
			check_fill(&f, 0, vpn, 100, 2);
			assert_int_equal(stats_of(&f).lent_bytes, 100 * PAGE);
			assert_int_equal(stats_of(&f).moves_refused, moved < 0);
			fill(&f, 0, vpn, 100, 3); /* nothing stays blocked */
			assert_int_equal(move_at(&f, vpn), 64);
			check_fill(&f, 0, vpn, 100, 3);
			fixture_close(&f);
		}
}

/* No destination, no kernel mappings: refused before anything happens (G5). */
static void move_refused(void **unused)
{
	static struct fake f;
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .area_frames = 512, .normal_frames = FAKE_NORMAL_NONE });
	uint32_t vpn = map_pages(&f, 512, SUBLET_MOVABLE);
	assert_int_equal(move_at(&f, vpn), -ENOMEM);
	assert_int_equal(atomic_load(&f.calls[FAKE_BLOCK]), 0);
	fixture_verify(&f);
	assert_int_equal(sublet_unmap(f.engine_mm[0], addr_of(&f, 0, vpn), 512 * PAGE), 0);
	fixture_close(&f);

	fixture_open(&f, &(struct fake_options){ .area_frames = 512, .mapping_limit = 1 });
	vpn = map_pages(&f, 512, SUBLET_MOVABLE);
	uint32_t single[1024], n = 0;
	static const uint32_t normal[ZONES] = { ZONE_NORMAL, ZONE_AREA };
	while (n < 1024) /* only every other frame is free: a run would scatter */
		single[n++] = sublet__folio_take(f.arena, 0, normal);
	for (uint32_t i = 0; i < n; i += 2)
		sublet__frames_put(f.arena, single[i], 1, ACCOUNT_MOVABLE);
	assert_int_equal(move_at(&f, vpn), -ENOSPC);
	assert_int_equal(atomic_load(&f.calls[FAKE_BLOCK]), 0);
	for (uint32_t i = 1; i < n; i += 2)
		sublet__frames_put(f.arena, single[i], 1, ACCOUNT_MOVABLE);
	fixture_close(&f);
}

enum { WRITERS = 3, LIVE_PAGES = 700 };

struct live {
	struct fake *f;
	uint32_t vpn;
	uint32_t index;
	_Atomic bool *stop;
	uint64_t writes;
};

/* Owns pages index, index + WRITERS, ...; reads back every word that it wrote (G1). */
static void *live_main(void *arg)
{
	struct live *l = arg;
	static _Thread_local uint64_t last[LIVE_PAGES][FAKE_WORDS];
	uint64_t state = wall_ns() + l->index;

	while (!atomic_load(l->stop)) {
		uint32_t page = below(&state, LIVE_PAGES / WRITERS) * WRITERS + l->index,
			 word = below(&state, FAKE_WORDS);
		uint64_t value = 0;
		if (!fake_read(&l->f->mm[0], l->vpn + page, word, &value) || value != last[page][word])
			fail_msg("page %u word %u: %llx was written, %llx is read", page, word,
				 (unsigned long long)last[page][word], (unsigned long long)value);
		last[page][word] = rng(&state);
		if (!fake_write(&l->f->mm[0], l->vpn + page, word, last[page][word]))
			fail_msg("store faults");
		l->writes++;
	}
	return NULL;
}

/* G1 with writers at work and everything moving all the time, with and without pre-copy. */
static void move_live(void **unused)
{
	static struct fake f;
	uint64_t state = seed_get("move_live");
	(void)unused;

	for (uint32_t mode = 0; mode < 4; mode++) {
		_Atomic bool stop = false;
		struct live live[WRITERS];
		pthread_t thread[WRITERS];
		uint64_t moves = 0, writes = 0, until;
		fixture_open(&f, &(struct fake_options){ .no_track = mode & 1, .reads_wait = mode & 2 });
		uint32_t vpn = map_pages(&f, LIVE_PAGES, SUBLET_MOVABLE);
		threads_begin();
		for (uint32_t i = 0; i < WRITERS; i++) {
			live[i] = (struct live){ .f = &f, .vpn = vpn, .index = i, .stop = &stop };
			assert_int_equal(pthread_create(&thread[i], NULL, live_main, &live[i]), 0);
		}
		until = wall_ns() + soak_ns(0.6);
		while (wall_ns() < until)
			moves += sublet__chaos_move(f.arena, f.engine_mm[0], rng(&state)) > 0;
		atomic_store(&stop, true);
		for (uint32_t i = 0; i < WRITERS; i++) {
			pthread_join(thread[i], NULL);
			writes += live[i].writes;
		}
		threads_end();
		print_message("%llu moves, %llu writes, %llu frames copied again\n",
			      (unsigned long long)moves, (unsigned long long)writes,
			      (unsigned long long)a64_load_relaxed(&f.arena->counters.recopied_frames));
		assert_true(moves > 10);
		fixture_close(&f);
	}
}

/* Discardable and movable neighbours move, and stay what they are. */
static void move_neighbours(void **unused)
{
	static struct fake f;
	(void)unused;

	fixture_open(&f, NULL);
	uint32_t vpn = map_pages(&f, 16, SUBLET_DISCARDABLE), kind[4] = { 1, 0, 1, 1 };
	assert_int_equal(map_pages(&f, 16, SUBLET_MOVABLE), vpn + 16);
	assert_int_equal(map_pages(&f, 32, SUBLET_DISCARDABLE), vpn + 32);
	fill(&f, 0, vpn, 64, 1);
	for (uint32_t i = 0; i < 64; i++)
		move_at(&f, vpn + i);
	for (uint32_t i = 0; i < 4; i++) {
		void *addr = addr_of(&f, 0, vpn + i * 16);
		assert_int_equal(sublet_lock(f.engine_mm[0], addr, UNIT), kind[i] ? SUBLET_INTACT : -EINVAL);
	}
	check_fill(&f, 0, vpn, 64, 1);
	fixture_close(&f);
}

/* Scattered memory comes out in line, and the budget recovers. */
static void move_relieves_mappings(void **unused)
{
	static struct fake f;
	uint64_t state = seed_get("move_relieves_mappings");
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .mapping_limit = 600 });
	uint64_t most = 600, start;
	for (uint32_t i = 0; i < 100; i++)
		map_pages(&f, 1 + below(&state, 30), SUBLET_MOVABLE);
	start = stats_of(&f).mapping_count;
	most = start > most ? start : most;
	for (uint32_t i = 0; i < 2000; i++) {
		sublet__chaos_move(f.arena, f.engine_mm[0], rng(&state));
		assert_true(stats_of(&f).mapping_count <= most);
	}
	print_message("%u mappings at first, %u at last\n", (uint32_t)start,
		      (uint32_t)stats_of(&f).mapping_count);
	fixture_close(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(move_run),
		cmocka_unit_test(move_precopy_where_written),
		cmocka_unit_test(move_act_everywhere),
		cmocka_unit_test(move_device_writes_what_was_copied),
		cmocka_unit_test(move_meets_a_pin_half_way),
		cmocka_unit_test(move_failures),
		cmocka_unit_test(move_refused),
		cmocka_unit_test(move_live),
		cmocka_unit_test(move_relieves_mappings),
		cmocka_unit_test(move_neighbours),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
