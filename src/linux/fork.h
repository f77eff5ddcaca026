/* SPDX-License-Identifier: MIT */
/* linux/fork.h: what keeps a fork() of the process from sharing lent memory for writing. */
#ifndef SUBLET_LINUX_FORK_H
#define SUBLET_LINUX_FORK_H

#include "linux/instance.h"

/* From here on a fork() minds this arena. The first call of the process sets handlers and starts a thread. -errno */
int sublet__fork_add(struct sublet__instance *instance);
/* Have `create` make mm number instance->mms, while no fork is under way. -EAGAIN: one is; or what create says. */
int sublet__fork_add_mm(struct sublet__instance *instance, int (*create)(struct sublet__instance *instance));
/* The arena is forgotten; the thread ends with the last one. */
void sublet__fork_remove(struct sublet__instance *instance);

/* What a search for sharers is about. */
struct sublet__sharers {
	dev_t dev; /* the file */
	ino_t ino;
	int proc; /* a directory of /proc that was opened before, where there is no other way to it any more; or -1 */
	uint64_t since_ticks; /* begin of the oldest fork in question: sublet__ticks_now */
};

/*
 * A process other than this one that has a private mapping of the file: its pid, 0 for none, or
 * -errno when that cannot be told. One that cannot be looked into counts if it was forked since since_ticks.
 */
int sublet__sharer_find(const struct sublet__sharers *what);
/* Now, as the kernel tells when a process began. */
uint64_t sublet__ticks_now(void);
/* /proc by its usual name (dir: AT_FDCWD), or again by a descriptor of it. -ENOENT: something else is there. */
int sublet__proc_open(int dir);

#endif
