#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Programs that forbid themselves system calls on pain of death: claims and malloc do not make any for them."""
import subprocess

import beside
from beside import lent

SECONDS = "4"
EAGER = {"MALLOC_CONF": "dirty_decay_ms:0,muzzy_decay_ms:0"}  # memory goes back, and comes anew, all the time


class Sandbox(beside.Case):
    def sandboxed(self, filter_name, *options, env=None):
        command = (beside.CLIENT, "sandbox", filter_name)
        lent.needs(self.run_plain(*command, "0")[0] == 0, f"not possible here without sublet: {filter_name}")
        instance = self.lent(*command, SECONDS, options=(*beside.SMALL, *options), env=env, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True)
        _, pidfd = self.helper(instance.pid)
        self.assertEqual(instance.process.stdout.readline(), "sandboxed\n")
        claims = 0
        while instance.process.poll() is None and claims < 20:
            result = self.sublet("claim", "-n", str(instance.pid), "--dearest", "--deadline", "2s", "30M")
            claims += result.returncode == 0
        out, err = instance.process.communicate(timeout=lent.TIMEOUT_S)
        self.assertEqual((instance.process.returncode, out, err), (0, "right\n", ""))
        self.assertGreater(claims, 0)
        self.assert_ends(pidfd, "the end of a sandboxed program")
        self.assertEqual(self.sockets(), [])

    def each(self, filter_name):
        for options, env in (((), None), (lent.CHAOS, None), (lent.CHAOS, EAGER)):
            with self.subTest(options=options, env=env):
                self.sandboxed(filter_name, *options, env=env)

    def test_priorities_and_processors(self):
        self.each("resource")

    def test_files_and_processes(self):
        self.each("files")

    def test_all_but_the_calls_of_malloc(self):
        self.each("minimal")


if __name__ == "__main__":
    lent.main()
