/* SPDX-License-Identifier: MIT */
/*
 * A program that knows nothing of sublet, for test_run.py. Each subcommand looks at one thing from
 * the inside; it exits 0, or says which line was not as it should be.
 *
 * Lent memory shows as a shared mapping in /proc/self/maps; that is how "lent" is told here.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MIB ((size_t)1 << 20)

#define CHECK(condition)                                                                                   \
	do {                                                                                               \
		if (!(condition)) {                                                                        \
			(void)fprintf(stderr, "client.c:%d: %s, errno %d\n", __LINE__, #condition, errno); \
			_exit(1);                                                                          \
		}                                                                                          \
	} while (0)

/* What /proc/self/maps says of an address. */
struct mapping {
	char flags[8];        /* "rw-s"; "": no mapping */
	unsigned long offset; /* of the address in the file, which is its frame where it is lent */
};

static struct mapping mapping_of(const void *addr)
{
	FILE *file = fopen("/proc/self/maps", "re");
	struct mapping found = { .flags = "" }, m;
	unsigned long start, end;
	char line[512];

	CHECK(file != NULL);
	while (found.flags[0] == 0 && fgets(line, sizeof(line), file) != NULL)
		if (sscanf(line, "%lx-%lx %7s %lx", &start, &end, m.flags, &m.offset) == 4 &&
		    (uintptr_t)addr >= start && (uintptr_t)addr < end) {
			found = m;
			found.offset += (uintptr_t)addr - start;
		}
	(void)fclose(file);
	return found;
}

/* 's'hared or 'p'rivate; 0: no mapping. */
static char sharing(const void *addr)
{
	return mapping_of(addr).flags[3];
}

static void sleep_ms(long ms)
{
	struct timespec time = { .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000 };

	(void)nanosleep(&time, NULL);
}

static bool is_all(const char *memory, size_t bytes, char value)
{
	for (size_t i = 0; i < bytes; i++)
		if (memory[i] != value)
			return false;
	return true;
}

static char *filled(size_t bytes, char value)
{
	char *memory = aligned_alloc(4096, bytes);

	CHECK(memory != NULL);
	memset(memory, value, bytes);
	return memory;
}

static void fill_and_free(size_t bytes)
{
	char *volatile memory = filled(bytes, 1); /* volatile: a compiler may drop memory that nobody reads */

	free(memory);
}

/* ---- memory calls on the program's own heap ---- */

