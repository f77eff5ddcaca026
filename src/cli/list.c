/* SPDX-License-Identifier: MIT */
/*
 * `sublet list`: who runs.
 *
 * Looking is also cleaning: the library removes the sockets of dead instances on the way. An
 * instance that does not answer in time is shown all the same, without its sizes.
 */
#include "cli/cli.h"
#include "cli/json.h"

#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

static void print_help(void)
{
	fputs("usage: sublet list [--json]\n"
	      "\n"
	      "Show the running instances of this user: name, pid, area, how much of it is lent or claimed.\n"
	      "Sockets that dead instances left behind are removed.\n"
	      "\n"
	      "  -j, --json  one JSON object: { \"instances\": [ { name, pid, area_bytes, ... } ] }\n"
	      "  -h, --help  this text\n"
	      "\n"
	      "exit status: 0, also where nothing runs; 1 the directory cannot be read; 2 usage\n",
	      stdout);
}

/* Ask one instance for its sizes. */
static int ask(const struct sublet_instance *in, struct sublet_stats *stats)
{
	char pid[16];
	struct sublet_client *client;
	int err;

	snprintf(pid, sizeof(pid), "%d", (int)in->pid);
	err = sublet_client_connect(in->name, &client);
	if (err == -ENOTUNIQ)
		err = sublet_client_connect(pid, &client);
	if (err)
		return err;
	memset(stats, 0, sizeof(*stats));
	stats->size_bytes = sizeof(*stats);
	err = sublet_client_stats(client, stats);
	sublet_client_close(client);
	return err;
}

static void print_one(const struct sublet_instance *in, int err, const struct sublet_stats *s)
{
	if (err) {
		printf("%-24s %7d  %s\n", in->name, (int)in->pid, sublet__errno_text(err));
		return;
	}
	printf("%-24s %7d  %10s %10s %10s\n", in->name, (int)in->pid, sublet__bytes(s->area_bytes).text,
	       sublet__bytes(s->lent_bytes).text, sublet__bytes(s->area_claimed_bytes).text);
}

static void json_one(cJSON *array, const struct sublet_instance *in, int err, const struct sublet_stats *s)
{
	cJSON *o = cJSON_CreateObject();

	cJSON_AddStringToObject(o, "name", in->name);
	cJSON_AddNumberToObject(o, "pid", in->pid);
	sublet__json_error(o, "error", err);
	if (!err) {
		sublet__json_u64(o, "area_bytes", s->area_bytes);
		sublet__json_u64(o, "lent_bytes", s->lent_bytes);
		sublet__json_u64(o, "claimed_bytes", s->area_claimed_bytes);
		sublet__json_u64(o, "claims_held", s->claims_held);
	}
	cJSON_AddItemToArray(array, o);
}

/* All instances; a few may start between counting and reading. */
static int get_instances(struct sublet_instance **out)
{
	int room = 16;

	for (;;) {
		struct sublet_instance *in = calloc((size_t)room, sizeof(*in));
		int n;

		if (!in)
			return -ENOMEM;
		n = sublet_instance_list(in, (size_t)room);
		if (n >= 0 && n <= room) {
			*out = in;
			return n;
		}
		free(in);
		if (n < 0)
			return n;
		room = n + 16;
	}
}

static int list(bool json)
{
	struct sublet_instance *in = NULL;
	cJSON *root = NULL, *array = NULL;
	int n = get_instances(&in);

	if (n < 0)
		return sublet__cli_directory_failed(n);
	if (json) {
		root = cJSON_CreateObject();
		array = cJSON_AddArrayToObject(root, "instances");
	} else if (!n) {
		puts("no instance is running");
	} else {
		printf("%-24s %7s  %10s %10s %10s\n", "NAME", "PID", "AREA", "LENT", "CLAIMED");
	}
	for (int i = 0; i < n; i++) {
		struct sublet_stats stats;
		int err = ask(&in[i], &stats);

		if (json)
			json_one(array, &in[i], err, &stats);
		else
			print_one(&in[i], err, &stats);
	}
	free(in);
	return json ? sublet__json_print(root) : SUBLET__EXIT_OK;
}

int sublet__cli_list(int argc, char **argv)
{
	static const struct option options[] = {
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	bool json = false;
	int c;

	opterr = 0;
	while ((c = getopt_long(argc, argv, ":jh", options, NULL)) != -1) {
		if (c == 'h') {
			print_help();
			return SUBLET__EXIT_OK;
		}
		if (c != 'j')
			return sublet__option_error("list", c, argv);
		json = true;
	}
	if (optind < argc)
		return sublet__extra_argument("list", argv[optind]);
	return list(json);
}
