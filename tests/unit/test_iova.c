/* SPDX-License-Identifier: MIT */
/* core/iova.c: its edges. What it answers in between is compared with a twin in tests/model. */
#include "fixture.h"

#include "iopt_check.h"

static void iova_open(struct sublet__iova *iova, uint32_t taken_max, uint64_t first, uint64_t end)
{
	iova->range = calloc(sublet__iova_ranges(taken_max), sizeof *iova->range);
	assert_non_null(iova->range);
	sublet__iova_init(iova, taken_max, first, end);
	iova_check(iova);
}

static void iova_close(struct sublet__iova *iova)
{
	free(iova->range);
}

/* As many ranges as may be, with a hole between every two: the worst case for the number of ranges. */
static void iova_full(void **unused)
{
	enum { MAX = 1000 };
	struct sublet__iova iova;
	uint32_t id;
	(void)unused;

	iova_open(&iova, MAX, 1, 1 << 20);
	for (uint32_t i = 0; i < MAX; i++)
		assert_int_equal(sublet__iova_take_at(&iova, 2 + 2 * i, 1, &id), 0);
	iova_check(&iova);
	assert_int_equal(iova.fresh, sublet__iova_ranges(MAX));
	assert_int_equal(sublet__iova_take(&iova, 1, 1, 0), IOVA_NONE);
	assert_int_equal(sublet__iova_take_at(&iova, 9000, 1, &id), -ENOSPC);
	assert_int_equal(sublet__iova_take_at(&iova, 2, 1, &id), -EEXIST);
	assert_int_equal(sublet__iova_take_at(&iova, 0, 1, &id), -ERANGE);
	for (uint32_t i = 0; i < MAX; i += 2)
		sublet__iova_give(&iova, sublet__iova_find(&iova, 2 + 2 * i));
	for (uint32_t i = 1; i < MAX; i += 2)
		sublet__iova_give(&iova, sublet__iova_find(&iova, 2 + 2 * i));
	iova_check(&iova);
	assert_int_equal(sublet__iova_largest(&iova), (1 << 20) - 1);
	iova_close(&iova);
}

/* A space of nothing, of one page, and at the top of what can be named. */
static void iova_edges(void **unused)
{
	struct sublet__iova iova;
	uint64_t top = UINT64_MAX >> 12;
	uint32_t id;
	(void)unused;

	iova_open(&iova, 3, 5, 5);
	assert_int_equal(sublet__iova_take(&iova, 1, 1, 0), IOVA_NONE);
	assert_int_equal(sublet__iova_take_at(&iova, 5, 1, &id), -ERANGE);
	assert_int_equal(sublet__iova_largest(&iova), 0);
	iova_close(&iova);

	iova_open(&iova, 3, top - 1, top);
	assert_int_equal(sublet__iova_take(&iova, 2, 1, 0), IOVA_NONE);
	assert_int_equal(sublet__iova_take_at(&iova, top - 1, UINT64_MAX, &id), -ERANGE);
	assert_int_equal(sublet__iova_take(&iova, 1, 1ull << 51, 0), IOVA_NONE);
	id = sublet__iova_take(&iova, 1, 1ull << 51, (1ull << 51) - 2);
	assert_int_not_equal(id, IOVA_NONE);
	assert_int_equal(iova.range[id].start, top - 1);
	iova_close(&iova);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(iova_full),
		cmocka_unit_test(iova_edges),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
