/* SPDX-License-Identifier: MIT */
/*
 * Functions of libc that fork inside, without a call that comes to the bridge's fork().
 *
 * They are written anew on top of it, so that a fork that cannot be had is an error to the program here too, and
 * not an end. system(), popen(), wordexp() and posix_spawn() share the memory with their child until it executes
 * another program, and need nothing.
 */
#include "bridge/bridge.h"

#include <fcntl.h>
#include <pty.h>
#include <unistd.h>
#include <utmp.h>

/* Standard input, output and errors to /dev/null; -1: they are not to be had. */
static int quiet(void)
{
	int null = open("/dev/null", O_RDWR);

	for (int fd = STDIN_FILENO; null >= 0 && fd <= STDERR_FILENO; fd++)
		if (dup2(null, fd) < 0)
			return -1;
	if (null > STDERR_FILENO)
		(void)close(null);
	return null < 0 ? -1 : 0;
}

SUBLET__INTERPOSER int daemon(int keep_directory, int keep_files)
{
	pid_t pid = fork();

	if (pid < 0)
		return -1;
	if (pid > 0)
		_exit(0);
	if (setsid() < 0 || (!keep_directory && chdir("/") != 0))
		return -1;
	return keep_files ? 0 : quiet();
}

SUBLET__INTERPOSER int forkpty(int *master, char *name, const struct termios *settings,
			       const struct winsize *window)
{
	int ours, theirs;
	pid_t pid;

	if (openpty(&ours, &theirs, name, settings, window) != 0)
		return -1;
	pid = fork();
	if (pid == 0) {
		(void)close(ours);
		if (login_tty(theirs) != 0)
			_exit(1);
		return 0;
	}
	(void)close(theirs);
	if (pid < 0)
		(void)close(ours);
	else
		*master = ours;
	return pid;
}
