/* SPDX-License-Identifier: MIT */
/*
 * Futexes in lent memory.
 *
 * The kernel finds the sleepers of a private futex by its address, and those of a process-shared
 * one by file and offset, which for lent memory is the frame. A private futex does not notice a
 * move; a process-shared one is forgotten by it: the sleeper waits at the old frame, and the wake
 * goes to the new one. So process-shared objects are refused where they would rest in lent memory.
 * malloc's memory never was shared with another process, so no program can need them there. (Raw futex calls,
 * which say so only by leaving out a flag, get the flag: futex.c.)
 *
 * One more process-shared futex is the kernel's own: it wakes pthread_join() at the thread's tid,
 * which lies on the thread's stack. A stack that the program allocated itself is therefore kept
 * from moving. So is a robust mutex, until it is destroyed: when its owner dies the kernel marks it from within the dying
 * thread, which cannot wait for a page that is just being moved. It would pass the mutex over, and a thread that waits
 * for it would wait for ever. And so is a mutex that inherits priorities, whose word the kernel writes as well.
 */
#include "bridge/bridge.h"
#include "linux/linux.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>

/* In a child of fork() too: such an object would be as useless there as it is here. */
static bool is_refused(int shared, const void *object, size_t bytes)
{
	return shared != PTHREAD_PROCESS_PRIVATE &&
	       sublet__bridge_owner(object, bytes) != SUBLET__OWNER_OTHER;
}

static void object_ended(const void *object, size_t bytes)
{
	if (sublet__bridge_owner(object, bytes) == SUBLET__OWNER_LENT &&
	    sublet__sticky_remove_object(object, bytes))
		sublet__linux_fork_again(sublet__bridge.arena);
}

SUBLET__INTERPOSER int pthread_mutex_init(pthread_mutex_t *mutex, const pthread_mutexattr_t *attr)
{
	int shared = PTHREAD_PROCESS_PRIVATE, robust = PTHREAD_MUTEX_STALLED, protocol = PTHREAD_PRIO_NONE,
	    err;

	if (attr != NULL) {
		(void)pthread_mutexattr_getpshared(attr, &shared);
		(void)pthread_mutexattr_getrobust(attr, &robust);
		(void)pthread_mutexattr_getprotocol(attr, &protocol);
	}
	if (is_refused(shared, mutex, sizeof(*mutex)))
		return EINVAL;
	if ((robust == PTHREAD_MUTEX_ROBUST || protocol == PTHREAD_PRIO_INHERIT) &&
	    sublet__bridge_owner(mutex, sizeof(*mutex)) == SUBLET__OWNER_LENT)
		sublet__sticky_add_object(mutex, sizeof(*mutex));
	err = SUBLET__REAL(pthread_mutex_init)(mutex, attr);
	if (err != 0)
		object_ended(mutex, sizeof(*mutex));
	return err;
}
SUBLET__ALIAS(__pthread_mutex_init, pthread_mutex_init);

SUBLET__INTERPOSER int pthread_mutex_destroy(pthread_mutex_t *mutex)
{
	int err = SUBLET__REAL(pthread_mutex_destroy)(mutex);

	if (err == 0)
		object_ended(mutex, sizeof(*mutex));
	return err;
}
SUBLET__ALIAS(__pthread_mutex_destroy, pthread_mutex_destroy);

SUBLET__INTERPOSER int pthread_cond_init(pthread_cond_t *cond, const pthread_condattr_t *attr)
{
	int shared = PTHREAD_PROCESS_PRIVATE;

	if (attr != NULL)
		(void)pthread_condattr_getpshared(attr, &shared);
	if (is_refused(shared, cond, sizeof(*cond)))
		return EINVAL;
	return SUBLET__REAL(pthread_cond_init)(cond, attr);
}

SUBLET__INTERPOSER int pthread_rwlock_init(pthread_rwlock_t *lock, const pthread_rwlockattr_t *attr)
{
	int shared = PTHREAD_PROCESS_PRIVATE;

	if (attr != NULL)
		(void)pthread_rwlockattr_getpshared(attr, &shared);
	if (is_refused(shared, lock, sizeof(*lock)))
		return EINVAL;
	return SUBLET__REAL(pthread_rwlock_init)(lock, attr);
}
SUBLET__ALIAS(__pthread_rwlock_init, pthread_rwlock_init);

SUBLET__INTERPOSER int pthread_barrier_init(pthread_barrier_t *barrier, const pthread_barrierattr_t *attr,
					    unsigned int count)
{
	int shared = PTHREAD_PROCESS_PRIVATE;

	if (attr != NULL)
		(void)pthread_barrierattr_getpshared(attr, &shared);
	if (is_refused(shared, barrier, sizeof(*barrier)))
		return EINVAL;
	return SUBLET__REAL(pthread_barrier_init)(barrier, attr, count);
}

SUBLET__INTERPOSER int sem_init(sem_t *semaphore, int shared, unsigned int value)
{
	if (is_refused(shared, semaphore, sizeof(*semaphore))) {
		errno = ENOSYS; /* "this system does not support process-shared semaphores" */
		return -1;
	}
	return SUBLET__REAL(sem_init)(semaphore, shared, value);
}

/* ---- stacks ---- */

static void keep_stack(void *stack, size_t bytes)
{
	if (sublet__bridge_owner(stack, bytes) == SUBLET__OWNER_LENT)
		sublet__sticky_add(stack, bytes);
}

SUBLET__INTERPOSER int pthread_attr_setstack(pthread_attr_t *attr, void *stack, size_t bytes)
{
	keep_stack(stack, bytes);
	return SUBLET__REAL(pthread_attr_setstack)(attr, stack, bytes);
}

/*
 * The older way, in either order: the address of the stack's end, and its size. Before the size is set it is that
 * of any thread, and what is kept from moving may be more than the stack. After pthread_attr_setstack() another size
 * leaves the end where it is.
 */
static void keep_stack_of(const pthread_attr_t *attr)
{
	size_t bytes = 0;
	void *stack = NULL;

	/* Without an address the lowest is what lies a size below 0: not lent. */
	if (pthread_attr_getstack(attr, &stack, &bytes) == 0)
		keep_stack(stack, bytes);
}

/* Not in newer headers, and "deprecated" in others. */
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
int pthread_attr_setstackaddr(pthread_attr_t *attr, void *end);

SUBLET__INTERPOSER int pthread_attr_setstackaddr(pthread_attr_t *attr, void *end)
{
	int err = SUBLET__REAL(pthread_attr_setstackaddr)(attr, end);

	if (err == 0)
		keep_stack_of(attr);
	return err;
}

SUBLET__INTERPOSER int pthread_attr_setstacksize(pthread_attr_t *attr, size_t bytes)
{
	int err = SUBLET__REAL(pthread_attr_setstacksize)(attr, bytes);

	if (err == 0)
		keep_stack_of(attr);
	return err;
}
