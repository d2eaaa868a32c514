"""How many requests a second 200 devices make when a coordinator comes back: `python benchmarks/torture/herd.py`.

A simulation of the devices' waits, with the constants of the code: a device that is served comes again after `next_poll_seconds`;
one that is not waits a random time up to 5 s, 10 s, ... 30 minutes (`fleet.exchange`), and within each attempt tries again for
`patience` seconds with waits up to 1 s, 2 s, ... (`remote`). The first contact after a restart is five requests: one with the
old epoch, which is refused, hello, the same again, the manifests and a piece. Peaks are the worst of 20 runs.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.common import result_file, write_json  # noqa: E402
from comigs_edge.fleet.exchange import MAX_PAUSE, PAUSE  # noqa: E402
from coordinator.protocol.rounds import next_poll_seconds  # noqa: E402

DEVICES, REQUESTS, PATIENCE = 200, 5, 10.0


def arrivals(outage: float, rng: random.Random) -> tuple[int, int]:
    """The most requests in a second after the return, and the most attempts in a second while it is away."""
    served: Counter[int] = Counter()
    refused: Counter[int] = Counter()
    for _ in range(DEVICES):
        at, failures, waits = rng.uniform(0, next_poll_seconds(DEVICES)), 0, 0
        began = at
        while at < outage:
            refused[int(at)] += 1
            waits += 1
            pause = rng.uniform(0, 2 ** (waits - 1))
            if at + pause - began > PATIENCE:
                failures, waits = failures + 1, 0
                pause = rng.uniform(0, min(MAX_PAUSE, PAUSE * 2**failures))
                began = at + pause
            at += pause
        for second in range(3):  # served, then polls
            served[int(at + second * next_poll_seconds(DEVICES))] += REQUESTS if second == 0 else 1
    return max(served.values()), max(refused.values(), default=0)


def main() -> None:
    """The table and the JSON."""
    result = {}
    for outage in (5, 30, 60, 120, 300, 900, 3600):
        runs = [arrivals(outage, random.Random(seed)) for seed in range(20)]
        result[f"{outage} s away"] = {
            "peak_requests_per_second": max(run[0] for run in runs),
            "peak_attempts_while_away": max(run[1] for run in runs),
        }
    write_json(result_file("herd.json"), {"devices": DEVICES, **result})
    for name, values in result.items():
        print(f"{name:12}{values}")


if __name__ == "__main__":
    main()
