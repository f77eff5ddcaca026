/* SPDX-License-Identifier: MIT */
/* core/iova.c against a twin that looks at everything: best fit, lowest of equals, no range lost or handed out twice. */
#include "harness.h"

#include "fixture.h"
#include "iopt_check.h"

#include <string.h>

/* ---- the twin: a sorted list of what is taken ---- */

enum { TWIN_MAX = 3000 };

struct piece {
	uint64_t start, pages;
};

struct twin {
	uint64_t first, end;
	uint32_t count;
	struct piece taken[TWIN_MAX];
};

/* Gap i lies before taken[i]; the last one behind all. */
static struct piece gap_of(const struct twin *t, uint32_t i)
{
	uint64_t start = i ? t->taken[i - 1].start + t->taken[i - 1].pages : t->first;
	uint64_t end = i < t->count ? t->taken[i].start : t->end;

	return (struct piece){ start, end - start };
}

/* The lowest start >= from that is offset modulo align. */
static uint64_t aligned_from(uint64_t from, uint64_t align, uint64_t offset)
{
	uint64_t at = from / align * align + offset;

	return at < from ? at + align : at;
}

/* Where best fit has to put it. False: nowhere. */
static bool twin_best(const struct twin *t, uint64_t pages, uint64_t align, uint64_t offset, uint64_t *start)
{
	uint64_t best = UINT64_MAX;

	for (uint32_t i = 0; i <= t->count; i++) {
		struct piece gap = gap_of(t, i);
		uint64_t at = aligned_from(gap.start, align, offset);
		if (at + pages <= gap.start + gap.pages && gap.pages < best) {
			best = gap.pages;
			*start = at;
		}
	}
	return best != UINT64_MAX;
}

/* What taking exactly [start, start + pages) has to answer, but for -ENOSPC. */
static int twin_at(const struct twin *t, uint64_t start, uint64_t pages)
{
	if (start < t->first || start >= t->end || pages > t->end - start)
		return -ERANGE;
	for (uint32_t i = 0; i < t->count; i++)
		if (start < t->taken[i].start + t->taken[i].pages && t->taken[i].start < start + pages)
			return -EEXIST;
	return 0;
}

static void twin_add(struct twin *t, uint64_t start, uint64_t pages)
{
	uint32_t i = t->count++;

	assert_true(i < TWIN_MAX);
	for (; i && t->taken[i - 1].start > start; i--)
		t->taken[i] = t->taken[i - 1];
	t->taken[i] = (struct piece){ start, pages };
}

static void twin_drop(struct twin *t, uint32_t i)
{
	memmove(&t->taken[i], &t->taken[i + 1], (--t->count - i) * sizeof *t->taken);
}

static uint64_t twin_largest(const struct twin *t)
{
	uint64_t most = 0;

	for (uint32_t i = 0; i <= t->count; i++)
		most = gap_of(t, i).pages > most ? gap_of(t, i).pages : most;
	return most;
}

/* ---- the real one ---- */

static void iova_open(struct sublet__iova *iova, uint32_t taken_max, uint64_t first, uint64_t end)
{
	iova->range = calloc(sublet__iova_ranges(taken_max), sizeof *iova->range);
	assert_non_null(iova->range);
	sublet__iova_init(iova, taken_max, first, end);
	iova_check(iova);
}

static void iova_close(struct sublet__iova *iova)
{
	free(iova->range);
}

static void take_both(struct sublet__iova *iova, struct twin *t, uint64_t pages, uint64_t align,
		      uint64_t offset)
{
	uint64_t want = 0;
	bool fits = t->count < iova->taken_max && twin_best(t, pages, align, offset, &want);
	uint32_t id = sublet__iova_take(iova, pages, align, offset);

	assert_int_equal(id != IOVA_NONE, fits);
	if (!fits)
		return;
	assert_int_equal(iova->range[id].start, want);
	assert_int_equal(iova->range[id].pages, pages);
	twin_add(t, want, pages);
}

