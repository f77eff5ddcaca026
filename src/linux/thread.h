/* SPDX-License-Identifier: MIT */
/*
 * linux/thread.h: a thread of ours, in one of two forms.
 *
 * In a program that uses the library it is an ordinary thread of libc. In a program that `sublet run` started it is a
 * task of the helper process (linux/helper.h): libc does not know it, and it has a thread area that is made here.
 */
#ifndef SUBLET_LINUX_THREAD_H
#define SUBLET_LINUX_THREAD_H

#include "core/atomic.h"

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

#define SUBLET__THREAD_NAME_BYTES 16u

struct sublet__thread {
	sublet__a32
		tid; /* the kernel's number, for affinity; of a helper's task a futex that becomes 0 at its end */
	bool is_task; /* of the helper */
	pthread_t pthread;
	void *(*fn)(void *arg);
	void *arg;
	char name[SUBLET__THREAD_NAME_BYTES];
	void *map;                   /* a task's stack and thread area */
	struct sublet__thread *next; /* in the helper's list of tasks that wait for its start */
};

/*
 * The memory of one task: a guard page, a stack and a thread area on which code of ours and of libc can run (errno,
 * initial-exec variables, stack protector). `stack` is the top of the stack, `pointer` what CLONE_SETTLS takes.
 */
struct sublet__thread_memory {
	void *map;
	void *stack;
	void *pointer;
};

/*
 * Learn from the calling thread, which libc made, how a thread area looks. Called once, before any
 * sublet__thread_memory_create, by the main thread: it asks the dynamic linker, which takes a lock of libc.
 * -EOPNOTSUPP: this machine's thread areas are not known.
 */
int sublet__thread_memory_learn(void);
/* -ENOMEM. */
int sublet__thread_memory_create(struct sublet__thread_memory *memory);
/* The task that used it has ended. */
void sublet__thread_memory_destroy(void *map);

#endif
