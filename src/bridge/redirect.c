/* SPDX-License-Identifier: MIT */
/*
 * Calls that would go past the interposers.
 *
 * LD_PRELOAD puts the bridge and jemalloc first in the order in which the loader searches. A call comes here only
 * if it was bound in that order. These are not:
 *
 *   - a plugin that was opened with RTLD_DEEPBIND: it searches its own dependencies first, and libc is one;
 *   - dlsym() with a handle of libc, dlsym(RTLD_NEXT) from a library behind jemalloc, dlvsym() with any handle;
 *   - other names of the same function: __libc_malloc, __close, __libc_fork.
 *
 * Such a plugin frees with libc's free the memory that jemalloc allocated, and the process is aborted. So in a lent
 * process libc's own tables lead here: in the dynamic symbol tables of libc (and of libpthread, libdl, librt and
 * libutil, where they are libraries of their own), as they lie in memory, each function that the bridge or jemalloc
 * stands in front of gets the address of that definition instead of its own. All the ways above read those tables.
 * The tables are data: no code is changed, and nothing is made executable. They are read-only again afterwards.
 * A function is recognised by its address, so that all its names and versions are changed together. It costs
 * 1.5 ms at the start (measured with glibc 2.36 on two busy processors) and the pages of the table, 72 KiB.
 *
 * Rejected:
 *   - an interposed dlopen() that drops RTLD_DEEPBIND: the plugin then finds the host's symbols instead of its own,
 *     which is what the flag is there to prevent;
 *   - interposed dlsym() and dlvsym(): the real ones look at their caller's address, and a function that calls them
 *     and looks at the result afterwards is that caller;
 *   - jumps written over libc's code: that takes executable memory that was written to, which SELinux and
 *     systemd's MemoryDenyWriteExecute forbid.
 *
 * Another preloaded or linked library may wrap one of these functions, and pass each call on to the result of
 * dlsym(RTLD_NEXT). It must find libc's function: the bridge's would call that library again, without end. Its calls
 * came through the bridge already. So libc's tables keep the functions that another library defines. The functions of
 * malloc are the exception, because ours never call a definition that stands behind them.
 *
 * A namespace of dlmopen() has a libc of its own, whose tables are its own too. They stay as they are: its malloc
 * and its free belong together. Memory that one namespace allocates and another frees aborts glibc's malloc as well.
 */
#include "bridge/bridge.h"
#include "bridge/symbols.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define REDIRECTS_MAX 128u
#define LIBC_MAX      8u

struct redirect {
	const char *name;
	uintptr_t original, ours;
	bool is_final; /* ours does not call what stands behind it */
	bool is_off;   /* another library wraps it */
};

/* Written once, by the constructor; read by it and, for what is looked up later, by real.c. */
static struct {
	uint32_t count;
	struct redirect redirect[REDIRECTS_MAX];
} table;

/* The objects that matter here, as far as they were loaded at the start. */
struct objects {
	bool has_bridge, has_jemalloc;
	bool is_behind; /* of leave_wrapped(): it has met the bridge */
	struct sublet__object bridge, jemalloc;
	uint32_t libc_count;
	struct sublet__object libc[LIBC_MAX];
	int libc_protection[LIBC_MAX]; /* of the pages of its symbol table */
};

/* ---- which objects ---- */

static bool is_libc(const struct sublet__object *object)
{
	static const char *const parts[] = { "libc.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1",
					     "libutil.so.1" };

	for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++)
		if (strcmp(object->soname, parts[i]) == 0)
			return true;
	return false;
}

static int protection_of(const struct dl_phdr_info *info, const struct sublet__object *object)
{
	uintptr_t offset = (uintptr_t)object->symbols - object->base;

	for (unsigned int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *segment = &info->dlpi_phdr[i];

		if (segment->p_type == PT_LOAD && offset - segment->p_vaddr < segment->p_memsz)
			return PROT_READ | ((segment->p_flags & PF_X) != 0 ? PROT_EXEC : 0) |
			       ((segment->p_flags & PF_W) != 0 ? PROT_WRITE : 0);
	}
	return PROT_READ;
}

/* jemalloc is the first behind the bridge that has mallctl(). */
static int sort_object(struct dl_phdr_info *info, size_t bytes, void *argument)
{
	struct objects *all = argument;
	struct sublet__object object;

	(void)bytes;
	if (!sublet__object_read(info, &object))
		return 0;
	if (sublet__object_is_own(info)) {
		all->bridge = object;
		all->has_bridge = true;
	} else if (is_libc(&object) && all->libc_count < LIBC_MAX) {
		all->libc_protection[all->libc_count] = protection_of(info, &object);
		all->libc[all->libc_count++] = object;
	} else if (all->has_bridge && !all->has_jemalloc && sublet__object_find(&object, "mallctl") != 0) {
		all->jemalloc = object;
		all->has_jemalloc = true;
	}
	return 0;
}

