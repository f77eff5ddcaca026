/* SPDX-License-Identifier: MIT */
/* Who changes memory tells notifiers first: move, drop, unmap, decommit, protect, fork, exit (G4, G5, G10). */
#include "fixture.h"

#include <sublet/notifier.h>

struct told {
	struct fake *f;
	uint32_t calls[6]; /* by event */
	uint32_t pfn;      /* of page `watch`, when the callback ran last */
	uint32_t watch;
	uint32_t decline;     /* so many times, where it may */
	bool pins;            /* pins page `watch` for a moment, from inside */
	int pinned;           /* what the pin said last */
	struct told *newborn; /* added in the first callback; NULL: none */
	bool may_block;
	struct sublet_notifier notifier;
	uint64_t seq;
	bool retry; /* as seen inside the callback */
};

static void newborn_add(struct told *t, struct sublet_mm *mm);

static int on_invalidate(void *ctx, const struct sublet_invalidation *inv)
{
	struct told *t = ctx;

	assert_in_range(inv->event, SUBLET_NOTIFIER_MOVE, SUBLET_NOTIFIER_EXIT);
	t->calls[inv->event]++;
	t->may_block = inv->may_block;
	t->pfn = fake_pfn_of(&t->f->mm[0], t->watch);
	t->retry = sublet_notifier_read_retry(&t->notifier, t->seq);
	if (t->pins && inv->event == SUBLET_NOTIFIER_MOVE) {
		struct sublet_pin pin;
		t->pinned = sublet_pin(inv->mm, addr_of(t->f, 0, t->watch), PAGE,
				       SUBLET_PIN_READ | SUBLET_PIN_NOWAIT, NULL, &pin);
		if (!t->pinned)
			assert_int_equal(sublet_unpin(&pin), 0);
	}
	if (t->newborn && t->calls[SUBLET_NOTIFIER_MOVE] == 1 && inv->event == SUBLET_NOTIFIER_MOVE)
		newborn_add(t, inv->mm);
	if (t->decline && !inv->may_block) {
		t->decline--;
		return -EAGAIN;
	}
	return 0;
}

static const struct sublet_notifier_ops ops = { SUBLET_OPTIONS(sublet_notifier_ops),
						.invalidate = on_invalidate };

static void watch(struct fake *f, struct told *t, uint32_t vpn, uint32_t pages)
{
	*t = (struct told){ .f = f, .watch = vpn };
	assert_int_equal(sublet_notifier_add(f->engine_mm[0], addr_of(f, 0, vpn), pages * PAGE, &ops, t,
					     "dma ring", &t->notifier),
			 0);
	assert_int_equal(sublet_notifier_read_begin(&t->notifier, 0, &t->seq), 0);
}

static void newborn_add(struct told *t, struct sublet_mm *mm)
{
	struct told *n = t->newborn;

	n->f = t->f;
	n->watch = t->watch;
	assert_int_equal(
		sublet_notifier_add(mm, addr_of(t->f, 0, t->watch), PAGE, &ops, n, NULL, &n->notifier), 0);
	assert_int_equal(sublet_notifier_read_begin(&n->notifier, 0, &n->seq), -EAGAIN);
}

/* Before the frames change, and no more than that: a range beside it hears nothing. */
static void tell_move(void **unused)
{
	static struct fake f;
	struct told t, beside;
	(void)unused;

	for (uint32_t no_track = 0; no_track < 2; no_track++) {
		struct sublet__window_range any = { .to = MOVE_AREA_FIRST };
		fixture_open(&f, &(struct fake_options){ .run_pages_max = 16, .no_track = no_track });
		uint32_t vpn = map_pages(&f, 64, SUBLET_MOVABLE), before = fake_pfn_of(&f.mm[0], vpn + 20);
		watch(&f, &t, vpn + 20, 1);
		watch(&f, &beside, vpn + 48, 16);
		assert_int_equal(sublet__move_page(f.engine_mm[0], vpn + 16, &any), 16);
		assert_int_equal(t.calls[SUBLET_NOTIFIER_MOVE], 1);
		assert_int_equal(t.pfn, before);
		assert_int_not_equal(fake_pfn_of(&f.mm[0], vpn + 20), before);
		assert_false(t.may_block);
		assert_true(t.retry); /* a reader that asks under the callback's lock is told to look again */
		assert_true(sublet_notifier_read_retry(&t.notifier, t.seq));
		assert_int_equal(sublet_notifier_read_begin(&t.notifier, 0, &t.seq), 0);
		assert_false(sublet_notifier_read_retry(&t.notifier, t.seq));
		assert_false(sublet_notifier_read_retry(&beside.notifier, beside.seq));
		assert_int_equal(beside.calls[SUBLET_NOTIFIER_MOVE], 0);
		fixture_close(&f);
	}
}

