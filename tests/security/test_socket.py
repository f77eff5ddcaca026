#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Who may control an instance: the directory of sockets, other users, and what may come over a socket."""
import array
import os
import random
import shutil
import socket
import stat
import struct
import subprocess
import time

import secure
from secure import NOBODY, lent

MAGIC, VERSION = b"SBLT", 2
HELLO, INFO, FD, CLAIM, RELEASE, STATS, PAGEBLOCKS, MEMCPY, PINS, BOS = range(1, 11)
ERROR = 255
HEADER = struct.Struct("<4sHHIi")
CLAIM_REQUEST = struct.Struct("<QQQII32s")
SEED = int(os.environ.get("SEED", int.from_bytes(os.urandom(4), "little")))
FUZZ_S = 2


def message(op, payload=b"", version=VERSION, size=None):
    return HEADER.pack(MAGIC, version, op, len(payload) if size is None else size, 0) + payload


class Peer:
    """A connection below the client library."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(30)
        self.socket.connect(path)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def exact(self, size):
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            if not more:
                return None
            data += more
        return data

    def ask(self, op, payload=b""):
        """(op, error, payload, descriptors) of the reply; None: the connection is over."""
        self.socket.sendall(message(op, payload))
        data, ancillary, _, _ = self.socket.recvmsg(HEADER.size, socket.CMSG_SPACE(4 * 8))
        if not data:
            return None
        _, _, answer, size, error = HEADER.unpack(data)
        fds = array.array("i")
        for _, _, content in ancillary:
            fds.frombytes(content)
        return answer, error, self.exact(size) if size else b"", list(fds)


class Directory(secure.Case):
    def start(self, **env):
        """Start a program in a world of its own; whatever comes of it."""
        return subprocess.run([lent.SUBLET, "run", "--area", "16M", "--normal", "16M", "--", "bash", "-c",
                               'ls -lnd "$XDG_RUNTIME_DIR/sublet"'], capture_output=True, text=True, timeout=60, check=False,
                              env={**self.env, **env}, stdin=subprocess.DEVNULL)

    def refused(self, directory):
        """The instance is not to be reached, says so once, and its program runs all the same."""
        result = self.start(XDG_RUNTIME_DIR=directory)
        self.assertIn("sublet: ", result.stderr)
        for command in (("list",), ("stat",), ("claim", "1M")):
            self.assertNotEqual(self.sublet(*command, XDG_RUNTIME_DIR=directory).returncode, 0)

    def test_it_is_made_private(self):
        """S1: mode 0700 whatever the umask, and the sockets in it are nobody else's."""
        for mask in ("000", "022", "077", "777"):
            shutil.rmtree(self.path("sublet"), ignore_errors=True)
            process = self.popen(["bash", "-c", f"umask {mask}; exec \"$@\"", "-", lent.SUBLET, "run", "-n", "masked", "--area", "16M",
                                  "--normal", "16M", "--", "sleep", "60"])
            lent.wait_for(lambda: os.path.isdir(self.path("sublet")), 20)
            found = os.stat(self.path("sublet"))
            if mask == "777":  # nothing can be made in it, which is private too
                self.assertEqual(stat.S_IMODE(found.st_mode) & 0o077, 0)
            else:
                lent.wait_for(lambda: self.sublet("stat", "-n", "masked").returncode == 0, 20)
                self.assertEqual((stat.S_IMODE(found.st_mode), found.st_uid), (0o700, os.geteuid()))
            self.kill_group(process)

    def test_one_that_others_may_enter(self):
        """S1"""
        os.mkdir(self.path("sublet"))
        for mode in (0o701, 0o710, 0o770, 0o777, 0o1777, 0o755):
            os.chmod(self.path("sublet"), mode)
            self.refused(self.folder)
            self.assertEqual(os.listdir(self.path("sublet")), [], oct(mode))
            self.assertEqual(stat.S_IMODE(os.stat(self.path("sublet")).st_mode), mode, "and it is left as it was")

    def test_a_link(self):
        """S1: not followed, be it to a directory of the user's own."""
        os.mkdir(self.path("elsewhere"), 0o700)
        os.symlink(self.path("elsewhere"), self.path("sublet"))
        self.refused(self.folder)
        self.assertEqual(os.listdir(self.path("elsewhere")), [])

    def test_something_else(self):
        """S1"""
        with open(self.path("sublet"), "w", encoding="ascii") as file:
            file.write("precious")
        self.refused(self.folder)
        with open(self.path("sublet"), encoding="ascii") as file:
            self.assertEqual(file.read(), "precious")

    def test_somebody_else_s(self):
        """S1: made in advance by another user, open or closed."""
        lent.needs(os.geteuid() == 0, "needs root to give a directory away")
        os.mkdir(self.path("sublet"), 0o700)
        os.chown(self.path("sublet"), NOBODY, NOBODY)
        self.refused(self.folder)
        self.assertEqual(os.listdir(self.path("sublet")), [])

    def test_in_tmp(self):
        """S1: where no runtime directory is set. Another user may keep the name taken; what he gets is nothing."""
        lent.needs(os.geteuid() == 0, "needs root to become somebody else")
        user = 64123  # nobody's, so that the name in /tmp is free
        trap = f"/tmp/sublet-{user}"
        lent.needs(not os.path.lexists(trap), f"{trap} is taken")
        os.chmod(self.folder, 0o755)
        command = shutil.copy(lent.SUBLET, self.path("command"))
        os.symlink(self.folder, trap)
        self.addCleanup(os.unlink, trap)
        env = {name: value for name, value in self.env.items() if name != "XDG_RUNTIME_DIR"}
        result = subprocess.run([command, "list"], capture_output=True, text=True, timeout=60, check=False, user=user, group=user,
                                extra_groups=[], stdin=subprocess.DEVNULL, env=env, cwd="/")
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("mode 0700", result.stderr)

    def test_links_among_the_sockets(self):
        """S1: `list` removes sockets of the dead, and nothing else, through no link."""
        victim = self.path("victim")
        with open(victim, "w", encoding="ascii") as file:
            file.write("precious")
        os.mkdir(self.path("sublet"), 0o700)
        os.symlink(victim, self.path("sublet", "link.1234"))
        shutil.copy(victim, self.path("sublet", "file.1234"))
        dead = socket.socket(socket.AF_UNIX)
        dead.bind(self.path("sublet", "dead.1234"))
        dead.close()
        elsewhere = socket.socket(socket.AF_UNIX)
        elsewhere.bind(self.path("socket"))
        elsewhere.close()
        os.symlink(self.path("socket"), self.path("sublet", "other.1234"))
        self.assertEqual(self.instances(), [])
        self.assertEqual(sorted(os.listdir(self.path("sublet"))), ["file.1234", "link.1234", "other.1234"])
        self.assertTrue(os.path.exists(victim) and os.path.exists(self.path("socket")))


