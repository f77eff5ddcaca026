/* SPDX-License-Identifier: MIT */
/*
 * An engine that only pretends: what the control server calls, and nothing behind it.
 *
 * Requests choose what happens: a claim of FAKE_BUSY, FAKE_CROWDED, FAKE_NOROOM or FAKE_TOO_BIG bytes
 * fails that way, one of FAKE_SLOW waits until its deadline first. Everything else succeeds. Included by one .c file.
 */
#ifndef SUBLET_TESTS_FAKE_ENGINE_H
#define SUBLET_TESTS_FAKE_ENGINE_H

#include "linux/linux.h"

#include <sublet/claim.h>
#include <sublet/client.h>
#include <sublet/stats.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define FAKE_AREA (64 * SUBLET_MIB)
#define FAKE_BLOCKS 5000u /* more than one reply holds */
#define FAKE_BUSY (1 * SUBLET_MIB)
#define FAKE_NOROOM (2 * SUBLET_MIB)
#define FAKE_TOO_BIG (65 * SUBLET_MIB)
#define FAKE_SLOW (3 * SUBLET_MIB)
#define FAKE_CROWDED (4 * SUBLET_MIB) /* seven pins of one owner, one of another */

struct sublet_arena {
	int fd;
	_Atomic uint64_t next_id;
	_Atomic uint64_t held;
	_Atomic uint64_t claims;
	_Atomic uint64_t last_deadline_ns;
	pthread_mutex_t lock; /* last_owner */
	char last_owner[SUBLET_OWNER_BYTES];
	struct sublet__linux_companion companions[4];
	uint32_t companion_count;
};

static inline void fake_create(struct sublet_arena *arena)
{
	memset(arena, 0, sizeof(*arena));
	pthread_mutex_init(&arena->lock, NULL);
	arena->fd = memfd_create("fake", MFD_CLOEXEC);
	if (arena->fd >= 0 && ftruncate(arena->fd, (off_t)FAKE_AREA))
		close(arena->fd);
}

static inline void fake_destroy(struct sublet_arena *arena)
{
	for (uint32_t i = 0; i < arena->companion_count; i++)
		arena->companions[i].stop(arena->companions[i].arg);
	close(arena->fd);
}

/* What pthread_atfork's child handler would do. */
static inline void fake_fork_child(struct sublet_arena *arena)
{
	for (uint32_t i = 0; i < arena->companion_count; i++)
		arena->companions[i].fork_child(arena->companions[i].arg);
}

int sublet__linux_companion_add(struct sublet_arena *arena, const struct sublet__linux_companion *companion)
{
	if (arena->companion_count == 4)
		return -ENOSPC;
	arena->companions[arena->companion_count++] = *companion;
	return 0;
}

int sublet__linux_fd_high(int fd)
{
	int high = fcntl(fd, F_DUPFD_CLOEXEC, 512);

	if (high < 0)
		return fd;
	close(fd);
	return high;
}

/* Of its own, with nothing closed: enough for a process that is only this test. */
int sublet__linux_fds_apart(struct sublet_arena *arena, const int *fds, uint32_t count)
{
	(void)arena, (void)fds, (void)count;
	return -ENOSYS;
}

int sublet__linux_thread_start(pthread_t *thread, const char *name, void *(*fn)(void *), void *arg)
{
	sigset_t all, old;
	int err;

	(void)name;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	err = pthread_create(thread, NULL, fn, arg);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return -err;
}

int sublet__linux_memcpy_ns(struct sublet_arena *arena, uint64_t bytes, uint64_t *elapsed_ns)
{
	(void)arena;
	if (!bytes || bytes > FAKE_AREA)
		return -EINVAL;
	*elapsed_ns = bytes / 8;
	return 0;
}

int sublet_arena_info(struct sublet_arena *arena, struct sublet_arena_info *info)
{
	if (info->size_bytes != sizeof(*info))
		return -EINVAL;
	info->backing = SUBLET_BACKING_MEMFD;
	info->technique = SUBLET_TECHNIQUE_ZAP;
	info->frame_bytes = 4096;
	info->area_bytes = FAKE_AREA;
	info->normal_bytes = 16 * SUBLET_MIB;
	info->linear = arena;
	info->fd = arena->fd;
	return 0;
}

