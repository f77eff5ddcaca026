/* SPDX-License-Identifier: MIT */
/*
 * Notifiers: whoever keeps a translation of its own is told before frames change.
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
 * A callback may remove notifiers. It does not wait for itself: the invalidations that the calling thread is inside
 * are chained from a thread-local pointer. Two callbacks that would wait for each other are found before anything
 * is changed (waits_cycle), and the second gets -EDEADLK.
 *
 * Why one lock for each mm, and no RCU: a move costs tens of microseconds, begin and end hold the lock for tens of
 * nanoseconds, and what the lock is wanted for is loaded before it is taken.
 */
#include "core/engine.h"

#include <errno.h>
#include <string.h>

#define PAUSE_LOOKS 1000u /* a microsecond or less */

enum phase {
	PHASE_QUERY = 0, /* only looks */
	PHASE_BEGUN,     /* counted by every notifier in range (N1) */
	PHASE_ENDING,
};

/* The callback that this thread is inside, innermost first. */
static _Thread_local struct sublet__invalidation *inside;

static void notifiers_lock(struct sublet_mm *mm)
{
	struct sublet__notifiers *n = &mm->notifiers;

	if (spin_try(&n->lock))
		return;
	a32_add_relaxed(&n->waiting, 1); /* relaxed: a hint */
	spin_take(&mm->arena->platform, &n->lock);
	a32_sub_relaxed(&n->waiting, 1);
}

static void notifiers_unlock(struct sublet_mm *mm)
{
	spin_drop(&mm->notifiers.lock);
}

static void wake_all(struct sublet_mm *mm, const sublet__a32 *word)
{
	mm->arena->platform.ops->unpark(mm->arena->platform.ctx, word, UINT32_MAX);
}

/* ---- invalidations under way; lock held ---- */

static void listed_add(struct sublet__notifiers *n, struct sublet__invalidation *inv)
{
	inv->prev = NULL;
	inv->next = n->active;
	if (n->active)
		n->active->prev = inv;
	n->active = inv;
}

static void listed_remove(struct sublet__notifiers *n, struct sublet__invalidation *inv)
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
static void walk_pause(struct sublet_mm *mm)
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
		walk_pause(mm);
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
		wake_all(mm, &client->busy);
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
		walk_pause(mm);
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
	listed_add(n, inv); /* even where nobody is registered: somebody may be before the end */
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
	wake_all(mm, &node->active);
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
		walk_pause(mm);
	}
}

void sublet__invalidate_end(struct sublet_mm *mm, struct sublet__invalidation *inv)
{
	notifiers_lock(mm);
	unmark_all(mm, inv);
	listed_remove(&mm->notifiers, inv);
	notifiers_unlock(mm);
}

/* ---- add ---- */

static uint32_t active_over(const struct sublet__notifiers *n, uint32_t first, uint32_t end)
{
	uint32_t count = 0;

	for (const struct sublet__invalidation *inv = n->active; inv; inv = inv->next)
		count += inv->phase == PHASE_BEGUN && inv->walk.first < end && inv->walk.end > first;
	return count;
}

static void owner_copy(char to[SUBLET_OWNER_BYTES], const char *owner)
{
	static const char none[SUBLET_OWNER_BYTES] = "notifier";
	size_t i = 0;

	if (!owner) {
		memcpy(to, none, sizeof none);
		return;
	}
	for (; i + 1 < SUBLET_OWNER_BYTES && owner[i]; i++)
		to[i] = owner[i];
	memset(to + i, 0, SUBLET_OWNER_BYTES - i);
}

/* Lock held. A node of the pool becomes [first, end); its generation says that it is registered. */
static void node_register(struct sublet__notifiers *n, uint32_t i, uint32_t first, uint32_t end)
{
	struct sublet__notifier_node *node = notifier_node(n, i);

	node->first = first;
	node->end = end;
	a32_store_relaxed(&node->active, active_over(n, first, end)); /* (N1) */
	a32_store_release(&node->generation,
			  a32_load_relaxed(&node->generation) + 1); /* pairs with read_begin */
	sublet__notifier_link(n, i);
	n->registered++;
	n->born_last = n->clock;
	notifier_client(n, i)->born = n->clock;
}

