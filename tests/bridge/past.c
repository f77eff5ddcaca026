/* SPDX-License-Identifier: MIT */
/*
 * A program whose parts reach malloc on ways that go past LD_PRELOAD, and that gives memory from each to each.
 *
 *   past mix PLUGIN ROUNDS      memory that each way's functions allocate is measured, grown and freed by every other's
 *   past namespace PLUGIN ROUNDS  a plugin in a namespace of its own
 *   past names PLUGIN           reads NAME@VERSION from its input; in which file each way finds it
 *
 * PLUGIN is past_library.c as a module, opened with RTLD_DEEPBIND.
 */
#include "past.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define KIND_COUNT 8u
#define WAYS_MAX   8u
#ifdef __aarch64__
#define BASE_VERSION "GLIBC_2.17"
#else
#define BASE_VERSION "GLIBC_2.2.5"
#endif

struct way {
	const char *name;
	void *function[PAST_FUNCTIONS];
};

const char *past_whose(void)
{
	return "host";
}

_Noreturn static void fail(const char *what, const char *by, const char *and_by)
{
	(void)printf("FAIL: %s (%s, %s)\n", what, by, and_by);
	exit(1);
}

static void *open_or_fail(const char *path, int flags)
{
	void *handle = dlopen(path, flags);

	if (handle == NULL)
		fail(dlerror(), path, "dlopen");
	return handle;
}

static void bind_object(void *handle, struct past_object *object)
{
	void (*bind)(struct past_object *) = __extension__(void (*)(struct past_object *))
		dlsym(handle, "past_object");

	if (bind == NULL)
		fail("no past_object", "dlsym", dlerror());
	bind(object);
}

/* ---- the ways ---- */

static void look_up_all(struct way *way, const struct past_object *by, void *handle, const char *version)
{
	static const char *const names[] = PAST_NAMES;

	for (int i = 0; i < PAST_FUNCTIONS; i++) {
		/* Two are younger than the first version. */
		if (version != NULL && i != PAST_REALLOCARRAY && i != PAST_ALIGNED_ALLOC)
			way->function[i] = by->look_up_version(handle, names[i], version);
		else
			way->function[i] = by->look_up(handle, names[i]);
		if (way->function[i] == NULL)
			fail("not found", way->name, names[i]);
	}
}

static uint32_t find_ways(struct way ways[WAYS_MAX], const struct past_object *deep)
{
	static const char *const internal[PAST_FUNCTIONS] = {
		[PAST_MALLOC] = "__libc_malloc",     [PAST_CALLOC] = "__libc_calloc",
		[PAST_REALLOC] = "__libc_realloc",   [PAST_FREE] = "__libc_free",
		[PAST_MEMALIGN] = "__libc_memalign", [PAST_VALLOC] = "__libc_valloc",
		[PAST_PVALLOC] = "__libc_pvalloc",
	};
	void *libc = open_or_fail("libc.so.6", RTLD_NOW | RTLD_NOLOAD);
	struct past_object linked;
	uint32_t count = 0;

	past_object(&linked);
	ways[count].name = "own";
	memcpy(ways[count++].function, linked.function, sizeof(linked.function));
	ways[count].name = "deep";
	memcpy(ways[count++].function, deep->function, sizeof(deep->function));
	ways[count].name = "handle";
	look_up_all(&ways[count++], &linked, libc, NULL);
	ways[count].name = "next";
	look_up_all(&ways[count++], &linked, RTLD_NEXT, NULL);
	ways[count].name = "version";
	look_up_all(&ways[count++], &linked, RTLD_DEFAULT, BASE_VERSION);
	ways[count].name = "version of libc";
	look_up_all(&ways[count++], &linked, libc, BASE_VERSION);
	ways[count] = ways[0];
	ways[count].name = "internal names";
	for (int i = 0; i < PAST_FUNCTIONS; i++)
		if (internal[i] != NULL &&
		    (ways[count].function[i] = dlsym(RTLD_DEFAULT, internal[i])) == NULL)
			fail("not found", "dlsym", internal[i]);
	return count + 1;
}

/* ---- memory from one to the other ---- */

#define CALL(way, index, type) (__extension__(type)(way)->function[index])

