/* SPDX-License-Identifier: MIT */
/*
 * Whoever shares memory with the programs that live in it: pins, claims, and drivers that keep a translation by the
 * collision-retry sequence of sublet/notifier.h.
 *
 * A pin that was given is checked at every step: its frames stay (G2), a long-term one's lie outside the area (G3). A
 * claim's frames are zero, and nobody else's (G9). What a driver keeps leads to where the pages are (G4).
 */
#include "sim.h"

#include <string.h>

#define LONG_PAGES 8u

static const char owner[] = "sim";

static struct sim_page *page_at(struct sim *s, const struct sim_region *r, uint32_t i)
{
	return &s->mm[r->mm].page[r->vpn + i];
}

/* ---- pins ---- */

/* What a pin that was given is of: from here on these frames stay where they are. */
static void pin_given(struct sim *s, struct sim_region *r, struct sim_range range, struct sim_pin *pin)
{
	pin->is_held = true;
	pin->region = (uint32_t)(r - s->region);
	pin->vpn = r->vpn + range.first;
	pin->pages = range.pages;
	pin->release_ns = s->now_ns + sim_below(s, 2000) * SUBLET_US;
	for (uint32_t i = 0; i < range.pages; i++) {
		const struct sim_page *p = page_at(s, r, range.first + i);
		if (p->kind != KIND_SHARED && p->kind != KIND_PLAIN)
			sim_violation(s, "a pin of mm %u page %u, which is %s", r->mm, pin->vpn + i,
				      cover_state_name(COVER_PAGE, p->kind));
		pin->pfn[i] = p->kind == KIND_PLAIN ? UINT32_MAX : p->pfn;
		if (pin->pfn[i] != UINT32_MAX)
			s->held[p->pfn]++;
	}
	r->pins++;
}

static void extents_check(struct sim *s, const struct sim_pin *pin)
{
	struct sublet_extent extent[SIM_PIN_PAGES];
	uint32_t page = 0;

	sim_enter(s, "extents of a pin", 0, 0, 0);
	int count = sim_leave(s, sublet_pin_extents(&pin->pin, 0, extent, SIM_PIN_PAGES));
	for (int i = 0; i < count; i++)
		for (uint64_t at = 0; at < extent[i].bytes; at += (uint64_t)1 << s->frame_shift, page++)
			if (page >= pin->pages ||
			    pin->pfn[page] != (extent[i].offset_bytes + at) >> s->frame_shift)
				sim_violation(s, "extent %d of a pin leads to frame %llu, not %u", i,
					      (unsigned long long)((extent[i].offset_bytes + at) >>
								   s->frame_shift),
					      page < pin->pages ? pin->pfn[page] : UINT32_MAX);
	/* A decommitted page in the middle of a folio is pinned with it, and has no extent. */
	const struct sim_region *r = &s->region[pin->region];
	if (page < pin->pages && pin->pfn[page] != UINT32_MAX && s->mm[r->mm].page[pin->vpn + page].is_live)
		sim_violation(s, "the extents of a pin end after %u pages of %u (%d)", page, pin->pages,
			      count);
}

static void answer_check(struct sim *s, const struct sim_region *r, struct sim_range range, uint32_t flags,
			 int err)
{
	bool is_long = flags & SUBLET_PIN_LONGTERM;
	bool ok = err == 0 || (err == -EAGAIN && (flags & SUBLET_PIN_NOWAIT)) ||
		  (err == -EFAULT && (!range_is_live(s, r, range) || (is_long && r->may_be_plain))) ||
		  (err == -EBUSY && (is_long || s->has_forks)) ||
		  (is_long && (err == -ENOMEM || err == -ENOSPC || (err == -EIO && s->faults)));

	sim_answer(s, is_long ? "long-term pin" : "pin", err);
	if (!ok)
		sim_violation(s, "pin of mm %u page %u, %u pages, flags %x: %d", r->mm, r->vpn + range.first,
			      range.pages, flags, err);
}

