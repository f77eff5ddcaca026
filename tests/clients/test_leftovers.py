#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""After a SIGKILL nothing is left: no socket that is listed, no mount, no file, no memory (S27 of docs/security.md)."""
import os
import signal
import subprocess

import lent


def mounts():
    with open("/proc/self/mounts", encoding="utf-8") as file:
        return sorted(file.read().splitlines())


def shmem_bytes():
    with open("/proc/meminfo", encoding="ascii") as file:
        return next(int(line.split()[1]) * lent.KIB for line in file if line.startswith("Shmem:"))


class Leftovers(lent.Case):
    def test_after_sigkill(self):
        for backing in ("auto", "memfd", "thp"):
            with self.subTest(backing):
                before, files, memory = mounts(), os.listdir("/dev/shm"), shmem_bytes()
                instance = self.start_filler("--area", "256M", "--backing", backing, *lent.CHAOS,
                                             bytes_count=200 * lent.MIB)
                self.assert_lent(instance.stat(), moved=False)
                self.assertEqual(mounts(), before, "seen by others")
                self.assertEqual([found["pid"] for found in self.instances()], [instance.pid])
                self.assertEqual(instance.end(signal.SIGKILL), -signal.SIGKILL)
                self.assertEqual(self.instances(), [])
                self.assertEqual(os.listdir(self.path("sublet")), [])
                self.assertEqual(mounts(), before)
                self.assertEqual(os.listdir("/dev/shm"), files)
                lent.wait_for(lambda: shmem_bytes() < memory + 100 * lent.MIB, 30)

    def test_with_a_driver_that_outlives_it(self):
        """Who still has the memory keeps it; the instance is gone all the same."""
        instance = self.start_filler("--area", "64M", bytes_count=40 * lent.MIB, name="first")
        driver = self.popen([lent.SUBLET, "claim", "-n", "first", "--hold", "1h", "16M"], stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL)
        lent.wait_for(lambda: instance.stat()["claims_held"] == 1, 30)
        instance.end(signal.SIGKILL)
        self.assertEqual(self.instances(), [])
        second = self.start_filler("--area", "64M", bytes_count=40 * lent.MIB, name="first")
        second.claim("32M", "--dearest")
        self.assert_lent(second.stat())
        self.end_filler(second)
        driver.send_signal(signal.SIGINT)
        self.assertNotEqual(driver.wait(30), 0)

    def test_many_that_are_killed_while_they_start(self):
        for n in range(12):
            process = self.popen([lent.SUBLET, "run", "--area", "64M", *lent.CHAOS, "--", lent.FILLER, str(8 * lent.MIB)],
                                 stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
            lent.wait_for(lambda: process.poll() is not None or not n or os.path.exists(f"/proc/{process.pid}/fd/{n * 60}")
                          or self.instances(), 30, 0.0005)
            process.kill()
            self.assertEqual(process.wait(30), -signal.SIGKILL)
        self.assertEqual(self.instances(), [])
        self.assertEqual([name for name in os.listdir(self.folder) if name != "sublet"], [])


if __name__ == "__main__":
    lent.main()
