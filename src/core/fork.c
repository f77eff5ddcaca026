/* SPDX-License-Identifier: MIT */
/*
 * Fork: lent memory is shared memory underneath, and a child must not write into its parent.
 *
 * Just before the fork every lent mapping turns private at the same frames: ordinary
 * copy-on-write, no copy made. From then on the frames are the child's snapshot. Their folios are
 * HELD: they do not move, and when the parent unmaps them they are PARKED, not freed. When no child
 * shares them any more, the pages the parent wrote meanwhile are copied into the frames, and the
 * mappings are shared again.
 *
 * What a device writes goes to the frame, and would be lost in a snapshot. So a fork waits for short pins, and for
 * devices that decline to let go, up to a deadline that is one for all blocks and mms. A pin that somebody forgot must not
 * end a program: the folios that are still in use then are left out of the child. They stay shared mappings, of which the
 * child inherits nothing, as under a long-term pin (core/longterm.c), and may be pinned and unpinned as ever. A folio turns
 * private only if it has no pin after HELD keeps new ones away, so each folio that is in use is left out. It stays
 * out until the fork has happened, because nothing that is not private moves while fork_pending is set. Children may have
 * it again after the next fork_begin that turns it private, after a move, or at the latest after fork_restore.
 *
 * The race that matters: memory mapped by another thread between fork_begin and the fork itself.
 *
 *   fork_begin                          map                          fork_restore(epoch)
 *   ----------                          ---                          -------------------
 *   epoch++, fork_pending++             lock block B                 lock block B
 *   for each block B:                   fork_pending? private, HELD  fork_pending, or another
 *     lock, privatize, unlock           else shared                  epoch? give up
 *   the fork happens                    unlock                       else restore; unlock
 *   epoch++, fork_pending--
 *
 * fork_pending is set before the first block lock is taken, so whoever comes to a block after
 * fork_begin visited it sees it set, and whoever came before is turned private by the visit.
 */
#include "core/engine.h"

#include <errno.h>

#define RUN_SEGMENTS 64u /* of one call to the platform: small, for the stack of a thread that forks */

struct fork_run {
	struct sublet_mm *mm;
	struct sublet__segment segs[RUN_SEGMENTS];
	uint32_t count;
	uint32_t flags;
	bool by_folio;         /* each folio is a run of its own */
	uint32_t left_out_end; /* the page behind the last folio that was left out */
	uint32_t left_out_mappings;
};

typedef int (*run_fn)(struct fork_run *run);
typedef bool (*folio_wanted)(uint32_t word, uint32_t ref);

static bool wanted_shared(uint32_t word, uint32_t ref)
{
	/* Unlocked discardable memory is not accessible: there is nothing that a child could see. Nor is memory under
	   a long-term pin, which no child inherits (core/longterm.c). */
	return !(word & FRAME_HELD) && word_state(word) == FRAME_MOVABLE && !(ref & REF_LONG_MASK);
}

static bool wanted_held(uint32_t word, uint32_t ref)
{
	(void)ref;
	/* What the program protected stays private until it is unprotected: nobody may read through it. */
	return (word & FRAME_HELD) && !(word & FRAME_PROTECTED);
}

static int run_flush(struct fork_run *run, run_fn fn)
{
	int err = run->count ? fn(run) : 0;
	run->count = 0;
	return err;
}

/* Collect neighbouring wanted folios of one block into runs, and call fn on each. Block lock held. */
static int block_runs(struct fork_run *run, uint32_t vpn, uint32_t pages, folio_wanted wanted, run_fn fn)
{
	struct sublet_arena *arena = run->mm->arena;
	int err = 0;

	run->count = 0;
	for (uint32_t at = vpn; at < vpn + pages && !err;) {
		uint32_t pte = a32_load_relaxed(&run->mm->pte[at]), step = 1;
		uint32_t word = 0;
		bool take = false;
		if (pte & PTE_PRESENT) {
			const struct sublet__frame *f = &arena->frames[pte_pfn(pte)];
			word = a32_load_relaxed(&f->word);
			step = 1u << word_order(word);
			take = wanted(word, a32_load_relaxed(&f->ref));
		}
		uint32_t flags =
			(sublet__mm_flagged(run->mm, at, step, PTE_LOCKED) ? SUBLET__MAP_LOCKED : 0) |
			((word & FRAME_PROTECTED) ? SUBLET__MAP_PROTECTED : 0);
		if (run->count &&
		    (!take || run->by_folio || flags != run->flags || run->count == RUN_SEGMENTS))
			err = run_flush(run, fn);
		if (take && !err) {
			struct sublet__segment *last = run->count ? &run->segs[run->count - 1] : NULL;
			run->flags = flags;
			if (last && last->dst_pfn + last->pages == pte_pfn(pte))
				last->pages += step;
			else
				run->segs[run->count++] =
					(struct sublet__segment){ at, step, ENGINE_NONE, pte_pfn(pte) };
		}
		at += step;
	}
	return err ? err : run_flush(run, fn);
}