static void take_at_both(struct sublet__iova *iova, struct twin *t, uint64_t start, uint64_t pages)
{
	int want = twin_at(t, start, pages);
	uint32_t id = IOVA_NONE;

	if (!want && t->count == iova->taken_max)
		want = -ENOSPC;
	assert_int_equal(sublet__iova_take_at(iova, start, pages, &id), want);
	if (want)
		return;
	assert_int_equal(iova->range[id].start, start);
	assert_int_equal(iova->range[id].pages, pages);
	twin_add(t, start, pages);
}

static void give_both(struct sublet__iova *iova, struct twin *t, uint32_t i)
{
	uint32_t id = sublet__iova_find(iova, t->taken[i].start);

	assert_int_not_equal(id, IOVA_NONE);
	assert_int_equal(iova->range[id].start, t->taken[i].start);
	assert_int_equal(sublet__iova_find(iova, t->taken[i].start + t->taken[i].pages - 1), id);
	sublet__iova_give(iova, id);
	twin_drop(t, i);
}

static void compare(const struct sublet__iova *iova, const struct twin *t)
{
	iova_check(iova);
	assert_int_equal(iova->taken, t->count);
	assert_int_equal(sublet__iova_largest(iova), twin_largest(t));
	for (uint32_t i = 0; i <= t->count; i++) {
		struct piece gap = gap_of(t, i);
		if (gap.pages) {
			assert_int_equal(sublet__iova_find(iova, gap.start), IOVA_NONE);
			assert_int_equal(sublet__iova_find(iova, gap.start + gap.pages - 1), IOVA_NONE);
		}
	}
	assert_int_equal(sublet__iova_find(iova, t->end), IOVA_NONE);
	assert_int_equal(sublet__iova_find(iova, t->first - 1), IOVA_NONE);
}

/* ---- tests ---- */

enum { SMALL = 8 };

/* Every pattern of free and taken pages of a space of 8, first page 1 to 4; every question to it. */
static void iova_patterns(void **unused)
{
	struct sublet__iova iova;
	static struct twin t;
	(void)unused;

	for (uint32_t n = 0; n < 4u << SMALL; n++) {
		uint64_t first = 1 + (n >> SMALL);
		t = (struct twin){ .first = first, .end = first + SMALL };
		iova_open(&iova, SMALL, first, first + SMALL);
		for (uint32_t i = 0; i < SMALL; i++)
			if (n >> i & 1)
				take_at_both(&iova, &t, first + i, 1);
		compare(&iova, &t);
		for (uint64_t pages = 1; pages <= SMALL + 1; pages++)
			for (uint64_t align = 1; align <= 16; align *= 2)
				for (uint64_t offset = 0; offset < align; offset++) {
					uint64_t at;
					bool fits = t.count < SMALL &&
						    twin_best(&t, pages, align, offset, &at);
					uint32_t id = sublet__iova_take(&iova, pages, align, offset);
					assert_int_equal(id != IOVA_NONE, fits);
					if (!fits)
						continue;
					assert_int_equal(iova.range[id].start, at);
					sublet__iova_give(&iova, id);
				}
		for (uint64_t start = 0; start < first + SMALL + 2; start++)
			for (uint64_t pages = 1; pages <= SMALL + 1; pages++) {
				uint32_t id;
				int want = twin_at(&t, start, pages);
				assert_int_equal(sublet__iova_take_at(&iova, start, pages, &id), want);
				if (!want)
					sublet__iova_give(&iova, id);
			}
		compare(&iova, &t);
		iova_close(&iova);
	}
}

/* ---- lists of operations ---- */

enum { TAKE = 0, TAKE_AT, GIVE };

static const struct model_kind kinds[] = {
	[TAKE] = { "take", 3, 7 },       /* pages - 1, log2 of the alignment, offset */
	[TAKE_AT] = { "take_at", 2, 2 }, /* start, from 5 before the space; pages - 1 */
	[GIVE] = { "give", 1, 8 },       /* n-th from below */
	{ NULL, 0, 0 },
};

struct shape {
	uint64_t first, pages;
	uint32_t taken_max;
	bool huge; /* sizes of every magnitude */
};

struct both {
	struct sublet__iova iova;
	struct twin twin;
	uint32_t steps;
};

