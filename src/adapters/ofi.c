/* SPDX-License-Identifier: MIT */
/*
 * libfabric: a memory monitor of our own, imported by fi_open("mr_cache").
 *
 * libfabric has one monitor for ordinary memory, and all its caches (ofi_mr_cache: one a domain of verbs, efa, ...)
 * ask it to subscribe to the range of each entry they make. An imported monitor takes the place of that one, and tells
 * all caches at once by the notify() it is given: entries that overlap leave their cache before notify() returns.
 *
 * A subscription is accepted if a watched range has room for it. It leaves nothing behind: one notifier stands for the
 * whole watch. A notifier for each subscribed range was rejected. libfabric 1.17 never unsubscribes, not even when
 * notify() or its own eviction drops the entry, so they would pile up; and releases that do unsubscribe call it with
 * the cache's lock held, where one must not wait for a callback that waits for the same lock. The price is a call of
 * notify() for every move in a watched range: a lock and a search of a tree.
 *
 * Where nothing is watched a subscription is refused. The entry is then used once and not kept, which is slow and
 * right: the monitor that would have seen an munmap() there is the one that was replaced.
 *
 * Locks, first taken first:
 *
 *   sublet_ofi.admin           one watch, unwatch or close at a time
 *     mm.block[]               and what else of the engine sublet_notifier_add and _remove take
 *   mm.block[]                 held by the mover
 *     libfabric's list lock    to read; written while a domain is opened or closed, which takes nothing of ours
 *       libfabric's mm_lock    the caches' trees; held for look-ups, never while memory is registered
 *         sublet_ofi.lock      the list of watches
 *
 * libfabric 1.17 allocates nothing in notify(), but it does so with mm_lock held when it inserts an entry. If malloc
 * could get its memory from the very mm, that thread might wait for the block lock of a mover that waits for mm_lock.
 * Hence the rule on malloc in sublet/ofi.h.
 */
#include <sublet/ofi.h>

#include "adapters/watch.h"

#include <errno.h>
#include <pthread.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_errno.h>
#include <rdma/fi_ext.h>
#include <stdlib.h>

struct sublet_ofi_watch {
	struct sublet__watch watch;
	struct sublet_ofi *ofi;
	struct sublet_ofi_watch *next;
};

struct sublet_ofi {
	struct fid_mem_monitor monitor;
	struct fi_ops_mem_monitor ops;
	pthread_mutex_t admin;
	pthread_mutex_t
		lock; /* protects watches; they are changed with admin held too, so admin is enough to look */
	struct sublet_ofi_watch *watches;
	_Atomic bool is_running; /* between libfabric's start() and stop() */
};

static struct sublet_ofi *ofi_of(struct fid_mem_monitor *monitor)
{
	return (struct sublet_ofi *)((char *)monitor - offsetof(struct sublet_ofi, monitor));
}

/* ---- what libfabric calls ---- */

static int monitor_start(struct fid_mem_monitor *monitor)
{
	atomic_store_explicit(&ofi_of(monitor)->is_running, true, memory_order_release);
	return 0;
}

static void monitor_stop(struct fid_mem_monitor *monitor)
{
	atomic_store_explicit(&ofi_of(monitor)->is_running, false, memory_order_release);
}

static bool is_live(const struct sublet_ofi_watch *w)
{
	/* pairs with watch_invalidate */
	return !atomic_load_explicit(&w->watch.has_ended, memory_order_acquire);
}

/* mm_lock is held, here and in unsubscribe and valid. */
static int monitor_subscribe(struct fid_mem_monitor *monitor, const void *addr, size_t bytes)
{
	struct sublet_ofi *ofi = ofi_of(monitor);
	uint64_t first = (uintptr_t)addr, end = first + bytes;
	int err = -FI_EOPNOTSUPP;

	pthread_mutex_lock(&ofi->lock);
	for (const struct sublet_ofi_watch *w = ofi->watches; w && err; w = w->next)
		if (is_live(w) && w->watch.addr <= first && end <= w->watch.addr + w->watch.bytes)
			err = 0;
	pthread_mutex_unlock(&ofi->lock);
	return err;
}

static void monitor_unsubscribe(struct fid_mem_monitor *monitor, const void *addr, size_t bytes)
{
	(void)monitor, (void)addr, (void)bytes;
}

/* What was not valid any more would not be in the cache. */
static bool monitor_valid(struct fid_mem_monitor *monitor, const void *addr, size_t bytes)
{
	(void)monitor, (void)addr, (void)bytes;
	return true;
}

/* ---- the monitor ---- */

/* libfabric's codes up to FI_ERRNO_OFFSET are those of errno. */
static int import_error(int err)
{
	return err == -FI_EBUSY || err == -FI_ENOMEM ? err : -EOPNOTSUPP;
}

