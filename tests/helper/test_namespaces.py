#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Programs that fork, in containers of several kinds: a claim names who shares the memory, nobody dead or of another
namespace, and succeeds when the last of them has gone. What tells the engine is the kernel, not /proc."""
import os
import re
import subprocess
import sys

import beside
from beside import lent

# For each line on stdin: forks of a kind, whose children say their pid in a line. "end" ends them, "check" looks at the bytes.
PROGRAM = r"""
import ctypes, os, sys
data = [bytes([i % 251]) * 50000 for i in range(400)]
def right(): return all(d == bytes([i % 251]) * 50000 for i, d in enumerate(data))
def wait(life):
    os.close(life[1])
    os.read(life[0], 1)
    os._exit(0 if right() else 1)
def child(prepare=None, deep=False, seen=None):
    life = os.pipe()
    told = os.pipe()
    if os.fork() == 0:
        try:
            if deep and os.fork(): os._exit(0)
            if prepare: prepare()
            os.write(told[1], str(os.getpid()).encode())
        except OSError:
            os.write(told[1], b'cannot')
            os._exit(0)
        wait(life)
    pid = os.read(told[0], 99).decode()
    os.close(life[0]); os.close(told[0]); os.close(told[1])
    return pid, life[1]
def chroot():
    os.chroot('/dev'); os.chdir('/')
def user(): os.setgid(65534); os.setuid(65534)
libc = ctypes.CDLL(None, use_errno=True)
def unshare(flags):
    if libc.unshare(flags): raise OSError(ctypes.get_errno(), 'unshare')
kinds = {'child': {}, 'grandchild': {'deep': True}, 'chroot': {'prepare': chroot}, 'user': {'prepare': user},
         'namespaces': {'prepare': lambda: unshare(0x10020000)}}
print('full', flush=True)
lives = []
for line in sys.stdin:
    word = line.strip()
    if word == 'end':
        for life in lives: os.close(life)
        lives = []
        print('ended', flush=True)
    elif word == 'check':
        print('right' if right() else 'wrong', flush=True)
    elif word == 'many':
        for _ in range(20):
            if os.fork() == 0: os._exit(0)
            os.wait()
        print('many', flush=True)
    else:
        pid, life = child(**kinds[word])
        lives.append(life)
        print(pid, flush=True)
    try:
        while os.waitpid(-1, os.WNOHANG)[0]: pass
    except ChildProcessError: pass
