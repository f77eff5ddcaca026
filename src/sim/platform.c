/* SPDX-License-Identifier: MIT */
/*
 * The platform of a simulated world: time, waiting, memory, frames, helpers; and which of its calls fail.
 *
 * A frame is two words, whatever size the engine is told. The engine may write to a frame that nobody uses, and read one
 * that a page has: everything else is a violation on the spot (G2, G8, G9). Copying and zeroing take a step a word,
 * so that somebody else can come in between any two of them.
 */
#include "sim.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define MAPPED_BYTES (256u << 10) /* from here on a reservation costs only what is touched */

static const char *const call_names[CALLS] = {
	[CALL_MAP] = "map",
	[CALL_MAP_PLAIN] = "map_plain",
	[CALL_UNMAP] = "unmap",
	[CALL_TRACK] = "track",
	[CALL_BLOCK] = "block",
	[CALL_REMAP] = "remap",
	[CALL_PRIVATIZE] = "privatize",
	[CALL_RESTORE] = "restore",
	[CALL_INHERIT] = "inherit",
	[CALL_RESERVE] = "reserve",
	[CALL_SUBMIT] = "submit",
	[CALL_ATTACH] = "attach",
};

static const char *const fault_events[CALLS][2] = {
	[CALL_MAP] = { "fault: map, once", "fault: map, for good" },
	[CALL_MAP_PLAIN] = { "fault: map_plain, once", "fault: map_plain, for good" },
	[CALL_UNMAP] = { "fault: unmap, once", "fault: unmap, for good" },
	[CALL_TRACK] = { "fault: track, once", "fault: track, for good" },
	[CALL_BLOCK] = { "fault: block, once", "fault: block, for good" },
	[CALL_REMAP] = { "fault: remap, once", "fault: remap, for good" },
	[CALL_PRIVATIZE] = { "fault: privatize, once", "fault: privatize, for good" },
	[CALL_RESTORE] = { "fault: restore, once", "fault: restore, for good" },
	[CALL_INHERIT] = { "fault: inherit, once", "fault: inherit, for good" },
	[CALL_RESERVE] = { "fault: reserve, once", "fault: reserve, for good" },
	[CALL_SUBMIT] = { "fault: submit, once", "fault: submit, for good" },
	[CALL_ATTACH] = { "fault: attach, once", "fault: attach, for good" },
};

int sim_fault(struct sim *s, enum sim_call call)
{
	if (s->no_faults || s->is_quiet || !s->current)
		return 0;
	bool for_good = s->steps >= s->fault_for_good_from[call] && s->steps < s->fault_for_good_until[call];
	if (!for_good && !sim_one_in(s, s->fault_one_in[call]))
		return 0;
	int err = (call == CALL_BLOCK || call == CALL_REMAP) && sim_one_in(s, 2) ? -EIO : -ENOMEM;
	err = call == CALL_SUBMIT ? -EIO : err;
	s->faults++;
	s->unmaps_refused += call == CALL_UNMAP;
	cover_event(s, fault_events[call][for_good]);
	sim_trace(s, "fault: %s answers %llu", (uintptr_t)call_names[call], (uint64_t)(int64_t)err, 0, 0);
	return err;
}

/* ---- time and waiting ---- */

static uint64_t op_now_ns(void *ctx)
{
	struct sim *s = ctx;

	sim_step(s);
	return s->now_ns;
}

static uint64_t op_coarse_ns(void *ctx)
{
	struct sim *s = ctx;
	return s->now_ns / SUBLET_MS * SUBLET_MS;
}

static void op_sleep_ns(void *ctx, uint64_t ns)
{
	sim_sleep(ctx, ns);
}

static void op_park(void *ctx, const void *word, uint32_t expected, uint64_t timeout_ns)
{
	sim_park(ctx, word, expected, timeout_ns);
}

static void op_unpark(void *ctx, const void *word, uint32_t count)
{
	sim_unpark(ctx, word, count);
}

static uint32_t op_thread_slot(void *ctx)
{
	struct sim *s = ctx;
	return s->current ? s->current->index / 2 : 0; /* two share one */
}

/* ---- memory ---- */

static void *op_reserve(void *ctx, size_t bytes)
{
	struct sim *s = ctx;
	void *memory;

	if (s->current && s->current->blocked_runs)
		sim_violation(s, "memory reserved between block and wake of a run (L1)");
	sim_step(s);
	if (sim_fault(s, CALL_RESERVE))
		return NULL;
	if (bytes >= MAPPED_BYTES) {
		memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		memory = memory == MAP_FAILED ? NULL : memory;
	} else {
		memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
		if (memory)
			memset(memory, 0, bytes);
	}
	s->reserved_bytes += memory ? (int64_t)bytes : 0;
	sim_trace(s, "reserve %llu bytes", bytes, 0, 0, 0);
	return memory;
}

