/* SPDX-License-Identifier: MIT */
/* core/commit.c, lock and unlock, and what claims drop. G1 (INTACT means every byte), G5, G8. */
#include "fixture.h"

static int lock_range(struct fake *f, uint32_t vpn, uint32_t pages)
{
	return sublet_lock(f->engine_mm[0], addr_of(f, 0, vpn), pages * PAGE);
}

static int unlock_range(struct fake *f, uint32_t vpn, uint32_t pages)
{
	return sublet_unlock(f->engine_mm[0], addr_of(f, 0, vpn), pages * PAGE);
}

/* Locked memory moves and keeps its bytes; unlocked memory is dropped without a copy, and says so. */
static void discard_lock_and_drop(void **unused)
{
	static struct fake f;
	struct sublet_claim claim;
	(void)unused;

	fixture_open(&f, NULL);
	uint32_t area = f.options.area_frames, vpn = map_pages(&f, area, SUBLET_DISCARDABLE);
	fill(&f, 0, vpn, area, 1);
	assert_int_equal(lock_range(&f, vpn, area), SUBLET_INTACT); /* it starts locked */
	assert_int_equal(claim_take(&f, 2 * SUBLET_MIB, NULL, &claim), 0);
	assert_int_equal(claim.dropped_bytes, 0);
	assert_int_equal(claim.moved_bytes, 2 * SUBLET_MIB);
	check_fill(&f, 0, vpn, area, 1);
	claim_give(&f, &claim);

	assert_int_equal(unlock_range(&f, vpn, area / 2), 0);
	assert_int_equal(stats_of(&f).area_discardable_bytes + stats_of(&f).area_movable_bytes +
				 stats_of(&f).normal_used_bytes,
			 area * PAGE);
	fixture_verify(&f);
	uint64_t copies = atomic_load(&f.calls[FAKE_COPY]);
	assert_int_equal(claim_take(&f, 4 * SUBLET_MIB, NULL, &claim), 0);
	assert_int_equal(atomic_load(&f.calls[FAKE_COPY]), copies);
	assert_true(claim.dropped_bytes >= 2 * SUBLET_MIB);
	fixture_verify(&f);
	assert_int_equal(lock_range(&f, vpn + area / 2, area / 2), SUBLET_INTACT);
	check_part(&f, 0, vpn, area / 2, area / 2, 1);
	claim_give(&f, &claim);
	assert_int_equal(lock_range(&f, vpn, area / 2), SUBLET_DISCARDED);
	assert_int_equal(lock_range(&f, vpn, area / 2), SUBLET_INTACT);
	fill(&f, 0, vpn, area, 2);
	check_fill(&f, 0, vpn, area, 2);
	fixture_close(&f);
}

/* Unlock and lock with nobody claiming: INTACT, every byte (G1). Each unit by itself says what it lost. */
static void discard_each_unit_tells(void **unused)
{
	static struct fake f;
	struct sublet_claim claim;
	uint64_t state = seed_get("discard_each_unit_tells");
	(void)unused;

	for (uint32_t round = 0; round < 30; round++) {
		bool lost[64] = { false };
		uint32_t lost_count = 0;
		fixture_open(&f, NULL);
		uint32_t rest = map_pages(&f, f.options.area_frames - 64 * 16, SUBLET_MOVABLE);
		uint32_t vpn = map_pages(&f, 16, SUBLET_DISCARDABLE);
		for (uint32_t u = 1; u < 64; u++) /* one by one: a folio each */
			assert_int_equal(map_pages(&f, 16, SUBLET_DISCARDABLE), vpn + u * 16);
		fill(&f, 0, vpn, 64 * 16, round);
		fill(&f, 0, rest, f.options.area_frames - 64 * 16, 99);
		for (uint32_t u = 0; u < 64; u++)
			if (rng(&state) & 1)
				assert_int_equal(unlock_range(&f, vpn + u * 16, 16), 0);
		uint64_t most = (stats_of(&f).normal_free_bytes + stats_of(&f).area_discardable_bytes) / PAGE;
		most -= 2 * f.options.run_pages_max; /* folios that lie half in the window move as a whole */
		uint64_t pages = round % 2 ? most : 1 + below(&state, (uint32_t)most); /* G10: all there is */
		assert_int_equal(claim_take(&f, pages * PAGE, NULL, &claim), 0);
		fixture_verify(&f);
		for (uint32_t u = 0; u < 64; u++) {
			lost[u] = a32_load_relaxed(&f.engine_mm[0]->pte[vpn + u * 16]) == PTE_DROPPED;
			lost_count += lost[u];
		}
		assert_int_equal(claim.dropped_bytes, lost_count * UNIT);
		claim_give(&f, &claim);
		for (uint32_t u = 0; u < 64; u++) {
			assert_int_equal(lock_range(&f, vpn + u * 16, 16),
					 lost[u] ? SUBLET_DISCARDED : SUBLET_INTACT);
			for (uint32_t i = 0; i < 16; i++)
				if (lost[u])
					check_zero(&f, 0, vpn + u * 16 + i, 1);
		}
		check_fill(&f, 0, rest, f.options.area_frames - 64 * 16, 99);
		fixture_close(&f);
	}
}

