"""Runs the tests on each mutant: `make bench WHAT=mutants`; `python -m benchmarks.mutants --only training --jobs 2` for some.

Each mutant is put into a copy of the tree and the tests named beside it run until the first fails, in a process that has the
libraries already. Outcomes are kept in benchmark-work/mutants.json until the mutant's file or its tests change.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, WORK, result_file, write_json
from benchmarks.mutants.listed import Mutant, read_mutants

DONE = WORK / "mutants.json"
LEFT_OUT = (".git", ".venv", "__pycache__", "benchmark-work", "simulations", ".*_cache", ".hypothesis", "*.egg-info")
OUTCOMES = {0: "survived", 1: "killed", 2: "killed"}  # by pytest's exit code; 2: a file of tests could not be imported
LEAST_SECONDS, FACTOR = 60.0, 5.0  # that tests may take: so many times as long as without the mutant
LIBRARIES = (
    "pytest", "torch", "torch.optim.adamw", "llama_cpp", "gguf", "numpy", "safetensors.numpy", "msgspec", "aiohttp",
    "cryptography.x509", "http_message_signatures", "requests", "jinja2", "typer.testing", "rich.console", "psutil", "filelock",
    "tenacity",
)  # fmt: skip  # none of which imports the source
ENVIRONMENT = {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


class Tree:
    """A copy of the source, in which one mutant at a time lives."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.temporary, self.said = folder / "tree", folder / "temporary", folder / "said"
        self._usual: dict[tuple[str, ...], float] = {}
        shutil.copytree(ROOT, self.folder, ignore=shutil.ignore_patterns(*LEFT_OUT))
        # Of a mutant nothing is kept as bytecode; what does not change is compiled once.
        subprocess.run([sys.executable, "-m", "compileall", "-q", str(self.folder)], check=True)
        os.environ |= ENVIRONMENT | {"PYTHONPATH": str(self.folder)}
        for name in LIBRARIES:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)

    def run(self, tests: tuple[str, ...], limit: float | None) -> tuple[str, float]:
        """What became of these tests, and the seconds that they took."""
        start, process = time.monotonic(), get_context("fork").Process(target=self._test, args=(tests,))
        process.start()
        process.join(limit)
        if process.exitcode is None:
            os.killpg(process.pid or 0, signal.SIGKILL)
            process.join()
            return "timeout", time.monotonic() - start
        if process.exitcode not in OUTCOMES:
            raise SystemExit(f"pytest {' '.join(tests)} cannot run:\n{self.said.read_text()}")
        return OUTCOMES[process.exitcode], time.monotonic() - start

    def _test(self, tests: tuple[str, ...]) -> None:
        """In a process of its own, in the copy."""
        import pytest

        os.setsid()
        os.chdir(self.folder)
        sys.path[:] = [str(self.folder), *(path for path in sys.path if path not in ("", str(ROOT)))]
        with self.said.open("w") as file:
            for descriptor in (1, 2):
                os.dup2(file.fileno(), descriptor)
        options = [
            "-x",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
            "-p",
            "no:schemathesis",
            "--basetemp",
            str(self.temporary),
        ]
        os._exit(pytest.main([*options, *tests]))

    def try_mutant(self, mutant: Mutant) -> dict[str, Any]:
        """The outcome of its tests with it; raises `SystemExit` where they fail without it."""
        path, usual = self.folder / mutant.file, self.usual(mutant.tests)
        source = path.read_text()
        path.write_text(mutant.put_into(source))
        try:
            outcome, seconds = self.run(mutant.tests, max(LEAST_SECONDS, FACTOR * usual))
        finally:
            path.write_text(source)
        return {"outcome": outcome, "seconds": round(seconds, 1), "usual": round(usual, 1), "digest": mutant.digest(ROOT)}

    def usual(self, tests: tuple[str, ...]) -> float:
        """Seconds of these tests without a mutant."""
        if tests not in self._usual:
            outcome, self._usual[tests] = self.run(tests, None)
            if outcome != "survived":
                raise SystemExit(f"without a mutant these tests fail: {' '.join(tests)}\n{self.said.read_text()[-4000:]}")
        return self._usual[tests]


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


_tree: Tree  # of a process that tries mutants


def _make_tree(folder: Path) -> None:
    global _tree
    _tree = Tree(Path(tempfile.mkdtemp(dir=folder)))


def _try(mutant: Mutant) -> dict[str, Any]:
    try:
        return _tree.try_mutant(mutant)
    except SystemExit as error:  # which a pool would wait for
        raise RuntimeError(str(error)) from error


def _run(left: list[Mutant], done: dict[str, dict[str, Any]], folder: Path, jobs: int) -> None:
    """Runs those that are left, and keeps each outcome."""
    DONE.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(jobs, get_context("spawn"), _make_tree, (folder,)) as pool:
        for number, (mutant, outcome) in enumerate(zip(left, pool.map(_try, left), strict=True), 1):
            done[mutant.key] = outcome
            DONE.write_text(json.dumps(done, indent=1))
            print(f"{number}/{len(left)} {outcome['outcome']:8} {outcome['seconds']:5.1f} s  {mutant.key[:120]!r}", flush=True)


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
