/* SPDX-License-Identifier: MIT */
/*
 * The engine at its bounds: sizes that do not fit, tables that are full, counts that cannot go higher, memory that is
 * refused while it is created. Each is an answer, and leaves everything as it was (G5, G7).
 */
#include "fixture.h"

#include <sublet/iopt.h>
#include <sublet/notifier.h>

static struct sublet__arena_config config_of(struct fake *f)
{
	return (struct sublet__arena_config){
		.platform = f->platform,
		.area_frames = 1024,
		.normal_frames = 512,
	};
}

static void arena_sizes(void **unused)
{
	struct fake f;
	struct fake_options options = { 0 };
	struct sublet_arena *arena = NULL;
	(void)unused;

	fixture_open(&f, &options);
	struct sublet__arena_config wrong[8];
	for (uint32_t i = 0; i < 8; i++)
		wrong[i] = config_of(&f);
	wrong[0].area_frames = 0;
	wrong[1].area_frames = 1000;
	wrong[2].normal_frames = 100;
	wrong[3].area_frames = ENGINE_PFN_MAX - 512;
	wrong[4].platform.run_pages_max = 0;
	wrong[5].platform.run_pages_max = 2 * ENGINE_BLOCK_PAGES;
	wrong[6].platform.run_pages_max = 48;
	wrong[7].area_frames = ENGINE_PFN_MAX;
	for (uint32_t i = 0; i < 8; i++)
		assert_int_equal(sublet__arena_init(&wrong[i], &arena), -EINVAL);
	struct sublet__arena_config right = config_of(&f);
	int64_t before = atomic_load(&f.reserved_bytes);
	fake_fail(&f, 1u << FAKE_RESERVE, 1, ENOMEM, false);
	assert_int_equal(sublet__arena_init(&right, &arena), -ENOMEM);
	assert_true(fake_fail_end(&f));
	assert_null(arena);
	assert_int_equal(sublet__arena_init(&right, &arena), 0);
	sublet__arena_fini(arena);
	assert_int_equal(atomic_load(&f.reserved_bytes), before);
	fixture_close(&f);
}

/* As many address spaces as there is room for; one more is refused, and its memory given back. */
static void address_spaces(void **unused)
{
	struct fake f;
	struct fake_options options = { 0 };
	struct sublet_mm *mm = NULL;
	(void)unused;

	fixture_open(&f, &options);
	struct sublet__mm_config config = f.engine_mm[0]->config;
	config.pages = 0;
	assert_int_equal(sublet__mm_create(f.arena, &config, &mm), -EINVAL);
	config.pages = 512;
	config.base += PAGE;
	assert_int_equal(sublet__mm_create(f.arena, &config, &mm), -EINVAL);
	config.base -= PAGE;
	fake_fail(&f, 1u << FAKE_RESERVE, 1, ENOMEM, false);
	assert_int_equal(sublet__mm_create(f.arena, &config, &mm), -ENOMEM);
	assert_true(fake_fail_end(&f));
	uint64_t metadata = sublet__arena_metadata_bytes(f.arena);
	for (uint32_t i = 1; i < ENGINE_MMS_MAX; i++) {
		assert_int_equal(sublet__mm_create(f.arena, &config, &mm), 0);
		assert_ptr_equal(sublet__arena_mm(f.arena, i), mm);
		assert_ptr_equal(sublet__mm_arena(mm), f.arena);
	}
	assert_true(sublet__arena_metadata_bytes(f.arena) > metadata);
	int64_t before = atomic_load(&f.reserved_bytes);
	assert_int_equal(sublet__mm_create(f.arena, &config, &mm), -ENOMEM);
	assert_int_equal(atomic_load(&f.reserved_bytes), before);
	assert_null(sublet__arena_mm(f.arena, ENGINE_MMS_MAX));
	fixture_close(&f);
}

