/* SPDX-License-Identifier: MIT */
/*
 * `sublet map`: the area as a picture, a cell a pageblock.
 *
 * A cell shows the state that matters most to a claim, not the one with the most bytes: a pageblock
 * with one claimed or held frame is shown so, because no window can pass through it; otherwise the
 * larger of what lives there. A capital letter says that the block is all of that state. Letters
 * stay where there is colour, so that the picture needs neither colours nor eyes that tell them
 * apart. An area that would fill several screens is shown with several pageblocks to a cell.
 */
#include "cli/cli.h"
#include "cli/json.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define CELLS_MAX 16384 /* in one picture */

enum state { FREE, MOVABLE, DISCARDABLE, CLAIMED, HELD, ISOLATED, STATE_COUNT };

static const struct {
	const char *name;
	char some;          /* part of the block */
	char all;           /* the whole block */
	const char *colour; /* SGR parameters */
} states[STATE_COUNT] = {
	[FREE] = { "free", '.', '.', "90" },
	[MOVABLE] = { "movable", 'm', 'M', "30;42" },
	[DISCARDABLE] = { "discardable", 'd', 'D', "30;46" },
	[CLAIMED] = { "claimed", 'c', 'C', "97;44" },
	[HELD] = { "held (cannot move now)", 'h', 'H', "97;41" },
	[ISOLATED] = { "isolated (being claimed)", 'i', 'I', "30;43" },
};

struct picture {
	struct sublet_pageblock *blocks;
	size_t count;
	size_t per_cell;
	uint64_t block_bytes;
	unsigned int width; /* cells a line */
	bool colour;
};

static const char help[] =
	"usage: sublet map [--watch] [--json] [[-n] NAME|PID]\n"
	"\n"
	"Draw the area of an instance, a cell a pageblock (2 MiB), by what lives there:\n"
	"  . free   m movable   d discardable   c claimed   h held (cannot move now)   i being "
	"claimed\n"
	"A capital letter: the whole block is so. Colours on a terminal, unless NO_COLOR is set.\n"
	"\n"
	"  -n, --name NAME|PID  the instance, also without -n; not needed where one runs\n"
	"  -w, --watch          draw again every second, until Ctrl-C\n"
	"  -j, --json           one JSON object: block_bytes and the frames of each block by state;\n"
	"                       with --watch one after the other\n"
	"  -h, --help           this text\n"
	"\n"
	"exit status: 0; 1 refused; 2 usage; 3 no such instance\n";

static uint64_t frames_of(const struct sublet_pageblock *b, enum state s)
{
	switch (s) {
	case FREE:
		return b->free_frames;
	case MOVABLE:
		return b->movable_frames;
	case DISCARDABLE:
		return b->discardable_frames;
	case CLAIMED:
		return b->claimed_frames;
	case HELD:
		return b->held_frames;
	default:
		return b->isolated_frames;
	}
}

/* What to draw for blocks [first, first + count). */
static enum state cell(const struct sublet_pageblock *blocks, size_t count, bool *whole)
{
	static const enum state order[] = { ISOLATED, CLAIMED, HELD };
	uint64_t frames[STATE_COUNT] = { 0 }, all = 0;
	enum state s = FREE;

	for (size_t i = 0; i < count; i++)
		for (int k = 0; k < STATE_COUNT; k++)
			frames[k] += frames_of(&blocks[i], (enum state)k);
	for (int k = 0; k < STATE_COUNT; k++)
		all += frames[k];
	if (frames[MOVABLE] || frames[DISCARDABLE])
		s = frames[MOVABLE] >= frames[DISCARDABLE] ? MOVABLE : DISCARDABLE;
	for (size_t i = 0; i < sizeof(order) / sizeof(order[0]); i++) {
		if (frames[order[i]]) {
			s = order[i];
			break;
		}
	}
	*whole = frames[s] == all;
	return s;
}

static void draw_cells(const struct picture *p)
{
	size_t cells = (p->count + p->per_cell - 1) / p->per_cell;
	enum state last = STATE_COUNT;

	for (size_t i = 0; i < cells; i++) {
		size_t first = i * p->per_cell;
		size_t n = p->count - first < p->per_cell ? p->count - first : p->per_cell;
		bool whole;
		enum state s = cell(p->blocks + first, n, &whole);

		if (i % p->width == 0) {
			if (i)
				fputs(p->colour ? "\033[0m\n" : "\n", stdout);
			printf("%10s  ", sublet__bytes((uint64_t)first * p->block_bytes).text);
			last = STATE_COUNT;
		}
		if (p->colour && s != last)
			printf("\033[0;%sm", states[s].colour);
		last = s;
		putchar(whole ? states[s].all : states[s].some);
	}
	fputs(p->colour ? "\033[0m\n" : "\n", stdout);
}

