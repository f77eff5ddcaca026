/* SPDX-License-Identifier: MIT */
#include "inject.h"

#include "linux/uapi.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <dirent.h>
#include <unistd.h>

#ifdef HAVE_URING
#include <liburing.h>
#endif

enum { OFF, THREAD, PROCESS };

static _Atomic int armed;
static _Atomic uint64_t calls;
static _Atomic(const char *) first_failed;
static uint64_t fails_at;
static bool fails_for_good, loses;
static __thread bool is_mine, is_spared;

void inject_arm(enum inject_scope scope, uint64_t n, bool for_good)
{
	calls = 0;
	first_failed = NULL;
	fails_at = n;
	fails_for_good = for_good;
	is_mine = true;
	armed = scope == INJECT_THREAD ? THREAD : PROCESS;
}

void inject_lose(bool lose)
{
	loses = lose;
}

bool inject_disarm(void)
{
	armed = OFF;
	is_mine = false;
	return first_failed;
}

void inject_spare(void)
{
	is_spared = true;
}

const char *inject_what(void)
{
	const char *what = first_failed;

	return what ? what : "nothing";
}

static bool counts(void)
{
	int now = armed;

	return now != OFF && !is_spared && (now == PROCESS || is_mine);
}

/* Whether this call is to fail; errno is set then. */
static bool fails(const char *what, int error)
{
	const char *none = NULL;

	if (!error || !counts())
		return false;
	uint64_t n = ++calls;
	if (n != fails_at && !(fails_for_good && n > fails_at))
		return false;
	atomic_compare_exchange_strong(&first_failed, &none, what);
	errno = error;
	return true;
}

static _Noreturn void unknown(const char *what, unsigned long number)
{
	fprintf(stderr, "inject.c does not know %s %#lx\n", what, number);
	abort();
}

/* Passes on as many arguments as there may be, also those that nobody gave. */
#define TAKES_MORE __attribute__((no_sanitize_address))

/* ---- syscall(2) ---- */

struct known {
	long number;
	const char *name;
	int error; /* 0: never fails */
};

static const struct known system_calls[] = {
	{ SYS_mmap, "mmap", ENOMEM },
	{ SYS_mremap, "mremap", ENOMEM },
	{ SYS_mprotect, "mprotect", ENOMEM },
	{ SYS_madvise, "madvise", ENOMEM },
	{ SYS_mlock2, "mlock2", ENOMEM },
	{ SYS_openat, "openat", EMFILE },
	{ SYS_read, "read", EIO },
	{ SYS_pread64, "pread", EIO },
	{ SYS_ppoll, "ppoll", ENOMEM },
	{ SYS_userfaultfd, "userfaultfd", ENFILE },
	{ SYS_close_range, "close_range", ENOMEM },
	{ SYS_fsopen, "fsopen", ENFILE },
	{ SYS_fsconfig, "fsconfig", ENOMEM },
	{ SYS_fsmount, "fsmount", ENOMEM },
	{ SYS_getdents64, "getdents", ENOMEM },
	{ SYS_statx, "statx", EIO },
	{ SYS_pidfd_open, "pidfd_open", ENFILE },
	{ SYS_munlock, "munlock", 0 }, /* of a whole mapping, right after it was made */
	{ SYS_munmap, "munmap", 0 },   /* of whole mappings only, so nothing is split */
	{ SYS_close, "close", 0 },
	{ SYS_write, "write", 0 }, /* to an eventfd or an empty pipe of ours */
	{ SYS_futex, "futex", 0 },
	{ SYS_clock_nanosleep, "clock_nanosleep", 0 },
	{ SYS_rt_sigprocmask, "rt_sigprocmask", 0 },
	{ SYS_gettid, "gettid", 0 },
};

long __real_syscall(long number, ...);
long __wrap_syscall(long number, ...);

/* The question whether addresses are mapped: there is nothing in it that could fail. */
static bool is_look(long number, const long *a)
{
	return number == SYS_madvise && a[2] == MADV_NORMAL;
}

/* As kernels before Linux 6.12 may do: what was to be replaced is gone, and the call has failed all the same. */
static void lose(long number, const long *a)
{
	if (!loses)
		return;
	if (number == SYS_mmap && a[3] & MAP_FIXED)
		__real_syscall(SYS_munmap, a[0], a[1]);
	if (number == SYS_mremap && a[3] & MREMAP_FIXED)
		__real_syscall(SYS_munmap, a[4], a[2]);
}

