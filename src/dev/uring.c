/* SPDX-License-Identifier: MIT */
/*
 * `uring`: files, by io_uring.
 *
 * The table of fixed buffers of one ring:
 *
 *   [0, linear_buffers)     the linear map, area and normal zone, 1 GiB an entry: registered when the device is opened
 *   linear_buffers + slot   a tracked bo, by its addresses, from attach to detach
 *
 * A job on a claimed or pinned bo goes through the linear entries, at the extents that its memory has, so it registers
 * nothing. A job on a tracked bo goes through the bo's entry, which names the frames that were there at attach: the
 * library detaches it before they change. A range goes by its address, under the library's pin.
 *
 * One thread of ours submits all requests and sees all their ends (uring_ring.c). It must be ours: io_uring cancels what
 * a thread submitted when that thread ends, and a program's threads end when they like.
 *
 *   submit, any thread              the ring's thread
 *   ------------------              -----------------
 *   lock: queue the job             lock: take the queue, say that it is about to sleep
 *     does it sleep? clear that     issue pieces, as many as may be in flight
 *   unlock                          sleep in the kernel for an end, or for the eventfd
 *   it did: write the eventfd       count the ends; complete jobs, with no lock held
 *
 * attach and detach are one system call each, made by whoever calls. They share only the kernel's own lock with the
 * ring's thread and never wait for that thread, which may stand in sublet_device_complete, waiting for a lock that our
 * caller holds.
 *
 * What detach promises (G4). When the call that empties an entry has returned no new request can use the old frames, and
 * the library sees to it that none is in flight: they are not accessed any more. Whether the kernel has dropped its
 * references too is another matter. Where each entry has a count of its own (Linux 6.13) they go in the call itself, or,
 * if a request that used the entry ended on a kernel worker that is not quite done with it, a moment later. Older
 * kernels keep them until all requests that began earlier have ended, the oldest ones for up to a second. Nothing waits for
 * that: a reference without a request touches nothing, and all frames have one for good, by the linear entries.
 *
 * What reset can do (G7, G11). Requests that wait for something are cancelled, those that run are waited for, RESET_NS at
 * most. A request that the disk has and does not give back nobody can take back; until it ends, which may be never, the
 * disk may write to its frames. Then reset answers -EINPROGRESS: the device is dead, and each job that was in flight
 * is still completed once its requests have ended. Until then its memory must be nobody else's. (The end of the arena
 * is safe: such a request holds its pages, which are nobody's then.) A close that finds such requests leaves the thread
 * behind to free everything after the last, and completes nothing more.
 *
 * fork(): a child closes its copy of the ring at once, and has neither the ring's memory nor the linear map.
 */
#include "dev/uring.h"

#include "core/device.h"
#include "linux/memcheck.h"
#include "linux/raw.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define JOBS_MAX    64u /* defaults */
#define BOS_MAX     1024u
#define BUFFERS_MAX 16384u /* entries in one table: the kernel's IORING_MAX_REG_BUFFERS */
#define ENTRIES     256u   /* of the submission queue: every piece, the eventfd, a cancellation */
#define RESET_NS    (2 * SUBLET_SEC)
#define BLOCK_BYTES 512u /* what O_DIRECT wants where the kernel does not say */
#define DESCRIPTORS 128u /* two a ring */

/* Our descriptors, each + 1, for a child of fork(); no lock, so that no handler of a fork has to wait for one. */
static sublet__a32 descriptors[DESCRIPTORS];

/* ---- what the library calls ---- */

/* Whether the file can do the job, and what it wants aligned. */
static int file_look(const struct sublet_device_work *work, uint64_t *unaligned)
{
	struct statx status;
	int flags = fcntl(work->fd, F_GETFL);

	if (flags < 0)
		return -errno;
	if ((flags & O_PATH) || (flags & O_ACCMODE) == (work->op == SUBLET_JOB_READ ? O_WRONLY : O_RDONLY))
		return -EBADF;
	/* Its writes go to the end, whatever the offset; and the pieces in no order. */
	if (work->op == SUBLET_JOB_WRITE && (flags & O_APPEND))
		return -EINVAL;
	if (syscall(SYS_statx, work->fd, "", AT_EMPTY_PATH, STATX_TYPE | STATX_DIOALIGN, &status))
		return -errno;
	if (!S_ISREG(status.stx_mode) && !S_ISBLK(status.stx_mode))
		return S_ISDIR(status.stx_mode) ? -EISDIR : -ESPIPE;
	uint64_t align = 1;
	if (flags & O_DIRECT) {
		bool known = (status.stx_mask & STATX_DIOALIGN) && status.stx_dio_offset_align;
		align = known ? status.stx_dio_offset_align : BLOCK_BYTES;
		align = known && status.stx_dio_mem_align > align ? status.stx_dio_mem_align : align;
	}
	*unaligned = align - 1;
	return 0;
}

