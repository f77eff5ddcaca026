/* SPDX-License-Identifier: MIT */
/*
 * core/iopt.c against a twin: what each 4 KiB page translates to, one by one, and a list of mappings. Every translation,
 * the size of every entry, every figure and every answer is compared. A device with a cache of translations, which
 * only a flush empties, looks on (G4). SEED=n replays a random list of operations.
 */
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

/* What the device believes is true, but where a flush is owed. It walks some pages and keeps what it finds. */
static void device_look(struct twin *t, uint64_t *state, uint32_t looks)
{
	struct sublet_extent e;

	for (uint64_t i = 0; i < t->pages; i++)
		if (t->cache[i] && t->cache[i] != (t->say[i] & ~(uint64_t)RW) + 1 && !t->stale[i])
			fail_msg("page %llu: the device still has an old translation (G4)",
				 (unsigned long long)(i + t->first));
	while (looks--) {
		uint64_t i = rng(state) % t->pages;
		if (!t->cache[i] && !sublet_iopt_translate(t->iopt, (t->first + i) * PAGE, 0, &e))
			t->cache[i] = e.offset_bytes + 1;
	}
}

/* ---- random lists ---- */

struct shape {
	uint64_t first, pages;
	uint32_t disabled, steps, compare_every, looks;
};

static uint64_t size_pick(const struct twin *t, uint64_t *state)
{
	uint64_t most = t->pages / 3, large = t->pages > 1 << 19 ? 1 << 18 : 512;

	switch (below(state, 6)) {
	case 0:
		return 1 + rng(state) % most;
	case 1:
		return large;
	case 2:
		return large * 2 + rng(state) % 600;
	case 3:
		return 512ull * (1 + below(state, 3));
	default:
		return 1 + below(state, 700);
	}
}

/* Part of a mapping, mostly; its edges are often those of entries. */
static void range_pick(const struct twin *t, uint64_t *state, uint64_t *pn, uint64_t *pages)
{
	static const uint64_t rounds[] = { 1, 1, 512, 1 << 18 };
	const struct twin_mapping *m = &t->mapping[below(state, t->count)];
	uint64_t round = rounds[below(state, 4)], a, b;

	a = (m->start + rng(state) % m->pages) / round * round;
	b = below(state, 3) ? a + 1 + rng(state) % 600 : (a + rng(state) % m->pages) / round * round + round;
	if (below(state, 40)) {
		a = a < m->start ? m->start : a;
		b = b > m->start + m->pages ? m->start + m->pages : b;
	}
	*pn = a;
	*pages = b > a ? b - a : 1;
}

/* Extents that add up to `pages`: all in step with the iova (so that parts merge), or anyhow. */
static uint32_t extents_pick(const struct twin *t, uint64_t *state, uint64_t pn, uint64_t pages,
			     struct sublet_extent *e)
{
	uint64_t frames = t->backing_pages, base = below(state, 6) ? 0 : 1 << 18;
	uint32_t kind = below(state, 10), count = 0;

	while (pages) {
		uint64_t n = count + 1 == EXTENTS_MAX || !below(state, 3) ? pages : 1 + rng(state) % pages;
		n = n > frames / 2 ? frames / 2 : n;
		if (count == EXTENTS_MAX)
			break;
		uint64_t at = (kind < 8 ? pn + base : kind < 9 ? pn + 1 : rng(state)) % frames;
		if (at + n > frames)
			at = kind < 8 ? at % (frames / 2) : frames - n;
		e[count++] = (struct sublet_extent){ at * PAGE, n * PAGE };
		pn += n;
		pages -= n;
	}
	return count;
}

static void random_map(struct twin *t, uint64_t *state)
{
	static const uint64_t aligns[] = { 0, 0, 0, 1, 512, 64 };
	uint64_t align = aligns[below(state, 6)], pages = size_pick(t, state);
	uint64_t iova = SUBLET_IOVA_ANY, offset = below(state, 4) ? 0 : below(state, 1000);

	if (!below(state, 3))
		iova = (t->first + rng(state) % (t->pages + 4)) / (below(state, 2) ? 512 : 1) *
		       (below(state, 2) ? 512 : 1) * PAGE;
	both_map(t, iova, pages, align, offset, 1 + below(state, 3));
}

