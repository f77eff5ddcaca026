/* SPDX-License-Identifier: MIT */
/* bridge/bridge.h: what the files of libsublet-bridge.so share. */
#ifndef SUBLET_BRIDGE_BRIDGE_H
#define SUBLET_BRIDGE_BRIDGE_H

#include "bridge/settings.h"
#include "core/arena.h"

#include <sublet/pin.h>

#include <stdatomic.h>
#include <sys/types.h>

/* The one instance: a process has one malloc. Written by the constructor, read by everybody. */
struct sublet__bridge {
	_Atomic(struct sublet_mm *) mm; /* NULL: passive, or not started yet */
	struct sublet_arena *arena;
	pid_t pid;          /* that created the arena */
	size_t frame_bytes; /* what moves as one: a page, or a huge page */
	size_t unit_bytes;  /* what sublet_unmap takes: 64 KiB or a frame */
	const _Atomic bool
		*is_here;         /* true in the address space of the arena, false in those of its children */
	_Atomic bool is_child;    /* a child of fork(): the arena is the parent's */
	_Atomic bool took_memory; /* the program's malloc came here at least once */
	_Atomic uint64_t outside_bytes; /* of the heap, in ordinary memory that the engine does not know */
	_Atomic uintptr_t low, high;    /* every address ever handed out lies in [low, high) */
	struct sublet__settings settings;
};
extern struct sublet__bridge sublet__bridge;

/* Whose memory is [addr, addr + bytes)? */
enum sublet__owner {
	SUBLET__OWNER_OTHER, /* not lent: the bridge has nothing to say */
	SUBLET__OWNER_LENT,  /* lent, and the engine may be called */
	SUBLET__OWNER_CHILD, /* lent by the parent of this process: private copy-on-write memory here */
	SUBLET__OWNER_STUCK, /* was lent; the helper process has ended, nothing moves any more, and no fork is possible */
	SUBLET__OWNER_UNKNOWN, /* a child that no handler has seen, of the system call itself: change nothing */
};
enum sublet__owner sublet__bridge_owner(const void *addr, size_t bytes);
/* The same for the process alone, without an address. OTHER: there is no arena. */
enum sublet__owner sublet__bridge_state(void);

/* "sublet: ..." and a newline on stderr, without malloc or stdio. */
void sublet__bridge_say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* hooks.c: find jemalloc and set its extent hooks. -ENOSYS: there is none; -EPROTO: an unusable one. */
int sublet__hooks_find(void);
int sublet__hooks_install(void);

/*
 * sticky.c: lent memory that must not move, whatever mprotect does to its pages.
 *   add            from now on, until malloc gives the memory back
 *   add_object     the same, for an object that may end before
 *   remove_object  the object has ended: its frames may move again, except those of others. An address of no object is
 *                  ignored. True as below
 *   protect        the program changes the protection of the range: it does not move
 *   unprotect      the program may read and write the range again: what of it is not sticky may move. True:
 *                  sublet__linux_fork_again is wanted
 *   forget         malloc gives the memory back: what was sticky in it may move. True as above
 */
void sublet__sticky_add(const void *addr, size_t bytes);
void sublet__sticky_add_object(const void *object, size_t bytes);
bool sublet__sticky_remove_object(const void *object, size_t bytes);
void sublet__sticky_protect(const void *addr, size_t bytes);
bool sublet__sticky_unprotect(const void *addr, size_t bytes);
bool sublet__sticky_forget(const void *addr, size_t bytes);

/* lockall.c: note what malloc and the arena have mapped by now; the end of the constructor's work. */
void sublet__lockall_prepare(void);

/*
 * futex.c: a word of lent memory that the kernel wakes by itself, as process-shared. False: there are too many.
 * forget: malloc gives the memory back.
 */
bool sublet__futex_kernel_wakes(const void *word);
void sublet__futex_forget(const void *addr, size_t bytes);

/* fork.c: SYS_clone, SYS_clone3 and SYS_fork by syscall(), with its arguments. */
#define SUBLET__CALL_CLONE3 435
long sublet__fork_syscall(long number, long a, long b, long c, long d, long e, long f);

