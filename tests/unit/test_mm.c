/* SPDX-License-Identifier: MIT */
/* core/mm.c: map and unmap. G5 (a failure changes nothing), G8 (lent frames add up), G9 (fresh is zero). */
#include "fixture.h"

static uint64_t used_bytes(struct fake *f)
{
	struct sublet_stats s = stats_of(f);
	return s.area_bytes - s.area_free_bytes + s.normal_used_bytes;
}

/* Sizes around every power of two: aligned as promised, zero, and gone as a whole (G9). */
static void mm_sizes(void **unused)
{
	static struct fake f;
	struct sublet_mm *mm;
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .dirty_zero_frames = true });
	mm = f.engine_mm[0];
	for (uint32_t shift = 0; shift <= 11; shift++)
		for (int32_t off = -1; off <= 1; off++) {
			uint64_t bytes = (PAGE << shift) + 100u * (uint64_t)(off + 1) - 100;
			uint32_t pages = (uint32_t)((bytes + PAGE - 1) / PAGE);
			void *addr;
			assert_int_equal(sublet_map(mm, bytes, SUBLET_MOVABLE, &addr), 0);
			assert_int_equal((uintptr_t)addr % (bytes >= 2 * SUBLET_MIB ? 2 * SUBLET_MIB : UNIT),
					 0);
			check_zero(&f, 0, vpn_of(&f, 0, addr), pages);
			assert_int_equal(stats_of(&f).lent_bytes, pages * PAGE);
			fixture_verify(&f);
			fill(&f, 0, vpn_of(&f, 0, addr), pages, shift);
			assert_int_equal(sublet_unmap(mm, addr, bytes), 0);
			assert_int_equal(fake_kind_of(&f.mm[0], vpn_of(&f, 0, addr)), FAKE_NONE);
			assert_int_equal(used_bytes(&f), 0);
			fixture_verify(&f);
		}
	fixture_close(&f);
}

/* Alignments of the address up to 1 GiB, also where the window starts at an odd multiple of 2 MiB. */
static void mm_alignments(void **unused)
{
	(void)unused;

	for (uint64_t base = 4 * SUBLET_GIB; base <= 4 * SUBLET_GIB + 6 * SUBLET_MIB;
	     base += 2 * SUBLET_MIB) {
		static struct fake f;
		fixture_open(&f, &(struct fake_options){ .base = base, .mm_pages = 3u << 18 });
		for (uint64_t align = 1; align <= SUBLET_GIB; align *= 2) {
			void *addr;
			assert_int_equal(sublet_map_aligned(f.engine_mm[0], 5 * PAGE, align, SUBLET_MOVABLE,
							    &addr),
					 0);
			assert_int_equal((uintptr_t)addr % align, 0);
			fill(&f, 0, vpn_of(&f, 0, addr), 5, align);
		}
		fixture_close(&f);
	}
}

