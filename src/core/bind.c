/* SPDX-License-Identifier: MIT */
/*
 * The translations of buffer objects: made when a job needs them, taken away when the memory is about to change.
 *
 * A tracked bo is bound without a pin, by the collision-retry sequence of sublet/notifier.h. It races with a move:
 *
 *   bind                                    move
 *   ----                                    ----
 *   read_begin -> seq
 *   walk the page table -> extents          invalidation begins: read_retry(seq) is true from here on
 *   lock the device                         callback: lock the device
 *     read_retry(seq)? start again            clear [what it covers], flush
 *     fill                                  unlock
 *   unlock                                  copy, remap: other frames
 *                                           invalidation ends
 *
 * Whichever comes second at the lock: the callback finds the translation and clears it, or bind finds the
 * invalidation and throws its extents away. So no translation outlives the callback (G4).
 *
 * Large bos are bound a piece at a time, each with a sequence of its own. What is bound already stays bound, and what is
 * not is a gap: a move clears only what it moves, and binding again fills in only the gaps. A gap never has a
 * translation in it; the other way round each page outside of the gaps of a bound bo has one.
 *
 * The gate. A move that meets a bo in use declines, and comes back a little later. A device that submits its next
 * job the moment that one is done would be in use at every look; so a callback that declines closes the bo to new jobs for
 * a lease, and those in flight drain. From there on:
 *
 *   the move comes back    in use still: declined again, the lease is renewed. Idle: cleared; but the run that moves may
 *                          have other bos in it, in use at other moments, and one that declines makes the move back out.
 *                          So the gate stays closed, and the lease is renewed, until all are idle at one look (G10).
 *   it goes through        seen by the memory being elsewhere than when the bo was cleared. The gate opens a moment after,
 *                          so that the neighbouring runs of the same claim find the bo idle.
 *   it never comes back    the lease ends.
 *
 * No gate stays closed for longer than GATE_MOST_NS without a job in between, whoever comes (G7).
 */
#include "core/device.h"

#include <errno.h>

#define BIND_EXTENTS      64u              /* of one piece */
#define GATE_LEASE_NS     (20 * SUBLET_MS) /* longer than a claim takes to come back */
#define GATE_NEXT_NS      (1 * SUBLET_MS)  /* from a move that went through to its neighbour */
#define GATE_NEXT_MOST_NS (50 * SUBLET_MS) /* in all, for moves that go through */
#define GATE_MOST_NS      (1 * SUBLET_SEC) /* in all; as long as a claim waits by default */
#define LOCK_LOOKS        2000u            /* some microseconds: most who hold the lock are done by then */
#define PAGE_BYTES        SUBLET_IOPT_PAGE_BYTES

/* ---- bound bos by their last use ---- */

static void lru_remove(struct sublet__bo *bo)
{
	struct sublet_device *device = bo->device;

	if (bo->lru_prev == ENGINE_NONE)
		device->lru_head = bo->lru_next;
	else
		device->bo[bo->lru_prev].lru_next = bo->lru_next;
	if (bo->lru_next == ENGINE_NONE)
		device->lru_tail = bo->lru_prev;
	else
		device->bo[bo->lru_next].lru_prev = bo->lru_prev;
}

static void lru_add(struct sublet__bo *bo)
{
	struct sublet_device *device = bo->device;

	bo->lru_prev = device->lru_tail;
	bo->lru_next = ENGINE_NONE;
	if (device->lru_tail == ENGINE_NONE)
		device->lru_head = bo_slot(bo);
	else
		device->bo[device->lru_tail].lru_next = bo_slot(bo);
	device->lru_tail = bo_slot(bo);
}

void sublet__bo_touch(struct sublet__bo *bo)
{
	if (!bo_is_listed(bo))
		return;
	lru_remove(bo);
	lru_add(bo);
}

/* ---- gaps ---- */

/* [from, end) of the first gap was filled in, from its beginning on. */
static void gap_fill(struct sublet__bo *bo, uint64_t end)
{
	bo->gap[0].from = end;
	if (end < bo->gap[0].end)
		return;
	bo->gaps--;
	for (uint32_t i = 0; i < bo->gaps; i++)
		bo->gap[i] = bo->gap[i + 1];
}