"""
BRIDGE = os.path.join(lent.BUILD, "libsublet-bridge.so")  # not found beside the command without /proc
KINDS = ("child", "grandchild", "chroot", "user", "namespaces")
MOUNT_HIDDEN = "mount -t proc -o hidepid=2 proc /proc && exec \"$0\" \"$@\""
UNMOUNT = "umount -l /proc && exec \"$0\" \"$@\""


class Namespaces(beside.Case):
    def start(self, *around):
        process = self.popen([*around, lent.SUBLET, "run", "-n", "forker", *beside.SMALL, "--", sys.executable, "-c", PROGRAM],
                             env={"PYTHONMALLOC": "malloc", "SUBLET_BRIDGE": BRIDGE}, stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True, bufsize=1)
        line = process.stdout.readline()
        self.assertEqual(line, "full\n", f"{around}: ended with {process.poll()}")
        return process

    def ask(self, process, word):  # pylint: disable=arguments-renamed
        process.stdin.write(word + "\n")
        process.stdin.flush()
        return process.stdout.readline().strip()

    def claim(self):
        """None: it succeeded. Else whom it names: the numbers of processes."""
        result = self.sublet("claim", "-n", "forker", "--deadline", "100ms", beside.MOST)
        if result.returncode == 0:
            return None
        return re.findall(r"\(pid (\d+)\)", result.stderr)

    def look(self, kind, *around):
        """False: such a child cannot be made here. Each kind has a program of its own: memory that was moved out of the
        area stays outside."""
        process = self.start(*around)
        pid = self.ask(process, kind)
        if pid != "cannot":
            # At its first look the engine may have no name for it; then it has that name, and no other.
            named = lent.wait_for(self.claim_names)
            self.assertEqual(set(named), {pid}, kind)
        self.assertEqual(self.ask(process, "end"), "ended")
        lent.wait_for(lambda: self.claim() is None)
        self.end(process)
        return pid != "cannot"

    def end(self, process):
        self.assertEqual(self.ask(process, "check"), "right")
        process.communicate(timeout=lent.TIMEOUT_S)
        self.assertEqual(process.returncode, 0)

    def claim_names(self):
        named = self.claim()
        self.assertIsNotNone(named, "a claim of memory that a child shares")
        return named

    def all_kinds(self, *around):
        tried = [kind for kind in KINDS if self.look(kind, *around)]
        self.assertEqual(tried[:2], ["child", "grandchild"])
        process = self.start(*around)
        for _ in range(3):
            self.assertEqual(self.ask(process, "many"), "many")
            lent.wait_for(lambda: self.claim() is None)
        self.end(process)

    def around(self, *command):
        lent.needs(self.can(*command, "true"), f"not possible here: {command}")
        self.all_kinds(*command)

    def test_plain(self):
        self.all_kinds()

    def test_pid_namespace_with_the_outer_proc(self):
        self.around("unshare", "--pid", "--fork", "--kill-child")

    def test_pid_namespace_with_its_own_proc(self):
        self.around("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")

    def test_user_namespace(self):
        self.around("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child")

    def test_every_namespace(self):
        self.around("unshare", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--fork", "--kill-child", "--mount-proc")

    def test_hidden_processes(self):
        self.around("unshare", "--mount", "sh", "-c", MOUNT_HIDDEN)

    def test_no_proc(self):
        self.around("unshare", "--mount", "sh", "-c", UNMOUNT)

    def test_bubblewrap(self):
        bwrap = lent.program("bwrap")
        for proc in ((), ("--proc", "/proc"), ("--tmpfs", "/proc")):
            command = (bwrap, "--bind", "/", "/", "--dev", "/dev", *proc, "--unshare-pid", "--die-with-parent")
            if self.can(*command, "true"):
                with self.subTest(proc):
                    self.all_kinds(*command)


class ChildrenElsewhere(beside.Case):
    def test_a_child_that_is_number_one_elsewhere(self):
        """It is in the way, and is not called by a number that is init's here."""
        lent.needs(self.can("unshare", "--pid", "--fork", "true"), "no pid namespaces here")
        script = ("import ctypes, os, sys\n"
                  "data = [bytes([i % 251]) * 50000 for i in range(400)]\n"
                  "assert ctypes.CDLL(None).unshare(0x20000000) == 0\n"
                  "life = os.pipe()\n"
                  "if os.fork() == 0:\n"
                  "    os.close(life[1])\n"
                  "    assert os.getpid() == 1\n"
                  "    if os.fork() == 0:\n"
                  "        os.read(life[0], 1)\n"
                  "        os._exit(0)\n"
                  "    os.wait()\n"
                  "    os._exit(0)\n"
                  "print('forked', flush=True)\n"
                  "sys.stdin.readline()\n"
                  "os.close(life[1])\n"
                  "os.wait()\n"
                  "print('alone', flush=True)\n"
                  "sys.stdin.readline()\n"
                  "sys.exit(any(d != bytes([i % 251]) * 50000 for i, d in enumerate(data)))\n")
        instance = self.lent(sys.executable, "-c", script, options=beside.SMALL, env={"PYTHONMALLOC": "malloc"},
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.assertEqual(instance.process.stdout.readline(), "forked\n")
        for _ in range(5):
            result = self.sublet("claim", "-n", str(instance.pid), "--deadline", "100ms", beside.MOST)
            self.assertNotEqual(result.returncode, 0)
            self.assertIn("a child of fork()", result.stderr)
            self.assertNotIn("(pid", result.stderr)
        self.assertEqual(self.say(instance), "alone\n")
        lent.wait_for(lambda: self.sublet("claim", "-n", str(instance.pid), beside.MOST).returncode == 0)
        instance.process.communicate("\n", timeout=lent.TIMEOUT_S)
        self.assertEqual(instance.process.returncode, 0)

    def say(self, instance):
        instance.process.stdin.write("\n")
        instance.process.stdin.flush()
        return instance.process.stdout.readline()


if __name__ == "__main__":
    lent.main()
