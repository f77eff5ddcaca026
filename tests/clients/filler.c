/* SPDX-License-Identifier: MIT */
/*
 * A program whose heap is as large as it is told to be, and which knows every byte of it.
 *
 * Two threads own half of the blocks each. They write a pattern that follows from the block, the word
 * and the pass, then read all of it back and write the next one, again and again: a page that was lost,
 * swapped, or put back as it was some time ago is seen. Half of the blocks are only ever read after
 * the first pass, so that moves of memory that nobody writes are checked as well. If asked to, between
 * two passes each takes memory from calloc, which must be zero, soils it and gives it back.
 *
 * usage: client_filler BYTES [churn]. Prints "full" when all is written. Runs until a line or the end of stdin;
 * prints "passes N" and exits with 0, or with 1 at the first wrong word.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define THREADS      2
#define BLOCK_MAX    ((size_t)1 << 20)
#define CHURN_BLOCKS 2
#define WORD_BYTES   sizeof(uint64_t)

struct block {
	uint64_t *words;
	size_t count;
	uint64_t pass;
};

static struct block *blocks;
static size_t block_count;
static atomic_bool stopping;
static bool churning;
static atomic_ulong passes[THREADS];

static uint64_t pattern(size_t block, uint64_t pass, size_t word)
{
	return (block + 1) * 0x9e3779b97f4a7c15ull ^ pass * 0xbf58476d1ce4e5b9ull ^
	       word * 0x94d049bb133111ebull;
}

static void fill(size_t i)
{
	struct block *b = &blocks[i];

	for (size_t w = 0; w < b->count; w++)
		b->words[w] = pattern(i, b->pass, w);
}

static void check(size_t i)
{
	const struct block *b = &blocks[i];

	for (size_t w = 0; w < b->count; w++) {
		uint64_t want = pattern(i, b->pass, w), got = b->words[w];

		if (got == want)
			continue;
		printf("wrong: block %zu of %zu, word %zu at %p, pass %llu: %016llx, not %016llx\n", i,
		       block_count, w, (void *)&b->words[w], (unsigned long long)b->pass,
		       (unsigned long long)got, (unsigned long long)want);
		fflush(stdout);
		_exit(1);
	}
}

/* Memory that is said to be zero, and was somebody else's a moment ago. */
static void churn(uint64_t *random)
{
	for (int i = 0; i < CHURN_BLOCKS; i++) {
		*random = *random * 6364136223846793005u + 1442695040888963407u;
		size_t size = (*random >> 33) % (2 * BLOCK_MAX) + BLOCK_MAX;
		unsigned char *fresh = calloc(1, size);

		for (size_t at = 0; fresh && at < size; at++)
			if (fresh[at]) {
				printf("wrong: byte %zu of %zu from calloc is %02x\n", at, size, fresh[at]);
				fflush(stdout);
				_exit(1);
			}
		if (fresh)
			memset(fresh, 0xa5, size);
		free(fresh);
	}
}

static void *work(void *arg)
{
	size_t mine = (size_t)(uintptr_t)arg;
	uint64_t random = mine;

	do {
		if (churning)
			churn(&random);
		for (size_t i = mine; i < block_count; i += THREADS) {
			check(i);
			if (i / THREADS % 2)
				continue;
			blocks[i].pass++;
			fill(i);
		}
		passes[mine]++;
	} while (!stopping);
	return NULL;
}

/* Sizes of all kinds, so that the ends of runs of pages are everywhere. */
static bool allocate(size_t bytes)
{
	uint64_t random = 1;

	blocks = calloc(bytes / 4096 + 1, sizeof(*blocks));
	while (blocks && bytes) {
		random = random * 6364136223846793005u + 1442695040888963407u;
		size_t size = (random >> 33) % BLOCK_MAX + 65536;

		size = (size < bytes ? size : bytes) & ~(WORD_BYTES - 1);
		if (!size)
			break;
		blocks[block_count].words = malloc(size);
		if (!blocks[block_count].words)
			return false;
		blocks[block_count].count = size / WORD_BYTES;
		bytes -= size;
		fill(block_count++);
	}
	return blocks != NULL;
}

int main(int argc, char **argv)
{
	pthread_t thread[THREADS];
	char line[16];

	churning = argc == 3 && !strcmp(argv[2], "churn");
	if (argc < 2 || !allocate(strtoull(argv[1], NULL, 10)))
		return 2;
	for (uintptr_t i = 0; i < THREADS; i++)
		if (pthread_create(&thread[i], NULL, work, (void *)i))
			return 2;
	puts("full");
	fflush(stdout);
	if (read(STDIN_FILENO, line, sizeof(line)) < 0)
		return 2;
	stopping = true;
	for (int i = 0; i < THREADS; i++)
		pthread_join(thread[i], NULL);
	printf("passes %lu\n", passes[0] < passes[1] ? passes[0] : passes[1]);
	return 0;
}
