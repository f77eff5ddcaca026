/* SPDX-License-Identifier: MIT */
/* linux/backing.h: what frames are made of, and the linear map over all of them. */
#ifndef SUBLET_LINUX_BACKING_H
#define SUBLET_LINUX_BACKING_H

#include <sublet/arena.h>

#include <sys/types.h>

struct sublet__backing {
	enum sublet_backing kind; /* never AUTO */
	int fd;
	uint64_t fd_offset; /* of pfn 0 in fd */
	uint64_t bytes;     /* a multiple of 2 MiB */
	uint8_t *linear;    /* address of pfn 0 */
	uint32_t frame_shift;
	bool is_hugetlb;
	bool is_huge; /* base frames, but mapped by huge entries wherever possible */
	bool owns_fd;
	bool owns_linear;
	bool zeroed; /* every frame is known to be zero */
	dev_t dev;   /* of fd, as /proc/<pid>/maps shows it */
	ino_t ino;
};

/*
 * Create (or take over) and populate. Only backing, fd, fd_offset_bytes and linear of options are
 * read; bytes is the sum of the zones. On error nothing is left behind:
 * -EINVAL, -EOPNOTSUPP, -ENOMEM, -EFBIG as sublet_arena_create.
 */
int sublet__backing_open(struct sublet__backing *backing, const struct sublet_arena_options *options,
			 uint64_t bytes);
void sublet__backing_close(struct sublet__backing *backing);

/* A file of one kind, of that size; AUTO is none. Descriptor or -errno. */
int sublet__backing_file(enum sublet_backing kind, uint64_t bytes);
/* A file on a private tmpfs with huge pages, of no size yet: descriptor or -errno. */
int sublet__huge_tmpfs_open(uint64_t bytes);

/* Reserve `bytes` of addresses, inaccessible, aligned to 2 MiB; NULL when there are none. */
void *sublet__addresses_reserve(uint64_t bytes);

#endif
