/* SPDX-License-Identifier: MIT */
/*
 * An instance that only pretends, for tests of the command: fake_instance NAME serves until it is
 * killed. "ready" on stdout says that it listens.
 */
#include "../control/fake_engine.h"

#include <stdio.h>

int main(int argc, char **argv)
{
	static struct sublet_arena arena;
	int err;

	if (argc != 2)
		return 2;
	fake_create(&arena);
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
