/* SPDX-License-Identifier: MIT */
/*
 * core/engine.h: the engine's structures, and which lock guards which field.
 *
 * One struct sublet_arena holds everything; there are no globals. Metadata is sized at creation:
 *   frames       16 bytes a frame                                          0.39 % of 4 KiB frames
 *   page tables   4 bytes a page of the windows, touched only where mapped 0.10 % where mapped once
 *   pageblocks   16 bytes + 32 bytes of cost tree a 2 MiB                  0.002 %
 */
#ifndef SUBLET_CORE_ENGINE_H
#define SUBLET_CORE_ENGINE_H

#include "core/arena.h"
#include "core/atomic.h"
#include "core/backoff.h"
#include "core/frame.h"
#include "core/lock.h"
#include "core/notifier.h"

#include <sublet/map.h>

#define ENGINE_NONE          UINT32_MAX
#define ENGINE_ORDER_MAX     9u         /* the buddy's largest folio: 512 frames */
#define ENGINE_BLOCK_PAGES   512u       /* pages of one page-table block: one lock */
#define ENGINE_PFN_MAX       (1u << 27) /* what a page-table entry can name: 512 GiB of 4 KiB frames */
#define ENGINE_GIVE_SEGMENTS 64u /* mapped by one call: small, for the stack of a thread inside malloc */
#define ENGINE_MMS_MAX       64u
#define ENGINE_CLAIMS_MAX    4096u
#define ENGINE_CLAIMS_SHIFT  16u /* log2 of the ids that a page of addresses of an arena stands for */
#define ENGINE_DEVICES_MAX   16u
#define ENGINE_CACHES        32u
#define ENGINE_CACHE_FOLIOS  13u                /* one cache is 64 bytes */
#define ENGINE_DEADLINE_NS   (1000 * SUBLET_MS) /* where the caller gives none */
#define ENGINE_CHILD_NS      (300 * SUBLET_MS)  /* a child of fork() that shares memory may exec or end */
#define ENGINE_GATE_NS       (250 * SUBLET_MS)  /* pins are held off for so long, then let in for as long */
#define ENGINE_EXCLUDED      2u /* kernel mappings that a range gains when children do not inherit its middle */
#define ENGINE_SHARED        (-EALREADY) /* inside the engine: shared with a child; -EBUSY for whoever called */

/* ---- page-table entries ---- */

/*
 * PRESENT: bits 5.. are the pfn. Otherwise bits 5.. say what the page is instead.
 *   0                  not mapped
 *   PTE_GONE           decommitted, no memory behind it
 *   PTE_DROPPED        discardable, contents given up, no memory behind it
 *   PTE_PLAIN          ordinary memory of the process (arena was full)
 *   PTE_RESERVED       as PTE_GONE, and never had memory: may get some along with its neighbours
 *
 *   from         to                          by
 *   not mapped   present, plain, reserved    map, reserve
 *   present      hole                        decommit
 *                dropped                     a claim, or a move that needs room
 *   hole         present                     commit
 *                gone                        its whole unit is holes
 *   gone         present, plain              commit
 *   dropped      present                     sublet_lock
 *   plain        plain hole                  decommit
 *   plain hole   plain                       commit
 *                gone                        its whole unit is holes
 *   reserved     present, plain              commit
 *                gone                        a commit got memory for a part of its unit only, and gave it back
 *   each         not mapped                  unmap
 *
 * where a hole is PRESENT or PLAIN with PTE_HOLE.
 */
#define PTE_PRESENT (1u << 0)
#define PTE_HOLE    (1u << 1) /* decommitted; the memory behind it waits for the rest of its unit */
#define PTE_LOCKED  (1u << 2) /* the program mlocked it */
/* given anew for dropped contents, and no sublet_lock has said so yet; of a hole: nobody wrote to it since it was
   zeroed */
