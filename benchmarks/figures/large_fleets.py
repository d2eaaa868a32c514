"""How long an exchange waits in fleets of 10^3 to 10^6 devices: queues, links and an outage, event by event.

    python -m benchmarks.figures.large_fleets

After a period (+- 20 %) a device's update goes over its own link, waits for the coordinator's incoming link, for its processor
and for its outgoing link, in that order of coming. While the coordinator is away a device tries again as ours do: after a time
drawn between 0 and 5 s times 2 to the failures, half an hour at most. The model is checked against the real coordinator with 200
devices. A tree of coordinators is its leaves: each serves its share, and is one device of the next level.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import RESULTS, ROOT, result_file, write_json

sys.path.insert(0, str(ROOT))

from comigs_edge.fleet.exchange import MAX_PAUSE, PAUSE
from tests.coordinator import crowd, rig

DEVICE_LINK = 20e6  # bit/s of a home, each way
CORE, BOARD = 1.0, 4.0  # how many times as long a processor takes as the one that was measured; a Pi 4's is an estimate
CHECKED, ALONE, BURST = 200, 10, 40  # devices of the check; before it, of those one at a time, and of those all at once
SHAPES = {f"generalist.blk.{block}.ffn_up.weight": (110, 100) for block in range(10)}  # of the check: small, so that it is short
PERIODS = {"1 min": 60.0, "10 min": 600.0, "1 h": 3600.0, "1 day": 86400.0}
LINKS = {"1 Gbit/s": 1e9, "100 Mbit/s": 1e8, "20 Mbit/s": 2e7}


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """What is simulated; seconds, bytes, bits a second."""

    devices: int
    period: float
    processor: float  # of one exchange
    link: float
    up: float = 0.0
    down: float = 0.0
    outage: float = 0.0  # of the coordinator, after one period


def exchanges(fleet: Fleet, periods: float, seed: int = 0) -> Iterator[tuple[float, float]]:
    """(when it began, seconds it took) of every exchange that begins within so many periods, in the order of their coming."""
    draw = random.Random(seed).random
    due = [(draw() * fleet.period, 0.0, 0) for _ in range(fleet.devices)]  # when it reaches the coordinator, began, failures
    due = [(at, at, 0) for at, _, _ in due]
    heapq.heapify(due)
    came = worked = went = 0.0  # until when each stage is busy
    last, away = periods * fleet.period, (fleet.period, fleet.period + fleet.outage)
    own = 8 * (fleet.up + fleet.down) / DEVICE_LINK
    while due and due[0][1] < last:
        at, began, failures = heapq.heappop(due)
        if away[0] <= at < away[1]:
            pause = draw() * min(MAX_PAUSE, PAUSE * 2 ** (failures + 1))
            heapq.heappush(due, (at + pause, began, failures + 1))
            continue
        came = max(at, came) + 8 * fleet.up / fleet.link
        worked = max(came, worked) + fleet.processor
        went = max(worked, went) + 8 * fleet.down / fleet.link
        yield began, went - began + own
        again = went + own + fleet.period * (0.8 + 0.4 * draw())
        heapq.heappush(due, (again, again, 0))


def row(fleet: Fleet, periods: float = 2.0) -> dict[str, Any]:
    """What is kept of one simulation: the first half of a period is left out; an outage is seen to its end."""
    more = (fleet.outage + 2 * MAX_PAUSE) / fleet.period if fleet.outage else 0.0
    took = [(began, seconds) for began, seconds in exchanges(fleet, periods + more) if began > fleet.period / 2]
    seconds = np.array([each for _, each in took])
    load = max(fleet.processor, 8 * fleet.up / fleet.link, 8 * fleet.down / fleet.link) * fleet.devices / fleet.period
    found = {
        **asdict(fleet), "load": round(load, 3), "exchanges": len(took), "p50": round(float(np.quantile(seconds, 0.5)), 2),
        "p99": round(float(np.quantile(seconds, 0.99)), 2),
    }  # fmt: skip
    if fleet.outage:
        normal = float(np.quantile([each for began, each in took if began < fleet.period], 0.99))
        late = [began + each for began, each in took if each > 2 * normal]
        found["seconds_until_usual"] = round(max(late, default=0.0) - fleet.period - fleet.outage, 1)
    return found


def most(period: float, seconds: float) -> int:
    """Devices at 70 % of what takes so many seconds an exchange."""
    return round(0.7 * period / seconds)


def table(median: dict[str, float]) -> dict[str, dict[str, int]]:
    """Where one light coordinator ends: period -> what is full -> devices."""
    stages = {"core": CORE * median["coordinator_cpu"], "Pi 4": BOARD * median["coordinator_cpu"]}
    stages |= {name: 8 * max(median["up"], median["down"]) / rate for name, rate in LINKS.items()}
    return {name: {stage: most(period, seconds) for stage, seconds in stages.items()} for name, period in PERIODS.items()}


def tree(devices: int, per_leaf: int) -> dict[str, int]:
    """Coordinators of each level, and all of them, where each serves at most so many."""
    levels, count = [], devices
    while count > 1:
        count = -(-count // per_leaf)
        levels.append(count)
    return {"devices": devices, "per_coordinator": per_leaf, "levels": len(levels), "coordinators": sum(levels)}


# The real coordinator -----------------------------------------------------------------------------------------------


async def _one(connection: crowd.Connection, template: bytes, number: int, trained_from: int, open_round: int) -> float:
    """Seconds of an exchange as the model has it: the update up, counted, and the generalist's bytes down."""
    began = time.monotonic()
    payload = crowd.Payload(template, number)
    await connection.ask("GET", "/v1/state")
    await crowd.upload(connection, payload)
    await crowd.commit(connection, payload, trained_from, open_round)
    await connection.ask("GET", f"/v1/generalists/{trained_from}")
    return time.monotonic() - began


