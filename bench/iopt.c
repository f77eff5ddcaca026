/* SPDX-License-Identifier: MIT */
/*
 * A device's page table: mapping and filling, clearing and unmapping, translating, splitting, and a table with very many
 * mappings. All in uncontended atomic adds; tables are warm, for the first touch of a table's memory is the kernel's.
 */
#include "bench.h"

#include <sublet/iopt.h>

#include <stdio.h>
#include <stdlib.h>

#define REPEATS 9u
#define WALKS   2000000u
#define MANY    100000u
#define RW      (SUBLET_IOPT_READ | SUBLET_IOPT_WRITE)

static void must(int err, const char *what)
{
	if (err)
		bench_fail(what, err);
}

static struct sublet_iopt *table_open(struct sublet_arena *arena, uint64_t aperture_bytes)
{
	struct sublet_iopt *iopt = NULL;
	struct sublet_iopt_options o = { SUBLET_OPTIONS(sublet_iopt_options),
					 .aperture_bytes = aperture_bytes, .mappings_max = MANY };

	must(sublet_iopt_create(arena, &o, &iopt), "sublet_iopt_create");
	return iopt;
}

static void row_add(const char *name, double *adds, double atomic_ns)
{
	bench_add((struct bench_row){ .name = name,
				      .unit = "atomic adds",
				      .reference = "an uncontended atomic add",
				      .reference_ns = atomic_ns },
		  adds, REPEATS);
}

/* Frames in `pieces` equal pieces, of which no two are neighbours in order when there are several. */
static uint32_t extents_make(struct sublet_extent *e, uint64_t bytes, uint32_t pieces)
{
	for (uint32_t i = 0; i < pieces; i++)
		e[i] = (struct sublet_extent){ (pieces - 1 - i) * (bytes / pieces), bytes / pieces };
	return pieces;
}

struct size {
	const char *map_name, *unmap_name;
	uint64_t bytes;
	uint32_t pieces, count; /* of mappings in one round */
	uint64_t per;           /* figures are for so many operations each */
};

/* Map and fill `count` buffers, then unmap them all (which clears them). */
static void size_rows(struct sublet_arena *arena, const struct size *size)
{
	static struct sublet_extent e[1024];
	static uint64_t iova[1024];
	double map[REPEATS], unmap[REPEATS], atomic = 0;
	struct sublet_iopt *iopt = table_open(arena, 64 * SUBLET_GIB);
	uint32_t pieces = extents_make(e, size->bytes, size->pieces);

	for (uint32_t r = 0; r <= REPEATS; r++) {
		uint32_t slot = r ? r - 1 : 0; /* the first round only warms the table up */
		atomic = bench_atomic_ns();
		double unit = atomic * size->count * (double)size->per;
		uint64_t start = bench_now_ns();
		for (uint32_t i = 0; i < size->count; i++) {
			iova[i] = SUBLET_IOVA_ANY;
			must(sublet_iopt_map(iopt, &iova[i], size->bytes, 0, 0, RW), "sublet_iopt_map");
			must(sublet_iopt_fill(iopt, iova[i], e, pieces, 0), "sublet_iopt_fill");
		}
		uint64_t middle = bench_now_ns();
		for (uint32_t i = 0; i < size->count; i++)
			must(sublet_iopt_unmap(iopt, iova[i], size->bytes, 0), "sublet_iopt_unmap");
		map[slot] = (double)(middle - start) / unit;
		unmap[slot] = (double)(bench_now_ns() - middle) / unit;
	}
	row_add(size->map_name, map, atomic);
	row_add(size->unmap_name, unmap, atomic);
	sublet_iopt_destroy(iopt);
}

/* Random pages of 256 MiB, in entries of one size. */
static void walk_row(struct sublet_arena *arena, const char *name, uint32_t pieces)
{
	static struct sublet_extent e[4096];
	double adds[REPEATS], atomic = 0;
	uint64_t bytes = 256 * SUBLET_MIB, iova = SUBLET_IOVA_ANY, sum = 0, state = 1;
	struct sublet_iopt *iopt = table_open(arena, 64 * SUBLET_GIB);

	must(sublet_iopt_map(iopt, &iova, bytes, 0, 0, RW), "sublet_iopt_map");
	must(sublet_iopt_fill(iopt, iova, e, extents_make(e, bytes, pieces), 0), "sublet_iopt_fill");
	for (uint32_t r = 0; r < REPEATS; r++) {
		atomic = bench_atomic_ns();
		uint64_t start = bench_now_ns();
		for (uint32_t i = 0; i < WALKS; i++) {
			struct sublet_extent at = { 0, 0 };
			state = state * 6364136223846793005ull + 1;
			if (sublet_iopt_translate(iopt, iova + (state >> 36), SUBLET_IOPT_READ, &at))
				bench_fail("sublet_iopt_translate", -1);
			sum += at.offset_bytes;
		}
		adds[r] = (double)(bench_now_ns() - start) / WALKS / atomic;
	}
	if (!sum)
		bench_fail("translations of nothing", -1);
	row_add(name, adds, atomic);
	sublet_iopt_destroy(iopt);
}

