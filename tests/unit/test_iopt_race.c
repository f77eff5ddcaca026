/* SPDX-License-Identifier: MIT */
/* core/iopt.c with several threads: devices that walk while it changes, writers that reuse each other's iova. */
#include "fixture.h"

#include "iopt_check.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

#define M2 (2 * SUBLET_MIB)
#define G1 SUBLET_GIB
#define RW (SUBLET_IOPT_READ | SUBLET_IOPT_WRITE)

static void open_arena(struct fake *f)
{
	fixture_open(f, &(struct fake_options){
				.area_frames = 1 << 18, .normal_frames = 1 << 18, .mm_pages = 512 });
}

/* ---- walkers against one writer, whose every state is known ---- */

/*
 * Before change k the writer writes down what each sample page translates to after it. A walk that began when s
 * changes were done, and ended when e had begun, must answer with a state from s to e; and a second walk of the same
 * page by the same thread must not answer with an older one than the first.
 */
enum { SAMPLES = 8, ROWS = 4096, WALKERS = 2, ALL = 1 << 18 };

static const uint64_t sample_page[SAMPLES] = { 0, 1, 511, 512, 1000, 1023, 1024, ALL - 1 };

struct history {
	struct sublet_iopt *iopt;
	_Atomic uint64_t begun, done;
	_Atomic uint64_t row[ROWS][SAMPLES]; /* after that many changes: offset + 1, or 0 */
	_Atomic bool stop;
	_Atomic uint64_t walks, during, found;
};

static uint64_t walk_once(struct history *h, uint64_t page)
{
	struct sublet_extent e;
	int err = sublet_iopt_translate(h->iopt, G1 + page * PAGE, SUBLET_IOPT_READ, &e);

	if (err && err != -EFAULT)
		fail_msg("translate: %d", err);
	return err ? 0 : e.offset_bytes + 1;
}

/* The first state from `from` to `to` with that answer; UINT64_MAX: there is none. */
static uint64_t state_find(struct history *h, uint32_t sample, uint64_t from, uint64_t to, uint64_t answer)
{
	for (uint64_t k = from; k <= to; k++)
		if (atomic_load(&h->row[k % ROWS][sample]) == answer)
			return k;
	return UINT64_MAX;
}

static void *walker_main(void *arg)
{
	struct history *h = arg;
	uint64_t state = wall_ns(), last = 0;

	for (uint32_t n = 0, sample = 0; !atomic_load(&h->stop); n++) {
		if (n % 2 == 0) {
			sample = below(&state, SAMPLES);
			last = 0;
		}
		uint64_t from = atomic_load(&h->done);
		uint64_t answer = walk_once(h, sample_page[sample]);
		uint64_t to = atomic_load(&h->begun);
		from = from > last ? from : last;
		last = state_find(h, sample, from, to, answer);
		if (atomic_load(&h->begun) - from >= ROWS - 1)
			last = 0; /* was stopped for so long that the rows are written anew */
		else if (last == UINT64_MAX)
			fail_msg("page %llu: %llx in no state from %llu to %llu",
				 (unsigned long long)sample_page[sample], (unsigned long long)answer,
				 (unsigned long long)from, (unsigned long long)to);
		atomic_fetch_add_explicit(&h->walks, 1, memory_order_relaxed);
		atomic_fetch_add_explicit(&h->during, to > from, memory_order_relaxed);
		atomic_fetch_add_explicit(&h->found, answer != 0, memory_order_relaxed);
	}
	return NULL;
}

/* One change: pages [first, first + pages) to the frames from offset on, or to nothing. */
static void change_make(struct history *h, uint64_t first, uint64_t pages, uint64_t offset, bool is_clear)
{
	uint64_t k = atomic_load(&h->begun) + 1;
	struct sublet_extent e = { offset, pages * PAGE };

	for (uint32_t i = 0; i < SAMPLES; i++) {
		uint64_t now = atomic_load(&h->row[(k - 1) % ROWS][i]), page = sample_page[i];
		if (page >= first && page < first + pages)
			now = is_clear ? 0 : offset + (page - first) * PAGE + 1;
		atomic_store(&h->row[k % ROWS][i], now);
	}
	atomic_store(&h->begun, k);
	int err = is_clear ? sublet_iopt_clear(h->iopt, G1 + first * PAGE, pages * PAGE, 0)
			   : sublet_iopt_fill(h->iopt, G1 + first * PAGE, &e, 1, 0);
	if (err)
		fail_msg("change: %d", err);
	atomic_store(&h->done, k);
}

