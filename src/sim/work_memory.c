/* SPDX-License-Identifier: MIT */
/*
 * Memory: mapped, written, read, given back in part or as a whole, locked and unlocked, protected, forked.
 *
 * A page is live from when a call has said so until somebody sets out to take it away. Whatever is live reads as it was
 * written, at every step (check.c); what a call that failed leaves behind is as it was (G5).
 */
#include "sim.h"

static struct sim_page *page_at(struct sim *s, const struct sim_region *r, uint32_t i)
{
	return &s->mm[r->mm].page[r->vpn + i];
}

static uint64_t bytes_of(const struct sim *s, uint32_t pages)
{
	return (uint64_t)pages << s->frame_shift;
}

static void *addr_of(const struct sim *s, const struct sim_region *r, uint32_t i)
{
	return mm_addr(s, r->mm, r->vpn + i);
}

/* -ENOMEM, or whatever a call of the platform answered, if one did. */
static void must_be_refusal(struct sim *s, const char *what, int err)
{
	if (err != -ENOMEM && !(err == -EIO && s->faults))
		sim_violation(s, "%s: %d", what, err);
}

static struct sim_region *region_free(struct sim *s)
{
	for (uint32_t i = 0; i < SIM_REGIONS_MAX; i++)
		if (!s->region[i].pages && !s->region[i].is_exclusive)
			return &s->region[i];
	return NULL;
}

/* A region for one alone. */
static struct sim_region *region_take(struct sim *s)
{
	struct sim_region *r = region_get(s, false);

	if (!r)
		return NULL;
	region_put(r);
	if (r->users)
		return NULL;
	r->is_exclusive = true;
	return r;
}

/* What was just given reads as zero (G9). */
static void range_born(struct sim *s, struct sim_region *r, struct sim_range range, const char *what)
{
	for (uint32_t i = range.first; i < range.first + range.pages; i++) {
		struct sim_page *p = page_at(s, r, i);
		for (uint32_t w = 0; w < SIM_WORDS; w++) {
			if (p->kind == KIND_NONE || mm_peek(s, p, w))
				sim_violation(s, "%s gives mm %u page %u, which is %s", what, r->mm,
					      r->vpn + i,
					      p->kind == KIND_NONE ? "not there" : "not zero (G9)");
			p->value[w] = 0;
		}
		p->is_live = true;
	}
}

static void range_dies(struct sim *s, struct sim_region *r, struct sim_range range)
{
	for (uint32_t i = range.first; i < range.first + range.pages; i++)
		page_at(s, r, i)->is_live = false;
}

static uint32_t pages_random(struct sim *s)
{
	const uint32_t most[] = { 2, 8, 24, 60, s->area_frames / 3 };
	return 1 + sim_below(s, most[sim_below(s, 5)]);
}

static void do_map(struct sim *s, bool reserve)
{
	struct sim_region *r = region_free(s);
	uint32_t pages = pages_random(s), kind = sim_below(s, 4), mm = sim_below(s, s->mms);
	uint32_t flags = kind == 0   ? SUBLET_DISCARDABLE
			 : kind == 1 ? SUBLET_MOVABLE | SUBLET_PLAIN_OK
				     : SUBLET_MOVABLE;
	uint64_t align = 1ull << sim_below(s, 22);
	void *addr = NULL;

	uint64_t refused = s->unmaps_refused;

	if (!r)
		return;
	r->is_exclusive = true;
	sim_enter(s, reserve ? "reserve in mm %llu: %llu pages" : "map in mm %llu: %llu pages, flags %llu",
		  mm, pages, flags);
	int err = sim_leave(s, reserve ? sublet__mm_reserve(s->mm[mm].mm, bytes_of(s, pages), align, &addr)
				       : sublet_map_aligned(s->mm[mm].mm, bytes_of(s, pages), align, flags,
							    &addr));
	sim_answer(s, "map", err);
	r->is_exclusive = false;
	if (err) {
		must_be_refusal(s, "map", err);
		s->map_stuck |= s->unmaps_refused != refused;
		return;
	}
	*r = (struct sim_region){ .pages = pages,
				  .mm = mm,
				  .vpn = (uint32_t)(((uint64_t)(uintptr_t)addr - s->mm[mm].base) >>
						    s->frame_shift),
				  .is_discardable = !reserve && kind == 0,
				  .may_be_plain = kind == 1,
				  .generation = r->generation + 1 };
	if (!reserve)
		range_born(s, r, (struct sim_range){ 0, pages }, "map");
}

