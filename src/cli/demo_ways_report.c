/* SPDX-License-Identifier: MIT */
/*
 * What the three ways came to, as one table or as JSON. A column is a way; each number is the sum, or the
 * rate, over all its rounds.
 */
#include "cli/demo_ways.h"
#include "cli/json.h"

#include <string.h>

struct column {
	const char *name; /* JSON */
	const char *title;
	const char *subtitle;
};

static const struct column columns[SUBLET__WAYS] = {
	[SUBLET__WAY_CLAIMED] = { "claimed", "claimed", "one piece" },
	[SUBLET__WAY_PINNED] = { "pinned", "pinned", "long-term" },
	[SUBLET__WAY_TRACKED] = { "tracked", "tracked", "no pin" },
};

static uint64_t percentile(const struct sublet__way_result *r, uint64_t permille)
{
	return sublet__demo_permille(r->latency_ns, sublet__way_latencies(r), permille);
}

static uint64_t per_second(uint64_t count, const struct sublet__way_result *r)
{
	return r->elapsed_ns ? (uint64_t)((double)count * 1e9 / (double)r->elapsed_ns) : 0;
}

bool sublet__ways_good(const struct sublet__ways_results *results)
{
	const struct sublet__ways_load *load = &results->load;
	bool good = !results->bad_accesses && !load->windows_wrong && !sublet__ways_load_wrong(load);

	for (uint32_t way = 0; way < SUBLET__WAYS + 1; way++) {
		const struct sublet__way_result *r = &load->result[way];

		good &= !r->wrong && r->claims_succeeded == r->claims;
		good &= way == SUBLET__WAYS || (r->good > 0 && r->claims > 0);
	}
	return good;
}

/* ---- the table ---- */

static void print_row(const char *title, const struct sublet__ways_load *load,
		      struct sublet__text (*text)(const struct sublet__way_result *r))
{
	printf("%-26s", title);
	for (uint32_t way = 0; way < SUBLET__WAYS; way++) {
		fputs("  ", stdout);
		sublet__print_right(14, text(&load->result[way]).text);
	}
	putchar('\n');
}

static struct sublet__text number(uint64_t value)
{
	struct sublet__text t;

	snprintf(t.text, sizeof(t.text), "%llu", (unsigned long long)value);
	return t;
}

static struct sublet__text throughput(const struct sublet__way_result *r)
{
	struct sublet__text t;

	snprintf(t.text, sizeof(t.text), "%.20s/s", sublet__bytes(per_second(r->bytes, r)).text);
	return t;
}

static struct sublet__text buffers_right(const struct sublet__way_result *r)
{
	struct sublet__text t;

	snprintf(t.text, sizeof(t.text), "%llu of %llu", (unsigned long long)r->good,
		 (unsigned long long)(r->good + r->wrong));
	return t;
}

static struct sublet__text binds(const struct sublet__way_result *r)
{
	return number(r->binds);
}

static struct sublet__text evictions(const struct sublet__way_result *r)
{
	return number(r->evictions);
}

static struct sublet__text rebinds(const struct sublet__way_result *r)
{
	return number(r->rebinds);
}

static struct sublet__text registrations(const struct sublet__way_result *r)
{
	return number(r->registrations);
}

static struct sublet__text claims(const struct sublet__way_result *r)
{
	struct sublet__text t;

	snprintf(t.text, sizeof(t.text), "%u of %u", r->claims_succeeded, r->claims);
	return t;
}

static struct sublet__text claim_p50(const struct sublet__way_result *r)
{
	return sublet__duration(percentile(r, 500));
}

static struct sublet__text claim_p99(const struct sublet__way_result *r)
{
	return sublet__duration(percentile(r, 990));
}

static struct sublet__text claim_moved(const struct sublet__way_result *r)
{
	return sublet__bytes(r->claims_succeeded ? r->moved_bytes / r->claims_succeeded : 0);
}

static struct sublet__text claim_waited(const struct sublet__way_result *r)
{
	return number(r->waited);
}

static struct sublet__text ordinary(const struct sublet__way_result *r)
{
	return number(per_second(r->pages, r));
}

static void print_heads(void)
{
	printf("%-26s", "");
	for (uint32_t way = 0; way < SUBLET__WAYS; way++)
		printf("  %14s", columns[way].title);
	printf("\n%-26s", "");
	for (uint32_t way = 0; way < SUBLET__WAYS; way++)
		printf("  %14s", columns[way].subtitle);
	printf("\n%-26s  %14s  %14s  %14s\n", "  memory kept from others", "area", "normal zone", "none");
}

/* Who was in the way of claims, by way; a line where nobody was. */
static void print_blockers(const struct sublet__ways_load *load)
{
	bool none = true;

	for (uint32_t way = 0; way < SUBLET__WAYS + 1; way++) {
		const struct sublet__way_result *r = &load->result[way];

		if (!r->blocker[0])
			continue;
		printf("%-26s  %s: %s\n", none ? "claims failed, blocked by" : "",
		       way < SUBLET__WAYS ? columns[way].name : "between them", r->blocker);
		none = false;
	}
	if (none)
		printf("%-26s  %14s\n", "claims failed, blocked by", "nobody");
}

