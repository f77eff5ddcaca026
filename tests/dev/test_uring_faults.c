/* SPDX-License-Identifier: MIT */
/*
 * dev/uring.c when things go wrong (G5, G7, G11): files that do not answer, or answer in part, or fail; threads that come
 * and go; signals.
 */
#include "slow_file.h"
#include "uring_fixture.h"

#include "core/arena.h"

#include <sublet/notifier.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

#define RESET_NS (2 * SUBLET_SEC) /* as in uring.c */
#define SLACK_NS (1500 * SUBLET_MS)

static bool may_mount;
static _Atomic uint32_t completed; /* jobs that the backend reported */

void __real_sublet_device_complete(struct sublet_device *device, uint64_t id, int status, uint64_t result);
void __wrap_sublet_device_complete(struct sublet_device *device, uint64_t id, int status, uint64_t result);

void __wrap_sublet_device_complete(struct sublet_device *device, uint64_t id, int status, uint64_t result)
{
	completed++;
	__real_sublet_device_complete(device, id, status, result);
}

/* A world whose file is slow. */
static void slow_open(struct world *w)
{
	if (!may_mount) {
		print_message("no slow file without the right to mount one\n");
		skip();
	}
	world_open(w, 0);
	close(w->fd);
	w->fd = slow_file_open();
	assert_true(w->fd >= 0);
}

static void held_wait(uint32_t count)
{
	uint64_t until = now_ns() + 10 * SUBLET_SEC;

	while (slow_file_held() < count)
		if (now_ns() > until)
			fail_msg("%u requests are held, not %u", slow_file_held(), count);
		else
			usleep(1000);
}

/* ---- files that answer in part, or not well ---- */

static void answers_cut_short(void **unused)
{
	const uint64_t bytes = 7 * SUBLET_MIB + 333;
	uint64_t result;
	struct world w;
	(void)unused;

	slow_open(&w);
	slow_file_halve(true);
	for (enum way way = CLAIMED; way < WAYS; way++) {
		struct buffer b;
		buffer_open(&w, way, 8 * SUBLET_MIB, 0, &b);
		words_fill(b.memory, bytes, 0, way);
		struct sublet_job job = job_of(&w, SUBLET_JOB_WRITE, bytes, SUBLET_MIB + 7);
		assert_int_equal(job_do(&w, &job, &b.bo, &result), 0);
		assert_int_equal(result, bytes);
		words_check(slow_file_bytes() + SUBLET_MIB + 7, bytes, 0, way);
		memset(b.memory, 0, bytes);
		job.op = SUBLET_JOB_READ;
		assert_int_equal(job_do(&w, &job, &b.bo, &result), 0);
		/* A file system that gives less than there is looks like the end of the file only where it gives nothing. */
		assert_int_equal(result, bytes);
		words_check(b.memory, bytes, 0, way);
		buffer_close(&w, &b);
	}
	world_close(&w);
}

/* One request of a job fails: so does the job, with that error, and only that job; and one that was interrupted goes on. */
static void answers_with_errors(void **unused)
{
	const uint64_t bytes = 6 * SUBLET_MIB;
	struct buffer b[2];
	struct world w;
	uint64_t result;
	(void)unused;

	slow_open(&w);
	for (uint32_t i = 0; i < 2; i++)
		buffer_open(&w, CLAIMED, bytes, 0, &b[i]);
	static const int errors[] = { -EIO, -ENOSPC, -EINTR, -EREMOTEIO };
	for (uint32_t i = 0; i < sizeof errors / sizeof *errors; i++) {
		struct sublet_fence fence[2];
		words_fill(b[1].memory, bytes, 0, i);
		slow_file_fail((uint64_t)(3 * SUBLET_MIB) + 5, errors[i]);
		struct sublet_job job = job_of(&w, SUBLET_JOB_WRITE, bytes, 0);
		assert_int_equal(sublet_submit(w.device, &job, &b[0].bo, 1, &fence[0]), 0);
		job.file_offset_bytes = bytes;
		assert_int_equal(sublet_submit(w.device, &job, &b[1].bo, 1, &fence[1]), 0);
		assert_int_equal(fence_end(&fence[0], &result), errors[i] == -EINTR ? 0 : errors[i]);
		assert_int_equal(result, errors[i] == -EINTR ? bytes : 0);
		assert_int_equal(fence_end(&fence[1], &result), 0);
		assert_int_equal(result, bytes);
		words_check(slow_file_bytes() + bytes, bytes, 0, i);
	}
	for (uint32_t i = 0; i < 2; i++)
		buffer_close(&w, &b[i]);
	world_close(&w);
}

