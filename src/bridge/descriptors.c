/* SPDX-License-Identifier: MIT */
/*
 * The arena's descriptors among the program's.
 *
 * Descriptors are small numbers that programs choose and clean up as if they were alone in their
 * process: a shell opens a file as number 3, a daemon begins by closing everything from 3 on. Were the
 * arena's memory or its userfaultfd closed that way, and their numbers given to a file of the
 * program's, the engine would map that file over the program's heap. So the arena's descriptors
 *
 *   - get the highest numbers that there are (sublet__linux_fd_least), because while it is created all
 *     lower ones are taken;
 *   - survive close, closefrom and close_range in this process, and cannot be replaced by dup2 or dup3,
 *     which say that such a number is out of range.
 *
 * Moving them out of the way of a dup2 was rejected. Any thread of the program's may be in malloc, with the number
 * in its hand and its call not yet made; nothing tells when it has made it, but a lock around every use, which
 * would be held while memory moves. A file of the program's mapped over its heap is too high a price for a number
 * that hardly anybody asks for.
 *
 * Found out by comparing before and after, so that it holds for whatever the layers below open while
 * the arena is created. What they open later is a pipe for each fork, which --wrap brings here.
 * Children are free to close them: after a fork they are of no use, and all of them close on exec.
 */
#include "bridge/bridge.h"

#include "linux/linux.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NUMBERS   SUBLET__FD_END /* those below are looked after */
#define WORD_BITS 64u

struct set {
	_Atomic uint64_t word[NUMBERS / WORD_BITS];
};

/* Relaxed throughout: whoever learns a number of ours by other means than this set made it up. */
static struct set ours;

int close_range(unsigned int first, unsigned int last, int flags); /* newer than some headers */
void closefrom(int first);
int __wrap_close(int fd);
int __wrap_pipe2(int fd[2], int flags);

static bool has(struct set *set, unsigned int fd)
{
	return fd < NUMBERS &&
	       (atomic_load_explicit(&set->word[fd / WORD_BITS], memory_order_relaxed) >> fd % WORD_BITS &
		1) != 0;
}

static void add(struct set *set, unsigned int fd)
{
	if (fd < NUMBERS)
		(void)atomic_fetch_or_explicit(&set->word[fd / WORD_BITS], (uint64_t)1 << fd % WORD_BITS,
					       memory_order_relaxed);
}

static void drop(struct set *set, unsigned int fd)
{
	if (fd < NUMBERS)
		(void)atomic_fetch_and_explicit(&set->word[fd / WORD_BITS], ~((uint64_t)1 << fd % WORD_BITS),
						memory_order_relaxed);
}

/* Take every free number below the high ones. */
static void take_low(struct set *taken)
{
	int null = open("/dev/null", O_RDONLY | O_CLOEXEC), fd = null;
	unsigned int high = sublet__linux_fd_least();

	while (fd >= 0 && (unsigned int)fd < high) {
		add(taken, (unsigned int)fd);
		fd = fcntl(null, F_DUPFD_CLOEXEC, 0);
	}
	if (fd >= 0)
		(void)__wrap_close(fd);
}

static void note_open(struct set *set)
{
	for (unsigned int fd = 0; fd < NUMBERS; fd++)
		if (fcntl((int)fd, F_GETFD) >= 0)
			add(set, fd);
}

int sublet__descriptors_apart(int (*create)(const struct sublet__settings *),
			      const struct sublet__settings *settings)
{
	struct set before = { { 0 } }, taken = { { 0 } }, after = { { 0 } };
	int err;

	note_open(&before);
	take_low(&taken);
	err = create(settings);
	for (unsigned int fd = 0; fd < NUMBERS; fd++)
		if (has(&taken, fd))
			(void)__wrap_close((int)fd);
	note_open(&after);
	for (unsigned int fd = 0; err == 0 && fd < NUMBERS; fd++)
		if (has(&after, fd) && !has(&before, fd))
			add(&ours, fd);
	return err;
}

static bool is_ours(unsigned int fd)
{
	return has(&ours, fd) && sublet__bridge_state() == SUBLET__OWNER_LENT;
}

/* ---- what the layers below open and close is theirs ---- */

int __wrap_close(int fd)
{
	if (fd >= 0)
		drop(&ours, (unsigned int)fd);
	return (int)syscall(SYS_close, fd);
}

/* Moved out of the program's way; where there is no high number the low one stays. */
int __wrap_pipe2(int fd[2], int flags)
{
	if (syscall(SYS_pipe2, fd, flags) != 0)
		return -1;
	for (int i = 0; i < 2; i++) {
		int high = fcntl(fd[i], (flags & O_CLOEXEC) != 0 ? F_DUPFD_CLOEXEC : F_DUPFD,
				 (int)sublet__linux_fd_least());

		if (high >= 0) {
			(void)__wrap_close(fd[i]);
			fd[i] = high;
		}
		add(&ours, (unsigned int)fd[i]);
	}
	return 0;
}

/* ---- interposers: to the program those numbers are not open ---- */

SUBLET__INTERPOSER int close(int fd)
{
	if (fd >= 0 && is_ours((unsigned int)fd)) {
		errno = EBADF;
		return -1;
	}
	return SUBLET__REAL(close)(fd);
}
SUBLET__ALIAS(__close, close);

SUBLET__INTERPOSER int dup2(int old, int fd)
{
	if (fd >= 0 && is_ours((unsigned int)fd)) {
		errno = EBADF; /* "out of the allowed range" */
		return -1;
	}
	return SUBLET__REAL(dup2)(old, fd);
}
SUBLET__ALIAS(__dup2, dup2);

SUBLET__INTERPOSER int dup3(int old, int fd, int flags)
{
	if (fd >= 0 && is_ours((unsigned int)fd)) {
		errno = EBADF;
		return -1;
	}
	return SUBLET__REAL(dup3)(old, fd, flags);
}

/* The pieces of the range between ours. */
SUBLET__INTERPOSER int close_range(unsigned int first, unsigned int last, int flags)
{
	unsigned int at = first;

	if (first > last)
		return SUBLET__REAL(close_range)(first, last, flags);
	for (unsigned int fd = first; fd <= last && fd < NUMBERS; fd++) {
		if (!is_ours(fd))
			continue;
		if (fd > at && SUBLET__REAL(close_range)(at, fd - 1, flags) != 0)
			return -1;
		at = fd + 1;
	}
	return at <= last ? SUBLET__REAL(close_range)(at, last, flags) : 0;
}

SUBLET__INTERPOSER void closefrom(int first)
{
	unsigned int at = first < 0 ? 0 : (unsigned int)first;
	int limit;

	if (close_range(at, UINT_MAX, 0) == 0)
		return;
	limit = (int)sysconf(_SC_OPEN_MAX); /* a kernel before 5.9 */
	for (int fd = (int)at; fd < limit; fd++)
		(void)close(fd);
}
