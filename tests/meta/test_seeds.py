#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Every seed with which a test once failed, again: tests/seeds.txt, one line "suite test SEED=NUMBER" each. A test that
is no more, or is not built here, is passed over. tools/test_summary.py writes the list."""
import json
import os
import subprocess
import sys

TIMEOUT_S = 120  # at least; a test that may take longer by itself may do so here


def seeds_read(path):
    """(suite, test, variable, value) of each line; empty ones and those that begin with # say nothing."""
    with open(path, encoding="utf-8") as file:
        lines = [line.split() for line in file if line.strip() and not line.startswith("#")]
    return [(suite, test, *assignment.split("=", 1)) for suite, test, assignment in lines]


def tests_of(build):
    done = subprocess.run(["meson", "introspect", "--tests", build], capture_output=True, text=True, check=True)
    return {(suite.split(":")[-1], test["name"]): test for test in json.loads(done.stdout) for suite in test["suite"]}


def replay(test, variable, value):
    """None, or what it printed."""
    env = dict(os.environ, **test["env"], **{variable: value})
    timeout_s = max(TIMEOUT_S, test["timeout"])
    try:
        done = subprocess.run(test["cmd"], env=env, cwd=test["workdir"], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, check=False, timeout=timeout_s)
    except subprocess.TimeoutExpired as expired:
        return f"{expired.stdout}\nstill running after {timeout_s} s"
    return None if done.returncode in (0, 77) else done.stdout


def main():
    seeds, tests = seeds_read(sys.argv[1]), tests_of(os.environ["SUBLET_BUILD"])
    passed, failed = 0, 0
    for suite, name, variable, value in seeds:
        test = tests.get((suite, name))
        if not test:
            print(f"{suite} {name}: no such test here")
            continue
        output = replay(test, variable, value)
        passed += output is None
        if output is not None:
            failed += 1
            print(f"{suite} {name} {variable}={value}: failed again\n{output}")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
