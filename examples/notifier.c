/* SPDX-License-Identifier: MIT */
/*
 * sublet/notifier.h: a driver that keeps a translation of user memory without pinning it. Here the translation is one
 * extent, and the "device" a memcpy through the linear map; what matters is the order of things.
 *
 *   cc notifier.c $(pkg-config --cflags --libs sublet) -pthread
 */
#include <sublet/arena.h>
#include <sublet/claim.h>
#include <sublet/map.h>
#include <sublet/notifier.h>

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define BYTES ((uint64_t)64 << 10)

struct driver {
	pthread_mutex_t lock;       /* protects where */
	struct sublet_extent where; /* bytes 0: not known */
	struct sublet_notifier notifier;
	uint32_t evictions;
};

/* The memory is about to change. After this the driver does not use the old place any more. */
static int on_invalidate(void *ctx, const struct sublet_invalidation *inv)
{
	struct driver *d = ctx;

	/* A move must not wait for a driver that is busy: it comes back later. */
	if (!inv->may_block && pthread_mutex_trylock(&d->lock))
		return -EAGAIN;
	if (inv->may_block)
		pthread_mutex_lock(&d->lock);
	d->where.bytes = 0;
	d->evictions++;
	pthread_mutex_unlock(&d->lock);
	return 0;
}

static const struct sublet_notifier_ops ops = { SUBLET_OPTIONS(sublet_notifier_ops),
						.invalidate = on_invalidate };

/* Find out where the buffer is, and take the driver's lock: the collision-retry sequence. */
static int driver_lock_bound(struct driver *d, struct sublet_mm *mm, void *buffer)
{
	for (int tries = 0; tries < 100; tries++) {
		struct sublet_extent extent;
		uint64_t seq;
		int err = sublet_notifier_read_begin(&d->notifier, SUBLET_SEC, &seq);
		if (err)
			return err;
		int count = sublet_mm_extents(mm, buffer, BYTES, 0, &extent, 1);
		pthread_mutex_lock(&d->lock);
		if (!sublet_notifier_read_retry(&d->notifier, seq)) {
			if (count == 1) {
				d->where = extent;
				return 0; /* the lock stays with the caller: until it drops it, nothing moves */
			}
			pthread_mutex_unlock(&d->lock);
			return count < 0 ? count : -EIO;
		}
		pthread_mutex_unlock(&d->lock);
	}
	return -EBUSY;
}

int main(void)
{
	struct sublet_arena_options options = { SUBLET_OPTIONS(sublet_arena_options),
						.area_bytes = 64 * SUBLET_MIB };
	struct sublet_arena_info info = { SUBLET_OPTIONS(sublet_arena_info) };
	struct sublet_claim_options all = { SUBLET_OPTIONS(sublet_claim_options),
					    .flags = SUBLET_CLAIM_DEAREST };
	struct driver d = { .lock = PTHREAD_MUTEX_INITIALIZER };
	struct sublet_arena *arena;
	void *buffer;
	int err = sublet_arena_create(&options, &arena);

	if (!err)
		err = sublet_arena_info(arena, &info);
	if (!err)
		err = sublet_map(sublet_arena_mm(arena), BYTES, SUBLET_MOVABLE, &buffer);
	if (!err)
		err = sublet_notifier_add(sublet_arena_mm(arena), buffer, BYTES, &ops, &d, "example driver",
					  &d.notifier);
	for (unsigned int i = 0; !err && i < 10; i++) {
		struct sublet_claim claim;
		/* The device writes, wherever the buffer is now ... */
		err = driver_lock_bound(&d, sublet_arena_mm(arena), buffer);
		if (err)
			break;
		memset((char *)info.linear + d.where.offset_bytes, (int)('a' + i), d.where.bytes);
		pthread_mutex_unlock(&d.lock);
		/* ... somebody claims the very place, and the buffer goes elsewhere ... */
		err = sublet_claim(arena, 32 * SUBLET_MIB, &all, &claim);
		if (!err)
			err = sublet_release(arena, &claim);
		/* ... and the program reads what the device wrote, at the same address. */
		if (!err && (((char *)buffer)[0] != (char)('a' + i) ||
			     ((char *)buffer)[BYTES - 1] != (char)('a' + i)))
			err = -EIO;
	}
	if (!err)
		err = sublet_notifier_remove(&d.notifier);
	if (err) {
		fprintf(stderr, "notifier: %s\n", strerror(-err));
		return 1;
	}
	if (!d.evictions) {
		fprintf(stderr, "the claims took the very place of the buffer, and nobody was told\n");
		return 1;
	}
	printf("10 writes by the device, %u evictions, no pin, nothing lost\n", d.evictions);
	err = sublet_arena_destroy(arena);
	if (err)
		fprintf(stderr, "destroy the arena: %s\n", strerror(-err));
	return err != 0;
}
