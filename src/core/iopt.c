/* SPDX-License-Identifier: MIT */
/*
 * A device's page table: three flat arrays of entries, 1 GiB, 2 MiB and 4 KiB.
 *
 * A walk is at most three loads, from the top down, and takes the first entry that is present. It takes no lock and never
 * looks again (G7). That it is right, whatever writers do between its loads, rests on two rules for them. Below
 * a large entry that is present there may be others; a mark in it, ENTRY_LOWER, says so: then all 512 are, else none.
 *
 *   T1  what is stored below a present entry translates to what that entry translates to at that moment;
 *   T2  an entry becomes 0 only while nothing above it is present, and what is below it, if anything, says the same.
 *
 * So a merge only stores the large entry and leaves the small ones where they are, clearing goes from the top down, and
 * who replaces stores the large entry before he corrects the small ones:
 *
 *   walk                  merge              split                     clear            replace by a large one
 *   ----                  -----              -----                     -----            ----------------------
 *   load large            large = L|LOWER    small[i] = L + i, unless  large = 0        large = N, N|LOWER if there
 *   0? load small[i]                           they are there (LOWER)  small[i] = 0       are small ones, then
 *                                            large = 0                                  small[i] = N + i
 *
 * Claim: the answer of a walk was the page's translation at some moment of the walk. Here "translation" is the first
 * entry that is present from the top, at one moment.
 *
 *   It finds nothing. Suppose that all the time there was a translation. At the first load it was in some entry E,
 *   which the walk found 0 when it came there; so E became 0 in between. At that moment nothing above was present
 *   (T2): if nothing was below either, the page had no translation, a contradiction; else it went on in an
 *   entry below, where the walk had not been yet, and the same holds of that one.
 *
 *   It finds s, in an entry below others that it found 0. If s was stored during the walk, it was the translation when it
 *   was: by T1 if something was present above, else by being stored. If it was there since before the walk, it was the
 *   translation at the first load, unless something above was present then, which the walk found 0 later;
 *   then s was it when the last of these became 0 (T2).
 *
 * A merge that cleared the small entries would make walks look again that come from a time before it, and again while
 * writers go on splitting and merging; a counter that tells them to would have no bound. Leaving them there costs their
 * stores when the range is cleared, no sooner. tests/unit/test_iopt_walk.c tries every interleaving of a walk with
 * sequences of changes. Stores are releases, loads of a walk acquires: who sees the 0 that a split, or a clear, stored
 * sees what was stored before.
 *
 * What was removed may still be known to the device. The table keeps one range around it (`pending`), and whoever does not
 * say NOFLUSH has it flushed before he returns (G4). iova that is unmapped is free at once, so the next one to fill there
 * has to wait for the old translations to be gone; that is why also a fill looks at what is pending, and at what
 * is being flushed. The device's flush is called with flush_lock held but not the table's lock: others go on to
 * change the table and devices to walk it, but who needs the flush that is under way can wait for its end. That wait
 * is as long as a device's flush.
 *
 * A mapping is unmapped whole or not at all, and its translations go with it, however they came there: there is no
 * list of what was filled that could be out of step with the entries.
 */
#include "core/iopt.h"

#include <errno.h>
#include <string.h>

static uint64_t min_u64(uint64_t x, uint64_t y)
{
	return x < y ? x : y;
}

static uint64_t max_u64(uint64_t x, uint64_t y)
{
	return x > y ? x : y;
}

static void table_lock(struct sublet_iopt *iopt)
{
	engine_lock(iopt->arena, &iopt->lock);
}

static void table_unlock(struct sublet_iopt *iopt)
{
	engine_unlock(iopt->arena, &iopt->lock);
}

/* ---- what waits to be flushed ---- */

static bool hull_overlaps(const struct sublet__iopt_hull *hull, uint64_t pn, uint64_t end)
{
	return hull->pn < end && pn < hull->end;
}

