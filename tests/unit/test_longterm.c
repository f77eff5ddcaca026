/* SPDX-License-Identifier: MIT */
/* core/longterm.c: G2, G3, G5, G7, G8, G10, and pins beside a fork. */
#include "fixture.h"

#include <sublet/notifier.h>

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#define LONG_WRITE (SUBLET_PIN_LONGTERM | SUBLET_PIN_WRITE)

static int pin(struct fake *f, uint32_t vpn, uint32_t pages, uint32_t flags, const char *owner,
	       struct sublet_pin *p)
{
	return sublet_pin(f->engine_mm[0], addr_of(f, 0, vpn), pages * PAGE, flags, owner, p);
}

static bool in_area(struct fake *f, uint32_t vpn)
{
	return fake_pfn_of(&f->mm[0], vpn) < f->arena->zone[ZONE_AREA].frames;
}

static uint32_t count_in_area(struct fake *f, uint32_t vpn, uint32_t pages)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < pages; i++)
		n += in_area(f, vpn + i);
	return n;
}

static uint32_t uninherited(const struct fake *f, uint32_t vpn, uint32_t pages)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < pages; i++)
		n += f->mm[0].page[vpn + i].uninherited;
	return n;
}

/* G3: whatever runs meanwhile, no folio of the area ever has a long-term reference. */
static void check_area(struct fake *f)
{
	for (uint32_t pfn = 0; pfn < f->arena->zone[ZONE_AREA].frames; pfn++)
		if ((a32_load_acquire(&f->arena->frames[pfn].ref) & REF_LONG_MASK) &&
		    (a32_load_acquire(&f->arena->frames[pfn].word) & FRAME_HEAD))
			fail_msg("long-term pin in the area, frame %u", pfn);
}

/* What is pinned leaves the area, the bytes stay what they are, and neighbours stay where they are. */
static void longterm_moves_out(void **unused)
{
	static struct fake f;
	uint64_t seed = seed_get("longterm_moves_out");
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .virtual_time = true });
	for (uint32_t round = 0; round < 40; round++) {
		uint32_t pages = 1 + below(&seed, 1300), vpn = map_pages(&f, pages, SUBLET_MOVABLE);
		uint32_t first = below(&seed, pages), n = 1 + below(&seed, min_u32(pages - first, 400));
		struct sublet_pin p;
		fill(&f, 0, vpn, pages, round);
		uint32_t before = count_in_area(&f, vpn, pages), own = count_in_area(&f, vpn + first, n);
		assert_int_equal(pin(&f, vpn + first, n, LONG_WRITE, "rx", &p), 0);
		assert_int_equal(count_in_area(&f, vpn + first, n), 0);
		assert_int_equal(count_in_area(&f, vpn, pages), before - own);
		check_fill(&f, 0, vpn, pages, round);
		check_area(&f);
		assert_int_equal(sublet_unmap(f.engine_mm[0], addr_of(&f, 0, vpn), bytes_of(&f, pages)),
				 -EBUSY);
		assert_int_equal(sublet_unpin(&p), 0);
		assert_int_equal(sublet_unpin(&p), -EINVAL);
		assert_int_equal(sublet_unmap(f.engine_mm[0], addr_of(&f, 0, vpn), bytes_of(&f, pages)), 0);
	}
	fixture_close(&f);
}

/* G10: long-term pins all over the memory, and every claim of the area succeeds. */
static void longterm_never_blocks(void **unused)
{
	static struct fake f;
	struct sublet_pin pins[32];
	struct sublet_claim claim;
	(void)unused;

	fixture_open(&f, NULL); /* 8 pageblocks of area, 2 of normal zone */
	uint32_t vpn = map_pages(&f, 8 * 512 - 1024, SUBLET_MOVABLE);
	fill(&f, 0, vpn, 8 * 512 - 1024, 5);
	for (uint32_t i = 0; i < 32; i++)
		assert_int_equal(pin(&f, vpn + i * 90, 1 + i % 13, LONG_WRITE, NULL, &pins[i]), 0);
	for (uint32_t i = 0; i < 64; i++) {
		struct sublet_claim_options o = { SUBLET_OPTIONS(sublet_claim_options),
						  .flags = i % 2 ? SUBLET_CLAIM_DEAREST : 0 };
		assert_int_equal(claim_take(&f, (1 + i % 2) * 2 * SUBLET_MIB, &o, &claim), 0);
		check_area(&f);
		claim_give(&f, &claim);
	}
	check_fill(&f, 0, vpn, 8 * 512 - 1024, 5);
	for (uint32_t i = 0; i < 32; i++)
		assert_int_equal(sublet_unpin(&pins[i]), 0);
	fixture_close(&f);
}