/* ---- files that do not answer ---- */

struct later {
	pthread_t thread;
	uint64_t after_ns;
};

static void *later_main(void *arg)
{
	struct later *later = arg;

	usleep((useconds_t)(later->after_ns / 1000));
	slow_file_go();
	return NULL;
}

/* Requests that end while reset waits: the job failed, all others with it, and the device works again. */
static void reset_waits(void **unused)
{
	enum { JOBS = 40 };
	struct sublet_fence fence[JOBS];
	struct buffer b[4];
	struct world w;
	(void)unused;

	slow_open(&w);
	for (uint32_t i = 0; i < 4; i++)
		buffer_open(&w, i % 2 ? TRACKED : CLAIMED, 8 * SUBLET_MIB, 0, &b[i]);
	slow_file_hold();
	for (uint32_t i = 0; i < JOBS; i++) {
		struct sublet_job job = job_of(&w, SUBLET_JOB_READ, 8 * SUBLET_MIB, 0);
		job.timeout_ns = i + 1 < JOBS ? 60 * SUBLET_SEC : 300 * SUBLET_MS;
		assert_int_equal(sublet_submit(w.device, &job, &b[i % 4].bo, 1, &fence[i]), 0);
	}
	held_wait(8);
	struct later later = { .after_ns = SUBLET_SEC };
	assert_int_equal(pthread_create(&later.thread, NULL, later_main, &later), 0);
	uint64_t start = now_ns();
	assert_int_equal(fence_end(&fence[JOBS - 1], NULL), -ETIMEDOUT); /* not one request of it was made */
	for (uint32_t i = 0; i + 1 < JOBS; i++) {
		int err = fence_end(&fence[i], NULL);
		assert_true(err == -EIO || err == 0); /* 0: it was done meanwhile */
	}
	assert_true(now_ns() - start < 300 * SUBLET_MS + RESET_NS + SLACK_NS);
	pthread_join(later.thread, NULL);
	uint32_t reported = completed;
	usleep(100000);
	/* what was in flight before the reset is not reported after it */
	assert_int_equal(completed, reported);
	assert_int_equal(info_of(w.device).resets, 1);
	assert_int_equal(info_of(w.device).dead, 0);
	world_works(&w);
	for (uint32_t i = 0; i < 4; i++)
		buffer_close(&w, &b[i]);
	world_close(&w);
}

/*
 * Requests that do not end: after a bounded time the device is dead, and says so. Which memory they may still write to is
 * known: each job is reported once, when the last of its requests has ended.
 */
