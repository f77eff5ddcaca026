/* SPDX-License-Identifier: MIT */
/*
 * A file whose reads and writes end when the test says so: a file system in user space (FUSE), spoken by hand, with one
 * file in it. To io_uring it is what a disk is that does not answer: a request that it has cannot be cancelled.
 */
#ifndef SUBLET_TESTS_SLOW_FILE_H
#define SUBLET_TESTS_SLOW_FILE_H

#include <stdbool.h>
#include <stdint.h>

#define SLOW_FILE_BYTES (64ull << 20)

/*
 * Call it first thing in main: starts the server, a process of its own, which ends with this one. What is mounted is
 * seen by these two only. False: not to be had here.
 */
bool slow_file_prepare(void);
void slow_file_finish(void);
/* A descriptor of the file, empty and quick at first; closed by the caller. */
int slow_file_open(void);

/* Requests from here on wait until they are let go. */
void slow_file_hold(void);
void slow_file_go(void);
/* How many wait now. */
uint32_t slow_file_held(void);
/* Every second read gives only half of what it was asked for. (For a write the kernel makes an error of it.) */
void slow_file_halve(bool on);
/* The next request that touches `at` fails with error, once. */
void slow_file_fail(uint64_t at, int error);
/* What is in the file. */
char *slow_file_bytes(void);

#endif
