/* SPDX-License-Identifier: MIT */
/*
 * The list of pins that carry an owner tag, and of all long-term ones: for `sublet pins`, and for a claim that wants to
 * say who is in its way.
 *
 * A record is taken by a compare-and-swap, near the place where the same thread found one last, so that a thread that
 * pins and unpins uses the same line again and again. Readers take no lock:
 *
 *   list_add                                reader
 *   --------                                ------
 *   state: FREE -> WRITING (acq_rel)        s = state (acquire), HELD?
 *   members (release)                       copy the members (acquire)
 *   state: HELD (release)                   state still s? else it is somebody else's by now
 *
 * A member that was read new was written after WRITING, which the second look at state then sees.
 */
#include "core/call.h"

#include <sublet/pin.h>

#include <string.h>

#define PINS_MIN    1024u
#define PINS_MOST   65536u
#define PINS_FRAMES 32u /* frames to a record */

#define PIN_FREE       0u
#define PIN_WRITING    1u
#define PIN_HELD       2u
#define PIN_STATE_MASK 3u
#define PIN_GENERATION 4u
#define PIN_FLAGS_MASK 0xffu
#define PIN_MM_SHIFT   8

/* What a pin remembers of its record: the index, and enough of the generation to tell its own from a later one. */
#define RECORD_INDEX_BITS      16u
#define RECORD_GENERATION_MASK 0x7fffu /* so that none is PIN_UNLISTED */

_Static_assert(PINS_MOST <= 1u << RECORD_INDEX_BITS, "an index fits");

uint32_t sublet__pins_max(uint32_t frames)
{
	return min_u32(max_u32(frames / PINS_FRAMES, PINS_MIN), PINS_MOST);
}

void sublet__owner_copy(char to[SUBLET_OWNER_BYTES], const char *from)
{
	size_t i = 0;

	for (; i + 1 < SUBLET_OWNER_BYTES && from[i]; i++)
		to[i] = from[i];
	memset(to + i, 0, SUBLET_OWNER_BYTES - i);
}

static sublet__a32 *hint_of(struct sublet_arena *arena)
{
	const struct sublet__platform *p = &arena->platform;
	return &arena->pin_hint[p->ops->thread_slot(p->ctx) % ENGINE_CACHES].at;
}

/* Make a free record WRITING; PIN_UNLISTED: there is none. */
static uint32_t record_take(struct sublet_arena *arena)
{
	sublet__a32 *hint = hint_of(arena);
	uint32_t at = a32_load_relaxed(hint);

	for (uint32_t i = 0; i < arena->pins_max; i++, at = at + 1 < arena->pins_max ? at + 1 : 0) {
		sublet__a32 *state = &arena->pins[at].state;
		uint32_t s = a32_load_relaxed(state);
		if ((s & PIN_STATE_MASK) != PIN_FREE || !a32_cas_acq_rel(state, &s, s + PIN_WRITING))
			continue;
		a32_store_relaxed(hint, at);
		uint32_t high = a32_load_relaxed(&arena->pins_high);
		while (high <= at && !a32_cas_acq_rel(&arena->pins_high, &high, at + 1))
			;
		return at;
	}
	return PIN_UNLISTED;
}

static uint32_t record_generation(uint32_t state)
{
	return state / PIN_GENERATION & RECORD_GENERATION_MASK;
}

uint32_t sublet__pin_list_add(struct sublet_mm *mm, uint64_t addr, uint64_t bytes, uint32_t flags,
			      const char *owner)
{
	struct sublet_arena *arena = mm->arena;
	uint64_t words[SUBLET_OWNER_BYTES / 8];
	char tag[SUBLET_OWNER_BYTES];
	uint32_t at = record_take(arena);

	if (at == PIN_UNLISTED)
		return at;
	struct sublet__pin_record *r = &arena->pins[at];
	sublet__owner_copy(tag, owner);
	memcpy(words, tag, sizeof words);
	a32_store_release(&r->what, flags | mm->index << PIN_MM_SHIFT); /* release: see the picture above */
	a64_store_release(&r->addr, addr);
	a64_store_release(&r->bytes, bytes);
	a64_store_release(&r->since_ns, arena->platform.ops->coarse_ns(arena->platform.ctx));
	for (uint32_t i = 0; i < SUBLET_OWNER_BYTES / 8; i++)
		a64_store_release(&r->owner[i], words[i]);
	uint32_t state = a32_load_relaxed(&r->state) + PIN_HELD - PIN_WRITING;
	a32_store_release(&r->state, state);
	return at | record_generation(state) << RECORD_INDEX_BITS;
}

