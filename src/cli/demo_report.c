/* SPDX-License-Identifier: MIT */
/*
 * What the demonstration found, as one table or as JSON.
 *
 * Every number of a column is the median over the rounds, and "of the plain heap" is the median of the
 * ratios inside one round, because a machine is never as fast twice.
 */
#include "cli/demo.h"
#include "control/server.h"

#include <cjson/cJSON.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define BUSY_RATIO 1.25 /* of one round to another, on the plain heap */

/* A number of one round. */
typedef double (*round_value)(const struct sublet__demo_results *results, enum sublet__demo_mode mode,
			      uint32_t round);

static const struct {
	const char *name;  /* JSON */
	const char *title; /* table, two lines */
	const char *subtitle;
} modes[SUBLET__MODES] = {
	[SUBLET__MODE_PLAIN] = { "plain", "plain heap", "alone" },
	[SUBLET__MODE_PLAIN_DEVICE] = { "plain_device", "plain heap", "+ device" },
	[SUBLET__MODE_LENT] = { "lent", "lent memory", "no claims" },
	[SUBLET__MODE_CLAIMS] = { "lent_claims", "lent memory", "+ claims" },
};

const char *sublet__demo_mode_name(enum sublet__demo_mode mode)
{
	static const char *const names[SUBLET__MODES] = {
		[SUBLET__MODE_PLAIN] = "plain heap",
		[SUBLET__MODE_PLAIN_DEVICE] = "plain heap, device with a buffer of its own",
		[SUBLET__MODE_LENT] = "lent memory",
		[SUBLET__MODE_CLAIMS] = "lent memory, claimed 10 times a second",
	};
	return names[mode];
}

static bool line_is_drawn;

void sublet__demo_line_clear(void)
{
	if (line_is_drawn)
		fputs("\r\033[K", stderr);
	line_is_drawn = false;
}

