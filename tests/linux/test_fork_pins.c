/* SPDX-License-Identifier: MIT */
/*
 * fork() of a program whose memory is in use, on real memory: a pin that nobody ends, and a device that hangs, end no program
 * and hold a fork up for about a second. The child does not have that memory; the parent keeps it, and the next child has it.
 * What makes processes without fork() does not wait, and turns nothing private.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <sublet/arena.h>
#include <sublet/bo.h>
#include <sublet/device.h>
#include <sublet/map.h>
#include <sublet/pin.h>
#include <sublet/stats.h>

#include <errno.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define AREA  ((uint64_t)64 << 20)
#define HEAP  ((uint64_t)24 << 20)
#define WORDS (HEAP / 8)
#define PAGE  ((uint64_t)4096)
#define KEY   0x9e3779b97f4a7c15ull
#define BLOCK (2 * SUBLET_MIB) /* no folio is larger */

/* Far above what a fork beside one thing in use takes, far below what it took when each of them had a second. */
#define MOST_NS (5 * SUBLET_SEC)

extern char **environ;

static const enum sublet_backing kinds[] = { SUBLET_BACKING_MEMFD, SUBLET_BACKING_THP };

static struct sublet_arena *arena;
static struct sublet_mm *mm;
static uint64_t *heap;

static uint64_t wall_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * SUBLET_SEC + (uint64_t)ts.tv_nsec;
}

static void fill(void)
{
	for (uint64_t i = 0; i < WORDS; i++)
		heap[i] = i * KEY;
}

/* False: the backing is not to be had here. */
static bool heap_open(enum sublet_backing kind)
{
	struct sublet_arena_options o = { SUBLET_OPTIONS(sublet_arena_options), .area_bytes = AREA,
					  .normal_bytes = AREA, .backing = kind };
	void *addr;
	int err = sublet_arena_create(&o, &arena);

	if (err == -EOPNOTSUPP)
		return false;
	assert_int_equal(err, 0);
	mm = sublet_arena_mm(arena);
	assert_int_equal(sublet_map(mm, HEAP, SUBLET_MOVABLE, &addr), 0);
	heap = addr;
	fill();
	return true;
}

static struct sublet_stats stats_now(void)
{
	struct sublet_stats s = { SUBLET_OPTIONS(sublet_stats) };

	assert_int_equal(sublet_arena_stats(arena, &s), 0);
	return s;
}

static void shared_again(void)
{
	for (int i = 0; i < 1000; i++) {
		if (!stats_now().area_held_bytes && !stats_now().children)
			return;
		usleep(10000);
	}
	fail_msg("a fork was never undone");
}

/* Bytes of the heap that no child would get: mappings with "dc" among their flags in /proc/self/smaps. */
static uint64_t excluded_bytes(void)
{
	FILE *smaps = fopen("/proc/self/smaps", "r");
	unsigned long start, end, low = 0, high = 0;
	uint64_t bytes = 0;
	char line[512];

	assert_non_null(smaps);
	while (fgets(line, sizeof line, smaps)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			low = start, high = end;
		if (strncmp(line, "VmFlags:", 8) == 0 && strstr(line, " dc") &&
		    low < (uintptr_t)heap + HEAP && high > (uintptr_t)heap)
			bytes += high - low;
	}
	fclose(smaps);
	return bytes;
}

/* What a child looks at: memory around [first, end) is there, and right; what is inside is not there, or all is. */
static int child_look(const char *first, const char *end, bool is_left_out)
{
	uint64_t from = ((uintptr_t)first & ~(BLOCK - 1)), to = ((uintptr_t)end + BLOCK - 1) & ~(BLOCK - 1);
	unsigned char vec;

	for (uint64_t i = 0; i < WORDS; i++) {
		uint64_t at = (uintptr_t)(heap + i);
		if ((!is_left_out || at < from || at >= to) && heap[i] != i * KEY)
			return 1;
	}
	for (const char *p = first; p < end; p += PAGE) {
		bool is_there = !mincore((void *)(uintptr_t)p, PAGE, &vec);
		if (is_there == is_left_out || (!is_there && errno != ENOMEM))
			return 2;
	}
	return 0;
}