/* A device writes under a pin: to the frame, and nothing marks the page dirty. */
static void pin_write(struct sim *s, const struct sim_pin *pin)
{
	sim_step(s);
	if (!pin->is_held || !pin->writes)
		return;
	uint32_t i = sim_below(s, pin->pages), w = sim_below(s, SIM_WORDS), pfn = pin->pfn[i];
	const struct sim_region *r = &s->region[pin->region];
	struct sim_page *p = &s->mm[r->mm].page[pin->vpn + i];
	if (pfn == UINT32_MAX || !p->is_live || r->is_exclusive)
		return;
	if (p->blocked &&
	    !p->remapped) /* once it is at its new frame it may be pinned there, before the wake */
		sim_violation(s, "mm %u page %u is blocked under a pin (G2)", r->mm, pin->vpn + i);
	p->value[w] = s->word[pfn][w] = sim_random(s) >> 20 | 1;
	sim_trace(s, "a device writes to frame %llu, mm %llu page %llu, under a pin: %llu", pfn, r->mm,
		  pin->vpn + i, p->value[w]);
}

static void unpin(struct sim *s, struct sim_pin *pin)
{
	for (uint32_t i = 0; i < pin->pages; i++)
		if (pin->pfn[i] != UINT32_MAX)
			s->held[pin->pfn[i]]--;
	pin->is_held = false;
	sim_enter(s, "unpin mm %llu: page %llu, %llu pages", s->region[pin->region].mm, pin->vpn, pin->pages);
	s->region[pin->region].pins--;
	if (sim_leave(s, sublet_unpin(&pin->pin)))
		sim_violation(s, "unpin is refused");
}

static void do_pin(struct sim *s, struct sim_actor *a, bool is_long)
{
	struct sim_region *r;
	struct sim_pin *pin = NULL;
	uint32_t flags = sim_one_in(s, 3) ? SUBLET_PIN_READ : SUBLET_PIN_WRITE;

	for (uint32_t i = 0; i < SIM_PINS_MAX && !pin; i++)
		pin = a->pin[i].is_held ? NULL : &a->pin[i];
	if (!pin || !(r = region_get(s, !sim_one_in(s, 20))))
		return;
	struct sim_range range = range_of(s, r, is_long ? LONG_PAGES : SIM_PIN_PAGES);
	flags |= (sim_one_in(s, 3) ? SUBLET_PIN_NOWAIT : 0) | (is_long ? SUBLET_PIN_LONGTERM : 0);
	sim_enter(s,
		  is_long ? "long-term pin of mm %llu: page %llu, %llu pages"
			  : "pin of mm %llu: page %llu, %llu pages",
		  r->mm, r->vpn + range.first, range.pages);
	int err = sublet_pin(s->mm[r->mm].mm, mm_addr(s, r->mm, r->vpn + range.first),
			     (uint64_t)range.pages << s->frame_shift, flags, sim_one_in(s, 2) ? owner : NULL,
			     &pin->pin);
	if (!err) {
		pin->is_long = is_long;
		pin->writes = flags & SUBLET_PIN_WRITE;
		pin_given(s, r, range, pin);
	}
	answer_check(s, r, range, flags, sim_leave(s, err));
	region_put(r);
	if (err)
		return;
	if (sim_one_in(s, 4))
		extents_check(s, pin);
	if (!is_long && sim_one_in(s, 2)) { /* one I/O */
		for (uint32_t n = sim_below(s, 4); n; n--)
			pin_write(s, pin);
		unpin(s, pin);
	} else if (!s->no_faults && sim_one_in(s, 12)) {
		cover_event(s, "fault: a thread stops while it holds a pin");
		sim_sleep(s, sim_below(s, 20000) * SUBLET_US);
	}
}

void work_pin(struct sim *s, struct sim_actor *a, enum sim_op op)
{
	if (op == OP_PIN || op == OP_PIN_LONG) {
		do_pin(s, a, op == OP_PIN_LONG);
	} else if (op == OP_PIN_WRITE) {
		pin_write(s, &a->pin[sim_below(s, SIM_PINS_MAX)]);
	} else if (op == OP_PIN_LIMIT) {
		uint64_t frames = 1 + sim_below(s, s->normal_frames + 1);
		sublet_pin_limit(s->mm[sim_below(s, s->mms)].mm, frames << s->frame_shift);
	} else {
		for (uint32_t i = 0; i < SIM_PINS_MAX; i++)
			if (a->pin[i].is_held && (a->pin[i].release_ns <= s->now_ns || sim_one_in(s, 3)))
				unpin(s, &a->pin[i]);
	}
}