/* What moves may need the room of what can be dropped, wherever that lies (G10). */
static void discard_makes_room(void **unused)
{
	static struct fake f;
	struct sublet_claim claim;
	(void)unused;

	fixture_open(&f, &(struct fake_options){
				 .area_frames = 2048, .normal_frames = 512, .virtual_time = true });
	for (uint32_t unit = 0; unit < 128; unit++) {
		uint32_t vpn = map_pages(&f, 16, unit % 4 == 3 ? SUBLET_DISCARDABLE : SUBLET_MOVABLE);
		fill(&f, 0, vpn, 16, unit);
		if (unit % 4 == 3)
			assert_int_equal(unlock_range(&f, vpn, 16), 0);
	}
	/* three quarters of any 1,000 frames are movable: 238 more than the normal zone holds */
	assert_int_equal(claim_take(&f, 1000 * PAGE, NULL, &claim), 0);
	for (uint32_t unit = 0; unit < 128; unit++)
		if (unit % 4 != 3)
			check_fill(&f, 0, unit * 16, 16, unit);
	claim_give(&f, &claim);
	fixture_close(&f);
}

/* Units that lie in the range as a whole are unlocked; a lock locks the units that it touches. */
static void discard_parts(void **unused)
{
	static struct fake f;
	(void)unused;

	fixture_open(&f, NULL);
	uint32_t vpn = map_pages(&f, 64, SUBLET_DISCARDABLE);
	assert_int_equal(unlock_range(&f, vpn, 63), 0);
	assert_int_equal(stats_of(&f).area_discardable_bytes,
			 48 * PAGE); /* the last of four units is not whole */
	assert_int_equal(unlock_range(&f, vpn, 64), 0);
	assert_int_equal(stats_of(&f).area_discardable_bytes, 64 * PAGE);
	assert_int_equal(lock_range(&f, vpn + 19, 1), SUBLET_INTACT);
	assert_int_equal(stats_of(&f).area_discardable_bytes, 48 * PAGE);
	assert_int_equal(lock_range(&f, vpn, 64), SUBLET_INTACT);
	/* Less than a unit, or two halves of two: nothing could be unlocked, and nobody is told that it was. */
	assert_int_equal(unlock_range(&f, vpn, 15), -EINVAL);
	assert_int_equal(unlock_range(&f, vpn + 1, 15), -EINVAL);
	assert_int_equal(unlock_range(&f, vpn + 8, 16), -EINVAL);
	/* Bytes, too: one less at either end, and the unit is not whole. */
	char *at = addr_of(&f, 0, vpn);
	assert_int_equal(sublet_unlock(f.engine_mm[0], at, UNIT - 1), -EINVAL);
	assert_int_equal(sublet_unlock(f.engine_mm[0], at + 1, UNIT), -EINVAL);
	assert_int_equal(stats_of(&f).area_discardable_bytes, 0);
	assert_int_equal(sublet_unlock(f.engine_mm[0], at + 1, 2 * UNIT), SUBLET_UNLOCKED);
	assert_int_equal(stats_of(&f).area_discardable_bytes, UNIT);
	/* A mapping's own size is all of it, though it is no number of pages, whatever is mapped behind it. */
	for (uint32_t bytes = 4097; bytes < 40 * PAGE; bytes += 4099) {
		void *small[3];
		for (uint32_t i = 0; i < 3; i++)
			assert_int_equal(sublet_map(f.engine_mm[0], bytes, SUBLET_DISCARDABLE, &small[i]), 0);
		uint64_t before = stats_of(&f).area_discardable_bytes;
		for (uint32_t i = 0; i < 3; i++)
			assert_int_equal(sublet_unlock(f.engine_mm[0], small[i], bytes), SUBLET_UNLOCKED);
		assert_int_equal(stats_of(&f).area_discardable_bytes - before,
				 3 * ((bytes + PAGE - 1) / PAGE) * PAGE);
		for (uint32_t i = 0; i < 3; i++)
			assert_int_equal(sublet_unmap(f.engine_mm[0], small[(i + 1) % 3], bytes), 0);
	}
	assert_int_equal(unlock_range(&f, vpn + 1000, 1), -EINVAL);
	assert_int_equal(lock_range(&f, vpn, 65), -EINVAL);
	uint32_t movable = map_pages(&f, 16, SUBLET_MOVABLE);
	assert_int_equal(lock_range(&f, movable, 16), -EINVAL);
	assert_int_equal(unlock_range(&f, movable, 16), -EINVAL);
	fixture_close(&f);
}

