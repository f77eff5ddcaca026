#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Style that a machine can judge: lengths, licence lines, left-over markers, bare atomics."""
import re
import sys

import tree

COLUMNS_MAX = 128  # 110 is the aim; the rest is for a line that would break worse
MESSAGE_COLUMNS_MAX = 140  # with a string in it: what a user sees should be found by grep
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 700
TAB = 8

TEXT = (".c", ".h", ".py", ".sh", ".build")
# Put together here so that this file does not complain of itself.
MARKER = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X")) + r")\b")
ATOMIC = re.compile(r"\b(atomic_\w+|__atomic_\w+|__sync_\w+|_Atomic|memory_order_\w+)\b")
SPDX = "SPDX-License-Identifier: MIT"


def check_lines(path, lines):
    is_code = path.endswith((".c", ".h"))
    for number, line in enumerate(lines, 1):
        width = len(line.expandtabs(TAB))
        limit = MESSAGE_COLUMNS_MAX if '"' in line else COLUMNS_MAX
        if is_code and width > limit:
            yield number, f"{width} columns, at most {limit}"
        if line != line.rstrip():
            yield number, "white space at the end of the line"
        if is_code and line.startswith("    "):
            yield number, "indented with spaces"
        if MARKER.search(line):
            yield number, "left-over marker"


def functions(lines):
    """(first line, name, lines) of every function body: a '{' and a '}' in column 0."""
    start = None
    for number, line in enumerate(lines, 1):
        if line == "{":
            start = number
        elif line.startswith("}") and start is not None:
            yield start, number - start - 1
            start = None


def check_file(path, lines):
    yield from check_lines(path, lines)
    if len(lines) > FILE_LINES_MAX:
        yield 1, f"{len(lines)} lines, at most {FILE_LINES_MAX}"
    if not any(SPDX in line for line in lines[:3]):
        yield 1, "no licence line"
    if path.endswith((".c", ".h")):
        for number, length in functions(lines):
            if length > FUNCTION_LINES_MAX:
                yield number, f"function of {length} lines, at most {FUNCTION_LINES_MAX}"
    if path.startswith("src/core/") and path != "src/core/atomic.h":
        for number, line in enumerate(lines, 1):
            if ATOMIC.search(line):
                yield number, "bare atomic: use core/atomic.h"
    if path.startswith("src/") and path.endswith(".c"):
        head = next((line for line in lines[1:] if line.strip()), "")
        if not head.startswith("/*"):
            yield 2, "no essay at the top"


def check(root):
    complaints = []
    paths = tree.files(root, tree.CODE_FOLDERS + ("tools",), TEXT)
    for path in paths + ["meson.build", "meson_options.txt", "Makefile"]:
        for number, what in check_file(path, tree.read_lines(root, path)):
            complaints.append(f"{path}:{number}: {what}")
    return complaints


if __name__ == "__main__":
    tree.finish("style", check(sys.argv[1]))
