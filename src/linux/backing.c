/* SPDX-License-Identifier: MIT */
/*
 * linux/backing.c: the memory itself.
 *
 * Four kinds, told apart by what one page-table entry of a program can cover, which decides what a
 * move costs: hugetlb (2 MiB frames), tmpfs with huge pages (4 KiB frames that are usually mapped 512
 * at a time), memfd (4 KiB), and a caller's descriptor, which is one of the three.
 *
 * Huge tmpfs pages do not depend on the system's shmem policy when the file lies on a mount with
 * huge=always, and such a mount needs no directory: fsopen, fsmount, O_TMPFILE, close; the mount
 * lives as long as the file. Mounting needs CAP_SYS_ADMIN, which any user has in a user namespace of
 * his own: a child is cloned into one. It shares our memory and our descriptors (CLONE_VM, _VFORK,
 * _FILES), so the descriptor it opens is simply ours and no page table is copied. Rejected: fork()
 * and SCM_RIGHTS, which runs the program's atfork handlers and copies what is lent.
 *
 * All memory is populated here and never again: a claim must not meet an allocation. What the
 * machine cannot give is refused before anything is allocated, because shmem reports a shortage by
 * the OOM killer. hugetlb is the exception: its mmap reserves or fails.
 */
#include "linux/backing.h"

#include "linux/linux.h"
#include "linux/memcheck.h"
#include "linux/proc.h"
#include "linux/uapi.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#define HUGE_BYTES (2 * SUBLET_MIB)
#define HUGE_SHIFT 21u
#define BASE_SHIFT 12u

