/* SPDX-License-Identifier: MIT */
/*
 * control/connection.c, the parser of the control socket, against a twin that says what each message is answered with.
 *
 * The server's end of one connection runs on a thread of its own, over an engine that only pretends. Each operation
 * sends a message, right or wrong, whole or in pieces, and reads the answer: after one that makes no sense that
 * is OP_ERROR and the end, and whatever follows goes unheard.
 */
#include "harness.h"

#include "control/server.h"
#include "control/wire.h"
#include "../control/fake_engine.h"

#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/stat.h>

enum { HELD_MAX = 64, PINS = 400, BOS = 200 };
enum { ASK = 0, CLAIM, RELEASE, BLOCKS, MEMCPY, LIST, HEAD, HALF, PIECES, VANISH };

static const struct model_kind kinds[] = {
	[ASK] = { "ask", 1, 8 },         /* hello, info, fd, stats */
	[CLAIM] = { "claim", 3, 10 },    /* which bytes, which owner, reserved */
	[RELEASE] = { "release", 1, 6 }, /* n-th of those held, or one that is not */
	[BLOCKS] = { "blocks", 2, 2 },   /* first, count */
	[MEMCPY] = { "memcpy", 1, 2 },
	[LIST] = { "list", 4, 4 }, /* 0: pins, 1: bos; next, count, reserved */
	[HEAD] = { "head", 5, 2 }, /* magic is wrong by, version, op, bytes, error: so many zeros follow */
	[HALF] = { "half", 2, 1 }, /* so many bytes of a request of op, and no more */
	[PIECES] = { "pieces", 2, 4 }, /* so many bytes at a time from here on; each with a descriptor */
	[VANISH] = { "vanish", 1, 1 }, /* claim, and close with the answer unread */
	{ NULL, 0, 0 },
};

struct both {
	struct sublet_arena arena;
	struct sublet__server server;
	pthread_t thread;
	int fd;         /* the client's end */
	uint32_t piece; /* 0: whole */
	bool piece_fds;
	int32_t error; /* in the next request's header, where it means nothing */
	/* the twin */
	bool is_greeted, is_over;
	uint32_t held_count;
	uint64_t held[HELD_MAX];
	uint64_t next_id, claims;
};

static struct both both;

static void *serve(void *slot)
{
	sublet__connection_serve(slot);
	shutdown(((struct sublet__slot *)slot)->conn.fd, SHUT_RDWR);
	return NULL;
}

static void *open_both(const void *shape)
{
	struct sublet__slot *slot = &both.server.slots[0];
	struct stat st;
	int pair[2], wake[2];
	(void)shape;

	memset(&both, 0, sizeof both);
	fake_create(&both.arena);
	both.arena.pins = PINS;
	both.arena.bos = BOS;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, wake), 0);
	both.fd = pair[0];
	both.server.arena = &both.arena;
	both.server.pid = getpid();
	strcpy(both.server.name, "model");
	both.server.wake[0].fd = wake[0];
	both.server.wake[1].fd = wake[1];
	assert_int_equal(fstat(pair[1], &st), 0);
	slot->server = &both.server;
	slot->state = SUBLET__SLOT_LIVE;
	slot->conn.fd = pair[1];
	slot->conn.ino = st.st_ino;
	slot->conn.dev = st.st_dev;
	slot->pid = getpid();
	assert_int_equal(pthread_create(&both.thread, NULL, serve, slot), 0);
	return &both;
}

/* ---- the client's end ---- */

static uint64_t soon(void)
{
	return sublet__wire_until(5 * SUBLET_SEC);
}