/* Unlocked memory cannot be pinned; pinned memory stays locked (G2). */
static void discard_pins(void **unused)
{
	static struct fake f;
	struct sublet_pin pin;
	struct sublet_claim claim;
	(void)unused;

	fixture_open(&f, NULL);
	uint32_t vpn = map_pages(&f, 64, SUBLET_DISCARDABLE);
	fill(&f, 0, vpn, 64, 4);
	assert_int_equal(sublet_pin(f.engine_mm[0], addr_of(&f, 0, vpn), PAGE, SUBLET_PIN_READ, NULL, &pin),
			 0);
	fake_device_hold(&f.mm[0], vpn, 64, 1);
	assert_int_equal(unlock_range(&f, vpn, 64), SUBLET_KEPT);
	assert_int_equal(unlock_range(&f, vpn + 16, 16),
			 SUBLET_KEPT); /* it moves along with what is pinned */
	assert_int_equal(stats_of(&f).area_discardable_bytes, 0);
	struct sublet_claim_options o = { SUBLET_OPTIONS(sublet_claim_options),
					  .flags = SUBLET_CLAIM_NOWAIT };
	assert_int_equal(claim_take(&f, bytes_of(&f, f.options.area_frames), &o, &claim), -EBUSY);
	check_fill(&f, 0, vpn, 64, 4);
	fake_device_hold(&f.mm[0], vpn, 64, -1);
	assert_int_equal(sublet_unpin(&pin), 0);
	assert_int_equal(unlock_range(&f, vpn, 64), 0);
	assert_int_equal(sublet_pin(f.engine_mm[0], addr_of(&f, 0, vpn), PAGE, SUBLET_PIN_READ, NULL, &pin),
			 -EFAULT);
	assert_int_equal(sublet_unpin(&pin), -EINVAL);
	assert_int_equal(lock_range(&f, vpn, 64), SUBLET_INTACT);
	assert_int_equal(sublet_pin(f.engine_mm[0], addr_of(&f, 0, vpn), PAGE, SUBLET_PIN_READ, NULL, &pin),
			 0);
	assert_int_equal(sublet_unpin(&pin), 0);
	fixture_close(&f);
}

