/* SPDX-License-Identifier: MIT */
/*
 * A walk of a device's page table between any stores of its writers: every interleaving, for every sequence of a few
 * changes.
 *
 * core/iopt.c is compiled into this program with its one store of an entry replaced by one that keeps, for some pages, what
 * each of their three entries was after each store. A walk loads the entries at moments a <= b <= c; for all such moments
 * its answer must be what the page translated to at some moment from a to c. And what it translates to must go
 * from old to new once in each change, with nothing in between. (That acquire and release are enough for this on real
 * memory is argued in core/iopt.c, and tried by test_iopt_race.c.)
 */
#include "fixture.h"

#include "iopt_check.h"

static void log_store(sublet__a64 *entry, uint64_t value);

#define a64_store_release(entry, value) log_store(entry, value)
#include "core/iopt.c"
#undef a64_store_release

#include <stdio.h>

#define M2 (2 * SUBLET_MIB)
#define G1 SUBLET_GIB

enum { SAMPLES = 4, STORES_MAX = 64, CHANGES_MAX = 6 };

struct sample {
	uint64_t pn;
	sublet__a64 *at[IOPT_LEVELS];
	uint32_t stores;                             /* of its entries, so far */
	uint64_t entry[STORES_MAX + 1][IOPT_LEVELS]; /* after so many stores */
	uint64_t translation[STORES_MAX + 1];        /* of the page: offset and access, 0: none */
	uint32_t upto[CHANGES_MAX + 1];              /* stores when so many changes were done */
	uint64_t want[CHANGES_MAX + 1];              /* the translation then */
};

static struct sample sample[SAMPLES];
static uint64_t walks;

/* What an entry of a level says about a page. */
static uint64_t entry_says(uint64_t entry, uint32_t level, uint64_t pn)
{
	return entry ? (entry & ~ENTRY_LOWER) + ((pn & (level_pages(level) - 1)) << IOPT_PAGE_SHIFT) : 0;
}

static uint64_t page_translation(const uint64_t entry[IOPT_LEVELS], uint64_t pn)
{
	for (uint32_t level = IOPT_LEVELS; level-- > 0;)
		if (entry[level])
			return entry_says(entry[level], level, pn);
	return 0;
}

static void log_store(sublet__a64 *entry, uint64_t value)
{
	a64_store_release(entry, value);
	for (struct sample *s = sample; s < sample + SAMPLES; s++)
		for (uint32_t level = 0; level < IOPT_LEVELS; level++) {
			if (s->at[level] != entry)
				continue;
			uint32_t n = ++s->stores;
			assert_true(n <= STORES_MAX);
			memcpy(s->entry[n], s->entry[n - 1], sizeof s->entry[n]);
			s->entry[n][level] = value;
			s->translation[n] = page_translation(s->entry[n], s->pn);
		}
}

/* ---- the check ---- */

static bool was_true(const struct sample *s, uint32_t from, uint32_t to, uint64_t answer)
{
	for (uint32_t t = from; t <= to; t++)
		if (s->translation[t] == answer)
			return true;
	return false;
}

static void walks_check(const struct sample *s, const char *what)
{
	for (uint32_t a = 0; a <= s->stores; a++)
		for (uint32_t b = a; b <= (s->entry[a][2] ? a : s->stores); b++)
			for (uint32_t c = b; c <= (s->entry[a][2] || s->entry[b][1] ? b : s->stores); c++) {
				const uint64_t seen[] = { s->entry[c][0], s->entry[b][1], s->entry[a][2] };
				uint64_t answer = page_translation(seen, s->pn);
				walks++;
				if (!was_true(s, a, c, answer))
					fail_msg("%s: page %llu, loads after %u, %u, %u stores find %llx",
						 what, (unsigned long long)s->pn, a, b, c,
						 (unsigned long long)answer);
			}
}

/* In each change the page's translation turns once, from what it was to what is wanted. */
static void changes_check(const struct sample *s, uint32_t changes, const char *what)
{
	for (uint32_t k = 1; k <= changes; k++) {
		uint32_t t = s->upto[k - 1];
		while (t < s->upto[k] && s->translation[t] == s->want[k - 1])
			t++;
		while (t < s->upto[k] && s->translation[t] == s->want[k])
			t++;
		if (t != s->upto[k] || s->translation[t] != s->want[k])
			fail_msg("%s: page %llu is at %llx in change %u", what, (unsigned long long)s->pn,
				 (unsigned long long)s->translation[t], k);
	}
}

/* ---- sequences of changes ---- */

/* Of the one mapping: fill pages from `first` on (bytes > 0), with the frames from `offset` on; or clear them. */
struct change {
	const char *name;
	uint64_t first, pages, offset;
	bool is_clear;
};

struct play {
	struct sublet_iopt *iopt;
	uint64_t iova, bytes;
	const struct change *change;
	uint32_t changes;
};

static void samples_reset(const struct play *p, const uint64_t page[SAMPLES])
{
	for (uint32_t i = 0; i < SAMPLES; i++) {
		struct sample *s = &sample[i];
		s->pn = (p->iova >> IOPT_PAGE_SHIFT) + page[i];
		s->stores = 0;
		for (uint32_t level = 0; level < IOPT_LEVELS; level++) {
			s->at[level] = entry_at(p->iopt, level, s->pn);
			s->entry[0][level] = a64_load_relaxed(s->at[level]);
			assert_int_equal(s->entry[0][level], 0);
		}
	}
}

