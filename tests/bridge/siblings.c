/* SPDX-License-Identifier: MIT */
/*
 * A program that uses the less usual one of several functions for the same thing.
 *
 *   siblings stacks ROUNDS   threads on stacks of malloc's, given in every way, joined again and again
 *   siblings malloc          what glibc's malloc.h has beside malloc
 *   siblings mappings        what replaces pages in ways other than mmap; refused on lent memory
 *   siblings forks           fork() by its other names, and what forks inside
 *   siblings daemon          goes on as a daemon, and says so
 */
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <pty.h>
#include <semaphore.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

#define STACK_BYTES ((size_t)256 << 10)
#define OTHER_BYTES ((size_t)64 << 20)
#define PAGE_BYTES  ((size_t)4096)

int pthread_attr_setstackaddr(pthread_attr_t *attr, void *end);
pid_t __fork(void);

static void check(int good, const char *what)
{
	if (!good) {
		(void)printf("FAIL: %s (%s)\n", what, strerror(errno));
		exit(1);
	}
}

/* ---- stacks ---- */

enum stack_way {
	STACK_WHOLE,
	STACK_SIZE_FIRST,
	STACK_ADDRESS_FIRST,
	STACK_WAYS,
};

static void give_stack(pthread_attr_t *attr, char *stack, enum stack_way way)
{
	check(pthread_attr_init(attr) == 0, "pthread_attr_init");
	if (way == STACK_WHOLE)
		check(pthread_attr_setstack(attr, stack, STACK_BYTES) == 0, "setstack");
	if (way == STACK_SIZE_FIRST)
		check(pthread_attr_setstacksize(attr, STACK_BYTES) == 0, "setstacksize");
	if (way != STACK_WHOLE)
		check(pthread_attr_setstackaddr(attr, stack + STACK_BYTES) == 0, "setstackaddr");
	if (way == STACK_ADDRESS_FIRST)
		check(pthread_attr_setstacksize(attr, STACK_BYTES) == 0, "setstacksize");
}

static void *work(void *argument)
{
	volatile char used[PAGE_BYTES];
	struct timespec pause = { .tv_nsec = 300000 };

	for (size_t i = 0; i < sizeof(used); i++)
		used[i] = 7;
	(void)nanosleep(&pause, NULL);
	return argument;
}

static sem_t expired;

static void expire(union sigval value)
{
	(void)work(value.sival_ptr);
	(void)sem_post(&expired);
}

/* A thread that libc makes for a timer, on the stack of the attributes. */
static void run_timer(pthread_attr_t *attr)
{
	struct sigevent event = { .sigev_notify = SIGEV_THREAD, .sigev_notify_function = expire };
	struct itimerspec once = { .it_value.tv_nsec = 1 };
	struct timespec pause = { .tv_nsec = 3000000 };
	timer_t timer;

	event.sigev_notify_attributes = attr;
	check(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0, "timer_create");
	check(timer_settime(timer, 0, &once, NULL) == 0, "timer_settime");
	check(sem_wait(&expired) == 0, "sem_wait");
	(void)nanosleep(&pause, NULL); /* it has left the stack, as far as anybody can tell */
	check(timer_delete(timer) == 0, "timer_delete");
}

static void stacks(int rounds)
{
	char *other = malloc(OTHER_BYTES), *stack[STACK_WAYS]; /* live memory to move */

	check(sem_init(&expired, 0, 0) == 0, "sem_init");
	memset(other, 5, OTHER_BYTES);
	for (int way = 0; way < STACK_WAYS; way++) {
		stack[way] = aligned_alloc(PAGE_BYTES, STACK_BYTES);
		memset(stack[way], 0, STACK_BYTES);
	}
	for (int round = 0; round < rounds; round++)
		for (int way = 0; way < STACK_WAYS; way++) {
			pthread_attr_t attr;
			pthread_t thread;
			void *result;

			give_stack(&attr, stack[way], (enum stack_way)way);
			check(pthread_create(&thread, &attr, work, &stack[way]) == 0, "pthread_create");
			check(pthread_join(thread, &result) == 0 && result == &stack[way], "pthread_join");
			if (round % 64 == 0)
				run_timer(&attr);
			(void)pthread_attr_destroy(&attr);
		}
}

/* ---- malloc.h ---- */

static void show_info(void)
{
	size_t bytes = 0;
	char *text = NULL;
	FILE *stream = open_memstream(&text, &bytes);

	check(malloc_info(0, stream) == 0 && malloc_info(1, stream) == EINVAL, "malloc_info");
	(void)fclose(stream);
	(void)printf("%s", text);
	free(text);
}

