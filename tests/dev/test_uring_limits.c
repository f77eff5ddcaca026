/* SPDX-License-Identifier: MIT */
/*
 * dev/uring.c at its limits (G5): too many devices, no descriptors, no locked memory, no io_uring at all; and what a child
 * of fork() has of it.
 */
#include "uring_fixture.h"

#include <sublet/stats.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void opens_and_refusals(void **unused)
{
	struct sublet_uring_options o = { SUBLET_OPTIONS(sublet_uring_options), .bos_max = 16384 };
	struct sublet_device *device[16], *more = NULL;
	struct world w;
	(void)unused;

	world_open(&w, 0);
	uint32_t fds = fds_count();
	uint64_t pinned_kib = status_kib("VmPin");
	assert_int_equal(sublet_device_open_uring(w.arena, &o, &more), -EINVAL);
	o.size_bytes = 0;
	o.bos_max = 0;
	assert_int_equal(sublet_device_open_uring(w.arena, &o, &more), -EINVAL);
	for (uint32_t i = 0; i < 15; i++)
		assert_int_equal(sublet_device_open_uring(w.arena, NULL, &device[i]), 0);
	assert_int_equal(sublet_device_open_uring(w.arena, NULL, &more), -ENOSPC);
	assert_null(more);
	struct sublet_device *first = w.device;
	for (uint32_t i = 0; i < 15; i++) {
		w.device = device[i];
		world_works(&w);
		sublet_device_close(device[i]);
	}
	w.device = first;
	world_works(&w);
	assert_int_equal(fds_count(), fds);
	assert_int_equal(status_kib("VmPin"), pinned_kib);
	/* One job at a time. */
	o = (struct sublet_uring_options){ SUBLET_OPTIONS(sublet_uring_options), .jobs_max = 1,
					   .bos_max = 1 };
	assert_int_equal(sublet_device_open_uring(w.arena, &o, &w.device), 0);
	struct sublet_fence fence[4];
	struct buffer b;
	buffer_open(&w, TRACKED, SUBLET_MIB, 0, &b);
	for (uint32_t i = 0; i < 4; i++) {
		struct sublet_job job = job_of(&w, SUBLET_JOB_WRITE, SUBLET_MIB, 0);
		assert_int_equal(sublet_submit(w.device, &job, &b.bo, 1, &fence[i]), 0);
	}
	for (uint32_t i = 0; i < 4; i++)
		assert_int_equal(fence_end(&fence[i], NULL), 0);
	buffer_close(&w, &b);
	sublet_device_close(w.device);
	w.device = first;
	world_close(&w);
}

/*
 * What the device says of itself is what the kernel at hand takes: 1 GiB in one entry and no page more, 16,384 entries and not
 * one more. One page of memory, mapped again and again, is as good as a GiB of them.
 */
