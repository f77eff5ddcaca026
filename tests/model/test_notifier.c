/* SPDX-License-Identifier: MIT */
/*
 * core/notifier_index.c and the calls over it against a plain list of ranges: who overlaps, who is called, and who
 * is quiet. Part of G4: exactly those in range are told, once each, and are told that it is over.
 */
#include "harness.h"

#include "fixture.h"

#include <sublet/notifier.h>

enum { RANGES_MAX = 400 };
enum { ADD = 0, REMOVE, COUNT, CHANGE, NEST };

static const struct model_kind kinds[] = {
	[ADD] = { "add", 2, 10 },      /* first page, pages - 1 */
	[REMOVE] = { "remove", 1, 7 }, /* n-th */
	[COUNT] = { "count", 2, 8 },   /* first page, pages - 1 */
	[CHANGE] = { "change", 2, 3 }, /* an invalidation: first page, pages - 1 */
	[NEST] = { "nest", 4,
		   2 }, /* two at once, the first ends first; and one is added and removed meanwhile */
	{ NULL, 0, 0 },
};

struct shape {
	uint32_t pages;
};

struct range {
	struct sublet_notifier notifier;
	uint32_t first, end;
	uint32_t calls;
};

struct both {
	struct fake fake;
	struct sublet_mm *mm;
	uint32_t pages;
	uint32_t count;
	struct range *range[RANGES_MAX];
};

static int range_invalidate(void *ctx, const struct sublet_invalidation *inv)
{
	struct range *r = ctx;

	(void)inv;
	r->calls++;
	return 0;
}

static const struct sublet_notifier_ops ops = { SUBLET_OPTIONS(sublet_notifier_ops), range_invalidate };

/* The engine is opened once: an index that was emptied is as good as a new one, and has to be. */
static void *open_both(const void *shape)
{
	static struct both both;
	const struct shape *s = shape;

	if (both.mm && both.pages != s->pages)
		fixture_close(&both.fake);
	if (!both.mm || both.pages != s->pages)
		fixture_open(&both.fake, &(struct fake_options){ .area_frames = 512,
								 .normal_frames = 512,
								 .mm_pages = s->pages });
	both.mm = both.fake.engine_mm[0];
	both.pages = s->pages;
	return &both;
}

static void check_index(const struct both *b)
{
	const char *what = sublet__notifier_index_check(b->mm);

	if (what)
		fail_msg("%s", what);
	assert_int_equal(b->mm->notifiers.registered, b->count);
}

static bool overlaps(const struct range *r, uint32_t first, uint32_t end)
{
	return r->first < end && r->end > first;
}

/* ---- operations ---- */

static void add(struct both *b, uint32_t first, uint32_t pages)
{
	uint64_t from = b->mm->config.base + first * PAGE;
	struct range *r;

	if (b->count == RANGES_MAX)
		return;
	r = calloc(1, sizeof *r);
	assert_non_null(r);
	r->first = first;
	r->end = first + pages;
	assert_int_equal(sublet_notifier_add(b->mm, (void *)(uintptr_t)from, pages * PAGE, &ops, r, "range",
					     &r->notifier),
			 0);
	b->range[b->count++] = r;
}

static void drop(struct both *b, uint32_t i)
{
	struct range *r = b->range[i];
	struct sublet_notifier stale = r->notifier;
	uint64_t seq;

	assert_int_equal(sublet_notifier_remove(&r->notifier), 0);
	assert_int_equal(sublet_notifier_remove(&stale), -EINVAL);
	assert_int_equal(sublet_notifier_read_begin(&stale, 0, &seq), -EINVAL);
	assert_true(sublet_notifier_read_retry(&stale, 0));
	free(r);
	b->range[i] = b->range[--b->count];
}

static void count(const struct both *b, uint32_t first, uint32_t pages)
{
	uint32_t want = 0;

	for (uint32_t i = 0; i < b->count; i++)
		want += overlaps(b->range[i], first, first + pages);
	assert_int_equal(sublet__notifier_count(b->mm, first, pages), want);
}

/* Whether each says that its pages may be read: not while something in range is under way. */
static void quiet_compare(const struct both *b, uint32_t first, uint32_t end)
{
	uint64_t seq;

	for (uint32_t i = 0; i < b->count; i++) {
		bool in = overlaps(b->range[i], first, end);
		assert_int_equal(sublet_notifier_read_begin(&b->range[i]->notifier, 0, &seq),
				 in ? -EAGAIN : 0);
	}
}

static void begin(struct both *b, struct sublet__invalidation *inv, uint32_t first, uint32_t pages)
{
	for (uint32_t i = 0; i < b->count; i++)
		b->range[i]->calls = 0;
	assert_int_equal(sublet__invalidate_begin(b->mm, inv, first, pages, SUBLET_NOTIFIER_MOVE, false), 0);
	for (uint32_t i = 0; i < b->count; i++)
		assert_int_equal(b->range[i]->calls, overlaps(b->range[i], first, first + pages));
}