/* A lock that finds no frames fails, and what was dropped is still told later (G1, G5). */
static void discard_lock_no_memory(void **unused)
{
	static struct fake f;
	(void)unused;

	for (uint32_t spare = 0; spare <= 48; spare++) {
		struct sublet_claim drop, rest;
		fixture_open(&f,
			     &(struct fake_options){ .area_frames = 512, .normal_frames = FAKE_NORMAL_NONE });
		uint32_t vpn = map_pages(&f, 48, SUBLET_DISCARDABLE);
		fill(&f, 0, vpn, 48, 1);
		assert_int_equal(unlock_range(&f, vpn, 48), 0);
		assert_int_equal(claim_take(&f, 512 * PAGE, NULL, &drop), 0);
		claim_give(&f, &drop);
		assert_int_equal(claim_take(&f, (512 - spare) * PAGE, NULL, &rest), 0);
		int err = lock_range(&f, vpn, 48);
		assert_int_equal(err, spare < 48 ? -ENOMEM : SUBLET_DISCARDED);
		fixture_verify(&f);
		claim_give(&f, &rest);
		for (uint32_t u = 0; u < 3; u++) /* no unit may claim to be intact: its bytes are gone */
			assert_int_equal(lock_range(&f, vpn + u * 16, 16),
					 err < 0 ? SUBLET_DISCARDED : SUBLET_INTACT);
		check_zero(&f, 0, vpn, 48);
		assert_int_equal(lock_range(&f, vpn, 48), SUBLET_INTACT);
		fixture_close(&f);
	}
}

/* Protected and forked memory under lock and unlock: the counts stay right (G8). */
static void discard_held(void **unused)
{
	static struct fake f;
	struct sublet_mm *mm;
	(void)unused;

	for (uint32_t order = 0; order < 8; order++) {
		fixture_open(&f, NULL);
		mm = f.engine_mm[0];
		uint32_t vpn = map_pages(&f, 64, SUBLET_DISCARDABLE);
		void *addr = addr_of(&f, 0, vpn);
		if (order & 1)
			assert_int_equal(unlock_range(&f, vpn, 64), 0);
		if (order & 2) {
			assert_int_equal(fork_begin(mm), 0);
			sublet__mm_fork_end(mm, 77);
		} else {
			sublet__mm_note_protected(mm, addr, 64 * PAGE, true);
		}
		fixture_verify(&f);
		/* what is unlocked at the fork is not accessible: the child shares nothing of it */
		assert_int_equal(stats_of(&f).area_held_bytes, (order & 3) == 3 ? 0 : 64 * PAGE);
		/* what a child shares stays locked, and what was locked again is the next child's */
		bool is_shared = (order & 3) == 2;
		if (order & 4)
			assert_int_equal(unlock_range(&f, vpn, 64), is_shared ? SUBLET_KEPT : 0);
		fixture_verify(&f);
		assert_int_equal(lock_range(&f, vpn, 64), SUBLET_INTACT);
		fixture_verify(&f);
		assert_int_equal(unlock_range(&f, vpn, 64), is_shared ? SUBLET_KEPT : 0);
		fixture_verify(&f);
		if (order & 2)
			assert_int_equal(sublet__mm_fork_restore(mm, sublet__mm_fork_epoch(mm)), 0);
		else
			sublet__mm_note_protected(mm, addr, 64 * PAGE, false);
		fixture_verify(&f);
		assert_int_equal(stats_of(&f).area_held_bytes, 0);
		assert_int_equal(lock_range(&f, vpn, 64), SUBLET_INTACT);
		fixture_close(&f);
	}
}

