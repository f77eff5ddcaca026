/* SPDX-License-Identifier: MIT */
/*
 * core/device.h: a device with its buffer objects and jobs, and who of its four files does what.
 *
 *   device.c   birth and death, waiting, reset
 *   job.c      submitting, completing, fences
 *   bo.c       making buffer objects, and ending them
 *   bind.c     translations: made, evicted, made again; collapse
 *
 * All of a device is one reservation, sized when it is created. device.lock guards every field below unless it says
 * otherwise. It nests in block locks (by way of a notifier's callback) and in nothing else, and the lock of an iopt nests in
 * it; so while it is held nobody maps, pins, claims, adds or removes a notifier or waits for one, and no call of a
 * backend is made that could come back and take it: submit, reset and close are called without it.
 */
#ifndef SUBLET_CORE_DEVICE_H
#define SUBLET_CORE_DEVICE_H

#include "core/call.h"

#include <sublet/bo.h>
#include <sublet/notifier.h>
#include <sublet/pin.h>

#define DEVICE_FENCES_SPARE 1024u /* fences that may be kept beyond the jobs in flight */
#define DEVICE_ALIGN_MAX    4096u
#define BO_GAPS             8u
#define BO_NOWHERE          UINT64_MAX

/* Pages of a bo, in bytes from its base, that have no translation. */
struct sublet__gap {
	uint64_t from;
	uint64_t end;
};

/* FREE -> MAKING -> LIVE -> GOING -> FREE; MAKING -> FREE where it cannot be made. */
enum sublet__bo_state {
	BO_FREE = 0,
	BO_MAKING, /* has its slot; no handle leads to it yet */
	BO_LIVE,
	BO_GOING, /* no handle leads to it any more; its notifier may still call */
};

/*
 * state        translation                       who may change it
 * not bound    none                              bind.c, on the way to a job
 * bound        all of span but the gaps          bind.c; the notifier's callback, if no job is in flight
 * in use       all of span: jobs > 0, no gaps    nobody (G4: a callback declines, or waits)
 * lost         as in use; of a device that is dead but could not be stopped, until it completes the job or has died
 *
 * not bound -> bound, with gaps -> bound <-> in use; in use -> lost -> bound, and unbound at once. Back from bound, or
 * bound with gaps, to gaps or not bound: cleared, evicted. not bound -> bound where all of it is filled in at one go.
 */
struct sublet__bo {
	struct sublet_device *device; /* set once */
	enum sublet__bo_state state;
	uint32_t generation;  /* of the slot; upper half of its id */
	uint32_t flags;       /* enum sublet_bo_flags */
	struct sublet_mm *mm; /* NULL: a claim's */
	uint64_t addr;        /* as it was asked for; of a claim: in the linear map */
	uint64_t bytes;
	uint64_t base; /* the pages: addr rounded down; of a claim: its offset in the backing */
	uint64_t span;
	uint64_t claim_id;
	uint64_t since_ns;
	struct sublet_notifier notifier; /* tracked */
	struct sublet_pin pin;           /* pinned; touched without the lock only while MAKING or GOING */

	bool is_bound;
	bool was_evicted; /* since it was last bound as a whole */
	bool is_dead;     /* its memory was unmapped: never bound again */
	bool is_collapsing;
	bool is_abandoned; /* destroyed while it had lost jobs: ended with the last of them */
	uint64_t iova;
	uint32_t gaps;
	struct sublet__gap
		gap[BO_GAPS + 1]; /* ascending, apart; one more than there may be, to put another in */

	uint32_t jobs;           /* in flight, lost ones too: while there are some the memory may not go */
	uint32_t lost;           /* of these */
	uint32_t blocking;       /* invalidations that wait for them */
	uint64_t gate_until_ns;  /* new jobs wait until then, at most: a move wants the memory */
	uint64_t gate_since_ns;  /* closed for the first time since a job was started; 0: not */
	uint64_t gate_passed_ns; /* cleared behind its gate, for the last time, */
	uint64_t gate_at;        /* from this page on, */
	uint64_t gate_offset;    /* which was here then; BO_NOWHERE: not cleared since the gate was closed */
	uint32_t lru_prev;       /* bound bos, the one used last at the tail */
	uint32_t lru_next;
	uint32_t next_free;
	uint64_t binds;
	uint64_t evictions;
	char owner[SUBLET_OWNER_BYTES];
};

