# SPDX-License-Identifier: MIT
"""Redis servers, lent and plain, and a client that knows what every key must be.

Keys k:000000... hold a value that follows from the key and a generation. Generation 0 is the first
fill. Then one connection overwrites them one after the other: write number n (from 1) goes to a key
that follows from n, with generation n. What Redis has after the first n writes, and nothing else, is
a state; a snapshot must be one of those states, or bytes leaked between the parent and its child.
"""
import os
import socket
import threading

import lent

BATCH = 1000


def key(i):
    return b"k:%06d" % i


def value(i, generation):
    word = b"%08x%08x" % ((i * 2654435761 + generation * 40503) & 0xffffffff, generation)
    return word * (1 + (i + generation) % 8)


def target(n, keys):
    """The key that write number n goes to."""
    return n * 7919 % keys


def set_command(i, generation):
    v = value(i, generation)
    return b"*3\r\n$3\r\nSET\r\n$8\r\n%b\r\n$%d\r\n%b\r\n" % (key(i), len(v), v)


class Client:
    """As much of the protocol as is needed, and pipelines of it."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(lent.TIMEOUT_S)
        try:
            self.socket.connect(path)
        except OSError:
            self.socket.close()
            raise
        self.file = self.socket.makefile("rb")

    def close(self):
        self.file.close()
        self.socket.close()

    def reply(self):
        line = self.file.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b"$":
            size = int(rest)
            return None if size < 0 else self.file.read(size + 2)[:-2]
        if kind == b"*":
            return [self.reply() for _ in range(int(rest))]
        if kind == b":":
            return int(rest)
        if kind == b"+":
            return rest
        raise AssertionError(f"redis says {line}")

    def send(self, *words):
        words = [w if isinstance(w, bytes) else str(w).encode() for w in words]
        self.socket.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in words))

    def __call__(self, *words):
        self.send(*words)
        return self.reply()

    def info(self, section):
        lines = self("INFO", section).decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def sets(self, commands):
        """Send SET commands (bytes) in batches, and expect an OK for each."""
        for at in range(0, len(commands), BATCH):
            batch = commands[at:at + BATCH]
            self.socket.sendall(b"".join(batch))
            want = b"+OK\r\n" * len(batch)
            if self.file.read(len(want)) != want:
                raise AssertionError("redis refused a SET")

    def fill(self, keys):
        for at in range(0, keys, 20 * BATCH):
            self.sets([set_command(i, 0) for i in range(at, min(at + 20 * BATCH, keys))])

    def write(self, first, last, keys):
        """Writes number first to last, the latter not included."""
        self.sets([set_command(target(n, keys), n) for n in range(first, last)])


class Writer(threading.Thread):
    """Goes on writing until stopped; `done` writes were answered, and no others were sent."""

    def __init__(self, path, keys, first=1):
        super().__init__(daemon=True)
        self.client = Client(path)
        self.keys = keys
        self.done = first - 1
        self.ended = threading.Event()
        self.error = None

    def run(self):
        try:
            while not self.ended.is_set():
                self.client.write(self.done + 1, self.done + 51, self.keys)
                self.done += 50
                self.ended.wait(0.001)
        except Exception as error:
            self.error = error

    def stop(self):
        """The number of writes."""
        self.ended.set()
        self.join(lent.TIMEOUT_S)
        self.client.close()
        if self.error:
            raise self.error
        return self.done


class Case(lent.Case):
    def server(self, folder, *options, run=None, name="redis"):
        """A server in a folder of its own: the instance (None where run is None), a client of it."""
        directory = self.path(folder)
        os.makedirs(directory, exist_ok=True)
        path = os.path.join(directory, "socket")
        command = [lent.program("redis-server"), "--port", "0", "--unixsocket", path, "--dir", directory, "--save", "",
                   "--enable-debug-command", "yes", "--logfile", os.path.join(directory, "log"), *options]
        instance = None
        if run is None:
            process = self.popen(command)
        else:
            instance = self.lent(*command, options=run, name=name)
            process = instance.process
        return instance, self.client(path, process)

    def client(self, path, process=None):
        def answers():
            if process and process.poll() is not None:
                raise AssertionError(f"redis-server has ended: {process.returncode}")
            try:
                client = Client(path)
            except OSError:
                return None
            client.send("PING")
            line = client.file.readline()
            if line == b"+PONG\r\n":
                return client
            client.close()  # it is loading its data
            return None
        client = lent.wait_for(answers, pause=0.05)
        self.addCleanup(client.close)
        return client

    def generations(self, client, keys):
        """What generation each key is of; each value is checked for being the one of its generation."""
        found = []
        for at in range(0, keys, BATCH):
            indices = range(at, min(at + BATCH, keys))
            for i, v in zip(indices, client("MGET", *[key(i) for i in indices])):
                self.assertIsNotNone(v, f"{key(i)} is lost")
                generation = int(v[8:16], 16)
                self.assertEqual(v, value(i, generation), key(i))
                found.append(generation)
        return found

    def assert_state(self, client, keys, at_most):
        """All keys are there, and they are what they were after some number of writes: that number."""
        self.assertEqual(client("DBSIZE"), keys)
        found = self.generations(client, keys)
        writes = max(found)
        self.assertLessEqual(writes, at_most)
        want = [0] * keys
        for n in range(1, writes + 1):
            want[target(n, keys)] = n
        wrong = [(i, want[i], found[i]) for i in range(keys) if want[i] != found[i]]
        self.assertEqual(wrong[:5], [], f"{len(wrong)} keys are not as after {writes} writes: key, want, found")
        return writes

    def assert_released(self, instance):
        """The children are gone: nothing is held any more, the largest claims succeed again."""
        lent.wait_for(lambda: instance.stat()["children"] == 0 and instance.stat()["area_held_bytes"] == 0, 60)
        claims = instance.claim("64M", "--dearest", "--count", "5")
        self.assertEqual(claims["summary"]["succeeded"], 5)
