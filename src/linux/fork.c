/* SPDX-License-Identifier: MIT */
/*
 * linux/fork.c: fork() of a process that has memory lent.
 *
 * Lent memory is shared memory, so a plain fork() would leave parent and child writing the same
 * bytes. Instead:
 *
 *   prepare   every lent mapping of every arena turns private (sublet__mm_fork_begin)
 *   fork      ordinary copy-on-write for both
 *   parent    learns the child's pid, lets the engine go on (sublet__mm_fork_end)
 *   child     closes what it must not keep; its arenas are plain memory from now on (in_child)
 *   watcher   a thread; when no process sees the frames any more, shared again (sublet__mm_fork_restore)
 *
 * No lock is held from prepare to parent: another thread may be in the middle of an allocator's hook,
 * waiting in the engine, with locks that the allocator's own prepare handler is about to want. What
 * must not happen meanwhile is counted instead, in the engine: forks of several threads overlap
 * freely, and restore gives up when one begins. forks.pending counts the same for an arena that is
 * created in that time: it hears of every fork that is pending before anything can be mapped in it.
 *
 * Each fork has a pipe. Children inherit its write end and never close it on purpose; the parent
 * keeps the read end. The child writes its pid (pthread_atfork does not tell the parent), nothing
 * written and end of file means that the fork failed, and end of file later on means that every
 * process that had it has ended or called exec. Since a process may close all descriptors and keep
 * its memory, that is confirmed from /proc (sharers.c) before the frames are touched. What cannot be found out counts
 * as shared; only where there never was a /proc, and every child had a pipe, the pipes alone must do.
 *
 * A fork may be refused: no memory to keep a child apart (-ENOMEM), or a pin of lent memory, or a device that writes
 * into it, that does not end (-EAGAIN, after a second). Handlers of pthread_atfork cannot refuse; there the process is stopped.
 *
 * From prepare to the end of its fork a thread cannot be cancelled: memory would stay private for ever.
 *
 * The watcher is started with the first arena and not at a fork, because starting a thread calls
 * malloc, and a parent handler may run before the allocator's.
 */
#include "linux/fork.h"

#include "linux/linux.h"
#include "linux/proc.h"
#include "linux/raw.h"

#include <stdlib.h>
#include <sys/eventfd.h>

#define PIPES_MAX     64u
#define PREPARE_TRIES 100 /* a millisecond apart, where the alternative is to stop the process */
#define HANDSHAKE_MS  1000
#define RETRY_MIN_MS  5
#define RETRY_MAX_MS  500

/* What one thread remembers from prepare to the end of its fork. */
struct fork_here {
	bool prepared;
	int read_fd;
	int write_fd;
	int cancel_state; /* what it was before */
};

static __thread struct fork_here here __attribute__((tls_model("initial-exec")));

/*
 * One for the process, as pthread_atfork is. Guarded by lock, but for the futex words. The watcher
 * holds no lock while it restores: `restoring` keeps arenas from going away meanwhile.
 */
static struct {
	sublet__a32 lock;
	sublet__a32 restoring; /* futex: the watcher is at the arenas, or is being ended */
	bool registered;       /* with pthread_atfork: once in a process and its children */
	bool running;          /* the watcher */
	bool stop;
	uint32_t pending; /* forks between prepare and parent */
	uint32_t pipes;
	bool lost_pipe; /* a child without a pipe: only /proc knows about it */
	int pipe_fd[PIPES_MAX];
	int wake_fd; /* eventfd; stays the same while there is an arena */
	int proc_fd; /* /proc, for the case that the program changes its root; -1: there is none */
	struct sublet__instance *first;
	pthread_t thread;
} forks = { .wake_fd = -1, .proc_fd = -1 };

/* Lock held, or an arena that cannot go away. */
static void wake_watcher(void)
{
	uint64_t one = 1;

	/* -1 after the last arena has gone: nobody to wake. */
	(void)sublet__raw_write(forks.wake_fd, &one, sizeof one);
}

