/* SPDX-License-Identifier: MIT */
/*
 * libfabric's registration cache over memory that moves: the real efa provider and its cache, on the card of nic.c.
 *
 * The guarantee that all of them hold is G4, for a cache: what it yields for pinned memory leads to where the memory
 * is. FI_MR_CACHE_MONITOR is set to another monitor throughout, which must not win.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "nic.h"

#include <sublet/ofi.h>

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define BUFFER_BYTES ((uint64_t)64 << 10)

static struct sublet_ofi *ofi;
static struct fid_domain *domain;
static struct sublet_ofi_watch *watch;
static char *heap;

static struct fid_mr *reg(const void *addr, uint64_t bytes)
{
	struct fid_mr *mr;

	assert_int_equal(fi_mr_reg(domain, addr, bytes, FI_SEND | FI_RECV, 0, 0, 0, &mr, NULL), 0);
	return mr;
}

/* Use a buffer once, as a driver does: pin, register, transfer, close, unpin. Returns whether the card was asked. */
static bool use(char *addr, uint64_t bytes)
{
	struct sublet_pin pin;
	uint64_t before = nic_registrations();

	assert_int_equal(sublet_pin(world_mm, addr, bytes, SUBLET_PIN_WRITE, NULL, &pin), 0);
	struct fid_mr *mr = reg(addr, bytes);
	struct place now = world_place(addr, bytes), card = nic_place(mr);
	assert_true(world_place_equal(&now, &card));
	assert_int_equal(fi_close(&mr->fid), 0);
	assert_int_equal(sublet_unpin(&pin), 0);
	return nic_registrations() != before;
}

/* *state: a small normal zone. */
static int setup(void **state)
{
	heap = world_open(*state ? AREA_BYTES / 2 : AREA_BYTES);
	if (!heap)
		return -1;
	assert_int_equal(sublet_ofi_open(&ofi), 0);
	assert_int_equal(nic_domain_open(&domain), 0);
	assert_int_equal(sublet_ofi_watch(ofi, world_mm, heap, HEAP_BYTES, &watch), 0);
	world_allocations = 0;
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	world_after_callback = NULL;
	sublet_ofi_unwatch(watch);
	watch = NULL;
	nic_domain_close(domain);
	assert_int_equal(sublet_ofi_close(ofi), 0);
	if (world_arena)
		world_close();
	return 0;
}

/* ---- what moved is dropped, what did not is kept ---- */

static void test_claim_drops_what_moved(void **state)
{
	(void)state;
	char *outside = world_map_outside(BUFFER_BYTES);
	struct sublet_ofi_watch *other;

	assert_int_equal(sublet_ofi_watch(ofi, world_mm, outside, BUFFER_BYTES, &other), 0);
	assert_true(use(heap, BUFFER_BYTES));
	assert_true(use(heap + SUBLET_MIB + 100, 5000));
	assert_true(use(outside, BUFFER_BYTES));
	assert_false(use(heap, BUFFER_BYTES));
	assert_false(use(heap + SUBLET_MIB + 100, 5000));
	assert_false(use(outside, BUFFER_BYTES));

	world_claim_all();
	assert_true(use(heap, BUFFER_BYTES));
	assert_true(use(heap + SUBLET_MIB + 100, 5000));
	assert_false(use(outside, BUFFER_BYTES));
	/* And it is kept again from here on. */
	assert_false(use(heap, BUFFER_BYTES));
	assert_int_equal(world_allocations, 0);
	sublet_ofi_unwatch(other);
}

/* A long-term pin moves its range, and nothing else. */
static void test_only_what_moved(void **state)
{
	(void)state;
	struct sublet_pin pin;
	char *moves = heap + 2 * SUBLET_MIB, *stays = heap + 5 * SUBLET_MIB;

	assert_true(use(moves, BUFFER_BYTES));
	assert_true(use(stays, BUFFER_BYTES));
	assert_int_equal(sublet_pin(world_mm, moves, 1, SUBLET_PIN_READ | SUBLET_PIN_LONGTERM, NULL, &pin),
			 0);
	assert_true(use(moves, BUFFER_BYTES));
	assert_false(use(stays, BUFFER_BYTES));
	assert_int_equal(sublet_unpin(&pin), 0);
}

static void test_unmap_drops(void **state)
{
	(void)state;
	uint64_t half = HEAP_BYTES / 2, before = nic_deregistrations();

	assert_true(use(heap, BUFFER_BYTES));
	assert_true(use(heap + half, BUFFER_BYTES));
	assert_int_equal(sublet_unmap(world_mm, heap + half, HEAP_BYTES - half), 0);
	assert_false(use(heap, BUFFER_BYTES)); /* the look-up also empties the bin */
	assert_int_equal(nic_deregistrations(), before + 1);
}

static void test_decommit_drops(void **state)
{
	(void)state;
	assert_true(use(heap, BUFFER_BYTES));
	world_refill(heap, 2 * SUBLET_MIB);
	assert_true(use(heap, BUFFER_BYTES));
}

