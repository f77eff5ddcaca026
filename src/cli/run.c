/* SPDX-License-Identifier: MIT */
/*
 * `sublet run`: start an unmodified program with its malloc heap in an arena.
 *
 * The work is done inside the program, by libsublet-bridge.so (src/bridge). This command looks at
 * the program (program.c), finds the two libraries to preload, checks what can be checked before
 * the program starts, loads the seccomp policy, and executes the program in place: same pid, so
 * that signals, exit codes, job control and a supervisor's bookkeeping are the program's own.
 *
 * A program that cannot be helped is executed plainly, after one line on stderr. What keeps
 * `sublet run` itself from doing its work is an error instead: one line, a second one with what to
 * do, and an exit code that env, nohup and timeout use for the same.
 */
#include "cli/cli.h"
#include "cli/policy.h"
#include "cli/program.h"
#include "cli/sizes.h"

#include "bridge/settings.h"
#include "control/instance.h"
#include "control/owner.h"
#include "linux/linux.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

/* As env(1), nohup(1) and timeout(1) have it. SUBLET__EXIT_RUN_FAILED is 125. */
#define EXIT_CANNOT_EXECUTE 126
#define EXIT_NOT_FOUND      127

#define PATH_BYTES   4096
#define CHAOS_MIN_NS SUBLET_US /* shorter than any move takes */

struct run {
	struct sublet__settings settings;
	bool area_given, normal_given;
	uint32_t allow;
	char **program; /* its argv */
	char bridge[PATH_BYTES];
	char jemalloc[PATH_BYTES];
};

static const char help[] =
	"usage: sublet run [OPTION...] [--] PROGRAM [ARG...]\n"
	"\n"
	"Start PROGRAM with its malloc heap in lent memory. Its pid, signals and exit code are its own.\n"
	"\n"
	"  -n, --name NAME       how other `sublet` commands call it (default: PROGRAM's file name)\n"
	"      --area SIZE       the area that can be claimed (default: with the normal zone a quarter of "
	"the\n"
	"                        memory that is free, at most 1G)\n"
	"      --normal SIZE     the normal zone, where moved memory goes (default: a quarter of the area; "
	"up\n"
	"                        to 64M where both stay within a quarter of the memory that is free)\n"
	"      --backing KIND    auto, hugetlb, thp or memfd (default: auto)\n"
	"      --technique KIND  how live memory is moved: auto, precopy, zap or writeprotect (default: "
	"auto)\n"
	"      --follow          programs that PROGRAM starts get an instance of their own too\n"
	"      --allow LIST      lift parts of the policy: names from below, separated by commas\n"
	"      --chaos PERIOD    torture: move random live memory every PERIOD (1ms), claim random windows\n"
	"  -h, --help            this text\n"
	"\n"
	"The policy refuses system calls that keep references to memory behind sublet's back, with errors\n"
	"that make programs fall back to ordinary I/O. Its parts, and what allowing each one risks:\n";

static const char help_end[] =
	"\n"
	"A static or setuid PROGRAM, one built with a sanitizer (but UBSan), and one under valgrind cannot "
	"be\n"
	"helped: it runs on its own heap, after one line on stderr.\n"
	"A daemon must stay in the foreground: a child of fork() has a copy of the heap that is not lent, "
	"and\n"
	"while it lives what both share cannot be claimed.\n"
	"Python keeps small objects in mappings of its own: set PYTHONMALLOC=malloc to have them lent too.\n"
	"SUBLET_BRIDGE and SUBLET_JEMALLOC name the libraries to preload, where they are not found: after "
	"an\n"
	"installation with DESTDIR, say.\n"
	"\n"
	"exit status: PROGRAM's own; 2 usage; 125 sublet failed, and PROGRAM was not started; 126 PROGRAM\n"
	"cannot be executed; 127 it was not found\n";

/* ---- the command line ---- */

/* The index of text in a NULL-ended list; -1 with an error line otherwise, where `all` says what there is. */
static int choice(const char *option, const char *text, const char *const *names, const char *all)
{
	for (int i = 0; names[i] != NULL; i++)
		if (strcmp(names[i], text) == 0)
			return i;
	sublet__error("%s: there is no \"%s\": choose %s", option, text, all);
	return -1;
}

