/* SPDX-License-Identifier: MIT */
#include "bare.h"

#include <stdlib.h>
#include <string.h>

static void bare_zero(void *ctx, uint32_t pfn, uint32_t frames, bool warm)
{
	struct bare *b = ctx;

	(void)warm;
	memset(b->written + pfn, 0, frames);
	b->zeroed_pfn = pfn;
	b->zeroed_frames = frames;
}

static uint64_t bare_now(void *ctx)
{
	(void)ctx;
	return 0;
}

static uint32_t bare_slot(void *ctx)
{
	(void)ctx;
	return 0;
}

/* One thread alone waits for nobody, and wakes nobody. */
static void bare_sleep(void *ctx, uint64_t ns)
{
	(void)ctx, (void)ns;
	abort();
}

static void bare_park(void *ctx, const void *word, uint32_t expected, uint64_t timeout_ns)
{
	(void)ctx, (void)word, (void)expected, (void)timeout_ns;
	abort();
}

static void bare_unpark(void *ctx, const void *word, uint32_t count)
{
	(void)ctx, (void)word, (void)count;
}

static const struct sublet__platform_ops bare_ops = {
	.now_ns = bare_now,
	.coarse_ns = bare_now,
	.sleep_ns = bare_sleep,
	.park = bare_park,
	.unpark = bare_unpark,
	.thread_slot = bare_slot,
	.zero = bare_zero,
};

static void *zeros(size_t count, size_t bytes)
{
	void *p = calloc(count, bytes);

	if (!p)
		abort();
	return p;
}

void bare_open(struct bare *b, uint32_t area_frames, uint32_t normal_frames, uint32_t pageblock_order,
	       bool zeroed)
{
	struct sublet_arena *a = &b->arena;
	uint32_t frames = area_frames + normal_frames, blocks = frames >> pageblock_order;
	uint32_t leaves = sublet__window_leaves(area_frames >> pageblock_order);

	memset(b, 0, sizeof *b);
	memset(b->written, !zeroed, frames);
	a->platform.ops = &bare_ops;
	a->platform.ctx = b;
	a->platform.frame_shift = 12;
	a->frames_total = frames;
	a->order_max = a->pageblock_order = pageblock_order;
	a->frames = zeros(frames, sizeof *a->frames);
	a->pageblocks = zeros(blocks, sizeof *a->pageblocks);
	a->tree_leaves = leaves;
	a->tree_sum = zeros(2 * leaves, sizeof *a->tree_sum);
	a->tree_min = zeros(2 * leaves, sizeof *a->tree_min);
	a->dirty = zeros(leaves / 64 + 1, sizeof *a->dirty);
	a->dirty_top = zeros(leaves / 4096 + 1, sizeof *a->dirty_top);
	sublet__zone_init(a, ZONE_AREA, 0, area_frames, zeroed);
	sublet__zone_init(a, ZONE_NORMAL, area_frames, normal_frames, zeroed);
	sublet__window_init(a);
}

void bare_close(struct bare *b)
{
	struct sublet_arena *a = &b->arena;

	free(a->frames);
	free(a->pageblocks);
	free(a->tree_sum);
	free(a->tree_min);
	free(a->dirty);
	free(a->dirty_top);
}
