/* SPDX-License-Identifier: MIT */
/*
 * Long-term pins: out of every area first, then held there (G3).
 *
 * All of it happens block by block under the block lock, so nothing moves between the move out and the pin, and two
 * that pin the same range at once come one after the other: the second finds the memory in the normal zone and only
 * counts. A folio that reaches beyond the range is cut at its edges, so no more moves than is pinned, and memory beside
 * it, of another mapping perhaps, is not held with it. Short pins in
 * the way are waited for without the lock (their owner may want it), up to a second (G7).
 *
 * The normal zone is also where claims move to. When it is full, movable memory goes back to the area to make room.
 *
 * Fork: memory with a long-term pin stays shared with the device, so it cannot turn private, and a child must not have
 * it at all:
 *
 *   longterm_pin                 fork_begin                          longterm_unpin, the last one of a folio
 *   lock block                   fork_pending++                      lock block
 *   HELD? -EBUSY                 lock block                          fork_pending? leave it uninherited
 *   ref + LONG, not inherited    LONG? leave it alone, else HELD     else inherited again
 *   unlock                       unlock; ... fork                    unlock
 *
 * What is left uninherited is inherited again by the next privatize, remap or map, which all make it anew. So it does not
 * move before the fork is over.
 */
#include "core/engine.h"

#include <sublet/pin.h>

#include <errno.h>

/* ---- moving out; block lock held ---- */

/*
 * The folio of page `at`, and its pages; false: no memory there. A decommitted page has its memory for as long as a pin
 * holds it.
 */
static bool folio_find(const struct sublet_mm *mm, uint32_t at, uint32_t *head, uint32_t *first,
		       uint32_t *end)
{
	uint32_t pte = a32_load_relaxed(&mm->pte[at]);

	if (!(pte & PTE_PRESENT))
		return false;
	*head = sublet__frame_head(mm->arena, pte_pfn(pte));
	*first = a32_load_relaxed(&mm->arena->frames[*head].a);
	*end = *first + (1u << word_order(a32_load_relaxed(&mm->arena->frames[*head].word)));
	return true;
}

/* The folio of page `at`, which may be long-term pinned where it lies: 0 and its pages, or -errno. */
static int folio_look(const struct sublet_mm *mm, uint32_t at, uint32_t *head, uint32_t *first, uint32_t *end)
{
	if ((a32_load_relaxed(&mm->pte[at]) & PTE_HOLE) || !folio_find(mm, at, head, first, end))
		return -EFAULT;
	uint32_t word = a32_load_relaxed(&mm->arena->frames[*head].word);
	if (word_state(word) != FRAME_MOVABLE)
		return -EFAULT;
	return !(word & FRAME_HELD) ? 0 : (word & FRAME_PROTECTED) ? -EBUSY : ENGINE_SHARED;
}

/* What a move that did not succeed is to who pins. */
static int moved_error(int err)
{
	return err == -ENOSPC ? -ENOMEM : err == -EADDRINUSE ? -EBUSY : err;
}

/* Move what of [vpn, vpn + pages) lies in an area to the normal zone. -EAGAIN: something is pinned, or in use. */
static int block_out(struct sublet_mm *mm, uint32_t vpn, uint32_t pages)
{
	struct sublet_arena *arena = mm->arena;
	struct sublet__window_range out = { .first_vpn = vpn,
					    .end_vpn = vpn + pages,
					    .to = MOVE_NORMAL_ONLY };
	uint32_t head, first, end;

	for (uint32_t at = vpn; at < vpn + pages;) {
		int err = folio_look(mm, at, &head, &first, &end);
		if (err)
			return err;
		/* One that is long-term pinned already cannot be cut; all of it is where it should be. */
		bool pinned = a32_load_relaxed(&arena->frames[head].ref) & REF_LONG_MASK;
		if (!pinned && !sublet__mm_cut(mm, first, end, vpn, pages))
			return -EAGAIN;
		if (zone_of(arena, head) == &arena->zone[ZONE_NORMAL]) {
			at = min_u32(end, vpn + pages);
			continue;
		}
		int64_t moved = sublet__move_locked(mm, at, &out);
		if (moved < 0)
			return moved_error((int)moved);
	}
	return 0;
}

/* Give back the references of [vpn, end), whole folios of one block; whether any has none left. */
static bool block_unref(struct sublet_mm *mm, uint32_t vpn, uint32_t end)
{
	uint32_t head, first, next;
	bool last = false;

	for (uint32_t at = vpn; at < end; at = next) {
		if (!folio_find(mm, at, &head, &first, &next)) {
			next = at + 1;
			continue;
		}
		struct sublet__frame *f = &mm->arena->frames[head];
		ref_drop(f, REF_LONG_ONE, REF_LONG_MASK);
		last |= !(a32_load_relaxed(&f->ref) & REF_LONG_MASK);
	}
	return last;
}

/*
 * Whether a child of fork() gets the folios of [vpn, end), but for those that are long-term pinned. Whole folios: the pin
 * that goes last may be of a part of what an earlier one had excluded.
 */
static int block_inherit(struct sublet_mm *mm, uint32_t vpn, uint32_t end, bool inherit)
{
	uint32_t head, first, next;
	int err = 0;

	for (uint32_t at = vpn; at < end && !err; at = next) {
		uint32_t run = at, from = at;
		next = at + 1;
		while (run < end && folio_find(mm, run, &head, &first, &next) &&
		       (!inherit || !(a32_load_relaxed(&mm->arena->frames[head].ref) & REF_LONG_MASK))) {
			from = min_u32(from, first);
			run = next;
		}
		if (run > at)
			err = mm->config.ops->inherit(mm->config.ctx, from, run - from, inherit);
		next = max_u32(next, run);
	}
	return err;
}

