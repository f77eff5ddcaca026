/* SPDX-License-Identifier: MIT */
/* Where the bytes of a pin are; core/pins.c: who has pinned what, and what becomes of the record of a pin. */
#include "fixture.h"

#include <string.h>

#define LONG_WRITE (SUBLET_PIN_LONGTERM | SUBLET_PIN_WRITE)

static int pin(struct fake *f, uint32_t vpn, uint32_t pages, uint32_t flags, const char *owner,
	       struct sublet_pin *p)
{
	return sublet_pin(f->engine_mm[0], addr_of(f, 0, vpn), pages * PAGE, flags, owner, p);
}

static void extents_of_pins(void **unused)
{
	static struct fake f;
	uint64_t seed = seed_get("extents_of_pins");
	(void)unused;

	for (uint32_t round = 0; round < 60; round++) {
		struct sublet_extent e[3];
		struct sublet_pin p;
		fixture_open(&f, NULL);
		uint32_t vpn = map_pages(&f, 1200, SUBLET_MOVABLE);
		for (uint32_t i = 0; i < 30; i++)
			sublet__chaos_move(f.arena, f.engine_mm[0], rng(&seed));
		uint64_t from = below(&seed, 1000 * 4096), bytes = 1 + below(&seed, 199 * 4096), at = 0;
		uint32_t flags = SUBLET_PIN_READ | (round % 2 ? SUBLET_PIN_LONGTERM : 0);
		char *addr = (char *)addr_of(&f, 0, vpn) + from;
		assert_int_equal(sublet_pin(f.engine_mm[0], addr, bytes, flags, NULL, &p), 0);
		for (int n; (n = sublet_pin_extents(&p, at, e, 1 + below(&seed, 3))) != 0;) {
			assert_in_range(n, 1, 3);
			for (int i = 0; i < n; i++) {
				assert_true(!i ||
					    e[i].offset_bytes != e[i - 1].offset_bytes + e[i - 1].bytes);
				for (uint64_t b = 0; b < e[i].bytes; b += 512) {
					uint64_t byte = from + at + b;
					uint64_t pfn = fake_pfn_of(&f.mm[0], vpn + (uint32_t)(byte / PAGE));
					assert_int_equal(e[i].offset_bytes + b, pfn * PAGE + byte % PAGE);
				}
				at += e[i].bytes;
			}
		}
		assert_int_equal(at, bytes);
		int n = sublet_mm_extents(f.engine_mm[0], addr, bytes, 0, e, 3);
		assert_in_range(n, 1, 3);
		assert_int_equal(sublet_pin_extents(&p, bytes + 1, e, 3), -EINVAL);
		assert_int_equal(sublet_pin_extents(&p, 0, e, 0), -EINVAL);
		assert_int_equal(sublet_unpin(&p), 0);
		assert_int_equal(sublet_pin_extents(&p, 0, e, 3), -EINVAL);
		assert_int_equal(sublet_mm_extents(f.engine_mm[0], addr_of(&f, 0, vpn + 1199), PAGE + 1, PAGE,
						   e, 3),
				 -EFAULT);
		fixture_close(&f);
	}
}

