/* SPDX-License-Identifier: MIT */
/*
 * The address-space operations of src/linux on live memory, without the engine.
 *
 * Threads write, read and call read(2) into a range at full speed while a mover takes runs of it
 * through the sequences of core/platform.h, to scattered frames. Old frames are poisoned at once,
 * so a write that went to them, or a copy that came too early, shows as a wrong word. mm.c and
 * private.c are included, so that mmap can be made to fail at a chosen call.
 *
 * Every word is checked against a shadow at the end; while the threads run, each checks what it
 * finds. A test that plants a bug (pages written since the pre-copy are not copied again) must fail.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "linux/raw.h"

#include <sys/ioctl.h>
#include <sys/mman.h>

static void *test_mmap(void *addr, size_t bytes, int prot, int flags, int fd, uint64_t offset);
static int test_ioctl(int fd, unsigned long request, void *arg);
#define sublet__raw_mmap test_mmap
#define ioctl test_ioctl
#include "linux/mm.c"
#include "linux/private.c"
#undef sublet__raw_mmap
#undef ioctl

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/wait.h>

#define LEN ((size_t)16 << 20)
#define FRAMES_BYTES ((size_t)48 << 20)
#define SLOT_BYTES ((size_t)256)
#define SLOTS (LEN / SLOT_BYTES)
#define UNITS_MAX (FRAMES_BYTES >> 16)
#define SEED_SALT 0x9E3779B97F4A7C15ull

/* ---- a chosen mmap fails ---- */

static __thread int mmap_fails_in; /* 1: the next one; 0: none */
static bool mmap_unmaps; /* before it fails, as kernels before 6.12 may */

static void *test_mmap(void *addr, size_t bytes, int prot, int flags, int fd, uint64_t offset)
{
	if (mmap_fails_in && flags & MAP_FIXED && --mmap_fails_in == 0) {
		if (mmap_unmaps)
			munmap(addr, bytes);
		errno = ENOMEM;
		return MAP_FAILED;
	}
	return sublet__raw_mmap(addr, bytes, prot, flags, fd, offset);
}

static bool scan_fails; /* as on kernels before 6.7 */

static int test_ioctl(int fd, unsigned long request, void *arg)
{
	if (scan_fails && request == SUBLET__PAGEMAP_SCAN) {
		errno = ENOTTY;
		return -1;
	}
	return ioctl(fd, request, arg);
}

/* ---- the world of one test ---- */

struct world {
	struct sublet__backing backing;
	struct sublet__linux_mm mm;
	uint8_t *va;
	uint32_t unit_pages; /* frames are handed out in units: 64 KiB, or one huge page */
	uint32_t units;      /* of the range */
	uint32_t unit_of[UNITS_MAX]; /* place in the range -> unit of frames */
	uint32_t free_units[UNITS_MAX];
	uint32_t free_count;
	uint64_t shadow[SLOTS]; /* last value stored in each slot, by its one writer */
	_Atomic bool stop;
	_Atomic uint64_t wrong, failed_calls, stores, calls, loads;
	uint64_t random;
	bool skip_recopy; /* the planted bug */
	uint64_t moves, backed_out, recopied;
};

static struct world W;

static uint64_t next_random(uint64_t *s)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	*s ^= *s << 17;
	return *s;
}

static uint64_t filler(size_t word)
{
	return (word + 1) * SEED_SALT;
}

static bool world_open(enum sublet_backing kind, enum sublet_technique technique)
{
	struct sublet_arena_options o = { SUBLET_OPTIONS(sublet_arena_options), .backing = kind, .fd = -1 };

	memset(&W, 0, sizeof W);
	W.random = 88172645463325252ull;
	int err = sublet__backing_open(&W.backing, &o, FRAMES_BYTES);
	if (err) {
		print_message("backing %d: error %d, skipped\n", (int)kind, err);
		return false;
	}
	err = sublet__linux_mm_open(&W.mm, &W.backing, technique, 2 * LEN);
	if (err) {
		print_message("technique %d: error %d, skipped\n", (int)technique, err);
		sublet__backing_close(&W.backing);
		return false;
	}
	W.va = (uint8_t *)W.mm.base;
	W.unit_pages = W.mm.is_hugetlb ? 1 : 16;
	W.units = (uint32_t)(LEN / ((size_t)W.unit_pages << W.mm.shift));
	return true;
}

