/* SPDX-License-Identifier: MIT */
/* linux/observer.h: debuggers and core dumps that look at the program's memory at the moment. */
#ifndef SUBLET_LINUX_OBSERVER_H
#define SUBLET_LINUX_OBSERVER_H

/*
 *   NONE      as far as is known
 *   TRACED    a debugger is attached. It reads memory without waiting for it, so what moves must stay readable
 *   DUMPING   the kernel writes a core. It leaves out what it cannot read at once, so nothing is to move
 */
enum sublet__observer { SUBLET__OBSERVER_NONE, SUBLET__OBSERVER_TRACED, SUBLET__OBSERVER_DUMPING };

/* The program's /proc/PID/status, by a number of its own; -1: there is none. Where descriptors are. */
int sublet__observer_open(void);
/* What that file says; a millisecond old at most. NONE where it cannot be read. */
enum sublet__observer sublet__observer_now(int status_fd);

#endif
