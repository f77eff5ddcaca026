/* SPDX-License-Identifier: MIT */
/*
 * core/platform.h: everything the engine asks of the world, in one place.
 *
 * The engine makes no system call, reads no clock and owns no thread. What it needs enters through
 * two tables: one for the arena (struct sublet__platform), one per address space (struct
 * sublet__mm_ops), because an mm may live in another process. src/linux implements both; src/sim is
 * the same from a seed.
 *
 * General precondition of every call: pointers are never NULL, counts are > 0, ranges lie inside
 * what was announced at creation, pages and frames are of the arena's frame size. Errors are
 * -errno. No call may touch lent memory other than through the linear map, and none may take an
 * engine lock or call back into the engine, but for `parallel`, which calls its function.
 *
 * Units: pfn = frame index in the arena; vpn = page index in the mm's window; one page maps one frame.
 */
#ifndef SUBLET_CORE_PLATFORM_H
#define SUBLET_CORE_PLATFORM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A piece of a run: `pages` pages from vpn on are (or become) frames src_pfn.. / dst_pfn.. */
struct sublet__segment {
	uint32_t vpn;
	uint32_t pages;
	uint32_t src_pfn; /* where the bytes are */
	uint32_t dst_pfn; /* where they go; in map(): the frames to map */
};

#define SUBLET__SEGMENTS_MAX  512u /* pieces of one run: one a page at worst */
#define SUBLET__RUN_PAGES_MAX 512u /* pages of one run: never crosses a page-table block */

/* How a range is mapped, re-established by every remap. */
enum sublet__map_flags {
	SUBLET__MAP_SHARED = 0,
	SUBLET__MAP_PRIVATE = 1u << 0, /* copy-on-write: a fork() is under way */
	SUBLET__MAP_LOCKED = 1u << 1,  /* the program mlocked it */
	/* privatize only: the program changed protections in the range; keep them, whatever they are, and do not read
	   through the addresses */
	SUBLET__MAP_PROTECTED = 1u << 2,
};

/* What a claim's owner may do with the frames of it, in the linear map. */
enum sublet__handed {
	SUBLET__HANDED_ZEROED,
	SUBLET__HANDED_STALE, /* as they are: to write to, and not to decide by */
	SUBLET__HANDED_BACK,  /* nothing any more */
};

struct sublet__platform_ops {
	/* ---- time and waiting ---- */
	uint64_t (*now_ns)(void *ctx);    /* monotonic */
	uint64_t (*coarse_ns)(void *ctx); /* the same clock, some milliseconds late, but cheap */
	void (*sleep_ns)(void *ctx, uint64_t ns);
	/*
	 * Sleep while *word == expected, at most timeout_ns (UINT64_MAX: no limit). May return early for
	 * no reason. Compares atomically against unpark(), which wakes up to `count` sleepers on word.
	 */
	void (*park)(void *ctx, const void *word, uint32_t expected, uint64_t timeout_ns);
	void (*unpark)(void *ctx, const void *word, uint32_t count);
	/* A small number for the calling thread, the same each time; threads may share one. */
	uint32_t (*thread_slot)(void *ctx);

	/* ---- memory for the engine's own structures ---- */
	/* Zero-filled, 64-byte aligned, committed on first touch, never lent; NULL when there is none. */
	void *(*reserve)(void *ctx, size_t bytes);
	void (*unreserve)(void *ctx, void *memory, size_t bytes);

	/* ---- frames, through the linear map ---- */
	/* Copy frames that nobody else reads hot: may bypass the cache. Ranges do not overlap. */
	void (*copy)(void *ctx, uint32_t dst_pfn, uint32_t src_pfn, uint32_t frames);
	/* warm: they were read a moment ago, and are in the cache; else as cold as what is copied. */
	void (*zero)(void *ctx, uint32_t pfn, uint32_t frames, bool warm);
	/* NULL, or for a checker of programs: a claim's owner has these frames, or gave them back. Changes nothing. */
	void (*handed)(void *ctx, uint32_t pfn, uint32_t frames, enum sublet__handed how);

	/* ---- threads ---- */
	/*
	 * Call fn(arg, worker) once on each of up to `threads` threads, the caller (worker 0) among
	 * them, and return when all have returned. May use fewer; nests in nothing: a second caller
	 * while the workers are busy runs alone.
	 */
	void (*parallel)(void *ctx, uint32_t threads, void (*fn)(void *arg, uint32_t worker), void *arg);
};

/*
 * What the engine asks of one address space. All ranges of one call lie in one page-table block
 * (512 pages, aligned), except for unmap. The engine serialises calls on one block (its block lock)
 * but calls on different blocks run at once from different threads.
 *
 * Order of the calls of one move, on one range R of pages (section 4 of the design):
 *
 *   [track(R), engine copies]  block(R)  [dirty(R)]  engine copies  remap(R)  wake(R)
 *                              block(R)  engine backs out           unblock(R)
 *                    track(R)            engine backs out           unblock(R)
 *
 * What a page is to the kernel:
 *
 *   none      -> shared, private   map           private   -> copied    a write by the program
 *             -> plain             map_plain               -> shared    restore
 *   shared    -> shared            remap         copied    -> shared    restore
 *             -> private           privatize     each      -> none      unmap
 *
 * From block to wake/unblock the engine takes no lock and allocates nothing: a thread that holds
 * such a lock may be sleeping on R.
 */