/* The lock, on a thread of the program: a handler of it may call fork(). */
static void lock_from_program(void)
{
	sublet__signals_block();
	sublet__lock(&forks.lock);
}

static void unlock_from_program(void)
{
	sublet__unlock(&forks.lock);
	sublet__signals_unblock();
}

/* ---- prepare ---- */

/* The first `count` mms of an arena. Lock held. */
static void mms_end(struct sublet__instance *in, uint32_t count, int32_t pid)
{
	for (uint32_t i = 0; i < count; i++)
		sublet__mm_fork_end(sublet__arena_mm(in->arena, i), pid);
}

/* All mms of an arena or none. Lock held. */
static int mms_begin(struct sublet__instance *in)
{
	in->fork_epoch++;
	for (uint32_t i = 0; i < in->mms; i++) {
		int err = sublet__mm_fork_begin(sublet__arena_mm(in->arena, i));
		if (err) {
			mms_end(in, i + 1, 0);
			in->fork_epoch++;
			return err;
		}
	}
	return 0;
}

/* Lock held. */
static void end_all(const struct sublet__instance *until, int32_t pid)
{
	for (struct sublet__instance *in = forks.first; in != until; in = in->next) {
		mms_end(in, in->mms, pid);
		in->fork_epoch++;
	}
}

/* Lock held. All arenas or none. */
static int begin_all(void)
{
	for (struct sublet__instance *in = forks.first; in; in = in->next) {
		if (in->fork_ticks == UINT64_MAX)
			in->fork_ticks = sublet__ticks_now();
		int err = mms_begin(in);
		if (err) {
			end_all(in, 0);
			return err;
		}
	}
	return 0;
}

static int prepare(void)
{
	int pair[2] = { -1, -1 };
	int err = 0, cancel_state;

	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state);
	lock_from_program();
	bool any = forks.first;
	if (any)
		err = begin_all();
	forks.pending += any && !err;
	if (err)
		wake_watcher();
	unlock_from_program();
	if (err || !any) {
		pthread_setcancelstate(cancel_state, NULL);
		return err;
	}
	if (pipe2(pair, O_CLOEXEC)) {
		pair[0] = -1;
		pair[1] = -1;
	}
	here = (struct fork_here){ .prepared = true,
				   .read_fd = sublet__linux_fd_high(pair[0]),
				   .write_fd = sublet__linux_fd_high(pair[1]),
				   .cancel_state = cancel_state };
	return 0;
}

int sublet__linux_fork_prepare(void)
{
	return here.prepared ? 0 : prepare();
}

static void on_prepare(void)
{
	int err, tries = 0;

	if (here.prepared)
		return;
	while ((err = prepare()) == -ENOMEM && ++tries < PREPARE_TRIES)
		sublet__raw_sleep_ns(SUBLET_MS);
	if (err) {
		sublet__complain(err == -EAGAIN ? "a pin or a device does not end its use of lent memory; a "
						  "child of fork() here would lose what it writes"
						: "no memory to keep lent memory apart from a child; fork() "
						  "here would corrupt it",
				 err);
		abort();
	}
}

/* ---- parent ---- */

/* The child's pid; 0 when there is no child; our own where there is one that does not say. */
static int32_t child_pid(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	int32_t pid = 0;
	int ready;

	if (fd < 0)
		return (int32_t)getpid();
	do
		ready = sublet__raw_poll(&p, 1, HANDSHAKE_MS);
	while (ready == -EINTR);
	if (ready <= 0)
		return (int32_t)getpid();
	return sublet__raw_read(fd, &pid, sizeof pid) == sizeof pid ? pid : 0;
}

static void on_parent(void)
{
	struct fork_here mine = here;
	int saved = errno;

	if (!mine.prepared)
		return;
	here.prepared = false;
	if (mine.write_fd >= 0)
		sublet__raw_close(mine.write_fd);
	int32_t pid = child_pid(mine.read_fd);
	lock_from_program();
	if (pid > 0 && mine.read_fd >= 0 && forks.pipes < PIPES_MAX) {
		forks.pipe_fd[forks.pipes++] = mine.read_fd;
	} else {
		forks.lost_pipe = forks.lost_pipe || pid > 0;
		if (mine.read_fd >= 0)
			sublet__raw_close(mine.read_fd);
	}
	forks.pending--;
	end_all(NULL, pid);
	wake_watcher();
	unlock_from_program();
	errno = saved;
	pthread_setcancelstate(mine.cancel_state, NULL);
}

