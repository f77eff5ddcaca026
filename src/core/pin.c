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
 *   read entry -> folio F                   F.ref: 0 -> FROZEN, unless there are pins
 *   F.ref: +1, unless FROZEN                block accesses
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
#include "core/call.h"

#include <sublet/notifier.h>
#include <sublet/pin.h>

#include <errno.h>

#define PIN_FLAGS ((uint32_t)(SUBLET_PIN_READ | SUBLET_PIN_WRITE | SUBLET_PIN_NOWAIT | SUBLET_PIN_LONGTERM))
#define PIN_SLOW  1 /* the fast path could not decide */
#define PIN_NONE  2 /* ordinary memory: nothing to count */

#define PIN_HAS_PLAIN ((uint32_t)1 << 31) /* in struct sublet_pin: some of it was ordinary memory */

/*
 * Try to pin the folio under vpn; *next becomes the first page after it. 0, PIN_NONE, PIN_SLOW, -EFAULT, -EBUSY,
 * ENGINE_SHARED. What the program protected stays private when the child is gone, and is -EBUSY for good.
 */
static int folio_pin(struct sublet_mm *mm, uint32_t vpn, uint32_t write, uint32_t *next)
{
	struct sublet_arena *arena = mm->arena;
	uint32_t pte = a32_load_acquire(&mm->pte[vpn]); /* pairs with segment_publish and run_publish */
	int err;

	if (!(pte & PTE_PRESENT) || (pte & PTE_HOLE))
		return pte == PTE_PLAIN ? (*next = vpn + 1, PIN_NONE) : -EFAULT;
	uint32_t head = sublet__frame_head(arena, pte_pfn(pte));
	if (head == ENGINE_NONE)
		return PIN_SLOW;
	struct sublet__frame *f = &arena->frames[head];
	err = ref_take(f, 1, REF_SHORT_MASK, write);
	if (err)
		return err == -EAGAIN ? PIN_SLOW : err;

	uint32_t word = a32_load_acquire(&f->word);
	if ((a32_load_seq_cst(&mm->pte[vpn]) & ~PTE_FLAGS) != (pte & ~PTE_FLAGS) || !(word & FRAME_HEAD) ||
	    word_state(word) != FRAME_MOVABLE || head + (1u << word_order(word)) <= pte_pfn(pte))
		err = PIN_SLOW;
	else if (word & FRAME_HELD)
		err = (word & FRAME_PROTECTED) ? -EBUSY : ENGINE_SHARED;
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
		ref_drop(f, 1, REF_SHORT_MASK);
		vpn = next;
	}
}

/* All or nothing; *flags gets PIN_HAS_PLAIN. */
static int pages_pin(struct sublet_mm *mm, uint32_t vpn, uint32_t pages, uint32_t *flags)
{
	uint32_t write = (*flags & SUBLET_PIN_WRITE) ? REF_WRITTEN : 0;

	for (uint32_t at = vpn, next = vpn; at < vpn + pages; at = next) {
		int err = folio_pin(mm, at, write, &next);
		if (err == PIN_SLOW)
			err = folio_pin_slow(mm, at, write, *flags & SUBLET_PIN_NOWAIT, &next);
		if (err == PIN_NONE) {
			*flags |= PIN_HAS_PLAIN;
		} else if (err) {
			pages_unpin(mm, vpn, at);
			return err;
		}
	}
	return 0;
}

static int pin_long(struct sublet_mm *mm, uint32_t vpn, uint32_t pages, struct sublet_pin *pin,
		    const char *owner)
{
	uint32_t shift = frames_bytes_shift(mm->arena);
	uint64_t limit = a64_load_relaxed(&mm->longterm_limit_pages);
	uint64_t used;
	int err = -ENOSPC;

	/* One that does not fit is never counted: it would stand in the way of others that do. */
	if (!a64_add_below_relaxed(&mm->longterm_pages, pages, limit, &used)) {
		pin->longterm_bytes = used << shift;
		pin->longterm_limit_bytes = limit << shift;
		return -ENOMEM;
	}
	pin->record = sublet__pin_list_add(mm, pin->addr, pin->bytes, pin->flags, owner ? owner : "pin");
	if (pin->record == PIN_UNLISTED)
		goto uncharge;
	err = sublet__longterm_pin(mm, vpn, pages, pin->flags);
	if (!err)
		return 0;
	(void)sublet__pin_list_remove(mm->arena, pin->record);
uncharge:
	a64_sub_relaxed(&mm->longterm_pages, pages);
	return err;
}

static inline int pin_try(struct sublet_pin *pin, struct sublet_mm *mm, const char *owner)
{
	uint32_t vpn = (uint32_t)pin->first, pages = (uint32_t)pin->pages;

	return (pin->flags & SUBLET_PIN_LONGTERM) ? pin_long(mm, vpn, pages, pin, owner)
						  : pages_pin(mm, vpn, pages, &pin->flags);
}