static void *allocate(const struct way *way, uint32_t kind, size_t bytes)
{
	void *(*one)(size_t) = NULL;
	void *addr = NULL;

	switch (kind) {
	case 0:
		return CALL(way, PAST_MALLOC, void *(*)(size_t))(bytes);
	case 1:
		return CALL(way, PAST_CALLOC, void *(*)(size_t, size_t))(1, bytes);
	case 2:
		return CALL(way, PAST_REALLOCARRAY, void *(*)(void *, size_t, size_t))(NULL, 1, bytes);
	case 3:
		return CALL(way, PAST_MEMALIGN, void *(*)(size_t, size_t))(256, bytes);
	case 4:
		return CALL(way, PAST_POSIX_MEMALIGN, int (*)(void **, size_t, size_t))(&addr, 64, bytes) == 0
			       ? addr
			       : NULL;
	case 5:
		return CALL(way, PAST_ALIGNED_ALLOC, void *(*)(size_t, size_t))(64, (bytes + 63) & ~63UL);
	default:
		one = CALL(way, kind == 6 ? PAST_VALLOC : PAST_PVALLOC, void *(*)(size_t));
		return one(bytes);
	}
}

static void check(const unsigned char *addr, size_t bytes, unsigned char fill, const struct way *from,
		  const struct way *to)
{
	for (size_t i = 0; i < bytes; i++)
		if (addr[i] != fill)
			fail("wrong byte", from->name, to->name);
}

/* `from` allocates, `to` measures and grows, `last` frees. */
static void pass(const struct way *from, const struct way *to, const struct way *last, uint32_t kind,
		 size_t bytes)
{
	unsigned char fill = (unsigned char)(bytes * 7 + kind);
	unsigned char *addr = allocate(from, kind, bytes);

	if (addr == NULL)
		fail("no memory", from->name, to->name);
	if (CALL(to, PAST_USABLE, size_t(*)(void *))(addr) < bytes)
		fail("usable size", from->name, to->name);
	memset(addr, fill, bytes);
	addr = CALL(to, PAST_REALLOC, void *(*)(void *, size_t))(addr, bytes * 2);
	if (addr == NULL)
		fail("no memory to grow", from->name, to->name);
	check(addr, bytes, fill, from, to);
	CALL(last, PAST_FREE, void (*)(void *))(addr);
}

/* Every way frees the memory that libc allocated for one object. */
static void pass_text(const struct past_object *object, const struct way *to)
{
	FILE *file = fmemopen((char[]){ "a line that is longer than one byte\nand more\n" }, 45, "r");
	char *text[] = { object->copy("text"), object->print(42), object->line(file),
			 object->memory("stream") };
	static const char *const expected[] = { "text", "number 42", "a line that is longer than one byte\n",
						"stream" };

	for (size_t i = 0; i < sizeof(text) / sizeof(text[0]); i++) {
		if (text[i] == NULL || strcmp(text[i], expected[i]) != 0)
			fail("wrong text", expected[i], to->name);
		CALL(to, PAST_FREE, void (*)(void *))(text[i]);
	}
	(void)fclose(file);
}

/* The other interposers are met by the deep one as well. */
static void check_rules(const struct past_object *deep)
{
	int (*init)(pthread_mutex_t *, const pthread_mutexattr_t *) =
		__extension__(int (*)(pthread_mutex_t *, const pthread_mutexattr_t *))
			deep->look_up(RTLD_DEFAULT, "pthread_mutex_init");
	int (*unmap)(void *, size_t) = __extension__(int (*)(void *, size_t))
					       deep->look_up(RTLD_DEFAULT, "munmap");
	pthread_mutex_t *mutex = malloc(1 << 20);
	pthread_mutexattr_t attr;

	(void)pthread_mutexattr_init(&attr);
	(void)pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
	memset(mutex, 0, 1 << 20);
	if (init(mutex, &attr) != EINVAL)
		fail("a process-shared mutex in lent memory", "deep", "pthread_mutex_init");
	if (unmap((void *)(((uintptr_t)mutex + 65535) & ~(uintptr_t)4095), 4096) == 0 || errno != EINVAL)
		fail("unmapped malloc's memory", "deep", "munmap");
	free(mutex);
}