static void draw_legend(const struct picture *p, uint64_t frame_bytes)
{
	uint64_t bytes[STATE_COUNT] = { 0 };

	for (size_t i = 0; i < p->count; i++)
		for (int k = 0; k < STATE_COUNT; k++)
			bytes[k] += frames_of(&p->blocks[i], (enum state)k) * frame_bytes;
	putchar('\n');
	for (int k = 0; k < STATE_COUNT; k++) {
		if (!bytes[k] && k > MOVABLE)
			continue;
		if (p->colour)
			printf("  \033[%sm%c\033[0m", states[k].colour, states[k].some);
		else
			printf("  %c", states[k].some);
		printf(" %s %s", states[k].name, sublet__bytes(bytes[k]).text);
	}
	printf("\n  a cell is %s", sublet__bytes(p->block_bytes * p->per_cell).text);
	puts("; a capital letter: all of it");
}

/* Columns of the terminal, in cells; a round number, so that columns mean something. */
static unsigned int picture_width(void)
{
	struct winsize size;
	unsigned int columns = 80, width;
	const char *env = getenv("COLUMNS");
	uint64_t value;

	if (!ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) && size.ws_col)
		columns = size.ws_col;
	else if (env && !sublet__parse_count(env, 1, 4096, &value))
		columns = (unsigned int)value;
	width = columns > 13 ? columns - 12 : 1;
	if (width >= 128)
		width = width / 64 * 64;
	else if (width >= 16)
		width = width / 16 * 16;
	return width;
}

static bool want_colour(void)
{
	const char *no_color = getenv("NO_COLOR"), *term = getenv("TERM");

	if (no_color && *no_color)
		return false;
	return isatty(STDOUT_FILENO) && (!term || strcmp(term, "dumb") != 0);
}

static void draw(const struct sublet_instance *in, const struct sublet_arena_info *info, struct picture *p)
{
	p->width = picture_width();
	p->colour = want_colour();
	p->per_cell = 1;
	while (p->count / p->per_cell > CELLS_MAX)
		p->per_cell *= 2;
	printf("%s (pid %d): area %s\n", in->name, (int)in->pid, sublet__bytes(info->area_bytes).text);
	draw_cells(p);
	draw_legend(p, info->frame_bytes);
}

static int json_map(const struct sublet_instance *in, const struct sublet_arena_info *info,
		    const struct picture *p)
{
	cJSON *root = cJSON_CreateObject(), *array;

	sublet__json_instance(root, in);
	sublet__json_u64(root, "area_bytes", info->area_bytes);
	sublet__json_u64(root, "frame_bytes", info->frame_bytes);
	sublet__json_u64(root, "block_bytes", p->block_bytes);
	array = cJSON_AddArrayToObject(root, "blocks");
	for (size_t i = 0; i < p->count; i++) {
		const struct sublet_pageblock *b = &p->blocks[i];
		cJSON *o = cJSON_CreateObject();

		sublet__json_u64(o, "free_frames", b->free_frames);
		sublet__json_u64(o, "movable_frames", b->movable_frames);
		sublet__json_u64(o, "discardable_frames", b->discardable_frames);
		sublet__json_u64(o, "claimed_frames", b->claimed_frames);
		sublet__json_u64(o, "held_frames", b->held_frames);
		sublet__json_u64(o, "isolated_frames", b->isolated_frames);
		cJSON_AddItemToArray(array, o);
	}
	return sublet__json_print(root);
}

/* Read all pageblocks. -errno; 0 with p->blocks to free. */
static int read_blocks(struct sublet_client *client, const struct sublet_arena_info *info, struct picture *p)
{
	size_t room = (size_t)(info->area_bytes / (2 * SUBLET_MIB)) + 1;
	int n;

	p->blocks = calloc(room, sizeof(*p->blocks));
	if (!p->blocks)
		return -ENOMEM;
	n = sublet_client_pageblocks(client, 0, room, p->blocks);
	if (n <= 0) {
		free(p->blocks);
		return n ? n : -ENODATA;
	}
	p->count = (size_t)n;
	p->block_bytes = info->area_bytes / p->count;
	return 0;
}

static int show(struct sublet_client *client, bool json, bool watch)
{
	const struct sublet_instance *in = sublet_client_instance(client);
	bool terminal = isatty(STDOUT_FILENO);
	int code;

	do {
		struct sublet_arena_info info = { SUBLET_OPTIONS(sublet_arena_info) };
		struct picture p = { 0 };
		int err = sublet_client_info(client, &info);

		if (!err)
			err = read_blocks(client, &info, &p);
		if (err)
			return sublet__cli_call_failed(client, "draw", err);
		if (watch && terminal && !json)
			fputs("\033[H\033[2J", stdout);
		code = SUBLET__EXIT_OK;
		if (json)
			code = json_map(in, &info, &p);
		else
			draw(in, &info, &p);
		free(p.blocks);
		code = sublet__finish(code);
		if (watch && !code)
			nanosleep(&(struct timespec){ .tv_sec = 1 }, NULL);
	} while (watch && !code);
	return code;
}

int sublet__cli_map(int argc, char **argv)
{
	struct sublet_client *client = NULL;
	const char *instance = NULL;
	bool json = false, watch = false;
	int code;

	if (!sublet__instance_options(argc, argv, help, &instance, &json, &watch, &code))
		return code;
	code = sublet__cli_connect(instance, &client);
	if (code)
		return code;
	code = show(client, json, watch);
	sublet_client_close(client);
	return code;
}