static void change_random(struct history *h, uint64_t *state)
{
	static const uint64_t range[][2] = { { 0, 1 },           { 1, 511 },    { 0, 512 },  { 512, 512 },
					     { 1000, 24 },       { 1024, 512 }, { 0, 1024 }, { 300, 900 },
					     { 512, ALL - 512 }, { 0, ALL } };
	uint32_t kind = below(state, 8), r = below(state, below(state, 4) ? 8 : 10);
	uint64_t first = range[r][0], pages = range[r][1];
	/* Mostly in step with one of two large pieces, so that what was split becomes large again. */
	uint64_t offset = first * PAGE + (kind < 5 ? 0 : pages < 2048 ? G1 : 0);

	if (kind == 5 && pages < 2048)
		offset += 3 * PAGE;
	change_make(h, first, pages, offset, kind > 5);
}

static void interrupt(int signal)
{
	struct timespec ts = { 0, 50000 };
	int saved = errno;

	(void)signal;
	nanosleep(&ts, NULL);
	errno = saved;
}

static void race_walkers(void **unused)
{
	static struct fake f;
	static struct history h;
	struct sublet_iopt_options o = { SUBLET_OPTIONS(sublet_iopt_options), .aperture_bytes = 2 * G1 };
	struct sigaction action = { .sa_handler = interrupt, .sa_flags = SA_RESTART }, old;
	pthread_t thread[WALKERS];
	uint64_t until = wall_ns() + soak_ns(1.5), state = seed_get("race_walkers"), iova = G1, n = 0;
	(void)unused;

	memset(&h, 0, sizeof h);
	open_arena(&f);
	assert_int_equal(sublet_iopt_create(f.arena, &o, &h.iopt), 0);
	assert_int_equal(sublet_iopt_map(h.iopt, &iova, G1, 0, 0, RW), 0);
	assert_int_equal(sigaction(SIGUSR1, &action, &old), 0);
	threads_begin();
	for (uint32_t i = 0; i < WALKERS; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, walker_main, &h), 0);
	/* Walkers are stopped between any two of their loads. */
	for (; wall_ns() < until; n++) {
		change_random(&h, &state);
		if (n % 16 == 0)
			pthread_kill(thread[n / 16 % WALKERS], SIGUSR1);
	}
	atomic_store(&h.stop, true);
	for (uint32_t i = 0; i < WALKERS; i++)
		pthread_join(thread[i], NULL);
	threads_end();
	sigaction(SIGUSR1, &old, NULL);
	print_message(
		"%llu changes, %llu splits, %llu merges, %llu walks, %llu during a change, %llu found\n",
		(unsigned long long)n, (unsigned long long)h.iopt->splits, (unsigned long long)h.iopt->merges,
		(unsigned long long)atomic_load(&h.walks), (unsigned long long)atomic_load(&h.during),
		(unsigned long long)atomic_load(&h.found));
	assert_true(atomic_load(&h.during) > 0 && atomic_load(&h.found) > 0);
	assert_true(h.iopt->splits > 0 && h.iopt->merges > 0);
	iopt_check(h.iopt);
	sublet_iopt_destroy(h.iopt);
	fixture_close(&f);
}

/* ---- writers that map, fill, use, unmap; a device with a cache ---- */

enum { LINES = 64, WRITERS = 3 };

struct crowd {
	struct sublet_iopt *iopt;
	pthread_mutex_t
		lock; /* protects the device's cache, and is held over a walk, as a flush must wait for it */
	struct line {
		uint64_t pn, offset; /* pn 0: nothing */
	} line[LINES];
	_Atomic bool stop;
	_Atomic uint64_t rounds, reused, hits;
	_Atomic uint64_t last_pn; /* somebody else's, just now */
};

static void crowd_flush(void *ctx, uint64_t iova, uint64_t bytes)
{
	struct crowd *c = ctx;

	pthread_mutex_lock(&c->lock);
	for (uint32_t i = 0; i < LINES; i++)
		if (c->line[i].pn * PAGE >= iova && c->line[i].pn * PAGE < iova + bytes)
			c->line[i].pn = 0;
	pthread_mutex_unlock(&c->lock);
}

/* What the device gets to at a page: offset + 1, or 0. */
static uint64_t device_access(struct crowd *c, uint64_t pn)
{
	struct line *line = &c->line[pn % LINES];
	struct sublet_extent e;
	uint64_t answer = 0;

	pthread_mutex_lock(&c->lock);
	if (line->pn == pn) {
		answer = line->offset + 1;
		atomic_fetch_add_explicit(&c->hits, 1, memory_order_relaxed);
	} else if (!sublet_iopt_translate(c->iopt, pn * PAGE, RW, &e)) {
		*line = (struct line){ pn, e.offset_bytes };
		answer = e.offset_bytes + 1;
	}
	pthread_mutex_unlock(&c->lock);
	return answer;
}

