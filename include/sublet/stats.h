/* SPDX-License-Identifier: MIT */
/* sublet/stats.h: what an arena holds and what it did. */
#ifndef SUBLET_STATS_H
#define SUBLET_STATS_H

#include <sublet/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Log-linear histogram of nanoseconds: 4 buckets to a power of two. Bucket i holds values from
 * sublet_histogram_floor_ns(i) up to the floor of bucket i + 1, the last one everything above.
 */
#define SUBLET_HISTOGRAM_BUCKETS 160

struct sublet_histogram {
	uint64_t count;
	uint64_t sum_ns;
	uint64_t max_ns;
	uint64_t bucket[SUBLET_HISTOGRAM_BUCKETS];
};

/* Smallest value that bucket i counts, in ns. */
SUBLET_API uint64_t sublet_histogram_floor_ns(uint32_t bucket);

/* The value below which `permille` of 1000 samples lie, to a quarter of a power of two; 0 when empty. */
SUBLET_API uint64_t sublet_histogram_percentile_ns(const struct sublet_histogram *h, uint32_t permille);

struct sublet_stats {
	uint64_t size_bytes; /* SUBLET_OPTIONS(sublet_stats), set by the caller */

	/* Where the bytes are now. area = free + movable + discardable + claimed + held + isolated. */
	uint64_t area_bytes;
	uint64_t area_free_bytes;
	uint64_t area_movable_bytes;
	uint64_t area_discardable_bytes;
	uint64_t area_claimed_bytes;
	uint64_t area_held_bytes;     /* cannot move now: shared with a child of fork(), or protected */
	uint64_t area_isolated_bytes; /* being claimed at this moment */
	uint64_t normal_bytes;
	uint64_t normal_free_bytes;
	uint64_t normal_used_bytes;

	/* Memory that programs see. */
	uint64_t lent_bytes;  /* mapped on frames of the arena */
	uint64_t plain_bytes; /* mapped on ordinary memory, because the arena was full */
	uint64_t mapping_count;
	uint64_t mapping_limit;
	uint64_t children; /* of fork() that still share memory */

	/* What was done, since the arena was created. */
	uint64_t claims;
	uint64_t claims_succeeded;
	uint64_t claims_busy;   /* -EBUSY */
	uint64_t claims_noroom; /* -ENOMEM */
	uint64_t claims_held;   /* now */
	uint64_t windows_tried;
	uint64_t moves; /* runs moved */
	uint64_t moved_bytes;
	uint64_t recopied_bytes; /* written between pre-copy and block */
	uint64_t moves_refused;  /* a pin, a race, or the system stopped them; nothing was changed */
	uint64_t dropped_bytes;
	uint64_t zeroed_bytes;
	uint64_t linearised_runs; /* kernel mappings merged again */
	uint64_t forks;

	struct sublet_histogram claim_ns;   /* latency of successful claims */
	struct sublet_histogram blocked_ns; /* how long a run of addresses was blocked */

	/* Of all address spaces together. */
	uint64_t longterm_bytes; /* under long-term pins, each pin counted on its own */
	uint64_t
		longterm_limit_bytes; /* the sum of their limits (sublet_pin_limit); UINT64_MAX: beyond that */
	uint64_t notifiers;           /* registered now */
	uint64_t invalidations;       /* that began: changes that notifiers were looked up for */
	uint64_t
		invalidations_declined; /* callbacks that could not at once; the memory was left alone until later */
};

/* Fill in *stats; a snapshot that is not atomic. -EINVAL: stats->size_bytes is not set; -E2BIG: or is no size. */
SUBLET_API SUBLET_NODISCARD int sublet_arena_stats(struct sublet_arena *arena, struct sublet_stats *stats);

/* One pageblock, for pictures: how its frames are used. The six counts add up to its frames. */
struct sublet_pageblock {
	uint16_t free_frames;
	uint16_t movable_frames;
	uint16_t discardable_frames;
	uint16_t claimed_frames;
	uint16_t held_frames;
	uint16_t isolated_frames;
};

/*
 * Copy out the pageblocks of the area from index `first`, at most `count`. Returns how many were
 * written: 0 beyond the end. A snapshot that is not atomic.
 */
SUBLET_API size_t sublet_arena_pageblocks(struct sublet_arena *arena, size_t first, size_t count,
					  struct sublet_pageblock *out);

#ifdef __cplusplus
}
#endif
#endif
