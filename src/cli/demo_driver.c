/* SPDX-License-Identifier: MIT */
/*
 * The capture device as its parent sees it: started, told what to do, listened to.
 *
 * A SOCK_SEQPACKET pair keeps the records apart, and its end says that the device has ended.
 */
#include "cli/demo.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define READY_NS (20 * SUBLET_SEC)
#define STOP_NS  (10 * SUBLET_SEC)

static void note_failure(struct sublet__driver *driver, const char *text)
{
	if (!driver->failure[0])
		snprintf(driver->failure, sizeof(driver->failure), "%s", text);
}

static void note_capture(struct sublet__driver *driver, const struct sublet__device_record *record)
{
	driver->claims++;
	driver->ticks_missed += record->ticks_missed;
	if (record->error) {
		note_failure(driver, record->text);
		return;
	}
	if (driver->claims_succeeded < SUBLET__CLAIMS_MAX) {
		driver->latency_ns[driver->claims_succeeded] = record->latency_ns;
		driver->engine_ns[driver->claims_succeeded] = record->engine_ns;
		driver->claims_succeeded++;
	}
	driver->frames_good += record->frames_good;
	driver->frames_bad += record->frames_bad;
	driver->moved_bytes += record->moved_bytes;
	driver->offset_bytes = record->offset_bytes;
}

/* 0, or -EPIPE where it says that it ends. */
static int note(struct sublet__driver *driver, const struct sublet__device_record *record)
{
	switch (record->kind) {
	case SUBLET__DEVICE_READY:
		driver->stopped = true;
		driver->reading = record->reading;
		driver->registration_ns = record->latency_ns;
		return 0;
	case SUBLET__DEVICE_CAPTURED:
		note_capture(driver, record);
		return 0;
	case SUBLET__DEVICE_STOPPED:
		driver->stopped = true;
		return 0;
	case SUBLET__DEVICE_HELD:
		driver->held = true;
		driver->offset_bytes = record->offset_bytes;
		return 0;
	default:
		note_failure(driver, record->text);
		demo_error("the capture device: %s", record->text);
		return -EPIPE;
	}
}

int sublet__driver_poll(struct sublet__driver *driver, uint64_t timeout_ns)
{
	struct pollfd ready = { .fd = driver->fd, .events = POLLIN };
	int wait_ms = (int)(timeout_ns / SUBLET_MS);
	while (poll(&ready, 1, wait_ms) > 0) {
		struct sublet__device_record record;
		ssize_t n = recv(driver->fd, &record, sizeof(record), 0);
		if (n != (ssize_t)sizeof(record)) {
			demo_error("the capture device has died");
			return -EPIPE;
		}
		record.text[sizeof(record.text) - 1] = '\0';
		int err = note(driver, &record);
		if (err)
			return err;
		wait_ms = 0;
	}
	return 0;
}

int sublet__driver_send(struct sublet__driver *driver, enum sublet__device_command command)
{
	char letter = (char)command;
	driver->stopped = false;
	return send(driver->fd, &letter, 1, MSG_NOSIGNAL) == 1 ? 0 : -EPIPE;
}

static int wait_for(struct sublet__driver *driver, const bool *what, uint64_t ns, const char *complaint)
{
	uint64_t deadline_ns = sublet__demo_now_ns() + ns;
	while (!*what) {
		int err = sublet__driver_poll(driver, 50 * SUBLET_MS);
		if (err)
			return err;
		if (sublet__demo_interrupted())
			return -EINTR;
		if (sublet__demo_now_ns() > deadline_ns) {
			demo_error("the capture device %s", complaint);
			return -ETIMEDOUT;
		}
	}
	return 0;
}

int sublet__driver_start(struct sublet__driver *driver, const char *name, const char *frames, const char *log)
{
	int ends[2];
	*driver = (struct sublet__driver){ .fd = -1 };
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends))
		return -errno;
	char self[PATH_MAX];
	sublet__demo_self(self);
	const char *argv[] = { self, "demo", "--capture-device", name ? name : "-", frames, NULL };
	pid_t pid = sublet__demo_spawn(argv, log, ends[1]);
	close(ends[1]);
	driver->fd = ends[0];
	if (pid < 0)
		return pid;
	driver->pid = pid;
	return wait_for(driver, &driver->stopped, READY_NS, "does not get ready");
}

int sublet__driver_stop(struct sublet__driver *driver)
{
	int err = sublet__driver_send(driver, SUBLET__DEVICE_STOP);
	return err ? err : wait_for(driver, &driver->stopped, STOP_NS, "does not stop");
}

int sublet__driver_hold(struct sublet__driver *driver)
{
	int err = sublet__driver_send(driver, SUBLET__DEVICE_HOLD);
	return err ? err : wait_for(driver, &driver->held, STOP_NS, "could not claim");
}

void sublet__driver_end(struct sublet__driver *driver)
{
	sublet__demo_end(&driver->pid, 0); /* first: the end of the connection would make it end by itself */
	if (driver->fd >= 0)
		close(driver->fd);
	driver->fd = -1;
}
