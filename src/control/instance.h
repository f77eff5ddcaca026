/* SPDX-License-Identifier: MIT */
/* control/instance.h: the directory of control sockets, and the names in it. */
#ifndef SUBLET_CONTROL_INSTANCE_H
#define SUBLET_CONTROL_INSTANCE_H

#include <sublet/client.h>

/* "NAME.PID" and its NUL. */
#define SUBLET__FILE_BYTES (SUBLET_NAME_BYTES + 12)
/* A path of the directory, for messages. */
#define SUBLET__DIR_BYTES 512

/* Append to text[*used], never beyond `bytes`, always with a NUL. Returns false where it did not fit. */
bool sublet__text_append(char *text, size_t bytes, size_t *used, const char *more);
bool sublet__text_append_u64(char *text, size_t bytes, size_t *used, uint64_t value);

/* 0, or -EINVAL: empty, too long, '/', a control character, no UTF-8, or a '.' in front. */
int sublet__instance_name_check(const char *name);

/* The socket's file name in the directory. */
void sublet__instance_file(char file[SUBLET__FILE_BYTES], const char *name, pid_t pid);

/*
 * Where this user's sockets are: $XDG_RUNTIME_DIR/sublet, or /tmp/sublet-UID where that variable
 * names no directory. -ENAMETOOLONG
 */
int sublet__instance_dir_path(char path[SUBLET__DIR_BYTES]);

/*
 * Open that directory, and make it first if `create`. Returns a close-on-exec descriptor, or
 * -EPERM: it is a link, no directory, of another user, or open to others; -ENOENT; -errno.
 */
int sublet__instance_dir_open(bool create);

/* Bind (or connect) the socket fd to a file of the directory, however long the path is. -errno */
int sublet__instance_bind(int fd, int dir, const char *file);
int sublet__instance_connect(int fd, int dir, const char *file);

/*
 * A connected, blocking socket. -ECONNREFUSED: its process has ended, and its file is now gone;
 * -ETIMEDOUT: it does not accept; -ENOENT; -errno.
 */
int sublet__instance_reach(int dir, const char *file);

/* The server's user, as the kernel noted it when it began to listen. -EACCES: another one than we are. */
int sublet__instance_check_peer(int fd);

/*
 * Find a live instance by name or pid (NULL: the only one) and connect to it. Returns the socket;
 * errors as sublet_client_connect, or -EPERM: the directory is not private.
 */
int sublet__instance_find(const char *name_or_pid, struct sublet_instance *instance);

#endif
