/* SPDX-License-Identifier: MIT */
/*
 * A capture device and its driver, in a process of their own.
 *
 * What a frame grabber's user-space driver does, with the disk in the grabber's place: it takes the
 * area's descriptor from the control socket once, maps it, and registers all of it with its "device"
 * (io_uring) once. From then on a buffer costs a claim and nothing else: no registration, no new
 * mapping. Ten times a second it claims 64 MiB, has frames read into it with O_DIRECT, straight from
 * the disk into the claimed memory, checks every byte where it lies, and releases.
 *
 * It asks for the dearest window (SUBLET_CLAIM_DEAREST): left to itself the engine would hand back the
 * window released last, which is mostly empty, and nothing would be shown but that.
 *
 * A disk that cannot deliver 64 MiB in the time is asked for fewer frames, so that claims keep their
 * pace. Without the right to lock that much memory, reads go to the same memory without registration;
 * without io_uring they are plain preads. Either is said in the results.
 *
 * With the name "-" nothing is claimed and frames go to a buffer of its own: the same work beside a
 * plain Redis, so that the cost of claiming can be told from the cost of the device's own work.
 *
 * It talks with its parent over descriptor 3: single letters in, struct sublet__device_record out.
 */
#include "cli/demo.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#define PARENT_FD         3
#define READ_BUDGET_NS    (60 * SUBLET_MS) /* of each 100 ms */
#define CLAIM_DEADLINE_NS SUBLET_SEC

struct device {
	struct sublet_client *client; /* NULL: a buffer of its own */
	struct io_uring ring;
	enum sublet__device_reading reading;
	int frames_fd;
	char *memory; /* the area, or its own buffer */
	uint64_t memory_bytes;
	uint64_t frame_ns;   /* what one frame took lately; 0: not known yet */
	uint32_t next_frame; /* in the file */
	struct sublet_claim claim;
};

static bool report(const struct sublet__device_record *record)
{
	return send(PARENT_FD, record, sizeof(*record), MSG_NOSIGNAL) == (ssize_t)sizeof(*record);
}

static int fail(int error, const char *format, ...) __attribute__((format(printf, 2, 3)));

static int fail(int error, const char *format, ...)
{
	struct sublet__device_record record = { .kind = SUBLET__DEVICE_FAILED, .error = error };
	char what[96];
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(what, sizeof(what), format, arguments);
	va_end(arguments);
	snprintf(record.text, sizeof(record.text), "%s: %s", what, strerror(-error));
	report(&record);
	return error;
}

/* Memory to read into: the area of the instance, or as much as a claim. */
static int memory_init(struct device *device, const char *name)
{
	device->memory_bytes = SUBLET__DEMO_CLAIM_BYTES;
	int fd = -1;
	uint64_t offset = 0;
	if (strcmp(name, "-")) {
		struct sublet_arena_info info = { SUBLET_OPTIONS(sublet_arena_info) };
		int err = sublet_client_connect(name, &device->client);
		if (!err)
			err = sublet_client_info(device->client, &info);
		if (!err)
			err = sublet_client_fd(device->client, &fd);
		if (err)
			return fail(err, "cannot reach %s", name);
		device->memory_bytes = info.area_bytes;
		offset = info.area_offset_bytes;
	}
	int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE : MAP_SHARED;
	device->memory = mmap(NULL, device->memory_bytes, PROT_READ | PROT_WRITE, flags, fd, (off_t)offset);
	int err = device->memory == MAP_FAILED ? -errno : 0;
	if (fd >= 0)
		close(fd);
	return err ? fail(err, "cannot map the area") : 0;
}

static void ring_init(struct device *device)
{
	struct rlimit limit;
	if (getrlimit(RLIMIT_MEMLOCK, &limit) == 0) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_MEMLOCK, &limit);
	}
	struct iovec all = { .iov_base = device->memory, .iov_len = device->memory_bytes };
	if (io_uring_queue_init(SUBLET__FRAMES_A_CLAIM, &device->ring, 0))
		device->reading = SUBLET__READING_PREAD;
	else if (io_uring_register_buffers(&device->ring, &all, 1))
		device->reading = SUBLET__READING_URING;
	else
		device->reading = SUBLET__READING_FIXED;
}

