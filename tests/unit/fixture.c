/* SPDX-License-Identifier: MIT */
#include "fixture.h"

#include <stdio.h>

void fixture_open(struct fake *f, const struct fake_options *options)
{
	static const struct fake_options none;
	assert_int_equal(fake_open(f, options ? options : &none), 0);
	fixture_verify(f);
}

void fixture_verify(struct fake *f)
{
	char text[160] = "";

	if (sublet__arena_verify(f->arena, text, sizeof text))
		fail_msg("verify: %s", text);
	if (atomic_load(&f->violations))
		fail_msg("platform: %s (%u violations)", f->text, atomic_load(&f->violations));
}

void fixture_close(struct fake *f)
{
	fixture_verify(f);
	sublet__arena_fini(f->arena);
	f->arena = NULL;
	assert_int_equal(atomic_load(&f->reserved_bytes), 0);
	fake_close(f);
}

void threads_begin(void)
{
	setenv("CMOCKA_TEST_ABORT", "1", 1);
}

void threads_end(void)
{
	unsetenv("CMOCKA_TEST_ABORT");
}

uint64_t soak_ns(double seconds)
{
	const char *given = getenv("UNIT_SECONDS");
	return (uint64_t)((given ? strtod(given, NULL) : seconds) * 1e9);
}

void *addr_of(const struct fake *f, uint32_t mm, uint32_t vpn)
{
	return (void *)(uintptr_t)(f->mm[mm].base + ((uint64_t)vpn << f->options.frame_shift));
}

uint32_t vpn_of(const struct fake *f, uint32_t mm, const void *addr)
{
	return (uint32_t)(((uint64_t)(uintptr_t)addr - f->mm[mm].base) >> f->options.frame_shift);
}

uint64_t bytes_of(const struct fake *f, uint64_t pages)
{
	return pages << f->options.frame_shift;
}

uint32_t map_pages(struct fake *f, uint32_t pages, uint32_t flags)
{
	void *addr = NULL;
	assert_int_equal(sublet_map(f->engine_mm[0], bytes_of(f, pages), flags, &addr), 0);
	return vpn_of(f, 0, addr);
}

static uint64_t fill_value(uint64_t key, uint32_t i, uint32_t word)
{
	uint64_t state = key * 1000003 + i * 16ull + word;
	return rng(&state) | 1;
}

void fill(struct fake *f, uint32_t mm, uint32_t vpn, uint32_t pages, uint64_t key)
{
	for (uint32_t i = 0; i < pages; i++)
		for (uint32_t w = 0; w < FAKE_WORDS; w++)
			if (!fake_write(&f->mm[mm], vpn + i, w, fill_value(key, i, w)))
				fail_msg("store to page %u faults", vpn + i);
}

static void check_word(struct fake *f, uint32_t mm, uint32_t vpn, uint32_t word, uint64_t want)
{
	uint64_t have = 0;

	if (!fake_read(&f->mm[mm], vpn, word, &have))
		fail_msg("load of page %u faults", vpn);
	if (have != want)
		fail_msg("page %u word %u: want %llx, have %llx", vpn, word, (unsigned long long)want,
			 (unsigned long long)have);
}

void check_fill(struct fake *f, uint32_t mm, uint32_t vpn, uint32_t pages, uint64_t key)
{
	check_part(f, mm, vpn, 0, pages, key);
}

void check_part(struct fake *f, uint32_t mm, uint32_t vpn, uint32_t first, uint32_t pages, uint64_t key)
{
	for (uint32_t i = first; i < first + pages; i++)
		for (uint32_t w = 0; w < FAKE_WORDS; w++)
			check_word(f, mm, vpn + i, w, fill_value(key, i, w));
}

void check_zero(struct fake *f, uint32_t mm, uint32_t vpn, uint32_t pages)
{
	for (uint32_t i = 0; i < pages; i++)
		for (uint32_t w = 0; w < FAKE_WORDS; w++)
			check_word(f, mm, vpn + i, w, 0);
}

int claim_take(struct fake *f, uint64_t bytes, const struct sublet_claim_options *options,
	       struct sublet_claim *claim)
{
	int err = sublet_claim(f->arena, bytes, options, claim);

	if (err) {
		assert_int_equal(claim->id, 0);
		return err;
	}
	uint32_t pfn = (uint32_t)(claim->offset_bytes >> f->options.frame_shift);
	uint32_t frames = (uint32_t)(claim->bytes >> f->options.frame_shift);
	assert_true(claim->id != 0 && claim->bytes >= bytes && claim->blocker_count == 0);
	assert_true(pfn + frames <= f->options.area_frames);
	if (options && options->align_bytes)
		assert_int_equal(claim->offset_bytes % options->align_bytes, 0);
	fake_own(f, pfn, frames, 1 + (uint32_t)claim->id % 1000000);
	for (uint32_t i = pfn; i < pfn + frames; i++)
		for (uint32_t w = 0; w < FAKE_WORDS; w++) {
			if (!(options && (options->flags & SUBLET_CLAIM_NOZERO)) && fake_frame_read(f, i, w))
				fail_msg("claimed frame %u is not zero (G9)", i);
			fake_frame_write(f, i, w, claim->id << 32 | i);
		}
	return 0;
}

void claim_give(struct fake *f, struct sublet_claim *claim)
{
	uint32_t pfn = (uint32_t)(claim->offset_bytes >> f->options.frame_shift);
	uint32_t frames = (uint32_t)(claim->bytes >> f->options.frame_shift);

	for (uint32_t i = pfn; i < pfn + frames; i++)
		for (uint32_t w = 0; w < FAKE_WORDS; w++)
			if (fake_frame_read(f, i, w) != (claim->id << 32 | i))
				fail_msg("claimed frame %u was written (G9)", i);
	fake_own(f, pfn, frames, 0);
	assert_int_equal(sublet_release(f->arena, claim), 0);
	assert_int_equal(claim->id, 0);
}

struct sublet_stats stats_of(struct fake *f)
{
	struct sublet_stats stats = { SUBLET_OPTIONS(sublet_stats) };

	assert_int_equal(sublet_arena_stats(f->arena, &stats), 0);
	assert_int_equal(stats.area_bytes, stats.area_free_bytes + stats.area_movable_bytes +
						   stats.area_discardable_bytes + stats.area_claimed_bytes +
						   stats.area_held_bytes + stats.area_isolated_bytes);
	return stats;
}

int fork_begin(struct sublet_mm *mm)
{
	return sublet__mm_fork_begin(mm, engine_now(mm->arena) + SUBLET__FORK_WAIT_NS);
}
