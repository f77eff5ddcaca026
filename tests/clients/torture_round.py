# SPDX-License-Identifier: MIT
"""One round of torture: a program in lent memory under chaos, claims beside it, and an end that it did not choose.

A round is made of a Plan and a seed, from which every choice in it follows: sizes and alignment of claims, when the
program is stopped or killed, and how. What time the machine takes for all that does not follow, so a replay does the
same things, at nearly the same moments.
"""
import dataclasses
import json
import os
import random
import signal
import subprocess
import threading
import time

import lent
import redis
import torture_watch as watch

HANG_S = 150  # whatever a program does between two looks at it takes a second or two
CLAIM_HANG_S = 60
STOP_MAX_S = 0.3
OOM_ROOM = 24 * lent.MIB
HOG = "import sys\nkept = []\nwhile True:\n    kept.append(b'x' * (1 << 20))\n"
TECHNIQUES = []  # that work here, beside the best of them
CLAIM_CODES = (0, 4, 5)  # done; somebody holds it; no room
CLAIM_CODES_OF_THE_DEAD = (1, 3)


class Finding(Exception):
    """Something is wrong: what, and all that is known about it."""

    def __init__(self, what, details=""):
        super().__init__(what)
        self.what = what
        self.details = details


class Ended(Exception):
    """The round killed the program, which is why nothing more can be expected of it."""


@dataclasses.dataclass(frozen=True)
class Plan:
    seed: int
    program: str
    backing: str
    period: str
    ending: str  # finish, stop, kill, oom
    seconds: float

    def command(self):
        return (f"python3 tests/clients/torture.py --rounds 1 --seed {self.seed} --programs {self.program} --backings "
                f"{self.backing} --periods {self.period} --endings {self.ending} --seconds {self.seconds:g}")


