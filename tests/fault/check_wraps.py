#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The fault loop can make every call fail that the library makes.

Each function of libc and liburing that the library's objects refer to is either in the list of --wrap in meson.build,
or here, with the reason why it cannot fail or why its failure is not the library's to survive; each number of a system
call in src/ is known to inject.c.

  check_wraps.py SOURCE WRAPPED,... OBJECT...
"""
import os
import re
import subprocess
import sys

CANNOT_FAIL = {
    "gives back": "close closedir free io_uring_queue_exit io_uring_unregister_buffers munmap pthread_attr_destroy "
                  "shutdown unlinkat",
    "is of this process": "getegid geteuid getpid getenv program_invocation_short_name sched_getcpu sysconf uname "
                          "__libc_single_threaded",
    "has a right answer for every failure, checked by hand: a limit that is not known is none": "getrlimit64 "
        "sched_getaffinity pthread_getaffinity_np pthread_setaffinity_np setpriority prctl __sched_cpucount",
    "waits, or wakes": "nanosleep pthread_cond_signal pthread_cond_wait pthread_join pthread_mutex_lock "
                       "pthread_mutex_unlock pthread_once pthread_mutex_init pthread_cond_init waitpid clock_gettime",
    "is of the calling thread": "pthread_attr_init pthread_attr_setstacksize pthread_detach pthread_setcancelstate "
                                "pthread_setname_np pthread_sigmask sigfillset __errno_location __tls_get_addr",
    "only asks whether a directory or a file is there": "stat64 fstatat64 readdir64 rewinddir",
    "wakes a thread of ours; a full socket does as well": "send recv",
    "ends the process": "_exit abort __stack_chk_fail",
    "works on memory": "memcpy memmove memset __memcpy_chk __memset_chk __memmove_chk snprintf __snprintf_chk strchr "
                       "strcspn strcmp strerror strlen strncmp strnlen strrchr strstr strtol __isoc23_strtol "
                       "__cmsg_nxthdr gnu_dev_major gnu_dev_minor",
    "is part of the program": "_GLOBAL_OFFSET_TABLE_ __cpu_model __cpu_indicator_init __ehdr_start",
    "is a counter of a build for coverage": "__gcov_exit __gcov_init __gcov_merge_add",
}


def undefined(objects):
    text = subprocess.run(["nm", "--undefined-only", "--no-sort"] + objects, check=True, capture_output=True,
                          text=True).stdout
    return {m.group(1) for m in re.finditer(r"^\s+[Uw] (\S+)$", text, re.M)}


def numbers(root):
    for folder, _, names in os.walk(os.path.join(root, "src")):
        if os.path.basename(folder) in ("core", "linux", "dev", "control"):
            for name in names:
                with open(os.path.join(folder, name), encoding="utf-8") as source:
                    yield from re.findall(r"\bSYS_[a-z]\w*", source.read())


def main():
    root, wrapped, objects = sys.argv[1], set(sys.argv[2].split(",")), sys.argv[3:]
    known = wrapped | {name for names in CANNOT_FAIL.values() for name in names.split()}
    bad = [f"{name}: neither wrapped nor known not to fail" for name in sorted(undefined(objects))
           if name not in known and not name.startswith(("sublet_", "__real_"))]
    with open(os.path.join(root, "tests/fault/inject.c"), encoding="utf-8") as source:
        table = source.read()
    bad += [f"{name}: not in the table of inject.c" for name in sorted(set(numbers(root))) if "{ " + name not in table]
    print("\n".join(bad) if bad else f"fault wraps: {len(wrapped)} functions")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
