/* SPDX-License-Identifier: MIT */
/*
 * sublet-sim: worlds from seeds, until one is not as it should be.
 *
 *   sublet-sim --seed 7 --steps 10000      one world; the same each time, to the last step
 *   sublet-sim --seed 1 --worlds 1000      seeds 1 to 1000
 *
 * Exit status 0: no violation. 1: one, with its trace on standard error. 2: bad use.
 */
#include "sim.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define STEPS       10000u
#define STEPS_MAX   1000000000u
#define CHECK_EVERY 16u
#define TRACE       80u

static const char usage[] =
	"usage: sublet-sim [--seed N] [--steps N] [--worlds N] [--check-every N] [--trace N] [--log] "
	"[--report]\n"
	"                  [--each]\n"
	"  --seed N         first seed; without it one that differs each time, and is printed\n"
	"  --steps N        steps of a world before it comes to its end (10000)\n"
	"  --worlds N       so many seeds, one after the other (1)\n"
	"  --check-every N  steps between two looks at all bytes, frames and pins (16)\n"
	"  --trace N        events printed at a violation (80)\n"
	"  --log            print each event as it comes\n"
	"  --report         print each transition and answer, and how often it was reached\n"
	"  --each           print a line for each world: seed, steps, hash\n";

static double seconds_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* Worlds of two starts in the same second differ too. */
static uint64_t seed_fresh(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return ((uint64_t)ts.tv_sec * 1000000u + (uint64_t)ts.tv_nsec / 1000) % 1000000000000u;
}

static uint64_t number(const char *text, uint64_t most)
{
	char *end;

	errno = 0;
	unsigned long long n = strtoull(text, &end, 10); /* decimal, as seeds are printed */
	if (*text < '0' || *text > '9' || *end || errno || n > most) {
		fprintf(stderr, "sublet-sim: '%s' is no number up to %llu\n%s", text,
			(unsigned long long)most, usage);
		exit(2);
	}
	return n;
}

/* What the engine does with a number that is not one of a frame: the same as any other violation. */
static void crashed(int signal)
{
	(void)signal;
	sim_violation(sim_running(), "the engine, or the simulator, made an access that faults");
}

static void crash_watch(void)
{
	static char stack[64 << 10];
	stack_t alternate = { .ss_sp = stack, .ss_size = sizeof stack };
	struct sigaction action = { .sa_handler = crashed, .sa_flags = SA_ONSTACK };

	if (sigaltstack(&alternate, NULL) || sigaction(SIGSEGV, &action, NULL) ||
	    sigaction(SIGBUS, &action, NULL))
		fputs("sublet-sim: a crash will say nothing\n", stderr);
}

struct arguments {
	struct sim_options options;
	uint64_t worlds;
	bool report;
	bool each;
	bool has_seed;
};

static void arguments_read(int argc, char **argv, struct arguments *a)
{
	static const struct option known[] = {
		{ "seed", required_argument, NULL, 's' },   { "steps", required_argument, NULL, 'n' },
		{ "worlds", required_argument, NULL, 'w' }, { "check-every", required_argument, NULL, 'c' },
		{ "trace", required_argument, NULL, 't' },  { "log", no_argument, NULL, 'l' },
		{ "report", no_argument, NULL, 'r' },       { "each", no_argument, NULL, 'e' },
		{ "help", no_argument, NULL, 'h' },         { NULL, 0, NULL, 0 },
	};
	int c;

	while ((c = getopt_long(argc, argv, "", known, NULL)) != -1) {
		if (c == 's') {
			a->options.seed = number(optarg, UINT64_MAX);
			a->has_seed = true;
		} else if (c == 'n') {
			a->options.steps = number(optarg, STEPS_MAX);
		} else if (c == 'w') {
			a->worlds = number(optarg, UINT64_MAX);
		} else if (c == 'c') {
			a->options.check_every = number(optarg, UINT32_MAX);
		} else if (c == 't') {
			a->options.trace = (uint32_t)number(optarg, UINT32_MAX);
		} else if (c == 'l') {
			a->options.log = true;
		} else if (c == 'r') {
			a->report = true;
		} else if (c == 'e') {
			a->each = true;
		} else {
			fputs(usage, c == 'h' ? stdout : stderr);
			exit(c == 'h' ? 0 : 2);
		}
	}
	if (optind < argc || !a->options.check_every) {
		fputs(usage, stderr);
		exit(2);
	}
}

int main(int argc, char **argv)
{
	static struct sim_cover cover;
	struct arguments a = { .options = { .steps = STEPS, .check_every = CHECK_EVERY, .trace = TRACE },
			       .worlds = 1 };
	uint64_t steps = 0, faults = 0, rests = 0, hash = 0;
	double begin = seconds_now();

	arguments_read(argc, argv, &a);
	crash_watch();
	if (!a.has_seed)
		a.options.seed = seed_fresh();
	printf("seed %llu, %llu steps, %llu worlds\n", (unsigned long long)a.options.seed,
	       (unsigned long long)a.options.steps, (unsigned long long)a.worlds);
	fflush(stdout);
	for (uint64_t i = 0; i < a.worlds; i++, a.options.seed++) {
		struct sim_result r;
		sim_world(&a.options, &cover, &r);
		if (a.each)
			printf("seed %llu: %llu steps, hash %016llx\n", (unsigned long long)a.options.seed,
			       (unsigned long long)r.steps, (unsigned long long)r.hash);
		steps += r.steps;
		faults += r.faults;
		rests += r.rests;
		hash = hash * 31 + r.hash;
	}
	double seconds = seconds_now() - begin;
	(void)cover_print(&cover, a.report);
	printf("%llu steps in %.2f s, %.0f a second; %llu faults, %llu looks at a standing world; hash "
	       "%016llx; no "
	       "violation\n",
	       (unsigned long long)steps, seconds, (double)steps / seconds, (unsigned long long)faults,
	       (unsigned long long)rests, (unsigned long long)hash);
	return 0;
}