/* One gap too many: join the two that are nearest. What lies between them becomes a gap too: *join. */
static void gaps_join(struct sublet__bo *bo, struct sublet__gap *join)
{
	uint32_t best = 0;

	for (uint32_t i = 1; i + 1 < bo->gaps; i++)
		if (bo->gap[i + 1].from - bo->gap[i].end < bo->gap[best + 1].from - bo->gap[best].end)
			best = i;
	*join = (struct sublet__gap){ bo->gap[best].end, bo->gap[best + 1].from };
	bo->gap[best].end = bo->gap[best + 1].end;
	bo->gaps--;
	for (uint32_t i = best + 1; i < bo->gaps; i++)
		bo->gap[i] = bo->gap[i + 1];
}

/*
 * [from, end) becomes a gap. False: it was one already. *join is more that is to be cleared, to keep gaps few;
 * from and end of it are equal where there is nothing.
 */
static bool gap_add(struct sublet__bo *bo, uint64_t from, uint64_t end, struct sublet__gap *join)
{
	uint32_t first = 0, after;

	*join = (struct sublet__gap){ 0, 0 };
	while (first < bo->gaps && bo->gap[first].end < from)
		first++;
	if (first < bo->gaps && bo->gap[first].from <= from && end <= bo->gap[first].end)
		return false;
	for (after = first; after < bo->gaps && bo->gap[after].from <= end; after++) {
		from = bo->gap[after].from < from ? bo->gap[after].from : from;
		end = bo->gap[after].end > end ? bo->gap[after].end : end;
	}
	uint32_t gone = after - first; /* gaps that are part of the new one */
	if (!gone)
		for (uint32_t i = bo->gaps; i > first; i--)
			bo->gap[i] = bo->gap[i - 1];
	else
		for (uint32_t i = after; i < bo->gaps; i++)
			bo->gap[i - gone + 1] = bo->gap[i];
	bo->gaps = bo->gaps - gone + 1;
	bo->gap[first] = (struct sublet__gap){ from, end };
	if (bo->gaps > BO_GAPS)
		gaps_join(bo, join);
	return true;
}

/* ---- taking away ---- */

static void bo_evicted(struct sublet__bo *bo)
{
	bo->was_evicted = true;
	bo->evictions++;
}

void sublet__bo_unbind(struct sublet__bo *bo)
{
	struct sublet_device *device = bo->device;

	if (!bo_is_listed(bo))
		return;
	if (device->iopt)
		(void)!sublet_iopt_unmap(device->iopt, bo->iova, bo->span, 0); /* exactly what was mapped */
	else
		device->ops.detach(device->ctx, bo_slot(bo));
	lru_remove(bo);
	bo->is_bound = false;
	bo->gaps = 0;
}

void sublet__device_unbind_all(struct sublet_device *device)
{
	for (uint32_t i = device->lru_head; i != ENGINE_NONE;) {
		struct sublet__bo *bo = &device->bo[i];
		i = bo->lru_next;
		if (!bo->lost) /* else by whoever completes the last of its jobs (core/job.c) */
			sublet__bo_unbind(bo);
	}
}

/* Remove the translation of [from, end); no job uses it. When it returns the device has forgotten it (G4). */
static void bo_clear(struct sublet__bo *bo, uint64_t from, uint64_t end)
{
	struct sublet_device *device = bo->device;
	struct sublet__gap join;

	if (!bo->is_bound)
		return;
	if (!device->iopt) {
		sublet__bo_unbind(bo);
	} else {
		if (!gap_add(bo, from, end, &join))
			return;
		/* inside its mapping */
		(void)!sublet_iopt_clear(device->iopt, bo->iova + from, end - from, 0);
		if (join.from < join.end)
			(void)!sublet_iopt_clear(device->iopt, bo->iova + join.from, join.end - join.from, 0);
	}
	bo_evicted(bo);
	device->count.evictions++;
}

