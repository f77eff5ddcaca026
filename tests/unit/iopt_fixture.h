/* SPDX-License-Identifier: MIT */
/* iopt_fixture.h: a page table of a device, and what one asks of it again and again. Each look checks all of it. */
#ifndef TESTS_UNIT_IOPT_FIXTURE_H
#define TESTS_UNIT_IOPT_FIXTURE_H

#include "fixture.h"

#include "iopt_check.h"

#define M2 (2 * SUBLET_MIB)
#define G1 SUBLET_GIB
#define RW (SUBLET_IOPT_READ | SUBLET_IOPT_WRITE)

/* What the device is told. */
struct device {
	uint32_t flushes;
	uint64_t iova, bytes; /* of the last one */
	struct sublet_iopt *iopt;
	void (*during)(struct device *device);
};

/* The arena of a test has 2 GiB of frames, which cost 128 bytes each here. */
void open_arena(struct fake *f);
/* device NULL: nobody is told. */
struct sublet_iopt *open_table(struct fake *f, struct device *device, uint64_t first, uint64_t aperture);
void close_table(struct sublet_iopt *iopt);
struct sublet_iopt_stats stats_now(struct sublet_iopt *iopt);
void entries_are(struct sublet_iopt *iopt, uint64_t small, uint64_t large, uint64_t huge);
uint64_t map_at(struct sublet_iopt *iopt, uint64_t iova, uint64_t bytes);
int fill_one(struct sublet_iopt *iopt, uint64_t iova, uint64_t offset, uint64_t bytes, uint32_t flags);
void leads_to(struct sublet_iopt *iopt, uint64_t iova, uint64_t offset, uint64_t bytes);
void leads_nowhere(struct sublet_iopt *iopt, uint64_t iova);

#endif
