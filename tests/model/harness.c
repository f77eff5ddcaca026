/* SPDX-License-Identifier: MIT */
#include "harness.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define HANG_MS      60000u
#define SHRINK_NS    40000000000ull
#define SHRINK_RUNS  5000u
#define SHRINK_HANGS 20u /* candidates that may take their time */
#define PAIRS_MAX    40u /* of a list this short, two operations at a time are left out too */

/* Where the child is, for the parent to see after it died. */
struct progress {
	uint64_t list;
	uint32_t step;
};

static struct progress *progress;

/* ---- lists as text ---- */

static uint32_t kinds_of(const struct model *m)
{
	uint32_t n = 0;

	while (m->kind[n].name)
		n++;
	return n;
}

void model_write(const struct model *m, const struct model_list *list, char text[MODEL_TEXT_MAX])
{
	size_t at = 0;

	text[0] = 0;
	for (uint32_t i = 0; i < list->count && at + 200 < MODEL_TEXT_MAX; i++) {
		const struct model_kind *kind = &m->kind[list->op[i].kind];
		at += (size_t)snprintf(text + at, 40, "%s%s", i ? "; " : "", kind->name);
		for (uint32_t k = 0; k < kind->args; k++)
			at += (size_t)snprintf(text + at, 24, " %llu",
					       (unsigned long long)list->op[i].arg[k]);
	}
}

/* One operation; *text moves behind it and its ';'. */
static bool op_read(const struct model *m, const char **text, struct model_op *op)
{
	size_t word = strcspn(*text, " ;");
	uint32_t kinds = kinds_of(m);

	*op = (struct model_op){ .kind = 0 };
	while (op->kind < kinds &&
	       (strlen(m->kind[op->kind].name) != word || strncmp(m->kind[op->kind].name, *text, word)))
		op->kind++;
	if (op->kind == kinds)
		return false;
	*text += word;
	for (uint32_t k = 0; k < m->kind[op->kind].args; k++) {
		char *end;
		op->arg[k] = strtoull(*text, &end, 0);
		if (end == *text)
			return false;
		*text = end;
	}
	*text += strspn(*text, " ");
	if (**text == ';')
		*text += 1 + strspn(*text + 1, " ");
	else if (**text)
		return false;
	return true;
}

bool model_read(const struct model *m, const char *text, struct model_list *list)
{
	*list = (struct model_list){ 0, calloc(MODEL_LIST_MAX, sizeof *list->op) };
	assert_non_null(list->op);
	text += strspn(text, " ");
	while (*text) {
		if (list->count == MODEL_LIST_MAX || !op_read(m, &text, &list->op[list->count])) {
			free(list->op);
			return false;
		}
		list->count++;
	}
	return true;
}

/* ---- running, in a child ---- */

static void list_do(const struct model *m, const struct model_list *list)
{
	void *both = m->open(m->shape);

	for (uint32_t i = 0; i < list->count; i++) {
		progress->step = i;
		m->step(both, &list->op[i]);
	}
	m->close(both);
}

static void list_random(const struct model *m, uint64_t seed, struct model_list *list, uint32_t length)
{
	uint32_t kinds = kinds_of(m), weights = 0;
	uint64_t state = seed;

	for (uint32_t k = 0; k < kinds; k++)
		weights += m->kind[k].weight;
	for (list->count = 0; list->count < length; list->count++) {
		struct model_op *op = &list->op[list->count];
		uint32_t at = below(&state, weights);
		*op = (struct model_op){ .kind = 0 };
		while (at >= m->kind[op->kind].weight)
			at -= m->kind[op->kind++].weight;
		m->pick(m->shape, list->count, &state, op);
		for (uint32_t k = m->kind[op->kind].args; k < MODEL_ARGS; k++)
			op->arg[k] = 0;
	}
}

/* The n-th sequence of choices. */
static void list_sequence(const struct model_hunt *hunt, uint64_t n, struct model_list *list)
{
	for (list->count = 0; list->count < hunt->length; n /= hunt->choices)
		list->op[list->count++] = hunt->choice[n % hunt->choices];
}

static void list_make(const struct model *m, const struct model_hunt *hunt, uint64_t n,
		      struct model_list *list)
{
	if (hunt->choices)
		list_sequence(hunt, n, list);
	else
		list_random(m, hunt->seed + n, list, hunt->length);
}

static uint64_t lists_of(const struct model_hunt *hunt)
{
	uint64_t n = 1;

	for (uint32_t i = 0; hunt->choices && i < hunt->length; i++)
		n *= hunt->choices;
	return hunt->choices ? n : hunt->lists;
}

uint32_t model_stride(void)
{
	const char *given = getenv("MODEL_STRIDE");
	uint32_t stride = given ? (uint32_t)strtoul(given, NULL, 10) : 1;

	return stride ? stride : 1;
}

static void hunt_do(const struct model *m, const struct model_hunt *hunt)
{
	struct model_list list = { 0, calloc(hunt->length, sizeof *list.op) };
	uint64_t lists = lists_of(hunt);

	for (uint64_t n = 0; n < lists; n += model_stride()) {
		progress->list = n;
		list_make(m, hunt, n, &list);
		list_do(m, &list);
	}
	free(list.op);
}

