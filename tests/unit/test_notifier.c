/* SPDX-License-Identifier: MIT */
/* core/notifier.c and core/invalidate.c, one thing at a time: who is told what, reading (G4), removal, the end of an mm. */
#include "fixture.h"

#include <stdio.h>
#include <string.h>

#include <sublet/notifier.h>

struct client {
	struct sublet_notifier notifier;
	struct sublet_invalidation last;
	uint32_t calls;
	int answer;
	void (*act)(struct client *c);
	struct client *other;
	int result; /* of what act did */
};

static int client_invalidate(void *ctx, const struct sublet_invalidation *inv)
{
	struct client *c = ctx;
	int answer = c->answer;

	c->calls++;
	c->last = *inv;
	if (c->act)
		c->act(c); /* which may free c */
	return answer;
}

static const struct sublet_notifier_ops ops = { SUBLET_OPTIONS(sublet_notifier_ops), client_invalidate };

static void *at_byte(struct fake *f, uint64_t byte)
{
	return (void *)(uintptr_t)(f->mm[0].base + byte);
}

static void add_bytes(struct fake *f, struct client *c, uint64_t from, uint64_t bytes)
{
	assert_int_equal(sublet_notifier_add(f->engine_mm[0], at_byte(f, from), bytes, &ops, c, NULL,
					     &c->notifier),
			 0);
}

static void add_named(struct fake *f, struct client *c, uint32_t vpn, uint32_t pages, const char *owner)
{
	assert_int_equal(sublet_notifier_add(f->engine_mm[0], addr_of(f, 0, vpn), pages * PAGE, &ops, c,
					     owner, &c->notifier),
			 0);
}

static int begin(struct fake *f, struct sublet__invalidation *inv, uint32_t vpn, uint32_t pages)
{
	return sublet__invalidate_begin(f->engine_mm[0], inv, vpn, pages, SUBLET_NOTIFIER_MOVE, false);
}

static void end(struct fake *f, struct sublet__invalidation *inv)
{
	sublet__invalidate_end(f->engine_mm[0], inv);
}

/* Invalidate and end; how often the client was called by it. */
static uint32_t calls_of(struct fake *f, struct client *c, uint32_t vpn, uint32_t pages)
{
	struct sublet__invalidation inv;
	uint32_t before = c->calls;

	assert_int_equal(begin(f, &inv, vpn, pages), 0);
	end(f, &inv);
	return c->calls - before;
}

static int seq_get(struct client *c, uint64_t *seq)
{
	return sublet_notifier_read_begin(&c->notifier, 0, seq);
}

static void close_checked(struct fake *f)
{
	const char *what = sublet__notifier_index_check(f->engine_mm[0]);

	if (what)
		fail_msg("%s", what);
	fixture_close(f);
}

/* ---- arguments ---- */

