/* SPDX-License-Identifier: MIT */
/*
 * The seccomp policy: each system call of each part is tried in a child of its own, without the
 * policy, under it, and with its part allowed. The attempts are made so that the kernel refuses them
 * for another reason (a bad descriptor, a missing file) when the policy does not. S22 of docs/security.md.
 * Where this machine has the header that defines a request, the number that is tried is compared with it.
 */
#include "cli/policy.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

/* Old headers lack some of these. */
#if __has_include(<linux/acrn.h>)
#include <linux/acrn.h>
#endif
#if __has_include(<linux/nitro_enclaves.h>)
#include <linux/nitro_enclaves.h>
#endif
#if __has_include(<linux/vduse.h>)
#include <linux/vduse.h>
#endif
#if __has_include(<linux/mshv.h>)
#include <linux/mshv.h>
#endif
#if __has_include(<drm/etnaviv_drm.h>)
#include <drm/etnaviv_drm.h>
#endif
#if __has_include(<drm/exynos_drm.h>)
#include <drm/exynos_drm.h>
#endif
#if __has_include(<drm/habanalabs_accel.h>)
#include <drm/habanalabs_accel.h>
#endif
#if __has_include(<drm/ivpu_accel.h>)
#include <drm/ivpu_accel.h>
#endif
#include <linux/fpga-dfl.h>
#include <linux/genwqe/genwqe_card.h>
#include <linux/ivtv.h>
#include <linux/ivtvfb.h>
#include <linux/rio_mport_cdev.h>
#include <linux/vhost.h>
#include <rdma/rdma_user_ioctl.h>

#define MISSING "/nonexistent/sublet"
#define NOBODY  65534

struct attempt {
	const char *part; /* NULL: not refused by any */
	const char *what;
	int refused; /* errno under the policy */
	long number;
	unsigned long arg[4];
};

#define IOCTL(part_, what_, request_)                                                         \
	{                                                                                     \
		.part = (part_), .what = (what_), .refused = EOPNOTSUPP, .number = SYS_ioctl, \
		.arg = { -1ul,                                                                \
			 (request_) }                                                         \
	}