/* A failed assertion is to end the child, and not to jump into the parent's next test; nor is a signal. */
static void child_prepare(const struct model *m, bool shown, uint64_t lists)
{
	static const int signals[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGSYS, SIGALRM };
	uint64_t ms = (m->hang_ms ? m->hang_ms : HANG_MS) * (lists > 1 ? 10u : 1u);
	struct itimerval timer = { .it_value = { (time_t)(ms / 1000), (suseconds_t)(ms % 1000 * 1000) } };

	setenv("CMOCKA_TEST_ABORT", "1", 1);
	prctl(PR_SET_DUMPABLE, 0);
	for (uint32_t i = 0; i < sizeof signals / sizeof *signals; i++)
		signal(signals[i], SIG_DFL);
	setitimer(ITIMER_REAL, &timer, NULL);
	if (shown)
		return;
	int null = open("/dev/null", O_WRONLY | O_CLOEXEC);
	fflush(NULL);
	dup2(null, STDOUT_FILENO);
	dup2(null, STDERR_FILENO);
}

static enum model_verdict child_wait(pid_t pid)
{
	int status = 0;

	assert_true(pid > 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM)
		return MODEL_HANGS;
	return WIFEXITED(status) && !WEXITSTATUS(status) ? MODEL_PASSES : MODEL_FAILS;
}

static void progress_ready(void)
{
	if (!progress)
		progress = mmap(NULL, sizeof *progress, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
				-1, 0);
	assert_true(progress != MAP_FAILED);
	*progress = (struct progress){ 0 };
}

enum model_verdict model_run(const struct model *m, const struct model_list *list, bool shown)
{
	progress_ready();
	fflush(NULL);
	pid_t pid = fork();
	if (pid)
		return child_wait(pid);
	child_prepare(m, shown, 1);
	list_do(m, list);
	fflush(NULL);
	_exit(0);
}

static enum model_verdict hunt_run(const struct model *m, const struct model_hunt *hunt)
{
	progress_ready();
	fflush(NULL);
	pid_t pid = fork();
	if (pid)
		return child_wait(pid);
	child_prepare(m, false, lists_of(hunt));
	hunt_do(m, hunt);
	_exit(0);
}

/* ---- making a list short ---- */

struct shrink {
	const struct model *m;
	struct model_found *found;
	struct model_list try; /* as long as the list at first */
	uint64_t until_ns;
	uint32_t hangs;
};

/* Whether the candidate fails in the same manner; then it is the list from here on. */
static bool candidate_keeps(struct shrink *s)
{
	if (s->found->runs == SHRINK_RUNS || s->hangs == SHRINK_HANGS || wall_ns() > s->until_ns)
		return false;
	s->found->runs++;
	enum model_verdict verdict = model_run(s->m, &s->try, false);
	s->hangs += verdict == MODEL_HANGS;
	if (verdict != s->found->verdict)
		return false;
	struct model_list *list = &s->found->list;
	/* What comes after the failure is not part of it. */
	list->count = s->try.count ? progress->step + 1 : 0;
	memcpy(list->op, s->try.op, list->count * sizeof *list->op);
	return true;
}

/* The list without [a, a + n) and [b, b + m), a + n <= b, as the candidate. */
static void candidate_without(struct shrink *s, uint32_t a, uint32_t n, uint32_t b, uint32_t m)
{
	const struct model_list *list = &s->found->list;

	s->try.count = 0;
	for (uint32_t i = 0; i < list->count; i++)
		if ((i < a || i >= a + n) && (i < b || i >= b + m))
			s->try.op[s->try.count++] = list->op[i];
}

/* Leave out pieces, half the list at first, one operation at last. */
static bool pieces_leave(struct shrink *s)
{
	const struct model_list *list = &s->found->list;
	bool any = false;

	for (uint32_t n = (list->count + 1) / 2; n; n = n > 1 ? (n + 1) / 2 : 0)
		for (uint32_t at = 0; at < list->count;) {
			candidate_without(s, at, n, list->count, 0);
			if (s->try.count < list->count && candidate_keeps(s))
				any = true;
			else
				at += n;
		}
	return any;
}

/* Something and its opposite, which can only go together. */
static bool pairs_leave(struct shrink *s)
{
	const struct model_list *list = &s->found->list;

	if (list->count > PAIRS_MAX)
		return false;
	for (uint32_t a = 0; a < list->count; a++)
		for (uint32_t b = a + 1; b < list->count; b++) {
			candidate_without(s, a, 1, b, 1);
			if (candidate_keeps(s))
				return true;
		}
	return false;
}

/* The list with argument k of operation i, or with all arguments of its value, made `to`. */
static void candidate_with(struct shrink *s, uint32_t i, uint32_t k, bool together, uint64_t to)
{
	const struct model_list *list = &s->found->list;
	uint64_t was = list->op[i].arg[k];

	s->try.count = list->count;
	memcpy(s->try.op, list->op, list->count * sizeof *list->op);
	s->try.op[i].arg[k] = to;
	for (uint32_t n = 0; together && n < list->count * MODEL_ARGS; n++)
		if (s->try.op[n / MODEL_ARGS].arg[n % MODEL_ARGS] == was)
			s->try.op[n / MODEL_ARGS].arg[n % MODEL_ARGS] = to;
}

