/* SPDX-License-Identifier: MIT */
/*
 * `sublet claim`: be a driver for a moment.
 *
 * Claims in a running instance, measures, releases. The ratio printed for each claim compares its
 * latency with a libc memcpy of just as many bytes as it moved, timed in the same process right
 * afterwards, since memory speed depends on the machine, its load and the backing; where nothing
 * moved there is nothing to compare with.
 *
 * Ctrl-C ends the hold, releases, prints what was measured, and exits with 130. While a claim is
 * waiting with a long deadline there is nothing to release yet; then the process just ends, and
 * the instance gives up the claim by itself.
 */
#include "cli/claim.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define COUNT_MAX   100000
#define ALIGN_MAX   SUBLET_GIB
#define PATIENCE_NS (2 * SUBLET_SEC) /* a claim that takes longer is not waited for after Ctrl-C */

static volatile sig_atomic_t interrupted_by;
static volatile sig_atomic_t die_at_once;

static void on_signal(int signal)
{
	if (interrupted_by || die_at_once)
		_exit(128 + signal);
	interrupted_by = signal;
}

static void catch_signals(void)
{
	struct sigaction action = { .sa_handler = on_signal }; /* no SA_RESTART: the hold ends */

	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	signal(SIGPIPE, SIG_IGN); /* `| head` must not keep us from releasing */
}

static void print_help(void)
{
	fputs("usage: sublet claim [OPTIONS] SIZE\n"
	      "\n"
	      "Claim SIZE contiguous bytes of a running instance, say what it cost, and release them.\n"
	      "SIZE: 64M, 1.5G, 64KiB, 4096 (units of 1024).\n"
	      "\n"
	      "  -n, --name NAME|PID  the instance; not needed where one runs\n"
	      "  -a, --align SIZE     alignment in the area, a power of two up to 1G\n"
	      "  -d, --deadline TIME  how long to wait for whoever holds memory: 100us, 5ms, 1s (the "
	      "default)\n"
	      "      --no-wait        do not wait at all\n"
	      "      --no-zero        leave what is in the memory\n"
	      "      --dearest        claim the dearest window instead of the cheapest: the worst case\n"
	      "      --hold TIME      keep each claim that long before it is released\n"
	      "  -c, --count N        N claims one after the other, and a summary (at most 100000)\n"
	      "      --owner NAME     named to others whom this claim is in the way of\n"
	      "  -j, --json           one JSON object: instance, request, claims[], summary\n"
	      "  -h, --help           this text\n"
	      "\n"
	      "\"1.12 × memcpy\": the claim took 1.12 times as long as a memcpy of the bytes it moved, which "
	      "is\n"
	      "timed in the instance itself, on memory of the same kind. Ctrl-C releases.\n"
	      "\n"
	      "exit status: 0 all claims succeeded; 1 refused; 2 usage; 3 no such instance;\n"
	      "4 somebody holds memory in every window; 5 no room; 130 interrupted\n",
	      stdout);
}

static void hold(uint64_t ns)
{
	struct timespec left = { .tv_sec = (time_t)(ns / SUBLET_SEC), .tv_nsec = (long)(ns % SUBLET_SEC) };

	while (!interrupted_by && nanosleep(&left, &left) && errno == EINTR)
		;
}

/* How the runs of one job went, beyond the records. */
struct progress {
	struct sublet__claim_record *records;
	uint64_t done;
	cJSON *root; /* NULL: for people */
	int code;
};

/* One claim from begin to end. Returns false where another one makes no sense. */
static bool claim_once(struct sublet_client *client, const struct sublet__claim_job *job, struct progress *p)
{
	struct sublet__claim_record *r = &p->records[p->done];
	struct sublet_claim claim;
	bool first_failure = p->code == SUBLET__EXIT_OK;

	die_at_once = job->options.deadline_ns > PATIENCE_NS;
	r->error = sublet_client_claim(client, job->bytes, &job->options, &claim);
	die_at_once = 0;
	p->done++;
	r->latency_ns = claim.latency_ns;
	r->zeroing_ns = claim.zeroing_ns;
	r->moved_bytes = claim.moved_bytes;
	if (!r->error && claim.moved_bytes &&
	    sublet_client_memcpy_ns(client, claim.moved_bytes, &r->memcpy_ns))
		r->memcpy_ns = 0;
	if (p->root)
		sublet__claim_json_add(p->root, &claim, r->error, r->memcpy_ns);
	if (r->error) {
		if (first_failure)
			p->code = sublet__claim_explain(client, job, r->error, &claim);
		else if (!p->root)
			printf("not claimed: %s\n", sublet__errno_text(r->error));
		return r->error == -EBUSY || r->error == -ENOMEM;
	}
	if (!p->root) {
		sublet__claim_print(&claim, r->memcpy_ns);
		fflush(stdout);
	}
	if (job->hold_ns)
		hold(job->hold_ns);
	r->error = sublet_client_release(client, &claim);
	if (r->error)
		p->code = sublet__cli_call_failed(client, "release the claim of", r->error);
	return !r->error;
}

