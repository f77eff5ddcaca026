#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Test suites of others, run by lent programs: CPython's modules, and pi_stress of rt-tests."""
import os
import re
import time

import real
import lent

PYTHON = "/usr/bin/python3"
MODULES = ("test_posix test_selectors", "test_os", "test_fork1 test_wait3 test_wait4", "test_mmap", "test_threading", "test_queue",
           "test_zlib", "test_bytes", "test_subprocess", "test_ctypes", "test_faulthandler")


def outcome(result):
    """Which of its tests passed; not how long they took, and not the messages."""
    text = (result[1] + result[2]).decode(errors="replace")
    return result[0], sorted(set(re.findall(r"^(?:FAIL|ERROR): .*", text, re.M)))


class Suites(real.Case):
    def test_cpython(self):
        probe = self.run_plain(PYTHON, "-c", "import test.test_posix")
        lent.needs(probe[0] == 0, "CPython's tests are not here")
        for modules in MODULES:
            with self.subTest(modules):
                command = (PYTHON, "-m", "test", "--timeout", "100", *modules.split())
                began = time.monotonic()
                plain = self.run_plain(*command, cwd=self.folder)
                between = time.monotonic()
                result, stat = self.run_lent(*command, cwd=self.folder, env={"PYTHONMALLOC": "malloc"},
                                             options=("--area", "256M", *lent.CHAOS))
                self.say_times(f"CPython's {modules}", between - began, time.monotonic() - between, stat)
                self.assertEqual(outcome(result), outcome(plain),
                                 (result[1][-4000:], result[2][-2000:]))

    def test_pi_stress(self):
        command = (lent.program("pi_stress"), "--duration", "10", "--groups", str(min(4, os.cpu_count())), "--quiet")
        lent.needs(os.geteuid() == 0, "needs root for its scheduling classes")
        plain = self.run_plain(*command)
        lent.needs(plain[0] == 0, plain[2].decode())
        for technique in ("precopy", "zap", "writeprotect"):
            with self.subTest(technique):
                (code, out, err), stat = self.run_lent(*command, options=("--area", "8M", "--technique", technique, *lent.CHAOS))
                self.assertEqual(code, 0, (out, err))
                total = int(re.search(rb"Total inversion performed: (\d+)", out).group(1))
                print(f"  pi_stress, {technique}: {total} inversions, {stat['moves']} moves; without sublet",
                      re.search(rb"Total inversion performed: (\d+)", plain[1]).group(1).decode())
                self.assertGreater(total, 0)


if __name__ == "__main__":
    lent.main()
