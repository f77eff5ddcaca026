/* SPDX-License-Identifier: MIT */
/*
 * One connection: read a request, call the engine, write the reply.
 *
 * The peer is of the same user and still not trusted: it may be a broken program, a port scanner or
 * `cat /dev/urandom`. What it may send is a table of request sizes; a message is read into a
 * buffer of a fixed size only after its header was found to be in that table. Nothing here waits
 * for the peer without a deadline, but for the silence between two requests.
 *
 * A claim may be asked to wait for an hour, and its driver may be gone after a second, or the
 * program may want to end. So a long wait is cut in slices: the engine is asked to wait at most
 * SUBLET__CLAIM_SLICE_NS, and between two slices the server looks whether anybody still wants the
 * answer. Each slice counts as a claim in the statistics.
 *
 * A claim that succeeds after its driver stopped waiting is nobody's: nobody knows where it is. It is released at
 * once where the reply cannot be sent, and where the peer closes its connection with the reply unread, which the
 * kernel tells by ECONNRESET.
 */
#include "control/owner.h"
#include "control/server.h"
#include "control/wire.h"
#include "core/arena.h"
#include "linux/linux.h"
#include "linux/raw.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#define NAP_FROM_BYTES ((uint64_t)4 << 20) /* two pageblocks: less is one worker's job */

union request {
	struct sublet__claim_request claim;
	struct sublet__pageblocks_request pageblocks;
	struct sublet__list_request list;
	uint64_t id;
	uint64_t bytes;
};

/* Payload size of a request; -1: there is no such request. */
static int request_bytes(uint16_t op)
{
	switch (op) {
	case SUBLET__OP_HELLO:
	case SUBLET__OP_INFO:
	case SUBLET__OP_FD:
	case SUBLET__OP_STATS:
		return 0;
	case SUBLET__OP_CLAIM:
		return (int)sizeof(struct sublet__claim_request);
	case SUBLET__OP_RELEASE:
	case SUBLET__OP_MEMCPY:
		return (int)sizeof(uint64_t);
	case SUBLET__OP_PAGEBLOCKS:
		return (int)sizeof(struct sublet__pageblocks_request);
	case SUBLET__OP_PINS:
	case SUBLET__OP_BOS:
		return (int)sizeof(struct sublet__list_request);
	default:
		return -1;
	}
}

static int reply_fd(struct sublet__slot *slot, uint16_t op, int error, uint32_t bytes, int pass_fd)
{
	if (!sublet__fd_ours(&slot->conn))
		return -EPIPE;
	return sublet__wire_send(slot->conn.fd, op, error, &slot->reply, bytes, pass_fd,
				 sublet__wire_until(SUBLET__MESSAGE_TIMEOUT_NS));
}

static int reply(struct sublet__slot *slot, uint16_t op, int error, uint32_t bytes)
{
	return reply_fd(slot, op, error, bytes, -1);
}

static int op_hello(struct sublet__slot *slot)
{
	memset(&slot->reply.hello, 0, sizeof(slot->reply.hello));
	slot->reply.hello.pid = slot->server->pid;
	memcpy(slot->reply.hello.name, slot->server->name, sizeof(slot->reply.hello.name));
	return reply(slot, SUBLET__OP_HELLO, 0, sizeof(slot->reply.hello));
}

static int op_info(struct sublet__slot *slot)
{
	struct sublet_arena_info *info = &slot->reply.info;
	int err;

	memset(info, 0, sizeof(*info));
	info->size_bytes = sizeof(*info);
	err = sublet_arena_info(slot->server->arena, info);
	info->linear = NULL; /* addresses and descriptors of this process are nobody's business */
	info->fd = -1;
	return reply(slot, SUBLET__OP_INFO, err, sizeof(*info));
}

static int op_fd(struct sublet__slot *slot)
{
	struct sublet_arena_info info = { SUBLET_OPTIONS(sublet_arena_info) };
	int err = sublet_arena_info(slot->server->arena, &info);

	return reply_fd(slot, SUBLET__OP_FD, err, 0, err ? -1 : info.fd);
}

