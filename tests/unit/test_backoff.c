/* SPDX-License-Identifier: MIT */
/*
 * core/backoff.h: whoever waits for something that nobody announces sees within a millisecond that it is over, however
 * long it took; for each wait that there is, in virtual time.
 */
#include "fixture.h"

#define MOST_NS  (1 * SUBLET_MS)
#define SLACK_NS (200 * SUBLET_US) /* what the calls themselves take, by the virtual clock */

/* Something that is given back at `at_ns`. */
struct later {
	struct fake *f;
	uint64_t at_ns;
	uint64_t went_ns; /* 0: not yet */
	uint64_t slept_at_ns;
	struct sublet_pin pin;
	struct sublet_claim claim;
	uint32_t vpn;
	void (*end)(struct later *l);
};

struct wait {
	const char *name;
	void (*begin)(struct later *l); /* from here on it is in the way */
	void (*end)(struct later *l);
	int (*call)(struct later *l); /* waits */
};

static void on_op(void *arg, enum fake_op op, struct fake_mm *mm, uint32_t vpn, uint32_t pages)
{
	struct later *l = arg;
	(void)mm, (void)vpn, (void)pages;

	if (op != FAKE_SLEEP)
		return;
	uint64_t now = atomic_load(&l->f->clock_ns);
	if (l->slept_at_ns && now - l->slept_at_ns > MOST_NS + SLACK_NS)
		fail_msg("two looks lie %llu ns apart", (unsigned long long)(now - l->slept_at_ns));
	l->slept_at_ns = now;
	if (l->went_ns || now < l->at_ns)
		return;
	l->went_ns = now;
	l->end(l);
}

static void pin_begin(struct later *l)
{
	assert_int_equal(sublet_pin(l->f->engine_mm[0], addr_of(l->f, 0, l->vpn), PAGE, SUBLET_PIN_READ, NULL,
				    &l->pin),
			 0);
}

static void pin_end(struct later *l)
{
	assert_int_equal(sublet_unpin(&l->pin), 0);
}

static int unmap(struct later *l)
{
	return sublet_unmap(l->f->engine_mm[0], addr_of(l->f, 0, l->vpn), 64 * PAGE);
}

static const struct sublet_claim_options patient = { SUBLET_OPTIONS(sublet_claim_options),
						     .deadline_ns = 10 * SUBLET_SEC };

static int claim_all(struct later *l)
{
	struct sublet_claim claim;
	int err = claim_take(l->f, bytes_of(l->f, l->f->options.area_frames), &patient, &claim);

	if (!err)
		claim_give(l->f, &claim);
	return err;
}

static int pin_long(struct later *l)
{
	struct sublet_pin pin;
	int err = sublet_pin(l->f->engine_mm[0], addr_of(l->f, 0, l->vpn), PAGE,
			     SUBLET_PIN_READ | SUBLET_PIN_LONGTERM, NULL, &pin);

	return err ? err : sublet_unpin(&pin);
}

static int fork_whole(struct later *l)
{
	struct sublet_mm *mm = l->f->engine_mm[0];
	int err = fork_begin(mm);

	sublet__mm_fork_end(mm, 0);
	return err ? err : sublet__mm_fork_restore(mm, sublet__mm_fork_epoch(mm));
}

static void claim_begin(struct later *l)
{
	assert_int_equal(claim_take(l->f, 2 * SUBLET_MIB, NULL, &l->claim), 0);
}

static void claim_end(struct later *l)
{
	claim_give(l->f, &l->claim);
}

static void child_begin(struct later *l)
{
	assert_int_equal(fork_begin(l->f->engine_mm[0]), 0);
	sublet__mm_fork_end(l->f->engine_mm[0], 77);
}

static void child_end(struct later *l)
{
	struct sublet_mm *mm = l->f->engine_mm[0];

	assert_int_equal(sublet__mm_fork_restore(mm, sublet__mm_fork_epoch(mm)), 0);
}

static int pin_short(struct later *l)
{
	struct sublet_pin pin;
	int err = sublet_pin(l->f->engine_mm[0], addr_of(l->f, 0, l->vpn), PAGE, SUBLET_PIN_READ, NULL, &pin);

	return err ? err : sublet_unpin(&pin);
}

static const struct wait waits[] = {
	{ "unmap, a pin", pin_begin, pin_end, unmap },
	{ "claim, a pin", pin_begin, pin_end, claim_all },
	{ "claim, a claim", claim_begin, claim_end, claim_all },
	{ "claim, a child", child_begin, child_end, claim_all },
	{ "long-term pin, a pin", pin_begin, pin_end, pin_long },
	{ "fork, a pin", pin_begin, pin_end, fork_whole },
	{ "pin, a child", child_begin, child_end, pin_short },
	{ "long-term pin, a child", child_begin, child_end, pin_long },
};

static void backoff_sees_it_soon(void **unused)
{
	static const uint64_t after_us[] = { 1, 50, 900, 3000, 30000, 145000, 250000 };
	static struct fake f;
	(void)unused;

	for (size_t i = 0; i < sizeof waits / sizeof *waits * 7; i++) {
		const struct wait *wait = &waits[i / 7];
		fixture_open(&f, &(struct fake_options){ .virtual_time = true });
		struct later l = { .f = &f, .vpn = map_pages(&f, 64, SUBLET_MOVABLE), .end = wait->end };
		wait->begin(&l);
		l.at_ns = atomic_load(&f.clock_ns) + after_us[i % 7] * SUBLET_US;
		f.hook_arg = &l;
		f.hook = on_op;
		int err = wait->call(&l);
		uint64_t took_ns = atomic_load(&f.clock_ns) - l.went_ns;
		f.hook = NULL;
		if (err || !l.went_ns || took_ns > MOST_NS + SLACK_NS)
			fail_msg("%s: after %llu us it answers %d, %llu us too late", wait->name,
				 (unsigned long long)after_us[i % 7], err,
				 (unsigned long long)took_ns / 1000);
		fixture_close(&f);
	}
}

/* And nobody looks all the time: ten seconds of waiting are ten thousand looks. */
static void backoff_is_seldom(void **unused)
{
	static struct fake f;
	struct sublet_claim claim;
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .virtual_time = true });
	struct later l = { .f = &f, .vpn = map_pages(&f, 64, SUBLET_MOVABLE) };
	pin_begin(&l);
	uint64_t before = atomic_load(&f.calls[FAKE_SLEEP]);
	assert_int_equal(claim_take(&f, bytes_of(&f, f.options.area_frames), &patient, &claim), -EBUSY);
	assert_in_range(atomic_load(&f.calls[FAKE_SLEEP]) - before, 9000, 11000);
	assert_int_equal(unmap(&l), -EBUSY);
	pin_end(&l);
	fixture_close(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(backoff_sees_it_soon),
		cmocka_unit_test(backoff_is_seldom),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