void sublet__linux_fork_cancel(void)
{
	on_parent();
}

/* ---- child: one thread, and locks in any state ---- */

static void abandon(struct sublet__instance *in)
{
	a32_store_release(&in->in_child, 1);
	for (uint32_t i = 0; i < in->companions; i++)
		if (in->companion[i].fork_child)
			in->companion[i].fork_child(in->companion[i].arg);
	for (uint32_t i = 0; i < in->mms; i++)
		sublet__linux_mm_fork_child(&in->mm[i]);
	sublet__linux_platform_fork_child(&in->platform);
	if (in->backing.owns_fd)
		sublet__raw_close(in->backing.fd);
	in->backing.fd = -1;
}

static void on_child(void)
{
	struct fork_here mine = here;

	/* Not prepared: no arena existed then. */
	if (mine.write_fd >= 0 && mine.prepared) {
		int32_t pid = (int32_t)getpid();
		(void)sublet__raw_write(mine.write_fd, &pid, sizeof pid);
		sublet__raw_close(mine.read_fd);
	}
	here.prepared = false;
	for (struct sublet__instance *in = forks.first; in; in = in->next)
		abandon(in);
	for (uint32_t i = 0; i < forks.pipes; i++)
		sublet__raw_close(forks.pipe_fd[i]);
	if (forks.wake_fd >= 0)
		sublet__raw_close(forks.wake_fd);
	if (forks.proc_fd >= 0)
		sublet__raw_close(forks.proc_fd);
	a32_store_release(&forks.lock, 0);
	a32_store_release(&forks.restoring, 0);
	forks.running = false;
	forks.stop = false;
	forks.lost_pipe = false;
	forks.pending = 0;
	forks.pipes = 0;
	forks.wake_fd = -1;
	forks.proc_fd = -1;
	forks.first = NULL;
	if (mine.prepared)
		pthread_setcancelstate(mine.cancel_state, NULL);
}

bool sublet__linux_in_child(struct sublet_arena *arena)
{
	return a32_load_acquire(&sublet__instance_of(arena)->in_child);
}

void sublet__linux_fork_again(struct sublet_arena *arena)
{
	struct sublet__instance *in = sublet__instance_of(arena);

	if (a32_load_acquire(&in->in_child))
		return;
	a32_store_release(&in->again, 1);
	wake_watcher();
}

/* ---- the watcher ---- */

/* Drop the pipes whose other end is gone. fds[i + 1] is pipe i of `polled`. Lock held. */
static void drop_ended(const struct pollfd *fds, uint32_t polled)
{
	for (uint32_t i = polled; i-- > 0;) {
		int32_t late;
		if (fds[i + 1].revents & POLLIN && sublet__raw_read(fds[i + 1].fd, &late, sizeof late) > 0)
			continue; /* a pid that nobody waited for */
		if (!(fds[i + 1].revents & (POLLHUP | POLLERR)))
			continue;
		sublet__raw_close(forks.pipe_fd[i]);
		forks.pipe_fd[i] = forks.pipe_fd[--forks.pipes];
	}
}

/* Whether some process may still see frames of this arena. */
static bool is_shared(const struct sublet__instance *in, uint32_t pipes, bool lost_pipe)
{
	const struct sublet__sharers what = { in->backing.dev, in->backing.ino, forks.proc_fd,
					      in->asked_ticks };

	/* A child has copies of hugetlb memory, no frames (private.c). */
	if (in->backing.is_hugetlb)
		return false;
	if (pipes)
		return true;
	int found = sublet__sharer_find(&what);
	/* Where there is no /proc at all the pipes must do. */
	return found > 0 || (found < 0 && (lost_pipe || forks.proc_fd >= 0));
}

