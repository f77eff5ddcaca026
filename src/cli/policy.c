/* SPDX-License-Identifier: MIT */
/*
 * The seccomp policy of `sublet run`.
 *
 * Some system calls make the kernel, or a device, keep a reference to a page frame beyond what the
 * engine can see: it resolves an address once and works on the frame from then on. If the page moves
 * meanwhile, data lands where nobody looks, silently. A program that knows sublet pins first; an
 * unmodified one cannot, so the policy makes those calls fail, each with the error that programs
 * know as "not to be had here" and answer with ordinary, buffered I/O.
 *
 * What is filtered is what can be told by the system call's number and plain arguments. Flags behind
 * a pointer cannot: openat2 is refused as a whole, because every program that tries it must fall
 * back to openat for older kernels; VIDIOC_QBUF is refused whatever its buffer is.
 * docs/hazards.md lists what remains, and docs/pinning.md every place in the kernel that looks a user page up by
 * its frame.
 *
 * KVM, and the DRM drivers that take user pointers by way of MMU notifiers, follow page tables and need
 * no rule. KVM's encrypted and protected guests do not: their pages are pinned, and encrypted in place by physical
 * address. Nor do all DRM drivers. Each driver gives the numbers of DRM commands a meaning of its own: the policy
 * refuses those that mean nothing else in the drivers that the kernel has.
 *
 * Values are compared in the 32 bits that the kernel looks at: a program may pass a request number
 * with any upper half.
 */
#include "cli/policy.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <seccomp.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <linux/cdrom.h>
#include <linux/fpga-dfl.h>
#include <linux/genwqe/genwqe_card.h>
#include <linux/if_alg.h>
#include <linux/if_xdp.h>
#include <linux/ivtv.h>
#include <linux/ivtvfb.h>
#include <linux/kvm.h>
#include <linux/nvme_ioctl.h>
#include <linux/rds.h>
#include <linux/rio_mport_cdev.h>
#include <linux/tcp.h>
#include <linux/tee.h>
#include <linux/vfio.h>
#include <linux/vhost.h>
#include <linux/videodev2.h>
#include <rdma/rdma_user_ioctl.h>
#include <scsi/sg.h>

/* Newer than the headers this may be built with. The last argument of _IOC is the size of the request's structure. */
#define POLICY_IOMMU_IOAS_MAP             _IO(';', 0x85)
#define POLICY_IOMMU_IOAS_MAP_FILE        _IO(';', 0x8f)
#define POLICY_VDUSE_IOTLB_REG_UMEM       _IOC(_IOC_WRITE, 0x81, 0x18, 48)
#define POLICY_ACRN_IOCTL_CREATE_VM       _IOC(_IOC_READ | _IOC_WRITE, 0xa2, 0x10, 48)
#define POLICY_ACRN_IOCTL_VM_INTR_MONITOR _IOC(_IOC_WRITE, 0xa2, 0x24, 8)
#define POLICY_ACRN_IOCTL_SET_MEMSEG      _IOC(_IOC_WRITE, 0xa2, 0x41, 32)
#define POLICY_NE_SET_USER_MEMORY_REGION  _IOC(_IOC_WRITE, 0xae, 0x23, 24)
#define POLICY_MSHV_SET_GUEST_MEMORY      _IOC(_IOC_WRITE, 0xb8, 0x02, 32)

