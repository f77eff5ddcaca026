#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Each public header compiles alone, in C11 and C++17, with every compiler that is here; a hidden one in C."""
import os
import shutil
import sys

import tree

WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only"]
C = ["-x", "c", "-std=c11", "-Wstrict-prototypes"]
GNU_C = ["-x", "c", "-std=gnu11", "-D_GNU_SOURCE", "-Wno-unused-function"]
CXX = ["-x", "c++", "-std=c++17"]


def compilers(*names):
    return [name for name in names if shutil.which(name)]


def compile_alone(root, path, compiler, language):
    include = os.path.relpath(path, "include" if path.startswith("include/") else "src")
    source = f"#include <{include}>\n#include <{include}>\n"
    roots = ["-I", os.path.join(root, "include"), "-I", os.path.join(root, "src")]
    result = tree.run([compiler, *language, *WARNINGS, *roots, "-"], input=source)
    if result.returncode:
        first = next((line for line in result.stderr.splitlines() if "error" in line), "fails")
        return f"{path}:1: {compiler} {' '.join(language[1:3])}: {first}"
    return None


def check(root):
    jobs = []
    for path in tree.files(root, ("include",), (".h",)):
        jobs += [(path, compiler, C) for compiler in compilers("gcc", "clang")]
        jobs += [(path, compiler, CXX) for compiler in compilers("g++", "clang++")]
    for path in tree.files(root, ("src",), (".h",)):
        jobs += [(path, compiler, GNU_C) for compiler in compilers("gcc")]
    complaints = [compile_alone(root, *job) for job in jobs]
    return [complaint for complaint in complaints if complaint]


if __name__ == "__main__":
    tree.finish("headers", check(sys.argv[1]))
