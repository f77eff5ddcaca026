/* SPDX-License-Identifier: MIT */
/*
 * The bridge: how an unmodified program comes to live in lent memory.
 *
 * `sublet run` preloads this library, and libjemalloc behind it. The constructor below runs before
 * main() in the process that the settings name (settings.c), and in no other:
 *
 *   1. looks up what the interposers stand in front of (real.c), and leads here what would go past them (redirect.c);
 *   2. starts the helper process, which has all descriptors and threads (linux/helper.h);
 *   3. has it create an arena and serve it on the control socket, and confines it;
 *   4. sets jemalloc's extent hooks (hooks.c): from here on malloc's memory is lent.
 *
 * Whatever fails on that way ends the process with one line and exit code 125: a program that was
 * meant to be lent must not silently run without.
 *
 * The arena is never destroyed. It ends with the helper process, which ends with the program and removes the socket's file.
 *
 * A child of fork() keeps its copy of the memory and forgets the arena (enum sublet__owner). Which process runs says a
 * page that the kernel zeroes in each new address space (MADV_WIPEONFORK). So a vfork() child, which runs in its parent's
 * memory for a while, counts as a thread of its parent; a child that the system call alone has made is one in which nothing
 * is changed (UNKNOWN). getpid() would tell neither, and is a system call that a program may have forbidden itself.
 */
#include "bridge/bridge.h"

#include "control/instance.h"
#include "linux/helper.h"
#include "linux/limit.h"
#include "linux/linux.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct sublet__bridge sublet__bridge;

void sublet__bridge_say(const char *format, ...)
{
	char line[640] = "sublet: ";
	size_t used = strlen(line);
	va_list list;
	int more;

	va_start(list, format);
	more = vsnprintf(line + used, sizeof(line) - used - 1, format, list);
	va_end(list);
	if (more < 0)
		return;
	used += (size_t)more < sizeof(line) - used - 1 ? (size_t)more : sizeof(line) - used - 2;
	line[used++] = '\n';
	if (write(STDERR_FILENO, line, used) < 0)
		return; /* nobody listens */
}

enum sublet__owner sublet__bridge_state(void)
{
	if (atomic_load_explicit(&sublet__bridge.mm, memory_order_acquire) == NULL)
		return SUBLET__OWNER_OTHER;
	if (atomic_load_explicit(&sublet__bridge.is_child,
				 memory_order_relaxed)) /* set before the child has threads */
		return SUBLET__OWNER_CHILD;
	/* Relaxed: nobody writes it while this address space has threads. */
	if (!atomic_load_explicit(sublet__bridge.is_here, memory_order_relaxed))
		return SUBLET__OWNER_UNKNOWN;
	if (!sublet__helper_is_gone())
		return SUBLET__OWNER_LENT;
	sublet__engine_say_gone();
	return SUBLET__OWNER_STUCK;
}

enum sublet__owner sublet__bridge_owner(const void *addr, size_t bytes)
{
	struct sublet_mm *mm = atomic_load_explicit(&sublet__bridge.mm, memory_order_acquire);

	/* Nearly every call ends here. */
	if (mm == NULL || bytes == 0 || !sublet__mm_contains(mm, addr, bytes))
		return SUBLET__OWNER_OTHER;
	return sublet__bridge_state();
}

static void in_child(void)
{
	atomic_store_explicit(&sublet__bridge.is_child, true, memory_order_relaxed);
}

/* ---- start ---- */

static int mark_address_space(void)
{
	const size_t bytes = 4096;
	_Atomic bool *page =
		sublet__real.mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (page == MAP_FAILED)
		return -ENOMEM;
	if (sublet__real.madvise(page, bytes, MADV_WIPEONFORK) != 0)
		return -errno;
	atomic_store_explicit(page, true, memory_order_relaxed); /* released with mm */
	sublet__bridge.is_here = page;
	return 0;
}

static struct sublet_arena_options options_of(const struct sublet__settings *s)
{
	return (struct sublet_arena_options){
		SUBLET_OPTIONS(sublet_arena_options),
		.area_bytes = s->area_bytes,
		.normal_bytes = s->normal_bytes,
		.backing = s->backing,
		.technique = s->technique,
	};
}

