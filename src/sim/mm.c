/* SPDX-License-Identifier: MIT */
/*
 * Address spaces of a simulated world: what the kernel does for struct sublet__mm_ops, and the program's loads and stores.
 *
 * Each page keeps what was stored through it last, by whomever (value[]); the frame that it leads to must say the same
 * whenever nobody is blocked there, and so must each load (G1). A page that is blocked makes who stores to it wait, and in
 * some worlds who loads too. A device that writes to a frame marks no page dirty.
 */
#include "sim.h"

#include <string.h>

/* ---- who uses a frame ---- */

static uint32_t owner_of(const struct sim_mm *mm, uint32_t vpn)
{
	return OWNER_PAGE | mm->index << 16 | vpn;
}

static void frame_map(struct sim_mm *mm, const char *what, uint32_t pfn, uint32_t vpn)
{
	struct sim *s = mm->sim;

	if (s->owner[pfn] || s->child[pfn])
		sim_violation(s, "%s page %u: frame %u is in use (owner %x, children %u)", what, vpn, pfn,
			      s->owner[pfn], s->child[pfn]);
	s->owner[pfn] = owner_of(mm, vpn);
}

static void frame_unmap(struct sim_mm *mm, const char *what, uint32_t pfn, uint32_t vpn)
{
	struct sim *s = mm->sim;

	if (s->owner[pfn] != owner_of(mm, vpn))
		sim_violation(s, "%s page %u: frame %u is another's (owner %x)", what, vpn, pfn,
			      s->owner[pfn]);
	if (s->held[pfn])
		sim_violation(s, "%s page %u: frame %u is pinned (G2)", what, vpn, pfn);
	s->owner[pfn] = 0;
}

static bool has_frame(const struct sim_page *p)
{
	return p->kind == KIND_SHARED || p->kind == KIND_PRIVATE || p->kind == KIND_COPIED;
}

static void kind_set(struct sim *s, struct sim_page *p, enum sim_kind kind)
{
	cover_transition(s, COVER_PAGE, p->kind, kind);
	p->kind = (uint8_t)kind;
}

static void page_drop(struct sim_mm *mm, uint32_t vpn)
{
	struct sim_page *p = &mm->page[vpn];

	if (p->blocked)
		sim_violation(mm->sim, "page %u is unmapped while it is blocked", vpn);
	if (has_frame(p))
		frame_unmap(mm, "unmap of", p->pfn, vpn);
	if (p->kind != KIND_NONE)
		kind_set(mm->sim, p, KIND_NONE);
	p->locked = p->is_protected = p->is_seen = false;
	p->tracked = p->dirty = p->uninherited = p->block_failed = false;
}

/* ---- the program ---- */

uint64_t mm_peek(const struct sim *s, const struct sim_page *p, uint32_t word)
{
	return has_frame(p) && p->kind != KIND_COPIED ? s->word[p->pfn][word] : p->copy[word];
}

static void page_put(struct sim *s, struct sim_page *p, uint32_t word, uint64_t value)
{
	if (p->kind == KIND_PRIVATE) {
		memcpy(p->copy, s->word[p->pfn], sizeof p->copy);
		kind_set(s, p, KIND_COPIED);
	}
	if (p->kind == KIND_SHARED)
		s->word[p->pfn][word] = value;
	else
		p->copy[word] = value;
	p->dirty |= p->tracked;
	p->value[word] = value;
}

void mm_store(struct sim *s, uint32_t mm, uint32_t vpn, uint32_t word, uint64_t value)
{
	struct sim_page *p = &s->mm[mm].page[vpn];

	sim_step(s);
	while (p->blocked)
		sim_page_wait(s, mm, vpn);
	if (p->kind == KIND_NONE)
		sim_violation(s, "a store to mm %u page %u faults", mm, vpn);
	page_put(s, p, word, value);
	sim_trace(s, "store to mm %llu page %llu word %llu: %llu", mm, vpn, word, value);
}

