/* SPDX-License-Identifier: MIT */
/*
 * jemalloc's extent hooks: where its memory comes from.
 *
 * jemalloc asks its hooks for extents of a few MiB, cuts them up, and gives pages back when they
 * have been unused for a while. These hooks serve it from the arena:
 *
 *   alloc         addresses alone (sublet__mm_reserve), where jemalloc does not ask for memory at once
 *   dalloc        sublet_unmap, if the range is whole units; else refused, and jemalloc goes on with
 *   decommit      sublet_decommit: the frames go back, the addresses stay jemalloc's ("retained")
 *   commit        sublet_commit, before it uses such addresses (again); ordinary memory where the arena is full
 *   purge_*       refused. jemalloc purges only what it could not decommit, and a refusal costs
 *                 nothing but the memory; a purge that gave frames back would have to get frames
 *                 again on the spot, and there is no way to report that it could not
 *   split, merge  allowed on one side of the window's edge: jemalloc's bookkeeping, not ours. But what jemalloc kept of
 *                 the ordinary memory of before the hooks is not split: its threads would fill that first
 *
 * Rules. jemalloc holds locks while it calls: nothing here may malloc, and the engine never does.
 * A child of fork() has a private copy of the memory, but no arena: what it needs from here on is
 * ordinary memory. Memory that jemalloc mapped before the constructor set the hooks reaches them
 * too; it is outside the window and is never given back, as by jemalloc's own hooks.
 *
 * Sparing frames. jemalloc takes addresses by steps that double, and cuts from them what it needs: an object of 2 MB,
 * say, is 2 MiB and a page to it, and of a step of 4 MiB all but one of them is cut off and may never be used. So a
 * step gets no frames; what is cut off gets them when jemalloc commits it, which it does anyway on systems that
 * do not overcommit. A step's length costs addresses only. Long steps make neighbours of what is
 * allocated one after the other; retain_grow_limit keeps them to a part of the window. Huge frames (hugetlb) cannot come
 * by pieces: there a step is memory at once, and shorter.
 *
 * The 2 MiB block in which each jemalloc arena keeps its own structures is memory from the start and hardly used, and there
 * are four arenas to a CPU: while the hooks are being installed those blocks are ordinary memory. The main thread is moved
 * to an arena that has no ordinary memory left from before: arena 0 always has, and one more where somebody connected to
 * the control socket already.
 */
#include "bridge/bridge.h"
#include "linux/linux.h"

#include <sublet/map.h>

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE_BYTES     ((size_t)4096)
#define GROW_LIMIT_MAX (64 * SUBLET_MIB)
#define GROW_HUGE_MAX  (8 * SUBLET_MIB) /* where a step is memory at once */
#define GROW_LIMIT_MIN (2 * SUBLET_MIB)

/* As in <jemalloc/jemalloc.h>, 5.0 to 5.3; a true result means refused. Not included: no package of it is needed. */
typedef struct hooks extent_hooks;
struct hooks {
	void *(*alloc)(extent_hooks *h, void *new_addr, size_t size, size_t alignment, bool *zero,
		       bool *commit, unsigned int arena);
	bool (*dalloc)(extent_hooks *h, void *addr, size_t size, bool committed, unsigned int arena);
	void (*destroy)(extent_hooks *h, void *addr, size_t size, bool committed, unsigned int arena);
	bool (*commit)(extent_hooks *h, void *addr, size_t size, size_t offset, size_t length,
		       unsigned int arena);
	bool (*decommit)(extent_hooks *h, void *addr, size_t size, size_t offset, size_t length,
			 unsigned int arena);
	bool (*purge_lazy)(extent_hooks *h, void *addr, size_t size, size_t offset, size_t length,
			   unsigned int arena);
	bool (*purge_forced)(extent_hooks *h, void *addr, size_t size, size_t offset, size_t length,
			     unsigned int arena);
	bool (*split)(extent_hooks *h, void *addr, size_t size, size_t size_a, size_t size_b, bool committed,
		      unsigned int arena);
	bool (*merge)(extent_hooks *h, void *addr_a, size_t size_a, void *addr_b, size_t size_b,
		      bool committed, unsigned int arena);
};

typedef int (*mallctl_fn)(const char *name, void *old, size_t *old_bytes, void *new, size_t new_bytes);

static mallctl_fn real_mallctl;
static _Atomic bool installing;
static _Atomic size_t kept_bytes; /* of ordinary memory that jemalloc may use and did not yet */
static _Atomic bool fell_back;    /* ordinary memory was given since the hooks are there */

static int bridge_mallctl(const char *name, void *old, size_t *old_bytes, void *new, size_t new_bytes);

