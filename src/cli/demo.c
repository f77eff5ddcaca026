/* SPDX-License-Identifier: MIT */
/*
 * sublet demo: what lending is for, on one machine in a little more than a minute.
 *
 * Two Redis servers with the same data set: one on the plain heap, one, unmodified, in a lent area of
 * 512 MiB that a capture device, a process of its own, claims 64 MiB from ten times a second. The same
 * load runs against one or the other in turn, in short rounds whose order rotates, so that what the
 * machine does meanwhile falls on all alike:
 *
 *   plain heap             nothing else runs
 *   plain heap + device    the device does all its work, into a buffer of its own: no claims
 *   lent memory            nothing is claimed
 *   lent memory + claims   the device claims what Redis lives in
 *
 * The second is the fair twin of the fourth: what the device itself takes of a small machine (reading
 * and checking up to 640 MiB a second) is not a cost of claiming.
 *
 * Everything is checked: each value that Redis returns, each frame that the device gets, the digest of
 * the whole data set before and after, and that the claim of a driver that was killed is released.
 *
 * At the end, when all of that is gone, the three ways to give a device memory (demo_ways.c).
 */
#include "cli/demo_ways.h"
#include "cli/json.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ROUNDS        8u
#define ROUND_NS      (1500 * SUBLET_MS)
#define WAYS_ROUNDS   3u
#define WAYS_NS       (800 * SUBLET_MS)
#define WARM_NS       (500 * SUBLET_MS)
#define REFRESH_NS    (200 * SUBLET_MS)
#define DEATH_NS      (10 * SUBLET_SEC)
#define MEMORY_NEEDED (SUBLET__DEMO_AREA_BYTES + SUBLET__DEMO_NORMAL_BYTES + 900 * SUBLET_MIB)
#define PICTURE_CELLS 32u

struct demo {
	bool json;
	bool ways_only;
	uint32_t rounds;
	uint64_t round_ns;
	const char *parent_folder;
	char folder[SUBLET__DEMO_PATH_BYTES];
	char name[SUBLET_NAME_BYTES];
	struct sublet__redis plain;
	struct sublet__redis lent;
	struct sublet_client *client;
	struct sublet__load load;
	struct sublet__driver claiming; /* the device of the lent server */
	struct sublet__driver beside;   /* the one with a buffer of its own */
	struct sublet__demo_results results;
	struct sublet__ways_results ways;
};

static const char help[] =
	"usage: sublet demo [--ways] [--rounds N] [--each TIME] [--dir FOLDER] [--json]\n"
	"\n"
	"Redis in lent memory under load, while a capture device claims 64 MiB buffers of that memory ten\n"
	"times a second and has frames read into them from a disk. Then the three ways to give a device\n"
	"memory: claimed, pinned and tracked buffers, side by side. Takes little more than a minute and 2 "
	"GiB\n"
	"of memory.\n"
	"\n"
	"      --ways        only the three ways: half a minute at most, 500 MiB, no Redis\n"
	"      --rounds N    rounds of four measurements each (default 8); of the three ways (default 3,\n"
	"                    and no more than that where they come last)\n"
	"      --each TIME   length of one measurement (default 1.5s); of one way (default, and at most\n"
	"                    where they come last, 800ms)\n"
	"      --dir FOLDER  where a folder for the frames (96 MiB) may be made; must be on a disk (default\n"
	"                    /var/tmp)\n"
	"  -j, --json        print the results as one JSON object\n"
	"  -h, --help        this text\n"
	"\n"
	"exit status: 0 only if every claim succeeded, every checksum was right and the data set is\n"
	"unchanged; 1 otherwise; 2 usage; 130 interrupted, or 128 + the signal that ended it\n";

/* ---- the picture ---- */

static char cell(const struct sublet_pageblock *block, size_t count)
{
	uint64_t frames = 0, used = 0, claimed = 0;
	for (size_t i = 0; i < count; i++) {
		uint64_t in_use = (uint64_t)block[i].movable_frames + block[i].discardable_frames +
				  block[i].held_frames;
		used += in_use;
		claimed += (uint64_t)block[i].claimed_frames + block[i].isolated_frames;
		frames += in_use + block[i].free_frames + block[i].claimed_frames + block[i].isolated_frames;
	}
	if (2 * claimed >= frames)
		return 'C';
	return 4 * used >= 3 * frames ? '#' : 4 * used > frames ? '+' : '.';
}

