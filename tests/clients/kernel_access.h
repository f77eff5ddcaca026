/* SPDX-License-Identifier: MIT */
/* kernel_access.c and kernel_access_io.c: what both parts of the program share. */
#ifndef SUBLET_TESTS_KERNEL_ACCESS_H
#define SUBLET_TESTS_KERNEL_ACCESS_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* An object and this much after it, so that no two objects share pages that move. */
#define BLOCK_BYTES ((size_t)256 << 10)

#define CHECK(condition)                                                                           \
	do {                                                                                       \
		if (!(condition)) {                                                                \
			printf("FAIL: line %d: %s (%s)\n", __LINE__, #condition, strerror(errno)); \
			fflush(stdout);                                                            \
			_exit(1);                                                                  \
		}                                                                                  \
	} while (0)

/* Zeroed, or the end of the program. */
void *block(size_t bytes);

/* Whether the time that the program was given has passed. */
bool is_over(void);

/* Each returns how many rounds it did. */
long mode_mutexes(void);
long mode_robust(void);
long mode_conditions(void);
long mode_pi_calls(void);
long mode_wake_op(void);
long mode_tid(void);
long mode_rseq(void);

#endif