static int mix(const char *plugin, int rounds)
{
	struct past_object deep, linked;
	struct way ways[WAYS_MAX];
	uint32_t count;

	bind_object(open_or_fail(plugin, RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND), &deep);
	past_object(&linked);
	if (strcmp(deep.whose(), "plugin") != 0)
		fail("the plugin found its host's symbol", deep.whose(), "RTLD_DEEPBIND");
	count = find_ways(ways, &deep);
	if (getenv("PAST_LENT") != NULL)
		check_rules(&deep);
	for (int round = 0; round < rounds; round++)
		for (uint32_t from = 0; from < count; from++)
			for (uint32_t to = 0; to < count; to++) {
				size_t bytes = 1 + (size_t)(round * 977 + (int)from * 131) % 70000;

				for (uint32_t kind = 0; kind < KIND_COUNT; kind++)
					pass(&ways[from], &ways[to], &ways[(to + (uint32_t)round) % count],
					     kind, bytes);
				pass_text(&deep, &ways[to]);
				pass_text(&linked, &ways[to]);
			}
	(void)printf("PASS: %u ways\n", count);
	return 0;
}

/* Its malloc and its free belong together, whatever is in front of the host's; each reads the other's memory. */
static int in_namespace(const char *plugin, int rounds)
{
	struct way own = { .name = "own" }, apart = { .name = "namespace" };
	void *handle = dlmopen(LM_ID_NEWLM, plugin, RTLD_NOW);
	struct past_object object, linked;

	if (handle == NULL)
		fail(dlerror(), plugin, "dlmopen");
	bind_object(handle, &object);
	past_object(&linked);
	memcpy(apart.function, object.function, sizeof(object.function));
	memcpy(own.function, linked.function, sizeof(linked.function));
	for (int round = 0; round < rounds; round++)
		for (uint32_t kind = 0; kind < KIND_COUNT; kind++) {
			char *text = malloc(100), *copy;

			pass(&apart, &apart, &apart, kind, 1 + (size_t)round * 97 % 70000);
			pass(&own, &own, &own, kind, 1 + (size_t)round * 97 % 70000);
			(void)snprintf(text, 100, "round %d", round);
			copy = object.copy(text);
			if (strcmp(text, copy) != 0)
				fail("wrong text", "own", "namespace");
			CALL(&apart, PAST_FREE, void (*)(void *))(copy);
			free(text);
		}
	(void)dlclose(handle);
	(void)printf("PASS: namespace\n");
	return 0;
}

/* ---- where names are found ---- */

static void show(const char *way, const char *name, const char *version, void *found)
{
	Dl_info info;

	if (found != NULL && dladdr(found, &info) != 0)
		(void)printf("%s\t%s\t%s\t%s\n", way, name, version, info.dli_fname);
}

static int names(const char *plugin)
{
	void *libc = open_or_fail("libc.so.6", RTLD_NOW | RTLD_NOLOAD);
	struct past_object deep, linked;
	char line[256], *version;

	bind_object(open_or_fail(plugin, RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND), &deep);
	past_object(&linked);
	while (fgets(line, sizeof(line), stdin) != NULL) {
		line[strcspn(line, "\n")] = '\0';
		version = strchr(line, '@');
		if (version == NULL)
			continue;
		*version++ = '\0';
		show("handle", line, version, linked.look_up(libc, line));
		show("next", line, version, linked.look_up(RTLD_NEXT, line));
		show("deep", line, version, deep.look_up(RTLD_DEFAULT, line));
		show("version", line, version, linked.look_up_version(RTLD_DEFAULT, line, version));
		show("version-next", line, version, linked.look_up_version(RTLD_NEXT, line, version));
	}
	return 0;
}

int main(int argc, char **argv)
{
	int rounds = argc > 3 ? atoi(argv[3]) : 1;

	if (argc > 2 && strcmp(argv[1], "mix") == 0)
		return mix(argv[2], rounds);
	if (argc > 2 && strcmp(argv[1], "namespace") == 0)
		return in_namespace(argv[2], rounds);
	if (argc > 2 && strcmp(argv[1], "names") == 0)
		return names(argv[2]);
	return 2;
}
