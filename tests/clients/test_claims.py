#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Claims of an area that is full: all of them succeed, and nobody's bytes change."""
import os
import signal
import subprocess

import lent

COUNT = 100
HEAP = 240 * lent.MIB  # more than 256 MiB with what malloc adds: the area is full, a little is plain memory


class Claims(lent.Case):
    def claim_often(self, heap, *arguments, options=("--area", "256M")):
        """100 claims of a full instance; its JSON summary and what it moved."""
        instance = self.start_filler(*options, bytes_count=heap)
        before = instance.stat()
        self.assert_lent(before, moved=False)
        out = instance.claim("64M", "--count", str(COUNT), *arguments)
        self.assertEqual((out["summary"]["succeeded"], out["summary"]["failed"]), (COUNT, 0))
        self.assertEqual(len(out["claims"]), COUNT)
        for claim in out["claims"]:
            self.assertTrue(claim["ok"])
            self.assertEqual(claim["size_bytes"], 64 * lent.MIB)
        after = instance.stat()
        self.assertEqual(after["claims_held"], 0)
        self.assertEqual(after["area_claimed_bytes"], 0)
        self.assert_lent(after)
        print(f"  {' '.join(arguments) or 'cheapest'}: {out['summary']['moved_claims']} of {COUNT} claims moved something, "
              f"median {out['summary']['memcpy_ratio_median'] or 0:.2f} x memcpy, "
              f"{out['summary']['latency_median_ns'] / 1e6:.1f} ms")
        self.end_filler(instance)
        return before, out

    def test_full(self):
        before, out = self.claim_often(HEAP)
        self.assertLess(before["area_free_bytes"], 2 * lent.MIB)
        self.assertGreater(out["summary"]["moved_claims"], 0)

    def test_full_every_claim_moves(self):
        before, out = self.claim_often(HEAP, "--dearest")
        self.assertLess(before["area_free_bytes"], 2 * lent.MIB)
        self.assertEqual(out["summary"]["moved_claims"], COUNT)
        self.assertGreater(out["summary"]["memcpy_ratio_median"], 0)
        self.assertGreaterEqual(sum(claim["moved_bytes"] for claim in out["claims"]), COUNT * 32 * lent.MIB)

    def test_nearly_full_under_chaos(self):
        """The random claims of the torture mode hold parts of the area now and then: then this one waits."""
        self.claim_often(236 * lent.MIB, "--dearest", "--no-zero", options=("--area", "256M", "--normal", "128M",
                                                                            *lent.CHAOS))

    def test_nobody_sees_old_bytes(self):
        """malloc gives everything back at once and takes it anew: what calloc returns is zero all the same."""
        instance = self.start_filler("--area", "128M", *lent.CHAOS, bytes_count=64 * lent.MIB, churn=("churn",),
                                     env={"MALLOC_CONF": "retain:false,dirty_decay_ms:0,muzzy_decay_ms:0"})
        for _ in range(10):
            instance.claim("16M", "--count", "5", "--no-zero")
        self.assert_lent(instance.stat())
        self.end_filler(instance)

    def test_several_drivers_at_once(self):
        instance = self.start_filler("--area", "256M", "--normal", "128M", bytes_count=HEAP)
        drivers = [self.popen([lent.SUBLET, "claim", "-n", instance.name, "--owner", f"driver {n}", "--count", "60",
                               "--dearest", "--hold", "2ms", "--deadline", "20s", "24M"], stdout=subprocess.DEVNULL)
                   for n in range(4)]
        for driver in drivers:
            self.assertEqual(driver.wait(lent.TIMEOUT_S), 0)
        self.assertEqual(instance.stat()["claims_held"], 0)
        self.assert_lent(instance.stat())
        self.end_filler(instance)

    def test_a_driver_that_is_killed(self):
        """What it held is free again: a claim of the whole area finds nothing in its way."""
        instance = self.start_filler("--area", "128M", "--normal", "256M", bytes_count=100 * lent.MIB)
        driver = self.popen([lent.SUBLET, "claim", "-n", instance.name, "--hold", "1h", "64M"],
                            stdout=subprocess.PIPE, text=True)
        self.assertIn("claimed 64 MiB", driver.stdout.readline())
        refused = instance.claim_fails(4, "--no-wait", "128M")
        self.assertIn(str(driver.pid), refused.stderr)
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        lent.wait_for(lambda: instance.stat()["claims_held"] == 0, 30)
        instance.claim("128M")
        self.assert_lent(instance.stat())
        self.end_filler(instance)


if __name__ == "__main__":
    lent.main()
