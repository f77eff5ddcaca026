#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""clang has nothing to say either: every source of src/ with the build's own flags, warnings as errors."""
import concurrent.futures
import json
import os
import shlex
import shutil
import sys

import tree

# Each is followed by a file that nobody wants written.
DROPPED = ("-o", "-MF", "-MQ")


def arguments(entry):
    """The entry's command for clang, without its outputs."""
    words = iter(shlex.split(entry["command"])[1:])
    kept = ["clang", "-fsyntax-only", "-Werror", "-Wno-unknown-warning-option"]
    for word in words:
        if word in DROPPED:
            next(words)
        elif word != "-MD":
            kept.append(word)
    return kept


def complaint(entry):
    result = tree.run(arguments(entry), cwd=entry["directory"])
    if result.returncode == 0:
        return None
    lines = [line for line in result.stderr.splitlines() if "error:" in line]
    return lines[0] if lines else f"{entry['file']}:1: clang fails"


def main():
    if not shutil.which("clang"):
        sys.exit(77)
    with open(os.path.join(os.environ["SUBLET_BUILD"], "compile_commands.json"), encoding="utf-8") as f:
        entries = {entry["file"]: entry for entry in json.load(f) if "/src/" in entry["file"]}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        found = [text for text in pool.map(complaint, entries.values()) if text]
    tree.finish("clang", sorted(found))


if __name__ == "__main__":
    main()
