#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What reaches lent memory beside the program itself: children, descriptors, code, debuggers, core dumps, signals."""
import ctypes
import os
import signal
import subprocess
import sys

import secure
from secure import lent

# What a child sees of its parent's lent memory; each line is "KIND shared N descriptors N". The page that says that the
# child lives (sublet-fork) holds nothing but numbers of processes.
CHILDREN = """
import os
held = [bytes([i % 256]) * 50000 for i in range(200)]
def look(kind):
    shared = [l for l in open('/proc/self/maps') if l.split()[1][3] == 's' and ('deleted' in l or 'memfd' in l or 'anon_inode' in l)
              and 'memfd:sublet-fork' not in l]
    names = [os.readlink('/proc/self/fd/' + fd) for fd in os.listdir('/proc/self/fd') if os.path.lexists('/proc/self/fd/' + fd)]
    ours = [n for n in names if 'memfd' in n or 'userfaultfd' in n or 'deleted' in n or 'socket' in n or 'pagemap' in n]
    return f"{kind} shared {len(shared)} descriptors {len(ours)} {shared + ours}"
read, write = os.pipe()
if os.fork() == 0:
    os.write(write, look('fork').encode() + b'\\n')
    os._exit(0)
os.wait()
print(os.read(read, 9999).decode(), end='')
"""

EXECUTED = """
import os, subprocess, sys
held = [bytes([i % 256]) * 50000 for i in range(200)]
script = ("import os; shared = [l for l in open('/proc/self/maps') if 'memfd' in l or 'anon_inode' in l];"
          "names = [os.readlink('/proc/self/fd/' + fd) for fd in os.listdir('/proc/self/fd') if os.path.lexists('/proc/self/fd/' + fd)];"
          "print(len(shared), sorted(n for n in names if 'memfd' in n or 'userfaultfd' in n or 'deleted' in n or 'socket' in n or 'pagemap' in n))")
plain = dict(os.environ, LD_PRELOAD='')
for close in (True, False):
    subprocess.run([sys.executable, '-c', script], close_fds=close, env=plain, check=True)
pid = os.posix_spawn(sys.executable, [sys.executable, '-c', script], plain)
assert os.waitpid(pid, 0)[1] == 0
os.execve(sys.executable, [sys.executable, '-c', script], plain)
"""

SECRET = b"claimed by somebody else, and none of the program's business" * 3


