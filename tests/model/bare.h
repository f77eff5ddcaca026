/* SPDX-License-Identifier: MIT */
/*
 * bare.h: an arena of nothing but frames, counts and the chooser's tree: what core/zone.c and core/window.c stand on.
 *
 * Opening it costs microseconds, so that all small cases can be gone through, and its pageblocks may be as small as a
 * test likes. Bytes are a flag a frame: something other than zero is in it.
 */
#ifndef TESTS_MODEL_BARE_H
#define TESTS_MODEL_BARE_H

#include "core/engine.h"

#define BARE_FRAMES_MAX 8192u

struct bare {
	struct sublet_arena arena;
	bool written[BARE_FRAMES_MAX]; /* the frame's bytes are not all zero */
	uint32_t zeroed_pfn;           /* of the last zeroing */
	uint32_t zeroed_frames;
};

/* Frames in whole pageblocks; the area and the normal zone are free, and their bytes zero if `zeroed`. */
void bare_open(struct bare *b, uint32_t area_frames, uint32_t normal_frames, uint32_t pageblock_order,
	       bool zeroed);
void bare_close(struct bare *b);

#endif
