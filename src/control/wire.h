/* SPDX-License-Identifier: MIT */
/* control/wire.h: whole messages over a socket, with deadlines. Both ends use it. */
#ifndef SUBLET_CONTROL_WIRE_H
#define SUBLET_CONTROL_WIRE_H

#include "control/protocol.h"

#define SUBLET__FOREVER UINT64_MAX

/* CLOCK_MONOTONIC. */
uint64_t sublet__wire_now_ns(void);
/* The absolute time `ns` from now; SUBLET__FOREVER where that overflows. */
uint64_t sublet__wire_until(uint64_t ns);

/*
 * Fill in the header's magic, version, op, bytes and error, and send it with its payload, and with
 * pass_fd unless that is -1. until_ns: an absolute time. -EPIPE: the peer is gone; -ETIMEDOUT.
 */
int sublet__wire_send(int fd, uint16_t op, int32_t error, const void *payload, uint32_t bytes, int pass_fd,
		      uint64_t until_ns);

/*
 * Receive exactly `bytes`. passed_fd: where a descriptor that rides along goes (close-on-exec; -1
 * where none did), NULL: none is accepted. -EPIPE: the peer is gone, maybe after half of it; -ETIMEDOUT.
 */
int sublet__wire_recv(int fd, void *data, size_t bytes, int *passed_fd, uint64_t until_ns);

#endif
