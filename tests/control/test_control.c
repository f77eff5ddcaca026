/* SPDX-License-Identifier: MIT */
/*
 * The control socket from both ends: a real server, real clients, and an engine that only pretends.
 *
 * Each test gets an instance directory and an arena of its own, so that what one test leaves
 * behind (threads, descriptors, files) is found by its teardown and not by the next test.
 */
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

static int setup(void **state)
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
static int files_left(const struct world *w, bool clean)
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

static int teardown(void **state)
{
	struct world *w = *state;

	fake_destroy(&w->arena);
	files_left(w, true);
	rmdir(w->dir);
	free(w);
	return 0;
}

static void serve(struct world *w, const char *name)
{
	assert_int_equal(sublet_arena_serve(&w->arena, name), 0);
}

static struct sublet_client *connect_to(const char *name)
{
	struct sublet_client *client = NULL;

	assert_int_equal(sublet_client_connect(name, &client), 0);
	return client;
}

/* A connection below the client library. */
static int connect_raw(const char *name)
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

static void sleep_ms(uint64_t ms)
{
	nanosleep(&(struct timespec){ .tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000 }, NULL);
}

/* Wait at most five seconds until *value == expected. */
static void expect_soon(const _Atomic uint64_t *value, uint64_t expected)
{
	for (int i = 0; i < 500 && *value != expected; i++)
		sleep_ms(10);
	assert_int_equal(*value, expected);
}

static void end_child(pid_t pid)
{
	int status;

	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, &status, 0), pid);
}

/* ---- what works ---- */

static void test_hello_and_info(void **state)
{
	struct world *w = *state;
	struct sublet_arena_info info = { SUBLET_OPTIONS(sublet_arena_info) };
	char pid[16];
	const char *names[3] = { "web", pid, NULL };

	snprintf(pid, sizeof(pid), "%d", (int)getpid());
	serve(w, "web");
	for (int i = 0; i < 3; i++) {
		struct sublet_client *c = connect_to(names[i]);

		assert_string_equal(sublet_client_instance(c)->name, "web");
		assert_int_equal(sublet_client_instance(c)->pid, getpid());
		assert_int_equal(sublet_client_info(c, &info), 0);
		assert_int_equal(info.size_bytes, sizeof(info));
		assert_int_equal(info.area_bytes, FAKE_AREA);
		assert_null(info.linear);
		assert_int_equal(info.fd, -1);
		sublet_client_close(c);
	}
	info.size_bytes = 0;
	struct sublet_client *c = connect_to("web");
	assert_int_equal(sublet_client_info(c, &info), -EINVAL);
	info.area_bytes = 7;
	info.size_bytes = offsetof(struct sublet_arena_info, area_bytes); /* an older program */
	assert_int_equal(sublet_client_info(c, &info), 0);
	assert_int_equal(info.area_bytes, 7);
	sublet_client_close(c);
	sublet_client_close(NULL);
}

static void test_descriptor(void **state)
{
	struct world *w = *state;
	struct sublet_client *c;
	char text[8] = "";
	int fd = -1;

	serve(w, "web");
	c = connect_to("web");
	assert_int_equal(pwrite(w->arena.fd, "contents", 8, 4096), 8);
	assert_int_equal(sublet_client_fd(c, &fd), 0);
	assert_int_not_equal(fd, w->arena.fd);
	assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
	assert_int_equal(pread(fd, text, 8, 4096), 8);
	assert_memory_equal(text, "contents", 8);
	close(fd);
	sublet_client_close(c);
}

