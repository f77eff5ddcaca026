/* SPDX-License-Identifier: MIT */
/*
 * sim/sim.h: a small world, all of it decided by one number.
 *
 *   fiber.c     stacks, switched by hand
 *   sched.c     who runs next, virtual time, park and wake; the hook before each atomic step of the engine
 *   trace.c     the last events, the hash of all of them, what is printed at a violation
 *   platform.c  struct sublet__platform_ops: memory, frames, helpers; injected faults
 *   mm.c        struct sublet__mm_ops: pages as a kernel has them, loads and stores, children of fork
 *   device.c    devices: slow, hung, dying; they reach memory only by their own translation
 *   check.c     what is compared at a step; check_whole.c: and once in a while
 *   cover.c     which transitions of which state machine were seen
 *   work.c       what the threads of this world do: map, fork (work_memory.c), pin, claim, keep translations
 *                (work_share.c), submit (work_device.c)
 *   world.c     a world is made, run, brought to its end
 *
 * Everything runs on one thread of the system, so nothing here is atomic; a fiber is left only at a step (sim_step, and
 * the engine's own by sublet__step), or where it waits.
 */
#ifndef SUBLET_SIM_SIM_H
#define SUBLET_SIM_SIM_H

#include "fiber.h"

#include "core/device.h"

#include <sublet/notifier.h>
#include <sublet/pin.h>

#include <errno.h>

#define SIM_FRAMES_MAX   1024u
#define SIM_PAGES_MAX    1536u
#define SIM_MMS_MAX      2u
#define SIM_WORDS        2u /* of 64 bits, for each frame */
#define SIM_FIBERS_MAX   24u
#define SIM_ACTORS_MAX   10u
#define SIM_REGIONS_MAX  20u
#define SIM_CLAIMS_MAX   6u
#define SIM_DEVICES_MAX  2u
#define SIM_BOS_MAX      6u
#define SIM_DRIVERS_MAX  4u
#define SIM_DRIVER_PAGES 48u
#define SIM_PINS_MAX     4u /* that one actor holds at once */
#define SIM_TLS_BYTES    64u
#define SIM_PIN_PAGES    24u
#define SIM_CLAIM_SLOTS  64u          /* the engine gives out the lowest that is free */
#define SIM_NOTIFIERS    64u          /* as well, and there are few */
#define SIM_LINEAR       (1ull << 45) /* the linear map; nobody looks there */

/* ---- threads ---- */

enum sim_wait {
	WAIT_NONE = 0, /* ready, or running */
	WAIT_WORD,     /* parked */
	WAIT_TIME,
	WAIT_PAGE, /* on a blocked page */
	WAIT_REST, /* between two operations, until the checks of a standing world are done */
	WAIT_DONE,
};

struct sim_fiber {
	struct fiber_context context;
	struct sim *sim;
	char name[16];
	uint32_t index;
	enum sim_wait wait;
	const void *word;
	uint32_t expected;
	uint32_t page; /* mm << 16 | vpn */
	uint64_t until_ns;
	uint64_t since_step; /* when it began to wait */
	bool is_daemon;      /* the end of the world need not wait for it */
	uint32_t priority;
	uint32_t depth;        /* engine calls that it is in */
	uint32_t blocked_runs; /* runs between block and wake (L1) */
	void (*main)(struct sim_fiber *self, void *arg);
	void *arg;
	const char *op; /* what it does */
	uint64_t op_since_ns;
	uint64_t op_since_step;
	char tls[SIM_TLS_BYTES]; /* the engine's thread-local variables, while it does not run */
};

/* ---- trace ---- */

struct sim_event {
	uint64_t step;
	uint64_t now_ns;
	const char *fiber;
	const char *what; /* "verb: %u ..." of a, b, c, d in this order */
	uint64_t a, b, c, d;
};

#define SIM_TRACE_EVENTS 8192u

/* ---- coverage ---- */

#define COVER_STATES 10u

enum cover_machine {
	COVER_FRAME = 0,
	COVER_REF,
	COVER_ENTRY,
	COVER_PAGE,
	COVER_CLAIM,
	COVER_PIN,
	COVER_NOTIFIER,
	COVER_DEVICE,
	COVER_BO,
	COVER_BOUND,
	COVER_JOB,
	COVER_MACHINES
};

#define COVER_EVENTS_MAX 112u

enum sim_device_state { DEVICE_NONE = 0, DEVICE_WORKS, DEVICE_RESETS, DEVICE_DEAD, DEVICE_CLOSES };

