/* SPDX-License-Identifier: MIT */
/*
 * The address-space operations of src/linux one at a time, without the engine: what each does, what is left when a call
 * of the kernel fails in the middle of it, and what signals and children of fork() see.
 */
#include "mm_world.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static void test_map_and_unmap(void **state)
{
	const struct sublet__mm_ops *ops = &sublet__linux_mm_ops;
	struct sublet__segment segs[3] = { { 0, 16, 0, 32 }, { 16, 16, 0, 64 }, { 32, 16, 0, 0 } };
	unsigned char vec[48];

	(void)state;
	assert_true(world_open(SUBLET_BACKING_MEMFD, SUBLET_TECHNIQUE_AUTO));
	mmap_fails_in = 3;
	assert_int_equal(ops->map(&W.mm, segs, 3, SUBLET__MAP_SHARED), -ENOMEM);
	assert_int_equal(madvise(W.va, 48 << 12, SUBLET__MADV_POPULATE_READ), -1); /* inaccessible still */
	assert_int_equal(ops->map(&W.mm, segs, 3, SUBLET__MAP_SHARED), 0);
	W.va[16 << 12] = 7;
	assert_int_equal(*sublet__mm_frame(&W.mm, 64), 7);
	ops->clear(&W.mm, 16, 1);
	assert_int_equal(*sublet__mm_frame(&W.mm, 64), 0);
	assert_int_equal(ops->map_plain(&W.mm, 16, 16), 0);
	W.va[16 << 12] = 9;
	assert_int_equal(*sublet__mm_frame(&W.mm, 64), 0);
	assert_int_equal(ops->map(&W.mm, &segs[1], 1, SUBLET__MAP_PRIVATE), 0);
	W.va[16 << 12] = 5;
	assert_int_equal(*sublet__mm_frame(&W.mm, 64), 0);
	assert_int_equal(ops->unmap(&W.mm, 0, 48), 0);
	assert_int_equal(madvise(W.va, 48 << 12, SUBLET__MADV_POPULATE_READ), -1);
	assert_int_equal(mincore(W.va, 48 << 12, vec), 0); /* reserved still */
	world_close();
}

/* Where a failed mmap takes the old mapping with it, the new one is put there all the same. */
static void test_mmap_that_unmaps(void **state)
{
	const struct sublet__mm_ops *ops = &sublet__linux_mm_ops;
	struct sublet__segment segs[2] = { { 0, 16, 0, 32 }, { 16, 16, 16, 64 } };

	(void)state;
	assert_true(world_open(SUBLET_BACKING_MEMFD, SUBLET_TECHNIQUE_AUTO));
	mmap_unmaps = true;
	for (int fails = 1; fails <= 2; fails++) {
		mmap_fails_in = fails;
		assert_int_equal(ops->map(&W.mm, segs, 2, SUBLET__MAP_SHARED), 0);
		assert_int_equal(mmap_fails_in, 0);
		W.va[0] = 1, W.va[16 << 12] = 2;
		assert_true(*sublet__mm_frame(&W.mm, 32) == 1 && *sublet__mm_frame(&W.mm, 64) == 2);
		mmap_fails_in = fails;
		assert_int_equal(ops->privatize(&W.mm, segs, 2, SUBLET__MAP_SHARED), 0);
		W.va[0] = 3, W.va[16 << 12] = 4;
		assert_true(*sublet__mm_frame(&W.mm, 32) == 1 && *sublet__mm_frame(&W.mm, 64) == 2);
		mmap_fails_in = fails;
		assert_int_equal(ops->restore(&W.mm, segs, 2, SUBLET__MAP_SHARED), 0);
		assert_true(*sublet__mm_frame(&W.mm, 32) == 3 && *sublet__mm_frame(&W.mm, 64) == 4);
		mmap_fails_in = 1;
		assert_int_equal(ops->map_plain(&W.mm, 0, 32), 0);
		assert_int_equal(W.va[0], 0);
		mmap_fails_in = 1;
		assert_int_equal(ops->unmap(&W.mm, 0, 32), 0);
		assert_int_equal(madvise(W.va, 32 << 12, SUBLET__MADV_POPULATE_READ), -1);
	}
	mmap_unmaps = false;
	world_close();
}

/* How [va, va + 32 pages) is mapped: "rw-s*3 r-xp*2 ...", from /proc/self/maps. */
static void maps_text(char *text, size_t size)
{
	struct sublet__lines lines;
	struct sublet__map_line m;
	const char *line;
	uint64_t first = (uintptr_t)W.va, end = first + (32u << 12);

	*text = 0;
	assert_int_equal(sublet__lines_open(&lines, AT_FDCWD, "/proc/self/maps"), 0);
	while ((line = sublet__lines_next(&lines)))
		if (sublet__map_line_parse(line, &m) && m.start < end && m.end > first) {
			uint64_t from = m.start > first ? m.start : first, to = m.end < end ? m.end : end;
			size_t n = strlen(text);
			snprintf(text + n, size - n, "%.4s*%d ", strchr(line, ' ') + 1,
				 (int)((to - from) >> 12));
		}
	sublet__lines_close(&lines);
}