/* In headers of the kernel's own, or of packages that this need not be built with. */
#define POLICY_IOCTL_VMCI_QUEUEPAIR_SETVA            _IO(7, 0xa4)
#define POLICY_IOCTL_VMCI_QUEUEPAIR_ALLOC            _IO(7, 0xa8)
#define POLICY_IOCTL_VMCI_QUEUEPAIR_SETPAGEFILE      _IO(7, 0xa9)
#define POLICY_IOCTL_VMCI_SET_NOTIFY                 _IO(7, 0xcb)
#define POLICY_IOCTL_GNTDEV_GRANT_COPY               _IOC(_IOC_NONE, 'G', 8, 16)
#define POLICY_IOCTL_PRIVCMD_DM_OP                   _IOC(_IOC_NONE, 'P', 5, 16)
#define POLICY_VCHIQ_IOC_QUEUE_BULK_TRANSMIT         _IOC(_IOC_READ | _IOC_WRITE, 0xc4, 5, 40)
#define POLICY_VCHIQ_IOC_QUEUE_BULK_RECEIVE          _IOC(_IOC_READ | _IOC_WRITE, 0xc4, 6, 40)
#define POLICY_DRM_IOCTL_HL_MEMORY                   _IOC(_IOC_READ | _IOC_WRITE, 'd', 0x44, 40)
#define POLICY_DRM_IOCTL_ETNAVIV_GEM_USERPTR         _IOC(_IOC_READ | _IOC_WRITE, 'd', 0x48, 24)
#define POLICY_DRM_IOCTL_IVPU_BO_CREATE_FROM_USERPTR _IOC(_IOC_READ | _IOC_WRITE, 'd', 0x4e, 32)
#define POLICY_DRM_IOCTL_VMW_MKSSTAT_ADD             _IOC(_IOC_READ | _IOC_WRITE, 'd', 0x5f, 64)
#define POLICY_DRM_IOCTL_EXYNOS_G2D_SET_CMDLIST      _IOC(_IOC_READ | _IOC_WRITE, 'd', 0x61, 40)
#ifndef SOL_RDS
#define SOL_RDS 276
#endif
#ifndef SOL_XDP
#define SOL_XDP 283
#endif
#ifndef SO_ZEROCOPY
#define SO_ZEROCOPY 60
#endif
#ifndef MSG_ZEROCOPY
#define MSG_ZEROCOPY 0x4000000
#endif

/* KVM_VM_TYPE_ARM_PROTECTED, in the argument of KVM_CREATE_VM; machines of other types have no such bit. */
#define POLICY_KVM_PROTECTED 0x80000000u

/* The kernel's O_DIRECT: libc's is the same on every machine that this runs on. */
#define POLICY_O_DIRECT ((uint32_t)O_DIRECT)

enum part {
	PART_DIRECT,
	PART_AIO,
	PART_IO_URING,
	PART_VMSPLICE,
	PART_ZEROCOPY,
	PART_XDP,
	PART_KCRYPTO,
	PART_PROCESSVM,
	PART_VFIO,
	PART_RDMA,
	PART_V4L2,
	PART_SGIO,
	PART_NVME,
	PART_VHOST,
	PART_SEV,
	PART_TEE,
	PART_HYPERVISOR,
	PART_DMA,
	PART_COUNT,
};

/* clang-format off: two tables */

static const struct {
	const char *name;
	const char *risk;
} parts[PART_COUNT] = {
	[PART_DIRECT] = { "direct", "O_DIRECT files: a read that is under way during a move is lost" },
	[PART_AIO] = { "aio", "io_setup, io_submit: as direct, for as long as a request is in the queue" },
	[PART_IO_URING] = { "io_uring",
			    "requests and registered buffers keep frames: lost reads, stale writes" },
	[PART_VMSPLICE] = { "vmsplice", "a pipe keeps frames that were given to it: it delivers old bytes" },
	[PART_ZEROCOPY] = { "zerocopy",
			    "MSG_ZEROCOPY: a socket sends from frames that hold something else by now" },
	[PART_XDP] = { "xdp", "AF_XDP rings live in the program's memory: packets go astray after a move" },
	[PART_KCRYPTO] = { "kcrypto", "AF_ALG and kernel TLS work in place on frames: output may be lost" },
	[PART_PROCESSVM] = { "processvm",
			     "process_vm_readv and _writev: bytes copied during a move are lost" },
	[PART_VFIO] = { "vfio", "VFIO and iommufd map frames for a device: it goes on using the old ones" },
	[PART_RDMA] = { "rdma", "memory regions registered by ioctl or for RDS, Omni-Path: as vfio" },
	[PART_V4L2] = { "v4l2", "video buffers of type USERPTR: frames are written where nobody looks" },
	[PART_SGIO] = { "sgio", "SCSI and CD-ROM commands read and write frames directly: as direct" },
	[PART_NVME] = { "nvme", "NVMe pass-through commands: as direct" },
	[PART_VHOST] = { "vhost",
			 "vhost-vdpa, vhost-scsi and VDUSE map the program's memory for a device: as vfio" },
	[PART_SEV] = { "sev", "encrypted and protected guests of KVM are tied to frames: they break when "
			      "they move" },
	[PART_TEE] = { "tee", "shared memory with a trusted environment: as vfio" },
	[PART_HYPERVISOR] = { "hypervisor", "memory given to ACRN, Nitro Enclaves, Hyper-V, Xen or VMware by "
					    "frame: as vfio" },
	[PART_DMA] = { "dma", "other drivers' DMA (FPGA, VideoCore, RapidIO, GenWQE, some DRM): as vfio" },
};

