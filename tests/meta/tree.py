# SPDX-License-Identifier: MIT
"""What the checks share: which files there are, how complaints are printed."""
import os
import subprocess
import sys

CODE_FOLDERS = ("include", "src", "tests", "bench", "examples")
SKIPPED = {".git", "__pycache__"}


def files(root, folders, suffixes):
    """Paths relative to root of the files under folders that end in one of suffixes, sorted."""
    found = []
    for folder in folders:
        for where, names, entries in os.walk(os.path.join(root, folder)):
            names[:] = [n for n in names if n not in SKIPPED and not n.startswith("build")]
            for entry in entries:
                if entry.endswith(suffixes):
                    found.append(os.path.relpath(os.path.join(where, entry), root))
    return sorted(found)


def read_lines(root, path):
    with open(os.path.join(root, path), encoding="utf-8") as f:
        return f.read().split("\n")


def finish(name, complaints):
    """Print complaints ("file:line: what"), exit 1 if there are any."""
    for complaint in complaints:
        print(complaint)
    print(f"{name}: {len(complaints)} complaints")
    sys.exit(1 if complaints else 0)


def run(arguments, **options):
    return subprocess.run(arguments, capture_output=True, text=True, check=False, **options)
