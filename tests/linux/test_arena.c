/* SPDX-License-Identifier: MIT */
/*
 * A whole arena on Linux: what create refuses, and every way of fork() with memory lent and a
 * thread writing all the time. After each, every word must be what its writer last stored, and
 * everything must be shared again once the children are gone.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "core/arena.h"
#include "linux/instance.h"
#include "linux/linux.h"
#include "linux/proc.h"

#include <sublet/claim.h>
#include <sublet/map.h>
#include <sublet/pin.h>
#include <sublet/stats.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define AREA_BYTES ((uint64_t)64 << 20)
#define HEAP_BYTES ((uint64_t)48 << 20)
#define WORDS      (HEAP_BYTES / 8)

extern char **environ;

static struct sublet_arena *arena;
static uint64_t *heap;
static uint64_t shadow[WORDS];
static _Atomic bool stop;
static _Atomic uint64_t wrong;

static struct sublet_arena_options options_of(enum sublet_backing kind)
{
	return (struct sublet_arena_options){ SUBLET_OPTIONS(sublet_arena_options), .area_bytes = AREA_BYTES,
					      .normal_bytes = AREA_BYTES, .backing = kind };
}

static void *writer_main(void *arg)
{
	uint64_t s = 7;

	(void)arg;
	while (!stop) {
		s ^= s << 13, s ^= s >> 7, s ^= s << 17;
		volatile uint64_t *p = heap + s % WORDS;
		wrong += *p != shadow[s % WORDS];
		shadow[s % WORDS] = s;
		*p = s;
	}
	return NULL;
}

static struct sublet_stats stats_now(void)
{
	struct sublet_stats s = { SUBLET_OPTIONS(sublet_stats) };

	assert_int_equal(sublet_arena_stats(arena, &s), 0);
	return s;
}

static bool shared_again(void)
{
	for (int i = 0; i < 500; i++) {
		if (!stats_now().area_held_bytes && !stats_now().children)
			return true;
		usleep(10000);
	}
	return false;
}

static pthread_t writer;

static bool heap_open(enum sublet_backing kind)
{
	struct sublet_arena_options o = options_of(kind);

	int err = sublet_arena_create(&o, &arena);
	if (err) {
		print_message("backing %d: error %d, skipped\n", (int)kind, err);
		return false;
	}
	assert_int_equal(sublet_map(sublet_arena_mm(arena), HEAP_BYTES, SUBLET_MOVABLE, (void **)&heap), 0);
	memset(shadow, 0, sizeof shadow);
	stop = false;
	wrong = 0;
	assert_int_equal(pthread_create(&writer, NULL, writer_main, NULL), 0);
	return true;
}

static void heap_close(void)
{
	char text[200] = "";

	stop = true;
	pthread_join(writer, NULL);
	assert_int_equal(wrong, 0);
	assert_memory_equal(heap, shadow, HEAP_BYTES);
	sublet__zeroer_stop(sublet__instance_of(arena)); /* nothing else may run meanwhile */
	if (sublet__arena_verify(arena, text, sizeof text))
		fail_msg("%s", text);
	assert_int_equal(sublet_arena_destroy(arena), 0);
	arena = NULL;
}

/* What a child does: its memory stands still; what it writes is its own. */
static void child_checks(void)
{
	uint64_t sums[2] = { 0, 0 };

	for (int k = 0; k < 2; k++) {
		for (size_t i = 0; i < WORDS; i++)
			sums[k] = sums[k] * 31 + ((volatile uint64_t *)heap)[i];
		usleep(10000);
	}
	if (sums[0] != sums[1])
		_exit(1);
	if (!sublet__linux_in_child(arena))
		_exit(2);
	for (size_t i = 0; i < WORDS; i += 512)
		heap[i] = ~(uint64_t)0;
}