static void *open_both(const void *shape)
{
	static struct both both;
	const struct shape *s = shape;

	both.steps = 0;
	both.twin.first = s->first;
	both.twin.end = s->first + s->pages;
	both.twin.count = 0;
	iova_open(&both.iova, s->taken_max, s->first, s->first + s->pages);
	return &both;
}

static void step(void *both, const struct model_op *op)
{
	struct both *b = both;
	struct twin *t = &b->twin;
	uint64_t align = 1ull << op->arg[1] % 24;

	if (op->kind == TAKE)
		take_both(&b->iova, t, op->arg[0] + 1, align, op->arg[2] % align);
	if (op->kind == TAKE_AT)
		take_at_both(&b->iova, t, t->first - 5 + op->arg[0], op->arg[1] + 1);
	if (op->kind == GIVE && t->count)
		give_both(&b->iova, t, (uint32_t)(op->arg[0] % t->count));
	if (t->count < 64 || b->steps++ % 64 == 0)
		compare(&b->iova, t);
}

static void close_both(void *both)
{
	struct both *b = both;

	compare(&b->iova, &b->twin);
	while (b->twin.count)
		give_both(&b->iova, &b->twin, b->twin.count / 2);
	compare(&b->iova, &b->twin);
	assert_int_equal(sublet__iova_largest(&b->iova), b->twin.end - b->twin.first);
	iova_close(&b->iova);
}

static uint64_t random_pages(const struct shape *s, uint64_t *random)
{
	switch (s->huge ? below(random, 8) : 8) {
	case 0:
		return 1 + below(random, 4000);
	case 1:
		return 512ull * (1 + below(random, 20));
	case 2:
		return 1ull << below(random, 19);
	case 8:
		return 1 + below(random, 9);
	default:
		return 1 + below(random, 64);
	}
}

static void pick(const void *shape, uint32_t n, uint64_t *random, struct model_op *op)
{
	static const uint32_t aligns[] = { 0, 9, 18, 4, 1, 12 };
	const struct shape *s = shape;

	if (n / 800 % 3 == 0 && op->kind == GIVE && below(random, 2))
		op->kind = TAKE; /* fill up, stay, in turns */
	op->arg[0] = random_pages(s, random) - 1;
	op->arg[1] = aligns[below(random, 6)];
	op->arg[2] = below(random, 3) ? 0 : rng(random) & 0xffffff;
	if (op->kind == TAKE_AT) {
		op->arg[1] = op->arg[0];
		op->arg[0] = rng(random) % (s->pages + 10);
	} else if (op->kind == GIVE) {
		op->arg[0] = below(random, s->taken_max);
	}
}

static struct model model_of(const char *name, const struct shape *shape)
{
	return (struct model){ name, kinds, shape, open_both, step, close_both, pick, NULL, 0 };
}

/* Little room, few ranges; and 3 GiB that begin in the middle of everything, where both large alignments matter. */
static void iova_random(void **unused)
{
	static const struct shape small = { 3, 300, 40, false }, large = { 777, 3u << 18, 2000, true };
	struct model m = model_of("iova-small", &small);
	(void)unused;

	model_random(&m, 30, 1000);
	m = model_of("iova-large", &large);
	model_random(&m, 3, 8000);
}

/* Every sequence of 6 operations on a space of 8 pages with room for 4 ranges. */
static void iova_sequences(void **unused)
{
	static const struct shape shape = { 3, SMALL, 4, false };
	static const struct model_op choice[] = {
		{ TAKE, { 0, 0, 0 } }, { TAKE, { 1, 0, 0 } }, { TAKE, { 2, 0, 0 } },
		{ TAKE, { 0, 2, 2 } }, { TAKE, { 1, 2, 2 } }, { TAKE_AT, { 8, 1 } },
		{ GIVE, { 0 } },       { GIVE, { 1 } },       { GIVE, { 2 } },
	};
	struct model m = model_of("iova-sequences", &shape);
	(void)unused;

	model_enumerate(&m, choice, sizeof choice / sizeof *choice, 6);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(iova_patterns),
		cmocka_unit_test(iova_sequences),
		cmocka_unit_test(iova_random),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
