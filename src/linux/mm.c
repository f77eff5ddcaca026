/* SPDX-License-Identifier: MIT */
/*
 * linux/mm.c: move live memory of the calling process.
 *
 * Three techniques, all without signals, so that system calls into moved memory sleep instead of
 * failing with EFAULT (mprotect with a SIGSEGV handler was rejected for that):
 *
 *   ZAP           register for minor faults, MADV_DONTNEED: the frames stay in the file, their
 *                 mapping goes, and whoever touches the range sleeps on the userfaultfd.
 *   PRECOPY       first write-protect asynchronously (the kernel lifts it at the first write of a
 *                 page and lets the writer go on) and copy meanwhile. Then register for minor faults
 *                 too and zap. A page that was not written leaves a write-protect marker in the page
 *                 table, which PAGEMAP_SCAN reports as swapped; what has no marker was written.
 *   WRITEPROTECT  write-protect synchronously: readers go on. The slowest, and the most portable.
 *
 * In all of them mmap(MAP_FIXED) at the new offset is what moves the range: it drops the
 * registration, and merges with its neighbours when their frames are neighbours too. Nothing stays
 * registered between moves, because a registered mapping does not merge with one that is not, and
 * because a split huge entry under a registration blocks its whole 2 MiB.
 *
 * A sleeper cannot be missed: the kernel queues it before it lets go of the mapping, and mmap needs
 * the mapping; so by the time of UFFDIO_WAKE it is in the queue or sees the new frames.
 *
 * From block to wake or unblock the calling thread takes no signal: a handler that touched the range
 * would sleep on the very thread that is to wake it.
 *
 * While a debugger is attached, every technique blocks by write-protection, and while the kernel writes a core nothing moves
 * (observer.c).
 *
 * Valgrind runs one thread at a time, and waits for a thread that sleeps on a page as if it were computing: a thread
 * that touched a blocked range would stop the one that is to wake it, for ever. So nothing is blocked there; whatever
 * needs it is refused, as by a kernel that cannot do it.
 *
 * remap is all or nothing. One segment is one mmap, which does that by itself. Of several, those
 * done are open to everybody at once; when a later one fails they are blocked again, their bytes
 * are copied back, and the old frames return. A kernel that refuses even that (it would have to
 * refuse a mapping that replaces one of the same size, again and again) leaves no way to keep the
 * data, and the process is stopped with a message.
 */
#include "linux/mm.h"

#include "linux/copy.h"
#include "linux/helper.h"
#include "linux/linux.h"
#include "linux/memcheck.h"
#include "linux/observer.h"
#include "linux/platform.h"
#include "linux/proc.h"
#include "linux/raw.h"
#include "linux/spare.h"
#include "linux/uapi.h"
#include "linux/uffd.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* ---- block ---- */

static uint64_t block_mode(const struct sublet__linux_mm *mm)
{
	switch (mm->technique) {
	case SUBLET_TECHNIQUE_PRECOPY:
		return UFFDIO_REGISTER_MODE_WP | UFFDIO_REGISTER_MODE_MINOR;
	case SUBLET_TECHNIQUE_WRITEPROTECT:
		return UFFDIO_REGISTER_MODE_WP;
	default:
		return UFFDIO_REGISTER_MODE_MINOR;
	}
}

static int block_range(const struct sublet__linux_mm *mm, uintptr_t addr, size_t bytes)
{
	int err = sublet__uffd_register(mm->uffd_move, addr, bytes, block_mode(mm));

	if (err)
		return err;
	if (mm->technique == SUBLET_TECHNIQUE_WRITEPROTECT)
		err = sublet__uffd_protect(mm->uffd_move, addr, bytes);
	else if (sublet__raw_madvise((void *)addr, bytes, SUBLET__MADV_DONTNEED_LOCKED))
		err = -errno;
	if (err)
		sublet__uffd_unregister(mm->uffd_move, addr, bytes);
	return err;
}

