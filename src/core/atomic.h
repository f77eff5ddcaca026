/* SPDX-License-Identifier: MIT */
/*
 * core/atomic.h: the engine's only atomics. The order is part of the name; each use names its partner.
 */
#ifndef SUBLET_CORE_ATOMIC_H
#define SUBLET_CORE_ATOMIC_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

typedef _Atomic uint32_t sublet__a32;
typedef _Atomic uint64_t sublet__a64;

/* Under src/sim another thread may come in before each atomic step, those of core/lock.h too; else this is nothing. */
#ifdef SUBLET__STEPS
void sublet__step(const volatile void *at);
#else
static inline void sublet__step(const volatile void *at)
{
	(void)at;
}
#endif

static inline uint32_t a32_load_relaxed(const sublet__a32 *a)
{
	sublet__step(a);
	return atomic_load_explicit(a, memory_order_relaxed);
}

static inline uint32_t a32_load_acquire(const sublet__a32 *a)
{
	sublet__step(a);
	return atomic_load_explicit(a, memory_order_acquire);
}

static inline void a32_store_relaxed(sublet__a32 *a, uint32_t v)
{
	sublet__step(a);
	atomic_store_explicit(a, v, memory_order_relaxed);
}

static inline void a32_store_release(sublet__a32 *a, uint32_t v)
{
	sublet__step(a);
	atomic_store_explicit(a, v, memory_order_release);
}

static inline uint32_t a32_exchange_acq_rel(sublet__a32 *a, uint32_t v)
{
	sublet__step(a);
	return atomic_exchange_explicit(a, v, memory_order_acq_rel);
}

static inline bool a32_cas_acq_rel(sublet__a32 *a, uint32_t *expected, uint32_t v)
{
	sublet__step(a);
	return atomic_compare_exchange_strong_explicit(a, expected, v, memory_order_acq_rel,
						       memory_order_acquire);
}

static inline bool a32_cas_seq_cst(sublet__a32 *a, uint32_t *expected, uint32_t v)
{
	sublet__step(a);
	return atomic_compare_exchange_strong_explicit(a, expected, v, memory_order_seq_cst,
						       memory_order_acquire);
}

static inline uint32_t a32_load_seq_cst(const sublet__a32 *a)
{
	sublet__step(a);
	return atomic_load_explicit(a, memory_order_seq_cst);
}

static inline void a32_store_seq_cst(sublet__a32 *a, uint32_t v)
{
	sublet__step(a);
	atomic_store_explicit(a, v, memory_order_seq_cst);
}

static inline uint32_t a32_add_relaxed(sublet__a32 *a, uint32_t v)
{
	sublet__step(a);
	return atomic_fetch_add_explicit(a, v, memory_order_relaxed);
}

static inline uint32_t a32_sub_relaxed(sublet__a32 *a, uint32_t v)
{
	sublet__step(a);
	return atomic_fetch_sub_explicit(a, v, memory_order_relaxed);
}

static inline uint32_t a32_add_seq_cst(sublet__a32 *a, uint32_t v)
{
	sublet__step(a);
	return atomic_fetch_add_explicit(a, v, memory_order_seq_cst);
}

static inline uint32_t a32_add_acq_rel(sublet__a32 *a, uint32_t v)
{
	sublet__step(a);
	return atomic_fetch_add_explicit(a, v, memory_order_acq_rel);
}

static inline uint32_t a32_sub_acq_rel(sublet__a32 *a, uint32_t v)
{
	sublet__step(a);
	return atomic_fetch_sub_explicit(a, v, memory_order_acq_rel);
}

static inline uint32_t a32_and_acq_rel(sublet__a32 *a, uint32_t v)
{
	sublet__step(a);
	return atomic_fetch_and_explicit(a, v, memory_order_acq_rel);
}

static inline uint32_t a32_or_acq_rel(sublet__a32 *a, uint32_t v)
{
	sublet__step(a);
	return atomic_fetch_or_explicit(a, v, memory_order_acq_rel);
}

static inline uint64_t a64_load_acquire(const sublet__a64 *a)
{
	sublet__step(a);
	return atomic_load_explicit(a, memory_order_acquire);
}

static inline void a64_store_release(sublet__a64 *a, uint64_t v)
{
	sublet__step(a);
	atomic_store_explicit(a, v, memory_order_release);
}

/* Statistics: each counter stands alone, so relaxed is enough. */
static inline uint64_t a64_load_relaxed(const sublet__a64 *a)
{
	sublet__step(a);
	return atomic_load_explicit(a, memory_order_relaxed);
}

static inline void a64_store_relaxed(sublet__a64 *a, uint64_t v)
{
	sublet__step(a);
	atomic_store_explicit(a, v, memory_order_relaxed);
}

static inline uint64_t a64_add_relaxed(sublet__a64 *a, uint64_t v)
{
	sublet__step(a);
	return atomic_fetch_add_explicit(a, v, memory_order_relaxed);
}

static inline uint64_t a64_add_seq_cst(sublet__a64 *a, uint64_t v)
{
	sublet__step(a);
	return atomic_fetch_add_explicit(a, v, memory_order_seq_cst);
}

static inline uint64_t a64_load_seq_cst(const sublet__a64 *a)
{
	sublet__step(a);
	return atomic_load_explicit(a, memory_order_seq_cst);
}

static inline uint64_t a64_or_seq_cst(sublet__a64 *a, uint64_t v)
{
	sublet__step(a);
	return atomic_fetch_or_explicit(a, v, memory_order_seq_cst);
}

static inline uint64_t a64_exchange_seq_cst(sublet__a64 *a, uint64_t v)
{
	sublet__step(a);
	return atomic_exchange_explicit(a, v, memory_order_seq_cst);
}

static inline uint64_t a64_sub_relaxed(sublet__a64 *a, uint64_t v)
{
	sublet__step(a);
	return atomic_fetch_sub_explicit(a, v, memory_order_relaxed);
}

/* These two retry: strong, for a weak one may fail for nothing, which a seed of src/sim could not replay. */

/* Add, unless that would be more than `most`; *old becomes what was there before. */
static inline bool a64_add_below_relaxed(sublet__a64 *a, uint64_t v, uint64_t most, uint64_t *old)
{
	sublet__step(a);
	*old = atomic_load_explicit(a, memory_order_relaxed);
	do {
		if (v > most || *old > most - v)
			return false;
		sublet__step(a);
	} while (!atomic_compare_exchange_strong_explicit(a, old, *old + v, memory_order_relaxed,
							  memory_order_relaxed));
	return true;
}

static inline void a64_max_relaxed(sublet__a64 *a, uint64_t v)
{
	sublet__step(a);
	uint64_t old = atomic_load_explicit(a, memory_order_relaxed);
	do
		sublet__step(a);
	while (old < v && !atomic_compare_exchange_strong_explicit(a, &old, v, memory_order_relaxed,
								   memory_order_relaxed));
}

#endif
