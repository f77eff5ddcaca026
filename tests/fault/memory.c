/* SPDX-License-Identifier: MIT */
/*
 * Scenarios: arenas, memory, claims, pins, notifiers, page tables, fork, chaos.
 */
#include "scenarios.h"

#include "core/arena.h"
#include "linux/instance.h"
#include "linux/linux.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- arenas ---- */

static int create(struct world *w, enum sublet_backing backing, uint32_t workers)
{
	struct sublet_arena_options options = { SUBLET_OPTIONS(sublet_arena_options),
						.area_bytes = AREA_BYTES,
						.normal_bytes = NORMAL_BYTES,
						.window_bytes = 64 * SUBLET_MIB,
						.backing = backing,
						.fd = w->fd,
						.workers = workers };

	return sublet_arena_create(&options, &w->arena2);
}

static int create_auto(struct world *w)
{
	return create(w, SUBLET_BACKING_AUTO, 0);
}

static int create_memfd(struct world *w)
{
	return create(w, SUBLET_BACKING_MEMFD, 4);
}

static int create_hugetlb(struct world *w)
{
	return create(w, SUBLET_BACKING_HUGETLB, 1);
}

static void own_file(struct world *w)
{
	w->fd = memfd_create("own", MFD_CLOEXEC);
	must(w->fd >= 0 && !ftruncate(w->fd, (off_t)(AREA_BYTES + NORMAL_BYTES)));
}

static int create_given(struct world *w)
{
	return create(w, SUBLET_BACKING_FD, 1);
}

static void own_file_close(struct world *w)
{
	close(w->fd);
}

/* What was created after the faults is an arena like any other. */
static void created(struct world *w)
{
	struct world other = { .arena = w->arena2, .mm = sublet_arena_mm(w->arena2), .fd = -1 };
	void *memory;

	must(!sublet_map(other.mm, SUBLET_MIB, SUBLET_MOVABLE, &memory));
	memset(memory, 1, SUBLET_MIB);
	must(!sublet_claim(other.arena, SUBLET_MIB, NULL, &other.claim));
	must(!sublet_release(other.arena, &other.claim));
	must(!sublet_arena_destroy(w->arena2));
}

static int mm_add(struct world *w)
{
	return sublet_arena_mm_add(w->arena, &w->mm2);
}

static void mm_added(struct world *w)
{
	must(!sublet_map(w->mm2, SUBLET_MIB, SUBLET_MOVABLE, &w->memory));
	memset(w->memory, 1, SUBLET_MIB);
	must(!sublet_unmap(w->mm2, w->memory, SUBLET_MIB));
}

static int memcpy_ns(struct world *w)
{
	uint64_t ns;

	return sublet__linux_memcpy_ns(w->arena, SUBLET_MIB, &ns);
}

/* Never fails: what cannot be found out is false. */
static int facts(struct world *w)
{
	struct sublet__linux_facts f;

	(void)w;
	sublet__linux_facts_get(&f);
	return 0;
}

/* An arena may be destroyed whatever fails meanwhile. */
static void other_arena(struct world *w)
{
	void *memory;

	must(!create(w, SUBLET_BACKING_MEMFD, 2));
	must(!sublet_map(sublet_arena_mm(w->arena2), SUBLET_MIB, SUBLET_MOVABLE, &memory));
}

static int destroy(struct world *w)
{
	must(!sublet_arena_destroy(w->arena2));
	return 0;
}

/* ---- map, unmap ---- */

#define MAP_BYTES (SUBLET_MIB + 2 * (64 << 10) + 4096)

static int map(struct world *w)
{
	return sublet_map(w->mm, MAP_BYTES, SUBLET_MOVABLE, &w->memory);
}

static void zero_check(const struct world *w, size_t bytes)
{
	for (size_t i = 0; i < bytes / 8; i++)
		if (((volatile uint64_t *)w->memory)[i])
			wrong("new memory is not zero (G9)");
	memset(w->memory, 0xA5, bytes);
}

