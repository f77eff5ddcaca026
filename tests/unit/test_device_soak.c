/* SPDX-License-Identifier: MIT */
/*
 * A simulated device that now and then hangs, while several threads give it work on memory that moves all the time, and
 * make and unmake their buffers under it. The device sees no bad access; a job that says it is done has done what was asked,
 * and nothing else (G1, G4, G7). SEED=n replays the choices, UNIT_SECONDS=n makes it longer.
 */
#include "fake_device.h"

#include <sched.h>

enum { THREADS = 3, BOS = 3, PAGES_MAX = 90 };

#define LONG_NS (30 * SUBLET_SEC)

static struct fake f;
static struct fake_device fd;
static _Atomic bool stop, stop_device;
static _Atomic uint32_t hung, failed, done;
static pthread_mutex_t device_busy = PTHREAD_MUTEX_INITIALIZER; /* accesses are being made */

struct worker {
	pthread_t thread;
	uint64_t state;
	struct {
		uint32_t vpn;
		uint32_t pages;
		struct sublet_bo bo;
	} at[BOS];
};

/* Does the jobs, and loses one in a while. */
static void *device_main(void *arg)
{
	uint64_t *state = arg;
	struct sublet_device_work work;

	while (!atomic_load(&stop_device)) {
		if (below(state, 300) == 0) {
			if (fake_device_take(&fd, &work))
				atomic_fetch_add(&hung, 1);
			continue;
		}
		pthread_mutex_lock(&device_busy);
		bool found = fake_device_take(&fd, &work);
		uint64_t result = found ? fake_device_do(&fd, &work) : 0;
		pthread_mutex_unlock(&device_busy);
		if (found)
			sublet_device_complete(fd.device, work.id, 0, result);
		else
			sched_yield();
	}
	return NULL;
}

/* No access is under way when it returns, and no job is left for which one could be made. */
static void reset_waits_for_accesses(struct fake_device *dev)
{
	pthread_mutex_lock(&device_busy);
	pthread_mutex_lock(&dev->lock);
	dev->queued = 0;
	pthread_mutex_unlock(&dev->lock);
	pthread_mutex_unlock(&device_busy);
}

/* ---- buffers come and go ---- */

static void slot_make(struct worker *w, uint32_t i)
{
	uint32_t pages = 1 + below(&w->state, below(&w->state, 3) ? 20 : PAGES_MAX);
	uint32_t kind = below(&w->state, 6) ? SUBLET_BO_TRACKED : SUBLET_BO_PINNED;

	w->at[i].pages = pages;
	w->at[i].vpn = map_pages(&f, pages, SUBLET_MOVABLE);
	int err = sublet_bo_create(fd.device, f.engine_mm[0], addr_of(&f, 0, w->at[i].vpn), pages * PAGE,
				   kind, NULL, &w->at[i].bo);
	if (err) { /* not now: no room outside of the area, or short pins in its way */
		assert_true(kind == SUBLET_BO_PINNED && (err == -ENOMEM || err == -EBUSY));
		w->at[i].bo = bo_over(&fd, w->at[i].vpn, pages, SUBLET_BO_TRACKED);
	}
}

static void slot_end(struct worker *w, uint32_t i)
{
	void *addr = addr_of(&f, 0, w->at[i].vpn);
	uint64_t bytes = w->at[i].pages * PAGE;
	bool memory_first = below(&w->state, 2);

	/* The memory first: the bo is dead then, a pinned one keeps it. */
	if (memory_first && sublet_unmap(f.engine_mm[0], addr, bytes) == -EBUSY)
		memory_first = false;
	assert_int_equal(sublet_bo_destroy(&w->at[i].bo), 0);
	if (!memory_first)
		assert_int_equal(sublet_unmap(f.engine_mm[0], addr, bytes), 0);
}

/* ---- work ---- */

/* Submit and wait. 0: it was done. Else the device hung just now, or there was no room or no quiet moment to bind in. */
static int work(struct worker *w, uint32_t op, uint32_t pages, uint32_t a, uint32_t b, uint64_t pattern,
		uint64_t *result)
{
	struct sublet_bo bos[2] = { w->at[a].bo, w->at[b].bo };
	struct sublet_job job = job_of(op, pages);
	struct sublet_fence fence;
	bool is_done = false;

	job.pattern = pattern;
	job.timeout_ns = 100 * SUBLET_MS;
	int err = sublet_submit(fd.device, &job, bos, op == SUBLET_JOB_COPY ? 2 : 1, &fence);
	if (err) {
		assert_true(err == -ETIMEDOUT || err == -ENOSPC);
	} else {
		err = sublet_fence_wait(&fence, LONG_NS, &is_done, result);
		assert_true(is_done && (err == 0 || err == -ETIMEDOUT || err == -EIO));
		assert_int_equal(sublet_fence_put(&fence), 0);
	}
	atomic_fetch_add(err ? &failed : &done, 1);
	return err;
}

