"""A coordinator's odd answers over whole exchanges: `python benchmarks/torture/answers.py [--seconds 240]`.

Each home makes three exchanges, every answer right or odd as a seed says: damaged, cut, slow, another message's, with other
values or unknown fields, wrongly or rightly signed. Every second exchange is made by new books.

Figures: answers by kind, how exchanges ended, the longest that one took beyond its calls' patience, growth of memory (RSS after
the first hundred homes, and at the end), the largest home's bytes. JSON goes to `answers.json`.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.common import result_file, write_json  # noqa: E402
from comigs_edge.errors import ComigsError  # noqa: E402
from tests.fleet import odd  # noqa: E402
from tests.fleet.hostile import Hostile  # noqa: E402

PATIENCE = 0.1  # seconds of a call
EXCHANGES, WARM = 3, 100


class Tally:
    """What was seen."""

    def __init__(self) -> None:
        self.homes, self.kinds, self.ends = 0, Counter(), Counter({"other_exceptions": 0})
        self.beyond, self.largest, self.warm = 0.0, 0, 0.0

    def exchange(self, device: odd.Device, hostile: Hostile) -> None:
        """One exchange, however it ends."""
        begin, asked = time.monotonic(), len(hostile.requests)
        try:
            self.ends["offline" if device.exchange().offline else "done"] += 1
        except ComigsError as error:
            self.ends[type(error).__name__] += 1
        except Exception:
            self.ends["other_exceptions"] += 1
            traceback.print_exc()
        calls = max(1, len(hostile.requests) - asked)
        self.beyond = max(self.beyond, time.monotonic() - begin - calls * PATIENCE)

    def home(self, folder: Path, hostile: Hostile) -> None:
        """One home's exchanges."""
        answers = odd.Odd(random.Random(self.homes))
        device = odd.Device(folder, hostile, answers.fleet, PATIENCE)
        hostile.begin(answers)
        for number in range(EXCHANGES):
            self.exchange(device, hostile)
            if number % 2:
                device.open()
        self.homes, self.kinds = self.homes + 1, self.kinds + answers.kinds
        self.largest = max(self.largest, sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))
        self.warm = resident() if self.homes == WARM else self.warm

    def table(self) -> dict[str, object]:
        """The figures."""
        return {
            "homes": self.homes, "exchanges": sum(self.ends.values()), "answers": sum(self.kinds.values()),
            "patience_seconds": PATIENCE, "longest_beyond_patience_seconds": round(self.beyond, 2),
            "memory_mb": {"warm": self.warm, "end": resident()}, "largest_home_bytes": self.largest,
            "ends": dict(self.ends.most_common()), "kinds": dict(self.kinds.most_common()),
        }  # fmt: skip


def resident() -> float:
    """This process's memory, MB."""
    return round(psutil.Process().memory_info().rss / 1e6, 1)


def main() -> None:
    """Measures, prints, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=240.0)
    options = parser.parse_args()
    tally, end = Tally(), time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory() as folder:
        hostile = Hostile(Path(folder))
        while time.monotonic() < end:
            with tempfile.TemporaryDirectory(dir=folder) as one:
                tally.home(Path(one), hostile)
        hostile.close()
    print(tally.table())
    write_json(result_file("answers.json"), tally.table())
    sys.exit(1 if tally.ends["other_exceptions"] else 0)


if __name__ == "__main__":
    main()
