/* SPDX-License-Identifier: MIT */
/*
 * Choosing the cheapest window, as the area grows: the tree of core/window.c against a scan that adds up
 * every window.
 *
 * Only the engine's structures are real here; no frame behind them is ever touched, so areas larger
 * than the machine's memory can be measured. Before each choice 32 blocks change.
 */
#include "bench.h"

#include "core/engine.h"

#include <stdio.h>
#include <sys/mman.h>

#define COUNT   32u /* pageblocks of the window: 64 MiB */
#define REPEATS 15u
#define CHOICES 200u

static void *reserve(void *ctx, size_t bytes)
{
	(void)ctx;
	void *p =
		mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	return p == MAP_FAILED ? NULL : p;
}

static void unreserve(void *ctx, void *memory, size_t bytes)
{
	(void)ctx;
	munmap(memory, bytes);
}

static uint64_t next_random(uint64_t *s)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	*s ^= *s << 17;
	return *s;
}

/* A block's movable frames become as many as wanted. */
static void block_fill(struct sublet_arena *arena, uint32_t pb, uint32_t want)
{
	uint32_t have = sublet__account_get(&arena->pageblocks[pb], ACCOUNT_MOVABLE);

	if (want > have)
		sublet__account(arena, pb * 512, want - have, ACCOUNT_FREE, ACCOUNT_MOVABLE);
	else if (have > want)
		sublet__account(arena, pb * 512, have - want, ACCOUNT_MOVABLE, ACCOUNT_FREE);
}

static uint64_t scan(const struct sublet_arena *arena, uint32_t blocks)
{
	uint64_t sum = 0, best = UINT64_MAX;

	for (uint32_t pb = 0; pb < blocks; pb++) {
		sum += sublet__account_get(&arena->pageblocks[pb], ACCOUNT_MOVABLE);
		if (pb >= COUNT)
			sum -= sublet__account_get(&arena->pageblocks[pb - COUNT], ACCOUNT_MOVABLE);
		if (pb + 1 >= COUNT && sum < best)
			best = sum;
	}
	return best;
}

static void window_row(uint32_t blocks, bool full, const char *name)
{
	static const struct sublet__platform_ops ops = { .reserve = reserve, .unreserve = unreserve };
	struct sublet__arena_config config = {
		.platform = { .ops = &ops, .frame_shift = 12, .run_pages_max = 512, .workers = 1 },
		.area_frames = blocks * 512,
		.normal_frames = 512
	};
	double us[REPEATS], scan_us[REPEATS], excess[REPEATS];
	struct sublet_arena *arena;
	uint64_t seed = 88172645463325252ull, cost, sink = 0;
	int err = sublet__arena_init(&config, &arena);

	if (err)
		bench_fail("engine", err);
	for (uint32_t pb = 0; pb < blocks; pb++)
		block_fill(arena, pb, full ? 512 : (uint32_t)(next_random(&seed) % 513));
	/* the first brings all of the tree up to date */
	(void)sublet__window_cheapest(arena, COUNT, 1, &cost);
	for (uint32_t r = 0; r < REPEATS; r++) {
		uint64_t start = bench_now_ns();
		for (uint32_t i = 0; i < CHOICES; i++) {
			for (uint32_t k = 0; k < COUNT; k++)
				block_fill(arena, (uint32_t)(next_random(&seed) % blocks),
					   full ? 512 : (uint32_t)(next_random(&seed) % 513));
			sink += sublet__window_cheapest(arena, COUNT, 1, &cost);
		}
		us[r] = (double)(bench_now_ns() - start) / 1e3 / CHOICES;
		(void)sublet__window_cheapest(arena, COUNT, 1, &cost);
		start = bench_now_ns();
		uint64_t best = scan(arena, blocks);
		sink += best;
		excess[r] = 100.0 * ((double)cost / 16 - (double)best) / (double)best;
		scan_us[r] = (double)(bench_now_ns() - start) / 1e3;
	}
	double reference = bench_quantile(scan_us, REPEATS, 500) * 1e3;
	bench_add((struct bench_row){ .name = name,
				      .unit = sink ? "us" : "us ",
				      .reference = "a scan of all windows",
				      .reference_ns = reference },
		  us, REPEATS);
	printf("    costs %.1f %% more than the cheapest window (median)\n",
	       bench_quantile(excess, REPEATS, 500));
	sublet__arena_fini(arena);
}

void bench_window(void)
{
	window_row(256, false, "choose 64 MiB of 512 MiB, random occupancy");
	window_row(4096, false, "choose 64 MiB of 8 GiB, random occupancy");
	window_row(32768, false, "choose 64 MiB of 64 GiB, random occupancy");
	window_row(32768, true, "choose 64 MiB of 64 GiB, all full");
}
