/* SPDX-License-Identifier: MIT */
/*
 * core/struct.h: structs of the public interface that begin with their size, whatever version they are of.
 */
#ifndef SUBLET_CORE_STRUCT_H
#define SUBLET_CORE_STRUCT_H

#include <stddef.h>
#include <stdint.h>

#define STRUCT_BYTES_MAX ((uint64_t)4096) /* of every struct that begins with its size */

/* What the first version of each struct had: up to and with a member. */
#define STRUCT_UP_TO(type, member) (offsetof(struct type, member) + sizeof(((struct type *)0)->member))
#define FIRST_ARENA_OPTIONS        STRUCT_UP_TO(sublet_arena_options, area_bytes)
#define FIRST_ARENA_INFO           STRUCT_UP_TO(sublet_arena_info, frame_bytes)
#define FIRST_STATS                STRUCT_UP_TO(sublet_stats, area_bytes)
#define FIRST_CLAIM_OPTIONS        STRUCT_UP_TO(sublet_claim_options, reserved)
#define FIRST_NOTIFIER_OPS         STRUCT_UP_TO(sublet_notifier_ops, invalidate)
#define FIRST_NOTIFIER_STATS       STRUCT_UP_TO(sublet_notifier_stats, registered)
#define FIRST_IOPT_OPTIONS         STRUCT_UP_TO(sublet_iopt_options, aperture_bytes)
#define FIRST_IOPT_STATS           STRUCT_UP_TO(sublet_iopt_stats, mappings)
#define FIRST_DEVICE_INFO          STRUCT_UP_TO(sublet_device_info, name)
#define FIRST_DEVICE_LIMITS        STRUCT_UP_TO(sublet_device_limits, aperture_bytes)
#define FIRST_DEVICE_OPS           STRUCT_UP_TO(sublet_device_ops, close)
#define FIRST_JOB                  STRUCT_UP_TO(sublet_job, file_offset_bytes)
#define FIRST_SOFT_OPTIONS         STRUCT_UP_TO(sublet_soft_options, name)
#define FIRST_URING_OPTIONS        STRUCT_UP_TO(sublet_uring_options, name)

/*
 * Read a struct of the caller's that begins with its size, whatever version it is of. What an older program did not know is
 * 0. to: to_bytes of it, ours; first_bytes: of its first version.
 * -EINVAL  shorter than the first version, or NULL
 * -E2BIG   what we do not know of it is not 0, or it is larger than any
 */
int sublet__struct_in(void *to, size_t to_bytes, const void *from, size_t first_bytes);

/* Whether `to` can be filled in: the same, but what we do not know of it may be anything. */
int sublet__struct_out_check(const void *to, size_t first_bytes);

/* Fill in the caller's struct, which begins with its size and was checked: as much as it knows, 0 behind what we know. */
void sublet__struct_out(void *to, const void *from, size_t from_bytes);

#endif