static void change_note(struct sample *s, uint32_t k, uint64_t first, uint64_t end, uint64_t entry)
{
	s->upto[k] = s->stores;
	s->want[k] = s->want[k - 1];
	if (s->pn >= first && s->pn < end)
		s->want[k] = entry ? entry + ((s->pn - first) << IOPT_PAGE_SHIFT) : 0;
}

static void change_play(const struct play *p, const struct change *c, uint32_t k)
{
	uint64_t iova = p->iova + (c->first << IOPT_PAGE_SHIFT), bytes = c->pages << IOPT_PAGE_SHIFT;
	struct sublet_extent extent = { c->offset, bytes };
	int err = c->is_clear ? sublet_iopt_clear(p->iopt, iova, bytes, 0)
			      : sublet_iopt_fill(p->iopt, iova, &extent, 1, 0);

	assert_int_equal(err, 0);
	for (uint32_t i = 0; i < SAMPLES; i++)
		change_note(&sample[i], k, iova >> IOPT_PAGE_SHIFT, (iova + bytes) >> IOPT_PAGE_SHIFT,
			    c->is_clear ? 0 : c->offset | SUBLET_IOPT_READ);
}

/* Map, do the n-th sequence of `length` changes, unmap; then look at all walks that may have been under way. */
static void sequence_play(struct play *p, uint32_t n, uint32_t length, const uint64_t page[SAMPLES])
{
	char what[CHANGES_MAX * 24] = "";
	size_t at = 0;

	assert_int_equal(sublet_iopt_map(p->iopt, &p->iova, p->bytes, 0, 0, SUBLET_IOPT_READ), 0);
	samples_reset(p, page);
	for (uint32_t k = 1; k <= length; k++, n /= p->changes) {
		const struct change *c = &p->change[n % p->changes];
		at += (size_t)snprintf(what + at, sizeof what - at, "%s; ", c->name);
		change_play(p, c, k);
	}
	assert_int_equal(sublet_iopt_unmap(p->iopt, p->iova, p->bytes, 0), 0);
	for (uint32_t i = 0; i < SAMPLES; i++) {
		change_note(&sample[i], length + 1, 0, UINT64_MAX, 0);
		changes_check(&sample[i], length + 1, what);
		walks_check(&sample[i], what);
		sample[i].at[0] = sample[i].at[1] = sample[i].at[2] = NULL;
	}
}

static void all_sequences(struct play *p, uint32_t length, const uint64_t page[SAMPLES])
{
	uint32_t sequences = 1;

	walks = 0;
	for (uint32_t i = 0; i < length; i++)
		sequences *= p->changes;
	for (uint32_t n = 0; n < sequences; n++)
		sequence_play(p, n, length, page);
	print_message("%u sequences, %llu walks\n", sequences, (unsigned long long)walks);
}

static void play_open(struct fake *f, struct play *p)
{
	struct sublet_iopt_options o = { SUBLET_OPTIONS(sublet_iopt_options), .first_bytes = p->iova,
					 .aperture_bytes = p->bytes };

	fixture_open(f, &(struct fake_options){
				.area_frames = 1 << 18, .normal_frames = 1 << 18, .mm_pages = 512 });
	assert_int_equal(sublet_iopt_create(f->arena, &o, &p->iopt), 0);
}

/* 4 KiB and 2 MiB entries: A and B can be large, X cannot. */
static void walk_two_levels(void **unused)
{
	static const struct change change[] = {
		{ "all A", 0, 512, 4 * M2, false },
		{ "all B", 0, 512, 8 * M2, false },
		{ "0 A", 0, 1, 4 * M2, false },
		{ "0 B", 0, 1, 8 * M2, false },
		{ "1.. A", 1, 511, 4 * M2 + PAGE, false },
		{ "1.. B", 1, 511, 8 * M2 + PAGE, false },
		{ "all X", 0, 512, 6 * M2 + PAGE, false },
		{ "clear 0", 0, 1, 0, true },
		{ "clear 1..", 1, 511, 0, true },
		{ "clear all", 0, 512, 0, true },
	};
	static const uint64_t page[SAMPLES] = { 0, 1, 300, 511 };
	static struct fake f;
	struct play p = {
		.iova = 7 * M2, .bytes = M2, .change = change, .changes = sizeof change / sizeof *change
	};
	(void)unused;

	play_open(&f, &p);
	all_sequences(&p, UNDER_TSAN ? 3 : 4, page);
	sublet_iopt_destroy(p.iopt);
	fixture_close(&f);
}

/* All three levels. */
static void walk_three_levels(void **unused)
{
	enum { ALL = 1 << 18 };
	static const struct change change[] = {
		{ "all A", 0, ALL, 0, false },
		{ "all B", 0, ALL, G1, false },
		{ "large A", 0, 512, 0, false },
		{ "large B", 0, 512, G1, false },
		{ "rest A", 512, ALL - 512, M2, false },
		{ "0 A", 0, 1, 0, false },
		{ "0 B", 0, 1, G1, false },
		{ "1.. A", 1, 511, PAGE, false },
		{ "clear 0", 0, 1, 0, true },
		{ "clear large", 0, 512, 0, true },
		{ "clear rest", 512, ALL - 512, 0, true },
	};
	static const uint64_t page[SAMPLES] = { 0, 1, 512, ALL - 1 };
	static struct fake f;
	struct play p = {
		.iova = G1, .bytes = G1, .change = change, .changes = sizeof change / sizeof *change
	};
	(void)unused;

	play_open(&f, &p);
	all_sequences(&p, UNDER_TSAN ? 3 : 4, page);
	sublet_iopt_destroy(p.iopt);
	fixture_close(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(walk_two_levels),
		cmocka_unit_test(walk_three_levels),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
