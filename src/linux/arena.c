/* SPDX-License-Identifier: MIT */
/*
 * linux/arena.c: sublet_arena_create and what it puts together.
 *
 * Creation goes from what refuses cheaply to what costs: options, userfaultfd, memory, addresses,
 * threads, engine, fork. One instance object holds all of it, in memory of its own (no malloc), and
 * teardown is the same list backwards, so a failed creation and a destroy share their code: each
 * step is undone only if `step` says that it was reached.
 *
 * Destroy refuses what would lead nowhere afterwards (sublet__arena_busy) before it stops anything; what serves others,
 * and notifiers, are told.
 */
#include "core/call.h"
#include "linux/fork.h"
#include "linux/instance.h"
#include "linux/limit.h"
#include "linux/memcheck.h"
#include "linux/proc.h"
#include "linux/uapi.h"
#include "linux/uffd.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

#define HUGE_BYTES           (2 * SUBLET_MIB)
#define NORMAL_MIN_BYTES     (64 * SUBLET_MIB)
#define WINDOW_MIN_BYTES     (64 * SUBLET_GIB)
#define WINDOW_FACTOR        16u
#define WINDOW_CHECKED_BYTES (16 * SUBLET_GIB) /* valgrind has no more than 64 GiB in one piece */
#define ARENA_MAX_BYTES      ((uint64_t)1 << 43)
#define WINDOW_MAX_PAGES     ((uint64_t)1 << 31) /* the engine counts them, rounded up to blocks, in 32 bits */

/* How far creation came. */
enum step { STEP_NONE, STEP_HERE, STEP_BACKING, STEP_MM, STEP_PLATFORM, STEP_ENGINE };

const char *sublet_version(void)
{
	return SUBLET_VERSION;
}

struct sublet__instance *sublet__instance_of(struct sublet_arena *arena)
{
	return sublet__arena_owner(arena);
}

struct sublet_mm *sublet_arena_mm(struct sublet_arena *arena)
{
	return arena ? sublet__arena_mm(arena, 0) : NULL;
}

/* ---- options ---- */

/* Round up to 2 MiB; false where that does not fit. */
static bool round_up(uint64_t *bytes)
{
	if (*bytes > ARENA_MAX_BYTES * WINDOW_FACTOR)
		return false;
	*bytes = (*bytes + HUGE_BYTES - 1) & ~(HUGE_BYTES - 1);
	return true;
}

/* Before anything is made: the frame size decides how many frames there are. */
static uint32_t frame_shift_of(const struct sublet_arena_options *o)
{
	struct statfs fs;
	bool huge = o->backing == SUBLET_BACKING_HUGETLB;

	if (o->backing == SUBLET_BACKING_FD && !fstatfs(o->fd, &fs))
		huge = (uint32_t)fs.f_type == SUBLET__HUGETLBFS_MAGIC;
	return huge ? 21 : 12;
}

static int options_complete(struct sublet_arena_options *o)
{
	if (!o->area_bytes || (unsigned int)o->backing > SUBLET_BACKING_FD ||
	    (unsigned int)o->technique > SUBLET_TECHNIQUE_WRITEPROTECT || o->workers > SUBLET__WORKERS_MAX ||
	    !round_up(&o->area_bytes))
		return -EINVAL;
	if (o->backing != SUBLET_BACKING_FD && (o->fd_offset_bytes || o->linear))
		return -EINVAL;
	if (!o->normal_bytes)
		o->normal_bytes = o->area_bytes / 4 > NORMAL_MIN_BYTES ? o->area_bytes / 4 : NORMAL_MIN_BYTES;
	if (!o->window_bytes)
		o->window_bytes = o->area_bytes > WINDOW_MIN_BYTES / WINDOW_FACTOR
					  ? o->area_bytes * WINDOW_FACTOR
					  : WINDOW_MIN_BYTES;
	if (!round_up(&o->normal_bytes) || !round_up(&o->window_bytes) ||
	    o->area_bytes + o->normal_bytes > ARENA_MAX_BYTES || o->window_bytes < o->area_bytes)
		return -EINVAL;
	uint32_t shift = frame_shift_of(o);
	if ((o->area_bytes + o->normal_bytes) >> shift >= ENGINE_PFN_MAX ||
	    o->window_bytes >> shift > WINDOW_MAX_PAGES)
		return -EINVAL;
	if (!o->mapping_limit)
		o->mapping_limit = sublet__max_map_count() / 2;
	if (o->mapping_limit > UINT32_MAX)
		o->mapping_limit = UINT32_MAX;
	return 0;
}

