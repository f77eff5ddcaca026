#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""`sublet run` from outside: what passes through, what is refused, what is left behind (nothing).

SUBLET names the command; bridge_client is looked for in SUBLET_BUILD, or beside the command.
"""
import glob
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

SUBLET = os.environ.get("SUBLET", "build/sublet")
PROGRAMS = os.path.join(os.environ.get("SUBLET_BUILD", os.path.dirname(os.path.abspath(SUBLET))), "tests", "bridge")
CLIENT = os.path.join(PROGRAMS, "bridge_client")
STATIC = os.path.join(PROGRAMS, "bridge_static_client")
SMALL = ("--area", "64M")
MIB = 1 << 20


class Run(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="sublet-run-")
        self.env = dict(os.environ, XDG_RUNTIME_DIR=self.folder)
        for name in ("LD_PRELOAD", "MALLOC_CONF", "SUBLET_BRIDGE", "SUBLET_JEMALLOC"):
            self.env.pop(name, None)

    def tearDown(self):
        self.assert_no_sockets()
        shutil.rmtree(self.folder)

    def sublet(self, *arguments, **env):
        return subprocess.run([SUBLET, *arguments], capture_output=True, text=True, timeout=120, check=False,
                              stdin=subprocess.DEVNULL, env={**self.env, **env})

    def run_program(self, *program, options=SMALL, **env):
        return self.sublet("run", *options, "--", *program, **env)

    def assert_runs(self, result, code=0):
        self.assertEqual((result.returncode, result.stderr), (code, ""), result.stdout)

    def assert_one_line(self, result, *parts):
        lines = result.stderr.splitlines()
        self.assertEqual(len(lines), 1, result.stderr)
        self.assertTrue(lines[0].startswith("sublet: "), lines[0])
        for part in parts:
            self.assertIn(part, lines[0])

    def sockets(self):
        return glob.glob(os.path.join(self.folder, "sublet", "*"))

    def assert_no_sockets(self):
        """Of programs that have ended: the helper process removes each, a moment after the end."""
        for _ in range(6000):
            if not self.sockets():
                return
            time.sleep(0.01)
        self.fail(f"left behind: {self.sockets()}")

    # ---- what passes through ----

    def test_exit_codes(self):
        for code in (0, 1, 3, 125, 255):
            self.assert_runs(self.run_program("bash", "-c", f"exit {code}"), code)
        # The helper process removes them when it has seen the end of its program.
        until = time.monotonic() + 60
        while self.sockets() and time.monotonic() < until:
            time.sleep(0.01)
        self.assert_no_sockets()

    def test_death_by_signal(self):
        for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV):
            result = self.run_program("bash", "-c", f"ulimit -c 0; kill -{int(number)} $$")
            self.assertEqual(result.returncode, -number)

    def test_the_pid_is_the_program_s(self):
        with subprocess.Popen([SUBLET, "run", *SMALL, "--", "bash", "-c", "echo $$"], env=self.env,
                              stdout=subprocess.PIPE, text=True) as process:
            self.assertEqual(int(process.stdout.read()), process.pid)

    def test_arguments_and_input(self):
        result = self.run_program("bash", "-c", 'printf "%s|" "$0" "$@"', "a b", "--area", "--", "")
        self.assertEqual(result.stdout, "a b|--area|--||")
        self.assertEqual(self.sublet("run", *SMALL, "bash", "-c", "echo $1 $0", "-n", "x").stdout, "x -n\n")

    def test_handlers_of_the_program_s_own(self):
        script = "trap 'echo got it; exit 9' USR1; kill -USR1 $$; sleep 5"
        result = self.run_program("bash", "-c", script)
        self.assertEqual((result.returncode, result.stdout), (9, "got it\n"))
        self.assert_runs(self.run_program(CLIENT, "signals"))

    def test_preload_and_malloc_conf_are_kept(self):
        script = 'echo "$LD_PRELOAD|$MALLOC_CONF"; bash -c \'echo "$LD_PRELOAD|$MALLOC_CONF|$SUBLET_RUN"\'; :'
        result = self.run_program("bash", "-c", script, LD_PRELOAD="libm.so.6:libdl.so.2",
                                  MALLOC_CONF="dirty_decay_ms:7")
        own, child = result.stdout.splitlines()
        preload, conf = own.split("|")
        self.assertTrue(preload.endswith("/libjemalloc.so.2:libm.so.6:libdl.so.2"), preload)
        self.assertEqual(conf, "dirty_decay_ms:7,oversize_threshold:0")
        self.assertEqual(child, "libm.so.6:libdl.so.2|dirty_decay_ms:7|")
        result = self.run_program("bash", "-c", script)
        self.assertEqual(result.stdout.splitlines()[1], "||")

    def test_a_shell_that_execs_the_program(self):
        self.assert_runs(self.run_program("bash", "-c", f"exec {CLIENT} sizes", options=("--area", "128M")))

    def test_a_script(self):
        path = os.path.join(self.folder, "script")
        with open(path, "w", encoding="utf-8") as f:
            f.write(f"#!/usr/bin/env bash\nexec {CLIENT} memory\n")
        os.chmod(path, 0o755)
        self.assert_runs(self.run_program(path))

    def test_a_script_without_an_interpreter(self):
        """/bin/sh has it, as in a shell: its arguments, its heap lent, its exit code."""
        path = os.path.join(self.folder, "script")
        for text, code, out in ((f'printf "%s|" "$0" "$@"; exec {CLIENT} memory\n', 0, f"{path}|a b|c|"), ("exit 3\n", 3, ""),
                                ("", 0, ""), (":", 0, "")):
            with open(path, "w", encoding="utf-8") as f:
                f.write(text)
            os.chmod(path, 0o755)
            result = self.run_program(path, "a b", "c")
            self.assertEqual((result.returncode, result.stdout), (code, out), result.stderr)
        with open(path, "wb") as f:
            f.write(b"echo\n\0\1\2")
        result = self.run_program(path)
        self.assertEqual(result.returncode, 126)
        self.assert_one_line(result, "Exec format error")

    # ---- from the inside ----

    def test_inside(self):
        for what in ("memory", "sizes", "created-arena", "fork", "fork-calls", "clone", "sync", "descriptors", "no-descriptors", "robust",
                     "small-stacks", "protection-fork"):
            for chaos in ((), ("--chaos", "1ms")):
                with self.subTest(what, chaos=chaos):
                    self.assert_runs(self.run_program(CLIENT, what, options=("--area", "128M", *chaos)))

    def test_what_must_not_move(self):
        """While all the rest does: protected pages, and those that mprotect cannot set free again."""
        for what in ("protection", "mutexes-destroyed"):
            with self.subTest(what):
                self.assert_runs(self.run_program(CLIENT, what, options=("--area", "128M", "--chaos", "1ms")))

    def test_small_stacks_and_nothing_to_spare(self):
        """The area is full: what malloc asks for comes in small pieces, or from elsewhere."""
        self.assert_runs(self.run_program(CLIENT, "small-stacks", options=("--area", "4M", "--normal", "4M")))

    def test_each_technique_and_backing(self):
        for option in (("--technique", "zap"), ("--technique", "writeprotect"), ("--technique", "precopy"),
                       ("--backing", "memfd"), ("--backing", "thp")):
            with self.subTest(option):
                result = self.run_program(CLIENT, "fork", options=(*SMALL, *option, "--chaos", "1ms"))
                if result.returncode == 125 and "kernel" in result.stderr:
                    self.skipTest(result.stderr)
                self.assert_runs(result)

    def stat(self, name):
        result = self.sublet("stat", "-n", name, "--json")
        self.assertEqual(result.returncode, 0, result.stderr)
        return json.loads(result.stdout)

    def start(self, *arguments, **env):
        process = subprocess.Popen([SUBLET, "run", *arguments], env={**self.env, **env}, text=True,
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.addCleanup(process.__exit__, None, None, None)
        self.addCleanup(process.kill)
        return process

    def test_the_heap_is_lent_and_given_back(self):
        process = self.start("--area", "256M", "-n", "heap", "--", CLIENT, "hold", str(128 * MIB),
                             MALLOC_CONF="dirty_decay_ms:0")
        self.assertEqual(process.stdout.readline(), "full\n")
        full = self.stat("heap")
        self.assertGreaterEqual(full["lent_bytes"], 128 * MIB)
        self.assertGreaterEqual(full["lent_ratio"], 0.9)
        process.stdin.write("\n")
        process.stdin.flush()
        self.assertEqual(process.stdout.readline(), "empty\n")
        empty = self.stat("heap")
        self.assertLess(empty["lent_bytes"], 16 * MIB)
        self.assertGreater(empty["area_free_bytes"], full["area_free_bytes"])
        process.stdin.close()
        self.assertEqual(process.wait(), 0)
        self.assert_no_sockets()

    def test_a_small_heap_is_lent_too(self):
        """What malloc mapped before the bridge came, and nobody uses, is not held against it."""
        process = self.start(*SMALL, "-n", "small", "--", CLIENT, "hold", str(4 * MIB))
        self.assertEqual(process.stdout.readline(), "full\n")
        stat = self.stat("small")
        self.assertGreater(stat["plain_bytes"], 0)
        self.assertLess(stat["plain_bytes"], MIB)
        self.assertGreaterEqual(stat["lent_ratio"], 0.9)
        process.communicate("\n\n")
        self.assertEqual(process.returncode, 0)

    def test_sizes_just_under_a_class_of_malloc_s(self):
        """What malloc cuts off and never uses takes no memory: the heap is the data, and is lent where it fits."""
        for count, size, area in ((126, 2000000, 256), (252, 1000000, 256), (420, 1000000, 64), (3000, 5000, 64)):
            with self.subTest(count=count, size=size):
                process = self.start("--area", f"{area}M", "-n", "sizes", "--", CLIENT, "hold", str(count * size), str(size))
                self.assertEqual(process.stdout.readline(), "full\n")
                stat = self.stat("sizes")
                process.communicate("\n\n")
                self.assertEqual(process.returncode, 0)
                heap = stat["lent_bytes"] + stat["plain_bytes"]
                self.assertLess(heap, count * size * 1.1 + 8 * MIB)
                self.assertGreaterEqual(stat["lent_bytes"], 0.9 * min(heap, area * MIB))

    def test_a_heap_larger_than_the_arena(self):
        process = self.start(*SMALL, "--normal", "64M", "-n", "large", "--", CLIENT, "hold", str(256 * MIB))
        self.assertEqual(process.stdout.readline(), "full\n")
        self.assertGreater(self.stat("large")["plain_bytes"], 64 * MIB)
        process.communicate("\n\n")
        self.assertEqual(process.returncode, 0)

    def test_follow(self):
        script = f"{CLIENT} hold 1000000 & sleep 1; {SUBLET} list; wait"
        for options, count in ((SMALL, 1), ((*SMALL, "--follow"), 2)):
            result = self.run_program("bash", "-c", script, options=(*options, "-n", "family"))
            self.assertGreaterEqual(result.stdout.count("family"), count, result.stdout + result.stderr)
            if count == 1:
                self.assertEqual(result.stdout.count("family"), 1)

    def test_a_shell_that_chooses_descriptors(self):
        script = f"exec 3>{self.folder}/a 4>{self.folder}/b 5>{self.folder}/c 6>&3; echo x >&6; cat {self.folder}/a"
        result = self.run_program("bash", "-c", script, options=(*SMALL, "--chaos", "1ms"))
        self.assertEqual((result.returncode, result.stdout), (0, "x\n"), result.stderr)
        for limit in (1024, 2000, 20000, 256):
            number = min(520, limit - 65)
            script = f"ulimit -n {limit} && exec {number}>{self.folder}/high && echo ok >&{number}; cat {self.folder}/high"
            result = self.run_program("bash", "-c", f"ulimit -n {limit} && exec bash -c '{script}'")
            self.assertEqual((result.returncode, result.stdout), (0, "ok\n"), result.stderr)
        result = self.run_program("bash", "-c", f"exec 520>{self.folder}/high && echo ok >&520; cat {self.folder}/high")
        self.assertEqual((result.returncode, result.stdout), (0, "ok\n"), result.stderr)
        script = f"sleep 1 & exec 3>{self.folder}/a 4>&3 5>&3; sleep 0.1; echo y >&3; wait; echo z >&5; cat {self.folder}/a"
        result = self.run_program("bash", "-c", script)
        self.assertEqual((result.returncode, result.stdout), (0, "y\nz\n"), result.stderr)

    # ---- the policy ----

    def seccomp_mode(self, *options):
        result = self.run_program("grep", "^Seccomp:", "/proc/self/status", options=(*SMALL, *options))
        return int(result.stdout.split()[1])

    def test_policy(self):
        self.assertEqual(self.seccomp_mode(), 2)
        self.assertEqual(self.seccomp_mode("--allow", "direct,aio"), 2)
        self.assertEqual(self.seccomp_mode("--allow", "all"), 0)
        script = "import os; os.open('/dev/null', os.O_RDONLY | os.O_DIRECT)"
        self.assertIn("Invalid argument", self.run_program(sys.executable, "-c", script).stderr)
        allowed = self.run_program(sys.executable, "-c", script.replace("/dev/null", "/nonexistent"),
                                   options=(*SMALL, "--allow", "direct"))
        self.assertIn("No such file", allowed.stderr)

    def test_an_inherited_direct_file(self):
        with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:
            try:
                fd = os.open(file.name, os.O_RDONLY | os.O_DIRECT)
            except OSError:
                self.skipTest("no O_DIRECT on /var/tmp")
            result = subprocess.run([SUBLET, "run", *SMALL, "--", CLIENT, "memory"], capture_output=True, text=True,
                                    timeout=60, check=False, env=self.env, pass_fds=[fd])
            os.close(fd)
        self.assertEqual(result.returncode, 0)
        self.assert_one_line(result, f"descriptor {fd}", "O_DIRECT")

    # ---- programs that cannot be helped ----

    def test_never_allocates(self):
        result = self.run_program("/bin/true")
        self.assertEqual(result.returncode, 0)
        self.assert_one_line(result, "never took memory")

    def test_static(self):
        if not os.path.exists(STATIC):
            self.skipTest("no static libc here")
        result = self.run_program(STATIC)
        self.assertEqual(result.returncode, 42)
        self.assert_one_line(result, "ordinary memory", "static")

    def test_setuid(self):
        if os.geteuid() != 0:
            self.skipTest("needs root to make a setuid program of another user")
        path = os.path.join(self.folder, "setuid")
        shutil.copy("/bin/false", path)
        os.chown(path, 65534, 65534)
        os.chmod(path, 0o4755)
        result = self.run_program(path)
        self.assertEqual(result.returncode, 1)
        self.assert_one_line(result, "ordinary memory", "setuid")

    def build(self, compiler, *options):
        """A program that returns 42; None where this compiler has no such runtime."""
        source, path = os.path.join(self.folder, "code.c"), os.path.join(self.folder, "code")
        with open(source, "w", encoding="ascii") as file:
            file.write("#include <stdlib.h>\n#include <string.h>\nint main(void) { char *volatile p = malloc(5000000);"
                       " memset(p, 42, 5000000); int code = p[7]; free(p); return code; }\n")
        result = subprocess.run([compiler, "-g", *options, source, "-o", path], capture_output=True, timeout=120, check=False)
        if result.returncode or subprocess.run([path], timeout=60, check=False).returncode != 42:
            return None
        return path

    def test_sanitizers(self):
        names = {"address": "AddressSanitizer", "thread": "ThreadSanitizer", "leak": "LeakSanitizer",
                 "memory": "MemorySanitizer", "undefined": None}
        tried = 0
        for compiler in ("gcc", "clang"):
            for option, name in names.items():
                path = shutil.which(compiler) and self.build(compiler, f"-fsanitize={option}")
                if not path:
                    continue
                tried += 1
                with self.subTest(compiler=compiler, sanitizer=option):
                    result = self.run_program(path)
                    self.assertEqual(result.returncode, 42, result.stderr)
                    if name:
                        self.assert_one_line(result, "ordinary memory", f"instrumented by {name}")
                    else:
                        self.assertEqual(result.stderr, "")
                    script = os.path.join(self.folder, "script")
                    with open(script, "w", encoding="utf-8") as f:
                        f.write(f"#!{path}\n")
                    os.chmod(script, 0o755)
                    self.assertEqual(self.run_program(script).returncode, 42)
        if not tried:
            self.skipTest("no compiler with a sanitizer here")

    def test_a_sanitizer_preloaded(self):
        path = shutil.which("gcc") and self.build("gcc", "-fsanitize=address")
        if not path:
            self.skipTest("no gcc with AddressSanitizer here")
        library = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, timeout=60,
                                 check=True).stdout.strip()
        library = os.path.realpath(library)
        result = self.run_program("/bin/true", LD_PRELOAD=library, ASAN_OPTIONS="detect_leaks=0")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assert_one_line(result, "ordinary memory", "AddressSanitizer")

    def test_valgrind(self):
        if not shutil.which("valgrind"):
            self.skipTest("no valgrind here")
        for program, code in ((("true",), 0), (("bash", "-c", "exit 3"), 3)):
            result = self.run_program("valgrind", "-q", *program)
            self.assertEqual(result.returncode, code, result.stderr)
            self.assert_one_line(result, program[0], "valgrind", "own heap")
        result = self.run_program("valgrind", "-q", "bash", "-c", 'bash -c "echo :$LD_PRELOAD:"')
        self.assertIn(":", result.stdout)
        self.assertNotIn("sublet", result.stdout)

    # ---- the program is not started ----

    def assert_not_started(self, code, *arguments, words=(), **env):
        marker = os.path.join(self.folder, "started")
        result = self.sublet("run", *arguments, "touch", marker, **env)
        self.assertEqual(result.returncode, code, result.stderr)
        self.assertFalse(os.path.exists(marker))
        self.assertTrue(result.stderr.startswith("sublet: "), result.stderr)
        for word in words:
            self.assertIn(word, result.stderr)

    def test_refusals(self):
        self.assert_not_started(125, "--area", "100T", words=("100 TiB", "memory available", "doctor"))
        self.assert_not_started(125, "--area", "16M", "--normal", "100T", words=("memory available",))
        self.assert_not_started(125, "--area", "1T", "--backing", "hugetlb", words=("huge pages", "doctor"))
        self.assert_not_started(125, *SMALL, SUBLET_BRIDGE="/nonexistent", words=("libsublet-bridge.so",))
        self.assert_not_started(125, *SMALL, SUBLET_JEMALLOC="/nonexistent", words=("jemalloc",))

    def test_a_limit_of_file_sizes(self):
        """It holds for shared memory too: said beforehand, and by the bridge where only that can."""
        for blocks, options in ((102400, ("--area", "128M")), (102400, ("--area", "64M", "--normal", "64M")), (1, ())):
            script = f'ulimit -f {blocks}; exec "$0" "$@"'
            result = subprocess.run(["bash", "-c", script, SUBLET, "run", *options, "--", CLIENT, "memory"], env=self.env,
                                    capture_output=True, text=True, timeout=60, check=False)
            self.assertEqual(result.returncode, 125, result.stderr)
            self.assertIn("100 MiB" if blocks > 1 else "have 1 KiB", result.stderr)
            self.assertIn("ulimit -f unlimited", result.stderr)
        result = self.run_program("bash", "-c", f"ulimit -f 1000; exec {CLIENT} memory")
        self.assertEqual(result.returncode, 125, result.stderr)
        self.assert_one_line(result, "cannot create an area", "ulimit -f unlimited")

    def test_a_limit_of_addresses(self):
        def limited(kib, *options):
            script = f'ulimit -v {kib}; exec "$0" "$@"'
            return subprocess.run(["bash", "-c", script, SUBLET, "run", *options, "--", CLIENT, "sizes"], env=self.env,
                                  capture_output=True, text=True, timeout=60, check=False)
        for options in (("--area", "2M"), ("--area", "128M"), ("--area", "128M", "--chaos", "1ms")):
            result = limited(8000000, *options)
            if options[1] == "2M":  # most of it is not lent there, which is what that check looks at
                self.assertNotEqual(result.returncode, 125, result.stderr)
            else:
                self.assert_runs(result)
        result = limited(100000, "--area", "16M")
        self.assertEqual(result.returncode, 125, result.stderr)
        self.assert_one_line(result, "RLIMIT_AS", "`ulimit -v 1")

    def test_names_of_programs_that_are_no_text(self):
        """An instance whose program's file name no JSON can hold, or that is cut in the middle of a character."""
        for file, name in ((b"\xff\x1b\xc3", "___"), ("ü".encode() * 40, "ü" * 31 + "_"), (b".hidden", "_hidden")):
            with self.subTest(file):
                path = os.path.join(self.folder.encode(), file)
                shutil.copy(CLIENT, path)
                process = self.start(*SMALL, "--", path, "hold", str(4 * MIB))
                self.assertEqual(process.stdout.readline(), "full\n")
                listed = subprocess.run([SUBLET, "list", "--json"], env=self.env, capture_output=True, timeout=60)
                self.assertEqual([i["name"] for i in json.loads(listed.stdout)["instances"]], [name])
                process.kill()
                process.communicate()

    def test_usage(self):
        self.assert_not_started(2, "--allow", "direct,nonsense", words=('"nonsense"', "--help"))
        self.assert_not_started(2, "--backing", "gold", words=("--backing", '"gold"'))
        self.assert_not_started(2, "--technique", "magic", words=("--technique",))
        self.assert_not_started(2, "--area", "12x", words=("--area",))
        self.assert_not_started(2, "--name", "a/b", words=("--name",))
        self.assert_not_started(2, "--chaos", "often", words=("--chaos",))
        for period in ("0", "0ms", "1ns", "999ns"):
            self.assert_not_started(2, "--chaos", period, words=("--chaos", "too short", "1us"))
        for size in ("0", "0M"):
            self.assert_not_started(2, "--area", size, words=("--area", f"'{size}'"))
        self.assertEqual(self.sublet("run").returncode, 2)
        self.assertEqual(self.sublet("run", "--nonsense").returncode, 2)

    def test_not_found_and_not_executable(self):
        self.assertEqual(self.run_program("nonexistent-program").returncode, 127)
        self.assertEqual(self.run_program("/nonexistent/program").returncode, 127)
        self.assertEqual(self.run_program("/etc/passwd").returncode, 126)
        self.assertEqual(self.run_program("/").returncode, 126)
        path = os.path.join(self.folder, "script")
        with open(path, "w", encoding="ascii") as file:
            file.write("#!/nonexistent/shell\n")
        os.chmod(path, 0o755)
        result = self.run_program(path)
        self.assertEqual(result.returncode, 127)
        self.assert_one_line(result, path, "the interpreter or loader that it names")

    def test_no_userfaultfd(self):
        """As a user without permission: one line, one with what to do, and no program."""
        if os.geteuid() != 0:
            self.skipTest("needs root to become somebody else")
        os.chmod(self.folder, 0o777)
        marker = os.path.join(self.folder, "started")
        command = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--inh-caps=-all",
                   SUBLET, "run", *SMALL, "touch", marker]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=self.env)
        if os.path.exists(marker):
            self.skipTest("anybody may use userfaultfd here")
        self.assertEqual(result.returncode, 125, result.stderr)
        self.assertIn("userfaultfd", result.stderr)
        self.assertIn("doctor", result.stderr)

    def test_help_names_every_part(self):
        result = self.sublet("run", "--help")
        self.assertEqual(result.returncode, 0)
        for part in ("direct", "aio", "io_uring", "vmsplice", "zerocopy", "xdp", "kcrypto", "processvm", "vfio",
                     "rdma", "v4l2", "sgio", "nvme", "vhost", "sev", "tee", "all"):
            self.assertIn(f"\n  {part} ", result.stdout)


if __name__ == "__main__":
    unittest.main()