/*
 * FREE -> MAKING -> RUNNING -> ENDING -> DONE -> FREE is the way of a job on a range. A job on buffers has nothing to pin,
 * so the lock is held all along from FREE to RUNNING, and from RUNNING to DONE. Else
 *
 *   MAKING   -> FREE            the range cannot be pinned
 *   RUNNING  -> LOST            its device cannot be stopped
 *   LOST     -> ENDING, DONE    it completed the job after all; again, whether there is something to unpin
 *   LOST, ENDING -> FREE        nobody has its fence: DONE is only passed through
 */
enum sublet__job_state {
	JOB_FREE = 0,
	JOB_MAKING,  /* has its slot; the memory of a range is being pinned */
	JOB_RUNNING, /* in flight: from before the backend has it until it is completed */
	JOB_LOST,    /* failed; but the device could not be stopped, and may still access its memory */
	JOB_ENDING,  /* completed; its pin is being released, without the lock */
	JOB_DONE,    /* waits for its fence to be put */
};

struct sublet__job {
	sublet__a32 word; /* changes with the state; parked on by sublet_fence_wait */
	enum sublet__job_state state;
	uint32_t generation;
	uint32_t running_at; /* its place in running[] */
	uint32_t next_free;
	uint32_t bos;
	uint32_t bo[2];
	bool has_fence;
	bool has_pin;
	bool is_settled; /* over, for whoever waits for it */
	int status;
	uint64_t result;
	uint64_t deadline_ns;
	struct sublet_pin pin; /* of a range; touched without the lock only before RUNNING and while ENDING */
	struct sublet_device_work work;
};

/*
 * working -> resetting -> working. Dead: from resetting, where that failed, or from working by itself, and for ever.
 * Working or dead -> closing, when nobody else uses it; a reset may still come, for the jobs that it has.
 */
struct sublet_device {
	struct sublet_arena *arena;
	struct sublet_device_ops ops;
	void *ctx;
	struct sublet_device_limits limits; /* name: points to the next */
	char name[SUBLET_OWNER_BYTES];
	struct sublet_iopt *iopt; /* NULL: none */
	size_t memory_bytes;
	uint32_t users; /* guarded by arena.device_lock: who looks at it from its arena */

	struct sublet__lock lock;
	sublet__a32 pulse; /* changes when somebody who waits for the device should look again; parked on */
	uint32_t waiters;  /* parked, on pulse or on a job's word */
	bool is_dead;
	bool has_died; /* and said so itself: it accesses no memory any more, whatever a reset answers */
	bool is_closing;
	bool is_resetting;
	uint32_t submitting; /* calls of ops.submit under way */

	struct sublet__bo *bo; /* [limits.bos_max] */
	uint32_t bo_free;
	uint32_t lru_head;
	uint32_t lru_tail;

	struct sublet__job *job; /* [jobs] */
	uint32_t jobs;
	uint32_t job_free;
	uint32_t *running; /* [limits.jobs_max] jobs that are RUNNING, LOST or ENDING, in no order */
	uint32_t running_count;
	uint32_t lost_count; /* of these */

	uint32_t collapse_slot; /* where the next collapse goes on */
	uint64_t collapse_from;

	struct sublet_device_info count; /* the counters of it */
};

static inline int call_device(const struct sublet_device *device)
{
	return device ? call_arena(device->arena) : -EINVAL;
}

static inline void device_lock(struct sublet_device *device)
{
	engine_lock(device->arena, &device->lock);
}

static inline void device_unlock(struct sublet_device *device)
{
	engine_unlock(device->arena, &device->lock);
}

