/* SPDX-License-Identifier: MIT */
/*
 * core/call.h: what include/sublet/types.h says of every public call, in one place; core/struct.h has what it says of structs.
 *
 * An object that is NULL is -EINVAL; one that this process has from its parent, by fork(), is -EPERM. Each public call asks
 * for these first, before it reads anything of an object. To know a child costs one load of a word that
 * is never written while the arena lives: the kernel clears its page in a child, however that was forked
 * (MADV_WIPEONFORK), so nobody has to be told of a fork.
 */
#ifndef SUBLET_CORE_CALL_H
#define SUBLET_CORE_CALL_H

#include "core/engine.h"
#include "core/struct.h"

#include <errno.h>

static inline int call_arena(const struct sublet_arena *arena)
{
	return !arena ? -EINVAL : *arena->here ? 0 : -EPERM;
}

static inline int call_mm(const struct sublet_mm *mm)
{
	return !mm ? -EINVAL : *mm->here ? 0 : -EPERM;
}

#endif