/* Fill the first hole of a mapping with the frames that are in step with its iova: large entries come back. */
static void random_heal(struct twin *t, uint64_t *state, uint32_t flags)
{
	const struct twin_mapping *m = &t->mapping[below(state, t->count)];
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

static void random_step(struct twin *t, uint64_t *state)
{
	struct sublet_extent e[EXTENTS_MAX];
	uint32_t flags = below(state, 3) ? 0 : SUBLET_IOPT_NOFLUSH, what = below(state, 23);
	uint64_t pn, pages;

	if (!t->count || what < 3) {
		random_map(t, state);
		return;
	}
	if (what < 6) {
		random_heal(t, state, flags);
		return;
	}
	const struct twin_mapping *m = &t->mapping[below(state, t->count)];
	range_pick(t, state, &pn, &pages);
	if (what < 13) {
		uint32_t count = extents_pick(t, state, pn, pages, e);
		both_fill(t, pn, e, count, flags);
	} else if (what < 18) {
		both_clear(t, pn, pages, flags);
	} else if (what < 19) {
		both_unmap(t, m->start, m->pages - (m->pages > 1), flags); /* not a whole mapping */
	} else if (what < 21) {
		both_unmap(t, m->start, m->pages, flags);
	} else {
		uint32_t before = t->flushes;
		bool owed = any_stale(t, t->first, t->first + t->pages);
		sublet_iopt_flush(t->iopt);
		assert_int_equal(t->flushes, before + owed);
	}
}

static void random_list(const char *name, const struct shape *shape)
{
	static struct fake f;
	struct twin t;
	uint64_t state = seed_get(name);

	fixture_open(&f, &(struct fake_options){
				 .area_frames = 1 << 18, .normal_frames = 3 << 18, .mm_pages = 512 });
	twin_open(&t, &f, shape->first, shape->pages, shape->disabled);
	uint32_t steps = UNDER_TSAN ? shape->steps / 8 : shape->steps;
	for (uint32_t n = 0; n < steps; n++) {
		random_step(&t, &state);
		if (n % shape->compare_every == 0)
			compare(&t);
		device_look(&t, &state, shape->looks);
	}
	while (t.count)
		both_unmap(&t, t.mapping[0].start, t.mapping[0].pages, 0);
	compare(&t);
	print_message("%llu splits, %llu merges, %u flushes\n", (unsigned long long)t.splits,
		      (unsigned long long)t.merges, t.flushes);
	assert_true(UNDER_TSAN || shape->disabled & 1 || (t.splits && t.merges));
	twin_close(&t);
	fixture_close(&f);
}

static void model_random_small(void **unused)
{
	(void)unused;
	random_list("model_random_small", &(struct shape){ 1000, 6000, 0, 4000, 1, 40 });
	random_list("model_random_small", &(struct shape){ 0, 3000, 2, 2000, 1, 40 });
	random_list("model_random_small", &(struct shape){ 512, 2048, 1, 1000, 1, 40 });
}

/* 1 GiB entries too. */
static void model_random_large(void **unused)
{
	(void)unused;
	random_list("model_random_large", &(struct shape){ 100000, 3 << 18, 0, 300, 10, 2000 });
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

static void model_enumerated(void **unused)
{
	enum { CHANGES = POINTS * (POINTS - 1) / 2 * KINDS };
	static struct fake f;
	struct twin t;
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .area_frames = 1 << 15, .mm_pages = 512 });
	twin_open(&t, &f, 4000, 1536, 0);
	for (uint64_t start = 4095; start <= 4097; start++)
		for (uint32_t n = 0; n < CHANGES * CHANGES; n += UNDER_TSAN ? 17 : 1)
			enumerated_pair(&t, start, n / CHANGES, n % CHANGES);
	compare(&t);
	twin_close(&t);
	fixture_close(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(model_random_small),
		cmocka_unit_test(model_random_large),
		cmocka_unit_test(model_enumerated),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
