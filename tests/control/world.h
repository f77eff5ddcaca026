/* SPDX-License-Identifier: MIT */
/*
 * A world for tests of the control socket: an instance directory of its own, a pretended arena, and
 * ways to reach it. What a test leaves behind (threads, descriptors, files) is found by its
 * teardown and not by the next test. Included by one .c file a program.
 */
#ifndef SUBLET_TESTS_WORLD_H
#define SUBLET_TESTS_WORLD_H

#include "control/instance.h"
#include "control/protocol.h"
#include "control/server.h"
#include "control/wire.h"
#include "fake_engine.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <cmocka.h>

struct world {
	char dir[64]; /* XDG_RUNTIME_DIR */
	struct sublet_arena arena;
};

static inline int setup(void **state)
{
	struct world *w = calloc(1, sizeof(*w));

	assert_non_null(w);
	strcpy(w->dir, "/tmp/sublet-test-XXXXXX");
	assert_non_null(mkdtemp(w->dir));
	setenv("XDG_RUNTIME_DIR", w->dir, 1);
	fake_create(&w->arena);
	*state = w;
	return 0;
}

/* How many files are in the instance directory, hidden ones too; removes them if asked. */
static inline int files_left(const struct world *w, bool clean)
{
	char path[128];
	struct dirent *e;
	int n = 0;
	DIR *d;

	snprintf(path, sizeof(path), "%s/sublet", w->dir);
	d = opendir(path);
	if (!d)
		return 0;
	while ((e = readdir(d))) {
		if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
			continue;
		n++;
		if (clean)
			unlinkat(dirfd(d), e->d_name, 0);
	}
	closedir(d);
	if (clean)
		rmdir(path);
	return n;
}

static inline int teardown(void **state)
{
	struct world *w = *state;

	fake_destroy(&w->arena);
	files_left(w, true);
	rmdir(w->dir);
	free(w);
	return 0;
}

static inline void serve(struct world *w, const char *name)
{
	assert_int_equal(sublet_arena_serve(&w->arena, name), 0);
}

static inline struct sublet_client *connect_to(const char *name)
{
	struct sublet_client *client = NULL;

	assert_int_equal(sublet_client_connect(name, &client), 0);
	return client;
}

/* A connection below the client library. */
static inline int connect_raw(const char *name)
{
	char file[SUBLET__FILE_BYTES];
	int fd, dir = sublet__instance_dir_open(false);

	assert_true(dir >= 0);
	sublet__instance_file(file, name, getpid());
	fd = sublet__instance_reach(dir, file);
	close(dir);
	assert_true(fd >= 0);
	return fd;
}

static inline void sleep_ms(uint64_t ms)
{
	nanosleep(&(struct timespec){ .tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000 },
		  NULL);
}

/* Wait at most five seconds until *value == expected. */
static inline void expect_soon(const _Atomic uint64_t *value, uint64_t expected)
{
	for (int i = 0; i < 500 && *value != expected; i++)
		sleep_ms(10);
	assert_int_equal(*value, expected);
}

static inline void end_child(pid_t pid)
{
	int status;

	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, &status, 0), pid);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

#endif
