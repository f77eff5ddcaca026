/* SPDX-License-Identifier: MIT */
/*
 * What the threads of a simulated world do, one operation after the other, each world in proportions of its own: some do
 * without forks, others without devices, so that now and then one thing is done much more than it ever would be.
 *
 * They keep to the contracts of the public headers, where those say what a caller has to keep apart: a region of
 * addresses is used by many at once, or by one who takes it away. What they may not know, they try.
 */
#include "sim.h"

#include <stdio.h>
#include <string.h>

#define HOT_STEPS 2000u

static const uint8_t weights[OPS] = {
	[OP_READ] = 10,       [OP_WRITE] = 14,         [OP_MAP] = 8,
	[OP_UNMAP] = 4,       [OP_RESERVE] = 1,        [OP_DECOMMIT] = 4,
	[OP_COMMIT] = 5,      [OP_LOCK] = 5,           [OP_CHAOS] = 8,
	[OP_NOTE_LOCKED] = 1, [OP_NOTE_PROTECTED] = 1, [OP_FORK] = 2,
	[OP_CHILD_EXIT] = 3,  [OP_RESTORE] = 3,        [OP_PIN] = 9,
	[OP_PIN_LONG] = 4,    [OP_PIN_WRITE] = 8,      [OP_UNPIN] = 11,
	[OP_PIN_LIMIT] = 1,   [OP_CLAIM] = 6,          [OP_RELEASE] = 5,
	[OP_DRIVER_ADD] = 3,  [OP_DRIVER_READ] = 6,    [OP_DRIVER_REMOVE] = 2,
	[OP_ASK] = 0,         [OP_DEVICE] = 3,         [OP_BO] = 10,
	[OP_BO_DESTROY] = 3,  [OP_SUBMIT] = 24,        [OP_SUBMIT_RANGE] = 8,
	[OP_FENCE] = 16,      [OP_COLLAPSE] = 1,       [OP_SLEEP] = 3,
};

struct weight {
	uint8_t op;
	uint8_t weight;
};

static void weights_set(struct sim *s, const struct weight *w, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++)
		s->weight[w[i].op] = w[i].weight;
}

void work_plan(struct sim *s)
{
	/* Memory is taken until there is none, in pieces, and what is claimed is kept: many a call gets half of it. */
	static const struct weight crowd[] = { { OP_MAP, 60 },     { OP_RESERVE, 120 }, { OP_DECOMMIT, 60 },
					       { OP_COMMIT, 250 }, { OP_CLAIM, 20 },    { OP_RELEASE, 2 } };
	/* Children come and go all the time, and claims find their memory in every state. */
	static const struct weight brood[] = { { OP_MAP, 60 },     { OP_FORK, 60 },  { OP_CHILD_EXIT, 20 },
					       { OP_RESTORE, 20 }, { OP_CLAIM, 60 }, { OP_RELEASE, 60 } };

	s->weight_sum = 0;
	for (uint32_t i = 0; i < OPS; i++) {
		s->weight[i] = (uint32_t)(weights[i] + (i == OP_ASK && sim_one_in(s, 8))) << sim_below(s, 4);
		if (i > OP_MAP && sim_one_in(s, 5))
			s->weight[i] = 0;
	}
	if (sim_one_in(s, 3))
		s->weight[OP_FORK] = 0;
	if (s->is_crowded)
		weights_set(s, crowd, sizeof crowd / sizeof crowd[0]);
	else if (sim_one_in(s, 8))
		weights_set(s, brood, sizeof brood / sizeof brood[0]);
	if (sim_one_in(s, 4))
		s->weight[OP_DEVICE] = 0;
	s->has_forks = s->weight[OP_FORK];
	for (uint32_t i = 0; i < OPS; i++)
		s->weight_sum += s->weight[i];
}

/* ---- in and out of the engine ---- */

void sim_enter(struct sim *s, const char *what, uint64_t a, uint64_t b, uint64_t c)
{
	struct sim_fiber *f = s->current;

	if (f->depth++ == 0) {
		f->op = what;
		f->op_since_ns = s->now_ns;
		f->op_since_step = s->steps;
	}
	sim_trace(s, what, a, b, c, 0);
}

int sim_leave(struct sim *s, int err)
{
	struct sim_fiber *f = s->current;

	check_touched(s);
	f->depth--;
	if (f->blocked_runs)
		sim_violation(s, "%s returned with a run blocked", f->op);
	sim_trace(s, "returns %llu", (uint64_t)(int64_t)err, 0, 0, 0);
	sim_hash(s, (uint64_t)(int64_t)err);
	return err;
}

static const char *errno_name(int err)
{
	switch (-err) {
	case 0:
		return "0";
	case EAGAIN:
		return "-EAGAIN";
	case EBUSY:
		return "-EBUSY";
	case ENOMEM:
		return "-ENOMEM";
	case EFAULT:
		return "-EFAULT";
	case E2BIG:
		return "-E2BIG";
	case ENOSPC:
		return "-ENOSPC";
	case ETIMEDOUT:
		return "-ETIMEDOUT";
	case ENODEV:
		return "-ENODEV";
	case EIO:
		return "-EIO";
	case ECANCELED:
		return "-ECANCELED";
	default:
		return "?";
	}
}

