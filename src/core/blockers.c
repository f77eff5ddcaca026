/* SPDX-License-Identifier: MIT */
/*
 * What is in the way of a claim, and whose it is (G5).
 *
 * Whatever is looked at may go while it is looked at: no lock is held that would stop it. So a blocker is a hint to a
 * person, and says what was there a moment ago; the claim itself depends on one only for whether to wait, and for
 * -EBUSY or -ENOMEM.
 */
#include "core/claim.h"

#include <errno.h>
#include <string.h>

/* Who has the frame at pfn. blockers_lock is held, and claim_lock is not. */
static void claim_describe(struct sublet_arena *arena, uint32_t pfn, struct sublet_blocker *b)
{
	engine_lock(arena, &arena->claim_lock);
	uint32_t word = a32_load_acquire(&arena->frames[pfn].word),
		 slot = a32_load_relaxed(&arena->frames[pfn].a);
	if ((word & FRAME_HEAD) && word_state(word) == FRAME_CLAIMED && slot < ENGINE_CLAIMS_MAX) {
		sublet__owner_copy(b->owner, arena->claim[slot].owner);
		b->age_ns = engine_now(arena) - arena->claim[slot].since_ns;
	}
	engine_unlock(arena, &arena->claim_lock);
}

/*
 * Who has pinned the folio at pfn, if it is listed; or who declined when the run around it was to move. The folio may be
 * gone by now: then nobody is named, or whoever is at its address. What its frame says may not even be an address, for
 * the links of free and parked folios are kept in the same members.
 */
static bool user_find(struct sublet_arena *arena, uint32_t kind, uint32_t pfn, char owner[SUBLET_OWNER_BYTES],
		      uint64_t *age_ns)
{
	const struct sublet__frame *f = &arena->frames[pfn];
	uint32_t index = a32_load_relaxed(&f->b), vpn = a32_load_relaxed(&f->a),
		 run = arena->platform.run_pages_max;

	*age_ns = 0;
	if (index >= a32_load_acquire(&arena->mm_count) || vpn >= arena->mm[index]->config.pages)
		return false;
	if (kind == SUBLET_BLOCKER_PIN)
		return sublet__pin_owner(arena->mm[index], vpn, 1u << word_order(a32_load_relaxed(&f->word)),
					 owner, age_ns);
	return sublet__notifier_decliner(arena->mm[index], vpn & ~(run - 1), run, owner);
}

static bool is_of_one_user(const struct sublet_blocker *a, const struct sublet_blocker *b)
{
	return a->kind == b->kind && a->error == b->error && !strcmp(a->owner, b->owner);
}

/*
 * The entry that the blocker is to have, or NULL; blockers_lock held. A list that is full takes the blocker in place of a
 * user's second entry, if that user is not the blocker's: each user is named before anybody is named twice.
 */
static struct sublet_blocker *entry_for(struct sublet_claim *claim, const struct sublet_blocker *blocker)
{
	struct sublet_blocker *second = NULL;

	if (claim->blocker_count < SUBLET_BLOCKERS_MAX)
		return &claim->blockers[claim->blocker_count++];
	for (uint32_t i = 0; i < SUBLET_BLOCKERS_MAX; i++) {
		if (is_of_one_user(&claim->blockers[i], blocker))
			return NULL;
		for (uint32_t j = 0; j < i; j++)
			if (is_of_one_user(&claim->blockers[i], &claim->blockers[j]))
				second = &claim->blockers[i];
	}
	return second;
}

void sublet__blocker_add(struct sublet__claim_job *job, uint32_t kind, uint32_t pfn, uint32_t frames,
			 int error)
{
	struct sublet_arena *arena = job->arena;
	struct sublet_claim *claim = job->claim;
	uint32_t shift = frames_bytes_shift(arena);
	struct sublet_blocker b = { .kind = kind,
				    .error = error,
				    .offset_bytes = (uint64_t)pfn << shift,
				    .bytes = (uint64_t)frames << shift };

	engine_lock(arena, &job->blockers_lock);
	for (uint32_t i = 0; i < claim->blocker_count; i++)
		if (claim->blockers[i].kind == kind && claim->blockers[i].offset_bytes == b.offset_bytes)
			goto out; /* named already, by an earlier look */
	if (kind == SUBLET_BLOCKER_CLAIM)
		claim_describe(arena, pfn, &b);
	else if (kind == SUBLET_BLOCKER_PIN || kind == SUBLET_BLOCKER_NOTIFIER)
		(void)user_find(arena, kind, pfn, b.owner, &b.age_ns);
	struct sublet_blocker *entry = entry_for(claim, &b);
	if (entry)
		*entry = b;
out:
	engine_unlock(arena, &job->blockers_lock);
}

