#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Lent programs under each limit of a process and of its control group (docs/limits.md).

What a message calls the least that works does work, and programs that fit in ordinary memory fit with what the page says.
"""
import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

SUBLET = os.environ.get("SUBLET", "build/sublet")
PROGRAMS = os.path.join(os.environ.get("SUBLET_BUILD", os.path.dirname(os.path.abspath(SUBLET))), "tests", "bridge")
CLIENT = os.path.join(PROGRAMS, "bridge_limits_client")
KIB, MIB = 1 << 10, 1 << 20
MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4
CAP_SYS_RESOURCE, CAP_IPC_LOCK = 24, 14
SIZES = (("--area", "2M", "--normal", "2M"), ("--area", "64M", "--normal", "16M"), ("--area", "256M", "--normal", "64M"))


def drop_capability(number):
    """Of this process and what it executes, as root's programs get all that are in the bounding set."""
    import ctypes  # pylint: disable=import-outside-toplevel
    ctypes.CDLL(None, use_errno=True).prctl(24, number, 0, 0, 0)  # PR_CAPBSET_DROP


def memory_group():
    """A new child of our memory cgroup of version 1, or None."""
    try:
        with open("/proc/self/cgroup", encoding="utf-8") as file:
            path = next(line.split(":", 2)[2].strip() for line in file if line.split(":")[1] == "memory")
        folder = f"/sys/fs/cgroup/memory{path}/sublet-limits-{os.getpid()}"
        os.mkdir(folder)
        return folder
    except (OSError, StopIteration):
        return None


def remove_group(folder):
    """A group can be removed when its last process is gone, and the helper of a program ends just after that program."""
    end = time.monotonic() + 60
    while True:
        try:
            return os.rmdir(folder)
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > end:
                raise
        time.sleep(0.01)


