/* SPDX-License-Identifier: MIT */
/*
 * linux/chaos.c: torture mode. A thread that moves live memory for no reason.
 *
 * Programs that run in lent memory should not be able to tell. This thread moves one run each
 * period and claims and releases a window of random size about every sixteenth time, so that any
 * program, and its own test suite, becomes a test of ours. It is an ordinary user of the engine;
 * what it does follows from the seed, when it does it from the machine.
 */
#include "linux/instance.h"

#include <errno.h>

#define MMS_PICKED        4u
#define CLAIM_EVERY       16u
#define CLAIM_MIN_BYTES   (64 * SUBLET_KIB)
#define CLAIM_DEADLINE_NS (20 * SUBLET_MS)

static uint64_t next_random(uint64_t *state)
{
	uint64_t z = *state += 0x9E3779B97F4A7C15u; /* splitmix64 */

	z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
	z = (z ^ z >> 27) * 0x94D049BB133111EBu;
	return z ^ z >> 31;
}

static void claim_some(struct sublet__instance *in, uint64_t random)
{
	const struct sublet_claim_options options = { SUBLET_OPTIONS(sublet_claim_options),
						      .deadline_ns = CLAIM_DEADLINE_NS, .owner = "chaos" };
	uint64_t most = in->area_bytes / 8;
	uint64_t bytes = CLAIM_MIN_BYTES + random % (most > CLAIM_MIN_BYTES ? most - CLAIM_MIN_BYTES + 1 : 1);
	struct sublet_claim claim;

	if (!sublet_claim(in->arena, bytes, &options, &claim) && sublet_release(in->arena, &claim))
		__builtin_trap(); /* our own claim is not held: the engine has lost it */
}

static void *chaos_main(void *arg)
{
	struct sublet__instance *in = arg;
	uint64_t state = in->chaos.seed;

	/* Pairs with sublet__chaos_stop. */
	while (a32_load_acquire(&in->chaos.running)) {
		sublet__futex_wait(&in->chaos.running, 1, in->chaos.period_ns);
		uint64_t random = next_random(&state);
		if (random % CLAIM_EVERY) {
			/* Any address space: the first one where the number is too large. */
			struct sublet_mm *mm = sublet__arena_mm(in->arena, random >> 32 & (MMS_PICKED - 1));
			mm = mm ? mm : sublet__arena_mm(in->arena, 0);
			(void)sublet__chaos_move(in->arena, mm, random / CLAIM_EVERY);
		} else
			claim_some(in, next_random(&state));
	}
	return NULL;
}

int sublet__linux_chaos_start(struct sublet_arena *arena, uint64_t period_ns, uint64_t seed)
{
	struct sublet__instance *in = sublet__instance_of(arena);
	uint32_t idle = 0;

	if (!period_ns)
		return -EINVAL;
	if (!a32_cas_acq_rel(&in->chaos.running, &idle, 1))
		return -EALREADY;
	in->chaos.period_ns = period_ns;
	in->chaos.seed = seed;
	int err = sublet__linux_thread_start(&in->chaos.thread, "sublet-chaos", chaos_main, in);
	if (err)
		a32_store_release(&in->chaos.running, 0);
	return err;
}

void sublet__chaos_stop(struct sublet__instance *in)
{
	if (!a32_exchange_acq_rel(&in->chaos.running, 0))
		return;
	sublet__futex_wake(&in->chaos.running, UINT32_MAX);
	sublet__linux_thread_join(&in->chaos.thread);
}
