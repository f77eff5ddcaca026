/* SPDX-License-Identifier: MIT */
/* linux/cgroup.h: what the control groups of this process leave it. */
#ifndef SUBLET_LINUX_CGROUP_H
#define SUBLET_LINUX_CGROUP_H

#include "linux/proc.h"

/*
 * The least that any group from the process's own up to the root has left, in either version of control groups: bytes
 * of memory (page cache counts as free) and tasks, that is threads and processes. UINT64_MAX: no group has a limit.
 *
 * root: "" but in tests, where it is a folder with a proc/ and a sys/ of its own.
 * by: becomes the path of the file with the limit that leaves the least, or empty; may be NULL.
 */
uint64_t sublet__cgroup_memory_left(const char *root, struct sublet__text *by);
uint64_t sublet__cgroup_tasks_left(const char *root, struct sublet__text *by);

#endif
