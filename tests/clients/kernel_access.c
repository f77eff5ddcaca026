/* SPDX-License-Identifier: MIT */
/*
 * A program whose heap the kernel itself reads and writes, in ways that are not a plain system call on a buffer.
 *
 * Each mode is one such way: words of priority-inheriting futexes and of wake-op, robust mutexes, the word of
 * set_tid_address, an rseq area, signal frames on stacks in the heap, /proc/self/mem, and ordinary input and output that
 * signals interrupt two thousand times a second. What the mode works on lies in blocks of their own, so that they move.
 * Every result is compared with what ordinary memory gives.
 *
 * usage: client_kernel_access MODE SECONDS. Prints "PASS: N" (rounds) and exits with 0, or says what was wrong, and 1.
 */
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "kernel_access.h"

/* ---- mutexes of every kind ---- */

#define KINDS   6
#define THREADS 3

struct guarded {
	pthread_mutex_t lock;
	long count;
	char rest[BLOCK_BYTES];
};

static struct guarded *guarded[KINDS];

static void guarded_create(int k)
{
	static const int types[] = { PTHREAD_MUTEX_NORMAL, PTHREAD_MUTEX_RECURSIVE,
				     PTHREAD_MUTEX_ERRORCHECK };
	pthread_mutexattr_t attr;

	guarded[k] = block(sizeof(struct guarded));
	CHECK(pthread_mutexattr_init(&attr) == 0);
	CHECK(pthread_mutexattr_setprotocol(&attr, PTHREAD_PRIO_INHERIT) == 0);
	CHECK(pthread_mutexattr_settype(&attr, types[k % 3]) == 0);
	CHECK(pthread_mutexattr_setrobust(&attr, k < 3 ? PTHREAD_MUTEX_STALLED : PTHREAD_MUTEX_ROBUST) == 0);
	CHECK(pthread_mutex_init(&guarded[k]->lock, &attr) == 0);
}

static struct timespec soon(clockid_t clock, long ns)
{
	struct timespec t;

	clock_gettime(clock, &t);
	t.tv_nsec += ns;
	t.tv_sec += t.tv_nsec / 1000000000;
	t.tv_nsec %= 1000000000;
	return t;
}

/* By one of three ways; false: it is another's, and the way does not wait for ever. */
static bool lock_somehow(pthread_mutex_t *lock, unsigned int way)
{
	struct timespec until = soon(CLOCK_REALTIME, 200000);
	int err = way == 0   ? pthread_mutex_lock(lock)
		  : way == 1 ? pthread_mutex_trylock(lock)
			     : pthread_mutex_timedlock(lock, &until);

	CHECK(err == 0 || (way == 1 && err == EBUSY) || (way == 2 && err == ETIMEDOUT));
	return err == 0;
}

static void *lock_them(void *arg)
{
	unsigned int seed = (unsigned int)(uintptr_t)arg;
	long done = 0;

	while (!is_over()) {
		int k = rand_r(&seed) % KINDS;
		struct guarded *g = guarded[k];

		if (!lock_somehow(&g->lock, (unsigned int)rand_r(&seed) % 3))
			continue;
		if (k % 3 == 1)
			CHECK(pthread_mutex_lock(&g->lock) == 0 && pthread_mutex_unlock(&g->lock) == 0);
		if (k % 3 == 2)
			CHECK(pthread_mutex_lock(&g->lock) == EDEADLK);
		long seen = g->count;
		if (done % 8 == 0)
			sched_yield();
		g->count = seen + 1;
		done++;
		CHECK(pthread_mutex_unlock(&g->lock) == 0);
		if (k % 3 == 2)
			CHECK(pthread_mutex_unlock(&g->lock) == EPERM);
	}
	return (void *)done;
}

long mode_mutexes(void)
{
	pthread_t thread[THREADS];
	long done = 0, counted = 0;

	for (int k = 0; k < KINDS; k++)
		guarded_create(k);
	for (int i = 0; i < THREADS; i++)
		CHECK(pthread_create(&thread[i], NULL, lock_them, (void *)(uintptr_t)(i + 1)) == 0);
	for (int i = 0; i < THREADS; i++) {
		void *result;
		CHECK(pthread_join(thread[i], &result) == 0);
		done += (long)result;
	}
	for (int k = 0; k < KINDS; k++)
		counted += guarded[k]->count;
	CHECK(done == counted);
	return done;
}

/* ---- an owner that dies ---- */

static void *lock_and_end(void *arg)
{
	struct guarded *g = arg;

	CHECK(pthread_mutex_lock(&g->lock) == 0);
	g->count++;
	return NULL;
}

