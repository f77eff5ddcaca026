/* SPDX-License-Identifier: MIT */
/*
 * linux/spare.c: a reserve of kernel mappings.
 *
 * A process may have vm.max_map_count mappings, and a program that has used them all gets ENOMEM from every call that
 * splits one: mmap over a part of a mapping, mprotect, a registration with userfaultfd. To the program that is an
 * ordinary error. Some calls of the engine must not fail for it: fork() turns lent memory private piece by piece, and
 * where half a move is taken back there is no other way to keep the bytes. They need two or three mappings for a moment.
 *
 * So there are some that nobody needs: one-page mappings of alternating protection, which the kernel cannot merge.
 * They are given up as a whole, because the removal of whole mappings splits nothing, and made again when the next
 * memory is given back or the next fork is undone. A program with several threads may take the room in between: then the
 * caller goes on trying, as it did without a reserve.
 *
 * One reserve for the process, since the limit is the process's. Its pages are inaccessible or never read, so it costs
 * no memory. There is no lock: a child of fork() inherits the reserve together with this file's account of it, whatever
 * another thread was about.
 */
#include "linux/spare.h"

#include "core/atomic.h"
#include "linux/raw.h"

#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>

#define PAGE_BYTES  ((size_t)4096)
#define SPARE_BYTES (SUBLET__SPARE_MAPPINGS * PAGE_BYTES)

static sublet__a32 users;
/* The address of the reserve; 0: given up, or there never was one. Who takes it out by exchange has it to himself. */
static sublet__a64 start;

/* 0: there is no room. */
static uintptr_t make(void)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
	char *at = sublet__raw_mmap(NULL, SPARE_BYTES, PROT_NONE, flags, -1, 0);

	if (at == MAP_FAILED)
		return 0;
	for (size_t i = 0; i < SPARE_BYTES; i += 2 * PAGE_BYTES)
		if (sublet__raw_mprotect(at + i, PAGE_BYTES, PROT_READ)) {
			sublet__raw_munmap(at, SPARE_BYTES);
			return 0;
		}
	return (uintptr_t)at;
}

/* Put another in its place, or none; the former goes. True: there was one. */
static bool replace(uintptr_t next)
{
	uint64_t former = a64_exchange_seq_cst(&start, next);

	if (former)
		sublet__raw_munmap((void *)(uintptr_t)former, SPARE_BYTES);
	return former;
}

void sublet__spare_open(void)
{
	a32_add_relaxed(&users, 1);
	sublet__spare_renew();
}

void sublet__spare_close(void)
{
	if (a32_sub_acq_rel(&users, 1) == 1)
		(void)replace(0);
}

bool sublet__spare_use(void)
{
	return replace(0);
}

void sublet__spare_renew(void)
{
	/* Relaxed: two threads may both find it gone, and then one reserve replaces the other. */
	if (!a64_load_relaxed(&start))
		(void)replace(make());
}
