/* SPDX-License-Identifier: MIT */
/* linux/limit.h: what an arena adds to each limit of a process, and which limit refused one (docs/limits.md). */
#ifndef SUBLET_LINUX_LIMIT_H
#define SUBLET_LINUX_LIMIT_H

#include <sublet/arena.h>

/*
 * Open files of the helper process: some twenty, and those of the connections that it serves. Its soft limit is the hard
 * one.
 */
#define SUBLET__DESCRIPTORS_LEAST 32u
/* Ordinary memory beside an arena, of its threads, its server and malloc's own structures; in bytes. */
#define SUBLET__BESIDE_BYTES (16 * SUBLET_MIB)

#define SUBLET__LIMIT_TEXT_BYTES 512

struct sublet__limit_need {
	uint64_t addresses_bytes; /* RLIMIT_AS: with the smallest window */
	uint64_t data_bytes;      /* RLIMIT_DATA: the same */
};

/* What an arena of these sizes takes at least. */
struct sublet__limit_need sublet__limit_need(uint64_t area_bytes, uint64_t normal_bytes);

/*
 * The largest window, up to `wanted`, that leaves the program most of what RLIMIT_AS and RLIMIT_DATA allow it; never
 * below the smallest that works.
 */
uint64_t sublet__limit_window(uint64_t area_bytes, uint64_t wanted_bytes);

/* The most that area and normal zone may have together under RLIMIT_AS, RLIMIT_DATA and RLIMIT_FSIZE of this process. */
uint64_t sublet__limit_fitting_bytes(void);

/*
 * Which limit refuses an arena of these sizes and this backing to this process, as the end of a sentence: its name, and
 * the least value that works. err: what sublet_arena_create answered; -ENOMEM also before it is asked. False: no limit
 * that can be seen.
 */
bool sublet__limit_explain(int err, const struct sublet_arena_options *options,
			   char text[SUBLET__LIMIT_TEXT_BYTES]);

#endif
