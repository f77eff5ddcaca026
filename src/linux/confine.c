/* SPDX-License-Identifier: MIT */
/*
 * linux/confine.c: what the helper process may do.
 *
 * The helper shares the program's memory, so an attacker who controls the program controls what the helper does. The
 * program may have given up rights since its start: another user, a filter of its own, no capabilities. The helper must
 * not be a way to have them back. So before the first instruction of the program it keeps only
 *
 *   - system calls that act on memory that both have anyway (and none that makes memory executable), on descriptors that
 *     it holds already, or on itself; none that takes a path, makes a process, or reaches another one but the program;
 *   - the right to remove files of one directory, that of the control sockets, as Landlock enforces it; only where the
 *     kernel has that;
 *   - no capability, except CAP_IPC_LOCK where the program has it and a limit of locked memory that cannot be lifted.
 *
 * Any other call answers EPERM. A filter that kills would not be safer, and would end the service of a program for a call
 * that some libc makes in some version.
 *
 * docs/security.md says what an attacker can reach through the helper; tests/security holds it.
 */
#include "linux/helper.h"

#include "linux/raw.h"
#include "linux/uapi.h"
#include "linux/uffd.h"

#include <sched.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/landlock.h>
#include <linux/seccomp.h>

#if defined(__x86_64__)
#define ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCH AUDIT_ARCH_AARCH64
#elif defined(__riscv)
#define ARCH AUDIT_ARCH_RISCV64
#else
#error "the helper's filter does not know this machine"
#endif

/* Calls that are allowed whatever their arguments are. */
static const int allowed[] = {
	/* waiting and time */
	SYS_futex,
	SYS_futex_waitv,
	SYS_clock_gettime,
	SYS_clock_nanosleep,
	SYS_nanosleep,
	SYS_ppoll,
	SYS_restart_syscall,
	SYS_sched_yield,
#ifdef SYS_poll
	SYS_poll,
#endif
	/* memory that the program has as well */
	SYS_munmap,
	SYS_mremap,
	SYS_madvise,
	SYS_mlock,
	SYS_mlock2,
	SYS_munlock,
	/* descriptors that are open */
	SYS_read,
	SYS_pread64,
	SYS_write,
	SYS_fstat,
	SYS_ftruncate,
	SYS_memfd_create,
	/* the control socket */
	SYS_accept4,
	SYS_getsockopt,
	SYS_sendmsg,
	SYS_sendto,
	SYS_recvfrom, /* not recvmsg, which takes descriptors */
	SYS_shutdown,
	/* itself, and whether others live */
	SYS_gettid,
	SYS_getpid,
	SYS_getcpu,
	SYS_sched_getaffinity,
	SYS_sched_setaffinity,
	SYS_rt_sigprocmask,
	SYS_rt_sigreturn,
	SYS_kcmp,
	SYS_pidfd_open,
	SYS_exit,
	SYS_exit_group,
};

static const uint32_t ioctls[] = {
	UFFDIO_REGISTER, UFFDIO_UNREGISTER, UFFDIO_WAKE, UFFDIO_WRITEPROTECT, (uint32_t)SUBLET__PAGEMAP_SCAN,
};
static const uint32_t fcntls[] = { F_GETFD, F_SETFD, F_ADD_SEALS };
static const uint32_t prctls[] = { PR_SET_NAME, PR_SET_TIMERSLACK };

#define PROGRAM_MAX 256u

struct program {
	uint16_t count;
	struct sock_filter op[PROGRAM_MAX];
};

static void add(struct program *p, struct sock_filter op)
{
	if (p->count == PROGRAM_MAX)
		__builtin_trap(); /* its length is the same each time, so no program ever sees this */
	p->op[p->count++] = op;
}

static void load(struct program *p, uint32_t offset)
{
	add(p, (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offset));
}

static void answer(struct program *p, bool allow)
{
	add(p, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K,
					    allow ? SECCOMP_RET_ALLOW : SECCOMP_RET_ERRNO | EPERM));
}

/* The lower half of an argument; the kernel looks at no more of those that are tested here. */
static uint32_t argument(uint32_t i)
{
	return (uint32_t)offsetof(struct seccomp_data, args) + 8 * i;
}

/* Allow if the loaded word is `value`; else go on. */
static void allow_if(struct program *p, uint32_t value)
{
	add(p, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, 1));
	answer(p, true);
}

/* Of the call `number`: only with one of these values as argument i. The number is loaded before and after. */
static void allow_values(struct program *p, int number, uint32_t i, const uint32_t *values, uint32_t count)
{
	add(p, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)number, 0,
					    (uint8_t)(2 * count + 2)));
	load(p, argument(i));
	for (uint32_t k = 0; k < count; k++)
		allow_if(p, values[k]);
	answer(p, false);
}

