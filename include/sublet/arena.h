/* SPDX-License-Identifier: MIT */
/* sublet/arena.h: create an arena, ask what it is made of. */
#ifndef SUBLET_ARENA_H
#define SUBLET_ARENA_H

#include <sublet/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What frames are made of. */
enum sublet_backing {
	SUBLET_BACKING_AUTO = 0, /* THP where it can be had, else MEMFD; never takes reserved hugetlb pages */
	SUBLET_BACKING_HUGETLB,  /* memfd on hugetlb: only on request, somebody reserved those pages */
	SUBLET_BACKING_THP,      /* file on a private, detached tmpfs with huge=always */
	SUBLET_BACKING_MEMFD,    /* memfd, base pages */
	SUBLET_BACKING_FD,       /* a descriptor that the caller owns: options.fd */
};

/* How live memory is moved; the kernel's version decides what is there. */
enum sublet_technique {
	SUBLET_TECHNIQUE_AUTO = 0,
	SUBLET_TECHNIQUE_PRECOPY,      /* copy under asynchronous write-protection, then zap (Linux 6.7) */
	SUBLET_TECHNIQUE_ZAP,          /* unmap under a minor-fault registration, then copy */
	SUBLET_TECHNIQUE_WRITEPROTECT, /* write-protect, then copy; readers go on */
};

struct sublet_arena_options {
	uint64_t size_bytes;   /* SUBLET_OPTIONS(sublet_arena_options) */
	uint64_t area_bytes;   /* size of the area; rounded up to 2 MiB; required */
	uint64_t normal_bytes; /* size of the normal zone; 0: a quarter of the area, at least 64 MiB */
	uint64_t window_bytes; /* addresses reserved for the mm; 0: 16 times the area, at least 64 GiB; less
	                          where RLIMIT_AS says so, but at least 4 times the area */
	enum sublet_backing backing;
	enum sublet_technique technique;
	int fd;           /* BACKING_FD: shared memory of at least offset + area + normal bytes; must stay
	                             open as long as the arena lives, and is not closed by it */
	uint32_t workers; /* threads that help large claims; 0: half of the CPUs, and idle ones; 1: only the
	                             caller */
	uint64_t fd_offset_bytes; /* BACKING_FD: where the arena starts in fd, a multiple of 2 MiB */
	void *linear;           /* BACKING_FD: the caller's own shared mapping of that range (already known to
	                             a device, say), used instead of a new one; may be NULL */
	uint64_t mapping_limit; /* kernel mappings the arena may use; 0: half of vm.max_map_count */
};

struct sublet_arena_info {
	uint64_t size_bytes;             /* SUBLET_OPTIONS(sublet_arena_info), set by the caller */
	enum sublet_backing backing;     /* what AUTO came to */
	enum sublet_technique technique; /* what AUTO came to */
	uint64_t frame_bytes;
	uint64_t area_bytes;
	uint64_t normal_bytes;
	uint64_t area_offset_bytes; /* where the area starts in fd */
	void *linear;               /* address of the area's first byte in the linear map of this process */
	int fd;                     /* the backing: pass it to another process, never resize or close it */
	uint32_t workers;
	uint64_t mapping_limit;
	uint64_t metadata_bytes; /* engine structures, worst case: all of it touched */
};

/*
 * Create an arena: reserve and populate its memory, start its workers.
 * Who may call: any thread, any time; several arenas may live side by side.
 * The arena's memory is one linear mapping, marked MADV_DONTFORK and MADV_DONTDUMP.
 * fork(): a child does not have what is pinned long-term, nor what short pins or device jobs still use after a second:
 * those addresses are not mapped there (SIGSEGV; sublet/pin.h says which). A handler set by pthread_atfork() waits for
 * that second at most, then turns all other lent memory into ordinary copy-on-write memory for the child
 * (docs/architecture.md, "Fork"). No pin and no device is a reason to end the process. The handler ends it, with a message,
 * where no memory or kernel mapping is left to keep the child apart. posix_spawn(), vfork(), system() and popen() need
 * none of this: nothing turns private, and nobody waits.
 * The child may read and write the memory that it has, and nothing else: what a call with this arena, its mm or anything of
 * theirs answers there says sublet/types.h. A child may create an arena of its own.
 *
 * -EINVAL      a size that is 0 or overflows, an fd that is missing or too small, an unknown backing,
 *              512 GiB or more of area and normal zone together in base pages; or as for every struct (sublet/types.h)
 * -E2BIG       options of a newer program want what this library does not know
 * -EOPNOTSUPP  the requested backing or technique is not to be had on this kernel
 * -EPERM       no userfaultfd permission (`sublet doctor` says what to do)
 * -ENOMEM      more memory than the machine has available, or too few huge pages
 * -EFBIG       area and normal zone together are larger than a file of this process may be (ulimit -f)
 */
SUBLET_API SUBLET_NODISCARD int sublet_arena_create(const struct sublet_arena_options *options,
						    struct sublet_arena **arena);

/*
 * Destroy an arena: stop its workers and what serves it, tell its notifiers SUBLET_NOTIFIER_EXIT, unmap every address
 * its mms handed out, close its backing. Nothing of it may be in use by another thread. NULL is a no-op.
 *
 * What the caller still has of it decides:
 *   claims, pins, devices, page tables of devices    -EBUSY, until they are given back: they lead to the arena's memory
 *   mms and what is mapped in them                   go along with it
 *   notifiers                                        are told, and gone: they must not be removed any more
 *   connections, and claims of other processes       end: they are told -EPIPE. Their mapping of the backing is their own
 *   what a device holds that was closed and could    is let go: the kernel keeps pages that a request is on
 *   not be stopped (sublet/bo.h)
 * -EBUSY  see above; nothing was changed
 */
SUBLET_API int sublet_arena_destroy(struct sublet_arena *arena);

/* The arena's first mm: the address space of the calling process. Lives as long as the arena. NULL only for NULL. */
SUBLET_API struct sublet_mm *sublet_arena_mm(struct sublet_arena *arena);

/*
 * Another address space of the calling process over the same arena: addresses, a page table, limits and notifiers of
 * its own, as large as the first one's. It may use a 64th of the kernel mappings that the first may use. Lives as
 * long as the arena.
 * -EBUSY   the arena is served (sublet_arena_serve) already
 * -ENOSPC  64 address spaces already
 * -EAGAIN  another thread is in fork()
 * -ENOMEM  no addresses or memory for it; or -errno of userfaultfd
 * -EINVAL  NULL
 */
SUBLET_API SUBLET_NODISCARD int sublet_arena_mm_add(struct sublet_arena *arena, struct sublet_mm **mm);

/* Fill in *info. -EINVAL: info->size_bytes is not set; -E2BIG: or is no size. */
SUBLET_API SUBLET_NODISCARD int sublet_arena_info(struct sublet_arena *arena, struct sublet_arena_info *info);

/*
 * Listen on the control socket of this user as `name`, so that `sublet list`, `stat`, `map` and
 * `claim` reach this arena (sublet/client.h is the same for programs). A thread of its own serves
 * it until the arena is destroyed.
 * -EEXIST  a live instance of this user has that name and this pid already
 * -EINVAL  name is empty, too long, begins with '.', is no UTF-8, or has a '/' or a control character in it
 * -EPERM   the directory of sockets is not private to this user
 * -ENOSPC  too many servers on this arena; or -errno of the directory, the socket or the thread
 */
SUBLET_API SUBLET_NODISCARD int sublet_arena_serve(struct sublet_arena *arena, const char *name);

#ifdef __cplusplus
}
#endif
#endif
