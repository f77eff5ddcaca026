#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Interpreters, sort, storms of forks and a make: the same answers, by seconds of chaos."""
import hashlib
import os
import random

import real
import lent
import test_gcc

PHP = """
ini_set('memory_limit', -1); mt_srand(7); $all = []; $tree = [];
for ($i = 0; $i < 400000; $i++) { $k = md5((string)mt_rand()); $all[] = $k . str_repeat(chr(65 + $i % 26), $i % 61); }
for ($r = 0; $r < 4; $r++) { sort($all); $all = array_map('strrev', $all); }
foreach ($all as $n => $word) { $tree[substr($word, 0, 2)][] = strtoupper($word); }
ksort($tree); $hash = hash_init('sha256');
foreach ($tree as $key => $words) { hash_update($hash, $key . json_encode($words)); }
echo count($all), ' ', count($tree), ' ', hash_final($hash), "\\n";
"""
PERL = """
use strict; my (%count, @list); srand(7); my $x = 7;
for my $i (1 .. 600000) { $x = ($x * 1103515245 + 12345) % 2147483648; push @list, sprintf("%010d-%s", $x, "y" x ($x % 50)); $count{substr($list[-1], 0, 5)}++; }
@list = sort { $b cmp $a } @list; s/(\\d)(\\d)/$2$1/g for @list; my $sum = 0; $sum = ($sum * 31 + length($_) + ord(substr($_, 3, 1))) % 1000003 for @list;
print scalar(@list), " ", scalar(keys %count), " $sum\\n";
"""
AWK = """
{ seen[$1 % 50021] = seen[$1 % 50021] substr($2, 1, 9); n++ }
END { for (i = 0; i < 50021; i++) { sum = (sum * 31 + length(seen[i])) % 1000003; if (seen[i] ~ /ab+c/) hits++ } print n, sum, hits }
"""
FORKS = """
a=$(head -c 20000000 /dev/zero | tr '\\0' x)
for i in {1..500}; do /bin/true || exit 1; done
for i in {1..200}; do b=$(echo $i); [ "$b" = $i ] || exit 2; done
echo ${#a} ${a:19999990}
"""


class Scripts(real.Case):
    def test_php(self):
        php = lent.program("php")
        self.both("php -r", php, "-r", "echo 1;", options=("--area", "64M"), compare=real.without_last_words)
        for name, env in (("php", {}), ("php without its own allocator", {"USE_ZEND_ALLOC": "0"})):
            with open(self.path("work.php"), "w", encoding="ascii") as file:
                file.write("<?php" + PHP)
            (code, out, _), stat = self.both(name, php, self.path("work.php"), env=env, options=("--area", "512M", *lent.CHAOS))
            self.assertEqual((code, out.split()[0]), (0, b"400000"))
            if env:
                self.assert_lent(stat)

    def test_perl(self):
        (code, out, _), stat = self.both("perl", lent.program("perl"), "-e", PERL)
        self.assertEqual((code, out.split()[0]), (0, b"600000"))
        self.assert_lent(stat)

    def lines(self, count):
        chance = random.Random(5)
        words = ["".join(chance.choices("abcdefgh", k=60)) for _ in range(997)]
        return "".join(f"{chance.randrange(10**12)} {words[i % 997]}\n" for i in range(count)).encode()

    def test_awk(self):
        with open(self.path("lines"), "wb") as file:
            file.write(self.lines(600_000))
        (code, out, _), stat = self.both("awk", lent.program("awk"), AWK, self.path("lines"))
        self.assertEqual((code, out.split()[0]), (0, b"600000"))
        self.assert_lent(stat)

    def test_sort(self):
        """100 MB, half of which fit into the memory that it is given."""
        with open(self.path("lines"), "wb") as file:
            file.write(self.lines(1_370_000))
        command = (lent.program("sort"), "-S", "50M", "--parallel", "2", "-T", self.folder, self.path("lines"))
        (code, out, _), stat = self.both("sort of 100 MB", *command, env={"LC_ALL": "C"},
                                         compare=lambda result: (result[0], hashlib.sha256(result[1]).digest(), result[2]))
        self.assertEqual(code, 0)
        self.assertGreater(len(out), 99_000_000)
        self.assert_lent(stat)

    def test_storm_of_forks(self):
        (code, out, _), stat = self.both("700 forks", lent.program("bash"), "-c", FORKS)
        self.assertEqual((code, out), (0, b"20000000 xxxxxxxxxx\n"))
        self.assertGreater(stat["forks"], 400)

    def test_make(self):
        """Every program that it starts is lent as well."""
        for name, run in (("plain", self.run_plain), ("lent", self.run_lent)):
            os.mkdir(self.path(name))
            for i in range(12):
                with open(self.path(name, f"part{i}.c"), "w", encoding="ascii") as file:
                    file.write(test_gcc.source(600).replace("int main(", f"int part{i}("))
            with open(self.path(name, "main.c"), "w", encoding="ascii") as file:
                file.write("".join(f"int part{i}(void);\n" for i in range(12)) +
                           "int main(void)\n{\n" + "".join(f"\tpart{i}();\n" for i in range(12)) + "\treturn 0;\n}\n")
            with open(self.path(name, "Makefile"), "w", encoding="ascii") as file:
                file.write("program: main.o " + " ".join(f"part{i}.o" for i in range(12)) + "\n\tgcc -o $@ $^\n%.o: %.c\n\tgcc -O1 -c $<\n")
        lent.program("gcc")
        command = (lent.program("make"), "-s", "-j2")
        self.assertEqual(self.run_plain(*command, cwd=self.path("plain"))[0], 0)
        (code, _, err), _ = self.run_lent(*command, cwd=self.path("lent"), options=("--area", "64M", "--normal", "64M", "--follow", *lent.CHAOS))
        self.assertEqual(code, 0, err)
        self.assertEqual(lent.digest(self.path("plain", "program")), lent.digest(self.path("lent", "program")))
        self.assertEqual(self.run_plain(self.path("plain", "program")), self.run_plain(self.path("lent", "program")))


if __name__ == "__main__":
    lent.main()
