/* SPDX-License-Identifier: MIT */
/*
 * The card: what efa asks of ibverbs until memory can be registered, and no more. There are no queues.
 *
 * The provider also reads sysfs; the files it wants are put into a folder of their own, which SYSFS_PATH names.
 */
#include "nic.h"

#include <errno.h>
#include <infiniband/efadv.h>
#include <infiniband/verbs.h>
#include <rdma/fi_endpoint.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* The headers make macros of these; libfabric was linked against the functions. */
#undef ibv_query_port
#undef ibv_reg_mr
#undef ibv_reg_mr_iova2

#define KEYS 4096u

static struct ibv_device device = { .node_type = IBV_NODE_UNSPECIFIED,
				    .transport_type = IBV_TRANSPORT_UNSPECIFIED,
				    .name = "efa_0",
				    .dev_name = "uverbs0" };
static struct ibv_context context = { .device = &device };
static struct ibv_pd domain_pd = { .context = &context };
static char folder[] = "/tmp/sublet-nic-XXXXXX";

static struct place places[KEYS]; /* by key */
static _Atomic uint32_t next_key;
static _Atomic uint64_t registrations, deregistrations;
static struct fi_info *info;
static struct fid_fabric *fabric;

/* ---- sysfs ---- */

static void make(const char *name, const char *text, const char *target)
{
	char path[512];

	snprintf(path, sizeof path, "%s/%s", folder, name);
	if (target ? symlink(target, path) : !text ? mkdir(path, 0700) : 0)
		exit(77);
	if (text) {
		FILE *f = fopen(path, "w");
		if (!f || fputs(text, f) < 0 || fclose(f))
			exit(77);
	}
}

static void unplug(void)
{
	static const char *const names[] = { "class/infiniband_verbs/abi_version",
					     "class/infiniband_verbs",
					     "class",
					     "0000:00:06.0/driver",
					     "0000:00:06.0",
					     "efa",
					     "efa_0/device",
					     "efa_0",
					     "" };
	char path[512];

	for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
		snprintf(path, sizeof path, "%s/%s", folder, names[i]);
		remove(path);
	}
}

void nic_plug(void)
{
	if (!mkdtemp(folder))
		exit(77);
	atexit(unplug);
	make("class", NULL, NULL);
	make("class/infiniband_verbs", NULL, NULL);
	make("class/infiniband_verbs/abi_version", "1\n", NULL);
	make("efa", NULL, NULL);
	make("0000:00:06.0", NULL, NULL);
	make("0000:00:06.0/driver", NULL, "../efa");
	make("efa_0", NULL, NULL);
	make("efa_0/device", NULL, "../0000:00:06.0");
	snprintf(device.ibdev_path, sizeof device.ibdev_path, "%s/efa_0", folder);
	setenv("SYSFS_PATH", folder, 1);
}

/* ---- what the tests ask ---- */

int nic_domain_open(struct fid_domain **domain)
{
	struct fi_info *hints = fi_allocinfo();

	if (!hints)
		return -ENOMEM;
	hints->fabric_attr->prov_name = strdup("efa");
	hints->ep_attr->type = FI_EP_RDM;
	hints->caps = FI_MSG;
	/* Without FI_MR_LOCAL: only then does the provider keep registrations. */
	hints->domain_attr->mr_mode = FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY;
	int err = fi_getinfo(FI_VERSION(FI_MAJOR_VERSION, FI_MINOR_VERSION), NULL, NULL, 0, hints, &info);
	fi_freeinfo(hints);
	if (err)
		return err;
	err = fi_fabric(info->fabric_attr, &fabric, NULL);
	if (!err)
		err = fi_domain(fabric, info, domain, NULL);
	return err;
}

void nic_domain_close(struct fid_domain *domain)
{
	if (fi_close(&domain->fid) || fi_close(&fabric->fid))
		abort();
	fi_freeinfo(info);
}

uint64_t nic_registrations(void)
{
	return registrations;
}

uint64_t nic_deregistrations(void)
{
	return deregistrations;
}

struct place nic_place(struct fid_mr *mr)
{
	return places[fi_mr_key(mr) % KEYS];
}

/* ---- verbs ---- */

