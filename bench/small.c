/* SPDX-License-Identifier: MIT */
/*
 * Operations that are counted in atomic adds: a pin, a folio from a warm cache; and what the engine
 * needs for itself.
 */
#include "bench.h"

#include "core/engine.h"

#include <sublet/pin.h>

#include <stdio.h>

#define LOOPS   200000u
#define REPEATS 15u

static void pin_row(struct sublet_arena *arena, uint64_t bytes, const char *owner, const char *name,
		    double must, double goal)
{
	double adds[REPEATS], atomic = 0;
	void *memory;
	int err = sublet_map(sublet_arena_mm(arena), 2 * SUBLET_MIB, SUBLET_MOVABLE, &memory);

	if (err)
		bench_fail("sublet_map", err);
	for (uint32_t r = 0; r < REPEATS; r++) {
		atomic = bench_atomic_ns();
		uint64_t start = bench_now_ns();
		for (uint32_t i = 0; i < LOOPS; i++) {
			struct sublet_pin pin;
			if (sublet_pin(sublet_arena_mm(arena), memory, bytes, SUBLET_PIN_WRITE, owner,
				       &pin) ||
			    sublet_unpin(&pin))
				bench_fail("pin", -1);
		}
		adds[r] = (double)(bench_now_ns() - start) / LOOPS / atomic;
	}
	bench_add((struct bench_row){ .name = name,
				      .unit = "atomic adds",
				      .must = must,
				      .goal = goal,
				      .reference = "an uncontended atomic add",
				      .reference_ns = atomic },
		  adds, REPEATS);
	err = sublet_unmap(sublet_arena_mm(arena), memory, 2 * SUBLET_MIB);
	if (err)
		bench_fail("sublet_unmap", err);
}

static void folio_row(struct sublet_arena *arena)
{
	static const uint32_t zones[ZONES] = { ZONE_AREA, ZONE_NORMAL };
	double adds[REPEATS], atomic = 0;

	for (uint32_t r = 0; r < REPEATS; r++) {
		atomic = bench_atomic_ns();
		uint64_t start = bench_now_ns();
		for (uint32_t i = 0; i < LOOPS; i++) {
			uint32_t pfn = sublet__folio_take(arena, arena->unit_order, zones);
			sublet__frames_put(arena, pfn, unit_pages(arena), ACCOUNT_MOVABLE);
		}
		adds[r] = (double)(bench_now_ns() - start) / LOOPS / atomic;
	}
	bench_add((struct bench_row){ .name = "folio get + put, warm cache",
				      .unit = "atomic adds",
				      .must = 5,
				      .goal = 3,
				      .reference = "an uncontended atomic add",
				      .reference_ns = atomic },
		  adds, REPEATS);
}

void bench_small(void)
{
	struct sublet_arena *arena = bench_arena(SUBLET_BACKING_AUTO, 1024, 256);
	struct sublet_arena_info info = { SUBLET_OPTIONS(sublet_arena_info) };

	if (!arena)
		return;
	pin_row(arena, 4096, NULL, "pin + unpin, one page of a 2 MiB folio", 10, 5);
	pin_row(arena, 2 * SUBLET_MIB, NULL, "pin + unpin, all of a 2 MiB folio", 10, 5);
	pin_row(arena, 4096, "owner tag", "pin + unpin, with an owner tag", 0, 0);
	folio_row(arena);
	int err = sublet_arena_info(arena, &info);
	if (err)
		bench_fail("sublet_arena_info", err);
	double percent = 100.0 * (double)info.metadata_bytes / (double)(info.area_bytes + info.normal_bytes);
	bench_add((struct bench_row){ .name = "metadata, of managed memory",
				      .unit = "percent",
				      .must = 0.8,
				      .goal = 0.4,
				      .reference = "kernel struct page: 1.6" },
		  &percent, 1);
	if (sublet_arena_destroy(arena))
		bench_fail("destroy the arena", -1);
}
