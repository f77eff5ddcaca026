/* SPDX-License-Identifier: MIT */
/*
 * What goes on beside the device: threads that use lent memory and know of nothing, and somebody who claims.
 *
 * A lost or repeated write of an ordinary thread would be seen at its next look at that page: each page holds its own
 * number and how often it was written, on every other cache line, and the thread remembers both.
 *
 * A claimed window must be zero when it comes (G9) and is then written to. A device that still had a translation of what
 * lived there before would write over it (G4), so it is looked at again before it is released.
 */
#include "cli/demo_ways.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define PAGE_WORDS   512u
#define LINE_WORDS   16u /* two cache lines */
#define CHUNK_PAGES  ((uint32_t)(SUBLET__WAYS_CHUNK_BYTES / (PAGE_WORDS * 8)))
#define THREAD_PAGES (SUBLET__WAYS_CHUNKS * CHUNK_PAGES)
#define BATCH_PAGES  256u
#define PAUSE_NS     (SUBLET_MS / 2)  /* after a batch, so that a small machine has time for the rest too */
#define HELD_NS      (4 * SUBLET_MS)  /* a claimed window */
#define DEADLINE_NS  (5 * SUBLET_SEC) /* generous: a busy machine is not what is tried here */
#define STACK_BYTES  (256 * 1024)

/* ---- ordinary threads ---- */

static uint64_t *page_of(const struct sublet__ways_thread *t, uint32_t page)
{
	return t->chunk[page / CHUNK_PAGES] + (size_t)(page % CHUNK_PAGES) * PAGE_WORDS;
}

static uint64_t word_of(const struct sublet__ways_thread *t, uint32_t page, uint32_t version, uint32_t word)
{
	uint64_t state = t->seed + ((uint64_t)page << 32) + version + ((uint64_t)word << 16);

	return sublet__random_next(&state);
}

static void page_write(struct sublet__ways_thread *t, uint32_t page)
{
	uint64_t *words = page_of(t, page);

	t->version[page]++;
	for (uint32_t i = 0; i < PAGE_WORDS; i += LINE_WORDS)
		words[i] = word_of(t, page, t->version[page], i);
}

static bool page_is_right(const struct sublet__ways_thread *t, uint32_t page)
{
	const uint64_t *words = page_of(t, page);

	for (uint32_t i = 0; i < PAGE_WORDS; i += LINE_WORDS)
		if (words[i] != word_of(t, page, t->version[page], i))
			return false;
	return true;
}

static void *ordinary_main(void *arg)
{
	struct sublet__ways_thread *t = arg;
	uint64_t random = t->seed;

	while (!t->load->stop) {
		for (uint32_t i = 0; i < BATCH_PAGES; i++) {
			uint32_t page = (uint32_t)(sublet__random_next(&random) % THREAD_PAGES);

			t->wrong += !page_is_right(t, page);
			page_write(t, page);
		}
		t->pages += BATCH_PAGES;
		sublet__demo_sleep_ns(PAUSE_NS);
	}
	return NULL;
}

/* ---- the one who claims ---- */

/* One word of every page is `from`; it becomes `to`. */
static bool window_change(const struct sublet_claim *claim, uint64_t from, uint64_t to)
{
	uint64_t *words = claim->addr;
	bool right = true;

	for (uint64_t i = 0; i < claim->bytes / 8; i += PAGE_WORDS) {
		right &= words[i] == from;
		words[i] = to;
	}
	return right;
}

static void note(struct sublet__way_result *r, int err, const struct sublet_claim *claim)
{
	r->claims++;
	r->waited += claim->waits > 0;
	r->moved_bytes += claim->moved_bytes;
	if (!err) {
		if (r->claims_succeeded < SUBLET__WAYS_CLAIMS_MAX)
			r->latency_ns[r->claims_succeeded] = claim->latency_ns;
		r->claims_succeeded++;
		return;
	}
	if (r->blocker[0])
		return;
	if (err != -EBUSY || sublet_blocker_describe(claim, 0, r->blocker, sizeof(r->blocker)) < 0)
		snprintf(r->blocker, sizeof(r->blocker), "%s", strerror(-err));
}

