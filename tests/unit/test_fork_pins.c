/* SPDX-License-Identifier: MIT */
/*
 * core/fork.c: memory in use. A fork waits for pins and devices until one deadline, then leaves what is still in use out of
 * the child (G1, G2, G7). The parent keeps it, and a later child has it again.
 */
#include "fixture.h"

#include "fake_device.h"

#include <sublet/notifier.h>

enum { CHILD = 4711, PAGES = 1000, KEY = 5 };

#define SLACK_NS (20 * SUBLET_MS) /* of virtual time: what the calls of one fork cost beside its sleeps */

static struct fake f;
static struct fake_device fd;

static void open_virtual(uint32_t mms)
{
	fixture_open(&f, &(struct fake_options){ .virtual_time = true, .mms = mms });
}

static int pin_short(uint32_t vpn, uint32_t pages, struct sublet_pin *pin)
{
	return sublet_pin(f.engine_mm[0], addr_of(&f, 0, vpn), pages * PAGE, SUBLET_PIN_WRITE, NULL, pin);
}

/* Fork mm 0: the fake complains of each shared page that the child would get. */
static uint64_t fork_now(struct fake_child *child)
{
	uint64_t start = atomic_load(&f.clock_ns);

	assert_int_equal(fork_begin(f.engine_mm[0]), 0);
	uint64_t waited = atomic_load(&f.clock_ns) - start;
	fake_child_fork(child, &f.mm[0]);
	sublet__mm_fork_end(f.engine_mm[0], CHILD);
	return waited;
}

static int restore_now(void)
{
	return sublet__mm_fork_restore(f.engine_mm[0], sublet__mm_fork_epoch(f.engine_mm[0]));
}

static bool has(const struct fake_child *child, uint32_t vpn)
{
	return child->frame[vpn];
}

/* Pages of [vpn, vpn + pages) that the child does not have. */
static uint32_t missing(const struct fake_child *child, uint32_t vpn, uint32_t pages)
{
	uint32_t count = 0;

	for (uint32_t at = vpn; at < vpn + pages; at++)
		count += !has(child, at);
	return count;
}

/* First page and pages of the folio of a page. */
static uint32_t folio_of(uint32_t vpn, uint32_t *pages)
{
	const struct sublet__frame *head =
		&f.arena->frames[sublet__frame_head(f.arena, fake_pfn_of(&f.mm[0], vpn))];

	*pages = 1u << word_order(a32_load_relaxed(&head->word));
	return a32_load_relaxed(&head->a);
}

/* What a device writes to the frame, the parent reads. */
static void check_device_write(uint32_t vpn, uint64_t value)
{
	uint64_t seen = 0;

	assert_int_equal(fake_kind_of(&f.mm[0], vpn), FAKE_SHARED);
	fake_frame_write(&f, fake_pfn_of(&f.mm[0], vpn), 3, value);
	assert_true(fake_read(&f.mm[0], vpn, 3, &seen));
	assert_int_equal(seen, value);
}

/* A next child has all of it, and no kernel mapping is counted any more for what was left out. */
static void check_again_inherited(uint32_t vpn, uint32_t pages, uint32_t mappings)
{
	struct fake_child child;

	assert_int_equal(restore_now(), 0);
	assert_int_equal(a32_load_relaxed(&f.engine_mm[0]->mapping_count), mappings);
	for (uint32_t at = vpn; at < vpn + pages; at++)
		assert_false(f.mm[0].page[at].uninherited);
	assert_true(fork_now(&child) < SLACK_NS);
	assert_int_equal(missing(&child, vpn, pages), 0);
	fake_child_exit(&child);
	assert_int_equal(restore_now(), 0);
	assert_int_equal(stats_of(&f).area_held_bytes, 0);
}

struct ends {
	struct sublet_pin pin;
	uint64_t at_ns;
	bool is_over;
};

static void end_in_time(void *arg, enum fake_op op, struct fake_mm *mm, uint32_t vpn, uint32_t pages)
{
	struct ends *e = arg;

	(void)mm, (void)vpn, (void)pages;
	if (op != FAKE_SLEEP || e->is_over || atomic_load(&f.clock_ns) < e->at_ns)
		return;
	e->is_over = true;
	assert_int_equal(sublet_unpin(&e->pin), 0);
}

