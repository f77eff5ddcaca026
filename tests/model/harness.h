/* SPDX-License-Identifier: MIT */
/*
 * harness.h: lists of operations, run on the real thing and on a naive twin; a list that fails is made short.
 *
 * A model says what operations there are, and does one of them on both sides, with cmocka's assertions: every
 * answer is compared. Arguments are plain numbers that make sense in any state (the n-th of what is there,
 * modulo how many there are), and an operation that cannot be done now does nothing: so any part of a list is a list.
 *
 * Lists run in a child process: a crash or a loop without end is a failure like any other, and is made short too. A
 * failing list is printed as text, which runs again by MODEL_OPS, and for ever where it is put into the model's `kept`.
 *
 *   SEED=n                          the random lists of seed n, n + 1, ...
 *   MODEL_STRIDE=n                  every n-th list alone, for a machine that is slow
 *   MODEL_OPS='buddy: take 0 1'     this list alone, its messages shown
 */
#ifndef TESTS_MODEL_HARNESS_H
#define TESTS_MODEL_HARNESS_H

#include "seed.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#define MODEL_ARGS     5u
#define MODEL_TEXT_MAX 65536u
#define MODEL_LIST_MAX 20000u

struct model_op {
	uint32_t kind; /* index in the model's kinds */
	uint64_t arg[MODEL_ARGS];
};

struct model_kind {
	const char *name; /* a word; NULL ends the array */
	uint32_t args;
	uint32_t weight; /* how often it is picked, relative to the others */
};

struct model {
	const char *name;
	const struct model_kind *kind;
	const void *shape; /* the model's own: sizes, mostly */
	/* Make both, empty. In a child process; failures are assertions of cmocka, as in step and close. */
	void *(*open)(const void *shape);
	/* Do op on both, compare the answers, and what can be looked at. */
	void (*step)(void *both, const struct model_op *op);
	/* Compare all, take both down: nothing is left over. */
	void (*close)(void *both);
	/* Arguments for the n-th operation of a random list; its kind is set, its arguments are 0. */
	void (*pick)(const void *shape, uint32_t n, uint64_t *random, struct model_op *op);
	const char *const *kept; /* lists that failed once, in text; NULL ends them. NULL: none */
	uint32_t hang_ms;        /* a list takes no longer; 0: a minute */
};

struct model_list {
	uint32_t count;
	struct model_op *op; /* malloc'd */
};

enum model_verdict { MODEL_PASSES = 0, MODEL_FAILS, MODEL_HANGS };

/* ---- for tests: these fail the test, and print the shortest list found ---- */

/* MODEL_STRIDE, for what enumerates by itself; 1 without it. */
uint32_t model_stride(void);

/* The kept lists, then `lists` random ones of `length` operations. */
void model_random(const struct model *m, uint32_t lists, uint32_t length);
/* Every sequence of `length` out of `choices` operations. */
void model_enumerate(const struct model *m, const struct model_op *choice, uint32_t choices, uint32_t length);

/* ---- what these are made of ---- */

struct model_hunt {
	uint64_t seed;
	uint32_t lists; /* random ones, if choices is 0 */
	uint32_t length;
	const struct model_op *choice; /* else all sequences of these */
	uint32_t choices;
	bool unhurried; /* a found list is made short however long that takes: the number of runs alone bounds it */
};

struct model_found {
	enum model_verdict verdict; /* MODEL_PASSES: nothing was found */
	uint64_t seed;              /* of the random list */
	bool again;                 /* it fails again on its own; else list is all of it, and as it was */
	uint32_t was;               /* operations that it had up to the failure */
	uint32_t runs;              /* that it took to make it short */
	struct model_list list;     /* the caller frees list.op */
};

void model_hunt(const struct model *m, const struct model_hunt *hunt, struct model_found *found);
enum model_verdict model_run(const struct model *m, const struct model_list *list, bool shown);
/* "take 3 0; give 1" */
void model_write(const struct model *m, const struct model_list *list, char text[MODEL_TEXT_MAX]);
/* False: it is no list of this model. */
bool model_read(const struct model *m, const char *text, struct model_list *list);

#endif