static int check_memory(void)
{
	char *m = filled(16 * MIB, 7);

	CHECK(sharing(m) == 's');
	CHECK(madvise(m + 4096, 8 * MIB, MADV_DONTNEED) == 0);
	CHECK(m[4095] == 7 && m[4096 + 8 * MIB] == 7 && is_all(m + 4096, 8 * MIB, 0));
	CHECK(madvise(m + 1, 4096, MADV_DONTNEED) == -1 && errno == EINVAL);
	CHECK(posix_madvise(m, 4096, POSIX_MADV_DONTNEED) == 0 && m[0] == 7);
	CHECK(madvise(m, 4096, MADV_FREE) == 0 && madvise(m, 4096, MADV_HUGEPAGE) == 0);
	CHECK(madvise(m, 4096, MADV_DONTFORK) == -1 && errno == EINVAL);
	CHECK(munmap(m, 4096) == -1 && errno == EINVAL);
	CHECK(mremap(m, 4096, 8192, MREMAP_MAYMOVE) == MAP_FAILED && errno == EINVAL);
	CHECK(mmap(m, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED);
	CHECK(is_all(m, 4096, 7));

	CHECK(mprotect(m, 4096, PROT_READ) == 0);
	CHECK(madvise(m, 8192, MADV_DONTNEED) == -1 && errno == ENOMEM);
	CHECK(mprotect(m, 4096, PROT_READ | PROT_WRITE) == 0);
	memset(m, 9, 8192);
	CHECK(mlock(m, 8192) == 0 && munlock(m, 8192) == 0);
	CHECK(mlock2(m, 8192, 0) == 0 && munlock(m, 8192) == 0);
	CHECK(madvise(m, 4096, MADV_DONTDUMP) == 0 && is_all(m, 8192, 9));

	char *own = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(own != MAP_FAILED && sharing(own) == 'p');
	memset(own, 5, MIB);
	CHECK(madvise(own, MIB, MADV_DONTNEED) == 0 && is_all(own, MIB, 0));
	own = mremap(own, MIB, 2 * MIB, MREMAP_MAYMOVE);
	CHECK(own != MAP_FAILED && munmap(own, 2 * MIB) == 0);
	free(m);
	return 0;
}

/* What madvise does to the bytes needs no descriptor, which a program may have none left of. */
static int check_no_descriptors(void)
{
	struct rlimit none = { 0 };
	char *m = filled(MIB, 7);

	CHECK(setrlimit(RLIMIT_NOFILE, &none) == 0);
	CHECK(madvise(m + 4096, MIB - 8192, MADV_DONTNEED) == 0);
	CHECK(m[4095] == 7 && m[MIB - 4096] == 7 && is_all(m + 4096, MIB - 8192, 0));
	return 0;
}

/* ---- what must not move, and keeps its protection (under --chaos, where all the rest moves) ---- */

#define MOVE_MS 500

/* Wait until `other` has moved, and a little longer; `stays` must not have. */
static void check_stays(const char *stays, const char *other)
{
	struct mapping before = mapping_of(stays), now;
	unsigned long other_offset = mapping_of(other).offset;
	bool moved = false;

	for (int i = 0; i < 400 && (!moved || i < MOVE_MS / 25); i++) {
		sleep_ms(25);
		moved = moved || mapping_of(other).offset != other_offset;
	}
	CHECK(moved);
	now = mapping_of(stays);
	CHECK(now.offset == before.offset && strcmp(now.flags, before.flags) == 0);
}

static void check_moves(const char *memory)
{
	unsigned long offset = mapping_of(memory).offset;
	int i = 0;

	while (i++ < 400 && mapping_of(memory).offset == offset)
		sleep_ms(25);
	CHECK(mapping_of(memory).offset != offset);
}

static int check_protection(void)
{
	char *m = filled(16 * MIB, 1);

	/* A page's protection is its own: a neighbour's has no say. */
	CHECK(mprotect(m, 4096, PROT_NONE) == 0);
	CHECK(mprotect(m + 8192, 4096, PROT_READ) == 0);
	CHECK(mprotect(m + 8192, 4096, PROT_READ | PROT_WRITE) == 0);
	CHECK(strcmp(mapping_of(m).flags, "---s") == 0);
	check_stays(m, m + 8 * MIB);
	CHECK(mprotect(m, 4096, PROT_READ | PROT_WRITE) == 0 && is_all(m, 16 * MIB, 1));
	check_moves(m);

	/* What is to stay stays, however often it is protected and not. */
	CHECK(madvise(m + 4 * MIB, 4096, MADV_DONTDUMP) == 0);
	CHECK(mprotect(m, 16 * MIB, PROT_READ) == 0);
	CHECK(mprotect(m, 16 * MIB, PROT_READ | PROT_WRITE) == 0);
	check_stays(m + 4 * MIB, m + 8 * MIB);
	check_moves(m);
	CHECK(is_all(m, 16 * MIB, 1));
	return 0;
}

/* A mutex whose word the kernel writes stays until it is destroyed; another at its address stays again. */
static int check_mutexes_destroyed(void)
{
	char *m = filled(16 * MIB, 1);
	pthread_mutex_t *robust = (pthread_mutex_t *)(m + 4 * MIB), *inherits = robust + 1;
	pthread_mutexattr_t attr[2];

	(void)pthread_mutexattr_init(&attr[0]);
	(void)pthread_mutexattr_init(&attr[1]);
	CHECK(pthread_mutexattr_setrobust(&attr[0], PTHREAD_MUTEX_ROBUST) == 0);
	CHECK(pthread_mutexattr_setprotocol(&attr[1], PTHREAD_PRIO_INHERIT) == 0);
	for (int round = 0; round < 2; round++) {
		CHECK(pthread_mutex_init(robust, &attr[0]) == 0);
		CHECK(pthread_mutex_init(inherits, &attr[1]) == 0);
		CHECK(pthread_mutex_lock(inherits) == 0);
		CHECK(pthread_mutex_destroy(inherits) == EBUSY && pthread_mutex_destroy(robust) == 0);
		check_stays((char *)inherits, m + 8 * MIB);
		CHECK(pthread_mutex_unlock(inherits) == 0 && pthread_mutex_destroy(inherits) == 0);
		check_moves((char *)inherits);
	}
	/* libc has no robust mutexes with a ceiling: what it refuses to make is none. */
	CHECK(pthread_mutexattr_setprotocol(&attr[0], PTHREAD_PRIO_PROTECT) == 0);
	CHECK(pthread_mutex_init(robust, &attr[0]) == ENOTSUP);
	check_moves((char *)robust);
	return 0;
}

static int check_protection_fork(void)
{
	char *m = filled(16 * MIB, 1), *code = m + 2 * MIB, *guard = m + 8 * MIB;
	int until[2], status;
	pid_t child;

	CHECK(mprotect(code, 4096, PROT_READ | PROT_EXEC) == 0);
	CHECK(pipe2(until, O_CLOEXEC) == 0);
	child = fork();
	CHECK(child >= 0);
	if (child == 0) {
		(void)close(until[1]);
		_exit(read(until[0], &status, 1) != 0 || !is_all(m, 16 * MIB, 1));
	}
	CHECK(strncmp(mapping_of(code).flags, "r-x", 3) == 0);
	CHECK(mprotect(guard, 4096, PROT_NONE) == 0);
	memset(m, 2, MIB);
	CHECK(close(until[0]) == 0 && close(until[1]) == 0);
	CHECK(waitpid(child, &status, 0) == child && status == 0);

	/* The rest is shared again; what is protected only when it no longer is. */
	for (int i = 0; i < 400 && sharing(m) != 's'; i++)
		sleep_ms(25);
	CHECK(sharing(m) == 's');
	CHECK(strncmp(mapping_of(code).flags, "r-x", 3) == 0 &&
	      strncmp(mapping_of(guard).flags, "---", 3) == 0);
	CHECK(mprotect(guard, 4096, PROT_READ | PROT_WRITE) == 0);
	CHECK(mprotect(code, 4096, PROT_READ | PROT_WRITE) == 0);
	for (int i = 0; i < 400 && (sharing(guard) != 's' || sharing(code) != 's'); i++)
		sleep_ms(25);
	CHECK(sharing(guard) == 's' && sharing(code) == 's');
	CHECK(is_all(m, MIB, 2) && is_all(m + MIB, 15 * MIB, 1));
	return 0;
}

/* ---- every size is lent, large ones too ---- */

static int check_sizes(void)
{
	static const size_t sizes[] = { 64 * 1024, MIB, 7 * MIB, 9 * MIB, 40 * MIB };

	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		char *memory = calloc(1, sizes[i]);

		CHECK(memory != NULL && is_all(memory, sizes[i], 0));
		memset(memory, 1, sizes[i]);
		CHECK(sharing(memory + sizes[i] / 2) == 's');
		free(memory);
	}
	return 0;
}

