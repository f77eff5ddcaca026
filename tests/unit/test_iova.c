/* SPDX-License-Identifier: MIT */
/* core/iova.c against a twin that looks at everything: best fit, lowest of equals, no range lost or handed out twice. */
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

/* Do the n-th sequence of `steps` choices out of `choices`: takes of 1 to 3 pages, aligned or not, and gives. */
static void sequence_run(uint32_t n, uint32_t steps, uint32_t choices)
{
	struct sublet__iova iova;
	static struct twin t;

	t = (struct twin){ .first = 3, .end = 3 + SMALL };
	iova_open(&iova, 4, t.first, t.end);
	for (uint32_t step = 0; step < steps; step++, n /= choices) {
		uint32_t what = n % choices;
		if (what < 6)
			take_both(&iova, &t, 1 + what % 3, what < 3 ? 1 : 4, what < 3 ? 0 : 2);
		else if (what - 6 < t.count)
			give_both(&iova, &t, what - 6);
	}
	compare(&iova, &t);
	while (t.count)
		give_both(&iova, &t, t.count / 2);
	compare(&iova, &t);
	iova_close(&iova);
}

/* Every sequence of 6 operations on a space of 8 pages with room for 4 ranges. */
static void iova_sequences(void **unused)
{
	enum { CHOICES = 9, STEPS = 6 };
	uint32_t sequences = 1;
	(void)unused;

	for (uint32_t i = 0; i < STEPS; i++)
		sequences *= CHOICES;
	for (uint32_t n = 0; n < sequences; n++)
		sequence_run(n, STEPS, CHOICES);
}

static uint64_t random_pages(uint64_t *state)
{
	switch (below(state, 8)) {
	case 0:
		return 1 + below(state, 4000);
	case 1:
		return 512ull * (1 + below(state, 20));
	case 2:
		return 1ull << below(state, 19);
	default:
		return 1 + below(state, 64);
	}
}

static void random_step(struct sublet__iova *iova, struct twin *t, uint64_t *state, uint32_t mode)
{
	uint32_t what = below(state, 16);

	if (what < 6 + mode) {
		static const uint64_t aligns[] = { 1, 512, 1 << 18, 16, 2, 1 << 12 };
		uint64_t align = aligns[below(state, 6)];
		uint64_t offset = below(state, 3) ? 0 : rng(state) % align;
		take_both(iova, t, random_pages(state), align, offset);
	} else if (what < 8 + mode) {
		uint64_t start = t->first - 5 + rng(state) % (t->end - t->first + 10);
		take_at_both(iova, t, start, random_pages(state));
	} else if (t->count) {
		give_both(iova, t, below(state, t->count));
	}
}

/* Random operations on 3 GiB of space that begins in the middle of everything; the two large alignments matter. */
static void iova_random(void **unused)
{
	enum { STEPS = 40000, MAX = 2000 };
	struct sublet__iova iova;
	static struct twin t;
	uint64_t state = seed_get("iova_random");
	(void)unused;

	t = (struct twin){ .first = 777, .end = 777 + (3u << 18) };
	iova_open(&iova, MAX, t.first, t.end);
	for (uint32_t n = 0; n < STEPS; n++) {
		/* fill up, stay, empty, in turns */
		random_step(&iova, &t, &state, n / 4000 % 3 * 3);
		if (n % 64 == 0)
			compare(&iova, &t);
	}
	while (t.count)
		give_both(&iova, &t, below(&state, t.count));
	compare(&iova, &t);
	assert_int_equal(sublet__iova_largest(&iova), 3u << 18);
	iova_close(&iova);
}

/* As many ranges as may be, with a hole between every two: the worst case for the number of ranges. */
static void iova_full(void **unused)
{
	enum { MAX = 1000 };
	struct sublet__iova iova;
	uint32_t id;
	(void)unused;

	iova_open(&iova, MAX, 1, 1 << 20);
	for (uint32_t i = 0; i < MAX; i++)
		assert_int_equal(sublet__iova_take_at(&iova, 2 + 2 * i, 1, &id), 0);
	iova_check(&iova);
	assert_int_equal(iova.fresh, sublet__iova_ranges(MAX));
	assert_int_equal(sublet__iova_take(&iova, 1, 1, 0), IOVA_NONE);
	assert_int_equal(sublet__iova_take_at(&iova, 9000, 1, &id), -ENOSPC);
	assert_int_equal(sublet__iova_take_at(&iova, 2, 1, &id), -EEXIST);
	assert_int_equal(sublet__iova_take_at(&iova, 0, 1, &id), -ERANGE);
	for (uint32_t i = 0; i < MAX; i += 2)
		sublet__iova_give(&iova, sublet__iova_find(&iova, 2 + 2 * i));
	for (uint32_t i = 1; i < MAX; i += 2)
		sublet__iova_give(&iova, sublet__iova_find(&iova, 2 + 2 * i));
	iova_check(&iova);
	assert_int_equal(sublet__iova_largest(&iova), (1 << 20) - 1);
	iova_close(&iova);
}

/* A space of nothing, of one page, and at the top of what can be named. */
static void iova_edges(void **unused)
{
	struct sublet__iova iova;
	uint64_t top = UINT64_MAX >> 12;
	uint32_t id;
	(void)unused;

	iova_open(&iova, 3, 5, 5);
	assert_int_equal(sublet__iova_take(&iova, 1, 1, 0), IOVA_NONE);
	assert_int_equal(sublet__iova_take_at(&iova, 5, 1, &id), -ERANGE);
	assert_int_equal(sublet__iova_largest(&iova), 0);
	iova_close(&iova);

	iova_open(&iova, 3, top - 1, top);
	assert_int_equal(sublet__iova_take(&iova, 2, 1, 0), IOVA_NONE);
	assert_int_equal(sublet__iova_take_at(&iova, top - 1, UINT64_MAX, &id), -ERANGE);
	assert_int_equal(sublet__iova_take(&iova, 1, 1ull << 51, 0), IOVA_NONE);
	id = sublet__iova_take(&iova, 1, 1ull << 51, (1ull << 51) - 2);
	assert_int_not_equal(id, IOVA_NONE);
	assert_int_equal(iova.range[id].start, top - 1);
	iova_close(&iova);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(iova_patterns), cmocka_unit_test(iova_sequences),
		cmocka_unit_test(iova_random),   cmocka_unit_test(iova_full),
		cmocka_unit_test(iova_edges),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
