/* SPDX-License-Identifier: MIT */
/*
 * The functions of glibc's malloc.h that jemalloc does not have.
 *
 * jemalloc defines what C and POSIX name, memalign, valloc and malloc_usable_size. The others would be libc's own, on
 * a heap of its own: pvalloc's result could not be freed, malloc_trim would trim nothing and
 * mallinfo would count nothing. So all of it is defined here, on jemalloc's heap:
 *
 *   pvalloc, reallocarray, cfree, free_sized, free_aligned_sized, __libc_malloc and its kin
 *                               jemalloc's functions
 *   malloc_trim                 gives back what jemalloc keeps for later
 *   mallinfo, mallinfo2, malloc_stats, malloc_info
 *                               jemalloc's figures, as one arena
 *   mallopt                     accepted without effect, as far as it only tunes; M_PERTURB is refused, since it
 *                               asks for something that can be seen
 *
 * None of these calls a definition that stands behind jemalloc, so that libraries of the program's that wrap them
 * cannot be met again (redirect.c).
 */
#include "bridge/bridge.h"
#include "bridge/symbols.h"

#include <errno.h>
#include <limits.h>
#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#pragma GCC diagnostic ignored "-Wdeprecated-declarations" /* mallinfo: its figures are ints */

/* Not, or no longer, in every libc's headers. */
void cfree(void *addr);
void free_sized(void *addr, size_t bytes);
void free_aligned_sized(void *addr, size_t alignment, size_t bytes);
void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t count, size_t bytes);
void *__libc_realloc(void *addr, size_t bytes);
void *__libc_memalign(size_t alignment, size_t bytes);
void *__libc_valloc(size_t bytes);
void __libc_free(void *addr);

bool sublet__malloc_has(const char *name)
{
	static const char *const names[] = {
		"__libc_calloc",      "__libc_free",    "__libc_mallinfo", "__libc_malloc", "__libc_mallopt",
		"__libc_memalign",    "__libc_pvalloc", "__libc_realloc",  "__libc_valloc", "cfree",
		"free_aligned_sized", "free_sized",     "mallinfo",        "mallinfo2",     "malloc_info",
		"malloc_stats",       "malloc_trim",    "mallopt",         "pvalloc",       "reallocarray",
	};

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (strcmp(names[i], name) == 0)
			return true;
	return false;
}

/* ---- allocating ---- */

SUBLET__INTERPOSER void *__libc_malloc(size_t bytes)
{
	return SUBLET__BEHIND(malloc)(bytes);
}

SUBLET__INTERPOSER void *__libc_calloc(size_t count, size_t bytes)
{
	return SUBLET__BEHIND(calloc)(count, bytes);
}

SUBLET__INTERPOSER void *__libc_realloc(void *addr, size_t bytes)
{
	return SUBLET__BEHIND(realloc)(addr, bytes);
}

SUBLET__INTERPOSER void *__libc_memalign(size_t alignment, size_t bytes)
{
	return SUBLET__BEHIND(memalign)(alignment, bytes);
}

SUBLET__INTERPOSER void *__libc_valloc(size_t bytes)
{
	return SUBLET__BEHIND(valloc)(bytes);
}

/* Whole pages. */
SUBLET__INTERPOSER void *pvalloc(size_t bytes)
{
	size_t page = (size_t)getpagesize(), whole;

	if (bytes > PTRDIFF_MAX) {
		errno = ENOMEM;
		return NULL;
	}
	whole = (bytes + page - 1) & ~(page - 1);
	return SUBLET__BEHIND(memalign)(page, whole != 0 ? whole : page);
}
SUBLET__ALIAS(__libc_pvalloc, pvalloc);

SUBLET__INTERPOSER void *reallocarray(void *addr, size_t count, size_t bytes)
{
	size_t whole;

	if (__builtin_mul_overflow(count, bytes, &whole)) {
		errno = ENOMEM;
		return NULL;
	}
	return SUBLET__BEHIND(realloc)(addr, whole);
}

/* ---- freeing ---- */

SUBLET__INTERPOSER void __libc_free(void *addr)
{
	SUBLET__BEHIND(free)(addr);
}
SUBLET__ALIAS(cfree, __libc_free);

/* The size is a promise of the caller's, of which nothing depends here. */
SUBLET__INTERPOSER void free_sized(void *addr, size_t bytes)
{
	(void)bytes;
	SUBLET__BEHIND(free)(addr);
}

