/* SPDX-License-Identifier: MIT */
/*
 * The directory of running instances.
 *
 * An instance is a listening socket named NAME.PID in a directory that only its user can enter.
 * There is no other registry: an instance is alive exactly if its socket takes a connection, so a
 * crash needs no clean-up but the removal of a file, which whoever looks does on the way.
 *
 * The directory is opened once, checked by its descriptor (owner, mode, no link), and used through
 * /proc/self/fd/N from then on. So nobody can swap it after the check, and its path may be longer
 * than the 107 bytes that a socket address holds. Where there is no /proc, the helper process of a program makes it its
 * working directory for a moment; a program that uses the library has others that rely on theirs, and cannot serve.
 *
 * The server uses the first half of this file inside a program whose heap may be moving, so that
 * half formats by hand; the second half, listing and finding, runs in clients and uses libc freely.
 */
#include "control/instance.h"
#include "control/owner.h"
#include "control/wire.h"
#include "linux/helper.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

bool sublet__text_append(char *text, size_t bytes, size_t *used, const char *more)
{
	while (*more && *used + 1 < bytes)
		text[(*used)++] = *more++;
	text[*used] = '\0';
	return *more == '\0';
}

bool sublet__text_append_u64(char *text, size_t bytes, size_t *used, uint64_t value)
{
	char digits[21];
	size_t i = sizeof(digits) - 1;

	digits[i] = '\0';
	do {
		digits[--i] = (char)('0' + value % 10);
		value /= 10;
	} while (value);
	return sublet__text_append(text, bytes, used, digits + i);
}

int sublet__instance_name_check(const char *name)
{
	size_t n = 0;

	if (!name || name[0] == '.')
		return -EINVAL;
	while (name[n]) {
		/* of whoever lists, control characters would reach the terminal, and what is no UTF-8 the JSON */
		size_t bytes = sublet__character_bytes(name + n);

		if (!bytes || n + bytes >= SUBLET_NAME_BYTES || name[n] == '/')
			return -EINVAL;
		n += bytes;
	}
	return n ? 0 : -EINVAL;
}

void sublet__instance_file(char file[SUBLET__FILE_BYTES], const char *name, pid_t pid)
{
	size_t used = 0;

	sublet__text_append(file, SUBLET__FILE_BYTES, &used, name);
	sublet__text_append(file, SUBLET__FILE_BYTES, &used, ".");
	sublet__text_append_u64(file, SUBLET__FILE_BYTES, &used, (uint64_t)pid);
}

/* $XDG_RUNTIME_DIR, or NULL where it is not set to a directory (sudo and cron leave odd values). */
static const char *runtime_dir(void)
{
	const char *dir = getenv("XDG_RUNTIME_DIR");
	struct stat st;

	if (!dir || dir[0] != '/' || stat(dir, &st) || !S_ISDIR(st.st_mode))
		return NULL;
	return dir;
}

int sublet__instance_dir_path(char path[SUBLET__DIR_BYTES])
{
	const char *base = runtime_dir();
	size_t used = 0;
	bool fits;

	if (base)
		fits = sublet__text_append(path, SUBLET__DIR_BYTES, &used, base) &&
		       sublet__text_append(path, SUBLET__DIR_BYTES, &used, "/sublet");
	else
		fits = sublet__text_append(path, SUBLET__DIR_BYTES, &used, "/tmp/sublet-") &&
		       sublet__text_append_u64(path, SUBLET__DIR_BYTES, &used, geteuid());
	return fits ? 0 : -ENAMETOOLONG;
}

int sublet__instance_dir_open(bool create)
{
	char path[SUBLET__DIR_BYTES];
	struct stat st;
	int fd, err = sublet__instance_dir_path(path);

	if (err)
		return err;
	if (create && mkdir(path, 0700) && errno != EEXIST)
		return -errno;
	fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0) /* a link, or a file, is somebody's trap or mistake */
		return errno == ELOOP || errno == ENOTDIR || errno == EACCES ? -EPERM : -errno;
	if (fstat(fd, &st) || st.st_uid != geteuid() || (st.st_mode & 0077)) {
		close(fd);
		return -EPERM;
	}
	return fd;
}

