/* SPDX-License-Identifier: MIT */
/*
 * What `sublet claim` has to say: for people, for scripts, and when there is no claim.
 *
 * A failed claim is the moment when somebody needs this tool, so its words are chosen by cause: who
 * holds the memory, or how many bytes found no place, and the command line that would help.
 */
#include "cli/claim.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static double ratio(uint64_t latency_ns, uint64_t memcpy_ns)
{
	return (double)latency_ns / (double)memcpy_ns;
}

/* What of the window cost nothing. A claim that tried several windows may have moved more than it has. */
static uint64_t free_part(const struct sublet_claim *c)
{
	uint64_t paid = c->moved_bytes + c->dropped_bytes;

	return paid < c->bytes ? c->bytes - paid : 0;
}

void sublet__claim_print(const struct sublet_claim *c, uint64_t memcpy_ns)
{
	printf("claimed %s in %s ", sublet__bytes(c->bytes).text, sublet__duration(c->latency_ns).text);
	if (memcpy_ns)
		printf("(%.2f × memcpy, %s)", ratio(c->latency_ns, memcpy_ns),
		       sublet__duration(memcpy_ns).text);
	else
		printf(c->moved_bytes ? "(- × memcpy)" : "(nothing to move)");
	printf(": moved %s, dropped %s, free %s, zeroed %s", sublet__bytes(c->moved_bytes).text,
	       sublet__bytes(c->dropped_bytes).text, sublet__bytes(free_part(c)).text,
	       sublet__bytes(c->zeroed_bytes).text);
	if (c->zeroed_bytes)
		printf(" in %s", sublet__duration(c->zeroing_ns).text);
	printf(", waited %s", sublet__duration(c->waited_ns).text);
	if (c->waits)
		printf(" (%u %s)", c->waits, c->waits == 1 ? "time" : "times");
	putchar('\n');
}

void sublet__claim_print_summary(const struct sublet__claim_summary *s)
{
	printf("%llu of %llu claims succeeded", (unsigned long long)s->succeeded,
	       (unsigned long long)s->claims);
	if (s->succeeded)
		printf(": latency median %s, p99 %s, max %s", sublet__duration(s->latency_median_ns).text,
		       sublet__duration(s->latency_p99_ns).text, sublet__duration(s->latency_max_ns).text);
	if (s->moved_claims)
		printf("; median %.2f × memcpy (%.2f without the zeroing) over the %llu that moved something",
		       s->ratio_median, s->ratio_unzeroed_median, (unsigned long long)s->moved_claims);
	else if (s->succeeded)
		printf("; none moved anything");
	putchar('\n');
}

/* ---- the summary ---- */

static int by_latency(const void *a, const void *b)
{
	const struct sublet__claim_record *x = a, *y = b;

	return (x->latency_ns > y->latency_ns) - (x->latency_ns < y->latency_ns);
}

static int by_ratio(const void *a, const void *b)
{
	const struct sublet__claim_record *x = a, *y = b;
	double r = ratio(x->latency_ns, x->memcpy_ns), s = ratio(y->latency_ns, y->memcpy_ns);

	return (r > s) - (r < s);
}

/* Bring the records that pass to the front; how many. */
static uint64_t keep(struct sublet__claim_record *r, uint64_t n, bool moved_only)
{
	uint64_t kept = 0;

	for (uint64_t i = 0; i < n; i++)
		if (!r[i].error && (!moved_only || r[i].memcpy_ns))
			r[kept++] = r[i];
	return kept;
}

void sublet__claim_summarise(struct sublet__claim_record *r, uint64_t count, struct sublet__claim_summary *s)
{
	uint64_t n;

	memset(s, 0, sizeof(*s));
	s->claims = count;
	s->succeeded = n = keep(r, count, false);
	if (!n)
		return;
	qsort(r, (size_t)n, sizeof(*r), by_latency);
	s->latency_median_ns = r[(n - 1) / 2].latency_ns / 2 + r[n / 2].latency_ns / 2 +
			       (r[(n - 1) / 2].latency_ns & r[n / 2].latency_ns & 1);
	s->latency_p99_ns = r[(n * 99 + 99) / 100 - 1].latency_ns;
	s->latency_max_ns = r[n - 1].latency_ns;
	s->moved_claims = n = keep(r, n, true);
	if (!n)
		return;
	qsort(r, (size_t)n, sizeof(*r), by_ratio);
	s->ratio_median = (ratio(r[(n - 1) / 2].latency_ns, r[(n - 1) / 2].memcpy_ns) +
			   ratio(r[n / 2].latency_ns, r[n / 2].memcpy_ns)) /
			  2;
	for (uint64_t i = 0; i < n; i++)
		r[i].latency_ns -= r[i].zeroing_ns;
	qsort(r, (size_t)n, sizeof(*r), by_ratio);
	s->ratio_unzeroed_median = (ratio(r[(n - 1) / 2].latency_ns, r[(n - 1) / 2].memcpy_ns) +
				    ratio(r[n / 2].latency_ns, r[n / 2].memcpy_ns)) /
				   2;
}

