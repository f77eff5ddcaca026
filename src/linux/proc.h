/* SPDX-License-Identifier: MIT */
/* linux/proc.h: small facts from /proc and /sys, read without stdio and malloc. */
#ifndef SUBLET_LINUX_PROC_H
#define SUBLET_LINUX_PROC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SUBLET__PATH_BYTES 512

/* A text that is put together piece by piece; what does not fit is cut off. Always NUL-terminated. */
struct sublet__text {
	size_t bytes;
	char data[SUBLET__PATH_BYTES];
};

void sublet__text_start(struct sublet__text *text, const char *s);
void sublet__text_add(struct sublet__text *text, const char *s);
void sublet__text_add_number(struct sublet__text *text, uint64_t value);

/* Read the beginning of a file, NUL-terminated. Returns the bytes read or -errno. */
int sublet__proc_read(const char *path, char *data, size_t size);
int sublet__proc_read_at(int dir, const char *path, char *data, size_t size);
/* The number after the first `key` at the start of a line (key NULL: at the start of the text). */
bool sublet__proc_number(const char *text, const char *key, uint64_t *value);
/* A file that holds one number; `otherwise` where it cannot be read. */
uint64_t sublet__proc_file_number(const char *path, uint64_t otherwise);

/* A file line by line; of longer lines only the beginning is kept. */
struct sublet__lines {
	int fd;
	int error;       /* -errno of the read that ended it early; 0: the end of the file */
	uint64_t offset; /* of what is read next; the file's own position is not used */
	size_t at;
	size_t have;
	char line[256];
	char data[4096];
};

/* path: relative to the directory `dir` or AT_FDCWD. -errno */
int sublet__lines_open(struct sublet__lines *lines, int dir, const char *path);
/* A file that is open already: no sublet__lines_close. */
void sublet__lines_start(struct sublet__lines *lines, int fd);
/* The next line without its newline, valid until the next call; NULL at the end. */
const char *sublet__lines_next(struct sublet__lines *lines);
void sublet__lines_close(struct sublet__lines *lines);

/* A line of /proc/<pid>/maps: "start-end rw-p offset major:minor inode path". */
struct sublet__map_line {
	uint64_t start;
	uint64_t end;
	uint64_t offset;
	uint64_t major;
	uint64_t minor;
	uint64_t ino;
	int prot;
	bool is_private;
};

bool sublet__map_line_parse(const char *line, struct sublet__map_line *map);
/* The number at *text, which is moved behind it; 0 where there is none. */
uint64_t sublet__parse(const char **text, unsigned int base);

/* What could be allocated now: MemAvailable, or what the cgroup has left where that is less. */
uint64_t sublet__memory_available(void);
/* The same, and in *by the path of the file with that group's limit; empty where the machine decides. */
uint64_t sublet__memory_left(struct sublet__text *by);
uint64_t sublet__max_map_count(void);
/* What RLIMIT_AS leaves this process; UINT64_MAX: there is no limit. */
uint64_t sublet__addresses_left(void);
/* The same of RLIMIT_DATA: private memory that may be written, in use or not. */
uint64_t sublet__data_left(void);
uint64_t sublet__hugetlb_free_pages(void);
uint32_t sublet__cpu_count(void);

/* One line to standard error: "sublet: ..." and, where error is not 0, its number. */
void sublet__complain(const char *what, int error);

#endif