/* Of the call `number`: with any other value than this one as argument 0. */
static void allow_others(struct program *p, int number, uint32_t value)
{
	add(p, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)number, 0, 4));
	load(p, argument(0));
	add(p, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 1, 0));
	answer(p, true);
	answer(p, false);
}

/* Of the call `number`: only with 0 as its first two arguments. */
static void allow_zeros(struct program *p, int number)
{
	add(p, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)number, 0, 6));
	load(p, argument(0));
	add(p, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 3));
	load(p, argument(1));
	add(p, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 1));
	answer(p, true);
	answer(p, false);
}

/* Of the call `number`: only without PROT_EXEC in its third argument. */
static void allow_no_code(struct program *p, int number)
{
	add(p, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)number, 0, 4));
	load(p, argument(2));
	add(p, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, PROT_EXEC, 1, 0));
	answer(p, true);
	answer(p, false);
}

#define COUNT(array) (uint32_t)(sizeof(array) / sizeof *(array))

static void build(struct program *p, int program_pidfd, bool can_remove)
{
	const uint32_t clone_flags = SUBLET__TASK_CLONE_FLAGS, pidfd = (uint32_t)program_pidfd;

	load(p, offsetof(struct seccomp_data, arch));
	add(p, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCH, 1, 0));
	answer(p, false);
	load(p, offsetof(struct seccomp_data, nr));
	for (size_t i = 0; i < sizeof allowed / sizeof *allowed; i++)
		allow_if(p, (uint32_t)allowed[i]);
	allow_no_code(p, SYS_mmap);
	allow_no_code(p, SYS_mprotect);
	allow_values(p, SYS_ioctl, 1, ioctls, COUNT(ioctls));
	allow_values(p, SYS_fcntl, 1, fcntls, COUNT(fcntls));
	allow_values(p, SYS_prctl, 0, prctls, COUNT(prctls));
	allow_values(p, SYS_clone, 0, &clone_flags, 1);
	allow_zeros(p, SYS_setpriority); /* PRIO_PROCESS, of the calling thread */
	/* Its number would go to the next pidfd_open, of any process, and the right to signal with it. */
	allow_others(p, SYS_close, pidfd);
	if (can_remove)
		allow_if(p, SYS_unlinkat);
	if (program_pidfd >= 0)
		allow_values(p, SYS_pidfd_send_signal, 0, &pidfd, 1);
	answer(p, false);
}

static int capabilities_drop(void)
{
	struct __user_cap_header_struct head = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct data[2];
	struct rlimit locked = { 0, 0 };
	uint32_t keep = 0;

	if (syscall(SYS_capget, &head, data))
		return -errno;
	if (getrlimit(RLIMIT_MEMLOCK, &locked) || locked.rlim_cur != RLIM_INFINITY)
		keep = 1u << CAP_IPC_LOCK;
	data[0] = (struct __user_cap_data_struct){ data[0].effective & keep, data[0].permitted & keep, 0 };
	data[1] = (struct __user_cap_data_struct){ 0 };
	return syscall(SYS_capset, &head, data) ? -errno : 0;
}

/* From here on files can be removed from this directory only. False: the kernel cannot do that. */
static bool removal_limit(int dir)
{
	/* Directories are not to be removed anywhere. */
	const struct landlock_ruleset_attr rules = { .handled_access_fs = LANDLOCK_ACCESS_FS_REMOVE_FILE |
									  LANDLOCK_ACCESS_FS_REMOVE_DIR };
	const struct landlock_path_beneath_attr beneath = { .allowed_access = LANDLOCK_ACCESS_FS_REMOVE_FILE,
							    .parent_fd = dir };
	long set = dir < 0 ? -1 : syscall(SYS_landlock_create_ruleset, &rules, sizeof rules, 0u);

	if (set < 0)
		return false;
	bool done = !syscall(SYS_landlock_add_rule, set, LANDLOCK_RULE_PATH_BENEATH, &beneath, 0u) &&
		    !syscall(SYS_landlock_restrict_self, set, 0u);
	sublet__raw_close((int)set);
	return done;
}

int sublet__confine(int program_pidfd, int remove_dir, bool *can_remove)
{
	struct program p = { .count = 0 };
	struct sock_fprog filter;
	int err = capabilities_drop();

	if (err)
		return err;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return -errno;
	*can_remove = removal_limit(remove_dir);
	build(&p, program_pidfd, *can_remove);
	filter = (struct sock_fprog){ p.count, p.op };
	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0u, &filter) ? -errno : 0;
}
