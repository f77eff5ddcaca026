/* SPDX-License-Identifier: MIT */
/*
 * linux/token.c: a page that a child inherits, to know when the child has gone.
 *
 * After a fork() parent and child share frames until the child ends or calls exec. The parent has to know when. A token
 * is a page of a file of its own, mapped shared and writable just before the fork, and unmapped in the parent just after
 * it. A child has it mapped as long as it has the rest of its inherited memory, and so have the child's own children:
 *
 *   exec, exit, SIGKILL    the kernel drops the mapping with the address space
 *   close of everything    changes nothing: the child needs no descriptor
 *   unshare, setns, chroot, no /proc, another user
 *                          change nothing: no name and no number is looked at
 *
 * The kernel says when the last mapping has gone: a file that is mapped shared and writable cannot be sealed against
 * writing (F_ADD_SEALS, F_SEAL_WRITE answers EBUSY). The seal stays, so a token serves one fork, or several that overlap.
 *
 * What the parent needs besides, to name the child in the way of a claim, the page holds: each process that has it writes
 * its pid, as it calls itself, which is what a program in the same pid namespace calls it. A child in another pid namespace
 * (unshare, setns) calls itself by a number that is somebody else's here, 1 as a rule: it writes nothing, nor do its own
 * children, and the claim says "a child" without a number. Such a child has no parent that it could name (getppid is 0).
 *
 * Rejected: a pipe whose write end the child inherits (a child closes descriptors that it does not know, and the program
 * has a number that is not its own); pidfd of the child (tells its end, not its exec, and nothing of its children);
 * looking for the file in /proc/PID/maps of all processes (takes milliseconds, needs the right /proc, and must believe
 * the worst of each process that it may not read).
 */
#include "linux/token.h"

#include "linux/linux.h"
#include "linux/raw.h"

#include <string.h>
#include <sys/mman.h>

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8u
#endif
#define PAGE_BYTES ((size_t)4096)

_Static_assert(sizeof(struct sublet__token_page) == PAGE_BYTES, "one page");

int sublet__token_make(struct sublet__token *t)
{
	const char *name = "sublet-fork";
	/* vm.memfd_noexec=2 insists on the first form, which kernels before 6.3 do not know. */
	long fd = syscall(SYS_memfd_create, name, MFD_CLOEXEC | MFD_NOEXEC_SEAL);

	if (fd < 0 && errno == EINVAL)
		fd = syscall(SYS_memfd_create, name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	*t = (struct sublet__token){ .fd = -1 };
	if (fd < 0)
		return -errno;
	if (syscall(SYS_ftruncate, fd, PAGE_BYTES)) {
		int err = -errno;
		sublet__raw_close((int)fd);
		return err;
	}
	t->fd = sublet__linux_fd_high((int)fd);
	return 0;
}

struct sublet__token_page *sublet__token_map(const struct sublet__token *t)
{
	void *page = sublet__raw_mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, t->fd, 0);

	return page == MAP_FAILED ? NULL : page;
}

void sublet__token_unmap(struct sublet__token_page *page)
{
	(void)sublet__raw_munmap(page, PAGE_BYTES);
}

bool sublet__token_is_free(const struct sublet__token *t)
{
	return syscall(SYS_fcntl, t->fd, F_ADD_SEALS, F_SEAL_WRITE) == 0;
}

void sublet__token_close(struct sublet__token *t)
{
	sublet__raw_close(t->fd);
	t->fd = -1;
}

/* Inherited by children, as the namespace is. */
static bool is_in_other_namespace;

void sublet__token_sign(struct sublet__token_page *page)
{
	if (getppid() == 0)
		is_in_other_namespace = true;
	if (is_in_other_namespace)
		return;
	/* Relaxed: the parent may read a slot before its pid is there, and finds it at its next look. */
	uint32_t at = a32_add_relaxed(&page->count, 1) % SUBLET__TOKEN_PIDS;

	a32_store_relaxed(&page->pid[at], (uint32_t)getpid());
}

/* Not ended, as far as can be told: not without a descriptor. A zombie has ended. */
static bool is_alive(int32_t pid)
{
	long fd = pid > 0 ? syscall(SYS_pidfd_open, pid, 0) : -1;
	struct pollfd p = { .fd = (int)fd, .events = POLLIN };

	if (fd < 0)
		return false;
	bool alive = sublet__raw_poll(&p, 1, 0) == 0;
	sublet__raw_close((int)fd);
	return alive;
}

int32_t sublet__token_pid(struct sublet__token *t)
{
	uint32_t pids[SUBLET__TOKEN_PIDS + 1] = { 0 };

	if (is_alive(t->pid))
		return t->pid;
	t->pid = 0;
	if (sublet__raw_pread(t->fd, pids, sizeof pids, 0) != (long)sizeof pids)
		return 0;
	for (uint32_t i = 1; i <= SUBLET__TOKEN_PIDS && pids[i] && !t->pid; i++)
		if (is_alive((int32_t)pids[i]))
			t->pid = (int32_t)pids[i];
	return t->pid;
}
