/* SPDX-License-Identifier: MIT */
/*
 * The whole-structure checker: every invariant that the other files rely on, from scratch.
 *
 *   V1  frames are covered by heads end to end, each folio aligned and inside its pageblock   (G8)
 *   V2  the counts of every pageblock equal what its folios add up to                         (G8)
 *   V3  free folios are exactly those on the lists, frozen, and no two free buddies stand apart
 *   V4  a mapped folio's entries lead to it and to nothing else; every present entry leads to a
 *       mapped folio that knows it                                                            (G1, G9)
 *   V5  claims in the table cover exactly the CLAIMED frames
 *   V6  lent and plain counters equal the page tables
 *   V7  each notifier is in the bin of its range, and quiet where no invalidation runs         (G4)
 *
 * Nothing else may run meanwhile, but for threads that only read and write memory.
 */
#include "core/engine.h"

#include <errno.h>
#include <string.h>

struct verify {
	struct sublet_arena *arena;
	char *text;
	size_t bytes;
	bool bad;
};

static void put_text(struct verify *v, size_t *at, const char *s)
{
	while (*s && *at + 1 < v->bytes)
		v->text[(*at)++] = *s++;
}

static void put_number(struct verify *v, size_t *at, uint64_t n)
{
	char digits[24];
	size_t i = sizeof digits;

	digits[--i] = 0;
	do
		digits[--i] = (char)('0' + n % 10);
	while (n /= 10);
	put_text(v, at, &digits[i]);
}

/* Keep the first violation. */
static bool fail(struct verify *v, const char *what, uint64_t where, uint64_t want, uint64_t have)
{
	size_t at = 0;

	if (!v->bad && v->bytes) {
		put_text(v, &at, what);
		put_text(v, &at, " at ");
		put_number(v, &at, where);
		put_text(v, &at, ": want ");
		put_number(v, &at, want);
		put_text(v, &at, ", have ");
		put_number(v, &at, have);
		v->text[at] = 0;
	}
	v->bad = true;
	return false;
}

static enum sublet__account account_of(uint32_t word)
{
	switch (word_state(word)) {
	case FRAME_FREE:
		return ACCOUNT_FREE;
	case FRAME_DISCARDABLE:
		return (word & (FRAME_HELD | FRAME_PROTECTED)) ? ACCOUNT_HELD : ACCOUNT_DISCARDABLE;
	case FRAME_PARKED:
		return ACCOUNT_HELD;
	case FRAME_ISOLATED:
		return ACCOUNT_ISOLATED;
	case FRAME_CLAIMED:
		return ACCOUNT_CLAIMED;
	default:
		return (word & (FRAME_HELD | FRAME_PROTECTED)) ? ACCOUNT_HELD : ACCOUNT_MOVABLE;
	}
}

/* V4, from the frame's side. */
static bool mapped_check(struct verify *v, uint32_t pfn, uint32_t word)
{
	struct sublet_arena *arena = v->arena;
	uint32_t index = a32_load_relaxed(&arena->frames[pfn].b),
		 vpn = a32_load_relaxed(&arena->frames[pfn].a);

	if (index >= a32_load_acquire(&arena->mm_count))
		return fail(v, "folio of no mm", pfn, 0, index);
	const struct sublet_mm *mm = arena->mm[index];
	for (uint32_t i = 0; i < 1u << word_order(word); i++) {
		uint32_t pte = vpn + i < mm->config.pages ? a32_load_relaxed(&mm->pte[vpn + i]) : 0;
		if (!(pte & PTE_PRESENT) || pte_pfn(pte) != pfn + i)
			return fail(v, "entry does not lead to its frame", pfn + i, pfn + i, pte_pfn(pte));
	}
	uint32_t ref = a32_load_relaxed(&arena->frames[pfn].ref);
	if ((ref & REF_LONG_MASK) && zone_of(arena, pfn) == &arena->zone[ZONE_AREA])
		return fail(v, "long-term pin in the area (G3)", pfn, 0, 1);
	bool frozen = ref & REF_FROZEN;
	if (frozen != (word_state(word) == FRAME_DISCARDABLE))
		return fail(v, "mapped folio frozen", pfn, !frozen, frozen);
	return true;
}