static void limits_are_the_kernels(void **unused)
{
	const uint64_t most = 16384, piece = 2 * SUBLET_MIB;
	struct io_uring ring;
	struct world w;
	(void)unused;

	world_open(&w, 0);
	uint64_t bytes = info_of(w.device).bo_bytes_max;
	world_close(&w);
	int fd = memfd_create("piece", MFD_CLOEXEC);
	assert_true(fd >= 0 && !ftruncate(fd, (off_t)piece));
	char *memory =
		mmap(NULL, bytes + piece, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	assert_true(memory != MAP_FAILED);
	for (uint64_t at = 0; at < bytes + piece; at += piece)
		assert_true(mmap(memory + at, piece, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) !=
			    MAP_FAILED);
	assert_int_equal(io_uring_queue_init(4, &ring, 0), 0);
	assert_int_equal(io_uring_register_buffers_sparse(&ring, (unsigned)most + 1), -EINVAL);
	assert_int_equal(io_uring_register_buffers_sparse(&ring, (unsigned)most), 0);
	struct iovec entry = { memory, bytes + 4096 };
	assert_int_equal(io_uring_register_buffers_update_tag(&ring, 0, &entry, NULL, 1), -EFAULT);
	entry.iov_len = bytes;
	int n = io_uring_register_buffers_update_tag(&ring, 0, &entry, NULL, 1);
	if (n != -ENOMEM) /* RLIMIT_MEMLOCK */
		assert_int_equal(n, 1);
	io_uring_queue_exit(&ring);
	munmap(memory, bytes + piece);
	close(fd);
}

/* A tracked buffer that no entry can hold is refused when it is made, before anything changes (G5); a pinned one needs none. */
static void too_large_for_an_entry(void **unused)
{
	const uint64_t most = SUBLET_GIB, page = 4096;
	struct sublet_uring_options o = { SUBLET_OPTIONS(sublet_uring_options), .bos_max = 1 };
	struct sublet_stats stats = { SUBLET_OPTIONS(sublet_stats) };
	struct sublet_device *device;
	struct sublet_bo bo;
	struct world w;
	(void)unused;

	world_open(&w, 0);
	assert_int_equal(sublet_device_open_uring(w.arena, &o, &device), 0);
	assert_int_equal(info_of(device).bo_bytes_max, most);
	void *memory; /* what lies behind it need not be mapped before the first job */
	assert_int_equal(sublet_map(w.mm, SUBLET_MIB, SUBLET_MOVABLE, &memory), 0);
	char *low = memory;
	assert_int_equal(sublet_bo_create(device, w.mm, low, most + 1, SUBLET_BO_TRACKED, NULL, &bo), -E2BIG);
	/* no more than 1 GiB, but it touches a page more */
	assert_int_equal(sublet_bo_create(device, w.mm, low + page / 2, most, SUBLET_BO_TRACKED, NULL, &bo),
			 -E2BIG);
	assert_int_equal(sublet_arena_stats(w.arena, &stats), 0);
	assert_int_equal(stats.notifiers, 0);
	assert_int_equal(sublet_bo_create(device, w.mm, low, most, SUBLET_BO_TRACKED, NULL, &bo), 0);
	assert_int_equal(sublet_bo_destroy(&bo), 0);
	sublet_device_close(device);
	world_close(&w);
}

/* No more descriptors: whichever is the one that is missing, nothing is left behind (G5). */
static void no_descriptors(void **unused)
{
	struct sublet_device *device = NULL;
	struct rlimit before, few;
	struct world w;
	bool opened = false;
	(void)unused;

	world_open(&w, 0);
	uint32_t fds = fds_count() - 3; /* not the two dots, nor what it reads them with */
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
	/* Ours are high up: a limit below them leaves the low numbers. */
	for (few = before, few.rlim_cur = 3; few.rlim_cur < 64 && !opened; few.rlim_cur++) {
		assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
		int err = sublet_device_open_uring(w.arena, NULL, &device);
		assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
		opened = !err;
		if (err)
			assert_int_equal(err, -EMFILE);
		if (err)
			assert_int_equal(fds_count() - 3, fds);
	}
	assert_true(opened);
	sublet_device_close(device);
	assert_int_equal(fds_count() - 3, fds);
	world_close(&w);
}

/* Run it in a process of its own, which exits with 0 if all is well and 77 to skip. */
static void in_child(int (*run)(void))
{
	int status;

	fflush(stdout);
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (!pid)
		_exit(run());
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	if (WEXITSTATUS(status) == 77)
		skip();
	assert_int_equal(WEXITSTATUS(status), 0);
}

/* Lose the right to lock what one likes. */
static bool memlock_limit(uint64_t bytes)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];
	struct rlimit limit = { bytes, bytes };

	if (setrlimit(RLIMIT_MEMLOCK, &limit) || syscall(SYS_capget, &head, data))
		return false;
	data[0].effective &= ~(1u << CAP_IPC_LOCK);
	data[0].permitted &= ~(1u << CAP_IPC_LOCK);
	return !syscall(SYS_capset, &head, data);
}

static struct sublet_arena *small_arena(void)
{
	struct sublet_arena_options options = { SUBLET_OPTIONS(sublet_arena_options),
						.area_bytes = 4 * SUBLET_MIB, .normal_bytes = 2 * SUBLET_MIB,
						.backing = SUBLET_BACKING_MEMFD };
	struct sublet_arena *arena;

	return sublet_arena_create(&options, &arena) ? NULL : arena;
}

