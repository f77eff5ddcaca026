/* SPDX-License-Identifier: MIT */
/* seed.h: randomness that can be had again, for tests of any layer. */
#ifndef TESTS_UNIT_SEED_H
#define TESTS_UNIT_SEED_H

#include <stdint.h>

/* splitmix64 */
uint64_t rng(uint64_t *state);
/* A number below n, n > 0. */
uint32_t below(uint64_t *state, uint32_t n);
/* The seed of a random test: SEED from the environment, else one that differs each time; printed. */
uint64_t seed_get(const char *test);
uint64_t wall_ns(void);

#endif