static void bad_arguments(void **unused)
{
	static struct fake f;
	struct client c = { 0 };
	const struct sublet_notifier_ops no_callback = { SUBLET_OPTIONS(sublet_notifier_ops) };
	const struct sublet_notifier_ops no_size = { .invalidate = client_invalidate };
	struct sublet_notifier none = { 0 }, copy;
	uint64_t seq;
	(void)unused;

	fixture_open(&f, NULL);
	struct sublet_mm *mm = f.engine_mm[0];
	uint64_t window = f.options.mm_pages * PAGE;
	assert_int_equal(sublet_notifier_add(mm, at_byte(&f, 0), 0, &ops, &c, NULL, &none), -EINVAL);
	assert_int_equal(sublet_notifier_add(mm, (char *)at_byte(&f, 0) - 1, 2, &ops, &c, NULL, &none),
			 -EINVAL);
	assert_int_equal(sublet_notifier_add(mm, at_byte(&f, window), 1, &ops, &c, NULL, &none), -EINVAL);
	assert_int_equal(sublet_notifier_add(mm, at_byte(&f, window - 1), 2, &ops, &c, NULL, &none), -EINVAL);
	assert_int_equal(sublet_notifier_add(mm, at_byte(&f, 5), UINT64_MAX, &ops, &c, NULL, &none), -EINVAL);
	assert_int_equal(sublet_notifier_add(mm, at_byte(&f, 0), window + 1, &ops, &c, NULL, &none), -EINVAL);
	assert_int_equal(sublet_notifier_add(mm, at_byte(&f, 0), 1, NULL, &c, NULL, &none), -EINVAL);
	assert_int_equal(sublet_notifier_add(mm, at_byte(&f, 0), 1, &no_callback, &c, NULL, &none), -EINVAL);
	assert_int_equal(sublet_notifier_add(mm, at_byte(&f, 0), 1, &no_size, &c, NULL, &none), -EINVAL);
	assert_null(none.mm);
	assert_int_equal(sublet_notifier_remove(&none), -EINVAL);
	assert_int_equal(sublet_notifier_read_begin(&none, 0, &seq), -EINVAL);
	assert_true(sublet_notifier_read_retry(&none, 0));

	add_bytes(&f, &c, 0, window); /* the whole window is a range */
	copy = c.notifier;
	assert_int_equal(sublet_notifier_remove(&copy), 0);
	assert_int_equal(sublet_notifier_remove(&c.notifier), -EINVAL);
	assert_int_equal(seq_get(&c, &seq), -EINVAL);
	add_bytes(&f, &c, 0, 1); /* the same node, another life */
	assert_int_equal(sublet_notifier_remove(&copy), -EINVAL);
	assert_int_equal(sublet_notifier_read_begin(&copy, 0, &seq), -EINVAL);
	assert_int_equal(seq_get(&c, &seq), 0);
	assert_true(sublet_notifier_read_retry(&copy, seq));
	assert_int_equal(sublet_notifier_remove(&c.notifier), 0);
	close_checked(&f);
}

static void no_memory(void **unused)
{
	static struct fake f;
	struct client c = { 0 };
	struct sublet_notifier_stats stats = { SUBLET_OPTIONS(sublet_notifier_stats) };
	int64_t failures = 0;
	(void)unused;

	fixture_open(&f, NULL);
	struct sublet_mm *mm = f.engine_mm[0];
	for (int64_t nth = 1;; nth++) {
		fake_fail(&f, 1u << FAKE_RESERVE, nth, -ENOMEM, false);
		int err = sublet_notifier_add(mm, at_byte(&f, 0), 3 * PAGE, &ops, &c, NULL, &c.notifier);
		if (!fake_fail_end(&f)) {
			assert_int_equal(err, 0);
			break;
		}
		assert_int_equal(err, -ENOMEM);
		assert_int_equal(calls_of(&f, &c, 0, 3), 0);
		failures++;
	}
	assert_int_equal(failures, 2); /* bins, and nodes */
	assert_int_equal(calls_of(&f, &c, 0, 3), 1);
	/* The limit, without 1.6 GB of notifiers. */
	mm->notifiers.registered += NOTIFIER_MAX - 1;
	assert_int_equal(sublet_notifier_add(mm, at_byte(&f, 0), 1, &ops, &c, NULL, &c.notifier), -ENOMEM);
	mm->notifiers.registered -= NOTIFIER_MAX - 1;
	assert_int_equal(sublet_notifier_stats(mm, &stats), 0);
	assert_int_equal(stats.registered, 1);
	stats.size_bytes = 0;
	assert_int_equal(sublet_notifier_stats(mm, &stats), -EINVAL);
	close_checked(&f);
}

/* ---- who is told ---- */

