/* SPDX-License-Identifier: MIT */
/*
 * `sublet doctor`: what this machine and user can do, and what to type about the rest.
 *
 * The facts come from trying (linux/linux.h), this file only judges them. Three verdicts: "ok",
 * "note" (it works, for a price that is named), and "FAIL" (`sublet run` will not work). Every
 * note and failure names what its lack costs and one command that gives it; the commands change
 * this boot only, so that trying them is harmless. What is advised to `sublet run` was tried here; a
 * figure is this machine's, or says where it was taken.
 */
#include "cli/cli.h"
#include "cli/json.h"
#include "cli/sizes.h"

#include "control/instance.h"
#include "linux/limit.h"
#include "linux/linux.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum verdict { OK, NOTE, FAIL };

#define CHECKS_MAX 20

struct check {
	const char *name;
	enum verdict verdict;
	char found[640];
	const char *cost; /* of its lack; NULL: nothing is lacking */
	char fix[400];
};

struct report {
	struct check checks[CHECKS_MAX];
	uint32_t count;
};

static void print_help(void)
{
	fputs("usage: sublet doctor [--json]\n"
	      "\n"
	      "Check what this machine and this user offer: userfaultfd, kernel, huge pages, limits, "
	      "seccomp,\n"
	      "jemalloc, scheduler. Each line says ok, note (it works, for a price) or FAIL (`sublet run`\n"
	      "will not work), what it costs, and the command that changes it until the next boot.\n"
	      "\n"
	      "  -j, --json  one JSON object: run_works and checks[]: name, verdict, found, cost, fix\n"
	      "  -h, --help  this text\n"
	      "\n"
	      "exit status: 0 `sublet run` will work; 1 it will not; 2 usage\n",
	      stdout);
}

static struct check *add(struct report *r, const char *name, bool good, enum verdict otherwise,
			 const char *cost)
{
	struct check *c = &r->checks[r->count++];

	c->name = name;
	c->verdict = good ? OK : otherwise;
	c->cost = good ? NULL : cost;
	return c;
}

#define FOUND(c, ...) snprintf((c)->found, sizeof((c)->found), __VA_ARGS__)
#define FIX(c, ...)   snprintf((c)->fix, sizeof((c)->fix), __VA_ARGS__)

static bool line_starts(const char *path, const char *start)
{
	FILE *file = fopen(path, "re");
	char line[32] = "";

	if (!file)
		return false;
	bool starts = fgets(line, sizeof(line), file) && !strncmp(line, start, strlen(start));
	fclose(file);
	return starts;
}

static bool kernel_at_least(const char *release, int major, int minor)
{
	int a = 0, b = 0;

	return sscanf(release, "%d.%d", &a, &b) == 2 && (a > major || (a == major && b >= minor));
}

static void check_kernel(struct report *r, const struct sublet__linux_facts *f)
{
	struct check *c = add(r, "kernel", kernel_at_least(f->kernel_release, 5, 19), FAIL,
			      "memory on tmpfs cannot be write-protected: nothing can be moved");

	FOUND(c, "%s (5.19 is needed, 6.7 is better)", f->kernel_release);
	if (c->cost)
		FIX(c, "boot a kernel of 5.19 or later; Debian: sudo apt install -t bookworm-backports "
		       "linux-image-amd64");
}

static void check_userfaultfd(struct report *r, const struct sublet__linux_facts *f)
{
	struct check *c = add(r, "userfaultfd", f->userfaultfd, FAIL, "live memory cannot be moved at all");

	if (f->userfaultfd) {
		FOUND(c, "allowed%s", f->userfaultfd_device ? " (by /dev/userfaultfd)" : "");
		return;
	}
	FOUND(c, "refused: %s", strerror(-f->userfaultfd_error));
	/* EPERM has two causes; where the knob is set already it is the other one. */
	if (line_starts("/proc/sys/vm/unprivileged_userfaultfd", "1"))
		FIX(c, "a sandbox refuses it: allow the system call userfaultfd in its seccomp profile");
	else if (!access("/dev/userfaultfd", F_OK))
		FIX(c, "sudo setfacl -m u:%u:rw /dev/userfaultfd   # of the package acl",
		    (unsigned int)geteuid());
	else if (f->userfaultfd_error == -ENOSYS)
		FIX(c, "boot a kernel with CONFIG_USERFAULTFD=y");
	else
		FIX(c, "sudo sysctl -w vm.unprivileged_userfaultfd=1");
}

