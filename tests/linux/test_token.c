/* SPDX-License-Identifier: MIT */
/*
 * linux/token.c: when a token is free, and which process it names. With real children, of each kind that a program may
 * have; whatever becomes of a child, the token is free as soon as no process has the page, and no sooner.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "linux/platform.h"
#include "linux/raw.h"
#include "linux/token.h"

#include <sublet/arena.h>
#include <sublet/claim.h>
#include <sublet/map.h>

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define NOBODY    65534
#define LONG_NS   (60 * SUBLET_SEC)
#define CANNOT    77 /* exit code of a child that this machine does not let do what it should */
#define FORKS_MAX 4

/* A token, and two pipes: children say on `ready` how far they are, and end when `go` has been closed. */
struct world {
	struct sublet__token token;
	int ready[2], go[2];
};

static void world_open(struct world *w)
{
	assert_int_equal(sublet__token_make(&w->token), 0);
	assert_int_equal(pipe2(w->ready, O_CLOEXEC), 0);
	assert_int_equal(pipe2(w->go, O_CLOEXEC), 0);
}

static void world_close(struct world *w)
{
	sublet__token_close(&w->token);
	close(w->ready[0]);
	close(w->ready[1]);
	close(w->go[0]);
}

/* ---- what children do; they never return ---- */

static void say(const struct world *w)
{
	char c = 'r';

	if (write(w->ready[1], &c, 1) != 1)
		_exit(1);
}

static _Noreturn void wait_for_go(struct world *w)
{
	char c;

	close(w->go[1]);
	say(w);
	if (read(w->go[0], &c, 1) != 0)
		_exit(1);
	_exit(0);
}

static void child_plain(struct world *w)
{
	wait_for_go(w);
}

static void child_without_descriptors(struct world *w)
{
	say(w);
	if (syscall(SYS_close_range, 0u, ~0u, 0u))
		_exit(CANNOT);
	pause();
}

static void child_is_killed(struct world *w)
{
	say(w);
	pause();
}

static void child_other_user(struct world *w)
{
	if (setgid(NOBODY) || setuid(NOBODY))
		_exit(CANNOT);
	wait_for_go(w);
}

static void child_chroot(struct world *w)
{
	if (chroot("/proc/self/fdinfo") || chdir("/"))
		_exit(CANNOT);
	wait_for_go(w);
}

static void child_user_namespace(struct world *w)
{
	if (unshare(CLONE_NEWUSER | CLONE_NEWNS))
		_exit(CANNOT);
	wait_for_go(w);
}

static void child_without_proc(struct world *w)
{
	if (unshare(CLONE_NEWNS | CLONE_FS))
		_exit(CANNOT);
	if (chroot("/dev") || chdir("/"))
		_exit(CANNOT);
	wait_for_go(w);
}

static void child_no_dump(struct world *w)
{
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0))
		_exit(CANNOT);
	wait_for_go(w);
}

static void child_new_session(struct world *w)
{
	if (setsid() < 0)
		_exit(1);
	wait_for_go(w);
}

static void (*const kinds[])(struct world *w) = {
	child_plain,          child_without_descriptors, child_is_killed, child_other_user,  child_chroot,
	child_user_namespace, child_without_proc,        child_no_dump,   child_new_session,
};

/* Fork as linux/fork.c does it: the page is mapped, the child signs it, the parent unmaps it. */
static pid_t fork_with(struct world *w, void (*child)(struct world *w))
{
	struct sublet__token_page *page = sublet__token_map(&w->token);

	assert_non_null(page);
	fflush(NULL);
	pid_t pid = fork();
	if (pid == 0) {
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
		sublet__token_sign(page);
		child(w);
		_exit(1);
	}
	assert_true(pid > 0);
	sublet__token_unmap(page);
	return pid;
}

/* False: the child has ended, because it could not become what it should be. */
static bool is_ready(struct world *w)
{
	struct pollfd p = { .fd = w->ready[0], .events = POLLIN };
	char c;

	assert_true(poll(&p, 1, 1000) >= 0);
	return (p.revents & POLLIN) && read(w->ready[0], &c, 1) == 1;
}

static void wait_until_ready(struct world *w, pid_t pid)
{
	while (!is_ready(w)) {
		siginfo_t info = { .si_pid = 0 };
		assert_int_equal(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT), 0);
		assert_int_equal(info.si_pid, 0);
	}
}

static void must_become_free(struct world *w)
{
	uint64_t until_ns = sublet__now_ns() + LONG_NS;

	while (!sublet__token_is_free(&w->token)) {
		assert_true(sublet__now_ns() < until_ns);
		sublet__raw_sleep_ns(SUBLET_MS);
	}
}

