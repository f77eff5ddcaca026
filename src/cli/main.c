/* SPDX-License-Identifier: MIT */
/*
 * The `sublet` command: find the subcommand, call it.
 *
 * Each subcommand is a file of its own with its own options and help; what they share is in
 * cli.h. A misspelt name is answered with the nearest one, by edit distance, because a list of
 * all names is longer than the reader needs.
 */
#include "cli/cli.h"

#include <locale.h>
#include <string.h>

struct command {
	const char *name;
	const char *what;
	int (*main)(int argc, char **argv);
};

static const struct command commands[] = {
	{ "run", "run a program with its heap in lent memory", sublet__cli_run },
	{ "claim", "take contiguous memory of a running instance, and give it back", sublet__cli_claim },
	{ "stat", "what an instance holds and what it did", sublet__cli_stat },
	{ "map", "the area as a picture", sublet__cli_map },
	{ "pins", "who holds memory where it is, and since when", sublet__cli_pins },
	{ "bos", "what devices look at: buffers that are claimed, pinned or tracked", sublet__cli_bos },
	{ "list", "running instances", sublet__cli_list },
	{ "doctor", "what this machine offers, and what to do about the rest", sublet__cli_doctor },
	{ "demo", "see it work on this machine", sublet__cli_demo },
};

#define COMMAND_COUNT (sizeof(commands) / sizeof(commands[0]))

static void print_help(FILE *out)
{
	fputs("usage: sublet COMMAND [OPTIONS]\n"
	      "\n"
	      "Contiguous memory that works while it waits.\n"
	      "\n",
	      out);
	for (size_t i = 0; i < COMMAND_COUNT; i++)
		fprintf(out, "  %-8s %s\n", commands[i].name, commands[i].what);
	fputs("\n"
	      "  sublet COMMAND --help   options of a command\n"
	      "  sublet --version        version of the command and of the library\n"
	      "\n"
	      "exit status:\n"
	      "  0    all is well\n"
	      "  1    the system or the instance refused\n"
	      "  2    the command line makes no sense; nothing was done\n"
	      "  3    no such instance: none or several fit, it has ended, or it is another user's\n"
	      "  4    claim: somebody holds memory in every window\n"
	      "  5    claim: some bytes have nowhere to go, or the area is too small\n"
	      "  130  interrupted\n"
	      "  `sublet run` exits as its program does.\n",
	      out);
}

static size_t min3(size_t a, size_t b, size_t c)
{
	size_t m = a < b ? a : b;

	return m < c ? m : c;
}

/* Levenshtein distance; the longer tail of an overlong `a` counts as so many edits. */
static size_t distance(const char *a, const char *b)
{
	enum { LENGTH_MAX = 16 };
	size_t row[LENGTH_MAX + 1], na = strlen(a), nb = strlen(b);

	if (na > 2 * LENGTH_MAX || nb > LENGTH_MAX)
		return 3 * LENGTH_MAX;
	for (size_t j = 0; j <= nb; j++)
		row[j] = j;
	for (size_t i = 1; i <= na; i++) {
		size_t diagonal = row[0];

		row[0] = i;
		for (size_t j = 1; j <= nb; j++) {
			size_t above = row[j];

			row[j] = min3(above + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1]));
			diagonal = above;
		}
	}
	return row[nb];
}

static const struct command *find(const char *name)
{
	for (size_t i = 0; i < COMMAND_COUNT; i++)
		if (!strcmp(commands[i].name, name))
			return &commands[i];
	return NULL;
}

static int unknown(const char *name)
{
	const struct command *nearest = NULL;
	size_t best = 3; /* further away is no misspelling */

	for (size_t i = 0; i < COMMAND_COUNT; i++) {
		size_t d = distance(name, commands[i].name);

		if (d < best && 2 * d <= strlen(commands[i].name)) {
			best = d;
			nearest = &commands[i];
		}
	}
	if (nearest)
		sublet__error("there is no command '%s': did you mean `sublet %s`?", name, nearest->name);
	else
		sublet__error("there is no command '%s': see `sublet help`", name);
	return SUBLET__EXIT_USAGE;
}

static int help(int argc, char **argv)
{
	static char option[] = "--help";
	const struct command *c;

	if (argc < 2) {
		print_help(stdout);
		return SUBLET__EXIT_OK;
	}
	c = find(argv[1]);
	if (!c)
		return unknown(argv[1]);
	return c->main(2, (char *[]){ argv[1], option, NULL });
}

static int print_version(void)
{
	printf("sublet %s", SUBLET_VERSION);
	if (strcmp(sublet_version(), SUBLET_VERSION) != 0)
		printf(" (library %s)", sublet_version());
	putchar('\n');
	return SUBLET__EXIT_OK;
}

int main(int argc, char **argv)
{
	const struct command *c;
	const char *name = argc > 1 ? argv[1] : NULL;

	setlocale(LC_CTYPE, "");
	if (!name) {
		print_help(stderr);
		return SUBLET__EXIT_USAGE;
	}
	if (!strcmp(name, "--help") || !strcmp(name, "-h") || !strcmp(name, "help"))
		return sublet__finish(help(argc - 1, argv + 1));
	if (!strcmp(name, "--version") || !strcmp(name, "-V") || !strcmp(name, "version"))
		return sublet__finish(print_version());
	if (name[0] == '-') {
		sublet__error("there is no option '%s' before the command: see `sublet help`", name);
		return SUBLET__EXIT_USAGE;
	}
	c = find(name);
	return c ? sublet__finish(c->main(argc - 1, argv + 1)) : unknown(name);
}