/* A guard page, code and read-only data among the pages that turn private for a fork. */
static void test_protections_are_kept(void **state)
{
	static const char shared[] = "---s*1 rw-s*3 r-xs*2 rw-s*10 r--s*8 rw-s*8 ";
	const struct sublet__mm_ops *ops = &sublet__linux_mm_ops;
	struct sublet__segment segs[2] = { { 0, 16, 0, 32 }, { 16, 16, 16, 64 } };
	char text[400];

	(void)state;
	assert_true(world_open(SUBLET_BACKING_MEMFD, SUBLET_TECHNIQUE_AUTO));
	assert_int_equal(ops->map(&W.mm, segs, 2, SUBLET__MAP_SHARED), 0);
	for (int page = 0; page < 32; page++)
		W.va[page << 12] = (uint8_t)(page + 1);
	mprotect(W.va, 1 << 12, PROT_NONE);
	mprotect(W.va + (4 << 12), 2 << 12, PROT_READ | PROT_EXEC);
	mprotect(W.va + (16 << 12), 8 << 12, PROT_READ);
	maps_text(text, sizeof text);
	assert_string_equal(text, shared);
	for (int fails = 1; fails <= 6; fails++) {
		mmap_fails_in = fails;
		assert_int_equal(ops->privatize(&W.mm, segs, 2, SUBLET__MAP_PROTECTED), -ENOMEM);
		assert_int_equal(mmap_fails_in, 0);
		maps_text(text, sizeof text);
		assert_string_equal(text, shared);
	}
	int maps = W.mm.maps;
	W.mm.maps = -1; /* the descriptor that is kept is only the better one */
	assert_int_equal(ops->privatize(&W.mm, segs, 2, SUBLET__MAP_PROTECTED), 0);
	W.mm.maps = maps;
	maps_text(text, sizeof text);
	assert_string_equal(text, "---p*1 rw-p*3 r-xp*2 rw-p*10 r--p*8 rw-p*8 ");
	mprotect(W.va, 32 << 12, PROT_READ | PROT_WRITE);
	for (int page = 0; page < 32; page++) {
		assert_int_equal(W.va[page << 12], page + 1);
		W.va[page << 12] = 0;
		assert_int_equal(*sublet__mm_frame(&W.mm, (uint32_t)(page < 16 ? 32 + page : 48 + page)),
				 page + 1);
	}
	world_close();
}

/* A handler that touches a blocked range, on the thread that has blocked it, runs after wake or unblock. */
static volatile sig_atomic_t handled;

static void toucher(int signal)
{
	(void)signal;
	W.va[1]++;
	handled++;
}

static void signal_while_blocked(void)
{
	const struct sublet__mm_ops *ops = &sublet__linux_mm_ops;
	struct sublet__segment s = segment(0, 1, W.unit_of[0], W.unit_of[0]);
	int expected = 0;

	handled = 0;
	for (int i = 0; i < 3; i++) {
		assert_int_equal(ops->block(&W.mm, s.vpn, s.pages), 0);
		raise(SIGUSR1);
		assert_int_equal(handled, expected);
		if (i == 1) {
			assert_int_equal(ops->remap(&W.mm, &s, 1, SUBLET__MAP_SHARED), 0);
			ops->wake(&W.mm, s.vpn, s.pages);
		} else {
			ops->unblock(&W.mm, s.vpn, s.pages);
		}
		assert_int_equal(handled, ++expected);
		raise(SIGUSR1);
		assert_int_equal(handled, ++expected);
		assert_int_equal(ops->privatize(&W.mm, &s, 1, SUBLET__MAP_SHARED), 0);
		assert_int_equal(ops->restore(&W.mm, &s, 1, SUBLET__MAP_SHARED), 0);
		raise(SIGUSR1);
		assert_int_equal(handled, ++expected);
	}
	assert_int_equal(W.va[1], (uint8_t)(filler(0) >> 8) + expected);
}

static void test_signals(void **state)
{
	(void)state;
	signal(SIGUSR1, toucher);
	each_world(signal_while_blocked);
	signal(SIGUSR1, SIG_DFL);
}

/* In a child nothing is mapped from a descriptor whose number may be the child's own file by now. */
static void test_child_is_refused(void **state)
{
	const struct sublet__mm_ops *ops = &sublet__linux_mm_ops;
	struct sublet__segment s = { 0, 16, 0, 32 };
	int status;

	(void)state;
	assert_true(world_open(SUBLET_BACKING_MEMFD, SUBLET_TECHNIQUE_AUTO));
	assert_int_equal(ops->map(&W.mm, &s, 1, SUBLET__MAP_SHARED), 0);
	assert_int_equal(ops->privatize(&W.mm, &s, 1, SUBLET__MAP_SHARED), 0);
	pid_t pid = fork();
	if (!pid) {
		sublet__linux_mm_fork_child(&W.mm);
		W.va[0] = 1;
		ops->wake(&W.mm, 0, 16);
		ops->unblock(&W.mm, 0, 16);
		_exit(W.mm.fd != -1 || ops->map(&W.mm, &s, 1, SUBLET__MAP_SHARED) != -EPERM ||
		      ops->map_plain(&W.mm, 0, 16) != -EPERM || ops->unmap(&W.mm, 0, 16) != -EPERM ||
		      ops->track(&W.mm, 0, 16) != -EPERM || ops->block(&W.mm, 0, 16) != -EPERM ||
		      ops->remap(&W.mm, &s, 1, SUBLET__MAP_SHARED) != -EPERM ||
		      ops->privatize(&W.mm, &s, 1, SUBLET__MAP_SHARED) != -EPERM ||
		      ops->restore(&W.mm, &s, 1, SUBLET__MAP_SHARED) != -EPERM || W.va[0] != 1);
	}
	waitpid(pid, &status, 0);
	assert_int_equal(status, 0);
	world_close();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_map_and_unmap),        cmocka_unit_test(test_mmap_that_unmaps),
		cmocka_unit_test(test_protections_are_kept), cmocka_unit_test(test_signals),
		cmocka_unit_test(test_child_is_refused),
	};

	setvbuf(stdout, NULL, _IOLBF, 0);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