/* Evict the idle bo that was used least recently, and is not one of `own`. False: there is none. */
static bool room_make(struct sublet_device *device, const uint64_t *own, uint32_t own_count)
{
	for (uint32_t i = device->lru_head; i != ENGINE_NONE; i = device->bo[i].lru_next) {
		struct sublet__bo *bo = &device->bo[i];
		bool is_own = false;
		for (uint32_t n = 0; n < own_count; n++)
			is_own |= own[n] == bo_id(bo);
		if (bo->jobs || is_own)
			continue;
		sublet__bo_unbind(bo);
		bo_evicted(bo);
		device->count.evictions_lru++;
		return true;
	}
	return false;
}

/* ---- the gate ---- */

/* Where the page at `at` is; BO_NOWHERE: it is not, or nobody can say at this moment. */
static uint64_t page_offset(const struct sublet__bo *bo, uint64_t at)
{
	const void *addr = (const void *)(uintptr_t)(bo->base + at);
	struct sublet_extent extent;

	return sublet_mm_extents(bo->mm, addr, PAGE_BYTES, 0, &extent, 1) == 1 ? extent.offset_bytes
									       : BO_NOWHERE;
}

/* The move for which the bo was cleared behind its gate went through. */
static bool gate_is_over(const struct sublet__bo *bo)
{
	return page_offset(bo, bo->gate_at) != bo->gate_offset;
}

/* Hold off new jobs, or hold them off longer. */
static void gate_close(struct sublet__bo *bo, uint64_t now_ns)
{
	if (bo->gate_until_ns <= now_ns)
		bo->gate_offset = BO_NOWHERE;
	if (!bo->gate_since_ns)
		bo->gate_since_ns = now_ns;
	if (now_ns - bo->gate_since_ns < GATE_MOST_NS)
		bo->gate_until_ns = time_after(now_ns, GATE_LEASE_NS);
}

/* A move comes to a bo whose gate is closed, and that is idle: about to be cleared, `from` on. */
static void gate_pass(struct sublet__bo *bo, uint64_t from, uint64_t now_ns)
{
	bool was_over = bo->gate_offset != BO_NOWHERE && gate_is_over(bo);

	if (!was_over)
		gate_close(bo, now_ns);
	else if (now_ns - bo->gate_since_ns < GATE_NEXT_MOST_NS)
		bo->gate_until_ns = time_after(now_ns, GATE_NEXT_NS);
	else
		bo->gate_until_ns = 0;
	bo->gate_at = from;
	bo->gate_offset = page_offset(bo, from);
	bo->gate_passed_ns = now_ns;
	sublet__device_pulse(bo->device); /* who waits for the gate waits for something else now */
}

uint64_t sublet__bo_gate(struct sublet__bo *bo, uint64_t now_ns)
{
	if (bo->blocking)
		return UINT64_MAX;
	if (bo->gate_until_ns <= now_ns)
		return 0;
	if (bo->gate_offset == BO_NOWHERE)
		return bo->gate_until_ns;
	uint64_t next_ns = bo->gate_passed_ns + GATE_NEXT_NS;
	if (now_ns >= next_ns && gate_is_over(bo)) {
		bo->gate_until_ns = 0;
		return 0;
	}
	next_ns = now_ns < next_ns ? next_ns
				   : now_ns + GATE_NEXT_NS; /* nobody says when a move ends: look again */
	return next_ns < bo->gate_until_ns ? next_ns : bo->gate_until_ns;
}

/* ---- the notifier's callback ---- */

static bool lock_try_long(struct sublet_device *device)
{
	for (uint32_t i = 0; i < LOCK_LOOKS; i++)
		if (!lock_is_held(&device->lock) && lock_try(&device->lock))
			return true;
	return false;
}

/* Whether its translation may not be touched now: jobs use it, or the backend is in the middle of a call. */
static bool bo_is_busy(const struct sublet__bo *bo)
{
	return bo->jobs || (bo->device->is_resetting && !bo->device->iopt);
}

/* Wait for the jobs in flight, each to its deadline at most; new ones wait meanwhile. */
static void bo_drain(struct sublet__bo *bo)
{
	struct sublet_device *device = bo->device;

	bo->blocking++;
	while (bo->jobs > bo->lost || (device->is_resetting && !device->iopt))
		sublet__device_wait(device, &device->pulse, UINT64_MAX);
	bo->blocking--;
	sublet__device_pulse(device);
}

