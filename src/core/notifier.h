/* SPDX-License-Identifier: MIT */
/*
 * core/notifier.h: the structures of notifiers, of their index, and of an invalidation under way.
 * core/invalidate.c has the protocol, core/notifier_index.c the index.
 *
 * Memory of one mm, all of it reserved on first use and never given back before the mm ends, so that a
 * reader with a handle never walks into freed memory:
 *   nodes    100 bytes a notifier, in segments of 65,536
 *   bins     4 bytes for each 4^k pages of the window at level k; a 64th more for counts. Touched only where there are
 *            notifiers
 */
#ifndef SUBLET_CORE_NOTIFIER_H
#define SUBLET_CORE_NOTIFIER_H

#include "core/atomic.h"
#include "core/lock.h"

#include <sublet/notifier.h>

#define NOTIFIER_SEGMENT_SHIFT 16u
#define NOTIFIER_SEGMENT_NODES (1u << NOTIFIER_SEGMENT_SHIFT)
#define NOTIFIER_SEGMENTS      257u /* one more than NOTIFIER_MAX fills: node 0, and removed ones still busy */
#define NOTIFIER_MAX           16777216u /* registered at once in one mm */
#define NOTIFIER_LEVELS        17u       /* bins of 1, 4, 16 .. 2^32 pages */
#define NOTIFIER_BATCH         16u       /* nodes that a walk hands out at once */
#define NOTIFIER_CHUNK_BINS    64u       /* bins that share a count */
#define NOTIFIER_NONE          0u        /* node 0 is never used, so that zeroed memory is an empty index */

/*
 * A node is
 *   free         generation is even
 *   registered   odd, active is 0
 *   marked       odd, active: an invalidation in its range has begun and not ended
 *   leaving      even, but a callback of it runs: it is not given out before that returns
 *
 * free -> registered, or marked at once where an invalidation is under way; registered <-> marked; each of the two ->
 * free, and marked -> leaving -> free where it is removed while its callback runs.
 *
 * What a walk looks at. Guarded by the mm's notifier lock; seq, active and generation are also looked at without it.
 */
struct sublet__notifier_node {
	uint32_t first; /* pages [first, end) */
	uint32_t end;
	uint32_t next;          /* in its bin */
	uint32_t prev;          /* NONE: the first of its bin */
	sublet__a64 seq;        /* invalidations that it was marked by */
	sublet__a32 active;     /* those that have not ended, NODE_WAITED when a reader is parked on it */
	sublet__a32 generation; /* odd: registered */
};

_Static_assert(sizeof(struct sublet__notifier_node) == 32, "two nodes a cache line");

#define NODE_WAITED (1u << 31)

/* What a callback needs. Guarded by the mm's notifier lock. */
struct sublet__notifier_client {
	int (*invalidate)(void *ctx, const struct sublet_invalidation *inv);
	void *ctx;
	uint64_t born;        /* the clock when it was added */
	sublet__a32 busy;     /* callbacks that run; NODE_WAITED when its remover is parked on it */
	uint32_t declined_at; /* number of its last refusal; 0: none */
	char owner[SUBLET_OWNER_BYTES];
};

_Static_assert(sizeof(struct sublet__notifier_client) == 64, "one cache line");

struct sublet__notifier_segment {
	struct sublet__notifier_node node[NOTIFIER_SEGMENT_NODES];
	struct sublet__notifier_client client[NOTIFIER_SEGMENT_NODES];
	uint32_t free[NOTIFIER_SEGMENT_NODES]; /* part of a stack that goes on in the next segment */
};

/* Ranges of at most 4^level pages, by the bin that their first page lies in. */
struct sublet__notifier_level {
	sublet__a32 *head; /* a word for each bin; changed under the lock, peeked at without to prefetch */
	uint8_t *used;     /* of a chunk of bins: how many are not empty, and CHUNK_TOUCHED */
	uint32_t nodes;
	void *memory; /* head and used, one reservation */
	size_t memory_bytes;
};

/* A walk over the nodes that overlap [first, end), a batch at a time: the batch, and where it goes on. */
struct sublet__notifier_walk {
	uint32_t first;
	uint32_t end;
	uint32_t count;               /* of hit[] */
	uint32_t hit[NOTIFIER_BATCH]; /* NONE: removed meanwhile */
	uint32_t node;                /* the next of the bin at hand; moved on when that node is removed */
	uint32_t level;               /* of the bins at hand */
	uint32_t levels;              /* a bit for each still to come */
	uint64_t bin;                 /* the next to look at; 64 bits: there may be 2^32 */
	uint64_t bin_end;
};

/*
 * One invalidation, on the stack of whoever changes memory. Listed in its mm from begin to end, so that whoever is
 * added or removed meanwhile finds it. Private to core/invalidate.c and core/notifier.c but for `what`.
 */
