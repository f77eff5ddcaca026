/* SPDX-License-Identifier: MIT */
/*
 * core/zone.c against a twin that knows of each frame what it is, and nothing of lists, orders and buddies. G8, G9, and
 * of G10 that nothing is handed out of an isolated window.
 *
 * From the frames that are free follow the blocks that the free lists have to hold: buddies are always merged, so these
 * are the largest aligned ones. A folio is cut from the smallest block that is large enough; whoever wants zeros gets
 * them where such a block is known to be zero, and whoever does not leaves them, where there is another.
 */
#include "harness.h"

#include "bare.h"

#include <string.h>

enum { HELD_MAX = 512, WINDOWS_MAX = 3, CLAIMS_MAX = 8 };
enum { TAKE = 0, PUT, ISOLATE, UNDO, COMMIT, RELEASE, ZERO, WIPE };

static const struct model_kind kinds[] = {
	[TAKE] = { "take", 3, 20 },      /* order, zones, any */
	[PUT] = { "put", 2, 18 },        /* n-th held, how many that lie end to end */
	[ISOLATE] = { "isolate", 2, 3 }, /* first frame, frames */
	[UNDO] = { "undo", 1, 2 },       /* n-th window */
	[COMMIT] = { "commit", 1, 4 },   /* n-th window */
	[RELEASE] = { "release", 1, 2 }, /* n-th claim */
	[ZERO] = { "zero", 0, 3 },
	[WIPE] = { "wipe", 1, 1 }, /* n-th window */
	{ NULL, 0, 0 },
};

static const uint32_t zones_of[][ZONES] = {
	{ ZONE_AREA, ZONE_NORMAL },
	{ ZONE_NORMAL, ZONE_AREA },
	{ ZONE_AREA, ZONE_AREA },
	{ ZONE_NORMAL, ZONE_NORMAL },
};

struct shape {
	uint32_t area_frames, normal_frames, pageblock_order;
	bool zeroed;
};

struct piece {
	uint32_t pfn, frames;
};

struct both {
	const struct shape *shape;
	struct bare bare;
	uint32_t frames;
	uint8_t state[BARE_FRAMES_MAX]; /* FRAME_FREE, BUSY, ISOLATED, CLAIMED */
	bool zero[BARE_FRAMES_MAX];     /* known to be, as its folio */
	uint32_t held_count, window_count, claim_count;
	struct piece held[HELD_MAX]; /* ascending */
	struct sublet__isolation window[WINDOWS_MAX];
	bool window_used[WINDOWS_MAX];
	struct piece claim[CLAIMS_MAX];
};

static void *open_both(const void *shape)
{
	static struct both both;
	const struct shape *s = shape;

	both = (struct both){ .shape = s, .frames = s->area_frames + s->normal_frames };
	bare_open(&both.bare, s->area_frames, s->normal_frames, s->pageblock_order, s->zeroed);
	memset(both.zero, s->zeroed, both.frames);
	return &both;
}

/* ---- the twin ---- */

static bool all_free(const struct both *b, uint32_t pfn, uint32_t frames)
{
	for (uint32_t i = pfn; i < pfn + frames; i++)
		if (b->state[i] != FRAME_FREE)
			return false;
	return true;
}

/* Order of the block that the free lists have to hold at pfn, where one begins; -1. */
static int block_at(const struct both *b, uint32_t pfn)
{
	int order = -1;

	for (uint32_t o = 0; o <= b->shape->pageblock_order; o++) {
		uint32_t head = pfn & ~((1u << o) - 1);
		if (!all_free(b, head, 1u << o))
			break;
		order = head == pfn ? (int)o : -1;
	}
	return order;
}

/* A block is known to be zero if all that was merged into it was. */
static void zero_settle(struct both *b)
{
	for (uint32_t pfn = 0, next; pfn < b->frames; pfn = next) {
		int order = block_at(b, pfn);
		bool zero = true;
		next = pfn + (order < 0 ? 1 : 1u << order);
		for (uint32_t i = pfn; order >= 0 && i < next; i++)
			zero &= b->zero[i];
		for (uint32_t i = pfn; order >= 0 && i < next; i++)
			b->zero[i] = zero;
	}
}