/* In the order of the enums. */
static const char *const backing_names[] = { "auto", "hugetlb", "thp", "memfd", NULL };
static const char *const technique_names[] = { "auto", "precopy", "zap", "writeprotect", NULL };

static bool parse_allow(const char *list, uint32_t *allow)
{
	const char *bad;
	int bad_bytes;

	if (sublet__policy_parse(list, allow, &bad, &bad_bytes) == 0)
		return true;
	sublet__error("--allow: there is no part \"%.*s\"", bad_bytes, bad);
	return false;
}

static bool set_name(struct run *run, const char *name)
{
	if (sublet__instance_name_check(name) != 0) {
		sublet__error(
			"--name: \"%s\" is empty, longer than %d bytes, begins with '.', is no UTF-8, or "
			"has a '/' or a control character in it",
			name, SUBLET_NAME_BYTES - 1);
		return false;
	}
	memcpy(run->settings.name, name, strlen(name) + 1);
	return true;
}

static bool take_area(struct run *run, const char *value)
{
	run->area_given = true;
	if (!sublet__option_size("--area", value, &run->settings.area_bytes))
		return false;
	if (run->settings.area_bytes == 0)
		sublet__error("--area '%s': an area of nothing can lend nothing", value);
	return run->settings.area_bytes != 0;
}

static bool take_chaos(struct run *run, const char *value)
{
	if (!sublet__option_duration("--chaos", value, &run->settings.chaos_ns))
		return false;
	if (run->settings.chaos_ns < CHAOS_MIN_NS)
		sublet__error("--chaos '%s' is too short: at least 1us, 1ms is usual", value);
	return run->settings.chaos_ns >= CHAOS_MIN_NS;
}

static bool take_option(struct run *run, int option, const char *value)
{
	struct sublet__settings *s = &run->settings;
	int index = 0;

	switch (option) {
	case 'n':
		return set_name(run, value);
	case 'a':
		return take_area(run, value);
	case 'm':
		run->normal_given = true;
		return sublet__option_size("--normal", value, &s->normal_bytes);
	case 'b':
		index = choice("--backing", value, backing_names, "auto, hugetlb, thp or memfd");
		s->backing = (enum sublet_backing)index;
		return index >= 0;
	case 't':
		index = choice("--technique", value, technique_names, "auto, precopy, zap or writeprotect");
		s->technique = (enum sublet_technique)index;
		return index >= 0;
	case 'c':
		return take_chaos(run, value);
	case 'f':
		s->follow = true;
		return true;
	case 'l':
		return parse_allow(value, &run->allow);
	default:
		return false;
	}
}

