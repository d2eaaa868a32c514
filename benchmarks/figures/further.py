"""What it brings to train a finished model further, and how long a training on little text should be.

    python -m benchmarks.figures.further TEXT [--texts de,user03] [--minutes 10]

TEXT is a folder with the files of `TEXTS` somewhere below it. Of each the first 60 kB are a home's text, the next 30 kB what is
added later, and the rest, which no training reads, measures. A training of 30 steps is taken up again at several rates, with its
moments or without, on the same text and on half as much again; and new trainings have 200 steps, fewer, or an end that patience
decides. The default base, one generalist and one specialist, one thread. Runs that were done are kept in `--work`: it goes on
where it was. Writes
further.json
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common import WORK, make_home, result_file, run, text_file, write_json
from comigs_edge.base.catalogue import DEFAULT_BASE, find_base
from comigs_edge.data.tokenizer import Tokenizer
from comigs_edge.home.config import Course
from comigs_edge.home.folder import Home
from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.model import Model
from comigs_edge.planning.plan import resolve
from comigs_edge.training.batches import Rows
from comigs_edge.training.opening import open_training
from comigs_edge.training.run import TrainingRun
from comigs_edge.training.text import read_rows
from comigs_edge.training.validation import Validation
from coordinator.protocol.wire import Arrays

TEXTS = ("de", "user03", "legal", "nl", "perldoc_qa")
FIRST, MORE = 60_000, 30_000  # bytes
FIRST_STEPS, TEST_ROWS = 30, 32
LINES = ["specialists=1", "batch=8", "context=128", "threads=1", "precision=bfloat16", "zero_expert=false"]


class Further(NamedTuple):
    """A finished training that goes on."""

    steps: int
    rate: float  # factor on that of a new training
    moments: bool
    more: bool  # on half as much text again


class New(NamedTuple):
    """A training from the bare base; of so many steps, or so often through the text."""

    steps: int | None = None
    passes: int | None = None
    schedule: Course = "cosine"
    patience: int = 0


RUNS: list[Further | New] = [
    *(Further(10, rate, moments, False) for rate, moments in ((1.0, False), (0.3, True), (0.1, True), (1.0, True), (0.3, False))),
    *(Further(steps, rate, moments, True) for steps in (10, 30) for rate, moments in ((1.0, False), (0.3, True), (0.1, True))),
    *(Further(30, rate, moments, False) for rate, moments in ((1.0, False), (0.3, True))),
    New(passes=3), New(steps=200, patience=2), New(passes=2), New(passes=5), New(passes=5, patience=1, schedule="wsd"),
    New(steps=200), New(steps=200, patience=1), New(passes=1),
]  # fmt: skip


def prepare(work: Path, source: Path) -> dict[str, Path]:
    """Homes with the text and with what measures, and where a trained home with more of it belongs."""
    homes = {name: work / f"{source.stem}-{name}" for name in ("first", "more", "test")}
    if homes["test"].exists():
        return homes
    parts: dict[str, list[str]] = {name: [] for name in homes}
    taken = 0
    for line in source.read_text().splitlines(keepends=True):
        parts["first" if taken < FIRST else "more" if taken < FIRST + MORE else "test"].append(line)
        taken += len(line.encode())
    for name, lines in parts.items():
        homes[name].with_suffix(".jsonl").write_text("".join(lines))
    for name in ("first", "test"):
        staging = homes[name].with_suffix(".new")
        shutil.rmtree(staging, ignore_errors=True)
        make_home(staging, homes[name].with_suffix(".jsonl"), "--base", find_base(DEFAULT_BASE)[1], settings={})
        (staging / "state").mkdir(exist_ok=True)
        shutil.rmtree(homes[name], ignore_errors=True)
        staging.rename(homes[name])
    return homes


def train_first(homes: dict[str, Path]) -> None:
    """The training that others take up again, and a copy of its home with more text."""
    if homes["more"].exists():
        return
    training = open_home(homes["first"], resume=False)
    for event in training.begin(FIRST_STEPS, False).run():
        training.count(event)
    training.end()
    copy = homes["more"].with_suffix(".new")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(homes["first"], copy)
    run(copy, "data", "add", homes["more"].with_suffix(".jsonl"))
    copy.rename(homes["more"])


def open_home(folder: Path, resume: bool | None = None) -> TrainingRun:
    """A training of this home, not begun."""
    home = Home(folder)
    return open_training(home, resolve(home, home.settings(), None, LINES, resume=resume), resume=resume)


def read_test(folder: Path) -> Rows:
    """Rows of text that no training has read."""
    home = Home(folder)
    return read_rows(home, home.settings(), 128, Tokenizer(home.base_file), [], lambda done, total: None)[0]


def begin(folder: Path, wanted: Further | New) -> TrainingRun:
    """A training of the home as it is wanted; nothing of it is saved."""
    if isinstance(wanted, Further):
        training = open_home(folder)
        trainer = training.begin(wanted.steps, None)
        trainer.schedule = replace(trainer.schedule, rate_factor=wanted.rate)
        if not wanted.moments:
            trainer.scores = None
            for optimiser, _ in trainer._learners.values():
                optimiser.state.clear()
        return training
    training = open_home(folder, resume=False)
    steps = -(-(wanted.passes or 0) * len(training.rows[0]) // training.plan.batch) or wanted.steps
    trainer = training.begin(steps, False)
    trainer.schedule = replace(trainer.schedule, schedule=wanted.schedule, patience=wanted.patience)
    return training


def measure(wanted: Further | New, homes: dict[str, Path]) -> dict[str, Any]:
    """The record of one run: losses of validation text before and after, of the test text after; nats a token."""
    training = begin(homes["more" if isinstance(wanted, Further) and wanted.more else "first"], wanted)
    trainer, rows, start = training.trainer, read_test(homes["test"]), time.monotonic()

    def test(arrays: Arrays) -> float:
        adapters = Adapters.from_arrays(trainer.adapters.layout, training.base.hparams, arrays)
        plan = replace(trainer.schedule, validation_rows=TEST_ROWS)
        return Validation(Model(training.base, adapters), rows, plan, None, learns=False).measure()

    before = test(trainer.best)
    curve = [[each.expert_steps, each.validation_loss] for each in trainer.run() if each.validation_loss is not None]
    return {
        "kind": type(wanted).__name__, **wanted._asdict(), "rows": [len(each) for each in training.rows],
        "expert_steps": trainer.expert_steps, "router_steps": trainer.router_steps, "seconds": round(time.monotonic() - start, 1),
        "before": trainer.first_loss, "curve": curve, "best": trainer.best_loss,
        "test": {"before": before, "best": test(trainer.best), "last": test(trainer.adapters.arrays())},
    }  # fmt: skip


def markdown(runs: list[dict[str, Any]]) -> list[str]:
    """A row for each kind of run, a cell for each text: what it changed of the loss of the test text, nats a token."""
    texts = [name for name in TEXTS if any(each["text"] == name for each in runs)]
    rows: dict[str, dict[str, str]] = {}
    new, old = ({each["text"]: each for each in runs if each["kind"] == kind} for kind in ("New", "Further"))
    for name in new.keys() & old.keys():  # what the others go on from
        gain = old[name]["test"]["before"] - new[name]["test"]["before"]
        rows.setdefault(f"cosine, {FIRST_STEPS} steps", {})[name] = f"{gain:+.3f} in {FIRST_STEPS + 10}"
    for each in sorted(runs, key=lambda run: run["kind"] == "Further"):
        before, best, last = (each["test"][name] for name in ("before", "best", "last"))
        if each["kind"] == "Further":
            text = "half as much text again" if each["more"] else "the same text"
            kept = "kept" if each["moments"] else "gone"
            label, cell = f"{text}, {each['steps']} steps | {each['rate']:g} | {kept}", f"{last - before:+.3f}"
        else:
            length = f"{each['steps']} steps" if each["steps"] else f"{each['passes']} passes"
            ends = f", patience {each['patience']}" if each["patience"] else ""
            steps = each["expert_steps"] + each["router_steps"]
            label, cell = f"{each['schedule']}, {length}{ends}", f"{best - before:+.3f} in {steps}"
        rows.setdefault(label, {})[each["text"]] = cell
    return [f"| {label} | {' | '.join(cells.get(name, '') for name in texts)} |" for label, cells in rows.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--texts", default=",".join(TEXTS))
    parser.add_argument("--minutes", type=float, default=1e6, help="begins no run after so many")
    parser.add_argument("--work", type=Path, default=WORK / "further")
    parser.add_argument("--only", default="", help="numbers of runs, separated by commas")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    saved, end = options.work / "runs.json", time.monotonic() + 60 * options.minutes
    done = json.loads(saved.read_text()) if saved.exists() else {}
    wanted = [RUNS[int(number)] for number in options.only.split(",")] if options.only else RUNS
    for name in options.texts.split(","):
        homes = prepare(options.work, text_file(options.text, name))
        if any(isinstance(each, Further) for each in wanted):
            train_first(homes)
        for each in wanted:
            key = f"{name} {each}"
            if key not in done and time.monotonic() < end:
                done[key] = {"text": name, **measure(each, homes)}
                saved.write_text(json.dumps(done))
                print(json.dumps(done[key]), flush=True)
    print("\n".join(markdown(list(done.values()))))
    plan = {"lines": LINES, "first_steps": FIRST_STEPS, "bytes": [FIRST, FIRST + MORE], "test_rows": TEST_ROWS}
    write_json(result_file("further.json"), plan | {"runs": list(done.values())})


if __name__ == "__main__":
    main()
