/* SPDX-License-Identifier: MIT */
/*
 * The engine, as the program's threads enter it.
 *
 * A thread of the program that waits in the engine may wait for the helper process: for a run that it moves, or for a
 * lock that it holds. If somebody ends the helper, that wait would never end. So every call goes by way of
 * sublet__helper_guard, which leaves it then. The engine is not entered again, in whatever state that left it: the memory
 * stays mapped where it was, on complete bytes (src/linux/mm.c), and is ordinary memory from then on, but for one thing:
 * it is still shared, so fork() is refused (fork.c).
 */
#include "bridge/bridge.h"

#include "linux/helper.h"

#include <sublet/map.h>

#include <errno.h>

struct call {
	int (*fn)(struct call *call);
	void *addr;
	size_t bytes;
	size_t align_bytes;
	bool flag;
	struct sublet_pin *pin;
	int result;
};

static struct sublet_mm *engine(void)
{
	return atomic_load_explicit(&sublet__bridge.mm, memory_order_acquire);
}

void sublet__engine_say_gone(void)
{
	static atomic_flag said = ATOMIC_FLAG_INIT;

	if (!atomic_flag_test_and_set(&said))
		sublet__bridge_say(
			"the helper process of %s was ended: its memory stays where it is, claims fail, and "
			"fork() answers ENOMEM; start the program again to lend its memory",
			sublet__bridge.settings.name);
}

static void enter(void *arg)
{
	struct call *call = arg;

	call->result = call->fn(call);
}

static int guarded(struct call *call)
{
	if (sublet__helper_guard(enter, call))
		return call->result;
	sublet__engine_say_gone();
	return -EPIPE;
}

static int do_reserve(struct call *c)
{
	return sublet__mm_reserve(engine(), c->bytes, c->align_bytes, &c->addr);
}

static int do_map(struct call *c)
{
	return sublet_map_aligned(engine(), c->bytes, c->align_bytes, SUBLET_MOVABLE | SUBLET_PLAIN_OK,
				  &c->addr);
}

static int do_commit(struct call *c)
{
	return sublet_commit(engine(), c->addr, c->bytes, SUBLET_PLAIN_OK);
}

static int do_decommit(struct call *c)
{
	return sublet_decommit(engine(), c->addr, c->bytes);
}

static int do_unmap(struct call *c)
{
	return sublet_unmap(engine(), c->addr, c->bytes);
}

static int do_note_protected(struct call *c)
{
	return sublet__mm_note_protected(engine(), c->addr, c->bytes, c->flag);
}

static int do_note_locked(struct call *c)
{
	sublet__mm_note_locked(engine(), c->addr, c->bytes, c->flag);
	return 0;
}

/* Shared memory does not move, so a child that shares it is not waited for. A move that goes on now is waited for. */
static int do_pin(struct call *c)
{
	uint32_t flags = c->flag ? SUBLET_PIN_WRITE : SUBLET_PIN_READ;
	int err = sublet_pin(engine(), c->addr, c->bytes, flags | SUBLET_PIN_NOWAIT, NULL, c->pin);

	return err == -EAGAIN ? sublet_pin(engine(), c->addr, c->bytes, flags, NULL, c->pin) : err;
}

static int do_unpin(struct call *c)
{
	return sublet_unpin(c->pin);
}

int sublet__engine_pin(const void *addr, size_t bytes, bool write, struct sublet_pin *pin)
{
	return guarded(&(struct call){ do_pin, (void *)(uintptr_t)addr, bytes, .flag = write, .pin = pin });
}

void sublet__engine_unpin(struct sublet_pin *pin)
{
	(void)guarded(&(struct call){ do_unpin, .pin = pin });
}

int sublet__engine_reserve(size_t bytes, size_t align_bytes, void **addr)
{
	struct call c = { do_reserve, .bytes = bytes, .align_bytes = align_bytes };
	int err = guarded(&c);

	*addr = c.addr;
	return err;
}

int sublet__engine_map(size_t bytes, size_t align_bytes, void **addr)
{
	struct call c = { do_map, .bytes = bytes, .align_bytes = align_bytes };
	int err = guarded(&c);

	*addr = c.addr;
	return err;
}

int sublet__engine_commit(void *addr, size_t bytes)
{
	return guarded(&(struct call){ do_commit, addr, bytes });
}

int sublet__engine_decommit(void *addr, size_t bytes)
{
	return guarded(&(struct call){ do_decommit, addr, bytes });
}

int sublet__engine_unmap(void *addr, size_t bytes)
{
	return guarded(&(struct call){ do_unmap, addr, bytes });
}

bool sublet__engine_note_protected(const void *addr, size_t bytes, bool is_protected)
{
	return guarded(&(struct call){ do_note_protected, (void *)(uintptr_t)addr, bytes,
				       .flag = is_protected }) > 0;
}

void sublet__engine_note_locked(const void *addr, size_t bytes, bool is_locked)
{
	(void)guarded(&(struct call){ do_note_locked, (void *)(uintptr_t)addr, bytes, .flag = is_locked });
}