static int mm_track(void *ctx, uint32_t vpn, uint32_t pages)
{
	const struct sublet__linux_mm *mm = ctx;
	uintptr_t addr = sublet__mm_addr(mm, vpn);
	size_t bytes = sublet__mm_bytes(mm, pages);
	int err;

	if (mm->in_child || mm->is_checked)
		return mm->in_child ? -EPERM : -EOPNOTSUPP;
	if (sublet__observer_now(mm->status) != SUBLET__OBSERVER_NONE)
		return 0; /* blocked by write-protection later, all of it counts as written */
	err = sublet__uffd_register(mm->uffd_move, addr, bytes, UFFDIO_REGISTER_MODE_WP);
	if (err)
		return err;
	err = sublet__uffd_protect(mm->uffd_move, addr, bytes);
	if (err)
		sublet__uffd_unregister(mm->uffd_move, addr, bytes);
	return err;
}

/*
 * Of the run that the calling thread has blocked: by write-protection, though the technique is another. A debugger reads
 * what is write-protected, and of what is zapped it reads an error.
 */
static __thread bool is_held __attribute__((tls_model("initial-exec")));

static int block_observed(const struct sublet__linux_mm *mm, uintptr_t addr, size_t bytes,
			  enum sublet__observer observer)
{
	if (observer == SUBLET__OBSERVER_DUMPING)
		return -EAGAIN;
	/* What mm_track registered before the debugger came. */
	if (mm->uffd_hold != mm->uffd_move)
		sublet__uffd_unregister(mm->uffd_move, addr, bytes);
	int err = sublet__mm_hold(mm, addr, bytes);
	is_held = !err;
	return err;
}

static int mm_block(void *ctx, uint32_t vpn, uint32_t pages)
{
	const struct sublet__linux_mm *mm = ctx;
	uintptr_t addr = sublet__mm_addr(mm, vpn);
	size_t bytes = sublet__mm_bytes(mm, pages);

	if (mm->in_child || mm->is_checked)
		return mm->in_child ? -EPERM : -EOPNOTSUPP;
	enum sublet__observer observer = sublet__observer_now(mm->status);
	is_held = false;
	sublet__signals_block();
	int err = observer == SUBLET__OBSERVER_NONE ? block_range(mm, addr, bytes)
						    : block_observed(mm, addr, bytes, observer);
	if (err)
		sublet__signals_unblock();
	return err;
}

static void set_bits(uint64_t *bitmap, uint64_t first, uint64_t end)
{
	for (uint64_t i = first; i < end; i++)
		bitmap[i / 64] |= 1ull << (i % 64);
}

static void mm_dirty(void *ctx, uint32_t vpn, uint32_t pages, uint64_t *bitmap)
{
	const struct sublet__linux_mm *mm = ctx;
	uintptr_t addr = sublet__mm_addr(mm, vpn);
	/* Written and clean pages take turns at worst, so this many regions always suffice. */
	struct sublet__page_region regions[SUBLET__RUN_PAGES_MAX / 2 + 1];
	struct sublet__pm_scan scan = {
		.size = sizeof scan,
		.start = addr,
		.end = addr + sublet__mm_bytes(mm, pages),
		.vec = (uintptr_t)regions,
		.vec_len = sizeof regions / sizeof *regions,
		.category_inverted = SUBLET__PAGE_IS_SWAPPED,
		.category_mask = SUBLET__PAGE_IS_SWAPPED,
		.return_mask = SUBLET__PAGE_IS_SWAPPED,
	};
	int n = is_held ? -1 : ioctl(mm->pagemap, SUBLET__PAGEMAP_SCAN, &scan);

	if (n < 0 || scan.walk_end < scan.end) {
		set_bits(bitmap, 0, pages);
		return;
	}
	for (int i = 0; i < n; i++) {
		uint64_t end = (regions[i].end - addr + sublet__mm_bytes(mm, 1) - 1) >> mm->shift;
		set_bits(bitmap, (regions[i].start - addr) >> mm->shift, end < pages ? end : pages);
	}
}

