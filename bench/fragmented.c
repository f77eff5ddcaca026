/* SPDX-License-Identifier: MIT */
/*
 * Claims of an arena that is half full and fragmented at will: filled with objects of 4 to 64 KiB, a random half freed,
 * of the rest some long-term pinned and some bound to a device, wherever they lie. General allocators find no 16 MiB in
 * such a heap: what they gave away stays where it is.
 */
#include "bench.h"

#include <sublet/bo.h>
#include <sublet/claim.h>
#include <sublet/device.h>
#include <sublet/map.h>
#include <sublet/pin.h>

#include <errno.h>

#define HEAP_MIB   256u /* as with the allocators that the rows are compared with */
#define NORMAL_MIB 64u
#define OBJECTS    16384u /* more than there is room for */
#define HOLDERS    512u   /* long-term pins, and bound buffers, at most */
#define TRIALS     10u
#define SIZES      3u
#define CLAIMS     20u /* one after the other: the last ten against the first ten */

struct heap {
	struct sublet_arena *arena;
	struct sublet_device *device;
	uint64_t seed;
	uint32_t objects, pins, bos;
	void *object[OBJECTS];
	uint64_t bytes[OBJECTS];
	struct sublet_pin pin[HOLDERS];
	struct sublet_bo bo[HOLDERS];
};

static void must(int err, const char *what)
{
	if (err)
		bench_fail(what, err);
}

static uint64_t random_next(uint64_t *s)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	*s ^= *s << 17;
	return *s;
}

/* Objects until there is no room; a random half of them goes. */
static void heap_fill(struct heap *h)
{
	struct sublet_mm *mm = sublet_arena_mm(h->arena);
	uint32_t i = 0, kept = 0;

	for (int err = 0; i < OBJECTS && !err; i += !err) {
		h->bytes[i] = 4 * SUBLET_KIB * (1 + random_next(&h->seed) % 16);
		err = sublet_map(mm, h->bytes[i], SUBLET_MOVABLE, &h->object[i]);
		if (err && err != -ENOMEM)
			bench_fail("sublet_map", err);
	}
	for (uint32_t n = 0; n < i; n++) {
		if (random_next(&h->seed) & 1) {
			must(sublet_unmap(mm, h->object[n], h->bytes[n]), "sublet_unmap");
			continue;
		}
		h->object[kept] = h->object[n];
		h->bytes[kept++] = h->bytes[n];
	}
	h->objects = kept;
}

/* One in eight of what is left is pinned for good, one in eight bound to a device by a job that has been done with it. */
static void heap_hold(struct heap *h)
{
	struct sublet_mm *mm = sublet_arena_mm(h->arena);
	struct sublet_job job = { SUBLET_OPTIONS(sublet_job), .op = SUBLET_JOB_SUM };
	struct sublet_fence fence;

	h->pins = h->bos = 0;
	for (uint32_t i = 0; i < h->objects; i++) {
		uint64_t bytes = h->bytes[i];
		if (i % 8 == 0 && h->pins < HOLDERS) {
			must(sublet_pin(mm, h->object[i], bytes, SUBLET_PIN_WRITE | SUBLET_PIN_LONGTERM,
					"bench", &h->pin[h->pins]),
			     "sublet_pin");
			h->pins++;
		} else if (i % 8 == 4 && h->bos < HOLDERS) {
			struct sublet_bo *bo = &h->bo[h->bos++];
			job.bytes = bytes;
			must(sublet_bo_create(h->device, mm, h->object[i], bytes, SUBLET_BO_TRACKED, NULL,
					      bo),
			     "sublet_bo_create");
			must(sublet_submit(h->device, &job, bo, 1, &fence), "sublet_submit");
			must(sublet_fence_wait(&fence, SUBLET_SEC, NULL, NULL), "sublet_fence_wait");
		}
	}
}

static void heap_close(struct heap *h)
{
	for (uint32_t i = 0; i < h->bos; i++)
		must(sublet_bo_destroy(&h->bo[i]), "sublet_bo_destroy");
	for (uint32_t i = 0; i < h->pins; i++)
		must(sublet_unpin(&h->pin[i]), "sublet_unpin");
	sublet_device_close(h->device);
	if (sublet_arena_destroy(h->arena))
		bench_fail("destroy the arena", -1);
}

/* Claim and release the dearest window; its latency in *ns. */
static bool claim_once(struct heap *h, uint64_t bytes, double *ns)
{
	struct sublet_claim_options o = { SUBLET_OPTIONS(sublet_claim_options),
					  .flags = SUBLET_CLAIM_DEAREST };
	struct sublet_claim claim;

	if (sublet_claim(h->arena, bytes, &o, &claim))
		return false;
	*ns = (double)claim.latency_ns;
	must(sublet_release(h->arena, &claim), "sublet_release");
	return true;
}

/* Ten of each size; and how the last ones of many compare with the first. */
static void trial(struct heap *h, double ok[SIZES], double *late)
{
	static const uint64_t want_mib[SIZES] = { 16, 32, 64 };
	double ns[CLAIMS] = { 0 };

	for (uint32_t k = 0; k < SIZES; k++)
		ok[k] += claim_once(h, want_mib[k] * SUBLET_MIB, &ns[0]) ? 100.0 / TRIALS : 0;
	for (uint32_t i = 0; i < CLAIMS; i++)
		(void)claim_once(h, want_mib[0] * SUBLET_MIB, &ns[i]);
	double first = bench_quantile(ns, CLAIMS / 2, 500);
	*late = first > 0 ? bench_quantile(ns + CLAIMS / 2, CLAIMS / 2, 500) / first : 0;
}

void bench_fragmented(void)
{
	static const char *const names[SIZES] = { "claims of 16 MiB that succeed",
						  "claims of 32 MiB that succeed",
						  "claims of 64 MiB that succeed" };
	static struct heap h;
	double ok[SIZES] = { 0 }, late[TRIALS];

	h.seed = 1000;
	for (uint32_t t = 0; t < TRIALS; t++) {
		h.arena = bench_arena(SUBLET_BACKING_MEMFD, HEAP_MIB, NORMAL_MIB);
		if (!h.arena)
			return;
		must(sublet_device_open_soft(h.arena, NULL, &h.device), "sublet_device_open_soft");
		heap_fill(&h);
		heap_hold(&h);
		trial(&h, ok, &late[t]);
		heap_close(&h);
	}
	for (uint32_t k = 0; k < SIZES; k++)
		bench_add((struct bench_row){ .name = names[k],
					      .unit = "%",
					      .must = 100,
					      .goal = 100,
					      .reference = "DPDK, jemalloc, mimalloc, TLSF: 0" },
			  &ok[k], 1);
	bench_add((struct bench_row){ .name = "16 MiB, again and again: the last ten",
				      .unit = "x the first ten",
				      .goal = 1,
				      .reference = "none: of the same arena" },
		  late, TRIALS);
}
