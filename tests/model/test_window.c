/* SPDX-License-Identifier: MIT */
/* core/window.c: the chooser against a look at every window. Part of G10: a window that exists is found. */
#include "harness.h"

#include "bare.h"

enum { BLOCKS_MAX = 300 };
enum { FILL = 0, BLOCK, STICK, ASK };

static const struct model_kind kinds[] = {
	[FILL] = { "fill", 3, 12 },  /* pageblock, frames to copy, frames to drop */
	[BLOCK] = { "block", 2, 2 }, /* pageblock; claimed, held or isolated: or not any more */
	[STICK] = { "stick", 1, 1 }, /* pageblock: something was stuck there just now, or not any more */
	[ASK] = { "ask", 2, 10 },    /* pageblocks, log2 of the step */
	{ NULL, 0, 0 },
};

struct shape {
	uint32_t blocks, order;
};

struct both {
	const struct shape *shape;
	struct bare bare;
	uint32_t copy[BLOCKS_MAX], drop[BLOCKS_MAX];
	bool claimed[BLOCKS_MAX], held[BLOCKS_MAX], isolated[BLOCKS_MAX], stuck[BLOCKS_MAX];
};

static void *open_both(const void *shape)
{
	static struct both both;
	const struct shape *s = shape;

	both = (struct both){ .shape = s };
	bare_open(&both.bare, s->blocks << s->order, 1u << s->order, s->order, false);
	return &both;
}

/* ---- the twin ---- */

static uint64_t window_cost(const struct both *b, uint32_t first, uint32_t count)
{
	uint64_t cost = 0;

	for (uint32_t i = first; i < first + count; i++) {
		cost += 16ull * b->copy[i] + b->drop[i];
		cost += b->stuck[i] ? WINDOW_STUCK : 0;
		cost += b->claimed[i] || b->held[i] || b->isolated[i] ? WINDOW_BLOCKED : 0;
	}
	return cost;
}

/* The least cost of a window that can be emptied, or the most of one without anything stuck; UINT64_MAX: none. */
static uint64_t twin_best(const struct both *b, uint32_t count, uint32_t step, bool dearest)
{
	uint64_t best = UINT64_MAX;

	for (uint32_t at = 0; at + count <= b->shape->blocks; at += step) {
		uint64_t cost = window_cost(b, at, count);
		if (cost >= (dearest ? WINDOW_STUCK : WINDOW_BLOCKED))
			continue;
		if (best == UINT64_MAX || (dearest ? cost > best : cost < best))
			best = cost;
	}
	return best;
}

/* ---- operations ---- */

static void recount(struct both *b, uint32_t i, uint32_t *count, uint32_t to, enum sublet__account as)
{
	uint32_t pfn = i << b->shape->order;

	sublet__account(&b->bare.arena, pfn, *count, as, ACCOUNT_FREE);
	sublet__account(&b->bare.arena, pfn, to, ACCOUNT_FREE, as);
	*count = to;
}

static void block(struct both *b, uint32_t i, uint32_t how)
{
	bool *is = how == 0 ? &b->claimed[i] : how == 1 ? &b->held[i] : &b->isolated[i];
	enum sublet__account as = how == 0 ? ACCOUNT_CLAIMED : ACCOUNT_HELD;
	uint32_t was = *is, pfn = i << b->shape->order;

	if (how < 2 && !was && b->copy[i] + b->drop[i] + b->claimed[i] + b->held[i] == 1u << b->shape->order)
		return; /* no frame is left to be it */
	*is = !was;
	if (how < 2) {
		sublet__account(&b->bare.arena, pfn, 1, was ? as : ACCOUNT_FREE, was ? ACCOUNT_FREE : as);
		return;
	}
	a32_add_acq_rel(&b->bare.arena.pageblocks[i].isolated, was ? UINT32_MAX : 1);
	sublet__window_touch(&b->bare.arena, i);
}

static void ask(struct both *b, uint32_t count, uint32_t step)
{
	for (uint32_t dearest = 0; dearest < 2; dearest++) {
		uint64_t want = twin_best(b, count, step, dearest), have = 0;
		uint32_t at = dearest ? sublet__window_dearest(&b->bare.arena, count, step, &have)
				      : sublet__window_cheapest(&b->bare.arena, count, step, &have);
		if (want == UINT64_MAX) {
			assert_int_equal(at, ENGINE_NONE);
			continue;
		}
		assert_true(at != ENGINE_NONE && at % step == 0 && at + count <= b->shape->blocks);
		assert_int_equal(have, want);
		assert_int_equal(window_cost(b, at, count), want);
	}
}

