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
 * The process itself knows better: over another connection it may release what it still holds. What it was never
 * told of, because nobody read the reply, it does not hold at all (connection.c).
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
#include "core/arena.h"
#include "linux/helper.h"
#include "linux/linux.h"
#include "linux/raw.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

/* Keep a new descriptor, out of the program's way. A negative one is an -errno, and returned. */
static int fd_keep(struct sublet__fd *out, int fd)
{
	struct stat st;

	if (fd < 0)
		return fd;
	fd = sublet__linux_fd_high(fd);
	if (sublet__helper_is_here()) {
		out->fd = fd;
		return 0;
	}
	if (fstat(fd, &st)) {
		close(fd);
		return -EBADF;
	}
	out->ino = st.st_ino;
	out->dev = st.st_dev;
	out->fd = fd; /* last: fork_child must find the identity that belongs to it */
	return 0;
}

bool sublet__fd_ours(const struct sublet__fd *fd)
{
	int number = fd->fd;
	struct stat st;

	/* The helper's numbers are its own. */
	return number >= 0 && (sublet__helper_is_here() ||
			       (!fstat(number, &st) && st.st_ino == fd->ino && st.st_dev == fd->dev));
}

/* Forget first, then close: fork_child must never close a number that is somebody else's already. */
static void fd_close(struct sublet__fd *fd)
{
	bool ours = sublet__fd_ours(fd);
	int old = atomic_exchange(&fd->fd, -1);

	if (ours)
		close(old);
}

