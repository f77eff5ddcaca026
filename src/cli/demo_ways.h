/* SPDX-License-Identifier: MIT */
/* cli/demo_ways.h: the same device work through claimed, pinned and tracked buffers, side by side. */
#ifndef SUBLET_CLI_DEMO_WAYS_H
#define SUBLET_CLI_DEMO_WAYS_H

#include "cli/demo.h"

#include <cjson/cJSON.h>
#include <sublet/bo.h>
#include <sublet/map.h>

#include <pthread.h>

enum sublet__way {
	SUBLET__WAY_CLAIMED = 0,
	SUBLET__WAY_PINNED,
	SUBLET__WAY_TRACKED,
	SUBLET__WAYS,
};

#define SUBLET__WAYS_BUFFERS        8u /* of each kind, one frame each */
#define SUBLET__WAYS_BYTES          ((uint64_t)SUBLET__WAYS_BUFFERS * SUBLET__FRAME_BYTES)
#define SUBLET__WAYS_CLAIM_BYTES    (32 * SUBLET_MIB)
#define SUBLET__WAYS_PERIOD_NS      (40 * SUBLET_MS) /* from one claim to the next */
#define SUBLET__WAYS_THREADS        2u               /* that write and read lent memory */
#define SUBLET__WAYS_CHUNKS         4u               /* of memory, each thread */
#define SUBLET__WAYS_CHUNK_BYTES    (16 * SUBLET_MIB)
#define SUBLET__WAYS_ORDINARY_BYTES (SUBLET__WAYS_THREADS * SUBLET__WAYS_CHUNKS * SUBLET__WAYS_CHUNK_BYTES)
#define SUBLET__WAYS_CLAIMS_MAX     4096u

/* What happened while the device worked in one way. */
struct sublet__way_result {
	uint64_t elapsed_ns;
	uint64_t bytes; /* that the device put into buffers, all of them checked */
	uint64_t good;  /* buffers that held what they should */
	uint64_t wrong;
	uint64_t binds;
	uint64_t rebinds;
	uint64_t evictions;
	uint64_t registrations;
	uint64_t pages; /* that the ordinary threads checked and wrote */

	uint32_t claims; /* of another window; tried */
	uint32_t claims_succeeded;
	uint64_t waited; /* claims that waited for somebody */
	uint64_t moved_bytes;
	char blocker[160]; /* who was in the way of the first claim that failed; "" while none has */
	uint64_t latency_ns[SUBLET__WAYS_CLAIMS_MAX]; /* of successful claims; in the end ascending */
};

/* How many of latency_ns there are. */
static inline uint32_t sublet__way_latencies(const struct sublet__way_result *r)
{
	return r->claims_succeeded < SUBLET__WAYS_CLAIMS_MAX ? r->claims_succeeded : SUBLET__WAYS_CLAIMS_MAX;
}

/* ---- what goes on beside the device (demo_ways_load.c) ---- */

struct sublet__ways_thread {
	pthread_t thread;
	bool has_thread;
	struct sublet__ways_load *load;
	uint64_t *chunk[SUBLET__WAYS_CHUNKS]; /* lent */
	uint32_t *version;
	uint64_t seed;
	_Atomic uint64_t pages; /* checked and written */
	_Atomic uint64_t wrong;
};

struct sublet__ways_load {
	struct sublet_arena *arena;
	struct sublet__ways_thread ordinary[SUBLET__WAYS_THREADS];
	struct sublet__ways_thread claimer;
	_Atomic bool stop;
	_Atomic uint32_t way; /* SUBLET__WAYS: none, between two */
	/* One more for what happens between two ways. Written by the claimer until it ends. */
	struct sublet__way_result result[SUBLET__WAYS + 1];
	_Atomic uint64_t
		windows_wrong; /* claimed windows that were not zero, or that somebody else wrote to */
};

/* Map chunk i < SUBLET__WAYS_THREADS * SUBLET__WAYS_CHUNKS for an ordinary thread. -errno */
int sublet__ways_load_map(struct sublet__ways_load *load, uint32_t i);
/* All chunks are mapped: fill them, and start all threads. -errno; stop it in any case. */
int sublet__ways_load_start(struct sublet__ways_load *load);
/* End all threads; check each page once more. */
void sublet__ways_load_stop(struct sublet__ways_load *load);
/* Pages that the ordinary threads checked and wrote so far; and those that were wrong. */
uint64_t sublet__ways_load_pages(const struct sublet__ways_load *load);
uint64_t sublet__ways_load_wrong(const struct sublet__ways_load *load);

/* ---- all of it (demo_ways.c) ---- */

struct sublet__ways_options {
	const char *folder; /* on a file system that reads with O_DIRECT */
	uint32_t rounds;    /* 1 .. SUBLET__ROUNDS_MAX */
	uint64_t each_ns;   /* of one way in one round */
};

struct sublet__ways_results {
	bool is_soft; /* no io_uring: the devices fill and sum buffers by themselves */
	char why_soft[64];
	uint32_t rounds; /* finished */
	uint64_t each_ns;
	uint64_t area_bytes;
	uint64_t normal_bytes;
	uint64_t bad_accesses; /* that the device noticed by itself: "soft" only */
	uint64_t elapsed_ns;
	struct sublet__ways_load load;
};

/* Prints why it cannot; -errno. An interruption is -EINTR. */
int sublet__ways_run(const struct sublet__ways_options *options, struct sublet__ways_results *results);

/* ---- results (demo_ways_report.c) ---- */

/* Whether all data was right and every claim succeeded. */
bool sublet__ways_good(const struct sublet__ways_results *results);
void sublet__ways_print(struct sublet__ways_results *results);
void sublet__ways_json(cJSON *object, struct sublet__ways_results *results);

#endif
