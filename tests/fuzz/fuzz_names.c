/* SPDX-License-Identifier: MIT */
/*
 * Names that others choose: owner tags on their way to a terminal and to JSON, and files in the directory of instances.
 * What comes out is UTF-8 without control characters, and JSON that is read back as the same text.
 */
#include "fuzz.h"

#include "control/instance.c"
#include "control/owner.h"

#include <cjson/cJSON.h>

static void owner(const uint8_t *data, size_t size)
{
	char tag[SUBLET_OWNER_BYTES], again[SUBLET_OWNER_BYTES];

	memset(tag, 'x', sizeof tag);
	memcpy(tag, data, size < sizeof tag ? size : sizeof tag);
	sublet__owner_clean(tag);
	size_t end = strnlen(tag, sizeof tag);
	require(end < sizeof tag);
	for (size_t i = 0; i < sizeof tag; i++)
		require(i < end ? (unsigned char)tag[i] >= 0x20 && tag[i] != 0x7f : !tag[i]);
	memcpy(again, tag, sizeof tag);
	sublet__owner_clean(again);
	require(!memcmp(again, tag, sizeof tag));

	cJSON *object = cJSON_CreateObject();
	cJSON_AddStringToObject(object, "owner", tag);
	char *text = cJSON_Print(object);
	cJSON *back = cJSON_Parse(text);
	require(back && !strcmp(cJSON_GetObjectItem(back, "owner")->valuestring, tag));
	cJSON_Delete(back);
	cJSON_free(text);
	cJSON_Delete(object);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *text = fuzz_text(data, size), file[SUBLET__FILE_BYTES];
	struct sublet_instance instance;

	owner(data, size);
	(void)pid_of(text);
	/* The file of an instance is one that it would have made, but for the zeros before a number. */
	if (strlen(text) < sizeof file && parse_file(text, &instance)) {
		require(!sublet__instance_name_check(instance.name) && instance.pid > 0);
		sublet__instance_file(file, instance.name, instance.pid);
		require(!strcmp(file, text));
	}
	free(text);
	return 0;
}
