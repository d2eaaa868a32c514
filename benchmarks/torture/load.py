"""The coordinator under load, in a memory cgroup of 1 GB: `python benchmarks/torture/load.py`.

starts    seconds from `serve` to the line that says devices may come, and memory 3 s later
polls     200 connected devices, signed `GET /v1/state` at 400 a second in all (open loop, random moments); then as many as go
uploads   50 devices bring 25 MB each at once in pieces of 256 KiB and commit, while 150 go on polling; durable when committed
mixed     minutes of polls and uploads: slopes of memory and open files
idle      two minutes with 200 connected devices that poll once a minute: bytes written, by /proc/PID/io

Memory is the coordinator's: RSS, PSS, and the peak (VmHWM). The load comes from one process of this machine, which shares its
cores; the coordinator's own processor time is given beside. JSON goes to `load.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.common import result_file, write_json  # noqa: E402
from tests.coordinator import crowd  # noqa: E402
from tests.coordinator.rig import Coordinator  # noqa: E402

SHAPES = {f"generalist.blk.{block}.ffn_up.weight": (256, 768) for block in range(32)}  # 25 MB as float32
GROUP = Path(f"/sys/fs/cgroup/memory/comigs-load-{os.getpid()}")
DEVICES, UPLOADERS = 200, 50


class Watched:
    """A coordinator process under the limit, and what the system says of it."""

    def __init__(self, data: Path, **flags: object) -> None:
        begin = time.monotonic()
        inside = f'echo $$ > {GROUP}/cgroup.procs && exec "$@"'
        self.coordinator = Coordinator(data, prefix=["sh", "-c", inside, "sh"], update_format="float32", **flags)
        self.ready = time.monotonic() - begin
        self.proc = Path(f"/proc/{self.coordinator.process.pid}")

    def memory(self) -> dict[str, float]:
        """MB: RSS, PSS, peak."""
        status = dict(line.split(":", 1) for line in (self.proc / "status").read_text().splitlines())
        rollup = (self.proc / "smaps_rollup").read_text().splitlines()
        pss = next(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
        return {"rss": _mb(status["VmRSS"]), "pss": round(pss / 1000, 1), "peak": _mb(status["VmHWM"])}

    def processor(self) -> float:
        """Seconds so far."""
        fields = (self.proc / "stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / 100

    def written(self) -> int:
        """Bytes that it made the disk write."""
        lines = dict(line.split(": ") for line in (self.proc / "io").read_text().splitlines())
        return int(lines["write_bytes"]) - int(lines["cancelled_write_bytes"])

    def files(self) -> int:
        """Open descriptors."""
        return sum(1 for _ in (self.proc / "fd").iterdir())


def _mb(text: str) -> float:
    return round(int(text.split()[0]) * 1.024 / 1000, 1)


def starts(folder: Path) -> dict[str, object]:
    """Five starts in the same folder; the first makes keys and ledger."""
    seconds, memory = [], {}
    for _ in range(5):
        watched = Watched(folder / "starts")
        seconds.append(round(watched.ready, 3))
        if len(seconds) == 5:
            time.sleep(3)
            memory = watched.memory()
        watched.coordinator.stop()
    return {"ready_seconds": seconds, "idle_mb": memory}


async def timed(connection: crowd.Connection, latencies: list[float], errors: list[object]) -> None:
    """One poll."""
    begin = time.monotonic()
    try:
        status, _, _ = await connection.ask("GET", "/v1/state")
        latencies.append(time.monotonic() - begin)
        if status != 200:
            errors.append(status)
    except (OSError, asyncio.IncompleteReadError) as error:
        errors.append(repr(error))


async def poll(connections: list[crowd.Connection], rate: float, seconds: float, rng: random.Random) -> dict[str, object]:
    """Polls at random moments, `rate` a second over all devices; latency counts from the planned moment."""
    latencies: list[float] = []
    errors: list[object] = []
    end = time.monotonic() + seconds

    async def device(connection: crowd.Connection) -> None:
        planned = time.monotonic() + rng.expovariate(rate / len(connections))
        while planned < end:
            await asyncio.sleep(max(0.0, planned - time.monotonic()))
            late = max(0.0, time.monotonic() - planned)
            count = len(latencies)
            await timed(connection, latencies, errors)
            if len(latencies) > count:
                latencies[-1] += late
            planned += rng.expovariate(rate / len(connections))

    await asyncio.gather(*map(device, connections))
    return _latencies(latencies, errors, seconds)


async def flood(connections: list[crowd.Connection], seconds: float) -> dict[str, object]:
    """Every device asks again as soon as it is answered."""
    latencies: list[float] = []
    errors: list[object] = []
    end = time.monotonic() + seconds

    async def device(connection: crowd.Connection) -> None:
        while time.monotonic() < end:
            await timed(connection, latencies, errors)

    await asyncio.gather(*map(device, connections))
    return _latencies(latencies, errors, seconds)


def _latencies(latencies: list[float], errors: list[object], seconds: float) -> dict[str, object]:
    ordered = sorted(latencies)
    share = {f"p{p}_ms": round(1000 * ordered[min(len(ordered) - 1, len(ordered) * p // 100)], 1) for p in (50, 99)}
    return {"requests_per_second": round(len(ordered) / seconds, 1), **share, "errors": errors[:20]}


async def uploads(watched: Watched, connections: list[crowd.Connection], rng: random.Random) -> dict[str, object]:
    """Fifty at once."""
    data = crowd.template(SHAPES, 1)
    payloads = [crowd.Payload(data, number) for number in range(UPLOADERS)]
    before, begin, odd, commits = watched.processor(), time.monotonic(), [], []

    async def device(connection: crowd.Connection, payload: crowd.Payload) -> None:
        odd.extend(await crowd.upload(connection, payload))
        commits.append((await crowd.commit(connection, payload, 0, 1), time.monotonic() - begin))

    polls = asyncio.create_task(poll(connections[UPLOADERS:], 2.5, 30, rng))
    await asyncio.gather(*map(device, connections[:UPLOADERS], payloads))
    seconds, cpu = time.monotonic() - begin, watched.processor() - before
    failed = [(status, answer.decode()) for (status, answer), _ in commits if status != 200]
    result = {
        "megabytes": round(sum(payload.size for payload in payloads) / 1e6, 1), "seconds": round(seconds, 2),
        "mb_per_second": round(sum(payload.size for payload in payloads) / 1e6 / seconds, 1),
        "coordinator_cpu_seconds": round(cpu, 2), "first_commit_seconds": round(min(at for _, at in commits), 2),
        "errors": odd + failed,
    }  # fmt: skip
    result["polls_meanwhile"] = await polls
    result["memory_mb"] = watched.memory()
    begin, before = time.monotonic(), watched.processor()
    while state(await connections[0].ask("GET", "/v1/state"))["open_round"] < 2:
        await asyncio.sleep(0.05)
    return result


def state(answer: tuple[int, dict[str, str], bytes]) -> dict[str, object]:
    """The state in an answer."""
    return json.loads(answer[2])


async def mixed(watched: Watched, connections: list[crowd.Connection], minutes: float, rng: random.Random) -> dict[str, object]:
    """Polls at 40 a second and, every two seconds, an update of 25 MB; slopes by least squares over the second half."""
    samples, end = [], time.monotonic() + 60 * minutes
    data = crowd.template(SHAPES, 2)
    counts = {"updates": 0, "errors": []}

    async def bring() -> None:
        number = 1000
        while time.monotonic() < end:
            number += 1
            connection, payload = connections[number % UPLOADERS], crowd.Payload(data, number)
            now = state(await connection.ask("GET", "/v1/state"))
            counts["errors"] += await crowd.upload(connection, payload)
            status, answer = await crowd.commit(connection, payload, now["open_round"] - 1, now["open_round"])
            if status == 200:
                counts["updates"] += 1
            elif status != 409:  # 409: the round has closed meanwhile, or the device is in already
                counts["errors"].append((status, answer.decode()))
            await asyncio.sleep(2)

    async def sample() -> None:
        begin = time.monotonic()
        while time.monotonic() < end:
            samples.append((time.monotonic() - begin, watched.memory()["rss"], watched.files()))
            await asyncio.sleep(2)

    polls, _, _ = await asyncio.gather(poll(connections[UPLOADERS:], 40, 60 * minutes, rng), bring(), sample())
    late = np.array(samples[len(samples) // 2 :])
    slopes = [float(np.polyfit(late[:, 0] / 3600, late[:, column], 1)[0]) for column in (1, 2)]
    return {
        "minutes": minutes, "polls": polls, **counts, "rss_mb": [samples[0][1], float(late[:, 1].mean()), samples[-1][1]],
        "rss_slope_mb_per_hour": round(slopes[0], 1), "files": [samples[0][2], samples[-1][2]],
        "files_slope_per_hour": round(slopes[1], 1), "memory_mb": watched.memory(),
    }  # fmt: skip


async def idle(watched: Watched, connections: list[crowd.Connection], seconds: float, rng: random.Random) -> dict[str, object]:
    """What an idle coordinator writes."""
    before, cpu = watched.written(), watched.processor()
    polls = await poll(connections, len(connections) / 60, seconds, rng)
    used = watched.processor() - cpu
    return {
        "seconds": seconds, "bytes_written": watched.written() - before, "cpu_share": round(used / seconds, 4),
        "polls": polls, "memory_mb": watched.memory(),
    }  # fmt: skip


async def scenario(folder: Path, parts: set[str], minutes: float, idle_seconds: float) -> dict[str, object]:
    """The parts that are wanted, on one coordinator."""
    rng, result = random.Random(1), {}
    if "starts" in parts:
        result["starts"] = starts(folder)
    watched = Watched(folder / "load", goal=UPLOADERS)
    connections = await crowd.join(watched.coordinator, SHAPES, DEVICES)
    result["idle_with_200_mb"] = watched.memory()
    first = crowd.Payload(crowd.template(SHAPES, 0), 0)
    assert not await crowd.upload(connections[0], first)
    assert (await crowd.commit(connections[0], first, -1, 0))[0] == 200
    while state(await connections[0].ask("GET", "/v1/state"))["newest"] is None:
        await asyncio.sleep(0.1)
    if "polls" in parts:
        before = watched.processor()
        result["polls"] = await poll(connections, 400, 20, rng)
        result["polls"]["coordinator_cpu"] = round((watched.processor() - before) / 20, 2)
        before = watched.processor()
        result["flood"] = await flood(connections, 8)
        result["flood"]["coordinator_cpu"] = round((watched.processor() - before) / 8, 2)
        await asyncio.sleep(8)  # the rate limit's buckets fill
    if "uploads" in parts:
        result["uploads"] = await uploads(watched, connections, rng)
        while watched.coordinator.ask("status")["newest_round"] < 1:  # the mean is made, and is no part of being idle
            await asyncio.sleep(0.5)
        result["after_the_round_mb"] = watched.memory()
    if "idle" in parts:
        result["idle"] = await idle(watched, connections, idle_seconds, rng)
    if "mixed" in parts:
        result["mixed"] = await mixed(watched, connections, minutes, rng)
    for connection in connections:
        connection.close()
    result["stop_code"] = watched.coordinator.stop()
    return result


def main() -> None:
    """Measures, prints, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default="starts,polls,uploads,idle,mixed", help="those that are measured; default: all")
    parser.add_argument("--minutes", type=float, default=10.0, help="of mixed traffic; nonces fill the first four")
    parser.add_argument("--idle", type=float, default=120.0, help="seconds")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    GROUP.mkdir(exist_ok=True)
    (GROUP / "memory.limit_in_bytes").write_text("1G")
    (GROUP / "memory.max_usage_in_bytes").write_text("0")
    with tempfile.TemporaryDirectory() as folder:
        result = asyncio.run(scenario(Path(folder), set(options.parts.split(",")), options.minutes, options.idle))
    GROUP.rmdir()
    write_json(options.output or result_file("load.json"), result)
    for name, value in result.items():
        print(f"{name:24}{value}")


if __name__ == "__main__":
    main()