#define PTE_FRESH     (1u << 3)
#define PTE_PROTECTED (1u << 4) /* the program changed its protection: its folio must not move */
#define PTE_FLAGS     0x1fu
#define PTE_PFN_SHIFT 5
#define PTE_GONE      (1u << PTE_PFN_SHIFT)
#define PTE_DROPPED   (2u << PTE_PFN_SHIFT)
#define PTE_PLAIN     (3u << PTE_PFN_SHIFT)
#define PTE_RESERVED  (4u << PTE_PFN_SHIFT)

static inline uint32_t pte_make(uint32_t pfn, uint32_t flags)
{
	return pfn << PTE_PFN_SHIFT | PTE_PRESENT | flags;
}

static inline uint32_t pte_pfn(uint32_t pte)
{
	return pte >> PTE_PFN_SHIFT;
}

static inline uint32_t pte_kind(uint32_t pte)
{
	return pte & ~PTE_FLAGS;
}

static inline bool pte_is_plain(uint32_t pte)
{
	return !(pte & PTE_PRESENT) && pte_kind(pte) == PTE_PLAIN;
}

/* ---- pageblocks ---- */

/* How the frames of a pageblock are accounted; the counts of one block always add up to its frames. */
enum sublet__account {
	ACCOUNT_FREE = 0, /* FREE */
	ACCOUNT_MOVABLE,  /* MOVABLE, BUSY, CACHED */
	ACCOUNT_DISCARDABLE,
	ACCOUNT_CLAIMED,
	ACCOUNT_HELD, /* MOVABLE with HELD or PROTECTED, PARKED */
	ACCOUNT_ISOLATED,
	ACCOUNTS,
};

#define ACCOUNT_BITS 10u

/* How a MOVABLE or DISCARDABLE folio is accounted. */
static inline enum sublet__account mapped_account(uint32_t word)
{
	if (word & (FRAME_HELD | FRAME_PROTECTED))
		return ACCOUNT_HELD;
	return word_state(word) == FRAME_DISCARDABLE ? ACCOUNT_DISCARDABLE : ACCOUNT_MOVABLE;
}

struct sublet__pageblock {
	sublet__a64 counts;   /* ACCOUNTS fields of 10 bits, changed by one addition */
	sublet__a32 isolated; /* isolations that overlap it; changed under the zone lock */
	sublet__a32 stuck;    /* claims that found something stuck here just now */
};

/* ---- zones ---- */

/* A window being claimed: on the claimer's stack, listed in its zone. Guarded by the zone lock. */
struct sublet__isolation {
	uint32_t first_pfn;
	uint32_t end_pfn;
	uint32_t isolated_frames; /* how many are ISOLATED already */
	struct sublet__isolation *next;
};

struct sublet__zone {
	/* Protects the free lists, FREE and ISOLATED frames, and isolations. Nests in everything. */
	struct sublet__lock lock;
	uint32_t first_pfn;
	uint32_t frames;
	uint32_t free_frames; /* on the lists */
	uint32_t head[ENGINE_ORDER_MAX + 1];
	uint32_t tail[ENGINE_ORDER_MAX + 1]; /* known-zero folios stand at the head, others at the tail */
	struct sublet__isolation *isolations;
};

/* A few folios of unit order, handed out and taken back without the zone lock. They are accounted
   MOVABLE, so that a hit changes no count; sublet_arena_stats shows them as free. */
struct sublet__cache {
	sublet__a32 top; /* 1 + pfn of one more folio, put and taken without the lock; 0: none; or shut */
	struct sublet__spin lock; /* protects the rest; nests in block locks, outside zone locks */
	uint32_t count;
	uint32_t pfn[ENGINE_CACHE_FOLIOS];
};

_Static_assert(sizeof(struct sublet__cache) == 64, "one cache line a cache");

/* ---- address spaces ---- */

