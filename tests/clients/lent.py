# SPDX-License-Identifier: MIT
"""What the tests of real programs share: instances, claims, how much of a heap is lent, cleaning up.

SUBLET names the command, SUBLET_BUILD the build folder. Everything a test starts ends with it: processes
are killed as a group, and by the kernel if the test itself is killed.
"""
import ctypes
import hashlib
import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest

SUBLET = os.path.abspath(os.environ.get("SUBLET", "build/sublet"))
BUILD = os.path.abspath(os.environ.get("SUBLET_BUILD", os.path.dirname(SUBLET)))
FILLER = os.path.join(BUILD, "tests", "clients", "client_filler")
KIB, MIB = 1 << 10, 1 << 20
TIMEOUT_S = 120
CHAOS = ("--chaos", "1ms")
PR_SET_PDEATHSIG = 1
SYS_KCMP = {"x86_64": 312}.get(platform.machine(), 272)
KCMP_VM = 1
SKIPPED = 77

libc = ctypes.CDLL(None, use_errno=True)


def no_core():
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def die_with_parent():
    """The parent is the thread that starts it: not for what one starts that ends earlier."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    no_core()


def find(name):
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def program(name):
    """The path of a program; the test is skipped where there is none."""
    path = find(name)
    if path is None:
        raise unittest.SkipTest(f"no {name} here")
    return path


def wait_for(what, seconds=TIMEOUT_S, pause=0.01):
    """Call what() until it returns something true; that is the result."""
    end = time.monotonic() + seconds
    while True:
        result = what()
        if result:
            return result
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds} s in vain for {what}")
        time.sleep(pause)


def comm(pid):
    """The name of a process; "": there is none."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def helpers(pid):
    """The helper processes of a program: those that share its memory."""
    return [int(other) for other in os.listdir("/proc") if other.isdigit() and comm(other) == "sublet-helper"
            and libc.syscall(SYS_KCMP, pid, int(other), KCMP_VM, 0, 0) == 0]