void mm_load_check(struct sim *s, uint32_t mm, uint32_t vpn, uint32_t word)
{
	struct sim_page *p = &s->mm[mm].page[vpn];

	sim_step(s);
	while (p->blocked && s->reads_wait)
		sim_page_wait(s, mm, vpn);
	if (p->kind == KIND_NONE)
		sim_violation(s, "a load from mm %u page %u faults", mm, vpn);
	uint64_t have = mm_peek(s, p, word);
	if (have != p->value[word])
		sim_violation(s, "mm %u page %u word %u reads %llu, %llu was stored (G1)", mm, vpn, word,
			      (unsigned long long)have, (unsigned long long)p->value[word]);
}

static bool continues(const struct sim_page *before, const struct sim_page *p)
{
	if (!has_frame(before) || !has_frame(p))
		return before->kind == p->kind;
	return p->pfn == before->pfn + 1 && p->locked == before->locked &&
	       (p->kind == KIND_SHARED) == (before->kind == KIND_SHARED);
}

uint32_t mm_mappings(const struct sim_mm *mm)
{
	uint32_t count = 0;

	for (uint32_t vpn = 0; vpn < mm->pages; vpn++)
		count += vpn ? !continues(&mm->page[vpn - 1], &mm->page[vpn])
			     : mm->page[vpn].kind != KIND_NONE;
	return count;
}

/* The kernel's own limit, a little above what the engine was told. */
static int mappings_exhausted(struct sim_mm *mm, uint32_t more)
{
	if (!mm->mapping_limit || mm->sim->no_faults || mm_mappings(mm) + more <= mm->mapping_limit)
		return 0;
	mm->sim->faults++;
	cover_event(mm->sim, "fault: kernel mappings exhausted");
	sim_trace(mm->sim, "fault: kernel mappings of mm %llu are exhausted", mm->index, 0, 0, 0);
	return -ENOMEM;
}

/* ---- what may be asked ---- */

static void range_check(struct sim_mm *mm, const char *what, uint32_t vpn, uint32_t pages)
{
	if (!pages || vpn >= mm->pages || pages > mm->pages - vpn ||
	    vpn / ENGINE_BLOCK_PAGES != (vpn + pages - 1) / ENGINE_BLOCK_PAGES)
		sim_violation(mm->sim, "%s of %u pages from %u on", what, pages, vpn);
}

/* Returns the pages. */
static uint32_t segments_check(struct sim_mm *mm, const char *what, const struct sublet__segment *segs,
			       uint32_t count)
{
	uint32_t pages = 0, frames = mm->sim->frames;

	for (uint32_t i = 0; i < count; i++) {
		if (segs[i].vpn != segs[0].vpn + pages || !segs[i].pages || segs[i].dst_pfn >= frames ||
		    segs[i].pages > frames - segs[i].dst_pfn)
			sim_violation(mm->sim, "%s: segment %u makes no sense", what, i);
		pages += segs[i].pages;
	}
	range_check(mm, what, segs[0].vpn, pages);
	return pages;
}

static int enter(struct sim_mm *mm, enum sim_call call, const char *what, uint32_t vpn, uint32_t pages)
{
	sim_step(mm->sim);
	sim_trace(mm->sim, what, mm->index, vpn, pages, 0);
	return sim_fault(mm->sim, call);
}

/* ---- map, unmap ---- */

static int op_map(void *ctx, const struct sublet__segment *segs, uint32_t count, uint32_t flags)
{
	struct sim_mm *mm = ctx;
	uint32_t pages = segments_check(mm, "map", segs, count);
	int err = enter(mm, CALL_MAP, "map mm %llu page %llu, %llu pages", segs[0].vpn, pages);

	err = err ? err : mappings_exhausted(mm, count + 1);
	if (err)
		return err;
	for (uint32_t n = 0; n < count; n++)
		for (uint32_t i = 0; i < segs[n].pages; i++) {
			uint32_t vpn = segs[n].vpn + i;
			struct sim_page *p = &mm->page[vpn];
			if (p->kind != KIND_NONE && p->kind != KIND_PLAIN)
				sim_violation(mm->sim, "map over page %u, which is mapped", vpn);
			page_drop(mm, vpn);
			kind_set(mm->sim, p, (flags & SUBLET__MAP_PRIVATE) ? KIND_PRIVATE : KIND_SHARED);
			p->pfn = segs[n].dst_pfn + i;
			frame_map(mm, "map of", p->pfn, vpn);
		}
	return 0;
}