/* Pin what lies in the normal zone already. All or nothing. */
static int block_ref(struct sublet_mm *mm, uint32_t vpn, uint32_t pages, uint32_t write)
{
	uint32_t head, first, next, end = vpn + pages;
	int err = 0;

	for (uint32_t at = vpn; at < end; at = next) {
		err = folio_look(mm, at, &head, &first, &next);
		if (!err)
			err = ref_take(&mm->arena->frames[head], REF_LONG_ONE, REF_LONG_MASK, write);
		if (err) {
			(void)block_unref(mm, vpn, at);
			return err;
		}
	}
	err = block_inherit(mm, vpn, end, false);
	if (err) {
		(void)block_unref(mm, vpn, end);
		/* As in range_unpin: what a fork that is under way left out stays out. */
		if (!a32_load_seq_cst(&mm->fork_pending))
			(void)block_inherit(mm, vpn, end, true); /* fewer mappings than a moment ago */
		return err;
	}
	a32_add_relaxed(&mm->mapping_count, ENGINE_EXCLUDED);
	return 0;
}

/* ---- making room ---- */

/* Move movable memory from the normal zone to the area, until about `frames` are free there. False: none would go. */
static bool normal_relieve(struct sublet_arena *arena, uint32_t frames)
{
	const struct sublet__zone *zone = &arena->zone[ZONE_NORMAL];
	struct sublet__window_range back = { .to = MOVE_AREA_ONLY, .nowait = true };
	uint32_t pfn = zone->first_pfn, end = pfn + zone->frames, moved = 0;

	back.first_pfn = pfn;
	back.end_pfn = end;
	while (pfn < end && moved < frames) {
		const struct sublet__frame *f = &arena->frames[pfn];
		uint32_t word = a32_load_acquire(&f->word); /* pairs with run_publish */
		bool candidate = (word & FRAME_HEAD) && word_state(word) == FRAME_MOVABLE &&
				 !(a32_load_relaxed(&f->ref) & REF_COUNT_MASK);
		int64_t done = candidate ? sublet__move_folio(arena, pfn, &back) : 0;
		if (done > 0)
			moved += (uint32_t)done;
		pfn += (word & FRAME_HEAD) ? 1u << word_order(word) : 1;
	}
	return moved > 0;
}

/* ---- the pin ---- */

static int block_pin(struct sublet_mm *mm, uint32_t vpn, uint32_t pages, uint32_t flags, uint64_t until_ns)
{
	struct sublet__lock *lock = block_lock_of(mm, vpn);

	if ((flags & SUBLET_PIN_NOWAIT) ? !lock_try(lock)
					: !lock_take_until(&mm->arena->platform, lock, until_ns))
		return -EAGAIN;
	int err = block_out(mm, vpn, pages);
	if (!err)
		err = block_ref(mm, vpn, pages, (flags & SUBLET_PIN_WRITE) ? REF_WRITTEN : 0);
	engine_unlock(mm->arena, lock);
	return err;
}

static int block_pin_wait(struct sublet_mm *mm, uint32_t vpn, uint32_t pages, uint32_t flags,
			  uint64_t until_ns)
{
	struct sublet_arena *arena = mm->arena;
	const struct sublet__platform *p = &arena->platform;
	uint64_t since_ns = engine_now(arena), now = since_ns;
	int err;

	for (struct sublet__backoff backoff = { 0 };; now = engine_now(arena)) {
		err = block_pin(mm, vpn, pages, flags, until_ns);
		if (err == -ENOMEM && now < until_ns && normal_relieve(arena, pages))
			continue;
		if (err != -EAGAIN || (flags & SUBLET_PIN_NOWAIT) || now >= until_ns)
			break;
		sublet__pins_hold_off(mm, vpn & ~(ENGINE_BLOCK_PAGES - 1), ENGINE_BLOCK_PAGES,
				      now - since_ns);
		backoff_sleep(p, &backoff, now, until_ns);
		sublet__devices_check(arena); /* one that hangs declines until it is reset (G11) */
	}
	if (now > since_ns)
		sublet__pins_let_in(mm);
	return err == -EAGAIN && !(flags & SUBLET_PIN_NOWAIT) ? -EBUSY : err;
}

static void range_unpin(struct sublet_mm *mm, uint32_t vpn, uint32_t end)
{
	for_each_block(at, count, vpn, end) {
		engine_lock(mm->arena, block_lock_of(mm, at));
		bool last = block_unref(mm, at, at + count);
		/* seq_cst: pairs with fork_begin; see the picture above */
		if (last && !a32_load_seq_cst(&mm->fork_pending))
			(void)block_inherit(mm, at, at + count, true); /* refused: a child goes without it */
		a32_sub_relaxed(&mm->mapping_count, ENGINE_EXCLUDED);
		engine_unlock(mm->arena, block_lock_of(mm, at));
	}
}

int sublet__longterm_pin(struct sublet_mm *mm, uint32_t vpn, uint32_t pages, uint32_t flags)
{
	uint64_t until_ns = engine_now(mm->arena) + ENGINE_DEADLINE_NS;

	for_each_block(at, count, vpn, vpn + pages) {
		int err = block_pin_wait(mm, at, count, flags, until_ns);
		if (err) {
			if (at > vpn)
				range_unpin(mm, vpn, at);
			return err;
		}
	}
	return 0;
}

void sublet__longterm_unpin(struct sublet_mm *mm, uint32_t vpn, uint32_t pages)
{
	range_unpin(mm, vpn, vpn + pages);
}
