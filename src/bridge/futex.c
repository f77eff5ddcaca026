/* SPDX-License-Identifier: MIT */
/*
 * Process-shared waits that nobody means: the raw futex call on malloc's memory.
 *
 * Whoever calls futex() by hand and leaves FUTEX_PRIVATE_FLAG out gets a process-shared wait. libstdc++ does, for
 * std::future, std::packaged_task, std::latch, semaphores, barriers and std::atomic::wait. In lent memory such a wait is
 * keyed by the frame (sync.c says why), so that a wake after a move finds nobody. All of them come by libc's
 * syscall(), which this file stands in front of: for an address in the lent window the flag is added.
 *
 * Why that is right: the window holds malloc's memory, which no program shares with another process on purpose.
 * Every waiter and every waker has this address space, a vfork() child's included, and that is all that the
 * flag says. Both sides agree because an address is in the window for good, or never was; after fork() as well, where
 * the child waits on its own copy. It also survives what a process-shared wait would not: a fork turns the mapping
 * private for a while, and its key with it.
 *
 * What needs more than the flag:
 *
 *   requeue, wake-op     have two addresses and one flag. Where one of the two is lent and the other is not, waiters
 *                        are woken instead of requeued (they look again and wait where they have to), and a wake-op
 *                        becomes two calls. Their PI kind cannot be taken apart: ENOSYS
 *   futex_waitv etc.     have a flag for each address, in the program's own array: a copy is given to the kernel
 *   PI, bitset           are keyed like the rest
 *   FUTEX_FD             is gone from the kernel, and passed on as it is
 *   the kernel writes    PI operations and wake-op change the word from within the kernel, which does not wait for a page
 *                        that is being moved and answers EFAULT. Such a call is made again when the page is there; and a PI
 *                        word does not move from then on, because its waiters are in the kernel for long
 *   the tid of a thread  is the one word that the kernel itself wakes, and always as process-shared: where a program
 *                        gave its own to clone(), the word stays as it is, and its memory does not move (fork.c)
 *
 * glibc waits without syscall(): on what was not initialised as process-shared it sets the flag itself. Robust lists
 * are woken like tids, but there is no call that says where their words are: docs/hazards.md.
 *
 * Everything else is one comparison and a jump to libc's own, with the arguments still where they were: the functions
 * have the seven arguments that libc's has, whatever <unistd.h> says, and no frame of theirs stays on the stack
 * (a system call may return on another stack, or twice).
 */
#include "bridge/bridge.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Newer than the headers this may be built with, and the same on every architecture. */
#define CALL_FUTEX_WAITV   449
#define CALL_FUTEX_WAKE    454
#define CALL_FUTEX_WAIT    455
#define CALL_FUTEX_REQUEUE 456
#define COMMAND_LOCK_PI2   13
#define WAITV_MAX          128
#define TRIES              1000 /* of a call that answers EFAULT though the page was just there */
#define PAGE_BYTES         ((uintptr_t)4096)

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

#define KERNEL_WORDS_MAX 64u

struct waiter {
	uint64_t value;
	uint64_t addr;
	uint32_t flags;
	uint32_t reserved;
};

typedef long call_fn(long number, long a, long b, long c, long d, long e, long f);

call_fn sublet__futex_syscall __asm__("syscall") SUBLET__INTERPOSER;

/* ---- words that the kernel wakes ---- */

/* Relaxed throughout: whoever waits on a word learned of it from the thread that made it known. */
static struct {
	_Atomic uint32_t count;
	_Atomic uintptr_t word[KERNEL_WORDS_MAX];
} kernel;

static bool is_kernels(uintptr_t addr)
{
	if (atomic_load_explicit(&kernel.count, memory_order_relaxed) == 0)
		return false;
	for (uint32_t i = 0; i < KERNEL_WORDS_MAX; i++)
		if (atomic_load_explicit(&kernel.word[i], memory_order_relaxed) == addr)
			return true;
	return false;
}

/* What the kernel has cleared: its thread has ended, and nobody goes to sleep on it. Whatever is listed is malloc's. */
static void forget_cleared(void)
{
	for (uint32_t i = 0; i < KERNEL_WORDS_MAX; i++) {
		uintptr_t word = atomic_load_explicit(&kernel.word[i], memory_order_relaxed);

		if (word != 0 && atomic_load_explicit((_Atomic uint32_t *)word, memory_order_relaxed) == 0)
			sublet__futex_forget((const void *)word, sizeof(uint32_t));
	}
}

bool sublet__futex_kernel_wakes(const void *word)
{
	if (is_kernels((uintptr_t)word))
		return true;
	if (atomic_load_explicit(&kernel.count, memory_order_relaxed) >= KERNEL_WORDS_MAX)
		forget_cleared();
	for (uint32_t i = 0; i < KERNEL_WORDS_MAX; i++) {
		uintptr_t none = 0;

		if (!atomic_compare_exchange_strong_explicit(&kernel.word[i], &none, (uintptr_t)word,
							     memory_order_relaxed, memory_order_relaxed))
			continue;
		(void)atomic_fetch_add_explicit(&kernel.count, 1, memory_order_relaxed);
		return true;
	}
	return false;
}