def digest(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


class Watch(threading.Thread):
    """Looks at all instances of a folder until it is told to stop: the fullest heap of each pid."""

    def __init__(self, test, pause):
        super().__init__(daemon=True)
        self.test = test
        self.pause = pause
        self.fullest = {}
        self.ended = threading.Event()

    def look(self):
        listed = self.test.sublet("list", "--json")
        if listed.returncode:
            return
        for instance in json.loads(listed.stdout)["instances"]:
            result = self.test.sublet("stat", "-n", str(instance["pid"]), "--json")
            if result.returncode:
                continue
            stat = json.loads(result.stdout)
            heap = stat["lent_bytes"] + stat["plain_bytes"]
            if heap >= self.fullest.get(instance["pid"], (0, None))[0]:
                self.fullest[instance["pid"]] = (heap, stat)

    def run(self):
        while not self.ended.is_set():
            self.look()
            self.ended.wait(self.pause)

    def stop(self):
        self.ended.set()
        self.join(TIMEOUT_S)

    def largest(self):
        """The stat of the largest heap that was seen; None: nothing was seen."""
        return max(self.fullest.values(), key=lambda seen: seen[0], default=(0, None))[1]


class Instance:
    """A program under `sublet run`."""

    def __init__(self, test, process, name):
        self.test = test
        self.process = process
        self.name = name
        self.pid = process.pid

    def stat(self):
        return self.test.stat(str(self.pid))

    def claim(self, *arguments):
        """A claim that succeeds, as JSON."""
        result = self.test.sublet("claim", "-n", str(self.pid), "--json", *arguments)
        self.test.assertEqual(result.returncode, 0, result.stderr + result.stdout[-2000:] + self.last_words())
        return json.loads(result.stdout)

    def last_words(self):
        """What a program that has ended printed last; nothing while it runs."""
        if self.process.poll() is None or not self.process.stdout:
            return ""
        return f"{self.name} ended with {self.process.returncode}: {self.process.stdout.read()[-2000:]}"

    def claim_fails(self, code, *arguments):
        """A claim that does not: one line of what and at least one of what to do, both on stderr."""
        result = self.test.sublet("claim", "-n", str(self.pid), *arguments)
        self.test.assertEqual(result.returncode, code, (arguments, result))
        self.test.assert_explained(result)
        return result

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(TIMEOUT_S)


class Case(unittest.TestCase):
    def setUp(self):
        began = time.monotonic()
        self.addCleanup(lambda: print(f"  {self.id().split('.')[-1]}: {time.monotonic() - began:.1f} s", flush=True))
        self.make_folder()

    def make_folder(self):
        self.folder = tempfile.mkdtemp(prefix="sublet-clients-")
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.env = dict(os.environ, XDG_RUNTIME_DIR=self.folder, LC_ALL="C.UTF-8", TZ="UTC")
        for name in ("LD_PRELOAD", "MALLOC_CONF", "SUBLET_BRIDGE", "SUBLET_JEMALLOC", "SUBLET_RUN", "PYTHONMALLOC"):
            self.env.pop(name, None)

    def path(self, *names):
        return os.path.join(self.folder, *names)

    # ---- commands ----

    def sublet(self, *arguments, **env):
        return subprocess.run([SUBLET, *arguments], capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
                              stdin=subprocess.DEVNULL, env={**self.env, **env})

    def stat(self, name):
        result = self.sublet("stat", "-n", name, "--json")
        self.assertEqual(result.returncode, 0, result.stderr)
        return json.loads(result.stdout)

    def instances(self):
        return json.loads(self.sublet("list", "--json").stdout)["instances"]

    def assert_explained(self, result):
        """One error line of what, and after it what to do; nothing on stdout."""
        lines = result.stderr.splitlines()
        self.assertEqual(sum(line.startswith("sublet: ") for line in lines), 1, result.stderr)
        self.assertTrue(lines[0].startswith("sublet: "), result.stderr)
        self.assertEqual(result.stdout, "")

    # ---- processes ----

    def kill_group(self, process):
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.kill()
        process.wait(TIMEOUT_S)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                stream.close()

    def popen(self, command, **options):
        """Start a process that cannot outlive the test."""
        env = {**self.env, **options.pop("env", {})}
        options.setdefault("stdin", subprocess.DEVNULL)
        process = subprocess.Popen(command, env=env, start_new_session=True, preexec_fn=die_with_parent, **options)
        self.addCleanup(self.kill_group, process)
        return process

    def lent(self, *command, options=(), name=None, env=None, **popen):
        """Start a program in lent memory; returns as soon as the instance can be talked to."""
        name = name or "client"
        process = self.popen([SUBLET, "run", "-n", name, *options, "--", *command], env=env or {}, **popen)
        wait_for(lambda: process.poll() is not None or self.sublet("stat", "-n", str(process.pid)).returncode == 0)
        self.assertIsNone(process.poll(), f"{command} has ended")
        return Instance(self, process, name)

    def run_plain(self, *command, input=None, env=None, cwd=None):
        """Run to the end without sublet: (exit code, stdout, stderr)."""
        process = self.popen(list(command), env=env or {}, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE)
        out, err = process.communicate(input, timeout=TIMEOUT_S)
        return process.returncode, out, err

    def run_lent(self, *command, options=CHAOS, input=None, env=None, cwd=None, pause=0.02):
        """The same in lent memory, watched: (exit code, stdout, stderr), the fullest heap."""
        watch = Watch(self, pause)
        process = self.popen([SUBLET, "run", "-n", "client", *options, "--", *command], env=env or {}, cwd=cwd,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        watch.start()
        try:
            out, err = process.communicate(input, timeout=TIMEOUT_S)
        finally:
            watch.stop()
        return (process.returncode, out, err), watch.largest()

    # ---- what must hold ----

    def assert_lent(self, stat, moved=True):
        """At least 90 % of the heap is lent, and it was moved about."""
        self.assertIsNotNone(stat, "the instance ended before anybody could look at it")
        print(f"  {self.id().split('.')[-1]}: heap {(stat['lent_bytes'] + stat['plain_bytes']) / MIB:.0f} MiB, "
              f"lent {100 * stat['lent_ratio']:.1f} %, {stat['moves']} moves of {stat['moved_bytes'] / MIB:.0f} MiB, "
              f"{stat['claims_succeeded']} of {stat['claims']} claims, {stat['forks']} forks", flush=True)
        self.assertGreaterEqual(stat["lent_ratio"], 0.9)
        if moved:
            self.assertGreater(stat["moves"], 0)

    def assert_same(self, *command, options=("--area", "256M", *CHAOS), input=None, env=None, cwd=None, pause=0.02):
        """In lent memory a program does what it does without: returns (exit code, stdout, stderr), heap."""
        plain = self.run_plain(*command, input=input, env=env, cwd=cwd)
        lent, stat = self.run_lent(*command, options=options, input=input, env=env, cwd=cwd, pause=pause)
        self.assertEqual(lent, plain)
        return lent, stat

    def start_filler(self, *options, bytes_count, name="filler", churn=(), env=None):
        """A program that fills so many bytes of malloc's and checks them all the time."""
        instance = self.lent(FILLER, str(bytes_count), *churn, options=options, name=name, env=env, stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True)
        self.assertEqual(instance.process.stdout.readline(), "full\n")
        return instance

    def end_filler(self, instance):
        """It saw no wrong byte, and looked at all of them more than once."""
        out, _ = instance.process.communicate("\n", timeout=TIMEOUT_S)
        self.assertEqual(instance.process.returncode, 0, out)
        self.assertGreater(int(out.split()[1]), 0, out)


def needs(condition, why):
    if not condition:
        raise unittest.SkipTest(why)


def listen_to_signals():
    """A background job of a shell ignores SIGINT, and a job of nohup ignores SIGHUP. The programs of a test do not."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def main():
    """As unittest.main, but 77 where nothing could be tried."""
    listen_to_signals()
    doctor = subprocess.run([SUBLET, "doctor", "--json"], capture_output=True, text=True, timeout=60, check=False)
    if not json.loads(doctor.stdout)["run_works"]:
        print("`sublet run` does not work here: see `sublet doctor`")
        sys.exit(SKIPPED)
    began = time.monotonic()
    result = unittest.main(module="__main__", exit=False).result
    print(f"{time.monotonic() - began:.1f} s")
    if not result.wasSuccessful():
        sys.exit(1)
    sys.exit(SKIPPED if result.testsRun and len(result.skipped) >= result.testsRun else 0)
