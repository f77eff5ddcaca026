/* SPDX-License-Identifier: MIT */
/*
 * linux/memcheck.h: valgrind, where its header was there when this was built; else nothing.
 *
 * Its requests are a few instructions that do nothing on a bare CPU. Memcheck sees by itself that addresses are mapped
 * (zeroed: defined) and given back (not to be touched); what it cannot see is told where it happens: of addresses in
 * mm.c; of the linear map, which is mapped all the time, in platform.c as claims come and go, and in mm.c again, where
 * released frames are mapped for somebody. The engine clears released frames before that, and says nothing of it.
 */
#ifndef SUBLET_LINUX_MEMCHECK_H
#define SUBLET_LINUX_MEMCHECK_H

#if defined(__has_include)
#if __has_include(<valgrind/memcheck.h>)
#include <valgrind/memcheck.h>
#define SUBLET__UNDER_VALGRIND()       (RUNNING_ON_VALGRIND != 0)
#define SUBLET__NO_ACCESS(addr, bytes) ((void)VALGRIND_MAKE_MEM_NOACCESS(addr, bytes))
#define SUBLET__DEFINED(addr, bytes)   ((void)VALGRIND_MAKE_MEM_DEFINED(addr, bytes))
#define SUBLET__UNDEFINED(addr, bytes) ((void)VALGRIND_MAKE_MEM_UNDEFINED(addr, bytes))
/* In between this thread may touch anything. */
#define SUBLET__UNCHECKED_BEGIN() VALGRIND_DISABLE_ERROR_REPORTING
#define SUBLET__UNCHECKED_END()   VALGRIND_ENABLE_ERROR_REPORTING
#endif
#endif

#ifndef SUBLET__UNDER_VALGRIND
#define SUBLET__UNDER_VALGRIND()       false
#define SUBLET__NO_ACCESS(addr, bytes) ((void)(addr), (void)(bytes))
#define SUBLET__DEFINED(addr, bytes)   ((void)(addr), (void)(bytes))
#define SUBLET__UNDEFINED(addr, bytes) ((void)(addr), (void)(bytes))
#define SUBLET__UNCHECKED_BEGIN()      ((void)0)
#define SUBLET__UNCHECKED_END()        ((void)0)
#endif

#endif
