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
 * A run with protections that the program changed (guard pages, code of a JIT) becomes private piece by
 * piece, each with the protection it has, and without a look at the bytes.
 *
 * hugetlb has no private mapping worth the name: a write needs another huge page, which nobody
 * promised, and without one the writer is killed by SIGBUS. So there a fork gets ordinary memory
 * with a copy of the bytes, made while writers wait, and the way back copies all of it. It costs as
 * much memory as is lent, and is refused with -ENOMEM where that is not to be had.
 */
#include "linux/copy.h"
#include "linux/helper.h"
#include "linux/mm.h"
#include "linux/platform.h"
#include "linux/proc.h"
#include "linux/raw.h"
#include "linux/spare.h"
#include "linux/uapi.h"
#include "linux/uffd.h"

#include <stdlib.h>
#include <sys/mman.h>

#define SPARE_BYTES (64 * SUBLET_MIB)
#define BASE_BYTES  ((size_t)4096)

int sublet__mm_hold(const struct sublet__linux_mm *mm, uintptr_t addr, size_t bytes)
{
	int err = sublet__uffd_register(mm->uffd_hold, addr, bytes, UFFDIO_REGISTER_MODE_WP);

	if (err)
		return err;
	err = sublet__uffd_protect(mm->uffd_hold, addr, bytes);
	if (err)
		sublet__uffd_unregister(mm->uffd_hold, addr, bytes);
	return err;
}

int sublet__mm_map_copy(const struct sublet__linux_mm *mm, const struct sublet__segment *seg, uint32_t pfn,
			int prot)
{
	uintptr_t addr = sublet__mm_addr(mm, seg->vpn);
	size_t bytes = sublet__mm_bytes(mm, seg->pages);
	int flags = MREMAP_MAYMOVE | MREMAP_FIXED;
	bool gone = false;

	/* Ordinary memory comes from the OOM killer's side of the house: look before. */
	if (sublet__memory_available() < bytes + SPARE_BYTES)
		return -ENOMEM;
	char *copy =
		sublet__raw_mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (copy == MAP_FAILED)
		return -ENOMEM;
	if (sublet__raw_madvise(copy, bytes, SUBLET__MADV_POPULATE_WRITE))
		goto no_memory;
	sublet__copy(copy, sublet__mm_frame(mm, pfn), bytes);
	if (prot != (PROT_READ | PROT_WRITE) && sublet__raw_mprotect(copy, bytes, prot))
		goto no_memory;
	for (int tries = 0; sublet__raw_mremap(copy, bytes, flags, (void *)addr) == MAP_FAILED;) {
		int err = -errno;
		gone = gone || !sublet__mm_is_mapped(addr, bytes);
		if (!gone) {
			sublet__raw_munmap(copy, bytes);
			return err;
		}
		if (!sublet__mm_must_wait(&tries))
			sublet__mm_give_up("the kernel took memory away and refuses to map it again; "
					   "stopping before data is lost",
					   err);
	}
	return 0;

no_memory:
	sublet__raw_munmap(copy, bytes);
	return -ENOMEM;
}

/* ---- privatize ---- */

/* A part of a segment that is mapped in one way. */
struct piece {
	struct sublet__segment seg;
	int prot;
};

static int privatize_once(const struct sublet__linux_mm *mm, const struct sublet__segment *seg,
			  uint32_t flags, int prot)
{
	uintptr_t addr = sublet__mm_addr(mm, seg->vpn);
	size_t bytes = sublet__mm_bytes(mm, seg->pages);
	int err;

	if (!mm->is_hugetlb)
		return sublet__mm_map_frames(mm, seg, seg->dst_pfn, flags | SUBLET__MAP_PRIVATE, prot);
	sublet__signals_block();
	err = sublet__mm_hold(mm, addr, bytes);
	if (!err) {
		err = sublet__mm_map_frames(mm, seg, seg->dst_pfn, flags | SUBLET__MAP_PRIVATE, prot);
		if (err)
			sublet__uffd_unregister(mm->uffd_hold, addr, bytes);
		sublet__uffd_wake(mm->uffd_hold, addr, bytes);
	}
	sublet__signals_unblock();
	return err;
}

