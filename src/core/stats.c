/* SPDX-License-Identifier: MIT */
/*
 * Statistics: counters and histograms that every thread adds to without a lock, and the snapshot
 * of them. Each counter stands alone, so relaxed atomics are enough; a snapshot is not atomic.
 *
 * Histograms are log-linear with 4 buckets to a power of two: a percentile is right to within 19 %.
 */
#include "core/call.h"

#include <sublet/notifier.h>

#include <errno.h>
#include <string.h>

#define SUB_SHIFT 2u /* log2 of the buckets in a power of two */
#define SUB_COUNT (1u << SUB_SHIFT)

static uint32_t bucket_of(uint64_t ns)
{
	if (ns < SUB_COUNT)
		return (uint32_t)ns;
	uint32_t exponent = 63u - (uint32_t)__builtin_clzll(ns);
	uint32_t bucket = (exponent - SUB_SHIFT + 1) * SUB_COUNT +
			  (uint32_t)(ns >> (exponent - SUB_SHIFT) & (SUB_COUNT - 1));
	return min_u32(bucket, SUBLET_HISTOGRAM_BUCKETS - 1);
}

uint64_t sublet_histogram_floor_ns(uint32_t bucket)
{
	if (bucket < SUB_COUNT)
		return bucket;
	uint32_t exponent = bucket / SUB_COUNT - 1;
	if (exponent > 61)
		return UINT64_MAX; /* beyond every bucket there is */
	return (uint64_t)(SUB_COUNT + bucket % SUB_COUNT) << exponent;
}

uint64_t sublet_histogram_percentile_ns(const struct sublet_histogram *h, uint32_t permille)
{
	uint64_t below = 0, want;

	if (!h || !h->count)
		return 0;
	want = (h->count * (permille < 1000 ? permille : 1000) + 999) / 1000;
	for (uint32_t i = 0; i < SUBLET_HISTOGRAM_BUCKETS; i++) {
		below += h->bucket[i];
		if (below >= want && below) {
			uint64_t ceiling = sublet_histogram_floor_ns(i + 1);
			return i + 1 < SUBLET_HISTOGRAM_BUCKETS && ceiling < h->max_ns ? ceiling : h->max_ns;
		}
	}
	return h->max_ns;
}

void sublet__histogram_add(struct sublet__histogram *h, uint64_t ns)
{
	a64_add_relaxed(&h->count, 1);
	a64_add_relaxed(&h->sum_ns, ns);
	a64_max_relaxed(&h->max_ns, ns);
	a64_add_relaxed(&h->bucket[bucket_of(ns)], 1);
}

static void histogram_read(const struct sublet__histogram *from, struct sublet_histogram *to)
{
	to->count = a64_load_relaxed(&from->count);
	to->sum_ns = a64_load_relaxed(&from->sum_ns);
	to->max_ns = a64_load_relaxed(&from->max_ns);
	for (uint32_t i = 0; i < SUBLET_HISTOGRAM_BUCKETS; i++)
		to->bucket[i] = a64_load_relaxed(&from->bucket[i]);
}

static void zone_read(struct sublet_arena *arena, const struct sublet__zone *zone, uint64_t bytes[ACCOUNTS])
{
	uint32_t first = zone->first_pfn >> arena->pageblock_order;
	uint32_t end = first + (zone->frames >> arena->pageblock_order);

	memset(bytes, 0, ACCOUNTS * sizeof *bytes);
	for (uint32_t pb = first; pb < end; pb++)
		for (uint32_t i = 0; i < ACCOUNTS; i++)
			bytes[i] +=
				(uint64_t)sublet__account_get(&arena->pageblocks[pb], (enum sublet__account)i)
				<< frames_bytes_shift(arena);
}

static void counters_read(struct sublet_arena *arena, struct sublet_stats *s)
{
	const struct sublet__counters *n = &arena->counters;
	uint32_t shift = frames_bytes_shift(arena);

	s->claims = a64_load_relaxed(&n->claims);
	s->claims_succeeded = a64_load_relaxed(&n->claims_succeeded);
	s->claims_busy = a64_load_relaxed(&n->claims_busy);
	s->claims_noroom = a64_load_relaxed(&n->claims_noroom);
	s->claims_held = a64_load_relaxed(&n->claims_held);
	s->windows_tried = a64_load_relaxed(&n->windows_tried);
	s->moves = a64_load_relaxed(&n->moves);
	s->moved_bytes = a64_load_relaxed(&n->moved_frames) << shift;
	s->recopied_bytes = a64_load_relaxed(&n->recopied_frames) << shift;
	s->moves_refused = a64_load_relaxed(&n->moves_refused);
	s->dropped_bytes = a64_load_relaxed(&n->dropped_frames) << shift;
	s->zeroed_bytes = a64_load_relaxed(&n->zeroed_frames) << shift;
	s->linearised_runs = a64_load_relaxed(&n->linearised_runs);
	s->forks = a64_load_relaxed(&n->forks);
}

