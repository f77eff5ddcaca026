/* SPDX-License-Identifier: MIT */
/*
 * core/verify.c: the checker fires. Each of its rules is broken by one store, must be named, and is mended again; a
 * checker that is content with everything would let every other test of the engine pass.
 */
#include "fixture.h"

#include <sublet/notifier.h>

#include <string.h>

#define PAGES 24u

struct world {
	struct fake fake;
	struct sublet_arena *arena;
	struct sublet_mm *mm;
	struct sublet_claim claim;
	struct sublet_notifier notifier;
	uint32_t vpn, pfn;                 /* of a movable unit in the area */
	uint32_t dropped_vpn, dropped_pfn; /* of an unlocked discardable one */
	uint32_t free_pfn;
	uint32_t block_pages; /* frames of a pageblock */
};

static int callback(void *ctx, const struct sublet_invalidation *inv)
{
	(void)ctx, (void)inv;
	return 0;
}

static const struct sublet_notifier_ops callbacks = { SUBLET_OPTIONS(sublet_notifier_ops),
						      .invalidate = callback };

/* Some of everything: movable, unlocked discardable, claimed and free memory, and a notifier. */
static void world_open(struct world *w)
{
	struct fake_options options = { 0 };
	uint32_t order = 0;

	memset(w, 0, sizeof *w);
	fixture_open(&w->fake, &options);
	w->arena = w->fake.arena;
	w->mm = w->fake.engine_mm[0];
	w->block_pages = 1u << w->arena->pageblock_order;
	w->vpn = map_pages(&w->fake, PAGES, SUBLET_MOVABLE);
	w->pfn = pte_pfn(a32_load_relaxed(&w->mm->pte[w->vpn]));
	w->dropped_vpn = map_pages(&w->fake, 16, SUBLET_DISCARDABLE);
	w->dropped_pfn = pte_pfn(a32_load_relaxed(&w->mm->pte[w->dropped_vpn]));
	assert_int_equal(sublet_unlock(w->mm, addr_of(&w->fake, 0, w->dropped_vpn), 16 * PAGE), 0);
	assert_int_equal(claim_take(&w->fake, 2 * SUBLET_MIB, NULL, &w->claim), 0);
	assert_int_equal(sublet_notifier_add(w->mm, addr_of(&w->fake, 0, w->vpn), 4 * PAGE, &callbacks, NULL,
					     NULL, &w->notifier),
			 0);
	while (w->arena->zone[ZONE_AREA].head[order] == ENGINE_NONE)
		order++;
	w->free_pfn = w->arena->zone[ZONE_AREA].head[order];
	fixture_verify(&w->fake);
}

static void world_close(struct world *w)
{
	assert_int_equal(sublet_notifier_remove(&w->notifier), 0);
	claim_give(&w->fake, &w->claim);
	fixture_close(&w->fake);
}

static void must_say(struct world *w, const char *what)
{
	char text[128] = "";

	assert_int_equal(sublet__arena_verify(w->arena, text, sizeof text), -EUCLEAN);
	if (strncmp(text, what, strlen(what)) != 0)
		fail_msg("\"%s\" instead of \"%s\"", text, what);
}

/* With one word changed the checker says `what`; without it is content again. */
static void broken32(struct world *w, sublet__a32 *word, uint32_t value, const char *what)
{
	uint32_t old = a32_load_relaxed(word);

	a32_store_relaxed(word, value);
	must_say(w, what);
	a32_store_relaxed(word, old);
	fixture_verify(&w->fake);
}

static void broken_plain(struct world *w, uint32_t *word, uint32_t value, const char *what)
{
	uint32_t old = *word;

	*word = value;
	must_say(w, what);
	*word = old;
	fixture_verify(&w->fake);
}

/* V1, V2: folios cover the frames, and pageblocks count them. */
static void frames_and_counts(void **unused)
{
	struct world w;
	(void)unused;

	world_open(&w);
	struct sublet__frame *f = &w.arena->frames[w.pfn];
	struct sublet__frame *claimed = &w.arena->frames[w.claim.offset_bytes / PAGE];
	uint32_t word = a32_load_relaxed(&f->word), order = word_order(word);

	assert_true(order > 0);
	broken32(&w, &f->word, 0, "frame of no folio");
	broken32(&w, &f->word, frame_word(FRAME_MOVABLE, order + 6, 0), "folio is not aligned");
	broken32(&w, &w.arena->frames[w.pfn + 1].word, frame_word(FRAME_BUSY, 0, 0), "head inside a folio");
	broken32(&w, &f->word, frame_word(FRAME_BUSY, order, 0), "folio left in hand");
	broken32(&w, &f->word, frame_word(FRAME_ISOLATED, order, 0), "folio left in hand");
	broken32(&w, &f->word, word | FRAME_HELD, "pageblock account");
	broken32(&w, &claimed->ref, 0, "unmapped folio not frozen");
	broken32(&w, &w.arena->pageblocks[0].isolated, 1, "pageblock left isolated");
	broken32(&w, &w.arena->pageblocks[0].stuck, 1, "pageblock left isolated");
	a64_add_relaxed(&w.arena->pageblocks[0].counts, 1);
	must_say(&w, "pageblock account");
	a64_sub_relaxed(&w.arena->pageblocks[0].counts, 1);
	world_close(&w);
}