static struct sublet_mm *engine(void)
{
	return atomic_load_explicit(&sublet__bridge.mm, memory_order_acquire);
}

/* Ordinary, zeroed memory; alignment is a power of two. */
static void *ordinary_alloc(size_t size, size_t alignment)
{
	size_t slack = alignment > PAGE_BYTES ? alignment - PAGE_BYTES : 0;
	char *whole, *start;

	if (size + slack < size)
		return NULL;
	whole = sublet__real.mmap(NULL, size + slack, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (whole == MAP_FAILED)
		return NULL;
	start = (char *)(((uintptr_t)whole + alignment - 1) & ~(uintptr_t)(alignment - 1));
	if (start != whole)
		(void)sublet__real.munmap(whole, (size_t)(start - whole));
	if (start + size != whole + size + slack)
		(void)sublet__real.munmap(start + size, (size_t)(whole + slack - start));
	return start;
}

/* Put fresh, ordinary memory over a range: only in a child of fork(), whose memory is its own. */
static bool ordinary_over(void *addr, size_t size)
{
	return sublet__real.mmap(addr, size, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == addr;
}

/* Widen [low, high), which mlockall() needs: the engine does not tell where its window is. */
static void note_range(uintptr_t start, uintptr_t end)
{
	uintptr_t seen = atomic_load_explicit(&sublet__bridge.low, memory_order_relaxed);

	/* Relaxed: both are read by the thread's own later calls or by others' that race anyway. */
	while ((seen == 0 || start < seen) &&
	       !atomic_compare_exchange_weak_explicit(&sublet__bridge.low, &seen, start, memory_order_relaxed,
						      memory_order_relaxed))
		;
	seen = atomic_load_explicit(&sublet__bridge.high, memory_order_relaxed);
	while (end > seen &&
	       !atomic_compare_exchange_weak_explicit(&sublet__bridge.high, &seen, end, memory_order_relaxed,
						      memory_order_relaxed))
		;
}

static void note_taken(void)
{
	/* Not written again and again: every thread that allocates comes by. */
	if (!atomic_load_explicit(&sublet__bridge.took_memory, memory_order_relaxed))
		atomic_store_explicit(&sublet__bridge.took_memory, true, memory_order_relaxed);
}

/* Whether memory comes and goes by jemalloc's own pages; huge frames come with the addresses. */
static bool is_by_page(void)
{
	return sublet__bridge.frame_bytes == PAGE_BYTES;
}

static void *alloc_lent(size_t size, size_t alignment, bool commit)
{
	void *addr = NULL;
	int err = commit ? sublet__engine_map(size, alignment, &addr)
			 : sublet__engine_reserve(size, alignment, &addr);

	if (err != 0)
		return NULL;
	note_range((uintptr_t)addr, (uintptr_t)addr + size);
	if (commit)
		note_taken();
	return addr;
}

/* So many bytes more of what jemalloc kept of its first mappings are used; at most, all of it. */
static void note_kept(size_t bytes)
{
	size_t kept = atomic_load_explicit(&kept_bytes, memory_order_relaxed);

	/* Relaxed: a number, and nothing else. */
	while (kept != 0) {
		size_t used = bytes < kept ? bytes : kept;

		if (atomic_compare_exchange_weak_explicit(&kept_bytes, &kept, kept - used,
							  memory_order_relaxed, memory_order_relaxed)) {
			sublet__arena_note_outside(sublet__bridge.arena, used);
			return;
		}
	}
}

static void *hook_alloc(extent_hooks *h, void *new_addr, size_t size, size_t alignment, bool *zero,
			bool *commit, unsigned int arena)
{
	void *addr = NULL;
	bool is_lent;

	(void)h, (void)arena;
	if (new_addr != NULL)
		return NULL; /* jemalloc would like to grow in place; it copes */
	is_lent = sublet__bridge_state() == SUBLET__OWNER_LENT && !atomic_load(&installing);
	if (is_lent) {
		*commit = *commit || !is_by_page();
		addr = alloc_lent(size, alignment, *commit);
		if (addr != NULL) {
			*zero = true; /* what is committed later is zeroed then */
			return addr;
		}
	}
	/* No addresses or no memory for the engine: the program need not suffer for it. */
	if (is_lent)
		atomic_store(&fell_back, true); /* before: the block may be split by another thread at once */
	addr = ordinary_alloc(size, alignment);
	if (addr == NULL)
		return NULL;
	if (is_lent)
		sublet__arena_note_outside(sublet__bridge.arena, size);
	else if (
		atomic_load(
			&installing)) /* structures of an arena: a huge page would be all of it, for little */
		(void)sublet__real.madvise(addr, size, MADV_NOHUGEPAGE);
	*zero = *commit = true;
	return addr;
}

/* The program has no use for it any more. */
static void forget(const void *addr, size_t size)
{
	if (sublet__sticky_forget(addr, size))
		sublet__linux_fork_again(sublet__bridge.arena);
	sublet__futex_forget(addr, size);
}

static bool hook_dalloc(extent_hooks *h, void *addr, size_t size, bool committed, unsigned int arena)
{
	size_t unit = sublet__bridge.unit_bytes;

	(void)h, (void)committed, (void)arena;
	if (sublet__bridge_owner(addr, size) != SUBLET__OWNER_LENT ||
	    (((uintptr_t)addr | size) & (unit - 1)) != 0)
		return true;
	forget(addr, size);
	return sublet__engine_unmap(addr, size) != 0;
}

static void hook_destroy(extent_hooks *h, void *addr, size_t size, bool committed, unsigned int arena)
{
	/* refused: those addresses are lost, as jemalloc says */
	(void)hook_dalloc(h, addr, size, committed, arena);
}

static bool hook_commit(extent_hooks *h, void *addr, size_t size, size_t offset, size_t length,
			unsigned int arena)
{
	char *start = (char *)addr + offset;

	(void)h, (void)size, (void)arena;
	switch (sublet__bridge_owner(start, length)) {
	case SUBLET__OWNER_LENT:
		note_taken();
		return sublet__engine_commit(start, length) != 0;
	case SUBLET__OWNER_CHILD:
	case SUBLET__OWNER_STUCK:
		return !ordinary_over(start, length);
	default:
		return true;
	}
}

static bool hook_decommit(extent_hooks *h, void *addr, size_t size, size_t offset, size_t length,
			  unsigned int arena)
{
	char *start = (char *)addr + offset;

	(void)h, (void)size, (void)arena;
	if (sublet__bridge_owner(start, length) != SUBLET__OWNER_LENT)
		return true;
	forget(start, length);
	return sublet__engine_decommit(start, length) != 0;
}

static bool hook_purge_lazy(extent_hooks *h, void *addr, size_t size, size_t offset, size_t length,
			    unsigned int arena)
{
	(void)h, (void)addr, (void)size, (void)offset, (void)length, (void)arena;
	return true;
}

static bool hook_purge_forced(extent_hooks *h, void *addr, size_t size, size_t offset, size_t length,
			      unsigned int arena)
{
	char *start = (char *)addr + offset;

	(void)h, (void)size, (void)arena;
	switch (sublet__bridge_owner(start, length)) {
	case SUBLET__OWNER_OTHER: /* ordinary memory, ordinary way */
		return sublet__real.madvise(start, length, MADV_DONTNEED) != 0;
	case SUBLET__OWNER_CHILD:
	case SUBLET__OWNER_STUCK:
		return !ordinary_over(start, length);
	default:
		return true;
	}
}

static bool hook_split(extent_hooks *h, void *addr, size_t size, size_t size_a, size_t size_b, bool committed,
		       unsigned int arena)
{
	(void)h, (void)size_b, (void)committed, (void)arena;
	if (sublet__bridge_state() != SUBLET__OWNER_LENT ||
	    sublet__bridge_owner(addr, size) != SUBLET__OWNER_OTHER)
		return false;
	/* The memory is of jemalloc's first mappings: jemalloc purges and forgets it, and asks for lent memory. */
	if (!atomic_load(&fell_back))
		return true;
	/* jemalloc takes the first part, and keeps or gives back the second. */
	note_kept(size_a);
	return false;
}

/* Lent memory and ordinary memory stay apart, lest a later call meet half of each. */
static bool hook_merge(extent_hooks *h, void *addr_a, size_t size_a, void *addr_b, size_t size_b,
		       bool committed, unsigned int arena)
{
	struct sublet_mm *mm = engine();

	(void)h, (void)committed, (void)arena;
	return mm == NULL ||
	       sublet__mm_contains(mm, addr_a, size_a) != sublet__mm_contains(mm, addr_b, size_b);
}

static extent_hooks hooks = {
	.alloc = hook_alloc,
	.dalloc = hook_dalloc,
	.destroy = hook_destroy,
	.commit = hook_commit,
	.decommit = hook_decommit,
	.purge_lazy = hook_purge_lazy,
	.purge_forced = hook_purge_forced,
	.split = hook_split,
	.merge = hook_merge,
};

/* ---- installing them ---- */

static bool get(const char *name, void *value, size_t bytes)
{
	return real_mallctl(name, value, &bytes, NULL, 0) == 0;
}

static bool set_arena(unsigned int arena, const char *what, void *value, size_t bytes)
{
	char name[64];

	(void)snprintf(name, sizeof(name), "arena.%u.%s", arena, what);
	return real_mallctl(name, NULL, NULL, value, bytes) == 0;
}

/* As of the last "epoch". */
static bool has_memory(unsigned int arena)
{
	static const char *const kinds[] = { "pactive", "pdirty", "pmuzzy", "retained" };
	size_t amount = 0;
	char name[64];

	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]) && amount == 0; i++) {
		(void)snprintf(name, sizeof(name), "stats.arenas.%u.%s", arena, kinds[i]);
		(void)get(name, &amount, sizeof(amount));
	}
	return amount != 0;
}

