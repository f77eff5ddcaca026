/* SPDX-License-Identifier: MIT */
/* The SIMULATED address space: page slots, the program's accesses, and the ops. See fake_platform.h. */
#include "fake_platform.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK_PAGES 512u

/* ---- locks ---- */

static struct fake_block *lock_block(struct fake_mm *mm, uint32_t vpn)
{
	struct fake_block *b = &mm->block[vpn / BLOCK_PAGES];
	pthread_mutex_lock(&b->lock);
	return b;
}

static bool range_ok(struct fake_mm *mm, const char *what, uint32_t vpn, uint32_t pages)
{
	if (pages && vpn < mm->pages && pages <= mm->pages - vpn &&
	    vpn / BLOCK_PAGES == (vpn + pages - 1) / BLOCK_PAGES)
		return true;
	fake_violation(mm->fake, what, vpn);
	return false;
}

static bool segs_ok(struct fake_mm *mm, const char *what, const struct sublet__segment *segs, uint32_t count)
{
	uint32_t vpn = count ? segs[0].vpn : 0, pages = 0;
	bool ok = count && count <= SUBLET__SEGMENTS_MAX;

	for (uint32_t i = 0; ok && i < count; i++) {
		ok = segs[i].pages && segs[i].vpn == vpn + pages && segs[i].dst_pfn < mm->fake->frames &&
		     segs[i].pages <= mm->fake->frames - segs[i].dst_pfn;
		pages += segs[i].pages;
	}
	if (!ok) {
		fake_violation(mm->fake, what, vpn);
		return false;
	}
	return range_ok(mm, what, vpn, pages);
}

/* ---- who uses a frame ---- */

static void frame_map(struct fake_mm *mm, const char *what, uint32_t pfn, uint32_t vpn)
{
	uint64_t old =
		atomic_exchange(&mm->fake->owner[pfn], FAKE_OWNER_PAGE | (uint64_t)mm->index << 32 | vpn);

	if (old || atomic_load(&mm->fake->child[pfn]))
		fake_violation(mm->fake, what, pfn);
}

static void frame_unmap(struct fake_mm *mm, const char *what, uint32_t pfn, uint32_t vpn)
{
	uint64_t old = atomic_exchange(&mm->fake->owner[pfn], 0);

	if (old != (FAKE_OWNER_PAGE | (uint64_t)mm->index << 32 | vpn))
		fake_violation(mm->fake, what, pfn);
	if (atomic_load(&mm->fake->held[pfn])) /* G2 */
		fake_violation(mm->fake, "a frame that a device holds was taken away", pfn);
}

static void page_drop(struct fake_mm *mm, uint32_t vpn)
{
	struct fake_page *p = &mm->page[vpn];

	if (p->blocked)
		fake_violation(mm->fake, "blocked page unmapped", vpn);
	if (p->kind == FAKE_SHARED || p->kind == FAKE_PRIVATE || p->kind == FAKE_COPIED)
		frame_unmap(mm, "unmap of a frame of another page", p->pfn, vpn);
	free(p->copy);
	*p = (struct fake_page){ .kind = FAKE_NONE };
}

/* ---- the program ---- */

static void page_copy_on_write(struct fake_mm *mm, struct fake_page *p)
{
	p->copy = malloc(FAKE_WORDS * sizeof *p->copy);
	for (uint32_t w = 0; w < FAKE_WORDS; w++)
		p->copy[w] = fake_frame_read(mm->fake, p->pfn, w);
	p->kind = FAKE_COPIED;
}

/* Store one word; the block's lock is held and the page is not blocked. */
static bool page_store(struct fake_mm *mm, struct fake_page *p, uint32_t word, uint64_t value)
{
	if (p->kind == FAKE_NONE)
		return false;
	if (p->kind == FAKE_PRIVATE)
		page_copy_on_write(mm, p);
	if (p->tracked)
		p->dirty = true;
	if (p->kind == FAKE_SHARED)
		fake_frame_write(mm->fake, p->pfn, word, value);
	else
		p->copy[word] = value;
	return true;
}

