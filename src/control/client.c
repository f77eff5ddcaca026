/* SPDX-License-Identifier: MIT */
/*
 * The client: the other end of the control socket, for drivers and for the `sublet` command.
 *
 * Every call is one request and one reply, with a deadline on both, because the instance may be
 * stopped by a debugger or run out of processor time. A reply that is late, or that makes no
 * sense, ends the connection: there is no way to tell whose reply the next one would be. From then
 * on each call answers -EPIPE; what the connection held can be released over another one, and is when this
 * process ends.
 *
 * A server that refuses a connection says why in a last message and closes; the request may have
 * hit the closed socket before that message is read. So after a failed send the reply is still
 * looked for.
 */
#include "control/instance.h"
#include "control/owner.h"
#include "control/wire.h"
#include "core/struct.h"
#include "linux/linux.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CALL_NS (10 * SUBLET_SEC) /* for what takes microseconds when all is well */

struct sublet_client {
	int fd; /* -1: broken, each call answers -EPIPE */
	uint32_t *
		here; /* 0 in a child of fork(): two processes on one connection would take each other's replies */
	struct sublet_instance instance;
};

static int call_client(const struct sublet_client *client)
{
	return !client ? -EINVAL : *client->here ? 0 : -EPERM;
}

static int broken(struct sublet_client *client, int error)
{
	if (client->fd >= 0)
		close(client->fd);
	client->fd = -1;
	return error;
}

struct call {
	uint16_t op;
	const void *request;
	uint32_t request_bytes;
	void *reply;
	uint32_t reply_bytes; /* exactly, or at most where reply_used is set */
	uint32_t *reply_used;
	int *passed_fd;
	uint64_t patience_ns;
};

/* Read the rest of a reply whose header has been read. */
static int take_payload(struct sublet_client *client, const struct call *c,
			const struct sublet__message *head, uint64_t until)
{
	bool fits = c->reply_used ? head->bytes <= c->reply_bytes : head->bytes == c->reply_bytes;
	int err;

	if (head->op != c->op || !fits)
		return broken(client, -EPROTO);
	if (c->reply_used)
		*c->reply_used = head->bytes;
	if (head->bytes) {
		err = sublet__wire_recv(client->fd, c->reply, head->bytes, NULL, until);
		if (err)
			return broken(client, err);
	}
	return head->error;
}

static int call(struct sublet_client *client, const struct call *c)
{
	struct sublet__message head;
	uint64_t until = sublet__wire_until(c->patience_ns);
	int sent, err;

	if (client->fd < 0)
		return -EPIPE;
	sent = sublet__wire_send(client->fd, c->op, 0, c->request, c->request_bytes, -1, until);
	if (sent && sent != -EPIPE)
		return broken(client, sent);
	err = sublet__wire_recv(client->fd, &head, sizeof(head), c->passed_fd, until);
	if (err)
		return broken(client, sent ? sent : err);
	if (head.magic != SUBLET__PROTOCOL_MAGIC || head.version != SUBLET__PROTOCOL_VERSION ||
	    head.error > 0)
		err = -EPROTO;
	else if (head.op == SUBLET__OP_ERROR)
		err = head.error ? head.error : -EPROTO;
	else
		err = take_payload(client, c, &head, until);
	if (head.op == SUBLET__OP_ERROR || err == -EPROTO)
		broken(client, err);
	if (err && c->passed_fd && *c->passed_fd >= 0) {
		close(*c->passed_fd);
		*c->passed_fd = -1;
	}
	return err;
}

static int say_hello(struct sublet_client *client)
{
	struct sublet__hello hello;
	int err = call(client, &(struct call){ .op = SUBLET__OP_HELLO,
					       .reply = &hello,
					       .reply_bytes = sizeof(hello),
					       .patience_ns = CALL_NS / 2 });

	return err == -EPIPE ? -ECONNREFUSED : err; /* it ended between connect and now */
}

int sublet_client_connect(const char *name_or_pid, struct sublet_client **client)
{
	struct sublet_client *c = client ? calloc(1, sizeof(*c)) : NULL;
	int err;

	if (!c)
		return client ? -ENOMEM : -EINVAL;
	err = sublet__here_open(&c->here);
	if (err)
		goto free;
	c->fd = sublet__instance_find(name_or_pid, &c->instance);
	if (c->fd < 0) {
		err = c->fd;
		goto here;
	}
	err = sublet__instance_check_peer(c->fd);
	if (!err)
		err = say_hello(c);
	if (err)
		goto close;
	*client = c;
	return 0;

close:
	broken(c, 0);
here:
	sublet__here_close(c->here);
free:
	free(c);
	return err;
}

void sublet_client_close(struct sublet_client *client)
{
	if (!client)
		return;
	broken(client, 0);
	sublet__here_close(client->here);
	free(client);
}

const struct sublet_instance *sublet_client_instance(const struct sublet_client *client)
{
	return client ? &client->instance : NULL;
}

