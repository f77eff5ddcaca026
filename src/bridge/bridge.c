/* SPDX-License-Identifier: MIT */
/*
 * The bridge: how an unmodified program comes to live in lent memory.
 *
 * `sublet run` preloads this library, and libjemalloc behind it. The constructor below runs before
 * main() in the process that the settings name (settings.c), and in no other:
 *
 *   1. looks up what the interposers stand in front of (real.c), and leads here what would go past them (redirect.c);
 *   2. creates an arena: memory, userfaultfd, threads that block all signals;
 *   3. serves it on the control socket;
 *   4. sets jemalloc's extent hooks (hooks.c): from here on malloc's memory is lent.
 *
 * Whatever fails on that way ends the process with one line and exit code 125: a program that was
 * meant to be lent must not silently run without. The order matters in one point: the arena's
 * threads start before the hooks are set, so that what libc allocates for them is ordinary memory.
 *
 * The arena is never destroyed. At exit other threads may still be running on it; the kernel takes
 * it apart as a whole. Only the socket's file would be left behind, and is removed.
 *
 * A child of fork() keeps its copy of the memory and forgets the arena (enum sublet__owner). The pid
 * alone would not tell it from a vfork() child, which runs in its parent's memory for a while: hence
 * the handler, and the state UNKNOWN in which nothing is changed.
 */
#include "bridge/bridge.h"

#include "control/instance.h"
#include "linux/linux.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

struct sublet__bridge sublet__bridge;

void sublet__bridge_say(const char *format, ...)
{
	char line[512] = "sublet: ";
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
	return getpid() == sublet__bridge.pid ? SUBLET__OWNER_LENT : SUBLET__OWNER_UNKNOWN;
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

static const char *why_no_arena(int err)
{
	struct rlimit limit;

	switch (err) {
	case -EPERM:
		return "no userfaultfd permission; `sublet doctor` says what to do";
	case -ENOMEM:
		if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
			return "memory or addresses are not to be had, and the limit of addresses "
			       "(RLIMIT_AS) may be "
			       "the reason; lift it with `ulimit -v unlimited`, or try a smaller --area";
		return "the memory for it is not to be had; try a smaller --area (`sublet doctor` shows how "
		       "much there is)";
	case -EFBIG:
		return "the limit of file sizes (RLIMIT_FSIZE) is below that; lift it with `ulimit -f "
		       "unlimited`";
	case -EMFILE:
		return "there are too few descriptors for it (RLIMIT_NOFILE); allow more with `ulimit -n 64`";
	case -EOPNOTSUPP:
		return "this kernel lacks the --backing or --technique asked for; `sublet doctor` shows what "
		       "there is";
	default:
		return strerror(-err);
	}
}

static int create_arena(const struct sublet__settings *s)
{
	struct sublet_arena_info info = { SUBLET_OPTIONS(sublet_arena_info) };
	const struct sublet_arena_options options = {
		SUBLET_OPTIONS(sublet_arena_options),
		.area_bytes = s->area_bytes,
		.normal_bytes = s->normal_bytes,
		.backing = s->backing,
		.technique = s->technique,
	};
	int err = sublet_arena_create(&options, &sublet__bridge.arena);

	if (err == 0)
		err = sublet_arena_info(sublet__bridge.arena, &info);
	if (err != 0) {
		sublet__bridge_say("cannot create an area of %llu MiB: %s",
				   (unsigned long long)(s->area_bytes / SUBLET_MIB), why_no_arena(err));
		return err;
	}
	sublet__bridge.frame_bytes = (size_t)info.frame_bytes;
	sublet__bridge.unit_bytes = info.frame_bytes > 64 * SUBLET_KIB ? (size_t)info.frame_bytes
								       : 64 * SUBLET_KIB;
	return 0;
}

/* Its directory is what the environment chooses, and the usual reason is that it is somebody else's. */
static void say_no_socket(const char *name, int err)
{
	const char *chosen = getenv("XDG_RUNTIME_DIR");
	char dir[SUBLET__DIR_BYTES];

	if (err == -EMFILE)
		sublet__bridge_say("cannot serve %s on its control socket: %s", name, why_no_arena(err));
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

static int create_and_serve(const struct sublet__settings *s)
{
	int err = create_arena(s);

	if (err != 0)
		return err;
	err = sublet_arena_serve(sublet__bridge.arena, s->name);
	if (err != 0) {
		say_no_socket(s->name, err);
		sublet_arena_destroy(sublet__bridge.arena);
	}
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
	err = sublet__descriptors_apart(create_and_serve, s);
	if (err == 0)
		err = start_lending(s);
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
	/* A child that was only followed goes on in ordinary memory: nobody promised it more. */
	if (start(&settings) != 0 && is_meant)
		_exit(SUBLET__EXIT_RUN_FAILED);
}

/* ---- end ---- */

static void remove_socket(void)
{
	char file[SUBLET__FILE_BYTES];
	int dir = sublet__instance_dir_open(false);

	if (dir < 0)
		return;
	sublet__instance_file(file, sublet__bridge.settings.name, sublet__bridge.pid);
	(void)unlinkat(dir, file, 0);
	(void)close(dir);
}

__attribute__((destructor)) static void bridge_destructor(void)
{
	if (sublet__bridge_state() != SUBLET__OWNER_LENT)
		return;
	remove_socket();
	if (!atomic_load_explicit(&sublet__bridge.took_memory, memory_order_relaxed))
		sublet__bridge_say("%s never took memory from the arena: it needs too little, or has a "
				   "malloc of its own",
				   sublet__bridge.settings.name);
}
