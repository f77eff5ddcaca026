/* SPDX-License-Identifier: MIT */
/*
 * core/iopt.c against a twin: what each 4 KiB page translates to, one by one, and a list of mappings. Every translation,
 * the size of every entry, every figure and every answer is compared. A device with a cache of translations, which
 * only a flush empties, looks on (G4).
 */
#include "harness.h"

#include "fixture.h"
#include "iopt_check.h"

#include <string.h>

#define M2 (2 * SUBLET_MIB)
#define G1 SUBLET_GIB
#define RW (SUBLET_IOPT_READ | SUBLET_IOPT_WRITE)

enum { MAPPINGS_MAX = 48, EXTENTS_MAX = 24 };

struct twin_mapping {
	uint64_t start, pages; /* page numbers */
	uint32_t access;
};

struct twin {
	struct fake *f;
	struct sublet_iopt *iopt;
	uint64_t first, pages;
	uint32_t levels;
	uint64_t backing_pages;
	uint64_t *say;   /* of each page of the aperture: offset and access; 0: nothing */
	bool *stale;     /* removed or replaced, and not flushed since */
	uint64_t *cache; /* what the device believes; 0: nothing */
	uint32_t count;
	struct twin_mapping mapping[MAPPINGS_MAX];
	uint64_t splits, merges;
	uint32_t flushes;
	uint64_t hull_start, hull_end; /* of all changes that removed something since the last flush */
};

static void device_flush(void *ctx, uint64_t iova, uint64_t bytes)
{
	struct twin *t = ctx;
	uint64_t pn = iova / PAGE, end = pn + bytes / PAGE;

	t->flushes++;
	assert_true(bytes && pn >= t->hull_start && end <= t->hull_end);
	for (uint64_t i = 0; i < t->pages; i++) {
		bool inside = i + t->first >= pn && i + t->first < end;
		assert_true(inside || !t->stale[i]);
		t->stale[i] = false;
		if (inside)
			t->cache[i] = 0;
	}
	t->hull_start = t->hull_end = 0;
}

static void twin_open(struct twin *t, struct fake *f, uint64_t first, uint64_t pages, uint32_t disabled)
{
	struct sublet_iopt_options o = { SUBLET_OPTIONS(sublet_iopt_options),
					 .first_bytes = first * PAGE,
					 .aperture_bytes = pages * PAGE,
					 .mappings_max = MAPPINGS_MAX,
					 .large_disabled = disabled,
					 .flush = device_flush,
					 .ctx = t };

	*t = (struct twin){ .f = f,
			    .first = first,
			    .pages = pages,
			    .levels = disabled & 1   ? 1
				      : disabled & 2 ? 2
						     : 3,
			    .backing_pages = f->frames };
	t->say = calloc(pages, sizeof *t->say);
	t->stale = calloc(pages, sizeof *t->stale);
	t->cache = calloc(pages, sizeof *t->cache);
	assert_true(t->say && t->stale && t->cache);
	assert_int_equal(sublet_iopt_create(f->arena, &o, &t->iopt), 0);
}

static void twin_close(struct twin *t)
{
	sublet_iopt_destroy(t->iopt);
	free(t->say);
	free(t->stale);
	free(t->cache);
}

/* ---- what the twin knows ---- */

static struct twin_mapping *mapping_around(struct twin *t, uint64_t pn, uint64_t pages)
{
	for (struct twin_mapping *m = t->mapping; m < t->mapping + t->count; m++)
		if (pn >= m->start && pn < m->start + m->pages && pages <= m->start + m->pages - pn)
			return m;
	return NULL;
}

static bool range_is_free(struct twin *t, uint64_t start, uint64_t pages)
{
	for (uint32_t i = 0; i < t->count; i++)
		if (start < t->mapping[i].start + t->mapping[i].pages && t->mapping[i].start < start + pages)
			return false;
	return start && start >= t->first && start + pages <= t->first + t->pages;
}

