/* SPDX-License-Identifier: MIT */
/* dev/collapser.h: a thread that collapses a device's memory in the background, at a bounded rate. */
#ifndef SUBLET_DEV_COLLAPSER_H
#define SUBLET_DEV_COLLAPSER_H

#include "core/atomic.h"

#include <sublet/device.h>

#include "linux/thread.h"

struct sublet__collapser {
	struct sublet_device *device;
	uint64_t bytes_per_s;
	sublet__a32 running; /* futex: 1 while the thread lives and is wanted */
	struct sublet__thread thread;
};

/* -errno of the thread. */
int sublet__collapser_start(struct sublet__collapser *collapser, struct sublet_device *device,
			    uint64_t bytes_per_s);
/* No-op where it does not run. From a backend's close: the device is still there. */
void sublet__collapser_stop(struct sublet__collapser *collapser);

#endif
