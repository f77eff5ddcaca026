/* SPDX-License-Identifier: MIT */
/*
 * fake_platform.h: a SIMULATED platform, for unit tests of the engine only.
 *
 * No kernel is asked for anything. A frame of the linear map is FAKE_WORDS words of malloc'd memory,
 * whatever the frame size that the engine is told; an address space is an array of page slots; the
 * program's loads and stores are fake_read and fake_write. Stores wait while a page is blocked, mark
 * it dirty while it is tracked, and copy it while it is private, as the kernel would have it.
 *
 * Everything that the contract in core/platform.h forbids is noticed and counted as a violation; a
 * frame has at most one user at any time (a page, a claim of the test, a device that holds it), and
 * whoever copies over, zeroes or maps a frame in use is caught (G2, G8, G9).
 */
#ifndef TESTS_UNIT_FAKE_PLATFORM_H
#define TESTS_UNIT_FAKE_PLATFORM_H

#include "core/arena.h"

#include <pthread.h>
#include <stdatomic.h>

#define FAKE_WORDS      8u /* of 64 bits, for each frame */
#define FAKE_MMS_MAX    4u
#define FAKE_TEXT_BYTES 256

enum fake_op {
	FAKE_MAP = 0,
	FAKE_MAP_PLAIN,
	FAKE_UNMAP,
	FAKE_CLEAR,
	FAKE_TRACK,
	FAKE_BLOCK,
	FAKE_DIRTY,
	FAKE_REMAP,
	FAKE_WAKE,
	FAKE_UNBLOCK,
	FAKE_PRIVATIZE,
	FAKE_RESTORE,
	FAKE_INHERIT,
	FAKE_COPY,
	FAKE_ZERO,
	FAKE_SLEEP,
	FAKE_SLOT,
	FAKE_RESERVE,
	FAKE_OPS,
};

#define FAKE_CAN_FAIL                                                                                     \
	(1u << FAKE_MAP | 1u << FAKE_MAP_PLAIN | 1u << FAKE_UNMAP | 1u << FAKE_TRACK | 1u << FAKE_BLOCK | \
	 1u << FAKE_REMAP | 1u << FAKE_PRIVATIZE | 1u << FAKE_RESTORE | 1u << FAKE_INHERIT |              \
	 1u << FAKE_RESERVE)

enum fake_kind { FAKE_NONE = 0, FAKE_SHARED, FAKE_PRIVATE, FAKE_COPIED, FAKE_PLAIN };

struct fake_page {
	uint8_t kind;
	bool locked;
	bool tracked;
	bool dirty;
	bool blocked;
	bool block_failed;
	bool uninherited; /* no child gets it */
	uint32_t pfn;
	uint64_t *copy; /* FAKE_COPIED, FAKE_PLAIN: the words */
};

struct fake_block {
	pthread_mutex_t lock; /* protects the pages of one page-table block */
	pthread_cond_t wake;
};

struct fake;

struct fake_mm {
	struct fake *fake;
	uint32_t index;
	uint32_t pages;
	uint64_t base;
	struct fake_page *page;
	struct fake_block *block;
};

struct fake_options {
	uint32_t frame_shift;   /* 0: 12 */
	uint32_t area_frames;   /* 0: 8 pageblocks */
	uint32_t normal_frames; /* of pageblock size; NORMAL_NONE: none; 0: 2 pageblocks */
	uint32_t run_pages_max; /* 0: 64 */
	uint32_t workers;       /* 0: 1 */
	uint32_t mm_pages;      /* 0: four times the area */
	uint32_t mms;           /* 0: 1 */
	uint32_t mapping_limit; /* 0: no limit to speak of */
	uint64_t base;          /* 0: 4 GiB, 8 GiB, ... */
	bool stays;             /* as under valgrind: nothing moves */
	bool no_track;
	bool virtual_time;
	bool dirty_zero_frames; /* frames hold garbage at first, and the engine is told so */
	bool reads_wait;
};

#define FAKE_NORMAL_NONE UINT32_MAX