/*
 * A page of every window held by a session-long reference: as short pins they break the claim, which names them; as
 * long-term ones they do not.
 */
static void longterm_the_failure_of_2013(void **unused)
{
	static struct fake f;
	struct sublet_claim_options o = { SUBLET_OPTIONS(sublet_claim_options),
					  .deadline_ns = 3 * SUBLET_MS };
	struct sublet_claim claim;
	struct sublet_pin pins[6];
	(void)unused;

	for (uint32_t flags = SUBLET_PIN_WRITE; flags <= LONG_WRITE; flags += SUBLET_PIN_LONGTERM) {
		fixture_open(&f, &(struct fake_options){ .area_frames = 6 * 512, .virtual_time = true });
		uint32_t vpn = map_pages(&f, 6 * 512, SUBLET_MOVABLE);
		for (uint32_t i = 0; i < 6; i++)
			assert_int_equal(pin(&f, vpn + i * 512 + 7 * i, 1, flags, "capture ring", &pins[i]),
					 0);
		int err = sublet_claim(f.arena, 2 * SUBLET_MIB, &o, &claim);
		assert_int_equal(err, flags & SUBLET_PIN_LONGTERM ? 0 : -EBUSY);
		if (err) {
			assert_true(claim.blocker_count > 0);
			for (uint32_t i = 0; i < claim.blocker_count; i++) {
				assert_int_equal(claim.blockers[i].kind, SUBLET_BLOCKER_PIN);
				assert_string_equal(claim.blockers[i].owner, "capture ring");
				assert_true(claim.blockers[i].age_ns >= o.deadline_ns / 2);
			}
		} else {
			assert_int_equal(sublet_release(f.arena, &claim), 0);
		}
		for (uint32_t i = 0; i < 6; i++)
			assert_int_equal(sublet_unpin(&pins[i]), 0);
		fixture_close(&f);
	}
}

/* G5: whichever call of the platform fails, nothing is pinned, charged or listed, and every byte is there. */
static void longterm_all_or_nothing(void **unused)
{
	static struct fake f;
	struct sublet_pin_info info;
	struct sublet_pin p;
	uint64_t next = 0;
	bool reached = true;
	(void)unused;

	for (int64_t at = 1; reached; at++, next = 0) {
		fixture_open(&f, &(struct fake_options){ .virtual_time = true });
		uint32_t vpn = map_pages(&f, 1500, SUBLET_MOVABLE);
		fill(&f, 0, vpn, 1500, 1);
		sublet_pin_limit(f.engine_mm[0], 1000 * PAGE);
		fake_fail(&f, FAKE_CAN_FAIL & ~(1u << FAKE_TRACK), at, -ENOMEM, false);
		int err = pin(&f, vpn + 300, 800, LONG_WRITE, "rx", &p);
		reached = fake_fail_end(&f);
		if (err) {
			assert_int_equal(err, -ENOMEM);
			assert_int_equal(p.longterm_limit_bytes, 0);
			assert_int_equal(a64_load_relaxed(&f.engine_mm[0]->longterm_pages), 0);
			assert_int_equal(sublet_pin_list(f.arena, &next, 1, &info), 0);
			assert_int_equal(sublet_unpin(&p), -EINVAL);
			assert_int_equal(uninherited(&f, vpn, 1500), 0);
		} else {
			assert_int_equal(count_in_area(&f, vpn + 300, 800), 0);
			assert_int_equal(sublet_unpin(&p), 0);
		}
		check_fill(&f, 0, vpn, 1500, 1);
		assert_int_equal(sublet_unmap(f.engine_mm[0], addr_of(&f, 0, vpn), bytes_of(&f, 1500)), 0);
		fixture_close(&f);
	}
}

