/* SPDX-License-Identifier: MIT */
/* linux/mm.h: the address space of the calling process, as the engine sees it (struct sublet__mm_ops). */
#ifndef SUBLET_LINUX_MM_H
#define SUBLET_LINUX_MM_H

#include "core/platform.h"
#include "linux/backing.h"

/* Constant from open to close (or to a fork, in the child), so that any thread may read it. */
struct sublet__linux_mm {
	uintptr_t base; /* address of vpn 0 */
	uint64_t bytes; /* of the window */
	uint32_t shift; /* of a page */
	bool is_hugetlb;
	bool is_huge;                    /* as in struct sublet__backing */
	enum sublet_technique technique; /* never AUTO */
	int fd;                          /* the backing's, not ours */
	uint64_t fd_offset;
	uint8_t *linear;
	int uffd_move;   /* blocks a range that moves; asynchronous write-protection with PRECOPY */
	int uffd_hold;   /* synchronous write-protection, for restore; the same as uffd_move unless PRECOPY */
	int pagemap;     /* /proc/self/pagemap, -1 where it cannot be read */
	int status;      /* sublet__observer_open */
	int maps;        /* /proc/self/maps, likewise: a program may lock itself in (chroot), and fork */
	bool is_checked; /* by valgrind: nothing moves */
	bool in_child;   /* of a fork(): ordinary memory, and every operation is refused */
};

/*
 * Reserve a window and open what the technique needs. technique AUTO: the best for this backing.
 * -EOPNOTSUPP: the kernel lacks it; -EPERM: no userfaultfd; -ENOMEM: no addresses.
 */
int sublet__linux_mm_open(struct sublet__linux_mm *mm, const struct sublet__backing *backing,
			  enum sublet_technique technique, uint64_t window_bytes);
/* Unmap the window and close everything. */
void sublet__linux_mm_close(struct sublet__linux_mm *mm);
/* In a child of fork(): close descriptors and forget their numbers; operations are -EPERM from here on. */
void sublet__linux_mm_fork_child(struct sublet__linux_mm *mm);

/* What the engine is told about it. */
struct sublet__mm_config sublet__linux_mm_config(struct sublet__linux_mm *mm, uint32_t mapping_limit);
/* The run length that this technique and backing like best. */
uint32_t sublet__linux_mm_run_pages(const struct sublet__linux_mm *mm);

extern const struct sublet__mm_ops sublet__linux_mm_ops;

/* ---- between mm.c, private.c and uffd.c ---- */

/* Where giving up would lose data: try this often, a millisecond apart, then say why and abort. */
#define SUBLET__MUST_TRIES    1000
#define SUBLET__MUST_PAUSE_NS 1000000

static inline uintptr_t sublet__mm_addr(const struct sublet__linux_mm *mm, uint32_t vpn)
{
	return mm->base + ((uintptr_t)vpn << mm->shift);
}

static inline uint8_t *sublet__mm_frame(const struct sublet__linux_mm *mm, uint32_t pfn)
{
	return mm->linear + ((size_t)pfn << mm->shift);
}

static inline size_t sublet__mm_bytes(const struct sublet__linux_mm *mm, uint32_t pages)
{
	return (size_t)pages << mm->shift;
}

/*
 * One kernel mapping of frames from pfn on, shared or private, replacing what is there, which stays after an
 * error. -errno
 */
int sublet__mm_map_frames(const struct sublet__linux_mm *mm, const struct sublet__segment *seg, uint32_t pfn,
			  uint32_t flags, int prot);
/* The same where giving up would lose data. */
void sublet__mm_must_map(const struct sublet__linux_mm *mm, const struct sublet__segment *seg, uint32_t pfn,
			 uint32_t flags, int prot);
/* Replace a mapping, by any other; what was there stays after an error. -errno */
int sublet__mm_map_fixed(uintptr_t addr, size_t bytes, int prot, int flags, int fd, uint64_t offset);
/* The addresses go back to being reserved and inaccessible. -errno */
int sublet__mm_map_nothing(uintptr_t addr, size_t bytes);
/* Whether every address of a range of ours belongs to a mapping: asked of the kernel, and without a descriptor. */
bool sublet__mm_is_mapped(uintptr_t addr, size_t bytes);
/* Try again in a moment, or at once with the reserve of mappings, in a loop that gives up after SUBLET__MUST_TRIES. */
bool sublet__mm_must_wait(int *tries);
/* Say why, and abort: to go on would lose data, or leave a thread asleep for ever. */
_Noreturn void sublet__mm_give_up(const char *what, int err);
void sublet__mm_relock(uintptr_t addr, size_t bytes, uint32_t flags);
/* First and last page of adjacent segments as one range. */
uint32_t sublet__mm_pages(const struct sublet__segment *segs, uint32_t count);

/* Keep writers out of a range until it is mapped anew or unregistered from uffd_hold. Readers go on. -errno */
int sublet__mm_hold(const struct sublet__linux_mm *mm, uintptr_t addr, size_t bytes);
int sublet__mm_privatize(void *ctx, const struct sublet__segment *segs, uint32_t count, uint32_t flags);
int sublet__mm_restore(void *ctx, const struct sublet__segment *segs, uint32_t count, uint32_t flags);
/* Ordinary memory with a copy of the frames, in place of what is there, while writers are kept out. -errno */
int sublet__mm_map_copy(const struct sublet__linux_mm *mm, const struct sublet__segment *seg, uint32_t pfn,
			int prot);

#endif