static int finish(const struct sublet__claim_job *job, struct progress *p)
{
	struct sublet__claim_summary summary;
	int code = p->code;

	sublet__claim_summarise(p->records, p->done, &summary);
	if (p->root) {
		int printed;

		sublet__claim_json_summary(p->root, &summary, interrupted_by != 0);
		printed = sublet__json_print(p->root);
		if (!code)
			code = printed;
	} else if (job->count > 1) {
		sublet__claim_print_summary(&summary);
	}
	return interrupted_by ? 128 + interrupted_by : code;
}

static int run_job(const struct sublet__claim_job *job)
{
	struct progress p = { .code = SUBLET__EXIT_OK };
	struct sublet_client *client = NULL;
	int code;

	p.records = calloc((size_t)job->count, sizeof(*p.records));
	if (!p.records) {
		sublet__error("out of memory for %llu records", (unsigned long long)job->count);
		return SUBLET__EXIT_FAILED;
	}
	code = sublet__cli_connect(job->instance, &client);
	if (!code) {
		catch_signals();
		if (job->json)
			p.root = sublet__claim_json_begin(sublet_client_instance(client), job);
		while (p.done < job->count && !interrupted_by && claim_once(client, job, &p))
			;
		code = finish(job, &p);
		sublet_client_close(client);
	}
	free(p.records);
	return code;
}

/* ---- the command line ---- */

enum { OPT_NO_WAIT = 256, OPT_NO_ZERO, OPT_DEAREST, OPT_HOLD, OPT_OWNER };

/* Returns false after an error line. */
static bool take_option(struct sublet__claim_job *job, int c)
{
	switch (c) {
	case 'n':
		job->instance = optarg;
		return true;
	case 'a':
		if (!sublet__option_size("--align", optarg, &job->options.align_bytes))
			return false;
		if (job->options.align_bytes && job->options.align_bytes <= ALIGN_MAX &&
		    !(job->options.align_bytes & (job->options.align_bytes - 1)))
			return true;
		sublet__error("--align '%s' is no power of two from 1 to 1G", optarg);
		return false;
	case 'd':
		if (!sublet__option_duration("--deadline", optarg, &job->options.deadline_ns))
			return false;
		if (job->options.deadline_ns)
			return true;
		sublet__error("--deadline 0 leaves no time: use --no-wait");
		return false;
	case OPT_NO_WAIT:
		job->options.flags |= SUBLET_CLAIM_NOWAIT;
		return true;
	case OPT_NO_ZERO:
		job->options.flags |= SUBLET_CLAIM_NOZERO;
		return true;
	case OPT_DEAREST:
		job->options.flags |= SUBLET_CLAIM_DEAREST;
		return true;
	case OPT_HOLD:
		return sublet__option_duration("--hold", optarg, &job->hold_ns);
	case 'c':
		return sublet__option_count("--count", optarg, 1, COUNT_MAX, &job->count);
	case OPT_OWNER:
		job->options.owner = optarg;
		if (strlen(optarg) < SUBLET_OWNER_BYTES)
			return true;
		sublet__error("--owner '%s' is longer than %d bytes", optarg, SUBLET_OWNER_BYTES - 1);
		return false;
	default:
		job->json = true;
		return true;
	}
}

static int parse_arguments(int argc, char **argv, struct sublet__claim_job *job)
{
	if (optind == argc) {
		sublet__error("claim: how much? SIZE is missing");
		return sublet__usage_error("claim");
	}
	if (optind + 1 < argc)
		return sublet__extra_argument("claim", argv[optind + 1]);
	if (!sublet__option_size("SIZE", argv[optind], &job->bytes))
		return sublet__usage_error("claim");
	if (!job->bytes) {
		sublet__error("SIZE is 0: there is nothing to claim");
		return sublet__usage_error("claim");
	}
	return SUBLET__EXIT_OK;
}

int sublet__cli_claim(int argc, char **argv)
{
	static const struct option options[] = {
		{ "name", required_argument, NULL, 'n' },
		{ "align", required_argument, NULL, 'a' },
		{ "deadline", required_argument, NULL, 'd' },
		{ "no-wait", no_argument, NULL, OPT_NO_WAIT },
		{ "no-zero", no_argument, NULL, OPT_NO_ZERO },
		{ "dearest", no_argument, NULL, OPT_DEAREST },
		{ "hold", required_argument, NULL, OPT_HOLD },
		{ "count", required_argument, NULL, 'c' },
		{ "owner", required_argument, NULL, OPT_OWNER },
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	struct sublet__claim_job job = { .options = { SUBLET_OPTIONS(sublet_claim_options) }, .count = 1 };
	int c, code;

	opterr = 0;
	while ((c = getopt_long(argc, argv, ":n:a:d:c:jh", options, NULL)) != -1) {
		if (c == 'h') {
			print_help();
			return SUBLET__EXIT_OK;
		}
		if (c == '?' || c == ':')
			return sublet__option_error("claim", c, argv);
		if (!take_option(&job, c))
			return sublet__usage_error("claim");
	}
	code = parse_arguments(argc, argv, &job);
	return code ? code : run_job(&job);
}
