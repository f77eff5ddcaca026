/* SPDX-License-Identifier: MIT */
/* The control socket as it should be used: calls, names, directories, several instances. */
#include "world.h"

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
	assert_true(fake_owner_has(&w->arena, "camera?"));
	assert_int_equal(w->arena.last_deadline_ns, SUBLET_SEC);
	assert_null(a.addr);
	assert_int_equal(a.bytes, 64 * SUBLET_KIB);
	assert_int_equal(sublet_client_claim(c, SUBLET_MIB / 2, NULL, &b), 0);
	assert_true(fake_owner_has(&w->arena, "["));
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
	assert_int_equal(stats.invalidations_declined, 7);
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
	assert_int_equal(sublet_arena_serve(&w->arena, "no \xff utf"), -EINVAL);
	assert_int_equal(sublet_arena_serve(&w->arena, "csi \xc2\x9b"), -EINVAL);
	assert_int_equal(sublet_arena_serve(&w->arena, "half \xc3"), -EINVAL);
	assert_int_equal(sublet_arena_serve(&w->arena, longest), -EINVAL);
	assert_int_equal(w->arena.companion_count, 0);
	longest[SUBLET_NAME_BYTES - 1] = '\0';
	serve(w, longest);
	serve(w, "dots.and 1.2");
	serve(w, "\xc3\xa9t\xc3\xa9");
	assert_int_equal(sublet_arena_serve(&w->arena, "dots.and 1.2"), -EEXIST);
	assert_int_equal(sublet_instance_list(in, 4), 3);
	assert_string_equal(in[0].name, "dots.and 1.2");
	assert_string_equal(in[1].name, longest);
	assert_string_equal(in[2].name, "\xc3\xa9t\xc3\xa9");
	assert_int_equal(sublet_instance_list(in, 1), 3);
	assert_int_equal(sublet_instance_list(NULL, 0), 3);
	sublet_client_close(connect_to("dots.and 1.2"));
	assert_int_equal(files_left(w, false), 3);
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
	/* somebody's file is not ours to remove */
	snprintf(other, sizeof(other), "%s/sublet/notes.1", w->dir);
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
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