static int device_init(struct device *device, const char *name, const char *frames)
{
	device->frames_fd = open(frames, O_RDONLY | O_DIRECT | O_CLOEXEC);
	if (device->frames_fd < 0)
		return fail(-errno, "cannot open the frames");
	int err = memory_init(device, name);
	if (err)
		return err;
	uint64_t start_ns = sublet__demo_now_ns();
	ring_init(device);
	struct sublet__device_record ready = { .kind = SUBLET__DEVICE_READY,
					       .reading = device->reading,
					       .latency_ns = sublet__demo_now_ns() - start_ns };
	return report(&ready) ? 0 : -EPIPE;
}

static uint32_t frame_number(const struct device *device, uint32_t slot)
{
	return (device->next_frame + slot) % SUBLET__FRAMES_IN_FILE;
}

static void judge(const struct device *device, const char *buffer, uint32_t slot, bool whole,
		  struct sublet__device_record *record)
{
	const char *frame = buffer + (uint64_t)slot * SUBLET__FRAME_BYTES;
	if (whole && sublet__frame_is_good(frame, frame_number(device, slot)))
		record->frames_good++;
	else
		record->frames_bad++;
}

static void queue_reads(struct device *device, char *buffer, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		/* Never NULL: the queue has as many entries as a claim has frames, and is empty. */
		struct io_uring_sqe *sqe = io_uring_get_sqe(&device->ring);
		char *to = buffer + (uint64_t)i * SUBLET__FRAME_BYTES;
		uint64_t from = (uint64_t)frame_number(device, i) * SUBLET__FRAME_BYTES;
		if (device->reading == SUBLET__READING_FIXED)
			io_uring_prep_read_fixed(sqe, device->frames_fd, to, SUBLET__FRAME_BYTES, from, 0);
		else
			io_uring_prep_read(sqe, device->frames_fd, to, SUBLET__FRAME_BYTES, from);
		io_uring_sqe_set_data64(sqe, i);
	}
	io_uring_submit(&device->ring);
}

/* All frames at once; each is checked while the next ones are still on their way. */
static void read_frames(struct device *device, char *buffer, uint32_t count,
			struct sublet__device_record *record)
{
	if (device->reading == SUBLET__READING_PREAD) {
		for (uint32_t i = 0; i < count; i++) {
			uint64_t from = (uint64_t)frame_number(device, i) * SUBLET__FRAME_BYTES;
			ssize_t n = pread(device->frames_fd, buffer + (uint64_t)i * SUBLET__FRAME_BYTES,
					  SUBLET__FRAME_BYTES, (off_t)from);
			judge(device, buffer, i, n == (ssize_t)SUBLET__FRAME_BYTES, record);
		}
		return;
	}
	queue_reads(device, buffer, count);
	for (uint32_t done = 0; done < count;) {
		struct io_uring_cqe *cqe;
		int err = io_uring_wait_cqe(&device->ring, &cqe);
		if (err == -EINTR)
			continue;
		if (err) {
			record->frames_bad += count - done;
			return;
		}
		judge(device, buffer, (uint32_t)cqe->user_data, cqe->res == (int)SUBLET__FRAME_BYTES, record);
		io_uring_cqe_seen(&device->ring, cqe);
		done++;
	}
}

/* As many frames as the disk can deliver in its share of a period: few at first, at most all. */
static uint32_t frames_now(const struct device *device)
{
	uint64_t count = device->frame_ns ? READ_BUDGET_NS / device->frame_ns : SUBLET__FRAMES_A_CLAIM / 4;
	return count < 1 ? 1 : count > SUBLET__FRAMES_A_CLAIM ? SUBLET__FRAMES_A_CLAIM : (uint32_t)count;
}

static int take(struct device *device, struct sublet__device_record *record)
{
	if (!device->client)
		return 0;
	struct sublet_claim_options options = {
		SUBLET_OPTIONS(sublet_claim_options),
		.deadline_ns = CLAIM_DEADLINE_NS,
		.flags = SUBLET_CLAIM_DEAREST | SUBLET_CLAIM_NOZERO, /* every byte that counts is read over */
		.owner = "capture",
	};
	uint64_t start_ns = sublet__demo_now_ns();
	int err = sublet_client_claim(device->client, SUBLET__DEMO_CLAIM_BYTES, &options, &device->claim);
	record->latency_ns = sublet__demo_now_ns() - start_ns;
	record->engine_ns = device->claim.latency_ns;
	record->moved_bytes = device->claim.moved_bytes;
	record->offset_bytes = device->claim.offset_bytes;
	record->error = err;
	if (err && (err != -EBUSY ||
		    sublet_blocker_describe(&device->claim, 0, record->text, sizeof(record->text)) < 0))
		snprintf(record->text, sizeof(record->text), "%s", strerror(-err));
	return err;
}