static struct sublet__segment segment(uint32_t place, uint32_t units, uint32_t src_unit, uint32_t dst_unit)
{
	return (struct sublet__segment){ place * W.unit_pages, units * W.unit_pages, src_unit * W.unit_pages,
					 dst_unit * W.unit_pages };
}

static void world_fill(void)
{
	uint32_t all = (uint32_t)(FRAMES_BYTES / ((size_t)W.unit_pages << W.mm.shift));

	for (uint32_t i = 0; i < W.units; i++) {
		struct sublet__segment s = segment(i, 1, 0, i);
		W.unit_of[i] = i;
		assert_int_equal(sublet__linux_mm_ops.map(&W.mm, &s, 1, SUBLET__MAP_SHARED), 0);
	}
	for (uint32_t i = W.units; i < all; i++)
		W.free_units[W.free_count++] = i;
	for (size_t i = 0; i < LEN / 8; i++)
		((uint64_t *)W.va)[i] = filler(i);
	for (size_t i = 0; i < SLOTS; i++)
		W.shadow[i] = filler(i * SLOT_BYTES / 8);
}

static void world_close(void)
{
	sublet__linux_mm_close(&W.mm);
	sublet__backing_close(&W.backing);
}

/* Every word, through its address and through the linear map. */
static uint64_t world_wrong_words(void)
{
	uint64_t wrong = 0;
	size_t unit_bytes = (size_t)W.unit_pages << W.mm.shift;

	for (size_t i = 0; i < LEN / 8; i++) {
		bool is_slot = i * 8 % SLOT_BYTES == 0;
		uint64_t want = is_slot ? W.shadow[i * 8 / SLOT_BYTES] : filler(i);
		size_t place = i * 8 / unit_bytes, at = i * 8 % unit_bytes;
		const uint8_t *frame = W.backing.linear + W.unit_of[place] * unit_bytes + at;
		wrong += ((volatile uint64_t *)W.va)[i] != want;
		wrong += *(const volatile uint64_t *)(const void *)frame != want;
	}
	return wrong;
}

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
		sublet__copy(sublet__mm_frame(&W.mm, segs[i].dst_pfn), sublet__mm_frame(&W.mm, segs[i].src_pfn),
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
				     sublet__mm_frame(&W.mm, segs[i].src_pfn + p), sublet__mm_bytes(&W.mm, 1));
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
				if (W.free_units[k] * W.unit_pages == segs[count - 1].dst_pfn + segs[count - 1].pages)
					pick = k;
		struct sublet__segment s = segment(*place + i, 1, W.unit_of[*place + i], W.free_units[pick]);
		W.free_units[pick] = W.free_units[--W.free_count];
		struct sublet__segment *last = count ? &segs[count - 1] : NULL;
		if (last && last->src_pfn + last->pages == s.src_pfn && last->dst_pfn + last->pages == s.dst_pfn)
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
				W.unit_of[(segs[i].vpn + p) / W.unit_pages] = (segs[i].dst_pfn + p) / W.unit_pages;
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

static const enum sublet_backing kinds[] = { SUBLET_BACKING_MEMFD, SUBLET_BACKING_THP, SUBLET_BACKING_HUGETLB };
static const enum sublet_technique techniques[] = { SUBLET_TECHNIQUE_PRECOPY, SUBLET_TECHNIQUE_ZAP,
						    SUBLET_TECHNIQUE_WRITEPROTECT };

static void report(const char *what)
{
	print_message("%s: backing %d technique %d: %lu moves, %lu backed out, %lu recopied, %lu stores, %lu calls, "
		      "%lu loads\n", what, (int)W.backing.kind, (int)W.mm.technique, W.moves, W.backed_out, W.recopied,
		      (unsigned long)W.stores, (unsigned long)W.calls, (unsigned long)W.loads);
}

static void check_all(void)
{
	assert_int_equal(W.failed_calls, 0);
	assert_int_equal(W.wrong, 0);
	assert_int_equal(world_wrong_words(), 0);
}

