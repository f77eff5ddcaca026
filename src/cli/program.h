/* SPDX-License-Identifier: MIT */
/* cli/program.h: what a program is, before it is started. */
#ifndef SUBLET_CLI_PROGRAM_H
#define SUBLET_CLI_PROGRAM_H

#include <elf.h>
#include <stdbool.h>

#define SUBLET__SHELL "/bin/sh"

struct sublet__program {
	char path[4096];       /* to execute */
	const char *why_plain; /* why the bridge cannot be preloaded into it; NULL: it can */
	bool is_text;          /* no ELF, no "#!", no zero byte: shells have SUBLET__SHELL run it, if the
				  kernel does not know it either */
};

/*
 * Find `name` as execvp does and look into its file, and into its interpreter if it is a script.
 * -ENOENT: there is none; -EACCES: it may not be executed; -errno. What cannot be read or made sense
 * of is taken for an ordinary program: the kernel judges.
 */
int sublet__program_find(const char *name, struct sublet__program *program);

/* sanitizer.c: why a program that a sanitizer was built into, or is preloaded before, is run plainly; NULL: none. */
const char *sublet__sanitizer_in(int fd, const Elf64_Ehdr *header);
const char *sublet__sanitizer_preloaded(void);

#endif
