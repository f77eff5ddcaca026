#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Plant each bug of tests/meta/mutants in a copy of the tree, and find out which test notices.

    tools/mutants.py [--folder F] [--patches P] [--only NAME,...] [--sample N [--seed S]] [--suites a,b] [--check|--refresh]

A mutant is a patch of a line or two. Its head says what is wrong with it, which guarantee of docs/architecture.md it
breaks, and which test is known to catch it. The tree is copied and built once; for each mutant what changed is built,
and the suites run in rising order of cost until a test fails. The table at the end has a line a mutant. The exit status
says whether each was caught.

    --sample N   N of them, chosen by a seed that is printed, each by the test that is known to catch it first
    --suites     instead of all that there are (none with --sample: only the tests that are known)
    --check      do not build: does each patch apply, is the test that catches it there, has each guarantee a mutant,
                 does the documentation name each, and does it cite tests for each guarantee
    --refresh    write those anew that do not apply, because the code has moved within src/core; look at what it did
"""
import argparse
import difflib
import filecmp
import glob
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MUTANTS = os.path.join(ROOT, "tests", "meta", "mutants")
# In rising order of what a run of all of it costs.
SUITES = ("unit", "model", "sim", "fault", "linux", "dev")
LEFT_OUT = (".git", "__pycache__")
SETUP = ("-Dcli=false", "-Dbridge=false", "-Dbench=false", "-Dofi=disabled", "-Ducx=disabled", "-Doptimization=1",
         "-Dwarning_level=0")
# Of what a test may take where nothing is wrong: that of one which hangs is waited for. But never less than SLOWER times
# what it took with nothing planted: a busy machine catches no mutant.
TIMEOUTS, TIMEOUTS_OF_SAMPLE, SLOWER = 0.25, 0.15, 4
CONTEXT_LINES = 2
HEAD = re.compile(r"^(What|Guarantee|Caught-by): (.*)$", re.M)
GUARANTEE = re.compile(r"^\| \*\*(G\d+)\*\* \|(.*)$", re.M)
CITED = re.compile(r"\b(tests/\w+(?:/test_\w+)?|test_\w+)")


class Mutant:
    def __init__(self, path):
        self.path = path
        self.name = os.path.splitext(os.path.basename(path))[0]
        with open(path, encoding="utf-8") as file:
            head, _, self.diff = file.read().partition("\n\n")
        fields = dict(HEAD.findall(head))
        self.what, self.guarantee, self.known = fields["What"], fields["Guarantee"], fields["Caught-by"]
        self.file = re.search(r"^\+\+\+ b/(.*)$", self.diff, re.M).group(1)

    def changes(self):
        """For each hunk what it makes of what, with ever fewer of the lines around the change: lists of (old, new)."""
        for hunk in re.split(r"^@@.*@@.*\n", self.diff, flags=re.M)[1:]:
            lines = hunk.splitlines(True)
            at = [i for i, line in enumerate(lines) if line[0] != " "]
            before, after = at[0], len(lines) - 1 - at[-1]
            cuts = sorted(((k, j) for k in range(before + 1) for j in range(after + 1)), key=sum)
            cut = [lines[k:len(lines) - j] for k, j in cuts]
            yield [("".join(line[1:] for line in part if line[0] != "+"),
                    "".join(line[1:] for line in part if line[0] != "-")) for part in cut]

    def change(self, text):
        """The text with the mutant in it, as far as each hunk fits at one place of it; None."""
        for candidates in self.changes():
            fitting = [(old, new) for old, new in candidates if old and text.count(old) == 1]
            if not fitting:
                return None
            text = text.replace(*fitting[0])
        return text

    def learn(self, who):
        self.known = who
        self.put(self.diff)

    def put(self, diff):
        with open(self.path, "w", encoding="utf-8") as opened:
            opened.write(f"What: {self.what}\nGuarantee: {self.guarantee}\nCaught-by: {self.known}\n\n{diff}")

    def write(self, root, file, changed):
        with open(os.path.join(root, file), encoding="utf-8") as opened:
            original = opened.read()
        diff = difflib.unified_diff(original.splitlines(True), changed.splitlines(True), "a/" + file, "b/" + file,
                                    n=CONTEXT_LINES)
        self.put("".join(diff))


def mutants_read(folder, names=None):
    found = [Mutant(path) for path in sorted(glob.glob(os.path.join(folder, "*.patch")))]
    missing = set(names or ()) - {mutant.name for mutant in found}
    if missing:
        sys.exit("no such mutant: " + ", ".join(sorted(missing)))
    return [mutant for mutant in found if not names or mutant.name in names]


def apply(root, mutant, *options):
    """None, or what git says against it."""
    done = subprocess.run(["git", "apply", *options, mutant.path], cwd=root, capture_output=True, text=True,
                          check=False, env=dict(os.environ, GIT_DIR=os.devnull))
    return done.stderr.strip() if done.returncode else None


# ---- without building ----

def citations_check(root, name, row):
    cited = CITED.findall(row)
    if not cited:
        yield f"{name}: docs/architecture.md cites no test"
    for test in cited:
        where = test + "*" if test.startswith("tests/") else os.path.join("tests", "*", test + ".*")
        if not glob.glob(os.path.join(root, where)):
            yield f"{name}: {test}, which docs/architecture.md cites, is not there"


def check(root, mutants):
    """What is wrong with the mutants, as lines."""
    with open(os.path.join(root, "docs", "architecture.md"), encoding="utf-8") as file:
        text = file.read()
    for mutant in mutants:
        error = apply(root, mutant, "--check")
        if error:
            yield f"{mutant.name}: does not apply: {error}"
        if f"`{mutant.name}`" not in text:
            yield f"{mutant.name}: docs/architecture.md does not name it"
    guarantees = {}
    for name, row in GUARANTEE.findall(text):
        guarantees.setdefault(name, row)  # the first table is theirs, the second one the mutants'
    for name, row in guarantees.items():
        yield from citations_check(root, name, row)
    for without in sorted(set(guarantees) - {mutant.guarantee for mutant in mutants}):
        yield f"{without}: no mutant breaks it"
    for mutant in mutants:
        if mutant.guarantee not in guarantees:
            yield f"{mutant.name}: there is no {mutant.guarantee}"
        suite, _, test = mutant.known.partition("/")
        # The simulator's tests are parts of one file.
        file = "test_sim" if suite == "sim" else f"test_{test.replace('-', '_')}"
        if not glob.glob(os.path.join(root, "tests", suite, file + ".*")):
            yield f"{mutant.name}: {mutant.known}, which is known to catch it, is not there"


def refresh(root, mutants):
    """Find what each patch changes wherever it is in src/core, by its lines alone; what cannot be found."""
    texts = {}
    for path in glob.glob(os.path.join(root, "src", "core", "*.[ch]")):
        with open(path, encoding="utf-8") as file:
            texts[os.path.relpath(path, root)] = file.read()
    for mutant in mutants:
        if apply(root, mutant, "--check") is None:
            continue
        changed = {file: mutant.change(text) for file, text in texts.items()}
        files = [file for file, text in changed.items() if text is not None]
        if len(files) != 1:
            yield f"{mutant.name}: its lines are in {len(files)} files; write it again by hand"
        else:
            mutant.write(root, files[0], changed[files[0]])


# ---- the copy ----

def run(args, **more):
    return subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
                          stdin=subprocess.DEVNULL, **more)


def files_of(root, without):
    """Paths under root, relative to it; no build folders, and nothing of the folder `without`."""
    for where, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in LEFT_OUT and os.path.join(where, name) != without and
                      not os.path.exists(os.path.join(where, name, "meson-private"))]
        yield from (os.path.relpath(os.path.join(where, name), root) for name in names)


def sync(root, copy, without):
    """Make `copy` the same as root. Files that are the same already keep their times, by which ninja goes."""
    wanted = set(files_of(root, without))
    for path in set(files_of(copy, None)) - wanted:
        os.remove(os.path.join(copy, path))
    for path in wanted:
        source, target = os.path.join(root, path), os.path.join(copy, path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if not os.path.exists(target) or not filecmp.cmp(source, target, shallow=False):
            shutil.copyfile(source, target)
            shutil.copymode(source, target)


class Copy:
    """A tree of its own, and a build of it."""

    def __init__(self, root, folder):
        self.tree = os.path.join(folder, "tree")
        self.build = os.path.join(folder, "build")
        sync(root, self.tree, folder)
        if not os.path.exists(os.path.join(self.build, "build.ninja")):
            self.must(["meson", "setup", self.build, self.tree, *SETUP])
        self.must(["ninja", "-C", self.build, "build.ninja"])
        self.tests = json.loads(self.must(["meson", "introspect", "--tests", self.build]))
        self.timeouts, self.log = 1, []

    @staticmethod
    def must(args):
        done = run(args)
        if done.returncode:
            sys.exit(" ".join(args) + "\n" + done.stdout[-8000:])
        return done.stdout

    def suite(self, name):
        """The tests of a suite, or the one test "suite/name"."""
        suite, _, one = name.partition("/")
        return [test["name"] for test in self.tests
                if any(word.split(":")[-1] == suite for word in test["suite"]) and one in ("", test["name"])]

    def make(self, names):
        """Build the programs of these tests; None, or the compiler's words."""
        if not names:
            return None
        listed = run(["ninja", "-C", self.build, "-t", "targets", "all"]).stdout
        known = {line.split(":")[0] for line in listed.split("\n")}
        # Meson names what it starts by its whole path, and what it hands to a script by that from the build folder.
        targets = {os.path.relpath(os.path.join(self.build, word), self.build)
                   for test in self.tests if test["name"] in names for word in test["cmd"]}
        done = run(["ninja", "-C", self.build, *sorted(targets & known)])
        return done.stdout[-4000:] if done.returncode else None

    def first_failure(self, name):
        """The first test of a suite that fails, as "suite/test"; None."""
        names = self.suite(name)
        if not names:
            return None
        # the suite with the names: another one may have a test of that name, which was not built
        done = run(["meson", "test", "-C", self.build, "--no-rebuild", "--maxfail", "1", "-t", str(self.timeouts),
                    "--suite", name.partition("/")[0], *names], env=dict(os.environ, MALLOC_PERTURB_="0"))
        with open(os.path.join(self.build, "meson-logs", "testlog.json"), encoding="utf-8") as log:
            self.log = [json.loads(line) for line in log]
        if not done.returncode:
            return None
        for test in self.log:
            if test["result"] in ("FAIL", "ERROR", "TIMEOUT", "UNEXPECTEDPASS"):
                return name.partition("/")[0] + "/" + test["name"].rpartition(" / ")[2]
        sys.exit(done.stdout[-4000:])

    def learn(self, suites, least):
        """With nothing planted: who fails all the same, or None. From now on a test may take `least` of its timeout."""
        limits = {test["suite"][0] + " / " + test["name"]: test["timeout"] for test in self.tests}
        shares = [least]
        for suite in suites:
            who = self.search([suite])
            if who:
                return who
            shares += [SLOWER * test["duration"] / limits[test["name"]] for test in self.log]
        self.timeouts = min(1, max(shares))
        return None

    def search(self, suites):
        """Who notices what is in the tree now, or None; in brackets where it was no test."""
        for suite in suites:
            errors = self.make(self.suite(suite))
            if errors:
                print(errors)
                return "(does not build)"
            who = self.first_failure(suite)
            if who:
                return who
        return None

    def hunt(self, mutant, suites):
        path = os.path.join(self.tree, mutant.file)
        with open(path, encoding="utf-8") as file:
            original = file.read()
        if apply(self.tree, mutant):
            return "(does not apply)"
        try:
            return self.search(suites)
        finally:
            with open(path, "w", encoding="utf-8") as file:
                file.write(original)