/* Unmapped while unlocked, protected, or both. */
static void discard_unmap(void **unused)
{
	static struct fake f;
	(void)unused;

	for (uint32_t how = 0; how < 4; how++) {
		fixture_open(&f, NULL);
		uint32_t vpn = map_pages(&f, 64, SUBLET_DISCARDABLE);
		if (how & 1)
			assert_int_equal(unlock_range(&f, vpn, 64), 0);
		if (how & 2)
			sublet__mm_note_protected(f.engine_mm[0], addr_of(&f, 0, vpn), 16 * PAGE, true);
		assert_int_equal(sublet_unmap(f.engine_mm[0], addr_of(&f, 0, vpn + 16), 16 * PAGE), 0);
		fixture_verify(&f);
		assert_int_equal(sublet_unmap(f.engine_mm[0], addr_of(&f, 0, vpn), 16 * PAGE), 0);
		assert_int_equal(sublet_unmap(f.engine_mm[0], addr_of(&f, 0, vpn + 32), 32 * PAGE), 0);
		assert_int_equal(stats_of(&f).area_free_bytes, stats_of(&f).area_bytes);
		fixture_close(&f);
	}
}

/* G5: hiding and showing fail in the platform: what cannot be hidden stays locked; nothing is lost. */
static void discard_platform_fails(void **unused)
{
	static struct fake f;
	(void)unused;

	fixture_open(&f, NULL);
	uint32_t vpn = map_pages(&f, 1024, SUBLET_DISCARDABLE);
	fill(&f, 0, vpn, 1024, 6);
	fake_fail(&f, 1u << FAKE_UNMAP, 2, -ENOMEM, true);
	assert_int_equal(unlock_range(&f, vpn, 1024), SUBLET_KEPT);
	assert_true(fake_fail_end(&f));
	fixture_verify(&f);
	assert_int_equal(stats_of(&f).area_discardable_bytes, 512 * PAGE);
	fake_fail(&f, 1u << FAKE_MAP, 1, -ENOMEM, false);
	assert_int_equal(lock_range(&f, vpn, 1024), -ENOMEM); /* and stays unlocked */
	assert_true(fake_fail_end(&f));
	fixture_verify(&f);
	assert_int_equal(stats_of(&f).area_discardable_bytes, 1024 * PAGE);
	assert_int_equal(lock_range(&f, vpn, 1024), SUBLET_INTACT);
	check_fill(&f, 0, vpn, 1024, 6);
	fixture_close(&f);
}

/* Unlocked memory cannot be touched: a program that does is told by its fault, not by zeros. */
static void discard_hidden(void **unused)
{
	static struct fake f;
	uint64_t word;
	(void)unused;

	fixture_open(&f, NULL);
	uint32_t vpn = map_pages(&f, 64, SUBLET_DISCARDABLE);
	fill(&f, 0, vpn, 64, 6);
	assert_int_equal(unlock_range(&f, vpn, 64), 0);
	assert_false(fake_read(&f.mm[0], vpn, 0, &word));
	assert_false(fake_write(&f.mm[0], vpn + 63, 0, 1));
	assert_int_equal(lock_range(&f, vpn, 64), SUBLET_INTACT);
	check_fill(&f, 0, vpn, 64, 6);
	fixture_close(&f);
}

/* In pieces of whatever size all of it becomes discardable, and each piece is locked alone. */
static void discard_pieces(void **unused)
{
	static const uint32_t piece[] = { 16, 32, 48, 64, 80, 256, 512, 528, 1024 };
	static struct fake f;
	struct sublet_claim claim;
	(void)unused;

	for (uint32_t k = 0; k < sizeof piece / sizeof *piece; k++) {
		fixture_open(&f, NULL);
		uint32_t pages = 1024 + 8, vpn = map_pages(&f, pages, SUBLET_DISCARDABLE), even = 0;
		fill(&f, 0, vpn, pages, k);
		for (uint32_t at = 0; at < pages; at += piece[k])
			assert_int_equal(unlock_range(&f, vpn + at, min_u32(piece[k], pages - at)),
					 SUBLET_UNLOCKED);
		assert_int_equal(stats_of(&f).area_discardable_bytes, pages * PAGE);
		for (uint32_t at = 0; at < pages; at += 2 * piece[k]) {
			uint32_t n = min_u32(piece[k], pages - at);
			assert_int_equal(lock_range(&f, vpn + at, n), SUBLET_INTACT);
			check_part(&f, 0, vpn, at, n, k);
			even += n;
		}
		assert_int_equal(stats_of(&f).area_discardable_bytes, (pages - even) * PAGE);
		/* counted by blocks, of which there are three */
		assert_true(a32_load_relaxed(&f.engine_mm[0]->mapping_count) + 3 >= fake_mappings(&f.mm[0]));
		fixture_verify(&f);
		/* A claim of everything drops what is unlocked, moves what is not, and mixes up neither. */
		uint64_t normal = stats_of(&f).normal_free_bytes / PAGE;
		if (even <= normal) {
			assert_int_equal(claim_take(&f, f.options.area_frames * PAGE, NULL, &claim), 0);
			assert_int_equal(claim.dropped_bytes, (pages - even) * PAGE);
			claim_give(&f, &claim);
		}
		for (uint32_t at = 0; at < pages; at += piece[k]) {
			uint32_t n = min_u32(piece[k], pages - at);
			bool was_locked = at / piece[k] % 2 == 0;
			assert_int_equal(lock_range(&f, vpn + at, n),
					 was_locked || even > normal ? SUBLET_INTACT : SUBLET_DISCARDED);
			if (was_locked || even > normal)
				check_part(&f, 0, vpn, at, n, k);
			else
				check_zero(&f, 0, vpn + at, n);
		}
		fixture_close(&f);
	}
}

