/* SPDX-License-Identifier: MIT */
/*
 * How a move races with pins, a registration cache, a device and the program: docs/proofs.md says what this leaves out.
 *
 * Every step is named as in src/core: what stands between two `;` of a process is one step there, and what is in atomic
 * or d_step is one atomic instruction, one platform call, or a few that nobody else can tell apart. Lower-case names of
 * the engine's own words (ref, word, pte, node_active, node_seq) are its atomics. All that begins with ghost_ is the proof's.
 *
 *   mover       moves the one page, and tries again when it has to back out                 move.c, notifier.c
 *   short_user  pins for writing, writes through the frame, unpins                          pin.c
 *   cache_user  the same, but asks a registration cache where the frame is                  docs/adapters.md
 *   driver      a tracked bo: binds by the collision-retry sequence, lets its device write  bind.c, notifier.c
 *   hardware    the device walks its table whenever it likes, and keeps what it finds       iopt.c
 *   program     stores to the page
 *   other       takes freed memory, and has it for itself
 *
 * MUTANT_<x> makes one step wrong: the names are those of tests/spin/check_protocol.py.
 */

/* For ever; or so many times each, that a process which waits for nobody is seen at the end. */
#ifdef ROUNDS
#define again(n)  (n < ROUNDS) -> n++
#define done(n)   :: (n == ROUNDS) -> n = 0; break
#else
#define again(n)  true
#define done(n)
#endif

#define FRAMES 3
#define NONE   7

/* core/frame.h: one word, changed by compare-and-swap */
#define COUNT_MASK 3
#define PINNED     4
#define WRITTEN    8
#define FROZEN     16
byte ref[FRAMES];

#define FREE    0
#define BUSY    1
#define MOVABLE 2
byte word[FRAMES];

/* Whose bytes are in the frame. */
#define NOBODY 0
#define OURS   1
#define OTHERS 2
byte ghost_owner[FRAMES];

/*
 * Who writes, each its own part of the page. Of a part it matters only whether it is what was written there last: a bit
 * of the frame that it is in.
 */
#define PROGRAM 1
#define SHORT   2
#define CACHE   4
#define DEVICE  8
#define ALL     15
byte ghost_last[FRAMES];

byte pte;        /* mm->pte[]: where the engine says the page is */
byte map;        /* where the CPU finds it */
bool blocked;    /* accesses through the address sleep */
bool tracked;    /* stores leave a mark */
bool marked;
#define SLEEPERS 2
bool asleep[SLEEPERS];

bool block_lock, notifiers_lock, device_lock;

/*
 * The driver's notifier. Of seq a reader asks only whether it is what it was: one bit, set by whoever changes it,
 * cleared by the reader.
 */
#define WAITED 4
byte node_active;
bool node_seq;
bool parked;

byte cache = NONE; /* what the registration cache keeps; its lock is held for one step at a time */

/* the device */
byte iopt = NONE; /* its table */
byte tlb = NONE;  /* what it walked and keeps */
bool jobs;
#ifdef MUTANT_CALLBACK_EARLY
bool unmap_owed;
#endif

bool mover_done;

#define lock(l)   atomic { !l -> l = true }
#define unlock(l) l = false

inline store(f, who)
{
	ghost_last[0] = ghost_last[0] & ~who;
	ghost_last[1] = ghost_last[1] & ~who;
	ghost_last[2] = ghost_last[2] & ~who;
	ghost_last[f] = ghost_last[f] | who
}

/* Through a frame: it has to be the page's, now. Looks at what is there, then writes. */
inline access(f, who)
{
	d_step {
		assert(ghost_owner[f] == OURS); /* not given away (G2, G4) */
		assert(f == pte);               /* not left behind */
		assert(ghost_last[f] & who);    /* G1 */
		store(f, who)
	}
}

/* Through the address: sleeps while the page is blocked. */
inline touch(sleeper, is_store)
{
	do
	:: d_step {
		!blocked ->
		assert(ghost_last[map] & PROGRAM); /* G1 */
		if
		:: is_store -> store(map, PROGRAM); marked = tracked
		:: else
		fi
	   }; break
	:: atomic { blocked -> asleep[sleeper] = true }; !asleep[sleeper]
	od
}

/* ---- core/pin.c ---- */

#ifdef MUTANT_PIN_IGNORES_FROZEN
#define is_frozen(r) false
#else
#define is_frozen(r) ((r) & FROZEN)
#endif