static uint64_t page_load(struct fake_mm *mm, const struct fake_page *p, uint32_t word)
{
	if (p->kind == FAKE_COPIED || p->kind == FAKE_PLAIN)
		return p->copy[word];
	return fake_frame_read(mm->fake, p->pfn, word);
}

bool fake_write(struct fake_mm *mm, uint32_t vpn, uint32_t word, uint64_t value)
{
	struct fake_block *b = lock_block(mm, vpn);

	while (mm->page[vpn].blocked)
		pthread_cond_wait(&b->wake, &b->lock);
	bool ok = page_store(mm, &mm->page[vpn], word, value);
	pthread_mutex_unlock(&b->lock);
	return ok;
}

bool fake_read(struct fake_mm *mm, uint32_t vpn, uint32_t word, uint64_t *value)
{
	struct fake_block *b = lock_block(mm, vpn);

	while (mm->fake->options.reads_wait && mm->page[vpn].blocked)
		pthread_cond_wait(&b->wake, &b->lock);
	bool ok = mm->page[vpn].kind != FAKE_NONE;
	if (ok)
		*value = page_load(mm, &mm->page[vpn], word);
	pthread_mutex_unlock(&b->lock);
	return ok;
}

enum fake_kind fake_kind_of(struct fake_mm *mm, uint32_t vpn)
{
	struct fake_block *b = lock_block(mm, vpn);
	enum fake_kind kind = mm->page[vpn].kind;
	pthread_mutex_unlock(&b->lock);
	return kind;
}

uint32_t fake_pfn_of(struct fake_mm *mm, uint32_t vpn)
{
	struct fake_block *b = lock_block(mm, vpn);
	uint32_t pfn = mm->page[vpn].pfn;
	pthread_mutex_unlock(&b->lock);
	return pfn;
}

bool fake_locked(struct fake_mm *mm, uint32_t vpn)
{
	struct fake_block *b = lock_block(mm, vpn);
	bool locked = mm->page[vpn].locked;
	pthread_mutex_unlock(&b->lock);
	return locked;
}

static bool page_continues(const struct fake_page *before, const struct fake_page *p)
{
	if (before->kind == FAKE_NONE || p->kind == FAKE_NONE)
		return before->kind == p->kind;
	if (before->kind == FAKE_PLAIN || p->kind == FAKE_PLAIN)
		return before->kind == p->kind;
	return p->pfn == before->pfn + 1 && p->locked == before->locked &&
	       (p->kind == FAKE_SHARED) == (before->kind == FAKE_SHARED);
}

uint32_t fake_mappings(struct fake_mm *mm)
{
	struct fake_page none = { .kind = FAKE_NONE };
	const struct fake_page *before = &none;
	uint32_t count = 0;

	for (uint32_t vpn = 0; vpn < mm->pages; before = &mm->page[vpn++])
		count += !page_continues(before, &mm->page[vpn]);
	return count;
}

void fake_device_hold(struct fake_mm *mm, uint32_t vpn, uint32_t pages, int delta)
{
	for (uint32_t at = vpn; at < vpn + pages; at++) {
		struct fake_block *b = lock_block(mm, at);
		struct fake_page *p = &mm->page[at];
		if (p->kind == FAKE_SHARED || p->kind == FAKE_PRIVATE || p->kind == FAKE_COPIED)
			atomic_fetch_add(&mm->fake->held[p->pfn], (uint32_t)delta);
		else if (p->kind != FAKE_PLAIN)
			fake_violation(mm->fake, "a device holds a page that is not there", at);
		pthread_mutex_unlock(&b->lock);
	}
}

/* ---- map, unmap ---- */