/* The peer closed, or the server stops: nobody waits for the answer. */
static bool abandoned(const struct sublet__slot *slot)
{
	struct pollfd p = { .fd = slot->conn.fd, .events = POLLRDHUP };

	return slot->server->stopping ||
	       (poll(&p, 1, 0) > 0 && (p.revents & (POLLRDHUP | POLLHUP | POLLERR)));
}

/* Add what an earlier slice of the same claim has cost. */
static void add_costs(struct sublet_claim *claim, const struct sublet_claim *earlier)
{
	claim->latency_ns += earlier->latency_ns;
	claim->moved_bytes += earlier->moved_bytes;
	claim->dropped_bytes += earlier->dropped_bytes;
	claim->zeroed_bytes += earlier->zeroed_bytes;
	claim->waited_ns += earlier->waited_ns;
	claim->waits += earlier->waits;
	claim->windows_tried += earlier->windows_tried;
}

/*
 * The peer's wake-up of this thread takes its CPU away just before it goes to sleep, and there it waits to, as long as
 * the claim lasts, counted among the threads that want to run: enough for the platform to find no idle CPU for its
 * workers. A nap lets it. Nothing beside a claim that would have work for two.
 */
static void peer_let_sleep(uint64_t bytes)
{
	if (bytes < NAP_FROM_BYTES)
		return;
	(void)prctl(PR_SET_TIMERSLACK, 1ul); /* as short as the kernel can: 50 us otherwise */
	sublet__raw_sleep_ns(1);
}

static int claim_in_slices(struct sublet__slot *slot, const struct sublet__claim_request *request,
			   const char *owner)
{
	struct sublet_claim *claim = &slot->reply.claim;
	struct sublet_claim costs;
	struct sublet_claim_options options = {
		SUBLET_OPTIONS(sublet_claim_options),
		.align_bytes = request->align_bytes,
		.flags = request->flags,
		.owner = owner,
	};
	uint64_t deadline = request->deadline_ns ? request->deadline_ns : SUBLET_SEC;
	uint64_t until = sublet__wire_until(deadline), left = deadline;

	peer_let_sleep(request->bytes);
	memset(&costs, 0, sizeof(costs));
	for (;;) {
		uint64_t began = sublet__wire_now_ns();
		int err;

		options.deadline_ns = left < SUBLET__CLAIM_SLICE_NS ? left : SUBLET__CLAIM_SLICE_NS;
		memset(claim, 0, sizeof(*claim));
		err = sublet__claim_for_guest(slot->server->arena, request->bytes, &options, claim);
		add_costs(claim, &costs);
		/* an engine that gave up before its slice was over has a reason that time does not cure */
		if (err != -EBUSY || left <= SUBLET__CLAIM_SLICE_NS ||
		    (request->flags & SUBLET_CLAIM_NOWAIT) ||
		    sublet__wire_now_ns() - began < SUBLET__CLAIM_SLICE_NS || abandoned(slot))
			return err;
		costs = *claim;
		began = sublet__wire_now_ns();
		left = began < until ? until - began : 1;
	}
}

/* What the peer wants to be called; never empty. */
static void owner_of(char owner[SUBLET_OWNER_BYTES], const char asked[SUBLET_OWNER_BYTES], pid_t pid)
{
	size_t n = 0;

	memcpy(owner, asked, SUBLET_OWNER_BYTES);
	sublet__owner_clean(owner);
	if (owner[0])
		return;
	sublet__text_append(owner, SUBLET_OWNER_BYTES, &n, "pid ");
	sublet__text_append_u64(owner, SUBLET_OWNER_BYTES, &n, (uint64_t)pid);
}

/* *own: it is a claim of this connection. */
static int release_own(struct sublet__slot *slot, uint64_t id, bool *own)
{
	struct sublet_claim claim = { .id = id };
	int err = -EINVAL;

	*own = false;
	for (uint32_t i = 0; i < slot->claim_count && !*own; i++) {
		if (slot->claims[i] != id)
			continue;
		*own = true;
		err = sublet_release(slot->server->arena, &claim);
		if (!err)
			slot->claims[i] = slot->claims[--slot->claim_count];
	}
	return err;
}

