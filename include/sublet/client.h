/* SPDX-License-Identifier: MIT */
/*
 * sublet/client.h: reach an arena in another process of the same user.
 *
 * A driver process connects once, takes the area's descriptor once (maps it, registers it with its
 * device), then claims and releases. Claims belong to the connection. When it closes, or breaks, what it
 * still held stays held, as blockers that carry the driver's name, because the device may still write: until
 * the same process releases it over another connection (sublet_client_release), or has ended, and 200 ms
 * more, for the kernel to finish I/O that it tears down after the process.
 *
 * A client is used by one thread at a time, and by the process that connected: what a child of fork() gets of it answers -EPERM
 * (sublet/types.h), and may be closed there without harm to the parent's.
 */
#ifndef SUBLET_CLIENT_H
#define SUBLET_CLIENT_H

#include <sublet/arena.h>
#include <sublet/bo.h>
#include <sublet/claim.h>
#include <sublet/pin.h>
#include <sublet/stats.h>

#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

struct sublet_client;

struct sublet_instance {
	char name[SUBLET_NAME_BYTES];
	pid_t pid;
};

/*
 * The running instances of this user, at most `count`; sockets of dead ones are removed on the way.
 * Returns how many there are (may be more than count), or -errno of the directory.
 */
SUBLET_API SUBLET_NODISCARD int sublet_instance_list(struct sublet_instance *instances, size_t count);

/*
 * Connect to an instance by name, or by pid as a decimal number; NULL: the only one that runs.
 * -ENOENT        no such instance (or none at all)
 * -ENOTUNIQ      several instances fit
 * -EACCES        it belongs to another user
 * -ECONNREFUSED  it has ended
 * -EPROTO        it speaks another version of the protocol
 * -EUSERS        it has as many connections as it takes
 * -ETIMEDOUT     it does not answer: stopped, or very busy
 * -EPERM         the directory of sockets is not private to this user
 * -ENAMETOOLONG  no instance can have that name; -ENOMEM; -errno of the socket
 */
SUBLET_API SUBLET_NODISCARD int sublet_client_connect(const char *name_or_pid, struct sublet_client **client);

/*
 * Close the connection. Claims still held can be released over another connection of this process, and are
 * once it has ended. NULL is a no-op.
 */
SUBLET_API void sublet_client_close(struct sublet_client *client);

/* Who is at the other end; valid until close. */
SUBLET_API const struct sublet_instance *sublet_client_instance(const struct sublet_client *client);

/*
 * What the arena is made of. info->linear is NULL and info->fd is -1.
 * -EPIPE  the instance has ended, here and in every call below
 */
SUBLET_API SUBLET_NODISCARD int sublet_client_info(struct sublet_client *client,
						   struct sublet_arena_info *info);

/*
 * A new descriptor of the backing (close-on-exec), which the caller closes. The area starts at
 * info.area_offset_bytes. Whoever has it can read and write all lent memory: see docs/security.md.
 */
SUBLET_API SUBLET_NODISCARD int sublet_client_fd(struct sublet_client *client, int *fd);

/*
 * As sublet_claim; claim->addr is NULL. The call waits at most deadline_ns and a little. A deadline of
 * more than a second is served in slices of one second, so that a client that goes away is noticed.
 * -ENOSPC     this connection holds 1024 claims already
 * -ETIMEDOUT  no answer; every later call of this client fails with -EPIPE. Should the claim succeed
 *             later, it is released at once
 */
SUBLET_API SUBLET_NODISCARD int sublet_client_claim(struct sublet_client *client, uint64_t bytes,
						    const struct sublet_claim_options *options,
						    struct sublet_claim *claim);

/*
 * As sublet_release, for a claim of this connection, or of an earlier one of this process that was closed or broke
 * (-ETIMEDOUT): claim->id is all that is looked at.
 * -EINVAL  it is neither
 */
SUBLET_API SUBLET_NODISCARD int sublet_client_release(struct sublet_client *client,
						      struct sublet_claim *claim);

/* As sublet_arena_stats. */
SUBLET_API SUBLET_NODISCARD int sublet_client_stats(struct sublet_client *client, struct sublet_stats *stats);

/* As sublet_arena_pageblocks; returns the number written or -errno. */
SUBLET_API SUBLET_NODISCARD int sublet_client_pageblocks(struct sublet_client *client, size_t first,
							 size_t count, struct sublet_pageblock *out);

/*
 * As sublet_pin_list: the pins from number *next (0 at first) on, at most `count`; *next becomes where to go on. Returns
 * how many were written, 0 at the end, or -errno, with *next as it was. Owner tags come from other programs: here they
 * are printable UTF-8, with a '?' for every other byte. Addresses mean something in the instance's process only.
 */
SUBLET_API SUBLET_NODISCARD int sublet_client_pins(struct sublet_client *client, uint64_t *next, size_t count,
						   struct sublet_pin_info *out);

/* The same for sublet_bo_list. */
SUBLET_API SUBLET_NODISCARD int sublet_client_bos(struct sublet_client *client, uint64_t *next, size_t count,
						  struct sublet_bo_info *out);

/*
 * Time a plain libc memcpy of `bytes` in the instance's own process, cold, over memory of its
 * backing: the reference that claim latencies are compared with. Takes about as long as it says.
 */
SUBLET_API SUBLET_NODISCARD int sublet_client_memcpy_ns(struct sublet_client *client, uint64_t bytes,
							uint64_t *elapsed_ns);

#ifdef __cplusplus
}
#endif
#endif
