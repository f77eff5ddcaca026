/* SPDX-License-Identifier: MIT */
/*
 * linux/fork.c: fork() of a process that has memory lent.
 *
 * Lent memory is shared memory, so a plain fork() would leave parent and child writing the same
 * bytes. Instead:
 *
 *   prepare   every lent mapping of every arena turns private (sublet__mm_fork_begin); a token is mapped (token.c)
 *   fork      ordinary copy-on-write for both
 *   parent    unmaps the token, lets the engine go on (sublet__mm_fork_end)
 *   child     signs the token, as its own children will; its arenas are plain memory from now on (in_child)
 *   watcher   a thread; when all tokens are free, no process sees the frames any more: shared again
 *             (sublet__mm_fork_restore)
 *
 * No lock is held from prepare to parent: another thread may be in the middle of an allocator's hook,
 * waiting in the engine, with locks that the allocator's own prepare handler is about to want. What
 * must not happen meanwhile is counted instead, in the engine: forks of several threads overlap
 * freely, and restore gives up when one begins. forks.pending counts the same for an arena that is
 * created in that time: it hears of every fork that is pending before anything can be mapped in it.
 *
 * Each fork has a token, or shares one that is in use where no other is to be had: at the limit of descriptors, say. One
 * token is always kept ready for that reason. A fork that failed leaves a token that is free at the first look.
 *
 * In a program with a helper process (helper.c) the descriptors are the helper's. There prepare and parent are orders to a
 * task of their own, which is not the watcher: a fork must not wait until the watcher has copied an earlier snapshot home.
 *
 * A pin of lent memory, or a device that works on it, refuses no fork: it is waited for, a second at most in all, then
 * that memory is left out of the child. A fork may be refused where there is no memory to keep a child apart (-ENOMEM), or
 * where the helper process has ended (-EPIPE). Handlers of pthread_atfork cannot refuse; there the process is stopped.
 *
 * From prepare to the end of its fork a thread cannot be cancelled: memory would stay private for ever.
 *
 * The watcher is started with the first arena and not at a fork, because starting a thread calls
 * malloc, and a parent handler may run before the allocator's.
 */
#include "linux/fork.h"

#include "linux/helper.h"
#include "linux/linux.h"
#include "linux/proc.h"
#include "linux/raw.h"
#include "linux/token.h"

#include <pthread.h>
#include <stdlib.h>

#define TOKENS_MAX    64u
#define INHERITED_MAX 8u  /* what is more is not signed: a claim names nobody then */
#define PREPARE_TRIES 100 /* a millisecond apart, where the alternative is to stop the process */
#define LOOK_MIN_NS   (500 * SUBLET_US)
#define LOOK_MAX_NS   (50 * SUBLET_MS)
#define LOOK_SHARE    8u /* of the age of the youngest token: so late, in proportion, is its end seen */
#define RETRY_MIN_NS  (5 * SUBLET_MS)
#define RETRY_MAX_NS  (50 * SUBLET_MS) /* the kernel refused memory or a mapping */

/* What one thread remembers from prepare to the end of its fork. */
struct fork_here {
	bool prepared;
	struct sublet__token_page *page;
	int cancel_state; /* what it was before */
};

static __thread struct fork_here here __attribute__((tls_model("initial-exec")));

/* In a child: the pages that it has from those before it. More than one only where children made arenas themselves. */
static struct sublet__token_page *inherited[INHERITED_MAX];
static uint32_t inherited_count;

/*
 * One for the process, as pthread_atfork is. Guarded by lock, but for the futex words. The watcher
 * holds no lock while it restores: `restoring` keeps arenas from going away meanwhile.
 */
static struct {
	sublet__a32 lock;
	sublet__a32 restoring; /* futex: the watcher is at the arenas, or is being ended */
	bool registered;       /* with pthread_atfork: once in a process and its children */
	bool running;          /* the watcher, and with a helper the task for orders */
	bool stop;
	uint32_t pending; /* forks between prepare and parent */
	uint32_t tokens;  /* in use: the first ones of token[] */
	struct sublet__token token[TOKENS_MAX];
	struct sublet__token spare; /* the one that is ready */
	uint64_t token_ns;          /* when the youngest came */
	struct sublet__instance *first;
	struct sublet__thread watcher;
	sublet__a32 bell;            /* futex: why the watcher wakes up */
	struct sublet__thread taker; /* of orders */
	struct sublet__order order;
} forks = { .spare = { .fd = -1 } };

