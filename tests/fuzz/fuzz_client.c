/* SPDX-License-Identifier: MIT */
/*
 * The control socket, the client's side: any bytes as what an instance answers. The first byte chooses the call.
 */
#include "fuzz.h"

#include "control/client.c"

#include <sys/socket.h>

#define INPUT_MAX 65536u

static int call_one(struct sublet_client *c, unsigned int which)
{
	struct sublet_claim_options options = { SUBLET_OPTIONS(sublet_claim_options), .deadline_ns = 1,
						.owner = "fuzz" };
	struct sublet_arena_info info = { SUBLET_OPTIONS(sublet_arena_info) };
	struct sublet_stats stats = { SUBLET_OPTIONS(sublet_stats) };
	static struct sublet_pageblock blocks[64];
	static struct sublet_pin_info pins[8];
	static struct sublet_bo_info bos[8];
	struct sublet_claim claim = { .id = 1 };
	uint64_t next = 0;
	int fd = -1, n;

	switch (which % 9) {
	case 0:
		return say_hello(c);
	case 1:
		return sublet_client_info(c, &info);
	case 2:
		n = sublet_client_fd(c, &fd);
		require((n == 0) == (fd >= 0));
		return n;
	case 3:
		n = sublet_client_claim(c, 1, &options, &claim);
		require(claim.blocker_count <= SUBLET_BLOCKERS_MAX);
		for (uint32_t i = 0; i < claim.blocker_count; i++)
			require(memchr(claim.blockers[i].owner, 0, SUBLET_OWNER_BYTES));
		return n;
	case 4:
		return sublet_client_release(c, &claim);
	case 5:
		return sublet_client_stats(c, &stats);
	case 6:
		n = sublet_client_pageblocks(c, 0, 64, blocks);
		require(n <= 64);
		return n;
	case 7:
		n = sublet_client_pins(c, &next, 8, pins);
		for (int i = 0; i < n; i++)
			require(memchr(pins[i].owner, 0, SUBLET_OWNER_BYTES));
		require(n <= 8);
		return n;
	default:
		n = sublet_client_bos(c, &next, 8, bos);
		for (int i = 0; i < n; i++)
			require(memchr(bos[i].owner, 0, SUBLET_OWNER_BYTES) &&
				memchr(bos[i].device, 0, SUBLET_OWNER_BYTES));
		require(n <= 8);
		return n;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint32_t here = 1; /* not a child of fork() */
	struct sublet_client client = { .fd = -1, .here = &here };
	int pair[2];

	if (!size || size > INPUT_MAX)
		return 0;
	require(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair));
	client.fd = pair[0];
	require(write(pair[1], data + 1, size - 1) == (ssize_t)(size - 1) && !shutdown(pair[1], SHUT_WR));
	for (unsigned int i = 0; i < 3 && client.fd >= 0; i++)
		(void)call_one(&client, data[0] + i);
	if (client.fd >= 0)
		close(client.fd);
	close(pair[1]);
	return 0;
}
