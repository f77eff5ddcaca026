/* SPDX-License-Identifier: MIT */
/*
 * mlockall() of a lent program.
 *
 * The kernel compares the limit (RLIMIT_MEMLOCK) with all addresses of the process, and those of a lent program are
 * 64 GiB and more: what is reserved for malloc, and the engine's own view of all frames. So under any finite limit
 * mlockall(MCL_CURRENT) fails, however little the program has. Where it fails for that, the mappings are locked one by
 * one here, as far as the program could know of them:
 *
 *   locked      everything that is readable, writable or executable: the program, its libraries, its stacks, its own
 *               mappings, and lent memory that malloc has taken
 *   in part     what malloc mapped before main() and where it keeps its own structures, and the stacks of sublet's
 *               threads: what has been touched of them, which is little
 *   left out    addresses without memory; the engine's view of the frames, which are locked where the program sees
 *               them; the engine's tables; the two libraries that `sublet run` preloads
 *
 * The sum is compared with the limit first, so that a refusal locks nothing. MCL_FUTURE alone is not refused by the
 * kernel for what there is, and is left to it. Under it what the engine takes back from malloc is unlocked again
 * (linux/mm.c): addresses without memory would count as locked.
 */
#include "bridge/bridge.h"

#include "linux/linux.h"
#include "linux/proc.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

#ifndef MCL_ONFAULT
#define MCL_ONFAULT 4
#endif
#ifndef MLOCK_ONFAULT
#define MLOCK_ONFAULT 1u
#endif

#define PAGE_BYTES  ((uintptr_t)4096)
#define BLOCK_BYTES (128 * SUBLET_KIB) /* smaller ones are not worth a look */
#define MALLOC_FILE "/libjemalloc.so"
#define LOOK_PAGES  512u
#define RANGES_MAX  64u

struct range {
	uintptr_t start, end;
};

/* Noted by the constructor, before the program has a second thread. */
static struct range structures[RANGES_MAX];
static uint32_t structure_count;

/*
 * Before main() these are malloc's, the arena's and the stacks of its threads. What follows a file is its .bss, which is
 * the program's, but for libjemalloc's: the kernel makes one mapping of that and what malloc has beside it.
 */
void sublet__lockall_prepare(void)
{
	struct sublet__lines lines;
	struct sublet__map_line map;
	uint64_t file_end = 0; /* of a file that is not malloc's */
	const char *line;

	if (sublet__lines_open(&lines, AT_FDCWD, "/proc/self/maps") != 0)
		return;
	while ((line = sublet__lines_next(&lines)) != NULL && sublet__map_line_parse(line, &map)) {
		if (map.is_private && map.ino == 0 && map.prot == (PROT_READ | PROT_WRITE) &&
		    map.end - map.start >= BLOCK_BYTES && strchr(line, '[') == NULL &&
		    map.start != file_end && structure_count < RANGES_MAX)
			structures[structure_count++] = (struct range){ map.start, map.end };
		if (map.ino != 0 && strstr(line, MALLOC_FILE) == NULL)
			file_end = map.end;
	}
	sublet__lines_close(&lines);
}

/* What a pass over /proc/self/maps does. */
struct pass {
	struct range view;    /* the engine's, of all frames */
	const void *table[2]; /* addresses in its tables */
	bool does_lock;       /* or only adds up */
	unsigned int flags;   /* of mlock2 */
	uint64_t bytes;
};

static void take(struct pass *pass, uintptr_t start, uintptr_t end)
{
	if (start >= end)
		return;
	pass->bytes += end - start;
	/* Like the kernel's mlockall: what cannot be locked, a device's mapping say, is passed over. */
	if (pass->does_lock && sublet__real.mlock2((void *)start, end - start, pass->flags) != 0 &&
	    pass->flags == 0)
		(void)sublet__real.mlock((void *)start, end - start);
}

/* Of a block of malloc's: runs of pages that are in memory. */
static void take_touched(struct pass *pass, uintptr_t start, uintptr_t end)
{
	unsigned char in_memory[LOOK_PAGES];

	for (uintptr_t at = start, next; at < end; at = next) {
		uintptr_t run_start = at;

		next = end - at < LOOK_PAGES * PAGE_BYTES ? end : at + LOOK_PAGES * PAGE_BYTES;
		if (mincore((void *)at, next - at, in_memory) != 0)
			continue;
		for (size_t i = 0; at + i * PAGE_BYTES < next; i++)
			if (!(in_memory[i] & 1)) {
				take(pass, run_start, at + i * PAGE_BYTES);
				run_start = at + (i + 1) * PAGE_BYTES;
			}
		take(pass, run_start, next);
	}
}

