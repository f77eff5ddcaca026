#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Check protocol.pml with spin: every state of each configuration, and that each wrong variant is caught.

    check_protocol.py protocol.pml [--long]

--long adds the configurations that take a minute or more and several GiB. docs/proofs.md says what it all means.
"""
import concurrent.futures
import os
import re
import subprocess
import sys
import tempfile

MODEL = sys.argv[1]
LONG_RUN = "--long" in sys.argv
MEMORY_MIB = 6000 if LONG_RUN else 1500
DEPTH_MAX = 5000000 if LONG_RUN else 200000
SKIPPED = 77

# Whoever is not named is left out. ROUNDS=n: each does its work n times, and must come to an end; else for ever.
USERS = {"short": "SHORT", "cache": "CACHE", "device": "DEVICE", "program": "PROGRAM", "other": "OTHER"}


class Config:
    def __init__(self, users, *defines, liveness=False):
        self.defines = [*defines, *("NO_" + name for user, name in USERS.items() if user not in users.split())]
        self.liveness = liveness


CONFIGS = {
    "pins": Config("short cache"),
    "freed": Config("short other"),
    "device": Config("device program"),
    "device, all walked": Config("device program", "WALK_OF_FROZEN"),
    "pin+device": Config("short device", "COARSE"),
    "cache+device": Config("cache device", "COARSE"),
    "all, once": Config("short cache device", "COARSE", "ROUNDS=1"),
    "no deadlock": Config("device program", "ROUNDS=2"),
    "mover ends": Config("short device program", "COARSE", "ROUNDS=1", "LIVENESS", liveness=True),
    "mover ends, cache": Config("short cache", "COARSE", "ROUNDS=2", "LIVENESS", liveness=True),
}
LONG = {
    "all, for ever": Config("short cache device", "COARSE"),
    "pin+device, fine": Config("short device program"),
    "all + program, once": Config("short cache device program", "COARSE", "ROUNDS=1"),
}

# What is left out or turned round: in which configuration that shows, and how.
STALE = r"assertion violated \(?(ghost_owner\[\w+\]==1|\w+==pte)"
LOST = r"assertion violated \(?\(?ghost_last"
PINNED = r"assertion violated .*(ref\[src\]|pte==p)"
STUCK = r"invalid end state"
MUTANTS = {
    "NO_RECHECK": ("freed", STALE),
    "PIN_IGNORES_FROZEN": ("pins", f"{STALE}|{LOST}|{PINNED}"),
    "FREEZE_OVER_PINS": ("pins", f"{STALE}|{LOST}|{PINNED}"),
    "PIN_BEFORE_CLEAR": ("pins", LOST),
    "NO_RECOPY": ("pins", LOST),
    "NO_TELL_AGAIN": ("pins", STALE),
    "CALLBACK_EARLY": ("device", f"{STALE}|{LOST}"),
    "NO_FLUSH": ("device", f"{STALE}|{LOST}"),
    "NO_RETRY": ("device", f"{STALE}|{LOST}"),
    "MARK_ORDER": ("device", f"{STALE}|{LOST}"),
    "END_BEFORE_BLOCK": ("device, all walked", f"{STALE}|{LOST}"),
    "END_BEFORE_REMAP": ("device", STUCK),
    "NO_UNFREEZE": ("pins", r"assertion violated ok"),
    "NO_WAKE": ("no deadlock", STUCK),
    "LOST_WAKE": ("no deadlock", STUCK),
    "TELL_WHILE_BLOCKED": ("no deadlock", STUCK),
}


def run(arguments, where):
    return subprocess.run(arguments, cwd=where, capture_output=True, text=True, check=False)


def pan(config, mutant=None):
    """What the checker says of one configuration."""
    with tempfile.TemporaryDirectory(prefix="sublet-spin-") as where:
        defines = ["-D" + d for d in config.defines + (["MUTANT_" + mutant] if mutant else [])]
        made = run(["spin", *defines, "-a", os.path.abspath(MODEL)], where)
        if not os.path.exists(os.path.join(where, "pan.c")):
            sys.exit(f"spin: {made.stdout}{made.stderr}")
        kind = ["-DNFAIR=3"] if config.liveness else ["-DSAFETY"]
        # The states are few where something is found, and the compiler's time is most of it.
        speed = "-O0" if mutant else "-O1"
        made = run(["cc", "-w", speed, f"-DMEMLIM={MEMORY_MIB}", *kind, "-o", "pan", "pan.c"], where)
        if made.returncode:
            sys.exit(f"cc: {made.stderr}")
        return run(["./pan", f"-m{DEPTH_MAX}", "-w20", *(["-a", "-f"] if config.liveness else [])], where).stdout


def number(text, what):
    found = re.search(r"^\s*([\d.e+]+) " + what, text, re.M)
    return int(float(found.group(1))) if found else 0


def check_config(name, config):
    out = pan(config)
    states, steps = number(out, "states, stored"), number(out, "transitions")
    errors = re.search(r"errors: (\d+)", out)
    whole = not re.search(r"max search depth too small|out of memory|MEMLIM|not completed", out)
    good = bool(errors) and errors.group(1) == "0" and whole and states > 1000
    print(f"{'ok  ' if good else 'FAIL'}  {name:20}  {states:>10,} states  {steps:>11,} transitions", flush=True)
    if not good:
        print(out)
    return good


def check_mutant(name, where, how):
    out = pan(CONFIGS[where], name)
    reason = re.search(r"pan:\d+: (.*?)(?: \(at depth (\d+)\))?$", out, re.M)
    good = bool(reason) and bool(re.search(how, reason.group(1)))
    said = f"{reason.group(1)}, after {number(out, 'states, stored'):,} states" if reason else "NOT CAUGHT"
    print(f"{'ok  ' if good else 'FAIL'}  without {name:20}  ({where})  {said}", flush=True)
    return good


def main():
    try:
        version = subprocess.run(["spin", "-V"], capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        print("spin is not installed")
        return SKIPPED
    print(version)
    configs = dict(CONFIGS, **(LONG if LONG_RUN else {}))
    with concurrent.futures.ThreadPoolExecutor(1 if LONG_RUN else 2) as pool:
        jobs = [pool.submit(check_config, *item) for item in configs.items()]
        jobs += [pool.submit(check_mutant, name, *what) for name, what in MUTANTS.items()]
        good = [job.result() for job in jobs]
    print(f"{sum(good)} of {len(good)} as they should be")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
