#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The mutants of tests/meta/mutants: each applies, each guarantee has one, the documentation names each, and some of
them, chosen by a seed that is printed, are caught by the test that is known to catch them. `make mutants` tries all.

    test_mutants.py FOLDER      where the copy of the tree is built"""
import importlib.machinery
import importlib.util
import os
import subprocess
import sys
import tempfile
import unittest

ROOT = os.environ["SUBLET_SOURCE"]
TOOL = os.path.join(ROOT, "tools", "mutants.py")
SAMPLE = "3"
HARMLESS = """What: nothing
Guarantee: G1
Caught-by: unit/zone

--- a/src/core/cache.c
+++ b/src/core/cache.c
@@ -1,2 +1,2 @@
-/* SPDX-License-Identifier: MIT */
+/* SPDX-License-Identifier:  MIT */
 /*
"""


def run(*options):
    return subprocess.run([sys.executable, TOOL, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          check=False, env=dict(os.environ, PYTHONDONTWRITEBYTECODE="1"))


class Mutants(unittest.TestCase):
    def test_1_complete(self):
        done = run("--check")
        self.assertEqual(done.returncode, 0, done.stdout)

    def test_1_unknown_test_is_told(self):
        """Who is known to catch a mutant is there: a sample asks nobody else."""
        with tempfile.TemporaryDirectory() as patches:
            with open(os.path.join(patches, "harmless.patch"), "w", encoding="utf-8") as file:
                file.write(HARMLESS.replace("unit/zone", "unit/gone"))
            done = run("--check", "--patches", patches)
        self.assertEqual(done.returncode, 1)
        self.assertIn("harmless: unit/gone, which is known to catch it, is not there\n", done.stdout)

    def test_1_slow_machine_catches_nothing(self):
        """How long a test may take is known from what it takes with nothing planted, and that may take all its time."""
        loader = importlib.machinery.SourceFileLoader("mutants", TOOL)
        tool = importlib.util.module_from_spec(importlib.util.spec_from_loader("mutants", loader))
        sys.dont_write_bytecode = True
        loader.exec_module(tool)
        for took, least, expected in ((20, 0.15, 0.8), (1, 0.15, 0.15), (1, 0.25, 0.25), (90, 0.15, 1)):
            copy = object.__new__(tool.Copy)
            copy.tests = [{"suite": ["s:unit"], "name": "one", "timeout": 100}]
            copy.log = [{"name": "s:unit / one", "duration": took}]
            copy.timeouts = 1
            asked = []
            copy.search = lambda suites, copy=copy, asked=asked: asked.append((suites, copy.timeouts))
            self.assertIsNone(copy.learn(["unit"], least))
            self.assertEqual(asked, [(["unit"], 1)])
            self.assertAlmostEqual(copy.timeouts, expected)

    def test_2_sample_is_caught(self):
        seed = ("--seed", os.environ["SEED"]) if os.environ.get("SEED") else ()
        done = run("--folder", FOLDER, "--sample", SAMPLE, "--suites=", *seed)
        print(done.stdout)
        self.assertEqual(done.returncode, 0)

    def test_3_survivor_is_told(self):
        """A patch that breaks nothing, and one that does not apply: both count as failures."""
        with tempfile.TemporaryDirectory() as patches:
            for name, text in (("harmless", HARMLESS), ("stale", HARMLESS.replace("-/* SPDX", "-/* was SPDX"))):
                with open(os.path.join(patches, name + ".patch"), "w", encoding="utf-8") as file:
                    file.write(text)
            done = run("--folder", FOLDER, "--patches", patches, "--sample", "2", "--suites=")
        self.assertEqual(done.returncode, 1, done.stdout)
        self.assertRegex(done.stdout, r"(?m)^harmless +G1 +NOBODY ")
        self.assertRegex(done.stdout, r"(?m)^stale +G1 +\(does not apply\)")


if __name__ == "__main__":
    FOLDER = sys.argv.pop()
    unittest.main()
