/* SPDX-License-Identifier: MIT */
/* core/notifier.c and core/invalidate.c with threads: who waits for whom, the reading sequence under load (G4, G7). */
#include "fixture.h"

#include <sched.h>
#include <time.h>

#include <sublet/notifier.h>

/* ---- one at a time: a callback that another thread lets go on ---- */

struct gate {
	struct sublet_notifier notifier;
	struct gate *remove; /* removed from inside the callback, once it may go on */
	_Atomic bool open;
	_Atomic uint32_t inside;
	_Atomic uint32_t calls;
	_Atomic int result; /* of the removal; 1: none yet */
};

static void nap(void)
{
	struct timespec ts = { 0, 200000 };
	nanosleep(&ts, NULL);
}

static int gate_invalidate(void *ctx, const struct sublet_invalidation *inv)
{
	struct gate *g = ctx;

	(void)inv;
	atomic_fetch_add(&g->calls, 1);
	atomic_fetch_add(&g->inside, 1);
	while (!atomic_load(&g->open))
		nap();
	if (g->remove)
		atomic_store(&g->result, sublet_notifier_remove(&g->remove->notifier));
	atomic_fetch_sub(&g->inside, 1);
	return 0;
}

static const struct sublet_notifier_ops gate_ops = { SUBLET_OPTIONS(sublet_notifier_ops), gate_invalidate };

static void gate_add(struct sublet_mm *mm, struct gate *g, uint32_t vpn, uint32_t pages, struct gate *remove)
{
	void *addr = (void *)(uintptr_t)(mm->config.base + vpn * PAGE);

	*g = (struct gate){ .remove = remove, .result = 1 };
	assert_int_equal(sublet_notifier_add(mm, addr, pages * PAGE, &gate_ops, g, NULL, &g->notifier), 0);
}

static void wait_inside(struct gate *g, uint32_t count)
{
	while (atomic_load(&g->inside) < count)
		nap();
}

/* A thread that does one thing. */
struct job {
	pthread_t thread;
	struct sublet_mm *mm;
	struct gate *gate;
	uint32_t vpn;
	uint64_t timeout_ns;
	_Atomic bool done;
	_Atomic bool rests;
	_Atomic uint32_t turn;
	int result;
};

static void *invalidate_main(void *arg)
{
	struct job *j = arg;
	struct sublet__invalidation inv;

	j->result = sublet__invalidate_begin(j->mm, &inv, j->vpn, 1, SUBLET_NOTIFIER_UNMAP, true);
	if (!j->result)
		sublet__invalidate_end(j->mm, &inv);
	atomic_store(&j->done, true);
	return NULL;
}

static void *remove_main(void *arg)
{
	struct job *j = arg;

	j->result = sublet_notifier_remove(&j->gate->notifier);
	atomic_store(&j->done, true);
	return NULL;
}

static void *read_main(void *arg)
{
	struct job *j = arg;
	uint64_t seq;

	j->result = sublet_notifier_read_begin(&j->gate->notifier, j->timeout_ns, &seq);
	atomic_store(&j->done, true);
	return NULL;
}

static void job_start(struct job *j, void *(*fn)(void *), struct sublet_mm *mm, struct gate *gate,
		      uint32_t vpn)
{
	j->mm = mm;
	j->gate = gate;
	j->vpn = vpn;
	assert_int_equal(pthread_create(&j->thread, NULL, fn, j), 0);
}

static int job_end(struct job *j)
{
	pthread_join(j->thread, NULL);
	return j->result;
}

/* Time enough to go wrong in. */
static bool stays_undone(struct job *j)
{
	for (uint32_t i = 0; i < 100; i++) {
		if (atomic_load(&j->done))
			return false;
		nap();
	}
	return true;
}

