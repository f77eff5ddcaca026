/* SPDX-License-Identifier: MIT */
/*
 * A driver that trusts nobody: it claims windows of any size and alignment, and watches what it was given.
 *
 * What a claim hands out is zero, or whatever (NOZERO); then it is the driver's alone: it writes a pattern, waits, and
 * must read the same. Offsets must be aligned as asked, and windows held at once must not overlap. At most HELD of
 * them are held at a time; they are released in any order.
 *
 * usage: client_driver PID SEED SECONDS [tolerant]. Prints "claims OK FAILED" and exits with 0, with 1 at the first wrong byte, or
 * with 3 when the instance has ended. Tolerant, it believes that of a process that lives: one that is stopped now and then,
 * or executes something else.
 */
#include <sublet/client.h>

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define HELD       4
#define EXIT_ENDED 3
#define GONE_MS    20000

struct window {
	struct sublet_claim claim;
	uint64_t seed;
};

static struct sublet_client *client;
static struct sublet_arena_info info = { SUBLET_OPTIONS(sublet_arena_info) };
static unsigned char *area;
static struct window held[HELD];
static uint64_t random_state, claimed, failed;
static pid_t instance;
static bool tolerant;

static uint64_t random_next(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

static void wrong(const char *what, const struct sublet_claim *c, uint64_t at)
{
	printf("wrong: %s: %" PRIu64 " bytes at %" PRIu64 ", byte %" PRIu64 " is %02x\n", what, c->bytes,
	       c->offset_bytes, at, area[c->offset_bytes + at]);
	fflush(stdout);
	_exit(1);
}

static uint64_t word(const struct window *w, uint64_t i)
{
	return (w->seed + i) * 0x9e3779b97f4a7c15ull;
}

static void fill(struct window *w)
{
	uint64_t *words = (uint64_t *)(void *)(area + w->claim.offset_bytes);

	w->seed = random_next();
	for (uint64_t i = 0; i < w->claim.bytes / 8; i++)
		words[i] = word(w, i);
}

static void check(const struct window *w)
{
	const uint64_t *words = (const uint64_t *)(const void *)(area + w->claim.offset_bytes);

	for (uint64_t i = 0; i < w->claim.bytes / 8; i++)
		if (words[i] != word(w, i))
			wrong("somebody wrote into a claimed window", &w->claim, i * 8);
}

/* Nobody answers any more: that is in order where the process is gone, too. */
static void end_if_gone(int err)
{
	if (err != -EPIPE && err != -ETIMEDOUT && err != -ECONNRESET && err != -ECONNREFUSED &&
	    err != -ENOENT)
		return;
	for (int i = 0; i < GONE_MS && !tolerant && !kill(instance, 0); i++)
		nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
	if (!tolerant && !kill(instance, 0)) {
		printf("wrong: process %d lives and does not answer: %s\n", (int)instance, strerror(-err));
		fflush(stdout);
		_exit(1);
	}
	printf("claims %" PRIu64 " %" PRIu64 "\n", claimed, failed);
	fflush(stdout);
	_exit(EXIT_ENDED);
}

static void check_window(const struct window *w, uint64_t align, bool zeroed)
{
	const struct sublet_claim *c = &w->claim;
	uint64_t in_backing = info.area_offset_bytes + c->offset_bytes;

	if (c->offset_bytes + c->bytes > info.area_bytes || in_backing % align) {
		printf("wrong: a window of %" PRIu64 " bytes at %" PRIu64 " (aligned to %" PRIu64 ")\n",
		       c->bytes, c->offset_bytes, align);
		fflush(stdout);
		_exit(1);
	}
	for (int i = 0; i < HELD; i++) {
		const struct sublet_claim *other = &held[i].claim;

		if (&held[i] != w && other->id && c->offset_bytes < other->offset_bytes + other->bytes &&
		    other->offset_bytes < c->offset_bytes + c->bytes)
			wrong("two claims overlap", c, 0);
	}
	for (uint64_t i = 0; zeroed && i < c->bytes; i++)
		if (area[c->offset_bytes + i])
			wrong("not zeroed", c, i);
}

static void claim(struct window *w)
{
	uint64_t limit = (uint64_t)4096 << (random_next() % 14);
	uint64_t bytes = random_next() % (limit < info.area_bytes / 3 ? limit : info.area_bytes / 3) + 1;
	uint32_t flags = (uint32_t)(random_next() % 8);
	struct sublet_claim_options options = { SUBLET_OPTIONS(sublet_claim_options),
						.align_bytes = (uint64_t)4096 << (random_next() % 12),
						.deadline_ns = SUBLET_MS << (random_next() % 9),
						.flags = flags, .owner = "torture" };
	int err = sublet_client_claim(client, bytes, &options, &w->claim);

	end_if_gone(err);
	if (err) {
		w->claim.id = 0;
		failed++;
		if (err == -EBUSY || err == -ENOMEM)
			return;
		printf("wrong: a claim of %" PRIu64 " bytes ended with %s\n", bytes, strerror(-err));
		fflush(stdout);
		_exit(1);
	}
	claimed++;
	check_window(w, options.align_bytes, !(flags & SUBLET_CLAIM_NOZERO));
	fill(w);
}

static void release(struct window *w)
{
	check(w);
	int err = sublet_client_release(client, &w->claim);
	end_if_gone(err);
	w->claim.id = 0;
	if (!err)
		return;
	printf("wrong: a release ended with %s\n", strerror(-err));
	fflush(stdout);
	_exit(1);
}

static void connect_to(const char *pid)
{
	int fd = -1, err = sublet_client_connect(pid, &client);

	end_if_gone(err);
	if (!err)
		err = sublet_client_info(client, &info);
	end_if_gone(err);
	if (!err)
		err = sublet_client_fd(client, &fd);
	end_if_gone(err);
	area = err ? MAP_FAILED
		   : mmap(NULL, info.area_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
			  (off_t)info.area_offset_bytes);
	if (area == MAP_FAILED) {
		printf("wrong: cannot connect: %s\n", strerror(err ? -err : errno));
		fflush(stdout);
		_exit(1);
	}
	close(fd);
}

int main(int argc, char **argv)
{
	if (argc < 4 || argc > 5)
		return 2;
	instance = (pid_t)strtol(argv[1], NULL, 10);
	tolerant = argc == 5;
	random_state = strtoull(argv[2], NULL, 10) * 2 + 1;
	for (int i = 0; i < 8; i++)
		(void)random_next();
	connect_to(argv[1]);
	time_t end = time(NULL) + strtoll(argv[3], NULL, 10);
	while (time(NULL) < end) {
		struct window *w = &held[random_next() % HELD];

		if (w->claim.id)
			release(w);
		else
			claim(w);
		nanosleep(&(struct timespec){ .tv_nsec = (long)(random_next() % 3000000) }, NULL);
	}
	for (int i = 0; i < HELD; i++)
		if (held[i].claim.id)
			release(&held[i]);
	sublet_client_close(client);
	printf("claims %" PRIu64 " %" PRIu64 "\n", claimed, failed);
	return 0;
}