/* An argument, compared under a mask; mask 0: any. */
struct match {
	uint32_t mask;
	uint32_t value;
	uint8_t argument;
};

struct rule {
	uint8_t part;
	uint16_t error;
	int syscall;
	struct match match[2];
};

#define EQUAL(i, v)                                                         \
	{                                                                   \
		.argument = (i), .mask = UINT32_MAX, .value = (uint32_t)(v) \
	}
#define HAS_FLAG(i, f)                                                         \
	{                                                                      \
		.argument = (i), .mask = (uint32_t)(f), .value = (uint32_t)(f) \
	}
#define REFUSE(p, call, err, ...)                                                                     \
	{                                                                                             \
		.part = PART_##p, .syscall = SCMP_SYS(call), .error = (err), .match = { __VA_ARGS__ } \
	}
#define REFUSE_IOCTL(p, request) REFUSE(p, ioctl, EOPNOTSUPP, EQUAL(1, request))

static const struct rule rules[] = {
	REFUSE(DIRECT, open, EINVAL, HAS_FLAG(1, POLICY_O_DIRECT)),
	REFUSE(DIRECT, openat, EINVAL, HAS_FLAG(2, POLICY_O_DIRECT)),
	REFUSE(DIRECT, open_by_handle_at, EINVAL, HAS_FLAG(2, POLICY_O_DIRECT)),
	REFUSE(DIRECT, openat2, ENOSYS, { 0 }),
	REFUSE(DIRECT, fcntl, EINVAL, EQUAL(1, F_SETFL), HAS_FLAG(2, POLICY_O_DIRECT)),

	REFUSE(AIO, io_setup, ENOSYS, { 0 }),
	REFUSE(AIO, io_submit, ENOSYS, { 0 }),

	REFUSE(IO_URING, io_uring_setup, ENOSYS, { 0 }),
	REFUSE(IO_URING, io_uring_enter, ENOSYS, { 0 }),
	REFUSE(IO_URING, io_uring_register, ENOSYS, { 0 }),

	REFUSE(VMSPLICE, vmsplice, ENOSYS, { 0 }),

	REFUSE(ZEROCOPY, setsockopt, ENOPROTOOPT, EQUAL(1, SOL_SOCKET), EQUAL(2, SO_ZEROCOPY)),
	/* The error of a socket that may lock no more memory: programs send the ordinary way then. */
	REFUSE(ZEROCOPY, sendto, ENOBUFS, HAS_FLAG(3, MSG_ZEROCOPY)),
	REFUSE(ZEROCOPY, sendmsg, ENOBUFS, HAS_FLAG(2, MSG_ZEROCOPY)),
	REFUSE(ZEROCOPY, sendmmsg, ENOBUFS, HAS_FLAG(3, MSG_ZEROCOPY)),

	REFUSE(XDP, setsockopt, ENOPROTOOPT, EQUAL(1, SOL_XDP), EQUAL(2, XDP_UMEM_REG)),

	REFUSE(KCRYPTO, socket, EAFNOSUPPORT, EQUAL(0, AF_ALG)),
	REFUSE(KCRYPTO, setsockopt, ENOPROTOOPT, EQUAL(1, IPPROTO_TCP), EQUAL(2, TCP_ULP)),

	REFUSE(PROCESSVM, process_vm_readv, EPERM, { 0 }),
	REFUSE(PROCESSVM, process_vm_writev, EPERM, { 0 }),

	REFUSE_IOCTL(VFIO, VFIO_IOMMU_MAP_DMA),
	REFUSE_IOCTL(VFIO, VFIO_IOMMU_SPAPR_REGISTER_MEMORY),
	REFUSE_IOCTL(VFIO, POLICY_IOMMU_IOAS_MAP),
	REFUSE_IOCTL(VFIO, POLICY_IOMMU_IOAS_MAP_FILE),

	REFUSE_IOCTL(RDMA, RDMA_VERBS_IOCTL),
	/* Without a context, hfi1 takes no memory, neither by ioctl nor by writev. */
	REFUSE_IOCTL(RDMA, HFI1_IOCTL_ASSIGN_CTXT),
	/* RDS takes memory by control messages too, which a filter cannot see: no socket at all. */
	REFUSE(RDMA, socket, EAFNOSUPPORT, EQUAL(0, AF_RDS)),
	REFUSE(RDMA, setsockopt, ENOPROTOOPT, EQUAL(1, SOL_RDS), EQUAL(2, RDS_GET_MR)),
	REFUSE(RDMA, setsockopt, ENOPROTOOPT, EQUAL(1, SOL_RDS), EQUAL(2, RDS_GET_MR_FOR_DEST)),

	REFUSE_IOCTL(V4L2, VIDIOC_QBUF),
	REFUSE_IOCTL(V4L2, VIDIOC_PREPARE_BUF),
	REFUSE_IOCTL(V4L2, IVTV_IOC_DMA_FRAME),
	REFUSE_IOCTL(V4L2, IVTVFB_IOC_DMA_FRAME),

	REFUSE_IOCTL(SGIO, SG_IO),
	REFUSE_IOCTL(SGIO, CDROM_SEND_PACKET),
	REFUSE_IOCTL(SGIO, CDROMREADAUDIO),

	REFUSE_IOCTL(NVME, NVME_IOCTL_ADMIN_CMD),
	REFUSE_IOCTL(NVME, NVME_IOCTL_ADMIN64_CMD),
	REFUSE_IOCTL(NVME, NVME_IOCTL_SUBMIT_IO),
	REFUSE_IOCTL(NVME, NVME_IOCTL_IO_CMD),
	REFUSE_IOCTL(NVME, NVME_IOCTL_IO64_CMD),
	REFUSE_IOCTL(NVME, NVME_IOCTL_IO64_CMD_VEC),

	REFUSE_IOCTL(VHOST, VHOST_VDPA_SET_STATUS),
	REFUSE_IOCTL(VHOST, VHOST_SET_LOG_BASE),
	REFUSE_IOCTL(VHOST, VHOST_SCSI_SET_ENDPOINT),
	REFUSE_IOCTL(VHOST, POLICY_VDUSE_IOTLB_REG_UMEM),

	REFUSE_IOCTL(SEV, KVM_MEMORY_ENCRYPT_OP),
	REFUSE_IOCTL(SEV, KVM_MEMORY_ENCRYPT_REG_REGION),
	/* The error of a KVM that knows no protected guests. */
	REFUSE(SEV, ioctl, EINVAL, EQUAL(1, KVM_CREATE_VM), HAS_FLAG(2, POLICY_KVM_PROTECTED)),

	REFUSE_IOCTL(TEE, TEE_IOC_SHM_REGISTER),

	REFUSE_IOCTL(HYPERVISOR, POLICY_ACRN_IOCTL_CREATE_VM),
	REFUSE_IOCTL(HYPERVISOR, POLICY_ACRN_IOCTL_VM_INTR_MONITOR),
	REFUSE_IOCTL(HYPERVISOR, POLICY_ACRN_IOCTL_SET_MEMSEG),
	REFUSE_IOCTL(HYPERVISOR, POLICY_NE_SET_USER_MEMORY_REGION),
	REFUSE_IOCTL(HYPERVISOR, POLICY_MSHV_SET_GUEST_MEMORY),
	REFUSE_IOCTL(HYPERVISOR, POLICY_IOCTL_VMCI_QUEUEPAIR_SETVA),
	REFUSE_IOCTL(HYPERVISOR, POLICY_IOCTL_VMCI_QUEUEPAIR_ALLOC),
	REFUSE_IOCTL(HYPERVISOR, POLICY_IOCTL_VMCI_QUEUEPAIR_SETPAGEFILE),
	REFUSE_IOCTL(HYPERVISOR, POLICY_IOCTL_VMCI_SET_NOTIFY),
	REFUSE_IOCTL(HYPERVISOR, POLICY_IOCTL_GNTDEV_GRANT_COPY),
	REFUSE_IOCTL(HYPERVISOR, POLICY_IOCTL_PRIVCMD_DM_OP),

	REFUSE_IOCTL(DMA, DFL_FPGA_PORT_DMA_MAP),
	REFUSE_IOCTL(DMA, GENWQE_PIN_MEM),
	REFUSE_IOCTL(DMA, GENWQE_EXECUTE_DDCB),
	REFUSE_IOCTL(DMA, RIO_TRANSFER),
	REFUSE_IOCTL(DMA, POLICY_VCHIQ_IOC_QUEUE_BULK_TRANSMIT),
	REFUSE_IOCTL(DMA, POLICY_VCHIQ_IOC_QUEUE_BULK_RECEIVE),
	REFUSE_IOCTL(DMA, POLICY_DRM_IOCTL_HL_MEMORY),
	REFUSE_IOCTL(DMA, POLICY_DRM_IOCTL_ETNAVIV_GEM_USERPTR),
	REFUSE_IOCTL(DMA, POLICY_DRM_IOCTL_IVPU_BO_CREATE_FROM_USERPTR),
	REFUSE_IOCTL(DMA, POLICY_DRM_IOCTL_VMW_MKSSTAT_ADD),
	REFUSE_IOCTL(DMA, POLICY_DRM_IOCTL_EXYNOS_G2D_SET_CMDLIST),
};

