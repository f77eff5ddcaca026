/* SPDX-License-Identifier: MIT */
/* core/fork.c: the child's snapshot stays, no write of the parent is lost (G1), frames come back (G8). */
#include "fixture.h"

#include <unistd.h>

enum { CHILD = 4711 };

static void fork_now(struct fake *f, struct fake_child *child)
{
	assert_int_equal(fork_begin(f->engine_mm[0]), 0);
	fake_child_fork(child, &f->mm[0]);
	sublet__mm_fork_end(f->engine_mm[0], CHILD);
}

static int restore_now(struct fake *f)
{
	return sublet__mm_fork_restore(f->engine_mm[0], sublet__mm_fork_epoch(f->engine_mm[0]));
}

/* Parent writes after the fork, child keeps its view; then all is shared again with the parent's bytes. */
static void fork_snapshot(void **unused)
{
	static struct fake f;
	struct fake_child child;
	struct sublet_claim claim;
	(void)unused;

	fixture_open(&f, NULL);
	uint32_t area = f.options.area_frames, vpn = map_pages(&f, area, SUBLET_MOVABLE);
	fill(&f, 0, vpn, area, 1);
	fork_now(&f, &child);
	fixture_verify(&f);
	assert_int_equal(stats_of(&f).area_held_bytes, area * PAGE);
	assert_int_equal(stats_of(&f).children, 1);
	fill(&f, 0, vpn + 100, 700, 2);
	assert_int_equal(fake_child_changed(&child), 0);
	/* held memory does not move: the claim names the child */
	assert_int_equal(claim_take(&f, 512 * PAGE, NULL, &claim), -EBUSY);
	assert_true(claim.blocker_count > 0);
	assert_int_equal(claim.blockers[0].kind, SUBLET_BLOCKER_CHILD);
	assert_int_equal(claim.blockers[0].error, CHILD);
	assert_int_equal(sublet__chaos_move(f.arena, f.engine_mm[0], 12345), 0);
	struct sublet_pin pin;
	assert_int_equal(sublet_pin(f.engine_mm[0], addr_of(&f, 0, vpn), PAGE, SUBLET_PIN_READ, NULL, &pin),
			 -EBUSY);
	assert_int_equal(fake_child_changed(&child), 0);
	fake_child_exit(&child);
	assert_int_equal(restore_now(&f), 0);
	fixture_verify(&f);
	assert_int_equal(stats_of(&f).area_held_bytes, 0);
	assert_int_equal(stats_of(&f).children, 0);
	check_fill(&f, 0, vpn + 100, 700, 2);
	check_fill(&f, 0, vpn, 100, 1);
	check_part(&f, 0, vpn, 800, area - 800, 1);
	assert_int_equal(claim_take(&f, 512 * PAGE, NULL, &claim), 0);
	claim_give(&f, &claim);
	check_fill(&f, 0, vpn + 100, 700, 2);
	assert_int_equal(restore_now(&f), 0); /* nothing to do */
	fixture_close(&f);
}

/* Memory unmapped or decommitted while the child shares it is parked: nobody gets the frames. */
static void fork_parked(void **unused)
{
	static struct fake f;
	struct fake_child child;
	(void)unused;

	fixture_open(&f, NULL);
	uint32_t area = f.options.area_frames, vpn = map_pages(&f, area, SUBLET_MOVABLE);
	fill(&f, 0, vpn, area, 1);
	fork_now(&f, &child);
	assert_int_equal(sublet_unmap(f.engine_mm[0], addr_of(&f, 0, vpn + 64), 1000 / 16 * UNIT), 0);
	assert_int_equal(sublet_decommit(f.engine_mm[0], addr_of(&f, 0, vpn), 64 * PAGE), 0);
	assert_int_equal(sublet_commit(f.engine_mm[0], addr_of(&f, 0, vpn), 64 * PAGE, 0), 0);
	check_zero(&f, 0, vpn, 64);
	fixture_verify(&f);
	assert_int_equal(stats_of(&f).area_held_bytes, area * PAGE);
	uint32_t more = map_pages(&f, 900, SUBLET_MOVABLE); /* lent less, so more may be lent */
	fill(&f, 0, more, 900, 2);
	assert_int_equal(fake_child_changed(&child), 0);
	fake_child_exit(&child);
	assert_int_equal(restore_now(&f), 0);
	fixture_verify(&f);
	assert_int_equal(stats_of(&f).area_held_bytes, 0);
	assert_int_equal(stats_of(&f).area_free_bytes + stats_of(&f).normal_free_bytes,
			 (f.frames - (area - 992 + 900)) * PAGE);
	check_fill(&f, 0, more, 900, 2);
	fixture_close(&f);
}

