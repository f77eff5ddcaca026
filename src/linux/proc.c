/* SPDX-License-Identifier: MIT */
/*
 * linux/proc.c: small facts from /proc and /sys.
 *
 * Everything here works on the caller's stack with bare system calls: these functions run inside
 * programs whose heap is the memory that is being lent, in atfork handlers and on threads that must
 * not wait for lent memory, so neither stdio nor malloc is at hand.
 *
 * Available memory is what a populate can take without the OOM killer: the kernel's own estimate
 * (MemAvailable), or what the control groups leave where that is less (cgroup.c); a limit that
 * cannot be found is no limit. Rejected: sysinfo(2), which counts page cache as
 * used, and trusting allocation errors, which shmem reports by killing somebody.
 */
#include "linux/proc.h"

#include "linux/cgroup.h"
#include "linux/helper.h"
#include "linux/linux.h"
#include "linux/raw.h"

#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#define KEPT_MAX 128u /* files; a control group has four for memory, in each of its ancestors */
#define FD_ROOM  64u  /* for an arena, its server, and as many children as usually live at a time */

void sublet__text_start(struct sublet__text *text, const char *s)
{
	text->bytes = 0;
	text->data[0] = 0;
	sublet__text_add(text, s);
}

void sublet__text_add(struct sublet__text *text, const char *s)
{
	while (*s && text->bytes + 1 < sizeof text->data)
		text->data[text->bytes++] = *s++;
	text->data[text->bytes] = 0;
}

void sublet__text_add_number(struct sublet__text *text, uint64_t value)
{
	char digits[21];
	size_t i = sizeof digits - 1;

	digits[i] = 0;
	do {
		digits[--i] = (char)('0' + value % 10);
		value /= 10;
	} while (value);
	sublet__text_add(text, digits + i);
}

/*
 * Files that the helper has read. It may open none once it is confined, so it keeps them. Written by its first task
 * alone, before the others start. A path is told by a hash of 64 bits.
 */
static struct {
	uint32_t count;
	struct {
		uint64_t path;
		int fd;
	} file[KEPT_MAX];
} kept;

static uint64_t path_hash(const char *path)
{
	uint64_t hash = 0xcbf29ce484222325u; /* FNV-1a */

	while (*path)
		hash = (hash ^ (unsigned char)*path++) * 0x100000001b3u;
	return hash;
}

/* A descriptor to read from its start; *keep: it stays open. */
static int open_for_read(int dir, const char *path, bool *keep)
{
	uint64_t hash = path_hash(path);

	*keep = false;
	for (uint32_t i = 0; sublet__helper_is_here() && i < kept.count; i++)
		if (kept.file[i].path == hash) {
			*keep = true;
			return kept.file[i].fd;
		}
	int fd = sublet__raw_open(dir, path, O_RDONLY);
	if (fd < 0 || !sublet__helper_is_here() || kept.count == KEPT_MAX)
		return fd;
	*keep = true;
	kept.file[kept.count].path = hash;
	kept.file[kept.count++].fd = fd;
	return fd;
}

int sublet__proc_read_at(int dir, const char *path, char *data, size_t size)
{
	size_t have = 0;
	bool keep;
	int fd = open_for_read(dir, path, &keep);
	long n = 1;

	if (fd < 0)
		return fd;
	while (have + 1 < size && n) {
		n = sublet__raw_pread(fd, data + have, size - 1 - have, have);
		if (n == -EINTR)
			continue;
		if (n < 0)
			break;
		have += (size_t)n;
	}
	data[have] = 0;
	if (!keep)
		sublet__raw_close(fd);
	return n < 0 ? (int)n : (int)have;
}

int sublet__proc_read(const char *path, char *data, size_t size)
{
	return sublet__proc_read_at(AT_FDCWD, path, data, size);
}

static const char *find_line(const char *text, const char *key)
{
	size_t bytes = strlen(key);

	while (*text) {
		if (!strncmp(text, key, bytes))
			return text + bytes;
		text = strchr(text, '\n');
		if (!text)
			return NULL;
		text++;
	}
	return NULL;
}

bool sublet__proc_number(const char *text, const char *key, uint64_t *value)
{
	uint64_t v = 0;

	if (key)
		text = find_line(text, key);
	if (!text)
		return false;
	while (*text == ' ' || *text == '\t' || *text == ':')
		text++;
	if (*text < '0' || *text > '9')
		return false;
	for (; *text >= '0' && *text <= '9'; text++)
		v = v > UINT64_MAX / 10 - 1 ? UINT64_MAX / 10 - 1 : v * 10 + (uint64_t)(*text - '0');
	*value = v;
	return true;
}

uint64_t sublet__proc_file_number(const char *path, uint64_t otherwise)
{
	char data[64];
	uint64_t value;

	if (sublet__proc_read(path, data, sizeof data) < 0 || !sublet__proc_number(data, NULL, &value))
		return otherwise;
	return value;
}

void sublet__lines_start(struct sublet__lines *lines, int fd)
{
	lines->fd = fd;
	lines->error = 0;
	lines->offset = 0;
	lines->at = 0;
	lines->have = 0;
}

int sublet__lines_open(struct sublet__lines *lines, int dir, const char *path)
{
	int fd = sublet__raw_open(dir, path, O_RDONLY);

	sublet__lines_start(lines, fd);
	return fd < 0 ? fd : 0;
}