/* clang-format on */

static uint32_t part_by_name(const char *name, size_t length)
{
	for (uint32_t i = 0; i < PART_COUNT; i++)
		if (strlen(parts[i].name) == length && memcmp(parts[i].name, name, length) == 0)
			return (uint32_t)1 << i;
	if (length == 3 && memcmp(name, "all", 3) == 0)
		return SUBLET__POLICY_ALLOW_ALL;
	return 0;
}

uint32_t sublet__policy_part(const char *name)
{
	return part_by_name(name, strlen(name));
}

int sublet__policy_parse(const char *list, uint32_t *allow, const char **bad, int *bad_bytes)
{
	uint32_t bits = 0;

	for (const char *at = list;; at++) {
		size_t length = strcspn(at, ",");
		uint32_t part = part_by_name(at, length);

		if (part == 0) {
			*bad = at;
			*bad_bytes = (int)length;
			return -EINVAL;
		}
		bits |= part;
		at += length;
		if (*at == '\0')
			break;
	}
	*allow |= bits;
	return 0;
}

void sublet__policy_print(FILE *file)
{
	for (size_t i = 0; i < PART_COUNT; i++)
		(void)fprintf(file, "  %-10s %s\n", parts[i].name, parts[i].risk);
	(void)fprintf(file, "  %-10s everything above, and no filter at all\n", "all");
}

