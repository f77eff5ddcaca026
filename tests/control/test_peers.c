/* SPDX-License-Identifier: MIT */
/*
 * The control socket as it should not be used: garbage, floods, drivers that die, hosts that fork. S4, S5 and S26 of
 * docs/security.md.
 */
#include "world.h"

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

/* Well-formed requests with nonsense in them get well-formed replies. */
static void test_random_requests(void **state)
{
	static const uint16_t ops[] = { SUBLET__OP_HELLO,   SUBLET__OP_INFO,  SUBLET__OP_CLAIM,
					SUBLET__OP_RELEASE, SUBLET__OP_STATS, SUBLET__OP_PAGEBLOCKS,
					SUBLET__OP_MEMCPY,  SUBLET__OP_PINS,  SUBLET__OP_BOS };
	static const uint32_t bytes[] = { 0, 0, sizeof(struct sublet__claim_request), 8, 0, 8, 8, 16, 16 };
	static char reply[SUBLET__REPLY_BYTES_MAX];
	struct world *w = *state;
	unsigned int seed = 2;
	int fd;

	serve(w, "web");
	fd = connect_raw("web");
	hello_raw(fd);
	for (int round = 0; round < 20000; round++) {
		size_t k = (size_t)rand_r(&seed) % (sizeof(ops) / sizeof(ops[0]));
		char payload[sizeof(struct sublet__claim_request)];
		uint64_t until = sublet__wire_until(5 * SUBLET_SEC);
		struct sublet__message m;

		for (size_t i = 0; i < sizeof(payload); i++)
			payload[i] = rand_r(&seed) % 4 ? 0 : (char)rand_r(&seed);
		assert_int_equal(sublet__wire_send(fd, ops[k], 0, payload, bytes[k], -1, until), 0);
		assert_int_equal(sublet__wire_recv(fd, &m, sizeof(m), NULL, until), 0);
		assert_int_equal(m.op, ops[k]);
		assert_true(m.bytes <= sizeof(reply));
		assert_int_equal(sublet__wire_recv(fd, reply, m.bytes, NULL, until), 0);
	}
	close(fd);
}

