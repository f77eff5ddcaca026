/* SPDX-License-Identifier: MIT */
/*
 * Backings: what they are made of, what they refuse, and the small readers of /proc below them.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "linux/backing.h"
#include "linux/copy.h"
#include "linux/fork.h"
#include "linux/proc.h"
#include "linux/uapi.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define BYTES ((uint64_t)8 << 20)

static struct sublet_arena_options options_of(enum sublet_backing kind)
{
	return (struct sublet_arena_options){ SUBLET_OPTIONS(sublet_arena_options), .backing = kind,
					      .fd = -1 };
}

static void check_linear(const struct sublet__backing *b)
{
	assert_int_equal((uintptr_t)b->linear % (2 << 20), 0);
	assert_true(b->kind != SUBLET_BACKING_AUTO);
	assert_true(fcntl(b->fd, F_GETFD) & FD_CLOEXEC);
	for (uint64_t i = 0; i < b->bytes; i += 4096)
		assert_int_equal(b->linear[i], 0);
	/* A child does not have it. */
	pid_t pid = fork();
	if (!pid)
		_exit(madvise(b->linear, b->bytes, SUBLET__MADV_POPULATE_READ) ? 0 : 1);
	int status;
	waitpid(pid, &status, 0);
	assert_int_equal(status, 0);
}

static void test_kinds(void **state)
{
	static const enum sublet_backing kinds[] = { SUBLET_BACKING_AUTO, SUBLET_BACKING_MEMFD,
						     SUBLET_BACKING_THP, SUBLET_BACKING_HUGETLB };

	(void)state;
	for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
		struct sublet_arena_options o = options_of(kinds[i]);
		struct sublet__backing b;
		int err = sublet__backing_open(&b, &o, BYTES);
		print_message("backing %d: %d, came to %d\n", (int)kinds[i], err, err ? 0 : (int)b.kind);
		if (kinds[i] == SUBLET_BACKING_MEMFD || kinds[i] == SUBLET_BACKING_AUTO)
			assert_int_equal(err, 0);
		if (err)
			continue;
		assert_true(kinds[i] == SUBLET_BACKING_AUTO ? b.kind != SUBLET_BACKING_HUGETLB
							    : b.kind == kinds[i]);
		assert_int_equal(b.frame_shift, b.kind == SUBLET_BACKING_HUGETLB ? 21 : 12);
		assert_true(b.zeroed && b.owns_fd && b.owns_linear);
		check_linear(&b);
		sublet__backing_close(&b);
	}
}

static void test_too_much_is_refused(void **state)
{
	static const enum sublet_backing kinds[] = { SUBLET_BACKING_AUTO, SUBLET_BACKING_MEMFD,
						     SUBLET_BACKING_THP, SUBLET_BACKING_HUGETLB };
	uint64_t before = sublet__memory_available();

	(void)state;
	for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
		struct sublet_arena_options o = options_of(kinds[i]);
		struct sublet__backing b;
		assert_int_equal(sublet__backing_open(&b, &o, (uint64_t)1 << 42), -ENOMEM);
	}
	assert_true(sublet__memory_available() + (before >> 2) > before);
}

static void test_given_descriptor(void **state)
{
	struct sublet_arena_options o = options_of(SUBLET_BACKING_FD);
	struct sublet__backing b;

	(void)state;
	assert_int_equal(sublet__backing_open(&b, &o, BYTES), -EINVAL); /* -1 */
	o.fd = memfd_create("given", MFD_CLOEXEC);
	assert_int_equal(ftruncate(o.fd, (off_t)BYTES + (2 << 20) - 1), 0);
	o.fd_offset_bytes = 2 << 20;
	assert_int_equal(sublet__backing_open(&b, &o, BYTES), -EINVAL); /* one byte short */
	assert_int_equal(ftruncate(o.fd, (off_t)BYTES + (2 << 20)), 0);
	o.fd_offset_bytes = 4096;
	assert_int_equal(sublet__backing_open(&b, &o, BYTES), -EINVAL); /* not aligned */
	o.fd_offset_bytes = 2 << 20;
	assert_int_equal(sublet__backing_open(&b, &o, BYTES), 0);
	assert_false(b.zeroed || b.owns_fd);
	b.linear[5] = 42;
	sublet__backing_close(&b);

	uint8_t *map = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, o.fd, 2 << 20);
	assert_int_equal(map[5], 42);
	o.linear = map;
	assert_int_equal(sublet__backing_open(&b, &o, BYTES), 0);
	assert_ptr_equal(b.linear, map);
	sublet__backing_close(&b);
	assert_int_equal(map[5], 42);
	assert_int_equal(mprotect(map, BYTES, PROT_READ), 0);
	assert_int_equal(sublet__backing_open(&b, &o, BYTES), -EINVAL); /* it cannot be written */
	munmap(map, BYTES);
	assert_int_equal(sublet__backing_open(&b, &o, BYTES), -EINVAL); /* there is nothing */
	close(o.fd);

	o.linear = NULL;
	o.fd = open("/", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (o.fd >= 0) { /* a disk file */
		assert_int_equal(ftruncate(o.fd, 32 << 20), 0);
		assert_int_equal(sublet__backing_open(&b, &o, BYTES), -EOPNOTSUPP);
		close(o.fd);
	}
}

