"""Experts in the last blocks alone against experts in all at equal time.

    python -m benchmarks.figures.last_blocks TEXT [--seconds N]

TEXT is a folder with de.jsonl, nl.jsonl and user04.jsonl somewhere below it. First the steps of all variants are timed in turn:
seconds of the processor on one thread, which other programs do not change much. From that follows how many steps of each fit in
the time. Then every run is a home of its own, trained by the command line for so many steps, exported as Q8_0 and measured in
llama.cpp on its test text; runs that were done are kept in `--work`, so it can be interrupted. Writes
last-blocks.json
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.common import WORK, make_home, result_file, run, text_file, write_json
from benchmarks.figures.four_bits import scores
from comigs_edge.base.catalogue import DEFAULT_BASE, find_base
from comigs_edge.data.tokenizer import Encoded, Tokenizer
from comigs_edge.home.config import ModelConfig
from comigs_edge.home.folder import Home
from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.model import Model
from comigs_edge.nn.weights import Base, open_base
from comigs_edge.planning.plan import plan_experts
from comigs_edge.training.batches import Rows
from comigs_edge.training.memory import tune_allocator
from comigs_edge.training.pace import Pace, steps_that_fit
from comigs_edge.training.schedule import Schedule
from comigs_edge.training.text import read_rows
from comigs_edge.training.trainer import Trainer
from profiles import available_cores, load

BATCH, CONTEXT, ROUNDS, TEST_TOKENS = 4, 128, 3, 4096
SETTINGS = f"batch = {BATCH}\ncontext = {CONTEXT}\nrouter_period = 30\nrouter_steps = 5\nvalidation_rows = 16\n"
SCHEDULE = Schedule(
    steps=10**6, batch=BATCH, expert_learning_rate=1e-3, final_learning_rate=1e-3, router_learning_rate=1e-3, warmup_steps=0,
    router_period=30, router_steps=5, balance_weight=0.0, weight_decay=0.01, validation_rows=16, block_format="Q8_0",
    quantise_start=0.0,
)  # fmt: skip


class Variant(NamedTuple):
    """Where experts are, and how wide."""

    blocks: int  # 0: all
    width: int
    cache: bool = False  # the outputs of the other blocks are kept on disk


VARIANTS = {
    "all": Variant(0, 32),
    "last 15, twice as wide": Variant(15, 64),
    "last 10, three times as wide": Variant(10, 96),
    "last 10, three times as wide, cache": Variant(10, 96, True),
}
# Text -> the bytes of it that are taken (None: all), and its variants. Where an epoch is longer than the training a cache is of
# no use; a short text is for that.
RUNS: dict[str, tuple[int | None, tuple[str, ...]]] = {
    "de": (None, ("all", "last 15, twice as wide", "last 10, three times as wide")),
    "nl": (None, ("all", "last 10, three times as wide")),
    "user04": (80_000, ("all", "last 10, three times as wide, cache")),
}


def measure(base: Base) -> dict[str, dict[str, Any]]:
    """Seconds of a step, of the lower blocks in it, and of a validation, for each variant without a cache; in turn."""
    ids = torch.randint(base.hparams.vocab_size, (50_000,), generator=torch.Generator().manual_seed(0)).tolist()
    rows = Rows([Encoded(ids, [True] * len(ids))], CONTEXT, 0)
    actions: dict[tuple[str, str], Callable[[], object]] = {}
    for name, variant in VARIANTS.items():
        if not variant.cache:
            wanted = ModelConfig(specialists=1, expert_form="parallel", expert_width=variant.width, blocks=variant.blocks)
            adapters = Adapters.initial(plan_experts(wanted, base.hparams), base.hparams, 0)
            trainer = Trainer(Model(base, adapters, checkpointing="attention"), rows, rows, SCHEDULE)
            batch = rows.batch(0, BATCH)
            actions[name, "step"] = trainer.step
            actions[name, "below"] = lambda trainer=trainer, batch=batch: trainer.model.below(batch.tokens)
            actions[name, "validation"] = trainer.validate
    times: dict[tuple[str, str], list[float]] = {key: [] for key in actions}
    for _ in range(1 + ROUNDS):
        for key, action in actions.items():
            start = time.process_time()
            action()
            times[key].append(time.process_time() - start)
    found: dict[str, dict[str, Any]] = {}
    for (name, part), seconds in times.items():
        found.setdefault(name, {})[part] = statistics.median(seconds[1:])
        found[name][f"{part}_range"] = [min(seconds[1:]), max(seconds[1:])]
    return found


def pace(variant: Variant, times: dict[str, dict[str, Any]], epoch: float) -> Pace:
    """Of a training; without a cache nothing is saved."""
    name = next(name for name, each in VARIANTS.items() if each == variant._replace(cache=False))
    own = times[name]
    return Pace(
        step=own["step"], quantised_step=own["step"], validation=own["validation"],
        saved=own["below"] if variant.cache else 0.0, epoch=epoch,
    )  # fmt: skip


def prepare(home: Path, text: Path, most: int | None, variant: Variant) -> float:
    """Makes a home with the text; returns the steps of an epoch, about."""
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    lines, taken = text.read_text().splitlines(keepends=True), 0
    source = home.parent / f"{home.name}.jsonl"
    with source.open("w") as part:
        for line in lines:
            taken += len(line.encode())
            if most is None or taken <= most:
                part.write(line)
    settings = {"model": f"blocks = {variant.blocks}\nexpert_width = {variant.width}", "train": SETTINGS}
    make_home(home, source, "--specialists", "1", "--expert-form", "parallel", settings=settings)
    return rows_of(home) / BATCH


def rows_of(home: Path) -> int:
    """Rows of the training text."""
    here = Home(home)
    found = read_rows(here, here.settings(), load("auto").context, Tokenizer(here.base_file), [], lambda done, total: None)
    return len(found[0])


def train(run_name: tuple[str, str], times: dict[str, dict[str, Any]], options: argparse.Namespace) -> None:
    """Trains and exports one run, unless that was done before."""
    text, name = run_name
    home, variant = home_of(options.work, text, name), VARIANTS[name]
    record = home.with_suffix(".trained.json")
    if record.exists():
        return
    epoch = prepare(home, text_file(options.text, text), RUNS[text][0], variant)
    steps = steps_that_fit(options.seconds, pace(variant, times, epoch), SCHEDULE, has_router=True)
    cache = "true" if variant.cache else "false"
    lines = [f"cache={cache}", "precision=float32", "checkpointing=attention", "threads=1"]
    flags = [part for line in lines for part in ("--plan", line)]
    trained = json.loads(run(home, "train", "--no-pause", "--steps", str(steps), "--json", *flags))
    exported = json.loads(run(home, "export", "--format", "Q8_0", "--output", str(home / "model.gguf"), "--json"))
    found = {
        "text": text, "variant": name, **variant._asdict(), "steps_of_an_epoch": epoch, "expert_steps": steps,
        **{key: trained[key] for key in ("validation_loss", "validation_loss_before")}, "bytes": exported["bytes"],
    }  # fmt: skip
    record.write_text(json.dumps(found))


def score(run_name: tuple[str, str], options: argparse.Namespace) -> dict[str, Any]:
    """What was trained, and its bits per byte."""
    home = home_of(options.work, *run_name)
    record: Path = home.with_suffix(".json")
    if not record.exists():
        reference = home_of(options.work, run_name[0], "all").with_suffix(".json")  # the base is the same for every variant
        paths = {"model": home / "model.gguf"} | ({} if reference.exists() else {"base": home / "base.gguf"})
        found = scores(home, paths, TEST_TOKENS)
        trained = json.loads(home.with_suffix(".trained.json").read_text())
        bits = {key: each["bits_per_byte"] for key, each in found.items()}
        if reference.exists():
            bits["base"] = json.loads(reference.read_text())["bits_per_byte"]["base"]
        record.write_text(json.dumps(trained | {"bits_per_byte": bits}))
    return dict(json.loads(record.read_text()))


def home_of(work: Path, text: str, name: str) -> Path:
    return work / f"{text} {name}".replace(", ", "-").replace(" ", "-")


def report(runs: list[dict[str, Any]], times: dict[str, dict[str, Any]]) -> None:
    table = Table("text", "experts in", "steps (of an epoch)", "bits per byte", "of what all blocks learn")
    for each in runs:
        found = each["bits_per_byte"]
        reference = next(r["bits_per_byte"] for r in runs if r["text"] == each["text"] and r["variant"] == "all")
        each["share_of_all"] = (found["base"] - found["model"]) / (reference["base"] - reference["model"])
        table.add_row(
            each["text"], each["variant"], f"{each['expert_steps']} ({each['steps_of_an_epoch']:.0f})",
            f"{found['base']:.3f} to {found['model']:.3f}", f"{each['share_of_all']:.0%}",
        )  # fmt: skip
    Console().print(table)
    for name, own in times.items():
        print(f"{name}: {own['step']:.2f} s a step, {own['below']:.2f} of it the blocks without experts")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("--seconds", type=float, default=120, help="of one thread, for each training")
    parser.add_argument("--work", type=Path, default=WORK / "last-blocks")
    parser.add_argument("--texts", default=",".join(RUNS))
    parser.add_argument("--jobs", type=int, default=available_cores(), help="trainings at a time, one thread each")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    saved = options.work / "times.json"
    if not saved.exists():
        torch.set_num_threads(1)
        tune_allocator()
        saved.write_text(json.dumps(measure(open_base(find_base(DEFAULT_BASE)[1], available_cores()))))
    times = json.loads(saved.read_text())
    print(json.dumps(times), flush=True)
    names = [(text, name) for text in options.texts.split(",") for name in RUNS[text][1]]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda each: train(each, times, options), names))
    runs = [score(each, options) for each in names]
    report(runs, times)
    figures = {
        "command": f"make bench WHAT=last-blocks TEXT=FOLDER (--seconds {options.seconds:g})", "seconds": options.seconds,
        "schedule": asdict(SCHEDULE) | {"context": CONTEXT}, "times": times, "runs": runs,
    }  # fmt: skip
    write_json(result_file("last-blocks.json"), figures)


if __name__ == "__main__":
    main()
