/* SPDX-License-Identifier: MIT */
#include "slow_file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define NODE_FILE     2u
#define HELD_MAX      256u
#define REQUEST_BYTES (2u << 20)
#define PIECE_PAGES   256u

struct held {
	struct fuse_in_header head;
	uint64_t offset;
	uint32_t size;
	char *data; /* of a write */
};

/* Of both processes. */
struct shared {
	_Atomic bool holds;
	_Atomic bool halves;
	_Atomic uint64_t fail_at;
	_Atomic int fail_error;
	_Atomic uint32_t held;
	char bytes[SLOW_FILE_BYTES];
};

static struct {
	int fuse_fd;
	uint32_t count; /* of requests, for halving */
	uint32_t held_count;
	struct held held[HELD_MAX];
} server;

static struct shared *shared;
static char dir[64];
static pid_t server_pid;

static void answer(uint64_t unique, int error, const void *data, size_t bytes)
{
	struct fuse_out_header head = { .unique = unique,
					.error = error,
					.len = (uint32_t)(sizeof head + (error ? 0 : bytes)) };
	struct iovec part[2] = { { &head, sizeof head }, { (void *)(uintptr_t)data, error ? 0 : bytes } };

	if (writev(server.fuse_fd, part, 2) < 0 && errno != ENOENT && errno != ENODEV)
		perror("slow file");
}

static struct fuse_attr attr_of(uint64_t node)
{
	bool is_file = node == NODE_FILE;

	return (struct fuse_attr){ .ino = node,
				   .size = is_file ? SLOW_FILE_BYTES : 0,
				   .nlink = 1,
				   .blksize = 4096,
				   .mode = is_file ? S_IFREG | 0600 : S_IFDIR | 0700 };
}

static void transfer(const struct held *h)
{
	uint32_t size = h->size;

	if (h->offset >= SLOW_FILE_BYTES)
		size = 0;
	else if (size > SLOW_FILE_BYTES - h->offset)
		size = (uint32_t)(SLOW_FILE_BYTES - h->offset);
	if (shared->fail_error && shared->fail_at >= h->offset && shared->fail_at < h->offset + h->size) {
		answer(h->head.unique, shared->fail_error, NULL, 0);
		shared->fail_error = 0;
	} else {
		if (shared->halves && h->head.opcode == FUSE_READ && ++server.count % 2 && size > 4096)
			size = size / 2 / 512 * 512;
		if (h->head.opcode == FUSE_READ) {
			answer(h->head.unique, 0, shared->bytes + h->offset, size);
		} else {
			struct fuse_write_out out = { .size = size };
			memcpy(shared->bytes + h->offset, h->data, size);
			answer(h->head.unique, 0, &out, sizeof out);
		}
	}
	free(h->data);
}

static void read_or_write(const struct fuse_in_header *head)
{
	const struct fuse_read_in *in = (const void *)(head + 1); /* a write begins in the same way */
	struct held h = { *head, in->offset, in->size, NULL };

	if (head->opcode == FUSE_WRITE) {
		h.data = malloc(h.size);
		memcpy(h.data, (const char *)(head + 1) + sizeof(struct fuse_write_in), h.size);
	}
	if (shared->holds && server.held_count < HELD_MAX)
		server.held[server.held_count++] = h;
	else
		transfer(&h);
	shared->held = server.held_count;
}

static void request(const struct fuse_in_header *head)
{
	switch (head->opcode) {
	case FUSE_INIT: {
		const struct fuse_init_in *in = (const void *)(head + 1);
		struct fuse_init_out out = { .major = FUSE_KERNEL_VERSION,
					     .minor = FUSE_KERNEL_MINOR_VERSION,
					     .max_readahead = in->max_readahead,
					     .max_write = PIECE_PAGES * 4096,
					     .flags = FUSE_ASYNC_DIO | FUSE_MAX_PAGES | FUSE_BIG_WRITES,
					     .max_background = 64,
					     .max_pages = PIECE_PAGES };
		answer(head->unique, 0, &out, sizeof out);
		return;
	}
	case FUSE_LOOKUP: {
		struct fuse_entry_out out = { .nodeid = NODE_FILE,
					      .attr_valid = 3600,
					      .attr = attr_of(NODE_FILE) };
		answer(head->unique, 0, &out, sizeof out);
		return;
	}
	case FUSE_GETATTR: {
		struct fuse_attr_out out = { .attr_valid = 3600, .attr = attr_of(head->nodeid) };
		answer(head->unique, 0, &out, sizeof out);
		return;
	}
	case FUSE_OPEN: {
		struct fuse_open_out out = { .open_flags = FOPEN_DIRECT_IO };
		answer(head->unique, 0, &out, sizeof out);
		return;
	}
	case FUSE_READ:
	case FUSE_WRITE:
		read_or_write(head);
		return;
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT:
		return; /* wants no answer */
	case FUSE_RELEASE:
		answer(head->unique, 0, NULL, 0);
		return;
	default:
		answer(head->unique, -ENOSYS, NULL, 0);
	}
}

static void serve(void)
{
	static char buffer[REQUEST_BYTES] __attribute__((aligned(8)));
	struct pollfd poll_fd = { .fd = server.fuse_fd, .events = POLLIN };

	for (;;) {
		if (poll(&poll_fd, 1, 2) > 0) {
			ssize_t n = read(server.fuse_fd, buffer, sizeof buffer);
			if (n >= (ssize_t)sizeof(struct fuse_in_header))
				request((const void *)buffer);
			else if (n < 0 && errno != EINTR && errno != ENOENT && errno != EAGAIN)
				_exit(0); /* ENODEV: unmounted */
		}
		for (uint32_t i = 0; !shared->holds && i < server.held_count; i++)
			transfer(&server.held[i]);
		if (!shared->holds)
			server.held_count = 0;
		shared->held = server.held_count;
	}
}

static bool mount_it(void)
{
	char options[96];

	snprintf(dir, sizeof dir, "/tmp/sublet-slow-XXXXXX");
	if (!mkdtemp(dir))
		return false;
	server.fuse_fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=%d,group_id=%d", server.fuse_fd,
		 (int)getuid(), (int)getgid());
	if (server.fuse_fd >= 0 && !mount("slow", dir, "fuse", MS_NOSUID | MS_NODEV, options))
		return true;
	rmdir(dir);
	return false;
}

bool slow_file_prepare(void)
{
	if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL))
		return false;
	shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED || !mount_it())
		return false;
	server_pid = fork();
	if (!server_pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		serve();
	}
	/* Only the server has it: when that ends nobody waits for an answer any more. */
	close(server.fuse_fd);
	return server_pid > 0;
}

void slow_file_finish(void)
{
	umount2(dir, MNT_DETACH);
	rmdir(dir);
	kill(server_pid, SIGKILL);
	waitpid(server_pid, NULL, 0);
}

int slow_file_open(void)
{
	char path[96];

	memset(shared->bytes, 0, SLOW_FILE_BYTES);
	shared->halves = false;
	shared->fail_error = 0;
	slow_file_go();
	snprintf(path, sizeof path, "%s/file", dir);
	return open(path, O_RDWR | O_CLOEXEC);
}

char *slow_file_bytes(void)
{
	return shared->bytes;
}

void slow_file_hold(void)
{
	shared->holds = true;
}

void slow_file_go(void)
{
	shared->holds = false;
	while (shared->held)
		usleep(500);
}

uint32_t slow_file_held(void)
{
	return shared->held;
}

void slow_file_halve(bool on)
{
	shared->halves = on;
}

void slow_file_fail(uint64_t at, int error)
{
	shared->fail_at = at;
	shared->fail_error = error;
}
