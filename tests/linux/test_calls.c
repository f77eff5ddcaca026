/* SPDX-License-Identifier: MIT */
/*
 * What every public call answers to NULL, and in a child of fork(): the table of sublet/types.h, row by row. A function that
 * src/sublet.map exports and that has no row here fails the test.
 *
 * `world` is an arena with one of everything. The child is made by fork() and by the bare system call, of which nobody is
 * told; in it each call is made on the parent's objects. Afterwards all that the parent has is as it was, and can be given
 * back.
 */
#include "calls_world.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define NAMES_MAX 200

static const char *seen[NAMES_MAX];
static uint32_t seen_count;
static uint32_t wrong;

static void said(const char *name, long answer, long wanted)
{
	bool known = false;

	for (uint32_t i = 0; i < seen_count; i++)
		known = known || !strcmp(seen[i], name);
	if (!known && seen_count < NAMES_MAX)
		seen[seen_count++] = name;
	if (answer == wanted)
		return;
	fprintf(stderr, "%s answers %ld, not %ld\n", name, answer, wanted);
	wrong++;
}

#define SAYS(wanted, call, ...) said(#call, (long)call(__VA_ARGS__), (long)(wanted))
#define QUIET(call, ...)           \
	do {                       \
		call(__VA_ARGS__); \
		said(#call, 0, 0); \
	} while (0)

/* How many functions of the map have no row; and rows, no function. */
static uint32_t unseen(void)
{
	char path[4096], line[200], name[100];
	uint32_t listed = 0, missing = 0;

	snprintf(path, sizeof path, "%s/src/sublet.map", getenv("SUBLET_SOURCE"));
	FILE *map = fopen(path, "r");
	while (map && fgets(line, sizeof line, map)) {
		if (sscanf(line, " %99[a-z0-9_];", name) != 1 || strncmp(name, "sublet_", 7))
			continue;
		bool found = false;
		for (uint32_t i = 0; i < seen_count; i++)
			found = found || !strcmp(seen[i], name);
		if (!found)
			fprintf(stderr, "%s has no row\n", name);
		missing += !found;
		listed++;
	}
	if (map)
		fclose(map);
	return missing + (listed == seen_count ? 0 : 1);
}

/* ---- NULL ---- */

static void null_memory(struct world *w)
{
	void *addr = NULL;
	struct sublet_extent extent;

	SAYS(-EINVAL, sublet_arena_create, NULL, &w->other);
	SAYS(-EINVAL, sublet_arena_create, &w->options, NULL);
	SAYS(0, sublet_arena_destroy, NULL);
	SAYS(0, sublet_arena_mm, NULL);
	SAYS(-EINVAL, sublet_arena_mm_add, NULL, &w->mm2);
	SAYS(-EINVAL, sublet_arena_mm_add, w->arena, NULL);
	SAYS(-EINVAL, sublet_arena_info, NULL, &w->info);
	SAYS(-EINVAL, sublet_arena_info, w->arena, NULL);
	SAYS(-EINVAL, sublet_arena_serve, NULL, "calls");
	SAYS(-EINVAL, sublet_arena_serve, w->arena, NULL);
	SAYS(-EINVAL, sublet_arena_stats, NULL, &w->stats);
	SAYS(-EINVAL, sublet_arena_stats, w->arena, NULL);
	SAYS(0, sublet_arena_pageblocks, NULL, 0, 1, &w->block);
	SAYS(0, sublet_arena_pageblocks, w->arena, 0, 1, NULL);
	SAYS(-EINVAL, sublet_map, NULL, BYTES, SUBLET_MOVABLE, &addr);
	SAYS(-EINVAL, sublet_map, w->mm, BYTES, SUBLET_MOVABLE, NULL);
	SAYS(-EINVAL, sublet_map_aligned, NULL, BYTES, 1, SUBLET_MOVABLE, &addr);
	SAYS(-EINVAL, sublet_map_aligned, w->mm, BYTES, 1, SUBLET_MOVABLE, NULL);
	SAYS(-EINVAL, sublet_unmap, NULL, w->memory, BYTES);
	SAYS(-EINVAL, sublet_unmap, w->mm, NULL, BYTES);
	SAYS(-EINVAL, sublet_decommit, NULL, w->memory, BYTES);
	SAYS(-EINVAL, sublet_decommit, w->mm, NULL, BYTES);
	SAYS(-EINVAL, sublet_commit, NULL, w->memory, BYTES, 0);
	SAYS(-EINVAL, sublet_commit, w->mm, NULL, BYTES, 0);
	SAYS(-EINVAL, sublet_lock, NULL, w->cache, BYTES);
	SAYS(-EINVAL, sublet_lock, w->mm, NULL, BYTES);
	SAYS(-EINVAL, sublet_unlock, NULL, w->cache, BYTES);
	SAYS(-EINVAL, sublet_unlock, w->mm, NULL, BYTES);
	SAYS(-EINVAL, sublet_mm_extents, NULL, w->memory, BYTES, 0, &extent, 1);
	SAYS(-EINVAL, sublet_mm_extents, w->mm, NULL, BYTES, 0, &extent, 1);
	SAYS(-EINVAL, sublet_mm_extents, w->mm, w->memory, BYTES, 0, NULL, 1);
	SAYS(0, sublet_histogram_percentile_ns, NULL, 500);
	SAYS(0, sublet_histogram_floor_ns, 0);
	said("sublet_version", strcmp(sublet_version(), SUBLET_VERSION), 0);
}

static void null_claims_and_pins(struct world *w)
{
	struct sublet_claim claim = { 0 };
	struct sublet_pin pin = { 0 };
	struct sublet_pin_info pin_info;
	struct sublet_notifier none = { 0 };
	struct sublet_extent extent;
	uint64_t next = 0, seq;
	char text[8];

	SAYS(-EINVAL, sublet_claim, NULL, BYTES, NULL, &claim);
	SAYS(-EINVAL, sublet_claim, w->arena, BYTES, NULL, NULL);
	SAYS(-EINVAL, sublet_release, NULL, &w->claim);
	SAYS(-EINVAL, sublet_release, w->arena, NULL);
	SAYS(-EINVAL, sublet_release, w->arena, &claim);
	SAYS(-EINVAL, sublet_blocker_describe, NULL, 0, text, sizeof text);
	SAYS(-EINVAL, sublet_blocker_describe, &claim, 0, NULL, 8);
	SAYS(-EINVAL, sublet_pin, NULL, w->memory, BYTES, SUBLET_PIN_READ, NULL, &pin);
	SAYS(-EINVAL, sublet_pin, w->mm, NULL, BYTES, SUBLET_PIN_READ, NULL, &pin);
	SAYS(-EINVAL, sublet_pin, w->mm, w->memory, BYTES, SUBLET_PIN_READ, NULL, NULL);
	SAYS(-EINVAL, sublet_unpin, NULL);
	SAYS(-EINVAL, sublet_unpin, &pin);
	SAYS(-EINVAL, sublet_pin_extents, NULL, 0, &extent, 1);
	SAYS(-EINVAL, sublet_pin_extents, &pin, 0, &extent, 1);
	SAYS(-EINVAL, sublet_pin_extents, &w->pin, 0, NULL, 1);
	SAYS(0, sublet_pin_list, NULL, &next, 1, &pin_info);
	SAYS(0, sublet_pin_list, w->arena, NULL, 1, &pin_info);
	SAYS(0, sublet_pin_list, w->arena, &next, 1, NULL);
	QUIET(sublet_pin_limit, NULL, 0);
	SAYS(-EINVAL, sublet_notifier_add, NULL, w->memory, BYTES, &world_notifier_ops, w, NULL, &none);
	SAYS(-EINVAL, sublet_notifier_add, w->mm, NULL, BYTES, &world_notifier_ops, w, NULL, &none);
	SAYS(-EINVAL, sublet_notifier_add, w->mm, w->memory, BYTES, NULL, w, NULL, &none);
	SAYS(-EINVAL, sublet_notifier_add, w->mm, w->memory, BYTES, &world_notifier_ops, w, NULL, NULL);
	SAYS(-EINVAL, sublet_notifier_remove, NULL);
	SAYS(-EINVAL, sublet_notifier_remove, &none);
	SAYS(-EINVAL, sublet_notifier_read_begin, NULL, 0, &seq);
	SAYS(-EINVAL, sublet_notifier_read_begin, &none, 0, &seq);
	SAYS(-EINVAL, sublet_notifier_read_begin, &w->notifier, 0, NULL);
	SAYS(true, sublet_notifier_read_retry, NULL, 0);
	SAYS(true, sublet_notifier_read_retry, &none, 0);
	SAYS(-EINVAL, sublet_notifier_stats, NULL, &w->notifier_stats);
	SAYS(-EINVAL, sublet_notifier_stats, w->mm, NULL);
}

static void null_devices(struct world *w)
{
	struct sublet_device *device = NULL;
	struct sublet_iopt *iopt = NULL;
	struct sublet_bo none = { 0 }, bo;
	struct sublet_bo_info bo_info;
	struct sublet_fence fence = { 0 };
	struct sublet_extent extent = { 0, 4096 };
	uint64_t iova = SUBLET_IOVA_ANY, next = 0;

	SAYS(-EINVAL, sublet_device_open_soft, NULL, NULL, &device);
	SAYS(-EINVAL, sublet_device_open_soft, w->arena, NULL, NULL);
	SAYS(-EINVAL, sublet_device_open_uring, NULL, NULL, &device);
	SAYS(-EINVAL, sublet_device_open_uring, w->arena, NULL, NULL);
	SAYS(-EINVAL, sublet_device_create, NULL, &world_device_ops, w, &world_limits, &device);
	SAYS(-EINVAL, sublet_device_create, w->arena, NULL, w, &world_limits, &device);
	SAYS(-EINVAL, sublet_device_create, w->arena, &world_device_ops, w, NULL, &device);
	SAYS(-EINVAL, sublet_device_create, w->arena, &world_device_ops, w, &world_limits, NULL);
	QUIET(sublet_device_close, NULL);
	SAYS(0, sublet_device_collapse, NULL, 1);
	QUIET(sublet_device_complete, NULL, 1, 0, 0);
	QUIET(sublet_device_died, NULL);
	SAYS(-EINVAL, sublet_device_info, NULL, &w->device_info);
	SAYS(-EINVAL, sublet_device_info, w->device, NULL);
	SAYS(0, sublet_device_iopt, NULL);
	SAYS(-EINVAL, sublet_device_soft_fault, NULL, SUBLET_SOFT_ERROR);
	SAYS(-EINVAL, sublet_bo_create, NULL, w->mm, w->memory, BYTES, SUBLET_BO_TRACKED, NULL, &bo);
	SAYS(-EINVAL, sublet_bo_create, w->device, NULL, w->memory, BYTES, SUBLET_BO_TRACKED, NULL, &bo);
	SAYS(-EINVAL, sublet_bo_create, w->device, w->mm, NULL, BYTES, SUBLET_BO_TRACKED, NULL, &bo);
	SAYS(-EINVAL, sublet_bo_create, w->device, w->mm, w->memory, BYTES, SUBLET_BO_TRACKED, NULL, NULL);
	SAYS(-EINVAL, sublet_bo_create_claim, NULL, &w->claim, 0, NULL, &bo);
	SAYS(-EINVAL, sublet_bo_create_claim, w->device, NULL, 0, NULL, &bo);
	SAYS(-EINVAL, sublet_bo_create_claim, w->device, &w->claim, 0, NULL, NULL);
	SAYS(-EINVAL, sublet_bo_destroy, NULL);
	SAYS(-EINVAL, sublet_bo_destroy, &none);
	SAYS(-EINVAL, sublet_bo_extents, NULL, 0, &extent, 1);
	SAYS(-EINVAL, sublet_bo_extents, &none, 0, &extent, 1);
	SAYS(-EINVAL, sublet_bo_extents, &w->bo, 0, NULL, 1);
	SAYS(0, sublet_bo_list, NULL, &next, 1, &bo_info);
	SAYS(0, sublet_bo_list, w->arena, NULL, 1, &bo_info);
	SAYS(0, sublet_bo_list, w->arena, &next, 1, NULL);
	SAYS(-EINVAL, sublet_submit, NULL, &w->job, &w->bo, 1, &fence);
	SAYS(-EINVAL, sublet_submit, w->device, NULL, &w->bo, 1, &fence);
	SAYS(-EINVAL, sublet_submit, w->device, &w->job, NULL, 1, &fence);
	SAYS(-EINVAL, sublet_submit_range, NULL, &w->job, w->mm, w->memory, &fence);
	SAYS(-EINVAL, sublet_submit_range, w->device, NULL, w->mm, w->memory, &fence);
	SAYS(-EOPNOTSUPP, sublet_submit_range, w->device, &w->job, NULL, w->memory, &fence);
	SAYS(-EINVAL, sublet_fence_wait, NULL, 0, NULL, NULL);
	SAYS(-EINVAL, sublet_fence_wait, &fence, 0, NULL, NULL);
	SAYS(-EINVAL, sublet_fence_put, NULL);
	SAYS(-EINVAL, sublet_fence_put, &fence);
	SAYS(-EINVAL, sublet_iopt_create, NULL, &w->iopt_options, &iopt);
	SAYS(-EINVAL, sublet_iopt_create, w->arena, NULL, &iopt);
	SAYS(-EINVAL, sublet_iopt_create, w->arena, &w->iopt_options, NULL);
	QUIET(sublet_iopt_destroy, NULL);
	SAYS(-EINVAL, sublet_iopt_map, NULL, &iova, 4096, 0, 0, SUBLET_IOPT_READ);
	SAYS(-EINVAL, sublet_iopt_map, w->iopt, NULL, 4096, 0, 0, SUBLET_IOPT_READ);
	SAYS(-EINVAL, sublet_iopt_fill, NULL, w->iova, &extent, 1, 0);
	SAYS(-EINVAL, sublet_iopt_fill, w->iopt, w->iova, NULL, 1, 0);
	SAYS(-EINVAL, sublet_iopt_clear, NULL, w->iova, 4096, 0);
	SAYS(-EINVAL, sublet_iopt_unmap, NULL, w->iova, 4096, 0);
	QUIET(sublet_iopt_flush, NULL);
	SAYS(-EINVAL, sublet_iopt_translate, NULL, w->iova, 0, &extent);
	SAYS(-EINVAL, sublet_iopt_translate, w->iopt, w->iova, 0, NULL);
	SAYS(-EINVAL, sublet_iopt_stats, NULL, &w->iopt_stats);
	SAYS(-EINVAL, sublet_iopt_stats, w->iopt, NULL);
}

static void null_clients(struct world *w)
{
	struct sublet_claim claim = { 0 };
	uint64_t next = 0, ns;
	int fd;

	SAYS(-EINVAL, sublet_instance_list, NULL, 1);
	SAYS(-EINVAL, sublet_client_connect, world_name(), NULL);
	QUIET(sublet_client_close, NULL);
	SAYS(0, sublet_client_instance, NULL);
	SAYS(-EINVAL, sublet_client_info, NULL, &w->info);
	SAYS(-EINVAL, sublet_client_info, w->client, NULL);
	SAYS(-EINVAL, sublet_client_fd, NULL, &fd);
	SAYS(-EINVAL, sublet_client_fd, w->client, NULL);
	SAYS(-EINVAL, sublet_client_claim, NULL, BYTES, NULL, &claim);
	SAYS(-EINVAL, sublet_client_claim, w->client, BYTES, NULL, NULL);
	SAYS(-EINVAL, sublet_client_release, NULL, &claim);
	SAYS(-EINVAL, sublet_client_release, w->client, NULL);
	SAYS(-EINVAL, sublet_client_stats, NULL, &w->stats);
	SAYS(-EINVAL, sublet_client_stats, w->client, NULL);
	SAYS(-EINVAL, sublet_client_pageblocks, NULL, 0, 1, &w->block);
	SAYS(-EINVAL, sublet_client_pageblocks, w->client, 0, 1, NULL);
	SAYS(-EINVAL, sublet_client_pins, NULL, &next, 1, &w->pin_info);
	SAYS(-EINVAL, sublet_client_pins, w->client, NULL, 1, &w->pin_info);
	SAYS(-EINVAL, sublet_client_pins, w->client, &next, 1, NULL);
	SAYS(-EINVAL, sublet_client_bos, NULL, &next, 1, &w->bo_info);
	SAYS(-EINVAL, sublet_client_bos, w->client, NULL, 1, &w->bo_info);
	SAYS(-EINVAL, sublet_client_bos, w->client, &next, 1, NULL);
	SAYS(-EINVAL, sublet_client_memcpy_ns, NULL, 4096, &ns);
	SAYS(-EINVAL, sublet_client_memcpy_ns, w->client, 4096, NULL);
}

static void test_null(void **unused)
{
	struct world w;
	(void)unused;

	seen_count = wrong = 0;
	world_open(&w);
	null_memory(&w);
	null_claims_and_pins(&w);
	null_devices(&w);
	null_clients(&w);
	assert_int_equal(wrong, 0);
	assert_int_equal(unseen(), 0);
	world_check(&w);
	world_close(&w);
}

/* ---- in a child ---- */

static void child_memory(struct world *w, bool is_bare)
{
	struct sublet_extent extent;
	void *addr = NULL;

	SAYS(-EPERM, sublet_arena_destroy, w->arena);
	SAYS((long)w->mm, sublet_arena_mm, w->arena);
	SAYS(-EPERM, sublet_arena_mm_add, w->arena, &w->mm2);
	SAYS(-EPERM, sublet_arena_info, w->arena, &w->info);
	SAYS(-EPERM, sublet_arena_serve, w->arena, "child");
	SAYS(-EPERM, sublet_arena_stats, w->arena, &w->stats);
	SAYS(0, sublet_arena_pageblocks, w->arena, 0, 1, &w->block);
	SAYS(-EPERM, sublet_map, w->mm, BYTES, SUBLET_MOVABLE, &addr);
	SAYS(-EPERM, sublet_map_aligned, w->mm, BYTES, 1, SUBLET_MOVABLE, &addr);
	SAYS(-EPERM, sublet_unmap, w->mm, w->memory, BYTES);
	SAYS(-EPERM, sublet_decommit, w->mm, w->memory, BYTES);
	SAYS(-EPERM, sublet_commit, w->mm, w->memory, BYTES, 0);
	SAYS(-EPERM, sublet_lock, w->mm, w->cache, BYTES);
	SAYS(-EPERM, sublet_unlock, w->mm, w->cache, BYTES);
	SAYS(-EPERM, sublet_mm_extents, w->mm, w->memory, BYTES, 0, &extent, 1);
	SAYS(0, sublet_histogram_percentile_ns, &w->stats.claim_ns, 500);
	SAYS(1, sublet_histogram_floor_ns, 1);
	said("sublet_version", strcmp(sublet_version(), SUBLET_VERSION), 0);
	/* It may have an arena of its own, and of that all it likes; but not where libc knows nothing of the fork. */
	SAYS(is_bare ? -EINVAL : 0, sublet_arena_create, is_bare ? NULL : &w->options, &w->other);
	if (is_bare)
		return;
	wrong += sublet_map(sublet_arena_mm(w->other), BYTES, SUBLET_MOVABLE, &addr) != 0;
	memset(addr, 1, BYTES);
	wrong += sublet_arena_destroy(w->other) != 0;
}

static void child_claims_and_pins(struct world *w)
{
	struct sublet_claim claim;
	struct sublet_pin pin;
	struct sublet_notifier notifier;
	struct sublet_extent extent;
	uint64_t next = 0, seq;
	char text[64];

	SAYS(-EPERM, sublet_claim, w->arena, BYTES, NULL, &claim);
	SAYS(-EPERM, sublet_release, w->arena, &w->claim);
	SAYS(-EINVAL, sublet_blocker_describe, &w->claim, 0, text, sizeof text);
	SAYS(-EPERM, sublet_pin, w->mm, w->memory, BYTES, SUBLET_PIN_READ, NULL, &pin);
	SAYS(-EINVAL, sublet_unpin, &pin);
	SAYS(-EPERM, sublet_pin, w->mm, w->memory, BYTES, SUBLET_PIN_READ | SUBLET_PIN_LONGTERM, NULL, &pin);
	SAYS(-EPERM, sublet_unpin, &w->pin);
	SAYS(-EPERM, sublet_pin_extents, &w->pin, 0, &extent, 1);
	SAYS(0, sublet_pin_list, w->arena, &next, 1, &w->pin_info);
	QUIET(sublet_pin_limit, w->mm, 0);
	SAYS(-EPERM, sublet_notifier_add, w->mm, w->memory, BYTES, &world_notifier_ops, w, NULL, &notifier);
	SAYS(-EPERM, sublet_notifier_remove, &w->notifier);
	SAYS(-EPERM, sublet_notifier_read_begin, &w->notifier, SUBLET_SEC, &seq);
	SAYS(true, sublet_notifier_read_retry, &w->notifier, 0);
	SAYS(-EPERM, sublet_notifier_stats, w->mm, &w->notifier_stats);
}

static void child_devices(struct world *w)
{
	struct sublet_device *device = NULL;
	struct sublet_iopt *iopt = NULL;
	struct sublet_bo bo;
	struct sublet_fence fence;
	struct sublet_extent extent = { 0, 4096 };
	uint64_t iova = SUBLET_IOVA_ANY, next = 0;

	SAYS(-EPERM, sublet_device_open_soft, w->arena, NULL, &device);
	SAYS(-EPERM, sublet_device_open_uring, w->arena, NULL, &device);
	SAYS(-EPERM, sublet_device_create, w->arena, &world_device_ops, w, &world_limits, &device);
	SAYS(0, sublet_device_collapse, w->device, UINT64_MAX);
	QUIET(sublet_device_complete, w->device, 1, 0, 0);
	QUIET(sublet_device_died, w->device);
	SAYS(-EPERM, sublet_device_info, w->device, &w->device_info);
	SAYS((long)w->device_iopt, sublet_device_iopt, w->device);
	SAYS(-EPERM, sublet_device_soft_fault, w->device, SUBLET_SOFT_ERROR);
	SAYS(-EPERM, sublet_bo_create, w->device, w->mm, w->memory, BYTES, SUBLET_BO_TRACKED, NULL, &bo);
	SAYS(-EPERM, sublet_bo_create_claim, w->device, &w->claim, 0, NULL, &bo);
	SAYS(-EPERM, sublet_bo_extents, &w->bo, 0, &extent, 1);
	SAYS(-EPERM, sublet_bo_destroy, &w->bo);
	SAYS(0, sublet_bo_list, w->arena, &next, 1, &w->bo_info);
	SAYS(-EPERM, sublet_submit, w->device, &w->job, &w->bo, 1, &fence);
	SAYS(-EPERM, sublet_submit_range, w->device, &w->job, w->mm, w->memory, &fence);
	SAYS(-EPERM, sublet_fence_wait, &w->fence, SUBLET_SEC, NULL, NULL);
	SAYS(-EPERM, sublet_fence_put, &w->fence);
	SAYS(-EPERM, sublet_iopt_create, w->arena, &w->iopt_options, &iopt);
	SAYS(-EPERM, sublet_iopt_map, w->iopt, &iova, 4096, 0, 0, SUBLET_IOPT_READ);
	SAYS(-EPERM, sublet_iopt_fill, w->iopt, w->iova, &extent, 1, 0);
	SAYS(-EPERM, sublet_iopt_clear, w->iopt, w->iova, 4096, 0);
	SAYS(-EPERM, sublet_iopt_unmap, w->iopt, w->iova, 4096, 0);
	QUIET(sublet_iopt_flush, w->iopt);
	SAYS(-EPERM, sublet_iopt_translate, w->iopt, w->iova, 0, &extent);
	SAYS(-EPERM, sublet_iopt_stats, w->iopt, &w->iopt_stats);
	QUIET(sublet_iopt_destroy, w->iopt);
	QUIET(sublet_device_close, w->device);
}

static void child_clients(struct world *w)
{
	struct sublet_claim claim = { .id = 1 };
	struct sublet_client *client = NULL;
	uint64_t next = 0, ns;
	int fd;

	SAYS(1, sublet_instance_list, NULL, 0);
	SAYS(-EPERM, sublet_client_info, w->client, &w->info);
	SAYS(-EPERM, sublet_client_fd, w->client, &fd);
	SAYS(-EPERM, sublet_client_claim, w->client, BYTES, NULL, &claim);
	SAYS(-EPERM, sublet_client_release, w->client, &claim);
	SAYS(-EPERM, sublet_client_stats, w->client, &w->stats);
	SAYS(-EPERM, sublet_client_pageblocks, w->client, 0, 1, &w->block);
	SAYS(-EPERM, sublet_client_pins, w->client, &next, 1, &w->pin_info);
	SAYS(-EPERM, sublet_client_bos, w->client, &next, 1, &w->bo_info);
	SAYS(-EPERM, sublet_client_memcpy_ns, w->client, 4096, &ns);
	said("sublet_client_instance", sublet_client_instance(w->client)->pid, getppid());
	QUIET(sublet_client_close, w->client); /* the child's end of it: the parent's goes on */
	/* Like any other process it may have a connection of its own. */
	SAYS(0, sublet_client_connect, world_name(), &client);
	wrong += sublet_client_stats(client, &w->stats) != 0;
	sublet_client_close(client);
}

static void child(struct world *w, bool is_bare)
{
	seen_count = wrong = 0;
	child_memory(w, is_bare);
	child_claims_and_pins(w);
	child_devices(w);
	child_clients(w);
	wrong += unseen();
}

static void in_child(pid_t (*make)(void), bool is_bare)
{
	struct world w;
	int status;

	world_open(&w);
	pid_t pid = make();
	if (!pid) {
		child(&w, is_bare);
		_exit(wrong > 100 ? 100 : (int)wrong);
	}
	assert_true(pid > 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	world_check(&w);
	world_close(&w);
}

static pid_t bare_fork(void)
{
	return (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
}

static void test_child(void **unused)
{
	(void)unused;
	in_child(fork, false);
}

static void test_child_of_the_bare_call(void **unused)
{
	(void)unused;
	in_child(bare_fork, true);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_null),
		cmocka_unit_test(test_child),
		cmocka_unit_test(test_child_of_the_bare_call),
	};
	return cmocka_run_group_tests_name("public calls", tests, NULL, NULL);
}
