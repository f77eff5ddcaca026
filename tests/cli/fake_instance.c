/* SPDX-License-Identifier: MIT */
/*
 * An instance that only pretends, for tests of the command: fake_instance NAME [ENTRIES] serves until
 * it is killed, with so many pins and buffer objects. "ready" on stdout says that it listens.
 */
#include "../control/fake_engine.h"

#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
	static struct sublet_arena arena;
	int err;

	if (argc < 2 || argc > 3)
		return 2;
	fake_create(&arena);
	if (argc == 3)
		arena.pins = arena.bos = (uint32_t)atoi(argv[2]);
	err = sublet_arena_serve(&arena, argv[1]);
	if (err) {
		fprintf(stderr, "fake_instance: %s\n", strerror(-err));
		return 1;
	}
	puts("ready");
	fflush(stdout);
	for (;;)
		pause();
}
