/* SPDX-License-Identifier: MIT */
/*
 * `sublet stat`: what an instance holds and what it did.
 *
 * One screen: where the area's bytes are, how much of the program's heap is lent, what stands in
 * the way of claims, and two histograms. The library's histograms have four buckets to a power of
 * two; a terminal gets one bar a power, which is as much as the eye can use, and --json has them all.
 */
#include "cli/cli.h"
#include "cli/json.h"

#include <string.h>

#define BAR_MAX 40

static const char help[] =
	"usage: sublet stat [--json] [[-n] NAME|PID]\n"
	"\n"
	"Show what an instance holds and what it did: the area by state, how much of the program's\n"
	"heap is lent, claims, moves, and how long claims took and accesses were blocked.\n"
	"\n"
	"  -n, --name NAME|PID  the instance, also without -n; not needed where one runs\n"
	"  -j, --json           one JSON object; all fields, all histogram buckets\n"
	"  -h, --help           this text\n"
	"\n"
	"exit status: 0; 1 refused; 2 usage; 3 no such instance\n";

const char *sublet__backing_name(enum sublet_backing backing)
{
	switch (backing) {
	case SUBLET_BACKING_AUTO:
		return "auto";
	case SUBLET_BACKING_HUGETLB:
		return "hugetlb";
	case SUBLET_BACKING_THP:
		return "thp";
	case SUBLET_BACKING_MEMFD:
		return "memfd";
	case SUBLET_BACKING_FD:
		return "fd";
	}
	return "unknown";
}

const char *sublet__technique_name(enum sublet_technique technique)
{
	switch (technique) {
	case SUBLET_TECHNIQUE_AUTO:
		return "auto";
	case SUBLET_TECHNIQUE_PRECOPY:
		return "precopy";
	case SUBLET_TECHNIQUE_ZAP:
		return "zap";
	case SUBLET_TECHNIQUE_WRITEPROTECT:
		return "writeprotect";
	}
	return "unknown";
}

static double percent(uint64_t part, uint64_t whole)
{
	return whole ? 100.0 * (double)part / (double)whole : 0;
}

/* A bar for part of whole, after two blanks, and the end of the line; what is not nothing has a character. */
static void print_bar(uint64_t part, uint64_t whole)
{
	int n = whole ? (int)((double)part / (double)whole * BAR_MAX + 0.5) : 0;

	if (part && !n)
		n = 1;
	fputs(n ? "  " : "", stdout);
	while (n-- > 0)
		putchar('#');
	putchar('\n');
}

static void print_state(const char *name, uint64_t bytes, uint64_t area)
{
	if (!bytes && strcmp(name, "free") != 0)
		return;
	printf("  %-12s %10s %5.1f %%", name, sublet__bytes(bytes).text, percent(bytes, area));
	print_bar(bytes, area);
}

static void print_memory(const struct sublet_stats *s, const struct sublet_arena_info *info)
{
	printf("area %s (%s, frames of %s, moved by %s)\n", sublet__bytes(s->area_bytes).text,
	       sublet__backing_name(info->backing), sublet__bytes(info->frame_bytes).text,
	       sublet__technique_name(info->technique));
	print_state("free", s->area_free_bytes, s->area_bytes);
	print_state("movable", s->area_movable_bytes, s->area_bytes);
	print_state("discardable", s->area_discardable_bytes, s->area_bytes);
	print_state("claimed", s->area_claimed_bytes, s->area_bytes);
	print_state("held", s->area_held_bytes, s->area_bytes);
	print_state("isolated", s->area_isolated_bytes, s->area_bytes);
	printf("normal zone %s: %s used, %s free\n", sublet__bytes(s->normal_bytes).text,
	       sublet__bytes(s->normal_used_bytes).text, sublet__bytes(s->normal_free_bytes).text);
	printf("lent %s of the program's %s (%.1f %%); %s are plain memory\n",
	       sublet__bytes(s->lent_bytes).text, sublet__bytes(s->lent_bytes + s->plain_bytes).text,
	       percent(s->lent_bytes, s->lent_bytes + s->plain_bytes), sublet__bytes(s->plain_bytes).text);
	printf("long-term pins %s of at most %s; %llu notifiers\n", sublet__bytes(s->longterm_bytes).text,
	       sublet__bytes(s->longterm_limit_bytes).text, (unsigned long long)s->notifiers);
	printf("kernel mappings %llu of %llu (%.1f %%)\n", (unsigned long long)s->mapping_count,
	       (unsigned long long)s->mapping_limit, percent(s->mapping_count, s->mapping_limit));
}