void work_pin_end(struct sim *s, struct sim_actor *a)
{
	for (uint32_t i = 0; i < SIM_PINS_MAX; i++)
		if (a->pin[i].is_held)
			unpin(s, &a->pin[i]);
}

/* ---- claims ---- */

static void claim_cover(struct sim *s, const struct sublet_claim *claim, int err)
{
	static const char *const blocker[] = {
		[SUBLET_BLOCKER_PIN] = "claim: blocker pin",
		[SUBLET_BLOCKER_CLAIM] = "claim: blocker claim",
		[SUBLET_BLOCKER_CHILD] = "claim: blocker child",
		[SUBLET_BLOCKER_PROTECTED] = "claim: blocker protected",
		[SUBLET_BLOCKER_MAPPINGS] = "claim: blocker mappings",
		[SUBLET_BLOCKER_NOROOM] = "claim: blocker noroom",
		[SUBLET_BLOCKER_PLATFORM] = "claim: blocker platform",
		[SUBLET_BLOCKER_NOTIFIER] = "claim: blocker notifier",
		[SUBLET_BLOCKER_CALL] = "claim: blocker call",
	};

	sim_answer(s, "claim", err);
	for (uint32_t i = 0; err && i < claim->blocker_count; i++)
		if (claim->blockers[i].kind < sizeof blocker / sizeof blocker[0] &&
		    blocker[claim->blockers[i].kind])
			cover_event(s, blocker[claim->blockers[i].kind]);
	if (!err && claim->windows_tried > 1)
		cover_event(s, "claim: 0, more than one window");
	if (!err && claim->moved_bytes)
		cover_event(s, "claim: 0, moved");
	if (!err && claim->dropped_bytes)
		cover_event(s, "claim: 0, dropped");
	if (!err && claim->waits)
		cover_event(s, "claim: 0, waited");
}

static void claim_given(struct sim *s, struct sim_claim *c, uint64_t bytes, bool zeroed)
{
	c->first_pfn = (uint32_t)(c->claim.offset_bytes >> s->frame_shift);
	c->frames = (uint32_t)(c->claim.bytes >> s->frame_shift);
	c->is_written = false;
	if (c->claim.bytes < bytes || c->first_pfn + c->frames > s->area_frames || c->claim.blocker_count)
		sim_violation(s, "a claim of %llu bytes: frames %u, %u of them", (unsigned long long)bytes,
			      c->first_pfn, c->frames);
	for (uint32_t pfn = c->first_pfn; pfn < c->first_pfn + c->frames; pfn++) {
		if (s->owner[pfn] || s->child[pfn] || s->held[pfn])
			sim_violation(s, "frame %u is claimed, and in use (owner %x)", pfn, s->owner[pfn]);
		s->owner[pfn] = OWNER_CLAIM | (uint32_t)(c - s->claim);
		for (uint32_t w = 0; w < SIM_WORDS; w++) {
			if (zeroed && s->word[pfn][w])
				sim_violation(s, "frame %u of a claim is not zero (G9)", pfn);
			s->word[pfn][w] = c->claim.id << 16 | pfn;
		}
	}
}

static void do_claim(struct sim *s)
{
	struct sim_claim *c = &s->claim[sim_below(s, SIM_CLAIMS_MAX)];
	uint32_t frames = 1 + sim_below(s, sim_one_in(s, 2) ? 8 : s->area_frames / 2);
	struct sublet_claim_options o = {
		SUBLET_OPTIONS(sublet_claim_options),
		.align_bytes = sim_one_in(s, 2) ? 0 : 1ull << sim_below(s, 22),
		.deadline_ns = (10 + sim_below(s, 3000)) * SUBLET_US,
		.owner = owner,
	};

	if (c->is_busy || c->frames)
		return;
	frames = sim_one_in(s, 60) ? s->area_frames + 1 : frames;
	o.flags = (sim_one_in(s, 4) ? SUBLET_CLAIM_NOWAIT : 0) |
		  (sim_one_in(s, 4) ? SUBLET_CLAIM_NOZERO : 0) |
		  (sim_one_in(s, 2) ? SUBLET_CLAIM_DEAREST : 0);
	c->is_busy = true;
	sim_enter(s, "claim %llu frames, flags %llu, deadline %llu us", frames, o.flags,
		  o.deadline_ns / 1000);
	int err = sublet_claim(s->arena, (uint64_t)frames << s->frame_shift, &o, &c->claim);
	if (!err)
		claim_given(s, c, (uint64_t)frames << s->frame_shift, !(o.flags & SUBLET_CLAIM_NOZERO));
	(void)sim_leave(s, err);
	claim_cover(s, &c->claim, err);
	if (err && err != -EBUSY && err != -ENOMEM && !(err == -E2BIG && frames > s->area_frames))
		sim_violation(s, "claim: %d", err);
	if (err == -EBUSY && !c->claim.blocker_count)
		sim_violation(s, "a claim is refused, and nobody is named (G5)");
	c->is_busy = false;
}