/* Take a node with the lock held, growing the pool where it is empty. NONE: *err says why, and the lock is not held. */
static uint32_t node_take_locked(struct sublet_mm *mm, int *err)
{
	struct sublet__notifiers *n = &mm->notifiers;

	for (;;) {
		notifiers_lock(mm);
		*err = n->ended ? -EINVAL : n->registered == NOTIFIER_MAX ? -ENOMEM : 0;
		uint32_t i = *err ? NOTIFIER_NONE : sublet__notifier_node_take(n);
		if (i)
			return i;
		uint32_t used = n->nodes_used;
		notifiers_unlock(mm);
		if (!*err)
			*err = sublet__notifier_grow_nodes(mm, used);
		if (*err)
			return NOTIFIER_NONE;
	}
}

int sublet_notifier_add(struct sublet_mm *mm, const void *addr, uint64_t bytes,
			const struct sublet_notifier_ops *ops, void *ctx, const char *owner,
			struct sublet_notifier *notifier)
{
	struct sublet__notifiers *n = &mm->notifiers;
	uint32_t vpn, pages;

	if (sublet__mm_range(mm, addr, bytes, &vpn, &pages) || !ops || ops->size_bytes < sizeof *ops ||
	    !ops->invalidate)
		return -EINVAL;
	int err = sublet__notifier_grow_level(mm, pages);
	if (err)
		return err;
	/* What is the caller's is read before the lock is taken (L3). */
	int (*invalidate)(void *c, const struct sublet_invalidation *inv) = ops->invalidate;
	char tag[SUBLET_OWNER_BYTES];
	owner_copy(tag, owner);
	sublet__notifier_prefetch_add(n, vpn, vpn + pages);
	uint32_t i = node_take_locked(mm, &err);
	if (!i)
		return err;
	struct sublet__notifier_client *client = notifier_client(n, i);
	client->invalidate = invalidate;
	client->ctx = ctx;
	client->declined_at = 0;
	a32_store_relaxed(&client->busy, 0);
	memcpy(client->owner, tag, sizeof tag);
	node_register(n, i, vpn, vpn + pages);
	uint64_t generation = a32_load_relaxed(&notifier_node(n, i)->generation);
	/* Before anybody can be told: the callback may want to remove it. */
	*notifier = (struct sublet_notifier){ .mm = mm,
					      .id = generation << 32 | i,
					      .hint = sublet__notifier_hint(vpn, pages) };
	notifiers_unlock(mm);
	return 0;
}

/* ---- remove ---- */

/* Callbacks of the node that the calling thread is inside. */
static uint32_t callbacks_own(const struct sublet_mm *mm, uint32_t i)
{
	uint32_t own = 0;

	for (const struct sublet__invalidation *inv = inside; inv; inv = inv->outer)
		own += inv->what.mm == mm && inv->running == i;
	return own;
}

/* Whether the thread whose innermost invalidation is `inv` is inside a callback of the node. */
static bool is_inside(const struct sublet__invalidation *inv, const struct sublet_mm *mm, uint32_t i)
{
	for (; inv; inv = inv->outer)
		if (inv->what.mm == mm && inv->running == i)
			return true;
	return false;
}

/*
 * Whether the calling thread would wait for itself if it waited for callbacks of the node: follow those who are inside
 * such a callback to what they wait for, and so on. Called with the waits' lock held, under which everybody who waits
 * from inside a callback listed himself first: so the one who would close the circle sees all the others. Depth is
 * bounded by the length of the list, as a circle without the caller cannot be there.
 */
static bool waits_cycle(const struct sublet__notifier_waits *waits, const struct sublet_mm *mm, uint32_t i)
{
	for (const struct sublet__invalidation *w = waits->list; w; w = w->waits_next)
		if (is_inside(w, mm, i) && (is_inside(inside, w->waits_mm, w->waits_node) ||
					    waits_cycle(waits, w->waits_mm, w->waits_node)))
			return true;
	return false;
}