/* What is counted per address space. */
static void mms_read(struct sublet_arena *arena, struct sublet_stats *s)
{
	uint32_t shift = frames_bytes_shift(arena), mms = a32_load_acquire(&arena->mm_count);

	for (uint32_t i = 0; i < mms; i++) {
		struct sublet_mm *mm = arena->mm[i];
		struct sublet_notifier_stats n = { SUBLET_OPTIONS(sublet_notifier_stats) };
		uint64_t limit = a64_load_relaxed(&mm->longterm_limit_pages) << shift;
		int err = sublet_notifier_stats(mm, &n);

		(void)err; /* refuses a size that is not set, and nothing else */
		s->mapping_count += a32_load_relaxed(&mm->mapping_count);
		s->mapping_limit += mm->config.mapping_limit;
		s->children += a32_load_relaxed(&mm->child_pid) != 0;
		s->longterm_bytes += a64_load_relaxed(&mm->longterm_pages) << shift;
		s->longterm_limit_bytes += limit < UINT64_MAX - s->longterm_limit_bytes
						   ? limit
						   : UINT64_MAX - s->longterm_limit_bytes;
		s->notifiers += n.registered;
		s->invalidations += n.invalidations;
		s->invalidations_declined += n.declined;
	}
}

int sublet_arena_stats(struct sublet_arena *arena, struct sublet_stats *stats)
{
	int err = call_arena(arena);

	if (!err)
		err = sublet__struct_out_check(stats, FIRST_STATS);
	if (err)
		return err;
	uint32_t shift = frames_bytes_shift(arena);
	uint64_t bytes[ACCOUNTS];
	struct sublet_stats s = { 0 };
	s.area_bytes = (uint64_t)arena->zone[ZONE_AREA].frames << shift;
	s.normal_bytes = (uint64_t)arena->zone[ZONE_NORMAL].frames << shift;
	zone_read(arena, &arena->zone[ZONE_AREA], bytes);
	/* Cached folios are accounted MOVABLE; the sums are no snapshot, so never below 0. */
	uint64_t cached = (uint64_t)sublet__cache_frames(arena) << shift;
	cached = cached < bytes[ACCOUNT_MOVABLE] ? cached : bytes[ACCOUNT_MOVABLE];
	s.area_free_bytes = bytes[ACCOUNT_FREE] + cached;
	s.area_movable_bytes = bytes[ACCOUNT_MOVABLE] - cached;
	s.area_discardable_bytes = bytes[ACCOUNT_DISCARDABLE];
	s.area_claimed_bytes = bytes[ACCOUNT_CLAIMED];
	s.area_held_bytes = bytes[ACCOUNT_HELD];
	s.area_isolated_bytes = bytes[ACCOUNT_ISOLATED];
	zone_read(arena, &arena->zone[ZONE_NORMAL], bytes);
	s.normal_free_bytes = bytes[ACCOUNT_FREE];
	s.normal_used_bytes = s.normal_bytes - s.normal_free_bytes;
	s.lent_bytes = a64_load_relaxed(&arena->lent_frames) << shift;
	s.plain_bytes =
		(a64_load_relaxed(&arena->plain_pages) << shift) + a64_load_relaxed(&arena->outside_bytes);
	mms_read(arena, &s);
	counters_read(arena, &s);
	histogram_read(&arena->claim_ns, &s.claim_ns);
	histogram_read(&arena->blocked_ns, &s.blocked_ns);
	sublet__struct_out(stats, &s, sizeof s);
	return 0;
}

size_t sublet_arena_pageblocks(struct sublet_arena *arena, size_t first, size_t count,
			       struct sublet_pageblock *out)
{
	size_t done = 0;

	if (!out || call_arena(arena))
		return 0;
	size_t blocks = arena->zone[ZONE_AREA].frames >> arena->pageblock_order;
	for (; done < count && first + done < blocks && first + done >= first; done++) {
		/* one load: the six counts belong together */
		uint64_t counts = a64_load_relaxed(&arena->pageblocks[first + done].counts);
		uint16_t n[ACCOUNTS];
		for (uint32_t i = 0; i < ACCOUNTS; i++)
			n[i] = (uint16_t)(counts >> (i * ACCOUNT_BITS) & ((1u << ACCOUNT_BITS) - 1));
		out[done] = (struct sublet_pageblock){ n[ACCOUNT_FREE],        n[ACCOUNT_MOVABLE],
						       n[ACCOUNT_DISCARDABLE], n[ACCOUNT_CLAIMED],
						       n[ACCOUNT_HELD],        n[ACCOUNT_ISOLATED] };
	}
	return done;
}