/* What a claim may stumble over at this moment. */
static void print_in_the_way(const struct sublet_stats *s)
{
	if (s->children)
		printf("in the way: %llu %s of fork() still share%s memory, %s cannot move until then\n",
		       (unsigned long long)s->children, s->children == 1 ? "child" : "children",
		       s->children == 1 ? "s" : "", sublet__bytes(s->area_held_bytes).text);
	else if (s->area_held_bytes)
		printf("in the way: %s whose protection the program changed\n",
		       sublet__bytes(s->area_held_bytes).text);
	if (s->claims_held)
		printf("in the way: %llu %s held, %s\n", (unsigned long long)s->claims_held,
		       s->claims_held == 1 ? "claim is" : "claims are",
		       sublet__bytes(s->area_claimed_bytes).text);
	if (s->mapping_limit && s->mapping_count >= s->mapping_limit - s->mapping_limit / 10)
		printf("in the way: kernel mappings are nearly spent; raise vm.max_map_count (`sublet "
		       "doctor`)\n");
}

static void print_work(const struct sublet_stats *s)
{
	printf("claims %llu: %llu succeeded, %llu busy, %llu without room; %llu held now\n",
	       (unsigned long long)s->claims, (unsigned long long)s->claims_succeeded,
	       (unsigned long long)s->claims_busy, (unsigned long long)s->claims_noroom,
	       (unsigned long long)s->claims_held);
	printf("moved %s in %llu runs (%s copied twice, %llu refused), dropped %s, zeroed %s\n",
	       sublet__bytes(s->moved_bytes).text, (unsigned long long)s->moves,
	       sublet__bytes(s->recopied_bytes).text, (unsigned long long)s->moves_refused,
	       sublet__bytes(s->dropped_bytes).text, sublet__bytes(s->zeroed_bytes).text);
	printf("invalidations %llu, %llu declined at first\n", (unsigned long long)s->invalidations,
	       (unsigned long long)s->invalidations_declined);
	printf("forks %llu, runs merged again %llu\n", (unsigned long long)s->forks,
	       (unsigned long long)s->linearised_runs);
}

/* Buckets of one power of two together. */
static uint64_t power_count(const struct sublet_histogram *h, uint32_t power)
{
	uint64_t sum = 0;

	for (uint32_t i = 4 * power; i < 4 * power + 4 && i < SUBLET_HISTOGRAM_BUCKETS; i++)
		sum += h->bucket[i];
	return sum;
}

static void print_histogram(const char *title, const struct sublet_histogram *h)
{
	uint32_t first = SUBLET_HISTOGRAM_BUCKETS / 4, last = 0;
	uint64_t most = 0;

	if (!h->count) {
		printf("\n%s: none yet\n", title);
		return;
	}
	printf("\n%s: %llu, p50 %s, p99 %s, p99.9 %s, max %s\n", title, (unsigned long long)h->count,
	       sublet__duration(sublet_histogram_percentile_ns(h, 500)).text,
	       sublet__duration(sublet_histogram_percentile_ns(h, 990)).text,
	       sublet__duration(sublet_histogram_percentile_ns(h, 999)).text,
	       sublet__duration(h->max_ns).text);
	for (uint32_t p = 0; p < SUBLET_HISTOGRAM_BUCKETS / 4; p++) {
		uint64_t n = power_count(h, p);

		if (!n)
			continue;
		first = first < p ? first : p;
		last = p;
		most = most < n ? n : most;
	}
	for (uint32_t p = first; p <= last; p++) {
		fputs("  from ", stdout);
		sublet__print_right(8, sublet__duration(sublet_histogram_floor_ns(4 * p)).text);
		printf(" %9llu", (unsigned long long)power_count(h, p));
		print_bar(power_count(h, p), most);
	}
}