static int op_map_plain(void *ctx, uint32_t vpn, uint32_t pages)
{
	struct sim_mm *mm = ctx;

	range_check(mm, "map_plain", vpn, pages);
	int err = enter(mm, CALL_MAP_PLAIN, "map_plain mm %llu page %llu, %llu pages", vpn, pages);
	err = err ? err : mappings_exhausted(mm, 1);
	for (uint32_t at = vpn; at < vpn + pages && !err; at++) {
		if (mm->page[at].kind != KIND_NONE)
			sim_violation(mm->sim, "map_plain over page %u, which is mapped", at);
		kind_set(mm->sim, &mm->page[at], KIND_PLAIN);
		memset(mm->page[at].copy, 0, sizeof mm->page[at].copy);
	}
	return err;
}

static int op_unmap(void *ctx, uint32_t vpn, uint32_t pages)
{
	struct sim_mm *mm = ctx;
	int err = enter(mm, CALL_UNMAP, "unmap mm %llu page %llu, %llu pages", vpn, pages);

	if (err)
		return err;
	if (!pages || vpn >= mm->pages || pages > mm->pages - vpn)
		sim_violation(mm->sim, "unmap of %u pages from %u on", pages, vpn);
	for (uint32_t at = vpn; at < vpn + pages; at++) {
		const struct sim_page *p = &mm->page[at];
		/* Unlocked discardable memory keeps its frames, and devices may: nobody else gets them now. */
		if (has_frame(p) && mm->sim->state[p->pfn] != FRAME_DISCARDABLE)
			device_frames_check(mm->sim, mm->index, at, 1, "unmap");
		page_drop(mm, at);
	}
	return 0;
}

static void op_clear(void *ctx, uint32_t vpn, uint32_t pages)
{
	struct sim_mm *mm = ctx;
	struct sim *s = mm->sim;

	range_check(mm, "clear", vpn, pages);
	sim_trace(s, "clear mm %llu page %llu, %llu pages", mm->index, vpn, pages, 0);
	for (uint32_t at = vpn; at < vpn + pages; at++)
		for (uint32_t w = 0; w < SIM_WORDS; w++) {
			sim_step(s);
			if (mm->page[at].kind == KIND_NONE || mm->page[at].blocked)
				sim_violation(s, "clear of page %u, which is %s", at,
					      mm->page[at].blocked ? "blocked" : "not mapped");
			page_put(s, &mm->page[at], w, 0);
		}
}

/* ---- a move ---- */

static int op_track(void *ctx, uint32_t vpn, uint32_t pages)
{
	struct sim_mm *mm = ctx;

	range_check(mm, "track", vpn, pages);
	if (!mm->sim->has_track)
		sim_violation(mm->sim, "track where there is none");
	int err = enter(mm, CALL_TRACK, "track mm %llu page %llu, %llu pages", vpn, pages);
	for (uint32_t at = vpn; at < vpn + pages && !err; at++) {
		struct sim_page *p = &mm->page[at];
		if (p->kind != KIND_SHARED || p->blocked || p->tracked)
			sim_violation(mm->sim, "track of page %u, which is not shared, blocked, or tracked",
				      at);
		p->tracked = true;
		p->dirty = false;
	}
	return err;
}

static int op_block(void *ctx, uint32_t vpn, uint32_t pages)
{
	struct sim_mm *mm = ctx;

	range_check(mm, "block", vpn, pages);
	if (pages > mm->sim->run_pages_max)
		sim_violation(mm->sim, "block of %u pages: a run has %u at most", pages,
			      mm->sim->run_pages_max);
	int err = enter(mm, CALL_BLOCK, "block mm %llu page %llu, %llu pages", vpn, pages);
	for (uint32_t at = vpn; at < vpn + pages; at++) {
		struct sim_page *p = &mm->page[at];
		if (p->kind != KIND_SHARED || p->blocked)
			sim_violation(mm->sim, "block of page %u, which is not shared, or blocked", at);
		p->blocked = !err;
		p->block_failed = err;
	}
	mm->sim->current->blocked_runs += !err;
	return err;
}

