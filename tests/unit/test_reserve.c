/* SPDX-License-Identifier: MIT */
/* core/mm.c and core/commit.c: addresses that get memory when they are committed, and a little ahead. G1, G8, G9. */
#include "fixture.h"

#define BLOCK 512u

/* Two blocks of addresses and more, from a block's start on; no memory. */
static uint32_t reserve(struct fake *f, uint32_t pages)
{
	void *addr = NULL;

	assert_int_equal(sublet__mm_reserve(f->engine_mm[0], pages * PAGE, BLOCK * PAGE, &addr), 0);
	return vpn_of(f, 0, addr);
}

static void commit(struct fake *f, uint32_t vpn, uint32_t pages)
{
	assert_int_equal(sublet_commit(f->engine_mm[0], addr_of(f, 0, vpn), pages * PAGE, SUBLET_PLAIN_OK),
			 0);
	check_zero(f, 0, vpn, pages);
	fixture_verify(f);
}

static void decommit(struct fake *f, uint32_t vpn, uint32_t pages)
{
	assert_int_equal(sublet_decommit(f->engine_mm[0], addr_of(f, 0, vpn), pages * PAGE), 0);
	fixture_verify(f);
}

static uint64_t lent_pages(struct fake *f)
{
	return stats_of(f).lent_bytes / PAGE;
}

static void reserve_addresses(void **unused)
{
	static struct fake f;
	struct sublet_pin pin;
	void *addr = NULL;
	uint64_t calls;
	(void)unused;

	fixture_open(&f, NULL);
	struct sublet_mm *mm = f.engine_mm[0];
	assert_int_equal(sublet__mm_reserve(mm, 0, PAGE, &addr), -EINVAL);
	assert_int_equal(sublet__mm_reserve(mm, PAGE, 3 * PAGE, &addr), -EINVAL);
	assert_int_equal(sublet__mm_reserve(mm, (f.options.mm_pages + 1) * PAGE, PAGE, &addr), -ENOMEM);
	assert_int_equal(sublet__mm_reserve(mm, UINT64_MAX, PAGE, &addr), -ENOMEM);
	calls = f.calls[FAKE_MAP];
	/* far more than there is memory for, and it costs nothing */
	uint32_t vpn = reserve(&f, 3 * f.options.area_frames);
	assert_int_equal(f.calls[FAKE_MAP], calls);
	assert_int_equal(lent_pages(&f), 0);
	addr = addr_of(&f, 0, vpn);
	assert_int_equal(sublet_pin(mm, addr, PAGE, SUBLET_PIN_READ, NULL, &pin), -EFAULT);
	decommit(&f, vpn, BLOCK);
	fixture_verify(&f);
	assert_int_equal(sublet_unmap(mm, addr, 3ull * f.options.area_frames * PAGE), 0);
	assert_int_equal(reserve(&f, BLOCK), vpn);
	fixture_close(&f);
}

/* Small pieces: one call of the kernel for 2 MiB, and nothing is zeroed twice. */
static void reserve_small_pieces(void **unused)
{
	static struct fake f;
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .dirty_zero_frames = true, .run_pages_max = 512 });
	uint32_t vpn = reserve(&f, 3 * BLOCK);
	uint64_t maps = f.calls[FAKE_MAP];
	for (uint32_t i = 0; i < BLOCK; i++) {
		commit(&f, vpn + i, 1);
		assert_int_equal(lent_pages(&f), BLOCK);
		fill(&f, 0, vpn + i, 1, i);
	}
	assert_int_equal(f.calls[FAKE_MAP], maps + 1);
	assert_int_equal(f.calls[FAKE_CLEAR], 0);
	for (uint32_t i = 0; i < BLOCK; i++)
		check_fill(&f, 0, vpn + i, 1, i);
	/* what was used is zeroed when it comes again, what was not is not */
	decommit(&f, vpn + 3, 1);
	commit(&f, vpn + 3, 1);
	assert_int_equal(f.calls[FAKE_CLEAR], 1);
	fixture_close(&f);
}