void sublet__ways_print(struct sublet__ways_results *results)
{
	struct sublet__ways_load *load = &results->load;
	char device[112] = "a file read by io_uring, O_DIRECT";

	if (results->is_soft)
		snprintf(device, sizeof(device), "a device in software\n(%s)", results->why_soft);
	printf("\nThree ways to give a device memory, %u buffers of %s each: %s.\n"
	       "Meanwhile %u threads write and read %s of lent memory, and %s of the area of %s are claimed\n"
	       "%llu times a second. %u %s of %s a way, taken in turn.\n\n",
	       SUBLET__WAYS_BUFFERS, sublet__bytes(SUBLET__FRAME_BYTES).text, device, SUBLET__WAYS_THREADS,
	       sublet__bytes(SUBLET__WAYS_ORDINARY_BYTES).text, sublet__bytes(SUBLET__WAYS_CLAIM_BYTES).text,
	       sublet__bytes(results->area_bytes).text,
	       (unsigned long long)(SUBLET_SEC / SUBLET__WAYS_PERIOD_NS), results->rounds,
	       results->rounds == 1 ? "round" : "rounds", sublet__duration(results->each_ns).text);
	print_heads();
	print_row("device, checked", load, throughput);
	print_row("  buffers right", load, buffers_right);
	print_row("  bound", load, binds);
	print_row("  evicted", load, evictions);
	print_row("  bound again", load, rebinds);
	print_row("  registrations", load, registrations);
	print_row("claims beside it", load, claims);
	print_row("  p50", load, claim_p50);
	print_row("  p99", load, claim_p99);
	print_row("  moved, each", load, claim_moved);
	print_row("  waited for somebody", load, claim_waited);
	print_row("ordinary pages a second", load, ordinary);
	print_blockers(load);
	printf("%-26s  %llu ordinary pages wrong, %llu claimed windows written to by others, %llu bad "
	       "accesses\n",
	       "checks", (unsigned long long)sublet__ways_load_wrong(load),
	       (unsigned long long)load->windows_wrong, (unsigned long long)results->bad_accesses);
	printf("\n%s in %s.\n", sublet__ways_good(results) ? "All good" : "NOT GOOD",
	       sublet__duration(results->elapsed_ns).text);
}

/* ---- JSON ---- */

static void json_way(cJSON *object, const struct sublet__way_result *r)
{
	sublet__json_u64(object, "elapsed_ns", r->elapsed_ns);
	sublet__json_u64(object, "bytes", r->bytes);
	sublet__json_u64(object, "bytes_per_second", per_second(r->bytes, r));
	sublet__json_u64(object, "buffers_good", r->good);
	sublet__json_u64(object, "buffers_wrong", r->wrong);
	sublet__json_u64(object, "binds", r->binds);
	sublet__json_u64(object, "evictions", r->evictions);
	sublet__json_u64(object, "rebinds", r->rebinds);
	sublet__json_u64(object, "registrations", r->registrations);
	sublet__json_u64(object, "claims_tried", r->claims);
	sublet__json_u64(object, "claims_succeeded", r->claims_succeeded);
	sublet__json_u64(object, "claims_waited", r->waited);
	sublet__json_u64(object, "claims_moved_bytes", r->moved_bytes);
	sublet__json_u64(object, "claim_p50_ns", percentile(r, 500));
	sublet__json_u64(object, "claim_p99_ns", percentile(r, 990));
	sublet__json_u64(object, "claim_max_ns", percentile(r, 1000));
	sublet__json_u64(object, "ordinary_pages", r->pages);
	if (r->blocker[0])
		cJSON_AddStringToObject(object, "first_blocker", r->blocker);
	else
		cJSON_AddNullToObject(object, "first_blocker");
}

void sublet__ways_json(cJSON *object, struct sublet__ways_results *results)
{
	struct sublet__ways_load *load = &results->load;

	cJSON_AddBoolToObject(object, "good", sublet__ways_good(results));
	cJSON_AddStringToObject(object, "device", results->is_soft ? "soft" : "uring");
	sublet__json_u64(object, "elapsed_ns", results->elapsed_ns);
	sublet__json_u64(object, "rounds", results->rounds);
	sublet__json_u64(object, "each_ns", results->each_ns);
	sublet__json_u64(object, "area_bytes", results->area_bytes);
	sublet__json_u64(object, "normal_bytes", results->normal_bytes);
	sublet__json_u64(object, "buffers", SUBLET__WAYS_BUFFERS);
	sublet__json_u64(object, "bytes_each", SUBLET__FRAME_BYTES);
	sublet__json_u64(object, "claim_bytes", SUBLET__WAYS_CLAIM_BYTES);
	for (uint32_t way = 0; way < SUBLET__WAYS; way++)
		json_way(cJSON_AddObjectToObject(object, columns[way].name), &load->result[way]);
	sublet__json_u64(object, "ordinary_pages_wrong", sublet__ways_load_wrong(load));
	sublet__json_u64(object, "windows_wrong", load->windows_wrong);
	sublet__json_u64(object, "bad_accesses", results->bad_accesses);
}
