/* SPDX-License-Identifier: MIT */
/* The table of what must not move: against an engine that is an array of marks, one a page. */
#include "bridge/bridge.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define PAGE  ((uintptr_t)4096)
#define BASE  ((uintptr_t)1 << 30)
#define PAGES 1024u

struct sublet__bridge sublet__bridge;

static bool marked[PAGES], cleared[PAGES]; /* cleared: at some time since it was reset */
static int said;

bool sublet__engine_note_protected(const void *addr, uint64_t bytes, bool is_protected)
{
	uintptr_t frame = sublet__bridge.frame_bytes;
	uintptr_t start = (uintptr_t)addr / frame * frame,
		  end = ((uintptr_t)addr + bytes + frame - 1) / frame * frame;

	bool had = true;

	for (uintptr_t at = start; at < end; at += PAGE) {
		had &= marked[(at - BASE) / PAGE];
		marked[(at - BASE) / PAGE] = is_protected;
		cleared[(at - BASE) / PAGE] |= !is_protected;
	}
	return !is_protected || had;
}

void sublet__bridge_say(const char *format, ...)
{
	(void)format;
	said++;
}

static void *page(unsigned int n)
{
	return (void *)(BASE + n * PAGE);
}

static int reset(void **context)
{
	(void)context;
	sublet__bridge.frame_bytes = PAGE;
	(void)sublet__sticky_forget(page(0), PAGES * PAGE);
	memset(marked, 0, sizeof(marked));
	memset(cleared, 0, sizeof(cleared));
	return 0;
}

static void protect(unsigned int first, unsigned int count)
{
	(void)sublet__engine_note_protected(page(first), count * PAGE, true);
}

static void assert_marked(unsigned int first, unsigned int end, bool expected)
{
	for (unsigned int i = first; i < end; i++)
		assert_int_equal(marked[i], expected);
}

static void test_gaps(void **context)
{
	(void)context;
	sublet__sticky_add(page(20), PAGE);
	sublet__sticky_add((char *)page(10) + 100, 40); /* part of a page */
	sublet__sticky_add(page(14), 2 * PAGE);
	protect(5, 40);
	assert_true(sublet__sticky_unprotect(page(5), 40 * PAGE));
	assert_marked(5, 10, false);
	assert_marked(10, 11, true);
	assert_marked(11, 14, false);
	assert_marked(14, 16, true);
	assert_marked(16, 20, false);
	assert_marked(20, 21, true);
	assert_marked(21, 45, false);
	assert_false(cleared[10] || cleared[14] || cleared[15] || cleared[20]); /* not for a moment */
	assert_false(sublet__sticky_unprotect(page(14), 2 * PAGE));
	assert_false(sublet__sticky_unprotect(page(15), PAGE));
}

static void test_forget(void **context)
{
	(void)context;
	sublet__sticky_add(page(10), 10 * PAGE);
	protect(21, 1); /* by mprotect: nothing of ours */
	assert_true(sublet__sticky_forget(page(13), 3 * PAGE));
	assert_marked(10, 13, true);
	assert_marked(13, 16, false); /* malloc uses them again, and they move */
	assert_marked(16, 20, true);
	assert_false(sublet__sticky_forget(page(21), 9 * PAGE));
	assert_marked(21, 22, true);
	assert_true(sublet__sticky_forget(page(0), 30 * PAGE));
	assert_marked(0, 30, false);
	assert_false(sublet__sticky_forget(page(0), 30 * PAGE));
}

/* A mutex that was never destroyed ends with its memory, and the frames that it shares with others stay. */
static void test_forget_objects(void **context)
{
	(void)context;
	sublet__sticky_add_object((char *)page(10) - 20, 40);
	sublet__sticky_add_object((char *)page(12) + 100, 40);
	sublet__sticky_add(page(13), PAGE);
	assert_true(sublet__sticky_forget(page(10), 3 * PAGE));
	assert_marked(9, 10, true);
	assert_marked(10, 13, false);
	assert_marked(13, 14, true);
	assert_true(sublet__sticky_forget(page(9), PAGE));
	assert_marked(9, 10, false);
}

static void test_huge_frames(void **context)
{
	(void)context;
	sublet__bridge.frame_bytes = 64 * PAGE;
	sublet__sticky_add(page(70), PAGE);
	assert_true(sublet__sticky_unprotect(page(0), 192 * PAGE));
	assert_marked(64, 128, true);
	assert_marked(128, 192, false);
	assert_false(sublet__sticky_forget(page(70), PAGE)); /* not the whole frame */
	assert_false(sublet__sticky_unprotect(page(64), 64 * PAGE));
	assert_true(sublet__sticky_forget(page(64), 64 * PAGE));
	assert_marked(64, 128, false);
}

static char *object(unsigned int n, unsigned int at)
{
	return (char *)page(n) + at;
}

