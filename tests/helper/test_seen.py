#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What a program, and others that look at it, see of its helper process: nothing, or what docs/helper.md says."""
import glob
import os
import resource
import signal
import subprocess
import sys

import beside
from beside import lent

NAMESPACES = ("-U", "-m", "-u", "-i", "-n", "-p", "-C", "-T")
WALL = 0x40000000
LIMITED_UID = 54321  # nobody else is this user, so that it has no other processes


class Seen(beside.Case):
    def test_threads_are_the_program_s(self):
        instance = self.client("--chaos", "1ms")
        instance.claim(beside.MOST)
        self.assertEqual(os.listdir(f"/proc/{instance.pid}/task"), [str(instance.pid)])
        self.assertEqual(beside.status(instance.pid, "Threads"), "1")
        ps = subprocess.run(["ps", "-T", "-o", "tid=", "-p", str(instance.pid)], capture_output=True, text=True, check=False)
        if ps.returncode == 0:
            self.assertEqual(ps.stdout.split(), [str(instance.pid)])
        helper, _ = self.helper(instance.pid)
        self.assertNotEqual(beside.status(helper, "PPid"), str(instance.pid))
        self.assertEqual(os.getpgid(helper), helper)
        self.assertEqual(os.getsid(helper), helper)
        for directory in ("cwd", "root"):
            self.assertEqual(os.readlink(f"/proc/{helper}/{directory}"), "/")
        self.assert_ends_well(instance)

    def test_descriptors_are_the_program_s(self):
        """The same as in ordinary memory, at the start, after a fork and after claims; and limits are as they were."""
        script = ("import os, resource\n"
                  "data = [bytes([i % 256]) * 50000 for i in range(100)]\n"
                  "def look(): print(sorted((int(f), os.readlink('/proc/self/fd/' + f).split(':')[0]) for f in"
                  " os.listdir('/proc/self/fd') if os.path.lexists('/proc/self/fd/' + f)))\n"
                  "look()\n"
                  "if os.fork() == 0: look(); os._exit(0)\n"
                  "os.wait(); look()\n"
                  "print([resource.getrlimit(n) for n in range(16)])\n")
        self.assert_same(sys.executable, "-u", "-c", script, env={"PYTHONMALLOC": "malloc"}, options=(*beside.SMALL, *lent.CHAOS))

    def test_every_number_is_the_program_s(self):
        for options in ((), ("--chaos", "1ms")):
            self.assert_same(beside.CLIENT, "descriptors", options=(*beside.SMALL, *options))

    def test_wait(self):
        """No child is there that the program did not make; a reaper's is only seen by who asks for that kind."""
        script = ("import ctypes, os, sys\n"
                  f"WALL = {WALL}\n"
                  "data = [bytes([i % 256]) * 50000 for i in range(100)]\n"
                  "if sys.argv[1] == 'reaper': ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)\n"
                  "def ask(flags):\n"
                  "    try: return os.waitpid(-1, flags | os.WNOHANG)[0]\n"
                  "    except ChildProcessError: return 'none'\n"
                  "print(ask(0), ask(WALL))\n"
                  "if os.fork() == 0: os._exit(3)\n"
                  "print(os.waitstatus_to_exitcode(os.waitpid(-1, WALL)[1]), ask(0), ask(WALL))\n")
        for kind in ("plain", "reaper"):
            self.assert_same(sys.executable, "-c", script, kind, env={"PYTHONMALLOC": "malloc"}, options=beside.SMALL)

    def test_process_one(self):
        """Where the program is the init of its namespace the helper is its child, which only __WALL shows."""
        lent.needs(self.can("unshare", "--pid", "--fork", "true"), "no pid namespaces here")
        script = ("import os\n"
                  f"WALL = {WALL}\n"
                  "assert os.getpid() == 1\n"
                  "data = [bytes([i % 256]) * 50000 for i in range(100)]\n"
                  "def ask(flags):\n"
                  "    try: return os.waitpid(-1, flags | os.WNOHANG)[0]\n"
                  "    except ChildProcessError: return 'none'\n"
                  "print(ask(0), ask(WALL))\n"
                  "for i in range(20):\n"
                  "    if os.fork() == 0: os._exit(i)\n"
                  "    assert os.waitstatus_to_exitcode(os.wait()[1]) == i\n")
        for mount in ((), ("--mount-proc",)):
            result = subprocess.run(["unshare", "--pid", "--fork", *mount, lent.SUBLET, "run", *beside.SMALL, "--", sys.executable,
                                     "-c", script], env={**self.env, "PYTHONMALLOC": "malloc"}, capture_output=True, text=True,
                                    timeout=lent.TIMEOUT_S, check=False)
            self.assertEqual((result.returncode, result.stdout, result.stderr), (0, "none 0\n", ""))

    def test_what_must_be_single_threaded(self):
        """unshare and nsenter, with each namespace that can be had here without sublet."""
        tried = 0
        for flags in [(flag,) for flag in NAMESPACES] + [("-U", "-r", "-m", "-u", "-i", "-n", "-p", "-f"), ("-p", "-f", "--mount-proc")]:
            if not self.can("unshare", *flags, "true"):
                continue
            tried += 1
            result = self.sublet("run", *beside.SMALL, "--", "unshare", *flags, "true")
            self.assertEqual(result.returncode, 0, (flags, result.stderr))
        lent.needs(tried, "no namespaces here")
        # Here its children would be in another namespace, the helper too, as its init: it goes on in ordinary memory.
        if self.can("unshare", "-p", "true"):
            result = self.sublet("run", *beside.SMALL, "--", "unshare", "-p", beside.CLIENT, "sandbox", "resource", "0")
            self.assertEqual((result.returncode, result.stdout), (0, "sandboxed\nright\n"), result.stderr)
            self.assertIn("ordinary memory", result.stderr)
        for flags in (("-m",), ("-u",), ("-i",), ("-n",), ("-p",), ("-C",)):
            with self.popen(["unshare", *flags, *(["-f"] if "-p" in flags else []), "sleep", "600"]) as target:
                if self.can("nsenter", *flags, "-t", str(target.pid), "true"):
                    result = self.sublet("run", *beside.SMALL, "--", "nsenter", *flags, "-t", str(target.pid), "true")
                    self.assertEqual(result.returncode, 0, (flags, result.stderr))
                self.kill_group(target)