const char *sublet__lines_next(struct sublet__lines *lines)
{
	size_t bytes = 0;

	for (;;) {
		if (lines->at == lines->have) {
			long n = sublet__raw_pread(lines->fd, lines->data, sizeof lines->data, lines->offset);
			if (n == -EINTR)
				continue;
			lines->error = n < 0 ? (int)n : 0;
			if (n <= 0)
				break;
			lines->at = 0;
			lines->have = (size_t)n;
			lines->offset += (size_t)n;
		}
		char c = lines->data[lines->at++];
		if (c == '\n') {
			lines->line[bytes] = 0;
			return lines->line;
		}
		if (bytes + 1 < sizeof lines->line)
			lines->line[bytes++] = c;
	}
	lines->line[bytes] = 0;
	return bytes ? lines->line : NULL;
}

void sublet__lines_close(struct sublet__lines *lines)
{
	sublet__raw_close(lines->fd);
}

/* ---- /proc/<pid>/maps ---- */

uint64_t sublet__parse(const char **text, unsigned int base)
{
	uint64_t v = 0;

	for (;; (*text)++) {
		char c = **text;
		unsigned int digit = c >= '0' && c <= '9'   ? (unsigned int)(c - '0')
				     : c >= 'a' && c <= 'f' ? (unsigned int)(c - 'a') + 10
							    : 99;
		if (digit >= base)
			return v;
		v = v * base + digit;
	}
}

bool sublet__map_line_parse(const char *line, struct sublet__map_line *map)
{
	map->start = sublet__parse(&line, 16);
	if (*line++ != '-')
		return false;
	map->end = sublet__parse(&line, 16);
	if (*line++ != ' ' || strlen(line) < 5)
		return false;
	map->prot = (line[0] == 'r' ? PROT_READ : 0) | (line[1] == 'w' ? PROT_WRITE : 0) |
		    (line[2] == 'x' ? PROT_EXEC : 0);
	map->is_private = line[3] == 'p';
	line += 5;
	map->offset = sublet__parse(&line, 16);
	if (*line++ != ' ')
		return false;
	map->major = sublet__parse(&line, 16);
	if (*line++ != ':')
		return false;
	map->minor = sublet__parse(&line, 16);
	if (*line++ != ' ')
		return false;
	map->ino = sublet__parse(&line, 10);
	return true;
}

/* ---- memory ---- */

uint64_t sublet__memory_left(struct sublet__text *by)
{
	char data[4096];
	uint64_t kib = UINT64_MAX >> 10;
	uint64_t left = sublet__cgroup_memory_left("", by);

	if (sublet__proc_read("/proc/meminfo", data, sizeof data) > 0)
		(void)sublet__proc_number(data, "MemAvailable", &kib);
	if (left < kib << 10)
		return left;
	if (by)
		sublet__text_start(by, "");
	return kib << 10;
}

uint64_t sublet__memory_available(void)
{
	return sublet__memory_left(NULL);
}

uint64_t sublet__max_map_count(void)
{
	return sublet__proc_file_number("/proc/sys/vm/max_map_count", 65530);
}

uint64_t sublet__addresses_left(void)
{
	uint64_t used_pages = sublet__proc_file_number("/proc/self/statm", 0);
	uint64_t used = used_pages * (uint64_t)sysconf(_SC_PAGESIZE);
	struct rlimit limit;

	if (getrlimit(RLIMIT_AS, &limit) || limit.rlim_cur == RLIM_INFINITY)
		return UINT64_MAX;
	return limit.rlim_cur > used ? limit.rlim_cur - used : 0;
}

uint64_t sublet__data_left(void)
{
	char data[4096];
	uint64_t kib = 0;
	struct rlimit limit;

	if (getrlimit(RLIMIT_DATA, &limit) || limit.rlim_cur == RLIM_INFINITY)
		return UINT64_MAX;
	if (sublet__proc_read("/proc/self/status", data, sizeof data) > 0)
		(void)sublet__proc_number(data, "VmData", &kib);
	return limit.rlim_cur > kib << 10 ? limit.rlim_cur - (kib << 10) : 0;
}

uint64_t sublet__hugetlb_free_pages(void)
{
	uint64_t free =
		sublet__proc_file_number("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", 0);
	uint64_t promised =
		sublet__proc_file_number("/sys/kernel/mm/hugepages/hugepages-2048kB/resv_hugepages", 0);

	return free > promised ? free - promised : 0;
}

uint32_t sublet__cpu_count(void)
{
	cpu_set_t set;

	if (sched_getaffinity(0, sizeof set, &set))
		return 1;
	return CPU_COUNT(&set) > 0 ? (uint32_t)CPU_COUNT(&set) : 1;
}

void sublet__complain(const char *what, int error)
{
	struct sublet__text text;

	sublet__text_start(&text, "sublet: ");
	sublet__text_add(&text, what);
	if (error) {
		sublet__text_add(&text, ": errno ");
		sublet__text_add_number(&text, (uint64_t)(error < 0 ? -error : error));
	}
	sublet__text_add(&text, "\n");
	(void)sublet__raw_write(STDERR_FILENO, text.data, text.bytes);
}

uint32_t sublet__linux_fd_least(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit))
		return 0;
	uint32_t end = limit.rlim_cur < SUBLET__FD_END ? (uint32_t)limit.rlim_cur : SUBLET__FD_END;
	return end >= 2 * FD_ROOM ? end - FD_ROOM : end / 2;
}

int sublet__linux_fd_high(int fd)
{
	if (fd < 0 || sublet__helper_is_here()) /* whose numbers nobody else uses */
		return fd;                      /* and errno still says why */
	int least = (int)sublet__linux_fd_least();
	int high = fd < least ? fcntl(fd, F_DUPFD_CLOEXEC, least) : -1;
	if (high < 0)
		return fd;
	close(fd);
	return high;
}
