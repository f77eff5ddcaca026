/* SPDX-License-Identifier: MIT */
/* `uring` in a library that was built without liburing. */
#include "core/call.h"

#include <sublet/device.h>

int sublet_device_open_uring(struct sublet_arena *arena, const struct sublet_uring_options *options,
			     struct sublet_device **device)
{
	int err = device ? call_arena(arena) : -EINVAL;

	(void)options;
	return err ? err : -EOPNOTSUPP;
}
