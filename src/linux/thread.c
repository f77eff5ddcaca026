/* SPDX-License-Identifier: MIT */
/*
 * linux/thread.c: threads of ours, of libc or of the helper.
 *
 * Both block every signal, so that no handler of the program runs on them. A thread of libc is started and joined by the
 * usual calls; a task of the helper is started by a task, and is joined by waiting for the word that the kernel clears.
 */
#include "linux/helper.h"
#include "linux/linux.h"
#include "linux/platform.h"
#include "linux/raw.h"

#include <signal.h>
#include <string.h>
#include <sys/prctl.h>

#include <linux/futex.h>

#define STACK_BYTES ((size_t)256 << 10)

static void *libc_main(void *arg)
{
	struct sublet__thread *t = arg;

	(void)prctl(PR_SET_NAME, t->name);
	/* Pairs with libc_start. */
	a32_store_release(&t->tid, (uint32_t)syscall(SYS_gettid));
	sublet__futex_wake(&t->tid, 1);
	return t->fn(t->arg);
}

static int libc_start(struct sublet__thread *t)
{
	pthread_attr_t attr;
	sigset_t all, old;
	int err = pthread_attr_init(&attr);

	if (err)
		return -err;
	t->is_task = false;
	a32_store_relaxed(&t->tid, 0);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	(void)pthread_attr_setstacksize(&attr, STACK_BYTES);
	err = pthread_create(&t->pthread, &attr, libc_main, t);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	pthread_attr_destroy(&attr);
	while (!err && !a32_load_acquire(&t->tid))
		sublet__futex_wait(&t->tid, 0, UINT64_MAX);
	return -err;
}

static int start_here(void *arg)
{
	return sublet__helper_task_start(arg);
}

int sublet__linux_thread_start(struct sublet__thread *t, const char *name, void *(*fn)(void *), void *arg)
{
	size_t bytes = strnlen(name, sizeof t->name - 1);

	t->fn = fn;
	t->arg = arg;
	memcpy(t->name, name, bytes);
	t->name[bytes] = 0;
	return sublet__helper_exists() ? sublet__helper_call(start_here, t) : libc_start(t);
}

void sublet__linux_thread_join(struct sublet__thread *t)
{
	uint32_t tid;

	if (!t->is_task) {
		(void)pthread_join(t->pthread, NULL);
		return;
	}
	if (!t->map) /* it waited for the start of all tasks, which never came */
		return;
	/* Acquire: pairs with the kernel's store. Its wake is of the process-shared kind. */
	while ((tid = a32_load_acquire(&t->tid)))
		(void)syscall(SYS_futex, &t->tid, FUTEX_WAIT, tid, NULL, NULL, 0);
	sublet__thread_memory_destroy(t->map);
	t->map = NULL;
}
