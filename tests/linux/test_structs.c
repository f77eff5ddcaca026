/* SPDX-License-Identifier: MIT */
/*
 * Structs that begin with their size, each of them, as a program of another version has them; members called reserved; and what
 * must be given back before its arena can be destroyed (sublet/types.h, sublet/arena.h).
 */
#include "calls_world.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define MORE 64u

/* A struct with what a newer program has behind it. */
union room {
	uint64_t size_bytes;
	unsigned char bytes[4096 + MORE];
};

/* Make the call with this struct, and undo it where it succeeded. */
typedef int (*attempt)(struct world *w, void *object);

static int try_arena(struct world *w, void *o)
{
	int err = sublet_arena_create(o, &w->other);
	return err ? err : sublet_arena_destroy(w->other);
}

static int try_claim(struct world *w, void *o)
{
	struct sublet_claim claim;
	int err = sublet_claim(w->arena, SUBLET_MIB, o, &claim);
	return err ? err : sublet_release(w->arena, &claim);
}

static int try_client_claim(struct world *w, void *o)
{
	struct sublet_claim claim;
	int err = sublet_client_claim(w->client, SUBLET_MIB, o, &claim);
	return err ? err : sublet_client_release(w->client, &claim);
}

static int try_notifier(struct world *w, void *o)
{
	struct sublet_notifier notifier;
	int err = sublet_notifier_add(w->mm, w->memory, BYTES, o, w, NULL, &notifier);
	return err ? err : sublet_notifier_remove(&notifier);
}

static int try_iopt(struct world *w, void *o)
{
	struct sublet_iopt *iopt;
	int err = sublet_iopt_create(w->arena, o, &iopt);
	if (!err)
		sublet_iopt_destroy(iopt);
	return err;
}

static int device_closed(int err, struct sublet_device *device)
{
	if (!err)
		sublet_device_close(device);
	return err;
}

static int try_soft(struct world *w, void *o)
{
	struct sublet_device *device;
	int err = sublet_device_open_soft(w->arena, o, &device);
	return device_closed(err, device);
}

static int try_uring(struct world *w, void *o)
{
	struct sublet_device *device;
	int err = sublet_device_open_uring(w->arena, o, &device);
	return device_closed(err, device);
}

static int try_limits(struct world *w, void *o)
{
	struct sublet_device *device;
	int err = sublet_device_create(w->arena, &world_device_ops, w, o, &device);
	return device_closed(err, device);
}

static int try_ops(struct world *w, void *o)
{
	struct sublet_device *device;
	int err = sublet_device_create(w->arena, o, w, &world_limits, &device);
	return device_closed(err, device);
}

static int fence_done(int err, struct sublet_fence *fence)
{
	if (!err)
		err = sublet_fence_wait(fence, 5 * SUBLET_SEC, NULL, NULL);
	return err ? err : sublet_fence_put(fence);
}

static int try_job(struct world *w, void *o)
{
	struct sublet_fence fence;
	int err = sublet_submit(w->device, o, &w->bo, 1, &fence);
	return fence_done(err, &fence);
}

static int try_info(struct world *w, void *o)
{
	return sublet_arena_info(w->arena, o);
}

static int try_stats(struct world *w, void *o)
{
	return sublet_arena_stats(w->arena, o);
}

static int try_client_info(struct world *w, void *o)
{
	return sublet_client_info(w->client, o);
}

static int try_client_stats(struct world *w, void *o)
{
	return sublet_client_stats(w->client, o);
}

static int try_device_info(struct world *w, void *o)
{
	return sublet_device_info(w->device, o);
}

static int try_notifier_stats(struct world *w, void *o)
{
	return sublet_notifier_stats(w->mm, o);
}

static int try_iopt_stats(struct world *w, void *o)
{
	return sublet_iopt_stats(w->iopt, o);
}

struct row {
	const char *name;
	attempt fn;
	const void *good; /* options; NULL: filled in by the call */
	size_t bytes;
};

#define OPTIONS(type, fn, good)                      \
	{                                            \
#type, fn, good, sizeof(struct type) \
	}