/* Returns 0 to go on, or an exit code + 1. */
static int parse(struct run *run, int argc, char **argv)
{
	static const struct option options[] = {
		{ "name", required_argument, NULL, 'n' },
		{ "area", required_argument, NULL, 'a' },
		{ "normal", required_argument, NULL, 'm' },
		{ "backing", required_argument, NULL, 'b' },
		{ "technique", required_argument, NULL, 't' },
		{ "chaos", required_argument, NULL, 'c' },
		{ "follow", no_argument, NULL, 'f' },
		{ "allow", required_argument, NULL, 'l' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	int option;

	opterr = 0;
	/* "+": the first word that is no option is PROGRAM, and what follows is its own. */
	while ((option = getopt_long(argc, argv, "+:n:h", options, NULL)) != -1) {
		if (option == 'h') {
			(void)fputs(help, stdout);
			sublet__policy_print(stdout);
			(void)fputs(help_end, stdout);
			return sublet__finish(SUBLET__EXIT_OK) + 1;
		}
		if (option == '?' || option == ':')
			return sublet__option_error("run", option, argv) + 1;
		if (!take_option(run, option, optarg))
			return sublet__usage_error("run") + 1;
	}
	if (optind == argc) {
		sublet__error("run: which program?");
		return sublet__usage_error("run") + 1;
	}
	run->program = argv + optind;
	return 0;
}

/* ---- checks before the program starts ---- */

/* The huge pages that are there: of the arena, and none besides. */
static bool check_huge_pages(const struct sublet__linux_facts *facts, uint64_t total)
{
	uint64_t pages = total / SUBLET__UNIT_BYTES;

	if (pages <= facts->hugetlb_free_pages)
		return true;
	sublet__error("run: --backing hugetlb needs %llu free huge pages of 2 MiB, there are %llu",
		      (unsigned long long)pages, (unsigned long long)facts->hugetlb_free_pages);
	sublet__advice("Reserve them (`sysctl vm.nr_hugepages`), or ask for less with --area; see "
		       "`sublet doctor`.");
	return false;
}

static bool check_size(const struct run *run, const struct sublet__linux_facts *facts,
		       const struct sublet__sizes *fitting)
{
	const struct sublet__settings *s = &run->settings;
	uint64_t total = s->area_bytes + s->normal_bytes;

	if (s->backing == SUBLET_BACKING_HUGETLB)
		return check_huge_pages(facts, total);
	/* As the arena has it: page tables and the engine's own structures want a little too. */
	if (total + total / 64 <= facts->memory_available_bytes)
		return true;
	sublet__error(
		"run: an area of %s and a normal zone of %s are more than the %s of memory available%s%s",
		sublet__bytes(s->area_bytes).text, sublet__bytes(s->normal_bytes).text,
		sublet__bytes(facts->memory_available_bytes).text,
		facts->memory_limit[0] ? " under the limit in " : "", facts->memory_limit);
	sublet__advice("Ask for less, --area %lluM --normal %lluM say; `sublet doctor` shows what there is.",
		       (unsigned long long)(fitting->area_bytes / SUBLET_MIB),
		       (unsigned long long)(fitting->normal_bytes / SUBLET_MIB));
	return false;
}

/* The arena is one file of shared memory, and the limit holds for those too. */
static bool check_file_size(uint64_t total)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY ||
	    total <= limit.rlim_cur)
		return true;
	sublet__error(
		"run: area and normal zone are a file of %s in memory, and files may have %s (ulimit -f)",
		sublet__bytes(total).text, sublet__bytes(limit.rlim_cur).text);
	sublet__advice("Lift the limit with `ulimit -f unlimited`, or to the least that works, `ulimit -f "
		       "%llu`, or ask for less with --area and --normal.",
		       (unsigned long long)((total + SUBLET_KIB - 1) / SUBLET_KIB));
	return false;
}

/* Before anything is tried, because trying makes files too: the least that the sizes can come to. */
static bool check_least_file_size(const struct run *run)
{
	uint64_t area = run->area_given ? run->settings.area_bytes : SUBLET__UNIT_BYTES;
	uint64_t normal = run->normal_given ? run->settings.normal_bytes : SUBLET__UNIT_BYTES;

	return check_file_size(area + normal);
}

/* The defaults of the sizes, here rather than in the engine so that the sum can be checked. */
static bool settle_sizes(struct run *run, const struct sublet__linux_facts *facts)
{
	struct sublet__settings *s = &run->settings;
	const struct sublet__sizes given = { s->area_bytes, s->normal_bytes };
	bool is_hugetlb = s->backing == SUBLET_BACKING_HUGETLB;

	if (s->area_bytes > UINT64_MAX / 4 || s->normal_bytes > UINT64_MAX / 4) {
		sublet__error("run: --area and --normal must be sizes that a machine can have");
		return false;
	}
	struct sublet__sizes sizes =
		sublet__sizes_choose(facts, &given, run->area_given, s->normal_bytes != 0, is_hugetlb);
	struct sublet__sizes fitting = sublet__sizes_choose(facts, &given, false, false, is_hugetlb);
	s->area_bytes = sizes.area_bytes;
	s->normal_bytes = sizes.normal_bytes;
	return check_size(run, facts, &fitting) && check_file_size(s->area_bytes + s->normal_bytes);
}

