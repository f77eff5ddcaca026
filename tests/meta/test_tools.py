#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""tools/test.sh and the list of seeds: a project of one test that fails by its seed is run, its seed is listed, and
the list is replayed."""
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = os.environ["SUBLET_SOURCE"]
BUILD_FILE = """project('toy', 'c', meson_version: '>= 1.0')
foreach name : ['dice', 'wall', 'quiet']
  test(name, find_program('python3'), args: [files('toy.py'), name], suite: name == 'quiet' ? 'other' : 'toy')
endforeach
"""
# dice fails by seed 13 alone, wall always and without a seed, quiet never; it runs three of its own.
TOY = """import os, sys, time
if sys.argv[1] == 'wall' and os.path.exists('WALL'):
    print('a wall')
    sys.exit(1)
if sys.argv[1] == 'quiet':
    print('3 passed, 0 failed')
seed = int(os.environ.get('SEED', os.environ.get('DICE', '1')))
if sys.argv[1] == 'dice':
    print('first line')
    print('x' * 200 + '\\\\n' * 300)
    print('fresh roll: SEED=%d' % seed)
    time.sleep(float(os.environ.get('ROLL_S', '0')))
    sys.exit(seed == 13)
"""


def test_seeds_text():
    with open(os.path.join(ROOT, "tests", "meta", "test_seeds.py"), encoding="utf-8") as file:
        return file.read()


class Tools(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = folder.name
        os.mkdir(self.path("tests"))
        os.mkdir(self.path("tools"))
        for name in ("test.sh", "test_summary.py"):
            shutil.copy(os.path.join(ROOT, "tools", name), self.path("tools"))
        self.put("meson.build", BUILD_FILE)
        self.put("toy.py", TOY.replace("WALL", os.path.join(self.root, "wall")))
        subprocess.run(["meson", "setup", self.path("build"), self.root], check=True, stdout=subprocess.DEVNULL)

    def path(self, name):
        return os.path.join(self.root, name)

    def put(self, name, text):
        os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
        with open(self.path(name), "w", encoding="utf-8") as file:
            file.write(text)

    def seeds(self):
        try:
            with open(self.path("tests/seeds.txt"), encoding="utf-8") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def run_tests(self, **env):
        return subprocess.run([self.path("tools/test.sh"), self.path("build")], env=dict(os.environ, **env), text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)

    def replay(self):
        return subprocess.run([sys.executable, os.path.join(ROOT, "tests", "meta", "test_seeds.py"),
                               self.path("tests/seeds.txt")], env=dict(os.environ, SUBLET_BUILD=self.path("build")),
                              text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)

    def test_all_is_well(self):
        done = self.run_tests()
        self.assertEqual(done.returncode, 0, done.stdout)
        lines = done.stdout.splitlines()
        self.assertEqual(lines[-1], "3 passed, 0 failed")
        self.assertIn("fresh seeds: toy dice SEED=1", lines)  # also of what passed
        self.assertRegex(done.stdout, r"(?m)^toy +2 passed, 0 failed +\d+\.\d s$")
        self.assertRegex(done.stdout, r"(?m)^other +1 passed, 0 failed \(3 inside\) +\d+\.\d s$")
        self.assertEqual(self.seeds(), "")

    def test_failing_seed_is_kept_and_replayed(self):
        done = self.run_tests(DICE="13")
        self.assertNotEqual(done.returncode, 0)
        self.assertEqual(done.stdout.splitlines()[-1], "2 passed, 1 failed")
        self.assertIn("first line\n", done.stdout)  # the log in full, above the parts
        self.assertLess(done.stdout.index("first line"), re.search(r"(?m)^toy +1 passed, 1 failed", done.stdout).start())
        self.assertEqual(self.seeds(), "toy dice SEED=13\n")
        self.run_tests(DICE="13")
        self.assertEqual(self.seeds(), "toy dice SEED=13\n")  # once is enough
        again = self.replay()
        self.assertEqual(again.returncode, 1, again.stdout)
        self.assertIn("toy dice SEED=13: failed again", again.stdout)
        self.put("toy.py", "")  # mended
        self.assertEqual(self.replay().returncode, 0)

    def test_a_replay_may_take_as_long_as_its_test(self):
        self.put("tests/seeds.txt", "toy dice SEED=12\n")
        script = test_seeds_text().replace("TIMEOUT_S = 120", "TIMEOUT_S = 1")
        self.put("tests/test_seeds.py", script)
        done = subprocess.run([sys.executable, self.path("tests/test_seeds.py"), self.path("tests/seeds.txt")],
                              env=dict(os.environ, SUBLET_BUILD=self.path("build"), ROLL_S="2"), text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        self.assertEqual(done.returncode, 0, done.stdout)

    def test_failure_without_a_seed(self):
        self.put("wall", "")
        done = self.run_tests()
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("a wall", done.stdout)
        self.assertEqual(self.seeds(), "")

    def test_a_test_that_is_no_more(self):
        self.put("tests/seeds.txt", "# a comment\n\ntoy gone SEED=1\n")
        done = self.replay()
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertIn("toy gone: no such test here", done.stdout)


if __name__ == "__main__":
    unittest.main()