struct sublet__mm_ops {
	/*
	 * Map segments (adjacent, ascending in vpn) at their dst_pfn, shared or private, readable and
	 * writable. The range was not accessible before, or holds plain memory. All or nothing.
	 * -ENOMEM: no kernel mapping or memory left; the range is as before.
	 */
	int (*map)(void *mm, const struct sublet__segment *segs, uint32_t count, uint32_t flags);
	/* Map ordinary zero-filled memory of the process. -ENOMEM */
	int (*map_plain)(void *mm, uint32_t vpn, uint32_t pages);
	/* Make a range inaccessible and forget what was there; the addresses stay reserved. -ENOMEM */
	int (*unmap)(void *mm, uint32_t vpn, uint32_t pages);

	/* Zero the bytes of a mapped, unblocked range through its addresses (it may be private). */
	void (*clear)(void *mm, uint32_t vpn, uint32_t pages);

	/* Only where features has SUBLET__MM_TRACK: start noting writes. Writers go on. */
	int (*track)(void *mm, uint32_t vpn, uint32_t pages);
	/*
	 * When it returns 0, every write to the range, the kernel's own included, waits until wake or
	 * unblock, and all writes that did not wait are visible through the linear map. Reads may wait.
	 * -EADDRINUSE: the program keeps the range from being blocked. Nothing was changed, and unblock follows only
	 * after track: it might undo what is the program's.
	 */
	int (*block)(void *mm, uint32_t vpn, uint32_t pages);
	/*
	 * Only after track and block of the same range: set bit i of bitmap for each page vpn + i that
	 * may have been written since track. Other bits stay as they are. Cannot fail: a page
	 * that is not known to be clean is reported written.
	 */
	void (*dirty)(void *mm, uint32_t vpn, uint32_t pages, uint64_t *bitmap);
	/*
	 * Point a blocked range to its dst_pfn frames (segments as in map) and drop the registration.
	 * All or nothing: after an error the range still points to src_pfn and is still blocked.
	 */
	int (*remap)(void *mm, const struct sublet__segment *segs, uint32_t count, uint32_t flags);
	/* Let the accesses go on that waited for a remapped range. */
	void (*wake)(void *mm, uint32_t vpn, uint32_t pages);
	/* Back out: the range still points to its old frames; let accesses go on and forget track. */
	void (*unblock)(void *mm, uint32_t vpn, uint32_t pages);

	/*
	 * Fork. privatize: turn mapped, shared segments (at dst_pfn) into private copy-on-write
	 * mappings of the same frames; no write of any thread is lost. restore: the way back once no
	 * other process shares the frames: writes wait; pages that were written since are copied into
	 * their frames; the range is shared again; writes go on. -ENOMEM: as before, try again later.
	 */
	int (*privatize)(void *mm, const struct sublet__segment *segs, uint32_t count, uint32_t flags);
	int (*restore)(void *mm, const struct sublet__segment *segs, uint32_t count, uint32_t flags);
	/*
	 * Whether a child of fork() has the range at all (it has from the start, and again after every map, remap
	 * and privatize). -ENOMEM: no kernel mapping left; a part of the range may have changed.
	 */
	int (*inherit)(void *mm, uint32_t vpn, uint32_t pages, bool inherit);

	/*
	 * NULL, or for a checker of programs: mapped memory that the program must not touch from here on, or may again
	 * (it is decommitted, and keeps its frames). Changes nothing.
	 */
	void (*touchable)(void *mm, uint32_t vpn, uint32_t pages, bool may);
};

enum sublet__mm_features {
	SUBLET__MM_TRACK = 1u << 0, /* track and dirty are there: pre-copy is possible */
	SUBLET__MM_STAYS = 1u << 1, /* block and track answer -EOPNOTSUPP, for good: nothing of it moves */
};

/* Facts about the platform, fixed while the arena lives. */
struct sublet__platform {
	const struct sublet__platform_ops *ops;
	void *ctx;
	uint32_t frame_shift;   /* log2 of the frame size in bytes: 12 or 21 */
	uint32_t run_pages_max; /* largest run to block at once, a power of two <= SUBLET__RUN_PAGES_MAX */
	uint32_t workers;       /* most threads that parallel() uses, the caller included */
	/* 1 as long as the arena lives, in the process that made it; 0 in a child of fork(). NULL: there are none. */
	const uint32_t *here;
};

/* One address space, as announced to sublet__mm_create. */
struct sublet__mm_config {
	const struct sublet__mm_ops *ops;
	void *ctx;
	uint64_t base;          /* address of vpn 0, a multiple of 2 MiB */
	uint32_t pages;         /* size of the window */
	uint32_t features;      /* enum sublet__mm_features */
	uint32_t mapping_limit; /* kernel mappings the engine may use in it */
};

#endif
