/* SPDX-License-Identifier: MIT */
/* Zeroing ahead of time (core/zone.c): what it calls zero is zero, and no claim zeroes it again (G8, G9). */
#include "fixture.h"

#include <pthread.h>
#include <sched.h>
#include <string.h>

static const struct fake_options dirty_options = { .area_frames = 4096, .normal_frames = 1024 };

static uint64_t zero_all(struct fake *f)
{
	uint64_t steps = 0;

	while (sublet__arena_zero_step(f->arena))
		steps++;
	return steps;
}

/* Memory that was written and unmapped is zeroed once, and a claim of all of it has nothing to zero. */
static void zero_once(void **state)
{
	struct sublet_claim claim;
	struct fake f;

	(void)state;
	fixture_open(&f, &dirty_options);
	(void)zero_all(&f);
	uint32_t vpn = map_pages(&f, 1024, SUBLET_MOVABLE);
	fill(&f, 0, vpn, 1024, 7);
	assert_int_equal(sublet_unmap(f.engine_mm[0], addr_of(&f, 0, vpn), bytes_of(&f, 1024)), 0);
	assert_true(zero_all(&f) > 0);
	fixture_verify(&f);
	assert_int_equal(zero_all(&f), 0);
	assert_int_equal(claim_take(&f, bytes_of(&f, 4096), NULL, &claim), 0); /* checks that it is zero */
	assert_int_equal(claim.zeroed_bytes, 0);
	claim_give(&f, &claim); /* scribbled on */
	assert_true(zero_all(&f) > 0);
	assert_int_equal(claim_take(&f, bytes_of(&f, 4096), NULL, &claim), 0);
	assert_int_equal(claim.zeroed_bytes, 0);
	claim_give(&f, &claim);
	fixture_close(&f);
}

/* What a claim moved away was read just now, and is zeroed as warm; what was free is as cold as what waits. */
static void zero_warm(void **state)
{
	struct sublet_claim claim;
	struct fake f;

	(void)state;
	fixture_open(&f, &dirty_options);
	(void)zero_all(&f);
	assert_int_equal(f.zeroed_warm, 0);
	uint32_t vpn = map_pages(&f, 4096, SUBLET_MOVABLE);
	fill(&f, 0, vpn, 4096, 7);
	assert_int_equal(claim_take(&f, bytes_of(&f, 1024), NULL, &claim), 0);
	assert_int_equal(claim.zeroed_bytes, bytes_of(&f, 1024));
	assert_int_equal(f.zeroed_warm, 1024);
	claim_give(&f, &claim); /* scribbled on */
	uint64_t cold = f.zeroed_cold;
	assert_int_equal(claim_take(&f, bytes_of(&f, 1024), NULL, &claim), 0);
	assert_int_equal(claim.zeroed_bytes, bytes_of(&f, 1024));
	assert_int_equal(f.zeroed_warm, 1024);
	assert_int_equal(f.zeroed_cold, cold + 1024);
	claim_give(&f, &claim);
	check_fill(&f, 0, vpn, 4096, 7);
	fixture_close(&f);
}

struct timed {
	struct fake f;
	_Atomic uint32_t zeroing, expected; /* nobody is through before so many have begun */
};

static void zero_takes_time(void *arg, enum fake_op op, struct fake_mm *mm, uint32_t vpn, uint32_t pages)
{
	struct timed *t = arg;
	(void)mm, (void)vpn;

	if (op != FAKE_ZERO)
		return;
	atomic_fetch_add(&t->zeroing, 1);
	for (uint64_t until = wall_ns() + SUBLET_SEC;
	     atomic_load(&t->zeroing) < atomic_load(&t->expected) && wall_ns() < until;)
		sched_yield();
	atomic_fetch_add(&t->f.clock_ns, (uint64_t)pages * SUBLET_US);
}

