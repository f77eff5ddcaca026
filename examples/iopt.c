/* SPDX-License-Identifier: MIT */
/*
 * A device with a page table of its own: give a buffer an address that the device uses, put frames under it,
 * take some away again, and see what the device sees.
 *
 *   cc iopt.c $(pkg-config --cflags --libs sublet)
 */
#include <sublet/arena.h>
#include <sublet/claim.h>
#include <sublet/iopt.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>

static int fail(const char *what, int err)
{
	fprintf(stderr, "%s: %s\n", what, strerror(-err));
	return 1;
}

/* A device keeps what it walked; this is where it is told to forget. Ours keeps nothing, so it only counts. */
static void forget(void *ctx, uint64_t iova, uint64_t bytes)
{
	printf("flush %llu KiB at iova %#llx\n", (unsigned long long)(bytes / SUBLET_KIB),
	       (unsigned long long)iova);
	++*(int *)ctx;
}

/* What a device does for each access. It should find `offset` of the backing, by an entry of so many bytes from there on. */
static int look(struct sublet_iopt *iopt, uint64_t iova, uint64_t offset, uint64_t bytes)
{
	struct sublet_extent at;
	int err = sublet_iopt_translate(iopt, iova, SUBLET_IOPT_READ | SUBLET_IOPT_WRITE, &at);

	if (err)
		return err;
	printf("iova %#llx: offset %#llx of the backing, %llu KiB by this entry\n", (unsigned long long)iova,
	       (unsigned long long)at.offset_bytes, (unsigned long long)(at.bytes / SUBLET_KIB));
	return at.offset_bytes == offset && at.bytes == bytes ? 0 : -EIO;
}

/* At iova is a large entry, which leads to `offset`. */
static int page_out_and_in(struct sublet_iopt *iopt, uint64_t iova, uint64_t offset)
{
	const struct sublet_extent page = { offset, 4096 };
	/* The page is about to move: its entry is split, and when clear has returned no access to it is left. */
	int err = sublet_iopt_clear(iopt, iova, 4096, 0);

	if (!err && look(iopt, iova, 0, 0) != -EFAULT)
		err = -EIO;
	if (!err)
		err = look(iopt, iova + 4096, offset + 4096, 4096);
	/* Put it back, and the entry is large again. */
	if (!err)
		err = sublet_iopt_fill(iopt, iova, &page, 1, 0);
	return err ? err : look(iopt, iova, offset, 2 * SUBLET_MIB);
}

int main(void)
{
	struct sublet_arena *arena;
	struct sublet_arena_options options = { SUBLET_OPTIONS(sublet_arena_options),
						.area_bytes = 64 * SUBLET_MIB };
	int err = sublet_arena_create(&options, &arena);
	if (err)
		return fail("create an arena (sublet doctor says more)", err);

	/* Frames that stay where they are: here a claim; pinned memory, or tracked, would do as well. */
	struct sublet_claim claim;
	struct sublet_claim_options how = { SUBLET_OPTIONS(sublet_claim_options),
					    .align_bytes = 2 * SUBLET_MIB };
	err = sublet_claim(arena, 8 * SUBLET_MIB, &how, &claim);
	if (err)
		return fail("claim", err);

	/* The device has 1 GiB of addresses. */
	struct sublet_iopt *iopt;
	int flushes = 0;
	struct sublet_iopt_options device = { SUBLET_OPTIONS(sublet_iopt_options),
					      .aperture_bytes = SUBLET_GIB, .flush = forget,
					      .ctx = &flushes };
	err = sublet_iopt_create(arena, &device, &iopt);
	if (err)
		return fail("create a page table", err);

	/* An address range first, anywhere; then the frames under it. They are aligned: four entries of 2 MiB. */
	uint64_t iova = SUBLET_IOVA_ANY, large = 2 * SUBLET_MIB;
	struct sublet_extent frames = { claim.offset_bytes, claim.bytes };
	err = sublet_iopt_map(iopt, &iova, claim.bytes, 0, 0, SUBLET_IOPT_READ | SUBLET_IOPT_WRITE);
	if (!err)
		err = sublet_iopt_fill(iopt, iova, &frames, 1, 0);
	if (!err)
		err = look(iopt, iova, claim.offset_bytes, large);
	if (!err)
		err = look(iopt, iova + large + 4096, claim.offset_bytes + large + 4096, large - 4096);
	if (err)
		return fail("map and fill", err);

	err = page_out_and_in(iopt, iova + large, claim.offset_bytes + large);
	if (err)
		return fail("one page out, and in again", err);

	/* A mapping goes whole, or not at all. */
	if (!sublet_iopt_unmap(iopt, iova, claim.bytes / 2, 0))
		return fail("half a mapping was unmapped", -5);
	err = sublet_iopt_unmap(iopt, iova, claim.bytes, 0);
	if (err)
		return fail("unmap", err);
	if (look(iopt, iova, 0, 0) != -EFAULT)
		return fail("unmapped, and still there", -EIO);
	if (flushes != 2)
		return fail("clear and unmap flush once each", -5);

	sublet_iopt_destroy(iopt);
	err = sublet_release(arena, &claim);
	if (err)
		return fail("release", err);
	err = sublet_arena_destroy(arena);
	return err ? fail("destroy the arena", err) : 0;
}