struct sim_cover {
	uint64_t transition[COVER_MACHINES][COVER_STATES][COVER_STATES];
	uint64_t event[COVER_EVENTS_MAX];
};

/* ---- memory ---- */

enum sim_kind { KIND_NONE = 0, KIND_SHARED, KIND_PRIVATE, KIND_COPIED, KIND_PLAIN };

/* A page as the kernel has it, and what a program that reads it has to see. */
struct sim_page {
	uint8_t kind;
	bool locked;       /* by the program; the engine may lock more */
	bool is_protected; /* by the program: it must stay */
	bool is_seen;      /* mapped since the engine was asked to note something of it */
	bool tracked;
	bool dirty;
	bool blocked;
	bool remapped; /* and still blocked */
	bool block_failed;
	bool uninherited;
	bool is_live; /* the program may touch it, and reads value[] */
	uint32_t pfn;
	uint64_t copy[SIM_WORDS];  /* COPIED, PLAIN */
	uint64_t value[SIM_WORDS]; /* the shadow: what was stored last, by whomever */
};

/* A child of fork: what it shares, and what it saw. */
struct sim_child {
	bool is_alive;
	uint32_t frame[SIM_PAGES_MAX]; /* pfn + 1 */
	uint64_t value[SIM_PAGES_MAX][SIM_WORDS];
};

struct sim_mm {
	struct sim *sim;
	uint32_t index;
	uint32_t pages;
	uint64_t base;
	struct sublet_mm *mm;
	uint32_t mapping_limit; /* of the kernel; 0: none */
	bool is_forking;
	bool is_restoring;
	struct sim_child child[2];
	struct sim_page page[SIM_PAGES_MAX];
};

/* A mapping that the program made. */
struct sim_region {
	uint32_t pages; /* 0: not in use */
	uint32_t mm;
	uint32_t vpn;
	bool is_discardable;
	bool is_unlocked; /* no page of it is live */
	bool may_be_plain;
	bool is_noted;       /* being locked or protected */
	bool is_exclusive;   /* somebody maps, unmaps, decommits, locks */
	uint32_t users;      /* others that rely on it as it is */
	uint32_t pins;       /* that returned, and are held */
	uint32_t generation; /* of the slot */
};

#define OWNER_PAGE  (1u << 31)
#define OWNER_CLAIM (1u << 30)

/* ---- claims, pins, notifiers ---- */

struct sim_claim {
	struct sublet_claim claim;
	bool is_busy;    /* somebody claims or releases it */
	bool is_written; /* by a device */
	uint32_t first_pfn;
	uint32_t frames; /* 0: not held */
};

struct sim_pin {
	struct sublet_pin pin;
	bool is_held;
	bool is_long;
	bool writes;
	uint32_t region;
	uint32_t vpn;
	uint32_t pages;
	uint32_t pfn[SIM_PIN_PAGES];
	uint64_t release_ns;
};

/* Somebody with a translation of its own, kept right by a notifier. */
struct sim_driver {
	struct sim *sim;
	uint32_t index;
	bool is_used; /* its slot */
	bool is_busy; /* an actor works with it */
	bool is_registered;
	bool removes_itself; /* at its next callback */
	bool is_leaving;     /* just now */
	bool is_locked;
	struct sublet_notifier notifier;
	uint32_t mm;
	uint32_t vpn;
	uint32_t pages;
	uint32_t frame[SIM_DRIVER_PAGES]; /* pfn + 1 */
};

/* ---- devices ---- */

#define SIM_JOBS_MAX 4u

struct sim_job {
	struct sublet_device_work work;
	uint32_t frame[SIM_PIN_PAGES]; /* of a range */
};

enum sim_ill { ILL_NOT = 0, ILL_SLOW, ILL_HANG, ILL_ERROR, ILL_DIE, ILLS };