static void longterm_refused(void **unused)
{
	static struct fake f;
	struct sublet_pin p, q, s;
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .virtual_time = true });
	uint32_t vpn = map_pages(&f, 500, SUBLET_MOVABLE); /* 512 addresses */
	uint32_t cache = map_pages(&f, 64, SUBLET_DISCARDABLE);

	sublet_pin_limit(f.engine_mm[0], 100 * PAGE);
	assert_int_equal(pin(&f, vpn, 60, LONG_WRITE, NULL, &p), 0);
	/* each pin counts on its own */
	assert_int_equal(pin(&f, vpn + 30, 41, LONG_WRITE, NULL, &q), -ENOMEM);
	assert_int_equal(q.longterm_bytes, 60 * PAGE);
	assert_int_equal(q.longterm_limit_bytes, 100 * PAGE);
	assert_int_equal(pin(&f, vpn + 30, 40, LONG_WRITE, NULL, &q), 0);
	assert_int_equal(sublet_unpin(&p), 0);
	check_area(&f);
	assert_int_equal(count_in_area(&f, vpn + 30, 40), 0);
	assert_int_equal(sublet_unpin(&q), 0);
	sublet_pin_limit(f.engine_mm[0], 100000 * PAGE);

	/* A short pin in the way: waited for, for a second; not at all with NOWAIT; and not where it is out already. */
	assert_int_equal(pin(&f, vpn + 200, 1, SUBLET_PIN_READ, NULL, &s), 0);
	assert_int_equal(pin(&f, vpn + 200, 4, LONG_WRITE | SUBLET_PIN_NOWAIT, NULL, &p), -EAGAIN);
	uint64_t before = engine_now(f.arena);
	assert_int_equal(pin(&f, vpn + 190, 40, LONG_WRITE, NULL, &p), -EBUSY);
	assert_in_range(engine_now(f.arena) - before, SUBLET_SEC, SUBLET_SEC + 10 * SUBLET_MS);
	assert_int_equal(sublet_unpin(&s), 0);
	assert_int_equal(pin(&f, vpn + 190, 40, LONG_WRITE | SUBLET_PIN_NOWAIT, NULL, &p), 0);
	assert_int_equal(pin(&f, vpn + 200, 1, SUBLET_PIN_READ, NULL, &s), 0);
	assert_int_equal(pin(&f, vpn + 195, 20, LONG_WRITE | SUBLET_PIN_NOWAIT, NULL, &q), 0);
	assert_int_equal(sublet_unpin(&s), 0);
	assert_int_equal(sublet_unpin(&q), 0);
	assert_int_equal(sublet_unpin(&p), 0);

	/* No memory, unlocked memory, plain memory; more than the normal zone has. */
	assert_int_equal(pin(&f, vpn + 490, 13, LONG_WRITE, NULL, &p), -EFAULT);
	assert_int_equal(sublet_unlock(f.engine_mm[0], addr_of(&f, 0, cache), 64 * PAGE), 0);
	assert_int_equal(pin(&f, cache, 1, LONG_WRITE, NULL, &p), -EFAULT);
	uint32_t large = map_pages(&f, 1400, SUBLET_MOVABLE);
	assert_int_equal(pin(&f, large, 1400, LONG_WRITE, NULL, &p), -ENOMEM);
	assert_int_equal(p.longterm_limit_bytes, 0);
	uint32_t rest = map_pages(&f, 3 * 512, SUBLET_MOVABLE);
	void *plain;
	assert_int_equal(sublet_map(f.engine_mm[0], 1024 * PAGE, SUBLET_MOVABLE | SUBLET_PLAIN_OK, &plain),
			 0);
	assert_int_equal(fake_kind_of(&f.mm[0], vpn_of(&f, 0, plain) + 1023), FAKE_PLAIN);
	assert_int_equal(sublet_pin(f.engine_mm[0], plain, 1024 * PAGE, LONG_WRITE, NULL, &p), -EFAULT);
	assert_int_equal(pin(&f, rest, 8, LONG_WRITE, NULL, &p), 0);
	assert_int_equal(sublet_unpin(&p), 0);
	fixture_close(&f);
}