static inline bool device_has(const struct sublet_device *device, uint32_t feature)
{
	return device->limits.features & feature;
}

static inline uint32_t bo_slot(const struct sublet__bo *bo)
{
	return (uint32_t)(bo - bo->device->bo);
}

/* A number that names a slot for as long as it is in use, and is never 0. */
static inline uint64_t handle_make(uint32_t generation, uint32_t slot)
{
	return (uint64_t)generation << 32 | (slot + 1);
}

static inline uint64_t bo_id(const struct sublet__bo *bo)
{
	return handle_make(bo->generation, bo_slot(bo));
}

/* The device knows its memory since it was opened: it is always bound. */
static inline bool bo_is_registered(const struct sublet__bo *bo)
{
	return device_has(bo->device, SUBLET_DEVICE_REGISTERED) && !(bo->flags & SUBLET_BO_TRACKED);
}

static inline uint64_t time_after(uint64_t now_ns, uint64_t ns)
{
	return ns < UINT64_MAX - now_ns ? now_ns + ns : UINT64_MAX;
}

/* ---- device.c ---- */

/* Whoever waits for this device looks again; lock held. */
void sublet__device_pulse(struct sublet_device *device);
/*
 * Wait for a change, at most until `until_ns`; lock held, dropped meanwhile. word: the device's pulse, or that of a job.
 * Where a job is past its deadline the device is reset instead. May return for no reason: the caller looks again.
 */
void sublet__device_wait(struct sublet_device *device, const sublet__a32 *word, uint64_t until_ns);
/* Next device of the arena at or after *index, kept from closing until put; NULL: no more. */
struct sublet_device *sublet__device_get(struct sublet_arena *arena, uint32_t *index);
void sublet__device_put(struct sublet_device *device);

/* ---- job.c ---- */

/*
 * Every job in flight ends now, each with what suits it; lock held, may be dropped meanwhile. is_stopped false: only for
 * those who wait; the memory is held until the device completes it, or dies, if it ever does. is_stopped true: what was
 * lost before is let go too.
 */
void sublet__jobs_fail(struct sublet_device *device, bool is_stopped);

/* ---- bo.c ---- */

/* The bo that a handle names; NULL: there is none (any more). Lock held. */
struct sublet__bo *sublet__bo_find(struct sublet_device *device, uint64_t id);
/* End a bo that is GOING and in no job's use: lets go of its memory, and frees its slot. Lock not held. */
void sublet__bo_finish(struct sublet__bo *bo);

/* ---- bind.c ---- */

/* Whether a job may use it at once, but for the gate. Lock held, and so for all that follow. */
static inline bool bo_is_ready(const struct sublet__bo *bo)
{
	return bo->is_bound && !bo->gaps;
}

/* Whether it has room of its own on the device, which others may want. */
static inline bool bo_is_listed(const struct sublet__bo *bo)
{
	return bo->is_bound && !bo_is_registered(bo);
}

/*
 * One step towards a bo that is ready: room for it, or a piece of its translation. Drops the lock, so the caller looks
 * everything up again. own: ids of bos that are not to be evicted for it.
 * 0: look again   -EAGAIN: look again in a little while   else the error of sublet_submit
 */
int sublet__bo_bind(struct sublet__bo *bo, const uint64_t *own, uint32_t own_count, uint64_t until_ns);
/* When to look again whether new jobs may use it; 0: they may. */
uint64_t sublet__bo_gate(struct sublet__bo *bo, uint64_t now_ns);
/* It was used just now: evict others first. */
void sublet__bo_touch(struct sublet__bo *bo);
/* Take its translation away. No job uses it. */
void sublet__bo_unbind(struct sublet__bo *bo);
/* The dead device has no translation left, but of what it may still access. */
void sublet__device_unbind_all(struct sublet_device *device);
/* The notifier's callback of tracked bos. */
extern const struct sublet_notifier_ops sublet__bo_notifier_ops;

#endif