/* ---- why not ---- */

int sublet__claim_exit_code(int error)
{
	switch (error) {
	case 0:
		return SUBLET__EXIT_OK;
	case -EBUSY:
		return SUBLET__EXIT_BUSY;
	case -ENOMEM:
	case -E2BIG:
		return SUBLET__EXIT_NO_ROOM;
	case -EPIPE:
		return SUBLET__EXIT_NO_INSTANCE;
	default:
		return SUBLET__EXIT_FAILED;
	}
}

static uint64_t round_up(uint64_t value, uint64_t unit)
{
	return (value + unit - 1) / unit * unit;
}

/* A size one can type that is surely not more than `bytes`. */
static struct sublet__text at_most(uint64_t bytes)
{
	uint64_t unit = bytes >= 16 * SUBLET_MIB ? SUBLET_MIB : 64 * SUBLET_KIB;

	return sublet__size_option(bytes / unit * unit);
}

static bool is_same_blocker(const struct sublet_blocker *a, const struct sublet_blocker *b)
{
	return a->kind == b->kind && a->error == b->error && strcmp(a->owner, b->owner) == 0;
}

/* Blocker i and all later ones of the same kind and owner, as one: the sum of their bytes, the oldest's age. */
static uint32_t merge_blockers(struct sublet_claim *claim, uint32_t i)
{
	struct sublet_blocker *first = &claim->blockers[i];
	uint32_t places = 1;

	for (uint32_t k = i + 1; k < claim->blocker_count; k++) {
		struct sublet_blocker *b = &claim->blockers[k];

		if (!is_same_blocker(b, first))
			continue;
		places++;
		first->bytes += b->bytes;
		if (b->age_ns > first->age_ns)
			first->age_ns = b->age_ns;
		if (b->offset_bytes < first->offset_bytes)
			first->offset_bytes = b->offset_bytes;
		b->kind = SUBLET_BLOCKER_NONE;
	}
	return places;
}

/* "32 KiB at 0x1000: ...", or "32 KiB in 8 places, first at 0x1000: ..." */
static void print_blockers(const struct sublet_claim *claim)
{
	struct sublet_claim merged = *claim;

	for (uint32_t i = 0; i < claim->blocker_count; i++) {
		struct sublet_blocker *b = &merged.blockers[i];
		char text[256], *at;
		uint32_t places;

		/* the error line says the latter already */
		if (b->kind == SUBLET_BLOCKER_NONE || b->kind == SUBLET_BLOCKER_NOROOM)
			continue;
		places = merge_blockers(&merged, i);
		if (sublet_blocker_describe(&merged, i, text, sizeof(text)) < 0)
			continue;
		at = strstr(text, " at 0x");
		if (places > 1 && at != NULL)
			sublet__advice("%.*s in %u places, first%s", (int)(at - text), text, places, at);
		else
			sublet__advice("%s", text);
	}
}

static void explain_no_room(struct sublet_client *client, const char *size, const char *name,
			    const struct sublet_claim *claim)
{
	struct sublet_stats stats = { SUBLET_OPTIONS(sublet_stats) };
	uint64_t normal;

	if (sublet_client_stats(client, &stats)) {
		sublet__error("cannot claim %s of %s: %s have nowhere to go", size, name,
			      sublet__bytes(claim->shortfall_bytes).text);
		return;
	}
	sublet__error("cannot claim %s of %s: %s have nowhere to go (normal zone %s, %s used).", size, name,
		      sublet__bytes(claim->shortfall_bytes).text, sublet__bytes(stats.normal_bytes).text,
		      sublet__bytes(stats.normal_used_bytes).text);
	print_blockers(claim);
	normal = round_up(stats.normal_bytes + claim->shortfall_bytes, 64 * SUBLET_MIB);
	if (claim->claimable_bytes >= 64 * SUBLET_KIB)
		sublet__advice("Start with --normal %s, or claim at most %s.",
			       sublet__size_option(normal).text, at_most(claim->claimable_bytes).text);
	else
		sublet__advice("Start with --normal %s, or wait until other claims are released.",
			       sublet__size_option(normal).text);
}