/* Any thread. */
static void wake_watcher(void)
{
	/* Pairs with the watcher's load before it looks around. */
	(void)a32_add_acq_rel(&forks.bell, 1);
	sublet__futex_wake(&forks.bell, 1);
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
static void mms_end(struct sublet__instance *in, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++)
		sublet__mm_fork_end(sublet__arena_mm(in->arena, i), 0);
}

/* All mms of an arena or none. Lock held. */
static int mms_begin(struct sublet__instance *in, uint64_t until_ns)
{
	in->fork_epoch++;
	for (uint32_t i = 0; i < in->mms; i++) {
		int err = sublet__mm_fork_begin(sublet__arena_mm(in->arena, i), until_ns);
		if (err) {
			mms_end(in, i + 1);
			in->fork_epoch++;
			return err;
		}
	}
	return 0;
}

/* Lock held. */
static void end_all(const struct sublet__instance *until)
{
	for (struct sublet__instance *in = forks.first; in != until; in = in->next) {
		mms_end(in, in->mms);
		in->fork_epoch++;
	}
}

/* Lock held. All arenas or none. */
static int begin_all(uint64_t until_ns)
{
	for (struct sublet__instance *in = forks.first; in; in = in->next) {
		int err = mms_begin(in, until_ns);
		if (err) {
			end_all(in);
			return err;
		}
	}
	return 0;
}

/* A token for a fork, mapped. NULL: none is to be had, and none is in use. Lock held. */
static struct sublet__token_page *token_take(void)
{
	struct sublet__token_page *page = NULL;

	if (forks.spare.fd < 0)
		(void)sublet__token_make(&forks.spare);
	if (forks.tokens < TOKENS_MAX && forks.spare.fd >= 0)
		page = sublet__token_map(&forks.spare);
	if (page) {
		forks.token[forks.tokens++] = forks.spare;
		forks.token_ns = sublet__now_ns();
		(void)sublet__token_make(&forks.spare);
		return page;
	}
	/* One that is in use: it is free when the children of both forks have gone. */
	for (uint32_t i = 0; i < forks.tokens && !page; i++)
		if (!sublet__token_is_free(&forks.token[i]))
			page = sublet__token_map(&forks.token[i]);
	return page;
}

/* What a fork needs before it. `page`: NULL where there is no arena. Where descriptors are. */
struct fork_call {
	struct sublet__token_page *page;
	bool any;
	uint64_t
		until_ns; /* pins and devices are waited for until then; 0: not known before the first attempt */
};

static int begin_here(void *arg)
{
	struct fork_call *call = arg;
	int err = 0;

	lock_from_program();
	/* Another fork may have waited before: this one waits as long for what it finds. */
	if (!call->until_ns)
		call->until_ns = sublet__now_ns() + SUBLET__FORK_WAIT_NS;
	call->any = forks.first;
	if (call->any)
		err = begin_all(call->until_ns);
	if (call->any && !err) {
		call->page = token_take();
		if (!call->page) {
			end_all(NULL);
			err = -ENOMEM;
		}
	}
	forks.pending += call->any && !err;
	if (err)
		wake_watcher();
	unlock_from_program();
	return err;
}

static int end_here(void *arg)
{
	struct fork_call *call = arg;

	lock_from_program();
	sublet__token_unmap(call->page);
	forks.pending--;
	end_all(NULL);
	wake_watcher();
	unlock_from_program();
	return 0;
}

/* On the task for orders, where there is one. */
static int call_there(int (*fn)(void *arg), struct fork_call *call)
{
	return sublet__descriptors_are_here() ? fn(call) : sublet__order_give(&forks.order, fn, call);
}

static int prepare(struct fork_call *call)
{
	int cancel_state;

	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state);
	int err = call_there(begin_here, call);
	if (err || !call->any) {
		pthread_setcancelstate(cancel_state, NULL);
		return err;
	}
	here = (struct fork_here){ .prepared = true, .page = call->page, .cancel_state = cancel_state };
	return 0;
}

int sublet__linux_fork_prepare(void)
{
	struct fork_call call = { .page = NULL };

	return here.prepared ? 0 : prepare(&call);
}

static void on_prepare(void)
{
	struct fork_call call = { .page = NULL };
	int err, tries = 0;

	if (here.prepared)
		return;
	while ((err = prepare(&call)) == -ENOMEM && ++tries < PREPARE_TRIES)
		sublet__raw_sleep_ns(SUBLET_MS);
	if (err) {
		sublet__complain(
			err == -EPIPE ? "fork() cannot keep lent memory apart from a child, because the "
					"helper process of this program has ended; do not end it, or use "
					"posix_spawn()"
				      : "fork() cannot keep lent memory apart from a child: no memory or no "
					"kernel mapping is left; free some, raise vm.max_map_count, or use "
					"posix_spawn()",
			err);
		abort();
	}
}

