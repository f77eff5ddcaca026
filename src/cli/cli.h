/* SPDX-License-Identifier: MIT */
/* cli/cli.h: what the files of the `sublet` command share. */
#ifndef SUBLET_CLI_CLI_H
#define SUBLET_CLI_CLI_H

#include <sublet/client.h>

#include <stdio.h>

/* Exit codes; `sublet help` prints this list. `run` exits as its program does. */
enum sublet__exit {
	SUBLET__EXIT_OK = 0,
	SUBLET__EXIT_FAILED = 1,      /* the system or the instance refused */
	SUBLET__EXIT_USAGE = 2,       /* the command line makes no sense; nothing was done */
	SUBLET__EXIT_NO_INSTANCE = 3, /* none fits, several fit, it has ended, or it is another user's */
	SUBLET__EXIT_BUSY = 4,        /* claim: somebody holds memory in every window */
	SUBLET__EXIT_NO_ROOM = 5,     /* claim: some bytes have nowhere to go, or the area is too small */
	SUBLET__EXIT_INTERRUPTED = 130,
};

/* ---- subcommands: main.c calls them with argv[0] = the subcommand's name; they return an exit code ---- */

int sublet__cli_run(int argc, char **argv);
int sublet__cli_claim(int argc, char **argv);
int sublet__cli_stat(int argc, char **argv);
int sublet__cli_map(int argc, char **argv);
int sublet__cli_pins(int argc, char **argv);
int sublet__cli_bos(int argc, char **argv);
int sublet__cli_list(int argc, char **argv);
int sublet__cli_doctor(int argc, char **argv);
int sublet__cli_demo(int argc, char **argv);

/* ---- parsers (parse.c): 0, -EINVAL: no such number or unit, -ERANGE: does not fit; *out untouched ---- */

/* "4096", "64K", "64KiB", "1.5G", "2TiB": units of 1024, upper or lower case. A fraction needs a unit. */
int sublet__parse_size(const char *text, uint64_t *bytes);
/* "100us", "1ms", "1.5s", "2min", "1h", "250ns", and "0". */
int sublet__parse_duration(const char *text, uint64_t *ns);
/* A decimal number and nothing else, min <= value <= max. */
int sublet__parse_count(const char *text, uint64_t min, uint64_t max, uint64_t *value);

/*
 * The same for an option's value: on failure one error line that names `what` ("SIZE", "--area"),
 * shows the text and says what is expected. Returns true when *out was set.
 */
bool sublet__option_size(const char *what, const char *text, uint64_t *bytes);
bool sublet__option_duration(const char *what, const char *text, uint64_t *ns);
bool sublet__option_count(const char *what, const char *text, uint64_t min, uint64_t max, uint64_t *value);

/* ---- output (format.c) ---- */

/* "sublet: ..." and a newline on stderr. */
void sublet__error(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* A second line that says what to do, indented under the first. */
void sublet__advice(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* What an -errno means, in a few words; never NULL. */
const char *sublet__errno_text(int error);

/* A text in a struct, so that several fit into one printf: sublet__bytes(n).text */
struct sublet__text {
	char text[32];
};
struct sublet__text sublet__bytes(uint64_t bytes);       /* "41.2 MiB", "0" */
struct sublet__text sublet__duration(uint64_t ns);       /* "8.9 ms", "0" */
struct sublet__text sublet__size_option(uint64_t bytes); /* as one types it: "512M" */

/* A text in at least so many columns; printf counts the two bytes of a µ as two. */
void sublet__print_left(int width, const char *text);
void sublet__print_right(int width, const char *text);

/* "        Try: sublet NAME --help" after an error line of your own; returns SUBLET__EXIT_USAGE. */
int sublet__usage_error(const char *subcommand);
/*
 * getopt_long (with opterr = 0 and an option string that begins with ':') returned `code`, '?' or
 * ':': say which option was meant, and return SUBLET__EXIT_USAGE.
 */
int sublet__option_error(const char *subcommand, int code, char **argv);
/* An argument too many: name it, and return SUBLET__EXIT_USAGE. */
int sublet__extra_argument(const char *subcommand, const char *argument);

/* Flush stdout; an error (a full disk, a closed pipe) is reported and turns `code` 0 into 1. */
int sublet__finish(int code);

/* "thp", "zap": as options and JSON have them (stat.c). */
const char *sublet__backing_name(enum sublet_backing backing);
const char *sublet__technique_name(enum sublet_technique technique);

/* ---- instances (connect.c) ---- */

/*
 * The command line of a subcommand that shows an instance: [-n] NAME|PID, --json, --help; --watch where `watch` is not
 * NULL. true: all is set, *instance NULL where none was named. false: it ends here, with exit code *code.
 */
bool sublet__instance_options(int argc, char **argv, const char *help, const char **instance, bool *json,
			      bool *watch, int *code);
/* Connect, or print why not and what to do. Returns an exit code. */
int sublet__cli_connect(const char *name_or_pid, struct sublet_client **client);
/* The directory of instances cannot be used: say why. Returns an exit code. */
int sublet__cli_directory_failed(int error);
/* A call on a connected client failed: one line, and the exit code. */
int sublet__cli_call_failed(const struct sublet_client *client, const char *what, int error);

#endif