/* A translation in [pn, end) was taken away, or replaced. */
static void pending_add(struct sublet_iopt *iopt, uint64_t pn, uint64_t end)
{
	struct sublet__iopt_hull *hull = &iopt->pending;

	if (!iopt->device_flush)
		return;
	if (hull->pn == hull->end)
		*hull = (struct sublet__iopt_hull){ pn, end };
	hull->pn = min_u64(hull->pn, pn);
	hull->end = max_u64(hull->end, end);
}

void sublet_iopt_flush(struct sublet_iopt *iopt)
{
	struct sublet__iopt_hull hull;

	if (call_iopt(iopt) || !iopt->device_flush)
		return;
	engine_lock(iopt->arena, &iopt->flush_lock);
	table_lock(iopt);
	hull = iopt->pending;
	iopt->flushing = hull;
	iopt->pending = (struct sublet__iopt_hull){ 0, 0 };
	iopt->flushes += hull.pn != hull.end;
	table_unlock(iopt);
	if (hull.pn != hull.end) {
		iopt->device_flush(iopt->ctx, hull.pn << IOPT_PAGE_SHIFT,
				   (hull.end - hull.pn) << IOPT_PAGE_SHIFT);
		table_lock(iopt);
		iopt->flushing = (struct sublet__iopt_hull){ 0, 0 };
		table_unlock(iopt);
	}
	engine_unlock(iopt->arena, &iopt->flush_lock);
}

/* The end of a change of [pn, end): drops the lock; when it returns, the device knows nothing old of the range. */
static void change_end(struct sublet_iopt *iopt, uint64_t pn, uint64_t end, uint32_t flags)
{
	bool flush = !(flags & SUBLET_IOPT_NOFLUSH) &&
		     (hull_overlaps(&iopt->pending, pn, end) || hull_overlaps(&iopt->flushing, pn, end));

	table_unlock(iopt);
	if (flush)
		sublet_iopt_flush(iopt);
}

/* ---- one slot; the lock is held in all that follows ---- */

static uint64_t slot_end(uint32_t level, uint64_t pn)
{
	return (pn | (level_pages(level) - 1)) + 1;
}

static bool slot_is_empty(const struct sublet_iopt *iopt, uint32_t level, uint64_t pn)
{
	return !entry_get(iopt, level, pn) && (!level || !*used_at(iopt, level, pn));
}

/* The one store of an entry. Pairs with sublet_iopt_translate. */
static void entry_set(struct sublet_iopt *iopt, uint32_t level, uint64_t pn, uint64_t entry)
{
	a64_store_release(entry_at(iopt, level, pn), entry);
}

static void slot_put(struct sublet_iopt *iopt, uint32_t level, uint64_t pn, uint64_t entry);

/* Make the 512 slots below a slot translate to `entry` and what follows it. */
static void below_put(struct sublet_iopt *iopt, uint32_t level, uint64_t pn, uint64_t entry)
{
	uint64_t pages = level_pages(level - 1), bytes = level_bytes(level - 1);

	for (uint32_t i = 0; i < IOPT_BELOW; i++, pn += pages, entry += bytes) {
		if (level > 1)
			slot_put(iopt, level - 1, pn, entry);
		else
			entry_set(iopt, 0, pn, entry);
	}
	*used_at(iopt, level, pn - 1) = IOPT_BELOW;
}

/*
 * Make a large slot translate to `entry`. Nothing above is present, or it says the same (T1). The entry before those
 * below: so they never say what the page does not translate to yet.
 */
static void slot_put(struct sublet_iopt *iopt, uint32_t level, uint64_t pn, uint64_t entry)
{
	bool lower = *used_at(iopt, level, pn) != 0;

	entry_set(iopt, level, pn, lower ? entry | ENTRY_LOWER : entry);
	if (lower)
		below_put(iopt, level, pn, entry);
}