/* ---- create, destroy ---- */

static void undo(struct sublet__instance *in, enum step step)
{
	if (step >= STEP_PLATFORM)
		sublet__linux_platform_stop(&in->platform);
	if (step >= STEP_MM)
		for (uint32_t i = in->mms; i-- > 0;)
			sublet__linux_mm_close(&in->mm[i]);
	if (step >= STEP_ENGINE)
		sublet__arena_fini(in->arena);
	if (step >= STEP_BACKING)
		sublet__backing_close(&in->backing);
	if (step >= STEP_HERE)
		sublet__here_close(in->here);
	munmap(in, sizeof *in);
}

static int engine_open(struct sublet__instance *in, const struct sublet_arena_options *o)
{
	struct sublet__arena_config config = {
		.platform = {
			.ops = &sublet__linux_platform_ops,
			.ctx = &in->platform,
			.here = in->here,
			.frame_shift = in->backing.frame_shift,
			.run_pages_max = sublet__linux_mm_run_pages(&in->mm[0]),
			.workers = in->platform.workers,
		},
		.area_frames = (uint32_t)(o->area_bytes >> in->backing.frame_shift),
		.normal_frames = (uint32_t)(o->normal_bytes >> in->backing.frame_shift),
		.zeroed = in->backing.zeroed,
		.linear = in->backing.linear,
	};
	int err = sublet__arena_init(&config, &in->arena);

	if (err)
		return err;
	sublet__arena_set_owner(in->arena, in);
	struct sublet__mm_config mm_config = sublet__linux_mm_config(&in->mm[0], (uint32_t)o->mapping_limit);
	struct sublet_mm *mm;
	err = sublet__mm_create(in->arena, &mm_config, &mm);
	if (!err)
		err = sublet__fork_add(in);
	if (err)
		goto fini;
	err = sublet__zeroer_start(in);
	if (!err)
		return 0;
	sublet__fork_remove(in);
fini:
	sublet__arena_fini(in->arena);
	return err;
}

/* The size of the window, where that is ours to choose: addresses and private memory may be limited. */
static uint64_t window_bytes_fitting(const struct sublet_arena_options *o)
{
	bool is_checked = SUBLET__UNDER_VALGRIND() && o->window_bytes > WINDOW_CHECKED_BYTES;

	return sublet__limit_window(o->area_bytes, is_checked ? WINDOW_CHECKED_BYTES : o->window_bytes);
}

static int build(struct sublet__instance *in, const struct sublet_arena_options *o, bool window_is_given)
{
	enum step step = STEP_NONE;
	uint64_t features;
	bool via_device;
	/* Frames are 4 KiB or 2 MiB; kernels with larger base pages have neither. */
	int err = sysconf(_SC_PAGESIZE) == 4096 ? sublet__uffd_probe(&features, &via_device) : -EOPNOTSUPP;

	if (err) {
		err = err == -ENOSYS ? -EOPNOTSUPP : err == -EACCES ? -EPERM : err;
		goto out;
	}
	in->area_bytes = o->area_bytes;
	in->normal_bytes = o->normal_bytes;
	in->mapping_limit = o->mapping_limit;
	err = sublet__here_open(&in->here);
	if (err)
		goto out;
	step = STEP_HERE;
	err = sublet__backing_open(&in->backing, o, o->area_bytes + o->normal_bytes);
	if (err)
		goto out;
	step = STEP_BACKING;
	err = sublet__linux_mm_open(&in->mm[0], &in->backing, o->technique,
				    window_is_given ? o->window_bytes : window_bytes_fitting(o));
	if (err)
		goto out;
	in->mms = 1;
	step = STEP_MM;
	err = sublet__linux_platform_start(&in->platform, in->backing.linear, in->backing.frame_shift,
					   o->workers);
	if (err)
		goto out;
	step = STEP_PLATFORM;
	err = engine_open(in, o);
out:
	if (err)
		undo(in, step);
	return err;
}