/* A full socket is as good: the thread wakes up anyway. */
static void wake_acceptor(struct sublet__server *server)
{
	if (sublet__fd_ours(&server->wake[1]))
		send(server->wake[1].fd, "", 1, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* ---- one slot ---- */

/* Whether a process has not ended. As long as it has not, its pid is nobody else's. */
static bool is_alive(const struct sublet__slot *slot)
{
	struct pollfd p = { .fd = slot->pidfd.fd, .events = POLLIN };

	/* pid 0 is a process of another namespace */
	return slot->pid > 0 && p.fd >= 0 && poll(&p, 1, 0) == 0;
}

/* Whether `other` is what is left of an earlier connection of the same process. Called with the lock. */
static bool is_left_by(const struct sublet__slot *other, const struct sublet__slot *slot)
{
	return other->state == SUBLET__SLOT_LINGER && other->pid == slot->pid && !other->ended_ns;
}

/* Give the claims of `from` to another slot that waits for the same process. Called with the lock. */
static bool join_lingering(struct sublet__server *server, struct sublet__slot *from)
{
	if (!is_alive(from))
		return false;
	for (uint32_t i = 0; i < SUBLET__SLOTS; i++) {
		struct sublet__slot *to = &server->slots[i];

		if (!is_left_by(to, from) || to->claim_count + from->claim_count > SUBLET__CLAIMS_PER_SLOT)
			continue;
		memcpy(to->claims + to->claim_count, from->claims,
		       from->claim_count * sizeof(from->claims[0]));
		to->claim_count += from->claim_count;
		from->claim_count = 0;
		return true;
	}
	return false;
}

/* Take id out of what earlier connections of the process left. Called with the lock. */
static bool orphan_take(struct sublet__slot *slot, uint64_t id)
{
	struct sublet__server *server = slot->server;

	for (uint32_t i = 0; i < SUBLET__SLOTS; i++) {
		struct sublet__slot *left = &server->slots[i];

		/* with its process alive the pid of both is the same process's */
		if (!is_left_by(left, slot) || !is_alive(left))
			continue;
		for (uint32_t k = 0; k < left->claim_count; k++) {
			if (left->claims[k] != id)
				continue;
			left->claims[k] = left->claims[--left->claim_count];
			if (!left->claim_count) { /* nothing to wait for: the accepting thread frees the slot */
				left->ended_ns = 1;
				wake_acceptor(server);
			}
			return true;
		}
	}
	return false;
}

/* Whether a connection of the process was closed and its thread has not come to that yet. With the lock. */
static bool orphans_to_come(const struct sublet__slot *slot)
{
	for (uint32_t i = 0; i < SUBLET__SLOTS; i++) {
		const struct sublet__slot *other = &slot->server->slots[i];
		struct pollfd p = { .fd = other->conn.fd, .events = POLLRDHUP };

		if (other != slot && other->state == SUBLET__SLOT_LIVE && other->pid == slot->pid &&
		    poll(&p, 1, 0) > 0)
			return true;
	}
	return false;
}

int sublet__server_release_orphan(struct sublet__slot *slot, uint64_t id)
{
	/* a thread may be in a slice of a claim */
	uint64_t until = sublet__wire_until(2 * SUBLET__CLAIM_SLICE_NS);
	struct sublet_claim claim = { .id = id };
	bool found, more = true;

	if (!is_alive(slot))
		return -EINVAL;
	for (;;) {
		sublet__lock(&slot->server->lock);
		found = orphan_take(slot, id);
		more = !found && !slot->server->stopping && orphans_to_come(slot);
		sublet__unlock(&slot->server->lock);
		if (!more || sublet__wire_now_ns() >= until)
			break;
		nanosleep(&(struct timespec){ .tv_nsec = (long)SUBLET_MS }, NULL);
	}
	return found ? sublet_release(slot->server->arena, &claim) : -EINVAL;
}

/* The connection is over. Called with the lock. */
static void hang_up(struct sublet__slot *slot)
{
	if (sublet__fd_ours(&slot->conn))
		shutdown(slot->conn.fd, SHUT_RDWR);
	fd_close(&slot->conn);
	if (slot->claim_count && !join_lingering(slot->server, slot)) {
		slot->ended_ns = 0;
		slot->state = SUBLET__SLOT_LINGER;
		wake_acceptor(slot->server);
		return;
	}
	fd_close(&slot->pidfd);
	slot->state = SUBLET__SLOT_FREE;
}

/* Have the slot's thread look at its state. Called with the lock. */
static void slot_call(struct sublet__slot *slot)
{
	(void)a32_add_relaxed(&slot->wake, 1);
	sublet__futex_wake(&slot->wake, 1);
}

static void *slot_main(void *arg)
{
	struct sublet__slot *slot = arg;
	struct sublet__server *server = slot->server;

	sublet__lock(&server->lock);
	while (!server->stopping) {
		if (slot->state != SUBLET__SLOT_LIVE) {
			uint32_t calls = a32_load_relaxed(&slot->wake); /* under the lock, as is each call */
			sublet__unlock(&server->lock);
			sublet__futex_wait(&slot->wake, calls, UINT64_MAX);
			sublet__lock(&server->lock);
			continue;
		}
		sublet__unlock(&server->lock);
		sublet__connection_serve(slot);
		sublet__lock(&server->lock);
		hang_up(slot);
	}
	sublet__unlock(&server->lock);
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
	int err = 0;

	sublet__lock(&server->lock);
	for (uint32_t i = 0; i < SUBLET__SLOTS && !slot; i++)
		if (server->slots[i].state == SUBLET__SLOT_FREE)
			slot = &server->slots[i];
	if (!slot)
		err = -EUSERS;
	else if (!slot->has_thread) /* it waits for the lock first */
		err = sublet__linux_thread_start(&slot->thread, "sublet-conn", slot_main, slot);
	if (!err) {
		slot->has_thread = true;
		slot->pidfd_error = fd_keep(&slot->pidfd, peer_pidfd(fd, pid));
		slot->pid = pid;
		slot->claim_count = 0;
		slot->untold = 0;
		fd_keep(&slot->conn, fd); /* should it fail, the slot's thread hangs up at once */
		slot->state = SUBLET__SLOT_LIVE;
		slot_call(slot);
	}
	sublet__unlock(&server->lock);
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
	int err, fd = accept4(server->listen.fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0)
		return errno == EAGAIN || errno == EINTR || errno == ECONNABORTED ? 0 : -errno;
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
	fd_close(&slot->pidfd);
	sublet__lock(&slot->server->lock);
	slot->state = SUBLET__SLOT_FREE;
	sublet__unlock(&slot->server->lock);
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
		uint64_t ended_ns;
		bool lingers;

		sublet__lock(&server->lock);
		lingers = slot->state == SUBLET__SLOT_LINGER;
		ended_ns = slot->ended_ns;
		sublet__unlock(&server->lock);
		if (!lingers)
			continue;
		if (!ended_ns) {
			p[n] = (struct pollfd){ .fd = slot->pidfd.fd, .events = POLLIN };
			who[n++] = slot;
			continue;
		}
		uint64_t due = ended_ns + SUBLET__SETTLE_NS;
		if (due <= sublet__wire_now_ns())
			release_lingering(slot);
		else if (due < *until_ns)
			*until_ns = due;
	}
	return n;
}

/* Note which watched processes have ended. */
static void note_ended(struct sublet__server *server, const struct pollfd *p, struct sublet__slot **who,
		       uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		if (!p[i].revents)
			continue;
		sublet__lock(&server->lock); /* the slots of other connections read it */
		who[i]->ended_ns = sublet__wire_now_ns();
		sublet__unlock(&server->lock);
	}
}

