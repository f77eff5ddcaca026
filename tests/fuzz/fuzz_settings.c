/* SPDX-License-Identifier: MIT */
/*
 * What `sublet run` tells the bridge by way of the environment: any environment at all, one variable a line.
 */
#include "fuzz.h"

#include "bridge/settings.h"

#include <unistd.h>

#define VARIABLES_MAX 64u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *text = fuzz_text(data, size), *line[VARIABLES_MAX + 1], **real = environ;
	struct sublet__settings settings = { .preload_bytes = size / 2 };
	uint32_t count = 0;

	/* Each a block of its own: what runs out of one is seen. */
	for (char *at = strtok(text, "\n"); at && count < VARIABLES_MAX; at = strtok(NULL, "\n"))
		line[count++] = strdup(at);
	char *owned[VARIABLES_MAX];
	memcpy(owned, line, count * sizeof *line);
	line[count] = NULL;
	environ = line;
	if (!sublet__settings_read(&settings))
		require(settings.backing <= SUBLET_BACKING_MEMFD &&
			memchr(settings.name, 0, sizeof settings.name));
	(void)sublet__settings_preloads(SUBLET__BRIDGE_FILE);
	sublet__settings_forget(&settings);
	for (char **at = environ; *at; at++)
		require(memchr(*at, '=', strlen(*at) + 1) || **at != '=');
	environ = real;
	while (count)
		free(owned[--count]);
	free(text);
	return 0;
}