static int check_created_arena(void)
{
	int (*mallctl)(const char *, void *, size_t *, void *, size_t);
	void *(*mallocx)(size_t, int);
	unsigned int arena;
	size_t bytes = sizeof(arena);
	char *memory;

	*(void **)&mallctl = dlsym(RTLD_DEFAULT, "mallctl");
	*(void **)&mallocx = dlsym(RTLD_DEFAULT, "mallocx");
	CHECK(mallctl != NULL && mallocx != NULL);
	CHECK(mallctl("arenas.create", &arena, &bytes, NULL, 0) == 0);
	memory = mallocx(MIB, (int)((arena + 1) << 20)); /* MALLOCX_ARENA */
	CHECK(memory != NULL && sharing(memory) == 's');
	return 0;
}

/* ---- fork ---- */

#define BLOCKS      300
#define BLOCK_BYTES 100000

static void child_main(char **blocks)
{
	static char *more[4 * BLOCKS];

	for (int i = 0; i < BLOCKS; i++) {
		CHECK(is_all(blocks[i], BLOCK_BYTES, 1));
		memset(blocks[i], 2, BLOCK_BYTES);
	}
	for (int i = 0; i < BLOCKS; i += 2)
		free(blocks[i]);
	for (int i = 0; i < 4 * BLOCKS; i++)
		more[i] = filled(69632, 3);
	for (int i = 0; i < 4 * BLOCKS; i++) {
		CHECK(is_all(more[i], 69632, 3));
		free(more[i]);
	}
	for (int i = 1; i < BLOCKS; i += 2)
		CHECK(is_all(blocks[i], BLOCK_BYTES, 2));
	char *page = filled(MIB, 7);
	CHECK(madvise(page, MIB, MADV_DONTNEED) == 0 && is_all(page, MIB, 0));
	char *old = (char *)(((uintptr_t)blocks[1] + 4095) & ~(uintptr_t)4095);
	CHECK(madvise(old, 65536, MADV_DONTNEED) == 0 && is_all(old, 65536, 0));
	exit(23);
}

