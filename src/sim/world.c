/* SPDX-License-Identifier: MIT */
/*
 * A world from its seed: sizes, who lives there, what goes wrong; run, stopped now and then to be looked at as a whole, and
 * brought to its end, at which everything was given back.
 *
 * Worlds are tiny, a few hundred frames in pageblocks of 32 to 256, so that everything meets everything. The engine
 * derives the size of a pageblock from that of a frame; so frames have 8 to 64 KiB here, and none of its code knows.
 */
#include "sim.h"

#include <stdlib.h>
#include <string.h>

#define REST_STEPS 4000u /* about so many between two looks at a standing world */

static void faults_plan(struct sim *s)
{
	uint32_t kind = sim_below(s, 4);

	for (uint32_t i = 0; i < CALLS && kind; i++) {
		if (sim_one_in(s, 3))
			s->fault_one_in[i] = 2 + sim_below(s, 60);
		if (kind == 1 && sim_one_in(s, 8)) { /* for good, or for a long time */
			s->fault_for_good_from[i] = sim_below(s, (uint32_t)s->options.steps + 1);
			s->fault_for_good_until[i] =
				s->fault_for_good_from[i] + sim_below(s, (uint32_t)s->options.steps + 1);
		}
	}
	s->jump_one_in = sim_one_in(s, 3) ? 500 + sim_below(s, 5000) : 0;
}

static void world_plan(struct sim *s)
{
	static const uint32_t means[] = { 1, 2, 5, 20, 100, 0, 0, 0 };
	uint32_t block;

	s->frame_shift = 13 + sim_below(s, 4);
	block = 1u << (21 - s->frame_shift);
	s->normal_frames = block * (1 + sim_below(s, 2)) * (block == 32 ? 2 : 1);
	s->area_frames = block * (2 + sim_below(s, block == 256 ? 1 : block == 128 ? 4 : 6));
	s->is_crowded = sim_one_in(s, 4);
	if (sim_one_in(s, s->is_crowded ? 2 : 20))
		s->normal_frames = 0;
	s->frames = s->area_frames + s->normal_frames;
	s->run_pages_max = 1u << sim_below(s, 8);
	s->mms = 1 + sim_below(s, SIM_MMS_MAX);
	s->actors = 2 + sim_below(s, SIM_ACTORS_MAX - 1);
	s->workers = 1 + sim_below(s, 3);
	s->reads_wait = sim_one_in(s, 2);
	s->has_track = sim_one_in(s, 2);
	s->run_mean = means[sim_below(s, sizeof means / sizeof means[0])];
	s->stall_one_in = sim_one_in(s, 2) ? 50 + sim_below(s, 500) : 0;
	s->step_ns = 20u << sim_below(s, 6);
	work_plan(s);
	faults_plan(s);
}

static void arena_make(struct sim *s)
{
	struct sublet__arena_config config = {
		.area_frames = s->area_frames,
		.normal_frames = s->normal_frames,
		.zeroed = sim_one_in(s, 2),
		.linear = (void *)(uintptr_t)SIM_LINEAR,
	};

	platform_init(s);
	config.platform = s->platform;
	for (uint32_t i = 0; !config.zeroed && i < s->frames; i++)
		for (uint32_t w = 0; w < SIM_WORDS; w++)
			s->word[i][w] = 0xdead000000000000ull + i;
	if (sublet__arena_init(&config, &s->arena))
		sim_violation(s, "no arena");
	for (uint32_t i = 0; i < s->mms; i++) {
		uint32_t limit = sim_one_in(s, 3) ? 20 + sim_below(s, 150) : 1u << 24;
		mm_init(s, i, 512 + sim_below(s, SIM_PAGES_MAX - 512 + 1),
			limit < 1u << 24 && sim_one_in(s, 2) ? limit + 8 : 0);
		struct sublet__mm_config mm = {
			.ops = &sim_mm_ops,
			.ctx = &s->mm[i],
			.base = s->mm[i].base,
			.pages = s->mm[i].pages,
			.features = s->has_track ? SUBLET__MM_TRACK : 0,
			.mapping_limit = limit,
		};
		if (sublet__mm_create(s->arena, &mm, &s->mm[i].mm))
			sim_violation(s, "no mm");
	}
	check_reset(s);
}

static void rest(struct sim *s, struct sim_result *result)
{
	check_standing(s);
	sim_trace(s, "the world stood still, and was checked", 0, 0, 0, 0);
	result->rests++;
	s->rest_at = s->steps + REST_STEPS / 2 + sim_below(s, REST_STEPS);
	sched_resume(s);
}

static void world_run(struct sim *s, struct sim_result *result)
{
	for (uint32_t i = 0; i < s->actors; i++)
		if (!sched_spawn(s, "actor", i, false, work_actor, &s->actor[i]))
			sim_violation(s, "no fiber for an actor");
	if (!sched_spawn(s, "zeroer", 0, true, work_zeroer, NULL))
		sim_violation(s, "no fiber to zero ahead");
	s->rest_at = REST_STEPS;
	while (sched_run(s))
		rest(s, result);
	rest(s, result);
	s->no_faults = true;
	if (!sched_spawn(s, "closer", 0, false, work_close, NULL))
		sim_violation(s, "no fiber to close");
	while (sched_run(s))
		rest(s, result);
	check_standing(s);
	check_empty(s);
}

/* Daemons go home: the closer woke them. */
static void world_end(struct sim *s)
{
	for (uint32_t i = 0; i < s->fibers; i++)
		if (s->fiber[i].wait != WAIT_DONE && s->fiber[i].depth)
			sim_violation(s, "%s is in the engine at the end", s->fiber[i].name);
	sublet__arena_fini(s->arena);
	s->arena = NULL;
	if (s->reserved_bytes)
		sim_violation(s, "%lld bytes were not given back", (long long)s->reserved_bytes);
}

void sim_world(const struct sim_options *options, struct sim_cover *cover, struct sim_result *result)
{
	static struct sim sim;
	struct sim *s = &sim;
	struct fiber_context kept[SIM_FIBERS_MAX];

	for (uint32_t i = 0; i < SIM_FIBERS_MAX; i++)
		kept[i] = s->fiber[i].context;
	memset(s, 0, offsetof(struct sim, mm));
	memset(s->region, 0, sizeof *s - offsetof(struct sim, region));
	for (uint32_t i = 0; i < SIM_FIBERS_MAX; i++)
		s->fiber[i].context = kept[i];
	for (uint32_t i = 0; i < SIM_MMS_MAX; i++)
		s->mm[i].mm = NULL;
	s->options = *options;
	s->random = options->seed * 0x9e3779b97f4a7c15ull + 1;
	s->cover = cover;
	s->hash = 0xcbf29ce484222325ull;
	s->check_at = options->check_every;
	*result = (struct sim_result){ 0 };
	sched_reset(s);
	world_plan(s);
	arena_make(s);
	world_run(s, result);
	world_end(s);
	result->steps = s->steps;
	result->hash = s->hash;
	result->faults = s->faults;
	result->virtual_ns = s->now_ns - SUBLET_SEC;
}
