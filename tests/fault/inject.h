/* SPDX-License-Identifier: MIT */
/*
 * The n-th call that the library makes of the kernel or of libc fails.
 *
 * The program is linked with --wrap for every such function (meson.build has the list, and the test "fault-wraps" that
 * it is complete), so that the library itself is the one that is shipped. A call of syscall(2) or ioctl(2) with a
 * number that inject.c does not know ends the process: the table there cannot fall behind the library.
 *
 * Not every call can fail. What gives back (close, munmap of whole mappings), what only waits (futex, nanosleep) and
 * what reads a clock never does in a kernel that works, so it is not counted.
 */
#ifndef TESTS_FAULT_INJECT_H
#define TESTS_FAULT_INJECT_H

#include <stdbool.h>
#include <stdint.h>

enum inject_scope {
	INJECT_THREAD,  /* calls of the thread that armed: as many each time */
	INJECT_PROCESS, /* of all threads, but for those that called inject_spare */
};

/* From here on call number n (from 1 on) fails; for_good: and all that follow. */
void inject_arm(enum inject_scope scope, uint64_t n, bool for_good);
/* A mapping that fails over another takes the other away nevertheless, as kernels before Linux 6.12 may do. */
void inject_lose(bool lose);
/* No more failures. Whether there was one since. */
bool inject_disarm(void);
/* Calls of this thread never fail. */
void inject_spare(void);
/* The call that failed first since inject_arm, "mmap" say; "nothing" where none did. */
const char *inject_what(void);

#endif
