/* SPDX-License-Identifier: MIT */
/*
 * Pins by class and several address spaces, on real memory: what a long-term pin says about where its bytes are is true in
 * the linear map while claims move everything round it (G2, G3), and a fork keeps the device and the child apart.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <sublet/arena.h>
#include <sublet/claim.h>
#include <sublet/map.h>
#include <sublet/notifier.h>
#include <sublet/pin.h>
#include <sublet/stats.h>

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define AREA  ((uint64_t)64 << 20)
#define HEAP  ((uint64_t)40 << 20)
#define WORDS (HEAP / 8)

static const enum sublet_backing kinds[] = { SUBLET_BACKING_MEMFD, SUBLET_BACKING_THP };

static struct sublet_arena *open_arena(enum sublet_backing kind)
{
	struct sublet_arena_options o = { SUBLET_OPTIONS(sublet_arena_options), .area_bytes = AREA,
					  .normal_bytes = AREA, .backing = kind };
	struct sublet_arena *arena;
	int err = sublet_arena_create(&o, &arena);

	if (err == -EOPNOTSUPP)
		return NULL;
	assert_int_equal(err, 0);
	return arena;
}

static uint64_t *map_filled(struct sublet_mm *mm, uint64_t key)
{
	void *p;

	assert_int_equal(sublet_map(mm, HEAP, SUBLET_MOVABLE, &p), 0);
	uint64_t *words = p;
	for (uint64_t i = 0; i < WORDS; i++)
		words[i] = i * key;
	return words;
}

static void check_filled(const uint64_t *words, uint64_t key)
{
	for (uint64_t i = 0; i < WORDS; i++)
		if (words[i] != i * key)
			fail_msg("word %llu is %llx", (unsigned long long)i, (unsigned long long)words[i]);
}

static char *linear_of(struct sublet_arena *arena)
{
	struct sublet_arena_info info = { SUBLET_OPTIONS(sublet_arena_info) };

	assert_int_equal(sublet_arena_info(arena, &info), 0);
	return info.linear;
}

/* Claims of the dearest window, which move everything that can be moved. */
static void churn(struct sublet_arena *arena, uint32_t times)
{
	struct sublet_claim_options o = { SUBLET_OPTIONS(sublet_claim_options),
					  .flags = SUBLET_CLAIM_DEAREST };

	for (uint32_t i = 0; i < times; i++) {
		struct sublet_claim claim;
		int err = sublet_claim(arena, 16 << 20, &o, &claim);
		if (err || sublet_release(arena, &claim))
			fail_msg("claim: %d", err);
	}
}

/* The device's view and the program's are the same bytes, from pin to unpin. */
static void test_extents_are_true(void **unused)
{
	struct sublet_extent e[64];
	struct sublet_pin pin;
	(void)unused;

	for (uint32_t k = 0; k < 2; k++) {
		struct sublet_arena *arena = open_arena(kinds[k]);
		if (!arena)
			continue;
		uint64_t *words = map_filled(sublet_arena_mm(arena), 3), *at = words + 1234567, checked = 0;
		assert_int_equal(sublet_pin(sublet_arena_mm(arena), at, 5 << 20,
					    SUBLET_PIN_WRITE | SUBLET_PIN_LONGTERM, "ring", &pin),
				 0);
		churn(arena, 20);
		for (int n; (n = sublet_pin_extents(&pin, checked, e, 64)) != 0;) {
			assert_in_range(n, 1, 64);
			for (int i = 0; i < n; checked += e[i++].bytes) {
				char *device = linear_of(arena) + e[i].offset_bytes;
				assert_true(e[i].offset_bytes >= AREA); /* G3 */
				assert_memory_equal(device, (char *)at + checked, e[i].bytes);
				memset(device, 0x5a, e[i].bytes);
			}
		}
		assert_int_equal(checked, 5 << 20);
		for (uint64_t i = 0; i < checked; i++)
			assert_int_equal(((unsigned char *)at)[i], 0x5a);
		churn(arena, 5);
		for (uint64_t i = 0; i < checked / 8; i++)
			at[i] = (1234567 + i) * 3;
		assert_int_equal(sublet_unpin(&pin), 0);
		churn(arena, 5);
		check_filled(words, 3);
		assert_int_equal(sublet_arena_destroy(arena), 0);
	}
}