void sublet__futex_forget(const void *addr, size_t bytes)
{
	if (atomic_load_explicit(&kernel.count, memory_order_relaxed) == 0)
		return;
	for (uint32_t i = 0; i < KERNEL_WORDS_MAX; i++) {
		uintptr_t word = atomic_load_explicit(&kernel.word[i], memory_order_relaxed);

		if (word - (uintptr_t)addr < bytes &&
		    atomic_compare_exchange_strong_explicit(&kernel.word[i], &word, 0, memory_order_relaxed,
							    memory_order_relaxed))
			(void)atomic_fetch_sub_explicit(&kernel.count, 1, memory_order_relaxed);
	}
}

/* ---- which waits become private ---- */

static bool becomes_private(uint64_t addr)
{
	struct sublet_mm *mm = atomic_load_explicit(&sublet__bridge.mm, memory_order_acquire);

	/* Whatever process this is: the window and its addresses are a child's as well. */
	return mm != NULL && sublet__mm_contains(mm, (void *)(uintptr_t)addr, sizeof(uint32_t)) &&
	       !is_kernels((uintptr_t)addr);
}

static bool has_two(long command)
{
	return command == FUTEX_REQUEUE || command == FUTEX_CMP_REQUEUE || command == FUTEX_WAKE_OP ||
	       command == FUTEX_WAIT_REQUEUE_PI || command == FUTEX_CMP_REQUEUE_PI;
}

static long refused(int error)
{
	errno = error;
	return -1;
}

/* ---- words that the kernel writes ---- */

static bool is_pi(long command)
{
	return command == FUTEX_LOCK_PI || command == COMMAND_LOCK_PI2 || command == FUTEX_TRYLOCK_PI ||
	       command == FUTEX_UNLOCK_PI || command == FUTEX_WAIT_REQUEUE_PI ||
	       command == FUTEX_CMP_REQUEUE_PI;
}

/* After an EFAULT: wait until the program could write the word. False: it is not lent, or never will be there. */
static bool settle(long word, bool keep)
{
	void *addr = (void *)(uintptr_t)word, *page = (void *)((uintptr_t)word & ~(PAGE_BYTES - 1));

	if (sublet__bridge_owner(addr, sizeof(uint32_t)) != SUBLET__OWNER_LENT)
		return false;
	if (keep)
		sublet__sticky_add(addr, sizeof(uint32_t));
	/* Of all ways to touch a page this one gives an error, and no signal, where the program may not write. */
	return sublet__real.madvise(page, PAGE_BYTES, MADV_POPULATE_WRITE) == 0;
}

static long futex_call(long addr, long op, long val, long timeout, long addr2, long val3)
{
	long command = op & FUTEX_CMD_MASK, result;
	bool pi = is_pi(command);

	for (int tries = 0;; tries++) {
		result = sublet__real.syscall(SYS_futex, addr, op, val, timeout, addr2, val3);
		if (result != -1 || errno != EFAULT || !(pi || command == FUTEX_WAKE_OP) || tries == TRIES)
			return result;
		/* Both: the second is the one that is written, or either is. */
		bool second = has_two(command) && settle(addr2, pi);
		if (!settle(addr, pi) && !second)
			return refused(EFAULT);
	}
}

/* Two addresses that need different flags: two calls, or one that needs no second address. */
static long futex_mixed(long addr, long op, long val, long val2, long addr2, long val3)
{
	long command = op & FUTEX_CMD_MASK, rest = op & ~(long)FUTEX_CMD_MASK;
	long own = rest | (becomes_private((uint64_t)addr) ? FUTEX_PRIVATE_FLAG : 0);
	long other = rest | (becomes_private((uint64_t)addr2) ? FUTEX_PRIVATE_FLAG : 0);
	long wake, more;
	uint32_t nobody = 0;

	switch (command) {
	case FUTEX_REQUEUE:
	case FUTEX_CMP_REQUEUE:
		if ((int)val < 0 || (int)val2 < 0)
			return refused(EINVAL);
		wake = (long)(int)val + (long)(int)val2;
		/* Onto itself, and none of them: the kernel compares, and wakes all. */
		return sublet__real.syscall(SYS_futex, addr, own | command, wake < INT_MAX ? wake : INT_MAX,
					    0, addr, val3);
	case FUTEX_WAKE_OP:
		wake = futex_call((long)&nobody, other | command, 1, val2, addr2, val3);
		if (wake < 0)
			return wake;
		more = sublet__real.syscall(SYS_futex, addr, own | FUTEX_WAKE, val, 0, 0, 0);
		return more < 0 ? more : wake + more;
	default:
		return refused(ENOSYS);
	}
}

