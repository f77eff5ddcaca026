#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The whole tree compiled for aarch64, and the tests that need nothing of the kernel run there under qemu-user.

    test_aarch64.py SOURCE FOLDER

Debian has a cross compiler and an emulator as ordinary packages (tools/deps.sh installs them), but libraries for
another architecture only as packages of that architecture. They are downloaded by apt with a configuration of its
own and unpacked in FOLDER: nothing of the system changes. Where any of this is not to be had, the test is skipped.

What an emulator on x86 does not show: an order of memory accesses that only aarch64 has. Left out are tests of what
qemu-user does not emulate: userfaultfd, seccomp filters, io_uring."""

import glob
import json
import os
import re
import shutil
import subprocess
import sys

TOOLS = ("aarch64-linux-gnu-gcc", "qemu-aarch64", "apt-get", "dpkg", "meson", "ninja")
PACKAGES = ("libcjson1", "libcjson-dev", "libcmocka0", "libcmocka-dev", "libseccomp2", "libseccomp-dev",
            "liburing2", "liburing-dev")
# A suite is run if the tree has it.
SUITES = ("unit", "control", "model", "sim")
TESTS = ("sizes", "demo-data", "bridge_fork", "bridge_futex", "bridge_sticky")
# Nothing of them depends on the processor: a test of the models' tool, and one thread that compares the I/O page tables with
# a second description of them. The other tests of those tables stay.
LEFT_OUT = ("harness", "iopt_walk", "iopt_fill")
# Emulated, all takes ten times as long: every list of x86 is too much.
LESS = {"MODEL_STRIDE": "64", "UNIT_SECONDS": "0.3"}
# As in tools/aarch64.cross, for programs that meson does not start itself.
EMULATOR = {"SUBLET_EMULATOR": "qemu-aarch64 -L /usr/aarch64-linux-gnu"}
SKIPPED = 77
EM_AARCH64 = 183


def skip(why):
    print("skipped: " + why)
    sys.exit(SKIPPED)


def run(args, **more):
    done = subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **more)
    if done.returncode != 0:
        print(" ".join(args))
        print(done.stdout[-8000:])
        sys.exit(1)
    return done.stdout


def download(folder):
    """PACKAGES as files in folder, through the sources of packages that this system has."""
    for name in ("lists/partial", "cache/archives/partial", "state"):
        os.makedirs(os.path.join(folder, name), exist_ok=True)
    status = os.path.join(folder, "state", "status")
    with open(status, "w", encoding="utf-8"):
        pass
    apt = ["apt-get", "-q"]
    for option in ("Dir::State=" + folder + "/state", "Dir::State::Lists=" + folder + "/lists",
                   "Dir::State::status=" + status, "Dir::Cache=" + folder + "/cache",
                   "APT::Architecture=arm64", "APT::Architectures::=arm64", "APT::Sandbox::User=",
                   "Acquire::Languages=none", "Acquire::Retries=3"):
        apt += ["-o", option]
    for command in (["update"], ["download", *PACKAGES]):
        done = subprocess.run(apt + command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        print(done.stdout[-2000:])
        skip("no libraries for arm64 from apt (Debian has them; Ubuntu keeps them on another server)")


def libraries(folder):
    """Where the libraries are unpacked; once they are there they stay."""
    root = os.path.join(folder, "root")
    if os.path.isdir(root):
        return root
    packages = os.path.join(folder, "packages")
    download(packages)
    for package in glob.glob(os.path.join(packages, "*.deb")):
        run(["dpkg", "-x", package, root + ".new"])
    os.rename(root + ".new", root)
    shutil.rmtree(packages)
    return root


def setup(source, folder, build):
    root = libraries(folder)
    cross = os.path.join(folder, "libraries.cross")
    with open(cross, "w", encoding="utf-8") as file:
        file.write(f"[properties]\nsys_root = '{root}'\n"
                   f"pkg_config_libdir = '{root}/usr/lib/aarch64-linux-gnu/pkgconfig'\n")
    run(["meson", "setup", build, source, "--cross-file", os.path.join(source, "tools", "aarch64.cross"),
         "--cross-file", cross, "-Doptimization=1", "-Dwerror=true", "-Dofi=disabled", "-Ducx=disabled"])


def chosen(build):
    """(suite, name) of the tests to run."""
    for test in json.loads(run(["meson", "introspect", "--tests", build])):
        suites = [suite.split(":")[-1] for suite in test["suite"]]
        if test["name"] in LEFT_OUT:
            continue
        if test["name"] in TESTS or any(suite in SUITES for suite in suites):
            yield suites[0], test["name"]


def main():
    source, folder = (os.path.abspath(path) for path in sys.argv[1:3])
    for tool in TOOLS:
        if not shutil.which(tool):
            skip("no " + tool)
    build = os.path.join(folder, "build")
    if not os.path.exists(os.path.join(build, "build.ninja")):
        setup(source, folder, build)
    run(["ninja", "-C", build])
    with open(os.path.join(build, "libsublet.so"), "rb") as library:
        machine = int.from_bytes(library.read(20)[18:], "little")
    assert machine == EM_AARCH64, machine
    names = sorted({name for _, name in chosen(build)})  # some are in two suites
    assert set(TESTS) <= set(names), names
    out = run(["meson", "test", "-C", build, "--no-rebuild", "--print-errorlogs", "--timeout-multiplier", "4", *names],
              env=dict(os.environ, MALLOC_PERTURB_="0", **LESS, **EMULATOR))
    passed = re.search(r"Ok:\s+(\d+)", out).group(1)
    print(f"{passed} passed, 0 failed")


if __name__ == "__main__":
    main()