SUBLET__INTERPOSER void free_aligned_sized(void *addr, size_t alignment, size_t bytes)
{
	(void)alignment, (void)bytes;
	SUBLET__BEHIND(free)(addr);
}

/* ---- figures ---- */

/* The program's own jemalloc, if it has one, is not asked: like its malloc, it is none of libc's. */
static int control(const char *name, void *old, size_t *old_bytes, void *new, size_t new_bytes)
{
	static _Atomic(void *) slot;
	void *found = sublet__symbols_behind(&slot, "mallctl");

	if (found == NULL)
		return ENOENT;
	return (__extension__(int (*)(const char *, void *, size_t *, void *, size_t))
			found)(name, old, old_bytes, new, new_bytes);
}

static size_t figure(const char *name)
{
	size_t value = 0, bytes = sizeof(value);

	return control(name, &value, &bytes, NULL, 0) == 0 ? value : 0;
}

static void refresh(void)
{
	uint64_t epoch = 1;

	(void)control("epoch", NULL, NULL, &epoch, sizeof(epoch));
}

/* 4096 stands for all arenas. */
static size_t kept_pages(void)
{
	refresh();
	return figure("stats.arenas.4096.pdirty") + figure("stats.arenas.4096.pmuzzy");
}

/* The padding to keep is for a heap that ends somewhere. 1: memory was given back. */
SUBLET__INTERPOSER int malloc_trim(size_t pad)
{
	size_t before;

	(void)pad;
	(void)control("thread.tcache.flush", NULL, NULL, NULL, 0);
	before = kept_pages();
	(void)control("arena.4096.purge", NULL, NULL, NULL, 0);
	return kept_pages() < before;
}

/* "arena": what malloc has for the program, of which uordblks is in use and fordblks is not. */
static struct mallinfo2 usage(void)
{
	struct mallinfo2 info = { 0 };

	refresh();
	info.arena = figure("stats.active") +
		     (figure("stats.arenas.4096.pdirty") + figure("stats.arenas.4096.pmuzzy")) *
			     figure("arenas.page");
	info.uordblks = figure("stats.allocated");
	if (info.uordblks > info.arena)
		info.uordblks = info.arena; /* the figures are not of one moment */
	info.fordblks = info.arena - info.uordblks;
	info.keepcost = info.arena - figure("stats.active");
	return info;
}

SUBLET__INTERPOSER struct mallinfo2 mallinfo2(void)
{
	return usage();
}

static int at_most_int(size_t value)
{
	return value < INT_MAX ? (int)value : INT_MAX;
}

SUBLET__INTERPOSER struct mallinfo mallinfo(void)
{
	struct mallinfo2 wide = usage();

	return (struct mallinfo){
		.arena = at_most_int(wide.arena),
		.uordblks = at_most_int(wide.uordblks),
		.fordblks = at_most_int(wide.fordblks),
		.keepcost = at_most_int(wide.keepcost),
	};
}
SUBLET__ALIAS(__libc_mallinfo, mallinfo);

/* In libc's form, of which programs that show it know the words. */
SUBLET__INTERPOSER void malloc_stats(void)
{
	struct mallinfo2 info = usage();

	(void)fprintf(stderr, "Total (incl. mmap):\nsystem bytes     = %10zu\nin use bytes     = %10zu\n",
		      info.arena, info.uordblks);
}

SUBLET__INTERPOSER int malloc_info(int options, FILE *stream)
{
	struct mallinfo2 info;

	if (options != 0)
		return EINVAL;
	info = usage();
	(void)fprintf(
		stream,
		"<malloc version=\"1\">\n<total type=\"rest\" count=\"0\" size=\"%zu\"/>\n"
		"<system type=\"current\" size=\"%zu\"/>\n<aspace type=\"total\" size=\"%zu\"/>\n</malloc>\n",
		info.fordblks, info.arena, info.arena);
	return 0;
}

/* 1: accepted. */
SUBLET__INTERPOSER int mallopt(int parameter, int value)
{
	(void)value;
	switch (parameter) {
	case M_MXFAST:
	case M_TRIM_THRESHOLD:
	case M_TOP_PAD:
	case M_MMAP_THRESHOLD:
	case M_MMAP_MAX:
	case M_CHECK_ACTION:
	case M_ARENA_TEST:
	case M_ARENA_MAX:
		return 1;
	default:
		return 0;
	}
}
SUBLET__ALIAS(__libc_mallopt, mallopt);