/* G5: a move that is declined, or fails after everybody agreed, leaves the memory where it is, and ends. */
static void tell_move_fails(void **unused)
{
	static struct fake f;
	struct sublet__window_range any = { .to = MOVE_AREA_FIRST };
	struct told t, first;
	bool reached = true;
	(void)unused;

	for (int64_t at = 0; reached; at++) {
		fixture_open(&f, NULL);
		uint32_t vpn = map_pages(&f, 64, SUBLET_MOVABLE), before = fake_pfn_of(&f.mm[0], vpn);
		fill(&f, 0, vpn, 64, 1);
		watch(&f, &first, vpn, 64);
		watch(&f, &t, vpn, 1);
		t.decline = at == 0;
		if (at)
			fake_fail(&f, 1u << FAKE_BLOCK | 1u << FAKE_REMAP, at, -ENOMEM, false);
		int64_t moved = sublet__move_page(f.engine_mm[0], vpn, &any);
		reached = at == 0 || fake_fail_end(&f);
		assert_int_equal(moved, at == 0 ? -EAGAIN : reached ? -ENOMEM : 64);
		assert_int_equal(t.calls[SUBLET_NOTIFIER_MOVE], 1);
		assert_int_equal(fake_pfn_of(&f.mm[0], vpn) == before, reached);
		check_fill(&f, 0, vpn, 64, 1);
		assert_int_equal(sublet_notifier_read_begin(&t.notifier, 0, &t.seq), 0);
		assert_int_equal(sublet_notifier_read_begin(&first.notifier, 0, &first.seq), 0);
		fixture_close(&f);
	}
}

/*
 * L5: who is pinned for a moment after it was told is told again, when no more pins come; so is who came meanwhile.
 * Declined then, nothing moves. Without a pin there is one call.
 */
static void tell_again(void **unused)
{
	static struct fake f;
	struct sublet__window_range any = { .to = MOVE_AREA_FIRST };
	struct told t;
	(void)unused;

	for (uint32_t i = 0; i < 16; i++) {
		bool pins = i & 1, declines = i & 2;
		bool in_pieces = i & 8; /* of which only the first is pinned */
		struct told newborn = { .decline = declines };
		fixture_open(&f, &(struct fake_options){ .no_track = i & 4 });
		uint32_t vpn = map_pages(&f, in_pieces ? 16 : 64, SUBLET_MOVABLE);
		for (uint32_t piece = 1; in_pieces && piece < 4; piece++)
			assert_int_equal(map_pages(&f, 16, SUBLET_MOVABLE), vpn + 16 * piece);
		uint32_t before = fake_pfn_of(&f.mm[0], vpn);
		fill(&f, 0, vpn, 64, 1);
		watch(&f, &t, vpn, 1);
		t.pins = pins;
		t.newborn = &newborn;
		struct sublet_pin pin; /* long over: does not count */
		assert_int_equal(sublet_pin(f.engine_mm[0], addr_of(&f, 0, vpn), PAGE, SUBLET_PIN_WRITE, NULL,
					    &pin),
				 0);
		assert_int_equal(sublet_unpin(&pin), 0);
		int64_t moved = sublet__move_page(f.engine_mm[0], vpn, &any);
		assert_int_equal(moved, pins && declines ? -EAGAIN : 64);
		uint32_t calls = t.calls[SUBLET_NOTIFIER_MOVE];
		if (!pins || !declines) /* else whoever comes after the newborn is not asked any more */
			assert_int_equal(calls, pins ? 2 : 1);
		assert_int_equal(newborn.calls[SUBLET_NOTIFIER_MOVE], pins);
		assert_int_equal(t.pfn, before);
		assert_int_equal(t.pinned, calls == 2 ? -EAGAIN : 0); /* the second time: frozen */
		assert_int_equal(fake_pfn_of(&f.mm[0], vpn) == before, moved < 0);
		check_fill(&f, 0, vpn, 64, 1);
		/* The next move starts afresh. */
		t.pins = false;
		newborn.decline = 0;
		assert_int_equal(sublet__move_page(f.engine_mm[0], vpn, &any), 64);
		assert_int_equal(t.calls[SUBLET_NOTIFIER_MOVE], calls + 1);
		check_fill(&f, 0, vpn, 64, 1);
		fixture_close(&f);
	}
}

/* A claim waits for who declines as for a pin, then succeeds; or names it at its deadline (G7, G10). */
struct late_pin {
	struct fake *f;
	uint32_t vpn;
	uint32_t copies;
	bool taken;
	struct sublet_pin pin;
};

