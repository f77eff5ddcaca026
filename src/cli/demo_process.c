/* SPDX-License-Identifier: MIT */
/*
 * Children, signals and the folder of the demonstration: whatever must be gone when it ends.
 *
 * Every child has a process group of its own, so that Ctrl-C reaches only the demonstration itself;
 * it then ends its children in order and removes its folder. Should it be killed instead, the kernel
 * kills the children (PR_SET_PDEATHSIG); what then stays behind is a folder with a few sockets and logs,
 * which the next demonstration removes because nobody holds its lock.
 */
#include "cli/demo.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define KEEP_FD          3
#define DIRECT_BYTES     4096
#define FOLDER_PREFIX    "sublet-demo-"
#define FOLDER_BYTES_MAX 88 /* sockets in it must fit into sun_path */

static volatile sig_atomic_t caught;

static void on_signal(int signal)
{
	caught = signal;
}

void sublet__demo_catch_signals(void)
{
	struct sigaction action = { .sa_handler = on_signal };
	sigemptyset(&action.sa_mask);
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGHUP, &action, NULL);
	signal(SIGPIPE, SIG_IGN);
}

int sublet__demo_interrupted(void)
{
	return caught;
}

uint64_t sublet__demo_now_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * SUBLET_SEC + (uint64_t)now.tv_nsec;
}

void sublet__demo_sleep_ns(uint64_t ns)
{
	struct timespec duration = { .tv_sec = (time_t)(ns / SUBLET_SEC),
				     .tv_nsec = (long)(ns % SUBLET_SEC) };
	if (!caught)
		(void)nanosleep(&duration, NULL);
}

void sublet__demo_child_begin(pid_t parent)
{
	setpgid(0, 0);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(127);
	signal(SIGINT, SIG_DFL);
	signal(SIGTERM, SIG_DFL);
	signal(SIGHUP, SIG_DFL);
	signal(SIGPIPE, SIG_DFL);
}