static void test_objects(void **context)
{
	(void)context;
	sublet__sticky_add_object(object(10, 0), 40);
	sublet__sticky_add_object(object(10, 40), 40);
	sublet__sticky_add_object(object(10, PAGE - 20), 40); /* in two */
	sublet__sticky_add_object(object(10, 40), 40);        /* initialised again */
	assert_false(sublet__sticky_unprotect(page(10), 2 * PAGE));
	assert_false(sublet__sticky_remove_object(object(10, 80), 40)); /* is none */
	assert_false(sublet__sticky_remove_object(object(10, 0), 40));
	assert_marked(10, 12, true);
	assert_true(sublet__sticky_remove_object(object(10, PAGE - 20), 40));
	assert_marked(10, 11, true);
	assert_marked(11, 12, false);
	assert_true(sublet__sticky_remove_object(object(10, 40), 40));
	assert_false(sublet__sticky_remove_object(object(10, 40), 40)); /* twice */
	assert_marked(9, 12, false);
	/* The address is used again, and beside a range for good. */
	sublet__sticky_add_object(object(10, 40), 40);
	sublet__sticky_add(object(10, 800), 8);
	assert_false(sublet__sticky_remove_object(object(10, 40), 40));
	assert_marked(10, 11, true);
	/* malloc takes the memory back before the object ends. */
	sublet__sticky_add_object(object(20, 0), 40);
	sublet__sticky_forget(page(10), 20 * PAGE);
	protect(10, 11);
	assert_true(sublet__sticky_unprotect(page(10), 11 * PAGE));
	assert_marked(10, 21, false);
	assert_false(sublet__sticky_remove_object(object(20, 0), 40));
}

/* A page whose protection is another, before or since, keeps its mark when the object ends. */
static void test_objects_in_protected_pages(void **context)
{
	(void)context;
	protect(30, 1);
	sublet__sticky_add_object(object(30, 0), 40);
	assert_false(sublet__sticky_remove_object(object(30, 0), 40));
	sublet__sticky_add_object(object(40, 0), 40);
	sublet__sticky_add_object(object(41, 0), 40);
	sublet__sticky_add_object(object(42, 0), 40);
	sublet__sticky_protect(object(41, 1000), 10);
	assert_true(sublet__sticky_remove_object(object(40, 0), 40));
	assert_false(sublet__sticky_remove_object(object(41, 0), 40));
	assert_true(sublet__sticky_remove_object(object(42, 0), 40));
	/* One of two frames; the other has an object already. */
	protect(50, 1);
	sublet__sticky_add_object(object(51, 500), 40);
	sublet__sticky_add_object(object(50, PAGE - 20), 40);
	assert_false(sublet__sticky_remove_object(object(50, PAGE - 20), 40));
	for (unsigned int i = 29; i < 60; i++)
		assert_int_equal(marked[i], i == 30 || i == 41 || i == 50 || i == 51);
}

/* More objects than there is room for: what ends was for good, and nothing is said. */
static void test_many_objects(void **context)
{
	(void)context;
	for (unsigned int i = 0; i < 500; i++)
		sublet__sticky_add_object(object(i, 0), 40);
	for (unsigned int i = 0; i < 500; i++)
		(void)sublet__sticky_remove_object(object(i, 0), 40);
	assert_marked(0, 100, false);
	assert_marked(200, 500, true);
	assert_int_equal(said, 0);
}

static void test_random(void **context)
{
	static bool kept[PAGES];
	unsigned int seed = 1;

	(void)context;
	memset(kept, 0, sizeof(kept));
	for (int i = 0; i < 100000; i++) {
		unsigned int first = (unsigned int)rand_r(&seed) % PAGES,
			     count = 1 + (unsigned int)rand_r(&seed) % 40;

		if (count > PAGES - first)
			count = PAGES - first;
		switch (rand_r(&seed) % 3) {
		case 0:
			sublet__sticky_add(page(first),
					   (count % 3 + 1 < count ? count % 3 + 1 : count) * PAGE);
			for (unsigned int p = first;
			     p < first + (count % 3 + 1 < count ? count % 3 + 1 : count); p++)
				kept[p] = true;
			break;
		case 1:
			(void)sublet__sticky_forget(page(first), count * PAGE);
			memset(kept + first, 0, count * sizeof(*kept));
			break;
		default:
			protect(first, count);
			(void)sublet__sticky_unprotect(page(first), count * PAGE);
			for (unsigned int p = first; p < first + count; p++)
				assert_int_equal(marked[p], kept[p]);
		}
	}
	assert_int_equal(said, 0);
}

/* The last test: a full table stays full. */
static void test_full(void **context)
{
	(void)context;
	for (unsigned int i = 0; i < 300; i++)
		sublet__sticky_add(page(2 * i), PAGE);
	assert_int_equal(said, 1);
	protect(601, 10);
	assert_false(sublet__sticky_unprotect(page(0), PAGES * PAGE));
	assert_marked(601, 611, true);
	for (unsigned int i = 0; i < 300; i++)
		assert_true(marked[2 * i]);
	assert_int_equal(said, 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(test_gaps, reset),
		cmocka_unit_test_setup(test_forget, reset),
		cmocka_unit_test_setup(test_forget_objects, reset),
		cmocka_unit_test_setup(test_huge_frames, reset),
		cmocka_unit_test_setup(test_random, reset),
		cmocka_unit_test_setup(test_objects, reset),
		cmocka_unit_test_setup(test_objects_in_protected_pages, reset),
		cmocka_unit_test_setup(test_many_objects, reset),
		cmocka_unit_test_setup(test_full, reset),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