static int reap(pid_t pid)
{
	int status = 0;

	assert_int_equal(waitpid(pid, &status, 0), pid);
	return status;
}

/* ---- the page ---- */

static void test_own_mapping(void **context)
{
	struct world w;

	(void)context;
	world_open(&w);
	struct sublet__token_page *page = sublet__token_map(&w.token), *again = sublet__token_map(&w.token);
	assert_non_null(page);
	assert_non_null(again);
	assert_false(sublet__token_is_free(&w.token));
	sublet__token_unmap(page);
	assert_false(sublet__token_is_free(&w.token));
	sublet__token_unmap(again);
	assert_true(sublet__token_is_free(&w.token));
	/* For ever: nobody can map it any more, and a fork that would share it gets none. */
	assert_null(sublet__token_map(&w.token));
	assert_true(sublet__token_is_free(&w.token));
	assert_int_equal(sublet__token_pid(&w.token), 0);
	close(w.go[1]);
	world_close(&w);
}

/* Each kind: not free while the child lives, though the parent has no handle on it; free when it is a zombie. */
static void test_kinds_of_children(void **context)
{
	uint32_t tried = 0;

	(void)context;
	for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
		struct world w;
		world_open(&w);
		pid_t pid = fork_with(&w, kinds[i]);
		siginfo_t info = { .si_pid = 0 };
		bool ready = false;
		while (!ready && !info.si_pid) {
			ready = is_ready(&w);
			assert_int_equal(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT), 0);
		}
		if (!ready) {
			assert_int_equal(WEXITSTATUS(reap(pid)), CANNOT);
			print_message("kind %zu cannot be tried here\n", i);
			close(w.go[1]);
		} else {
			for (int look = 0; look < 20; look++) {
				assert_false(sublet__token_is_free(&w.token));
				assert_int_equal(sublet__token_pid(&w.token), pid);
				sublet__raw_sleep_ns(SUBLET_MS);
			}
			close(w.go[1]);
			if (kinds[i] == child_without_descriptors || kinds[i] == child_is_killed)
				kill(pid, SIGKILL);
			must_become_free(&w);
			reap(pid);
			tried++;
		}
		assert_int_equal(sublet__token_pid(&w.token), 0);
		world_close(&w);
	}
	assert_true(tried >= 4);
}

static void run_sh(struct world *w)
{
	if (dup2(w->go[0], STDIN_FILENO) < 0 || dup2(w->ready[1], STDOUT_FILENO) < 0)
		_exit(1);
	execl("/bin/sh", "sh", "-c", "echo; read line", (char *)NULL);
	_exit(1);
}

static void test_exec(void **context)
{
	struct world w;

	(void)context;
	world_open(&w);
	pid_t pid = fork_with(&w, run_sh);
	wait_until_ready(&w, pid);
	/* It runs, and has nothing of ours. */
	assert_true(sublet__token_is_free(&w.token));
	assert_int_equal(kill(pid, 0), 0);
	close(w.go[1]);
	(void)reap(pid);
	world_close(&w);
}

/* The child of vfork() never has a page of its own; the parent unmaps its own and that is all. */
static void test_vfork(void **context)
{
	struct world w;

	(void)context;
	world_open(&w);
	struct sublet__token_page *page = sublet__token_map(&w.token);
	assert_non_null(page);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
	pid_t pid = vfork();
#pragma GCC diagnostic pop
	if (pid == 0) {
		dup2(w.go[0], STDIN_FILENO);
		execl("/bin/sh", "sh", "-c", "read line", (char *)NULL);
		_exit(1);
	}
	assert_true(pid > 0);
	assert_false(sublet__token_is_free(&w.token));
	sublet__token_unmap(page);
	assert_true(sublet__token_is_free(&w.token));
	close(w.go[1]);
	(void)reap(pid);
	world_close(&w);
}

/* A fork that the kernel refuses leaves nothing. In a process of its own, which has no right to more. */
static void test_refused_fork(void **context)
{
	struct world w;

	(void)context;
	world_open(&w);
	fflush(NULL);
	pid_t pid = fork();
	if (pid == 0) {
		const struct rlimit none = { 0, 0 };
		struct sublet__token_page *page = sublet__token_map(&w.token);
		if (!page || (getuid() == 0 && setuid(NOBODY)) || setrlimit(RLIMIT_NPROC, &none))
			_exit(CANNOT);
		pid_t grandchild = fork();
		if (grandchild == 0)
			_exit(0);
		if (grandchild > 0)
			_exit(CANNOT);
		sublet__token_unmap(page);
		_exit(sublet__token_is_free(&w.token) ? 0 : 1);
	}
	assert_true(pid > 0);
	int status = reap(pid);
	assert_true(WIFEXITED(status));
	assert_true(WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == CANNOT);
	close(w.go[1]);
	world_close(&w);
}