static void each_world(void (*test)(void))
{
	for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
		for (size_t t = 0; t < sizeof techniques / sizeof *techniques; t++)
			if (world_open(kinds[k], techniques[t])) {
				world_fill();
				test();
				world_close();
			}
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
	for (int round = 0; round < 3; round++) {
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
		assert_int_equal(W.mm.technique, W.mm.is_huge ? SUBLET_TECHNIQUE_PRECOPY : SUBLET_TECHNIQUE_ZAP);
		world_close();
		scan_fails = true;
		struct sublet_arena_options o = { SUBLET_OPTIONS(sublet_arena_options), .backing = kinds[k], .fd = -1 };
		assert_int_equal(sublet__backing_open(&W.backing, &o, FRAMES_BYTES), 0);
		assert_int_equal(sublet__linux_mm_open(&W.mm, &W.backing, SUBLET_TECHNIQUE_PRECOPY, LEN), -EOPNOTSUPP);
		assert_int_equal(sublet__linux_mm_open(&W.mm, &W.backing, SUBLET_TECHNIQUE_AUTO, LEN), 0);
		assert_int_equal(W.mm.technique, SUBLET_TECHNIQUE_ZAP);
		scan_fails = false;
		world_close();
	}
}

/* ---- the plain ones ---- */

static void test_map_and_unmap(void **state)
{
	const struct sublet__mm_ops *ops = &sublet__linux_mm_ops;
	struct sublet__segment segs[3] = { { 0, 16, 0, 32 }, { 16, 16, 0, 64 }, { 32, 16, 0, 0 } };
	unsigned char vec[48];

	(void)state;
	assert_true(world_open(SUBLET_BACKING_MEMFD, SUBLET_TECHNIQUE_AUTO));
	mmap_fails_in = 3;
	assert_int_equal(ops->map(&W.mm, segs, 3, SUBLET__MAP_SHARED), -ENOMEM);
	assert_int_equal(madvise(W.va, 48 << 12, SUBLET__MADV_POPULATE_READ), -1); /* inaccessible still */
	assert_int_equal(ops->map(&W.mm, segs, 3, SUBLET__MAP_SHARED), 0);
	W.va[16 << 12] = 7;
	assert_int_equal(*sublet__mm_frame(&W.mm, 64), 7);
	ops->clear(&W.mm, 16, 1);
	assert_int_equal(*sublet__mm_frame(&W.mm, 64), 0);
	assert_int_equal(ops->map_plain(&W.mm, 16, 16), 0);
	W.va[16 << 12] = 9;
	assert_int_equal(*sublet__mm_frame(&W.mm, 64), 0);
	assert_int_equal(ops->map(&W.mm, &segs[1], 1, SUBLET__MAP_PRIVATE), 0);
	W.va[16 << 12] = 5;
	assert_int_equal(*sublet__mm_frame(&W.mm, 64), 0);
	assert_int_equal(ops->unmap(&W.mm, 0, 48), 0);
	assert_int_equal(madvise(W.va, 48 << 12, SUBLET__MADV_POPULATE_READ), -1);
	assert_int_equal(mincore(W.va, 48 << 12, vec), 0); /* reserved still */
	world_close();
}

/* Where a failed mmap takes the old mapping with it, the new one is put there all the same. */
static void test_mmap_that_unmaps(void **state)
{
	const struct sublet__mm_ops *ops = &sublet__linux_mm_ops;
	struct sublet__segment segs[2] = { { 0, 16, 0, 32 }, { 16, 16, 16, 64 } };

	(void)state;
	assert_true(world_open(SUBLET_BACKING_MEMFD, SUBLET_TECHNIQUE_AUTO));
	mmap_unmaps = true;
	for (int fails = 1; fails <= 2; fails++) {
		mmap_fails_in = fails;
		assert_int_equal(ops->map(&W.mm, segs, 2, SUBLET__MAP_SHARED), 0);
		assert_int_equal(mmap_fails_in, 0);
		W.va[0] = 1, W.va[16 << 12] = 2;
		assert_true(*sublet__mm_frame(&W.mm, 32) == 1 && *sublet__mm_frame(&W.mm, 64) == 2);
		mmap_fails_in = fails;
		assert_int_equal(ops->privatize(&W.mm, segs, 2, SUBLET__MAP_SHARED), 0);
		W.va[0] = 3, W.va[16 << 12] = 4;
		assert_true(*sublet__mm_frame(&W.mm, 32) == 1 && *sublet__mm_frame(&W.mm, 64) == 2);
		mmap_fails_in = fails;
		assert_int_equal(ops->restore(&W.mm, segs, 2, SUBLET__MAP_SHARED), 0);
		assert_true(*sublet__mm_frame(&W.mm, 32) == 3 && *sublet__mm_frame(&W.mm, 64) == 4);
		mmap_fails_in = 1;
		assert_int_equal(ops->map_plain(&W.mm, 0, 32), 0);
		assert_int_equal(W.va[0], 0);
		mmap_fails_in = 1;
		assert_int_equal(ops->unmap(&W.mm, 0, 32), 0);
		assert_int_equal(madvise(W.va, 32 << 12, SUBLET__MADV_POPULATE_READ), -1);
	}
	mmap_unmaps = false;
	world_close();
}