static void pins_are_listed(void **unused)
{
	static struct fake f;
	static struct sublet_pin_info info[2000];
	static struct sublet_pin many[2000];
	struct sublet_pin a, b, c;
	uint64_t next = 0;
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .virtual_time = true });
	uint32_t vpn = map_pages(&f, 64, SUBLET_MOVABLE), far = map_pages(&f, 64, SUBLET_MOVABLE);
	assert_int_equal(pin(&f, vpn, 3, SUBLET_PIN_WRITE, "short one", &a), 0);
	f.platform.ops->sleep_ns(f.platform.ctx, 5 * SUBLET_MS);
	assert_int_equal(pin(&f, far, 2, SUBLET_PIN_LONGTERM | SUBLET_PIN_READ, NULL, &b), 0);
	assert_int_equal(pin(&f, vpn + 8, 2, SUBLET_PIN_READ, NULL, &c), 0); /* no tag: not listed */
	assert_int_equal(sublet_pin_list(f.arena, &next, 10, info), 2);
	assert_int_equal(sublet_pin_list(f.arena, &next, 10, info + 2), 0);
	uint32_t s = info[0].flags & SUBLET_PIN_LONGTERM ? 1 : 0;
	assert_string_equal(info[s].owner, "short one");
	assert_int_equal(info[s].bytes, 3 * PAGE);
	assert_int_equal(info[s].addr, (uintptr_t)addr_of(&f, 0, vpn));
	assert_true(info[s].age_ns >= 5 * SUBLET_MS && info[!s].age_ns < 5 * SUBLET_MS);
	assert_string_equal(info[!s].owner, "pin");
	assert_int_equal(info[!s].flags, SUBLET_PIN_LONGTERM | SUBLET_PIN_READ);
	assert_int_equal(sublet_unpin(&a) | sublet_unpin(&b) | sublet_unpin(&c), 0);
	next = 0;
	assert_int_equal(sublet_pin_list(f.arena, &next, 10, info), 0);

	/* More than can be listed: short pins succeed all the same, long-term ones say so. */
	for (uint32_t i = 0; i < 2000; i++)
		assert_int_equal(pin(&f, vpn, 1, SUBLET_PIN_READ, "a tag that is far too long for its place",
				     &many[i]),
				 0);
	next = 0;
	assert_int_equal(sublet_pin_list(f.arena, &next, 2000, info), f.arena->pins_max);
	assert_int_equal(strlen(info[0].owner), SUBLET_OWNER_BYTES - 1);
	assert_int_equal(pin(&f, far, 1, LONG_WRITE, NULL, &b), -ENOSPC);
	for (uint32_t i = 0; i < 2000; i++)
		assert_int_equal(sublet_unpin(&many[i]), 0);
	assert_int_equal(pin(&f, far, 1, LONG_WRITE, NULL, &b), 0);
	assert_int_equal(sublet_unpin(&b), 0);
	fixture_close(&f);
}

/* What is said of a pin in another address space. */
static void pins_of_two(void **unused)
{
	static struct fake f;
	struct sublet_pin_info info[2];
	struct sublet_pin p;
	char owner[SUBLET_OWNER_BYTES];
	uint64_t next = 0, age_ns;
	void *addr;
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .mms = 2 });
	assert_int_equal(sublet_map(f.engine_mm[1], 16 * PAGE, SUBLET_MOVABLE, &addr), 0);
	assert_int_equal(sublet_pin(f.engine_mm[1], addr, PAGE, SUBLET_PIN_WRITE, "other", &p), 0);
	assert_int_equal(sublet_pin_list(f.arena, &next, 2, info), 1);
	assert_int_equal(info[0].mm, 1);
	assert_int_equal(info[0].flags, SUBLET_PIN_WRITE);
	assert_true(sublet__pin_owner(f.engine_mm[1], vpn_of(&f, 1, addr), 1, owner, &age_ns));
	/* Two processes may use the same addresses. */
	uint64_t base = f.engine_mm[0]->config.base;
	f.engine_mm[0]->config.base = f.engine_mm[1]->config.base;
	assert_false(sublet__pin_owner(f.engine_mm[0], vpn_of(&f, 1, addr), 1, owner, &age_ns));
	f.engine_mm[0]->config.base = base;
	assert_int_equal(sublet_unpin(&p), 0);
	fixture_close(&f);
}

/* Who is in the way of a page: who has pinned that one and no other, the oldest first. */
static void pins_have_owners(void **unused)
{
	static struct fake f;
	struct sublet_pin left, right, old, young;
	char owner[SUBLET_OWNER_BYTES];
	uint64_t age_ns;
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .virtual_time = true });
	struct sublet_mm *mm = f.engine_mm[0];
	uint32_t vpn = map_pages(&f, 64, SUBLET_MOVABLE);
	assert_int_equal(pin(&f, vpn + 3, 1, SUBLET_PIN_READ, "left", &left), 0);
	assert_int_equal(pin(&f, vpn + 5, 1, SUBLET_PIN_READ, "right", &right), 0);
	assert_false(sublet__pin_owner(mm, vpn + 4, 1, owner, &age_ns));
	for (uint32_t turn = 0; turn < 2; turn++) { /* whichever record comes first */
		assert_int_equal(pin(&f, vpn + 2, 3, SUBLET_PIN_READ, "old", &old), 0);
		f.platform.ops->sleep_ns(f.platform.ctx, 7 * SUBLET_MS);
		if (turn)
			assert_int_equal(sublet_unpin(&left), 0); /* its record is before that of "old" */
		assert_int_equal(pin(&f, vpn + 4, 9, SUBLET_PIN_READ, "young", &young), 0);
		f.platform.ops->sleep_ns(f.platform.ctx, SUBLET_MS);
		assert_true(sublet__pin_owner(mm, vpn + 4, 1, owner, &age_ns));
		assert_string_equal(owner, "old");
		assert_in_range(age_ns, 8 * SUBLET_MS, 9 * SUBLET_MS);
		assert_int_equal(sublet_unpin(&old), 0);
		assert_true(sublet__pin_owner(mm, vpn + 4, 1, owner, &age_ns));
		assert_string_equal(owner, "young");
		assert_int_equal(sublet_unpin(&young), 0);
	}
	assert_int_equal(sublet_unpin(&right), 0);
	fixture_close(&f);
}