/* Set or clear HELD on the folios of a run, with their accounts. */
static void run_hold(struct fork_run *run, bool hold)
{
	struct sublet_arena *arena = run->mm->arena;

	for (uint32_t s = 0; s < run->count; s++)
		for (uint32_t i = 0; i < run->segs[s].pages;) {
			uint32_t pfn = run->segs[s].dst_pfn + i;
			struct sublet__frame *f = &arena->frames[pfn];
			uint32_t word = a32_load_relaxed(&f->word), frames = 1u << word_order(word);
			uint32_t next = hold ? word | FRAME_HELD : word & ~FRAME_HELD;
			/* seq_cst: HELD, then run_is_pinned looks at ref; folio_pin: ref, then HELD */
			a32_store_seq_cst(&f->word, next);
			sublet__account(arena, pfn, frames, mapped_account(word), mapped_account(next));
			i += frames;
		}
}

static bool run_is_pinned(const struct fork_run *run)
{
	struct sublet_arena *arena = run->mm->arena;

	for (uint32_t s = 0; s < run->count; s++)
		for (uint32_t i = 0; i < run->segs[s].pages;) {
			const struct sublet__frame *f = &arena->frames[run->segs[s].dst_pfn + i];
			if (a32_load_seq_cst(&f->ref) & REF_COUNT_MASK) /* pairs with sublet_unpin too */
				return true;
			i += 1u << word_order(a32_load_relaxed(&f->word));
		}
	return false;
}

static uint32_t run_pages(const struct fork_run *run)
{
	const struct sublet__segment *last = &run->segs[run->count - 1];

	return last->vpn + last->pages - run->segs[0].vpn;
}

/* -EAGAIN: something is in use, and nothing was changed. */
static int run_privatize(struct fork_run *run)
{
	struct sublet__invalidation told;

	/* Devices that look here without a pin must let go too. Declined: waited for, like a pin. */
	if (sublet__invalidate_begin(run->mm, &told, run->segs[0].vpn, run_pages(run), SUBLET_NOTIFIER_MOVE,
				     false))
		return -EAGAIN;
	/* HELD first: no new pin from here on. What a device still writes under one that is there would be
	   lost: it goes to the frame, and the page may be a copy by then. */
	run_hold(run, true);
	int err = run_is_pinned(run) ? -EAGAIN
				     : run->mm->config.ops->privatize(run->mm->config.ctx, run->segs,
								      run->count, run->flags);
	if (err)
		run_hold(run, false);
	sublet__invalidate_end(run->mm, &told);
	return err;
}

static int run_inherit(struct fork_run *run, bool inherit)
{
	const struct sublet__mm_config *config = &run->mm->config;

	return config->ops->inherit(config->ctx, run->segs[0].vpn, run_pages(run), inherit);
}

/* Of a run of one folio: turn it private, or leave it out of the child where it is in use. */
static int run_privatize_or_leave_out(struct fork_run *run)
{
	int err = run_privatize(run);

	if (err != -EAGAIN)
		return err;
	if (!run->left_out_mappings || run->left_out_end != run->segs[0].vpn)
		run->left_out_mappings += ENGINE_EXCLUDED;
	run->left_out_end = run->segs[0].vpn + run_pages(run);
	return run_inherit(run, false);
}

static int run_take_back_in(struct fork_run *run)
{
	return run_inherit(run, true);
}

static int run_restore(struct fork_run *run)
{
	if (run_is_pinned(run))
		return -EAGAIN;
	int err = run->mm->config.ops->restore(run->mm->config.ctx, run->segs, run->count, run->flags);
	if (!err)
		run_hold(run, false);
	return err;
}

static uint32_t used_pages(const struct sublet_mm *mm)
{
	return min_u32(a32_load_acquire(&mm->blocks_used) * ENGINE_BLOCK_PAGES, mm->config.pages);
}

/*
 * Make one block private. Pins are waited for without the block lock: whoever holds one may be about
 * to take it, for the next folio of the same pin. Meanwhile new pins are held off (core/pin.c).
 */
static int block_begin(struct fork_run *run, uint32_t at, uint32_t count, uint64_t since_ns,
		       uint64_t until_ns)
{
	const struct sublet__platform *p = &run->mm->arena->platform;
	struct sublet__backoff backoff = { 0 };

	for (;;) {
		engine_lock(run->mm->arena, block_lock_of(run->mm, at));
		int err = block_runs(run, at, count, wanted_shared, run_privatize);
		uint64_t now = engine_now(run->mm->arena);
		if (err == -EAGAIN && now >= until_ns) {
			run->by_folio = true;
			err = block_runs(run, at, count, wanted_shared, run_privatize_or_leave_out);
			run->by_folio = false;
		}
		engine_unlock(run->mm->arena, block_lock_of(run->mm, at));
		if (err != -EAGAIN)
			return err;
		backoff_sleep(p, &backoff, now, until_ns);
		sublet__pins_hold_off(run->mm, 0, run->mm->config.pages, now - since_ns);
		sublet__devices_check(run->mm->arena); /* one that hangs declines until it is reset (G11) */
	}
}

