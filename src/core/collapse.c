/* SPDX-License-Identifier: MIT */
/*
 * Collapse: move together what lies scattered under a tracked bo, so that its next translation has large entries.
 *
 * Moves scatter memory, and each scattered piece costs a device many small entries where one would do. A piece of 2 MiB
 * that is aligned in its addresses, in step with them in iova, and held by small entries is moved as any run is, on
 * condition that it comes out in fewer parts. The move evicts it by the notifier, and the next job finds it in one part.
 *
 * It never disturbs work: a bo in use is passed over, and where a job slips in between, the bo declines the move without
 * closing its gate. Calls share the budget fairly: each goes on where the last one stopped.
 */
#include "core/device.h"

#define PIECE_BYTES (2 * SUBLET_MIB)

/* Whether the piece at `from` of a bound bo has a translation, but no large one. */
static bool piece_is_small(const struct sublet__bo *bo, uint64_t from)
{
	struct sublet_extent extent;

	return !sublet_iopt_translate(bo->device->iopt, bo->iova + from, SUBLET_IOPT_READ, &extent) &&
	       extent.bytes < PIECE_BYTES;
}

/* The next piece of this bo to move, from collapse_from on; false: there is none. Lock held. */
static bool piece_next(struct sublet_device *device, const struct sublet__bo *bo, uint64_t *from)
{
	uint64_t skew = (PIECE_BYTES - bo->base % PIECE_BYTES) % PIECE_BYTES; /* to the first aligned piece */

	if (bo->state != BO_LIVE || !(bo->flags & SUBLET_BO_TRACKED) || !bo->is_bound || bo->jobs ||
	    bo->is_dead || (bo->iova - bo->base) % PIECE_BYTES)
		return false;
	*from = device->collapse_from > skew ? device->collapse_from : skew;
	while (*from + PIECE_BYTES <= bo->span && !piece_is_small(bo, *from))
		*from += PIECE_BYTES;
	return *from + PIECE_BYTES <= bo->span;
}

/* Move the piece at `from`; lock held, dropped meanwhile. Returns the bytes moved. */
static uint64_t piece_move(struct sublet__bo *bo, uint64_t from)
{
	struct sublet_device *device = bo->device;
	struct sublet_arena *arena = device->arena;
	const struct sublet__window_range merge = { .nowait = true,
						    .to = MOVE_AREA_FIRST,
						    .linearise = true };
	struct sublet_mm *mm = bo->mm;
	uint32_t generation = bo->generation;
	uint32_t vpn = (uint32_t)((bo->base + from - mm->config.base) >> frames_bytes_shift(arena));

	bo->is_collapsing = true;
	device_unlock(device);
	int64_t moved = sublet__move_page(mm, vpn, &merge);
	device_lock(device);
	if (bo->generation == generation)
		bo->is_collapsing = false;
	return moved > 0 ? (uint64_t)moved << frames_bytes_shift(arena) : 0;
}

uint64_t sublet_device_collapse(struct sublet_device *device, uint64_t budget_bytes)
{
	uint64_t moved = 0, from;

	if (call_device(device))
		return 0;
	const struct sublet_arena *arena = device->arena;
	/* Where no folio is as large as a piece, moving would not bring one together. */
	if (!device->iopt || (device->limits.large_disabled & 1) ||
	    (1ull << arena->order_max << frames_bytes_shift(arena)) < PIECE_BYTES)
		return 0;
	device_lock(device);
	for (uint32_t n = 0; n <= device->limits.bos_max && moved < budget_bytes;) {
		struct sublet__bo *bo = &device->bo[device->collapse_slot];
		if (piece_next(device, bo, &from)) {
			device->collapse_from = from + PIECE_BYTES;
			uint64_t bytes = piece_move(bo, from);
			device->count.collapsed_bytes += bytes;
			moved += bytes;
			continue;
		}
		device->collapse_slot = (device->collapse_slot + 1) % device->limits.bos_max;
		device->collapse_from = 0;
		n++;
	}
	device_unlock(device);
	return moved;
}