/* A program that has no mapping left can fork in ordinary memory, so it can here. */
static int privatize_one(const struct sublet__linux_mm *mm, const struct sublet__segment *seg, uint32_t flags,
			 int prot)
{
	int err = privatize_once(mm, seg, flags, prot);

	return err == -ENOMEM && sublet__spare_use() ? privatize_once(mm, seg, flags, prot) : err;
}

static void must_privatize(const struct sublet__linux_mm *mm, const struct sublet__segment *seg,
			   uint32_t flags)
{
	int err, tries = 0;

	do {
		err = privatize_one(mm, seg, flags, PROT_READ | PROT_WRITE);
		if (!err)
			return;
	} while (sublet__mm_must_wait(&tries));
	sublet__complain("cannot keep memory apart from a child; stopping before data is lost", err);
	sublet__program_abort();
}

/* The part of a segment that lies in one kernel mapping. False: none. */
static bool piece_of(const struct sublet__linux_mm *mm, const struct sublet__segment *seg,
		     const struct sublet__map_line *map, struct piece *piece)
{
	uint64_t start = sublet__mm_addr(mm, seg->vpn), end = start + sublet__mm_bytes(mm, seg->pages);
	uint64_t first = map->start > start ? map->start : start, last = map->end < end ? map->end : end;

	if (first >= last)
		return false;
	uint32_t skip = (uint32_t)((first - start) >> mm->shift);
	piece->seg = (struct sublet__segment){ seg->vpn + skip, (uint32_t)((last - first) >> mm->shift),
					       seg->src_pfn, seg->dst_pfn + skip };
	piece->prot = map->prot;
	return true;
}

/* In memory of its own: the program may fork on a small stack. */
struct pieces {
	uint32_t count;
	struct piece piece[SUBLET__RUN_PAGES_MAX];
	struct sublet__lines lines;
};

/*
 * Cut segments into pieces of one protection each, as /proc/self/maps has them; -errno where it does not tell.
 * What is not shared is left out: the program mapped something of its own there.
 */
static int pieces_read(const struct sublet__linux_mm *mm, const struct sublet__segment *segs, uint32_t count,
		       struct pieces *p)
{
	uintptr_t end =
		sublet__mm_addr(mm, segs[0].vpn) + sublet__mm_bytes(mm, sublet__mm_pages(segs, count));
	int fd = mm->maps < 0 ? sublet__raw_open(AT_FDCWD, "/proc/self/maps", O_RDONLY) : mm->maps;
	struct sublet__map_line map = { .start = 0 };
	const char *line;
	uint32_t s = 0;

	sublet__lines_start(&p->lines, fd);
	while (s < count && map.start < end && (line = sublet__lines_next(&p->lines))) {
		if (!sublet__map_line_parse(line, &map))
			break;
		/* Segments are adjacent, so both lists are walked once. */
		for (; s < count; s++) {
			if (p->count < SUBLET__RUN_PAGES_MAX && !map.is_private &&
			    piece_of(mm, &segs[s], &map, &p->piece[p->count]))
				p->count++;
			if (map.end < sublet__mm_addr(mm, segs[s].vpn) + sublet__mm_bytes(mm, segs[s].pages))
				break;
		}
	}
	if (mm->maps < 0 && fd >= 0)
		sublet__raw_close(fd);
	return s == count || map.start >= end ? 0 : -ENOMEM;
}

/* Back from half a privatize. Memory that could be written goes the long way, which needs no new mapping. */
static void must_share(struct sublet__linux_mm *mm, const struct piece *piece, uint32_t flags)
{
	uintptr_t addr = sublet__mm_addr(mm, piece->seg.vpn);
	size_t bytes = sublet__mm_bytes(mm, piece->seg.pages);

	if (!(piece->prot & PROT_WRITE)) {
		sublet__mm_must_map(mm, &piece->seg, piece->seg.dst_pfn,
				    flags & ~(uint32_t)SUBLET__MAP_PRIVATE, piece->prot);
		return;
	}
	int err, tries = 0;
	do
		err = sublet__mm_restore(mm, &piece->seg, 1, flags);
	while (err && sublet__mm_must_wait(&tries));
	if (!err && piece->prot != (PROT_READ | PROT_WRITE) &&
	    sublet__raw_mprotect((void *)addr, bytes, piece->prot))
		err = -errno;
	if (err) {
		sublet__complain("cannot undo half a fork; stopping before data is lost", err);
		sublet__program_abort();
	}
}

