/* SPDX-License-Identifier: MIT */
/* cli/listing.h: what the subcommands that list one kind of thing of an instance have in common. */
#ifndef SUBLET_CLI_LISTING_H
#define SUBLET_CLI_LISTING_H

#include "cli/json.h"

struct sublet__listing {
	const char *command; /* its name; the array in the JSON output too */
	const char *help;
	const char *nothing; /* what to say where the list is empty */
	size_t entry_bytes;
	/* As sublet_client_pins, for any kind of entry. */
	int (*fetch)(struct sublet_client *client, uint64_t *next, size_t count, void *entries);
	int (*compare)(const void *a, const void *b); /* for qsort: what comes first */
	void (*print)(const void *entries, size_t count);
	void (*json)(cJSON *object, const void *entry);
};

/* The whole subcommand: options, connection, list, output. Returns an exit code. */
int sublet__cli_listing(const struct sublet__listing *listing, int argc, char **argv);

/* Longest age first, then lowest address: for compare. */
int sublet__listing_order(uint64_t age_a_ns, uint64_t age_b_ns, uint64_t addr_a, uint64_t addr_b);

#endif
