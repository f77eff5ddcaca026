/* SPDX-License-Identifier: MIT */
/*
 * The load: a process that keeps a fixed number of connections busy, one request each at a time.
 *
 * Closed loop: a connection sends its next request when the last one was answered, so that the rate
 * is what the server can do and a latency is what one of so many clients sees. Keys are uniform over
 * the whole data set. One request in five writes a key again; the others read one, and every value
 * that comes back is compared in full.
 *
 * Every latency is kept, not a histogram of them: percentiles are exact. They lie in memory shared
 * with the parent, which sorts them when the generator has ended.
 */
#include "cli/demo.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define SAMPLES_MAX  (8u << 20)
#define ANSWER_BYTES 8192
#define STALL_MS     20000

struct sublet__load_shared {
	_Atomic uint64_t operations; /* written by the generator only; read meanwhile just for the eye */
	uint64_t checked;
	uint64_t wrong;
	uint64_t elapsed_ns;
	int32_t error;
	uint32_t samples;
	uint32_t sample_ns[SAMPLES_MAX]; /* saturates at 4.3 s */
};

struct connection {
	int fd;
	bool is_set;
	uint32_t key;
	uint32_t bytes; /* of the answer so far */
	uint64_t sent_ns;
	char answer[ANSWER_BYTES];
};

struct generator {
	struct sublet__load_shared *shared;
	struct connection connections[SUBLET__LOAD_CONNECTIONS];
	int epoll;
	uint64_t random;
	char command[SUBLET__COMMAND_BYTES_MAX];
};

