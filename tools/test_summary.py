#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What a run of meson's tests came to, from its testlog.json:

    test_summary.py BUILD/meson-logs/testlog.json [SEEDS]

The whole log of each failing test; one line a part (a part is a suite of the build files) with how many tests passed,
how many of their own these ran, and their seconds, after a line with the fresh seeds; at the end "N passed, N failed" and, where
there are any, ", N skipped".

A failing test that printed SEED=NUMBER (or SUBLET_SEED=NUMBER) leaves a line "suite test SEED=NUMBER" in the file
SEEDS. The test tests/meta/test_seeds.py runs those again, for ever; the file is part of the tree."""
import json
import re
import sys

PASSED = {"OK", "EXPECTEDFAIL"}
SKIPPED = {"SKIP", "IGNORED"}
# What a test that runs others ends with.
INSIDE = re.compile(r"^(\d+) passed, 0 failed$", re.M)
SEED = re.compile(r"\b((?:SUBLET_)?SEED=(?:0x[0-9a-fA-F]+|\d+))\b")
FRESH = re.compile(r"^fresh.*?" + SEED.pattern, re.M)
SEEDS_OF_TEST_MAX = 8


class Part:
    """The tests of one suite."""

    def __init__(self):
        self.passed = self.failed = self.skipped = self.inside = 0
        self.seconds = 0.0

    def add(self, test):
        result = test["result"]
        self.passed += result in PASSED
        self.skipped += result in SKIPPED
        self.failed += result not in PASSED | SKIPPED
        self.seconds += test["duration"]
        for count in INSIDE.findall(test.get("stdout") or "")[-1:]:
            self.inside += int(count)

    def line(self, name):
        counts = f"{self.passed} passed, {self.failed} failed"
        if self.skipped:
            counts += f", {self.skipped} skipped"
        if self.inside:
            counts += f" ({self.inside} inside)"
        return f"{name:12} {counts:44} {self.seconds:7.1f} s"


def name_of(test):
    """(suite, name): meson calls a test "project:suite / name", or by its name alone."""
    suites, _, name = test["name"].rpartition(" / ")
    return suites.split(":")[-1].split("+")[0] or "others", name


def read(path):
    with open(path, encoding="utf-8") as log:
        return [json.loads(line) for line in log]


def log_print(test):
    suite, name = name_of(test)
    print(f"==== {suite} / {name}: {test['result']}, exit status {test.get('returncode')}")
    print(" ".join(test.get("command", [])))
    for stream in ("stdout", "stderr"):
        if test.get(stream):
            print(f"---- {stream}")
            print(test[stream].rstrip("\n"))
    print(f"==== end of {suite} / {name}")


def seeds_of(test):
    found = SEED.findall((test.get("stdout") or "") + "\n" + (test.get("stderr") or ""))
    return list(dict.fromkeys(found))[-SEEDS_OF_TEST_MAX:]


def fresh_of(tests):
    """"suite test SEED=NUMBER" of what says that its seed is a fresh one, passed or failed."""
    found = ((name_of(test), FRESH.search(test.get("stdout") or "")) for test in tests)
    return [f"{suite} {name} {seed.group(1)}" for (suite, name), seed in found if seed]


def seeds_add(path, failed):
    """Append what is not there yet; the lines that are new."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        text = ""
    known, new = set(text.splitlines()), []
    for test in failed:
        suite, name = name_of(test)
        new += [line for line in (f"{suite} {name} {seed}" for seed in seeds_of(test)) if line not in known]
    if new:
        with open(path, "a", encoding="utf-8") as file:
            file.write("".join(line + "\n" for line in new))
    return new


def main():
    try:
        tests = read(sys.argv[1])
    except OSError as error:
        print(f"sublet: no test log: {error}", file=sys.stderr)
        return 1
    parts, total = {}, Part()
    for test in tests:
        for part in (parts.setdefault(name_of(test)[0], Part()), total):
            part.add(test)
    failed = [test for test in tests if test["result"] not in PASSED | SKIPPED]
    for test in failed:
        log_print(test)
    # A replay that fails prints its seed, which is in the list already.
    for line in seeds_add(sys.argv[2], failed) if len(sys.argv) > 2 else []:
        print(f"sublet: to be replayed from now on (commit {sys.argv[2]}): {line}")
    fresh = fresh_of(tests)
    if fresh:
        print("fresh seeds: " + ", ".join(fresh))
    for name, part in parts.items():
        print(part.line(name))
    line = f"{total.passed} passed, {total.failed} failed"
    if total.skipped:
        line += f", {total.skipped} skipped"
    print(line)
    return 1 if total.failed or not total.passed else 0


if __name__ == "__main__":
    sys.exit(main())