/* ---- which functions ---- */

static void add(const struct objects *all, const char *name, uintptr_t ours, bool is_final)
{
	for (uint32_t i = 0; i < all->libc_count && table.count < REDIRECTS_MAX; i++) {
		uint32_t index = sublet__object_find(&all->libc[i], name);

		if (index != 0)
			table.redirect[table.count++] = (struct redirect){
				.name = name,
				.original = sublet__object_address(&all->libc[i], index),
				.ours = ours,
				.is_final = is_final,
			};
	}
}

/* All that an object exports and libc has as well. */
static void add_exports(const struct objects *all, const struct sublet__object *object, bool is_jemalloc)
{
	for (uint32_t i = 1; i < object->symbols_end; i++)
		if (sublet__object_exports(object, i)) {
			const char *name = sublet__object_name(object, i);

			add(all, name, sublet__object_address(object, i),
			    is_jemalloc || sublet__malloc_has(name));
		}
}

static void leave_what_it_has(const struct sublet__object *object)
{
	for (uint32_t i = 0; i < table.count; i++) {
		const struct redirect *wrapped = &table.redirect[i];

		if (wrapped->is_final || sublet__object_find(object, wrapped->name) == 0)
			continue;
		for (uint32_t j = 0; j < table.count; j++)
			if (table.redirect[j].original == wrapped->original ||
			    table.redirect[j].ours == wrapped->ours)
				table.redirect[j].is_off = true;
	}
}

/* Leave to a library behind the bridge what it wraps, under all names. */
static int leave_wrapped(struct dl_phdr_info *info, size_t bytes, void *argument)
{
	struct objects *all = argument;
	struct sublet__object object;

	(void)bytes;
	if (sublet__object_is_own(info))
		all->is_behind = true;
	else if (all->is_behind && sublet__object_read(info, &object) && !is_libc(&object) &&
		 object.symbols != all->jemalloc.symbols)
		leave_what_it_has(&object);
	return 0;
}

/* ---- changing libc's tables ---- */

/* The definition that stands in front of a function of libc; of several, the one of this name. NULL: none. */
static const struct redirect *redirect_of(uintptr_t address, const char *name)
{
	const struct redirect *found = NULL;

	for (uint32_t i = 0; i < table.count; i++) {
		const struct redirect *redirect = &table.redirect[i];

		if (redirect->original != address || redirect->is_off)
			continue;
		if (strcmp(redirect->name, name) == 0)
			return redirect;
		if (found == NULL)
			found = redirect;
	}
	return found;
}

static void change_symbols(const struct sublet__object *object)
{
	for (uint32_t i = 1; i < object->symbols_end; i++) {
		const struct redirect *redirect;

		if (!sublet__object_exports(object, i))
			continue;
		redirect = redirect_of(sublet__object_address(object, i), sublet__object_name(object, i));
		/* Relaxed: a thread that still reads the old value binds as if it had come earlier. */
		if (redirect != NULL)
			__atomic_store_n(&object->symbols[i].st_value, redirect->ours - object->base,
					 __ATOMIC_RELAXED);
	}
}

static int change_object(const struct sublet__object *object, int protection)
{
	uintptr_t mask = (uintptr_t)getpagesize() - 1;
	uintptr_t start = (uintptr_t)object->symbols & ~mask;
	uintptr_t end = ((uintptr_t)(object->symbols + object->symbols_end) + mask) & ~mask;

	/* As executable as it was: where code and tables share a segment they may share a page. */
	if (mprotect((void *)start, end - start, protection | PROT_WRITE) != 0)
		return -errno;
	change_symbols(object);
	return mprotect((void *)start, end - start, protection) != 0 ? -errno : 0;
}

int sublet__redirect_install(void)
{
	struct objects all = { 0 };
	int err = 0;

	(void)dl_iterate_phdr(sort_object, &all);
	if (!all.has_bridge || !all.has_jemalloc)
		return -ENOENT;
	add_exports(&all, &all.bridge, false);
	add_exports(&all, &all.jemalloc, true);
	if (table.count == REDIRECTS_MAX)
		return -E2BIG;
	(void)dl_iterate_phdr(leave_wrapped, &all);
	for (uint32_t i = 0; i < all.libc_count && err == 0; i++)
		err = change_object(&all.libc[i], all.libc_protection[i]);
	return err;
}

void *sublet__redirect_original(void *found)
{
	for (uint32_t i = 0; i < table.count; i++)
		if (table.redirect[i].ours == (uintptr_t)found)
			return (void *)table.redirect[i].original;
	return found;
}
