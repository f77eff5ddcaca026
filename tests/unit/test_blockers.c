/* SPDX-License-Identifier: MIT */
/*
 * core/blockers.c, and when core/empty.c waits: whoever is in the way of a claim is waited for up to the deadline, where
 * that can help, and then named (G5, G7).
 */
#include "fixture.h"

#include "core/claim.h"

#include <string.h>

#define OPTIONS(...) (&(struct sublet_claim_options){ SUBLET_OPTIONS(sublet_claim_options), __VA_ARGS__ })

static uint32_t blockers_of(const struct sublet_claim *claim, uint32_t kind)
{
	uint32_t n = 0;
	for (uint32_t i = 0; i < claim->blocker_count; i++)
		n += claim->blockers[i].kind == kind;
	return n;
}

/* G7: a pin that stays: -EBUSY at the deadline, not before, not long after, and the pin is named. */
static void pin_until_the_deadline(void **unused)
{
	static struct fake f;
	struct sublet_claim claim;
	struct sublet_pin pin;
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .virtual_time = true });
	uint32_t area = f.options.area_frames, vpn = map_pages(&f, 512, SUBLET_MOVABLE);
	fill(&f, 0, vpn, 512, 1);
	assert_int_equal(
		sublet_pin(f.engine_mm[0], addr_of(&f, 0, vpn + 100), PAGE, SUBLET_PIN_READ, NULL, &pin), 0);
	fake_device_hold(&f.mm[0], vpn + 100, 1, 1);
	uint64_t offset = fake_pfn_of(&f.mm[0], vpn + 100) * PAGE, start = atomic_load(&f.clock_ns);
	struct sublet_claim_options o = { SUBLET_OPTIONS(sublet_claim_options),
					  .deadline_ns = 20 * SUBLET_MS };
	assert_int_equal(claim_take(&f, area * PAGE, &o, &claim), -EBUSY); /* there is one window only */
	uint64_t took = atomic_load(&f.clock_ns) - start;
	assert_true(took >= 20 * SUBLET_MS && took <= 22 * SUBLET_MS);
	assert_true(claim.latency_ns <= took && claim.waits > 0 && claim.waited_ns > 18 * SUBLET_MS);
	assert_int_equal(claim.blocker_count, 1);
	assert_int_equal(claim.blockers[0].kind, SUBLET_BLOCKER_PIN);
	assert_true(claim.blockers[0].offset_bytes <= offset);
	assert_true(offset < claim.blockers[0].offset_bytes + claim.blockers[0].bytes);
	fixture_verify(&f);
	o.flags = SUBLET_CLAIM_NOWAIT;
	uint64_t sleeps = atomic_load(&f.calls[FAKE_SLEEP]);
	assert_int_equal(claim_take(&f, area * PAGE, &o, &claim), -EBUSY);
	assert_int_equal(atomic_load(&f.calls[FAKE_SLEEP]), sleeps);
	assert_int_equal(claim.waits, 0);
	assert_int_equal(claim.blockers[0].kind, SUBLET_BLOCKER_PIN);
	fixture_verify(&f);
	check_fill(&f, 0, vpn, 512, 1);
	fake_device_hold(&f.mm[0], vpn + 100, 1, -1);
	assert_int_equal(sublet_unpin(&pin), 0);
	assert_int_equal(claim_take(&f, area * PAGE, &o, &claim), 0);
	claim_give(&f, &claim);
	check_fill(&f, 0, vpn, 512, 1);
	fixture_close(&f);
}