static void test_unprivileged_huge_tmpfs(void **state)
{
	int status;
	pid_t pid = fork();

	(void)state;
	if (!pid) {
		if (!geteuid() && (setgid(65534) || setuid(65534)))
			_exit(2);
		prctl(PR_SET_DUMPABLE, 1, 0, 0, 0); /* setuid took it away; a user's own program has it */
		int fd = sublet__huge_tmpfs_open(4 << 20);
		char *p = fd < 0 ? MAP_FAILED
				 : mmap(NULL, 4 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (fd >= 0 && (ftruncate(fd, 4 << 20) || p == MAP_FAILED || madvise(p, 4 << 20, 23)))
			_exit(3);
		if (waitpid(-1, NULL, __WALL) != -1 || errno != ECHILD)
			_exit(4); /* it left a child */
		_exit(fd == -EPERM || fd == -EACCES || fd == -ENOSPC || fd == -EUSERS ? 77 : fd < 0 ? 5 : 0);
	}
	waitpid(pid, &status, 0);
	print_message("unprivileged huge tmpfs: exit %d\n", WEXITSTATUS(status));
	assert_true(WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 77));
}

/* Beyond the limit for files ftruncate would kill this program. */
static void test_file_size_limit(void **state)
{
	static const enum sublet_backing kinds[] = { SUBLET_BACKING_AUTO, SUBLET_BACKING_MEMFD,
						     SUBLET_BACKING_THP, SUBLET_BACKING_HUGETLB };
	struct rlimit old, tight;

	(void)state;
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
	tight = old;
	tight.rlim_cur = BYTES - 1;
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &tight), 0);
	for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
		struct sublet_arena_options o = options_of(kinds[i]);
		struct sublet__backing b;
		assert_int_equal(sublet__backing_open(&b, &o, BYTES), -EFBIG);
	}
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
}

/* No descriptor left is no lack of the kernel's, whatever the kind. */
static void test_open_file_limit(void **state)
{
	static const enum sublet_backing kinds[] = { SUBLET_BACKING_THP, SUBLET_BACKING_MEMFD };
	struct rlimit old, none;
	struct sublet__backing b;

	(void)state;
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
	none = (struct rlimit){ 3, old.rlim_max };
	for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
		struct sublet_arena_options o = options_of(kinds[i]);
		int err = sublet__backing_open(&b, &o, BYTES);
		if (err)
			continue; /* not on this machine */
		sublet__backing_close(&b);
		assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
		err = sublet__backing_open(&b, &o, BYTES);
		assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
		assert_int_equal(err, -EMFILE);
	}
}

static void test_map_lines(void **state)
{
	struct sublet__map_line m;

	(void)state;
	assert_true(sublet__map_line_parse(
		"7f00-8000 r-xp 00001000 00:1f 42                 /memfd:a b (deleted)", &m));
	assert_true(m.start == 0x7f00 && m.end == 0x8000 && m.prot == (PROT_READ | PROT_EXEC) &&
		    m.is_private);
	assert_true(m.offset == 0x1000 && m.major == 0 && m.minor == 0x1f && m.ino == 42);
	assert_true(sublet__map_line_parse("1000-2000 ---s 00000000 00:00 0", &m));
	assert_true(!m.prot && !m.is_private && !m.ino);
	assert_false(sublet__map_line_parse("Size: 4 kB", &m));
	assert_false(sublet__map_line_parse("", &m));
}

static void test_copy_and_zero(void **state)
{
	static _Alignas(4096) unsigned char a[16 * 4096], c[16 * 4096];

	(void)state;
	sublet__copy_choose();
	for (size_t pages = 1; pages <= 16; pages++) {
		for (size_t i = 0; i < sizeof a; i++)
			a[i] = (unsigned char)(i * 31 + pages);
		memset(c, 0xAA, sizeof c);
		sublet__copy(c, a, pages * 4096);
		assert_memory_equal(a, c, pages * 4096);
		for (size_t i = pages * 4096; i < sizeof c; i++)
			assert_int_equal(c[i], 0xAA);
		sublet__zero(c, pages * 4096);
		for (size_t i = 0; i < sizeof c; i++)
			assert_int_equal(c[i], i < pages * 4096 ? 0 : 0xAA);
		sublet__zero_warm(a, pages * 4096);
		for (size_t i = 0; i < sizeof a; i++)
			assert_int_equal(a[i], i < pages * 4096 ? 0 : (unsigned char)(i * 31 + pages));
	}
}

static void test_numbers(void **state)
{
	uint64_t v;

	(void)state;
	assert_true(sublet__proc_number("MemFree:  12 kB\nMemAvailable:     345 kB\n", "MemAvailable", &v));
	assert_int_equal(v, 345);
	assert_false(sublet__proc_number("max\n", NULL, &v));
	assert_false(sublet__proc_number("a 1\n", "b", &v));
	assert_true(sublet__memory_available() > 0);
	assert_true(sublet__cpu_count() > 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_kinds),
		cmocka_unit_test(test_too_much_is_refused),
		cmocka_unit_test(test_given_descriptor),
		cmocka_unit_test(test_unprivileged_huge_tmpfs),
		cmocka_unit_test(test_file_size_limit),
		cmocka_unit_test(test_open_file_limit),
		cmocka_unit_test(test_map_lines),
		cmocka_unit_test(test_copy_and_zero),
		cmocka_unit_test(test_numbers),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