/* remove waits for a callback on another thread; nobody is called after it. */
static void remove_waits(void **unused)
{
	static struct fake f;
	struct gate g;
	struct job inv = { 0 }, remove = { 0 };
	struct sublet__invalidation more;
	(void)unused;

	fixture_open(&f, NULL);
	threads_begin();
	gate_add(f.engine_mm[0], &g, 5, 1, NULL);
	job_start(&inv, invalidate_main, f.engine_mm[0], NULL, 5);
	wait_inside(&g, 1);
	job_start(&remove, remove_main, f.engine_mm[0], &g, 0);
	/* Until the other thread has begun: ours would be the one that waits, for ever. */
	while (a32_load_acquire(
		       &notifier_node(&f.engine_mm[0]->notifiers, (uint32_t)g.notifier.id)->generation) &
	       1)
		nap();
	assert_true(stays_undone(&remove));
	assert_int_equal(sublet_notifier_remove(&g.notifier), -EINVAL); /* it is as good as gone */
	assert_int_equal(sublet__invalidate_begin(f.engine_mm[0], &more, 5, 1, SUBLET_NOTIFIER_MOVE, false),
			 0);
	sublet__invalidate_end(f.engine_mm[0], &more);
	assert_int_equal(atomic_load(&g.calls), 1);
	assert_int_equal(f.engine_mm[0]->notifiers.nodes_free, 0); /* not given to anybody else meanwhile */
	atomic_store(&g.open, true);
	assert_int_equal(job_end(&remove), 0);
	assert_int_equal(atomic_load(&g.inside), 0);
	assert_int_equal(job_end(&inv), 0);
	assert_int_equal(f.engine_mm[0]->notifiers.nodes_free, 1);
	threads_end();
	fixture_close(&f);
}

/* Two callbacks of one notifier remove it: one waits for the other, the other is told at once. */
static void remove_twice(void **unused)
{
	static struct fake f;
	struct gate g;
	struct job inv[2] = { 0 };
	(void)unused;

	fixture_open(&f, NULL);
	threads_begin();
	for (uint32_t round = 0; round < 50; round++) {
		gate_add(f.engine_mm[0], &g, 5, 1, &g);
		for (uint32_t i = 0; i < 2; i++)
			job_start(&inv[i], invalidate_main, f.engine_mm[0], NULL, 5);
		wait_inside(&g, 2);
		atomic_store(&g.open, true);
		assert_int_equal(job_end(&inv[0]), 0);
		assert_int_equal(job_end(&inv[1]), 0);
		assert_int_equal(sublet_notifier_remove(&g.notifier), -EINVAL);
		assert_int_equal(f.engine_mm[0]->notifiers.nodes_free, 1);
		assert_int_equal(f.engine_mm[0]->notifiers.registered, 0);
	}
	threads_end();
	fixture_close(&f);
}

/* Callbacks that remove each other's notifier in a circle, over two mms: one of them is refused, nobody hangs (G6). */
static void remove_circle(void **unused)
{
	static struct fake f;
	enum { MOST = 4 };
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .mms = 2 });
	threads_begin();
	for (uint32_t round = 0; round < 40; round++) {
		struct gate g[MOST];
		struct job inv[MOST] = { 0 };
		uint32_t count = 2 + round % (MOST - 1), refused = 0;
		for (uint32_t i = 0; i < count; i++) {
			gate_add(f.engine_mm[i % 2], &g[i], 10 + i, 1, &g[(i + 1) % count]);
			job_start(&inv[i], invalidate_main, f.engine_mm[i % 2], NULL, 10 + i);
		}
		for (uint32_t i = 0; i < count; i++)
			wait_inside(&g[i], 1);
		for (uint32_t i = 0; i < count; i++)
			atomic_store(&g[i].open, true);
		for (uint32_t i = 0; i < count; i++) {
			assert_int_equal(job_end(&inv[i]), 0);
			int result = atomic_load(&g[i].result);
			assert_true(result == 0 || result == -EDEADLK);
			refused += result != 0;
			/* Refused: it is registered as it was. */
			int again = sublet_notifier_remove(&g[(i + 1) % count].notifier);
			assert_int_equal(again, result ? 0 : -EINVAL);
		}
		assert_int_equal(refused, 1);
		assert_null(f.arena->notifier_waits.list);
	}
	threads_end();
	fixture_close(&f);
}

