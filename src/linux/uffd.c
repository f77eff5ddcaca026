/* SPDX-License-Identifier: MIT */
/*
 * linux/uffd.c: userfaultfd.
 *
 * Nobody ever reads these descriptors: a fault queues its thread on the descriptor and the thread
 * sleeps until UFFDIO_WAKE (or UNREGISTER) of its address. Blocking is thus a matter of registering
 * and waking, no handler thread stands between a writer and its memory, and the end of the process
 * that moves (closing the descriptor) lets everybody go.
 *
 * The descriptor must serve faults of the kernel itself (read(2) into moved memory), which needs
 * CAP_SYS_PTRACE, vm.unprivileged_userfaultfd or access to /dev/userfaultfd; a user-mode-only one
 * would turn such faults into EFAULT and is refused.
 */
#include "linux/uffd.h"

#include "linux/linux.h"
#include "linux/mm.h"
#include "linux/raw.h"

static int open_bare(bool *via_device)
{
	long uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	int err = -errno;

	*via_device = false;
	if (uffd >= 0)
		return (int)uffd;
	int device = sublet__raw_open(AT_FDCWD, "/dev/userfaultfd", O_RDWR);
	if (device < 0)
		return err;
	uffd = ioctl(device, SUBLET__UFFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	err = -errno;
	sublet__raw_close(device);
	*via_device = uffd >= 0;
	return uffd >= 0 ? (int)uffd : err;
}

int sublet__uffd_probe(uint64_t *features, bool *via_device)
{
	struct uffdio_api api = { .api = UFFD_API, .features = 0 };
	int uffd = open_bare(via_device);
	int err = 0;

	*features = 0;
	if (uffd < 0)
		return uffd;
	if (ioctl(uffd, UFFDIO_API, &api))
		err = -errno;
	else
		*features = api.features;
	sublet__raw_close(uffd);
	return err;
}

int sublet__uffd_open(uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	bool via_device;
	int uffd = open_bare(&via_device);

	if (uffd < 0)
		return uffd;
	if (ioctl(uffd, UFFDIO_API, &api)) {
		int err = errno == EINVAL ? -EOPNOTSUPP : -errno;
		sublet__raw_close(uffd);
		return err;
	}
	return sublet__linux_fd_high(uffd);
}

int sublet__uffd_register(int uffd, uintptr_t addr, size_t bytes, uint64_t mode)
{
	struct uffdio_register r = { .range = { addr, bytes }, .mode = mode };

	if (!ioctl(uffd, UFFDIO_REGISTER, &r))
		return 0;
	/* Another userfaultfd has it: the program's. Before Linux 6.17 it would lose it if we unregistered the range. */
	if (errno == EBUSY)
		return -EADDRINUSE;
	int err = -errno;
	/* The range may be several kernel mappings, of which some are registered by now. */
	sublet__uffd_unregister(uffd, addr, bytes);
	return err;
}

void sublet__uffd_unregister(int uffd, uintptr_t addr, size_t bytes)
{
	struct uffdio_range r = { addr, bytes };
	int tries = 0;

	/* A range that stays registered is one on which somebody sleeps for ever (G7). It is refused where a mapping has
	   to be split for it and there is no memory; anything else means that the program has put its own there. */
	while (ioctl(uffd, UFFDIO_UNREGISTER, &r) && errno == ENOMEM)
		if (!sublet__mm_must_wait(&tries))
			sublet__mm_give_up("cannot let go of a blocked range; stopping before threads hang",
					   -ENOMEM);
}

int sublet__uffd_protect(int uffd, uintptr_t addr, size_t bytes)
{
	struct uffdio_writeprotect w = { .range = { addr, bytes }, .mode = UFFDIO_WRITEPROTECT_MODE_WP };

	/* EAGAIN: another thread changes the address space in this very moment; it always ends. */
	while (ioctl(uffd, UFFDIO_WRITEPROTECT, &w))
		if (errno != EAGAIN)
			return -errno;
	return 0;
}

void sublet__uffd_wake(int uffd, uintptr_t addr, size_t bytes)
{
	struct uffdio_range r = { addr, bytes };

	(void)ioctl(uffd, UFFDIO_WAKE, &r);
}
