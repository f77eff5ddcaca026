/* SPDX-License-Identifier: MIT */
/*
 * The second part of client_kernel_access (see kernel_access.c): /proc/self/mem, signal frames, interrupted input and output.
 */
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "kernel_access.h"

static struct timespec end;

void *block(size_t bytes)
{
	void *memory = calloc(1, bytes);

	CHECK(memory != NULL);
	return memory;
}

bool is_over(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec > end.tv_sec || (now.tv_sec == end.tv_sec && now.tv_nsec >= end.tv_nsec);
}

/* ---- /proc/self/mem ---- */

#define MEM_BYTES ((size_t)2 << 20)
#define PIECE     96

ssize_t __read_chk(int fd, void *data, size_t bytes, size_t room);
ssize_t __pread_chk(int fd, void *data, size_t bytes, off_t offset, size_t room);

static ssize_t write_at(int fd, const char *data, off_t at, unsigned int way)
{
	struct iovec two[] = { { (void *)(uintptr_t)data, PIECE / 3 },
			       { (void *)(uintptr_t)(data + PIECE / 3), PIECE - PIECE / 3 } };

	switch (way % 4) {
	case 0:
		return pwrite(fd, data, PIECE, at);
	case 1:
		return pwritev(fd, two, 2, at);
	case 2:
		return lseek(fd, at, SEEK_SET) == at ? write(fd, data, PIECE) : -1;
	default:
		return lseek(fd, at, SEEK_SET) == at ? writev(fd, two, 2) : -1;
	}
}

static ssize_t read_at(int fd, char *data, off_t at, unsigned int way)
{
	struct iovec two[] = { { data, PIECE / 3 }, { data + PIECE / 3, PIECE - PIECE / 3 } };

	switch (way % 6) {
	case 0:
		return pread(fd, data, PIECE, at);
	case 1:
		return preadv(fd, two, 2, at);
	case 2:
		return lseek(fd, at, SEEK_SET) == at ? read(fd, data, PIECE) : -1;
	case 3:
		return lseek(fd, at, SEEK_SET) == at ? readv(fd, two, 2) : -1;
	case 4:
		return __pread_chk(fd, data, PIECE, at, PIECE);
	default:
		return lseek(fd, at, SEEK_SET) == at ? __read_chk(fd, data, PIECE, PIECE) : -1;
	}
}

static long mode_mem(void)
{
	int fd = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
	char *heap = block(MEM_BYTES), *from = block(BLOCK_BYTES), *to = block(BLOCK_BYTES);
	long n = 0;

	CHECK(fd >= 0);
	for (; !is_over(); n++) {
		size_t at = (size_t)n * 2654435761u % (MEM_BYTES - 4096);

		memset(from, (int)(n % 251), PIECE);
		memcpy(from, &n, sizeof(n));
		CHECK(write_at(fd, from, (off_t)(uintptr_t)(heap + at), (unsigned int)n) == PIECE);
		CHECK(memcmp(heap + at, from, PIECE) == 0);
		memset(heap + at, (int)(~n % 251), 8);
		CHECK(read_at(fd, to, (off_t)(uintptr_t)(heap + at), (unsigned int)n / 4) == PIECE);
		CHECK(memcmp(heap + at, to, PIECE) == 0);
		/* A page and more, over the border of what moves together. */
		if (n % 64 == 0)
			CHECK(pread(fd, to, BLOCK_BYTES / 2, (off_t)(uintptr_t)(heap + at % MEM_BYTES / 2)) ==
				      (ssize_t)BLOCK_BYTES / 2 &&
			      memcmp(heap + at % MEM_BYTES / 2, to, BLOCK_BYTES / 2) == 0);
	}
	CHECK(close(fd) == 0);
	return n;
}

/* ---- signals ---- */

static volatile sig_atomic_t signals;

/* Uses some of the stack that it runs on, and looks whether it is there. */
static void on_signal(int number)
{
	volatile unsigned char frame[2000];

	for (size_t i = 0; i < sizeof(frame); i++)
		frame[i] = (unsigned char)(i * 7 + (size_t)number);
	for (size_t i = 0; i < sizeof(frame); i++)
		if (frame[i] != (unsigned char)(i * 7 + (size_t)number))
			_exit(3);
	signals++;
}

static void signal_every(long us, int flags)
{
	struct sigaction action = { .sa_handler = on_signal, .sa_flags = flags };
	struct itimerval timer = { { 0, us }, { 0, us } };

	CHECK(sigaction(SIGALRM, &action, NULL) == 0);
	CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
}

static void signals_end(void)
{
	const struct itimerval none = { { 0, 0 }, { 0, 0 } };

	CHECK(setitimer(ITIMER_REAL, &none, NULL) == 0);
	CHECK(signals > 0);
}

/* Counts in registers, the floating ones too, which a signal saves and brings back. */
static long count_until_over(void)
{
	volatile double sum = 0;
	long n = 0;

	for (; !is_over(); n++)
		sum += 1.0;
	CHECK(sum == (double)n);
	return n;
}

static long mode_altstack(void)
{
	stack_t stack = { .ss_sp = block(BLOCK_BYTES), .ss_size = BLOCK_BYTES };
	long n;

	CHECK(sigaltstack(&stack, NULL) == 0);
	signal_every(1000, SA_ONSTACK | SA_RESTART);
	n = count_until_over();
	signals_end();
	return n;
}

static long counted;

static void count_on_heap(void)
{
	counted = count_until_over();
}

