#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What the headers declare, what the version script lists and what the library exports are one set.

Arguments: the source folder, then the libraries that were built: libsublet, and adapters by their name. Each adapter
has one header of its own, include/sublet/NAME.h, and one version script, src/adapters/NAME.map.
"""
import os
import re
import sys

import tree

MAIN = "src/sublet.map"
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


def script_of(root, header):
    """The version script that lists what a public header declares."""
    own = f"src/adapters/{os.path.basename(header)[:-2]}.map"
    return own if os.path.exists(os.path.join(root, own)) else MAIN


def script_for(library):
    """The version script that a library was linked with: libsublet-NAME.so.1 is an adapter."""
    name = re.match(r"libsublet(?:-(\w+))?\.so", os.path.basename(library))
    return f"src/adapters/{name.group(1)}.map" if name.group(1) else MAIN


def check_script(script, headers, listed):
    for name in sorted(set(headers) - listed):
        yield f"{headers[name]}: {name} is not in {script}"
    for name in sorted(listed - set(headers)):
        yield f"{script}:1: {name} is in no public header of its own"


def check_library(script, library, listed):
    symbols = exported(library)
    for name in sorted(listed - set(symbols)):
        yield f"{script}:1: {name} is not in the library"
    for name in sorted(set(symbols) - listed):
        yield f"{library}:1: {name} is exported, but not listed"
    for name, version in sorted(symbols.items()):
        if not version.startswith("SUBLET_"):
            yield f"{library}:1: {name} has no version"


def check(root, libraries):
    headers, complaints = declared(root)
    scripts = {MAIN} | set(tree.files(root, ("src/adapters",), (".map",)))
    listed = {script: set(LISTED.findall("\n".join(tree.read_lines(root, script)))) for script in scripts}
    for script in sorted(scripts):
        own = {name: where for name, where in headers.items() if script_of(root, where.split(":")[0]) == script}
        complaints += check_script(script, own, listed[script])
    for library in libraries:
        script = script_for(library)
        complaints += check_library(script, library, listed[script])
    return complaints


if __name__ == "__main__":
    tree.finish("symbols", check(sys.argv[1], sys.argv[2:]))
