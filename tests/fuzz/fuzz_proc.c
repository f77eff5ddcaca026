/* SPDX-License-Identifier: MIT */
/*
 * What the kernel says in /proc: lines of maps, numbers of status, meminfo and smaps, cgroup paths. A namespace, a FUSE
 * file system or a program that mounts something there may say anything.
 */
#include "fuzz.h"

#include "linux/cgroup.c"
#include "linux/proc.c"

/* The whole file as lines: as many bytes come out as are in it, but for what is longer than a line may be. */
static void lines(const uint8_t *data, size_t size)
{
	static int fd = -1;
	struct sublet__lines in;
	struct sublet__map_line map;
	const char *line;
	size_t count = 0, wanted = 0;
	uint64_t value;

	if (fd < 0)
		fd = (int)syscall(SYS_memfd_create, "fuzz", 0);
	require(fd >= 0 && !ftruncate(fd, 0) && pwrite(fd, data, size, 0) == (ssize_t)size);
	sublet__lines_start(&in, fd);
	while ((line = sublet__lines_next(&in))) {
		require(strlen(line) < sizeof in.line);
		count++;
		if (sublet__map_line_parse(line, &map))
			require(!(map.prot & ~(PROT_READ | PROT_WRITE | PROT_EXEC)));
		(void)sublet__proc_number(line, "ShmemPmdMapped", &value);
	}
	for (size_t i = 0; i < size; i++)
		wanted += data[i] == '\n';
	require(count >= wanted);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *text = fuzz_text(data, size);
	uint64_t value;
	bool is_v2;

	if (size < 1u << 16)
		lines(data, size);
	(void)sublet__proc_number(text, NULL, &value);
	(void)sublet__proc_number(text, "MemAvailable", &value);
	for (char *line = text, *next; line && *line; line = next) {
		next = strchr(line, '\n');
		if (next)
			*next++ = 0;
		const char *path = line_path(line, "memory", &is_v2);
		require(!path || (path >= line && path <= line + strlen(path) + size));
	}
	free(text);
	return 0;
}