void sim_answer(struct sim *s, const char *call, int err)
{
	char name[64];

	snprintf(name, sizeof name, "%s: %s", call, errno_name(err));
	cover_event(s, name);
}

/* ---- regions ---- */

struct sim_region *region_get(struct sim *s, bool to_access)
{
	/* Half of all goes to one region at a time: races want company. */
	uint32_t hot = (uint32_t)(s->steps / HOT_STEPS) % SIM_REGIONS_MAX;
	uint32_t first = sim_one_in(s, 2) ? hot : sim_below(s, SIM_REGIONS_MAX);

	for (uint32_t i = 0; i < SIM_REGIONS_MAX; i++) {
		struct sim_region *r = &s->region[(first + i) % SIM_REGIONS_MAX];
		if (!r->pages || r->is_exclusive || (to_access && r->is_unlocked))
			continue;
		r->users++;
		return r;
	}
	return NULL;
}

void region_put(struct sim_region *r)
{
	r->users--;
}

struct sim_range range_of(struct sim *s, const struct sim_region *r, uint32_t most)
{
	uint32_t pages = 1 + sim_below(s, min_u32(r->pages, most));

	return (struct sim_range){ sim_below(s, r->pages - pages + 1), pages };
}

bool range_is_live(const struct sim *s, const struct sim_region *r, struct sim_range range)
{
	for (uint32_t i = range.first; i < range.first + range.pages; i++)
		if (!s->mm[r->mm].page[r->vpn + i].is_live)
			return false;
	return true;
}

/* ---- threads ---- */

static void do_one(struct sim *s, struct sim_actor *a, enum sim_op op)
{
	if (op == OP_SLEEP)
		sim_sleep(s, sim_below(s, 300) * SUBLET_US);
	else if (op <= OP_NOTE_PROTECTED)
		work_memory(s, op);
	else if (op <= OP_RESTORE)
		work_fork(s, a, op);
	else if (op <= OP_PIN_LIMIT)
		work_pin(s, a, op);
	else if (op <= OP_ASK)
		work_share(s, op);
	else
		work_device(s, a, op);
}

void work_actor(struct sim_fiber *self, void *arg)
{
	struct sim_actor *a = arg;
	struct sim *s = self->sim;

	if (self->index < SIM_DEVICES_MAX && s->weight[OP_DEVICE])
		work_device(s, a, OP_DEVICE);
	while (s->steps < s->options.steps) {
		uint32_t at = sim_below(s, s->weight_sum), op = 0;
		while (at >= s->weight[op])
			at -= s->weight[op++];
		do_one(s, a, (enum sim_op)op);
		self->op = "between operations";
		if (sim_rest_is_due(s) && (s->has_forks || !sim_one_in(s, 4)))
			work_pin_end(s, a); /* or others wait for them, a second each */
		sim_rest(s);
		sim_step(s);
	}
	work_device_end(s, a);
	work_pin_end(s, a);
}

void work_zeroer(struct sim_fiber *self, void *arg)
{
	struct sim *s = self->sim;
	bool more = true;

	(void)arg;
	self->op = "zero ahead";
	while (!s->is_over) {
		self->op_since_ns = s->now_ns;
		self->op_since_step = s->steps;
		self->depth = 1;
		more = sublet__arena_zero_step(s->arena);
		self->depth = 0;
		if (!more)
			sublet__arena_zero_wait(s->arena);
		else
			sim_sleep(s, sim_below(s, 50) * SUBLET_US);
	}
}

/* G10: with nobody in the way, as much as the normal zone has can be claimed, whatever lives in the area. */
static void claim_check(struct sim *s)
{
	uint32_t frames = min_u32(s->area_frames, s->normal_frames);
	struct sublet_claim claim;

	if (!frames || !sim_one_in(s, 3))
		return;
	uint32_t jump_one_in = s->jump_one_in;
	s->jump_one_in = 0; /* no deadline passes by a jump while zeroing ahead has something in hand */
	sim_enter(s, "claim %llu frames, which must succeed (G10)", frames, 0, 0);
	int err = sim_leave(s, sublet_claim(s->arena, (uint64_t)frames << s->frame_shift, NULL, &claim));
	s->jump_one_in = jump_one_in;
	for (uint32_t i = 0; i < claim.blocker_count;
	     i++) /* a budget of kernel mappings that is spent is in the way */
		if (err && (claim.blockers[i].kind == SUBLET_BLOCKER_MAPPINGS ||
			    claim.blockers[i].kind == SUBLET_BLOCKER_PLATFORM))
			return;
	if (err)
		sim_violation(s,
			      "a claim of %u frames with nobody in the way: %d, blocker %u of %u at frame "
			      "%llu (G10)",
			      frames, err, claim.blocker_count ? claim.blockers[0].kind : 0,
			      claim.blocker_count,
			      (unsigned long long)claim.blockers[0].offset_bytes >> s->frame_shift);
	check_moving(s);
	sim_enter(s, "release", 0, 0, 0);
	if (sim_leave(s, sublet_release(s->arena, &claim)))
		sim_violation(s, "release");
}

void work_close(struct sim_fiber *self, void *arg)
{
	struct sim *s = self->sim;

	(void)arg;
	work_device_close(s);
	work_share_close(s);
	work_fork_close(s);
	claim_check(s);
	work_memory_close(s);
	s->is_over = true;
	sublet__arena_zero_wake(s->arena);
}