static int op_map(void *ctx, const struct sublet__segment *segs, uint32_t count, uint32_t flags)
{
	struct fake_mm *mm = ctx;
	int err = fake_enter(mm->fake, FAKE_MAP, mm, segs[0].vpn, count);

	if (err || !segs_ok(mm, "map: segments", segs, count))
		return err;
	struct fake_block *b = lock_block(mm, segs[0].vpn);
	for (uint32_t s = 0; s < count; s++)
		for (uint32_t i = 0; i < segs[s].pages; i++) {
			struct fake_page *p = &mm->page[segs[s].vpn + i];
			if (p->kind != FAKE_NONE && p->kind != FAKE_PLAIN)
				fake_violation(mm->fake, "map over a mapped page", segs[s].vpn + i);
			page_drop(mm, segs[s].vpn + i);
			p->kind = (flags & SUBLET__MAP_PRIVATE) ? FAKE_PRIVATE : FAKE_SHARED;
			p->locked = flags & SUBLET__MAP_LOCKED;
			p->pfn = segs[s].dst_pfn + i;
			frame_map(mm, "map of a frame in use", p->pfn, segs[s].vpn + i);
		}
	pthread_mutex_unlock(&b->lock);
	return 0;
}

static int op_map_plain(void *ctx, uint32_t vpn, uint32_t pages)
{
	struct fake_mm *mm = ctx;
	int err = fake_enter(mm->fake, FAKE_MAP_PLAIN, mm, vpn, pages);

	if (err || !range_ok(mm, "map_plain: range", vpn, pages))
		return err;
	struct fake_block *b = lock_block(mm, vpn);
	for (uint32_t at = vpn; at < vpn + pages; at++) {
		if (mm->page[at].kind != FAKE_NONE)
			fake_violation(mm->fake, "map_plain over a mapped page", at);
		page_drop(mm, at);
		mm->page[at].kind = FAKE_PLAIN;
		mm->page[at].copy = calloc(FAKE_WORDS, sizeof *mm->page[at].copy);
	}
	pthread_mutex_unlock(&b->lock);
	return 0;
}

static int op_unmap(void *ctx, uint32_t vpn, uint32_t pages)
{
	struct fake_mm *mm = ctx;
	int err = fake_enter(mm->fake, FAKE_UNMAP, mm, vpn, pages);

	if (err)
		return err;
	if (!pages || vpn >= mm->pages || pages > mm->pages - vpn) {
		fake_violation(mm->fake, "unmap: range", vpn);
		return 0;
	}
	for (uint32_t at = vpn; at < vpn + pages; at++) {
		struct fake_block *b = lock_block(mm, at);
		page_drop(mm, at);
		pthread_mutex_unlock(&b->lock);
	}
	return 0;
}

static void op_clear(void *ctx, uint32_t vpn, uint32_t pages)
{
	struct fake_mm *mm = ctx;

	fake_enter(mm->fake, FAKE_CLEAR, mm, vpn, pages);
	if (!range_ok(mm, "clear: range", vpn, pages))
		return;
	struct fake_block *b = lock_block(mm, vpn);
	for (uint32_t at = vpn; at < vpn + pages; at++) {
		if (mm->page[at].kind == FAKE_NONE || mm->page[at].blocked)
			fake_violation(mm->fake, "clear of a page that is not mapped or is blocked", at);
		for (uint32_t w = 0; w < FAKE_WORDS; w++)
			page_store(mm, &mm->page[at], w, 0);
	}
	pthread_mutex_unlock(&b->lock);
}

/* ---- a move ---- */

static int op_track(void *ctx, uint32_t vpn, uint32_t pages)
{
	struct fake_mm *mm = ctx;
	int err = fake_enter(mm->fake, FAKE_TRACK, mm, vpn, pages);

	if (err || !range_ok(mm, "track: range", vpn, pages))
		return err;
	if (mm->fake->options.no_track)
		fake_violation(mm->fake, "track where it is not there", vpn);
	struct fake_block *b = lock_block(mm, vpn);
	for (uint32_t at = vpn; at < vpn + pages; at++) {
		struct fake_page *p = &mm->page[at];
		if (p->kind != FAKE_SHARED || p->blocked || p->tracked)
			fake_violation(mm->fake, "track of a page not shared, blocked or tracked", at);
		p->tracked = true;
		p->dirty = false;
	}
	pthread_mutex_unlock(&b->lock);
	return 0;
}

