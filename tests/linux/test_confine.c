/* SPDX-License-Identifier: MIT */
/*
 * linux/confine.c: what the helper process cannot do, tried by having it do just that (docs/security.md S28 to S32). An
 * attacker who controls the program controls what the helper runs, so each attempt is an order.
 */
#include "helper_world.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <linux/capability.h>
#include <linux/openat2.h>
#include <linux/seccomp.h>

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SYS_pidfd_send_signal
#define SYS_pidfd_send_signal 424
#endif
#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif
#ifndef SYS_openat2
#define SYS_openat2 437
#endif
#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449
#endif
#ifndef SYS_memfd_create
#define SYS_memfd_create 319
#endif
#define NUMBERS 1024

/* A system call with its arguments; a task makes it and answers -errno, or what it got. */
struct attempt {
	const char *name;
	long number;
	long argument[6];
};

static int try(void *arg)
{
	const struct attempt *a = arg;
	const long *v = a->argument;
	long result = syscall(a->number, v[0], v[1], v[2], v[3], v[4], v[5]);

	return result < 0 ? -errno : (int)result;
}

static int by_helper(const char *name, long number, long a, long b, long c, long d, long e, long f)
{
	struct attempt attempt = { name, number, { a, b, c, d, e, f } };

	return sublet__helper_call(try, &attempt);
}