static bool check_abilities(const struct run *run, const struct sublet__linux_facts *facts)
{
	const struct sublet__settings *s = &run->settings;
	bool is_huge = s->backing == SUBLET_BACKING_HUGETLB;
	const char *lacks = NULL;

	if (!facts->userfaultfd) {
		sublet__error("run: no userfaultfd permission: %s", strerror(-facts->userfaultfd_error));
		sublet__advice("`sublet doctor` says what to do.");
		return false;
	}
	if (s->backing == SUBLET_BACKING_THP && !facts->huge_tmpfs)
		lacks = "--backing thp";
	if (s->technique == SUBLET_TECHNIQUE_PRECOPY && !facts->feature_wp_async)
		lacks = "--technique precopy";
	if (s->technique == SUBLET_TECHNIQUE_ZAP &&
	    !(is_huge ? facts->feature_minor_hugetlb : facts->feature_minor))
		lacks = "--technique zap";
	if (s->technique == SUBLET_TECHNIQUE_WRITEPROTECT && !facts->feature_writeprotect)
		lacks = "--technique writeprotect";
	if (lacks != NULL) {
		sublet__error("run: this kernel (%s) does not have what %s needs", facts->kernel_release,
			      lacks);
		sublet__advice("Leave it to sublet (auto); `sublet doctor` shows what there is.");
		return false;
	}
	return true;
}

/* ---- what is preloaded ---- */

static bool is_file(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 && S_ISREG(st.st_mode);
}

/* LD_PRELOAD separates its entries by colons and by spaces, and has no way to quote them. */
static bool can_preload(const char *path)
{
	if (strpbrk(path, ": \t\n") == NULL)
		return true;
	sublet__error("run: the path %s has a space or a colon in it, which LD_PRELOAD cannot hold", path);
	return false;
}

static bool find_bridge(char path[PATH_BYTES])
{
	const char *given = getenv("SUBLET_BRIDGE");
	char self[PATH_BYTES];
	ssize_t length = readlink("/proc/self/exe", self, sizeof(self) - 1);
	char *slash;

	if (given != NULL) {
		(void)snprintf(path, PATH_BYTES, "%s", given);
		return is_file(path);
	}
	self[length > 0 ? length : 0] = '\0';
	slash = strrchr(self, '/');
	if (slash != NULL) {
		/* As it is built: beside the command, or in its own folder under it. */
		slash[1] = '\0';
		if (snprintf(path, PATH_BYTES, "%s" SUBLET__BRIDGE_FILE, self) < PATH_BYTES && is_file(path))
			return true;
		if (snprintf(path, PATH_BYTES, "%ssrc/bridge/" SUBLET__BRIDGE_FILE, self) < PATH_BYTES &&
		    is_file(path))
			return true;
	}
	(void)snprintf(path, PATH_BYTES, "%s", SUBLET_LIBDIR "/" SUBLET__BRIDGE_FILE);
	return is_file(path);
}

/* Look in each directory of a list that is separated by colons. */
static bool find_in(const char *directories, const char *file, char path[PATH_BYTES])
{
	for (const char *at = directories; at != NULL && *at != '\0';) {
		size_t length = strcspn(at, ":");

		if (length > 0 && snprintf(path, PATH_BYTES, "%.*s/%s", (int)length, at, file) < PATH_BYTES &&
		    is_file(path))
			return true;
		at += length;
		at += *at == ':';
	}
	return false;
}

static bool find_jemalloc(char path[PATH_BYTES])
{
	static const char usual[] =
#if defined(__x86_64__)
		"/usr/lib/x86_64-linux-gnu:/lib/x86_64-linux-gnu:"
#elif defined(__aarch64__)
		"/usr/lib/aarch64-linux-gnu:/lib/aarch64-linux-gnu:"
#endif
		"/usr/local/lib64:/usr/local/lib:/usr/lib64:/lib64:/usr/lib:/lib";
	const char *given = getenv("SUBLET_JEMALLOC");

	if (given != NULL) {
		(void)snprintf(path, PATH_BYTES, "%s", given);
		return is_file(path);
	}
	return find_in(getenv("LD_LIBRARY_PATH"), "libjemalloc.so.2", path) ||
	       find_in(usual, "libjemalloc.so.2", path) || find_in(SUBLET_LIBDIR, "libjemalloc.so.2", path);
}

