#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What is installed is enough: a C and a C++ program build by pkg-config against it alone, and run."""
import glob
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

BUILD = os.environ["SUBLET_BUILD"]
MESON = sys.argv[1]
ADAPTERS = sys.argv[2:]

PROGRAM = r"""
#include <sublet/arena.h>
#include <sublet/claim.h>
#include <sublet/client.h>
#include <sublet/map.h>
#include <sublet/pin.h>
#include <sublet/stats.h>
#include <stdio.h>
#include <string.h>
int main(void)
{
	puts(sublet_version());
	return strcmp(sublet_version(), SUBLET_VERSION) != 0;
}
"""


# Refused before the library that the adapter is for is asked anything.
ADAPTER_PROGRAMS = {
    "ofi": "#include <sublet/ofi.h>\nint main(void) { return sublet_ofi_close(0); }\n",
    "ucx": "#include <sublet/ucx.h>\nint main(void) { sublet_ucx_unwatch(0); return 0; }\n",
}


class Install(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.root = cls.folder.name
        subprocess.run([MESON, "install", "-C", BUILD, "--no-rebuild", "--quiet", "--destdir", cls.root],
                       check=True, stdout=subprocess.DEVNULL)
        cls.config = os.path.dirname(glob.glob(cls.root + "/**/sublet.pc", recursive=True)[0])
        cls.library = os.path.dirname(glob.glob(cls.root + "/**/libsublet.so", recursive=True)[0])

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def flags(self, *which, package="sublet"):
        environment = dict(os.environ, PKG_CONFIG_PATH=self.config, PKG_CONFIG_SYSROOT_DIR=self.root)
        return subprocess.run(["pkg-config", *which, package], check=True, capture_output=True, text=True,
                              env=environment).stdout.split()

    def build_and_run(self, compiler, suffix, text=PROGRAM, package="sublet"):
        if not shutil.which(compiler):
            self.skipTest(f"no {compiler}")
        source = os.path.join(self.root, package + suffix)
        with open(source, "w", encoding="utf-8") as f:
            f.write(text)
        program = source + ".out"
        subprocess.run([compiler, "-Wall", "-Werror", "-o", program, source,
                        *self.flags("--cflags", "--libs", package=package)], check=True)
        return subprocess.run([program], check=True, capture_output=True, text=True,
                              env=dict(os.environ, LD_LIBRARY_PATH=self.library)).stdout.strip()

    def test_c(self):
        self.assertEqual(self.build_and_run("cc", ".c"), self.flags("--modversion")[0])

    def test_cxx(self):
        self.assertEqual(self.build_and_run("c++", ".cc"), self.flags("--modversion")[0])

    def test_adapters(self):
        for name in ADAPTERS:
            with self.subTest(name):
                self.build_and_run("cc", ".c", ADAPTER_PROGRAMS[name], "sublet-" + name)
                self.build_and_run("c++", ".cc", ADAPTER_PROGRAMS[name], "sublet-" + name)

    def test_files(self):
        for name in ["libsublet.so.0", "libsublet-bridge.so"] + [f"libsublet-{name}.so.0" for name in ADAPTERS]:
            self.assertTrue(os.path.exists(os.path.join(self.library, name)), name)
        commands = glob.glob(self.root + "/**/bin/sublet", recursive=True)
        self.assertEqual(len(commands), 1)
        result = subprocess.run([commands[0], "--version"], check=True, capture_output=True, text=True)
        self.assertIn(self.flags("--modversion")[0], result.stdout)


class Make(unittest.TestCase):
    """`make install` goes where MESON_ARGS say, whatever the folder was configured with before."""

    def setUp(self):
        if not shutil.which("make"):
            self.skipTest("no make")
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = folder.name

    def make(self, target, arguments=""):
        # MAKEFLAGS of a make that this test runs under would put its own MESON_ARGS in
        env = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS", "MESON"))}
        result = subprocess.run(["make", "-C", os.environ["SUBLET_SOURCE"], target, f"BUILD={self.root}/build",
                                 f"DESTDIR={self.root}/out", *([f"MESON_ARGS={arguments}"] if arguments else [])],
                                capture_output=True, text=True, env={**env, "DESTDIR": f"{self.root}/out"}, check=False)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        return result.stdout

    def installed(self):
        found = glob.glob(self.root + "/out/**/include/sublet", recursive=True)
        shutil.rmtree(self.root + "/out")
        return [os.path.relpath(path, self.root + "/out") for path in found]

    def test_prefix(self):
        self.make("build", "-Dcli=false -Dbridge=false -Dtests=false -Dbench=false")
        self.make("install", "--prefix=/opt/one")
        self.assertEqual(self.installed(), ["opt/one/include/sublet"])
        self.make("install")
        self.assertEqual(self.installed(), ["opt/one/include/sublet"])
        self.assertNotIn("Build targets", self.make("build", "--prefix=/opt/one"))  # nothing new, nothing done
        self.make("install", "--prefix=/opt/two --bindir=b")
        self.assertEqual(self.installed(), ["opt/two/include/sublet"])


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
