/* SPDX-License-Identifier: MIT */
/*
 * Invalidations: whoever keeps a translation of its own is told before frames change. core/notifier.c has how they
 * register and read.
 *
 * An invalidation walks the index three times:
 *
 *   begin   mark     each notifier in range: active + 1, seq + 1                       no callback yet
 *           tell     each notifier in range: its callback, without the lock
 *   ...              the memory changes
 *   end     unmark   each notifier in range: active - 1; whoever waits for 0 is woken
 *
 * A reader takes seq while active is 0, reads the page table, and asks whether seq is still the same, under the
 * lock that its callback takes (G4):
 *
 *   reader                                     invalidation
 *   ------                                     ------------
 *   seq -> s, active -> 0                      active + 1, then seq + 1
 *   read the page table                        callback: lock(driver), remove, unlock(driver)
 *   lock(driver); seq == s? put in; unlock     the page table changes
 *                                              active - 1
 *
 *   The callback's turn comes after the reader's: it removes what was put in.
 *   It comes before: the reader's lock makes seq + 1 visible, and it retries.
 *   The reader sees seq + 1 at once: then it sees active + 1 too, or else the invalidation's end, after which the
 *   page table is right.
 *   It reads a new page table, but the old seq: the change was published after seq + 1, so it retries.
 *
 * Many invalidations run at once, notifiers come and go meanwhile, and a long walk drops the lock now and then. What
 * keeps active right is (N1): from registration to end, an invalidation is counted exactly once by each registered
 * notifier in its range. Each begin and each end advances a clock; a notifier remembers the clock of its birth.
 *
 *   born before the begin     counted by mark; if it is removed before its turn, it is not in range any more
 *   born between              mark and tell pass over it. It is counted by add, which looks at the list of those
 *                             that began: it was not told, so its readers must wait for the end
 *   born after the end began  add passes over what is ending, and unmark over the newborn: the page table is
 *                             as it will be
 *
 * A begin that somebody declines marked everybody before it told anybody, so it undoes itself by an ordinary end.
 *
 * Walks work in batches; the lock is dropped between two of them, and around callbacks. Batch and cursor are in the
 * invalidation, which is listed: remove takes the node out of every batch, and moves every cursor off it. A node
 * whose callback runs stays out of the pool until that has returned: it belongs to the remover that waits, else to
 * the thread that runs the last callback.
 *
 * Why one lock for each mm, and no RCU: a move costs tens of microseconds, begin and end hold the lock for tens of
 * nanoseconds, and what the lock is wanted for is loaded before it is taken.
 */
#include "core/invalidate.h"

#include <errno.h>

#define PAUSE_LOOKS 1000u /* a microsecond or less */

/* The callback that this thread is inside, innermost first. */
static _Thread_local struct sublet__invalidation *inside;

struct sublet__invalidation *sublet__invalidation_inside(void)
{
	return inside;
}

/* ---- invalidations under way; lock held ---- */

void sublet__invalidation_list(struct sublet__notifiers *n, struct sublet__invalidation *inv)
{
	inv->prev = NULL;
	inv->next = n->active;
	if (n->active)
		n->active->prev = inv;
	n->active = inv;
}

void sublet__invalidation_unlist(struct sublet__notifiers *n, struct sublet__invalidation *inv)
{
	if (inv->next)
		inv->next->prev = inv->prev;
	if (inv->prev)
		inv->prev->next = inv->next;
	else
		n->active = inv->next;
}

/*
 * Between two batches of a long walk others may have the lock. Taking it again at once would nearly always win against
 * those who spin, so they are given a moment.
 */
void sublet__notifier_walk_pause(struct sublet_mm *mm)
{
	struct sublet__notifiers *n = &mm->notifiers;

	notifiers_unlock(mm);
	for (uint32_t i = 0;
	     i < PAUSE_LOOKS && a32_load_relaxed(&n->waiting) && !a32_load_relaxed(&n->lock.word); i++)
		;
	notifiers_lock(mm);
}

/* Whether the node was added at or after `clock`. Mostly nobody was, and its client is not looked at. */
static bool born_since(const struct sublet__notifiers *n, uint32_t i, uint64_t clock)
{
	return n->born_last >= clock && notifier_client(n, i)->born >= clock;
}

