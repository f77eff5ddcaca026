/* SPDX-License-Identifier: MIT */
/*
 * A blocker in words. Here and not in the engine, which formats nothing.
 *
 * One line each, in the order a reader needs it: how much, where, who, since when.
 */
#include <sublet/claim.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>

static const char *kind_text(const struct sublet_blocker *b)
{
	switch (b->kind) {
	case SUBLET_BLOCKER_PIN:
		return "a short pin that was not released in time";
	case SUBLET_BLOCKER_CLAIM:
		return "another claim";
	case SUBLET_BLOCKER_CHILD:
		return "a child of fork() that still shares the memory";
	case SUBLET_BLOCKER_PROTECTED:
		return "memory whose protection the program changed";
	case SUBLET_BLOCKER_MAPPINGS:
		return "the budget of kernel mappings is spent (vm.max_map_count)";
	case SUBLET_BLOCKER_NOROOM:
		return "no room to move to";
	case SUBLET_BLOCKER_PLATFORM:
		return b->error == -EOPNOTSUPP ? "memory that does not move under valgrind"
					       : "the system refused a step";
	case SUBLET_BLOCKER_NOTIFIER:
		return "a device, or whoever else was told, that did not let go in time";
	case SUBLET_BLOCKER_WATCHED:
		return "memory that the program has registered with a userfaultfd of its own";
	case SUBLET_BLOCKER_CALL:
		return "memory in the hand of a call that was not over";
	default:
		return "something unknown";
	}
}

/* "64 MiB", "16 KiB": the largest unit that keeps it whole. */
static void size_text(uint64_t bytes, char *text, size_t size)
{
	if (bytes >= SUBLET_MIB && bytes % SUBLET_MIB == 0)
		snprintf(text, size, "%llu MiB", (unsigned long long)(bytes / SUBLET_MIB));
	else if (bytes >= SUBLET_KIB && bytes % SUBLET_KIB == 0)
		snprintf(text, size, "%llu KiB", (unsigned long long)(bytes / SUBLET_KIB));
	else
		snprintf(text, size, "%llu bytes", (unsigned long long)bytes);
}

int sublet_blocker_describe(const struct sublet_claim *claim, uint32_t i, char *text, size_t bytes)
{
	char size[32], at[40] = "", who[SUBLET_OWNER_BYTES + 48] = "", age[40] = "";

	if (!claim || (!text && bytes) || i >= claim->blocker_count || i >= SUBLET_BLOCKERS_MAX)
		return -EINVAL;
	const struct sublet_blocker *b = &claim->blockers[i];

	size_text(b->bytes, size, sizeof size);
	if (b->kind != SUBLET_BLOCKER_NOROOM)
		snprintf(at, sizeof at, " at 0x%llx", (unsigned long long)b->offset_bytes);
	if (b->kind == SUBLET_BLOCKER_CHILD && b->error)
		snprintf(who, sizeof who, " (pid %d)", b->error);
	else if (b->kind == SUBLET_BLOCKER_PLATFORM && b->error != -EOPNOTSUPP)
		snprintf(who, sizeof who, " (%s)", strerror(-b->error));
	else if (b->owner[0])
		snprintf(who, sizeof who, " '%.*s'", SUBLET_OWNER_BYTES, b->owner);
	if (b->age_ns)
		snprintf(age, sizeof age, ", %.1f s old", (double)b->age_ns / 1e9);
	return snprintf(text, bytes, "%s%s: %s%s%s", size, at, kind_text(b), who, age);
}
