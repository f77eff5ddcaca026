/* SPDX-License-Identifier: MIT */
/*
 * What a program may do to its own heap with the memory calls of libc, and what becomes of it when
 * that heap is lent.
 *
 * Lent memory is a shared mapping of frames that change. So the same calls mean other things than
 * on a private heap, and what they set is lost when the engine maps the range anew:
 *
 *   call                           on lent memory
 *   madvise DONTNEED, REMOVE       zero-filled (a shared mapping would keep its bytes)
 *   madvise FREE, and mere hints   accepted, nothing done: they would split kernel mappings
 *   madvise DONTDUMP               set, and the range does not move from now on
 *   madvise DONTFORK, DOFORK, WIPEONFORK, KEEPONFORK, guards
 *                                  EINVAL: fork() is the bridge's business
 *   mprotect, pkey_mprotect        set; a range that is not plainly readable and writable does not move;
 *                                  once it is it may again, but for what is to stay (sticky.c)
 *   mlock, mlock2                  locked, and locked again after each move; mlockall: lockall.c
 *   munmap, mremap, mmap FIXED, remap_file_pages, shmat REMAP
 *                                  EINVAL: those addresses belong to malloc
 *
 * Anything that does not touch lent memory goes on unchanged. In a child of fork() the memory is an
 * ordinary private mapping of a file; there only DONTNEED and its kin need help, because the kernel
 * would show the file's bytes again instead of zeros.
 */
#include "bridge/bridge.h"

#include "linux/linux.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/shm.h>

/* Newer than the headers this may be built with. */
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#define ADVICE_GUARD_INSTALL 102
#define ADVICE_GUARD_REMOVE  103

#define PAGE_BYTES ((uintptr_t)4096)

/*
 * Zero a range. The kernel is asked first whether the program may write all of it, so that a page
 * that it may not is an error here and not a signal. No descriptor is needed: there may be none left.
 */
static int zero_fill(void *addr, size_t bytes)
{
	if (sublet__real.madvise(addr, bytes, MADV_POPULATE_WRITE) != 0) {
		errno = ENOMEM; /* what madvise says of addresses that it cannot work on */
		return -1;
	}
	memset(addr, 0, bytes);
	return 0;
}

static int discard(enum sublet__owner owner, void *addr, size_t bytes)
{
	size_t whole = (bytes + PAGE_BYTES - 1) & ~(size_t)(PAGE_BYTES - 1);

	if (((uintptr_t)addr & (PAGE_BYTES - 1)) != 0 || whole < bytes) {
		errno = EINVAL;
		return -1;
	}
	if ((owner == SUBLET__OWNER_CHILD || owner == SUBLET__OWNER_STUCK) &&
	    sublet__real.mmap(addr, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
			      -1, 0) == addr)
		return 0;
	return zero_fill(addr, whole);
}

static int advise_lent(void *addr, size_t bytes, int advice)
{
	switch (advice) {
	case MADV_NORMAL:
	case MADV_RANDOM:
	case MADV_SEQUENTIAL:
	case MADV_FREE:
	case MADV_COLD:
	case MADV_PAGEOUT:
	case MADV_HUGEPAGE:
	case MADV_NOHUGEPAGE:
	case MADV_COLLAPSE:
	case MADV_MERGEABLE:
	case MADV_UNMERGEABLE:
		return 0;
	case MADV_DONTFORK:
	case MADV_DOFORK:
	case MADV_WIPEONFORK:
	case MADV_KEEPONFORK:
	case ADVICE_GUARD_INSTALL:
	case ADVICE_GUARD_REMOVE:
		errno = EINVAL;
		return -1;
	case MADV_DONTDUMP:
		/* Not undone by DODUMP: the range may be protected for another reason as well. */
		sublet__sticky_add(addr, bytes);
		return sublet__real.madvise(addr, bytes, advice);
	default:
		return sublet__real.madvise(addr, bytes, advice);
	}
}

SUBLET__INTERPOSER int madvise(void *addr, size_t bytes, int advice)
{
	enum sublet__owner owner = sublet__bridge_owner(addr, bytes);

	if (owner == SUBLET__OWNER_OTHER || bytes == 0)
		return sublet__real.madvise(addr, bytes, advice);
	if (advice == MADV_DONTNEED || advice == MADV_REMOVE)
		return discard(owner, addr, bytes);
	if (owner == SUBLET__OWNER_LENT)
		return advise_lent(addr, bytes, advice);
	return sublet__real.madvise(addr, bytes, advice);
}

/* libc's would call its own madvise inside; on lent memory every advice of POSIX is a hint. */
SUBLET__INTERPOSER int posix_madvise(void *addr, size_t bytes, int advice)
{
	if (sublet__bridge_owner(addr, bytes) != SUBLET__OWNER_OTHER)
		return 0;
	return sublet__real.posix_madvise(addr, bytes, advice);
}

/* ---- protection ---- */

/*
 * Protect: the engine hears of it first, so that no move in between loses the protection. Allow
 * again: last, for the same reason. After an error the range stays where it is, which is safe.
 */
