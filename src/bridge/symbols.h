/* SPDX-License-Identifier: MIT */
/* bridge/symbols.h: the dynamic symbol tables of the loaded objects, as the dynamic loader reads them. */
#ifndef SUBLET_BRIDGE_SYMBOLS_H
#define SUBLET_BRIDGE_SYMBOLS_H

#include <link.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* One loaded object. All pointers lead into its memory, and stay valid while it is loaded. */
struct sublet__object {
	uintptr_t base;      /* what is added to the addresses in its tables */
	ElfW(Sym) * symbols; /* of which [1, symbols_end) are defined or undefined symbols */
	const char *strings;
	const ElfW(Half) * versions; /* NULL: its symbols have no versions */
	const uint32_t *gnu_hash;    /* NULL: it has the older kind of hash table only */
	const char *soname;          /* "": none */
	uint32_t symbols_end;
};

/*
 * Read the tables of an object that dl_iterate_phdr reports. False: it has none. The vDSO, whose dynamic section
 * the loader does not relocate, counts as such.
 */
bool sublet__object_read(const struct dl_phdr_info *info, struct sublet__object *object);

/* Whether it is this library. */
bool sublet__object_is_own(const struct dl_phdr_info *info);

/* Whether symbol `index` is a function that other objects can bind to. */
bool sublet__object_exports(const struct sublet__object *object, uint32_t index);

/*
 * The function that others find under this name in this object: of several versions the default one, and
 * where there is no default any. 0: none, or one that is only chosen at run time (an IFUNC).
 */
uint32_t sublet__object_find(const struct sublet__object *object, const char *name);

static inline const char *sublet__object_name(const struct sublet__object *object, uint32_t index)
{
	return object->strings + object->symbols[index].st_name;
}

static inline uintptr_t sublet__object_address(const struct sublet__object *object, uint32_t index)
{
	return object->base + object->symbols[index].st_value;
}

/*
 * The first definition in the objects that were loaded behind this library, as dlsym(RTLD_NEXT) would find it;
 * other than dlsym it may be called from within malloc. NULL: none. Remembered in *slot.
 */
void *sublet__symbols_behind(_Atomic(void *) *slot, const char *name);

/* The same, typed, for functions that are always there. */
#define SUBLET__BEHIND(name)                                              \
	(__extension__({                                                  \
		static _Atomic(void *) slot_;                             \
		(__typeof__(&name))sublet__symbols_behind(&slot_, #name); \
	}))

#endif