/* In both zones. */
static uint64_t discardable_bytes(const struct fake *f)
{
	uint64_t frames = 0;

	for (uint32_t pb = 0; pb < f->arena->frames_total >> f->arena->pageblock_order; pb++)
		frames += sublet__account_get(&f->arena->pageblocks[pb], ACCOUNT_DISCARDABLE);
	return frames * PAGE;
}

/* Any ranges, in any order, against what should be locked unit by unit; nothing that is locked is ever lost (G1). */
static void discard_any_ranges(void **unused)
{
	enum { PAGES = 1024 + 40, UNITS = (PAGES + 15) / 16 };
	static struct fake f;
	struct sublet_claim claim;
	uint64_t state = seed_get("discard_any_ranges");
	(void)unused;

	for (uint32_t round = 0; round < 20; round++) {
		bool unlocked[UNITS] = { false };
		fixture_open(&f, &(struct fake_options){ .area_frames = 2048, .normal_frames = 2048 });
		uint32_t vpn = map_pages(&f, PAGES, SUBLET_DISCARDABLE);
		char *memory = addr_of(&f, 0, vpn);
		fill(&f, 0, vpn, PAGES, round);
		for (uint32_t step = 0; step < 200; step++) {
			uint64_t from = below(&state, PAGES * (uint32_t)PAGE - 1);
			uint64_t bytes = 1 + below(&state, (uint32_t)(PAGES * PAGE - from));
			uint64_t end = from + bytes;
			bool is_lock = below(&state, 2), any = false;
			for (uint32_t u = 0; u < UNITS; u++) {
				uint64_t low = u * UNIT,
					 high = low + UNIT < PAGES * PAGE ? low + UNIT : PAGES * PAGE;
				bool touched = low < end && high > from;
				/* the last page of a mapping is there as a whole */
				bool whole = low >= from &&
					     (high <= end || (u == UNITS - 1 && high - end < PAGE));
				any |= whole;
				if (is_lock ? touched : whole)
					unlocked[u] = !is_lock;
			}
			if (is_lock)
				assert_int_equal(sublet_lock(f.engine_mm[0], memory + from, bytes),
						 SUBLET_INTACT);
			else
				assert_int_equal(sublet_unlock(f.engine_mm[0], memory + from, bytes),
						 any ? SUBLET_UNLOCKED : -EINVAL);
			uint64_t want = 0;
			for (uint32_t u = 0; u < UNITS; u++)
				want += unlocked[u] ? min_u32(16, PAGES - u * 16) * PAGE : 0;
			assert_int_equal(discardable_bytes(&f), want);
			if (step % 50 == 49) { /* memory moves meanwhile, what is unlocked stays */
				fixture_verify(&f);
				for (uint32_t n = 0; n < 20; n++)
					sublet__chaos_move(f.arena, f.engine_mm[0], rng(&state));
			}
		}
		assert_int_equal(claim_take(&f, f.options.area_frames * PAGE, NULL, &claim), 0);
		claim_give(&f, &claim);
		for (uint32_t u = 0; u < UNITS; u++) {
			uint32_t n = min_u32(16, PAGES - u * 16);
			/* what moved out of the area before it was unlocked is in nobody's way */
			bool lost = a32_load_relaxed(&f.engine_mm[0]->pte[vpn + u * 16]) == PTE_DROPPED;
			assert_false(lost && !unlocked[u]);
			assert_int_equal(lock_range(&f, vpn + u * 16, n),
					 lost ? SUBLET_DISCARDED : SUBLET_INTACT);
			if (lost)
				check_zero(&f, 0, vpn + u * 16, n);
			else
				check_part(&f, 0, vpn, u * 16, n, round);
		}
		fixture_close(&f);
	}
}

