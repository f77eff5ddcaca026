/* SPDX-License-Identifier: MIT */
/*
 * The control server: a guest in somebody else's process.
 *
 * The host is often an unmodified program whose malloc heap is the very memory being moved, so the
 * server owns all it uses: one anonymous mapping with a fixed number of slots. It calls neither
 * malloc nor stdio, takes no signal, and its descriptors are close-on-exec and kept above the low
 * numbers that programs expect to get. One thread accepts; each slot has a thread of its own, so
 * that a claim that waits for an hour is in nobody's way. An event loop would need fewer threads,
 * but claims block anyway.
 *
 * A driver that goes away with claims in its hands is the delicate case. Its process may have ended
 * its connection only, while its device still writes; so what it held stays claimed until a pidfd
 * of the process says that it ended. Even then the kernel may be busy for a moment: an io_uring is
 * torn down by a worker after the process is gone (io_ring_exit_work), and no interface tells
 * when. SUBLET__SETTLE_NS is the answer to that: not a proof, but long compared with an I/O.
 *
 * The host may fork: the child gets copies of all descriptors and none of the threads. It closes
 * them in fork_child, and everything here is shut down before it is closed, so that a copy that
 * escaped (a fork in the instant of an accept) keeps no connection alive.
 *
 * The host may also close every descriptor it does not know (daemons do), and get our numbers for
 * its own files. So each use of a descriptor is preceded by a look whether it is still the same
 * socket; and all threads poll one end of a socket pair whose other end goes away with the rest.
 */
#include "control/server.h"
#include "control/wire.h"
#include "linux/linux.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

/* Move a descriptor of ours out of the numbers that the program's own will get. */
static int out_of_the_way(int fd)
{
	struct rlimit limit;
	int high;

	if (fd < 0 || getrlimit(RLIMIT_NOFILE, &limit))
		return fd;
	high = fcntl(fd, F_DUPFD_CLOEXEC, limit.rlim_cur >= 1024 ? 512 : (int)(limit.rlim_cur / 2));
	if (high < 0)
		return fd;
	close(fd);
	return high;
}

/* Forget first, then close: fork_child must never close a number that is somebody else's already. */
static void close_fd(_Atomic int *fd)
{
	int old = atomic_exchange(fd, -1);

	if (old >= 0)
		close(old);
}

bool sublet__server_owns(int fd, uint64_t ino)
{
	struct stat st;

	return fd >= 0 && !fstat(fd, &st) && S_ISSOCK(st.st_mode) && st.st_ino == ino;
}

static uint64_t inode(int fd)
{
	struct stat st;

	return fstat(fd, &st) ? 0 : st.st_ino;
}

