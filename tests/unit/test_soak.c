/* SPDX-License-Identifier: MIT */
/*
 * Everything at once, at random: actors that own mappings and claims of their own, and know what every
 * page has to read as. One actor alone, with the whole structure verified after every step; then several
 * on threads of their own, verified whenever all stand still. SEED=n replays the choices (with several
 * threads not their interleaving); UNIT_SECONDS=n makes it longer. Holds G1, G2, G5, G6, G8, G9.
 */
#include "fixture.h"

#include <stdio.h>

enum { MAPS = 16, PAGES_MAX = 600, CLAIMS = 3, THREADS = 4 };

enum page { PAGE_NONE = 0, PAGE_VALUE, PAGE_HOLE };

struct map {
	uint32_t vpn;
	uint32_t pages; /* 0: not in use */
	bool discardable;
	bool unlocked;
	uint8_t state[PAGES_MAX];
	uint64_t value[PAGES_MAX]; /* of every word, 0 or odd */
};

struct actor {
	struct fake *f;
	uint32_t mm;
	uint64_t state;
	bool devices; /* devices write through pins, or children are forked: not both (see below) */
	struct map map[MAPS];
	struct sublet_claim claim[CLAIMS];
	uint64_t steps;
};

static struct sublet_mm *mm_of(struct actor *a)
{
	return a->f->engine_mm[a->mm];
}

static void *at(struct actor *a, const struct map *m, uint32_t page)
{
	return addr_of(a->f, a->mm, m->vpn + page);
}

static void page_set(struct actor *a, struct map *m, uint32_t i, uint64_t value)
{
	for (uint32_t w = 0; w < FAKE_WORDS; w++)
		if (!fake_write(&a->f->mm[a->mm], m->vpn + i, w, value))
			fail_msg("store to page %u faults", m->vpn + i);
	m->value[i] = value;
	m->state[i] = PAGE_VALUE;
}

static bool page_is(struct actor *a, const struct map *m, uint32_t i, uint64_t value)
{
	for (uint32_t w = 0; w < FAKE_WORDS; w++) {
		uint64_t have = 0;
		if (!fake_read(&a->f->mm[a->mm], m->vpn + i, w, &have))
			fail_msg("load of page %u faults", m->vpn + i);
		if (have != value)
			return false;
	}
	return true;
}

static void map_check(struct actor *a, const struct map *m)
{
	for (uint32_t i = 0; i < m->pages && !m->unlocked; i++)
		if (m->state[i] == PAGE_VALUE && !page_is(a, m, i, m->value[i]))
			fail_msg("page %u is not what was written", m->vpn + i);
}

static uint32_t pages_random(struct actor *a)
{
	static const uint32_t most[] = { 1, 16, 40, 130, PAGES_MAX };
	return 1 + below(&a->state, most[below(&a->state, 5)]);
}

static void step_map(struct actor *a, struct map *m)
{
	uint32_t pages = pages_random(a), kind = below(&a->state, 4);
	uint32_t flags = kind == 0   ? SUBLET_DISCARDABLE
			 : kind == 1 ? SUBLET_MOVABLE | SUBLET_PLAIN_OK
				     : SUBLET_MOVABLE;
	uint64_t align = 1ull << below(&a->state, 22);
	void *addr;

	int err = sublet_map_aligned(mm_of(a), pages * PAGE, align, flags, &addr);
	if (err) {
		assert_int_equal(err, -ENOMEM);
		return;
	}
	assert_int_equal((uintptr_t)addr % align, 0);
	*m = (struct map){ .vpn = vpn_of(a->f, a->mm, addr), .pages = pages, .discardable = kind == 0 };
	for (uint32_t i = 0; i < pages; i++)
		m->state[i] = PAGE_VALUE;
	map_check(a, m); /* zero (G9) */
	for (uint32_t i = 0; i < pages; i++)
		page_set(a, m, i, rng(&a->state) | 1);
}

static void step_unmap(struct actor *a, struct map *m)
{
	uint32_t first = 0;

	map_check(a, m);
	if (below(&a->state, 3) == 0 && m->pages > 16) { /* the tail only */
		first = (1 + below(&a->state, (m->pages - 1) / 16)) * 16;
	}
	assert_int_equal(sublet_unmap(mm_of(a), at(a, m, first), (m->pages - first) * PAGE), 0);
	m->pages = first;
}

