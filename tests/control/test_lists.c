/* SPDX-License-Identifier: MIT */
/*
 * Lists over the control socket: pins and buffer objects in parts, hostile tags, a server that lies. S7 of docs/security.md.
 */
#include "world.h"

#include "control/owner.h"

#include <locale.h>
#include <wchar.h>
#include <wctype.h>

/* ---- owner tags ---- */

static void test_owner_tags(void **state)
{
	static const struct {
		const char *from, *to;
	} cases[] = {
		{ "", "" },
		{ "rx-ring", "rx-ring" },
		{ " ~", " ~" },
		{ "tab\there", "tab?here" },
		{ "\x7f\x1f\r", "???" },
		{ "caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x9a\x80", "caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x9a\x80" },
		{ "\xc2\x80\xc2\x9f\xc2\xa0", "????\xc2\xa0" }, /* C1 controls; the first that is none */
		{ "\xc0\xaf\xc1\xbf\xe0\x9f\xbf\xf0\x8f\xbf\xbf", "???????????" }, /* overlong */
		{ "\xed\xa0\x80\xed\x9f\xbf", "???\xed\x9f\xbf" }, /* a surrogate; the last before them */
		{ "\xf4\x90\x80\x80\xf4\x8f\xbf\xbd", "????\xf4\x8f\xbf\xbd" }, /* beyond Unicode; its end */
		{ "\xf5\xff\x80\xbf", "????" },
		{ "\xe2\x82", "??" }, /* the end comes first */
		{ "\xe2\x82x", "??x" },
		{ "\xe2\xc3\xa9", "?\xc3\xa9" },
		{ FAKE_HOSTILE, FAKE_HARMLESS },
	};
	(void)state;

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		char owner[SUBLET_OWNER_BYTES];

		memset(owner, 'z', sizeof(owner)); /* what an earlier tag left behind the end */
		memcpy(owner, cases[i].from,
		       strlen(cases[i].from) < sizeof(owner) ? strlen(cases[i].from) + 1 : sizeof(owner));
		sublet__owner_clean(owner);
		assert_string_equal(owner, cases[i].to);
		for (size_t at = strlen(cases[i].to); at < sizeof(owner); at++)
			assert_int_equal(owner[at], 0);
	}
}

/* libc's decoder is the judge: every character of a cleaned tag is one, and none is a control. */
static void test_owner_noise(void **state)
{
	unsigned int seed = getenv("SEED") ? (unsigned int)strtoul(getenv("SEED"), NULL, 0) : 7;
	(void)state;

	print_message("SEED=%u\n", seed);
	if (!setlocale(LC_CTYPE, "C.UTF-8"))
		skip();
	for (int round = 0; round < 200000; round++) {
		char owner[SUBLET_OWNER_BYTES], was[SUBLET_OWNER_BYTES];
		wchar_t wide[SUBLET_OWNER_BYTES];
		size_t n;

		for (size_t i = 0; i < sizeof(owner);
		     i++) /* mostly what first and continuation bytes look like */
			owner[i] =
				(char)(rand_r(&seed) % 3 ? 0x80 | rand_r(&seed) % 128 : rand_r(&seed) % 256);
		sublet__owner_clean(owner);
		n = mbstowcs(wide, owner, SUBLET_OWNER_BYTES);
		assert_true(n < SUBLET_OWNER_BYTES);
		for (size_t i = 0; i < n; i++)
			assert_false(iswcntrl((wint_t)wide[i]) && wide[i] != 0x2028 && wide[i] != 0x2029);
		memcpy(was, owner, sizeof(owner));
		sublet__owner_clean(owner);
		assert_memory_equal(was, owner, sizeof(owner));
	}
}

/* ---- lists ---- */

/* Lists of more than one reply, read in parts of every kind, say what the engine's list says. */
static void test_pins(void **state)
{
	static const size_t parts[] = { 1, 7, SUBLET__PINS_MAX, SUBLET__PINS_MAX + 1, 2000 };
	static struct sublet_pin_info want[700], got[2000];
	struct world *w = *state;
	struct sublet_client *c;
	uint64_t from = 0;

	w->arena.pins = 700;
	assert_int_equal(sublet_pin_list(&w->arena, &from, 700, want), 700);
	serve(w, "web");
	c = connect_to("web");
	for (size_t p = 0; p < sizeof(parts) / sizeof(parts[0]); p++) {
		uint64_t next = 0;
		int done = 0, n;

		while ((n = sublet_client_pins(c, &next, parts[p], got + done)) > 0)
			done += n;
		assert_int_equal(n, 0);
		assert_int_equal(done, 700);
		for (int i = 0; i < 700; i++) {
			assert_memory_equal(&got[i], &want[i], offsetof(struct sublet_pin_info, owner));
			assert_string_equal(got[i].owner, i % 8 == 7 ? FAKE_HARMLESS : want[i].owner);
		}
	}
	sublet_client_close(c);
}