/* ---- begin ---- */

static void mark(struct sublet__notifiers *n, uint32_t i)
{
	struct sublet__notifier_node *node = notifier_node(n, i);

	a32_store_relaxed(&node->active, a32_load_relaxed(&node->active) + 1);
	/* release: pairs with read_begin, which sees active + 1 if it sees this */
	a64_store_release(&node->seq, a64_load_relaxed(&node->seq) + 1);
}

static void mark_all(struct sublet_mm *mm, struct sublet__invalidation *inv)
{
	struct sublet__notifiers *n = &mm->notifiers;
	struct sublet__notifier_walk *w = &inv->walk;

	notifier_walk_start(n, w);
	for (;;) {
		bool last = sublet__notifier_walk_batch(n, w);
		for (uint32_t k = 0; k < w->count; k++) {
			if (born_since(n, w->hit[k], inv->id))
				continue;
			mark(n, w->hit[k]);
			inv->marked++;
		}
		if (last)
			return;
		inv->batches = true;
		sublet__notifier_walk_pause(mm);
	}
}

/* A callback of the node has returned; lock held, and dropped for a moment where somebody waits for that. */
static void callback_done(struct sublet_mm *mm, uint32_t i)
{
	struct sublet__notifiers *n = &mm->notifiers;
	struct sublet__notifier_client *client = notifier_client(n, i);
	uint32_t busy = a32_load_relaxed(&client->busy) - 1;

	a32_store_relaxed(&client->busy, busy);
	if (busy & NODE_WAITED) {
		notifiers_unlock(mm);
		notifiers_wake(mm, &client->busy);
		notifiers_lock(mm);
	} else if (!busy && !(a32_load_relaxed(&notifier_node(n, i)->generation) & 1)) {
		sublet__notifier_node_put(n, i); /* removed meanwhile, and nobody waits for it */
	}
}

/* Whether this answer of a callback stops the change. Where it may block, only one that is about to give memory up. */
static bool is_refusal(const struct sublet_invalidation *what, int answer)
{
	bool gives_up = what->event == SUBLET_NOTIFIER_UNMAP || what->event == SUBLET_NOTIFIER_DISCARD;

	return what->may_block ? answer == -EBUSY && gives_up : answer != 0;
}

/* Run the callback of the node without the lock. Whether it declined. */
static bool callback_run(struct sublet_mm *mm, struct sublet__invalidation *inv, uint32_t i)
{
	struct sublet__notifiers *n = &mm->notifiers;
	struct sublet__notifier_client *client = notifier_client(n, i);
	int (*invalidate)(void *ctx, const struct sublet_invalidation *inv) = client->invalidate;
	void *ctx = client->ctx;

	a32_store_relaxed(&client->busy, a32_load_relaxed(&client->busy) + 1);
	n->callbacks++;
	notifiers_unlock(mm);

	inv->running = i;
	inv->outer = inside;
	inside = inv;
	bool declined = is_refusal(&inv->what, invalidate(ctx, &inv->what));
	inside = inv->outer;
	inv->running = NOTIFIER_NONE;

	notifiers_lock(mm);
	if (declined) {
		n->declined++;
		n->declines += n->declines == UINT32_MAX ? 2 : 1;
		client->declined_at = n->declines;
	}
	callback_done(mm, i);
	return declined;
}

/* The walk's batch, those born before `clock`: a callback may remove any of it, and leaves NONE there. */
static bool tell_batch(struct sublet_mm *mm, struct sublet__invalidation *inv, uint64_t clock)
{
	for (uint32_t k = 0; k < inv->walk.count; k++)
		__builtin_prefetch(notifier_client(&mm->notifiers, inv->walk.hit[k]), 1);
	for (uint32_t k = 0; k < inv->walk.count; k++) {
		uint32_t i = inv->walk.hit[k];
		if (i && !born_since(&mm->notifiers, i, clock) && callback_run(mm, inv, i))
			return false;
	}
	return true;
}

