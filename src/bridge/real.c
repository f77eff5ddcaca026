/* SPDX-License-Identifier: MIT */
/*
 * What stands behind the interposers.
 *
 * Two kinds of callers reach for mmap and its relatives in a process with the bridge in it:
 *
 *   - the program, its libraries, jemalloc: they get the interposer (interpose.c), which passes on
 *     what does not concern lent memory to the next definition in line, another LD_PRELOAD entry's
 *     or libc's (struct sublet__real). Until the constructor has looked those up it makes the system
 *     call itself: jemalloc maps its first memory long before any constructor runs, and dlsym is not
 *     to be called from there;
 *   - the engine and its platform, linked into this same library, whose whole work is to do to lent
 *     memory what the interposers forbid. The linker's --wrap sends their calls to the __wrap_
 *     functions here. Deciding by return address instead would break with the first tail call.
 */
#include "bridge/bridge.h"

#include <dlfcn.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef __LP64__
#error "the bridge needs a 64-bit address space: mmap and mmap64 are one call here"
#endif

void *__wrap_mmap(void *addr, size_t bytes, int protection, int flags, int fd, off_t offset);
void *__wrap_mmap64(void *addr, size_t bytes, int protection, int flags, int fd, off_t offset);
int __wrap_munmap(void *addr, size_t bytes);
void *__wrap_mremap(void *addr, size_t bytes, size_t new_bytes, int flags, ...);
int __wrap_mprotect(void *addr, size_t bytes, int protection);
int __wrap_pkey_mprotect(void *addr, size_t bytes, int protection, int key);
int __wrap_madvise(void *addr, size_t bytes, int advice);
int __wrap_mlock(const void *addr, size_t bytes);
int __wrap_mlock2(const void *addr, size_t bytes, unsigned int flags);
int __wrap_munlock(const void *addr, size_t bytes);

void *__wrap_mmap(void *addr, size_t bytes, int protection, int flags, int fd, off_t offset)
{
	return (void *)syscall(SYS_mmap, addr, bytes, protection, flags, fd, offset);
}

void *__wrap_mmap64(void *addr, size_t bytes, int protection, int flags, int fd, off_t offset)
{
	return (void *)syscall(SYS_mmap, addr, bytes, protection, flags, fd, offset);
}

int __wrap_munmap(void *addr, size_t bytes)
{
	return (int)syscall(SYS_munmap, addr, bytes);
}

void *__wrap_mremap(void *addr, size_t bytes, size_t new_bytes, int flags, ...)
{
	void *new_addr = NULL;
	va_list list;

	if (flags & (MREMAP_FIXED | MREMAP_DONTUNMAP)) {
		va_start(list, flags);
		new_addr = va_arg(list, void *);
		va_end(list);
	}
	return (void *)syscall(SYS_mremap, addr, bytes, new_bytes, flags, new_addr);
}

int __wrap_mprotect(void *addr, size_t bytes, int protection)
{
	return (int)syscall(SYS_mprotect, addr, bytes, protection);
}

int __wrap_pkey_mprotect(void *addr, size_t bytes, int protection, int key)
{
	return (int)syscall(SYS_pkey_mprotect, addr, bytes, protection, key);
}

int __wrap_madvise(void *addr, size_t bytes, int advice)
{
	return (int)syscall(SYS_madvise, addr, bytes, advice);
}

int __wrap_mlock(const void *addr, size_t bytes)
{
	return (int)syscall(SYS_mlock, addr, bytes);
}

int __wrap_mlock2(const void *addr, size_t bytes, unsigned int flags)
{
	return (int)syscall(SYS_mlock2, addr, bytes, flags);
}

int __wrap_munlock(const void *addr, size_t bytes)
{
	return (int)syscall(SYS_munlock, addr, bytes);
}

static int early_posix_madvise(void *addr, size_t bytes, int advice)
{
	(void)addr, (void)bytes, (void)advice;
	return 0; /* advice */
}

static int early_mlockall(int flags)
{
	return (int)syscall(SYS_mlockall, flags);
}

static int early_munlockall(void)
{
	return (int)syscall(SYS_munlockall);
}

struct sublet__real sublet__real = {
	.mmap = __wrap_mmap,
	.munmap = __wrap_munmap,
	.mremap = __wrap_mremap,
	.mprotect = __wrap_mprotect,
	.pkey_mprotect = __wrap_pkey_mprotect,
	.madvise = __wrap_madvise,
	.posix_madvise = early_posix_madvise,
	.mlock = __wrap_mlock,
	.mlock2 = __wrap_mlock2,
	.munlock = __wrap_munlock,
	.mlockall = early_mlockall,
	.munlockall = early_munlockall,
	.syscall = __wrap_syscall,
};

void *sublet__real_find(_Atomic(void *) *slot, const char *name)
{
	void *found = atomic_load_explicit(slot, memory_order_relaxed); /* the same value whoever stores it */

	if (found == NULL) {
		found = sublet__redirect_original(dlsym(RTLD_NEXT, name));
		atomic_store_explicit(slot, found, memory_order_relaxed);
	}
	return found;
}

/* What libc lacks keeps its system call. */
#define RESOLVE(name)                                                      \
	do {                                                               \
		__typeof__(sublet__real.name) found_ = SUBLET__REAL(name); \
		if (found_ != NULL)                                        \
			sublet__real.name = found_;                        \
	} while (0)

/* By hand, because it is declared as something else. */
static void resolve_syscall(void)
{
	static _Atomic(void *) slot;
	void *found = sublet__real_find(&slot, "syscall");

	if (found != NULL)
		sublet__real.syscall = __extension__(__typeof__(sublet__real.syscall)) found;
}

void sublet__real_resolve(void)
{
	RESOLVE(mmap);
	RESOLVE(munmap);
	RESOLVE(mremap);
	RESOLVE(mprotect);
	RESOLVE(pkey_mprotect);
	RESOLVE(madvise);
	RESOLVE(posix_madvise);
	RESOLVE(mlock);
	RESOLVE(mlock2);
	RESOLVE(munlock);
	RESOLVE(mlockall);
	RESOLVE(munlockall);
	resolve_syscall();
	sublet__memfile_resolve();
}