static void op_unreserve(void *ctx, void *memory, size_t bytes)
{
	struct sim *s = ctx;

	sim_step(s);
	s->reserved_bytes -= (int64_t)bytes;
	sim_trace(s, "unreserve %llu bytes", bytes, 0, 0, 0);
	if (bytes >= MAPPED_BYTES)
		munmap(memory, bytes);
	else
		free(memory);
}

/* ---- frames ---- */

static void frames_must_exist(struct sim *s, const char *what, uint32_t pfn, uint32_t frames)
{
	if (!frames || pfn >= s->frames || frames > s->frames - pfn)
		sim_violation(s, "%s of %u frames from %u on: there are %u", what, frames, pfn, s->frames);
}

static void frame_must_be_free(struct sim *s, const char *what, uint32_t pfn)
{
	if (s->owner[pfn] || s->child[pfn] || s->held[pfn])
		sim_violation(s, "%s frame %u, which is in use (owner %x, children %u, pins %u)", what, pfn,
			      s->owner[pfn], s->child[pfn], s->held[pfn]);
}

static void op_copy(void *ctx, uint32_t dst_pfn, uint32_t src_pfn, uint32_t frames)
{
	struct sim *s = ctx;

	sim_trace(s, "copy %llu frames from %llu to %llu", frames, src_pfn, dst_pfn, 0);
	frames_must_exist(s, "copy", src_pfn, frames);
	frames_must_exist(s, "copy", dst_pfn, frames);
	if (dst_pfn < src_pfn + frames && src_pfn < dst_pfn + frames)
		sim_violation(s, "copy of frames %u to %u overlaps", src_pfn, dst_pfn);
	for (uint32_t i = 0; i < frames; i++)
		for (uint32_t w = 0; w < SIM_WORDS; w++) {
			sim_step(s);
			frame_must_be_free(s, "copy to", dst_pfn + i);
			if (!(s->owner[src_pfn + i] & OWNER_PAGE))
				sim_violation(s, "copy of frame %u, which no page has", src_pfn + i);
			s->word[dst_pfn + i][w] = s->word[src_pfn + i][w];
		}
}

static void op_zero(void *ctx, uint32_t pfn, uint32_t frames, bool warm)
{
	struct sim *s = ctx;

	(void)warm;
	sim_trace(s, "zero %llu frames from %llu on", frames, pfn, 0, 0);
	frames_must_exist(s, "zero", pfn, frames);
	for (uint32_t i = 0; i < frames; i++)
		for (uint32_t w = 0; w < SIM_WORDS; w++) {
			sim_step(s);
			frame_must_be_free(s, "zero of", pfn + i);
			s->word[pfn + i][w] = 0;
		}
}

/* ---- helpers ---- */

struct parallel {
	void (*fn)(void *arg, uint32_t worker);
	void *arg;
	uint32_t worker; /* the next to begin */
	uint32_t left;   /* helpers that have not returned; parked on */
};

static void helper_main(struct sim_fiber *self, void *arg)
{
	struct parallel *p = arg;

	self->depth = 1;
	self->op = "help";
	p->fn(p->arg, p->worker++);
	if (--p->left == 0)
		sim_unpark(self->sim, &p->left, 1);
	self->depth = 0;
}

static void op_parallel(void *ctx, uint32_t threads, void (*fn)(void *arg, uint32_t worker), void *arg)
{
	struct sim *s = ctx;
	struct parallel p = { .fn = fn, .arg = arg, .worker = 1 };
	bool has_helpers = !s->helpers_busy;

	for (uint32_t i = 1; has_helpers && i < threads; i++) {
		struct sim_fiber *f = sched_spawn(s, "helper", i, false, helper_main, &p);
		if (!f)
			break;
		f->op_since_ns = s->now_ns;
		f->op_since_step = s->steps;
		p.left++;
	}
	s->helpers_busy |= has_helpers;
	fn(arg, 0);
	for (uint32_t left; (left = p.left) != 0;)
		sim_park(s, &p.left, left, UINT64_MAX);
	if (has_helpers)
		s->helpers_busy = false;
}

static const struct sublet__platform_ops ops = {
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
	.parallel = op_parallel,
};

void platform_init(struct sim *s)
{
	s->platform = (struct sublet__platform){ &ops, s, s->frame_shift, s->run_pages_max, s->workers };
}