bool sublet__pin_list_remove(struct sublet_arena *arena, uint32_t record)
{
	uint32_t at = record & ((1u << RECORD_INDEX_BITS) - 1);
	sublet__a32 *state = &arena->pins[at].state;
	uint32_t s = a32_load_relaxed(state);

	/* No compare-and-swap: who unpins twice at the same moment is not found out. */
	if ((s & PIN_STATE_MASK) != PIN_HELD || record_generation(s) != record >> RECORD_INDEX_BITS)
		return false;
	a32_store_release(state, s + PIN_GENERATION - PIN_HELD);
	a32_store_relaxed(hint_of(arena), at);
	return true;
}

/* Copy a record that is held; false: it is not, or not any more. */
static bool record_read(struct sublet_arena *arena, uint32_t at, struct sublet_pin_info *info)
{
	struct sublet__pin_record *r = &arena->pins[at];
	uint64_t words[SUBLET_OWNER_BYTES / 8];
	uint32_t s = a32_load_acquire(&r->state), what;

	if ((s & PIN_STATE_MASK) != PIN_HELD)
		return false;
	what = a32_load_acquire(&r->what);
	info->addr = a64_load_acquire(&r->addr);
	info->bytes = a64_load_acquire(&r->bytes);
	info->age_ns = a64_load_acquire(&r->since_ns);
	for (uint32_t i = 0; i < SUBLET_OWNER_BYTES / 8; i++)
		words[i] = a64_load_acquire(&r->owner[i]);
	if (a32_load_acquire(&r->state) != s)
		return false;
	memcpy(info->owner, words, sizeof words);
	info->flags = what & PIN_FLAGS_MASK;
	info->mm = what >> PIN_MM_SHIFT;
	uint64_t now = engine_now(arena);
	info->age_ns = now > info->age_ns ? now - info->age_ns : 0;
	return true;
}

size_t sublet_pin_list(struct sublet_arena *arena, uint64_t *next, size_t count, struct sublet_pin_info *out)
{
	size_t n = 0;

	if (!next || !out || call_arena(arena))
		return 0;
	for (; n < count && *next < a32_load_acquire(&arena->pins_high); (*next)++)
		n += record_read(arena, (uint32_t)*next, &out[n]);
	return n;
}

bool sublet__pin_owner(struct sublet_mm *mm, uint32_t vpn, uint32_t pages, char owner[SUBLET_OWNER_BYTES],
		       uint64_t *age_ns)
{
	uint32_t shift = frames_bytes_shift(mm->arena);
	uint64_t first = mm->config.base + ((uint64_t)vpn << shift), end = first + ((uint64_t)pages << shift);
	struct sublet_pin_info info;
	bool found = false;

	*age_ns = 0;
	for (uint64_t next = 0; sublet_pin_list(mm->arena, &next, 1, &info);) {
		if (info.mm != mm->index || info.addr >= end || info.addr + info.bytes <= first ||
		    (found && info.age_ns <= *age_ns))
			continue;
		memcpy(owner, info.owner, SUBLET_OWNER_BYTES);
		*age_ns = info.age_ns;
		found = true;
	}
	return found;
}

bool sublet__pins_any(struct sublet_arena *arena)
{
	for (uint32_t i = 0; i < a32_load_acquire(&arena->mm_count); i++)
		if (a64_load_relaxed(&arena->mm[i]->plain_pins))
			return true;
	for (uint32_t pfn = 0; pfn < arena->frames_total;) {
		const struct sublet__pageblock *pb = pageblock_of(arena, pfn);
		uint32_t word = a32_load_acquire(&arena->frames[pfn].word);
		bool is_first = !(pfn & ((1u << arena->pageblock_order) - 1));
		if (is_first && !sublet__account_get(pb, ACCOUNT_MOVABLE) &&
		    !sublet__account_get(pb, ACCOUNT_HELD)) {
			pfn += 1u << arena->pageblock_order;
			continue;
		}
		if ((word & FRAME_HEAD) && word_state(word) == FRAME_MOVABLE &&
		    (a32_load_relaxed(&arena->frames[pfn].ref) & REF_COUNT_MASK))
			return true;
		pfn += (word & FRAME_HEAD) ? 1u << word_order(word) : 1;
	}
	return false;
}
