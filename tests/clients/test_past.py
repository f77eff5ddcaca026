#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Calls that go past LD_PRELOAD: plugins that are bound deeply, handles of libc, other names of the same function.

Memory that one part of a program allocates is freed by another, while it moves; what the program prints is what it
prints without sublet.
"""
import os
import xml.etree.ElementTree

import lent

PROGRAMS = os.path.join(lent.BUILD, "tests", "bridge")
PAST = os.path.join(PROGRAMS, "bridge_past")
PLUGIN = os.path.join(PROGRAMS, "libbridge_past_plugin.so")
WRAPPER = os.path.join(PROGRAMS, "libbridge_past_wrapper.so")
OWN_MALLOC = os.path.join(PROGRAMS, "bridge_own_malloc")
SIBLINGS = os.path.join(PROGRAMS, "bridge_siblings")
CXX_SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "plugin.cc")
AREA = ("--area", "160M")
PHP = """
$all = []; ini_set('memory_limit', -1);
for ($i = 0; $i < 150000; $i++) { $all[] = md5("number $i") . str_repeat(chr(65 + $i % 26), $i % 97); }
sort($all);
echo count($all), ' ', sha1(implode('', $all)), ' ', preg_match_all('/a+b/', implode('', array_slice($all, 0, 9000))), "\\n";
echo strlen(json_encode($all)), ' ', date('Y', 86400 * 400), ' ', iconv('UTF-8', 'ISO-8859-1', 'x'), "\\n";
"""
PYTHON = """
import ctypes
libc = ctypes.CDLL("libc.so.6")
for name in ("strdup", "malloc", "realloc", "pvalloc"):
    getattr(libc, name).restype = ctypes.c_void_p
libc.realloc.argtypes = ctypes.c_void_p, ctypes.c_size_t
libc.free.argtypes = ctypes.c_void_p,
libc.pvalloc.argtypes = libc.malloc.argtypes = ctypes.c_size_t,
for i in range(20000):
    text = libc.realloc(libc.strdup(b"number %d" % i), 100 + i)
    assert ctypes.string_at(text) == b"number %d" % i
    libc.free(text)
    if i % 100 == 0:
        libc.free(libc.pvalloc(i))
        ctypes.CDLL(None).free(ctypes.c_void_p(libc.malloc(i + 1)))
print("freed")
"""


class Past(lent.Case):
    def passes(self, *command, options=(*AREA, *lent.CHAOS), out=b"PASS\n", **keywords):
        result, _ = self.run_lent(*command, options=options, **keywords)
        self.assertEqual(result[0], 0, result)
        self.assertTrue(result[1].endswith(out), result)
        return result

    def passes_alike(self, *command, **keywords):
        """Without sublet as well: what is tried is not sublet's invention."""
        plain = self.run_plain(*command)
        self.assertEqual(plain[0], 0, plain)
        self.passes(*command, **keywords)

    def test_memory_goes_from_each_to_each(self):
        self.passes_alike(PAST, "mix", PLUGIN, "40", out=b"PASS: 7 ways\n", env={"PAST_LENT": "1"})
        self.passes(PAST, "mix", PLUGIN, "10", options=(*AREA, "--technique", "zap", *lent.CHAOS), out=b"PASS: 7 ways\n")

    def test_a_namespace_of_its_own(self):
        self.passes_alike(PAST, "namespace", PLUGIN, "400", out=b"PASS: namespace\n")

    def test_cxx_plugin(self):
        compiler = lent.program("g++")
        host, plugin = self.path("host"), self.path("plugin.so")
        for options in (("-DPLUGIN", "-shared", "-fPIC", "-o", plugin), ("-o", host, "-ldl")):
            result = self.run_plain(compiler, "-std=c++17", "-O1", CXX_SOURCE, *options)
            self.assertEqual(result[0], 0, result)
        self.passes_alike(host, plugin, "3000")

    def test_php(self):
        """Debian's opens its extensions with RTLD_DEEPBIND."""
        php = lent.program("php")
        self.assert_same(php, "-r", "echo 1;", options=("--area", "64M"))
        self.assert_same(php, "-m")
        self.assert_same(php, "-r", PHP)
        (code, out, _), stat = self.assert_same(php, "-r", PHP, env={"USE_ZEND_ALLOC": "0"})
        self.assertEqual((code, out.split()[0]), (0, b"150000"))
        self.assert_lent(stat)

    def test_handle_of_libc(self):
        python = lent.program("python3")
        result, _ = self.assert_same(python, "-c", PYTHON, env={"PYTHONMALLOC": "malloc"})
        self.assertEqual(result, (0, b"freed\n", b""))

    def test_another_preloaded_library(self):
        """It wraps what the bridge does, passes on, and is neither left out nor called without end."""
        self.passes(PAST, "mix", PLUGIN, "3", env={"LD_PRELOAD": WRAPPER}, out=b"wrapped\nPASS: 7 ways\n")
        self.passes("true", env={"LD_PRELOAD": WRAPPER}, out=b"wrapped\n", options=("--area", "64M"))

    def test_malloc_of_the_program_s_own(self):
        """On libc's internal names, so that it comes to jemalloc after all."""
        self.assertEqual(self.run_plain(OWN_MALLOC, "100"), (0, b"PASS\n", b""))
        result, stat = self.run_lent(OWN_MALLOC, "4000", options=(*AREA, *lent.CHAOS))
        self.assertEqual(result, (0, b"PASS\n", b""))
        self.assert_lent(stat)

    def test_old_ways_to_give_a_stack(self):
        self.passes_alike(SIBLINGS, "stacks", "1500")

    def test_malloc_header(self):
        self.passes_alike(SIBLINGS, "malloc")
        _, out, err = self.passes(SIBLINGS, "malloc", options=AREA)
        tree = xml.etree.ElementTree.fromstring(out[:out.index(b"PASS")])
        self.assertEqual((tree.tag, tree.get("version")), ("malloc", "1"))
        self.assertGreater(int(tree.find("system").get("size")), 0)
        self.assertIn(b"in use bytes", err)

    def test_pages_are_malloc_s(self):
        self.passes(SIBLINGS, "mappings")

    def test_forks_by_other_names(self):
        self.passes_alike(SIBLINGS, "forks")
        self.passes_alike(SIBLINGS, "daemon")


if __name__ == "__main__":
    lent.main()
