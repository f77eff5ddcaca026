/* SPDX-License-Identifier: MIT */
/*
 * The dynamic symbol tables of the loaded objects.
 *
 * dlsym() answers what an object would find. The bridge also asks which object defines a name, under which other
 * names the same function is exported, and it asks from within malloc, where dlsym() must not be called because it
 * may allocate. So the tables are read here. They are part of the ELF specification, but for the GNU hash table,
 * which every current linker writes and which tells the number of symbols.
 */
#include "bridge/symbols.h"

#include <string.h>

#define VERSION_HIDDEN 0x8000u /* in the table of versions: not the default version of its name */

/* ---- reading ---- */

/* The parts of a GNU hash table. */
struct gnu_hash {
	uint32_t buckets;
	uint32_t first; /* the symbols below are not in it */
	const uint32_t *bucket;
	const uint32_t *chain; /* of symbol `first`; the lowest bit ends a chain */
};

static struct gnu_hash gnu_hash(const uint32_t *table)
{
	struct gnu_hash hash = { .buckets = table[0], .first = table[1] };

	hash.bucket = table + 4 + table[2] * (sizeof(ElfW(Addr)) / sizeof(uint32_t));
	hash.chain = hash.bucket + hash.buckets;
	return hash;
}

static uint32_t gnu_hash_end(const uint32_t *table)
{
	struct gnu_hash hash = gnu_hash(table);
	uint32_t last = 0;

	for (uint32_t i = 0; i < hash.buckets; i++)
		if (hash.bucket[i] > last)
			last = hash.bucket[i];
	if (last < hash.first)
		return hash.first;
	while ((hash.chain[last - hash.first] & 1) == 0)
		last++;
	return last + 1;
}

static const ElfW(Dyn) * dynamic_of(const struct dl_phdr_info *info)
{
	for (unsigned int i = 0; i < info->dlpi_phnum; i++)
		if (info->dlpi_phdr[i].p_type == PT_DYNAMIC)
			return (const ElfW(Dyn) *)(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr);
	return NULL;
}

bool sublet__object_read(const struct dl_phdr_info *info, struct sublet__object *object)
{
	const ElfW(Dyn) *dynamic = dynamic_of(info);
	const uint32_t *old_hash = NULL;
	ElfW(Xword) soname = 0;

	*object = (struct sublet__object){ .base = info->dlpi_addr, .soname = "" };
	for (const ElfW(Dyn) *at = dynamic; at != NULL && at->d_tag != DT_NULL; at++) {
		const void *table = (const void *)at->d_un.d_ptr;

		if (at->d_tag == DT_SYMTAB)
			object->symbols = (ElfW(Sym) *)at->d_un.d_ptr;
		else if (at->d_tag == DT_STRTAB)
			object->strings = table;
		else if (at->d_tag == DT_VERSYM)
			object->versions = table;
		else if (at->d_tag == DT_GNU_HASH)
			object->gnu_hash = table;
		else if (at->d_tag == DT_HASH)
			old_hash = table;
		else if (at->d_tag == DT_SONAME)
			soname = at->d_un.d_val;
	}
	/* The loader leaves the vDSO's dynamic section as it is: offsets, which lie below any address. */
	if (object->strings == NULL || object->symbols == NULL || (uintptr_t)object->strings < object->base ||
	    (object->gnu_hash == NULL && old_hash == NULL))
		return false;
	object->soname = object->strings + soname; /* the first string is empty */
	object->symbols_end = object->gnu_hash != NULL ? gnu_hash_end(object->gnu_hash) : old_hash[1];
	return true;
}

bool sublet__object_is_own(const struct dl_phdr_info *info)
{
	return dynamic_of(info) == _DYNAMIC;
}

/* ---- looking up ---- */

bool sublet__object_exports(const struct sublet__object *object, uint32_t index)
{
	const ElfW(Sym) *symbol = &object->symbols[index];

	return symbol->st_shndx != SHN_UNDEF && symbol->st_shndx != SHN_ABS &&
	       ELF64_ST_TYPE(symbol->st_info) == STT_FUNC && ELF64_ST_BIND(symbol->st_info) != STB_LOCAL;
}

static bool is_named(const struct sublet__object *object, uint32_t index, const char *name)
{
	return sublet__object_exports(object, index) && strcmp(sublet__object_name(object, index), name) == 0;
}

static bool is_default(const struct sublet__object *object, uint32_t index)
{
	return object->versions == NULL || (object->versions[index] & VERSION_HIDDEN) == 0;
}

static uint32_t find_hashed(const struct sublet__object *object, const char *name)
{
	struct gnu_hash hash = gnu_hash(object->gnu_hash);
	uint32_t value = 5381, found = 0;

	for (const char *at = name; *at != '\0'; at++)
		value = value * 33 + (unsigned char)*at;
	for (uint32_t i = hash.buckets != 0 ? hash.bucket[value % hash.buckets] : 0;
	     i >= hash.first && i != 0; i++) {
		uint32_t entry = hash.chain[i - hash.first];

		if ((entry | 1) == (value | 1) && is_named(object, i, name)) {
			found = i;
			if (is_default(object, i))
				break;
		}
		if ((entry & 1) != 0)
			break;
	}
	return found;
}

uint32_t sublet__object_find(const struct sublet__object *object, const char *name)
{
	uint32_t found = 0;

	if (object->gnu_hash != NULL)
		return find_hashed(object, name);
	for (uint32_t i = 1; i < object->symbols_end; i++)
		if (is_named(object, i, name)) {
			found = i;
			if (is_default(object, i))
				break;
		}
	return found;
}

/* ---- behind this library ---- */

struct search {
	const char *name;
	bool is_behind;
	void *found;
};

static int search_one(struct dl_phdr_info *info, size_t bytes, void *argument)
{
	struct search *search = argument;
	struct sublet__object object;
	uint32_t index;

	(void)bytes;
	if (!search->is_behind) {
		search->is_behind = sublet__object_is_own(info);
		return 0;
	}
	if (!sublet__object_read(info, &object))
		return 0;
	index = sublet__object_find(&object, search->name);
	if (index != 0)
		search->found = (void *)sublet__object_address(&object, index);
	return index != 0;
}

void *sublet__symbols_behind(_Atomic(void *) *slot, const char *name)
{
	/* Relaxed: each thread finds the same value. */
	struct search search = { .name = name, .found = atomic_load_explicit(slot, memory_order_relaxed) };

	if (search.found == NULL) {
		(void)dl_iterate_phdr(search_one, &search);
		atomic_store_explicit(slot, search.found, memory_order_relaxed);
	}
	return search.found;
}