static void mapped(struct world *w)
{
	zero_check(w, MAP_BYTES);
	must(!sublet_unmap(w->mm, w->memory, MAP_BYTES));
}

static int map_aligned(struct world *w)
{
	return sublet_map_aligned(w->mm, MAP_BYTES, 4 * SUBLET_MIB, SUBLET_DISCARDABLE, &w->memory);
}

/* More than the area has: the rest is plain. */
static int map_plain(struct world *w)
{
	return sublet_map(w->mm, AREA_BYTES, SUBLET_MOVABLE | SUBLET_PLAIN_OK, &w->memory);
}

static void mapped_plain(struct world *w)
{
	zero_check(w, AREA_BYTES);
	must(!sublet_unmap(w->mm, w->memory, AREA_BYTES));
}

static void memory_make(struct world *w)
{
	must(!map(w));
	memset(w->memory, 0x77, MAP_BYTES);
}

/* What an error leaves mapped is intact; the rest of the test unmaps it. */
static int unmap_check(struct world *w, int err)
{
	const unsigned char *bytes = w->memory;

	for (size_t i = 0; err && i < MAP_BYTES; i++)
		if (((const volatile unsigned char *)bytes)[i] != 0x77)
			wrong("byte %zu of memory that could not be unmapped has changed (G5)", i);
	return err;
}

static int unmap(struct world *w)
{
	return unmap_check(w, sublet_unmap(w->mm, w->memory, MAP_BYTES));
}

static int unmap_part(struct world *w)
{
	return unmap_check(w, sublet_unmap(w->mm, (char *)w->memory + (128 << 10), 256 << 10));
}

static void memory_end(struct world *w)
{
	/* All, or all but the part. */
	if (!sublet_unmap(w->mm, w->memory, MAP_BYTES))
		return;
	if (!sublet_unmap(w->mm, w->memory, 128 << 10))
		must(!sublet_unmap(w->mm, (char *)w->memory + (384 << 10), MAP_BYTES - (384 << 10)));
}

/* ---- reserve, commit, decommit: what a bridge does ---- */

static void reserve(struct world *w)
{
	must(!sublet__mm_reserve(w->mm, 2 * SUBLET_MIB, 2 * SUBLET_MIB, &w->memory));
}

static int commit_reserved(struct world *w)
{
	return sublet_commit(w->mm, w->memory, SUBLET_MIB, SUBLET_PLAIN_OK);
}

static void committed(struct world *w)
{
	zero_check(w, SUBLET_MIB);
}

static void reserve_end(struct world *w)
{
	must(!sublet_unmap(w->mm, w->memory, 2 * SUBLET_MIB));
}

static int decommit(struct world *w)
{
	return sublet_decommit(w->mm, (char *)w->memory + (128 << 10), 256 << 10);
}

static void memory_make_hole(struct world *w)
{
	memory_make(w);
	must(!decommit(w));
}

static int commit(struct world *w)
{
	return sublet_commit(w->mm, (char *)w->memory + (128 << 10), 256 << 10, 0);
}

static void recommitted(struct world *w)
{
	const char *middle = (const char *)w->memory + (128 << 10);

	for (size_t i = 0; i < 256 << 10; i++)
		if (((const volatile char *)middle)[i])
			wrong("memory that was decommitted is not zero (G9)");
}

/* Whatever went wrong, it can be committed, and is zero then. */
static void decommitted(struct world *w)
{
	must(!commit(w));
	recommitted(w);
}

/* ---- discardable ---- */

static int unlock_and_lock(struct world *w)
{
	w->cache_is_locked = false;
	int err = sublet_unlock(w->mm, w->cache, CACHE_BYTES);
	if (err < 0)
		return err;
	if (err != SUBLET_UNLOCKED && err != SUBLET_KEPT)
		wrong("sublet_unlock answers what nobody knows");
	int answer = sublet_lock(w->mm, w->cache, CACHE_BYTES);
	if (answer == SUBLET_INTACT)
		w->cache_is_locked = true;
	/* Nobody claimed meanwhile; memory whose addresses could not be given back may be dropped, and must say so. */
	return answer < 0 ? answer : 0;
}

