/* SPDX-License-Identifier: MIT */
#include "world.h"

#include "core/engine.h"
#include "inject.h"
#include "linux/instance.h"

#include <dirent.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define WORDS       (HEAP_BYTES / 8)
#define PAGE_WORDS  512u
#define SCATTERINGS 24u

_Noreturn void wrong(const char *format, ...)
{
	va_list args;

	inject_disarm();
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	_exit(CHILD_WRONG);
}

/* ---- what the process holds ---- */

static uint32_t entries(const char *path)
{
	DIR *dir = opendir(path);
	uint32_t count = 0;

	must(dir);
	while (readdir(dir))
		count++;
	closedir(dir);
	return count;
}

struct holdings holdings_now(void)
{
	struct holdings h = { .fds = entries("/proc/self/fd"), .threads = entries("/proc/self/task") };
	FILE *f = fopen("/proc/self/maps", "re");
	unsigned long long pages;

	must(f);
	for (int c = getc(f); c != EOF; c = getc(f))
		h.mappings += c == '\n';
	fclose(f);
	f = fopen("/proc/self/statm", "re");
	must(f && fscanf(f, "%llu", &pages) == 1);
	fclose(f);
	h.vm_kib = pages * 4;
	return h;
}

/* ---- the program's bytes ---- */

uint64_t heap_word(size_t i)
{
	return (i + 1) * 0x9E3779B97F4A7C15ull;
}

/* The writer's words are not the heap's. */
static bool is_writers(size_t i)
{
	return i % PAGE_WORDS == PAGE_WORDS - 1;
}

void heap_check(const struct world *w)
{
	for (size_t i = 0; i < WORDS; i++)
		if (!is_writers(i) && ((volatile uint64_t *)w->heap)[i] != heap_word(i))
			wrong("word %zu of the heap is %#llx, not %#llx (G1)", i,
			      (unsigned long long)w->heap[i], (unsigned long long)heap_word(i));
}

static void cache_check(const struct world *w)
{
	for (size_t i = 0; i < CACHE_BYTES / 8; i++)
		if (((volatile uint64_t *)w->cache)[i] != ~heap_word(i))
			wrong("word %zu of locked discardable memory has changed (G1)", i);
}

static void *writer_main(void *arg)
{
	struct world *w = arg;

	inject_spare();
	for (uint64_t round = 1; !w->stop; round++)
		for (size_t i = PAGE_WORDS - 1; i < WORDS && !w->stop; i += PAGE_WORDS) {
			volatile uint64_t *word = &w->heap[i];
			/* Each adds one: a write that went to a frame no more in use is missed by the next. */
			uint64_t seen = *word;
			if (seen != (round - 1) * WORDS + i)
				wrong("the writer's word %zu was lost (G1)", i);
			*word = round * WORDS + i;
		}
	return NULL;
}

void writer_start(struct world *w)
{
	for (size_t i = PAGE_WORDS - 1; i < WORDS; i += PAGE_WORDS)
		w->heap[i] = i;
	w->stop = false;
	must(!pthread_create(&w->writer, NULL, writer_main, w));
	w->has_writer = true;
}

void writer_stop(struct world *w)
{
	if (!w->has_writer)
		return;
	w->stop = true;
	pthread_join(w->writer, NULL);
	w->has_writer = false;
}

/* ---- the world ---- */

static void fill(struct world *w)
{
	void *memory;

	must(!sublet_map(w->mm, HEAP_BYTES, SUBLET_MOVABLE, &memory));
	w->heap = memory;
	for (size_t i = 0; i < WORDS; i++)
		w->heap[i] = heap_word(i);
	/* Off the first frames and apart, so that a window to be emptied has several runs in it. */
	for (uint64_t i = 0; i < SCATTERINGS; i++)
		(void)sublet__chaos_move(w->arena, w->mm, i * 0x9E3779B97F4A7C15ull);
	must(!sublet_map(w->mm, CACHE_BYTES, SUBLET_DISCARDABLE, &memory));
	w->cache = memory;
	for (size_t i = 0; i < CACHE_BYTES / 8; i++)
		w->cache[i] = ~heap_word(i);
}

void world_open(struct world *w, const struct way *way)
{
	struct sublet_arena_options options = { SUBLET_OPTIONS(sublet_arena_options),
						.area_bytes = AREA_BYTES,
						.normal_bytes = NORMAL_BYTES,
						.window_bytes = 64 * SUBLET_MIB,
						.backing = way->backing,
						.technique = way->technique,
						.workers = 1 };

	*w = (struct world){ .way = way, .cache_is_locked = true, .heap_is_checked = true, .fd = -1 };
	int err = sublet_arena_create(&options, &w->arena);
	if (err) {
		fprintf(stderr, "no arena: %s\n", strerror(-err));
		_exit(CHILD_SKIPPED);
	}
	w->mm = sublet_arena_mm(w->arena);
	/* It would change the structures that are checked, and is a thread whose calls nobody counts. */
	sublet__zeroer_stop(sublet__instance_of(w->arena));
	fill(w);
}

static struct sublet_stats stats_now(struct world *w)
{
	struct sublet_stats stats = { SUBLET_OPTIONS(sublet_stats) };

	must(!sublet_arena_stats(w->arena, &stats));
	return stats;
}

void world_mark(struct world *w)
{
	w->before = stats_now(w);
	w->fds_before = entries("/proc/self/fd");
}