static void test_fork_drops(void **state)
{
	(void)state;
	int status;

	assert_true(use(heap, BUFFER_BYTES));
	pid_t pid = fork();
	if (!pid)
		_exit(0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	/* The memory is the child's snapshot until it is known that nobody has it. */
	struct sublet_pin pin;
	int err = -EBUSY;
	for (int i = 0; i < 500 && err == -EBUSY; i++) {
		err = sublet_pin(world_mm, heap, BUFFER_BYTES, SUBLET_PIN_WRITE, NULL, &pin);
		usleep(10000);
	}
	assert_int_equal(err, 0);
	assert_int_equal(sublet_unpin(&pin), 0);
	assert_true(use(heap, BUFFER_BYTES));
}

/* ---- the worst moment ---- */

static char *late_buffer;
static _Atomic int late_uses;

static void *late_main(void *arg)
{
	(void)arg;
	struct sublet_pin pin;

	/* By another thread: the mover's may not pin. It must not get a pin, or none that outlives it in a cache. */
	if (!sublet_pin(world_mm, late_buffer, BUFFER_BYTES, SUBLET_PIN_WRITE | SUBLET_PIN_NOWAIT, NULL,
			&pin)) {
		struct fid_mr *mr = reg(late_buffer, BUFFER_BYTES);
		fi_close(&mr->fid);
		late_uses++;
		if (sublet_unpin(&pin))
			abort();
	}
	return NULL;
}

static void use_late(const struct sublet_invalidation *inv)
{
	pthread_t thread;

	if ((uintptr_t)late_buffer < inv->addr || (uintptr_t)late_buffer >= inv->addr + inv->bytes ||
	    late_uses > 5)
		return;
	if (!pthread_create(&thread, NULL, late_main, NULL))
		pthread_join(thread, NULL);
}

/* Registered and closed again after the cache was told, before the memory moves: must not be kept for later. */
static void test_between_the_callback_and_the_move(void **state)
{
	(void)state;
	late_buffer = heap;
	late_uses = 0;
	world_after_callback = use_late;
	world_claim_all();
	world_after_callback = NULL;
	(void)use(heap, BUFFER_BYTES); /* compares */
	assert_false(use(heap, BUFFER_BYTES));
}

/* ---- what is not kept ---- */

static void test_outside_a_watch(void **state)
{
	(void)state;
	char *plain = mmap(NULL, BUFFER_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_ptr_not_equal(plain, MAP_FAILED);
	for (int i = 0; i < 3; i++) {
		uint64_t registered = nic_registrations(), deregistered = nic_deregistrations();
		struct fid_mr *mr = reg(plain, BUFFER_BYTES);
		assert_int_equal(fi_close(&mr->fid), 0);
		assert_int_equal(nic_registrations(), registered + 1);
		assert_int_equal(nic_deregistrations(), deregistered + 1);
	}
	munmap(plain, BUFFER_BYTES);
	/* Over the edge of a watched range. */
	char *next = world_map_outside(BUFFER_BYTES);
	struct sublet_ofi_watch *other;
	assert_int_equal(sublet_ofi_watch(ofi, world_mm, next + 4096, BUFFER_BYTES - 8192, &other), 0);
	assert_true(use(next + 4096, BUFFER_BYTES - 8192));
	assert_false(use(next + 4096, BUFFER_BYTES - 8192));
	assert_true(use(next, 8192));
	assert_true(use(next, 8192));
	assert_true(use(next + BUFFER_BYTES - 8192, 4097));
	assert_true(use(next + BUFFER_BYTES - 8192, 4097));
	sublet_ofi_unwatch(other);
}

static void test_unwatch_drops(void **state)
{
	(void)state;
	assert_true(use(heap, BUFFER_BYTES));
	assert_false(use(heap, BUFFER_BYTES));
	sublet_ofi_unwatch(watch);
	watch = NULL;
	assert_int_equal(world_notifiers(), 0);
	assert_true(use(heap, BUFFER_BYTES));
	assert_true(use(heap, BUFFER_BYTES));
	assert_int_equal(sublet_ofi_watch(ofi, world_mm, heap, HEAP_BYTES, &watch), 0);
	assert_true(use(heap, BUFFER_BYTES));
	assert_false(use(heap, BUFFER_BYTES));
}

/* The arena ends before its watch: what was cached of it goes, and its addresses are nobody's. */
static void test_arena_ends_first(void **state)
{
	(void)state;
	uint64_t before = nic_deregistrations();

	assert_true(use(heap, BUFFER_BYTES));
	world_close();
	char *again = mmap(heap, BUFFER_BYTES, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	assert_ptr_equal(again, heap);
	for (uint64_t i = 1; i <= 2; i++) {
		struct fid_mr *mr = reg(heap, BUFFER_BYTES);
		assert_int_equal(fi_close(&mr->fid), 0);
		assert_int_equal(nic_deregistrations(), before + 1 + i);
	}
	munmap(again, BUFFER_BYTES);
}

/* ---- refusals ---- */

static void test_refusals(void **state)
{
	(void)state;
	struct sublet_ofi *second;
	struct sublet_ofi_watch *w;

	assert_int_equal(sublet_ofi_open(&second), -EBUSY);
	assert_int_equal(sublet_ofi_close(ofi), -EBUSY);
	assert_int_equal(sublet_ofi_watch(ofi, world_mm, heap + HEAP_BYTES - 1, 2, &w), -EEXIST);
	assert_int_equal(sublet_ofi_watch(ofi, world_mm, heap - 1, 2, &w), -EEXIST);
	assert_int_equal(sublet_ofi_open(NULL), -EINVAL);
	assert_int_equal(sublet_ofi_watch(NULL, world_mm, heap, 4096, &w), -EINVAL);
	assert_int_equal(sublet_ofi_watch(ofi, NULL, heap, 4096, &w), -EINVAL);
	assert_int_equal(sublet_ofi_watch(ofi, world_mm, heap, 4096, NULL), -EINVAL);
	assert_int_equal(sublet_ofi_watch(ofi, world_mm, heap, 0, &w), -EINVAL);
	assert_int_equal(sublet_ofi_watch(ofi, world_mm, heap, UINT64_MAX, &w), -EINVAL);
	assert_int_equal(sublet_ofi_watch(ofi, world_mm, &w, sizeof w, &w), -EINVAL);
	sublet_ofi_unwatch(watch);
	watch = NULL;
	assert_int_equal(sublet_ofi_close(ofi), -EBUSY); /* the domain */
	assert_int_equal(sublet_ofi_close(NULL), 0);
	sublet_ofi_unwatch(NULL);
}

/* Without a domain: only the watch is in the way. Then it can be had again. */
static void test_close(void **state)
{
	(void)state;
	heap = world_open(AREA_BYTES);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(sublet_ofi_open(&ofi), 0);
		assert_int_equal(sublet_ofi_watch(ofi, world_mm, heap, HEAP_BYTES, &watch), 0);
		assert_int_equal(sublet_ofi_close(ofi), -EBUSY);
		sublet_ofi_unwatch(watch);
		watch = NULL;
		assert_int_equal(sublet_ofi_close(ofi), 0);
	}
	world_close();
}

/* ---- everything at once ---- */

#define USERS  3
#define CLAIMS 150u

static _Atomic bool stop;
static _Atomic uint64_t uses, stale;

static void *user_main(void *arg)
{
	uint64_t s = (uintptr_t)arg * 977 + 1;

	while (!stop) {
		s ^= s << 13, s ^= s >> 7, s ^= s << 17;
		char *addr = heap + (s >> 8) % (HEAP_BYTES / BUFFER_BYTES) * BUFFER_BYTES + (s & 1) * 512;
		uint64_t bytes = 4096 + (s >> 40) % 8 * 1000;
		struct sublet_pin pin;
		struct fid_mr *mr;
		if (sublet_pin(world_mm, addr, bytes, SUBLET_PIN_WRITE, NULL, &pin))
			continue;
		if (fi_mr_reg(domain, addr, bytes, FI_SEND | FI_RECV, 0, 0, 0, &mr, NULL))
			abort();
		/* The cache may answer with a larger registration: the card's place begins before the buffer's. */
		struct sublet_extent now[1];
		struct place card = nic_place(mr);
		if (sublet_pin_extents(&pin, 0, now, 1) < 1)
			abort();
		bool found = false;
		for (int i = 0; i < card.count; i++)
			found |= card.extents[i].offset_bytes <= now[0].offset_bytes &&
				 now[0].offset_bytes < card.extents[i].offset_bytes + card.extents[i].bytes;
		stale += !found;
		uses++;
		if (fi_close(&mr->fid) || sublet_unpin(&pin))
			abort();
	}
	return NULL;
}

static void test_stress(void **state)
{
	(void)state;
	pthread_t threads[USERS];

	stop = false;
	uses = stale = 0;
	for (uintptr_t i = 0; i < USERS; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, user_main, (void *)(i + 1)), 0);
	uint32_t moved = world_churn(CLAIMS);
	stop = true;
	for (int i = 0; i < USERS; i++)
		pthread_join(threads[i], NULL);
	print_message("%llu uses, %u claims of %u moved something\n", (unsigned long long)uses, moved,
		      CLAIMS);
	assert_int_equal(stale, 0);
	assert_true(moved > CLAIMS / 2 && uses > 100);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	static const struct CMUnitTest tests[] = {
		TEST(test_claim_drops_what_moved),
		TEST(test_only_what_moved),
		TEST(test_unmap_drops),
		TEST(test_decommit_drops),
		TEST(test_fork_drops),
		TEST(test_between_the_callback_and_the_move),
		TEST(test_outside_a_watch),
		TEST(test_unwatch_drops),
		TEST(test_arena_ends_first),
		TEST(test_refusals),
		cmocka_unit_test(test_close),
		cmocka_unit_test_prestate_setup_teardown(test_stress, setup, teardown, (void *)1),
	};

	world_watchdog(120);
	setenv("FI_MR_CACHE_MONITOR", "memhooks", 1);
	nic_plug();
	if (!world_open(AREA_BYTES))
		return 77;
	world_close();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
