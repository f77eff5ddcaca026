/* SPDX-License-Identifier: MIT */
/*
 * linux/raw.h: system calls past libc.
 *
 * What runs on a thread of the program must not end at a cancellation point: a thread that is cancelled
 * between block and wake, or inside fork(), leaves memory behind that nobody wakes. Every error is -errno.
 *
 * Nor may what changes mappings of lent memory come by a function that somebody patched. UCX and others lead mmap,
 * munmap, mremap and madvise of the whole process through handlers that take locks and touch their own memory, and
 * these calls come from between block and wake (L1). sublet/notifier.h is how to hear of a move. These have libc's
 * way of failing: MAP_FAILED or -1, and errno.
 */
#ifndef SUBLET_LINUX_RAW_H
#define SUBLET_LINUX_RAW_H

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static inline void *sublet__raw_mmap(void *addr, size_t bytes, int prot, int flags, int fd, uint64_t offset)
{
	return (void *)syscall(SYS_mmap, addr, bytes, prot, flags, fd, offset);
}

static inline int sublet__raw_munmap(void *addr, size_t bytes)
{
	return (int)syscall(SYS_munmap, addr, bytes);
}

static inline void *sublet__raw_mremap(void *from, size_t bytes, int flags, void *to)
{
	return (void *)syscall(SYS_mremap, from, bytes, bytes, flags, to);
}

static inline int sublet__raw_mprotect(void *addr, size_t bytes, int prot)
{
	return (int)syscall(SYS_mprotect, addr, bytes, prot);
}

static inline int sublet__raw_madvise(void *addr, size_t bytes, int advice)
{
	return (int)syscall(SYS_madvise, addr, bytes, advice);
}

static inline int sublet__raw_munlock(void *addr, size_t bytes)
{
	return (int)syscall(SYS_munlock, addr, bytes);
}

static inline int sublet__raw_open(int dir, const char *path, int flags)
{
	long fd = syscall(SYS_openat, dir, path, flags | O_CLOEXEC, 0);

	return fd < 0 ? -errno : (int)fd;
}

static inline void sublet__raw_close(int fd)
{
	(void)syscall(SYS_close, fd);
}

static inline long sublet__raw_read(int fd, void *data, size_t bytes)
{
	long n = syscall(SYS_read, fd, data, bytes);

	return n < 0 ? -errno : n;
}

static inline long sublet__raw_pread(int fd, void *data, size_t bytes, uint64_t offset)
{
	long n = syscall(SYS_pread64, fd, data, bytes, offset);

	return n < 0 ? -errno : n;
}

static inline long sublet__raw_write(int fd, const void *data, size_t bytes)
{
	long n = syscall(SYS_write, fd, data, bytes);

	return n < 0 ? -errno : n;
}

/* timeout_ms < 0: no limit */
static inline int sublet__raw_poll(struct pollfd *fds, uint32_t count, int timeout_ms)
{
	struct timespec t = { timeout_ms / 1000, timeout_ms % 1000 * 1000000l };
	long n = syscall(SYS_ppoll, fds, count, timeout_ms < 0 ? NULL : &t, NULL, 0);

	return n < 0 ? -errno : (int)n;
}

static inline void sublet__raw_sleep_ns(uint64_t ns)
{
	struct timespec t = { (time_t)(ns / 1000000000u), (long)(ns % 1000000000u) };

	while (syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &t, &t) && errno == EINTR)
		;
}

#endif