/* Large entry -> the 512 below it. Nothing above is present. */
static void slot_split(struct sublet_iopt *iopt, uint32_t level, uint64_t pn)
{
	uint64_t entry = entry_get(iopt, level, pn);

	if (!(entry & ENTRY_LOWER))
		below_put(iopt, level, pn & ~(level_pages(level) - 1), entry);
	entry_set(iopt, level, pn, 0); /* T2: those below are there */
	iopt->entries[level]--;
	iopt->entries[level - 1] += IOPT_BELOW;
	iopt->splits++;
}

/* Remove all translations of a large slot, from the top down (T2). Nothing above is present. */
static void slot_clear(struct sublet_iopt *iopt, uint32_t level, uint64_t pn)
{
	uint64_t end = slot_end(level, pn), step = level_pages(level - 1);

	entry_set(iopt, level, pn, 0);
	if (!*used_at(iopt, level, pn))
		return;
	for (uint64_t at = pn; at < end; at += step) {
		if (level == 1)
			entry_set(iopt, 0, at, 0);
		else if (!slot_is_empty(iopt, level - 1, at))
			slot_clear(iopt, level - 1, at);
	}
	*used_at(iopt, level, pn) = 0;
}

/* A large slot is about to be cleared or replaced: its translations count no more, and wait to be flushed. */
static void slot_retire(struct sublet_iopt *iopt, uint32_t level, uint64_t pn)
{
	uint64_t end = slot_end(level, pn), step = level_pages(level - 1);

	if (slot_is_empty(iopt, level, pn))
		return;
	if (entry_get(iopt, level, pn))
		iopt->entries[level]--;
	else if (level == 1)
		iopt->entries[0] -= *used_at(iopt, level, pn);
	else
		for (uint64_t at = pn; at < end; at += step)
			slot_retire(iopt, level - 1, at);
	pending_add(iopt, pn, end);
}

/*
 * The 512 entries below are there, and are one piece: put the large entry on top of them. Only inside one mapping, so
 * neighbours never share an entry.
 */
static void slot_merge(struct sublet_iopt *iopt, const struct sublet__iova_range *mapping, uint32_t level,
		       uint64_t pn)
{
	uint64_t first = pn & ~(level_pages(level) - 1);

	if (level >= iopt->levels || *used_at(iopt, level, pn) != IOPT_BELOW || first < mapping->start ||
	    slot_end(level, pn) > mapping->start + mapping->pages)
		return;
	uint64_t entry = entry_get(iopt, level - 1, first) & ~ENTRY_LOWER;
	if (!entry || ((entry & ~ENTRY_FLAGS) & (level_bytes(level) - 1)))
		return;
	for (uint32_t i = 1; i < IOPT_BELOW; i++) {
		uint64_t next = entry_get(iopt, level - 1, first + i * level_pages(level - 1));
		if ((next & ~ENTRY_LOWER) != entry + i * level_bytes(level - 1))
			return;
	}
	entry_set(iopt, level, pn, entry | ENTRY_LOWER);
	iopt->entries[level - 1] -= IOPT_BELOW;
	iopt->entries[level]++;
	iopt->merges++;
}

/* ---- a run of pages ---- */

/* [pn, end) in one 2 MiB slot, by 4 KiB entries. */
static void pages_fill(struct sublet_iopt *iopt, uint64_t pn, uint64_t end, uint64_t entry)
{
	uint32_t fresh = 0;

	for (uint64_t at = pn; at < end; at++, entry += SUBLET_IOPT_PAGE_BYTES) {
		fresh += !entry_get(iopt, 0, at);
		entry_set(iopt, 0, at, entry);
	}
	*used_at(iopt, 1, pn) = (uint16_t)(*used_at(iopt, 1, pn) + fresh);
	iopt->entries[0] += fresh;
	if (fresh < end - pn)
		pending_add(iopt, pn, end);
}

static void pages_clear(struct sublet_iopt *iopt, uint64_t pn, uint64_t end)
{
	uint32_t gone = 0;

	for (uint64_t at = pn; at < end; at++) {
		if (!entry_get(iopt, 0, at))
			continue;
		entry_set(iopt, 0, at, 0);
		pending_add(iopt, at, at + 1);
		gone++;
	}
	*used_at(iopt, 1, pn) = (uint16_t)(*used_at(iopt, 1, pn) - gone);
	iopt->entries[0] -= gone;
}