static void mm_bad_arguments(void **unused)
{
	static struct fake f;
	struct sublet_mm *mm;
	void *addr;
	(void)unused;

	fixture_open(&f, NULL);
	mm = f.engine_mm[0];
	assert_int_equal(sublet_map(mm, 0, SUBLET_MOVABLE, &addr), -EINVAL);
	assert_int_equal(sublet_map(mm, PAGE, 0, &addr), -EINVAL);
	assert_int_equal(sublet_map(mm, PAGE, SUBLET_MOVABLE | SUBLET_DISCARDABLE, &addr), -EINVAL);
	assert_int_equal(sublet_map(mm, PAGE, SUBLET_DISCARDABLE | SUBLET_PLAIN_OK, &addr), -EINVAL);
	assert_int_equal(sublet_map(mm, PAGE, SUBLET_MOVABLE | 1u << 20, &addr), -EINVAL);
	assert_int_equal(sublet_map(mm, UINT64_MAX, SUBLET_MOVABLE, &addr), -ENOMEM);
	assert_int_equal(sublet_map(mm, UINT64_MAX - 10000, SUBLET_MOVABLE, &addr), -ENOMEM);
	assert_int_equal(sublet_map_aligned(mm, PAGE, 0, SUBLET_MOVABLE, &addr), -EINVAL);
	assert_int_equal(sublet_map_aligned(mm, PAGE, 3, SUBLET_MOVABLE, &addr), -EINVAL);
	assert_int_equal(sublet_map_aligned(mm, PAGE, 2 * SUBLET_GIB, SUBLET_MOVABLE, &addr), -EINVAL);

	uint32_t vpn = map_pages(&f, 40, SUBLET_MOVABLE);
	fill(&f, 0, vpn, 40, 1);
	char *a = addr_of(&f, 0, vpn);
	assert_int_equal(sublet_unmap(mm, a, 0), -EINVAL);
	assert_int_equal(sublet_unmap(mm, a + 1, PAGE), -EINVAL);
	assert_int_equal(sublet_unmap(mm, a + PAGE, UNIT), -EINVAL); /* not a unit */
	assert_int_equal(sublet_unmap(mm, a, 17 * PAGE), -EINVAL);   /* half a unit, more behind it */
	assert_int_equal(sublet_unmap(mm, a, 49 * PAGE), -EINVAL);   /* more than is mapped */
	assert_int_equal(sublet_unmap(mm, a, UINT64_MAX), -EINVAL);
	assert_int_equal(sublet_unmap(mm, a - PAGE, 2 * PAGE), -EINVAL);
	assert_int_equal(sublet_unmap(mm, NULL, PAGE), -EINVAL);
	check_fill(&f, 0, vpn, 40, 1);
	assert_int_equal(sublet_unmap(mm, a + 2 * UNIT, 8 * PAGE), 0); /* up to the end of the mapping */
	assert_int_equal(sublet_unmap(mm, a + 2 * UNIT, 8 * PAGE), -EINVAL);
	check_fill(&f, 0, vpn, 32, 1);
	fixture_close(&f);
}

/* A hole in the middle splits folios of 2 MiB; the rest keeps its bytes (G1). */
static void mm_partial_unmap(void **unused)
{
	static struct fake f;
	uint64_t state = seed_get("mm_partial_unmap");
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .run_pages_max = 512 });
	for (uint32_t round = 0; round < 40; round++) {
		uint32_t vpn = map_pages(&f, 1500, SUBLET_MOVABLE);
		fill(&f, 0, vpn, 1500, round);
		uint32_t first = below(&state, 1500 / 16), units = 1 + below(&state, 1500 / 16 - first);
		assert_int_equal(sublet_unmap(f.engine_mm[0], addr_of(&f, 0, vpn + first * 16), units * UNIT),
				 0);
		fixture_verify(&f);
		for (uint32_t i = 0; i < 1500; i++) {
			bool gone = i >= first * 16 && i < (first + units) * 16;
			assert_int_equal(fake_kind_of(&f.mm[0], vpn + i), gone ? FAKE_NONE : FAKE_SHARED);
		}
		struct sublet_claim claim; /* what was cut can still move */
		assert_int_equal(claim_take(&f, 2 * SUBLET_MIB, NULL, &claim), 0);
		claim_give(&f, &claim);
		if (first)
			assert_int_equal(sublet_unmap(f.engine_mm[0], addr_of(&f, 0, vpn), first * UNIT), 0);
		uint32_t at = (first + units) * 16;
		if (at < 1500)
			assert_int_equal(sublet_unmap(f.engine_mm[0], addr_of(&f, 0, vpn + at),
						      (1500 - at) * PAGE),
					 0);
		assert_int_equal(used_bytes(&f), 0);
	}
	fixture_close(&f);
}

