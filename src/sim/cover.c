/* SPDX-License-Identifier: MIT */
/*
 * Which transitions were seen, of those that the docs draw; and which answers and events.
 *
 * The tables say what may happen, as the pictures and tables of the headers that they name do. Another transition is a
 * violation: either those are wrong, or the engine is. A folio, an entry, a reference count and a record of a pin are
 * looked at after each step; what a lock guards when it is dropped, so that what is passed through meanwhile is not seen.
 */
#include "sim.h"

#include <stdio.h>
#include <string.h>

struct machine {
	const char *name;
	const char *where;
	const char *state[COVER_STATES];
	uint16_t to[COVER_STATES]; /* a bit for each state that may follow */
};

#define TO(x) (uint16_t)(1u << (x))

enum entry {
	ENTRY_NONE = 0,
	ENTRY_PRESENT,
	ENTRY_HOLE,
	ENTRY_GONE,
	ENTRY_DROPPED,
	ENTRY_PLAIN,
	ENTRY_PLAIN_HOLE,
	ENTRY_RESERVED,
};

enum ref { REF_IDLE = 0, REF_HELD, REF_SHUT };
enum claim { CLAIM_FREE = 0, CLAIM_CHOOSING, CLAIM_HELD, CLAIM_GOING };
enum record { RECORD_FREE = 0, RECORD_WRITING, RECORD_HELD };
enum notifier { NOTIFIER_FREE = 0, NOTIFIER_IDLE, NOTIFIER_MARKED, NOTIFIER_LEAVING };
enum bound { BOUND_NOT = 0, BOUND_GAPS, BOUND_WHOLE, BOUND_IN_USE, BOUND_LOST };

