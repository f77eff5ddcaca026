#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Each numbered promise of docs/security.md is cited by a test, and no test cites one that is not there."""
import os
import re
import unittest

SOURCE = os.environ.get("SUBLET_SOURCE", ".")
PROMISE = re.compile(r"^- \*\*S(\d+)\*\* ", re.MULTILINE)
CITED = re.compile(r"\bS(\d+)\b")


def read(*names):
    with open(os.path.join(SOURCE, *names), encoding="utf-8") as file:
        return file.read()


def citations():
    """number -> files; only where a test says which document it means: in its own folder, or by the document's name."""
    found = {}
    for folder, _, names in os.walk(os.path.join(SOURCE, "tests")):
        for name in names:
            path = os.path.relpath(os.path.join(folder, name), SOURCE)
            if not name.endswith((".py", ".c")) or name == os.path.basename(__file__):
                continue
            text = read(path)
            if "tests/security/" in path or "docs/security.md" in text:
                for number in CITED.findall(text):
                    found.setdefault(int(number), []).append(path)
    return found


class Promises(unittest.TestCase):
    def setUp(self):
        self.promised = [int(number) for number in PROMISE.findall(read("docs", "security.md"))]

    def test_they_are_numbered(self):
        self.assertEqual(self.promised, list(range(1, len(self.promised) + 1)))
        self.assertGreater(len(self.promised), 20)

    def test_each_is_held_by_a_test(self):
        cited = citations()
        self.assertEqual([number for number in self.promised if number not in cited], [])

    def test_none_is_cited_that_is_not_there(self):
        cited = citations()
        self.assertEqual({number: cited[number] for number in cited if number not in self.promised}, {})


if __name__ == "__main__":
    unittest.main()