static void test_bos(void **state)
{
	static const size_t parts[] = { 1, SUBLET__BOS_MAX - 1, 600 };
	static struct sublet_bo_info want[300], got[600];
	struct world *w = *state;
	struct sublet_client *c;
	uint64_t from = 0;

	w->arena.bos = 300;
	assert_int_equal(sublet_bo_list(&w->arena, &from, 300, want), 300);
	serve(w, "web");
	c = connect_to("web");
	for (size_t p = 0; p < sizeof(parts) / sizeof(parts[0]); p++) {
		uint64_t next = 0;
		int done = 0, n;

		while ((n = sublet_client_bos(c, &next, parts[p], got + done)) > 0)
			done += n;
		assert_int_equal(n, 0);
		assert_int_equal(done, 300);
		for (int i = 0; i < 300; i++) {
			assert_memory_equal(&got[i], &want[i], offsetof(struct sublet_bo_info, owner));
			assert_string_equal(got[i].owner, i % 8 == 7 ? FAKE_HARMLESS : want[i].owner);
			assert_string_equal(got[i].device, i % 8 == 7 ? FAKE_HARMLESS : want[i].device);
		}
	}
	sublet_client_close(c);
}

static void test_list_arguments(void **state)
{
	struct world *w = *state;
	struct sublet_pin_info pins[4];
	struct sublet_bo_info bos[4];
	struct sublet_client *c;
	uint64_t next = UINT64_MAX;

	serve(w, "web");
	c = connect_to("web");
	assert_int_equal(sublet_client_pins(c, &next, 4, pins), 0); /* beyond the end */
	assert_int_equal(sublet_client_bos(c, &next, 4, bos), 0);
	next = 3;
	assert_int_equal(sublet_client_pins(c, &next, (size_t)INT32_MAX + 1, pins), -EINVAL);
	assert_int_equal(sublet_client_bos(c, &next, SIZE_MAX, bos), -EINVAL);
	assert_int_equal(next, 3);
	assert_int_equal(sublet_client_pins(c, &next, 0, NULL), 0);
	assert_int_equal(sublet_client_bos(c, &next, 0, NULL), 0);
	assert_int_equal(next, 3);
	assert_int_equal(sublet_client_pins(c, &next, 4, pins), 2); /* the second and third of three */
	assert_string_equal(pins[0].owner, "pin 1");
	w->arena.pins = w->arena.bos = 0;
	next = 0;
	assert_int_equal(sublet_client_pins(c, &next, 4, pins), 0);
	assert_int_equal(sublet_client_bos(c, &next, 4, bos), 0);
	fake_destroy(&w->arena);
	assert_int_equal(sublet_client_pins(c, &next, 4, pins), -EPIPE);
	assert_int_equal(sublet_client_bos(c, &next, 4, bos), -EPIPE);
	fake_create(&w->arena);
	sublet_client_close(c);
}

/* A connection below the client library that has said hello. */
static int greeted(void)
{
	uint64_t until = sublet__wire_until(5 * SUBLET_SEC);
	struct sublet__message m;
	struct sublet__hello hello;
	int fd = connect_raw("web");

	assert_int_equal(sublet__wire_send(fd, SUBLET__OP_HELLO, 0, NULL, 0, -1, until), 0);
	assert_int_equal(sublet__wire_recv(fd, &m, sizeof(m), NULL, until), 0);
	assert_int_equal(sublet__wire_recv(fd, &hello, sizeof(hello), NULL, until), 0);
	return fd;
}

static void ask_raw(int fd, uint16_t op, const struct sublet__list_request *request,
		    struct sublet__message *m, void *payload, size_t bytes_max)
{
	uint64_t until = sublet__wire_until(5 * SUBLET_SEC);

	assert_int_equal(sublet__wire_send(fd, op, 0, request, sizeof(*request), -1, until), 0);
	assert_int_equal(sublet__wire_recv(fd, m, sizeof(*m), NULL, until), 0);
	assert_int_equal(m->op, op);
	assert_true(m->bytes <= bytes_max);
	assert_int_equal(sublet__wire_recv(fd, payload, m->bytes, NULL, until), 0);
}