/* ---- families ---- */

/* A child with a child of its own, which signs as it came: by linux/fork.c in its process. It ends at once. */
static void child_leaves_grandchild(struct world *w)
{
	pid_t pid = fork();

	if (pid != 0)
		_exit(pid < 0);
	struct sublet__token_page *page = sublet__token_map(&w->token);
	if (!page)
		_exit(1);
	sublet__token_sign(page);
	pid = getpid();
	if (write(w->ready[1], &pid, sizeof pid) != sizeof pid)
		_exit(1);
	close(w->go[1]);
	char c;
	_exit(read(w->go[0], &c, 1) != 0);
}

static void test_grandchild_outlives_child(void **context)
{
	struct world w;
	pid_t grandchild = 0;

	(void)context;
	world_open(&w);
	pid_t pid = fork_with(&w, child_leaves_grandchild);
	assert_int_equal(read(w.ready[0], &grandchild, sizeof grandchild), sizeof grandchild);
	/* While the child is a zombie, and after that: the living one is named. */
	siginfo_t info;
	assert_int_equal(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0);
	for (int round = 0; round < 2; round++) {
		assert_false(sublet__token_is_free(&w.token));
		assert_int_equal(sublet__token_pid(&w.token), grandchild);
		if (!round)
			reap(pid);
	}
	close(w.go[1]);
	must_become_free(&w);
	world_close(&w);
}

/* More processes than the page has slots, all dead, and one that lives. */
static void test_pids_wrap(void **context)
{
	struct world w;

	(void)context;
	world_open(&w);
	struct sublet__token_page *page = sublet__token_map(&w.token);
	assert_non_null(page);
	pid_t dead = fork();
	if (dead == 0)
		_exit(0);
	assert_true(dead > 0);
	reap(dead);
	page->count = 3 * SUBLET__TOKEN_PIDS + 7;
	for (uint32_t i = 0; i < SUBLET__TOKEN_PIDS; i++)
		page->pid[i] = (uint32_t)dead;
	pid_t pid = fork_with(&w, child_plain);
	wait_until_ready(&w, pid);
	assert_int_equal(sublet__token_pid(&w.token), pid);
	assert_int_equal(page->pid[7], pid);
	close(w.go[1]);
	reap(pid);
	assert_int_equal(sublet__token_pid(&w.token), 0);
	sublet__token_unmap(page);
	must_become_free(&w);
	world_close(&w);
}

/* Forks that share one token, ended in an order that is not the order of their start. */
static void test_overlapping_forks(void **context)
{
	struct world w, go[FORKS_MAX];
	pid_t pid[FORKS_MAX];

	(void)context;
	world_open(&w);
	for (int i = 0; i < FORKS_MAX; i++) {
		go[i] = w;
		assert_int_equal(pipe2(go[i].go, O_CLOEXEC), 0);
		for (int k = 0; k < i; k++) /* a child must not keep the others' pipes open */
			assert_int_equal(fcntl(go[k].go[1], F_GETFD) & ~FD_CLOEXEC, 0);
		pid[i] = fork_with(&go[i], child_is_killed);
		wait_until_ready(&w, pid[i]);
	}
	for (int i = 0; i < FORKS_MAX; i++) {
		int at = (i * 3 + 1) % FORKS_MAX;
		assert_false(sublet__token_is_free(&w.token));
		kill(pid[at], SIGKILL);
		reap(pid[at]);
		int32_t named = sublet__token_pid(&w.token);
		assert_int_not_equal(named, pid[at]);
		assert_int_equal(named != 0, i < FORKS_MAX - 1);
		close(go[at].go[0]);
		close(go[at].go[1]);
	}
	must_become_free(&w);
	close(w.go[1]);
	world_close(&w);
}

/* ---- pid namespaces: a number of another namespace is never taken for one of ours ---- */

static void child_named_by_another_namespace(struct world *w)
{
	if (getpid() != 1)
		_exit(CANNOT);
	pid_t pid = fork(); /* number 2 there; forked by a process that is not of our namespace */
	if (pid == 0) {
		struct sublet__token_page *page = sublet__token_map(&w->token);
		if (!page)
			_exit(1);
		sublet__token_sign(page);
		wait_for_go(w);
	}
	wait_for_go(w);
}

/* In a process of its own, since unshare(CLONE_NEWPID) is about all later children. */
static void in_pid_namespace(int flags)
{
	struct world w;

	world_open(&w);
	if (unshare(CLONE_NEWPID | flags))
		_exit(CANNOT);
	pid_t pid = fork_with(&w, child_named_by_another_namespace);
	wait_until_ready(&w, pid);
	wait_until_ready(&w, pid);
	assert_false(sublet__token_is_free(&w.token));
	assert_int_equal(sublet__token_pid(&w.token), 0);
	close(w.go[1]);
	must_become_free(&w);
	reap(pid);
	world_close(&w);
	_exit(0);
}