static int op_block(void *ctx, uint32_t vpn, uint32_t pages)
{
	struct fake_mm *mm = ctx;
	int err = fake_enter(mm->fake, FAKE_BLOCK, mm, vpn, pages);

	err = !err && mm->fake->options.stays ? -EOPNOTSUPP : err;
	if (!range_ok(mm, "block: range", vpn, pages) || pages > mm->fake->options.run_pages_max) {
		fake_violation(mm->fake, "block: longer than a run", vpn);
		return err;
	}
	struct fake_block *b = lock_block(mm, vpn);
	for (uint32_t at = vpn; at < vpn + pages; at++) {
		struct fake_page *p = &mm->page[at];
		if (p->kind != FAKE_SHARED || p->blocked)
			fake_violation(mm->fake, "block of a page not shared or blocked", at);
		p->blocked = !err;
		p->block_failed = err;
	}
	pthread_mutex_unlock(&b->lock);
	fake_thread_blocked += !err;
	return err;
}

static void op_dirty(void *ctx, uint32_t vpn, uint32_t pages, uint64_t *bitmap)
{
	struct fake_mm *mm = ctx;

	fake_enter(mm->fake, FAKE_DIRTY, mm, vpn, pages);
	if (!range_ok(mm, "dirty: range", vpn, pages))
		return;
	struct fake_block *b = lock_block(mm, vpn);
	for (uint32_t i = 0; i < pages; i++) {
		struct fake_page *p = &mm->page[vpn + i];
		if (!p->tracked || !p->blocked)
			fake_violation(mm->fake, "dirty of a page not tracked or not blocked", vpn + i);
		if (p->dirty)
			bitmap[i / 64] |= 1ull << (i % 64);
	}
	pthread_mutex_unlock(&b->lock);
}

static int op_remap(void *ctx, const struct sublet__segment *segs, uint32_t count, uint32_t flags)
{
	struct fake_mm *mm = ctx;
	int err = fake_enter(mm->fake, FAKE_REMAP, mm, segs[0].vpn, count);

	if (err || !segs_ok(mm, "remap: segments", segs, count))
		return err;
	if (flags & SUBLET__MAP_PRIVATE)
		fake_violation(mm->fake, "remap to private", segs[0].vpn);
	struct fake_block *b = lock_block(mm, segs[0].vpn);
	for (uint32_t s = 0; s < count; s++)
		for (uint32_t i = 0; i < segs[s].pages; i++) {
			struct fake_page *p = &mm->page[segs[s].vpn + i];
			if (p->kind != FAKE_SHARED || !p->blocked || p->pfn != segs[s].src_pfn + i)
				fake_violation(mm->fake, "remap of a page not blocked or not at its source",
					       segs[s].vpn + i);
			if (p->locked && !(flags & SUBLET__MAP_LOCKED))
				fake_violation(mm->fake, "remap loses a lock", segs[s].vpn + i);
			frame_unmap(mm, "remap from a frame of another page", p->pfn, segs[s].vpn + i);
			p->pfn = segs[s].dst_pfn + i;
			p->tracked = p->dirty = p->uninherited = false;
			p->locked = flags & SUBLET__MAP_LOCKED;
			frame_map(mm, "remap to a frame in use", p->pfn, segs[s].vpn + i);
		}
	pthread_mutex_unlock(&b->lock);
	return 0;
}

static void range_release(struct fake_mm *mm, uint32_t vpn, uint32_t pages, bool back_out)
{
	struct fake_block *b = lock_block(mm, vpn);

	if (mm->page[vpn].blocked)
		fake_thread_blocked--;
	for (uint32_t at = vpn; at < vpn + pages; at++) {
		struct fake_page *p = &mm->page[at];
		if (!p->blocked && !(back_out && (p->tracked || p->block_failed)))
			fake_violation(mm->fake,
				       back_out ? "unblock of a page not blocked"
						: "wake of a page not blocked",
				       at);
		p->blocked = p->tracked = p->dirty = p->block_failed = false;
	}
	pthread_cond_broadcast(&b->wake);
	pthread_mutex_unlock(&b->lock);
}