/* Whether [pn, end) is a whole slot that one entry can translate. */
static bool slot_fits(const struct sublet_iopt *iopt, uint32_t level, uint64_t pn, uint64_t end,
		      uint64_t entry)
{
	return level < iopt->levels && end - pn == level_pages(level) &&
	       !((entry & ~ENTRY_FLAGS) & (level_bytes(level) - 1));
}

/* Translate [pn, end) to what `entry` says and what lies behind it, by the largest entries that fit. */
static void run_fill(struct sublet_iopt *iopt, const struct sublet__iova_range *mapping, uint32_t level,
		     uint64_t pn, uint64_t end, uint64_t entry)
{
	if (!level) {
		pages_fill(iopt, pn, end, entry);
		return;
	}
	for (uint64_t next; pn < end; entry += (next - pn) << IOPT_PAGE_SHIFT, pn = next) {
		next = min_u64(end, slot_end(level, pn));
		if (level < IOPT_TOP && slot_is_empty(iopt, level, pn))
			++*used_at(iopt, level + 1, pn);
		if (slot_fits(iopt, level, pn, next, entry)) {
			slot_retire(iopt, level, pn);
			slot_put(iopt, level, pn, entry);
			iopt->entries[level]++;
			continue;
		}
		if (entry_get(iopt, level, pn))
			slot_split(iopt, level, pn);
		run_fill(iopt, mapping, level - 1, pn, next, entry);
		slot_merge(iopt, mapping, level, pn);
	}
}

/* Remove the translations of [pn, end). */
static void run_clear(struct sublet_iopt *iopt, uint32_t level, uint64_t pn, uint64_t end)
{
	if (!level) {
		pages_clear(iopt, pn, end);
		return;
	}
	for (uint64_t next; pn < end; pn = next) {
		next = min_u64(end, slot_end(level, pn));
		if (slot_is_empty(iopt, level, pn))
			continue;
		if (next - pn == level_pages(level)) {
			slot_retire(iopt, level, pn);
			slot_clear(iopt, level, pn);
		} else {
			if (entry_get(iopt, level, pn))
				slot_split(iopt, level, pn);
			run_clear(iopt, level - 1, pn, next);
		}
		if (level < IOPT_TOP && slot_is_empty(iopt, level, pn))
			--*used_at(iopt, level + 1, pn);
	}
}

/* ---- mappings ---- */

/* The mapping that [pn, pn + pages) lies in, or NULL. */
static const struct sublet__iova_range *mapping_around(const struct sublet_iopt *iopt, uint64_t pn,
						       uint64_t pages)
{
	const struct sublet__iova_range *r = &iopt->iova.range[sublet__iova_find(&iopt->iova, pn)];

	return r->is_taken && r->start + r->pages - pn >= pages ? r : NULL;
}

/* Anywhere, so that entries as large as `pages` allows can be used, or smaller ones where there is no such room. */
static uint32_t take_for_large(struct sublet_iopt *iopt, uint64_t pages, uint64_t offset)
{
	uint32_t level = iopt->levels - 1, id;

	while (level && pages < level_pages(level))
		level--;
	for (;; level--) {
		id = sublet__iova_take(&iopt->iova, pages, level_pages(level),
				       offset & (level_pages(level) - 1));
		if (id != IOVA_NONE || !level)
			return id;
	}
}