/* A child of fork() shares some of it: most children exec, or end, at once. */
static int pin_beside_child(struct sublet_pin *pin, struct sublet_mm *mm, const char *owner,
			    uint64_t until_ns)
{
	const struct sublet__platform *p = &mm->arena->platform;
	struct sublet__backoff backoff = { 0 };
	int err = ENGINE_SHARED;
	uint64_t now = engine_now(mm->arena);

	if (!until_ns)
		until_ns = now + ENGINE_CHILD_NS;
	for (; err == ENGINE_SHARED && !(pin->flags & SUBLET_PIN_NOWAIT) && now < until_ns;
	     now = engine_now(mm->arena)) {
		backoff_sleep(p, &backoff, now, until_ns);
		err = pin_try(pin, mm, owner);
	}
	return err == ENGINE_SHARED ? -EBUSY : err;
}

/*
 * The gate. Short pins of several threads that overlap leave no moment in which a folio has none: whoever waits for that
 * (a claim, a long-term pin, fork) would wait for ever (G10). So after a while he holds new pins of those pages off, and the
 * ones that are there end. But not for ever either: whoever holds a pin may need another one to end it.
 *
 *   waited for    0 .. 2 ms   .. 250 ms    .. 500 ms   .. 750 ms   ...
 *   new pins      go in       are held off   go in       are held off
 *
 * There is one gate in an mm, for the last who asked; whoever finds it moved or open closes it again after his next look.
 * relaxed: nobody relies on it, a pin that slips in is waited for.
 */
#define GATE_AFTER_NS (2 * SUBLET_MS)

void sublet__pins_hold_off(struct sublet_mm *mm, uint32_t vpn, uint32_t pages, uint64_t waited_ns)
{
	bool is_closed = waited_ns >= GATE_AFTER_NS && waited_ns / ENGINE_GATE_NS % 2 == 0;

	a64_store_relaxed(&mm->pin_gate, is_closed ? (uint64_t)vpn << 32 | (vpn + pages) : 0);
}

void sublet__pins_let_in(struct sublet_mm *mm)
{
	a64_store_relaxed(&mm->pin_gate, 0);
}

static inline bool gate_is_closed(const struct sublet_mm *mm, uint32_t vpn, uint32_t pages)
{
	uint64_t gate = a64_load_relaxed(&mm->pin_gate);

	return gate && vpn < (uint32_t)gate && vpn + pages > gate >> 32;
}

/* Wait in front of the gate. *until_ns: how long a child of a fork may be waited for as well. */
static int pin_at_gate(const struct sublet_pin *pin, const struct sublet_mm *mm, uint64_t *until_ns)
{
	const struct sublet__platform *p = &mm->arena->platform;

	if (pin->flags & SUBLET_PIN_NOWAIT)
		return -EAGAIN;
	struct sublet__backoff backoff = { 0 };
	uint64_t now = engine_now(mm->arena);
	*until_ns = now + ENGINE_CHILD_NS;
	for (; gate_is_closed(mm, (uint32_t)pin->first, (uint32_t)pin->pages) && now < *until_ns;
	     now = engine_now(mm->arena))
		backoff_sleep(p, &backoff, now, *until_ns);
	return 0;
}

int sublet_pin(struct sublet_mm *mm, const void *addr, uint64_t bytes, uint32_t flags, const char *owner,
	       struct sublet_pin *pin)
{
	uint32_t vpn, pages;
	int err = pin ? call_mm(mm) : -EINVAL;

	if (pin)
		pin->mm = NULL;
	if (err)
		return err;
	pin->longterm_bytes = pin->longterm_limit_bytes = 0;
	if (!(flags & (SUBLET_PIN_READ | SUBLET_PIN_WRITE)) || (flags & ~PIN_FLAGS) ||
	    sublet__mm_range(mm, addr, bytes, &vpn, &pages))
		return -EINVAL;
	*pin = (struct sublet_pin){ .first = vpn,
				    .pages = pages,
				    .record = PIN_UNLISTED,
				    .flags = flags,
				    .addr = (uint64_t)(uintptr_t)addr,
				    .bytes = bytes };
	uint64_t until_ns = 0;
	err = gate_is_closed(mm, vpn, pages) ? pin_at_gate(pin, mm, &until_ns) : 0;
	if (!err)
		err = pin_try(pin, mm, owner);
	if (err == ENGINE_SHARED)
		err = pin_beside_child(pin, mm, owner, until_ns);
	if (err)
		return err;
	if (owner && !(flags & SUBLET_PIN_LONGTERM))
		pin->record = sublet__pin_list_add(mm, pin->addr, bytes, flags, owner);
	if (pin->flags & PIN_HAS_PLAIN)
		a64_add_relaxed(&mm->plain_pins, 1);
	pin->mm = mm;
	return 0;
}