/* What the program does outside the window is none of the engine's business. */
static void outside_the_window(void **unused)
{
	struct fake f;
	struct fake_options options = { 0 };
	(void)unused;

	fixture_open(&f, &options);
	struct sublet_mm *mm = f.engine_mm[0];
	uint32_t vpn = map_pages(&f, 16, SUBLET_MOVABLE);
	void *below = (void *)(uintptr_t)(mm->config.base - 4 * PAGE);
	sublet__mm_note_locked(mm, below, 4 * PAGE, true);
	assert_false(sublet__mm_note_protected(mm, below, 4 * PAGE, true));
	assert_false(a32_load_relaxed(&mm->pte[vpn]) & (PTE_LOCKED | PTE_PROTECTED));
	/* A range that begins before it and runs to the end of all addresses takes in all of the window. */
	sublet__mm_note_locked(mm, below, UINT64_MAX, true);
	for (uint32_t i = 0; i < 16; i++)
		assert_true(a32_load_relaxed(&mm->pte[vpn + i]) & PTE_LOCKED);
	fixture_close(&f);
}

/* Where the arena is full and the kernel has no ordinary memory either, a mapping is refused, and nothing is lent. */
static void nothing_left_to_map(void **unused)
{
	struct fake f;
	struct fake_options options = { .area_frames = 512, .normal_frames = FAKE_NORMAL_NONE };
	void *addr = NULL;
	(void)unused;

	fixture_open(&f, &options);
	(void)map_pages(&f, 512, SUBLET_MOVABLE);
	fake_fail(&f, 1u << FAKE_MAP_PLAIN, 1, -ENOMEM, true);
	assert_int_equal(sublet_map(f.engine_mm[0], 16 * PAGE, SUBLET_MOVABLE | SUBLET_PLAIN_OK, &addr),
			 -ENOMEM);
	assert_true(fake_fail_end(&f));
	assert_null(addr);
	assert_int_equal(stats_of(&f).lent_bytes, 512 * PAGE);
	assert_int_equal(stats_of(&f).plain_bytes, 0);
	fixture_close(&f);
}

/* Questions about nothing. */
static void asked_in_vain(void **unused)
{
	struct fake f;
	struct fake_options options = { 0 };
	struct sublet_extent extent;
	struct sublet_iopt_options table = { SUBLET_OPTIONS(sublet_iopt_options),
					     .aperture_bytes = SUBLET_MIB };
	struct sublet_iopt *iopt = NULL;
	(void)unused;

	fixture_open(&f, &options);
	struct sublet_mm *mm = f.engine_mm[0];
	void *addr = addr_of(&f, 0, map_pages(&f, 16, SUBLET_MOVABLE));
	assert_int_equal(sublet_mm_extents(mm, (char *)addr - SUBLET_GIB, PAGE, 0, &extent, 1), -EINVAL);
	assert_int_equal(sublet_mm_extents(mm, addr, PAGE, 0, &extent, 0), -EINVAL);
	assert_int_equal(sublet_mm_extents(mm, addr, PAGE, PAGE + 1, &extent, 1), -EINVAL);
	/* A table of a device that keeps nothing has nothing to flush. */
	assert_int_equal(sublet_iopt_create(f.arena, &table, &iopt), 0);
	sublet_iopt_flush(iopt);
	sublet_iopt_destroy(iopt);
	fixture_close(&f);
}

/* All slots of the claim table are taken: the next claim is told that claims are in its way. */
static void claims_without_a_slot(void **unused)
{
	struct fake f;
	struct fake_options options = { .area_frames = 512 * 10 };
	static struct sublet_claim claim[ENGINE_CLAIMS_MAX], one_more;
	struct sublet_claim_options nozero = { SUBLET_OPTIONS(sublet_claim_options),
					       .flags = SUBLET_CLAIM_NOZERO };
	(void)unused;

	fixture_open(&f, &options);
	for (uint32_t i = 0; i < ENGINE_CLAIMS_MAX; i++)
		assert_int_equal(sublet_claim(f.arena, PAGE, &nozero, &claim[i]), 0);
	assert_int_equal(sublet_claim(f.arena, PAGE, &nozero, &one_more), -EBUSY);
	assert_int_equal(one_more.blocker_count, 1);
	assert_int_equal(one_more.blockers[0].kind, SUBLET_BLOCKER_CLAIM);
	assert_int_equal(sublet_release(f.arena, &claim[17]), 0);
	assert_int_equal(sublet_claim(f.arena, PAGE, &nozero, &claim[17]), 0);
	fixture_verify(&f);
	for (uint32_t i = 0; i < ENGINE_CLAIMS_MAX; i++)
		assert_int_equal(sublet_release(f.arena, &claim[i]), 0);
	fixture_close(&f);
}

