# SPDX-License-Identifier: MIT
"""What a round of torture is judged by: what a program leaves behind, what memory it is charged for, where it hangs.

Memory is counted in a memory cgroup of the round's own where one may be made (version 1 or 2), because the system's
counters move with everything else that runs; without one they are compared with what they were, with a margin.
"""
import itertools
import os
import re
import subprocess
import time

import lent

SETTLE_S = 20  # the kernel frees a killed process's memory when it gets to it
REMOVE_S = 20
SLACK_BYTES = 64 * lent.MIB  # of the system's counters, which others move too
CGROUP_SLACK_BYTES = lent.MIB
DUMP_S = 60
HUGE_PAGES = "/proc/sys/vm/nr_hugepages"
HUGE_FOLDER = "/sys/kernel/mm/hugepages/hugepages-2048kB"


def read(path, default=""):
    """What is in a file; the default where it cannot be read (any more)."""
    try:
        with open(path, "rb") as file:
            return file.read().decode(errors="replace")
    except OSError:
        return default


def write(path, text):
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def field_bytes(name):
    """A line of /proc/meminfo, in its own unit."""
    return int(re.search(rf"^{name}:\s+(\d+)", read("/proc/meminfo"), re.MULTILINE)[1])


# ---- huge pages ----

def huge_used():
    return field_bytes("HugePages_Total") - field_bytes("HugePages_Free")


class HugePages:
    """Reserves huge pages while it is entered; `available` says whether that came to anything."""

    def __init__(self, count):
        self.count = count
        self.available = False
        self.before = None

    def number(self, name):
        return int(read(f"{HUGE_FOLDER}/{name}", "0"))

    def __enter__(self):
        if os.geteuid() == 0 and os.path.exists(HUGE_PAGES) and os.path.isdir(HUGE_FOLDER):
            before, free = self.number("nr_hugepages"), self.number("free_hugepages")
            if free < self.count:
                self.before = before
                write(HUGE_PAGES, str(before + self.count - free))
        self.available = self.number("free_hugepages") >= self.count
        return self

    def __exit__(self, *_):
        if self.before is not None:
            write(HUGE_PAGES, str(self.before))


# ---- a memory cgroup of a round ----

def cgroup_of_ours():
    """(the folder of our memory cgroup, version), or (None, 0)."""
    for line in read("/proc/self/cgroup").splitlines():
        number, names, path = line.split(":", 2)
        for root, version in (("/sys/fs/cgroup/memory", 1),) if "memory" in names.split(",") else (
                ("/sys/fs/cgroup", 2),) if number == "0" else ():
            folder = root + path.rstrip("/")
            if os.path.exists(os.path.join(folder, "memory.limit_in_bytes" if version == 1 else "memory.max")):
                return folder, version
    return None, 0


class Cgroup:
    """A child of our own memory cgroup; `folder` is None where there is none to be had."""
    numbers = itertools.count()

    def __init__(self):
        parent, self.version = cgroup_of_ours()
        self.folder = None
        if parent is None or os.geteuid() != 0:
            return
        folder = os.path.join(parent, f"sublet-torture-{os.getpid()}-{next(self.numbers)}")
        try:
            os.mkdir(folder)
        except OSError:
            return
        self.folder = folder
        # A version 2 group that has no memory controller of its own is of no use.
        if self.shmem_bytes() is None or self.usage_bytes() is None:
            self.remove()

    def enter(self):
        """To be called by the process itself, before it becomes a program."""
        if self.folder:
            write(os.path.join(self.folder, "cgroup.procs"), str(os.getpid()))

    def shmem_bytes(self):
        found = re.search(r"^shmem (\d+)", read(os.path.join(self.folder, "memory.stat")), re.MULTILINE)
        return int(found[1]) if found else None

    def usage_bytes(self):
        text = read(os.path.join(self.folder, "memory.usage_in_bytes" if self.version == 1 else "memory.current"))
        return int(text) if text else None

    def limit(self, size):
        write(os.path.join(self.folder, "memory.limit_in_bytes" if self.version == 1 else "memory.max"), str(size))

    def pids(self):
        return [int(word) for word in read(os.path.join(self.folder, "cgroup.procs")).split()]

    def remove(self):
        """A group goes when the last of its processes is gone for good."""
        end = time.monotonic() + REMOVE_S
        while self.folder:
            try:
                os.rmdir(self.folder)
                self.folder = None
            except OSError:
                if time.monotonic() > end:
                    return
                time.sleep(0.02)