/* What the client library never asks. */
static void test_raw_requests(void **state)
{
	static const struct {
		uint16_t op;
		struct sublet__list_request request;
		int32_t error;
		uint32_t bytes;
	} cases[] = {
		{ SUBLET__OP_PINS, { 0, SUBLET__PINS_MAX + 1, 0 }, -EINVAL, 0 },
		{ SUBLET__OP_BOS, { 0, SUBLET__BOS_MAX + 1, 0 }, -EINVAL, 0 },
		{ SUBLET__OP_PINS, { 0, UINT32_MAX, 0 }, -EINVAL, 0 },
		{ SUBLET__OP_BOS, { 0, UINT32_MAX, 0 }, -EINVAL, 0 },
		{ SUBLET__OP_PINS, { 0, 1, 1 }, -EINVAL, 0 },
		{ SUBLET__OP_BOS, { 0, 1, 1 }, -EINVAL, 0 },
		{ SUBLET__OP_PINS, { 0, 0, 0 }, 0, 8 },
		{ SUBLET__OP_BOS, { 0, 0, 0 }, 0, 8 },
		{ SUBLET__OP_PINS, { 0, SUBLET__PINS_MAX, 0 }, 0, 8 + 3 * sizeof(struct sublet_pin_info) },
		{ SUBLET__OP_BOS, { 0, SUBLET__BOS_MAX, 0 }, 0, 8 + 3 * sizeof(struct sublet_bo_info) },
	};
	struct world *w = *state;
	char payload[8 + 3 * sizeof(struct sublet_bo_info)];
	int fd;

	serve(w, "web");
	fd = greeted();
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct sublet__message m;

		ask_raw(fd, cases[i].op, &cases[i].request, &m, payload, sizeof(payload));
		assert_int_equal(m.error, cases[i].error);
		assert_int_equal(m.bytes, cases[i].bytes);
	}
	close(fd);
}

/* A client of another make, one that prints what it gets, is safe too. */
static void test_raw_tags(void **state)
{
	struct world *w = *state;
	const struct sublet__list_request eighth = { .next = 15, .count = 1 };
	static struct sublet__pins_reply pins;
	static struct sublet__bos_reply bos;
	struct sublet__message m;
	int fd;

	w->arena.pins = w->arena.bos = 8;
	serve(w, "web");
	fd = greeted();
	ask_raw(fd, SUBLET__OP_PINS, &eighth, &m, &pins, sizeof(pins));
	assert_int_equal(m.bytes, 8 + sizeof(pins.pins[0]));
	assert_string_equal(pins.pins[0].owner, FAKE_HARMLESS);
	ask_raw(fd, SUBLET__OP_BOS, &eighth, &m, &bos, sizeof(bos));
	assert_int_equal(m.bytes, 8 + sizeof(bos.bos[0]));
	assert_string_equal(bos.bos[0].owner, FAKE_HARMLESS);
	assert_string_equal(bos.bos[0].device, FAKE_HARMLESS);
	close(fd);
}

/* ---- a server that lies ---- */

struct lie {
	uint64_t next;
	uint32_t bytes; /* of the payload */
	int32_t error;
	uint16_t op; /* 0: as asked */
};

struct liar {
	int listen;
	const struct lie *lie;
};

/* Answers HELLO like anybody, and one more request. */
static void *lying_server(void *arg)
{
	struct liar *l = arg;
	uint64_t until = sublet__wire_until(5 * SUBLET_SEC);
	static struct sublet__bos_reply reply;
	struct sublet__hello hello = { .name = "liar" };
	struct sublet__list_request request;
	struct sublet__message m;
	int fd = accept(l->listen, NULL, NULL);

	assert_int_equal(sublet__wire_recv(fd, &m, sizeof(m), NULL, until), 0);
	assert_int_equal(sublet__wire_send(fd, SUBLET__OP_HELLO, 0, &hello, sizeof(hello), -1, until), 0);
	assert_int_equal(sublet__wire_recv(fd, &m, sizeof(m), NULL, until), 0);
	assert_int_equal(sublet__wire_recv(fd, &request, sizeof(request), NULL, until), 0);
	memset(&reply, '\033', sizeof(reply)); /* tags without an end, of nothing but ESC */
	reply.next = l->lie->next;
	assert_int_equal(sublet__wire_send(fd, l->lie->op ? l->lie->op : m.op, l->lie->error, &reply,
					   l->lie->bytes, -1, until),
			 0);
	close(fd);
	return NULL;
}