/* Pinned when the run is chosen already; after its page was copied the device writes, and lets go. */
static void pin_write_unpin(void *arg, enum fake_op op, struct fake_mm *mm, uint32_t vpn, uint32_t pages)
{
	struct late_pin *late = arg;
	(void)mm, (void)vpn, (void)pages;

	if (op == FAKE_SLOT && !late->taken) {
		late->taken = true;
		assert_int_equal(sublet_pin(late->f->engine_mm[0], addr_of(late->f, 0, late->vpn), PAGE,
					    SUBLET_PIN_WRITE, NULL, &late->pin),
				 0);
	}
	if (op == FAKE_COPY && late->taken && ++late->copies == 2) {
		fake_frame_write(late->f, fake_pfn_of(&late->f->mm[0], late->vpn), 3, 4711);
		assert_int_equal(sublet_unpin(&late->pin), 0);
	}
}

/* L2: a pin that came before its traces were wiped, and wrote after: the run does not move while it is there. */
static void pin_before_the_wipe(void **unused)
{
	static struct fake f;
	struct sublet__window_range part = { .to = MOVE_NORMAL_ONLY }, any = { .to = MOVE_AREA_FIRST };
	struct late_pin late = { .f = &f };
	(void)unused;

	fixture_open(&f, NULL);
	/* so that a unit is taken first, of a cache: a hook */
	uint32_t before = map_pages(&f, 16, SUBLET_MOVABLE);
	late.vpn = map_pages(&f, 16, SUBLET_MOVABLE);
	assert_int_equal(map_pages(&f, 16, SUBLET_MOVABLE), late.vpn + 16);
	assert_int_equal(sublet_unmap(f.engine_mm[0], addr_of(&f, 0, before), 16 * PAGE), 0);
	fill(&f, 0, late.vpn, 32, 1);
	part.first_vpn = late.vpn;
	part.end_vpn = late.vpn + 16;
	/* Two pieces, so that there is a moment between two copies. */
	assert_int_equal(sublet__move_page(f.engine_mm[0], late.vpn, &part), 16);
	a32_store_relaxed(&f.engine_mm[0]->calm, 0); /* with a pre-copy */
	f.hook_arg = &late;
	f.hook = pin_write_unpin;
	int64_t moved = sublet__move_page(f.engine_mm[0], late.vpn, &any);
	f.hook = NULL;
	assert_true(late.taken);
	assert_int_equal(moved, -EAGAIN);
	assert_int_equal(late.copies, 0);
	assert_int_equal(sublet_unpin(&late.pin), 0);
	check_fill(&f, 0, late.vpn, 32, 1);
	fixture_close(&f);
}

static void tell_claim(void **unused)
{
	static struct fake f;
	struct sublet_claim_options o = { SUBLET_OPTIONS(sublet_claim_options),
					  .deadline_ns = 50 * SUBLET_MS };
	struct sublet_claim claim;
	struct told t;
	(void)unused;

	for (uint32_t forever = 0; forever < 2; forever++) {
		fixture_open(&f, &(struct fake_options){ .area_frames = 4 * 512, .virtual_time = true });
		uint32_t vpn = map_pages(&f, 4 * 512 - 64, SUBLET_MOVABLE);
		watch(&f, &t, vpn, 4 * 512 - 64);
		t.decline = forever ? UINT32_MAX : 12;
		int err = sublet_claim(f.arena, 2 * SUBLET_MIB, &o, &claim);
		assert_int_equal(err, forever ? -EBUSY : 0);
		assert_true(claim.waits > 0);
		if (forever) {
			assert_int_equal(claim.blockers[0].kind, SUBLET_BLOCKER_NOTIFIER);
			assert_string_equal(claim.blockers[0].owner, "dma ring");
		} else {
			assert_int_equal(sublet_release(f.arena, &claim), 0);
		}
		fixture_close(&f);
	}
}

