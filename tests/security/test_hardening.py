#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""How what we install was compiled and linked (S24, S25 of docs/security.md), as readelf and the compile commands tell it.

usage: test_hardening.py FORTIFIED FILE...; FORTIFIED is "yes" where the build optimises and no sanitizer is built in.
"""
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import unittest

BUILD = os.environ.get("SUBLET_BUILD", "build")
FORTIFIED = False
FILES = []
ENDBR = {"x86_64": "endbr64", "aarch64": "bti|paciasp"}


def output(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


class Linked(unittest.TestCase):
    """S24"""

    def each(self):
        for path in FILES:
            with self.subTest(os.path.basename(path)):
                yield path

    def test_position_independent(self):
        for path in self.each():
            self.assertRegex(output("readelf", "-hW", path), r"Type:\s+DYN")
            if not re.search(r"\.so(\.|$)", path):
                self.assertRegex(output("readelf", "-dW", path), r"FLAGS_1.*PIE")

    def test_relocations_are_read_only(self):
        for path in self.each():
            self.assertRegex(output("readelf", "-lW", path), r"GNU_RELRO")
            dynamic = output("readelf", "-dW", path)
            self.assertRegex(dynamic, r"\(FLAGS\).*BIND_NOW")
            self.assertRegex(dynamic, r"\(FLAGS_1\).*NOW")
            self.assertNotIn("TEXTREL", dynamic)

    def test_nothing_is_writable_and_executable(self):
        for path in self.each():
            segments = [line.split() for line in output("readelf", "-lW", path).splitlines()]
            stack = [words for words in segments if words[:1] == ["GNU_STACK"]]
            self.assertEqual([words[6] for words in stack], ["RW"])
            for words in segments:
                if words[:1] == ["LOAD"]:
                    flags = "".join(words[6:-1])
                    self.assertFalse("W" in flags and "E" in flags, words)

    def test_no_path_that_others_could_fill(self):
        """Libraries are looked for beside our own, or where the system has them."""
        for path in self.each():
            found = re.search(r"\((?:RPATH|RUNPATH)\).*\[(.*)\]", output("readelf", "-dW", path))
            for entry in found[1].split(":") if found else ():
                self.assertTrue(entry.startswith("$ORIGIN") or entry.startswith("/"), entry)


class Compiled(unittest.TestCase):
    """S25"""

    def commands(self):
        """The flags of each source that goes into something we install."""
        with open(os.path.join(BUILD, "compile_commands.json"), encoding="utf-8") as file:
            found = [(entry["file"], entry["command"].split()) for entry in json.load(file)
                     if os.path.normpath(entry["file"]).startswith(("../src/", "src/")) and "tests" not in entry["output"]]
        self.assertGreater(len(found), 50)
        return found

    def test_flags(self):
        control_flow = {"x86_64": "-fcf-protection=full", "aarch64": "-mbranch-protection=standard"}.get(platform.machine())
        for path, words in self.commands():
            for flag in ("-fstack-protector-strong", "-fstack-clash-protection", control_flow):
                if flag:
                    self.assertIn(flag, words, path)
            if FORTIFIED:
                self.assertTrue({"-D_FORTIFY_SOURCE=2", "-D_FORTIFY_SOURCE=3"} & set(words), path)

    def test_fortified_calls_are_there(self):
        """The flag alone says little: somewhere a length was checked, and somewhere a stack."""
        symbols = {path: output("readelf", "--dyn-syms", "-W", path) for path in FILES}
        if FORTIFIED:
            self.assertTrue(any("_chk@" in text for text in symbols.values()))
        for path, text in symbols.items():
            if os.path.basename(path).startswith(("sublet", "libsublet.so", "libsublet-bridge")):
                self.assertIn("__stack_chk_fail", text, path)

    def test_functions_begin_with_a_landing_pad(self):
        if not shutil.which("objdump") or platform.machine() not in ENDBR:
            self.skipTest("no objdump, or another machine")
        path = next(path for path in FILES if "libsublet.so" in path)
        text = output("objdump", "-d", "--no-show-raw-insn", path)
        functions = re.findall(r"<(sublet_\w+)>:\n\s*[0-9a-f]+:\s+(\S+)", text)
        self.assertGreater(len(functions), 40)
        for name, first in functions:
            self.assertRegex(first, ENDBR[platform.machine()], name)


if __name__ == "__main__":
    if not shutil.which("readelf"):
        print("no readelf here")
        sys.exit(77)
    FORTIFIED = sys.argv[1] == "yes"
    FILES = sys.argv[2:]
    unittest.main(argv=sys.argv[:1])