/* Whether `pages` fit somewhere at offset modulo align: only ends of mappings, and what follows them, need be tried. */
static bool room_exists(struct twin *t, uint64_t pages, uint64_t align, uint64_t offset)
{
	for (uint32_t i = 0; i <= t->count; i++) {
		uint64_t from = i ? t->mapping[i - 1].start + t->mapping[i - 1].pages : t->first + !t->first;
		uint64_t at = from / align * align + offset % align;
		if (range_is_free(t, at < from ? at + align : at, pages))
			return true;
	}
	return false;
}

/* Whether a slot can be one entry: all of it one piece, aligned, in one mapping. */
static bool slot_is_one(struct twin *t, uint32_t level, uint64_t slot)
{
	uint64_t pages = 1ull << (9 * level), at = slot - t->first;

	if (level >= t->levels || !mapping_around(t, slot, pages) || !t->say[at] || t->say[at] / PAGE % pages)
		return false;
	for (uint64_t i = 1; i < pages; i++)
		if (t->say[at + i] != t->say[at] + i * PAGE)
			return false;
	return true;
}

/* The table's own counts, as far as the twin can tell what a change of [pn, end) in one slot splits and merges. */
static void slot_change(struct twin *t, uint32_t level, uint64_t slot, uint64_t pn, uint64_t end,
			uint64_t say, bool was_large)
{
	uint64_t pages = 1ull << (9 * level), next = slot + pages;
	uint64_t from = pn > slot ? pn : slot, to = end < next ? end : next;

	if (!level) {
		t->stale[slot - t->first] |= t->say[slot - t->first] != 0;
		t->say[slot - t->first] = say ? say + (slot - pn) * PAGE : 0;
		return;
	}
	bool whole = from == slot && to == next;
	bool replaced = whole && (!say || (level < t->levels && (say / PAGE + slot - pn) % pages == 0));
	was_large = was_large || slot_is_one(t, level, slot);
	t->splits += was_large && !replaced;
	for (uint64_t below = from / (pages / 512) * (pages / 512); below < to; below += pages / 512) {
		/* What is below a slot that is replaced as a whole is neither split nor merged. */
		uint64_t splits = t->splits, merges = t->merges;
		slot_change(t, level - 1, below, pn, end, say, was_large && !replaced && level > 1);
		if (replaced)
			t->splits = splits, t->merges = merges;
	}
	t->merges += say && !replaced && slot_is_one(t, level, slot);
}

/* Change the twin: pages [pn, end) translate to `say` and what follows it, or to nothing (0). */
static void twin_change(struct twin *t, uint64_t pn, uint64_t end, uint64_t say)
{
	for (uint64_t slot = pn >> 18 << 18; slot < end; slot += 1 << 18)
		slot_change(t, 2, slot, pn, end, say, false);
	if (t->hull_start == t->hull_end)
		t->hull_start = pn, t->hull_end = end;
	t->hull_start = pn < t->hull_start ? pn : t->hull_start;
	t->hull_end = end > t->hull_end ? end : t->hull_end;
}

static bool any_stale(const struct twin *t, uint64_t pn, uint64_t end)
{
	for (uint64_t i = pn - t->first; i < end - t->first; i++)
		if (t->stale[i])
			return true;
	return false;
}

/* ---- one operation on both ---- */

struct flushed {
	uint32_t before;
	bool must, may;
};

static struct flushed flush_expect(const struct twin *t, uint64_t pn, uint64_t end, uint32_t flags)
{
	bool wants = !(flags & SUBLET_IOPT_NOFLUSH);

	return (struct flushed){ t->flushes, wants && any_stale(t, pn, end),
				 wants && any_stale(t, t->first, t->first + t->pages) };
}

static void flush_check(const struct twin *t, struct flushed want)
{
	uint32_t times = t->flushes - want.before;

	assert_true(times <= want.may);
	assert_true(times >= want.must);
}

