/* SPDX-License-Identifier: MIT */
/*
 * What `sublet run` tells the bridge.
 *
 * The environment is the one channel that survives execve in place, and exec chains (`sublet run --
 * python3`, where python3 is a shell script that executes the real one) need it more than once: so
 * nothing is removed in the process that the settings are meant for. Its children inherit the
 * variables too; the bridge wakes up there, sees another pid, takes its variables out again and
 * stays passive, so that grandchildren never load it at all.
 *
 * All of it by hand on environ: a program may have a getenv and setenv of its own (bash has), which
 * know nothing of environ before main. Values only ever get shorter, so they are edited in place.
 */
#include "bridge/settings.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The place of "NAME=value" in environ; NULL: not set. */
static char **find_variable(const char *name)
{
	size_t length = strlen(name);

	for (char **at = environ; at != NULL && *at != NULL; at++)
		if (strncmp(*at, name, length) == 0 && (*at)[length] == '=')
			return at;
	return NULL;
}

static char *value_of(const char *name)
{
	char **at = find_variable(name);

	return at ? *at + strlen(name) + 1 : NULL;
}

static void remove_variable(const char *name)
{
	for (char **at = find_variable(name); at != NULL && *at != NULL; at++)
		at[0] = at[1];
}

/* "key=" at *text: its number, and *text moved behind the comma that follows. */
static bool take_number(const char **text, const char *key, uint64_t *value)
{
	size_t length = strlen(key);
	char *end;

	if (strncmp(*text, key, length) != 0 || (*text)[length] < '0' || (*text)[length] > '9')
		return false;
	*value = strtoull(*text + length, &end, 10);
	if (*end != ',')
		return false;
	*text = end + 1;
	return true;
}

int sublet__settings_read(struct sublet__settings *settings)
{
	const char *text = value_of(SUBLET__RUN_VARIABLE);
	uint64_t pid, preload, backing, technique, follow;
	struct sublet__settings s = { 0 };

	if (text == NULL)
		return -ENOENT;
	if (!take_number(&text, "pid=", &pid) || !take_number(&text, "preload=", &preload) ||
	    !take_number(&text, "area=", &s.area_bytes) || !take_number(&text, "normal=", &s.normal_bytes) ||
	    !take_number(&text, "backing=", &backing) || !take_number(&text, "technique=", &technique) ||
	    !take_number(&text, "chaos=", &s.chaos_ns) || !take_number(&text, "follow=", &follow))
		return -EINVAL;
	if (strncmp(text, "name=", 5) != 0 || strlen(text + 5) >= sizeof(s.name))
		return -EINVAL;
	if (backing > SUBLET_BACKING_MEMFD || technique > SUBLET_TECHNIQUE_WRITEPROTECT)
		return -EINVAL;
	s.pid = (pid_t)pid;
	s.preload_bytes = (size_t)preload;
	s.backing = (enum sublet_backing)backing;
	s.technique = (enum sublet_technique)technique;
	s.follow = follow != 0;
	memcpy(s.name, text + 5, strlen(text + 5) + 1);
	*settings = s;
	return 0;
}

/* What `sublet run` put into this LD_PRELOAD; NULL: it is not there any more. Others may have put theirs before it. */
static char *own_preload(char *preload, size_t bytes)
{
	char *at = strstr(preload, SUBLET__BRIDGE_FILE);

	if (at == NULL)
		return NULL;
	while (at > preload && at[-1] != ':' && at[-1] != ' ')
		at--;
	return strlen(at) >= bytes ? at : NULL;
}

static void forget_preload(const struct sublet__settings *settings)
{
	char *preload = value_of("LD_PRELOAD");
	char *own = preload ? own_preload(preload, settings->preload_bytes) : NULL;
	const char *rest;

	if (own == NULL)
		return;
	rest = own + settings->preload_bytes;
	if (*rest != '\0')
		rest++;
	else if (own > preload)
		own--; /* the colon before it */
	memmove(own, rest, strlen(rest) + 1);
	if (*preload == '\0')
		remove_variable("LD_PRELOAD");
}

/* Whether `text` ends with `end`, which is cut off then. */
static bool cut_end(char *text, const char *end)
{
	size_t length = strlen(text), mine = strlen(end);

	if (length < mine || strcmp(text + length - mine, end) != 0)
		return false;
	length -= mine;
	if (length > 0 && text[length - 1] == ',')
		length--;
	text[length] = '\0';
	return true;
}

static void forget_malloc_conf(void)
{
	char *conf = value_of("MALLOC_CONF");

	if (conf == NULL || !(cut_end(conf, SUBLET__MALLOC_CONF_TIGHT) || cut_end(conf, SUBLET__MALLOC_CONF)))
		return;
	if (*conf == '\0')
		remove_variable("MALLOC_CONF");
}

void sublet__settings_forget(const struct sublet__settings *settings)
{
	forget_preload(settings);
	forget_malloc_conf();
	remove_variable(SUBLET__RUN_VARIABLE);
}

bool sublet__settings_preloads(const char *part)
{
	const char *preload = value_of("LD_PRELOAD");

	return preload != NULL && strstr(preload, part) != NULL;
}