struct sublet_mm {
	struct sublet_arena *arena;
	struct sublet__mm_config config;
	uint32_t index;
	uint32_t blocks;
	sublet__a64 pin_gate; /* pages that new pins stay away from: first << 32 | end; 0: none (pin.c) */
	sublet__a32 *pte;     /* [config.pages]; written under the block lock, read by pins without */
	const uint32_t *here; /* the arena's, beside what each pin looks at */
	struct sublet__lock *block;  /* [blocks]: page-table entries and MOVABLE folios of 512 pages; several
	                                  only by unmap, in ascending order */
	sublet__a32 *block_mappings; /* [blocks]; changed under the block lock, looked at without as a hint */
	struct sublet__lock va_lock; /* protects va_used, va_first, va_low; nests in nothing, holds nothing */
	uint64_t *va_used;           /* a bit a unit of addresses */
	uint64_t *va_first;          /* the same: a mapping begins there */
	uint32_t va_units;
	uint32_t va_low;           /* all units below are in use */
	sublet__a32 blocks_used;   /* blocks from here on were never mapped */
	sublet__a32 mapping_count; /* kernel mappings: sum of block_mappings */
	sublet__a32
		has_unlocked; /* 1: discardable memory was unlocked once; a hint for who counts mappings */
	sublet__a32 calm;     /* runs to move without pre-copy; a guess, so relaxed (move.c) */
	sublet__a32 fork_pending;   /* fork_begin without fork_end */
	sublet__a32 fork_epoch;     /* changes when a fork begins, and when it ends */
	sublet__a32 restored_epoch; /* as of which no child shares anything */
	sublet__a32 fork_held;      /* 1: something may be held */
	sublet__a32 child_pid;      /* of the last fork that is not restored */
	sublet__a64 longterm_pages; /* under long-term pins, each pin counted on its own */
	sublet__a64 longterm_limit_pages;
	sublet__a64 plain_pins; /* short pins with ordinary memory in them, which has no count of its own */
	/* Kernel mappings, counted in mapping_count, of what the last fork left out of its child. */
	sublet__a32 left_out_mappings;
	struct sublet__lock parked_lock; /* protects parked; nests in the block lock */
	uint32_t parked;                 /* list of PARKED folios by frame.a */
	struct sublet__notifiers notifiers;
};

/* ---- the arena ---- */

struct sublet__counters {
	sublet__a64 claims, claims_succeeded, claims_busy, claims_noroom, claims_held, windows_tried;
	sublet__a64 moves, moved_frames, recopied_frames, moves_refused, dropped_frames, zeroed_frames;
	sublet__a64 linearised_runs, forks;
};

struct sublet__histogram {
	sublet__a64 count, sum_ns, max_ns;
	sublet__a64 bucket[SUBLET_HISTOGRAM_BUCKETS];
};

/*
 * free -> being taken -> held -> going -> free; or being taken -> free: the claim failed. Being taken it has an id and no
 * frames, held it has both, and going it has no frames any more, so that it is released once.
 */
struct sublet__claim_slot {
	uint64_t id;    /* 0: free */
	uint32_t users; /* buffer objects over it: it is not released before they are gone */
	bool is_guests; /* of another process, which minds the end of the arena itself */
	uint32_t first_pfn;
	uint32_t frames;
	uint64_t since_ns;
	char owner[SUBLET_OWNER_BYTES];
};

/*
 * A pin that is listed. Taken by a compare-and-swap on state, read by anybody without a lock: a reader copies it, and
 * looks whether state is still what it was (core/pins.c). FREE -> WRITING -> HELD -> FREE.
 */
struct sublet__pin_record {
	sublet__a32 state; /* generation << 2 | PIN_FREE, PIN_WRITING, PIN_HELD */
	sublet__a32 what;  /* flags | mm index << 8 */
	sublet__a64 addr;
	sublet__a64 bytes;
	sublet__a64 since_ns;
	sublet__a64 owner[SUBLET_OWNER_BYTES / 8];
};

_Static_assert(sizeof(struct sublet__pin_record) == 64, "one cache line a record");

/* Where a thread found a free record last; a line each, so that threads do not share one. */
struct sublet__pin_hint {
	_Alignas(64) sublet__a32 at;
};

enum { ZONE_AREA = 0, ZONE_NORMAL = 1, ZONES = 2 };