/* What is refused for want of room says how much is missing and what could be had; that can be had. */
static void no_room(void **unused)
{
	static struct fake f;
	struct sublet_claim claim;
	(void)unused;

	for (uint32_t lent = 0; lent <= 8 * 512; lent += 300) {
		fixture_open(&f, NULL);
		uint32_t area = f.options.area_frames, vpn = lent ? map_pages(&f, lent, SUBLET_MOVABLE) : 0;
		uint64_t have = area - lent + f.options.normal_frames;
		if (lent)
			fill(&f, 0, vpn, lent, 5);
		int err = claim_take(&f, area * PAGE, NULL, &claim);
		assert_int_equal(err, have >= area ? 0 : -ENOMEM);
		if (err) {
			assert_int_equal(claim.shortfall_bytes, (area - have) * PAGE);
			assert_int_equal(claim.claimable_bytes, have * PAGE);
			assert_int_equal(claim.blockers[0].kind, SUBLET_BLOCKER_NOROOM);
			assert_int_equal(claim.blockers[0].bytes, claim.shortfall_bytes);
			assert_int_equal(claim.moved_bytes, 0); /* refused before anything moved */
			uint64_t edge = 2 * f.options.run_pages_max;
			assert_int_equal(claim_take(&f, claim.claimable_bytes - edge * PAGE, NULL, &claim),
					 0);
		}
		claim_give(&f, &claim);
		if (lent)
			check_fill(&f, 0, vpn, lent, 5);
		fixture_close(&f);
	}
}

/* Another claim in the way is named by its owner and age. */
static void another_claim(void **unused)
{
	static struct fake f;
	struct sublet_claim held[8], claim;
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .virtual_time = true });
	for (uint32_t i = 0; i < 8; i++)
		assert_int_equal(claim_take(&f, 300 * PAGE,
					    OPTIONS(.owner = "the-camera-driver-with-a-very-long-name"),
					    &held[i]),
				 0);
	atomic_fetch_add(&f.clock_ns, SUBLET_SEC);
	assert_int_equal(claim_take(&f, 600 * PAGE, OPTIONS(.flags = SUBLET_CLAIM_NOWAIT), &claim), -EBUSY);
	assert_true(claim.blocker_count > 0);
	for (uint32_t i = 0; i < claim.blocker_count; i++) {
		assert_int_equal(claim.blockers[i].kind, SUBLET_BLOCKER_CLAIM);
		assert_int_equal(strncmp(claim.blockers[i].owner, "the-camera-driver-with-a-very-lo", 31), 0);
		assert_int_equal(strlen(claim.blockers[i].owner), 31);
		assert_true(claim.blockers[i].age_ns >= SUBLET_SEC &&
			    claim.blockers[i].age_ns < 2 * SUBLET_SEC);
		assert_int_equal(claim.blockers[i].bytes, 300 * PAGE);
	}
	for (uint32_t i = 0; i < 8; i++)
		claim_give(&f, &held[i]);
	fixture_close(&f);
}

/* One user in more places than the list has does not keep the others out of it: each is named (G5). */
static void each_user_is_named(void **unused)
{
	enum { PLACES = SUBLET_BLOCKERS_MAX + 4 };
	static struct fake f;
	struct sublet_claim held[PLACES + 1], claim;
	struct fake_child child;
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .area_frames = 8 * 512, .virtual_time = true });
	fill(&f, 0, map_pages(&f, 512, SUBLET_MOVABLE), 512, 1);
	assert_int_equal(fork_begin(f.engine_mm[0]), 0);
	fake_child_fork(&child, &f.mm[0]);
	sublet__mm_fork_end(f.engine_mm[0], 1234);
	for (uint32_t i = 0; i <= PLACES; i++) {
		uint64_t frames = i == PLACES ? 20 : 200;
		assert_int_equal(claim_take(&f, frames * PAGE,
					    OPTIONS(.owner = i == PLACES ? "disk" : "camera"), &held[i]),
				 0);
	}
	assert_int_equal(claim_take(&f, 7 * 512 * PAGE, OPTIONS(.flags = SUBLET_CLAIM_NOWAIT), &claim),
			 -EBUSY);
	assert_int_equal(claim.blocker_count, SUBLET_BLOCKERS_MAX);
	uint32_t cameras = 0, disks = 0;
	for (uint32_t i = 0; i < claim.blocker_count; i++) {
		cameras += !strcmp(claim.blockers[i].owner, "camera");
		disks += !strcmp(claim.blockers[i].owner, "disk");
	}
	assert_true(cameras > 1);
	assert_int_equal(disks, 1);
	assert_int_equal(blockers_of(&claim, SUBLET_BLOCKER_CHILD), SUBLET_BLOCKERS_MAX - cameras - disks);
	assert_true(blockers_of(&claim, SUBLET_BLOCKER_CHILD) > 0);
	for (uint32_t i = 0; i <= PLACES; i++)
		claim_give(&f, &held[i]);
	fake_child_exit(&child);
	assert_int_equal(sublet__mm_fork_restore(f.engine_mm[0], sublet__mm_fork_epoch(f.engine_mm[0])), 0);
	fixture_close(&f);
}