static int bo_invalidate(void *ctx, const struct sublet_invalidation *inv)
{
	struct sublet__bo *bo = ctx;
	struct sublet_device *device = bo->device;
	uint64_t inv_end = inv->addr + inv->bytes, bo_end = bo->base + bo->span;
	uint64_t from = inv->addr > bo->base ? inv->addr - bo->base : 0;
	uint64_t end = (inv_end < bo_end ? inv_end : bo_end) - bo->base;
	bool is_last = inv->event == SUBLET_NOTIFIER_UNMAP || inv->event == SUBLET_NOTIFIER_EXIT;

	if (inv->may_block)
		device_lock(device);
	else if (!lock_try_long(device))
		return -EAGAIN;
	uint64_t now = engine_now(device->arena);
	if (!inv->may_block && bo_is_busy(bo)) {
		if (!bo->is_collapsing)
			gate_close(bo, now);
		device_unlock(device);
		return -EAGAIN;
	}
	if (!inv->may_block && bo->gate_until_ns > now)
		gate_pass(bo, from, now);
	/* What is mapped there next may be somebody else's: jobs fail from here on. */
	bo->is_dead |= is_last;
	if (inv->may_block)
		bo_drain(bo);
	/* What a device that cannot be stopped still uses does not go. Where it only changes, it is past helping. */
	int err = bo->lost ? -EBUSY : 0;
	if (!err)
		bo_clear(bo, from, end);
	device_unlock(device);
	return err;
}

const struct sublet_notifier_ops sublet__bo_notifier_ops = {
	SUBLET_OPTIONS(sublet_notifier_ops),
	.invalidate = bo_invalidate,
};

/* ---- binding ---- */

/* Whether [at, at + bytes) has an aligned piece of `piece_bytes` in it. */
static bool has_piece(uint64_t at, uint64_t bytes, uint64_t piece_bytes)
{
	uint64_t first = (at + piece_bytes - 1) & ~(piece_bytes - 1);

	return first - at <= bytes && bytes - (first - at) >= piece_bytes;
}

/*
 * Iova space for a bo, in step with its addresses (a claim's: with its frames) so that large entries fit; out of step
 * where there is only such room.
 */
static int iova_take(struct sublet__bo *bo)
{
	static const uint64_t step[] = { SUBLET_GIB, 2 * SUBLET_MIB, PAGE_BYTES };
	uint32_t flags = SUBLET_IOPT_READ | ((bo->flags & SUBLET_BO_READONLY) ? 0 : SUBLET_IOPT_WRITE);
	int err = -ENOSPC;

	for (uint32_t i = 0; i < 3 && err == -ENOSPC; i++) {
		if (step[i] > PAGE_BYTES && !has_piece(bo->base, bo->span, step[i]))
			continue;
		bo->iova = SUBLET_IOVA_ANY;
		err = sublet_iopt_map(bo->device->iopt, &bo->iova, bo->span, step[i],
				      bo->base & (step[i] - 1), flags);
	}
	return err;
}

/* Where a bo that is not bound gets its room; the translation comes later. */
static int room_take(struct sublet__bo *bo, const uint64_t *own, uint32_t own_count)
{
	int err;

	do
		err = iova_take(bo);
	while (err == -ENOSPC && room_make(bo->device, own, own_count));
	if (err)
		return err;
	bo->is_bound = true;
	bo->gaps = 1;
	bo->gap[0] = (struct sublet__gap){ 0, bo->span };
	lru_add(bo);
	return 0;
}

/* Nothing is missing any more. */
static void bo_bound(struct sublet__bo *bo)
{
	if (bo->was_evicted)
		bo->device->count.rebinds++;
	else
		bo->device->count.binds++;
	bo->was_evicted = false;
	bo->binds++;
}

/* Where its memory is, from the beginning of its first gap on: what may be asked with the lock held. */
static int extents_known(struct sublet__bo *bo, struct sublet_extent *extent)
{
	uint64_t from = bo->gap[0].from;

	if (bo->flags & SUBLET_BO_PINNED)
		return sublet_pin_extents(&bo->pin, from, extent, BIND_EXTENTS);
	extent[0] = (struct sublet_extent){ bo->base + from, bo->span - from };
	return 1;
}