/* A full socket is as good: the thread wakes up anyway. */
static void wake_acceptor(struct sublet__server *server)
{
	if (sublet__server_owns(server->wake_fd[1], server->wake_ino))
		send(server->wake_fd[1], "", 1, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* ---- one slot ---- */

/* Give the claims of `from` to another slot that waits for the same process. Called with the lock. */
static bool join_lingering(struct sublet__server *server, struct sublet__slot *from)
{
	struct pollfd p = { .fd = from->pidfd, .events = POLLIN };

	/* once it has ended its pid may be another process; 0 is a process of another namespace */
	if (from->pid <= 0 || poll(&p, 1, 0) != 0)
		return false;
	for (uint32_t i = 0; i < SUBLET__SLOTS; i++) {
		struct sublet__slot *to = &server->slots[i];

		if (to->state != SUBLET__SLOT_LINGER || to->pid != from->pid || to->ended_ns ||
		    to->claim_count + from->claim_count > SUBLET__CLAIMS_PER_SLOT)
			continue;
		memcpy(to->claims + to->claim_count, from->claims, from->claim_count * sizeof(from->claims[0]));
		to->claim_count += from->claim_count;
		from->claim_count = 0;
		return true;
	}
	return false;
}

/* The connection is over. Called with the lock. */
static void hang_up(struct sublet__slot *slot)
{
	if (sublet__server_owns(slot->fd, slot->fd_ino)) {
		shutdown(slot->fd, SHUT_RDWR);
		close_fd(&slot->fd);
	}
	slot->fd = -1;
	if (slot->claim_count && !join_lingering(slot->server, slot)) {
		slot->ended_ns = 0;
		slot->state = SUBLET__SLOT_LINGER;
		wake_acceptor(slot->server);
		return;
	}
	close_fd(&slot->pidfd);
	slot->state = SUBLET__SLOT_FREE;
}

static void *slot_main(void *arg)
{
	struct sublet__slot *slot = arg;
	struct sublet__server *server = slot->server;

	pthread_mutex_lock(&server->lock);
	while (!server->stopping) {
		if (slot->state != SUBLET__SLOT_LIVE) {
			pthread_cond_wait(&slot->wake, &server->lock);
			continue;
		}
		pthread_mutex_unlock(&server->lock);
		sublet__connection_serve(slot);
		pthread_mutex_lock(&server->lock);
		hang_up(slot);
	}
	pthread_mutex_unlock(&server->lock);
	return NULL;
}

/* ---- the accepting thread ---- */

/* The peer's process, by what the kernel noted at connect(); by pid where it is too old for that. */
static int peer_pidfd(int fd, pid_t pid)
{
	socklen_t bytes = sizeof(int);
	int pidfd;

	if (!getsockopt(fd, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &bytes))
		return pidfd;
	if (errno != ENOPROTOOPT)
		return -errno;
	pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (pidfd < 0)
		return -errno;
	fcntl(pidfd, F_SETFD, FD_CLOEXEC);
	return pidfd;
}

/* Give the connection to a free slot. -EUSERS: there is none; -errno of its thread. */
static int assign(struct sublet__server *server, int fd, pid_t pid)
{
	struct sublet__slot *slot = NULL;
	int pidfd, err = 0;

	pthread_mutex_lock(&server->lock);
	for (uint32_t i = 0; i < SUBLET__SLOTS && !slot; i++)
		if (server->slots[i].state == SUBLET__SLOT_FREE)
			slot = &server->slots[i];
	if (!slot)
		err = -EUSERS;
	else if (!slot->has_thread) /* it waits for the lock first */
		err = sublet__linux_thread_start(&slot->thread, "sublet-conn", slot_main, slot);
	if (!err) {
		slot->has_thread = true;
		pidfd = peer_pidfd(fd, pid);
		slot->pidfd_error = pidfd < 0 ? pidfd : 0;
		slot->pidfd = pidfd < 0 ? -1 : out_of_the_way(pidfd);
		slot->pid = pid;
		slot->claim_count = 0;
		slot->fd_ino = inode(fd);
		slot->fd = fd;
		slot->state = SUBLET__SLOT_LIVE;
		pthread_cond_signal(&slot->wake);
	}
	pthread_mutex_unlock(&server->lock);
	return err;
}

static void refuse(int fd, int error)
{
	sublet__wire_send(fd, SUBLET__OP_ERROR, error, NULL, 0, -1, 0);
	shutdown(fd, SHUT_RDWR);
	close(fd);
}

/* Take one connection. -errno: leave the listening socket alone for a while. */
static int accept_one(struct sublet__server *server)
{
	struct ucred peer = { .uid = (uid_t)-1 };
	socklen_t bytes = sizeof(peer);
	int err, fd = accept4(server->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0)
		return errno == EAGAIN || errno == EINTR || errno == ECONNABORTED ? 0 : -errno;
	fd = out_of_the_way(fd);
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) || peer.uid != server->uid) {
		refuse(fd, -EACCES);
		return 0;
	}
	err = assign(server, fd, peer.pid);
	if (err)
		refuse(fd, err == -EUSERS ? -EUSERS : -EAGAIN);
	return 0;
}

/* Release what a driver held whose process has ended long enough. Owned by this thread: no lock. */
static void release_lingering(struct sublet__slot *slot)
{
	for (uint32_t i = 0; i < slot->claim_count; i++) {
		struct sublet_claim claim = { .id = slot->claims[i] };

		/* -EINVAL alone is possible, and means that it is free already */
		if (sublet_release(slot->server->arena, &claim))
			continue;
	}
	slot->claim_count = 0;
	close_fd(&slot->pidfd);
	pthread_mutex_lock(&slot->server->lock);
	slot->state = SUBLET__SLOT_FREE;
	pthread_mutex_unlock(&slot->server->lock);
}

/*
 * Collect the processes to watch in p[], their slots in who[]; release what is due. Returns how
 * many; *until_ns becomes the time of the next release.
 */
