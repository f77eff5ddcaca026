/* SPDX-License-Identifier: MIT */
/* core/commit.c, decommit and commit: against a model of single pages. G1, G5, G8, G9. */
#include "fixture.h"

enum { MAPPINGS = 4, PAGES_MAX = 1100 };

struct model {
	uint32_t vpn;
	uint32_t pages;
	bool hole[PAGES_MAX];
	uint64_t value[PAGES_MAX]; /* of word 0 and 7 */
};

static void model_write(struct fake *f, struct model *m, uint32_t i, uint64_t value)
{
	assert_true(fake_write(&f->mm[0], m->vpn + i, 0, value) &&
		    fake_write(&f->mm[0], m->vpn + i, 7, value));
	m->value[i] = value;
}

static void model_check(struct fake *f, const struct model *m)
{
	for (uint32_t i = 0; i < m->pages; i++) {
		uint64_t first = 1, last = 1;
		if (m->hole[i])
			continue;
		assert_true(fake_read(&f->mm[0], m->vpn + i, 0, &first) &&
			    fake_read(&f->mm[0], m->vpn + i, 7, &last));
		assert_int_equal(first, m->value[i]);
		assert_int_equal(last, m->value[i]);
	}
}

/* Frames that have to be there: all units with a page that is not a hole. */
static uint64_t model_lent(const struct model *m)
{
	uint64_t lent = 0;

	for (uint32_t unit = 0; unit < m->pages; unit += 16) {
		uint32_t end = min_u32(unit + 16, m->pages);
		bool any = false;
		for (uint32_t i = unit; i < end; i++)
			any |= !m->hole[i];
		lent += any ? end - unit : 0;
	}
	return lent * PAGE;
}

static bool all_holes(const struct model *m, uint32_t first, uint32_t pages)
{
	for (uint32_t i = first; i < first + pages; i++)
		if (!m->hole[i])
			return false;
	return true;
}

static void model_step(struct fake *f, struct model *m, uint64_t *state)
{
	uint32_t first = below(state, m->pages), most = m->pages - first;
	uint32_t pages = 1 + below(state, below(state, 2) ? most : min_u32(most, 40));
	void *addr = addr_of(f, 0, m->vpn + first);

	switch (below(state, 4)) {
	case 0:
		assert_int_equal(sublet_decommit(f->engine_mm[0], addr, pages * PAGE), 0);
		for (uint32_t i = first; i < first + pages; i++)
			m->hole[i] = true;
		break;
	case 1:
		if (!all_holes(m, first, pages)) {
			assert_int_equal(sublet_commit(f->engine_mm[0], addr, pages * PAGE, 0), -EINVAL);
			for (pages = 0; first + pages < m->pages && m->hole[first + pages];)
				pages++;
			if (!pages)
				break;
		}
		assert_int_equal(sublet_commit(f->engine_mm[0], addr, pages * PAGE, 0), 0);
		for (uint32_t i = first; i < first + pages; i++) {
			m->hole[i] = false;
			m->value[i] = 0;
		}
		break;
	case 2:
		for (uint32_t i = first; i < first + pages; i++)
			if (!m->hole[i])
				model_write(f, m, i, rng(state));
		break;
	default:
		sublet__chaos_move(f->arena, f->engine_mm[0], rng(state));
	}
}

/* Random pages go and come; what stays keeps its bytes, what comes is zero, whole units give frames back. */
static void commit_model(void **unused)
{
	static struct fake f;
	static struct model model[MAPPINGS];
	uint64_t state = seed_get("commit_model");
	(void)unused;

	for (uint32_t round = 0; round < 6; round++) {
		fixture_open(&f,
			     &(struct fake_options){ .no_track = round % 2, .dirty_zero_frames = round % 3 });
		uint64_t lent = 0;
		for (uint32_t i = 0; i < MAPPINGS; i++) {
			model[i] = (struct model){ .pages = 1 + below(&state, round < 3 ? 60 : PAGES_MAX) };
			model[i].vpn = map_pages(&f, model[i].pages, SUBLET_MOVABLE);
		}
		for (uint32_t n = 0; n < 400; n++) {
			struct model *m = &model[below(&state, MAPPINGS)];
			model_step(&f, m, &state);
			model_check(&f, m);
			fixture_verify(&f);
			lent = 0;
			for (uint32_t i = 0; i < MAPPINGS; i++)
				lent += model_lent(&model[i]);
			assert_int_equal(stats_of(&f).lent_bytes, lent);
		}
		for (uint32_t i = 0; i < MAPPINGS; i++)
			assert_int_equal(sublet_unmap(f.engine_mm[0], addr_of(&f, 0, model[i].vpn),
						      model[i].pages * PAGE),
					 0);
		assert_int_equal(stats_of(&f).lent_bytes, 0);
		fixture_close(&f);
	}
}

