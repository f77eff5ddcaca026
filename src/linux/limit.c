/* SPDX-License-Identifier: MIT */
/*
 * linux/limit.c: the limits of a process and its control groups, as an arena meets them.
 *
 * An errno has several causes: ENOMEM may be a lack of memory, RLIMIT_AS, RLIMIT_DATA or a control group. So a message
 * is made by looking at each limit and what is left under it, and names the one that does not suffice.
 *
 * The range of addresses for lent memory (the window) costs addresses alone, but its table is private memory that may be
 * written, 1 byte for 1 KiB of window, and RLIMIT_DATA counts it whether it is used or not. Under such a limit the window
 * is so small that the table takes a sixteenth of what is left. Rejected: tables in shared memory, which count as nothing,
 * because a child of fork() would have its parent's table before it and not a copy.
 */
#include "linux/limit.h"

#include "linux/cgroup.h"
#include "linux/proc.h"

#include <errno.h>
#include <string.h>
#include <sys/resource.h>

#define UNIT_BYTES          (2 * SUBLET_MIB)
#define WINDOW_LEAST_FACTOR 4u  /* of the area */
#define TABLE_SHARE         16u /* the window's table takes this part of the data that is left */
#define WINDOW_PER_TABLE    1024u
#define MEMORY_PER_TABLE    256u /* 16 bytes a frame of 4 KiB */
/* What libjemalloc and its first mappings take, in a program that has hardly begun. */
#define MALLOC_ADDRESSES_BYTES (18 * SUBLET_MIB)
#define MALLOC_DATA_BYTES      (11 * SUBLET_MIB)

static uint64_t least_window(uint64_t area_bytes)
{
	return WINDOW_LEAST_FACTOR * area_bytes;
}

struct sublet__limit_need sublet__limit_need(uint64_t area_bytes, uint64_t normal_bytes)
{
	uint64_t memory = area_bytes + normal_bytes, window = least_window(area_bytes);
	uint64_t tables = window / WINDOW_PER_TABLE + memory / MEMORY_PER_TABLE;

	return (struct sublet__limit_need){
		.addresses_bytes = memory + window + tables + 2 * UNIT_BYTES + SUBLET__BESIDE_BYTES,
		.data_bytes = tables + SUBLET__BESIDE_BYTES,
	};
}

uint64_t sublet__limit_window(uint64_t area_bytes, uint64_t wanted_bytes)
{
	uint64_t least = least_window(area_bytes), addresses = sublet__addresses_left() / 2;
	uint64_t data = sublet__data_left(), bytes = wanted_bytes;

	if (bytes > addresses)
		bytes = addresses;
	if (data < UINT64_MAX && bytes > data / TABLE_SHARE * WINDOW_PER_TABLE)
		bytes = data / TABLE_SHARE * WINDOW_PER_TABLE;
	bytes &= ~(UNIT_BYTES - 1);
	return bytes > least ? bytes : least;
}

/* ---- which one it was ---- */

static void add_kib(struct sublet__text *text, const char *before, uint64_t bytes, const char *after)
{
	sublet__text_add(text, before);
	sublet__text_add_number(text, (bytes + 1023) >> 10);
	sublet__text_add(text, after);
}

static uint64_t soft_limit(int resource)
{
	struct rlimit limit;

	return getrlimit((__rlimit_resource_t)resource, &limit) ? RLIM_INFINITY : limit.rlim_cur;
}

static uint64_t hard_limit(int resource)
{
	struct rlimit limit;

	return getrlimit((__rlimit_resource_t)resource, &limit) ? RLIM_INFINITY : limit.rlim_max;
}

/* One of the two limits that count what is mapped, and what of it is taken when an arena is made. */
struct space {
	uint64_t limit;
	uint64_t used;
};

/*
 * What malloc maps first is there before an arena is made in a lent program, and not yet in whoever asks beforehand:
 * it counts in either case.
 */
static struct space space_of(int resource, uint64_t left, uint64_t malloc_bytes)
{
	struct space space = { soft_limit(resource), malloc_bytes };

	if (space.limit != RLIM_INFINITY && space.limit - left > malloc_bytes)
		space.used = space.limit - left;
	return space;
}

static struct space addresses(void)
{
	return space_of(RLIMIT_AS, sublet__addresses_left(), MALLOC_ADDRESSES_BYTES);
}

static struct space data(void)
{
	return space_of(RLIMIT_DATA, sublet__data_left(), MALLOC_DATA_BYTES);
}

/* ulimit -LETTER counts in KiB. */
static bool explain_bytes(struct sublet__text *text, const char *name, const char *letter,
			  const struct space *space, uint64_t need)
{
	if (space->limit == RLIM_INFINITY || space->used + need <= space->limit)
		return false;
	add_kib(text, name, space->limit, " KiB; allow at least ");
	add_kib(text, "", space->used + need, " KiB: `ulimit -");
	sublet__text_add(text, letter);
	add_kib(text, " ", space->used + need, "`, or a smaller --area and --normal");
	return true;
}

