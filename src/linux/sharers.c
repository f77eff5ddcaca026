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
 * "Cannot tell" is never "nobody". A process whose mappings we may not read (it changed its user) counts where it
 * could have them: it began after the oldest fork in question and has not called exec since, which the kernel tells
 * about everybody, in the flags of /proc/<pid>/stat. Any other error is an error of the search.
 *
 * Rejected: counting children with wait(), which belongs to the program, and knows no grandchildren;
 * /proc/kpagecount, which is root's; following parents, which orphans have no more. What can hide is a process that
 * closed every descriptor and is not listed: in a /proc mounted with hidepid, after it changed its user.
 */
#include "linux/fork.h"
#include "linux/platform.h"
#include "linux/proc.h"
#include "linux/raw.h"

#include <linux/futex.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>

#define STACK_BYTES ((size_t)64 * 1024)
#ifndef CLOSE_RANGE_UNSHARE
#define CLOSE_RANGE_UNSHARE (1u << 1)
#endif
#ifndef SYS_close_range
#define SYS_close_range 436 /* everywhere */
#endif

/* The kernel's numbers. */
#define PROC_MAGIC    0x9fa0u
#define PF_FORKNOEXEC 0x40u
#define PF_KTHREAD    0x200000u

struct directory_entry { /* struct linux_dirent64 */
	uint64_t ino;
	int64_t off;
	uint16_t record_bytes;
	uint8_t type;
	char name[];
};

struct search {
	const struct sublet__sharers *what;
	int proc;      /* a directory of our own: no number that the program could close meanwhile */
	int found;     /* pid, or -errno */
	pid_t running; /* cleared by the kernel when the thread is gone */
};

static bool is_private_map(const char *line, const struct sublet__sharers *what)
{
	struct sublet__map_line map;

	return sublet__map_line_parse(line, &map) && map.is_private && map.ino == what->ino &&
	       map.major == major(what->dev) && map.minor == minor(what->dev);
}

static void pid_path(struct sublet__text *path, uint32_t pid, const char *file)
{
	sublet__text_start(path, "");
	sublet__text_add_number(path, pid);
	sublet__text_add(path, file);
}

/* Of /proc/<pid>/stat; fields are counted from 1, as in proc(5). */
struct process {
	char state;           /* 3 */
	uint64_t flags;       /* 9 */
	uint64_t threads;     /* 20 */
	uint64_t start_ticks; /* 22 */
};

/* -ENOENT, -ESRCH: there is no such process any more. */
static int process_read(int proc, uint32_t pid, struct process *p)
{
	struct sublet__text path;
	char data[1024];

	pid_path(&path, pid, "/stat");
	int n = sublet__proc_read_at(proc, path.data, data, sizeof data);
	if (n <= 0)
		return n ? n : -ESRCH;
	/* "pid (name) state ppid ...": the name may hold anything, so from the last bracket on. */
	const char *at = strrchr(data, ')');
	if (!at || strlen(at) < 5)
		return -EIO;
	p->state = at[2];
	at += 3;
	for (int field = 4; field <= 22; field++) {
		if (*at != ' ')
			return -EIO;
		at += at[1] == '-' ? 2 : 1;
		uint64_t value = sublet__parse(&at, 10);
		if (field == 9)
			p->flags = value;
		else if (field == 20)
			p->threads = value;
		else if (field == 22)
			p->start_ticks = value;
	}
	return 0;
}

/*
 * Whether a process whose mappings cannot be seen could have ours. 1, 0, or -errno. A main thread that has ended
 * (Z) shows none, though its process may go on in others.
 */
static int could_share(const struct search *s, uint32_t pid)
{
	struct process p;
	int err = process_read(s->proc, pid, &p);

	if (err)
		return err;
	if (p.state == 'X' || (p.state == 'Z' && p.threads <= 1) || p.flags & PF_KTHREAD)
		return 0;
	return p.flags & PF_FORKNOEXEC && p.start_ticks >= s->what->since_ticks;
}