static bool hook_arena(unsigned int arena)
{
	size_t limit = (size_t)(sublet__bridge.settings.area_bytes / (is_by_page() ? 16 : 64));
	size_t limit_max = is_by_page() ? GROW_LIMIT_MAX : GROW_HUGE_MAX;
	extent_hooks *mine = &hooks;

	if (!set_arena(arena, "extent_hooks", &mine, sizeof(mine)))
		return false;
	if (limit > limit_max)
		limit = limit_max;
	if (limit < GROW_LIMIT_MIN)
		limit = GROW_LIMIT_MIN;
	/* refused under retain:false: no growth */
	(void)set_arena(arena, "retain_grow_limit", &limit, sizeof(limit));
	return true;
}

/*
 * What of the heap stays in ordinary memory: what is in use by now, or was and is dirty. jemalloc's own
 * structures are not the program's heap. What it kept of its first mappings is addresses without
 * memory, and would be cut up: hook_split().
 */
static void note_first_memory(void)
{
	uint64_t epoch = 1;
	size_t active = 0, dirty = 0, muzzy = 0, kept = 0;

	(void)real_mallctl("epoch", NULL, NULL, &epoch, sizeof(epoch));
	if (!get("stats.active", &active, sizeof(active)))
		return;
	(void)get("stats.arenas.4096.pdirty", &dirty, sizeof(dirty)); /* 4096: all arenas */
	(void)get("stats.arenas.4096.pmuzzy", &muzzy, sizeof(muzzy));
	(void)get("stats.retained", &kept, sizeof(kept));
	sublet__arena_note_outside(sublet__bridge.arena, active + (dirty + muzzy) * PAGE_BYTES);
	atomic_store_explicit(&kept_bytes, kept, memory_order_relaxed);
}

