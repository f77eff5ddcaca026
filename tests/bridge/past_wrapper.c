/* SPDX-License-Identifier: MIT */
/*
 * A library that others preload: it wraps functions of libc, counts, and passes on to what dlsym(RTLD_NEXT) finds. Of
 * malloc's functions too, of which those of jemalloc stand before it.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

static int closed, unmapped;

static void *next(const char *name)
{
	void *volatile found = dlsym(RTLD_NEXT, name);

	return found;
}

EXPORT int close(int fd)
{
	closed++;
	return (__extension__(int (*)(int)) next("close"))(fd);
}

EXPORT int munmap(void *addr, size_t bytes)
{
	unmapped++;
	return (__extension__(int (*)(void *, size_t)) next("munmap"))(addr, bytes);
}

EXPORT char *strdup(const char *text)
{
	size_t bytes = strlen(text) + 1;
	char *copy = (__extension__(void *(*)(size_t)) next("malloc"))(bytes);

	return copy == NULL ? NULL : memcpy(copy, text, bytes);
}

EXPORT void *malloc(size_t bytes)
{
	return (__extension__(void *(*)(size_t)) next("malloc"))(bytes);
}

EXPORT void free(void *addr)
{
	(__extension__(void (*)(void *)) next("free"))(addr);
}

/* The memory comes from this library's code, and goes to jemalloc's. */
__attribute__((destructor)) static void end(void)
{
	void *page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int before = closed, fd = dup(STDOUT_FILENO);

	free(strdup("a text"));
	(void)close(fd);
	(void)munmap(page, 4096);
	if (closed > before && unmapped > 0 && write(STDOUT_FILENO, "wrapped\n", 8) != 8)
		_exit(1);
}
