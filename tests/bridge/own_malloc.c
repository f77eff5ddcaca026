/* SPDX-License-Identifier: MIT */
/*
 * A program that defines malloc itself, on top of libc's by its internal names, and counts: what it allocates is lent
 * all the same, and its definitions are neither left out nor called without end.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t count, size_t bytes);
void *__libc_realloc(void *addr, size_t bytes);
void __libc_free(void *addr);

static size_t calls;

EXPORT void *malloc(size_t bytes)
{
	calls++;
	return __libc_malloc(bytes);
}

EXPORT void *calloc(size_t count, size_t bytes)
{
	calls++;
	return __libc_calloc(count, bytes);
}

EXPORT void *realloc(void *addr, size_t bytes)
{
	calls++;
	return __libc_realloc(addr, bytes);
}

EXPORT void free(void *addr)
{
	calls++;
	__libc_free(addr);
}

int main(int argc, char **argv)
{
	int rounds = argc > 1 ? atoi(argv[1]) : 1;
	static char *part[256];

	for (int round = 0; round < rounds; round++)
		for (size_t i = 0; i < sizeof(part) / sizeof(part[0]); i++) {
			size_t bytes = 1000 + i * 997;

			if (part[i] != NULL && (part[i][0] != (char)i || part[i][bytes - 1] != (char)i))
				return 1;
			free(part[i]);
			part[i] = round % 2 ? malloc(bytes) : realloc(calloc(1, 10), bytes);
			memset(part[i], (char)i, bytes);
			free(strdup("by libc")); /* libc's own calls come to the program's malloc */
		}
	if (calls < 4 * (size_t)rounds)
		return 1;
	(void)printf("PASS\n");
	return 0;
}