/* A pin that ends in time is waited for, and no longer; the child has all. */
static void pin_that_ends(void **unused)
{
	static const uint64_t after_ns[] = { 0, SUBLET_MS, 300 * SUBLET_MS, 990 * SUBLET_MS };
	(void)unused;

	for (uint32_t i = 0; i < 4; i++) {
		struct fake_child child;
		struct ends e = { .is_over = false };
		open_virtual(1);
		uint32_t vpn = map_pages(&f, PAGES, SUBLET_MOVABLE);
		fill(&f, 0, vpn, PAGES, KEY);
		assert_int_equal(pin_short(vpn + 3, 1, &e.pin), 0);
		e.at_ns = atomic_load(&f.clock_ns) + after_ns[i];
		f.hook = end_in_time;
		f.hook_arg = &e;
		assert_in_range(fork_now(&child), after_ns[i], after_ns[i] + SLACK_NS);
		f.hook = NULL;
		assert_true(e.is_over);
		assert_int_equal(missing(&child, vpn, PAGES), 0);
		assert_int_equal(a32_load_relaxed(&f.engine_mm[0]->left_out_mappings), 0);
		fake_child_exit(&child);
		assert_int_equal(restore_now(), 0);
		check_fill(&f, 0, vpn, PAGES, KEY);
		fixture_close(&f);
	}
}

/* A pin that does not end: its folios are not the child's, all others are. The pin holds what it held (G2). */
static void pin_that_stays(void **unused)
{
	/* where it is, and whether it ends before the fork itself, before the child, after it, after restore */
	static const uint32_t where[][2] = {
		{ 0, 1 }, { 17, 40 }, { 500, 30 }, { PAGES - 1, 1 }, { 0, PAGES }
	};
	(void)unused;

	for (uint32_t i = 0; i < 5 * 4; i++) {
		struct fake_child child;
		struct sublet_pin pin;
		struct sublet_extent e;
		uint32_t at = where[i / 4][0], n = where[i / 4][1], out = 0, pages;
		open_virtual(1);
		uint32_t vpn = map_pages(&f, PAGES, SUBLET_MOVABLE), first, mappings;
		fill(&f, 0, vpn, PAGES, KEY);
		mappings = a32_load_relaxed(&f.engine_mm[0]->mapping_count);
		for (uint32_t page = at; page < at + n; page = first + pages - vpn) {
			first = folio_of(vpn + page, &pages);
			out += pages;
		}
		assert_int_equal(pin_short(vpn + at, n, &pin), 0);
		fake_device_hold(&f.mm[0], vpn + at, n, 1);
		uint64_t start = atomic_load(&f.clock_ns);
		assert_int_equal(fork_begin(f.engine_mm[0]), 0);
		assert_in_range(atomic_load(&f.clock_ns) - start, SUBLET_SEC, SUBLET_SEC + SLACK_NS);
		if (i % 4 == 0) {
			static const struct sublet__window_range any = { .to = MOVE_AREA_FIRST };
			fake_device_hold(&f.mm[0], vpn + at, n, -1);
			assert_int_equal(sublet_unpin(&pin), 0);
			/* a remap would make it inherited again, and shared with the child */
			assert_int_equal(sublet__move_page(f.engine_mm[0], vpn + at, &any), -EAGAIN);
		}
		fake_child_fork(&child, &f.mm[0]);
		sublet__mm_fork_end(f.engine_mm[0], CHILD);
		fixture_verify(&f);
		assert_int_equal(missing(&child, vpn, PAGES), out);
		for (uint32_t page = at; page < at + n; page++)
			assert_false(has(&child, vpn + page));
		assert_true(a32_load_relaxed(&f.engine_mm[0]->mapping_count) >= mappings + 2);
		check_device_write(vpn + at, i);
		if (i % 4 == 1) {
			fake_device_hold(&f.mm[0], vpn + at, n, -1);
			assert_int_equal(sublet_unpin(&pin), 0);
		}
		assert_int_equal(fake_child_changed(&child), 0);
		fake_child_exit(&child);
		if (i % 4 == 2) {
			fake_device_hold(&f.mm[0], vpn + at, n, -1);
			assert_int_equal(sublet_unpin(&pin), 0);
		}
		if (i % 4 == 3) {
			assert_int_equal(restore_now(), 0);
			assert_int_equal(sublet_pin_extents(&pin, 0, &e, 1), 1);
			assert_int_equal(e.offset_bytes, fake_pfn_of(&f.mm[0], vpn + at) * PAGE);
			fake_device_hold(&f.mm[0], vpn + at, n, -1);
			assert_int_equal(sublet_unpin(&pin), 0);
		}
		fill(&f, 0, vpn + at, 1, KEY);
		check_again_inherited(vpn, PAGES, mappings);
		fixture_close(&f);
	}
}

