# SPDX-License-Identifier: MIT
"""What the tests of docs/security.md share: those of the clients, and a look into /proc at an instance."""
import os
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir, "clients"))

import lent  # pylint: disable=wrong-import-position

NOBODY = 65534
BACKINGS = ("memfd", "thp")
# A file without a name, or one of memfd_create: every mapping of a backing looks like one of these.
BACKING = re.compile(r"memfd:sublet|/#\d+|/tmpfile|\(deleted\)")


class Mapping:
    """A line of /proc/PID/smaps and the flags after it."""

    def __init__(self, line):
        words = line.split(None, 5)
        self.start, self.end = (int(word, 16) for word in words[0].split("-"))
        self.permissions = words[1]
        self.offset = int(words[2], 16)
        self.inode = (words[3], words[4])
        self.name = words[5].strip() if len(words) > 5 else ""
        self.flags = []

    def __repr__(self):
        return f"{self.start:x}-{self.end:x} {self.permissions} {self.name} {' '.join(self.flags)}"

    @property
    def bytes(self):
        return self.end - self.start


def mappings(pid="self"):
    found = []
    with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="replace") as file:
        for line in file:
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                found.append(Mapping(line))
            elif line.startswith("VmFlags:"):
                found[-1].flags = line.split()[1:]
    return found


def arena_mappings(pid):
    """Those of the instance's backing: its largest file mapping that is shared, and all others of the same file."""
    shared = [m for m in mappings(pid) if m.permissions[3] == "s" and m.inode[1] != "0"]
    largest = max(shared, key=lambda m: m.bytes)
    return largest, [m for m in mappings(pid) if m.inode == largest.inode]


class Case(lent.Case):
    def instance_of(self, *options, mib=24, **filler):
        """A filler in lent memory."""
        return self.start_filler("--area", "64M", "--normal", "32M", *options, bytes_count=mib * lent.MIB, **filler)

    def python(self, script, *options, code=0, **env):
        """Run a script in lent memory: its stdout."""
        (got, out, err), _ = self.run_lent(sys.executable, "-c", script, options=("--area", "64M", "--normal", "32M", *options),
                                           env={"PYTHONMALLOC": "malloc", **env})
        self.assertEqual((got, err), (code, b""), out)
        return out.decode()

    def sockets(self):
        directory = self.path("sublet")
        return [os.path.join(directory, name) for name in os.listdir(directory)]


def as_user(function, uid=NOBODY):
    """Call a function in a child that is another user; its exit code is what the function returns."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            code = function()
        except BaseException as error:  # the parent's cleanups must not run here
            print(f"as {uid}: {error!r}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
