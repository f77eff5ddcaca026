/* SPDX-License-Identifier: MIT */
/* Each public call, or a few that belong together, as the fault loop makes them. */
#ifndef TESTS_FAULT_SCENARIOS_H
#define TESTS_FAULT_SCENARIOS_H

#include "inject.h"
#include "world.h"

struct scenario {
	const char *name;
	uint32_t flags; /* enum scenario_flags */
	/* Make what the call needs; no fault comes here. May be NULL. */
	void (*before)(struct world *w);
	/* The call. 0 or the first -errno; after an error nothing that it made may be left. */
	int (*call)(struct world *w);
	/* Look at what it made, and undo it: only after success. May be NULL. */
	void (*after)(struct world *w);
	/* Undo `before`, always. May be NULL. */
	void (*finish)(struct world *w);
};

enum scenario_flags {
	EACH_WAY = 1u << 0,  /* with every way of moving, and a thread that writes */
	ALL_CALLS = 1u << 1, /* calls of the library's own threads count too */
	NO_WORLD = 1u << 2,  /* it makes its own arena */
	MAY_ABORT =
		1u
		<< 3, /* what cannot be undone ends the process, with one of the messages, if it fails for good */
	MAY_SUCCEED = 1u << 4, /* where a call fails there is another way, or nothing to be undone */
	MAY_KEEP =
		1u << 5, /* a failure that stays: addresses that the kernel does not take back stay taken */
	MAY_HOLD =
		1u
		<< 6, /* a claim whose answer got lost stays held until its driver's process has ended (G11) */
	MAY_DIE =
		1u
		<< 7, /* a failure that stays: the device dies, and holds what it may still write to (G11) */
	MAY_LOSE = 1u << 9, /* maps over what is mapped: also as a kernel that loses it when it fails */
	WARMS_UP = 1u << 8, /* makes as many threads as any other */
	RESTORES =
		1u
		<< 10, /* the thread that undoes a fork is at work when the engine is looked at: verified until it is not */
};

extern const struct scenario memory_scenarios[], device_scenarios[], control_scenarios[];

#endif
