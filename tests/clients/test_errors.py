#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What cannot be: one line of what, one of what to do, a code that is not 0, and an instance that goes on.

The instance is a program that checks its bytes all the time; after each test it is claimed once more.
"""
import os
import random
import resource
import shutil
import signal
import socket
import stat
import subprocess

import lent

NOBODY = 65534


class Errors(lent.Case):
    def setUp(self):
        super().setUp()
        self.instance = None

    def start(self, *options):
        self.instance = self.start_filler("--area", "64M", "--normal", "64M", *options, bytes_count=48 * lent.MIB)

    def unharmed(self):
        """It is claimed again, and its program read every byte once more."""
        self.instance.claim("32M", "--dearest")
        self.assert_lent(self.instance.stat())
        self.end_filler(self.instance)

    def refused(self, code, words, *arguments, **env):
        result = self.sublet(*arguments, **env)
        self.assertEqual(result.returncode, code, (arguments, result))
        self.assert_explained(result)
        for word in words:
            self.assertIn(word, result.stderr)
        return result

    # ---- claims ----

    def test_claims_that_make_no_sense(self):
        self.start()
        claims = self.instance.stat()["claims"]
        for words, arguments in (
            (("nothing to claim",), ("0",)),
            (("'abc' is no size",), ("abc",)),
            (("'-1'",), ("--", "-1")),
            (("64 bits",), ("99999999999G",)),
            (("power of two",), ("--align", "3M", "2M")),
            (("power of two",), ("--align", "0", "2M")),
            (("SIZE is missing",), ()),
        ):
            with self.subTest(arguments):
                self.refused(2, words, "claim", "-n", self.instance.name, *arguments)
        self.assertEqual(self.instance.stat()["claims"], claims)
        self.unharmed()

    def test_larger_than_the_area(self):
        self.start()
        self.refused(5, ("65 MiB", "64 MiB", "--area"), "claim", "-n", self.instance.name, "65M")
        self.refused(5, ("64 MiB",), "claim", "-n", self.instance.name, "1000G")
        self.unharmed()

    def test_larger_than_can_be_had(self):
        """All of the area is lent, and the normal zone is smaller than what would have to go."""
        self.instance = self.start_filler("--area", "128M", "--normal", "16M", bytes_count=140 * lent.MIB)
        result = self.refused(5, ("nowhere to go", "--normal", "at most"), "claim", "-n", self.instance.name, "120M")
        possible = result.stderr.split("at most ")[1].split(".")[0].split()[0]
        self.instance.claim(possible)  # what it says is true
        self.instance.claim("8M", "--dearest")
        self.assertEqual(self.instance.stat()["claims_noroom"], 1)
        self.end_filler(self.instance)

    # ---- no such instance ----

    def test_an_instance_that_is_dead(self):
        self.start()
        self.assertEqual(self.instance.end(signal.SIGKILL), -signal.SIGKILL)
        self.refused(3, (self.instance.name,), "claim", "-n", self.instance.name, "1M")
        self.refused(3, (), "stat")
        self.refused(3, ("nonsense",), "stat", "-n", "nonsense")

    def test_an_instance_that_dies_while_it_is_claimed(self):
        self.start()
        driver = self.popen([lent.SUBLET, "claim", "-n", self.instance.name, "--count", "100000", "--hold", "1ms", "2M"],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.assertIn("claimed", driver.stdout.readline())
        self.instance.end(signal.SIGKILL)
        _, err = driver.communicate(timeout=lent.TIMEOUT_S)
        self.assertEqual(driver.returncode, 3, err)
        self.assertEqual(len([line for line in err.splitlines() if line.startswith("sublet: ")]), 1, err)

    # ---- other users ----

    def as_nobody(self, command, **options):
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, user=NOBODY,
                              group=NOBODY, extra_groups=[], stdin=subprocess.DEVNULL, env=self.env, **options)

    def command_for_all(self):
        """The command where everybody can execute it."""
        os.chmod(self.folder, 0o755)
        return shutil.copy(lent.SUBLET, self.path("command"))

    def test_another_user_s_instance(self):
        lent.needs(os.geteuid() == 0, "needs root to become somebody else")
        self.start()
        command = self.command_for_all()
        for arguments in (("claim", "-n", self.instance.name, "1M"), ("stat",), ("map", "-n", str(self.instance.pid))):
            result = self.as_nobody([command, *arguments], cwd="/")
            self.assertIn(result.returncode, (1, 3), result)
            self.assert_explained(result)
        self.assertEqual(self.instance.stat()["claims"], 0)
        self.unharmed()

    def test_another_user_at_an_open_socket(self):
        """Were all permissions of the folder given away, the instance itself would still refuse."""
        lent.needs(os.geteuid() == 0, "needs root to become somebody else")
        self.start()
        os.chmod(self.folder, 0o755)
        directory = self.path("sublet")
        path = os.path.join(directory, os.listdir(directory)[0])
        os.chmod(directory, 0o711)
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode) & 0o022, 0, "others may not connect")
        os.chmod(path, 0o666)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
                peer = socket.socket(socket.AF_UNIX)
                peer.settimeout(30)
                peer.connect(path)
                # HELLO, then the descriptor of all lent memory
                peer.sendall(b"SBLT" + bytes((1, 0, 1, 0)) + bytes(8) + b"SBLT" + bytes((1, 0, 3, 0)) + bytes(8))
                answer, descriptors, _, _ = socket.recv_fds(peer, 4096, 4)
                refused = len(answer) == 0 or answer[6] == 255
                code = 0 if refused and not descriptors else 2
            except (ConnectionError, PermissionError):
                code = 0
            finally:
                os._exit(code)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0)
        os.chmod(directory, 0o700)
        self.unharmed()

    # ---- nonsense on the socket ----

    def test_a_mebibyte_of_noise(self):
        self.start(*lent.CHAOS)
        directory = self.path("sublet")
        path = os.path.join(directory, os.listdir(directory)[0])
        chance = random.Random(3)
        noise = chance.randbytes(lent.MIB)
        hello = b"SBLT" + bytes((1, 0, 1, 0)) + bytes(8)
        claim = b"SBLT" + bytes((1, 0, 4, 0)) + (40 + 32).to_bytes(4, "little") + bytes(4)
        for start in (b"", b"SBLT", hello, hello + claim, hello * 3 + claim[:13]):
            with socket.socket(socket.AF_UNIX) as peer:
                peer.settimeout(30)
                peer.connect(path)
                try:
                    peer.sendall(start + noise)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # it has seen enough
                try:
                    while peer.recv(65536):
                        pass
                except ConnectionResetError:
                    pass
        for _ in range(200):  # and many who say nothing, or go at once
            with socket.socket(socket.AF_UNIX) as peer:
                peer.connect(path)
                peer.sendall(noise[:chance.randrange(20)])
        lent.wait_for(lambda: self.sublet("stat", "-n", self.instance.name).returncode == 0, 30)
        self.assertEqual(self.instance.stat()["claims_held"], 0)
        self.unharmed()

    # ---- it does not start ----

    def test_more_than_there_is(self):
        self.start()
        marker = self.path("started")
        for options in (("--area", "100T"), ("--area", "16M", "--normal", "100T")):
            self.refused(125, ("memory available", "--area", "doctor"), "run", *options, "touch", marker)
        self.refused(125, ("huge pages", "--area"), "run", "--area", "1T", "--backing", "hugetlb", "touch", marker)
        self.assertFalse(os.path.exists(marker))
        self.assertEqual([instance["pid"] for instance in self.instances()], [self.instance.pid])
        self.unharmed()

    def test_no_place_for_the_socket(self):
        """The line names the folder, and says which variable chooses it."""
        marker = self.path("started")
        os.mkdir(self.path("open"))
        os.mkdir(self.path("open", "sublet"))
        os.chmod(self.path("open", "sublet"), 0o755)
        long = self.path(*["x" * 200] * 19)
        os.makedirs(long)
        for folder, words in (("/proc", ("in /proc/sublet:",)), (self.path("open"), ("open/sublet:", "mode 0700")),
                              (long, ("too long",))):
            with self.subTest(folder[:40]):
                self.refused(125, (*words, "XDG_RUNTIME_DIR", "a directory of your own", "unset it"), "run", "--area", "64M", "touch", marker,
                             XDG_RUNTIME_DIR=folder)
        self.assertFalse(os.path.exists(marker))

    def test_few_descriptors(self):
        """However few: the limit is named, never what some clean-up met after it."""
        marker = self.path("started")
        started = 0
        for limit in range(6, 33):
            result = subprocess.run([lent.SUBLET, "run", "--area", "64M", "touch", marker], capture_output=True,
                                    text=True, timeout=lent.TIMEOUT_S, check=False, env=self.env,
                                    preexec_fn=lambda n=limit: resource.setrlimit(resource.RLIMIT_NOFILE, (n, n)))
            if result.returncode == 125:
                self.assert_explained(result)
                self.assertRegex(result.stderr, r"RLIMIT_NOFILE.*ulimit -Hn", limit)
                self.assertEqual(started, 0, "and with fewer it was enough")
            started += result.returncode == 0
        self.assertGreater(started, 0)
        self.assertTrue(os.path.exists(marker))

    def test_no_userfaultfd(self):
        lent.needs(os.geteuid() == 0, "needs root to become somebody without rights")
        with open("/proc/sys/vm/unprivileged_userfaultfd", encoding="ascii") as file:
            lent.needs(file.read().strip() == "0", "vm.unprivileged_userfaultfd lets everybody")
        try:
            mode = os.stat("/dev/userfaultfd").st_mode
        except FileNotFoundError:
            mode = 0
        lent.needs(not mode & 0o006, "everybody may open /dev/userfaultfd")
        command = self.command_for_all()
        os.mkdir(self.path("open"))
        os.chmod(self.path("open"), 0o777)
        marker = self.path("open", "started")
        result = self.as_nobody([command, "run", "--area", "64M", "touch", marker], cwd="/")
        self.assertEqual(result.returncode, 125, result)
        self.assert_explained(result)
        self.assertIn("userfaultfd", result.stderr)
        self.assertIn("doctor", result.stderr)
        self.assertFalse(os.path.exists(marker))


if __name__ == "__main__":
    lent.main()
