/* SPDX-License-Identifier: MIT */
/*
 * linux/observer.c: debuggers and core dumps.
 *
 * Both look pages up without leave to wait for them: of a page that a move has taken away for a moment (a zap) a debugger
 * reads EIO, and a core has a hole. The kernel says in /proc/PID/status whether either is at work. Reading it takes some
 * 15 microseconds, as long as moving 100 KiB, so the answer is kept for a millisecond; a debugger takes longer from
 * attaching to its first look at the heap.
 *
 * Not seen: a process that opens /proc/PID/mem without attaching (docs/hazards.md), and a debugger where there is no /proc.
 */
#include "linux/observer.h"

#include "core/atomic.h"
#include "linux/helper.h"
#include "linux/linux.h"
#include "linux/platform.h"
#include "linux/proc.h"
#include "linux/raw.h"

#define KEEP_NS SUBLET_MS

int sublet__observer_open(void)
{
	int fd = sublet__helper_status_fd();

	return sublet__linux_fd_high(fd >= 0 ? fd
					     : sublet__raw_open(AT_FDCWD, "/proc/self/status", O_RDONLY));
}

static enum sublet__observer look(int status_fd)
{
	char text[4096];
	long n = sublet__raw_pread(status_fd, text, sizeof text - 1, 0);
	uint64_t tracer = 0, dumping = 0;

	if (n <= 0)
		return SUBLET__OBSERVER_NONE;
	text[n] = 0;
	(void)sublet__proc_number(text, "TracerPid", &tracer);
	(void)sublet__proc_number(text, "CoreDumping", &dumping);
	return dumping ? SUBLET__OBSERVER_DUMPING : tracer ? SUBLET__OBSERVER_TRACED : SUBLET__OBSERVER_NONE;
}

enum sublet__observer sublet__observer_now(int status_fd)
{
	/* One program in a process, whichever arena asks. Relaxed: an answer, and its age; both may be a little old. */
	static sublet__a64 until_ns;
	static sublet__a32 answer;
	uint64_t now = sublet__now_ns();

	if (status_fd < 0)
		return SUBLET__OBSERVER_NONE;
	if (now >= a64_load_relaxed(&until_ns)) {
		a32_store_relaxed(&answer, look(status_fd));
		a64_store_relaxed(&until_ns, now + KEEP_NS);
	}
	return (enum sublet__observer)a32_load_relaxed(&answer);
}