/* A sequence number taken before is old to those in range, and to nobody else. */
static void change(struct both *b, uint32_t first, uint32_t pages)
{
	struct sublet__invalidation inv;
	uint64_t seq[RANGES_MAX];

	for (uint32_t i = 0; i < b->count; i++)
		assert_int_equal(sublet_notifier_read_begin(&b->range[i]->notifier, 0, &seq[i]), 0);
	begin(b, &inv, first, pages);
	quiet_compare(b, first, first + pages);
	assert_int_equal(sublet__invalidate_again(b->mm, &inv), 0);
	sublet__invalidate_end(b->mm, &inv);
	quiet_compare(b, 0, 0);
	for (uint32_t i = 0; i < b->count; i++) {
		bool in = overlaps(b->range[i], first, first + pages);
		assert_int_equal(b->range[i]->calls, 2 * in);
		assert_int_equal(sublet_notifier_read_retry(&b->range[i]->notifier, seq[i]), in);
	}
}

/* (N1): whoever comes between counts what has begun, and whoever goes is not counted for. */
static void nest(struct both *b, uint32_t first, uint32_t pages, uint32_t other, uint32_t other_pages)
{
	struct sublet__invalidation one, two;

	begin(b, &one, first, pages);
	begin(b, &two, other, other_pages);
	if (b->count)
		drop(b, b->count / 2);
	add(b, other, pages < b->pages - other ? pages : b->pages - other);
	sublet__invalidate_end(b->mm, &one);
	quiet_compare(b, other, other + other_pages);
	sublet__invalidate_end(b->mm, &two);
	quiet_compare(b, 0, 0);
}

static uint32_t clip(const struct both *b, uint64_t first, uint64_t pages)
{
	return 1 + (uint32_t)(pages % (b->pages - first));
}

static void step(void *both, const struct model_op *op)
{
	struct both *b = both;
	uint32_t first = (uint32_t)(op->arg[0] % b->pages), other = (uint32_t)(op->arg[2] % b->pages);
	uint32_t pages = clip(b, first, op->arg[1]), other_pages = clip(b, other, op->arg[3]);

	if (op->kind == ADD)
		add(b, first, pages);
	if (op->kind == REMOVE && b->count)
		drop(b, (uint32_t)(op->arg[0] % b->count));
	if (op->kind == COUNT)
		count(b, first, pages);
	if (op->kind == CHANGE)
		change(b, first, pages);
	if (op->kind == NEST)
		nest(b, first, pages, other, other_pages);
	if (b->pages < 100 || op->kind == NEST)
		check_index(b);
}

/* Small windows: every question there is. Then all of it goes. */
static void close_both(void *both)
{
	struct both *b = both;

	for (uint32_t first = 0; b->pages < 10 && first < b->pages; first++)
		for (uint32_t pages = 1; pages <= b->pages - first; pages++)
			count(b, first, pages);
	count(b, 0, b->pages);
	check_index(b);
	while (b->count)
		drop(b, b->count / 2);
	count(b, 0, b->pages);
	check_index(b);
}

/* Sizes of every magnitude; places near the edges of bins as often as anywhere. */
static void range_pick(const struct shape *s, uint64_t *random, uint64_t *first, uint64_t *pages)
{
	uint32_t bits = log2_floor(s->pages) + 1, edge = 2 * below(random, bits / 2 + 1);
	uint32_t at = below(random, s->pages);

	*pages = below(random, 1u << below(random, bits));
	if (below(random, 2))
		at = (at >> edge << edge) + below(random, 5) - 2;
	if (below(random, 4) == 0)
		at = below(random, 64); /* a crowd */
	if (below(random, 8) == 0)
		*pages = (1u << 2 * below(random, bits / 2)) - 1; /* as long as a bin */
	*first = at < s->pages ? at : s->pages - 1;
}

static void pick(const void *shape, uint32_t n, uint64_t *random, struct model_op *op)
{
	(void)n;
	range_pick(shape, random, &op->arg[0], &op->arg[1]);
	range_pick(shape, random, &op->arg[2], &op->arg[3]);
	if (op->kind == REMOVE)
		op->arg[0] = below(random, RANGES_MAX);
}

static struct model model_of(const char *name, const struct shape *shape)
{
	return (struct model){ name, kinds, shape, open_both, step, close_both, pick, NULL, 0 };
}

static void notifier_random(void **unused)
{
	static const struct shape tiny = { 20 }, small = { 1024 }, odd = { 5000 }, large = { 1u << 18 };
	struct model m = model_of("notifier-tiny", &tiny);
	(void)unused;

	model_random(&m, 60, 400);
	m = model_of("notifier-small", &small);
	model_random(&m, 10, 2000);
	m = model_of("notifier-odd", &odd);
	model_random(&m, 10, 2000);
	m = model_of("notifier-large", &large);
	model_random(&m, 10, 2000);
}

/* A window of 5 pages: every sequence, and after each every question. */
static void notifier_enumerated(void **unused)
{
	static const struct shape shape = { 5 };
	static const struct model_op choice[] = {
		{ ADD, { 0, 0 } },    { ADD, { 0, 4 } },        { ADD, { 1, 2 } }, { ADD, { 3, 1 } },
		{ ADD, { 4, 0 } },    { REMOVE, { 0 } },        { REMOVE, { 1 } }, { CHANGE, { 1, 1 } },
		{ CHANGE, { 4, 0 } }, { NEST, { 0, 1, 1, 3 } },
	};
	struct model m = model_of("notifier-sequences", &shape);
	(void)unused;

	model_enumerate(&m, choice, sizeof choice / sizeof *choice, 5);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(notifier_random),
		cmocka_unit_test(notifier_enumerated),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
