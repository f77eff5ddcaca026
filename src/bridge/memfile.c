/* SPDX-License-Identifier: MIT */
/*
 * A program that reads or writes its own heap by way of /proc/self/mem, as some JITs and crash reporters do.
 *
 * The kernel looks the pages up there without waiting: in memory that is being moved it finds none, and answers EIO. Worse,
 * between the look and the copy the page may be replaced, and what is written to it is lost. So the memory is pinned for
 * the length of the call, like memory that a device uses.
 *
 * Which calls are these? The offset says it: no file has bytes at the addresses of the lent window, but files that stand
 * for an address space. pread and pwrite bring their offset along. read and write have it in the file, where the program
 * has put it by lseek; until an lseek has gone to such an offset once, nothing is asked. A file of another process at the
 * same offset costs a pin that is not needed.
 *
 * Reads and writes that libc makes inside (fread on such a file) do not come by here; docs/hazards.md says so.
 */
/* With it the headers define inline functions of these names. */
#undef _FORTIFY_SOURCE

#include "bridge/bridge.h"

#include "linux/platform.h"

#include <errno.h>
#include <pthread.h>
#include <sys/uio.h>
#include <unistd.h>

#define PIECE_BYTES ((size_t)1 << 20) /* under one pin: a claim waits for it */
#define TRIES       5000
#define PAUSE_NS    (200 * SUBLET_US)

off_t __lseek(int fd, off_t offset, int whence);
off64_t llseek(int fd, off64_t offset, int whence);
ssize_t __read_chk(int fd, void *data, size_t bytes, size_t room);
ssize_t __pread_chk(int fd, void *data, size_t bytes, off_t offset, size_t room);
ssize_t __pread64_chk(int fd, void *data, size_t bytes, off64_t offset, size_t room);
_Noreturn void __chk_fail(void);

/* One for each call: looked up by the constructor, because a handler of a signal may be the first to call it. */
#define CALLS(_) \
	_(lseek64) _(pread64) _(preadv64) _(pwrite64) _(pwritev64) _(read) _(readv) _(write) _(writev)
#define SLOT(name) static _Atomic(void *) slot_##name;
CALLS(SLOT)
#define REAL(name) (__extension__(__typeof__(&name)) sublet__real_find(&slot_##name, #name))

void sublet__memfile_resolve(void)
{
#define FIND(name) (void)sublet__real_find(&slot_##name, #name);
	CALLS(FIND)
}

/* Relaxed: a thread that uses a file learned of it from the thread that set its offset, or set it itself. */
static _Atomic bool is_used;

static bool is_lent(off64_t offset, size_t bytes)
{
	return offset > 0 && bytes != 0 &&
	       sublet__bridge_owner((const void *)(uintptr_t)offset, bytes) == SUBLET__OWNER_LENT;
}

/* ---- one call, on memory that does not move meanwhile ---- */

static ssize_t real_io(int fd, void *data, size_t bytes, off64_t offset, bool write)
{
	return write ? REAL(pwrite64)(fd, data, bytes, offset) : REAL(pread64)(fd, data, bytes, offset);
}

/* Memory that cannot be pinned is shared with a child of fork() and does not move, or is ordinary. EIO is rare: try again. */
static ssize_t piece_io(int fd, void *data, size_t bytes, off64_t offset, bool write)
{
	const void *addr = (const void *)(uintptr_t)offset;
	_Atomic uint32_t nobody = 0;
	ssize_t done;
	int tries = 0;

	for (;;) {
		struct sublet_pin pin;
		bool pinned = sublet__engine_pin(addr, bytes, write, &pin) == 0;

		done = real_io(fd, data, bytes, offset, write);
		if (pinned)
			sublet__engine_unpin(&pin);
		if (done >= 0 || errno != EIO || ++tries == TRIES)
			return done;
		sublet__futex_wait(&nobody, 0, PAUSE_NS);
	}
}

static ssize_t mem_io(int fd, void *data, size_t bytes, off64_t offset, bool write)
{
	size_t done = 0;
	ssize_t n = 0;
	int cancel_state;

	/* These calls are cancellation points, and a thread that ends there would keep its pin. */
	(void)pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state);
	while (done < bytes) {
		size_t piece = bytes - done < PIECE_BYTES ? bytes - done : PIECE_BYTES;

		n = piece_io(fd, (char *)data + done, piece, offset + (off64_t)done, write);
		if (n <= 0)
			break;
		done += (size_t)n;
		if ((size_t)n < piece)
			break;
	}
	(void)pthread_setcancelstate(cancel_state, NULL);
	return done != 0 ? (ssize_t)done : n;
}

static ssize_t mem_vector(int fd, const struct iovec *vector, int count, off64_t offset, bool write)
{
	ssize_t done = 0;

	for (int i = 0; i < count; i++) {
		ssize_t n = vector[i].iov_len == 0
				    ? 0
				    : mem_io(fd, vector[i].iov_base, vector[i].iov_len, offset + done, write);

		if (n < 0)
			return done != 0 ? done : n;
		done += n;
		if ((size_t)n < vector[i].iov_len)
			break;
	}
	return done;
}

/* ---- calls without an offset ---- */