int sublet_arena_stats(struct sublet_arena *arena, struct sublet_stats *stats)
{
	if (stats->size_bytes != sizeof(*stats))
		return -EINVAL;
	stats->area_bytes = FAKE_AREA;
	stats->area_free_bytes = FAKE_AREA;
	stats->claims = arena->claims;
	stats->claims_held = arena->held;
	return 0;
}

size_t sublet_arena_pageblocks(struct sublet_arena *arena, size_t first, size_t count,
			       struct sublet_pageblock *out)
{
	size_t n = 0;

	(void)arena;
	for (; n < count && first + n < FAKE_BLOCKS; n++)
		out[n] = (struct sublet_pageblock){ .free_frames = 512, .held_frames = (uint16_t)(first + n) };
	return n;
}

static inline bool fake_owner_has(struct sublet_arena *arena, const char *text)
{
	bool found;

	pthread_mutex_lock(&arena->lock);
	found = strstr(arena->last_owner, text) != NULL;
	pthread_mutex_unlock(&arena->lock);
	return found;
}

static inline int fake_busy(struct sublet_claim *claim)
{
	claim->windows_tried = 1;
	claim->blocker_count = 1;
	claim->blockers[0].kind = SUBLET_BLOCKER_PIN;
	claim->blockers[0].bytes = 4096;
	memcpy(claim->blockers[0].owner, "rx-ring", 8);
	return -EBUSY;
}

static inline int fake_crowded(struct sublet_claim *claim)
{
	claim->blocker_count = SUBLET_BLOCKERS_MAX;
	for (uint32_t i = 0; i < SUBLET_BLOCKERS_MAX; i++) {
		struct sublet_blocker *b = &claim->blockers[i];

		b->kind = SUBLET_BLOCKER_PIN;
		b->offset_bytes = (SUBLET_BLOCKERS_MAX - i) * 65536;
		b->bytes = 4096;
		b->age_ns = i * SUBLET_SEC;
		memcpy(b->owner, i == 5 ? "tx-ring" : "rx-ring", 8);
	}
	return -EBUSY;
}

int sublet_claim(struct sublet_arena *arena, uint64_t bytes, const struct sublet_claim_options *options,
		 struct sublet_claim *claim)
{
	arena->claims++;
	arena->last_deadline_ns = options->deadline_ns;
	pthread_mutex_lock(&arena->lock);
	memcpy(arena->last_owner, options->owner, strlen(options->owner) + 1);
	pthread_mutex_unlock(&arena->lock);
	memset(claim, 0, sizeof(*claim));
	if (bytes == FAKE_SLOW)
		nanosleep(&(struct timespec){ .tv_sec = (time_t)(options->deadline_ns / SUBLET_SEC),
					      .tv_nsec = (long)(options->deadline_ns % SUBLET_SEC) },
			  NULL);
	if (bytes == FAKE_BUSY || bytes == FAKE_SLOW)
		return fake_busy(claim);
	if (bytes == FAKE_CROWDED)
		return fake_crowded(claim);
	if (bytes == FAKE_NOROOM) {
		claim->shortfall_bytes = 12345;
		return -ENOMEM;
	}
	if (bytes >= FAKE_TOO_BIG)
		return -E2BIG;
	if (!bytes || (options->align_bytes & (options->align_bytes - 1)))
		return -EINVAL;
	claim->id = ++arena->next_id;
	claim->addr = arena;
	claim->bytes = bytes;
	claim->latency_ns = 1000;
	claim->moved_bytes = bytes / 2;
	arena->held++;
	return 0;
}

int sublet_release(struct sublet_arena *arena, struct sublet_claim *claim)
{
	if (!claim->id || claim->id > arena->next_id)
		return -EINVAL;
	claim->id = 0;
	arena->held--;
	return 0;
}

#endif