int sublet_client_info(struct sublet_client *client, struct sublet_arena_info *info)
{
	struct sublet_arena_info reply;
	int err = call_client(client);

	if (!err)
		err = sublet__struct_out_check(info, FIRST_ARENA_INFO);
	if (err)
		return err;
	err = call(client, &(struct call){ .op = SUBLET__OP_INFO,
					   .reply = &reply,
					   .reply_bytes = sizeof(reply),
					   .patience_ns = CALL_NS });
	if (err)
		return err;
	reply.linear = NULL;
	reply.fd = -1;
	sublet__struct_out(info, &reply, sizeof(reply));
	return 0;
}

int sublet_client_fd(struct sublet_client *client, int *fd)
{
	int passed = -1, err = fd ? call_client(client) : -EINVAL;

	if (!err)
		err = call(client, &(struct call){ .op = SUBLET__OP_FD,
						   .passed_fd = &passed,
						   .patience_ns = CALL_NS });
	if (err)
		return err;
	if (passed < 0) /* the kernel drops it where this process is out of descriptors */
		return -EMFILE;
	*fd = passed;
	return 0;
}

/* "program[pid]": who is in the way, in words that `ps` understands. */
static void default_owner(char owner[SUBLET_OWNER_BYTES])
{
	size_t used = 0;

	sublet__text_append(owner, SUBLET_OWNER_BYTES - 12, &used, program_invocation_short_name);
	sublet__text_append(owner, SUBLET_OWNER_BYTES, &used, "[");
	sublet__text_append_u64(owner, SUBLET_OWNER_BYTES, &used, (uint64_t)getpid());
	sublet__text_append(owner, SUBLET_OWNER_BYTES, &used, "]");
}

/* How long to wait for a claim: its deadline, and time to copy and zero at a tenth of memory speed. */
static uint64_t claim_patience(uint64_t bytes, uint64_t deadline_ns)
{
	uint64_t more = CALL_NS + (bytes > UINT64_MAX / 4 ? UINT64_MAX / 4 : bytes);

	return deadline_ns < UINT64_MAX - more ? deadline_ns + more : UINT64_MAX;
}

int sublet_client_claim(struct sublet_client *client, uint64_t bytes,
			const struct sublet_claim_options *options, struct sublet_claim *claim)
{
	struct sublet_claim_options o = { SUBLET_OPTIONS(sublet_claim_options) };
	struct sublet__claim_request request;
	size_t used = 0;
	int err = claim ? call_client(client) : -EINVAL;

	if (claim)
		memset(claim, 0, sizeof(*claim));
	if (!err && options)
		err = sublet__struct_in(&o, sizeof(o), options, FIRST_CLAIM_OPTIONS);
	if (!err && o.reserved)
		err = -EINVAL;
	if (err)
		return err;
	memset(&request, 0, sizeof(request));
	request.bytes = bytes;
	request.align_bytes = o.align_bytes;
	request.deadline_ns = o.deadline_ns ? o.deadline_ns : SUBLET_SEC;
	request.flags = o.flags;
	if (o.owner && *o.owner)
		sublet__text_append(request.owner, sizeof(request.owner), &used, o.owner);
	else
		default_owner(request.owner);
	err = call(client, &(struct call){ .op = SUBLET__OP_CLAIM,
					   .request = &request,
					   .request_bytes = sizeof(request),
					   .reply = claim,
					   .reply_bytes = sizeof(*claim),
					   .patience_ns = claim_patience(bytes, request.deadline_ns) });
	claim->addr = NULL;
	if (claim->blocker_count > SUBLET_BLOCKERS_MAX)
		claim->blocker_count = SUBLET_BLOCKERS_MAX;
	for (uint32_t i = 0; i < SUBLET_BLOCKERS_MAX; i++)
		sublet__owner_clean(claim->blockers[i].owner);
	return err;
}

int sublet_client_release(struct sublet_client *client, struct sublet_claim *claim)
{
	int err = claim ? call_client(client) : -EINVAL;

	if (err)
		return err;
	if (!claim->id)
		return -EINVAL;
	err = call(client, &(struct call){ .op = SUBLET__OP_RELEASE,
					   .request = &claim->id,
					   .request_bytes = sizeof(claim->id),
					   .patience_ns = CALL_NS });
	if (!err)
		claim->id = 0;
	return err;
}

int sublet_client_stats(struct sublet_client *client, struct sublet_stats *stats)
{
	struct sublet_stats reply;
	int err = call_client(client);

	if (!err)
		err = sublet__struct_out_check(stats, FIRST_STATS);
	if (err)
		return err;
	err = call(client, &(struct call){ .op = SUBLET__OP_STATS,
					   .reply = &reply,
					   .reply_bytes = sizeof(reply),
					   .patience_ns = CALL_NS });
	if (!err)
		sublet__struct_out(stats, &reply, sizeof(reply));
	return err;
}

