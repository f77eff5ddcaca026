/* SPDX-License-Identifier: MIT */
/* cli/policy.h: the system calls that a program with lent memory does without. */
#ifndef SUBLET_CLI_POLICY_H
#define SUBLET_CLI_POLICY_H

#include <stdint.h>
#include <stdio.h>

/* One bit per part, in the order of the table in policy.c. */
#define SUBLET__POLICY_ALLOW_NONE ((uint32_t)0)
#define SUBLET__POLICY_ALLOW_ALL  UINT32_MAX

/*
 * Parse "aio,vmsplice" or "all" into bits and add them to *allow. -EINVAL: a name that is in no
 * table; *bad points to it in `list` and *bad_bytes is its length.
 */
int sublet__policy_parse(const char *list, uint32_t *allow, const char **bad, int *bad_bytes);

/* Bits of one part by name; 0: there is none. */
uint32_t sublet__policy_part(const char *name);

/* Each part on a line: its name, and what allowing it risks. */
void sublet__policy_print(FILE *file);

/*
 * Load the filter into the calling process, for good and for all its children, but for the parts in
 * allow. no_new_privs is set only where the kernel wants it (no CAP_SYS_ADMIN): it takes the power
 * from setuid programs. -EOPNOTSUPP: the kernel has no seccomp filters; -errno.
 */
int sublet__policy_load(uint32_t allow);

#endif
