/* SPDX-License-Identifier: MIT */
/* linux/spare.h: kernel mappings kept in reserve for what may not fail at the limit of them (vm.max_map_count). */
#ifndef SUBLET_LINUX_SPARE_H
#define SUBLET_LINUX_SPARE_H

#include <stdbool.h>

/* So many mappings are kept: a fork, or the way back from half a move, needs two or three at a time. */
#define SUBLET__SPARE_MAPPINGS 32u

/* One address space of an arena more, or one less. The first makes the reserve, the last gives it back. */
void sublet__spare_open(void);
void sublet__spare_close(void);

/* Give the reserve up, so that the next call finds room. False: there is none at the moment. Any thread. */
bool sublet__spare_use(void);
/* Make it again, if it was given up and there is room. Cheap while it is there. Any thread. */
void sublet__spare_renew(void);

#endif
