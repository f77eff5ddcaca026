/* SPDX-License-Identifier: MIT */
/* linux/fork.h: what keeps a fork() of the process from sharing lent memory for writing. */
#ifndef SUBLET_LINUX_FORK_H
#define SUBLET_LINUX_FORK_H

#include "linux/instance.h"

/* From here on a fork() minds this arena. The first call of the process sets handlers and starts a thread. -errno */
int sublet__fork_add(struct sublet__instance *instance);
/* The arena is forgotten; the thread ends with the last one. */
void sublet__fork_remove(struct sublet__instance *instance);

/*
 * A process other than this one that has a private mapping of the file: its pid, 0 for none, or
 * -errno when processes cannot be listed. One that cannot be looked into counts if it descends from us.
 */
int sublet__sharer_find(dev_t dev, ino_t ino);

#endif
