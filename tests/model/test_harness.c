/* SPDX-License-Identifier: MIT */
/*
 * The harness itself: a twin that is wrong on purpose is found, and the list is made as short as can be. The real thing
 * here is a set of small numbers; each kind of wrongness says in its shape how many operations it needs.
 */
#include "harness.h"

#include <string.h>
#include <unistd.h>

enum { ADD = 0, DROP, HAS, NOISE };

static const struct model_kind kinds[] = {
	[ADD] = { "add", 1, 4 }, [DROP] = { "drop", 1, 2 },
	[HAS] = { "has", 1, 2 }, [NOISE] = { "noise", 3, 8 },
	{ NULL, 0, 0 },
};

enum wrongness { NONE = 0, LOSES_ON_DROP, FULL_AT_FIVE, CRASHES, LOOPS, LARGE_ONLY, AT_CLOSE, BALANCED };

struct set {
	enum wrongness wrong;
	uint64_t real; /* a bit a number */
	uint64_t twin;
	uint32_t adds;
	bool went; /* something was added, and then dropped */
};

static void *open_set(const void *shape)
{
	static struct set set;

	set = (struct set){ .wrong = *(const enum wrongness *)shape };
	return &set;
}

static uint32_t bits(uint64_t v)
{
	return (uint32_t)__builtin_popcountll(v);
}

/* What the wrong twin does after a right step. */
static void go_wrong(struct set *s, const struct model_op *op, uint64_t bit)
{
	if (s->wrong == LOSES_ON_DROP && op->kind == DROP && (s->twin & 1ull << 7))
		s->twin &= ~(1ull << 13);
	if (s->wrong == FULL_AT_FIVE && op->kind == ADD && bits(s->twin) > 4)
		s->twin &= ~bit;
	if (s->wrong == CRASHES && op->kind == HAS && s->adds > 2)
		*(volatile int *)NULL = 0;
	while (s->wrong == LOOPS && op->kind == DROP && (s->twin & 1ull << 3))
		pause();
	if (s->wrong == LARGE_ONLY && op->kind == NOISE && op->arg[1] >= 1000)
		s->twin ^= 1;
	/* Left-over only while two numbers are in: each alone would do no harm. */
	if (s->wrong == BALANCED && op->kind == HAS && bits(s->twin) == 2)
		s->twin ^= 1;
}

static void step(void *both, const struct model_op *op)
{
	struct set *s = both;
	uint64_t bit = 1ull << op->arg[0] % 64;

	if (op->kind == ADD) {
		s->real |= bit;
		s->twin |= bit;
		s->adds++;
	} else if (op->kind == DROP) {
		s->went |= (s->real & bit) != 0;
		s->real &= ~bit;
		s->twin &= ~bit;
	}
	go_wrong(s, op, bit);
	if (op->kind == HAS)
		assert_int_equal(!!(s->real & bit), !!(s->twin & bit));
	else if (s->wrong != LOSES_ON_DROP)
		assert_true(s->real == s->twin);
}

static void close_set(void *both)
{
	const struct set *s = both;

	if (s->wrong == AT_CLOSE)
		assert_false(s->went);
}

static void pick(const void *shape, uint32_t n, uint64_t *random, struct model_op *op)
{
	(void)shape, (void)n;
	op->arg[0] = below(random, 64);
	op->arg[1] = below(random, 5000);
	op->arg[2] = rng(random);
}

static struct model model_of(const enum wrongness *wrong)
{
	return (struct model){ "set",    kinds, wrong,
			       open_set, step,  close_set,
			       pick,     NULL,  *wrong == LOOPS ? 50 : 0 };
}

/* The shortest list for it is `want`, or `other`, which is as short. */
static void expect_shrunk(enum wrongness wrong, enum model_verdict verdict, const char *want,
			  const char *other)
{
	static char text[MODEL_TEXT_MAX];
	struct model m = model_of(&wrong);
	struct model_found found;
	struct model_list again;

	/* 400 of them also where MODEL_STRIDE leaves most lists out: few have it in them to go wrong */
	struct model_hunt hunt = { .seed = seed_get("shrunk"),
				   .lists = 400ull * model_stride(),
				   .length = wrong == LOOPS ? 40 : 1500,
				   .unhurried = true };
	model_hunt(&m, &hunt, &found);
	assert_int_equal(found.verdict, verdict);
	assert_true(found.again);
	model_write(&m, &found.list, text);
	print_message("%u operations, then %s (%u runs)\n", found.was, text, found.runs);
	assert_string_equal(text, strcmp(text, other) ? want : other);
	/* and what is printed runs again, to the same end */
	assert_true(model_read(&m, text, &again));
	assert_int_equal(again.count, found.list.count);
	assert_memory_equal(again.op, found.list.op, again.count * sizeof *again.op);
	assert_int_equal(model_run(&m, &again, false), verdict);
	free(again.op);
	free(found.list.op);
}