static void release_untold(struct sublet__slot *slot)
{
	uint64_t id = slot->untold;
	bool own;

	slot->untold = 0;
	if (id)
		(void)release_own(slot, id, &own);
}

static int op_claim(struct sublet__slot *slot, const struct sublet__claim_request *request)
{
	struct sublet_claim *claim = &slot->reply.claim;
	char owner[SUBLET_OWNER_BYTES];
	int err;

	memset(claim, 0, sizeof(*claim));
	owner_of(owner, request->owner, slot->pid);
	if (slot->pidfd.fd < 0) /* without it nobody could tell when the driver's I/O is over */
		err = slot->pidfd_error;
	else if (slot->claim_count == SUBLET__CLAIMS_PER_SLOT)
		err = -ENOSPC;
	else if (request->reserved)
		err = -EINVAL;
	else
		err = claim_in_slices(slot, request, owner);
	if (!err) /* from here the peer holds it, unless it turns out that it never read the reply */
		slot->claims[slot->claim_count++] = slot->untold = claim->id;
	claim->addr = NULL;
	err = reply(slot, SUBLET__OP_CLAIM, err, sizeof(*claim));
	if (err)
		release_untold(slot);
	return err;
}

static int op_release(struct sublet__slot *slot, uint64_t id)
{
	bool own;
	int err = release_own(slot, id, &own);

	if (!own)
		err = sublet__server_release_orphan(slot, id);
	return reply(slot, SUBLET__OP_RELEASE, err, 0);
}

static int op_stats(struct sublet__slot *slot)
{
	struct sublet_stats *stats = &slot->reply.stats;

	memset(stats, 0, sizeof(*stats));
	stats->size_bytes = sizeof(*stats);
	return reply(slot, SUBLET__OP_STATS, sublet_arena_stats(slot->server->arena, stats), sizeof(*stats));
}

static int op_pageblocks(struct sublet__slot *slot, const struct sublet__pageblocks_request *request)
{
	size_t n;

	if (request->count > SUBLET__PAGEBLOCKS_MAX)
		return reply(slot, SUBLET__OP_PAGEBLOCKS, -EINVAL, 0);
	n = request->count ? sublet_arena_pageblocks(slot->server->arena, request->first, request->count,
						     slot->reply.pageblocks)
			   : 0;
	return reply(slot, SUBLET__OP_PAGEBLOCKS, 0, (uint32_t)(n * sizeof(struct sublet_pageblock)));
}

static int op_pins(struct sublet__slot *slot, const struct sublet__list_request *request)
{
	struct sublet__pins_reply *r = &slot->reply.pins;
	size_t n;

	if (request->count > SUBLET__PINS_MAX || request->reserved)
		return reply(slot, SUBLET__OP_PINS, -EINVAL, 0);
	r->next = request->next;
	n = request->count ? sublet_pin_list(slot->server->arena, &r->next, request->count, r->pins) : 0;
	for (size_t i = 0; i < n; i++)
		sublet__owner_clean(r->pins[i].owner);
	return reply(slot, SUBLET__OP_PINS, 0,
		     (uint32_t)(offsetof(struct sublet__pins_reply, pins) + n * sizeof(r->pins[0])));
}

static int op_bos(struct sublet__slot *slot, const struct sublet__list_request *request)
{
	struct sublet__bos_reply *r = &slot->reply.bos;
	size_t n;

	if (request->count > SUBLET__BOS_MAX || request->reserved)
		return reply(slot, SUBLET__OP_BOS, -EINVAL, 0);
	r->next = request->next;
	n = request->count ? sublet_bo_list(slot->server->arena, &r->next, request->count, r->bos) : 0;
	for (size_t i = 0; i < n; i++) {
		sublet__owner_clean(r->bos[i].owner);
		sublet__owner_clean(r->bos[i].device);
	}
	return reply(slot, SUBLET__OP_BOS, 0,
		     (uint32_t)(offsetof(struct sublet__bos_reply, bos) + n * sizeof(r->bos[0])));
}