static struct fake *listed_fake;
static uint64_t (*listed_clock)(void *ctx);
static size_t listed;

/* Called while a record is written. */
static uint64_t list_and_tell_time(void *ctx)
{
	struct sublet_pin_info info[4];
	uint64_t next = 0;

	listed += sublet_pin_list(listed_fake->arena, &next, 4, info);
	return listed_clock(ctx);
}

static void pins_are_listed_when_complete(void **unused)
{
	static struct fake f;
	struct sublet__platform_ops ops;
	struct sublet_pin p;
	(void)unused;

	fixture_open(&f, NULL);
	uint32_t vpn = map_pages(&f, 64, SUBLET_MOVABLE);
	const struct sublet__platform_ops *before = f.arena->platform.ops;
	ops = *before;
	listed_fake = &f;
	listed_clock = ops.coarse_ns;
	ops.coarse_ns = list_and_tell_time;
	f.arena->platform.ops = &ops;
	listed = 0;
	assert_int_equal(pin(&f, vpn, 1, SUBLET_PIN_READ, "half a name", &p), 0);
	assert_int_equal(listed, 0);
	f.arena->platform.ops = before;
	assert_int_equal(sublet_unpin(&p), 0);
	fixture_close(&f);
}

/* A copy of a pin that is gone: noticed where the pin was listed, also when its record is somebody else's by now. */
static void copy_of_a_pin(void **unused)
{
	static struct fake f;
	struct sublet_pin_info info[4];
	struct sublet_pin first, copy, other;
	(void)unused;

	for (uint32_t longterm = 0; longterm < 2; longterm++) {
		uint32_t flags = longterm ? LONG_WRITE : SUBLET_PIN_WRITE;
		fixture_open(&f, &(struct fake_options){ .virtual_time = true });
		uint32_t vpn = map_pages(&f, 64, SUBLET_MOVABLE);
		assert_int_equal(pin(&f, vpn, 1, flags, "first", &first), 0);
		copy = first;
		assert_int_equal(sublet_unpin(&first), 0);
		assert_int_equal(sublet_unpin(&copy), -EINVAL);
		uint64_t next = 0;
		assert_int_equal(sublet_pin_list(f.arena, &next, 4, info), 0);

		assert_int_equal(pin(&f, vpn, 1, flags, "first", &first), 0);
		copy = first;
		assert_int_equal(sublet_unpin(&first), 0);
		assert_int_equal(pin(&f, vpn, 1, flags, "other", &other), 0);
		assert_int_equal(sublet_unpin(&copy), -EINVAL);
		next = 0;
		assert_int_equal(sublet_pin_list(f.arena, &next, 4, info), 1);
		assert_string_equal(info[0].owner, "other");
		uint32_t pfn = fake_pfn_of(&f.mm[0], vpn);
		uint32_t head = sublet__frame_head(f.arena, pfn);
		assert_true(a32_load_relaxed(&f.arena->frames[head].ref) & REF_COUNT_MASK); /* still held */
		assert_int_equal(sublet_unpin(&other), 0);
		assert_false(a32_load_relaxed(&f.arena->frames[head].ref) & REF_COUNT_MASK);
		fixture_close(&f);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(extents_of_pins),
		cmocka_unit_test(pins_are_listed),
		cmocka_unit_test(pins_of_two),
		cmocka_unit_test(pins_have_owners),
		cmocka_unit_test(pins_are_listed_when_complete),
		cmocka_unit_test(copy_of_a_pin),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