struct sublet_arena {
	struct sublet__platform platform;
	const uint32_t *here; /* the platform's, or one that is always 1 */
	uint32_t frames_total;
	uint32_t unit_order; /* log2 of pages in a unit: 64 KiB, or one frame */
	uint32_t order_max;  /* largest folio that is mapped: fits in one run */
	uint32_t pageblock_order;
	void *linear;
	void *owner;
	size_t metadata_bytes;
	struct sublet__frame *frames;
	struct sublet__pageblock *pageblocks; /* of both zones */
	struct sublet__zone zone[ZONES];
	struct sublet__cache cache[ENGINE_CACHES];

	struct sublet__pin_record *pins; /* [pins_max] */
	uint32_t pins_max;
	sublet__a32 pins_high; /* no record from here on was ever taken */
	struct sublet__pin_hint pin_hint[ENGINE_CACHES];

	/* The window chooser (core/window.c): guarded by claim_lock but for the dirty bits. */
	uint32_t tree_leaves;   /* power of two >= pageblocks of the area */
	uint64_t *tree_sum;     /* [2 * tree_leaves] */
	uint64_t *tree_min;     /* [2 * tree_leaves] */
	sublet__a64 *dirty;     /* a bit a pageblock */
	sublet__a64 *dirty_top; /* a bit a word of dirty */

	/* Choosing and isolating a window is one step; the claim table too. Outermost; never held while
	   memory is copied or anybody is waited for. */
	struct sublet__lock claim_lock;
	uint32_t isolations; /* of all zones */
	struct sublet__claim_slot *claim;
	uint64_t claim_generation;

	struct sublet__lock mm_lock; /* protects mm[] growing */
	sublet__a32 mm_count;
	struct sublet_mm *mm[ENGINE_MMS_MAX];
	sublet__a32
		stays; /* 1: memory of an mm does not move (SUBLET__MM_STAYS), and is in the way of a claim for good */

	struct sublet__lock device_lock; /* protects device[] and each one's users; holds nothing */
	struct sublet_device *device[ENGINE_DEVICES_MAX];
	sublet__a32 devices_lost; /* closed, and could not be stopped: what they hold is held for good */
	sublet__a32 iopts;        /* that exist */

	sublet__a32 zero_wanted; /* 1: memory was freed since somebody began to look for what to zero */
	sublet__a32 emptying;    /* windows that workers empty right now */
	sublet__a32 zeroing;     /* folios taken out of the free lists to be zeroed */
	sublet__a64 lent_frames; /* mapped on frames: never more than the area has */
	sublet__a64 plain_pages;
	sublet__a64 outside_bytes;
	struct sublet__notifier_waits notifier_waits;
	struct sublet__counters counters;
	struct sublet__histogram claim_ns;
	struct sublet__histogram blocked_ns;
};

/* ---- small helpers ---- */

static inline uint64_t engine_now(const struct sublet_arena *arena)
{
	return arena->platform.ops->now_ns(arena->platform.ctx);
}

static inline uint32_t frames_bytes_shift(const struct sublet_arena *arena)
{
	return arena->platform.frame_shift;
}

static inline uint32_t unit_pages(const struct sublet_arena *arena)
{
	return 1u << arena->unit_order;
}

static inline struct sublet__pageblock *pageblock_of(struct sublet_arena *arena, uint32_t pfn)
{
	return &arena->pageblocks[pfn >> arena->pageblock_order];
}

static inline struct sublet__zone *zone_of(struct sublet_arena *arena, uint32_t pfn)
{
	return &arena->zone[pfn < arena->zone[ZONE_NORMAL].first_pfn ? ZONE_AREA : ZONE_NORMAL];
}

static inline uint32_t log2_floor(uint32_t v)
{
	return 31u - (uint32_t)__builtin_clz(v);
}

static inline uint32_t min_u32(uint32_t x, uint32_t y)
{
	return x < y ? x : y;
}

static inline uint32_t max_u32(uint32_t x, uint32_t y)
{
	return x > y ? x : y;
}