struct fake {
	struct fake_options options;
	struct sublet__platform platform;
	struct sublet_arena *arena;
	uint32_t frames;
	_Atomic uint64_t *word;  /* frames * FAKE_WORDS */
	_Atomic uint64_t *owner; /* of a frame: 0 none, else see fake_mm.c */
	_Atomic uint32_t *held;  /* devices that hold a frame */
	_Atomic uint32_t *child; /* children of fork that share a frame */
	struct fake_mm mm[FAKE_MMS_MAX];
	struct sublet_mm *engine_mm[FAKE_MMS_MAX];
	pthread_mutex_t workers_lock; /* parallel() is running */
	_Atomic uint64_t clock_ns;    /* virtual time */
	_Atomic int64_t reserved_bytes;
	_Atomic uint64_t zeroed_warm, zeroed_cold; /* frames */
	_Atomic uint32_t parallel_calls;

	/* failures: the fail_at-th call (from 1) of those in fail_mask fails with fail_errno */
	_Atomic uint32_t fail_mask;
	_Atomic int64_t fail_at;
	_Atomic bool fail_persistent;
	int fail_errno;
	_Atomic int64_t fail_count;

	_Atomic uint64_t calls[FAKE_OPS];
	/* Called at the start of each op, no lock held; mm NULL and vpn the pfn for copy and zero. */
	void (*hook)(void *arg, enum fake_op op, struct fake_mm *mm, uint32_t vpn, uint32_t pages);
	void *hook_arg;

	_Atomic uint32_t violations;
	char text[FAKE_TEXT_BYTES]; /* of the first one */
};

/* Create the platform, the arena and its mms. Returns 0 or -errno of the engine. */
int fake_open(struct fake *fake, const struct fake_options *options);
/* Free everything; a test checks violations before. */
void fake_close(struct fake *fake);

/* ---- the program's accesses; false: it would have got a SIGSEGV ---- */
bool fake_write(struct fake_mm *mm, uint32_t vpn, uint32_t word, uint64_t value);
bool fake_read(struct fake_mm *mm, uint32_t vpn, uint32_t word, uint64_t *value);
enum fake_kind fake_kind_of(struct fake_mm *mm, uint32_t vpn);
uint32_t fake_pfn_of(struct fake_mm *mm, uint32_t vpn);
bool fake_locked(struct fake_mm *mm, uint32_t vpn);
/* What /proc/pid/maps would count in the window, from its first mapped page to its last. */
uint32_t fake_mappings(struct fake_mm *mm);

/* ---- devices and owners of frames ---- */
uint64_t fake_frame_read(struct fake *fake, uint32_t pfn, uint32_t word);
void fake_frame_write(struct fake *fake, uint32_t pfn, uint32_t word, uint64_t value);
/* A device holds the frames under a pinned range, and lets go. */
void fake_device_hold(struct fake_mm *mm, uint32_t vpn, uint32_t pages, int delta);
/* A claim of the test owns frames from here on (tag > 0), or no more (0). */
void fake_own(struct fake *fake, uint32_t pfn, uint32_t frames, uint32_t tag);

/* ---- fork: the child's snapshot ---- */
struct fake_child {
	struct fake_mm *mm;
	uint64_t *word;  /* pages * FAKE_WORDS, as they were at the fork */
	uint32_t *frame; /* what it shares: pfn + 1, or 0 */
};

void fake_child_fork(struct fake_child *child, struct fake_mm *mm);
/* Pages of the child whose bytes are not those of the fork. */
uint32_t fake_child_changed(const struct fake_child *child);
void fake_child_exit(struct fake_child *child);

/* ---- failures ---- */
void fake_fail(struct fake *fake, uint32_t mask, int64_t at, int error, bool persistent);
/* Whether the failure was reached; none is planted any more. */
bool fake_fail_end(struct fake *fake);

/* ---- used by both parts of the fake ---- */
extern const struct sublet__mm_ops fake_mm_ops;
void fake_violation(struct fake *fake, const char *what, uint64_t where);
/* 0, or the error that this call has to return. */
int fake_enter(struct fake *fake, enum fake_op op, struct fake_mm *mm, uint32_t vpn, uint32_t pages);
int fake_mm_open(struct fake *fake, uint32_t index);
void fake_mm_close(struct fake_mm *mm);
/* Runs that this thread has blocked: it must not park meanwhile (L1). */
extern _Thread_local int fake_thread_blocked;
/* The slot the calling thread answers to; -1: its own. */
extern _Thread_local int fake_thread_slot;

#define FAKE_OWNER_PAGE  (1ull << 63)
#define FAKE_OWNER_CLAIM (1ull << 62)

#endif