static void step_decommit(struct actor *a, struct map *m)
{
	uint32_t first = below(&a->state, m->pages), pages = 1 + below(&a->state, m->pages - first);

	assert_int_equal(sublet_decommit(mm_of(a), at(a, m, first), pages * PAGE),
			 m->discardable ? -EINVAL : 0);
	for (uint32_t i = first; i < first + pages && !m->discardable; i++)
		m->state[i] = PAGE_HOLE;
}

static void step_commit(struct actor *a, struct map *m)
{
	uint32_t first = 0, pages = 0;

	while (first < m->pages && m->state[first] != PAGE_HOLE)
		first++;
	while (first + pages < m->pages && m->state[first + pages] == PAGE_HOLE)
		pages++;
	if (!pages)
		return;
	int err = sublet_commit(mm_of(a), at(a, m, first), pages * PAGE,
				below(&a->state, 2) ? SUBLET_PLAIN_OK : 0);
	if (err) {
		assert_int_equal(err, -ENOMEM);
		return;
	}
	for (uint32_t i = first; i < first + pages; i++) {
		m->state[i] = PAGE_VALUE;
		m->value[i] = 0;
	}
	map_check(a, m);
}

static void step_lock(struct actor *a, struct map *m)
{
	if (!m->unlocked) {
		/* kept, where it is pinned or shared */
		assert_in_range(sublet_unlock(mm_of(a), at(a, m, 0), m->pages * PAGE), SUBLET_UNLOCKED,
				SUBLET_KEPT);
		m->unlocked = true;
		return;
	}
	int got = sublet_lock(mm_of(a), at(a, m, 0), m->pages * PAGE);
	if (got < 0) {
		assert_int_equal(got, -ENOMEM);
		return;
	}
	m->unlocked = false;
	for (uint32_t i = 0; i < m->pages; i++) { /* each page as it was, or zero if that was told (G1) */
		if (got == SUBLET_DISCARDED && !page_is(a, m, i, m->value[i]))
			m->value[i] = 0;
		if (!page_is(a, m, i, m->value[i]))
			fail_msg("page %u was dropped, and nobody said so", m->vpn + i);
		if (!m->value[i])
			page_set(a, m, i, rng(&a->state) | 1);
	}
}

static void step_pin(struct actor *a, struct map *m)
{
	uint32_t first = below(&a->state, m->pages), pages = 1 + below(&a->state, m->pages - first);
	struct fake_mm *mm = &a->f->mm[a->mm];
	struct sublet_pin pin;
	uint32_t nowait = below(&a->state, 2) ? SUBLET_PIN_NOWAIT : 0;
	bool holes = m->unlocked;

	for (uint32_t i = first; i < first + pages; i++)
		holes |= m->state[i] == PAGE_HOLE;
	int err = sublet_pin(mm_of(a), at(a, m, first), pages * PAGE, SUBLET_PIN_WRITE | nowait, NULL, &pin);
	if (err) {
		bool fork_or_move = (err == -EBUSY && !a->devices) || (err == -EAGAIN && nowait);
		if (!fork_or_move && !(err == -EFAULT && holes))
			fail_msg("pin: %d", err);
		return;
	}
	/* Only the first page of each folio is looked at: a hole inside one goes unseen, and does no harm. */
	assert_true(m->state[first] != PAGE_HOLE);
	fake_device_hold(mm, m->vpn + first, pages, 1);
	if (a->devices && !m->unlocked && fake_kind_of(mm, m->vpn + first) == FAKE_SHARED) {
		uint64_t value = rng(&a->state) | 1;
		uint32_t pfn = fake_pfn_of(mm, m->vpn + first);
		for (uint32_t w = 0; w < FAKE_WORDS; w++)
			fake_frame_write(a->f, pfn, w, value);
		m->value[first] = value;
	}
	fake_device_hold(mm, m->vpn + first, pages, -1);
	assert_int_equal(sublet_unpin(&pin), 0);
}

static void step_claim(struct actor *a)
{
	struct sublet_claim *c = &a->claim[below(&a->state, CLAIMS)];

	if (c->id) {
		claim_give(a->f, c);
		return;
	}
	struct sublet_claim_options o = {
		SUBLET_OPTIONS(sublet_claim_options),
		.deadline_ns = 300 * SUBLET_US,
		.flags = below(&a->state, 8),
		.align_bytes = 1ull << below(&a->state, 22),
		.owner = "soak",
	};
	int err = claim_take(a->f, pages_random(a) * below(&a->state, 3) * PAGE + 1, &o, c);
	if (err && err != -EBUSY && err != -ENOMEM && err != -E2BIG)
		fail_msg("claim: %d", err);
}