TAKES_MORE long __wrap_syscall(long number, ...)
{
	long a[6];
	va_list args;

	va_start(args, number);
	for (int i = 0; i < 6; i++)
		a[i] = va_arg(args, long);
	va_end(args);
	if (counts() && !is_look(number, a)) {
		const struct known *k = system_calls;
		while (k->number != number)
			if (++k == system_calls + sizeof system_calls / sizeof *system_calls)
				unknown("system call", (unsigned long)number);
		if (k->error && fails(k->name, k->error)) {
			int error = errno;
			lose(number, a);
			errno = error;
			return -1;
		}
		/* Nothing gets better by waiting, so the thousand tries before giving up need not take a second. */
		if (number == SYS_clock_nanosleep)
			return 0;
	}
	return __real_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

/* ---- ioctl(2) ---- */

static const struct known requests[] = {
	{ (long)UFFDIO_API, "UFFDIO_API", ENOMEM },
	{ (long)UFFDIO_REGISTER, "UFFDIO_REGISTER", ENOMEM },
	{ (long)UFFDIO_UNREGISTER, "UFFDIO_UNREGISTER", ENOMEM },
	{ (long)UFFDIO_WRITEPROTECT, "UFFDIO_WRITEPROTECT", ENOMEM },
	{ (long)SUBLET__UFFD_IOC_NEW, "USERFAULTFD_IOC_NEW", ENFILE },
	{ (long)SUBLET__PAGEMAP_SCAN, "PAGEMAP_SCAN", ENOMEM },
	{ (long)UFFDIO_WAKE, "UFFDIO_WAKE", 0 }, /* only looks through a queue */
};

int __real_ioctl(int fd, unsigned long request, ...);
int __wrap_ioctl(int fd, unsigned long request, ...);

int __wrap_ioctl(int fd, unsigned long request, ...)
{
	va_list args;

	va_start(args, request);
	void *arg = va_arg(args, void *);
	va_end(args);
	if (counts()) {
		const struct known *k = requests;
		while ((unsigned long)k->number != request)
			if (++k == requests + sizeof requests / sizeof *requests)
				unknown("ioctl", request);
		if (k->error && fails(k->name, k->error))
			return -1;
	}
	return __real_ioctl(fd, request, arg);
}

/* ---- the others ---- */

/* A function that answers `bad` and sets errno. */
#define WRAP(type, name, error, bad, parameters, arguments)                   \
	type __real_##name parameters;                                        \
	type __wrap_##name parameters;                                        \
	type __wrap_##name parameters                                         \
	{                                                                     \
		return fails(#name, error) ? (bad) : __real_##name arguments; \
	}

/* clang-format off */
WRAP(void *, mmap64, ENOMEM, MAP_FAILED, (void *a, size_t n, int prot, int flags, int fd, off64_t at),
	(a, n, prot, flags, fd, at))
WRAP(int, madvise, ENOMEM, -1, (void *a, size_t n, int advice), (a, n, advice))
WRAP(int, mlock, ENOMEM, -1, (const void *a, size_t n), (a, n))
WRAP(int, memfd_create, ENFILE, -1, (const char *name, unsigned int flags), (name, flags))
WRAP(int, ftruncate64, ENOMEM, -1, (int fd, off64_t bytes), (fd, bytes))
/* Of a socket it never fails, and whether a number still is ours is asked by it before it is closed. */
WRAP(int, fstat64, fails_for_good ? 0 : EIO, -1, (int fd, struct stat64 *st), (fd, st))
WRAP(int, fstatfs64, EIO, -1, (int fd, struct statfs64 *fs), (fd, fs))
WRAP(int, pipe2, EMFILE, -1, (int fds[2], int flags), (fds, flags))
WRAP(int, eventfd, EMFILE, -1, (unsigned int value, int flags), (value, flags))
WRAP(ssize_t, write, ENOSPC, -1, (int fd, const void *data, size_t n), (fd, data, n))
WRAP(int, socket, EMFILE, -1, (int domain, int type, int protocol), (domain, type, protocol))
WRAP(int, socketpair, EMFILE, -1, (int domain, int type, int protocol, int fds[2]),
	(domain, type, protocol, fds))
WRAP(int, bind, ENOSPC, -1, (int fd, const struct sockaddr *a, socklen_t n), (fd, a, n))
WRAP(int, listen, ENOMEM, -1, (int fd, int backlog), (fd, backlog))
WRAP(int, connect, ENOMEM, -1, (int fd, const struct sockaddr *a, socklen_t n), (fd, a, n))
WRAP(int, accept4, EMFILE, -1, (int fd, struct sockaddr *a, socklen_t *n, int flags), (fd, a, n, flags))
WRAP(int, getsockopt, ENOMEM, -1, (int fd, int level, int name, void *v, socklen_t *n),
	(fd, level, name, v, n))
WRAP(int, setsockopt, ENOMEM, -1, (int fd, int level, int name, const void *v, socklen_t n),
	(fd, level, name, v, n))
WRAP(ssize_t, sendmsg, ENOBUFS, -1, (int fd, const struct msghdr *m, int flags), (fd, m, flags))
WRAP(ssize_t, recvmsg, ENOMEM, -1, (int fd, struct msghdr *m, int flags), (fd, m, flags))
WRAP(int, poll, ENOMEM, -1, (struct pollfd * p, nfds_t n, int ms), (p, n, ms))
WRAP(int, ppoll, ENOMEM, -1, (struct pollfd * p, nfds_t n, const struct timespec *t, const sigset_t *s),
	(p, n, t, s))
WRAP(int, __ppoll_chk, ENOMEM, -1,
	(struct pollfd * p, nfds_t n, const struct timespec *t, const sigset_t *s, size_t room),
	(p, n, t, s, room))
WRAP(int, mkdir, ENOSPC, -1, (const char *path, mode_t mode), (path, mode))
WRAP(int, linkat, ENOSPC, -1, (int od, const char *o, int nd, const char *n, int flags),
	(od, o, nd, n, flags))
WRAP(DIR *, fdopendir, ENOMEM, NULL, (int fd), (fd))
WRAP(void *, calloc, ENOMEM, NULL, (size_t n, size_t bytes), (n, bytes))
/* clang-format on */

/* Opened for a mode, where one is made. */
#define WRAP_OPEN(name, parameters, last, arguments)                                \
	int __real_##name parameters;                                               \
	int __wrap_##name parameters;                                               \
	int __wrap_##name parameters                                                \
	{                                                                           \
		va_list args;                                                       \
		va_start(args, last);                                               \
		int mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(args, int) : 0; \
		va_end(args);                                                       \
		return fails(#name, EMFILE) ? -1 : __real_##name arguments;         \
	}

WRAP_OPEN(open64, (const char *path, int flags, ...), flags, (path, flags, mode))
WRAP_OPEN(openat64, (int dir, const char *path, int flags, ...), flags, (dir, path, flags, mode))

/* Only F_DUPFD_CLOEXEC and F_SETFD take something; both an int. */
int __real_fcntl64(int fd, int command, ...);
int __wrap_fcntl64(int fd, int command, ...);

int __wrap_fcntl64(int fd, int command, ...)
{
	va_list args;

	va_start(args, command);
	int arg = command == F_GETFL || command == F_GETFD ? 0 : va_arg(args, int);
	va_end(args);
	return command == F_DUPFD_CLOEXEC && fails("fcntl", EMFILE) ? -1 : __real_fcntl64(fd, command, arg);
}

int __real_clone(int (*fn)(void *), void *stack, int flags, void *arg, ...);
int __wrap_clone(int (*fn)(void *), void *stack, int flags, void *arg, ...);

TAKES_MORE int __wrap_clone(int (*fn)(void *), void *stack, int flags, void *arg, ...)
{
	void *more[3];
	va_list args;

	va_start(args, arg);
	for (int i = 0; i < 3; i++)
		more[i] = va_arg(args, void *); /* what flags do not ask for is not looked at */
	va_end(args);
	return fails("clone", EAGAIN) ? -1 : __real_clone(fn, stack, flags, arg, more[0], more[1], more[2]);
}

/* Functions that return the error. */
#define WRAP_ERROR(name, error, parameters, arguments)                                                 \
	int __real_##name parameters;                                                                  \
	int __wrap_##name parameters;                                                                  \
	int __wrap_##name parameters                                                                   \
	{                                                                                              \
		return fails(#name, error > 0 ? error : -(error)) ? (error) : __real_##name arguments; \
	}

WRAP_ERROR(pthread_create, EAGAIN, (pthread_t * t, const pthread_attr_t *a, void *(*fn)(void *), void *arg),
	   (t, a, fn, arg))
WRAP_ERROR(pthread_atfork, ENOMEM, (void (*before)(void), void (*parent)(void), void (*child)(void)),
	   (before, parent, child))

#ifdef HAVE_URING
WRAP_ERROR(io_uring_queue_init_params, -ENOMEM,
	   (unsigned int n, struct io_uring *r, struct io_uring_params *p), (n, r, p))
WRAP_ERROR(io_uring_ring_dontfork, -ENOMEM, (struct io_uring * r), (r))
WRAP_ERROR(io_uring_register_buffers_sparse, -ENOMEM, (struct io_uring * r, unsigned int n), (r, n))
WRAP_ERROR(io_uring_register_buffers_update_tag, -ENOMEM,
	   (struct io_uring * r, unsigned int at, const struct iovec *v, const __u64 *tags, unsigned int n),
	   (r, at, v, tags, n))
WRAP_ERROR(io_uring_submit_and_wait, -ENOMEM, (struct io_uring * r, unsigned int n), (r, n))
WRAP_ERROR(io_uring_submit_and_wait_timeout, -ENOMEM,
	   (struct io_uring * r, struct io_uring_cqe **c, unsigned int n, struct __kernel_timespec *t,
	    sigset_t *s),
	   (r, c, n, t, s))
#endif