/* A chain without a circle is no reason to refuse: the first waits for the second, which waits for the third. */
static void remove_chain(void **unused)
{
	static struct fake f;
	struct gate g[3];
	struct job inv[3] = { 0 };
	(void)unused;

	fixture_open(&f, NULL);
	threads_begin();
	for (uint32_t i = 0; i < 3; i++)
		gate_add(f.engine_mm[0], &g[i], 10 + i, 1, i < 2 ? &g[i + 1] : NULL);
	for (uint32_t i = 0; i < 3; i++)
		job_start(&inv[i], invalidate_main, f.engine_mm[0], NULL, 10 + i);
	for (uint32_t i = 0; i < 3; i++)
		wait_inside(&g[i], 1);
	atomic_store(&g[0].open, true);
	atomic_store(&g[1].open, true);
	assert_true(stays_undone(&inv[0]) && stays_undone(&inv[1]));
	atomic_store(&g[2].open, true);
	for (uint32_t i = 0; i < 3; i++)
		assert_int_equal(job_end(&inv[i]), 0);
	assert_int_equal(atomic_load(&g[0].result), 0);
	assert_int_equal(atomic_load(&g[1].result), 0);
	assert_int_equal(sublet_notifier_remove(&g[0].notifier), 0);
	threads_end();
	fixture_close(&f);
}

/* ---- read_begin's time (G7) ---- */

static void read_times(void **unused)
{
	static struct fake f;
	struct gate g;
	struct job inv = { 0 }, gone = { .timeout_ns = 20 * SUBLET_SEC };
	struct job waits[2] = { { .timeout_ns = 20 * SUBLET_SEC }, { .timeout_ns = UINT64_MAX } };
	uint64_t seq, start;
	(void)unused;

	fixture_open(&f, NULL);
	threads_begin();
	gate_add(f.engine_mm[0], &g, 5, 1, NULL);
	assert_int_equal(sublet_notifier_read_begin(&g.notifier, 0, &seq), 0);
	job_start(&inv, invalidate_main, f.engine_mm[0], NULL, 5);
	wait_inside(&g, 1);

	/* 0 looks, and never sleeps; a time is waited out, and not much more. */
	uint64_t slept = atomic_load(&f.calls[FAKE_SLEEP]);
	assert_int_equal(sublet_notifier_read_begin(&g.notifier, 0, &seq), -EAGAIN);
	assert_int_equal(atomic_load(&f.calls[FAKE_SLEEP]), slept);
	start = wall_ns();
	assert_int_equal(sublet_notifier_read_begin(&g.notifier, 30 * SUBLET_MS, &seq), -ETIMEDOUT);
	assert_in_range(wall_ns() - start, 30 * SUBLET_MS, 20 * SUBLET_SEC);

	/* Whoever waits is woken by the end. */
	for (uint32_t i = 0; i < 2; i++)
		job_start(&waits[i], read_main, f.engine_mm[0], &g, 0);
	assert_true(stays_undone(&waits[0]) && stays_undone(&waits[1]));
	start = wall_ns();
	atomic_store(&g.open, true);
	for (uint32_t i = 0; i < 2; i++)
		assert_int_equal(job_end(&waits[i]), 0);
	assert_true(wall_ns() - start < 10 * SUBLET_SEC);
	assert_int_equal(job_end(&inv), 0);

	/* Or by the removal of the notifier. */
	atomic_store(&g.open, false);
	job_start(&inv, invalidate_main, f.engine_mm[0], NULL, 5);
	wait_inside(&g, 1);
	job_start(&gone, read_main, f.engine_mm[0], &g, 0);
	assert_true(stays_undone(&gone));
	struct job remove = { 0 };
	job_start(&remove, remove_main, f.engine_mm[0], &g, 0);
	start = wall_ns();
	assert_int_equal(job_end(&gone), -EINVAL);
	assert_true(wall_ns() - start < 10 * SUBLET_SEC);
	atomic_store(&g.open, true);
	assert_int_equal(job_end(&remove), 0);
	assert_int_equal(job_end(&inv), 0);
	threads_end();
	fixture_close(&f);
}

/* ---- added while a long walk stops for breath (N1) ---- */

enum { CROWD = 8000 };

static void *walker_main(void *arg)
{
	struct job *j = arg;

	while (!atomic_load(&j->done)) {
		struct sublet__invalidation inv;
		atomic_fetch_add(&j->turn, 1);
		if (sublet__invalidate_begin(j->mm, &inv, 0, 4096, SUBLET_NOTIFIER_UNMAP, true))
			fail_msg("begin");
		sublet__invalidate_end(j->mm, &inv);
		while (atomic_load(&j->rests) && !atomic_load(&j->done))
			nap();
	}
	return NULL;
}