/* ---- parent ---- */

static void on_parent(void)
{
	struct fork_call call = { .page = here.page };
	int saved = errno;

	if (!here.prepared)
		return;
	here.prepared = false;
	(void)call_there(end_here, &call);
	errno = saved;
	pthread_setcancelstate(here.cancel_state, NULL);
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
		sublet__fd_drop(in->backing.fd);
	in->backing.fd = -1;
}

static void on_child(void)
{
	struct fork_here mine = here;

	/* Not prepared: no arena existed then. A page stays mapped as long as the memory that it stands for. */
	if (mine.prepared && inherited_count < INHERITED_MAX)
		inherited[inherited_count++] = mine.page;
	for (uint32_t i = 0; i < inherited_count; i++)
		sublet__token_sign(inherited[i]);
	here.prepared = false;
	for (struct sublet__instance *in = forks.first; in; in = in->next)
		abandon(in);
	for (uint32_t i = 0; i < forks.tokens; i++)
		sublet__fd_drop(forks.token[i].fd);
	sublet__fd_drop(forks.spare.fd);
	a32_store_release(&forks.lock, 0);
	a32_store_release(&forks.restoring, 0);
	sublet__order_clear(&forks.order);
	sublet__helper_fork_child();
	forks.running = false;
	forks.stop = false;
	forks.pending = 0;
	forks.tokens = 0;
	forks.spare.fd = -1;
	forks.first = NULL;
	if (mine.prepared)
		pthread_setcancelstate(mine.cancel_state, NULL);
}