static void cache_unlock(struct world *w)
{
	w->cache_is_locked = false;
	must(!sublet_unlock(w->mm, w->cache, CACHE_BYTES));
}

static int claim_all(struct world *w, uint64_t bytes, uint32_t flags)
{
	const struct sublet_claim_options options = { SUBLET_OPTIONS(sublet_claim_options), .flags = flags,
						      .deadline_ns = 30 * SUBLET_MS };

	return sublet_claim(w->arena, bytes, &options, &w->claim);
}

static int claim(struct world *w)
{
	return claim_all(w, 2 * SUBLET_MIB, SUBLET_CLAIM_DEAREST);
}

/* Everything: it fails only where something cannot leave. */
static int claim_whole(struct world *w)
{
	return claim_all(w, AREA_BYTES, 0);
}

static void claim_end(struct world *w)
{
	for (size_t i = 0; i < w->claim.bytes / 8; i++)
		if (((volatile uint64_t *)w->claim.addr)[i])
			wrong("claimed memory is not zero (G9)");
	memset(w->claim.addr, 0xCC, w->claim.bytes);
	must(!sublet_release(w->arena, &w->claim));
}

static void cache_drop(struct world *w)
{
	cache_unlock(w);
	must(!claim_all(w, AREA_BYTES, 0));
	must(!sublet_release(w->arena, &w->claim));
}

static int lock_dropped(struct world *w)
{
	int answer = sublet_lock(w->mm, w->cache, CACHE_BYTES);

	if (answer == SUBLET_INTACT)
		wrong("what was dropped is said to be intact");
	return answer < 0 ? answer : 0;
}

static void locked_dropped(struct world *w)
{
	for (size_t i = 0; i < CACHE_BYTES / 8; i++)
		if (((volatile uint64_t *)w->cache)[i])
			wrong("memory that was dropped is not zero (G9)");
}

static int release(struct world *w)
{
	return sublet_release(w->arena, &w->claim);
}

static void claim_make(struct world *w)
{
	must(!claim(w));
}

static int chaos_moves(struct world *w)
{
	for (uint64_t i = 1; i <= 6; i++)
		(void)sublet__chaos_move(w->arena, w->mm, i * 0xBF58476D1CE4E5B9ull);
	return 0;
}

static int chaos_thread(struct world *w)
{
	int err = sublet__linux_chaos_start(w->arena, 20000, 7);

	if (err)
		return err;
	usleep(10000);
	sublet__chaos_stop(sublet__instance_of(w->arena));
	return 0;
}

/* ---- pins ---- */

static int pin_short(struct world *w)
{
	return sublet_pin(w->mm, w->heap, HEAP_BYTES, SUBLET_PIN_WRITE, "test", &w->pin);
}

static int pin_longterm(struct world *w)
{
	return sublet_pin(w->mm, w->heap, HEAP_BYTES, SUBLET_PIN_WRITE | SUBLET_PIN_LONGTERM, "test",
			  &w->pin);
}

static void pinned(struct world *w)
{
	struct sublet_extent extents[300];

	must(sublet_pin_extents(&w->pin, 0, extents, 300) > 0);
	must(!sublet_unpin(&w->pin));
}

static void pin_make(struct world *w)
{
	must(!pin_longterm(w));
}

static int unpin(struct world *w)
{
	return sublet_unpin(&w->pin);
}

/* ---- notifiers, page tables ---- */

static int told(void *ctx, const struct sublet_invalidation *inv)
{
	(void)ctx, (void)inv;
	return 0;
}

static int notifier_add(struct world *w)
{
	static const struct sublet_notifier_ops ops = { SUBLET_OPTIONS(sublet_notifier_ops),
							.invalidate = told };

	return sublet_notifier_add(w->mm, w->heap, HEAP_BYTES, &ops, NULL, "test", &w->notifier);
}

