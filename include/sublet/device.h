/* SPDX-License-Identifier: MIT */
/*
 * sublet/device.h: a device that works on the arena's memory: open one, give it work, wait for a fence; and what a
 * backend has to offer to be one.
 *
 * A job names buffer objects (sublet/bo.h). Submitting it binds those that are not bound, which may wait for a move
 * that is under way; from then until its fence is done the job counts as a short reference on its tracked buffers.
 * Each job has a timeout: when it has passed, whoever waits resets the device, every job in flight fails, and
 * the device works again or is dead. So nothing waits for a hung device beyond that (G7, G11). The reset itself takes as
 * long as the backend needs (soft: the chunk at hand; uring: up to two seconds), also where it is a claim, or a wait with
 * a nearer deadline, that finds the job overdue.
 */
#ifndef SUBLET_DEVICE_H
#define SUBLET_DEVICE_H

#include <sublet/iopt.h>
#include <sublet/types.h>

#ifdef __cplusplus
extern "C" {
#endif

struct sublet_device;

/* A buffer object: a handle, may be copied (sublet/bo.h). */
struct sublet_bo {
	struct sublet_device *device;
	uint64_t id;
};

/* A job that was submitted: a handle, may be copied. */
struct sublet_fence {
	struct sublet_device *device;
	uint64_t id;
};

/* ---- what a device can do ---- */

enum sublet_device_feature {
	SUBLET_DEVICE_IOPT = 1u << 0,  /* translates by its own page table: buffers have an iova */
	SUBLET_DEVICE_COPY = 1u << 1,  /* SUBLET_JOB_COPY, FILL and SUM */
	SUBLET_DEVICE_FILES = 1u << 2, /* SUBLET_JOB_READ and WRITE */
	SUBLET_DEVICE_REGISTERED =
		1u << 3, /* knows area and normal zone since it was opened: claimed and long-term
	                                       pinned buffers need no binding at all */
	SUBLET_DEVICE_RANGES = 1u << 4, /* sublet_submit_range: one I/O on movable memory under a short pin */
};

struct sublet_device_info {
	uint64_t size_bytes; /* SUBLET_OPTIONS(sublet_device_info), set by the caller */
	char name[SUBLET_OWNER_BYTES];
	uint32_t features; /* enum sublet_device_feature */
	uint32_t bos_max;
	uint32_t jobs_max;       /* in flight */
	uint32_t dead;           /* 1: only close is left */
	uint64_t align_bytes;    /* of offsets, lengths and file offsets in a job */
	uint64_t job_bytes_max;  /* of one job */
	uint64_t bo_bytes_max;   /* of one buffer that has to be bound, in whole pages; more is -E2BIG */
	uint64_t aperture_bytes; /* DEVICE_IOPT: iova space; else 0 */

	/* since it was opened */
	uint64_t jobs;
	uint64_t jobs_failed;
	uint64_t job_bytes;     /* moved by jobs that succeeded */
	uint64_t binds;         /* of a buffer that was not bound at all */
	uint64_t rebinds;       /* of one that was evicted, whole or in part */
	uint64_t evictions;     /* because memory was about to change */
	uint64_t evictions_lru; /* because the aperture, or the table of buffers, was full */
	uint64_t registrations; /* calls that registered or removed memory with the kernel or the device */
	uint64_t resets;
	uint64_t collapsed_bytes; /* moved together so that small entries become large */
	uint64_t
		bad_accesses; /* seen by a device that checks: stale, unmapped or read-only; above 0 is a bug */
	struct sublet_iopt_stats iopt; /* DEVICE_IOPT */
};

/* Fill in *info. -EINVAL: info->size_bytes is not set. */
SUBLET_API SUBLET_NODISCARD int sublet_device_info(struct sublet_device *device,
						   struct sublet_device_info *info);

/* ---- work ---- */

enum sublet_job_op {
	SUBLET_JOB_COPY = 1, /* bos[0] -> bos[1]; not defined where the two overlap */
	SUBLET_JOB_FILL,     /* pattern, 8 bytes again and again -> bos[0] */
	SUBLET_JOB_SUM,      /* bos[0] -> result: the sum of its 8-byte words, little-endian */
	SUBLET_JOB_READ,     /* file -> bos[0] */
	SUBLET_JOB_WRITE,    /* bos[0] -> file */
};

struct sublet_job {
	uint64_t size_bytes; /* SUBLET_OPTIONS(sublet_job) */
	uint32_t op;         /* enum sublet_job_op */
	int32_t fd;          /* READ, WRITE; stays open until the fence is done */
	uint64_t bytes;
	uint64_t offset_bytes[2]; /* in bos[0], bos[1] */
	uint64_t file_offset_bytes;
	uint64_t pattern;
	uint64_t timeout_ns; /* for binding and for the work itself, each; 0: five seconds */
};

/*
 * Submit a job. Binds bos that need it first, and makes room for them by evicting the least recently used
 * idle ones. *fence may be NULL when nobody will ask. Any thread; not from a notifier's callback.
 * -EINVAL     unknown op, a bo that does not exist or is of another device, offsets or bytes beyond a bo or not
 *             aligned as the device wants, bytes 0
 * -EOPNOTSUPP the device does not do that op
 * -EFAULT     the memory under a bo was unmapped, whatever is mapped there now (or all but unmapped: sublet_unmap was
 *             told no by another device), or is not (all) the arena's
 * -EACCES     the job writes to a bo that is read-only
 * -EBUSY      a child of fork() shares the memory of a bo, and did not exec or end for a third of a second; or the
 *             protection of the memory was changed
 * -ENOSPC     a bo does not fit in the aperture beside those that are in use
 * -ETIMEDOUT  a bo could not be bound, or no job slot became free, in timeout_ns
 * -ENODEV     the device is dead
 * and what else the device answers to a job that it does not take (uring: see there)
 */
SUBLET_API SUBLET_NODISCARD int sublet_submit(struct sublet_device *device, const struct sublet_job *job,
					      const struct sublet_bo *bos, uint32_t count,
					      struct sublet_fence *fence);

/*
 * The same on [addr, addr + job->bytes) of an mm, without a bo: under a short pin from now until the fence is done.
 * Only devices with SUBLET_DEVICE_RANGES; offset_bytes are ignored. Errors of sublet_pin too, which may wait for a third of
 * a second whatever the job's timeout is.
 */
SUBLET_API SUBLET_NODISCARD int sublet_submit_range(struct sublet_device *device,
						    const struct sublet_job *job, struct sublet_mm *mm,
						    void *addr, struct sublet_fence *fence);

/*
 * Wait until the job is done, at most timeout_ns (0: only look, and reset nothing). May be called again, and by many
 * threads.
 * *result (may be NULL) becomes the bytes moved, or the sum. If the job's own timeout passes, the device is reset.
 * 0: done and well. -ETIMEDOUT with *done false: still running. Otherwise *done (may be NULL) is true and the value is
 * the job's -errno: -ETIMEDOUT the job's own timeout, -EIO the device failed it or was reset, -ENODEV it died,
 * -ECANCELED the bo was destroyed, or what the file system said.
 * -EINVAL  no such fence (put already)
 */
SUBLET_API SUBLET_NODISCARD int sublet_fence_wait(const struct sublet_fence *fence, uint64_t timeout_ns,
						  bool *done, uint64_t *result);

/*
 * Give the fence back; the job goes on. -EINVAL: put twice.
 * A fence that is kept takes up room: with 1,024 of them beyond jobs_max, submitting waits until one is put.
 */
SUBLET_API SUBLET_NODISCARD int sublet_fence_put(struct sublet_fence *fence);

/* ---- devices that are built in ---- */

/*
 * `soft`: a DMA engine in software, on a thread of its own. It reads and writes the backing only through its own iopt,
 * which it walks as hardware would, with a small TLB. It is the oracle of the tests: it counts every access through a
 * translation that is stale, missing or read-only. And it is an example of a backend.
 */
struct sublet_soft_options {
	uint64_t size_bytes;     /* SUBLET_OPTIONS(sublet_soft_options) */
	const char *name;        /* NULL: "soft". Copied */
	uint64_t aperture_bytes; /* 0: 64 GiB */
	uint64_t bytes_per_s;    /* speed limit; 0: none */
	uint64_t delay_ns;       /* before each job is begun */
	uint32_t jobs_max;       /* 0: 64 */
	uint32_t bos_max;        /* 0: 1024 */
	uint32_t large_disabled; /* as in sublet_iopt_options */
	uint32_t reserved;
	uint64_t collapse_bytes_per_s; /* budget of background collapse; 0: none */
};

/*
 * Open one. options may be NULL.
 * -EINVAL  sizes that make no sense   -ENOMEM   -ENOSPC  16 devices already, or -errno of its threads
 */
SUBLET_API SUBLET_NODISCARD int sublet_device_open_soft(struct sublet_arena *arena,
							const struct sublet_soft_options *options,
							struct sublet_device **device);

enum sublet_soft_fault {
	SUBLET_SOFT_HANG = 1, /* the next job never ends */
	SUBLET_SOFT_SLOW,     /* the next job takes half a second more */
	SUBLET_SOFT_ERROR,    /* the next job fails with -EIO half way */
	SUBLET_SOFT_DIE,      /* the device dies in the middle of the next job */
};

/* Inject a fault into the next job that is begun, one at most: a second replaces the first, and where no job comes nothing
   happens. -EINVAL: not a soft device, or an unknown fault. */
SUBLET_API SUBLET_NODISCARD int sublet_device_soft_fault(struct sublet_device *device,
							 enum sublet_soft_fault fault);

/*
 * `uring`: files, by io_uring. Area and normal zone are registered once as fixed buffers, when it is opened: claimed and
 * long-term pinned buffers need no registration of their own. Tracked buffers sit in the sparse buffer table; they are
 * taken out when their memory is about to move, and put back when they are used.
 * The kernel takes 1 GiB in one entry, and 16,384 entries, and has no call that tells: a tracked buffer is of 1 GiB at most,
 * claimed and pinned ones of any size; bos_max, and one entry for each GiB of area and normal zone, are 16,384 at most.
 * It takes regular files and block devices. Submitting answers -ESPIPE for others, -EISDIR for a directory, -EBADF for a
 * descriptor that is not open that way, and -EINVAL where O_DIRECT wants another alignment of memory, offset or length,
 * or for a write with O_APPEND.
 */
struct sublet_uring_options {
	uint64_t size_bytes; /* SUBLET_OPTIONS(sublet_uring_options) */
	const char *name;    /* NULL: "uring". Copied */
	uint32_t jobs_max;   /* 0: 64 */
	uint32_t bos_max;    /* 0: 1024 */
};

/*
 * A child of fork() has neither the ring nor what is registered with it: its descriptors are closed there before fork()
 * returns, and its memory is not inherited. A ring of the program's own that knows the area is inherited, and a request that
 * the child makes on it goes to the parent's memory: have children not use it, or close it.
 *
 * Open one. options may be NULL.
 * -EINVAL, -ENOSPC as above, and too many entries   -ENOMEM  also RLIMIT_MEMLOCK
 * -EOPNOTSUPP  built without liburing, the kernel refuses io_uring, or under valgrind, which stops all threads while one
 *              waits for it
 */
SUBLET_API SUBLET_NODISCARD int sublet_device_open_uring(struct sublet_arena *arena,
							 const struct sublet_uring_options *options,
							 struct sublet_device **device);

/*
 * Close a device, before its arena is destroyed (which answers -EBUSY until then): waits for its jobs, each up to its
 * timeout, ends those left, destroys its bos.
 * Nothing of it may be in use by another thread, nor afterwards: fences end with it. NULL is a no-op. In a child of fork()
 * nothing happens: the device is the parent's, and goes on.
 */
SUBLET_API void sublet_device_close(struct sublet_device *device);

/*
 * Move together the folios under tracked buffers that are bound by small entries, so that large ones fit, at most
 * about budget_bytes of memory. Returns the bytes moved. What collapse_bytes_per_s does in the background.
 * 0: there is nothing to gain (no such buffer, or the device has no page table or no large entries), or all of it is in use,
 * pinned, shared with a child of fork(), or has no room to move to at this moment.
 */
SUBLET_API uint64_t sublet_device_collapse(struct sublet_device *device, uint64_t budget_bytes);

/* ---- for whoever writes a backend ---- */

/* A job as a backend sees it: valid until it is completed. */
struct sublet_device_work {
	uint64_t id; /* for sublet_device_complete */
	uint32_t op;
	int32_t fd;
	uint64_t bytes;
	uint64_t file_offset_bytes;
	uint64_t pattern;
	struct sublet_device_buffer {
		uint32_t slot; /* of the bo: 0 .. bos_max - 1; UINT32_MAX: a range, see addr */
		uint32_t is_tracked;
		uint64_t iova;         /* DEVICE_IOPT: of the first byte that the job touches */
		struct sublet_mm *mm;  /* NULL: a claim's */
		void *addr;            /* in the mm; where the first byte is. NULL: a claim's */
		uint64_t offset_bytes; /* of that byte in the bo, for sublet_bo_extents */
		struct sublet_bo bo;
	} buffer[2];
};

struct sublet_device_limits {
	uint64_t size_bytes; /* SUBLET_OPTIONS(sublet_device_limits) */
	const char *name;
	uint32_t features;
	uint32_t bos_max;
	uint32_t jobs_max;
	uint32_t large_disabled;
	uint64_t align_bytes;
	uint64_t job_bytes_max;
	/* Of one buffer that has to be bound, its range rounded out to whole pages. A larger one is refused with
	   -E2BIG when it is made. DEVICE_IOPT: the library lowers it to what the aperture has room for. */
	uint64_t bo_bytes_max;
	uint64_t aperture_bytes; /* DEVICE_IOPT */
	/* DEVICE_IOPT: the lowest iova that the device takes, a multiple of 4 KiB. 0: iova 0 is never given out. */
	uint64_t aperture_first_bytes;
};

/*
 * Every call but submit and flush is serialised by the library. None may call back into it but for the functions named.
 * Of what they answer only a negative number is an error.
 */
struct sublet_device_ops {
	uint64_t size_bytes; /* SUBLET_OPTIONS(sublet_device_ops) */
	/* Start a job, and return; sublet_device_complete reports its end, from any thread, even before this
	   returns. -errno: not started. */
	int (*submit)(void *ctx, const struct sublet_device_work *work);
	/* DEVICE_IOPT: as flush in sublet_iopt_options. No job in flight touches the range. */
	void (*flush)(void *ctx, uint64_t iova, uint64_t bytes);
	/* Without DEVICE_IOPT: make a tracked buffer known as `slot`, and forget it. Never sleep for long; detach
	   cannot fail, and no job in flight uses the slot. */
	int (*attach)(void *ctx, uint32_t slot, void *addr, uint64_t bytes);
	void (*detach)(void *ctx, uint32_t slot);
	/* Stop all work at once. When it has returned 0 no memory is accessed, no job that was submitted before will be
	   completed (the library fails them), and the device takes new jobs; -errno: it is dead, and still does not
	   access memory. -EINPROGRESS: it is dead, and what it was given may still access memory until it is completed,
	   or sublet_device_died says that all is over, if that ever happens: that memory is held until then, and a child
	   of fork() does not have it. */
	int (*reset)(void *ctx);
	/* Free ctx. No jobs are in flight, no buffer is attached; after reset answered -EINPROGRESS some may be, and
	   nothing is to be called any more when this has returned. */
	void (*close)(void *ctx);
	/* Only bad_accesses and registrations are asked of it. May be NULL. */
	void (*count)(void *ctx, struct sublet_device_info *info);
};

/* Make a device of a backend. -EINVAL: limits or ops make no sense. -ENOMEM, -ENOSPC: 16 devices already. */
SUBLET_API SUBLET_NODISCARD int sublet_device_create(struct sublet_arena *arena,
						     const struct sublet_device_ops *ops, void *ctx,
						     const struct sublet_device_limits *limits,
						     struct sublet_device **device);
/* A job is done: status 0 or -errno, result as in sublet_fence_wait. Ignored for jobs that a reset failed already. */
SUBLET_API void sublet_device_complete(struct sublet_device *device, uint64_t work_id, int status,
				       uint64_t result);
/*
 * The device died by itself: fails all jobs with -ENODEV, and refuses new ones. It must not access memory any more. After, or
 * during, a reset that answered -EINPROGRESS too: then the memory that was held for the jobs in flight is let go.
 */
SUBLET_API void sublet_device_died(struct sublet_device *device);
/* The device's page table, for translation. NULL without DEVICE_IOPT. */
SUBLET_API struct sublet_iopt *sublet_device_iopt(struct sublet_device *device);

#ifdef __cplusplus
}
#endif
#endif