static int check_forks_by(pid_t (*fork_)(void))
{
	char *blocks[BLOCKS];
	int status;

	for (int i = 0; i < BLOCKS; i++) {
		blocks[i] = malloc(BLOCK_BYTES);
		CHECK(blocks[i] != NULL);
		memset(blocks[i], 1, BLOCK_BYTES);
	}
	for (int round = 0; round < 3; round++) {
		pid_t child = fork_();

		CHECK(child >= 0);
		if (child == 0)
			child_main(blocks);
		CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 23);
		for (int i = 0; i < BLOCKS; i++)
			CHECK(is_all(blocks[i], BLOCK_BYTES, 1));
	}
	CHECK(system("exit 3") == 3 << 8);
	return 0;
}

static int check_fork(void)
{
	return check_forks_by(fork);
}

/* As sandboxes make their first process. */
static pid_t call_clone(void)
{
	return (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);
}

static pid_t call_clone3(void)
{
	uint64_t args[11] = { [4] = SIGCHLD };
	pid_t child = (pid_t)syscall(435, args, sizeof(args));

	return child < 0 && errno == ENOSYS ? call_clone()
					    : child; /* older than Linux 5.3, or forbidden in here */
}

static int check_fork_calls(void)
{
	return check_forks_by(call_clone) || check_forks_by(call_clone3);
}

static int in_clone(void *arg)
{
	(void)arg;
	return 0;
}

static int check_clone(void)
{
	static char stack[65536] __attribute__((aligned(16)));
	int status;
	pid_t child;

	CHECK(clone(in_clone, stack + sizeof(stack), SIGCHLD, NULL) == -1 && errno == ENOSYS);
	child = clone(in_clone, stack + sizeof(stack), SIGCHLD | CLONE_VM, NULL);
	CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
	return 0;
}

/* ---- futexes ---- */

static void *lend_stack(void *arg)
{
	return arg;
}