static void check_features(struct report *r, const struct sublet__linux_facts *f)
{
	struct check *c;
	bool any = f->feature_minor || f->feature_writeprotect;

	if (!f->userfaultfd)
		return;
	c = add(r, "block", any, FAIL, "there is no way to stop a program's accesses during a move");
	FOUND(c, "%s%s%s", f->feature_minor ? "zap (minor faults)" : "",
	      f->feature_minor && f->feature_writeprotect ? ", " : "",
	      f->feature_writeprotect ? "write-protection"
	      : any                   ? ""
				      : "none");
	if (!any)
		FIX(c, "boot a kernel with CONFIG_HAVE_ARCH_USERFAULTFD_MINOR (5.14) or _WP on shmem (5.19)");
	c = add(r, "pre-copy", f->feature_wp_async, NOTE,
		"programs that write to what moves wait longer: 168 µs instead of 70 at p99.9, measured with "
		"huge tmpfs on an AMD Zen 4");
	FOUND(c, "%s",
	      f->feature_wp_async ? "asynchronous write-protection, PAGEMAP_SCAN" : "not in this kernel");
	if (!f->feature_wp_async)
		FIX(c, "boot a kernel of 6.7 or later");
}

/* The knob that keeps a user from a namespace with a mount of its own, as far as one can see. */
static const char *namespace_fix(void)
{
	if (!access("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", F_OK))
		return "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0";
	if (!access("/proc/sys/kernel/unprivileged_userns_clone", F_OK))
		return "sudo sysctl -w kernel.unprivileged_userns_clone=1";
	return "sudo sysctl -w user.max_user_namespaces=15000";
}

static struct sublet__sizes default_sizes(const struct sublet__linux_facts *f)
{
	const struct sublet__sizes none = { 0, 0 };

	return sublet__sizes_choose(f, &none, false, false, false);
}

static void check_huge_pages(struct report *r, const struct sublet__linux_facts *f)
{
	struct sublet__sizes sizes = default_sizes(f);
	struct check *c =
		add(r, "huge tmpfs", f->huge_tmpfs, NOTE,
		    "memory comes in 4 KiB pages: claims take longer, 1.5 × memcpy instead of 0.6 × where "
		    "it was measured (AMD Zen 4)");

	if (f->huge_tmpfs) {
		FOUND(c, "a private tmpfs with huge=always can be made");
	} else {
		FOUND(c, "not to be had: %s", strerror(-f->huge_tmpfs_error));
		if (f->huge_tmpfs_error == -EINVAL || f->huge_tmpfs_error == -ENOSYS)
			FIX(c, "boot a kernel with CONFIG_TRANSPARENT_HUGEPAGE=y");
		else
			FIX(c, "%s", namespace_fix());
	}
	c = add(r, "hugetlb", f->hugetlb_free_pages > 0, NOTE,
		"`--backing hugetlb` cannot be used; huge tmpfs is as fast (0.64 and 0.72 × memcpy on an AMD "
		"Zen 4)");
	FOUND(c, "%" PRIu64 " pages of 2 MiB free", f->hugetlb_free_pages);
	if (c->cost)
		FIX(c, "sudo sysctl -w vm.nr_hugepages=%" PRIu64 "   # %s of area, %s of normal zone",
		    (sizes.area_bytes + sizes.normal_bytes) / SUBLET__UNIT_BYTES,
		    sublet__bytes(sizes.area_bytes).text, sublet__bytes(sizes.normal_bytes).text);
}