static void wait_for(pid_t pid)
{
	int status;

	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

static void plain_child(void)
{
	pid_t pid = fork();

	if (!pid) {
		child_checks();
		_exit(sublet_arena_destroy(arena) == -EPERM ? 0 : 3);
	}
	assert_true(pid > 0);
	wait_for(pid);
	assert_true(shared_again());
}

/* A grandchild that keeps the memory and no descriptor, and outlives its parent. */
static void daemon_child(void)
{
	int done[2];
	char c = 0;

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, done), 0);
	pid_t pid = fork();
	if (!pid) {
		if (fork())
			_exit(0);
		dup2(done[1], 3);
		close_range(4, ~0u, 0);
		if (read(3, &c, 1) != 1) /* until the parent has seen what is held */
			_exit(1);
		child_checks();
		_exit(write(3, "k", 1) == 1 ? 0 : 1);
	}
	wait_for(pid);
	close(done[1]);
	usleep(150000);
	struct sublet_arena_info info = { SUBLET_OPTIONS(sublet_arena_info) };
	assert_int_equal(sublet_arena_info(arena, &info), 0);
	if (info.backing != SUBLET_BACKING_HUGETLB) /* where a child has copies nobody waits for it */
		assert_true(stats_now().area_held_bytes > 0);
	assert_int_equal(write(done[0], "x", 1), 1);
	assert_int_equal(read(done[0], &c, 1), 1);
	assert_int_equal(c, 'k');
	close(done[0]);
	assert_true(shared_again());
}

static void exec_child(void)
{
	pid_t pid = fork();
	char name[] = "sleep", seconds[] = "1", *argv[] = { name, seconds, NULL };

	if (!pid) {
		execv("/bin/sleep", argv);
		_exit(127);
	}
	assert_true(shared_again()); /* long before it ends */
	wait_for(pid);
	assert_int_equal(posix_spawn(&pid, "/bin/true", NULL, NULL, argv, environ), 0);
	wait_for(pid);
}

static void *forker_main(void *arg)
{
	(void)arg;
	for (int i = 0; i < 3; i++) {
		pid_t pid = fork();
		int status = -1;
		if (!pid) {
			usleep(5000);
			_exit(0);
		}
		wrong += pid < 0 || waitpid(pid, &status, 0) != pid || status;
	}
	return NULL;
}

static void many_forkers(void)
{
	pthread_t thread[4];

	for (int i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, forker_main, NULL), 0);
	/* Arenas come and go meanwhile. */
	for (int i = 0; i < 5; i++) {
		struct sublet_arena_options o = options_of(SUBLET_BACKING_MEMFD);
		struct sublet_arena *other;
		assert_int_equal(sublet_arena_create(&o, &other), 0);
		assert_int_equal(sublet_arena_destroy(other), 0);
	}
	for (int i = 0; i < 4; i++)
		pthread_join(thread[i], NULL);
	assert_true(shared_again());
}

static void cancelled(void)
{
	assert_int_equal(sublet__linux_fork_prepare(), 0);
	sublet__linux_fork_cancel();
	assert_true(shared_again());
	assert_int_equal(sublet__linux_fork_prepare(), 0);
	plain_child();
}

/* No address space left: the interposer can refuse, and everything becomes shared again. */
static void refused(void)
{
	struct rlimit old, tight = { 1 << 20, RLIM_INFINITY };

	assert_int_equal(getrlimit(RLIMIT_AS, &old), 0);
	tight.rlim_max = old.rlim_max;
	assert_int_equal(setrlimit(RLIMIT_AS, &tight), 0);
	int err = sublet__linux_fork_prepare();
	assert_int_equal(setrlimit(RLIMIT_AS, &old), 0);
	assert_int_equal(err, -ENOMEM);
	assert_true(shared_again());
}

/* A device writes into lent memory for longer than anybody waits: no reason to refuse, and nothing is left private. */
static void busy_device(void)
{
	struct sublet_pin pin;

	assert_int_equal(sublet_pin(sublet_arena_mm(arena), heap, 4096, SUBLET_PIN_WRITE, NULL, &pin), 0);
	assert_int_equal(sublet__linux_fork_prepare(), 0);
	sublet__linux_fork_cancel();
	assert_int_equal(sublet_unpin(&pin), 0);
	assert_true(shared_again());
}

