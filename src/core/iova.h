/* SPDX-License-Identifier: MIT */
/*
 * core/iova.h: which part of a device's address space is taken, in ranges of 4 KiB pages.
 *
 * The space is cut into ranges end to end, each taken or free, no two free ones side by side. All are in a tree by
 * address; the free ones also in a tree by size, which finds the best fit. Ranges are named by index; 0 is none.
 * Nothing here locks: the caller does.
 */
#ifndef SUBLET_CORE_IOVA_H
#define SUBLET_CORE_IOVA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define IOVA_NONE 0u

enum sublet__iova_tree { IOVA_BY_ADDRESS = 0, IOVA_BY_SIZE = 1, IOVA_TREES = 2 };

/* Alignments that the tree by size knows: pages of a 2 MiB and of a 1 GiB entry. */
#define IOVA_ALIGNS         2u
#define IOVA_ALIGN_PAGES(k) ((uint64_t)1 << (9 * ((k) + 1)))

struct sublet__iova_range {
	uint64_t start; /* page number, counted from iova 0 */
	uint64_t pages;
	uint64_t room
		[IOVA_ALIGNS]; /* free: the most pages behind an aligned start, in any range of the subtree by size */
	uint32_t child[IOVA_TREES][2];
	uint32_t prev, next; /* neighbours by address; next also lists the spare ones */
	uint8_t height[IOVA_TREES];
	bool is_taken;
	uint8_t flags; /* taken: the owner's */
};

_Static_assert(sizeof(struct sublet__iova_range) == 64, "one cache line a range");

struct sublet__iova {
	struct sublet__iova_range
		*range; /* [sublet__iova_ranges(taken_max)]; range[0].next is the lowest, no more */
	uint32_t taken_max;
	uint32_t taken;
	uint64_t taken_pages;
	uint64_t first; /* page numbers of the space: [first, end) */
	uint64_t end;
	uint32_t fresh; /* ranges from here on were never used */
	uint32_t spare; /* list of those given back */
	uint32_t root[IOVA_TREES];
};

/* How many ranges the caller has to bring, zero-filled: between taken ones, and at both ends, may be free ones. */
static inline size_t sublet__iova_ranges(uint32_t taken_max)
{
	return 2 * (size_t)taken_max + 2;
}

/* Manage pages [first, end); iova->range is set. */
void sublet__iova_init(struct sublet__iova *iova, uint32_t taken_max, uint64_t first, uint64_t end);

/*
 * Take the smallest free range that holds `pages` pages from a multiple of align (a power of two) plus offset
 * (< align) on; of equally small ones the lowest; in it, the lowest such start. IOVA_NONE: there is none, or as many
 * ranges are taken as may be.
 */
uint32_t sublet__iova_take(struct sublet__iova *iova, uint64_t pages, uint64_t align, uint64_t offset);

/* Take exactly [start, start + pages). -ERANGE: leaves the space. -EEXIST: partly taken. -ENOSPC: too many. */
int sublet__iova_take_at(struct sublet__iova *iova, uint64_t start, uint64_t pages, uint32_t *id);

/* The taken range that page number pn lies in. IOVA_NONE: it is free, or outside. */
uint32_t sublet__iova_find(const struct sublet__iova *iova, uint64_t pn);

/* Give a taken range back. */
void sublet__iova_give(struct sublet__iova *iova, uint32_t id);

/* Pages of the largest free range. */
uint64_t sublet__iova_largest(const struct sublet__iova *iova);

#endif