/* Send one piece, with a descriptor that nobody asked for if `pass`. */
static void piece_send(const struct both *b, const void *data, size_t bytes, bool pass)
{
	union {
		char space[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = { { 0 } };
	struct iovec iov = { (void *)(uintptr_t)data, bytes };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (pass) {
		msg.msg_control = control.space;
		msg.msg_controllen = sizeof control.space;
		struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &b->arena.fd, sizeof(int));
	}
	/* The other end may be closed already: what is not heard is not wrong. */
	(void)!sendmsg(b->fd, &msg, MSG_NOSIGNAL);
}

static void raw_send(const struct both *b, const void *data, size_t bytes)
{
	size_t piece = b->piece ? b->piece : bytes;

	for (size_t at = 0; at < bytes; at += piece)
		piece_send(b, (const char *)data + at, at + piece < bytes ? piece : bytes - at, b->piece_fds);
}

static void request_send(const struct both *b, uint16_t op, const void *payload, uint32_t bytes)
{
	char message[sizeof(struct sublet__message) + 256];
	struct sublet__message head = { SUBLET__PROTOCOL_MAGIC, SUBLET__PROTOCOL_VERSION, op, bytes,
					b->error };

	memcpy(message, &head, sizeof head);
	if (bytes)
		memcpy(message + sizeof head, payload, bytes);
	raw_send(b, message, sizeof head + bytes);
}

/* Read a reply, and see that it is one of op with so many bytes. */
static void reply_read(const struct both *b, uint16_t op, int32_t error, void *payload, uint32_t bytes,
		       int *passed)
{
	struct sublet__message head;

	assert_int_equal(sublet__wire_recv(b->fd, &head, sizeof head, passed, soon()), 0);
	assert_int_equal(head.magic, SUBLET__PROTOCOL_MAGIC);
	assert_int_equal(head.version, SUBLET__PROTOCOL_VERSION);
	assert_int_equal(head.op, op);
	assert_int_equal(head.error, error);
	assert_int_equal(head.bytes, bytes);
	if (bytes)
		assert_int_equal(sublet__wire_recv(b->fd, payload, bytes, NULL, soon()), 0);
}

static void end_read(struct both *b)
{
	char byte;

	assert_int_equal(sublet__wire_recv(b->fd, &byte, 1, NULL, soon()), -EPIPE);
	b->is_over = true;
}

/* It made no sense. */
static void refusal_read(struct both *b)
{
	reply_read(b, SUBLET__OP_ERROR, -EPROTO, NULL, 0, NULL);
	end_read(b);
}

/* Whether the request that was sent is the first one, and so had to be another. */
static bool is_refused(struct both *b, uint16_t op)
{
	if (b->is_greeted || op == SUBLET__OP_HELLO) {
		b->is_greeted = true;
		return false;
	}
	refusal_read(b);
	return true;
}

/* ---- right requests ---- */

static void ask(struct both *b, uint16_t op)
{
	union {
		struct sublet__hello hello;
		struct sublet_arena_info info;
		struct sublet_stats stats;
	} r = { 0 };
	struct stat ours, theirs;
	int passed = -1;

	request_send(b, op, NULL, 0);
	if (is_refused(b, op))
		return;
	if (op == SUBLET__OP_HELLO) {
		reply_read(b, op, 0, &r, sizeof r.hello, NULL);
		assert_int_equal(r.hello.pid, getpid());
		assert_string_equal(r.hello.name, "model");
	} else if (op == SUBLET__OP_INFO) {
		reply_read(b, op, 0, &r, sizeof r.info, NULL);
		assert_true(!r.info.linear && r.info.fd == -1 && r.info.area_bytes == FAKE_AREA);
	} else if (op == SUBLET__OP_STATS) {
		reply_read(b, op, 0, &r, sizeof r.stats, NULL);
		assert_int_equal(r.stats.claims_held, b->held_count);
		assert_int_equal(r.stats.claims, b->claims);
	} else {
		reply_read(b, op, 0, NULL, 0, &passed);
		assert_true(passed >= 0 && !fstat(passed, &theirs) && !fstat(b->arena.fd, &ours));
		assert_int_equal(theirs.st_ino, ours.st_ino);
		close(passed);
	}
}

static const uint64_t claim_bytes[] = { 65536,        FAKE_BUSY,    FAKE_NOROOM, 4096, 0,
					FAKE_CROWDED, FAKE_TOO_BIG, UINT64_MAX,  1 };

/* What the pretended engine says to so many bytes. */
static int claim_answer(uint64_t bytes)
{
	if (bytes == FAKE_BUSY || bytes == FAKE_CROWDED)
		return -EBUSY;
	if (bytes == FAKE_NOROOM)
		return -ENOMEM;
	return bytes >= FAKE_TOO_BIG ? -E2BIG : bytes ? 0 : -EINVAL;
}

static void claim_send(struct both *b, uint64_t bytes, const char *owner, uint32_t reserved)
{
	struct sublet__claim_request request = { .bytes = bytes,
						 .deadline_ns = SUBLET_MS,
						 .reserved = reserved };

	memcpy(request.owner, owner, strnlen(owner, SUBLET_OWNER_BYTES));
	request_send(b, SUBLET__OP_CLAIM, &request, sizeof request);
}

static void claim(struct both *b, uint64_t bytes, uint32_t who, uint32_t reserved)
{
	static const char *const owner[] = { "nic", "", FAKE_HOSTILE };
	char want[SUBLET_OWNER_BYTES];
	struct sublet_claim reply;

	if (b->held_count == HELD_MAX)
		return;
	claim_send(b, bytes, owner[who], reserved);
	if (is_refused(b, SUBLET__OP_CLAIM))
		return;
	int err = reserved ? -EINVAL : claim_answer(bytes);
	reply_read(b, SUBLET__OP_CLAIM, err, &reply, sizeof reply, NULL);
	assert_null(reply.addr);
	assert_int_equal(reply.id, err ? 0 : b->next_id + 1);
	assert_int_equal(reply.bytes, err ? 0 : bytes);
	assert_int_equal(reply.blocker_count, err != -EBUSY        ? 0
					      : bytes == FAKE_BUSY ? 1
								   : SUBLET_BLOCKERS_MAX);
	if (!err)
		b->held[b->held_count++] = ++b->next_id;
	if (reserved)
		return;
	b->claims++;
	snprintf(want, sizeof want, who == 1 ? "pid %d" : who ? FAKE_HARMLESS : "nic", getpid());
	assert_true(fake_owner_has(&b->arena, want));
}

/* Twice is once too often, and what was never claimed cannot be released. */
static void release(struct both *b, uint64_t n)
{
	uint64_t id = n < b->held_count ? b->held[n] : n == HELD_MAX ? 0 : b->next_id + n;

	request_send(b, SUBLET__OP_RELEASE, &id, sizeof id);
	if (is_refused(b, SUBLET__OP_RELEASE))
		return;
	bool is_held = false;
	for (uint32_t i = 0; i < b->held_count; i++)
		if (b->held[i] == id) {
			b->held[i] = b->held[--b->held_count];
			is_held = true;
			break;
		}
	reply_read(b, SUBLET__OP_RELEASE, is_held ? 0 : -EINVAL, NULL, 0, NULL);
}

static void blocks(struct both *b, uint32_t first, uint32_t count)
{
	static struct sublet_pageblock reply[SUBLET__PAGEBLOCKS_MAX];
	struct sublet__pageblocks_request request = { first, count };
	bool fits = count <= SUBLET__PAGEBLOCKS_MAX;
	uint32_t want = first >= FAKE_BLOCKS || !fits ? 0
			: FAKE_BLOCKS - first < count ? FAKE_BLOCKS - first
						      : count;

	request_send(b, SUBLET__OP_PAGEBLOCKS, &request, sizeof request);
	if (is_refused(b, SUBLET__OP_PAGEBLOCKS))
		return;
	reply_read(b, SUBLET__OP_PAGEBLOCKS, fits ? 0 : -EINVAL, reply, want * (uint32_t)sizeof *reply, NULL);
	for (uint32_t i = 0; i < want; i++)
		assert_int_equal(reply[i].held_frames, (uint16_t)(first + i));
}

static void measure(struct both *b, uint64_t bytes)
{
	bool good = bytes && bytes <= FAKE_AREA;
	uint64_t ns;

	request_send(b, SUBLET__OP_MEMCPY, &bytes, sizeof bytes);
	if (is_refused(b, SUBLET__OP_MEMCPY))
		return;
	reply_read(b, SUBLET__OP_MEMCPY, good ? 0 : -EINVAL, &ns, sizeof ns, NULL);
	assert_int_equal(ns, good ? bytes / 8 : 0);
}

/* Number 2 i + 1 is entry i: how many of at most `count` there are from *next on, and where it goes on. */
static uint32_t list_want(uint64_t *next, uint32_t entries, uint32_t count)
{
	uint32_t want = 0;

	for (; want < count && *next < 2ull * entries; ++*next)
		want += *next % 2;
	return want;
}

static void list(struct both *b, uint32_t which, uint64_t next, uint32_t count, uint32_t reserved)
{
	static union {
		struct sublet__pins_reply pins;
		struct sublet__bos_reply bos;
	} r;
	struct sublet__list_request request = { next, count, reserved };
	uint16_t op = which ? SUBLET__OP_BOS : SUBLET__OP_PINS;
	size_t entry = which ? sizeof r.bos.bos[0] : sizeof r.pins.pins[0];
	bool good = count <= (which ? SUBLET__BOS_MAX : SUBLET__PINS_MAX) && !reserved;

	request_send(b, op, &request, sizeof request);
	if (is_refused(b, op))
		return;
	uint64_t first = next | 1, go_on = next;
	uint32_t want = good && count ? list_want(&go_on, which ? BOS : PINS, count) : 0;
	reply_read(b, op, good ? 0 : -EINVAL, &r, good ? (uint32_t)(sizeof r.pins.next + want * entry) : 0,
		   NULL);
	if (!good)
		return;
	assert_true(r.pins.next == go_on);
	for (uint32_t i = 0; i < want; i++) {
		const char *owner = which ? r.bos.bos[i].owner : r.pins.pins[i].owner;
		char text[SUBLET_OWNER_BYTES];
		snprintf(text, sizeof text, "%s %u", which ? "bo" : "pin", (uint32_t)(first / 2 + i));
		assert_string_equal(owner, (first / 2 + i) % 8 == 7 ? FAKE_HARMLESS : text);
	}
}

/* ---- wrong ones ---- */

/* Payload of a request; -1: there is none of that kind. Said again here, from control/protocol.h. */
static int payload_bytes(uint16_t op)
{
	static const int bytes[] = { -1, 0, 0, 0, 64, 8, 0, 8, 8, 16, 16 };

	return op < sizeof bytes / sizeof *bytes ? bytes[op] : -1;
}

/* A header alone decides whether the rest is read. If it is right, the request is one of zeros. */
static void head(struct both *b, const struct model_op *op)
{
	static const char zeros[256];
	struct sublet__message m = { .magic = SUBLET__PROTOCOL_MAGIC + (uint32_t)op->arg[0],
				     .version = (uint16_t)op->arg[1],
				     .op = (uint16_t)op->arg[2],
				     .bytes = (uint32_t)op->arg[3],
				     .error = (int32_t)op->arg[4] };

	bool right = m.magic == SUBLET__PROTOCOL_MAGIC && m.version == SUBLET__PROTOCOL_VERSION &&
		     payload_bytes(m.op) >= 0 && m.bytes == (uint32_t)payload_bytes(m.op) &&
		     (b->is_greeted || m.op == SUBLET__OP_HELLO);
	if (right && !m.bytes) {
		b->error = m.error;
		ask(b, m.op);
		b->error = 0;
		return;
	}
	if (right) /* those are the other operations' */
		m.version++;
	raw_send(b, &m, sizeof m);
	if (m.bytes <= sizeof zeros)
		raw_send(b, zeros, m.bytes);
	refusal_read(b);
}

/* Not even a whole request: the connection ends, and there is nothing to be said. */
static void half(struct both *b, uint16_t op, uint64_t n)
{
	int payload = payload_bytes(op);
	struct sublet__message m = { SUBLET__PROTOCOL_MAGIC, SUBLET__PROTOCOL_VERSION, op, (uint32_t)payload,
				     0 };
	char message[sizeof m + 256] = { 0 };

	memcpy(message, &m, sizeof m);
	n %= sizeof m + (size_t)payload;
	raw_send(b, message, n);
	shutdown(b->fd, SHUT_WR);
	if (n >= sizeof m && !b->is_greeted && op != SUBLET__OP_HELLO)
		refusal_read(b);
	else
		end_read(b);
}

/* A claim whose answer nobody reads is nobody's. */
static void vanish(struct both *b, uint64_t bytes)
{
	struct pollfd p = { .fd = b->fd, .events = POLLIN };

	if (!b->is_greeted)
		return;
	claim_send(b, bytes, "gone", 0);
	assert_int_equal(poll(&p, 1, 5000), 1);
	b->claims++;
	b->next_id += !claim_answer(bytes);
	close(b->fd);
	b->fd = -1;
	b->is_over = true;
}

static void step(void *unused, const struct model_op *op)
{
	static const uint16_t asks[] = { SUBLET__OP_HELLO, SUBLET__OP_INFO, SUBLET__OP_FD, SUBLET__OP_STATS };
	struct both *b = &both;
	const uint64_t *a = op->arg;
	(void)unused;

	if (b->is_over)
		return;
	if (op->kind == ASK)
		ask(b, asks[a[0] % 4]);
	if (op->kind == CLAIM)
		claim(b, claim_bytes[a[0] % 9], (uint32_t)(a[1] % 3), (uint32_t)a[2]);
	if (op->kind == RELEASE)
		release(b, a[0] % (HELD_MAX + 1));
	if (op->kind == BLOCKS)
		blocks(b, (uint32_t)a[0], (uint32_t)a[1]);
	if (op->kind == MEMCPY)
		measure(b, a[0]);
	if (op->kind == LIST)
		list(b, a[0] & 1, a[1], (uint32_t)a[2], (uint32_t)a[3]);
	if (op->kind == HEAD)
		head(b, op);
	if (op->kind == HALF)
		half(b, (uint16_t)(1 + a[0] % SUBLET__OP_BOS), a[1]);
	if (op->kind == PIECES) {
		b->piece = (uint32_t)(a[0] % 100);
		b->piece_fds = a[1] & 1;
	}
	if (op->kind == VANISH)
		vanish(b, claim_bytes[a[0] % 9]);
}

/* What the connection holds at its end is what the twin says, and no descriptor has come to stay. */
static void close_both(void *unused)
{
	struct both *b = &both;
	const struct sublet__slot *slot = &b->server.slots[0];
	(void)unused;

	if (b->fd >= 0) {
		shutdown(b->fd, SHUT_RDWR);
		close(b->fd);
	}
	assert_int_equal(pthread_join(b->thread, NULL), 0);
	assert_int_equal(slot->claim_count, b->held_count);
	for (uint32_t i = 0; i < b->held_count; i++)
		assert_true(slot->claims[i] == b->held[i]);
	assert_int_equal(b->arena.held, b->held_count);
	assert_int_equal(b->arena.claims, b->claims);
	close(slot->conn.fd);
	close(b->server.wake[0].fd);
	close(b->server.wake[1].fd);
	close(b->arena.fd);
	int lowest = dup(STDIN_FILENO);
	assert_true(lowest < 10); /* each list begins with the same ones open */
	close(lowest);
}

static void pick(const void *shape, uint32_t n, uint64_t *random, struct model_op *op)
{
	static const uint64_t counts[] = { 0,   1,   10,   127,  128,  129,       255,
					   256, 257, 4095, 4096, 4097, UINT32_MAX };
	(void)shape;

	/* Most lists say hello, and few of their operations end the conversation. */
	if (n == 0 && below(random, 20))
		*op = (struct model_op){ .kind = ASK };
	else if ((op->kind == HEAD || op->kind == HALF || op->kind == VANISH) && below(random, 8))
		op->kind = CLAIM;
	else
		op->arg[0] = below(random, 100);
	if (op->kind == CLAIM)
		op->arg[0] = below(random, 4) ? 0 : below(random, 9), op->arg[2] = !below(random, 20);
	if (op->kind == RELEASE)
		op->arg[0] = below(random, 2) ? below(random, 8) : below(random, HELD_MAX + 1);
	if (op->kind == CLAIM || op->kind == PIECES)
		op->arg[1] = below(random, 3);
	if (op->kind == PIECES)
		op->arg[0] = below(random, 2) ? below(random, 100) : below(random, 5);
	if (op->kind == HALF)
		op->arg[1] = below(random, 100);
	if (op->kind == BLOCKS || op->kind == LIST) {
		op->arg[1] = op->kind == LIST ? below(random, 900) : counts[below(random, 13)];
		op->arg[2] = counts[below(random, 13)];
		op->arg[3] = !below(random, 20);
		op->arg[0] = op->kind == LIST ? below(random, 2) : below(random, 6000);
	}
	if (op->kind == MEMCPY)
		op->arg[0] = below(random, 3) ? rng(random) % (2 * FAKE_AREA) : 0;
	if (op->kind == HEAD)
		*op = (struct model_op){
			HEAD, { !below(random, 3), below(random, 4), below(random, 13), below(random, 80), 0 }
		};
}

static const struct model control = { "control", kinds, NULL, open_both, step, close_both, pick, NULL, 0 };

static void control_random(void **unused)
{
	(void)unused;
	model_random(&control, 150, 60);
}

static void run_all(const struct model_op *op, uint32_t count)
{
	struct model_list one = { count, (struct model_op *)(uintptr_t)op };

	open_both(NULL);
	for (uint32_t i = 0; i < one.count; i++)
		step(NULL, &one.op[i]);
	close_both(NULL);
}

/* Every header of a few values each, before the greeting and after; every request cut off after every byte. */
static void control_enumerated(void **unused)
{
	static const uint64_t bytes[] = { 0, 1, 7, 8, 9, 15, 16, 17, 63, 64, 65, 256, 65536, UINT32_MAX };
	static const uint64_t ops[] = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 255, 256, 257, 65535 };
	struct model_op list[2] = { { ASK, { 0 } }, { HEAD, { 0 } } };
	uint32_t lists = 0;
	(void)unused;

	for (uint32_t o = 0; o < 16; o++)
		for (uint32_t n = 0; n < 14 * 2 * 4; n++, lists += 2) {
			list[1] =
				(struct model_op){ HEAD, { n / 4 % 2, n % 4, ops[o], bytes[n / 8], n % 3 } };
			run_all(list + 1, 1);
			run_all(list, 2);
		}
	for (uint64_t op = 0; op < SUBLET__OP_BOS; op++)
		for (uint64_t n = 0; n < 80; n++, lists += 2) {
			list[1] = (struct model_op){ HALF, { op, n } };
			run_all(list + 1, 1);
			run_all(list, 2);
		}
	print_message("%u lists\n", lists);
}

/* Every sequence of right ones. */
static void control_sequences(void **unused)
{
	static const struct model_op choice[] = {
		{ CLAIM, { 0 } },        { CLAIM, { 1 } },  { RELEASE, { 0 } },
		{ RELEASE, { 1 } },      { VANISH, { 0 } }, { ASK, { 3 } },
		{ LIST, { 0, 0, 256 } }, { ASK, { 0 } },    { PIECES, { 3, 1 } },
	};
	struct model m = control;
	(void)unused;

	m.name = "control-sequences";
	model_enumerate(&m, choice, sizeof choice / sizeof *choice, 4);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(control_random),
		cmocka_unit_test(control_enumerated),
		cmocka_unit_test(control_sequences),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
