/* SPDX-License-Identifier: MIT */
/* cli/claim.h: `sublet claim`: what was asked, what came of it; claim.c and claim_report.c only. */
#ifndef SUBLET_CLI_CLAIM_H
#define SUBLET_CLI_CLAIM_H

#include "cli/json.h"

struct sublet__claim_job {
	const char *instance; /* name or pid; NULL: the only one */
	uint64_t bytes;
	struct sublet_claim_options options;
	uint64_t hold_ns;
	uint64_t count;
	bool json;
};

/* One claim, small enough to keep a hundred thousand of them. */
struct sublet__claim_record {
	int error;
	uint64_t latency_ns;
	uint64_t zeroing_ns; /* part of latency_ns */
	uint64_t moved_bytes;
	uint64_t memcpy_ns; /* of as many bytes; 0: nothing moved, or it could not be measured */
};

struct sublet__claim_summary {
	uint64_t claims;
	uint64_t succeeded;
	uint64_t latency_median_ns;
	uint64_t latency_p99_ns;
	uint64_t latency_max_ns;
	uint64_t moved_claims;        /* that moved something and could be compared */
	double ratio_median;          /* over those */
	double ratio_unzeroed_median; /* the same for latency_ns less zeroing_ns */
};

/* Over the successful claims. Sorts the records. */
void sublet__claim_summarise(struct sublet__claim_record *records, uint64_t count,
			     struct sublet__claim_summary *summary);

void sublet__claim_print(const struct sublet_claim *claim, uint64_t memcpy_ns);
/* Why there is no claim, and what to do, on stderr. Returns the exit code. */
int sublet__claim_explain(struct sublet_client *client, const struct sublet__claim_job *job, int error,
			  const struct sublet_claim *claim);
/* The exit code alone. */
int sublet__claim_exit_code(int error);
void sublet__claim_print_summary(const struct sublet__claim_summary *summary);

cJSON *sublet__claim_json_begin(const struct sublet_instance *in, const struct sublet__claim_job *job);
void sublet__claim_json_add(cJSON *root, const struct sublet_claim *claim, int error, uint64_t memcpy_ns);
void sublet__claim_json_summary(cJSON *root, const struct sublet__claim_summary *summary, bool interrupted);

#endif