static void child_descriptors(const char *log_path, int keep_fd)
{
	int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	dup2(null_fd, STDIN_FILENO);
	if (log_path) {
		int log = open(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
		dup2(log < 0 ? null_fd : log, STDOUT_FILENO);
		dup2(log < 0 ? null_fd : log, STDERR_FILENO);
	}
	if (keep_fd == KEEP_FD)
		fcntl(keep_fd, F_SETFD, 0);
	else if (keep_fd >= 0)
		dup2(keep_fd, KEEP_FD);
}

pid_t sublet__demo_spawn(const char *const argv[], const char *log_path, int keep_fd)
{
	pid_t parent = getpid();
	pid_t pid = fork();
	if (pid < 0)
		return -errno;
	if (pid == 0) {
		sublet__demo_child_begin(parent);
		child_descriptors(log_path, keep_fd);
		execvp(argv[0], (char *const *)(uintptr_t)argv); /* which writes to none of them */
		dprintf(STDERR_FILENO, "%s: %s\n", argv[0], strerror(errno));
		_exit(127);
	}
	setpgid(pid, pid); /* in both, so that it has happened whoever comes first */
	return pid;
}

bool sublet__demo_alive(pid_t *pid)
{
	if (*pid <= 0)
		return false;
	pid_t ended = waitpid(*pid, NULL, WNOHANG);
	if (ended == 0)
		return true;
	*pid = 0;
	return false;
}

void sublet__demo_end(pid_t *pid, uint64_t patience_ns)
{
	pid_t group = *pid;
	if (group <= 0)
		return;
	uint64_t deadline_ns = sublet__demo_now_ns() + patience_ns;
	if (patience_ns)
		kill(-group, SIGTERM);
	while (sublet__demo_alive(pid) && sublet__demo_now_ns() < deadline_ns)
		poll(NULL, 0, 5); /* not sublet__demo_sleep_ns: an interruption is why we are here */
	kill(-group, SIGKILL);
	if (*pid > 0)
		while (waitpid(*pid, NULL, 0) < 0 && errno == EINTR)
			;
	*pid = 0;
}

/* Whether a file in `folder` can be read with O_DIRECT, from a disk and not from memory. 0 or -errno */
static int try_direct(const char *folder)
{
	struct statfs fs;
	if (statfs(folder, &fs))
		return -errno;
	if (fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC)
		return -EOPNOTSUPP;
	char path[SUBLET__DEMO_PATH_BYTES + 16];
	snprintf(path, sizeof(path), "%s/direct", folder);
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	int err = ftruncate(fd, DIRECT_BYTES) ? -errno : 0;
	close(fd);
	void *buffer = aligned_alloc(DIRECT_BYTES, DIRECT_BYTES);
	fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	if (!err && (fd < 0 || !buffer || pread(fd, buffer, DIRECT_BYTES, 0) != DIRECT_BYTES))
		err = -EOPNOTSUPP;
	free(buffer);
	if (fd >= 0)
		close(fd);
	unlink(path);
	return err;
}

/* Open and lock a folder of a demonstration of this user; -1 where it is not, or is in use. */
static int folder_lock(const char *path)
{
	struct stat status;
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return -1;
	if (fstat(fd, &status) == 0 && status.st_uid == geteuid() && flock(fd, LOCK_EX | LOCK_NB) == 0)
		return fd;
	close(fd);
	return -1;
}

/* Remove what demonstrations of this user left behind that were killed. */
static void remove_stale(const char *parent)
{
	DIR *folder = opendir(parent);
	struct dirent *entry;
	while (folder && (entry = readdir(folder))) {
		char path[PATH_MAX];
		if (strncmp(entry->d_name, FOLDER_PREFIX, strlen(FOLDER_PREFIX)) ||
		    snprintf(path, sizeof(path), "%s/%s", parent, entry->d_name) >= PATH_MAX)
			continue;
		int fd = folder_lock(path);
		if (fd < 0)
			continue;
		sublet__demo_folder_remove(path);
		close(fd);
	}
	if (folder)
		closedir(folder);
}

static int folder_under(const char *parent, char *path, size_t bytes)
{
	char full[PATH_MAX];
	if (!realpath(parent, full))
		return -errno;
	remove_stale(full);
	if (snprintf(path, bytes, "%s/" FOLDER_PREFIX "XXXXXX", full) >= FOLDER_BYTES_MAX)
		return -ENAMETOOLONG;
	if (!mkdtemp(path))
		return -errno;
	/* Held open until this process ends, however it does: a folder that can be locked is nobody's. */
	int fd = folder_lock(path);
	int err = fd < 0 ? -EAGAIN : try_direct(path);
	if (err) {
		rmdir(path);
		if (fd >= 0)
			close(fd);
	}
	return err;
}

int sublet__demo_folder_make(const char *wanted, char *path, size_t bytes)
{
	const char *parents[] = { "/var/tmp", "build", "." };
	int err = -ENOENT;
	if (wanted)
		err = folder_under(wanted, path, bytes);
	for (size_t i = 0; !wanted && err && i < sizeof(parents) / sizeof(parents[0]); i++)
		err = folder_under(parents[i], path, bytes);
	if (!err)
		return 0;
	path[0] = '\0';
	demo_error("no folder for the frames%s%s: %s", wanted ? " under " : "", wanted ? wanted : "",
		   err == -EOPNOTSUPP ? "its file system cannot do direct reads from a disk"
				      : strerror(-err));
	sublet__advice("give one on a disk, with a short path: sublet demo --dir FOLDER");
	return err;
}

void sublet__demo_folder_remove(const char *path)
{
	if (!path[0])
		return;
	DIR *folder = opendir(path);
	struct dirent *entry;
	while (folder && (entry = readdir(folder)))
		if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
			unlinkat(dirfd(folder), entry->d_name, 0);
	if (folder)
		closedir(folder);
	rmdir(path);
}

void sublet__demo_self(char path[PATH_MAX])
{
	ssize_t n = readlink("/proc/self/exe", path, PATH_MAX - 1);
	path[n > 0 ? n : 0] = '\0';
}

bool sublet__demo_find_program(const char *program)
{
	const char *path = getenv("PATH");
	char *list = strdup(path ? path : "/usr/bin:/bin");
	bool found = false;
	char *rest = NULL;
	for (char *part = list ? strtok_r(list, ":", &rest) : NULL; part && !found;
	     part = strtok_r(NULL, ":", &rest)) {
		char full[PATH_MAX];
		snprintf(full, sizeof(full), "%s/%s", part, program);
		found = access(full, X_OK) == 0;
	}
	free(list);
	return found;
}
