/* SPDX-License-Identifier: MIT */
/*
 * helper_world.h: programs with a helper process of their own, for tests.
 *
 * A helper belongs to its process for good, so each test runs in a process that is forked for it. There cmocka's assertions
 * are of no use: CHECK ends the process, and the test fails.
 */
#ifndef TESTS_LINUX_HELPER_WORLD_H
#define TESTS_LINUX_HELPER_WORLD_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "linux/helper.h"
#include "linux/linux.h"
#include "linux/platform.h"
#include "linux/raw.h"

#include <sublet/types.h>

#include <stdio.h>
#include <stdlib.h>
#include <sys/types.h>

#define LONG_NS     (60 * SUBLET_SEC)
#define NOBODY      65534
#define CANNOT      77 /* exit code: this machine does not let the test do what it should */
#define FILE_AT_END "removed-at-the-end"

#define CHECK(condition)                                                                                  \
	do {                                                                                              \
		if (!(condition)) {                                                                       \
			fprintf(stderr, "%s:%d: %s (errno %d)\n", __FILE__, __LINE__, #condition, errno); \
			_exit(1);                                                                         \
		}                                                                                         \
	} while (0)

/* Start `program` in a forked process, which ends when it returns. Its pid. */
pid_t program_start(void (*program)(void));
/* Wait for the end of it: the status. */
int program_wait(pid_t pid);
/* Both, and the test fails unless it ended well; it is skipped where the program could not. */
void program_run(void (*program)(void));

/* In a program: start the helper, and confine it; -errno of the start. */
void helper_begin(void);
/* The same with a directory in which the helper removes FILE_AT_END when it ends. */
void helper_begin_in(const char *directory);
/* The pid of this program's helper. */
pid_t helper_pid(void);
/* The number after `name` in /proc/PID/status, which is hexadecimal or decimal; UINT64_MAX: there is no such line. */
uint64_t status_number(pid_t pid, const char *name, int base);
/* Whether this process ends in good time: pidfd of it. */
bool ends_soon(int pidfd);

#endif