/* Lent memory never outgrows the area, so the normal zone stays the room that claims move into. */
static void mm_lending_limit(void **unused)
{
	static struct fake f;
	void *addr;
	(void)unused;

	fixture_open(&f, NULL);
	uint32_t area = f.options.area_frames, vpn = map_pages(&f, area - 16, SUBLET_MOVABLE);
	assert_int_equal(sublet_map(f.engine_mm[0], 17 * PAGE, SUBLET_MOVABLE, &addr), -ENOMEM);
	fixture_verify(&f);
	assert_int_equal(stats_of(&f).lent_bytes, (area - 16) * PAGE);
	uint32_t last = map_pages(&f, 16, SUBLET_MOVABLE);
	assert_int_equal(sublet_map(f.engine_mm[0], 1, SUBLET_MOVABLE, &addr), -ENOMEM);
	assert_int_equal(sublet_map(f.engine_mm[0], 20 * PAGE, SUBLET_MOVABLE | SUBLET_PLAIN_OK, &addr), 0);
	assert_int_equal(stats_of(&f).plain_bytes, 20 * PAGE);
	check_zero(&f, 0, vpn_of(&f, 0, addr), 20);
	assert_int_equal(fake_kind_of(&f.mm[0], vpn_of(&f, 0, addr)), FAKE_PLAIN);
	fixture_verify(&f);
	assert_int_equal(sublet_unmap(f.engine_mm[0], addr, 20 * PAGE), 0);
	assert_int_equal(stats_of(&f).plain_bytes, 0);
	assert_int_equal(sublet_unmap(f.engine_mm[0], addr_of(&f, 0, last), UNIT), 0);
	assert_int_equal(sublet_map(f.engine_mm[0], 16 * PAGE, SUBLET_MOVABLE, &addr), 0);
	assert_int_equal(sublet_unmap(f.engine_mm[0], addr_of(&f, 0, vpn), (area - 16) * PAGE), 0);
	fixture_close(&f);
}

/* Addresses run out before memory does, come back, and stay dense. */
static void mm_addresses(void **unused)
{
	static struct fake f;
	void *addr[64], *more;
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .mm_pages = 64 * 16 });
	for (uint32_t i = 0; i < 64; i++) {
		assert_int_equal(sublet_map(f.engine_mm[0], 1, SUBLET_MOVABLE, &addr[i]), 0);
		assert_int_equal(vpn_of(&f, 0, addr[i]), i * 16);
	}
	assert_int_equal(sublet_map(f.engine_mm[0], 1, SUBLET_MOVABLE, &more), -ENOMEM);
	assert_int_equal(sublet_unmap(f.engine_mm[0], addr[20], 1), 0);
	assert_int_equal(sublet_unmap(f.engine_mm[0], addr[21], 1), 0);
	assert_int_equal(sublet_map(f.engine_mm[0], 17 * PAGE, SUBLET_MOVABLE, &more), 0);
	assert_ptr_equal(more, addr[20]);
	fixture_close(&f);
}

/* G5: each platform call of a map or an unmap fails in turn; nothing is left behind. */
static void mm_failures(void **unused)
{
	static struct fake f;
	(void)unused;

	for (int64_t n = 1, reached = 1; reached; n++) {
		void *addr = NULL;
		fixture_open(&f, NULL);
		fake_fail(&f, 1u << FAKE_MAP | 1u << FAKE_MAP_PLAIN, n, -ENOMEM, false);
		int err = sublet_map(f.engine_mm[0], 1300 * PAGE, SUBLET_MOVABLE, &addr);
		reached = fake_fail_end(&f);
		assert_int_equal(err, reached ? -ENOMEM : 0);
		fixture_verify(&f);
		assert_int_equal(used_bytes(&f), err ? 0 : 1300 * PAGE);
		if (err)
			assert_int_equal(map_pages(&f, 1300, SUBLET_MOVABLE), 0);
		fill(&f, 0, 0, 1300, 5);
		fake_fail(&f, 1u << FAKE_UNMAP, 1, -ENOMEM, false);
		assert_int_equal(sublet_unmap(f.engine_mm[0], addr_of(&f, 0, 0), 640 * PAGE), -ENOMEM);
		assert_true(fake_fail_end(&f));
		fixture_verify(&f);
		check_fill(&f, 0, 0, 1300, 5);
		struct sublet_claim claim; /* nothing stayed frozen */
		assert_int_equal(claim_take(&f, f.options.area_frames / 2 * PAGE, NULL, &claim), 0);
		claim_give(&f, &claim);
		assert_int_equal(sublet_unmap(f.engine_mm[0], addr_of(&f, 0, 0), 1300 * PAGE), 0);
		assert_int_equal(used_bytes(&f), 0);
		fixture_close(&f);
	}
}

