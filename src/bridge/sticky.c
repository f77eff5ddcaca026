/* SPDX-License-Identifier: MIT */
/*
 * Lent memory that must stay where it is for as long as it is malloc's, whatever else happens to it.
 *
 * The engine keeps one mark a page, "protected", and does not move what has it. Two things set it:
 * mprotect(), which takes it back when the pages are plainly readable and writable again, and what a
 * program does once and for all: MADV_DONTDUMP, a thread's stack, a robust mutex. The ranges of the
 * second kind are remembered here, so that an mprotect() of theirs or of their neighbours' does not
 * take their mark with it. They end when malloc gives the memory back; a mutex ends when it is destroyed.
 *
 * Ranges for good are frames, and grow together. An object is remembered by its own bytes, so that its frames are known
 * to be free of others when it ends. It becomes a range for good where the program has changed, or changes, the
 * protection of one of its frames: the mark alone does not tell which of the two is over.
 *
 * A small table is enough for what programs do. Objects get half of it, and are ranges for good beyond that. When it is
 * full nothing is unmarked any more: memory that could move stays, and never the other way round.
 */
#include "bridge/bridge.h"

#include <pthread.h>

#define RANGES_MAX  256u
#define OBJECTS_MAX (RANGES_MAX / 2)

struct range {
	uintptr_t start, end;
	bool is_object; /* then start and end are its own, and not those of its frames */
};

/* The lock guards all of it; it nests in jemalloc's locks, and the engine's nest in it. */
static struct {
	pthread_mutex_t lock;
	_Atomic uint32_t count; /* read without the lock, for the way out when there is nothing */
	uint32_t objects;
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
static struct range outwards(uintptr_t start, uintptr_t end)
{
	uintptr_t mask = (uintptr_t)sublet__bridge.frame_bytes - 1;

