/* SPDX-License-Identifier: MIT */
/*
 * core/iopt.h: the structure of a device's page table. core/iopt.c says how it is walked and changed.
 *
 * Three flat arrays of entries over the aperture, one a level: 4 KiB, 2 MiB, 1 GiB. They are reserved whole and
 * committed as they are touched: nothing is allocated later, and nothing is freed under a walker. A slot of a level
 * is the place of one entry; pn is a page number, iova / 4 KiB.
 */
#ifndef SUBLET_CORE_IOPT_H
#define SUBLET_CORE_IOPT_H

#include "core/call.h"
#include "core/iova.h"

#include <sublet/iopt.h>

#define IOPT_PAGE_SHIFT       12u
#define IOPT_LEVELS           3u
#define IOPT_TOP              (IOPT_LEVELS - 1)
#define IOPT_LEVEL_BITS       9u
#define IOPT_BELOW            (1u << IOPT_LEVEL_BITS) /* slots of the next level in one slot */
#define IOPT_APERTURE_MAX     ((uint64_t)16 << 40)
#define IOPT_MAPPINGS_DEFAULT 65536u
#define IOPT_MAPPINGS_MAX     (1u << 30)

/* An entry: the backing offset of its first byte, and in the low bits what the device may do; 0: not present. */
#define ENTRY_ACCESS ((uint64_t)(SUBLET_IOPT_READ | SUBLET_IOPT_WRITE))
#define ENTRY_LOWER  ((uint64_t)1 << 2) /* large: the entries below are there too, and translate to the same */
#define ENTRY_FLAGS  ((uint64_t)0xfff)

struct sublet__iopt_level {
	sublet__a64 *entry; /* written under the table's lock, read by walkers without */
	uint16_t *used;     /* slots right below that are not empty; not for level 0. Guarded by the lock */
	uint64_t first;     /* number of the slot of entry[0], counted from iova 0 */
	uint64_t slots;
};

/* Pages [pn, end) that a device may still have a removed translation of; pn == end: none. */
struct sublet__iopt_hull {
	uint64_t pn, end;
};

struct sublet_iopt {
	struct sublet_arena *arena;
	size_t memory_bytes;
	uint64_t first; /* page numbers of the aperture: [first, first + pages) */
	uint64_t pages;
	uint64_t backing_bytes; /* of the arena */
	uint32_t levels;        /* how many the device has */
	void (*device_flush)(void *ctx, uint64_t iova, uint64_t bytes);
	void *ctx;
	struct sublet__iopt_level level[IOPT_LEVELS];

	/* Held over the device's own flush, so that who waits for it knows it done. Outside of lock. */
	struct sublet__lock flush_lock;

	/* Protects all that follows, and every change of an entry. Holds nothing. */
	struct sublet__lock lock;
	struct sublet__iova iova;          /* its taken ranges are the mappings; their flags are the access */
	struct sublet__iopt_hull pending;  /* removed, and nobody flushes it yet */
	struct sublet__iopt_hull flushing; /* whoever holds flush_lock is at it */
	uint64_t entries[IOPT_LEVELS];     /* that a walker can meet: not those below a large one */
	uint64_t splits, merges, flushes;
};

static inline int call_iopt(const struct sublet_iopt *iopt)
{
	return iopt ? call_arena(iopt->arena) : -EINVAL;
}

static inline uint64_t level_pages(uint32_t level)
{
	return (uint64_t)1 << (level * IOPT_LEVEL_BITS);
}

static inline uint64_t level_bytes(uint32_t level)
{
	return level_pages(level) << IOPT_PAGE_SHIFT;
}

static inline sublet__a64 *entry_at(const struct sublet_iopt *iopt, uint32_t level, uint64_t pn)
{
	const struct sublet__iopt_level *l = &iopt->level[level];
	return &l->entry[(pn >> (level * IOPT_LEVEL_BITS)) - l->first];
}

static inline uint64_t entry_get(const struct sublet_iopt *iopt, uint32_t level, uint64_t pn)
{
	return a64_load_relaxed(entry_at(iopt, level, pn)); /* by writers, under the lock */
}

static inline uint16_t *used_at(const struct sublet_iopt *iopt, uint32_t level, uint64_t pn)
{
	const struct sublet__iopt_level *l = &iopt->level[level];
	return &l->used[(pn >> (level * IOPT_LEVEL_BITS)) - l->first];
}

#endif