static int protect_lent(void *addr, size_t bytes, int protection, int key)
{
	bool plain = protection == (PROT_READ | PROT_WRITE) && key <= 0;
	int err;

	if (!plain)
		sublet__sticky_protect(addr, bytes);
	err = key < 0 ? sublet__real.mprotect(addr, bytes, protection)
		      : sublet__real.pkey_mprotect(addr, bytes, protection, key);
	if (plain && err == 0 && sublet__sticky_unprotect(addr, bytes))
		sublet__linux_fork_again(sublet__bridge.arena);
	return err;
}

SUBLET__INTERPOSER int mprotect(void *addr, size_t bytes, int protection)
{
	if (sublet__bridge_owner(addr, bytes) == SUBLET__OWNER_LENT)
		return protect_lent(addr, bytes, protection, -1);
	return sublet__real.mprotect(addr, bytes, protection);
}

SUBLET__INTERPOSER int pkey_mprotect(void *addr, size_t bytes, int protection, int key)
{
	if (sublet__bridge_owner(addr, bytes) == SUBLET__OWNER_LENT)
		return protect_lent(addr, bytes, protection, key);
	return sublet__real.pkey_mprotect(addr, bytes, protection, key);
}

/* ---- locking ---- */

/*
 * Lock twice: a move between the first lock and the note maps the range anew without it. The second
 * call finds nothing to do otherwise.
 */
SUBLET__INTERPOSER int mlock(const void *addr, size_t bytes)
{
	int err = sublet__real.mlock(addr, bytes);

	if (err == 0 && sublet__bridge_owner(addr, bytes) == SUBLET__OWNER_LENT) {
		sublet__engine_note_locked(addr, bytes, true);
		err = sublet__real.mlock(addr, bytes);
	}
	return err;
}

SUBLET__INTERPOSER int mlock2(const void *addr, size_t bytes, unsigned int flags)
{
	int err = sublet__real.mlock2(addr, bytes, flags);

	if (err == 0 && sublet__bridge_owner(addr, bytes) == SUBLET__OWNER_LENT) {
		sublet__engine_note_locked(addr, bytes, true);
		err = sublet__real.mlock2(addr, bytes, flags);
	}
	return err;
}

SUBLET__INTERPOSER int munlock(const void *addr, size_t bytes)
{
	if (sublet__bridge_owner(addr, bytes) == SUBLET__OWNER_LENT)
		sublet__engine_note_locked(addr, bytes, false);
	return sublet__real.munlock(addr, bytes);
}

/* ---- mapping: malloc's addresses are not the program's to map ---- */

/* In a child it may, as far as the kernel is concerned: the memory is its own. */
static bool is_refused(const void *addr, size_t bytes)
{
	if (sublet__bridge_owner(addr, bytes) != SUBLET__OWNER_LENT)
		return false;
	errno = EINVAL;
	return true;
}

SUBLET__INTERPOSER void *mmap(void *addr, size_t bytes, int protection, int flags, int fd, off_t offset)
{
	if ((flags & MAP_FIXED) != 0 && is_refused(addr, bytes))
		return MAP_FAILED;
	return sublet__real.mmap(addr, bytes, protection, flags, fd, offset);
}

SUBLET__INTERPOSER void *mmap64(void *addr, size_t bytes, int protection, int flags, int fd, off64_t offset)
{
	return mmap(addr, bytes, protection, flags, fd, offset);
}

SUBLET__INTERPOSER int munmap(void *addr, size_t bytes)
{
	if (is_refused(addr, bytes))
		return -1;
	return sublet__real.munmap(addr, bytes);
}

SUBLET__INTERPOSER void *mremap(void *addr, size_t bytes, size_t new_bytes, int flags, ...)
{
	void *new_addr = NULL;
	va_list list;

	if ((flags & (MREMAP_FIXED | MREMAP_DONTUNMAP)) != 0) {
		va_start(list, flags);
		new_addr = va_arg(list, void *);
		va_end(list);
	}
	if (is_refused(addr, bytes) || ((flags & MREMAP_FIXED) != 0 && is_refused(new_addr, new_bytes)))
		return MAP_FAILED;
	return sublet__real.mremap(addr, bytes, new_bytes, flags, new_addr);
}

/* On ordinary memory it is an error; on a shared mapping it would exchange the program's pages. */
SUBLET__INTERPOSER int remap_file_pages(void *addr, size_t bytes, int protection, size_t page, int flags)
{
	if (is_refused(addr, bytes))
		return -1;
	return SUBLET__REAL(remap_file_pages)(addr, bytes, protection, page, flags);
}

SUBLET__INTERPOSER void *shmat(int segment, const void *addr, int flags)
{
	struct shmid_ds info;

	/* SHM_RND moves the start down to a page. */
	if ((flags & SHM_REMAP) != 0 && addr != NULL && shmctl(segment, IPC_STAT, &info) == 0 &&
	    is_refused((const void *)((uintptr_t)addr & ~(PAGE_BYTES - 1)), info.shm_segsz))
		return (void *)-1;
	return SUBLET__REAL(shmat)(segment, addr, flags);
}