static void op_dirty(void *ctx, uint32_t vpn, uint32_t pages, uint64_t *bitmap)
{
	struct sim_mm *mm = ctx;

	sim_step(mm->sim);
	range_check(mm, "dirty", vpn, pages);
	for (uint32_t i = 0; i < pages; i++) {
		const struct sim_page *p = &mm->page[vpn + i];
		if (!p->tracked || !p->blocked)
			sim_violation(mm->sim, "dirty of page %u, which is not tracked, or not blocked",
				      vpn + i);
		if (p->dirty)
			bitmap[i / 64] |= 1ull << (i % 64);
	}
}

/* The bytes at the new place are those that the program left at the old one. */
static void page_remap(struct sim_mm *mm, uint32_t vpn, uint32_t src_pfn, uint32_t dst_pfn, bool locked)
{
	struct sim *s = mm->sim;
	struct sim_page *p = &mm->page[vpn];

	if (p->kind != KIND_SHARED || !p->blocked || p->pfn != src_pfn)
		sim_violation(s, "remap of page %u, which is not blocked, or not at frame %u", vpn, src_pfn);
	if (p->is_protected)
		sim_violation(s, "remap of page %u, which the program protected", vpn);
	if (p->locked && !locked)
		sim_violation(s, "remap of page %u loses its lock", vpn);
	for (uint32_t w = 0; w < SIM_WORDS; w++)
		if (p->is_live && s->word[dst_pfn][w] != p->value[w])
			sim_violation(s, "remap of page %u word %u: frame %u has %llu, %llu was stored (G1)",
				      vpn, w, dst_pfn, (unsigned long long)s->word[dst_pfn][w],
				      (unsigned long long)p->value[w]);
	frame_unmap(mm, "remap of", src_pfn, vpn);
	p->pfn = dst_pfn;
	p->tracked = p->dirty = p->uninherited = false;
	p->remapped = true;
	frame_map(mm, "remap of", dst_pfn, vpn);
	cover_transition(s, COVER_PAGE, KIND_SHARED, KIND_SHARED);
}

static int op_remap(void *ctx, const struct sublet__segment *segs, uint32_t count, uint32_t flags)
{
	struct sim_mm *mm = ctx;
	uint32_t pages = segments_check(mm, "remap", segs, count);
	int err = enter(mm, CALL_REMAP, "remap mm %llu page %llu, %llu pages", segs[0].vpn, pages);

	err = err ? err : mappings_exhausted(mm, count);
	if (err)
		return err;
	if (flags & SUBLET__MAP_PRIVATE)
		sim_violation(mm->sim, "remap to private");
	device_frames_check(mm->sim, mm->index, segs[0].vpn, pages, "remap");
	for (uint32_t n = 0; n < count; n++)
		for (uint32_t i = 0; i < segs[n].pages; i++)
			page_remap(mm, segs[n].vpn + i, segs[n].src_pfn + i, segs[n].dst_pfn + i,
				   flags & SUBLET__MAP_LOCKED);
	return 0;
}

static void range_release(struct sim_mm *mm, const char *what, uint32_t vpn, uint32_t pages, bool back_out)
{
	range_check(mm, "wake", vpn, pages);
	sim_step(mm->sim);
	sim_trace(mm->sim, what, mm->index, vpn, pages, 0);
	if (mm->page[vpn].blocked) {
		if (!mm->sim->current->blocked_runs--)
			sim_violation(mm->sim, "wake of what another thread blocked");
	}
	for (uint32_t at = vpn; at < vpn + pages; at++) {
		struct sim_page *p = &mm->page[at];
		if (!p->blocked && !(back_out && (p->tracked || p->block_failed)))
			sim_violation(mm->sim, "wake of page %u, which is not blocked", at);
		p->blocked = p->remapped = p->tracked = p->dirty = p->block_failed = false;
	}
	sim_page_wake(mm->sim, mm->index, vpn, pages);
}

