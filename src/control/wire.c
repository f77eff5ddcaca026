/* SPDX-License-Identifier: MIT */
/*
 * Whole messages over a Unix stream socket.
 *
 * The same few functions serve both ends, so they keep the stricter rules of the server, which
 * lives inside a program whose heap may be moving at this moment: no malloc, no stdio, no signal
 * (MSG_NOSIGNAL), and no wait without a deadline. The sockets stay blocking for whoever else looks
 * at them; each call asks for MSG_DONTWAIT and waits in poll(), because SO_RCVTIMEO counts from
 * each byte, and a peer that sends one byte a second would never be late.
 */
#include "control/wire.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

uint64_t sublet__wire_now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * SUBLET_SEC + (uint64_t)t.tv_nsec;
}

uint64_t sublet__wire_until(uint64_t ns)
{
	uint64_t now = sublet__wire_now_ns();

	return ns < SUBLET__FOREVER - now ? now + ns : SUBLET__FOREVER;
}

static int wait_for(int fd, short events, uint64_t until_ns)
{
	for (;;) {
		struct pollfd p = { .fd = fd, .events = events };
		struct timespec left, *timeout = NULL;
		int n;

		if (until_ns != SUBLET__FOREVER) {
			uint64_t now = sublet__wire_now_ns();
			uint64_t ns = now < until_ns ? until_ns - now : 0;

			left.tv_sec = (time_t)(ns / SUBLET_SEC);
			left.tv_nsec = (long)(ns % SUBLET_SEC);
			timeout = &left;
		}
		n = ppoll(&p, 1, timeout, NULL);
		if (n > 0)
			return p.revents & POLLNVAL ? -EBADF : 0;
		if (n == 0)
			return -ETIMEDOUT;
		if (errno != EINTR)
			return -errno;
	}
}

/* One step of sending or receiving failed with errno: 0 to go on, -errno to give up. */
static int retry(int fd, short events, uint64_t until_ns)
{
	switch (errno) {
	case EINTR:
		return 0;
	case EAGAIN:
		return wait_for(fd, events, until_ns);
	case ECONNRESET: /* closed by the peer with our bytes unread */
	case EPIPE:
		return -EPIPE;
	default:
		return -errno;
	}
}

static void attach_fd(struct msghdr *msg, void *control, size_t bytes, int fd)
{
	struct cmsghdr *c;

	memset(control, 0, bytes);
	msg->msg_control = control;
	msg->msg_controllen = bytes;
	c = CMSG_FIRSTHDR(msg);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(fd));
	memcpy(CMSG_DATA(c), &fd, sizeof(fd));
}

/* Step over n bytes that went out. */
static void advance(struct msghdr *msg, size_t n)
{
	while (msg->msg_iovlen && n >= msg->msg_iov->iov_len) {
		n -= msg->msg_iov->iov_len;
		msg->msg_iov++;
		msg->msg_iovlen--;
	}
	if (msg->msg_iovlen) {
		msg->msg_iov->iov_base = (char *)msg->msg_iov->iov_base + n;
		msg->msg_iov->iov_len -= n;
	}
}

int sublet__wire_send(int fd, uint16_t op, int32_t error, const void *payload, uint32_t bytes, int pass_fd,
		      uint64_t until_ns)
{
	struct sublet__message head = {
		.magic = SUBLET__PROTOCOL_MAGIC,
		.version = SUBLET__PROTOCOL_VERSION,
		.op = op,
		.bytes = bytes,
		.error = error,
	};
	struct iovec iov[2] = {
		{ .iov_base = &head, .iov_len = sizeof(head) },
		{ .iov_base = (void *)(uintptr_t)payload, .iov_len = bytes },
	};
	struct msghdr msg = { .msg_iov = iov, .msg_iovlen = bytes ? 2 : 1 };
	union {
		char space[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;

	if (pass_fd >= 0)
		attach_fd(&msg, control.space, sizeof(control.space), pass_fd);
	while (msg.msg_iovlen) {
		ssize_t n = sendmsg(fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0) {
			int err = retry(fd, POLLOUT, until_ns);
			if (err)
				return err;
			continue;
		}
		msg.msg_control = NULL; /* the descriptor goes once, with the first byte */
		msg.msg_controllen = 0;
		advance(&msg, (size_t)n);
	}
	return 0;
}

/* Take the first descriptor that came along, close what else there is. */
static void take_fds(struct msghdr *msg, int *passed_fd)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		size_t count;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < count; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
			if (*passed_fd < 0)
				*passed_fd = fd;
			else
				close(fd);
		}
	}
}

/* One piece. Without `passed_fd` the kernel drops descriptors by itself, and the helper process may do no more. */
static ssize_t recv_some(int fd, void *data, size_t bytes, int *passed_fd)
{
	union {
		char space[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec iov = { .iov_base = data, .iov_len = bytes };
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = control.space,
			      .msg_controllen = sizeof(control.space) };

	if (!passed_fd)
		return recv(fd, data, bytes, MSG_DONTWAIT);
	ssize_t n = recvmsg(fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (n > 0)
		take_fds(&msg, passed_fd);
	return n;
}

static int recv_all(int fd, void *data, size_t bytes, int *passed_fd, uint64_t until_ns)
{
	size_t done = 0;

	while (done < bytes) {
		ssize_t n = recv_some(fd, (char *)data + done, bytes - done, passed_fd);
		if (n == 0)
			return -EPIPE;
		if (n < 0) {
			int err = retry(fd, POLLIN, until_ns);
			if (err)
				return err;
			continue;
		}
		done += (size_t)n;
	}
	return 0;
}

int sublet__wire_recv(int fd, void *data, size_t bytes, int *passed_fd, uint64_t until_ns)
{
	int err;

	if (passed_fd)
		*passed_fd = -1;
	err = recv_all(fd, data, bytes, passed_fd, until_ns);
	if (err && passed_fd && *passed_fd >= 0) {
		close(*passed_fd);
		*passed_fd = -1;
	}
	return err;
}
