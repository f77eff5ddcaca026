/* SPDX-License-Identifier: MIT */
/*
 * linux/map.c: kernel mappings of frames, of nothing, and in place of others.
 *
 * A mapping replaces another one as a whole, so that at every instant an address leads to complete bytes. A call that
 * failed may have taken away what was there; whether it did is looked up, not concluded from the error.
 *
 * Three threads may have to map frames, with different means. A thread of a program that uses the library, and a task of
 * the helper, have the file's descriptor. A thread of a lent program has none, and maps what the linear map shows a second
 * time (mremap of no bytes). What the program made executable (a JIT forks) a task may not map: it asks the thread of
 * the program that waits for it.
 */
#include "linux/mm.h"

#include "linux/helper.h"
#include "linux/linux.h"
#include "linux/memcheck.h"
#include "linux/platform.h"
#include "linux/proc.h"
#include "linux/raw.h"
#include "linux/spare.h"

#include <stdlib.h>
#include <sys/mman.h>

uint32_t sublet__mm_pages(const struct sublet__segment *segs, uint32_t count)
{
	return segs[count - 1].vpn + segs[count - 1].pages - segs[0].vpn;
}

bool sublet__mm_must_wait(int *tries)
{
	if (++*tries > SUBLET__MUST_TRIES)
		return false;
	if (sublet__spare_use())
		return true;
	sublet__raw_sleep_ns(SUBLET__MUST_PAUSE_NS);
	return true;
}

_Noreturn void sublet__mm_give_up(const char *what, int err)
{
	sublet__complain(what, err);
	sublet__program_abort();
}

bool sublet__mm_is_mapped(uintptr_t addr, size_t bytes)
{
	/* Mappings of ours have no advice of this family, so nothing changes, nothing is split and no memory is needed:
	   ENOMEM has one cause. */
	return !sublet__raw_madvise((void *)addr, bytes, MADV_NORMAL) || errno != ENOMEM;
}

/*
 * Replace a mapping. Before Linux 6.12 an mmap that fails may have unmapped what was there first. Then the old
 * mapping is gone for good, so the new one must do: there is room for it now. Which of the two it is, the addresses
 * themselves tell; the error does not, since ENOMEM may be a lack of memory, of mappings or of limits. NOREPLACE:
 * another thread of the program may have got addresses that are gone.
 */
int sublet__mm_map_fixed(uintptr_t addr, size_t bytes, int prot, int flags, int fd, uint64_t offset)
{
	int err, tries = 0;

	if (sublet__raw_mmap((void *)addr, bytes, prot, flags | MAP_FIXED, fd, offset) != MAP_FAILED)
		return 0;
	/* EAGAIN: after mlockall(MCL_FUTURE), the limit of locked memory. Nothing that passes by waiting. */
	err = errno == EAGAIN ? -ENOMEM : -errno;
	if (sublet__mm_is_mapped(addr, bytes))
		return err;
	do {
		if (sublet__raw_mmap((void *)addr, bytes, prot, flags | MAP_FIXED_NOREPLACE, fd, offset) !=
		    MAP_FAILED)
			return 0;
	} while (sublet__mm_must_wait(&tries));
	sublet__mm_give_up(
		"the kernel took memory away and refuses to map it again; stopping before data is lost",
		-errno);
}

/* mlockall(MCL_FUTURE) is in force; of the process, as that is. Relaxed: one call more or less unlocks nothing. */
static sublet__a32 locks_future;

void sublet__linux_lock_future(bool locks)
{
	a32_store_relaxed(&locks_future, locks);
}

int sublet__mm_map_nothing(uintptr_t addr, size_t bytes)
{
	int err = sublet__mm_map_fixed(addr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
				       -1, 0);

	/* As the rest of the window, with which it merges. */
	if (!err)
		(void)sublet__raw_madvise((void *)addr, bytes, MADV_DONTDUMP);
	if (!err && a32_load_relaxed(&locks_future))
		(void)sublet__raw_munlock((void *)addr, bytes);
	return err;
}

void sublet__mm_relock(uintptr_t addr, size_t bytes, uint32_t flags)
{
	if (!(flags & SUBLET__MAP_LOCKED))
		return;
	/* Past RLIMIT_MEMLOCK the program loses its lock, not its data. */
	if (syscall(SYS_mlock2, addr, bytes, MLOCK_ONFAULT))
		(void)mlock((void *)addr, bytes);
}

/*
 * The same mapping without a descriptor, which a thread of the program does not have: mremap of no bytes makes a second
 * mapping of the linear map's pages. It has the linear map's advice too, which is taken back. -errno; then it is not known
 * what is mapped there.
 */
