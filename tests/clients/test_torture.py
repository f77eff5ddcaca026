#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Torture finds what it looks for: a wrong byte, a hang, what a program leaves behind; and it replays."""
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest
import unittest.mock

import lent
import torture
import torture_programs
import torture_round
import torture_watch


class Script(torture_programs.Batch):
    """A program of our own making; `answer` is what it should print."""
    area_mib, normal_mib = 16, 16

    def __init__(self, text, answer=b"fine\n"):
        super().__init__()
        self.text = text
        self.expected = (0, answer, b"")

    def command(self, _round):
        return sys.executable, "-c", "data = [bytes([i % 256]) * 50000 for i in range(100)]\n" + self.text

    def env(self):
        return {"PYTHONMALLOC": "malloc"}


class Torture(unittest.TestCase):
    def setUp(self):
        self.logs = tempfile.mkdtemp(prefix="sublet-clients-")
        self.addCleanup(shutil.rmtree, self.logs)
        patience = torture_round.HANG_S, torture_watch.SETTLE_S
        self.addCleanup(self.set_patience, *patience)

    @staticmethod
    def set_patience(hang_s, settle_s):
        torture_round.HANG_S, torture_watch.SETTLE_S = hang_s, settle_s

    def play(self, program, ending="finish", seconds=0.5):
        plan = torture_round.Plan(7, "script", "memfd", "1ms", ending, seconds)
        round_ = torture_round.Round(plan, program, self.logs)
        try:
            round_.play()
        except torture_round.Finding as finding:
            return finding
        return None

    def test_nothing_is_found_where_nothing_is(self):
        for ending in ("finish", "stop", "kill"):
            self.assertIsNone(self.play(Script("print('fine')"), ending))

    def test_a_wrong_byte(self):
        finding = self.play(Script("print('f\\x1cne')"))
        self.assertIn("not what it does", finding.what)

    def test_a_death(self):
        finding = self.play(Script("import os; os.kill(os.getpid(), 11)"))
        self.assertIn("-11", finding.details)

    def test_a_hang(self):
        self.set_patience(1, 1)
        finding = self.play(Script("import time; time.sleep(1000)"))
        self.assertTrue(finding.what.startswith("hang"), finding.what)
        path = finding.details.removeprefix("see ")
        with open(path, encoding="utf-8") as file:
            text = file.read()
        self.assertIn("wchan", text)
        self.assertIn("sublet-control", text)
        if lent.find("gdb"):
            self.assertIn("#0 ", text)

    def test_a_process_that_stays(self):
        self.set_patience(torture_round.HANG_S, 1)
        script = ("import os, time\n"
                  "if os.fork() == 0:\n"
                  "    os.setsid(); [os.close(fd) for fd in (0, 1, 2)]; time.sleep(30); os._exit(0)\n"
                  "print('fine')")
        finding = self.play(Script(script))
        self.assertEqual(finding.what, "something is left behind")
        self.assertIn("process ", finding.details)

    def test_a_file_and_a_socket_that_stay(self):
        self.set_patience(torture_round.HANG_S, 0.5)
        name = f"/dev/shm/sublet_{os.getpid()}"
        self.addCleanup(lambda: os.path.exists(name) and os.unlink(name))
        for path in (name, "../sublet/odd"):
            finding = self.play(Script(f"open({path!r}, 'w').close(); print('fine')"))
            self.assertEqual(finding.what, "something is left behind")
            self.assertIn(os.path.basename(path), finding.details)

    def test_memory_that_stays(self):
        """Shared memory that nobody has open, but everybody can: System V's."""
        lent.needs(torture.can_starve(), "no memory cgroup can be made here")
        self.set_patience(torture_round.HANG_S, 0.5)
        script = ("import ctypes\n"
                  "libc = ctypes.CDLL(None)\n"
                  "libc.shmat.restype = ctypes.c_void_p\n"
                  "number = libc.shmget(0, 8 << 20, 0o1600)\n"
                  "ctypes.memset(libc.shmat(number, None, 0), 1, 8 << 20)\n"
                  "print('fine')\n"
                  f"open({os.path.join(self.logs, 'number')!r}, 'w').write(str(number))")
        finding = self.play(Script(script))
        with open(os.path.join(self.logs, "number"), encoding="ascii") as file:
            torture_round.lent.libc.shmctl(int(file.read()), 0, None)
        self.assertEqual(finding.what, "something is left behind")
        self.assertIn("shared memory", finding.details)

    def test_the_seed_comes_from_the_environment_too(self):
        """As with every test: that is how the list of seeds replays one."""
        with unittest.mock.patch.dict(os.environ, SEED="77"), unittest.mock.patch("sys.argv", ["torture.py"]):
            self.assertEqual(torture.arguments().seed, 77)
        with unittest.mock.patch.dict(os.environ, SEED="77"), \
                unittest.mock.patch("sys.argv", ["torture.py", "--seed", "4"]):
            self.assertEqual(torture.arguments().seed, 4)

    def test_a_stop_by_hand_shows_what_was_done(self):
        """Ctrl-C in the second round: the first one is in the table, and nothing is said to be well."""
        command = [sys.executable, torture.__file__, "--programs", "git", "--backings", "memfd", "--periods", "1ms",
                   "--endings", "finish", "--seconds", "1"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(process.kill)
        said = []
        while not said or " ok " not in said[-1]:
            said.append(process.stdout.readline())
            self.assertTrue(said[-1], "it ended by itself")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        self.assertEqual((process.returncode, err), (130, ""))
        self.assertIn("stopped by hand after 1 rounds", out)
        self.assertNotIn("no leak", out)

    def test_plans_follow_from_the_seed(self):
        """And a round that is asked for by its own command is the same round."""
        options = type("Options", (), {"seed": 5, "periods": ["1ms", "10ms"]})
        many = torture.plans(options, ["a", "b", "c"], ["memfd", "thp"], ["finish", "kill"], 4)
        first = [next(many) for _ in range(20)]
        again = torture.plans(options, ["a", "b", "c"], ["memfd", "thp"], ["finish", "kill"], 4)
        self.assertEqual([next(again) for _ in range(20)], first)
        self.assertEqual({plan.program + plan.backing for plan in first[:6]}, {p + b for p in "abc" for b in ("memfd", "thp")})
        plan = first[13]
        one = type("Options", (), {"seed": plan.seed, "periods": [plan.period]})
        self.assertEqual(next(torture.plans(one, [plan.program], [plan.backing], [plan.ending], 4)), plan)


if __name__ == "__main__":
    lent.main()