/* A child of fork() sees what was there, but for what is under a long-term pin: that it does not have. */
static void test_fork_under_longterm(void **unused)
{
	struct sublet_pin pin;
	struct sublet_extent e;
	int status;
	(void)unused;

	for (uint32_t k = 0; k < 2; k++) {
		struct sublet_arena *arena = open_arena(kinds[k]);
		if (!arena)
			continue;
		uint64_t *words = map_filled(sublet_arena_mm(arena), 5), *ring = words + WORDS / 2;
		assert_int_equal(sublet_pin(sublet_arena_mm(arena), ring, 1 << 20,
					    SUBLET_PIN_WRITE | SUBLET_PIN_LONGTERM, NULL, &pin),
				 0);
		assert_int_equal(sublet_pin_extents(&pin, 0, &e, 1), 1);
		for (uint32_t touches = 0; touches < 2; touches++) {
			pid_t pid = fork();
			if (!pid) {
				signal(SIGSEGV, SIG_DFL);
				uint64_t i = 0;
				while (i < WORDS &&
				       (words + i >= ring - 512 && words + i < ring + (1 << 17) + 512
						? !touches || words[i] == i * 5
						: words[i] == i * 5))
					i++;
				_exit(i == WORDS ? 7 : 8);
			}
			assert_true(pid > 0);
			words[3] = 1;                                        /* not seen by the child */
			memcpy(linear_of(arena) + e.offset_bytes, "dma", 4); /* seen by the parent */
			assert_string_equal((char *)ring, "dma");
			assert_int_equal(waitpid(pid, &status, 0), pid);
			if (touches)
				assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
			else
				assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 7);
			words[3] = 15;
			ring[0] = WORDS / 2 * 5;
		}
		assert_int_equal(sublet_unpin(&pin), 0);
		pid_t pid = fork();
		if (!pid)
			_exit(ring[5] == (WORDS / 2 + 5) * 5 ? 7 : 8); /* inherited again */
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 7);
		churn(arena, 3);
		check_filled(words, 5);
		assert_int_equal(sublet_arena_destroy(arena), 0);
	}
}

/* Sharing with a child: a pin waits for it, if it execs or ends soon, and says -EBUSY if it does not, or may not wait. */
static void test_pin_beside_child(void **unused)
{
	static const uint32_t classes[] = { SUBLET_PIN_WRITE, SUBLET_PIN_WRITE | SUBLET_PIN_LONGTERM };
	struct sublet_pin pin;
	int go[2], status;
	char byte = 0;
	(void)unused;

	struct sublet_arena *arena = open_arena(SUBLET_BACKING_MEMFD);
	struct sublet_mm *mm = sublet_arena_mm(arena);
	uint64_t *words = map_filled(mm, 5);
	for (uint32_t c = 0; c < 2; c++) {
		for (uint32_t execs = 0; execs < 2; execs++) {
			assert_int_equal(pipe(go), 0);
			pid_t pid = fork();
			if (!pid && execs) {
				nanosleep(&(struct timespec){ .tv_nsec = 20000000 }, NULL);
				execl("/bin/true", "true", NULL);
			}
			if (!pid)
				_exit(read(go[0], &byte, 1) == 1 && words[9] == 45 ? 0 : 1);
			assert_true(pid > 0);
			int err = -EBUSY,
			    tries = execs ? 20 : 1; /* a busy machine may take its time to exec */
			while (err == -EBUSY && tries--)
				err = sublet_pin(mm, words, 8192, classes[c], NULL, &pin);
			assert_int_equal(err, execs ? 0 : -EBUSY);
			if (!execs)
				assert_int_equal(sublet_pin(mm, words, 8192, classes[c] | SUBLET_PIN_NOWAIT,
							    NULL, &pin),
						 -EBUSY);
			if (execs) {
				words[9] = 7; /* nobody shares it any more */
				assert_int_equal(sublet_unpin(&pin), 0);
				words[9] = 45;
			}
			assert_int_equal(write(go[1], "x", 1), 1);
			assert_int_equal(waitpid(pid, &status, 0), pid);
			assert_int_equal(status, 0);
			close(go[0]);
			close(go[1]);
		}
	}
	check_filled(words, 5);
	assert_int_equal(sublet_arena_destroy(arena), 0);
}

struct pinner {
	struct sublet_mm *mm;
	uint64_t *words;
	_Atomic bool stop;
	_Atomic uint64_t pins;
};

/* Short pins without end, each for a moment. */
static void *pinner_main(void *arg)
{
	struct pinner *p = arg;
	struct sublet_pin pin;

	while (!atomic_load(&p->stop)) {
		if (sublet_pin(p->mm, p->words, 4096, SUBLET_PIN_WRITE, NULL, &pin))
			continue;
		atomic_fetch_add(&p->pins, 1);
		nanosleep(&(struct timespec){ .tv_nsec = 5000000 }, NULL);
		assert_int_equal(sublet_unpin(&pin), 0);
	}
	return NULL;
}

