#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Python in lent memory: dictionaries, strings and buffers that are built, sorted, hashed and thrown away."""
import os
import sys

import lent

SCRIPT = """
import hashlib, json, random, sys, zlib
random.seed(7)
total = hashlib.sha256()
kept = {}
for step in range(12):
    words = {f"{random.getrandbits(40):x}": [i, str(i) * (i % 9)] for i in range(12000)}
    kept[step % 4] = words
    text = json.dumps(words, sort_keys=True).encode()
    assert json.loads(text) == words
    assert zlib.decompress(zlib.compress(text, 1)) == text
    total.update(text)
    buffer = bytearray(random.randbytes(1 << 16)) * 64
    before = zlib.crc32(buffer)
    buffer.reverse()
    buffer.reverse()
    assert zlib.crc32(buffer) == before
    kept[f"buffer {step}"] = (bytes(buffer), before)
for name, (data, crc) in ((n, d) for n, d in kept.items() if isinstance(n, str)):
    assert zlib.crc32(data) == crc, name
print(total.hexdigest(), len(kept))
print("to stderr", file=sys.stderr)
sys.exit(3)
"""


class Python(lent.Case):
    def check(self, python, **env):
        (code, out, err), stat = self.assert_same(python, "-c", SCRIPT, env=env)
        self.assertEqual((code, err), (3, b"to stderr\n"))
        self.assertEqual(len(out.split()), 2)
        self.assert_lent(stat)

    def test_found_in_the_path(self):
        self.check("python3")

    def test_this_one_with_malloc(self):
        self.check(sys.executable, PYTHONMALLOC="malloc")

    def test_the_system_s_with_malloc(self):
        lent.needs(os.path.exists("/usr/bin/python3"), "no /usr/bin/python3")
        self.check("/usr/bin/python3", PYTHONMALLOC="malloc")


if __name__ == "__main__":
    lent.main()