/* A remap that was rolled back blocks by the technique again: so both. */
static void wake(const struct sublet__linux_mm *mm, uintptr_t addr, size_t bytes)
{
	if (is_held && mm->uffd_hold != mm->uffd_move)
		sublet__uffd_wake(mm->uffd_hold, addr, bytes);
	sublet__uffd_wake(mm->uffd_move, addr, bytes);
}

static void mm_wake(void *ctx, uint32_t vpn, uint32_t pages)
{
	const struct sublet__linux_mm *mm = ctx;

	wake(mm, sublet__mm_addr(mm, vpn), sublet__mm_bytes(mm, pages));
	sublet__signals_unblock();
}

static void mm_unblock(void *ctx, uint32_t vpn, uint32_t pages)
{
	const struct sublet__linux_mm *mm = ctx;
	uintptr_t addr = sublet__mm_addr(mm, vpn);
	size_t bytes = sublet__mm_bytes(mm, pages);

	if (is_held && mm->uffd_hold != mm->uffd_move)
		sublet__uffd_unregister(mm->uffd_hold, addr, bytes);
	sublet__uffd_unregister(mm->uffd_move, addr, bytes);
	/* Unregistering wakes only where something was registered: not after a remap that was rolled back. */
	wake(mm, addr, bytes);
	/* Nothing to undo after track alone. */
	sublet__signals_unblock();
}

/* ---- map, remap, unmap ---- */

/*
 * Segments 0 .. done - 1 are mapped, and their frames are about to be somebody else's: no address may lead there (G9).
 * At the limit of mappings the kernel refuses to map nothing too; to take the access away it needs no mapping more.
 */
static void map_undo(const struct sublet__linux_mm *mm, const struct sublet__segment *segs, uint32_t done)
{
	int err, tries = 0;

	if (!done)
		return;
	uintptr_t addr = sublet__mm_addr(mm, segs[0].vpn);
	size_t bytes = sublet__mm_bytes(mm, sublet__mm_pages(segs, done));
	do {
		err = sublet__mm_map_nothing(addr, bytes);
		err = err && !sublet__raw_mprotect((void *)addr, bytes, PROT_NONE) ? 0 : err;
	} while (err && sublet__mm_must_wait(&tries));
	if (err)
		sublet__mm_give_up("cannot take back half a mapping; stopping before others see its memory",
				   err);
}

static int mm_map(void *ctx, const struct sublet__segment *segs, uint32_t count, uint32_t flags)
{
	const struct sublet__linux_mm *mm = ctx;

	if (mm->in_child)
		return -EPERM;
	for (uint32_t i = 0; i < count; i++) {
		int err = sublet__mm_map_frames(mm, &segs[i], segs[i].dst_pfn, flags, PROT_READ | PROT_WRITE);
		if (err) {
			map_undo(mm, segs, i);
			return err;
		}
	}
	sublet__mm_relock(sublet__mm_addr(mm, segs[0].vpn),
			  sublet__mm_bytes(mm, sublet__mm_pages(segs, count)), flags);
	return 0;
}

