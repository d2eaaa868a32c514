"""Four devices on four languages, one coordinator, real processes: rounds with a kill, a late joiner and an absence.

    python -m benchmarks.figures.fleet TEXT [--work DIR] [--steps 48]

TEXT holds de.jsonl, fr.jsonl, it.jsonl and nl.jsonl somewhere below it. Every device trains the real SmolLM2 with
`comigs-edge train` in a home of its own. `fr` is killed (SIGKILL) in the third round and resumed, `it` joins after the second,
`nl` has no network for three rounds. Every model is evaluated in llama.cpp.

What leaves is seen twice: a proxy in front of the coordinator, which has its key, writes down everything in plain, and tcpdump
(where it is installed) what passes the loopback. Both, the coordinator's log and its folder are searched for canaries: strings in
the text of every device, and the bytes of its specialists and router.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import math
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import COMMAND, WORK, change_settings, environment, result_file, text_file, write_json
from coordinator import admin

LANGUAGES = ("de", "fr", "it", "nl")
CANARY = "canary-{}-7f3e9b1c the heron keeps its letters under the third stone"
LOCAL_STEPS = 4
ROUNDS = 10
SETTINGS = {
    "train": "batch = 4\ncontext = 128\nrouter_period = 16\nrouter_steps = 4\nvalidation_rows = 16\ncheckpoint_minutes = 0.5",
    "pause": "enabled = false", "evaluate": "max_tokens = 4096", "fleet": "report_loss = true",
}  # fmt: skip


class Proxy:
    """One device's way to the coordinator: TLS is ended here with the coordinator's own key, and everything written down."""

    def __init__(self, port: int, keys: Path, record: Path) -> None:
        self._target, self._record = port, record
        self._server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._server.load_cert_chain(keys / "tls.pem", keys / "tls.key")
        self._client = ssl._create_unverified_context()
        self.is_cut, self.port, self.bytes = False, 0, 0
        self.sent, self.cut_at = 0, math.inf  # bytes that the device has sent, and at how many the way is cut
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        threading.Thread(target=self._run, args=(ready,), daemon=True).start()
        ready.wait()

    def _run(self, ready: threading.Event) -> None:
        async def main() -> None:
            server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._server)
            self.port = server.sockets[0].getsockname()[1]
            ready.set()
            await server.serve_forever()

        self._loop.run_until_complete(main())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_cut:
            writer.transport.abort()
            return
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target, ssl=self._client)
        await asyncio.gather(self._copy(reader, far_writer, True), self._copy(far_reader, writer, False), return_exceptions=True)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_up: bool) -> None:
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while data := await reader.read(1 << 16):
                self.sent += len(data) * is_up
                self.is_cut |= self.sent >= self.cut_at
                if self.is_cut:
                    writer.transport.abort()
                    return
                with self._record.open("ab") as file:
                    file.write(data)
                self.bytes += len(data)
                writer.write(data)
                await writer.drain()
        writer.close()


class Device:
    """One home, its commands and its way to the coordinator."""

    def __init__(self, name: str, work: Path, text: Path) -> None:
        self.name, self.home = name, work / name
        self._work, self._text = work, text
        self.process: subprocess.Popen[str] | None = None
        self.proxy: Proxy | None = None

    def run(self, *arguments: str) -> dict[str, Any]:
        """The JSON of a command, or an empty table."""
        done = subprocess.run(self._command(arguments), capture_output=True, text=True, env=self._environment())
        if done.returncode:
            raise SystemExit(f"{self.name}: comigs-edge {' '.join(arguments)}: {done.stderr[-2000:]}")
        return json.loads(done.stdout) if "--json" in arguments else {}

    def prepare(self) -> None:
        """Home, settings, text and a canary in each split."""
        self.run("init")
        change_settings(self.home, SETTINGS)
        source = self._work / f"{self.name}.jsonl"
        lines = text_file(self._text, self.name).read_text().splitlines()
        canaries = [json.dumps({"text": f"{CANARY.format(self.name)} {number}. " * 20}) for number in range(40)]
        source.write_text("\n".join([*lines, *canaries]))
        self.run("data", "add", str(source))

    def join(self, data: Path, port: int) -> None:
        """Becomes a member, through a proxy of its own."""
        self.proxy = Proxy(port, data / "keys", self._work / "plain.bin")
        address = f"https://127.0.0.1:{self.proxy.port}"
        self.run("join", admin.call(data, "", "invite", name=self.name, address=address)["link"])

    def train(self, steps: int, *more: str) -> None:
        """Starts a training in the background."""
        log = (self._work / f"{self.name}.log").open("a")
        self.process = subprocess.Popen(
            self._command(("train", "--steps", str(steps), "--plan", "threads=1", "--json", *more)),
            stdout=(self._work / f"{self.name}.json").open("w"), stderr=log, text=True, env=self._environment(),
        )  # fmt: skip

    def kill(self) -> None:
        """As a power cut would, but for the disk."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    @property
    def is_training(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def _command(self, arguments: tuple[str, ...]) -> list[str]:
        return [*COMMAND, *arguments]

    def _environment(self) -> dict[str, str]:
        return environment(self.home) | {"OMP_WAIT_POLICY": "PASSIVE"}


class Capture:
    """tcpdump on the loopback, where it is installed."""

    def __init__(self, file: Path, port: int) -> None:
        self.file = file
        known = shutil.which("tcpdump")
        self._process = known and subprocess.Popen(
            [known, "-i", "lo", "-w", str(file), "-U", "-B", "65536", "tcp"], stderr=subprocess.DEVNULL
        )
        time.sleep(1)

    def stop(self) -> None:
        if self._process:
            self._process.terminate()
            self._process.wait()


def canaries(devices: list[Device]) -> dict[str, bytes]:
    """What must be found nowhere: text, and numbers of specialists and routers as they would be sent."""
    found: dict[str, bytes] = {}
    for device in devices:
        found[f"text of {device.name}"] = CANARY.format(device.name).encode()
        for folder in sorted((device.home / "adapters").glob("[0-9]*")):
            for path in folder.glob("*.safetensors"):
                if path.stem == "generalist":
                    continue
                data = path.read_bytes()
                numbers = np.frombuffer(data[-4096:], np.float32)
                for kind, piece in (("float32", numbers[:16]), ("float16", numbers[:16].astype(np.float16))):
                    found[f"{path.stem} of {device.name} {folder.name} as {kind}"] = piece.tobytes()
                    found[f"{path.stem} of {device.name} {folder.name} as {kind} base64"] = base64.b64encode(piece.tobytes())[:40]
    found["a specialist's name"] = b"specialist."
    found["a router's name"] = b"router.blk"
    return found


def search(places: list[Path], wanted: dict[str, bytes]) -> dict[str, int]:
    """Hits of every canary in all files."""
    hits = dict.fromkeys(wanted, 0)
    for place in places:
        for path in [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]:
            data = path.read_bytes()
            for name, piece in wanted.items():
                hits[name] += data.count(piece)
    return hits


def wait_for(round_number: int, data: Path, devices: list[Device], seconds: float = 1800) -> None:
    """Waits until this generalist is published."""
    end = time.monotonic() + seconds
    while admin.call(data, "", "status")["newest_round"] < round_number:
        if time.monotonic() > end or not any(device.is_training for device in devices):
            raise SystemExit(f"generalist {round_number} did not come")
        time.sleep(1)


def main() -> None:
    """Runs it all and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("--work", type=Path, default=WORK / "fleet")
    parser.add_argument("--steps", type=int, default=48)
    options = parser.parse_args()
    work = options.work.absolute()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    data, started = work / "coordinator", time.monotonic()
    devices = {name: Device(name, work, options.text) for name in LANGUAGES}
    for device in devices.values():
        device.prepare()
        print(f"{device.name}: home and text are there", flush=True)
    coordinator = subprocess.Popen(
        [sys.executable, "-m", "coordinator", "serve", "--data", str(data), "--host", "127.0.0.1", "--port", "0",
         "--local-steps", str(LOCAL_STEPS), "--deadline-seconds", "90"],
        stdout=subprocess.PIPE, stderr=(work / "coordinator.log").open("w"), text=True,
    )  # fmt: skip
    assert coordinator.stdout is not None
    port = int(coordinator.stdout.readline().rsplit(":", 1)[1])
    capture = Capture(work / "loopback.pcap", port)
    try:
        result = _story(devices, data, port, options.steps)
    finally:
        capture.stop()
        for device in devices.values():
            if device.is_training:
                device.kill()
    result["evaluated"] = {}
    for device in devices.values():
        device.run("export", "--json")
        found = device.run("evaluate", "--json")
        result["evaluated"][device.name] = found
        print(device.name, json.dumps(found)[:300], flush=True)
    status = admin.call(data, "", "status")
    result["rounds"] = admin.call(data, "", "rounds")["rounds"]
    result["devices"] = admin.call(data, "", "devices")["devices"]
    coordinator.terminate()
    result["coordinator_exit"] = coordinator.wait()
    wanted = canaries(list(devices.values()))
    places = [work / "plain.bin", work / "coordinator.log", data, *([capture.file] if capture.file.exists() else [])]
    hits = search(places, wanted)
    # The search itself must be able to find: a generalist's name is in what was sent, the canary is in the device's data.
    control = {
        "a generalist's name in what was sent": (work / "plain.bin").read_bytes().count(b"generalist.blk.0"),
        "the canary in a device's own data": sum(
            search([devices["de"].home / "data"], {"x": CANARY.format("de").encode()}).values()
        ),
    }
    result |= {
        "canaries": len(wanted), "hits": sum(hits.values()), "hits_by_canary": {k: v for k, v in hits.items() if v},
        "control": control, "searched_bytes": {str(p.name): _size(p) for p in places},
        "minutes": (time.monotonic() - started) / 60, "bytes_in": status["bytes_in"], "bytes_out": status["bytes_out"],
    }  # fmt: skip
    write_json(result_file("fleet.json"), result)
    print(json.dumps({k: v for k, v in result.items() if k not in ("rounds", "devices", "evaluated")}, indent=1))


def _story(devices: dict[str, Device], data: Path, port: int, steps: int) -> dict[str, Any]:
    everybody = list(devices.values())
    for name in ("de", "fr", "nl"):
        devices[name].join(data, port)
        devices[name].train(steps)
    events: list[str] = []

    def note(text: str) -> None:
        events.append(f"{admin.call(data, '', 'status')['newest_round']}: {text}")
        print(events[-1], flush=True)

    wait_for(2, data, everybody)
    devices["it"].join(data, port)
    devices["it"].train(steps)
    note("it has joined")
    wait_for(3, data, everybody)
    devices["fr"].kill()
    note("fr was killed")
    proxy = devices["nl"].proxy
    assert proxy is not None
    proxy.is_cut = True
    note("nl has no network")
    time.sleep(5)
    devices["fr"].train(steps, "--resume")
    wait_for(6, data, everybody)
    proxy.is_cut = False
    note("nl has its network again")
    wait_for(ROUNDS, data, everybody)
    note(f"generalist {ROUNDS}")
    while any(device.is_training for device in everybody):
        time.sleep(2)
    found: dict[str, Any] = {"events": events, "trained": {}}
    for device in everybody:
        assert device.process is not None
        output = (device.home.parent / f"{device.name}.json").read_text()
        found["trained"][device.name] = {"exit": device.process.returncode, **(json.loads(output) if output else {})}
        device.run("sync", "--json")
    return found


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


if __name__ == "__main__":
    main()