/* The address of a file in the directory behind `dir`. */
static int address(struct sockaddr_un *addr, int dir, const char *file)
{
	size_t used = 0;

	memset(addr, 0, sizeof(*addr));
	addr->sun_family = AF_UNIX;
	if (!sublet__text_append(addr->sun_path, sizeof(addr->sun_path), &used, "/proc/self/fd/") ||
	    !sublet__text_append_u64(addr->sun_path, sizeof(addr->sun_path), &used, (uint64_t)dir) ||
	    !sublet__text_append(addr->sun_path, sizeof(addr->sun_path), &used, "/") ||
	    !sublet__text_append(addr->sun_path, sizeof(addr->sun_path), &used, file))
		return -ENAMETOOLONG;
	return 0;
}

/* Without /proc. On a task of the helper process, whose working directory is / and its own. */
static int bind_from_inside(int fd, int dir, const char *file)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	size_t used = 0;
	int err = 0;

	if (!sublet__text_append(addr.sun_path, sizeof(addr.sun_path), &used, file))
		return -ENAMETOOLONG;
	if (fchdir(dir) || bind(fd, (struct sockaddr *)&addr, sizeof(addr)))
		err = -errno;
	return chdir("/") ? -errno : err;
}

int sublet__instance_bind(int fd, int dir, const char *file)
{
	struct sockaddr_un addr;
	int err = address(&addr, dir, file);

	if (!err && bind(fd, (struct sockaddr *)&addr, sizeof(addr)))
		err = -errno;
	return err == -ENOENT && sublet__helper_is_here() ? bind_from_inside(fd, dir, file) : err;
}

int sublet__instance_connect(int fd, int dir, const char *file)
{
	struct sockaddr_un addr;
	int err = address(&addr, dir, file);

	if (err)
		return err;
	while (connect(fd, (struct sockaddr *)&addr, sizeof(addr))) {
		if (errno == EAGAIN) /* SO_SNDTIMEO ran out: its backlog is full */
			return -ETIMEDOUT;
		if (errno != EINTR)
			return -errno;
	}
	return 0;
}

/* Remove what is left of a dead instance, and nothing that is no socket. */
static void remove_dead(int dir, const char *file)
{
	struct stat st;

	if (!fstatat(dir, file, &st, AT_SYMLINK_NOFOLLOW) && S_ISSOCK(st.st_mode))
		unlinkat(dir, file, 0);
}

int sublet__instance_reach(int dir, const char *file)
{
	struct timeval patience = { .tv_sec = (time_t)(SUBLET__MESSAGE_TIMEOUT_NS / SUBLET_SEC) };
	int err, fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -errno;
	if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience)))
		err = -errno;
	else
		err = sublet__instance_connect(fd, dir, file);
	if (err) {
		close(fd);
		if (err == -ECONNREFUSED)
			remove_dead(dir, file);
		return err;
	}
	return fd;
}

int sublet__instance_check_peer(int fd)
{
	struct ucred peer;
	socklen_t bytes = sizeof(peer);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes))
		return -errno;
	return peer.uid == geteuid() ? 0 : -EACCES;
}

/* ---- clients only from here ---- */

/* "NAME.PID" -> its parts; false where the file is something else. */
static bool parse_file(const char *file, struct sublet_instance *out)
{
	const char *dot = strrchr(file, '.');
	char *end;
	long pid;

	if (!dot || dot[1] < '1' || dot[1] > '9' || (size_t)(dot - file) >= sizeof(out->name))
		return false;
	errno = 0;
	pid = strtol(dot + 1, &end, 10);
	if (*end || errno || pid > INT32_MAX)
		return false;
	memset(out->name, 0, sizeof(out->name));
	memcpy(out->name, file, (size_t)(dot - file));
	out->pid = (pid_t)pid;
	return sublet__instance_name_check(out->name) == 0;
}