/* Requests by number, so that a wrong header is found out. */
static const struct attempt attempts[] = {
	{ "direct", "openat", EINVAL, SYS_openat, { -100ul, (unsigned long)MISSING, O_RDONLY | O_DIRECT } },
	{ "direct", "openat2", ENOSYS, SYS_openat2, { -100ul, (unsigned long)MISSING, 0, 0 } },
	{ "direct", "open_by_handle_at", EINVAL, SYS_open_by_handle_at, { -1ul, 0, O_DIRECT } },
	{ "direct", "fcntl", EINVAL, SYS_fcntl, { -1ul, F_SETFL, O_DIRECT | O_NONBLOCK } },
	{ "aio", "io_setup", ENOSYS, SYS_io_setup, { 0, 0 } },
	{ "aio", "io_submit", ENOSYS, SYS_io_submit, { 0, 0, 0 } },
	{ "io_uring", "io_uring_setup", ENOSYS, SYS_io_uring_setup, { 0, 0 } },
	{ "io_uring", "io_uring_enter", ENOSYS, SYS_io_uring_enter, { -1ul } },
	{ "io_uring", "io_uring_register", ENOSYS, SYS_io_uring_register, { -1ul } },
	{ "vmsplice", "vmsplice", ENOSYS, SYS_vmsplice, { -1ul } },
	{ "zerocopy", "SO_ZEROCOPY", ENOPROTOOPT, SYS_setsockopt, { -1ul, SOL_SOCKET, 60 } },
	{ "zerocopy", "sendto", ENOBUFS, SYS_sendto, { -1ul, 0, 0, 0x4000000 } },
	{ "zerocopy", "sendmsg", ENOBUFS, SYS_sendmsg, { -1ul, 0, 0x4000000 | MSG_DONTWAIT } },
	{ "zerocopy", "sendmmsg", ENOBUFS, SYS_sendmmsg, { -1ul, 0, 0, 0x4000000 } },
	{ "xdp", "XDP_UMEM_REG", ENOPROTOOPT, SYS_setsockopt, { -1ul, 283, 4 } },
	{ "kcrypto", "AF_ALG", EAFNOSUPPORT, SYS_socket, { 38, 0x7fffffff, 0 } },
	{ "kcrypto", "TCP_ULP", ENOPROTOOPT, SYS_setsockopt, { -1ul, IPPROTO_TCP, 31 } },
	{ "processvm", "process_vm_readv", EPERM, SYS_process_vm_readv, { 1, 0, 0, 0 } },
	{ "processvm", "process_vm_writev", EPERM, SYS_process_vm_writev, { 1, 0, 0, 0 } },
	IOCTL("vfio", "VFIO_IOMMU_MAP_DMA", 0x3b71),
	IOCTL("vfio", "VFIO_IOMMU_SPAPR_REGISTER_MEMORY", 0x3b75),
	IOCTL("vfio", "IOMMU_IOAS_MAP", 0x3b85),
	IOCTL("vfio", "IOMMU_IOAS_MAP_FILE", 0x3b8f),
	IOCTL("vfio", "IOMMU_IOAS_MAP, dirty upper half", 0xdeadbeef00003b85),
	IOCTL("rdma", "RDMA_VERBS_IOCTL", 0xc0181b01),
	IOCTL("v4l2", "VIDIOC_QBUF", 0xc058560f),
	IOCTL("v4l2", "VIDIOC_QBUF, sign-extended", 0xffffffffc058560f),
	IOCTL("v4l2", "VIDIOC_PREPARE_BUF", 0xc058565d),
	IOCTL("sgio", "SG_IO", 0x2285),
	IOCTL("sgio", "CDROM_SEND_PACKET", 0x5393),
	IOCTL("sgio", "CDROMREADAUDIO", 0x530e),
	IOCTL("nvme", "NVME_IOCTL_ADMIN_CMD", 0xc0484e41),
	IOCTL("nvme", "NVME_IOCTL_SUBMIT_IO", 0x40304e42),
	IOCTL("nvme", "NVME_IOCTL_IO_CMD", 0xc0484e43),
	IOCTL("nvme", "NVME_IOCTL_ADMIN64_CMD", 0xc0504e47),
	IOCTL("nvme", "NVME_IOCTL_IO64_CMD", 0xc0504e48),
	IOCTL("nvme", "NVME_IOCTL_IO64_CMD_VEC", 0xc0504e49),
	IOCTL("vhost", "VHOST_VDPA_SET_STATUS", 0x4001af72),
	IOCTL("vhost", "VHOST_SET_LOG_BASE", 0x4008af04),
	IOCTL("sev", "KVM_MEMORY_ENCRYPT_OP", 0xc008aeba),
	IOCTL("sev", "KVM_MEMORY_ENCRYPT_REG_REGION", 0x8010aebb),
	{ "sev", "KVM_CREATE_VM, protected", EINVAL, SYS_ioctl, { -1ul, 0xae01, 0x80000028 } },
	IOCTL("tee", "TEE_IOC_SHM_REGISTER", 0xc018a409),
	IOCTL("rdma", "HFI1_IOCTL_ASSIGN_CTXT", 0xc01c1be1),
	{ "rdma", "AF_RDS", EAFNOSUPPORT, SYS_socket, { 21, 0x7fffffff, 0 } },
	{ "rdma", "RDS_GET_MR", ENOPROTOOPT, SYS_setsockopt, { -1ul, 276, 2 } },
	{ "rdma", "RDS_GET_MR_FOR_DEST", ENOPROTOOPT, SYS_setsockopt, { -1ul, 276, 7 } },
	IOCTL("v4l2", "IVTV_IOC_DMA_FRAME", 0x404056c0),
	IOCTL("v4l2", "IVTVFB_IOC_DMA_FRAME", 0x401856c0),
	IOCTL("vhost", "VHOST_SCSI_SET_ENDPOINT", 0x40e8af40),
	IOCTL("vhost", "VDUSE_IOTLB_REG_UMEM", 0x40308118),
	IOCTL("hypervisor", "ACRN_IOCTL_CREATE_VM", 0xc030a210),
	IOCTL("hypervisor", "ACRN_IOCTL_VM_INTR_MONITOR", 0x4008a224),
	IOCTL("hypervisor", "ACRN_IOCTL_SET_MEMSEG", 0x4020a241),
	IOCTL("hypervisor", "NE_SET_USER_MEMORY_REGION", 0x4018ae23),
	IOCTL("hypervisor", "MSHV_SET_GUEST_MEMORY", 0x4020b802),
	IOCTL("hypervisor", "IOCTL_VMCI_QUEUEPAIR_SETVA", 0x07a4),
	IOCTL("hypervisor", "IOCTL_VMCI_QUEUEPAIR_ALLOC", 0x07a8),
	IOCTL("hypervisor", "IOCTL_VMCI_QUEUEPAIR_SETPAGEFILE", 0x07a9),
	IOCTL("hypervisor", "IOCTL_VMCI_SET_NOTIFY", 0x07cb),
	IOCTL("hypervisor", "IOCTL_GNTDEV_GRANT_COPY", 0x00104708),
	IOCTL("hypervisor", "IOCTL_PRIVCMD_DM_OP", 0x00105005),
	IOCTL("dma", "DFL_FPGA_PORT_DMA_MAP", 0xb643),
	IOCTL("dma", "GENWQE_PIN_MEM", 0xc020a528),
	IOCTL("dma", "GENWQE_EXECUTE_DDCB", 0xc0e8a532),
	IOCTL("dma", "RIO_TRANSFER", 0xc0186d15),
	IOCTL("dma", "RIO_TRANSFER, dirty upper half", 0xdeadbeefc0186d15),
	IOCTL("dma", "VCHIQ_IOC_QUEUE_BULK_TRANSMIT", 0xc028c405),
	IOCTL("dma", "VCHIQ_IOC_QUEUE_BULK_RECEIVE", 0xc028c406),
	IOCTL("dma", "DRM_IOCTL_HL_MEMORY", 0xc0286444),
	IOCTL("dma", "DRM_IOCTL_ETNAVIV_GEM_USERPTR", 0xc0186448),
	IOCTL("dma", "DRM_IOCTL_IVPU_BO_CREATE_FROM_USERPTR", 0xc020644e),
	IOCTL("dma", "DRM_IOCTL_VMW_MKSSTAT_ADD", 0xc040645f),
	IOCTL("dma", "DRM_IOCTL_EXYNOS_G2D_SET_CMDLIST", 0xc0286461),
	/* What must go on working. */
	{ NULL, "openat, buffered", 0, SYS_openat, { -100ul, (unsigned long)MISSING, O_RDWR | O_CLOEXEC } },
	{ NULL, "fcntl F_GETFL", 0, SYS_fcntl, { -1ul, F_GETFL, O_DIRECT } },
	{ NULL, "fcntl F_SETFL", 0, SYS_fcntl, { -1ul, F_SETFL, O_NONBLOCK } },
	{ NULL, "setsockopt", 0, SYS_setsockopt, { -1ul, SOL_SOCKET, SO_REUSEADDR } },
	{ NULL, "setsockopt of TCP", 0, SYS_setsockopt, { -1ul, IPPROTO_TCP, 60 } },
	{ NULL, "sendto", 0, SYS_sendto, { -1ul, 0, 0, MSG_NOSIGNAL } },
	{ NULL, "io_getevents", 0, SYS_io_getevents, { 0, 0, 0, 0 } },
	{ NULL, "socket", 0, SYS_socket, { AF_UNIX, 0x7fffffff, 0 } },
	{ NULL, "setsockopt of RDS", 0, SYS_setsockopt, { -1ul, 276, 1 } },
	{ NULL, "KVM_CREATE_VM", 0, SYS_ioctl, { -1ul, 0xae01 } },
	{ NULL, "KVM_CREATE_VM, 40 bits of addresses", 0, SYS_ioctl, { -1ul, 0xae01, 40 } },
	{ NULL, "VHOST_NET_SET_BACKEND", 0, SYS_ioctl, { -1ul, 0x4008af30 } },
	{ NULL, "SPI_IOC_RD_MAX_SPEED_HZ", 0, SYS_ioctl, { -1ul, 0x80046b04 } },
	{ NULL, "MTIOCTOP", 0, SYS_ioctl, { -1ul, 0x40086d01 } },
	{ NULL, "DRM_IOCTL_XE_VM_CREATE", 0, SYS_ioctl, { -1ul, 0xc0206443 } },
	{ NULL, "DRM_IOCTL_NOUVEAU_GETPARAM", 0, SYS_ioctl, { -1ul, 0xc0106440 } },
	{ NULL, "VIDIOC_DQBUF", 0, SYS_ioctl, { -1ul, 0xc0585611 } },
	{ NULL, "DRM_IOCTL_I915_GEM_USERPTR", 0, SYS_ioctl, { -1ul, 0xc0186473 } },
};

