"""Strangers against a coordinator whose members upload: `python benchmarks/torture/strangers.py`.

many      5,000 connections from one address, opened again as soon as they are closed
silent    1,012 connections from 127 addresses that say nothing
joins     900 joins of 524,000 bytes from 127 addresses, each without its last bytes
deaf      127 connections, each with 400 pipelined requests, whose answers are never read

In each, members bring 1 MB updates on connections of their own; the strangers come from other addresses, and in `many` from the
members' own. Figures: the uploads' p50 and p99, peak memory (VmHWM), bytes of log an hour, answers with 5xx, the exit status.
JSON goes to `strangers.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.common import result_file, write_json  # noqa: E402
from tests.coordinator import crowd  # noqa: E402
from tests.coordinator.rig import Coordinator  # noqa: E402

SHAPES = {"generalist.blk.0.ffn_up.weight": (512, 512)}  # 1 MB as float32
MEMBERS = 8
HELLO = b"GET /v1/hello HTTP/1.1\r\nHost: x\r\n\r\n"
UNFINISHED = b"POST /v1/join HTTP/1.1\r\nHost: x\r\nContent-Length: 524000\r\n\r\n" + b"x" * 523_000
CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
CONTEXT.check_hostname, CONTEXT.verify_mode = False, ssl.CERT_NONE
WAYS = {"many": (5000, 1, HELLO), "silent": (1012, 127, b""), "joins": (900, 127, UNFINISHED),
        "deaf": (127, 127, b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 400)}  # fmt: skip


async def stranger(port: int, address: str, words: bytes, end: float, seen: dict[str, int]) -> None:
    """One that comes again whenever its connection was closed; without words it does not even shake hands."""
    while time.monotonic() < end:
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            opening = asyncio.open_connection(
                "127.0.0.1", port, ssl=CONTEXT if words else None, limit=2048, local_addr=(address, 0)
            )
            reader, writer = await asyncio.wait_for(opening, 8)
            seen["came_in"] += 1
            if words:
                writer.write(words)
                if len(words) > 10_000 and words.startswith(b"GET"):
                    writer.transport.pause_reading()
            while time.monotonic() < end and not writer.is_closing() and not reader.at_eof():
                if len(words) == len(HELLO):
                    seen["5xx"] += (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 8)).startswith(b"HTTP/1.1 5")
                    await asyncio.sleep(5)
                    writer.write(words)
                else:
                    await asyncio.sleep(1)
            writer.close()
        await asyncio.sleep(0.5)


async def member(
    connection: crowd.Connection, data: bytes, number: int, end: float, seen: dict[str, int], took: list[float]
) -> None:
    """Brings one update after another; what it brings is not committed."""
    while time.monotonic() < end:
        payload, begin = crowd.Payload(data, number), time.monotonic()
        try:
            odd = await crowd.upload(connection, payload)
            seen["5xx"] += sum(status >= 500 for status in odd)
            took.append(time.monotonic() - begin)
        except (OSError, asyncio.IncompleteReadError):
            seen["failed"] += 1
        number += MEMBERS
        await asyncio.sleep(0.5)


async def crowd_in(port: int, way: str, seconds: float) -> dict[str, int]:
    """All strangers of a way, in a process of their own; what they saw."""
    count, addresses, words = WAYS[way]
    seen, end = {"came_in": 0, "5xx": 0}, time.monotonic() + seconds
    sources = itertools.cycle(["127.0.0.1"] if way == "many" else [f"127.0.1.{number}" for number in range(1, addresses + 1)])
    tasks = [asyncio.create_task(stranger(port, next(sources), words, end, seen)) for _ in range(count)]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return seen


async def attack(folder: Path, way: str, seconds: float) -> dict[str, object]:
    """One way, against a coordinator of its own."""
    coordinator = Coordinator(folder / way, prefix=["prlimit", "--nofile=1024:"], update_format="float32")
    members = await crowd.join(coordinator, SHAPES, MEMBERS)
    data, seen, took = crowd.template(SHAPES, 1), {"5xx": 0, "failed": 0}, []
    end = time.monotonic() + seconds
    crowding = subprocess.Popen(
        [sys.executable, __file__, "--ways", way, "--seconds", str(seconds), "--port", str(coordinator.port)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    uploads = [member(each, data, number, end, seen, took) for number, each in enumerate(members, 1)]
    await asyncio.gather(*uploads)
    status = dict(line.split(":", 1) for line in Path(f"/proc/{coordinator.process.pid}/status").read_text().splitlines())
    for name, more in json.loads(crowding.communicate()[0]).items():
        seen[name] = seen.get(name, 0) + more
    log, ordered = Path(coordinator.log.name).stat().st_size, sorted(took)
    return {
        "strangers": WAYS[way][0], "uploads": len(took), "p50_ms": round(1000 * ordered[len(ordered) // 2]),
        "p99_ms": round(1000 * ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]),
        "peak_mb": round(int(status["VmHWM"].split()[0]) / 1000, 1), "log_bytes_an_hour": round(log * 3600 / seconds), **seen,
        "exit": coordinator.process.poll() or coordinator.stop(),
    }  # fmt: skip


def main() -> None:
    """Measures, prints, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ways", default=",".join(WAYS), help="those that are tried; default: all")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--port", type=int, help="be the strangers, at a coordinator that runs there")
    options = parser.parse_args()
    if options.port:
        print(json.dumps(asyncio.run(crowd_in(options.port, options.ways, options.seconds))))
        return
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        for way in options.ways.split(","):
            result[way] = asyncio.run(attack(Path(folder), way, options.seconds))
            print(f"{way:10}{result[way]}", flush=True)
    write_json(options.output or result_file("strangers.json"), result)


if __name__ == "__main__":
    main()