/* Try to make argument k of operation i smaller; whether it is now. */
static bool arg_simplify(struct shrink *s, uint32_t i, uint32_t k)
{
	uint64_t was = s->found->list.op[i].arg[k];
	const uint64_t simpler[] = { 0, 1, was / 2, was - was / 4, was - 1 };

	for (uint32_t n = 0; n < 2 * sizeof simpler / sizeof *simpler; n++) {
		if (simpler[n / 2] >= was)
			continue;
		candidate_with(s, i, k, n % 2, simpler[n / 2]);
		if (candidate_keeps(s))
			return true;
	}
	return false;
}

static bool args_simplify(struct shrink *s)
{
	const struct model_list *list = &s->found->list;
	bool any = false;

	for (uint32_t i = 0; i < list->count; i++)
		for (uint32_t k = 0; i < list->count && k < s->m->kind[list->op[i].kind].args; k++)
			while (i < list->count && arg_simplify(s, i, k))
				any = true;
	return any;
}

static void list_shrink(const struct model *m, const struct model_hunt *hunt, struct model_found *found)
{
	struct shrink s = { .m = m, .found = found, .until_ns = UINT64_MAX };

	if (!hunt->unhurried)
		s.until_ns = wall_ns() + SHRINK_NS;

	s.try.op = calloc(found->list.count + 1, sizeof *s.try.op);
	assert_non_null(s.try.op);
	candidate_without(&s, found->list.count, 0, found->list.count, 0);
	found->again = candidate_keeps(&s);
	while (found->again && (pieces_leave(&s) || pairs_leave(&s) || args_simplify(&s)))
		;
	free(s.try.op);
}

/* ---- finding ---- */

void model_hunt(const struct model *m, const struct model_hunt *hunt, struct model_found *found)
{
	*found = (struct model_found){ .verdict = hunt_run(m, hunt) };
	if (!found->verdict)
		return;
	found->seed = hunt->seed + progress->list;
	found->list.op = calloc(hunt->length + 1, sizeof *found->list.op);
	assert_non_null(found->list.op);
	list_make(m, hunt, progress->list, &found->list);
	if (progress->step < found->list.count)
		found->list.count = progress->step + 1;
	found->was = found->list.count;
	list_shrink(m, hunt, found);
}

static void found_print(const struct model *m, const struct model_found *found)
{
	static char text[MODEL_TEXT_MAX];

	model_write(m, &found->list, text);
	if (!found->again)
		print_error(
			"%s: SEED=%llu fails, but not on its own: something is left over by lists before\n",
			m->name, (unsigned long long)found->seed);
	print_error("%s: SEED=%llu %s after %u operations; %u are enough (%u runs):\n"
		    "  MODEL_OPS='%s: %s'\n"
		    "or, among the kept lists of the model:\n"
		    "  \"%s\",\n",
		    m->name, (unsigned long long)found->seed,
		    found->verdict == MODEL_HANGS ? "does not end" : "fails", found->was, found->list.count,
		    found->runs, m->name, text, text);
}

static void hunt_or_fail(const struct model *m, const struct model_hunt *hunt)
{
	struct model_found found;

	model_hunt(m, hunt, &found);
	if (!found.verdict)
		return;
	found_print(m, &found);
	(void)model_run(m, &found.list, true); /* for its message */
	free(found.list.op);
	fail_msg("%s: the real thing and its twin differ", m->name);
}

static void text_run(const struct model *m, const char *text, bool shown)
{
	struct model_list list;

	if (!model_read(m, text, &list))
		fail_msg("%s: not a list of this model: %s", m->name, text);
	enum model_verdict verdict = model_run(m, &list, shown);
	free(list.op);
	if (verdict)
		fail_msg("%s: %s: %s", m->name, verdict == MODEL_HANGS ? "does not end" : "fails", text);
}

/* Whether MODEL_OPS asks for one list; it is run if it is one of this model. */
static bool asked_run(const struct model *m)
{
	const char *asked = getenv("MODEL_OPS");
	size_t name = strlen(m->name);

	if (!asked)
		return false;
	if (!strncmp(asked, m->name, name) && asked[name] == ':')
		text_run(m, asked + name + 1, true);
	return true;
}

void model_random(const struct model *m, uint32_t lists, uint32_t length)
{
	if (asked_run(m))
		return;
	for (const char *const *kept = m->kept; kept && *kept; kept++)
		text_run(m, *kept, true);
	hunt_or_fail(m, &(struct model_hunt){ .seed = seed_get(m->name), .lists = lists, .length = length });
}

void model_enumerate(const struct model *m, const struct model_op *choice, uint32_t choices, uint32_t length)
{
	struct model_hunt hunt = { .length = length, .choice = choice, .choices = choices };

	if (asked_run(m))
		return;
	print_message("%s: %llu sequences\n", m->name, (unsigned long long)lists_of(&hunt));
	hunt_or_fail(m, &hunt);
}
