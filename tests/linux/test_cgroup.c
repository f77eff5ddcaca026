/* SPDX-License-Identifier: MIT */
/*
 * What control groups leave, read from trees of files that stand for the kernel's: both versions, each limit, every
 * group up to the root, containers whose path is not under their mount, and files that say nothing of use.
 */
#include "linux/cgroup.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

static char root[] = "/tmp/sublet-cgroup-XXXXXX";

/* A file and the folders above it. */
static void put(const char *path, const char *text)
{
	char full[512];

	assert_true((size_t)snprintf(full, sizeof full, "%s%s", root, path) < sizeof full);
	for (char *slash = strchr(full + sizeof root, '/'); slash; slash = strchr(slash + 1, '/')) {
		*slash = 0;
		(void)mkdir(full, 0700);
		*slash = '/';
	}
	FILE *file = fopen(full, "we");
	assert_non_null(file);
	assert_true(fputs(text, file) >= 0);
	assert_int_equal(fclose(file), 0);
}

static int tree_make(void **state)
{
	(void)state;
	memcpy(strrchr(root, '-'), "-XXXXXX", 8);
	return !mkdtemp(root);
}

static int tree_remove(void **state)
{
	char command[64];

	(void)state;
	snprintf(command, sizeof command, "rm -r %s", root);
	return system(command);
}

static void check_memory(uint64_t left, const char *by)
{
	struct sublet__text text;

	assert_int_equal(sublet__cgroup_memory_left(root, &text), left);
	assert_string_equal(text.data[0] ? text.data + strlen(root) : "", by);
	assert_int_equal(sublet__cgroup_memory_left(root, NULL), left);
}

static void test_none(void **state)
{
	(void)state;
	check_memory(UINT64_MAX, "");
	put("/proc/self/cgroup", "0::/\n");
	check_memory(UINT64_MAX, "");
	put("/proc/self/cgroup", "nonsense\n::\n4:memory\n\n0::/a/../..\n");
	check_memory(UINT64_MAX, "");
}

static void test_version_2(void **state)
{
	(void)state;
	put("/proc/self/cgroup", "0::/slice/unit/leaf\n");
	put("/sys/fs/cgroup/slice/unit/leaf/memory.max", "max\n");
	put("/sys/fs/cgroup/slice/unit/leaf/memory.high", "max\n");
	put("/sys/fs/cgroup/slice/unit/leaf/memory.current", "1000\n");
	check_memory(UINT64_MAX, "");
	put("/sys/fs/cgroup/slice/unit/leaf/memory.max", "50000\n");
	check_memory(49000, "/sys/fs/cgroup/slice/unit/leaf/memory.max");
	/* The softer limit is the lower one. */
	put("/sys/fs/cgroup/slice/unit/leaf/memory.high", "30000\n");
	check_memory(29000, "/sys/fs/cgroup/slice/unit/leaf/memory.high");
	/* A group above has less left, though it allows more. */
	put("/sys/fs/cgroup/slice/memory.max", "100000\n");
	put("/sys/fs/cgroup/slice/memory.current", "90000\n");
	check_memory(10000, "/sys/fs/cgroup/slice/memory.max");
	/* Page cache can be had. */
	put("/sys/fs/cgroup/slice/memory.stat", "anon 5\nactive_file 3000\ninactive_file 2000\n");
	check_memory(15000, "/sys/fs/cgroup/slice/memory.max");
	put("/sys/fs/cgroup/slice/memory.current", "200000\n");
	check_memory(0, "/sys/fs/cgroup/slice/memory.max");
}

static void test_version_1(void **state)
{
	(void)state;
	put("/proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/a/b\n3:memory_like:/x\n0::/\n");
	put("/sys/fs/cgroup/memory/x/memory.limit_in_bytes", "1\n");
	put("/sys/fs/cgroup/memory/x/memory.usage_in_bytes", "1\n");
	put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
	put("/sys/fs/cgroup/memory/memory.usage_in_bytes", "777\n");
	check_memory(9223372036854771712u - 777, "/sys/fs/cgroup/memory/memory.limit_in_bytes");
	put("/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "104857600\n");
	put("/sys/fs/cgroup/memory/a/b/memory.usage_in_bytes", "4857600\n");
	put("/sys/fs/cgroup/memory/a/b/memory.stat",
	    "active_file 9\ntotal_active_file 1000\ntotal_inactive_file 5\n");
	check_memory(100001005, "/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes");
	put("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "50000000\n");
	put("/sys/fs/cgroup/memory/a/memory.usage_in_bytes", "10000000\n");
	check_memory(40000000, "/sys/fs/cgroup/memory/a/memory.limit_in_bytes");
}

/* Both versions at once, the second beside the first, as systemd's hybrid mode has it. */
static void test_hybrid(void **state)
{
	(void)state;
	put("/proc/self/cgroup", "4:memory:/m\n0::/u\n");
	put("/sys/fs/cgroup/memory/m/memory.limit_in_bytes", "5000\n");
	put("/sys/fs/cgroup/memory/m/memory.usage_in_bytes", "1000\n");
	check_memory(4000, "/sys/fs/cgroup/memory/m/memory.limit_in_bytes");
	put("/sys/fs/cgroup/unified/u/memory.max", "3000\n");
	put("/sys/fs/cgroup/unified/u/memory.current", "1000\n");
	check_memory(2000, "/sys/fs/cgroup/unified/u/memory.max");
}

/* The path is the host's, and the mount the container's own group. */
static void test_container(void **state)
{
	(void)state;
	put("/proc/self/cgroup", "4:memory:/docker/0123456789abcdef\n");
	put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "104857600\n");
	put("/sys/fs/cgroup/memory/memory.usage_in_bytes", "857600\n");
	check_memory(104000000, "/sys/fs/cgroup/memory/memory.limit_in_bytes");
}

static void test_tasks(void **state)
{
	struct sublet__text by;

	(void)state;
	put("/proc/self/cgroup", "8:pids:/p\n0::/u/v\n");
	assert_int_equal(sublet__cgroup_tasks_left(root, &by), UINT64_MAX);
	put("/sys/fs/cgroup/pids/p/pids.max", "max\n");
	put("/sys/fs/cgroup/pids/p/pids.current", "7\n");
	assert_int_equal(sublet__cgroup_tasks_left(root, &by), UINT64_MAX);
	put("/sys/fs/cgroup/pids/p/pids.max", "20\n");
	assert_int_equal(sublet__cgroup_tasks_left(root, &by), 13);
	assert_string_equal(by.data + strlen(root), "/sys/fs/cgroup/pids/p/pids.max");
	put("/sys/fs/cgroup/u/pids.max", "100\n");
	put("/sys/fs/cgroup/u/pids.current", "99\n");
	assert_int_equal(sublet__cgroup_tasks_left(root, &by), 1);
	assert_string_equal(by.data + strlen(root), "/sys/fs/cgroup/u/pids.max");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_none, tree_make, tree_remove),
		cmocka_unit_test_setup_teardown(test_version_2, tree_make, tree_remove),
		cmocka_unit_test_setup_teardown(test_version_1, tree_make, tree_remove),
		cmocka_unit_test_setup_teardown(test_hybrid, tree_make, tree_remove),
		cmocka_unit_test_setup_teardown(test_container, tree_make, tree_remove),
		cmocka_unit_test_setup_teardown(test_tasks, tree_make, tree_remove),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