static void *lock_of_dead(void *arg)
{
	struct guarded *g = arg;
	int err = pthread_mutex_lock(&g->lock);

	CHECK(err == 0 || err == EOWNERDEAD);
	if (err)
		CHECK(pthread_mutex_consistent(&g->lock) == 0);
	CHECK(pthread_mutex_unlock(&g->lock) == 0);
	return NULL;
}

long mode_robust(void)
{
	long rounds = 0;

	for (; !is_over(); rounds++) {
		int k = 3 + (int)(rounds % 3);
		pthread_t dies, waits;

		/* Another place each time. */
		guarded_create(k);
		CHECK(pthread_create(&dies, NULL, lock_and_end, guarded[k]) == 0);
		CHECK(pthread_create(&waits, NULL, lock_of_dead, guarded[k]) == 0);
		CHECK(pthread_join(dies, NULL) == 0);
		CHECK(pthread_join(waits, NULL) == 0);
		/* It may have come before the other, which is dead now. */
		lock_of_dead(guarded[k]);
		CHECK(guarded[k]->count == 1);
		CHECK(pthread_mutex_destroy(&guarded[k]->lock) == 0);
		free(guarded[k]);
	}
	return rounds;
}

/* ---- condition variables ---- */

struct table_tennis {
	struct guarded *g;
	pthread_cond_t turn;
	char rest[BLOCK_BYTES];
	int whose, ended;
	long rounds;
};

static void *play(void *arg)
{
	static atomic_int players;
	struct table_tennis *t = arg;
	int me = atomic_fetch_add(&players, 1);

	CHECK(pthread_mutex_lock(&t->g->lock) == 0);
	while (!t->ended) {
		struct timespec until = soon(CLOCK_REALTIME, 50000000);

		if (t->whose != me) {
			int err = t->rounds % 2 ? pthread_cond_wait(&t->turn, &t->g->lock)
						: pthread_cond_timedwait(&t->turn, &t->g->lock, &until);
			CHECK(err == 0 || err == ETIMEDOUT);
			continue;
		}
		t->whose = !me;
		t->rounds++;
		t->ended = is_over();
		CHECK(pthread_cond_signal(&t->turn) == 0);
	}
	CHECK(pthread_mutex_unlock(&t->g->lock) == 0);
	return NULL;
}

long mode_conditions(void)
{
	struct table_tennis *t = block(sizeof(*t));
	pthread_t thread[2];

	guarded_create(0);
	t->g = guarded[0];
	CHECK(pthread_cond_init(&t->turn, NULL) == 0);
	for (int i = 0; i < 2; i++)
		CHECK(pthread_create(&thread[i], NULL, play, t) == 0);
	for (int i = 0; i < 2; i++)
		CHECK(pthread_join(thread[i], NULL) == 0);
	return t->rounds;
}

/* ---- futexes by syscall() ---- */

struct word {
	_Atomic uint32_t word;
	long count;
	char rest[BLOCK_BYTES];
};

static struct word *words[2];

static long futex(void *word, int op, uint32_t value, const void *timeout, void *word2, uint32_t value3)
{
	return syscall(SYS_futex, word, op, value, timeout, word2, value3);
}

/* As libc does it, but into the kernel each time, without looking whether the word is free. */
static bool pi_lock(struct word *w, int flags, bool try)
{
	struct timespec until = soon(CLOCK_REALTIME, 100000000);
	long result = futex(&w->word, (try ? FUTEX_TRYLOCK_PI : FUTEX_LOCK_PI) | flags, 0, &until, NULL, 0);

	CHECK(result == 0 || errno == EINTR || errno == EAGAIN || (!try && errno == ETIMEDOUT) ||
	      (try && errno == EWOULDBLOCK));
	return result == 0;
}

static void *lock_words(void *arg)
{
	unsigned int seed = (unsigned int)(uintptr_t)arg;
	/* Both threads say the same of one word; without the flag nothing is meant but this process. */
	static const int flags[] = { FUTEX_PRIVATE_FLAG, 0 };
	long done = 0;

	while (!is_over()) {
		int i = rand_r(&seed) % 2;

		if (!pi_lock(words[i], flags[i], rand_r(&seed) % 3 == 0))
			continue;
		CHECK((atomic_load(&words[i]->word) & FUTEX_TID_MASK) == (uint32_t)syscall(SYS_gettid));
		words[i]->count++;
		done++;
		/* "Again": a waiter has come in between. */
		while (futex(&words[i]->word, FUTEX_UNLOCK_PI | flags[i], 0, NULL, NULL, 0) != 0)
			CHECK(errno == EAGAIN);
	}
	return (void *)done;
}

