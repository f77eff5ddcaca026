/* SPDX-License-Identifier: MIT */
/*
 * linux/thread_memory.c: stack and thread area of a task that libc does not know.
 *
 * Tasks of the helper process share the program's memory, and run code of this library and a little of libc: memcpy, the
 * wrappers of system calls, which write errno. Both find their thread-local variables by the thread pointer, at
 * distances that the dynamic linker fixed when the program was loaded. On the program's thread pointer a task would write
 * into the errno of a thread of the program. So each task gets an area of its own with the same layout:
 *
 *   x86-64             [ variables, negative distances | pointer to itself, stack guard, ... ]
 *   aarch64, riscv64   [ ... libc's thread structure | two words | variables, positive distances ]
 *                                                    ^ the thread pointer, on riscv64 behind the two words
 *
 * The variables start as the linker's images have them, as in a new thread of libc. The words at the pointer that any
 * code may read (stack guard, pointer guard) are copied from the thread that learnt them. The rest of libc's own thread
 * structure is zero: no code that a task runs may take part in what libc does with its threads (cancellation, joins,
 * mutexes of libc, which are not even atomic while libc believes that there is one thread only).
 *
 * Rejected: pthread_create, which makes the program multi-threaded for libc as well as for the kernel; and libc's own
 * functions for thread areas, which are private to it and call malloc.
 */
#include "linux/thread.h"

#include "linux/raw.h"

#include <errno.h>
#include <link.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#define GUARD_BYTES ((size_t)4096)
#define STACK_BYTES ((size_t)256 << 10)
#define LIBC_BYTES  ((size_t)8192) /* more than libc's thread structure */
#define STATIC_BYTES \
	((ptrdiff_t)1 << 20) /* variables that are farther away are not static: malloc has made them */
#define ALIGN_BYTES ((size_t)4096)
#define IMAGES_MAX  64u

struct image {
	ptrdiff_t distance; /* from the thread pointer */
	const void *data;
	size_t bytes; /* the rest of the variables is zero */
};

/* Written once, by the main thread, before there is a task. */
static struct {
	const void *pointer; /* of the thread that learnt */
	size_t below, above; /* what an area has on both sides of its pointer; whole pages */
	uint32_t count;
	bool is_full;
	struct image image[IMAGES_MAX];
} layout;

static void *thread_pointer(void)
{
	void *p;

#if defined(__x86_64__)
	__asm__("mov %%fs:0, %0" : "=r"(p));
#elif defined(__aarch64__)
	__asm__("mrs %0, tpidr_el0" : "=r"(p));
#elif defined(__riscv)
	__asm__("mv %0, tp" : "=r"(p));
#else
	p = NULL;
#endif
	return p;
}

static void widen(ptrdiff_t first, ptrdiff_t end)
{
	if (first < 0 && (size_t)-first > layout.below)
		layout.below = (size_t)-first;
	if (end > 0 && (size_t)end > layout.above)
		layout.above = (size_t)end;
}

/* One module: its variables, if they lie in the static part. */
static int learn_module(struct dl_phdr_info *info, size_t bytes, void *arg)
{
	(void)bytes, (void)arg;
	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *p = &info->dlpi_phdr[i];
		if (p->p_type != PT_TLS || !info->dlpi_tls_data)
			continue;
		ptrdiff_t distance = (const char *)info->dlpi_tls_data - (const char *)layout.pointer;
		if (distance < -STATIC_BYTES || distance > STATIC_BYTES)
			continue;
		if (layout.count == IMAGES_MAX) {
			layout.is_full = true;
			return 1;
		}
		widen(distance, distance + (ptrdiff_t)p->p_memsz);
		layout.image[layout.count++] =
			(struct image){ distance, (const void *)(info->dlpi_addr + p->p_vaddr), p->p_filesz };
	}
	return 0;
}

int sublet__thread_memory_learn(void)
{
	layout.count = 0;
	layout.below = layout.above = LIBC_BYTES;
	layout.pointer = thread_pointer();
	if (!layout.pointer)
		return -EOPNOTSUPP;
	(void)dl_iterate_phdr(learn_module, NULL);
	layout.below = (layout.below + ALIGN_BYTES - 1) & ~(ALIGN_BYTES - 1);
	layout.above = (layout.above + ALIGN_BYTES - 1) & ~(ALIGN_BYTES - 1);
	return layout.is_full ? -EOPNOTSUPP : 0;
}

/* The words around the pointer that code of the compiler or of libc reads. */
static void fill_header(char *pointer)
{
#if defined(__x86_64__)
	/* self, dtv, self, then multiple_threads, sysinfo, stack guard, pointer guard */
	void **word = (void **)(void *)pointer;

	memcpy(word, layout.pointer, 7 * sizeof *word);
	word[0] = word[2] = pointer;
#elif defined(__aarch64__)
	memcpy(pointer, layout.pointer, 2 * sizeof(void *));
#else
	memcpy(pointer - 2 * sizeof(void *), (const char *)layout.pointer - 2 * sizeof(void *),
	       2 * sizeof(void *));
#endif
}

static size_t map_bytes(void)
{
	return GUARD_BYTES + STACK_BYTES + layout.below + layout.above;
}

int sublet__thread_memory_create(struct sublet__thread_memory *m)
{
	size_t bytes = map_bytes();
	char *map = sublet__raw_mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (map == MAP_FAILED)
		return -ENOMEM;
	(void)sublet__raw_mprotect(map, GUARD_BYTES, PROT_NONE);
	m->map = map;
	m->stack = map + GUARD_BYTES + STACK_BYTES;
	m->pointer = (char *)m->stack + layout.below;
	for (uint32_t i = 0; i < layout.count; i++)
		memcpy((char *)m->pointer + layout.image[i].distance, layout.image[i].data,
		       layout.image[i].bytes);
	fill_header(m->pointer);
	return 0;
}

void sublet__thread_memory_destroy(void *map)
{
	(void)sublet__raw_munmap(map, map_bytes());
}