/* Large pieces: whole blocks as long as another piece fits behind, the piece alone at the end. */
static void reserve_large_pieces(void **unused)
{
	static struct fake f;
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .area_frames = 16 * BLOCK });
	uint32_t vpn = reserve(&f, 3 * BLOCK), piece = BLOCK + 1, unit = 16;
	commit(&f, vpn, piece);
	assert_int_equal(lent_pages(&f), 2 * BLOCK);
	commit(&f, vpn + piece, piece);
	assert_int_equal(lent_pages(&f), 2 * BLOCK + unit);
	uint32_t other = reserve(&f, 2 * BLOCK + 32);
	commit(&f, other + BLOCK, piece); /* between others */
	assert_int_equal(lent_pages(&f), 3 * BLOCK + 2 * unit);
	commit(&f, other + BLOCK + piece, 1); /* in a unit that has memory */
	commit(&f, other + 2 * BLOCK + unit, 8);
	assert_int_equal(lent_pages(&f), 3 * BLOCK + 2 * unit + unit);
	fixture_close(&f);
}

/* Ahead goes nobody's room: in an area that is nearly full a commit takes what it is asked for. */
static void reserve_little_room(void **unused)
{
	static struct fake f;
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .area_frames = 32 * BLOCK });
	(void)map_pages(&f, 31 * BLOCK, SUBLET_MOVABLE);
	uint32_t vpn = reserve(&f, 4 * BLOCK);
	commit(&f, vpn, 1); /* a thirty-second is left */
	assert_int_equal(lent_pages(&f), 32 * BLOCK);
	decommit(&f, vpn, 1);
	(void)map_pages(&f, 16, SUBLET_MOVABLE); /* a little less than that */
	commit(&f, vpn + BLOCK, 1);
	assert_int_equal(lent_pages(&f), 31 * BLOCK + 16 + 16);
	commit(&f, vpn + BLOCK + 1, 2 * BLOCK); /* more than is left: the rest is ordinary memory */
	assert_true(lent_pages(&f) <= 32 * BLOCK);
	assert_int_equal(lent_pages(&f) + stats_of(&f).plain_bytes / PAGE, 33 * BLOCK + 16 + 16);
	fixture_close(&f);
}

/* Nor is ordinary memory given ahead, where frames are short for another reason. */
static void reserve_no_frames(void **unused)
{
	static struct fake f;
	struct sublet_claim claim;
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .normal_frames = FAKE_NORMAL_NONE });
	uint32_t vpn = reserve(&f, 2 * BLOCK);
	assert_int_equal(claim_take(&f, (f.options.area_frames - 100) * PAGE, NULL, &claim), 0);
	commit(&f, vpn, 10);
	assert_int_equal(stats_of(&f).plain_bytes, 0);
	assert_in_range(lent_pages(&f), 16, 100);
	commit(&f, vpn + 10, 200);
	assert_int_not_equal(stats_of(&f).plain_bytes, 0);
	claim_give(&f, &claim);
	decommit(&f, vpn, 2 * BLOCK);
	assert_int_equal(lent_pages(&f) + stats_of(&f).plain_bytes, 0);
	fixture_close(&f);
}

/* Ahead goes only what never had memory; and it goes back with the last page in use of its block. */
static void reserve_given_back(void **unused)
{
	static struct fake f;
	(void)unused;

	fixture_open(&f, NULL);
	uint32_t vpn = reserve(&f, 4 * BLOCK);
	commit(&f, vpn + 5, 2);
	commit(&f, vpn + 100, 1);
	assert_int_equal(lent_pages(&f), BLOCK);
	decommit(&f, vpn + 5, 2);
	assert_int_equal(lent_pages(&f), BLOCK - 16); /* its own unit */
	decommit(&f, vpn + 100, 1);
	assert_int_equal(lent_pages(&f), 0);
	commit(&f, vpn + 100, 1);
	assert_int_equal(lent_pages(&f), 16);
	decommit(&f, vpn + 100, 1);
	/* a neighbour in the same block keeps its own */
	uint32_t one = reserve(&f, 16), two = map_pages(&f, 16, SUBLET_MOVABLE);
	fill(&f, 0, two, 16, 1);
	commit(&f, one, 1);
	decommit(&f, one, 1);
	check_fill(&f, 0, two, 16, 1);
	assert_int_equal(lent_pages(&f), 16);
	assert_int_equal(sublet_unmap(f.engine_mm[0], addr_of(&f, 0, vpn), 4 * BLOCK * PAGE), 0);
	fixture_close(&f);
}

