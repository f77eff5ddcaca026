/* SPDX-License-Identifier: MIT */
/*
 * An engine that only pretends: what the control server calls, and nothing behind it.
 *
 * Requests choose what happens: a claim of FAKE_BUSY, FAKE_CROWDED, FAKE_NOROOM or FAKE_TOO_BIG bytes
 * fails that way, one of FAKE_SLOW waits until its deadline first. Everything else succeeds. Pins and buffer objects are
 * numbered with gaps, as in a table of which others were given back, and the tags of every eighth are what a hostile
 * program would choose. Included by one .c file.
 */
#ifndef SUBLET_TESTS_FAKE_ENGINE_H
#define SUBLET_TESTS_FAKE_ENGINE_H

#include "core/arena.h"
#include "linux/linux.h"

#include <sublet/bo.h>
#include <sublet/claim.h>
#include <sublet/client.h>
#include <sublet/pin.h>
#include <sublet/stats.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define FAKE_AREA    (64 * SUBLET_MIB)
#define FAKE_BLOCKS  5000u /* more than one reply holds */
#define FAKE_BUSY    (1 * SUBLET_MIB)
#define FAKE_NOROOM  (2 * SUBLET_MIB)
#define FAKE_TOO_BIG (65 * SUBLET_MIB)
#define FAKE_SLOW    (3 * SUBLET_MIB)
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
	_Atomic uint32_t pins; /* the test changes them between requests */
	_Atomic uint32_t bos;
};

static inline void fake_create(struct sublet_arena *arena)
{
	memset(arena, 0, sizeof(*arena));
	arena->pins = 3;
	arena->bos = 3;
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

/* Of its own, with nothing closed: enough for a process that is only this test. */
int sublet__linux_fds_apart(struct sublet_arena *arena, const int *fds, uint32_t count)
{
	(void)arena, (void)fds, (void)count;
	return -ENOSYS;
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
	stats->longterm_bytes = 4 * SUBLET_MIB;
	stats->longterm_limit_bytes = 8 * SUBLET_MIB;
	stats->notifiers = 5;
	stats->invalidations = 6;
	stats->invalidations_declined = 7;
	return 0;
}

size_t sublet_arena_pageblocks(struct sublet_arena *arena, size_t first, size_t count,
			       struct sublet_pageblock *out)
{
	size_t n = 0;

	(void)arena;
	for (; n < count && first + n < FAKE_BLOCKS; n++)
		out[n] =
			(struct sublet_pageblock){ .free_frames = 512, .held_frames = (uint16_t)(first + n) };
	return n;
}

/* A tag that is not ended, reaches for the terminal, and is cut off inside a character; and what becomes of it. */
#define FAKE_HOSTILE          \
	"a\033[2J\xc2\x9b"    \
	"b\xff\x7f\n\xc3\xa9" \
	"cdefghijklmnopqr\xe2\x82\xac"
#define FAKE_HARMLESS         \
	"a?[2J??b???\xc3\xa9" \
	"cdefghijklmnopqr??"

static inline void fake_tag(char tag[SUBLET_OWNER_BYTES], const char *name, uint32_t i)
{
	memset(tag, 0, SUBLET_OWNER_BYTES);
	if (i % 8 == 7)
		memcpy(tag, FAKE_HOSTILE, SUBLET_OWNER_BYTES);
	else
		snprintf(tag, SUBLET_OWNER_BYTES, "%s %u", name, i);
}

/* Number 2 i + 1 is entry i, for all i < held. Returns whether number *next is one; steps on. */
static inline bool fake_step(uint64_t *next, uint32_t held, uint32_t *i)
{
	*i = (uint32_t)(*next / 2);
	return (*next)++ % 2 && *i < held;
}

size_t sublet_pin_list(struct sublet_arena *arena, uint64_t *next, size_t count, struct sublet_pin_info *out)
{
	size_t n = 0;

	while (n < count && *next < 2 * (uint64_t)arena->pins) {
		uint32_t i;

		if (!fake_step(next, arena->pins, &i))
			continue;
		out[n] = (struct sublet_pin_info){
			.addr = 0x7f0000000000 + i * SUBLET_MIB,
			.bytes = (i + 1) * 4096,
			.age_ns = i * SUBLET_SEC,
			.flags = i % 2 ? SUBLET_PIN_READ
				       : SUBLET_PIN_READ | SUBLET_PIN_WRITE | SUBLET_PIN_LONGTERM,
			.mm = i % 3,
		};
		fake_tag(out[n++].owner, "pin", i);
	}
	return n;
}

size_t sublet_bo_list(struct sublet_arena *arena, uint64_t *next, size_t count, struct sublet_bo_info *out)
{
	static const uint32_t kinds[] = { SUBLET_BO_TRACKED, SUBLET_BO_PINNED | SUBLET_BO_READONLY,
					  SUBLET_BO_CLAIMED };
	size_t n = 0;

	while (n < count && *next < 2 * (uint64_t)arena->bos) {
		uint32_t i;

		if (!fake_step(next, arena->bos, &i))
			continue;
		out[n] = (struct sublet_bo_info){
			.addr = 0x7f0000000000 + i * SUBLET_MIB,
			.bytes = (i + 1) * SUBLET_MIB,
			.age_ns = i * SUBLET_MS,
			.binds = i + 10,
			.evictions = i + 5,
			.bound_bytes = i % 2 ? (i + 1) * SUBLET_MIB : 0,
			.flags = kinds[i % 3],
			.jobs = i,
			.mm = i % 3,
		};
		fake_tag(out[n].owner, "bo", i);
		fake_tag(out[n++].device, "soft", i);
	}
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

int sublet__arena_call(const struct sublet_arena *arena)
{
	return arena ? 0 : -EINVAL;
}

int sublet__claim_for_guest(struct sublet_arena *arena, uint64_t bytes,
			    const struct sublet_claim_options *options, struct sublet_claim *claim)
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