static void zone_span(const struct both *b, uint32_t zone, uint32_t *first, uint32_t *end)
{
	*first = zone == ZONE_AREA ? 0 : b->shape->area_frames;
	*end = zone == ZONE_AREA ? b->shape->area_frames : b->frames;
}

struct choice {
	int order; /* of the blocks to cut from; -1: there is none */
	bool some_zero, some_not;
};

/* From which blocks of a zone a folio of `order` is cut. */
static struct choice zone_choose(const struct both *b, uint32_t zone, int order)
{
	struct choice c = { -1, false, false };
	uint32_t first, end;

	zone_span(b, zone, &first, &end);
	for (uint32_t pfn = first; pfn < end; pfn++) {
		int at = block_at(b, pfn);
		if (at < order || (c.order >= 0 && at > c.order))
			continue;
		if (at != c.order)
			c = (struct choice){ at, false, false };
		c.some_zero |= b->zero[pfn];
		c.some_not |= !b->zero[pfn];
	}
	return c;
}

static struct sublet__isolation *window_over(struct both *b, uint32_t pfn)
{
	for (uint32_t i = 0; i < WINDOWS_MAX; i++)
		if (b->window_used[i] && pfn >= b->window[i].first_pfn && pfn < b->window[i].end_pfn)
			return &b->window[i];
	return NULL;
}

/* Frames of nobody: free, or the window's that they lie in. */
static void twin_put(struct both *b, uint32_t pfn, uint32_t frames)
{
	for (uint32_t i = pfn; i < pfn + frames; i++) {
		b->state[i] = window_over(b, i) ? FRAME_ISOLATED : FRAME_FREE;
		b->zero[i] = false;
	}
}

/* ---- comparing ---- */

static void list_compare(const struct both *b, uint32_t zone, uint32_t order)
{
	const struct sublet_arena *a = &b->bare.arena;
	const struct sublet__zone *z = &a->zone[zone];
	uint32_t first, end, want = 0, have = 0, prev = ENGINE_NONE;
	bool was_zero = true;

	zone_span(b, zone, &first, &end);
	for (uint32_t pfn = first; pfn < end; pfn += 1u << order)
		want += block_at(b, pfn) == (int)order;
	for (uint32_t pfn = z->head[order]; pfn != ENGINE_NONE; pfn = a32_load_relaxed(&a->frames[pfn].a)) {
		assert_true(pfn >= first && pfn < end && have < want);
		assert_int_equal(block_at(b, pfn), order);
		assert_int_equal(a32_load_relaxed(&a->frames[pfn].b), prev);
		assert_int_equal(a32_load_relaxed(&a->frames[pfn].word),
				 frame_word(FRAME_FREE, order, b->zero[pfn] ? FRAME_ZERO : 0));
		assert_true(was_zero || !b->zero[pfn]); /* known zero ones stand in front */
		was_zero = b->zero[pfn];
		prev = pfn;
		have++;
	}
	assert_int_equal(z->tail[order], prev);
	assert_int_equal(have, want);
}

/* Folios lie end to end, aligned, each in one state, and nobody can pin one. */
static void folios_compare(const struct both *b)
{
	const struct sublet_arena *a = &b->bare.arena;

	for (uint32_t pfn = 0, next; pfn < b->frames; pfn = next) {
		uint32_t word = a32_load_relaxed(&a->frames[pfn].word);
		next = pfn + (1u << word_order(word));
		if (!(word & FRAME_HEAD) || pfn % (next - pfn) || next > b->frames)
			fail_msg("frame %u: word %x is no folio's that begins there", pfn, word);
		if (word_state(word) != FRAME_CLAIMED)
			assert_int_equal(a32_load_relaxed(&a->frames[pfn].ref), REF_FROZEN);
		for (uint32_t i = pfn; i < next; i++) {
			if (b->state[i] != word_state(word))
				fail_msg("frame %u: state %u, want %u", i, word_state(word), b->state[i]);
			if (word_state(word) == FRAME_ISOLATED)
				assert_int_equal(!!(word & FRAME_ZERO), b->zero[i]);
			/* G9 */
			assert_false((word & FRAME_ZERO) && word_state(word) != FRAME_BUSY &&
				     b->bare.written[i]);
			assert_true(i == pfn || !(a32_load_relaxed(&a->frames[i].word) & FRAME_HEAD));
		}
	}
}