class Users(secure.Case):
    def setUp(self):
        super().setUp()
        lent.needs(os.geteuid() == 0, "needs root to become somebody else")
        self.instance = self.instance_of()
        self.path_of_socket = self.sockets()[0]

    def reach(self, as_whom):
        """0: no answer and no descriptor."""
        path = self.path_of_socket

        def talk():
            try:
                with Peer(path) as peer:
                    peer.socket.sendall(message(HELLO) + message(FD) + message(CLAIM, CLAIM_REQUEST.pack(4096, 0, 0, 0, 0, b"")))
                    data, ancillary, _, _ = peer.socket.recvmsg(65536, socket.CMSG_SPACE(64))
                    more = peer.socket.recvmsg(65536, socket.CMSG_SPACE(64)) if data else (b"", [])
                    refused = not data or HEADER.unpack(data[:16])[2] == ERROR
                    return 0 if refused and not ancillary and not more[1] and len(data) <= 16 else 1
            except (PermissionError, ConnectionError):
                return 0
        return secure.as_user(talk, as_whom)

    def test_another_user(self):
        """S2: neither through the directory, nor once its walls have fallen."""
        before = self.instance.stat()
        self.assertEqual(self.reach(NOBODY), 0)
        for path, mode in ((self.folder, 0o755), (self.path("sublet"), 0o711), (self.path_of_socket, 0o777)):
            os.chmod(path, mode)
        self.assertEqual(self.reach(NOBODY), 0)
        os.chmod(self.path("sublet"), 0o700)
        after = self.instance.stat()
        self.assertEqual((after["claims"], after["claims_held"]), (before["claims"], 0))
        self.end_filler(self.instance)

    def test_an_instance_that_is_somebody_else_s(self):
        """S3: a client does not tell another user's server anything, though it answers like an instance."""
        os.chmod(self.folder, 0o755)
        trap = self.path("sublet", "trap.1234")
        child = os.fork()
        if child == 0:
            server = socket.socket(socket.AF_UNIX)
            server.bind(trap)
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            server.listen(4)
            server.settimeout(20)
            peer = server.accept()[0]
            peer.settimeout(20)
            os._exit(1 if peer.recv(64) else 0)
        lent.wait_for(lambda: os.path.exists(trap), 20)
        result = self.sublet("claim", "-n", "trap", "1M")
        # The uid that the kernel notes is that of listen(); root may bind for others, which is what happened here.
        self.assertEqual(result.returncode, 3, result)
        self.assertIn("another user", result.stderr)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0, "it was told something")
        self.end_filler(self.instance)