static int check_sync(void)
{
	static pthread_mutex_t outside;
	char *m = filled(MIB, 0);
	pthread_mutexattr_t mutex_shared;
	pthread_condattr_t cond_shared;
	pthread_barrierattr_t barrier_shared;
	pthread_rwlockattr_t rwlock_shared;
	pthread_attr_t attr;
	pthread_t thread;
	void *result = NULL;

	(void)pthread_mutexattr_init(&mutex_shared);
	(void)pthread_mutexattr_setpshared(&mutex_shared, PTHREAD_PROCESS_SHARED);
	(void)pthread_condattr_init(&cond_shared);
	(void)pthread_condattr_setpshared(&cond_shared, PTHREAD_PROCESS_SHARED);
	(void)pthread_rwlockattr_init(&rwlock_shared);
	(void)pthread_rwlockattr_setpshared(&rwlock_shared, PTHREAD_PROCESS_SHARED);
	(void)pthread_barrierattr_init(&barrier_shared);
	(void)pthread_barrierattr_setpshared(&barrier_shared, PTHREAD_PROCESS_SHARED);
	CHECK(pthread_mutex_init((pthread_mutex_t *)m, &mutex_shared) == EINVAL);
	CHECK(pthread_cond_init((pthread_cond_t *)m, &cond_shared) == EINVAL);
	CHECK(pthread_rwlock_init((pthread_rwlock_t *)m, &rwlock_shared) == EINVAL);
	CHECK(pthread_barrier_init((pthread_barrier_t *)m, &barrier_shared, 2) == EINVAL);
	CHECK(sem_init((sem_t *)m, 1, 0) == -1 && errno == ENOSYS);
	CHECK(pthread_mutex_init(&outside, &mutex_shared) == 0);
	CHECK(pthread_mutex_init((pthread_mutex_t *)m, NULL) == 0);
	CHECK(pthread_cond_init((pthread_cond_t *)m, NULL) == 0);
	CHECK(sem_init((sem_t *)m, 0, 0) == 0);

	/* A thread on a stack from malloc; joining it sleeps on a futex in that stack. */
	(void)pthread_attr_init(&attr);
	CHECK(pthread_attr_setstack(&attr, m, MIB) == 0);
	CHECK(pthread_create(&thread, &attr, lend_stack, &outside) == 0);
	CHECK(pthread_join(thread, &result) == 0 && result == &outside);
	return 0;
}

#define ROBUST       64
#define ROBUST_BYTES 65536

static void *lock_and_die(void *mutex)
{
	(void)pthread_mutex_lock(mutex);
	return NULL;
}

/* Owners die with a mutex locked, again and again, and the kernel says so to the next. */
static int check_robust(void)
{
	char *m = filled((size_t)ROBUST * ROBUST_BYTES, 0);
	struct timespec until;
	pthread_mutexattr_t robust;
	pthread_t thread;

	(void)pthread_mutexattr_init(&robust);
	CHECK(pthread_mutexattr_setrobust(&robust, PTHREAD_MUTEX_ROBUST) == 0);
	for (int i = 0; i < ROBUST; i++)
		CHECK(pthread_mutex_init((pthread_mutex_t *)(m + (size_t)i * ROBUST_BYTES), &robust) == 0);
	for (int n = 0; n < 200 * ROBUST; n++) {
		pthread_mutex_t *mutex = (pthread_mutex_t *)(m + (size_t)(n % ROBUST) * ROBUST_BYTES);

		CHECK(pthread_create(&thread, NULL, lock_and_die, mutex) == 0);
		CHECK(pthread_join(thread, NULL) == 0);
		(void)clock_gettime(CLOCK_REALTIME, &until);
		until.tv_sec += 10;
		CHECK(pthread_mutex_timedlock(mutex, &until) == EOWNERDEAD);
		CHECK(pthread_mutex_consistent(mutex) == 0 && pthread_mutex_unlock(mutex) == 0);
	}
	return 0;
}

/* ---- threads with the smallest stack there may be ---- */

static void *use_malloc(void *arg)
{
	for (int round = 0; round < 20; round++)
		for (size_t bytes = 64 * 1024; bytes <= 4 * MIB; bytes *= 2)
			fill_and_free(bytes);
	return arg;
}

static int check_small_stacks(void)
{
	pthread_t thread[4];
	pthread_attr_t attr;

	(void)pthread_attr_init(&attr);
	CHECK(pthread_attr_setstacksize(&attr, 16384) == 0);
	for (int round = 0; round < 4; round++) {
		for (int i = 0; i < 4; i++)
			CHECK(pthread_create(&thread[i], &attr, use_malloc, NULL) == 0);
		for (int i = 0; i < 4; i++)
			CHECK(pthread_join(thread[i], NULL) == 0);
	}
	return 0;
}

/* ---- descriptors: a daemon that closes all of them, a shell that wants number 3 ---- */

