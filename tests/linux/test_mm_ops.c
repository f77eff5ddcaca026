/* SPDX-License-Identifier: MIT */
/*
 * The address-space operations of src/linux on live memory, without the engine.
 *
 * Threads write, read and call read(2) into a range at full speed while a mover takes runs of it
 * through the sequences of core/platform.h, to scattered frames. Old frames are poisoned at once,
 * so a write that went to them, or a copy that came too early, shows as a wrong word.
 *
 * Every word is checked against a shadow at the end; while the threads run, each checks what it
 * finds. A test that plants a bug (pages written since the pre-copy are not copied again) must fail.
 */
#include "mm_world.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- the programs that live there ---- */

static volatile uint64_t *slot_address(size_t slot)
{
	return (volatile uint64_t *)(void *)(W.va + slot * SLOT_BYTES);
}

/* Even slots, by plain stores. */
static void *writer_main(void *arg)
{
	uint64_t s = 7, count = 0;

	(void)arg;
	while (!W.stop) {
		size_t k = next_random(&s) % SLOTS & ~(size_t)1;
		volatile uint64_t *p = slot_address(k);
		W.wrong += *p != W.shadow[k];
		W.shadow[k] = ++count << 1;
		*p = count << 1;
	}
	W.stores = count;
	return NULL;
}

/* Odd slots, by the kernel: read(2) stores the word, write(2) fetches it back. */
static void *caller_main(void *arg)
{
	uint64_t s = 99, count = 0;
	int in[2], out[2];

	(void)arg;
	if (pipe(in) || pipe(out))
		abort();
	while (!W.stop) {
		size_t k = next_random(&s) % SLOTS | 1;
		uint64_t value = ++count << 1 | 1, back = 0;
		void *slot = W.va + k * SLOT_BYTES;
		W.failed_calls += write(in[1], &value, 8) != 8 || read(in[0], slot, 8) != 8;
		W.failed_calls += write(out[1], slot, 8) != 8 || read(out[0], &back, 8) != 8;
		W.wrong += back != value;
		W.shadow[k] = value;
	}
	W.calls = count;
	close(in[0]), close(in[1]), close(out[0]), close(out[1]);
	return NULL;
}

/* Words between the slots never change. */
static void *reader_main(void *arg)
{
	uint64_t s = 12345, count = 0;

	(void)arg;
	while (!W.stop) {
		size_t i = next_random(&s) % (LEN / 8);
		if (i * 8 % SLOT_BYTES == 0)
			i++;
		W.wrong += ((volatile uint64_t *)W.va)[i] != filler(i);
		count++;
	}
	W.loads = count;
	return NULL;
}

static pthread_t threads[3];

static void programs_start(void)
{
	static void *(*const mains[3])(void *) = { writer_main, caller_main, reader_main };

	for (int i = 0; i < 3; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, mains[i], NULL), 0);
}

static void programs_stop(void)
{
	W.stop = true;
	for (int i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
}

/* ---- the mover ---- */

static void copy_segments(const struct sublet__segment *segs, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++)
		sublet__copy(sublet__mm_frame(&W.mm, segs[i].dst_pfn),
			     sublet__mm_frame(&W.mm, segs[i].src_pfn),
			     sublet__mm_bytes(&W.mm, segs[i].pages));
}

static void recopy(const struct sublet__segment *segs, uint32_t count)
{
	uint64_t bitmap[SUBLET__RUN_PAGES_MAX / 64] = { 0 };

	sublet__linux_mm_ops.dirty(&W.mm, segs[0].vpn, sublet__mm_pages(segs, count), bitmap);
	for (uint32_t i = 0; i < count && !W.skip_recopy; i++)
		for (uint32_t p = 0; p < segs[i].pages; p++) {
			uint32_t bit = segs[i].vpn + p - segs[0].vpn;
			if (!(bitmap[bit / 64] >> (bit % 64) & 1))
				continue;
			sublet__copy(sublet__mm_frame(&W.mm, segs[i].dst_pfn + p),
				     sublet__mm_frame(&W.mm, segs[i].src_pfn + p),
				     sublet__mm_bytes(&W.mm, 1));
			W.recopied++;
		}
}

