/* SPDX-License-Identifier: MIT */
/*
 * Owner tags, and names of instances, are bytes that some program chose, cut off after so many of them, maybe in the
 * middle of a character. They end up in other people's terminals, where ESC and the C1 controls are commands, and in
 * JSON, which is UTF-8 or nothing.
 */
#include "control/owner.h"

#include <string.h>

/* How many continuation bytes follow a first byte; -1: no character begins so. */
static int continuation_bytes(unsigned char first)
{
	if (first < 0x80)
		return first >= 0x20 && first != 0x7f ? 0 : -1;
	if (first >= 0xc2 && first < 0xe0)
		return 1;
	if (first >= 0xe0 && first < 0xf0)
		return 2;
	return first >= 0xf0 && first < 0xf5 ? 3 : -1;
}

size_t sublet__character_bytes(const char *text)
{
	const unsigned char *s = (const unsigned char *)text;
	int more = continuation_bytes(s[0]);

	if (more < 0)
		return 0;
	for (int i = 1; i <= more; i++)
		if ((s[i] & 0xc0) != 0x80)
			return 0;
	/* C1 controls, overlong forms, surrogates, beyond U+10FFFF */
	if ((s[0] == 0xc2 && s[1] < 0xa0) || (s[0] == 0xe0 && s[1] < 0xa0) ||
	    (s[0] == 0xed && s[1] >= 0xa0) || (s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] >= 0x90))
		return 0;
	return (size_t)more + 1;
}

void sublet__owner_clean(char owner[SUBLET_OWNER_BYTES])
{
	size_t end = strnlen(owner, SUBLET_OWNER_BYTES - 1), i = 0;

	memset(owner + end, 0, SUBLET_OWNER_BYTES - end);
	while (i < end) {
		size_t n = sublet__character_bytes(owner + i);

		if (!n)
			owner[i] = '?';
		i += n ? n : 1;
	}
}