static uint64_t both_map(struct twin *t, uint64_t iova, uint64_t pages, uint64_t align, uint64_t offset,
			 uint32_t access)
{
	uint64_t want = iova, at = iova;
	int err = sublet_iopt_map(t->iopt, &at, pages * PAGE, align * PAGE, offset * PAGE, access);

	if (iova == SUBLET_IOVA_ANY) {
		uint64_t tries[] = { align, 1 << 18, 512, 1 }, least = align ? align : 1;
		bool fits = t->count < MAPPINGS_MAX && room_exists(t, pages, least, offset);
		assert_int_equal(err, fits ? 0 : -ENOSPC);
		for (uint32_t i = !align; i < (align ? 1 : 4) && fits; i++) {
			uint32_t level = 3 - i;
			if (!align && (pages < tries[i] || level >= t->levels))
				continue;
			if (!room_exists(t, pages, tries[i], offset))
				continue;
			assert_int_equal(at / PAGE % tries[i], offset % tries[i]);
			break;
		}
	} else {
		bool inside = want && want / PAGE >= t->first && pages <= t->pages &&
			      want / PAGE + pages <= t->first + t->pages;
		bool is_free = range_is_free(t, want / PAGE, pages);
		assert_int_equal(err, !inside                    ? -ERANGE
				      : !is_free                 ? -EEXIST
				      : t->count == MAPPINGS_MAX ? -ENOSPC
								 : 0);
		assert_int_equal(at, want);
	}
	if (err)
		return 0;
	assert_true(range_is_free(t, at / PAGE, pages));
	t->mapping[t->count++] = (struct twin_mapping){ at / PAGE, pages, access };
	return at / PAGE;
}

static void both_unmap(struct twin *t, uint64_t pn, uint64_t pages, uint32_t flags)
{
	struct twin_mapping *m = mapping_around(t, pn, pages);
	struct flushed want = { t->flushes, false, false };
	bool exact = m && m->start == pn && m->pages == pages;

	if (exact) {
		twin_change(t, pn, pn + pages, 0);
		want = flush_expect(t, pn, pn + pages, flags);
		*m = t->mapping[--t->count];
	}
	assert_int_equal(sublet_iopt_unmap(t->iopt, pn * PAGE, pages * PAGE, flags), exact ? 0 : -ENOENT);
	flush_check(t, want);
}

static void both_clear(struct twin *t, uint64_t pn, uint64_t pages, uint32_t flags)
{
	struct flushed want = { t->flushes, false, false };
	bool inside = mapping_around(t, pn, pages);

	if (inside) {
		twin_change(t, pn, pn + pages, 0);
		want = flush_expect(t, pn, pn + pages, flags);
	}
	assert_int_equal(sublet_iopt_clear(t->iopt, pn * PAGE, pages * PAGE, flags), inside ? 0 : -ENOENT);
	flush_check(t, want);
}

static void both_fill(struct twin *t, uint64_t pn, const struct sublet_extent *e, uint32_t count,
		      uint32_t flags)
{
	struct flushed want = { t->flushes, false, false };
	uint64_t pages = 0;

	for (uint32_t i = 0; i < count; i++)
		pages += e[i].bytes / PAGE;
	struct twin_mapping *m = mapping_around(t, pn, pages);
	for (uint64_t i = 0, at = pn; m && i < count;) {
		uint64_t offset = e[i].offset_bytes, end = at;
		do
			end += e[i].bytes / PAGE;
		while (++i < count && e[i].offset_bytes == e[i - 1].offset_bytes + e[i - 1].bytes);
		twin_change(t, at, end, offset | m->access);
		at = end;
	}
	if (m)
		want = flush_expect(t, pn, pn + pages, flags);
	assert_int_equal(sublet_iopt_fill(t->iopt, pn * PAGE, e, count, flags), m ? 0 : -ENOENT);
	flush_check(t, want);
}

/* ---- comparing ---- */

