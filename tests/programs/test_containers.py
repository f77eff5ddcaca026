#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Namespaces: a lent program may enter each, and a lent Redis runs in each kind of container, saves and is claimed from."""
import os

import real
import lent
import redis

KEYS = 300_000
SPACES = ("--pid", "--user", "--net", "--ipc", "--uts", "--cgroup")
DEVICE = "/dev/userfaultfd"


def bwrap(*options):
    device = ("--dev-bind", DEVICE, DEVICE) if os.path.exists(DEVICE) else ()
    return (lent.program("bwrap"), "--bind", "/", "/", "--dev", "/dev", *device, "--die-with-parent", *options)


def unshare(*options):
    return (lent.program("unshare"), "--fork", "--kill-child", "--map-root-user", *SPACES, *options)


class Enter(real.Case):
    def alike(self, *command):
        plain = self.run_plain(*command)
        lent.needs(plain[0] == 0, plain[2].decode())
        result, _ = self.run_lent(*command, options=("--area", "16M", *lent.CHAOS))
        self.assertEqual(real.without_last_words(result), plain)

    def test_unshare(self):
        for options in (("-U",), ("-m",), ("-p", "--fork"), ("-u",), ("-i",), ("-n",), ("-C",), ("-T",),
                        ("--fork", "--mount-proc", "--map-root-user", "--mount", "--time", *SPACES)):
            with self.subTest(options):
                self.alike(lent.program("unshare"), *options, "sh", "-c", "id -u; echo $$ | wc -w")

    def test_nsenter(self):
        target = self.popen([lent.program("unshare"), "-m", "-u", "-i", "-n", "sleep", "1000"])
        lent.wait_for(lambda: os.readlink(f"/proc/{target.pid}/ns/net") != os.readlink("/proc/self/ns/net"))
        for option in ("-m", "-u", "-i", "-n"):
            with self.subTest(option):
                self.alike(lent.program("nsenter"), "-t", str(target.pid), option, "hostname")

    def test_bwrap(self):
        """It makes its first process by a system call of its own, and allocates in it."""
        for options in (("--unshare-all", "--proc", "/proc"), ("--unshare-pid",), ("--unshare-user",), ()):
            with self.subTest(options):
                self.alike(*bwrap(*options), "sh", "-c", "echo fine")


class Redis(redis.Case):
    def check(self, name, container):
        path = self.path(name, "socket")
        os.mkdir(self.path(name))
        env = {"SUBLET_BRIDGE": os.path.join(lent.BUILD, "libsublet-bridge.so")}
        probe = self.run_plain(*container, lent.SUBLET, "run", "--area", "16M", "--", "true", env=env)
        if probe[0] == 125 and b"userfaultfd" in probe[2] or probe[0] == 1:
            lent.needs(False, probe[2].decode())
        process = self.popen([*container, lent.SUBLET, "run", "-n", name, "--area", "192M", "--normal", "96M", *lent.CHAOS, "--",
                              lent.program("redis-server"), "--port", "0", "--unixsocket", path, "--dir", self.path(name), "--save", "",
                              "--enable-debug-command", "yes", "--logfile", self.path(name, "log")], env=env)
        client = self.client(path, process)
        client.fill(KEYS)
        self.assertGreater(int(client.info("memory")["used_memory"]), 50_000_000)
        writer = redis.Writer(path, KEYS)
        writer.start()
        for _ in range(3):
            client("BGSAVE")
            lent.wait_for(lambda: client.info("persistence")["rdb_bgsave_in_progress"] == "0", pause=0.02)
            self.assertEqual(client.info("persistence")["rdb_last_bgsave_status"], "ok")
        writes = writer.stop()
        lent.wait_for(lambda: self.stat(name)["children"] == 0 and self.stat(name)["area_held_bytes"] == 0, 60)
        result = self.sublet("claim", "-n", name, "64M", "--dearest", "--count", "5")
        self.assertEqual(result.returncode, 0, result.stderr + result.stdout)
        self.assertEqual(self.assert_state(client, KEYS, writes), writes)
        self.assert_moved(name)
        client.send("SHUTDOWN", "NOSAVE")
        self.assertEqual(process.wait(lent.TIMEOUT_S), 0)
        _, fresh = self.server(name)
        self.assert_state(fresh, KEYS, writes)
        fresh.send("SHUTDOWN", "NOSAVE")

    def assert_moved(self, name):
        stat = self.stat(name)
        print(f"  {name}: {stat['moves']} moves, {stat['forks']} forks, lent {100 * stat['lent_ratio']:.0f} %", flush=True)
        self.assertGreater(stat["moves"], 0)
        self.assertGreaterEqual(stat["lent_ratio"], 0.9)

    def test_no_container(self):
        self.check("none", ())

    def test_bwrap_all_own_proc(self):
        self.check("own-proc", bwrap("--unshare-all", "--proc", "/proc"))

    def test_bwrap_all_outer_proc(self):
        self.check("outer-proc", bwrap("--unshare-all"))

    def test_bwrap_all_no_proc(self):
        self.check("no-proc", bwrap("--unshare-all", "--tmpfs", "/proc"))

    def test_bwrap_pid_own_proc(self):
        self.check("pid-own-proc", bwrap("--unshare-pid", "--proc", "/proc"))

    def test_bwrap_pid_outer_proc(self):
        self.check("pid-outer-proc", bwrap("--unshare-pid"))

    def test_unshare_own_proc(self):
        self.check("unshare", unshare("--mount-proc"))

    def test_unshare_outer_proc(self):
        self.check("unshare-outer-proc", unshare())


if __name__ == "__main__":
    lent.main()
