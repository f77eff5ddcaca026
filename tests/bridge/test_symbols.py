#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Which functions of libc the bridge stands in front of, by libc's own symbol tables.

Every function that libc exports under a name of the domains below is interposed by the bridge, defined by jemalloc
behind it, or named with a reason in libc_symbols.txt. A libc with a new one makes this fail.

    test_symbols.py LIST BRIDGE PAST PLUGIN

PAST (past.c) looks names up in ways that go past LD_PRELOAD, and prints in which file the result lies.
"""
import collections
import ctypes
import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

LIST, BRIDGE, PAST, PLUGIN = (os.path.abspath(argument) for argument in sys.argv[1:5])
SUBLET = os.path.abspath(os.environ.get("SUBLET", "build/sublet"))
SKIPPED = 77
DOMAINS = {
    "memory": r"alloc|free|mem(align|fd|usage)|mall(info|opt)|morecore|mtrace|untrace|mcheck|mprobe|obstack|brk$|mmap|"
              r"munmap|mremap|mprotect|pkey|madvise|mlock|munlock|msync|mincore|mseal|remap|shm|process_|mempolicy|"
              r"mbind|move_pages|migrate_pages|userfault",
    "threads": r"pthread|thrd|mtx_|cnd_|tss_|call_once|(^|_)sem|stack|context$|tls|rseq|nptl|futex|robust|thread|timer_create|"
               r"mq_notify|aio_|lio_",
    "descriptors": r"close|(^|_)dup[0-9]*$|fcntl|fds?$|pidfd|descriptor",
    "processes": r"[fF]ork|clone|exec|spawn|system$|popen|wordexp|unshare|setns|ptrace|syscall|daemon|rcmd|prctl",
}
# The functions of glibc's malloc.h, C and POSIX: none of them may reach libc's own heap.
ALLOCATION = ("malloc calloc realloc free reallocarray memalign valloc pvalloc aligned_alloc posix_memalign "
              "malloc_usable_size malloc_trim malloc_stats malloc_info mallopt mallinfo").split()
# The bridge exports these, and this libc may lack them.
BEYOND_LIBC = {
    "mallctl": "jemalloc's own, so that arenas that a program creates are lent too",
    "free_sized": "C23's, in a libc newer than some",
    "free_aligned_sized": "C23's, in a libc newer than some",
    "cfree": "no longer in newer ones",
    "pthread_attr_setstackaddr": "no longer declared, and to go",
    "_Fork": "since glibc 2.34",
    "close_range": "since glibc 2.34",
    "closefrom": "since glibc 2.34",
    "mallinfo2": "since glibc 2.33",
}


class Symbol(collections.namedtuple("Symbol", "name version is_default address")):
    """A function that an object exports."""

    @property
    def is_private(self):
        return self.version == "GLIBC_PRIVATE"


def functions(path):
    """The functions that an object exports, as readelf shows them."""
    env = dict(os.environ, LC_ALL="C")
    shown = subprocess.run(["readelf", "--dyn-syms", "-W", path], capture_output=True, text=True, check=True, env=env)
    found = []
    for line in shown.stdout.splitlines():
        field = line.split()
        if len(field) >= 8 and field[0].endswith(":") and field[3] in ("FUNC", "IFUNC") and field[6] != "UND":
            name, at, version = field[7].partition("@")
            found.append(Symbol(name, version.lstrip("@"), not at or version.startswith("@"), int(field[1], 16)))
    return found


def loaded(part):
    """The path of a library that a program has loaded; None: no program here has."""
    with open("/proc/self/maps", encoding="utf-8") as maps:
        for line in maps:
            path = line.rstrip("\n").partition("/")
            if re.search(part, os.path.basename(path[2])):
                return "/" + path[2]
    return None


def libc_files():
    """libc, the loader, and the libraries beside them that once were libc's parts."""
    ctypes.CDLL("libc.so.6")
    libc = loaded(r"^libc[.-]")
    beside = [path for name in ("pthread.so.0", "rt.so.1", "dl.so.2", "util.so.1")
              for path in glob.glob(os.path.join(os.path.dirname(libc), "lib" + name))]
    return [libc, loaded(r"^ld[.-]"), *beside]


def domains(name):
    return [domain for domain, pattern in DOMAINS.items() if re.search(pattern, name)]


def read_list():
    """Name: reason."""
    listed, reason = {}, None
    with open(LIST, encoding="ascii") as file:
        for line in file:
            if line.startswith("\t"):
                for name in line.split():
                    listed.setdefault(name, reason)
            elif line.strip() and not line.startswith("#"):
                reason = line.strip()
    return listed