class Limits(beside.Case):
    def started_with(self, prepare):
        process = self.popen([lent.SUBLET, "run", *beside.SMALL, "--", beside.CLIENT, "sandbox", "resource", "0"],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec=prepare)
        out, err = process.communicate(timeout=lent.TIMEOUT_S)
        return process.returncode, out, err

    def popen(self, command, preexec=None, **options):
        if preexec is None:
            return super().popen(command, **options)
        process = subprocess.Popen(command, env=self.env, start_new_session=True, preexec_fn=preexec, stdin=subprocess.DEVNULL,
                                   **options)
        self.addCleanup(self.kill_group, process)
        return process

    def assert_runs_or_says(self, result, *words):
        """True: it ran."""
        code, out, err = result
        if code == 0:
            self.assertIn("right", out)
            return True
        self.assertEqual(code, 125, err)
        self.assertEqual(len(err.splitlines()), 1, err)
        for word in words:
            self.assertIn(word, err)
        return False

    def test_too_many_processes_of_the_user(self):
        lent.needs(os.geteuid() == 0, "needs root to become a user without processes")
        os.chmod(self.folder, 0o700)
        os.chown(self.folder, LIMITED_UID, LIMITED_UID)

        def start(count):
            limit = f"ulimit -u {count};" if count else ""
            result = subprocess.run(["setpriv", "--reuid", str(LIMITED_UID), "--regid", str(LIMITED_UID), "--clear-groups",
                                     "--inh-caps", "+sys_ptrace", "--ambient-caps", "+sys_ptrace", "bash", "-c",
                                     f'{limit} exec "$0" "$@"', lent.SUBLET, "run", *beside.SMALL, "--", beside.CLIENT, "sandbox",
                                     "resource", "0"], env=self.env, capture_output=True, text=True, timeout=lent.TIMEOUT_S, check=False)
            return result.returncode, result.stdout, result.stderr
        lent.needs(lent.find("setpriv") and start(None)[0] == 0, "another user cannot run it here")
        ran = [self.assert_runs_or_says(start(count), "RLIMIT_NPROC") for count in (1, 2, 3, 5, 64)]
        self.assertEqual(ran, sorted(ran))
        self.assertEqual((ran[0], ran[-1]), (False, True))
        lent.wait_for(lambda: self.sockets() == [])

    def test_too_many_processes_of_the_group(self):
        folder = next((f for f in glob.glob("/sys/fs/cgroup/pids") + ["/sys/fs/cgroup"] if os.path.exists(f"{f}/cgroup.procs")
                       and os.access(f, os.W_OK)), None)
        lent.needs(folder, "no cgroup can be made here")
        group = os.path.join(folder, f"sublet-test-{os.getpid()}")
        try:
            os.mkdir(group)
        except OSError as error:
            self.skipTest(str(error))
        self.addCleanup(lambda: lent.wait_for(lambda: self.removed(group)))
        lent.needs(os.path.exists(f"{group}/pids.max"), "no pids controller here")

        def join():
            with open(f"{group}/cgroup.procs", "w", encoding="ascii") as file:
                file.write(str(os.getpid()))
        ran = []
        for count in (1, 2, 3, 4, 6, 8, 64):
            with open(f"{group}/pids.max", "w", encoding="ascii") as file:
                file.write(str(count))
            ran.append(self.assert_runs_or_says(self.started_with(join), "pids.max"))
        self.assertEqual(ran, sorted(ran))
        self.assertEqual((ran[0], ran[-1]), (False, True))

    def removed(self, group):
        try:
            os.rmdir(group)
        except OSError:
            return False
        return True