/* Told are those with a page in common: bytes of a range count as the pages that they lie in. */
static void ranges(void **unused)
{
	static struct fake f;
	static const struct {
		uint64_t from, bytes;
		uint32_t vpn, pages;
		bool told;
	} cases[] = {
		{ 8 * PAGE, 4 * PAGE, 8, 4, true }, /* equal */
		{ 8 * PAGE, 4 * PAGE, 9, 1, true }, /* nested, either way */
		{ 8 * PAGE, 4 * PAGE, 0, 100, true },
		{ 8 * PAGE, 4 * PAGE, 11, 5, true }, /* overlapping at one end */
		{ 8 * PAGE, 4 * PAGE, 5, 4, true },
		{ 8 * PAGE, 4 * PAGE, 12, 1, false }, /* touching */
		{ 8 * PAGE, 4 * PAGE, 7, 1, false },
		{ 8 * PAGE + 100, 1, 8, 1, true }, /* a byte is its page */
		{ 8 * PAGE + 100, 1, 9, 1, false },
		{ 9 * PAGE - 1, 1, 8, 1, true },
		{ 9 * PAGE - 1, 1, 9, 1, false },
		{ 9 * PAGE - 1, 2, 9, 1, true }, /* straddling a page, a bin of 4, a bin of 16 */
		{ 9 * PAGE - 1, 2, 8, 1, true },
		{ 12 * PAGE - 1, 2, 12, 1, true },
		{ 16 * PAGE - 1, 2, 16, 1, true },
		{ 16 * PAGE - 1, 2, 17, 1, false },
		{ 63 * PAGE, 5 * PAGE, 67, 1, true }, /* level 2, into the next bin, to its last page */
		{ 63 * PAGE, 5 * PAGE, 68, 1, false },
		{ 15 * PAGE, 16 * PAGE, 30, 1, true },
		{ 15 * PAGE, 16 * PAGE, 31, 1, false },
		{ 15 * PAGE, 16 * PAGE, 14, 1, false },
		{ 0, 1, 0, 1, true }, /* the ends of the window */
		{ 0, 1, 1, 1, false },
		{ 4095 * PAGE, PAGE, 4095, 1, true },
		{ 4096 * PAGE - 1, 1, 0, 4096, true },
		{ 4094 * PAGE, 2 * PAGE, 4095, 1, true },
		{ 0, 4096 * PAGE, 4095, 1, true }, /* all of it */
		{ 0, 4096 * PAGE, 0, 1, true },
		{ 1024 * PAGE, 1024 * PAGE, 2047, 1, true },
		{ 1024 * PAGE, 1024 * PAGE, 2048, 1, false },
	};
	(void)unused;

	fixture_open(&f,
		     &(struct fake_options){ .area_frames = 512, .normal_frames = 512, .mm_pages = 4096 });
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct client c = { 0 }, far = { 0 };
		add_bytes(&f, &far, 3000 * PAGE, PAGE); /* company, so that chunks and levels are in use */
		add_bytes(&f, &c, cases[i].from, cases[i].bytes);
		uint32_t expect = cases[i].told, both = expect + (cases[i].pages > 3000);
		if (calls_of(&f, &c, cases[i].vpn, cases[i].pages) != expect)
			fail_msg("case %zu: told %u, want %u", i, c.calls, expect);
		assert_int_equal(sublet__notifier_count(f.engine_mm[0], cases[i].vpn, cases[i].pages), both);
		assert_int_equal(sublet_notifier_remove(&c.notifier), 0);
		assert_int_equal(sublet_notifier_remove(&far.notifier), 0);
	}
	close_checked(&f);
}

static void events(void **unused)
{
	static struct fake f;
	struct client c = { 0 };
	struct sublet_notifier_stats stats = { SUBLET_OPTIONS(sublet_notifier_stats) };
	struct sublet__invalidation inv;
	(void)unused;

	fixture_open(&f, NULL);
	add_bytes(&f, &c, 20 * PAGE, PAGE);
	for (uint32_t event = SUBLET_NOTIFIER_MOVE; event <= SUBLET_NOTIFIER_PROTECT; event++) {
		bool may_block = event % 2;
		assert_int_equal(sublet__invalidate_begin(f.engine_mm[0], &inv, 16, 16, event, may_block), 0);
		assert_ptr_equal(c.last.mm, f.engine_mm[0]);
		assert_int_equal(c.last.addr, f.mm[0].base + 16 * PAGE);
		assert_int_equal(c.last.bytes, 16 * PAGE);
		assert_int_equal(c.last.event, event);
		assert_int_equal(c.last.may_block, may_block);
		end(&f, &inv);
	}
	assert_int_equal(c.calls, 4);
	assert_int_equal(sublet_notifier_stats(f.engine_mm[0], &stats), 0);
	assert_int_equal(stats.invalidations, 4);
	assert_int_equal(stats.callbacks, 4);
	assert_int_equal(stats.declined, 0);
	assert_int_equal(stats.registered, 1);
	assert_true(stats.memory_bytes > 0);
	close_checked(&f);
}

