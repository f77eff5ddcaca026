/* SPDX-License-Identifier: MIT */
/* cli/demo.h: the pieces of `sublet demo`; demo.c puts them together. */
#ifndef SUBLET_CLI_DEMO_H
#define SUBLET_CLI_DEMO_H

#include "cli/cli.h"

#include <limits.h>
#include <stdatomic.h>

struct cJSON;

#define SUBLET__DEMO_AREA_BYTES   (512 * SUBLET_MIB)
#define SUBLET__DEMO_NORMAL_BYTES (160 * SUBLET_MIB)
#define SUBLET__DEMO_CLAIM_BYTES  (64 * SUBLET_MIB)
#define SUBLET__DEMO_PERIOD_NS    (100 * SUBLET_MS)

/* ---- children, signals, the folder (demo_process.c) ---- */

#define SUBLET__DEMO_PATH_BYTES 192

/* SIGINT, SIGTERM and SIGHUP only set a flag, SIGPIPE nothing. */
void sublet__demo_catch_signals(void);
/* The signal that asked to stop, 0 while none has. */
int sublet__demo_interrupted(void);

/*
 * Start argv in a process group of its own, with stdin from /dev/null and all output appended to
 * log_path (NULL: inherited). It is killed when this process dies. keep_fd >= 0 becomes its descriptor 3.
 * Returns the pid or -errno; a program that cannot be executed ends with 127.
 */
pid_t sublet__demo_spawn(const char *const argv[], const char *log_path, int keep_fd);
/* What a forked child does first, so that it dies with its parent and leaves Ctrl-C to it. */
void sublet__demo_child_begin(pid_t parent);
/* Whether the child runs; reaps it (and sets *pid to 0) if it has ended. */
bool sublet__demo_alive(pid_t *pid);
/* End the child and its group: politely, and after `patience_ns` not. Sets *pid to 0. */
void sublet__demo_end(pid_t *pid, uint64_t patience_ns);

uint64_t sublet__demo_now_ns(void);
/* Sleep, but not through an interruption. */
void sublet__demo_sleep_ns(uint64_t ns);

/*
 * Make a private folder for sockets, logs and frames on a file system that reads with O_DIRECT:
 * under `wanted` if given, else /var/tmp or the current folder. Prints why it cannot.
 */
int sublet__demo_folder_make(const char *wanted, char *path, size_t bytes);
/* Remove the folder and the files in it. An empty path is a no-op. */
void sublet__demo_folder_remove(const char *path);
/* The path of this very command; "" where it cannot be found. */
void sublet__demo_self(char path[PATH_MAX]);
/* Whether `program` is in $PATH. */
bool sublet__demo_find_program(const char *program);

/* ---- what is written and how it is checked (demo_data.c) ---- */

#define SUBLET__KEYS              150000u /* of 2 KiB on average: a data set of 300 MiB */
#define SUBLET__VALUE_BYTES_MIN   512u
#define SUBLET__VALUE_BYTES_MAX   3584u
#define SUBLET__COMMAND_BYTES_MAX (SUBLET__VALUE_BYTES_MAX + 64u)

/* Each key has one value, the same in every run: a pure function of its index. */
uint32_t sublet__value_bytes(uint32_t key);
bool sublet__value_is(uint32_t key, const char *value, uint32_t bytes);
/* Redis commands; return their length. out has room for SUBLET__COMMAND_BYTES_MAX. */
uint32_t sublet__command_set(uint32_t key, char *out);
uint32_t sublet__command_get(uint32_t key, char *out);
uint64_t sublet__random_next(uint64_t *state);

#define SUBLET__FRAME_BYTES    (4u << 20)
#define SUBLET__FRAMES_A_CLAIM 16u
#define SUBLET__FRAMES_IN_FILE 24u

/* Write the file that the capture device reads; on the disk when it returns. -errno */
int sublet__frames_write(const char *path);
/* Whether memory holds frame `index`, every byte of it. */
bool sublet__frame_is_good(const void *memory, uint32_t index);