/* The end of a line: the cause of the refusal, and the remedy. */
static const char *why_no_arena(int err, const struct sublet__settings *s,
				char text[SUBLET__LIMIT_TEXT_BYTES])
{
	const struct sublet_arena_options options = options_of(s);

	if (sublet__limit_explain(err, &options, text))
		return text;
	switch (err) {
	case -EPERM:
		return "no userfaultfd permission; `sublet doctor` says what to do";
	case -ENOMEM:
		return "the memory for it is not to be had; try a smaller --area (`sublet doctor` shows how "
		       "much there is)";
	case -EOPNOTSUPP:
		return "this kernel lacks the --backing or --technique asked for; `sublet doctor` shows what "
		       "there is";
	default:
		return strerror(-err);
	}
}

/* The order to a task of the helper at the start, and how far the task came. */
struct creation {
	const struct sublet__settings *settings;
	bool has_arena;
};

static int create_arena(struct creation *c)
{
	struct sublet_arena_info info = { SUBLET_OPTIONS(sublet_arena_info) };
	const struct sublet_arena_options options = options_of(c->settings);
	int err = sublet_arena_create(&options, &sublet__bridge.arena);

	if (err != 0)
		return err;
	c->has_arena = true;
	err = sublet_arena_info(sublet__bridge.arena, &info);
	sublet__bridge.frame_bytes = (size_t)info.frame_bytes;
	sublet__bridge.unit_bytes = info.frame_bytes > 64 * SUBLET_KIB ? (size_t)info.frame_bytes
								       : 64 * SUBLET_KIB;
	return err;
}

static int create_and_serve(void *arg)
{
	struct creation *c = arg;
	int err = create_arena(c);

	return err != 0 ? err : sublet_arena_serve(sublet__bridge.arena, c->settings->name);
}

/* Its directory is what the environment chooses, and the usual reason is that it is somebody else's. */
static void say_no_socket(const struct sublet__settings *s, int err)
{
	const char *name = s->name;
	char why[SUBLET__LIMIT_TEXT_BYTES];
	const char *chosen = getenv("XDG_RUNTIME_DIR");
	char dir[SUBLET__DIR_BYTES];

	if (err == -EMFILE || err == -EAGAIN || err == -ENOMEM)
		sublet__bridge_say("cannot serve %s on its control socket: %s", name,
				   why_no_arena(err, s, why));
	else if (sublet__instance_dir_path(dir) != 0)
		sublet__bridge_say(
			"cannot serve %s on its control socket: the path in XDG_RUNTIME_DIR is too "
			"long; set it to a directory of your own, or unset it",
			name);
	else
		sublet__bridge_say(
			"cannot make the control socket of %s in %.256s: %s; set XDG_RUNTIME_DIR "
			"to a directory of your own%s",
			name, dir,
			err == -EPERM ? "it must be a directory of your own with mode 0700" : strerror(-err),
			chosen != NULL && strncmp(dir, chosen, strlen(chosen)) == 0 ? ", or unset it" : "");
}

static void say_no_arena(const struct creation *c, int err)
{
	char why[SUBLET__LIMIT_TEXT_BYTES];

	if (c->has_arena)
		say_no_socket(c->settings, err);
	else
		sublet__bridge_say("cannot create an area of %llu MiB: %s",
				   (unsigned long long)(c->settings->area_bytes / SUBLET_MIB),
				   why_no_arena(err, c->settings, why));
}

/* The helper process, and in it the arena and its server. It lives as long as the program, or until it is stopped. */
static int start_helper(const struct sublet__settings *s)
{
	const struct sublet_arena_options options = options_of(s);
	struct creation creation = { .settings = s };
	char why[SUBLET__LIMIT_TEXT_BYTES];
	int err;

	/* Asked first, and here, where the limits are the program's: an arena that just fits would leave malloc nothing. */
	if (sublet__limit_explain(-ENOMEM, &options, why)) {
		say_no_arena(&creation, -ENOMEM);
		return -ENOMEM;
	}
	err = sublet__helper_start();

	if (err != 0) {
		sublet__bridge_say("cannot start the helper process of %s: %s", s->name,
				   why_no_arena(err, s, why));
		return err;
	}
	err = sublet__helper_call(create_and_serve, &creation);
	if (err != 0) {
		say_no_arena(&creation, err);
		return err;
	}
	err = sublet__helper_confine();
	if (err != 0)
		sublet__bridge_say("cannot start the tasks of the helper process of %s: %s", s->name,
				   why_no_arena(err, s, why));
	return err;
}