struct during_move {
	struct fake *f;
	uint32_t vpn;
	int err;
};

static void pin_during_move(void *arg, enum fake_op op, struct fake_mm *mm, uint32_t vpn, uint32_t pages)
{
	struct during_move *d = arg;
	struct sublet_pin p;
	(void)mm, (void)vpn, (void)pages;

	if (op == FAKE_TRACK) /* not blocked yet: L1 is not what is tried here */
		d->err = pin(d->f, d->vpn, 1, LONG_WRITE | SUBLET_PIN_NOWAIT, NULL, &p);
}

/* G7: while somebody moves memory of the same block, NOWAIT does not wait for that. */
static void longterm_nowait(void **unused)
{
	static struct fake f;
	struct sublet__window_range out = { .to = MOVE_NORMAL_ONLY };
	(void)unused;

	fixture_open(&f, NULL);
	uint32_t vpn = map_pages(&f, 64, SUBLET_MOVABLE);
	struct during_move d = { &f, vpn + 32, 1 };
	f.hook_arg = &d;
	f.hook = pin_during_move;
	assert_true(sublet__move_page(f.engine_mm[0], vpn, &out) > 0);
	f.hook = NULL;
	assert_int_equal(d.err, -EAGAIN);
	fixture_close(&f);
}

/* What begins a folio and is decommitted is not mapped, though there is memory behind it. */
static void longterm_of_a_hole(void **unused)
{
	static struct fake f;
	struct sublet_pin p;
	(void)unused;

	fixture_open(&f, NULL);
	uint32_t vpn = map_pages(&f, 64, SUBLET_MOVABLE);
	assert_int_equal(sublet_decommit(f.engine_mm[0], addr_of(&f, 0, vpn + 3), PAGE), 0);
	assert_int_equal(pin(&f, vpn + 3, 2, LONG_WRITE, NULL, &p), -EFAULT);
	assert_int_equal(pin(&f, vpn + 4, 2, LONG_WRITE, NULL, &p), 0);
	assert_int_equal(sublet_unpin(&p), 0);
	fixture_close(&f);
}

/* The reference that cannot be taken is the last of several: those before it are given back. */
static void longterm_counts_out(void **unused)
{
	static struct fake f;
	struct sublet_pin p, q;
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .virtual_time = true });
	uint32_t vpn = map_pages(&f, 64, SUBLET_MOVABLE);
	assert_int_equal(pin(&f, vpn + 16, 16, LONG_WRITE, NULL, &p), 0);
	struct sublet__frame *full = &f.arena->frames[fake_pfn_of(&f.mm[0], vpn + 16)];
	uint32_t ref = a32_load_relaxed(&full->ref);
	a32_store_relaxed(&full->ref, ref | REF_LONG_MASK); /* as if very many had pinned it */
	assert_int_equal(pin(&f, vpn, 32, LONG_WRITE, NULL, &q), -EBUSY);
	const struct sublet__frame *first = &f.arena->frames[fake_pfn_of(&f.mm[0], vpn)];
	assert_int_equal(a32_load_relaxed(&first->ref) & REF_COUNT_MASK, 0);
	assert_int_equal(a32_load_relaxed(&full->ref) & REF_LONG_MASK, REF_LONG_MASK);
	assert_false(f.mm[0].page[vpn].uninherited);
	a32_store_relaxed(&full->ref, ref);
	assert_int_equal(sublet_unpin(&p), 0);
	fixture_close(&f);
}

/* There is room, but in so many pieces that the kernel mappings do not suffice: no room, to who pins. */
static void longterm_in_too_many_pieces(void **unused)
{
	static struct fake f;
	static struct sublet_pin single[512];
	struct sublet_pin p;
	(void)unused;

	fixture_open(&f, &(struct fake_options){
				 .normal_frames = 512, .mapping_limit = 600, .virtual_time = true });
	uint32_t vpn = map_pages(&f, 512, SUBLET_MOVABLE), run = map_pages(&f, 64, SUBLET_MOVABLE);
	sublet_pin_limit(f.engine_mm[0], 4096 * PAGE);
	for (uint32_t i = 0; i < 512; i++)
		assert_int_equal(pin(&f, vpn + i, 1, LONG_WRITE, NULL, &single[i]), 0);
	for (uint32_t i = 0; i < 512; i += 2)
		assert_int_equal(sublet_unpin(&single[i]), 0);
	assert_int_equal(pin(&f, run, 64, LONG_WRITE, NULL, &p), -ENOMEM);
	for (uint32_t i = 1; i < 512; i += 2)
		assert_int_equal(sublet_unpin(&single[i]), 0);
	fixture_close(&f);
}

