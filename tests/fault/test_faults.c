/* SPDX-License-Identifier: MIT */
/*
 * The n-th platform call fails, for n = 1, 2, 3 ... until a run meets no fault: over every public call, on the real
 * platform (G5). Once with a failure that passes, once with one that stays for as long as the call lasts; and where memory
 * is mapped over other memory, once with one that takes the other away.
 *
 * Each run is a process of its own, so that one that ends, hangs or leaks says so without harm to the next. What it
 * checks is in world.h. Some failures cannot be undone without losing bytes; then the process has to end, with a
 * message: the list is below, and only a failure that stays may lead there.
 *
 *   test_faults [SCENARIO [N [once|for_good|lost [WAY]]]]   one scenario, one n: in this process, for a debugger
 *   test_faults --memory | --rest    half of them: those of memory on pages of 4 KiB and of THP; all others
 */
#include "scenarios.h"

#include <errno.h>
#include <ftw.h>
#include <malloc.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CALLS_MAX 1000u
#define STRIDE    13u /* where other threads call too: there are many, and their number is never the same */
#ifdef SANITIZED
#define STEP 2u /* every other call, from the first or from the second on: a run takes twice as long */
#else
#define STEP 1u
#endif
#define ALL_CALLS_LEAST 12u
#define ALL_CALLS_MOST  120u
#define HANG_SECONDS    15u
#define MESSAGE_BYTES   2048u

static const struct way ways[] = {
	{ "memfd, zap", SUBLET_BACKING_MEMFD, SUBLET_TECHNIQUE_ZAP },
	{ "memfd, write-protect", SUBLET_BACKING_MEMFD, SUBLET_TECHNIQUE_WRITEPROTECT },
	{ "thp, pre-copy", SUBLET_BACKING_THP, SUBLET_TECHNIQUE_PRECOPY },
	{ "hugetlb, zap", SUBLET_BACKING_HUGETLB, SUBLET_TECHNIQUE_ZAP },
};
#define WAYS       (sizeof ways / sizeof *ways)
#define HUGE_PAGES 16u /* area and normal zone, and what a fork copies */
#define HUGE_PATH  "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"

/* Where the engine gives up: nothing else is left that keeps the bytes. */
static const char *const last_words[] = {
	"the kernel took memory away and refuses to map it again; stopping before data is lost",
	"cannot take back half a mapping; stopping before others see its memory",
	"cannot let go of a blocked range; stopping before threads hang",
	"the kernel refuses to map memory back where it was; stopping before data is lost",
	"cannot take back half a move; stopping before data is lost",
	"cannot keep memory apart from a child; stopping before data is lost",
	"cannot undo half a fork; stopping before data is lost",
	"fork() cannot keep lent memory apart from a child: no memory or no kernel mapping is left",
};

/* How a call fails. */
enum mode {
	ONCE,
	FOR_GOOD, /* it and all that follow */
	LOST,     /* once, and what it was to map over is gone as well, as before Linux 6.12 */
	MODES,
};
static const char *const mode_names[] = { "once", "for_good", "lost" };

static uint32_t runs, faults, aborts, skips;

/* ---- pages for hugetlb ---- */

static long huge_before = -1;

static long huge_pages(void)
{
	FILE *file = fopen(HUGE_PATH, "re");
	long count = -1;

	if (file && fscanf(file, "%ld", &count) != 1)
		count = -1;
	if (file)
		fclose(file);
	return count;
}

static bool huge_pages_set(long count)
{
	FILE *file = fopen(HUGE_PATH, "we");
	bool is_written = file && fprintf(file, "%ld", count) > 0;

	return file && !fclose(file) && is_written;
}

static void huge_pages_restore(void)
{
	if (!huge_pages_set(huge_before))
		printf("cannot give the huge pages back: %ld there were\n", huge_before);
}

static void on_signal(int signal)
{
	(void)signal;
	exit(1); /* the parent waits for a child: nothing of libc is under way but that */
}

