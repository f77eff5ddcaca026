/* SPDX-License-Identifier: MIT */
/*
 * A thread that collapses in the background, for any device with a page table of its own.
 *
 * It earns its budget by the clock, and spends it once it is enough for a piece: a rate that is low means that it comes
 * seldom, not that it never does. What it did not need it keeps for a second at most, so that after a quiet hour it does
 * not move everything at once.
 */
#include "dev/collapser.h"

#include "linux/linux.h"
#include "linux/platform.h"

#define PIECE_BYTES (2 * SUBLET_MIB)
#define PERIOD_NS   (100 * SUBLET_MS)

static void *collapser_main(void *arg)
{
	struct sublet__collapser *c = arg;
	uint64_t budget = 0, most = c->bytes_per_s > PIECE_BYTES ? c->bytes_per_s : PIECE_BYTES;
	uint64_t before = sublet__now_ns();

	/* Pairs with sublet__collapser_stop. */
	while (a32_load_acquire(&c->running)) {
		sublet__futex_wait(&c->running, 1, PERIOD_NS);
		uint64_t now = sublet__now_ns();
		uint64_t elapsed_us = (now - before) / SUBLET_US;
		elapsed_us = elapsed_us < SUBLET_SEC / SUBLET_US ? elapsed_us : SUBLET_SEC / SUBLET_US;
		budget += c->bytes_per_s / 1000 * elapsed_us / 1000;
		budget = budget < most ? budget : most;
		before = now;
		if (budget < PIECE_BYTES)
			continue;
		uint64_t spent = sublet_device_collapse(c->device, budget);
		budget -= spent < budget ? spent : budget;
	}
	return NULL;
}

int sublet__collapser_start(struct sublet__collapser *c, struct sublet_device *device, uint64_t bytes_per_s)
{
	c->device = device;
	c->bytes_per_s = bytes_per_s;
	a32_store_release(&c->running, 1);
	int err = sublet__linux_thread_start(&c->thread, "sublet-collapse", collapser_main, c);
	if (err)
		a32_store_release(&c->running, 0);
	return err;
}

void sublet__collapser_stop(struct sublet__collapser *c)
{
	if (!a32_exchange_acq_rel(&c->running, 0))
		return;
	sublet__futex_wake(&c->running, UINT32_MAX);
	sublet__linux_thread_join(&c->thread);
}
