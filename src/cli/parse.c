/* SPDX-License-Identifier: MIT */
/*
 * Sizes, durations and counts as people type them.
 *
 * Written by hand because strtod rounds and knows locales: "1.5G" is exactly 1610612736, and a value
 * that does not fit into 64 bits is an error, never a wrapped number. Sizes have units of 1024 in
 * both spellings (K, KiB); "KB" is refused, because half of its readers would be surprised.
 */
#include "cli/cli.h"

#include <ctype.h>
#include <errno.h>
#include <string.h>
#include <strings.h>

struct unit {
	const char *name;
	uint64_t value;
};

static const struct unit size_units[] = {
	{ "", 1 },
	{ "B", 1 },
	{ "K", SUBLET_KIB },
	{ "KiB", SUBLET_KIB },
	{ "M", SUBLET_MIB },
	{ "MiB", SUBLET_MIB },
	{ "G", SUBLET_GIB },
	{ "GiB", SUBLET_GIB },
	{ "T", SUBLET_GIB << 10 },
	{ "TiB", SUBLET_GIB << 10 },
	{ NULL, 0 },
};

static const struct unit duration_units[] = {
	{ "ns", 1 },         { "us", SUBLET_US },        { "ms", SUBLET_MS },
	{ "s", SUBLET_SEC }, { "min", 60 * SUBLET_SEC }, { "h", 3600 * SUBLET_SEC },
	{ NULL, 0 },
};

#define NINE_DIGITS 1000000000u

/* "12.5": whole = 12, fraction = 500000000 (of 10^9). Returns the first character after it, NULL: no number. */
static const char *scan_number(const char *text, uint64_t *whole, uint64_t *fraction, bool *too_large)
{
	const char *p = text;
	uint64_t scale = NINE_DIGITS;

	*whole = *fraction = 0;
	*too_large = false;
	for (; isdigit((unsigned char)*p); p++) {
		*too_large |= __builtin_mul_overflow(*whole, 10, whole);
		*too_large |= __builtin_add_overflow(*whole, (uint64_t)(*p - '0'), whole);
	}
	if (p == text || *p != '.')
		return p == text ? NULL : p;
	p++;
	if (!isdigit((unsigned char)*p))
		return NULL;
	for (; isdigit((unsigned char)*p); p++) {
		scale /= 10; /* digits beyond the ninth weigh nothing */
		*fraction += scale * (uint64_t)(*p - '0');
	}
	return p;
}

static const struct unit *find_unit(const struct unit *units, const char *name)
{
	for (; units->name; units++)
		if (!strcasecmp(units->name, name))
			return units;
	return NULL;
}

/* value * fraction / 10^9, in whole ones, without leaving 64 bits. */
static uint64_t part_of(uint64_t value, uint64_t fraction)
{
	return value / NINE_DIGITS * fraction + value % NINE_DIGITS * fraction / NINE_DIGITS;
}

static int parse(const char *text, const struct unit *units, uint64_t *value)
{
	uint64_t whole, fraction, result;
	const struct unit *unit;
	const char *rest;
	bool too_large;

	rest = scan_number(text, &whole, &fraction, &too_large);
	if (!rest)
		return -EINVAL;
	unit = find_unit(units, *rest == ' ' ? rest + 1 : rest);
	if (!unit)
		return -EINVAL;
	if (unit->value == 1 && fraction)
		return -EINVAL;
	if (too_large || __builtin_mul_overflow(whole, unit->value, &result))
		return -ERANGE;
	if (__builtin_add_overflow(result, part_of(unit->value, fraction), &result))
		return -ERANGE;
	*value = result;
	return 0;
}

int sublet__parse_size(const char *text, uint64_t *bytes)
{
	return parse(text, size_units, bytes);
}

int sublet__parse_duration(const char *text, uint64_t *ns)
{
	if (!strcmp(text, "0")) {
		*ns = 0;
		return 0;
	}
	return parse(text, duration_units, ns);
}

int sublet__parse_count(const char *text, uint64_t min, uint64_t max, uint64_t *value)
{
	uint64_t whole, fraction;
	bool too_large;
	const char *rest = scan_number(text, &whole, &fraction, &too_large);

	if (!rest || *rest || strchr(text, '.'))
		return -EINVAL;
	if (too_large || whole < min || whole > max)
		return -ERANGE;
	*value = whole;
	return 0;
}

bool sublet__option_size(const char *what, const char *text, uint64_t *bytes)
{
	int err = sublet__parse_size(text, bytes);

	if (err == -ERANGE)
		sublet__error("%s '%s' does not fit into 64 bits", what, text);
	else if (err)
		sublet__error("%s '%s' is no size: write 64M, 1.5G, 64KiB or 4096 (units of 1024)", what,
			      text);
	return !err;
}

bool sublet__option_duration(const char *what, const char *text, uint64_t *ns)
{
	int err = sublet__parse_duration(text, ns);

	if (err == -ERANGE)
		sublet__error("%s '%s' is too long", what, text);
	else if (err)
		sublet__error("%s '%s' is no duration: write 100us, 5ms, 1.5s, 2min", what, text);
	return !err;
}

bool sublet__option_count(const char *what, const char *text, uint64_t min, uint64_t max, uint64_t *value)
{
	int err = sublet__parse_count(text, min, max, value);

	if (err)
		sublet__error("%s '%s' is no number from %llu to %llu", what, text, (unsigned long long)min,
			      (unsigned long long)max);
	return !err;
}
