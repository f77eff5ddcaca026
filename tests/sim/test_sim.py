#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs sublet-sim: fixed seeds, a fresh one, those of seeds.txt, and a few twice. SEED=n sets the fresh one."""

import os
import re
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
EMULATOR = os.environ.get("SUBLET_EMULATOR", "").split()  # where the program is for another processor
LESS = 16 if EMULATOR else 1  # it takes ten times as long there
FIXED_WORLDS = 700 // LESS
FRESH_WORLDS = 350 // LESS


def sim(*arguments):
    """Its output; ends this test with its trace where there was a violation."""
    done = subprocess.run([*EMULATOR, SIM, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        print("sublet-sim", *arguments)
        print(done.stdout[-2000:], done.stderr[-20000:])
        print("Add the seed to tests/sim/seeds.txt.")
        sys.exit(1)
    return done.stdout


def report(out):
    print(out.splitlines()[-1])


def never(out):
    """The transitions that no world made."""
    return set(re.findall(r"^ +(\S.* -> .*\S) +0  never$", out, re.M))


def fixed():
    """No violation; and every transition of the docs is made, the rarest perhaps in some more worlds."""
    out = sim("--seed", "1", "--worlds", str(FIXED_WORLDS))
    missing = never(out)
    for first in range(FIXED_WORLDS + 1, 5 * FIXED_WORLDS, FIXED_WORLDS):
        if missing and not EMULATOR:
            missing &= never(sim("--seed", str(first), "--worlds", str(FIXED_WORLDS)))
    assert EMULATOR or not missing, f"never reached: {missing}"
    assert " state machines were reached" in out
    answers, known = map(int, re.search(r"(\d+) of (\d+) answers and events were seen", out).groups())
    assert EMULATOR or answers >= known * 9 // 10, out
    report(out)


def fresh():
    seed = os.environ.get("SEED", str(time.time_ns() // 1000 % 10**12))
    print("fresh: SEED=" + seed, flush=True)  # it is there also where a hang is killed
    report(sim("--seed", seed, "--worlds", str(FRESH_WORLDS)))


def failed():
    with open(os.path.join(HERE, "seeds.txt"), encoding="utf-8") as lines:
        known = [line.split()[:2] for line in lines if line.strip() and not line.startswith("#")]
    assert known, "seeds.txt lists none"
    for seed, steps in known:
        sim("--seed", seed, "--steps", steps)
    print(f"{len(known)} seeds")


def worlds(*arguments):
    return re.findall(r"seed \d+: \d+ steps, hash [0-9a-f]+", sim("--each", *arguments))


def replay():
    """The same seed is the same world, alone or after others; another seed is another."""
    many = worlds("--seed", "500", "--worlds", "30")
    assert len(many) == 30 and len(set(line.split()[-1] for line in many)) == 30, many
    assert worlds("--seed", "500", "--worlds", "30") == many
    for i in (0, 7, 29):
        assert worlds("--seed", str(500 + i)) == [many[i]], many[i]
    # What is looked at changes nothing of what happens.
    assert worlds("--seed", "507", "--check-every", "1") == [many[7]]
    print("30 worlds, the same each time")


def use():
    """What is asked wrongly is refused, not taken for something else; two starts at once are two worlds."""
    def status(*arguments):
        return subprocess.run([*EMULATOR, SIM, *arguments], capture_output=True, check=False).returncode
    for wrong in (("--seed", "-1"), ("--seed", "18446744073709551616"), ("--seed", "0x10"), ("--seed", ""), ("--seed", " 5"),
                  ("--steps", "4294967295"), ("--check-every", "0"), ("--trace", "4294967296"), ("--worlds", "many"), ("more",)):
        assert status(*wrong) == 2, wrong
    assert status("--help") == 0
    assert status("--seed", "010", "--steps", "0", "--trace", "0") == 0
    assert worlds("--seed", "010", "--steps", "0") == worlds("--seed", "10", "--steps", "0")
    first, second = (sim("--steps", "0").splitlines()[0] for _ in range(2))
    assert first != second, first
    print("refused what is wrong")


SIM = sys.argv[2]
{"fixed": fixed, "fresh": fresh, "failed": failed, "replay": replay, "use": use}[sys.argv[1]]()