static void wake(struct uring *u)
{
	uint64_t one = 1;

	(void)sublet__raw_write(u->wake_fd, &one, sizeof one); /* cannot be full */
}

static int uring_submit(void *ctx, const struct sublet_device_work *work)
{
	const struct sublet_device_buffer *buffer = &work->buffer[0];
	struct uring *u = ctx;
	uint64_t unaligned = 0, at;
	int err = file_look(work, &unaligned);

	if (err)
		return err;
	if (work->file_offset_bytes > INT64_MAX || work->bytes > INT64_MAX - work->file_offset_bytes)
		return -EINVAL;
	sublet__lock(&u->lock);
	struct uring_job *job = u->is_dead ? NULL : u->free; /* the library submits no more than jobs_max */
	if (job)
		u->free = job->next;
	sublet__unlock(&u->lock);
	if (!job)
		return -ENODEV;
	*job = (struct uring_job){
		.work = *work, .unaligned = unaligned, .end = UINT64_MAX, .is_active = true
	};
	err = uring_has_address(buffer) ? 0 : sublet__uring_extents(job);
	at = uring_has_address(buffer) ? (uint64_t)(uintptr_t)buffer->addr : job->extent_of[0].offset_bytes;
	if (!err && ((at | work->bytes | work->file_offset_bytes) & unaligned))
		err = -EINVAL;

	bool is_asleep = false;
	sublet__lock(&u->lock);
	if (err) {
		uring_job_free(u, job);
	} else {
		uring_list_put(&u->queue, job);
		is_asleep = u->is_asleep;
		u->is_asleep = false;
	}
	sublet__unlock(&u->lock);
	if (is_asleep)
		wake(u);
	return err;
}

/* Put memory into an entry of the table; addr NULL: nothing. */
static int table_set(struct uring *u, uint32_t entry, void *addr, uint64_t bytes)
{
	struct iovec memory = { .iov_base = addr, .iov_len = (size_t)bytes };
	int n = io_uring_register_buffers_update_tag(&u->ring, entry, &memory, NULL, 1);

	a64_add_relaxed(&u->registrations, 1);
	return n == 1 ? 0 : n < 0 ? n : -EIO;
}

static int uring_attach(void *ctx, uint32_t slot, void *addr, uint64_t bytes)
{
	struct uring *u = ctx;

	return table_set(u, u->linear_buffers + slot, addr, bytes);
}

static void uring_detach(void *ctx, uint32_t slot)
{
	struct uring *u = ctx;

	/* Should it fail the entry stays as it is, and no request uses it before it is set anew. */
	(void)table_set(u, u->linear_buffers + slot, NULL, 0);
}

static int uring_reset(void *ctx)
{
	struct uring *u = ctx;
	uint64_t until_ns = sublet__now_ns() + RESET_NS, now;

	sublet__lock(&u->lock);
	a32_store_relaxed(&u->resetting, 1);
	sublet__unlock(&u->lock);
	wake(u);
	/* acquire: pairs with jobs_take */
	while (a32_load_acquire(&u->resetting) && (now = sublet__now_ns()) < until_ns)
		sublet__futex_wait(&u->resetting, 1, until_ns - now);
	sublet__lock(&u->lock);
	u->is_dead = a32_load_relaxed(&u->resetting);
	sublet__unlock(&u->lock);
	return u->is_dead ? -EINPROGRESS : 0;
}