/* How [va, va + 32 pages) is mapped: "rw-s*3 r-xp*2 ...", from /proc/self/maps. */
static void maps_text(char *text, size_t size)
{
	struct sublet__lines lines;
	struct sublet__map_line m;
	const char *line;
	uint64_t first = (uintptr_t)W.va, end = first + (32u << 12);

	*text = 0;
	assert_int_equal(sublet__lines_open(&lines, AT_FDCWD, "/proc/self/maps"), 0);
	while ((line = sublet__lines_next(&lines)))
		if (sublet__map_line_parse(line, &m) && m.start < end && m.end > first) {
			uint64_t from = m.start > first ? m.start : first, to = m.end < end ? m.end : end;
			size_t n = strlen(text);
			snprintf(text + n, size - n, "%.4s*%d ", strchr(line, ' ') + 1, (int)((to - from) >> 12));
		}
	sublet__lines_close(&lines);
}

/* A guard page, code and read-only data among the pages that turn private for a fork. */
static void test_protections_are_kept(void **state)
{
	static const char shared[] = "---s*1 rw-s*3 r-xs*2 rw-s*10 r--s*8 rw-s*8 ";
	const struct sublet__mm_ops *ops = &sublet__linux_mm_ops;
	struct sublet__segment segs[2] = { { 0, 16, 0, 32 }, { 16, 16, 16, 64 } };
	char text[400];

	(void)state;
	assert_true(world_open(SUBLET_BACKING_MEMFD, SUBLET_TECHNIQUE_AUTO));
	assert_int_equal(ops->map(&W.mm, segs, 2, SUBLET__MAP_SHARED), 0);
	for (int page = 0; page < 32; page++)
		W.va[page << 12] = (uint8_t)(page + 1);
	mprotect(W.va, 1 << 12, PROT_NONE);
	mprotect(W.va + (4 << 12), 2 << 12, PROT_READ | PROT_EXEC);
	mprotect(W.va + (16 << 12), 8 << 12, PROT_READ);
	maps_text(text, sizeof text);
	assert_string_equal(text, shared);
	for (int fails = 1; fails <= 6; fails++) {
		mmap_fails_in = fails;
		assert_int_equal(ops->privatize(&W.mm, segs, 2, SUBLET__MAP_PROTECTED), -ENOMEM);
		assert_int_equal(mmap_fails_in, 0);
		maps_text(text, sizeof text);
		assert_string_equal(text, shared);
	}
	int maps = W.mm.maps;
	W.mm.maps = -1; /* the descriptor that is kept is only the better one */
	assert_int_equal(ops->privatize(&W.mm, segs, 2, SUBLET__MAP_PROTECTED), 0);
	W.mm.maps = maps;
	maps_text(text, sizeof text);
	assert_string_equal(text, "---p*1 rw-p*3 r-xp*2 rw-p*10 r--p*8 rw-p*8 ");
	mprotect(W.va, 32 << 12, PROT_READ | PROT_WRITE);
	for (int page = 0; page < 32; page++) {
		assert_int_equal(W.va[page << 12], page + 1);
		W.va[page << 12] = 0;
		assert_int_equal(*sublet__mm_frame(&W.mm, (uint32_t)(page < 16 ? 32 + page : 48 + page)), page + 1);
	}
	world_close();
}

