/* SPDX-License-Identifier: MIT */
/* bridge/settings.h: what `sublet run` tells the bridge, by way of the environment. */
#ifndef SUBLET_BRIDGE_SETTINGS_H
#define SUBLET_BRIDGE_SETTINGS_H

#include <sublet/arena.h>

#include <sys/types.h>

/*
 * One variable: SUBLET_RUN=key=value,key=value,...,name=NAME. Numbers are decimal, in bytes and
 * nanoseconds; backing and technique are those of the enums. `name` stands last and runs to the end.
 */
#define SUBLET__RUN_VARIABLE "SUBLET_RUN"
#define SUBLET__RUN_FORMAT \
	"pid=%lld,preload=%zu,area=%llu,normal=%llu,backing=%u,technique=%u,chaos=%llu,follow=%u,name=%s"

/* The file name by which the bridge finds itself again in LD_PRELOAD. */
#define SUBLET__BRIDGE_FILE "libsublet-bridge.so"

/*
 * Large allocations get an arena of their own in jemalloc, made at the first of them: without hooks.
 * This sends them to the ordinary arenas. Stands last in MALLOC_CONF, where it wins.
 */
#define SUBLET__MALLOC_CONF "oversize_threshold:0"
/*
 * The same where addresses or private memory are limited (RLIMIT_AS, RLIMIT_DATA): there are four arenas to a CPU
 * otherwise, each with 2 MiB for its own structures, and what is freed counts for ten seconds more.
 */
#define SUBLET__MALLOC_CONF_TIGHT "narenas:2,dirty_decay_ms:0," SUBLET__MALLOC_CONF

/* `sublet run` failed before the program began (the convention of env, nohup and timeout). */
#define SUBLET__EXIT_RUN_FAILED 125

struct sublet__settings {
	pid_t pid;            /* the process these are meant for */
	size_t preload_bytes; /* how much of LD_PRELOAD, from its start, is sublet's */
	uint64_t area_bytes;
	uint64_t normal_bytes;
	enum sublet_backing backing;
	enum sublet_technique technique;
	uint64_t chaos_ns; /* 0: none */
	bool follow;       /* children that exec get an instance of their own */
	char name[SUBLET_NAME_BYTES];
};

/* -ENOENT: there is no such variable; -EINVAL: it makes no sense (another version of sublet set it). */
int sublet__settings_read(struct sublet__settings *settings);

/*
 * Take sublet's part out of LD_PRELOAD and MALLOC_CONF, and SUBLET_RUN altogether, so that what this
 * process executes runs as if there were no sublet.
 */
void sublet__settings_forget(const struct sublet__settings *settings);

/* Whether LD_PRELOAD has an entry with `part` in it. */
bool sublet__settings_preloads(const char *part);

#endif