static bool explain_memory(struct sublet__text *text, uint64_t need)
{
	struct sublet__text by;
	uint64_t left = sublet__memory_left(&by);

	if (left >= need)
		return false;
	add_kib(text, "it takes ", need, " KiB, and ");
	add_kib(text, "", left, " KiB are left ");
	sublet__text_add(text, by.data[0] ? "under the limit in " : "on this machine");
	sublet__text_add(text, by.data);
	sublet__text_add(text, "; try a smaller --area and --normal");
	return true;
}

static bool explain_tasks(struct sublet__text *text)
{
	struct sublet__text by;
	uint64_t left = sublet__cgroup_tasks_left("", &by), limit = soft_limit(RLIMIT_NPROC);

	/* Few enough that one of ours was one too many. */
	if (left <= sublet__cpu_count() + 8) {
		sublet__text_add(text, "the limit of processes and threads in ");
		sublet__text_add(text, by.data);
		sublet__text_add(text, " leaves ");
		sublet__text_add_number(text, left);
	} else if (limit != RLIM_INFINITY) {
		sublet__text_add(text, "the user may have ");
		sublet__text_add_number(text, limit);
		sublet__text_add(text, " processes and threads (RLIMIT_NPROC, `ulimit -u`)");
	} else {
		return false;
	}
	sublet__text_add(text, "; an arena needs up to ");
	sublet__text_add_number(text, sublet__cpu_count() + 4);
	sublet__text_add(text, " beside the program's");
	return true;
}

static bool explain_hugetlb(struct sublet__text *text, uint64_t bytes)
{
	uint64_t need = bytes / UNIT_BYTES, left = sublet__hugetlb_free_pages();

	if (left >= need)
		return false;
	sublet__text_add(text, "it takes ");
	sublet__text_add_number(text, need);
	sublet__text_add(text, " huge pages of 2 MiB, and ");
	sublet__text_add_number(text, left);
	sublet__text_add(text, " are free; reserve more (`sysctl vm.nr_hugepages`)");
	return true;
}

static bool explain_space(struct sublet__text *text, const struct sublet_arena_options *o)
{
	struct sublet__limit_need need = sublet__limit_need(o->area_bytes, o->normal_bytes);
	struct space a = addresses(), d = data();

	return explain_bytes(text, "the limit of addresses (RLIMIT_AS) is ", "v", &a, need.addresses_bytes) ||
	       explain_bytes(text, "the limit of private memory (RLIMIT_DATA) is ", "d", &d, need.data_bytes);
}

static bool explain(int err, const struct sublet_arena_options *o, struct sublet__text *text)
{
	uint64_t bytes = o->area_bytes + o->normal_bytes;

	switch (err) {
	case -ENOMEM:
		return explain_space(text, o) ||
		       (o->backing == SUBLET_BACKING_HUGETLB ? explain_hugetlb(text, bytes)
							     : explain_memory(text, bytes + bytes / 64));
	case -EAGAIN: /* of a thread: libc says so also where there is no room for its stack */
		return explain_space(text, o) || explain_tasks(text);
	case -EFBIG:
		add_kib(text, "the limit of file sizes (RLIMIT_FSIZE) is ", soft_limit(RLIMIT_FSIZE),
			" KiB and holds for memory that is a file; allow at least ");
		add_kib(text, "", bytes, " KiB: `ulimit -f ");
		add_kib(text, "", bytes, "` or `ulimit -f unlimited`");
		return true;
	case -EMFILE:
		sublet__text_add(text, "the hard limit of open files (RLIMIT_NOFILE) is ");
		sublet__text_add_number(text, hard_limit(RLIMIT_NOFILE));
		sublet__text_add(text, "; allow at least ");
		sublet__text_add_number(text, SUBLET__DESCRIPTORS_LEAST);
		sublet__text_add(text, ": `ulimit -Hn 1024`");
		return true;
	default:
		return false;
	}
}

/* So many eighths of what the limit leaves beside an arena. */
static uint64_t fitting(struct space space, uint64_t eighths)
{
	uint64_t taken = space.used + SUBLET__BESIDE_BYTES + 2 * UNIT_BYTES;

	if (space.limit == RLIM_INFINITY)
		return UINT64_MAX;
	return space.limit > taken ? (space.limit - taken) / 8 * eighths : 0;
}

uint64_t sublet__limit_fitting_bytes(void)
{
	/* The window takes another four times as much addresses, and the program wants some; tables are a hundredth. */
	uint64_t a = fitting(addresses(), 1), d = fitting(data(), 512), f = soft_limit(RLIMIT_FSIZE);
	uint64_t least = a < d ? a : d;

	return least < f ? least : f;
}

bool sublet__limit_explain(int err, const struct sublet_arena_options *options,
			   char text[SUBLET__LIMIT_TEXT_BYTES])
{
	struct sublet__text all;

	_Static_assert(sizeof all.data <= SUBLET__LIMIT_TEXT_BYTES, "it is copied whole");
	sublet__text_start(&all, "");
	bool is_found = explain(err, options, &all);
	memcpy(text, all.data, all.bytes + 1);
	return is_found;
}