/* What a client makes of one lie when it asks for at most two entries, from number 5 on. */
static int believe(const struct lie *lie, bool pins, uint64_t *next)
{
	struct sublet_pin_info pin[3];
	struct sublet_bo_info bo[3];
	char file[SUBLET__FILE_BYTES];
	int n, dir = sublet__instance_dir_open(true);
	struct liar liar = { socket(AF_UNIX, SOCK_STREAM, 0), lie };
	struct sublet_client *c;
	pthread_t t;

	sublet__instance_file(file, "liar", getpid());
	assert_int_equal(sublet__instance_bind(liar.listen, dir, file), 0);
	assert_int_equal(listen(liar.listen, 1), 0);
	assert_int_equal(pthread_create(&t, NULL, lying_server, &liar), 0);
	c = connect_to("liar");
	memset(pin, 0, sizeof(pin));
	memset(bo, 0, sizeof(bo));
	*next = 5;
	n = pins ? sublet_client_pins(c, next, 2, pin) : sublet_client_bos(c, next, 2, bo);
	for (int i = 0; i < n; i++) {
		assert_string_equal(pins ? pin[i].owner : bo[i].owner, "???????????????????????????????");
		assert_string_equal(pins ? pin[i].owner : bo[i].device, "???????????????????????????????");
	}
	assert_int_equal(pin[2].bytes + bo[2].bytes, 0); /* no more than was asked for */
	pthread_join(t, NULL);
	if (n == -EPROTO) { /* whose reply the next one would be, nobody can tell */
		struct sublet_stats stats = { SUBLET_OPTIONS(sublet_stats) };

		assert_int_equal(sublet_client_stats(c, &stats), -EPIPE);
	}
	sublet_client_close(c);
	close(liar.listen);
	unlinkat(dir, file, 0);
	close(dir);
	return n;
}

static void test_lies(void **state)
{
	for (int pins = 0; pins < 2; pins++) {
		uint32_t entry = pins ? sizeof(struct sublet_pin_info) : sizeof(struct sublet_bo_info);
		struct {
			struct lie lie;
			int result;
		} cases[] = {
			{ { .next = 6, .bytes = 8 + 2 * entry }, 2 }, /* only its tags are bad */
			{ { .next = 5, .bytes = 8 + entry }, -EPROTO },
			{ { .next = 0, .bytes = 8 + entry }, -EPROTO },
			{ { .next = 6, .bytes = 8 + 3 * entry }, -EPROTO },
			{ { .next = 6, .bytes = 8 + entry - 1 }, -EPROTO },
			{ { .next = 6, .bytes = 7 }, -EPROTO },
			{ { .next = 6, .bytes = 0 }, -EPROTO },
			{ { .next = 9, .bytes = 8 + entry, .error = -EIO }, -EIO },
			{ { .next = 9, .bytes = 8 + entry, .error = 1 }, -EPROTO },
			{ { .next = 9, .bytes = 8, .op = SUBLET__OP_STATS }, -EPROTO },
		};
		(void)state;

		for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
			uint64_t next;

			assert_int_equal(believe(&cases[i].lie, pins, &next), cases[i].result);
			assert_int_equal(next, cases[i].result > 0 ? cases[i].lie.next : 5);
		}
	}
}

/* Half of what was asked for arrived before the connection broke: the caller can ask for all of it again. */
static void test_broken_half_way(void **state)
{
	static struct sublet_pin_info pins[300];
	struct lie lie = { .next = 6, .bytes = 8 + sizeof(struct sublet_pin_info) };
	struct liar liar = { socket(AF_UNIX, SOCK_STREAM, 0), &lie };
	char file[SUBLET__FILE_BYTES];
	int dir = sublet__instance_dir_open(true);
	struct sublet_client *c;
	uint64_t next = 5;
	pthread_t t;
	(void)state;

	sublet__instance_file(file, "liar", getpid());
	assert_int_equal(sublet__instance_bind(liar.listen, dir, file), 0);
	assert_int_equal(listen(liar.listen, 1), 0);
	assert_int_equal(pthread_create(&t, NULL, lying_server, &liar), 0);
	c = connect_to("liar");
	assert_int_equal(sublet_client_pins(c, &next, 300, pins), -EPIPE);
	assert_int_equal(next, 5);
	pthread_join(t, NULL);
	sublet_client_close(c);
	close(liar.listen);
	close(dir);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_owner_tags),
		cmocka_unit_test(test_owner_noise),
		TEST(test_pins),
		TEST(test_bos),
		TEST(test_list_arguments),
		TEST(test_raw_requests),
		TEST(test_raw_tags),
		TEST(test_lies),
		TEST(test_broken_half_way),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