static void step(void *both, const struct model_op *op)
{
	struct both *b = both;
	uint32_t i = (uint32_t)(op->arg[0] % b->shape->blocks), frames = 1u << b->shape->order;

	if (op->kind == FILL) {
		uint32_t room = frames - b->claimed[i] - b->held[i];
		uint32_t copy = (uint32_t)(op->arg[1] % (room + 1));
		recount(b, i, &b->copy[i], 0, ACCOUNT_MOVABLE);
		recount(b, i, &b->drop[i], (uint32_t)(op->arg[2] % (room - copy + 1)), ACCOUNT_DISCARDABLE);
		recount(b, i, &b->copy[i], copy, ACCOUNT_MOVABLE);
	}
	if (op->kind == BLOCK)
		block(b, i, (uint32_t)(op->arg[1] % 3));
	if (op->kind == STICK) {
		b->stuck[i] = !b->stuck[i];
		a32_add_acq_rel(&b->bare.arena.pageblocks[i].stuck, b->stuck[i] ? 1 : UINT32_MAX);
		sublet__window_touch(&b->bare.arena, i);
	}
	if (op->kind == ASK)
		ask(b, i + 1, 1u << op->arg[1] % 8);
}

static void close_both(void *both)
{
	struct both *b = both;
	uint64_t none;

	for (uint32_t count = 1; count <= b->shape->blocks; count += 1 + count / 4)
		ask(b, count, 1);
	assert_int_equal(sublet__window_cheapest(&b->bare.arena, b->shape->blocks + 1, 1, &none),
			 ENGINE_NONE);
	bare_close(&b->bare);
}

static void pick(const void *shape, uint32_t n, uint64_t *random, struct model_op *op)
{
	const struct shape *s = shape;
	uint32_t frames = 1u << s->order;

	op->arg[0] = below(random, s->blocks);
	if (op->kind == FILL) {
		op->arg[1] = below(random, frames + 1);
		op->arg[2] = below(random, frames + 1);
	} else if (op->kind == BLOCK) {
		op->arg[1] = below(random, 3);
	} else if (op->kind == ASK) {
		op->arg[0] = below(random, n % 7 ? min_u32(20, s->blocks) : s->blocks);
		op->arg[1] = below(random, 6);
	}
}

static struct model model_of(const char *name, const struct shape *shape)
{
	return (struct model){ name, kinds, shape, open_both, step, close_both, pick, NULL, 0 };
}

static void window_random(void **unused)
{
	/* equal costs everywhere; costs of all sizes; more blocks than one word of dirty bits has */
	static const struct shape single = { 100, 0 }, many = { BLOCKS_MAX, 1 }, large = { 13, 9 };
	struct model m = model_of("window-single", &single);
	(void)unused;

	model_random(&m, 20, 1500);
	m = model_of("window-many", &many);
	model_random(&m, 6, 3000);
	m = model_of("window-large", &large);
	model_random(&m, 20, 1500);
}

enum { KIND_FREE = 0, KIND_DROP, KIND_COPY, KIND_CLAIMED, KINDS };

static void kind_set(struct both *b, uint32_t i, uint32_t kind)
{
	if (b->claimed[i] != (kind == KIND_CLAIMED))
		block(b, i, 0);
	recount(b, i, &b->copy[i], kind == KIND_COPY, ACCOUNT_MOVABLE);
	recount(b, i, &b->drop[i], kind == KIND_DROP, ACCOUNT_DISCARDABLE);
}

/* Every area of 1 to 6 blocks, every kind of block, every length, steps 1, 2 and 4. */
static void window_enumerated(void **unused)
{
	(void)unused;

	for (uint32_t blocks = 1; blocks <= 6; blocks++) {
		struct shape shape = { blocks, 0 };
		struct both *b = open_both(&shape);
		for (uint32_t n = 0; n < 1u << (2 * blocks); n++) {
			for (uint32_t i = 0; i < blocks; i++) {
				kind_set(b, i, KIND_FREE);
				kind_set(b, i, n >> (2 * i) & 3);
			}
			for (uint32_t count = 1; count <= blocks; count++)
				for (uint32_t step = 1; step <= 4; step *= 2)
					ask(b, count, step);
		}
		close_both(b);
	}
}

/* Every sequence of changes and questions, so that a change that a question does not see shows. */
static void window_sequences(void **unused)
{
	static const struct shape shape = { 3, 0 };
	static const struct model_op choice[] = {
		{ FILL, { 0, 1, 0 } }, { FILL, { 1, 0, 1 } }, { FILL, { 2, 0, 0 } }, { FILL, { 0, 0, 0 } },
		{ BLOCK, { 1, 0 } },   { BLOCK, { 2, 2 } },   { STICK, { 0 } },      { STICK, { 2 } },
		{ ASK, { 0, 0 } },     { ASK, { 1, 0 } },     { ASK, { 0, 1 } },
	};
	struct model m = model_of("window-sequences", &shape);
	(void)unused;

	model_enumerate(&m, choice, sizeof choice / sizeof *choice, 5);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(window_random),
		cmocka_unit_test(window_enumerated),
		cmocka_unit_test(window_sequences),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