/* One deadline for all blocks and all mms, however many pins there are. */
static void one_deadline(void **unused)
{
	enum { MMS = 3, BLOCKS = 4 };
	struct sublet_pin pin[MMS * BLOCKS];
	void *addr;
	(void)unused;

	open_virtual(MMS);
	for (uint32_t i = 0; i < MMS; i++) {
		assert_int_equal(sublet_map(f.engine_mm[i], (uint64_t)BLOCKS / 2 * 512 * PAGE, SUBLET_MOVABLE,
					    &addr),
				 0);
		for (uint32_t n = 0; n < BLOCKS; n++)
			assert_int_equal(sublet_pin(f.engine_mm[i], (char *)addr + n * 256 * PAGE, PAGE,
						    SUBLET_PIN_WRITE, NULL, &pin[i * BLOCKS + n]),
					 0);
	}
	uint64_t start = atomic_load(&f.clock_ns), until = start + SUBLET__FORK_WAIT_NS;
	for (uint32_t i = 0; i < MMS; i++)
		assert_int_equal(sublet__mm_fork_begin(f.engine_mm[i], until), 0);
	assert_in_range(atomic_load(&f.clock_ns) - start, SUBLET_SEC, SUBLET_SEC + SLACK_NS);
	for (uint32_t i = 0; i < MMS; i++) {
		struct fake_child child;
		fake_child_fork(&child, &f.mm[i]);
		sublet__mm_fork_end(f.engine_mm[i], CHILD);
		fake_child_exit(&child);
	}
	for (uint32_t i = 0; i < MMS * BLOCKS; i++)
		assert_int_equal(sublet_unpin(&pin[i]), 0);
	for (uint32_t i = 0; i < MMS; i++)
		assert_int_equal(
			sublet__mm_fork_restore(f.engine_mm[i], sublet__mm_fork_epoch(f.engine_mm[i])), 0);
	fixture_close(&f);
}

/* Forks while a child lives on: what an earlier one left out is another child's when it is free, counted once. */
static void fork_after_fork(void **unused)
{
	struct fake_child child[4];
	struct sublet_pin pin;
	(void)unused;

	open_virtual(1);
	uint32_t vpn = map_pages(&f, PAGES, SUBLET_MOVABLE);
	uint32_t mappings = a32_load_relaxed(&f.engine_mm[0]->mapping_count);
	fill(&f, 0, vpn, PAGES, KEY);
	assert_int_equal(pin_short(vpn + 600, 1, &pin), 0);
	for (uint32_t i = 0; i < 3; i++) {
		assert_in_range(fork_now(&child[i]), SUBLET_SEC, SUBLET_SEC + SLACK_NS);
		assert_false(has(&child[i], vpn + 600));
		assert_int_equal(a32_load_relaxed(&f.engine_mm[0]->mapping_count), mappings + 2);
	}
	assert_int_equal(sublet_unpin(&pin), 0);
	assert_true(fork_now(&child[3]) < SLACK_NS);
	assert_true(has(&child[3], vpn + 600));
	assert_int_equal(a32_load_relaxed(&f.engine_mm[0]->mapping_count), mappings);
	for (uint32_t i = 0; i < 4; i++) {
		assert_int_equal(fake_child_changed(&child[i]), 0);
		fake_child_exit(&child[i]);
	}
	check_again_inherited(vpn, PAGES, mappings);
	check_fill(&f, 0, vpn, PAGES, KEY);
	fixture_close(&f);
}

