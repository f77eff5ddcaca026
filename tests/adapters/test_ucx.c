/* SPDX-License-Identifier: MIT */
/*
 * UCX's registration cache over memory that moves.
 *
 * G4, for a cache: what it yields for pinned memory leads to where the memory is. Run twice: with
 * UCX_MEM_MMAP_HOOK_MODE=none, where UCX patches nothing and hears from the adapter alone; and without, where it leads
 * libc's mmap and madvise through its handlers, and must neither hang nor hear of a move in the middle of it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "rcache.h"

#include <sublet/ucx.h>

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <ucm/api/ucm.h>
#include <unistd.h>

#define BUFFER_BYTES ((uint64_t)64 << 10)

static struct rcache rc;
static struct sublet_ucx_watch *watch;
static char *heap;
static bool is_hooked;

/* Use a buffer once, as a driver does: pin, register, transfer, put, unpin. Returns whether it was registered anew. */
static bool use(char *addr, uint64_t bytes)
{
	struct sublet_pin pin;
	uint64_t before = rc.registrations;

	assert_int_equal(sublet_pin(world_mm, addr, bytes, SUBLET_PIN_WRITE, NULL, &pin), 0);
	struct region *region = rcache_get(&rc, addr, bytes);
	assert_non_null(region);
	uint64_t start = region->super.super.start, end = region->super.super.end;
	struct place now = world_place((const void *)start, end - start);
	assert_true(world_place_equal(&now, &region->place));
	rcache_put(&rc, region);
	assert_int_equal(sublet_unpin(&pin), 0);
	return rc.registrations != before;
}

/* *state: a small normal zone. */
static int setup(void **state)
{
	heap = world_open(*state ? AREA_BYTES / 2 : AREA_BYTES);
	if (!heap)
		return -1;
	rcache_open(&rc);
	assert_int_equal(sublet_ucx_watch(world_mm, heap, HEAP_BYTES, &watch), 0);
	world_allocations = 0;
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	world_after_callback = NULL;
	sublet_ucx_unwatch(watch);
	rcache_close(&rc);
	if (world_arena)
		world_close();
	return 0;
}

static void test_claim_drops_what_moved(void **state)
{
	(void)state;
	char *outside = world_map_outside(BUFFER_BYTES);
	struct sublet_ucx_watch *other;

	assert_int_equal(sublet_ucx_watch(world_mm, outside, BUFFER_BYTES, &other), 0);
	assert_true(use(heap, BUFFER_BYTES));
	assert_true(use(heap + SUBLET_MIB, 5000));
	assert_true(use(outside, BUFFER_BYTES));
	assert_false(use(heap, BUFFER_BYTES));
	assert_false(use(heap + SUBLET_MIB, 5000));
	assert_false(use(outside, BUFFER_BYTES));

	world_claim_all();
	assert_true(use(heap, BUFFER_BYTES));
	assert_true(use(heap + SUBLET_MIB, 5000));
	assert_false(use(outside, BUFFER_BYTES));
	assert_false(use(heap, BUFFER_BYTES));
	assert_int_equal(world_allocations, 0);
	sublet_ucx_unwatch(other);
}

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

static void test_unmap_and_decommit_drop(void **state)
{
	(void)state;
	uint64_t half = HEAP_BYTES / 2;

	assert_true(use(heap, BUFFER_BYTES));
	assert_true(use(heap + half, BUFFER_BYTES));
	world_refill(heap, 2 * SUBLET_MIB);
	assert_true(use(heap, BUFFER_BYTES));
	assert_false(use(heap + half, BUFFER_BYTES));
	assert_int_equal(rc.deregistrations, 1);
	assert_int_equal(sublet_unmap(world_mm, heap + half, HEAP_BYTES - half), 0);
	assert_false(use(heap, BUFFER_BYTES));
	assert_true(use(heap + BUFFER_BYTES, BUFFER_BYTES)); /* a miss empties the bin */
	assert_int_equal(rc.deregistrations, 2);
}

