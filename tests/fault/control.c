/* SPDX-License-Identifier: MIT */
/*
 * Scenarios: the control socket and its client, both ends in one process.
 *
 * The server goes with the arena, so what it leaves behind shows once the arena is destroyed.
 */
#include "scenarios.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int serve(struct world *w)
{
	return sublet_arena_serve(w->arena, "fault");
}

static void served(struct world *w)
{
	must(!sublet_client_connect("fault", &w->client));
	sublet_client_close(w->client);
}

static void serve_make(struct world *w)
{
	must(!serve(w));
}

static int list(struct world *w)
{
	struct sublet_instance instances[4];
	int found = sublet_instance_list(instances, 4);

	(void)w;
	return found < 0 ? found : 0;
}

static int connect_only(struct world *w)
{
	return sublet_client_connect("fault", &w->client);
}

static void client_close(struct world *w)
{
	sublet_client_close(w->client);
}

static void connect_make(struct world *w)
{
	serve_make(w);
	must(!connect_only(w));
}

static int claim_release(struct world *w)
{
	const struct sublet_claim_options options = { SUBLET_OPTIONS(sublet_claim_options),
						      .deadline_ns = 30 * SUBLET_MS };
	int err = sublet_client_claim(w->client, SUBLET_MIB, &options, &w->claim);

	return err ? err : sublet_client_release(w->client, &w->claim);
}

static int questions(struct world *w)
{
	struct sublet_arena_info info = { SUBLET_OPTIONS(sublet_arena_info) };
	struct sublet_stats stats = { SUBLET_OPTIONS(sublet_stats) };
	struct sublet_pageblock blocks[8];
	struct sublet_pin_info pins[4];
	struct sublet_bo_info bos[4];
	uint64_t next = 0, none = 0;
	int err = sublet_client_info(w->client, &info);

	err = err ? err : sublet_client_stats(w->client, &stats);
	if (!err && (err = sublet_client_pageblocks(w->client, 0, 8, blocks)) >= 0)
		err = sublet_client_pins(w->client, &next, 4, pins);
	if (err >= 0)
		err = sublet_client_bos(w->client, &none, 4, bos);
	return err < 0 ? err : 0;
}

static int descriptor(struct world *w)
{
	int fd, err = sublet_client_fd(w->client, &fd);

	if (!err)
		close(fd);
	return err;
}

/* Everything that a driver does, with the server's calls failing too. */
static int driver(struct world *w)
{
	int err = connect_only(w);

	if (err)
		return err;
	err = claim_release(w);
	err = err ? err : descriptor(w);
	sublet_client_close(w->client);
	return err;
}

/* A driver that was let down holds claims until its process has ended: the arena ends here, and they with it. */
const struct scenario control_scenarios[] = {
	{ "arena_serve", MAY_SUCCEED, NULL, serve, served, NULL },
	{ "instance_list", MAY_SUCCEED, serve_make, list, NULL, NULL },
	{ "client_connect", MAY_SUCCEED, serve_make, connect_only, client_close, NULL },
	{ "client_claim, release", MAY_SUCCEED | MAY_HOLD, connect_make, claim_release, NULL, client_close },
	{ "client_info, stats, lists", MAY_SUCCEED, connect_make, questions, NULL, client_close },
	{ "client_fd", MAY_SUCCEED, connect_make, descriptor, NULL, client_close },
	{ "a driver, all threads", ALL_CALLS | MAY_SUCCEED | MAY_ABORT | MAY_HOLD, serve_make, driver, NULL,
	  NULL },
	{ NULL },
};