struct sim_device {
	struct sim *sim;
	uint32_t index;
	struct sublet_device *device; /* NULL: not open */
	bool has_iopt;
	bool is_busy; /* opened or closed just now */
	bool is_closed;
	bool has_died;    /* by itself */
	bool unstoppable; /* reset answers -EINPROGRESS */
	bool reset_fails;
	uint32_t users;   /* fibers in a call of it, fences and buffers that are kept */
	uint32_t in_call; /* of those that come one at a time */
	uint32_t in_reset;
	uint32_t generation; /* raised by a reset: what is in work is forgotten */
	uint32_t queued;
	uint32_t signal; /* parked on by its engine */
	struct sim_job queue[SIM_JOBS_MAX];
	struct sim_job job; /* that its engine is at, where is_working */
	bool is_working;
	bool has_engine;
	uint32_t tlb_entries;
	uint64_t *tlb; /* [aperture / 4 KiB]: offset + 1 */
	struct {
		bool is_attached;
		uint32_t frame[SIM_PIN_PAGES]; /* of each page at the time */
	} slot[SIM_BOS_MAX];
	/* as of the last look, for coverage and checks */
	uint8_t state; /* enum sim_device_state */
	uint8_t bo_state[SIM_BOS_MAX];
	uint8_t bo_bound[SIM_BOS_MAX];
	uint8_t job_state[16];
};

struct sim_bo {
	struct sublet_bo bo;
	bool is_live;
	bool is_busy;
	uint32_t users; /* jobs submitted and not seen to be done */
	uint32_t device;
	uint32_t region; /* of movable memory */
	uint32_t generation;
	uint32_t claim; /* SIM_CLAIMS_MAX: none */
	uint32_t vpn;
	uint32_t pages;
	uint32_t flags;
	uint32_t pfn[SIM_PIN_PAGES]; /* pinned */
};

/* ---- the world ---- */

enum sim_call {
	CALL_MAP = 0,
	CALL_MAP_PLAIN,
	CALL_UNMAP,
	CALL_TRACK,
	CALL_BLOCK,
	CALL_REMAP,
	CALL_PRIVATIZE,
	CALL_RESTORE,
	CALL_INHERIT,
	CALL_RESERVE,
	CALL_SUBMIT,
	CALL_ATTACH,
	CALLS,
};

struct sim_options {
	uint64_t seed;
	uint64_t steps;
	uint64_t check_every; /* steps between full checks of a moving world */
	uint32_t trace;       /* events printed at a violation */
	bool log;             /* print each event as it comes */
};

struct sim {
	struct sim_options options;
	uint64_t random;
	struct sim_cover *cover;

	/* of this world, drawn from the seed */
	uint32_t frame_shift;
	uint32_t area_frames;
	uint32_t normal_frames;
	uint32_t frames;
	uint32_t run_pages_max;
	uint32_t mms;
	uint32_t actors;
	uint32_t workers;
	bool reads_wait;
	bool has_track;
	bool has_forks;
	bool is_crowded;
	uint32_t weight[48]; /* of each operation */
	uint32_t weight_sum;
	uint32_t fault_one_in[CALLS]; /* 0: never */
	uint64_t fault_for_good_from[CALLS];
	uint64_t fault_for_good_until[CALLS];
	uint32_t jump_one_in;
	uint32_t stall_one_in;

	/* scheduling */
	uint64_t now_ns;
	uint64_t step_ns;
	uint64_t steps;
	uint64_t hash;
	uint32_t run_mean; /* 0: by priority */
	uint32_t run_left;
	struct sim_fiber *current;
	uint32_t fibers;
	uint64_t ready; /* a bit a fiber */
	uint64_t timer_ns;
	bool rest_wanted;
	bool is_long; /* somebody is in the engine for long */
	bool is_ending;
	bool is_over;  /* daemons go home */
	bool is_quiet; /* the engine is asked by a check: no steps, no faults */
	bool no_faults;
	bool map_stuck; /* a map failed while the kernel refused to unmap */
	uint64_t unmaps_refused;
	uint64_t faults;
	uint64_t rest_at; /* step of the next rest */
	uint64_t check_at;
	struct sim_fiber fiber[SIM_FIBERS_MAX];
	struct fiber_context root;

	/* as of the last look, for coverage */
	uint8_t claim_state[SIM_CLAIM_SLOTS];
	uint8_t notifier_state[SIM_MMS_MAX][SIM_NOTIFIERS];

	/* what the step that is under way may change */
	uint32_t touch;
	uint32_t touch_at;
	const volatile void *touch_word;
	uint32_t touch_old;

	struct sim_event event[SIM_TRACE_EVENTS];
	uint64_t events;

	/* memory */
	struct sublet__platform platform;
	struct sublet_arena *arena;
	int64_t reserved_bytes;
	bool helpers_busy;
	uint64_t word[SIM_FRAMES_MAX][SIM_WORDS];
	uint32_t owner[SIM_FRAMES_MAX]; /* OWNER_PAGE | mm << 16 | vpn, OWNER_CLAIM | slot, 0: none */
	uint8_t held[SIM_FRAMES_MAX];   /* pins that returned */
	uint8_t child[SIM_FRAMES_MAX];  /* children that share it */
	uint8_t state[SIM_FRAMES_MAX];  /* of the folio that it is part of, as the engine said last */
	struct sim_mm mm[SIM_MMS_MAX];