/* A handler that touches a blocked range, on the thread that has blocked it, runs after wake or unblock. */
static volatile sig_atomic_t handled;

static void toucher(int signal)
{
	(void)signal;
	W.va[1]++;
	handled++;
}

static void signal_while_blocked(void)
{
	const struct sublet__mm_ops *ops = &sublet__linux_mm_ops;
	struct sublet__segment s = segment(0, 1, W.unit_of[0], W.unit_of[0]);
	int expected = 0;

	handled = 0;
	for (int i = 0; i < 3; i++) {
		assert_int_equal(ops->block(&W.mm, s.vpn, s.pages), 0);
		raise(SIGUSR1);
		assert_int_equal(handled, expected);
		if (i == 1) {
			assert_int_equal(ops->remap(&W.mm, &s, 1, SUBLET__MAP_SHARED), 0);
			ops->wake(&W.mm, s.vpn, s.pages);
		} else {
			ops->unblock(&W.mm, s.vpn, s.pages);
		}
		assert_int_equal(handled, ++expected);
		raise(SIGUSR1);
		assert_int_equal(handled, ++expected);
		assert_int_equal(ops->privatize(&W.mm, &s, 1, SUBLET__MAP_SHARED), 0);
		assert_int_equal(ops->restore(&W.mm, &s, 1, SUBLET__MAP_SHARED), 0);
		raise(SIGUSR1);
		assert_int_equal(handled, ++expected);
	}
	assert_int_equal(W.va[1], (uint8_t)(filler(0) >> 8) + expected);
}

static void test_signals(void **state)
{
	(void)state;
	signal(SIGUSR1, toucher);
	each_world(signal_while_blocked);
	signal(SIGUSR1, SIG_DFL);
}

/* In a child nothing is mapped from a descriptor whose number may be the child's own file by now. */
static void test_child_is_refused(void **state)
{
	const struct sublet__mm_ops *ops = &sublet__linux_mm_ops;
	struct sublet__segment s = { 0, 16, 0, 32 };
	int status;

	(void)state;
	assert_true(world_open(SUBLET_BACKING_MEMFD, SUBLET_TECHNIQUE_AUTO));
	assert_int_equal(ops->map(&W.mm, &s, 1, SUBLET__MAP_SHARED), 0);
	assert_int_equal(ops->privatize(&W.mm, &s, 1, SUBLET__MAP_SHARED), 0);
	pid_t pid = fork();
	if (!pid) {
		sublet__linux_mm_fork_child(&W.mm);
		W.va[0] = 1;
		ops->wake(&W.mm, 0, 16);
		ops->unblock(&W.mm, 0, 16);
		_exit(W.mm.fd != -1 || ops->map(&W.mm, &s, 1, SUBLET__MAP_SHARED) != -EPERM ||
		      ops->map_plain(&W.mm, 0, 16) != -EPERM || ops->unmap(&W.mm, 0, 16) != -EPERM ||
		      ops->track(&W.mm, 0, 16) != -EPERM || ops->block(&W.mm, 0, 16) != -EPERM ||
		      ops->remap(&W.mm, &s, 1, SUBLET__MAP_SHARED) != -EPERM ||
		      ops->privatize(&W.mm, &s, 1, SUBLET__MAP_SHARED) != -EPERM ||
		      ops->restore(&W.mm, &s, 1, SUBLET__MAP_SHARED) != -EPERM || W.va[0] != 1);
	}
	waitpid(pid, &status, 0);
	assert_int_equal(status, 0);
	world_close();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_map_and_unmap), cmocka_unit_test(test_moves),
		cmocka_unit_test(test_locked_moves),  cmocka_unit_test(test_planted_bug_is_found),
		cmocka_unit_test(test_fork),	      cmocka_unit_test(test_old_kernel),
		cmocka_unit_test(test_mmap_that_unmaps), cmocka_unit_test(test_protections_are_kept),
		cmocka_unit_test(test_signals),	      cmocka_unit_test(test_child_is_refused),
	};

	setvbuf(stdout, NULL, _IOLBF, 0);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