/* The area in one line: '#' lived in, '+' partly, '.' free, 'C' claimed at this moment. */
static void picture(struct demo *demo, char text[PICTURE_CELLS + 1])
{
	static struct sublet_pageblock blocks[SUBLET__DEMO_AREA_BYTES / (2 * SUBLET_MIB)];
	size_t capacity = sizeof(blocks) / sizeof(blocks[0]);
	int count = sublet_client_pageblocks(demo->client, 0, capacity, blocks);
	size_t cells = count > 0 ? PICTURE_CELLS : 0;
	for (size_t i = 0; i < cells; i++) {
		size_t first = i * (size_t)count / cells, next = (i + 1) * (size_t)count / cells;
		text[i] = cell(blocks + first, next > first ? next - first : 1);
	}
	text[cells] = '\0';
}

static void show(struct demo *demo, uint32_t round, enum sublet__demo_mode mode, uint64_t elapsed_ns)
{
	char area[PICTURE_CELLS + 1] = "";
	if (!isatty(STDERR_FILENO))
		return;
	uint64_t operations = sublet__load_operations(&demo->load);
	if (mode == SUBLET__MODE_CLAIMS || mode == SUBLET__MODE_LENT)
		picture(demo, area);
	sublet__demo_line(false, "%u/%u %-11s %7.0f/s  claims %u/%u  frames %llu%s%s", round + 1,
			  demo->rounds,
			  mode == SUBLET__MODE_CLAIMS         ? "lent+claims"
			  : mode == SUBLET__MODE_LENT         ? "lent"
			  : mode == SUBLET__MODE_PLAIN_DEVICE ? "plain+dev"
							      : "plain",
			  elapsed_ns ? (double)operations * 1e9 / (double)elapsed_ns : 0.0,
			  demo->claiming.claims_succeeded, demo->claiming.claims,
			  (unsigned long long)demo->claiming.frames_good, area[0] ? "  " : "", area);
}

/* ---- one measurement ---- */

/* 0 while all children that are needed live; complains about the one that does not. */
static int check_servers(struct demo *demo)
{
	struct sublet__redis *servers[] = { &demo->plain, &demo->lent };
	for (size_t i = 0; i < 2; i++) {
		if (!sublet__demo_alive(&servers[i]->pid)) {
			sublet__redis_complain(servers[i], "died");
			return -ECHILD;
		}
	}
	return sublet__demo_interrupted() ? -EINTR : 0;
}

/* Watch the load until it ends. driver may be NULL. */
static int watch(struct demo *demo, struct sublet__driver *driver, uint32_t round,
		 enum sublet__demo_mode mode)
{
	uint64_t start_ns = sublet__demo_now_ns();
	uint64_t shown_ns = start_ns;
	int ended = 0;
	while (!ended) {
		int err = check_servers(demo);
		if (!err && driver)
			err = sublet__driver_poll(driver, 20 * SUBLET_MS);
		else if (!err)
			sublet__demo_sleep_ns(20 * SUBLET_MS);
		if (err)
			return err;
		ended = sublet__load_poll(&demo->load);
		uint64_t now_ns = sublet__demo_now_ns();
		if (now_ns - shown_ns >= REFRESH_NS) {
			show(demo, round, mode, now_ns - start_ns);
			shown_ns = now_ns;
		}
	}
	if (ended < 0 && !check_servers(demo))
		demo_error("the load on the %s failed: %s", sublet__demo_mode_name(mode), strerror(-ended));
	return ended < 0 ? ended : 0;
}

static int measure(struct demo *demo, uint32_t round, enum sublet__demo_mode mode, uint64_t duration_ns)
{
	bool is_lent = mode == SUBLET__MODE_LENT || mode == SUBLET__MODE_CLAIMS;
	const struct sublet__redis *redis = is_lent ? &demo->lent : &demo->plain;
	struct sublet__driver *driver = mode == SUBLET__MODE_CLAIMS         ? &demo->claiming
					: mode == SUBLET__MODE_PLAIN_DEVICE ? &demo->beside
									    : NULL;
	int err = sublet__load_start(&demo->load, redis->socket, duration_ns, 1 + round);
	if (!err && driver)
		err = sublet__driver_send(driver, SUBLET__DEVICE_GO);
	if (!err)
		err = watch(demo, driver, round, mode);
	if (!err && driver)
		err = sublet__driver_stop(driver);
	return err;
}