int sublet_iopt_map(struct sublet_iopt *iopt, uint64_t *iova, uint64_t bytes, uint64_t align_bytes,
		    uint64_t align_offset_bytes, uint32_t flags)
{
	uint64_t pages = bytes >> IOPT_PAGE_SHIFT, align = align_bytes >> IOPT_PAGE_SHIFT;
	uint64_t offset = align_offset_bytes >> IOPT_PAGE_SHIFT;
	uint32_t id;
	int err = iova ? call_iopt(iopt) : -EINVAL;

	if (err)
		return err;
	bool anywhere = *iova == SUBLET_IOVA_ANY;
	if (!bytes || ((bytes | align_bytes | align_offset_bytes) & (SUBLET_IOPT_PAGE_BYTES - 1)) ||
	    (!anywhere && *iova & (SUBLET_IOPT_PAGE_BYTES - 1)) || (align & (align - 1)) ||
	    !(flags & ENTRY_ACCESS) || (flags & ~(ENTRY_ACCESS | SUBLET_IOPT_NOFLUSH)))
		return -EINVAL;
	table_lock(iopt);
	if (anywhere) {
		id = align ? sublet__iova_take(&iopt->iova, pages, align, offset & (align - 1))
			   : take_for_large(iopt, pages, offset);
		err = id == IOVA_NONE ? -ENOSPC : 0;
	} else {
		err = sublet__iova_take_at(&iopt->iova, *iova >> IOPT_PAGE_SHIFT, pages, &id);
	}
	if (!err) {
		iopt->iova.range[id].flags = (uint8_t)(flags & ENTRY_ACCESS);
		*iova = iopt->iova.range[id].start << IOPT_PAGE_SHIFT;
	}
	table_unlock(iopt);
	return err;
}

/* Check the extents and add them up; a sum beyond the aperture stays beyond it. -EINVAL */
static int extents_check(const struct sublet_iopt *iopt, const struct sublet_extent *extents, uint32_t count,
			 uint64_t *pages)
{
	uint64_t limit = iopt->backing_bytes;

	*pages = 0;
	for (uint32_t i = 0; i < count; i++) {
		const struct sublet_extent *e = &extents[i];
		if (!e->bytes || ((e->bytes | e->offset_bytes) & (SUBLET_IOPT_PAGE_BYTES - 1)) ||
		    e->offset_bytes > limit || e->bytes > limit - e->offset_bytes)
			return -EINVAL;
		*pages = min_u64(*pages + (e->bytes >> IOPT_PAGE_SHIFT), iopt->pages + 1);
	}
	return count ? 0 : -EINVAL;
}

int sublet_iopt_fill(struct sublet_iopt *iopt, uint64_t iova, const struct sublet_extent *extents,
		     uint32_t count, uint32_t flags)
{
	uint64_t pages, pn = iova >> IOPT_PAGE_SHIFT;
	int err = extents ? call_iopt(iopt) : -EINVAL;

	if (err)
		return err;
	err = extents_check(iopt, extents, count, &pages);
	if (err || (iova & (SUBLET_IOPT_PAGE_BYTES - 1)) || (flags & ~(uint32_t)SUBLET_IOPT_NOFLUSH))
		return -EINVAL;
	table_lock(iopt);
	const struct sublet__iova_range *mapping = mapping_around(iopt, pn, pages);
	if (!mapping) {
		table_unlock(iopt);
		return -ENOENT;
	}
	uint64_t at = pn;
	for (uint32_t i = 0; i < count;) {
		struct sublet_extent run = extents[i++];
		while (i < count && extents[i].offset_bytes == run.offset_bytes + run.bytes)
			run.bytes += extents[i++].bytes;
		uint64_t end = at + (run.bytes >> IOPT_PAGE_SHIFT);
		run_fill(iopt, mapping, IOPT_TOP, at, end, run.offset_bytes | mapping->flags);
		at = end;
	}
	change_end(iopt, pn, pn + pages, flags);
	return 0;
}

