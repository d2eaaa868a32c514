"""Works the list through with some processes at once; each takes one run after the other, so that it starts and reads once.

A record appears whole or not at all, and a run whose record is there is never computed again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.evidence.runs import Run
from comigs_edge import files

if TYPE_CHECKING:
    from benchmarks.evidence.play import Ground

Record = dict[str, Any]
Listed = Callable[[dict[Run, float]], list[Run]]  # runs by the bits of those that are done


def read_records(folder: Path, size: str) -> dict[Run, Record]:
    """Run -> its record, of those of this size that are done."""
    records = [json.loads(path.read_bytes()) for path in sorted(folder.glob("*.json"))]
    return {Run(**record["run"]): record for record in records if record["size"] == size}


def bits(records: dict[Run, Record]) -> dict[Run, float]:
    """Run -> bits per byte; infinite where it diverged."""
    return {run: record.get("bits_per_byte", float("inf")) for run, record in records.items()}


def one_text(ground: Ground, records: dict[Run, Record], runs: Iterable[Run]) -> None:
    """Raises `SystemExit` where the record of one of the runs is of another text than that at hand."""
    from benchmarks.evidence.play import text_digest

    for run in runs:
        if run in records and records[run]["text"] != text_digest(run, ground):
            text = f"{ground.text} has in windows of {ground.test_tokens:,} test tokens a device"
            raise SystemExit(f"records of {run.recipe} are of another text than {text}; name other --records")


def work_through(ground: Ground, folder: Path, listed: Listed, jobs: int) -> None:
    """Starts runs until the list is done or `ground.until` has come; `listed` gives the list as far as the bits show it.

    Raises `SystemExit` where records of the list are of another text than that at hand.
    """
    from benchmarks.evidence.play import play  # loads torch, which the table does without

    folder.mkdir(parents=True, exist_ok=True)
    records, failed, flying = read_records(folder, ground.size_label), set[Run](), dict[Future[Record | None], Run]()
    one_text(ground, records, listed(bits(records)))
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        while True:
            for run in listed(bits(records)):
                if len(flying) >= jobs or time.time() >= ground.until:
                    break
                if run not in records and run not in failed and run not in flying.values():
                    flying[pool.submit(play, run, ground)] = run
            if not flying:
                return
            for future in wait(flying, return_when=FIRST_COMPLETED).done:
                run = flying.pop(future)
                try:
                    record = future.result()
                except BrokenProcessPool:
                    raise SystemExit("a process was ended from outside, for its memory perhaps; run it again to go on") from None
                except Exception as error:  # the others go on: this one is tried again next time
                    print(f"{run.name(ground.size_label)} failed: {error!r}", flush=True)
                    failed.add(run)
                    continue
                if record is not None:
                    records[run] = record
                    files.write_atomic(folder / f"{run.name(ground.size_label)}.json", (json.dumps(record) + "\n").encode())
                    said = record.get("error") or f"{record['bits_per_byte']:.4f} bits per byte in {record['seconds']:.0f} s"
                    print(f"{run.name(ground.size_label)}: {said}", flush=True)