	return (struct range){ start & ~mask, (end + mask) & ~mask, false };
}

static struct range frames_of(const void *addr, size_t bytes)
{
	return outwards((uintptr_t)addr, (uintptr_t)addr + bytes);
}

static struct range frames_at(uint32_t i)
{
	return outwards(sticky.range[i].start, sticky.range[i].end);
}

static bool meets(struct range a, struct range b)
{
	return a.start < b.end && a.end > b.start;
}

/* Lock held. */
static void drop(uint32_t i)
{
	uint32_t last = count_get() - 1;

	sticky.objects -= sticky.range[i].is_object;
	sticky.range[i] = sticky.range[last];
	count_set(last);
}

/* Lock held. A full table stays full: what was not remembered cannot be told from anything else. */
static void put(struct range added)
{
	uint32_t count = count_get();

	if (count < RANGES_MAX) {
		sticky.range[count] = added;
		sticky.objects += added.is_object;
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

/* Lock held. Put it, with all that it touches. */
static void put_for_good(struct range added)
{
	for (uint32_t i = 0; i < count_get();) {
		struct range r = sticky.range[i];

		if (r.is_object || r.end < added.start || r.start > added.end) {
			i++;
			continue;
		}
		added.start = r.start < added.start ? r.start : added.start;
		added.end = r.end > added.end ? r.end : added.end;
		drop(i);
	}
	put(added);
}

void sublet__sticky_add(const void *addr, size_t bytes)
{
	(void)pthread_mutex_lock(&sticky.lock);
	(void)sublet__engine_note_protected(addr, bytes, true);
	put_for_good(frames_of(addr, bytes));
	(void)pthread_mutex_unlock(&sticky.lock);
}

/* Lock held. */
static bool find_object(const void *object, uint32_t *at)
{
	for (uint32_t i = 0; i < count_get(); i++)
		if (sticky.range[i].is_object && sticky.range[i].start == (uintptr_t)object) {
			*at = i;
			return true;
		}
	return false;
}

/* Lock held. */
static bool is_met(struct range frames)
{
	for (uint32_t i = 0; i < count_get(); i++)
		if (meets(frames, frames_at(i)))
			return true;
	return false;
}

/* Lock held. Mark the frames. True: one of them was marked before, and by nothing that is remembered here. */
static bool mark(struct range frames)
{
	size_t bytes = sublet__bridge.frame_bytes;
	bool had = false;

	for (uintptr_t at = frames.start; at < frames.end; at += bytes)
		had |= sublet__engine_note_protected((void *)at, bytes, true) &&
		       !is_met((struct range){ at, at + bytes, false });
	return had;
}

void sublet__sticky_add_object(const void *object, size_t bytes)
{
	struct range frames = frames_of(object, bytes);
	uint32_t at;

	(void)pthread_mutex_lock(&sticky.lock);
	if (mark(frames) || sticky.objects == OBJECTS_MAX)
		put_for_good(frames);
	else if (!find_object(object, &at))
		put((struct range){ (uintptr_t)object, (uintptr_t)object + bytes, true });
	(void)pthread_mutex_unlock(&sticky.lock);
}

/* Lock held. Unmark the gaps between the ranges, in order: the ranges themselves are never without their mark. */
static bool unmark(struct range whole)
{
	bool again = false;

	for (uintptr_t at = whole.start; at < whole.end && !sticky.full;) {
		uintptr_t gap_end = whole.end, next = whole.end;

		for (uint32_t i = 0; i < count_get(); i++) {
			struct range r = frames_at(i);

			if (r.end > at && r.start < gap_end) {
				gap_end = r.start;
				next = r.end;
			}
		}
		if (gap_end > at)
			again |= sublet__engine_note_protected((void *)at, gap_end - at, false);
		at = next;
	}
	return again;
}

bool sublet__sticky_remove_object(const void *object, size_t bytes)
{
	bool again = false;
	uint32_t at;

	if (count_get() == 0)
		return false;
	(void)pthread_mutex_lock(&sticky.lock);
	if (find_object(object, &at)) {
		drop(at);
		again = unmark(frames_of(object, bytes));
	}
	(void)pthread_mutex_unlock(&sticky.lock);
	return again;
}

void sublet__sticky_protect(const void *addr, size_t bytes)
{
	struct range changed = frames_of(addr, bytes);

	(void)pthread_mutex_lock(&sticky.lock);
	(void)sublet__engine_note_protected(addr, bytes, true);
	for (uint32_t i = 0; i < count_get();) {
		struct range frames = frames_at(i);

		if (!sticky.range[i].is_object || !meets(frames, changed)) {
			i++;
			continue;
		}
		drop(i);
		put_for_good(frames);
		i = 0; /* others have changed places; objects become fewer each time */
	}
	(void)pthread_mutex_unlock(&sticky.lock);
}

bool sublet__sticky_unprotect(const void *addr, size_t bytes)
{
	(void)pthread_mutex_lock(&sticky.lock);
	bool again = unmark(frames_of(addr, bytes));
	(void)pthread_mutex_unlock(&sticky.lock);
	return again;
}

/* Lock held. Take the bytes of [gone) out of the ranges. True: some of them were in one. */
static bool take_out(struct range gone)
{
	bool any = false;

	for (uint32_t i = 0; i < count_get();) {
		struct range r = sticky.range[i];

		if (gone.start >= gone.end || !meets(r, gone)) {
			i++;
			continue;
		}
		any = true;
		drop(i);
		/* What is left of it; both parts end before or begin after, and are not met again. */
		if (r.start < gone.start)
			put((struct range){ r.start, gone.start, r.is_object });
		if (r.end > gone.end)
			put((struct range){ gone.end, r.end, r.is_object });
	}
	return any;
}

/* The memory of a decommitted page may stay for its neighbours' sake, and the mark with it: taken back here. */
bool sublet__sticky_forget(const void *addr, size_t bytes)
{
	uintptr_t mask = (uintptr_t)sublet__bridge.frame_bytes - 1;
	struct range gone = { ((uintptr_t)addr + mask) & ~mask, ((uintptr_t)addr + bytes) & ~mask, false };

	if (count_get() == 0)
		return false;
	(void)pthread_mutex_lock(&sticky.lock);
	bool again = take_out(gone) && unmark(gone);
	(void)pthread_mutex_unlock(&sticky.lock);
	return again;
}
