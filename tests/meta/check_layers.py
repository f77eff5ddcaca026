#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""An include points only downwards.

include/sublet is the bottom; src/core stands on it, src/linux and src/sim on core, and so on up to
the command; src/adapters on include/sublet alone. The engine (src/core) takes nothing from libc but types, atomics, errno and string.h,
and public headers take nothing but what a program would have anyway.
"""
import os
import re
import sys

import tree

RANK = {"sublet": 0, "core": 1, "linux": 2, "sim": 2, "dev": 3, "control": 4, "bridge": 5, "cli": 6, "adapters": 7}

# linux and sim are two answers to one question, and know nothing of each other.
NEVER = {("linux", "sim"), ("sim", "linux")}

# Adapters are programs of ours that use the library, as others do: nobody stands on them, they on nothing hidden.
NEVER |= {("adapters", layer) for layer in RANK if layer not in ("sublet", "adapters")}

TYPES = {"stdint.h", "stddef.h", "stdbool.h"}
SYSTEM_ALLOWED = {
    "core": TYPES | {"stdatomic.h", "errno.h", "string.h"},
    "sublet": TYPES | {"sys/types.h"},
}

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')


def layer_of(path):
    """The layer that a file of the tree is in, None for tests and the like."""
    parts = path.split("/")
    if parts[:2] == ["include", "sublet"]:
        return "sublet"
    if parts[0] == "src" and len(parts) > 2:
        return parts[1]
    return None


def layer_of_include(root, path, quote, name):
    """The layer that an include leads to, None where it leaves the project."""
    if name.startswith("sublet/"):
        return "sublet"
    first = name.split("/")[0]
    if "/" in name and first in RANK and os.path.exists(os.path.join(root, "src", name)):
        return first
    if quote == '"':
        near = os.path.normpath(os.path.join(os.path.dirname(path), name))
        if os.path.exists(os.path.join(root, near)):
            return layer_of(near)
    return None


def check_line(root, path, layer, line):
    match = INCLUDE.match(line)
    if not match:
        return None
    quote, name = match.groups()
    target = layer_of_include(root, path, quote, name)
    if target is None:
        allowed = SYSTEM_ALLOWED.get(layer)
        if quote == '"':
            return f'"{name}" is not in the tree under src/ or beside the file'
        if allowed is not None and name not in allowed:
            return f"{layer} may not include <{name}>"
        return None
    if RANK[target] > RANK[layer]:
        return f"{layer} may not include {name}: {target} is above it"
    if (layer, target) in NEVER:
        return f"{layer} may not include {name}: {target} is not for it"
    return None


def check(root):
    complaints = []
    for path in tree.files(root, ("include", "src"), (".c", ".h")):
        layer = layer_of(path)
        if layer not in RANK:
            complaints.append(f"{path}:1: not in a layer that check_layers.py knows")
            continue
        for number, line in enumerate(tree.read_lines(root, path), 1):
            complaint = check_line(root, path, layer, line)
            if complaint:
                complaints.append(f"{path}:{number}: {complaint}")
    return complaints


if __name__ == "__main__":
    tree.finish("layers", check(sys.argv[1]))