static const struct machine machines[COVER_MACHINES] = {
	[COVER_FRAME] = {
		"folio", "core/frame.h",
		{ "FREE", "CACHED", "BUSY", "MOVABLE", "DISCARDABLE", "PARKED", "ISOLATED", "CLAIMED" },
		{
			[FRAME_FREE] = TO(FRAME_BUSY) | TO(FRAME_ISOLATED),
			[FRAME_CACHED] = TO(FRAME_BUSY) | TO(FRAME_FREE) | TO(FRAME_ISOLATED),
			[FRAME_BUSY] = TO(FRAME_MOVABLE) | TO(FRAME_FREE) | TO(FRAME_CACHED) | TO(FRAME_ISOLATED),
			[FRAME_MOVABLE] = TO(FRAME_DISCARDABLE) | TO(FRAME_BUSY) | TO(FRAME_PARKED) |
					  TO(FRAME_FREE) | TO(FRAME_CACHED) | TO(FRAME_ISOLATED),
			[FRAME_DISCARDABLE] = TO(FRAME_MOVABLE) | TO(FRAME_BUSY),
			[FRAME_PARKED] = TO(FRAME_FREE) | TO(FRAME_ISOLATED),
			[FRAME_ISOLATED] = TO(FRAME_CLAIMED) | TO(FRAME_FREE),
			[FRAME_CLAIMED] = TO(FRAME_FREE),
		},
	},
	[COVER_REF] = {
		"references", "core/frame.h",
		{ "none", "pinned", "FROZEN" },
		{
			[REF_IDLE] = TO(REF_HELD) | TO(REF_SHUT),
			[REF_HELD] = TO(REF_IDLE),
			[REF_SHUT] = TO(REF_IDLE),
		},
	},
	[COVER_CLAIM] = {
		"claim", "core/engine.h",
		{ "free", "being taken", "held", "going" },
		{
			[CLAIM_FREE] = TO(CLAIM_CHOOSING),
			[CLAIM_CHOOSING] = TO(CLAIM_HELD) | TO(CLAIM_FREE),
			[CLAIM_HELD] = TO(CLAIM_GOING),
			[CLAIM_GOING] = TO(CLAIM_FREE),
		},
	},
	[COVER_PIN] = {
		"listed pin", "core/engine.h",
		{ "FREE", "WRITING", "HELD" },
		{
			[RECORD_FREE] = TO(RECORD_WRITING),
			[RECORD_WRITING] = TO(RECORD_HELD),
			[RECORD_HELD] = TO(RECORD_FREE),
		},
	},
	[COVER_NOTIFIER] = {
		"notifier", "core/notifier.h",
		{ "free", "registered", "marked", "leaving" },
		{
			[NOTIFIER_FREE] = TO(NOTIFIER_IDLE) | TO(NOTIFIER_MARKED),
			[NOTIFIER_IDLE] = TO(NOTIFIER_MARKED) | TO(NOTIFIER_FREE),
			[NOTIFIER_MARKED] = TO(NOTIFIER_IDLE) | TO(NOTIFIER_FREE) | TO(NOTIFIER_LEAVING),
			[NOTIFIER_LEAVING] = TO(NOTIFIER_FREE),
		},
	},
	[COVER_DEVICE] = {
		"device", "core/device.h",
		{ "not open", "working", "resetting", "dead", "closing" },
		{
			[DEVICE_NONE] = TO(DEVICE_WORKS),
			[DEVICE_WORKS] = TO(DEVICE_RESETS) | TO(DEVICE_DEAD) | TO(DEVICE_CLOSES),
			[DEVICE_RESETS] = TO(DEVICE_WORKS) | TO(DEVICE_DEAD),
			[DEVICE_DEAD] = TO(DEVICE_CLOSES),
			[DEVICE_CLOSES] = TO(DEVICE_NONE),
		},
	},
	[COVER_BO] = {
		"buffer", "core/device.h",
		{ "FREE", "MAKING", "LIVE", "GOING" },
		{
			[BO_FREE] = TO(BO_MAKING),
			[BO_MAKING] = TO(BO_LIVE) | TO(BO_FREE),
			[BO_LIVE] = TO(BO_GOING),
			[BO_GOING] = TO(BO_FREE),
		},
	},
	[COVER_BOUND] = {
		"translation", "core/device.h",
		{ "not bound", "bound, gaps", "bound", "in use", "lost" },
		{
			[BOUND_NOT] = TO(BOUND_GAPS) | TO(BOUND_WHOLE),
			[BOUND_GAPS] = TO(BOUND_WHOLE) | TO(BOUND_NOT),
			[BOUND_WHOLE] = TO(BOUND_GAPS) | TO(BOUND_NOT) | TO(BOUND_IN_USE),
			[BOUND_IN_USE] = TO(BOUND_WHOLE) | TO(BOUND_LOST),
			[BOUND_LOST] = TO(BOUND_WHOLE),
		},
	},
	[COVER_JOB] = {
		"job", "core/device.h",
		{ "FREE", "MAKING", "RUNNING", "LOST", "ENDING", "DONE" },
		{
			[JOB_FREE] = TO(JOB_MAKING) | TO(JOB_RUNNING),
			[JOB_MAKING] = TO(JOB_RUNNING) | TO(JOB_FREE),
			[JOB_RUNNING] = TO(JOB_ENDING) | TO(JOB_LOST) | TO(JOB_DONE),
			[JOB_LOST] = TO(JOB_ENDING) | TO(JOB_DONE) | TO(JOB_FREE),
			[JOB_ENDING] = TO(JOB_DONE) | TO(JOB_FREE),
			[JOB_DONE] = TO(JOB_FREE),
		},
	},
	[COVER_PAGE] = {
		"kernel's page", "core/platform.h",
		{ "none", "shared", "private", "copied", "plain" },
		{
			[KIND_NONE] = TO(KIND_SHARED) | TO(KIND_PRIVATE) | TO(KIND_PLAIN),
			[KIND_SHARED] = TO(KIND_SHARED) | TO(KIND_NONE) | TO(KIND_PRIVATE),
			[KIND_PRIVATE] = TO(KIND_COPIED) | TO(KIND_SHARED) | TO(KIND_NONE),
			[KIND_COPIED] = TO(KIND_SHARED) | TO(KIND_NONE),
			[KIND_PLAIN] = TO(KIND_NONE),
		},
	},
	[COVER_ENTRY] = {
		"page-table entry", "core/engine.h",
		{ "not mapped", "present", "hole", "gone", "dropped", "plain", "plain hole", "reserved" },
		{
			[ENTRY_NONE] = TO(ENTRY_PRESENT) | TO(ENTRY_PLAIN) | TO(ENTRY_RESERVED),
			[ENTRY_PRESENT] = TO(ENTRY_NONE) | TO(ENTRY_HOLE) | TO(ENTRY_DROPPED),
			[ENTRY_HOLE] = TO(ENTRY_PRESENT) | TO(ENTRY_GONE) | TO(ENTRY_NONE),
			[ENTRY_GONE] = TO(ENTRY_PRESENT) | TO(ENTRY_PLAIN) | TO(ENTRY_NONE),
			[ENTRY_DROPPED] = TO(ENTRY_PRESENT) | TO(ENTRY_NONE),
			[ENTRY_PLAIN] = TO(ENTRY_PLAIN_HOLE) | TO(ENTRY_NONE),
			[ENTRY_PLAIN_HOLE] = TO(ENTRY_PLAIN) | TO(ENTRY_GONE) | TO(ENTRY_NONE),
			[ENTRY_RESERVED] = TO(ENTRY_PRESENT) | TO(ENTRY_GONE) | TO(ENTRY_PLAIN) | TO(ENTRY_NONE),
		},
	},
};