static void uring_close(void *ctx)
{
	struct uring *u = ctx;
	pthread_t thread = u->thread.pthread; /* an orphan frees u */

	sublet__lock(&u->lock);
	/* The library has no jobs in flight but those that a reset left behind. */
	bool is_orphan = u->is_orphan = u->is_dead && a32_load_relaxed(&u->resetting);
	sublet__unlock(&u->lock);
	while (is_orphan && a32_load_acquire(&u->completing)) /* pairs with jobs_complete */
		sublet__futex_wait(&u->completing, 1, UINT64_MAX);
	sublet__lock(&u->lock);
	u->is_stopping = true;
	wake(u); /* with the lock held: an orphan is gone soon after */
	sublet__unlock(&u->lock);
	if (is_orphan) {
		pthread_detach(thread);
		return;
	}
	if (u->has_thread)
		sublet__linux_thread_join(&u->thread);
	sublet__uring_free(u);
}

static void uring_count(void *ctx, struct sublet_device_info *info)
{
	const struct uring *u = ctx;

	info->registrations = a64_load_relaxed(&u->registrations);
}

static const struct sublet_device_ops uring_ops = {
	SUBLET_OPTIONS(sublet_device_ops),
	.submit = uring_submit,
	.attach = uring_attach,
	.detach = uring_detach,
	.reset = uring_reset,
	.close = uring_close,
	.count = uring_count,
};

/* ---- descriptors, and fork ---- */

static void child_close_all(void)
{
	for (uint32_t i = 0; i < DESCRIPTORS; i++) {
		uint32_t fd = a32_exchange_acq_rel(&descriptors[i], 0);
		if (fd)
			sublet__raw_close((int)fd - 1);
	}
}

static void fork_watch(void)
{
	/* out of memory: children keep what they inherit */
	(void)pthread_atfork(NULL, NULL, child_close_all);
}

/* Move a new descriptor where programs do not look, and have children close it. -ENOSPC: too many rings. */
static int descriptor_keep(int *fd)
{
	*fd = sublet__linux_fd_high(*fd);
	for (uint32_t i = 0; i < DESCRIPTORS; i++) {
		uint32_t none = 0;
		if (a32_cas_acq_rel(&descriptors[i], &none,
				    (uint32_t)*fd + 1)) /* pairs with child_close_all */
			return 0;
	}
	return -ENOSPC;
}

static void descriptor_drop(int fd)
{
	for (uint32_t i = 0; i < DESCRIPTORS; i++) {
		uint32_t mine = (uint32_t)fd + 1;
		if (a32_cas_acq_rel(&descriptors[i], &mine, 0)) /* before it is closed, and somebody else's */
			return;
	}
}

/* ---- open and free ---- */

void sublet__uring_free(struct uring *u)
{
	if (u->ring.ring_fd >= 0) {
		/* Now, and not when the kernel gets round to it: the arena may end next. */
		(void)io_uring_unregister_buffers(&u->ring);
		descriptor_drop(u->ring.ring_fd);
		io_uring_queue_exit(&u->ring);
	}
	if (u->wake_fd >= 0) {
		descriptor_drop(u->wake_fd);
		sublet__raw_close(u->wake_fd);
	}
	munmap(u, u->memory_bytes);
}

static int ring_open(struct uring *u)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	struct io_uring_params params = {
		.flags = IORING_SETUP_COOP_TASKRUN | IORING_SETUP_SUBMIT_ALL | IORING_SETUP_CQSIZE,
		.cq_entries = 2 * ENTRIES,
	};
	int fd = -1, err = io_uring_queue_init_params(ENTRIES, &u->ring, &params);

	if (err) {
		u->ring.ring_fd = -1;
		return err == -ENOMEM || err == -EMFILE || err == -ENFILE ? err : -EOPNOTSUPP;
	}
	pthread_once(&once, fork_watch);
	err = descriptor_keep(&u->ring.ring_fd);
	u->ring.enter_ring_fd = u->ring.ring_fd;
	if (!err)
		err = io_uring_ring_dontfork(&u->ring);
	if (err)
		return err;
	fd = eventfd(0, EFD_CLOEXEC);
	if (fd < 0)
		return -errno;
	err = descriptor_keep(&fd);
	u->wake_fd = fd;
	return err;
}