int sublet__load_init(struct sublet__load *load)
{
	void *shared = mmap(NULL, sizeof(struct sublet__load_shared), PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (shared == MAP_FAILED)
		return -errno;
	*load = (struct sublet__load){ .shared = shared };
	return 0;
}

void sublet__load_fini(struct sublet__load *load)
{
	sublet__demo_end(&load->pid, 0);
	if (load->shared)
		munmap(load->shared, sizeof(*load->shared));
	load->shared = NULL;
}

static int send_next(struct generator *g, struct connection *c)
{
	uint64_t random = sublet__random_next(&g->random);
	c->key = (uint32_t)((random >> 32) % SUBLET__KEYS);
	c->is_set = (random & 0xffff) * 100 / 0x10000 < SUBLET__LOAD_SET_PERCENT;
	c->bytes = 0;
	uint32_t bytes = c->is_set ? sublet__command_set(c->key, g->command)
				   : sublet__command_get(c->key, g->command);
	c->sent_ns = sublet__demo_now_ns();
	/* The socket is empty, and takes a whole command. */
	ssize_t n = write(c->fd, g->command, bytes);
	return n == (ssize_t)bytes ? 0 : n < 0 ? -errno : -EIO;
}

/* How long the answer will be; 0 while that cannot be told. -EPROTO: none that was expected. */
static int64_t answer_bytes(struct connection *c, uint32_t *value_at, uint32_t *value_bytes)
{
	c->answer[c->bytes] = '\0';
	const char *end = strstr(c->answer, "\r\n");
	if (!end)
		return c->bytes > 64 ? -EPROTO : 0;
	*value_at = (uint32_t)(end + 2 - c->answer);
	*value_bytes = 0;
	if (c->is_set)
		return c->answer[0] == '+' ? (int64_t)*value_at : -EPROTO;
	long length = c->answer[0] == '$' ? atol(c->answer + 1) : -1;
	if (length < 0)
		return *value_at; /* no such key: found wrong below */
	if (length > SUBLET__VALUE_BYTES_MAX)
		return -EPROTO;
	*value_bytes = (uint32_t)length;
	return (int64_t)*value_at + length + 2;
}

static void note(struct sublet__load_shared *shared, uint64_t latency_ns)
{
	if (shared->samples < SAMPLES_MAX)
		shared->sample_ns[shared->samples++] = latency_ns > UINT32_MAX ? UINT32_MAX
									       : (uint32_t)latency_ns;
	/* Relaxed: nothing is concluded from it. */
	atomic_fetch_add_explicit(&shared->operations, 1, memory_order_relaxed);
}

static int on_readable(struct generator *g, struct connection *c)
{
	ssize_t n = read(c->fd, c->answer + c->bytes, sizeof(c->answer) - 1 - c->bytes);
	if (n <= 0)
		return n == 0 ? -EPIPE : errno == EINTR ? 0 : -errno;
	c->bytes += (uint32_t)n;
	uint32_t value_at, value_bytes;
	int64_t wanted = answer_bytes(c, &value_at, &value_bytes);
	if (wanted < 0)
		return (int)wanted;
	if (wanted == 0 || c->bytes < wanted)
		return 0;
	note(g->shared, sublet__demo_now_ns() - c->sent_ns);
	if (!c->is_set) {
		g->shared->checked++;
		g->shared->wrong += !sublet__value_is(c->key, c->answer + value_at, value_bytes);
	}
	return send_next(g, c);
}

static int run_until(struct generator *g, uint64_t end_ns)
{
	struct epoll_event events[SUBLET__LOAD_CONNECTIONS];
	while (sublet__demo_now_ns() < end_ns) {
		int ready = epoll_wait(g->epoll, events, SUBLET__LOAD_CONNECTIONS, STALL_MS);
		if (ready == 0)
			return -ETIMEDOUT;
		if (ready < 0 && errno != EINTR)
			return -errno;
		for (int i = 0; i < ready; i++) {
			int err = on_readable(g, events[i].data.ptr);
			if (err)
				return err;
		}
	}
	return 0;
}

static int generate(struct generator *g, const char *socket_path, uint64_t duration_ns)
{
	g->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (g->epoll < 0)
		return -errno;
	for (uint32_t i = 0; i < SUBLET__LOAD_CONNECTIONS; i++) {
		struct connection *c = &g->connections[i];
		struct epoll_event event = { .events = EPOLLIN, .data.ptr = c };
		c->fd = sublet__redis_connect(socket_path);
		if (c->fd < 0)
			return c->fd;
		if (epoll_ctl(g->epoll, EPOLL_CTL_ADD, c->fd, &event))
			return -errno;
	}
	uint64_t start_ns = sublet__demo_now_ns();
	int err = 0;
	for (uint32_t i = 0; !err && i < SUBLET__LOAD_CONNECTIONS; i++)
		err = send_next(g, &g->connections[i]);
	if (!err)
		err = run_until(g, start_ns + duration_ns);
	g->shared->elapsed_ns = sublet__demo_now_ns() - start_ns;
	return err;
}

int sublet__load_start(struct sublet__load *load, const char *socket_path, uint64_t duration_ns,
		       uint64_t seed)
{
	struct sublet__load_shared *shared = load->shared;
	shared->checked = shared->wrong = shared->elapsed_ns = 0;
	shared->samples = 0;
	shared->error = -ECHILD; /* until it says otherwise */
	atomic_store_explicit(&shared->operations, 0, memory_order_relaxed);
	pid_t parent = getpid();
	pid_t pid = fork();
	if (pid < 0)
		return -errno;
	if (pid == 0) {
		static struct generator generator; /* too large for a stack */
		sublet__demo_child_begin(parent);
		generator.shared = shared;
		generator.random = seed;
		shared->error = generate(&generator, socket_path, duration_ns);
		_exit(0);
	}
	load->pid = pid;
	return 0;
}

int sublet__load_poll(struct sublet__load *load)
{
	if (sublet__demo_alive(&load->pid))
		return 0;
	return load->shared->error ? load->shared->error : 1;
}

uint64_t sublet__load_operations(const struct sublet__load *load)
{
	return atomic_load_explicit(&load->shared->operations, memory_order_relaxed);
}

static int by_value(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	return (x > y) - (x < y);
}

static double permille_us(const struct sublet__load_shared *shared, uint64_t permille)
{
	if (!shared->samples)
		return 0;
	uint64_t at = (uint64_t)shared->samples * permille / 1000;
	return shared->sample_ns[at < shared->samples ? at : shared->samples - 1] / 1000.0;
}

void sublet__load_result(struct sublet__load *load, struct sublet__load_result *result)
{
	struct sublet__load_shared *shared = load->shared;
	qsort(shared->sample_ns, shared->samples, sizeof(uint32_t), by_value);
	uint64_t operations = sublet__load_operations(load);
	*result = (struct sublet__load_result){
		.operations = operations,
		.checked = shared->checked,
		.wrong = shared->wrong,
		.elapsed_ns = shared->elapsed_ns,
		.rate = shared->elapsed_ns ? (double)operations * 1e9 / (double)shared->elapsed_ns : 0,
		.p50_us = permille_us(shared, 500),
		.p99_us = permille_us(shared, 990),
		.p999_us = permille_us(shared, 999),
		.max_us = permille_us(shared, 1000),
	};
}