static const char *const events[COVER_EVENTS_MAX] = {
	"claim: 0",
	"claim: 0, more than one window",
	"claim: 0, moved",
	"claim: 0, dropped",
	"claim: 0, waited",
	"claim: -EBUSY",
	"claim: -ENOMEM",
	"claim: -E2BIG",
	"claim: blocker pin",
	"claim: blocker claim",
	"claim: blocker child",
	"claim: blocker protected",
	"claim: blocker mappings",
	"claim: blocker noroom",
	"claim: blocker platform",
	"claim: blocker notifier",
	"claim: blocker call",
	"release: 0",
	"release: -EBUSY",
	"pin: 0",
	"pin: -EAGAIN",
	"pin: -EBUSY",
	"pin: -EFAULT",
	"long-term pin: 0",
	"long-term pin: -ENOMEM",
	"long-term pin: -EBUSY",
	"long-term pin: -EAGAIN",
	"long-term pin: -EFAULT",
	"map: 0",
	"map: -ENOMEM",
	"unmap: 0",
	"unmap: -EBUSY",
	"unmap: -ENOMEM",
	"commit: 0",
	"commit: -ENOMEM",
	"lock: intact",
	"lock: discarded",
	"lock: -ENOMEM",
	"unlock: unlocked",
	"unlock: kept",
	"chaos: moved",
	"chaos: refused",
	"fork: 0",
	"fork: pinned memory left out",
	"fork: -ENOMEM",
	"restore: 0",
	"restore: -EAGAIN",
	"submit: 0",
	"submit: -EFAULT",
	"submit: -EBUSY",
	"submit: -ENOSPC",
	"submit: -ETIMEDOUT",
	"submit: -ENODEV",
	"submit: -EIO",
	"fence: 0",
	"fence: -EIO",
	"fence: -ETIMEDOUT",
	"fence: -ENODEV",
	"fence: -ECANCELED",
	"device: job done",
	"device: slow",
	"device: hangs",
	"device: job fails",
	"device: dies",
	"device: reset",
	"device: reset fails",
	"device: cannot be stopped",
	"notifier: read, put in",
	"notifier: read, retry",
	"notifier: read: -EAGAIN",
	"notifier: read: -ETIMEDOUT",
	"notifier: told",
	"notifier: declines",
	"notifier: removed in its callback",
	"notifier: removed",
	"fault: clock jump",
	"fault: kernel mappings exhausted",
	"fault: map, once",
	"fault: map, for good",
	"fault: map_plain, once",
	"fault: unmap, once",
	"fault: unmap, for good",
	"fault: track, once",
	"fault: block, once",
	"fault: block, for good",
	"fault: remap, once",
	"fault: remap, for good",
	"fault: privatize, once",
	"fault: restore, once",
	"fault: inherit, once",
	"fault: reserve, once",
	"fault: submit, once",
	"fault: attach, once",
	"fault: a thread stops while it holds a pin",
	"collapse",
};

bool cover_is_known(enum cover_machine machine, uint32_t from, uint32_t to)
{
	return machines[machine].to[from] >> to & 1;
}

const char *cover_state_name(enum cover_machine machine, uint32_t state)
{
	return machines[machine].state[state];
}

void cover_transition(struct sim *s, enum cover_machine machine, uint32_t from, uint32_t to)
{
	const struct machine *m = &machines[machine];

	if (!cover_is_known(machine, from, to))
		sim_violation(s, "%s: %s -> %s, which is not in %s", m->name, m->state[from], m->state[to],
			      m->where);
	s->cover->transition[machine][from][to]++;
}

void cover_event(struct sim *s, const char *name)
{
	for (uint32_t i = 0; i < COVER_EVENTS_MAX && events[i]; i++)
		if (events[i] == name || !strcmp(events[i], name)) {
			s->cover->event[i]++;
			return;
		}
}

void cover_merge(struct sim_cover *to, const struct sim_cover *from)
{
	for (uint32_t i = 0; i < COVER_EVENTS_MAX; i++)
		to->event[i] += from->event[i];
	for (uint32_t m = 0; m < COVER_MACHINES; m++)
		for (uint32_t i = 0; i < COVER_STATES * COVER_STATES; i++)
			to->transition[m][i / COVER_STATES][i % COVER_STATES] +=
				from->transition[m][i / COVER_STATES][i % COVER_STATES];
}

/* Adds to *known how many transitions the machine has; returns how many were never seen. */
static uint32_t machine_print(const struct sim_cover *cover, enum cover_machine m, bool all, uint32_t *known)
{
	const struct machine *machine = &machines[m];
	uint32_t missing = 0;

	for (uint32_t from = 0; from < COVER_STATES; from++)
		for (uint32_t to = 0; to < COVER_STATES; to++) {
			uint64_t count = cover->transition[m][from][to];
			if (!cover_is_known(m, from, to))
				continue;
			++*known;
			missing += !count;
			if (all || !count)
				printf("  %-16s %-12s -> %-12s %14llu%s\n", machine->name,
				       machine->state[from], machine->state[to], (unsigned long long)count,
				       count ? "" : "  never");
		}
	return missing;
}

uint32_t cover_print(const struct sim_cover *cover, bool all)
{
	uint32_t missing = 0, known = 0, unseen = 0, count = 0;

	for (uint32_t m = 0; m < COVER_MACHINES; m++)
		missing += machine_print(cover, (enum cover_machine)m, all, &known);
	printf("  %u of %u transitions of %u state machines were reached\n", known - missing, known,
	       (uint32_t)COVER_MACHINES);
	for (; count < COVER_EVENTS_MAX && events[count]; count++) {
		unseen += !cover->event[count];
		if (all || !cover->event[count])
			printf("  %-48s %14llu%s\n", events[count], (unsigned long long)cover->event[count],
			       cover->event[count] ? "" : "  never");
	}
	printf("  %u of %u answers and events were seen\n", count - unseen, count);
	return missing;
}
