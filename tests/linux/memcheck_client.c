/* SPDX-License-Identifier: MIT */
/*
 * A program that valgrind checks (test_valgrind.py): one that does everything right, with threads and claims, some that
 * touch what they have given back, and one that decides by stale bytes of a claim that it did not want zeroed.
 */
#include <sublet/arena.h>
#include <sublet/claim.h>
#include <sublet/device.h>
#include <sublet/map.h>
#include <sublet/notifier.h>

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define BYTES SUBLET_MIB
#define UNIT  ((size_t)64 << 10)
#define must(what)                                                \
	do {                                                      \
		if (!(what)) {                                    \
			fprintf(stderr, "not true: %s\n", #what); \
			exit(3);                                  \
		}                                                 \
	} while (0)

static struct sublet_arena *arena;
static struct sublet_mm *mm;
static char *heap;
static const char *linear;
static volatile int sink;

static void *worker(void *arg)
{
	void *memory;

	for (int i = 0; i < 20; i++) {
		must(!sublet_map(mm, 4 * UNIT, SUBLET_MOVABLE, &memory));
		memset(memory, i, 4 * UNIT);
		must(!sublet_decommit(mm, (char *)memory + 4096, 3 * UNIT));
		must(!sublet_commit(mm, (char *)memory + 4096, 3 * UNIT, 0));
		must(!((char *)memory)[4096] && !((char *)memory)[2 * UNIT] && ((char *)memory)[0] == i);
		must(!sublet_unmap(mm, memory, 4 * UNIT));
	}
	return arg;
}

/* A thread that writes all the time, and claims of what it writes on: refused, and not the end of both. */
static void claims(void)
{
	const struct sublet_claim_options all = { SUBLET_OPTIONS(sublet_claim_options),
						  .deadline_ns = 50 * SUBLET_MS };
	struct sublet_claim claim;

	char text[200];

	must(sublet_claim(arena, 16 * SUBLET_MIB, &all, &claim) == -EBUSY);
	/* at once: no window is tried, and nothing waited for */
	must(!claim.windows_tried && !claim.waits);
	must(claim.blocker_count && claim.blockers[0].kind == SUBLET_BLOCKER_PLATFORM);
	must(sublet_blocker_describe(&claim, 0, text, sizeof text) > 0);
	must(strstr(text, "memory that does not move under valgrind"));
	must(!sublet_claim(arena, SUBLET_MIB, &all, &claim));
	memset(claim.addr, 1, SUBLET_MIB);
	must(!sublet_release(arena, &claim));
}

/* What was released can be anything next: a claim of other bytes, or movable memory that is read by way of the linear map. */
static void claims_again(void)
{
	const struct sublet_claim_options stale = { SUBLET_OPTIONS(sublet_claim_options),
						    .flags = SUBLET_CLAIM_NOZERO };
	struct sublet_extent where;
	struct sublet_claim claim;
	uint64_t sum = 0;
	char *memory;

	for (int i = 0; i < 8; i++) {
		must(!sublet_claim(arena, SUBLET_MIB, i % 2 ? &stale : NULL, &claim));
		memset(claim.addr, i, i % 2 ? SUBLET_MIB : UNIT);
		for (size_t at = 0; at < SUBLET_MIB; at++)
			sum += ((unsigned char *)claim.addr)[at];
		must(!sublet_release(arena, &claim));
	}
	must(sum == 4 * SUBLET_MIB * 4 + UNIT * 12);
	while (!sublet_map(mm, SUBLET_MIB, SUBLET_MOVABLE, (void **)&memory)) { /* all that there is */
		memset(memory, 3, SUBLET_MIB);
		for (size_t at = 0; at < SUBLET_MIB; at += 4096) {
			must(sublet_mm_extents(mm, memory + at, 4096, 0, &where, 1) == 1);
			must(linear[where.offset_bytes] == 3);
		}
	}
}

/* Whether folios were dropped. A claim that is refused in the middle has dropped some, and not others. */
static bool cache_look(const char *cache)
{
	size_t dropped = 0;

	for (size_t at = 0; at < BYTES; at++) {
		must(cache[at] == cache[at / UNIT * UNIT]);
		must(cache[at] == 7 || !cache[at]);
		dropped += !cache[at];
	}
	return dropped;
}

static void clean(void)
{
	struct sublet_device *device;
	pthread_t thread[2];
	void *cache;
	int status;

	for (int i = 0; i < 2; i++)
		must(!pthread_create(&thread[i], NULL, worker, NULL));
	claims();
	for (int i = 0; i < 2; i++)
		pthread_join(thread[i], NULL);
	must(!sublet_map(mm, BYTES, SUBLET_DISCARDABLE, &cache));
	memset(cache, 7, BYTES);
	must(!sublet_unlock(mm, cache, BYTES));
	claims();
	must(sublet_device_open_uring(arena, NULL, &device) == -EOPNOTSUPP);
	int answer = sublet_lock(mm, cache, BYTES);
	must(answer == SUBLET_INTACT || answer == SUBLET_DISCARDED);
	must(cache_look(cache) == (answer == SUBLET_DISCARDED));
	pid_t pid = fork();
	if (!pid)
		_exit(heap[5] != 1);
	must(waitpid(pid, &status, 0) == pid && !status);
	claims_again();
}

/* A claim, and what must not be done with it; true: it was one of those modes. */
static bool claim_misused(const char *mode)
{
	const struct sublet_claim_options stale = { SUBLET_OPTIONS(sublet_claim_options),
						    .flags = SUBLET_CLAIM_NOZERO };
	bool is_stale = !strcmp(mode, "stale");
	struct sublet_claim claim;

	if (!is_stale && strcmp(mode, "released"))
		return false;
	must(!sublet_claim(arena, SUBLET_MIB, is_stale ? &stale : NULL, &claim));
	volatile char *memory = claim.addr;
	if (!is_stale)
		must(!memory[4100] && !sublet_release(arena, &claim));
	if (memory[4100])
		sink = 1;
	return true;
}

int main(int argc, char **argv)
{
	const struct sublet_arena_options options = { SUBLET_OPTIONS(sublet_arena_options),
						      .area_bytes = 16 * SUBLET_MIB,
						      .normal_bytes = 16 * SUBLET_MIB };
	const char *mode = argc > 1 ? argv[1] : "clean";
	void *memory;
	int err = sublet_arena_create(&options, &arena);

	if (err) {
		fprintf(stderr, "no arena: %s\n", strerror(-err));
		return 77;
	}
	struct sublet_arena_info info = { SUBLET_OPTIONS(sublet_arena_info) };
	must(!sublet_arena_info(arena, &info));
	linear = info.linear;
	mm = sublet_arena_mm(arena);
	must(!sublet_map(mm, BYTES, strcmp(mode, "unlocked") ? SUBLET_MOVABLE : SUBLET_DISCARDABLE, &memory));
	heap = memory;
	memset(heap, 1, BYTES);
	if (claim_misused(mode))
		mode = "done";
	else if (!strcmp(mode, "clean"))
		clean();
	else if (!strcmp(mode, "unmapped"))
		must(!sublet_unmap(mm, heap, BYTES));
	else if (!strcmp(mode, "decommitted")) /* a page: its unit stays where it is, and mapped */
		must(!sublet_decommit(mm, heap + 4096, 4096));
	else
		must(!sublet_unlock(mm, heap, BYTES));
	if (strcmp(mode, "clean") && strcmp(mode, "done"))
		sink = heap[4100];
	must(!sublet_arena_destroy(arena));
	return 0;
}