/* ---- against a model: random commits and decommits of two threads' worth of addresses ---- */

enum { PAGES = 1500 };

struct model {
	uint32_t vpn;
	bool used[PAGES];
	uint64_t key[PAGES];
};

static bool all_are(const struct model *m, uint32_t first, uint32_t pages, bool used)
{
	for (uint32_t i = first; i < first + pages; i++)
		if (m->used[i] != used)
			return false;
	return true;
}

static void model_step(struct fake *f, struct model *m, uint64_t *state)
{
	uint32_t first = below(state, PAGES),
		 pages = 1 + below(state, min_u32(PAGES - first, below(state, 3) ? 20 : 700));

	if (all_are(m, first, pages, false)) {
		commit(f, m->vpn + first, pages);
		for (uint32_t i = first; i < first + pages; i++) {
			m->used[i] = true;
			m->key[i] = rng(state);
			fill(f, 0, m->vpn + i, 1, m->key[i]);
		}
	} else if (below(state, 2)) {
		decommit(f, m->vpn + first, pages);
		for (uint32_t i = first; i < first + pages; i++)
			m->used[i] = false;
	} else {
		sublet__chaos_move(f->arena, f->engine_mm[0], rng(state));
	}
}

static void reserve_model(void **unused)
{
	static struct fake f;
	static struct model model[2];
	uint64_t state = seed_get("reserve_model");
	(void)unused;

	for (uint32_t round = 0; round < 4; round++) {
		fixture_open(&f, &(struct fake_options){ .dirty_zero_frames = round % 2,
							 .run_pages_max = round < 2 ? 512 : 64 });
		for (uint32_t k = 0; k < 2; k++) {
			model[k] = (struct model){ 0 };
			void *addr = NULL; /* both end in the middle of a block */
			assert_int_equal(sublet__mm_reserve(f.engine_mm[0], PAGES * PAGE, PAGE, &addr), 0);
			model[k].vpn = vpn_of(&f, 0, addr);
		}
		for (uint32_t n = 0; n < 300; n++) {
			uint64_t used = 0;
			model_step(&f, &model[below(&state, 2)], &state);
			for (uint32_t k = 0; k < 2; k++)
				for (uint32_t i = 0; i < PAGES; i++)
					if (model[k].used[i]) {
						check_fill(&f, 0, model[k].vpn + i, 1, model[k].key[i]);
						used++;
					}
			assert_true(lent_pages(&f) + stats_of(&f).plain_bytes / PAGE >= used);
		}
		for (uint32_t k = 0; k < 2; k++)
			decommit(&f, model[k].vpn, PAGES);
		assert_int_equal(lent_pages(&f), 0);
		assert_int_equal(stats_of(&f).plain_bytes, 0);
		fixture_close(&f);
	}
}

/* G5: each platform call of a commit that looks ahead fails in turn. */
static void reserve_failures(void **unused)
{
	static struct fake f;
	(void)unused;

	for (uint32_t persistent = 0; persistent < 2; persistent++)
		for (int64_t n = 1, reached = 1; reached; n++) {
			fixture_open(&f, NULL);
			uint32_t vpn = reserve(&f, 3 * BLOCK);
			char *a = addr_of(&f, 0, vpn);
			fake_fail(&f, FAKE_CAN_FAIL, n, -ENOMEM, persistent);
			int err = sublet_commit(f.engine_mm[0], a + 10 * PAGE, 700 * PAGE, 0);
			reached = fake_fail_end(&f);
			assert_true(!err || (reached && err == -ENOMEM));
			fixture_verify(&f);
			if (err)
				commit(&f, vpn + 10, 700);
			check_zero(&f, 0, vpn + 10, 700);
			commit(&f, vpn + 710, 400);
			decommit(&f, vpn, 3 * BLOCK);
			assert_int_equal(lent_pages(&f), 0);
			fixture_close(&f);
		}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(reserve_addresses),    cmocka_unit_test(reserve_small_pieces),
		cmocka_unit_test(reserve_large_pieces), cmocka_unit_test(reserve_little_room),
		cmocka_unit_test(reserve_no_frames),    cmocka_unit_test(reserve_given_back),
		cmocka_unit_test(reserve_model),        cmocka_unit_test(reserve_failures),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
