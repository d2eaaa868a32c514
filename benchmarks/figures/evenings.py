"""What the new text of five evenings brings, each with a training of its own, against one training on all of it.

    python -m benchmarks.figures.evenings TEXT [--cases de,user03] [--label now]

TEXT is a folder with the files of `CASES` somewhere below it. A home has the first part of one text and a finished training; each
evening it gets a part of the same or of another one, and is trained further as `comigs-edge train` does. After each training the
losses of what was added then and of text that no training reads are measured. `--label` names the code, to compare two. The
default base, one generalist and one specialist, one thread, no zero expert unless the case has one (then the base writes its
ordinary text first, for minutes). Runs that were done are kept in `--work`. Writes evenings.json
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
from comigs_edge.data.documents import read
from comigs_edge.data.tokenizer import Tokenizer
from comigs_edge.home.folder import Home
from comigs_edge.home.versions import load
from comigs_edge.inference.elsewhere import measure_elsewhere
from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.model import Model
from comigs_edge.planning.plan import resolve
from comigs_edge.simulate import origin
from comigs_edge.training.batches import Rows
from comigs_edge.training.opening import open_training
from comigs_edge.training.run import TrainingRun
from comigs_edge.training.validation import Validation

LINES = ["specialists=1", "batch=8", "context=128", "threads=1", "precision=bfloat16"]
TEST_BYTES = 60_000


class Case(NamedTuple):
    """A home, what is added to it, and at most so many steps a training (the default's 200 where it is None)."""

    text: str
    first: int  # bytes
    added: str  # the text that evenings bring
    each: int  # bytes
    evenings: int
    steps: int | None = None
    zero: bool = False  # with a zero expert


CASES = {
    "de": Case("de", 60_000, "de", 3_000, 5),
    "user03": Case("user03", 60_000, "user03", 3_000, 5),
    "user03-half": Case("user03", 60_000, "user03", 30_000, 1),
    "user03-zero": Case("user03", 60_000, "user03", 3_000, 3, zero=True),
    "de-chats": Case("de", 60_000, "user03", 3_000, 5),
    "much": Case("de", 600_000, "user03", 3_000, 3, steps=50),
}


def split(source: Path, sizes: list[int]) -> list[str]:
    """The text's lines in parts of about so many bytes, one after the other."""
    parts, sizes = [""], list(sizes)
    for line in source.read_text().splitlines(keepends=True):
        if len(parts[-1].encode()) >= sizes[len(parts) - 1]:
            if len(parts) == len(sizes):
                break
            parts.append("")
        parts[-1] += line
    return parts


def parts_of(case: Case, folder: Path, work: Path) -> dict[str, list[Path]]:
    """Files of the home's first text, of each evening's, and of what tests, written into `work`."""
    evenings = [case.each] * case.evenings
    own = split(text_file(folder, case.text), [case.first, *(evenings if case.added == case.text else []), TEST_BYTES])
    other = [] if case.added == case.text else split(text_file(folder, case.added), [*evenings, TEST_BYTES])
    texts = {"first": own[:1], "added": other[:-1] or own[1:-1], "test": [own[-1], *other[-1:]]}
    files = {kind: [work / f"{kind}-{number}.jsonl" for number in range(len(parts))] for kind, parts in texts.items()}
    for kind, parts in texts.items():
        for path, part in zip(files[kind], parts, strict=True):
            path.write_text(part)
    return files


def plan_lines(zero: bool) -> list[str]:
    """The plan's, with or without a zero expert."""
    return [*LINES, f"zero_expert={str(zero).lower()}"]


def read_rows(path: Path, tokenizer: Tokenizer) -> Rows:
    """All rows of a file, learned by nobody."""
    reading = read([path])
    return Rows([tokenizer.encode(each, True) for documents in reading.files.values() for each in documents], 128, 0)


def train(folder: Path, zero: bool) -> tuple[TrainingRun, dict[str, Any]]:
    """A training as the command does it, of all there is, and its record."""
    home, start = Home(folder), time.process_time()
    training = open_training(home, resolve(home, home.settings(), None, plan_lines(zero)))
    trainer = training.begin(None, None)
    for event in training.steps():
        training.count(event)
    version = training.end()
    losses = {"validation_before": trainer.first_loss, "validation": trainer.best_loss, "is_kept": version is not None}
    if training.closing is not None:
        losses |= {"validation_to_beat": training.loss_before, "validation_with_zero_expert": training.closing.loss}
    steps = {"expert_steps": trainer.expert_steps, "router_steps": trainer.router_steps}
    return training, losses | steps | {"seconds": round(time.process_time() - start, 1)}


def newest(training: TrainingRun) -> Model:
    """The home's newest adapters on the base."""
    saved = load(training.home.adapters, training.base.hparams, training.settings.base.sha256)
    return Model(training.base, Adapters.from_arrays(saved.layout, training.base.hparams, saved.arrays))


def loss(training: TrainingRun, rows: Rows) -> float:
    """Nats a token of all rows, of the home's newest adapters in the weights of the exported file."""
    schedule = replace(training.trainer.schedule, validation_rows=len(rows))
    return Validation(newest(training), rows, schedule, None, learns=False).measure()


def silence(training: TrainingRun) -> dict[str, Any]:
    """Whether the newest adapters have a zero expert, and what they have lost on the base's own answers."""
    model = newest(training)
    model.block_format = training.settings.storage().fake_format
    assert model.adapters is not None
    lost = measure_elsewhere(model, training.ordinary[1].answers)
    return {"zero_expert": model.adapters.layout.zero_expert, "elsewhere": lost._asdict()}


def play(case: Case, text: Path, work: Path) -> dict[str, Any]:
    """The record of one case: evening after evening, and all text at once."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    files = parts_of(case, text, work)
    tokenizer = Tokenizer(find_base(DEFAULT_BASE)[1])
    rows = {path: read_rows(path, tokenizer) for path in (*files["added"], *files["test"])}
    settings = {} if case.steps is None else {"train": f"steps = {case.steps}"}

    def measured(training: TrainingRun, record: dict[str, Any]) -> dict[str, Any]:
        zero = silence(training) if case.zero else {}
        return record | zero | {"loss": {path.stem: loss(training, each) for path, each in rows.items()}}

    home = work / "evenings"
    make_home(home, files["first"][0], "--base", find_base(DEFAULT_BASE)[1], settings=settings)
    record: dict[str, Any] = {"case": case._asdict(), "evenings": [measured(*train(home, case.zero))]}
    for path in files["added"]:
        run(home, "data", "add", path)
        record["evenings"].append(measured(*train(home, case.zero)))
        print(json.dumps(record["evenings"][-1]), flush=True)
    together = work / "together"
    make_home(together, files["first"][0], "--base", find_base(DEFAULT_BASE)[1], settings=settings)
    run(together, "data", "add", *files["added"])
    return record | {"together": measured(*train(together, case.zero))}


def markdown(runs: dict[str, dict[str, Any]]) -> list[str]:
    """A row for each run: losses after the first training, after the last evening, and of all text at once; steps and seconds."""
    lines = []
    for name, each in runs.items():
        first, *evenings = each["evenings"]
        added = [key for key in first["loss"] if key.startswith("added")]

        def losses(record: dict[str, Any], added: list[str] = added) -> str:
            tests = [f"{value:.3f}" for key, value in record["loss"].items() if key not in added]
            return ", ".join([f"{sum(record['loss'][key] for key in added) / len(added):.3f}", *tests])

        kept = sum(evening["is_kept"] for evening in evenings)
        steps = sum(evening["expert_steps"] + evening["router_steps"] for evening in evenings)
        cells = [losses(first), losses(evenings[-1]), losses(each["together"]), f"{kept} of {len(evenings)}", str(steps)]
        lines.append(f"| {name} | {' | '.join(cells)} | {sum(evening['seconds'] for evening in evenings):.0f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--label", default="now")
    parser.add_argument("--work", type=Path, default=WORK / "evenings")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    saved = options.work / "runs.json"
    done = json.loads(saved.read_text()) if saved.exists() else {}
    for name in options.cases.split(","):
        key = f"{name}, {options.label}"
        if key not in done:
            done[key] = play(CASES[name], options.text, options.work / name) | {"commit": origin.commit()}
            saved.write_text(json.dumps(done))
    print("\n".join(markdown(done)))
    write_json(result_file("evenings.json"), {"lines": LINES, "runs": done})


if __name__ == "__main__":
    main()