/* Where it may not be done, or there is no memory for it, the runs on hugetlb skip themselves. */
static void huge_pages_reserve(void)
{
	huge_before = huge_pages();
	if (huge_before < 0 || !huge_pages_set(huge_before + (long)HUGE_PAGES)) {
		printf("no huge pages may be reserved here: nothing runs on hugetlb\n");
		return;
	}
	atexit(huge_pages_restore); /* a child ends by _exit or a signal */
	signal(SIGTERM, on_signal);
	signal(SIGINT, on_signal);
}

/* ---- one run ---- */

static void leak_check(const struct holdings *before, bool has_lost_device)
{
	struct holdings now = holdings_now();

	/* A thread that was joined may be on its way out still. */
	for (int i = 0; i < 200 && now.threads > before->threads; i++) {
		usleep(1000);
		now = holdings_now();
	}
#ifdef SANITIZED
	now.mappings = before->mappings, now.vm_kib = before->vm_kib; /* its own, most of them */
#endif
	if (has_lost_device && now.mappings > before->mappings)
		now.mappings = before->mappings, now.vm_kib = before->vm_kib; /* its tables live on */
	/* And its ring, with an eventfd, where the kernel did not end its jobs in time. */
	if (has_lost_device && now.fds == before->fds + 2)
		now.fds = before->fds;
	if (now.fds != before->fds || now.threads != before->threads || now.mappings != before->mappings ||
	    now.vm_kib != before->vm_kib)
		wrong("left behind: %d descriptors, %d threads, %d mappings, %lld KiB",
		      (int)(now.fds - before->fds), (int)(now.threads - before->threads),
		      (int)(now.mappings - before->mappings), (long long)(now.vm_kib - before->vm_kib));
}

/* Whether it may be that not all is as before, though the call failed. */
static bool may_keep(const struct scenario *s, enum mode mode)
{
	return (s->flags & MAY_HOLD) || (mode == FOR_GOOD && (s->flags & (MAY_KEEP | MAY_DIE)));
}

/* With n 0 nothing fails. */
static bool run(const struct scenario *s, const struct way *way, uint64_t n, enum mode mode)
{
	const bool has_world = !(s->flags & NO_WORLD);
	struct world w = { .fd = -1 };

	if (has_world)
		world_open(&w, way);
	if (s->before)
		s->before(&w);
	if (has_world)
		world_mark(&w);
	/* On a kernel that loses memory for a moment a thread that writes there just then is lost: nothing of ours. */
	if (s->flags & EACH_WAY && mode != LOST)
		writer_start(&w);
	inject_lose(mode == LOST);
	inject_arm(s->flags & ALL_CALLS ? INJECT_PROCESS : INJECT_THREAD, n, mode == FOR_GOOD);
	int err = s->call(&w);
	bool faulted = inject_disarm();
	inject_lose(false);

	if (err && !faulted) {
		if (!n)
			_exit(CHILD_SKIPPED); /* this machine has none of it */
		wrong("failed without a fault: %s", strerror(-err));
	}
	if (!err && faulted && mode != LOST && !(s->flags & MAY_SUCCEED))
		wrong("succeeded without what it asked for");
	if (has_world)
		world_check(&w, err && !may_keep(s, mode), s->flags & (MAY_HOLD | RESTORES));
	if (!err && s->after)
		s->after(&w);
	if (s->finish)
		s->finish(&w);
	if (has_world) {
		if (!err || !may_keep(s, mode) || (s->flags & MAY_KEEP))
			world_use(&w);
		world_close(&w);
	}
	return faulted;
}

static _Noreturn void child_main(const struct scenario *s, const struct way *way, uint64_t n, enum mode mode)
{
	struct rlimit no_core = { 0, 0 };
	struct holdings before = holdings_now();

	signal(SIGTERM, SIG_DFL);
	signal(SIGINT, SIG_DFL);
	(void)setrlimit(RLIMIT_CORE, &no_core);
	alarm(HANG_SECONDS);
	bool faulted = run(s, way, n, mode);
	leak_check(&before, mode == FOR_GOOD && s->flags & MAY_DIE);
	if (faulted)
		fprintf(stderr, "%s", inject_what());
	_exit(faulted ? CHILD_FAULTED : CHILD_CLEAN);
}

