/* SPDX-License-Identifier: MIT */
/* cli/sizes.h: how large area and normal zone become where nobody says. */
#ifndef SUBLET_CLI_SIZES_H
#define SUBLET_CLI_SIZES_H

#include "linux/linux.h"

#define SUBLET__UNIT_BYTES (2 * SUBLET_MIB)

struct sublet__sizes {
	uint64_t area_bytes;
	uint64_t normal_bytes;
};

/*
 * Both sizes, as multiples of 2 MiB; *given where `has_` says so, rounded up. What is not given is chosen so that both
 * together are at most a quarter of the memory that is free, or 1.25 GiB; less where limits of the
 * process (linux/limit.h) or the free pages of hugetlb say so. Never less than 2 MiB each.
 */
struct sublet__sizes sublet__sizes_choose(const struct sublet__linux_facts *facts,
					  const struct sublet__sizes *given, bool has_area, bool has_normal,
					  bool is_hugetlb);

#endif
