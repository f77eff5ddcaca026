#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""memcached in lent memory under load: every answer is the value that was last set."""
import os
import random
import socket
import threading

import lent

CONNECTIONS = 4
KEYS = 8000  # of each connection
ROUNDS = 3000


def value(name, generation):
    word = b"%b=%d;" % (name, generation)
    return word * (1 + (generation * 31 + len(name)) % 120 + generation % 7)


class Connection(threading.Thread):
    """Sets and gets keys that nobody else touches, and knows what they must be."""

    def __init__(self, path, number, keys=KEYS, rounds=ROUNDS):
        super().__init__(daemon=True)
        self.keys = keys
        self.rounds = rounds
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(lent.TIMEOUT_S)
        self.socket.connect(path)
        self.file = self.socket.makefile("rb")
        self.number = number
        self.generation = [0] * keys
        self.chance = random.Random(number)
        self.error = None

    def name(self, i):
        return b"key:%d:%d" % (self.number, i)

    def set(self, indices):
        request = []
        for i in indices:
            self.generation[i] += 1
            data = value(self.name(i), self.generation[i])
            request.append(b"set %b 0 0 %d\r\n%b\r\n" % (self.name(i), len(data), data))
        self.socket.sendall(b"".join(request))
        for i in indices:
            line = self.file.readline()
            assert line == b"STORED\r\n", (i, line)

    def check(self, indices):
        indices = list(dict.fromkeys(indices))
        self.socket.sendall(b"get " + b" ".join(self.name(i) for i in indices) + b"\r\n")
        for i in indices:
            want = value(self.name(i), self.generation[i])
            head = self.file.readline()
            assert head == b"VALUE %b 0 %d\r\n" % (self.name(i), len(want)), (self.name(i), head)
            assert self.file.read(len(want) + 2) == want + b"\r\n", f"{self.name(i)} has changed"
        assert self.file.readline() == b"END\r\n"

    def load(self):
        for at in range(0, self.keys, 50):
            self.set(range(at, at + 50))
        for _ in range(self.rounds // 20):
            self.set(self.chance.sample(range(self.keys), 20))
            self.check(self.chance.sample(range(self.keys), 20))
        for at in range(0, self.keys, 50):
            self.check(range(at, at + 50))

    def run(self):
        try:
            self.load()
        except Exception as error:
            self.error = error
        finally:
            self.file.close()
            self.socket.close()


class Memcached(lent.Case):
    def test_load(self):
        path = self.path("socket")
        user = ("-u", "root") if os.geteuid() == 0 else ()
        instance = self.lent(lent.program("memcached"), "-s", path, "-m", "128", "-t", "2", *user,
                             options=("--area", "256M", *lent.CHAOS), name="memcached")
        lent.wait_for(lambda: os.path.exists(path))
        connections = [Connection(path, n) for n in range(CONNECTIONS)]
        for connection in connections:
            connection.start()
        claims = 0
        while any(connection.is_alive() for connection in connections):
            claims += instance.claim("64M", "--dearest", "--count", "2")["summary"]["succeeded"]
        self.assertEqual([c.error for c in connections if c.error], [])
        self.assertGreater(claims, 0)
        self.assert_lent(instance.stat())
        self.assertEqual(instance.end(), 0)


if __name__ == "__main__":
    lent.main()
