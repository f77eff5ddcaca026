/* SPDX-License-Identifier: MIT */
/*
 * linux/platform.c: clock, futex, threads and frames for the engine.
 *
 * Nothing here allocates after start: the program's heap may be the very memory that is being
 * moved, and a mover that waits for lent memory waits for itself. For the same reason thread-local
 * data is initial-exec (the dynamic model calls malloc at first use), waiting is bare futexes, and
 * the workers block every signal, so that no handler of the program ever runs on them.
 *
 * The pool is fixed and has one job at a time. A second caller while it is busy runs alone, which
 * is never wrong: the functions given to parallel() share out their work by counters. By default half
 * of the CPUs take part, and of the others those that are idle at that moment, 8 in all at most. No
 * more: a worker that is preempted while it has a run blocked keeps the program waiting for
 * milliseconds (measured: 3 ms instead of 0.1 at p99 with two workers and a writer on two CPUs), while
 * two workers on two idle CPUs make a claim a third shorter.
 */
#include "linux/platform.h"

#include "linux/copy.h"
#include "linux/helper.h"
#include "linux/linux.h"
#include "linux/memcheck.h"
#include "linux/proc.h"
#include "linux/raw.h"

#include <errno.h>
#include <sched.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define WORKERS_DEFAULT_MAX 8u
#define NS_PER_S            1000000000ull
#define LOOK_AGAIN_NS       50000u /* after which a worker looks for an idle CPU again, at first */
#define LOOK_AGAIN_MAX_NS   400000u

/* ---- operations ---- */

static uint64_t op_now_ns(void *ctx)
{
	(void)ctx;
	return sublet__now_ns();
}

