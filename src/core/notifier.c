/* SPDX-License-Identifier: MIT */
/*
 * Notifiers: registration, removal, the reading sequence (G4). core/invalidate.c has how they are told, and why all of
 * this keeps a translation from outliving its frames.
 *
 * A callback may remove notifiers. It does not wait for itself: the invalidations that the calling thread is inside
 * are chained from a thread-local pointer. Two callbacks that would wait for each other are found before anything
 * is changed (waits_cycle), and the second gets -EDEADLK.
 */
#include "core/invalidate.h"

#include "core/call.h"

#include <errno.h>
#include <string.h>

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
	/* pairs with read_begin */
	a32_store_release(&node->generation, a32_load_relaxed(&node->generation) + 1);
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
	struct sublet_notifier_ops own; /* what is the caller's is read before the lock is taken (L3) */
	uint32_t vpn, pages;
	int err = notifier ? call_mm(mm) : -EINVAL;

	if (!err)
		err = sublet__struct_in(&own, sizeof own, ops, FIRST_NOTIFIER_OPS);
	if (err)
		return err;
	if (sublet__mm_range(mm, addr, bytes, &vpn, &pages) || !own.invalidate)
		return -EINVAL;
	err = sublet__notifier_grow_level(mm, pages);
	if (err)
		return err;
	struct sublet__notifiers *n = &mm->notifiers;
	char tag[SUBLET_OWNER_BYTES];
	owner_copy(tag, owner);
	sublet__notifier_prefetch_add(n, vpn, vpn + pages);
	uint32_t i = node_take_locked(mm, &err);
	if (!i)
		return err;
	struct sublet__notifier_client *client = notifier_client(n, i);
	client->invalidate = own.invalidate;
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

	for (const struct sublet__invalidation *inv = sublet__invalidation_inside(); inv; inv = inv->outer)
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
		if (is_inside(w, mm, i) &&
		    (is_inside(sublet__invalidation_inside(), w->waits_mm, w->waits_node) ||
		     waits_cycle(waits, w->waits_mm, w->waits_node)))
			return true;
	return false;
}

/* About to wait for callbacks of the node on other threads. Nobody waits for a thread that is in no callback. */
static int waits_enter(struct sublet_mm *mm, uint32_t i)
{
	struct sublet_arena *arena = mm->arena;
	struct sublet__notifier_waits *waits = &arena->notifier_waits;
	struct sublet__invalidation *inside = sublet__invalidation_inside();
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
	const struct sublet__invalidation *inside = sublet__invalidation_inside();
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
		notifiers_wake(mm, &node->active);
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
	struct sublet_mm *mm = notifier ? notifier->mm : NULL;
	int err = call_mm(mm);

	if (err)
		return err;
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
	struct sublet_mm *mm = notifier && seq ? notifier->mm : NULL;
	uint64_t until = 0;
	int err = call_mm(mm);

	if (err)
		return err;
	struct sublet__notifier_node *node = handle_node(notifier);
	uint32_t generation = (uint32_t)(notifier->id >> 32);
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
	const struct sublet__notifier_node *node = notifier && !call_mm(notifier->mm) ? handle_node(notifier)
										      : NULL;

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
	sublet__invalidation_list(&mm->notifiers, query);
	sublet__notifier_walk_pause(mm);
	sublet__invalidation_unlist(&mm->notifiers, query);
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
		/* Who is being waited for at this moment, by an unmap perhaps, is in the way more than who declined. */
		uint32_t refused = a32_load_relaxed(&client->busy) ? UINT32_MAX : client->declined_at;
		if (refused > *at) {
			*at = refused;
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
	struct sublet_notifier_stats s = { 0 };
	int err = call_mm(mm);

	if (!err)
		err = sublet__struct_out_check(stats, FIRST_NOTIFIER_STATS);
	if (err)
		return err;
	struct sublet__notifiers *n = &mm->notifiers;
	notifiers_lock(mm);
	s.registered = n->registered;
	s.invalidations = n->invalidations;
	s.callbacks = n->callbacks;
	s.declined = n->declined;
	s.memory_bytes =
		n->touched_bytes + (uint64_t)(n->nodes_used - 1) * (sizeof(struct sublet__notifier_node) +
								    sizeof(struct sublet__notifier_client));
	notifiers_unlock(mm);
	sublet__struct_out(stats, &s, sizeof s);
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
		sublet__notifier_walk_pause(mm);
	} while (true);
	notifiers_unlock(mm);
	sublet__invalidate_end(mm, &inv);
}
