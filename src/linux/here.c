/* SPDX-License-Identifier: MIT */
/*
 * Whose an object is: its maker's, or a copy that a child of fork() got.
 *
 * A process that forks copies every object of ours along with the rest, and a copy leads to memory, sockets and threads that
 * are still the parent's. Handlers of fork() could mark the copies; but a fork by the bare system call runs none. A process
 * id, compared on each call, costs a system call, and is another process's in another PID namespace. So a word tells, on a
 * page that the kernel gives to no child (MADV_WIPEONFORK, Linux 4.14): a child finds 0 there. Who shares all memory (vfork,
 * CLONE_VM) shares this too, and is the same process to us.
 */
#include "linux/linux.h"

#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

int sublet__here_open(uint32_t **here)
{
	size_t bytes = (size_t)sysconf(_SC_PAGESIZE);
	void *page = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (page == MAP_FAILED)
		return -errno;
	if (madvise(page, bytes, MADV_WIPEONFORK)) {
		int err = -errno;
		munmap(page, bytes);
		return err;
	}
	*here = page;
	**here = 1;
	return 0;
}

void sublet__here_close(uint32_t *here)
{
	munmap(here, (size_t)sysconf(_SC_PAGESIZE));
}