static int start_lending(const struct sublet__settings *s)
{
	int err;

	/* Released: whoever sees mm sees pid, arena and the sizes. */
	atomic_store_explicit(&sublet__bridge.mm, sublet_arena_mm(sublet__bridge.arena),
			      memory_order_release);
	err = sublet__hooks_install();
	if (err == 0 && s->chaos_ns != 0)
		err = sublet__linux_chaos_start(sublet__bridge.arena, s->chaos_ns,
						(uint64_t)sublet__bridge.pid);
	if (err != 0)
		sublet__bridge_say("cannot lend the heap of %s: %s", s->name, strerror(-err));
	return err;
}

static int start(const struct sublet__settings *s)
{
	int err = sublet__hooks_find(), past;

	if (err != 0) {
		sublet__bridge_say(
			"cannot lend the heap of %s: %s", s->name,
			err == -ENOSYS ? "libjemalloc.so.2 was not loaded; install it (Debian: libjemalloc2)"
				       : "its jemalloc is not version 5");
		return err;
	}
	past = sublet__redirect_install();
	if (past != 0) /* most programs never make such a call */
		sublet__bridge_say("libc's symbol tables cannot be changed (%s): plugins of %s that use "
				   "RTLD_DEEPBIND may abort it",
				   strerror(-past), s->name);
	sublet__bridge.pid = getpid();
	sublet__bridge.settings = *s;
	/* before the arena's own: children run them in this order */
	err = -pthread_atfork(NULL, NULL, in_child);
	if (err != 0)
		return err;
	err = sublet__linux_fork_register();
	if (err == 0)
		err = mark_address_space();
	if (err != 0)
		return err;
	err = start_helper(s);
	if (err == 0)
		err = start_lending(s);
	if (err != 0)
		sublet__helper_stop();
	return err;
}

__attribute__((constructor)) static void bridge_constructor(void)
{
	struct sublet__settings settings;
	int err = sublet__settings_read(&settings);
	bool is_meant = err == 0 && settings.pid == getpid();

	sublet__real_resolve();
	if (err == -ENOENT)
		return; /* preloaded by hand, or beyond the process that was meant */
	if (err != 0) {
		sublet__bridge_say("the library and the `sublet` command are of different versions");
		_exit(SUBLET__EXIT_RUN_FAILED);
	}
	if (!is_meant && !settings.follow) {
		sublet__settings_forget(&settings);
		return;
	}
	/* It has a malloc of its own, and no userfaultfd. */
	if (sublet__settings_preloads("/vgpreload_")) {
		sublet__bridge_say("%s runs under valgrind, and on its own heap",
				   program_invocation_short_name);
		sublet__settings_forget(&settings);
		return;
	}
	if (!sublet__helper_is_possible()) {
		sublet__bridge_say(
			"%s runs in ordinary memory: its children are to be in another pid namespace "
			"(unshare --pid without --fork)",
			program_invocation_short_name);
		sublet__settings_forget(&settings);
		return;
	}
	/* A child that was only followed goes on in ordinary memory: nobody promised it more. */
	if (start(&settings) != 0 && is_meant)
		_exit(SUBLET__EXIT_RUN_FAILED);
}

/* ---- end ---- */

__attribute__((destructor)) static void bridge_destructor(void)
{
	if (sublet__bridge_state() != SUBLET__OWNER_LENT)
		return;
	if (!atomic_load_explicit(&sublet__bridge.took_memory, memory_order_relaxed))
		sublet__bridge_say("%s never took memory from the arena: it needs too little, or has a "
				   "malloc of its own",
				   sublet__bridge.settings.name);
}
