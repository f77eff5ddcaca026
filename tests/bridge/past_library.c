/* SPDX-License-Identifier: MIT */
/* A library, linked or opened, and what it binds to. */
#include "past.h"

#include <dlfcn.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>

#ifndef PAST_WHOSE
#define PAST_WHOSE "library"
#endif

/* There is one in the host too. */
const char *past_whose(void)
{
	return PAST_WHOSE;
}

#define ADDRESS(name) __extension__(void *)(name)

static char *print(int number)
{
	char *text = NULL;

	return asprintf(&text, "number %d", number) < 0 ? NULL : text;
}

static char *line(FILE *file)
{
	size_t bytes = 1;
	char *text = malloc(bytes);

	if (getline(&text, &bytes, file) < 0) {
		free(text);
		return NULL;
	}
	return text;
}

static char *memory(const char *text)
{
	size_t bytes = 0;
	char *whole = NULL;
	FILE *file = open_memstream(&whole, &bytes);

	if (file == NULL)
		return NULL;
	(void)fprintf(file, "%s", text);
	(void)fclose(file);
	return whole;
}

static void *look_up(void *handle, const char *name)
{
	void *volatile found = dlsym(handle, name); /* no tail call: this object is to be the caller */

	return found;
}

static void *look_up_version(void *handle, const char *name, const char *version)
{
	void *volatile found = dlvsym(handle, name, version);

	return found;
}

void past_object(struct past_object *object)
{
	*object = (struct past_object){
		.function = { ADDRESS(malloc), ADDRESS(calloc), ADDRESS(realloc), ADDRESS(free),
			      ADDRESS(malloc_usable_size), ADDRESS(reallocarray), ADDRESS(memalign),
			      ADDRESS(posix_memalign), ADDRESS(aligned_alloc), ADDRESS(valloc),
			      ADDRESS(pvalloc) },
		.copy = strdup,
		.print = print,
		.line = line,
		.memory = memory,
		.look_up = look_up,
		.look_up_version = look_up_version,
		.whose = past_whose,
	};
}