static void expect_access(struct crowd *c, uint64_t pn, uint64_t want)
{
	uint64_t have = device_access(c, pn);

	if (have != want)
		fail_msg("page %llu: want %llx, have %llx (G4)", (unsigned long long)pn,
			 (unsigned long long)want, (unsigned long long)have);
}

static int fill_at(struct crowd *c, uint64_t pn, uint64_t pages, uint64_t offset, uint32_t flags)
{
	return sublet_iopt_fill(c->iopt, pn * PAGE, &(struct sublet_extent){ offset, pages * PAGE }, 1,
				flags);
}

/* Nobody else knows this mapping, so whatever the device finds there must be ours, or nothing. */
static void crowd_round(struct crowd *c, uint64_t *state)
{
	uint64_t pages = below(state, 6) ? 1 + below(state, 8) : 512, iova = SUBLET_IOVA_ANY;
	uint64_t offset = (uint64_t)below(state, 500) * M2, second = (uint64_t)below(state, 500) * M2 + PAGE;
	uint32_t lazy = below(state, 2) ? SUBLET_IOPT_NOFLUSH : 0;
	int err = sublet_iopt_map(c->iopt, &iova, pages * PAGE, PAGE, 0, RW);

	if (err)
		fail_msg("map: %d", err);
	uint64_t pn = iova / PAGE, at = below(state, (uint32_t)pages);
	err = fill_at(c, pn, pages, offset, 0);
	expect_access(c, pn + at, offset + at * PAGE + 1);
	expect_access(c, pn + pages - 1, offset + (pages - 1) * PAGE + 1);
	if (below(state, 2)) {
		err |= sublet_iopt_clear(c->iopt, iova + at * PAGE, PAGE, lazy);
		if (lazy)
			sublet_iopt_flush(c->iopt);
		expect_access(c, pn + at, 0);
		err |= fill_at(c, pn + at, 1, second, lazy); /* removes nothing: no flush is owed */
		expect_access(c, pn + at, second + 1);
	}
	if (below(state, 2)) {
		err |= fill_at(c, pn, pages, second, 0);
		expect_access(c, pn + at, second + at * PAGE + 1);
	}
	err |= sublet_iopt_unmap(c->iopt, iova, pages * PAGE, lazy);
	if (err)
		fail_msg("round: %d", err);
	atomic_fetch_add_explicit(&c->reused, atomic_exchange(&c->last_pn, pn) == pn, memory_order_relaxed);
	atomic_fetch_add_explicit(&c->rounds, 1, memory_order_relaxed);
}

static void *crowd_main(void *arg)
{
	struct crowd *c = arg;
	uint64_t state = wall_ns();

	while (!atomic_load(&c->stop))
		crowd_round(c, &state);
	return NULL;
}

/* G4, G9: as soon as fill has returned the device gets to these frames; as soon as clear has, to none. */
static void race_writers(void **unused)
{
	static struct fake f;
	static struct crowd c;
	/* Little room: what one unmaps, the next one maps. */
	struct sublet_iopt_options o = { SUBLET_OPTIONS(sublet_iopt_options), .aperture_bytes = 8 * M2,
					 .flush = crowd_flush, .ctx = &c };
	pthread_t thread[WRITERS];
	(void)unused;

	memset(&c, 0, sizeof c);
	pthread_mutex_init(&c.lock, NULL);
	open_arena(&f);
	assert_int_equal(sublet_iopt_create(f.arena, &o, &c.iopt), 0);
	threads_begin();
	for (uint32_t i = 0; i < WRITERS; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, crowd_main, &c), 0);
	for (uint64_t until = wall_ns() + soak_ns(1.5); wall_ns() < until;)
		nanosleep(&(struct timespec){ 0, 10000000 }, NULL);
	atomic_store(&c.stop, true);
	for (uint32_t i = 0; i < WRITERS; i++)
		pthread_join(thread[i], NULL);
	threads_end();
	print_message("%llu rounds, %llu on the iova of the round before, %llu cached, %llu flushes\n",
		      (unsigned long long)atomic_load(&c.rounds), (unsigned long long)atomic_load(&c.reused),
		      (unsigned long long)atomic_load(&c.hits), (unsigned long long)c.iopt->flushes);
	assert_true(atomic_load(&c.reused) > 0 && atomic_load(&c.hits) > 0 && c.iopt->flushes > 0);
	assert_int_equal(c.iopt->iova.taken, 0);
	iopt_check(c.iopt);
	sublet_iopt_destroy(c.iopt);
	pthread_mutex_destroy(&c.lock);
	fixture_close(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(race_walkers),
		cmocka_unit_test(race_writers),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
