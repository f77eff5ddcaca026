/* SPDX-License-Identifier: MIT */
/*
 * Two Redis servers, alike in everything but their memory: one started by itself, one by `sublet run`.
 *
 * They listen on Unix sockets in the demonstration's own folder, save nothing and are filled by a
 * pipelined writer with the same data set. DEBUG DIGEST, Redis's own checksum of all keys and values,
 * is taken before and after; the load in between writes keys again, but never to another value.
 */
#include "cli/demo.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define START_NS   (20 * SUBLET_SEC)
#define ANSWER_MS  30000
#define FILL_BATCH 256u
#define LOG_LINES  3

int sublet__redis_version(void)
{
	if (!sublet__demo_find_program("redis-server"))
		return -ENOENT;
	FILE *pipe = popen("redis-server --version 2>/dev/null", "re");
	if (!pipe)
		return -errno;
	char line[256] = "";
	const char *version = fgets(line, sizeof(line), pipe) ? strstr(line, "v=") : NULL;
	pclose(pipe);
	int major = 0, minor = 0;
	if (!version || sscanf(version, "v=%d.%d", &major, &minor) != 2)
		return -EPROTO;
	return major * 100 + minor;
}

int sublet__redis_start(struct sublet__redis *redis, const char *label, const char *folder,
			const char *lent_name, int version)
{
	char area[32], normal[32], self[PATH_MAX];
	const char *argv[40];
	size_t n = 0;
	redis->label = label;
	redis->fd = -1;
	snprintf(redis->socket, sizeof(redis->socket), "%s/%s.sock", folder, label);
	snprintf(redis->log, sizeof(redis->log), "%s/%s.log", folder, label);
	snprintf(area, sizeof(area), "%lluM", (unsigned long long)(SUBLET__DEMO_AREA_BYTES / SUBLET_MIB));
	snprintf(normal, sizeof(normal), "%lluM",
		 (unsigned long long)(SUBLET__DEMO_NORMAL_BYTES / SUBLET_MIB));
	sublet__demo_self(self);
	if (lent_name) {
		const char *run[] = { self,   "run",    "--area",  area, "--normal",
				      normal, "--name", lent_name, "--" };
		memcpy(argv, run, sizeof(run));
		n = sizeof(run) / sizeof(run[0]);
	}
	const char *server[] = { "redis-server", "--port",      "0",  "--unixsocket",
				 redis->socket,  "--save",      "",   "--appendonly",
				 "no",           "--daemonize", "no", "--dir",
				 folder };
	memcpy(argv + n, server, sizeof(server));
	n += sizeof(server) / sizeof(server[0]);
	if (version >= 700) { /* older ones always allow it, and know no such option */
		argv[n++] = "--enable-debug-command";
		argv[n++] = "yes";
	}
	argv[n] = NULL;
	pid_t pid = sublet__demo_spawn(argv, redis->log, -1);
	redis->pid = pid > 0 ? pid : 0;
	return pid > 0 ? 0 : (int)pid;
}

int sublet__redis_connect(const char *socket_path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	if (snprintf(address.sun_path, sizeof(address.sun_path), "%s", socket_path) >=
	    (int)sizeof(address.sun_path))
		return -ENAMETOOLONG;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	if (connect(fd, (struct sockaddr *)&address, sizeof(address))) {
		int err = -errno;
		close(fd);
		return err;
	}
	return fd;
}

static int send_all(int fd, const char *data, size_t bytes)
{
	while (bytes) {
		ssize_t n = send(fd, data, bytes, MSG_NOSIGNAL);
		if (n < 0 && (errno != EINTR || sublet__demo_interrupted()))
			return -errno;
		if (n > 0) {
			data += n;
			bytes -= (size_t)n;
		}
	}
	return 0;
}

/* Read exactly `bytes`; the caller knows how long the answer is when all is well. */
static int receive(int fd, char *data, size_t bytes)
{
	while (bytes) {
		struct pollfd ready = { .fd = fd, .events = POLLIN };
		int polled = poll(&ready, 1, ANSWER_MS);
		if (sublet__demo_interrupted())
			return -EINTR;
		if (polled == 0)
			return -ETIMEDOUT;
		ssize_t n = polled > 0 ? read(fd, data, bytes) : -1;
		if (n == 0)
			return -EPIPE;
		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0) {
			data += n;
			bytes -= (size_t)n;
		}
	}
	return 0;
}

static int expect(int fd, const char *command, const char *answer)
{
	char got[64] = "";
	int err = send_all(fd, command, strlen(command));
	if (!err)
		err = receive(fd, got, strlen(answer));
	return err ? err : memcmp(got, answer, strlen(answer)) ? -EPROTO : 0;
}