static bool folio_check(struct verify *v, uint32_t pfn, uint32_t word, uint64_t counts[ACCOUNTS])
{
	struct sublet_arena *arena = v->arena;
	uint32_t order = word_order(word), frames = 1u << order;

	if (order > arena->pageblock_order || pfn % frames)
		return fail(v, "folio is not aligned", pfn, 0, order);
	for (uint32_t i = 1; i < frames; i++)
		if (a32_load_relaxed(&arena->frames[pfn + i].word) & FRAME_HEAD)
			return fail(v, "head inside a folio", pfn + i, 0, 1);
	counts[account_of(word)] += frames;
	switch (word_state(word)) {
	case FRAME_MOVABLE:
	case FRAME_DISCARDABLE:
		return mapped_check(v, pfn, word);
	case FRAME_BUSY:
	case FRAME_ISOLATED:
		return fail(v, "folio left in hand", pfn, 0, word_state(word));
	case FRAME_FREE:
		if (order < arena->pageblock_order) {
			uint32_t buddy = a32_load_relaxed(&arena->frames[pfn ^ frames].word);
			if ((buddy & FRAME_HEAD) && word_state(buddy) == FRAME_FREE &&
			    word_order(buddy) == order)
				return fail(v, "free buddies apart", pfn, 0, order);
		}
		break;
	default:
		break;
	}
	return (a32_load_relaxed(&arena->frames[pfn].ref) & REF_FROZEN)
		       ? true
		       : fail(v, "unmapped folio not frozen", pfn, 1, 0);
}

/* V1, V2. */
static bool pageblock_check(struct verify *v, uint32_t pb)
{
	struct sublet_arena *arena = v->arena;
	uint32_t pfn = pb << arena->pageblock_order, end = (pb + 1) << arena->pageblock_order;
	uint64_t counts[ACCOUNTS] = { 0 };

	while (pfn < end) {
		uint32_t word = a32_load_relaxed(&arena->frames[pfn].word);
		if (!(word & FRAME_HEAD))
			return fail(v, "frame of no folio", pfn, 1, 0);
		if (!folio_check(v, pfn, word, counts))
			return false;
		pfn += 1u << word_order(word);
	}
	for (uint32_t i = 0; i < ACCOUNTS; i++) {
		uint32_t have = sublet__account_get(&arena->pageblocks[pb], (enum sublet__account)i);
		if (have != counts[i])
			return fail(v, "pageblock account", pb * 10ull + i, counts[i], have);
	}
	if (a32_load_relaxed(&arena->pageblocks[pb].isolated) ||
	    a32_load_relaxed(&arena->pageblocks[pb].stuck))
		return fail(v, "pageblock left isolated", pb, 0, 1);
	return true;
}

/* V3, from the list's side. */
static bool zone_check(struct verify *v, const struct sublet__zone *zone)
{
	struct sublet_arena *arena = v->arena;
	uint64_t free_frames = 0;

	if (zone->isolations)
		return fail(v, "isolation left", zone->first_pfn, 0, 1);
	for (uint32_t order = 0; order <= arena->pageblock_order; order++) {
		uint32_t prev = ENGINE_NONE, pfn = zone->head[order];
		for (; pfn != ENGINE_NONE; pfn = a32_load_relaxed(&arena->frames[pfn].a)) {
			uint32_t word = a32_load_relaxed(&arena->frames[pfn].word);
			if (!(word & FRAME_HEAD) || word_state(word) != FRAME_FREE ||
			    word_order(word) != order)
				return fail(v, "listed folio is not free", pfn, order, word);
			if (a32_load_relaxed(&arena->frames[pfn].b) != prev)
				return fail(v, "free list", pfn, prev,
					    a32_load_relaxed(&arena->frames[pfn].b));
			free_frames += 1u << order;
			prev = pfn;
		}
		if (zone->tail[order] != prev)
			return fail(v, "free list tail", order, prev, zone->tail[order]);
	}
	return free_frames == zone->free_frames
		       ? true
		       : fail(v, "free frames", zone->first_pfn, free_frames, zone->free_frames);
}

