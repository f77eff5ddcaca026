/* SPDX-License-Identifier: MIT */
/*
 * Who runs next. Each atomic step of the engine, and each step of the simulated kernel, program and devices, asks here
 * first: sublet__step, sim_step. A fiber is left nowhere else, so between two steps it is alone, and the order of all
 * steps is one number's doing.
 *
 * Two ways to choose, drawn by the world; and in some, whoever runs may be stopped at any step for a long while, as a thread
 * whose processor was taken away. By length: each run goes on for a number of steps about a mean, 1 to 100, and
 * then anybody who is ready is next: many switches, everywhere. By priority: the highest goes on until it waits, and at
 * a few random steps somebody is put to the very end (after Burckhardt and others, "A randomized scheduler with
 * probabilistic guarantees of finding bugs", 2010): few switches, each with long consequences, and the holder of a lock
 * may be away for a very long time.
 *
 * Time is a counter. Each step takes a little of it; where nobody is ready it goes on to the first who wakes.
 * Where nobody ever will, that is a deadlock, and the end.
 */
#include "sim.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PRIORITY_CHANGES 150u             /* about so many steps between two */
#define STALL_STEPS      3000u            /* most that a thread is away where the system took its processor */
#define WATCH_STEPS      1024u            /* between looks at who takes too long */
#define OP_LONG_NS       (20 * SUBLET_MS) /* who waits for longer waits for a deadline: time goes faster */
#define OP_MOST_NS       (600 * SUBLET_SEC) /* of virtual time, for one call of the engine */
#define OP_MOST_STEPS    5000000u
#define HURRY            64u /* times faster, then and while a rest is wanted */

/* The engine's thread-local variables: the build puts them into this section (src/sim/meson.build). */
extern char sim_tls_start[] __asm__("__start_sublet_tls");
extern char sim_tls_stop[] __asm__("__stop_sublet_tls");

static struct sim *running; /* whose steps are being taken */

struct sim *sim_running(void)
{
	return running;
}

/* ---- random numbers: splitmix64 ---- */

uint64_t sim_random(struct sim *s)
{
	uint64_t z = (s->random += 0x9e3779b97f4a7c15ull);
	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return z ^ z >> 31;
}

uint32_t sim_below(struct sim *s, uint32_t n)
{
	return (uint32_t)((sim_random(s) >> 32) * n >> 32);
}

/* ---- fibers ---- */

static void fiber_leave(struct sim *s);

static void fiber_main(void)
{
	struct sim_fiber *self = running->current;

	fiber_entered(&self->context);
	self->main(self, self->arg);
	self->wait = WAIT_DONE;
	self->op = "done";
	fiber_leave(self->sim);
	abort(); /* nobody switches to what is done */
}

struct sim_fiber *sched_spawn(struct sim *s, const char *name, uint32_t number, bool is_daemon,
			      void (*main)(struct sim_fiber *self, void *arg), void *arg)
{
	uint32_t i = 0;

	while (i < s->fibers && s->fiber[i].wait != WAIT_DONE)
		i++;
	if (i == SIM_FIBERS_MAX)
		return NULL;
	struct sim_fiber *f = &s->fiber[i];
	if (i == s->fibers)
		s->fibers++;
	struct fiber_context context = f->context;
	if (!context.stack && fiber_stack_make(&context))
		sim_violation(s, "no memory for a stack");
	*f = (struct sim_fiber){ .context = context,
				 .sim = s,
				 .index = i,
				 .is_daemon = is_daemon,
				 .priority = sim_below(s, 1u << 20),
				 .main = main,
				 .arg = arg,
				 .op = "begin" };
	snprintf(f->name, sizeof f->name, "%s%u", name, number % 1000);
	fiber_prepare(&f->context, fiber_main);
	s->ready |= 1ull << i;
	return f;
}

static void tls_swap(struct sim_fiber *from, const struct sim_fiber *to)
{
	size_t bytes = (size_t)(sim_tls_stop - sim_tls_start);

	if (from)
		memcpy(from->tls, sim_tls_start, bytes);
	if (to)
		memcpy(sim_tls_start, to->tls, bytes);
}

static void switch_to(struct sim *s, struct sim_fiber *to)
{
	struct sim_fiber *from = s->current;

	if (to == from)
		return;
	tls_swap(from, to);
	s->current = to;
	fiber_switch(from ? &from->context : &s->root, to ? &to->context : &s->root);
}

/* ---- who is next ---- */

static void wake(struct sim *s, struct sim_fiber *f)
{
	f->wait = WAIT_NONE;
	s->ready |= 1ull << f->index;
}

static void timers_fire(struct sim *s)
{
	s->timer_ns = UINT64_MAX;
	for (uint32_t i = 0; i < s->fibers; i++) {
		struct sim_fiber *f = &s->fiber[i];
		bool is_timed = f->wait == WAIT_TIME || (f->wait == WAIT_WORD && f->until_ns != UINT64_MAX);
		if (is_timed && f->until_ns <= s->now_ns)
			wake(s, f);
		else if (is_timed && f->until_ns < s->timer_ns)
			s->timer_ns = f->until_ns;
	}
}