static bool tell_walk(struct sublet_mm *mm, struct sublet__invalidation *inv, uint64_t clock)
{
	notifier_walk_start(&mm->notifiers, &inv->walk);
	for (;;) {
		bool last = sublet__notifier_walk_batch(&mm->notifiers, &inv->walk);
		if (!tell_batch(mm, inv, clock))
			return false;
		if (last)
			return true;
		sublet__notifier_walk_pause(mm);
	}
}

static void invalidation_init(struct sublet__invalidation *inv, uint32_t vpn, uint32_t pages)
{
	inv->walk.count = 0;
	inv->marked = 0;
	inv->batches = false;
	inv->running = NOTIFIER_NONE;
	inv->walk.first = vpn;
	inv->walk.end = vpn + pages;
}

int sublet__invalidate_begin(struct sublet_mm *mm, struct sublet__invalidation *inv, uint32_t vpn,
			     uint32_t pages, uint32_t event, bool may_block)
{
	struct sublet__notifiers *n = &mm->notifiers;
	uint32_t shift = frames_bytes_shift(mm->arena);
	bool told = true;

	invalidation_init(inv, vpn, pages);
	inv->what.mm = mm;
	inv->what.addr = mm->config.base + ((uint64_t)vpn << shift);
	inv->what.bytes = (uint64_t)pages << shift;
	inv->what.event = event;
	inv->what.may_block = may_block;
	sublet__notifier_prefetch_query(n, vpn, vpn + pages);

	notifiers_lock(mm);
	inv->id = ++n->clock;
	inv->phase = PHASE_BEGUN;
	/* even where nobody is registered: somebody may be before the end */
	sublet__invalidation_list(n, inv);
	n->invalidations++;
	mark_all(mm, inv);
	if (inv->marked) /* in one batch: what mark_all found is still there */
		told = inv->batches ? tell_walk(mm, inv, inv->id) : tell_batch(mm, inv, inv->id);
	notifiers_unlock(mm);
	if (told)
		return 0;
	sublet__invalidate_end(mm, inv);
	return may_block ? -EBUSY : -EAGAIN;
}

int sublet__invalidate_again(struct sublet_mm *mm, struct sublet__invalidation *inv)
{
	notifiers_lock(mm);
	/* Newborns too: what they keep may be as old as the pin. */
	inv->batches = true; /* the walk is at another place now: the end has to look for itself */
	bool told = tell_walk(mm, inv, UINT64_MAX);
	notifiers_unlock(mm);
	return told ? 0 : -EAGAIN;
}

/* ---- end ---- */

static void unmark(struct sublet_mm *mm, uint32_t i)
{
	struct sublet__notifier_node *node = notifier_node(&mm->notifiers, i);
	uint32_t active = a32_load_relaxed(&node->active) - 1;

	if (active != NODE_WAITED) {
		a32_store_release(&node->active, active); /* pairs with read_begin: the change is visible */
		return;
	}
	a32_store_release(&node->active, 0); /* as above */
	notifiers_unlock(mm);
	notifiers_wake(mm, &node->active);
	notifiers_lock(mm);
}

static void unmark_batch(struct sublet_mm *mm, struct sublet__invalidation *inv)
{
	for (uint32_t k = 0; k < inv->walk.count; k++) {
		uint32_t i = inv->walk.hit[k];
		if (i && !born_since(&mm->notifiers, i, inv->id))
			unmark(mm, i);
	}
}

static void unmark_all(struct sublet_mm *mm, struct sublet__invalidation *inv)
{
	struct sublet__notifiers *n = &mm->notifiers;

	inv->phase = PHASE_ENDING;
	if (!inv->batches && n->born_last < inv->id) {
		unmark_batch(mm, inv); /* what mark_all found, and nobody came since */
		return;
	}
	inv->id = ++n->clock;
	notifier_walk_start(n, &inv->walk);
	for (;;) {
		bool last = sublet__notifier_walk_batch(n, &inv->walk);
		unmark_batch(mm, inv);
		if (last)
			return;
		sublet__notifier_walk_pause(mm);
	}
}

void sublet__invalidate_end(struct sublet_mm *mm, struct sublet__invalidation *inv)
{
	notifiers_lock(mm);
	unmark_all(mm, inv);
	sublet__invalidation_unlist(&mm->notifiers, inv);
	notifiers_unlock(mm);
}