int sublet__hooks_find(void)
{
	const char *version = NULL;

	/* A program that has jemalloc built in stands in front of everybody; else libjemalloc is behind us. */
	real_mallctl = __extension__(mallctl_fn) dlsym(RTLD_DEFAULT, "mallctl");
	if (real_mallctl == bridge_mallctl)
		real_mallctl = __extension__(mallctl_fn) dlsym(RTLD_NEXT, "mallctl");
	if (real_mallctl == NULL)
		return -ENOSYS;
	if (!get("version", &version, sizeof(version)) || version[0] != '5' || version[1] != '.')
		return -EPROTO;
	return 0;
}

int sublet__hooks_install(void)
{
	unsigned int count = 0, hooked = 0, home = 1;

	if (!get("arenas.narenas", &count, sizeof(count)))
		return -EPROTO;
	atomic_store(&installing, true);
	for (unsigned int i = 0; i < count; i++)
		hooked += hook_arena(i); /* an arena that the program destroyed already is refused */
	atomic_store(&installing, false);
	if (hooked == 0)
		return -EPROTO;
	note_first_memory();
	while (home + 1 < count && has_memory(home))
		home++;
	if (hooked > 1)
		(void)real_mallctl("thread.arena", NULL, NULL, &home, sizeof(home));
	sublet__lockall_prepare();
	return 0;
}

/* The program's own: arenas that it creates with hooks of its own keep them, all others get ours. */
static int bridge_mallctl(const char *name, void *old, size_t *old_bytes, void *new, size_t new_bytes)
{
	unsigned int arena;
	int err;

	if (real_mallctl == NULL)
		(void)sublet__hooks_find();
	if (real_mallctl == NULL)
		return ENOENT;
	err = real_mallctl(name, old, old_bytes, new, new_bytes);
	if (err != 0 || new != NULL || old == NULL || *old_bytes != sizeof(arena) ||
	    strcmp(name, "arenas.create") != 0)
		return err;
	if (sublet__bridge_state() == SUBLET__OWNER_LENT) {
		memcpy(&arena, old, sizeof(arena));
		(void)hook_arena(arena);
	}
	return 0;
}

/* By another name, because "mallctl" means the program's own where it has one, even in this file. */
SUBLET__INTERPOSER int mallctl(const char *name, void *old, size_t *old_bytes, void *new, size_t new_bytes)
	__attribute__((alias("bridge_mallctl")));