/*
 * The kernel mappings of what is left out now are counted instead of those of what an earlier fork left out: this one
 * has looked at all of it again. relaxed: a budget, checked with a margin, and under the epoch for fork_restore.
 */
static void left_out_count(struct sublet_mm *mm, uint32_t mappings)
{
	uint32_t old = a32_exchange_acq_rel(&mm->left_out_mappings, mappings);

	a32_add_relaxed(&mm->mapping_count, mappings - old);
}

int sublet__mm_fork_begin(struct sublet_mm *mm, uint64_t until_ns)
{
	struct fork_run run = { .mm = mm };
	uint64_t since_ns = engine_now(mm->arena);
	int err = 0;

	a32_add_acq_rel(&mm->fork_epoch, 1);
	/* seq_cst with the load in sublet__mm_populate and fork_restore; see the picture above */
	a32_add_seq_cst(&mm->fork_pending, 1);
	a32_store_seq_cst(&mm->fork_held, 1);
	for_each_block(at, count, 0, used_pages(mm)) {
		err = block_begin(&run, at, count, since_ns, until_ns);
		sublet__pins_let_in(mm);
		if (err)
			break;
	}
	/* After an error some of what was left out before may still be. */
	left_out_count(mm, err ? max_u32(run.left_out_mappings, a32_load_relaxed(&mm->left_out_mappings))
			       : run.left_out_mappings);
	if (!err)
		a64_add_relaxed(&mm->arena->counters.forks, 1);
	return err;
}

void sublet__mm_fork_end(struct sublet_mm *mm, int32_t child_pid)
{
	if (child_pid > 0)
		a32_store_relaxed(&mm->child_pid, (uint32_t)child_pid);
	/* Again: who read the epoch while the fork was under way looked for a child that was not there yet. */
	a32_add_seq_cst(&mm->fork_epoch, 1);
	a32_sub_acq_rel(&mm->fork_pending, 1);
}

void sublet__mm_fork_child(struct sublet_mm *mm, int32_t child_pid)
{
	a32_store_relaxed(&mm->child_pid, (uint32_t)child_pid);
}

uint32_t sublet__mm_fork_epoch(const struct sublet_mm *mm)
{
	return a32_load_seq_cst(&mm->fork_epoch);
}

static bool fork_since(const struct sublet_mm *mm, uint32_t epoch)
{
	return a32_load_seq_cst(&mm->fork_pending) || a32_load_seq_cst(&mm->fork_epoch) != epoch;
}

bool sublet__mm_is_restored(const struct sublet_mm *mm)
{
	return !fork_since(mm, a32_load_seq_cst(&mm->restored_epoch));
}

/*
 * Frames that the parent unmapped while a child shared them are free now. What a newer fork parked
 * is not: it was parked under the lock, after the epoch changed, so it is seen by the same check.
 */
static void parked_put(struct sublet_mm *mm, uint32_t epoch)
{
	struct sublet_arena *arena = mm->arena;
	uint32_t pfn = ENGINE_NONE;

	engine_lock(arena, &mm->parked_lock);
	if (!fork_since(mm, epoch)) {
		pfn = mm->parked;
		mm->parked = ENGINE_NONE;
	}
	engine_unlock(arena, &mm->parked_lock);
	while (pfn != ENGINE_NONE) {
		uint32_t next = a32_load_relaxed(&arena->frames[pfn].a);
		uint32_t word = a32_load_relaxed(&arena->frames[pfn].word);
		sublet__frames_put(arena, pfn, 1u << word_order(word), ACCOUNT_HELD);
		pfn = next;
	}
}

int sublet__mm_fork_restore(struct sublet_mm *mm, uint32_t epoch)
{
	struct fork_run run = { .mm = mm };
	bool again = false;

	/* Cleared first: a fork that begins meanwhile sets it again, and is not overlooked. */
	if (!a32_exchange_acq_rel(&mm->fork_held, 0))
		return 0;
	uint32_t left_out = a32_exchange_acq_rel(&mm->left_out_mappings, 0);
	for_each_block(at, count, 0, used_pages(mm)) {
		engine_lock(mm->arena, block_lock_of(mm, at));
		/* What was left out is among what is not private. In use or not, the next fork decides anew. */
		if (fork_since(mm, epoch) ||
		    (left_out && block_runs(&run, at, count, wanted_shared, run_take_back_in)) ||
		    block_runs(&run, at, count, wanted_held, run_restore))
			again = true; /* pinned, or no memory: the other blocks can be restored meanwhile */
		engine_unlock(mm->arena, block_lock_of(mm, at));
	}
	if (again)
		a32_add_relaxed(&mm->left_out_mappings, left_out);
	else
		a32_sub_relaxed(&mm->mapping_count, left_out);
	if (!again) {
		a32_store_relaxed(&mm->child_pid, 0);
		/* Before the list is emptied: who has its lock after that parks nothing any more (folio_park). */
		a32_store_seq_cst(&mm->restored_epoch, epoch);
		parked_put(mm, epoch);
		if (!fork_since(mm, epoch))
			return 0;
	}
	a32_store_seq_cst(&mm->fork_held, 1);
	return -EAGAIN;
}