static void test_forks(void **state)
{
	static const enum sublet_backing kinds[] = { SUBLET_BACKING_MEMFD, SUBLET_BACKING_THP,
						     SUBLET_BACKING_HUGETLB };

	(void)state;
	for (size_t i = 0; i < 3; i++) {
		if (!heap_open(kinds[i]))
			continue;
		plain_child();
		daemon_child();
		exec_child();
		many_forkers();
		cancelled();
		refused();
		busy_device();
		heap_close();
	}
}

/* ---- cancellation ---- */

static void *cancelled_forker_main(void *arg)
{
	pid_t *pid = arg;

	pthread_cancel(pthread_self());
	*pid = fork();
	if (!*pid)
		_exit(0);
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
	return NULL;
}

static void *cancelled_claimer_main(void *arg)
{
	const struct sublet_claim_options o = { SUBLET_OPTIONS(sublet_claim_options),
						.deadline_ns = 200 * SUBLET_MS };
	struct sublet_claim claim;

	pthread_cancel(pthread_self());
	*(int *)arg = sublet_claim(arena, AREA_BYTES, &o, &claim);
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
	return NULL;
}

static void *cancelled_creator_main(void *arg)
{
	struct sublet_arena_options o = options_of(SUBLET_BACKING_AUTO);
	struct sublet_arena *other;

	pthread_cancel(pthread_self());
	*(int *)arg = sublet_arena_create(&o, &other);
	assert_int_equal(sublet_arena_destroy(other), 0);
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
	return NULL;
}

static void run_thread(void *(*fn)(void *), void *arg)
{
	pthread_t thread;
	void *result;

	assert_int_equal(pthread_create(&thread, NULL, fn, arg), 0);
	pthread_join(thread, &result);
	assert_ptr_equal(result, NULL); /* not PTHREAD_CANCELED */
}

/* A thread that is cancelled inside does what it was asked to do; the memory is not left half way. */
static void test_cancellation(void **state)
{
	struct sublet_pin pin;
	pid_t pid = -1;
	int err = 1;

	(void)state;
	assert_true(heap_open(SUBLET_BACKING_MEMFD));
	run_thread(cancelled_forker_main, &pid);
	assert_true(pid > 0);
	wait_for(pid);
	assert_true(shared_again());
	assert_int_equal(sublet_pin(sublet_arena_mm(arena), heap, 4096, SUBLET_PIN_WRITE, NULL, &pin), 0);
	run_thread(cancelled_claimer_main, &err);
	assert_int_equal(err, -EBUSY);
	assert_int_equal(sublet_unpin(&pin), 0);
	assert_int_equal(stats_now().area_isolated_bytes, 0);
	run_thread(cancelled_creator_main, &err);
	assert_int_equal(err, 0);
	heap_close();
}

/* ---- a handler that touches lent memory, on a thread that moves it ---- */

static volatile sig_atomic_t handled;

static void toucher(int signal)
{
	static uint64_t s = 3;

	(void)signal;
	for (int i = 0; i < 64; i++) {
		s = s * 6364136223846793005u + 1;
		((volatile uint64_t *)heap)[(s >> 20) % WORDS];
	}
	handled++;
}

static void test_handler_of_a_claimer(void **state)
{
	const struct sublet_claim_options o = { SUBLET_OPTIONS(sublet_claim_options),
						.flags = SUBLET_CLAIM_DEAREST };
	struct itimerval often = { { 0, 500 }, { 0, 500 } }, never = { { 0, 0 }, { 0, 0 } };
	struct sigaction action = { .sa_handler = toucher, .sa_flags = SA_RESTART };
	struct sublet_claim claim;

	(void)state;
	assert_true(heap_open(SUBLET_BACKING_MEMFD));
	assert_int_equal(sigaction(SIGALRM, &action, NULL), 0);
	setitimer(ITIMER_REAL, &often, NULL);
	for (int i = 0; i < 300; i++)
		if (!sublet_claim(arena, 16 << 20, &o, &claim))
			assert_int_equal(sublet_release(arena, &claim), 0);
	setitimer(ITIMER_REAL, &never, NULL);
	assert_true(handled > 10);
	heap_close();
}

