/* SPDX-License-Identifier: MIT */
/* The world of mm_world.h, and what stands between the operations and the kernel. */
#include "mm_world.h"

#include "linux/raw.h"

#include <sys/ioctl.h>
#include <sys/mman.h>

static void *test_mmap(void *addr, size_t bytes, int prot, int flags, int fd, uint64_t offset);
static int test_ioctl(int fd, unsigned long request, void *arg);
#define sublet__raw_mmap test_mmap
#define ioctl            test_ioctl
#include "linux/map.c"
#include "linux/mm.c"
#include "linux/private.c"
#undef sublet__raw_mmap
#undef ioctl

/* ---- a chosen mmap fails ---- */

__thread int mmap_fails_in;
bool mmap_unmaps;

static void *test_mmap(void *addr, size_t bytes, int prot, int flags, int fd, uint64_t offset)
{
	if (mmap_fails_in && flags & MAP_FIXED && --mmap_fails_in == 0) {
		if (mmap_unmaps)
			munmap(addr, bytes);
		else
			(void)sublet__spare_use(); /* or the call would be made again, and work */
		errno = ENOMEM;
		return MAP_FAILED;
	}
	return sublet__raw_mmap(addr, bytes, prot, flags, fd, offset);
}

bool scan_fails;

static int test_ioctl(int fd, unsigned long request, void *arg)
{
	if (scan_fails && request == SUBLET__PAGEMAP_SCAN) {
		errno = ENOTTY;
		return -1;
	}
	return ioctl(fd, request, arg);
}

/* ---- the world of one test ---- */

struct world W;

uint64_t next_random(uint64_t *s)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	*s ^= *s << 17;
	return *s;
}

uint64_t filler(size_t word)
{
	return (word + 1) * SEED_SALT;
}

bool world_open(enum sublet_backing kind, enum sublet_technique technique)
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

struct sublet__segment segment(uint32_t place, uint32_t units, uint32_t src_unit, uint32_t dst_unit)
{
	return (struct sublet__segment){ place * W.unit_pages, units * W.unit_pages, src_unit * W.unit_pages,
					 dst_unit * W.unit_pages };
}

void world_fill(void)
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

void world_close(void)
{
	sublet__linux_mm_close(&W.mm);
	sublet__backing_close(&W.backing);
}

uint64_t world_wrong_words(void)
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

const enum sublet_backing kinds[KINDS] = { SUBLET_BACKING_MEMFD, SUBLET_BACKING_THP, SUBLET_BACKING_HUGETLB };
static const enum sublet_technique techniques[] = { SUBLET_TECHNIQUE_PRECOPY, SUBLET_TECHNIQUE_ZAP,
						    SUBLET_TECHNIQUE_WRITEPROTECT };

void each_world(void (*test)(void))
{
	for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
		for (size_t t = 0; t < sizeof techniques / sizeof *techniques; t++)
			if (world_open(kinds[k], techniques[t])) {
				world_fill();
				test();
				world_close();
			}
}