struct passing {
	struct fake *f;
	struct sublet_claim *held;
	struct fake_child *child;
	uint64_t at_ns;
};

/* Another thread's work, done while the claim sleeps: a claim is released, or a child of a fork ends. */
static void pass_later(void *arg, enum fake_op op, struct fake_mm *mm, uint32_t vpn, uint32_t pages)
{
	struct passing *p = arg;
	struct sublet_mm *engine_mm = p->f->engine_mm[0];

	(void)mm, (void)vpn, (void)pages;
	if (op != FAKE_SLEEP || atomic_load(&p->f->clock_ns) < p->at_ns)
		return;
	p->at_ns = UINT64_MAX;
	if (p->held) {
		claim_give(p->f, p->held);
	} else {
		fake_child_exit(p->child);
		assert_int_equal(sublet__mm_fork_restore(engine_mm, sublet__mm_fork_epoch(engine_mm)), 0);
	}
}

/*
 * The deadline is for whoever holds memory: another claim that is released in time, and a child that ends in time, do
 * not make a claim fail (G7, G10). NOWAIT does not wait, and what will not go by itself is reported at once.
 */
static void waits_for_others(void **unused)
{
	static struct fake f;
	(void)unused;

	for (uint32_t mode = 0; mode < 6; mode++) {
		struct sublet_claim held = { 0 }, claim;
		struct fake_child child = { 0 };
		bool forked = mode & 1;
		fixture_open(&f, &(struct fake_options){ .area_frames = 4 * 512, .virtual_time = true });
		uint32_t vpn = map_pages(&f, 512, SUBLET_MOVABLE);
		struct passing pass = { .f = &f, .held = forked ? NULL : &held, .child = &child };
		if (forked) {
			fill(&f, 0, vpn, 512, 1);
			assert_int_equal(fork_begin(f.engine_mm[0]), 0);
			fake_child_fork(&child, &f.mm[0]);
			sublet__mm_fork_end(f.engine_mm[0], 1234);
		} else {
			assert_int_equal(claim_take(&f, 1100 * PAGE, NULL, &held), 0);
		}
		uint64_t began = atomic_load(&f.clock_ns);
		pass.at_ns = began + (mode / 2 == 1 ? 700 : 200) * SUBLET_MS;
		f.hook = pass_later;
		f.hook_arg = &pass;
		uint32_t flags = mode / 2 == 2 ? SUBLET_CLAIM_NOWAIT : 0;
		int err = claim_take(&f, 4 * 512 * PAGE - (forked ? 0 : 300 * PAGE),
				     OPTIONS(.deadline_ns = 500 * SUBLET_MS, .flags = flags), &claim);
		uint64_t took = atomic_load(&f.clock_ns) - began;
		assert_int_equal(err, mode / 2 ? -EBUSY : 0);
		if (err) {
			assert_int_equal(claim.blockers[0].kind,
					 forked ? SUBLET_BLOCKER_CHILD : SUBLET_BLOCKER_CLAIM);
			assert_in_range(took, flags ? 0 : 500 * SUBLET_MS,
					flags ? 1 * SUBLET_MS : 501 * SUBLET_MS);
			f.hook = NULL;
			pass.at_ns = 0;
			pass_later(&pass, FAKE_SLEEP, NULL, 0, 0);
		} else {
			assert_in_range(took, 200 * SUBLET_MS, 202 * SUBLET_MS);
			assert_true(claim.waits > 10 && claim.waited_ns <= took);
			claim_give(&f, &claim);
		}
		f.hook = NULL;
		if (forked)
			check_fill(&f, 0, vpn, 512, 1);
		fixture_close(&f);
	}

	struct sublet_claim claim;
	fixture_open(&f, &(struct fake_options){ .area_frames = 2 * 512, .virtual_time = true });
	uint32_t vpn = map_pages(&f, 512, SUBLET_MOVABLE);
	(void)sublet__mm_note_protected(f.engine_mm[0], addr_of(&f, 0, vpn), 512 * PAGE, true);
	uint64_t began = atomic_load(&f.clock_ns);
	assert_int_equal(claim_take(&f, 2 * 512 * PAGE, NULL, &claim), -EBUSY);
	assert_int_equal(claim.blockers[0].kind, SUBLET_BLOCKER_PROTECTED);
	assert_in_range(atomic_load(&f.clock_ns) - began, 0, 1 * SUBLET_MS);
	fixture_close(&f);
}