static int release(struct sim *s, struct sim_claim *c)
{
	uint32_t first = c->first_pfn, frames = c->frames;

	for (uint32_t pfn = first; pfn < first + frames; pfn++) {
		if (!c->is_written &&
		    (s->word[pfn][0] != (c->claim.id << 16 | pfn) || s->word[pfn][1] != s->word[pfn][0]))
			sim_violation(s, "frame %u of a claim was written by another (G9)", pfn);
		s->owner[pfn] = 0;
	}
	sim_enter(s, "release frames %llu, %llu of them", first, frames, 0);
	int err = sim_leave(s, sublet_release(s->arena, &c->claim));
	sim_answer(s, "release", err);
	for (uint32_t pfn = first; err && pfn < first + frames; pfn++)
		s->owner[pfn] = OWNER_CLAIM | (uint32_t)(c - s->claim);
	if (!err)
		c->frames = 0;
	return err;
}

/* A claim with a buffer over it, which nobody destroys meanwhile: it is not released, and its frames stay its own. */
static void release_refused(struct sim *s, struct sim_claim *c, struct sim_bo *b)
{
	b->is_busy = true;
	sim_enter(s, "release frames %llu, %llu of them, under a buffer", c->first_pfn, c->frames, 0);
	int err = sim_leave(s, sublet_release(s->arena, &c->claim));
	sim_answer(s, "release", err);
	if (err != -EBUSY)
		sim_violation(s, "release under a buffer: %d", err);
	b->is_busy = false;
}

static void do_release(struct sim *s)
{
	struct sim_claim *c = &s->claim[sim_below(s, SIM_CLAIMS_MAX)];
	struct sim_bo *bo = NULL;

	if (c->is_busy || !c->frames)
		return;
	c->is_busy = true;
	for (uint32_t i = 0; i < sizeof s->bo / sizeof s->bo[0]; i++)
		if (s->bo[i].is_live && s->bo[i].claim == (uint32_t)(c - s->claim) && (!bo || bo->is_busy))
			bo = &s->bo[i];
	if (bo) {
		if (!bo->is_busy)
			release_refused(s, c, bo);
	} else if (!c->is_written) {
		int err = release(s, c);
		if (err)
			sim_violation(s, "release: %d", err);
	} else {
		(void)release(s, c); /* a device that cannot be stopped may still be at it */
	}
	c->is_busy = false;
}

/* ---- drivers ---- */

static int driver_told(void *ctx, const struct sublet_invalidation *inv)
{
	struct sim_driver *d = ctx;
	struct sim *s = d->sim;

	sim_step(s);
	cover_event(s, "notifier: told");
	if (!inv->may_block && (d->is_locked || sim_one_in(s, 10))) {
		cover_event(s, "notifier: declines");
		return -EAGAIN;
	}
	while (d->is_locked)
		sim_sleep(s, SUBLET_US);
	uint32_t vpn = (uint32_t)((inv->addr - s->mm[d->mm].base) >> s->frame_shift);
	uint32_t pages = (uint32_t)((inv->bytes + (1u << s->frame_shift) - 1) >> s->frame_shift);
	for (uint32_t i = 0; i < d->pages; i++)
		if (d->vpn + i - vpn < pages)
			d->frame[i] = 0;
	sim_trace(s, "driver %llu is told: page %llu, %llu pages, event %llu", d->index, vpn, pages,
		  inv->event);
	if (!d->removes_itself)
		return 0;
	d->is_leaving = true;
	if (!sublet_notifier_remove(&d->notifier)) {
		cover_event(s, "notifier: removed in its callback");
		memset(d->frame, 0, sizeof d->frame);
		d->removes_itself = d->is_registered = false;
	}
	d->is_leaving = false;
	return 0;
}