static void reset_gives_up(void **unused)
{
	enum { JOBS = 9 }; /* more than can be in flight */
	struct sublet_fence fence[JOBS];
	struct buffer b;
	struct world w;
	(void)unused;

	slow_open(&w);
	buffer_open(&w, CLAIMED, 8 * SUBLET_MIB, 0, &b);
	slow_file_hold();
	struct sublet_job job = job_of(&w, SUBLET_JOB_READ, 8 * SUBLET_MIB, 0);
	job.timeout_ns = 200 * SUBLET_MS;
	for (uint32_t i = 0; i < JOBS; i++)
		assert_int_equal(sublet_submit(w.device, &job, &b.bo, 1, &fence[i]), 0);
	held_wait(8);
	uint32_t reported = completed;
	uint64_t start = now_ns();
	for (uint32_t i = 0; i < JOBS; i++) {
		int err = fence_end(&fence[i], NULL);
		assert_true(err == -ETIMEDOUT || err == -ENODEV);
	}
	assert_true(now_ns() - start < 200 * SUBLET_MS + RESET_NS + SLACK_NS);
	assert_int_equal(info_of(w.device).dead, 1);
	assert_int_equal(sublet_submit(w.device, &job, &b.bo, 1, &fence[0]), -ENODEV);
	held_wait(8);
	for (uint32_t i = 0; i < 100 && completed == reported; i++)
		usleep(1000);
	assert_true(completed - reported < JOBS); /* those that had not begun */
	slow_file_go();
	uint64_t until = now_ns() + 10 * SUBLET_SEC;
	while (completed - reported < JOBS && now_ns() < until)
		usleep(1000);
	usleep(100000); /* and none twice */
	assert_int_equal(completed - reported, JOBS);
	assert_int_equal(info_of(w.device).dead, 1);
	assert_int_equal(sublet_submit(w.device, &job, &b.bo, 1, &fence[0]), -ENODEV);
	buffer_close(&w, &b);
	world_close(&w);
}

/* A device is closed, and its arena ended, with a request out there for good: bounded, and all is freed when it ends. */
static void close_leaves_it_behind(void **unused)
{
	struct world w;
	(void)unused;

	slow_open(&w);
	world_close(&w);
	uint32_t fds = fds_count();
	for (uint32_t round = 0; round < 2; round++) {
		struct sublet_fence fence;
		struct buffer b;
		world_open(&w, 0);
		buffer_open(&w, round ? TRACKED : CLAIMED, 8 * SUBLET_MIB, 0, &b);
		struct sublet_job job = job_of(&w, SUBLET_JOB_READ, 8 * SUBLET_MIB, 0);
		job.fd = slow_file_open();
		slow_file_hold();
		job.timeout_ns = 100 * SUBLET_MS;
		assert_int_equal(sublet_submit(w.device, &job, &b.bo, 1, &fence), 0);
		uint64_t start = now_ns();
		sublet_device_close(w.device);
		assert_true(now_ns() - start < job.timeout_ns + RESET_NS + SLACK_NS);
		assert_int_equal(sublet_arena_destroy(w.arena), 0);
		close(w.fd);
		assert_true(slow_file_held() > 0);
		assert_true(fds_count() > fds);
		uint32_t reported = completed;
		close(job.fd);
		slow_file_go();
		uint64_t until = now_ns() + 5 * SUBLET_SEC;
		while ((status_kib("VmPin") || fds_count() != fds) && now_ns() < until)
			usleep(1000);
		assert_int_equal(status_kib("VmPin"), 0);
		assert_int_equal(fds_count(), fds);
		assert_int_equal(completed, reported); /* there is nobody to tell */
	}
}

static void close_waits_for_work(void **unused)
{
	struct buffer b;
	struct world w;
	(void)unused;

	slow_open(&w);
	buffer_open(&w, TRACKED, 8 * SUBLET_MIB, 0, &b);
	slow_file_hold();
	struct sublet_job job = job_of(&w, SUBLET_JOB_READ, 8 * SUBLET_MIB, 0);
	memset(slow_file_bytes(), 0x42, 8 * SUBLET_MIB);
	for (uint32_t i = 0; i < 5; i++)
		assert_int_equal(sublet_submit(w.device, &job, &b.bo, 1, NULL), 0);
	held_wait(4);
	struct later later = { .after_ns = 300 * SUBLET_MS };
	assert_int_equal(pthread_create(&later.thread, NULL, later_main, &later), 0);
	sublet_device_close(w.device);
	assert_int_equal(slow_file_held(), 0);
	for (uint64_t i = 0; i < 8 * SUBLET_MIB; i++)
		if (b.memory[i] != 0x42)
			fail_msg("byte %llu", (unsigned long long)i);
	pthread_join(later.thread, NULL);
	w.device = NULL;
	world_close(&w);
}

