/* SPDX-License-Identifier: MIT */
/*
 * A program that is hard on its heap and on its threads, and that knows every byte of what it holds.
 *
 * Workers allocate in every way that malloc has, of sizes between a byte and two megabytes, fill what they get with a
 * pattern that follows from a number of its own, and leave it in slots that they share: whoever takes a block out of a
 * slot checks all of it, and frees it, moves it by realloc, writes it anew, or puts it back. calloc must be zero. All
 * the time threads end and others begin, so that jemalloc's caches and stacks come and go. If asked to, the program
 * forks now and then: the child checks what it inherited and writes over it, and the parent goes on meanwhile. Or it hammers:
 * each thread writes every page of a block of its own many times a millisecond, and knows what it wrote last, so that some
 * write falls into every part of every move.
 *
 * usage: client_storm SECONDS SEED BYTES THREADS [fork|hammer]. Prints "full" once, "blocks N" at the end, and exits with 0; with 1 at
 * the first wrong byte.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SLOTS_MAX     4096
#define SIZE_MAX_     ((size_t)2 << 20)
#define THREADS_MAX   64
#define STEPS         400 /* of a thread, then another takes its place */
#define CHILD_S       20
#define HAMMER_STRIDE 128 /* words: four of a page */

struct block {
	unsigned char *bytes;
	size_t size;
	uint64_t number;
};

struct slot {
	pthread_mutex_t lock;
	struct block block;
};

static struct slot *slots;
static uint64_t slot_count;
static atomic_ulong numbers, checked;
static atomic_bool stopping;