/* A swap that fails only loads again: COARSE makes the load and the swap that succeeds one step. */
inline ref_take(f)
{
#ifdef COARSE
	atomic {
		ok = !is_frozen(ref[f]);
		if
		:: ok -> ref[f] = (ref[f] + 1) | WRITTEN | PINNED
		:: else
		fi
	}
#else
	r = ref[f];
	do
	:: atomic { is_frozen(r) -> ok = false; r = 0; break }
	:: atomic {
		!is_frozen(r) ->
		if
		:: ref[f] == r -> ref[f] = (r + 1) | WRITTEN | PINNED; ok = true; r = 0; break
		:: else -> r = ref[f]
		fi
	   }
	od
#endif
}

/* ok: it is pinned, at p. Not ok: PIN_SLOW. */
inline folio_pin()
{
	p = pte;
	ref_take(p);
#ifndef MUTANT_NO_RECHECK
	if
	:: atomic { ok -> ok = (word[p] == MOVABLE) };
		ok = ok && (pte == p);
		if
		:: ok
		:: else -> ref[p]--
		fi
	:: else
	fi
#endif
}

inline sublet_pin()
{
	folio_pin();
	if
	:: ok
	:: atomic { !ok && !block_lock -> block_lock = true }; /* folio_pin_slow */
		folio_pin();
		atomic {
			assert(ok); /* nothing moves while it is held */
			unlock(block_lock)
		}
	fi
}

inline sublet_unpin()
{
	d_step {
		assert(pte == p && (ref[p] & COUNT_MASK) && !(ref[p] & FROZEN)); /* G2 */
		ref[p]--;
		p = NONE
	}
}

#ifndef NO_SHORT
proctype short_user()
{
	byte p = NONE, r, n;
	bool ok;

end:	do
	:: again(n);
		sublet_pin();
		access(p, SHORT);
		sublet_unpin()
	done(n)
	od
}
#endif

/* The memory is pinned as long as the registration is in use, and no longer. */
#ifndef NO_CACHE
proctype cache_user()
{
	byte p = NONE, r, n, entry;
	bool ok;

end:	do
	:: again(n);
		sublet_pin();
		/* under the cache's lock */
		d_step {
			if
			:: cache == NONE -> cache = pte
			:: else
			fi;
			entry = cache
		};
		access(entry, CACHE);
		entry = 0;
		sublet_unpin()
	done(n)
	od
}
#endif

/* ---- core/bind.c, the device ---- */

inline node_wait_mark()
{
	lock(notifiers_lock);
	touch(1, false); /* the lock's holder may have its stack in lent memory */
	a = node_active;
	if
	:: a -> a = a | WAITED; node_active = a
	:: else
	fi;
	unlock(notifiers_lock)
}

inline park()
{
	if
	:: atomic { node_active == a -> parked = true }; !parked
	:: node_active != a
	fi
}

inline read_begin()
{
	do
	:: node_seq = false; /* seq -> *seq */
		a = node_active;
		if
		:: !a -> break
		:: else ->
			node_wait_mark();
			if
			:: a -> park()
			:: else
			fi;
			a = 0
		fi
	od
}

/* The lock is held, and dropped meanwhile. */
inline bind_tracked()
{
	unlock(device_lock);
	read_begin();
	/* pages_find */
	e = pte;
	if
#ifndef WALK_OF_FROZEN
	:: atomic { word[e] != MOVABLE || (ref[e] & FROZEN) -> e = NONE }
#endif
	:: else
	fi;
	atomic {
		lock(device_lock);
#ifdef MUTANT_NO_RETRY
		iopt = e;
#else
		/* read_retry */
		if
		:: e != NONE && !node_seq -> iopt = e
		:: else
		fi;
#endif
		e = NONE
	}
}

#ifndef NO_DEVICE
proctype driver()
{
	byte n, a, e = NONE;

end:	do
	:: again(n);
		lock(device_lock);
		do
		:: iopt == NONE -> bind_tracked()
		:: else -> break
		od;
		atomic { jobs = true; unlock(device_lock) };
		d_step {
			if
			:: tlb == NONE -> assert(iopt != NONE); tlb = iopt
			:: else
			fi
		};
		access(tlb, DEVICE);
		atomic { !device_lock -> jobs = false } /* one step under the lock */
#ifdef MUTANT_CALLBACK_EARLY
	:: unmap_owed -> d_step { unmap_owed = false; iopt = NONE; tlb = NONE }
#endif
	done(n)
	od
}

