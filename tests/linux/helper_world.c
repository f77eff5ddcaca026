/* SPDX-License-Identifier: MIT */
/* helper_world.c: see helper_world.h. */
#include "helper_world.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>

pid_t program_start(void (*program)(void))
{
	fflush(NULL);
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0) {
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
		program();
		_exit(0);
	}
	return pid;
}

int program_wait(pid_t pid)
{
	int status = 0;

	assert_int_equal(waitpid(pid, &status, 0), pid);
	return status;
}

void program_run(void (*program)(void))
{
	int status = program_wait(program_start(program));

	if (WIFEXITED(status) && WEXITSTATUS(status) == CANNOT)
		skip();
	assert_int_equal(status, 0);
}

/* Landlock knows the directory by a descriptor of the helper's. */
static int open_directory(void *arg)
{
	int fd = sublet__raw_open(AT_FDCWD, arg, O_RDONLY | O_DIRECTORY);

	if (fd >= 0)
		sublet__helper_unlink_at_end(fd, FILE_AT_END);
	return fd;
}

void helper_begin_in(const char *directory)
{
	CHECK(sublet__helper_start() == 0);
	CHECK(sublet__helper_exists() && !sublet__helper_is_here() && !sublet__helper_is_gone());
	if (directory)
		CHECK(sublet__helper_call(open_directory, (void *)(uintptr_t)directory) >= 0);
	CHECK(sublet__helper_confine() == 0);
}

void helper_begin(void)
{
	helper_begin_in(NULL);
}

static int own_pid(void *arg)
{
	(void)arg;
	return (int)syscall(SYS_getpid);
}

pid_t helper_pid(void)
{
	return sublet__helper_call(own_pid, NULL);
}

uint64_t status_number(pid_t pid, const char *name, int base)
{
	char path[64], line[256];
	uint64_t value = UINT64_MAX;

	snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
	FILE *file = fopen(path, "r");
	CHECK(file);
	while (value == UINT64_MAX && fgets(line, sizeof line, file))
		if (!strncmp(line, name, strlen(name)) && line[strlen(name)] == ':')
			value = strtoull(line + strlen(name) + 1, NULL, base);
	fclose(file);
	return value;
}

bool ends_soon(int pidfd)
{
	struct pollfd p = { .fd = pidfd, .events = POLLIN };

	return sublet__raw_poll(&p, 1, (int)(LONG_NS / SUBLET_MS)) == 1;
}