/* The region from page `first` on. */
static int unmap(struct sim *s, struct sim_region *r, uint32_t first)
{
	static bool was_live[SIM_FIBERS_MAX][SIM_PAGES_MAX];
	bool *live = was_live[s->current->index];
	struct sim_range range = { first, r->pages - first };

	for (uint32_t i = 0; i < range.pages; i++)
		live[i] = page_at(s, r, first + i)->is_live;
	range_dies(s, r, range);
	sim_enter(s, "unmap in mm %llu: page %llu, %llu pages", r->mm, r->vpn + first, range.pages);
	int err = sim_leave(s, sublet_unmap(s->mm[r->mm].mm, addr_of(s, r, first), bytes_of(s, range.pages)));
	sim_answer(s, "unmap", err);
	for (uint32_t i = 0; err && i < range.pages; i++)
		page_at(s, r, first + i)->is_live = live[i];
	if (err && err != -EBUSY)
		must_be_refusal(s, "unmap", err);
	if (!err && !first)
		r->generation++;
	if (!err)
		r->pages = first;
	return err;
}

static void do_unmap(struct sim *s, struct sim_region *r)
{
	uint32_t unit = unit_pages(s->arena), first = 0;

	/* Who unmaps under a pin is refused; but plain memory has no count of its pins, so that is for the caller to know. */
	if (r->may_be_plain && r->pins)
		return;
	if (sim_one_in(s, 3) && r->pages > unit)
		first = (1 + sim_below(s, (r->pages - 1) / unit)) * unit;
	(void)unmap(s, r, first);
}

static void do_decommit(struct sim *s, struct sim_region *r)
{
	struct sim_range range = range_of(s, r, r->pages);

	if (r->is_discardable)
		return;
	range_dies(s, r, range);
	sim_enter(s, "decommit in mm %llu: page %llu, %llu pages", r->mm, r->vpn + range.first, range.pages);
	if (sim_leave(s,
		      sublet_decommit(s->mm[r->mm].mm, addr_of(s, r, range.first), bytes_of(s, range.pages))))
		sim_violation(s, "decommit is refused");
}

static void do_commit(struct sim *s, struct sim_region *r)
{
	uint32_t first = sim_below(s, r->pages), pages = 0;
	uint32_t flags = sim_one_in(s, 3) ? SUBLET_PLAIN_OK : 0, most = 1 + sim_below(s, 40);

	while (first < r->pages && page_at(s, r, first)->is_live)
		first++;
	while (first + pages < r->pages && pages < most && !page_at(s, r, first + pages)->is_live)
		pages++;
	if (r->is_discardable || !pages || r->pins || device_uses(s, r->mm, r->vpn, r->pages))
		return;
	r->may_be_plain |= flags != 0;
	sim_enter(s, "commit in mm %llu: page %llu, %llu pages", r->mm, r->vpn + first, pages);
	int err =
		sim_leave(s, sublet_commit(s->mm[r->mm].mm, addr_of(s, r, first), bytes_of(s, pages), flags));
	sim_answer(s, "commit", err);
	if (err)
		must_be_refusal(s, "commit", err);
	else
		range_born(s, r, (struct sim_range){ first, pages }, "commit");
}

/* Locked again: each page as it was, or zero if that was told (G1); what was locked all the time, as it was. */
static void locked_check(struct sim *s, struct sim_region *r, struct sim_range range, const bool *was_live,
			 int told)
{
	for (uint32_t i = range.first; i < range.first + range.pages; i++) {
		struct sim_page *p = page_at(s, r, i);
		bool same = p->kind != KIND_NONE, zero = p->kind != KIND_NONE && !was_live[i - range.first];
		for (uint32_t w = 0; w < SIM_WORDS; w++) {
			same = same && mm_peek(s, p, w) == p->value[w];
			zero = zero && !mm_peek(s, p, w);
		}
		if (!same && !(zero && told == SUBLET_DISCARDED))
			sim_violation(s,
				      "lock: mm %u page %u is neither as it was, nor told to be dropped (G1)",
				      r->mm, r->vpn + i);
		for (uint32_t w = 0; w < SIM_WORDS; w++)
			p->value[w] = mm_peek(s, p, w);
		p->is_live = true;
	}
}

