/* SPDX-License-Identifier: MIT */
/* control/owner.h: owner tags, and other text that another program chose. */
#ifndef SUBLET_CONTROL_OWNER_H
#define SUBLET_CONTROL_OWNER_H

#include <sublet/types.h>

/*
 * Make a tag fit for a terminal and for JSON, in place: UTF-8 without control characters, '?' for every byte that is
 * no part of it, NUL from its end to the end of the array.
 */
void sublet__owner_clean(char owner[SUBLET_OWNER_BYTES]);

/* Length of the UTF-8 character at `text`, which ends with a NUL at the latest; 0: there is none, or it is a control. */
size_t sublet__character_bytes(const char *text);

#endif
