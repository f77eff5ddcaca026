/* SPDX-License-Identifier: MIT */
/*
 * `sublet bos`: what devices look at.
 *
 * For each buffer object whether its device reaches it at this moment, and how often it was evicted and
 * bound again: a tracked buffer that is evicted all the time should be pinned or claimed, a pinned one
 * that is used once an hour should be tracked.
 */
#include "cli/listing.h"

static const char help[] =
	"usage: sublet bos [--json] [[-n] NAME|PID]\n"
	"\n"
	"Show the buffer objects of all devices of an instance, oldest first: device, kind, size, how much\n"
	"of it the device reaches now, jobs in flight, how often it was bound and evicted, age, owner.\n"
	"\n"
	"  claimed  over a claim: contiguous, never moves\n"
	"  pinned   over movable memory under a long-term pin: outside the area, never moves\n"
	"  tracked  over movable memory without a pin: evicted when it moves, bound again when it is used\n"
	"\n"
	"  -n, --name NAME|PID  the instance, also without -n; not needed where one runs\n"
	"  -j, --json           one JSON object: { \"bos\": [ { device, kind, owner, age_ns, bytes, ... } ] "
	"}\n"
	"  -h, --help           this text\n"
	"\n"
	"exit status: 0; 1 refused; 2 usage; 3 no such instance\n";

static const char *kind_of(const struct sublet_bo_info *bo)
{
	if (bo->flags & SUBLET_BO_CLAIMED)
		return "claimed";
	if (bo->flags & SUBLET_BO_PINNED)
		return "pinned";
	return bo->flags & SUBLET_BO_TRACKED ? "tracked" : "unknown";
}

static int fetch(struct sublet_client *client, uint64_t *next, size_t count, void *entries)
{
	return sublet_client_bos(client, next, count, entries);
}

static int compare(const void *a, const void *b)
{
	const struct sublet_bo_info *x = a, *y = b;

	return sublet__listing_order(x->age_ns, y->age_ns, x->addr, y->addr);
}

static void print_one(const struct sublet_bo_info *bo)
{
	sublet__print_left(10, bo->device[0] ? bo->device : "-");
	printf(" %-7s ", kind_of(bo));
	sublet__print_right(10, sublet__duration(bo->age_ns).text);
	printf(" %10s %10s %5u %8llu %8llu  %-6s  %s\n", sublet__bytes(bo->bytes).text,
	       sublet__bytes(bo->bound_bytes).text, bo->jobs, (unsigned long long)bo->binds,
	       (unsigned long long)bo->evictions, bo->flags & SUBLET_BO_READONLY ? "r" : "rw",
	       bo->owner[0] ? bo->owner : "-");
}

static void print(const void *entries, size_t count)
{
	const struct sublet_bo_info *bos = entries;
	uint64_t bytes = 0, bound_bytes = 0;

	printf("%-10s %-7s %10s %10s %10s %5s %8s %8s  %-6s  %s\n", "DEVICE", "KIND", "AGE", "SIZE", "BOUND",
	       "JOBS", "BINDS", "EVICTED", "ACCESS", "OWNER");
	for (size_t i = 0; i < count; i++) {
		print_one(&bos[i]);
		bytes += bos[i].bytes;
		bound_bytes += bos[i].bound_bytes;
	}
	printf("\n%zu %s, %s, %s of it bound\n", count, count == 1 ? "buffer" : "buffers",
	       sublet__bytes(bytes).text, sublet__bytes(bound_bytes).text);
}

static void json(cJSON *object, const void *entry)
{
	const struct sublet_bo_info *bo = entry;

	cJSON_AddStringToObject(object, "device", bo->device);
	cJSON_AddStringToObject(object, "kind", kind_of(bo));
	cJSON_AddStringToObject(object, "owner", bo->owner);
	sublet__json_u64(object, "age_ns", bo->age_ns);
	sublet__json_u64(object, "bytes", bo->bytes);
	sublet__json_u64(object, "bound_bytes", bo->bound_bytes);
	sublet__json_u64(object, "jobs", bo->jobs);
	sublet__json_u64(object, "binds", bo->binds);
	sublet__json_u64(object, "evictions", bo->evictions);
	cJSON_AddBoolToObject(object, "readonly", (bo->flags & SUBLET_BO_READONLY) != 0);
	sublet__json_u64(object, "addr", bo->addr);
	sublet__json_u64(object, "mm", bo->mm);
}

int sublet__cli_bos(int argc, char **argv)
{
	static const struct sublet__listing listing = {
		.command = "bos",
		.help = help,
		.nothing = "no device has a buffer object",
		.entry_bytes = sizeof(struct sublet_bo_info),
		.fetch = fetch,
		.compare = compare,
		.print = print,
		.json = json,
	};

	return sublet__cli_listing(&listing, argc, argv);
}
