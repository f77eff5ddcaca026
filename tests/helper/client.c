/* SPDX-License-Identifier: MIT */
/*
 * helper_client: a program that test_helper.py and test_sandbox.py run in lent memory and without.
 *
 *   sandbox FILTER SECONDS   fill memory, forbid itself system calls on pain of death, say "sandboxed", go on, say "right"
 *   hold BYTES               fill memory, say "full"; then for each line on stdin one word of what it says:
 *                              check    "right" or "wrong": all bytes are what they were
 *                              malloc   allocate and free much: "done"
 *                              fork     "forked", or the name of the errno
 *                              thread   the main thread ends; another one goes on, and answers from then on
 *                              exec     this program again, from the start
 *                              stop     SIGSTOP to itself; "continued" when it goes on
 *                              abort    SIGABRT
 *   descriptors              use and close every number, before, during and after forks
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <linux/filter.h>
#include <linux/seccomp.h>

#define PAGE  4096
#define FIRST 3 /* of the descriptors that are not the standard ones */

static void say(const char *word)
{
	char line[64];
	int n = snprintf(line, sizeof line, "%s\n", word);

	if (write(STDOUT_FILENO, line, (size_t)n) != n)
		_exit(3);
}

static void fail(const char *what)
{
	fprintf(stderr, "client: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* ---- memory ---- */

static unsigned char *held;
static size_t held_bytes;

static unsigned char expected(size_t at)
{
	return (unsigned char)(at / PAGE * 7 + at);
}

static void fill(size_t bytes)
{
	held = malloc(bytes);
	if (!held)
		fail("malloc");
	held_bytes = bytes;
	for (size_t i = 0; i < bytes; i++)
		held[i] = expected(i);
}

static bool is_right(void)
{
	for (size_t i = 0; i < held_bytes; i++)
		if (held[i] != expected(i))
			return false;
	return true;
}

enum { SLOTS = 64 };

/* Allocate, grow, shrink and free, and look at every byte that must have stayed. */
static void churn(unsigned int rounds)
{
	static unsigned char *slot[SLOTS];
	static size_t size[SLOTS];
	static uint64_t random = 88172645463325252u;

	for (unsigned int i = 0; i < rounds; i++) {
		random ^= random << 13;
		random ^= random >> 7;
		random ^= random << 17;
		size_t at = random % SLOTS, bytes = random >> 20 & ((1u << (10 + random % 11)) - 1);
		for (size_t k = 0; k < size[at]; k += 61)
			if (slot[at][k] != (unsigned char)(at + 1))
				abort();
		unsigned char *p = bytes ? realloc(slot[at], bytes) : NULL;
		if (!bytes)
			free(slot[at]);
		else if (!p)
			abort();
		slot[at] = p;
		for (size_t k = 0; k < bytes && k < size[at]; k += 61)
			if (p[k] != (unsigned char)(at + 1))
				abort();
		size[at] = bytes;
		if (p)
			memset(p, (int)at + 1, bytes);
	}
}

/* ---- sandboxes ---- */

#define ACTION(number, action) \
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (number), 0, 1), BPF_STMT(BPF_RET | BPF_K, (action))
#define KILL(number)  ACTION(number, SECCOMP_RET_KILL_PROCESS)
#define ALLOW(number) ACTION(number, SECCOMP_RET_ALLOW)
#define LOAD_NUMBER   BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr))
#define ALL(action)   BPF_STMT(BPF_RET | BPF_K, (action))

/* What a server with a list of forbidden calls forbids: changes of priorities and processors. */
static struct sock_filter resource[] = {
	LOAD_NUMBER,
	KILL(SYS_sched_setaffinity),
	KILL(SYS_sched_setscheduler),
	KILL(SYS_setpriority),
	KILL(SYS_sched_setparam),
	KILL(SYS_prlimit64),
	ALL(SECCOMP_RET_ALLOW),
};

/* Nothing is opened, no device spoken to, no process made. */
static struct sock_filter files[] = {
	LOAD_NUMBER,
	KILL(SYS_openat),
	KILL(SYS_ioctl),
	KILL(SYS_execve),
	KILL(SYS_clone),
	KILL(SYS_clone3),
	KILL(SYS_unlinkat),
	KILL(SYS_memfd_create),
	KILL(SYS_fcntl),
	KILL(SYS_close),
	KILL(SYS_kill),
	KILL(SYS_tgkill),
#ifdef SYS_open
	KILL(SYS_open),
	KILL(SYS_fork),
	KILL(SYS_unlink),
#endif
	ALL(SECCOMP_RET_ALLOW),
};

/* What malloc, time and the end of a process need, and nothing else. */
static struct sock_filter minimal[] = {
	LOAD_NUMBER,
	ALLOW(SYS_mmap),
	ALLOW(SYS_munmap),
	ALLOW(SYS_mremap),
	ALLOW(SYS_madvise),
	ALLOW(SYS_mprotect),
	ALLOW(SYS_brk),
	ALLOW(SYS_futex),
	ALLOW(SYS_write),
	ALLOW(SYS_exit),
	ALLOW(SYS_exit_group),
	ALLOW(SYS_clock_gettime),
	ALLOW(SYS_nanosleep),
	ALLOW(SYS_clock_nanosleep),
	ALLOW(SYS_sched_yield),
	ALLOW(SYS_rt_sigreturn),
	ALLOW(SYS_gettid),
	ALL(SECCOMP_RET_KILL_PROCESS),
};

static const struct {
	const char *name;
	struct sock_fprog program;
} filters[] = {
	{ "resource", { sizeof resource / sizeof *resource, resource } },
	{ "files", { sizeof files / sizeof *files, files } },
	{ "minimal", { sizeof minimal / sizeof *minimal, minimal } },
};

static const struct sock_fprog *filter_named(const char *name)
{
	for (size_t i = 0; i < sizeof filters / sizeof *filters; i++)
		if (!strcmp(filters[i].name, name))
			return &filters[i].program;
	errno = EINVAL;
	fail(name);
	return NULL;
}

static time_t now(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec;
}

static int sandbox(const char *name, int seconds)
{
	const struct sock_fprog *filter = filter_named(name);

	fill(24 << 20);
	churn(200);
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
	    syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, filter))
		fail("seccomp");
	say("sandboxed");
	for (time_t end = now() + seconds; now() < end;) {
		churn(500);
		if (!is_right())
			return 1;
	}
	say("right");
	return 0;
}