static bool is_left_out(const struct pass *pass, const struct sublet__map_line *map, const char *line)
{
	if (map->prot == PROT_NONE || (map->start >= pass->view.start && map->start < pass->view.end) ||
	    strstr(line, SUBLET__BRIDGE_FILE) != NULL || strstr(line, MALLOC_FILE) != NULL)
		return true;
	for (size_t i = 0; i < sizeof(pass->table) / sizeof(pass->table[0]); i++)
		if ((uintptr_t)pass->table[i] >= map->start && (uintptr_t)pass->table[i] < map->end)
			return true;
	return false;
}

/* One mapping: malloc's blocks are few, and each may lie anywhere in it. */
static void take_mapping(struct pass *pass, const struct sublet__map_line *map)
{
	for (uintptr_t at = map->start; at < map->end;) {
		struct range block = { map->end, map->end }; /* the first that ends after `at` */

		for (uint32_t i = 0; i < structure_count; i++)
			if (structures[i].end > at && structures[i].start < block.start)
				block = structures[i];
		if (block.start < at)
			block.start = at;
		if (block.end > map->end)
			block.end = map->end;
		take(pass, at, block.start);
		take_touched(pass, block.start, block.end);
		at = block.end;
	}
}

static int run(struct pass *pass)
{
	struct sublet__lines lines;
	struct sublet__map_line map;
	const char *line;
	int err = sublet__lines_open(&lines, AT_FDCWD, "/proc/self/maps");

	if (err != 0)
		return err;
	while ((line = sublet__lines_next(&lines)) != NULL)
		if (sublet__map_line_parse(line, &map) && map.end <= UINTPTR_MAX / 2 &&
		    !is_left_out(pass, &map, line))
			take_mapping(pass, &map);
	err = lines.error;
	sublet__lines_close(&lines);
	return err;
}

static void note_all_locked(bool locked)
{
	uintptr_t low = atomic_load_explicit(&sublet__bridge.low, memory_order_relaxed);
	uintptr_t high = atomic_load_explicit(&sublet__bridge.high, memory_order_relaxed);

	if (low < high)
		sublet__engine_note_locked((void *)low, high - low, locked);
}

/* MCL_CURRENT after the kernel's refusal. 0, or -1 with errno ENOMEM and nothing locked. */
static int lock_each(int flags)
{
	struct sublet_arena_info info = { SUBLET_OPTIONS(sublet_arena_info) };
	struct rlimit limit;
	struct pass pass = { .flags = (flags & MCL_ONFAULT) != 0 ? MLOCK_ONFAULT : 0 };

	if (getrlimit(RLIMIT_MEMLOCK, &limit) != 0 || sublet_arena_info(sublet__bridge.arena, &info) != 0)
		goto refuse;
	pass.view = (struct range){ (uintptr_t)info.linear,
				    (uintptr_t)info.linear + info.area_bytes + info.normal_bytes };
	pass.table[0] = sublet__bridge.arena;
	pass.table[1] = atomic_load_explicit(&sublet__bridge.mm, memory_order_acquire);
	if (run(&pass) != 0 || pass.bytes > limit.rlim_cur)
		goto refuse;
	if ((flags & MCL_FUTURE) != 0 && sublet__real.mlockall(flags & ~MCL_CURRENT) != 0)
		return -1;
	/* Noted first: whatever moves meanwhile is locked again by the engine. */
	note_all_locked(true);
	pass.does_lock = true;
	if (run(&pass) == 0)
		return 0;
refuse:
	errno = ENOMEM;
	return -1;
}

/* What is mapped later under MCL_FUTURE, moved ranges included, the kernel locks by itself. */
SUBLET__INTERPOSER int mlockall(int flags)
{
	bool is_lent = sublet__bridge_state() == SUBLET__OWNER_LENT;
	int err = sublet__real.mlockall(flags);

	if (is_lent && err != 0 && errno == ENOMEM && (flags & MCL_CURRENT) != 0)
		err = lock_each(flags);
	else if (is_lent && err == 0 && (flags & MCL_CURRENT) != 0)
		note_all_locked(true);
	if (is_lent && err == 0)
		sublet__linux_lock_future((flags & MCL_FUTURE) != 0);
	return err;
}

SUBLET__INTERPOSER int munlockall(void)
{
	if (sublet__bridge_state() == SUBLET__OWNER_LENT) {
		note_all_locked(false);
		sublet__linux_lock_future(false);
	}
	return sublet__real.munlockall();
}