static void op_wake(void *ctx, uint32_t vpn, uint32_t pages)
{
	range_release(ctx, "wake mm %llu page %llu, %llu pages", vpn, pages, false);
}

static void op_unblock(void *ctx, uint32_t vpn, uint32_t pages)
{
	range_release(ctx, "unblock mm %llu page %llu, %llu pages", vpn, pages, true);
}

/* ---- fork ---- */

static int op_privatize(void *ctx, const struct sublet__segment *segs, uint32_t count, uint32_t flags)
{
	struct sim_mm *mm = ctx;
	uint32_t pages = segments_check(mm, "privatize", segs, count);
	int err = enter(mm, CALL_PRIVATIZE, "privatize mm %llu page %llu, %llu pages", segs[0].vpn, pages);

	if (err)
		return err;
	device_frames_check(mm->sim, mm->index, segs[0].vpn, pages, "privatize");
	for (uint32_t n = 0; n < count; n++)
		for (uint32_t i = 0; i < segs[n].pages; i++) {
			uint32_t vpn = segs[n].vpn + i;
			struct sim_page *p = &mm->page[vpn];
			if (p->kind != KIND_SHARED || p->blocked || p->pfn != segs[n].dst_pfn + i)
				sim_violation(mm->sim,
					      "privatize of page %u, which is not shared, or elsewhere", vpn);
			if (mm->sim->held[p->pfn])
				sim_violation(mm->sim, "privatize of page %u: frame %u is pinned", vpn,
					      p->pfn);
			if (p->locked && !(flags & SUBLET__MAP_LOCKED))
				sim_violation(mm->sim, "privatize of page %u loses its lock", vpn);
			kind_set(mm->sim, p, KIND_PRIVATE);
			p->uninherited = false;
		}
	return 0;
}

static void page_restore(struct sim_mm *mm, uint32_t vpn, uint32_t pfn, bool locked)
{
	struct sim *s = mm->sim;
	struct sim_page *p = &mm->page[vpn];

	if ((p->kind != KIND_PRIVATE && p->kind != KIND_COPIED) || p->pfn != pfn)
		sim_violation(s, "restore of page %u, which is not private, or elsewhere", vpn);
	if (s->child[pfn])
		sim_violation(s, "restore of page %u while %u children share frame %u", vpn, s->child[pfn],
			      pfn);
	if (p->is_protected)
		sim_violation(s, "restore of page %u, which the program protected", vpn);
	if (p->locked && !locked)
		sim_violation(s, "restore of page %u loses its lock", vpn);
	p->blocked = true; /* who stores waits, for as long as the copy takes */
	for (uint32_t w = 0; p->kind == KIND_COPIED && w < SIM_WORDS; w++) {
		sim_step(s);
		s->word[pfn][w] = p->copy[w];
	}
	p->blocked = false;
	kind_set(s, p, KIND_SHARED);
	sim_page_wake(s, mm->index, vpn, 1);
}

static int op_restore(void *ctx, const struct sublet__segment *segs, uint32_t count, uint32_t flags)
{
	struct sim_mm *mm = ctx;
	uint32_t pages = segments_check(mm, "restore", segs, count);
	int err = enter(mm, CALL_RESTORE, "restore mm %llu page %llu, %llu pages", segs[0].vpn, pages);

	for (uint32_t n = 0; n < count && !err; n++)
		for (uint32_t i = 0; i < segs[n].pages; i++)
			page_restore(mm, segs[n].vpn + i, segs[n].dst_pfn + i, flags & SUBLET__MAP_LOCKED);
	return err;
}

static int op_inherit(void *ctx, uint32_t vpn, uint32_t pages, bool inherit)
{
	struct sim_mm *mm = ctx;

	range_check(mm, "inherit", vpn, pages);
	int err = enter(mm, CALL_INHERIT,
			inherit ? "inherit mm %llu page %llu, %llu pages"
				: "do not inherit mm %llu page %llu, %llu pages",
			vpn, pages);
	for (uint32_t at = vpn; at < vpn + pages && !err; at++) {
		if (mm->page[at].kind == KIND_NONE)
			sim_violation(mm->sim, "inherit of page %u, which is not mapped", at);
		mm->page[at].uninherited = !inherit;
	}
	return err;
}

