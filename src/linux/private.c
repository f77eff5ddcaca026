/* SPDX-License-Identifier: MIT */
/*
 * linux/private.c: out of the shared frames before a fork(), and back again afterwards.
 *
 * privatize replaces a shared mapping by a private one of the same frames. That loses no write: the
 * kernel swaps the mapping as a whole, so a store lands in the frame before, or in a copy after it.
 *
 * restore must keep what was copied on write, so it blocks by write-protection (a zap would throw
 * the copies away), finds the copied pages, copies just these into their frames and maps the frames
 * shared again. A page is taken for copied unless it is known not to be: PAGEMAP_SCAN (or pagemap
 * bit 61) says "file" for a frame. A hole becomes a marker under write-protection and would look like
 * a swapped copy; reading the range in once, after it is protected, turns holes into frames, so that
 * the doubt costs nothing. Whatever is still in doubt is copied: through its own address, which
 * gives the right bytes in either case.
 *
 * hugetlb has no private mapping worth the name: a write needs another huge page, which nobody
 * promised, and without one the writer is killed by SIGBUS. So there a fork gets ordinary memory
 * with a copy of the bytes, made while writers wait, and the way back copies all of it. It costs as
 * much memory as is lent, and is refused with -ENOMEM where that is not to be had.
 */
#include "linux/copy.h"
#include "linux/mm.h"
#include "linux/proc.h"
#include "linux/uapi.h"
#include "linux/uffd.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define SPARE_BYTES (64 * SUBLET_MIB)
#define BASE_BYTES ((size_t)4096)

/* Keep writers out until the range is remapped or unregistered. Readers go on. */
static int hold(const struct sublet__linux_mm *mm, uintptr_t addr, size_t bytes)
{
	int err = sublet__uffd_register(mm->uffd_hold, addr, bytes, UFFDIO_REGISTER_MODE_WP);

	if (err)
		return err;
	err = sublet__uffd_protect(mm->uffd_hold, addr, bytes);
	if (err)
		sublet__uffd_unregister(mm->uffd_hold, addr, bytes);
	return err;
}

int sublet__mm_map_copy(const struct sublet__linux_mm *mm, const struct sublet__segment *seg, uint32_t pfn)
{
	uintptr_t addr = sublet__mm_addr(mm, seg->vpn);
	size_t bytes = sublet__mm_bytes(mm, seg->pages);

	/* Ordinary memory comes from the OOM killer's side of the house: look before. */
	if (sublet__memory_available() < bytes + SPARE_BYTES)
		return -ENOMEM;
	char *copy = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (copy == MAP_FAILED)
		return -ENOMEM;
	if (madvise(copy, bytes, SUBLET__MADV_POPULATE_WRITE)) {
		munmap(copy, bytes);
		return -ENOMEM;
	}
	sublet__copy(copy, sublet__mm_frame(mm, pfn), bytes);
	if (mremap(copy, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)addr) == MAP_FAILED) {
		int err = -errno;
		munmap(copy, bytes);
		return err;
	}
	return 0;
}

/* ---- privatize ---- */

static int privatize_one(const struct sublet__linux_mm *mm, const struct sublet__segment *seg, uint32_t flags)
{
	uintptr_t addr = sublet__mm_addr(mm, seg->vpn);
	size_t bytes = sublet__mm_bytes(mm, seg->pages);
	int err = 0;

	if (mm->is_hugetlb)
		err = hold(mm, addr, bytes);
	if (!err)
		err = sublet__mm_map_frames(mm, seg, seg->dst_pfn, flags | SUBLET__MAP_PRIVATE);
	if (!mm->is_hugetlb)
		return err;
	if (err)
		sublet__uffd_unregister(mm->uffd_hold, addr, bytes);
	sublet__uffd_wake(mm->uffd_hold, addr, bytes);
	return err;
}

static void must_privatize(const struct sublet__linux_mm *mm, const struct sublet__segment *seg, uint32_t flags)
{
	struct timespec pause = { 0, 1000000 };
	int err = privatize_one(mm, seg, flags);

	for (int tries = 0; err && tries < SUBLET__MUST_TRIES; tries++) {
		nanosleep(&pause, NULL);
		err = privatize_one(mm, seg, flags);
	}
	if (err) {
		sublet__complain("cannot keep memory apart from a child; stopping before data is lost", err);
		abort();
	}
}

int sublet__mm_privatize(void *ctx, const struct sublet__segment *segs, uint32_t count, uint32_t flags)
{
	const struct sublet__linux_mm *mm = ctx;

	for (uint32_t i = 0; i < count; i++) {
		int err = privatize_one(mm, &segs[i], flags);
		if (!err)
			continue;
		/* Those done may have been written since: they go back the long way, which needs no new mapping. */
		for (uint32_t k = 0; k < i; k++)
			if (sublet__mm_restore(ctx, &segs[k], 1, flags)) {
				sublet__complain("cannot undo half a fork; stopping before data is lost", err);
				abort();
			}
		return -ENOMEM;
	}
	sublet__mm_relock(sublet__mm_addr(mm, segs[0].vpn), sublet__mm_bytes(mm, sublet__mm_pages(segs, count)), flags);
	return 0;
}