/* The budget's count stays within one mapping a block of what the address space has. */
static void mm_mapping_count(void **unused)
{
	static struct fake f;
	uint64_t state = seed_get("mm_mapping_count");
	uint32_t vpn[64], pages[64], n = 0;
	(void)unused;

	fixture_open(&f, NULL);
	for (uint32_t round = 0; round < 1500; round++) {
		void *addr;
		uint32_t want = 1 + below(&state, 200), i = n ? below(&state, n) : 0;
		if (n < 64 && (rng(&state) & 1) &&
		    !sublet_map(f.engine_mm[0], want * PAGE, SUBLET_MOVABLE | SUBLET_PLAIN_OK, &addr)) {
			vpn[n] = vpn_of(&f, 0, addr);
			pages[n++] = want;
		} else if (n) {
			assert_int_equal(
				sublet_unmap(f.engine_mm[0], addr_of(&f, 0, vpn[i]), pages[i] * PAGE), 0);
			vpn[i] = vpn[--n];
			pages[i] = pages[n];
		}
		sublet__chaos_move(f.arena, f.engine_mm[0], rng(&state));
		uint64_t have = stats_of(&f).mapping_count, sum = 0, real = fake_mappings(&f.mm[0]);
		for (uint32_t b = 0; b < f.engine_mm[0]->blocks; b++)
			sum += a32_load_relaxed(&f.engine_mm[0]->block_mappings[b]);
		assert_int_equal(have, sum);
		if (have + f.engine_mm[0]->blocks < real || real + f.engine_mm[0]->blocks < have)
			fail_msg("engine counts %u mappings, there are %u", (unsigned)have, (unsigned)real);
	}
	fixture_close(&f);
}

/* Locks of the program survive a move. */
static void mm_locked(void **unused)
{
	static struct fake f;
	struct sublet_claim claim;
	(void)unused;

	fixture_open(&f, NULL);
	uint32_t area = f.options.area_frames, vpn = map_pages(&f, area - 600, SUBLET_MOVABLE);
	fill(&f, 0, vpn, area - 600, 3);
	/* the fake knows of the lock only by the engine's flags: lock, and let a remap carry it over */
	for (uint32_t i = 33; i < 77; i++)
		f.mm[0].page[vpn + i].locked = true;
	sublet__mm_note_locked(f.engine_mm[0], addr_of(&f, 0, vpn + 33), 44 * PAGE, true);
	struct sublet_claim_options dearest = { SUBLET_OPTIONS(sublet_claim_options),
						.flags = SUBLET_CLAIM_DEAREST };
	for (uint32_t i = 0; i < 6; i++) {
		assert_int_equal(claim_take(&f, 4 * SUBLET_MIB, &dearest, &claim), 0);
		claim_give(&f, &claim);
	}
	for (uint32_t i = 33; i < 77; i++)
		assert_true(fake_locked(&f.mm[0], vpn + i));
	assert_false(fake_locked(&f.mm[0], vpn + 500)); /* locks do not spread */

	check_fill(&f, 0, vpn, area - 600, 3);
	fixture_close(&f);
}