static void page_compare(struct twin *t, uint64_t pn, uint32_t level)
{
	uint64_t want = t->say[pn - t->first], span = PAGE << (9 * level), iova = pn * PAGE + pn % PAGE;
	struct sublet_extent e;
	int err = sublet_iopt_translate(t->iopt, iova, want & RW, &e);

	if (err != (want ? 0 : -EFAULT))
		fail_msg("page %llu: %d", (unsigned long long)pn, err);
	if (!want)
		return;
	assert_int_equal(e.offset_bytes, (want & ~(PAGE - 1)) + iova % PAGE);
	assert_int_equal(e.bytes, span - iova % span);
	if (~want & RW)
		assert_int_equal(sublet_iopt_translate(t->iopt, iova, RW, &e), -EACCES);
}

/* Compare the pages of one slot, and count its entries. */
static void slot_compare(struct twin *t, uint32_t level, uint64_t slot, uint64_t entries[3])
{
	uint64_t pages = 1ull << (9 * level);

	if (slot + pages <= t->first || slot >= t->first + t->pages)
		return;
	if (level && slot_is_one(t, level, slot)) {
		entries[level]++;
		for (uint64_t i = 0; i < pages; i += level == 2 && i > 600 && i + 600 < pages ? 173 : 1)
			page_compare(t, slot + i, level);
		return;
	}
	for (uint64_t i = 0; level && i < 512; i++)
		slot_compare(t, level - 1, slot + i * (pages / 512), entries);
	if (!level) {
		entries[0] += t->say[slot - t->first] != 0;
		page_compare(t, slot, 0);
	}
}

static void compare(struct twin *t)
{
	struct sublet_iopt_stats stats = { SUBLET_OPTIONS(sublet_iopt_stats) };
	uint64_t entries[3] = { 0 }, mapped = 0;

	iopt_check(t->iopt);
	for (uint64_t slot = t->first >> 18 << 18; slot < t->first + t->pages; slot += 1 << 18)
		slot_compare(t, 2, slot, entries);
	for (uint32_t i = 0; i < t->count; i++)
		mapped += t->mapping[i].pages * PAGE;
	assert_int_equal(sublet_iopt_stats(t->iopt, &stats), 0);
	assert_int_equal(stats.mappings, t->count);
	assert_int_equal(stats.mapped_bytes, mapped);
	assert_int_equal(stats.entries_4k, entries[0]);
	assert_int_equal(stats.entries_2m, entries[1]);
	assert_int_equal(stats.entries_1g, entries[2]);
	assert_int_equal(stats.filled_bytes, entries[0] * PAGE + entries[1] * M2 + entries[2] * G1);
	assert_int_equal(stats.splits, t->splits);
	assert_int_equal(stats.merges, t->merges);
	assert_int_equal(stats.flushes, t->flushes);
}

/*
 * What the device believes is true, but where a flush is owed. Then it walks every `stride`-th page from `from` on, and
 * keeps what it finds.
 */
static void device_look(struct twin *t, uint64_t from, uint64_t stride)
{
	struct sublet_extent e;

	for (uint64_t i = 0; i < t->pages; i++)
		if (t->cache[i] && t->cache[i] != (t->say[i] & ~(uint64_t)RW) + 1 && !t->stale[i])
			fail_msg("page %llu: the device still has an old translation (G4)",
				 (unsigned long long)(i + t->first));
	for (uint64_t i = from; i < t->pages; i += stride)
		if (!t->cache[i] && !sublet_iopt_translate(t->iopt, (t->first + i) * PAGE, 0, &e))
			t->cache[i] = e.offset_bytes + 1;
}

/* ---- lists of operations ---- */

enum { MAP = 0, UNMAP, FILL, HEAL, CLEAR, FLUSH, LOOK };

/* Flags of fill, clear and heal. */
#define OP_NOFLUSH      1u
#define OP_ROUND(flags) ((flags) >> 1 & 3) /* edges like those of entries of this level */
#define OP_LEAVE        8u                 /* one page beyond the mapping */

