/* SPDX-License-Identifier: MIT */
/*
 * sublet/ucx.h: messages by UCX from memory that moves in between. Each goes to this program itself, by whichever
 * transport there is; only some keep registrations, but the program is the same for all.
 *
 *   cc ucx.c $(pkg-config --cflags --libs sublet-ucx ucx)
 */
#include <sublet/arena.h>
#include <sublet/claim.h>
#include <sublet/map.h>
#include <sublet/pin.h>
#include <sublet/ucx.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <ucp/api/ucp.h>

#define AREA     (64 * SUBLET_MIB)
#define HEAP     (4 * SUBLET_MIB)
#define BYTES    (256 * SUBLET_KIB)
#define MESSAGES 4

struct link {
	ucp_context_h context;
	ucp_worker_h worker;
	ucp_ep_h ep;
};

static int fail(const char *what, int err)
{
	fprintf(stderr, "%s: %s\n", what, strerror(-err));
	return 1;
}

/* ---- UCX, as without sublet ---- */

static int status_errno(const char *what, ucs_status_t status)
{
	if (status == UCS_OK)
		return 0;
	fprintf(stderr, "%s: %s\n", what, ucs_status_string(status));
	return -EIO;
}

static int link_open(struct link *l)
{
	ucp_params_t params = { .field_mask = UCP_PARAM_FIELD_FEATURES, .features = UCP_FEATURE_TAG };
	ucp_worker_params_t worker = { .field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE,
				       .thread_mode = UCS_THREAD_MODE_SINGLE };
	ucp_address_t *self;
	size_t bytes;
	int err = status_errno("ucp_init", ucp_init(&params, NULL, &l->context));

	if (!err)
		err = status_errno("ucp_worker_create", ucp_worker_create(l->context, &worker, &l->worker));
	if (!err)
		err = status_errno("ucp_worker_get_address",
				   ucp_worker_get_address(l->worker, &self, &bytes));
	if (err)
		return err;
	ucp_ep_params_t ep = { .field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS, .address = self };
	err = status_errno("ucp_ep_create", ucp_ep_create(l->worker, &ep, &l->ep));
	ucp_worker_release_address(l->worker, self);
	return err;
}

/* Wait for a request, at most ten seconds; NULL was done at once. */
static int request_end(struct link *l, const char *what, ucs_status_ptr_t request)
{
	time_t until = time(NULL) + 10;
	ucs_status_t status = UCS_INPROGRESS;

	if (!UCS_PTR_IS_PTR(request))
		return status_errno(what, UCS_PTR_STATUS(request));
	while (status == UCS_INPROGRESS && time(NULL) < until) {
		ucp_worker_progress(l->worker);
		status = ucp_request_check_status(request);
	}
	ucp_request_free(request);
	return status_errno(what, status);
}

static void link_close(struct link *l)
{
	ucp_request_param_t none = { 0 };

	(void)request_end(l, "ucp_ep_close_nbx", ucp_ep_close_nbx(l->ep, &none));
	ucp_worker_destroy(l->worker);
	ucp_cleanup(l->context);
}

static int message_send(struct link *l, char *from, char *to)
{
	ucp_request_param_t none = { 0 };
	ucs_status_ptr_t recv = ucp_tag_recv_nbx(l->worker, to, BYTES, 1, UINT64_MAX, &none);
	int err = request_end(l, "send", ucp_tag_send_nbx(l->ep, from, BYTES, 1, &none));
	int received = request_end(l, "receive", recv);

	return err ? err : received;
}

/* ---- what sublet asks for ---- */

/* The one rule: memory is pinned for as long as a registration of it is in use. */
static int message_send_pinned(struct link *l, struct sublet_mm *mm, char *from, char *to)
{
	struct sublet_pin pin[2];
	int err = sublet_pin(mm, from, BYTES, SUBLET_PIN_READ, NULL, &pin[0]);

	if (err)
		return err;
	err = sublet_pin(mm, to, BYTES, SUBLET_PIN_WRITE, NULL, &pin[1]);
	if (!err) {
		err = message_send(l, from, to);
		int unpin = sublet_unpin(&pin[1]);
		err = err ? err : unpin;
	}
	int unpin = sublet_unpin(&pin[0]);
	return err ? err : unpin;
}

/* All of the area, so that what lives there moves out. */
static int move_all(struct sublet_arena *arena, uint64_t *moved_bytes)
{
	struct sublet_claim claim;
	int err = sublet_claim(arena, AREA, NULL, &claim);

	if (err)
		return err;
	*moved_bytes += claim.moved_bytes;
	return sublet_release(arena, &claim);
}

static int talk(struct link *l, struct sublet_arena *arena, char *heap)
{
	uint64_t moved_bytes = 0;
	int whole = 0, err = 0;

	for (int i = 0; i < MESSAGES && !err; i++) {
		char *from = heap, *to = heap + HEAP / 2;
		memset(from, '0' + i, BYTES);
		err = message_send_pinned(l, sublet_arena_mm(arena), from, to);
		whole += !err && !memcmp(from, to, BYTES);
		/* Between two messages the memory is nobody's but the program's, and may move. */
		if (!err)
			err = move_all(arena, &moved_bytes);
	}
	printf("%d of %d messages came whole, %llu MiB moved in between\n", whole, MESSAGES,
	       (unsigned long long)(moved_bytes / SUBLET_MIB));
	return err ? err : whole == MESSAGES ? 0 : -EIO;
}

int main(void)
{
	struct sublet_arena_options options = { SUBLET_OPTIONS(sublet_arena_options), .area_bytes = AREA,
						.normal_bytes = AREA };
	struct sublet_ucx_watch *watch;
	struct link link = { 0 };
	struct sublet_arena *arena;
	void *heap;
	int err = sublet_arena_create(&options, &arena);

	if (err)
		return fail("create an arena (sublet doctor says more)", err);
	err = sublet_map(sublet_arena_mm(arena), HEAP, SUBLET_MOVABLE, &heap);
	if (err)
		return fail("map", err);

	/* Once, all the memory that buffers will ever lie in, before UCX sees any of it. */
	err = sublet_ucx_watch(sublet_arena_mm(arena), heap, HEAP, &watch);
	if (err)
		return fail("watch", err);
	err = link_open(&link);
	if (!err)
		err = talk(&link, arena, heap);
	if (err)
		return fail("a message", err);

	link_close(&link);
	sublet_ucx_unwatch(watch);
	err = sublet_arena_destroy(arena);
	return err ? fail("destroy the arena", err) : 0;
}