/*
 * Memory that does not move, as under valgrind: what is free or discardable is had, whatever lies beside it; what is not is
 * refused at once, by name, without a try.
 */
static void what_stays(void **unused)
{
	static struct fake f;
	struct sublet_claim claim, held;
	struct sublet_pin pin;
	(void)unused;

	fixture_open(&f,
		     &(struct fake_options){ .area_frames = 8 * 512, .virtual_time = true, .stays = true });
	uint32_t vpn = map_pages(&f, 512 + 16, SUBLET_MOVABLE),
		 cache = map_pages(&f, 512, SUBLET_DISCARDABLE);
	fill(&f, 0, vpn, 512 + 16, 1);
	assert_int_equal(sublet_unlock(f.engine_mm[0], addr_of(&f, 0, cache), 512 * PAGE), SUBLET_UNLOCKED);
	uint64_t began = atomic_load(&f.clock_ns);
	/* as much as six of eight pageblocks, the cache among them */
	assert_int_equal(claim_take(&f, 6 * 512 * PAGE, NULL, &claim), 0);
	assert_in_range(claim.dropped_bytes, PAGE, 512 * PAGE);
	assert_int_equal(claim.moved_bytes, 0);
	claim_give(&f, &claim);
	/* and beside what stays, in the same 2 MiB, less */
	for (uint32_t i = 0; i < 4; i++) {
		assert_int_equal(claim_take(&f, 96 * PAGE, NULL, &held), 0);
		claim_give(&f, &held);
	}
	assert_int_equal(claim_take(&f, 7 * 512 * PAGE, NULL, &claim), -EBUSY);
	assert_int_equal(claim.windows_tried + claim.waits, 0);
	assert_int_equal(blockers_of(&claim, SUBLET_BLOCKER_PLATFORM), claim.blocker_count);
	assert_int_equal(claim.blockers[0].error, -EOPNOTSUPP);
	assert_int_equal(sublet_pin(f.engine_mm[0], addr_of(&f, 0, vpn), PAGE,
				    SUBLET_PIN_READ | SUBLET_PIN_LONGTERM, NULL, &pin),
			 -EOPNOTSUPP);
	assert_true(atomic_load(&f.clock_ns) - began < SUBLET_MS);
	check_fill(&f, 0, vpn, 512 + 16, 1);
	fixture_close(&f);
}

/* Memory that a call has in its hand, and has not yet mapped: waited for, then named (G7). */
static void beside_a_call(void **unused)
{
	static const uint32_t zones[ZONES] = { ZONE_AREA, ZONE_AREA };
	static struct fake f;
	struct sublet_claim_options o = { SUBLET_OPTIONS(sublet_claim_options) };
	struct sublet_claim claim;
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .virtual_time = true });
	uint32_t pfn = sublet__folio_take(f.arena, 3, zones), area = f.options.area_frames;
	for (uint32_t nowait = 0; nowait < 2; nowait++) {
		o.flags = nowait ? SUBLET_CLAIM_NOWAIT : 0;
		o.deadline_ns = 3 * SUBLET_MS;
		uint64_t start = atomic_load(&f.clock_ns);
		assert_int_equal(claim_take(&f, area * PAGE, &o, &claim), -EBUSY);
		assert_true(nowait || atomic_load(&f.clock_ns) - start >= 3 * SUBLET_MS);
		assert_int_equal(claim.blocker_count, 1);
		assert_int_equal(claim.blockers[0].kind, SUBLET_BLOCKER_CALL);
		assert_int_equal(claim.blockers[0].offset_bytes, pfn * PAGE);
	}
	sublet__frames_put(f.arena, pfn, 8, ACCOUNT_MOVABLE);
	assert_int_equal(claim_take(&f, area * PAGE, NULL, &claim), 0);
	claim_give(&f, &claim);
	fixture_close(&f);
}

