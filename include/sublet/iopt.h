/* SPDX-License-Identifier: MIT */
/*
 * sublet/iopt.h: a device's own page table, from iova (the addresses a device uses) to frames.
 *
 * Entries are of 4 KiB, 2 MiB and 1 GiB. Mapping picks the largest that the alignment of iova and frames and the
 * contiguity of the frames allow, and falls back to smaller ones without telling anybody: correctness never depends on
 * the size. Clearing part of a large entry splits it; filling the part in again makes it large again.
 *
 * The unit of map and unmap is the mapping: one call maps one range of iova, and only that range, whole, can be unmapped.
 * Anything else is refused before the first change, so no translation is ever left over.
 *
 * Changes are made under a lock of the table. Translation takes none: a device walks while others change. A device may
 * keep what it walked (a TLB), so what was unmapped or cleared may be used by it until a flush has returned. The
 * functions below flush before they return, unless SUBLET_IOPT_NOFLUSH asks for one sublet_iopt_flush after many.
 * iova that was unmapped can be mapped again at once, flushed or not: a fill without NOFLUSH returns only when the device
 * knows nothing old of the range it filled; after one with NOFLUSH, flush before the device uses the range.
 */
#ifndef SUBLET_IOPT_H
#define SUBLET_IOPT_H

#include <sublet/types.h>