static int child_memlock_none(void)
{
	struct sublet_arena *arena = small_arena();
	struct sublet_device *device = NULL;

	if (!arena || !memlock_limit(SUBLET_MIB))
		return 77;
	uint32_t fds = fds_count();
	for (uint32_t i = 0; i < 3; i++)
		must(sublet_device_open_uring(arena, NULL, &device) == -ENOMEM);
	must(!device && fds_count() == fds && !status_kib("VmPin"));
	assert_int_equal(sublet_arena_destroy(arena), 0);
	return 0;
}

static void memlock_none(void **unused)
{
	(void)unused;
	in_child(child_memlock_none);
}

/* Enough for the arena and one of two tracked buffers: each job evicts the other (LRU). */
static int child_memlock_tight(void)
{
	struct sublet_arena *arena = small_arena();
	struct sublet_device *device;
	struct sublet_bo bo[3];
	void *memory;

	if (!arena || !memlock_limit(6 * SUBLET_MIB + 768 * SUBLET_KIB))
		return 77;
	must(sublet_device_open_uring(arena, NULL, &device) == 0);
	must(sublet_map(sublet_arena_mm(arena), 2 * SUBLET_MIB, SUBLET_MOVABLE, &memory) == 0);
	for (uint32_t i = 0; i < 3; i++)
		must(sublet_bo_create(device, sublet_arena_mm(arena), (char *)memory + i * 512 * SUBLET_KIB,
				      i < 2 ? 512 * SUBLET_KIB : SUBLET_MIB, SUBLET_BO_TRACKED, "x",
				      &bo[i]) == 0);
	int fd = file_open(0);
	must(fd >= 0);
	struct sublet_job job = { SUBLET_OPTIONS(sublet_job), .op = SUBLET_JOB_WRITE, .fd = fd,
				  .bytes = 4096 };
	for (uint32_t i = 0; i < 8; i++) {
		struct sublet_fence fence;
		bool done;
		must(sublet_submit(device, &job, &bo[i % 2], 1, &fence) == 0);
		must(sublet_fence_wait(&fence, SUBLET_SEC, &done, NULL) == 0);
		must(sublet_fence_put(&fence) == 0);
	}
	must(info_of(device).evictions_lru == 7);
	must(sublet_submit(device, &job, &bo[2], 1, NULL) == -ENOMEM);
	must(sublet_submit(device, &job, &bo[0], 1, NULL) == 0);
	sublet_device_close(device);
	must(!status_kib("VmPin"));
	assert_int_equal(sublet_arena_destroy(arena), 0);
	return 0;
}

static void memlock_tight(void **unused)
{
	(void)unused;
	in_child(child_memlock_tight);
}

/* io_uring is forbidden, as containers do it. */
static int child_forbidden(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof code / sizeof *code, code };
	struct sublet_arena *arena = small_arena();
	struct sublet_device *device;

	if (!arena || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
	    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
		return 77;
	must(sublet_device_open_uring(arena, NULL, &device) == -EOPNOTSUPP);
	assert_int_equal(sublet_arena_destroy(arena), 0);
	return 0;
}

static void forbidden(void **unused)
{
	(void)unused;
	in_child(child_forbidden);
}

/* ---- fork ---- */

static uint32_t rings_count(void)
{
	DIR *dir = opendir("/proc/self/fd");
	char target[64];
	uint32_t count = 0;

	must(dir);
	for (struct dirent *e; (e = readdir(dir));) {
		ssize_t n = readlinkat(dirfd(dir), e->d_name, target, sizeof target - 1);
		target[n > 0 ? n : 0] = 0;
		count += strstr(target, "io_uring") != NULL;
	}
	closedir(dir);
	return count;
}