void sublet__redis_complain(const struct sublet__redis *redis, const char *what)
{
	demo_error("the %s redis-server %s", redis->label, what);
	FILE *log = fopen(redis->log, "re");
	char lines[LOG_LINES][256];
	unsigned count = 0;
	while (log && fgets(lines[count % LOG_LINES], sizeof(lines[0]), log)) {
		char *line = lines[count % LOG_LINES];
		line[strcspn(line, "\n")] = '\0';
		if (line[0])
			count++;
	}
	if (log)
		fclose(log);
	for (unsigned i = count > LOG_LINES ? count - LOG_LINES : 0; i < count; i++)
		sublet__advice("%s", lines[i % LOG_LINES]);
}

int sublet__redis_wait(struct sublet__redis *redis)
{
	uint64_t deadline_ns = sublet__demo_now_ns() + START_NS;
	while (!sublet__demo_interrupted()) {
		int fd = sublet__redis_connect(redis->socket);
		if (fd >= 0 && expect(fd, "PING\r\n", "+PONG\r\n") == 0) {
			redis->fd = fd;
			return 0;
		}
		if (fd >= 0)
			close(fd);
		if (!sublet__demo_alive(&redis->pid)) {
			sublet__redis_complain(redis, "did not start");
			return -ECHILD;
		}
		if (sublet__demo_now_ns() > deadline_ns) {
			sublet__redis_complain(redis, "does not answer");
			return -ETIMEDOUT;
		}
		sublet__demo_sleep_ns(10 * SUBLET_MS);
	}
	return -EINTR;
}

/* One batch of SETs, then its answers: "+OK\r\n" each, so few bytes that they cannot fill the socket. */
static int fill_batch(int fd, uint32_t first, uint32_t count, char *buffer)
{
	static const char ok[] = "+OK\r\n";
	char answers[FILL_BATCH * (sizeof(ok) - 1)];
	size_t bytes = 0;
	for (uint32_t i = 0; i < count; i++)
		bytes += sublet__command_set(first + i, buffer + bytes);
	int err = send_all(fd, buffer, bytes);
	if (!err)
		err = receive(fd, answers, count * (sizeof(ok) - 1));
	for (uint32_t i = 0; !err && i < count; i++)
		if (memcmp(answers + i * (sizeof(ok) - 1), ok, sizeof(ok) - 1))
			err = -EPROTO;
	return err;
}

int sublet__redis_fill(struct sublet__redis *redis)
{
	char *buffer = malloc((size_t)FILL_BATCH * SUBLET__COMMAND_BYTES_MAX);
	int err = buffer ? 0 : -ENOMEM;
	for (uint32_t key = 0; !err && key < SUBLET__KEYS; key += FILL_BATCH) {
		uint32_t left = SUBLET__KEYS - key;
		err = fill_batch(redis->fd, key, left < FILL_BATCH ? left : FILL_BATCH, buffer);
		if (key % (64 * FILL_BATCH) == 0)
			sublet__demo_line(false, "filling the %s Redis: %u of %u keys", redis->label, key,
					  SUBLET__KEYS);
	}
	free(buffer);
	if (err && !sublet__demo_interrupted())
		sublet__redis_complain(redis, sublet__demo_alive(&redis->pid) ? "took no data" : "died");
	return err;
}

int sublet__redis_digest_ask(struct sublet__redis *redis)
{
	static const char command[] = "DEBUG DIGEST\r\n";
	return send_all(redis->fd, command, sizeof(command) - 1);
}

int sublet__redis_digest_fetch(struct sublet__redis *redis, char digest[41])
{
	char answer[43]; /* "+", 40 digits, "\r\n" */
	int err = receive(redis->fd, answer, sizeof(answer));
	if (!err && answer[0] != '+')
		err = -EPROTO;
	if (err && !sublet__demo_interrupted())
		sublet__redis_complain(redis, sublet__demo_alive(&redis->pid) ? "gave no digest" : "died");
	if (!err) {
		memcpy(digest, answer + 1, 40);
		digest[40] = '\0';
	}
	return err;
}

void sublet__redis_stop(struct sublet__redis *redis)
{
	if (redis->fd >= 0)
		close(redis->fd);
	redis->fd = -1;
	sublet__demo_end(&redis->pid, 2 * SUBLET_SEC);
	/* Looking removes the socket of one that had to be killed. */
	int running = sublet_instance_list(NULL, 0);
	(void)running;
}
