/* SPDX-License-Identifier: MIT */
/*
 * JSON for scripts: cJSON builds the tree, this file keeps its numbers exact.
 *
 * cJSON stores numbers as doubles, which loses bytes above 2^53 and prints some of them as 1e+16.
 * Raw nodes carry the digits as they are.
 */
#include "cli/json.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

void sublet__json_u64(cJSON *object, const char *name, uint64_t value)
{
	char digits[24];

	snprintf(digits, sizeof(digits), "%" PRIu64, value);
	cJSON_AddRawToObject(object, name, digits);
}

void sublet__json_instance(cJSON *object, const struct sublet_instance *instance)
{
	cJSON *o = cJSON_AddObjectToObject(object, "instance");

	cJSON_AddStringToObject(o, "name", instance->name);
	cJSON_AddNumberToObject(o, "pid", instance->pid);
}

void sublet__json_error(cJSON *object, const char *name, int error)
{
	const char *text = error ? strerrorname_np(-error) : NULL;

	if (!error)
		cJSON_AddNullToObject(object, name);
	else
		cJSON_AddStringToObject(object, name, text ? text : "EUNKNOWN");
}

void sublet__json_histogram(cJSON *object, const char *name, const struct sublet_histogram *h)
{
	cJSON *o = cJSON_AddObjectToObject(object, name);
	cJSON *buckets;

	sublet__json_u64(o, "count", h->count);
	sublet__json_u64(o, "mean_ns", h->count ? h->sum_ns / h->count : 0);
	sublet__json_u64(o, "p50_ns", sublet_histogram_percentile_ns(h, 500));
	sublet__json_u64(o, "p99_ns", sublet_histogram_percentile_ns(h, 990));
	sublet__json_u64(o, "p999_ns", sublet_histogram_percentile_ns(h, 999));
	sublet__json_u64(o, "max_ns", h->max_ns);
	buckets = cJSON_AddArrayToObject(o, "buckets");
	for (uint32_t i = 0; i < SUBLET_HISTOGRAM_BUCKETS; i++) {
		cJSON *b;

		if (!h->bucket[i])
			continue;
		b = cJSON_CreateObject();
		sublet__json_u64(b, "floor_ns", sublet_histogram_floor_ns(i));
		sublet__json_u64(b, "count", h->bucket[i]);
		cJSON_AddItemToArray(buckets, b);
	}
}

int sublet__json_print(cJSON *object)
{
	char *text = cJSON_Print(object);

	cJSON_Delete(object);
	if (!text) {
		sublet__error("out of memory for the JSON output");
		return SUBLET__EXIT_FAILED;
	}
	puts(text);
	cJSON_free(text);
	return SUBLET__EXIT_OK;
}
