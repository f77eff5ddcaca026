/* SPDX-License-Identifier: MIT */
/*
 * What the demonstration writes, and how it checks every byte of it.
 *
 * Two kinds of data. The values in Redis are a pure function of their key: whoever reads one can
 * compare all of it without having kept a copy, and the load may write a key again (new memory, old
 * memory freed) without changing what the data set is. The frames that the capture device reads are
 * full of noise from a seed, each with its number and a checksum in its header; a frame that was left
 * over from an earlier claim has the wrong number.
 *
 * The checksum is four lanes of multiply and rotate over 64-bit words, in the manner of xxHash: fast
 * enough that checking does not drown what is measured, and it depends on the place of every word.
 */
#include "cli/demo.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FRAME_MAGIC 0x315244464c425553u
#define SUM_PRIME_1 0x9e3779b185ebca87u
#define SUM_PRIME_2 0xc2b2ae3d27d4eb4fu

struct frame_header {
	uint64_t magic;
	uint64_t index;
	uint64_t sum; /* of everything behind the header */
	uint64_t reserved;
};

/* Steele, Lea, Flood: SplitMix64. One addition and a mixer, so that word i can be had without word i - 1. */
static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15u;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	return x ^ (x >> 31);
}

uint64_t sublet__random_next(uint64_t *state)
{
	*state += 0x9e3779b97f4a7c15u;
	return mix(*state);
}

uint32_t sublet__value_bytes(uint32_t key)
{
	return SUBLET__VALUE_BYTES_MIN +
	       (uint32_t)(mix(key) % (SUBLET__VALUE_BYTES_MAX - SUBLET__VALUE_BYTES_MIN + 1));
}

static uint64_t value_word(uint32_t key, uint32_t i)
{
	return mix(((uint64_t)key << 32) | i);
}

static void value_fill(uint32_t key, char *out, uint32_t bytes)
{
	uint32_t done = 0;
	for (uint32_t i = 0; done < bytes; i++) {
		uint64_t word = value_word(key, i);
		uint32_t part = bytes - done < sizeof(word) ? bytes - done : (uint32_t)sizeof(word);
		memcpy(out + done, &word, part);
		done += part;
	}
}

bool sublet__value_is(uint32_t key, const char *value, uint32_t bytes)
{
	if (bytes != sublet__value_bytes(key))
		return false;
	uint32_t done = 0;
	for (uint32_t i = 0; done < bytes; i++) {
		uint64_t word = value_word(key, i);
		uint32_t part = bytes - done < sizeof(word) ? bytes - done : (uint32_t)sizeof(word);
		if (memcmp(value + done, &word, part))
			return false;
		done += part;
	}
	return true;
}

uint32_t sublet__command_set(uint32_t key, char *out)
{
	uint32_t bytes = sublet__value_bytes(key);
	int head = snprintf(out, 64, "*3\r\n$3\r\nSET\r\n$11\r\nkey:%07u\r\n$%u\r\n", key, bytes);
	value_fill(key, out + head, bytes);
	memcpy(out + head + bytes, "\r\n", 2);
	return (uint32_t)head + bytes + 2;
}

uint32_t sublet__command_get(uint32_t key, char *out)
{
	return (uint32_t)snprintf(out, 64, "*2\r\n$3\r\nGET\r\n$11\r\nkey:%07u\r\n", key);
}

static uint64_t sum_round(uint64_t lane, uint64_t word)
{
	lane += word * SUM_PRIME_2;
	lane = (lane << 31) | (lane >> 33);
	return lane * SUM_PRIME_1;
}

/* words is a multiple of 4. */
static uint64_t sum(const uint64_t *word, size_t words)
{
	uint64_t lane[4] = { 1, 2, 3, 4 };
	for (size_t i = 0; i < words; i += 4) {
		lane[0] = sum_round(lane[0], word[i]);
		lane[1] = sum_round(lane[1], word[i + 1]);
		lane[2] = sum_round(lane[2], word[i + 2]);
		lane[3] = sum_round(lane[3], word[i + 3]);
	}
	return mix(lane[0] ^ mix(lane[1] ^ mix(lane[2] ^ mix(lane[3]))));
}

static const size_t body_words = (SUBLET__FRAME_BYTES - sizeof(struct frame_header)) / sizeof(uint64_t);

bool sublet__frame_is_good(const void *memory, uint32_t index)
{
	const struct frame_header *header = memory;
	return header->magic == FRAME_MAGIC && header->index == index &&
	       header->sum == sum((const uint64_t *)(header + 1), body_words);
}

static void frame_fill(void *memory, uint32_t index)
{
	struct frame_header *header = memory;
	uint64_t *word = (uint64_t *)(header + 1);
	uint64_t state = mix(index + 1);
	for (size_t i = 0; i < body_words; i++)
		word[i] = sublet__random_next(&state);
	*header = (struct frame_header){ .magic = FRAME_MAGIC, .index = index, .sum = sum(word, body_words) };
}

static int write_all(int fd, const char *data, size_t bytes)
{
	while (bytes) {
		ssize_t n = write(fd, data, bytes);
		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0) {
			data += n;
			bytes -= (size_t)n;
		}
	}
	return 0;
}

int sublet__frames_write(const char *path)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	char *frame = malloc(SUBLET__FRAME_BYTES);
	int err = frame ? 0 : -ENOMEM;
	for (uint32_t i = 0; !err && i < SUBLET__FRAMES_IN_FILE && !sublet__demo_interrupted(); i++) {
		frame_fill(frame, i);
		err = write_all(fd, frame, SUBLET__FRAME_BYTES);
	}
	/* Out of the page cache, so that the device's reads are the disk's. */
	if (!err && fsync(fd))
		err = -errno;
	(void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	free(frame);
	close(fd);
	return err;
}
