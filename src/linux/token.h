/* SPDX-License-Identifier: MIT */
/* linux/token.h: how a parent learns that no process is left that a fork() of its own has made (token.c). */
#ifndef SUBLET_LINUX_TOKEN_H
#define SUBLET_LINUX_TOKEN_H

#include "core/atomic.h"

#include <stdbool.h>
#include <stdint.h>

/* The page of a token. Processes that have it mapped write their pids here; the last ones stay. */
#define SUBLET__TOKEN_PIDS 1023u
struct sublet__token_page {
	sublet__a32 count; /* of the pids ever written */
	sublet__a32 pid[SUBLET__TOKEN_PIDS];
};

struct sublet__token {
	int fd;      /* of the page; -1: none */
	int32_t pid; /* that was found to be alive at the last look; 0: none yet */
};

/* A page that nobody has mapped. -errno */
int sublet__token_make(struct sublet__token *token);
/* Map it, so that a child of the next fork() has it; NULL: there is no room. One more mapping where it is mapped. */
struct sublet__token_page *sublet__token_map(const struct sublet__token *token);
void sublet__token_unmap(struct sublet__token_page *page);
/*
 * Whether no process has it mapped any more, this one included. Once it was, it is for ever, and the token is of no
 * further use but for sublet__token_close.
 */
bool sublet__token_is_free(const struct sublet__token *token);
/* A process that has it mapped, or had it before an exec of its own; 0: none is known. Remembered in the token. */
int32_t sublet__token_pid(struct sublet__token *token);
void sublet__token_close(struct sublet__token *token);

/* In the child: "I have it". Async-signal-safe. Nothing is written in another pid namespace than the parent's. */
void sublet__token_sign(struct sublet__token_page *page);

#endif
