/* SPDX-License-Identifier: MIT */
/* linux/uffd.h: userfaultfd, one thin function a system call. Every error is -errno. */
#ifndef SUBLET_LINUX_UFFD_H
#define SUBLET_LINUX_UFFD_H

#include "linux/uapi.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * What the kernel offers: its feature bits, or an error. via_device: it came by way of
 * /dev/userfaultfd. Only descriptors that serve the kernel's own faults count.
 */
int sublet__uffd_probe(uint64_t *features, bool *via_device);
/* A new descriptor with exactly these features, or -errno. */
int sublet__uffd_open(uint64_t features);

/* mode: UFFDIO_REGISTER_MODE_*. After an error nothing of the range is registered. */
int sublet__uffd_register(int uffd, uintptr_t addr, size_t bytes, uint64_t mode);
/* Also lifts write-protection and wakes whoever waits; a range that is not registered is ignored. */
void sublet__uffd_unregister(int uffd, uintptr_t addr, size_t bytes);
int sublet__uffd_protect(int uffd, uintptr_t addr, size_t bytes);
void sublet__uffd_wake(int uffd, uintptr_t addr, size_t bytes);

#endif