static void test_claim_and_release(void **state)
{
	struct world *w = *state;
	struct sublet_claim_options o = { SUBLET_OPTIONS(sublet_claim_options), .owner = "camera\n" };
	struct sublet_client *c, *other;
	struct sublet_claim a, b, copy;

	serve(w, "web");
	c = connect_to("web");
	other = connect_to("web");
	assert_int_equal(sublet_client_claim(c, 64 * SUBLET_KIB, &o, &a), 0);
	assert_string_equal(w->arena.last_owner, "camera?");
	assert_int_equal(w->arena.last_deadline_ns, SUBLET_SEC);
	assert_null(a.addr);
	assert_int_equal(a.bytes, 64 * SUBLET_KIB);
	assert_int_equal(sublet_client_claim(c, SUBLET_MIB / 2, NULL, &b), 0);
	assert_non_null(strstr(w->arena.last_owner, "["));
	assert_int_equal(w->arena.held, 2);
	copy = a;
	assert_int_equal(sublet_client_release(other, &copy), -EINVAL);
	assert_int_equal(sublet_client_release(c, &a), 0);
	assert_int_equal(a.id, 0);
	assert_int_equal(sublet_client_release(c, &copy), -EINVAL);
	assert_int_equal(sublet_client_release(c, &a), -EINVAL);
	assert_int_equal(w->arena.held, 1);
	assert_int_equal(sublet_client_release(c, &b), 0);
	assert_int_equal(w->arena.held, 0);
	sublet_client_close(other);
	sublet_client_close(c);
}

static void test_errors_pass_through(void **state)
{
	struct world *w = *state;
	struct sublet_claim_options o = { SUBLET_OPTIONS(sublet_claim_options), .align_bytes = 3 };
	struct sublet_client *c;
	struct sublet_claim claim;

	serve(w, "web");
	c = connect_to("web");
	assert_int_equal(sublet_client_claim(c, FAKE_BUSY, NULL, &claim), -EBUSY);
	assert_int_equal(claim.blocker_count, 1);
	assert_string_equal(claim.blockers[0].owner, "rx-ring");
	assert_int_equal(sublet_client_claim(c, FAKE_NOROOM, NULL, &claim), -ENOMEM);
	assert_int_equal(claim.shortfall_bytes, 12345);
	assert_int_equal(sublet_client_claim(c, FAKE_TOO_BIG, NULL, &claim), -E2BIG);
	assert_int_equal(sublet_client_claim(c, UINT64_MAX, NULL, &claim), -E2BIG);
	assert_int_equal(sublet_client_claim(c, 0, NULL, &claim), -EINVAL);
	assert_int_equal(sublet_client_claim(c, 4096, &o, &claim), -EINVAL);
	assert_int_equal(sublet_client_claim(c, 4096, &(struct sublet_claim_options){ 0 }, &claim), -EINVAL);
	assert_int_equal(w->arena.held, 0);
	sublet_client_close(c);
}

static void test_statistics(void **state)
{
	struct world *w = *state;
	struct sublet_stats stats = { SUBLET_OPTIONS(sublet_stats) };
	struct sublet_pageblock *blocks = calloc(FAKE_BLOCKS + 10, sizeof(*blocks));
	struct sublet_client *c;
	uint64_t ns = 0;

	serve(w, "web");
	c = connect_to("web");
	assert_int_equal(sublet_client_stats(c, &stats), 0);
	assert_int_equal(stats.area_bytes, FAKE_AREA);
	assert_int_equal(sublet_client_pageblocks(c, 0, FAKE_BLOCKS + 10, blocks), FAKE_BLOCKS);
	for (uint32_t i = 0; i < FAKE_BLOCKS; i++)
		assert_int_equal(blocks[i].held_frames, (uint16_t)i);
	assert_int_equal(sublet_client_pageblocks(c, 4990, 20, blocks), 10);
	assert_int_equal(sublet_client_pageblocks(c, FAKE_BLOCKS, 1, blocks), 0);
	assert_int_equal(sublet_client_pageblocks(c, SIZE_MAX, 1, blocks), 0);
	assert_int_equal(sublet_client_pageblocks(c, 0, 0, blocks), 0);
	assert_int_equal(sublet_client_memcpy_ns(c, 8192, &ns), 0);
	assert_int_equal(ns, 1024);
	assert_int_equal(sublet_client_memcpy_ns(c, 0, &ns), -EINVAL);
	free(blocks);
	sublet_client_close(c);
}