static const struct model_kind kinds[] = {
	[MAP] = { "map", 5, 3 },     /* 0: anywhere, else page + 1; pages - 1; alignment; offset; access */
	[UNMAP] = { "unmap", 3, 3 }, /* n-th, 1: all but a page of it, flags */
	[FILL] = { "fill", 5, 7 },   /* n-th, first page of it, pages - 1, which frames, flags */
	[HEAL] = { "heal", 2, 3 }, /* n-th, flags: its first hole is filled so that large entries come back */
	[CLEAR] = { "clear", 4, 5 }, /* n-th, first page of it, pages - 1, flags */
	[FLUSH] = { "flush", 0, 2 },
	[LOOK] = { "look", 2, 8 }, /* the device keeps what it finds: first page, stride - 1 */
	{ NULL, 0, 0 },
};

struct shape {
	uint64_t first, pages;
	uint32_t disabled, compare_every;
	bool large; /* an arena of 4 GiB under it */
};

struct both {
	const struct shape *shape;
	struct fake fake;
	bool is_open, is_large;
	struct twin twin;
	uint32_t steps;
};

static struct both both;

/* Before the first list, where it takes long: every child has it then. */
static void arena_ready(bool large)
{
	if (both.is_open && both.is_large == large)
		return;
	if (both.is_open)
		fixture_close(&both.fake);
	fixture_open(&both.fake, &(struct fake_options){ .area_frames = large ? 1 << 18 : 1 << 14,
							 .normal_frames = large ? 3 << 18 : 1 << 14,
							 .mm_pages = 512 });
	both.is_open = true;
	both.is_large = large;
}

static void *open_both(const void *shape)
{
	const struct shape *s = shape;

	arena_ready(s->large);
	both.shape = s;
	both.steps = 0;
	twin_open(&both.twin, &both.fake, s->first, s->pages, s->disabled);
	return &both;
}

/* Pages [*pn, *pn + *pages) of a mapping. */
static void range_of(const struct twin_mapping *m, uint64_t from, uint64_t more, uint64_t flags, uint64_t *pn,
		     uint64_t *pages)
{
	uint64_t round = OP_ROUND(flags) == 3 ? 1 : 1ull << 9 * OP_ROUND(flags), last = m->start + m->pages;
	uint64_t a = (m->start + from % m->pages) / round * round, b = a + more % (2 * m->pages) + round;

	b = b / round * round;
	a = a < m->start ? m->start : a;
	b = b > last ? last : b;
	*pn = a;
	*pages = b - a + ((flags & OP_LEAVE) ? last + 1 - b : 0);
}

/* Extents that add up to `pages`, 0: one, in step with the iova, so that parts merge; else some, by number. */
static uint32_t extents_of(const struct twin *t, uint64_t which, uint64_t pn, uint64_t pages,
			   struct sublet_extent *e)
{
	uint64_t frames = t->backing_pages, state = which, base = which % 2 ? 0 : (1 << 18) % frames;
	uint32_t kind = below(&state, 10), count = 0;

	if (!which && pn % frames + pages <= frames) {
		e[0] = (struct sublet_extent){ pn % frames * PAGE, pages * PAGE };
		return 1;
	}
	while (pages && count < EXTENTS_MAX) {
		uint64_t n = count + 1 == EXTENTS_MAX || !below(&state, 3) ? pages : 1 + rng(&state) % pages;
		n = n > frames / 2 ? frames / 2 : n;
		uint64_t at = (kind < 8 ? pn + base : kind < 9 ? pn + 1 : rng(&state)) % frames;
		if (at + n > frames)
			at = kind < 8 ? at % (frames / 2) : frames - n;
		e[count++] = (struct sublet_extent){ at * PAGE, n * PAGE };
		pn += n;
		pages -= n;
	}
	return count;
}

/* Fill the first hole of a mapping with the frames that are in step with its iova: large entries come back. */
static void heal(struct twin *t, const struct twin_mapping *m, uint32_t flags)
{
	uint64_t start = m->start, end = m->start + m->pages;

	while (start < end && t->say[start - t->first])
		start++;
	for (uint64_t pn = start; pn < end; pn++)
		end = t->say[pn - t->first] ? pn : end;
	if (start < end && end <= t->backing_pages) {
		struct sublet_extent e = { start * PAGE, (end - start) * PAGE };
		both_fill(t, start, &e, 1, flags);
	}
}