/*
 * The kernel will not split its mappings any more. Room can be made again and again, which helps nothing: the time for it
 * is bounded (G7), and all is as it was (G5).
 */
static void longterm_no_mappings(void **unused)
{
	static struct fake f;
	struct sublet_pin p;
	(void)unused;

	fixture_open(&f, NULL);
	uint32_t vpn = map_pages(&f, 700, SUBLET_MOVABLE);
	fill(&f, 0, vpn, 700, 4);
	sublet_pin_limit(f.engine_mm[0], 1000 * PAGE);
	fake_fail(&f, 1u << FAKE_INHERIT, 1, -ENOMEM, true);
	uint64_t start = wall_ns();
	assert_int_equal(pin(&f, vpn, 600, LONG_WRITE, NULL, &p), -ENOMEM);
	assert_true(wall_ns() - start < 20 * SUBLET_SEC); /* a second, and what the machine does beside it */
	assert_true(fake_fail_end(&f));
	assert_int_equal(uninherited(&f, vpn, 700), 0);
	check_fill(&f, 0, vpn, 700, 4);
	assert_int_equal(sublet_unmap(f.engine_mm[0], addr_of(&f, 0, vpn), bytes_of(&f, 700)), 0);
	fixture_close(&f);
}

/* Movable memory that claims moved to the normal zone makes room for long-term pins. */
static void longterm_makes_room(void **unused)
{
	static struct fake f;
	struct sublet_claim claim;
	struct sublet_pin p;
	(void)unused;

	fixture_open(&f, NULL);
	uint32_t vpn = map_pages(&f, 8 * 512, SUBLET_MOVABLE);
	fill(&f, 0, vpn, 8 * 512, 3);
	sublet_pin_limit(f.engine_mm[0], 2 * 512 * PAGE);
	/* the normal zone is full of it now */
	assert_int_equal(claim_take(&f, 2 * 2 * SUBLET_MIB, NULL, &claim), 0);
	claim_give(&f, &claim);
	assert_int_equal(count_in_area(&f, vpn, 8 * 512), 6 * 512);
	uint32_t at = vpn;
	while (!in_area(&f, at) || !in_area(&f, at + 700))
		at++;
	assert_int_equal(pin(&f, at, 700, LONG_WRITE, NULL, &p), 0);
	assert_int_equal(count_in_area(&f, at, 700), 0);
	check_fill(&f, 0, vpn, 8 * 512, 3);
	assert_int_equal(sublet_unpin(&p), 0);
	fixture_close(&f);
}

/* A pin holds no more than its pages: the memory beside them, in the same folio before, can be unmapped. */
static void longterm_holds_no_neighbour(void **unused)
{
	static struct fake f;
	struct sublet__window_range out = { .to = MOVE_NORMAL_ONLY };
	struct sublet_pin p;
	(void)unused;

	for (uint32_t in_normal = 0; in_normal < 2; in_normal++) {
		fixture_open(&f, &(struct fake_options){ .virtual_time = true });
		uint32_t a = map_pages(&f, 32, SUBLET_MOVABLE), b = map_pages(&f, 32, SUBLET_MOVABLE);
		assert_int_equal(b, a + 32);
		if (in_normal) /* one folio of both mappings, as a claim may have left them */
			assert_int_equal(sublet__move_page(f.engine_mm[0], a, &out), 64);
		assert_int_equal(pin(&f, a + 20, 12, LONG_WRITE, NULL, &p), 0);
		assert_int_equal(sublet_unmap(f.engine_mm[0], addr_of(&f, 0, b), 32 * PAGE), 0);
		assert_int_equal(sublet_unmap(f.engine_mm[0], addr_of(&f, 0, a), 32 * PAGE), -EBUSY);
		assert_int_equal(sublet_unpin(&p), 0);
		fixture_close(&f);
	}
}

