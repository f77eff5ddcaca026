#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""C++ threads that wait for each other by libstdc++'s raw futexes, while their memory moves: everybody is woken."""
import os

import lent

SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "futures.cc")
KINDS = b"future\nlatch\nsemaphore\nbarrier\natomic\npackaged task\n"


class Cxx(lent.Case):
    def setUp(self):
        super().setUp()
        compiler = lent.program("g++")
        result = self.run_plain(compiler, "-std=c++20", "-O1", "-pthread", SOURCE, "-o", self.path("futures"))
        lent.needs(result[0] == 0, "this g++ does not know C++20")

    def test_under_chaos(self):
        result, stat = self.run_lent(self.path("futures"), "10")
        self.assertEqual(result, (0, KINDS, b""))
        self.assert_lent(stat)

    def test_without_precopy(self):
        result, _ = self.run_lent(self.path("futures"), "3", options=("--technique", "zap", *lent.CHAOS))
        self.assertEqual(result, (0, KINDS, b""))

    def test_claims_meanwhile(self):
        """All of the heap is moved, again and again, while somebody waits."""
        instance = self.lent(self.path("futures"), "20", options=("--area", "64M"))
        while instance.process.poll() is None:
            self.sublet("claim", "-n", str(instance.pid), "--dearest", "--count", "3", "32M")
        self.assertEqual(instance.process.wait(lent.TIMEOUT_S), 0)


if __name__ == "__main__":
    lent.main()