static int mm_map_plain(void *ctx, uint32_t vpn, uint32_t pages)
{
	const struct sublet__linux_mm *mm = ctx;

	if (mm->in_child)
		return -EPERM;
	return sublet__mm_map_fixed(sublet__mm_addr(mm, vpn), sublet__mm_bytes(mm, pages),
				    PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
		       ? -ENOMEM
		       : 0;
}

static int mm_unmap(void *ctx, uint32_t vpn, uint32_t pages)
{
	const struct sublet__linux_mm *mm = ctx;

	if (mm->in_child)
		return -EPERM;
	int err = sublet__mm_map_nothing(sublet__mm_addr(mm, vpn), sublet__mm_bytes(mm, pages));
	if (!err)
		sublet__spare_renew();
	return err;
}

static void mm_clear(void *ctx, uint32_t vpn, uint32_t pages)
{
	const struct sublet__linux_mm *mm = ctx;

	memset((void *)sublet__mm_addr(mm, vpn), 0, sublet__mm_bytes(mm, pages));
}

/* Segments 0 .. done - 1 point to their new frames and are in use there: bring their bytes back. */
static void remap_undo(const struct sublet__linux_mm *mm, const struct sublet__segment *segs, uint32_t done,
		       uint32_t flags)
{
	for (uint32_t i = 0; i < done; i++) {
		const struct sublet__segment *s = &segs[i];
		uintptr_t addr = sublet__mm_addr(mm, s->vpn);
		size_t bytes = sublet__mm_bytes(mm, s->pages);
		int err, tries = 0;
		do
			err = block_range(mm, addr, bytes);
		while (err && sublet__mm_must_wait(&tries));
		if (err)
			sublet__mm_give_up("cannot take back half a move; stopping before data is lost", err);
		sublet__copy(sublet__mm_frame(mm, s->src_pfn), sublet__mm_frame(mm, s->dst_pfn), bytes);
		sublet__mm_must_map(mm, s, s->src_pfn, flags, PROT_READ | PROT_WRITE);
		/*
		 * From here on the old frames hold the data and may be written. Blocked again because that
		 * is what the caller believes; should it fail, an open range does no harm to one who backs out.
		 */
		(void)block_range(mm, addr, bytes);
	}
}

static int mm_remap(void *ctx, const struct sublet__segment *segs, uint32_t count, uint32_t flags)
{
	const struct sublet__linux_mm *mm = ctx;

	if (mm->in_child)
		return -EPERM;
	for (uint32_t i = 0; i < count; i++) {
		int err = sublet__mm_map_frames(mm, &segs[i], segs[i].dst_pfn, flags, PROT_READ | PROT_WRITE);
		if (err) {
			remap_undo(mm, segs, i, flags);
			return err;
		}
	}
	sublet__mm_relock(sublet__mm_addr(mm, segs[0].vpn),
			  sublet__mm_bytes(mm, sublet__mm_pages(segs, count)), flags);
	return 0;
}

static int mm_inherit(void *ctx, uint32_t vpn, uint32_t pages, bool inherit)
{
	const struct sublet__linux_mm *mm = ctx;

	if (mm->in_child)
		return -EPERM;
	return sublet__raw_madvise((void *)sublet__mm_addr(mm, vpn), sublet__mm_bytes(mm, pages),
				   inherit ? MADV_DOFORK : MADV_DONTFORK)
		       ? -ENOMEM
		       : 0;
}

/* Writes wait meanwhile, so it is a move like any other. */
static int mm_restore(void *ctx, const struct sublet__segment *segs, uint32_t count, uint32_t flags)
{
	const struct sublet__linux_mm *mm = ctx;

	return mm->is_checked ? -ENOMEM : sublet__mm_restore(ctx, segs, count, flags);
}

static void mm_touchable(void *ctx, uint32_t vpn, uint32_t pages, bool may)
{
	const struct sublet__linux_mm *mm = ctx;
	void *addr = (void *)sublet__mm_addr(mm, vpn);

	if (may)
		SUBLET__DEFINED(addr, sublet__mm_bytes(mm, pages));
	else
		SUBLET__NO_ACCESS(addr, sublet__mm_bytes(mm, pages));
}

const struct sublet__mm_ops sublet__linux_mm_ops = {
	.map = mm_map,
	.map_plain = mm_map_plain,
	.unmap = mm_unmap,
	.clear = mm_clear,
	.track = mm_track,
	.block = mm_block,
	.dirty = mm_dirty,
	.remap = mm_remap,
	.wake = mm_wake,
	.unblock = mm_unblock,
	.privatize = sublet__mm_privatize,
	.restore = mm_restore,
	.inherit = mm_inherit,
	.touchable = mm_touchable,
};

/* ---- open, close ---- */

static bool can_scan(int pagemap)
{
	struct sublet__pm_scan scan = { .size = sizeof scan };

	/* An empty range is a valid question where the call exists. */
	return pagemap >= 0 && ioctl(pagemap, SUBLET__PAGEMAP_SCAN, &scan) >= 0;
}

static enum sublet_technique choose(const struct sublet__linux_mm *mm, uint64_t features)
{
	uint64_t minor = mm->is_hugetlb ? SUBLET__UFFD_MINOR_HUGETLB : SUBLET__UFFD_MINOR_SHMEM;

	if (!(features & minor))
		return SUBLET_TECHNIQUE_WRITEPROTECT;
	/* Measured: see sublet__linux_mm_run_pages. */
	if (mm->is_huge && features & SUBLET__UFFD_WP_ASYNC && can_scan(mm->pagemap))
		return SUBLET_TECHNIQUE_PRECOPY;
	return SUBLET_TECHNIQUE_ZAP;
}

static uint64_t features_needed(const struct sublet__linux_mm *mm)
{
	uint64_t minor = mm->is_hugetlb ? SUBLET__UFFD_MINOR_HUGETLB : SUBLET__UFFD_MINOR_SHMEM;

	switch (mm->technique) {
	case SUBLET_TECHNIQUE_PRECOPY:
		return minor | SUBLET__UFFD_WP_SHMEM | SUBLET__UFFD_WP_UNPOPULATED | SUBLET__UFFD_WP_ASYNC;
	case SUBLET_TECHNIQUE_ZAP:
		return minor | SUBLET__UFFD_WP_SHMEM;
	default:
		return SUBLET__UFFD_WP_SHMEM;
	}
}

static int open_descriptors(struct sublet__linux_mm *mm, enum sublet_technique wanted)
{
	uint64_t features, optional, needed;
	bool via_device;
	int err = sublet__uffd_probe(&features, &via_device);

	if (err)
		return err == -ENOSYS ? -EOPNOTSUPP : err == -EACCES ? -EPERM : err;
	mm->pagemap = sublet__linux_fd_high(sublet__raw_open(AT_FDCWD, "/proc/self/pagemap", O_RDONLY));
	mm->maps = sublet__linux_fd_high(sublet__raw_open(AT_FDCWD, "/proc/self/maps", O_RDONLY));
	mm->status = sublet__observer_open();
	mm->technique = wanted == SUBLET_TECHNIQUE_AUTO ? choose(mm, features) : wanted;
	needed = features_needed(mm);
	if ((features & needed) != needed)
		return -EOPNOTSUPP;
	if (mm->technique == SUBLET_TECHNIQUE_PRECOPY && !can_scan(mm->pagemap))
		return -EOPNOTSUPP;
	optional = features & SUBLET__UFFD_WP_UNPOPULATED;
	mm->uffd_move = sublet__uffd_open(needed | optional);
	if (mm->uffd_move < 0)
		return mm->uffd_move;
	mm->uffd_hold = mm->uffd_move;
	if (mm->technique == SUBLET_TECHNIQUE_PRECOPY)
		mm->uffd_hold = sublet__uffd_open(SUBLET__UFFD_WP_SHMEM | optional);
	return mm->uffd_hold < 0 ? mm->uffd_hold : 0;
}

static void close_descriptors(struct sublet__linux_mm *mm)
{
	if (mm->uffd_hold != mm->uffd_move)
		sublet__fd_drop(mm->uffd_hold);
	sublet__fd_drop(mm->uffd_move);
	sublet__fd_drop(mm->pagemap);
	sublet__fd_drop(mm->maps);
	sublet__fd_drop(mm->status);
	mm->uffd_hold = mm->uffd_move = mm->pagemap = mm->maps = mm->status = -1;
}

int sublet__linux_mm_open(struct sublet__linux_mm *mm, const struct sublet__backing *b,
			  enum sublet_technique technique, uint64_t window_bytes)
{
	*mm = (struct sublet__linux_mm){ .bytes = window_bytes,
					 .shift = b->frame_shift,
					 .is_hugetlb = b->is_hugetlb,
					 .is_huge = b->is_huge,
					 .is_checked = SUBLET__UNDER_VALGRIND(),
					 .fd = b->fd,
					 .fd_offset = b->fd_offset,
					 .linear = b->linear,
					 .uffd_move = -1,
					 .uffd_hold = -1,
					 .pagemap = -1,
					 .status = -1,
					 .maps = -1 };
	int err = open_descriptors(mm, technique);

	if (!err) {
		mm->base = (uintptr_t)sublet__addresses_reserve(window_bytes);
		err = mm->base ? 0 : -ENOMEM;
	}
	if (err)
		close_descriptors(mm);
	else
		sublet__spare_open();
	return err;
}

void sublet__linux_mm_close(struct sublet__linux_mm *mm)
{
	close_descriptors(mm);
	munmap((void *)mm->base, mm->bytes);
	sublet__spare_close();
}

void sublet__linux_mm_fork_child(struct sublet__linux_mm *mm)
{
	mm->in_child = true;
	mm->fd = -1;
	close_descriptors(mm);
}

struct sublet__mm_config sublet__linux_mm_config(struct sublet__linux_mm *mm, uint32_t mapping_limit)
{
	return (struct sublet__mm_config){
		.ops = &sublet__linux_mm_ops,
		.ctx = mm,
		.base = mm->base,
		.pages = (uint32_t)(mm->bytes >> mm->shift),
		.features = mm->is_checked                              ? SUBLET__MM_STAYS
			    : mm->technique == SUBLET_TECHNIQUE_PRECOPY ? SUBLET__MM_TRACK
									: 0,
		.mapping_limit = mapping_limit,
	};
}

/*
 * Measured with 64 MiB and one thread that writes all over it, in multiples of libc's memcpy without
 * and with the writer, and its waits at p99.9 (tests/linux/bench_moves.c, Zen 4, two busy CPUs):
 *
 *   hugetlb       ZAP      2 MiB     0.66  0.79  165 us   *
 *                 PRECOPY  2 MiB     0.64  1.19  103 us
 *   huge tmpfs    ZAP      2 MiB     0.66  0.74  168 us
 *                 PRECOPY  2 MiB     0.81  1.10   70 us   *  (with half of it the huge entry is lost for good)
 *   memfd         ZAP      2 MiB     0.92  1.53  450 us
 *                          512 KiB   1.30  2.06   80 us   *
 *                          256 KiB   1.38  3.60   50 us
 *                 PRECOPY  2 MiB     1.34  1.84  150 us
 *                          1 MiB     1.43  2.05   90 us
 *                 WRITEPROTECT 512 KiB   1.33  2.60   85 us
 *
 * The rows with a star are what AUTO takes: the fastest whose waits stay under 120 us (huge tmpfs,
 * memfd) and 300 us (hugetlb, of which a 2 MiB copy under the block is half). Reading a range in after
 * its move (MADV_POPULATE_READ) costs 0.6 of a memcpy more on memfd, and saves the programs about as
 * much: rejected.
 */
uint32_t sublet__linux_mm_run_pages(const struct sublet__linux_mm *mm)
{
	if (mm->is_hugetlb)
		return 1;
	if (mm->is_huge)
		return SUBLET__RUN_PAGES_MAX;
	return SUBLET__RUN_PAGES_MAX / (mm->technique == SUBLET_TECHNIQUE_PRECOPY ? 2 : 4);
}