class Dump(beside.Case):
    def dump(self, command):
        """The core files of a program that aborts when it is told to."""
        folder = self.path("cores")
        os.makedirs(folder, exist_ok=True)

        def unlimited():
            resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY,) * 2)
        process = subprocess.Popen(command, cwd=folder, env=self.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                   start_new_session=True, preexec_fn=unlimited)
        self.addCleanup(self.kill_group, process)
        self.assertEqual(process.stdout.readline(), "full\n")
        if command[0] == lent.SUBLET:
            for _ in range(3):
                self.sublet("claim", "-n", str(process.pid), beside.MOST)
        process.stdin.write("abort\n")
        process.stdin.flush()
        self.assertEqual(process.wait(lent.TIMEOUT_S), -signal.SIGABRT)
        return glob.glob(os.path.join(folder, "core*"))

    def test_it_has_the_program_s_memory_and_no_more(self):
        """One file, of the program; a debugger reads the right bytes in it; the helper has none."""
        with open("/proc/sys/kernel/core_pattern", encoding="ascii") as file:
            lent.needs(file.read().strip() in ("core", "core.%p"), "core dumps go elsewhere")
        command = [beside.CLIENT, "hold", str(beside.HEAP)]
        plain = self.dump(command)
        lent.needs(plain, "no core was dumped")
        plain_bytes = os.stat(plain[0]).st_blocks * 512
        os.unlink(plain[0])
        for chaos in ((), lent.CHAOS):
            cores = self.dump([lent.SUBLET, "run", *beside.SMALL, *chaos, "--", *command])
            self.assertEqual(len(cores), 1)
            print(f"  {plain_bytes / lent.MIB:.1f} MiB in ordinary memory, {os.stat(cores[0]).st_blocks / 2048:.1f} MiB lent, "
                  f"{os.stat(cores[0]).st_size / lent.MIB:.1f} MiB with holes")
            self.assertLess(os.stat(cores[0]).st_blocks * 512, plain_bytes + 16 * lent.MIB)
            gdb = lent.find("gdb")
            if gdb:
                out = subprocess.run([gdb, "-batch", "-nx", "-ex", "print held_bytes", "-ex", "dump binary memory held.bin held"
                                      " held+held_bytes", beside.CLIENT, cores[0]], cwd=self.folder, capture_output=True, text=True,
                                     timeout=lent.TIMEOUT_S, check=False)
                with open(self.path("held.bin"), "rb") as file:
                    self.assertEqual(file.read(), expected(beside.HEAP), out.stdout + out.stderr)
            os.unlink(cores[0])


def expected(count):
    """As in client.c."""
    page = bytearray(range(256)) * 16
    return b"".join(bytes((byte + 7 * at) & 255 for byte in page[:256]) * 16 for at in range(count // 4096))


if __name__ == "__main__":
    lent.main()
