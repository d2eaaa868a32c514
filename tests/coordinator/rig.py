"""A real coordinator in a process of its own, and devices that talk to it, for tests and sweeps."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from comigs_edge.fleet.client import Remote
from coordinator import admin
from coordinator.protocol import compress, keys, wire
from coordinator.protocol.messages import Commit, Generalist, Join
from tests import warm

SHAPES = {f"generalist.blk.{block}.{name}": shape for block in range(2) for name, shape in (
    ("ffn_gate.lora_a", (4, 64)), ("ffn_gate.lora_b", (96, 4)), ("ffn_down.lora_a", (4, 96)), ("ffn_down.lora_b", (64, 4)),
)}  # fmt: skip


def generalist(shapes=SHAPES, base="ab" * 32):
    return Generalist(base_name="tiny", base_sha256=base, form="lora", scale=4.0, tensors=shapes)


def arrays(value, shapes=SHAPES):
    return {name: np.full(shape, value, np.float32) for name, shape in shapes.items()}


def random_arrays(seed, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def flag(name, value):
    return [name] if value is True else [name, str(value)]


class Coordinator:
    """`comigs-coordinator serve` as a process; flags are those of the command, as in goal=2.

    With a prefix, `env` for instance, it begins as its owner begins it; without one its libraries are there already.
    """

    def __init__(self, data, port=0, prefix=(), environment=None, **flags):
        self.data, self.flags, self.prefix, self.environment = data, flags, list(prefix), environment or {}
        self.start(port)

    def start(self, port=0):
        options = [part for name, value in self.flags.items() for part in flag(f"--{name.replace('_', '-')}", value)]
        self.log = open(f"{self.data}.log", "ab")  # noqa: SIM115
        words = ["-m", "coordinator", "serve", "--data", str(self.data), "--host", "127.0.0.1", "--port", str(port), *options]
        streams = {"stdout": subprocess.PIPE, "stderr": self.log, "text": True, "env": {**os.environ, **self.environment}}
        if self.prefix:
            self.process = subprocess.Popen([*self.prefix, sys.executable, *words], **streams)
        else:
            self.process = warm.Process(words, **streams)
        line = self.process.stdout.readline()
        found = re.search(r"https://\S+:(\d+)", line)
        if not found:
            self.process.wait()
            self._close()
            raise RuntimeError(f"the coordinator did not start: {Path(self.log.name).read_text()[-2000:]}")
        self.address, self.port = found[0], int(found[1])
        self.pin = bytes.fromhex(self.process.stdout.readline().split()[1])

    def command(self, *arguments):
        """The JSON of an operator's command."""
        words = ["-m", "coordinator", *arguments, "--data", self.data, "--json"]
        return json.loads(warm.run(words, check=True, capture_output=True, text=True).stdout)

    def ask(self, operation, **arguments):
        """The same without a process for it."""
        return admin.call(self.data, "test", operation, **arguments)

    def invite(self, name=None):
        return self.ask("invite", name=name)["link"]

    def rounds(self):
        return self.ask("rounds", last=100_000)["rounds"]

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self._close()

    def stop(self):
        self.process.terminate()
        code = self.process.wait(20)
        self._close()
        return code

    def _close(self):
        self.process.stdout.close()
        self.log.close()

    def restart(self):
        """Starts again on the same port."""
        self.start(self.port)

    def until(self, condition, seconds=10.0):
        """Waits until `condition(status)` holds; returns the status."""
        end = time.monotonic() + seconds
        while True:
            status = self.ask("status")
            if condition(status):
                return status
            assert time.monotonic() < end, status
            time.sleep(0.05)


class Member:
    """A device of the fleet: the real client, with a key of its own."""

    def __init__(self, link, name=None, shapes=SHAPES, patience=5.0):
        address, code, pin = keys.read_link(link)
        self.key, self.shapes = keys.new_key(), shapes
        public = keys.public_text(self.key)
        self.id = keys.device_id(public)
        self.remote = Remote(address, pin, self.key, self.id, patience)
        self.wish = Join(code=code, name=name, public_key=public, generalist=generalist(shapes), version="test")
        self.joined = self.remote.join(self.wish)

    def payload(self, update):
        return self.encoded(update, 0)

    def encoded(self, update, trained_from):
        return wire.encode(compress.pack(update, compress.update_format(self.joined.settings.update_format, trained_from)))

    def push(self, update, tokens=1000, state=None, loss=None):
        """Uploads and commits an update of the open round; returns the receipt."""
        state = state or self.remote.state()
        newest = -1 if state.newest is None else keys.open_manifest(state.newest, self.joined.signing_key).round
        sha256 = self.remote.upload(self.encoded(update, newest))
        return self.remote.commit(
            Commit(sha256=sha256, trained_from=newest, tokens=tokens, expected_round=state.open_round, validation_loss=loss)
        )

    def pull(self, folder, seconds=10.0, at_least=0):
        """Waits for a generalist of at least this round; returns its number and arrays."""
        end = time.monotonic() + seconds
        while True:
            state = self.remote.state()
            manifest = state.newest and keys.open_manifest(state.newest, self.joined.signing_key)
            if manifest and manifest.round >= at_least:
                target = folder / f"{self.id}-{manifest.round}"
                self.remote.download(manifest, target)
                assert hashlib.sha256(target.read_bytes()).hexdigest() == manifest.sha256
                return manifest.round, wire.decode(target.read_bytes(), "the generalist")
            assert time.monotonic() < end, "no generalist came"
            time.sleep(0.05)