/* Nobody but daemons is on the way, and nobody at all is in the engine. */
static bool is_standing(const struct sim *s)
{
	for (uint32_t i = 0; i < s->fibers; i++) {
		const struct sim_fiber *f = &s->fiber[i];
		if (f->is_daemon ? f->depth != 0 : f->wait != WAIT_REST && f->wait != WAIT_DONE)
			return false;
	}
	return true;
}

static void fibers_print(const struct sim *s)
{
	for (uint32_t i = 0; i < s->fibers; i++) {
		const struct sim_fiber *f = &s->fiber[i];
		static const char *const waits[] = { "runs",  "is parked", "sleeps", "waits for a page",
						     "rests", "is done" };
		if (f->wait != WAIT_DONE)
			fprintf(stderr, "  %-12s %s in %s since step %llu\n", f->name, waits[f->wait],
				sim_op_name(f), (unsigned long long)f->since_step);
	}
}

static void stuck(struct sim *s, const char *what)
{
	fibers_print(s);
	sim_violation(s, "%s", what);
}

static struct sim_fiber *nth_ready(struct sim *s, uint32_t n)
{
	uint64_t mask = s->ready;

	while (n--)
		mask &= mask - 1;
	return &s->fiber[__builtin_ctzll(mask)];
}

static struct sim_fiber *highest_ready(struct sim *s)
{
	struct sim_fiber *best = NULL;

	for (uint64_t mask = s->ready; mask; mask &= mask - 1) {
		struct sim_fiber *f = &s->fiber[__builtin_ctzll(mask)];
		if (!best || f->priority > best->priority)
			best = f;
	}
	return best;
}

/* NULL: back to the root. */
static struct sim_fiber *next(struct sim *s)
{
	if (s->now_ns >= s->timer_ns)
		timers_fire(s);
	while (!s->ready) {
		if (is_standing(s))
			return NULL;
		if (s->timer_ns == UINT64_MAX)
			stuck(s, "deadlock: nobody will ever wake");
		s->now_ns = s->timer_ns > s->now_ns ? s->timer_ns : s->now_ns;
		timers_fire(s);
	}
	if (s->rest_wanted && is_standing(s))
		return NULL;
	if (s->run_mean) {
		s->run_left = sim_below(s, 2 * s->run_mean);
		return nth_ready(s, sim_below(s, (uint32_t)__builtin_popcountll(s->ready)));
	}
	s->run_left = 1 + sim_below(s, PRIORITY_CHANGES);
	if (sim_one_in(s, 2)) { /* one falls behind all, or one comes before */
		struct sim_fiber *f = nth_ready(s, sim_below(s, (uint32_t)__builtin_popcountll(s->ready)));
		f->priority = sim_below(s, 1u << 20);
	}
	return highest_ready(s);
}

/* The current fiber cannot go on now. */
static void fiber_leave(struct sim *s)
{
	struct sim_fiber *self = s->current;

	s->ready &= ~(1ull << self->index);
	self->since_step = s->steps;
	switch_to(s, next(s));
}

static void wait_until(struct sim *s, enum sim_wait wait, uint64_t until_ns)
{
	s->current->wait = wait;
	s->current->until_ns = until_ns;
	if (until_ns < s->timer_ns)
		s->timer_ns = until_ns;
	fiber_leave(s);
}

/* ---- steps ---- */

static void watch(struct sim *s)
{
	s->is_long = false;
	for (uint32_t i = 0; i < s->fibers; i++) {
		const struct sim_fiber *f = &s->fiber[i];
		if (!f->depth || f->is_daemon)
			continue;
		s->is_long |= s->now_ns - f->op_since_ns > OP_LONG_NS;
		if (s->now_ns - f->op_since_ns <= OP_MOST_NS && s->steps - f->op_since_step <= OP_MOST_STEPS)
			continue;
		fibers_print(s);
		sim_violation(s, "%s is in '%s' for %llu ms and %llu steps (G7)", f->name, sim_op_name(f),
			      (unsigned long long)((s->now_ns - f->op_since_ns) / SUBLET_MS),
			      (unsigned long long)(s->steps - f->op_since_step));
	}
}

/* A clock jump is nobody's fault: what was begun before is given as much more time. */
static void clock_jump(struct sim *s)
{
	uint64_t by_ns = sim_below(s, 2000) * SUBLET_MS + 1;

	sim_trace(s, "fault: the clock jumps by %llu us", by_ns / 1000, 0, 0, 0);
	s->now_ns += by_ns;
	for (uint32_t i = 0; i < s->fibers; i++)
		s->fiber[i].op_since_ns += by_ns;
	s->faults++;
	cover_event(s, "fault: clock jump");
}