static void commit_bad_arguments(void **unused)
{
	static struct fake f;
	struct sublet_mm *mm;
	(void)unused;

	fixture_open(&f, NULL);
	mm = f.engine_mm[0];
	uint32_t vpn = map_pages(&f, 64, SUBLET_MOVABLE), other = map_pages(&f, 16, SUBLET_DISCARDABLE);
	char *a = addr_of(&f, 0, vpn);
	fill(&f, 0, vpn, 64, 1);
	assert_int_equal(sublet_decommit(mm, a + 1, PAGE), -EINVAL);
	assert_int_equal(sublet_decommit(mm, a, PAGE + 1), -EINVAL);
	assert_int_equal(sublet_decommit(mm, a, 0), -EINVAL);
	assert_int_equal(sublet_decommit(mm, a, 200 * PAGE), -EINVAL);
	assert_int_equal(sublet_decommit(mm, addr_of(&f, 0, other), UNIT), -EINVAL);
	assert_int_equal(sublet_commit(mm, a, PAGE, 0), -EINVAL); /* not decommitted */
	assert_int_equal(sublet_decommit(mm, a + UNIT, UNIT), 0);
	assert_int_equal(sublet_commit(mm, a + UNIT, UNIT + PAGE, 0), -EINVAL);
	assert_int_equal(sublet_commit(mm, a + UNIT, UNIT, SUBLET_MOVABLE), -EINVAL);
	assert_int_equal(sublet_commit(mm, a + UNIT, UNIT, 0), 0);
	assert_int_equal(sublet_commit(mm, addr_of(&f, 0, other), UNIT, 0), -EINVAL);
	check_fill(&f, 0, vpn, 16, 1);
	check_zero(&f, 0, vpn + 16, 16);
	fixture_close(&f);
}

/* A hole cannot be pinned, whatever memory is left behind it; a pinned page keeps its frames meanwhile. */
static void commit_pins(void **unused)
{
	static struct fake f;
	struct sublet_pin pin, none;
	void *plain;
	(void)unused;

	fixture_open(&f, NULL);
	uint32_t area = f.options.area_frames, vpn = map_pages(&f, area, SUBLET_MOVABLE);
	char *a = addr_of(&f, 0, vpn);
	assert_int_equal(sublet_pin(f.engine_mm[0], a, PAGE, SUBLET_PIN_WRITE, NULL, &pin), 0);
	fake_device_hold(&f.mm[0], vpn, 1, 1);
	assert_int_equal(sublet_decommit(f.engine_mm[0], a, UNIT), 0);
	assert_int_equal(stats_of(&f).lent_bytes, area * PAGE);
	assert_int_equal(sublet_pin(f.engine_mm[0], a, PAGE, SUBLET_PIN_READ, NULL, &none), -EFAULT);
	fake_device_hold(&f.mm[0], vpn, 1, -1);
	assert_int_equal(sublet_unpin(&pin), 0);
	assert_int_equal(sublet_decommit(f.engine_mm[0], a, UNIT), 0); /* again: now they go */
	assert_int_equal(stats_of(&f).lent_bytes, area * PAGE - UNIT);
	assert_int_equal(sublet_commit(f.engine_mm[0], a, UNIT, 0), 0);

	assert_int_equal(sublet_map(f.engine_mm[0], UNIT, SUBLET_MOVABLE | SUBLET_PLAIN_OK, &plain), 0);
	assert_int_equal(sublet_decommit(f.engine_mm[0], plain, PAGE), 0);
	assert_int_equal(sublet_pin(f.engine_mm[0], plain, PAGE, SUBLET_PIN_READ, NULL, &none), -EFAULT);
	assert_int_equal(sublet_pin(f.engine_mm[0], (char *)plain + PAGE, PAGE, SUBLET_PIN_READ, NULL, &pin),
			 0);
	assert_int_equal(sublet_unpin(&pin), 0);
	assert_int_equal(sublet_decommit(f.engine_mm[0], plain, UNIT), 0);
	assert_int_equal(stats_of(&f).plain_bytes, 0);
	assert_int_equal(sublet_commit(f.engine_mm[0], plain, UNIT, 0), -ENOMEM);
	assert_int_equal(sublet_commit(f.engine_mm[0], plain, UNIT, SUBLET_PLAIN_OK), 0);
	check_zero(&f, 0, vpn_of(&f, 0, plain), 16);
	fixture_close(&f);
}

/*
 * G5: a commit that fails half way leaves holes, of this call and of others, and memory that works.
 * One page of the second unit was never decommitted; the frames that are left do not suffice.
 */