static void do_unlock(struct sim *s, struct sim_region *r, struct sim_range range)
{
	uint32_t unit = unit_pages(s->arena), end = range.first + range.pages;
	uint32_t first = (range.first + unit - 1) / unit * unit;

	end = end == r->pages ? end : end / unit * unit;
	if (first < end)
		range_dies(s, r, (struct sim_range){ first, end - first });
	sim_enter(s, "unlock in mm %llu: page %llu, %llu pages", r->mm, r->vpn + range.first, range.pages);
	int answer = sim_leave(s, sublet_unlock(s->mm[r->mm].mm, addr_of(s, r, range.first),
						bytes_of(s, range.pages)));
	if (first < end ? answer != SUBLET_UNLOCKED && answer != SUBLET_KEPT : answer != -EINVAL)
		sim_violation(s, "unlock: %d", answer);
	if (first < end)
		cover_event(s, answer == SUBLET_KEPT ? "unlock: kept" : "unlock: unlocked");
}

static void do_lock(struct sim *s, struct sim_region *r, struct sim_range range)
{
	static bool was_live[SIM_FIBERS_MAX][SIM_PAGES_MAX];
	bool *live = was_live[s->current->index];

	for (uint32_t i = 0; i < range.pages; i++)
		live[i] = page_at(s, r, range.first + i)->is_live;
	range_dies(s, r, range); /* what is locked already is not, where it fails */
	sim_enter(s, "lock in mm %llu: page %llu, %llu pages", r->mm, r->vpn + range.first, range.pages);
	int told = sim_leave(s, sublet_lock(s->mm[r->mm].mm, addr_of(s, r, range.first),
					    bytes_of(s, range.pages)));
	if (told < 0) {
		sim_answer(s, "lock", told);
		must_be_refusal(s, "lock", told);
		return;
	}
	cover_event(s, told == SUBLET_INTACT ? "lock: intact" : "lock: discarded");
	locked_check(s, r, range, live, told);
}

/* Some of it, or all; mostly what was not so before. */
static void do_lock_or_unlock(struct sim *s, struct sim_region *r)
{
	struct sim_range range = { 0, r->pages };
	bool any_live = false;

	if (!r->is_discardable || device_uses(s, r->mm, r->vpn, r->pages))
		return;
	if (sim_one_in(s, 2))
		range = range_of(s, r, r->pages);
	if (sim_one_in(s, 4) ? sim_one_in(s, 2) : range_is_live(s, r, range))
		do_unlock(s, r, range);
	else
		do_lock(s, r, range);
	for (uint32_t i = 0; i < r->pages; i++)
		any_live |= page_at(s, r, i)->is_live;
	r->is_unlocked = !any_live;
}

static void do_access(struct sim *s, struct sim_region *r, bool is_store)
{
	for (uint32_t n = 1 + sim_below(s, 6); n; n--) {
		uint32_t i = sim_below(s, r->pages), w = sim_below(s, SIM_WORDS);
		if (!page_at(s, r, i)->is_live)
			continue;
		if (is_store)
			mm_store(s, r->mm, r->vpn + i, w, sim_random(s) >> 20 | 1);
		else
			mm_load_check(s, r->mm, r->vpn + i, w);
	}
}

/* Moves that nobody asked for: a page of a region; now and then the engine picks one, which costs it a long look. */
static void do_chaos(struct sim *s)
{
	struct sim_region *r = region_get(s, false);

	if (!r)
		return;
	struct sublet_mm *mm = s->mm[r->mm].mm;
	uint32_t vpn = r->vpn + sim_below(s, r->pages);
	struct sublet__window_range to = { .to = (enum sublet__move_to)sim_below(s, 4),
					   .nowait = sim_one_in(s, 3),
					   .linearise = sim_one_in(s, 8) };
	region_put(r);
	sim_enter(s, "move in mm %llu: page %llu, to %llu", r->mm, vpn, to.to);
	sublet__mm_relieve(mm);
	int64_t moved = sim_one_in(s, 100) ? (int64_t)sublet__chaos_move(s->arena, mm, sim_random(s))
					   : sublet__move_page(mm, vpn, &to);
	(void)sim_leave(s, 0);
	cover_event(s, moved > 0 ? "chaos: moved" : "chaos: refused");
}

