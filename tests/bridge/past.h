/* SPDX-License-Identifier: MIT */
/* past.h: what past.c asks of past_library.c, which is linked to it and opened as a plugin as well. */
#ifndef SUBLET_TESTS_BRIDGE_PAST_H
#define SUBLET_TESTS_BRIDGE_PAST_H

#include <stddef.h>
#include <stdio.h>

#define PAST_EXPORT __attribute__((visibility("default")))

/* The functions of malloc's, in the order of past_names. */
enum past_function {
	PAST_MALLOC,
	PAST_CALLOC,
	PAST_REALLOC,
	PAST_FREE,
	PAST_USABLE,
	PAST_REALLOCARRAY,
	PAST_MEMALIGN,
	PAST_POSIX_MEMALIGN,
	PAST_ALIGNED_ALLOC,
	PAST_VALLOC,
	PAST_PVALLOC,
	PAST_FUNCTIONS,
};
#define PAST_NAMES                                                                                       \
	{                                                                                                \
		"malloc", "calloc", "realloc", "free", "malloc_usable_size", "reallocarray", "memalign", \
			"posix_memalign", "aligned_alloc", "valloc", "pvalloc",                          \
	}

/* The definitions that an object binds to by itself, and functions of libc that allocate for their caller. */
struct past_object {
	void *function[PAST_FUNCTIONS];
	char *(*copy)(const char *text);                  /* strdup */
	char *(*print)(int number);                       /* asprintf */
	char *(*line)(FILE *file);                        /* getline, with a buffer that grows */
	char *(*memory)(const char *text);                /* open_memstream */
	void *(*look_up)(void *handle, const char *name); /* dlsym, with this object as its caller */
	void *(*look_up_version)(void *handle, const char *name, const char *version);
	const char *(*whose)(void); /* what the object finds under a name that its host has as well */
};
PAST_EXPORT void past_object(struct past_object *object);
PAST_EXPORT const char *past_whose(void);

#endif