/* How long libc's memcpy takes for as many bytes as a claim, where claims run, under the same load. */
static int measure_memcpy(struct demo *demo, uint32_t round)
{
	int err = sublet__load_start(&demo->load, demo->lent.socket, WARM_NS, 1 + round);
	if (err)
		return err;
	sublet__demo_sleep_ns(WARM_NS / 4);
	err = sublet_client_memcpy_ns(demo->client, SUBLET__DEMO_CLAIM_BYTES,
				      &demo->results.memcpy_ns[round]);
	if (err && !check_servers(demo))
		demo_error("timing memcpy failed: %s", sublet__errno_text(err));
	return err ? err : watch(demo, NULL, round, SUBLET__MODE_LENT);
}

static int run_round(struct demo *demo, uint32_t round)
{
	struct sublet__demo_results *results = &demo->results;
	int err = 0;
	for (uint32_t i = 0; !err && i < SUBLET__MODES; i++) {
		enum sublet__demo_mode mode = (enum sublet__demo_mode)((i + round) % SUBLET__MODES);
		err = measure(demo, round, mode, demo->round_ns);
		if (!err)
			sublet__load_result(&demo->load, &results->load[mode][round]);
	}
	if (!err)
		err = measure_memcpy(demo, round);
	if (err)
		return err;
	results->rounds = round + 1;
	sublet__demo_line(true,
			  "round %u of %u: plain %.0f/s, + device %.0f/s, lent %.0f/s, + claims %.0f/s, %u "
			  "of %u claims",
			  round + 1, demo->rounds, results->load[SUBLET__MODE_PLAIN][round].rate,
			  results->load[SUBLET__MODE_PLAIN_DEVICE][round].rate,
			  results->load[SUBLET__MODE_LENT][round].rate,
			  results->load[SUBLET__MODE_CLAIMS][round].rate, demo->claiming.claims_succeeded,
			  demo->claiming.claims);
	return 0;
}

/* ---- before and after ---- */

static int check_machine(int *version)
{
	*version = sublet__redis_version();
	if (*version < 0) {
		demo_error("redis-server is not there, or does not run: %s", strerror(-*version));
		sublet__advice(
			"install it (Debian, Ubuntu: apt install redis-server), or let `make run` do it");
		return *version;
	}
	FILE *meminfo = fopen("/proc/meminfo", "re");
	char line[128];
	unsigned long long kib = 0;
	while (meminfo && fgets(line, sizeof(line), meminfo) &&
	       sscanf(line, "MemAvailable: %llu kB", &kib) != 1)
		;
	if (meminfo)
		fclose(meminfo);
	if (kib && kib * 1024 < MEMORY_NEEDED) {
		demo_error("the demonstration needs %s of memory, and %s are available",
			   sublet__bytes(MEMORY_NEEDED).text, sublet__bytes(kib * 1024).text);
		return -ENOMEM;
	}
	return 0;
}

static int start_servers(struct demo *demo, int version)
{
	sublet__demo_line(false, "starting two Redis servers");
	int err = sublet__redis_start(&demo->plain, "plain", demo->folder, NULL, version);
	if (!err)
		err = sublet__redis_start(&demo->lent, "lent", demo->folder, demo->name, version);
	if (err) {
		demo_error("cannot start Redis: %s", strerror(-err));
		return err;
	}
	err = sublet__redis_wait(&demo->plain);
	if (!err)
		err = sublet__redis_wait(&demo->lent);
	if (!err && sublet__cli_connect(demo->name, &demo->client))
		err = -ENOENT; /* it said why */
	if (!err) {
		demo->results.arena = (struct sublet_arena_info){ SUBLET_OPTIONS(sublet_arena_info) };
		err = sublet_client_info(demo->client, &demo->results.arena);
	}
	if (!err)
		err = sublet__redis_fill(&demo->plain);
	if (!err)
		err = sublet__redis_fill(&demo->lent);
	return err;
}

/* Of both servers, at once. */
static int digests(struct demo *demo, char plain[41], char lent[41])
{
	sublet__demo_line(false, "digests of both data sets");
	int err = sublet__redis_digest_ask(&demo->plain);
	if (!err)
		err = sublet__redis_digest_ask(&demo->lent);
	if (!err)
		err = sublet__redis_digest_fetch(&demo->plain, plain);
	return err ? err : sublet__redis_digest_fetch(&demo->lent, lent);
}