#define BY_HELPER(call, a, b, c, d) \
	by_helper(#call, SYS_##call, (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)
#define REFUSED(call, a, b, c, d)                                                                          \
	do {                                                                                               \
		int answer_ = BY_HELPER(call, a, b, c, d);                                                 \
		if (answer_ != -EPERM) {                                                                   \
			fprintf(stderr, "%s:%d: %s(" #a ", " #b ", ...) answers %d\n", __FILE__, __LINE__, \
				#call, answer_);                                                           \
			_exit(1);                                                                          \
		}                                                                                          \
	} while (0)

static char folder[64] = "/tmp/sublet-confine-XXXXXX";
static pid_t victim; /* a process of the same user */

/* ---- S28: no path, no socket, no program, no other process ---- */

static void no_files(void)
{
	const struct open_how how = { .flags = O_RDONLY };
	static const char *const paths[] = { "/etc/hostname", "/proc/self/mem", "/dev/null", ".",
					     "../etc/passwd", "/proc/self/exe" };

	for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
		const char *path = paths[i];
#ifdef SYS_open
		REFUSED(open, path, O_RDONLY, 0, 0);
		REFUSED(creat, path, 0600, 0, 0);
		REFUSED(unlink, path, 0, 0, 0);
		REFUSED(chmod, path, 0666, 0, 0);
		REFUSED(rename, path, "/tmp/x", 0, 0);
#endif
		REFUSED(openat, AT_FDCWD, path, O_RDONLY, 0);
		REFUSED(openat, AT_FDCWD, path, O_RDWR | O_CREAT, 0600);
		REFUSED(openat, AT_FDCWD, path, O_PATH, 0);
		REFUSED(openat2, AT_FDCWD, path, &how, sizeof how);
		REFUSED(open_by_handle_at, AT_FDCWD, path, O_RDONLY, 0);
		REFUSED(name_to_handle_at, AT_FDCWD, path, 0, 0);
		REFUSED(newfstatat, AT_FDCWD, path, 0, 0);
		REFUSED(readlinkat, AT_FDCWD, path, 0, 0);
		REFUSED(faccessat, AT_FDCWD, path, R_OK, 0);
		REFUSED(truncate, path, 0, 0, 0);
		REFUSED(mkdirat, AT_FDCWD, path, 0700, 0);
		REFUSED(mknodat, AT_FDCWD, path, 0600, 0);
		REFUSED(linkat, AT_FDCWD, path, AT_FDCWD, "/tmp/x");
		REFUSED(symlinkat, path, AT_FDCWD, "/tmp/x", 0);
		REFUSED(renameat2, AT_FDCWD, path, AT_FDCWD, "/tmp/x");
		REFUSED(fchmodat, AT_FDCWD, path, 0666, 0);
		REFUSED(fchownat, AT_FDCWD, path, 0, 0);
		REFUSED(utimensat, AT_FDCWD, path, 0, 0);
		REFUSED(chdir, path, 0, 0, 0);
		REFUSED(chroot, path, 0, 0, 0);
		REFUSED(mount, path, path, 0, 4096);
		REFUSED(execve, path, 0, 0, 0);
		REFUSED(execveat, AT_FDCWD, path, 0, 0);
		REFUSED(inotify_add_watch, 0, path, 0, 0);
		REFUSED(setxattr, path, "user.x", "", 0);
	}
	REFUSED(fchmod, 7, 0777, 0, 0);
	REFUSED(fchown, 7, 0, 0, 0);
	REFUSED(fchdir, 7, 0, 0, 0);
	REFUSED(dup, 4, 0, 0, 0);
	REFUSED(dup3, 4, 5, 0, 0);
	REFUSED(fcntl, 4, F_DUPFD, 10, 0);
	REFUSED(fcntl, 4, F_SETFL, 0, 0);
	REFUSED(fcntl, 4, F_SETOWN, victim, 0);
	REFUSED(pidfd_getfd, 4, 0, 0, 0);
}

static void no_network(void)
{
	char message[64] = { 0 };

	for (int family = 0; family < 46; family++) {
		REFUSED(socket, family, SOCK_STREAM, 0, 0);
		REFUSED(socketpair, family, SOCK_DGRAM, 0, message);
	}
	REFUSED(connect, 4, message, sizeof message, 0);
	REFUSED(bind, 4, message, sizeof message, 0);
	REFUSED(listen, 4, 5, 0, 0);
	/* It takes descriptors: the program's, of files and sockets that the helper has no right to open. */
	REFUSED(recvmsg, 4, message, 0, 0);
	REFUSED(recvmmsg, 4, message, 1, 0);
	REFUSED(sendmmsg, 4, message, 1, 0);
	REFUSED(setsockopt, 4, SOL_SOCKET, SO_REUSEADDR, message);
	REFUSED(ioctl, 4, 0x5412 /* TIOCSTI */, message, 0);
}

static void no_processes(void)
{
	unsigned long flags = SUBLET__TASK_CLONE_FLAGS;
	char clone_arguments[88] = { 0 };

#ifdef SYS_fork
	REFUSED(fork, 0, 0, 0, 0);
	REFUSED(vfork, 0, 0, 0, 0);
#endif
	REFUSED(clone, SIGCHLD, 0, 0, 0);
	REFUSED(clone, CLONE_VM | CLONE_VFORK | SIGCHLD, 0, 0, 0);
	for (uint32_t bit = 0; bit < 32; bit++)
		REFUSED(clone, flags ^ (1ul << bit), 0, 0, 0);
	REFUSED(clone3, clone_arguments, sizeof clone_arguments, 0, 0);
	REFUSED(unshare, CLONE_NEWUSER, 0, 0, 0);
	REFUSED(unshare, CLONE_FILES, 0, 0, 0);
	REFUSED(setns, 4, 0, 0, 0);
	for (int i = 0; i < 2; i++) {
		pid_t pid = i ? victim : getpid();
		REFUSED(kill, pid, 0, 0, 0);
		REFUSED(kill, -pid, SIGKILL, 0, 0);
		REFUSED(tkill, pid, 0, 0, 0);
		REFUSED(tgkill, pid, pid, 0, 0);
		REFUSED(rt_sigqueueinfo, pid, 0, clone_arguments, 0);
		REFUSED(ptrace, 0x4206 /* PTRACE_SEIZE */, pid, 0, 0);
		REFUSED(process_vm_readv, pid, 0, 0, 0);
		REFUSED(process_vm_writev, pid, 0, 0, 0);
		REFUSED(prlimit64, pid, RLIMIT_NOFILE, 0, 0);
		REFUSED(sched_setscheduler, pid, 0, clone_arguments, 0);
		REFUSED(setpgid, pid, 0, 0, 0);
		REFUSED(ioprio_set, 1, pid, 0, 0);
		REFUSED(setpriority, PRIO_PROCESS, pid, 19, 0);
		REFUSED(move_pages, pid, 0, 0, 0);
		REFUSED(migrate_pages, pid, 0, 0, 0);
	}
	REFUSED(kill, -1, 0, 0, 0);
	REFUSED(setpriority, PRIO_USER, 0, 19, 0);
	REFUSED(setpriority, PRIO_PGRP, 0, 19, 0);
}

/* Rights, the kernel, and memory that becomes code. */
static void no_rights(void)
{
	char zeros[128] = { 0 };

	REFUSED(setuid, 0, 0, 0, 0);
	REFUSED(setresuid, 0, 0, 0, 0);
	REFUSED(setgid, 0, 0, 0, 0);
	REFUSED(setgroups, 0, 0, 0, 0);
	REFUSED(capset, zeros, zeros, 0, 0);
	REFUSED(prctl, PR_SET_DUMPABLE, 1, 0, 0);
	REFUSED(prctl, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, zeros, 0);
	REFUSED(prctl, PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0);
	REFUSED(prctl, PR_SET_MM, 0, 0, 0);
	REFUSED(prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_IPC_LOCK, 0);
	REFUSED(seccomp, SECCOMP_SET_MODE_FILTER, 0, zeros, 0);
	REFUSED(bpf, 0, zeros, sizeof zeros, 0);
	REFUSED(perf_event_open, zeros, 0, -1, -1);
	REFUSED(userfaultfd, 0, 0, 0, 0);
	REFUSED(io_uring_setup, 8, zeros, 0, 0);
	REFUSED(keyctl, 0, 0, 0, 0);
	REFUSED(init_module, zeros, 0, "", 0);
	REFUSED(reboot, 0, 0, 0, 0);
	REFUSED(personality, 0x0400000 /* READ_IMPLIES_EXEC */, 0, 0, 0);
	REFUSED(setrlimit, RLIMIT_CORE, zeros, 0, 0);
	REFUSED(shmget, 0, 4096, 0600, 0);
	REFUSED(shmat, 0, 0, 0, 0);
	REFUSED(remap_file_pages, zeros, 0, 0, 0);
	REFUSED(pkey_mprotect, zeros, 4096, PROT_READ, -1);
	for (int prot = PROT_EXEC; prot <= (PROT_READ | PROT_WRITE | PROT_EXEC); prot++) {
		REFUSED(mprotect, (uintptr_t)zeros & ~4095ul, 4096, prot, 0);
		REFUSED(mmap, 0, 4096, prot, MAP_PRIVATE | MAP_ANONYMOUS);
		REFUSED(mmap, 0, 4096, prot | 0x20000000, MAP_PRIVATE | MAP_ANONYMOUS);
	}
	CHECK(by_helper("mmap", SYS_mmap, 0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != -EPERM);
}

/* It ends with the program, which may be another user's by then: so not by PR_SET_PDEATHSIG. */
static void victim_start(void)
{
	int life[2];
	char c;

	CHECK(pipe2(life, O_CLOEXEC) == 0);
	victim = fork();
	CHECK(victim >= 0);
	if (victim == 0) {
		sublet__helper_fork_child();
		close(life[1]);
		_exit(read(life[0], &c, 1) != 0);
	}
	close(life[0]);
}

static void victim_lives(void)
{
	CHECK(waitpid(victim, NULL, WNOHANG) == 0);
}

static void try_all(void)
{
	no_files();
	no_network();
	no_processes();
	no_rights();
	victim_lives();
}

static void program_confined(void)
{
	helper_begin();
	victim_start();
	try_all();
}

static void test_attempts(void **context)
{
	(void)context;
	program_run(program_confined);
}

static void program_of_another_user(void)
{
	if (getuid() != 0)
		_exit(CANNOT);
	victim_start(); /* root's */
	helper_begin_in(folder);
	CHECK(setgid(NOBODY) == 0 && setuid(NOBODY) == 0);
	try_all();
	/* Neither the program, which is another user's by now, nor anybody is signalled. */
	for (int fd = 0; fd < 64; fd++)
		CHECK(BY_HELPER(pidfd_send_signal, fd, SIGKILL, 0, 0) == -EPERM);
}

/* The helper stays the user that the program was; it has no more rights by that. */
static void test_after_setuid(void **context)
{
	(void)context;
	assert_non_null(mkdtemp(folder));
	program_run(program_of_another_user);
	(void)rmdir(folder);
	strcpy(folder, "/tmp/sublet-confine-XXXXXX");
}

/* ---- S29: the right to signal the program is not passed on ---- */

static void program_and_its_pidfd(void)
{
	int keep = -1, count = 0;

	helper_begin();
	victim_start();
	for (int fd = 0; fd < 256; fd++)
		if (BY_HELPER(close, fd, 0, 0, 0) == -EPERM) {
			keep = fd;
			count++;
		}
	CHECK(count == 1);
	for (int i = 0; i < 64; i++)
		CHECK(BY_HELPER(pidfd_open, victim, 0, 0, 0) >= 0);
	for (int fd = 0; fd < 256; fd++)
		if (fd != keep)
			REFUSED(pidfd_send_signal, fd, SIGKILL, 0, 0);
	CHECK(BY_HELPER(pidfd_send_signal, keep, 0, 0, 0) == 0);
	CHECK(BY_HELPER(pidfd_send_signal, keep, SIGKILL, 0, 0) == 0); /* this is the program itself */
	pause();
}

static void test_whom_it_signals(void **context)
{
	(void)context;
	assert_int_equal(program_wait(program_start(program_and_its_pidfd)), SIGKILL);
}

/* ---- S30: files of one directory can be removed, and nothing else ---- */

static void file_make(const char *path)
{
	int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);

	CHECK(fd >= 0);
	close(fd);
}

static int refused_there(int answer)
{
	return answer == -EACCES || answer == -EPERM || answer == -EXDEV;
}

static void program_removes(void)
{
	char outside[80], name[100], link_out[96], inside_directory[96], outside_directory[80];
	bool works = syscall(SYS_landlock_create_ruleset, NULL, 0, 1u) > 0;

	snprintf(outside, sizeof outside, "%s.outside", folder);
	snprintf(outside_directory, sizeof outside_directory, "%s.directory", folder);
	snprintf(inside_directory, sizeof inside_directory, "%s/directory", folder);
	snprintf(link_out, sizeof link_out, "%s/link", folder);
	CHECK(mkdir(outside_directory, 0700) == 0 && mkdir(inside_directory, 0700) == 0);
	file_make(outside);
	CHECK(symlink("/tmp", link_out) == 0);
	snprintf(name, sizeof name, "%s/one", folder);
	file_make(name);
	helper_begin_in(folder);
	const char *base = strrchr(outside, '/') + 1;
	char up[128], by_link[128];
	snprintf(up, sizeof up, "../%s", base);
	snprintf(by_link, sizeof by_link, "link/%s", base);
	for (int fd = 0; fd < 32; fd++) { /* one of them is the directory */
		CHECK(BY_HELPER(unlinkat, fd, up, 0, 0) != 0);
		CHECK(BY_HELPER(unlinkat, fd, by_link, 0, 0) != 0);
		CHECK(BY_HELPER(unlinkat, fd, "directory", AT_REMOVEDIR, 0) != 0);
	}
	CHECK(refused_there(BY_HELPER(unlinkat, AT_FDCWD, outside, 0, 0)));
	CHECK(refused_there(BY_HELPER(unlinkat, -1, outside, 0, 0)));
	CHECK(refused_there(BY_HELPER(unlinkat, AT_FDCWD, outside_directory, AT_REMOVEDIR, 0)));
	CHECK(refused_there(BY_HELPER(unlinkat, AT_FDCWD, inside_directory, AT_REMOVEDIR, 0)));
	CHECK(refused_there(BY_HELPER(unlinkat, AT_FDCWD, "/etc/hostname", 0, 0)));
	CHECK(access(outside, F_OK) == 0 && access(outside_directory, F_OK) == 0);
	CHECK(BY_HELPER(unlinkat, AT_FDCWD, name, 0, 0) == (works ? 0 : -EPERM));
	CHECK(access(name, F_OK) == (works ? -1 : 0));
	(void)unlink(name);
	CHECK(unlink(outside) == 0 && rmdir(outside_directory) == 0 && rmdir(inside_directory) == 0 &&
	      unlink(link_out) == 0);
}

static void program_removes_nothing(void)
{
	char path[96];

	snprintf(path, sizeof path, "%s/kept", folder);
	file_make(path);
	helper_begin();
	REFUSED(unlinkat, AT_FDCWD, path, 0, 0);
	CHECK(unlink(path) == 0);
}

static void test_removal(void **context)
{
	(void)context;
	assert_non_null(mkdtemp(folder));
	program_run(program_removes);
	program_run(program_removes_nothing);
	assert_int_equal(rmdir(folder), 0);
	strcpy(folder, "/tmp/sublet-confine-XXXXXX");
}

/* ---- S31: all numbers ---- */

/* What answers anything but EPERM when each argument is -1. Calls with an argument that decides are above. */
static const int open_calls[] = {
	SYS_futex,
	SYS_futex_waitv,
	SYS_clock_gettime,
	SYS_clock_nanosleep,
	SYS_nanosleep,
	SYS_ppoll,
	SYS_restart_syscall,
	SYS_sched_yield,
	SYS_munmap,
	SYS_mremap,
	SYS_madvise,
	SYS_mlock,
	SYS_mlock2,
	SYS_munlock,
	SYS_read,
	SYS_pread64,
	SYS_write,
	SYS_close,
	SYS_fstat,
	SYS_ftruncate,
	SYS_memfd_create,
	SYS_accept4,
	SYS_getsockopt,
	SYS_sendmsg,
	SYS_sendto,
	SYS_recvfrom,
	SYS_shutdown,
	SYS_gettid,
	SYS_getpid,
	SYS_getcpu,
	SYS_sched_getaffinity,
	SYS_sched_setaffinity,
	SYS_rt_sigprocmask,
	SYS_kcmp,
	SYS_pidfd_open,
#ifdef SYS_poll
	SYS_poll,
#endif
	/* not tried: they end the task, or jump */
	SYS_exit,
	SYS_exit_group,
	SYS_rt_sigreturn,
};

static bool is_open(long number)
{
	for (size_t i = 0; i < sizeof open_calls / sizeof *open_calls; i++)
		if (open_calls[i] == number)
			return true;
	return false;
}

/*
 * The kernel's own calls behind uprobes (x86-64, from 6.11 and 6.18) pass every filter, and end whoever makes them from
 * anywhere but a probe.
 */
static bool is_for_probes(long number)
{
#ifdef __x86_64__
	return (number & 0x3fffffff) == 335 || (number & 0x3fffffff) == 336;
#else
	return (void)number, false;
#endif
}

static void walk(long first)
{
	for (long number = first; number < first + NUMBERS; number++) {
		if (number == SYS_exit || number == SYS_exit_group || number == SYS_rt_sigreturn ||
		    is_for_probes(number))
			continue;
		int answer = by_helper("walk", number, -1, -1, -1, -1, -1, -1);
		if (is_open(number) == (answer == -EPERM)) {
			fprintf(stderr, "call %ld answers %d\n", number, answer);
			_exit(1);
		}
	}
}

static void program_walk(void)
{
	helper_begin();
	walk(0);
#ifdef __x86_64__
	walk(0x40000000); /* x32 */
	walk(-NUMBERS);
#endif
}

static void test_all_numbers(void **context)
{
	(void)context;
	program_run(program_walk);
}

#ifdef __x86_64__
/* getpid of the 32-bit table, which a filter of the 64-bit table alone would take for another call. */
static int by_other_table(void *arg)
{
	int answer;

	(void)arg;
	__asm__ volatile("int $0x80" : "=a"(answer) : "a"(20) : "memory", "r8", "r9", "r10", "r11");
	return answer;
}

static void program_other_table(void)
{
	helper_begin();
	int answer = sublet__helper_call(by_other_table, NULL);
	if (answer == -EPIPE) /* this kernel has no such table: that is the end of the helper */
		_exit(CANNOT);
	CHECK(answer == -EPERM);
}
#endif

static void test_another_table(void **context)
{
	(void)context;
#ifdef __x86_64__
	program_run(program_other_table);
#else
	skip();
#endif
}

/* ---- S32: what the kernel says of it ---- */

static void program_status(void)
{
	const struct rlimit small = { 65536, 65536 };
	(void)setrlimit(RLIMIT_MEMLOCK, &small); /* so that it keeps the one capability that it may keep */
	helper_begin();
	pid_t helper = helper_pid();
	uint64_t may_keep = 1ull << CAP_IPC_LOCK;

	CHECK((status_number(helper, "CapEff", 16) & ~may_keep) == 0);
	CHECK((status_number(helper, "CapPrm", 16) & ~may_keep) == 0);
	CHECK(status_number(helper, "CapInh", 16) == 0);
	CHECK(status_number(helper, "CapAmb", 16) == 0);
	CHECK(status_number(helper, "NoNewPrivs", 10) == 1);
	CHECK(status_number(helper, "Seccomp", 10) == 2);
	/* And the program is what it was. */
	CHECK(status_number(getpid(), "NoNewPrivs", 10) == (uint64_t)prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
	CHECK(status_number(getpid(), "TracerPid", 10) == 0);
}

/* Tasks that started before the limits, and those that start later, have them all. */
static void *task_tries(void *arg)
{
	*(int *)arg = syscall(SYS_openat, AT_FDCWD, "/", O_RDONLY, 0) < 0 ? errno : 0;
	return NULL;
}

static void program_tasks_are_confined(void)
{
	static struct sublet__thread early, late;
	static int answer[2];

	CHECK(sublet__helper_start() == 0);
	CHECK(sublet__linux_thread_start(&early, "early", task_tries, &answer[0]) == 0);
	CHECK(sublet__helper_confine() == 0);
	CHECK(sublet__linux_thread_start(&late, "late", task_tries, &answer[1]) == 0);
	sublet__linux_thread_join(&early);
	sublet__linux_thread_join(&late);
	CHECK(answer[0] == EPERM && answer[1] == EPERM);
}

static void test_state(void **context)
{
	(void)context;
	program_run(program_status);
	program_run(program_tasks_are_confined);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_attempts),        cmocka_unit_test(test_after_setuid),
		cmocka_unit_test(test_whom_it_signals), cmocka_unit_test(test_removal),
		cmocka_unit_test(test_all_numbers),     cmocka_unit_test(test_another_table),
		cmocka_unit_test(test_state),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