/*
 * mlock, mprotect: the kernel's pages are marked after the engine was told, and unmarked before, so that at no time
 * does the engine know less than what it must keep. A page that gets its memory between the two, by a commit of its
 * unit's other pages, is none of the program's yet, which can only protect what it has.
 */
static void do_note(struct sim *s, struct sim_region *r, bool protect)
{
	struct sim_range range = range_of(s, r, 12);
	bool on = sim_one_in(s, 2);
	struct sublet_mm *mm = s->mm[r->mm].mm;

	if (r->is_noted)
		return; /* of two that contradict each other nobody knows which is the last */
	r->is_noted = true;
	for (uint32_t i = range.first; i < range.first + range.pages; i++) {
		struct sim_page *p = page_at(s, r, i);
		p->is_seen = p->kind == KIND_SHARED || p->kind == KIND_PRIVATE || p->kind == KIND_COPIED;
	}
	for (uint32_t set = 0; set < 2; set++) {
		for (uint32_t i = range.first; set == on && i < range.first + range.pages; i++) {
			struct sim_page *p = page_at(s, r, i);
			bool mark = on && p->is_seen;
			if (protect)
				p->is_protected = mark;
			else
				p->locked = mark;
		}
		if (set)
			break;
		sim_enter(s,
			  protect ? "note protected, mm %llu: page %llu, %llu pages"
				  : "note locked, mm %llu: page %llu, %llu pages",
			  r->mm, r->vpn + range.first, range.pages);
		if (protect)
			(void)sublet__mm_note_protected(mm, addr_of(s, r, range.first),
							bytes_of(s, range.pages), on);
		else
			sublet__mm_note_locked(mm, addr_of(s, r, range.first), bytes_of(s, range.pages), on);
		(void)sim_leave(s, 0);
	}
	r->is_noted = false;
}

void work_memory(struct sim *s, enum sim_op op)
{
	bool is_shared = op == OP_READ || op == OP_WRITE || op == OP_NOTE_LOCKED || op == OP_NOTE_PROTECTED;
	struct sim_region *r;

	if (op == OP_MAP || op == OP_RESERVE) {
		do_map(s, op == OP_RESERVE);
		return;
	}
	if (op == OP_CHAOS) {
		do_chaos(s);
		return;
	}
	r = is_shared ? region_get(s, true) : region_take(s);
	if (!r)
		return;
	if (op == OP_READ || op == OP_WRITE)
		do_access(s, r, op == OP_WRITE);
	else if (is_shared)
		do_note(s, r, op == OP_NOTE_PROTECTED);
	else if (op == OP_UNMAP)
		do_unmap(s, r);
	else if (op == OP_DECOMMIT)
		do_decommit(s, r);
	else if (op == OP_COMMIT)
		do_commit(s, r);
	else
		do_lock_or_unlock(s, r);
	if (is_shared)
		region_put(r);
	else
		r->is_exclusive = false;
}

void work_memory_close(struct sim *s)
{
	for (uint32_t i = 0; i < SIM_REGIONS_MAX; i++) {
		int err = s->region[i].pages ? unmap(s, &s->region[i], 0) : 0;
		if (err)
			sim_violation(s, "mm %u page %u cannot be unmapped at the end: %d", s->region[i].mm,
				      s->region[i].vpn, err);
	}
}

/* ---- fork ---- */

static int do_restore(struct sim *s, struct sim_mm *mm)
{
	uint32_t epoch = sublet__mm_fork_epoch(mm->mm);

	sim_step(s);
	if (mm->is_restoring || mm->child[0].is_alive || mm->child[1].is_alive)
		return -EAGAIN;
	mm->is_restoring = true;
	sim_enter(s, "restore of mm %llu, epoch %llu", mm->index, epoch, 0);
	int err = sim_leave(s, sublet__mm_fork_restore(mm->mm, epoch));
	sim_answer(s, "restore", err);
	mm->is_restoring = false;
	if (err && err != -EAGAIN)
		sim_violation(s, "restore: %d", err);
	return err;
}

/* Whether a page of it lies in a window that a claim is emptying. */
static bool region_is_wanted(struct sim *s, const struct sim_region *r)
{
	for (const struct sublet__isolation *w = s->arena->zone[ZONE_AREA].isolations; w; w = w->next)
		for (uint32_t i = 0; i < r->pages; i++) {
			const struct sim_page *p = page_at(s, r, i);
			if (p->kind != KIND_NONE && p->kind != KIND_PLAIN && p->pfn >= w->first_pfn &&
			    p->pfn < w->end_pfn)
				return true;
		}
	return false;
}