/* The time spent zeroing is the mean of those who zeroed: helpers that did not come make it no shorter. */
static void zero_time_is_of_who_came(void **state)
{
	static struct timed t;
	struct sublet_claim claim;

	(void)state;
	for (uint32_t alone = 0; alone < 2; alone++) {
		fixture_open(&t.f, &(struct fake_options){ .area_frames = 4096,
							   .normal_frames = 2048,
							   .workers = 4,
							   .virtual_time = true });
		uint32_t vpn = map_pages(&t.f, 4096, SUBLET_MOVABLE);
		fill(&t.f, 0, vpn, 4096, 7);
		t.f.hook_arg = &t;
		t.f.hook = zero_takes_time;
		atomic_store(&t.zeroing, 0);
		atomic_store(&t.expected, alone ? 1 : 4);
		if (alone) /* another claim has them */
			pthread_mutex_lock(&t.f.workers_lock);
		assert_int_equal(claim_take(&t.f, bytes_of(&t.f, 2048), NULL, &claim), 0);
		if (alone)
			pthread_mutex_unlock(&t.f.workers_lock);
		t.f.hook = NULL;
		assert_int_equal(claim.zeroed_bytes, bytes_of(&t.f, 2048));
		assert_true(claim.zeroing_ns <= claim.latency_ns);
		assert_true(claim.zeroing_ns >= 2048 * SUBLET_US / (alone ? 1 : 4));
		claim_give(&t.f, &claim);
		check_fill(&t.f, 0, vpn, 4096, 7);
		fixture_close(&t.f);
	}
}

/* Part of a large folio that is dirty makes all of it dirty. */
static void zero_merges(void **state)
{
	struct sublet_claim claim;
	struct fake f;

	(void)state;
	fixture_open(&f, &dirty_options);
	(void)zero_all(&f);
	uint32_t vpn = map_pages(&f, 1, SUBLET_MOVABLE);
	fill(&f, 0, vpn, 1, 9);
	assert_int_equal(sublet_unmap(f.engine_mm[0], addr_of(&f, 0, vpn), PAGE), 0);
	assert_int_equal(claim_take(&f, bytes_of(&f, 4096), NULL, &claim), 0);
	assert_true(claim.zeroed_bytes >= PAGE);
	claim_give(&f, &claim);
	fixture_close(&f);
}

static void *zero_thread(void *arg)
{
	struct fake *f = arg;

	for (int i = 0; i < 400; i++) {
		sublet__arena_zero_wait(f->arena);
		(void)zero_all(f);
	}
	return NULL;
}

/* A thread zeroes while others claim, scribble, release, map, write and unmap: every claim reads zero. */
static void zero_races(void **state)
{
	struct sublet_claim claim;
	pthread_t thread;
	struct fake f;

	(void)state;
	fixture_open(&f, &dirty_options);
	threads_begin();
	assert_int_equal(pthread_create(&thread, NULL, zero_thread, &f), 0);
	for (uint32_t i = 0; i < 400; i++) {
		uint32_t vpn = map_pages(&f, 64 + i % 512, SUBLET_MOVABLE);
		check_zero(&f, 0, vpn, 64 + i % 512);
		fill(&f, 0, vpn, 64 + i % 512, i);
		assert_int_equal(claim_take(&f, bytes_of(&f, 512 + i), NULL, &claim), 0);
		check_fill(&f, 0, vpn, 64 + i % 512, i);
		claim_give(&f, &claim);
		assert_int_equal(
			sublet_unmap(f.engine_mm[0], addr_of(&f, 0, vpn), bytes_of(&f, 64 + i % 512)), 0);
		sublet__arena_zero_wake(f.arena);
	}
	for (uint32_t i = 0; i < 400; i++) /* the thread counts its waits: let all of them end */
		sublet__arena_zero_wake(f.arena), sched_yield();
	while (pthread_tryjoin_np(thread, NULL))
		sublet__arena_zero_wake(f.arena), sched_yield();
	threads_end();
	fixture_close(&f);
}