/* Walks whenever there is something to find. */
#ifndef COARSE
proctype hardware()
{
end:	do
	:: atomic { iopt != NONE && tlb == NONE -> tlb = iopt }
	od
}
#endif
#endif

/* ---- core/notifier.c ---- */

/* sublet__invalidate_begin: mark_all */
inline mark()
{
#ifdef MUTANT_MARK_ORDER
	atomic { lock(notifiers_lock); node_seq = true };
	d_step { node_active++; unlock(notifiers_lock) }
#else
	atomic { lock(notifiers_lock); node_active++ };
	d_step { node_seq = true; unlock(notifiers_lock) }
#endif
}

/* told: nobody declined */
inline tell()
{
	/* the cache's watch_invalidate */
	cache = NONE;
	/* bo_invalidate, which may not block */
	if
	:: atomic {
			!device_lock ->
			if
			:: jobs -> told = false
			:: else ->
				device_lock = true;
#ifdef MUTANT_CALLBACK_EARLY
				unmap_owed = true
#else
				iopt = NONE /* bo_clear */
#endif
			fi
		};
		if
		:: told ->
			d_step {
#ifndef MUTANT_CALLBACK_EARLY
#ifndef MUTANT_NO_FLUSH
				tlb = NONE; /* device_flush */
#endif
#endif
				unlock(device_lock)
			}
		:: else
		fi
#ifndef LIVENESS /* there it waits long enough */
	:: atomic { device_lock -> told = false } /* lock_try_long */
#endif
	fi
}

inline unmark()
{
	atomic {
		lock(notifiers_lock);
		node_active--;
		waited = (node_active == WAITED);
		if
		:: waited -> node_active = 0
		:: else
		fi;
		unlock(notifiers_lock)
	};
#ifndef MUTANT_LOST_WAKE
	if
	:: d_step { waited -> parked = false; waited = false } /* wake_all */
	:: else
	fi
#endif
}

/* ---- core/move.c ---- */

inline copy()
{
	assert(ghost_owner[dst] == NOBODY);
	ghost_last[dst] = ghost_last[src]
}

inline destinations_take()
{
	d_step {
		dst = 0;
		do
		:: word[dst] == FREE -> break
		:: else -> dst++
		od;
		word[dst] = BUSY
	}
}

inline destinations_put()
{
	d_step {
		word[dst] = FREE;
		ghost_last[dst] = 0
	}
}

/* WRITTEN and PINNED are cleared; told is false where somebody has it pinned */
inline pinned_clear()
{
	d_step {
		ref[src] = ref[src] & ~(WRITTEN | PINNED);
#ifndef MUTANT_PIN_BEFORE_CLEAR
		told = !(ref[src] & COUNT_MASK)
#endif
	}
}

/* told: frozen, its flags in r */
inline ref_freeze()
{
#ifdef MUTANT_FREEZE_OVER_PINS
	atomic { ref[src] = ref[src] | FROZEN; r = ref[src] }
#else
	r = ref[src];
	atomic {
		told = !(r & COUNT_MASK) && ref[src] == r;
		if
		:: told -> ref[src] = r | FROZEN
		:: else
		fi
	}
#endif
}

inline source_unfreeze()
{
#ifdef MUTANT_NO_UNFREEZE
	skip
#else
	ref[src] = ref[src] & ~FROZEN
#endif
}

/* The platform gives up, or not: told. */
inline may_fail()
{
	if
	:: true
#ifndef LIVENESS
	:: told = false
#endif
	fi
}

/* Puts everything as the program had it, and forgets track. */
inline unblock()
{
	d_step { blocked = false; tracked = false; marked = false; asleep[0] = false; asleep[1] = false }
}

inline run_precopy()
{
	if
	:: skip
	:: d_step { tracked = true; marked = false };
		d_step { copy(); precopied = true }
	fi
}

inline run_freeze()
{
	ref_freeze();
	if
	:: atomic { told ->
#ifndef MUTANT_NO_RECOPY
		dirty = (r & WRITTEN) != 0;
#endif
		if
#ifndef MUTANT_NO_TELL_AGAIN
#ifndef MUTANT_TELL_WHILE_BLOCKED
		:: r & PINNED -> r = 0; tell() /* sublet__invalidate_again */
#endif
#endif
		:: else -> r = 0
		fi };
		if
		:: !told -> source_unfreeze()
		:: else
		fi
	:: atomic { !told -> r = 0 }
	fi
}

inline run_publish()
{
	/* ghost: from here on the page is there */
	d_step { word[dst] = MOVABLE; ghost_owner[dst] = OURS };
	pte = dst;
	ref[dst] = 0
}

