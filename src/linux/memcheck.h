/* SPDX-License-Identifier: MIT */
/*
 * linux/memcheck.h: valgrind, where its header was there when this was built; else nothing.
 *
 * Its requests are a few instructions that do nothing on a bare CPU. Memcheck sees by itself that addresses are mapped
 * (zeroed: defined) and given back (not to be touched); what it cannot see is told where it happens, in mm.c.
 */
#ifndef SUBLET_LINUX_MEMCHECK_H
#define SUBLET_LINUX_MEMCHECK_H

#if defined(__has_include)
#if __has_include(<valgrind/memcheck.h>)
#include <valgrind/memcheck.h>
#define SUBLET__UNDER_VALGRIND()       (RUNNING_ON_VALGRIND != 0)
#define SUBLET__NO_ACCESS(addr, bytes) ((void)VALGRIND_MAKE_MEM_NOACCESS(addr, bytes))
#define SUBLET__DEFINED(addr, bytes)   ((void)VALGRIND_MAKE_MEM_DEFINED(addr, bytes))
#endif
#endif

#ifndef SUBLET__UNDER_VALGRIND
#define SUBLET__UNDER_VALGRIND()       false
#define SUBLET__NO_ACCESS(addr, bytes) ((void)(addr), (void)(bytes))
#define SUBLET__DEFINED(addr, bytes)   ((void)(addr), (void)(bytes))
#endif

#endif