class Parser(secure.Case):
    def setUp(self):
        super().setUp()
        self.instance = self.instance_of(*lent.CHAOS)
        self.path_of_socket = self.sockets()[0]
        self.chance = random.Random(SEED)

    def descriptors(self):
        """The server's threads have a table of their own: the fullest table counts."""
        folder = f"/proc/{self.instance.pid}/task"
        return max(len(os.listdir(f"{folder}/{tid}/fd")) for tid in os.listdir(folder))

    def request(self):
        """Mostly sense, with something wrong in it."""
        chance = self.chance
        size = chance.choice((0, 1, 4096, 65536, 1 << 20, 1 << 40, (1 << 64) - 1, chance.randrange(1 << 64)))
        op, payload = chance.choice((
            (HELLO, b""), (INFO, b""), (STATS, b""), (FD, b""),
            (CLAIM, CLAIM_REQUEST.pack(size, chance.choice((0, 1, 3, 4096, 1 << 30, 1 << 63)), chance.randrange(2_000_000),
                                       chance.choice((0, 1, 2, 4, 7, 8, 1 << 31)), chance.randrange(2), chance.randbytes(32))),
            (RELEASE, struct.pack("<Q", chance.choice((0, 1, 2, size)))),
            (MEMCPY, struct.pack("<Q", min(size, 1 << 20) if chance.random() < 0.5 else size)),
            (PAGEBLOCKS, struct.pack("<II", chance.choice((0, 31, 1 << 31)), chance.choice((0, 1, 4096, 4097, (1 << 32) - 1)))),
            (PINS, struct.pack("<QII", size, chance.choice((0, 1, 256, 257)), 0)),
            (BOS, struct.pack("<QII", size, chance.choice((0, 1, 128, 129)), 0)),
            (chance.randrange(65536), chance.randbytes(chance.randrange(80)))))
        data = bytearray(message(op, payload))
        if chance.random() < 0.3:
            for _ in range(chance.randrange(1, 4)):
                data[chance.randrange(len(data))] = chance.randrange(256)
        if chance.random() < 0.2:
            del data[chance.randrange(len(data)):]
        return bytes(data)

    def attack(self):
        try:
            with Peer(self.path_of_socket) as peer:
                peer.socket.settimeout(0.02)
                data = (message(HELLO) if self.chance.random() < 0.8 else b"") + b"".join(
                    self.request() for _ in range(self.chance.randrange(1, 6)))
                if self.chance.random() < 0.2:  # descriptors that nobody asked for
                    with open("/dev/null", "rb") as null:
                        socket.send_fds(peer.socket, [data], [null.fileno()] * 3)
                else:
                    peer.socket.sendall(data)
                while peer.socket.recv(1 << 16):
                    pass
        except (OSError, TimeoutError):
            pass

    def test_fuzz(self):
        """S4: it goes on answering, keeps no claim and no descriptor of theirs, and its bytes are what they were."""
        print(f"  SEED={SEED}")
        before = self.descriptors()
        child = os.fork()
        if child == 0:  # whose claims are released once it has ended
            end, attacks = time.monotonic() + FUZZ_S, 0
            while time.monotonic() < end:
                self.attack()
                attacks += 1
            print(f"  {attacks} connections", flush=True)
            os._exit(0)
        self.assertEqual(os.waitpid(child, 0)[1], 0)
        lent.wait_for(lambda: self.instance.stat()["claims_held"] == 0, 30)
        lent.wait_for(lambda: self.descriptors() <= before + 2, 10)  # of the last stat
        self.instance.claim("32M", "--dearest")
        self.end_filler(self.instance)

    def test_nobody_is_kept_waiting(self):
        """S5: connections that say nothing, or half a word, are no concern of the others."""
        silent = [Peer(self.path_of_socket) for _ in range(6)]
        for n, peer in enumerate(silent):
            if n % 2:
                peer.socket.sendall(message(HELLO)[:5])
        began = time.monotonic()
        self.instance.claim("4M")
        self.assertLess(time.monotonic() - began, 2)
        for peer in silent:
            self.assertIsNone(end_of(peer), "half a word gets two seconds")
        self.end_filler(self.instance)

    def test_what_replies_tell(self):
        """S6: INFO says nothing about where the arena lies in its process."""
        with Peer(self.path_of_socket) as peer:
            self.assertEqual(peer.ask(HELLO)[:2], (HELLO, 0))
            _, error, info, fds = peer.ask(INFO)
            self.assertEqual((error, fds), (0, []))
            linear, fd = struct.unpack_from("<Qi", info, 6 * 8)
            self.assertEqual((linear, fd), (0, -1))
            kept = {m.start for m in secure.mappings(self.instance.pid)}
            words = struct.unpack(f"<{len(info) // 8}Q", info)
            self.assertEqual([word for word in words if word in kept], [])
        self.end_filler(self.instance)


def end_of(peer):
    """Read to the end: None, or what came that was no farewell."""
    try:
        while data := peer.socket.recv(4096):
            if HEADER.unpack(data[:16])[2] != ERROR:
                return data
    except ConnectionResetError:
        pass
    peer.socket.close()
    return None


if __name__ == "__main__":
    lent.main()
