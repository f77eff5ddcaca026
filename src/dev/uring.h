/* SPDX-License-Identifier: MIT */
/*
 * dev/uring.h: what the two halves of the io_uring device share. uring.c has the essay, what the library calls, opening and
 * closing; uring_ring.c has the ring's thread, and how a job becomes requests.
 */
#ifndef SUBLET_DEV_URING_H
#define SUBLET_DEV_URING_H

#include "core/atomic.h"
#include "linux/linux.h"
#include "linux/platform.h"

#include <sublet/bo.h>

#include <liburing.h>

/*
 * What the kernel takes in one entry of the table (io_buffer_validate in io_uring/rsrc.c: -EFAULT beyond). It has no query
 * for that, and a larger entry cannot be tried without pinning as much; test_uring_limits.c asks the kernel at hand.
 */
#define URING_BUFFER_BYTES SUBLET_GIB
#define URING_PIECES       128u /* requests in flight */
#define URING_EXTENTS      8u

/*
 * One job. What is to be done of [0, work.bytes):
 *
 *   0 .. planned       pieces were made for it; `pieces` of them are in flight
 *   planned .. bytes   still to come, unless one piece failed, or the file ends before
 */
struct uring_job {
	struct uring_job *next; /* in the list that it is in */
	struct sublet_device_work work;
	uint64_t unaligned; /* bits that offsets and lengths in its file must not have; 0: not O_DIRECT */
	uint64_t planned;
	uint64_t end; /* the file has no more than that */
	uint32_t pieces;
	bool is_active; /* in the list of those that more pieces are to be made of */
	int status;     /* of the piece that failed, the first one in the job if several did */
	uint64_t failed_at;
	uint32_t extents; /* [extent, extents) are known, from `planned` on */
	uint32_t extent;
	struct sublet_extent extent_of[URING_EXTENTS];
};

/* Part of a job that is one request. */
struct uring_piece {
	struct uring_job *job;
	uint64_t at; /* its first byte that is not done, in the job */
	uint64_t bytes;
	char *memory;    /* of that byte */
	uint32_t buffer; /* entry of the table; URING_BY_ADDRESS: none */
	uint32_t next;   /* free */
};

#define URING_BY_ADDRESS UINT32_MAX

struct uring_list {
	struct uring_job *first;
	struct uring_job **last; /* where the next one goes */
};

struct uring {
	/* The queues are the thread's; the table is for whoever attaches, and the kernel has a lock for it. */
	struct io_uring ring;
	struct sublet_device *device;
	size_t memory_bytes;
	char *linear;
	uint32_t linear_buffers;
	int wake_fd;
	struct sublet__thread thread;
	bool has_thread;
	sublet__a64 registrations;

	sublet__a32 lock; /* protects what follows, as far as is_orphan; nests in nothing, holds nothing */
	sublet__a32 resetting;  /* 1 until nothing is in flight; parked on by reset */
	sublet__a32 completing; /* 1: the thread may be in sublet_device_complete; parked on by close */
	struct uring_job *free;
	struct uring_list queue; /* new jobs */
	bool is_asleep;          /* the thread looks at the queue only once it is woken */
	bool is_dead;
	bool is_stopping;
	bool is_orphan; /* closed with requests in flight: nobody is told anything, the thread frees it all */

	/* the thread's own */
	uint64_t wake_value;
	struct uring_list active; /* more pieces are to be made */
	struct uring_list done;
	struct uring_list given_up; /* in a reset: the library fails them, unless that reset fails */
	uint64_t flight_bytes;
	uint32_t flight;
	uint32_t piece_free;
	uint64_t cancel_ns; /* when to cancel all again */
	bool is_failing;    /* a reset is under way: what is not done is given up */
	struct uring_piece piece[URING_PIECES];

	struct uring_job job[]; /* [jobs_max] */
};

static inline void uring_list_init(struct uring_list *list)
{
	list->first = NULL;
	list->last = &list->first;
}

static inline void uring_list_put(struct uring_list *list, struct uring_job *job)
{
	job->next = NULL;
	*list->last = job;
	list->last = &job->next;
}

static inline struct uring_job *uring_list_get(struct uring_list *list)
{
	struct uring_job *job = list->first;

	if (job && !(list->first = job->next))
		list->last = &list->first;
	return job;
}

/* Lock held. */
static inline void uring_job_free(struct uring *u, struct uring_job *job)
{
	job->next = u->free;
	u->free = job;
}

/* Whether its memory is named by address; else by its extents. */
static inline bool uring_has_address(const struct sublet_device_buffer *buffer)
{
	return buffer->slot == UINT32_MAX || buffer->is_tracked;
}

/* ---- uring_ring.c ---- */

/* The thread: arg is the device. */
void *sublet__uring_main(void *arg);
/* Look up where the bytes from `planned` on are, for memory that is known by its extents. -errno */
int sublet__uring_extents(struct uring_job *job);

/* ---- uring.c ---- */

/* Close the ring, and free all. No request is in flight. */
void sublet__uring_free(struct uring *u);

#endif
