/* SPDX-License-Identifier: MIT */
/*
 * The thread of the io_uring device: jobs become requests, and requests results.
 *
 * A job is cut into pieces, each a request, so that scattered memory, the kernel's limits and short reads are one case.
 * Jobs take turns, a piece each. A request that did only part of its piece is made again for the rest. A read that met the
 * end of the file says where that is; the job gives what lies before. Of several pieces that fail the one nearest to the
 * job's beginning is its status; what a failed job has transferred is not known.
 *
 * In a reset no new requests are made, those in flight are cancelled again and again, and jobs that are not done go to
 * a list of their own: the library fails them by itself, unless reset has given up waiting. Then each is
 * completed here after all, in its own time, so that the library knows when its memory is not used any more.
 */
#include "dev/uring.h"

#include <errno.h>

#define PIECE_BYTES  SUBLET_MIB
#define FLIGHT_BYTES (32 * SUBLET_MIB) /* of all requests in flight: what even a slow disk does in a second */
#define WORKER_BYTES (64 * SUBLET_KIB) /* from here on a kernel worker copies from or to the page cache */
#define CANCEL_NS    (20 * SUBLET_MS) /* between two attempts at cancelling all; after an error of the ring */
#define DATA_WAKE    UINT64_MAX /* user data of the read from the eventfd; below URING_PIECES: a piece */
#define DATA_CANCEL  (UINT64_MAX - 1)

/* ---- where a job's memory is ---- */

int sublet__uring_extents(struct uring_job *job)
{
	const struct sublet_device_buffer *buffer = &job->work.buffer[0];
	int count = sublet_bo_extents(&buffer->bo, buffer->offset_bytes + job->planned, job->extent_of,
				      URING_EXTENTS);

	job->extent = 0;
	job->extents = count > 0 ? (uint32_t)count : 0;
	return count > 0 ? 0 : count < 0 ? count : -EFAULT;
}

/* The next piece of a job: where it is, and how long. */
static int piece_plan(struct uring *u, struct uring_job *job, struct uring_piece *piece)
{
	const struct sublet_device_buffer *buffer = &job->work.buffer[0];
	uint64_t bytes = job->work.bytes - job->planned;

	piece->at = job->planned;
	piece->bytes = bytes < PIECE_BYTES ? bytes : PIECE_BYTES;
	if (uring_has_address(buffer)) {
		piece->memory = (char *)buffer->addr + job->planned;
		piece->buffer = buffer->is_tracked ? u->linear_buffers + buffer->slot : URING_BY_ADDRESS;
		return 0;
	}
	int err = job->extent == job->extents ? sublet__uring_extents(job) : 0;
	if (err)
		return err;
	struct sublet_extent *e = &job->extent_of[job->extent];
	uint64_t room = URING_BUFFER_BYTES - e->offset_bytes % URING_BUFFER_BYTES; /* in that entry */
	piece->bytes = e->bytes < piece->bytes ? e->bytes : piece->bytes;
	piece->bytes = room < piece->bytes ? room : piece->bytes;
	piece->memory = u->linear + e->offset_bytes;
	piece->buffer = (uint32_t)(e->offset_bytes / URING_BUFFER_BYTES);
	e->offset_bytes += piece->bytes;
	e->bytes -= piece->bytes;
	job->extent += !e->bytes;
	return 0;
}

/* ---- a job and its pieces ---- */

static void job_fail(struct uring_job *job, int status, uint64_t at)
{
	if (job->status && job->failed_at < at)
		return;
	job->status = status;
	job->failed_at = at;
}

/* Whether pieces of it are still to be made. */
static bool job_goes_on(const struct uring *u, const struct uring_job *job)
{
	return !u->is_failing && !job->status && job->planned < job->work.bytes && job->planned < job->end;
}

/* It is over once nothing of it is in flight, and nothing more will be. */
static void job_look(struct uring *u, struct uring_job *job)
{
	if (job->pieces || job->is_active)
		return;
	if (!job->status && job->planned < job->work.bytes && job->planned < job->end)
		job_fail(job, -ECANCELED, job->planned);
	uring_list_put(&u->done, job);
}

/*
 * The queue has room for every piece and for the eventfd, and is empty after each sleep; but where the kernel takes nothing
 * any more cancellations fill it up, one after the other, until this is NULL.
 */
static struct io_uring_sqe *request(struct uring *u)
{
	return io_uring_get_sqe(&u->ring);
}