/* Protected memory does not move, is named, and moves again when it is not protected any more. */
static void mm_protected(void **unused)
{
	static struct fake f;
	struct sublet_claim claim;
	(void)unused;

	fixture_open(&f, NULL);
	uint32_t area = f.options.area_frames, vpn = map_pages(&f, area, SUBLET_MOVABLE);
	fill(&f, 0, vpn, area, 3);
	for (uint32_t i = 0; i < area; i += 512)
		sublet__mm_note_protected(f.engine_mm[0], addr_of(&f, 0, vpn + i), PAGE, true);
	fixture_verify(&f);
	assert_int_equal(claim_take(&f, 600 * PAGE, NULL, &claim), -EBUSY);
	assert_int_equal(claim.blocker_count, SUBLET_BLOCKERS_MAX);
	for (uint32_t i = 0; i < claim.blocker_count; i++) {
		assert_int_equal(claim.blockers[i].kind, SUBLET_BLOCKER_PROTECTED);
		assert_true(claim.blockers[i].bytes >= PAGE && claim.blockers[i].bytes < 2 * SUBLET_MIB);
	}
	/* A neighbour that is unprotected does not free it. */
	for (uint32_t i = 0; i < area; i += 512)
		sublet__mm_note_protected(f.engine_mm[0], addr_of(&f, 0, vpn + i + 1), PAGE, false);
	assert_int_equal(claim_take(&f, 600 * PAGE, NULL, &claim), -EBUSY);
	for (uint32_t i = 0; i < area; i += 512)
		sublet__mm_note_protected(f.engine_mm[0], addr_of(&f, 0, vpn + i), PAGE, false);
	fixture_verify(&f);
	assert_int_equal(claim_take(&f, 600 * PAGE, NULL, &claim), 0);
	claim_give(&f, &claim);
	check_fill(&f, 0, vpn, area, 3);
	fixture_close(&f);
}

/* Frames of 2 MiB: one page is one unit, one folio and one pageblock. */
static void mm_huge_frames(void **unused)
{
	static struct fake f;
	struct sublet_claim claim;
	(void)unused;

	fixture_open(&f,
		     &(struct fake_options){
			     .frame_shift = 21, .area_frames = 64, .normal_frames = 16, .run_pages_max = 4 });
	uint32_t vpn = map_pages(&f, 50, SUBLET_MOVABLE);
	fill(&f, 0, vpn, 50, 9);
	for (uint64_t n = 1; n <= 25; n++) {
		assert_int_equal(claim_take(&f, n * 2 * SUBLET_MIB - 1, NULL, &claim), 0);
		assert_int_equal(claim.bytes, n * 2 * SUBLET_MIB);
		fixture_verify(&f);
		claim_give(&f, &claim);
	}
	check_fill(&f, 0, vpn, 50, 9);
	assert_int_equal(sublet_unmap(f.engine_mm[0], addr_of(&f, 0, vpn + 7), 4 * SUBLET_MIB), 0);
	fixture_close(&f);
}

/* Two address spaces share an arena and nothing else (G9). */
static void mm_two(void **unused)
{
	static struct fake f;
	void *addr[2];
	struct sublet_claim claim;
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .mms = 2 });
	for (uint32_t i = 0; i < 2; i++) {
		assert_int_equal(sublet_map(f.engine_mm[i], 1000 * PAGE, SUBLET_MOVABLE, &addr[i]), 0);
		fill(&f, i, vpn_of(&f, i, addr[i]), 1000, i);
	}
	assert_int_equal(sublet_unmap(f.engine_mm[0], addr[1], 1000 * PAGE), -EINVAL);
	assert_int_equal(claim_take(&f, 10 * SUBLET_MIB, NULL, &claim), 0);
	for (uint32_t i = 0; i < 2; i++)
		check_fill(&f, i, vpn_of(&f, i, addr[i]), 1000, i);
	claim_give(&f, &claim);
	fixture_close(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(mm_sizes),         cmocka_unit_test(mm_alignments),
		cmocka_unit_test(mm_bad_arguments), cmocka_unit_test(mm_partial_unmap),
		cmocka_unit_test(mm_lending_limit), cmocka_unit_test(mm_addresses),
		cmocka_unit_test(mm_failures),      cmocka_unit_test(mm_mapping_count),
		cmocka_unit_test(mm_huge_frames),   cmocka_unit_test(mm_locked),
		cmocka_unit_test(mm_two),           cmocka_unit_test(mm_protected),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
