/* SPDX-License-Identifier: MIT */
/*
 * Which programs the bridge can be preloaded into.
 *
 * LD_PRELOAD is the dynamic loader's: a program without one, or with another libc's, knows nothing
 * of it, and a program that gains privileges by being executed must ignore it. A program that a
 * sanitizer instrumented has the sanitizer's heap, which must come first in the process and dies of
 * another. All of this is written in the file, so that `sublet run` can say so in one line before it
 * starts the program, instead of leaving the user to wonder why nothing was lent. What the names in a
 * file do not tell is seen by the bridge (valgrind), or not at all: a sanitizer in a library, or in a
 * program that PROGRAM executes.
 */
#include "cli/program.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#if defined(__x86_64__)
#define OUR_MACHINE EM_X86_64
#elif defined(__aarch64__)
#define OUR_MACHINE EM_AARCH64
#elif defined(__riscv)
#define OUR_MACHINE EM_RISCV
#else
#define OUR_MACHINE EM_NONE
#endif

#define SCRIPT_DEPTH_MAX 5   /* the kernel's own limit of interpreters of interpreters */
#define SEGMENTS_MAX     128 /* a real program has about a dozen */
#define HEAD_BYTES       256 /* what the kernel reads of a script's first line */

/* ---- finding it ---- */

static int executable(const char *path)
{
	struct stat st;

	if (stat(path, &st) != 0)
		return -errno;
	if (S_ISDIR(st.st_mode))
		return -EACCES;
	return access(path, X_OK) == 0 ? 0 : -errno;
}

static int find_path(const char *name, char *path, size_t bytes)
{
	const char *at = getenv("PATH");
	int err, worst = -ENOENT;

	if (*name == '\0')
		return -ENOENT;
	if (strchr(name, '/') != NULL) {
		if ((size_t)snprintf(path, bytes, "%s", name) >= bytes)
			return -ENAMETOOLONG;
		return executable(path);
	}
	if (at == NULL)
		at = "/bin:/usr/bin";
	for (;; at++) {
		size_t length = strcspn(at, ":");

		/* An empty entry is the current directory. */
		if ((size_t)snprintf(path, bytes, "%.*s%s%s", (int)length, at, length ? "/" : "./", name) <
		    bytes) {
			err = executable(path);
			if (err == 0)
				return 0;
			if (err == -EACCES)
				worst = err;
		}
		at += length;
		if (*at == '\0')
			return worst;
	}
}

/* ---- looking into it ---- */

static const char *look_at_loader(int fd, uint64_t offset, uint64_t bytes)
{
	char loader[256] = "";
	const char *slash;

	if (bytes >= sizeof(loader) || pread(fd, loader, bytes, (off_t)offset) != (ssize_t)bytes)
		return NULL;
	slash = strrchr(loader, '/');
	if (strncmp(slash ? slash + 1 : loader, "ld-musl", 7) == 0)
		return "it uses musl libc, and the bridge is built for glibc";
	return NULL;
}

static const char *look_at_elf(int fd, const Elf64_Ehdr *header)
{
	Elf64_Phdr segment;

	if (header->e_ident[EI_CLASS] != ELFCLASS64 || header->e_machine != OUR_MACHINE)
		return "it is made for another machine or word size than sublet";
	for (unsigned int i = 0; i < header->e_phnum && i < SEGMENTS_MAX; i++) {
		off_t at = (off_t)(header->e_phoff + (uint64_t)i * header->e_phentsize);

		if (pread(fd, &segment, sizeof(segment), at) != (ssize_t)sizeof(segment))
			return NULL;
		if (segment.p_type == PT_INTERP)
			return look_at_loader(fd, segment.p_offset, segment.p_filesz);
	}
	return "it is statically linked, and nothing can be preloaded into it";
}

/* Does executing it raise privileges? The loader ignores LD_PRELOAD then. */
static const char *look_at_privilege(int fd)
{
	struct stat st;

	if (fstat(fd, &st) != 0)
		return NULL;
	if (((st.st_mode & S_ISUID) != 0 && st.st_uid != getuid()) ||
	    ((st.st_mode & S_ISGID) != 0 && (st.st_mode & S_IXGRP) != 0 && st.st_gid != getgid()))
		return "it is setuid or setgid, and nothing can be preloaded into it";
	if (getuid() != 0 && fgetxattr(fd, "security.capability", NULL, 0) > 0)
		return "its file has capabilities, and nothing can be preloaded into it";
	return NULL;
}

/* The program that a script's first line names: "#!/usr/bin/env python3" is env. */
static bool script_interpreter(const char *head, char *path, size_t bytes)
{
	const char *start = head + 2 + strspn(head + 2, " \t");
	size_t length = strcspn(start, " \t\n");

	if (length == 0 || length >= bytes)
		return false;
	memcpy(path, start, length);
	path[length] = '\0';
	return true;
}

/* Of a program's own file: may the bridge come into it? */
static const char *look_at_program(int fd, const Elf64_Ehdr *header, bool is_elf)
{
	const char *why = is_elf ? look_at_elf(fd, header) : NULL;

	if (why == NULL)
		why = look_at_privilege(fd);
	if (why == NULL && is_elf)
		why = sublet__sanitizer_in(fd, header);
	return why;
}

/* The same for all that is executed in its place: a script's interpreter, and so on. *is_text as in the struct. */
static const char *look_into(const char *program, bool *is_text)
{
	char path[HEAD_BYTES + 1] = ""; /* SUBLET__SHELL fits too */
	const char *at = program;

	for (int depth = 0; depth <= SCRIPT_DEPTH_MAX; depth++) {
		union {
			Elf64_Ehdr elf;
			char text[HEAD_BYTES + 1];
		} head = { .text = "" };
		int fd = open(at, O_RDONLY | O_CLOEXEC);
		ssize_t bytes = fd < 0 ? -1 : read(fd, head.text, HEAD_BYTES);
		bool is_elf = bytes >= SELFMAG && memcmp(head.text, ELFMAG, SELFMAG) == 0;
		bool is_script = bytes >= 4 && memcmp(head.text, "#!", 2) == 0;
		const char *why = NULL;

		/* the kernel ignores a script's own bits, and so does a shell */
		*is_text |= depth == 0 && bytes >= 0 && !is_script &&
			    memchr(head.text, 0, (size_t)bytes) == NULL;
		if (bytes >= 4 && !is_script && !(depth == 0 && *is_text))
			why = look_at_program(fd, &head.elf, is_elf);
		if (fd >= 0)
			(void)close(fd);
		if (depth == 0 && *is_text)
			memcpy(path, SUBLET__SHELL, sizeof(SUBLET__SHELL));
		else if (!is_script || !script_interpreter(head.text, path, sizeof(path)))
			return why; /* fd < 0: may be executable and not readable */
		at = path;
	}
	return NULL;
}

int sublet__program_find(const char *name, struct sublet__program *program)
{
	int err = find_path(name, program->path, sizeof(program->path));

	program->is_text = false;
	program->why_plain = err == 0 ? look_into(program->path, &program->is_text) : NULL;
	if (err == 0 && program->why_plain == NULL)
		program->why_plain = sublet__sanitizer_preloaded();
	return err;
}