static int give_back(struct device *device, struct sublet__device_record *record)
{
	if (!device->client)
		return 0;
	uint64_t start_ns = sublet__demo_now_ns();
	int err = sublet_client_release(device->client, &device->claim);
	record->release_ns = sublet__demo_now_ns() - start_ns;
	return err ? fail(err, "release") : 0;
}

/* One buffer: claim, read, check, release, report. An error ends the process. */
static int capture(struct device *device, uint32_t ticks_missed)
{
	struct sublet__device_record record = { .kind = SUBLET__DEVICE_CAPTURED,
						.ticks_missed = ticks_missed };
	if (take(device, &record) == 0) {
		uint32_t count = frames_now(device);
		uint64_t start_ns = sublet__demo_now_ns();
		read_frames(device, device->memory + record.offset_bytes, count, &record);
		uint64_t frame_ns = (sublet__demo_now_ns() - start_ns) / count;
		device->frame_ns = device->frame_ns ? (3 * device->frame_ns + frame_ns) / 4 : frame_ns;
		device->next_frame = frame_number(device, count);
		int err = give_back(device, &record);
		if (err)
			return err;
	} else if (record.error == -EPIPE) {
		return fail(record.error, "claim");
	}
	return report(&record) ? 0 : -EPIPE;
}

/* Claim, and read into the claim for ever: whoever kills this process finds I/O in flight. */
static int hold(struct device *device)
{
	struct sublet__device_record record = { .kind = SUBLET__DEVICE_HELD };
	int err = take(device, &record);
	if (err)
		return fail(err, "claim");
	if (!report(&record))
		return -EPIPE;
	struct pollfd parent = { .fd = PARENT_FD, .events = POLLIN };
	while (poll(&parent, 1, 0) == 0)
		read_frames(device, device->memory + record.offset_bytes, SUBLET__FRAMES_A_CLAIM, &record);
	return -EPIPE;
}

/* Wait for a letter until `until_ns`; 0 when the time has come, -EPIPE when the parent is gone. */
static int command_until(uint64_t until_ns)
{
	struct pollfd parent = { .fd = PARENT_FD, .events = POLLIN };
	uint64_t now_ns = sublet__demo_now_ns();
	uint64_t wait_ns = until_ns > now_ns ? until_ns - now_ns : 0;
	struct timespec timeout = { .tv_sec = (time_t)(wait_ns / SUBLET_SEC),
				    .tv_nsec = (long)(wait_ns % SUBLET_SEC) };
	int ready = ppoll(&parent, 1, until_ns == UINT64_MAX ? NULL : &timeout, NULL);
	if (ready <= 0)
		return 0;
	char letter;
	return recv(PARENT_FD, &letter, 1, 0) == 1 ? letter : -EPIPE;
}

static int serve(struct device *device)
{
	uint64_t tick_ns = UINT64_MAX;
	uint32_t missed = 0;
	for (;;) {
		int command = command_until(tick_ns);
		int err = 0;
		if (command < 0)
			return command;
		if (command == SUBLET__DEVICE_GO) {
			tick_ns = sublet__demo_now_ns();
		} else if (command == SUBLET__DEVICE_STOP) {
			struct sublet__device_record stopped = { .kind = SUBLET__DEVICE_STOPPED };
			tick_ns = UINT64_MAX;
			err = report(&stopped) ? 0 : -EPIPE;
		} else if (command == SUBLET__DEVICE_HOLD) {
			err = hold(device);
		} else if (tick_ns != UINT64_MAX) {
			err = capture(device, missed);
			tick_ns += SUBLET__DEMO_PERIOD_NS;
			uint64_t now_ns = sublet__demo_now_ns();
			missed = now_ns > tick_ns ? (uint32_t)((now_ns - tick_ns) / SUBLET__DEMO_PERIOD_NS)
						  : 0;
			tick_ns += missed * SUBLET__DEMO_PERIOD_NS;
		}
		if (err)
			return err;
	}
}

int sublet__device_main(const char *name, const char *frames)
{
	static struct device device;
	int err = device_init(&device, name, frames);
	if (!err)
		err = serve(&device);
	/* What is still claimed is released when this process has ended; the parent may be gone already. */
	return err == -EPIPE ? 0 : 1;
}
