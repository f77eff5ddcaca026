#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""`make programs`: the suites of real programs that take too long for `make test`, one after the other, and what became of them.

usage: programs.py [NAME...]. Without names, all of them: test_NAME.py here, and
those of tests/clients that are long, or have a long form.
"""
import glob
import os
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
SKIPPED = 77
CLIENTS = ("gcc", "git", "xz", "kernel_access")


def suites(names):
    found = {os.path.basename(path)[5:-3]: path for path in sorted(glob.glob(os.path.join(HERE, "test_*.py")))}
    for name in CLIENTS:
        found[name] = os.path.join(HERE, os.pardir, "clients", f"test_{name}.py")
    unknown = [name for name in names if name not in found]
    if unknown:
        sys.exit(f"programs: no {', '.join(unknown)}; there are {', '.join(found)}")
    return {name: path for name, path in found.items() if not names or name in names}


def main():
    failed = []
    for name, path in suites(sys.argv[1:]).items():
        print(f"== {name}", flush=True)
        began = time.monotonic()
        code = subprocess.run([sys.executable, path], env={**os.environ, "ALL_WAYS": "1"}, check=False).returncode
        said = "skipped" if code == SKIPPED else "failed" if code else "passed"
        print(f"== {name}: {said}, {time.monotonic() - began:.0f} s", flush=True)
        if code not in (0, SKIPPED):
            failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "all passed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
