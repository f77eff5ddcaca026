/* SPDX-License-Identifier: MIT */
/*
 * Lent memory that must stay where it is for as long as it is malloc's, whatever else happens to it.
 *
 * The engine keeps one mark a page, "protected", and does not move what has it. Two things set it:
 * mprotect(), which takes it back when the pages are plainly readable and writable again, and what a
 * program does once and for all: MADV_DONTDUMP, a thread's stack, a robust mutex. The ranges of the
 * second kind are remembered here, so that an mprotect() of theirs or of their neighbours' does not
 * take their mark with it. They end when malloc gives the memory back.
 *
 * A small table is enough for what programs do. When it is full nothing is unmarked any more: memory
 * that could move stays, and never the other way round.
 */
#include "bridge/bridge.h"

#include <pthread.h>

#define RANGES_MAX 128u

struct range {
	uintptr_t start, end;
};

/* The lock guards all of it; it nests in jemalloc's locks, and the engine's nest in it. */
static struct {
	pthread_mutex_t lock;
	_Atomic uint32_t count; /* read without the lock, for the way out when there is nothing */
	bool full;
	struct range range[RANGES_MAX];
} sticky = { .lock = PTHREAD_MUTEX_INITIALIZER };

static uint32_t count_get(void)
{
	/* Relaxed: whoever gives memory back got it from the one that added its range. */
	return atomic_load_explicit(&sticky.count, memory_order_relaxed);
}

static void count_set(uint32_t count)
{
	atomic_store_explicit(&sticky.count, count, memory_order_relaxed);
}

/* Whole frames: the engine marks nothing smaller. */
static struct range outwards(const void *addr, size_t bytes)
{
	uintptr_t mask = (uintptr_t)sublet__bridge.frame_bytes - 1;

	return (struct range){ (uintptr_t)addr & ~mask, ((uintptr_t)addr + bytes + mask) & ~mask };
}

/* Lock held. */
static void drop(uint32_t i)
{
	uint32_t last = count_get() - 1;

	sticky.range[i] = sticky.range[last];
	count_set(last);
}

/* Lock held. A full table stays full: what was not remembered cannot be told from anything else. */
static void put(struct range added)
{
	uint32_t count = count_get();

	if (count < RANGES_MAX) {
		sticky.range[count] = added;
		count_set(count + 1);
		return;
	}
	if (!sticky.full)
		sublet__bridge_say(
			"more than %u ranges of the heap must not move (MADV_DONTDUMP, thread stacks, "
			"robust mutexes): what mprotect makes writable again stays as well",
			RANGES_MAX);
	sticky.full = true;
}

void sublet__sticky_add(const void *addr, size_t bytes)
{
	struct range added = outwards(addr, bytes);

	(void)pthread_mutex_lock(&sticky.lock);
	(void)sublet__engine_note_protected(addr, bytes, true);
	for (uint32_t i = 0; i < count_get();) {
		struct range r = sticky.range[i];

		if (r.end < added.start || r.start > added.end) {
			i++;
			continue;
		}
		added.start = r.start < added.start ? r.start : added.start;
		added.end = r.end > added.end ? r.end : added.end;
		drop(i);
	}
	put(added);
	(void)pthread_mutex_unlock(&sticky.lock);
}

bool sublet__sticky_unprotect(const void *addr, size_t bytes)
{
	struct range whole = outwards(addr, bytes);
	bool again = false;

	(void)pthread_mutex_lock(&sticky.lock);
	/* The gaps between the ranges, in order: the ranges themselves are never without their mark. */
	for (uintptr_t at = whole.start; at < whole.end && !sticky.full;) {
		uintptr_t gap_end = whole.end, next = whole.end;

		for (uint32_t i = 0; i < count_get(); i++)
			if (sticky.range[i].end > at && sticky.range[i].start < gap_end) {
				gap_end = sticky.range[i].start;
				next = sticky.range[i].end;
			}
		if (gap_end > at)
			again |= sublet__engine_note_protected((void *)at, gap_end - at, false);
		at = next;
	}
	(void)pthread_mutex_unlock(&sticky.lock);
	return again;
}

void sublet__sticky_forget(const void *addr, size_t bytes)
{
	uintptr_t mask = (uintptr_t)sublet__bridge.frame_bytes - 1;
	uintptr_t start = ((uintptr_t)addr + mask) & ~mask, end = ((uintptr_t)addr + bytes) & ~mask;

	if (count_get() == 0)
		return;
	(void)pthread_mutex_lock(&sticky.lock);
	for (uint32_t i = 0; i < count_get();) {
		struct range r = sticky.range[i];

		if (start >= end || r.end <= start || r.start >= end) {
			i++;
			continue;
		}
		drop(i);
		/* What is left of it; both parts end before or begin after, and are not met again. */
		if (r.start < start)
			put((struct range){ r.start, start });
		if (r.end > end)
			put((struct range){ end, r.end });
	}
	(void)pthread_mutex_unlock(&sticky.lock);
}