/* Whenever it comes, it is counted once by what runs, and quiet when that is over. */
static void newborn(void **unused)
{
	static struct fake f;
	static struct gate crowd[CROWD], g;
	struct job walker = { 0 };
	uint64_t seq, until = wall_ns() + soak_ns(1), state = seed_get("newborn");
	uint32_t rounds = 0;
	(void)unused;

	fixture_open(&f, NULL);
	threads_begin();
	for (uint32_t i = 0; i < CROWD; i++) {
		gate_add(f.engine_mm[0], &crowd[i], i % 4000, 1, NULL);
		atomic_store(&crowd[i].open, true);
	}
	job_start(&walker, walker_main, f.engine_mm[0], NULL, 0);
	while (wall_ns() < until) {
		/* At a random moment of the first 200 microseconds, when the walk that counts is under way. */
		uint32_t turn = atomic_load(&walker.turn);
		while (atomic_load(&walker.turn) == turn)
			sched_yield();
		uint64_t moment = wall_ns() + below(&state, 200000);
		while (wall_ns() < moment)
			;
		gate_add(f.engine_mm[0], &g, 100 + rounds * 37 % 3900, 1 + rounds % 3 * 4, NULL);
		atomic_store(&g.open, true);
		atomic_store(&walker.rests, true);
		int err = sublet_notifier_read_begin(&g.notifier, 5 * SUBLET_SEC, &seq);
		atomic_store(&walker.rests, false);
		if (err)
			fail_msg("round %u: never quiet: %d (N1)", rounds, err);
		assert_int_equal(sublet_notifier_remove(&g.notifier), 0);
		rounds++;
	}
	atomic_store(&walker.done, true);
	(void)job_end(&walker);
	threads_end();
	print_message("%u rounds\n", rounds);
	for (uint32_t i = 0; i < CROWD; i++)
		assert_int_equal(sublet_notifier_read_begin(&crowd[i].notifier, 0, &seq), 0);
	fixture_close(&f);
}

/* ---- under load ---- */

/*
 * Movers change a page table of the test's own, between begin and end. Drivers keep copies of parts of it, made by
 * the reading sequence, and removed by their callback. At any time, under the driver's lock: a copy that is there is
 * right. That is G4: no copy outlives its callback, and none is made of what was read before it.
 */
enum { PAGES = 512, DRIVERS = 96, DRIVER_PAGES = 16, MOVERS = 2, READERS = 3 };

struct driver {
	pthread_mutex_t lock;  /* protects copy */
	pthread_rwlock_t life; /* read: uses notifier; write: registers and removes it */
	struct load *load;
	struct sublet_notifier notifier;
	uint32_t first;
	uint32_t pages;
	uint64_t copy[DRIVER_PAGES]; /* 0: none */
	_Atomic bool removes;        /* the callback removes its own notifier */
	_Atomic uint32_t inside;     /* callbacks that run */
	bool registered;
};

struct load {
	struct fake *f;
	struct sublet_mm *mm;
	_Atomic uint64_t page[PAGES];
	struct driver driver[DRIVERS];
	_Atomic uint64_t next;
	_Atomic bool stop;
	_Atomic uint64_t changes, declined, commits, retries, removals;
	uint64_t seed;
};

static int load_invalidate(void *ctx, const struct sublet_invalidation *inv)
{
	struct driver *d = ctx;
	uint32_t shift = d->load->f->options.frame_shift;
	uint32_t vpn = (uint32_t)((inv->addr - d->load->mm->config.base) >> shift);
	uint32_t end = vpn + (uint32_t)(inv->bytes >> shift);
	bool declines = !inv->may_block && atomic_load(&d->load->next) % 7 == 0;

	atomic_fetch_add(&d->inside, 1);
	bool removes = atomic_exchange(&d->removes, false);
	pthread_mutex_lock(&d->lock);
	for (uint32_t i = 0; i < d->pages; i++)
		if (removes || (!declines && d->first + i >= vpn && d->first + i < end))
			d->copy[i] = 0; /* whoever removes itself is told of nothing any more */
	pthread_mutex_unlock(&d->lock);
	if (removes && !sublet_notifier_remove(&d->notifier))
		atomic_fetch_add(&d->load->removals, 1);
	atomic_fetch_sub(&d->inside, 1);
	return declines ? -EAGAIN : 0;
}

