/* SPDX-License-Identifier: MIT */
/*
 * linux/descriptors.c: our descriptors among a program's.
 *
 * Descriptors are small numbers that programs choose, clean up and close twice as if they were alone
 * in their process. What the engine needs in every thread (the backing, the userfaultfds) gets a high
 * number (linux/proc.c). What one of our threads opens for itself, a connection say, would still have a low number for an
 * instant, in which the program may close it and get it for a file of its own; such threads work on
 * a table of descriptors of their own, which the program never sees and its children do not inherit.
 */
#include "linux/helper.h"
#include "linux/instance.h"

#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

#define KEEP_MAX (16u + 4 * SUBLET__MMS_MAX)

#ifndef CLOSE_RANGE_UNSHARE
#define CLOSE_RANGE_UNSHARE (1u << 1)
#endif

static void keep_add(int *keep, uint32_t *count, int fd)
{
	uint32_t at = *count;

	if (fd < 0 || at == KEEP_MAX)
		return;
	for (; at > 0 && keep[at - 1] > fd; at--)
		keep[at] = keep[at - 1];
	keep[at] = fd;
	*count += 1;
}

int sublet__linux_fds_apart(struct sublet_arena *arena, const int *fds, uint32_t count)
{
	const struct sublet__instance *in = sublet__instance_of(arena);
	int keep[KEEP_MAX];
	uint32_t kept = 0;

	if (sublet__helper_is_here()) /* whose table is none of the program's */
		return 0;

	for (uint32_t i = 0; i < count; i++)
		keep_add(keep, &kept, fds[i]);
	keep_add(keep, &kept, in->backing.fd);
	for (uint32_t i = 0; i < in->mms; i++) {
		keep_add(keep, &kept, in->mm[i].uffd_move);
		keep_add(keep, &kept, in->mm[i].uffd_hold);
		keep_add(keep, &kept, in->mm[i].pagemap);
		keep_add(keep, &kept, in->mm[i].status);
	}
	keep_add(keep, &kept, in->platform.load_fd);

	/* The first call makes the table ours; from then on nobody else sees what is closed. */
	unsigned int from = 0;
	for (uint32_t i = 0; i <= kept; i++) {
		unsigned int to = i < kept ? (unsigned int)keep[i] - 1 : ~0u;
		bool gap = i == kept || (unsigned int)keep[i] > from;
		if (gap && syscall(SYS_close_range, from, to, CLOSE_RANGE_UNSHARE))
			return -errno;
		from = i < kept ? (unsigned int)keep[i] + 1 : from;
	}
	return 0;
}