static int map_linear_again(const struct sublet__linux_mm *mm, uintptr_t addr, size_t bytes, uint32_t pfn)
{
	const int flags = MREMAP_MAYMOVE | MREMAP_FIXED;

	if (syscall(SYS_mremap, sublet__mm_frame(mm, pfn), 0, bytes, flags, addr) == -1 ||
	    sublet__raw_madvise((void *)addr, bytes, MADV_DOFORK) ||
	    sublet__raw_madvise((void *)addr, bytes, MADV_DODUMP))
		return -errno;
	return 0;
}

struct map_call {
	const struct sublet__linux_mm *mm;
	const struct sublet__segment *seg;
	uint32_t pfn;
	uint32_t flags;
	int prot;
};

static int map_there(void *arg)
{
	const struct map_call *c = arg;

	return sublet__mm_map_frames(c->mm, c->seg, c->pfn, c->flags, c->prot);
}

/* On a thread of the program. What it cannot do, or could do half only, the helper does. */
static int map_without_descriptor(const struct map_call *c)
{
	uintptr_t addr = sublet__mm_addr(c->mm, c->seg->vpn);
	size_t bytes = sublet__mm_bytes(c->mm, c->seg->pages);

	if (!(c->flags & SUBLET__MAP_PRIVATE) && c->prot == (PROT_READ | PROT_WRITE) &&
	    !map_linear_again(c->mm, addr, bytes, c->pfn))
		return 0;
	return sublet__helper_call(map_there, (void *)(uintptr_t)c);
}

/* A mapping that is to be made executable, and moved to its place. */
struct code_call {
	void *from;
	void *to;
	size_t bytes;
	int prot;
};

static int code_there(void *arg)
{
	const struct code_call *c = arg;
	const int flags = MREMAP_MAYMOVE | MREMAP_FIXED;
	int tries = 0;

	if (sublet__raw_mprotect(c->from, c->bytes, c->prot))
		return -errno;
	while (sublet__raw_mremap(c->from, c->bytes, flags, c->to) == MAP_FAILED) {
		int err = -errno;
		/* A call that failed may have unmapped what was there, and the bytes with it: then it must succeed. */
		if (sublet__mm_is_mapped((uintptr_t)c->to, c->bytes) || !sublet__mm_must_wait(&tries))
			return err;
	}
	return 0;
}

/* The helper may not make memory executable (confine.c): the thread of the program does that, with its own rights. */
static int map_code(uintptr_t addr, size_t bytes, int prot, int flags, int fd, uint64_t offset)
{
	void *from = sublet__raw_mmap(NULL, bytes, prot & ~PROT_EXEC, flags, fd, offset);
	struct code_call call = { from, (void *)addr, bytes, prot };

	if (from == MAP_FAILED)
		return -errno;
	int err = sublet__order_ask(code_there, &call);
	if (err)
		sublet__raw_munmap(from, bytes);
	return err;
}

int sublet__mm_map_frames(const struct sublet__linux_mm *mm, const struct sublet__segment *seg, uint32_t pfn,
			  uint32_t flags, int prot)
{
	if (!sublet__descriptors_are_here())
		return map_without_descriptor(&(struct map_call){ mm, seg, pfn, flags, prot });
	bool is_private = flags & SUBLET__MAP_PRIVATE;
	uintptr_t addr = sublet__mm_addr(mm, seg->vpn);
	size_t bytes = sublet__mm_bytes(mm, seg->pages);
	uint64_t offset = mm->fd_offset + ((uint64_t)pfn << mm->shift);

	SUBLET__DEFINED(sublet__mm_frame(mm, pfn), bytes);
	if (is_private && mm->is_hugetlb)
		return sublet__mm_map_copy(mm, seg, pfn, prot);
	/* NORESERVE: a snapshot is rarely written as a whole, as with the fork() it is made for. */
	int how = is_private ? MAP_PRIVATE | MAP_NORESERVE : MAP_SHARED;
	if (prot & PROT_EXEC && sublet__helper_is_here())
		return map_code(addr, bytes, prot, how, mm->fd, offset);
	return sublet__mm_map_fixed(addr, bytes, prot, how, mm->fd, offset);
}

void sublet__mm_must_map(const struct sublet__linux_mm *mm, const struct sublet__segment *seg, uint32_t pfn,
			 uint32_t flags, int prot)
{
	int err, tries = 0;

	do {
		err = sublet__mm_map_frames(mm, seg, pfn, flags, prot);
		if (!err)
			return;
	} while (sublet__mm_must_wait(&tries));
	sublet__mm_give_up("the kernel refuses to map memory back where it was; stopping before data is lost",
			   err);
}
