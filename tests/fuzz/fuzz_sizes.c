/* SPDX-License-Identifier: MIT */
/*
 * Sizes, durations and counts of the command line. A number that is taken is the one that was typed: checked against
 * long double, which has 64 bits of it.
 */
#include "fuzz.h"

#include "cli/cli.h"

#include <math.h>

/* The first digits of the text as a number, by the book; -1: there are none. */
static long double number_of(const char *text)
{
	size_t n = strspn(text, "0123456789.");
	char *digits = fuzz_text((const uint8_t *)text, n);
	long double number = n && text[0] != '.' ? strtold(digits, NULL) : -1;

	free(digits);
	return number;
}

static void near_one_of(uint64_t value, long double number, const uint64_t *units, size_t count)
{
	require(number >= 0); /* a text that begins with no digit is no number, whatever it is taken for */
	for (size_t i = 0; i < count; i++)
		if (fabsl((long double)value - number * (long double)units[i]) <=
		    2 + (long double)units[i] / 1e8L)
			return;
	require(!"the value is not what the text says");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const uint64_t sizes[] = { 1, SUBLET_KIB, SUBLET_MIB, SUBLET_GIB, SUBLET_GIB << 10 };
	static const uint64_t times[] = { 1,          SUBLET_US,       SUBLET_MS,
					  SUBLET_SEC, 60 * SUBLET_SEC, 3600 * SUBLET_SEC };
	char *text = fuzz_text(data, size);
	long double number = number_of(text);
	uint64_t value = 77;

	if (sublet__parse_size(text, &value))
		require(value == 77);
	else
		near_one_of(value, number, sizes, sizeof sizes / sizeof *sizes);
	value = 77;
	if (sublet__parse_duration(text, &value))
		require(value == 77);
	else
		near_one_of(value, number, times, sizeof times / sizeof *times);
	value = 77;
	if (sublet__parse_count(text, 1, 4096, &value))
		require(value == 77);
	else
		require(value >= 1 && value <= 4096 && (long double)value == number);
	free(text);
	return 0;
}
