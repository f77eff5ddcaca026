/* SPDX-License-Identifier: MIT */
/*
 * Lists of what an instance holds: `sublet pins`, `sublet bos`.
 *
 * A list is read whole before any of it is shown, because it is sorted. Entries come and go meanwhile, so it
 * is no picture of one moment; each entry by itself is right.
 */
#include "cli/listing.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define ROOM_MIN 256u
#define ROOM_MAX (1u << 20) /* far more than an arena can list: whoever sends that many does not end */

int sublet__listing_order(uint64_t age_a_ns, uint64_t age_b_ns, uint64_t addr_a, uint64_t addr_b)
{
	if (age_a_ns != age_b_ns)
		return age_a_ns > age_b_ns ? -1 : 1;
	return (addr_a > addr_b) - (addr_a < addr_b);
}

/* All entries, sorted, for the caller to free. Returns how many, or -errno. */
static int get_entries(const struct sublet__listing *l, struct sublet_client *client, char **out)
{
	size_t room = ROOM_MIN, done = 0;
	char *entries = malloc(room * l->entry_bytes);
	uint64_t next = 0;
	int n = entries ? 1 : -ENOMEM;

	while (n > 0 && done < ROOM_MAX) {
		if (done == room) {
			char *more = realloc(entries, 2 * room * l->entry_bytes);

			if (!more) {
				n = -ENOMEM;
				break;
			}
			entries = more;
			room *= 2;
		}
		n = l->fetch(client, &next, room - done, entries + done * l->entry_bytes);
		done += n > 0 ? (size_t)n : 0;
	}
	if (n) { /* above 0: a list without an end */
		free(entries);
		return n < 0 ? n : -EPROTO;
	}
	qsort(entries, done, l->entry_bytes, l->compare);
	*out = entries;
	return (int)done;
}

static int print_json(const struct sublet__listing *l, const struct sublet_instance *in, const char *entries,
		      size_t count)
{
	cJSON *root = cJSON_CreateObject(), *array;

	sublet__json_instance(root, in);
	array = cJSON_AddArrayToObject(root, l->command);
	for (size_t i = 0; i < count; i++) {
		cJSON *o = cJSON_CreateObject();

		l->json(o, entries + i * l->entry_bytes);
		cJSON_AddItemToArray(array, o);
	}
	return sublet__json_print(root);
}

static int list_instance(const struct sublet__listing *l, const char *instance, bool json)
{
	struct sublet_client *client = NULL;
	const struct sublet_instance *in;
	char *entries = NULL;
	int n, code = sublet__cli_connect(instance, &client);

	if (code)
		return code;
	in = sublet_client_instance(client);
	n = get_entries(l, client, &entries);
	if (n < 0) {
		code = sublet__cli_call_failed(client, "ask", n);
	} else if (json) {
		code = print_json(l, in, entries, (size_t)n);
	} else {
		printf("%s (pid %d)\n\n", in->name, (int)in->pid);
		if (n)
			l->print(entries, (size_t)n);
		else
			puts(l->nothing);
	}
	free(entries);
	sublet_client_close(client);
	return code;
}

int sublet__cli_listing(const struct sublet__listing *listing, int argc, char **argv)
{
	const char *instance = NULL;
	bool json = false;
	int code;

	if (!sublet__instance_options(argc, argv, listing->help, &instance, &json, NULL, &code))
		return code;
	return list_instance(listing, instance, json);
}