static void counts_compare(struct both *b)
{
	static const uint8_t account[] = { [FRAME_FREE] = ACCOUNT_FREE,
					   [FRAME_BUSY] = ACCOUNT_MOVABLE,
					   [FRAME_ISOLATED] = ACCOUNT_ISOLATED,
					   [FRAME_CLAIMED] = ACCOUNT_CLAIMED };
	uint32_t span = 1u << b->shape->pageblock_order, free_frames[ZONES] = { 0 };

	for (uint32_t pfn = 0; pfn < b->frames; pfn += span) {
		const struct sublet__pageblock *pb = pageblock_of(&b->bare.arena, pfn);
		uint32_t count[ACCOUNTS] = { 0 }, windows = 0;
		for (uint32_t i = pfn; i < pfn + span; i++)
			count[account[b->state[i]]]++;
		for (uint32_t what = 0; what < ACCOUNTS; what++)
			assert_int_equal(sublet__account_get(pb, what), count[what]);
		for (uint32_t w = 0; w < WINDOWS_MAX; w++)
			windows += b->window_used[w] && b->window[w].first_pfn < pfn + span &&
				   b->window[w].end_pfn > pfn;
		assert_int_equal(a32_load_relaxed(&pb->isolated), windows);
		free_frames[pfn < b->shape->area_frames ? ZONE_AREA : ZONE_NORMAL] += count[ACCOUNT_FREE];
	}
	for (uint32_t z = 0; z < ZONES; z++)
		assert_int_equal(b->bare.arena.zone[z].free_frames, free_frames[z]);
}

static void compare(struct both *b)
{
	folios_compare(b);
	counts_compare(b);
	for (uint32_t zone = 0; zone < ZONES; zone++)
		for (uint32_t order = 0; order <= b->shape->pageblock_order; order++)
			list_compare(b, zone, order);
	for (uint32_t w = 0; w < WINDOWS_MAX; w++) {
		uint32_t isolated = 0;
		for (uint32_t i = b->window[w].first_pfn; b->window_used[w] && i < b->window[w].end_pfn; i++)
			isolated += b->state[i] == FRAME_ISOLATED;
		if (b->window_used[w])
			assert_int_equal(sublet__isolated_frames(&b->bare.arena, &b->window[w]), isolated);
	}
}

/* ---- operations ---- */

static void held_add(struct both *b, uint32_t pfn, uint32_t frames)
{
	uint32_t i = b->held_count++;

	for (; i && b->held[i - 1].pfn > pfn; i--)
		b->held[i] = b->held[i - 1];
	b->held[i] = (struct piece){ pfn, frames };
}

static void take(struct both *b, uint32_t order, const uint32_t zones[ZONES], bool any)
{
	struct sublet_arena *a = &b->bare.arena;
	struct choice c = { -1, false, false };
	uint32_t zone = 0;

	if (b->held_count == HELD_MAX)
		return;
	for (uint32_t i = 0; i < ZONES && c.order < 0; i++) {
		zone = zones[i];
		c = zone_choose(b, zone, (int)order);
	}
	uint32_t pfn = any ? sublet__folio_take_any(a, order, zones) : sublet__folio_take(a, order, zones);
	if (c.order < 0) {
		assert_int_equal(pfn, ENGINE_NONE);
		return;
	}
	assert_true(pfn < b->frames);
	assert_int_equal(pfn < b->shape->area_frames ? ZONE_AREA : ZONE_NORMAL, zone);
	assert_int_equal(block_at(b, pfn), c.order);
	assert_int_equal(b->zero[pfn], any ? !c.some_not : c.some_zero);
	assert_int_equal(a32_load_relaxed(&a->frames[pfn].word),
			 frame_word(FRAME_BUSY, order, b->zero[pfn] ? FRAME_ZERO : 0));
	for (uint32_t i = pfn; i < pfn + (1u << order); i++) {
		assert_false(b->zero[pfn] && b->bare.written[i]); /* G9 */
		b->state[i] = FRAME_BUSY;
		b->bare.written[i] = true;
	}
	held_add(b, pfn, 1u << order);
}