#define INFO(type, fn)                               \
	{                                            \
#type, fn, NULL, sizeof(struct type) \
	}

static const struct sublet_arena_options arena_options = { SUBLET_OPTIONS(sublet_arena_options),
							   .area_bytes = 2 * SUBLET_MIB,
							   .normal_bytes = 2 * SUBLET_MIB };
static const struct sublet_claim_options claim_options = { SUBLET_OPTIONS(sublet_claim_options) };
static const struct sublet_iopt_options iopt_options = { SUBLET_OPTIONS(sublet_iopt_options),
							 .aperture_bytes = SUBLET_MIB };
static const struct sublet_soft_options soft_options = { SUBLET_OPTIONS(sublet_soft_options) };
static const struct sublet_uring_options uring_options = { SUBLET_OPTIONS(sublet_uring_options) };
static const struct sublet_job job = { SUBLET_OPTIONS(sublet_job), .op = SUBLET_JOB_FILL, .bytes = BYTES,
				       .pattern = 0x6363636363636363 };

static const struct row rows[] = {
	OPTIONS(sublet_arena_options, try_arena, &arena_options),
	OPTIONS(sublet_claim_options, try_claim, &claim_options),
	OPTIONS(sublet_claim_options, try_client_claim, &claim_options),
	OPTIONS(sublet_notifier_ops, try_notifier, &world_notifier_ops),
	OPTIONS(sublet_iopt_options, try_iopt, &iopt_options),
	OPTIONS(sublet_soft_options, try_soft, &soft_options),
	OPTIONS(sublet_uring_options, try_uring, &uring_options),
	OPTIONS(sublet_device_limits, try_limits, &world_limits),
	OPTIONS(sublet_device_ops, try_ops, &world_device_ops),
	OPTIONS(sublet_job, try_job, &job),
	INFO(sublet_arena_info, try_info),
	INFO(sublet_arena_info, try_client_info),
	INFO(sublet_stats, try_stats),
	INFO(sublet_stats, try_client_stats),
	INFO(sublet_device_info, try_device_info),
	INFO(sublet_notifier_stats, try_notifier_stats),
	INFO(sublet_iopt_stats, try_iopt_stats),
};

static void answers(struct world *w, const struct row *row, union room *room, int wanted, const char *what)
{
	int answer = row->fn(w, room);

	if (answer != wanted)
		fail_msg("%s, %s: %d, not %d", row->name, what, answer, wanted);
}

static void prepare(const struct row *row, union room *room, uint64_t size_bytes)
{
	memset(room, row->good ? 0 : 0xee, sizeof *room);
	if (row->good)
		memcpy(room, row->good, row->bytes);
	room->size_bytes = size_bytes;
}

static void options_row(struct world *w, const struct row *row, union room *room)
{
	prepare(row, room, row->bytes + MORE);
	answers(w, row, room, 0, "longer, and 0 there");
	for (uint32_t i = 0; i < MORE; i++) {
		prepare(row, room, row->bytes + MORE);
		room->bytes[row->bytes + i] = 1;
		answers(w, row, room, -E2BIG, "longer, and not 0 there");
	}
	/* What is beyond the size is nobody's. */
	prepare(row, room, row->bytes);
	memset(room->bytes + row->bytes, 0xff, MORE);
	answers(w, row, room, 0, "with other things behind it");
}

static void info_row(struct world *w, const struct row *row, union room *room)
{
	prepare(row, room, row->bytes + MORE);
	answers(w, row, room, 0, "longer");
	assert_int_equal(room->size_bytes, row->bytes + MORE);
	for (uint32_t i = 0; i < MORE; i++)
		assert_int_equal(room->bytes[row->bytes + i], 0);
	assert_int_equal(room->bytes[row->bytes + MORE], 0xee);
	/* All shorter ones that it takes: not a byte beyond. */
	for (uint64_t size = 8; size <= row->bytes; size += 4) {
		prepare(row, room, size);
		int answer = row->fn(w, room);
		if (answer && answer != -EINVAL)
			fail_msg("%s, of %llu bytes: %d", row->name, (unsigned long long)size, answer);
		for (uint64_t i = answer ? 8 : size; i < row->bytes; i++)
			assert_int_equal(room->bytes[i], 0xee);
	}
}

