/* SPDX-License-Identifier: MIT */
/*
 * What happened last, and the end of a world that is not as it should be.
 *
 * Nothing that differs from run to run goes into an event or into the hash: no address, no real time. So the hash of two
 * runs of a seed is the same, or the simulator itself is wrong.
 */
#include "sim.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

void sim_hash(struct sim *s, uint64_t value)
{
	s->hash = (s->hash ^ value) * 0x9e3779b97f4a7c15ull;
	s->hash ^= s->hash >> 29;
}

/* Print `what`, each %llu of it with the next number, which is signed where it is small enough to be an errno. */
static void event_print(FILE *to, const struct sim_event *e)
{
	const uint64_t number[] = { e->a, e->b, e->c, e->d };
	uint32_t at = 0;

	fprintf(to, "%9llu %11.1f us  %-10s ", (unsigned long long)e->step, (double)e->now_ns / 1000,
		e->fiber);
	for (const char *c = e->what; *c; c++) {
		if (*c != '%') {
			fputc(*c, to);
			continue;
		}
		uint64_t n = at < 4 ? number[at++] : 0;
		if (c[1] == 's') {
			fputs((const char *)(uintptr_t)n, to);
			c++;
		} else {
			fprintf(to, (int64_t)n < 0 && (int64_t)n > -4096 ? "%lld" : "%llu", (long long)n);
			c += 3; /* %llu */
		}
	}
	fputc('\n', to);
}

void sim_trace(struct sim *s, const char *what, uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
	struct sim_event *e = &s->event[s->events++ % SIM_TRACE_EVENTS];

	*e = (struct sim_event){ s->steps, s->now_ns, s->current ? s->current->name : "-", what, a, b, c, d };
	if (s->options.log)
		event_print(stderr, e);
}

const char *sim_op_name(const struct sim_fiber *f)
{
	static char name[48];
	size_t n = 0;

	while (n + 1 < sizeof name && f->op[n] && f->op[n] != '%' && f->op[n] != ':')
		n++;
	snprintf(name, sizeof name, "%.*s", (int)n, f->op);
	return name;
}

void sim_violation(struct sim *s, const char *format, ...)
{
	uint64_t count = s->events < SIM_TRACE_EVENTS ? s->events : SIM_TRACE_EVENTS;
	va_list arguments;

	fflush(stdout);
	count = count < s->options.trace ? count : s->options.trace;
	fprintf(stderr, "sublet-sim: the last %llu events, of %llu\n", (unsigned long long)count,
		(unsigned long long)s->events);
	for (uint64_t i = s->events - count; i < s->events && !s->options.log; i++)
		event_print(stderr, &s->event[i % SIM_TRACE_EVENTS]);
	fprintf(stderr,
		"VIOLATION seed %llu step %llu thread %s in %s: ", (unsigned long long)s->options.seed,
		(unsigned long long)s->steps, s->current ? s->current->name : "-",
		s->current ? sim_op_name(s->current) : "-");
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fprintf(stderr, "\nreplay with: sublet-sim --seed %llu --steps %llu --check-every %llu\n",
		(unsigned long long)s->options.seed, (unsigned long long)s->options.steps,
		(unsigned long long)s->options.check_every);
	exit(1);
}
