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
#include <pthread.h>
#include <stdbool.h>
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

/* One instance, and what it answers. */
struct row {
	struct sublet_instance in;
	struct sublet_stats stats;
	int err;
	pthread_t thread;
	bool has_thread;
};

/* Ask one instance for its sizes. */
static void *ask(void *arg)
{
	struct row *row = arg;
	char pid[16];
	struct sublet_client *client;

	row->stats = (struct sublet_stats){ SUBLET_OPTIONS(sublet_stats) };
	snprintf(pid, sizeof(pid), "%d", (int)row->in.pid);
	row->err = sublet_client_connect(row->in.name, &client);
	if (row->err == -ENOTUNIQ)
		row->err = sublet_client_connect(pid, &client);
	if (row->err)
		return NULL;
	row->err = sublet_client_stats(client, &row->stats);
	sublet_client_close(client);
	return NULL;
}

/* All at once: one that is stopped is waited for some seconds, and so are ten. */
static void ask_all(struct row *rows, int n)
{
	for (int i = 0; i < n; i++) {
		rows[i].has_thread = !pthread_create(&rows[i].thread, NULL, ask, &rows[i]);
		if (!rows[i].has_thread)
			ask(&rows[i]);
	}
	for (int i = 0; i < n; i++)
		if (rows[i].has_thread)
			pthread_join(rows[i].thread, NULL);
}

static void print_one(const struct row *row)
{
	const struct sublet_stats *s = &row->stats;

	printf("%-24s %7d  ", row->in.name, (int)row->in.pid);
	if (row->err)
		puts(sublet__errno_text(row->err));
	else
		printf("%10s %10s %10s\n", sublet__bytes(s->area_bytes).text,
		       sublet__bytes(s->lent_bytes).text, sublet__bytes(s->area_claimed_bytes).text);
}

static void json_one(cJSON *array, const struct row *row)
{
	const struct sublet_stats *s = &row->stats;
	cJSON *o = cJSON_CreateObject();

	cJSON_AddStringToObject(o, "name", row->in.name);
	cJSON_AddNumberToObject(o, "pid", row->in.pid);
	sublet__json_error(o, "error", row->err);
	if (!row->err) {
		sublet__json_u64(o, "area_bytes", s->area_bytes);
		sublet__json_u64(o, "lent_bytes", s->lent_bytes);
		sublet__json_u64(o, "claimed_bytes", s->area_claimed_bytes);
		sublet__json_u64(o, "claims_held", s->claims_held);
	}
	cJSON_AddItemToArray(array, o);
}

/* All instances; a few may start between counting and reading. The number, or -errno. */
static int get_rows(struct row **out)
{
	struct sublet_instance *in;
	int room = 16, n;

	for (;; room = n + 16) {
		in = calloc((size_t)room, sizeof(*in));
		if (!in)
			return -ENOMEM;
		n = sublet_instance_list(in, (size_t)room);
		if (n <= room)
			break;
		free(in);
	}
	struct row *rows = n > 0 ? calloc((size_t)n, sizeof(*rows)) : NULL;
	for (int i = 0; rows && i < n; i++)
		rows[i].in = in[i];
	free(in);
	*out = rows;
	return n > 0 && !rows ? -ENOMEM : n;
}

static int list(bool json)
{
	struct row *rows = NULL;
	cJSON *root = NULL, *array = NULL;
	int n = get_rows(&rows);

	if (n < 0)
		return sublet__cli_directory_failed(n);
	ask_all(rows, n);
	if (json) {
		root = cJSON_CreateObject();
		array = cJSON_AddArrayToObject(root, "instances");
	} else if (!n) {
		puts("no instance is running");
	} else {
		printf("%-24s %7s  %10s %10s %10s\n", "NAME", "PID", "AREA", "LENT", "CLAIMED");
	}
	for (int i = 0; i < n; i++)
		if (json)
			json_one(array, &rows[i]);
		else
			print_one(&rows[i]);
	free(rows);
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