static void check_limits(struct report *r, const struct sublet__linux_facts *f)
{
	struct check *c = add(r, "memory", f->memory_available_bytes >= 256 * SUBLET_MIB, NOTE,
			      "area and normal zone, a quarter of it by default, hold little of a program");

	FOUND(c, "%s available%s%s", sublet__bytes(f->memory_available_bytes).text,
	      f->memory_limit[0] ? ": the limit is in " : "", f->memory_limit);
	if (c->cost)
		FIX(c, "%s%s", f->memory_limit[0] ? "raise the limit in " : "end other programs",
		    f->memory_limit);
	c = add(r, "max_map_count", f->max_map_count >= 65530, NOTE,
		"moves scatter memory over kernel mappings: claims fail when they are spent");
	FOUND(c, "%" PRIu64 " (an arena uses at most half)", f->max_map_count);
	if (c->cost)
		FIX(c, "sudo sysctl -w vm.max_map_count=1048576");
	c = add(r, "memlock", f->memlock_bytes >= SUBLET_GIB, NOTE,
		"drivers cannot register an area larger than this (io_uring, RDMA, VFIO)");
	if (f->memlock_bytes == UINT64_MAX)
		FOUND(c, "unlimited");
	else
		FOUND(c, "%s", sublet__bytes(f->memlock_bytes).text);
	if (c->cost)
		FIX(c, "sudo prlimit --pid $$ --memlock=unlimited:unlimited");
}

static void check_seccomp(struct report *r, const struct sublet__linux_facts *f)
{
	struct check *c = add(r, "seccomp", f->seccomp_filter, FAIL,
			      "a program's O_DIRECT and io_uring could write to memory that has moved");

	FOUND(c, "%s", f->seccomp_filter ? "filters can be installed" : "filters are refused");
	if (c->cost)
		FIX(c, "boot a kernel with CONFIG_SECCOMP_FILTER=y; in a container: allow seccomp and prctl");
}

/*
 * A library that is there but wants more static TLS than a running program has left (jemalloc does
 * on some systems) is still found by LD_PRELOAD, which is how `run` loads it.
 */
static void check_jemalloc(struct report *r)
{
	void *library = dlopen("libjemalloc.so.2", RTLD_LAZY | RTLD_LOCAL);
	const char *why = library ? NULL : dlerror();
	bool found = library || (why && strstr(why, "static TLS"));
	struct check *c = add(r, "jemalloc", found, FAIL, "a program's heap cannot be put into lent memory");

	FOUND(c, "%s", found ? "libjemalloc.so.2" : "libjemalloc.so.2 is not installed");
	if (!found)
		FIX(c, "sudo apt install libjemalloc2   # Fedora: sudo dnf install jemalloc");
}

/* 0, or why there is no arena of these sizes, in *why. Limits of this process decide too. */
static int try_arena(const struct sublet__sizes *sizes, char why[SUBLET__LIMIT_TEXT_BYTES])
{
	const struct sublet_arena_options o = { SUBLET_OPTIONS(sublet_arena_options),
						.area_bytes = sizes->area_bytes,
						.normal_bytes = sizes->normal_bytes };
	struct rlimit files = { .rlim_cur = RLIM_INFINITY };
	struct sublet_arena *arena;
	int err = 0;

	(void)getrlimit(RLIMIT_FSIZE, &files); /* not by trial: the signal would be the end of this */
	if (files.rlim_cur < o.area_bytes + o.normal_bytes)
		err = -EFBIG;
	else if (sublet__limit_explain(-ENOMEM, &o, why))
		return -ENOMEM;
	if (!err)
		err = sublet_arena_create(&o, &arena);
	if (!err)
		sublet_arena_destroy(arena);
	else if (!sublet__limit_explain(err, &o, why))
		snprintf(why, SUBLET__LIMIT_TEXT_BYTES, "%s", strerror(-err));
	return err;
}

