/* SPDX-License-Identifier: MIT */
/*
 * Three ways to give a device memory, side by side in one arena of this process.
 *
 * The same work (a file is read into eight buffers, again and again) goes through claimed, then long-term pinned,
 * then tracked buffers, in short rounds whose order rotates. All three sets exist all the time, and beside them, whatever
 * the device does, two threads write and read lent memory, and windows of the area are claimed 25 times a second,
 * always the dearest:
 *
 *        area                                                      normal zone
 *   +------------------------------------------------------------+------------------+
 *   | CCCCCCCC  oooooooo tttttttt oooooooo  [window, now here]    | PPPPPPPP  oo tt  |
 *   +------------------------------------------------------------+------------------+
 *     claimed:   ordinary and tracked memory lies anywhere, and     pinned: was moved
 *     in the     moves out of whatever window is claimed            here, and stays
 *     way
 *
 * What each way costs shows in different rows: claimed buffers take their bytes out of the area for good, pinned ones out of
 * the normal zone, tracked ones nothing; but those are evicted when a claim moves them, and bound again.
 *
 * Every buffer is checked after every job, where its owner sees it.
 */
#include "cli/demo_ways.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define AREA_BYTES   (256 * SUBLET_MIB)
#define NORMAL_BYTES (64 * SUBLET_MIB)
#define WARM_NS      (400 * SUBLET_MS) /* until claims have spread things out */
#define FENCE_NS     (20 * SUBLET_SEC) /* far more than a job may take: the library ends it before */

struct buffer {
	struct sublet_bo bo;
	char *memory; /* as a program sees it; a claim's: in the linear map */
	struct sublet_claim claim;
	struct sublet_fence fence;
	uint32_t op; /* under way; 0: none */
	uint32_t frame;
	uint64_t pattern;
};

struct ways {
	struct sublet__ways_results *results;
	struct sublet_arena *arena;
	int file; /* -1: the devices read no files, they fill and sum */
	uint32_t next;
	/* One for each way, so that what it counts is about that way. */
	struct sublet_device *device[SUBLET__WAYS];
	uint64_t registrations[SUBLET__WAYS]; /* when it was opened */
	struct buffer buffer[SUBLET__WAYS][SUBLET__WAYS_BUFFERS];
};

static const char *const way_names[SUBLET__WAYS] = { "claimed", "pinned", "tracked" };

/* ---- one job ---- */

static int job_submit(struct ways *w, struct buffer *b, uint32_t op)
{
	const struct sublet_job job = {
		SUBLET_OPTIONS(sublet_job),
		.op = op,
		.fd = w->file,
		.bytes = SUBLET__FRAME_BYTES,
		.file_offset_bytes = (uint64_t)b->frame * SUBLET__FRAME_BYTES,
		.pattern = b->pattern,
	};
	int err = sublet_submit(b->bo.device, &job, &b->bo, 1, &b->fence);

	b->op = err ? 0 : op;
	return err;
}

static int job_start(struct ways *w, struct buffer *b)
{
	uint64_t state = ++w->next;

	b->frame = w->next % SUBLET__FRAMES_IN_FILE;
	b->pattern = sublet__random_next(&state);
	return job_submit(w, b, w->file >= 0 ? SUBLET_JOB_READ : SUBLET_JOB_FILL);
}

/* Whether the buffer holds what the last job should have left, and the device said so. */
static bool buffer_is_good(const struct buffer *b, uint64_t result)
{
	const uint64_t *words = (const uint64_t *)(const void *)b->memory;
	const size_t count = SUBLET__FRAME_BYTES / sizeof(words[0]);

	if (b->op == SUBLET_JOB_READ)
		return result == SUBLET__FRAME_BYTES && sublet__frame_is_good(b->memory, b->frame);
	for (size_t i = 0; i < count; i++)
		if (words[i] != b->pattern)
			return false;
	return result == b->pattern * count;
}