/* Fork; the child looks. Returns how long fork() took. */
static uint64_t fork_and_look(const void *first, uint64_t bytes, bool is_left_out)
{
	uint64_t start = wall_ns();
	int status;
	pid_t pid = fork();

	if (!pid)
		_exit(child_look(first, (const char *)first + bytes, is_left_out));
	uint64_t took = wall_ns() - start;
	assert_true(pid > 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	return took;
}

/* A child that touches what it does not have. */
static void fork_and_touch(const volatile uint64_t *word)
{
	int status;
	pid_t pid = fork();

	if (!pid) {
		signal(SIGSEGV, SIG_DFL);
		_exit(*word ? 1 : 2);
	}
	assert_true(pid > 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
}

/* The device goes on writing to the frame, and the parent reads it: the pin is what it was (G1, G2). */
static void check_pin(const struct sublet_pin *pin, uint64_t *words, uint64_t offset, uint64_t value)
{
	struct sublet_arena_info info = { SUBLET_OPTIONS(sublet_arena_info) };
	struct sublet_extent e;
	uint64_t was = words[0];

	assert_int_equal(sublet_arena_info(arena, &info), 0);
	assert_int_equal(sublet_pin_extents(pin, 0, &e, 1), 1);
	assert_int_equal(e.offset_bytes, offset);
	*(volatile uint64_t *)((char *)info.linear + offset) = value;
	assert_int_equal(((volatile uint64_t *)words)[0], value);
	words[0] = was;
}

static void check_heap(void)
{
	for (uint64_t i = 0; i < WORDS; i++)
		if (heap[i] != i * KEY)
			fail_msg("word %llu is wrong", (unsigned long long)i);
}

static void pin_that_stays(void **unused)
{
	static const uint64_t sizes[] = { PAGE, 3 * SUBLET_MIB };
	(void)unused;

	for (uint32_t k = 0; k < 4; k++) {
		struct sublet_pin pin;
		struct sublet_extent e;
		uint64_t *words;
		if (!heap_open(kinds[k / 2]))
			continue;
		words = heap + WORDS / 2 + 512;
		assert_int_equal(sublet_pin(mm, words, sizes[k % 2], SUBLET_PIN_WRITE, "forgotten", &pin), 0);
		assert_int_equal(sublet_pin_extents(&pin, 0, &e, 1), 1);
		uint64_t took = fork_and_look(words, sizes[k % 2], true);
		print_message("fork() beside a pin of %llu KiB took %llu ms\n",
			      (unsigned long long)(sizes[k % 2] >> 10),
			      (unsigned long long)(took / SUBLET_MS));
		assert_in_range(took, SUBLET_SEC, MOST_NS);
		check_pin(&pin, words, e.offset_bytes, 77);
		fork_and_touch(words);
		check_pin(&pin, words, e.offset_bytes, 78);
		check_heap();
		shared_again();
		for (int i = 0; i < 1000 && excluded_bytes(); i++) /* not long after */
			usleep(10000);
		assert_int_equal(excluded_bytes(), 0);
		check_pin(&pin, words, e.offset_bytes, 79); /* it outlives all that */
		assert_int_equal(sublet_unpin(&pin), 0);
		(void)fork_and_look(words, sizes[k % 2], false);
		shared_again();
		check_heap();
		sublet_arena_destroy(arena);
	}
}

/* One second for all address spaces and arenas together. */
static void many_pins(void **unused)
{
	enum { MMS = 8 };
	struct sublet_mm *others[MMS];
	struct sublet_pin pin[MMS + 1];
	(void)unused;

	assert_true(heap_open(SUBLET_BACKING_MEMFD));
	assert_int_equal(sublet_pin(mm, heap, PAGE, SUBLET_PIN_WRITE, NULL, &pin[MMS]), 0);
	for (uint32_t i = 0; i < MMS; i++) {
		void *addr;
		assert_int_equal(sublet_arena_mm_add(arena, &others[i]), 0);
		assert_int_equal(sublet_map(others[i], 4 * SUBLET_MIB, SUBLET_MOVABLE, &addr), 0);
		assert_int_equal(sublet_pin(others[i], addr, PAGE, SUBLET_PIN_READ, NULL, &pin[i]), 0);
	}
	assert_in_range(fork_and_look(heap, PAGE, true), SUBLET_SEC, MOST_NS);
	for (uint32_t i = 0; i <= MMS; i++)
		assert_int_equal(sublet_unpin(&pin[i]), 0);
	shared_again();
	check_heap();
	sublet_arena_destroy(arena);
}

/* A job that hangs, with a long time to do so: its buffer is left out, and nothing far from it. */
static void device_that_hangs(void **unused)
{
	struct sublet_device_info info = { SUBLET_OPTIONS(sublet_device_info) };
	struct sublet_job job = { SUBLET_OPTIONS(sublet_job), .op = SUBLET_JOB_FILL, .bytes = SUBLET_MIB,
				  .timeout_ns = 6 * SUBLET_SEC };
	struct sublet_device *device;
	struct sublet_fence fence;
	struct sublet_bo bo;
	uint64_t *words;
	(void)unused;

	assert_true(heap_open(SUBLET_BACKING_MEMFD));
	words = heap + WORDS / 2;
	assert_int_equal(sublet_device_open_soft(arena, NULL, &device), 0);
	assert_int_equal(sublet_bo_create(device, mm, words, SUBLET_MIB, SUBLET_BO_TRACKED, "hangs", &bo), 0);
	assert_int_equal(sublet_device_soft_fault(device, SUBLET_SOFT_HANG), 0);
	assert_int_equal(sublet_submit(device, &job, &bo, 1, &fence), 0);
	uint64_t took = fork_and_look(words, SUBLET_MIB, true);
	print_message("fork() beside a job that hangs took %llu ms\n",
		      (unsigned long long)(took / SUBLET_MS));
	assert_in_range(took, SUBLET_SEC, MOST_NS);
	assert_int_equal(sublet_device_info(device, &info), 0);
	assert_int_equal(info.resets, 0); /* nobody reset it for the fork */
	assert_int_equal(sublet_fence_put(&fence), 0);
	sublet_device_close(device);
	memset(words, 0, SUBLET_MIB); /* what the job wrote */
	fill();
	(void)fork_and_look(words, SUBLET_MIB, false);
	shared_again();
	check_heap();
	sublet_arena_destroy(arena);
}

static int by_posix_spawn(void)
{
	char name[] = "true", *argv[] = { name, NULL };
	pid_t pid;
	int status = -1;

	if (posix_spawn(&pid, "/bin/true", NULL, NULL, argv, environ) || waitpid(pid, &status, 0) != pid)
		return -1;
	return status;
}

static int by_vfork(void)
{
	int status = -1;
	pid_t pid = vfork();

	if (!pid) {
		execl("/bin/true", "true", NULL);
		_exit(127);
	}
	return waitpid(pid, &status, 0) == pid ? status : -1;
}

static int by_system(void)
{
	return system("exit 0");
}

static int by_popen(void)
{
	char line[16] = "";
	FILE *in = popen("echo here", "r");

	if (!in || !fgets(line, sizeof line, in) || strcmp(line, "here\n") != 0)
		return -1;
	return pclose(in);
}

/* They share the address space until they exec: nothing turns private, no pin is waited for. */
static void processes_without_fork(void **unused)
{
	static const struct {
		const char *name;
		int (*make)(void);
	} ways[] = {
		{ "posix_spawn", by_posix_spawn },
		{ "vfork", by_vfork },
		{ "system", by_system },
		{ "popen", by_popen },
	};
	struct sublet_pin pin;
	struct sublet_extent e;
	(void)unused;

	assert_true(heap_open(SUBLET_BACKING_MEMFD));
	assert_int_equal(sublet_pin(mm, heap, PAGE, SUBLET_PIN_WRITE, "io", &pin), 0);
	assert_int_equal(sublet_pin_extents(&pin, 0, &e, 1), 1);
	for (uint32_t i = 0; i < sizeof ways / sizeof ways[0]; i++) {
		uint64_t start = wall_ns();
		assert_int_equal(ways[i].make(), 0);
		print_message("%s took %llu us\n", ways[i].name,
			      (unsigned long long)((wall_ns() - start) / SUBLET_US));
		/* A fork that was begun is counted after its wait. */
		assert_int_equal(stats_now().forks, 0);
		assert_int_equal(stats_now().area_held_bytes, 0);
		assert_int_equal(excluded_bytes(), 0);
		check_pin(&pin, heap, e.offset_bytes, i);
	}
	assert_int_equal(sublet_unpin(&pin), 0);
	check_heap();
	sublet_arena_destroy(arena);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(pin_that_stays),
		cmocka_unit_test(many_pins),
		cmocka_unit_test(device_that_hangs),
		cmocka_unit_test(processes_without_fork),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