/* ---- declining ---- */

static void decline(void **unused)
{
	static struct fake f;
	struct client c[40] = { 0 };
	struct sublet__invalidation inv;
	struct sublet_notifier_stats stats = { SUBLET_OPTIONS(sublet_notifier_stats) };
	char owner[SUBLET_OWNER_BYTES] = "untouched", name[SUBLET_OWNER_BYTES + 8];
	uint64_t seq;
	(void)unused;

	fixture_open(&f, NULL);
	for (uint32_t i = 0; i < 40; i++) {
		snprintf(name, sizeof name, "client %u with a tag that is too long", i);
		add_named(&f, &c[i], 10 + i, 2, i == 39 ? NULL : name);
	}
	assert_false(sublet__notifier_decliner(f.engine_mm[0], 0, 100, owner));
	assert_string_equal(owner, "untouched");

	c[20].answer = -EAGAIN;
	assert_int_equal(begin(&f, &inv, 0, 100), -EAGAIN);
	for (uint32_t i = 0; i < 40; i++) /* nothing is left to end: whoever was told or not */
		assert_int_equal(seq_get(&c[i], &seq), 0);
	assert_null(f.engine_mm[0]->notifiers.active);
	assert_true(sublet__notifier_decliner(f.engine_mm[0], 0, 100, owner));
	assert_memory_equal(owner, "client 20 with a tag", 20);
	assert_int_equal(strlen(owner), SUBLET_OWNER_BYTES - 1);
	assert_false(sublet__notifier_decliner(f.engine_mm[0], 32, 1, owner)); /* not one of that page */

	/* Each in turn, the last one is named; then an older one again. */
	for (uint32_t i = 39; i >= 19; i--) {
		c[20].answer = 0;
		c[i].answer = -EAGAIN;
		assert_int_equal(begin(&f, &inv, 10 + i, 1), -EAGAIN);
		c[i].answer = 0;
		assert_true(sublet__notifier_decliner(f.engine_mm[0], 0, 100, owner));
		snprintf(name, sizeof name, i == 39 ? "notifier" : "client %u ", i);
		assert_memory_equal(owner, name, strlen(name));
	}
	c[30].answer = -EAGAIN;
	assert_int_equal(begin(&f, &inv, 0, 100), -EAGAIN);
	assert_true(sublet__notifier_decliner(f.engine_mm[0], 0, 100, owner));
	assert_memory_equal(owner, "client 30 ", 10);

	/* With may_block an answer changes nothing. */
	uint32_t before = c[0].calls + c[39].calls;
	assert_int_equal(sublet__invalidate_begin(f.engine_mm[0], &inv, 0, 100, SUBLET_NOTIFIER_UNMAP, true),
			 0);
	assert_int_equal(c[0].calls + c[39].calls, before + 2);
	end(&f, &inv);
	assert_int_equal(sublet_notifier_stats(f.engine_mm[0], &stats), 0);
	assert_int_equal(stats.declined, 1 + 21 + 1);

	/* A new one in the same node never declined. */
	assert_int_equal(sublet_notifier_remove(&c[30].notifier), 0);
	c[30].answer = 0;
	add_named(&f, &c[30], 90, 1, "new");
	assert_false(sublet__notifier_decliner(f.engine_mm[0], 90, 1, owner));
	close_checked(&f);
}

/* ---- the reading sequence, G4 ---- */

