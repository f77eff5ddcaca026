#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""xz with two threads, there and back: the same bytes as without, and the same file again."""
import random

import lent

BYTES = 24 * lent.MIB


class Xz(lent.Case):
    def test_round_trip(self):
        xz = lent.program("xz")
        chance = random.Random(5)
        words = [chance.randbytes(chance.randrange(3, 40)) for _ in range(5000)]
        data = b"".join(chance.choices(words, k=BYTES // 20))
        pack = (xz, "-T2", "-2", "--block-size=12MiB", "-c")
        (code, packed, err), stat = self.assert_same(*pack, input=data)
        self.assertEqual((code, err), (0, b""))
        self.assertLess(len(packed), len(data))
        self.assert_lent(stat)
        (code, unpacked, _), stat = self.assert_same(xz, "-T2", "-d", "-c", input=packed)
        self.assertEqual(code, 0)
        self.assertTrue(unpacked == data, "what came back is not what was packed")
        self.assert_lent(stat)

    def test_damage_is_found(self):
        xz = lent.program("xz")
        _, packed, _ = self.run_plain(xz, "-c", input=bytes(100_000) + b"x")
        packed = packed[:-30] + b"?" + packed[-29:]
        (code, _, err), _ = self.assert_same(xz, "-T2", "-d", "-c", input=packed)
        self.assertEqual(code, 1)
        self.assertIn(b"corrupt", err)


if __name__ == "__main__":
    lent.main()