static void do_driver_add(struct sim *s)
{
	static const struct sublet_notifier_ops ops = { SUBLET_OPTIONS(sublet_notifier_ops),
							.invalidate = driver_told };
	struct sim_driver *d = &s->driver[sim_below(s, SIM_DRIVERS_MAX)];
	struct sim_region *r;

	if (d->is_used || !(r = region_get(s, false)))
		return;
	struct sim_range range = range_of(s, r, SIM_DRIVER_PAGES);
	*d = (struct sim_driver){ .sim = s,
				  .index = (uint32_t)(d - s->driver),
				  .is_used = true,
				  .is_busy = true,
				  .is_registered = true,
				  .mm = r->mm,
				  .vpn = r->vpn + range.first,
				  .pages = range.pages };
	region_put(r);
	sim_enter(s, "notifier of mm %llu: page %llu, %llu pages", d->mm, d->vpn, d->pages);
	int err = sim_leave(s, sublet_notifier_add(s->mm[d->mm].mm, mm_addr(s, d->mm, d->vpn),
						   (uint64_t)d->pages << s->frame_shift, &ops, d, owner,
						   &d->notifier));
	if (err && !(err == -ENOMEM && s->faults))
		sim_violation(s, "notifier: %d", err);
	if (err)
		d->is_used = d->is_registered = false;
	d->removes_itself = !err && d->is_registered && sim_one_in(s, 6);
	d->is_busy = false;
}

/* Walk the pages; what the walk found is right only if nothing began meanwhile. */
static void driver_walk(struct sim *s, struct sim_driver *d, uint32_t *found)
{
	const void *addr = mm_addr(s, d->mm, d->vpn);
	uint64_t bytes = (uint64_t)d->pages << s->frame_shift, from = 0;
	struct sublet_extent extent;

	memset(found, 0, d->pages * sizeof *found);
	while (from < bytes) {
		uint32_t page = (uint32_t)(from >> s->frame_shift), more = 1;
		if (sublet_mm_extents(s->mm[d->mm].mm, addr, bytes, from, &extent, 1) == 1) {
			more = (uint32_t)(extent.bytes >> s->frame_shift);
			for (uint32_t i = 0; i < more; i++)
				found[page + i] = (uint32_t)(extent.offset_bytes >> s->frame_shift) + i + 1;
		}
		from += (uint64_t)more << s->frame_shift;
	}
}

static void driver_put_in(struct sim *s, struct sim_driver *d, const uint32_t *found)
{
	for (uint32_t i = 0; i < d->pages; i++) {
		const struct sim_page *p = &s->mm[d->mm].page[d->vpn + i];
		d->frame[i] = found[i];
		/* What was unlocked just now keeps its frames, until it is dropped. */
		if (!found[i] || (p->kind == KIND_NONE && s->state[found[i] - 1] == FRAME_DISCARDABLE))
			continue;
		if (p->kind != KIND_SHARED || p->pfn != found[i] - 1 || p->blocked || p->tracked)
			sim_violation(
				s, "driver %u puts in frame %u for mm %u page %u, which is %s at %u%s (G4)",
				d->index, found[i] - 1, d->mm, d->vpn + i,
				cover_state_name(COVER_PAGE, p->kind), p->pfn,
				p->blocked || p->tracked ? ", on its way" : "");
	}
}

