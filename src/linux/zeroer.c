/* SPDX-License-Identifier: MIT */
/*
 * linux/zeroer.c: a thread that zeroes free memory ahead of time.
 *
 * Whoever gets frames gets them zeroed, and zeroing 64 MiB takes a few milliseconds. Done here, after
 * the release and before the next claim, it costs that claim nothing: a window of free memory is handed
 * out in microseconds. One folio at a time, so that a claim that comes in between waits for no
 * more than one; at a lower priority than the program; asleep while nothing is freed.
 */
#include "linux/instance.h"

#include <sys/resource.h>

#define NICE 10
/* From what was freed to zeroing it: who claims again at once moves into that memory, and would only be
   disturbed; and a program that frees all the time wakes this thread no more often. */
#define REST_NS (10 * SUBLET_MS)

static void *zeroer_main(void *arg)
{
	struct sublet__instance *in = arg;

	(void)setpriority(PRIO_PROCESS, 0, NICE); /* of this thread alone */
	/* Pairs with sublet__zeroer_stop. */
	while (a32_load_acquire(&in->zeroer.running)) {
		sublet__arena_zero_wait(in->arena);
		sublet__futex_wait(&in->zeroer.running, 1, REST_NS);
		while (a32_load_acquire(&in->zeroer.running) && sublet__arena_zero_step(in->arena))
			;
	}
	return NULL;
}

int sublet__zeroer_start(struct sublet__instance *in)
{
	a32_store_release(&in->zeroer.running, 1);
	int err = sublet__linux_thread_start(&in->zeroer.thread, "sublet-zero", zeroer_main, in);
	if (err)
		a32_store_release(&in->zeroer.running, 0);
	return err;
}

void sublet__zeroer_stop(struct sublet__instance *in)
{
	if (!a32_exchange_acq_rel(&in->zeroer.running, 0))
		return;
	sublet__futex_wake(&in->zeroer.running, UINT32_MAX);
	sublet__arena_zero_wake(in->arena);
	sublet__linux_thread_join(&in->zeroer.thread);
}
