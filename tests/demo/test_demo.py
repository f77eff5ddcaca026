#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The demonstration as a user meets it: a short one is good, and none leaves anything behind."""
import glob
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

SUBLET = os.environ["SUBLET"]
QUICK = ["--rounds", "1", "--each", "700ms"]


def demo(*arguments, **options):
    return subprocess.run([SUBLET, "demo", *arguments], capture_output=True, text=True, timeout=120, check=False,
                          stdin=subprocess.DEVNULL, **options)


def processes_under(folder):
    """Command lines of processes that have something to do with folder."""
    found = []
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            with open(path, "rb") as f:
                line = f.read().decode(errors="replace")
        except OSError:
            continue
        if folder in line and int(path.split("/")[2]) != os.getpid():
            found.append(line.replace("\0", " "))
    return found


class Demo(unittest.TestCase):
    def setUp(self):
        base = "/var/tmp"
        self.folder = tempfile.mkdtemp(prefix="sublet-test-", dir=base)

    def tearDown(self):
        shutil.rmtree(self.folder)

    def assert_gone(self):
        self.assertEqual(os.listdir(self.folder), [])
        self.assertEqual(processes_under(self.folder), [])

    def test_a_short_one_is_good(self):
        result = demo("--json", "--dir", self.folder, *QUICK)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        found = json.loads(result.stdout)
        self.assertTrue(found["good"])
        self.assertGreater(found["claims"]["tried"], 0)
        self.assertEqual(found["claims"]["tried"], found["claims"]["succeeded"])
        self.assertGreater(found["claims"]["moved_bytes"], 0)
        self.assertGreater(found["frames"]["good"], 0)
        self.assertEqual(found["frames"]["bad"], 0)
        self.assertTrue(found["driver_killed"]["released"])
        self.assertTrue(found["data_set"]["equal"])
        self.assertEqual(len(found["data_set"]["digest_before"]), 40)
        self.assertGreater(found["data_set"]["values_checked"], 0)
        self.assertEqual(found["data_set"]["values_wrong"], 0)
        self.assertTrue(found["ways"]["good"])
        self.assertEqual(found["ways"]["rounds"], 1)
        self.assertEqual(found["ways"]["each_ns"], 700000000)
        self.assert_gone()

    def wait_for_folder(self, old):
        """Until a demonstration has made its folder, beside those that are there already."""
        deadline = time.monotonic() + 20
        while not set(os.listdir(self.folder)) - old and time.monotonic() < deadline:
            time.sleep(0.02)
        self.assertTrue(set(os.listdir(self.folder)) - old)

    def interrupt_after(self, seconds, number):
        process = subprocess.Popen([SUBLET, "demo", "--dir", self.folder, *QUICK], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self.wait_for_folder(set())  # its handlers of signals are there before that
        time.sleep(seconds)
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
        self.assertEqual(process.returncode, 128 + number, errors)
        self.assertIn("interrupted", errors)
        self.assert_gone()

    def test_interrupted_while_filling(self):
        self.interrupt_after(1, signal.SIGINT)

    def test_interrupted_under_load(self):
        self.interrupt_after(4.5, signal.SIGTERM)

    def test_interrupted_while_redis_is_stopped(self):
        """It has to be killed, and cannot remove its socket itself."""
        runtime = os.path.join(self.folder, "runtime")
        frames = os.path.join(self.folder, "frames")
        os.mkdir(runtime, 0o700)
        os.mkdir(frames)
        process = subprocess.Popen([SUBLET, "demo", "--dir", frames, *QUICK], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                                   env=dict(os.environ, XDG_RUNTIME_DIR=runtime))
        deadline = time.monotonic() + 20
        while not glob.glob(runtime + "/sublet/demo-*") and time.monotonic() < deadline:
            time.sleep(0.05)
        socket, = glob.glob(runtime + "/sublet/demo-*")
        os.kill(int(socket.split(".")[-1]), signal.SIGSTOP)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        self.assertEqual(process.returncode, 128 + signal.SIGINT, errors)
        self.assertEqual(os.listdir(runtime + "/sublet"), [])
        self.assertEqual(os.listdir(frames), [])
        shutil.rmtree(runtime)
        os.rmdir(frames)
        self.assert_gone()

    def test_killed(self):
        process = subprocess.Popen([SUBLET, "demo", "--dir", self.folder, *QUICK], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(2)
        process.kill()
        process.wait()
        deadline = time.monotonic() + 10
        while processes_under(self.folder) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.assertEqual(processes_under(self.folder), [])
        # The next one removes what it left; this one ends at once.
        left = set(os.listdir(self.folder))
        process = subprocess.Popen([SUBLET, "demo", "--dir", self.folder], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.wait_for_folder(left)
        process.terminate()
        process.wait(timeout=30)
        self.assert_gone()

    def test_refusals(self):
        result = demo("--dir", "/dev/shm")
        self.assertEqual(result.returncode, 1)
        self.assertIn("direct reads", result.stderr)
        result = demo(env=dict(os.environ, PATH="/nonexistent"))
        self.assertEqual(result.returncode, 1)
        self.assertIn("redis-server", result.stderr)
        self.assertEqual(demo("--rounds", "0").returncode, 2)
        self.assertEqual(demo("surplus").returncode, 2)
        self.assertEqual(demo("--help").returncode, 0)


def memory_available():
    with open("/proc/meminfo", encoding="ascii") as f:
        for line in f:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    if not shutil.which("redis-server") or memory_available() < 2 << 30:
        sys.exit(77)
    unittest.main()
