/* SPDX-License-Identifier: MIT */
/*
 * sim/fiber.h: threads that are none: stacks of their own, on one thread of the system, switched by hand.
 *
 * swapcontext() makes a system call each time; this is a dozen instructions, and the simulator switches at nearly every
 * step of the engine.
 */
#ifndef SUBLET_SIM_FIBER_H
#define SUBLET_SIM_FIBER_H

#include <stddef.h>

#define FIBER_STACK_BYTES (256u << 10)

struct fiber_context {
	void *sp;     /* where its registers are, while it does not run */
	char *stack;  /* NULL: the stack that main() was called on */
	void *shadow; /* what AddressSanitizer keeps for it */
};

/* A stack, with a guard page below it. 0 or -ENOMEM. */
int fiber_stack_make(struct fiber_context *fiber);
void fiber_stack_free(struct fiber_context *fiber);
/* The next switch to it calls entry, which must not return. */
void fiber_prepare(struct fiber_context *fiber, void (*entry)(void));
/* Leave `from`, until somebody switches back to it. */
void fiber_switch(struct fiber_context *from, struct fiber_context *to);
/* The first thing that an entry has to do; `from` is who switched to it. */
void fiber_entered(struct fiber_context *self);

#endif
