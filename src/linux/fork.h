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

#endif