static uint64_t random_next(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static unsigned char pattern(uint64_t number, size_t at)
{
	return (unsigned char)((number * 0x9e3779b97f4a7c15ull + at * 0xff51afd7ed558ccdull) >> 56);
}

static void fill(struct block *b)
{
	b->number = atomic_fetch_add(&numbers, 1) + 1;
	for (size_t i = 0; i < b->size; i++)
		b->bytes[i] = pattern(b->number, i);
}

static void wrong(const char *what, const struct block *b, size_t at, unsigned int want)
{
	printf("wrong: %s: byte %zu of %zu at %p of block %llu is %02x, not %02x\n", what, at, b->size,
	       (void *)b->bytes, (unsigned long long)b->number, b->bytes[at], want);
	fflush(stdout);
	_exit(1);
}

static void check(const char *what, const struct block *b, size_t size)
{
	for (size_t i = 0; i < size; i++)
		if (b->bytes[i] != pattern(b->number, i))
			wrong(what, b, i, pattern(b->number, i));
	atomic_fetch_add(&checked, 1);
}

/* Most are small; each power of two is about as likely as the next. */
static size_t random_size(uint64_t *random)
{
	size_t limit = (size_t)1 << (random_next(random) % 22);

	return random_next(random) % (limit < SIZE_MAX_ ? limit : SIZE_MAX_) + 1;
}

static void allocate(struct block *b, uint64_t *random)
{
	void *aligned = NULL;

	b->size = random_size(random);
	switch (random_next(random) % 3) {
	case 0:
		b->bytes = malloc(b->size);
		break;
	case 1:
		b->bytes = calloc(1, b->size);
		for (size_t i = 0; b->bytes && i < b->size; i++)
			if (b->bytes[i])
				wrong("calloc", b, i, 0);
		break;
	default:
		if (posix_memalign(&aligned, (size_t)64 << (random_next(random) % 12), b->size))
			aligned = NULL;
		b->bytes = aligned;
	}
	if (!b->bytes)
		b->size = 0;
	fill(b);
}

static void resize(struct block *b, uint64_t *random)
{
	size_t size = random_size(random), least = size < b->size ? size : b->size;
	unsigned char *bytes = realloc(b->bytes, size);

	if (!bytes)
		return;
	b->bytes = bytes;
	b->size = size;
	check("realloc", b, least);
	fill(b);
}

static void step(uint64_t *random)
{
	struct slot *slot = &slots[random_next(random) % slot_count];
	struct block *b = &slot->block;

	pthread_mutex_lock(&slot->lock);
	if (!b->bytes) {
		allocate(b, random);
	} else {
		check("slot", b, b->size);
		switch (random_next(random) % 4) {
		case 0:
			free(b->bytes);
			b->bytes = NULL;
			break;
		case 1:
			resize(b, random);
			break;
		case 2:
			fill(b);
			break;
		default:
			break;
		}
	}
	pthread_mutex_unlock(&slot->lock);
}

static void *work(void *arg)
{
	uint64_t random = (uintptr_t)arg | 1;

	for (int i = 0; i < STEPS && !stopping; i++)
		step(&random);
	return NULL;
}

/* Whatever the parent does meanwhile: the child has what was there at the fork, and its own writes. */
static void child(uint64_t random)
{
	alarm(CHILD_S);
	for (uint64_t i = 0; i < slot_count; i++)
		if (slots[i].block.bytes)
			check("inherited", &slots[i].block, slots[i].block.size);
	for (uint64_t i = random % 3; i < slot_count; i += 3)
		if (slots[i].block.bytes)
			fill(&slots[i].block);
	for (uint64_t i = 0; i < slot_count; i++)
		if (slots[i].block.bytes)
			check("child", &slots[i].block, slots[i].block.size);
	_exit(0);
}

/* Every slot is locked over the fork: no block is half written in the child. */
static void fork_once(uint64_t random)
{
	int status = 0;

	for (uint64_t i = 0; i < slot_count; i++)
		pthread_mutex_lock(&slots[i].lock);
	pid_t pid = fork();
	if (pid == 0)
		child(random);
	for (uint64_t i = 0; i < slot_count; i++)
		pthread_mutex_unlock(&slots[i].lock);
	if (pid < 0) {
		printf("wrong: fork failed\n");
		fflush(stdout);
		_exit(1);
	}
	if (waitpid(pid, &status, 0) == pid && status == 0)
		return;
	printf("wrong: a child ended with %x\n", (unsigned int)status);
	fflush(stdout);
	_exit(1);
}

static double now_s(void);

/* Passes over a block of its own, a few words of each page: a write that is lost is seen in the next pass. */
static void *hammer(void *arg)
{
	size_t words = (size_t)(uintptr_t)arg / sizeof(uint64_t);
	uint64_t *block = calloc(words, sizeof(uint64_t)), pass = 0;

	for (; block && !stopping; pass++)
		for (size_t i = 0; i < words; i += HAMMER_STRIDE) {
			if (__builtin_expect(block[i] != pass, 0)) {
				printf("wrong: word %zu at %p is %llu, not %llu\n", i, (void *)&block[i],
				       (unsigned long long)block[i], (unsigned long long)pass);
				fflush(stdout);
				_exit(1);
			}
			block[i] = pass + 1;
		}
	free(block);
	atomic_fetch_add(&checked, pass);
	return NULL;
}

static bool hammer_all(double until, uint64_t thread_count, uint64_t bytes)
{
	pthread_t thread[THREADS_MAX];

	for (uint64_t i = 0; i < thread_count; i++)
		if (pthread_create(&thread[i], NULL, hammer, (void *)(uintptr_t)(bytes / thread_count)))
			return false;
	puts("full");
	fflush(stdout);
	while (now_s() < until)
		usleep(10000);
	stopping = true;
	for (uint64_t i = 0; i < thread_count; i++)
		pthread_join(thread[i], NULL);
	printf("blocks %lu\n", (unsigned long)checked);
	return true;
}

static double now_s(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static bool prepare(uint64_t bytes, uint64_t *random)
{
	/* Half of the slots are taken; the mean size of a block is about a twenty-second of the largest. */
	slot_count = bytes / (SIZE_MAX_ / 22) * 2;
	if (slot_count > SLOTS_MAX)
		slot_count = SLOTS_MAX;
	if (slot_count < THREADS_MAX)
		slot_count = THREADS_MAX;
	slots = calloc(slot_count, sizeof(*slots));
	for (uint64_t i = 0; slots && i < slot_count; i++) {
		pthread_mutex_init(&slots[i].lock, NULL);
		if (i % 2)
			allocate(&slots[i].block, random);
	}
	return slots != NULL;
}

static bool storm(double until, uint64_t thread_count, bool forking, uint64_t *random)
{
	pthread_t thread[THREADS_MAX];
	uint64_t started = 0;

	/* One ends, one begins: always the oldest, so that there are as many as were asked for. */
	for (; started < thread_count; started++)
		if (pthread_create(&thread[started], NULL, work, (void *)(uintptr_t)random_next(random)))
			return false;
	for (uint64_t at = 0; now_s() < until; at = (at + 1) % thread_count) {
		pthread_join(thread[at], NULL);
		if (forking && random_next(random) % 8 == 0)
			fork_once(random_next(random));
		if (pthread_create(&thread[at], NULL, work, (void *)(uintptr_t)random_next(random)))
			return false;
	}
	stopping = true;
	for (uint64_t i = 0; i < thread_count; i++)
		pthread_join(thread[i], NULL);
	return true;
}

int main(int argc, char **argv)
{
	if (argc < 5 || argc > 6)
		return 2;
	double until = now_s() + strtod(argv[1], NULL);
	uint64_t random = strtoull(argv[2], NULL, 10) * 2 + 1;
	uint64_t threads = strtoull(argv[4], NULL, 10);

	if (threads && threads <= THREADS_MAX && argc == 6 && !strcmp(argv[5], "hammer"))
		return hammer_all(until, threads, strtoull(argv[3], NULL, 10)) ? 0 : 2;
	if (!threads || threads > THREADS_MAX || !prepare(strtoull(argv[3], NULL, 10), &random))
		return 2;
	puts("full");
	fflush(stdout);
	if (!storm(until, threads, argc == 6, &random))
		return 2;
	for (uint64_t i = 0; i < slot_count; i++)
		if (slots[i].block.bytes)
			check("end", &slots[i].block, slots[i].block.size);
	printf("blocks %lu\n", (unsigned long)checked);
	return 0;
}