/* Each piece that is unlocked alone takes kernel mappings: they are counted, and not spent without end. */
static void discard_mappings(void **unused)
{
	static struct fake f;
	uint32_t kept = 0;
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .mapping_limit = 24 });
	struct sublet_mm *mm = f.engine_mm[0];
	uint32_t vpn = map_pages(&f, 1024, SUBLET_DISCARDABLE);
	for (uint32_t u = 0; u < 64; u += 2) {
		int answer = unlock_range(&f, vpn + u * 16, 16);
		assert_in_range(answer, SUBLET_UNLOCKED, SUBLET_KEPT);
		kept += answer == SUBLET_KEPT;
		assert_true(a32_load_relaxed(&mm->mapping_count) <= 24);
		assert_true(fake_mappings(&f.mm[0]) <= 25);
	}
	assert_in_range(kept, 1, 31);
	assert_int_equal(stats_of(&f).area_discardable_bytes, (32 - kept) * UNIT);
	assert_int_equal(lock_range(&f, vpn, 1024), SUBLET_INTACT);
	assert_int_equal(unlock_range(&f, vpn, 1024), SUBLET_UNLOCKED); /* in one piece there is room */
	fixture_close(&f);
}

/* A lock that fails leaves alone what others hold of the units at its edges. */
static void discard_lock_fails_beside(void **unused)
{
	static struct fake f;
	struct sublet_claim rest;
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .area_frames = 512, .normal_frames = FAKE_NORMAL_NONE });
	uint32_t vpn = map_pages(&f, 48, SUBLET_DISCARDABLE);
	fill(&f, 0, vpn, 48, 1);
	assert_int_equal(unlock_range(&f, vpn + 16, 32), SUBLET_UNLOCKED);
	assert_int_equal(claim_take(&f, (512 - 16) * PAGE, NULL, &rest), 0);
	assert_int_equal(rest.dropped_bytes, 32 * PAGE);
	/* the first half of the first unit is somebody's */
	assert_int_equal(lock_range(&f, vpn + 8, 24), -ENOMEM);
	check_part(&f, 0, vpn, 0, 16, 1);
	assert_int_equal(stats_of(&f).area_discardable_bytes, 0);
	claim_give(&f, &rest);
	assert_int_equal(lock_range(&f, vpn, 48), SUBLET_DISCARDED);
	check_part(&f, 0, vpn, 0, 16, 1);
	fixture_close(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(discard_lock_and_drop),  cmocka_unit_test(discard_each_unit_tells),
		cmocka_unit_test(discard_parts),          cmocka_unit_test(discard_pins),
		cmocka_unit_test(discard_lock_no_memory), cmocka_unit_test(discard_held),
		cmocka_unit_test(discard_unmap),          cmocka_unit_test(discard_platform_fails),
		cmocka_unit_test(discard_hidden),         cmocka_unit_test(discard_makes_room),
		cmocka_unit_test(discard_pieces),         cmocka_unit_test(discard_any_ranges),
		cmocka_unit_test(discard_mappings),       cmocka_unit_test(discard_lock_fails_beside),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
