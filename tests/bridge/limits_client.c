/* SPDX-License-Identifier: MIT */
/*
 * Programs that meet a limit; each works in ordinary memory with less.
 *
 *   nothing                 does nothing
 *   pieces                  allocates, grows and frees pieces of up to 8 MB
 *   lockall FLAGS [HEAP]    mlockall(FLAGS) after HEAP bytes of heap; exits with its errno. Then allocates, and unlocks
 *   mappings LEAVE SECONDS  uses all kernel mappings but LEAVE, and goes on computing, allocating and forking
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE_BYTES ((size_t)4096)
#define BLOCKS     256u
#define EACH       ((size_t)128 << 10)
#define REFUSED    40 /* malloc said NULL */

static void *must_have(size_t bytes)
{
	void *p = malloc(bytes);

	if (!p)
		_exit(REFUSED);
	memset(p, 1, bytes);
	return p;
}

static int pieces(void)
{
	for (int i = 0; i < 6; i++) {
		for (size_t k = 1; k < 40; k++) {
			char *p = realloc(must_have(k * 100000), k * 200000);
			if (!p)
				return REFUSED;
			memset(p, 1, k * 200000);
			free(p);
		}
		void *q = aligned_alloc((size_t)1 << 21, (size_t)8 << 20);
		if (!q)
			return REFUSED;
		memset(q, 1, (size_t)8 << 20);
		free(q);
	}
	return 0;
}

/* Without malloc, which may have nothing left. */
static unsigned long locked_kib(void)
{
	static char text[8192];
	int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
	ssize_t n = read(fd, text, sizeof text - 1);
	const char *line = n > 0 ? strstr(text, "VmLck:") : NULL;

	close(fd);
	return line ? strtoul(line + strlen("VmLck:"), NULL, 10) : 0;
}

static int lockall(int flags, size_t bytes)
{
	char *heap = bytes ? must_have(bytes) : NULL;

	if (mlockall(flags))
		return errno;
	if (flags & MCL_CURRENT && locked_kib() * 1024 < bytes + (1 << 20))
		return 90;
	/* What is given back does not count for ever. */
	for (int i = 0; i < 200 && bytes; i++)
		free(must_have((size_t)(i % 8 + 1) * 65536));
	for (size_t i = 0; i < bytes; i += PAGE_BYTES)
		if (heap[i] != 1)
			return 91;
	if (munlockall() || locked_kib())
		return 92;
	free(heap);
	return 0;
}

/* ---- kernel mappings ---- */

static void use_up(unsigned int leave)
{
	size_t pages = 1200000, made = 0;
	char *m =
		mmap(NULL, pages * PAGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (m == MAP_FAILED)
		_exit(77);
	while (made * 2 < pages && mprotect(m + made * 2 * PAGE_BYTES, PAGE_BYTES, PROT_READ) == 0)
		made++;
	if (made * 2 >= pages)
		_exit(77);
	for (size_t i = 0; i < leave; i++)
		(void)mprotect(m + (made - 1 - i) * 2 * PAGE_BYTES, PAGE_BYTES, PROT_NONE);
}

static int fork_once(unsigned char *const block[])
{
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		for (size_t i = 0; i < BLOCKS; i++)
			if (block[i][77] != (unsigned char)i)
				_exit(9);
		_exit(0);
	}
	if (pid < 0)
		return 93;
	return waitpid(pid, &status, 0) == pid && status == 0 ? 0 : 94;
}

static int mappings(unsigned int leave, int seconds)
{
	static unsigned char *block[BLOCKS];

	for (size_t i = 0; i < BLOCKS; i++) {
		block[i] = must_have(EACH);
		memset(block[i], (int)i, EACH);
	}
	use_up(leave);
	time_t end = time(NULL) + seconds;
	for (unsigned int round = 0; round < 64 || time(NULL) < end; round++) {
		int err = round % 32 ? 0 : fork_once(block);
		if (err)
			return err;
		for (size_t i = 0; i < BLOCKS; i++) {
			block[i][round % EACH]++;
			block[i][round % EACH]--;
			for (size_t k = 0; k < EACH; k += 512)
				if (block[i][k] != (unsigned char)i)
					return 95;
		}
		void *x = malloc((size_t)3 << 20); /* may be refused */
		if (x)
			memset(x, 1, (size_t)3 << 20);
		free(x);
	}
	return 0;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";

	if (!strcmp(what, "pieces"))
		return pieces();
	if (!strcmp(what, "lockall") && argc > 2)
		return lockall(atoi(argv[2]), argc > 3 ? strtoul(argv[3], NULL, 10) : 0);
	if (!strcmp(what, "mappings") && argc > 3)
		return mappings((unsigned int)atoi(argv[2]), atoi(argv[3]));
	return strcmp(what, "nothing") != 0;
}