static void do_driver_read(struct sim *s)
{
	struct sim_driver *d = &s->driver[sim_below(s, SIM_DRIVERS_MAX)];
	uint32_t found[SIM_DRIVER_PAGES];
	uint64_t seq;

	if (!d->is_used || d->is_busy || !d->is_registered)
		return;
	d->is_busy = true;
	struct sublet_notifier notifier = d->notifier;
	sim_enter(s, "driver %llu reads mm %llu, page %llu", d->index, d->mm, d->vpn);
	int err = sublet_notifier_read_begin(&notifier, sim_below(s, 3) * 500 * SUBLET_US, &seq);
	if (err == -EINVAL && d->is_registered && !d->is_leaving)
		sim_violation(s, "a notifier that is registered is not known");
	if (!err) {
		driver_walk(s, d, found);
		while (d->is_locked)
			sim_sleep(s, SUBLET_US);
		d->is_locked = true;
		sim_step(s);
		bool again = sublet_notifier_read_retry(&notifier, seq);
		if (!again && d->is_registered)
			driver_put_in(s, d, found);
		d->is_locked = false;
		cover_event(s, again ? "notifier: read, retry" : "notifier: read, put in");
	}
	(void)sim_leave(s, err);
	if (err == -EAGAIN || err == -ETIMEDOUT)
		sim_answer(s, "notifier: read", err);
	d->is_busy = false;
}

static void driver_remove(struct sim *s, struct sim_driver *d)
{
	memset(d->frame, 0, sizeof d->frame); /* from here on nobody tells it */
	sim_enter(s, "driver %llu removes its notifier", d->index, 0, 0);
	int err = sim_leave(s, sublet_notifier_remove(&d->notifier));
	if (err != 0 && !(err == -EINVAL && !d->is_registered))
		sim_violation(s, "notifier is removed: %d", err);
	cover_event(s, "notifier: removed");
	d->is_registered = d->is_used = false;
}

static void do_driver_remove(struct sim *s)
{
	struct sim_driver *d = &s->driver[sim_below(s, SIM_DRIVERS_MAX)];

	if (!d->is_used || d->is_busy)
		return;
	d->is_busy = true;
	d->removes_itself = false;
	driver_remove(s, d);
	d->is_busy = false;
}

/* ---- questions ---- */

static void do_ask(struct sim *s)
{
	struct sublet_stats stats = { SUBLET_OPTIONS(sublet_stats) };
	struct sublet_notifier_stats notifiers = { SUBLET_OPTIONS(sublet_notifier_stats) };
	struct sublet_pin_info pin[4];
	struct sublet_bo_info bo[4];
	struct sublet_pageblock block[8];
	uint64_t next = 0;

	sim_enter(s, "ask", 0, 0, 0);
	if (sublet_arena_stats(s->arena, &stats) || sublet_notifier_stats(s->mm[0].mm, &notifiers))
		sim_violation(s, "no statistics");
	for (size_t n = 1; n; n = sublet_pin_list(s->arena, &next, 4, pin))
		for (size_t i = 0; next && i < n; i++)
			if (pin[i].mm >= s->mms || !pin[i].bytes ||
			    (strcmp(pin[i].owner, owner) && strcmp(pin[i].owner, "pin") &&
			     strcmp(pin[i].owner, "bo")))
				sim_violation(s, "a pin is listed with mm %u, %llu bytes, owner '%.8s'",
					      pin[i].mm, (unsigned long long)pin[i].bytes, pin[i].owner);
	for (next = 0; sublet_bo_list(s->arena, &next, 4, bo);)
		;
	(void)sublet_arena_pageblocks(s->arena, 0, 8, block);
	(void)sim_leave(s, 0);
}

void work_share(struct sim *s, enum sim_op op)
{
	if (op == OP_CLAIM)
		do_claim(s);
	else if (op == OP_RELEASE)
		do_release(s);
	else if (op == OP_DRIVER_ADD)
		do_driver_add(s);
	else if (op == OP_DRIVER_READ)
		do_driver_read(s);
	else if (op == OP_DRIVER_REMOVE)
		do_driver_remove(s);
	else
		do_ask(s);
}

void work_share_close(struct sim *s)
{
	for (uint32_t i = 0; i < SIM_DRIVERS_MAX; i++)
		if (s->driver[i].is_used)
			driver_remove(s, &s->driver[i]);
	for (uint32_t i = 0; i < SIM_CLAIMS_MAX; i++) {
		int err = s->claim[i].frames ? release(s, &s->claim[i]) : 0;
		if (err)
			sim_violation(s, "a claim cannot be released at the end: %d", err);
	}
}
