#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Torture: real programs in lent memory that is moved all the time, claimed, stopped, killed and starved.

    python3 tests/clients/torture.py --budget 600

Rounds follow one another until the budget is spent, each of one program on one backing with one period of chaos and
one ending, and print a line each. Which they are follows from the seed, which is printed. At the end stands a table,
and `no wrong byte, no hang, no leak`, or what was found with the command that does that round again; what is known
of a hang (each thread's stack) is in a file that the line names.
"""
import argparse
import collections
import dataclasses
import os
import random
import signal
import sys
import time

import lent
import torture_programs
import torture_round
import torture_watch

PERIODS = ("200us", "1ms", "10ms")
BACKINGS = ("memfd", "thp", "hugetlb")
ENDINGS = ("finish", "stop", "kill", "oom")
ENDINGS_IN_TURN = ("finish", "kill", "stop", "finish", "kill", "stop", "oom")
HUGE_PAGES = 512
STOPPED_BY_HAND = 130  # as a shell has it
ROUND_MIN_S, ROUND_MAX_S = 4, 20
LOGS = os.path.join(lent.BUILD, "torture-logs")


@dataclasses.dataclass
class Result:
    plan: torture_round.Plan
    seconds: float
    starts: int
    ok: int
    failed: int
    finding: torture_round.Finding


def listed(known):
    def parse(text):
        words = [word for word in text.replace(",", " ").split() if word]
        wrong = [word for word in words if known and word not in known]
        if wrong or not words:
            raise argparse.ArgumentTypeError(f"{' '.join(wrong) or 'nothing'}: not one of {' '.join(known)}")
        return words
    return parse


def arguments():
    parser = argparse.ArgumentParser(description="torture of real programs in lent memory")
    parser.add_argument("--budget", type=float, default=600, help="seconds for all rounds together (600)")
    parser.add_argument("--rounds", type=int, help="so many rounds, whatever they take")
    parser.add_argument("--seconds", type=float, help="for each round; default: what the budget gives, 4 to 20")
    parser.add_argument("--seed", type=int, default=os.environ.get("SEED") or int.from_bytes(os.urandom(4), "little"),
                        help="default: SEED of the environment, or a fresh one")
    parser.add_argument("--programs", type=listed(tuple(torture_programs.PROGRAMS)), help="default: all that are here")
    parser.add_argument("--backings", type=listed(BACKINGS), default=list(BACKINGS))
    parser.add_argument("--periods", type=listed(()), default=list(PERIODS))
    parser.add_argument("--endings", type=listed(ENDINGS), default=None)
    return parser.parse_args()


# ---- which rounds ----

def plans(options, programs, backings, endings, seconds):
    """Each program on each backing in a random order, then again in another; endings in turn, so that all are had soon."""
    chance = random.Random(f"{options.seed} plan")
    turn = [ending for ending in ENDINGS_IN_TURN if ending in endings]
    number = 0
    while True:
        pairs = [(program, backing) for program in programs for backing in backings]
        chance.shuffle(pairs)
        for program, backing in pairs:
            seed = options.seed if number == 0 else chance.randrange(1 << 32)
            yield torture_round.Plan(seed, program, backing, chance.choice(options.periods), turn[number % len(turn)], seconds)
            number += 1


def can_starve():
    """Whether a memory cgroup of our own can be made, which running out of memory needs."""
    group = torture_watch.Cgroup()
    there = group.folder is not None
    group.remove()
    return there


def try_run(*options):
    case = lent.Case("id")
    case.make_folder()
    result = case.sublet("run", "--area", "96M", "--normal", "32M", *options, "--", lent.program("true"))
    case.doCleanups()
    return result


def techniques_here(backings):
    """Those that work on all of them: a round takes one of them or leaves it to sublet."""
    return [technique for technique in ("zap", "writeprotect")
            if all(try_run("--technique", technique, "--backing", backing).returncode == 0 for backing in backings)]


def backings_here(options, huge):
    """Those asked for that work here, each tried once."""
    found = []
    for backing in options.backings:
        result = try_run("--backing", backing)
        if result.returncode == 0 and (backing != "hugetlb" or huge.available):
            found.append(backing)
        else:
            print(f"backing {backing}: not here{': ' if result.stderr else ''}{result.stderr.splitlines()[0] if result.stderr else ''}")
    return found


# ---- playing them ----

def play(plan, program):
    began = time.monotonic()
    finding, claims, starts = None, None, 0
    round_ = torture_round.Round(plan, program, LOGS)
    try:
        round_.play()
    except torture_round.Finding as found:
        finding = found
    claims, starts = round_.claims, round_.starts
    return Result(plan, time.monotonic() - began, starts, claims.ok, claims.failed, finding)


def print_result(number, result):
    plan = result.plan
    verdict = "ok" if result.finding is None else f"FOUND: {result.finding.what}"
    print(f"{number:4}  {plan.program:15} {plan.backing:8} {plan.period:>6}  {plan.ending:7} {result.seconds:6.1f} s  "
          f"{result.starts:3} starts  claims {result.ok:5} ok {result.failed:4} failed  seed {plan.seed:10}  {verdict}", flush=True)
    if result.finding is not None:
        print("".join(f"        {line}\n" for line in result.finding.details.splitlines()[-40:])
              + f"        again: {plan.command()}", flush=True)


def print_table(results):
    """By program: rounds on each backing, endings, starts, claims."""
    backings = sorted({result.plan.backing for result in results}, key=BACKINGS.index)
    print(f"\n{'program':16}" + "".join(f"{backing:>9}" for backing in backings) + "".join(f"{ending:>8}" for ending in ENDINGS)
          + f"{'starts':>8}{'claims':>9}{'failed':>8}{'found':>7}")
    for program in sorted({result.plan.program for result in results}):
        mine = [result for result in results if result.plan.program == program]
        count = collections.Counter(word for result in mine for word in (result.plan.backing, result.plan.ending))
        print(f"{program:16}" + "".join(f"{count[backing]:9}" for backing in backings)
              + "".join(f"{count[ending]:8}" for ending in ENDINGS)
              + f"{sum(r.starts for r in mine):8}{sum(r.ok for r in mine):9}{sum(r.failed for r in mine):8}"
              f"{sum(r.finding is not None for r in mine):7}")


def torture(options, programs, backings, endings, results):
    """Appends to results round by round, so that those are there however it ends."""
    pairs = len(programs) * len(backings)
    seconds = options.seconds or max(ROUND_MIN_S, min(ROUND_MAX_S, options.budget / pairs - 1))
    began = time.monotonic()
    for number, plan in enumerate(plans(options, list(programs), backings, endings, seconds)):
        spent = time.monotonic() - began
        if number >= options.rounds if options.rounds else number and spent + spent / number > options.budget:
            break
        results.append(play(plan, programs[plan.program]))
        print_result(number + 1, results[-1])


def main():
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # huge pages are given back on the way out
    sys.stdout.reconfigure(line_buffering=True)
    programs, absent = torture_programs.present()
    if absent:
        print(f"not here: {' '.join(absent)}")
    programs = {name: program for name, program in programs.items() if not options.programs or name in options.programs}
    endings = options.endings or [ending for ending in ENDINGS if ending != "oom" or can_starve()]
    if "oom" not in endings and not options.endings:
        print("no memory cgroup can be made here: nothing runs out of memory")
    results, stopped = [], None
    with torture_watch.HugePages(HUGE_PAGES if "hugetlb" in options.backings else 0) as huge:
        backings = backings_here(options, huge)
        if not programs or not backings:
            print("nothing can be tortured here")
            return lent.SKIPPED
        torture_round.TECHNIQUES[:] = techniques_here(backings)
        print(f"SEED={options.seed}: {len(programs)} programs, {' '.join(backings)}, {' '.join(options.periods)}, {' '.join(endings)}")
        try:
            torture(options, programs, backings, endings, results)
        except KeyboardInterrupt:
            stopped = f"stopped by hand after {len(results)} rounds"
    print_table(results)
    found = [result for result in results if result.finding is not None]
    for result in found:
        print(f"FOUND: {result.finding.what}: {result.plan.command()}")
    print(f"SEED={options.seed}: {len(results)} rounds, {sum(r.starts for r in results)} starts, "
          f"{sum(r.ok for r in results)} claims, {sum(r.failed for r in results)} failed: "
          + (f"{len(found)} found" if found else stopped or "no wrong byte, no hang, no leak"))
    return 1 if found else STOPPED_BY_HAND if stopped else 0


if __name__ == "__main__":
    sys.exit(main())