static bool find_libraries(struct run *run)
{
	if (!find_bridge(run->bridge)) {
		sublet__error("run: " SUBLET__BRIDGE_FILE " is not where it was installed (%s)", run->bridge);
		sublet__advice("Install sublet as a whole, or set SUBLET_BRIDGE to the library's path.");
		return false;
	}
	if (!find_jemalloc(run->jemalloc)) {
		sublet__error("run: there is no libjemalloc.so.2");
		sublet__advice("Install it (Debian: libjemalloc2), or set SUBLET_JEMALLOC to its path.");
		return false;
	}
	return can_preload(run->bridge) && can_preload(run->jemalloc);
}

/* ---- the environment ---- */

/* Set `variable` to "first SEPARATOR second", or to the one of them that is there. */
static int set_joined(const char *variable, const char *first, char separator, const char *second)
{
	size_t bytes = strlen(first) + strlen(second) + 2;
	char *joined = malloc(bytes);
	int err;

	if (joined == NULL)
		return -ENOMEM;
	if (*first != '\0' && *second != '\0')
		(void)snprintf(joined, bytes, "%s%c%s", first, separator, second);
	else
		(void)snprintf(joined, bytes, "%s%s", first, second);
	err = setenv(variable, joined, 1) ? -errno : 0;
	free(joined);
	return err;
}

static const char *variable_or_nothing(const char *variable)
{
	const char *value = getenv(variable);

	return value ? value : "";
}

/* Whether a limit of the process is so low that malloc's own structures would take more than an eighth of it. */
static bool is_tight(int resource)
{
	uint64_t structures = (uint64_t)sysconf(_SC_NPROCESSORS_ONLN) * 4 * 2 * SUBLET_MIB;
	struct rlimit limit;

	return getrlimit((__rlimit_resource_t)resource, &limit) == 0 && limit.rlim_cur / 8 < structures;
}

static const char *malloc_conf(void)
{
	const char *own = variable_or_nothing("MALLOC_CONF");
	bool tight = (is_tight(RLIMIT_AS) || is_tight(RLIMIT_DATA)) && strstr(own, "narenas") == NULL;

	return tight ? SUBLET__MALLOC_CONF_TIGHT : SUBLET__MALLOC_CONF;
}

static int set_environment(const struct run *run)
{
	const struct sublet__settings *s = &run->settings;
	char preload[2 * PATH_BYTES + 2], settings[512];
	int err;

	(void)snprintf(preload, sizeof(preload), "%s:%s", run->bridge, run->jemalloc);
	(void)snprintf(settings, sizeof(settings), SUBLET__RUN_FORMAT, (long long)getpid(), strlen(preload),
		       (unsigned long long)s->area_bytes, (unsigned long long)s->normal_bytes,
		       (unsigned int)s->backing, (unsigned int)s->technique, (unsigned long long)s->chaos_ns,
		       (unsigned int)s->follow, s->name);
	err = set_joined("LD_PRELOAD", preload, ':', variable_or_nothing("LD_PRELOAD"));
	if (err == 0)
		err = set_joined("MALLOC_CONF", variable_or_nothing("MALLOC_CONF"), ',', malloc_conf());
	if (err == 0 && setenv(SUBLET__RUN_VARIABLE, settings, 1) != 0)
		err = -errno;
	return err;
}

/* ---- starting ---- */

/* As shells do with what the kernel does not know and is text: a script without "#!". Returns if it failed. */
static void execute_by_shell(const char *path, char **argv)
{
	static char shell[] = SUBLET__SHELL;
	size_t words = 0;
	char **with_shell;

	while (argv[words] != NULL)
		words++;
	with_shell = calloc(words + 2, sizeof(*with_shell));
	if (with_shell == NULL)
		return;
	with_shell[0] = shell;
	with_shell[1] = strdup(path);
	memcpy(with_shell + 2, argv + 1, words * sizeof(*argv)); /* and the NULL */
	if (with_shell[1] != NULL)
		(void)execv(SUBLET__SHELL, with_shell);
	free(with_shell[1]);
	free(with_shell);
}