/* The largest that works, by halves; false: none does. */
static bool find_smaller(struct sublet__sizes *sizes)
{
	char why[SUBLET__LIMIT_TEXT_BYTES];

	do {
		if (sizes->area_bytes + sizes->normal_bytes <= 2 * SUBLET__UNIT_BYTES)
			return false;
		sizes->area_bytes = (sizes->area_bytes / SUBLET__UNIT_BYTES + 1) / 2 * SUBLET__UNIT_BYTES;
		sizes->normal_bytes = (sizes->normal_bytes / SUBLET__UNIT_BYTES + 1) / 2 * SUBLET__UNIT_BYTES;
	} while (try_arena(sizes, why));
	return true;
}

/* Whether an arena of the sizes that `run` takes can be made. */
static void check_arena(struct report *r, const struct sublet__linux_facts *f)
{
	struct sublet__sizes sizes = default_sizes(f);
	char why[SUBLET__LIMIT_TEXT_BYTES];

	if (!f->userfaultfd) /* said already */
		return;
	int err = try_arena(&sizes, why);
	if (err == -EMFILE) /* said already */
		return;
	struct check *c = add(r, "arena", !err, FAIL, "one of the default size cannot be made");
	FOUND(c, "%s of area, %s of normal zone%s%s", sublet__bytes(sizes.area_bytes).text,
	      sublet__bytes(sizes.normal_bytes).text, err ? ": " : " can be made", err ? why : "");
	if (err && find_smaller(&sizes))
		FIX(c, "sublet run --area %" PRIu64 "M --normal %" PRIu64 "M   # as large as works here",
		    (uint64_t)(sizes.area_bytes / SUBLET_MIB), (uint64_t)(sizes.normal_bytes / SUBLET_MIB));
	else if (err)
		FIX(c, "ulimit -%s", err == -EFBIG ? "f unlimited" : "v unlimited -d unlimited");
}

/* Where the control socket of an instance goes; made here as `run` would make it. */
static void check_sockets(struct report *r)
{
	int dir = sublet__instance_dir_open(true);
	struct check *c = add(r, "sockets", dir >= 0, FAIL, "no other command could reach an instance");
	char path[SUBLET__DIR_BYTES];

	if (sublet__instance_dir_path(path))
		snprintf(path, sizeof(path), "XDG_RUNTIME_DIR");
	FOUND(c, "%.80s%s%s", path, dir < 0 ? ": " : "",
	      dir >= 0        ? ""
	      : dir == -EPERM ? "not a directory of your own with mode 0700"
			      : strerror(-dir));
	if (dir >= 0)
		close(dir);
	else
		FIX(c, "export XDG_RUNTIME_DIR=$(mktemp -d)   # or any directory of your own");
}

static void check_descriptors(struct report *r)
{
	struct rlimit limit = { .rlim_max = RLIM_INFINITY };
	struct check *c;

	(void)getrlimit(RLIMIT_NOFILE, &limit);
	c = add(r, "descriptors", limit.rlim_max >= SUBLET__DESCRIPTORS_LEAST, FAIL,
		"the helper process of a lent program has no room for its descriptors");
	FOUND(c, "%" PRIu64 " open files as the hard limit (%u are needed)", (uint64_t)limit.rlim_max,
	      SUBLET__DESCRIPTORS_LEAST);
	if (c->cost)
		FIX(c, "ulimit -Hn 1024");
}

/* Whether a thread of DAMON runs: it walks the mappings of every file whose pages are in memory. */
static bool kdamond_runs(void)
{
	DIR *dir = opendir("/proc");
	struct dirent *entry;
	bool runs = false;
	char path[32];

	while (dir && !runs && (entry = readdir(dir)) != NULL) {
		snprintf(path, sizeof(path), "/proc/%.12s/comm", entry->d_name);
		runs = entry->d_name[0] >= '1' && entry->d_name[0] <= '9' && line_starts(path, "kdamond");
	}
	if (dir)
		closedir(dir);
	return runs;
}