/* A random run of whole units that stays in its block, to random free units. */
static uint32_t choose_run(struct sublet__segment *segs, uint32_t *place, uint32_t *units)
{
	uint32_t block = W.mm.is_hugetlb ? 1 : SUBLET__RUN_PAGES_MAX / W.unit_pages;
	uint32_t most = sublet__linux_mm_run_pages(&W.mm) / W.unit_pages, count = 0;
	bool in_one_piece = next_random(&W.random) % 2;

	*place = (uint32_t)(next_random(&W.random) % W.units);
	*units = 1 + (uint32_t)(next_random(&W.random) % (most ? most : 1));
	if (*units > block - *place % block)
		*units = block - *place % block;
	for (uint32_t i = 0; i < *units; i++) {
		uint32_t pick = W.free_count - 1;
		if (!in_one_piece || !i)
			pick = (uint32_t)(next_random(&W.random) % W.free_count);
		else
			for (uint32_t k = 0; k < W.free_count; k++)
				if (W.free_units[k] * W.unit_pages ==
				    segs[count - 1].dst_pfn + segs[count - 1].pages)
					pick = k;
		struct sublet__segment s = segment(*place + i, 1, W.unit_of[*place + i], W.free_units[pick]);
		W.free_units[pick] = W.free_units[--W.free_count];
		struct sublet__segment *last = count ? &segs[count - 1] : NULL;
		if (last && last->src_pfn + last->pages == s.src_pfn &&
		    last->dst_pfn + last->pages == s.dst_pfn)
			last->pages += s.pages;
		else
			segs[count++] = s;
	}
	return count;
}

/* The frames that are not used any more return to the free list, with a poison in them. */
static void frames_return(const struct sublet__segment *segs, uint32_t count, bool moved)
{
	for (uint32_t i = 0; i < count; i++)
		for (uint32_t p = 0; p < segs[i].pages; p += W.unit_pages) {
			uint32_t old = (moved ? segs[i].src_pfn : segs[i].dst_pfn) + p;
			memset(sublet__mm_frame(&W.mm, old), 0xEE, sublet__mm_bytes(&W.mm, W.unit_pages));
			W.free_units[W.free_count++] = old / W.unit_pages;
			if (moved)
				W.unit_of[(segs[i].vpn + p) / W.unit_pages] =
					(segs[i].dst_pfn + p) / W.unit_pages;
		}
}

static void move_one(uint32_t flags)
{
	const struct sublet__mm_ops *ops = &sublet__linux_mm_ops;
	struct sublet__segment segs[SUBLET__RUN_PAGES_MAX];
	uint32_t place, units, count = choose_run(segs, &place, &units);
	uint32_t vpn = segs[0].vpn, pages = units * W.unit_pages;
	bool tracked = W.mm.technique == SUBLET_TECHNIQUE_PRECOPY && next_random(&W.random) % 8;
	uint64_t how = next_random(&W.random) % 16;

	if (tracked) {
		assert_int_equal(ops->track(&W.mm, vpn, pages), 0);
		copy_segments(segs, count);
	}
	if (tracked && how == 0)
		goto back_out; /* before block */
	assert_int_equal(ops->block(&W.mm, vpn, pages), 0);
	if (how == 1)
		goto back_out;
	if (tracked)
		recopy(segs, count);
	else
		copy_segments(segs, count);
	if (how == 2) {
		mmap_fails_in = 1 + (int)(next_random(&W.random) % count);
		assert_int_equal(ops->remap(&W.mm, segs, count, flags), -ENOMEM);
		assert_int_equal(mmap_fails_in, 0);
		goto back_out;
	}
	assert_int_equal(ops->remap(&W.mm, segs, count, flags), 0);
	ops->wake(&W.mm, vpn, pages);
	frames_return(segs, count, true);
	W.moves++;
	return;

back_out:
	ops->unblock(&W.mm, vpn, pages);
	frames_return(segs, count, false);
	W.backed_out++;
}

#define MOVES_LEAST 20u

