/* SPDX-License-Identifier: MIT */
/* fixture.h: what every unit test of the engine starts from, over the SIMULATED platform. */
#ifndef TESTS_UNIT_FIXTURE_H
#define TESTS_UNIT_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "core/engine.h"
#include "fake_platform.h"
#include "seed.h"

#include <sublet/pin.h>

#include <errno.h>

#define PAGE 4096ull
#define UNIT (64 * SUBLET_KIB)

/* Open, and die where that fails. */
void fixture_open(struct fake *f, const struct fake_options *options);
/* Verify (G8), no violation of the platform's contract, no memory left; close. */
void fixture_close(struct fake *f);
void fixture_verify(struct fake *f);

/*
 * Around the part of a test that has several threads: a failure there aborts, with its message, instead
 * of jumping out of the test, which is possible from its own thread only.
 */
void threads_begin(void);
void threads_end(void);

/* Seconds from the environment (UNIT_SECONDS), else `seconds`. */
uint64_t soak_ns(double seconds);

/* Map in mm 0 or die; returns the first page. */
uint32_t map_pages(struct fake *f, uint32_t pages, uint32_t flags);
void *addr_of(const struct fake *f, uint32_t mm, uint32_t vpn);
uint32_t vpn_of(const struct fake *f, uint32_t mm, const void *addr);
uint64_t bytes_of(const struct fake *f, uint64_t pages);

/* Write every word of pages of mm 0 with a value made of (key, page, word); check it (G1). */
void fill(struct fake *f, uint32_t mm, uint32_t vpn, uint32_t pages, uint64_t key);
void check_fill(struct fake *f, uint32_t mm, uint32_t vpn, uint32_t pages, uint64_t key);
/* The same for pages [first, first + pages) of what was filled from vpn on. */
void check_part(struct fake *f, uint32_t mm, uint32_t vpn, uint32_t first, uint32_t pages, uint64_t key);
void check_zero(struct fake *f, uint32_t mm, uint32_t vpn, uint32_t pages);

/* Claim; on success the frames are checked to be zero (but for NOZERO, G9), scribbled on, and owned. */
int claim_take(struct fake *f, uint64_t bytes, const struct sublet_claim_options *options,
	       struct sublet_claim *claim);
/* Release, and say so to the fake before. */
void claim_give(struct fake *f, struct sublet_claim *claim);

struct sublet_stats stats_of(struct fake *f);

/* As a fork of this mm alone begins: -errno of sublet__mm_fork_begin. */
int fork_begin(struct sublet_mm *mm);

#endif
