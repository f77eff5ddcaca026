# SPDX-License-Identifier: MIT
"""The programs that are tortured, and how each shows that no byte of it is wrong.

A Batch is a program that does its work and ends: again and again, until the round is over. What it prints, its exit
code and the files it makes must be what they are without sublet, found out once; or it checks itself, and says so. A
server is a class of its own, with clients that know what it must answer.
"""
import os
import random
import shutil
import socket
import subprocess
import sys
import time

import lent
import redis
import test_forks
import test_gcc
import test_git
import test_memcached
import test_past
import test_python
import test_sqlite
from torture_round import Finding

CLIENTS = os.path.dirname(os.path.abspath(__file__))
PROGRAM_OF = os.path.join(lent.BUILD, "tests", "clients")
REDIS_KEYS = 20_000
SHOWN = 3000

OPENSSL = """set -e
openssl dgst -sha256 -r data
openssl dgst -blake2b512 -r data
openssl enc -aes-256-ctr -K 000102030405060708090a0b0c0d0e0f000102030405060708090a0b0c0d0e0f -iv 0f0e0d0c0b0a09080706050403020100 \
  -in data -out data.enc
openssl enc -d -aes-256-ctr -K 000102030405060708090a0b0c0d0e0f000102030405060708090a0b0c0d0e0f -iv 0f0e0d0c0b0a09080706050403020100 \
  -in data.enc -out data.dec
cmp data data.dec
openssl cms -encrypt -binary -aes256 -outform DER -in data -out data.cms cert.pem
openssl cms -decrypt -binary -inform DER -in data.cms -inkey key.pem -out data.dec2
cmp data data.dec2
openssl cms -sign -binary -nodetach -outform DER -in data -signer cert.pem -inkey key.pem -out data.signed
openssl cms -verify -binary -noverify -inform DER -in data.signed -out data.verified 2>verified
cmp data data.verified
openssl speed -seconds 1 -bytes 16384 -multi 2 sha256 >speed 2>&1
"""

GIT = """set -e
git init -q --bare -b main repository
cd repository
git fast-import --quiet --done <../history
git fsck --full --strict --no-progress
git -c pack.threads=4 repack -adfq
git fsck --full --strict --no-progress
git cat-file --batch --batch-all-objects | sha256sum
git log --raw --no-abbrev main | sha256sum
"""

# Those of --verify that use malloc, and a few that are hard on fork, threads and mappings beside it.
STRESSORS = ("malloc", "bigheap", "qsort", "bsearch", "mergesort", "heapsort", "radixsort", "shellsort", "hsearch", "lsearch",
             "tsearch", "skiplist", "tree", "judy", "list", "str", "wcs", "zlib", "matrix", "vm", "fork", "pthread", "remap")