class Symbols(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.libc = [symbol for path in libc_files() for symbol in functions(path)]
        cls.bridge = {symbol.name for symbol in functions(BRIDGE)}
        jemalloc = os.environ.get("SUBLET_JEMALLOC") or next(
            (path for folder in ("/usr/lib/*", "/usr/local/lib", "/usr/lib64", "/usr/lib")
             for path in glob.glob(folder + "/libjemalloc.so.2")), None)
        if jemalloc is None:
            raise unittest.SkipTest("no libjemalloc.so.2 here")
        cls.jemalloc = {symbol.name for symbol in functions(jemalloc)}
        cls.listed = read_list()
        cls.names = {symbol.name for symbol in cls.libc}
        cls.ours = (cls.bridge | cls.jemalloc) & cls.names
        cls.addresses = {(symbol.address, symbol.name) for symbol in cls.libc if symbol.name in cls.ours}

    def is_alias(self, symbol):
        """Another name for a function of ours, which only libc's own libraries can bind to."""
        return symbol.is_private and any(symbol.address == address for address, _ in self.addresses)

    def test_every_function_is_ours_or_listed(self):
        unknown = {}
        for symbol in self.libc:
            if domains(symbol.name) and symbol.name not in self.ours and symbol.name not in self.listed and \
                    not self.is_alias(symbol):
                unknown[symbol.name] = domains(symbol.name)
        self.assertEqual(unknown, {}, "interpose them in src/bridge, or say in libc_symbols.txt why not")

    def test_the_list_is_sound(self):
        """A reason for each name, a sentence each, and none that is interposed all the same."""
        for name, reason in self.listed.items():
            self.assertRegex(reason or "", r"^[A-Z].*\.$", name)
            self.assertTrue(domains(name), f"{name} is of no domain")
        self.assertEqual(sorted(set(self.listed) & self.ours), [], "both listed and interposed")

    def test_the_domains_are_found(self):
        """The patterns select what there is of each domain, and not nothing."""
        for name in (*ALLOCATION, "mmap64", "__libc_malloc", "pthread_attr_setstackaddr", "mtx_init", "sem_init", "dup2",
                     "__close", "closefrom", "__vfork", "_Fork", "clone", "syscall", "posix_spawn"):
            self.assertTrue(domains(name), name)
        for domain in DOMAINS:
            self.assertGreater(sum(domain in domains(name) for name in self.names), 20, domain)

    def test_allocation_is_ours(self):
        for name in ALLOCATION:
            self.assertIn(name, self.ours)

    def test_the_bridge_adds_nothing(self):
        self.assertEqual(sorted(self.bridge - self.names - set(BEYOND_LIBC)), [])

    def test_names_of_one_function_go_together(self):
        """A function that is ours under one name is ours under each name that a program can bind to."""
        for symbol in self.libc:
            if symbol.is_private or symbol.name in self.ours:
                continue
            shared = [name for address, name in self.addresses if address == symbol.address]
            self.assertEqual(shared, [], f"{symbol.name} is another name for what is interposed")


class Lookups(unittest.TestCase):
    """The same at run time: each name, looked up in each way that goes past LD_PRELOAD, is ours."""

    @classmethod
    def setUpClass(cls):
        Symbols.setUpClass()
        doctor = subprocess.run([SUBLET, "doctor", "--json"], capture_output=True, text=True, timeout=60, check=False)
        if '"run_works": true' not in doctor.stdout and '"run_works":true' not in doctor.stdout:
            raise unittest.SkipTest("`sublet run` does not work here: see `sublet doctor`")

    def probe(self, lent=True):
        """{(way, name, version): (file, symbol)} of all names that are ours."""
        wanted = sorted({f"{symbol.name}@{symbol.version}" for symbol in Symbols.libc if symbol.name in Symbols.ours})
        folder = tempfile.mkdtemp(prefix="sublet-symbols-")
        self.addCleanup(shutil.rmtree, folder)
        env = {name: value for name, value in os.environ.items() if not name.startswith(("LD_", "MALLOC_", "SUBLET_"))}
        env["XDG_RUNTIME_DIR"] = folder
        for name in ("SUBLET_BRIDGE", "SUBLET_JEMALLOC", "LD_LIBRARY_PATH"):
            if name in os.environ:
                env[name] = os.environ[name]
        run = [SUBLET, "run", "--area", "64M", "--"] if lent else []
        result = subprocess.run([*run, PAST, "names", PLUGIN], input="\n".join(wanted) + "\n", capture_output=True, text=True,
                                timeout=120, check=False, env=env)
        self.assertEqual((result.returncode, result.stderr), (0, ""), result.stdout)
        found = {}
        for line in result.stdout.splitlines():
            way, name, version, file = line.split("\t")
            found[way, name, version] = os.path.basename(file)
        return found

    def test_each_way_leads_here(self):
        found = self.probe()
        ways = {way for way, _, _ in found}
        self.assertEqual(ways, {"handle", "next", "version", "version-next", "deep"})
        self.assertGreater(len(found), 200)
        past = {key: file for key, file in found.items() if not file.startswith(("libsublet-bridge", "libjemalloc"))}
        # An old version may be another function than the one of today, and stays libc's.
        for way, name, version in list(past):
            addresses = {symbol.address for symbol in Symbols.libc if symbol.name == name}
            if way.startswith("version") and len(addresses) > 1:
                old = [symbol for symbol in Symbols.libc if (symbol.name, symbol.version) == (name, version)]
                if not old[0].is_default:
                    del past[way, name, version]
        self.assertEqual(past, {})

    def test_without_sublet_they_are_libcs(self):
        """The probe does look past what is preloaded."""
        found = self.probe(lent=False)
        self.assertFalse([file for file in found.values() if file.startswith(("libsublet", "libjemalloc"))])


if __name__ == "__main__":
    if shutil.which("readelf") is None:
        print("no readelf here")
        sys.exit(SKIPPED)
    if not loaded(r"^libc[.-]"):
        print("this libc is not glibc")
        sys.exit(SKIPPED)
    outcome = unittest.main(argv=sys.argv[:1], exit=False).result
    if not outcome.wasSuccessful():
        sys.exit(1)
    sys.exit(SKIPPED if len(outcome.skipped) > 1 else 0)