static void flush(struct twin *t)
{
	uint32_t before = t->flushes;
	bool owed = any_stale(t, t->first, t->first + t->pages);

	sublet_iopt_flush(t->iopt);
	assert_int_equal(t->flushes, before + owed);
}

static void map(struct twin *t, const struct model_op *op)
{
	static const uint64_t aligns[] = { 0, 1, 64, 512 };
	uint64_t iova = op->arg[0] ? (t->first + op->arg[0] - 1) * PAGE : SUBLET_IOVA_ANY;

	both_map(t, iova, 1 + op->arg[1] % t->pages, aligns[op->arg[2] % 4], op->arg[3] % 1000,
		 1 + (uint32_t)(op->arg[4] % 3));
}

static void mapping_step(struct twin *t, const struct model_op *op)
{
	const struct twin_mapping *m = &t->mapping[op->arg[0] % t->count];
	uint64_t flags = op->arg[kinds[op->kind].args - 1], pn, pages;
	uint32_t noflush = (flags & OP_NOFLUSH) ? SUBLET_IOPT_NOFLUSH : 0;
	struct sublet_extent e[EXTENTS_MAX];

	range_of(m, op->arg[1], op->arg[2], flags, &pn, &pages);
	if (op->kind == UNMAP)
		both_unmap(t, m->start, m->pages - (op->arg[1] % 2 && m->pages > 1), noflush);
	if (op->kind == FILL)
		both_fill(t, pn, e, extents_of(t, op->arg[3], pn, pages, e), noflush);
	if (op->kind == HEAL)
		heal(t, m, noflush);
	if (op->kind == CLEAR)
		both_clear(t, pn, pages, noflush);
}

static void step(void *unused, const struct model_op *op)
{
	struct twin *t = &both.twin;
	(void)unused;

	if (op->kind == MAP)
		map(t, op);
	else if (op->kind == FLUSH)
		flush(t);
	else if (op->kind == LOOK)
		device_look(t, op->arg[0], 1 + op->arg[1] % t->pages);
	else if (t->count)
		mapping_step(t, op);
	if (both.steps++ % both.shape->compare_every == 0) {
		compare(t);
		device_look(t, t->pages, 1);
	}
}

static void close_both(void *unused)
{
	struct twin *t = &both.twin;
	(void)unused;

	while (t->count)
		both_unmap(t, t->mapping[0].start, t->mapping[0].pages, 0);
	compare(t);
	device_look(t, t->pages, 1);
	twin_close(t);
}

static uint64_t size_pick(const struct shape *s, uint64_t *random)
{
	uint64_t most = s->pages / 3, large = s->large ? 1 << 18 : 512;

	switch (below(random, 6)) {
	case 0:
		return 1 + rng(random) % most;
	case 1:
		return large;
	case 2:
		return large * 2 + rng(random) % 600;
	case 3:
		return 512ull * (1 + below(random, 3));
	default:
		return 1 + below(random, 700);
	}
}

static void pick(const void *shape, uint32_t n, uint64_t *random, struct model_op *op)
{
	const struct shape *s = shape;
	uint64_t flags = (below(random, 3) ? 0 : OP_NOFLUSH) | (uint64_t)(below(random, 4) << 1) |
			 (below(random, 40) ? 0 : OP_LEAVE);

	if (n < 4)
		op->kind = MAP;
	op->arg[0] = below(random, MAPPINGS_MAX);
	op->arg[1] = op->kind == UNMAP ? !below(random, 3) : rng(random) % s->pages;
	op->arg[2] = below(random, 3) ? below(random, 600) : rng(random) % s->pages;
	op->arg[3] = below(random, 4) ? rng(random) : 0;
	if (op->kind == MAP) {
		uint64_t round = below(random, 2) ? 512 : 1;
		op->arg[0] = below(random, 3) ? 0 : 1 + rng(random) % (s->pages + 4) / round * round;
		op->arg[1] = size_pick(s, random) - 1;
		op->arg[2] = below(random, 2) ? 0 : below(random, 4);
		op->arg[3] = below(random, 4) ? 0 : below(random, 1000);
		op->arg[4] = below(random, 3);
	} else if (op->kind == LOOK) {
		op->arg[0] = rng(random) % s->pages;
		op->arg[1] = rng(random) % (s->pages / 16);
	} else if (op->kind != FLUSH) {
		op->arg[kinds[op->kind].args - 1] = flags;
	}
}