long mode_pi_calls(void)
{
	pthread_t thread[2];
	long done = 0;

	for (int i = 0; i < 2; i++)
		words[i] = block(sizeof(struct word));
	for (int i = 0; i < 2; i++)
		CHECK(pthread_create(&thread[i], NULL, lock_words, (void *)(uintptr_t)(i + 1)) == 0);
	for (int i = 0; i < 2; i++) {
		void *result;
		CHECK(pthread_join(thread[i], &result) == 0);
		done += (long)result;
	}
	CHECK(done == words[0]->count + words[1]->count);
	return done;
}

/* The kernel adds, sets, and clears bits, at another place each time. */
long mode_wake_op(void)
{
	static const int flags[] = { FUTEX_PRIVATE_FLAG, 0 };
	static struct word outside;
	struct word *w = block(4 * sizeof(*w));
	uint32_t expected[4] = { 0 };
	long n = 0;

	for (; !is_over(); n++) {
		int i = (int)(n % 4), how = (int)(n / 4 % 4);
		uint32_t operand = (uint32_t)(n & 0x7ff);
		static const int ops[] = { FUTEX_OP_ADD, FUTEX_OP_SET, FUTEX_OP_OR, FUTEX_OP_XOR };
		uint32_t old = expected[i];

		CHECK(futex(n % 3 ? &w[(i + 1) % 4].word : &outside.word, FUTEX_WAKE_OP | flags[n / 2 % 2], 1,
			    (void *)1, &w[i].word,
			    (uint32_t)FUTEX_OP(ops[how], operand, FUTEX_OP_CMP_GE, 0)) == 0);
		expected[i] = how == 0   ? old + operand
			      : how == 1 ? operand
			      : how == 2 ? old | operand
					 : old ^ operand;
		CHECK(atomic_load(&w[i].word) == expected[i]);
	}
	free(w);
	return n;
}

/* ---- words of a thread ---- */

struct tid_word {
	_Atomic uint32_t tid;
	char rest[BLOCK_BYTES];
};

static void *give_word(void *arg)
{
	struct tid_word *w = arg;
	uint32_t tid = (uint32_t)syscall(SYS_gettid);

	/* In this order: a waiter from before would not be woken in lent memory (docs/hazards.md). */
	CHECK(syscall(SYS_set_tid_address, &w->tid) == tid);
	atomic_store(&w->tid, tid);
	usleep(tid % 3 * 700);
	return NULL;
}

/* Waits as libc waits for a thread's end: process-shared. A word that is not cleared would be waited for in vain. */
long mode_tid(void)
{
	long rounds = 0;

	for (; !is_over(); rounds++) {
		struct tid_word *w = block(sizeof(*w));
		pthread_t thread;
		uint32_t tid;
		const struct timespec patience = { 20, 0 };

		atomic_store(&w->tid, 1);
		CHECK(pthread_create(&thread, NULL, give_word, w) == 0);
		CHECK(pthread_detach(thread) == 0);
		while ((tid = atomic_load(&w->tid)) != 0) {
			if (tid == 1) {
				sched_yield();
				continue;
			}
			long result = futex(&w->tid, FUTEX_WAIT, tid, &patience, NULL, 0);
			CHECK(result == 0 || errno == EAGAIN || errno == EINTR);
		}
		free(w);
	}
	return rounds;
}

/* The area that the kernel writes the number of the CPU to, whenever it lets the thread run again. */
long mode_rseq(void)
{
	struct area {
		uint32_t cpu_start, cpu;
		uint64_t section;
		uint32_t flags, rest[3];
	} *area = NULL;
	long n = 0;

	CHECK(posix_memalign((void **)&area, 4096, BLOCK_BYTES) == 0);
	memset(area, 0, BLOCK_BYTES);
	area->cpu = UINT_MAX; /* not registered */
	if (syscall(SYS_rseq, area, 32, 0, 0x53053053) != 0) {
		/* libc has an area of its own: GLIBC_TUNABLES says that it is not to. */
		printf("SKIP: %s\n", strerror(errno));
		exit(77);
	}
	for (; !is_over(); n++) {
		sched_yield();
		uint32_t cpu = __atomic_load_n(&area->cpu, __ATOMIC_RELAXED);
		CHECK(cpu < 4096 && cpu == __atomic_load_n(&area->cpu_start, __ATOMIC_RELAXED));
		if (n % 1000 == 0)
			usleep(300);
	}
	CHECK(syscall(SYS_rseq, area, 32, 1, 0x53053053) == 0);
	free(area);
	return n;
}