/* ---- what cannot be found out ---- */

/* No descriptor to be had: no pipe to a child, and no way to see that there is one. */
static void test_fork_without_descriptors(void **state)
{
	struct rlimit old, none;
	int release[2];
	char c;

	(void)state;
	assert_true(heap_open(SUBLET_BACKING_MEMFD));
	assert_int_equal(pipe(release), 0);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
	none = old;
	none.rlim_cur = 0;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
	pid_t pid = fork();
	if (!pid) {
		(void)!read(release[0], &c, 1);
		child_checks();
		_exit(0);
	}
	usleep(300000);
	uint64_t held = stats_now().area_held_bytes;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
	assert_true(pid > 0);
	assert_true(held > 0);
	assert_int_equal(write(release[1], "x", 1), 1);
	wait_for(pid);
	assert_true(shared_again());
	close(release[0]), close(release[1]);
	heap_close();
}

/* In a child calls are refused, or harmless: its own files may have the numbers of the arena's. */
static void test_calls_in_a_child(void **state)
{
	struct sublet_mm *mm;
	void *p;

	(void)state;
	assert_true(heap_open(SUBLET_BACKING_MEMFD));
	mm = sublet_arena_mm(arena);
	pid_t pid = fork();
	if (!pid) {
		struct sublet_claim claim;
		int own = memfd_create("own", MFD_CLOEXEC);
		if (ftruncate(own, 1 << 30))
			_exit(1);
		for (int fd = 3; fd < 1000; fd++)
			if (fd != own)
				dup2(own, fd);
		if (!sublet_map(mm, 1 << 20, SUBLET_MOVABLE, &p))
			_exit(2);
		if (!sublet_unmap(mm, heap, 1 << 20))
			_exit(3);
		if (sublet_claim(arena, AREA_BYTES, NULL, &claim) != -EPERM)
			_exit(4);
		sublet__linux_fork_again(arena);
		heap[0] = 1; /* still there */
		_exit(0);
	}
	wait_for(pid);
	assert_true(shared_again());
	heap_close();
}

/* Restore is called again for what the engine keeps private, without another fork. */
static void test_fork_again(void **state)
{
	struct sublet_mm *mm;

	(void)state;
	assert_true(heap_open(SUBLET_BACKING_MEMFD));
	mm = sublet_arena_mm(arena);
	(void)sublet__mm_note_protected(mm, heap, 4096, true);
	assert_int_equal(mprotect(heap, 4096, PROT_READ | PROT_WRITE | PROT_EXEC), 0);
	pid_t pid = fork();
	if (!pid)
		_exit(0);
	wait_for(pid);
	usleep(200000);
	assert_true(stats_now().area_held_bytes > 0); /* private as long as it is protected */
	assert_int_equal(mprotect(heap, 4096, PROT_READ | PROT_WRITE), 0);
	assert_true(sublet__mm_note_protected(mm, heap, 4096, false));
	sublet__linux_fork_again(arena);
	assert_true(shared_again());
	heap_close();
}

static void test_chaos(void **state)
{
	(void)state;
	assert_true(heap_open(SUBLET_BACKING_AUTO));
	assert_int_equal(sublet__linux_chaos_start(arena, 0, 1), -EINVAL);
	assert_int_equal(sublet__linux_chaos_start(arena, 50000, 1), 0);
	assert_int_equal(sublet__linux_chaos_start(arena, 50000, 1), -EALREADY);
	usleep(300000);
	for (int i = 0; i < 3; i++)
		plain_child();
	for (int i = 0; i < 2000 && stats_now().moves <= 10; i++)
		usleep(10000);
	assert_true(stats_now().moves > 10);
	stop = true;
	pthread_join(writer, NULL);
	assert_int_equal(wrong, 0);
	assert_memory_equal(heap, shadow, HEAP_BYTES);
	assert_int_equal(sublet_arena_destroy(arena), 0);
}