static int privatize_protected(struct sublet__linux_mm *mm, const struct sublet__segment *segs,
			       uint32_t count, uint32_t flags)
{
	int flags_own = MAP_PRIVATE | MAP_ANONYMOUS;
	struct pieces *p = sublet__raw_mmap(NULL, sizeof *p, PROT_READ | PROT_WRITE, flags_own, -1, 0);
	uint32_t done = 0;

	if (p == MAP_FAILED)
		return -ENOMEM;
	int err = pieces_read(mm, segs, count, p);
	while (!err && done < p->count) {
		err = privatize_one(mm, &p->piece[done].seg, flags, p->piece[done].prot);
		done += !err;
	}
	while (err && done-- > 0)
		must_share(mm, &p->piece[done], flags);
	sublet__raw_munmap(p, sizeof *p);
	return err;
}

static int privatize_plain(struct sublet__linux_mm *mm, const struct sublet__segment *segs, uint32_t count,
			   uint32_t flags)
{
	uint32_t done = 0;
	int err = 0;

	while (!err && done < count) {
		err = privatize_one(mm, &segs[done], flags, PROT_READ | PROT_WRITE);
		done += !err;
	}
	while (err && done-- > 0)
		must_share(mm, &(struct piece){ segs[done], PROT_READ | PROT_WRITE }, flags);
	return err;
}

int sublet__mm_privatize(void *ctx, const struct sublet__segment *segs, uint32_t count, uint32_t flags)
{
	struct sublet__linux_mm *mm = ctx;

	if (mm->in_child)
		return -EPERM;
	int err = flags & SUBLET__MAP_PROTECTED ? privatize_protected(mm, segs, count, flags)
						: privatize_plain(mm, segs, count, flags);
	if (err)
		return -ENOMEM;
	sublet__mm_relock(sublet__mm_addr(mm, segs[0].vpn),
			  sublet__mm_bytes(mm, sublet__mm_pages(segs, count)), flags);
	return 0;
}

/* ---- restore ---- */

/* Copy [first, end) of a segment's bytes from its address to its frames. */
static void copy_home(const struct sublet__linux_mm *mm, const struct sublet__segment *seg, size_t first,
		      size_t end)
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

	if (sublet__raw_pread(mm->pagemap, entries, bytes, addr / BASE_BYTES * sizeof *entries) !=
	    (long)bytes)
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
		(void)sublet__raw_madvise((void *)sublet__mm_addr(mm, seg->vpn), bytes,
					  SUBLET__MADV_POPULATE_READ);
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

	if (mm->in_child)
		return -EPERM;
	flags &= ~(uint32_t)SUBLET__MAP_PRIVATE;
	sublet__signals_block();
	/* Holes of ordinary memory cannot be protected before 6.4, so there are none. */
	(void)sublet__raw_madvise((void *)addr, bytes, SUBLET__MADV_POPULATE_READ);
	err = sublet__mm_hold(mm, addr, bytes);
	if (err == -ENOMEM && sublet__spare_use())
		err = sublet__mm_hold(mm, addr, bytes);
	if (err) {
		sublet__signals_unblock();
		return -ENOMEM;
	}
	for (uint32_t i = 0; i < count; i++)
		copy_written(mm, &segs[i]);
	for (done = 0; done < count && !err; done += !err)
		err = sublet__mm_map_frames(mm, &segs[done], segs[done].dst_pfn, flags,
					    PROT_READ | PROT_WRITE);
	if (err) {
		/* The frames hold everything by now, so a fresh private mapping loses nothing. */
		for (uint32_t i = 0; i < done; i++)
			must_privatize(mm, &segs[i], flags);
		sublet__uffd_unregister(mm->uffd_hold, addr, bytes);
	}
	sublet__uffd_wake(mm->uffd_hold, addr, bytes);
	sublet__signals_unblock();
	sublet__mm_relock(addr, bytes, flags);
	if (!err)
		sublet__spare_renew();
	return err ? -ENOMEM : 0;
}
