/* SPDX-License-Identifier: MIT */
/*
 * Structs that begin with their size: the kernel's rule for extensible ones (copy_struct_from_user), so that programs and
 * libraries of different versions understand each other, or say that they do not.
 *
 *                  the program's is shorter           the program's is longer
 *   options        what it does not know is 0         what we do not know must be 0, or it wants something: -E2BIG
 *   info           it gets what it knows              what we do not know is 0
 *
 * The alternative, -EINVAL for both, does not tell a wrong argument from a library that is too old.
 */
#include "core/struct.h"

#include <errno.h>
#include <string.h>

static uint64_t size_of(const void *object)
{
	uint64_t bytes;

	memcpy(&bytes, object, sizeof bytes);
	return bytes;
}

int sublet__struct_out_check(const void *to, size_t first_bytes)
{
	if (!to || size_of(to) < first_bytes)
		return -EINVAL;
	return size_of(to) > STRUCT_BYTES_MAX ? -E2BIG : 0;
}

int sublet__struct_in(void *to, size_t to_bytes, const void *from, size_t first_bytes)
{
	int err = sublet__struct_out_check(from, first_bytes);

	if (err)
		return err;
	uint64_t bytes = size_of(from);
	for (uint64_t i = to_bytes; i < bytes; i++)
		if (((const unsigned char *)from)[i])
			return -E2BIG;
	memset(to, 0, to_bytes);
	memcpy(to, from, bytes < to_bytes ? (size_t)bytes : to_bytes);
	return 0;
}

void sublet__struct_out(void *to, const void *from, size_t from_bytes)
{
	uint64_t bytes = size_of(to);

	if (bytes > from_bytes)
		memset((char *)to + from_bytes, 0, (size_t)bytes - from_bytes);
	memcpy(to, from, bytes < from_bytes ? (size_t)bytes : from_bytes);
	memcpy(to, &bytes, sizeof bytes); /* as the caller has it */
}
