/* SPDX-License-Identifier: MIT */
/*
 * Pins: one reference covers a folio however many of its frames are pinned.
 *
 * The fast path takes no lock and makes no system call. It reads the page-table entry, takes a
 * reference on the folio unless that is frozen, and reads the entry again. Either it or a mover
 * wins (G6):
 *
 *   pin                                     move (block lock held)
 *   ---                                     ----
 *   read entry -> folio F                   block accesses
 *   F.ref: +1, unless FROZEN                F.ref: 0 -> FROZEN, unless there are pins
 *   read entry and F's head again           copy, remap, entry -> F'
 *
 *   +1 before FROZEN: the mover sees the pin, backs out, and comes back later.
 *   FROZEN before +1: the pin takes the slow path and waits for the block lock.
 *   The move was over before +1: F is free or somebody else's. In every state but MOVABLE it is
 *   FROZEN; if it is MOVABLE again, the second look at the entry finds it changed, and the reference
 *   is dropped: for an instant somebody else's folio had a pin too many, which costs a retry at most.
 *
 * A flag "has been pinned" on anything wider than the folio would be one line for all pinning
 * threads to fight over; there is none.
 */
#include "core/engine.h"

#include <sublet/pin.h>

#include <errno.h>

#define PIN_SLOW 1 /* the fast path could not decide */

static bool ref_take(struct sublet__frame *f, uint32_t write, int *err)
{
	uint32_t ref = a32_load_relaxed(&f->ref);

	do {
		if (ref & REF_FROZEN) {
			*err = PIN_SLOW;
			return false;
		}
		if ((ref & REF_COUNT_MASK) == REF_COUNT_MASK) {
			*err = -EBUSY;
			return false;
		}
		/* seq_cst: pairs with ref_freeze; acquire: pairs with segment_publish and run_publish */
	} while (!a32_cas_seq_cst(&f->ref, &ref, (ref + 1) | write));
	return true;
}

/* Try to pin the folio under vpn; *next becomes the first page after it. 0, PIN_SLOW, -EFAULT, -EBUSY. */
static int folio_pin(struct sublet_mm *mm, uint32_t vpn, uint32_t write, uint32_t *next)
{
	struct sublet_arena *arena = mm->arena;
	uint32_t pte = a32_load_acquire(&mm->pte[vpn]); /* pairs with segment_publish and run_publish */
	int err = 0;

	if (!(pte & PTE_PRESENT) || (pte & PTE_HOLE))
		return pte == PTE_PLAIN ? (*next = vpn + 1, 0) : -EFAULT;
	uint32_t head = sublet__frame_head(arena, pte_pfn(pte));
	if (head == ENGINE_NONE)
		return PIN_SLOW;
	struct sublet__frame *f = &arena->frames[head];
	if (!ref_take(f, write, &err))
		return err;

	uint32_t word = a32_load_acquire(&f->word);
	if ((a32_load_seq_cst(&mm->pte[vpn]) & ~PTE_FLAGS) != (pte & ~PTE_FLAGS) || !(word & FRAME_HEAD) ||
	    word_state(word) != FRAME_MOVABLE || head + (1u << word_order(word)) <= pte_pfn(pte))
		err = PIN_SLOW;
	else if (word & FRAME_HELD)
		err = -EBUSY;
	if (err) {
		a32_sub_acq_rel(&f->ref, 1);
		return err;
	}
	*next = a32_load_relaxed(&f->a) + (1u << word_order(word)); /* stable: the folio is pinned */
	return 0;
}

/* The same with the block lock held: nothing moves, so the answer is final. */
static int folio_pin_slow(struct sublet_mm *mm, uint32_t vpn, uint32_t write, bool nowait, uint32_t *next)
{
	struct sublet__lock *lock = block_lock_of(mm, vpn);
	int err;

	if (!lock_try(lock)) {
		if (nowait)
			return -EAGAIN;
		engine_lock(mm->arena, lock);
	}
	err = folio_pin(mm, vpn, write, next);
	engine_unlock(mm->arena, lock);
	/* Still frozen with the lock held: unlocked discardable memory, or a folio about to go. */
	return err == PIN_SLOW ? -EFAULT : err;
}

/*
 * Give a reference back. Ordinary memory under a pin (the arena was full) has none; should its owner have
 * replaced it meanwhile, against the rules, the folio there now is somebody's that we never took.
 */
static void ref_drop(struct sublet__frame *f)
{
	uint32_t ref = a32_load_relaxed(&f->ref);

	/* release: pairs with ref_freeze */
	while (!(ref & REF_FROZEN) && (ref & REF_COUNT_MASK) && !a32_cas_acq_rel(&f->ref, &ref, ref - 1))
		;
}

static void pages_unpin(struct sublet_mm *mm, uint32_t vpn, uint32_t end)
{
	struct sublet_arena *arena = mm->arena;

	while (vpn < end) {
		uint32_t pte = a32_load_relaxed(&mm->pte[vpn]); /* stable: pinned (G2) */
		if (!(pte & PTE_PRESENT)) {
			vpn++;
			continue;
		}
		struct sublet__frame *f = &arena->frames[sublet__frame_head(arena, pte_pfn(pte))];
		uint32_t next = a32_load_relaxed(&f->a) + (1u << word_order(a32_load_relaxed(&f->word)));
		ref_drop(f);
		vpn = next;
	}
}

int sublet_pin(struct sublet_mm *mm, const void *addr, uint64_t bytes, uint32_t flags, struct sublet_pin *pin)
{
	uint32_t vpn, pages, write = (flags & SUBLET_PIN_WRITE) ? REF_WRITTEN : 0;
	bool nowait = flags & SUBLET_PIN_NOWAIT;

	*pin = (struct sublet_pin){ 0 };
	if (!(flags & (SUBLET_PIN_READ | SUBLET_PIN_WRITE)) ||
	    (flags & ~(uint32_t)(SUBLET_PIN_READ | SUBLET_PIN_WRITE | SUBLET_PIN_NOWAIT)) ||
	    sublet__mm_range(mm, addr, bytes, &vpn, &pages))
		return -EINVAL;
	for (uint32_t at = vpn, next = vpn; at < vpn + pages; at = next) {
		int err = folio_pin(mm, at, write, &next);
		if (err == PIN_SLOW)
			err = folio_pin_slow(mm, at, write, nowait, &next);
		if (err) {
			pages_unpin(mm, vpn, at);
			return err;
		}
	}
	*pin = (struct sublet_pin){ .mm = mm, .first = vpn, .pages = pages };
	return 0;
}

int sublet_unpin(struct sublet_pin *pin)
{
	struct sublet_mm *mm = pin->mm;

	if (!mm || !pin->pages)
		return -EINVAL;
	pin->mm = NULL;
	pages_unpin(mm, (uint32_t)pin->first, (uint32_t)(pin->first + pin->pages));
	return 0;
}
