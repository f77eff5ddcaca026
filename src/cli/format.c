/* SPDX-License-Identifier: MIT */
/*
 * Numbers and errors as people read them.
 *
 * Three significant digits are enough for anything shown to a person; whoever wants every byte asks
 * for --json. Errors are one line that names the thing, and where there is something to do about
 * it, a second one that says what.
 */
#include "cli/cli.h"

#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <string.h>

void sublet__error(const char *format, ...)
{
	va_list args;

	fflush(stdout); /* keep the order where both go to one file */
	fputs("sublet: ", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
}

void sublet__advice(const char *format, ...)
{
	va_list args;

	fputs("        ", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
}

const char *sublet__errno_text(int error)
{
	switch (error) {
	case -EPIPE:
	case -ECONNREFUSED:
		return "it has ended";
	case -EPROTO:
		return "it speaks another version of the protocol";
	case -ETIMEDOUT:
		return "it does not answer (stopped?)";
	case -EUSERS:
		return "it has too many connections";
	default:
		return strerror(error < 0 ? -error : error);
	}
}

/* value / unit with three digits, "41.2", "412", "4.12"; no zeros at the end of a fraction. */
static struct sublet__text three_digits(uint64_t value, uint64_t unit, const char *name)
{
	struct sublet__text t;
	double v = (double)value / (double)unit;
	int decimals = v < 9.995 ? 2 : v < 99.95 ? 1 : 0;
	char number[24];
	size_t n;

	snprintf(number, sizeof(number), "%.*f", decimals, v);
	n = strlen(number);
	if (decimals) {
		while (number[n - 1] == '0')
			n--;
		if (number[n - 1] == '.')
			n--;
		number[n] = '\0';
	}
	snprintf(t.text, sizeof(t.text), "%s %s", number, name);
	return t;
}

struct sublet__text sublet__bytes(uint64_t bytes)
{
	static const char *const names[] = { "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
	uint64_t unit = 1024;
	size_t i = 0;

	if (!bytes)
		return (struct sublet__text){ "0" };
	if (bytes < 1024)
		return three_digits(bytes, 1, bytes == 1 ? "byte" : "bytes");
	/* not >= 1024: 1023.9 MiB would print as 1024 MiB */
	while (i + 1 < sizeof(names) / sizeof(names[0]) && (double)bytes / (double)unit >= 1023.5) {
		unit <<= 10;
		i++;
	}
	return three_digits(bytes, unit, names[i]);
}

struct sublet__text sublet__duration(uint64_t ns)
{
	if (!ns)
		return (struct sublet__text){ "0" };
	if (ns < SUBLET_US)
		return three_digits(ns, 1, "ns");
	if (ns < 999500)
		return three_digits(ns, SUBLET_US, "µs");
	if (ns < 999500000)
		return three_digits(ns, SUBLET_MS, "ms");
	return three_digits(ns, SUBLET_SEC, "s");
}

struct sublet__text sublet__size_option(uint64_t bytes)
{
	static const char suffix[] = "KMGT";
	struct sublet__text t;
	size_t i = 0;

	if (!bytes || bytes % 1024) {
		snprintf(t.text, sizeof(t.text), "%llu", (unsigned long long)bytes);
		return t;
	}
	bytes /= 1024;
	for (; i + 2 < sizeof(suffix) && bytes % 1024 == 0; i++)
		bytes /= 1024;
	snprintf(t.text, sizeof(t.text), "%llu%c", (unsigned long long)bytes, suffix[i]);
	return t;
}

/* How many blanks fill up a text to `width` columns. */
static int blanks(int width, const char *text)
{
	int columns = 0;

	for (const char *p = text; *p; p++)
		columns += ((unsigned char)*p & 0xc0) != 0x80;
	return width > columns ? width - columns : 0;
}

void sublet__print_left(int width, const char *text)
{
	printf("%s%*s", text, blanks(width, text), "");
}

void sublet__print_right(int width, const char *text)
{
	printf("%*s%s", blanks(width, text), "", text);
}

int sublet__usage_error(const char *subcommand)
{
	sublet__advice("Try: sublet %s --help", subcommand);
	return SUBLET__EXIT_USAGE;
}

int sublet__option_error(const char *subcommand, int code, char **argv)
{
	const char *word = argv[optind - 1];
	char letter[3] = { '-', (char)optopt, '\0' };
	bool is_long = !strncmp(word, "--", 2);

	if (code == ':')
		sublet__error("%s: option '%s' needs a value", subcommand, is_long ? word : letter);
	else if (is_long && strchr(word, '=') && optopt)
		sublet__error("%s: option '%.*s' takes no value", subcommand, (int)strcspn(word, "="), word);
	else
		sublet__error("%s has no option '%s'", subcommand, is_long || !optopt ? word : letter);
	return sublet__usage_error(subcommand);
}

int sublet__extra_argument(const char *subcommand, const char *argument)
{
	sublet__error("%s: what is '%s' for?", subcommand, argument);
	return sublet__usage_error(subcommand);
}

int sublet__finish(int code)
{
	if (fflush(stdout) || ferror(stdout)) {
		sublet__error("cannot write the output: %s", strerror(errno));
		return code ? code : SUBLET__EXIT_FAILED;
	}
	return code;
}
