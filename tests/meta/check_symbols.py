#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What the headers declare, what the version script lists and what the library exports are one set."""
import re
import sys

import tree

DECLARED = re.compile(r"^SUBLET_API\b[^;{]*?\b(sublet_\w+)\s*\(", re.M)
LISTED = re.compile(r"^\s*(sublet_\w+);", re.M)


def declared(root):
    """Symbol -> "file:line" of its declaration, and complaints about those without a comment."""
    where, complaints = {}, []
    for path in tree.files(root, ("include",), (".h",)):
        lines = tree.read_lines(root, path)
        text = "\n".join(lines)
        for match in DECLARED.finditer(text):
            number = text.count("\n", 0, match.start()) + 1
            where[match.group(1)] = f"{path}:{number}"
            if number < 2 or not lines[number - 2].rstrip().endswith("*/"):
                complaints.append(f"{path}:{number}: {match.group(1)} has no comment")
    return where, complaints


def exported(library):
    result = tree.run(["nm", "-D", "--defined-only", library])
    if result.returncode:
        sys.exit(f"nm: {result.stderr.strip()}")
    symbols = {}
    for line in result.stdout.splitlines():
        _, kind, name = line.split()
        if kind != "A":  # the version node itself
            base, _, version = name.partition("@@")
            symbols[base] = version
    return symbols


def check(root, library):
    headers, complaints = declared(root)
    listed = set(LISTED.findall("\n".join(tree.read_lines(root, "src/sublet.map"))))
    library_symbols = exported(library)
    for name in sorted(set(headers) - listed):
        complaints.append(f"{headers[name]}: {name} is not in src/sublet.map")
    for name in sorted(listed - set(headers)):
        complaints.append(f"src/sublet.map:1: {name} is in no public header")
    for name in sorted(listed - set(library_symbols)):
        complaints.append(f"src/sublet.map:1: {name} is not in the library")
    for name in sorted(set(library_symbols) - listed):
        complaints.append(f"{library}:1: {name} is exported, but not listed")
    for name, version in sorted(library_symbols.items()):
        if not version.startswith("SUBLET_"):
            complaints.append(f"{library}:1: {name} has no version")
    return complaints


if __name__ == "__main__":
    tree.finish("symbols", check(sys.argv[1], sys.argv[2]))