static inline void engine_lock(struct sublet_arena *arena, struct sublet__lock *lock)
{
	lock_take(&arena->platform, lock);
}

static inline void engine_unlock(struct sublet_arena *arena, struct sublet__lock *lock)
{
	lock_drop(&arena->platform, lock);
}

/* Order of the largest aligned folio that starts at `at` and has no more than `count` frames. */
static inline uint32_t order_fitting(uint32_t at, uint32_t count, uint32_t order_max)
{
	uint32_t order = min_u32(log2_floor(count), order_max);
	return at ? min_u32(order, (uint32_t)__builtin_ctz(at)) : order;
}

/* ---- core/zone.c ---- */
void sublet__zone_init(struct sublet_arena *arena, uint32_t which, uint32_t first_pfn, uint32_t frames,
		       bool zeroed);
/* Take a folio, BUSY, accounted MOVABLE, from the first zone in `zones` that has one. ENGINE_NONE: none. */
uint32_t sublet__folio_take(struct sublet_arena *arena, uint32_t order, const uint32_t zones[ZONES]);
/* The same for somebody who overwrites it: zeroed memory is left for those who want zeros. */
uint32_t sublet__folio_take_any(struct sublet_arena *arena, uint32_t order, const uint32_t zones[ZONES]);
/* Give back folios that lie end to end: all BUSY (or CLAIMED, PARKED), accounted `from`. */
void sublet__frames_put(struct sublet_arena *arena, uint32_t pfn, uint32_t frames, enum sublet__account from);
void sublet__owner_copy(char to[SUBLET_OWNER_BYTES], const char *from);
/* Head of the folio that pfn lies in; ENGINE_NONE if none is to be seen (a race: look again). */
static inline uint32_t sublet__frame_head(const struct sublet_arena *arena, uint32_t pfn)
{
	for (uint32_t order = 0; order <= arena->pageblock_order; order++) {
		uint32_t head = pfn & ~((1u << order) - 1);
		uint32_t word = a32_load_acquire(&arena->frames[head].word); /* pairs with frames' releases */
		if ((word & FRAME_HEAD) && head + (1u << word_order(word)) > pfn)
			return head;
	}
	return ENGINE_NONE;
}

/* Around the emptying of a window: who zeroes free memory is not woken by what that frees before it is over. */
void sublet__emptying_begin(struct sublet_arena *arena);
void sublet__emptying_end(struct sublet_arena *arena);
/* As sublet__frames_put, never into a cache; all frames lie in one zone. */
void sublet__folios_free(struct sublet_arena *arena, uint32_t pfn, uint32_t frames,
			 enum sublet__account from);
void sublet__account(struct sublet_arena *arena, uint32_t pfn, uint32_t frames, enum sublet__account from,
		     enum sublet__account to);
uint32_t sublet__account_get(const struct sublet__pageblock *pb, enum sublet__account what);
/* Take all free memory of [first, end) out of circulation; frames freed there later follow. */
void sublet__isolate(struct sublet_arena *arena, struct sublet__isolation *isolation);
/* Give the window back to the free lists. */
void sublet__isolate_undo(struct sublet_arena *arena, struct sublet__isolation *isolation);
/* The whole window is ISOLATED: make it one CLAIMED range of claim `slot`. */
void sublet__isolate_commit(struct sublet_arena *arena, struct sublet__isolation *isolation, uint32_t slot);
uint32_t sublet__isolated_frames(struct sublet_arena *arena, struct sublet__isolation *isolation);
/* Frames of ISOLATED folios that are not known to be zero; the counting ends with `enough`. */
uint32_t sublet__isolated_dirty(const struct sublet_arena *arena, uint32_t first_pfn, uint32_t end_pfn,
				uint32_t enough);
/* Zero what is ISOLATED in [first, end) and not known to be zero; returns the frames zeroed. */
uint32_t sublet__isolated_zero(struct sublet_arena *arena, uint32_t first_pfn, uint32_t end_pfn, bool warm);