/* Memory mapped by another thread between fork_begin and fork is private from the start. */
static void fork_map_between(void **unused)
{
	static struct fake f;
	struct fake_child child;
	(void)unused;

	fixture_open(&f, NULL);
	map_pages(&f, 16, SUBLET_MOVABLE);
	assert_int_equal(fork_begin(f.engine_mm[0]), 0);
	uint32_t vpn = map_pages(&f, 700, SUBLET_MOVABLE), drop = map_pages(&f, 64, SUBLET_DISCARDABLE);
	fill(&f, 0, vpn, 700, 1);
	assert_int_equal(fake_kind_of(&f.mm[0], vpn), FAKE_COPIED);
	fake_child_fork(&child, &f.mm[0]); /* the fake complains of any shared page */
	sublet__mm_fork_end(f.engine_mm[0], CHILD);
	uint32_t after = map_pages(&f, 16, SUBLET_MOVABLE);
	assert_int_equal(fake_kind_of(&f.mm[0], after), FAKE_SHARED);
	fixture_verify(&f);
	fill(&f, 0, drop, 64, 2);
	assert_int_equal(fake_child_changed(&child), 0);
	fake_child_exit(&child);
	assert_int_equal(restore_now(&f), 0);
	check_fill(&f, 0, vpn, 700, 1);
	check_fill(&f, 0, drop, 64, 2);
	fixture_close(&f);
}

/* A second fork before the first child is gone: restore with the old epoch restores nothing. */
static void fork_epochs(void **unused)
{
	static struct fake f;
	struct fake_child first, second;
	(void)unused;

	fixture_open(&f, NULL);
	uint32_t vpn = map_pages(&f, 1000, SUBLET_MOVABLE);
	fill(&f, 0, vpn, 1000, 1);
	fork_now(&f, &first);
	uint32_t epoch = sublet__mm_fork_epoch(f.engine_mm[0]);
	fill(&f, 0, vpn, 500, 2);
	assert_int_equal(sublet_unmap(f.engine_mm[0], addr_of(&f, 0, vpn + 512), 488 * PAGE), 0);
	fork_now(&f, &second);
	fake_child_exit(&first);
	assert_int_equal(sublet__mm_fork_restore(f.engine_mm[0], epoch), -EAGAIN);
	fixture_verify(&f);
	assert_int_equal(stats_of(&f).area_held_bytes + stats_of(&f).area_free_bytes,
			 stats_of(&f).area_bytes);
	fill(&f, 0, vpn, 500, 3);
	assert_int_equal(fake_child_changed(&second), 0);
	fake_child_exit(&second);
	assert_int_equal(restore_now(&f), 0);
	check_fill(&f, 0, vpn, 500, 3);
	assert_int_equal(stats_of(&f).area_held_bytes, 0);
	/* while a fork is under way nothing is restored */
	assert_int_equal(fork_begin(f.engine_mm[0]), 0);
	assert_int_equal(restore_now(&f), -EAGAIN);
	sublet__mm_fork_end(f.engine_mm[0], 0); /* it failed */
	assert_int_equal(stats_of(&f).children, 0);
	assert_int_equal(restore_now(&f), 0);
	check_fill(&f, 0, vpn, 500, 3);
	fixture_close(&f);
}

/* Who reads the epoch while a fork is under way has not seen its child: nothing is restored on that word. */
static void fork_epoch_read_early(void **unused)
{
	static struct fake f;
	(void)unused;

	fixture_open(&f, NULL);
	uint32_t vpn = map_pages(&f, 1000, SUBLET_MOVABLE);
	fill(&f, 0, vpn, 1000, 1);
	assert_int_equal(fork_begin(f.engine_mm[0]), 0);
	uint32_t epoch = sublet__mm_fork_epoch(f.engine_mm[0]);
	sublet__mm_fork_end(f.engine_mm[0], 4711);
	assert_int_equal(sublet__mm_fork_restore(f.engine_mm[0], epoch), -EAGAIN);
	assert_int_equal(stats_of(&f).area_held_bytes, 1000 * PAGE);
	assert_int_equal(restore_now(&f), 0);
	check_fill(&f, 0, vpn, 1000, 1);
	fixture_close(&f);
}

