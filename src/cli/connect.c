/* SPDX-License-Identifier: MIT */
/*
 * From a command line to a name, and from that to a connection, with words for everything that can be in between.
 *
 * The library answers with an -errno; here it becomes a sentence that names what runs instead, so
 * that the next command line can be typed from the screen.
 */
#include "cli/cli.h"

#include "control/instance.h"

#include <errno.h>
#include <getopt.h>
#include <string.h>

#define SHOWN_MAX 16

bool sublet__instance_options(int argc, char **argv, const char *help, const char **instance, bool *json,
			      bool *watch, int *code)
{
	static const struct option known[] = {
		{ "watch", no_argument, NULL, 'w' },
		{ "name", required_argument, NULL, 'n' },
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	const struct option *options = known + !watch; /* without its first, where there is none */
	const char *letters = watch ? ":n:jhw" : ":n:jh";
	int c;

	opterr = 0;
	while ((c = getopt_long(argc, argv, letters, options, NULL)) != -1) {
		switch (c) {
		case 'n':
			*instance = optarg;
			break;
		case 'w':
			*watch = true;
			break;
		case 'j':
			*json = true;
			break;
		case 'h':
			fputs(help, stdout);
			*code = SUBLET__EXIT_OK;
			return false;
		default:
			*code = sublet__option_error(argv[0], c, argv);
			return false;
		}
	}
	if (optind < argc && !*instance)
		*instance = argv[optind++];
	if (optind < argc)
		*code = sublet__extra_argument(argv[0], argv[optind]);
	return optind >= argc;
}

/* "Running: web (pid 12), db (pid 13)." or how to start one. */
static void advise_running(void)
{
	struct sublet_instance in[SHOWN_MAX];
	int n = sublet_instance_list(in, SHOWN_MAX);

	if (n <= 0) {
		sublet__advice("Start one with: sublet run --name NAME -- PROGRAM");
		return;
	}
	fputs("        Running:", stderr);
	for (int i = 0; i < n && i < SHOWN_MAX; i++)
		fprintf(stderr, "%s %s (pid %d)", i ? "," : "", in[i].name, (int)in[i].pid);
	fputs(n > SHOWN_MAX ? ", ...\n" : ".\n", stderr);
}

static int no_instance(const char *name)
{
	char dir[SUBLET__DIR_BYTES];

	if (name) {
		sublet__error("no instance '%s' is running", name);
		advise_running();
		return SUBLET__EXIT_NO_INSTANCE;
	}
	if (sublet__instance_dir_path(dir))
		sublet__error("no instance is running");
	else
		sublet__error("no instance is running (looked in %s)", dir);
	sublet__advice("Start one with: sublet run --name NAME -- PROGRAM");
	return SUBLET__EXIT_NO_INSTANCE;
}

static int several(const char *name)
{
	if (name)
		sublet__error("several instances are called '%s': choose one by its pid with -n PID", name);
	else
		sublet__error("several instances are running: choose one with -n NAME");
	advise_running();
	return SUBLET__EXIT_NO_INSTANCE;
}

static int bad_directory(int error)
{
	char dir[SUBLET__DIR_BYTES];

	if (sublet__instance_dir_path(dir)) {
		sublet__error("the path in XDG_RUNTIME_DIR is too long");
		return SUBLET__EXIT_FAILED;
	}
	sublet__error("cannot use the instance directory %s: %s", dir,
		      error == -EPERM ? "it must be a directory of your own with mode 0700"
				      : sublet__errno_text(error));
	sublet__advice("Look at it with: ls -ld %s", dir);
	return SUBLET__EXIT_FAILED;
}

int sublet__cli_directory_failed(int error)
{
	return bad_directory(error);
}

int sublet__cli_connect(const char *name_or_pid, struct sublet_client **client)
{
	int err = sublet_client_connect(name_or_pid, client);
	const char *name = name_or_pid ? name_or_pid : "the instance";

	switch (err) {
	case 0:
		return SUBLET__EXIT_OK;
	case -ENOENT:
		return no_instance(name_or_pid);
	case -ENOTUNIQ:
		return several(name_or_pid);
	case -ECONNREFUSED:
		sublet__error("instance '%s' has ended", name);
		advise_running();
		return SUBLET__EXIT_NO_INSTANCE;
	case -EACCES:
		sublet__error("instance '%s' belongs to another user", name);
		sublet__advice("Run this command as the user that started it.");
		return SUBLET__EXIT_NO_INSTANCE;
	case -EPERM:
	case -ENAMETOOLONG:
		return bad_directory(err);
	case -EPROTO:
		sublet__error("cannot talk to %s: it was started by another version of sublet (this is %s)",
			      name, SUBLET_VERSION);
		sublet__advice("Restart it with this version, or use the `sublet` it was started with.");
		return SUBLET__EXIT_FAILED;
	case -EUSERS:
		sublet__error("cannot talk to %s: it has too many connections; end some drivers first", name);
		return SUBLET__EXIT_FAILED;
	case -ETIMEDOUT:
		sublet__error("%s does not answer: is it stopped (ps shows state T)?", name);
		return SUBLET__EXIT_FAILED;
	default:
		sublet__error("cannot connect to %s: %s", name, sublet__errno_text(err));
		return SUBLET__EXIT_FAILED;
	}
}

int sublet__cli_call_failed(const struct sublet_client *client, const char *what, int error)
{
	const struct sublet_instance *in = sublet_client_instance(client);

	if (error == -EPIPE) {
		sublet__error("%s (pid %d) has ended", in->name, (int)in->pid);
		return SUBLET__EXIT_NO_INSTANCE;
	}
	sublet__error("cannot %s %s: %s", what, in->name, sublet__errno_text(error));
	return SUBLET__EXIT_FAILED;
}
