#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""memtester in lent memory: the program whose trade it is to find a byte that changed."""
import lent


class Memtester(lent.Case):
    def run_memtester(self, size, *options):
        result, stat = self.run_lent(lent.program("memtester"), size, "1", options=options)
        code, out, err = result
        out = out.replace(b"\b", b"")
        self.assertEqual((code, err[:500]), (0, b""), out[-500:])
        self.assertNotIn(b"FAILURE", out)
        self.assertIn(b"Done.", out)
        self.assert_lent(stat)

    def test_96_of_256(self):
        self.run_memtester("96M", "--area", "256M", *lent.CHAOS)

    def test_40_of_64_every_100us(self):
        self.run_memtester("40M", "--area", "64M", "--chaos", "100us")


if __name__ == "__main__":
    lent.main()