static void read_sequence(void **unused)
{
	static struct fake f;
	struct client c = { 0 }, far = { 0 };
	struct sublet__invalidation inv;
	uint64_t seq, far_seq, later;
	(void)unused;

	fixture_open(&f, NULL);
	add_bytes(&f, &c, 16 * PAGE, 16 * PAGE);
	add_bytes(&f, &far, 64 * PAGE, 16 * PAGE);
	assert_int_equal(seq_get(&c, &seq), 0);
	assert_int_equal(seq_get(&far, &far_seq), 0);
	assert_false(sublet_notifier_read_retry(&c.notifier, seq));

	assert_int_equal(begin(&f, &inv, 0, 17), 0);
	assert_true(sublet_notifier_read_retry(&c.notifier, seq)); /* it began meanwhile */
	assert_int_equal(seq_get(&c, &later), -EAGAIN);            /* and is not over */
	assert_int_equal(seq_get(&far, &later), 0);                /* which is none of the other's business */
	end(&f, &inv);
	assert_true(sublet_notifier_read_retry(&c.notifier, seq)); /* still: it was there */
	assert_int_equal(seq_get(&c, &later), 0);
	assert_false(sublet_notifier_read_retry(&c.notifier, later));
	assert_false(sublet_notifier_read_retry(&far.notifier, far_seq));
	assert_int_equal(sublet_notifier_remove(&c.notifier), 0);
	assert_true(sublet_notifier_read_retry(&c.notifier, later));
	close_checked(&f);
}

static void several_at_once(void **unused)
{
	static struct fake f;
	struct client c = { 0 };
	struct sublet__invalidation inv[5];
	uint64_t seq;
	(void)unused;

	fixture_open(&f, NULL);
	add_bytes(&f, &c, 16 * PAGE, 16 * PAGE);
	for (uint32_t i = 0; i < 5; i++)
		assert_int_equal(begin(&f, &inv[i], 14 + i * 3, 4), 0);
	assert_int_equal(c.calls, 5);
	for (uint32_t i = 0; i < 5; i++) {
		assert_int_equal(seq_get(&c, &seq), -EAGAIN);
		end(&f, &inv[(i * 2) % 5]); /* not in the order in which they began */
	}
	assert_int_equal(seq_get(&c, &seq), 0);
	close_checked(&f);
}

/* Added while invalidations run: not told of them, so its readers wait for those that touch it (N1). */
static void add_during(void **unused)
{
	static struct fake f;
	struct client early = { 0 }, in = { 0 }, out = { 0 }, late = { 0 };
	struct sublet__invalidation one, two;
	uint64_t seq;
	(void)unused;

	fixture_open(&f, NULL);
	for (uint32_t round = 0; round < 3; round++) {
		/* With somebody registered before, and with nobody at all; with one batch, and with many. */
		struct client crowd[100] = { 0 };
		if (round)
			add_bytes(&f, &early, 20 * PAGE, PAGE);
		for (uint32_t i = 0; round == 2 && i < 100; i++)
			add_bytes(&f, &crowd[i], 20 * PAGE, PAGE);
		assert_int_equal(begin(&f, &one, 16, 16), 0);
		assert_int_equal(begin(&f, &two, 24, 16), 0);
		add_bytes(&f, &in, 20 * PAGE, 6 * PAGE);
		add_bytes(&f, &out, 40 * PAGE, 6 * PAGE);
		assert_int_equal(seq_get(&out, &seq), 0);
		assert_int_equal(seq_get(&in, &seq), -EAGAIN);
		end(&f, &one);
		assert_int_equal(seq_get(&in, &seq), -EAGAIN);
		add_bytes(&f, &late, 30 * PAGE, PAGE);
		assert_int_equal(seq_get(&late, &seq), -EAGAIN);
		end(&f, &two);
		assert_int_equal(seq_get(&in, &seq), 0);
		assert_int_equal(seq_get(&late, &seq), 0);
		assert_int_equal(in.calls + out.calls + late.calls, 0);
		/* Removed while one runs, it comes back in the same node as a newcomer. */
		assert_int_equal(begin(&f, &one, 0, 100), 0);
		assert_int_equal(sublet_notifier_remove(&in.notifier), 0);
		end(&f, &one);
		add_bytes(&f, &in, 20 * PAGE, 6 * PAGE);
		assert_int_equal(seq_get(&in, &seq), 0);
		in.calls = out.calls = late.calls = 0;
		assert_int_equal(sublet_notifier_remove(&in.notifier), 0);
		assert_int_equal(sublet_notifier_remove(&out.notifier), 0);
		assert_int_equal(sublet_notifier_remove(&late.notifier), 0);
		if (round)
			assert_int_equal(sublet_notifier_remove(&early.notifier), 0);
		for (uint32_t i = 0; round == 2 && i < 100; i++) {
			assert_int_equal(seq_get(&crowd[i], &seq), 0);
			assert_int_equal(sublet_notifier_remove(&crowd[i].notifier), 0);
		}
	}
	close_checked(&f);
}