/* Every other way in which memory changes, with its reason, and before it changes. */
static void tell_others(void **unused)
{
	static struct fake f;
	struct sublet_claim claim;
	struct sublet_pin pin;
	struct told t;
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .area_frames = 2 * 512, .virtual_time = true });
	struct sublet_mm *mm = f.engine_mm[0];
	uint32_t vpn = map_pages(&f, 64, SUBLET_MOVABLE), cache = map_pages(&f, 512, SUBLET_DISCARDABLE);

	watch(&f, &t, vpn + 3, 4);
	uint32_t before = fake_pfn_of(&f.mm[0], vpn + 3);
	assert_int_equal(sublet_pin(mm, addr_of(&f, 0, vpn + 3), PAGE, SUBLET_PIN_READ, NULL, &pin), 0);
	assert_int_equal(sublet_unmap(mm, addr_of(&f, 0, vpn), 64 * PAGE), -EBUSY);
	assert_int_equal(t.calls[SUBLET_NOTIFIER_UNMAP], 0); /* refused before the first visible change */
	assert_int_equal(sublet_unpin(&pin), 0);

	(void)sublet__mm_note_protected(mm, addr_of(&f, 0, vpn), 8 * PAGE, true);
	(void)sublet__mm_note_protected(mm, addr_of(&f, 0, vpn), 8 * PAGE, false);
	assert_int_equal(t.calls[SUBLET_NOTIFIER_PROTECT], 2);
	assert_true(t.may_block);

	t.decline = 3; /* a fork waits for a device, as for a pin */
	struct fake_child child;
	assert_int_equal(fork_begin(mm), 0);
	assert_int_equal(t.calls[SUBLET_NOTIFIER_MOVE], 4);
	fake_child_fork(&child, &f.mm[0]);
	sublet__mm_fork_end(mm, 7);
	struct sublet_extent e;
	assert_int_equal(sublet_mm_extents(mm, addr_of(&f, 0, vpn + 3), PAGE, 0, &e, 1), -EBUSY);
	fake_child_exit(&child);
	assert_int_equal(sublet__mm_fork_restore(mm, sublet__mm_fork_epoch(mm)), 0);

	assert_int_equal(sublet_decommit(mm, addr_of(&f, 0, vpn), 16 * PAGE), 0);
	assert_int_equal(t.calls[SUBLET_NOTIFIER_DISCARD], 1);
	assert_int_equal(t.pfn, before);
	assert_int_equal(sublet_commit(mm, addr_of(&f, 0, vpn), 16 * PAGE, 0), 0);
	assert_int_equal(sublet_unmap(mm, addr_of(&f, 0, vpn), 64 * PAGE), 0);
	assert_int_equal(t.calls[SUBLET_NOTIFIER_UNMAP], 1);
	assert_true(t.may_block);
	assert_int_equal(sublet_notifier_remove(&t.notifier), 0);
	assert_int_equal(sublet_notifier_remove(&t.notifier), -EINVAL);

	watch(&f, &t, cache + 100, 4);
	assert_int_equal(sublet_unlock(mm, addr_of(&f, 0, cache), 512 * PAGE), 0);
	t.decline = 2;
	assert_int_equal(claim_take(&f, 4 * SUBLET_MIB, NULL, &claim), 0);
	assert_int_equal(t.calls[SUBLET_NOTIFIER_DISCARD], 3);
	assert_int_equal(claim.dropped_bytes, 512 * PAGE);
	claim_give(&f, &claim);
	sublet__arena_exit(f.arena);
	assert_int_equal(t.calls[SUBLET_NOTIFIER_EXIT], 1);
	fixture_close(&f);
	assert_int_equal(t.calls[SUBLET_NOTIFIER_EXIT], 1);
}

/* Discardable memory that is locked while a fork is under way becomes the child's snapshot: who knows it is told. */
static void tell_lock_in_fork(void **unused)
{
	static struct fake f;
	struct fake_child child;
	struct told t;
	(void)unused;

	fixture_open(&f, NULL);
	struct sublet_mm *mm = f.engine_mm[0];
	uint32_t vpn = map_pages(&f, 16, SUBLET_DISCARDABLE);
	watch(&f, &t, vpn, 16);
	assert_int_equal(sublet_unlock(mm, addr_of(&f, 0, vpn), 16 * PAGE), 0);
	assert_int_equal(fork_begin(mm), 0);
	assert_int_equal(t.calls[SUBLET_NOTIFIER_MOVE], 0);
	assert_int_equal(sublet_lock(mm, addr_of(&f, 0, vpn), 16 * PAGE), SUBLET_INTACT);
	assert_int_equal(fake_kind_of(&f.mm[0], vpn), FAKE_PRIVATE);
	assert_int_equal(t.calls[SUBLET_NOTIFIER_MOVE], 1);
	assert_true(t.retry);
	fake_child_fork(&child, &f.mm[0]);
	sublet__mm_fork_end(mm, 7);
	fake_child_exit(&child);
	assert_int_equal(sublet__mm_fork_restore(mm, sublet__mm_fork_epoch(mm)), 0);
	assert_int_equal(sublet_notifier_remove(&t.notifier), 0);
	fixture_close(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(tell_move),         cmocka_unit_test(tell_move_fails),
		cmocka_unit_test(tell_again),        cmocka_unit_test(pin_before_the_wipe),
		cmocka_unit_test(tell_claim),        cmocka_unit_test(tell_others),
		cmocka_unit_test(tell_lock_in_fork),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