struct sublet__invalidation {
	struct sublet_invalidation what; /* constant */
	struct sublet__invalidation *next;
	struct sublet__invalidation *prev;
	struct sublet__notifier_walk walk;
	uint64_t id; /* notifiers born at or after it are none of its business */
	uint32_t phase;
	uint32_t marked;  /* nodes, by mark_all */
	bool batches;     /* more than one: walk.hit is not all that was marked */
	uint32_t running; /* the node whose callback runs now */
	/* The thread that runs the callback: what it was in before, and what it waits for (callbacks_wait). */
	struct sublet__invalidation *outer;
	struct sublet__invalidation *waits_next;
	struct sublet_mm *waits_mm;
	uint32_t waits_node;
};

/* The notifiers of one mm. */
struct sublet__notifiers {
	/* Protects all below but what says otherwise. Nests in block locks. Holds arena.notifier_waits.lock. */
	_Alignas(64) struct sublet__spin lock;
	sublet__a32 waiting;  /* threads that found the lock taken; a hint for walk_pause */
	sublet__a32 occupied; /* a bit for each level with nodes; peeked at without the lock to prefetch */
	uint32_t nodes_used;  /* nodes from here on were never used */
	uint32_t nodes_free;  /* on the stack of free nodes */
	uint32_t registered;
	uint32_t declines;                   /* counts refusals, never 0 once there was one */
	uint64_t clock;                      /* counts begins and ends of invalidations */
	uint64_t born_last;                  /* the youngest notifier's birth */
	struct sublet__invalidation *active; /* all that are listed */
	bool ended;                          /* the mm is going: nobody may be added */

	uint64_t invalidations;
	uint64_t callbacks;
	uint64_t declined;
	uint64_t touched_bytes; /* of bins */

	/* Protects the making of reservations, but not their use; nests in nothing, holds nothing. */
	struct sublet__lock growth_lock;
	sublet__a32 levels_ready; /* a bit for each level that has memory; set after its pointers */
	sublet__a32 nodes_ready;  /* nodes that have memory; raised after the segment's pointer is set */
	struct sublet__notifier_level level[NOTIFIER_LEVELS];
	struct sublet__notifier_segment *segment[NOTIFIER_SEGMENTS];
};

/* Callbacks that wait for callbacks on other threads, in one arena. */
struct sublet__notifier_waits {
	struct sublet__spin lock; /* protects the list and waits_* of its members; holds nothing */
	struct sublet__invalidation *list;
};

static inline struct sublet__notifier_node *notifier_node(const struct sublet__notifiers *n, uint32_t i)
{
	return &n->segment[i >> NOTIFIER_SEGMENT_SHIFT]->node[i & (NOTIFIER_SEGMENT_NODES - 1)];
}

static inline struct sublet__notifier_client *notifier_client(const struct sublet__notifiers *n, uint32_t i)
{
	return &n->segment[i >> NOTIFIER_SEGMENT_SHIFT]->client[i & (NOTIFIER_SEGMENT_NODES - 1)];
}

/* ---- core/notifier_index.c; the lock is held but where it says otherwise ---- */

/* Begin at the beginning of w->first, end. */
static inline void notifier_walk_start(const struct sublet__notifiers *n, struct sublet__notifier_walk *w)
{
	w->node = NOTIFIER_NONE;
	w->level = 0;
	w->levels = a32_load_relaxed(&n->occupied);
	w->bin = w->bin_end = 0;
}

/* Fill in the next batch, which may be empty. true: it is the last; else the lock should be dropped for a moment. */
bool sublet__notifier_walk_batch(const struct sublet__notifiers *n, struct sublet__notifier_walk *w);

/* A free node, or NONE: the pool must grow. */
uint32_t sublet__notifier_node_take(struct sublet__notifiers *n);
void sublet__notifier_node_put(struct sublet__notifiers *n, uint32_t i);
/* Put a node with its first and end set into the index, and take it out again. */
void sublet__notifier_link(struct sublet__notifiers *n, uint32_t i);
void sublet__notifier_unlink(struct sublet__notifiers *n, uint32_t i);

/* Memory for a range of so many pages, and for at least one more node than `nodes`; lock not held. -ENOMEM */
int sublet__notifier_grow_level(struct sublet_mm *mm, uint32_t pages);
int sublet__notifier_grow_nodes(struct sublet_mm *mm, uint32_t nodes);
void sublet__notifier_memory_free(struct sublet_mm *mm);

/* Load what the lock holder will need; the lock is not held, so what it sees may be wrong, and does no harm. */
void sublet__notifier_prefetch_query(const struct sublet__notifiers *n, uint32_t first, uint32_t end);
void sublet__notifier_prefetch_add(const struct sublet__notifiers *n, uint32_t first, uint32_t end);
void sublet__notifier_prefetch_remove(const struct sublet__notifiers *n, uint32_t i, uint64_t hint);
/* What tells prefetch_remove the bin of a range without looking at its node. */
uint64_t sublet__notifier_hint(uint32_t first, uint32_t pages);

/* Check the index from scratch, nothing else running: NULL, or what is wrong. */
const char *sublet__notifier_index_check(const struct sublet_mm *mm);

#endif