async def _measure(coordinator: rig.Coordinator, share: float) -> dict[str, Any]:
    template = crowd.template(SHAPES)
    members = await crowd.join(coordinator, SHAPES, 1 + ALONE + BURST + CHECKED)
    await _one(members[0], template, 0, -1, 0)
    coordinator.until(lambda status: status["newest_round"] == 0)
    alone = [await _one(members[number], template, number, 0, 1) for number in range(1, 1 + ALONE)]
    began = time.monotonic()
    await asyncio.gather(*(_one(members[1 + ALONE + number], template, 50 + number, 0, 1) for number in range(BURST)))
    service = (time.monotonic() - began) / BURST
    period, draw = CHECKED * service / share, random.Random(1).random
    starts = [draw() * period for _ in range(CHECKED)]

    async def device(number: int) -> float:
        await asyncio.sleep(starts[number])
        return await _one(members[1 + ALONE + BURST + number], template, 100 + number, 0, 1)

    seconds = await asyncio.gather(*map(device, range(CHECKED)))
    return {"alone": statistics.median(alone), "service": service, "period": period, "starts": starts, "seconds": seconds}


def check(share: float) -> dict[str, Any]:
    """200 devices at the real coordinator, which exchange once, and the same arrivals in the model.

    The model has two numbers of the same machine in the minute before: how long one of many at once takes, and one alone.
    """
    with tempfile.TemporaryDirectory() as folder:
        coordinator = rig.Coordinator(Path(folder) / "data", prefix=["env"], update_format="float32", goal=1024, min_devices=1024)
        try:
            real = asyncio.run(_measure(coordinator, share))
        finally:
            coordinator.stop()
    free, waits, service = 0.0, [], real["service"]
    for at in sorted(real["starts"]):
        free = max(at, free) + service
        waits.append(free - at + max(0.0, real["alone"] - service))
    return {
        "devices": CHECKED, "share": share, "alone": round(real["alone"], 3), "service": round(service, 3),
        "period": round(real["period"], 1), "load_of_the_machine": os.getloadavg()[0], "real": _middle(real["seconds"]),
        "model": _middle(waits),
    }  # fmt: skip


def _middle(seconds: list[float]) -> dict[str, float]:
    return {name: round(float(np.quantile(seconds, share)), 3) for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))}


def main() -> None:
    median = json.loads((RESULTS / "exchanges.json").read_text())["median"]
    common = {"processor": median["coordinator_cpu"], "link": LINKS["1 Gbit/s"], "up": median["up"], "down": median["down"]}
    rows = []
    for devices, period in ((1_000, 300.0), (1_000, 600.0), (10_000, 3600.0), (100_000, 86400.0), (1_000_000, 864000.0)):
        for outage in (0.0, 600.0):
            rows.append(row(Fleet(devices=devices, period=period, outage=outage, **common), 2.0 if devices < 10**6 else 1.5))
            print(rows[-1], flush=True)
    record = {
        "command": "make bench WHAT=large-fleets", "checks": [check(share) for share in (0.3, 0.5)],
        "most_devices": table(median), "simulated": rows, "trees": [tree(10**power, 1000) for power in (4, 5, 6)],
    }  # fmt: skip
    write_json(result_file("flare.json"), record)


if __name__ == "__main__":
    main()
