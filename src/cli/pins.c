/* SPDX-License-Identifier: MIT */
/*
 * `sublet pins`: who holds memory where it is.
 *
 * A claim names the pin that it found in its way; this names them all beforehand. The longest held
 * come first, because a short pin that is old is a mistake of its owner's, and because long-term ones are
 * what the normal zone is used for.
 */
#include "cli/listing.h"

static const char help[] =
	"usage: sublet pins [--json] [[-n] NAME|PID]\n"
	"\n"
	"Show the pins of an instance, longest held first: class, age, bytes, what the device does with the\n"
	"memory, address in the instance's process, owner. Short pins without an owner tag are not listed.\n"
	"\n"
	"  short      for one I/O. In the way of a claim of the window that it lies in\n"
	"  long-term  for a session. Never in an area, so never in the way of a claim\n"
	"\n"
	"  -n, --name NAME|PID  the instance, also without -n; not needed where one runs\n"
	"  -j, --json           one JSON object: { \"pins\": [ { class, owner, age_ns, bytes, ... } ] }\n"
	"  -h, --help           this text\n"
	"\n"
	"exit status: 0; 1 refused; 2 usage; 3 no such instance\n";

static bool is_longterm(const struct sublet_pin_info *pin)
{
	return pin->flags & SUBLET_PIN_LONGTERM;
}

static const char *class_of(const struct sublet_pin_info *pin)
{
	return is_longterm(pin) ? "long-term" : "short";
}

static const char *access_of(const struct sublet_pin_info *pin)
{
	if (!(pin->flags & SUBLET_PIN_WRITE))
		return "r";
	return pin->flags & SUBLET_PIN_READ ? "rw" : "w";
}

static int fetch(struct sublet_client *client, uint64_t *next, size_t count, void *entries)
{
	return sublet_client_pins(client, next, count, entries);
}

static int compare(const void *a, const void *b)
{
	const struct sublet_pin_info *x = a, *y = b;

	return sublet__listing_order(x->age_ns, y->age_ns, x->addr, y->addr);
}

/* Pins may overlap, so the bytes of a class are what its pins ask for, not what they hold. */
static void print_sum(const struct sublet_pin_info *pins, size_t count, bool longterm)
{
	uint64_t bytes = 0;
	size_t n = 0;

	for (size_t i = 0; i < count; i++) {
		if (is_longterm(&pins[i]) != longterm)
			continue;
		bytes += pins[i].bytes;
		n++;
	}
	printf("%zu %s, %s", n, longterm ? "long-term" : "short", sublet__bytes(bytes).text);
}

static void print(const void *entries, size_t count)
{
	const struct sublet_pin_info *pins = entries;

	printf("%-9s %10s %10s  %-6s  %-14s  %s\n", "CLASS", "AGE", "BYTES", "ACCESS", "ADDRESS", "OWNER");
	for (size_t i = 0; i < count; i++) {
		printf("%-9s ", class_of(&pins[i]));
		sublet__print_right(10, sublet__duration(pins[i].age_ns).text);
		printf(" %10s  %-6s  0x%-12llx  %s\n", sublet__bytes(pins[i].bytes).text, access_of(&pins[i]),
		       (unsigned long long)pins[i].addr, pins[i].owner[0] ? pins[i].owner : "-");
	}
	putchar('\n');
	print_sum(pins, count, true);
	fputs("; ", stdout);
	print_sum(pins, count, false);
	putchar('\n');
}

static void json(cJSON *object, const void *entry)
{
	const struct sublet_pin_info *pin = entry;

	cJSON_AddStringToObject(object, "class", class_of(pin));
	cJSON_AddStringToObject(object, "owner", pin->owner);
	sublet__json_u64(object, "age_ns", pin->age_ns);
	sublet__json_u64(object, "bytes", pin->bytes);
	cJSON_AddBoolToObject(object, "read", (pin->flags & SUBLET_PIN_READ) != 0);
	cJSON_AddBoolToObject(object, "write", (pin->flags & SUBLET_PIN_WRITE) != 0);
	sublet__json_u64(object, "addr", pin->addr);
	sublet__json_u64(object, "mm", pin->mm);
}

int sublet__cli_pins(int argc, char **argv)
{
	static const struct sublet__listing listing = {
		.command = "pins",
		.help = help,
		.nothing = "no pin with an owner tag is held",
		.entry_bytes = sizeof(struct sublet_pin_info),
		.fetch = fetch,
		.compare = compare,
		.print = print,
		.json = json,
	};

	return sublet__cli_listing(&listing, argc, argv);
}