/* Make the table, and put the linear map into it. */
static int table_open(struct uring *u, const struct sublet_arena_info *info, uint32_t bos_max)
{
	uint64_t bytes = info->area_bytes + info->normal_bytes;
	int err = io_uring_register_buffers_sparse(&u->ring, u->linear_buffers + bos_max);

	if (err) /* before Linux 5.19 */
		return err == -EINVAL ? -EOPNOTSUPP : err;
	for (uint64_t at = 0; at < bytes && !err; at += URING_BUFFER_BYTES)
		err = table_set(u, (uint32_t)(at / URING_BUFFER_BYTES), u->linear + at,
				bytes - at < URING_BUFFER_BYTES ? bytes - at : URING_BUFFER_BYTES);
	return err;
}

static struct uring *uring_new(uint32_t jobs_max)
{
	size_t bytes = sizeof(struct uring) + jobs_max * sizeof(struct uring_job);
	/* Not of malloc, whose memory may be lent: attach and detach come with locks held. */
	struct uring *u =
		mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (u == MAP_FAILED)
		return NULL;
	u->memory_bytes = bytes;
	u->ring.ring_fd = u->wake_fd = -1;
	uring_list_init(&u->queue);
	uring_list_init(&u->active);
	uring_list_init(&u->done);
	uring_list_init(&u->given_up);
	for (uint32_t i = 0; i < jobs_max; i++)
		uring_job_free(u, &u->job[i]);
	for (uint32_t i = 0; i < URING_PIECES; i++)
		u->piece[i].next = i + 1;
	return u;
}

static int options_read(const struct sublet_uring_options *given, struct sublet_uring_options *o)
{
	*o = (struct sublet_uring_options){ 0 };
	int err = given ? sublet__struct_in(o, sizeof *o, given, FIRST_URING_OPTIONS) : 0;
	if (err)
		return err;
	o->name = o->name ? o->name : "uring";
	o->jobs_max = o->jobs_max ? o->jobs_max : JOBS_MAX;
	o->bos_max = o->bos_max ? o->bos_max : BOS_MAX;
	return o->jobs_max > UINT16_MAX ? -EINVAL : 0;
}

int sublet_device_open_uring(struct sublet_arena *arena, const struct sublet_uring_options *options,
			     struct sublet_device **out)
{
	struct sublet_arena_info info = { SUBLET_OPTIONS(sublet_arena_info) };
	struct sublet_uring_options o;
	int err = out ? call_arena(arena) : -EINVAL;

	if (!err)
		err = options_read(options, &o);
	if (!err)
		err = sublet_arena_info(arena, &info);
	/* There one thread runs at a time, and io_uring_enter() is not known as a call that may wait: all stand still. */
	if (!err && SUBLET__UNDER_VALGRIND())
		err = -EOPNOTSUPP;
	if (err)
		return err;
	uint64_t linear = (info.area_bytes + info.normal_bytes + URING_BUFFER_BYTES - 1) / URING_BUFFER_BYTES;
	if (linear + o.bos_max > BUFFERS_MAX)
		return -EINVAL;
	struct uring *u = uring_new(o.jobs_max);
	if (!u)
		return -ENOMEM;
	u->linear = info.linear;
	u->linear_buffers = (uint32_t)linear;
	const struct sublet_device_limits limits = {
		SUBLET_OPTIONS(sublet_device_limits),
		.name = o.name,
		.features = SUBLET_DEVICE_FILES | SUBLET_DEVICE_REGISTERED | SUBLET_DEVICE_RANGES,
		.bos_max = o.bos_max,
		.jobs_max = o.jobs_max,
		.align_bytes = 1, /* each file has its own: see file_look */
		.job_bytes_max = INT64_MAX,
		.bo_bytes_max = URING_BUFFER_BYTES,
	};
	err = ring_open(u);
	if (!err)
		err = table_open(u, &info, o.bos_max);
	if (!err)
		err = sublet_device_create(arena, &uring_ops, u, &limits, &u->device);
	if (err) {
		sublet__uring_free(u);
		return err;
	}
	struct sublet_device *device = u->device;
	err = sublet__linux_thread_start(&u->thread, "sublet-uring", sublet__uring_main, u);
	u->has_thread = !err;
	if (err)
		sublet_device_close(device);
	else
		*out = device;
	return err;
}