#define ATTEMPTS (sizeof(attempts) / sizeof(attempts[0]))

#define NO_POLICY   UINT32_MAX
#define LOAD_FAILED 255

/* The errno of one attempt under a policy, 0 for success; in a child, which the policy dies with. */
static int try_under(const struct attempt *a, uint32_t allow)
{
	int status;
	pid_t child = fork();

	assert_true(child >= 0);
	if (child == 0) {
		if (allow != NO_POLICY && sublet__policy_load(allow) != 0)
			_exit(LOAD_FAILED);
		_exit(syscall(a->number, a->arg[0], a->arg[1], a->arg[2], a->arg[3], 0, 0) < 0 ? errno : 0);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	assert_int_not_equal(WEXITSTATUS(status), LOAD_FAILED);
	return WEXITSTATUS(status);
}

static void expect(const struct attempt *a, const char *when, int got, int wanted)
{
	if (got == wanted)
		return;
	fail_msg("%s %s: got %s, wanted %s", a->what, when, strerror(got), strerror(wanted));
}

static void test_each_call(void **state)
{
	(void)state;
	for (size_t i = 0; i < ATTEMPTS; i++) {
		const struct attempt *a = &attempts[i];
		int plain = try_under(a, NO_POLICY);

		if (a->part == NULL) {
			expect(a, "under the policy", try_under(a, SUBLET__POLICY_ALLOW_NONE), plain);
			continue;
		}
		expect(a, "under the policy", try_under(a, SUBLET__POLICY_ALLOW_NONE), a->refused);
		expect(a, "allowed", try_under(a, sublet__policy_part(a->part)), plain);
		expect(a, "with all else allowed", try_under(a, ~sublet__policy_part(a->part)), a->refused);
		if (plain == a->refused)
			print_message("%s: refused without the policy too\n", a->what);
	}
}

struct defined {
	const char *what;
	unsigned long number;
};

#define DEFINED(request)            \
	{                           \
#request, (request) \
	}

/* What the headers of this machine say. */
static const struct defined defined_here[] = {
	DEFINED(DFL_FPGA_PORT_DMA_MAP),
	DEFINED(GENWQE_PIN_MEM),
	DEFINED(GENWQE_EXECUTE_DDCB),
	DEFINED(HFI1_IOCTL_ASSIGN_CTXT),
	DEFINED(IVTV_IOC_DMA_FRAME),
	DEFINED(IVTVFB_IOC_DMA_FRAME),
	DEFINED(RIO_TRANSFER),
	DEFINED(VHOST_SCSI_SET_ENDPOINT),
#ifdef ACRN_IOCTL_SET_MEMSEG
	DEFINED(ACRN_IOCTL_CREATE_VM),
	DEFINED(ACRN_IOCTL_VM_INTR_MONITOR),
	DEFINED(ACRN_IOCTL_SET_MEMSEG),
#endif
#ifdef NE_SET_USER_MEMORY_REGION
	DEFINED(NE_SET_USER_MEMORY_REGION),
#endif
#ifdef VDUSE_IOTLB_REG_UMEM
	DEFINED(VDUSE_IOTLB_REG_UMEM),
#endif
#ifdef MSHV_SET_GUEST_MEMORY
	DEFINED(MSHV_SET_GUEST_MEMORY),
#endif
#ifdef DRM_IOCTL_ETNAVIV_GEM_USERPTR
	DEFINED(DRM_IOCTL_ETNAVIV_GEM_USERPTR),
#endif
#ifdef DRM_IOCTL_EXYNOS_G2D_SET_CMDLIST
	DEFINED(DRM_IOCTL_EXYNOS_G2D_SET_CMDLIST),
#endif
#ifdef DRM_IOCTL_HL_MEMORY
	DEFINED(DRM_IOCTL_HL_MEMORY),
#endif
#ifdef DRM_IOCTL_IVPU_BO_CREATE_FROM_USERPTR
	DEFINED(DRM_IOCTL_IVPU_BO_CREATE_FROM_USERPTR),
#endif
};

static void test_numbers_are_those_of_the_headers(void **state)
{
	(void)state;
	for (size_t i = 0; i < sizeof(defined_here) / sizeof(defined_here[0]); i++) {
		const struct attempt *a = attempts;

		while (a < attempts + ATTEMPTS && strcmp(a->what, defined_here[i].what) != 0)
			a++;
		if (a == attempts + ATTEMPTS)
			fail_msg("%s is not tried", defined_here[i].what);
		if (a->arg[1] != (uint32_t)defined_here[i].number)
			fail_msg("%s: tried as %#lx, the header has %#lx", a->what, a->arg[1],
				 defined_here[i].number);
	}
}

static void test_every_part_is_tried(void **state)
{
	uint32_t tried = 0, all = 0;
	FILE *file = tmpfile();
	char line[256], name[64];

	(void)state;
	assert_non_null(file);
	for (size_t i = 0; i < ATTEMPTS; i++)
		if (attempts[i].part != NULL)
			tried |= sublet__policy_part(attempts[i].part);
	sublet__policy_print(file);
	rewind(file);
	while (fgets(line, sizeof(line), file) != NULL) {
		assert_int_equal(sscanf(line, " %63s", name), 1);
		assert_int_not_equal(sublet__policy_part(name), 0);
		if (strcmp(name, "all") != 0)
			all |= sublet__policy_part(name);
	}
	(void)fclose(file);
	assert_int_equal(tried, all);
}

static void test_parse(void **state)
{
	uint32_t allow = 0;
	const char *bad = NULL;
	int bad_bytes = -1;

	(void)state;
	assert_int_equal(sublet__policy_parse("aio", &allow, &bad, &bad_bytes), 0);
	assert_int_equal(allow, sublet__policy_part("aio"));
	assert_int_equal(sublet__policy_parse("vmsplice,nvme", &allow, &bad, &bad_bytes), 0);
	assert_int_equal(allow, sublet__policy_part("aio") | sublet__policy_part("vmsplice") |
					sublet__policy_part("nvme"));
	assert_int_equal(sublet__policy_parse("all", &allow, &bad, &bad_bytes), 0);
	assert_int_equal(allow, SUBLET__POLICY_ALLOW_ALL);

	static const char *const wrong[] = { "",   ",",    "aio,", ",aio",    "aio,,nvme",
					     "ai", "aioo", "AIO",  "aio nvme" };
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		allow = 0;
		assert_int_equal(sublet__policy_parse(wrong[i], &allow, &bad, &bad_bytes), -EINVAL);
		assert_int_equal(allow, 0);
		assert_true(bad >= wrong[i] && bad + bad_bytes <= wrong[i] + strlen(wrong[i]));
	}
}

/* no_new_privs costs setuid programs their power: only where there is no other way. */
static void check_no_new_privs(bool as_nobody, int wanted)
{
	int status;
	pid_t child = fork();

	assert_true(child >= 0);
	if (child == 0) {
		if (as_nobody && setresuid(NOBODY, NOBODY, NOBODY) != 0)
			_exit(100);
		if (sublet__policy_load(SUBLET__POLICY_ALLOW_NONE) != 0)
			_exit(101);
		if (syscall(SYS_vmsplice, -1, NULL, 0, 0) >= 0 || errno != ENOSYS)
			_exit(102);
		_exit(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), wanted);
}

static void test_privilege(void **state)
{
	(void)state;
	if (geteuid() != 0) {
		check_no_new_privs(false, 1);
		return;
	}
	check_no_new_privs(false, 0);
	check_no_new_privs(true, 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_each_call),
		cmocka_unit_test(test_numbers_are_those_of_the_headers),
		cmocka_unit_test(test_every_part_is_tried),
		cmocka_unit_test(test_parse),
		cmocka_unit_test(test_privilege),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