int sublet_unpin(struct sublet_pin *pin)
{
	struct sublet_mm *mm = pin ? pin->mm : NULL;
	int err = call_mm(mm);

	if (err)
		return err;
	uint32_t vpn = (uint32_t)pin->first, pages = (uint32_t)pin->pages;
	if (!pages)
		return -EINVAL;
	pin->mm = NULL;
	if (pin->record != PIN_UNLISTED && !sublet__pin_list_remove(mm->arena, pin->record))
		return -EINVAL; /* a copy of a pin that is gone */
	if (!(pin->flags & SUBLET_PIN_LONGTERM)) {
		pages_unpin(mm, vpn, vpn + pages);
		if (pin->flags & PIN_HAS_PLAIN)
			a64_sub_relaxed(&mm->plain_pins, 1);
		return 0;
	}
	sublet__longterm_unpin(mm, vpn, pages);
	a64_sub_relaxed(&mm->longterm_pages, pages);
	return 0;
}

void sublet_pin_limit(struct sublet_mm *mm, uint64_t bytes)
{
	if (call_mm(mm))
		return;
	a64_store_relaxed(&mm->longterm_limit_pages, bytes >> frames_bytes_shift(mm->arena));
}

/* ---- where the bytes are ---- */

/*
 * Where pages [vpn, end) begin to be, for as long as nothing moves them: *pfn, and as the answer how many of them are
 * one after the other in one folio; or -errno. Under a pin a folio may be HELD for an instant, by a fork_begin that is about
 * to see the pin and to back out.
 */
static int pages_find(struct sublet_mm *mm, uint32_t vpn, uint32_t end, bool is_pinned, uint32_t *pfn)
{
	struct sublet_arena *arena = mm->arena;
	/* pairs with segment_publish and run_publish */
	uint32_t pte = a32_load_acquire(&mm->pte[vpn]), n = 1;

	if (!(pte & PTE_PRESENT) || (pte & PTE_HOLE))
		return -EFAULT;
	*pfn = pte_pfn(pte);
	uint32_t head = sublet__frame_head(arena, *pfn);
	if (head == ENGINE_NONE)
		return -EAGAIN;
	uint32_t word = a32_load_acquire(&arena->frames[head].word),
		 ref = a32_load_acquire(&arena->frames[head].ref);
	if (word_state(word) == FRAME_DISCARDABLE)
		return -EFAULT;
	if (word_state(word) != FRAME_MOVABLE || (ref & REF_FROZEN))
		return -EAGAIN;
	if ((word & FRAME_HELD) && !is_pinned)
		return -EBUSY;
	uint32_t most = min_u32(end - vpn, max_u32(head + (1u << word_order(word)), *pfn + 1) - *pfn);
	while (n < most && (a32_load_acquire(&mm->pte[vpn + n]) & ~(PTE_FLAGS & ~(PTE_PRESENT | PTE_HOLE))) ==
				   pte_make(*pfn + n, 0))
		n++;
	return (int)n;
}

/* Fill in extents of [addr + from, addr + bytes). What is in the way of the first one is the answer. */
static int extents_fill(struct sublet_mm *mm, uint64_t addr, uint64_t bytes, uint64_t from, bool is_pinned,
			struct sublet_extent *extents, uint32_t count)
{
	uint32_t shift = frames_bytes_shift(mm->arena), n = 0, pfn;
	uint64_t page_bytes = 1ull << shift, base = mm->config.base, end = addr + bytes;
	uint32_t end_vpn = (uint32_t)((end - base + page_bytes - 1) >> shift);

	for (uint64_t at = addr + from; at < end;) {
		uint32_t vpn = (uint32_t)((at - base) >> shift);
		int pages = pages_find(mm, vpn, end_vpn, is_pinned, &pfn);
		if (pages < 0)
			return n ? (int)n : pages;
		uint64_t next = base + ((uint64_t)(vpn + (uint32_t)pages) << shift);
		uint64_t offset = ((uint64_t)pfn << shift) + (at & (page_bytes - 1));
		next = next < end ? next : end;
		if (n && extents[n - 1].offset_bytes + extents[n - 1].bytes == offset)
			extents[n - 1].bytes += next - at;
		else if (n < count)
			extents[n++] = (struct sublet_extent){ offset, next - at };
		else
			break;
		at = next;
	}
	return (int)n;
}

int sublet_pin_extents(const struct sublet_pin *pin, uint64_t from_bytes, struct sublet_extent *extents,
		       uint32_t count)
{
	int err = pin && extents ? call_mm(pin->mm) : -EINVAL;

	if (err)
		return err;
	if (from_bytes > pin->bytes || !count || count > INT32_MAX)
		return -EINVAL;
	return extents_fill(pin->mm, pin->addr, pin->bytes, from_bytes, true, extents, count);
}

int sublet_mm_extents(struct sublet_mm *mm, const void *addr, uint64_t bytes, uint64_t from_bytes,
		      struct sublet_extent *extents, uint32_t count)
{
	uint32_t vpn, pages;
	int err = extents ? call_mm(mm) : -EINVAL;

	if (err)
		return err;
	if (sublet__mm_range(mm, addr, bytes, &vpn, &pages) || from_bytes > bytes || !count ||
	    count > INT32_MAX)
		return -EINVAL;
	return extents_fill(mm, (uint64_t)(uintptr_t)addr, bytes, from_bytes, false, extents, count);
}
