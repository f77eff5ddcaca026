/* SPDX-License-Identifier: MIT */
/*
 * Switching stacks. Only what the ABI calls preserved is kept: a switch is an ordinary call to the compiler.
 *
 * AddressSanitizer is told of each switch; ThreadSanitizer is not, and the simulator is not built with it: everything
 * runs on one thread of the system, so there is nothing that it could see.
 */
#include "fiber.h"

#include <errno.h>
#include <stdint.h>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#define FIBER_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FIBER_ASAN 1
#endif
#endif

#ifdef FIBER_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

#define GUARD_BYTES 4096u

#ifdef FIBER_ASAN
/* The stack of main(), as it is told by the first switch away from it. */
static const void *main_bottom;
static size_t main_bytes;
#endif

void fiber_swap(void **from, void *to);

#if defined(__x86_64__)
#define SAVED_WORDS 6u
__asm__(".text\n"
	".p2align 4\n"
	".type fiber_swap, @function\n"
	"fiber_swap:\n"
	"	pushq %rbp\n"
	"	pushq %rbx\n"
	"	pushq %r12\n"
	"	pushq %r13\n"
	"	pushq %r14\n"
	"	pushq %r15\n"
	"	movq %rsp, (%rdi)\n"
	"	movq %rsi, %rsp\n"
	"	popq %r15\n"
	"	popq %r14\n"
	"	popq %r13\n"
	"	popq %r12\n"
	"	popq %rbx\n"
	"	popq %rbp\n"
	"	ret\n"
	".size fiber_swap, . - fiber_swap\n");
#elif defined(__aarch64__)
#define SAVED_WORDS 20u
__asm__(".text\n"
	".p2align 4\n"
	".type fiber_swap, %function\n"
	"fiber_swap:\n"
	"	stp x19, x20, [sp, #-160]!\n"
	"	stp x21, x22, [sp, #16]\n"
	"	stp x23, x24, [sp, #32]\n"
	"	stp x25, x26, [sp, #48]\n"
	"	stp x27, x28, [sp, #64]\n"
	"	stp x29, x30, [sp, #80]\n"
	"	stp d8, d9, [sp, #96]\n"
	"	stp d10, d11, [sp, #112]\n"
	"	stp d12, d13, [sp, #128]\n"
	"	stp d14, d15, [sp, #144]\n"
	"	mov x9, sp\n"
	"	str x9, [x0]\n"
	"	mov sp, x1\n"
	"	ldp x21, x22, [sp, #16]\n"
	"	ldp x23, x24, [sp, #32]\n"
	"	ldp x25, x26, [sp, #48]\n"
	"	ldp x27, x28, [sp, #64]\n"
	"	ldp x29, x30, [sp, #80]\n"
	"	ldp d8, d9, [sp, #96]\n"
	"	ldp d10, d11, [sp, #112]\n"
	"	ldp d12, d13, [sp, #128]\n"
	"	ldp d14, d15, [sp, #144]\n"
	"	ldp x19, x20, [sp], #160\n"
	"	ret\n"
	".size fiber_swap, . - fiber_swap\n");
#else
#error "fiber_swap is written for x86-64 and aarch64"
#endif

int fiber_stack_make(struct fiber_context *fiber)
{
	char *memory = mmap(NULL, FIBER_STACK_BYTES + GUARD_BYTES, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (memory == MAP_FAILED)
		return -ENOMEM;
	if (mprotect(memory, GUARD_BYTES, PROT_NONE)) {
		munmap(memory, FIBER_STACK_BYTES + GUARD_BYTES);
		return -ENOMEM;
	}
	*fiber = (struct fiber_context){ .stack = memory + GUARD_BYTES };
	return 0;
}

void fiber_stack_free(struct fiber_context *fiber)
{
	if (fiber->stack)
		munmap(fiber->stack - GUARD_BYTES, FIBER_STACK_BYTES + GUARD_BYTES);
	fiber->stack = NULL;
}

void fiber_prepare(struct fiber_context *fiber, void (*entry)(void))
{
	uint64_t *top = (uint64_t *)(void *)(fiber->stack + FIBER_STACK_BYTES);

	fiber->shadow = NULL;
	for (uint32_t i = 1; i <= SAVED_WORDS + 2; i++)
		top[-(int)i] = 0;
#if defined(__x86_64__)
	top[-2] = (uint64_t)(uintptr_t)entry; /* where ret goes; above it a frame that nobody returns to */
	fiber->sp = &top[-2 - (int)SAVED_WORDS];
#else
	fiber->sp = &top[-(int)SAVED_WORDS];
	((uint64_t *)fiber->sp)[11] = (uint64_t)(uintptr_t)entry; /* x30 */
#endif
}

void fiber_entered(struct fiber_context *self)
{
#ifdef FIBER_ASAN
	const void *bottom;
	size_t bytes;
	__sanitizer_finish_switch_fiber(self->shadow, &bottom, &bytes);
	if (!main_bottom) {
		main_bottom = bottom;
		main_bytes = bytes;
	}
#else
	(void)self;
#endif
}

void fiber_switch(struct fiber_context *from, struct fiber_context *to)
{
#ifdef FIBER_ASAN
	__sanitizer_start_switch_fiber(&from->shadow, to->stack ? to->stack : main_bottom,
				       to->stack ? FIBER_STACK_BYTES : main_bytes);
	fiber_swap(&from->sp, to->sp);
	__sanitizer_finish_switch_fiber(from->shadow, NULL, NULL);
#else
	fiber_swap(&from->sp, to->sp);
#endif
}