/* G2, G4: memory that a request uses does not move, and moves again afterwards. */
static void memory_stays_while_used(void **unused)
{
	const uint64_t bytes = 4 * SUBLET_MIB;
	uint64_t state = seed_get("memory_stays_while_used");
	struct sublet_extent before[64], after[64];
	struct sublet_fence fence;
	struct buffer b;
	struct world w;
	(void)unused;

	slow_open(&w);
	buffer_open(&w, TRACKED, bytes, 0, &b);
	for (uint32_t is_range = 0; is_range < 2; is_range++) {
		memset(b.memory, 1, bytes);
		slow_file_hold();
		struct sublet_job job = job_of(&w, SUBLET_JOB_READ, bytes, 0);
		if (is_range)
			assert_int_equal(sublet_submit_range(w.device, &job, w.mm, b.memory, &fence), 0);
		else
			assert_int_equal(sublet_submit(w.device, &job, &b.bo, 1, &fence), 0);
		held_wait(4);
		int count = sublet_mm_extents(w.mm, b.memory, bytes, 0, before, 64);
		assert_true(count > 0);
		for (uint32_t i = 0; i < 200; i++)
			assert_int_equal(sublet__chaos_move(w.arena, w.mm, random_next(&state)), 0);
		assert_int_equal(sublet_mm_extents(w.mm, b.memory, bytes, 0, after, 64), count);
		assert_memory_equal(before, after, (size_t)count * sizeof *before);
		words_fill(slow_file_bytes(), bytes, 0, is_range);
		slow_file_go();
		assert_int_equal(fence_end(&fence, NULL), 0);
		words_check(b.memory, bytes, 0, is_range);
		uint64_t moved = 0, until = now_ns() + 5 * SUBLET_SEC;
		while (!moved && now_ns() < until)
			moved = sublet__chaos_move(w.arena, w.mm, random_next(&state));
		assert_true(moved > 0);
		words_check(b.memory, bytes, 0, is_range);
	}
	buffer_close(&w, &b);
	world_close(&w);
}

/* ---- threads and signals ---- */

struct submitter {
	pthread_t thread;
	struct world *w;
	const struct buffer *b;
	struct sublet_fence fence;
};

static void *submit_and_end(void *arg)
{
	struct submitter *s = arg;
	struct sublet_job job = job_of(s->w, SUBLET_JOB_READ, 4 * SUBLET_MIB, 0);

	must(sublet_submit(s->w->device, &job, &s->b->bo, 1, &s->fence) == 0);
	return NULL;
}

/* A thread ends with its job under way; the kernel cancels what a thread has submitted to io_uring then. */
static void submitter_ends(void **unused)
{
	struct submitter s;
	struct buffer b;
	struct world w;
	(void)unused;

	slow_open(&w);
	words_fill(slow_file_bytes(), 4 * SUBLET_MIB, 0, 8);
	buffer_open(&w, CLAIMED, 4 * SUBLET_MIB, 0, &b);
	for (uint32_t i = 0; i < 8; i++) {
		memset(b.memory, 0, 4 * SUBLET_MIB);
		slow_file_hold();
		s = (struct submitter){ .w = &w, .b = &b };
		assert_int_equal(pthread_create(&s.thread, NULL, submit_and_end, &s), 0);
		pthread_join(s.thread, NULL);
		slow_file_go();
		assert_int_equal(fence_end(&s.fence, NULL), 0);
		words_check(b.memory, 4 * SUBLET_MIB, 0, 8);
	}
	buffer_close(&w, &b);
	world_close(&w);
}