/* No stack for signals: their frames are written below what the program has on its own, which is heap. */
static long mode_heapstack(void)
{
	ucontext_t here, there;

	CHECK(getcontext(&there) == 0);
	there.uc_stack.ss_sp = block(BLOCK_BYTES);
	there.uc_stack.ss_size = BLOCK_BYTES;
	there.uc_link = &here;
	makecontext(&there, count_on_heap, 0);
	signal_every(1000, SA_RESTART);
	CHECK(swapcontext(&here, &there) == 0);
	signals_end();
	return counted;
}

/* ---- input and output that signals interrupt ---- */

#define CHUNK 40000

static int pair[2];

/* Bytes that follow from their place in the stream, from another thread, which no signal disturbs. */
static void *feed(void *arg)
{
	unsigned char *chunk = block(BLOCK_BYTES);
	size_t at = 0;

	(void)arg;
	while (true) {
		size_t done = 0, bytes = 1 + at % CHUNK;

		for (size_t i = 0; i < bytes; i++)
			chunk[i] = (unsigned char)((at + i) * 31 >> 3);
		while (done < bytes) {
			struct iovec vector = { chunk + done, bytes - done };
			struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1 };
			ssize_t n = at % 2 ? write(pair[1], chunk + done, bytes - done)
					   : sendmsg(pair[1], &message, MSG_NOSIGNAL);
			if (n < 0 && (errno == EPIPE || errno == ECONNRESET))
				return NULL;
			CHECK(n > 0);
			done += (size_t)n;
		}
		at += bytes;
	}
}

static ssize_t receive(unsigned char *to, long round)
{
	struct iovec *two = block(2 * sizeof(*two));
	struct msghdr *message = block(sizeof(*message));
	ssize_t n;

	two[0] = (struct iovec){ to, 5000 };
	two[1] = (struct iovec){ to + 5000, CHUNK };
	message->msg_iov = two;
	message->msg_iovlen = 2;
	n = round % 3 == 0   ? read(pair[0], to, CHUNK)
	    : round % 3 == 1 ? recvmsg(pair[0], message, 0)
			     : readv(pair[0], two, 2);
	CHECK(n > 0 || (n < 0 && errno == EINTR));
	free(two);
	free(message);
	return n;
}

/* Which waits: in structures of the heap, that the kernel fills in. */
static void wait_somehow(int epoll, long round)
{
	struct epoll_event *event = block(BLOCK_BYTES);
	struct pollfd *p = block(BLOCK_BYTES);
	int n;

	*p = (struct pollfd){ .fd = pair[0], .events = POLLIN };
	n = round % 2 ? poll(p, 1, 1000) : epoll_wait(epoll, event, 4, 1000);
	CHECK(n >= 0 || errno == EINTR);
	if (n == 1 && round % 2)
		CHECK(p->revents & POLLIN);
	if (n == 1 && round % 2 == 0)
		CHECK(event->events & EPOLLIN && event->data.u64 == 0x123456789abcdef);
	free(event);
	free(p);
}

static long mode_io(void)
{
	unsigned char *to = block(BLOCK_BYTES);
	struct epoll_event watched = { .events = EPOLLIN, .data.u64 = 0x123456789abcdef };
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	pthread_t feeder;
	sigset_t alarm_only;
	size_t at = 0;
	long n = 0;

	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0 && epoll >= 0);
	CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, pair[0], &watched) == 0);
	sigemptyset(&alarm_only);
	sigaddset(&alarm_only, SIGALRM);
	CHECK(pthread_sigmask(SIG_BLOCK, &alarm_only, NULL) == 0);
	CHECK(pthread_create(&feeder, NULL, feed, NULL) == 0);
	CHECK(pthread_sigmask(SIG_UNBLOCK, &alarm_only, NULL) == 0);
	CHECK(signal(SIGPIPE, SIG_IGN) != SIG_ERR);
	signal_every(500, 0);
	for (; !is_over(); n++) {
		wait_somehow(epoll, n);
		ssize_t got = receive(to, n);
		for (ssize_t i = 0; i < got; i++, at++)
			CHECK(to[i] == (unsigned char)(at * 31 >> 3));
	}
	signals_end();
	CHECK(close(pair[0]) == 0 && pthread_join(feeder, NULL) == 0);
	return n;
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		long (*run)(void);
	} modes[] = {
		{ "mutexes", mode_mutexes },
		{ "robust", mode_robust },
		{ "conditions", mode_conditions },
		{ "pi-calls", mode_pi_calls },
		{ "wake-op", mode_wake_op },
		{ "tid", mode_tid },
		{ "rseq", mode_rseq },
		{ "mem", mode_mem },
		{ "altstack", mode_altstack },
		{ "heapstack", mode_heapstack },
		{ "io", mode_io },
	};
	double seconds = argc > 2 ? strtod(argv[2], NULL) : 1;
	long until_ns;

	for (size_t i = 0; argc > 1 && i < sizeof(modes) / sizeof(modes[0]); i++) {
		if (strcmp(modes[i].name, argv[1]) != 0)
			continue;
		clock_gettime(CLOCK_MONOTONIC, &end);
		until_ns = end.tv_nsec + (long)(seconds * 1e9);
		end.tv_sec += until_ns / 1000000000;
		end.tv_nsec = until_ns % 1000000000;
		printf("PASS: %ld\n", modes[i].run());
		return 0;
	}
	fputs("usage: client_kernel_access MODE SECONDS\n", stderr);
	return 2;
}