/* Wait for the job under way, and check what it did. A fill is followed by a sum. */
static int job_finish(struct ways *w, struct buffer *b, struct sublet__way_result *r)
{
	uint64_t result = 0;
	int err = sublet_fence_wait(&b->fence, FENCE_NS, NULL, &result);
	int put = sublet_fence_put(&b->fence);
	bool good;

	if (err || put) {
		b->op = 0;
		return err ? err : put;
	}
	if (b->op == SUBLET_JOB_FILL)
		return job_submit(w, b, SUBLET_JOB_SUM);
	good = buffer_is_good(b, result);
	r->good += good;
	r->wrong += !good;
	r->bytes += SUBLET__FRAME_BYTES;
	b->op = 0;
	return 0;
}

/* ---- one way for a while ---- */

static int work(struct ways *w, enum sublet__way way, struct sublet__way_result *r, uint64_t until_ns)
{
	int err = 0;

	for (uint32_t i = 0; !err && sublet__demo_now_ns() < until_ns && !sublet__demo_interrupted();
	     i = (i + 1) % SUBLET__WAYS_BUFFERS) {
		struct buffer *b = &w->buffer[way][i];

		if (b->op)
			err = job_finish(w, b, r);
		if (!err && !b->op)
			err = job_start(w, b);
	}
	for (uint32_t i = 0; i < SUBLET__WAYS_BUFFERS; i++) {
		struct buffer *b = &w->buffer[way][i];

		while (b->op) {
			int last = job_finish(w, b, r);

			err = err ? err : last;
		}
	}
	return err;
}

static int measure(struct ways *w, enum sublet__way way, uint64_t each_ns)
{
	struct sublet__ways_load *load = &w->results->load;
	struct sublet__way_result *r = &load->result[way];
	uint64_t pages = sublet__ways_load_pages(load), start_ns = sublet__demo_now_ns();
	int err;

	load->way = way;
	err = work(w, way, r, start_ns + each_ns);
	load->way = SUBLET__WAYS;
	r->elapsed_ns += sublet__demo_now_ns() - start_ns;
	r->pages += sublet__ways_load_pages(load) - pages;
	if (err)
		demo_error("the device's work in %s buffers failed: %s", way_names[way], strerror(-err));
	else if (sublet__demo_interrupted())
		err = -EINTR;
	return err;
}

/* What the devices counted, from when they were opened. */
static int count(struct ways *w)
{
	for (uint32_t way = 0; way < SUBLET__WAYS; way++) {
		struct sublet_device_info info = { SUBLET_OPTIONS(sublet_device_info) };
		struct sublet__way_result *r = &w->results->load.result[way];
		int err = sublet_device_info(w->device[way], &info);

		if (err)
			return err;
		r->binds = info.binds;
		r->rebinds = info.rebinds;
		r->evictions = info.evictions;
		r->registrations = info.registrations - w->registrations[way];
		w->results->bad_accesses += info.bad_accesses;
	}
	return 0;
}

static int measure_all(struct ways *w, const struct sublet__ways_options *options)
{
	int err = 0;

	sublet__demo_sleep_ns(WARM_NS);
	for (uint32_t round = 0; !err && round < options->rounds; round++) {
		for (uint32_t i = 0; !err && i < SUBLET__WAYS; i++) {
			enum sublet__way way = (enum sublet__way)((i + round) % SUBLET__WAYS);

			sublet__demo_line(false, "three ways: round %u of %u, %s buffers", round + 1,
					  options->rounds, way_names[way]);
			err = measure(w, way, options->each_ns);
		}
		w->results->rounds += !err;
	}
	return err ? err : count(w);
}

/* ---- buffers ---- */

static int buffer_claim(struct ways *w, struct buffer *b)
{
	const struct sublet_claim_options options = {
		SUBLET_OPTIONS(sublet_claim_options),
		.owner = "way-claimed",
	};
	int err = sublet_claim(w->arena, SUBLET__FRAME_BYTES, &options, &b->claim);

	if (err)
		return err;
	b->memory = b->claim.addr;
	return sublet_bo_create_claim(w->device[SUBLET__WAY_CLAIMED], &b->claim, 0, "way-claimed", &b->bo);
}