static const struct sublet_notifier_ops load_ops = { SUBLET_OPTIONS(sublet_notifier_ops), load_invalidate };

/* Every copy that is there is right. */
static void driver_check(struct driver *d)
{
	pthread_mutex_lock(&d->lock);
	for (uint32_t i = 0; i < d->pages; i++) {
		uint64_t now = atomic_load(&d->load->page[d->first + i]);
		if (d->copy[i] && d->copy[i] != now)
			fail_msg("stale: page %u has %llu, its copy %llu (G4)", d->first + i,
				 (unsigned long long)now, (unsigned long long)d->copy[i]);
	}
	pthread_mutex_unlock(&d->lock);
}

static void driver_register(struct load *l, struct driver *d, uint64_t *state)
{
	pthread_rwlock_wrlock(&d->life);
	pthread_mutex_lock(&d->lock);
	for (uint32_t i = 0; i < DRIVER_PAGES; i++)
		d->copy[i] = 0; /* before nobody is there to do it any more */
	pthread_mutex_unlock(&d->lock);
	if (d->registered) {
		int err = sublet_notifier_remove(&d->notifier);
		if (err && err != -EINVAL)
			fail_msg("remove: %d", err);
		if (!err && atomic_load(&d->inside))
			fail_msg("removed, and a callback runs");
		while (atomic_load(&d->inside)) /* -EINVAL: a callback did it, and may not have returned */
			nap();
	}
	/* Nobody calls it any more, and nobody will: its memory may be used for something else. */
	pthread_mutex_lock(&d->lock);
	d->pages = 1 + below(state, DRIVER_PAGES);
	d->first = below(state, PAGES - d->pages);
	pthread_mutex_unlock(&d->lock);
	atomic_store(&d->removes, below(state, 8) == 0);
	void *addr = (void *)(uintptr_t)(l->mm->config.base + d->first * PAGE);
	if (sublet_notifier_add(l->mm, addr, d->pages * PAGE, &load_ops, d, "load", &d->notifier))
		fail_msg("add");
	d->registered = true;
	pthread_rwlock_unlock(&d->life);
}

/* The sequence of sublet/notifier.h, once. */
static void driver_read(struct load *l, struct driver *d, uint64_t *state)
{
	uint64_t read[DRIVER_PAGES], seq;

	pthread_rwlock_rdlock(&d->life);
	int err = sublet_notifier_read_begin(&d->notifier, below(state, 3) * 200 * SUBLET_US, &seq);
	if (err && err != -EAGAIN && err != -ETIMEDOUT && err != -EINVAL)
		fail_msg("read_begin: %d", err);
	for (uint32_t i = 0; !err && i < d->pages; i++)
		read[i] = atomic_load_explicit(&l->page[d->first + i], memory_order_acquire);
	if (below(state, 4) == 0)
		sched_yield(); /* time for a change to come between */
	if (!err) {
		pthread_mutex_lock(&d->lock);
		bool retry = sublet_notifier_read_retry(&d->notifier, seq);
		for (uint32_t i = 0; !retry && i < d->pages; i++)
			d->copy[i] = read[i];
		pthread_mutex_unlock(&d->lock);
		atomic_fetch_add(retry ? &l->retries : &l->commits, 1);
	}
	pthread_rwlock_unlock(&d->life);
}

static void *reader_main(void *arg)
{
	struct load *l = arg;
	uint64_t state = l->seed + atomic_fetch_add(&l->next, 1) * 7919;

	while (!atomic_load(&l->stop)) {
		struct driver *d = &l->driver[below(&state, DRIVERS)];
		if (below(&state, 6) == 0)
			driver_register(l, d, &state);
		driver_read(l, d, &state);
		driver_check(d);
	}
	return NULL;
}

