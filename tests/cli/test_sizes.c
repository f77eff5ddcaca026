/* SPDX-License-Identifier: MIT */
/* Sizes, durations and counts: what is understood, what is refused, and how values are printed; default sizes. */
#include "cli/cli.h"
#include "cli/sizes.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/resource.h>

#include <cmocka.h>

struct example {
	const char *text;
	int error;
	uint64_t value;
};

#define UNTOUCHED 0x5ab1e7u

static void check(int (*parse)(const char *, uint64_t *), const struct example *e, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		uint64_t value = UNTOUCHED;
		int err = parse(e[i].text, &value);

		if (err != e[i].error || value != (err ? UNTOUCHED : e[i].value))
			fail_msg("'%s': got %d, %llu", e[i].text, err, (unsigned long long)value);
	}
}

static void test_parse_sizes(void **state)
{
	static const struct example examples[] = {
		{ "0", 0, 0 },
		{ "1", 0, 1 },
		{ "4096", 0, 4096 },
		{ "4096B", 0, 4096 },
		{ "64K", 0, 64 << 10 },
		{ "64k", 0, 64 << 10 },
		{ "64KiB", 0, 64 << 10 },
		{ "64 MiB", 0, 64 << 20 },
		{ "64M", 0, 64 << 20 },
		{ "64mib", 0, 64 << 20 },
		{ "1.5G", 0, 3ull << 29 },
		{ "0.5K", 0, 512 },
		{ "2T", 0, 2ull << 40 },
		{ "0.1K", 0, 102 }, /* whole bytes */
		{ "1.9999999999999999999999M", 0, (2 << 20) - 1 },
		{ "18446744073709551615", 0, UINT64_MAX },
		{ "16777215T", 0, 16777215ull << 40 },
		{ "18446744073709551616", -ERANGE, 0 },
		{ "16777216T", -ERANGE, 0 },
		{ "99999999999999999999999999", -ERANGE, 0 },
		{ "17179869183.9999999999999G", 0,
		  (17179869183ull << 30) + 1073741822 }, /* nine digits count */
		{ "", -EINVAL, 0 },
		{ " ", -EINVAL, 0 },
		{ "abc", -EINVAL, 0 },
		{ "M", -EINVAL, 0 },
		{ "-1", -EINVAL, 0 },
		{ "+1", -EINVAL, 0 },
		{ " 1", -EINVAL, 0 },
		{ "1 ", 0, 1 },
		{ "1  M", -EINVAL, 0 },
		{ "1.5", -EINVAL, 0 },
		{ "1.M", -EINVAL, 0 },
		{ ".5M", -EINVAL, 0 },
		{ "1.5.5M", -EINVAL, 0 },
		{ "64MB", -EINVAL, 0 },
		{ "64KB", -EINVAL, 0 },
		{ "0x10", -EINVAL, 0 },
		{ "1e6", -EINVAL, 0 },
		{ "64MM", -EINVAL, 0 },
	};

	(void)state;
	check(sublet__parse_size, examples, sizeof(examples) / sizeof(examples[0]));
}

static void test_parse_durations(void **state)
{
	static const struct example examples[] = {
		{ "0", 0, 0 },
		{ "250ns", 0, 250 },
		{ "100us", 0, 100000 },
		{ "1ms", 0, SUBLET_MS },
		{ "5s", 0, 5 * SUBLET_SEC },
		{ "1.5s", 0, 1500 * SUBLET_MS },
		{ "2min", 0, 120 * SUBLET_SEC },
		{ "1h", 0, 3600 * SUBLET_SEC },
		{ "0s", 0, 0 },
		{ "18446744073s", 0, 18446744073ull * SUBLET_SEC },
		{ "18446744074s", -ERANGE, 0 },
		{ "5", -EINVAL, 0 },
		{ "", -EINVAL, 0 },
		{ "s", -EINVAL, 0 },
		{ "-1s", -EINVAL, 0 },
		{ "1.5ns", -EINVAL, 0 },
		{ "5 fortnights", -EINVAL, 0 },
	};

	(void)state;
	check(sublet__parse_duration, examples, sizeof(examples) / sizeof(examples[0]));
}

static void test_parse_counts(void **state)
{
	uint64_t value = UNTOUCHED;

	(void)state;
	assert_int_equal(sublet__parse_count("0", 1, 10, &value), -ERANGE);
	assert_int_equal(sublet__parse_count("11", 1, 10, &value), -ERANGE);
	assert_int_equal(sublet__parse_count("18446744073709551616", 0, UINT64_MAX, &value), -ERANGE);
	assert_int_equal(sublet__parse_count("1.0", 1, 10, &value), -EINVAL);
	assert_int_equal(sublet__parse_count("ten", 1, 10, &value), -EINVAL);
	assert_int_equal(sublet__parse_count("", 1, 10, &value), -EINVAL);
	assert_int_equal(value, UNTOUCHED);
	assert_int_equal(sublet__parse_count("10", 1, 10, &value), 0);
	assert_int_equal(value, 10);
}

