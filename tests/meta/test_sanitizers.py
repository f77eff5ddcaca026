#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The tests of the engine and of the platform once more, under sanitizers: address and undefined
behaviour, and threads. Each has a build folder of its own inside the one given."""

import os
import re
import subprocess
import sys

SOURCE, BUILD = sys.argv[1:3]

KINDS = {
    # clang's thread sanitizer knows more of atomics than gcc's
    "thread": ("clang", "thread", ["unit"]),
    "address": ("gcc", "address,undefined", ["unit", "linux"]),
}


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
    out = run(["meson", "test", "-C", folder, "--no-rebuild", "--print-errorlogs", "--timeout-multiplier", "4"] +
              [word for suite in suites for word in ("--suite", suite)], env=env)
    print(kind)
    print(re.search(r"Ok:\s+(\d+)", out).group(1), "passed, 0 failed")


for which in sys.argv[3:] or KINDS:
    check(which)