/* Call visit for every instance file. visit returns false to stop. -errno of the directory. */
static int walk(int dir, bool (*visit)(void *arg, int dir, const struct dirent *entry), void *arg)
{
	int copy = fcntl(dir, F_DUPFD_CLOEXEC, 0);
	struct dirent *entry;
	DIR *d;

	if (copy < 0)
		return -errno;
	d = fdopendir(copy);
	if (!d) {
		int err = -errno;

		close(copy);
		return err;
	}
	rewinddir(d); /* the copy shares its position with every other walk of this descriptor */
	while ((entry = readdir(d)))
		if (!visit(arg, dir, entry))
			break;
	closedir(d);
	return 0;
}

static int compare(const struct sublet_instance *a, const struct sublet_instance *b)
{
	int order = strcmp(a->name, b->name);

	return order ? order : (a->pid > b->pid) - (a->pid < b->pid);
}

struct listing {
	struct sublet_instance *instances;
	size_t count;
	int found;
};

static bool visit_list(void *arg, int dir, const struct dirent *entry)
{
	struct listing *l = arg;
	struct sublet_instance in;
	size_t at;
	int fd;

	if (!parse_file(entry->d_name, &in))
		return true;
	fd = sublet__instance_reach(dir, entry->d_name);
	if (fd >= 0)
		close(fd);
	else if (fd != -ETIMEDOUT) /* stopped by a debugger, say: it is there */
		return true;
	at = (size_t)l->found++;
	if (at >= l->count)
		return true;
	for (; at > 0 && compare(&in, &l->instances[at - 1]) < 0; at--)
		l->instances[at] = l->instances[at - 1];
	l->instances[at] = in;
	return true;
}

int sublet_instance_list(struct sublet_instance *instances, size_t count)
{
	struct listing l = { .instances = instances, .count = instances ? count : 0 };
	int err, dir = instances || !count ? sublet__instance_dir_open(false) : -EINVAL;

	if (dir == -ENOENT)
		return 0;
	if (dir < 0)
		return dir;
	err = walk(dir, visit_list, &l);
	close(dir);
	return err ? err : l.found;
}

/* ---- finding one ---- */

struct search {
	const char *name; /* NULL: any */
	pid_t pid;        /* 0: do not look at pids */
	struct sublet_instance instance;
	int fd; /* of the first that answered */
	int found;
	int error; /* of one that fits and could not be reached */
};

static bool visit_find(void *arg, int dir, const struct dirent *entry)
{
	struct search *s = arg;
	struct sublet_instance in;
	int fd;

	if (!parse_file(entry->d_name, &in))
		return true;
	if (s->pid ? in.pid != s->pid : s->name && strcmp(in.name, s->name) != 0)
		return true;
	fd = sublet__instance_reach(dir, entry->d_name);
	if (fd < 0) {
		if (s->name || s->pid || fd != -ECONNREFUSED) /* "the only one" has no dead namesakes */
			s->error = fd;
		s->found += fd == -ETIMEDOUT;
		return true;
	}
	s->found++;
	if (s->fd >= 0) {
		close(fd);
		return true;
	}
	s->fd = fd;
	s->instance = in;
	return true;
}

static pid_t pid_of(const char *text)
{
	char *end;
	long pid;

	if (!text || text[0] < '1' || text[0] > '9')
		return 0;
	errno = 0;
	pid = strtol(text, &end, 10);
	return *end || errno || pid > INT32_MAX ? 0 : (pid_t)pid;
}

static int search(int dir, struct search *s)
{
	int err = walk(dir, visit_find, s);

	if (!err && s->found > 1)
		err = -ENOTUNIQ;
	else if (!err && s->fd < 0)
		err = s->error ? s->error : -ENOENT;
	if (err && s->fd >= 0) {
		close(s->fd);
		s->fd = -1;
	}
	return err;
}

int sublet__instance_find(const char *name_or_pid, struct sublet_instance *instance)
{
	struct search by_name = { .name = name_or_pid, .fd = -1 };
	struct search by_pid = { .pid = pid_of(name_or_pid), .fd = -1 };
	struct search *s = &by_name;
	int err, dir = sublet__instance_dir_open(false);

	if (dir < 0)
		return dir;
	err = search(dir, s);
	if (err == -ENOENT && by_pid.pid) {
		s = &by_pid;
		err = search(dir, s);
	}
	close(dir);
	if (err)
		return err;
	*instance = s->instance;
	return s->fd;
}