static void test_sizes(void **unused)
{
	static union room room;
	struct world w;
	(void)unused;

	world_open(&w);
	for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
		const struct row *row = &rows[i];
		prepare(row, &room, row->bytes);
		if (row->fn == try_uring && try_uring(&w, &room) == -EOPNOTSUPP)
			continue; /* no io_uring here */
		answers(&w, row, &room, 0, "as it is");
		for (uint64_t size = 0; size <= 12; size++) {
			prepare(row, &room, size);
			answers(&w, row, &room, -EINVAL, "shorter than any version");
		}
		prepare(row, &room, 4097);
		answers(&w, row, &room, -E2BIG, "larger than any version");
		prepare(row, &room, UINT64_MAX);
		answers(&w, row, &room, -E2BIG, "of no size");
		if (row->good)
			options_row(&w, row, &room);
		else
			info_row(&w, row, &room);
	}
	memset(w.cache, 'c', BYTES);
	assert_int_equal(sublet_device_info(w.device, &w.device_info), 0);
	assert_int_equal(w.device_info.dead, 0);
	world_close(&w);
}

static void test_reserved(void **unused)
{
	struct sublet_claim_options claim = claim_options;
	struct sublet_soft_options soft = soft_options;
	struct world w;
	(void)unused;

	world_open(&w);
	claim.reserved = 1;
	assert_int_equal(try_claim(&w, &claim), -EINVAL);
	assert_int_equal(try_client_claim(&w, &claim), -EINVAL);
	soft.reserved = 1;
	assert_int_equal(try_soft(&w, &soft), -EINVAL);
	/* and flags that nobody knows */
	claim = claim_options;
	for (uint32_t bit = 3; bit < 32; bit++) {
		claim.flags = 1u << bit;
		assert_int_equal(try_claim(&w, &claim), -EINVAL);
		assert_int_equal(try_client_claim(&w, &claim), -EINVAL);
	}
	world_check(&w);
	world_close(&w);
}

/* ---- what outlives its arena ---- */

static struct sublet_arena *arena;
static struct sublet_mm *mm, *mm2;
static void *memory, *memory2;

static void arena_open(void)
{
	struct sublet_arena_options o = { SUBLET_OPTIONS(sublet_arena_options), .area_bytes = 8 * SUBLET_MIB,
					  .normal_bytes = 8 * SUBLET_MIB };

	assert_int_equal(sublet_arena_create(&o, &arena), 0);
	mm = sublet_arena_mm(arena);
	assert_int_equal(sublet_arena_mm_add(arena, &mm2), 0);
	assert_int_equal(sublet_map(mm, BYTES, SUBLET_MOVABLE | SUBLET_PLAIN_OK, &memory), 0);
	assert_int_equal(sublet_map(mm2, SUBLET_MIB, SUBLET_MOVABLE, &memory2), 0);
	memset(memory, 'm', BYTES);
}

/* Refused, and nothing has changed by it. */
static void stays(void)
{
	struct sublet_claim claim;

	for (uint32_t i = 0; i < 2; i++)
		assert_int_equal(sublet_arena_destroy(arena), -EBUSY);
	assert_int_equal(((char *)memory)[BYTES - 1], 'm');
	assert_int_equal(sublet_claim(arena, 4096, NULL, &claim), 0);
	assert_int_equal(sublet_release(arena, &claim), 0);
}

static void goes(void)
{
	assert_int_equal(sublet_arena_destroy(arena), 0);
}