/* Who would have to block the stack that he stands on is refused before anything happens. */
static void claim_from_a_lent_stack(void **unused)
{
	struct fake f;
	uint64_t here = (uint64_t)(uintptr_t)__builtin_frame_address(0) & ~(2 * SUBLET_MIB - 1);
	struct fake_options options = { .base = here - 8 * SUBLET_MIB };
	struct sublet_claim claim;
	(void)unused;

	fixture_open(&f, &options);
	assert_int_equal(sublet_claim(f.arena, 2 * SUBLET_MIB, NULL, &claim), -EDEADLK);
	assert_int_equal(claim.windows_tried, 0);
	fixture_close(&f);
}

/* A count that is full refuses another pin of its class, and no pin is lost or gained. */
static void pins_without_end(void **unused)
{
	struct fake f;
	struct fake_options options = { 0 };
	struct sublet_pin pin;
	(void)unused;

	fixture_open(&f, &options);
	uint32_t vpn = map_pages(&f, 16, SUBLET_MOVABLE);
	struct sublet__frame *frame = &f.arena->frames[pte_pfn(a32_load_relaxed(&f.engine_mm[0]->pte[vpn]))];
	a32_store_relaxed(&frame->ref, REF_SHORT_MASK);
	assert_int_equal(sublet_pin(f.engine_mm[0], addr_of(&f, 0, vpn), PAGE, SUBLET_PIN_READ, NULL, &pin),
			 -EBUSY);
	assert_int_equal(a32_load_relaxed(&frame->ref), REF_SHORT_MASK);
	a32_store_relaxed(&frame->ref, REF_SHORT_MASK - 1);
	assert_int_equal(sublet_pin(f.engine_mm[0], addr_of(&f, 0, vpn), PAGE, SUBLET_PIN_READ, NULL, &pin),
			 0);
	assert_int_equal(a32_load_relaxed(&frame->ref) & REF_COUNT_MASK, REF_SHORT_MASK);
	assert_int_equal(sublet_unpin(&pin), 0);
	a32_store_relaxed(&frame->ref, 0);
	fixture_close(&f);
}

/* The same in the middle of a long-term pin: what it had taken before is given back (G5). */
static void long_pins_without_end(void **unused)
{
	struct fake f;
	struct fake_options options = { 0 };
	struct sublet_pin pin;
	const uint32_t flags = SUBLET_PIN_WRITE | SUBLET_PIN_LONGTERM, pages = 64;
	(void)unused;

	fixture_open(&f, &options);
	struct sublet_mm *mm = f.engine_mm[0];
	uint32_t vpn = map_pages(&f, 2 * pages, SUBLET_MOVABLE);
	void *first = addr_of(&f, 0, vpn), *second = addr_of(&f, 0, vpn + pages);
	/* Each half is moved to the normal zone, as folios of its own. */
	assert_int_equal(sublet_pin(mm, first, pages * PAGE, flags, NULL, &pin), 0);
	assert_int_equal(sublet_unpin(&pin), 0);
	assert_int_equal(sublet_pin(mm, second, pages * PAGE, flags, NULL, &pin), 0);
	assert_int_equal(sublet_unpin(&pin), 0);
	struct sublet__frame *a = &f.arena->frames[pte_pfn(a32_load_relaxed(&mm->pte[vpn]))];
	struct sublet__frame *b = &f.arena->frames[pte_pfn(a32_load_relaxed(&mm->pte[vpn + pages]))];
	a32_store_relaxed(&b->ref, REF_LONG_MASK);
	assert_int_equal(sublet_pin(mm, first, 2 * pages * PAGE, flags, NULL, &pin), -EBUSY);
	assert_int_equal(a32_load_relaxed(&a->ref) & REF_COUNT_MASK, 0);
	assert_int_equal(a32_load_relaxed(&b->ref) & REF_COUNT_MASK, REF_LONG_MASK);
	a32_store_relaxed(&b->ref, 0);
	fixture_close(&f);
}

