#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The tests of all layers below the command once more, under sanitizers: address and undefined behaviour, and threads.
Each has a build folder of its own inside the one given. There are no suppressions.

What the thread sanitizer is not asked, and why:
  linux, fault        it stands in front of clone(2) and stops at one that shares its memory with the caller, as the search
                      for sharers after a fork() does (src/linux/sharers.c), and at threads after a fork()
  dev-uring-faults    the same
  peers               one of its programs closes all descriptors under the server, which is the test, and a race by definition
Nor can it see through a remap: two addresses of one frame, the program's and the linear map's, are two memories to it, and
what the kernel does between block and wake orders nothing for it. So it never reports what goes wrong between a program's
stores and a copy, on any suite. The unit tests cover that, on a platform where frames are one memory and blocked pages
really wait, and the simulator, which chooses the interleavings itself.

What neither is asked: bridge, cli, clients and demo. A program with a sanitizer keeps its own heap (docs/hazards.md), so
there would be nothing to look at; what parses input there is fuzzed with the same checks (tests/fuzz).
"""

import os
import re
import subprocess
import sys

SOURCE, BUILD = sys.argv[1:3]

KINDS = {
    # clang's thread sanitizer knows more of atomics than gcc's
    "thread": ("clang", "thread", ["unit", "control", "dev"]),
    "address": ("gcc", "address,undefined", ["unit", "linux", "control", "dev", "fault"]),
}
# Of a suite, these alone.
ONLY = {("thread", "control"): ["control", "lists"],
        ("thread", "dev"): ["dev-soft", "dev-stress"],
        ("address", "dev"): ["dev-soft", "dev-uring", "dev-uring-faults"]}


def run(args, **more):
    done = subprocess.run(args, capture_output=True, text=True, **more)
    if done.returncode != 0:
        print(" ".join(args))
        print(done.stdout[-6000:], done.stderr[-6000:])
        sys.exit(1)
    return done.stdout


def check(kind):
    compiler, sanitizer, suites = KINDS[kind]
    folder = os.path.join(BUILD, "sanitize-" + kind)
    if not os.path.exists(os.path.join(folder, "build.ninja")):
        run(["meson", "setup", folder, SOURCE, "-Dcli=false", "-Dbridge=false", "-Dbench=false",
             "-Db_lundef=false", "-Doptimization=1", "-Db_sanitize=" + sanitizer], env=dict(os.environ, CC=compiler))
    run(["ninja", "-C", folder, "build.ninja"])  # a folder of before a test was added does not list it
    targets = run(["ninja", "-C", folder, "-t", "targets", "all"])
    names = re.findall(r"^(tests/(?:%s)/test_\w+):" % "|".join(suites), targets, re.M)
    run(["ninja", "-C", folder] + names)
    # halt_on_error: a report is a failure, not a line that nobody reads
    env = dict(os.environ, UBSAN_OPTIONS="halt_on_error=1:print_stacktrace=1", TSAN_OPTIONS="halt_on_error=1")
    env.pop("MALLOC_PERTURB_", None)
    passed = 0
    for suite in suites:
        # the suite with the names: another suite may have a test of that name, which was not built
        out = run(["meson", "test", "-C", folder, "--no-rebuild", "--print-errorlogs", "--timeout-multiplier", "4",
                   "--suite", suite] + ONLY.get((kind, suite), []), env=env)
        passed += int(re.search(r"Ok:\s+(\d+)", out).group(1))
    print(kind)
    print(passed, "passed, 0 failed")


for which in sys.argv[3:] or KINDS:
    check(which)
