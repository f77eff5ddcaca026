/* SPDX-License-Identifier: MIT */
/*
 * control/protocol.h: what goes over the control socket.
 *
 * A Unix stream socket of the user's own, one request at a time, each answered by one reply. Both
 * begin with struct sublet__message, in the byte order of the machine (both ends are on it), and
 * `bytes` of payload follow. The server never trusts a length: a request's payload has exactly the
 * size of its kind, anything else ends the connection with SUBLET__OP_ERROR / -EPROTO.
 *
 * The first request is HELLO, complete within SUBLET__MESSAGE_TIMEOUT_NS of the connection; a
 * message that has begun is complete within the same time. Between messages a connection may be
 * silent for ever: a driver that holds a claim has nothing to say.
 *
 * SUBLET__OP_ERROR is the last message of a connection: -EPROTO, -EACCES (another user), -EUSERS
 * (too many connections), -EAGAIN (no thread for one more), -ETIMEDOUT (half a message).
 */
#ifndef SUBLET_CONTROL_PROTOCOL_H
#define SUBLET_CONTROL_PROTOCOL_H

#include <sublet/arena.h>
#include <sublet/bo.h>
#include <sublet/claim.h>
#include <sublet/pin.h>
#include <sublet/stats.h>

#define SUBLET__PROTOCOL_MAGIC   0x544c4253u /* "SBLT" */
#define SUBLET__PROTOCOL_VERSION 2u

#define SUBLET__MESSAGE_TIMEOUT_NS (2 * SUBLET_SEC)

enum sublet__op {
	SUBLET__OP_HELLO = 1,  /* reply: struct sublet__hello */
	SUBLET__OP_INFO,       /* reply: struct sublet_arena_info */
	SUBLET__OP_FD,         /* reply: no payload, the descriptor rides along (SCM_RIGHTS) */
	SUBLET__OP_CLAIM,      /* struct sublet__claim_request -> struct sublet_claim, on errors too */
	SUBLET__OP_RELEASE,    /* uint64_t id -> nothing */
	SUBLET__OP_STATS,      /* reply: struct sublet_stats */
	SUBLET__OP_PAGEBLOCKS, /* struct sublet__pageblocks_request -> array of struct sublet_pageblock */
	SUBLET__OP_MEMCPY,     /* uint64_t bytes -> uint64_t ns */
	SUBLET__OP_PINS, /* struct sublet__list_request -> as much as is used of struct sublet__pins_reply */
	SUBLET__OP_BOS,  /* struct sublet__list_request -> as much as is used of struct sublet__bos_reply */
	SUBLET__OP_ERROR = 255, /* reply only: the request made no sense */
};

struct sublet__message {
	uint32_t magic;
	uint16_t version;
	uint16_t op;
	uint32_t bytes; /* of payload */
	int32_t error;  /* replies: 0 or -errno of the call; requests: 0 */
};

struct sublet__hello {
	int32_t pid;
	uint32_t reserved;
	char name[SUBLET_NAME_BYTES];
};

struct sublet__claim_request {
	uint64_t bytes;
	uint64_t align_bytes;
	uint64_t deadline_ns;
	uint32_t flags;
	uint32_t reserved;
	char owner[SUBLET_OWNER_BYTES]; /* "" lets the server write "pid PID" of the peer */
};

struct sublet__pageblocks_request {
	uint32_t first;
	uint32_t count; /* at most SUBLET__PAGEBLOCKS_MAX */
};

#define SUBLET__PAGEBLOCKS_MAX 4096u

/*
 * Part of a list that changes while it is read: from number `next` on, which is 0 at first and then what the last
 * reply said. A reply without entries is the end. Owner tags in replies are printable and ended; addresses mean
 * something in the instance only.
 */
struct sublet__list_request {
	uint64_t next;
	uint32_t count; /* at most SUBLET__PINS_MAX, SUBLET__BOS_MAX */
	uint32_t reserved;
};

#define SUBLET__PINS_MAX 256u
#define SUBLET__BOS_MAX  128u

struct sublet__pins_reply {
	uint64_t next;
	struct sublet_pin_info pins[SUBLET__PINS_MAX];
};

struct sublet__bos_reply {
	uint64_t next;
	struct sublet_bo_info bos[SUBLET__BOS_MAX];
};

#define SUBLET__REPLY_BYTES_MAX (SUBLET__PAGEBLOCKS_MAX * sizeof(struct sublet_pageblock))

_Static_assert(sizeof(struct sublet__message) == 16, "the header has no padding");
_Static_assert(sizeof(struct sublet_claim) <= SUBLET__REPLY_BYTES_MAX, "every reply fits");
_Static_assert(sizeof(struct sublet_stats) <= SUBLET__REPLY_BYTES_MAX, "every reply fits");
_Static_assert(sizeof(struct sublet__pins_reply) <= SUBLET__REPLY_BYTES_MAX, "every reply fits");
_Static_assert(sizeof(struct sublet__bos_reply) <= SUBLET__REPLY_BYTES_MAX, "every reply fits");
_Static_assert(sizeof(struct sublet_pin_info) == 64, "no padding, through which memory would leak");
_Static_assert(sizeof(struct sublet_bo_info) == 128, "no padding, through which memory would leak");

#endif