static void malloc_header(void)
{
	struct mallinfo2 before = mallinfo2(), after;
	struct mallinfo narrow;
	char *part[64];
	volatile size_t half = SIZE_MAX / 2;
	void *whole;

	for (int i = 0; i < 64; i++) {
		part[i] = malloc((size_t)1 << 20);
		memset(part[i], i, (size_t)1 << 20);
	}
	after = mallinfo2();
	narrow = mallinfo();
	/* Up to what a thread keeps for itself, which counts as in use. */
	check(after.uordblks + after.hblkhd + ((size_t)1 << 20) >=
		      before.uordblks + before.hblkhd + OTHER_BYTES,
	      "mallinfo2 in use");
	check(after.arena + after.hblkhd >= after.uordblks && after.fordblks <= after.arena,
	      "mallinfo2 as a whole");
	check((size_t)narrow.uordblks + (size_t)narrow.hblkhd + ((size_t)1 << 20) >= OTHER_BYTES,
	      "mallinfo in use");
	for (int i = 0; i < 64; i++)
		free(part[i]);
	after = mallinfo2();
	check(after.uordblks + after.hblkhd < OTHER_BYTES, "mallinfo2 after free");
	(void)malloc_trim(0);
	check(mallinfo2().fordblks < OTHER_BYTES, "malloc_trim");
	check(mallopt(M_ARENA_MAX, 2) == 1 && mallopt(M_TRIM_THRESHOLD, 1 << 20) == 1, "mallopt");
	errno = 0;
	check(reallocarray(NULL, half, 3) == NULL && errno == ENOMEM, "reallocarray beyond all memory");
	errno = 0;
	check(pvalloc(half * 2 - 10) == NULL && errno == ENOMEM, "pvalloc beyond all memory");
	whole = pvalloc(1);
	check(((uintptr_t)whole & (PAGE_BYTES - 1)) == 0 && malloc_usable_size(whole) >= PAGE_BYTES,
	      "pvalloc of 1");
	free(whole);
	malloc_stats();
	show_info();
}

/* ---- mappings ---- */

static void mappings(void)
{
	char *heap = malloc(OTHER_BYTES), *page = (char *)(((uintptr_t)heap + 65535) & ~(uintptr_t)65535);
	int segment = shmget(IPC_PRIVATE, 2 * PAGE_BYTES, IPC_CREAT | 0600);

	memset(heap, 3, OTHER_BYTES);
	check(segment >= 0, "shmget");
	errno = 0;
	check(remap_file_pages(page, PAGE_BYTES, 0, 5, 0) == -1 && errno == EINVAL, "remap_file_pages");
	errno = 0;
	check(shmat(segment, page, SHM_REMAP) == (void *)-1 && errno == EINVAL, "shmat");
	check(shmat(segment, page + 100, SHM_REMAP | SHM_RND) == (void *)-1 && errno == EINVAL,
	      "shmat, rounded");
	for (size_t i = 0; i < OTHER_BYTES; i++)
		check(heap[i] == 3, "a byte of the heap");
	page = shmat(segment, NULL, 0);
	check(page != (void *)-1, "shmat elsewhere");
	check(shmdt(page) == 0 && shmctl(segment, IPC_RMID, NULL) == 0, "shmdt");
	free(heap);
}

/* ---- new processes ---- */

static void end_child(pid_t pid, const char *what)
{
	int status;

	check(pid > 0, what);
	check(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 7, what);
}

/* Each child writes to its copy, and the parent keeps its own. */
static void child(char *heap)
{
	memset(heap, 9, PAGE_BYTES);
	_exit(heap[0] == 9 && heap[PAGE_BYTES] == 4 ? 7 : 1);
}

static void forks(void)
{
	char *heap = malloc(OTHER_BYTES), text[64] = "";
	int master = -1;
	pid_t pid;

	memset(heap, 4, OTHER_BYTES);
	pid = __fork();
	if (pid == 0)
		child(heap);
	end_child(pid, "__fork");
	pid = forkpty(&master, NULL, NULL, NULL);
	if (pid == 0) {
		(void)!write(STDOUT_FILENO, "in a terminal", 13);
		check(isatty(STDIN_FILENO) == 1, "a terminal");
		child(heap);
	}
	check(read(master, text, sizeof(text) - 1) > 0 && strncmp(text, "in a terminal", 13) == 0,
	      "forkpty's output");
	end_child(pid, "forkpty");
	(void)close(master);
	check(heap[0] == 4, "the parent's memory");
	check(WEXITSTATUS(system("exit 7")) == 7, "system");
	pid = vfork();
	if (pid == 0)
		_exit(7);
	end_child(pid, "vfork");
}

static void go_on_as_daemon(void)
{
	char *heap = malloc(OTHER_BYTES), *directory;
	pid_t before = getpid();

	memset(heap, 6, OTHER_BYTES);
	check(daemon(0, 1) == 0, "daemon");
	directory = getcwd(NULL, 0);
	check(getpid() != before && getsid(0) == getpid(), "a session of its own");
	check(strcmp(directory, "/") == 0, "the root directory");
	for (size_t i = 0; i < OTHER_BYTES; i++)
		check(heap[i] == 6, "a byte of the heap");
	free(directory);
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";

	if (strcmp(what, "stacks") == 0)
		stacks(argc > 2 ? atoi(argv[2]) : 1);
	else if (strcmp(what, "malloc") == 0)
		malloc_header();
	else if (strcmp(what, "mappings") == 0)
		mappings();
	else if (strcmp(what, "forks") == 0)
		forks();
	else if (strcmp(what, "daemon") == 0)
		go_on_as_daemon();
	else
		return 2;
	(void)printf("PASS\n");
	return 0;
}