int sublet_iopt_clear(struct sublet_iopt *iopt, uint64_t iova, uint64_t bytes, uint32_t flags)
{
	uint64_t pn = iova >> IOPT_PAGE_SHIFT, pages = bytes >> IOPT_PAGE_SHIFT;
	int err = call_iopt(iopt);

	if (err)
		return err;
	if (!bytes || ((iova | bytes) & (SUBLET_IOPT_PAGE_BYTES - 1)) ||
	    (flags & ~(uint32_t)SUBLET_IOPT_NOFLUSH))
		return -EINVAL;
	table_lock(iopt);
	if (!mapping_around(iopt, pn, pages)) {
		table_unlock(iopt);
		return -ENOENT;
	}
	run_clear(iopt, IOPT_TOP, pn, pn + pages);
	change_end(iopt, pn, pn + pages, flags);
	return 0;
}

int sublet_iopt_unmap(struct sublet_iopt *iopt, uint64_t iova, uint64_t bytes, uint32_t flags)
{
	uint64_t pn = iova >> IOPT_PAGE_SHIFT, end = pn + (bytes >> IOPT_PAGE_SHIFT);
	int err = call_iopt(iopt);

	if (err)
		return err;
	if (flags & ~(uint32_t)SUBLET_IOPT_NOFLUSH)
		return -EINVAL;
	table_lock(iopt);
	uint32_t id = sublet__iova_find(&iopt->iova, pn);
	const struct sublet__iova_range *mapping = &iopt->iova.range[id];
	if (id == IOVA_NONE || mapping->start << IOPT_PAGE_SHIFT != iova ||
	    mapping->pages << IOPT_PAGE_SHIFT != bytes) {
		table_unlock(iopt);
		return -ENOENT;
	}
	run_clear(iopt, IOPT_TOP, pn, end);
	sublet__iova_give(&iopt->iova, id);
	change_end(iopt, pn, end, flags);
	return 0;
}

/* ---- walking ---- */

int sublet_iopt_translate(const struct sublet_iopt *iopt, uint64_t iova, uint32_t flags,
			  struct sublet_extent *extent)
{
	uint64_t pn = iova >> IOPT_PAGE_SHIFT;
	int err = extent ? call_iopt(iopt) : -EINVAL;

	if (err)
		return err;
	if (pn - iopt->first >= iopt->pages)
		return -EFAULT;
	for (uint32_t level = iopt->levels; level-- > 0;) {
		uint64_t entry = a64_load_acquire(entry_at(iopt, level, pn)); /* pairs with entry_set */
		uint64_t inside = iova & (level_bytes(level) - 1);
		if (!entry)
			continue;
		if (flags & ~(entry & ENTRY_ACCESS))
			return -EACCES;
		*extent = (struct sublet_extent){ (entry & ~ENTRY_FLAGS) + inside,
						  level_bytes(level) - inside };
		return 0;
	}
	return -EFAULT;
}

/* ---- birth, death, figures ---- */

/* Place `bytes` in the memory at base; with base NULL only count them. */
static void *lay(char *base, size_t *at, uint64_t bytes)
{
	void *part = base ? base + *at : NULL;

	*at += (size_t)((bytes + 63) & ~(uint64_t)63);
	return part;
}

/* Lay out the table's memory; returns how much it is. */
static size_t iopt_lay(struct sublet_iopt *iopt, uint32_t mappings_max, char *base)
{
	size_t at = 0;

	lay(base, &at, sizeof *iopt);
	iopt->iova.range = lay(base, &at, sublet__iova_ranges(mappings_max) * sizeof *iopt->iova.range);
	for (uint32_t level = IOPT_LEVELS; level-- > 0;) {
		struct sublet__iopt_level *l = &iopt->level[level];
		l->used = level ? lay(base, &at, l->slots * sizeof *l->used) : NULL;
		l->entry = lay(base, &at, l->slots * sizeof *l->entry);
	}
	return at;
}

/* Check the options and work out the table's shape. */
static int iopt_plan(struct sublet_arena *arena, const struct sublet_iopt_options *o,
		     struct sublet_iopt *plan)
{
	uint64_t first = o->first_bytes >> IOPT_PAGE_SHIFT, pages = o->aperture_bytes >> IOPT_PAGE_SHIFT;