static void move_for_ms(uint64_t ms, uint32_t flags)
{
	struct timespec t;
	uint64_t now, end = 0;

	do {
		move_one(flags);
		clock_gettime(CLOCK_MONOTONIC, &t);
		now = (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
		end = end ? end : now + ms;
		/* On a machine that is busy with something else it takes longer, up to a bound. */
	} while (now < end || (W.moves <= MOVES_LEAST && now < end + 20000));
}

/* ---- tests ---- */

static void report(const char *what)
{
	print_message("%s: backing %d technique %d: %lu moves, %lu backed out, %lu recopied, %lu stores, %lu "
		      "calls, "
		      "%lu loads\n",
		      what, (int)W.backing.kind, (int)W.mm.technique, W.moves, W.backed_out, W.recopied,
		      (unsigned long)W.stores, (unsigned long)W.calls, (unsigned long)W.loads);
}

static void check_all(void)
{
	assert_int_equal(W.failed_calls, 0);
	assert_int_equal(W.wrong, 0);
	assert_int_equal(world_wrong_words(), 0);
}

static void moves_with_programs(void)
{
	programs_start();
	move_for_ms(700, SUBLET__MAP_SHARED);
	programs_stop();
	report("moves");
	assert_true(W.moves > MOVES_LEAST);
	check_all();
}

static void test_moves(void **state)
{
	(void)state;
	each_world(moves_with_programs);
}

static void locked_moves(void)
{
	assert_int_equal(mlock(W.va, LEN), 0);
	programs_start();
	move_for_ms(200, SUBLET__MAP_LOCKED);
	programs_stop();
	check_all();
}

static void test_locked_moves(void **state)
{
	(void)state;
	each_world(locked_moves);
}

/* The checks of this program find a missing recopy. */
static void test_planted_bug_is_found(void **state)
{
	(void)state;
	if (!world_open(SUBLET_BACKING_MEMFD, SUBLET_TECHNIQUE_PRECOPY))
		skip();
	world_fill();
	W.skip_recopy = true;
	programs_start();
	move_for_ms(500, SUBLET__MAP_SHARED);
	programs_stop();
	assert_true(W.wrong + world_wrong_words() > 0);
	world_close();
}

/* ---- fork ---- */

/* fn on every block of the range, with its segments at dst_pfn. */
static void each_block(int (*fn)(void *, const struct sublet__segment *, uint32_t, uint32_t))
{
	uint32_t block = W.mm.is_hugetlb ? 1 : SUBLET__RUN_PAGES_MAX / W.unit_pages;

	for (uint32_t place = 0; place < W.units; place += block) {
		struct sublet__segment segs[SUBLET__RUN_PAGES_MAX];
		uint32_t count = 0;
		for (uint32_t i = place; i < place + block; i++)
			segs[count++] = segment(i, 1, 0, W.unit_of[i]);
		/* A failure in the middle first: it must leave everything as it was. */
		mmap_fails_in = W.mm.is_hugetlb ? 1 : (int)(1 + next_random(&W.random) % count);
		if (W.mm.is_hugetlb && fn == sublet__mm_privatize)
			mmap_fails_in = 0; /* its mappings are moved there by mremap */
		if (mmap_fails_in)
			assert_int_equal(fn(&W.mm, segs, count, SUBLET__MAP_SHARED), -ENOMEM);
		assert_int_equal(mmap_fails_in, 0);
		assert_int_equal(fn(&W.mm, segs, count, SUBLET__MAP_SHARED), 0);
	}
}

static uint64_t checksum(void)
{
	uint64_t x = 0;

	for (size_t i = 0; i < LEN / 8; i++)
		x = x * 31 + ((volatile uint64_t *)W.va)[i];
	return x;
}

/* In the child: the memory stands still, and what is written here is seen by nobody else. */
static _Noreturn void child_main(void)
{
	uint64_t first = checksum();

	usleep(30000);
	if (checksum() != first)
		_exit(1);
	for (size_t i = 0; i < LEN; i += 4096)
		W.va[i + 8] = 0x42;
	usleep(30000);
	_exit(0);
}

static void fork_with_programs(void)
{
	int status;

	programs_start();
	move_for_ms(30, SUBLET__MAP_SHARED);
	for (int round = 0; round < 2; round++) {
		each_block(sublet__mm_privatize);
		pid_t pid = fork();
		if (!pid)
			child_main();
		assert_true(pid > 0);
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_int_equal(status, 0);
		each_block(sublet__mm_restore);
		move_for_ms(30, SUBLET__MAP_SHARED);
	}
	programs_stop();
	report("fork");
	check_all();
}

static void test_fork(void **state)
{
	(void)state;
	each_world(fork_with_programs);
}

/* Without PAGEMAP_SCAN everything counts as written, and restore reads /proc/self/pagemap. */
static void test_old_kernel(void **state)
{
	(void)state;
	for (size_t k = 0; k < 2; k++) {
		if (!world_open(kinds[k], SUBLET_TECHNIQUE_PRECOPY))
			continue;
		world_fill();
		scan_fails = true;
		fork_with_programs();
		scan_fails = false;
		world_close();
		assert_true(world_open(kinds[k], SUBLET_TECHNIQUE_AUTO));
		assert_int_equal(W.mm.technique,
				 W.mm.is_huge ? SUBLET_TECHNIQUE_PRECOPY : SUBLET_TECHNIQUE_ZAP);
		world_close();
		scan_fails = true;
		struct sublet_arena_options o = { SUBLET_OPTIONS(sublet_arena_options), .backing = kinds[k],
						  .fd = -1 };
		assert_int_equal(sublet__backing_open(&W.backing, &o, FRAMES_BYTES), 0);
		assert_int_equal(sublet__linux_mm_open(&W.mm, &W.backing, SUBLET_TECHNIQUE_PRECOPY, LEN),
				 -EOPNOTSUPP);
		assert_int_equal(sublet__linux_mm_open(&W.mm, &W.backing, SUBLET_TECHNIQUE_AUTO, LEN), 0);
		assert_int_equal(W.mm.technique, SUBLET_TECHNIQUE_ZAP);
		scan_fails = false;
		world_close();
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_moves),
		cmocka_unit_test(test_locked_moves),
		cmocka_unit_test(test_planted_bug_is_found),
		cmocka_unit_test(test_fork),
		cmocka_unit_test(test_old_kernel),
	};

	setvbuf(stdout, NULL, _IOLBF, 0);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