/* One request's worth. */
static int some_pageblocks(struct sublet_client *client, uint32_t first, uint32_t count,
			   struct sublet_pageblock *out)
{
	struct sublet__pageblocks_request request = { .first = first, .count = count };
	uint32_t used = 0;
	int err = call(client, &(struct call){ .op = SUBLET__OP_PAGEBLOCKS,
					       .request = &request,
					       .request_bytes = sizeof(request),
					       .reply = out,
					       .reply_bytes = (uint32_t)(count * sizeof(*out)),
					       .reply_used = &used,
					       .patience_ns = CALL_NS });

	if (err)
		return err;
	return used % sizeof(*out) ? broken(client, -EPROTO) : (int)(used / sizeof(*out));
}

int sublet_client_pageblocks(struct sublet_client *client, size_t first, size_t count,
			     struct sublet_pageblock *out)
{
	size_t done = 0;
	int err = (out || !count) && count <= INT32_MAX ? call_client(client) : -EINVAL;

	if (err)
		return err;
	while (done < count && first + done >= first && first + done <= UINT32_MAX) {
		size_t want = count - done < SUBLET__PAGEBLOCKS_MAX ? count - done : SUBLET__PAGEBLOCKS_MAX;
		int n = some_pageblocks(client, (uint32_t)(first + done), (uint32_t)want, out + done);

		if (n < 0)
			return n;
		done += (size_t)n;
		if ((size_t)n < want)
			break;
	}
	return (int)done;
}

int sublet_client_memcpy_ns(struct sublet_client *client, uint64_t bytes, uint64_t *elapsed_ns)
{
	int err = elapsed_ns ? call_client(client) : -EINVAL;

	if (err)
		return err;
	/* three rounds of populating, copying and freeing, behind others that measure too */
	uint64_t patience = 60 * SUBLET_SEC + (bytes > UINT64_MAX / 64 ? UINT64_MAX / 2 : bytes * 32);

	return call(client, &(struct call){ .op = SUBLET__OP_MEMCPY,
					    .request = &bytes,
					    .request_bytes = sizeof(bytes),
					    .reply = elapsed_ns,
					    .reply_bytes = sizeof(*elapsed_ns),
					    .patience_ns = patience });
}

/* One request's worth of a list whose entries have entry_bytes each. *next changes only on success. */
static int some_entries(struct sublet_client *client, uint16_t op, size_t entry_bytes, uint64_t *next,
			size_t count, void *out)
{
	struct sublet__list_request request = { .next = *next, .count = (uint32_t)count };
	union {
		uint64_t next;
		struct sublet__pins_reply pins;
		struct sublet__bos_reply bos;
	} reply;
	uint32_t used = 0, head = sizeof(reply.next);
	int err = call(client, &(struct call){ .op = op,
					       .request = &request,
					       .request_bytes = sizeof(request),
					       .reply = &reply,
					       .reply_bytes = head + (uint32_t)(count * entry_bytes),
					       .reply_used = &used,
					       .patience_ns = CALL_NS });

	if (err)
		return err;
	if (used < head || (used - head) % entry_bytes)
		return broken(client, -EPROTO);
	if (used > head && reply.next <= *next) /* the same entries for ever */
		return broken(client, -EPROTO);
	memcpy(out, (const char *)&reply + head, used - head);
	*next = reply.next;
	return (int)((used - head) / entry_bytes);
}

/* As many requests as it takes. */
static int all_entries(struct sublet_client *client, uint16_t op, size_t entry_bytes, size_t entries_max,
		       uint64_t *next, size_t count, void *out)
{
	size_t done = 0;
	int err = next && (out || !count) && count <= INT32_MAX ? call_client(client) : -EINVAL;

	if (err)
		return err;
	uint64_t at = *next;
	while (done < count) {
		size_t want = count - done < entries_max ? count - done : entries_max;
		int n = some_entries(client, op, entry_bytes, &at, want, (char *)out + done * entry_bytes);

		if (n < 0)
			return n;
		if (!n)
			break;
		done += (size_t)n;
	}
	*next = at;
	return (int)done;
}

int sublet_client_pins(struct sublet_client *client, uint64_t *next, size_t count,
		       struct sublet_pin_info *out)
{
	int n = all_entries(client, SUBLET__OP_PINS, sizeof(*out), SUBLET__PINS_MAX, next, count, out);

	for (int i = 0; i < n; i++)
		sublet__owner_clean(out[i].owner);
	return n;
}

int sublet_client_bos(struct sublet_client *client, uint64_t *next, size_t count, struct sublet_bo_info *out)
{
	int n = all_entries(client, SUBLET__OP_BOS, sizeof(*out), SUBLET__BOS_MAX, next, count, out);

	for (int i = 0; i < n; i++) {
		sublet__owner_clean(out[i].owner);
		sublet__owner_clean(out[i].device);
	}
	return n;
}