/* About to wait for callbacks of the node on other threads. Nobody waits for a thread that is in no callback. */
static int waits_enter(struct sublet_mm *mm, uint32_t i)
{
	struct sublet_arena *arena = mm->arena;
	struct sublet__notifier_waits *waits = &arena->notifier_waits;
	int err = 0;

	if (!inside)
		return 0;
	spin_take(&arena->platform, &waits->lock);
	if (waits_cycle(waits, mm, i)) {
		err = -EDEADLK;
	} else {
		inside->waits_mm = mm;
		inside->waits_node = i;
		inside->waits_next = waits->list;
		waits->list = inside;
	}
	spin_drop(&waits->lock);
	return err;
}

static void waits_leave(struct sublet_arena *arena)
{
	struct sublet__notifier_waits *waits = &arena->notifier_waits;
	struct sublet__invalidation **at = &waits->list;

	if (!inside)
		return;
	spin_take(&arena->platform, &waits->lock);
	while (*at != inside)
		at = &(*at)->waits_next;
	*at = inside->waits_next;
	spin_drop(&waits->lock);
}

/* The node is removed, and has NODE_WAITED: wait until only `own` callbacks of it run, and settle whose it is. */
static void callbacks_wait(struct sublet_mm *mm, uint32_t i, uint32_t own)
{
	const struct sublet__platform *p = &mm->arena->platform;
	struct sublet__notifiers *n = &mm->notifiers;
	sublet__a32 *word = &notifier_client(n, i)->busy;
	uint32_t busy;

	notifiers_lock(mm);
	while ((busy = a32_load_relaxed(word)) != (NODE_WAITED | own)) {
		notifiers_unlock(mm);
		p->ops->park(p->ctx, word, busy, UINT64_MAX);
		notifiers_lock(mm);
	}
	a32_store_relaxed(word, own);
	if (!own)
		sublet__notifier_node_put(n, i); /* else callback_done does it */
	notifiers_unlock(mm);
	waits_leave(mm->arena);
}

/* No walk under way is to look at the node any more. */
static void walks_leave(struct sublet__notifiers *n, uint32_t i)
{
	for (struct sublet__invalidation *inv = n->active; inv; inv = inv->next) {
		if (inv->walk.node == i)
			inv->walk.node = notifier_node(n, i)->next;
		for (uint32_t k = 0; k < inv->walk.count; k++)
			if (inv->walk.hit[k] == i)
				inv->walk.hit[k] = NOTIFIER_NONE;
	}
}

static int node_remove(struct sublet_mm *mm, uint32_t i, uint32_t generation)
{
	struct sublet__notifiers *n = &mm->notifiers;
	struct sublet__notifier_node *node = notifier_node(n, i);
	sublet__a32 *word = &notifier_client(n, i)->busy;

	notifiers_lock(mm);
	int err = a32_load_relaxed(&node->generation) != generation ? -EINVAL : 0;
	/* A callback runs only while its invalidation counts; its client need not be looked at otherwise. */
	uint32_t busy = !err && a32_load_relaxed(&node->active) ? a32_load_relaxed(word) : 0;
	uint32_t own = busy ? callbacks_own(mm, i) : 0;
	if (!err && busy > own)
		err = waits_enter(mm, i);
	if (err) {
		notifiers_unlock(mm);
		return err;
	}
	walks_leave(n, i);
	sublet__notifier_unlink(n, i);
	n->registered--;
	a32_store_release(&node->generation, generation + 1); /* pairs with read_begin */
	bool waited = a32_load_relaxed(&node->active) & NODE_WAITED;
	a32_store_relaxed(&node->active, 0); /* whoever is about to park on it does not */
	if (!busy)
		sublet__notifier_node_put(n, i);
	else if (busy > own)
		a32_store_relaxed(word, busy | NODE_WAITED); /* from here on it is ours to put */
	notifiers_unlock(mm);
	if (waited)
		wake_all(mm, &node->active);
	if (busy > own)
		callbacks_wait(mm, i, own);
	return 0;
}