class Claims(threading.Thread):
    """Random claims of whatever instance of the round is there, until it is told to stop."""

    def __init__(self, round_):
        super().__init__(daemon=True)
        self.round = round_
        self.chance = random.Random(f"{round_.plan.seed} claims")
        self.ended = threading.Event()
        self.ok = self.failed = 0
        self.finding = None

    def arguments(self, area_bytes):
        chance = self.chance
        size = chance.randrange(1, min(area_bytes // 2, 4096 << chance.randrange(15)) + 1)
        arguments = [str(size), "--align", str(4096 << chance.randrange(12)), "--count", str(chance.randrange(1, 6)),
                     "--hold", f"{chance.randrange(4000)}us"]
        arguments += chance.choice(((), ("--dearest",), ("--dearest",)))
        arguments += chance.choice(((), ("--no-zero",)))
        arguments += chance.choice((("--no-wait",), ("--deadline", f"{chance.randrange(1, 300)}ms"), ()))
        return arguments

    def claim(self, pid):
        arguments = self.arguments(self.round.area_bytes)
        command = [lent.SUBLET, "claim", "-n", str(pid), "--json", *arguments]
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=CLAIM_HANG_S, check=False,
                                    stdin=subprocess.DEVNULL, env=self.round.env)
        except subprocess.TimeoutExpired:
            raise self.round.hang(f"`sublet {' '.join(command[1:])}`") from None
        if result.returncode in CLAIM_CODES:
            summary = json.loads(result.stdout)["summary"]
            self.ok += summary["succeeded"]
            self.failed += summary["failed"]
        elif result.returncode not in CLAIM_CODES_OF_THE_DEAD or not self.round.may_be_gone(pid):
            raise Finding(f"a claim ended with {result.returncode}", f"{command}\n{result.stderr}{result.stdout[-2000:]}")

    def run(self):
        try:
            while not self.ended.is_set():
                pids = self.round.instance_pids()
                if pids and self.chance.random() < 0.05 and not self.round.drivers:
                    self.round.drive(self.chance.choice(pids))
                elif pids:
                    self.claim(self.chance.choice(pids))
                self.ended.wait(self.chance.random() * 0.05)
        except Finding as finding:
            self.finding = finding
        except Exception as error:
            self.finding = Finding(f"the claims failed: {error!r}")

    def stop(self):
        self.ended.set()
        self.join(2 * CLAIM_HANG_S)


class Stopper(threading.Thread):
    """SIGSTOP and SIGCONT, to all of a program at random moments."""

    def __init__(self, round_, process):
        super().__init__(daemon=True)
        self.process = process
        self.chance = random.Random(f"{round_.plan.seed} stops {round_.starts}")
        self.ended = threading.Event()
        self.stops = 0

    def signal(self, number):
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            self.ended.set()

    def run(self):
        while not self.ended.wait(self.chance.random() * 0.4):
            self.signal(signal.SIGSTOP)
            time.sleep(self.chance.random() * STOP_MAX_S)
            self.signal(signal.SIGCONT)
            self.stops += 1

    def stop(self):
        self.ended.set()
        self.join(10)


class Killer(threading.Thread):
    """Ends a program at a random moment: by SIGKILL, to it or to all of it; or by running out of memory."""

    def __init__(self, round_, process, within_s):
        super().__init__(daemon=True)
        self.round = round_
        self.process = process
        self.chance = random.Random(f"{round_.plan.seed} kill {round_.starts}")
        self.delay = self.chance.random() ** 2 * within_s
        self.called_off = threading.Event()
        self.finding = None

    def kill(self):
        """All at once, or the program first, and what it started outlives it for a moment."""
        if self.chance.random() < 0.5:
            os.kill(self.process.pid, signal.SIGKILL)
            time.sleep(self.chance.random() * 0.2)
        os.killpg(self.process.pid, signal.SIGKILL)

    def run_out(self):
        """Its cgroup gets little more than it has, and somebody takes that. The program is the one to go."""
        group = self.round.cgroup
        write_score(self.process.pid, 1000)
        group.limit((group.usage_bytes() or 0) + OOM_ROOM)
        hog = self.round.start(["python3", "-S", "-c", HOG], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 30
        while self.process.poll() is None and hog.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        self.round.kill_group(hog)
        group.limit(1 << 40)
        os.killpg(self.process.pid, signal.SIGKILL)  # what it started; itself, where a child of it had to go

    def run(self):
        if self.called_off.wait(self.delay):
            return
        self.round.killed = True
        try:
            (self.run_out if self.round.plan.ending == "oom" else self.kill)()
        except ProcessLookupError:
            pass
        except Exception as error:
            self.finding = Finding(f"the program could not be killed: {error!r}")


def write_score(pid, score):
    try:
        watch.write(f"/proc/{pid}/oom_score_adj", str(score))
    except OSError:
        pass


class Round(redis.Case):
    """Runs a Plan. What is wrong is raised as a Finding."""

    def __init__(self, plan, program, logs):
        super().__init__("runTest")
        self.plan = plan
        self.program = program
        self.logs = logs
        self.chance = random.Random(f"{plan.seed} round")
        self.area_bytes = program.area_mib * lent.MIB
        self.starts = 0
        self.killed = False
        self.helper = None
        self.processes = []
        self.drivers = []

    def runTest(self):
        """Rounds are run by play()."""

    # ---- what programs use ----

    def time_left(self):
        return self.until - time.monotonic()

    def options(self):
        area = self.program.area_mib * (2 if self.plan.backing == "hugetlb" else 1)
        self.area_bytes = area * lent.MIB
        follow = ("--follow",) if self.program.follow else ()
        technique = self.chance.choice(("auto", *TECHNIQUES))
        return ("--technique", technique, "--area", f"{area}M", "--normal", f"{self.program.normal_mib}M", "--backing", self.plan.backing, "--chaos",
                self.plan.period, *follow)

    def popen(self, command, **options):
        """As always, but in the round's cgroup, and ended with the program at the latest."""
        process = self.start(command, **options)
        self.processes.append(process)
        return process

    def start(self, command, inside=True, **options):
        env = {**self.env, **options.pop("env", {})}
        options.setdefault("stdin", subprocess.DEVNULL)

        def before():
            if inside:
                lent.die_with_parent()
                self.cgroup.enter()
            else:  # a driver, of the thread that claims: it may outlive that by a second, which is its time
                lent.no_core()
        process = subprocess.Popen(command, env=env, start_new_session=True, preexec_fn=before, **options)
        self.addCleanup(self.kill_group, process)
        return process

    def started(self, process):
        """The program was started: from here on it is stopped, or killed some time."""
        self.starts += 1
        self.killed = False
        if self.plan.ending == "stop":
            self.helper = Stopper(self, process)
            self.helper.start()
        elif self.plan.ending in ("kill", "oom"):
            self.helper = Killer(self, process, max(0.2, min(3.0, self.time_left())))
            self.helper.start()

    def over(self, process):
        """Nothing more will be done to it; was it killed? Then it is gone afterwards, with all that it started."""
        helper, self.helper = self.helper, None
        if isinstance(helper, Stopper):
            helper.stop()
        elif helper:
            helper.called_off.set()
            helper.join(60)
            if helper.finding:
                raise helper.finding
        if self.killed:
            self.gone(process)
        return self.killed

    def gone(self, process):
        """It was killed: wait for it, end what it left running, and look at what else is left."""
        try:
            process.wait(HANG_S)
        except subprocess.TimeoutExpired:
            raise self.hang("the death of the program") from None
        self.look_for_traces()

    def look_for_traces(self):
        processes, self.processes = self.processes, []
        for process in processes:
            self.kill_group(process)
        self.stop_drivers()
        left = self.traces.left(lambda: [found["pid"] for found in self.instances()])
        if left:
            raise Finding("something is left behind", "\n".join(left))

    def communicate(self, process, data=None):
        """All of its output: (exit code, stdout, stderr)."""
        try:
            out, err = process.communicate(data, timeout=HANG_S)
        except subprocess.TimeoutExpired:
            raise self.hang("the end of the program") from None
        return process.returncode, out, err

    def hang(self, what):
        """A finding, with a picture of every thread."""
        with open(self.log("hang"), "w", encoding="utf-8") as file:
            file.write(f"{self.plan}\nwaited in vain for {what}\n\n" + watch.dump(self.folder))
        return Finding(f"hang: {what}", f"see {self.log('hang')}")

    def log(self, kind):
        os.makedirs(self.logs, exist_ok=True)
        return os.path.join(self.logs, f"{kind}-{self.plan.seed}-{self.plan.program}-{self.plan.backing}.txt")

    # ---- claims ----

    def instance_pids(self):
        """By the names of the sockets: cheaper than asking, and as good, since they may be gone in a moment anyway."""
        try:
            return sorted(int(name.rpartition(".")[2]) for name in os.listdir(self.path("sublet"))
                          if name.rpartition(".")[2].isdigit())
        except FileNotFoundError:
            return []

    def may_be_gone(self, pid):
        """Whether a claim may find nobody: the program has ended, or is stopped, or was killed."""
        return self.killed or self.plan.ending == "stop" or not os.path.exists(f"/proc/{pid}") or \
            pid not in self.instance_pids() or self.program.short_lived

    def drive(self, pid):
        """A driver that looks at all bytes it is given, until the program ends or the round does.

        It is no part of the program: where that runs out of memory, the driver is not the one to go.
        """
        tolerant = ["tolerant"] if self.program.short_lived or self.plan.ending == "stop" else []
        self.drivers.append(self.start([os.path.join(lent.BUILD, "tests", "clients", "client_driver"), str(pid),
                                        str(self.plan.seed % 2**32), str(int(max(1, self.time_left()))), *tolerant],
                                       inside=False, stdout=subprocess.PIPE, text=True))

    def stop_drivers(self):
        drivers, self.drivers = self.drivers, []
        for driver in drivers:
            try:
                out, _ = driver.communicate(timeout=HANG_S)
            except subprocess.TimeoutExpired:
                raise self.hang("the end of a driver") from None
            words = out.split()
            if driver.returncode not in (0, 3) or words[:1] != ["claims"]:
                raise Finding(f"a driver ended with {driver.returncode}", out)
            self.claims.ok += int(words[1])
            self.claims.failed += int(words[2])

    # ---- the round ----

    def play(self):
        """The whole round; returns the Claims that counted."""
        self.make_folder()
        self.env.update(TMPDIR=self.folder, HOME=self.folder)
        self.cgroup = watch.Cgroup()
        self.traces = watch.Traces(self.folder, self.cgroup, self.plan.backing)
        self.until = time.monotonic() + self.plan.seconds
        self.claims = Claims(self)
        self.claims.start()
        try:
            self.program.run(self)
            self.claims.stop()
            if self.claims.finding:
                raise self.claims.finding
            self.look_for_traces()
        except subprocess.TimeoutExpired as error:
            raise self.hang(str(error)) from error
        except TimeoutError as error:  # of a socket
            raise self.hang(f"an answer: {error}") from error
        except AssertionError as error:
            if str(error).startswith("waited"):
                raise self.hang(str(error)) from error
            raise Finding("not as it should be", str(error)) from error
        finally:
            self.claims.ended.set()
            if self.helper:
                self.helper.ended.set() if isinstance(self.helper, Stopper) else self.helper.called_off.set()
            self.claims.stop()
            for pid in watch.processes_with(self.folder):  # whoever left its group of processes
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            self.doCleanups()
            self.cgroup.remove()
        return self.claims