static int buffer_map(struct ways *w, enum sublet__way way, uint32_t i, uint32_t flags, const char *owner)
{
	struct sublet_mm *mm = sublet_arena_mm(w->arena);
	struct buffer *b = &w->buffer[way][i];
	void *memory;
	int err = sublet_map(mm, SUBLET__FRAME_BYTES, SUBLET_MOVABLE, &memory);

	if (err)
		return err;
	b->memory = memory;
	return sublet_bo_create(w->device[way], mm, memory, SUBLET__FRAME_BYTES, flags, owner, &b->bo);
}

/* Tracked buffers in turn with ordinary memory: so any window that is worth claiming has some of both in it. */
static int memory_make(struct ways *w)
{
	struct sublet__ways_load *load = &w->results->load;
	int err = 0;

	load->arena = w->arena;
	sublet_pin_limit(sublet_arena_mm(w->arena), SUBLET__WAYS_BYTES);
	for (uint32_t i = 0; i < SUBLET__WAYS_BUFFERS && !err; i++)
		err = buffer_map(w, SUBLET__WAY_PINNED, i, SUBLET_BO_PINNED, "way-pinned");
	for (uint32_t i = 0; i < SUBLET__WAYS_BUFFERS && !err; i++)
		err = buffer_claim(w, &w->buffer[SUBLET__WAY_CLAIMED][i]);
	for (uint32_t i = 0; i < SUBLET__WAYS_BUFFERS && !err; i++) {
		err = sublet__ways_load_map(load, i);
		if (!err)
			err = buffer_map(w, SUBLET__WAY_TRACKED, i, SUBLET_BO_TRACKED, "way-tracked");
	}
	if (err)
		demo_error("cannot make the memory of the devices and threads: %s", strerror(-err));
	return err;
}

_Static_assert(SUBLET__WAYS_BUFFERS == SUBLET__WAYS_THREADS * SUBLET__WAYS_CHUNKS,
	       "one chunk beside each buffer");

/* ---- arena and device ---- */

static int arena_make(struct ways *w)
{
	const struct sublet_arena_options options = {
		SUBLET_OPTIONS(sublet_arena_options),
		.area_bytes = AREA_BYTES,
		.normal_bytes = NORMAL_BYTES,
	};
	struct sublet_arena_info info = { SUBLET_OPTIONS(sublet_arena_info) };
	char name[SUBLET_NAME_BYTES];
	int err = sublet_arena_create(&options, &w->arena);

	if (err == -EPERM) {
		demo_error("cannot move memory here: no userfaultfd permission");
		sublet__advice("sublet doctor says what to do");
		return err;
	}
	if (!err)
		err = sublet_arena_info(w->arena, &info);
	if (err)
		demo_error("cannot make an arena of %s: %s", sublet__bytes(AREA_BYTES + NORMAL_BYTES).text,
			   strerror(-err));
	else if (snprintf(name, sizeof(name), "ways-%d", (int)getpid()) > 0 &&
		 !sublet_arena_serve(w->arena, name))
		sublet__demo_line(true, "three ways; to look at them meanwhile: sublet bos -n %s", name);
	w->results->area_bytes = info.area_bytes;
	w->results->normal_bytes = info.normal_bytes;
	return err;
}

/* The file that is read; nobody else finds it. -errno */
static int file_open(struct ways *w, const char *folder)
{
	char path[SUBLET__DEMO_PATH_BYTES];
	int err;

	if (snprintf(path, sizeof(path), "%s/ways", folder) >= (int)sizeof(path))
		return -ENAMETOOLONG;
	sublet__demo_line(false, "three ways: writing the file");
	err = sublet__frames_write(path);
	if (!err)
		w->file = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	if (!err && w->file < 0)
		err = -errno;
	unlink(path);
	return err;
}