static int check_descriptors(void)
{
	struct timespec soon = { .tv_nsec = 5000000 };
	char *m = filled(16 * MIB, 1);
	struct rlimit limit;
	int zero = open("/dev/zero", O_RDWR);

	CHECK(zero >= 3 && zero < 10);
	for (int fd = 3; fd < 10; fd++)
		CHECK(dup2(zero, fd) == fd);
	for (int fd = 3; fd < 4096; fd++)
		(void)close(fd);
	CHECK(close_range(3, ~0u, 0) == 0);
	closefrom(3);
	CHECK(open("/dev/zero", O_RDWR) == 3);
	CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
	int end = limit.rlim_cur < 8192 ? (int)limit.rlim_cur : 8192;
	for (int round = 0; round < 2; round++) {
		for (int fd = 4; fd < end; fd++)
			CHECK(dup2(3, fd) == fd && dup3(3, fd, O_CLOEXEC) == fd);
		for (int fd = 4; fd < end; fd++)
			CHECK(close(fd) == 0);
		/* A fork takes none of the numbers either, while its child lives and after that. */
		pid_t child = fork();
		CHECK(child >= 0);
		if (child == 0)
			_exit(open("/dev/zero", O_RDWR) != 4);
		CHECK(open("/dev/zero", O_RDWR) == 4 && close(4) == 0);
		int status;
		CHECK(waitpid(child, &status, 0) == child && status == 0);
	}
	for (char i = 1; i < 60; i++) {
		CHECK(is_all(m, 16 * MIB, i));
		memset(m, i + 1, 16 * MIB);
		(void)nanosleep(&soon, NULL);
	}
	fill_and_free(32 * MIB);
	return 0;
}

/* ---- signals: none may be taken by a thread that is not the program's ---- */

static int check_signals(void)
{
	struct timespec soon = { .tv_nsec = 1000000 };
	sigset_t set;

	(void)sigemptyset(&set);
	(void)sigaddset(&set, SIGUSR1);
	CHECK(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
	for (int i = 0; i < 100; i++) {
		CHECK(kill(getpid(), SIGUSR1) == 0); /* would kill us if another thread took it */
		(void)nanosleep(&soon, NULL);
		CHECK(sigtimedwait(&set, NULL, &soon) == SIGUSR1);
	}
	return 0;
}

/* ---- hold BYTES [SIZE]: fill memory by pieces, say "full", wait for a line, free it, say "empty", wait ---- */

static int hold(size_t bytes, size_t size)
{
	size_t count = bytes / size;
	char **blocks = calloc(count, sizeof(*blocks));

	CHECK(blocks != NULL);
	for (size_t i = 0; i < count; i++) {
		blocks[i] = malloc(size);
		CHECK(blocks[i] != NULL);
		memset(blocks[i], (char)i, size);
	}
	CHECK(puts("full") >= 0 && fflush(stdout) == 0);
	(void)getchar();
	for (size_t i = 0; i < count; i++) {
		CHECK(is_all(blocks[i], size, (char)i));
		free(blocks[i]);
	}
	CHECK(puts("empty") >= 0 && fflush(stdout) == 0);
	(void)getchar();
	return 0;
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		int (*check)(void);
	} checks[] = {
		{ "memory", check_memory },
		{ "sizes", check_sizes },
		{ "created-arena", check_created_arena },
		{ "fork", check_fork },
		{ "clone", check_clone },
		{ "fork-calls", check_fork_calls },
		{ "sync", check_sync },
		{ "signals", check_signals },
		{ "descriptors", check_descriptors },
		{ "no-descriptors", check_no_descriptors },
		{ "protection", check_protection },
		{ "protection-fork", check_protection_fork },
		{ "robust", check_robust },
		{ "mutexes-destroyed", check_mutexes_destroyed },
		{ "small-stacks", check_small_stacks },
	};

	fill_and_free(4 * MIB); /* lest the bridge complain that nothing was lent */
	if (argc >= 3 && strcmp(argv[1], "hold") == 0)
		return hold(strtoull(argv[2], NULL, 10), argc > 3 ? strtoull(argv[3], NULL, 10) : 65536);
	for (size_t i = 0; argc == 2 && i < sizeof(checks) / sizeof(checks[0]); i++)
		if (strcmp(argv[1], checks[i].name) == 0)
			return checks[i].check();
	(void)fputs("usage: client CHECK | hold BYTES [SIZE]\n", stderr);
	return 2;
}