/* ---- core/cache.c ---- */
uint32_t sublet__cache_take(struct sublet_arena *arena);
bool sublet__cache_put(struct sublet_arena *arena, uint32_t pfn);
uint32_t sublet__cache_frames(struct sublet_arena *arena); /* how many are cached, all together */
/* Inside an isolation: empty all caches of folios in [first, end), and let none into them before it ends. */
void sublet__cache_recall(struct sublet_arena *arena, uint32_t first_pfn, uint32_t end_pfn);
/* Empty all caches. */
void sublet__cache_drain(struct sublet_arena *arena);
/* The last isolation is over; claim_lock held, so that no other begins meanwhile. */
void sublet__cache_open(struct sublet_arena *arena);
/* Inside core/zone.c, for the caches: zone lock taken once for a batch. */
uint32_t sublet__zone_take_batch(struct sublet_arena *arena, uint32_t order, uint32_t *pfn, uint32_t count);

/* ---- core/longterm.c ---- */
/* Take, and give back, the references of a long-term pin, its pages moved out of areas before. As sublet_pin. */
int sublet__longterm_pin(struct sublet_mm *mm, uint32_t vpn, uint32_t pages, uint32_t flags);
void sublet__longterm_unpin(struct sublet_mm *mm, uint32_t vpn, uint32_t pages);

/* ---- core/pin.c ---- */

/*
 * Who has waited for the pins of these pages for waited_ns: hold new ones off, or let them in, as it is time for. Called
 * after each look; sublet__pins_let_in when the wait is over.
 */
void sublet__pins_hold_off(struct sublet_mm *mm, uint32_t vpn, uint32_t pages, uint64_t waited_ns);
void sublet__pins_let_in(struct sublet_mm *mm);

/* ---- core/pins.c ---- */
#define PIN_UNLISTED UINT32_MAX
/* Whether a pin is held of anything. Nobody pins or unpins meanwhile. */
bool sublet__pins_any(struct sublet_arena *arena);
uint32_t sublet__pins_max(uint32_t frames);
/* List a pin. Returns its record, or PIN_UNLISTED when all are taken. */
uint32_t sublet__pin_list_add(struct sublet_mm *mm, uint64_t addr, uint64_t bytes, uint32_t flags,
			      const char *owner);
/* Take it off the list; false: it is not there, or not any more. */
bool sublet__pin_list_remove(struct sublet_arena *arena, uint32_t record);
/* Who has pinned something of the pages, the oldest first; false: nobody who is listed. */
bool sublet__pin_owner(struct sublet_mm *mm, uint32_t vpn, uint32_t pages, char owner[SUBLET_OWNER_BYTES],
		       uint64_t *age_ns);

/* ---- core/claim.c ---- */
/* Keep a claim from being released, and say where it is; -EINVAL: it is not held. Once for each drop. */
int sublet__claim_hold(struct sublet_arena *arena, uint64_t id, uint64_t *offset_bytes, uint64_t *bytes);
void sublet__claim_drop(struct sublet_arena *arena, uint64_t id);

/* ---- core/window.c ---- */
uint32_t sublet__window_leaves(uint32_t pageblocks);
void sublet__window_init(struct sublet_arena *arena);
void sublet__window_touch(struct sublet_arena *arena, uint32_t pageblock);
#define WINDOW_STUCK   ((uint64_t)1 << 32) /* cost of a pageblock where something was stuck just now */
#define WINDOW_BLOCKED ((uint64_t)1 << 44) /* cost of a pageblock that cannot be emptied */
/*
 * The cheapest window of `count` pageblocks that starts at a multiple of `step`; claim_lock held.
 * Returns its first pageblock or ENGINE_NONE; *cost is its cost.
 */
uint32_t sublet__window_cheapest(struct sublet_arena *arena, uint32_t count, uint32_t step, uint64_t *cost);
uint32_t sublet__window_dearest(struct sublet_arena *arena, uint32_t count, uint32_t step, uint64_t *cost);