static void notifier_end(struct world *w)
{
	uint64_t seq;

	must(!sublet_notifier_read_begin(&w->notifier, 0, &seq) &&
	     !sublet_notifier_read_retry(&w->notifier, seq));
	must(!sublet_notifier_remove(&w->notifier));
}

static void notifier_make(struct world *w)
{
	must(!notifier_add(w));
}

static int notifier_claim_remove(struct world *w)
{
	int err = claim(w);

	if (!err)
		err = sublet_release(w->arena, &w->claim);
	return err;
}

static int iopt(struct world *w)
{
	const struct sublet_iopt_options options = { SUBLET_OPTIONS(sublet_iopt_options),
						     .aperture_bytes = SUBLET_GIB };
	const struct sublet_extent extent = { 0, 2 * SUBLET_MIB };
	uint64_t iova = SUBLET_IOVA_ANY;
	int err = sublet_iopt_create(w->arena, &options, &w->iopt);

	if (err)
		return err;
	err = sublet_iopt_map(w->iopt, &iova, 4 * SUBLET_MIB, 0, 0, SUBLET_IOPT_READ);
	if (!err)
		err = sublet_iopt_fill(w->iopt, iova, &extent, 1, 0);
	if (!err)
		err = sublet_iopt_clear(w->iopt, iova + 4096, 4096, 0);
	if (!err)
		err = sublet_iopt_unmap(w->iopt, iova, 4 * SUBLET_MIB, 0);
	sublet_iopt_destroy(w->iopt);
	return err;
}

/* ---- fork ---- */

/* The child has the bytes of the moment of the fork, whatever the parent writes. */
static int fork_once(struct world *w)
{
	pid_t pid = fork();
	int status;

	if (!pid) {
		inject_disarm();
		usleep(5000);
		heap_check(w);
		memset(w->heap, 0x11, HEAP_BYTES);
		_exit(CHILD_CLEAN);
	}
	if (pid < 0)
		return -errno;
	uint64_t old = w->heap[5];
	w->heap[5] = ~old;
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (!WIFEXITED(status) || WEXITSTATUS(status))
		wrong("the child of a fork did not see the bytes of its birth: status %#x (G1)",
		      (unsigned int)status);
	must(w->heap[5] == ~old);
	w->heap[5] = old;
	return 0;
}

/* Shared again, in the end; by a thread of the library. */
static void restored(struct world *w)
{
	struct sublet_stats stats = { SUBLET_OPTIONS(sublet_stats) };

	for (int i = 0; i < 5000; i++) {
		must(!sublet_arena_stats(w->arena, &stats));
		if (!stats.area_held_bytes && !stats.children)
			return;
		usleep(1000);
	}
	wrong("a fork was never undone: %llu bytes held", (unsigned long long)stats.area_held_bytes);
}

static int fork_and_write(struct world *w)
{
	int err = fork_once(w);

	/* There the parent has ordinary memory (linux/private.c) until it is, at a moment of its own. */
	if (w->way->backing == SUBLET_BACKING_HUGETLB) {
		inject_disarm();
		restored(w);
	}
	return err;
}

static int fork_prepare(struct world *w)
{
	int err = sublet__linux_fork_prepare();

	(void)w;
	if (!err)
		sublet__linux_fork_cancel();
	inject_disarm();
	restored(w);
	return err;
}

static int fork_restore(struct world *w)
{
	(void)w;
	int err = fork_and_write(w);
	if (!err)
		usleep(20000); /* while the watcher's calls fail */
	return err;
}