/* V3: what is free is listed, once, and merged. */
static void free_lists(void **unused)
{
	struct world w;
	struct sublet__isolation isolation = { 0 };
	(void)unused;

	world_open(&w);
	struct sublet__zone *zone = &w.arena->zone[ZONE_AREA];
	struct sublet__frame *f = &w.arena->frames[w.free_pfn];
	uint32_t order = word_order(a32_load_relaxed(&f->word));

	broken32(&w, &f->b, w.free_pfn, "free list");
	broken_plain(&w, &zone->tail[order], w.pfn, "free list tail");
	broken_plain(&w, &zone->head[order], w.pfn, "listed folio is not free");
	broken_plain(&w, &zone->free_frames, zone->free_frames + 1, "free frames");
	zone->isolations = &isolation;
	must_say(&w, "isolation left");
	zone->isolations = NULL;

	/* A free folio of two halves that ought to be one. */
	assert_true(order > 0);
	uint32_t half = 1u << (order - 1), word = a32_load_relaxed(&f->word);
	struct sublet__frame *other = &w.arena->frames[w.free_pfn + half];
	a32_store_relaxed(&f->word, frame_word(FRAME_FREE, order - 1, 0));
	a32_store_relaxed(&other->word, frame_word(FRAME_FREE, order - 1, 0));
	must_say(&w, "free buddies apart");
	a32_store_relaxed(&other->word, 0);
	a32_store_relaxed(&f->word, word);
	world_close(&w);
}

/* V4, V6: page tables and frames know each other. */
static void page_tables(void **unused)
{
	struct world w;
	(void)unused;

	world_open(&w);
	struct sublet__frame *f = &w.arena->frames[w.pfn], *dropped = &w.arena->frames[w.dropped_pfn];
	sublet__a32 *pte = &w.mm->pte[w.vpn];

	broken32(&w, &f->b, 7, "folio of no mm");
	broken32(&w, &f->a, w.vpn + 1, "entry does not lead to its frame");
	broken32(&w, pte, 0, "entry does not lead to its frame");
	broken32(&w, &f->ref, REF_LONG_ONE, "long-term pin in the area");
	broken32(&w, &f->ref, REF_FROZEN, "mapped folio frozen");
	broken32(&w, &dropped->ref, 0, "mapped folio frozen");
	/* An entry too many: to a free frame, and to one that is mapped elsewhere. */
	sublet__a32 *spare = &w.mm->pte[w.dropped_vpn + ENGINE_BLOCK_PAGES / 2];
	assert_int_equal(a32_load_relaxed(spare), 0);
	broken32(&w, spare, pte_make(w.free_pfn, 0), "entry leads to a folio that is not mapped");
	broken32(&w, spare, pte_make(w.pfn, 0), "folio knows another entry");
	broken32(&w, spare, PTE_PLAIN, "plain pages");
	a64_add_relaxed(&w.arena->lent_frames, 1);
	must_say(&w, "lent frames");
	a64_sub_relaxed(&w.arena->lent_frames, 1);
	world_close(&w);
}

/* V5: the claim table and the CLAIMED frames. */
static void claims(void **unused)
{
	struct world w;
	(void)unused;

	world_open(&w);
	struct sublet__claim_slot *slot = &w.arena->claim[w.claim.id % ENGINE_CLAIMS_MAX];

	broken32(&w, &w.arena->frames[slot->first_pfn].a, 5, "claimed frame");
	broken_plain(&w, &slot->first_pfn, w.free_pfn, "claimed frame");
	broken_plain(&w, &slot->frames, 0, "claimed frames");
	world_close(&w);
}

/* V7: notifiers are where they are looked for. */
static void notifiers(void **unused)
{
	struct world w;
	(void)unused;

	world_open(&w);
	struct sublet__notifiers *n = &w.mm->notifiers;
	struct sublet__notifier_node *node = notifier_node(n, (uint32_t)w.notifier.id);
	uint32_t generation = a32_load_relaxed(&node->generation), level = 0;

	while (!n->level[level].nodes)
		level++;
	broken_plain(&w, &node->prev, 1, "notifier: broken list");
	broken_plain(&w, &node->first, node->end, "notifier: ");
	broken32(&w, &node->generation, generation + 1, "notifier: listed, but not registered");
	broken32(&w, &node->active, 1, "notifier: active without an invalidation");
	broken_plain(&w, &n->registered, 0, "notifier: list without end");
	broken_plain(&w, &n->registered, 2, "notifier: wrong count of registered ones");
	broken_plain(&w, &n->level[level].nodes, 2, "notifier: wrong count of a level");
	world_close(&w);
}

/* The text is cut to what the caller has room for, and ends there. */
static void text_is_cut(void **unused)
{
	struct world w;
	char text[8];
	(void)unused;

	world_open(&w);
	a64_add_relaxed(&w.arena->lent_frames, 1);
	memset(text, 'x', sizeof text);
	assert_int_equal(sublet__arena_verify(w.arena, text, 6), -EUCLEAN);
	assert_string_equal(text, "lent ");
	assert_int_equal(text[7], 'x');
	assert_int_equal(sublet__arena_verify(w.arena, text, 0), -EUCLEAN);
	a64_sub_relaxed(&w.arena->lent_frames, 1);
	world_close(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(frames_and_counts), cmocka_unit_test(free_lists),
		cmocka_unit_test(page_tables),       cmocka_unit_test(claims),
		cmocka_unit_test(notifiers),         cmocka_unit_test(text_is_cut),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