static void explain_too_big(struct sublet_client *client, const char *size, const char *name, uint64_t bytes)
{
	struct sublet_arena_info info = { SUBLET_OPTIONS(sublet_arena_info) };

	if (sublet_client_info(client, &info)) {
		sublet__error("cannot claim %s of %s: its area is smaller than that", size, name);
		return;
	}
	sublet__error("cannot claim %s of %s: its area has %s.", size, name,
		      sublet__bytes(info.area_bytes).text);
	if (bytes < UINT64_MAX / 2)
		sublet__advice("Start with --area %s, or claim at most %s.",
			       sublet__size_option(round_up(bytes, 64 * SUBLET_MIB)).text,
			       sublet__size_option(info.area_bytes).text);
	else
		sublet__advice("Claim at most %s.", sublet__size_option(info.area_bytes).text);
}

static void explain_busy(const char *size, const char *name, const struct sublet__claim_job *job,
			 const struct sublet_claim *claim)
{
	sublet__error("cannot claim %s of %s: somebody holds memory in every window (gave up after %s)%s",
		      size, name, sublet__duration(claim->latency_ns).text, claim->blocker_count ? ":" : ".");
	print_blockers(claim);
	if (job->options.flags & SUBLET_CLAIM_NOWAIT)
		sublet__advice("Try again without --no-wait.");
	else
		sublet__advice("Try a longer --deadline, or end whoever holds it.");
}

int sublet__claim_explain(struct sublet_client *client, const struct sublet__claim_job *job, int error,
			  const struct sublet_claim *claim)
{
	const char *name = sublet_client_instance(client)->name;
	struct sublet__text size = sublet__bytes(job->bytes);

	switch (error) {
	case -ENOMEM:
		explain_no_room(client, size.text, name, claim);
		break;
	case -E2BIG:
		explain_too_big(client, size.text, name, job->bytes);
		break;
	case -EBUSY:
		explain_busy(size.text, name, job, claim);
		break;
	case -EPIPE:
		return sublet__cli_call_failed(client, "claim", error);
	default:
		sublet__error("cannot claim %s of %s: %s", size.text, name, sublet__errno_text(error));
		print_blockers(claim);
	}
	return sublet__claim_exit_code(error);
}

/* ---- JSON ---- */

cJSON *sublet__claim_json_begin(const struct sublet_instance *in, const struct sublet__claim_job *job)
{
	cJSON *root = cJSON_CreateObject();
	cJSON *request;

	sublet__json_instance(root, in);
	request = cJSON_AddObjectToObject(root, "request");
	sublet__json_u64(request, "size_bytes", job->bytes);
	sublet__json_u64(request, "align_bytes", job->options.align_bytes);
	sublet__json_u64(request, "deadline_ns",
			 job->options.deadline_ns ? job->options.deadline_ns : SUBLET_SEC);
	sublet__json_u64(request, "hold_ns", job->hold_ns);
	sublet__json_u64(request, "count", job->count);
	cJSON_AddBoolToObject(request, "wait", !(job->options.flags & SUBLET_CLAIM_NOWAIT));
	cJSON_AddBoolToObject(request, "zero", !(job->options.flags & SUBLET_CLAIM_NOZERO));
	cJSON_AddBoolToObject(request, "dearest", (job->options.flags & SUBLET_CLAIM_DEAREST) != 0);
	cJSON_AddArrayToObject(root, "claims");
	return root;
}