#ifdef __cplusplus
extern "C" {
#endif

struct sublet_iopt;

#define SUBLET_IOVA_ANY        UINT64_MAX
#define SUBLET_IOPT_PAGE_BYTES ((uint64_t)4096)

enum sublet_iopt_flags {
	SUBLET_IOPT_READ = 1u << 0,    /* the device may read */
	SUBLET_IOPT_WRITE = 1u << 1,   /* the device may write */
	SUBLET_IOPT_NOFLUSH = 1u << 2, /* the caller flushes later, before the device uses the range again */
};

struct sublet_iopt_options {
	uint64_t size_bytes; /* SUBLET_OPTIONS(sublet_iopt_options) */
	/* Lowest iova of the aperture; a multiple of 4 KiB. iova 0 is never handed out. */
	uint64_t first_bytes;
	uint64_t aperture_bytes; /* how much iova space the device has, up to 16 TiB; required */
	uint32_t mappings_max;   /* at once, at most 2^30; 0: 65,536 */
	/* Bit 0: no 2 MiB entries, and so no larger ones; bit 1: no 1 GiB entries (the device has none). */
	uint32_t large_disabled;
	/*
	 * Called to make the device forget what it walked in [iova, iova + bytes): when it has returned, no access
	 * through an old translation is under way or can begin; of a large entry that reaches into the range nothing
	 * is left either. Flushes of one table come one at a time. It may take the device's own locks, translate, ask
	 * for stats, and change the table with NOFLUSH, but must not flush; and whoever changes the table
	 * without NOFLUSH, or flushes, must not hold a lock that it takes. NULL: the device keeps nothing.
	 */
	void (*flush)(void *ctx, uint64_t iova, uint64_t bytes);
	void *ctx;
};

/*
 * Create an empty table. The memory for it is reserved, and committed as it is used; nothing is allocated later.
 * -EINVAL  sizes that are 0, no multiple of 4 KiB, or too large; unknown bits   -ENOMEM  no memory
 */
SUBLET_API SUBLET_NODISCARD int sublet_iopt_create(struct sublet_arena *arena,
						   const struct sublet_iopt_options *options,
						   struct sublet_iopt **iopt);
/* Destroy it, mappings and all, before its arena (which answers -EBUSY until then); the device must be off. NULL is a no-op. */
SUBLET_API void sublet_iopt_destroy(struct sublet_iopt *iopt);

/*
 * Map `bytes` bytes of iova space, at *iova, or anywhere when that is SUBLET_IOVA_ANY: then the smallest free range
 * that fits is taken (best fit), at a multiple of align_bytes (a power of two; 0: whatever lets the largest entries be
 * used, or less where there is no such room) plus align_offset_bytes, and *iova is set. The range is reserved whole, and
 * empty: fill puts the frames in. flags: what the device may do; NOFLUSH has no meaning here.
 * -EINVAL  bytes is 0, something is no multiple of 4 KiB or no power of two, flags without READ or WRITE or unknown
 * -EEXIST  part of the wanted range is mapped already
 * -ERANGE  the wanted range leaves the aperture, or begins at iova 0
 * -ENOSPC  no free range is large enough, or too many mappings
 */
SUBLET_API SUBLET_NODISCARD int sublet_iopt_map(struct sublet_iopt *iopt, uint64_t *iova, uint64_t bytes,
						uint64_t align_bytes, uint64_t align_offset_bytes,
						uint32_t flags);

/*
 * Put frames under [iova, iova + their bytes), which lies in one mapping; what was there is replaced, and flushed. A
 * device that walks meanwhile finds the old frames of a page or the new ones, never none.
 * -EINVAL  count is 0, an extent is empty or no multiple of 4 KiB, or outside the arena, iova is no multiple of 4 KiB,
 *          unknown flags (only NOFLUSH)
 * -ENOENT  the range is not inside one mapping
 */
SUBLET_API SUBLET_NODISCARD int sublet_iopt_fill(struct sublet_iopt *iopt, uint64_t iova,
						 const struct sublet_extent *extents, uint32_t count,
						 uint32_t flags);

/* Remove the translations of part of one mapping; the iova stays taken. Errors as of fill. */
SUBLET_API SUBLET_NODISCARD int sublet_iopt_clear(struct sublet_iopt *iopt, uint64_t iova, uint64_t bytes,
						  uint32_t flags);

/*
 * Remove one mapping.
 * -ENOENT  [iova, iova + bytes) is not exactly one mapping; nothing is changed
 * -EINVAL  unknown flags (only NOFLUSH)
 */
SUBLET_API SUBLET_NODISCARD int sublet_iopt_unmap(struct sublet_iopt *iopt, uint64_t iova, uint64_t bytes,
						  uint32_t flags);

/*
 * One flush for all that was removed with NOFLUSH since the last one; nothing, if nothing was, or the table was made without
 * a flush. It covers one
 * range around all of that. Also waits for one that another thread is at.
 */
SUBLET_API void sublet_iopt_flush(struct sublet_iopt *iopt);

/*
 * What a device does for each access: translate. On success *extent is where iova is in the backing, and how many
 * bytes from there on the same entry covers. Takes no lock, three loads at most; any thread.
 * -EFAULT  no translation   -EACCES  the device may not (flags: READ, WRITE or both; 0: only look)
 */
SUBLET_API SUBLET_NODISCARD int sublet_iopt_translate(const struct sublet_iopt *iopt, uint64_t iova,
						      uint32_t flags, struct sublet_extent *extent);

struct sublet_iopt_stats {
	uint64_t size_bytes; /* SUBLET_OPTIONS(sublet_iopt_stats), set by the caller */
	uint64_t mappings;
	uint64_t mapped_bytes; /* iova space taken */
	uint64_t filled_bytes; /* with a translation */
	uint64_t entries_4k;
	uint64_t entries_2m;
	uint64_t entries_1g;
	uint64_t splits;             /* of large entries, ever */
	uint64_t merges;             /* small entries that became a large one when a part was filled, ever */
	uint64_t flushes;            /* calls of options.flush, ever */
	uint64_t largest_free_bytes; /* of iova space */
};

/* Fill in *stats. -EINVAL: stats->size_bytes is not set. */
SUBLET_API SUBLET_NODISCARD int sublet_iopt_stats(struct sublet_iopt *iopt, struct sublet_iopt_stats *stats);

#ifdef __cplusplus
}
#endif
#endif