const struct scenario memory_scenarios[] = {
	{ "arena_create (auto)", NO_WORLD | MAY_SUCCEED, NULL, create_auto, created, NULL },
	{ "arena_create (memfd, 4 workers)", NO_WORLD | WARMS_UP | MAY_SUCCEED, NULL, create_memfd, created,
	  NULL },
	{ "arena_create (hugetlb)", NO_WORLD | MAY_SUCCEED, NULL, create_hugetlb, created, NULL },
	{ "arena_create (fd)", NO_WORLD | MAY_SUCCEED, own_file, create_given, created, own_file_close },
	{ "arena_create beside another", MAY_SUCCEED, NULL, create_memfd, created, NULL },
	{ "arena_destroy", MAY_SUCCEED, other_arena, destroy, NULL, NULL },
	{ "arena_mm_add", MAY_SUCCEED, NULL, mm_add, mm_added, NULL },
	{ "memcpy_ns", MAY_SUCCEED, NULL, memcpy_ns, NULL, NULL },
	{ "facts", MAY_SUCCEED, NULL, facts, NULL, NULL },
	{ "map", MAY_LOSE | MAY_KEEP | MAY_ABORT, NULL, map, mapped, NULL },
	{ "map_aligned", MAY_LOSE | MAY_KEEP | MAY_ABORT, NULL, map_aligned, mapped, NULL },
	{ "map (plain)", MAY_LOSE | MAY_SUCCEED | MAY_KEEP | MAY_ABORT, NULL, map_plain, mapped_plain, NULL },
	{ "unmap", MAY_LOSE | MAY_SUCCEED, memory_make, unmap, NULL, memory_end },
	{ "unmap a part", MAY_LOSE | MAY_SUCCEED, memory_make, unmap_part, NULL, memory_end },
	{ "commit what is reserved", MAY_LOSE | MAY_SUCCEED | MAY_ABORT, reserve, commit_reserved, committed,
	  reserve_end },
	{ "decommit", MAY_LOSE | MAY_SUCCEED, memory_make, decommit, decommitted, memory_end },
	{ "commit", MAY_LOSE | MAY_ABORT, memory_make_hole, commit, recommitted, memory_end },
	{ "unlock, lock", MAY_LOSE | MAY_SUCCEED, NULL, unlock_and_lock, NULL, NULL },
	{ "lock what was dropped", MAY_LOSE | MAY_SUCCEED, cache_drop, lock_dropped, locked_dropped, NULL },
	{ "claim", MAY_LOSE | EACH_WAY | MAY_SUCCEED | MAY_ABORT, NULL, claim, claim_end, NULL },
	{ "claim the whole area", MAY_LOSE | EACH_WAY | MAY_SUCCEED | MAY_ABORT, cache_unlock, claim_whole,
	  claim_end, NULL },
	{ "release", MAY_SUCCEED, claim_make, release, NULL, NULL },
	{ "chaos_move", MAY_LOSE | EACH_WAY | MAY_SUCCEED | MAY_ABORT, NULL, chaos_moves, NULL, NULL },
	{ "chaos_start", ALL_CALLS | MAY_SUCCEED | MAY_ABORT, NULL, chaos_thread, NULL, NULL },
	{ "pin (short)", 0, NULL, pin_short, pinned, NULL },
	{ "pin (long-term)", MAY_LOSE | EACH_WAY | MAY_SUCCEED | MAY_ABORT, NULL, pin_longterm, pinned,
	  NULL },
	{ "unpin", MAY_SUCCEED, pin_make, unpin, NULL, NULL },
	{ "notifier_add", MAY_SUCCEED, NULL, notifier_add, notifier_end, NULL },
	{ "claim what is watched", EACH_WAY | MAY_SUCCEED | MAY_ABORT, notifier_make, notifier_claim_remove,
	  NULL, notifier_end },
	{ "iopt", MAY_SUCCEED, NULL, iopt, NULL, NULL },
	{ "fork prepared and called off", RESTORES | MAY_LOSE | EACH_WAY | MAY_SUCCEED | MAY_ABORT, NULL,
	  fork_prepare, restored, restored },
	{ "fork", RESTORES | MAY_LOSE | EACH_WAY | MAY_SUCCEED | MAY_ABORT, NULL, fork_and_write, restored,
	  restored },
	{ "fork, all threads", RESTORES | ALL_CALLS | MAY_SUCCEED | MAY_ABORT, NULL, fork_restore, restored,
	  restored },
	{ NULL },
};