/* The program keeps some of its memory from being blocked: named as such, and not undone. */
static void watched(void **unused)
{
	static struct fake f;
	struct sublet_claim claim;
	struct sublet_pin pin;
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .no_track = true, .virtual_time = true });
	uint32_t area = f.options.area_frames, vpn = map_pages(&f, 512, SUBLET_MOVABLE);
	fill(&f, 0, vpn, 512, 3);
	fake_fail(&f, 1u << FAKE_BLOCK, 1, -EADDRINUSE, true);
	uint64_t start = atomic_load(&f.clock_ns);
	assert_int_equal(claim_take(&f, area * PAGE, NULL, &claim), -EBUSY);
	assert_true(atomic_load(&f.clock_ns) - start < 10 * SUBLET_MS); /* time does not help */
	assert_int_equal(blockers_of(&claim, SUBLET_BLOCKER_WATCHED), claim.blocker_count);
	assert_true(claim.blocker_count > 0);
	assert_int_equal(sublet_pin(f.engine_mm[0], addr_of(&f, 0, vpn), PAGE,
				    SUBLET_PIN_READ | SUBLET_PIN_LONGTERM, NULL, &pin),
			 -EBUSY);
	assert_int_equal(f.calls[FAKE_UNBLOCK], 0);
	assert_true(fake_fail_end(&f));
	fixture_verify(&f);
	assert_int_equal(claim_take(&f, area * PAGE, NULL, &claim), 0);
	claim_give(&f, &claim);
	check_fill(&f, 0, vpn, 512, 3);
	fixture_close(&f);
}

/* G5: each platform call of a claim fails in turn: either it succeeds or nothing but places changed. */
static void platform_failures(void **unused)
{
	static struct fake f;
	(void)unused;

	for (uint32_t mode = 0; mode < 4; mode++)
		for (int64_t n = 1, reached = 1; reached; n += 1 + n / 8) {
			struct sublet_claim claim;
			fixture_open(&f,
				     &(struct fake_options){ .no_track = mode & 1, .virtual_time = true });
			uint32_t area = f.options.area_frames, vpn = map_pages(&f, area, SUBLET_MOVABLE);
			fill(&f, 0, vpn, area, 2);
			fake_fail(&f, FAKE_CAN_FAIL, n, -ENOSYS, mode & 2);
			int err = claim_take(&f, 2 * 512 * PAGE, NULL, &claim);
			reached = fake_fail_end(&f);
			if (err) {
				assert_true(reached && err == -EBUSY);
				assert_true(blockers_of(&claim, SUBLET_BLOCKER_PLATFORM) > 0);
				assert_int_equal(claim.blockers[0].error, -ENOSYS);
				assert_int_equal(stats_of(&f).claims_busy, 1);
			} else {
				claim_give(&f, &claim);
			}
			fixture_verify(&f);
			assert_int_equal(stats_of(&f).lent_bytes, area * PAGE);
			check_fill(&f, 0, vpn, area, 2);
			assert_int_equal(claim_take(&f, 2 * 512 * PAGE, NULL, &claim), 0);
			claim_give(&f, &claim);
			fixture_close(&f);
		}
}

static int agree(void *ctx, const struct sublet_invalidation *inv)
{
	(void)ctx, (void)inv;
	return 0;
}