static int poll_until(struct pollfd *p, uint32_t n, uint64_t until_ns)
{
	uint64_t now = sublet__wire_now_ns();
	uint64_t left = now < until_ns ? until_ns - now : 0;
	struct timespec t = { .tv_sec = (time_t)(left / SUBLET_SEC), .tv_nsec = (long)(left % SUBLET_SEC) };

	return ppoll(p, n, until_ns == SUBLET__FOREVER ? NULL : &t, NULL);
}

/*
 * Connections have low numbers for an instant, and the program closes what it takes for its own: so the
 * accepting thread, and with it those of the connections, have a table of descriptors of their own.
 */
static void table_apart(struct sublet__server *server)
{
	const int fds[] = { server->listen.fd, server->dir.fd, server->wake[0].fd, server->wake[1].fd };

	server->own_table = !sublet__linux_fds_apart(server->arena, fds, sizeof(fds) / sizeof(fds[0]));
}

/* The last thing that the accepting thread does: nobody else sees these numbers. */
static void shut_connections(struct sublet__server *server)
{
	sublet__lock(&server->lock);
	for (uint32_t i = 0; i < SUBLET__SLOTS; i++)
		if (sublet__fd_ours(&server->slots[i].conn))
			shutdown(server->slots[i].conn.fd, SHUT_RDWR);
	sublet__unlock(&server->lock);
}

static void *server_main(void *arg)
{
	struct sublet__server *server = arg;
	struct pollfd p[2 + SUBLET__SLOTS];
	struct sublet__slot *who[SUBLET__SLOTS];
	uint64_t pause_until = 0; /* no descriptors, no memory: do not spin on a socket that stays readable */

	table_apart(server);
	while (!server->stopping) {
		char drain[64];
		uint64_t until = SUBLET__FOREVER;
		uint32_t n = watch_lingering(server, p + 2, who, &until);

		if (pause_until && pause_until <= sublet__wire_now_ns())
			pause_until = 0;
		if (pause_until && pause_until < until)
			until = pause_until;
		p[0] = (struct pollfd){ .fd = server->wake[0].fd, .events = POLLIN };
		p[1] = (struct pollfd){ .fd = pause_until ? -1 : server->listen.fd, .events = POLLIN };
		if (poll_until(p, n + 2, until) < 0 && errno != EINTR)
			break;
		if (!sublet__fd_ours(&server->listen))
			break;
		if (p[0].revents && recv(server->wake[0].fd, drain, sizeof(drain), MSG_DONTWAIT) <= 0 &&
		    errno != EAGAIN)
			break;
		note_ended(server, p + 2, who, n);
		if (p[1].revents && accept_one(server))
			pause_until = sublet__wire_now_ns() + 100 * SUBLET_MS;
	}
	shut_connections(server);
	return NULL;
}

/* ---- life ---- */

/* Close what fork_child may close: descriptors only. */
static void close_all(struct sublet__server *server)
{
	fd_close(&server->listen);
	fd_close(&server->wake[0]);
	fd_close(&server->wake[1]);
	fd_close(&server->dir);
	for (uint32_t i = 0; i < SUBLET__SLOTS && !server->own_table; i++) {
		fd_close(&server->slots[i].conn);
		fd_close(&server->slots[i].pidfd);
	}
}

