/* SPDX-License-Identifier: MIT */
/*
 * mm_world.h: an address space of src/linux without the engine, for the tests of its operations. mm_world.c includes
 * mm.c and private.c, so that a chosen system call of theirs can be made to fail.
 */
#ifndef SUBLET_TESTS_LINUX_MM_WORLD_H
#define SUBLET_TESTS_LINUX_MM_WORLD_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "linux/copy.h"
#include "linux/mm.h"
#include "linux/proc.h"
#include "linux/uapi.h"

#include <stdatomic.h>
#include <stdbool.h>

#define LEN          ((size_t)16 << 20)
#define FRAMES_BYTES ((size_t)48 << 20)
#define SLOT_BYTES   ((size_t)256)
#define SLOTS        (LEN / SLOT_BYTES)
#define UNITS_MAX    (FRAMES_BYTES >> 16)
#define SEED_SALT    0x9E3779B97F4A7C15ull

/* A chosen mmap fails. 1: the next one; 0: none. */
extern __thread int mmap_fails_in;
extern bool mmap_unmaps; /* before it fails, as kernels before 6.12 may */
extern bool scan_fails;  /* as on kernels before 6.7 */

struct world {
	struct sublet__backing backing;
	struct sublet__linux_mm mm;
	uint8_t *va;
	uint32_t unit_pages;         /* frames are handed out in units: 64 KiB, or one huge page */
	uint32_t units;              /* of the range */
	uint32_t unit_of[UNITS_MAX]; /* place in the range -> unit of frames */
	uint32_t free_units[UNITS_MAX];
	uint32_t free_count;
	uint64_t shadow[SLOTS]; /* last value stored in each slot, by its one writer */
	_Atomic bool stop;
	_Atomic uint64_t wrong, failed_calls, stores, calls, loads;
	uint64_t random;
	bool skip_recopy; /* the planted bug */
	uint64_t moves, backed_out, recopied;
};

extern struct world W;

#define KINDS 3
extern const enum sublet_backing kinds[KINDS];

uint64_t next_random(uint64_t *s);
/* What a word holds that nobody wrote to. */
uint64_t filler(size_t word);
/* False: not to be had here, and said so. */
bool world_open(enum sublet_backing kind, enum sublet_technique technique);
/* Map all of the range, and fill it. */
void world_fill(void);
void world_close(void);
/* Call test in each kind of world that is to be had, filled. */
void each_world(void (*test)(void));
struct sublet__segment segment(uint32_t place, uint32_t units, uint32_t src_unit, uint32_t dst_unit);
/* Every word, through its address and through the linear map. */
uint64_t world_wrong_words(void);

#endif