static void fork_between(struct sublet_arena *arena, const struct pinner *p)
{
	int status;
	pid_t pid = fork(); /* a child without the page, otherwise */
	(void)arena;

	if (!pid)
		_exit(p->words[9] == 45 ? 0 : 1);
	assert_true(pid > 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

static void claim_between(struct sublet_arena *arena, const struct pinner *p)
{
	struct sublet_claim_options o = { SUBLET_OPTIONS(sublet_claim_options),
					  .deadline_ns = 5 * SUBLET_SEC };
	struct sublet_claim claim;
	(void)p;

	assert_int_equal(sublet_claim(arena, AREA, &o, &claim), 0);
	assert_int_equal(sublet_release(arena, &claim), 0);
}

static void longterm_between(struct sublet_arena *arena, const struct pinner *p)
{
	uint32_t flags = SUBLET_PIN_WRITE | SUBLET_PIN_LONGTERM;
	struct sublet_pin pin;
	(void)arena;

	int err = -EBUSY;
	for (uint32_t tries = 0; err == -EBUSY && tries < 3;
	     tries++) /* its second may be short on a busy machine */
		err = sublet_pin(p->mm, p->words + 8192, 4096, flags, NULL, &pin);
	assert_int_equal(err, 0);
	assert_int_equal(sublet_unpin(&pin), 0);
}

/* Pins of several threads that overlap, so that there is one at each moment: who waits for them gets through (G10). */
static void test_between_pins(void **unused)
{
	static void (*const waits[])(struct sublet_arena *, const struct pinner *) = { fork_between,
										       claim_between,
										       longterm_between };
	pthread_t thread[8];
	(void)unused;

	for (uint32_t w = 0; w < 3; w++) {
		struct sublet_arena *arena = open_arena(SUBLET_BACKING_THP); /* whose folios are large */
		if (!arena)
			arena = open_arena(SUBLET_BACKING_MEMFD);
		struct pinner p = { .mm = sublet_arena_mm(arena) };
		p.words = map_filled(p.mm, 5);
		for (uint32_t i = 0; i < 8; i++)
			assert_int_equal(pthread_create(&thread[i], NULL, pinner_main, &p), 0);
		while (atomic_load(&p.pins) < 20)
			nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
		waits[w](arena, &p);
		uint64_t before = atomic_load(&p.pins);
		while (atomic_load(&p.pins) < before + 20) /* and the pins go on */
			nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
		atomic_store(&p.stop, true);
		for (uint32_t i = 0; i < 8; i++)
			pthread_join(thread[i], NULL);
		check_filled(p.words, 5);
		assert_int_equal(sublet_arena_destroy(arena), 0);
	}
}

static int count_event(void *ctx, const struct sublet_invalidation *inv)
{
	uint32_t *calls = ctx;

	calls[inv->event]++;
	return 0;
}

/* Several address spaces: apart from one another (G9), all moved by claims, all snapshot by a fork. */
static void test_address_spaces(void **unused)
{
	static const struct sublet_notifier_ops ops = { SUBLET_OPTIONS(sublet_notifier_ops),
							.invalidate = count_event };
	(void)unused;

	for (uint32_t k = 0; k < 2; k++) {
		struct sublet_arena *arena = open_arena(kinds[k]);
		struct sublet_mm *mm[3];
		struct sublet_notifier n[3];
		uint64_t *words[3];
		uint32_t calls[3][8] = { { 0 } };
		struct sublet_pin pin;
		int status;
		if (!arena)
			continue;
		mm[0] = sublet_arena_mm(arena);
		for (uint32_t i = 1; i < 3; i++)
			assert_int_equal(sublet_arena_mm_add(arena, &mm[i]), 0);
		for (uint32_t i = 0; i < 3; i++) {
			void *p;
			assert_int_equal(sublet_map(mm[i], 8 << 20, SUBLET_MOVABLE, &p), 0);
			words[i] = p;
			for (uint32_t w = 0; w < 1 << 20; w++)
				words[i][w] = w * (i + 7ull);
			assert_int_equal(
				sublet_notifier_add(mm[i], words[i], 4096, &ops, calls[i], NULL, &n[i]), 0);
		}
		assert_int_equal(sublet_pin(mm[1], words[0], 4096, SUBLET_PIN_READ, NULL, &pin), -EINVAL);
		assert_int_equal(sublet_unmap(mm[0], words[2], 8 << 20), -EINVAL);
		churn(arena, 10);
		for (uint32_t i = 0; i < 3; i++)
			assert_true(calls[i][SUBLET_NOTIFIER_MOVE] > 0);
		pid_t pid = fork();
		if (!pid) {
			for (uint32_t i = 0; i < 3; i++)
				for (uint32_t w = 0; w < 1 << 20; w++) {
					if (words[i][w] != w * (i + 7ull))
						_exit(8);
					words[i][w] = 0;
				}
			_exit(7);
		}
		for (uint32_t i = 0; i < 3; i++)
			words[i][77] = 77 * (i + 7ull);
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 7);
		churn(arena, 5); /* waits until all is shared again */
		for (uint32_t i = 0; i < 3; i++)
			for (uint32_t w = 0; w < 1 << 20; w++)
				assert_int_equal(words[i][w], w * (i + 7ull));
		assert_int_equal(sublet_unmap(mm[2], words[2], 8 << 20), 0);
		assert_int_equal(calls[2][SUBLET_NOTIFIER_UNMAP], 1);
		assert_int_equal(sublet_arena_destroy(arena), 0);
		assert_int_equal(calls[0][SUBLET_NOTIFIER_EXIT], 1);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_extents_are_true), cmocka_unit_test(test_fork_under_longterm),
		cmocka_unit_test(test_pin_beside_child), cmocka_unit_test(test_between_pins),
		cmocka_unit_test(test_address_spaces),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