struct in_hand {
	struct fake f;
	_Atomic uint32_t taken;
};

static void linger(void *arg, enum fake_op op, struct fake_mm *mm, uint32_t vpn, uint32_t pages)
{
	struct in_hand *h = arg;
	(void)mm, (void)pages;

	if (op == FAKE_ZERO && vpn >= 512 && !atomic_exchange(&h->taken, 1))
		for (uint64_t until = wall_ns() + 3 * SUBLET_MS; wall_ns() < until;)
			sched_yield();
}

static void *step_thread(void *arg)
{
	struct in_hand *h = arg;

	assert_true(sublet__arena_zero_step(h->f.arena));
	return NULL;
}

/* All the room that a claim has to move to is in the hand that zeroes it: the claim waits for it (G10). */
static void zero_in_hand(void **state)
{
	static struct in_hand h;
	struct sublet_claim claim;
	pthread_t thread;

	(void)state;
	memset(&h, 0, sizeof h);
	fixture_open(&h.f, &(struct fake_options){
				   .area_frames = 512, .normal_frames = 512, .dirty_zero_frames = true });
	uint32_t vpn = map_pages(&h.f, 512, SUBLET_MOVABLE);
	fill(&h.f, 0, vpn, 512, 5);
	h.f.hook_arg = &h;
	h.f.hook = linger;
	threads_begin();
	assert_int_equal(pthread_create(&thread, NULL, step_thread, &h), 0);
	while (!atomic_load(&h.taken))
		sched_yield();
	assert_int_equal(claim_take(&h.f, bytes_of(&h.f, 512), NULL, &claim), 0);
	pthread_join(thread, NULL);
	threads_end();
	h.f.hook = NULL;
	check_fill(&h.f, 0, vpn, 512, 5);
	claim_give(&h.f, &claim);
	fixture_close(&h.f);
}

struct sleeper {
	struct fake f;
	_Atomic bool sleeps, woke;
};

static void *sleeper_thread(void *arg)
{
	struct sleeper *s = arg;

	sublet__arena_zero_wait(s->f.arena); /* what creation freed */
	atomic_store(&s->sleeps, true);
	sublet__arena_zero_wait(s->f.arena);
	atomic_store(&s->woke, true);
	return NULL;
}

/* What is freed while a window is emptied wakes nobody before that is over, and then it does. */
static void zero_woken_late(void **state)
{
	static struct sleeper s;
	pthread_t thread;

	(void)state;
	fixture_open(&s.f, &dirty_options);
	uint32_t vpn = map_pages(&s.f, 512, SUBLET_MOVABLE);
	sublet__arena_zero_wake(s.f.arena);
	threads_begin();
	assert_int_equal(pthread_create(&thread, NULL, sleeper_thread, &s), 0);
	while (!atomic_load(&s.sleeps))
		sched_yield();
	for (uint64_t until = wall_ns() + 20 * SUBLET_MS; wall_ns() < until;) /* until it is parked */
		sched_yield();
	sublet__emptying_begin(s.f.arena);
	assert_int_equal(sublet_unmap(s.f.engine_mm[0], addr_of(&s.f, 0, vpn), bytes_of(&s.f, 512)), 0);
	for (uint64_t until = wall_ns() + 20 * SUBLET_MS; wall_ns() < until;)
		sched_yield();
	assert_false(atomic_load(&s.woke));
	sublet__emptying_end(s.f.arena);
	pthread_join(thread, NULL);
	threads_end();
	fixture_close(&s.f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(zero_once),
		cmocka_unit_test(zero_warm),
		cmocka_unit_test(zero_merges),
		cmocka_unit_test(zero_races),
		cmocka_unit_test(zero_in_hand),
		cmocka_unit_test(zero_woken_late),
		cmocka_unit_test(zero_time_is_of_who_came),
	};
	return cmocka_run_group_tests_name("zero", tests, NULL, NULL);
}