/* The n-th folio, and those that follow it without a gap, in one call: the end of the area may lie between. */
static void put(struct both *b, uint32_t n, uint32_t count)
{
	uint32_t pfn = b->held[n].pfn, end = pfn, gone = 0;

	while (gone < count && n + gone < b->held_count && b->held[n + gone].pfn == end)
		end += b->held[n + gone++].frames;
	memmove(&b->held[n], &b->held[n + gone], (b->held_count - n - gone) * sizeof *b->held);
	b->held_count -= gone;
	sublet__frames_put(&b->bare.arena, pfn, end - pfn, ACCOUNT_MOVABLE);
	twin_put(b, pfn, end - pfn);
}

static void isolate(struct both *b, uint32_t first, uint32_t frames)
{
	uint32_t w = 0, end = min_u32(first + frames, b->shape->area_frames);

	while (w < WINDOWS_MAX && b->window_used[w])
		w++;
	if (w == WINDOWS_MAX)
		return;
	for (uint32_t i = first; i < end; i++)
		if (window_over(b, i) || b->state[i] == FRAME_CLAIMED)
			return;
	b->window[w] = (struct sublet__isolation){ .first_pfn = first, .end_pfn = end };
	b->window_used[w] = true;
	b->window_count++;
	for (uint32_t i = first; i < end; i++)
		if (b->state[i] == FRAME_FREE)
			b->state[i] = FRAME_ISOLATED;
	sublet__isolate(&b->bare.arena, &b->window[w]);
}

/* The n-th window in use. */
static uint32_t window_nth(const struct both *b, uint64_t n)
{
	uint32_t w = 0;

	for (n %= b->window_count; n || !b->window_used[w]; w++)
		n -= b->window_used[w];
	return w;
}

static void undo(struct both *b, uint32_t w)
{
	b->window_used[w] = false;
	b->window_count--;
	sublet__isolate_undo(&b->bare.arena, &b->window[w]);
	for (uint32_t i = b->window[w].first_pfn; i < b->window[w].end_pfn; i++)
		if (b->state[i] == FRAME_ISOLATED)
			b->state[i] = FRAME_FREE;
}

static void commit(struct both *b, uint32_t w)
{
	const struct sublet__isolation *iso = &b->window[w];
	uint32_t frames = iso->end_pfn - iso->first_pfn;

	for (uint32_t i = iso->first_pfn; i < iso->end_pfn; i++)
		if (b->state[i] != FRAME_ISOLATED)
			return;
	if (b->claim_count == CLAIMS_MAX)
		return;
	b->window_used[w] = false;
	b->window_count--;
	sublet__isolate_commit(&b->bare.arena, &b->window[w], w);
	memset(b->state + iso->first_pfn, FRAME_CLAIMED, frames);
	memset(b->bare.written + iso->first_pfn, true, frames);
	b->claim[b->claim_count++] = (struct piece){ iso->first_pfn, frames };
}

static void release(struct both *b, uint32_t n)
{
	struct piece p = b->claim[n];

	b->claim[n] = b->claim[--b->claim_count];
	sublet__folios_free(&b->bare.arena, p.pfn, p.frames, ACCOUNT_CLAIMED);
	twin_put(b, p.pfn, p.frames);
}

/* The largest block that is not known to be zero, of the area first. */
static void zero(struct both *b)
{
	int most = -1;

	for (uint32_t zone = 0; zone < ZONES && most < 0; zone++) {
		uint32_t first, end;
		zone_span(b, zone, &first, &end);
		for (uint32_t pfn = first; pfn < end; pfn++)
			if (!b->zero[pfn] && block_at(b, pfn) > most)
				most = block_at(b, pfn);
	}
	assert_int_equal(sublet__arena_zero_step(&b->bare.arena), most >= 0);
	if (most < 0)
		return;
	assert_int_equal(b->bare.zeroed_frames, 1u << most);
	assert_int_equal(block_at(b, b->bare.zeroed_pfn), most);
	assert_false(b->zero[b->bare.zeroed_pfn]);
	memset(b->zero + b->bare.zeroed_pfn, true, b->bare.zeroed_frames);
}

static void wipe(struct both *b, uint32_t w)
{
	uint32_t want = 0;

	for (uint32_t i = b->window[w].first_pfn; i < b->window[w].end_pfn; i++)
		if (b->state[i] == FRAME_ISOLATED) {
			want += !b->zero[i];
			b->zero[i] = true;
		}
	assert_int_equal(sublet__isolated_zero(&b->bare.arena, b->window[w].first_pfn, b->window[w].end_pfn,
					       false),
			 want);
}