static void fork_child(void *arg)
{
	if (sublet__descriptors_are_here())
		close_all(arg); /* pid stays the parent's: stop() in the child does nothing */
}

static void unpublish(struct sublet__server *server)
{
	if (sublet__fd_ours(&server->dir))
		unlinkat(server->dir.fd, server->file, 0);
}

/* Unlink, wake everybody, and wait for them. At most one slice of a claim long. */
static void stop_threads(struct sublet__server *server)
{
	unpublish(server);
	sublet__lock(&server->lock);
	server->stopping = true;
	for (uint32_t i = 0; i < SUBLET__SLOTS; i++)
		slot_call(&server->slots[i]);
	sublet__unlock(&server->lock);
	/* To all threads that poll its other end this is the end. */
	if (sublet__fd_ours(&server->wake[1]))
		shutdown(server->wake[1].fd, SHUT_RDWR);
	sublet__linux_thread_join(&server->thread);
	for (uint32_t i = 0; i < SUBLET__SLOTS; i++)
		if (server->slots[i].has_thread)
			sublet__linux_thread_join(&server->slots[i].thread);
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

	if (server->pid != sublet__program_pid())
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
	server->pid = sublet__program_pid();
	server->uid = geteuid();
	server->listen.fd = server->dir.fd = server->wake[0].fd = server->wake[1].fd = -1;
	sublet__text_append(server->name, sizeof(server->name), &used, name);
	sublet__instance_file(server->file, name, server->pid);
	for (uint32_t i = 0; i < SUBLET__SLOTS; i++) {
		struct sublet__slot *slot = &server->slots[i];

		slot->server = server;
		slot->conn.fd = slot->pidfd.fd = -1;
	}
	*out = server;
	return 0;
}

/*
 * A name that is taken: by a live instance, or by a file that a dead one of the same pid left, which is removed. The live
 * one may be this process before an exec: its helper is about to end, and is waited for. -EEXIST
 */
static int clear_stale(const struct sublet__server *server)
{
	uint64_t until = sublet__wire_until(SUBLET__STALE_NS);
	int fd;

	for (;;) {
		fd = sublet__instance_reach(server->dir.fd, server->file);
		if (fd < 0)
			return fd == -ECONNREFUSED || fd == -ENOENT ? 0 : -EEXIST;
		close(fd);
		if (!sublet__helper_is_here() || sublet__wire_now_ns() >= until)
			return -EEXIST;
		sublet__raw_sleep_ns(SUBLET_MS);
	}
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
	unlinkat(server->dir.fd, hidden, 0); /* of a dead process that had this number */
	err = sublet__instance_bind(server->listen.fd, server->dir.fd, hidden);
	if (err)
		return err;
	if (listen(server->listen.fd, 64))
		err = -errno;
	if (!err && linkat(server->dir.fd, hidden, server->dir.fd, server->file, 0)) {
		err = errno == EEXIST ? clear_stale(server) : -errno;
		if (!err && linkat(server->dir.fd, hidden, server->dir.fd, server->file, 0))
			err = -errno;
	}
	unlinkat(server->dir.fd, hidden, 0);
	return err;
}

/* -errno of a call that answers -1, or its descriptor. */
static int or_errno(int fd)
{
	return fd < 0 ? -errno : fd;
}

static int open_sockets(struct sublet__server *server)
{
	int pair[2], err = fd_keep(&server->dir, sublet__instance_dir_open(true));

	if (err)
		return err;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair))
		return -errno;
	err = fd_keep(&server->wake[0], pair[0]);
	if (err) {
		close(pair[1]);
		return err;
	}
	err = fd_keep(&server->wake[1], pair[1]);
	if (!err)
		err = fd_keep(&server->listen,
			      or_errno(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)));
	return err ? err : publish(server);
}

int sublet_arena_serve(struct sublet_arena *arena, const char *name)
{
	struct sublet__server *server = NULL;
	struct sublet__linux_companion companion = { .stop = stop, .fork_child = fork_child };
	int err = name ? sublet__arena_call(arena) : -EINVAL;

	if (!err)
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
	if (sublet__helper_is_here())
		sublet__helper_unlink_at_end(server->dir.fd, server->file);
	return 0;

unlink:
	unpublish(server);
free:
	free_server(server);
	return err;
}