/* Somebody holds the block lock: whoever must not sleep is told to come again, whichever kind of pin it is. */
static void pins_that_must_not_wait(void **unused)
{
	struct fake f;
	struct fake_options options = { 0 };
	struct sublet_pin pin;
	const uint32_t flags = SUBLET_PIN_READ | SUBLET_PIN_NOWAIT;
	(void)unused;

	fixture_open(&f, &options);
	uint32_t vpn = map_pages(&f, 16, SUBLET_MOVABLE);
	struct sublet_mm *mm = f.engine_mm[0];
	struct sublet__frame *frame = &f.arena->frames[pte_pfn(a32_load_relaxed(&mm->pte[vpn]))];
	struct sublet__window_range range = { .nowait = true };
	engine_lock(f.arena, block_lock_of(mm, vpn));
	a32_store_relaxed(&frame->ref, REF_FROZEN); /* as while it moves: the fast path cannot decide */
	assert_int_equal(sublet_pin(mm, addr_of(&f, 0, vpn), PAGE, flags, NULL, &pin), -EAGAIN);
	a32_store_relaxed(&frame->ref, 0);
	assert_int_equal(sublet_pin(mm, addr_of(&f, 0, vpn), PAGE, flags | SUBLET_PIN_LONGTERM, NULL, &pin),
			 -EAGAIN);
	assert_int_equal(sublet__move_page(mm, vpn, &range), -EAGAIN);
	engine_unlock(f.arena, block_lock_of(mm, vpn));
	assert_int_equal(sublet_pin(mm, addr_of(&f, 0, vpn), PAGE, flags | SUBLET_PIN_LONGTERM, NULL, &pin),
			 0);
	assert_int_equal(sublet_unpin(&pin), 0);
	fixture_close(&f);
}

/* What the program locked in memory, and unlocked for dropping, is locked in memory again when it is shown. */
static void locked_and_shown_again(void **unused)
{
	struct fake f;
	struct fake_options options = { 0 };
	(void)unused;

	fixture_open(&f, &options);
	struct sublet_mm *mm = f.engine_mm[0];
	uint32_t vpn = map_pages(&f, 64, SUBLET_DISCARDABLE);
	void *addr = addr_of(&f, 0, vpn);
	fill(&f, 0, vpn, 64, 5);
	sublet__mm_note_locked(mm, addr, 64 * PAGE, true);
	assert_int_equal(sublet_unlock(mm, addr, 64 * PAGE), 0);
	assert_int_equal(sublet_lock(mm, addr, 64 * PAGE), SUBLET_INTACT);
	for (uint32_t i = 0; i < 64; i++)
		assert_true(fake_locked(&f.mm[0], vpn + i));
	check_fill(&f, 0, vpn, 64, 5);
	fixture_close(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(arena_sizes),
		cmocka_unit_test(address_spaces),
		cmocka_unit_test(outside_the_window),
		cmocka_unit_test(nothing_left_to_map),
		cmocka_unit_test(asked_in_vain),
		cmocka_unit_test(claims_without_a_slot),
		cmocka_unit_test(claim_from_a_lent_stack),
		cmocka_unit_test(pins_without_end),
		cmocka_unit_test(long_pins_without_end),
		cmocka_unit_test(pins_that_must_not_wait),
		cmocka_unit_test(locked_and_shown_again),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