/* Memory that was decommitted under a pin is its owner's again once that is gone (G8). */
static void longterm_decommitted(void **unused)
{
	static struct fake f;
	struct sublet_pin p;
	(void)unused;

	fixture_open(&f, NULL);
	uint32_t vpn = map_pages(&f, 64, SUBLET_MOVABLE);
	void *addr = addr_of(&f, 0, vpn);
	assert_int_equal(pin(&f, vpn + 8, 40, LONG_WRITE, NULL, &p), 0);
	assert_int_equal(sublet_decommit(f.engine_mm[0], addr, 64 * PAGE), 0);
	assert_int_equal(sublet_unpin(&p), 0);
	assert_int_equal(sublet_commit(f.engine_mm[0], addr, 64 * PAGE, 0), 0);
	check_zero(&f, 0, vpn, 64);
	assert_int_equal(sublet_unmap(f.engine_mm[0], addr, 64 * PAGE), 0);
	fixture_close(&f);
}

struct greedy {
	struct fake *f;
	uint32_t vpn;
	_Atomic bool stop;
};

static void *greedy_main(void *arg)
{
	struct greedy *g = arg;
	struct sublet_pin p;

	while (!atomic_load(&g->stop))
		if (pin(g->f, g->vpn, 64, LONG_WRITE, NULL, &p) != -ENOMEM)
			fail_msg("beyond the limit");
	return NULL;
}

/* Who asks for more than the limit allows, and is refused, takes nothing from others that stay within it. */
static void longterm_limit_and_others(void **unused)
{
	static struct fake f;
	struct greedy g = { .f = &f };
	struct sublet_pin p;
	pthread_t thread;
	uint32_t refused = 0;
	(void)unused;

	fixture_open(&f, NULL);
	g.vpn = map_pages(&f, 64, SUBLET_MOVABLE);
	sublet_pin_limit(f.engine_mm[0], 32 * PAGE);
	threads_begin();
	assert_int_equal(pthread_create(&thread, NULL, greedy_main, &g), 0);
	for (uint64_t until = wall_ns() + 300 * SUBLET_MS; wall_ns() < until;) {
		int err = pin(&f, g.vpn, 32, LONG_WRITE, NULL, &p);
		refused += err == -ENOMEM;
		if (!err && sublet_unpin(&p))
			fail_msg("unpin");
	}
	atomic_store(&g.stop, true);
	pthread_join(thread, NULL);
	threads_end();
	assert_int_equal(refused, 0);
	fixture_close(&f);
}

/* ---- fork ---- */

