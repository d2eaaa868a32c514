"""What an exchange of SmolLM2's size costs: `python benchmarks/torture/exchanges.py`. Requests, bytes, processor seconds; JSON.

One device, 1.65 million numbers, float16 updates, four rounds after the first; then the devices a minute that each carries.
"""

from __future__ import annotations

import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import tests.fleet.rig as fleet  # noqa: E402
from benchmarks.common import result_file, write_json  # noqa: E402
from tests.coordinator import rig  # noqa: E402

SHAPES = {f"generalist.blk.{block}.ffn_up.weight": (110, 500) for block in range(30)}
LINKS = {"1 Gbit/s": 1e9, "100 Mbit/s": 1e8, "20 Mbit/s": 2e7}


def main() -> None:
    """Measures, writes the JSON."""
    fleet.SHAPES, fleet.generalist = SHAPES, lambda base: rig.generalist(SHAPES, base)
    with tempfile.TemporaryDirectory() as folder:
        coordinator = rig.Coordinator(Path(folder) / "data", prefix=["env"], update_format="float16", goal=1)
        device = fleet.Device(Path(folder) / "home")
        device.initial = device.local = rig.arrays(0.0, SHAPES)
        device.join_coordinator(coordinator.invite(), 60.0)
        device.exchange()
        coordinator.until(lambda status: status["newest_round"] == 0)
        device.exchange(0)
        rows = [one(coordinator, device, number) for number in range(1, 5)]
        coordinator.stop()
    middle = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    busiest = 8 * max(middle["up"], middle["down"])  # bits, each way of a link for itself
    minute = {"one core": 60 / middle["coordinator_cpu"], **{name: 60 * rate / busiest for name, rate in LINKS.items()}}
    write_json(result_file("exchanges.json"), {"median": middle, "devices_a_minute": {k: round(v) for k, v in minute.items()}})


def one(coordinator: rig.Coordinator, device: fleet.Device, number: int) -> dict[str, float]:
    """One update brought, and the generalist that comes of it."""
    sent, send = [], type(device.transport._session).send
    session = device.transport._session
    session.send = lambda request, **options: sent.append(request) or send(session, request, **options)
    used, theirs = own(), processor(coordinator)
    rng = np.random.default_rng(number)
    device.learn({name: 0.01 * rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()})
    outcomes = [device.exchange()]
    time.sleep(1.5)  # the generalist is made
    outcomes.append(device.exchange(0))
    return {
        "requests": len(sent), "up": sum(each.bytes_sent for each in outcomes),
        "down": sum(each.bytes_received for each in outcomes),
        "coordinator_cpu": processor(coordinator) - theirs, "device_cpu": own() - used,
    }  # fmt: skip


def processor(coordinator: rig.Coordinator) -> float:
    """The coordinator's processor seconds so far."""
    fields = Path(f"/proc/{coordinator.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def own() -> float:
    """This process's."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
