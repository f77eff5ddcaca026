/* SPDX-License-Identifier: MIT */
/*
 * The default sizes of area and normal zone.
 *
 * All of both is taken from the machine when the program starts, and stays taken. So together they are a share of what
 * is free, where "free" is what the machine and every control group above this process leave (linux/cgroup.h): in a
 * container of 100 MB the program has three quarters of that for itself. Rejected: a least size of the normal zone,
 * which in a small container was most of what the container had.
 */
#include "cli/sizes.h"

#include "linux/limit.h"

#define AREA_MOST_BYTES   SUBLET_GIB
#define TOGETHER_MOST     (AREA_MOST_BYTES + AREA_MOST_BYTES / 4)
#define NORMAL_LIKE_BYTES (64 * SUBLET_MIB) /* where the share has room for it */

static uint64_t least(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static uint64_t round_up(uint64_t bytes)
{
	return (bytes + SUBLET__UNIT_BYTES - 1) / SUBLET__UNIT_BYTES * SUBLET__UNIT_BYTES;
}

/* At least a unit, and whole units. */
static uint64_t round_down(uint64_t bytes)
{
	return bytes < SUBLET__UNIT_BYTES ? SUBLET__UNIT_BYTES
					  : bytes / SUBLET__UNIT_BYTES * SUBLET__UNIT_BYTES;
}

static uint64_t share(const struct sublet__linux_facts *facts, bool is_hugetlb)
{
	uint64_t bytes = least(facts->memory_available_bytes / 4, TOGETHER_MOST);

	if (is_hugetlb)
		bytes = least(facts->hugetlb_free_pages * SUBLET__UNIT_BYTES, TOGETHER_MOST);
	return round_down(least(bytes, sublet__limit_fitting_bytes()));
}

static uint64_t left_of(uint64_t bytes, uint64_t taken)
{
	return bytes > taken ? bytes - taken : 0;
}

struct sublet__sizes sublet__sizes_choose(const struct sublet__linux_facts *facts,
					  const struct sublet__sizes *given, bool has_area, bool has_normal,
					  bool is_hugetlb)
{
	uint64_t together = share(facts, is_hugetlb);
	struct sublet__sizes s = { .area_bytes = round_up(given->area_bytes),
				   .normal_bytes = round_up(given->normal_bytes) };

	if (!has_area)
		s.area_bytes = round_down(least(
			has_normal ? left_of(together, s.normal_bytes) : together / 5 * 4, AREA_MOST_BYTES));
	if (has_normal)
		return s;
	s.normal_bytes = round_up(s.area_bytes / 4);
	if (s.normal_bytes < NORMAL_LIKE_BYTES && left_of(together, s.area_bytes) > s.normal_bytes)
		s.normal_bytes = least(left_of(together, s.area_bytes), NORMAL_LIKE_BYTES);
	return s;
}
