#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The seccomp policy, its documents and its test speak of the same calls.

src/cli/policy.c has parts and rules. Each part stands in the table of docs/hazards.md, in the manual page and in
docs/pinning.md, and these name no other. Each call that a rule refuses stands in the rows of its part, and each ioctl is
made by tests/bridge/test_policy.c.
"""
import re
import sys

import tree

POLICY = "src/cli/policy.c"
HAZARDS = "docs/hazards.md"
PINNING = "docs/pinning.md"
MANUAL = "man/sublet.1"
TEST = "tests/bridge/test_policy.c"

PART = re.compile(r'\[PART_(\w+)\]\s*=\s*\{\s*"(\w+)"')
RULE = re.compile(r"^\s*(REFUSE|REFUSE_IOCTL)\((\w+), (\w+)([^\n]*)", re.M)
ROW = re.compile(r"^\| (?:`(\w+)`)? ?\| (.*)$")
MANUAL_PART = re.compile(r"^\.TP\n\.B (\w+)$", re.M)


def rows(text):
    """Part -> what the rows of the table of hazards.md say of it; a row without a name goes on with the last one."""
    section = text.partition("## Refused by the seccomp policy")[2].partition("\n## ")[0]
    found, part = {}, None
    for line in section.split("\n"):
        match = ROW.match(line)
        if match and (match.group(1) or part):
            part = match.group(1) or part
            found[part] = found.get(part, "") + match.group(2) + "\n"
    return found


def manual_parts(text):
    """The names in the list that follows the words about --allow."""
    return set(MANUAL_PART.findall(text.partition("\n.SH NOTES\n")[2].partition("\n.PP\n")[0]))


def one_set(parts, named, where):
    for name in sorted(parts - named):
        yield f"{where}:1: part {name} of {POLICY} is missing"
    for name in sorted(named - parts):
        yield f"{where}:1: {name} is no part of {POLICY}"


def check_rule(match, names, table, test):
    """Complaints about one rule: the call as the documents write it, without the policy's own prefix."""
    kind, part, call, rest = match.groups()
    call = call.removeprefix("POLICY_")
    option = re.search(r"\b(?:SO|XDP|TCP|RDS|AF|KVM)_\w+", rest)
    word = option.group(0) if kind == "REFUSE" and option else call
    if part not in names:
        yield f"rule of an unknown part {part}"
    elif not re.search(rf"\b{word}\b", table.get(names[part], "")):
        yield f"{word} is not in the row of {names[part]} in {HAZARDS}"
    if kind == "REFUSE_IOCTL" and not re.search(rf'"{names.get(part)}", "{call}\b', test):
        yield f"{call} is not tried by {TEST}"


def check(root):
    text = {path: "\n".join(tree.read_lines(root, path)) for path in (POLICY, HAZARDS, PINNING, MANUAL, TEST)}
    names = dict(PART.findall(text[POLICY]))
    parts = set(names.values())
    table = rows(text[HAZARDS])
    pinning = {name for list_ in re.findall(r"policy: (\w+(?:, \w+)*)", text[PINNING]) for name in list_.split(", ")}
    complaints = [] if parts else [f"{POLICY}:1: no parts found"]

    complaints += one_set(parts, set(table), HAZARDS)
    complaints += one_set(parts, manual_parts(text[MANUAL]), MANUAL)
    complaints += one_set(parts, pinning - {"NAME"}, PINNING)
    for match in RULE.finditer(text[POLICY]):
        line = text[POLICY].count("\n", 0, match.start(1)) + 1
        complaints += [f"{POLICY}:{line}: {c}" for c in check_rule(match, names, table, text[TEST])]
    return complaints


if __name__ == "__main__":
    tree.finish("policy", check(sys.argv[1]))