/*
 * What the answers will be about, before any question is asked: a fork after this makes them stale, and restore
 * refuses. Lock held, and no fork pending, so that the pipe of each one is among ours.
 */
static void ask_all(void)
{
	for (struct sublet__instance *in = forks.first; in; in = in->next) {
		in->asked_epoch = in->fork_epoch;
		in->asked_mms = in->mms;
		for (uint32_t i = 0; i < in->mms; i++)
			in->asked_mm_epoch[i] = sublet__mm_fork_epoch(sublet__arena_mm(in->arena, i));
		in->asked_ticks = in->fork_ticks;
		/* Pairs with sublet__linux_fork_again. */
		if (a32_exchange_acq_rel(&in->again, 0) && in->asked_epoch == in->restored_epoch)
			in->restored_epoch = in->asked_epoch - 1;
	}
}

/* Whether every fork so far has been undone. Lock held. */
static bool all_restored(void)
{
	bool all = true;

	for (struct sublet__instance *in = forks.first; in; in = in->next)
		if (in->restored_epoch == in->fork_epoch)
			in->fork_ticks = UINT64_MAX;
		else
			all = false;
	return all;
}

/* Every mm that was there when the question was asked; those added since have seen no fork before it. */
static bool mms_restore(struct sublet__instance *in)
{
	bool all = true;

	for (uint32_t i = 0; i < in->asked_mms; i++)
		all &= !sublet__mm_fork_restore(sublet__arena_mm(in->arena, i), in->asked_mm_epoch[i]);
	return all;
}

/* One attempt for every arena that needs it. True: some are left. */
static bool restore_all(uint32_t pipes, bool lost_pipe)
{
	bool left = false;

	for (struct sublet__instance *in = forks.first; in; in = in->next) {
		if (in->asked_epoch == in->restored_epoch)
			continue;
		if (!is_shared(in, pipes, lost_pipe) && mms_restore(in))
			in->restored_epoch = in->asked_epoch;
		else
			left = true;
	}
	return left;
}

/* Returns whether to look again without being woken. */
static bool watch_once(const struct pollfd *fds, uint32_t polled, bool *stop)
{
	sublet__lock(&forks.lock);
	drop_ended(fds, polled);
	*stop = forks.stop;
	uint32_t pipes = forks.pipes;
	bool lost_pipe = forks.lost_pipe;
	bool work = !*stop && !forks.pending; /* the end of a pending fork wakes us */
	if (work) {
		ask_all();
		a32_store_release(&forks.restoring, 1);
	}
	sublet__unlock(&forks.lock);
	if (!work)
		return false;

	bool left = restore_all(pipes, lost_pipe);

	sublet__lock(&forks.lock);
	if (all_restored())
		forks.lost_pipe = false;
	/* While there are pipes, their end wakes us. */
	left = left && (!forks.pipes || forks.lost_pipe);
	a32_store_release(&forks.restoring, 0);
	sublet__unlock(&forks.lock);
	sublet__futex_wake(&forks.restoring, UINT32_MAX);
	return left;
}

static void *watcher_main(void *arg)
{
	struct pollfd fds[PIPES_MAX + 1];
	int timeout_ms = -1, retry_ms = RETRY_MIN_MS;
	bool stop = false;

	(void)arg;
	while (!stop) {
		uint64_t count;
		sublet__lock(&forks.lock);
		uint32_t n = forks.pipes;
		fds[0] = (struct pollfd){ .fd = forks.wake_fd, .events = POLLIN };
		for (uint32_t i = 0; i < n; i++)
			fds[i + 1] = (struct pollfd){ .fd = forks.pipe_fd[i], .events = POLLIN };
		sublet__unlock(&forks.lock);
		int ready = sublet__raw_poll(fds, n + 1, timeout_ms);
		if (ready == -EINTR)
			continue;
		if (ready < 0) {
			/* RLIMIT_NOFILE is below the number of pipes: look now and then, and take none for ended. */
			sublet__raw_sleep_ns(RETRY_MAX_MS * SUBLET_MS);
			for (uint32_t i = 0; i <= n; i++)
				fds[i].revents = 0;
		}
		if (fds[0].revents & POLLIN && sublet__raw_read(fds[0].fd, &count, sizeof count) > 0)
			retry_ms = RETRY_MIN_MS;
		if (watch_once(fds, n, &stop)) {
			timeout_ms = retry_ms;
			retry_ms = retry_ms * 2 < RETRY_MAX_MS ? retry_ms * 2 : RETRY_MAX_MS;
		} else {
			timeout_ms = -1;
			retry_ms = RETRY_MIN_MS;
		}
	}
	return NULL;
}