static int monitor_import(struct sublet_ofi *ofi)
{
	struct fi_param *params;
	int count;

	/* Have libfabric read its environment now. When it does so later it puts aside what was imported before. */
	if (!fi_getparams(&params, &count))
		fi_freeparams(params);
	return fi_import(FI_VERSION(FI_MAJOR_VERSION, FI_MINOR_VERSION), "mr_cache", NULL, 0, 0,
			 &ofi->monitor.fid, ofi);
}

int sublet_ofi_open(struct sublet_ofi **ofi)
{
	struct sublet_ofi *o = ofi ? calloc(1, sizeof *o) : NULL;

	if (!o)
		return ofi ? -ENOMEM : -EINVAL;
	o->ops = (struct fi_ops_mem_monitor){ .size = sizeof o->ops,
					      .start = monitor_start,
					      .stop = monitor_stop,
					      .subscribe = monitor_subscribe,
					      .unsubscribe = monitor_unsubscribe,
					      .valid = monitor_valid };
	o->monitor.fid.fclass = FI_CLASS_MEM_MONITOR;
	o->monitor.export_ops = &o->ops;
	atomic_init(&o->is_running, false);
	int err = -pthread_mutex_init(&o->admin, NULL);
	if (err)
		goto free_it;
	err = -pthread_mutex_init(&o->lock, NULL);
	if (err)
		goto destroy_admin;
	err = monitor_import(o);
	if (err)
		goto destroy_lock;
	*ofi = o;
	return 0;

destroy_lock:
	err = import_error(err);
	pthread_mutex_destroy(&o->lock);
destroy_admin:
	pthread_mutex_destroy(&o->admin);
free_it:
	free(o);
	return err;
}

int sublet_ofi_close(struct sublet_ofi *ofi)
{
	if (!ofi)
		return 0;
	pthread_mutex_lock(&ofi->admin);
	/* libfabric calls the monitor for as long as it runs, without looking whether it was closed. */
	bool is_busy = ofi->watches || atomic_load_explicit(&ofi->is_running, memory_order_acquire);
	pthread_mutex_unlock(&ofi->admin);
	if (is_busy)
		return -EBUSY;
	(void)fi_close(&ofi->monitor.fid);
	pthread_mutex_destroy(&ofi->lock);
	pthread_mutex_destroy(&ofi->admin);
	free(ofi);
	return 0;
}

/* ---- watches ---- */

static void ofi_drop(struct sublet__watch *watch, uint64_t addr, uint64_t bytes)
{
	/* watch is the first member */
	struct sublet_ofi *ofi = ((struct sublet_ofi_watch *)watch)->ofi;

	ofi->monitor.import_ops->notify(&ofi->monitor, (const void *)(uintptr_t)addr, bytes);
}

static bool is_watched(const struct sublet_ofi *ofi, uint64_t addr, uint64_t bytes)
{
	for (const struct sublet_ofi_watch *w = ofi->watches; w; w = w->next)
		if (is_live(w) && addr < w->watch.addr + w->watch.bytes && w->watch.addr < addr + bytes)
			return true;
	return false;
}

int sublet_ofi_watch(struct sublet_ofi *ofi, struct sublet_mm *mm, const void *addr, uint64_t bytes,
		     struct sublet_ofi_watch **watch)
{
	uint64_t first = (uintptr_t)addr;

	if (!ofi || !mm || !watch || first + bytes <= first)
		return -EINVAL;
	struct sublet_ofi_watch *w = malloc(sizeof *w);
	if (!w)
		return -ENOMEM;
	*w = (struct sublet_ofi_watch){
		.watch = { .addr = first, .bytes = bytes, .drop = ofi_drop },
		.ofi = ofi,
	};
	pthread_mutex_lock(&ofi->admin);
	int err = is_watched(ofi, first, bytes) ? -EEXIST : sublet__watch_begin(&w->watch, mm, "libfabric");
	if (err) {
		pthread_mutex_unlock(&ofi->admin);
		free(w);
		return err;
	}
	/* Only now: what is subscribed to is told. */
	pthread_mutex_lock(&ofi->lock);
	w->next = ofi->watches;
	ofi->watches = w;
	pthread_mutex_unlock(&ofi->lock);
	pthread_mutex_unlock(&ofi->admin);
	*watch = w;
	return 0;
}

void sublet_ofi_unwatch(struct sublet_ofi_watch *watch)
{
	if (!watch)
		return;
	struct sublet_ofi *ofi = watch->ofi;
	struct sublet_ofi_watch **at = &ofi->watches;

	pthread_mutex_lock(&ofi->admin);
	pthread_mutex_lock(&ofi->lock);
	while (*at != watch)
		at = &(*at)->next;
	*at = watch->next;
	pthread_mutex_unlock(&ofi->lock);
	/* Nothing new is cached of it from here on, so this drops all there is; then nobody needs to be told. */
	ofi_drop(&watch->watch, watch->watch.addr, watch->watch.bytes);
	sublet__watch_end(&watch->watch);
	pthread_mutex_unlock(&ofi->admin);
	free(watch);
}
