#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The helper process lives as long as its program, and whichever of the two is ended, the other does what it should."""
import os
import pty
import signal
import subprocess
import sys

import beside
from beside import lent


class Ends(beside.Case):
    def test_with_the_program(self):
        """However that ends: the helper follows, and the socket's file goes."""
        for number in (0, signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGHUP):
            with self.subTest(number):
                instance = self.client("--chaos", "1ms")
                _, pidfd = self.helper(instance.pid)
                self.assertNotEqual(self.sockets(), [])
                if number:
                    self.assertEqual(instance.end(number), -number)
                else:
                    self.assert_ends_well(instance)
                self.assert_ends(pidfd, number)
                self.assertEqual(self.sockets(), [])

    def test_exit_codes(self):
        for code in (0, 1, 77, 125, 255):
            result = self.sublet("run", *beside.SMALL, "--", sys.executable, "-c", f"raise SystemExit({code})")
            self.assertEqual(result.returncode, code, result.stderr)
        lent.wait_for(lambda: self.sockets() == [])

    def test_another_program_in_its_place(self):
        """The old helper is gone at once, though nothing tells it, whether the new program is lent or not."""
        for prefix in ("", "env -u LD_PRELOAD "):
            with self.subTest(prefix):
                instance = self.lent("bash", "-c", f"read line; exec {prefix}{beside.CLIENT} hold 1000000", options=beside.SMALL,
                                     stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                _, pidfd = self.helper(instance.pid)
                instance.process.stdin.write("go\n")
                instance.process.stdin.flush()
                self.assertEqual(instance.process.stdout.readline(), "full\n")
                self.assert_ends(pidfd, "exec")
                self.assertEqual(len(beside.helpers(instance.pid)), 0 if prefix else 1)
                self.assertEqual(len(self.sockets()), 0 if prefix else 1)
                self.assertEqual(self.ask(instance, "check"), "right")
                instance.process.communicate(timeout=lent.TIMEOUT_S)

    def test_the_same_program_in_its_place(self):
        """Same pid, again and again: one helper, one socket, and claims work each time."""
        for options in ((), ("--follow",)):
            with self.subTest(options):
                instance = self.client(*options)
                for _ in range(5):
                    _, pidfd = self.helper(instance.pid)
                    self.assertEqual(self.ask(instance, "exec"), "full")
                    self.assert_ends(pidfd, "exec")
                    self.assertEqual(len(self.sockets()), 1)
                    instance.claim(beside.MOST)
                self.assert_ends_well(instance)

    def test_main_thread_that_ends_alone(self):
        """The others go on, and so does the helper; a thread that joined the main thread is woken."""
        instance = self.client()
        _, pidfd = self.helper(instance.pid)
        instance.process.stdin.write("thread\n")
        instance.process.stdin.flush()
        self.assertEqual(instance.process.stdout.readline(), "alone\n")
        for _ in range(3):
            instance.claim(beside.MOST)
            self.assertEqual(self.ask(instance, "check"), "right")
            self.assertEqual(self.ask(instance, "malloc"), "done")
            self.assertEqual(self.ask(instance, "fork"), "forked")
        self.assert_ends_well(instance)
        self.assert_ends(pidfd, "the last thread")
        self.assertEqual(self.sockets(), [])



class Stopped(beside.Case):
    def test_claims_of_a_stopped_program(self):
        instance = self.client()
        for round_ in range(3):
            instance.process.send_signal(signal.SIGSTOP)
            lent.wait_for(lambda: beside.status(instance.pid, "State").startswith("T"))
            claim = instance.claim(beside.MOST)
            if round_ == 0:  # what was moved out of the way stays there
                self.assertGreater(claim["claims"][0]["moved_bytes"], lent.MIB)
            self.assertTrue(beside.status(instance.pid, "State").startswith("T"))
            instance.process.send_signal(signal.SIGCONT)
            self.assertEqual(self.ask(instance, "check"), "right")
            self.assertEqual(self.ask(instance, "malloc"), "done")
        self.assert_ends_well(instance)


class Killed(beside.Case):
    """Somebody ends the helper: the program loses nothing but claims and forks, and is told so once."""

    def test_program_goes_on(self):
        for options in ((), ("--chaos", "1ms")):
            for _ in range(3):
                with self.subTest(options):
                    self.kill_helper_of(self.client(*options, stderr=subprocess.PIPE))

    def kill_helper_of(self, instance):
        helper, pidfd = self.helper(instance.pid)
        self.assertEqual(self.ask(instance, "fork"), "forked")
        os.kill(helper, signal.SIGKILL)
        self.assert_ends(pidfd, "SIGKILL")
        for _ in range(2):
            self.assertEqual(self.ask(instance, "check"), "right")
            self.assertEqual(self.ask(instance, "malloc"), "done")
            self.assertEqual(self.ask(instance, "fork"), "ENOMEM")
        result = self.sublet("claim", "-n", str(instance.pid), beside.MOST)
        self.assertNotEqual(result.returncode, 0)
        self.assert_explained(result)
        self.assertEqual(self.ask(instance, "check"), "right")
        _, err = instance.process.communicate(timeout=lent.TIMEOUT_S)
        self.assertEqual(instance.process.returncode, 0, err)
        self.assertEqual(err.count("sublet: "), 1, err)
        self.assertIn("helper process", err)


class Signals(beside.Case):
    def test_of_its_group(self):
        instance = self.client()
        _, pidfd = self.helper(instance.pid)
        os.killpg(instance.pid, signal.SIGINT)
        self.assertEqual(instance.process.wait(lent.TIMEOUT_S), -signal.SIGINT)
        self.assert_ends(pidfd, "SIGINT")

    def test_a_handler_of_its_own(self):
        """The helper is not reached: what ends or does not end is the program's affair."""
        script = "import signal, sys\nsignal.signal(2, lambda *a: print('got it', flush=True))\n" \
                 "data = [bytes([i % 251]) * 50000 for i in range(200)]\nprint('full', flush=True)\nsys.stdin.readline()\n" \
                 "sys.exit(any(d != bytes([i % 251]) * 50000 for i, d in enumerate(data)))\n"
        instance = self.lent(sys.executable, "-c", script, options=beside.SMALL, env={"PYTHONMALLOC": "malloc"},
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.assertEqual(instance.process.stdout.readline(), "full\n")
        helper, _ = self.helper(instance.pid)
        for _ in range(5):
            os.killpg(instance.pid, signal.SIGINT)
            self.assertEqual(instance.process.stdout.readline(), "got it\n")
            instance.claim(beside.MOST)
        self.assertEqual(beside.helpers(instance.pid), [helper])
        instance.process.communicate("\n", timeout=lent.TIMEOUT_S)
        self.assertEqual(instance.process.returncode, 0)

    def test_control_c_and_hangup(self):
        for how in ("control-c", "hangup"):
            with self.subTest(how):
                pid, terminal = pty.fork()
                if pid == 0:
                    try:
                        os.environ.update(XDG_RUNTIME_DIR=self.folder)
                        os.execv(lent.SUBLET, [lent.SUBLET, "run", *beside.SMALL, "--", beside.CLIENT, "hold", "1000000"])
                    finally:
                        os._exit(99)
                with os.fdopen(terminal, "r+b", buffering=0) as file:
                    seen = b""
                    while b"full" not in seen:
                        seen += file.read(100)
                    _, pidfd = self.helper(pid)
                    if how == "control-c":
                        file.write(b"\x03")
                        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), -signal.SIGINT)
                if how == "hangup":
                    self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), -signal.SIGHUP)
                self.assert_ends(pidfd, how)


if __name__ == "__main__":
    lent.main()