/* Somebody closes all descriptors while a job is in flight: the device dies, and nobody with it. */
static int close_under_job(void)
{
	struct sublet_arena_options options = { SUBLET_OPTIONS(sublet_arena_options),
						.area_bytes = 64 * SUBLET_MIB };
	const uint64_t bytes = 48 * SUBLET_MIB; /* more than is in flight at once */
	struct world w;
	struct sublet_fence fence;
	struct sublet_bo bo;
	void *memory;

	if (sublet_arena_create(&options, &w.arena) || sublet_device_open_uring(w.arena, NULL, &w.device))
		return 77;
	w.mm = sublet_arena_mm(w.arena);
	w.fd = file_open(O_DIRECT);
	w.fd = w.fd < 0 ? file_open(0) : w.fd;
	must(w.fd >= 0 && !sublet_map(w.mm, bytes, SUBLET_MOVABLE, &memory));
	must(!sublet_bo_create(w.device, w.mm, memory, bytes, SUBLET_BO_TRACKED, NULL, &bo));
	struct sublet_job job = job_of(&w, SUBLET_JOB_WRITE, bytes, 0);
	job.timeout_ns = 50 * SUBLET_MS;
	must(!sublet_submit(w.device, &job, &bo, 1, &fence));
	/* All of ours are higher than the file's, which stays: its end is no news to the ring. */
	must(!close_range((unsigned)w.fd + 1, ~0u, 0));
	int status = sublet_fence_wait(&fence, 10 * SUBLET_SEC, NULL, NULL);
	/* 0: this thread was not on a CPU for as long as the job took */
	must(status == -ENODEV || !status);
	sleep(4); /* its thread goes on trying to cancel, 50 times a second at most */
	must(!status || info_of(w.device).dead);
	return 0;
}

static void descriptors_closed(void **unused)
{
	(void)unused;

	in_child(close_under_job);
}

/* A child has nothing of the ring; what it does, and that it lives on, changes nothing for the parent. */
static void forked_child(void **unused)
{
	const uint64_t bytes = 4 * SUBLET_MIB;
	struct buffer b[WAYS];
	struct world w;
	int go[2], status;
	(void)unused;

	world_open(&w, 0);
	for (enum way way = CLAIMED; way < WAYS; way++) {
		buffer_open(&w, way, bytes, 0, &b[way]);
		words_fill(b[way].memory, bytes, 0, way);
		struct sublet_job job = job_of(&w, SUBLET_JOB_WRITE, bytes, way * bytes);
		assert_int_equal(job_do(&w, &job, &b[way].bo, NULL), 0);
	}
	assert_int_equal(rings_count(), 1);
	assert_int_equal(pipe(go), 0);
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		char byte;
		close(go[1]);
		must(rings_count() == 0);
		memset(b[TRACKED].memory, 0x77, bytes); /* its own */
		_exit(read(go[0], &byte, 1) ? 1 : 0);
	}
	assert_int_equal(rings_count(), 1);
	for (uint32_t round = 0; round < 2; round++) {
		for (enum way way = CLAIMED; way < WAYS; way++) {
			struct sublet_job job = job_of(&w, SUBLET_JOB_READ, bytes, way * bytes);
			job.timeout_ns = 500 * SUBLET_MS;
			memset(b[way].memory, 0, bytes);
			int err = job_do(&w, &job, &b[way].bo, NULL);
			for (uint32_t i = 0; err == -EBUSY && round && i < 20; i++) {
				usleep(100000); /* until what the child shared is the parent's again */
				err = job_do(&w, &job, &b[way].bo, NULL);
			}
			/* What a device wrote to memory that a child shares would be lost. */
			assert_int_equal(err, way == TRACKED && !round ? -EBUSY : 0);
			if (!err)
				words_check(b[way].memory, bytes, 0, way);
		}
		if (!round) {
			close(go[1]);
			assert_int_equal(waitpid(pid, &status, 0), pid);
			assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
		}
	}
	close(go[0]);
	for (enum way way = CLAIMED; way < WAYS; way++)
		buffer_close(&w, &b[way]);
	world_close(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(memlock_none),
		cmocka_unit_test(memlock_tight),
		cmocka_unit_test(forbidden),
		cmocka_unit_test(opens_and_refusals),
		cmocka_unit_test(no_descriptors),
		cmocka_unit_test(descriptors_closed),
		cmocka_unit_test(forked_child),
		cmocka_unit_test(limits_are_the_kernels),
		cmocka_unit_test(too_large_for_an_entry),
	};
	return cmocka_run_group_tests_name("uring-limits", tests, NULL, NULL);
}