/* What cannot move at pfn: its kind, and what struct sublet_blocker has as its error. */
static uint32_t immovable_kind(const struct sublet__claim_job *job, uint32_t pfn, uint32_t word, int *error)
{
	const struct sublet_arena *arena = job->arena;
	uint32_t index = a32_load_relaxed(&arena->frames[pfn].b);

	*error = 0;
	if (word_state(word) == FRAME_CLAIMED || word_state(word) == FRAME_ISOLATED)
		return SUBLET_BLOCKER_CLAIM;
	if (word_state(word) == FRAME_MOVABLE && !(word & (FRAME_HELD | FRAME_PROTECTED)) &&
	    a32_load_relaxed(&arena->stays)) {
		*error = -EOPNOTSUPP;
		return SUBLET_BLOCKER_PLATFORM;
	}
	if (word_state(word) != FRAME_PARKED && (!(word & FRAME_HELD) || (word & FRAME_PROTECTED)))
		return SUBLET_BLOCKER_PROTECTED;
	if (index < a32_load_acquire(&arena->mm_count))
		*error = (int)a32_load_relaxed(&arena->mm[index]->child_pid);
	return SUBLET_BLOCKER_CHILD;
}

void sublet__blocker_immovable(struct sublet__claim_job *job, uint32_t pfn, uint32_t word)
{
	int error;
	uint32_t kind = immovable_kind(job, pfn, word, &error);

	sublet__blocker_add(job, kind, pfn, 1u << word_order(word), error);
}

/*
 * Whether a call has the block of the folio in its hand, or is about to fork, when nothing moves. Only a name: it may be over
 * by now, and what is read of a folio that is gone leads anywhere.
 */
static bool is_in_a_call(const struct sublet_arena *arena, const struct sublet__frame *f)
{
	uint32_t index = a32_load_relaxed(&f->b), vpn = a32_load_relaxed(&f->a);

	if (index >= a32_load_acquire(&arena->mm_count)) /* pairs with sublet__mm_create */
		return false;
	struct sublet_mm *mm = arena->mm[index];
	return a32_load_relaxed(&mm->fork_pending) ||
	       (vpn < mm->config.pages && lock_is_taken(block_lock_of(mm, vpn)));
}

/* Somebody has pinned it, or was told and declined; or it is in the middle of a call. */
void sublet__blocker_busy(struct sublet__claim_job *job, uint32_t pfn, uint32_t word)
{
	struct sublet_arena *arena = job->arena;
	const struct sublet__frame *f = &arena->frames[pfn];
	bool pinned = a32_load_relaxed(&f->ref) & REF_COUNT_MASK;
	uint32_t kind = SUBLET_BLOCKER_PIN;
	char owner[SUBLET_OWNER_BYTES];
	uint64_t age_ns;

	if (!pinned && user_find(arena, SUBLET_BLOCKER_NOTIFIER, pfn, owner, &age_ns))
		kind = SUBLET_BLOCKER_NOTIFIER;
	else if (!pinned && is_in_a_call(arena, f))
		kind = SUBLET_BLOCKER_CALL;
	sublet__blocker_add(job, kind, pfn, 1u << word_order(word), 0);
}

/* The first of each user, neighbours of one kind together. */
void sublet__blockers_immovable(struct sublet__claim_job *job)
{
	const struct sublet_arena *arena = job->arena;
	uint32_t end = arena->zone[ZONE_AREA].frames, first = 0, kind = SUBLET_BLOCKER_NONE, slot = 0;
	int error = 0;

	for (uint32_t pfn = 0; pfn <= end;) {
		uint32_t word = pfn < end ? a32_load_acquire(&arena->frames[pfn].word) : 0;
		bool blocks = (word & FRAME_HEAD) && word_blocks(arena, word);
		int now_error = 0;
		uint32_t now = blocks ? immovable_kind(job, pfn, word, &now_error) : SUBLET_BLOCKER_NONE;
		uint32_t now_slot = now == SUBLET_BLOCKER_CLAIM ? a32_load_relaxed(&arena->frames[pfn].a) : 0;
		if (now != kind || now_slot != slot) {
			if (kind != SUBLET_BLOCKER_NONE)
				sublet__blocker_add(job, kind, first, pfn - first, error);
			kind = now;
			slot = now_slot;
			error = now_error;
			first = pfn;
		}
		pfn += (word & FRAME_HEAD) ? 1u << word_order(word) : 1;
	}
	if (!job->claim->blocker_count) /* a window that another claim is only about to empty */
		sublet__blocker_add(job, SUBLET_BLOCKER_CLAIM, 0, job->frames, 0);
}

bool sublet__blockers_pass(const struct sublet__claim_job *job)
{
	for (uint32_t i = 0; i < job->claim->blocker_count; i++) {
		uint32_t kind = job->claim->blockers[i].kind;
		if (kind == SUBLET_BLOCKER_PIN || kind == SUBLET_BLOCKER_CLAIM ||
		    kind == SUBLET_BLOCKER_CHILD || kind == SUBLET_BLOCKER_NOTIFIER ||
		    kind == SUBLET_BLOCKER_CALL)
			return true;
	}
	return false;
}
