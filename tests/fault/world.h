/* SPDX-License-Identifier: MIT */
/*
 * A real arena with a program's bytes in it, and what has to hold after a call that failed: the whole-structure checker
 * finds nothing, every byte is the one that was written, no descriptor, mapping or thread is left behind, and the arena
 * goes on working.
 */
#ifndef TESTS_FAULT_WORLD_H
#define TESTS_FAULT_WORLD_H

#include <sublet/arena.h>
#include <sublet/bo.h>
#include <sublet/claim.h>
#include <sublet/client.h>
#include <sublet/device.h>
#include <sublet/iopt.h>
#include <sublet/map.h>
#include <sublet/notifier.h>
#include <sublet/pin.h>
#include <sublet/stats.h>

#include <pthread.h>
#include <stdatomic.h>

#define AREA_BYTES   (4 * SUBLET_MIB)
#define NORMAL_BYTES (4 * SUBLET_MIB)
#define HEAP_BYTES   ((size_t)1 << 20)
#define CACHE_BYTES  ((size_t)256 << 10)

/* Which way of moving, on which memory. */
struct way {
	const char *name;
	enum sublet_backing backing;
	enum sublet_technique technique;
};

struct world {
	const struct way *way;
	struct sublet_arena *arena;
	struct sublet_mm *mm;
	uint64_t *heap;  /* movable, HEAP_BYTES */
	uint64_t *cache; /* discardable, CACHE_BYTES; locked but where a test unlocks it */
	bool cache_is_locked;
	bool heap_is_checked; /* false while a test has part of it decommitted, say */
	struct sublet_stats before;
	uint32_t fds_before;

	/* what the call under test makes */
	void *memory;
	struct sublet_claim claim;
	struct sublet_pin pin;
	struct sublet_notifier notifier;
	struct sublet_iopt *iopt;
	struct sublet_device *device;
	struct sublet_bo bo;
	struct sublet_client *client;
	struct sublet_arena *arena2;
	struct sublet_mm *mm2;
	int fd;

	/* a program that writes all the time: the last word of each page of the heap */
	pthread_t writer;
	bool has_writer;
	_Atomic bool stop;
};

/* What a process holds; equal before the first arena and after the last. */
struct holdings {
	uint32_t fds;
	uint32_t threads;
	uint32_t mappings;
	uint64_t vm_kib;
};

struct holdings holdings_now(void);

/* Fail: one line to standard error, and exit with CHILD_WRONG. */
enum { CHILD_CLEAN = 0, CHILD_FAULTED = 3, CHILD_WRONG = 4, CHILD_SKIPPED = 77 };
_Noreturn void wrong(const char *format, ...) __attribute__((format(printf, 1, 2)));
#define must(what)                                                               \
	do {                                                                     \
		if (!(what))                                                     \
			wrong("%s:%d: not true: %s", __FILE__, __LINE__, #what); \
	} while (0)

/* Opened with its heap scattered over frames and filled. Exits with CHILD_SKIPPED where the machine has no such way. */
void world_open(struct world *w, const struct way *way);
/* Remember what is held now. */
void world_mark(struct world *w);
/*
 * After a call. failed: nothing may have changed since world_mark (G5). is_busy: another thread may be at the end of
 * something; then what is wrong has to stay so.
 */
void world_check(struct world *w, bool failed, bool is_busy);
/* The arena still does what it is for. */
void world_use(struct world *w);
void world_close(struct world *w);

void writer_start(struct world *w);
void writer_stop(struct world *w);

/* Every word of the heap as the program left it. */
uint64_t heap_word(size_t i);
void heap_check(const struct world *w);

#endif