/* Memory under a long-term pin stays shared with the device, and no child gets it; before and after, it does. */
static void longterm_and_fork(void **unused)
{
	static struct fake f;
	(void)unused;

	for (uint32_t when = 0; when < 3;
	     when++) { /* unpinned before the fork is over, after it, or after restore */
		struct sublet_pin p;
		struct fake_child child, second;
		fixture_open(&f, &(struct fake_options){ .virtual_time = true });
		struct sublet_mm *mm = f.engine_mm[0];
		uint32_t vpn = map_pages(&f, 700, SUBLET_MOVABLE);
		fill(&f, 0, vpn, 700, 9);
		assert_int_equal(pin(&f, vpn + 100, 500, LONG_WRITE, NULL, &p), 0);
		assert_int_equal(fork_begin(mm), 0);
		if (when == 0) {
			static const struct sublet__window_range any = { .to = MOVE_AREA_FIRST };
			assert_int_equal(sublet_unpin(&p), 0);
			/* A remap would make it inherited again, and shared with the child. */
			assert_int_equal(sublet__move_page(mm, vpn + 300, &any), -EAGAIN);
		}
		fake_child_fork(&child, &f.mm[0]); /* complains of every shared page that it would get */
		sublet__mm_fork_end(mm, 77);
		assert_int_equal(child.frame[vpn + 100], 0);
		assert_int_not_equal(child.frame[vpn + 99], 0);
		assert_int_equal(fake_kind_of(&f.mm[0], vpn + 300), FAKE_SHARED);
		fake_frame_write(&f, fake_pfn_of(&f.mm[0], vpn + 300), 3, 4711); /* the device */
		uint64_t value = 0;
		assert_true(fake_read(&f.mm[0], vpn + 300, 3, &value));
		assert_int_equal(value, 4711);
		if (when == 1)
			assert_int_equal(sublet_unpin(&p), 0);
		assert_int_equal(fake_child_changed(&child), 0);
		fake_child_exit(&child);
		assert_int_equal(sublet__mm_fork_restore(mm, sublet__mm_fork_epoch(mm)), 0);
		if (when == 2)
			assert_int_equal(sublet_unpin(&p), 0);

		assert_int_equal(fork_begin(mm), 0);
		fake_child_fork(&second, &f.mm[0]);
		sublet__mm_fork_end(mm, 78);
		for (uint32_t i = 0; i < 700; i++)
			assert_int_not_equal(second.frame[vpn + i], 0);
		assert_int_equal(pin(&f, vpn, 1, LONG_WRITE, NULL, &p), -EBUSY); /* a child shares it */
		/* in the normal zone */
		assert_int_equal(pin(&f, vpn + 100, 1, LONG_WRITE, NULL, &p), -EBUSY);
		fake_child_exit(&second);
		assert_int_equal(sublet__mm_fork_restore(mm, sublet__mm_fork_epoch(mm)), 0);
		fixture_close(&f);
	}
}

/* A folio is inherited again when its last pin goes, all of it, whichever part of it that one was of. */
static void inherited_again(void **unused)
{
	static struct fake f;
	struct sublet_pin all, part;
	(void)unused;

	for (uint32_t from = 0; from < 16; from += 5) {
		fixture_open(&f, NULL);
		uint32_t vpn = map_pages(&f, 64, SUBLET_MOVABLE);
		assert_int_equal(pin(&f, vpn, 16, LONG_WRITE, NULL, &all), 0);
		assert_int_equal(pin(&f, vpn + from, 1, LONG_WRITE, NULL, &part), 0);
		assert_int_equal(uninherited(&f, vpn, 64), 16);
		assert_int_equal(sublet_unpin(&all), 0);
		assert_int_equal(uninherited(&f, vpn, 64), 16);
		assert_int_equal(sublet_unpin(&part), 0);
		assert_int_equal(uninherited(&f, vpn, 64), 0);

		/* It is where it should be now: pinned again, nothing moves, and all is as before in the end. */
		uint64_t mappings = stats_of(&f).mapping_count;
		assert_int_equal(pin(&f, vpn, 16, LONG_WRITE, NULL, &all), 0);
		assert_true(stats_of(&f).mapping_count >
			    mappings); /* what is not inherited is mapped apart */
		assert_int_equal(sublet_unpin(&all), 0);
		assert_int_equal(stats_of(&f).mapping_count, mappings);

		/* Two folios, of which the second stays pinned. */
		assert_int_equal(pin(&f, vpn + 32, 16, LONG_WRITE, NULL, &part), 0);
		assert_int_equal(pin(&f, vpn + 16, 32, LONG_WRITE, NULL, &all), 0);
		assert_int_equal(sublet_unpin(&all), 0);
		assert_int_equal(uninherited(&f, vpn, 64), 16);
		assert_int_equal(sublet_unpin(&part), 0);
		assert_int_equal(uninherited(&f, vpn, 64), 0);
		fixture_close(&f);
	}
}

/* ---- many at once ---- */

enum { STRESS_PAGES = 5 * 512, STRESS_THREADS = 3 };

struct stress {
	struct fake *f;
	uint32_t vpn;
	uint64_t seed;
	_Atomic bool stop;
	_Atomic uint64_t pins;
	_Atomic uint64_t refused;
};

