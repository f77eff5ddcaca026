/* SPDX-License-Identifier: MIT */
/*
 * What is compared of a whole world, from outside.
 *
 *   C3  every so many steps: the bytes of all live pages against what was stored last (G1); who uses each frame; each
 *       pin that is held (G2, G3)
 *   C4  with nobody in the engine: sublet__arena_verify (V1 to V7), all that locks guard, each folio's pins counted anew
 *       (G8), the children of forks; and when everything was given back, that nothing is left
 */
#include "sim.h"

#include <string.h>

/* ---- C3 ---- */

static void bytes_check(struct sim *s)
{
	for (uint32_t m = 0; m < s->mms; m++)
		for (uint32_t vpn = 0; vpn < s->mm[m].pages; vpn++) {
			const struct sim_page *p = &s->mm[m].page[vpn];
			for (uint32_t w = 0; p->is_live && w < SIM_WORDS; w++)
				if (p->kind == KIND_NONE || mm_peek(s, p, w) != p->value[w])
					sim_violation(s,
						      "mm %u page %u word %u is %llu in frame %u, %llu was "
						      "stored (G1)",
						      m, vpn, w, (unsigned long long)mm_peek(s, p, w), p->pfn,
						      (unsigned long long)p->value[w]);
		}
}

static void frames_check(struct sim *s)
{
	for (uint32_t pfn = 0; pfn < s->frames; pfn++) {
		uint32_t state = s->state[pfn];
		bool is_idle = state == FRAME_FREE || state == FRAME_CACHED || state == FRAME_ISOLATED;
		if (is_idle && (s->owner[pfn] || s->child[pfn] || s->held[pfn]))
			sim_violation(s, "frame %u is %s, and in use (owner %x, children %u, pins %u)", pfn,
				      cover_state_name(COVER_FRAME, state), s->owner[pfn], s->child[pfn],
				      s->held[pfn]);
		if ((s->owner[pfn] & OWNER_CLAIM) && state != FRAME_CLAIMED)
			sim_violation(s, "frame %u of a claim is %s", pfn,
				      cover_state_name(COVER_FRAME, state));
	}
}

static void pin_check(struct sim *s, const struct sim_pin *pin)
{
	uint32_t m = s->region[pin->region].mm, mask = pin->is_long ? REF_LONG_MASK : REF_SHORT_MASK;

	for (uint32_t i = 0; i < pin->pages; i++) {
		uint32_t pfn = pin->pfn[i];
		if (pfn == UINT32_MAX)
			continue; /* plain memory */
		uint32_t head = sublet__frame_head(s->arena, pfn);
		if (s->owner[pfn] != (OWNER_PAGE | m << 16 | (pin->vpn + i)) || head == ENGINE_NONE)
			sim_violation(s, "mm %u page %u left frame %u under a pin (G2)", m, pin->vpn + i,
				      pfn);
		if (!(a32_load_relaxed(&s->arena->frames[head].ref) & mask))
			sim_violation(s, "mm %u page %u: folio %u lost a pin (G2)", m, pin->vpn + i, head);
		if (pin->is_long && pfn < s->area_frames)
			sim_violation(s, "mm %u page %u: a long-term pin in the area, frame %u (G3)", m,
				      pin->vpn + i, pfn);
	}
}

static void pins_each(struct sim *s, void (*fn)(struct sim *s, const struct sim_pin *pin))
{
	for (uint32_t i = 0; i < s->actors; i++)
		for (uint32_t n = 0; n < SIM_PINS_MAX; n++)
			if (s->actor[i].pin[n].is_held)
				fn(s, &s->actor[i].pin[n]);
}

void check_moving(struct sim *s)
{
	s->is_quiet = true;
	bytes_check(s);
	frames_check(s);
	pins_each(s, pin_check);
	s->is_quiet = false;
}

/* ---- C4 ---- */

static uint16_t pins_short[SIM_FRAMES_MAX];
static uint16_t pins_long[SIM_FRAMES_MAX];

/* One reference for each folio of the range. */
static void range_count(struct sim *s, struct sublet_mm *mm, uint32_t vpn, uint32_t pages, uint16_t *count)
{
	uint32_t last = ENGINE_NONE;

	for (uint32_t at = vpn; at < vpn + pages; at++) {
		uint32_t pte = a32_load_relaxed(&mm->pte[at]);
		uint32_t head = (pte & PTE_PRESENT) ? sublet__frame_head(s->arena, pte_pfn(pte))
						    : ENGINE_NONE;
		if (head != ENGINE_NONE && head != last)
			count[head]++;
		last = head;
	}
}

