"""How long `status` takes, by the size of the text, with the state of a training and a file that was removed.

    python -m benchmarks.figures.status [--megabytes 1,100]

Random words as in `benchmarks.figures.text`, in a home with the default base; the state is as large as that of its default
training. The median of five, of a process as a person starts it. Writes status.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import make_home, result_file, run, write_json
from benchmarks.figures.text import texts
from comigs_edge.training import checkpoint

WEIGHTS = 3_350_000  # that are trained beside the default base, each with two moments and its best value
TIMES = 5
PARAGRAPH = 80  # words, about 500 bytes


def measure(folder: Path, megabytes: int) -> dict[str, Any]:
    """Seconds of `status` in a home with so much text."""
    home, notes = folder / "home", folder / "notes"
    notes.mkdir(parents=True)
    for number in range(megabytes + 1):
        (notes / f"{number}.md").write_text("\n\n".join(texts(2000, PARAGRAPH, 2 + number)))
    make_home(home, notes, settings={})
    run(home, "data", "remove", "1")  # which trainings have learned it is looked up from then on
    progress = {"expert_steps": 200, "schedule": {"steps": 200}, "finished": True, "learned": [2]}
    checkpoint.save(home / "state", {"weights": np.zeros((4, WEIGHTS), np.float32)}, progress)
    walls, before = [], resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    for _ in range(TIMES):
        started = time.monotonic()
        facts = json.loads(run(home, "status", "--json"))
        walls.append(time.monotonic() - started)
    return {
        "documents": sum(split["documents"] for split in facts["data"].values()),
        "bytes": sum(split["bytes"] for split in facts["data"].values()),
        "seconds": round(statistics.median(walls), 2),
        "processor_seconds": round((resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before) / TIMES, 2),
    }


def main() -> None:
    """Reads the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", default="1,100")
    options = parser.parse_args()
    figures: dict[str, Any] = {"command": " ".join(["python -m benchmarks.figures.status", *sys.argv[1:]])}
    with tempfile.TemporaryDirectory() as name:
        for megabytes in map(int, options.megabytes.split(",")):
            figures[f"{megabytes} MB"] = found = measure(Path(name) / str(megabytes), megabytes)
            print(megabytes, "MB", found, flush=True)
    write_json(result_file("status.json"), figures)


if __name__ == "__main__":
    main()