static void piece_issue(struct uring *u, const struct uring_piece *piece)
{
	const struct sublet_device_work *work = &piece->job->work;
	struct io_uring_sqe *sqe = request(u);
	unsigned int bytes = (unsigned int)piece->bytes;
	uint64_t at = work->file_offset_bytes + piece->at;
	bool is_read = work->op == SUBLET_JOB_READ;

	if (piece->buffer == URING_BY_ADDRESS && is_read)
		io_uring_prep_read(sqe, work->fd, piece->memory, bytes, at);
	else if (piece->buffer == URING_BY_ADDRESS)
		io_uring_prep_write(sqe, work->fd, piece->memory, bytes, at);
	else if (is_read)
		io_uring_prep_read_fixed(sqe, work->fd, piece->memory, bytes, at, (int)piece->buffer);
	else
		io_uring_prep_write_fixed(sqe, work->fd, piece->memory, bytes, at, (int)piece->buffer);
	io_uring_sqe_set_data64(sqe, (uint64_t)(piece - u->piece));
	/* The page cache is copied at once by whoever submits, under the lock of the ring, for which detach waits. */
	if (!piece->job->unaligned && bytes >= WORKER_BYTES)
		sqe->flags |= IOSQE_ASYNC;
}

/* Make pieces, of each job in turn, as long as more may be in flight. */
static void pieces_make(struct uring *u)
{
	struct uring_job *job;

	while (u->flight < URING_PIECES && u->flight_bytes + PIECE_BYTES <= FLIGHT_BYTES &&
	       (job = uring_list_get(&u->active)) != NULL) {
		struct uring_piece *piece = &u->piece[u->piece_free];
		int err = job_goes_on(u, job) ? piece_plan(u, job, piece) : 0;
		if (err)
			job_fail(job, err, job->planned);
		if (job_goes_on(u, job)) {
			u->piece_free = piece->next;
			u->flight++;
			u->flight_bytes += piece->bytes;
			piece->job = job;
			job->pieces++;
			job->planned += piece->bytes;
			piece_issue(u, piece);
		}
		job->is_active = job_goes_on(u, job);
		if (job->is_active)
			uring_list_put(&u->active, job);
		job_look(u, job);
	}
}

/* A request of a piece ended with `res`. False: the rest of it was issued again. */
static bool piece_ended(struct uring *u, struct uring_piece *piece, int res)
{
	struct uring_job *job = piece->job;
	bool is_read = job->work.op == SUBLET_JOB_READ;

	if (res > 0) {
		piece->at += (uint64_t)res;
		piece->memory += res;
		piece->bytes -= (uint64_t)res;
		u->flight_bytes -= (uint64_t)res;
	}
	if (!piece->bytes)
		return true;
	/* Where reads are of whole blocks, only the file's end cuts one. */
	if (is_read && res >= 0 && (!res || (piece->at & job->unaligned))) {
		job->end = piece->at < job->end ? piece->at : job->end;
		return true;
	}
	bool is_cut = res > 0 || res == -EINTR;
	if (is_cut && !u->is_failing && !job->status) {
		piece_issue(u, piece);
		return false;
	}
	if (!is_cut)
		job_fail(job, res ? res : -EIO, piece->at);
	else if (!job->status)
		job_fail(job, -ECANCELED, piece->at);
	return true;
}

static void piece_count(struct uring *u, struct uring_piece *piece, int res)
{
	struct uring_job *job = piece->job;

	if (!piece_ended(u, piece, res))
		return;
	u->flight--;
	u->flight_bytes -= piece->bytes;
	piece->next = u->piece_free;
	u->piece_free = (uint32_t)(piece - u->piece);
	job->pieces--;
	job_look(u, job);
}

/* ---- the ring's thread ---- */

/* One read from the eventfd is always in flight: its end is what wakes the thread. */
static void wake_expect(struct uring *u)
{
	struct io_uring_sqe *sqe = request(u);

	io_uring_prep_read(sqe, u->wake_fd, &u->wake_value, sizeof u->wake_value, 0);
	io_uring_sqe_set_data64(sqe, DATA_WAKE);
}