	/* what the actors have */
	struct sim_region region[SIM_REGIONS_MAX];
	struct sim_claim claim[SIM_CLAIMS_MAX];
	struct sim_driver driver[SIM_DRIVERS_MAX];
	struct sim_device device[SIM_DEVICES_MAX];
	struct sim_bo bo[SIM_BOS_MAX * SIM_DEVICES_MAX];
	struct sim_actor {
		struct sim_pin pin[SIM_PINS_MAX];
		struct {
			struct sublet_fence fence;
			uint32_t device;
			bool is_held;
		} fence[2];
	} actor[SIM_ACTORS_MAX];
};

/* ---- sched.c ---- */
void sched_reset(struct sim *s);
struct sim *sim_running(void);
struct sim_fiber *sched_spawn(struct sim *s, const char *name, uint32_t number, bool is_daemon,
			      void (*main)(struct sim_fiber *self, void *arg), void *arg);
/* Run until all are at rest (true), or all that are not daemons are done. From main() only. */
bool sched_run(struct sim *s);
/* The world stood still, and was checked: on. */
void sched_resume(struct sim *s);
/* A step of the simulated program or platform itself. */
void sim_step(struct sim *s);
void sim_sleep(struct sim *s, uint64_t ns);
/* Sleep while *word == expected. */
void sim_park(struct sim *s, const void *word, uint32_t expected, uint64_t timeout_ns);
void sim_unpark(struct sim *s, const void *word, uint32_t count);
void sim_page_wait(struct sim *s, uint32_t mm, uint32_t vpn);
void sim_page_wake(struct sim *s, uint32_t mm, uint32_t vpn, uint32_t pages);
/* Between two operations: where an actor stands still when that is wanted. */
void sim_rest(struct sim *s);
bool sim_rest_is_due(struct sim *s);
void sched_free(struct sim *s);

uint64_t sim_random(struct sim *s);
/* A number below n, n > 0. */
uint32_t sim_below(struct sim *s, uint32_t n);
static inline bool sim_one_in(struct sim *s, uint32_t n)
{
	return n && sim_below(s, n) == 0;
}

/* ---- trace.c ---- */
void sim_trace(struct sim *s, const char *what, uint64_t a, uint64_t b, uint64_t c, uint64_t d);
void sim_hash(struct sim *s, uint64_t value);
/* What a fiber does, without the numbers. */
const char *sim_op_name(const struct sim_fiber *f);
__attribute__((noreturn, format(printf, 2, 3))) void sim_violation(struct sim *s, const char *format, ...);

/* ---- platform.c ---- */
void platform_init(struct sim *s);
/* Whether this call fails: 0 or -errno. */
int sim_fault(struct sim *s, enum sim_call call);

/* ---- mm.c ---- */
extern const struct sublet__mm_ops sim_mm_ops;
void mm_init(struct sim *s, uint32_t index, uint32_t pages, uint32_t mapping_limit);
/* The program's own accesses. */
void mm_store(struct sim *s, uint32_t mm, uint32_t vpn, uint32_t word, uint64_t value);
void mm_load_check(struct sim *s, uint32_t mm, uint32_t vpn, uint32_t word);
/* What a page reads as now. */
uint64_t mm_peek(const struct sim *s, const struct sim_page *page, uint32_t word);
void mm_fork(struct sim_mm *mm, struct sim_child *child);
void mm_child_check(struct sim_mm *mm, const struct sim_child *child);
void mm_child_exit(struct sim_mm *mm, struct sim_child *child);
uint32_t mm_mappings(const struct sim_mm *mm);
static inline void *mm_addr(const struct sim *s, uint32_t mm, uint32_t vpn)
{
	return (void *)(uintptr_t)(s->mm[mm].base + ((uint64_t)vpn << s->frame_shift));
}

/* ---- device.c ---- */
int device_open(struct sim *s, struct sim_device *d);
void device_close(struct sim *s, struct sim_device *d);
/* Whether a job, begun or queued, may access the pages. */
bool device_uses(const struct sim *s, uint32_t mm, uint32_t vpn, uint32_t pages);
/* No device has a translation to frames [pfn, pfn + frames) of pages [vpn, ...) that are about to change (G4). */
void device_frames_check(struct sim *s, uint32_t mm, uint32_t vpn, uint32_t pages, const char *what);