static void test_pid_namespaces(void **context)
{
	static const int flags[] = { 0, CLONE_NEWUSER, CLONE_NEWUSER | CLONE_NEWNS };
	uint32_t tried = 0;

	(void)context;
	for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
		fflush(NULL);
		pid_t pid = fork();
		if (pid == 0)
			in_pid_namespace(flags[i]);
		assert_true(pid > 0);
		int status = reap(pid);
		assert_true(WIFEXITED(status));
		assert_true(WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == CANNOT);
		tried += WEXITSTATUS(status) == 0;
	}
	if (!tried)
		skip();
}

/* ---- no other token to be had ---- */

/* The whole area, at once. What stands in the way, or 0: a child's pid. */
static int claim_all(struct sublet_arena *arena, uint64_t bytes, int32_t *child)
{
	struct sublet_claim claim;
	const struct sublet_claim_options options = { SUBLET_OPTIONS(sublet_claim_options),
						      .deadline_ns = 50 * SUBLET_MS };
	int err = sublet_claim(arena, bytes, &options, &claim);

	*child = 0;
	if (!err)
		return sublet_release(arena, &claim);
	for (uint32_t i = 0; i < claim.blocker_count && i < SUBLET_BLOCKERS_MAX; i++)
		if (claim.blockers[i].kind == SUBLET_BLOCKER_CHILD)
			*child = claim.blockers[i].error;
	return err;
}

static pid_t fork_waiting(int go[2])
{
	fflush(NULL);
	pid_t pid = fork();

	if (pid == 0) {
		char c;
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(go[1]);
		_exit(read(go[0], &c, 1) != 0);
	}
	assert_true(pid > 0);
	return pid;
}

/* All numbers of descriptors below the limit are in use: forks succeed all the same, and share the token that is ready. */
static void test_no_descriptors(void **context)
{
	const struct sublet_arena_options options = { SUBLET_OPTIONS(sublet_arena_options),
						      .area_bytes = 16 * SUBLET_MIB,
						      .normal_bytes = 16 * SUBLET_MIB };
	struct sublet_arena *arena;
	struct rlimit old, limit;
	int go[3][2], fd, last = -1;
	int32_t named;
	void *memory;

	(void)context;
	if (sublet_arena_create(&options, &arena)) {
		skip();
		return;
	}
	assert_int_equal(sublet_map(sublet_arena_mm(arena), 12 * SUBLET_MIB, SUBLET_MOVABLE, &memory), 0);
	memset(memory, 7, 12 * SUBLET_MIB);
	for (int i = 0; i < 3; i++)
		assert_int_equal(pipe2(go[i], O_CLOEXEC), 0);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
	limit = (struct rlimit){ 256, old.rlim_max };
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
	while ((fd = open("/dev/null", O_RDONLY | O_CLOEXEC)) >= 0)
		last = fd;
	assert_true(last > 0);

	pid_t pid[3];
	for (int i = 0; i < 3; i++)
		pid[i] = fork_waiting(go[i]);
	uint64_t until_ns = sublet__now_ns() + LONG_NS;
	for (int i = 2; i >= 0; i--) {
		/* Without a descriptor the arena cannot tell who lives, so it may name nobody; it names no dead one. */
		do {
			assert_true(sublet__now_ns() < until_ns);
			assert_int_not_equal(claim_all(arena, 16 * SUBLET_MIB, &named), 0);
		} while (named && named != pid[i] && (i == 0 || (named != pid[0] && named != pid[i - 1])));
		kill(pid[i], SIGKILL);
		assert_int_equal(waitpid(pid[i], NULL, 0), pid[i]);
	}
	while (claim_all(arena, 16 * SUBLET_MIB, &named))
		assert_true(sublet__now_ns() < until_ns);
	for (size_t i = 0; i < 12 * SUBLET_MIB; i += 4096)
		assert_int_equal(((char *)memory)[i], 7);
	for (; last > go[2][1]; last--)
		close(last);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
	sublet_arena_destroy(arena);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_own_mapping),    cmocka_unit_test(test_kinds_of_children),
		cmocka_unit_test(test_exec),           cmocka_unit_test(test_vfork),
		cmocka_unit_test(test_refused_fork),   cmocka_unit_test(test_grandchild_outlives_child),
		cmocka_unit_test(test_pids_wrap),      cmocka_unit_test(test_overlapping_forks),
		cmocka_unit_test(test_pid_namespaces), cmocka_unit_test(test_no_descriptors),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
