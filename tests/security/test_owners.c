/* SPDX-License-Identifier: MIT */
/*
 * Frames change owner only zeroed (G9), on every backing: from a program to a claim, from a claim to a program, from one
 * address space to another, and from a program to itself after unmap, decommit and discard: S13 to S16 of docs/security.md. And
 * what is promised of the descriptors that they come by: S11 and S19.
 *
 * An owner writes SOIL all over what it has. Whoever comes next must not find a byte of it. The arena is small and all of
 * it is used in turn, so that the frames are the same ones: each test sees to it that nothing else is free.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <sublet/arena.h>
#include <sublet/claim.h>
#include <sublet/map.h>

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define AREA_BYTES   (16 * SUBLET_MIB)
#define NORMAL_BYTES (16 * SUBLET_MIB)
#define HUGE_PAGES   24
#define HUGE_PATH    "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
#define SOIL         0xa5
#define ROUNDS       4

static long huge_before = -1;
static bool open_before[4096];

static long huge_pages(long wanted)
{
	FILE *file = fopen(HUGE_PATH, wanted < 0 ? "re" : "we");
	long count = -1;

	if (!file)
		return -1;
	if (wanted >= 0)
		fprintf(file, "%ld", wanted);
	else if (fscanf(file, "%ld", &count) != 1)
		count = -1;
	fclose(file);
	return count;
}

static int reserve(void **state)
{
	(void)state;
	for (int fd = 0; fd < 4096; fd++)
		open_before[fd] = fcntl(fd, F_GETFD) >= 0;
	huge_before = huge_pages(-1);
	if (huge_before >= 0)
		huge_pages(huge_before + HUGE_PAGES);
	return 0;
}

static int restore(void **state)
{
	(void)state;
	if (huge_before >= 0)
		huge_pages(huge_before);
	return 0;
}

static struct sublet_arena *arena_of(enum sublet_backing backing)
{
	struct sublet_arena_options options = { SUBLET_OPTIONS(sublet_arena_options),
						.area_bytes = AREA_BYTES, .normal_bytes = NORMAL_BYTES,
						.backing = backing, .fd = -1 };
	struct sublet_arena *arena = NULL;
	int err = sublet_arena_create(&options, &arena);

	if (err && backing != SUBLET_BACKING_MEMFD) {
		print_message("backing %d is not to be had: %d\n", (int)backing, err);
		return NULL;
	}
	assert_int_equal(err, 0);
	return arena;
}

static void check_zero(const void *addr, uint64_t bytes)
{
	const unsigned char *p = addr;

	for (uint64_t i = 0; i < bytes; i++)
		if (p[i])
			fail_msg("byte %llu of %llu is %02x", (unsigned long long)i,
				 (unsigned long long)bytes, p[i]);
}

static void *map(struct sublet_mm *mm, uint64_t bytes, uint32_t flags)
{
	void *addr = NULL;

	assert_int_equal(sublet_map(mm, bytes, flags, &addr), 0);
	return addr;
}

static void unmap(struct sublet_mm *mm, void *addr, uint64_t bytes)
{
	assert_int_equal(sublet_unmap(mm, addr, bytes), 0);
}

static void take(struct sublet_arena *arena, uint64_t bytes, uint32_t flags, struct sublet_claim *claim)
{
	struct sublet_claim_options options = { SUBLET_OPTIONS(sublet_claim_options), .flags = flags };

	assert_int_equal(sublet_claim(arena, bytes, &options, claim), 0);
}

static void give(struct sublet_arena *arena, struct sublet_claim *claim)
{
	assert_int_equal(sublet_release(arena, claim), 0);
}

/* S13: what a program wrote and gave back, a claim of all of the area does not show; nor what moved out of its way. */
static void program_to_claim(struct sublet_arena *arena)
{
	struct sublet_mm *mm = sublet_arena_mm(arena);
	struct sublet_claim claim;

	for (int i = 0; i < ROUNDS; i++) {
		void *mine = map(mm, AREA_BYTES, SUBLET_MOVABLE);

		memset(mine, SOIL, AREA_BYTES);
		if (i % 2)
			unmap(mm, mine, AREA_BYTES);
		take(arena, AREA_BYTES, i % 3 ? SUBLET_CLAIM_DEAREST : 0, &claim);
		check_zero(claim.addr, AREA_BYTES);
		memset(claim.addr, SOIL ^ 0xff, AREA_BYTES);
		give(arena, &claim);
		if (i % 2 == 0)
			unmap(mm, mine, AREA_BYTES);
	}
}