static uint32_t watch_lingering(struct sublet__server *server, struct pollfd *p, struct sublet__slot **who,
				uint64_t *until_ns)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < SUBLET__SLOTS; i++) {
		struct sublet__slot *slot = &server->slots[i];
		bool lingers;

		pthread_mutex_lock(&server->lock);
		lingers = slot->state == SUBLET__SLOT_LINGER;
		pthread_mutex_unlock(&server->lock);
		if (!lingers)
			continue;
		if (!slot->ended_ns) {
			p[n] = (struct pollfd){ .fd = slot->pidfd, .events = POLLIN };
			who[n++] = slot;
			continue;
		}
		uint64_t due = slot->ended_ns + SUBLET__SETTLE_NS;
		if (due <= sublet__wire_now_ns())
			release_lingering(slot);
		else if (due < *until_ns)
			*until_ns = due;
	}
	return n;
}

/* Note which watched processes have ended. */
static void note_ended(struct sublet__server *server, const struct pollfd *p, struct sublet__slot **who, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		if (!p[i].revents)
			continue;
		pthread_mutex_lock(&server->lock); /* join_lingering reads it */
		who[i]->ended_ns = sublet__wire_now_ns();
		pthread_mutex_unlock(&server->lock);
	}
}

static int poll_until(struct pollfd *p, uint32_t n, uint64_t until_ns)
{
	uint64_t now = sublet__wire_now_ns();
	uint64_t left = now < until_ns ? until_ns - now : 0;
	struct timespec t = { .tv_sec = (time_t)(left / SUBLET_SEC), .tv_nsec = (long)(left % SUBLET_SEC) };

	return ppoll(p, n, until_ns == SUBLET__FOREVER ? NULL : &t, NULL);
}

static void *server_main(void *arg)
{
	struct sublet__server *server = arg;
	struct pollfd p[2 + SUBLET__SLOTS];
	struct sublet__slot *who[SUBLET__SLOTS];
	uint64_t pause_until = 0; /* no descriptors, no memory: do not spin on a socket that stays readable */

	while (!server->stopping) {
		char drain[64];
		uint64_t until = SUBLET__FOREVER;
		uint32_t n = watch_lingering(server, p + 2, who, &until);

		if (pause_until && pause_until <= sublet__wire_now_ns())
			pause_until = 0;
		if (pause_until && pause_until < until)
			until = pause_until;
		p[0] = (struct pollfd){ .fd = server->wake_fd[0], .events = POLLIN };
		p[1] = (struct pollfd){ .fd = pause_until ? -1 : server->listen_fd, .events = POLLIN };
		if (poll_until(p, n + 2, until) < 0 && errno != EINTR)
			break;
		if (!sublet__server_owns(server->listen_fd, server->listen_ino)) {
			server->listen_fd = -1;
			break;
		}
		if (p[0].revents && recv(server->wake_fd[0], drain, sizeof(drain), MSG_DONTWAIT) <= 0 &&
		    errno != EAGAIN)
			break;
		note_ended(server, p + 2, who, n);
		if (p[1].revents && accept_one(server))
			pause_until = sublet__wire_now_ns() + 100 * SUBLET_MS;
	}
	return NULL;
}

/* ---- life ---- */

/* Close what fork_child may close: descriptors only. */
static void close_all(struct sublet__server *server)
{
	close_fd(&server->listen_fd);
	close_fd(&server->wake_fd[0]);
	close_fd(&server->wake_fd[1]);
	close_fd(&server->dir_fd);
	for (uint32_t i = 0; i < SUBLET__SLOTS; i++) {
		close_fd(&server->slots[i].fd);
		close_fd(&server->slots[i].pidfd);
	}
}

static void fork_child(void *arg)
{
	close_all(arg); /* pid stays the parent's: stop() in the child does nothing */
}

/* Unlink, wake everybody, and wait for them. At most one slice of a claim long. */
static void stop_threads(struct sublet__server *server)
{
	unlinkat(server->dir_fd, server->file, 0);
	pthread_mutex_lock(&server->lock);
	server->stopping = true;
	for (uint32_t i = 0; i < SUBLET__SLOTS; i++) {
		if (sublet__server_owns(server->slots[i].fd, server->slots[i].fd_ino))
			shutdown(server->slots[i].fd, SHUT_RDWR);
		pthread_cond_signal(&server->slots[i].wake);
	}
	pthread_mutex_unlock(&server->lock);
	wake_acceptor(server);
	pthread_join(server->thread, NULL);
	for (uint32_t i = 0; i < SUBLET__SLOTS; i++)
		if (server->slots[i].has_thread)
			pthread_join(server->slots[i].thread, NULL);
}