/* All memory is registered when the device is opened, which counts as locked. */
static void lock_limit_raise(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_MEMLOCK, &limit))
		return;
	limit.rlim_cur = limit.rlim_max;
	(void)setrlimit(RLIMIT_MEMLOCK, &limit);
}

static bool lock_is_limited(void)
{
	struct rlimit limit;

	return !getrlimit(RLIMIT_MEMLOCK, &limit) && limit.rlim_cur != RLIM_INFINITY;
}

static int device_open(struct ways *w, enum sublet__way way, bool uring)
{
	const struct sublet_uring_options files = {
		SUBLET_OPTIONS(sublet_uring_options),
		.name = way_names[way],
	};
	const struct sublet_soft_options soft = {
		SUBLET_OPTIONS(sublet_soft_options),
		.name = way_names[way],
	};
	struct sublet_device_info info = { SUBLET_OPTIONS(sublet_device_info) };
	int err = uring ? sublet_device_open_uring(w->arena, &files, &w->device[way])
			: sublet_device_open_soft(w->arena, &soft, &w->device[way]);

	if (!err)
		err = sublet_device_info(w->device[way], &info);
	w->registrations[way] = info.registrations;
	return err;
}

static int devices_open(struct ways *w, const char *folder)
{
	int err;

	lock_limit_raise();
	err = device_open(w, 0, true);
	w->results->is_soft = err == -EOPNOTSUPP || err == -ENOMEM;
	snprintf(w->results->why_soft, sizeof(w->results->why_soft), "%s",
		 err != -ENOMEM      ? "no io_uring here"
		 : lock_is_limited() ? "the locked-memory limit, ulimit -l, is too low for io_uring"
				     : "no memory for io_uring");
	if (w->results->is_soft)
		err = device_open(w, 0, false);
	for (uint32_t way = 1; way < SUBLET__WAYS && !err; way++)
		err = device_open(w, (enum sublet__way)way, !w->results->is_soft);
	if (err) {
		demo_error("cannot open a device: %s", strerror(-err));
		return err;
	}
	err = w->results->is_soft ? 0 : file_open(w, folder);
	if (err)
		demo_error("cannot write the file that is read to %s: %s", folder, strerror(-err));
	return err;
}

static int run(struct ways *w, const struct sublet__ways_options *options)
{
	int err = arena_make(w);

	if (!err)
		err = devices_open(w, options->folder);
	if (!err)
		err = memory_make(w);
	if (err)
		return err;
	err = sublet__ways_load_start(&w->results->load);
	if (err)
		demo_error("cannot start the threads that use lent memory: %s", strerror(-err));
	else
		err = measure_all(w, options);
	sublet__ways_load_stop(&w->results->load);
	return err;
}

int sublet__ways_run(const struct sublet__ways_options *options, struct sublet__ways_results *results)
{
	static struct ways w; /* too large for a stack */
	uint64_t start_ns = sublet__demo_now_ns();
	int err;

	w = (struct ways){ .results = results, .file = -1 };
	results->each_ns = options->each_ns;
	err = run(&w, options);
	for (uint32_t way = 0; way < SUBLET__WAYS; way++)
		sublet_device_close(w.device[way]);
	for (uint32_t i = 0; i < SUBLET__WAYS_BUFFERS; i++)
		(void)!sublet_release(w.arena,
				      &w.buffer[SUBLET__WAY_CLAIMED][i].claim); /* -EINVAL: was never held */
	if (sublet_arena_destroy(w.arena))                                      /* and what is mapped */
		demo_error("the arena cannot be destroyed: something is held that was given back");
	if (w.file >= 0)
		close(w.file);
	for (uint32_t way = 0; way < SUBLET__WAYS; way++) {
		struct sublet__way_result *r = &results->load.result[way];

		sublet__demo_sort(r->latency_ns, sublet__way_latencies(r));
	}
	results->elapsed_ns = sublet__demo_now_ns() - start_ns;
	return err;
}