/* S13, S14: what a device left in a window, no program sees, though the claim waived its own zeroing. */
static void claim_to_program(struct sublet_arena *arena)
{
	struct sublet_mm *mm = sublet_arena_mm(arena);
	struct sublet_claim claim;

	for (int i = 0; i < ROUNDS; i++) {
		take(arena, AREA_BYTES, i % 2 ? SUBLET_CLAIM_NOZERO : 0, &claim);
		memset(claim.addr, SOIL, AREA_BYTES);
		give(arena, &claim);
		void *mine = map(mm, AREA_BYTES, SUBLET_MOVABLE);
		check_zero(mine, AREA_BYTES);
		unmap(mm, mine, AREA_BYTES);
	}
}

/* S13: of one address space, what another wrote before. */
static void program_to_other(struct sublet_arena *arena)
{
	struct sublet_mm *first = sublet_arena_mm(arena), *second = NULL;

	assert_int_equal(sublet_arena_mm_add(arena, &second), 0);
	for (int i = 0; i < ROUNDS; i++) {
		struct sublet_mm *from = i % 2 ? second : first, *to = i % 2 ? first : second;
		void *theirs = map(from, AREA_BYTES, SUBLET_MOVABLE);

		memset(theirs, SOIL, AREA_BYTES);
		unmap(from, theirs, AREA_BYTES);
		void *mine = map(to, AREA_BYTES, SUBLET_MOVABLE);
		check_zero(mine, AREA_BYTES);
		memset(mine, SOIL, AREA_BYTES);
		unmap(to, mine, AREA_BYTES);
	}
}

/* S15: given back and taken again, by pages and at random, it reads as zeros; what was kept is kept. */
static void decommitted(struct sublet_arena *arena)
{
	struct sublet_mm *mm = sublet_arena_mm(arena);
	uint64_t frame = 4096, random = 12345;
	struct sublet_arena_info info = { SUBLET_OPTIONS(sublet_arena_info) };
	unsigned char *mine = map(mm, AREA_BYTES / 2, SUBLET_MOVABLE);

	assert_int_equal(sublet_arena_info(arena, &info), 0);
	if (info.frame_bytes > frame)
		frame = info.frame_bytes;
	for (int i = 0; i < 60; i++) {
		random = random * 6364136223846793005u + 1442695040888963407u;
		uint64_t count = AREA_BYTES / 2 / frame, at = (random >> 33) % count;
		uint64_t bytes = ((random >> 20) % (count - at) + 1) * frame;

		if (bytes > 64 * frame)
			bytes = 64 * frame;
		memset(mine, SOIL, AREA_BYTES / 2);
		assert_int_equal(sublet_decommit(mm, mine + at * frame, bytes), 0);
		assert_int_equal(sublet_commit(mm, mine + at * frame, bytes, 0), 0);
		check_zero(mine + at * frame, bytes);
		if (at)
			assert_int_equal(mine[at * frame - 1], SOIL);
	}
	unmap(mm, mine, AREA_BYTES / 2);
}

/* How much of it is zero; the rest is as its owner left it, and nothing is anybody else's. */
static uint64_t zero_bytes(const unsigned char *mine)
{
	uint64_t zero = 0;

	for (uint64_t at = 0; at < AREA_BYTES; at++) {
		if (mine[at] && mine[at] != SOIL)
			fail_msg("byte %llu of what was discarded is %02x", (unsigned long long)at, mine[at]);
		zero += !mine[at];
	}
	return zero;
}

/*
 * S15: what was discarded reads as zeros, and what the claim got for it, too. Memory that lies outside of the area,
 * because some of that was in use or just being zeroed when it was mapped, is in no claim's way and stays as it is.
 */
static void discarded(struct sublet_arena *arena)
{
	struct sublet_mm *mm = sublet_arena_mm(arena);
	struct sublet_claim claim, other;

	for (int i = 0; i < ROUNDS; i++) {
		if (i % 2)
			take(arena, 2 * SUBLET_MIB, 0, &other);
		unsigned char *mine = map(mm, AREA_BYTES, SUBLET_DISCARDABLE);
		if (i % 2)
			give(arena, &other);

		memset(mine, SOIL, AREA_BYTES);
		assert_int_equal(sublet_unlock(mm, mine, AREA_BYTES), 0);
		take(arena, AREA_BYTES, 0, &claim);
		uint64_t dropped = claim.dropped_bytes;
		assert_true(dropped >= AREA_BYTES / 2);
		assert_true(i % 2 == 0 || dropped <= AREA_BYTES - 2 * SUBLET_MIB);
		check_zero(claim.addr, AREA_BYTES);
		memset(claim.addr, SOIL ^ 0xff, AREA_BYTES);
		give(arena, &claim);
		assert_int_equal(sublet_lock(mm, mine, AREA_BYTES), SUBLET_DISCARDED);
		assert_int_equal(zero_bytes(mine), dropped);
		unmap(mm, mine, AREA_BYTES);
	}
}

