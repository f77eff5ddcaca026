#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Programs that fork all the time, with a heap that is moved all the time."""
import os
import signal
import subprocess
import sys

import lent

# A shell has to have something in its heap, and its children have to see it as it was.
BASH = """
declare -a words copies
for i in {1..60000}; do words[i]="word $i ${i}${i}${i}"; done
text=${words[*]}
for i in {1..24}; do copies[i]=$text; done
expected=$(printf %s "$text" | cksum)
for round in {1..12}; do
  [ "$(printf %s "$text" | cksum)" = "$expected" ] || exit 10
  [ "$(echo "${words[round * 7]}" | tr a-z A-Z)" = "WORD $((round * 7)) $((round * 7))$((round * 7))$((round * 7))" ] || exit 11
  (words[1]=changed; text=; [ "${words[2]}" = "word 2 222" ] && exit "$round"); [ $? = "$round" ] || exit 12
  [ "${words[1]}" = "word 1 111" ] || exit 13
  words[round + 1000]="again $round"
  sort <(printf '%s\\n' "${words[@]:1:50}") | sha1sum
  { echo "$round" | cat | cat & } ; wait
done
[ "$(printf %s "$text" | cksum)" = "$expected" ] || exit 14
echo "$expected" "${words[1010]}"
exit 42
"""

# Hardly any heap, and nothing but children: short-lived pipes and descriptors all the time.
PIPES = """
for r in {1..12}; do sort <(printf "%s\\n" a b c) | sha1sum; { echo $r | cat | cat & } ; wait; done
"""

# Children check what they inherited while the parent goes on writing, and the other way round.
PYTHON = """
import multiprocessing, os, signal, sys, zlib
context = multiprocessing.get_context("fork")
blocks = [bytearray(os.urandom(1 << 12)) * 16 for _ in range(400)]

def state():
    return [zlib.crc32(block) for block in blocks]

def child(number, expected, queue):
    for _ in range(3):
        if state() != expected:
            queue.put((number, "the heap has changed"))
            os._exit(1)
    for block in blocks[number::7]:
        block[:] = bytes([number]) * len(block)
    mine = all(block == bytes([number]) * len(block) for block in blocks[number::7])
    fresh = [bytes([number, i % 256]) * 5000 for i in range(200)]
    ok = mine and all(data == bytes([number, i % 256]) * 5000 for i, data in enumerate(fresh))
    queue.put((number, "ok" if ok else "its own writes are lost"))
    queue.close()
    queue.join_thread()
    sys.exit(number)

for round in range(6):
    queue = context.Queue()
    expected = state()
    children = [context.Process(target=child, args=(n, expected, queue)) for n in range(1, 4)]
    for process in children:
        process.start()
    for n, block in enumerate(blocks):
        block[:] = bytes([round, n % 256]) * (len(block) // 2)
    found = sorted(queue.get(timeout=60) for _ in children)
    assert found == [(n, "ok") for n in range(1, 4)], found
    for process in children:
        process.join(60)
    assert [process.exitcode for process in children] == [1, 2, 3]
    assert all(block == bytes([round, n % 256]) * (len(block) // 2) for n, block in enumerate(blocks))
with context.Pool(2) as pool:
    assert pool.map(len, blocks) == [1 << 16] * len(blocks)
pid = os.fork()
if pid == 0:
    os.kill(os.getpid(), signal.SIGKILL)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
print("all is well")
sys.stdout.flush()
os.kill(os.getpid(), signal.SIGTERM)
"""


class Forks(lent.Case):
    def test_bash(self):
        (code, out, err), stat = self.assert_same(lent.program("bash"), "-c", BASH)
        self.assertEqual((code, err), (42, b""), out[-500:])
        self.assertEqual(len(out.splitlines()), 25)
        self.assert_lent(stat)
        self.assertGreater(stat["forks"], 10)

    def test_bash_that_is_looked_at(self):
        """Whoever connects to the control socket leaves the program's descriptors alone."""
        plain = self.run_plain(lent.program("bash"), "-c", PIPES)
        self.assertEqual((plain[0], plain[2], len(plain[1].splitlines())), (0, b"", 24))
        for _ in range(3):
            self.popen(["bash", "-c", f"while :; do {lent.SUBLET} list; done"], stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)
        for attempt in range(3):
            process = self.popen([lent.SUBLET, "run", "--area", "64M", "--", lent.program("bash"), "-c", PIPES],
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            out, err = process.communicate(timeout=lent.TIMEOUT_S)
            self.assertEqual((process.returncode, out, err), plain, attempt)

    def test_python(self):
        (code, out, err), stat = self.assert_same(sys.executable, "-c", PYTHON, env={"PYTHONMALLOC": "malloc"})
        self.assertEqual((code, out, err), (-signal.SIGTERM, b"all is well\n", b""))
        self.assert_lent(stat)
        self.assertGreater(stat["forks"], 3)

    def test_children_that_are_followed(self):
        """Every process of the script has an instance of its own."""
        script = "for n in 1 2 3; do " + sys.executable + " -c 'print(sum(len(str(i) * 9) for i in range(50000)))'; done"
        (code, out, err), _ = self.assert_same(lent.program("bash"), "-c", script + "; exit 3",
                                               options=("--area", "64M", "--follow", *lent.CHAOS))
        self.assertEqual((code, err), (3, b""))
        self.assertEqual(len(set(out.split())), 1)

    def test_a_child_that_stays(self):
        """A claim that needs what it shares is refused, with its name; when it has ended nothing is."""
        script = ("import os, sys; data = [bytes([i % 256]) * 100000 for i in range(600)]; pid = os.fork()\n"
                  "if pid == 0: sys.stdin.read(); os._exit(not all(d == bytes([i % 256]) * 100000"
                  " for i, d in enumerate(data)))\n"
                  "print(pid, flush=True)\n"
                  "for i in range(0, 600, 2): data[i] = bytes([(i + 1) % 256]) * 100000\n"
                  "code = os.waitpid(pid, 0)[1]; print('ended', flush=True)\n"
                  "sys.stdin.read() or os.read(int(sys.argv[1]), 1)\n"
                  "sys.exit(os.waitstatus_to_exitcode(code) or not all(d == bytes([(i + (i % 2 == 0)) % 256]) * 100000"
                  " for i, d in enumerate(data)))\n")
        until, end = os.pipe()
        self.addCleanup(os.close, until)
        instance = self.lent(sys.executable, "-c", script, str(until), options=("--area", "128M", "--normal", "128M",
                                                                                *lent.CHAOS),
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=[until])
        child = instance.process.stdout.readline().strip()
        lent.wait_for(lambda: instance.stat()["children"] == 1, 30)
        self.assertIn(child, instance.claim_fails(4, "--deadline", "50ms", "126M").stderr)
        instance.claim("2M")
        self.assert_lent(instance.stat())
        instance.process.stdin.close()
        self.assertEqual(instance.process.stdout.readline(), "ended\n")
        lent.wait_for(lambda: instance.stat()["children"] == 0 and instance.stat()["area_held_bytes"] == 0, 30)
        instance.claim("126M")
        instance.claim("32M", "--dearest", "--count", "5")
        os.close(end)
        self.assertEqual(instance.process.wait(lent.TIMEOUT_S), 0)

    def test_signals(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT):
            instance = self.start_filler("--area", "64M", *lent.CHAOS, bytes_count=40 * lent.MIB)
            self.assertEqual(instance.end(number), -number)


if __name__ == "__main__":
    lent.main()