static long futex(long addr, long op, long val, long timeout, long addr2, long val3)
{
	bool two = has_two(op & FUTEX_CMD_MASK);
	bool first, second;

	if ((op & FUTEX_PRIVATE_FLAG) != 0)
		return futex_call(addr, op, val, timeout, addr2, val3);
	first = becomes_private((uint64_t)addr);
	second = two ? becomes_private((uint64_t)addr2) : first;
	if (first != second)
		return futex_mixed(addr, op, val, timeout, addr2, val3);
	return futex_call(addr, first ? op | FUTEX_PRIVATE_FLAG : op, val, timeout, addr2, val3);
}

/* The calls that take an array: a copy of it where a flag is to be added. Else the program's own. */
static long futex_vector(long number, long array, long count, long b, long c, long d, long e)
{
	const struct waiter *given = (const struct waiter *)array;
	struct waiter copy[WAITV_MAX];
	bool changed = false;

	memcpy(copy, given, (size_t)count * sizeof(*given));
	for (long i = 0; i < count; i++) {
		if ((copy[i].flags & FUTEX_PRIVATE_FLAG) != 0 || !becomes_private(copy[i].addr))
			continue;
		copy[i].flags |= FUTEX_PRIVATE_FLAG;
		changed = true;
	}
	return sublet__real.syscall(number, changed ? (long)copy : array, b, c, d, e, 0);
}

/*
 * The kernel clears the tid from within the dying thread, and wakes it as process-shared: as with clone() (fork.c). Where
 * there is no room for one more such word, the call goes on: the wake may come too late, after a move.
 */
static long set_tid_address(long word)
{
	void *addr = (void *)(uintptr_t)word;

	if (sublet__bridge_owner(addr, sizeof(uint32_t)) == SUBLET__OWNER_LENT) {
		sublet__sticky_add(addr, sizeof(uint32_t));
		(void)sublet__futex_kernel_wakes(addr);
	}
	return sublet__real.syscall(SYS_set_tid_address, word, 0, 0, 0, 0, 0);
}

static bool is_futex(long number)
{
	return number == SYS_futex || number == SYS_set_tid_address || number == CALL_FUTEX_WAITV ||
	       (number >= CALL_FUTEX_WAKE && number <= CALL_FUTEX_REQUEUE);
}

/* Where a process-creating call may come back twice, it does so on copies of one stack. */
static bool is_fork(long number)
{
#ifdef SYS_fork
	if (number == SYS_fork)
		return true;
#endif
	return number == SYS_clone || number == SUBLET__CALL_CLONE3;
}

/* Not inlined: it has a frame. */
__attribute__((noinline)) static long any_futex(long number, long a, long b, long c, long d, long e, long f)
{
	switch (number) {
	case SYS_futex:
		return futex(a, b, c, d, e, f);
	case SYS_set_tid_address:
		return set_tid_address(a);
	case CALL_FUTEX_WAITV: /* programs ask with nothing whether it is there */
		if (a == 0 || b < 1 || b > WAITV_MAX)
			break;
		return futex_vector(number, a, b, b, c, d, e);
	case CALL_FUTEX_REQUEUE:
		if (a == 0)
			break;
		return futex_vector(number, a, 2, b, c, d, e);
	default: /* wait and wake: the address first, the flags fourth */
		if (becomes_private((uint64_t)a))
			d |= FUTEX_PRIVATE_FLAG;
		break;
	}
	return sublet__real.syscall(number, a, b, c, d, e, f);
}

long sublet__futex_syscall(long number, long a, long b, long c, long d, long e, long f)
{
	if (__builtin_expect(is_futex(number), 0))
		return any_futex(number, a, b, c, d, e, f);
	if (__builtin_expect(is_fork(number), 0))
		return sublet__fork_syscall(number, a, b, c, d, e, f);
	return sublet__real.syscall(number, a, b, c, d, e, f);
}

/* ---- the call itself ---- */

/* -errno, as the kernel has it. In assembly because every call by name would be the program's. */
static long trap(long number, long a, long b, long c, long d, long e, long f)
{
#if defined(__x86_64__)
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
#elif defined(__aarch64__)
	register long x8 __asm__("x8") = number;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	register long x5 __asm__("x5") = f;

	__asm__ volatile("svc 0"
			 : "+r"(x0)
			 : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
			 : "memory");
	return x0;
#elif defined(__riscv)
	register long a7 __asm__("a7") = number;
	register long a0 __asm__("a0") = a;
	register long a1 __asm__("a1") = b;
	register long a2 __asm__("a2") = c;
	register long a3 __asm__("a3") = d;
	register long a4 __asm__("a4") = e;
	register long a5 __asm__("a5") = f;

	__asm__ volatile("ecall"
			 : "+r"(a0)
			 : "r"(a7), "r"(a1), "r"(a2), "r"(a3), "r"(a4), "r"(a5)
			 : "memory");
	return a0;
#else
#error "the bridge does not know this machine's system calls"
#endif
}

long __wrap_syscall(long number, long a, long b, long c, long d, long e, long f)
{
	long result = trap(number, a, b, c, d, e, f);

	if ((unsigned long)result < -4095ul)
		return result;
	errno = (int)-result;
	return -1;
}