/* A callback that registers others, behind and ahead of the walk: they are not told of this change, nor of it forever. */
static struct fake *again_fake;
static struct client again_new[2];

static void again_act(struct client *c)
{
	if (c->calls == 1) {
		add_bytes(again_fake, &again_new[0], 20 * PAGE, PAGE);
		add_bytes(again_fake, &again_new[1], 60 * PAGE, PAGE);
	}
}

static void add_inside(void **unused)
{
	static struct fake f;
	(void)unused;

	for (uint32_t crowd = 0; crowd < 2; crowd++) { /* one batch, or several */
		struct client c = { .act = again_act }, others[50] = { 0 };
		uint64_t seq;
		fixture_open(&f, NULL);
		again_fake = &f;
		memset(again_new, 0, sizeof again_new);
		for (uint32_t i = 0; i < crowd * 50; i++)
			add_bytes(&f, &others[i], 30 * PAGE, PAGE);
		add_bytes(&f, &c, 20 * PAGE, PAGE);
		assert_int_equal(calls_of(&f, &c, 0, 100), 1);
		for (uint32_t i = 0; i < 2; i++) {
			assert_int_equal(again_new[i].calls, 0);
			assert_int_equal(seq_get(&again_new[i], &seq), 0);
		}
		assert_int_equal(calls_of(&f, &c, 0, 100), 1);
		assert_int_equal(again_new[0].calls + again_new[1].calls, 2);
		c.act = NULL;
		close_checked(&f);
	}
}

/* ---- removal from inside callbacks ---- */

static void remove_other_act(struct client *c)
{
	c->result = sublet_notifier_remove(&c->other->notifier);
}

/* All in one bin, or each in its own: whoever is called removes the one that would be called next, or the last one. */
static void remove_next(void **unused)
{
	static struct fake f;
	enum { COUNT = 60 };
	(void)unused;

	fixture_open(&f, NULL);
	for (uint32_t spread = 0; spread < 2; spread++)
		for (uint32_t step = 1; step < COUNT; step += 7) {
			struct client c[COUNT] = { 0 };
			uint64_t seq;
			uint32_t called = 0;
			for (uint32_t i = 0; i < COUNT; i++) {
				c[i].act = remove_other_act;
				c[i].other = &c[(i + step) % COUNT];
				add_bytes(&f, &c[i], (20 + i * spread) * PAGE, PAGE);
			}
			(void)calls_of(&f, &c[0], 0, 200);
			for (uint32_t i = 0; i < COUNT; i++) {
				/* Called once or never; who was called removed its other, unless it was gone. */
				assert_true(c[i].calls <= 1);
				called += c[i].calls;
				struct client *before = &c[(i + COUNT - step) % COUNT];
				assert_int_equal(seq_get(&c[i], &seq), before->calls ? -EINVAL : 0);
				assert_true(c[i].calls || before->calls);
			}
			assert_true(called >= COUNT / 2);
			for (uint32_t i = 0; i < COUNT; i++)
				assert_int_equal(sublet_notifier_remove(&c[i].notifier),
						 c[(i + COUNT - step) % COUNT].calls ? -EINVAL : 0);
			assert_int_equal(sublet__notifier_count(f.engine_mm[0], 0, 200), 0);
		}
	close_checked(&f);
}

/* Removes itself, and its owner frees its memory at once: nobody looks at it any more. */
static void free_self_act(struct client *c)
{
	struct client *freed = c;

	assert_int_equal(sublet_notifier_remove(&c->notifier), 0);
	assert_int_equal(sublet_notifier_remove(&c->notifier), -EINVAL);
	memset(freed, 0x5a, sizeof *freed);
	free(freed);
}

