#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The kernel's own accesses to lent memory that cannot simply wait for a page: client_kernel_access has a mode for each.

Every technique here, in the shortest form; with ALL_WAYS=1, as `make programs` has it, every pair of memory and technique with each
size of area, and longer.
"""
import os

import lent

CLIENT = os.path.join(lent.BUILD, "tests", "clients", "client_kernel_access")
MODES = ("mutexes", "robust", "conditions", "pi-calls", "wake-op", "tid", "rseq", "mem", "altstack", "heapstack", "io")
EACH_TECHNIQUE = (("memfd", "zap"), ("memfd", "writeprotect"), ("thp", "precopy"))
ALL_WAYS = tuple((backing, technique) for backing in ("memfd", "thp", "hugetlb") for technique in ("precopy", "zap", "writeprotect"))
IS_LONG = os.environ.get("ALL_WAYS") == "1"
# Else libc has the one rseq area that a thread may have.
ENV = {"GLIBC_TUNABLES": "glibc.pthread.rseq=0"}


class KernelAccess(lent.Case):
    def check(self, mode, options):
        """How often memory moved meanwhile, as far as it was seen."""
        seconds = "1" if IS_LONG else "0.25"
        (code, out, err), stat = self.run_lent(CLIENT, mode, seconds, options=(*options, *lent.CHAOS), env=ENV)
        if code == lent.SKIPPED:
            print(f"  {mode}: {out.decode().strip()}")
            return 0
        self.assertEqual((code, out[:6], err), (0, b"PASS: ", b""), (mode, options, out, err))
        self.assertGreater(int(out[6:]), 0, (mode, options))
        return stat["moves"] if stat else 0

    def check_way(self, backing, technique, areas):
        way = ("--backing", backing, "--technique", technique)
        probe = self.sublet("run", "--area", "16M", *way, "--", lent.program("true"))
        if probe.returncode == 125:
            self.assert_explained(probe)
            lent.needs(False, probe.stderr)
        moves = 0
        for number, mode in enumerate(MODES):
            for area in areas if IS_LONG else (areas[number % len(areas)],):
                with self.subTest(mode=mode, backing=backing, technique=technique, area=area):
                    moves += self.check(mode, ("--area", area, *way))
        print(f"  {backing}, {technique}: {moves} moves")
        self.assertGreater(moves, 0)

    def test_without_sublet(self):
        """What is tried is right in ordinary memory."""
        for mode in MODES:
            with self.subTest(mode):
                code, out, err = self.run_plain(CLIENT, mode, "0.1", env=ENV)
                self.assertIn((code, out[:5], err), ((0, b"PASS:", b""), (lent.SKIPPED, b"SKIP:", b"")))

    def test_each_way_to_move(self):
        for backing, technique in ALL_WAYS if IS_LONG else EACH_TECHNIQUE:
            with self.subTest(backing=backing, technique=technique):
                # Huge frames go whole to each of malloc's extents.
                self.check_way(backing, technique, ("32M", "64M") if backing == "hugetlb" else ("4M", "16M", "64M"))


if __name__ == "__main__":
    lent.main()