/* V4 from the page table's side, V6. */
static bool tables_check(struct verify *v)
{
	struct sublet_arena *arena = v->arena;
	uint64_t lent = 0, plain = 0;

	for (uint32_t m = 0; m < a32_load_acquire(&arena->mm_count); m++) {
		const struct sublet_mm *mm = arena->mm[m];
		uint32_t end =
			min_u32(a32_load_acquire(&mm->blocks_used) * ENGINE_BLOCK_PAGES, mm->config.pages);
		for (uint32_t vpn = 0; vpn < end; vpn++) {
			uint32_t pte = a32_load_relaxed(&mm->pte[vpn]);
			plain += pte_is_plain(pte);
			if (!(pte & PTE_PRESENT))
				continue;
			lent++;
			uint32_t head = sublet__frame_head(arena, pte_pfn(pte));
			uint32_t word = head == ENGINE_NONE ? 0 : a32_load_relaxed(&arena->frames[head].word);
			if (word_state(word) != FRAME_MOVABLE && word_state(word) != FRAME_DISCARDABLE)
				return fail(v, "entry leads to a folio that is not mapped", vpn,
					    FRAME_MOVABLE, word_state(word));
			if (a32_load_relaxed(&arena->frames[head].b) != m ||
			    a32_load_relaxed(&arena->frames[head].a) + (pte_pfn(pte) - head) != vpn)
				return fail(v, "folio knows another entry", vpn, vpn,
					    a32_load_relaxed(&arena->frames[head].a));
		}
	}
	if (lent != a64_load_relaxed(&arena->lent_frames))
		return fail(v, "lent frames", 0, lent, a64_load_relaxed(&arena->lent_frames));
	return plain == a64_load_relaxed(&arena->plain_pages)
		       ? true
		       : fail(v, "plain pages", 0, plain, a64_load_relaxed(&arena->plain_pages));
}

/* V5. */
static bool claims_check(struct verify *v)
{
	struct sublet_arena *arena = v->arena;
	uint64_t in_table = 0, claimed = 0;

	for (uint32_t i = 0; i < ENGINE_CLAIMS_MAX; i++) {
		const struct sublet__claim_slot *slot = &arena->claim[i];
		in_table += slot->id ? slot->frames : 0;
		for (uint32_t pfn = slot->first_pfn; slot->id && pfn < slot->first_pfn + slot->frames;) {
			uint32_t word = a32_load_relaxed(&arena->frames[pfn].word);
			if (!(word & FRAME_HEAD) || word_state(word) != FRAME_CLAIMED ||
			    a32_load_relaxed(&arena->frames[pfn].a) != i)
				return fail(v, "claimed frame", pfn, i,
					    a32_load_relaxed(&arena->frames[pfn].a));
			pfn += 1u << word_order(word);
		}
	}
	for (uint32_t pb = 0; pb < arena->frames_total >> arena->pageblock_order; pb++)
		claimed += sublet__account_get(&arena->pageblocks[pb], ACCOUNT_CLAIMED);
	return claimed == in_table ? true : fail(v, "claimed frames", 0, in_table, claimed);
}

static bool notifiers_check(struct verify *v)
{
	for (uint32_t i = 0; i < a32_load_relaxed(&v->arena->mm_count); i++) {
		const char *what = sublet__notifier_index_check(v->arena->mm[i]);
		if (what)
			return fail(v, what, i, 0, 1);
	}
	return true;
}

int sublet__arena_verify(struct sublet_arena *arena, char *text, size_t bytes)
{
	struct verify v = { .arena = arena, .text = text, .bytes = bytes };
	bool ok = true;

	for (uint32_t pb = 0; ok && pb < arena->frames_total >> arena->pageblock_order; pb++)
		ok = pageblock_check(&v, pb);
	for (uint32_t z = 0; ok && z < ZONES; z++)
		ok = zone_check(&v, &arena->zone[z]);
	ok = ok && tables_check(&v) && claims_check(&v) && notifiers_check(&v);
	return ok ? 0 : -EUCLEAN;
}
