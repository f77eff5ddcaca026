/* SPDX-License-Identifier: MIT */
/*
 * linux/uapi.h: parts of the kernel's interface that are newer than the headers of the oldest
 * distribution this builds on (Debian 12: Linux 6.1). The names are our own, so that newer headers
 * do not clash; the values are the kernel's and never change.
 */
#ifndef SUBLET_LINUX_UAPI_H
#define SUBLET_LINUX_UAPI_H

#include <stdint.h>
#include <sys/ioctl.h>

#include <linux/userfaultfd.h>

/* userfaultfd: features */
#define SUBLET__UFFD_MINOR_HUGETLB  (1ull << 9)
#define SUBLET__UFFD_MINOR_SHMEM    (1ull << 10)
#define SUBLET__UFFD_WP_SHMEM       (1ull << 12) /* write-protection of shmem and hugetlb: 5.19 */
#define SUBLET__UFFD_WP_UNPOPULATED (1ull << 13) /* ... of holes in anonymous memory: 6.4 */
#define SUBLET__UFFD_WP_ASYNC       (1ull << 15) /* the kernel itself lets the first write through: 6.7 */

/* /dev/userfaultfd: 6.1 */
#define SUBLET__UFFD_IOC_NEW _IO(0xAA, 0x00)

/* PAGEMAP_SCAN on /proc/self/pagemap: 6.7 */
struct sublet__page_region {
	uint64_t start;
	uint64_t end;
	uint64_t categories;
};

struct sublet__pm_scan {
	uint64_t size;
	uint64_t flags;
	uint64_t start;
	uint64_t end;
	uint64_t walk_end;
	uint64_t vec;
	uint64_t vec_len;
	uint64_t max_pages;
	uint64_t category_inverted;
	uint64_t category_mask;
	uint64_t category_anyof_mask;
	uint64_t return_mask;
};

#define SUBLET__PAGEMAP_SCAN    _IOWR('f', 16, struct sublet__pm_scan)
#define SUBLET__PAGE_IS_FILE    (1ull << 2)
#define SUBLET__PAGE_IS_PRESENT (1ull << 3)
#define SUBLET__PAGE_IS_SWAPPED (1ull << 4)

/* bits of an entry of /proc/self/pagemap */
#define SUBLET__PM_FILE    (1ull << 61)
#define SUBLET__PM_SWAP    (1ull << 62)
#define SUBLET__PM_PRESENT (1ull << 63)

/* madvise: 5.14, 5.14, 5.18 */
#define SUBLET__MADV_POPULATE_READ   22
#define SUBLET__MADV_POPULATE_WRITE  23
#define SUBLET__MADV_DONTNEED_LOCKED 24

/* memfd_create: no executable file, now or later, and seals are allowed: 6.3 */
#define SUBLET__MFD_NOEXEC_SEAL 8u
/* memfd_create: page size of a hugetlb file, as log2 in the top bits */
#define SUBLET__MFD_HUGE_2MB (21u << 26)

/* statfs */
#define SUBLET__TMPFS_MAGIC     0x01021994u
#define SUBLET__HUGETLBFS_MAGIC 0x958458f6u

#endif
