"""Runs the tests on each mutant: `make bench WHAT=mutants`; `python -m benchmarks.mutants --only training --jobs 2` for some.

Each mutant is put into a copy of the tree and the tests named beside it run until the first fails, in a process that has the
libraries already. Outcomes are kept in benchmark-work/mutants.json until the mutant's file or its tests change.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, WORK, result_file, write_json
from benchmarks.mutants.listed import Mutant, read_mutants
from benchmarks.mutants.tree import make_tree, try_mutant

DONE = WORK / "mutants.json"


def main() -> None:
    """Reads the options, runs what is not done, prints and writes the record."""
    parser = argparse.ArgumentParser(description="Puts faults into the source, and tells which of them the tests notice.")
    parser.add_argument("--only", default="", metavar="PATTERN", help="those whose file, text or replacement has this in it")
    parser.add_argument("--jobs", type=int, default=1, help="at once")
    options = parser.parse_args()
    mutants = [mutant for mutant in read_mutants() if options.only in mutant.key]
    for mutant in mutants:
        mutant.put_into((ROOT / mutant.file).read_text())
    done: dict[str, dict[str, Any]] = json.loads(DONE.read_text()) if DONE.exists() else {}
    left = [each for each in mutants if done.get(each.key, {}).get("digest") != each.digest(ROOT)]
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        _run(left, done, Path(folder), options.jobs)
    record = summary(mutants, done)
    for each in record["survivors"]:
        print(f"@ {each['file']}\n- {each['text']}\n+ {each['replacement']}\n= {each['reason'] or 'no reason is known'}\n")
    print(f"{record['killed']} of {record['tried']} were noticed; {record['mutants'] - record['tried']} could not be tried")
    if not options.only:
        write_json(result_file("mutants.json"), record)


def _run(left: list[Mutant], done: dict[str, dict[str, Any]], folder: Path, jobs: int) -> None:
    """Runs those that are left, and keeps each outcome."""
    DONE.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(jobs, get_context("spawn"), make_tree, (folder,)) as pool:
        for number, (mutant, outcome) in enumerate(zip(left, pool.map(try_mutant, left), strict=True), 1):
            if outcome["outcome"] == "broken":
                print(outcome["reason"])
            else:
                done[mutant.key] = outcome
                DONE.write_text(json.dumps(done, indent=1))
            print(f"{number}/{len(left)} {outcome['outcome']:8} {outcome['seconds']:5.1f} s  {mutant.key[:120]!r}", flush=True)


def summary(mutants: list[Mutant], done: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The record: counts in all and for each file, and those that nothing noticed. A test that hangs has noticed."""
    outcomes = {mutant: done[mutant.key]["outcome"] for mutant in mutants if mutant.key in done}
    tried = Counter(mutant.file for mutant in outcomes)
    noticed = Counter(mutant.file for mutant, outcome in outcomes.items() if outcome != "survived")
    survivors = [
        {"file": each.file, "text": each.text, "replacement": each.replacement, "reason": each.reason}
        for each, outcome in outcomes.items() if outcome == "survived"
    ]  # fmt: skip
    return {
        "command": "python -m benchmarks.mutants", "mutants": len(mutants), "tried": len(outcomes),
        "killed": sum(noticed.values()), "timeouts": Counter(outcomes.values())["timeout"],
        "seconds": round(sum(done[mutant.key]["seconds"] for mutant in outcomes)),
        "files": {file: f"{noticed[file]} of {count}" for file, count in tried.items()}, "survivors": survivors,
    }  # fmt: skip


if __name__ == "__main__":
    main()
