/* SPDX-License-Identifier: MIT */
/* `uring` in a library that was built without liburing. */
#include <sublet/device.h>

#include <errno.h>

int sublet_device_open_uring(struct sublet_arena *arena, const struct sublet_uring_options *options,
			     struct sublet_device **device)
{
	(void)arena, (void)options, (void)device;
	return -EOPNOTSUPP;
}
