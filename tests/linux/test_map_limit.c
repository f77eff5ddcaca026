/* SPDX-License-Identifier: MIT */
/*
 * A process at the limit of kernel mappings (vm.max_map_count): each call either works or says that there is no memory,
 * nothing of the heap changes, and fork() works as it does in ordinary memory.
 *
 * Each case is a process of its own: it makes an arena with a heap scattered over frames, uses all mappings but a few,
 * makes calls in an order that a seed chooses, gives the mappings back, and uses the arena once more.
 */
#include <sublet/arena.h>
#include <sublet/claim.h>
#include <sublet/map.h>
#include <sublet/pin.h>
#include <sublet/stats.h>

#include "core/arena.h"
#include "linux/instance.h"
#include "linux/proc.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define AREA_BYTES    (16 * SUBLET_MIB)
#define NORMAL_BYTES  (16 * SUBLET_MIB)
#define HEAP_BYTES    (10 * SUBLET_MIB)
#define SIDE_BYTES    (2 * SUBLET_MIB) /* what calls map, commit and unmap */
#define GUARD_BYTES   ((size_t)256 << 10)
#define UNIT_BYTES    ((size_t)64 << 10)
#define PAGE_BYTES    ((size_t)4096)
#define CALLS         60
#define MAPPINGS_MOST 300000u /* a machine with more has none that ends in a test's time */
#define SKIPPED       77

static struct sublet_arena *arena;
static struct sublet_mm *mm;
static uint64_t *heap;
static unsigned char *guard; /* its pages get protections in turns */
static uint64_t seed;

