/* SPDX-License-Identifier: MIT */
/*
 * core/lock.h: the engine's mutex. Uncontended it is one compare-and-swap and one exchange; only a
 * thread that must wait calls the platform.
 *
 * The whole lock order stands in src/README.md; each lock's definition says what it protects.
 * One rule goes beyond order: between block and wake of a run no lock is taken (core/move.c, L1).
 */
#ifndef SUBLET_CORE_LOCK_H
#define SUBLET_CORE_LOCK_H

#include "core/atomic.h"
#include "core/platform.h"

/* word: 0 free, 1 held, 2 held and somebody may be parked on it. */
struct sublet__lock {
	sublet__a32 word;
};

static inline bool lock_try(struct sublet__lock *lock)
{
	uint32_t free_word = 0;
	return a32_cas_acq_rel(&lock->word, &free_word, 1); /* acquire; pairs with lock_drop */
}

/* Only a hint: it may be otherwise by now. */
static inline bool lock_is_taken(const struct sublet__lock *lock)
{
	return a32_load_relaxed(&lock->word);
}

static inline void lock_take(const struct sublet__platform *platform, struct sublet__lock *lock)
{
	if (lock_try(lock))
		return;
	/* From here on the word says 2, so that whoever drops it wakes somebody. */
	while (a32_exchange_acq_rel(&lock->word, 2) != 0)
		platform->ops->park(platform->ctx, &lock->word, 2, UINT64_MAX);
}

/* The same, but not beyond until_ns; false: it is still taken. Who gives up leaves the 2, which wakes nobody in vain. */
static inline bool lock_take_until(const struct sublet__platform *platform, struct sublet__lock *lock,
				   uint64_t until_ns)
{
	if (lock_try(lock))
		return true;
	while (a32_exchange_acq_rel(&lock->word, 2) != 0) {
		uint64_t now = platform->ops->now_ns(platform->ctx);
		if (now >= until_ns)
			return false;
		platform->ops->park(platform->ctx, &lock->word, 2, until_ns - now);
	}
	return true;
}

static inline void lock_drop(const struct sublet__platform *platform, struct sublet__lock *lock)
{
	if (a32_exchange_acq_rel(&lock->word, 0) == 2) /* release; pairs with lock_try */
		platform->ops->unpark(platform->ctx, &lock->word, 1);
}

/*
 * For a few instructions: one compare-and-swap to take, a plain store to drop. A thread that finds
 * it taken spins, then sleeps a little: the holder may have been preempted.
 */
struct sublet__spin {
	sublet__a32 word; /* 0 free, 1 held */
};

#define SPIN_LOOKS    100u
#define SPIN_SLEEP_NS 20000u

static inline bool spin_try(struct sublet__spin *spin)
{
	uint32_t free_word = 0;
	/* acquire; pairs with spin_drop */
	return !a32_load_relaxed(&spin->word) && a32_cas_acq_rel(&spin->word, &free_word, 1);
}

static inline void spin_take(const struct sublet__platform *platform, struct sublet__spin *spin)
{
	for (;;) {
		for (uint32_t i = 0; i < SPIN_LOOKS; i++)
			if (spin_try(spin))
				return;
		platform->ops->sleep_ns(platform->ctx, SPIN_SLEEP_NS);
	}
}

static inline void spin_drop(struct sublet__spin *spin)
{
	a32_store_release(&spin->word, 0); /* pairs with spin_try */
}

static inline bool lock_is_held(const struct sublet__lock *lock)
{
	return a32_load_relaxed(&lock->word) != 0; /* only for assertions by the holder */
}

#endif