struct worker {
	pthread_t thread;
	struct world *w;
	struct buffer b;
	uint32_t index;
	uint64_t seed;
};

#define WORKERS      8u
#define WORKER_BYTES (2 * SUBLET_MIB)

static void *worker_main(void *arg)
{
	struct worker *k = arg;
	uint64_t base = k->index * WORKER_BYTES, result;

	for (uint32_t round = 0; round < 60; round++) {
		uint64_t length = (1 + random_next(&k->seed) % (WORKER_BYTES / 4096)) * 4096;
		struct sublet_job job = job_of(k->w, SUBLET_JOB_WRITE, length, base);
		struct sublet_fence fence;
		words_fill(k->b.memory, length, base, round);
		for (uint32_t i = 0; i < 2; i++) {
			bool done = false;
			must(sublet_submit(k->w->device, &job, &k->b.bo, 1, &fence) == 0);
			must(sublet_fence_wait(&fence, 60 * SUBLET_SEC, &done, &result) == 0);
			must(done && result == length);
			must(sublet_fence_put(&fence) == 0);
			if (job.op == SUBLET_JOB_WRITE)
				memset(k->b.memory, 0, length);
			job.op = SUBLET_JOB_READ;
		}
		for (uint64_t at = 0; at < length; at += 8) {
			uint64_t word;
			words_fill((char *)&word, 8, base + at, round);
			must(!memcmp(&word, k->b.memory + at, 8));
		}
	}
	return NULL;
}

static _Atomic uint32_t signals;

static void on_signal(int number)
{
	(void)number;
	signals++;
}

static void threads_and_signals(void **unused)
{
	struct sigaction action = { .sa_handler = on_signal }, old;
	struct itimerval often = { { 0, 300 }, { 0, 300 } }, never = { { 0, 0 }, { 0, 0 } };
	uint64_t state = seed_get("threads_and_signals");
	static struct worker worker[WORKERS];
	struct world w;
	(void)unused;

	world_open(&w, has_direct() ? O_DIRECT : 0);
	struct chaos *chaos = chaos_start(&w, random_next(&state));
	assert_int_equal(sigaction(SIGALRM, &action, &old), 0);
	for (uint32_t i = 0; i < WORKERS; i++) {
		worker[i] = (struct worker){ .w = &w, .index = i, .seed = random_next(&state) };
		buffer_open(&w, (enum way)(i % WAYS), WORKER_BYTES, 0, &worker[i].b);
	}
	for (uint32_t i = 0; i < WORKERS; i++)
		assert_int_equal(pthread_create(&worker[i].thread, NULL, worker_main, &worker[i]), 0);
	assert_int_equal(setitimer(ITIMER_REAL, &often, NULL), 0);
	for (uint32_t i = 0; i < WORKERS; i++) {
		usleep(20000);
		pthread_kill(worker[i].thread, SIGALRM);
		pthread_join(worker[i].thread, NULL);
	}
	assert_int_equal(setitimer(ITIMER_REAL, &never, NULL), 0);
	assert_int_equal(sigaction(SIGALRM, &old, NULL), 0);
	print_message("%u signals\n", signals);
	assert_true(signals > 50);
	chaos_stop(chaos);
	for (uint32_t i = 0; i < WORKERS; i++)
		buffer_close(&w, &worker[i].b);
	world_close(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(answers_cut_short),
		cmocka_unit_test(answers_with_errors),
		cmocka_unit_test(reset_waits),
		cmocka_unit_test(reset_gives_up),
		cmocka_unit_test(close_leaves_it_behind),
		cmocka_unit_test(close_waits_for_work),
		cmocka_unit_test(memory_stays_while_used),
		cmocka_unit_test(submitter_ends),
		cmocka_unit_test(threads_and_signals),
	};

	may_mount = slow_file_prepare();
	int failed = cmocka_run_group_tests_name("uring-faults", tests, NULL, NULL);
	if (may_mount)
		slow_file_finish();
	return failed;
}