/* Take over what is new, and see what a reset wants. False: there is nothing to do any more, ever. */
static bool jobs_take(struct uring *u)
{
	struct uring_job *job;

	sublet__lock(&u->lock);
	while ((job = uring_list_get(&u->queue)) != NULL)
		uring_list_put(&u->active, job);
	while (u->is_dead && (job = uring_list_get(&u->given_up)) != NULL)
		uring_list_put(&u->done, job);
	bool is_idle = !u->active.first && !u->done.first && !u->flight;
	u->is_failing = a32_load_relaxed(&u->resetting); /* relaxed: set under the lock */
	if (u->is_failing && is_idle) {
		while ((job = uring_list_get(&u->given_up)) != NULL)
			uring_job_free(u, job);
		u->is_failing = false;
		a32_store_release(&u->resetting, 0); /* pairs with uring_reset */
		sublet__futex_wake(&u->resetting, UINT32_MAX);
	}
	u->is_asleep = true;
	bool goes_on = !u->is_stopping || !is_idle;
	sublet__unlock(&u->lock);
	return goes_on;
}

/* Take a job off the table; false: nobody is to be told that it is over. */
static bool job_retire(struct uring *u, struct uring_job *job)
{
	sublet__lock(&u->lock);
	bool is_given_up = u->is_failing && job->status == -ECANCELED && !u->is_dead;
	bool is_told = !is_given_up && !u->is_orphan;
	if (is_given_up)
		uring_list_put(&u->given_up, job);
	else
		uring_job_free(u, job);
	a32_store_relaxed(&u->completing, is_told); /* under the lock */
	sublet__unlock(&u->lock);
	return is_told;
}

static void jobs_complete(struct uring *u)
{
	struct uring_job *job;

	if (!u->done.first)
		return;
	while ((job = uring_list_get(&u->done)) != NULL) {
		uint64_t id = job->work.id, bytes = job->work.bytes < job->end ? job->work.bytes : job->end;
		int status = job->status;
		if (job_retire(u, job))
			sublet_device_complete(u->device, id, status, status ? 0 : bytes);
	}
	sublet__lock(&u->lock);
	a32_store_release(&u->completing, 0); /* pairs with uring_close */
	if (u->is_orphan)
		sublet__futex_wake(&u->completing, UINT32_MAX);
	sublet__unlock(&u->lock);
}

/* All requests are cancelled again and again: one that was on its way from one queue to another escapes. */
static void all_cancel(struct uring *u)
{
	uint64_t now = sublet__now_ns();

	if (now < u->cancel_ns)
		return;
	u->cancel_ns = now + CANCEL_NS;
	struct io_uring_sqe *sqe = request(u);
	if (!sqe)
		return; /* those that are queued will do */
	io_uring_prep_cancel64(sqe, 0, IORING_ASYNC_CANCEL_ANY | IORING_ASYNC_CANCEL_ALL);
	io_uring_sqe_set_data64(sqe, DATA_CANCEL);
}

/* Submit what was prepared, and sleep until something ends. */
static void ring_sleep(struct uring *u)
{
	struct __kernel_timespec period = { .tv_nsec = (long)CANCEL_NS };
	struct io_uring_cqe *cqe;
	sublet__a32 never = 0;
	int n;

	if (u->is_failing && u->flight) {
		all_cancel(u);
		n = io_uring_submit_and_wait_timeout(&u->ring, &cqe, 1, &period, NULL);
	} else {
		n = io_uring_submit_and_wait(&u->ring, u->is_failing ? 0 : 1);
	}
	/* Out of memory, or somebody closed our descriptor: then jobs time out, and the device dies. */
	if (n < 0 && n != -EINTR && n != -ETIME && n != -EBUSY)
		sublet__futex_wait(&never, 0, CANCEL_NS);
}

static void ends_count(struct uring *u)
{
	struct io_uring_cqe *cqe;
	unsigned int head, count = 0;

	io_uring_for_each_cqe(&u->ring, head, cqe)
	{
		int res = cqe->res;
		count++;
		if (cqe->user_data < URING_PIECES)
			piece_count(u, &u->piece[cqe->user_data], res);
		else if (cqe->user_data == DATA_WAKE && (res > 0 || res == -ECANCELED || res == -EINTR))
			wake_expect(u);
	}
	io_uring_cq_advance(&u->ring, count);
}

void *sublet__uring_main(void *arg)
{
	struct uring *u = arg;

	wake_expect(u);
	while (jobs_take(u)) {
		pieces_make(u);
		jobs_complete(u);
		ring_sleep(u);
		ends_count(u);
	}
	if (u->is_orphan) /* written under the lock that jobs_take held */
		sublet__uring_free(u);
	return NULL;
}
