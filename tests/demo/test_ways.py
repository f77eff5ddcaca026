#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The three ways of the demonstration: all data is right, the counters tell the ways apart, and `sublet bos`,
`pins` and `stat` see the buffers of a real arena. Without the right to register memory it takes another device."""
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
WAYS = ("claimed", "pinned", "tracked")
BUFFERS = 8
BYTES = 4 << 20


class Ways(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="sublet-test-", dir="/var/tmp")
        self.sockets = tempfile.mkdtemp(prefix="sublet-test-")
        self.env = dict(os.environ, XDG_RUNTIME_DIR=self.sockets)

    def tearDown(self):
        self.assertEqual(os.listdir(self.folder), [])
        shutil.rmtree(self.folder)
        shutil.rmtree(self.sockets)

    def start(self, *arguments, prefix=()):
        command = [*prefix, SUBLET, "demo", "--ways", "--dir", self.folder, *arguments]
        return subprocess.Popen(command, env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True)

    def ask(self, name):
        """What `sublet NAME --json` says, None where there is no instance to ask."""
        result = subprocess.run([SUBLET, name, "--json"], env=self.env, capture_output=True, text=True, check=False)
        return json.loads(result.stdout) if result.returncode == 0 else None

    def finish(self, process):
        """What it says of itself in the end, after the checks that hold for every device."""
        output, errors = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 0, output + errors)
        out = json.loads(output)
        self.assertTrue(out["good"])
        ways = out["ways"]
        self.assertEqual((ways["ordinary_pages_wrong"], ways["windows_wrong"], ways["bad_accesses"]), (0, 0, 0))
        for name in WAYS:
            way = ways[name]
            self.assertGreater(way["buffers_good"], 0, name)
            self.assertEqual(way["bytes"], way["buffers_good"] * BYTES, name)
            self.assertEqual(way["buffers_wrong"], 0, name)
            self.assertEqual(way["claims_tried"], way["claims_succeeded"], way["first_blocker"])
            self.assertGreater(way["ordinary_pages"], 0, name)
            self.assertLessEqual(way["claim_p50_ns"], way["claim_p99_ns"])
        for name in ("claimed", "pinned"):
            self.assertEqual((ways[name]["evictions"], ways[name]["rebinds"]), (0, 0), name)
        self.assertEqual(ways["tracked"]["binds"], BUFFERS)
        self.assertGreaterEqual(ways["tracked"]["evictions"], ways["tracked"]["rebinds"])
        return ways

    def wait_for_buffers(self, process):
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            out = self.ask("bos")
            if out and len(out["bos"]) == 3 * BUFFERS and any(bo["evictions"] for bo in out["bos"]):
                return out["bos"]
            time.sleep(0.02)
        self.fail("its buffers were never seen, or never evicted")

    def test_uring_and_lists(self):
        process = self.start("--json", "--rounds", "2", "--each", "1s")
        bos = self.wait_for_buffers(process)
        for name in WAYS:
            mine = [bo for bo in bos if bo["kind"] == name]
            self.assertEqual(len(mine), BUFFERS)
            for bo in mine:
                self.assertEqual((bo["device"], bo["owner"], bo["bytes"]), (name, f"way-{name}", BYTES))
                self.assertLessEqual(bo["bound_bytes"], BYTES)
                self.assertTrue(name == "tracked" or not bo["evictions"], bo)
        pins = self.ask("pins")["pins"]
        self.assertEqual(len([pin for pin in pins if pin["class"] == "long-term"]), BUFFERS)
        self.assertTrue(all("way-pinned" in pin["owner"] and pin["bytes"] == BYTES for pin in pins), pins)
        stat = self.ask("stat")
        self.assertEqual((stat["longterm_bytes"], stat["longterm_limit_bytes"]), (BUFFERS * BYTES, BUFFERS * BYTES))
        self.assertEqual(stat["notifiers"], BUFFERS)
        self.assertGreater(stat["invalidations"], 0)
        ways = self.finish(process)
        if ways["device"] != "uring":
            self.skipTest("no io_uring here")
        # The area is registered once: only what may move is ever registered again.
        self.assertEqual((ways["claimed"]["registrations"], ways["pinned"]["registrations"]), (0, 0))
        self.assertGreaterEqual(ways["tracked"]["registrations"], 2 * ways["tracked"]["evictions"])

    def test_without_the_right_to_lock(self):
        if not shutil.which("setpriv") or not shutil.which("prlimit") or os.geteuid():
            self.skipTest("needs root, setpriv and prlimit")
        prefix = ("prlimit", "--memlock=65536:65536", "setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock")
        process = self.start("--json", "--rounds", "1", "--each", "400ms", prefix=prefix)
        self.assertEqual(self.finish(process)["device"], "soft")

    def test_the_table(self):
        process = self.start("--rounds", "1", "--each", "300ms")
        output, errors = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 0, output + errors)
        for text in ("claimed", "pinned", "tracked", "evicted", "registrations", "\nAll good in"):
            self.assertIn(text, output)

    def test_interrupted(self):
        process = self.start("--rounds", "50")
        self.wait_for_buffers(process)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)
        self.assertEqual((process.returncode, output), (128 + signal.SIGINT, ""), errors)
        self.assertIn("interrupted", errors)


def works():
    """Whether memory can be moved here."""
    result = subprocess.run([SUBLET, "doctor", "--json"], capture_output=True, text=True, check=False)
    return json.loads(result.stdout)["run_works"]


if __name__ == "__main__":
    if not works():
        sys.exit(77)
    unittest.main()