/* ---- add, remove ---- */

/* Take the lock while the watcher neither looks at the arenas nor is about to end. */
static void lock_quiet(void)
{
	sublet__lock(&forks.lock);
	while (a32_load_acquire(&forks.restoring)) {
		sublet__unlock(&forks.lock);
		sublet__futex_wait(&forks.restoring, 1, UINT64_MAX);
		sublet__lock(&forks.lock);
	}
}

/* The last arena is gone: end the watcher. Lock held, and dropped for the time of the join. */
static void stop_watcher(void)
{
	forks.stop = true;
	wake_watcher();
	/* Whoever adds or removes an arena now waits in lock_quiet, so the thread is ours to join. */
	a32_store_release(&forks.restoring, 1);
	sublet__unlock(&forks.lock);
	pthread_join(forks.thread, NULL);
	sublet__lock(&forks.lock);
	sublet__raw_close(forks.wake_fd);
	forks.wake_fd = -1;
	if (forks.proc_fd >= 0)
		sublet__raw_close(forks.proc_fd);
	forks.proc_fd = -1;
	for (uint32_t i = 0; i < forks.pipes; i++)
		sublet__raw_close(forks.pipe_fd[i]);
	forks.pipes = 0;
	forks.lost_pipe = false;
	forks.running = false;
	a32_store_release(&forks.restoring, 0);
	sublet__futex_wake(&forks.restoring, UINT32_MAX);
}

/* Lock held. */
static int start(void)
{
	if (!forks.registered) {
		int err = pthread_atfork(on_prepare, on_parent, on_child);
		if (err)
			return -err;
		forks.registered = true;
	}
	if (forks.running)
		return 0;
	forks.stop = false;
	forks.wake_fd = sublet__linux_fd_high(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
	if (forks.wake_fd < 0)
		return -errno;
	forks.proc_fd = sublet__linux_fd_high(sublet__proc_open(AT_FDCWD));
	int err = sublet__linux_thread_start(&forks.thread, "sublet-fork", watcher_main, NULL);
	if (err) {
		sublet__raw_close(forks.wake_fd);
		if (forks.proc_fd >= 0)
			sublet__raw_close(forks.proc_fd);
		forks.wake_fd = forks.proc_fd = -1;
		return err;
	}
	forks.running = true;
	return 0;
}

int sublet__fork_add(struct sublet__instance *instance)
{
	int err;

	lock_quiet();
	err = start();
	instance->fork_ticks = forks.pending ? sublet__ticks_now() : UINT64_MAX;
	for (uint32_t i = 0; !err && i < forks.pending; i++)
		err = mms_begin(instance);
	if (!err) {
		instance->next = forks.first;
		forks.first = instance;
	}
	sublet__unlock(&forks.lock);
	return err;
}

int sublet__fork_add_mm(struct sublet__instance *instance, int (*create)(struct sublet__instance *instance))
{
	int err = -EAGAIN;

	lock_from_program();
	if (!forks.pending)
		err = create(instance);
	instance->mms += !err;
	unlock_from_program();
	return err;
}

void sublet__fork_remove(struct sublet__instance *instance)
{
	struct sublet__instance **at = &forks.first;

	lock_quiet();
	while (*at && *at != instance)
		at = &(*at)->next;
	if (*at)
		*at = instance->next;
	if (forks.running && !forks.first)
		stop_watcher();
	sublet__unlock(&forks.lock);
}