/* What the program protected stays private until it is unprotected, and moves again after that. */
static void fork_protected(void **unused)
{
	static struct fake f;
	struct fake_child child;
	struct sublet_mm *mm;
	(void)unused;

	fixture_open(&f, NULL);
	mm = f.engine_mm[0];
	uint32_t vpn = map_pages(&f, 1024, SUBLET_MOVABLE);
	fill(&f, 0, vpn, 1024, 1);
	assert_false(sublet__mm_note_protected(mm, addr_of(&f, 0, vpn + 70), PAGE, true));
	assert_true(
		sublet__mm_note_protected(mm, addr_of(&f, 0, vpn + 70), PAGE, true)); /* it had the mark */
	assert_false(sublet__mm_note_protected(mm, addr_of(&f, 0, vpn + 1024), PAGE, true)); /* not mapped */
	fork_now(&f, &child);
	fake_child_exit(&child);
	assert_int_equal(restore_now(&f), 0);
	assert_in_range(stats_of(&f).area_held_bytes, PAGE, 512 * PAGE);
	assert_false(sublet__mm_note_protected(mm, addr_of(&f, 0, vpn + 71), PAGE, false)); /* a neighbour */
	assert_true(sublet__mm_note_protected(mm, addr_of(&f, 0, vpn + 70), PAGE, false));
	assert_int_equal(restore_now(&f), 0);
	assert_int_equal(stats_of(&f).area_held_bytes, 0);
	check_fill(&f, 0, vpn, 1024, 1);
	/* unmapped while private, with no child left: free at once, not parked for ever */
	assert_false(sublet__mm_note_protected(mm, addr_of(&f, 0, vpn + 70), PAGE, true));
	fork_now(&f, &child);
	fake_child_exit(&child);
	assert_int_equal(restore_now(&f), 0);
	assert_int_equal(sublet_unmap(mm, addr_of(&f, 0, vpn), bytes_of(&f, 1024)), 0);
	assert_int_equal(stats_of(&f).area_held_bytes, 0);
	fixture_close(&f);
}

/* The protected part of a folio is unmapped: what is left of it can be restored, and is by the next look (G8). */
static void fork_protected_cut(void **unused)
{
	static struct fake f;
	struct fake_child child;
	(void)unused;

	fixture_open(&f, NULL);
	uint32_t vpn = map_pages(&f, 32, SUBLET_MOVABLE);
	fill(&f, 0, vpn, 32, 1);
	assert_false(sublet__mm_note_protected(f.engine_mm[0], addr_of(&f, 0, vpn), 4 * PAGE, true));
	fork_now(&f, &child);
	fake_child_exit(&child);
	assert_int_equal(restore_now(&f), 0);
	assert_int_equal(stats_of(&f).area_held_bytes, bytes_of(&f, 32));
	assert_int_equal(sublet_unmap(f.engine_mm[0], addr_of(&f, 0, vpn), 16 * PAGE), 0);
	assert_int_equal(restore_now(&f), 0);
	assert_int_equal(stats_of(&f).area_held_bytes, 0);
	check_part(&f, 0, vpn, 16, 16, 1);
	fixture_close(&f);
}

static void *unmap_main(void *arg)
{
	struct fake *f = arg;
	uint32_t vpn = 0;

	while (!f->mm[0].page[vpn].kind)
		vpn++;
	assert_int_equal(sublet_unmap(f->engine_mm[0], addr_of(f, 0, vpn), 16 * PAGE), 0);
	return NULL;
}

/* Who unmaps at the very end of a restore, which empties the list of what is parked: nothing comes to it after (G8). */
static void fork_unmap_at_the_end(void **unused)
{
	static struct fake f;
	struct fake_child child;
	pthread_t thread;
	(void)unused;

	fixture_open(&f, NULL);
	struct sublet_mm *mm = f.engine_mm[0];
	uint32_t vpn = map_pages(&f, 16, SUBLET_MOVABLE);
	/* what is protected is not restored */
	assert_false(sublet__mm_note_protected(mm, addr_of(&f, 0, vpn), 16 * PAGE, true));
	fork_now(&f, &child);
	fake_child_exit(&child);
	engine_lock(f.arena, &mm->parked_lock);
	threads_begin();
	assert_int_equal(pthread_create(&thread, NULL, unmap_main, &f), 0);
	while (a32_load_acquire(&mm->parked_lock.word) != 2) /* somebody waits for it */
		usleep(100);
	a32_store_seq_cst(&mm->restored_epoch, sublet__mm_fork_epoch(mm)); /* the restore ends */
	engine_unlock(f.arena, &mm->parked_lock);
	pthread_join(thread, NULL);
	threads_end();
	assert_int_equal(mm->parked, ENGINE_NONE);
	assert_int_equal(restore_now(&f), 0);
	assert_int_equal(stats_of(&f).area_held_bytes, 0);
	fixture_close(&f);
}