static int start_devices(struct demo *demo)
{
	char frames[SUBLET__DEMO_PATH_BYTES], log[SUBLET__DEMO_PATH_BYTES];
	if (snprintf(frames, sizeof(frames), "%s/frames", demo->folder) >= (int)sizeof(frames) ||
	    snprintf(log, sizeof(log), "%s/device.log", demo->folder) >= (int)sizeof(log))
		return -ENAMETOOLONG;
	sublet__demo_line(false, "writing frames");
	int err = sublet__frames_write(frames);
	if (err) {
		demo_error("cannot write the frames to %s: %s", frames, strerror(-err));
		return err;
	}
	err = sublet__driver_start(&demo->claiming, demo->name, frames, log);
	if (!err)
		err = sublet__driver_start(&demo->beside, NULL, frames, log);
	unlink(frames); /* both have it open: from here on nothing of it can stay behind */
	return err;
}

static int introduce(struct demo *demo)
{
	struct sublet_stats stats = { SUBLET_OPTIONS(sublet_stats) };
	int err = sublet_client_stats(demo->client, &stats);
	if (err)
		return err;
	if (stats.lent_bytes < 200 * SUBLET_MIB) {
		demo_error("Redis did not take lent memory: only %s of its data set are in the area",
			   sublet__bytes(stats.lent_bytes).text);
		return -EUCLEAN;
	}
	sublet__demo_line(
		true,
		"Redis holds %u keys, %s of them in the area of %s (%s in ordinary memory);\n"
		"the capture device (pid %d) claims %s of it ten times a second and reads frames into them.",
		SUBLET__KEYS, sublet__bytes(stats.lent_bytes).text,
		sublet__bytes(demo->results.arena.area_bytes).text, sublet__bytes(stats.plain_bytes).text,
		(int)demo->claiming.pid, sublet__bytes(SUBLET__DEMO_CLAIM_BYTES).text);
	return 0;
}

/* Kill the driver while it holds a claim and the disk writes into it; wait until nothing is claimed. */
static int kill_driver(struct demo *demo)
{
	struct sublet_stats stats = { SUBLET_OPTIONS(sublet_stats) };
	sublet__demo_line(false, "killing the driver while it holds a claim");
	int err = sublet__driver_hold(&demo->claiming);
	if (!err)
		err = sublet_client_stats(demo->client, &stats);
	if (!err && stats.claims_held != 1) {
		demo_error("the driver says that it holds a claim, and the instance counts %llu",
			   (unsigned long long)stats.claims_held);
		err = -EUCLEAN;
	}
	if (err)
		return err;
	uint64_t start_ns = sublet__demo_now_ns();
	sublet__driver_end(&demo->claiming);
	do {
		err = sublet_client_stats(demo->client, &stats);
		demo->results.death_ns = sublet__demo_now_ns() - start_ns;
		if (!err && stats.claims_held)
			sublet__demo_sleep_ns(SUBLET_MS / 2);
	} while (!err && stats.claims_held && demo->results.death_ns < DEATH_NS &&
		 !sublet__demo_interrupted());
	demo->results.death_released = !err && stats.claims_held == 0;
	demo->results.stats = stats;
	return err ? err : check_servers(demo);
}

static int run(struct demo *demo)
{
	struct sublet__demo_results *results = &demo->results;
	char ignored[41];
	int err = start_devices(demo);
	if (!err)
		err = introduce(demo);
	if (!err)
		err = digests(demo, ignored, results->digest_before);
	/* Warm both up; what the devices do here counts like everything else they do. */
	if (!err)
		err = measure(demo, 0, SUBLET__MODE_PLAIN_DEVICE, WARM_NS);
	if (!err)
		err = measure(demo, 0, SUBLET__MODE_CLAIMS, WARM_NS);
	for (uint32_t round = 0; !err && round < demo->rounds; round++)
		err = run_round(demo, round);
	if (!err)
		err = kill_driver(demo);
	if (!err)
		err = digests(demo, results->digest_plain, results->digest_after);
	return err;
}

/* End all that runs; the folder stays. */
static void stop_all(struct demo *demo)
{
	sublet__demo_line_clear();
	sublet__load_fini(&demo->load);
	sublet__driver_end(&demo->claiming);
	sublet__driver_end(&demo->beside);
	sublet_client_close(demo->client);
	sublet__redis_stop(&demo->lent);
	sublet__redis_stop(&demo->plain);
}

/* Redis and the capture device, from nothing to nothing. */
static int run_redis(struct demo *demo)
{
	uint64_t start_ns = sublet__demo_now_ns();
	int version;
	snprintf(demo->name, sizeof(demo->name), "demo-%d", (int)getpid());
	demo->claiming.fd = demo->beside.fd = demo->plain.fd = demo->lent.fd = -1;
	demo->results.driver = &demo->claiming;
	demo->results.round_ns = demo->round_ns;
	int err = check_machine(&version);
	if (!err)
		err = sublet__load_init(&demo->load);
	if (!err)
		err = start_servers(demo, version);
	if (!err)
		err = run(demo);
	stop_all(demo);
	demo->results.elapsed_ns = sublet__demo_now_ns() - start_ns;
	return sublet__demo_interrupted() ? -EINTR : err;
}