/* The node of a handle, whose generation may be a former one; NULL: it cannot be a handle. */
static struct sublet__notifier_node *handle_node(const struct sublet_notifier *notifier)
{
	uint32_t i = (uint32_t)notifier->id, generation = (uint32_t)(notifier->id >> 32);

	if (!notifier->mm || !(generation & 1) || !i ||
	    i >= a32_load_acquire(&notifier->mm->notifiers.nodes_ready)) /* pairs with grow_nodes */
		return NULL;
	return notifier_node(&notifier->mm->notifiers, i);
}

int sublet_notifier_remove(struct sublet_notifier *notifier)
{
	struct sublet_mm *mm = notifier->mm;
	uint64_t id = notifier->id;

	if (!handle_node(notifier))
		return -EINVAL;
	sublet__notifier_prefetch_remove(&mm->notifiers, (uint32_t)id, notifier->hint);
	return node_remove(mm, (uint32_t)id, (uint32_t)(id >> 32));
}

/* ---- reading ---- */

/* Say that a reader waits for the node. 0: it need not; else what to park on `active` with. */
static uint32_t node_wait_mark(struct sublet_mm *mm, struct sublet__notifier_node *node, uint32_t generation)
{
	notifiers_lock(mm);
	uint32_t active = a32_load_relaxed(&node->active);
	if (a32_load_relaxed(&node->generation) != generation)
		active = 0;
	if (active) {
		active |= NODE_WAITED;
		a32_store_relaxed(&node->active, active);
	}
	notifiers_unlock(mm);
	return active;
}

int sublet_notifier_read_begin(const struct sublet_notifier *notifier, uint64_t timeout_ns, uint64_t *seq)
{
	struct sublet__notifier_node *node = handle_node(notifier);
	struct sublet_mm *mm = notifier->mm;
	uint32_t generation = (uint32_t)(notifier->id >> 32);
	uint64_t until = 0;

	if (!node)
		return -EINVAL;
	const struct sublet__platform *p = &mm->arena->platform;
	for (;;) {
		/* In this order: mark_all counts before it changes seq. Both pair with mark_all and unmark. */
		uint64_t now, s = a64_load_acquire(&node->seq);
		uint32_t active = a32_load_acquire(&node->active);
		/* Last: if the node is somebody else's by now, what was read above is nothing. */
		if (a32_load_acquire(&node->generation) != generation) /* pairs with node_remove */
			return -EINVAL;
		if (!active) {
			*seq = s;
			return 0;
		}
		if (!timeout_ns)
			return -EAGAIN;
		now = engine_now(mm->arena);
		if (!until)
			until = timeout_ns > UINT64_MAX - now ? UINT64_MAX : now + timeout_ns;
		if (now >= until)
			return -ETIMEDOUT;
		active = node_wait_mark(mm, node, generation);
		if (active)
			p->ops->park(p->ctx, &node->active, active,
				     until == UINT64_MAX ? until : until - now);
	}
}

bool sublet_notifier_read_retry(const struct sublet_notifier *notifier, uint64_t seq)
{
	const struct sublet__notifier_node *node = handle_node(notifier);

	/* Pairs with mark_all, by way of the driver's lock or of a page-table entry that was read. */
	return !node || a64_load_acquire(&node->seq) != seq ||
	       a32_load_acquire(&node->generation) != (uint32_t)(notifier->id >> 32);
}

/* ---- looking ---- */

/* A walk that changes nothing, for others to find. The next batch: in `query`, with the lock held; false: it was the last. */
static void look_start(struct sublet_mm *mm, struct sublet__invalidation *query, uint32_t vpn, uint32_t pages)
{
	query->phase = PHASE_QUERY;
	query->walk.first = vpn;
	query->walk.end = vpn + pages;
	query->walk.count = 0;
	notifiers_lock(mm);
	notifier_walk_start(&mm->notifiers, &query->walk);
}