/* Left out, then unmapped, moved, or pinned for long, before restore: each ends as it would have. */
static void left_out_then(void **unused)
{
	(void)unused;

	for (uint32_t what = 0; what < 3; what++) {
		static const struct sublet__window_range any = { .to = MOVE_AREA_FIRST };
		struct fake_child child;
		struct sublet_pin pin;
		open_virtual(1);
		struct sublet_mm *mm = f.engine_mm[0];
		uint32_t vpn = map_pages(&f, 64, SUBLET_MOVABLE), mappings;
		assert_int_equal(pin_short(vpn, 64, &pin), 0);
		mappings = a32_load_relaxed(&mm->mapping_count);
		(void)fork_now(&child);
		assert_int_equal(missing(&child, vpn, 64), 64);
		assert_int_equal(sublet_unpin(&pin), 0);
		if (what == 0) {
			assert_int_equal(sublet_unmap(mm, addr_of(&f, 0, vpn), 64 * PAGE), 0);
			assert_int_equal(stats_of(&f).area_held_bytes, 0); /* no child has it: not parked */
			assert_int_equal(map_pages(&f, 64, SUBLET_MOVABLE), vpn);
		} else if (what == 1) {
			assert_int_equal(sublet__move_page(mm, vpn, &any), 64); /* no child has it */
			assert_false(f.mm[0].page[vpn].uninherited);
		} else {
			assert_int_equal(sublet_pin(mm, addr_of(&f, 0, vpn), 64 * PAGE,
						    SUBLET_PIN_READ | SUBLET_PIN_LONGTERM, NULL, &pin),
					 0);
			fake_child_exit(&child);
			assert_int_equal(restore_now(), 0);
			assert_true(f.mm[0].page[vpn].uninherited); /* by its own right now */
			(void)fork_now(&child);
			assert_int_equal(missing(&child, vpn, 64), 64);
			assert_int_equal(sublet_unpin(&pin), 0);
		}
		fake_child_exit(&child);
		check_again_inherited(vpn, 64, mappings);
		fixture_close(&f);
	}
}

/* A long-term pin that fails while a fork is under way does not give back to the child what was left out. */
static void failed_longterm_pin(void **unused)
{
	struct fake_child child;
	struct sublet_pin pin, both;
	(void)unused;

	open_virtual(1);
	struct sublet_mm *mm = f.engine_mm[0];
	uint32_t vpn = map_pages(&f, 16, SUBLET_MOVABLE);
	/* into the normal zone, where a long-term pin needs no move */
	assert_int_equal(sublet_pin(mm, addr_of(&f, 0, vpn), 16 * PAGE,
				    SUBLET_PIN_WRITE | SUBLET_PIN_LONGTERM, NULL, &both),
			 0);
	assert_int_equal(sublet_unpin(&both), 0);
	assert_int_equal(pin_short(vpn, 16, &pin), 0);
	assert_int_equal(fork_begin(mm), 0);
	fake_fail(&f, 1u << FAKE_INHERIT, 1, -ENOMEM, false);
	assert_int_equal(sublet_pin(mm, addr_of(&f, 0, vpn), 16 * PAGE,
				    SUBLET_PIN_WRITE | SUBLET_PIN_LONGTERM, NULL, &both),
			 -ENOMEM);
	assert_true(fake_fail_end(&f));
	fake_child_fork(&child, &f.mm[0]);
	sublet__mm_fork_end(mm, CHILD);
	assert_int_equal(missing(&child, vpn, 16), 16);
	assert_int_equal(sublet_unpin(&pin), 0);
	fake_child_exit(&child);
	assert_int_equal(restore_now(), 0);
	fixture_close(&f);
}

/* G5: each platform call of a fork with a pin held fails in turn; nothing of it is left behind. */
static void failures(void **unused)
{
	(void)unused;

	for (int64_t n = 1, reached = 1; reached; n++) {
		struct fake_child child;
		struct sublet_pin pin[2];
		open_virtual(1);
		uint32_t vpn = map_pages(&f, PAGES, SUBLET_MOVABLE);
		uint32_t mappings = a32_load_relaxed(&f.engine_mm[0]->mapping_count);
		fill(&f, 0, vpn, PAGES, KEY);
		assert_int_equal(pin_short(vpn + 20, 1, &pin[0]), 0);
		assert_int_equal(pin_short(vpn + 700, 100, &pin[1]), 0);
		fake_fail(&f, FAKE_CAN_FAIL, n, -ENOMEM, false);
		int err = fork_begin(f.engine_mm[0]);
		if (err) {
			assert_int_equal(err, -ENOMEM);
			sublet__mm_fork_end(f.engine_mm[0], 0);
		} else {
			fake_child_fork(&child, &f.mm[0]);
			sublet__mm_fork_end(f.engine_mm[0], CHILD);
			assert_false(has(&child, vpn + 20));
			assert_int_equal(fake_child_changed(&child), 0);
			fake_child_exit(&child);
		}
		int again = restore_now();
		reached = fake_fail_end(&f);
		assert_true(!again || (reached && again == -EAGAIN));
		fixture_verify(&f);
		assert_int_equal(sublet_unpin(&pin[0]), 0);
		assert_int_equal(sublet_unpin(&pin[1]), 0);
		check_again_inherited(vpn, PAGES, mappings);
		check_fill(&f, 0, vpn, PAGES, KEY);
		fixture_close(&f);
	}
}