static void op_wake(void *ctx, uint32_t vpn, uint32_t pages)
{
	struct fake_mm *mm = ctx;
	fake_enter(mm->fake, FAKE_WAKE, mm, vpn, pages);
	if (range_ok(mm, "wake: range", vpn, pages))
		range_release(mm, vpn, pages, false);
}

static void op_unblock(void *ctx, uint32_t vpn, uint32_t pages)
{
	struct fake_mm *mm = ctx;
	fake_enter(mm->fake, FAKE_UNBLOCK, mm, vpn, pages);
	if (range_ok(mm, "unblock: range", vpn, pages))
		range_release(mm, vpn, pages, true);
}

/* ---- fork ---- */

static int op_privatize(void *ctx, const struct sublet__segment *segs, uint32_t count, uint32_t flags)
{
	struct fake_mm *mm = ctx;
	int err = fake_enter(mm->fake, FAKE_PRIVATIZE, mm, segs[0].vpn, count);

	if (err || !segs_ok(mm, "privatize: segments", segs, count))
		return err;
	struct fake_block *b = lock_block(mm, segs[0].vpn);
	for (uint32_t s = 0; s < count; s++)
		for (uint32_t i = 0; i < segs[s].pages; i++) {
			struct fake_page *p = &mm->page[segs[s].vpn + i];
			if (p->kind != FAKE_SHARED || p->blocked || p->pfn != segs[s].dst_pfn + i)
				fake_violation(mm->fake, "privatize of a page not shared, or elsewhere",
					       segs[s].vpn + i);
			if (p->locked && !(flags & SUBLET__MAP_LOCKED))
				fake_violation(mm->fake, "privatize loses a lock", segs[s].vpn + i);
			p->kind = FAKE_PRIVATE;
			p->uninherited = false;
		}
	pthread_mutex_unlock(&b->lock);
	return 0;
}

static int op_restore(void *ctx, const struct sublet__segment *segs, uint32_t count, uint32_t flags)
{
	struct fake_mm *mm = ctx;
	int err = fake_enter(mm->fake, FAKE_RESTORE, mm, segs[0].vpn, count);

	if (err || !segs_ok(mm, "restore: segments", segs, count))
		return err;
	struct fake_block *b = lock_block(mm, segs[0].vpn);
	for (uint32_t s = 0; s < count; s++)
		for (uint32_t i = 0; i < segs[s].pages; i++) {
			struct fake_page *p = &mm->page[segs[s].vpn + i];
			if ((p->kind != FAKE_PRIVATE && p->kind != FAKE_COPIED) ||
			    p->pfn != segs[s].dst_pfn + i)
				fake_violation(mm->fake, "restore of a page not private, or elsewhere",
					       segs[s].vpn + i);
			if (atomic_load(&mm->fake->child[p->pfn]))
				fake_violation(mm->fake, "restore while a child shares the frame", p->pfn);
			for (uint32_t w = 0; p->copy && w < FAKE_WORDS; w++)
				fake_frame_write(mm->fake, p->pfn, w, p->copy[w]);
			free(p->copy);
			p->copy = NULL;
			p->kind = FAKE_SHARED;
			p->locked = flags & SUBLET__MAP_LOCKED;
		}
	pthread_mutex_unlock(&b->lock);
	return 0;
}

static int op_inherit(void *ctx, uint32_t vpn, uint32_t pages, bool inherit)
{
	struct fake_mm *mm = ctx;
	int err = fake_enter(mm->fake, FAKE_INHERIT, mm, vpn, pages);

	if (!range_ok(mm, "inherit: range", vpn, pages))
		return err;
	struct fake_block *b = lock_block(mm, vpn);
	uint32_t done = err ? pages / 2 : pages; /* madvise stops at the mapping that it cannot split */
	for (uint32_t at = vpn; at < vpn + done; at++) {
		if (mm->page[at].kind == FAKE_NONE)
			fake_violation(mm->fake, "inherit of a page that is not there", at);
		mm->page[at].uninherited = !inherit;
	}
	pthread_mutex_unlock(&b->lock);
	return err;
}