/* ---- core/mm.c ---- */
uint32_t sublet__mm_mappings_recount(struct sublet_mm *mm, uint32_t block);
/* The same for a small change: what [vpn, vpn + pages) of one block counts for before it, and after. */
uint32_t sublet__mm_mappings_of(const struct sublet_mm *mm, uint32_t vpn, uint32_t pages);
void sublet__mm_mappings_changed(struct sublet_mm *mm, uint32_t vpn, uint32_t pages, uint32_t before);
bool sublet__mm_lend(struct sublet_arena *arena, uint32_t pages); /* false: the area would be outgrown */
/* Whether the program mlocked any of [vpn, vpn + pages): then all of it is remapped locked. */
/* No child of any fork so far shares memory. */
bool sublet__mm_is_restored(const struct sublet_mm *mm);
/* Whether an entry of the range has the flag; block lock held. */
bool sublet__mm_flagged(const struct sublet_mm *mm, uint32_t vpn, uint32_t pages, uint32_t flag);
/* Check [addr, addr + bytes) and turn it into pages; -EINVAL. */
static inline int sublet__mm_range(const struct sublet_mm *mm, const void *addr, uint64_t bytes,
				   uint32_t *vpn, uint32_t *pages)
{
	uint32_t shift = frames_bytes_shift(mm->arena);
	uint64_t window = (uint64_t)mm->config.pages << shift;
	/* wraps to something large below base */
	uint64_t offset = (uint64_t)(uintptr_t)addr - mm->config.base;

	if (bytes == 0 || offset >= window || bytes > window - offset)
		return -EINVAL;
	*vpn = (uint32_t)(offset >> shift);
	*pages = (uint32_t)((offset + bytes - 1) >> shift) - *vpn + 1;
	return 0;
}

/* Give [vpn, vpn + pages) of one block memory, as much as one call can; block lock held. Returns the
   pages done (> 0) or -errno; a page table entry of the range gets pte_flags, folios word_flags. */
int sublet__mm_populate(struct sublet_mm *mm, uint32_t vpn, uint32_t pages, uint32_t pte_flags,
			uint32_t word_flags);
/* Populate, or give ordinary memory where SUBLET_PLAIN_OK allows; one block, block lock held. -errno */
int sublet__mm_give(struct sublet_mm *mm, uint32_t vpn, uint32_t pages, uint32_t flags);
/* Freeze every folio of a range of one block, and cut those that reach beyond it; block lock held.
   False: something is pinned, and nothing is frozen. */
bool sublet__mm_freeze(struct sublet_mm *mm, uint32_t vpn, uint32_t pages);
void sublet__mm_unfreeze(struct sublet_mm *mm, uint32_t vpn, uint32_t pages);
/* Whether a mapping ends where the unit at vpn begins. */
bool sublet__mm_ends_at(struct sublet_mm *mm, uint32_t vpn);
/* Cut the folio of pages [first, end) where it crosses an end of [vpn, vpn + pages), so that what lies inside can be
   treated alone; block lock held. False: it is pinned, and whole. */
bool sublet__mm_cut(struct sublet_mm *mm, uint32_t first, uint32_t end, uint32_t vpn, uint32_t pages);
/* A frozen range of one block, made inaccessible already, gives up its memory; entries become `entry`.
   Block lock held. */
void sublet__mm_strip(struct sublet_mm *mm, uint32_t vpn, uint32_t pages, uint32_t entry);

/* Call body for the part of [vpn, end) in each block, with `at` and `count` set. */
#define for_each_block(at, count, vpn, end)                                                                 \
	for (uint32_t at = (vpn), count;                                                                    \
	     at < (end) && (count = min_u32((end)-at, ENGINE_BLOCK_PAGES - at % ENGINE_BLOCK_PAGES), true); \
	     at += count)

static inline struct sublet__lock *block_lock_of(struct sublet_mm *mm, uint32_t vpn)
{
	return &mm->block[vpn / ENGINE_BLOCK_PAGES];
}