#define must(what)                                                                                         \
	do {                                                                                               \
		if (!(what)) {                                                                             \
			fprintf(stderr, "%s:%d: not true: %s (errno %d, SEED=%llu)\n", __FILE__, __LINE__, \
				#what, errno, (unsigned long long)seed);                                   \
			_exit(1);                                                                          \
		}                                                                                          \
	} while (0)

/* What a call may answer here. */
static void may(int err)
{
	must(err == 0 || err == SUBLET_KEPT || err == -ENOMEM || err == -EBUSY);
}

static uint64_t random_next(void)
{
	static uint64_t state;

	state = (state ? state : seed * 2 + 1) * 6364136223846793005ull + 1442695040888963407ull;
	return state >> 33;
}

static void heap_check(void)
{
	for (size_t i = 0; i < HEAP_BYTES / 8; i += 16)
		must(heap[i] == i * 0x9E3779B97F4A7C15ull);
	for (size_t i = 0; i < GUARD_BYTES; i += PAGE_BYTES)
		must(guard[i] == (unsigned char)(i / PAGE_BYTES));
}

/* ---- the limit ---- */

static char *filler;
static size_t filler_pages, filled;

static void fill(uint32_t leave)
{
	filler = mmap(NULL, filler_pages * PAGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
		      -1, 0);
	must(filler != MAP_FAILED);
	/* Each is two mappings more; the last ones, one by one, at its end. */
	while (filled + 1 < filler_pages && !mprotect(filler + filled * PAGE_BYTES, PAGE_BYTES, PROT_READ))
		filled += 2;
	must(filled + 1 < filler_pages);
	must(errno == ENOMEM);
	while (mmap(NULL, PAGE_BYTES, filled++ % 2 ? PROT_NONE : PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1,
		    0) != MAP_FAILED)
		;
	for (uint32_t i = 0; i < leave; i += 2)
		must(!mprotect(filler + 2 * i * PAGE_BYTES, PAGE_BYTES, PROT_NONE));
}

/* ---- calls ---- */

static void call_map(void)
{
	void *memory;
	int err = sublet_map(mm, SIDE_BYTES, SUBLET_MOVABLE, &memory);

	may(err);
	if (err)
		return;
	memset(memory, 1, SIDE_BYTES);
	may(sublet_decommit(mm, (char *)memory + UNIT_BYTES, UNIT_BYTES));
	err = sublet_commit(mm, (char *)memory + UNIT_BYTES, UNIT_BYTES, 0);
	may(err);
	if (!err)
		must(!((char *)memory)[UNIT_BYTES]);
	may(sublet_unmap(mm, (char *)memory + 3 * UNIT_BYTES, 2 * UNIT_BYTES));
	may(sublet_unmap(mm, memory, 3 * UNIT_BYTES));
	may(sublet_unmap(mm, (char *)memory + 5 * UNIT_BYTES, SIDE_BYTES - 5 * UNIT_BYTES));
}

static void call_map_plain(void)
{
	void *memory;
	int err = sublet_map(mm, AREA_BYTES, SUBLET_MOVABLE | SUBLET_PLAIN_OK, &memory);

	may(err);
	if (err)
		return;
	memset(memory, 1, AREA_BYTES);
	may(sublet_unmap(mm, memory, AREA_BYTES));
}

static void call_reserve(void)
{
	void *memory;

	if (sublet__mm_reserve(mm, SIDE_BYTES, 2 * SUBLET_MIB, &memory))
		return;
	for (size_t at = 0; at < SIDE_BYTES; at += 4 * UNIT_BYTES)
		if (!sublet_commit(mm, (char *)memory + at, UNIT_BYTES, SUBLET_PLAIN_OK))
			((char *)memory)[at] = 1;
	for (size_t at = 0; at < SIDE_BYTES; at += 8 * UNIT_BYTES)
		may(sublet_decommit(mm, (char *)memory + at, UNIT_BYTES));
	may(sublet_unmap(mm, memory, SIDE_BYTES));
}

static void call_claim(void)
{
	const struct sublet_claim_options options = { SUBLET_OPTIONS(sublet_claim_options),
						      .flags = random_next() % 2 ? SUBLET_CLAIM_DEAREST : 0,
						      .deadline_ns = 20 * SUBLET_MS };
	uint64_t bytes = random_next() % 4 ? SUBLET_MIB << random_next() % 4 : AREA_BYTES;
	struct sublet_claim claim;
	int err = sublet_claim(arena, bytes, &options, &claim);

	may(err);
	if (err)
		return;
	memset(claim.addr, 0xCC, claim.bytes);
	must(!sublet_release(arena, &claim));
}

static void call_chaos(void)
{
	(void)sublet__chaos_move(arena, mm, random_next() * 0xBF58476D1CE4E5B9ull);
}

static void call_pin(void)
{
	struct sublet_pin pin;
	uint32_t flags = SUBLET_PIN_WRITE | (random_next() % 2 ? SUBLET_PIN_LONGTERM : 0);
	int err = sublet_pin(mm, heap, SUBLET_MIB, flags, "map-limit", &pin);

	may(err);
	if (!err)
		must(!sublet_unpin(&pin));
}

static void call_discard(void)
{
	void *memory;
	int err = sublet_map(mm, SUBLET_MIB, SUBLET_DISCARDABLE, &memory);

	may(err);
	if (err)
		return;
	memset(memory, 7, SUBLET_MIB);
	err = sublet_unlock(mm, memory, SUBLET_MIB);
	may(err);
	if (!err) {
		int answer = sublet_lock(mm, memory, SUBLET_MIB);
		must(answer == -ENOMEM || answer == SUBLET_INTACT || answer == SUBLET_DISCARDED);
		if (answer == SUBLET_INTACT)
			must(((char *)memory)[5] == 7);
	}
	may(sublet_unmap(mm, memory, SUBLET_MIB));
}

/* As in ordinary memory: it needs no mapping more than there are. */
static void call_fork(void)
{
	pid_t pid = fork();
	int status;

	must(pid >= 0);
	if (!pid) {
		heap_check();
		memset(heap, 0x11, HEAP_BYTES);
		_exit(0);
	}
	uint64_t old = heap[5];
	heap[5] = ~old;
	must(waitpid(pid, &status, 0) == pid);
	must(status == 0);
	must(heap[5] == ~old);
	heap[5] = old;
}

static const struct {
	const char *name;
	void (*call)(void);
} calls[] = {
	{ "map, decommit, commit, unmap", call_map },
	{ "map plain", call_map_plain },
	{ "reserve, commit, decommit", call_reserve },
	{ "claim", call_claim },
	{ "move", call_chaos },
	{ "pin", call_pin },
	{ "discard", call_discard },
	{ "fork", call_fork },
};
#define KINDS (sizeof calls / sizeof *calls)

/* ---- cases ---- */

static void arena_make(enum sublet_backing backing, enum sublet_technique technique)
{
	const struct sublet_arena_options options = { SUBLET_OPTIONS(sublet_arena_options),
						      .area_bytes = AREA_BYTES, .normal_bytes = NORMAL_BYTES,
						      .backing = backing, .technique = technique };
	void *memory;

	if (sublet_arena_create(&options, &arena))
		_exit(SKIPPED);
	mm = sublet_arena_mm(arena);
	must(!sublet_map(mm, HEAP_BYTES, SUBLET_MOVABLE, &memory));
	heap = memory;
	for (size_t i = 0; i < HEAP_BYTES / 8; i++)
		heap[i] = i * 0x9E3779B97F4A7C15ull;
	must(!sublet_map(mm, GUARD_BYTES, SUBLET_MOVABLE, &memory));
	guard = memory;
	for (size_t i = 0; i < GUARD_BYTES; i += PAGE_BYTES)
		guard[i] = (unsigned char)(i / PAGE_BYTES);
	/* Protections that move with nothing: such memory becomes private piece by piece. */
	(void)sublet__mm_note_protected(mm, guard, GUARD_BYTES, true);
	for (size_t i = 0; i < GUARD_BYTES; i += 2 * PAGE_BYTES)
		must(!mprotect(guard + i, PAGE_BYTES, PROT_READ));
	for (int i = 0; i < 20; i++)
		call_chaos();
}

/* Once there is room again, everything works again, and every fork is undone in the end. */
static void use_again(void)
{
	struct sublet_stats stats = { SUBLET_OPTIONS(sublet_stats) };
	void *memory;

	must(!munmap(filler, filler_pages * PAGE_BYTES));
	call_fork();
	must(!sublet_map(mm, SUBLET_MIB, SUBLET_MOVABLE, &memory));
	memset(memory, 3, SUBLET_MIB);
	must(!sublet_unmap(mm, memory, SUBLET_MIB));
	must(!mprotect(guard, GUARD_BYTES, PROT_READ | PROT_WRITE));
	if (sublet__mm_note_protected(mm, guard, GUARD_BYTES, false))
		sublet__linux_fork_again(arena);
	for (int i = 0; i < 20000; i++) {
		must(!sublet_arena_stats(arena, &stats));
		if (!stats.area_held_bytes && !stats.children)
			break;
		usleep(1000);
	}
	must(!stats.area_held_bytes);
	heap_check();
	sublet_arena_destroy(arena);
}

static void case_run(enum sublet_backing backing, enum sublet_technique technique, uint32_t leave)
{
	uint32_t done[KINDS] = { 0 };

	arena_make(backing, technique);
	fill(leave);
	for (uint32_t i = 0; i < CALLS; i++) {
		size_t kind = i < KINDS ? i : random_next() % KINDS;
		calls[kind].call();
		done[kind]++;
		heap_check();
	}
	must(done[KINDS - 1]);
	use_again();
	_exit(0);
}

static const struct {
	const char *name;
	enum sublet_backing backing;
	enum sublet_technique technique;
} ways[] = {
	{ "memfd, zap", SUBLET_BACKING_MEMFD, SUBLET_TECHNIQUE_ZAP },
	{ "memfd, write-protect", SUBLET_BACKING_MEMFD, SUBLET_TECHNIQUE_WRITEPROTECT },
	{ "thp, pre-copy", SUBLET_BACKING_THP, SUBLET_TECHNIQUE_PRECOPY },
};

int main(void)
{
	static const uint32_t leaves[] = { 0, 1, 5 };
	const char *given = getenv("SEED");
	uint64_t limit = sublet__max_map_count();
	uint32_t ran = 0, bad = 0;

	seed = given ? (uint64_t)strtoull(given, NULL, 10) : (uint64_t)getpid();
	printf("SEED=%llu\n", (unsigned long long)seed);
	if (limit > MAPPINGS_MOST)
		return SKIPPED;
	filler_pages = 2 * limit;
	for (size_t w = 0; w < sizeof ways / sizeof *ways; w++)
		for (size_t i = 0; i < sizeof leaves / sizeof *leaves; i++) {
			struct rlimit no_core = { 0, 0 };
			int status;
			fflush(stdout);
			pid_t pid = fork();
			if (!pid) {
				(void)setrlimit(RLIMIT_CORE, &no_core);
				alarm(100);
				case_run(ways[w].backing, ways[w].technique, leaves[i]);
			}
			must(pid > 0 && waitpid(pid, &status, 0) == pid);
			bool skipped = WIFEXITED(status) && WEXITSTATUS(status) == SKIPPED;
			printf("%-22s %2u mappings left: %s (%#x)\n", ways[w].name, leaves[i],
			       skipped  ? "skipped"
			       : status ? "FAIL"
					: "ok",
			       (unsigned int)status);
			ran += !skipped;
			bad += status && !skipped;
		}
	return bad ? 1 : ran ? 0 : SKIPPED;
}