static void test_refused(void **state)
{
	struct sublet_arena_options o = options_of(SUBLET_BACKING_MEMFD);
	struct sublet_arena *a;

	(void)state;
	assert_int_equal(sublet_arena_create(NULL, &a), -EINVAL);
	assert_int_equal(sublet_arena_create(&o, NULL), -EINVAL);
	o.area_bytes = 0;
	assert_int_equal(sublet_arena_create(&o, &a), -EINVAL);
	o.area_bytes = UINT64_MAX - 5;
	assert_int_equal(sublet_arena_create(&o, &a), -EINVAL);
	o.area_bytes = (uint64_t)1 << 38;
	assert_int_equal(sublet_arena_create(&o, &a), -ENOMEM);
	o.area_bytes = (uint64_t)1 << 41; /* more frames than a page table entry can name */
	assert_int_equal(sublet_arena_create(&o, &a), -EINVAL);
	o = options_of(SUBLET_BACKING_MEMFD);
	o.window_bytes = ((uint64_t)1 << 44) + (4 << 20); /* 1024 pages, in 32 bits */
	assert_int_equal(sublet_arena_create(&o, &a), -EINVAL);
	o = options_of((enum sublet_backing)9);
	assert_int_equal(sublet_arena_create(&o, &a), -EINVAL);
	o = options_of(SUBLET_BACKING_FD);
	o.fd = -1;
	assert_int_equal(sublet_arena_create(&o, &a), -EINVAL);
	o = options_of(SUBLET_BACKING_MEMFD);
	o.technique = (enum sublet_technique)7;
	assert_int_equal(sublet_arena_create(&o, &a), -EINVAL);
	o.technique = 0;
	o.size_bytes = 0;
	assert_int_equal(sublet_arena_create(&o, &a), -EINVAL);
	assert_int_equal(sublet_arena_destroy(NULL), 0);
}