static int never(void *ctx, const struct sublet_invalidation *inv)
{
	(void)ctx;
	return inv->may_block ? 0 : -EAGAIN;
}

/* A notifier that declines: what it watches is left out, folio by folio, and nothing beside it. */
static void notifier_that_declines(void **unused)
{
	static const struct sublet_notifier_ops ops = { SUBLET_OPTIONS(sublet_notifier_ops),
							.invalidate = never };
	struct sublet_notifier notifier;
	struct fake_child child;
	uint32_t pages;
	(void)unused;

	open_virtual(1);
	uint32_t vpn = map_pages(&f, PAGES, SUBLET_MOVABLE);
	uint32_t mappings = a32_load_relaxed(&f.engine_mm[0]->mapping_count);
	fill(&f, 0, vpn, PAGES, KEY);
	(void)folio_of(vpn + 900, &pages);
	assert_int_equal(sublet_notifier_add(f.engine_mm[0], addr_of(&f, 0, vpn + 900), PAGE, &ops, NULL,
					     NULL, &notifier),
			 0);
	assert_in_range(fork_now(&child), SUBLET_SEC, SUBLET_SEC + SLACK_NS);
	assert_false(has(&child, vpn + 900));
	assert_int_equal(missing(&child, vpn, PAGES), pages);
	fake_child_exit(&child);
	assert_int_equal(sublet_notifier_remove(&notifier), 0);
	check_again_inherited(vpn, PAGES, mappings);
	check_fill(&f, 0, vpn, PAGES, KEY);
	fixture_close(&f);
}

/* A job that is still in flight after a second: its buffer is left out, and what it writes is the parent's. */
static void device_that_works_on(void **unused)
{
	struct sublet_job job = job_of(SUBLET_JOB_FILL, 32);
	struct fake_child child;
	(void)unused;

	open_virtual(1);
	fake_device_open(&fd, &f, NULL);
	uint32_t vpn = map_pages(&f, 600, SUBLET_MOVABLE);
	fill(&f, 0, vpn, 600, KEY);
	struct sublet_bo bo = bo_over(&fd, vpn + 64, 32, SUBLET_BO_TRACKED);
	job.timeout_ns = 10 * SUBLET_SEC;
	job.pattern = 77;
	struct sublet_fence fence = go(&fd, &job, bo, (struct sublet_bo){ 0 });
	assert_in_range(fork_now(&child), SUBLET_SEC, SUBLET_SEC + SLACK_NS);
	for (uint32_t at = vpn + 64; at < vpn + 96; at++)
		assert_false(has(&child, at));
	assert_true(has(&child, vpn + 599));
	assert_true(fake_device_step(&fd));
	assert_int_equal(fence_end(&fence), 0);
	check_pattern(&f, vpn + 64, 32, 77);
	assert_int_equal(fake_child_changed(&child), 0);
	fake_child_exit(&child);
	assert_int_equal(restore_now(), 0);
	assert_true(fork_now(&child) < SLACK_NS);
	assert_int_equal(missing(&child, vpn, 600), 0);
	fake_child_exit(&child);
	assert_int_equal(restore_now(), 0);
	fake_device_close(&fd);
	fixture_close(&f);
}

struct asker {
	const struct sublet_pin *pin;
	_Atomic bool stop;
	int answer; /* the first that was not one extent */
};

static void *asker_main(void *arg)
{
	struct asker *a = arg;
	struct sublet_extent extent;

	a->answer = 1;
	while (!atomic_load(&a->stop) && a->answer == 1)
		a->answer = sublet_pin_extents(a->pin, 0, &extent, 1);
	return NULL;
}