struct ibv_device **ibv_get_device_list(int *count)
{
	struct ibv_device **list = calloc(2, sizeof(*list));

	if (!list)
		return NULL;
	list[0] = &device;
	if (count)
		*count = 1;
	return list;
}

void ibv_free_device_list(struct ibv_device **list)
{
	free(list);
}

const char *ibv_get_device_name(struct ibv_device *dev)
{
	return dev->name;
}

struct ibv_context *ibv_open_device(struct ibv_device *dev)
{
	return dev == &device ? &context : NULL;
}

int ibv_close_device(struct ibv_context *ctx)
{
	(void)ctx;
	return 0;
}

int ibv_query_device(struct ibv_context *ctx, struct ibv_device_attr *attr)
{
	(void)ctx;
	memset(attr, 0, sizeof *attr);
	attr->vendor_id = 0x1d0f;
	attr->vendor_part_id = 0xefa0;
	attr->max_mr = (int)KEYS;
	attr->max_mr_size = 1ull << 40;
	attr->max_qp = attr->max_cq = 256;
	attr->max_cqe = attr->max_qp_wr = 1024;
	attr->max_sge = 2;
	attr->max_ah = attr->max_pd = 16;
	attr->phys_port_cnt = 1;
	return 0;
}

int efadv_query_device(struct ibv_context *ctx, struct efadv_device_attr *attr, uint32_t bytes)
{
	(void)ctx;
	memset(attr, 0, bytes);
	attr->max_sq_wr = attr->max_rq_wr = 1024;
	attr->max_sq_sge = attr->max_rq_sge = 2;
	attr->inline_buf_size = 32;
	return 0;
}

int ibv_query_port(struct ibv_context *ctx, uint8_t port, struct _compat_ibv_port_attr *compat)
{
	struct ibv_port_attr *attr = (struct ibv_port_attr *)(void *)compat;

	(void)ctx, (void)port;
	attr->state = IBV_PORT_ACTIVE;
	attr->max_mtu = attr->active_mtu = IBV_MTU_4096;
	attr->gid_tbl_len = 1;
	attr->max_msg_sz = 8192;
	return 0;
}

int ibv_query_gid(struct ibv_context *ctx, uint8_t port, int index, union ibv_gid *gid)
{
	(void)ctx, (void)port, (void)index;
	memset(gid, 0, sizeof *gid);
	gid->raw[0] = 0xfe;
	gid->raw[1] = 0x80;
	gid->raw[15] = 1;
	return 0;
}

int ibv_query_pkey(struct ibv_context *ctx, uint8_t port, int index, __be16 *key)
{
	(void)ctx, (void)port, (void)index;
	*key = 0xffff;
	return 0;
}

struct ibv_pd *ibv_alloc_pd(struct ibv_context *ctx)
{
	(void)ctx;
	return &domain_pd;
}

int ibv_dealloc_pd(struct ibv_pd *pd)
{
	(void)pd;
	return 0;
}

int ibv_fork_init(void)
{
	return 0;
}

enum ibv_fork_status ibv_is_fork_initialized(void)
{
	return IBV_FORK_UNNEEDED;
}

static struct ibv_mr *mr_create(struct ibv_pd *pd, void *addr, size_t bytes)
{
	struct ibv_mr *mr = calloc(1, sizeof *mr);

	if (!mr)
		return NULL;
	mr->context = pd->context;
	mr->pd = pd;
	mr->addr = addr;
	mr->length = bytes;
	mr->lkey = mr->rkey = ++next_key;
	places[mr->rkey % KEYS] = world_mm ? world_place(addr, bytes) : (struct place){ 0 };
	registrations++;
	return mr;
}

struct ibv_mr *ibv_reg_mr(struct ibv_pd *pd, void *addr, size_t bytes, int access)
{
	(void)access;
	return mr_create(pd, addr, bytes);
}

struct ibv_mr *ibv_reg_mr_iova2(struct ibv_pd *pd, void *addr, size_t bytes, uint64_t iova,
				unsigned int access)
{
	(void)iova, (void)access;
	return mr_create(pd, addr, bytes);
}

int ibv_dereg_mr(struct ibv_mr *mr)
{
	deregistrations++;
	free(mr);
	return 0;
}