/* ---- names and the directory ---- */

static void test_names(void **state)
{
	struct world *w = *state;
	char longest[SUBLET_NAME_BYTES + 1];
	struct sublet_instance in[4];

	memset(longest, 'x', sizeof(longest));
	longest[SUBLET_NAME_BYTES] = '\0';
	assert_int_equal(sublet_arena_serve(&w->arena, ""), -EINVAL);
	assert_int_equal(sublet_arena_serve(&w->arena, NULL), -EINVAL);
	assert_int_equal(sublet_arena_serve(&w->arena, "a/b"), -EINVAL);
	assert_int_equal(sublet_arena_serve(&w->arena, ".hidden"), -EINVAL);
	assert_int_equal(sublet_arena_serve(&w->arena, "bell\a"), -EINVAL);
	assert_int_equal(sublet_arena_serve(&w->arena, longest), -EINVAL);
	assert_int_equal(w->arena.companion_count, 0);
	longest[SUBLET_NAME_BYTES - 1] = '\0';
	serve(w, longest);
	serve(w, "dots.and 1.2");
	assert_int_equal(sublet_arena_serve(&w->arena, "dots.and 1.2"), -EEXIST);
	assert_int_equal(sublet_instance_list(in, 4), 2);
	assert_string_equal(in[0].name, "dots.and 1.2");
	assert_string_equal(in[1].name, longest);
	assert_int_equal(sublet_instance_list(in, 1), 2);
	assert_int_equal(sublet_instance_list(NULL, 0), 2);
	sublet_client_close(connect_to("dots.and 1.2"));
	assert_int_equal(files_left(w, false), 2);
}

static void test_no_instance(void **state)
{
	struct world *w = *state;
	struct sublet_client *c;

	assert_int_equal(sublet_instance_list(NULL, 0), 0);
	assert_int_equal(sublet_client_connect(NULL, &c), -ENOENT);
	serve(w, "web");
	assert_int_equal(sublet_client_connect("wob", &c), -ENOENT);
	assert_int_equal(sublet_client_connect("1", &c), -ENOENT);
	assert_int_equal(sublet_client_connect("", &c), -ENOENT);
	assert_int_equal(sublet_client_connect("99999999999999999999", &c), -ENOENT);
}

