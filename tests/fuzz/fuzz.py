#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Build a libFuzzer target with address and undefined-behaviour checks, and run it for a while over its corpus.

  fuzz.py SOURCE BUILD SECONDS [TARGET...]
  fuzz.py SOURCE BUILD --keep [TARGET...]     put what earlier runs found into tests/fuzz/corpus, made small

The corpus of a target is tests/fuzz/corpus/TARGET; what a run finds goes to BUILD/fuzz/TARGET/found, an input that
crashes to BUILD/fuzz/TARGET/crash-*. It belongs into the corpus with the fix. SEED replays a run's choices. Exits with
77 where clang has no libFuzzer.
"""

import os
import re
import shutil
import subprocess
import sys
import time

SKIP = 77
SANITIZERS = ["-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"]

# What of the platform asks whether a helper process does its work.
HELPER = ["src/linux/" + name for name in ("cgroup.c", "confine.c", "helper.c", "proc.c", "thread.c", "thread_memory.c",
                                           "wait.c")]

# What each is built of beside fuzz_TARGET.c, and the linker's arguments.
TARGETS = {
    "sizes": (["src/cli/parse.c", "src/cli/format.c"], ["-lm"]),
    "settings": (["src/bridge/settings.c"], []),
    "proc": ([name for name in HELPER if name != "src/linux/proc.c" and name != "src/linux/cgroup.c"], ["-lpthread"]),
    "names": (["src/control/owner.c", "src/control/wire.c", "src/core/struct.c", "src/linux/here.c"] + HELPER,
              ["-lcjson", "-lpthread"]),
    "server": (["src/control/connection.c", "src/control/owner.c", "src/control/wire.c", "src/control/server.c",
                "src/control/instance.c"] + HELPER,
               ["-Wl,--wrap=sublet__wire_send", "-Wl,--wrap=nanosleep", "-lpthread"]),
    "client": (["src/control/instance.c", "src/control/owner.c", "src/control/wire.c", "src/core/struct.c",
                "src/linux/here.c"] + HELPER,
               ["-lpthread"]),
}


def has_libfuzzer(folder):
    source, program = os.path.join(folder, "probe.c"), os.path.join(folder, "probe")
    with open(source, "w", encoding="utf-8") as file:
        file.write("int LLVMFuzzerTestOneInput(const char *d, unsigned long n);\n"
                   "int LLVMFuzzerTestOneInput(const char *d, unsigned long n) { return d && n == 7 ? 0 : 0; }\n")
    return shutil.which("clang") and subprocess.run(["clang"] + SANITIZERS + [source, "-o", program],
                                                    capture_output=True, check=False).returncode == 0


def newest(root):
    return max(os.path.getmtime(os.path.join(folder, name)) for top in ("src", "include", "tests/fuzz", "tests/control")
               for folder, _, names in os.walk(os.path.join(root, top)) for name in names)


def build(root, folder, target):
    program = os.path.join(folder, "fuzz_" + target)
    if os.path.exists(program) and os.path.getmtime(program) > newest(root):
        return program
    sources, link = TARGETS[target]
    args = ["clang", "-std=gnu11", "-D_GNU_SOURCE", "-g", "-O1", "-Wall", "-Wextra", "-Werror"] + SANITIZERS
    args += ["-I" + os.path.join(root, path) for path in ("include", "src")]
    args += [os.path.join(root, path) for path in [f"tests/fuzz/fuzz_{target}.c"] + sources]
    done = subprocess.run(args + ["-o", program] + link, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr[-6000:])
        sys.exit(1)
    return program


def run(root, folder, target, seconds):
    corpus, found = os.path.join(root, "tests/fuzz/corpus", target), os.path.join(folder, "found")
    os.makedirs(found, exist_ok=True)
    program = build(root, folder, target)
    seed = int(os.environ.get("SEED", time.time_ns() % 1000000007))
    env = dict(os.environ, ASAN_OPTIONS="detect_leaks=1", UBSAN_OPTIONS="print_stacktrace=1")
    done = subprocess.run([program, f"-max_total_time={seconds}", f"-seed={seed}", "-timeout=10", "-rss_limit_mb=1024",
                           "-print_final_stats=1", f"-artifact_prefix={folder}/", found, corpus],
                          capture_output=True, text=True, env=env, check=False)
    runs = re.search(r"number_of_executed_units:\s+(\d+)", done.stderr)
    print(f"fuzz {target}: SEED={seed}, {runs.group(1) if runs else '?'} inputs, {len(os.listdir(corpus))} kept")
    if done.returncode:
        print(done.stderr[-6000:])
    return done.returncode


def keep(root, folder, target):
    corpus, found = os.path.join(root, "tests/fuzz/corpus", target), os.path.join(folder, "found")
    os.makedirs(corpus, exist_ok=True)
    os.makedirs(found, exist_ok=True)
    subprocess.run([build(root, folder, target), "-merge=1", "-max_len=4096", corpus, found], capture_output=True,
                   check=True)
    print(f"fuzz {target}: {len(os.listdir(corpus))} kept")
    return 0


def main():
    root, top, seconds = sys.argv[1:4]
    os.makedirs(os.path.join(top, "fuzz"), exist_ok=True)
    if not has_libfuzzer(os.path.join(top, "fuzz")):
        print("no clang with libFuzzer here")
        sys.exit(SKIP)
    bad = 0
    for target in sys.argv[4:] or TARGETS:
        folder = os.path.join(top, "fuzz", target)
        os.makedirs(folder, exist_ok=True)
        bad |= keep(root, folder, target) if seconds == "--keep" else run(root, folder, target, seconds)
    sys.exit(1 if bad else 0)


main()