static struct model model_of(const char *name, const struct shape *shape)
{
	return (struct model){ name, kinds, shape, open_both, step, close_both, pick, NULL, 0 };
}

static void iopt_random(void **unused)
{
	static const struct shape small = { 1000, 6000, 0, 1, false }, no_1g = { 0, 3000, 2, 1, false },
				  flat = { 512, 2048, 1, 1, false };
	struct model m = model_of("iopt-small", &small);
	(void)unused;

	arena_ready(false);
	model_random(&m, 4, 800);
	m = model_of("iopt-no-1g", &no_1g);
	model_random(&m, 4, 800);
	m = model_of("iopt-flat", &flat);
	model_random(&m, 4, 500);
}

/* 1 GiB entries too. */
static void iopt_large(void **unused)
{
	static const struct shape large = { 100000, 3 << 18, 0, 20, true };
	struct model m = model_of("iopt-large", &large);
	(void)unused;

	arena_ready(true);
	model_random(&m, 2, 200);
}

/* ---- all of the small cases: two changes with edges on and beside those of entries, after a fill of everything ---- */

enum { POINTS = 7, KINDS = 3 };

static void enumerated_change(struct twin *t, uint64_t start, uint32_t n)
{
	static const uint64_t point[POINTS] = { 0, 1, 511, 512, 513, 1023, 1024 };
	uint32_t pair = n / KINDS, a = 0;

	for (; pair >= POINTS - 1 - a; a++)
		pair -= POINTS - 1 - a;
	uint64_t pn = start + point[a], pages = point[a + 1 + pair] - point[a];
	struct sublet_extent e = { (pn + n % KINDS) % 8192 * PAGE, pages * PAGE };
	if (n % KINDS == 2)
		both_clear(t, pn, pages, 0);
	else
		both_fill(t, pn, &e, 1, 0);
}

static void enumerated_pair(struct twin *t, uint64_t start, uint32_t first, uint32_t second)
{
	struct sublet_extent all = { start % 8192 * PAGE, 1024 * PAGE };

	both_map(t, start * PAGE, 1024, 0, 0, RW);
	both_fill(t, start, &all, 1, 0);
	enumerated_change(t, start, first);
	enumerated_change(t, start, second);
	compare(t);
	both_unmap(t, start, 1024, 0);
}

/* Two changes on one mapping of two large entries' size that begins beside, on and behind their edge. */
static void iopt_enumerated(void **unused)
{
	enum { CHANGES = POINTS * (POINTS - 1) / 2 * KINDS };
	struct twin t;
	(void)unused;

	arena_ready(false);
	twin_open(&t, &both.fake, 4000, 1536, 0);
	for (uint64_t start = 4095; start <= 4097; start++)
		for (uint32_t n = 0; n < CHANGES * CHANGES; n += model_stride())
			enumerated_pair(&t, start, n / CHANGES, n % CHANGES);
	compare(&t);
	assert_true(t.splits && t.merges);
	twin_close(&t);
}

static int arena_done(void **unused)
{
	(void)unused;
	fixture_close(&both.fake);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(iopt_enumerated),
		cmocka_unit_test(iopt_random),
		cmocka_unit_test(iopt_large),
	};
	return cmocka_run_group_tests(tests, NULL, arena_done);
}
