#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""git in lent memory: a repository is imported, packed, checked, and read whole."""
import random

import lent

COMMITS = 1000
FILES = 60
LARGE_BYTES = 40 * lent.MIB  # one file that git holds in its heap as a whole


def history(commits=COMMITS, large_bytes=LARGE_BYTES):
    """What `git fast-import` reads: every commit changes two of the files."""
    chance = random.Random(11)
    lines = [[chance.randbytes(12).hex() for _ in range(120)] for _ in range(FILES)]
    out = []
    for n in range(1, commits + 1):
        message = f"commit {n}\n".encode()
        out.append(b"commit refs/heads/main\nmark :%d\ncommitter A U Thor <a@example.com> %d +0000\ndata %d\n%b"
                   % (n, 1_600_000_000 + n, len(message), message))
        if n > 1:
            out.append(b"from :%d\n" % (n - 1))
        for file in (n % FILES, n * 7 % FILES):
            lines[file][chance.randrange(120)] = chance.randbytes(12).hex()
            data = "\n".join(lines[file]).encode()
            out.append(b"M 100644 inline folder%d/file%d\ndata %d\n%b\n" % (file % 5, file, len(data), data))
    large = chance.randbytes(large_bytes // 8) * 8
    out.append(b"M 100644 inline large\ndata %d\n%b\n" % (large_bytes, large))
    return b"".join(out) + b"done\n"


class Git(lent.Case):
    def setUp(self):
        super().setUp()
        self.env.update(HOME=self.folder, GIT_CONFIG_NOSYSTEM="1")
        self.git = (lent.program("git"), "-c", "core.compression=1", "-c", "safe.directory=*")

    def make(self, run, name, **options):
        """A repository from the history; the exit code of the import."""
        self.assertEqual(self.run_plain(*self.git, "init", "-q", "--bare", "-b", "main", self.path(name))[0], 0)
        return run(*self.git, "fast-import", "--quiet", "--done", input=history(), cwd=self.path(name), **options)

    def test_fsck(self):
        self.assertEqual(self.make(self.run_plain, "plain")[0], 0)
        (code, _, _), stat = self.assert_same(*self.git, "fsck", "--full", "--strict", cwd=self.path("plain"))
        self.assertEqual(code, 0)
        self.assert_lent(stat)

    def test_fsck_finds_damage(self):
        self.assertEqual(self.make(self.run_plain, "plain")[0], 0)
        self.assertEqual(self.run_plain(*self.git, "update-ref", "refs/heads/gone", "1" * 40, cwd=self.path("plain"))[0],
                         128)
        with open(self.path("plain", "refs", "heads", "gone"), "w", encoding="ascii") as file:
            file.write("1" * 40 + "\n")
        (code, _, err), _ = self.assert_same(*self.git, "fsck", cwd=self.path("plain"))
        self.assertNotEqual(code, 0)
        self.assertIn(b"gone", err)

    def test_import_and_read_everything(self):
        """Both ends in lent memory: what was imported there is what is read there."""
        self.assertEqual(self.make(self.run_plain, "plain")[0], 0)
        (code, _, err), stat = self.make(self.run_lent, "lent")
        self.assertEqual((code, err), (0, b""))
        self.assert_lent(stat)
        read = (*self.git, "cat-file", "--batch", "--batch-all-objects")
        want = self.run_plain(*read, cwd=self.path("plain"))
        got, _ = self.run_lent(*read, cwd=self.path("lent"))
        self.assertEqual(got[0], 0)
        self.assertGreater(len(got[1]), LARGE_BYTES)
        self.assertTrue(got == want, "the objects differ")


if __name__ == "__main__":
    lent.main()