/* ---- check.c ---- */
void check_reset(struct sim *s);
/* Remember what the next step of the current fiber may change; look at what it changed. */
void check_note(struct sim *s, const volatile void *at);
void check_touched(struct sim *s);
/* What locks guard, while nobody holds one; is_quiet is set. */
void check_guarded(struct sim *s);

/* ---- check_whole.c ---- */
/* All that holds at every step. */
void check_moving(struct sim *s);
/* All there is, with nobody in the engine. */
void check_standing(struct sim *s);
/* When everything was given back. */
void check_empty(struct sim *s);

/* ---- cover.c ---- */
/* One that the docs do not have is a violation. */
void cover_transition(struct sim *s, enum cover_machine machine, uint32_t from, uint32_t to);
void cover_event(struct sim *s, const char *name);
void cover_merge(struct sim_cover *to, const struct sim_cover *from);
/* Print what was reached; returns how many of the transitions in the docs were not. */
uint32_t cover_print(const struct sim_cover *cover, bool all);
bool cover_is_known(enum cover_machine machine, uint32_t from, uint32_t to);
const char *cover_state_name(enum cover_machine machine, uint32_t state);

/* ---- work.c, work_memory.c, work_share.c, work_device.c ---- */
enum sim_op {
	OP_READ = 0,
	OP_WRITE,
	OP_MAP,
	OP_UNMAP,
	OP_RESERVE,
	OP_DECOMMIT,
	OP_COMMIT,
	OP_LOCK,
	OP_CHAOS,
	OP_NOTE_LOCKED,
	OP_NOTE_PROTECTED,
	OP_FORK,
	OP_CHILD_EXIT,
	OP_RESTORE,
	OP_PIN,
	OP_PIN_LONG,
	OP_PIN_WRITE,
	OP_UNPIN,
	OP_PIN_LIMIT,
	OP_CLAIM,
	OP_RELEASE,
	OP_DRIVER_ADD,
	OP_DRIVER_READ,
	OP_DRIVER_REMOVE,
	OP_ASK,
	OP_DEVICE,
	OP_BO,
	OP_BO_DESTROY,
	OP_SUBMIT,
	OP_SUBMIT_RANGE,
	OP_FENCE,
	OP_COLLAPSE,
	OP_SLEEP,
	OPS,
};

void work_plan(struct sim *s);
void work_actor(struct sim_fiber *self, void *arg);
void work_zeroer(struct sim_fiber *self, void *arg);
/* Give everything back, alone. */
void work_close(struct sim_fiber *self, void *arg);

/* A call of the engine begins, ends: for the trace, and for who waits until nobody is in the engine. */
void sim_enter(struct sim *s, const char *what, uint64_t a, uint64_t b, uint64_t c);
int sim_leave(struct sim *s, int err);
/* An answer, counted; `call` and the answer make the name of the event. */
void sim_answer(struct sim *s, const char *call, int err);
/* A region in use that nobody has for himself, and another user of it; NULL: there is none at once. */
struct sim_region *region_get(struct sim *s, bool to_access);
void region_put(struct sim_region *r);
/* Part of a region. */
struct sim_range {
	uint32_t first; /* page of the region */
	uint32_t pages;
};
struct sim_range range_of(struct sim *s, const struct sim_region *r, uint32_t most);
bool range_is_live(const struct sim *s, const struct sim_region *r, struct sim_range range);

void work_memory(struct sim *s, enum sim_op op);
void work_memory_close(struct sim *s);
void work_fork(struct sim *s, struct sim_actor *a, enum sim_op op);
void work_fork_close(struct sim *s);
void work_pin(struct sim *s, struct sim_actor *a, enum sim_op op);
void work_pin_end(struct sim *s, struct sim_actor *a);
void work_share(struct sim *s, enum sim_op op);
void work_share_close(struct sim *s);
void work_device(struct sim *s, struct sim_actor *a, enum sim_op op);
void work_device_end(struct sim *s, struct sim_actor *a);
void work_device_close(struct sim *s);

/* ---- world.c ---- */
struct sim_result {
	uint64_t steps;
	uint64_t hash;
	uint64_t faults;
	uint64_t rests;
	uint64_t virtual_ns;
};

/* Make the world of a seed, run it, end it; at a violation the process ends with status 1. */
void sim_world(const struct sim_options *options, struct sim_cover *cover, struct sim_result *result);

#endif