/* ---- Redis (demo_redis.c) ---- */

struct sublet__redis {
	const char *label;
	pid_t pid;
	int fd; /* -1: not connected */
	char socket[SUBLET__DEMO_PATH_BYTES];
	char log[SUBLET__DEMO_PATH_BYTES];
};

/* The version of the redis-server in $PATH as major * 100 + minor, or -errno. */
int sublet__redis_version(void);
/* Start a server in `folder`: by itself, or lent_name != NULL: under `sublet run` with that name. */
int sublet__redis_start(struct sublet__redis *redis, const char *label, const char *folder,
			const char *lent_name, int version);
/* Wait until it answers. Prints why it does not. */
int sublet__redis_wait(struct sublet__redis *redis);
int sublet__redis_fill(struct sublet__redis *redis);
/* Ask for the digest of the whole data set; fetch it later, so that two servers work at once. */
int sublet__redis_digest_ask(struct sublet__redis *redis);
int sublet__redis_digest_fetch(struct sublet__redis *redis, char digest[41]);
/* A connection of its own. -errno */
int sublet__redis_connect(const char *socket_path);
/* Print that the server died or failed, with the end of its log. */
void sublet__redis_complain(const struct sublet__redis *redis, const char *what);
void sublet__redis_stop(struct sublet__redis *redis);

/* ---- load (demo_load.c) ---- */

#define SUBLET__LOAD_CONNECTIONS 16u
#define SUBLET__LOAD_SET_PERCENT 20u

struct sublet__load_shared; /* between the generator and its parent */

struct sublet__load {
	pid_t pid;
	struct sublet__load_shared *shared;
};

struct sublet__load_result {
	uint64_t operations;
	uint64_t checked; /* values compared in full */
	uint64_t wrong;   /* of them */
	uint64_t elapsed_ns;
	double rate; /* a second */
	double p50_us;
	double p99_us;
	double p999_us;
	double max_us;
};

int sublet__load_init(struct sublet__load *load);
void sublet__load_fini(struct sublet__load *load);
/* Start a generator process. -errno */
int sublet__load_start(struct sublet__load *load, const char *socket_path, uint64_t duration_ns,
		       uint64_t seed);
/* 1: it has ended well, 0: it runs, -errno: it failed */
int sublet__load_poll(struct sublet__load *load);
/* Operations so far, for the eye. */
uint64_t sublet__load_operations(const struct sublet__load *load);
void sublet__load_result(struct sublet__load *load, struct sublet__load_result *result);

/* ---- the capture device (demo_device.c the process, demo_driver.c its parent's view) ---- */

enum sublet__device_command {
	SUBLET__DEVICE_GO = 'g',   /* claim, read, check, release, ten times a second */
	SUBLET__DEVICE_STOP = 's', /* answered by STOPPED once nothing is claimed */
	SUBLET__DEVICE_HOLD = 'h', /* claim and keep it, reading into it for ever */
};

enum sublet__device_kind {
	SUBLET__DEVICE_READY = 1, /* latency_ns: what the registration took */
	SUBLET__DEVICE_CAPTURED,  /* one claim, from claim to release */
	SUBLET__DEVICE_STOPPED,
	SUBLET__DEVICE_HELD,
	SUBLET__DEVICE_FAILED, /* text says why; the process ends */
};

enum sublet__device_reading {
	SUBLET__READING_FIXED = 0, /* io_uring, into the registered area */
	SUBLET__READING_URING,     /* io_uring, not registered: the locked-memory limit is too low */
	SUBLET__READING_PREAD,     /* no io_uring here */
};

struct sublet__device_record {
	uint32_t kind;    /* enum sublet__device_kind */
	int32_t error;    /* CAPTURED: -errno of the claim */
	uint32_t reading; /* READY: enum sublet__device_reading */
	uint32_t frames_good;
	uint32_t frames_bad;
	uint32_t ticks_missed;
	uint64_t latency_ns; /* of the claim as the driver sees it, the socket included */
	uint64_t engine_ns;  /* of the claim inside the process that lends */
	uint64_t release_ns;
	uint64_t moved_bytes;
	uint64_t offset_bytes;
	char text[128];
};