static void step(struct worker *w)
{
	uint32_t a = below(&w->state, BOS), b = (a + 1 + below(&w->state, BOS - 1)) % BOS;
	uint32_t most = w->at[a].pages < w->at[b].pages ? w->at[a].pages : w->at[b].pages;
	uint32_t pages = 1 + below(&w->state, most);
	uint64_t key = rng(&w->state), sum[2] = { 0, 0 };

	if (below(&w->state, 20) == 0) {
		slot_end(w, a);
		slot_make(w, a);
		return;
	}
	fill(&f, 0, w->at[a].vpn, pages, key);
	int err = work(w, SUBLET_JOB_COPY, pages, a, b, 0, sum);
	check_fill(&f, 0, w->at[a].vpn, pages, key); /* the source stays, however it went */
	if (err)
		return;
	check_fill(&f, 0, w->at[b].vpn, pages, key);
	if (!work(w, SUBLET_JOB_SUM, pages, a, b, 0, &sum[0]) &&
	    !work(w, SUBLET_JOB_SUM, pages, b, a, 0, &sum[1]))
		assert_true(sum[0] == sum[1]);
	if (!work(w, SUBLET_JOB_FILL, pages, b, a, key, sum))
		check_pattern(&f, w->at[b].vpn, pages, key);
}

static void *worker_main(void *arg)
{
	struct worker *w = arg;

	for (uint32_t i = 0; i < BOS; i++)
		slot_make(w, i);
	while (!atomic_load(&stop))
		step(w);
	for (uint32_t i = 0; i < BOS; i++)
		slot_end(w, i);
	return NULL;
}

static void *mover_main(void *arg)
{
	uint64_t *state = arg;

	while (!atomic_load(&stop)) {
		struct sublet_claim_options o = { SUBLET_OPTIONS(sublet_claim_options),
						  .deadline_ns = 20 * SUBLET_MS,
						  .flags = below(state, 2) ? SUBLET_CLAIM_DEAREST : 0 };
		struct sublet_claim claim;
		if (below(state, 8))
			sublet__chaos_move(f.arena, f.engine_mm[0], rng(state));
		else if (!claim_take(&f, (1 + below(state, 900)) * PAGE, &o, &claim))
			claim_give(&f, &claim);
		if (below(state, 4) == 0)
			sched_yield();
	}
	return NULL;
}

static void soak(uint32_t features, uint64_t seed)
{
	uint64_t state[2] = { seed + 1000, seed + 2000 };
	static struct worker worker[THREADS];
	pthread_t mover, device;

	fixture_open(&f, &(struct fake_options){ .area_frames = 4 * 512, .normal_frames = 4 * 512 });
	fake_device_open(&fd, &f,
			 &(struct fake_device_options){
				 .features = features,
				 .jobs_max = 4,
				 .aperture_bytes = features & SUBLET_DEVICE_IOPT ? SUBLET_MIB : 0 });
	fd.on_reset = reset_waits_for_accesses;
	fd.attach_most = 6;
	atomic_store(&stop, false);
	atomic_store(&stop_device, false);
	atomic_store(&hung, 0);
	atomic_store(&failed, 0);
	atomic_store(&done, 0);
	threads_begin();
	pthread_create(&device, NULL, device_main, &state[0]);
	pthread_create(&mover, NULL, mover_main, &state[1]);
	for (uint32_t i = 0; i < THREADS; i++) {
		worker[i] = (struct worker){ .state = seed * THREADS + i };
		pthread_create(&worker[i].thread, NULL, worker_main, &worker[i]);
	}
	uint64_t until = wall_ns() + soak_ns(1.5);
	while (wall_ns() < until)
		f.platform.ops->sleep_ns(&f, 10 * SUBLET_MS);
	atomic_store(&stop, true);
	for (uint32_t i = 0; i < THREADS; i++)
		pthread_join(worker[i].thread, NULL);
	pthread_join(mover, NULL);
	atomic_store(&stop_device, true);
	pthread_join(device, NULL);
	threads_end();
	struct sublet_device_info info = fake_device_info(&fd);
	print_message(
		"  %u jobs done, %u failed, %u hung; %u resets, %u rebinds, %u evictions, %u for room\n",
		done, failed, hung, (uint32_t)info.resets, (uint32_t)info.rebinds, (uint32_t)info.evictions,
		(uint32_t)info.evictions_lru);
	assert_true(done > 20);
	fake_device_close(&fd);
	fixture_close(&f);
}

static void with_a_page_table(void **unused)
{
	(void)unused;
	soak(SUBLET_DEVICE_COPY | SUBLET_DEVICE_IOPT, seed_get("device soak"));
}

static void without_one(void **unused)
{
	(void)unused;
	soak(SUBLET_DEVICE_COPY, seed_get("device soak"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(with_a_page_table),
		cmocka_unit_test(without_one),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