/* See "The kernel's own threads" in docs/hazards.md. */
static void check_scheduler(struct report *r)
{
	bool walker = kdamond_runs();
	bool groups = line_starts("/proc/sys/kernel/sched_autogroup_enabled", "1");
	struct check *c = add(r, "scheduler", !walker || !groups, NOTE,
			      "under full load the kernel may keep claims waiting for seconds");

	FOUND(c, "%s, %s", groups ? "autogroups" : "no autogroups",
	      walker ? "DAMON runs (kdamond)" : "no DAMON");
	if (c->cost)
		FIX(c, "sudo sysctl -w kernel.sched_autogroup_enabled=0");
}

/* ---- output ---- */

static const char *const verdict_words[] = { "ok", "note", "FAIL" };
static const char *const verdict_json[] = { "ok", "note", "fail" };

static void print_report(const struct report *r, bool works)
{
	for (uint32_t i = 0; i < r->count; i++) {
		const struct check *c = &r->checks[i];

		printf("%-5s %-14s %s\n", verdict_words[c->verdict], c->name, c->found);
		if (c->cost)
			printf("      %-14s costs: %s\n", "", c->cost);
		if (c->fix[0])
			printf("      %-14s fix:   %s\n", "", c->fix);
	}
	puts(works ? "\n`sublet run` will work here." : "\n`sublet run` will not work here: see FAIL.");
}

static int json_report(const struct report *r, bool works, const struct sublet__linux_facts *f)
{
	cJSON *root = cJSON_CreateObject(), *array;
	int code;

	cJSON_AddBoolToObject(root, "run_works", works);
	cJSON_AddStringToObject(root, "kernel_release", f->kernel_release);
	sublet__json_u64(root, "cpus", f->cpus);
	sublet__json_u64(root, "available_bytes", f->memory_available_bytes);
	array = cJSON_AddArrayToObject(root, "checks");
	for (uint32_t i = 0; i < r->count; i++) {
		const struct check *c = &r->checks[i];
		cJSON *o = cJSON_CreateObject();

		cJSON_AddStringToObject(o, "name", c->name);
		cJSON_AddStringToObject(o, "verdict", verdict_json[c->verdict]);
		cJSON_AddStringToObject(o, "found", c->found);
		if (c->cost)
			cJSON_AddStringToObject(o, "cost", c->cost);
		else
			cJSON_AddNullToObject(o, "cost");
		if (c->fix[0])
			cJSON_AddStringToObject(o, "fix", c->fix);
		else
			cJSON_AddNullToObject(o, "fix");
		cJSON_AddItemToArray(array, o);
	}
	code = sublet__json_print(root);
	return code || !works ? SUBLET__EXIT_FAILED : SUBLET__EXIT_OK;
}

static int doctor(bool json)
{
	struct sublet__linux_facts facts;
	struct report r = { .count = 0 };
	bool works = true;

	memset(&facts, 0, sizeof(facts));
	sublet__linux_facts_get(&facts);
	check_kernel(&r, &facts);
	check_userfaultfd(&r, &facts);
	check_features(&r, &facts);
	check_seccomp(&r, &facts);
	check_jemalloc(&r);
	check_huge_pages(&r, &facts);
	check_limits(&r, &facts);
	check_descriptors(&r);
	check_arena(&r, &facts);
	check_sockets(&r);
	check_scheduler(&r);
	for (uint32_t i = 0; i < r.count; i++)
		works = works && r.checks[i].verdict != FAIL;
	if (json)
		return json_report(&r, works, &facts);
	print_report(&r, works);
	return works ? SUBLET__EXIT_OK : SUBLET__EXIT_FAILED;
}

int sublet__cli_doctor(int argc, char **argv)
{
	static const struct option options[] = {
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	bool json = false;
	int c;

	opterr = 0;
	while ((c = getopt_long(argc, argv, ":jh", options, NULL)) != -1) {
		if (c == 'h') {
			print_help();
			return SUBLET__EXIT_OK;
		}
		if (c != 'j')
			return sublet__option_error("doctor", c, argv);
		json = true;
	}
	if (optind < argc)
		return sublet__extra_argument("doctor", argv[optind]);
	return doctor(json);
}