/* Everything that one device reported. */
#define SUBLET__CLAIMS_MAX 8192u

struct sublet__driver {
	pid_t pid;
	int fd; /* -1: none */
	bool stopped;
	bool held;
	uint32_t reading;
	uint32_t claims; /* tried */
	uint32_t claims_succeeded;
	uint64_t frames_good;
	uint64_t frames_bad;
	uint64_t ticks_missed;
	uint64_t moved_bytes;
	uint64_t registration_ns;
	uint64_t offset_bytes;                   /* of the last claim */
	char failure[160];                       /* the first one; "" while there is none */
	uint64_t latency_ns[SUBLET__CLAIMS_MAX]; /* of successful claims, in order */
	uint64_t engine_ns[SUBLET__CLAIMS_MAX];
};

/* name NULL: a device with a buffer of its own that claims nothing. Waits until it is ready. */
int sublet__driver_start(struct sublet__driver *driver, const char *name, const char *frames,
			 const char *log);
int sublet__driver_send(struct sublet__driver *driver, enum sublet__device_command command);
/* Take in what it reported, waiting at most timeout_ns for the first. -EPIPE: it has ended; prints why. */
int sublet__driver_poll(struct sublet__driver *driver, uint64_t timeout_ns);
/* STOP, and wait until it has. */
int sublet__driver_stop(struct sublet__driver *driver);
/* HOLD, and wait until it has a claim. */
int sublet__driver_hold(struct sublet__driver *driver);
/* Kill it, whatever it does. */
void sublet__driver_end(struct sublet__driver *driver);

/* The hidden mode: `sublet demo --capture-device NAME|- FRAMES`, talks on descriptor 3. */
int sublet__device_main(const char *name, const char *frames);

/* ---- results (demo_report.c) ---- */

enum sublet__demo_mode {
	SUBLET__MODE_PLAIN = 0,    /* the plain heap */
	SUBLET__MODE_PLAIN_DEVICE, /* and a device beside it that has a buffer of its own */
	SUBLET__MODE_LENT,         /* lent, nothing claimed */
	SUBLET__MODE_CLAIMS,       /* lent, and claimed from */
	SUBLET__MODES,
};

#define SUBLET__ROUNDS_MAX 50u

struct sublet__demo_results {
	uint32_t rounds; /* finished */
	uint64_t round_ns;
	struct sublet__load_result load[SUBLET__MODES][SUBLET__ROUNDS_MAX];
	uint64_t memcpy_ns[SUBLET__ROUNDS_MAX]; /* of as many bytes as a claim, under the same load */
	const struct sublet__driver *driver;
	struct sublet_arena_info arena;
	struct sublet_stats stats;
	bool death_released;
	uint64_t death_ns; /* from the kill until nothing was claimed any more */
	char digest_before[41];
	char digest_after[41];
	char digest_plain[41]; /* of the plain twin, at the end */
	uint64_t elapsed_ns;
};

const char *sublet__demo_mode_name(enum sublet__demo_mode mode);
/* Whether everything that was promised held. */
bool sublet__demo_good(const struct sublet__demo_results *results);
void sublet__demo_print(struct sublet__demo_results *results);
/* Into an object that is there already. */
void sublet__demo_json(struct cJSON *root, struct sublet__demo_results *results);

/* Ascending. */
void sublet__demo_sort(uint64_t *values, uint32_t count);
/* The value below which so many of 1000 lie, of sorted ones; 0 where there are none. */
uint64_t sublet__demo_permille(const uint64_t *values, uint32_t count, uint64_t permille);

/* One line that is drawn over again on a terminal (stderr); elsewhere only `final` ones appear. */
void sublet__demo_line(bool final, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Wipe the line, for whoever wants to print something else. */
void sublet__demo_line_clear(void);
#define demo_error(...) (sublet__demo_line_clear(), sublet__error(__VA_ARGS__))

#endif
