/* SPDX-License-Identifier: MIT */
/* soft_fixture.h: an arena with the DMA engine in software on it, and what one does with that. */
#ifndef SUBLET_TESTS_SOFT_FIXTURE_H
#define SUBLET_TESTS_SOFT_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

/* Before the variables below, whose names their parameters have. */
#include "core/arena.h"
#include "core/device.h"
#include "linux/instance.h"

#include <sublet/arena.h>
#include <sublet/bo.h>
#include <sublet/claim.h>
#include <sublet/device.h>
#include <sublet/map.h>

#define MIB      SUBLET_MIB
#define LONG_NS  (20 * SUBLET_SEC) /* never reached: a test that waits so long fails */
#define SHORT_NS (30 * SUBLET_MS)

extern struct sublet_arena *arena;
extern struct sublet_mm *mm;
extern struct sublet_device *device;
extern struct sublet_bo no_bo;

uint64_t wall_ns(void);
uint64_t rng(uint64_t *state);
uint64_t below(uint64_t *state, uint64_t n);

struct sublet_soft_options soft_options(void);
void arena_open(enum sublet_backing backing, uint64_t area_bytes, uint64_t normal_bytes);
/* Verifies it first. */
void arena_close(void);
/* An arena of 32 MiB with a device; options may be NULL. */
void setup(const struct sublet_soft_options *options);
/* Closes both; no access was bad. */
void teardown(void);
struct sublet_device_info info_now(void);

uint64_t *map(uint64_t bytes);
struct sublet_bo bo_over(void *addr, uint64_t bytes, uint32_t flags, const char *owner);
struct sublet_job job_of(uint32_t op, uint64_t bytes);
struct sublet_fence go(const struct sublet_job *job, struct sublet_bo first, struct sublet_bo second);
int fence_end(struct sublet_fence *fence, uint64_t *result);
/* Do one job; its result. */
uint64_t run(const struct sublet_job *job, struct sublet_bo first, struct sublet_bo second);
uint64_t sum_of(const uint64_t *words, uint64_t bytes);

#endif
