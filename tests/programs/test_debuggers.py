#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""gdb and gcore on a lent program under chaos: what they read is right, without errors, and the core is no larger than the program."""
import array
import os
import subprocess
import time

import real
import lent

BYTES = 24 << 20
PROGRAM = f"""
import array, ctypes, sys
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = ctypes.c_size_t,
at = libc.malloc({BYTES})
pattern = array.array("Q", range({BYTES} // 8)).tobytes()
ctypes.memmove(at, pattern, {BYTES})
print(at, flush=True)
sys.stdin.read()
print("fine" if ctypes.string_at(at, {BYTES}) == pattern else "wrong")
"""
MARGIN = 64 * real.MIB  # the parts of libraries and of the engine that are dumped though nobody touched them


class Debuggers(real.Case):
    def start(self, *options):
        self.gdb = lent.program("gdb")
        self.instance = self.lent("/usr/bin/python3", "-c", PROGRAM, options=("--area", "96M", *options, *lent.CHAOS),
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={"PYTHONMALLOC": "malloc"})
        self.at = int(self.instance.process.stdout.readline())
        self.pattern = array.array("Q", range(BYTES // 8)).tobytes()

    def end(self):
        out, _ = self.instance.process.communicate("", timeout=lent.TIMEOUT_S)
        self.assertEqual((self.instance.process.returncode, out), (0, "fine\n"))

    def gdb_runs(self, *arguments):
        result = subprocess.run([self.gdb, "-nx", "-batch", *arguments], capture_output=True, text=True, timeout=lent.TIMEOUT_S,
                                check=False, cwd=self.folder, env=self.env, stdin=subprocess.DEVNULL)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertNotIn("Cannot access memory", result.stdout + result.stderr)
        return result

    def assert_dumped(self, name):
        with open(self.path(name), "rb") as file:
            got = file.read()
        self.assertEqual(len(got), BYTES)
        if got != self.pattern:
            wrong = next(i for i in range(0, BYTES, 8) if got[i:i + 8] != self.pattern[i:i + 8])
            self.fail(f"byte {wrong} of {BYTES} is {got[wrong:wrong + 8]}, not {self.pattern[wrong:wrong + 8]}")

    def attach(self, way):
        self.start(*way)
        before = self.instance.stat()["moves"]
        dumps = [word for i in range(20) for word in
                 ("-ex", f"dump binary memory {self.path(f'dump{i}')} {self.at} {self.at + BYTES}")]
        began = time.monotonic()
        self.gdb_runs("-p", str(self.instance.pid), *dumps, "-ex", "thread apply all bt", "-ex", "detach")
        moves = self.instance.stat()["moves"] - before
        print(f"  gdb -p, {' '.join(way)}: 20 times {BYTES / real.MIB:.0f} MiB in {time.monotonic() - began:.1f} s, {moves} moves meanwhile")
        for i in range(20):
            self.assert_dumped(f"dump{i}")
            os.remove(self.path(f"dump{i}"))
        self.assertGreater(moves, 0)
        self.end()

    def test_attach(self):
        for technique in ("precopy", "zap", "writeprotect"):
            for backing in ("memfd", "thp"):
                with self.subTest(technique=technique, backing=backing):
                    self.attach(("--backing", backing, "--technique", technique))

    def test_attach_often(self):
        """The debugger comes while something moves, and goes again."""
        self.start()
        for _ in range(12):
            self.gdb_runs("-p", str(self.instance.pid), "-ex", f"dump binary memory {self.path('dump')} {self.at} {self.at + BYTES}")
            self.assert_dumped("dump")
        self.end()

    def test_gcore(self):
        gcore = lent.program("gcore")
        self.start()
        result = subprocess.run([gcore, "-o", self.path("core"), str(self.instance.pid)], capture_output=True, text=True,
                                timeout=lent.TIMEOUT_S, check=False, env=self.env, stdin=subprocess.DEVNULL)
        self.assertEqual(result.returncode, 0, result.stderr)
        with open(f"/proc/{self.instance.pid}/status", encoding="ascii") as file:
            rss = next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) * 1024
        core = self.path(f"core.{self.instance.pid}")
        size = os.path.getsize(core)
        stat = self.instance.stat()
        heap = stat["lent_bytes"] + stat["plain_bytes"]
        print(f"  gcore: {size / real.MIB:.0f} MiB of a program of {rss / real.MIB:.0f} MiB, {heap / real.MIB:.0f} MiB of them heap")
        self.assertLess(size, min(rss, heap) + MARGIN)
        self.gdb_runs("/usr/bin/python3", core, "-ex", f"dump binary memory {self.path('dump')} {self.at} {self.at + BYTES}")
        self.assert_dumped("dump")
        self.end()


if __name__ == "__main__":
    lent.main()
