#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The `sublet` command from outside: exit codes, error lines, JSON, pictures, signals.

usage: test_cli.py SUBLET FAKE_INSTANCE

The instance only pretends (tests/control/fake_engine.h): 1 MiB is busy, 2 MiB has no room, 3 MiB
waits until its deadline, 4 MiB is held in many places, anything over 64 MiB is too big.
"""
import fcntl
import json
import os
import pathlib
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
import unittest

SUBLET, FAKE = sys.argv[1:3]


class Cli(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="sublet-cli-")
        self.env = dict(os.environ, XDG_RUNTIME_DIR=self.dir, LC_ALL="C.UTF-8")
        self.env.pop("NO_COLOR", None)
        self.instances = []

    def tearDown(self):
        for p in self.instances:
            p.kill()
            p.wait()
            p.stdout.close()
        shutil.rmtree(self.dir)

    def start(self, name="web", entries=3):
        p = subprocess.Popen([FAKE, name, str(entries)], env=self.env, stdout=subprocess.PIPE)
        self.instances.append(p)
        self.assertEqual(p.stdout.readline(), b"ready\n")
        return p

    def sublet(self, *args, **env):
        return subprocess.run([SUBLET, *args], env=dict(self.env, **env), capture_output=True, text=True, timeout=30)

    def refused(self, code, text, *args):
        """The command fails with this code and one error line that has `text` in it."""
        r = self.sublet(*args)
        self.assertEqual(r.returncode, code, (args, r))
        lines = r.stderr.splitlines()
        self.assertEqual(sum(line.startswith("sublet: ") for line in lines), 1, r.stderr)
        self.assertIn(text, r.stderr, args)
        self.assertEqual(r.stdout, "", args)
        return r

    def claims_held(self):
        return json.loads(self.sublet("stat", "--json").stdout)["claims_held"]

    # ---- the command line ----

    def test_help_and_version(self):
        self.assertRegex(self.sublet("--version").stdout, r"^sublet \d+\.\d+\.\d+$")
        self.assertIn("exit status", self.sublet("help").stdout)
        for name in ("run", "claim", "stat", "map", "pins", "bos", "list", "doctor", "demo"):
            for r in (self.sublet(name, "--help"), self.sublet("help", name)):
                self.assertEqual((r.returncode, r.stderr), (0, ""), name)
                self.assertTrue(r.stdout.startswith(f"usage: sublet {name}"), r.stdout)
                self.assertIn("  -h, --help ", r.stdout)
                self.assertEqual("--json" in r.stdout, "  -j, --json " in r.stdout, name)
                self.assertRegex(r.stdout, "(?i)exit")
        self.assertEqual(self.sublet().returncode, 2)

    def test_manual_page(self):
        """It has every option that --help of its command has, in the section of that command."""
        with open(os.path.join(os.environ["SUBLET_SOURCE"], "man", "sublet.1"), encoding="utf-8") as file:
            page = file.read().replace("\\-", "-")
        self.assertIn("SUBLET_BRIDGE", page)
        for name in ("run", "claim", "stat", "map", "pins", "bos", "list", "doctor", "demo"):
            section = page.split(f".SS sublet {name}\n")[1].split("\n.SS ")[0].split("\n.PP\n")[0]
            options = re.findall(r"^ +(?:-\w, +)?(--[a-z-]+)", self.sublet(name, "--help").stdout, re.M)
            self.assertGreater(len(options), 1)
            for option in set(options) - {"--help"}:
                self.assertRegex(section, rf"{option}(?![a-z-])", name)

    def test_unknown(self):
        self.refused(2, "did you mean `sublet stat`?", "stta")
        self.refused(2, "did you mean `sublet claim`?", "calim")
        self.refused(2, "see `sublet help`", "frobnicate")
        self.refused(2, "see `sublet help`", "")
        self.refused(2, "'--bogus'", "--bogus")
        self.refused(2, "x" * 50, "help", "x" * 50)
        for name in ("run", "claim", "stat", "map", "pins", "bos", "list", "doctor", "demo"):
            self.refused(2, "no option '--bogus'", name, "--bogus")
            self.refused(2, "no option '-Z'", name, "-Z")
            flag = "--follow" if name == "run" else "--json"
            self.refused(2, f"'{flag}' takes no value", name, f"{flag}=yes")
        for name, option in (("run", "--area"), ("run", "-n"), ("demo", "--rounds")):
            self.refused(2, f"'{option}' needs a value", name, option)

    def test_what_to_do_about_bad_values(self):
        """Whatever makes no sense on a command line: after it stands where to read what does."""
        for args, text in (
            (("run", "--area", "12x", "true"), "--area '12x'"),
            (("run", "--area", "0", "true"), "--area '0'"),
            (("run", "--name", "a/b", "true"), "'/'"),
            (("run", "--chaos", "1ns", "true"), "1us"),
            (("run", "--backing", "gold", "true"), "choose auto, hugetlb, thp or memfd"),
            (("run", "--technique", "gold", "true"), "choose auto, precopy, zap or writeprotect"),
            (("run", "--allow", "direct,gold", "true"), '"gold"'),
            (("demo", "--rounds", "0"), "--rounds '0'"),
            (("demo", "--each", "5"), "--each '5'"),
            (("demo", "-j", "gold"), "'gold'"),
        ):
            r = self.refused(2, text, *args)
            self.assertEqual(r.stderr.splitlines()[1:], [f"        Try: sublet {args[0]} --help"], args)

    def test_bad_arguments(self):
        p = self.start()
        for args, text in (
            (("abc",), "'abc' is no size"),
            (("64MB",), "'64MB' is no size"),
            (("0",), "nothing to claim"),
            (("0M",), "nothing to claim"),
            (("",), "'' is no size"),
            ((), "SIZE is missing"),
            (("1K", "2K"), "'2K'"),
            (("99999999999G",), "64 bits"),
            (("--align", "3", "4K"), "power of two"),
            (("--align", "0", "4K"), "power of two"),
            (("--align", "2G", "4K"), "power of two"),
            (("--align", "x", "4K"), "--align 'x'"),
            (("--deadline", "5", "4K"), "--deadline '5'"),
            (("--deadline", "0", "4K"), "--no-wait"),
            (("--hold", "soon", "4K"), "--hold 'soon'"),
            (("--count", "0", "4K"), "--count '0'"),
            (("--count", "100001", "4K"), "--count '100001'"),
            (("--owner", "o" * 32, "4K"), "--owner"),
            (("-n",), "'-n' needs a value"),
            (("--name",), "'--name' needs a value"),
        ):
            self.refused(2, text, "claim", *args)
        self.assertIsNone(p.poll())
        self.assertEqual(json.loads(self.sublet("stat", "--json").stdout)["claims"], 0)

    # ---- instances ----

    def test_no_instance(self):
        self.assertEqual(self.sublet("list").stdout, "no instance is running\n")
        self.assertEqual(json.loads(self.sublet("list", "--json").stdout), {"instances": []})
        for args in (("stat",), ("map",), ("pins",), ("bos",), ("claim", "4K")):
            self.refused(3, self.dir, *args)
            self.refused(3, "no instance 'web'", *args, "-n", "web")
        p = self.start()
        self.refused(3, f"web (pid {p.pid})", "stat", "-n", "wob")
        self.refused(3, "no instance '1'", "stat", "-n", "1")

    def test_dead_instance(self):
        p = self.start()
        p.kill()
        p.wait()
        self.assertEqual(len(os.listdir(self.dir + "/sublet")), 1)
        self.refused(3, "'web' has ended", "claim", "-n", "web", "4K")
        self.assertEqual(os.listdir(self.dir + "/sublet"), [])

    def test_stopped_instance(self):
        p = self.start()
        p.send_signal(signal.SIGSTOP)
        self.refused(1, "does not answer", "stat")
        p.send_signal(signal.SIGCONT)
        self.assertEqual(self.sublet("stat").returncode, 0)

    def test_list_of_stopped_instances(self):
        """They are waited for together, not one after the other, and those that answer are shown as ever."""
        stopped = [self.start(f"s{i}") for i in range(4)]
        self.start("web")
        for p in stopped:
            p.send_signal(signal.SIGSTOP)
        before = time.monotonic()
        lines = self.sublet("list").stdout.splitlines()
        self.assertLess(time.monotonic() - before, 12)
        self.assertEqual(len(lines), 6)
        self.assertEqual(sum("does not answer" in line for line in lines), 4)
        self.assertIn("MiB", next(line for line in lines if line.startswith("web ")))

    def test_several(self):
        a, b, c = self.start("web"), self.start("web"), self.start("db")
        self.refused(3, "several instances are running", "stat")
        self.refused(3, "by its pid", "stat", "-n", "web")
        for p, args in ((a, ("-n", str(a.pid))), (b, (str(b.pid),)), (c, ("--name=db",))):
            self.assertEqual(json.loads(self.sublet("stat", "--json", *args).stdout)["instance"]["pid"], p.pid)
        found = json.loads(self.sublet("list", "--json").stdout)["instances"]
        self.assertEqual([i["name"] for i in found], ["db", "web", "web"])
        self.assertEqual({i["pid"] for i in found}, {a.pid, b.pid, c.pid})
        self.assertEqual(len(self.sublet("list").stdout.splitlines()), 4)

    def test_bad_directory(self):
        os.mkdir(self.dir + "/sublet")
        os.chmod(self.dir + "/sublet", 0o755)
        self.refused(1, "mode 0700", "list")
        self.refused(1, "mode 0700", "stat")

    # ---- what it prints ----

    def test_claim(self):
        self.start()
        r = self.sublet("claim", "-n", "web", "64K")
        self.assertEqual(r.returncode, 0)
        self.assertEqual(r.stdout, "claimed 64 KiB in 1 µs (0.24 × memcpy, 4.1 µs): "
                         "moved 32 KiB, dropped 0, free 32 KiB, zeroed 0, waited 0\n")
        r = self.sublet("claim", "64K", "--count", "5", "--no-wait", "--no-zero", "--dearest", "-a", "2M")
        self.assertEqual(len(r.stdout.splitlines()), 6)
        self.assertIn("5 of 5 claims succeeded", r.stdout)
        self.assertEqual(self.claims_held(), 0)

    def test_claim_json(self):
        p = self.start()
        r = self.sublet("claim", "--json", "-c", "3", "--no-wait", "64K")
        out = json.loads(r.stdout)
        self.assertEqual(out["instance"], {"name": "web", "pid": p.pid})
        self.assertEqual(out["request"]["size_bytes"], 65536)
        self.assertFalse(out["request"]["wait"])
        self.assertEqual(len(out["claims"]), 3)
        self.assertEqual(out["claims"][0]["memcpy_ns"], 4096)
        self.assertEqual(out["claims"][0]["memcpy_ratio"], 1000 / 4096)
        self.assertEqual(out["summary"]["succeeded"], 3)
        self.assertEqual(out["summary"]["latency_p99_ns"], 1000)
        self.assertEqual(out["summary"]["memcpy_ratio_median"], 1000 / 4096)

    def test_claim_fails(self):
        self.start()
        self.assertIn("rx-ring", self.refused(4, "cannot claim 1 MiB of web", "claim", "1M").stderr)
        self.assertIn("--normal 64M", self.refused(5, "12.1 KiB have nowhere to go", "claim", "2M").stderr)
        self.assertIn("--area 128M", self.refused(5, "its area has 64 MiB", "claim", "100M").stderr)
        self.refused(5, "its area has 64 MiB", "claim", "16777215T")
        r = self.sublet("claim", "--json", "-c", "2", "1M")
        self.assertEqual(r.returncode, 4)
        out = json.loads(r.stdout)
        self.assertEqual(out["claims"][1]["error"], "EBUSY")
        self.assertEqual(out["claims"][1]["blockers"][0]["kind"], "pin")
        self.assertEqual(out["summary"]["failed"], 2)
        self.assertIsNone(out["summary"]["memcpy_ratio_median"])

    def test_many_places_of_one_owner(self):
        """One line for each owner and kind, in text; JSON has them all."""
        self.start()
        lines = self.refused(4, "somebody holds memory", "claim", "4M").stderr.splitlines()
        held = [line.strip() for line in lines if "-ring" in line]
        self.assertEqual(held, [
            "28 KiB in 7 places, first at 0x10000: a short pin that was not released in time 'rx-ring', 7.0 s old",
            "4 KiB at 0x30000: a short pin that was not released in time 'tx-ring', 5.0 s old"])
        out = json.loads(self.sublet("claim", "--json", "4M").stdout)
        self.assertEqual(len(out["claims"][0]["blockers"]), 8)

    def test_interrupted(self):
        self.start()
        for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
            p = subprocess.Popen([SUBLET, "claim", "--hold", "1h", "64K"], env=self.env, stdout=subprocess.PIPE)
            self.assertTrue(p.stdout.readline().startswith(b"claimed"))
            self.assertEqual(self.claims_held(), 1)
            p.send_signal(number)
            self.assertEqual(p.wait(5), code)
            self.assertEqual(self.claims_held(), 0)  # released, not merely abandoned
            p.stdout.close()

    def test_interrupted_while_waiting(self):
        self.start()
        p = subprocess.Popen([SUBLET, "claim", "--deadline", "1h", "3M"], env=self.env)
        while json.loads(self.sublet("stat", "--json").stdout)["claims"] == 0:
            time.sleep(0.01)
        p.send_signal(signal.SIGINT)
        self.assertEqual(p.wait(5), 130)

    def test_killed(self):
        self.start()
        p = subprocess.Popen([SUBLET, "claim", "--hold", "1h", "64K"], env=self.env, stdout=subprocess.PIPE)
        p.stdout.readline()
        p.kill()
        p.wait()
        p.stdout.close()
        for _ in range(100):
            if self.claims_held() == 0:
                break
            time.sleep(0.05)
        self.assertEqual(self.claims_held(), 0)

    def test_stat(self):
        self.start()
        self.assertEqual(self.sublet("claim", "64K").returncode, 0)
        out = json.loads(self.sublet("stat", "--json").stdout)
        self.assertEqual(out["area_bytes"], 64 << 20)
        self.assertEqual((out["backing"], out["technique"]), ("memfd", "zap"))
        self.assertIsNone(out["lent_ratio"])
        self.assertEqual((out["longterm_bytes"], out["longterm_limit_bytes"]), (4 << 20, 8 << 20))
        self.assertEqual((out["notifiers"], out["invalidations"], out["invalidations_declined"]), (5, 6, 7))
        text = self.sublet("stat", "web").stdout
        self.assertIn("area 64 MiB (memfd, frames of 4 KiB, moved by zap)", text)
        self.assertIn("claims 1:", text)
        self.assertIn("long-term pins 4 MiB of at most 8 MiB; 5 notifiers\n", text)
        self.assertIn("invalidations 6, 7 declined at first\n", text)

    def test_map(self):
        self.start()
        r = self.sublet("map", COLUMNS="80")
        self.assertNotIn("\033", r.stdout)
        rows = [line[12:] for line in r.stdout.splitlines()[1:] if line.startswith(" ") and "h" in line[12:14]]
        self.assertTrue(all(len(row) <= 64 for row in rows))
        out = json.loads(self.sublet("map", "--json").stdout)
        self.assertEqual(len(out["blocks"]), 33)
        self.assertEqual(out["blocks"][7]["held_frames"], 7)

    def test_pins(self):
        p = self.start(entries=9)
        lines = self.sublet("pins", "-n", "web").stdout.splitlines()
        self.assertEqual(lines[0], f"web (pid {p.pid})")
        self.assertEqual(lines[2].split(), ["CLASS", "AGE", "BYTES", "ACCESS", "ADDRESS", "OWNER"])
        rows = [line.split(None, 7) for line in lines[3:12]]
        self.assertEqual(rows[0], ["long-term", "8", "s", "36", "KiB", "rw", "0x7f0000800000", "pin 8"])
        self.assertEqual(rows[7], ["short", "1", "s", "8", "KiB", "r", "0x7f0000100000", "pin 1"])
        self.assertEqual(lines[13], "5 long-term, 100 KiB; 4 short, 80 KiB")
        self.assertEqual(len(lines), 14)
        out = json.loads(self.sublet("pins", "web", "--json").stdout)
        self.assertEqual(out["instance"], {"name": "web", "pid": p.pid})
        self.assertEqual([pin["age_ns"] for pin in out["pins"]], [i * 10**9 for i in range(8, -1, -1)])
        self.assertEqual(out["pins"][0], {"class": "long-term", "owner": "pin 8", "age_ns": 8 * 10**9, "bytes": 36864,
                                          "read": True, "write": True, "addr": 0x7f0000800000, "mm": 2})
        self.assertEqual(out["pins"][7]["class"], "short")
        self.assertFalse(out["pins"][7]["write"])

    def test_bos(self):
        self.start(entries=9)
        lines = self.sublet("bos").stdout.splitlines()
        self.assertEqual(lines[2].split(), ["DEVICE", "KIND", "AGE", "SIZE", "BOUND", "JOBS", "BINDS", "EVICTED",
                                            "ACCESS", "OWNER"])
        self.assertEqual(lines[3].split(), "soft 8 claimed 8 ms 9 MiB 0 8 18 13 rw bo 8".split())
        self.assertEqual(lines[10].split(), "soft 1 pinned 1 ms 2 MiB 2 MiB 1 11 6 r bo 1".split())
        self.assertEqual(lines[11].split(), "soft 0 tracked 0 1 MiB 0 0 10 5 rw bo 0".split())
        self.assertEqual(lines[13], "9 buffers, 45 MiB, 20 MiB of it bound")
        out = json.loads(self.sublet("bos", "-j", "-n", "web").stdout)
        self.assertEqual([bo["bound_bytes"] >> 20 for bo in out["bos"]], [0, 8, 0, 6, 0, 4, 0, 2, 0])
        self.assertEqual(out["bos"][7], {"device": "soft 1", "kind": "pinned", "owner": "bo 1", "age_ns": 10**6,
                                         "bytes": 2 << 20, "bound_bytes": 2 << 20, "jobs": 1, "binds": 11,
                                         "evictions": 6, "readonly": True, "addr": 0x7f0000100000, "mm": 1})

    def test_lists_of_other_sizes(self):
        self.start(entries=0)
        for name, text in (("pins", "no pin with an owner tag is held"), ("bos", "no device has a buffer object")):
            self.assertIn(text, self.sublet(name).stdout)
            self.assertEqual(json.loads(self.sublet(name, "--json").stdout)[name], [])
            self.refused(2, "'surplus'", name, "web", "surplus")
        self.start("one", entries=1)
        self.assertIn("\n1 buffer, 1 MiB, 0 of it bound\n", self.sublet("bos", "one").stdout)
        self.start("many", entries=3000)
        for name in ("pins", "bos"):
            ages = [entry["age_ns"] for entry in json.loads(self.sublet(name, "--json", "many").stdout)[name]]
            self.assertEqual(ages, sorted(set(ages), reverse=True))
            self.assertEqual(len(ages), 3000)

    def test_hostile_tags(self):
        self.start(entries=8)
        for name in ("pins", "bos"):
            text = self.sublet(name).stdout
            self.assertIn("a?[2J??b???\u00e9cdefghijklmnopqr??\n", text)
            self.assertTrue(all(c == "\n" or c.isprintable() for c in text))
            self.assertEqual(json.loads(self.sublet(name, "--json").stdout)[name][0]["owner"],
                             "a?[2J??b???\u00e9cdefghijklmnopqr??")

    def on_terminal(self, columns, **env):
        """What `sublet map` writes to a terminal of so many columns."""
        main, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        p = subprocess.Popen([SUBLET, "map"], env=dict(self.env, TERM="xterm", **env), stdout=other)
        os.close(other)
        out = b""
        while True:
            try:
                more = os.read(main, 65536)
            except OSError:
                break
            if not more:
                break
            out += more
        os.close(main)
        self.assertEqual(p.wait(), 0)
        return out.decode()

    def test_map_on_a_terminal(self):
        self.start()
        self.assertIn("\033[0;", self.on_terminal(80))
        self.assertNotIn("\033", self.on_terminal(80, NO_COLOR="1"))
        wide = self.on_terminal(80, NO_COLOR="1").splitlines()
        narrow = self.on_terminal(29, NO_COLOR="1").splitlines()
        self.assertEqual(len(narrow) - len(wide), 2)  # 33 cells: 3 lines of 16 instead of 1 of 64
        self.assertEqual(self.on_terminal(5, NO_COLOR="1").count("hh"), 0)

    def test_doctor(self):
        r = self.sublet("doctor")
        self.assertIn(r.returncode, (0, 1))
        out = json.loads(self.sublet("doctor", "--json").stdout)
        self.assertEqual(out["run_works"], r.returncode == 0)
        self.assertEqual(out["run_works"], all(c["verdict"] != "fail" for c in out["checks"]))
        for c in out["checks"]:
            self.assertTrue(c["found"], c)
            if c["verdict"] != "ok":
                self.assertTrue(c["cost"] and c["fix"], c)
                self.assertTrue("setfacl" not in c["fix"] or "package acl" in c["fix"], c)

    def test_doctor_on_the_scheduler(self):
        """Its note is what /proc says: a thread of DAMON, and autogroups."""
        def text(path):
            try:
                return path.read_text()
            except OSError:
                return ""
        walker = any(text(p).startswith("kdamond") for p in pathlib.Path("/proc").glob("[0-9]*/comm"))
        autogroup = text(pathlib.Path("/proc/sys/kernel/sched_autogroup_enabled")).startswith("1")
        checks = json.loads(self.sublet("doctor", "--json").stdout)["checks"]
        found = next(c for c in checks if c["name"] == "scheduler")
        self.assertEqual(found["verdict"], "note" if walker and autogroup else "ok")
        self.assertEqual("kdamond" in found["found"], walker)
        self.assertEqual("no autogroups" in found["found"], not autogroup)

    def test_doctor_on_what_run_needs(self):
        """Without each of these an instance does not start, and doctor says so with the same exit status."""
        os.mkdir(self.dir + "/sublet")
        os.chmod(self.dir + "/sublet", 0o755)
        def limited(limit):
            return subprocess.run(["bash", "-c", f'ulimit {limit}; "$0" doctor --json', SUBLET], env=self.env,
                                  capture_output=True, text=True, timeout=30)
        cases = [("sockets", self.sublet("doctor", "--json")),
                 ("sockets", self.sublet("doctor", "--json", XDG_RUNTIME_DIR="/proc")),
                 ("descriptors", limited("-n 12"))]
        if any(c["name"] == "arena" for c in json.loads(self.sublet("doctor", "--json").stdout)["checks"]):
            cases += [("arena", limited("-v 40000")), ("arena", limited("-f 1000"))]
        for name, r in cases:
            self.assertEqual(r.returncode, 1, name)
            check, = [c for c in json.loads(r.stdout)["checks"] if c["name"] == name]
            self.assertEqual(check["verdict"], "fail", check)

    def test_full_disk(self):
        self.start()
        with open("/dev/full", "w") as full:
            p = subprocess.run([SUBLET, "list"], env=self.env, stdout=full, stderr=subprocess.PIPE, text=True)
        self.assertEqual(p.returncode, 1)
        self.assertIn("cannot write the output", p.stderr)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
