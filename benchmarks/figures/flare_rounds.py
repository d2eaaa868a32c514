"""What a round of SmolLM2's size costs on NVIDIA FLARE, on loopback: seconds, processor seconds, memory. Two sites, no training.

    python -m benchmarks.figures.flare_rounds

Needs the extra comigs-edge[flare]. The homes have no model: each learns random numbers and exchanges at once, so a round is
what FLARE, counting and the books take.
"""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import tests.fleet.rig as fleet
from benchmarks.common import result_file, write_json
from comigs_edge.fleet.carried import Carried, CarriedTransport
from coordinator.flare import export
from coordinator.protocol import keys, kits
from coordinator.protocol.messages import Join
from tests.coordinator import rig

SHAPES = {f"generalist.blk.{block}.ffn_up.weight": (110, 500) for block in range(30)}  # as in benchmarks/torture/exchanges.py
ROUNDS = 8
NAMES = ("a", "b")


def main() -> None:
    fleet.SHAPES = SHAPES
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        root = Path(folder)
        processes = _start(root, stack)
        devices = [_join(root, name) for name in NAMES]
        idle = {name: _memory(process.pid) for name, process in processes.items()}
        rounds = list(_rounds(devices, processes))
        record = {
            "command": "make bench WHAT=flare-rounds", "numbers": sum(a * b for a, b in SHAPES.values()), "sites": len(NAMES),
            "load_of_the_machine": os.getloadavg()[0], "with_a_job_mb": idle, "median": _medians(rounds), "rounds": rounds,
        }  # fmt: skip
    write_json(result_file("flare-rounds.json"), record)


def _start(root: Path, stack: contextlib.ExitStack) -> dict[str, Any]:
    """The server with its supervisor, and the sites' clients."""
    data, project = root / "data", root / "project"
    data.mkdir(mode=0o700)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    export.export(project, data, NAMES, host="localhost", port=port, rounds=1000, minutes=60, valid_days=360)
    words = ["-m", "nvflare.lighter.provision", "-p", str(project / "project.yml"), "-w", str(project / "kits")]
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    processes: dict[str, Any] = {}
    for name in NAMES:
        Carried(root / name / "flare")  # makes the folder
        kit = export.kits(project)[0].parent / name
        processes[name] = kits.Process(kit, root / f"{name}.log", {kits.SPOOL: str(root / name / "flare")})
        stack.callback(processes[name].stop)
    run = [sys.executable, "-m", "coordinator", "flare", "run", str(project), "--data", str(data)]
    time.sleep(5)  # a site that is late is in the second job only
    processes["server"] = server = subprocess.Popen(run, stderr=subprocess.DEVNULL)
    stack.callback(server.wait)
    stack.callback(server.terminate)
    return processes


def _join(root: Path, name: str) -> fleet.Device:
    device = fleet.Device(root / name)
    device.initial = device.local = rig.arrays(0.0, SHAPES)
    carried, public = Carried(root / name / "flare"), keys.public_text(device.folder.key(makes=True))
    carried.wait(300)
    wish = Join(code="", name=name, public_key=public, generalist=rig.generalist(SHAPES, fleet.BASE), version="bench")
    joined = carried.ask(60, join=wish).joined
    assert joined is not None
    device.transport = CarriedTransport(carried, joined.device, 60)
    return device._join("", "", joined.fleet, joined.device, joined.signing_key, joined.settings)


def _rounds(devices: list[fleet.Device], processes: dict[str, Any]) -> Iterator[dict[str, float]]:
    """Seconds and processor seconds of each round after the first."""
    newest = _until(devices, 0)
    for _ in range(ROUNDS):
        began, used = time.monotonic(), {name: _processor(process.pid) for name, process in processes.items()}
        for device in devices:
            rng = np.random.default_rng(newest)
            device.learn({name: 0.01 * rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()})
        newest = _until(devices, newest + 1)
        yield {"seconds": time.monotonic() - began} | {
            f"processor_{name}": _processor(process.pid) - used[name] for name, process in processes.items()
        }


def _until(devices: list[fleet.Device], number: int) -> int:
    """Exchanges until all have this generalist."""
    while min(device.books.standing.head for device in devices) < number:
        for device in devices:
            if device.books.standing.head < number:
                device.exchange(1)
        time.sleep(0.1)
    return number


def _tree(pid: int) -> list[int]:
    """A process and all that it and its threads have started."""
    children = [child for each in Path(f"/proc/{pid}/task").iterdir() for child in (each / "children").read_text().split()]
    return [pid, *(each for child in children for each in _tree(int(child)))]


def _processor(pid: int) -> float:
    """Of a process and what it has started."""
    ticks = 0
    for each in _tree(pid):
        fields = Path(f"/proc/{each}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _memory(pid: int) -> float:
    """Proportional megabytes of a process and what it has started."""
    lines = [line for each in _tree(pid) for line in Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()]
    return round(sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024, 1)


def _medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(each[name] for each in rounds), 2) for name in rounds[0]}


if __name__ == "__main__":
    main()