/* Returns only if it failed. */
static int execute(const struct sublet__program *program, char **argv)
{
	int err;

	(void)execv(program->path, argv);
	err = errno;
	if (err == ENOEXEC && program->is_text)
		execute_by_shell(program->path, argv);
	sublet__error("run: cannot execute %s: %s", program->path,
		      err == ENOENT && access(program->path, F_OK) == 0
			      ? "the interpreter or loader that it names is not there"
			      : strerror(err));
	return err == ENOENT ? EXIT_NOT_FOUND : EXIT_CANNOT_EXECUTE;
}

/* A file that was opened with O_DIRECT before the policy came is read past it. */
static void warn_of_direct_files(void)
{
	struct stat st;

	for (int fd = 0; fd < 1024; fd++) {
		int flags = fcntl(fd, F_GETFL);

		if (flags >= 0 && (flags & O_DIRECT) != 0 && fstat(fd, &st) == 0 &&
		    (S_ISREG(st.st_mode) || S_ISBLK(st.st_mode)))
			sublet__error("run: descriptor %d is open with O_DIRECT: reads into lent memory may "
				      "be lost",
				      fd);
	}
}

static int load_policy(const struct run *run)
{
	int err;

	if ((run->allow & sublet__policy_part("direct")) == 0)
		warn_of_direct_files();
	err = sublet__policy_load(run->allow);
	if (err == 0)
		return 0;
	sublet__error("run: the seccomp policy cannot be loaded: %s", strerror(-err));
	sublet__advice("`sublet doctor` shows whether filters are to be had; --allow all goes without (see "
		       "--help).");
	return err;
}

/* The program's file name, with what cannot stand in an instance's name replaced. */
static void default_name(struct run *run)
{
	const char *slash = strrchr(run->program[0], '/');

	if (run->settings.name[0] != '\0')
		return;
	(void)snprintf(run->settings.name, sizeof(run->settings.name), "%s",
		       slash ? slash + 1 : run->program[0]);
	if (run->settings.name[0] == '.')
		run->settings.name[0] = '_';
	for (char *at = run->settings.name; *at != '\0';) {
		size_t bytes = sublet__character_bytes(at); /* of what was cut in its middle: 0 */

		if (bytes == 0)
			*at = '_';
		at += bytes ? bytes : 1;
	}
	if (run->settings.name[0] == '\0')
		memcpy(run->settings.name, "program", sizeof("program"));
}

static int run_lent(struct run *run, const struct sublet__program *program)
{
	struct sublet__linux_facts facts;

	default_name(run);
	if (!check_least_file_size(run))
		return SUBLET__EXIT_RUN_FAILED;
	sublet__linux_facts_get(&facts);
	if (!check_abilities(run, &facts) || !settle_sizes(run, &facts) || !find_libraries(run))
		return SUBLET__EXIT_RUN_FAILED;
	if (set_environment(run) != 0) {
		sublet__error("run: no memory for the environment");
		return SUBLET__EXIT_RUN_FAILED;
	}
	if (load_policy(run) != 0)
		return SUBLET__EXIT_RUN_FAILED;
	return execute(program, run->program);
}

int sublet__cli_run(int argc, char **argv)
{
	struct run run = { .allow = SUBLET__POLICY_ALLOW_NONE };
	struct sublet__program program;
	int code = parse(&run, argc, argv);
	int err;

	if (code != 0)
		return code - 1;
	err = sublet__program_find(run.program[0], &program);
	if (err != 0) {
		sublet__error("run: %s: %s", run.program[0],
			      err == -ENOENT ? "there is no such program" : strerror(-err));
		return err == -ENOENT ? EXIT_NOT_FOUND : EXIT_CANNOT_EXECUTE;
	}
	if (program.why_plain != NULL) {
		sublet__error("%s runs in ordinary memory: %s", run.program[0], program.why_plain);
		return execute(&program, run.program);
	}
	return run_lent(&run, &program);
}