static struct sim_region *region_wanted(struct sim *s, const struct sim_mm *mm)
{
	for (uint32_t i = 0; i < SIM_REGIONS_MAX; i++) {
		struct sim_region *r = &s->region[i];
		if (r->pages && !r->is_exclusive && !r->users && !r->pins && r->mm == mm->index &&
		    region_is_wanted(s, r))
			return r;
	}
	return NULL;
}

/* A child that is gone at once, to run another program, say: what is unmapped meanwhile is parked for a moment only. */
static void child_short(struct sim *s, struct sim_mm *mm, struct sim_child *child)
{
	struct sim_region *r = region_wanted(s, mm);

	if (!r)
		return;
	r->is_exclusive = true;
	(void)unmap(s, r, 0);
	r->is_exclusive = false;
	if (child->is_alive)
		mm_child_exit(mm, child);
	(void)do_restore(s, mm);
}

static void do_fork(struct sim *s, struct sim_mm *mm)
{
	struct sim_child *child = mm->child[0].is_alive ? &mm->child[1] : &mm->child[0];

	if (mm->is_forking || child->is_alive)
		return;
	mm->is_forking = true;
	sim_enter(s, "fork of mm %llu", mm->index, 0, 0);
	int err = sublet__mm_fork_begin(mm->mm, engine_now(s->arena) + SUBLET__FORK_WAIT_NS);
	sim_step(s);
	if (!err)
		mm_fork(mm, child);
	sublet__mm_fork_end(mm->mm, err ? 0 : 4711);
	(void)sim_leave(s, err);
	sim_answer(s, "fork", err);
	if (err) /* no pin and no device is an error */
		must_be_refusal(s, "fork", err);
	mm->is_forking = false;
	if (!err)
		child_short(s, mm, child);
}

static void do_child_exit(struct sim *s, struct sim_mm *mm)
{
	struct sim_child *child = &mm->child[sim_below(s, 2)];

	sim_step(s);
	if (child->is_alive) {
		sim_trace(s, "a child of mm %llu exits", mm->index, 0, 0, 0);
		mm_child_exit(mm, child);
	}
}

void work_fork(struct sim *s, struct sim_actor *a, enum sim_op op)
{
	struct sim_mm *mm = &s->mm[sim_below(s, s->mms)];

	if (op == OP_FORK) {
		work_pin_end(s, a); /* or it waits for itself, a second long */
		do_fork(s, mm);
	}
	if (op == OP_CHILD_EXIT)
		do_child_exit(s, mm);
	if (op == OP_RESTORE)
		(void)do_restore(s, mm);
}

void work_fork_close(struct sim *s)
{
	for (uint32_t i = 0; i < s->mms; i++) {
		struct sim_mm *mm = &s->mm[i];
		for (uint32_t c = 0; c < 2; c++)
			if (mm->child[c].is_alive)
				mm_child_exit(mm, &mm->child[c]);
		for (uint32_t vpn = 0; vpn < mm->pages; vpn++)
			mm->page[vpn].is_protected = false;
		sim_enter(s, "unprotect all of mm %llu", i, 0, 0);
		for (uint32_t n = 0; n < SIM_REGIONS_MAX; n++)
			if (s->region[n].pages && s->region[n].mm == i && s->weight[OP_NOTE_PROTECTED])
				(void)sublet__mm_note_protected(mm->mm, addr_of(s, &s->region[n], 0),
								bytes_of(s, s->region[n].pages), false);
		(void)sim_leave(s, 0);
		for (uint32_t tries = 0; do_restore(s, mm); tries++) {
			if (tries == 100)
				sim_violation(s, "mm %u cannot be restored at the end", i);
			sim_sleep(s, SUBLET_MS);
		}
		/* A long-term pin, of a buffer too, that went while a fork was under way leaves it to the next fork. */
		bool has_long_pins = s->weight[OP_PIN_LONG] || s->weight[OP_BO];
		for (uint32_t vpn = 0; vpn < mm->pages; vpn++)
			if (mm->page[vpn].uninherited && !has_long_pins)
				sim_violation(s, "mm %u page %u is left out of children for good", i, vpn);
	}
}