/* ---- and many ---- */

static bool is_last_word(const char *text)
{
	for (size_t i = 0; i < sizeof last_words / sizeof *last_words; i++)
		if (strstr(text, last_words[i]))
			return true;
	return false;
}

/* WRONG was said. */
enum answer { CLEAN, FAULTED, SKIPPED, WRONG };

static enum answer fail(const struct scenario *s, const struct way *way, uint64_t n, enum mode mode,
			const char *what)
{
	printf("FAIL %s (%s), call %llu fails %s: %s\n", s->name, way->name, (unsigned long long)n,
	       mode_names[mode], what);
	return WRONG;
}

static enum answer run_apart(const struct scenario *s, const struct way *way, uint64_t n, enum mode mode)
{
	char text[MESSAGE_BYTES] = "";
	size_t have = 0;
	int fds[2], status;

	if (pipe(fds))
		abort();
	fflush(stdout);
	pid_t pid = fork();
	if (!pid) {
		dup2(fds[1], 2);
		close(fds[0]);
		close(fds[1]);
		child_main(s, way, n, mode);
	}
	close(fds[1]);
	for (ssize_t got;
	     have + 1 < sizeof text && (got = read(fds[0], text + have, sizeof text - 1 - have)) > 0;)
		have += (size_t)got;
	close(fds[0]);
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		abort();
	runs++;
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT) {
		if (mode != FOR_GOOD || !(s->flags & MAY_ABORT) || !is_last_word(text))
			return fail(s, way, n, mode, text[0] ? text : "aborted without a word");
		aborts++;
		faults++;
		return FAULTED;
	}
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM)
		return fail(s, way, n, mode, "hangs (G7)");
	if (WIFEXITED(status) && WEXITSTATUS(status) == CHILD_SKIPPED) {
		skips++;
		return SKIPPED;
	}
	if (!WIFEXITED(status) ||
	    (WEXITSTATUS(status) != CHILD_CLEAN && WEXITSTATUS(status) != CHILD_FAULTED)) {
		char what[MESSAGE_BYTES + 64];
		snprintf(what, sizeof what, "status %#x: %s", (unsigned int)status, text);
		return fail(s, way, n, mode, what);
	}
	faults += WEXITSTATUS(status) == CHILD_FAULTED;
	return WEXITSTATUS(status) == CHILD_FAULTED ? FAULTED : CLEAN;
}

static int loop(const struct scenario *s, const struct way *way)
{
	uint64_t calls[MODES] = { 0 };
	struct timespec t0, t1;
	enum answer answer;
	int bad = 0;

	clock_gettime(CLOCK_MONOTONIC, &t0);
	answer = run_apart(s, way, 0, ONCE);
	if (answer == SKIPPED)
		printf("%-32s %-22s skipped\n", s->name, way->name);
	for (enum mode mode = ONCE; answer == CLEAN && mode < MODES; mode++) {
		bool is_all = s->flags & ALL_CALLS;
		uint64_t least = is_all ? ALL_CALLS_LEAST : 0, most = is_all ? ALL_CALLS_MOST : CALLS_MAX;
		/* A device that dies takes seconds to do so. */
		uint64_t step = mode == FOR_GOOD && s->flags & MAY_DIE ? 3 : STEP;
		if (mode == LOST && !(s->flags & MAY_LOSE))
			continue;
		for (uint64_t n = 1 + (uint64_t)getpid() % STEP; n < most && bad <= 3;
		     n += !is_all || n < least ? step : STRIDE) {
			enum answer now = run_apart(s, way, n, mode);
			bad += now == WRONG;
			if (now == CLEAN && n >= least)
				break;
			calls[mode] = n;
		}
	}
	if (answer != CLEAN)
		return answer == WRONG;
	clock_gettime(CLOCK_MONOTONIC, &t1);
	printf("%-32s %-22s %4llu calls fail once, %4llu for good, %4llu lose, %4.1f s\n", s->name, way->name,
	       (unsigned long long)calls[ONCE], (unsigned long long)calls[FOR_GOOD],
	       (unsigned long long)calls[LOST],
	       (double)(t1.tv_sec - t0.tv_sec) + (double)(t1.tv_nsec - t0.tv_nsec) / 1e9);
	return bad;
}