/* ---- restore ---- */

/* Copy [first, end) of a segment's bytes from its address to its frames. */
static void copy_home(const struct sublet__linux_mm *mm, const struct sublet__segment *seg, size_t first, size_t end)
{
	const char *from = (const char *)sublet__mm_addr(mm, seg->vpn);

	if (end > first)
		sublet__copy(sublet__mm_frame(mm, seg->dst_pfn) + first, from + first, end - first);
}

/* Copy home what is not known to be a frame, as PAGEMAP_SCAN tells. -errno: nothing is known. */
static int copy_by_scan(const struct sublet__linux_mm *mm, const struct sublet__segment *seg)
{
	struct sublet__page_region regions[SUBLET__RUN_PAGES_MAX / 2 + 1];
	uintptr_t addr = sublet__mm_addr(mm, seg->vpn);
	struct sublet__pm_scan scan = {
		.size = sizeof scan,
		.start = addr,
		.end = addr + sublet__mm_bytes(mm, seg->pages),
		.vec = (uintptr_t)regions,
		.vec_len = sizeof regions / sizeof *regions,
		.category_inverted = SUBLET__PAGE_IS_FILE,
		.category_mask = SUBLET__PAGE_IS_FILE,
		.category_anyof_mask = SUBLET__PAGE_IS_PRESENT | SUBLET__PAGE_IS_SWAPPED,
		.return_mask = SUBLET__PAGE_IS_FILE,
	};
	int n = ioctl(mm->pagemap, SUBLET__PAGEMAP_SCAN, &scan);

	if (n < 0)
		return -errno;
	for (int i = 0; i < n; i++)
		copy_home(mm, seg, regions[i].start - addr, regions[i].end - addr);
	copy_home(mm, seg, scan.walk_end - addr, sublet__mm_bytes(mm, seg->pages));
	return 0;
}

/* The same from /proc/self/pagemap, for kernels before 6.7. */
static int copy_by_pagemap(const struct sublet__linux_mm *mm, const struct sublet__segment *seg)
{
	uint64_t entries[SUBLET__RUN_PAGES_MAX];
	uintptr_t addr = sublet__mm_addr(mm, seg->vpn);
	size_t bytes = seg->pages * sizeof *entries;

	if (pread(mm->pagemap, entries, bytes, (off_t)(addr / BASE_BYTES * sizeof *entries)) != (ssize_t)bytes)
		return -EIO;
	for (uint32_t i = 0; i < seg->pages; i++) {
		bool here = entries[i] & (SUBLET__PM_PRESENT | SUBLET__PM_SWAP);
		if (here && !(entries[i] & SUBLET__PM_FILE))
			copy_home(mm, seg, i * BASE_BYTES, (i + 1) * BASE_BYTES);
	}
	return 0;
}

static void copy_written(const struct sublet__linux_mm *mm, const struct sublet__segment *seg)
{
	if (!mm->is_hugetlb) {
		size_t bytes = sublet__mm_bytes(mm, seg->pages);
		/* See the essay: only to have fewer doubts, so it may fail. */
		(void)madvise((void *)sublet__mm_addr(mm, seg->vpn), bytes, SUBLET__MADV_POPULATE_READ);
		if (!copy_by_scan(mm, seg) || !copy_by_pagemap(mm, seg))
			return;
	}
	copy_home(mm, seg, 0, sublet__mm_bytes(mm, seg->pages));
}

int sublet__mm_restore(void *ctx, const struct sublet__segment *segs, uint32_t count, uint32_t flags)
{
	const struct sublet__linux_mm *mm = ctx;
	uintptr_t addr = sublet__mm_addr(mm, segs[0].vpn);
	size_t bytes = sublet__mm_bytes(mm, sublet__mm_pages(segs, count));
	uint32_t done;
	int err;

	flags &= ~(uint32_t)SUBLET__MAP_PRIVATE;
	/* Holes of ordinary memory cannot be protected before 6.4, so there are none. */
	(void)madvise((void *)addr, bytes, SUBLET__MADV_POPULATE_READ);
	err = hold(mm, addr, bytes);
	if (err)
		return -ENOMEM;
	for (uint32_t i = 0; i < count; i++)
		copy_written(mm, &segs[i]);
	for (done = 0; done < count && !err; done += !err)
		err = sublet__mm_map_frames(mm, &segs[done], segs[done].dst_pfn, flags);
	if (err) {
		/* The frames hold everything by now, so a fresh private mapping loses nothing. */
		for (uint32_t i = 0; i < done; i++)
			must_privatize(mm, &segs[i], flags);
		sublet__uffd_unregister(mm->uffd_hold, addr, bytes);
	}
	sublet__uffd_wake(mm->uffd_hold, addr, bytes);
	sublet__mm_relock(addr, bytes, flags);
	return err ? -ENOMEM : 0;
}
