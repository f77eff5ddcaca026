/* SPDX-License-Identifier: MIT */
/*
 * Which sanitizer a program was built with.
 *
 * AddressSanitizer and its relatives have a malloc of their own, know every byte of it, and expect to be the first
 * library of the process: with others preloaded before them they refuse to start, or crash. UBSan has none of that,
 * and is no obstacle.
 *
 * The names in the dynamic string table tell: a program whose runtime is a library asks for that library, or for
 * the runtime's first function; one that has the runtime inside (clang's way) offers that function to
 * libraries. The table is found by way of the segments, as the loader finds it, since sections may be stripped.
 */
#include "cli/program.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SEGMENTS_MAX    128  /* a real program has about a dozen */
#define DYNAMIC_MAX     1024 /* entries; a real program has about forty */
#define NAMES_BYTES_MAX ((uint64_t)64 << 20)

static const struct sanitizer {
	const char *init;    /* the runtime's first function */
	const char *library; /* how its library's name begins: gcc's, clang's */
	const char *clang_library;
	const char *why;
} sanitizers[] = {
#define SANITIZER(name, title)                                                         \
	{                                                                              \
		"__" name "_init", "lib" name ".so", "libclang_rt." name "-",          \
			"it is instrumented by " title ", which has a heap of its own" \
	}
	SANITIZER("asan", "AddressSanitizer"),     SANITIZER("tsan", "ThreadSanitizer"),
	SANITIZER("msan", "MemorySanitizer"),      SANITIZER("lsan", "LeakSanitizer"),
	SANITIZER("hwasan", "HWAddressSanitizer"), SANITIZER("memprof", "MemProf"),
#undef SANITIZER
};

#define SANITIZER_COUNT (sizeof(sanitizers) / sizeof(sanitizers[0]))

static bool begins(const char *text, const char *start)
{
	return strncmp(text, start, strlen(start)) == 0;
}

static const struct sanitizer *find(const char *name)
{
	for (const struct sanitizer *s = sanitizers; s < sanitizers + SANITIZER_COUNT; s++)
		if (strcmp(name, s->init) == 0 || begins(name, s->library) || begins(name, s->clang_library))
			return s;
	return NULL;
}

/* ---- the dynamic string table ---- */

static bool read_at(int fd, void *data, size_t bytes, uint64_t offset)
{
	return offset <= INT64_MAX && pread(fd, data, bytes, (off_t)offset) == (ssize_t)bytes;
}

static bool segment_at(int fd, const Elf64_Ehdr *header, unsigned int i, Elf64_Phdr *segment)
{
	return i < header->e_phnum && i < SEGMENTS_MAX &&
	       read_at(fd, segment, sizeof(*segment), header->e_phoff + (uint64_t)i * header->e_phentsize);
}

/* Where in the file an address of the program is. */
static bool offset_of(int fd, const Elf64_Ehdr *header, uint64_t address, uint64_t *offset)
{
	Elf64_Phdr s;

	for (unsigned int i = 0; segment_at(fd, header, i, &s); i++)
		if (s.p_type == PT_LOAD && address >= s.p_vaddr && address - s.p_vaddr < s.p_filesz) {
			*offset = s.p_offset + (address - s.p_vaddr);
			return true;
		}
	return false;
}

/* The table's address and length, out of the dynamic section. */
static bool find_names(int fd, const Elf64_Phdr *dynamic, uint64_t *address, uint64_t *bytes)
{
	Elf64_Dyn entry;

	*address = *bytes = 0;
	for (uint64_t i = 0; i < DYNAMIC_MAX && (i + 1) * sizeof(entry) <= dynamic->p_filesz; i++) {
		if (!read_at(fd, &entry, sizeof(entry), dynamic->p_offset + i * sizeof(entry)) ||
		    entry.d_tag == DT_NULL)
			break;
		if (entry.d_tag == DT_STRTAB)
			*address = entry.d_un.d_ptr;
		if (entry.d_tag == DT_STRSZ)
			*bytes = entry.d_un.d_val;
	}
	return *address != 0 && *bytes != 0 && *bytes <= NAMES_BYTES_MAX;
}

/* The table, with a zero behind it; NULL: there is none that makes sense. The caller frees it. */
static char *read_names(int fd, const Elf64_Ehdr *header, uint64_t *bytes)
{
	uint64_t address, offset;
	Elf64_Phdr segment;
	char *names;

	for (unsigned int i = 0; segment_at(fd, header, i, &segment); i++) {
		if (segment.p_type != PT_DYNAMIC)
			continue;
		if (!find_names(fd, &segment, &address, bytes) || !offset_of(fd, header, address, &offset))
			return NULL;
		names = calloc(1, *bytes + 1);
		if (names != NULL && !read_at(fd, names, *bytes, offset)) {
			free(names);
			names = NULL;
		}
		return names;
	}
	return NULL;
}

const char *sublet__sanitizer_in(int fd, const Elf64_Ehdr *header)
{
	const struct sanitizer *found = NULL;
	uint64_t bytes = 0;
	char *names = read_names(fd, header, &bytes);

	for (uint64_t at = 0; names != NULL && found == NULL && at < bytes; at += strlen(names + at) + 1)
		found = find(names + at);
	free(names);
	return found ? found->why : NULL;
}

/* ---- LD_PRELOAD ---- */

const char *sublet__sanitizer_preloaded(void)
{
	const char *at = getenv("LD_PRELOAD");

	while (at != NULL && *at != '\0') {
		size_t length = strcspn(at, ": ");
		const char *name = at + length;

		while (name > at && name[-1] != '/')
			name--;
		for (const struct sanitizer *s = sanitizers; s < sanitizers + SANITIZER_COUNT; s++)
			if (begins(name, s->library) || begins(name, s->clang_library))
				return s->why;
		at += length;
		at += *at != '\0';
	}
	return NULL;
}
