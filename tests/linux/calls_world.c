/* SPDX-License-Identifier: MIT */
#include "calls_world.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char directory[64];

static int on_invalidate(void *ctx, const struct sublet_invalidation *inv)
{
	struct world *w = ctx;

	w->exits += inv->event == SUBLET_NOTIFIER_EXIT;
	return 0;
}

const struct sublet_notifier_ops world_notifier_ops = { SUBLET_OPTIONS(sublet_notifier_ops),
							.invalidate = on_invalidate };

static int no_submit(void *ctx, const struct sublet_device_work *work)
{
	(void)ctx, (void)work;
	return -EIO;
}

static int no_attach(void *ctx, uint32_t slot, void *addr, uint64_t bytes)
{
	(void)ctx, (void)slot, (void)addr, (void)bytes;
	return 0;
}

static void no_detach(void *ctx, uint32_t slot)
{
	(void)ctx, (void)slot;
}

static int no_reset(void *ctx)
{
	(void)ctx;
	return 0;
}

static void no_close(void *ctx)
{
	(void)ctx;
}

const struct sublet_device_ops world_device_ops = {
	SUBLET_OPTIONS(sublet_device_ops),
	.submit = no_submit,
	.attach = no_attach,
	.detach = no_detach,
	.reset = no_reset,
	.close = no_close,
};

const struct sublet_device_limits world_limits = {
	SUBLET_OPTIONS(sublet_device_limits),
	.features = SUBLET_DEVICE_COPY,
	.bos_max = 4,
	.jobs_max = 4,
	.align_bytes = 1,
	.job_bytes_max = BYTES,
	.bo_bytes_max = BYTES,
};

const char *world_name(void)
{
	return "calls";
}

static void devices_open(struct world *w)
{
	struct sublet_extent frame = { AREA, 4096 }; /* of the normal zone: any will do */

	assert_int_equal(sublet_device_open_soft(w->arena, NULL, &w->device), 0);
	w->device_iopt = sublet_device_iopt(w->device);
	assert_non_null(w->device_iopt);
	assert_int_equal(sublet_bo_create(w->device, w->mm, w->cache, BYTES, SUBLET_BO_PINNED, NULL, &w->bo),
			 0);
	w->job = (struct sublet_job){ SUBLET_OPTIONS(sublet_job), .op = SUBLET_JOB_FILL, .bytes = BYTES };
	memset(&w->job.pattern, 'c', 8);
	assert_int_equal(sublet_submit(w->device, &w->job, &w->bo, 1, &w->fence), 0);
	w->iopt_options = (struct sublet_iopt_options){ SUBLET_OPTIONS(sublet_iopt_options),
							.aperture_bytes = SUBLET_MIB };
	assert_int_equal(sublet_iopt_create(w->arena, &w->iopt_options, &w->iopt), 0);
	w->iova = SUBLET_IOVA_ANY;
	assert_int_equal(sublet_iopt_map(w->iopt, &w->iova, 4096, 0, 0, SUBLET_IOPT_READ), 0);
	assert_int_equal(sublet_iopt_fill(w->iopt, w->iova, &frame, 1, 0), 0);
}

void world_open(struct world *w)
{
	void *memory, *cache;

	*w = (struct world){
		.options = { SUBLET_OPTIONS(sublet_arena_options), .area_bytes = AREA, .normal_bytes = AREA },
		.info = { SUBLET_OPTIONS(sublet_arena_info) },
		.stats = { SUBLET_OPTIONS(sublet_stats) },
		.notifier_stats = { SUBLET_OPTIONS(sublet_notifier_stats) },
		.device_info = { SUBLET_OPTIONS(sublet_device_info) },
		.iopt_stats = { SUBLET_OPTIONS(sublet_iopt_stats) },
	};
	strcpy(directory, "/tmp/sublet-test-XXXXXX");
	assert_non_null(mkdtemp(directory));
	setenv("XDG_RUNTIME_DIR", directory, 1);
	assert_int_equal(sublet_arena_create(&w->options, &w->arena), 0);
	w->mm = sublet_arena_mm(w->arena);
	assert_int_equal(sublet_map(w->mm, BYTES, SUBLET_MOVABLE, &memory), 0);
	assert_int_equal(sublet_map(w->mm, BYTES, SUBLET_DISCARDABLE, &cache), 0);
	w->memory = memset(memory, 'm', BYTES);
	w->cache = cache;
	assert_int_equal(sublet_claim(w->arena, BYTES, NULL, &w->claim), 0);
	memset(w->claim.addr, 'd', BYTES);
	/* long-term: fork() would wait for a short one */
	assert_int_equal(sublet_pin(w->mm, w->memory, BYTES / 2, SUBLET_PIN_WRITE | SUBLET_PIN_LONGTERM, NULL,
				    &w->pin),
			 0);
	assert_int_equal(
		sublet_notifier_add(w->mm, w->memory, BYTES, &world_notifier_ops, w, NULL, &w->notifier), 0);
	devices_open(w);
	assert_int_equal(sublet_arena_serve(w->arena, world_name()), 0);
	assert_int_equal(sublet_client_connect(world_name(), &w->client), 0);
	assert_int_equal(sublet_fence_wait(&w->fence, 5 * SUBLET_SEC, NULL, NULL), 0);
}

static void filled(const char *memory, char with)
{
	for (uint64_t i = 0; i < BYTES; i++)
		if (memory[i] != with)
			fail_msg("byte %llu is %d, not '%c'", (unsigned long long)i, memory[i], with);
}

void world_check(struct world *w)
{
	struct sublet_claim claim;
	struct sublet_extent extent;

	filled(w->memory, 'm');
	filled(w->cache, 'c');
	filled(w->claim.addr, 'd');
	assert_int_equal(w->exits, 0);
	assert_int_equal(sublet_fence_wait(&w->fence, 0, NULL, NULL), 0);
	assert_int_equal(sublet_iopt_translate(w->iopt, w->iova, SUBLET_IOPT_READ, &extent), 0);
	assert_int_equal(extent.offset_bytes, AREA);
	assert_int_equal(sublet_client_claim(w->client, SUBLET_MIB, NULL, &claim), 0);
	assert_int_equal(sublet_client_release(w->client, &claim), 0);
	assert_int_equal(sublet_arena_stats(w->arena, &w->stats), 0);
	assert_int_equal(w->stats.claims_held, 1);
	assert_int_equal(w->stats.longterm_bytes, BYTES / 2 + BYTES);
	assert_int_equal(w->stats.longterm_limit_bytes, AREA / 2);
	assert_int_equal(w->stats.notifiers, 1);
	assert_int_equal(sublet_device_info(w->device, &w->device_info), 0);
	assert_int_equal(w->device_info.dead, 0);
	assert_int_equal(w->device_info.jobs, 1);
}

void world_close(struct world *w)
{
	char path[128];

	sublet_client_close(w->client);
	assert_int_equal(sublet_fence_put(&w->fence), 0);
	assert_int_equal(sublet_bo_destroy(&w->bo), 0);
	sublet_device_close(w->device);
	sublet_iopt_destroy(w->iopt);
	assert_int_equal(sublet_unpin(&w->pin), 0);
	assert_int_equal(sublet_notifier_remove(&w->notifier), 0);
	assert_int_equal(sublet_release(w->arena, &w->claim), 0);
	assert_int_equal(sublet_arena_destroy(w->arena), 0);
	snprintf(path, sizeof path, "%s/sublet", directory);
	rmdir(path);
	rmdir(directory);
}
