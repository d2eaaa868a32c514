"""Runs the tests on each mutant: `make bench WHAT=mutants`; `python -m benchmarks.mutants --only training --jobs 2` for some.

Each mutant is put into a copy of the tree and the tests named beside it run until the first fails. What is done is kept in
benchmark-work/mutants.json and not done again until the mutant's file or its tests change.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from benchmarks.common import ROOT, WORK, result_file, write_json
from benchmarks.mutants.listed import Mutant, read_mutants

DONE = WORK / "mutants.json"
LEFT_OUT = (".git", ".venv", "__pycache__", "benchmark-work", "results", ".*_cache", ".hypothesis", "*.egg-info")
OUTCOMES = {0: "survived", 1: "killed", 2: "killed"}  # by pytest's exit code; 2: a file of tests could not be imported
LEAST_SECONDS, FACTOR = 60.0, 5.0  # that tests may take: so many times as long as without the mutant


class Tree:
    """A copy of the source, in which one mutant at a time lives."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.temporary = folder / "tree", folder / "temporary"
        shutil.copytree(ROOT, self.folder, ignore=shutil.ignore_patterns(*LEFT_OUT))
        # Of a mutant nothing is kept as bytecode; what does not change is compiled once.
        subprocess.run([sys.executable, "-m", "compileall", "-q", str(self.folder)], check=True)

    def run(self, tests: Sequence[str], limit: float | None) -> tuple[str, float]:
        """What became of these tests, and the seconds that they took."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--basetemp", str(self.temporary)]
        environment = {"PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        start = time.monotonic()
        with subprocess.Popen(
            [*command, *tests], cwd=self.folder, env=os.environ | environment, start_new_session=True, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as process:  # fmt: skip
            try:
                said, _ = process.communicate(timeout=limit)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                return "timeout", time.monotonic() - start
        if process.returncode not in OUTCOMES:
            raise SystemExit(f"pytest {' '.join(tests)} cannot run:\n{said}")
        return OUTCOMES[process.returncode], time.monotonic() - start

    def try_mutant(self, mutant: Mutant) -> dict[str, Any]:
        """The outcome of its tests with it; raises `SystemExit` where they fail without it."""
        path, usual = self.folder / mutant.file, self.usual(mutant.tests)
        source = path.read_text()
        path.write_text(mutant.put_into(source))
        try:
            outcome, seconds = self.run(mutant.tests, max(LEAST_SECONDS, FACTOR * usual))
        finally:
            path.write_text(source)
        return {"outcome": outcome, "seconds": round(seconds, 1), "digest": mutant.digest(ROOT)}

    @functools.cache  # noqa: B019  a tree lives as long as the process
    def usual(self, tests: tuple[str, ...]) -> float:
        """Seconds of these tests without a mutant."""
        outcome, seconds = self.run(tests, None)
        if outcome != "survived":
            raise SystemExit(f"without a mutant these tests fail: {' '.join(tests)}")
        return seconds


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
    print(f"{record['killed']} of {record['mutants']} were noticed")
    if not options.only:
        write_json(result_file("mutants.json"), record)


def _run(left: list[Mutant], done: dict[str, dict[str, Any]], folder: Path, jobs: int) -> None:
    """Runs those that are left, and keeps each outcome."""
    trees: SimpleQueue[Tree] = SimpleQueue()
    for number in range(min(jobs, len(left))):
        trees.put(Tree(folder / str(number)))

    def run(mutant: Mutant) -> tuple[Mutant, dict[str, Any]]:
        tree = trees.get()
        try:
            return mutant, tree.try_mutant(mutant)
        finally:
            trees.put(tree)

    DONE.parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool:
        for number, (mutant, outcome) in enumerate(pool.map(run, left), 1):
            done[mutant.key] = outcome
            DONE.write_text(json.dumps(done, indent=1))
            print(f"{number}/{len(left)} {outcome['outcome']:8} {outcome['seconds']:5.1f} s  {mutant.key[:140]!r}", flush=True)


def summary(mutants: list[Mutant], done: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The record: counts in all and for each file, and those that nothing noticed. A test that hangs has noticed."""
    outcomes = {mutant: done[mutant.key]["outcome"] for mutant in mutants}
    every = Counter(mutant.file for mutant in mutants)
    noticed = Counter(mutant.file for mutant, outcome in outcomes.items() if outcome != "survived")
    survivors = [
        {"file": each.file, "text": each.text, "replacement": each.replacement, "reason": each.reason}
        for each, outcome in outcomes.items() if outcome == "survived"
    ]  # fmt: skip
    return {
        "command": "python -m benchmarks.mutants", "mutants": len(mutants), "killed": len(mutants) - len(survivors),
        "timeouts": Counter(outcomes.values())["timeout"],
        "seconds": round(sum(done[mutant.key]["seconds"] for mutant in mutants)),
        "files": {file: f"{noticed[file]} of {count}" for file, count in every.items()}, "survivors": survivors,
    }  # fmt: skip


if __name__ == "__main__":
    main()