/* The position of the file, if that is in the lent window; else -1. */
static off64_t lent_position(int fd, size_t bytes)
{
	int saved = errno;
	off64_t at;

	if (!atomic_load_explicit(&is_used, memory_order_relaxed))
		return -1;
	at = REAL(lseek64)(fd, 0, SEEK_CUR);
	errno = saved;
	return is_lent(at, bytes) ? at : -1;
}

static ssize_t step(int fd, ssize_t done)
{
	if (done > 0)
		(void)REAL(lseek64)(fd, done, SEEK_CUR);
	return done;
}

SUBLET__INTERPOSER off64_t lseek64(int fd, off64_t offset, int whence)
{
	off64_t at = REAL(lseek64)(fd, offset, whence);

	if (is_lent(at, 1))
		atomic_store_explicit(&is_used, true, memory_order_relaxed);
	return at;
}

SUBLET__INTERPOSER off_t lseek(int fd, off_t offset, int whence)
{
	return lseek64(fd, offset, whence);
}

SUBLET__INTERPOSER off_t __lseek(int fd, off_t offset, int whence)
{
	return lseek64(fd, offset, whence);
}

SUBLET__INTERPOSER off64_t llseek(int fd, off64_t offset, int whence)
{
	return lseek64(fd, offset, whence);
}

SUBLET__INTERPOSER ssize_t read(int fd, void *data, size_t bytes)
{
	off64_t at = lent_position(fd, bytes);

	return at < 0 ? REAL(read)(fd, data, bytes) : step(fd, mem_io(fd, data, bytes, at, false));
}

SUBLET__INTERPOSER ssize_t write(int fd, const void *data, size_t bytes)
{
	off64_t at = lent_position(fd, bytes);

	return at < 0 ? REAL(write)(fd, data, bytes)
		      : step(fd, mem_io(fd, (void *)(uintptr_t)data, bytes, at, true));
}

SUBLET__INTERPOSER ssize_t readv(int fd, const struct iovec *vector, int count)
{
	off64_t at = lent_position(fd, 1);

	return at < 0 ? REAL(readv)(fd, vector, count) : step(fd, mem_vector(fd, vector, count, at, false));
}

SUBLET__INTERPOSER ssize_t writev(int fd, const struct iovec *vector, int count)
{
	off64_t at = lent_position(fd, 1);

	return at < 0 ? REAL(writev)(fd, vector, count) : step(fd, mem_vector(fd, vector, count, at, true));
}

/* ---- calls with an offset ---- */

SUBLET__INTERPOSER ssize_t pread64(int fd, void *data, size_t bytes, off64_t offset)
{
	return is_lent(offset, bytes) ? mem_io(fd, data, bytes, offset, false)
				      : REAL(pread64)(fd, data, bytes, offset);
}

SUBLET__INTERPOSER ssize_t pread(int fd, void *data, size_t bytes, off_t offset)
{
	return pread64(fd, data, bytes, offset);
}

SUBLET__INTERPOSER ssize_t pwrite64(int fd, const void *data, size_t bytes, off64_t offset)
{
	return is_lent(offset, bytes) ? mem_io(fd, (void *)(uintptr_t)data, bytes, offset, true)
				      : REAL(pwrite64)(fd, data, bytes, offset);
}

SUBLET__INTERPOSER ssize_t pwrite(int fd, const void *data, size_t bytes, off_t offset)
{
	return pwrite64(fd, data, bytes, offset);
}

SUBLET__INTERPOSER ssize_t preadv64(int fd, const struct iovec *vector, int count, off64_t offset)
{
	return is_lent(offset, 1) ? mem_vector(fd, vector, count, offset, false)
				  : REAL(preadv64)(fd, vector, count, offset);
}

SUBLET__INTERPOSER ssize_t preadv(int fd, const struct iovec *vector, int count, off_t offset)
{
	return preadv64(fd, vector, count, offset);
}

SUBLET__INTERPOSER ssize_t pwritev64(int fd, const struct iovec *vector, int count, off64_t offset)
{
	return is_lent(offset, 1) ? mem_vector(fd, vector, count, offset, true)
				  : REAL(pwritev64)(fd, vector, count, offset);
}

SUBLET__INTERPOSER ssize_t pwritev(int fd, const struct iovec *vector, int count, off_t offset)
{
	return pwritev64(fd, vector, count, offset);
}

/* ---- what _FORTIFY_SOURCE makes of them: libc's own would go past us ---- */

SUBLET__INTERPOSER ssize_t __read_chk(int fd, void *data, size_t bytes, size_t room)
{
	if (bytes > room)
		__chk_fail();
	return read(fd, data, bytes);
}

SUBLET__INTERPOSER ssize_t __pread64_chk(int fd, void *data, size_t bytes, off64_t offset, size_t room)
{
	if (bytes > room)
		__chk_fail();
	return pread64(fd, data, bytes, offset);
}

SUBLET__INTERPOSER ssize_t __pread_chk(int fd, void *data, size_t bytes, off_t offset, size_t room)
{
	return __pread64_chk(fd, data, bytes, offset, room);
}

/* ---- other names of the same functions ---- */

#define ALIAS(name, of) SUBLET__INTERPOSER __typeof__(of) name __attribute__((alias(#of)))
ALIAS(__read, read);
ALIAS(__write, write);
ALIAS(__pread64, pread64);
ALIAS(__pwrite64, pwrite64);