/* S16: freed frames are zeroed in the background: soon the descriptor shows nothing of them either. */
static void freed(struct sublet_arena *arena)
{
	struct sublet_mm *mm = sublet_arena_mm(arena);
	struct sublet_arena_info info = { SUBLET_OPTIONS(sublet_arena_info) };
	uint64_t dirty = 1;

	assert_int_equal(sublet_arena_info(arena, &info), 0);
	unsigned char *all = mmap(NULL, AREA_BYTES + NORMAL_BYTES, PROT_READ, MAP_SHARED, info.fd, 0);
	assert_ptr_not_equal(all, MAP_FAILED);
	void *mine = map(mm, AREA_BYTES, SUBLET_MOVABLE);
	memset(mine, SOIL, AREA_BYTES);
	unmap(mm, mine, AREA_BYTES);
	for (int i = 0; i < 500 && dirty; i++) {
		nanosleep(&(struct timespec){ .tv_nsec = 10000000 }, NULL);
		dirty = 0;
		for (uint64_t at = 0; at < AREA_BYTES + NORMAL_BYTES; at++)
			dirty += all[at] != 0;
	}
	munmap(all, AREA_BYTES + NORMAL_BYTES);
	assert_int_equal(dirty, 0);
}

/* S19: who was given the descriptor can neither shrink the file under the program, nor seal or execute it. */
static void sealed(struct sublet_arena *arena)
{
	struct sublet_arena_info info = { SUBLET_OPTIONS(sublet_arena_info) };
	struct stat st;

	assert_int_equal(sublet_arena_info(arena, &info), 0);
	if (info.backing == SUBLET_BACKING_THP)
		return; /* the kernel seals files of memfd_create only */
	assert_int_equal(fcntl(info.fd, F_GET_SEALS) & (F_SEAL_SEAL | F_SEAL_SHRINK),
			 F_SEAL_SEAL | F_SEAL_SHRINK);
	assert_int_equal(ftruncate(info.fd, 0), -1);
	assert_int_equal(errno, EPERM);
	assert_int_equal(fcntl(info.fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE), -1);
	assert_int_equal(fstat(info.fd, &st), 0);
	if (info.backing == SUBLET_BACKING_MEMFD &&
	    !(st.st_mode & 0111)) /* since Linux 6.3; of hugetlb never */
		assert_int_equal(fchmod(info.fd, 0700), -1);
}

/* S11: where an arena opens what has to get a high number first, too. */
static void closed_on_exec(struct sublet_arena *arena)
{
	struct sublet_mm *mm = NULL;
	int ours = 0;

	assert_int_equal(sublet_arena_mm_add(arena, &mm), 0);
	for (int fd = 3; fd < 4096; fd++) {
		int flags = fcntl(fd, F_GETFD);

		if (flags < 0 || open_before[fd])
			continue;
		assert_true(flags & FD_CLOEXEC);
		ours++;
	}
	assert_true(ours >= 5);
}

static void on_each(void (*check)(struct sublet_arena *arena))
{
	static const enum sublet_backing kinds[] = { SUBLET_BACKING_MEMFD, SUBLET_BACKING_THP,
						     SUBLET_BACKING_HUGETLB };

	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		struct sublet_arena *arena = arena_of(kinds[i]);

		if (!arena)
			continue;
		check(arena);
		assert_int_equal(sublet_arena_destroy(arena), 0);
	}
}

#define ON_EACH(name)                         \
	static void test_##name(void **state) \
	{                                     \
		(void)state;                  \
		on_each(name);                \
	}

ON_EACH(program_to_claim)
ON_EACH(claim_to_program)
ON_EACH(program_to_other)
ON_EACH(decommitted)
ON_EACH(discarded)
ON_EACH(freed)
ON_EACH(sealed)
ON_EACH(closed_on_exec)

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_program_to_claim), cmocka_unit_test(test_claim_to_program),
		cmocka_unit_test(test_program_to_other), cmocka_unit_test(test_decommitted),
		cmocka_unit_test(test_discarded),        cmocka_unit_test(test_freed),
		cmocka_unit_test(test_sealed),           cmocka_unit_test(test_closed_on_exec),
	};

	return cmocka_run_group_tests(tests, reserve, restore);
}