/* Clear one page of a large entry, and fill it in again. */
static void split_rows(struct sublet_arena *arena)
{
	enum { ENTRIES = 128 };
	double split[REPEATS], merge[REPEATS], atomic = 0;
	uint64_t iova = SUBLET_IOVA_ANY, bytes = ENTRIES * 2 * SUBLET_MIB;
	struct sublet_iopt *iopt = table_open(arena, 64 * SUBLET_GIB);
	struct sublet_extent all = { 0, bytes };

	must(sublet_iopt_map(iopt, &iova, bytes, 0, 0, RW), "sublet_iopt_map");
	for (uint32_t r = 0; r <= REPEATS; r++) {
		uint32_t slot = r ? r - 1 : 0;
		/* Large entries with nothing below them. */
		must(sublet_iopt_clear(iopt, iova, bytes, 0), "sublet_iopt_clear");
		must(sublet_iopt_fill(iopt, iova, &all, 1, 0), "sublet_iopt_fill");
		atomic = bench_atomic_ns();
		uint64_t start = bench_now_ns();
		for (uint64_t at = 0; at < bytes; at += 2 * SUBLET_MIB)
			must(sublet_iopt_clear(iopt, iova + at, 4096, 0), "sublet_iopt_clear");
		uint64_t middle = bench_now_ns();
		for (uint64_t at = 0; at < bytes; at += 2 * SUBLET_MIB)
			must(sublet_iopt_fill(iopt, iova + at, &(struct sublet_extent){ at, 4096 }, 1, 0),
			     "sublet_iopt_fill");
		split[slot] = (double)(middle - start) / ENTRIES / atomic;
		merge[slot] = (double)(bench_now_ns() - middle) / ENTRIES / atomic;
	}
	row_add("iopt: clear a page of a 2 MiB entry, which splits", split, atomic);
	row_add("iopt: fill it in again, which merges", merge, atomic);
	sublet_iopt_destroy(iopt);
}

/* One mapping more and one less, at random, beside 100,000 of 4 to 256 KiB; a fiftieth has 2 MiB. */
static void many_row(struct sublet_arena *arena)
{
	enum { CHANGES = 100000 };
	double adds[REPEATS], atomic = 0;
	uint64_t state = 1;
	struct sublet_iopt *iopt = table_open(arena, 64 * SUBLET_GIB);
	struct buffer {
		uint64_t iova, bytes;
	} *buffer = calloc(MANY, sizeof *buffer);

	if (!buffer)
		bench_fail("calloc", -12);
	for (uint32_t r = 0; r <= REPEATS; r++) {
		atomic = bench_atomic_ns();
		uint64_t start = bench_now_ns();
		for (uint32_t i = 0; i < CHANGES; i++) {
			state = state * 6364136223846793005ull + 1;
			struct buffer *b = &buffer[r ? (state >> 33) % MANY : i];
			if (b->bytes)
				must(sublet_iopt_unmap(iopt, b->iova, b->bytes, 0), "sublet_iopt_unmap");
			b->bytes = (state >> 20) % 50 ? (1 + (state >> 40) % 64) * 4096 : 2 * SUBLET_MIB;
			b->iova = SUBLET_IOVA_ANY;
			must(sublet_iopt_map(iopt, &b->iova, b->bytes, 0, 0, RW), "sublet_iopt_map");
			must(sublet_iopt_fill(iopt, b->iova, &(struct sublet_extent){ 0, 4096 }, 1, 0),
			     "sublet_iopt_fill");
		}
		adds[r ? r - 1 : 0] = (double)(bench_now_ns() - start) / CHANGES / atomic;
	}
	row_add("iopt: unmap, map, fill a page, 100,000 mappings", adds, atomic);
	free(buffer);
	sublet_iopt_destroy(iopt);
}

void bench_iopt(void)
{
	static const struct size sizes[] = {
		{ "iopt: map + fill 64 KiB", "iopt: clear + unmap 64 KiB", 64 * SUBLET_KIB, 1, 1000, 1 },
		{ "iopt: map + fill 2 MiB", "iopt: clear + unmap 2 MiB", 2 * SUBLET_MIB, 1, 1000, 1 },
		{ "iopt: map + fill 64 MiB", "iopt: clear + unmap 64 MiB", 64 * SUBLET_MIB, 1, 100, 1 },
		{ "iopt: map + fill 1 GiB", "iopt: clear + unmap 1 GiB", SUBLET_GIB, 1, 16, 1 },
		{ "iopt: map + fill 64 MiB in 64 KiB pieces, a 4 KiB page",
		  "iopt: clear + unmap 64 MiB in 64 KiB pieces, a 4 KiB page", 64 * SUBLET_MIB, 1024, 16,
		  16384 },
	};
	struct sublet_arena *arena = bench_arena(SUBLET_BACKING_AUTO, 1024, 256);

	if (!arena)
		return;
	for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
		size_rows(arena, &sizes[i]);
	walk_row(arena, "iopt: translate, 4 KiB entries", 4096);
	walk_row(arena, "iopt: translate, 2 MiB entries", 1);
	split_rows(arena);
	many_row(arena);
	if (sublet_arena_destroy(arena))
		bench_fail("destroy the arena", -1);
}