static void mover_check(struct load *l, uint32_t vpn, uint32_t pages)
{
	/* Between begin and end nobody has a copy of what is to change. */
	for (uint32_t k = 0; k < DRIVERS; k++) {
		struct driver *d = &l->driver[k];
		pthread_mutex_lock(&d->lock);
		for (uint32_t i = 0; i < d->pages; i++)
			if (d->first + i >= vpn && d->first + i < vpn + pages && d->copy[i])
				fail_msg("page %u is about to change, and has a copy (G4)", d->first + i);
		pthread_mutex_unlock(&d->lock);
	}
}

static void *mover_main(void *arg)
{
	struct load *l = arg;
	uint64_t index = atomic_fetch_add(&l->next, 1), state = l->seed + index * 104729;

	while (!atomic_load(&l->stop)) {
		struct sublet__invalidation inv;
		/* Movers share pages, as the engine's do not: each changes its own, but tells of the others' too. */
		uint32_t pages = 1 + below(&state, below(&state, 8) ? 32 : PAGES - 1);
		uint32_t vpn = below(&state, PAGES - pages + 1);
		bool may_block = below(&state, 2);
		int err = sublet__invalidate_begin(l->mm, &inv, vpn, pages,
						   may_block ? SUBLET_NOTIFIER_UNMAP : SUBLET_NOTIFIER_MOVE,
						   may_block);
		if (err) {
			if (may_block || err != -EAGAIN)
				fail_msg("begin: %d", err);
			atomic_fetch_add(&l->declined, 1);
			continue;
		}
		mover_check(l, vpn, pages);
		for (uint32_t i = 0; i < pages; i++)
			atomic_store_explicit(&l->page[vpn + i], atomic_fetch_add(&l->next, 1) + 1,
					      memory_order_release);
		if (below(&state, 4) == 0)
			sched_yield();
		mover_check(l, vpn, pages);
		sublet__invalidate_end(l->mm, &inv);
		atomic_fetch_add(&l->changes, 1);
	}
	return NULL;
}

static void load(void **unused)
{
	static struct fake f;
	static struct load l;
	pthread_t thread[MOVERS + READERS];
	uint64_t until = wall_ns() + soak_ns(2);
	(void)unused;

	fixture_open(&f, NULL);
	l = (struct load){ .f = &f, .mm = f.engine_mm[0], .seed = seed_get("load") };
	atomic_store(&l.next, 1);
	for (uint32_t i = 0; i < PAGES; i++)
		atomic_store(&l.page[i], 1);
	for (uint32_t i = 0; i < DRIVERS; i++) {
		l.driver[i].load = &l;
		pthread_mutex_init(&l.driver[i].lock, NULL);
		pthread_rwlock_init(&l.driver[i].life, NULL);
		driver_register(&l, &l.driver[i], &l.seed);
	}
	threads_begin();
	for (uint32_t i = 0; i < MOVERS + READERS; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, i < MOVERS ? mover_main : reader_main, &l),
				 0);
	while (wall_ns() < until)
		nap();
	atomic_store(&l.stop, true);
	for (uint32_t i = 0; i < MOVERS + READERS; i++)
		pthread_join(thread[i], NULL);
	threads_end();
	print_message("%llu changes, %llu declined, %llu commits, %llu retries, %llu removed by callbacks\n",
		      (unsigned long long)atomic_load(&l.changes),
		      (unsigned long long)atomic_load(&l.declined),
		      (unsigned long long)atomic_load(&l.commits),
		      (unsigned long long)atomic_load(&l.retries),
		      (unsigned long long)atomic_load(&l.removals));
	assert_true(atomic_load(&l.changes) && atomic_load(&l.commits) && atomic_load(&l.declined));
	for (uint32_t i = 0; i < DRIVERS; i++) {
		uint64_t seq; /* quiet: nobody is counted too often */
		int err = sublet_notifier_read_begin(&l.driver[i].notifier, 0, &seq);
		assert_true(err == 0 || err == -EINVAL);
	}
	const char *what = sublet__notifier_index_check(l.mm);
	if (what)
		fail_msg("%s", what);
	fixture_close(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(remove_waits),  cmocka_unit_test(remove_twice),
		cmocka_unit_test(remove_circle), cmocka_unit_test(remove_chain),
		cmocka_unit_test(read_times),    cmocka_unit_test(newborn),
		cmocka_unit_test(load),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