/* Moves change where bytes are, and a claim that fails may have dropped what may be dropped: but no more than that. */
static void stats_check(struct world *w)
{
	const struct sublet_stats now = stats_now(w), *old = &w->before;
	uint64_t dropped = now.dropped_bytes - old->dropped_bytes;
	uint64_t free_now = now.area_free_bytes + now.normal_free_bytes;
	uint64_t free_old = old->area_free_bytes + old->normal_free_bytes;

#define SAME(what, want)                                                                     \
	do {                                                                                 \
		if (now.what != (want))                                                      \
			wrong(#what " is %llu, was %llu (G5)", (unsigned long long)now.what, \
			      (unsigned long long)(want));                                   \
	} while (0)
	SAME(lent_bytes, old->lent_bytes - dropped);
	SAME(plain_bytes, old->plain_bytes);
	SAME(area_claimed_bytes, old->area_claimed_bytes);
	SAME(area_held_bytes, old->area_held_bytes);
	SAME(area_isolated_bytes, 0);
	SAME(claims_held, old->claims_held);
	SAME(longterm_bytes, old->longterm_bytes);
	SAME(notifiers, old->notifiers);
	SAME(children, old->children);
#undef SAME
	if (free_now != free_old + dropped)
		wrong("%llu bytes are free, were %llu (G8)", (unsigned long long)free_now,
		      (unsigned long long)free_old);
}

/* ---- what the kernel has mapped against what the engine knows ---- */

enum { NOTHING, FRAME, PLAIN, EITHER };

/* What has to be at a page, and at which frame. A hole keeps its memory mapped or not. */
static int page_wanted(const struct sublet_arena *arena, uint32_t pte, uint32_t *pfn)
{
	if (pte_is_plain(pte))
		return pte & PTE_HOLE ? EITHER : PLAIN;
	if (!(pte & PTE_PRESENT))
		return NOTHING;
	*pfn = pte_pfn(pte);
	uint32_t word = a32_load_relaxed(&arena->frames[sublet__frame_head(arena, *pfn)].word);
	return word_state(word) == FRAME_DISCARDABLE ? NOTHING : FRAME;
}

static void page_check(const struct world *w, const struct sublet_mm *mm, uint32_t vpn, const char *how,
		       unsigned long long offset, unsigned long ino)
{
	const struct sublet__backing *b = &sublet__instance_of(w->arena)->backing;
	uint32_t pfn = 0;
	int wanted = page_wanted(w->arena, a32_load_relaxed(&mm->pte[vpn]), &pfn);
	int have = how[0] != 'r' ? NOTHING : ino == b->ino ? FRAME : PLAIN;

	if (wanted == EITHER)
		return;
	if (have != wanted || (have == FRAME && offset != b->fd_offset + ((uint64_t)pfn << b->frame_shift)))
		wrong("page %u is mapped \"%s\" at %#llx of file %lu, but should be %s, frame %u (G9)", vpn,
		      how, offset, ino, (const char *[]){ "nothing", "a frame", "plain memory" }[wanted],
		      pfn);
}

/* Every page of the window leads where the page table says; what nobody owns leads nowhere. */
static void kernel_check(const struct world *w)
{
	const struct sublet_mm *mm = w->mm;
	uint32_t shift = sublet__instance_of(w->arena)->backing.frame_shift;
	uint64_t base = mm->config.base, end = base + ((uint64_t)mm->config.pages << shift);
	unsigned long long from, to, offset;
	unsigned long ino;
	char line[512], how[8];
	FILE *f = fopen("/proc/self/maps", "re");

	must(f);
	while (fgets(line, sizeof line, f)) {
		must(sscanf(line, "%llx-%llx %7s %llx %*s %lu", &from, &to, how, &offset, &ino) == 5);
		for (uint64_t at = from > base ? from : base; at < to && at < end; at += (uint64_t)1 << shift)
			page_check(w, mm, (uint32_t)((at - base) >> shift), how, offset + (at - from), ino);
	}
	fclose(f);
}

void world_check(struct world *w, bool failed, bool is_busy)
{
	char text[160];

	writer_stop(w);
	for (int tries = 0; sublet__arena_verify(w->arena, text, sizeof text); tries++)
		if (!is_busy || tries == 1000)
			wrong("verify: %s", text);
		else
			usleep(1000);
	kernel_check(w);
	if (w->heap_is_checked)
		heap_check(w);
	if (w->cache_is_locked)
		cache_check(w);
	if (!failed)
		return;
	stats_check(w);
	uint32_t fds = entries("/proc/self/fd");
	if (fds > w->fds_before)
		wrong("%u descriptors, %u before", fds, w->fds_before);
}

void world_use(struct world *w)
{
	const struct sublet_claim_options options = { SUBLET_OPTIONS(sublet_claim_options),
						      .flags = SUBLET_CLAIM_DEAREST };
	struct sublet_claim claim;
	void *memory;
	int err = sublet_claim(w->arena, AREA_BYTES / 2, &options, &claim);

	if (err)
		wrong("afterwards a claim fails: %s", strerror(-err));
	must(!sublet_release(w->arena, &claim));
	err = sublet_map(w->mm, SUBLET_MIB, SUBLET_MOVABLE | SUBLET_PLAIN_OK, &memory);
	if (err)
		wrong("afterwards a map fails: %s", strerror(-err));
	memset(memory, 1, SUBLET_MIB);
	must(!sublet_unmap(w->mm, memory, SUBLET_MIB));
	world_check(w, false, false);
}

void world_close(struct world *w)
{
	must(!sublet_arena_destroy(w->arena));
}