	if (!pages || ((o->first_bytes | o->aperture_bytes) & (SUBLET_IOPT_PAGE_BYTES - 1)) ||
	    o->aperture_bytes > IOPT_APERTURE_MAX || first + pages > UINT64_MAX >> IOPT_PAGE_SHIFT ||
	    o->mappings_max > IOPT_MAPPINGS_MAX || o->large_disabled > 3)
		return -EINVAL;
	*plan = (struct sublet_iopt){ .arena = arena,
				      .first = first,
				      .pages = pages,
				      .backing_bytes = (uint64_t)arena->frames_total
						       << frames_bytes_shift(arena),
				      .levels = o->large_disabled & 1   ? 1
						: o->large_disabled & 2 ? 2
									: 3,
				      .device_flush = o->flush,
				      .ctx = o->ctx };
	for (uint32_t level = 0; level < IOPT_LEVELS; level++) {
		struct sublet__iopt_level *l = &plan->level[level];
		l->first = first >> (level * IOPT_LEVEL_BITS);
		l->slots = ((first + pages - 1) >> (level * IOPT_LEVEL_BITS)) - l->first + 1;
	}
	return 0;
}

int sublet_iopt_create(struct sublet_arena *arena, const struct sublet_iopt_options *options,
		       struct sublet_iopt **out)
{
	struct sublet_iopt_options o;
	struct sublet_iopt plan;
	int err = out ? call_arena(arena) : -EINVAL;

	if (!err)
		err = sublet__struct_in(&o, sizeof o, options, FIRST_IOPT_OPTIONS);
	if (err)
		return err;
	const struct sublet__platform *p = &arena->platform;
	o.mappings_max = o.mappings_max ? o.mappings_max : IOPT_MAPPINGS_DEFAULT;
	err = iopt_plan(arena, &o, &plan);
	if (err)
		return err;
	plan.memory_bytes = iopt_lay(&plan, o.mappings_max, NULL);
	char *memory = p->ops->reserve(p->ctx, plan.memory_bytes);
	if (!memory)
		return -ENOMEM;
	struct sublet_iopt *iopt = (struct sublet_iopt *)(void *)memory;
	memcpy(iopt, &plan, sizeof plan);
	iopt_lay(iopt, o.mappings_max, memory);
	/* Page 0 is never handed out: iova 0 can mean none. */
	sublet__iova_init(&iopt->iova, o.mappings_max, max_u64(plan.first, 1), plan.first + plan.pages);
	a32_add_relaxed(&arena->iopts, 1);
	*out = iopt;
	return 0;
}

void sublet_iopt_destroy(struct sublet_iopt *iopt)
{
	if (call_iopt(iopt))
		return;
	a32_sub_relaxed(&iopt->arena->iopts, 1);
	iopt->arena->platform.ops->unreserve(iopt->arena->platform.ctx, iopt, iopt->memory_bytes);
}

int sublet_iopt_stats(struct sublet_iopt *iopt, struct sublet_iopt_stats *stats)
{
	int err = call_iopt(iopt);

	if (!err)
		err = sublet__struct_out_check(stats, FIRST_IOPT_STATS);
	if (err)
		return err;
	table_lock(iopt);
	struct sublet_iopt_stats s = {
		.mappings = iopt->iova.taken,
		.mapped_bytes = iopt->iova.taken_pages << IOPT_PAGE_SHIFT,
		.entries_4k = iopt->entries[0],
		.entries_2m = iopt->entries[1],
		.entries_1g = iopt->entries[2],
		.splits = iopt->splits,
		.merges = iopt->merges,
		.flushes = iopt->flushes,
		.largest_free_bytes = sublet__iova_largest(&iopt->iova) << IOPT_PAGE_SHIFT,
	};
	for (uint32_t level = 0; level < IOPT_LEVELS; level++)
		s.filled_bytes += iopt->entries[level] * level_bytes(level);
	table_unlock(iopt);
	sublet__struct_out(stats, &s, sizeof s);
	return 0;
}