static int op_memcpy(struct sublet__slot *slot, uint64_t bytes)
{
	uint64_t ns = 0;
	int err;

	sublet__lock(&slot->server->memcpy_lock);
	err = sublet__linux_memcpy_ns(slot->server->arena, bytes, &ns);
	sublet__unlock(&slot->server->memcpy_lock);
	slot->reply.ns = ns;
	return reply(slot, SUBLET__OP_MEMCPY, err, sizeof(slot->reply.ns));
}

static int dispatch(struct sublet__slot *slot, uint16_t op, const union request *request)
{
	switch (op) {
	case SUBLET__OP_HELLO:
		return op_hello(slot);
	case SUBLET__OP_INFO:
		return op_info(slot);
	case SUBLET__OP_FD:
		return op_fd(slot);
	case SUBLET__OP_CLAIM:
		return op_claim(slot, &request->claim);
	case SUBLET__OP_RELEASE:
		return op_release(slot, request->id);
	case SUBLET__OP_STATS:
		return op_stats(slot);
	case SUBLET__OP_PAGEBLOCKS:
		return op_pageblocks(slot, &request->pageblocks);
	case SUBLET__OP_MEMCPY:
		return op_memcpy(slot, request->bytes);
	case SUBLET__OP_PINS:
		return op_pins(slot, &request->list);
	case SUBLET__OP_BOS:
		return op_bos(slot, &request->list);
	default:
		return -EPROTO;
	}
}

/* The peer has closed, and did not read all that was sent to it. */
static bool closed_unread(const struct sublet__slot *slot)
{
	socklen_t bytes = sizeof(int);
	int error = 0;

	return sublet__fd_ours(&slot->conn) &&
	       !getsockopt(slot->conn.fd, SOL_SOCKET, SO_ERROR, &error, &bytes) && error == ECONNRESET;
}

/* Wait for a byte, or the end of either side. */
static int wait_request(struct sublet__slot *slot)
{
	struct pollfd p[2] = {
		{ .fd = slot->conn.fd, .events = POLLIN },
		{ .fd = slot->server->wake[0].fd,
		  .events = 0 }, /* its end alone: the host closed everything */
	};

	while (poll(p, 2, -1) < 0)
		if (errno != EINTR)
			return -errno;
	if ((p[0].revents & (POLLERR | POLLHUP)) && closed_unread(slot))
		release_untold(slot);
	return p[1].revents || !sublet__fd_ours(&slot->conn) ? -EPIPE : 0;
}

/* Read one request. -EPROTO: it makes no sense; -EPIPE, -ETIMEDOUT */
static int read_request(struct sublet__slot *slot, bool greeted, struct sublet__message *head,
			union request *request)
{
	uint64_t until = sublet__wire_until(SUBLET__MESSAGE_TIMEOUT_NS);
	int bytes, err;

	if (greeted) { /* silence is fine, half a message is not */
		err = wait_request(slot);
		if (err)
			return err;
		until = sublet__wire_until(SUBLET__MESSAGE_TIMEOUT_NS);
	}
	err = sublet__wire_recv(slot->conn.fd, head, sizeof(*head), NULL, until);
	if (err)
		return err;
	bytes = request_bytes(head->op);
	if (head->magic != SUBLET__PROTOCOL_MAGIC || head->version != SUBLET__PROTOCOL_VERSION || bytes < 0 ||
	    head->bytes != (uint32_t)bytes || (!greeted && head->op != SUBLET__OP_HELLO))
		return -EPROTO;
	memset(request, 0, sizeof(*request));
	return bytes ? sublet__wire_recv(slot->conn.fd, request, (size_t)bytes, NULL, until) : 0;
}

void sublet__connection_serve(struct sublet__slot *slot)
{
	struct sublet__message head;
	union request request;
	bool greeted = false;
	int err;

	do {
		err = read_request(slot, greeted, &head, &request);
		if (err == -EPROTO || err == -ETIMEDOUT)
			reply(slot, SUBLET__OP_ERROR, err, 0);
		if (err)
			return;
		greeted = true;
		slot->untold = 0; /* who asks again has read the answer */
		err = dispatch(slot, head.op, &request);
	} while (!err && !slot->server->stopping);
}