/* ---- hold ---- */

static char *const *arguments;

static const char *fork_once(void)
{
	int status;
	pid_t pid = fork();

	if (pid < 0)
		return errno == ENOMEM ? "ENOMEM" : strerror(errno);
	if (pid == 0)
		_exit(is_right() ? 0 : 1);
	return waitpid(pid, &status, 0) == pid && status == 0 ? "forked" : "wrong";
}

static void answer_all(void);

static void *go_on(void *arg)
{
	(void)pthread_join(*(pthread_t *)arg, NULL);
	say("alone");
	answer_all();
	exit(0);
}

static void main_thread_ends(void)
{
	static pthread_t main_thread, other;

	main_thread = pthread_self();
	if (pthread_create(&other, NULL, go_on, &main_thread))
		fail("pthread_create");
	pthread_exit(NULL);
}

static void answer(const char *line)
{
	if (!strcmp(line, "check\n")) {
		say(is_right() ? "right" : "wrong");
	} else if (!strcmp(line, "malloc\n")) {
		churn(5000);
		say("done");
	} else if (!strcmp(line, "fork\n")) {
		say(fork_once());
	} else if (!strcmp(line, "thread\n")) {
		main_thread_ends();
	} else if (!strcmp(line, "exec\n")) {
		execv("/proc/self/exe", arguments);
		fail("exec");
	} else if (!strcmp(line, "stop\n")) {
		(void)raise(SIGSTOP);
		say("continued");
	} else if (!strcmp(line, "abort\n")) {
		abort();
	} else {
		say("what?");
	}
}

static void answer_all(void)
{
	char line[64];

	while (fgets(line, sizeof line, stdin))
		answer(line);
}

static int hold(size_t bytes)
{
	fill(bytes);
	say("full");
	answer_all();
	return 0;
}

/* ---- descriptors ---- */

static void use_all(int end)
{
	for (int fd = FIRST; fd < end; fd++) {
		if (fcntl(fd, F_GETFD) != -1 || errno != EBADF)
			fail("a number is in use");
		if (dup2(STDERR_FILENO, fd) != fd || fcntl(fd, F_GETFD) < 0)
			fail("dup2");
	}
	for (int fd = FIRST; fd < end; fd++)
		if (close(fd))
			fail("close");
	int count = 0, last = -1;
	for (int fd = dup(STDERR_FILENO); fd >= 0; fd = dup(STDERR_FILENO), count++)
		last = fd;
	if (errno != EMFILE || count != end - FIRST || last != end - 1)
		fail("some numbers are not to be had");
	for (int fd = FIRST; fd < end; fd++)
		if (close(fd))
			fail("close");
}

static int descriptors(void)
{
	struct rlimit limit;
	int status;

	fill(8 << 20);
	if (getrlimit(RLIMIT_NOFILE, &limit))
		fail("getrlimit");
	limit.rlim_cur = limit.rlim_max < 8192 ? limit.rlim_max : 8192;
	if (setrlimit(RLIMIT_NOFILE, &limit))
		fail("setrlimit");
	use_all((int)limit.rlim_cur);
	for (int round = 0; round < 3; round++) {
		pid_t pid = fork();
		if (pid < 0)
			fail("fork");
		if (pid == 0) {
			use_all((int)limit.rlim_cur);
			_exit(0);
		}
		use_all((int)limit.rlim_cur);
		if (waitpid(pid, &status, 0) != pid || status)
			fail("a child");
		use_all((int)limit.rlim_cur);
	}
	if (!is_right())
		fail("memory");
	say("right");
	return 0;
}

int main(int argc, char **argv)
{
	arguments = argv;
	if (argc == 4 && !strcmp(argv[1], "sandbox"))
		return sandbox(argv[2], atoi(argv[3]));
	if (argc == 3 && !strcmp(argv[1], "hold"))
		return hold(strtoull(argv[2], NULL, 10));
	if (argc == 2 && !strcmp(argv[1], "descriptors"))
		return descriptors();
	fprintf(stderr, "usage: client sandbox FILTER SECONDS | hold BYTES | descriptors\n");
	return 2;
}