static void remove_self(void **unused)
{
	static struct fake f;
	struct sublet__invalidation inv;
	struct client after = { 0 };
	uint64_t seq;
	(void)unused;

	fixture_open(&f, NULL);
	for (uint32_t i = 0; i < 50; i++) {
		struct client *c = calloc(1, sizeof *c);
		assert_non_null(c);
		c->act = free_self_act;
		c->answer = i == 25 ? -EAGAIN : 0; /* even one that declines */
		add_bytes(&f, c, 20 * PAGE, (1 + i % 5) * PAGE);
	}
	add_bytes(&f, &after, 20 * PAGE, PAGE);
	int err = begin(&f, &inv, 20, 1);
	assert_int_equal(err, -EAGAIN);
	assert_int_equal(begin(&f, &inv, 20, 1), 0);
	end(&f, &inv);
	assert_int_equal(sublet__notifier_count(f.engine_mm[0], 0, 100), 1);
	assert_int_equal(seq_get(&after, &seq), 0);
	/* Their nodes are free again. */
	assert_int_equal(f.engine_mm[0]->notifiers.nodes_free, 50);
	close_checked(&f);
}

/* ---- the end of an mm ---- */

static void drop_all_act(struct client *c)
{
	c->result = c->other ? sublet_notifier_remove(&c->other->notifier) : 0;
}

static void mm_exit(void **unused)
{
	static struct fake f;
	struct client c[300] = { 0 };
	uint64_t seq;
	(void)unused;

	fixture_open(&f, NULL);
	for (uint32_t i = 0; i < 300; i++) {
		c[i].answer = -EAGAIN; /* which nobody may, and is ignored */
		c[i].act = drop_all_act;
		c[i].other = i % 3 ? NULL : &c[(i + 100) % 300];
		add_bytes(&f, &c[i], i * 5 * PAGE, (1 + i % 9) * PAGE);
	}
	sublet__arena_exit(f.arena);
	for (uint32_t i = 0; i < 300; i++) {
		assert_true(c[i].calls == 1 || c[(i + 200) % 300].result == 0);
		if (c[i].calls) {
			assert_int_equal(c[i].last.event, SUBLET_NOTIFIER_EXIT);
			assert_int_equal(c[i].last.may_block, 1);
			assert_int_equal(c[i].last.bytes, f.options.mm_pages * PAGE);
		}
		assert_int_equal(sublet_notifier_remove(&c[i].notifier), -EINVAL);
		assert_int_equal(seq_get(&c[i], &seq), -EINVAL);
	}
	assert_int_equal(sublet_notifier_add(f.engine_mm[0], at_byte(&f, 0), 1, &ops, c, NULL,
					     &c[0].notifier),
			 -EINVAL);
	assert_int_equal(sublet__notifier_count(f.engine_mm[0], 0, f.options.mm_pages), 0);
	close_checked(&f); /* which checks that no memory is left */
}

/* An arena that is torn down without more ado tells its notifiers too, once. */
static void fini_tells(void **unused)
{
	static struct fake f;
	struct client c = { 0 };
	(void)unused;

	fixture_open(&f, &(struct fake_options){ .mms = 3 });
	assert_int_equal(
		sublet_notifier_add(f.engine_mm[2], addr_of(&f, 2, 7), 1, &ops, &c, NULL, &c.notifier), 0);
	fixture_close(&f);
	assert_int_equal(c.calls, 1);
	assert_int_equal(c.last.event, SUBLET_NOTIFIER_EXIT);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(bad_arguments),   cmocka_unit_test(no_memory),
		cmocka_unit_test(ranges),          cmocka_unit_test(events),
		cmocka_unit_test(decline),         cmocka_unit_test(read_sequence),
		cmocka_unit_test(several_at_once), cmocka_unit_test(add_during),
		cmocka_unit_test(add_inside),      cmocka_unit_test(remove_next),
		cmocka_unit_test(remove_self),     cmocka_unit_test(mm_exit),
		cmocka_unit_test(fini_tells),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