static void test_malformed(void **state)
{
	struct world *w = *state;
	struct sublet__message hello = { SUBLET__PROTOCOL_MAGIC, SUBLET__PROTOCOL_VERSION, SUBLET__OP_HELLO,
					 0, 0 };

	serve(w, "web");
	for (int i = 0; i < 8; i++) {
		struct sublet__message m = hello;
		int fd = connect_raw("web");

		if (i >= 4)
			hello_raw(fd);
		switch (i) {
		case 0:
			m.magic ^= 1;
			break;
		case 1:
			m.version++;
			break;
		case 2:
			m.op = SUBLET__OP_STATS;
			break; /* before HELLO */
		case 3:
			m.bytes = 1;
			break;
		case 4:
			m.op = SUBLET__OP_CLAIM;
			m.bytes = UINT32_MAX;
			break;
		case 5:
			m.op = 77;
			break;
		case 6:
			m.op = SUBLET__OP_RELEASE;
			m.bytes = 7;
			break;
		case 7:
			m.op = SUBLET__OP_PINS;
			m.bytes = 8;
			break;
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
	char path[192], file[SUBLET__FILE_BYTES];
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

/* A connection is gone, its process is not: over another one it releases what it held. Nobody else does. */
static void test_orphans(void **state)
{
	struct world *w = *state;
	struct sublet_claim a[40], copy;
	struct sublet_client *c, *other;
	int status;
	pid_t pid;

	serve(w, "web");
	for (int i = 0; i < 40; i++) { /* more than there are slots */
		c = connect_to("web");
		assert_int_equal(sublet_client_claim(c, 4096, NULL, &a[i]), 0);
		sublet_client_close(c);
	}
	assert_int_equal(w->arena.held, 40);
	other = connect_to("web");
	copy = a[39];
	assert_int_equal(sublet_client_release(other, &a[39]), 0); /* at once, however busy the server is */
	assert_int_equal(sublet_client_release(other, &copy), -EINVAL);
	pid = fork();
	if (!pid) {
		copy = a[0];
		_exit(sublet_client_connect("web", &c) || sublet_client_release(c, &copy) != -EINVAL);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	for (int i = 0; i < 39; i++)
		assert_int_equal(sublet_client_release(other, &a[i]), 0);
	assert_int_equal(w->arena.held, 0);
	for (int round = 0; round < 100; round++) { /* and no slot is used up by it */
		c = connect_to("web");
		assert_int_equal(sublet_client_claim(c, 4096, NULL, &a[0]), 0);
		sublet_client_close(c);
		assert_int_equal(sublet_client_release(other, &a[0]), 0);
	}
	assert_int_equal(w->arena.held, 0);
	sublet_client_close(other);
}

/* What a living connection of the same process holds is not for others to release. */
static void test_not_an_orphan(void **state)
{
	struct world *w = *state;
	struct sublet_client *c, *other;
	struct sublet_claim claim, copy;

	serve(w, "web");
	c = connect_to("web");
	other = connect_to("web");
	assert_int_equal(sublet_client_claim(c, 4096, NULL, &claim), 0);
	copy = claim;
	assert_int_equal(sublet_client_release(other, &copy), -EINVAL);
	assert_int_equal(w->arena.held, 1);
	assert_int_equal(sublet_client_release(c, &claim), 0);
	sublet_client_close(other);
	sublet_client_close(c);
}

/* Read so many bytes of the reply to a claim, and close. */
static void claim_and_close(struct world *w, size_t read_bytes, uint64_t held)
{
	struct sublet__claim_request request = { .bytes = 4096, .deadline_ns = SUBLET_SEC };
	static char reply[sizeof(struct sublet__message) + sizeof(struct sublet_claim)];
	uint64_t until = sublet__wire_until(5 * SUBLET_SEC);
	int fd = connect_raw("web");

	hello_raw(fd);
	assert_int_equal(sublet__wire_send(fd, SUBLET__OP_CLAIM, 0, &request, sizeof(request), -1, until), 0);
	expect_soon(&w->arena.held, held);
	assert_int_equal(sublet__wire_recv(fd, reply, read_bytes, NULL, until), 0);
	sleep_ms(20); /* the reply has been sent */
	close(fd);
}

/* A claim that succeeds for a driver that does not wait any more is nobody's, and released. */
static void test_unread_claim(void **state)
{
	struct world *w = *state;
	struct sublet__claim_request request = { .bytes = 4096, .deadline_ns = SUBLET_SEC };

	serve(w, "web");
	claim_and_close(w, 0, 1);
	expect_soon(&w->arena.held, 0);
	claim_and_close(w, sizeof(struct sublet__message) + 8, 1);
	expect_soon(&w->arena.held, 0);
	for (int i = 0; i < 50; i++) { /* closed before the reply, or just after */
		int fd = connect_raw("web");

		hello_raw(fd);
		assert_int_equal(sublet__wire_send(fd, SUBLET__OP_CLAIM, 0, &request, sizeof(request), -1,
						   sublet__wire_until(SUBLET_SEC)),
				 0);
		close(fd);
	}
	expect_soon(&w->arena.claims, 52);
	expect_soon(&w->arena.held, 0);
	claim_and_close(w, sizeof(struct sublet__message) + sizeof(struct sublet_claim), 1);
	sleep_ms(100);
	assert_int_equal(w->arena.held, 1); /* it was told */
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
	struct sublet_claim_options o = { SUBLET_OPTIONS(sublet_claim_options),
					  .deadline_ns = 2500 * SUBLET_MS };
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
	assert_true(sublet__wire_now_ns() - began <
		    60 * SUBLET_SEC); /* a slice of a second, on any machine */
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

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_garbage),
		TEST(test_random_requests),
		TEST(test_malformed),
		TEST(test_half_messages),
		TEST(test_flood),
		TEST(test_slow_reader),
		TEST(test_other_user),
		TEST(test_driver_is_killed),
		TEST(test_driver_hangs_up),
		TEST(test_driver_hangs_up_often),
		TEST(test_orphans),
		TEST(test_not_an_orphan),
		TEST(test_unread_claim),
		TEST(test_claims_are_bounded),
		TEST(test_long_claim_blocks_nobody),
		TEST(test_abandoned_claim),
		TEST(test_fork),
		TEST(test_host_closes_everything),
		TEST(test_descriptors_are_private),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
