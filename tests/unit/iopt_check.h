/* SPDX-License-Identifier: MIT */
/* iopt_check.h: what is always true of a device's page table and of its iova space, looked at from scratch. */
#ifndef TESTS_UNIT_IOPT_CHECK_H
#define TESTS_UNIT_IOPT_CHECK_H

#include "core/iopt.h"

/* What one thread does alone has nothing to race with: tests of that kind do less of it under the thread sanitizer. */
#if defined(__SANITIZE_THREAD__)
#define UNDER_TSAN true
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define UNDER_TSAN true
#endif
#endif
#ifndef UNDER_TSAN
#define UNDER_TSAN false
#endif

/*
 * A1  ranges lie end to end over the whole space, no two free ones side by side
 * A2  the tree by address holds all ranges, the one by size the free ones; both are in order and balanced
 * A3  a node of the tree by size knows the most aligned room in its subtree
 * A4  the counts of taken ranges and pages are right, and no range is lost
 */
void iova_check(const struct sublet__iova *iova);

/*
 * P1  `used` is the number of slots below that are not empty
 * P2  a large entry with ENTRY_LOWER has all 512 entries below it, saying the same; one without has nothing below it
 * P3  an entry lies in one mapping, allows what that allows, is aligned, and stays inside the arena
 * P4  the counts of entries are what a walker can meet
 * and A1 to A4.
 */
void iopt_check(const struct sublet_iopt *iopt);

#endif
