#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""gcc compiles 5,000 lines: the same object file, be it the driver or the compiler proper that is lent."""
import subprocess

import lent

LINES = 5000


def source(lines=LINES):
    """Functions of 10 lines each, no two alike."""
    text = ["#include <stdio.h>", "#include <string.h>", "static unsigned table[4096];", "int main(void);"]
    calls = []
    for i in range((lines - 24) // 10):
        text += [f"static unsigned f{i}(unsigned x, const char *s)",
                 "{",
                 f"\tunsigned y = x * {i * 2654435761 % 65521}u + {i};",
                 f"\tfor (unsigned k = 0; k < {i % 13 + 2}; k++) {{",
                 f"\t\ty ^= table[(y + k * {i % 7 + 1}) % 4096] >> (k % {i % 5 + 3});",
                 f"\t\ttable[(x + k) % 4096] = y + (unsigned)strlen(s) * {i}u;",
                 f"\t\tif (y % {i % 11 + 2} == 1) y = (y << {i % 31 + 1}) | {i % 17}u;",
                 "\t}",
                 f"\treturn y + table[{i * 31 % 4096}];",
                 "}"]
        calls.append(i)
    body = " + ".join(f"f{i}({i}u, \"{'s' * (i % 9)}\")" for i in calls)
    text += ["int main(void)", "{", f"\tprintf(\"%u\\n\", {body});", "\treturn 0;", "}"]
    text += [f"/* {n} */" for n in range(lines - len(text))]
    return "\n".join(text) + "\n"


class Gcc(lent.Case):
    expected = None

    def setUp(self):
        super().setUp()
        self.gcc = lent.program("gcc")
        with open(self.path("code.c"), "w", encoding="ascii") as file:
            file.write(source())
        self.assertEqual(source().count("\n"), LINES)

    @classmethod
    def plain(cls, test):
        """What gcc does without sublet: its result and the object file, found out once."""
        if cls.expected is None:
            cls.expected = test.compile(test.run_plain)
        test.assertEqual(cls.expected[0], (0, b"", b""))
        return cls.expected

    def compile(self, run, **options):
        command = (self.gcc, "-O1", "-c", "code.c", "-o", "code.o")
        result = run(*command, cwd=self.folder, **options)
        with open(self.path("code.o"), "rb") as file:
            return result, file.read()

    def test_driver(self):
        plain, want = self.plain(self)
        (result, _), got = self.compile(self.run_lent)
        self.assertEqual(result[:2], plain[:2])
        self.assertIn(b"never took memory", result[2] or b"never took memory")  # the driver has little to keep
        self.assertEqual(got, want)

    def test_compiler_proper(self):
        plain, want = self.plain(self)
        (result, stat), got = self.compile(self.run_lent, options=("--area", "256M", "--follow", *lent.CHAOS))
        self.assertEqual(result, plain)
        self.assertEqual(got, want)
        self.assert_lent(stat)

    def test_compiler_proper_started_by_itself(self):
        """cc1, of which we can be sure that it is looked at until its end."""
        cc1 = subprocess.run([self.gcc, "-print-prog-name=cc1"], capture_output=True, text=True,
                             check=True).stdout.strip()
        self.assertEqual(self.run_plain(self.gcc, "-E", "code.c", "-o", "code.i", cwd=self.folder)[0], 0)
        command = (lent.program(cc1), "-quiet", "-O1", "code.i", "-o", "code.s")
        self.assertEqual(self.run_plain(*command, cwd=self.folder), (0, b"", b""))
        want = lent.digest(self.path("code.s"))
        result, stat = self.run_lent(*command, cwd=self.folder, options=("--area", "256M", *lent.CHAOS))
        self.assertEqual(result, (0, b"", b""))
        self.assertEqual(lent.digest(self.path("code.s")), want)
        self.assert_lent(stat)

    def test_an_error_in_the_code(self):
        with open(self.path("code.c"), "a", encoding="ascii") as file:
            file.write("int wrong = ;\n")
        (code, _, err), _ = self.assert_same(self.gcc, "-c", "code.c", cwd=self.folder,
                                             options=("--area", "64M", "--follow", *lent.CHAOS))
        self.assertEqual(code, 1)
        self.assertIn(b"code.c:5001", err)


if __name__ == "__main__":
    lent.main()