static const struct scenario *const all[] = { memory_scenarios, device_scenarios, control_scenarios };

static bool is_wanted(size_t group, const struct scenario *s, const struct way *way, const char *only)
{
	bool is_memory = all[group] == memory_scenarios && way->backing != SUBLET_BACKING_HUGETLB;

	if (only && !strcmp(only, "--memory"))
		return is_memory;
	if (only && !strcmp(only, "--rest"))
		return !is_memory;
	return !only || strstr(s->name, only);
}

static int loop_each(size_t group, const char *only)
{
	int bad = 0;

	for (const struct scenario *s = all[group]; s->name; s++)
		for (size_t i = 0; i < (s->flags & EACH_WAY ? WAYS : 1); i++)
			if (is_wanted(group, s, &ways[i], only))
				bad += loop(s, &ways[i]);
	return bad;
}

static void *nothing(void *arg)
{
	return arg;
}

/* What libc makes once and keeps, stacks of threads mostly: inherited by each run, so that none of it looks like a leak. */
static void warm_up(void)
{
	pthread_t thread;

	mallopt(M_ARENA_MAX, 1); /* else each new thread may map a heap of its own */
	for (const struct scenario *s = memory_scenarios; s->name; s++)
		if (s->flags & WARMS_UP)
			(void)run(s, &ways[0], 0, ONCE);
	if (pthread_create(&thread, NULL, nothing, NULL) || pthread_join(thread, NULL))
		abort();
}

static int one(char **argv, int argc)
{
	for (size_t k = 0; k < sizeof all / sizeof *all; k++)
		for (const struct scenario *s = all[k]; s->name; s++) {
			const struct way *way = &ways[argc > 4 ? atoi(argv[4]) : 0];
			if (strcmp(s->name, argv[1]))
				continue;
			enum mode mode = ONCE;
			while (argc > 3 && mode + 1 < MODES && strcmp(argv[3], mode_names[mode]) != 0)
				mode++;
			bool faulted = run(s, way, strtoull(argv[2], NULL, 10), mode);
			printf("%s\n", faulted ? inject_what() : "no fault");
			return 0;
		}
	return 1;
}

static char folder[] = "/tmp/sublet-fault-XXXXXX"; /* of control sockets */

static int entry_remove(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st;
	(void)type;
	(void)ftw;
	return remove(path);
}

/* With the socket of a run that ended with its last words. */
static void folder_remove(void)
{
	nftw(folder, entry_remove, 4, FTW_DEPTH | FTW_PHYS);
}

int main(int argc, char **argv)
{
	struct timespec t0, t1;
	int bad = 0;

	if (!mkdtemp(folder) || setenv("XDG_RUNTIME_DIR", folder, 1))
		return 1;
	atexit(folder_remove);
	clock_gettime(CLOCK_MONOTONIC, &t0);
	if (argc > 2)
		return one(argv, argc);
	if (argc < 2 || strcmp(argv[1], "--memory") != 0)
		huge_pages_reserve();
	warm_up();
	for (size_t k = 0; k < sizeof all / sizeof *all; k++)
		bad += loop_each(k, argc > 1 ? argv[1] : NULL);
	clock_gettime(CLOCK_MONOTONIC, &t1);
	printf("%u runs, %u with a fault, %u of them ended with their last words, %u skipped, %ld s\n", runs,
	       faults, aborts, skips, (long)(t1.tv_sec - t0.tv_sec));
	return bad ? 1 : 0;
}