static int add_rule(scmp_filter_ctx filter, const struct rule *rule)
{
	struct scmp_arg_cmp compare[2];
	unsigned int count = 0;
	int err;

	for (size_t i = 0; i < 2; i++) {
		const struct match *m = &rule->match[i];

		if (m->mask == 0)
			continue;
		compare[count++] = (struct scmp_arg_cmp){
			.arg = m->argument, .op = SCMP_CMP_MASKED_EQ, .datum_a = m->mask, .datum_b = m->value
		};
	}
	err = seccomp_rule_add_array(filter, SCMP_ACT_ERRNO(rule->error), rule->syscall, count, compare);
	return err == -EEXIST ? 0 : err; /* two requests that have one number */
}

/* Try without no_new_privs first: the kernel allows that with CAP_SYS_ADMIN. */
static int load(scmp_filter_ctx filter)
{
	int err = seccomp_attr_set(filter, SCMP_FLTATR_CTL_NNP, 0);

	if (err == 0)
		err = seccomp_load(filter);
	if (err == 0 || (err != -EACCES && err != -EPERM && err != -ECANCELED))
		return err;
	err = seccomp_attr_set(filter, SCMP_FLTATR_CTL_NNP, 1);
	return err ? err : seccomp_load(filter);
}

int sublet__policy_load(uint32_t allow)
{
	scmp_filter_ctx filter;
	int err;

	if (allow == SUBLET__POLICY_ALLOW_ALL)
		return 0;
	filter = seccomp_init(SCMP_ACT_ALLOW);
	if (filter == NULL)
		return -ENOMEM;
	/* Foreign architectures (32-bit children) have no lent memory; the default would kill them. */
	err = seccomp_attr_set(filter, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_ALLOW);
	/* The kernel's own error instead of libseccomp's -ECANCELED, and a search tree instead of a list. */
	(void)seccomp_attr_set(filter, SCMP_FLTATR_API_SYSRAWRC, 1);
	(void)seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2);
	for (size_t i = 0; err == 0 && i < sizeof(rules) / sizeof(rules[0]); i++)
		if ((allow & (uint32_t)1 << rules[i].part) == 0)
			err = add_rule(filter, &rules[i]);
	if (err == 0)
		err = load(filter);
	seccomp_release(filter);
	return err == -EINVAL ? -EOPNOTSUPP : err;
}