/* ---- core/move.c ---- */
enum sublet__move_to {
	MOVE_NORMAL_FIRST = 0, /* a claim's way: out of the area, as long as there is room */
	MOVE_AREA_FIRST,       /* torture and linearising: anywhere */
	MOVE_NORMAL_ONLY,      /* for a long-term pin (G3) */
	MOVE_AREA_ONLY,        /* to make room for one */
};

struct sublet__window_range {
	uint32_t first_pfn; /* only folios that overlap [first, end) are to move; first == end: any */
	uint32_t end_pfn;
	uint32_t first_vpn; /* only folios that lie in these pages as a whole; 0 and 0: any */
	uint32_t end_vpn;
	enum sublet__move_to to;
	bool nowait;
	uint64_t until_ns; /* a block's lock is waited for until then, at most; 0: as long as it takes */
	bool linearise;    /* only if kernel mappings merge by it, else -ENOSPC */
};
/*
 * Move the run around pfn (a MOVABLE folio) away. Returns frames moved, 0: the folio is not there
 * any more, or -EAGAIN (pinned, raced), -EBUSY (held or protected), -ENOMEM (no destination),
 * -ENOSPC (kernel mappings), -EADDRINUSE (the program's own userfaultfd), -errno of the platform.
 */
int64_t sublet__move_folio(struct sublet_arena *arena, uint32_t pfn,
			   const struct sublet__window_range *range);
/* Drop the discardable folio at pfn. Returns frames dropped, 0: gone already, or -errno. */
int64_t sublet__drop_folio(struct sublet_arena *arena, uint32_t pfn,
			   const struct sublet__window_range *range);
/* The same move for what is mapped at vpn. */
int64_t sublet__move_locked(struct sublet_mm *mm, uint32_t vpn, const struct sublet__window_range *range);
int64_t sublet__move_page(struct sublet_mm *mm, uint32_t vpn, const struct sublet__window_range *range);

/* ---- core/device.c ---- */
/* Reset the devices that have a job beyond its deadline: whoever waits for memory that a device uses calls it
   now and then. No lock held. */
void sublet__devices_check(struct sublet_arena *arena);

/* ---- core/invalidate.c ---- */
/*
 * Tell everybody whose range touches [vpn, vpn + pages) that it is about to change. 0: the change may be made, and
 * sublet__invalidate_end must follow it. -EAGAIN where !may_block: somebody declined; -EBUSY where may_block, UNMAP and
 * DISCARD only: somebody cannot stop a device. Then nothing is left to end, and the memory stays.
 * Callbacks run here, on this thread. The block lock may be held; nothing of the range may be blocked (L1).
 */
int sublet__invalidate_begin(struct sublet_mm *mm, struct sublet__invalidation *inv, uint32_t vpn,
			     uint32_t pages, uint32_t event, bool may_block);
/*
 * Between begin and end: tell once more all that are registered by now. -EAGAIN: somebody declined, and the change must
 * not be made; end follows in either case.
 */
int sublet__invalidate_again(struct sublet_mm *mm, struct sublet__invalidation *inv);
/* The change is visible in the page table, or was not made. */
void sublet__invalidate_end(struct sublet_mm *mm, struct sublet__invalidation *inv);

/* ---- core/notifier.c ---- */
/* Who, of those whose range touches the pages, runs its callback now, or declined last: copies its owner tag. false:
   nobody. */
bool sublet__notifier_decliner(struct sublet_mm *mm, uint32_t vpn, uint32_t pages,
			       char owner[SUBLET_OWNER_BYTES]);
/* How many touch the pages. */
uint32_t sublet__notifier_count(struct sublet_mm *mm, uint32_t vpn, uint32_t pages);
/* The mm ends: tell everybody, then remove all. Nobody can be added any more. */
void sublet__notifiers_exit(struct sublet_mm *mm);

/* ---- core/chaos.c ---- */
/* Merge kernel mappings of an mm that has used most of its budget; cheap when it has not. */
void sublet__mm_relieve(struct sublet_mm *mm);

/* ---- core/stats.c ---- */
void sublet__histogram_add(struct sublet__histogram *h, uint64_t ns);

#endif