void sublet__linux_fork_child(void)
{
	on_child();
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

/* Drop the tokens that are free, and name a child for each arena. Lock held. */
static void tokens_look(void)
{
	int32_t pid = 0;

	for (uint32_t i = forks.tokens; i-- > 0;) {
		if (sublet__token_is_free(&forks.token[i])) {
			sublet__token_close(&forks.token[i]);
			forks.token[i] = forks.token[--forks.tokens];
			continue;
		}
		int32_t found = sublet__token_pid(&forks.token[i]);
		pid = found ? found : pid;
	}
	if (forks.spare.fd < 0)
		(void)sublet__token_make(&forks.spare);
	/* Also 0: a name that has died is not to stay. Of hugetlb memory a child has copies, and blocks nothing. */
	for (struct sublet__instance *in = forks.first; in; in = in->next)
		for (uint32_t i = 0; i < in->mms && !in->backing.is_hugetlb; i++)
			sublet__mm_fork_child(sublet__arena_mm(in->arena, i), pid);
}

/*
 * What the answers will be about, before any question is asked: a fork after this makes them stale, and restore
 * refuses. Lock held, and no fork pending, so that the token of each one is among ours.
 */
static void ask_all(void)
{
	for (struct sublet__instance *in = forks.first; in; in = in->next) {
		in->asked_epoch = in->fork_epoch;
		in->asked_mms = in->mms;
		for (uint32_t i = 0; i < in->mms; i++)
			in->asked_mm_epoch[i] = sublet__mm_fork_epoch(sublet__arena_mm(in->arena, i));
		/* Pairs with sublet__linux_fork_again. */
		if (a32_exchange_acq_rel(&in->again, 0) && in->asked_epoch == in->restored_epoch)
			in->restored_epoch = in->asked_epoch - 1;
	}
}

/* Every mm that was there when the question was asked; those added since have seen no fork before it. */
static bool mms_restore(struct sublet__instance *in)
{
	bool all = true;

	for (uint32_t i = 0; i < in->asked_mms; i++)
		all &= !sublet__mm_fork_restore(sublet__arena_mm(in->arena, i), in->asked_mm_epoch[i]);
	return all;
}

/* One attempt for every arena that needs it. True: some that could be restored were not, and are to be tried again. */
static bool restore_all(bool is_shared)
{
	bool again = false;

	for (struct sublet__instance *in = forks.first; in; in = in->next) {
		/* A child has copies of hugetlb memory, no frames (private.c). */
		if (in->asked_epoch == in->restored_epoch || (is_shared && !in->backing.is_hugetlb))
			continue;
		if (mms_restore(in))
			in->restored_epoch = in->asked_epoch;
		else
			again = true;
	}
	return again;
}

/* How long until the next look at the tokens: the older the youngest is, the more seldom. Lock held. */
static uint64_t look_ns(void)
{
	uint64_t ns = (sublet__now_ns() - forks.token_ns) / LOOK_SHARE;

	ns = ns < LOOK_MAX_NS ? ns : LOOK_MAX_NS;
	return !forks.tokens ? UINT64_MAX : ns > LOOK_MIN_NS ? ns : LOOK_MIN_NS;
}

/* Returns how long until the next round; *retry_ns is what a failed attempt waits. */
static uint64_t watch_once(uint64_t *retry_ns)
{
	sublet__lock(&forks.lock);
	bool work = !forks.stop && !forks.pending; /* the end of a pending fork wakes us */
	if (work) {
		tokens_look();
		ask_all();
		a32_store_release(&forks.restoring, 1);
	}
	bool is_shared = forks.tokens;
	uint64_t ns = work ? look_ns() : UINT64_MAX;
	sublet__unlock(&forks.lock);
	if (!work)
		return ns;

	if (restore_all(is_shared)) {
		ns = ns < *retry_ns ? ns : *retry_ns;
		*retry_ns = *retry_ns * 2 < RETRY_MAX_NS ? *retry_ns * 2 : RETRY_MAX_NS;
	} else {
		*retry_ns = RETRY_MIN_NS;
	}

	sublet__lock(&forks.lock);
	a32_store_release(&forks.restoring, 0);
	sublet__unlock(&forks.lock);
	sublet__futex_wake(&forks.restoring, UINT32_MAX);
	return ns;
}

static bool is_to_stop(void)
{
	sublet__lock(&forks.lock);
	bool stop = forks.stop;
	sublet__unlock(&forks.lock);
	return stop;
}

static void *watcher_main(void *arg)
{
	uint64_t retry_ns = RETRY_MIN_NS;

	(void)arg;
	while (!is_to_stop()) {
		/* Before looking around: pairs with wake_watcher. */
		uint32_t bell = a32_load_acquire(&forks.bell);
		uint64_t ns = watch_once(&retry_ns);
		if (ns)
			sublet__futex_wait(&forks.bell, bell, ns);
	}
	return NULL;
}

static void *taker_main(void *arg)
{
	(void)arg;
	while (!is_to_stop()) {
		uint32_t bell = a32_load_acquire(&forks.order.bell);
		sublet__order_take(&forks.order);
		sublet__futex_wait(&forks.order.bell, bell, UINT64_MAX);
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

static void tokens_close(void)
{
	for (uint32_t i = 0; i < forks.tokens; i++)
		sublet__token_close(&forks.token[i]);
	forks.tokens = 0;
	if (forks.spare.fd >= 0)
		sublet__token_close(&forks.spare);
}

/* The last arena is gone: end the watcher. Lock held, and dropped for the time of the join. */
static void stop_watcher(void)
{
	forks.stop = true;
	/* Any other thread that adds or removes an arena now waits in lock_quiet, so the thread is ours to join. */
	a32_store_release(&forks.restoring, 1);
	sublet__unlock(&forks.lock);
	wake_watcher();
	sublet__linux_thread_join(&forks.watcher);
	if (sublet__helper_exists()) {
		sublet__order_ring(&forks.order);
		sublet__linux_thread_join(&forks.taker);
	}
	sublet__lock(&forks.lock);
	tokens_close();
	forks.running = false;
	a32_store_release(&forks.restoring, 0);
	sublet__futex_wake(&forks.restoring, UINT32_MAX);
}

int sublet__linux_fork_register(void)
{
	int err = forks.registered ? 0 : pthread_atfork(on_prepare, on_parent, on_child);

	forks.registered = forks.registered || !err;
	return -err;
}

/* Lock held. */
static int start(void)
{
	int err = sublet__linux_fork_register();
	if (err || forks.running)
		return err;
	forks.stop = false;
	err = sublet__token_make(&forks.spare);
	if (err)
		return err;
	err = sublet__linux_thread_start(&forks.watcher, "sublet-fork", watcher_main, NULL);
	if (!err && sublet__helper_exists())
		err = sublet__linux_thread_start(&forks.taker, "sublet-order", taker_main, NULL);
	if (err) {
		tokens_close();
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
	for (uint32_t i = 0; !err && i < forks.pending; i++)
		err = mms_begin(instance, 0); /* nothing is mapped yet, so nothing is waited for */
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
