/* SPDX-License-Identifier: MIT */
/*
 * The control socket, the server's side: any bytes as what a client sends, to the code of a connection over a real
 * socket and a pretended engine. Replies are looked at instead of sent: of a kind that there is, not too long, and every
 * byte of them written by somebody.
 */
#include "fuzz.h"

#include "control/server.h"
#include "control/wire.h"

#include "../control/fake_engine.h"

#include <sys/socket.h>
#include <sys/stat.h>

#define INPUT_MAX 16384u

int __wrap_sublet__wire_send(int fd, uint16_t op, int32_t error, const void *payload, uint32_t bytes,
			     int pass_fd, uint64_t until_ns);

int __wrap_sublet__wire_send(int fd, uint16_t op, int32_t error, const void *payload, uint32_t bytes,
			     int pass_fd, uint64_t until_ns)
{
	static unsigned char copy[SUBLET__REPLY_BYTES_MAX];

	(void)fd, (void)until_ns;
	require((op >= SUBLET__OP_HELLO && op <= SUBLET__OP_BOS) || op == SUBLET__OP_ERROR);
	require(error <= 0 && bytes <= sizeof copy && (pass_fd == -1 || op == SUBLET__OP_FD));
	if (bytes)
		memcpy(copy, payload, bytes);
	return 0;
}

int __wrap_nanosleep(const struct timespec *wanted, struct timespec *left);

/* A claim of FAKE_SLOW waits for as long as it may: not here. */
int __wrap_nanosleep(const struct timespec *wanted, struct timespec *left)
{
	(void)wanted, (void)left;
	return 0;
}

static void fd_set_up(struct sublet__fd *out, int fd)
{
	struct stat st;

	require(!fstat(fd, &st));
	*out = (struct sublet__fd){ .fd = fd, .ino = st.st_ino, .dev = st.st_dev };
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct sublet_arena arena;
	static struct sublet__server server;
	struct sublet__slot *slot = &server.slots[0];
	int pair[2];

	if (!arena.fd) {
		fake_create(&arena);
		arena.pins = arena.bos = 2000; /* more than any reply holds */
		server.arena = &arena;
		server.pid = getpid();
		memcpy(server.name, "fuzz", 5);
		server.wake[0].fd = server.wake[1].fd = -1;
		for (uint32_t i = 0; i < SUBLET__SLOTS; i++)
			server.slots[i].conn.fd = server.slots[i].pidfd.fd = -1;
	}
	if (size > INPUT_MAX)
		return 0;
	require(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair));
	require(write(pair[1], data, size) == (ssize_t)size && !shutdown(pair[1], SHUT_WR));
	memset(&slot->reply, 0xEE, sizeof slot->reply);
	slot->server = &server;
	slot->state = SUBLET__SLOT_LIVE;
	slot->claim_count = 0;
	slot->untold = 0;
	fd_set_up(&slot->conn, pair[0]);
	sublet__connection_serve(slot);
	require(slot->claim_count <= SUBLET__CLAIMS_PER_SLOT);
	close(pair[0]);
	close(pair[1]);
	return 0;
}