static void test_print(void **state)
{
	(void)state;
	assert_string_equal(sublet__bytes(0).text, "0");
	assert_string_equal(sublet__bytes(1).text, "1 byte");
	assert_string_equal(sublet__bytes(1023).text, "1023 bytes");
	assert_string_equal(sublet__bytes(1024).text, "1 KiB");
	assert_string_equal(sublet__bytes(64 * SUBLET_MIB).text, "64 MiB");
	assert_string_equal(sublet__bytes(43201331).text, "41.2 MiB");
	assert_string_equal(sublet__bytes(SUBLET_GIB - 1).text, "1 GiB");
	assert_string_equal(sublet__bytes(3 * SUBLET_GIB / 2).text, "1.5 GiB");
	assert_string_equal(sublet__bytes(UINT64_MAX).text, "16 EiB");
	assert_string_equal(sublet__duration(0).text, "0");
	assert_string_equal(sublet__duration(999).text, "999 ns");
	assert_string_equal(sublet__duration(8900000).text, "8.9 ms");
	assert_string_equal(sublet__duration(999999).text, "1 ms");
	assert_string_equal(sublet__duration(1500 * SUBLET_MS).text, "1.5 s");
	assert_string_equal(sublet__size_option(512 * SUBLET_MIB).text, "512M");
	assert_string_equal(sublet__size_option(3 * SUBLET_GIB / 2).text, "1536M");
	assert_string_equal(sublet__size_option(4097).text, "4097");
}

/* ---- default sizes ---- */

static void test_default_sizes(void **state)
{
	static const uint64_t available_mib[] = { 1,   8,   16,   40,   64,   95,    100,
						  128, 300, 1000, 4096, 5120, 24000, 900000 };
	const struct sublet__sizes none = { 0, 0 };

	(void)state;
	for (size_t i = 0; i < sizeof(available_mib) / sizeof(available_mib[0]); i++) {
		struct sublet__linux_facts f = { .memory_available_bytes = available_mib[i] * SUBLET_MIB };
		struct sublet__sizes s = sublet__sizes_choose(&f, &none, false, false, false);
		uint64_t together = s.area_bytes + s.normal_bytes, share = f.memory_available_bytes / 4;

		assert_true(s.area_bytes >= SUBLET__UNIT_BYTES && s.normal_bytes >= SUBLET__UNIT_BYTES);
		assert_int_equal(together % SUBLET__UNIT_BYTES + s.area_bytes % SUBLET__UNIT_BYTES, 0);
		/* What the help says, and no more than two units at the least. */
		assert_true(together <= share || together == 2 * SUBLET__UNIT_BYTES);
		assert_true(s.area_bytes <= SUBLET_GIB && s.area_bytes >= s.normal_bytes);
		/* And most of that share. */
		assert_true(together + SUBLET__UNIT_BYTES > share || s.area_bytes == SUBLET_GIB ||
			    together == 2 * SUBLET__UNIT_BYTES);
	}
}

static void test_given_sizes(void **state)
{
	const struct {
		uint64_t available_mib, area_mib, normal_mib, expect_area_mib, expect_normal_mib;
	} cases
		[] = {
			{ 24000, 64, 0, 64, 64 },    /* a quarter, raised to 64 */
			{ 24000, 512, 0, 512, 128 }, /* a quarter */
			{ 24000, 0, 64, 1024, 64 },
			{ 100, 16, 0, 16, 8 },  /* raised as far as a quarter of 100 allows */
			{ 100, 64, 0, 64, 16 }, /* asked for: a quarter of it all the same */
			{ 100, 0, 20, 4, 20 },
			{ 100, 0, 90, 2, 90 },
			{ 100, 3, 5, 4, 6 }, /* whole units */
		};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct sublet__linux_facts f = { .memory_available_bytes =
							 cases[i].available_mib * SUBLET_MIB };
		const struct sublet__sizes given = { cases[i].area_mib * SUBLET_MIB,
						     cases[i].normal_mib * SUBLET_MIB };
		struct sublet__sizes s = sublet__sizes_choose(&f, &given, cases[i].area_mib != 0,
							      cases[i].normal_mib != 0, false);

		assert_int_equal(s.area_bytes / SUBLET_MIB, cases[i].expect_area_mib);
		assert_int_equal(s.normal_bytes / SUBLET_MIB, cases[i].expect_normal_mib);
	}
}

/* A limit of the process makes the defaults smaller, and nothing that was given. */
static void test_sizes_under_limits(void **state)
{
	static const int kinds[] = { RLIMIT_AS, RLIMIT_DATA, RLIMIT_FSIZE };
	struct sublet__linux_facts f = { .memory_available_bytes = 64 * SUBLET_GIB };
	const struct sublet__sizes none = { 0, 0 }, given = { SUBLET_GIB, 0 };
	struct rlimit old;

	(void)state;
	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		__rlimit_resource_t kind = (__rlimit_resource_t)kinds[i];
		assert_int_equal(getrlimit(kind, &old), 0);
		struct rlimit low = { 64 * SUBLET_MIB, old.rlim_max };
		assert_int_equal(setrlimit(kind, &low), 0);
		assert_int_equal(getrlimit(kind, &low), 0);
		bool kept = low.rlim_cur ==
			    64 * SUBLET_MIB; /* an emulator may keep such limits from its own memory */
		struct sublet__sizes s = sublet__sizes_choose(&f, &none, false, false, false);
		struct sublet__sizes asked = sublet__sizes_choose(&f, &given, true, false, false);
		assert_int_equal(setrlimit(kind, &old), 0);
		if (kept && kind != RLIMIT_DATA) /* lent memory is not private */
			assert_true(s.area_bytes + s.normal_bytes <= 64 * SUBLET_MIB);
		assert_int_equal(asked.area_bytes, SUBLET_GIB);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_default_sizes),
		cmocka_unit_test(test_given_sizes),
		cmocka_unit_test(test_sizes_under_limits),
		cmocka_unit_test(test_parse_sizes),
		cmocka_unit_test(test_parse_durations),
		cmocka_unit_test(test_parse_counts),
		cmocka_unit_test(test_print),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