static void look_pause(struct sublet_mm *mm, struct sublet__invalidation *query)
{
	listed_add(&mm->notifiers, query);
	walk_pause(mm);
	listed_remove(&mm->notifiers, query);
}

uint32_t sublet__notifier_count(struct sublet_mm *mm, uint32_t vpn, uint32_t pages)
{
	struct sublet__invalidation query;
	uint32_t count = 0;

	look_start(mm, &query, vpn, pages);
	while (!sublet__notifier_walk_batch(&mm->notifiers, &query.walk)) {
		count += query.walk.count;
		look_pause(mm, &query);
	}
	notifiers_unlock(mm);
	return count + query.walk.count;
}

static void decliner_see(const struct sublet__notifiers *n, const struct sublet__notifier_walk *w,
			 uint32_t *at, char owner[SUBLET_OWNER_BYTES])
{
	for (uint32_t k = 0; k < w->count; k++) {
		const struct sublet__notifier_client *client = notifier_client(n, w->hit[k]);
		if (client->declined_at > *at) {
			*at = client->declined_at;
			memcpy(owner, client->owner, SUBLET_OWNER_BYTES);
		}
	}
}

bool sublet__notifier_decliner(struct sublet_mm *mm, uint32_t vpn, uint32_t pages,
			       char owner[SUBLET_OWNER_BYTES])
{
	struct sublet__invalidation query;
	uint32_t at = 0;

	look_start(mm, &query, vpn, pages);
	while (!sublet__notifier_walk_batch(&mm->notifiers, &query.walk)) {
		decliner_see(&mm->notifiers, &query.walk, &at, owner);
		look_pause(mm, &query);
	}
	decliner_see(&mm->notifiers, &query.walk, &at, owner);
	notifiers_unlock(mm);
	return at != 0;
}

int sublet_notifier_stats(struct sublet_mm *mm, struct sublet_notifier_stats *stats)
{
	struct sublet__notifiers *n = &mm->notifiers;
	struct sublet_notifier_stats s = { .size_bytes = stats->size_bytes };

	if (s.size_bytes < sizeof s.size_bytes)
		return -EINVAL;
	notifiers_lock(mm);
	s.registered = n->registered;
	s.invalidations = n->invalidations;
	s.callbacks = n->callbacks;
	s.declined = n->declined;
	s.memory_bytes =
		n->touched_bytes + (uint64_t)(n->nodes_used - 1) * (sizeof(struct sublet__notifier_node) +
								    sizeof(struct sublet__notifier_client));
	notifiers_unlock(mm);
	memcpy(stats, &s, s.size_bytes < sizeof s ? (size_t)s.size_bytes : sizeof s);
	return 0;
}

/* ---- the end ---- */

static void exit_remove(struct sublet_mm *mm, uint32_t i)
{
	if (!i)
		return;
	uint32_t generation = a32_load_relaxed(&notifier_node(&mm->notifiers, i)->generation);
	notifiers_unlock(mm);
	int err = node_remove(mm, i, generation);
	(void)err; /* -EINVAL: somebody else was faster */
	notifiers_lock(mm);
}

void sublet__notifiers_exit(struct sublet_mm *mm)
{
	struct sublet__notifiers *n = &mm->notifiers;
	struct sublet__invalidation inv;

	notifiers_lock(mm);
	n->ended = true;
	notifiers_unlock(mm);
	int err = sublet__invalidate_begin(mm, &inv, 0, mm->config.pages, SUBLET_NOTIFIER_EXIT, true);
	(void)err; /* nobody can decline that */
	notifiers_lock(mm);
	notifier_walk_start(n, &inv.walk);
	do {
		bool last = sublet__notifier_walk_batch(n, &inv.walk);
		for (uint32_t k = 0; k < inv.walk.count; k++)
			exit_remove(mm, inv.walk.hit[k]);
		if (last)
			break;
		walk_pause(mm);
	} while (true);
	notifiers_unlock(mm);
	sublet__invalidate_end(mm, &inv);
}