/* Start a process that serves `name`, and wait until it does. */
static pid_t serve_in_child(const char *name)
{
	int ready[2];
	char byte;
	pid_t pid;

	assert_int_equal(pipe(ready), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		struct sublet_arena arena;

		close(ready[0]);
		fake_create(&arena);
		if (sublet_arena_serve(&arena, name) || write(ready[1], "r", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	close(ready[1]);
	assert_int_equal(read(ready[0], &byte, 1), 1);
	close(ready[0]);
	return pid;
}

static void test_two_with_one_name(void **state)
{
	struct world *w = *state;
	struct sublet_client *c;
	char text[16];
	pid_t pid = serve_in_child("web");

	serve(w, "web");
	assert_int_equal(sublet_instance_list(NULL, 0), 2);
	assert_int_equal(sublet_client_connect("web", &c), -ENOTUNIQ);
	assert_int_equal(sublet_client_connect(NULL, &c), -ENOTUNIQ);
	snprintf(text, sizeof(text), "%d", (int)pid);
	c = connect_to(text);
	assert_int_equal(sublet_client_instance(c)->pid, pid);
	sublet_client_close(c);
	end_child(pid);
	sublet_client_close(connect_to("web")); /* the dead one is in nobody's way */
}

static void test_dead_sockets_are_removed(void **state)
{
	struct world *w = *state;
	struct sublet_client *c;
	char other[128];
	int fd;

	end_child(serve_in_child("gone"));
	assert_int_equal(files_left(w, false), 1);
	assert_int_equal(sublet_client_connect("gone", &c), -ECONNREFUSED);
	assert_int_equal(files_left(w, false), 0);
	end_child(serve_in_child("gone"));
	snprintf(other, sizeof(other), "%s/sublet/notes.1", w->dir); /* somebody's file is not ours to remove */
	fd = open(other, O_CREAT | O_WRONLY, 0600);
	close(fd);
	assert_int_equal(sublet_instance_list(NULL, 0), 0);
	assert_int_equal(files_left(w, false), 1);
}

static void test_instance_ends(void **state)
{
	struct world *w = *state;
	struct sublet_stats stats = { SUBLET_OPTIONS(sublet_stats) };
	struct sublet_claim claim;
	pid_t pid = serve_in_child("web");
	struct sublet_client *c = connect_to("web");

	(void)w;
	assert_int_equal(sublet_client_stats(c, &stats), 0);
	end_child(pid);
	assert_int_equal(sublet_client_stats(c, &stats), -EPIPE);
	assert_int_equal(sublet_client_claim(c, 4096, NULL, &claim), -EPIPE);
	sublet_client_close(c);
}

static void test_untrusted_directory(void **state)
{
	struct world *w = *state;
	char path[128], target[128];

	snprintf(path, sizeof(path), "%s/sublet", w->dir);
	snprintf(target, sizeof(target), "%s/elsewhere", w->dir);
	assert_int_equal(mkdir(path, 0755), 0);
	chmod(path, 0755);
	assert_int_equal(sublet_arena_serve(&w->arena, "web"), -EPERM);
	assert_int_equal(sublet_instance_list(NULL, 0), -EPERM);
	assert_int_equal(rmdir(path), 0);
	assert_int_equal(mkdir(target, 0700), 0);
	assert_int_equal(symlink(target, path), 0);
	assert_int_equal(sublet_arena_serve(&w->arena, "web"), -EPERM);
	unlink(path);
	rmdir(target);
	if (geteuid() == 0) {
		assert_int_equal(mkdir(path, 0700), 0);
		assert_int_equal(chown(path, 65534, 65534), 0);
		assert_int_equal(sublet_arena_serve(&w->arena, "web"), -EPERM);
	}
	assert_int_equal(w->arena.companion_count, 0);
}

static void test_long_directory(void **state)
{
	struct world *w = *state;
	char path[300];

	snprintf(path, sizeof(path), "%s/%0150d", w->dir, 1); /* longer than a socket address */
	assert_int_equal(mkdir(path, 0700), 0);
	setenv("XDG_RUNTIME_DIR", path, 1);
	serve(w, "web");
	sublet_client_close(connect_to("web"));
	fake_destroy(&w->arena);
	fake_create(&w->arena);
	strcat(path, "/sublet");
	assert_int_equal(rmdir(path), 0); /* the socket was unlinked */
	*strrchr(path, '/') = '\0';
	assert_int_equal(rmdir(path), 0);
}

/* ---- what peers do wrong ---- */

/* Read the last message of a connection: its error, and then the end. */
static int last_words(int fd)
{
	struct sublet__message m;
	char byte;

	if (sublet__wire_recv(fd, &m, sizeof(m), NULL, sublet__wire_until(5 * SUBLET_SEC)))
		return 1;
	assert_int_equal(m.magic, SUBLET__PROTOCOL_MAGIC);
	assert_int_equal(m.op, SUBLET__OP_ERROR);
	assert_int_equal(m.bytes, 0);
	assert_int_equal(sublet__wire_recv(fd, &byte, 1, NULL, sublet__wire_until(5 * SUBLET_SEC)), -EPIPE);
	close(fd);
	return m.error;
}

static void hello_raw(int fd)
{
	struct sublet__message m;
	struct sublet__hello hello;
	uint64_t until = sublet__wire_until(5 * SUBLET_SEC);

	assert_int_equal(sublet__wire_send(fd, SUBLET__OP_HELLO, 0, NULL, 0, -1, until), 0);
	assert_int_equal(sublet__wire_recv(fd, &m, sizeof(m), NULL, until), 0);
	assert_int_equal(sublet__wire_recv(fd, &hello, sizeof(hello), NULL, until), 0);
	assert_string_equal(hello.name, "web");
}

static void test_garbage(void **state)
{
	struct world *w = *state;
	unsigned int seed = 1;

	serve(w, "web");
	for (int round = 0; round < 200; round++) {
		char noise[8192];
		int fd = connect_raw("web");

		for (size_t i = 0; i < sizeof(noise); i++)
			noise[i] = (char)rand_r(&seed);
		if (round % 2)
			hello_raw(fd);
		for (int i = 0; i < 128; i++) /* 1 MiB where the server listens for so long */
			if (send(fd, noise, (size_t)rand_r(&seed) % sizeof(noise) + 1, MSG_NOSIGNAL) < 0)
				break;
		close(fd);
	}
	sublet_client_close(connect_to("web"));
}

static void test_malformed(void **state)
{
	struct world *w = *state;
	struct sublet__message hello = { SUBLET__PROTOCOL_MAGIC, SUBLET__PROTOCOL_VERSION, SUBLET__OP_HELLO, 0, 0 };

	serve(w, "web");
	for (int i = 0; i < 7; i++) {
		struct sublet__message m = hello;
		int fd = connect_raw("web");

		if (i >= 4)
			hello_raw(fd);
		switch (i) {
		case 0: m.magic ^= 1; break;
		case 1: m.version++; break;
		case 2: m.op = SUBLET__OP_STATS; break; /* before HELLO */
		case 3: m.bytes = 1; break;
		case 4: m.op = SUBLET__OP_CLAIM; m.bytes = UINT32_MAX; break;
		case 5: m.op = 77; break;
		case 6: m.op = SUBLET__OP_RELEASE; m.bytes = 7; break;
		}
		assert_int_equal(send(fd, &m, sizeof(m), MSG_NOSIGNAL), sizeof(m));
		assert_int_equal(last_words(fd), -EPROTO);
	}
	assert_int_equal(w->arena.claims, 0);
}

static void test_half_messages(void **state)
{
	struct world *w = *state;
	struct sublet__message m = { SUBLET__PROTOCOL_MAGIC, SUBLET__PROTOCOL_VERSION, SUBLET__OP_CLAIM,
				     sizeof(struct sublet__claim_request), 0 };
	int silent, half_head, half_body, patient;

	serve(w, "web");
	silent = connect_raw("web");
	half_head = connect_raw("web");
	assert_int_equal(send(half_head, &m, 7, MSG_NOSIGNAL), 7);
	half_body = connect_raw("web");
	hello_raw(half_body);
	assert_int_equal(send(half_body, &m, sizeof(m), MSG_NOSIGNAL), sizeof(m));
	patient = connect_raw("web");
	hello_raw(patient);
	assert_int_equal(last_words(silent), -ETIMEDOUT);
	assert_int_equal(last_words(half_head), -ETIMEDOUT);
	assert_int_equal(last_words(half_body), -ETIMEDOUT);
	sleep_ms(500);
	hello_raw(patient); /* silence between messages is no crime */
	close(patient);
}

static void test_flood(void **state)
{
	struct world *w = *state;
	int fds[100], refused = 0;
	struct sublet_client *c;

	serve(w, "web");
	for (int i = 0; i < 100; i++)
		fds[i] = connect_raw("web");
	assert_int_equal(sublet_client_connect("web", &c), -EUSERS);
	for (int i = 0; i < 100; i++)
		refused += last_words(fds[i]) == -EUSERS; /* the others time out */
	assert_int_equal(refused, 100 - (int)SUBLET__SLOTS);
	sublet_client_close(connect_to("web"));
}

static void test_slow_reader(void **state)
{
	struct world *w = *state;
	struct sublet__pageblocks_request request = { .count = SUBLET__PAGEBLOCKS_MAX };
	struct sublet_stats stats = { SUBLET_OPTIONS(sublet_stats) };
	struct sublet_client *c;
	int fd, sent = 0, err = 0;

	serve(w, "web");
	fd = connect_raw("web");
	hello_raw(fd);
	while (!err && sent < 100000) {
		err = sublet__wire_send(fd, SUBLET__OP_PAGEBLOCKS, 0, &request, sizeof(request), -1,
					sublet__wire_until(4 * SUBLET_SEC));
		if (sent++ == 50) {
			c = connect_to("web"); /* the others do not wait */
			assert_int_equal(sublet_client_stats(c, &stats), 0);
			sublet_client_close(c);
		}
	}
	assert_int_equal(err, -EPIPE); /* hung up on, not waited for */
	close(fd);
}

static void test_other_user(void **state)
{
	struct world *w = *state;
	char path[128], file[SUBLET__FILE_BYTES];
	int status;
	pid_t pid;

	if (geteuid() != 0)
		skip();
	serve(w, "web");
	sublet__instance_file(file, "web", getpid());
	snprintf(path, sizeof(path), "%s/sublet/%s", w->dir, file);
	chmod(path, 0777); /* as if the directory's own walls had fallen */
	snprintf(path, sizeof(path), "%s/sublet", w->dir);
	chmod(path, 0755);
	chmod(w->dir, 0755);
	pid = fork();
	if (!pid) {
		int dir = open(path, O_RDONLY | O_DIRECTORY), fd;

		if (setgid(65534) || setuid(65534))
			_exit(1);
		fd = socket(AF_UNIX, SOCK_STREAM, 0);
		if (sublet__instance_connect(fd, dir, file))
			_exit(2);
		if (sublet__instance_check_peer(fd) != -EACCES)
			_exit(3);
		_exit(last_words(fd) == -EACCES ? 0 : 4);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	chmod(path, 0700);
	sublet_client_close(connect_to("web"));
}

/* ---- drivers that go away, hosts that misbehave ---- */

/* A driver process: claims twice, closes its connection if asked, reports, and waits to be killed. */
static pid_t driver(bool hang_up)
{
	int ready[2];
	char byte;
	pid_t pid;

	assert_int_equal(pipe(ready), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		struct sublet_client *c;
		struct sublet_claim claim;

		close(ready[0]);
		for (int i = 0; i < 2; i++) {
			if (sublet_client_connect("web", &c) || sublet_client_claim(c, 4096, NULL, &claim))
				_exit(1);
			if (hang_up)
				sublet_client_close(c);
		}
		if (write(ready[1], "r", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	close(ready[1]);
	assert_int_equal(read(ready[0], &byte, 1), 1);
	close(ready[0]);
	return pid;
}

static void test_driver_is_killed(void **state)
{
	struct world *w = *state;
	uint64_t killed;
	pid_t pid;

	serve(w, "web");
	pid = driver(false);
	assert_int_equal(w->arena.held, 2);
	killed = sublet__wire_now_ns();
	end_child(pid);
	expect_soon(&w->arena.held, 0);
	assert_true(sublet__wire_now_ns() - killed >= SUBLET__SETTLE_NS);
}

static void test_driver_hangs_up(void **state)
{
	struct world *w = *state;
	pid_t pid;

	serve(w, "web");
	pid = driver(true);
	sleep_ms(2 * SUBLET__SETTLE_NS / SUBLET_MS);
	assert_int_equal(w->arena.held, 2); /* its process lives: its device may still write */
	end_child(pid);
	expect_soon(&w->arena.held, 0);
}

/* One process that hangs up a hundred times with claims in its hands does not use up the slots. */
static void test_driver_hangs_up_often(void **state)
{
	struct world *w = *state;
	struct sublet_claim claim;

	serve(w, "web");
	for (int i = 0; i < 100; i++) {
		struct sublet_client *c = connect_to("web");

		assert_int_equal(sublet_client_claim(c, 4096, NULL, &claim), 0);
		sublet_client_close(c);
		sleep_ms(1);
	}
	assert_int_equal(w->arena.held, 100);
	sublet_client_close(connect_to("web"));
}

static void test_claims_are_bounded(void **state)
{
	struct world *w = *state;
	struct sublet_client *c;
	struct sublet_claim claim, last;

	serve(w, "web");
	c = connect_to("web");
	for (uint32_t i = 0; i < SUBLET__CLAIMS_PER_SLOT; i++)
		assert_int_equal(sublet_client_claim(c, 4096, NULL, &claim), 0);
	assert_int_equal(sublet_client_claim(c, 4096, NULL, &last), -ENOSPC);
	assert_int_equal(w->arena.held, SUBLET__CLAIMS_PER_SLOT);
	assert_int_equal(sublet_client_release(c, &claim), 0);
	assert_int_equal(sublet_client_claim(c, 4096, NULL, &last), 0);
	sublet_client_close(c);
}

static void *slow_claim(void *arg)
{
	struct sublet_claim_options o = { SUBLET_OPTIONS(sublet_claim_options), .deadline_ns = 2500 * SUBLET_MS };
	struct sublet_client *c = connect_to("web");
	struct sublet_claim claim;

	(void)arg;
	assert_int_equal(sublet_client_claim(c, FAKE_SLOW, &o, &claim), -EBUSY);
	assert_int_equal(claim.windows_tried, 3); /* three slices */
	sublet_client_close(c);
	return NULL;
}

static void test_long_claim_blocks_nobody(void **state)
{
	struct world *w = *state;
	struct sublet_stats stats = { SUBLET_OPTIONS(sublet_stats) };
	struct sublet_client *c;
	uint64_t began;
	pthread_t t;

	serve(w, "web");
	assert_int_equal(pthread_create(&t, NULL, slow_claim, NULL), 0);
	expect_soon(&w->arena.claims, 1);
	began = sublet__wire_now_ns();
	c = connect_to("web");
	assert_int_equal(sublet_client_stats(c, &stats), 0);
	assert_true(sublet__wire_now_ns() - began < SUBLET_SEC / 2);
	sublet_client_close(c);
	pthread_join(t, NULL);
}

static void test_abandoned_claim(void **state)
{
	struct world *w = *state;
	struct sublet__claim_request request = { .bytes = FAKE_SLOW, .deadline_ns = 3600 * SUBLET_SEC };
	uint64_t began;
	int fd;

	serve(w, "web");
	for (int i = 0; i < 2; i++) {
		fd = connect_raw("web");
		hello_raw(fd);
		assert_int_equal(sublet__wire_send(fd, SUBLET__OP_CLAIM, 0, &request, sizeof(request), -1,
						   sublet__wire_until(SUBLET_SEC)),
				 0);
		expect_soon(&w->arena.claims, (uint64_t)i + 1);
		if (i == 0) {
			close(fd); /* nobody wants it any more */
			sleep_ms(1500);
			assert_int_equal(w->arena.claims, 1);
		}
	}
	began = sublet__wire_now_ns(); /* an hour's claim does not keep the program from ending */
	fake_destroy(&w->arena);
	assert_true(sublet__wire_now_ns() - began < 2 * SUBLET_SEC);
	close(fd);
	fake_create(&w->arena);
}

static void test_fork(void **state)
{
	struct world *w = *state;
	struct sublet_stats stats = { SUBLET_OPTIONS(sublet_stats) };
	struct sublet_client *c, *late;
	int ready[2];
	char byte;
	pid_t pid;

	serve(w, "web");
	c = connect_to("web");
	assert_int_equal(pipe(ready), 0);
	pid = fork();
	if (!pid) {
		fake_fork_child(&w->arena);
		fake_destroy(&w->arena); /* a child that tidies up must not hurt its parent */
		if (write(ready[1], "r", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	assert_int_equal(read(ready[0], &byte, 1), 1);
	close(ready[0]);
	close(ready[1]);
	assert_int_equal(sublet_client_stats(c, &stats), 0);
	sublet_client_close(connect_to("web"));
	fake_destroy(&w->arena);
	assert_int_equal(sublet_client_stats(c, &stats), -EPIPE); /* though the child lives */
	assert_int_equal(files_left(w, false), 0);
	assert_int_equal(sublet_client_connect("web", &late), -ENOENT);
	sublet_client_close(c);
	end_child(pid);
	fake_create(&w->arena);
}

/* A daemon closes all descriptors, and gets their numbers for files of its own. */
static void test_host_closes_everything(void **state)
{
	struct world *w = *state;
	int status, pipes[2];
	char byte;
	pid_t pid;

	(void)w;
	assert_int_equal(pipe(pipes), 0);
	pid = fork();
	if (!pid) {
		struct sublet_arena arena;
		struct sublet_client *c;
		char noise[64];
		int fd;

		fake_create(&arena);
		if (sublet_arena_serve(&arena, "web") || sublet_client_connect("web", &c))
			_exit(1);
		if (syscall(SYS_close_range, 3, ~0u, 0))
			_exit(2);
		for (int i = 0; i < 600; i++) /* the same numbers again */
			if (open("/dev/null", O_RDWR) < 0)
				_exit(3);
		sleep_ms(100);
		fake_destroy(&arena);
		for (fd = 4; fd < 600; fd++) /* 3 was the arena's own, closed by the fake */
			if (fcntl(fd, F_GETFD) < 0 && fd != arena.fd)
				_exit(4);
		_exit(read(0, noise, 0) < 0 ? 5 : 0);
	}
	close(pipes[1]);
	assert_int_equal(read(pipes[0], &byte, 1), 0);
	close(pipes[0]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

static void test_descriptors_are_private(void **state)
{
	struct world *w = *state;
	int before = 0, after = 0, low = dup(0);
	struct sublet_client *c;

	for (int fd = 0; fd < 1024; fd++)
		before += fcntl(fd, F_GETFD) >= 0;
	serve(w, "web");
	for (int fd = 3; fd < 1024; fd++) {
		int flags = fcntl(fd, F_GETFD);

		if (flags >= 0 && fd >= 500) /* the server's */
			assert_true(flags & FD_CLOEXEC);
	}
	close(low);
	assert_int_equal(dup(0), low); /* the program gets the numbers it expects */
	c = connect_to("web");
	sublet_client_close(c);
	sleep_ms(50);
	fake_destroy(&w->arena);
	fake_create(&w->arena);
	for (int fd = 0; fd < 1024; fd++)
		after += fcntl(fd, F_GETFD) >= 0;
	assert_int_equal(before, after);
	close(low);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_hello_and_info),
		TEST(test_descriptor),
		TEST(test_claim_and_release),
		TEST(test_errors_pass_through),
		TEST(test_statistics),
		TEST(test_names),
		TEST(test_no_instance),
		TEST(test_two_with_one_name),
		TEST(test_dead_sockets_are_removed),
		TEST(test_instance_ends),
		TEST(test_untrusted_directory),
		TEST(test_long_directory),
		TEST(test_garbage),
		TEST(test_malformed),
		TEST(test_half_messages),
		TEST(test_flood),
		TEST(test_slow_reader),
		TEST(test_other_user),
		TEST(test_driver_is_killed),
		TEST(test_driver_hangs_up),
		TEST(test_driver_hangs_up_often),
		TEST(test_claims_are_bounded),
		TEST(test_long_claim_blocks_nobody),
		TEST(test_abandoned_claim),
		TEST(test_fork),
		TEST(test_host_closes_everything),
		TEST(test_descriptors_are_private),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