static void actor_step(struct actor *a)
{
	struct map *m = &a->map[below(&a->state, MAPS)];
	uint32_t what = below(&a->state, 20);

	a->steps++;
	if (what == 0) {
		step_claim(a);
	} else if (what == 1) {
		sublet__chaos_move(a->f->arena, mm_of(a), rng(&a->state));
	} else if (!m->pages) {
		step_map(a, m);
	} else if (what <= 3) {
		step_unmap(a, m);
	} else if (what <= 6) {
		step_decommit(a, m);
	} else if (what <= 8) {
		step_commit(a, m);
	} else if (what <= 12) {
		step_pin(a, m);
	} else if (what <= 14 && m->discardable) {
		step_lock(a, m);
	} else if (!m->unlocked) {
		uint32_t i = below(&a->state, m->pages);
		if (m->state[i] == PAGE_VALUE) {
			assert_true(page_is(a, m, i, m->value[i]));
			page_set(a, m, i, rng(&a->state) | 1);
		}
	}
}

static void actor_check(struct actor *a)
{
	for (uint32_t i = 0; i < MAPS; i++)
		map_check(a, &a->map[i]);
}

static void actor_end(struct actor *a)
{
	actor_check(a);
	for (uint32_t i = 0; i < MAPS; i++)
		if (a->map[i].pages)
			assert_int_equal(sublet_unmap(mm_of(a), at(a, &a->map[i], 0), a->map[i].pages * PAGE),
					 0);
	for (uint32_t i = 0; i < CLAIMS; i++)
		if (a->claim[i].id)
			claim_give(a->f, &a->claim[i]);
}

/* When all is given back, all is free (G8). */
static void arena_is_empty(struct fake *f)
{
	struct sublet_stats s = stats_of(f);

	assert_int_equal(s.area_free_bytes, s.area_bytes);
	assert_int_equal(s.normal_used_bytes, 0);
	assert_int_equal(s.lent_bytes, 0);
	assert_int_equal(s.plain_bytes, 0);
	assert_int_equal(s.claims_held, 0);
}

/* One actor: every answer is compared, and every invariant holds, after every step. */
static void soak_single(void **unused)
{
	static struct fake f;
	static struct actor a;
	uint64_t seed = seed_get("soak_single"), until = wall_ns() + soak_ns(4), steps = 0;
	(void)unused;

	for (uint64_t round = 0; round < 5 || wall_ns() < until; round++) {
		uint64_t state = seed + round;
		fixture_open(&f, &(struct fake_options){ .area_frames = (2 + below(&state, 3)) * 512,
							 .normal_frames = (1 + below(&state, 2)) * 512,
							 .run_pages_max = 1u << below(&state, 10),
							 .no_track = round & 1,
							 .virtual_time = true,
							 .dirty_zero_frames = round & 2,
							 .mapping_limit = round % 5 == 4 ? 150 : 0 });
		a = (struct actor){ .f = &f, .state = state, .devices = true };
		for (uint32_t n = 0; n < 300; n++) {
			actor_step(&a);
			fixture_verify(&f);
			if (n % 10 == 0)
				actor_check(&a);
		}
		steps += a.steps;
		actor_end(&a);
		arena_is_empty(&f);
		fixture_close(&f);
	}
	print_message("%llu steps\n", (unsigned long long)steps);
}

/* The same with one platform call in some hundred failing (G5). */
static void soak_failures(void **unused)
{
	static struct fake f;
	static struct actor a;
	uint64_t seed = seed_get("soak_failures"), until = wall_ns() + soak_ns(2), failed = 0;
	uint32_t mask = 1u << FAKE_TRACK | 1u << FAKE_BLOCK | 1u << FAKE_REMAP | 1u << FAKE_MAP;
	(void)unused;

	for (uint64_t round = 0; round < 3 || wall_ns() < until; round++) {
		fixture_open(&f, &(struct fake_options){ .area_frames = 1024, .virtual_time = true });
		a = (struct actor){ .f = &f, .state = seed + round, .devices = true };
		for (uint32_t n = 0; n < 400; n++) {
			fake_fail(&f, mask, 1 + below(&a.state, 20), -ENOMEM, below(&a.state, 5) == 0);
			actor_step(&a);
			failed += fake_fail_end(&f);
			fixture_verify(&f);
		}
		actor_end(&a);
		arena_is_empty(&f);
		fixture_close(&f);
	}
	print_message("%llu failures\n", (unsigned long long)failed);
	assert_true(failed > 10);
}

/* ---- threads ---- */

struct crowd {
	struct fake f;
	struct actor actor[THREADS];
	pthread_barrier_t barrier;
	_Atomic bool pause, stop;
};

