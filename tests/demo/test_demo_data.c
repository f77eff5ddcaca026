/* SPDX-License-Identifier: MIT */
/* The demonstration's checks fire: a wrong byte anywhere in a value or a frame is found. */
#include "cli/demo.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

int sublet__demo_interrupted(void)
{
	return 0;
}

/* The value inside a SET command. */
static char *value_of(char *command, uint32_t *bytes)
{
	char *at = strstr(strstr(command, "key:"), "\r\n$") + 3;
	*bytes = (uint32_t)atoi(at);
	return strstr(at, "\r\n") + 2;
}

static void test_values(void **state)
{
	char command[SUBLET__COMMAND_BYTES_MAX];
	(void)state;
	for (uint32_t key = 0; key < 500; key++) {
		uint32_t bytes, length = sublet__command_set(key, command);
		char *value = value_of(command, &bytes);
		assert_in_range(bytes, SUBLET__VALUE_BYTES_MIN, SUBLET__VALUE_BYTES_MAX);
		assert_int_equal(value + bytes + 2 - command, length);
		assert_true(sublet__value_is(key, value, bytes));
		assert_false(sublet__value_is(key + 1, value, bytes));
		assert_false(sublet__value_is(key, value, bytes - 1));
		for (uint32_t at = key % 7; at < bytes; at += 97) {
			value[at] ^= 1;
			assert_false(sublet__value_is(key, value, bytes));
			value[at] ^= 1;
		}
		value[bytes - 1] ^= 1;
		assert_false(sublet__value_is(key, value, bytes));
	}
}

static void test_frames(void **state)
{
	char path[] = "/tmp/sublet-frames-XXXXXX";
	char *frame = malloc(SUBLET__FRAME_BYTES);
	(void)state;
	assert_non_null(frame);
	assert_true(mkstemp(path) >= 0);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(sublet__frames_write(path), 0);
	int fd = open(path, O_RDONLY);
	assert_true(fd >= 0);
	assert_int_equal(unlink(path), 0);
	struct stat status;
	assert_int_equal(fstat(fd, &status), 0);
	assert_int_equal(status.st_size, (off_t)SUBLET__FRAMES_IN_FILE * SUBLET__FRAME_BYTES);
	for (uint32_t i = 0; i < SUBLET__FRAMES_IN_FILE; i++) {
		assert_int_equal(read(fd, frame, SUBLET__FRAME_BYTES), SUBLET__FRAME_BYTES);
		assert_true(sublet__frame_is_good(frame, i));
		assert_false(sublet__frame_is_good(frame, i + 1)); /* left over from another claim */
	}
	for (uint32_t at = 64; at < SUBLET__FRAME_BYTES; at += SUBLET__FRAME_BYTES / 8 - 8) {
		frame[at] ^= 0x10;
		assert_false(sublet__frame_is_good(frame, SUBLET__FRAMES_IN_FILE - 1));
		frame[at] ^= 0x10;
	}
	/* A page of another place, as a lost move would leave it. */
	memcpy(frame + 4096, frame + 65536, 4096);
	assert_false(sublet__frame_is_good(frame, SUBLET__FRAMES_IN_FILE - 1));
	close(fd);
	free(frame);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_values),
		cmocka_unit_test(test_frames),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
