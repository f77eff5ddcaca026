#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""PulseAudio, whose mutexes inherit priority: a lent server plays to a null sink, and to a pipe, where the samples are looked at."""
import array
import os
import subprocess
import threading
import wave

import real
import lent

RATE = 44100
SECONDS = 4


class Sound(real.Case):
    def setUp(self):
        super().setUp()
        os.mkdir(self.path("home"))
        self.env.update(HOME=self.path("home"), PULSE_RUNTIME_PATH=self.path("pulse"), PULSE_SERVER=f"unix:{self.path('native')}")
        # Never twice the same, and nowhere silent, so that it can be found among silence.
        self.samples = array.array("h", (1 + (n * 7919 ^ n >> 3) % 30000 for n in range(RATE * SECONDS)))
        with wave.open(self.path("sound.wav"), "wb") as file:
            file.setparams((1, 2, RATE, 0, "NONE", ""))
            file.writeframes(self.samples.tobytes())

    def server(self, *modules):
        modules = (*modules, f"module-native-protocol-unix auth-anonymous=1 socket={self.path('native')}")
        command = [lent.program("pulseaudio"), "--system=no", "--exit-idle-time=-1", "--daemonize=no", "--use-pid-file=no",
                   "--resample-method=trivial", "-n", *(word for module in modules for word in ("-L", module))]
        instance = self.lent(*command, options=("--area", "64M", *lent.CHAOS), name="sound",
                             stderr=subprocess.DEVNULL)
        lent.wait_for(lambda: instance.process.poll() is not None or self.run_plain("pactl", "info")[0] == 0)
        return instance

    def play(self):
        code, _, err = self.run_plain(lent.program("paplay"), self.path("sound.wav"))
        self.assertEqual((code, err), (0, b""))

    def finish(self, instance):
        stat = instance.stat()
        print(f"  pulseaudio: {stat['moves']} moves, lent {100 * stat['lent_ratio']:.0f} %", flush=True)
        self.assertGreater(stat["moves"], 0)
        self.assertIsNone(instance.process.poll())
        self.assertEqual(instance.end(), 0)

    def test_null_sink(self):
        instance = self.server("module-null-sink")
        for _ in range(2):
            self.play()
        # A lent client as well, which plays what it is given.
        code, out, err = self.run_lent(lent.program("pacat"), "--rate", str(RATE), "--channels", "1", "--format", "s16le",
                                       input=self.samples.tobytes(), options=("--area", "16M", *lent.CHAOS))[0]
        self.assertEqual((code, out), (0, b""), err)
        self.finish(instance)

    def test_samples(self):
        fifo = self.path("samples")
        os.mkfifo(fifo)
        got = bytearray()

        def read():
            with open(fifo, "rb") as file:
                while piece := file.read(4096):
                    got.extend(piece)
        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        instance = self.server(f"module-pipe-sink file={fifo} format=s16le rate={RATE} channels=1")
        self.play()
        lent.wait_for(lambda: got.find(self.samples[-2000:].tobytes()) >= 0, 30)
        heard = array.array("h", bytes(got[:len(got) // 2 * 2]))
        # A player that comes late on a busy machine is heard as silence in between. No sample of ours is silent, and none may be lost.
        self.assertEqual(array.array("h", (sample for sample in heard if sample)), self.samples)
        self.finish(instance)


if __name__ == "__main__":
    lent.main()