def data(size, seed):
    """Bytes that can be packed, somewhat."""
    chance = random.Random(seed)
    words = [chance.randbytes(chance.randrange(3, 40)) for _ in range(5000)]
    return b"".join(chance.choices(words, k=size // 20))


def put(path, content):
    with open(path, "wb") as file:
        file.write(content)


class Batch:
    """Something that is run to its end, in a folder of its own."""
    short_lived = True
    needs = ()
    area_mib, normal_mib = 96, 48
    follow = False
    files = ()  # what it makes, and must be the same

    def __init__(self):
        self.expected = None

    def prepare(self, _folder):
        """What has to lie in the folder."""

    def command(self, round_):
        raise NotImplementedError

    def input(self):
        return b""

    def env(self):
        return {}

    def check(self, result, expected):
        if result != expected:
            raise Finding("not what it does without sublet", f"{describe(result)}\n--- expected:\n{describe(expected)}")

    def with_files(self, result, folder):
        return (*result, *(lent.digest(os.path.join(folder, name)) for name in self.files
                           if os.path.exists(os.path.join(folder, name))))

    def expect(self, round_):
        """What it does without sublet."""
        if self.expected is None:
            folder = round_.path("plain")
            os.mkdir(folder)
            self.prepare(folder)
            result = round_.run_plain(*self.command(round_), input=self.input(), cwd=folder, env=self.env())
            self.expected = self.with_files(result, folder)
            shutil.rmtree(folder)
        return self.expected

    def run(self, round_):
        folder = round_.path("work")
        while round_.time_left() > 0 or round_.starts == 0:
            os.mkdir(folder)
            self.prepare(folder)
            process = round_.popen([lent.SUBLET, "run", "-n", "tortured", *round_.options(), "--", *self.command(round_)],
                                   env=self.env(), cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE)
            round_.started(process)
            result = round_.communicate(process, self.input())
            if not round_.over(process):
                self.check(self.with_files(result, folder), self.expect(round_))
            shutil.rmtree(folder)


def describe(result):
    return "\n".join(str(part[-SHOWN:] if isinstance(part, bytes) else part) for part in result)


class SelfChecking(Batch):
    """Says by itself whether all was well; what it prints is different each time."""
    success = b""
    failures = (b"FAILURE", b"fail:", b"wrong")

    def expect(self, _round):
        return None

    def check(self, result, _expected):
        code, out, err = result[:3]
        text = (out + err).replace(b"\b", b"")
        if code or self.success not in text or any(word in text for word in self.failures):
            raise Finding(f"it found something, or ended with {code}", describe(result))


class Memtester(SelfChecking):
    needs = ("memtester",)
    success = b"Done."

    def command(self, _round):
        return lent.program("memtester"), "16M", "1"


class StressNg(SelfChecking):
    """Its stressors are children of fork: what they have of the heap is copy-on-write, the rest ordinary memory."""
    needs = ("stress-ng",)
    success = b"successful run completed"

    def command(self, round_):
        chosen = round_.chance.sample(STRESSORS, 3)
        return (lent.program("stress-ng"), "--verify", "--timeout", "2", "--malloc-bytes", "32M", "--vm-bytes", "32M",
                "--bigheap-growth", "1M", "--temp-path", round_.folder, *(word for name in chosen for word in (f"--{name}", "1")))


class Storm(SelfChecking):
    success = b"blocks "
    forking = ()
    threads = 16
    size = 16_000_000

    def command(self, round_):
        seconds = max(1, min(4, int(round_.time_left())))
        return (os.path.join(PROGRAM_OF, "client_storm"), str(seconds), str(round_.chance.randrange(1 << 30)), str(self.size),
                str(self.threads), *self.forking)


class StormOfForks(Storm):
    forking = ("fork",)
    threads = 4


class Hammer(Storm):
    """A small heap, all of it written all the time: what is lost in a move is seen at once."""
    forking = ("hammer",)
    threads = 3
    size = 9_000_000


class KernelAccess(SelfChecking):
    """Futexes that inherit priority, /proc/self/mem, stacks in the heap: what the kernel writes without waiting for a page."""
    success = b"PASS: "
    failures = (b"FAIL",)
    modes = ("mutexes", "robust", "conditions", "pi-calls", "wake-op", "tid", "mem", "altstack", "heapstack", "io")

    def command(self, round_):
        return os.path.join(PROGRAM_OF, "client_kernel_access"), round_.chance.choice(self.modes), "0.7"


class PiStress(SelfChecking):
    needs = ("pi_stress",)
    success = b"Total inversion performed"

    def command(self, _round):
        return lent.program("pi_stress"), "--duration", "1", "--groups", "1", "--quiet"


class Bwrap(Batch):
    """A sandbox, which is lent, and starts its child by a system call of its own."""
    needs = ("bwrap",)

    def command(self, _round):
        return (lent.program("bwrap"), "--bind", "/", "/", "--dev", "/dev", "--unshare-all", "--proc", "/proc", "--die-with-parent",
                sys.executable, "-c", test_python.SCRIPT)

    def env(self):
        return {"PYTHONMALLOC": "malloc"}


class Futures(Batch):
    needs = ("g++",)
    built = None

    def command(self, round_):
        if Futures.built is None:
            path = os.path.join(PROGRAM_OF, "torture_futures")
            result = round_.run_plain(lent.program("g++"), "-std=c++20", "-O1", "-pthread", os.path.join(CLIENTS, "futures.cc"),
                                      "-o", path)
            if result[0]:
                raise Finding("g++ does not know C++20", describe(result))
            Futures.built = path
        return Futures.built, "1"


class Sqlite(Batch):
    needs = ("sqlite3",)
    files = ("database",)

    def command(self, _round):
        return lent.program("sqlite3"), "database"

    def input(self):
        return test_sqlite.script(25_000).encode()


class Python(Batch):
    def command(self, _round):
        return sys.executable, "-c", test_python.SCRIPT

    def env(self):
        return {"PYTHONMALLOC": "malloc"}


class PythonForks(Python):
    def command(self, _round):
        return sys.executable, "-c", test_forks.PYTHON


class Php(Batch):
    """Its extensions are bound deeply."""
    needs = ("php",)
    area_mib, normal_mib = 160, 80

    def command(self, _round):
        return lent.program("php"), "-r", test_past.PHP

    def env(self):
        return {"USE_ZEND_ALLOC": "0"}


class Bash(Batch):
    needs = ("bash",)

    def command(self, _round):
        return lent.program("bash"), "-c", test_forks.BASH.replace("{1..25}", "{1..10}")  # huge pages are copied at each fork


class Gcc(Batch):
    needs = ("gcc",)
    follow = True
    files = ("code.o",)
    text = test_gcc.source(2500).encode()

    def prepare(self, folder):
        put(os.path.join(folder, "code.c"), self.text)

    def command(self, _round):
        return lent.program("gcc"), "-O1", "-c", "code.c", "-o", "code.o"


class Xz(Batch):
    needs = ("xz",)
    area_mib, normal_mib = 160, 80
    bytes = data(12 * lent.MIB, 5)
    files = ("data.xz",)

    def prepare(self, folder):
        put(os.path.join(folder, "data"), self.bytes)

    def command(self, _round):
        return lent.program("xz"), "-k", "-T4", "-2", "--block-size=3MiB", "data"


class Unxz(Xz):
    files = ("data",)
    packed = None

    def prepare(self, folder):
        if Unxz.packed is None:
            Unxz.packed = subprocess.run([lent.program("xz"), "-T4", "-2", "--block-size=3MiB", "-c"], input=self.bytes,
                                         capture_output=True, timeout=lent.TIMEOUT_S, check=True).stdout
        put(os.path.join(folder, "data.xz"), self.packed)

    def command(self, _round):
        return lent.program("xz"), "-d", "-T4", "data.xz"


class Openssl(Batch):
    needs = ("openssl", "sh", "cmp")
    follow = True
    files = ("data.enc", "data.dec2", "data.verified")
    bytes = data(6 * lent.MIB, 6)
    keys = None

    def prepare(self, folder):
        put(os.path.join(folder, "data"), self.bytes)
        if Openssl.keys is None:
            subprocess.run([lent.program("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=torture",
                            "-days", "3650", "-keyout", "key.pem", "-out", "cert.pem"], cwd=folder, capture_output=True,
                           timeout=lent.TIMEOUT_S, check=True)
            Openssl.keys = [(name, open(os.path.join(folder, name), "rb").read()) for name in ("key.pem", "cert.pem")]
        for name, content in Openssl.keys:
            put(os.path.join(folder, name), content)

    def command(self, _round):
        return lent.program("sh"), "-c", OPENSSL


class Git(Batch):
    needs = ("git", "sh")
    follow = True
    history = test_git.history(150, 8 * lent.MIB)

    def prepare(self, folder):
        put(os.path.join(folder, "history"), self.history)

    def env(self):
        return {"GIT_CONFIG_NOSYSTEM": "1"}

    def command(self, _round):
        return lent.program("sh"), "-c", GIT


# ---- servers ----

class Server:
    """Started once, or again after each death; work() puts load on it until it is killed or the round is over."""
    short_lived = False
    needs = ()
    area_mib, normal_mib = 128, 64
    follow = False

    def start(self, round_, number):
        """The process; whatever else is needed stays in self."""
        raise NotImplementedError

    def work(self, round_):
        raise NotImplementedError

    def finish(self, round_, process):
        """It was not killed: all of it is checked, and it ends."""

    def after_death(self, round_):
        """What must be true of what a killed one left on disk."""

    def run(self, round_):
        while round_.time_left() > 0 or round_.starts == 0:
            process = self.start(round_, round_.starts)
            round_.started(process)
            try:
                self.work(round_)
                if not round_.over(process):
                    self.finish(round_, process)
                    continue
            except (AssertionError, OSError, EOFError, IndexError, ValueError) as error:
                # A connection breaks in as many ways as there are places to be in.
                if not round_.over(process):
                    if isinstance(error, (TimeoutError, AssertionError)):
                        raise
                    raise Finding("the server does not answer as it should", repr(error)) from error
            self.after_death(round_)


class Filler(Server):
    """No server, but one that runs until it is told to end."""

    def start(self, round_, number):
        instance = round_.start_filler(*round_.options(), bytes_count=64 * lent.MIB, churn=("churn",))
        self.instance = instance
        return instance.process

    def work(self, round_):
        while round_.time_left() > 0 and self.instance.process.poll() is None:
            time.sleep(0.02)
        if self.instance.process.poll() is not None:
            raise EOFError(self.instance.process.stdout.read())

    def finish(self, round_, process):
        round_.stop_drivers()
        round_.end_filler(self.instance)


class Debugged(Filler):
    """A debugger comes and goes."""
    needs = ("gdb",)

    def work(self, round_):
        while round_.time_left() > 0 and self.instance.process.poll() is None:
            subprocess.run([lent.program("gdb"), "-nx", "-batch", "-p", str(self.instance.pid), "-ex", "bt", "-ex", "detach"],
                           stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                           timeout=lent.TIMEOUT_S, check=False)
        if self.instance.process.poll() is not None:
            raise EOFError(self.instance.process.stdout.read())


class Redis(Server):
    """Writes all the time; snapshots, rewrites of its log and a plain replica on the loopback must have every one."""
    needs = ("redis-server",)

    def start(self, round_, number):
        self.folder = f"redis{number}"
        self.filled = False
        self.writer = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.instance, self.client = round_.server(self.folder, "--port", str(self.port), "--bind", "127.0.0.1", "--appendonly", "yes",
                                                   "--appendfsync", "no", "--repl-diskless-sync-delay", "0", "--io-threads", "2",
                                                   run=round_.options(), name="redis")
        return self.instance.process

    def wait(self, round_, what):
        """Redis itself says when it is done; a dead one says nothing."""
        lent.wait_for(lambda: round_.killed or what(), pause=0.02)

    def save(self, round_, command, running):
        self.client(command)
        self.wait(round_, lambda: self.client.info("persistence")[running] == "0")
        found = self.client.info("persistence")
        if (found["rdb_last_bgsave_status"], found["aof_last_bgrewrite_status"]) != ("ok", "ok"):
            raise AssertionError(f"{command} failed: {found}")

    def compare(self, round_):
        """Nobody writes for a moment: the replica has what its master has."""
        writes = self.writer.stop()
        self.wait(round_, lambda: self.client("WAIT", 1, 1000) == 1)
        ours, theirs = self.client("DEBUG", "DIGEST"), self.replica("DEBUG", "DIGEST")
        if ours != theirs:
            raise AssertionError(f"after {writes} writes the replica has {theirs}, its master {ours}")
        self.write(round_, writes + 1)

    def write(self, round_, first):
        self.writer = redis.Writer(round_.path(self.folder, "socket"), REDIS_KEYS, first)
        self.writer.start()

    def work(self, round_):
        self.client.fill(REDIS_KEYS)
        self.filled = True
        self.write(round_, 1)
        _, self.replica = round_.server(f"replica-of-{self.folder}", "--replicaof", "127.0.0.1", str(self.port))
        self.wait(round_, lambda: self.replica.info("replication").get("master_link_status") == "up")
        while round_.time_left() > 0 and not round_.killed:
            step = round_.chance.choice(("BGSAVE", "BGREWRITEAOF", "compare"))
            if self.writer.error:
                raise self.writer.error
            if step == "compare":
                self.compare(round_)
            else:
                self.save(round_, step, {"BGSAVE": "rdb_bgsave_in_progress", "BGREWRITEAOF": "aof_rewrite_in_progress"}[step])
        self.compare(round_)

    def look_at_fresh(self, round_, at_most):
        """A plain server that reads what is on disk."""
        _, fresh = round_.server(self.folder, "--appendonly", "yes")
        writes = round_.assert_state(fresh, REDIS_KEYS, at_most)
        fresh.send("SHUTDOWN", "NOSAVE")
        return writes

    def finish(self, round_, process):
        writes = self.writer.stop()
        round_.assertEqual(round_.assert_state(self.client, REDIS_KEYS, writes), writes)
        round_.stop_drivers()
        round_.assertEqual(self.instance.end(), 0)
        round_.assertEqual(self.look_at_fresh(round_, writes), writes)

    def after_death(self, round_):
        """Every write that it had answered is in its log; at most one batch more."""
        if not self.filled:
            return
        done = 0
        if self.writer:
            self.writer.ended.set()
            self.writer.join(lent.TIMEOUT_S)
            done = self.writer.done
        round_.assertGreaterEqual(self.look_at_fresh(round_, done + 50), done)
        round_.look_for_traces()


class Memcached(Server):
    needs = ("memcached",)

    def start(self, round_, number):
        self.path = round_.path(f"memcached{number}")
        user = ("-u", "root") if os.geteuid() == 0 else ()
        self.instance = round_.lent(lent.program("memcached"), "-s", self.path, "-m", "64", "-t", "8", *user,
                                    options=round_.options(), name="memcached")
        lent.wait_for(lambda: os.path.exists(self.path))
        return self.instance.process

    def work(self, round_):
        while round_.time_left() > 0 and not round_.killed:
            connections = [test_memcached.Connection(self.path, n, 2000, 1000) for n in range(4)]
            for connection in connections:
                connection.start()
            for connection in connections:
                connection.join(lent.TIMEOUT_S)
                if connection.is_alive():
                    raise round_.hang("an answer of memcached")
            for connection in connections:
                if connection.error:
                    raise connection.error

    def finish(self, round_, process):
        round_.stop_drivers()
        round_.assertEqual(self.instance.end(), 0)


PROGRAMS = {"memtester": Memtester, "stress-ng": StressNg, "redis": Redis, "memcached": Memcached, "sqlite": Sqlite,
            "python": Python, "gcc": Gcc, "xz": Xz, "unxz": Unxz, "openssl": Openssl, "git": Git, "filler": Filler,
            "storm": Storm, "storm-of-forks": StormOfForks, "hammer": Hammer, "futures": Futures, "python-forks": PythonForks, "bash": Bash,
            "php": Php, "kernel-access": KernelAccess, "pi-stress": PiStress, "bwrap": Bwrap, "debugged": Debugged}


def present():
    """Those whose programs are here; the names of the others."""
    absent = [name for name, kind in PROGRAMS.items() if not all(lent.find(need) for need in kind.needs)]
    return {name: kind() for name, kind in PROGRAMS.items() if name not in absent}, absent