/* A pin keeps its extents while a fork tries, waits for it, and leaves it out (G2). */
static void asks_pins(void **unused)
{
	struct sublet_pin pin;
	pthread_t thread;
	(void)unused;

	open_virtual(1);
	uint32_t vpn = map_pages(&f, 16, SUBLET_MOVABLE);
	assert_int_equal(pin_short(vpn, 1, &pin), 0);
	struct asker asker = { .pin = &pin };
	threads_begin();
	assert_int_equal(pthread_create(&thread, NULL, asker_main, &asker), 0);
	for (uint32_t i = 0; i < 30; i++) {
		assert_int_equal(fork_begin(f.engine_mm[0]), 0);
		sublet__mm_fork_end(f.engine_mm[0], 0);
	}
	atomic_store(&asker.stop, true);
	pthread_join(thread, NULL);
	threads_end();
	assert_int_equal(asker.answer, 1);
	assert_int_equal(sublet_unpin(&pin), 0);
	assert_int_equal(restore_now(), 0);
	fixture_close(&f);
}

struct pinner {
	_Atomic bool *stop;
	uint32_t vpn, pages;
	uint64_t seed, pins;
};

/* Pins, writes as a device does, reads it back (G1), unpins. */
static void *pinner_main(void *arg)
{
	struct pinner *p = arg;
	struct sublet_pin pin;
	uint64_t seen;

	while (!atomic_load(p->stop)) {
		uint32_t at = p->vpn + below(&p->seed, p->pages);
		int err = pin_short(at, 1, &pin);
		if (err == -EBUSY) /* a child shares it */
			continue;
		if (err)
			fail_msg("pin: %d", err);
		fake_device_hold(&f.mm[0], at, 1, 1);
		fake_frame_write(&f, fake_pfn_of(&f.mm[0], at), 0, ++p->pins);
		if (!fake_read(&f.mm[0], at, 0, &seen) || seen != p->pins)
			fail_msg("page %u: %llu instead of %llu", at, (unsigned long long)seen,
				 (unsigned long long)p->pins);
		fake_device_hold(&f.mm[0], at, 1, -1);
		if (sublet_unpin(&pin))
			fail_msg("unpin");
	}
	return NULL;
}

/* Pins come and go while each fork decides at once what it leaves out: none is missed (G1, G2). */
static void pins_race(void **unused)
{
	struct pinner pinner[2];
	pthread_t thread[2];
	_Atomic bool stop = false;
	uint64_t seed = seed_get("pins_race"), until = wall_ns() + soak_ns(1.5);
	uint32_t forks = 0, left_out = 0;
	(void)unused;

	fixture_open(&f, NULL);
	struct sublet_mm *mm = f.engine_mm[0];
	uint32_t vpn = map_pages(&f, 16, SUBLET_MOVABLE);
	for (uint32_t at = 16; at < 320; at += 16) /* small folios */
		assert_int_equal(map_pages(&f, 16, SUBLET_MOVABLE), vpn + at);
	fill(&f, 0, vpn, 320, KEY);
	threads_begin();
	for (uint32_t i = 0; i < 2; i++) {
		pinner[i] = (struct pinner){ &stop, vpn + i * 160, 160, seed + i, 0 };
		assert_int_equal(pthread_create(&thread[i], NULL, pinner_main, &pinner[i]), 0);
	}
	while (wall_ns() < until) {
		struct fake_child child;
		assert_int_equal(sublet__mm_fork_begin(mm, 0), 0); /* a deadline that has passed */
		fake_child_fork(&child, &f.mm[0]);
		sublet__mm_fork_end(mm, CHILD);
		left_out += missing(&child, vpn, 320);
		assert_int_equal(fake_child_changed(&child), 0);
		fake_child_exit(&child);
		for (uint32_t tries = 0; restore_now(); tries++)
			assert_true(tries < 100000);
		(void)sublet__chaos_move(f.arena, mm, rng(&seed));
		forks++;
	}
	atomic_store(&stop, true);
	for (uint32_t i = 0; i < 2; i++)
		pthread_join(thread[i], NULL);
	threads_end();
	print_message("%u forks left %u pages out\n", forks, left_out);
	assert_int_equal(stats_of(&f).area_held_bytes, 0);
	fixture_close(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(pin_that_ends),
		cmocka_unit_test(pin_that_stays),
		cmocka_unit_test(one_deadline),
		cmocka_unit_test(fork_after_fork),
		cmocka_unit_test(left_out_then),
		cmocka_unit_test(failed_longterm_pin),
		cmocka_unit_test(failures),
		cmocka_unit_test(notifier_that_declines),
		cmocka_unit_test(device_that_works_on),
		cmocka_unit_test(asks_pins),
		cmocka_unit_test(pins_race),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