/* The system call itself: what libc's syscall() is to the engine (--wrap), and to all until that is looked up. */
long __wrap_syscall(long number, long a, long b, long c, long d, long e, long f);

/*
 * engine.c: calls into the engine, on a thread of the program. -EPIPE: the helper process has ended, before the call or
 * during it. Otherwise they are the calls of the same names.
 */
int sublet__engine_reserve(size_t bytes, size_t align_bytes, void **addr);
int sublet__engine_map(size_t bytes, size_t align_bytes, void **addr);
int sublet__engine_commit(void *addr, size_t bytes);
int sublet__engine_decommit(void *addr, size_t bytes);
int sublet__engine_unmap(void *addr, size_t bytes);
/* True: each page had the mark already; of an unmark: sublet__linux_fork_again is wanted. */
bool sublet__engine_note_protected(const void *addr, size_t bytes, bool is_protected);
/* A short pin for a read or write of the memory. -EBUSY: a child of fork() shares it. Others as sublet_pin. */
int sublet__engine_pin(const void *addr, size_t bytes, bool write, struct sublet_pin *pin);
void sublet__engine_unpin(struct sublet_pin *pin);
void sublet__engine_note_locked(const void *addr, size_t bytes, bool is_locked);
/* That the helper process has ended, on stderr, the first time. */
void sublet__engine_say_gone(void);

/* memfile.c: look up what stands behind it. */
void sublet__memfile_resolve(void);

/* real.c: look up what the interposers stand in front of; before, they make plain system calls. */
void sublet__real_resolve(void);
/* The definition that the program would have without the bridge; NULL: none. Remembered in *slot. */
void *sublet__real_find(_Atomic(void *) *slot, const char *name);
/* The same, typed, and once per place of use: constructors of other libraries come before ours. */
#define SUBLET__REAL(name)                                           \
	(__extension__({                                             \
		static _Atomic(void *) slot_;                        \
		(__typeof__(&name))sublet__real_find(&slot_, #name); \
	}))

/*
 * redirect.c: what is looked up in libc's own symbol tables leads here as well. -ENOENT: the bridge or jemalloc is
 * not where it was; otherwise what mprotect answered. original: what a function of ours stands in front of.
 */
int sublet__redirect_install(void);
void *sublet__redirect_original(void *found);

/* malloc.c: whether it defines this function. */
bool sublet__malloc_has(const char *name);

/* A definition that the program shall find instead of libc's; listed in bridge.map. */
#define SUBLET__INTERPOSER __attribute__((visibility("default")))
/* Another name that libc has for it. */
#if defined(__has_attribute) && __has_attribute(copy)
#define SUBLET__ALIAS(name, of) \
	SUBLET__INTERPOSER extern __typeof__(of) name __attribute__((alias(#of), copy(of)))
#else
#define SUBLET__ALIAS(name, of) SUBLET__INTERPOSER extern __typeof__(of) name __attribute__((alias(#of)))
#endif

struct sublet__real {
	void *(*mmap)(void *addr, size_t bytes, int protection, int flags, int fd, off_t offset);
	int (*munmap)(void *addr, size_t bytes);
	void *(*mremap)(void *addr, size_t bytes, size_t new_bytes, int flags, ...);
	int (*mprotect)(void *addr, size_t bytes, int protection);
	int (*pkey_mprotect)(void *addr, size_t bytes, int protection, int key);
	int (*madvise)(void *addr, size_t bytes, int advice);
	int (*posix_madvise)(void *addr, size_t bytes, int advice);
	int (*mlock)(const void *addr, size_t bytes);
	int (*mlock2)(const void *addr, size_t bytes, unsigned int flags);
	int (*munlock)(const void *addr, size_t bytes);
	int (*mlockall)(int flags);
	int (*munlockall)(void);
	/* As libc defines it, not as it declares it: what a call has no argument for is whatever lies there. */
	long (*syscall)(long number, long a, long b, long c, long d, long e, long f);
};
extern struct sublet__real sublet__real;

#endif
