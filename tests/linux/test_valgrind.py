#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Memcheck on a program that uses the library: nothing is said of one that is right, and one that touches memory
which it has unmapped, decommitted, unlocked or released is told where, and one that decides by what a claim that was not
zeroed happens to hold. Memory does not move there, and a line says so."""

import shutil
import subprocess
import sys

SKIP = 77
PROGRAM = sys.argv[1]


def run(mode):
    done = subprocess.run(["valgrind", "--error-exitcode=9", "--leak-check=full", "--child-silent-after-fork=yes",
                           PROGRAM, mode], capture_output=True, text=True, timeout=120)
    if done.returncode == SKIP:
        print(done.stderr)
        sys.exit(SKIP)
    return done


def fail(mode, what, done):
    own = "".join(line for line in done.stderr.splitlines(True) if not line.startswith(("==", "--")))
    print(f"{mode}: {what}, exit {done.returncode}\n{own}\n{done.stderr[-4000:]}")
    sys.exit(1)


def main():
    if not shutil.which("valgrind"):
        print("no valgrind here")
        sys.exit(SKIP)
    done = run("clean")
    if done.returncode or "ERROR SUMMARY: 0 errors" not in done.stderr:
        fail("clean", "errors in a program that has none", done)
    if done.stderr.count("sublet: memory does not move under valgrind") != 1:
        fail("clean", "not one line that says what does not work", done)
    told = {"stale": "depends on uninitialised value"}
    for mode in ("unmapped", "decommitted", "unlocked", "released", "stale"):
        done = run(mode)
        if told.get(mode, "Invalid read of size 1") not in done.stderr or "memcheck_client.c" not in done.stderr:
            fail(mode, "memcheck does not see it", done)


main()