void *sublet__addresses_reserve(uint64_t bytes)
{
	uint64_t all = bytes + HUGE_BYTES;

	if (all < bytes)
		return NULL;
	char *p = mmap(NULL, all, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		return NULL;
	size_t head = (size_t)(-(uintptr_t)p & (HUGE_BYTES - 1));
	if (head)
		munmap(p, head);
	munmap(p + head + bytes, HUGE_BYTES - head);
	/* A debugger that writes a core writes all of what it may read, and takes this for readable. */
	(void)madvise(p + head, bytes, MADV_DONTDUMP);
	return p + head;
}

/* ---- a private tmpfs with huge pages ---- */

#ifndef SYS_fsopen
#error "sublet needs the system call fsopen (Linux 5.2)"
#endif

/* The kernel's numbers; glibc has names for them only from 2.36 on. */
enum { FS_CLOEXEC = 1, FS_SET_STRING = 1, FS_CREATE = 6 };

static int set_string(int fs, const char *key, const char *value)
{
	return (int)syscall(SYS_fsconfig, fs, FS_SET_STRING, key, value, 0);
}

/* Mount, open, let the mount go. Only system calls: also runs in a cloned child. */
static int mount_and_open(const char *size)
{
	int fd = -1, mount = -1;
	int fs = (int)syscall(SYS_fsopen, "tmpfs", FS_CLOEXEC);

	if (fs < 0)
		return -errno;
	if (!set_string(fs, "huge", "always") && !set_string(fs, "mode", "0700") &&
	    !set_string(fs, "size", size) && !syscall(SYS_fsconfig, fs, FS_CREATE, NULL, NULL, 0))
		mount = (int)syscall(SYS_fsmount, fs, FS_CLOEXEC, MS_NOSUID | MS_NODEV);
	int err = -errno;
	if (mount >= 0) {
		fd = openat(mount, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
		err = -errno;
		close(mount);
	}
	close(fs);
	return fd >= 0 ? fd : err;
}

struct namespace_child {
	const char *size;
	struct sublet__text uid_map;
	struct sublet__text gid_map;
	int result;
};

static int write_file(const char *path, const char *data, size_t bytes)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	ssize_t n = write(fd, data, bytes);
	int err = n == (ssize_t)bytes ? 0 : -errno;
	close(fd);
	return err;
}

static int in_namespace(void *arg)
{
	struct namespace_child *child = arg;

	/* Without an identity in the namespace no file can be made; setgroups stands before the group map. */
	(void)write_file("/proc/self/setgroups", "deny", 4);
	int err = write_file("/proc/self/uid_map", child->uid_map.data, child->uid_map.bytes);
	if (!err)
		err = write_file("/proc/self/gid_map", child->gid_map.data, child->gid_map.bytes);
	child->result = err ? err : mount_and_open(child->size);
	_exit(0);
}

static void identity_map(struct sublet__text *text, uint64_t id)
{
	sublet__text_start(text, "");
	sublet__text_add_number(text, id);
	sublet__text_add(text, " ");
	sublet__text_add_number(text, id);
	sublet__text_add(text, " 1");
}

static int open_in_namespace(const char *size)
{
	/* No exit signal: a program's SIGCHLD handler and wait() must not see this child. */
	int flags = CLONE_VM | CLONE_VFORK | CLONE_FILES | CLONE_NEWUSER | CLONE_NEWNS;
	size_t stack_bytes = 64 << 10;
	struct namespace_child child = { .size = size, .result = -EPERM };

	char *stack = mmap(NULL, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (stack == MAP_FAILED)
		return -ENOMEM;
	identity_map(&child.uid_map, geteuid());
	identity_map(&child.gid_map, getegid());
	int pid = clone(in_namespace, stack + stack_bytes, flags, &child);
	int err = pid < 0 ? -errno : 0;
	while (pid > 0 && waitpid(pid, NULL, __WALL) < 0 && errno == EINTR)
		;
	munmap(stack, stack_bytes);
	return err ? err : child.result;
}

int sublet__huge_tmpfs_open(uint64_t bytes)
{
	struct sublet__text size;

	sublet__text_start(&size, "");
	sublet__text_add_number(&size, bytes);
	int fd = mount_and_open(size.data);
	if (fd == -EPERM || fd == -EACCES)
		fd = open_in_namespace(size.data);
	return fd;
}

/* ---- the linear map ---- */

static int populate(struct sublet__backing *b)
{
	while (madvise(b->linear, b->bytes, SUBLET__MADV_POPULATE_WRITE))
		if (errno != EINTR && errno != EAGAIN)
			return errno == EINVAL ? -EOPNOTSUPP : -ENOMEM;
	return 0;
}

/* Whether it is the caller's mapping that does not do: it may not be written, or there is none at those addresses. */
static bool is_no_memory(const struct sublet__backing *b, int err)
{
	return err == -EOPNOTSUPP || (madvise(b->linear, b->bytes, MADV_NORMAL) && errno == ENOMEM);
}

static int map_linear(struct sublet__backing *b, void *given)
{
	int err;

	if (given) {
		b->linear = given;
	} else {
		b->linear = sublet__addresses_reserve(b->bytes);
		if (!b->linear)
			return -ENOMEM;
		b->owns_linear = true;
		if (mmap(b->linear, b->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, b->fd,
			 (off_t)b->fd_offset) == MAP_FAILED)
			return errno == EPERM || errno == EACCES ? -EINVAL : -ENOMEM;
	}
	err = populate(b);
	if (err)
		return given && is_no_memory(b, err) ? -EINVAL : err;
	/* A child would keep the frames, and see every later owner's bytes; a core dump would hold it all. */
	if (madvise(b->linear, b->bytes, MADV_DONTFORK) || madvise(b->linear, b->bytes, MADV_DONTDUMP))
		return -ENOMEM;
	return 0;
}

/* Whether at least seven eighths of the linear map are mapped by huge entries, as /proc/self/smaps has it. */
static bool maps_huge(const struct sublet__backing *b)
{
	struct sublet__lines lines;
	char digits[18];
	size_t i = sizeof digits - 1;
	uint64_t kib = 0;
	bool found = false;
	const char *line;

	digits[i] = 0;
	digits[--i] = '-';
	for (uintptr_t a = (uintptr_t)b->linear; a; a >>= 4)
		digits[--i] = "0123456789abcdef"[a & 15];
	if (sublet__lines_open(&lines, AT_FDCWD, "/proc/self/smaps"))
		return false;
	while ((line = sublet__lines_next(&lines))) {
		found = found || !strncmp(line, digits + i, sizeof digits - 1 - i);
		if (found && sublet__proc_number(line, "ShmemPmdMapped", &kib))
			break;
	}
	sublet__lines_close(&lines);
	return kib << 10 >= b->bytes / 8 * 7;
}

/* ---- the kinds ---- */

static int open_memfd(unsigned int flags)
{
	int fd = memfd_create("sublet", flags | SUBLET__MFD_NOEXEC_SEAL);

	if (fd < 0 && errno == EINVAL)
		fd = memfd_create("sublet", flags | MFD_ALLOW_SEALING);
	return fd;
}

/*
 * Drivers are given the descriptor. None shall shrink the file, which would kill the program, nor seal it against the
 * mappings of the next move. Growing it harms nobody.
 */
static int seal(int fd)
{
	return fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_SEAL) ? -errno : 0;
}

/* Not every refusal means that the kernel has no such memory: there may be no descriptor left, or no memory. */
static int no_file(enum sublet_backing kind, int err)
{
	if (err == -EMFILE || err == -ENFILE || err == -ENOMEM)
		return err;
	return kind == SUBLET_BACKING_THP || err == -EINVAL || err == -ENOENT ? -EOPNOTSUPP : err;
}

static int open_file(enum sublet_backing kind, uint64_t bytes)
{
	unsigned int flags = MFD_CLOEXEC;
	struct rlimit limit;
	int fd;

	/* Beyond it ftruncate kills the program by SIGXFSZ. */
	if (!getrlimit(RLIMIT_FSIZE, &limit) && bytes > limit.rlim_cur)
		return -EFBIG;
	if (kind == SUBLET_BACKING_HUGETLB)
		flags |= MFD_HUGETLB | SUBLET__MFD_HUGE_2MB;
	if (kind == SUBLET_BACKING_THP)
		fd = sublet__huge_tmpfs_open(bytes);
	else
		fd = open_memfd(flags);
	if (fd < 0)
		return no_file(kind, kind == SUBLET_BACKING_THP ? fd : -errno);
	if (ftruncate(fd, (off_t)bytes)) {
		int err = errno == EINVAL ? -EOPNOTSUPP : -ENOMEM;
		close(fd);
		return err;
	}
	int err = kind == SUBLET_BACKING_THP ? 0 : seal(fd);
	if (err) {
		close(fd);
		return err;
	}
	return sublet__linux_fd_high(fd);
}

static int note_identity(struct sublet__backing *b)
{
	struct stat st;

	if (fstat(b->fd, &st))
		return -errno;
	b->dev = st.st_dev;
	b->ino = st.st_ino;
	return 0;
}

static int open_own(struct sublet__backing *b, enum sublet_backing kind, uint64_t bytes)
{
	bool hugetlb = kind == SUBLET_BACKING_HUGETLB;
	/* Page tables and the engine's own structures want a little too. */
	if (!hugetlb && bytes + bytes / 64 > sublet__memory_available())
		return -ENOMEM;
	*b = (struct sublet__backing){ .kind = kind,
				       .fd = -1,
				       .bytes = bytes,
				       .owns_fd = true,
				       .zeroed = true,
				       .is_hugetlb = hugetlb,
				       .frame_shift = hugetlb ? HUGE_SHIFT : BASE_SHIFT };
	int fd = open_file(kind, bytes);
	if (fd < 0)
		return fd;
	b->fd = fd;
	int err = note_identity(b);
	if (!err)
		err = map_linear(b, NULL);
	if (err)
		sublet__backing_close(b);
	else
		b->is_huge = kind == SUBLET_BACKING_THP && maps_huge(b);
	return err;
}

static int open_given(struct sublet__backing *b, const struct sublet_arena_options *o, uint64_t bytes)
{
	struct statfs fs;
	struct stat st;

	if (o->fd < 0 || fstat(o->fd, &st) || !S_ISREG(st.st_mode) || fstatfs(o->fd, &fs))
		return -EINVAL;
	if (o->fd_offset_bytes % HUGE_BYTES || o->fd_offset_bytes > INT64_MAX - bytes ||
	    (uint64_t)st.st_size < o->fd_offset_bytes + bytes)
		return -EINVAL;
	bool hugetlb = (uint32_t)fs.f_type == SUBLET__HUGETLBFS_MAGIC;
	if (!hugetlb && (uint32_t)fs.f_type != SUBLET__TMPFS_MAGIC)
		return -EOPNOTSUPP;
	if (hugetlb && (uint64_t)fs.f_bsize != HUGE_BYTES)
		return -EOPNOTSUPP;
	if ((uintptr_t)o->linear & (hugetlb ? HUGE_BYTES - 1 : ((uintptr_t)1 << BASE_SHIFT) - 1))
		return -EINVAL;
	/* Blocks that the file has already cost nothing more. */
	uint64_t have = (uint64_t)st.st_blocks * 512;
	if (!hugetlb && have < bytes && bytes - have > sublet__memory_available())
		return -ENOMEM;
	*b = (struct sublet__backing){ .kind = SUBLET_BACKING_FD,
				       .fd = o->fd,
				       .fd_offset = o->fd_offset_bytes,
				       .bytes = bytes,
				       .is_hugetlb = hugetlb,
				       .frame_shift = hugetlb ? HUGE_SHIFT : BASE_SHIFT,
				       .dev = st.st_dev,
				       .ino = st.st_ino };
	int err = map_linear(b, o->linear);
	if (err)
		sublet__backing_close(b);
	else
		b->is_huge = !hugetlb && maps_huge(b);
	return err;
}

int sublet__backing_open(struct sublet__backing *b, const struct sublet_arena_options *o, uint64_t bytes)
{
	int err;

	switch (o->backing) {
	case SUBLET_BACKING_FD:
		return open_given(b, o, bytes);
	case SUBLET_BACKING_HUGETLB:
	case SUBLET_BACKING_THP:
	case SUBLET_BACKING_MEMFD:
		return open_own(b, o->backing, bytes);
	case SUBLET_BACKING_AUTO:
		break;
	default:
		return -EINVAL;
	}
	err = open_own(b, SUBLET_BACKING_THP, bytes);
	if (!err && b->is_huge)
		return 0;
	/* Too fragmented for huge pages, or no way to mount: base pages then. */
	if (!err)
		sublet__backing_close(b);
	return open_own(b, SUBLET_BACKING_MEMFD, bytes);
}

void sublet__backing_close(struct sublet__backing *b)
{
	if (b->owns_linear) {
		munmap(b->linear, b->bytes);
	} else if (b->linear) {
		SUBLET__DEFINED(b->linear, b->bytes);
		(void)madvise(b->linear, b->bytes, MADV_DOFORK);
		(void)madvise(b->linear, b->bytes, MADV_DODUMP);
	}
	if (b->owns_fd && b->fd >= 0)
		close(b->fd);
	b->linear = NULL;
	b->fd = -1;
}
