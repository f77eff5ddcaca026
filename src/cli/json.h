/* SPDX-License-Identifier: MIT */
/*
 * cli/json.h: JSON output. Field names are part of the interface: they are only ever added, and
 * end in their unit (_bytes, _ns, _ratio for what has none). What was not measured is null.
 */
#ifndef SUBLET_CLI_JSON_H
#define SUBLET_CLI_JSON_H

#include "cli/cli.h"

#include <cjson/cJSON.h>

/* A number of 64 bits, exactly: cJSON's own are doubles. */
void sublet__json_u64(cJSON *object, const char *name, uint64_t value);
/* The instance as { "name", "pid" }, under "instance". */
void sublet__json_instance(cJSON *object, const struct sublet_instance *instance);
/* Short name of an -errno ("EBUSY"), or null for 0. */
void sublet__json_error(cJSON *object, const char *name, int error);
/* count, mean_ns, p50_ns, p99_ns, p999_ns, max_ns and the buckets that are not empty. */
void sublet__json_histogram(cJSON *object, const char *name, const struct sublet_histogram *h);
/* Print and free it. Returns an exit code. */
int sublet__json_print(cJSON *object);

#endif
