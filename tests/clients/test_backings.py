#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A smaller mix on each kind of memory and with each way to move it."""
import os
import sys

import lent
import redis

KEYS = 40_000
WAYS = (("memfd", "precopy"), ("memfd", "zap"), ("memfd", "writeprotect"), ("thp", "precopy"), ("thp", "zap"),
        ("thp", "writeprotect"))
HUGE_PAGES = "/proc/sys/vm/nr_hugepages"
HUGE_NEEDED = 160 + 40 + 40  # an area, a normal zone, and what a memcpy to compare with takes
PYTHON = ("import zlib; d = {i: str(i) * 40 for i in range(100000)}; b = bytearray(range(256)) * 40000\n"
          "for n in range(20): b.reverse(); d.update((i, d[i][::-1]) for i in range(0, 100000, 3))\n"
          "print(zlib.crc32(b), zlib.crc32(''.join(d.values()).encode()))")


class Backings(redis.Case):
    def run_for(self, backing, technique):
        # Huge frames go whole to each of malloc's extents: the same heap takes more of them.
        area = "320M" if backing == "hugetlb" else "160M"
        run = ("--area", area, "--normal", "80M", "--backing", backing, "--technique", technique)
        probe = self.sublet("run", *run, "--", lent.program("bash"), "-c", ":")
        if probe.returncode == 125:
            self.assert_explained(probe)
            lent.needs(False, probe.stderr)
        return run

    def check_filler(self, run, backing, technique):
        instance = self.start_filler(*run, *lent.CHAOS, bytes_count=120 * lent.MIB)
        stat = instance.stat()
        self.assertEqual((stat["backing"], stat["technique"]), (backing, technique))
        out = instance.claim("32M", "--count", "20", "--dearest")
        self.assertEqual(out["summary"]["succeeded"], 20)
        self.assertTrue(all(claim["moved_bytes"] for claim in out["claims"]))
        print(f"  {backing}, {technique}: median {out['summary']['memcpy_ratio_median'] or 0:.2f} x memcpy")
        self.assert_lent(instance.stat())
        self.end_filler(instance)

    def check_redis(self, run, name):
        """A snapshot while writes go on, and everything once more after it."""
        instance, client = self.server(name, run=(*run, *lent.CHAOS))
        client.fill(KEYS)
        writer = redis.Writer(self.path(name, "socket"), KEYS)
        writer.start()
        for _ in range(2):
            client("BGSAVE")
            lent.wait_for(lambda: client.info("persistence")["rdb_bgsave_in_progress"] == "0", pause=0.02)
            self.assertEqual(client.info("persistence")["rdb_last_bgsave_status"], "ok")
        self.assert_released(instance)
        writes = writer.stop()
        self.assertEqual(self.assert_state(client, KEYS, writes), writes)
        self.assertEqual(instance.end(), 0)
        _, fresh = self.server(name)
        self.assert_state(fresh, KEYS, writes)

    def check_python(self, run):
        (code, _, err), stat = self.assert_same(sys.executable, "-c", PYTHON, options=(*run, *lent.CHAOS),
                                                env={"PYTHONMALLOC": "malloc"})
        self.assertEqual((code, err), (0, b""))
        self.assert_lent(stat)

    def check(self, backing, technique):
        run = self.run_for(backing, technique)
        self.check_filler(run, backing, technique)
        self.check_redis(run, f"{backing}-{technique}")
        self.check_python(run)

    def test_shared_memory(self):
        for backing, technique in WAYS:
            with self.subTest(backing=backing, technique=technique):
                self.check(backing, technique)

    def reserve_huge_pages(self):
        """As many as are needed, and the number that was there before afterwards."""
        lent.needs(os.geteuid() == 0 and os.path.exists(HUGE_PAGES), "needs root to reserve huge pages")

        def number(name):
            with open(f"/sys/kernel/mm/hugepages/hugepages-2048kB/{name}", encoding="ascii") as file:
                return int(file.read())

        def reserve(count):
            with open(HUGE_PAGES, "w", encoding="ascii") as file:
                file.write(str(count))
        try:
            before, free = number("nr_hugepages"), number("free_hugepages")
            if free < HUGE_NEEDED:
                self.addCleanup(reserve, before)
                reserve(before + HUGE_NEEDED - free)
        except OSError as error:
            lent.needs(False, f"no huge pages of 2 MiB: {error}")
        lent.needs(number("free_hugepages") >= HUGE_NEEDED, "there are not enough huge pages")

    def test_hugetlb(self):
        self.reserve_huge_pages()
        for technique in ("precopy", "zap", "writeprotect"):
            run = self.run_for("hugetlb", technique)
            self.check_filler(run, "hugetlb", technique)
            self.check_python(run)
        # A child of fork() has copies of huge pages, from a pool that may be too small for them.
        instance = self.start_filler(*self.run_for("hugetlb", "auto"), bytes_count=100 * lent.MIB)
        instance.claim("32M", "--count", "10", "--dearest")
        self.end_filler(instance)


if __name__ == "__main__":
    lent.main()