static void step(struct sim *s, const volatile void *at)
{
	check_touched(s);
	s->steps++;
	s->now_ns += s->rest_wanted || s->is_long ? HURRY * s->step_ns : s->step_ns;
	s->hash = (s->hash ^ (s->current->index + 1 + ((uint64_t)s->touch_at << 8))) * 0x100000001b3ull;
	if (s->steps >= s->check_at) {
		s->check_at = s->steps + s->options.check_every;
		check_moving(s);
	}
	if (s->steps % WATCH_STEPS == 0)
		watch(s);
	if (!s->no_faults && s->jump_one_in && sim_one_in(s, s->jump_one_in))
		clock_jump(s);
	if (s->now_ns >= s->timer_ns)
		timers_fire(s);
	if (s->stall_one_in && sim_one_in(s, s->stall_one_in))
		wait_until(s, WAIT_TIME, s->now_ns + sim_below(s, STALL_STEPS) * s->step_ns);
	else if (s->run_left-- == 0)
		switch_to(s, next(s));
	check_note(s, at);
}

/* The hook of core/atomic.h, which is something else in this file: nothing here is compiled with SUBLET__STEPS. */
void sched_hook(const volatile void *at) __asm__("sublet__step");
void sched_hook(const volatile void *at)
{
	if (running && running->current && !running->is_quiet)
		step(running, at);
}

void sim_step(struct sim *s)
{
	if (s->current && !s->is_quiet)
		step(s, NULL);
}

/* ---- waiting ---- */

static void may_sleep(struct sim *s, const char *what)
{
	if (s->current->blocked_runs)
		sim_violation(s, "%s between block and wake of a run (L1)", what);
}

void sim_sleep(struct sim *s, uint64_t ns)
{
	may_sleep(s, "sleep");
	sim_step(s);
	check_touched(s);
	wait_until(s, WAIT_TIME, s->now_ns + ns);
}

void sim_park(struct sim *s, const void *word, uint32_t expected, uint64_t timeout_ns)
{
	may_sleep(s, "wait for a lock");
	sim_step(s);
	check_touched(s);
	if (*(const volatile uint32_t *)word != expected || sim_one_in(s, 50)) /* or for no reason */
		return;
	s->current->word = word;
	s->current->expected = expected;
	bool is_timed = timeout_ns < UINT64_MAX - s->now_ns;
	wait_until(s, WAIT_WORD, is_timed ? s->now_ns + timeout_ns : UINT64_MAX);
}

void sim_unpark(struct sim *s, const void *word, uint32_t count)
{
	uint32_t first = s->current ? sim_below(s, s->fibers) : 0;

	sim_step(s);
	for (uint32_t i = 0; i < s->fibers && count; i++) {
		struct sim_fiber *f = &s->fiber[(first + i) % s->fibers];
		if (f->wait != WAIT_WORD || f->word != word)
			continue;
		wake(s, f);
		count--;
	}
}

void sim_page_wait(struct sim *s, uint32_t mm, uint32_t vpn)
{
	sim_trace(s, "waits for mm %llu page %llu", mm, vpn, 0, 0);
	s->current->page = mm << 16 | vpn;
	wait_until(s, WAIT_PAGE, UINT64_MAX);
}

void sim_page_wake(struct sim *s, uint32_t mm, uint32_t vpn, uint32_t pages)
{
	for (uint32_t i = 0; i < s->fibers; i++) {
		struct sim_fiber *f = &s->fiber[i];
		if (f->wait == WAIT_PAGE && f->page >> 16 == mm && (f->page & 0xffff) - vpn < pages)
			wake(s, f);
	}
}

bool sim_rest_is_due(struct sim *s)
{
	s->rest_wanted |= s->steps >= s->rest_at;
	return s->rest_wanted;
}

void sim_rest(struct sim *s)
{
	while (s->rest_wanted) {
		check_touched(s);
		s->current->wait = WAIT_REST;
		fiber_leave(s);
	}
}

/* ---- from main() ---- */

void sched_reset(struct sim *s)
{
	running = s;
	s->timer_ns = UINT64_MAX;
	s->now_ns = SUBLET_SEC;
	s->ready = 0;
	s->fibers = 0;
	if ((size_t)(sim_tls_stop - sim_tls_start) > SIM_TLS_BYTES)
		sim_violation(s, "the engine has more thread-local variables than SIM_TLS_BYTES");
}

bool sched_run(struct sim *s)
{
	struct sim_fiber *first = next(s);

	if (first)
		switch_to(s, first);
	for (uint32_t i = 0; i < s->fibers; i++)
		if (!s->fiber[i].is_daemon && s->fiber[i].wait != WAIT_DONE)
			return true;
	return false;
}

void sched_resume(struct sim *s)
{
	s->rest_wanted = false;
	for (uint32_t i = 0; i < s->fibers; i++)
		if (s->fiber[i].wait == WAIT_REST)
			wake(s, &s->fiber[i]);
}

void sched_free(struct sim *s)
{
	for (uint32_t i = 0; i < SIM_FIBERS_MAX; i++)
		fiber_stack_free(&s->fiber[i].context);
	running = NULL;
}
