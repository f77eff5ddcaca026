/* SPDX-License-Identifier: MIT */
/*
 * linux/sharers.c: does any process still have a private view of this file?
 *
 * After a fork() the child sees the parent's frames through private mappings, and so do its own
 * children. Frames may change again only when the last of these mappings is gone. A pipe that they
 * inherit tells most of it (fork.c), but a process may close all its descriptors and keep its memory,
 * so before anything is shared again the mappings of all processes are read. Only private ones
 * count: a driver that was handed the descriptor maps the file shared, and is meant to.
 *
 * Reading them takes descriptors, for a moment and on a thread that the program does not know of. Programs
 * close numbers that they closed before (a shell does, all the time): in the table of the process that would
 * be ours, and our own close would then be of a pipe of theirs. So the looking is done by a thread with a table
 * of its own. It is made without libc, whose threads take memory from malloc, and shares the caller's
 * thread-local variables, which waits for it.
 *
 * Rejected: counting children with wait(), which belongs to the program, and knows no grandchildren;
 * /proc/kpagecount, which is root's. What can hide is a process that left our line of descent, closed
 * every descriptor, changed its user and kept the memory: none of the programs we know of.
 */
#include "linux/fork.h"
#include "linux/proc.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ANCESTORS_MAX 64
#define STACK_BYTES ((size_t)64 * 1024)
#ifndef CLOSE_RANGE_UNSHARE
#define CLOSE_RANGE_UNSHARE (1u << 1)
#endif
#ifndef SYS_close_range
#define SYS_close_range 436 /* everywhere */
#endif

struct directory_entry { /* struct linux_dirent64 */
	uint64_t ino;
	int64_t off;
	uint16_t record_bytes;
	uint8_t type;
	char name[];
};

static uint64_t parse(const char **text, unsigned int base)
{
	uint64_t v = 0;

	for (;; (*text)++) {
		char c = **text;
		unsigned int digit = c >= '0' && c <= '9' ? (unsigned int)(c - '0')
			: c >= 'a' && c <= 'f' ? (unsigned int)(c - 'a') + 10 : 99;
		if (digit >= base)
			return v;
		v = v * base + digit;
	}
}

static const char *next_field(const char *line)
{
	line = strchr(line, ' ');
	while (line && *line == ' ')
		line++;
	return line;
}

/* A line of maps: "start-end rw-p offset major:minor inode path". */
static bool is_private_map(const char *line, dev_t dev, ino_t ino)
{
	const char *perms = next_field(line);
	const char *offset = perms ? next_field(perms) : NULL;
	const char *device = offset ? next_field(offset) : NULL;

	if (!device || perms[3] != 'p')
		return false;
	uint64_t major_number = parse(&device, 16);
	if (*device++ != ':')
		return false;
	uint64_t minor_number = parse(&device, 16);
	while (*device == ' ')
		device++;
	return parse(&device, 10) == ino && major_number == major(dev) && minor_number == minor(dev);
}

static void pid_path(struct sublet__text *path, uint32_t pid, const char *file)
{
	sublet__text_start(path, "/proc/");
	sublet__text_add_number(path, pid);
	sublet__text_add(path, file);
}

static uint32_t parent_of(uint32_t pid)
{
	struct sublet__text path;
	char data[512];

	pid_path(&path, pid, "/stat");
	if (sublet__proc_read(path.data, data, sizeof data) <= 0)
		return 0;
	/* "pid (name) state ppid": the name may hold anything, so from the last bracket on. */
	const char *p = strrchr(data, ')');
	if (!p || strlen(p) < 5)
		return 0;
	p += 4;
	return (uint32_t)parse(&p, 10);
}

static bool descends_from(uint32_t pid, uint32_t ancestor)
{
	for (int i = 0; i < ANCESTORS_MAX && pid > 1; i++) {
		pid = parent_of(pid);
		if (pid == ancestor)
			return true;
	}
	return false;
}

static bool process_shares(uint32_t pid, uint32_t self, dev_t dev, ino_t ino)
{
	struct sublet__lines lines;
	struct sublet__text path;
	const char *line;
	bool shares = false;

	pid_path(&path, pid, "/maps");
	int err = sublet__lines_open(&lines, path.data);
	if (err)
		return (err == -EACCES || err == -EPERM) && descends_from(pid, self);
	while (!shares && (line = sublet__lines_next(&lines)))
		shares = is_private_map(line, dev, ino);
	sublet__lines_close(&lines);
	return shares;
}

static int find(dev_t dev, ino_t ino)
{
	_Alignas(struct directory_entry) char data[4096];
	uint32_t self = (uint32_t)getpid();
	int found = 0;
	int fd = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	while (!found) {
		long n = syscall(SYS_getdents64, fd, data, sizeof data);
		if (n <= 0) {
			found = n < 0 ? -errno : 0;
			break;
		}
		for (long at = 0; at < n && !found;) {
			const struct directory_entry *e = (const struct directory_entry *)(const void *)(data + at);
			const char *name = e->name;
			uint32_t pid = (uint32_t)parse(&name, 10);
			at += e->record_bytes;
			if (pid && !*name && pid != self && process_shares(pid, self, dev, ino))
				found = (int)pid;
		}
	}
	close(fd);
	return found;
}

/* ---- out of the program's sight ---- */

struct search {
	dev_t dev;
	ino_t ino;
	int found;
	pid_t running; /* cleared by the kernel when the thread is gone */
};

static int search_main(void *arg)
{
	struct search *s = arg;

	/* Where the kernel has none of it the program's table must do. */
	(void)syscall(SYS_close_range, 0u, ~0u, CLOSE_RANGE_UNSHARE);
	s->found = find(s->dev, s->ino);
	return 0;
}

int sublet__sharer_find(dev_t dev, ino_t ino)
{
	const int flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM |
			  CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID;
	struct search s = { .dev = dev, .ino = ino, .found = 0, .running = 0 };
	char *stack = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int tid = -1;
	pid_t running;

	if (stack != MAP_FAILED)
		tid = clone(search_main, stack + STACK_BYTES, flags, &s, &s.running, NULL, &s.running);
	if (tid < 0)
		s.found = find(dev, ino);
	/* Not a private futex: the kernel's wake at the end of a thread is of the other kind. */
	while (tid >= 0 && (running = __atomic_load_n(&s.running, __ATOMIC_ACQUIRE)))
		(void)syscall(SYS_futex, &s.running, FUTEX_WAIT, running, NULL, NULL, 0);
	if (stack != MAP_FAILED)
		munmap(stack, STACK_BYTES);
	return s.found;
}