/* What was movable when it was looked at may be anything when it is named, and lead to no page: then nobody is named. */
static void gone_before_it_is_named(void **unused)
{
	static const struct sublet_notifier_ops ops = { SUBLET_OPTIONS(sublet_notifier_ops),
							.invalidate = agree };
	static struct fake f;
	struct sublet_claim claim = { 0 };
	struct sublet_notifier notifier;
	struct fake_child child;
	(void)unused;

	fixture_open(&f, NULL);
	struct sublet_mm *mm = f.engine_mm[0];
	struct sublet__claim_job job = { .arena = f.arena, .claim = &claim };
	uint32_t vpn = map_pages(&f, 16, SUBLET_MOVABLE), pfn = fake_pfn_of(&f.mm[0], vpn);
	uint32_t word = a32_load_relaxed(&f.arena->frames[pfn].word);
	assert_int_equal(
		sublet_notifier_add(mm, addr_of(&f, 0, vpn), 16 * PAGE, &ops, NULL, "tag", &notifier), 0);
	assert_int_equal(fork_begin(mm), 0);
	fake_child_fork(&child, &f.mm[0]);
	sublet__mm_fork_end(mm, 1234);
	assert_int_equal(sublet_unmap(mm, addr_of(&f, 0, vpn), 16 * PAGE),
			 0); /* parked: a list that ends here */
	sublet__blocker_busy(&job, pfn, word);
	assert_int_equal(claim.blocker_count, 1);
	assert_string_equal(claim.blockers[0].owner, "");
	fake_child_exit(&child);
	assert_int_equal(sublet__mm_fork_restore(mm, sublet__mm_fork_epoch(mm)), 0);
	for (pfn = 0; pfn < f.arena->frames_total; pfn++) /* free lists lead anywhere too */
		sublet__blocker_busy(&job, pfn, word);
	assert_int_equal(sublet_notifier_remove(&notifier), 0);
	fixture_close(&f);
}

/* Memory that a fork on its way did not come to yet does not move: a call that is not over, not a pin. */
static void beside_a_fork(void **unused)
{
	static struct fake f;
	struct sublet_claim claim;
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .virtual_time = true });
	struct sublet_mm *mm = f.engine_mm[0];
	uint64_t all = f.options.area_frames * PAGE;
	fill(&f, 0, map_pages(&f, 64, SUBLET_MOVABLE), 64, 9);
	a32_add_seq_cst(&mm->fork_pending, 1);
	assert_int_equal(claim_take(&f, all, OPTIONS(.deadline_ns = SUBLET_MS), &claim), -EBUSY);
	assert_int_equal(claim.blockers[0].kind, SUBLET_BLOCKER_CALL);
	a32_sub_acq_rel(&mm->fork_pending, 1);
	assert_int_equal(claim_take(&f, all, NULL, &claim), 0);
	claim_give(&f, &claim);
	fixture_close(&f);
}

/* A call that works on the block for longer than the claim has is named as such: nobody has a pin. */
static void beside_a_long_call(void **unused)
{
	static struct fake f;
	struct sublet_claim claim;
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .virtual_time = true });
	uint64_t all = f.options.area_frames * PAGE;
	uint32_t vpn = map_pages(&f, 64, SUBLET_MOVABLE);
	fill(&f, 0, vpn, 64, 9);
	assert_true(lock_try(block_lock_of(f.engine_mm[0], vpn)));
	assert_int_equal(claim_take(&f, all, OPTIONS(.deadline_ns = SUBLET_MS), &claim), -EBUSY);
	assert_true(claim.blocker_count > 0);
	assert_int_equal(blockers_of(&claim, SUBLET_BLOCKER_CALL), claim.blocker_count);
	engine_unlock(f.arena, block_lock_of(f.engine_mm[0], vpn));
	assert_int_equal(claim_take(&f, all, NULL, &claim), 0);
	claim_give(&f, &claim);
	fixture_close(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(pin_until_the_deadline), cmocka_unit_test(no_room),
		cmocka_unit_test(another_claim),          cmocka_unit_test(each_user_is_named),
		cmocka_unit_test(waits_for_others),       cmocka_unit_test(what_stays),
		cmocka_unit_test(beside_a_call),          cmocka_unit_test(watched),
		cmocka_unit_test(platform_failures),      cmocka_unit_test(gone_before_it_is_named),
		cmocka_unit_test(beside_a_fork),          cmocka_unit_test(beside_a_long_call),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
