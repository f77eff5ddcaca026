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
 * The system calls by syscall() run no handlers either; sandboxes (bwrap, LXC) make their first process so, because
 * libc's clone() wants a stack. Parent and child return from the same call, so what the handlers would do is done around
 * it: ours alone, since jemalloc and libc get no say in an ordinary program either. With a stack of its own the child
 * does not return here: refused.
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
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

typedef int clone_fn(int (*fn)(void *), void *stack, int flags, void *arg, ...);

pid_t _Fork(void); /* newer than some headers */

/* False: errno says why there can be no new process. */
static bool prepare(enum sublet__owner owner)
{
	int err = owner == SUBLET__OWNER_STUCK  ? -EPIPE
		  : owner == SUBLET__OWNER_LENT ? sublet__linux_fork_prepare()
						: 0;

	if (err != 0)
		errno = ENOMEM;
	return err == 0;
}

/* A real fork() that fails runs the parent's handlers too, which take the preparation back. */
SUBLET__INTERPOSER pid_t fork(void)
{
	pid_t (*real)(void) = SUBLET__REAL(fork);

	return prepare(sublet__bridge_state()) ? real() : -1;
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

/* ---- by syscall() ---- */

/* The beginning of the kernel's struct clone_args, which is newer than some headers. */
struct clone3_args {
	uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack;
};

#define CLONE3_BYTES_MIN 64

/* Whether the call makes a process with memory of its own; *stack: its stack, or 0 where it goes on with the caller's. */
static bool is_new_process(long number, long a, long b, uint64_t *stack)
{
	struct clone3_args args;

	*stack = 0;
	switch (number) {
	case SYS_clone: /* on each of our machines: flags, stack */
		*stack = (uint64_t)b;
		return (a & CLONE_VM) == 0;
	case SUBLET__CALL_CLONE3:
		/* Programs ask with nothing whether it is there. */
		if (a == 0 || b < CLONE3_BYTES_MIN)
			return false;
		memcpy(&args, (const void *)(uintptr_t)a, sizeof(args));
		*stack = args.stack;
		return (args.flags & CLONE_VM) == 0;
	default:
		return true;
	}
}

long sublet__fork_syscall(long number, long a, long b, long c, long d, long e, long f)
{
	enum sublet__owner owner = sublet__bridge_state();
	uint64_t stack;
	long result;

	if (owner == SUBLET__OWNER_OTHER || !is_new_process(number, a, b, &stack))
		return sublet__real.syscall(number, a, b, c, d, e, f);
	if (stack != 0 && is_shared()) {
		errno = ENOSYS;
		return -1;
	}
	if (!prepare(owner))
		return -1;
	result = sublet__real.syscall(number, a, b, c, d, e, f);
	/* A child's child too: what it shares with all before it is known by its pid. */
	if (result == 0)
		sublet__linux_fork_child();
	else
		sublet__linux_fork_cancel();
	return result;
}
