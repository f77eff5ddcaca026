/* SPDX-License-Identifier: MIT */
/*
 * linux/cgroup.c: limits of control groups, on the caller's stack and with bare system calls, like proc.c.
 *
 * A group's limit holds for all below it, so every group from ours up to the root is asked. Both versions are read where
 * the usual mount points have them. In a container the path in /proc/self/cgroup may not exist under the mount: the
 * group that is mounted there is the container's own, and the walk up ends at it.
 *
 * memory.high counts as a limit like memory.max: beyond it a program is slowed down until it hardly runs.
 */
#include "linux/cgroup.h"

#include "linux/raw.h"

#include <string.h>

#define MOUNTS_MAX 2
#define LIMITS_MAX 2

/* How one version names a controller's files. */
struct names {
	const char *mount[MOUNTS_MAX];
	const char *limit[LIMITS_MAX];
	const char *usage;
};

struct controller {
	const char *name; /* in /proc/self/cgroup, version 1 */
	bool has_cache;   /* of which the kernel gives up what it needs before it refuses anything */
	struct names v1;
	struct names v2;
};

static const struct controller memory = {
	.name = "memory",
	.has_cache = true,
	.v1 = { { "/sys/fs/cgroup/memory" }, { "/memory.limit_in_bytes" }, "/memory.usage_in_bytes" },
	.v2 = { { "/sys/fs/cgroup", "/sys/fs/cgroup/unified" },
		{ "/memory.max", "/memory.high" },
		"/memory.current" },
};

static const struct controller tasks = {
	.name = "pids",
	.v1 = { { "/sys/fs/cgroup/pids" }, { "/pids.max" }, "/pids.current" },
	.v2 = { { "/sys/fs/cgroup", "/sys/fs/cgroup/unified" }, { "/pids.max" }, "/pids.current" },
};

/* What is looked for, and what was found so far. */
struct search {
	const char *root;
	const struct controller *controller;
	uint64_t left;
	struct sublet__text *by;
};

static void file_path(struct sublet__text *path, const struct search *s, const char *mount, const char *group,
		      const char *file)
{
	sublet__text_start(path, s->root);
	sublet__text_add(path, mount);
	sublet__text_add(path, group);
	sublet__text_add(path, file);
}

/* False: there is no such file, or no number in it ("max"). */
static bool file_number(const struct search *s, const char *mount, const char *group, const char *file,
			uint64_t *value)
{
	struct sublet__text path;
	char data[64];

	file_path(&path, s, mount, group, file);
	return sublet__proc_read(path.data, data, sizeof data) > 0 && sublet__proc_number(data, NULL, value);
}

/* Page cache of one group and all below it. */
static uint64_t cache_bytes(const struct search *s, const char *mount, const char *group)
{
	struct sublet__text path;
	char data[4096];
	uint64_t active = 0, inactive = 0;

	file_path(&path, s, mount, group, "/memory.stat");
	if (sublet__proc_read(path.data, data, sizeof data) <= 0)
		return 0;
	if (!sublet__proc_number(data, "total_active_file", &active))
		(void)sublet__proc_number(data, "active_file", &active);
	if (!sublet__proc_number(data, "total_inactive_file", &inactive))
		(void)sublet__proc_number(data, "inactive_file", &inactive);
	return active + inactive;
}

static void look_at_group(struct search *s, const struct names *names, const char *mount, const char *group)
{
	uint64_t usage, cache = 0;
	bool has_usage = file_number(s, mount, group, names->usage, &usage);

	if (!has_usage)
		return;
	if (s->controller->has_cache)
		cache = cache_bytes(s, mount, group);
	for (size_t i = 0; i < LIMITS_MAX && names->limit[i]; i++) {
		uint64_t limit;
		if (!file_number(s, mount, group, names->limit[i], &limit))
			continue;
		uint64_t room = limit > UINT64_MAX - cache ? UINT64_MAX : limit + cache;
		room = room > usage ? room - usage : 0;
		if (room >= s->left)
			continue;
		s->left = room;
		if (s->by)
			file_path(s->by, s, mount, group, names->limit[i]);
	}
}

/* From `group` up to the root. */
static void look_upwards(struct search *s, const struct names *names, const char *mount, const char *group)
{
	char at[SUBLET__PATH_BYTES];

	memcpy(at, group, strlen(group) + 1);
	for (;;) {
		look_at_group(s, names, mount, at);
		char *slash = strrchr(at, '/');
		if (!slash)
			return;
		*slash = 0;
	}
}

/* Whether a list "cpu,memory" has the name in it. */
static bool is_listed(const char *list, const char *name)
{
	size_t bytes = strlen(name);

	while (*list) {
		size_t item = strcspn(list, ",");
		if (item == bytes && !strncmp(list, name, bytes))
			return true;
		list += item;
		list += *list == ',';
	}
	return false;
}

/* The path part of one line of /proc/self/cgroup, or NULL where it is not about this controller. */
static char *line_path(char *line, const char *controller, bool *is_v2)
{
	char *controllers = strchr(line, ':');
	char *path = controllers ? strchr(controllers + 1, ':') : NULL;

	if (!path)
		return NULL;
	*path++ = 0;
	controllers++;
	*is_v2 = !*controllers;
	if (!*is_v2 && !is_listed(controllers, controller))
		return NULL;
	return strcmp(path, "/") ? path : path + 1;
}

static uint64_t least_left(const char *root, const struct controller *controller, struct sublet__text *by)
{
	struct search s = { root, controller, UINT64_MAX, by };
	struct sublet__text list;
	char data[4096];

	if (by)
		sublet__text_start(by, "");
	sublet__text_start(&list, root);
	sublet__text_add(&list, "/proc/self/cgroup");
	if (sublet__proc_read(list.data, data, sizeof data) <= 0)
		return UINT64_MAX;
	for (char *line = data, *next; line && *line; line = next) {
		bool is_v2;
		next = strchr(line, '\n');
		if (next)
			*next++ = 0;
		const char *group = line_path(line, controller->name, &is_v2);
		if (!group || strlen(group) >= SUBLET__PATH_BYTES)
			continue;
		const struct names *names = is_v2 ? &controller->v2 : &controller->v1;
		for (size_t i = 0; i < MOUNTS_MAX && names->mount[i]; i++)
			look_upwards(&s, names, names->mount[i], group);
	}
	return s.left;
}

uint64_t sublet__cgroup_memory_left(const char *root, struct sublet__text *by)
{
	return least_left(root, &memory, by);
}

uint64_t sublet__cgroup_tasks_left(const char *root, struct sublet__text *by)
{
	return least_left(root, &tasks, by);
}
