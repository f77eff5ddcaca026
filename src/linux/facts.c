/* SPDX-License-Identifier: MIT */
/*
 * linux/facts.c: what this machine and user can do, and how fast its memory is.
 *
 * Facts are found by trying the very calls that an arena would make: version numbers lie on
 * distribution kernels, and permissions depend on sandboxes that no file describes.
 */
#include "linux/copy.h"
#include "linux/instance.h"
#include "linux/proc.h"
#include "linux/raw.h"
#include "linux/uffd.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <fcntl.h>
#include <linux/seccomp.h>

#define MEASUREMENTS 3
#define PAGE_BYTES   ((size_t)4096)

static bool scan_works(void)
{
	struct sublet__pm_scan scan = { .size = sizeof scan };
	int fd = sublet__raw_open(AT_FDCWD, "/proc/self/pagemap", O_RDONLY);

	if (fd < 0)
		return false;
	bool works = ioctl(fd, SUBLET__PAGEMAP_SCAN, &scan) >= 0;
	sublet__raw_close(fd);
	return works;
}

static void userfaultfd_facts(struct sublet__linux_facts *f)
{
	f->userfaultfd_error = sublet__uffd_probe(&f->userfaultfd_features, &f->userfaultfd_device);
	f->userfaultfd = !f->userfaultfd_error;
	f->feature_minor = f->userfaultfd_features & SUBLET__UFFD_MINOR_SHMEM;
	f->feature_minor_hugetlb = f->userfaultfd_features & SUBLET__UFFD_MINOR_HUGETLB;
	f->feature_writeprotect = f->userfaultfd_features & SUBLET__UFFD_WP_SHMEM;
	f->feature_wp_async = f->userfaultfd_features & SUBLET__UFFD_WP_ASYNC && scan_works();
}

static void huge_tmpfs_facts(struct sublet__linux_facts *f)
{
	int fd = sublet__huge_tmpfs_open(2 * SUBLET_MIB);

	f->huge_tmpfs = fd >= 0;
	f->huge_tmpfs_error = fd < 0 ? fd : 0;
	if (fd >= 0)
		sublet__raw_close(fd);
}

static bool can_filter(void)
{
	/* The kernel reads the filter first, wherever it knows filters: EFAULT, and nothing is set. */
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, NULL, 0, 0) && errno == EFAULT;
}

static void memory_facts(struct sublet__linux_facts *f)
{
	struct sublet__text by;

	f->memory_available_bytes = sublet__memory_left(&by);
	size_t bytes = by.bytes < sizeof f->memory_limit ? by.bytes : sizeof f->memory_limit - 1;
	memcpy(f->memory_limit, by.data, bytes);
	f->memory_limit[bytes] = 0;
}

/* What this process may lock; a privileged one more than its limit says, which only trying tells. */
static uint64_t lockable_bytes(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_MEMLOCK, &limit))
		return 0;
	size_t bytes = (limit.rlim_cur + 2 * PAGE_BYTES) & ~(size_t)(PAGE_BYTES - 1);
	if (limit.rlim_cur == RLIM_INFINITY || bytes < limit.rlim_cur)
		return UINT64_MAX;
	/* Addresses alone, and on fault: nothing becomes resident. */
	void *probe =
		sublet__raw_mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (probe == MAP_FAILED)
		return limit.rlim_cur;
	bool may = !syscall(SYS_mlock2, probe, bytes, MLOCK_ONFAULT);
	sublet__raw_munmap(probe, bytes);
	return may ? UINT64_MAX : limit.rlim_cur;
}

void sublet__linux_facts_get(struct sublet__linux_facts *facts)
{
	struct utsname name;
	int cancel_state;

	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state);
	memset(facts, 0, sizeof *facts);
	if (!uname(&name)) {
		memcpy(facts->kernel_release, name.release, sizeof facts->kernel_release - 1);
		facts->kernel_release[sizeof facts->kernel_release - 1] = 0;
	}
	userfaultfd_facts(facts);
	huge_tmpfs_facts(facts);
	facts->hugetlb_free_pages = sublet__hugetlb_free_pages();
	memory_facts(facts);
	facts->memlock_bytes = lockable_bytes();
	facts->max_map_count = sublet__max_map_count();
	facts->seccomp_filter = can_filter();
	facts->cpus = sublet__cpu_count();
	pthread_setcancelstate(cancel_state, NULL);
}

/* ---- the memcpy that claims are compared with ---- */

static uint64_t median3(const uint64_t v[MEASUREMENTS])
{
	uint64_t low = v[0] < v[1] ? v[0] : v[1], high = v[0] < v[1] ? v[1] : v[0];

	return v[2] < low ? low : v[2] > high ? high : v[2];
}

static enum sublet_backing kind_of(const struct sublet__backing *b)
{
	if (b->kind != SUBLET_BACKING_FD)
		return b->kind;
	return b->is_hugetlb ? SUBLET_BACKING_HUGETLB : SUBLET_BACKING_MEMFD;
}

int sublet__linux_memcpy_ns(struct sublet_arena *arena, uint64_t bytes, uint64_t *elapsed_ns)
{
	const struct sublet__instance *in = sublet__instance_of(arena);
	const struct sublet_arena_options options = { SUBLET_OPTIONS(sublet_arena_options),
						      .backing = kind_of(&in->backing) };
	uint64_t each = (bytes + 2 * SUBLET_MIB - 1) & ~(2 * SUBLET_MIB - 1), elapsed[MEASUREMENTS];
	struct sublet__backing b;
	int cancel_state;

	if (!bytes || bytes > in->area_bytes + in->normal_bytes)
		return -EINVAL;
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state);
	int err = sublet__backing_open(&b, &options, 2 * each);
	if (err)
		goto out;
	memset(b.linear, 1, bytes);
	for (int i = 0; i < MEASUREMENTS; i++) {
		sublet__cache_flush(b.linear, b.bytes);
		uint64_t start = sublet__now_ns();
		memcpy(b.linear + each, b.linear, bytes);
		elapsed[i] = sublet__now_ns() - start;
		/* The copy is read, so that it is made. */
		__asm__ volatile("" : : "r"(b.linear) : "memory");
	}
	sublet__backing_close(&b);
	*elapsed_ns = median3(elapsed);
out:
	pthread_setcancelstate(cancel_state, NULL);
	return err;
}