static void json_blockers(cJSON *object, const struct sublet_claim *claim)
{
	static const char *const kinds[] = { "none",      "pin",      "claim",  "child",
					     "protected", "mappings", "noroom", "platform",
					     "notifier",  "watched",  "call" };
	cJSON *array = cJSON_AddArrayToObject(object, "blockers");

	for (uint32_t i = 0; i < claim->blocker_count; i++) {
		const struct sublet_blocker *b = &claim->blockers[i];
		cJSON *o = cJSON_CreateObject();
		char text[256] = "";

		cJSON_AddStringToObject(o, "kind",
					b->kind <= SUBLET_BLOCKER_CALL ? kinds[b->kind] : "unknown");
		cJSON_AddStringToObject(o, "owner", b->owner);
		sublet__json_u64(o, "offset_bytes", b->offset_bytes);
		sublet__json_u64(o, "size_bytes", b->bytes);
		sublet__json_u64(o, "age_ns", b->age_ns);
		if (b->kind == SUBLET_BLOCKER_CHILD)
			cJSON_AddNumberToObject(o, "pid", b->error);
		else
			sublet__json_error(o, "error", b->error);
		if (sublet_blocker_describe(claim, i, text, sizeof(text)) >= 0)
			cJSON_AddStringToObject(o, "text", text);
		cJSON_AddItemToArray(array, o);
	}
}

void sublet__claim_json_add(cJSON *root, const struct sublet_claim *c, int error, uint64_t memcpy_ns)
{
	cJSON *o = cJSON_CreateObject();

	cJSON_AddBoolToObject(o, "ok", !error);
	sublet__json_error(o, "error", error);
	sublet__json_u64(o, "latency_ns", c->latency_ns);
	sublet__json_u64(o, "size_bytes", c->bytes);
	sublet__json_u64(o, "offset_bytes", c->offset_bytes);
	sublet__json_u64(o, "moved_bytes", c->moved_bytes);
	sublet__json_u64(o, "dropped_bytes", c->dropped_bytes);
	sublet__json_u64(o, "free_bytes", error ? 0 : free_part(c));
	sublet__json_u64(o, "zeroed_bytes", c->zeroed_bytes);
	sublet__json_u64(o, "zeroing_ns", c->zeroing_ns);
	sublet__json_u64(o, "waited_ns", c->waited_ns);
	sublet__json_u64(o, "waits", c->waits);
	sublet__json_u64(o, "windows_tried", c->windows_tried);
	if (memcpy_ns) {
		sublet__json_u64(o, "memcpy_ns", memcpy_ns);
		cJSON_AddNumberToObject(o, "memcpy_ratio", ratio(c->latency_ns, memcpy_ns));
		cJSON_AddNumberToObject(o, "memcpy_ratio_unzeroed",
					ratio(c->latency_ns - c->zeroing_ns, memcpy_ns));
	} else {
		cJSON_AddNullToObject(o, "memcpy_ns");
		cJSON_AddNullToObject(o, "memcpy_ratio");
		cJSON_AddNullToObject(o, "memcpy_ratio_unzeroed");
	}
	sublet__json_u64(o, "shortfall_bytes", c->shortfall_bytes);
	sublet__json_u64(o, "claimable_bytes", c->claimable_bytes);
	json_blockers(o, c);
	cJSON_AddItemToArray(cJSON_GetObjectItemCaseSensitive(root, "claims"), o);
}

void sublet__claim_json_summary(cJSON *root, const struct sublet__claim_summary *s, bool interrupted)
{
	cJSON *o = cJSON_AddObjectToObject(root, "summary");

	sublet__json_u64(o, "claims", s->claims);
	sublet__json_u64(o, "succeeded", s->succeeded);
	sublet__json_u64(o, "failed", s->claims - s->succeeded);
	cJSON_AddBoolToObject(o, "interrupted", interrupted);
	if (s->succeeded) {
		sublet__json_u64(o, "latency_median_ns", s->latency_median_ns);
		sublet__json_u64(o, "latency_p99_ns", s->latency_p99_ns);
		sublet__json_u64(o, "latency_max_ns", s->latency_max_ns);
	} else {
		cJSON_AddNullToObject(o, "latency_median_ns");
		cJSON_AddNullToObject(o, "latency_p99_ns");
		cJSON_AddNullToObject(o, "latency_max_ns");
	}
	sublet__json_u64(o, "moved_claims", s->moved_claims);
	if (s->moved_claims)
		cJSON_AddNumberToObject(o, "memcpy_ratio_median", s->ratio_median);
	else
		cJSON_AddNullToObject(o, "memcpy_ratio_median");
	if (s->moved_claims)
		cJSON_AddNumberToObject(o, "memcpy_ratio_unzeroed_median", s->ratio_unzeroed_median);
	else
		cJSON_AddNullToObject(o, "memcpy_ratio_unzeroed_median");
}