static void step(void *both, const struct model_op *op)
{
	struct both *b = both;

	if (op->kind == TAKE)
		take(b, (uint32_t)(op->arg[0] % (b->shape->pageblock_order + 1)), zones_of[op->arg[1] % 4],
		     op->arg[2] & 1);
	if (op->kind == PUT && b->held_count)
		put(b, (uint32_t)(op->arg[0] % b->held_count), 1 + (uint32_t)(op->arg[1] % HELD_MAX));
	if (op->kind == ISOLATE)
		isolate(b, (uint32_t)(op->arg[0] % b->shape->area_frames),
			1 + (uint32_t)(op->arg[1] % b->shape->area_frames));
	if (op->kind == UNDO && b->window_count)
		undo(b, window_nth(b, op->arg[0]));
	if (op->kind == COMMIT && b->window_count)
		commit(b, window_nth(b, op->arg[0]));
	if (op->kind == RELEASE && b->claim_count)
		release(b, (uint32_t)(op->arg[0] % b->claim_count));
	if (op->kind == ZERO)
		zero(b);
	if (op->kind == WIPE && b->window_count)
		wipe(b, window_nth(b, op->arg[0]));
	zero_settle(b);
	compare(b);
}

/* All of it free and whole again. */
static void close_both(void *both)
{
	struct both *b = both;

	while (b->window_count)
		undo(b, window_nth(b, 0));
	while (b->claim_count)
		release(b, b->claim_count / 2);
	while (b->held_count)
		put(b, b->held_count / 2, 1);
	zero_settle(b);
	compare(b);
	for (uint32_t pfn = 0; pfn < b->frames; pfn += 1u << b->shape->pageblock_order)
		assert_int_equal(block_at(b, pfn), b->shape->pageblock_order);
	bare_close(&b->bare);
}

static void pick(const void *shape, uint32_t n, uint64_t *random, struct model_op *op)
{
	const struct shape *s = shape;
	uint32_t top = s->pageblock_order;

	switch (op->kind) {
	case TAKE: /* small ones mostly, so that memory is in pieces */
		op->arg[0] = below(random, 4) ? below(random, (top + 1) / 2 + 1) : below(random, top + 1);
		op->arg[1] = below(random, 4);
		op->arg[2] = below(random, 2);
		break;
	case PUT: /* fill up, then empty, in turns */
		op->arg[0] = below(random, HELD_MAX);
		op->arg[1] = n % 200 < 100 ? 0 : below(random, 6);
		break;
	case ISOLATE:
		op->arg[0] = below(random, s->area_frames);
		op->arg[1] = below(random, below(random, 3) ? 3u << top : 8);
		break;
	default:
		op->arg[0] = below(random, 8);
	}
}

static struct model model_of(const char *name, const struct shape *shape)
{
	return (struct model){ name, kinds, shape, open_both, step, close_both, pick, NULL, 0 };
}

static void buddy_random(void **unused)
{
	static const struct shape small = { 96, 32, 4, false }, large = { 1024, 512, 9, true };
	struct model m = model_of("buddy-small", &small);
	(void)unused;

	model_random(&m, 40, 600);
	m = model_of("buddy-large", &large);
	model_random(&m, 3, 400);
}

/* Two pageblocks of four frames, and one of the normal zone: every sequence. */
static void buddy_enumerated(void **unused)
{
	static const struct shape tiny = { 8, 4, 2, false };
	static const struct model_op choice[] = {
		{ TAKE, { 0, 0, 0 } }, { TAKE, { 1, 0, 1 } }, { TAKE, { 2, 1, 0 } }, { TAKE, { 0, 3, 1 } },
		{ PUT, { 0, 0 } },     { PUT, { 1, 3 } },     { ISOLATE, { 2, 3 } }, { ISOLATE, { 4, 0 } },
		{ UNDO, { 0 } },       { COMMIT, { 0 } },     { RELEASE, { 0 } },    { ZERO, { 0 } },
	};
	struct model m = model_of("buddy-tiny", &tiny);
	(void)unused;

	model_enumerate(&m, choice, sizeof choice / sizeof *choice, 5);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(buddy_random),
		cmocka_unit_test(buddy_enumerated),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