static int extents_fill(struct sublet__bo *bo, const struct sublet_extent *extent, int count)
{
	uint64_t from = bo->gap[0].from, end = from;

	if (count <= 0)
		return count ? count : -EFAULT;
	for (int i = 0; i < count; i++)
		end += extent[i].bytes;
	int err = sublet_iopt_fill(bo->device->iopt, bo->iova + from, extent, (uint32_t)count, 0);
	if (err)
		return err;
	gap_fill(bo, end);
	if (!bo->gaps)
		bo_bound(bo);
	return 0;
}

/* Make it known to a device that has no page table. */
static int bo_attach(struct sublet__bo *bo, const uint64_t *own, uint32_t own_count)
{
	struct sublet_device *device = bo->device;
	char *addr = (bo->flags & SUBLET_BO_CLAIMED) ? (char *)device->arena->linear + bo->base
						     : (char *)(uintptr_t)bo->base;
	int err;

	do
		err = device->ops.attach(device->ctx, bo_slot(bo), addr, bo->span);
	while ((err == -ENOSPC || err == -ENOMEM) && room_make(device, own, own_count));
	if (err < 0)
		return err;
	bo->is_bound = true;
	lru_add(bo);
	bo_bound(bo);
	return 0;
}

/*
 * Look up [from, end) of the pages at base: one piece of it, or, for a device without a page table, whether all of it is
 * there. No lock held.
 */
static int extents_look(struct sublet_mm *mm, uint64_t base, uint64_t from, uint64_t end, bool whole,
			struct sublet_extent *extent)
{
	const void *addr = (const void *)(uintptr_t)base;
	int count;

	do {
		count = sublet_mm_extents(mm, addr, end, from, extent, BIND_EXTENTS);
		for (int i = 0; i < count; i++)
			from += extent[i].bytes;
	} while (whole && count > 0 && from < end);
	return count;
}

/* The collision-retry sequence, see the essay. Lock held, dropped meanwhile. */
static int bind_tracked(struct sublet__bo *bo, const uint64_t *own, uint32_t own_count, uint64_t until_ns)
{
	struct sublet_device *device = bo->device;
	struct sublet_notifier notifier = bo->notifier;
	struct sublet_extent extent[BIND_EXTENTS];
	uint64_t id = bo_id(bo), seq, now = engine_now(device->arena);
	uint64_t from = device->iopt ? bo->gap[0].from : 0, end = device->iopt ? bo->gap[0].end : bo->span;
	struct sublet_mm *mm = bo->mm;
	uint64_t base = bo->base;
	int count = 0;

	device_unlock(device);
	int err = sublet_notifier_read_begin(&notifier, until_ns > now ? until_ns - now : 0, &seq);
	if (!err)
		count = extents_look(mm, base, from, end, !device->iopt, extent);
	device_lock(device);
	/* Destroyed, killed or changed meanwhile: whoever asked looks again. */
	bool is_same = device->iopt
			       ? bo->is_bound && bo->gaps && bo->gap[0].from == from && bo->gap[0].end >= end
			       : !bo->is_bound && !device->is_resetting;
	if (sublet__bo_find(device, id) != bo || bo->is_dead || device->is_dead || !is_same)
		return 0;
	if (err)
		return err == -EINVAL ? -EFAULT : err; /* no notifier: its mm has ended */
	if (sublet_notifier_read_retry(&notifier, seq))
		return -EAGAIN;
	if (count <= 0)
		return count ? count : -EFAULT;
	return device->iopt ? extents_fill(bo, extent, count) : bo_attach(bo, own, own_count);
}

int sublet__bo_bind(struct sublet__bo *bo, const uint64_t *own, uint32_t own_count, uint64_t until_ns)
{
	struct sublet_extent extent[BIND_EXTENTS];

	if (bo->device->iopt && !bo->is_bound)
		return room_take(bo, own, own_count);
	if (bo->flags & SUBLET_BO_TRACKED)
		return bind_tracked(bo, own, own_count, until_ns);
	if (!bo->device->iopt)
		return bo_attach(bo, own, own_count);
	return extents_fill(bo, extent, extents_known(bo, extent));
}