static int process_shares(const struct search *s, uint32_t pid)
{
	struct sublet__lines lines;
	struct sublet__text path;
	const char *line;
	bool any = false, shares = false;

	pid_path(&path, pid, "/maps");
	int err = sublet__lines_open(&lines, s->proc, path.data);
	if (err == -EACCES || err == -EPERM)
		return could_share(s, pid);
	if (err)
		return err;
	while (!shares && (line = sublet__lines_next(&lines))) {
		any = true;
		shares = is_private_map(line, s->what);
	}
	sublet__lines_close(&lines);
	if (lines.error == -EACCES || lines.error == -EPERM || (!lines.error && !any))
		return could_share(s, pid);
	return shares ? 1 : lines.error;
}

static int find(const struct search *s)
{
	_Alignas(struct directory_entry) char data[4096];
	uint32_t self = (uint32_t)getpid();

	for (;;) {
		long n = syscall(SYS_getdents64, s->proc, data, sizeof data);
		if (n <= 0)
			return n < 0 ? -errno : 0;
		for (long at = 0; at < n;) {
			const struct directory_entry *e =
				(const struct directory_entry *)(const void *)(data + at);
			const char *name = e->name;
			uint32_t pid = (uint32_t)sublet__parse(&name, 10);
			at += e->record_bytes;
			if (!pid || *name || pid == self)
				continue;
			int shares = process_shares(s, pid);
			if (shares && shares != -ENOENT && shares != -ESRCH) /* which say that it has ended */
				return shares > 0 ? (int)pid : shares;
		}
	}
}

uint64_t sublet__ticks_now(void)
{
	struct timespec t;
	uint64_t hz = (uint64_t)sysconf(_SC_CLK_TCK);

	clock_gettime(CLOCK_BOOTTIME, &t);
	return (uint64_t)t.tv_sec * hz + (uint64_t)t.tv_nsec / (1000000000u / hz);
}

int sublet__proc_open(int dir)
{
	struct statfs fs;
	int fd = sublet__raw_open(dir, dir == AT_FDCWD ? "/proc" : ".", O_RDONLY | O_DIRECTORY);

	if (fd >= 0 && (fstatfs(fd, &fs) || (uint32_t)fs.f_type != PROC_MAGIC)) {
		sublet__raw_close(fd);
		return -ENOENT;
	}
	return fd;
}

/* ---- out of the program's sight ---- */

static void search(struct search *s)
{
	/* The number that was kept may be another file's by now, of a program that closes what it does not know. */
	s->proc = s->what->proc >= 0 ? sublet__proc_open(s->what->proc) : -EBADF;
	if (s->proc < 0)
		s->proc = sublet__proc_open(AT_FDCWD);
	s->found = s->proc < 0 ? s->proc : find(s);
	if (s->proc >= 0)
		sublet__raw_close(s->proc);
}

static int search_main(void *arg)
{
	struct search *s = arg;
	unsigned int keep = s->what->proc > 0 ? (unsigned int)s->what->proc : 0;

	/* Where the kernel has none of it the program's table must do. */
	(void)syscall(SYS_close_range, keep + 1, ~0u, CLOSE_RANGE_UNSHARE);
	if (keep)
		(void)syscall(SYS_close_range, 0u, keep - 1, CLOSE_RANGE_UNSHARE);
	search(s);
	return 0;
}

int sublet__sharer_find(const struct sublet__sharers *what)
{
	const int flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM |
			  CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID;
	struct search s = { .what = what };
	char *stack = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int tid = -1;
	pid_t running;

	/*
	 * The thread has our errno. With no signal here the futex call has no error before the thread is gone, so nobody
	 * but the thread writes it; and no handler of the program runs on a thread that libc does not know.
	 */
	sublet__signals_block();
	if (stack != MAP_FAILED)
		tid = clone(search_main, stack + STACK_BYTES, flags, &s, &s.running, NULL, &s.running);
	/* Not a private futex: the kernel's wake at the end of a thread is of the other kind. */
	while (tid >= 0 && (running = __atomic_load_n(&s.running, __ATOMIC_ACQUIRE)))
		(void)syscall(SYS_futex, &s.running, FUTEX_WAIT, running, NULL, NULL, 0);
	sublet__signals_unblock();
	if (tid < 0)
		search(&s);
	if (stack != MAP_FAILED)
		munmap(stack, STACK_BYTES);
	return s.found;
}