/* Most addresses are taken away from a child; it exits with 0 if an arena of its own is as it should be. */
static int with_few_addresses(uint64_t limit_bytes, uint64_t window_bytes, int expected)
{
	struct sublet_arena_options o = options_of(SUBLET_BACKING_MEMFD);
	pid_t pid = fork();
	int status;

	if (!pid) {
		struct rlimit limit = { limit_bytes, limit_bytes };
		struct sublet_arena *a;
		void *addr;

		if (setrlimit(RLIMIT_AS, &limit))
			_exit(2);
		o.window_bytes = window_bytes;
		if (sublet_arena_create(&o, &a) != expected)
			_exit(3);
		/* all of the area, and addresses are left for the program */
		if (!expected && sublet_map(sublet_arena_mm(a), AREA_BYTES, SUBLET_MOVABLE, &addr))
			_exit(4);
		if (!expected && window_bytes == 0 && !malloc(limit_bytes / 4))
			_exit(5);
		if (!expected)
			memset(addr, 1, AREA_BYTES);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void test_few_addresses(void **state)
{
	(void)state;
	if (sublet__proc_file_number("/proc/self/statm", 0) > (uint64_t)1 << 26)
		skip(); /* a sanitizer has taken most of the address space itself */
	assert_int_equal(with_few_addresses((uint64_t)5 << 30, 0, 0), 0);
	assert_int_equal(with_few_addresses((uint64_t)8 << 30, 0, 0), 0);
	assert_int_equal(with_few_addresses((uint64_t)1 << 30, 0, 0), 0);
	assert_int_equal(with_few_addresses((uint64_t)8 << 30, (uint64_t)64 << 30, -ENOMEM), 0);
	assert_int_equal(with_few_addresses((uint64_t)8 << 30, (uint64_t)1 << 30, 0), 0);
	assert_int_equal(with_few_addresses((uint64_t)300 << 20, 0, -ENOMEM), 0);
}

static void test_sizes_and_info(void **state)
{
	struct {
		struct sublet_arena_options o;
		uint64_t newer;
	} longer = { options_of(SUBLET_BACKING_MEMFD), 0 };
	struct sublet_arena_info info = { .size_bytes = 0 };
	struct sublet_arena *a;

	(void)state;
	longer.o.size_bytes = sizeof longer;
	longer.newer = 1;
	assert_int_equal(sublet_arena_create(&longer.o, &a), -E2BIG);
	longer.newer = 0;
	longer.o.area_bytes = 1;
	assert_int_equal(sublet_arena_create(&longer.o, &a), 0);
	assert_int_equal(sublet_arena_info(a, &info), -EINVAL);
	info.size_bytes = sizeof info;
	assert_int_equal(sublet_arena_info(a, &info), 0);
	assert_int_equal(info.area_bytes, 2 << 20);
	assert_int_equal(info.backing, SUBLET_BACKING_MEMFD);
	assert_true(info.technique != SUBLET_TECHNIQUE_AUTO && info.linear && info.fd >= 0 &&
		    info.workers > 0);
	assert_non_null(sublet_arena_mm(a));
	uint64_t ns = 0;
	assert_int_equal(sublet__linux_memcpy_ns(a, 0, &ns), -EINVAL);
	assert_int_equal(sublet__linux_memcpy_ns(a, 1 << 20, &ns), 0);
	assert_true(ns > 1000);
	assert_int_equal(sublet_arena_destroy(a), 0);
}

/* All that an arena opens has the highest numbers, whatever the limit. */
static void test_descriptors_are_high(void **state)
{
	static const struct {
		rlim_t limit;
		uint32_t least;
	} cases[] = {
		{ 100, 50 }, { 256, 192 }, { 1024, 960 }, { 4096, 4032 }, { 4200, 4032 },
	};
	struct rlimit old, limit;
	struct sublet_arena_options o = options_of(SUBLET_BACKING_MEMFD);

	(void)state;
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		struct sublet_arena *a;
		uint32_t ours = 0;

		limit = (struct rlimit){ cases[i].limit, old.rlim_max };
		if (cases[i].limit > old.rlim_max)
			continue;
		assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
		assert_int_equal(sublet__linux_fd_least(), cases[i].least);
		int lowest = dup(0);
		close(lowest);
		assert_int_equal(sublet_arena_create(&o, &a), 0);
		int after = dup(0);
		close(after);
		assert_int_equal(lowest, after);
		for (uint32_t fd = cases[i].least; fd < cases[i].limit; fd++)
			ours += fcntl((int)fd, F_GETFD) >= 0;
		assert_true(ours >= 3);
		assert_int_equal(sublet_arena_destroy(a), 0);
	}
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
}

static void test_nothing_is_left(void **state)
{
	struct sublet_arena_options o = options_of(SUBLET_BACKING_AUTO);
	int before = dup(0), after;

	(void)state;
	close(before);
	o.workers = 4;
	for (int i = 0; i < 10; i++) {
		struct sublet_arena *a;
		assert_int_equal(sublet_arena_create(&o, &a), 0);
		assert_int_equal(sublet_arena_destroy(a), 0);
	}
	after = dup(0);
	close(after);
	assert_int_equal(before, after);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_few_addresses),
		cmocka_unit_test(test_sizes_and_info),
		cmocka_unit_test(test_descriptors_are_high),
		cmocka_unit_test(test_nothing_is_left),
		cmocka_unit_test(test_forks),
		cmocka_unit_test(test_chaos),
		cmocka_unit_test(test_cancellation),
		cmocka_unit_test(test_handler_of_a_claimer),
		cmocka_unit_test(test_fork_without_descriptors),
		cmocka_unit_test(test_calls_in_a_child),
		cmocka_unit_test(test_fork_again),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
