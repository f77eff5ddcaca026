# SPDX-License-Identifier: MIT
"""What the tests of the helper process share: its pid, its end, and a client that answers questions."""
import ctypes
import os
import platform
import select
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir, "clients"))

import lent  # pylint: disable=wrong-import-position

CLIENT = os.path.join(lent.BUILD, "tests", "helper", "helper_client")
SMALL = ("--area", "64M", "--normal", "64M")
HEAP = 24 * lent.MIB
MOST = "60M"  # of an area of 64 MiB: a claim of it moves what lies there
SYS_KCMP = {"x86_64": 312}.get(platform.machine(), 272)
KCMP_VM = 1


def comm(pid):
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def status(pid, name):
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        return next(line.split(":", 1)[1].strip() for line in file if line.startswith(name + ":"))


def helpers(pid):
    """The helper processes of a program: those that share its memory."""
    return [int(other) for other in os.listdir("/proc") if other.isdigit() and comm(other) == "sublet-helper"
            and lent.libc.syscall(SYS_KCMP, pid, int(other), KCMP_VM, 0, 0) == 0]


class Case(lent.Case):
    def helper(self, pid):
        """The one helper of a program: its pid and a pidfd."""
        found = lent.wait_for(lambda: helpers(pid))
        self.assertEqual(len(found), 1)
        pidfd = os.pidfd_open(found[0])
        self.addCleanup(os.close, pidfd)
        return found[0], pidfd

    def assert_ends(self, pidfd, why):
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        self.assertTrue(poll.poll(lent.TIMEOUT_S * 1000), f"the helper goes on after {why}")

    def sockets(self):
        directory = self.path("sublet")
        return os.listdir(directory) if os.path.isdir(directory) else []

    def client(self, *options, stderr=None, **popen):
        """A client that holds memory: its Instance."""
        instance = self.lent(CLIENT, "hold", str(HEAP), options=(*SMALL, *options), stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, stderr=stderr, text=True, bufsize=1, **popen)
        self.assertEqual(instance.process.stdout.readline(), "full\n")
        return instance

    def ask(self, instance, word):
        instance.process.stdin.write(word + "\n")
        instance.process.stdin.flush()
        return instance.process.stdout.readline().strip()

    def assert_ends_well(self, instance):
        self.assertEqual(self.ask(instance, "check"), "right")
        instance.process.communicate(timeout=lent.TIMEOUT_S)
        self.assertEqual(instance.process.returncode, 0)

    def can(self, *command, **options):
        """Whether a command succeeds here without sublet."""
        try:
            return subprocess.run(command, capture_output=True, timeout=lent.TIMEOUT_S, check=False, **options).returncode == 0
        except OSError:
            return False