static void test_fork_drops(void **state)
{
	(void)state;
	int status, err = -EBUSY;
	struct sublet_pin pin;

	assert_true(use(heap, BUFFER_BYTES));
	pid_t pid = fork();
	if (!pid)
		_exit(0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	for (int i = 0; i < 500 && err == -EBUSY; i++) {
		err = sublet_pin(world_mm, heap, BUFFER_BYTES, SUBLET_PIN_WRITE, NULL, &pin);
		usleep(10000);
	}
	assert_int_equal(err, 0);
	assert_int_equal(sublet_unpin(&pin), 0);
	assert_true(use(heap, BUFFER_BYTES));
}

static void test_unwatch_drops(void **state)
{
	(void)state;
	assert_true(use(heap, BUFFER_BYTES));
	assert_false(use(heap, BUFFER_BYTES));
	sublet_ucx_unwatch(watch);
	watch = NULL;
	assert_int_equal(world_notifiers(), 0);
	assert_true(use(heap, BUFFER_BYTES));
	assert_int_equal(sublet_ucx_watch(world_mm, heap, HEAP_BYTES, &watch), 0);
}

static void test_arena_ends_first(void **state)
{
	(void)state;
	assert_true(use(heap, BUFFER_BYTES));
	world_close();
	struct region *region = rcache_get(&rc, heap, BUFFER_BYTES);
	assert_non_null(region);
	assert_int_equal(rc.registrations, 2);
	assert_int_equal(rc.deregistrations, 1);
	rcache_put(&rc, region);
}

static void test_refusals(void **state)
{
	(void)state;
	struct sublet_ucx_watch *w;

	assert_int_equal(sublet_ucx_watch(NULL, heap, 4096, &w), -EINVAL);
	assert_int_equal(sublet_ucx_watch(world_mm, heap, 4096, NULL), -EINVAL);
	assert_int_equal(sublet_ucx_watch(world_mm, heap, 0, &w), -EINVAL);
	assert_int_equal(sublet_ucx_watch(world_mm, heap, UINT64_MAX, &w), -EINVAL);
	assert_int_equal(sublet_ucx_watch(world_mm, &w, sizeof w, &w), -EINVAL);
	sublet_ucx_unwatch(NULL);
}

/* ---- the cache is busy when it is told ---- */

static void move_while_registering(const void *addr, uint64_t bytes)
{
	struct sublet_pin pin;

	(void)bytes;
	/* The page table of the cache is locked here, by this very thread. */
	if (sublet_pin(world_mm, heap, 1, SUBLET_PIN_READ | SUBLET_PIN_LONGTERM, NULL, &pin) ||
	    sublet_unpin(&pin))
		fail_msg("no pin at %p", addr);
}

static void test_told_from_inside_a_registration(void **state)
{
	(void)state;
	char *other = heap + 5 * SUBLET_MIB;

	assert_true(use(heap, BUFFER_BYTES));
	rc.on_register = move_while_registering;
	assert_true(use(other, BUFFER_BYTES));
	rc.on_register = NULL;
	assert_true(use(heap, BUFFER_BYTES));
	assert_false(use(other, BUFFER_BYTES));
}

/* ---- the worst moment ---- */

static _Atomic int late_uses;

static void *late_main(void *arg)
{
	struct sublet_pin pin;

	(void)arg;
	if (!sublet_pin(world_mm, heap, BUFFER_BYTES, SUBLET_PIN_WRITE | SUBLET_PIN_NOWAIT, NULL, &pin)) {
		struct region *region = rcache_get(&rc, heap, BUFFER_BYTES);
		if (!region)
			abort();
		rcache_put(&rc, region);
		late_uses++;
		if (sublet_unpin(&pin))
			abort();
	}
	return NULL;
}

static void use_late(const struct sublet_invalidation *inv)
{
	pthread_t thread;

	if ((uintptr_t)heap < inv->addr || (uintptr_t)heap >= inv->addr + inv->bytes || late_uses > 5)
		return;
	if (!pthread_create(&thread, NULL, late_main, NULL))
		pthread_join(thread, NULL);
}

/* Registered and put again after the cache was told, before the memory moves: must not be kept for later. */
static void test_between_the_callback_and_the_move(void **state)
{
	(void)state;
	late_uses = 0;
	world_after_callback = use_late;
	world_claim_all();
	world_after_callback = NULL;
	(void)use(heap, BUFFER_BYTES); /* compares */
	assert_false(use(heap, BUFFER_BYTES));
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
		if (sublet_pin(world_mm, addr, bytes, SUBLET_PIN_WRITE, NULL, &pin))
			continue;
		struct region *region = rcache_get(&rc, addr, bytes);
		struct sublet_extent now[1];
		if (!region || sublet_pin_extents(&pin, 0, now, 1) < 1)
			abort();
		bool found = false;
		for (int i = 0; i < region->place.count; i++)
			found |= region->place.extents[i].offset_bytes <= now[0].offset_bytes &&
				 now[0].offset_bytes < region->place.extents[i].offset_bytes +
							       region->place.extents[i].bytes;
		stale += !found;
		uses++;
		rcache_put(&rc, region);
		if (sublet_unpin(&pin))
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

/* ---- UCX's own watch ---- */

/* Memory that no watch covers: UCX hears of its munmap() by itself, unless the program said that it need not. */
static void test_plain_memory(void **state)
{
	(void)state;
	void *plain = mmap(NULL, BUFFER_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_ptr_not_equal(plain, MAP_FAILED);
	rcache_put(&rc, rcache_get(&rc, plain, BUFFER_BYTES));
	assert_int_equal(munmap(plain, BUFFER_BYTES), 0);
	rcache_put(&rc, rcache_get(&rc, plain, BUFFER_BYTES));
	assert_int_equal(rc.registrations, is_hooked ? 2 : 1);
}

static _Atomic uint64_t seen;

static void on_event(ucm_event_type_t type, ucm_event_t *event, void *arg)
{
	uintptr_t addr = 0;

	(void)arg;
	switch (type) {
	case UCM_EVENT_MMAP:
		addr = (uintptr_t)event->mmap.address;
		break;
	case UCM_EVENT_MUNMAP:
		addr = (uintptr_t)event->munmap.address;
		break;
	case UCM_EVENT_MADVISE:
		addr = (uintptr_t)event->madvise.addr;
		break;
	default:
		break;
	}
	seen += addr >= (uintptr_t)heap && addr < (uintptr_t)heap + HEAP_BYTES;
}

/* The engine's own mmap and madvise come from between block and wake (L1): they must not go through UCX's handlers. */
static void test_moves_pass_by_the_hooks(void **state)
{
	(void)state;
	int events = UCM_EVENT_MMAP | UCM_EVENT_MUNMAP | UCM_EVENT_MADVISE, err;

	if (!is_hooked)
		ucm_set_external_event(events);
	assert_int_equal(ucm_set_event_handler(events, -1, on_event, NULL), UCS_OK);
	seen = 0;
	err = madvise(heap, 4096, MADV_NORMAL);
	assert_int_equal(err, 0);
	assert_int_equal(seen, is_hooked);
	world_claim_all();
	pid_t pid = fork();
	if (!pid)
		_exit(0);
	assert_int_equal(waitpid(pid, &err, 0), pid);
	assert_int_equal(seen, is_hooked);
	ucm_unset_event_handler(events, on_event, NULL);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	static const struct CMUnitTest tests[] = {
		TEST(test_claim_drops_what_moved),
		TEST(test_only_what_moved),
		TEST(test_unmap_and_decommit_drop),
		TEST(test_fork_drops),
		TEST(test_unwatch_drops),
		TEST(test_arena_ends_first),
		TEST(test_refusals),
		TEST(test_told_from_inside_a_registration),
		TEST(test_between_the_callback_and_the_move),
		TEST(test_plain_memory),
		TEST(test_moves_pass_by_the_hooks),
		cmocka_unit_test_prestate_setup_teardown(test_stress, setup, teardown, (void *)1),
	};

	world_watchdog(120);
	const char *mode = getenv("UCX_MEM_MMAP_HOOK_MODE"); /* UCX read it before main */
	is_hooked = !mode || strcmp(mode, "none");
	if (!is_hooked)
		ucm_set_external_event(UCM_EVENT_VM_UNMAPPED);
	if (!world_open(AREA_BYTES))
		return 77;
	world_close();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