/* Why a child does not have a page; no step is taken, since a fork is one instant. */
static bool is_long_pinned(struct sim *s, const struct sim_page *p)
{
	s->is_quiet = true;
	uint32_t head = has_frame(p) ? sublet__frame_head(s->arena, p->pfn) : ENGINE_NONE;
	bool is = head != ENGINE_NONE && (a32_load_relaxed(&s->arena->frames[head].ref) & REF_LONG_MASK);
	s->is_quiet = false;
	return is;
}

void mm_fork(struct sim_mm *mm, struct sim_child *child)
{
	struct sim *s = mm->sim;

	child->is_alive = true;
	for (uint32_t vpn = 0; vpn < mm->pages; vpn++) {
		const struct sim_page *p = &mm->page[vpn];
		child->frame[vpn] = 0;
		if (p->uninherited && !is_long_pinned(s, p))
			cover_event(s, "fork: pinned memory left out");
		if (p->kind == KIND_NONE || p->uninherited)
			continue;
		if (p->kind == KIND_SHARED)
			sim_violation(s, "fork while page %u is shared", vpn);
		if (p->kind == KIND_PRIVATE) {
			child->frame[vpn] = p->pfn + 1;
			s->child[p->pfn]++;
		}
		for (uint32_t w = 0; w < SIM_WORDS; w++)
			child->value[vpn][w] = mm_peek(s, p, w);
	}
}

/* No frame of a child is one that its parent, or a device of his, writes to. */
static void child_frame_check(struct sim_mm *mm, uint32_t vpn, uint32_t pfn)
{
	const struct sim_page *p = &mm->page[vpn];

	if (p->kind == KIND_SHARED && p->pfn == pfn)
		sim_violation(mm->sim, "page %u, frame %u, is shared for writing with a child (G1)", vpn,
			      pfn);
	if (mm->sim->held[pfn])
		sim_violation(mm->sim, "page %u of a child: frame %u is pinned (G1)", vpn, pfn);
}

void mm_child_check(struct sim_mm *mm, const struct sim_child *child)
{
	for (uint32_t vpn = 0; vpn < mm->pages; vpn++)
		if (child->frame[vpn])
			child_frame_check(mm, vpn, child->frame[vpn] - 1);
	for (uint32_t vpn = 0; vpn < mm->pages; vpn++)
		for (uint32_t w = 0; child->frame[vpn] && w < SIM_WORDS; w++)
			if (mm->sim->word[child->frame[vpn] - 1][w] != child->value[vpn][w])
				sim_violation(mm->sim, "page %u of a child changed: frame %u word %u", vpn,
					      child->frame[vpn] - 1, w);
}

void mm_child_exit(struct sim_mm *mm, struct sim_child *child)
{
	mm_child_check(mm, child);
	for (uint32_t vpn = 0; vpn < mm->pages; vpn++)
		if (child->frame[vpn])
			mm->sim->child[child->frame[vpn] - 1]--;
	child->is_alive = false;
}

const struct sublet__mm_ops sim_mm_ops = {
	.map = op_map,
	.map_plain = op_map_plain,
	.unmap = op_unmap,
	.clear = op_clear,
	.track = op_track,
	.block = op_block,
	.dirty = op_dirty,
	.remap = op_remap,
	.wake = op_wake,
	.unblock = op_unblock,
	.privatize = op_privatize,
	.restore = op_restore,
	.inherit = op_inherit,
};

void mm_init(struct sim *s, uint32_t index, uint32_t pages, uint32_t mapping_limit)
{
	struct sim_mm *mm = &s->mm[index];

	mm->sim = s;
	mm->index = index;
	mm->pages = pages;
	mm->base = (4ull << 30) + index * (1ull << 44);
	mm->mapping_limit = mapping_limit;
	for (uint32_t i = 0; i < 2; i++)
		mm->child[i].is_alive = false;
	memset(mm->page, 0, sizeof mm->page);
}