static void free_server(struct sublet__server *server)
{
	close_all(server);
	munmap(server, server->map_bytes);
}

/* The arena goes away. What drivers still hold stays theirs: the kernel keeps the pages for them. */
static void stop(void *arg)
{
	struct sublet__server *server = arg;

	if (server->pid != getpid())
		return;
	stop_threads(server);
	free_server(server);
}

static int new_server(struct sublet_arena *arena, const char *name, struct sublet__server **out)
{
	size_t used = 0, bytes = sizeof(struct sublet__server);
	struct sublet__server *server;

	server = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (server == MAP_FAILED)
		return -errno;
	server->arena = arena;
	server->map_bytes = bytes;
	server->pid = getpid();
	server->uid = geteuid();
	server->listen_fd = server->dir_fd = server->wake_fd[0] = server->wake_fd[1] = -1;
	sublet__text_append(server->name, sizeof(server->name), &used, name);
	sublet__instance_file(server->file, name, server->pid);
	pthread_mutex_init(&server->lock, NULL);
	pthread_mutex_init(&server->memcpy_lock, NULL);
	for (uint32_t i = 0; i < SUBLET__SLOTS; i++) {
		struct sublet__slot *slot = &server->slots[i];

		slot->server = server;
		slot->fd = slot->pidfd = -1;
		pthread_cond_init(&slot->wake, NULL);
	}
	*out = server;
	return 0;
}

/* A name that is taken: by a live instance, or by a file that a dead one of the same pid left. */
static int clear_stale(const struct sublet__server *server)
{
	int fd = sublet__instance_reach(server->dir_fd, server->file);

	if (fd >= 0)
		close(fd);
	return fd == -ECONNREFUSED || fd == -ENOENT ? 0 : -EEXIST;
}

/*
 * Listen under a hidden name first, then link the final one: a socket that is bound but does not
 * listen yet looks dead, and `sublet list` removes the dead.
 */
static int publish(struct sublet__server *server)
{
	char hidden[SUBLET__FILE_BYTES];
	size_t used = 0;
	int err;

	sublet__text_append(hidden, sizeof(hidden), &used, ".new.");
	sublet__text_append_u64(hidden, sizeof(hidden), &used, (uint64_t)syscall(SYS_gettid));
	unlinkat(server->dir_fd, hidden, 0); /* of a dead process that had this number */
	err = sublet__instance_bind(server->listen_fd, server->dir_fd, hidden);
	if (err)
		return err;
	if (listen(server->listen_fd, 64))
		err = -errno;
	if (!err && linkat(server->dir_fd, hidden, server->dir_fd, server->file, 0)) {
		err = errno == EEXIST ? clear_stale(server) : -errno;
		if (!err && linkat(server->dir_fd, hidden, server->dir_fd, server->file, 0))
			err = -errno;
	}
	unlinkat(server->dir_fd, hidden, 0);
	return err;
}

static int open_sockets(struct sublet__server *server)
{
	int pair[2], fd = sublet__instance_dir_open(true);

	if (fd < 0)
		return fd;
	server->dir_fd = out_of_the_way(fd);
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair))
		return -errno;
	server->wake_fd[0] = out_of_the_way(pair[0]);
	server->wake_fd[1] = out_of_the_way(pair[1]);
	server->wake_ino = inode(server->wake_fd[1]);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	server->listen_fd = out_of_the_way(fd);
	server->listen_ino = inode(server->listen_fd);
	return publish(server);
}

int sublet_arena_serve(struct sublet_arena *arena, const char *name)
{
	struct sublet__server *server = NULL;
	struct sublet__linux_companion companion = { .stop = stop, .fork_child = fork_child };
	int err;

	err = sublet__instance_name_check(name);
	if (err)
		return err;
	err = new_server(arena, name, &server);
	if (err)
		return err;
	err = open_sockets(server);
	if (err)
		goto free;
	err = sublet__linux_thread_start(&server->thread, "sublet-control", server_main, server);
	if (err)
		goto unlink;
	companion.arg = server;
	err = sublet__linux_companion_add(arena, &companion);
	if (err) {
		stop(server);
		return err;
	}
	return 0;

unlink:
	unlinkat(server->dir_fd, server->file, 0);
free:
	free_server(server);
	return err;
}
