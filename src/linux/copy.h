/* SPDX-License-Identifier: MIT */
/* linux/copy.h: copy and zero cold memory. Addresses and sizes are multiples of 4 KiB; ranges do not overlap. */
#ifndef SUBLET_LINUX_COPY_H
#define SUBLET_LINUX_COPY_H

#include <stddef.h>

/* Choose for this processor; may be called any number of times, at first before any thread copies. */
void sublet__copy_choose(void);
void sublet__copy(void *dst, const void *src, size_t bytes);
void sublet__zero(void *dst, size_t bytes);
/* What was read a moment ago: the lines are there, and stores that bypass the cache would have to throw them out. */
void sublet__zero_warm(void *dst, size_t bytes);
/* Push a range out of every cache, so that what follows is measured cold. A no-op where that cannot be done. */
void sublet__cache_flush(const void *addr, size_t bytes);

#endif
