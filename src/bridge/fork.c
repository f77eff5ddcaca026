/* SPDX-License-Identifier: MIT */
/*
 * New processes.
 *
 * fork() itself needs nothing here but a way to fail: the platform's pthread_atfork handlers turn
 * lent memory into copy-on-write memory, and a handler cannot refuse. Where it could not be done the
 * child would write into its parent's memory, so the interposer asks first. ENOMEM: there is no memory
 * for it, or the helper process was ended, which alone could keep the memory apart.
 *
 * _Fork() and clone() without CLONE_VM run no handlers at all. Their child would share the heap with
 * its parent, each overwriting the other: refused. vfork(), posix_spawn(), system() and popen()
 * share the address space on purpose until they exec, and pass.
 *
 * A thread that a program makes with clone() itself may have its tid in lent memory. The kernel clears
 * that word from within the dying thread, which cannot wait for a page that is just being moved, and
 * wakes it as process-shared: so it does not move, and futex.c lets waits for it be.
 */
#include "bridge/bridge.h"

#include "linux/linux.h"

#include <errno.h>
#include <sched.h>
#include <stdarg.h>
#include <sys/types.h>
#include <unistd.h>

typedef int clone_fn(int (*fn)(void *), void *stack, int flags, void *arg, ...);

pid_t _Fork(void); /* newer than some headers */

/* A real fork() that fails runs the parent's handlers too, which take the preparation back. */
SUBLET__INTERPOSER pid_t fork(void)
{
	pid_t (*real)(void) = SUBLET__REAL(fork);
	enum sublet__owner owner = sublet__bridge_state();
	int err = owner == SUBLET__OWNER_STUCK  ? -EPIPE
		  : owner == SUBLET__OWNER_LENT ? sublet__linux_fork_prepare()
						: 0;

	if (err != 0) {
		errno = ENOMEM;
		return -1;
	}
	return real();
}
SUBLET__ALIAS(__fork, fork);

/* Whether a child that came without handlers would share memory with us. */
static bool is_shared(void)
{
	enum sublet__owner owner = sublet__bridge_state();

	return owner == SUBLET__OWNER_LENT || owner == SUBLET__OWNER_STUCK;
}

SUBLET__INTERPOSER pid_t _Fork(void)
{
	pid_t (*real)(void) = SUBLET__REAL(_Fork);

	if (is_shared() || real == NULL) {
		errno = ENOSYS;
		return -1;
	}
	return real();
}

SUBLET__INTERPOSER int clone(int (*fn)(void *), void *stack, int flags, void *arg, ...)
{
	clone_fn *real = SUBLET__REAL(clone);
	void *parent_tid, *tls, *child_tid;
	va_list list;

	if ((flags & CLONE_VM) == 0 && is_shared()) {
		errno = ENOSYS;
		return -1;
	}
	va_start(list, arg); /* libc reads all three as well, given or not */
	parent_tid = va_arg(list, void *);
	tls = va_arg(list, void *);
	child_tid = va_arg(list, void *);
	va_end(list);
	if ((flags & CLONE_CHILD_CLEARTID) != 0 &&
	    sublet__bridge_owner(child_tid, sizeof(pid_t)) == SUBLET__OWNER_LENT) {
		sublet__sticky_add(child_tid, sizeof(pid_t));
		if (!sublet__futex_kernel_wakes(child_tid)) {
			errno = EAGAIN; /* "too many threads" */
			return -1;
		}
	}
	return real(fn, stack, flags, arg, parent_tid, tls, child_tid);
}
SUBLET__ALIAS(__clone, clone);
