#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Every C file is as .clang-format leaves it. Versions of clang-format differ: only the one that the tree is written with
is asked, Debian 12's; without it the check is skipped."""
import re
import shutil
import sys

import tree

VERSION = 14


def formatter():
    """The program's name, or None."""
    for name in (f"clang-format-{VERSION}", "clang-format"):
        if shutil.which(name):
            found = re.search(r"version (\d+)", tree.run([name, "--version"]).stdout)
            if found and int(found.group(1)) == VERSION:
                return name
    return None


def check(root, name):
    paths = tree.files(root, tree.CODE_FOLDERS, (".c", ".h"))
    if not paths:
        return []
    said = tree.run([name, "--dry-run", "--style=file"] + paths, cwd=root).stderr
    # one complaint a file: the first
    first = {}
    for path, line in re.findall(r"^(\S+?):(\d+):\d+: warning: code should be clang-formatted", said, re.M):
        first.setdefault(path, line)
    return [f"{path}:{line}: not as .clang-format has it: {name} -i {path}" for path, line in sorted(first.items())]


def main():
    name = formatter()
    if not name:
        sys.exit(77)
    tree.finish("format", check(sys.argv[1], name))


if __name__ == "__main__":
    main()