static void commit_no_memory(void **unused)
{
	static struct fake f;
	(void)unused;

	for (uint32_t spare = 0; spare < 48; spare++) {
		fixture_open(&f,
			     &(struct fake_options){ .area_frames = 512, .normal_frames = FAKE_NORMAL_NONE });
		uint32_t vpn = map_pages(&f, 48, SUBLET_MOVABLE);
		char *a = addr_of(&f, 0, vpn);
		fill(&f, 0, vpn, 48, 1);
		assert_int_equal(sublet_decommit(f.engine_mm[0], a, 16 * PAGE), 0);
		assert_int_equal(sublet_decommit(f.engine_mm[0], a + 32 * PAGE, 16 * PAGE), 0);
		/* a claim takes what is left but for `spare` frames: lending allows more than there is */
		struct sublet_claim claim;
		assert_int_equal(claim_take(&f, (512 - 16 - spare) * PAGE, NULL, &claim), 0);
		/* on odd rounds what was given cannot be taken back either, and stays behind its holes */
		fake_fail(&f, spare & 1 ? 1u << FAKE_UNMAP : 0, 1, -ENOMEM, true);
		int err = sublet_commit(f.engine_mm[0], a + 8 * PAGE, 8 * PAGE, 0);
		fake_fail_end(&f);
		assert_int_equal(err, spare < 16 ? -ENOMEM : 0);
		fixture_verify(&f);
		if (err) { /* not one page more than before is committed: each says so when asked */
			if (!(spare & 1))
				assert_int_equal(stats_of(&f).lent_bytes, 16 * PAGE);
			claim_give(&f, &claim);
			for (uint32_t i = 0; i < 16; i++)
				assert_int_equal(sublet_commit(f.engine_mm[0], a + i * PAGE, PAGE, 0), 0);
			check_zero(&f, 0, vpn, 16);
		} else {
			check_zero(&f, 0, vpn + 8, 8);
			for (uint32_t i = 0; i < 8; i++)
				assert_int_equal(sublet_commit(f.engine_mm[0], a + i * PAGE, PAGE, 0), 0);
			claim_give(&f, &claim);
		}
		check_part(&f, 0, vpn, 16, 16, 1);
		fixture_close(&f);
	}
}

/* G5: each platform call of a decommit and of a commit over two blocks fails in turn. */
static void commit_failures(void **unused)
{
	static struct fake f;
	(void)unused;

	for (uint32_t persistent = 0; persistent < 2; persistent++)
		for (int64_t n = 1, reached = 1; reached; n++) {
			fixture_open(&f, NULL);
			uint32_t vpn = map_pages(&f, 1000, SUBLET_MOVABLE);
			char *a = addr_of(&f, 0, vpn);
			fill(&f, 0, vpn, 1000, 7);
			if (n & 1) /* a unit that was gone before, next to units that keep memory */
				assert_int_equal(sublet_decommit(f.engine_mm[0], a + 96 * PAGE, UNIT), 0);
			fake_fail(&f, FAKE_CAN_FAIL, n, -ENOMEM, persistent);
			/* what cannot be given back stays behind its hole: no error */
			assert_int_equal(sublet_decommit(f.engine_mm[0], a + 100 * PAGE, 800 * PAGE), 0);
			int err = sublet_commit(f.engine_mm[0], a + 105 * PAGE, 790 * PAGE, 0);
			reached = fake_fail_end(&f);
			assert_true(!err || (reached && err == -ENOMEM));
			fixture_verify(&f);
			if (err)
				assert_int_equal(sublet_commit(f.engine_mm[0], a + 105 * PAGE, 790 * PAGE, 0),
						 0);
			check_zero(&f, 0, vpn + 105, 790);
			check_fill(&f, 0, vpn, n & 1 ? 96 : 100, 7);
			assert_int_equal(sublet_commit(f.engine_mm[0], a + 100 * PAGE, 5 * PAGE, 0), 0);
			check_zero(&f, 0, vpn + 100, 800 - 5);
			assert_int_equal(sublet_unmap(f.engine_mm[0], a, 1000 * PAGE), 0);
			assert_int_equal(stats_of(&f).lent_bytes, 0);
			fixture_close(&f);
		}
}

/*
 * Two neighbours, the first of which ends inside its unit. A pin kept the memory of its holes, so both are freed by one
 * call; the addresses behind the first are nobody's all the same (G8).
 */
static void decommit_neighbours(void **unused)
{
	static struct fake f;
	struct sublet_pin pin;
	(void)unused;

	fixture_open(&f, NULL);
	struct sublet_mm *mm = f.engine_mm[0];
	uint32_t first = map_pages(&f, 20, SUBLET_MOVABLE), second = map_pages(&f, 16, SUBLET_MOVABLE);
	assert_int_equal(second, first + 32);
	assert_int_equal(sublet_pin(mm, addr_of(&f, 0, first), 20 * PAGE, SUBLET_PIN_READ, NULL, &pin), 0);
	assert_int_equal(sublet_decommit(mm, addr_of(&f, 0, first), 20 * PAGE), 0);
	assert_int_equal(sublet_unpin(&pin), 0);
	assert_int_equal(sublet_decommit(mm, addr_of(&f, 0, second), 16 * PAGE), 0);
	assert_int_equal(sublet_commit(mm, addr_of(&f, 0, first + 20), PAGE, 0), -EINVAL);
	assert_int_equal(sublet_unmap(mm, addr_of(&f, 0, first), 20 * PAGE), 0);
	assert_int_equal(sublet_unmap(mm, addr_of(&f, 0, second), 16 * PAGE), 0);
	fixture_close(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(commit_model),    cmocka_unit_test(commit_bad_arguments),
		cmocka_unit_test(commit_pins),     cmocka_unit_test(commit_no_memory),
		cmocka_unit_test(commit_failures), cmocka_unit_test(decommit_neighbours),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
