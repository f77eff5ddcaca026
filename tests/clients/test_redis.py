#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Redis in lent memory, moved all the time, while it writes its snapshots and rewrites its log."""
import json
import os
import shutil
import signal
import time

import lent
import redis

KEYS = 400_000
RUN = ("--area", "256M", "--normal", "256M", *lent.CHAOS)


class Redis(redis.Case):
    def stop_child(self, instance):
        """Wait for the child of a save and stop it; its pid."""
        child = lent.wait_for(lambda: self.children(instance.pid), 30, 0.001)[0]
        lent.wait_for(lambda: instance.stat()["children"] == 1, 30)  # it has signed: from then on a claim names it
        os.kill(child, signal.SIGSTOP)
        self.addCleanup(self.go_on, child)
        return child

    @staticmethod
    def go_on(child):
        try:
            os.kill(child, signal.SIGCONT)
        except ProcessLookupError:
            pass

    @staticmethod
    def children(pid):
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            return [int(word) for word in file.read().split()]

    def save_while_claiming(self, instance, client, command, running):
        """Start a save, look at what claims say while its child lives, and wait for its end."""
        forks = instance.stat()["forks"]
        client("CONFIG", "SET", "rdb-key-save-delay", "-40")
        client(command)
        child = self.stop_child(instance)
        refused = self.sublet("claim", "-n", instance.name, "--json", "--deadline", "50ms", "250M")
        self.assertEqual(refused.returncode, 4, refused.stderr)
        blockers = json.loads(refused.stdout)["claims"][0]["blockers"]
        self.assertEqual({(b["kind"], b["pid"]) for b in blockers if b["kind"] == "child"}, {("child", child)})
        self.assertIn(str(child), instance.claim_fails(4, "--deadline", "50ms", "250M").stderr)
        self.assertGreater(instance.stat()["area_held_bytes"], 0)
        self.assertEqual(instance.claim("2M")["summary"]["succeeded"], 1)
        time.sleep(0.2)  # let it write into memory that the child shares: a load, not a wait
        self.go_on(child)
        client("CONFIG", "SET", "rdb-key-save-delay", "0")
        lent.wait_for(lambda: client.info("persistence")[running] == "0", pause=0.05)
        self.assertGreater(instance.stat()["forks"], forks)
        self.assertEqual(client.info("persistence")["rdb_last_bgsave_status"], "ok")
        self.assertEqual(client.info("persistence")["aof_last_bgrewrite_status"], "ok")

    def assert_same_data(self, client, writes):
        """Every byte of it is what a plain Redis has after the same commands."""
        _, twin = self.server("twin")
        twin.fill(KEYS)
        twin.write(1, writes + 1, KEYS)
        self.assertEqual(client("DEBUG", "DIGEST"), twin("DEBUG", "DIGEST"))

    def test_bgsave(self):
        instance, client = self.server("lent", run=RUN)
        client.fill(KEYS)
        self.assert_lent(instance.stat())
        writer = redis.Writer(self.path("lent", "socket"), KEYS)
        writer.start()
        lent.wait_for(lambda: writer.done > 1000 or writer.error)
        self.save_while_claiming(instance, client, "BGSAVE", "rdb_bgsave_in_progress")
        dump = self.path("fresh", "dump.rdb")
        os.mkdir(self.path("fresh"))
        shutil.copy(self.path("lent", "dump.rdb"), dump)
        self.assert_released(instance)
        writes = writer.stop()
        self.assert_lent(instance.stat())
        _, fresh = self.server("fresh")
        saved = self.assert_state(fresh, KEYS, writes)
        print(f"  {saved} of {writes} writes were before the snapshot")
        self.assertEqual(self.assert_state(client, KEYS, writes), writes)
        self.assert_same_data(client, writes)
        self.assertEqual(instance.end(), 0)

    def test_bgrewriteaof(self):
        instance, client = self.server("lent", "--appendonly", "yes", "--appendfsync", "no", run=RUN)
        client.fill(KEYS)
        writer = redis.Writer(self.path("lent", "socket"), KEYS)
        writer.start()
        lent.wait_for(lambda: writer.done > 1000 or writer.error)
        self.save_while_claiming(instance, client, "BGREWRITEAOF", "aof_rewrite_in_progress")
        self.assert_released(instance)
        writes = writer.stop()
        self.assert_lent(instance.stat())
        data = client("DEBUG", "DIGEST")
        self.assertEqual(instance.end(), 0)
        shutil.copytree(self.path("lent", "appendonlydir"), self.path("fresh", "appendonlydir"))
        _, fresh = self.server("fresh", "--appendonly", "yes")
        self.assertEqual(self.assert_state(fresh, KEYS, writes), writes)
        self.assertEqual(fresh("DEBUG", "DIGEST"), data)


if __name__ == "__main__":
    lent.main()