static int create(const struct sublet_arena_options *given, struct sublet_arena **arena)
{
	struct sublet_arena_options o;
	static sublet__a32 told;
	int err = arena ? sublet__struct_in(&o, sizeof o, given, FIRST_ARENA_OPTIONS) : -EINVAL;
	bool window_is_given = !err && o.window_bytes;

	if (!err)
		err = options_complete(&o);
	if (err)
		return err;
	struct sublet__instance *in =
		mmap(NULL, sizeof *in, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (in == MAP_FAILED)
		return -ENOMEM;
	err = build(in, &o, window_is_given);
	if (!err)
		*arena = in->arena;
	if (!err && in->mm[0].is_checked && !a32_exchange_acq_rel(&told, 1))
		sublet__complain(
			"memory does not move under valgrind: claims get what is free or discardable", 0);
	return err;
}

int sublet_arena_create(const struct sublet_arena_options *options, struct sublet_arena **arena)
{
	int cancel_state;

	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state);
	int err = create(options, arena);
	pthread_setcancelstate(cancel_state, NULL);
	return err;
}

int sublet_arena_destroy(struct sublet_arena *arena)
{
	struct sublet__instance *in;
	int cancel_state;

	if (!arena)
		return 0;
	/* A child has neither its threads nor its linear map; what it has is ordinary memory in use. */
	int err = call_arena(arena);
	if (!err)
		err = sublet__arena_busy(arena);
	if (err)
		return err;
	in = sublet__instance_of(arena);
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state);
	for (uint32_t i = 0; i < in->companions; i++)
		if (in->companion[i].stop)
			in->companion[i].stop(in->companion[i].arg);
	sublet__chaos_stop(in);
	sublet__zeroer_stop(in);
	sublet__fork_remove(in);
	sublet__arena_exit(in->arena);
	undo(in, STEP_ENGINE);
	pthread_setcancelstate(cancel_state, NULL);
	return 0;
}

/* ---- further address spaces ---- */

/* Under the lock of fork.c: no fork sees half of it. */
static int mm_create(struct sublet__instance *in)
{
	struct sublet__linux_mm *mm = &in->mm[in->mms];
	struct sublet_mm *engine_mm;

	if (in->mms == SUBLET__MMS_MAX)
		return -ENOSPC;
	int err = sublet__linux_mm_open(mm, &in->backing, in->mm[0].technique, in->mm[0].bytes);
	if (err)
		return err;
	uint32_t limit = (uint32_t)(in->mapping_limit / SUBLET__MMS_MAX);
	struct sublet__mm_config config = sublet__linux_mm_config(mm, limit);
	err = sublet__mm_create(in->arena, &config, &engine_mm);
	if (err)
		sublet__linux_mm_close(mm);
	return err;
}

int sublet_arena_mm_add(struct sublet_arena *arena, struct sublet_mm **mm)
{
	int err = mm ? call_arena(arena) : -EINVAL;

	if (err)
		return err;
	struct sublet__instance *in = sublet__instance_of(arena);
	err = -EBUSY;
	/* Companions have a table of descriptors of their own, in which a new mm's would be missing. */
	sublet__lock(&in->companion_lock);
	if (!in->companions)
		err = sublet__fork_add_mm(in, mm_create);
	if (!err)
		*mm = sublet__arena_mm(arena, in->mms - 1);
	sublet__unlock(&in->companion_lock);
	return err;
}

/* ---- questions ---- */

int sublet_arena_info(struct sublet_arena *arena, struct sublet_arena_info *info)
{
	const struct sublet__instance *in;
	struct sublet_arena_info all;

	int err = call_arena(arena);

	if (!err)
		err = sublet__struct_out_check(info, FIRST_ARENA_INFO);
	if (err)
		return err;
	in = sublet__instance_of(arena);
	all = (struct sublet_arena_info){
		.backing = in->backing.kind,
		.technique = in->mm[0].technique,
		.frame_bytes = (uint64_t)1 << in->backing.frame_shift,
		.area_bytes = in->area_bytes,
		.normal_bytes = in->normal_bytes,
		.area_offset_bytes = in->backing.fd_offset,
		.linear = in->backing.linear,
		.fd = in->backing.fd,
		.workers = in->platform.workers,
		.mapping_limit = in->mapping_limit,
		.metadata_bytes = sublet__arena_metadata_bytes(arena),
	};
	sublet__struct_out(info, &all, sizeof all);
	return 0;
}

int sublet__linux_companion_add(struct sublet_arena *arena, const struct sublet__linux_companion *companion)
{
	struct sublet__instance *in = sublet__instance_of(arena);
	int err = -ENOSPC;

	sublet__lock(&in->companion_lock);
	if (in->companions < SUBLET__COMPANIONS_MAX) {
		in->companion[in->companions++] = *companion;
		err = 0;
	}
	sublet__unlock(&in->companion_lock);
	return err;
}