class Children(secure.Case):
    def test_a_child_of_fork(self):
        """S8, S10: the linear map is not there, nor a descriptor that leads to it."""
        for backing in secure.BACKINGS:
            with self.subTest(backing):
                out = self.python(CHILDREN, "--backing", backing, *lent.CHAOS)
                self.assertIn("fork shared 0 descriptors 0 []", out)

    def test_what_was_executed(self):
        """S8, S11: by fork, vfork, posix_spawn and in the program's own place."""
        for backing in secure.BACKINGS:
            with self.subTest(backing):
                out = self.python(EXECUTED, "--backing", backing, *lent.CHAOS)
                self.assertEqual(out.splitlines(), ["0 []"] * 4)

    def test_a_child_sees_a_snapshot_only(self):
        """S9: what comes into the frames after the fork, a claim's bytes say, is not seen by the child."""
        script = ("import os, sys\n"
                  "data = [bytes([i % 251]) * 60000 for i in range(300)]\n"
                  "if os.fork() == 0:\n"
                  "    sys.stdin.readline()\n"
                  "    ok = all(d == bytes([i % 251]) * 60000 for i, d in enumerate(data))\n"
                  "    where = []\n"
                  "    mem = open('/proc/self/mem', 'rb', 0)\n"
                  "    for line in open('/proc/self/maps'):\n"
                  "        span, mode = line.split()[:2]\n"
                  "        start, end = (int(w, 16) for w in span.split('-'))\n"
                  "        if mode[0] != 'r' or not ('memfd' in line or 'deleted' in line): continue\n"
                  "        mem.seek(start)\n"
                  "        if mem.read(end - start).count(b'none of the program') > 100: where.append(line)\n"
                  "    os._exit(0 if ok and not where else 1)\n"
                  "print('forked', flush=True)\n"
                  "sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))\n")
        instance = self.lent(sys.executable, "-c", script, options=("--area", "64M", "--normal", "64M", "--backing", "memfd"),
                             env={"PYTHONMALLOC": "malloc"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.assertEqual(instance.process.stdout.readline(), "forked\n")
        with Driver(self, instance.pid) as driver:
            for _ in range(4):
                driver.claim(4 * lent.MIB, SECRET)
            instance.process.stdin.write("look\n")
            instance.process.stdin.flush()
            self.assertEqual(instance.process.wait(lent.TIMEOUT_S), 0)


class Reach(secure.Case):
    def test_every_descriptor_is_close_on_exec(self):
        """S11, S20: the program has none at all, and those of its helper are."""
        for backing in secure.BACKINGS:
            instance = self.instance_of("--backing", backing, *lent.CHAOS, name=backing)
            instance.claim("4M")
            self.assertEqual([fd for fd in os.listdir(f"/proc/{instance.pid}/fd") if int(fd) > 2], [])
            folder = f"/proc/{lent.helpers(instance.pid)[0]}"
            ours = [fd for fd in os.listdir(f"{folder}/fd") if int(fd) != 2]  # which is the program's standard error
            for fd in ours:
                with open(f"{folder}/fdinfo/{fd}", encoding="ascii") as file:
                    flags = next(int(line.split()[1], 8) for line in file if line.startswith("flags:"))
                self.assertTrue(flags & os.O_CLOEXEC, os.readlink(f"{folder}/fd/{fd}"))
            self.assertGreater(len(ours), 4)  # a backing, two userfaultfds, a socket at least
            self.end_filler(instance)

    def test_nothing_is_executable(self):
        """S12: neither the linear map nor a lent range; the program's own code is all there is."""
        for backing in secure.BACKINGS:
            instance = self.instance_of("--backing", backing, *lent.CHAOS, name=backing)
            instance.claim("4M", "--dearest")
            linear, others = secure.arena_mappings(instance.pid)
            self.assertGreaterEqual(linear.bytes, 96 * lent.MIB)
            self.assertGreater(len(others), 1)
            self.assertEqual([m for m in others if "x" in m.permissions], [])
            for mapping in secure.mappings(instance.pid):
                if "x" in mapping.permissions:
                    self.assertNotIn("w", mapping.permissions, mapping)
                    self.assertTrue(mapping.name.startswith(("/", "[v")), mapping)
            self.end_filler(instance)

    def test_the_linear_map_is_not_dumped_nor_inherited(self):
        """S8, S18: by the kernel's own word for it."""
        for backing in secure.BACKINGS:
            instance = self.instance_of("--backing", backing, name=backing)
            linear, others = secure.arena_mappings(instance.pid)
            self.assertIn("dc", linear.flags)
            self.assertIn("dd", linear.flags)
            self.assertTrue(all("dd" not in m.flags for m in others if m.start != linear.start), "the heap is the program's")
            self.end_filler(instance)

    def test_a_core_dump(self):
        """S18: the heap is in it, as ever; what is claimed is not."""
        with open("/proc/sys/kernel/core_pattern", encoding="ascii") as file:
            lent.needs(file.read().strip() in ("core", "core.%p"), "core dumps go elsewhere")
        script = ("import os, resource, sys\n"
                  "resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY,) * 2)\n"
                  "mine = [(b'my own ' + str(i).encode()) * 9000 for i in range(200)]\n"
                  "print('full', flush=True)\n"
                  "sys.stdin.readline()\n"
                  "os.abort()\n")
        folder = self.path("core-folder")
        os.mkdir(folder)
        process = subprocess.Popen([lent.SUBLET, "run", "-n", "dumped", "--area", "64M", "--normal", "32M", "--", sys.executable, "-c",
                                    script], cwd=folder, env={**self.env, "PYTHONMALLOC": "malloc"}, stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, text=True, start_new_session=True)
        self.addCleanup(self.kill_group, process)
        self.assertEqual(process.stdout.readline(), "full\n")
        with Driver(self, process.pid) as driver:
            driver.claim(16 * lent.MIB, SECRET)
            process.stdin.write("now\n")
            process.stdin.flush()
            self.assertEqual(process.wait(lent.TIMEOUT_S), -signal.SIGABRT)
        cores = [name for name in os.listdir(folder) if name.startswith("core")]
        lent.needs(cores, "no core was dumped")
        with open(os.path.join(folder, cores[0]), "rb") as file:
            core = file.read()
        self.assertTrue(b"my own 177my own 177" in core, "the heap is not in the core")
        self.assertFalse(SECRET[:30] in core, "claimed memory is in the core")

    def test_a_debugger_is_let_in_or_not_as_ever(self):
        """S17: whether it may be dumped and traced, its privileges and those of its files are as without sublet."""
        script = ("import ctypes, os\n"
                  "libc = ctypes.CDLL(None)\n"
                  "print(libc.prctl(3, 0, 0, 0, 0))\n"
                  "print([l for l in open('/proc/self/status') if l.split(':')[0] in ('Uid', 'Gid', 'Groups', 'CapInh', 'CapPrm',"
                  " 'CapEff', 'CapBnd', 'CapAmb', 'TracerPid')])\n"
                  "print(os.getpgrp() == os.getpid(), os.umask(0))\n")
        command = (sys.executable, "-c", script)
        plain = self.run_plain(*command)
        lent_, _ = self.run_lent(*command, options=("--area", "64M"), env={"PYTHONMALLOC": "malloc"})
        self.assertEqual(lent_, plain)

    def test_another_user_reads_nothing_by_proc(self):
        """S17: neither memory, nor descriptors, nor where mappings are."""
        lent.needs(os.geteuid() == 0, "needs root to become somebody else")
        instance = self.instance_of()

        def look():
            opened = []
            for name in ("mem", "maps", "pagemap", "environ", "fd"):
                try:
                    path = f"/proc/{instance.pid}/{name}"
                    (os.listdir if name == "fd" else lambda p: os.close(os.open(p, os.O_RDONLY)))(path)
                    opened.append(name)
                except PermissionError:
                    pass
            return 1 if opened else 0
        self.assertEqual(secure.as_user(look), 0)
        self.end_filler(instance)

    def test_signals_stay_the_program_s(self):
        """S21: no thread of ours is in the program, and those of the helper take none."""
        instance = self.instance_of(*lent.CHAOS)
        instance.claim("16M", "--dearest")
        names = [lent.comm(f"{instance.pid}/task/{tid}") for tid in os.listdir(f"/proc/{instance.pid}/task")]
        self.assertEqual([name for name in names if name.startswith("sublet")], [])
        helper = lent.helpers(instance.pid)[0]
        tasks = os.listdir(f"/proc/{helper}/task")
        for tid in tasks:
            with open(f"/proc/{helper}/task/{tid}/status", encoding="ascii") as file:
                blocked = next(int(line.split()[1], 16) for line in file if line.startswith("SigBlk:"))
            for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
                self.assertTrue(blocked >> (number - 1) & 1 or 32 <= number < 34, (tid, number))
        self.assertGreater(len(tasks), 1)
        self.end_filler(instance)


class Policy(secure.Case):
    def test_it_is_inherited_and_stays(self):
        """S23: by a child, by what is executed, and whatever filter the program adds; no privilege comes with it."""
        script = ("import ctypes, os, subprocess, sys\n"
                  "def refused():\n"
                  "    try:\n"
                  "        os.open('/dev/null', os.O_RDONLY | os.O_DIRECT)\n"
                  "    except OSError as error:\n"
                  "        return error.errno == 22\n"
                  "def mode(): return [l.split()[1] for l in open('/proc/self/status') if l.startswith(('Seccomp:', 'NoNewPrivs:'))]\n"
                  "if len(sys.argv) > 1:\n"
                  "    print('executed', refused(), mode()[1], flush=True)\n"
                  "    sys.exit()\n"
                  "libc = ctypes.CDLL(None)\n"
                  "allow_all = (ctypes.c_uint16 * 4)(6, 0, 0, 0x7fff)\n"  # BPF_RET, SECCOMP_RET_ALLOW
                  "class Program(ctypes.Structure): _fields_ = [('len', ctypes.c_uint16), ('filter', ctypes.c_void_p)]\n"
                  "program = Program(1, ctypes.cast(allow_all, ctypes.c_void_p))\n"
                  "libc.prctl(22, 2, ctypes.byref(program), 0, 0)\n"
                  "print('itself', refused(), mode()[1], flush=True)\n"
                  "libc.prctl(22, 0, 0, 0, 0)\n"
                  "if os.fork() == 0:\n"
                  "    print('forked', refused(), mode()[1], flush=True)\n"
                  "    os._exit(0)\n"
                  "os.wait()\n"
                  "subprocess.run([sys.executable, __file__, 'again'], check=True)\n"
                  "os.execv(sys.executable, [sys.executable, __file__, 'again'])\n")
        path = self.path("script.py")
        with open(path, "w", encoding="ascii") as file:
            file.write(script)
        (code, out, err), _ = self.run_lent(sys.executable, path, options=("--area", "16M", "--normal", "16M"))
        self.assertEqual((code, out.decode().splitlines()), (0, ["itself True 2", "forked True 2", "executed True 2",
                                                                 "executed True 2"]), err)

    def test_descriptors_are_shielded(self):
        """S20: a program that closes all it finds, three times, in every way: the instance goes on."""
        script = ("import ctypes, os, sys\n"
                  "libc = ctypes.CDLL(None)\n"
                  "data = [bytes([i % 256]) * 50000 for i in range(300)]\n"
                  "for fd in range(3, 4200):\n"
                  "    libc.close(fd)\n"
                  "    libc.dup2(0, fd) if fd > 4000 else None\n"
                  "libc.close_range(3, 0xffffffff, 0)\n"
                  "libc.closefrom(3)\n"
                  "print('closed', flush=True)\n"
                  "sys.stdin.readline()\n"
                  "sys.exit(any(d != bytes([i % 256]) * 50000 for i, d in enumerate(data)))\n")
        instance = self.lent(sys.executable, "-c", script, options=("--area", "64M", "--normal", "64M", *lent.CHAOS),
                             env={"PYTHONMALLOC": "malloc"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.assertEqual(instance.process.stdout.readline(), "closed\n")
        moved = instance.stat()["moves"]
        instance.claim("32M", "--dearest", "--count", "5")
        self.assertGreater(instance.stat()["moves"], moved)
        instance.process.communicate("look\n", timeout=lent.TIMEOUT_S)
        self.assertEqual(instance.process.returncode, 0)


class Driver:
    """Claims by the command, and writes through the descriptor that a driver may ask for."""

    def __init__(self, test, pid):
        self.test = test
        self.pid = pid
        self.library = ctypes.CDLL(os.path.join(lent.BUILD, "libsublet.so.0"))
        self.client = ctypes.c_void_p()

    def __enter__(self):
        before = os.environ.get("XDG_RUNTIME_DIR")
        os.environ["XDG_RUNTIME_DIR"] = self.test.folder
        ctypes.CDLL(None).setenv(b"XDG_RUNTIME_DIR", self.test.folder.encode(), 1)
        error = self.library.sublet_client_connect(str(self.pid).encode(), ctypes.byref(self.client))
        if before is not None:
            os.environ["XDG_RUNTIME_DIR"] = before
        self.test.assertEqual(error, 0)
        fd = ctypes.c_int(-1)
        self.test.assertEqual(self.library.sublet_client_fd(self.client, ctypes.byref(fd)), 0)
        self.fd = fd.value
        info = (ctypes.c_uint64 * 10)(80)  # its sixth word: where the area begins
        self.test.assertEqual(self.library.sublet_client_info(self.client, info), 0)
        self.area_at = info[5]
        return self

    def __exit__(self, *_):
        self.library.sublet_client_close(self.client)
        os.close(self.fd)

    def claim(self, size, content):
        """A window full of `content`. The claim's id, address, size and offset are its first four words."""
        claim = (ctypes.c_uint64 * 512)()
        error = self.library.sublet_client_claim(self.client, ctypes.c_uint64(size), None, claim)
        self.test.assertEqual(error, 0)
        _, _, got, offset = claim[:4]
        self.test.assertEqual(got, size)
        os.pwrite(self.fd, (content * (size // len(content) + 1))[:size], self.area_at + offset)


if __name__ == "__main__":
    lent.main()