inline wake()
{
#ifdef MUTANT_NO_WAKE
	skip
#else
	d_step { asleep[0] = false; asleep[1] = false }
#endif
}

inline run_switch()
{
	may_fail();
#ifdef MUTANT_END_BEFORE_BLOCK
	if
	:: told -> unmark()
	:: else
	fi;
#endif
	if
	:: told ->
		blocked = true; /* block */
#ifdef MUTANT_TELL_WHILE_BLOCKED
		mark();
		unmark();
#endif
		d_step {
			dirty = dirty || marked;          /* dirty */
			assert(!(ref[src] & COUNT_MASK)); /* G2 */
			if
			:: dirty || !precopied -> copy() /* run_recopy, run_copy */
			:: else
			fi
		};
#ifndef MUTANT_END_BEFORE_BLOCK
		may_fail()
#endif
	:: else
	fi;
	if
	:: told ->
#ifdef MUTANT_END_BEFORE_REMAP
		unmark();
#endif
		d_step { map = dst; blocked = false; tracked = false; marked = false }; /* remap */
		run_publish();
		wake()
	:: else ->
		unblock();
		source_unfreeze()
	fi
}

inline run_told()
{
	run_precopy();
	run_freeze();
	if
	:: told -> run_switch()
	:: else ->
		if
		:: precopied -> unblock()
		:: else
		fi
	fi
}

/* No write was lost: each one is where the address leads to. */
inline ghost_check()
{
	d_step {
		assert(map == pte);
		assert(ghost_last[map] == ALL)
	}
}

inline sources_put()
{
	d_step {
		ref[src] = FROZEN;
		word[src] = FREE;
		ghost_owner[src] = NOBODY;
		ghost_last[src] = 0
	}
}

inline run_move()
{
	destinations_take();
	pinned_clear();
	if
	:: told ->
		mark();
		tell();
		if
		:: told -> run_told()
		:: else
		fi;
#if defined(MUTANT_END_BEFORE_REMAP) || defined(MUTANT_END_BEFORE_BLOCK)
		if
		:: told
		:: else -> unmark()
		fi
#else
		unmark()
#endif
	:: else
	fi;
	if
	:: told -> ghost_check(); sources_put()
	:: else -> destinations_put()
	fi
}

proctype mover()
{
	byte src, dst, r, n;
	bool told, precopied, dirty, waited;

end:	do
	:: again(n);
		do
		:: atomic {
				lock(block_lock);
				src = pte;
				told = !(ref[src] & COUNT_MASK) /* page_check */
			};
			if
			:: told -> run_move()
			:: else
			fi;
			d_step { src = 0; dst = 0; precopied = false; dirty = false; unlock(block_lock) };
			if
			:: atomic { told -> told = false; break }
			:: else
			fi
		od
	done(n)
	od;
	mover_done = true
}

/* ---- the others ---- */

#ifndef NO_PROGRAM
proctype program()
{
	byte n;

end:	do
	:: again(n); touch(0, true)
	done(n)
	od
}
#endif

/* Whoever gets a freed frame publishes it as the mover does, and frees it; a pin that comes late must not keep it. */
#ifndef NO_OTHER
proctype other()
{
	byte f;

end:	do
	:: atomic {
			if
			:: word[0] == FREE -> f = 0
			:: word[1] == FREE -> f = 1
			fi;
			word[f] = BUSY
		};
		d_step { word[f] = MOVABLE; ghost_owner[f] = OTHERS };
		ref[f] = 0;
		/* and frees it, unless somebody has it by mistake */
		atomic { ref[f] == 0 -> ref[f] = FROZEN };
		d_step { word[f] = FREE; ghost_owner[f] = NOBODY; f = 0 }
	od
}
#endif

init {
	atomic {
		ref[1] = FROZEN;
		ref[2] = FROZEN;
		word[0] = MOVABLE;
		ghost_owner[0] = OURS;
		ghost_last[0] = ALL;
		run mover();
#ifndef NO_SHORT
		run short_user();
#endif
#ifndef NO_CACHE
		run cache_user();
#endif
#ifndef NO_DEVICE
		run driver();
#ifndef COARSE
		run hardware();
#endif
#endif
#ifndef NO_PROGRAM
		run program();
#endif
#ifndef NO_OTHER
		run other();
#endif
	}
}

#ifdef LIVENESS
ltl mover_ends { <> mover_done }
#endif