static int run_ways(struct demo *demo)
{
	const struct sublet__ways_options options = {
		.folder = demo->folder,
		.rounds = demo->ways_only || demo->rounds < WAYS_ROUNDS ? demo->rounds : WAYS_ROUNDS,
		.each_ns = demo->ways_only || demo->round_ns < WAYS_NS ? demo->round_ns : WAYS_NS,
	};
	int err = sublet__ways_run(&options, &demo->ways);
	sublet__demo_line_clear();
	return sublet__demo_interrupted() ? -EINTR : err;
}

static int print_json(struct demo *demo, bool good)
{
	cJSON *root = cJSON_CreateObject();
	cJSON_AddStringToObject(root, "version", SUBLET_VERSION);
	cJSON_AddBoolToObject(root, "good", good);
	if (!demo->ways_only)
		sublet__demo_json(root, &demo->results);
	sublet__ways_json(cJSON_AddObjectToObject(root, "ways"), &demo->ways);
	return sublet__json_print(root);
}

/* Each part shows what it found as soon as it is over. */
static int run_all(struct demo *demo)
{
	int err = sublet__demo_folder_make(demo->parent_folder, demo->folder, sizeof(demo->folder));
	if (!err && !demo->ways_only)
		err = run_redis(demo);
	if (!err && !demo->ways_only && !demo->json)
		sublet__demo_print(&demo->results);
	if (!err)
		err = run_ways(demo);
	if (!err && !demo->json)
		sublet__ways_print(&demo->ways);
	sublet__demo_folder_remove(demo->folder);
	return err;
}

static int demonstrate(struct demo *demo)
{
	sublet__demo_catch_signals();
	int err = run_all(demo);
	if (sublet__demo_interrupted()) {
		demo_error("interrupted; everything that was started is gone again");
		return 128 + sublet__demo_interrupted();
	}
	if (err)
		return SUBLET__EXIT_FAILED;
	bool good = sublet__ways_good(&demo->ways) && (demo->ways_only || sublet__demo_good(&demo->results));
	int code = demo->json ? print_json(demo, good) : SUBLET__EXIT_OK;
	return code || good ? code : SUBLET__EXIT_FAILED;
}

/* 0 to go on, or an exit code + 1. */
static int parse(int argc, char **argv, struct demo *demo)
{
	static const struct option options[] = {
		{ "rounds", required_argument, NULL, 'r' },
		{ "each", required_argument, NULL, 'e' },
		{ "dir", required_argument, NULL, 'd' },
		{ "json", no_argument, NULL, 'j' },
		{ "ways", no_argument, NULL, 'w' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	uint64_t rounds = 0;
	int option;
	opterr = 0;
	while ((option = getopt_long(argc, argv, ":jh", options, NULL)) != -1) {
		bool good = true;
		switch (option) {
		case 'r':
			good = sublet__option_count("--rounds", optarg, 1, SUBLET__ROUNDS_MAX, &rounds);
			break;
		case 'e':
			good = sublet__option_duration("--each", optarg, &demo->round_ns);
			break;
		case 'd':
			demo->parent_folder = optarg;
			break;
		case 'j':
			demo->json = true;
			break;
		case 'w':
			demo->ways_only = true;
			break;
		case 'h':
			fputs(help, stdout);
			return 1 + sublet__finish(SUBLET__EXIT_OK);
		default:
			return 1 + sublet__option_error("demo", option, argv);
		}
		if (!good)
			return 1 + sublet__usage_error("demo");
	}
	if (!rounds)
		rounds = demo->ways_only ? WAYS_ROUNDS : ROUNDS;
	if (!demo->round_ns)
		demo->round_ns = demo->ways_only ? WAYS_NS : ROUND_NS;
	demo->rounds = (uint32_t)rounds;
	if (optind < argc)
		return 1 + sublet__extra_argument("demo", argv[optind]);
	return 0;
}

int sublet__cli_demo(int argc, char **argv)
{
	static struct demo demo; /* too large for a stack */
	if (argc == 4 && strcmp(argv[1], "--capture-device") == 0)
		return sublet__device_main(argv[2], argv[3]);
	int stop = parse(argc, argv, &demo);
	return stop ? stop - 1 : sublet__finish(demonstrate(&demo));
}