# ---- all of it ----

def table_print(rows):
    width = max(len(mutant.name) for mutant, _, _ in rows)
    print(f"{'mutant':{width}}  breaks  {'caught by':28} seconds")
    for mutant, who, seconds in rows:
        print(f"{mutant.name:{width}}  {mutant.guarantee:6}  {who or 'NOBODY':28} {seconds:7.1f}")


def survived(who):
    return not who or who.startswith("(")


def hunt_all(copy, mutants, options):
    """(mutant, who caught it, seconds) of each."""
    rows, known = [], [mutant.known for mutant in mutants] if options.sample else []
    who = copy.learn(dict.fromkeys(known + options.suites), TIMEOUTS_OF_SAMPLE if options.sample else TIMEOUTS)
    if who:
        sys.exit(f"with nothing planted: {who}")
    for mutant in mutants:
        start = time.monotonic()
        who = copy.hunt(mutant, ([mutant.known] if options.sample else []) + options.suites)
        rows.append((mutant, who, time.monotonic() - start))
        print(f"{mutant.name}: {who or 'NOBODY'} ({rows[-1][2]:.1f} s)", flush=True)
        if options.learn and not survived(who):
            mutant.learn(who)
    return rows


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--patches", default=MUTANTS, help="where they are")
    parser.add_argument("--folder", help="where the copy is built, and stays; else it goes away")
    parser.add_argument("--only", type=lambda text: text.split(","), help="these mutants")
    parser.add_argument("--sample", type=int, default=0, help="as many, chosen at random")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1000000)
    parser.add_argument("--suites", type=lambda text: [word for word in text.split(",") if word], default=list(SUITES))
    parser.add_argument("--learn", action="store_true", help="note in each patch who caught it")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--refresh", action="store_true")
    return parser.parse_args()


def main():
    options = arguments()
    mutants = mutants_read(options.patches, options.only)
    if options.check or options.refresh:
        wrong = list((check if options.check else refresh)(ROOT, mutants))
        print("\n".join(wrong + [f"{len(mutants)} mutants, {len(wrong)} complaints"]))
        return 1 if wrong else 0
    if options.sample:
        print(f"SEED={options.seed}")
        mutants = random.Random(options.seed).sample(mutants, min(options.sample, len(mutants)))
    with tempfile.TemporaryDirectory() as temporary:
        folder = os.path.abspath(options.folder or temporary)
        copy = Copy(ROOT, folder)
        rows = hunt_all(copy, mutants, options)
    table_print(rows)
    alive = sum(survived(who) for _, who, _ in rows)
    print(f"{len(rows) - alive} passed, {alive} failed")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