static void print_stat(const struct sublet_instance *in, const struct sublet_stats *s,
		       const struct sublet_arena_info *info)
{
	printf("%s (pid %d)\n\n", in->name, (int)in->pid);
	print_memory(s, info);
	putchar('\n');
	print_work(s);
	print_in_the_way(s);
	print_histogram("claim latency", &s->claim_ns);
	print_histogram("accesses blocked", &s->blocked_ns);
}

/* ---- JSON ---- */

struct field {
	const char *name;
	size_t offset;
};

#define FIELD(member)                                          \
	{                                                      \
#member, offsetof(struct sublet_stats, member) \
	}

static const struct field fields[] = {
	FIELD(area_bytes),
	FIELD(area_free_bytes),
	FIELD(area_movable_bytes),
	FIELD(area_discardable_bytes),
	FIELD(area_claimed_bytes),
	FIELD(area_held_bytes),
	FIELD(area_isolated_bytes),
	FIELD(normal_bytes),
	FIELD(normal_free_bytes),
	FIELD(normal_used_bytes),
	FIELD(lent_bytes),
	FIELD(plain_bytes),
	FIELD(mapping_count),
	FIELD(mapping_limit),
	FIELD(children),
	FIELD(claims),
	FIELD(claims_succeeded),
	FIELD(claims_busy),
	FIELD(claims_noroom),
	FIELD(claims_held),
	FIELD(windows_tried),
	FIELD(moves),
	FIELD(moved_bytes),
	FIELD(recopied_bytes),
	FIELD(moves_refused),
	FIELD(dropped_bytes),
	FIELD(zeroed_bytes),
	FIELD(linearised_runs),
	FIELD(forks),
	FIELD(longterm_bytes),
	FIELD(longterm_limit_bytes),
	FIELD(notifiers),
	FIELD(invalidations),
	FIELD(invalidations_declined),
};

static int json_stat(const struct sublet_instance *in, const struct sublet_stats *s,
		     const struct sublet_arena_info *info)
{
	cJSON *root = cJSON_CreateObject();
	uint64_t heap = s->lent_bytes + s->plain_bytes;

	sublet__json_instance(root, in);
	cJSON_AddStringToObject(root, "backing", sublet__backing_name(info->backing));
	cJSON_AddStringToObject(root, "technique", sublet__technique_name(info->technique));
	sublet__json_u64(root, "frame_bytes", info->frame_bytes);
	sublet__json_u64(root, "workers", info->workers);
	sublet__json_u64(root, "metadata_bytes", info->metadata_bytes);
	for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
		uint64_t value;

		memcpy(&value, (const char *)s + fields[i].offset, sizeof(value));
		sublet__json_u64(root, fields[i].name, value);
	}
	if (heap)
		cJSON_AddNumberToObject(root, "lent_ratio", (double)s->lent_bytes / (double)heap);
	else
		cJSON_AddNullToObject(root, "lent_ratio");
	sublet__json_histogram(root, "claim", &s->claim_ns);
	sublet__json_histogram(root, "blocked", &s->blocked_ns);
	return sublet__json_print(root);
}

/* ---- the command ---- */

static int stat_instance(const char *instance, bool json)
{
	struct sublet_stats stats = { SUBLET_OPTIONS(sublet_stats) };
	struct sublet_arena_info info = { SUBLET_OPTIONS(sublet_arena_info) };
	struct sublet_client *client = NULL;
	int err, code = sublet__cli_connect(instance, &client);

	if (code)
		return code;
	err = sublet_client_info(client, &info);
	if (!err)
		err = sublet_client_stats(client, &stats);
	if (err)
		code = sublet__cli_call_failed(client, "ask", err);
	else if (json)
		code = json_stat(sublet_client_instance(client), &stats, &info);
	else
		print_stat(sublet_client_instance(client), &stats, &info);
	sublet_client_close(client);
	return code;
}

int sublet__cli_stat(int argc, char **argv)
{
	const char *instance = NULL;
	bool json = false;
	int code;

	if (!sublet__instance_options(argc, argv, help, &instance, &json, NULL, &code))
		return code;
	return stat_instance(instance, json);
}