static void test_destroy_with_claims_and_pins(void **unused)
{
	static const uint32_t kind[] = { SUBLET_PIN_READ, SUBLET_PIN_READ | SUBLET_PIN_LONGTERM };
	static const char *const owner[] = { NULL, "test" };
	struct sublet_claim claim;
	struct sublet_pin pin;
	void *more;
	(void)unused;

	arena_open();
	assert_int_equal(sublet_claim(arena, 4096, NULL, &claim), 0);
	stays();
	assert_int_equal(sublet_release(arena, &claim), 0);
	goes();
	for (uint32_t i = 0; i < 8; i++) {
		arena_open();
		assert_int_equal(sublet_pin(i & 4 ? mm2 : mm, i & 4 ? memory2 : memory, 1, kind[i & 1],
					    owner[i >> 1 & 1], &pin),
				 0);
		stays();
		assert_int_equal(sublet_unpin(&pin), 0);
		goes();
	}
	/* Ordinary memory, of which no frame knows that it is pinned. */
	arena_open();
	assert_int_equal(sublet_map(mm, 16 * SUBLET_MIB, SUBLET_MOVABLE | SUBLET_PLAIN_OK, &more), 0);
	struct sublet_stats stats = { SUBLET_OPTIONS(sublet_stats) };
	assert_int_equal(sublet_arena_stats(arena, &stats), 0);
	assert_true(stats.plain_bytes >= 4 * SUBLET_MIB);
	assert_int_equal(
		sublet_pin(mm, (char *)more + 16 * SUBLET_MIB - 4096, 4096, SUBLET_PIN_READ, NULL, &pin), 0);
	assert_int_equal(sublet_arena_destroy(arena), -EBUSY);
	assert_int_equal(sublet_unpin(&pin), 0);
	goes();
}

static void test_destroy_with_devices(void **unused)
{
	struct sublet_iopt_options o = iopt_options;
	struct sublet_device *device;
	struct sublet_iopt *iopt;
	struct sublet_bo bo;
	(void)unused;

	arena_open();
	assert_int_equal(sublet_device_open_soft(arena, NULL, &device), 0);
	stays();
	assert_int_equal(sublet_bo_create(device, mm, memory, BYTES, SUBLET_BO_TRACKED, NULL, &bo), 0);
	stays();
	sublet_device_close(device); /* and its bo */
	goes();

	arena_open();
	int err = sublet_device_open_uring(arena, NULL, &device);
	if (!err) {
		stays();
		assert_int_equal(
			sublet_bo_create(device, mm, memory, SUBLET_MIB, SUBLET_BO_PINNED, NULL, &bo), 0);
		stays();
		sublet_device_close(device);
	}
	goes();

	arena_open();
	assert_int_equal(sublet_device_create(arena, &world_device_ops, NULL, &world_limits, &device), 0);
	stays();
	sublet_device_close(device);
	assert_int_equal(sublet_iopt_create(arena, &o, &iopt), 0);
	stays();
	sublet_iopt_destroy(iopt);
	goes();
}

/* Notifiers are told, and gone. A driver in another process keeps nobody's arena alive. */
static void test_destroy_tells(void **unused)
{
	struct sublet_notifier notifier;
	struct sublet_claim claim;
	struct world w;
	int status, end[2];
	char byte;
	(void)unused;

	world_open(&w); /* for its directory of sockets, and a notifier that counts */
	arena_open();
	assert_int_equal(sublet_notifier_add(mm, memory, BYTES, &world_notifier_ops, &w, NULL, &notifier), 0);
	assert_int_equal(sublet_arena_serve(arena, "end"), 0);
	assert_int_equal(pipe(end), 0);
	pid_t pid = fork();
	if (!pid) {
		struct sublet_client *client;
		if (sublet_client_connect("end", &client) ||
		    sublet_client_claim(client, SUBLET_MIB, NULL, &claim) || write(end[1], "", 1) != 1)
			_exit(1);
		while (!sublet_client_stats(client, &w.stats))
			usleep(1000);
		_exit(sublet_client_release(client, &claim) == -EPIPE ? 0 : 2);
	}
	assert_int_equal(read(end[0], &byte, 1), 1);
	goes();
	assert_int_equal(w.exits, 1);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	close(end[0]);
	close(end[1]);
	w.exits = 0;
	world_check(&w);
	world_close(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_sizes),
		cmocka_unit_test(test_reserved),
		cmocka_unit_test(test_destroy_with_claims_and_pins),
		cmocka_unit_test(test_destroy_with_devices),
		cmocka_unit_test(test_destroy_tells),
	};
	return cmocka_run_group_tests_name("structs and ends", tests, NULL, NULL);
}