# ---- what is left behind ----

def mounts():
    return sorted(read("/proc/self/mounts").splitlines())


def files_of_ours():
    """What sublet itself could have left where everybody may write; tests make folders of their own there, with a dash."""
    return sorted(os.path.join(folder, name) for folder in ("/tmp", "/dev/shm") for name in os.listdir(folder)
                  if name.startswith("sublet") and not re.match(r"sublet-[a-z]+-", name))


def processes_with(folder):
    """Processes whose environment names the round's folder."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            if f"XDG_RUNTIME_DIR={folder}" in read(f"/proc/{name}/environ"):
                if read(f"/proc/{name}/stat").rpartition(")")[2].split()[:1] not in ([], ["Z"], ["X"]):
                    found.append(int(name))
    return found


class Traces:
    """What there was before a round, and whether it is all there is after it."""

    def __init__(self, folder, cgroup, backing):
        self.backing = backing
        self.folder = folder
        self.cgroup = cgroup
        self.mounts = mounts()
        self.files = files_of_ours()
        self.shmem = field_bytes("Shmem") * lent.KIB
        self.huge_used = huge_used()

    def memory_left(self):
        """What memory is not back yet, in words; None: nothing."""
        if self.cgroup.folder:
            left = self.cgroup.shmem_bytes() or 0
            if left > CGROUP_SLACK_BYTES:
                return f"{left} bytes of shared memory are still charged to the round"
        elif field_bytes("Shmem") * lent.KIB > self.shmem + SLACK_BYTES:
            return f"Shmem is {field_bytes('Shmem') * lent.KIB}, and was {self.shmem}"
        if self.backing == "hugetlb" and huge_used() > self.huge_used:
            return f"{huge_used()} huge pages are used, and {self.huge_used} were"
        return None

    def left(self, list_instances):
        """All that is left, in words. list_instances() removes sockets of the dead, as `sublet list` does."""
        end = time.monotonic() + SETTLE_S
        while True:
            found = [f"instance {instance}" for instance in list_instances()]
            sockets = os.path.join(self.folder, "sublet")
            found += [f"file {sockets}/{name}" for name in (os.listdir(sockets) if os.path.isdir(sockets) else ())]
            found += [f"process {pid}: {read(f'/proc/{pid}/comm').strip()}" for pid in processes_with(self.folder)]
            found += [f"mount {line}" for line in mounts() if line not in self.mounts]
            found += [f"file {path}" for path in files_of_ours() if path not in self.files]
            memory = self.memory_left()
            found += [memory] if memory else []
            if not found or time.monotonic() > end:
                return found
            time.sleep(0.02)


# ---- where it hangs ----

def dump_thread(pid, tid):
    folder = f"/proc/{pid}/task/{tid}"
    state = re.search(r"^State:\s*(.*)$", read(f"{folder}/status"), re.MULTILINE)
    return (f"  thread {tid} {read(f'{folder}/comm').strip()}: {state[1] if state else 'gone'}; "
            f"wchan {read(f'{folder}/wchan', '?')}; syscall {read(f'{folder}/syscall', '?').strip()}\n"
            + "".join(f"      {line}\n" for line in read(f"{folder}/stack").splitlines()))


def dump_process(pid):
    """Everything that tells where each thread of a process is. A debugger writes nothing into it."""
    try:
        tids = sorted(int(tid) for tid in os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return f"process {pid} has gone\n"
    command = read(f"/proc/{pid}/cmdline").replace("\0", " ").strip()
    text = f"process {pid}: {command}\n" + "".join(dump_thread(pid, tid) for tid in tids)
    try:
        gdb = subprocess.run(["gdb", "-nx", "-batch", "-p", str(pid), "-ex", "thread apply all backtrace 30"],
                             capture_output=True, text=True, timeout=DUMP_S, check=False, stdin=subprocess.DEVNULL)
        text += gdb.stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        text += f"  no backtrace: {error}\n"
    return text + "maps:\n" + read(f"/proc/{pid}/maps")


def dump(folder):
    """All processes of a round."""
    return "".join(dump_process(pid) + "\n" for pid in processes_with(folder)) or "no process of it is left\n"