/* Pins ranges that overlap everybody else's; a device holds them, and they do not move (G2). */
static void *stress_main(void *arg)
{
	struct stress *s = arg;
	uint64_t seed = s->seed ^ (uint64_t)(uintptr_t)&seed;

	while (!atomic_load(&s->stop)) {
		uint32_t first = below(&seed, STRESS_PAGES),
			 n = 1 + below(&seed, min_u32(60, STRESS_PAGES - first));
		bool longterm = rng(&seed) % 4;
		struct sublet_extent a[64], b[64];
		struct sublet_pin p;
		int err = pin(s->f, s->vpn + first, n,
			      SUBLET_PIN_WRITE | (longterm ? SUBLET_PIN_LONGTERM : 0),
			      rng(&seed) % 2 ? "x" : NULL, &p);
		if (err) {
			if (err != -ENOMEM || !longterm || !p.longterm_limit_bytes)
				fail_msg("pin: %d", err);
			atomic_fetch_add(&s->refused, 1);
			continue;
		}
		fake_device_hold(&s->f->mm[0], s->vpn + first, n, 1);
		int have = sublet_pin_extents(&p, 0, a, 64);
		for (uint32_t i = 0; longterm && i < n; i++)
			if (in_area(s->f, s->vpn + first + i))
				fail_msg("long-term pin in the area, page %u", first + i);
		if (sublet_pin_extents(&p, 0, b, 64) != have || memcmp(a, b, (size_t)have * sizeof *a))
			fail_msg("pinned memory moved");
		fake_device_hold(&s->f->mm[0], s->vpn + first, n, -1);
		if (sublet_unpin(&p))
			fail_msg("unpin");
		atomic_fetch_add(&s->pins, 1);
	}
	return NULL;
}

static void longterm_stress(void **unused)
{
	static struct fake f;
	struct stress s = { .f = &f, .seed = seed_get("longterm_stress") };
	pthread_t thread[STRESS_THREADS];
	/* the threads begin with s.seed */
	uint64_t until = wall_ns() + soak_ns(2), claims = 0, seed = s.seed;
	(void)unused;

	fixture_open(&f, NULL);
	s.vpn = map_pages(&f, STRESS_PAGES, SUBLET_MOVABLE);
	threads_begin();
	for (uint32_t i = 0; i < STRESS_THREADS; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, stress_main, &s), 0);
	while (wall_ns() < until) {
		struct sublet_claim claim;
		sublet__chaos_move(f.arena, f.engine_mm[0], rng(&seed));
		check_area(&f);
		int err = sublet_claim(f.arena, 2 * SUBLET_MIB, NULL, &claim);
		if (err || sublet_release(f.arena, &claim)) /* short pins are bounded: G10 */
			fail_msg("claim: %d", err);
		claims++;
	}
	atomic_store(&s.stop, true);
	for (uint32_t i = 0; i < STRESS_THREADS; i++)
		pthread_join(thread[i], NULL);
	threads_end();
	print_message("%llu pins, %llu refused by the limit, %llu claims\n", (unsigned long long)s.pins,
		      (unsigned long long)s.refused, (unsigned long long)claims);
	assert_true(s.pins > 0 && claims > 0);
	assert_int_equal(a64_load_relaxed(&f.engine_mm[0]->longterm_pages), 0);
	assert_int_equal(sublet_unmap(f.engine_mm[0], addr_of(&f, 0, s.vpn), STRESS_PAGES * PAGE), 0);
	fixture_close(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(longterm_moves_out),
		cmocka_unit_test(longterm_never_blocks),
		cmocka_unit_test(longterm_the_failure_of_2013),
		cmocka_unit_test(longterm_all_or_nothing),
		cmocka_unit_test(longterm_refused),
		cmocka_unit_test(longterm_nowait),
		cmocka_unit_test(longterm_of_a_hole),
		cmocka_unit_test(longterm_counts_out),
		cmocka_unit_test(longterm_in_too_many_pieces),
		cmocka_unit_test(longterm_no_mappings),
		cmocka_unit_test(longterm_makes_room),
		cmocka_unit_test(longterm_holds_no_neighbour),
		cmocka_unit_test(longterm_decommitted),
		cmocka_unit_test(longterm_limit_and_others),
		cmocka_unit_test(longterm_and_fork),
		cmocka_unit_test(inherited_again),
		cmocka_unit_test(longterm_stress),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
