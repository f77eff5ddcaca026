/* SPDX-License-Identifier: MIT */
/*
 * sublet/ofi.h: messages by libfabric from memory that moves in between. Each goes to this program itself, by whichever
 * provider there is; only one for a real network card keeps registrations, but the program is the same.
 *
 *   cc ofi.c $(pkg-config --cflags --libs sublet-ofi libfabric)
 */
#include <sublet/arena.h>
#include <sublet/claim.h>
#include <sublet/map.h>
#include <sublet/ofi.h>
#include <sublet/pin.h>

#include <errno.h>
#include <rdma/fabric.h>
#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define AREA     (64 * SUBLET_MIB)
#define HEAP     (4 * SUBLET_MIB)
#define BYTES    (64 * SUBLET_KIB)
#define MESSAGES 4

struct link {
	struct fi_info *info;
	struct fid_fabric *fabric;
	struct fid_domain *domain;
	struct fid_cq *cq;
	struct fid_av *av;
	struct fid_ep *ep;
	fi_addr_t self;
};

static int fail(const char *what, int err)
{
	fprintf(stderr, "%s: %s\n", what, err < 0 ? fi_strerror(-err) : "?");
	return 1;
}

/* ---- libfabric, as without sublet ---- */

static int link_find(struct link *l)
{
	struct fi_info *hints = fi_allocinfo();

	if (!hints)
		return -ENOMEM;
	hints->caps = FI_MSG;
	hints->ep_attr->type = FI_EP_RDM;
	hints->domain_attr->mr_mode = FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY;
	int err = fi_getinfo(FI_VERSION(1, 14), "127.0.0.1", NULL, FI_SOURCE, hints, &l->info);
	fi_freeinfo(hints);
	return err;
}

static int link_open(struct link *l)
{
	struct fi_cq_attr cq = { .format = FI_CQ_FORMAT_CONTEXT };
	struct fi_av_attr av = { .type = FI_AV_MAP };
	char name[256];
	size_t bytes = sizeof name;
	int err = fi_fabric(l->info->fabric_attr, &l->fabric, NULL);

	if (!err)
		err = fi_domain(l->fabric, l->info, &l->domain, NULL);
	if (!err)
		err = fi_cq_open(l->domain, &cq, &l->cq, NULL);
	if (!err)
		err = fi_av_open(l->domain, &av, &l->av, NULL);
	if (!err)
		err = fi_endpoint(l->domain, l->info, &l->ep, NULL);
	if (!err)
		err = fi_ep_bind(l->ep, &l->cq->fid, FI_SEND | FI_RECV);
	if (!err)
		err = fi_ep_bind(l->ep, &l->av->fid, 0);
	if (!err)
		err = fi_enable(l->ep);
	if (!err)
		err = fi_getname(&l->ep->fid, name, &bytes);
	if (err)
		return err;
	return fi_av_insert(l->av, name, 1, &l->self, 0, NULL) == 1 ? 0 : -FI_EADDRNOTAVAIL;
}

static void link_close(struct link *l)
{
	(void)fi_close(&l->ep->fid);
	(void)fi_close(&l->av->fid);
	(void)fi_close(&l->cq->fid);
	(void)fi_close(&l->domain->fid);
	(void)fi_close(&l->fabric->fid);
	fi_freeinfo(l->info);
}

/* Wait until both ends of a message are done with their memory. */
static int completions_wait(struct link *l, int count)
{
	time_t until = time(NULL) + 10;

	while (count && time(NULL) < until) {
		struct fi_cq_entry entry;
		ssize_t n = fi_cq_read(l->cq, &entry, 1);
		if (n < 0 && n != -FI_EAGAIN)
			return (int)n;
		count -= n == 1;
	}
	return count ? -FI_ETIMEDOUT : 0;
}

static int message_post(struct link *l, char *from, void *from_desc, char *to, void *to_desc)
{
	ssize_t err;

	do
		err = fi_recv(l->ep, to, BYTES, to_desc, FI_ADDR_UNSPEC, NULL);
	while (err == -FI_EAGAIN && fi_cq_read(l->cq, NULL, 0) == -FI_EAGAIN);
	if (err)
		return (int)err;
	do
		err = fi_send(l->ep, from, BYTES, from_desc, l->self, NULL);
	while (err == -FI_EAGAIN && fi_cq_read(l->cq, NULL, 0) == -FI_EAGAIN);
	return (int)err;
}

static int message_send(struct link *l, char *from, char *to)
{
	struct fid_mr *mr[2] = { NULL, NULL };
	int err = fi_mr_reg(l->domain, from, BYTES, FI_SEND, 0, 0, 0, &mr[0], NULL);

	if (!err)
		err = fi_mr_reg(l->domain, to, BYTES, FI_RECV, 0, 1, 0, &mr[1], NULL);
	if (!err)
		err = message_post(l, from, fi_mr_desc(mr[0]), to, fi_mr_desc(mr[1]));
	if (!err)
		err = completions_wait(l, 2);
	for (int i = 0; i < 2; i++)
		if (mr[i])
			(void)fi_close(&mr[i]->fid); /* kept in the cache, if there is one */
	return err;
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
	printf("%d of %d messages came whole by %s, %llu MiB moved in between\n", whole, MESSAGES,
	       l->info->fabric_attr->prov_name, (unsigned long long)(moved_bytes / SUBLET_MIB));
	return err ? err : whole == MESSAGES ? 0 : -EIO;
}

int main(void)
{
	struct sublet_arena_options options = { SUBLET_OPTIONS(sublet_arena_options), .area_bytes = AREA,
						.normal_bytes = AREA };
	struct link link = { 0 };
	struct sublet_ofi_watch *watch;
	struct sublet_arena *arena;
	struct sublet_ofi *ofi;
	void *heap;
	int err = sublet_arena_create(&options, &arena);

	if (err)
		return fail("create an arena (sublet doctor says more)", err);
	err = sublet_map(sublet_arena_mm(arena), HEAP, SUBLET_MOVABLE, &heap);
	if (err)
		return fail("map", err);

	/* Before the first domain; and then, once, all the memory that buffers will ever lie in. */
	err = sublet_ofi_open(&ofi);
	if (err)
		return fail("become libfabric's monitor", err);
	err = sublet_ofi_watch(ofi, sublet_arena_mm(arena), heap, HEAP, &watch);
	if (err)
		return fail("watch", err);
	err = link_find(&link);
	if (err) {
		printf("libfabric has no provider for messages here: %s\n", fi_strerror(-err));
		return 77;
	}
	err = link_open(&link);
	if (!err)
		err = talk(&link, arena, heap);
	if (err)
		return fail("a message", err);

	/* The other way round: domains first, then what watches over them. */
	link_close(&link);
	sublet_ofi_unwatch(watch);
	err = sublet_ofi_close(ofi);
	if (err)
		return fail("stop being the monitor", err);
	err = sublet_arena_destroy(arena);
	return err ? fail("destroy the arena", err) : 0;
}
