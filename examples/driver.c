/* SPDX-License-Identifier: MIT */
/*
 * A driver in a process of its own: connect to a running instance, map its area once, then claim,
 * use and release contiguous buffers.
 *
 *   sublet run --name web -- redis-server &
 *   ./driver web
 */
#include <sublet/client.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static int fail(const char *what, int err)
{
	fprintf(stderr, "%s: %s\n", what, strerror(-err));
	return 1;
}

int main(int argc, char **argv)
{
	struct sublet_client *client;
	int err = sublet_client_connect(argc > 1 ? argv[1] : NULL, &client);
	if (err)
		return fail("connect", err);

	/* Once: the area, which a real driver would register with its device here. */
	struct sublet_arena_info info = { SUBLET_OPTIONS(sublet_arena_info) };
	int fd;
	err = sublet_client_info(client, &info);
	if (!err)
		err = sublet_client_fd(client, &fd);
	if (err)
		return fail("ask for the area", err);
	char *area = mmap(NULL, info.area_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
			  (off_t)info.area_offset_bytes);
	close(fd);
	if (area == MAP_FAILED)
		return fail("map the area", -12);

	/* Then, for each buffer: claim, let the device work, release. */
	for (int i = 0; i < 10; i++) {
		struct sublet_claim claim;
		struct sublet_claim_options how = { SUBLET_OPTIONS(sublet_claim_options), .owner = "driver.c",
						    .align_bytes = 2 * SUBLET_MIB };
		err = sublet_client_claim(client, 16 * SUBLET_MIB, &how, &claim);
		if (err)
			return fail("claim", err);
		if (claim.bytes != 16 * SUBLET_MIB || claim.offset_bytes % (2 * SUBLET_MIB) ||
		    claim.offset_bytes + claim.bytes > info.area_bytes || claim.addr)
			return fail("the claim is not what was asked for", -EIO);
		/* Whose bytes were there before nobody learns: it reads as zeros. */
		if (area[claim.offset_bytes] || area[claim.offset_bytes + claim.bytes - 1])
			return fail("the buffer is not zeroed", -EIO);
		memset(area + claim.offset_bytes, 'd', claim.bytes);
		printf("buffer %d: offset %llu MiB, %llu us\n", i,
		       (unsigned long long)(claim.offset_bytes / SUBLET_MIB),
		       (unsigned long long)(claim.latency_ns / SUBLET_US));
		err = sublet_client_release(client, &claim);
		if (err)
			return fail("release", err);
	}
	sublet_client_close(client);
	return 0;
}
