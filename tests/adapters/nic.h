/* SPDX-License-Identifier: MIT */
/*
 * nic.h: a network card that is not there, good enough for libfabric's efa provider to register memory with it.
 *
 * No provider that runs without hardware keeps registrations, so the tests bring the hardware: the verbs calls that
 * libfabric makes find these functions first. The provider, its registration cache and the monitor are libfabric's own.
 * The card notes, at each registration, where the memory is; a look-up that yields a registration whose memory is
 * somewhere else by now is the bug that the adapter is there to prevent.
 */
#ifndef SUBLET_TESTS_ADAPTERS_NIC_H
#define SUBLET_TESTS_ADAPTERS_NIC_H

#include "world.h"

#include <rdma/fi_domain.h>

/* Before the first call of libfabric. */
void nic_plug(void);

/* Open a domain of the card with a registration cache: 0 or -errno of libfabric. */
int nic_domain_open(struct fid_domain **domain);
void nic_domain_close(struct fid_domain *domain);

/* How often the card was asked. */
uint64_t nic_registrations(void);
uint64_t nic_deregistrations(void);

/* Where the memory behind a registration was when the card was told. */
struct place nic_place(struct fid_mr *mr);

#endif