static uint64_t op_coarse_ns(void *ctx)
{
	struct timespec t;

	(void)ctx;
	clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
	return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

static void op_sleep_ns(void *ctx, uint64_t ns)
{
	(void)ctx;
	sublet__raw_sleep_ns(ns);
	sublet__helper_check();
}

static void op_park(void *ctx, const void *word, uint32_t expected, uint64_t timeout_ns)
{
	(void)ctx;
	sublet__futex_wait(word, expected, timeout_ns);
}

static void op_unpark(void *ctx, const void *word, uint32_t count)
{
	(void)ctx;
	sublet__futex_wake(word, count);
}

static uint32_t op_thread_slot(void *ctx)
{
	static sublet__a32 next;
	static __thread uint32_t slot __attribute__((tls_model("initial-exec"))); /* 0: none yet */

	(void)ctx;
	if (!slot)
		slot = a32_add_relaxed(&next, 1) + 1;
	return slot - 1;
}

/* ---- memory ---- */

static void *op_reserve(void *ctx, size_t bytes)
{
	void *p =
		mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	(void)ctx;
	if (p == MAP_FAILED)
		return NULL;
	/* Tables are sparse: a huge page on first touch would commit 512 times what is used. */
	(void)madvise(p, bytes, MADV_NOHUGEPAGE);
	/* A debugger's core would hold them as a whole, untouched pages included. */
	(void)madvise(p, bytes, MADV_DONTDUMP);
	return p;
}

static void op_unreserve(void *ctx, void *memory, size_t bytes)
{
	(void)ctx;
	munmap(memory, bytes);
}

static void op_copy(void *ctx, uint32_t dst_pfn, uint32_t src_pfn, uint32_t frames)
{
	const struct sublet__linux_platform *p = ctx;

	if (!p->linear)
		return;
	SUBLET__UNCHECKED_BEGIN();
	sublet__copy(p->linear + ((size_t)dst_pfn << p->frame_shift),
		     p->linear + ((size_t)src_pfn << p->frame_shift), (size_t)frames << p->frame_shift);
	SUBLET__UNCHECKED_END();
}

static void op_zero(void *ctx, uint32_t pfn, uint32_t frames, bool warm)
{
	const struct sublet__linux_platform *p = ctx;

	if (!p->linear)
		return;
	SUBLET__UNCHECKED_BEGIN();
	(warm ? sublet__zero_warm : sublet__zero)(p->linear + ((size_t)pfn << p->frame_shift),
						  (size_t)frames << p->frame_shift);
	SUBLET__UNCHECKED_END();
}

static void op_handed(void *ctx, uint32_t pfn, uint32_t frames, enum sublet__handed how)
{
	const struct sublet__linux_platform *p = ctx;
	size_t bytes = (size_t)frames << p->frame_shift;

	if (!p->linear)
		return;
	void *addr = p->linear + ((size_t)pfn << p->frame_shift);
	if (how == SUBLET__HANDED_BACK)
		SUBLET__NO_ACCESS(addr, bytes);
	else if (how == SUBLET__HANDED_STALE)
		SUBLET__UNDEFINED(addr, bytes);
	else
		SUBLET__DEFINED(addr, bytes);
}

/* ---- threads ---- */

/* Threads of the whole system that run or want to, the calling one among them; UINT32_MAX: not to be known. */
static uint32_t running_now(const struct sublet__linux_platform *p)
{
	char text[128];
	long n = p->load_fd >= 0 ? sublet__raw_pread(p->load_fd, text, sizeof text - 1, 0) : -1;
	uint32_t running = 0, spaces = 0, at = 0;

	/* "0.20 0.18 0.12 1/80 11206": the fourth number */
	while (at < n && spaces < 3)
		spaces += text[at++] == ' ';
	for (; at < n && text[at] >= '0' && text[at] <= '9'; at++)
		running = running * 10 + (uint32_t)(text[at] - '0');
	return running ? running : UINT32_MAX;
}

/* Counts the calling worker in, unless everybody who was in has left: then the job is over. */
static bool job_join(struct sublet__linux_platform *p)
{
	uint32_t running = a32_load_relaxed(&p->running);

	while (running)
		/* Pairs with the store in op_parallel: who is in sees fn and arg. */
		if (a32_cas_acq_rel(&p->running, &running, running + 1))
			return true;
	return false;
}

static void job_leave(struct sublet__linux_platform *p)
{
	if (a32_sub_acq_rel(&p->running, 1) == 1)
		sublet__futex_wake(&p->running, 1);
}

static void job_take_part(struct sublet__linux_platform *p, uint32_t index)
{
	if (!job_join(p))
		return;
	p->fn(p->arg, index);
	job_leave(p);
}

/*
 * Takes part in the job as soon as the worker may. One beyond at_least looks for an idle CPU again and again, more
 * and more seldom: whoever asked for the claim is often about to sleep, and still counts as running at its start.
 */
static void job_help(struct sublet__linux_platform *p, uint32_t job, uint32_t index)
{
	uint64_t wait_ns = LOOK_AGAIN_NS;

	while (a32_load_acquire(&p->job) == job && a32_load_relaxed(&p->running)) {
		if (index < p->at_least || running_now(p) <= p->cpus) {
			job_take_part(p, index);
			return;
		}
		sublet__futex_wait(&p->job, job, wait_ns);
		wait_ns = wait_ns < LOOK_AGAIN_MAX_NS ? wait_ns * 2 : wait_ns;
	}
}

static void *worker_main(void *arg)
{
	struct sublet__worker *w = arg;
	struct sublet__linux_platform *p = w->platform;
	uint32_t seen = 0;

	/* Pairs with the stores of job in op_parallel and _stop. */
	while (!a32_load_acquire(&p->stop)) {
		uint32_t job = a32_load_acquire(&p->job);
		if (job == seen) {
			sublet__futex_wait(&p->job, job, UINT64_MAX);
			continue;
		}
		seen = job;
		if (w->index < (job & 0xff))
			job_help(p, job, w->index);
	}
	return NULL;
}

/*
 * Keeps a worker off the caller's CPU for the length of a job. Each time one of the two wakes the other, as it does
 * when both change the same address space, the scheduler likes to put them on one CPU, and takes milliseconds to part
 * them while another is idle: as long as the claim. Said while the worker sleeps, so that it wakes up elsewhere at once;
 * said by itself, it would have to run on the caller's CPU first (measured: up to 4 ms late).
 *
 * The caller, who owns the workers, gives back the CPUs that it had before. So another mask from outside (taskset) is lost
 * during a job; and as the kernel takes that for a mask somebody chose, CPUs that the cpuset gains later are not the worker's.
 */
static void worker_keep_off(struct sublet__worker *w, uint32_t cpu)
{
	cpu_set_t others;

	w->is_kept_off = false;
	pid_t tid = (pid_t)a32_load_relaxed(&w->thread.tid); /* 0: it has ended */
	if (cpu >= CPU_SETSIZE || !tid || sched_getaffinity(tid, sizeof w->cpus, &w->cpus))
		return;
	others = w->cpus;
	CPU_CLR(cpu, &others);
	w->is_kept_off = CPU_COUNT(&others) && CPU_ISSET(cpu, &w->cpus) &&
			 !sched_setaffinity(tid, sizeof others, &others);
}

static void worker_let_go(struct sublet__worker *w)
{
	if (w->is_kept_off)
		(void)sched_setaffinity((pid_t)a32_load_relaxed(&w->thread.tid), sizeof w->cpus, &w->cpus);
}

/* Not sched_getcpu: libc reads it from an area that the kernel fills for threads of libc only. */
static uint32_t cpu_now(void)
{
	uint32_t cpu;

	return syscall(SYS_getcpu, &cpu, NULL, NULL) ? UINT32_MAX : cpu;
}

static void op_parallel(void *ctx, uint32_t threads, void (*fn)(void *arg, uint32_t worker), void *arg)
{
	struct sublet__linux_platform *p = ctx;
	uint32_t idle = 0, left, cpu = cpu_now();

	if (threads > p->workers)
		threads = p->workers;
	if (threads <= 1 || !a32_cas_acq_rel(&p->busy, &idle, 1)) {
		fn(arg, 0);
		return;
	}
	p->fn = fn;
	p->arg = arg;
	for (uint32_t i = 1; i < threads; i++)
		worker_keep_off(&p->worker[i], cpu);
	/* Pairs with job_join: who counts itself in sees fn and arg, which do not change until all are out. */
	a32_store_release(&p->running, 1);
	a32_store_release(&p->job, ((a32_load_relaxed(&p->job) >> 8) + 1) << 8 | threads);
	sublet__futex_wake(&p->job, UINT32_MAX);
	fn(arg, 0);
	job_leave(p);
	while ((left = a32_load_acquire(&p->running)))
		sublet__futex_wait(&p->running, left, UINT64_MAX);
	for (uint32_t i = 1; i < threads; i++)
		worker_let_go(&p->worker[i]);
	a32_store_release(&p->busy, 0);
}

const struct sublet__platform_ops sublet__linux_platform_ops = {
	.now_ns = op_now_ns,
	.coarse_ns = op_coarse_ns,
	.sleep_ns = op_sleep_ns,
	.park = op_park,
	.unpark = op_unpark,
	.thread_slot = op_thread_slot,
	.reserve = op_reserve,
	.unreserve = op_unreserve,
	.copy = op_copy,
	.zero = op_zero,
	.handed = op_handed,
	.parallel = op_parallel,
};

int sublet__linux_platform_start(struct sublet__linux_platform *p, uint8_t *linear, uint32_t frame_shift,
				 uint32_t workers)
{
	uint32_t cpus = sublet__cpu_count(), half = cpus / 2;

	*p = (struct sublet__linux_platform){ .linear = linear,
					      .frame_shift = frame_shift,
					      .workers = 1,
					      .at_least = UINT32_MAX,
					      .cpus = cpus,
					      .load_fd = -1 };
	if (!workers) {
		workers = cpus < WORKERS_DEFAULT_MAX ? cpus : WORKERS_DEFAULT_MAX;
		p->at_least = half < workers ? half : workers;
		p->load_fd = sublet__linux_fd_high(sublet__raw_open(AT_FDCWD, "/proc/loadavg", O_RDONLY));
	}
	sublet__copy_choose();
	for (uint32_t i = 1; i < workers && i < SUBLET__WORKERS_MAX; i++) {
		struct sublet__worker *w = &p->worker[i];
		w->platform = p;
		w->index = i;
		int err = sublet__linux_thread_start(&w->thread, "sublet-worker", worker_main, w);
		if (err) {
			sublet__linux_platform_stop(p);
			return err;
		}
		p->workers = i + 1;
	}
	return 0;
}

void sublet__linux_platform_fork_child(struct sublet__linux_platform *p)
{
	p->workers = 1;
	p->linear = NULL;
	sublet__fd_drop(p->load_fd);
	p->load_fd = -1;
}

void sublet__linux_platform_stop(struct sublet__linux_platform *p)
{
	a32_store_release(&p->stop, 1);
	a32_store_release(&p->job, ((a32_load_relaxed(&p->job) >> 8) + 1) << 8);
	sublet__futex_wake(&p->job, UINT32_MAX);
	for (uint32_t i = 1; i < p->workers; i++)
		sublet__linux_thread_join(&p->worker[i].thread);
	p->workers = 1;
	sublet__fd_drop(p->load_fd);
	p->load_fd = -1;
}