struct member {
	struct crowd *crowd;
	struct actor *actor;
};

static void *member_main(void *arg)
{
	struct member *m = arg;

	while (!atomic_load(&m->crowd->stop)) {
		actor_step(m->actor);
		if (atomic_load(&m->crowd->pause)) {
			pthread_barrier_wait(&m->crowd->barrier); /* all stand still */
			pthread_barrier_wait(&m->crowd->barrier);
		}
	}
	return NULL;
}

/* A child that lives for a while, next to all the rest. */
static void fork_step(struct crowd *c, uint64_t *state)
{
	struct fake_child child;
	struct sublet_mm *mm = c->f.engine_mm[0];

	assert_int_equal(fork_begin(mm), 0);
	fake_child_fork(&child, &c->f.mm[0]);
	sublet__mm_fork_end(mm, 4711);
	for (uint32_t i = below(state, 200); i; i--)
		sublet__chaos_move(c->f.arena, mm, rng(state));
	assert_int_equal(fake_child_changed(&child), 0);
	fake_child_exit(&child);
	while (sublet__mm_fork_restore(mm, sublet__mm_fork_epoch(mm)) == -EAGAIN)
		c->f.platform.ops->sleep_ns(&c->f, 10000);
}

static void crowd_round(struct crowd *c, uint64_t seed, bool devices, uint64_t ns)
{
	pthread_t thread[THREADS];
	struct member member[THREADS];
	uint64_t until = wall_ns() + ns, steps = 0, state = seed;
	uint32_t quiet = 0, forks = 0;

	/* in every other round the kernel mappings are short, and are merged all the time */
	fixture_open(&c->f, &(struct fake_options){ .mms = 2,
						    .workers = 2,
						    .no_track = seed & 1,
						    .mm_pages = 16384,
						    .mapping_limit = seed & 2 ? 80 : 0 });
	pthread_barrier_init(&c->barrier, NULL, THREADS + 1);
	atomic_store(&c->stop, false);
	atomic_store(&c->pause, false);
	threads_begin();
	for (uint32_t i = 0; i < THREADS; i++) {
		c->actor[i] =
			(struct actor){ .f = &c->f, .mm = i % 2, .state = seed * 31 + i, .devices = devices };
		member[i] = (struct member){ c, &c->actor[i] };
		assert_int_equal(pthread_create(&thread[i], NULL, member_main, &member[i]), 0);
	}
	while (!atomic_load(&c->stop)) {
		uint64_t next = wall_ns() + 20 * SUBLET_MS;
		while (wall_ns() < next) {
			sublet__chaos_move(c->f.arena, c->f.engine_mm[rng(&state) % 2], rng(&state));
			if (!devices && below(&state, 20) == 0) {
				fork_step(c, &state);
				forks++;
			}
		}
		atomic_store(&c->pause, true);
		pthread_barrier_wait(&c->barrier);
		fixture_verify(&c->f);
		for (uint32_t i = 0; i < THREADS; i++)
			actor_check(&c->actor[i]);
		atomic_store(&c->pause, false);
		quiet++;
		atomic_store(&c->stop, wall_ns() >= until);
		pthread_barrier_wait(&c->barrier);
	}
	for (uint32_t i = 0; i < THREADS; i++)
		pthread_join(thread[i], NULL);
	threads_end();
	for (uint32_t i = 0; i < THREADS; i++) {
		steps += c->actor[i].steps;
		actor_end(&c->actor[i]);
	}
	struct sublet_stats s = stats_of(&c->f);
	print_message("%llu steps, %u quiet points, %u forks, %llu moves, %llu claims (%llu had)\n",
		      (unsigned long long)steps, quiet, forks, (unsigned long long)s.moves,
		      (unsigned long long)s.claims, (unsigned long long)s.claims_succeeded);
	arena_is_empty(&c->f);
	pthread_barrier_destroy(&c->barrier);
	fixture_close(&c->f);
}

/*
 * Devices write through pins in the one round, children are forked in the other: a device's write that
 * is in flight at the fork shows in the child's snapshot, which fork_begin promises against only for
 * pins that end within its patience.
 */
static void soak_threads(void **unused)
{
	static struct crowd crowd;
	uint64_t seed = seed_get("soak_threads");
	(void)unused;

	for (uint32_t round = 0; round < 4; round++)
		crowd_round(&crowd, seed + round, round & 1, soak_ns(1.5));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(soak_single),
		cmocka_unit_test(soak_failures),
		cmocka_unit_test(soak_threads),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