void sublet__demo_line(bool final, const char *format, ...)
{
	if (!final && !isatty(STDERR_FILENO))
		return;
	char text[512];
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	/* A line that wraps cannot be wiped. */
	struct winsize window = { .ws_col = 80 };
	int columns = ioctl(STDERR_FILENO, TIOCGWINSZ, &window) == 0 && window.ws_col > 1 ? window.ws_col - 1
											  : 79;
	sublet__demo_line_clear();
	fprintf(stderr, "%.*s%s", final ? (int)sizeof(text) : columns, text, final ? "\n" : "");
	line_is_drawn = !final;
	fflush(stderr);
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

struct range {
	double lowest;
	double highest;
};

static struct range range_of(const struct sublet__demo_results *results, enum sublet__demo_mode mode,
			     round_value value)
{
	struct range range = { 0, 0 };
	for (uint32_t round = 0; round < results->rounds; round++) {
		double v = value(results, mode, round);
		range.lowest = round == 0 || v < range.lowest ? v : range.lowest;
		range.highest = v > range.highest ? v : range.highest;
	}
	return range;
}

static double median(const struct sublet__demo_results *results, enum sublet__demo_mode mode,
		     round_value value)
{
	double values[SUBLET__ROUNDS_MAX];
	uint32_t n = results->rounds;
	if (n == 0)
		return 0;
	for (uint32_t round = 0; round < n; round++)
		values[round] = value(results, mode, round);
	qsort(values, n, sizeof(values[0]), by_value);
	return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

static double rate(const struct sublet__demo_results *results, enum sublet__demo_mode mode, uint32_t round)
{
	return results->load[mode][round].rate;
}

static double ratio(const struct sublet__demo_results *results, enum sublet__demo_mode mode, uint32_t round)
{
	double plain = results->load[SUBLET__MODE_PLAIN][round].rate;
	return plain > 0 ? results->load[mode][round].rate / plain : 0;
}

static double p50(const struct sublet__demo_results *results, enum sublet__demo_mode mode, uint32_t round)
{
	return results->load[mode][round].p50_us;
}

static double p99(const struct sublet__demo_results *results, enum sublet__demo_mode mode, uint32_t round)
{
	return results->load[mode][round].p99_us;
}

static double p999(const struct sublet__demo_results *results, enum sublet__demo_mode mode, uint32_t round)
{
	return results->load[mode][round].p999_us;
}

static double slowest(const struct sublet__demo_results *results, enum sublet__demo_mode mode, uint32_t round)
{
	return results->load[mode][round].max_us;
}

static double memcpy_ns(const struct sublet__demo_results *results, enum sublet__demo_mode mode,
			uint32_t round)
{
	(void)mode;
	return (double)results->memcpy_ns[round];
}

static const struct {
	const char *name; /* JSON */
	const char *title;
	round_value value;
	int decimals;
} rows[] = {
	{ "operations_per_second", "requests a second", rate, 0 },
	{ "ratio_to_plain", "  of the plain heap", ratio, 3 },
	{ "p50_us", "latency p50, us", p50, 0 },
	{ "p99_us", "latency p99, us", p99, 0 },
	{ "p999_us", "latency p99.9, us", p999, 0 },
	{ "max_us", "slowest, us", slowest, 0 },
};

#define ROWS (sizeof(rows) / sizeof(rows[0]))

/* Claims, sorted once. */
struct claim_summary {
	uint64_t p50_ns;
	uint64_t p99_ns;
	uint64_t max_ns;
	uint64_t engine_p50_ns;
	double memcpy_ns;
	double ratio;
};

static int by_u64(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return (x > y) - (x < y);
}

void sublet__demo_sort(uint64_t *values, uint32_t count)
{
	qsort(values, count, sizeof(values[0]), by_u64);
}

uint64_t sublet__demo_permille(const uint64_t *values, uint32_t count, uint64_t permille)
{
	if (!count)
		return 0;
	uint64_t at = count * permille / 1000;
	return values[at < count ? at : count - 1];
}

static struct claim_summary summarise(const struct sublet__demo_results *results)
{
	static uint64_t sorted[SUBLET__CLAIMS_MAX]; /* too large for a stack */
	uint32_t n = results->driver->claims_succeeded;
	struct claim_summary s = { .memcpy_ns = median(results, SUBLET__MODE_CLAIMS, memcpy_ns) };
	memcpy(sorted, results->driver->engine_ns, n * sizeof(sorted[0]));
	sublet__demo_sort(sorted, n);
	s.engine_p50_ns = sublet__demo_permille(sorted, n, 500);
	memcpy(sorted, results->driver->latency_ns, n * sizeof(sorted[0]));
	sublet__demo_sort(sorted, n);
	s.p50_ns = sublet__demo_permille(sorted, n, 500);
	s.p99_ns = sublet__demo_permille(sorted, n, 990);
	s.max_ns = sublet__demo_permille(sorted, n, 1000);
	s.ratio = s.memcpy_ns > 0 ? (double)s.p50_ns / s.memcpy_ns : 0;
	return s;
}

static void totals(const struct sublet__demo_results *results, uint64_t *checked, uint64_t *wrong)
{
	*checked = *wrong = 0;
	for (uint32_t mode = 0; mode < SUBLET__MODES; mode++) {
		for (uint32_t round = 0; round < results->rounds; round++) {
			*checked += results->load[mode][round].checked;
			*wrong += results->load[mode][round].wrong;
		}
	}
}

static bool digests_equal(const struct sublet__demo_results *results)
{
	return results->digest_before[0] && strcmp(results->digest_before, results->digest_after) == 0 &&
	       strcmp(results->digest_after, results->digest_plain) == 0;
}

bool sublet__demo_good(const struct sublet__demo_results *results)
{
	const struct sublet__driver *driver = results->driver;
	uint64_t checked, wrong;
	totals(results, &checked, &wrong);
	return digests_equal(results) && driver->claims > 0 && driver->claims_succeeded == driver->claims &&
	       driver->frames_good > 0 && driver->frames_bad == 0 && checked > 0 && wrong == 0 &&
	       results->death_released;
}

static const char *reading_text(uint32_t reading)
{
	switch (reading) {
	case SUBLET__READING_FIXED:
		return "io_uring, O_DIRECT, into the area registered once";
	case SUBLET__READING_URING:
		return "io_uring, O_DIRECT, not registered (the locked-memory limit, ulimit -l, is too low)";
	default:
		return "pread, O_DIRECT (no io_uring here)";
	}
}

/* Under the ratio: how much it differed from round to round. */
static void print_spread(const struct sublet__demo_results *results)
{
	printf("%-20s", "  lowest, highest");
	for (uint32_t mode = 0; mode < SUBLET__MODES; mode++) {
		struct range range = range_of(results, mode, ratio);
		printf("  %5.2f, %5.2f", range.lowest, range.highest);
	}
	printf("\n");
}

static void print_redis(const struct sublet__demo_results *results)
{
	printf("%-20s", "");
	for (uint32_t mode = 0; mode < SUBLET__MODES; mode++)
		printf("  %12s", modes[mode].title);
	printf("\n%-20s", "");
	for (uint32_t mode = 0; mode < SUBLET__MODES; mode++)
		printf("  %12s", modes[mode].subtitle);
	printf("\n");
	for (size_t row = 0; row < ROWS; row++) {
		printf("%-20s", rows[row].title);
		for (uint32_t mode = 0; mode < SUBLET__MODES; mode++)
			printf("  %12.*f", rows[row].decimals, median(results, mode, rows[row].value));
		printf("\n");
		if (rows[row].value == ratio)
			print_spread(results);
	}
}

static void print_claims(const struct sublet__demo_results *results)
{
	const struct sublet__driver *driver = results->driver;
	struct claim_summary s = summarise(results);
	uint32_t n = driver->claims_succeeded;
	printf("%-20s  %u of %u succeeded, %s each, the dearest window every time\n", "claims", n,
	       driver->claims, sublet__bytes(SUBLET__DEMO_CLAIM_BYTES).text);
	if (driver->failure[0])
		printf("%-20s  %s\n", "  first failure", driver->failure);
	printf("%-20s  p50 %s, p99 %s, max %s\n", "  latency", sublet__duration(s.p50_ns).text,
	       sublet__duration(s.p99_ns).text, sublet__duration(s.max_ns).text);
	printf("%-20s  %.2f (p50; memcpy of as much under the same load: %s)\n", "  of memcpy", s.ratio,
	       sublet__duration((uint64_t)s.memcpy_ns).text);
	printf("%-20s  %s of live memory, %s a claim\n", "  moved", sublet__bytes(driver->moved_bytes).text,
	       sublet__bytes(n ? driver->moved_bytes / n : 0).text);
	printf("%-20s  %s by %s\n", "  frames read",
	       sublet__bytes((driver->frames_good + driver->frames_bad) * SUBLET__FRAME_BYTES).text,
	       reading_text(driver->reading));
	if (driver->reading == SUBLET__READING_FIXED)
		printf("%-20s  %s in %s\n", "  registered", sublet__bytes(results->arena.area_bytes).text,
		       sublet__duration(driver->registration_ns).text);
	printf("%-20s  %llu good, %llu bad\n", "  checksums", (unsigned long long)driver->frames_good,
	       (unsigned long long)driver->frames_bad);
	if (driver->ticks_missed)
		printf("%-20s  %llu of the 10 a second (the disk or the processors were too slow)\n",
		       "  buffers skipped", (unsigned long long)driver->ticks_missed);
	if (results->death_released)
		printf("%-20s  killed while it held a claim; released %s later (%s for its I/O to end)\n",
		       "driver", sublet__duration(results->death_ns).text,
		       sublet__duration(SUBLET__SETTLE_NS).text);
	else
		printf("%-20s  killed while it held a claim, which was NOT released\n", "driver");
}

void sublet__demo_print(struct sublet__demo_results *results)
{
	uint64_t checked, wrong;
	totals(results, &checked, &wrong);
	printf("\nRedis, %u connections, 80 %% GET, 20 %% SET; medians of %u rounds of %s, taken in turn\n\n",
	       SUBLET__LOAD_CONNECTIONS, results->rounds, sublet__duration(results->round_ns).text);
	print_redis(results);
	printf("\n");
	print_claims(results);
	printf("%-20s  %llu answers compared in full, %llu wrong\n", "values", (unsigned long long)checked,
	       (unsigned long long)wrong);
	printf("%-20s  before %.12s, after %.12s, plain twin %.12s: %s\n", "data set digest",
	       results->digest_before, results->digest_after, results->digest_plain,
	       digests_equal(results) ? "equal" : "DIFFERENT");
	struct range plain = range_of(results, SUBLET__MODE_PLAIN, rate);
	if (plain.highest > BUSY_RATIO * plain.lowest)
		printf("\nThis machine was busy with something else: the plain heap alone went from %.0f to "
		       "%.0f\n"
		       "requests a second. The checks hold; put no trust in the ratios.\n",
		       plain.lowest, plain.highest);
	printf("\n%s in %s.\n", sublet__demo_good(results) ? "All good" : "NOT GOOD",
	       sublet__duration(results->elapsed_ns).text);
}

static void json_redis(cJSON *root, const struct sublet__demo_results *results)
{
	cJSON *redis = cJSON_AddObjectToObject(root, "redis");
	for (uint32_t mode = 0; mode < SUBLET__MODES; mode++) {
		cJSON *column = cJSON_AddObjectToObject(redis, modes[mode].name);
		for (size_t row = 0; row < ROWS; row++)
			cJSON_AddNumberToObject(column, rows[row].name,
						median(results, mode, rows[row].value));
		struct range range = range_of(results, mode, ratio);
		cJSON_AddNumberToObject(column, "ratio_lowest", range.lowest);
		cJSON_AddNumberToObject(column, "ratio_highest", range.highest);
		cJSON *rounds = cJSON_AddArrayToObject(column, "rounds_operations_per_second");
		for (uint32_t round = 0; round < results->rounds; round++)
			cJSON_AddItemToArray(rounds, cJSON_CreateNumber(results->load[mode][round].rate));
	}
}

static void json_claims(cJSON *root, const struct sublet__demo_results *results)
{
	static const char *const readings[] = { "io_uring_fixed", "io_uring", "pread" };
	const struct sublet__driver *driver = results->driver;
	struct claim_summary s = summarise(results);
	cJSON *claims = cJSON_AddObjectToObject(root, "claims");
	cJSON_AddNumberToObject(claims, "bytes_each", (double)SUBLET__DEMO_CLAIM_BYTES);
	cJSON_AddNumberToObject(claims, "tried", driver->claims);
	cJSON_AddNumberToObject(claims, "succeeded", driver->claims_succeeded);
	if (driver->failure[0])
		cJSON_AddStringToObject(claims, "first_failure", driver->failure);
	cJSON_AddNumberToObject(claims, "p50_ns", (double)s.p50_ns);
	cJSON_AddNumberToObject(claims, "p99_ns", (double)s.p99_ns);
	cJSON_AddNumberToObject(claims, "max_ns", (double)s.max_ns);
	cJSON_AddNumberToObject(claims, "engine_p50_ns", (double)s.engine_p50_ns);
	cJSON_AddNumberToObject(claims, "memcpy_ns", s.memcpy_ns);
	cJSON_AddNumberToObject(claims, "ratio_to_memcpy", s.ratio);
	cJSON_AddNumberToObject(claims, "moved_bytes", (double)driver->moved_bytes);
	cJSON_AddNumberToObject(claims, "ticks_missed", (double)driver->ticks_missed);
	cJSON *frames = cJSON_AddObjectToObject(root, "frames");
	cJSON_AddStringToObject(frames, "reading", readings[driver->reading % 3]);
	cJSON_AddNumberToObject(frames, "registration_ns", (double)driver->registration_ns);
	cJSON_AddNumberToObject(frames, "bytes_each", SUBLET__FRAME_BYTES);
	cJSON_AddNumberToObject(frames, "good", (double)driver->frames_good);
	cJSON_AddNumberToObject(frames, "bad", (double)driver->frames_bad);
	cJSON *death = cJSON_AddObjectToObject(root, "driver_killed");
	cJSON_AddBoolToObject(death, "released", results->death_released);
	cJSON_AddNumberToObject(death, "released_after_ns", (double)results->death_ns);
}

void sublet__demo_json(cJSON *root, struct sublet__demo_results *results)
{
	uint64_t checked, wrong;
	totals(results, &checked, &wrong);
	cJSON_AddNumberToObject(root, "elapsed_ns", (double)results->elapsed_ns);
	cJSON_AddNumberToObject(root, "rounds", results->rounds);
	cJSON_AddNumberToObject(root, "round_ns", (double)results->round_ns);
	cJSON_AddNumberToObject(root, "area_bytes", (double)results->arena.area_bytes);
	cJSON_AddNumberToObject(root, "normal_bytes", (double)results->arena.normal_bytes);
	json_redis(root, results);
	json_claims(root, results);
	cJSON *data = cJSON_AddObjectToObject(root, "data_set");
	cJSON_AddNumberToObject(data, "keys", SUBLET__KEYS);
	cJSON_AddStringToObject(data, "digest_before", results->digest_before);
	cJSON_AddStringToObject(data, "digest_after", results->digest_after);
	cJSON_AddStringToObject(data, "digest_plain", results->digest_plain);
	cJSON_AddBoolToObject(data, "equal", digests_equal(results));
	cJSON_AddNumberToObject(data, "values_checked", (double)checked);
	cJSON_AddNumberToObject(data, "values_wrong", (double)wrong);
}