/* G5: each platform call of a fork and its restore fails in turn. */
static void fork_failures(void **unused)
{
	static struct fake f;
	(void)unused;

	for (uint32_t persistent = 0; persistent < 2; persistent++)
		for (int64_t n = 1, reached = 1; reached; n++) {
			struct fake_child child;
			fixture_open(&f, NULL);
			uint32_t vpn = map_pages(&f, 1200, SUBLET_MOVABLE);
			for (uint32_t i = 16; i < 1200; i += 64) /* several runs a block */
				assert_int_equal(sublet_unmap(f.engine_mm[0], addr_of(&f, 0, vpn + i), UNIT),
						 0);
			fill(&f, 0, vpn, 16, 1);
			fill(&f, 0, vpn + 1184, 16, 2);
			fake_fail(&f, FAKE_CAN_FAIL, n, -ENOMEM, persistent);
			int err = fork_begin(f.engine_mm[0]);
			if (err) {
				assert_int_equal(err, -ENOMEM);
				sublet__mm_fork_end(f.engine_mm[0], 0);
			} else {
				fake_child_fork(&child, &f.mm[0]);
				sublet__mm_fork_end(f.engine_mm[0], CHILD);
				fill(&f, 0, vpn, 16, 3);
				assert_int_equal(fake_child_changed(&child), 0);
				fake_child_exit(&child);
			}
			fixture_verify(&f);
			int again = restore_now(&f);
			reached = fake_fail_end(&f);
			fixture_verify(&f);
			assert_true(!again || (reached && again == -EAGAIN));
			if (again)
				assert_int_equal(restore_now(&f), 0);
			fixture_verify(&f);
			assert_int_equal(stats_of(&f).area_held_bytes, 0);
			check_fill(&f, 0, vpn, 16, err ? 1 : 3);
			check_fill(&f, 0, vpn + 1184, 16, 2);
			fixture_close(&f);
		}
}

struct racer {
	struct fake *f;
	_Atomic bool *stop;
	uint32_t vpn, pages;
	uint64_t seed;
};

/* Maps, unmaps and writes of its own, checked (G1), while others fork and claim. */
static void *racer_main(void *arg)
{
	struct racer *r = arg;

	for (uint64_t key = 1; !atomic_load(r->stop); key++) {
		void *addr;
		uint32_t pages = 1 + below(&r->seed, 200);
		if (sublet_map(r->f->engine_mm[0], pages * PAGE, SUBLET_MOVABLE, &addr))
			continue;
		uint32_t vpn = vpn_of(r->f, 0, addr);
		check_zero(r->f, 0, vpn, pages);
		fill(r->f, 0, vpn, pages, key);
		check_fill(r->f, 0, vpn, pages, key);
		int err = sublet_unmap(r->f->engine_mm[0], addr, pages * PAGE);
		if (err)
			fail_msg("unmap: %d", err);
	}
	return NULL;
}

/* Forks, children that come and go, restores, claims and other threads, all at once. */
static void fork_race(void **unused)
{
	static struct fake f;
	struct racer racer[2];
	pthread_t thread[2];
	_Atomic bool stop = false;
	uint64_t seed = seed_get("fork_race"), until = wall_ns() + soak_ns(1.5);
	uint32_t forks = 0, claims = 0;
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .mm_pages = 8192 });
	uint32_t vpn = map_pages(&f, 600, SUBLET_MOVABLE);
	threads_begin();
	for (uint32_t i = 0; i < 2; i++) {
		racer[i] = (struct racer){ .f = &f, .stop = &stop, .seed = seed + i };
		assert_int_equal(pthread_create(&thread[i], NULL, racer_main, &racer[i]), 0);
	}
	while (wall_ns() < until) {
		struct fake_child child;
		struct sublet_claim claim;
		struct sublet_claim_options o = { SUBLET_OPTIONS(sublet_claim_options),
						  .deadline_ns = SUBLET_MS };
		fill(&f, 0, vpn, 600, forks);
		fork_now(&f, &child);
		fill(&f, 0, vpn + 50, 300, forks + 1000);
		if (!claim_take(&f, (1 + below(&seed, 1000)) * PAGE, &o, &claim)) {
			claim_give(&f, &claim);
			claims++;
		}
		assert_int_equal(fake_child_changed(&child), 0);
		fake_child_exit(&child);
		for (uint32_t tries = 0; restore_now(&f); tries++)
			assert_true(tries < 1000);
		check_fill(&f, 0, vpn + 50, 300, forks + 1000);
		forks++;
	}
	atomic_store(&stop, true);
	for (uint32_t i = 0; i < 2; i++)
		pthread_join(thread[i], NULL);
	threads_end();
	print_message("%u forks, %u claims meanwhile\n", forks, claims);
	assert_int_equal(stats_of(&f).area_held_bytes, 0);
	fixture_close(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(fork_snapshot),         cmocka_unit_test(fork_parked),
		cmocka_unit_test(fork_map_between),      cmocka_unit_test(fork_epochs),
		cmocka_unit_test(fork_failures),         cmocka_unit_test(fork_protected_cut),
		cmocka_unit_test(fork_unmap_at_the_end), cmocka_unit_test(fork_epoch_read_early),
		cmocka_unit_test(fork_protected),        cmocka_unit_test(fork_race),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
