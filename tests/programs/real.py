# SPDX-License-Identifier: MIT
"""What the suites of longer real programs share: lent.py of the other clients, and a line with both times for each program."""
import os
import sys
import time

SOURCE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(SOURCE, "clients"))

import lent  # noqa: E402

MIB = lent.MIB


class Case(lent.Case):
    def both(self, name, *command, options=("--area", "256M", *lent.CHAOS), compare=None, **keywords):
        """Run plainly and lent, compare, and print the times. Returns (exit code, stdout, stderr), heap."""
        began = time.monotonic()
        plain = self.run_plain(*command, **keywords)
        between = time.monotonic()
        lent_result, stat = self.run_lent(*command, options=options, **keywords)
        ended = time.monotonic()
        compare = compare or (lambda result: result)
        self.assertEqual(compare(lent_result), compare(plain))
        self.say_times(name, between - began, ended - between, stat)
        return lent_result, stat

    def say_times(self, name, plain_s, lent_s, stat=None):
        heap = f", heap {(stat['lent_bytes'] + stat['plain_bytes']) / MIB:.0f} MiB, {stat['moves']} moves" if stat else ""
        print(f"  {name}: {plain_s:.1f} s, in lent memory {lent_s:.1f} s{heap}", flush=True)


def without_last_words(result):
    """Of a program that needed no memory, `sublet run` says so at the end."""
    code, out, err = result
    return code, out, b"".join(line for line in err.splitlines(True) if b"never took memory" not in line)