static void pin_count(struct sim *s, const struct sim_pin *pin)
{
	range_count(s, s->mm[s->region[pin->region].mm].mm, pin->vpn, pin->pages,
		    pin->is_long ? pins_long : pins_short);
}

static void device_count(struct sim *s, const struct sim_device *d)
{
	for (uint32_t i = 0; i < d->device->jobs; i++) {
		const struct sublet__job *job = &d->device->job[i];
		if (job->state != JOB_FREE && job->has_pin)
			range_count(s, job->pin.mm, (uint32_t)job->pin.first, (uint32_t)job->pin.pages,
				    pins_short);
	}
	for (uint32_t i = 0; i < SIM_BOS_MAX; i++) {
		const struct sublet__bo *bo = &d->device->bo[i];
		if (bo->state != BO_FREE && (bo->flags & SUBLET_BO_PINNED))
			range_count(s, bo->pin.mm, (uint32_t)bo->pin.first, (uint32_t)bo->pin.pages,
				    pins_long);
	}
}

static void pins_count(struct sim *s)
{
	memset(pins_short, 0, sizeof pins_short);
	memset(pins_long, 0, sizeof pins_long);
	pins_each(s, pin_count);
	for (uint32_t i = 0; i < SIM_DEVICES_MAX; i++)
		if (s->device[i].device)
			device_count(s, &s->device[i]);
	for (uint32_t pfn = 0; pfn < s->frames; pfn++) {
		uint32_t word = a32_load_relaxed(&s->arena->frames[pfn].word);
		uint32_t ref = a32_load_relaxed(&s->arena->frames[pfn].ref);
		if (!(word & FRAME_HEAD) || word_state(word) != FRAME_MOVABLE)
			continue;
		if ((ref & REF_SHORT_MASK) != pins_short[pfn] ||
		    (ref & REF_LONG_MASK) / REF_LONG_ONE != pins_long[pfn])
			sim_violation(
				s, "folio %u counts %u short and %u long-term pins, there are %u and %u (G8)",
				pfn, ref & REF_SHORT_MASK, (ref & REF_LONG_MASK) / REF_LONG_ONE,
				pins_short[pfn], pins_long[pfn]);
	}
}

void check_standing(struct sim *s)
{
	char text[160] = "";

	s->is_quiet = true;
	if (sublet__arena_verify(s->arena, text, sizeof text))
		sim_violation(s, "verify: %s", text);
	check_moving(s);
	s->is_quiet = true;
	pins_count(s);
	for (uint32_t m = 0; m < s->mms; m++)
		for (uint32_t i = 0; i < 2; i++)
			if (s->mm[m].child[i].is_alive)
				mm_child_check(&s->mm[m], &s->mm[m].child[i]);
	check_guarded(s);
	s->is_quiet = false;
}

/* Where a map failed half way, and then the kernel refused to unmap what it had given, that stays where it is. */
static uint64_t left_bytes(const struct sim *s)
{
	uint64_t left = 0;

	for (uint32_t m = 0; m < s->mms; m++)
		for (uint32_t vpn = 0; vpn < s->mm[m].pages; vpn++)
			left += s->mm[m].page[vpn].kind != KIND_NONE;
	return left << s->frame_shift;
}

void check_empty(struct sim *s)
{
	struct sublet_stats stats = { SUBLET_OPTIONS(sublet_stats) };
	uint64_t left = left_bytes(s);

	s->is_quiet = true;
	if (sublet_arena_stats(s->arena, &stats))
		sim_violation(s, "no statistics");
	s->is_quiet = false;
	uint64_t used = stats.area_bytes - stats.area_free_bytes + stats.normal_used_bytes;
	if ((left && !s->map_stuck) || used != stats.lent_bytes ||
	    stats.lent_bytes + stats.plain_bytes != left || stats.claims_held || stats.longterm_bytes ||
	    stats.notifiers)
		sim_violation(s,
			      "all was given back, but: %llu bytes are used, %llu lent, %llu plain, %llu "
			      "mapped, %llu "
			      "claims, %llu bytes pinned, %llu notifiers (G8)",
			      (unsigned long long)used, (unsigned long long)stats.lent_bytes,
			      (unsigned long long)stats.plain_bytes, (unsigned long long)left,
			      (unsigned long long)stats.claims_held, (unsigned long long)stats.longterm_bytes,
			      (unsigned long long)stats.notifiers);
}