static void nothing_wrong(void **unused)
{
	enum wrongness none = NONE;
	struct model m = model_of(&none);
	struct model_found found;
	(void)unused;

	model_hunt(&m, &(struct model_hunt){ .seed = seed_get("nothing_wrong"), .lists = 20, .length = 1000 },
		   &found);
	assert_int_equal(found.verdict, MODEL_PASSES);
	model_random(&m, 2, 100);
}

/* Which two numbers matter, and that what is dropped need not be there. */
static void shrinks_to_the_cause(void **unused)
{
	(void)unused;
	expect_shrunk(LOSES_ON_DROP, MODEL_FAILS, "add 7; add 13; drop 0; has 13",
		      "add 13; add 7; drop 0; has 13");
}

static void shrinks_counts(void **unused)
{
	static char text[MODEL_TEXT_MAX];
	enum wrongness wrong = FULL_AT_FIVE;
	struct model m = model_of(&wrong);
	struct model_found found;
	uint64_t all = 0;
	(void)unused;

	model_hunt(&m,
		   &(struct model_hunt){ .seed = seed_get("shrinks_counts"), .lists = 20, .length = 1500 },
		   &found);
	assert_int_equal(found.verdict, MODEL_FAILS);
	model_write(&m, &found.list, text);
	print_message("%s\n", text);
	assert_int_equal(found.list.count, 5); /* five different small ones, in some order */
	for (uint32_t i = 0; i < 5; i++) {
		assert_int_equal(found.list.op[i].kind, ADD);
		all |= 1ull << found.list.op[i].arg[0];
	}
	assert_int_equal(bits(all), 5);
	assert_true(all < 1 << 8);
	free(found.list.op);
}

static void shrinks_arguments(void **unused)
{
	(void)unused;
	expect_shrunk(LARGE_ONLY, MODEL_FAILS, "noise 0 1000 0", "");
}

static void shrinks_crashes(void **unused)
{
	(void)unused;
	expect_shrunk(CRASHES, MODEL_FAILS, "add 0; add 0; add 0; has 0", "");
}

static void shrinks_hangs(void **unused)
{
	(void)unused;
	expect_shrunk(LOOPS, MODEL_HANGS, "add 3; drop 0", "");
}

/* What only the end shows: the list is not cut before it. */
static void shrinks_leftovers(void **unused)
{
	(void)unused;
	expect_shrunk(AT_CLOSE, MODEL_FAILS, "add 0; drop 0", "");
}

/* Of add, drop, add, has, neither of the first two can go alone where there are three numbers. */
static void shrinks_pairs(void **unused)
{
	enum wrongness wrong = BALANCED;
	struct model m = model_of(&wrong);
	static const struct model_op choice[] = {
		{ ADD, { 0 } }, { ADD, { 1 } }, { ADD, { 2 } }, { DROP, { 2 } }, { HAS, { 0 } },
	};
	struct model_found found;
	(void)unused;

	model_hunt(&m, &(struct model_hunt){ .length = 4, .choice = choice, .choices = 5 }, &found);
	assert_int_equal(found.verdict, MODEL_FAILS);
	assert_int_equal(found.list.count, 3);
	free(found.list.op);
}

static void reads_text(void **unused)
{
	static const char *const wrong[] = { "add",    "add x", "add 1 2",       "add 1 drop 2",
					     "plus 1", "ad 1",  "add 1;; add 2", "; add 1" };
	enum wrongness none = NONE;
	struct model m = model_of(&none);
	struct model_list list;
	(void)unused;

	assert_true(model_read(&m, " add 1; noise 0 0xff 18446744073709551615 ;has 2;", &list));
	assert_int_equal(list.count, 3);
	assert_int_equal(list.op[1].arg[1], 255);
	assert_true(list.op[1].arg[2] == UINT64_MAX);
	free(list.op);
	assert_true(model_read(&m, "", &list));
	assert_int_equal(list.count, 0);
	free(list.op);
	for (uint32_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
		assert_false(model_read(&m, wrong[i], &list));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(nothing_wrong),     cmocka_unit_test(shrinks_to_the_cause),
		cmocka_unit_test(shrinks_counts),    cmocka_unit_test(shrinks_arguments),
		cmocka_unit_test(shrinks_crashes),   cmocka_unit_test(shrinks_hangs),
		cmocka_unit_test(shrinks_leftovers), cmocka_unit_test(shrinks_pairs),
		cmocka_unit_test(reads_text),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