class Limits(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="sublet-limits-")
        self.env = dict(os.environ, XDG_RUNTIME_DIR=self.folder)
        for name in ("LD_PRELOAD", "MALLOC_CONF", "SUBLET_BRIDGE", "SUBLET_JEMALLOC"):
            self.env.pop(name, None)

    def tearDown(self):
        shutil.rmtree(self.folder)

    def call(self, *words, limits=(), drop=None, group=None):
        def prepare():
            if group:
                with open(os.path.join(group, "cgroup.procs"), "w", encoding="utf-8") as file:
                    file.write(str(os.getpid()))
            for kind, value in limits:
                resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))
            if drop is not None:
                drop_capability(drop)
        return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, env=self.env,
                              stdin=subprocess.DEVNULL, preexec_fn=prepare)

    def lent(self, *words, options=("--area", "64M"), **more):
        return self.call(SUBLET, "run", *options, "--", *words, **more)

    # ---- the least that works ----

    def check_least(self, kind, letter, low, unit):
        for options in SIZES:
            with self.subTest(letter=letter, options=options):
                refused = self.lent(CLIENT, "nothing", options=options, limits=((kind, low * unit),))
                self.assertEqual(refused.returncode, 125, refused.stderr)
                least = re.search(rf"`ulimit -{letter} (\d+)`", refused.stderr)
                self.assertTrue(least, refused.stderr)
                works = self.lent(CLIENT, "nothing", options=options, limits=((kind, int(least[1]) * unit),))
                self.assertEqual(works.returncode, 0, works.stderr)
                below = self.lent(CLIENT, "nothing", options=options, limits=((kind, (int(least[1]) - 1024) * unit),))
                self.assertEqual(below.returncode, 125, below.stderr)
                self.assertIn(f"ulimit -{letter} {least[1]}`", below.stderr)

    def test_addresses(self):
        self.check_least(resource.RLIMIT_AS, "v", 40000, KIB)

    def test_private_memory(self):
        self.check_least(resource.RLIMIT_DATA, "d", 16000, KIB)

    def test_file_sizes(self):
        for options in SIZES:
            refused = self.lent(CLIENT, "nothing", options=options, limits=((resource.RLIMIT_FSIZE, 2 * MIB),))
            least = int(re.search(r"`ulimit -f (\d+)`", refused.stderr)[1])
            for value, code in ((least, 0), (least - 1, 125)):
                result = self.lent(CLIENT, "nothing", options=options, limits=((resource.RLIMIT_FSIZE, value * KIB),))
                self.assertEqual(result.returncode, code, result.stderr)

    def test_open_files(self):
        # The program's own limit does not matter, as long as the command itself can start.
        self.assertEqual(self.lent(CLIENT, "nothing", limits=((resource.RLIMIT_NOFILE, 8),)).returncode, 0)
        def hard(limit):
            return self.call("bash", "-c", f'ulimit -n {limit}; exec "$0" "$@"', SUBLET, "run", "--area", "64M", "--",
                             CLIENT, "nothing")
        refused = hard(12)
        self.assertEqual(refused.returncode, 125, refused.stderr)
        self.assertIn("RLIMIT_NOFILE", refused.stderr)
        least = int(re.search(r"at least (\d+)", refused.stderr)[1])
        self.assertEqual(hard(least).returncode, 0)

    def test_stacks(self):
        for value in (128 * KIB, 1 * MIB, resource.RLIM_INFINITY):
            result = self.lent(CLIENT, "pieces", limits=((resource.RLIMIT_STACK, value),))
            self.assertEqual(result.returncode, 0, result.stderr)

    # ---- malloc does not fail where ordinary memory does not ----

    def test_pieces(self):
        """8 MB at a time, freed again and again: with what docs/limits.md says beside it, also where nothing is lent."""
        for options, data_mib in ((("--area", "2M", "--normal", "4M"), 16 + 32), (("--area", "64M"), 32)):
            for limits in ((resource.RLIMIT_DATA, data_mib * MIB),), ((resource.RLIMIT_AS, 500 * MIB),):
                with self.subTest(options=options, limits=limits):
                    result = self.lent(CLIENT, "pieces", options=options, limits=limits)
                    self.assertEqual(result.returncode, 0, result.stderr)
        result = self.call(CLIENT, "pieces", limits=((resource.RLIMIT_DATA, 18 * MIB),))
        self.assertEqual(result.returncode, 0, "in ordinary memory")

    def test_malloc_settings_are_not_inherited(self):
        """What is set for malloc under a limit is taken out again for children, and the user's own stays."""
        for own in ({}, {"MALLOC_CONF": "background_thread:false"}, {"MALLOC_CONF": "narenas:3"}):
            self.env.pop("MALLOC_CONF", None)
            self.env.update(own)
            script = "bash -c 'echo \"<$MALLOC_CONF>\"'; true"
            result = self.lent("bash", "-c", script, limits=((resource.RLIMIT_DATA, 64 * MIB),))
            self.assertEqual((result.returncode, result.stdout), (0, f"<{own.get('MALLOC_CONF', '')}>\n"), result.stderr)

    # ---- locked memory ----

    def test_mlockall(self):
        hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
        if 0 <= hard < 8 * MIB:
            self.skipTest("the limit of locked memory is too low to try")
        cases = ((0, 8 * MIB), (1 * MIB, 20 * MIB), (4 * MIB, 24 * MIB))
        for heap, limit in cases:
            for flags in (MCL_CURRENT, MCL_CURRENT | MCL_FUTURE, MCL_CURRENT | MCL_ONFAULT, MCL_FUTURE):
                if 0 <= hard < limit:
                    continue
                with self.subTest(heap=heap, flags=flags):
                    more = {"limits": ((resource.RLIMIT_MEMLOCK, limit),), "drop": CAP_IPC_LOCK}
                    self.assertEqual(self.call(CLIENT, "lockall", str(flags), str(heap), **more).returncode, 0)
                    result = self.lent(CLIENT, "lockall", str(flags), str(heap), **more)
                    self.assertEqual(result.returncode, 0, result.stderr)

    def test_mlockall_is_refused(self):
        """With an error of the kernel's, and nothing locked, where it is more than the limit."""
        for limit, expected in ((64 * KIB, errno.ENOMEM), (0, errno.EPERM)):
            more = {"limits": ((resource.RLIMIT_MEMLOCK, limit),), "drop": CAP_IPC_LOCK}
            for run in (self.call, self.lent):
                result = run(CLIENT, "lockall", str(MCL_CURRENT), "0", **more)
                self.assertEqual(result.returncode, expected, result.stderr)

    def test_mlockall_unlimited(self):
        """Privileged, or without a limit: as ever."""
        if os.geteuid() != 0:
            self.skipTest("needs CAP_IPC_LOCK")
        result = self.lent(CLIENT, "lockall", str(MCL_CURRENT | MCL_FUTURE), str(4 * MIB))
        self.assertEqual(result.returncode, 0, result.stderr)

    # ---- kernel mappings ----

    def test_kernel_mappings(self):
        for leave in (0, 1, 2, 7):
            for chaos in ((), ("--chaos", "1ms")):
                with self.subTest(leave=leave, chaos=chaos):
                    result = self.lent(CLIENT, "mappings", str(leave), "1", options=("--area", "64M", *chaos))
                    if result.returncode == 77:
                        self.skipTest("this machine has too many mappings to use them up")
                    self.assertEqual(result.returncode, 0, result.stderr)

    # ---- control groups ----

    def test_a_small_container(self):
        """The default sizes leave three quarters to the program, and what the doctor advises works."""
        group = memory_group()
        if not group:
            self.skipTest("no memory cgroup of version 1 can be made here")
        self.addCleanup(remove_group, group)
        for limit in (40, 100, 300):
            with open(os.path.join(group, "memory.limit_in_bytes"), "w", encoding="utf-8") as file:
                file.write(str(limit * MIB))
            result = self.lent(CLIENT, "pieces", options=(), group=group)
            self.assertEqual(result.returncode, 0, result.stderr)
            checks = json.loads(self.call(SUBLET, "doctor", "--json", group=group).stdout)["checks"]
            arena = next(c for c in checks if c["name"] == "arena")
            self.assertEqual(arena["verdict"], "ok", arena)
            sizes = [float(number) for number in re.findall(r"([\d.]+) MiB", arena["found"])]
            self.assertLessEqual(sum(sizes), limit / 4)
            memory = next(c for c in checks if c["name"] == "memory")
            self.assertIn(group + "/memory.limit_in_bytes", memory["found"])
            # More than there is: refused before anything is taken, by the name of the limit, with sizes that fit.
            refused = self.lent(CLIENT, "nothing", options=("--area", f"{limit}M"), group=group)
            self.assertEqual(refused.returncode, 125, refused.stderr)
            self.assertIn(group + "/memory.limit_in_bytes", refused.stderr)
            advised = re.search(r"(--area \d+M --normal \d+M)", refused.stderr)[1].split()
            result = self.lent(CLIENT, "pieces", options=advised, group=group)
            self.assertEqual(result.returncode, 0, result.stderr)

    # ---- advice is tried before it is given ----

    def test_doctor_advises_what_works(self):
        cases = [((kind, value * KIB),) for kind, values in (
            (resource.RLIMIT_AS, (60000, 100000, 400000, 4000000)), (resource.RLIMIT_DATA, (16000, 30000, 60000)),
            (resource.RLIMIT_FSIZE, (1000, 4096, 20000))) for value in values]
        for limits in cases:
            with self.subTest(limits=limits):
                report = json.loads(self.call(SUBLET, "doctor", "--json", limits=limits).stdout)
                arena = next(c for c in report["checks"] if c["name"] == "arena")
                works = self.lent(CLIENT, "nothing", options=(), limits=limits)
                self.assertEqual(works.returncode, 0 if arena["verdict"] == "ok" else 125, (arena, works.stderr))
                options = re.search(r"sublet run (--area \S+ --normal \S+)", arena["fix"] or "")
                if options:
                    advised = self.lent(CLIENT, "nothing", options=options[1].split(), limits=limits)
                    self.assertEqual(advised.returncode, 0, (arena, advised.stderr))


if __name__ == "__main__":
    signal.alarm(280)
    unittest.main(argv=sys.argv[:1])