static void claim_once(struct sublet__ways_load *load, uint64_t stamp)
{
	struct sublet_claim_options options = {
		SUBLET_OPTIONS(sublet_claim_options),
		.deadline_ns = DEADLINE_NS,
		.flags =
			SUBLET_CLAIM_DEAREST, /* the cheapest one is the window released last, mostly empty */
		.owner = "other-device",
	};
	struct sublet__way_result *result = &load->result[load->way];
	struct sublet_claim claim;
	int err = sublet_claim(load->arena, SUBLET__WAYS_CLAIM_BYTES, &options, &claim);
	bool right;

	note(result, err, &claim);
	if (err)
		return;
	right = window_change(&claim, 0, stamp);
	sublet__demo_sleep_ns(HELD_NS);
	right &= window_change(&claim, stamp, 0);
	load->windows_wrong += !right;
	err = sublet_release(load->arena, &claim);
	load->windows_wrong += err != 0;
}

static void *claimer_main(void *arg)
{
	struct sublet__ways_thread *t = arg;
	uint64_t tick_ns = sublet__demo_now_ns();

	for (uint64_t stamp = 1; !t->load->stop; stamp++) {
		uint64_t now_ns;

		claim_once(t->load, stamp);
		tick_ns += SUBLET__WAYS_PERIOD_NS;
		now_ns = sublet__demo_now_ns();
		if (tick_ns > now_ns)
			sublet__demo_sleep_ns(tick_ns - now_ns);
		else
			tick_ns = now_ns;
	}
	return NULL;
}

/* ---- all of them ---- */

static int thread_start(struct sublet__ways_load *load, struct sublet__ways_thread *t, void *(*fn)(void *))
{
	pthread_attr_t attributes;
	int err = pthread_attr_init(&attributes);

	if (err)
		return -err;
	t->load = load;
	err = pthread_attr_setstacksize(&attributes, STACK_BYTES);
	if (!err)
		err = pthread_create(&t->thread, &attributes, fn, t);
	pthread_attr_destroy(&attributes);
	t->has_thread = !err;
	return -err;
}

static void thread_join(struct sublet__ways_thread *t)
{
	if (t->has_thread)
		pthread_join(t->thread, NULL);
	t->has_thread = false;
}

static int ordinary_init(struct sublet__ways_load *load, uint32_t i)
{
	struct sublet__ways_thread *t = &load->ordinary[i];

	t->seed = (i + 1) * 1000003;
	t->version = calloc(THREAD_PAGES, sizeof(t->version[0]));
	if (!t->version)
		return -ENOMEM;
	for (uint32_t page = 0; page < THREAD_PAGES; page++)
		page_write(t, page);
	return 0;
}

int sublet__ways_load_map(struct sublet__ways_load *load, uint32_t i)
{
	void *memory;
	int err = sublet_map(sublet_arena_mm(load->arena), SUBLET__WAYS_CHUNK_BYTES, SUBLET_MOVABLE, &memory);

	if (!err)
		load->ordinary[i % SUBLET__WAYS_THREADS].chunk[i / SUBLET__WAYS_THREADS] = memory;
	return err;
}

int sublet__ways_load_start(struct sublet__ways_load *load)
{
	int err = 0;

	load->way = SUBLET__WAYS;
	for (uint32_t i = 0; i < SUBLET__WAYS_THREADS && !err; i++)
		err = ordinary_init(load, i);
	for (uint32_t i = 0; i < SUBLET__WAYS_THREADS && !err; i++)
		err = thread_start(load, &load->ordinary[i], ordinary_main);
	return err ? err : thread_start(load, &load->claimer, claimer_main);
}

void sublet__ways_load_stop(struct sublet__ways_load *load)
{
	load->stop = true;
	thread_join(&load->claimer);
	for (uint32_t i = 0; i < SUBLET__WAYS_THREADS; i++) {
		struct sublet__ways_thread *t = &load->ordinary[i];

		thread_join(t);
		for (uint32_t page = 0; t->version && page < THREAD_PAGES; page++)
			t->wrong += !page_is_right(t, page);
		free(t->version);
		t->version = NULL;
	}
}

uint64_t sublet__ways_load_pages(const struct sublet__ways_load *load)
{
	uint64_t pages = 0;

	for (uint32_t i = 0; i < SUBLET__WAYS_THREADS; i++)
		pages += load->ordinary[i].pages;
	return pages;
}

uint64_t sublet__ways_load_wrong(const struct sublet__ways_load *load)
{
	uint64_t wrong = 0;

	for (uint32_t i = 0; i < SUBLET__WAYS_THREADS; i++)
		wrong += load->ordinary[i].wrong;
	return wrong;
}