void fake_child_fork(struct fake_child *child, struct fake_mm *mm)
{
	child->mm = mm;
	child->word = calloc((size_t)mm->pages * FAKE_WORDS, sizeof *child->word);
	child->frame = calloc(mm->pages, sizeof *child->frame);
	for (uint32_t block = 0; block * BLOCK_PAGES < mm->pages; block++)
		lock_block(mm, block * BLOCK_PAGES); /* one instant for all, as fork has it */
	for (uint32_t vpn = 0; vpn < mm->pages; vpn++) {
		const struct fake_page *p = &mm->page[vpn];
		if (p->kind == FAKE_NONE || p->uninherited)
			continue;
		if (p->kind == FAKE_SHARED)
			fake_violation(mm->fake, "fork with a shared page", vpn);
		if (p->kind == FAKE_PRIVATE) {
			child->frame[vpn] = p->pfn + 1;
			atomic_fetch_add(&mm->fake->child[p->pfn], 1);
		}
		for (uint32_t w = 0; w < FAKE_WORDS; w++)
			child->word[(size_t)vpn * FAKE_WORDS + w] = page_load(mm, p, w);
	}
	for (uint32_t block = 0; block * BLOCK_PAGES < mm->pages; block++)
		pthread_mutex_unlock(&mm->block[block].lock);
}

uint32_t fake_child_changed(const struct fake_child *child)
{
	uint32_t changed = 0;

	for (uint32_t vpn = 0; vpn < child->mm->pages; vpn++)
		for (uint32_t w = 0; child->frame[vpn] && w < FAKE_WORDS; w++)
			if (fake_frame_read(child->mm->fake, child->frame[vpn] - 1, w) !=
			    child->word[(size_t)vpn * FAKE_WORDS + w]) {
				changed++;
				break;
			}
	return changed;
}

void fake_child_exit(struct fake_child *child)
{
	for (uint32_t vpn = 0; vpn < child->mm->pages; vpn++)
		if (child->frame[vpn])
			atomic_fetch_sub(&child->mm->fake->child[child->frame[vpn] - 1], 1);
	free(child->word);
	free(child->frame);
}

/* ---- open, close ---- */

const struct sublet__mm_ops fake_mm_ops = {
	.map = op_map,
	.map_plain = op_map_plain,
	.unmap = op_unmap,
	.clear = op_clear,
	.track = op_track,
	.block = op_block,
	.dirty = op_dirty,
	.remap = op_remap,
	.wake = op_wake,
	.unblock = op_unblock,
	.privatize = op_privatize,
	.restore = op_restore,
	.inherit = op_inherit,
};

int fake_mm_open(struct fake *fake, uint32_t index)
{
	struct fake_mm *mm = &fake->mm[index];
	uint32_t blocks = (fake->options.mm_pages + BLOCK_PAGES - 1) / BLOCK_PAGES;

	mm->fake = fake;
	mm->index = index;
	mm->pages = fake->options.mm_pages;
	mm->base = (fake->options.base ? fake->options.base : 4ull << 30) + index * (1ull << 44);
	mm->page = calloc(mm->pages, sizeof *mm->page);
	mm->block = calloc(blocks, sizeof *mm->block);
	if (!mm->page || !mm->block)
		return -ENOMEM;
	for (uint32_t i = 0; i < blocks; i++) {
		pthread_mutex_init(&mm->block[i].lock, NULL);
		pthread_cond_init(&mm->block[i].wake, NULL);
	}
	return 0;
}

void fake_mm_close(struct fake_mm *mm)
{
	for (uint32_t vpn = 0; mm->page && vpn < mm->pages; vpn++)
		free(mm->page[vpn].copy);
	for (uint32_t i = 0; mm->block && i < (mm->pages + BLOCK_PAGES - 1) / BLOCK_PAGES; i++) {
		pthread_mutex_destroy(&mm->block[i].lock);
		pthread_cond_destroy(&mm->block[i].wake);
	}
	free(mm->page);
	free(mm->block);
}
