"""How much is learned in how many minutes: the training as it was before, and as it is now in fewer steps.

    python -m benchmarks.figures.quality TEXT [--texts de,user03] [--minutes 60]

TEXT is a folder with the files of `TEXTS` somewhere below it, each of which is the text of one home. Every run is a training of
the default base, one generalist and one specialist, on one thread, without the closing phase. Minutes are those of the processor,
which other programs do not change much: steps by their median, and a validation after every period. Losses are of validation
text, nats a token. It is tuning text. Runs that were done are kept in `--work`: it goes on where it was. Writes
quality-per-minute.json, and with matplotlib quality-per-minute.png
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common import WORK, make_home, result_file, text_file, write_json
from comigs_edge.base.catalogue import DEFAULT_BASE, find_base
from comigs_edge.home.folder import Home
from comigs_edge.planning.plan import resolve
from comigs_edge.simulate import origin
from comigs_edge.training.opening import open_training
from comigs_edge.training.run import TrainingRun
from profiles import detect

TEXTS = ("de", "user03", "perldoc_qa", "nl", "encyclopedia")
BYTES = 600_000  # of each, at most
LINES = ["specialists=1", "batch=8", "context=128", "threads=1", "zero_expert=false"]
# What a training did otherwise: every setting of [train] that has changed since.
VARIANTS: dict[str, dict[str, Any]] = {"before": {"optimiser": "adamw"}, "now": {}}


class Run(NamedTuple):
    """One training, of so many expert steps."""

    variant: str
    steps: int

    @property
    def label(self) -> str:
        """As tables have it."""
        return f"{self.variant}, {self.steps} steps"


RUNS = (Run("before", 100), Run("now", 50), Run("now", 75))


def open_home(work: Path, source: Path, planned: list[str]) -> TrainingRun:
    """A training of the text's first part with these lines of the plan, not begun; a home is of one text and never of another."""
    lines, taken = [], 0
    for line in source.read_text().splitlines(keepends=True):
        if taken < BYTES:
            lines.append(line)
            taken += len(line.encode())
    text = "".join(lines).encode()
    folder = work / f"{source.stem}-{hashlib.sha256(text).hexdigest()[:16]}"
    if not folder.exists():
        part = work / f"{folder.name}.jsonl"
        part.write_bytes(text)
        make_home(folder, part, "--base", find_base(DEFAULT_BASE)[1], settings={})
        (folder / "state").mkdir(exist_ok=True)
    home = Home(folder)
    return open_training(home, resolve(home, home.settings(), None, planned, resume=False), resume=False)


def measure(training: TrainingRun, wanted: Run) -> dict[str, Any]:
    """The record of one run: losses by steps done, and what a step of each kind and a validation take."""
    training.settings = replace(training.settings, train=replace(training.settings.train, **VARIANTS[wanted.variant]))
    trainer = training.begin(wanted.steps, False)
    took: dict[str, list[float]] = {"expert": [], "router": [], "validation": []}
    curve: list[tuple[int, int, float]] = []
    since = time.process_time()
    for event in trainer.run():
        if event.validation_loss is None:
            took[event.phase].append(time.process_time() - since)
        else:
            curve.append((event.expert_steps, event.router_steps, event.validation_loss))
        since = time.process_time()
    begin = time.process_time()
    trainer.validate()
    took["validation"].append(time.process_time() - begin)
    seconds = {name: statistics.median(each) for name, each in took.items()}
    return {
        "variant": wanted.variant, "steps": wanted.steps, "commit": origin.commit(), "schedule": trainer.schedule.facts(),
        "first": trainer.first_loss, "best": trainer.best_loss, "seconds": seconds,
        "curve": [[minutes(seconds, *point[:2], number), point[2]] for number, point in enumerate(curve, 1)],
    }  # fmt: skip


def minutes(seconds: dict[str, float], expert_steps: int, router_steps: int, validations: int) -> float:
    """What so many steps and validations take."""
    total = expert_steps * seconds["expert"] + router_steps * seconds["router"] + validations * seconds["validation"]
    return round(total / 60, 3)


def reached(runs: list[dict[str, Any]], loss: float) -> float | None:
    """Minutes of a training that would end at this loss, on the line through the ends of two; None where both end above."""
    ends = sorted((run["curve"][-1][0], run["best"]) for run in runs)
    if len(ends) == 1:
        return ends[0][0] if ends[0][1] <= loss else None
    (early, high), (late, low) = ends[0], ends[-1]
    if low > loss or high <= low:
        return None if low > loss else early
    return max(0.0, early + (late - early) * (high - loss) / (high - low))


def table(done: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each text of which all runs are there."""
    rows = []
    for text in TEXTS:
        runs = {Run(each["variant"], each["steps"]): each for each in done if each["text"] == text}
        if not all(run in runs for run in RUNS):
            continue
        before, now = runs[RUNS[0]], [runs[run] for run in RUNS[1:]]
        same = reached(now, before["best"])
        gain = before["first"] - before["best"]
        rows.append({
            "text": text, "minutes": {run.label: runs[run]["curve"][-1][0] for run in RUNS},
            "loss": {"base": before["first"]} | {run.label: runs[run]["best"] for run in RUNS},
            "share_of_the_gain": {run.label: (before["first"] - runs[run]["best"]) / gain for run in RUNS[1:]},
            "minutes_to_the_same": same, "share_of_the_minutes": None if same is None else same / before["curve"][-1][0],
        })  # fmt: skip
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table: losses, minutes in brackets."""
    lines = [f"| text | base | {' | '.join(run.label for run in RUNS)} | the same in |", "|---|---|" + "---|" * (1 + len(RUNS))]
    for row in rows:
        cells = [f"{row['loss'][run.label]:.3f} ({row['minutes'][run.label]:.1f})" for run in RUNS]
        share = row["share_of_the_minutes"]
        same = "more" if share is None else f"{row['minutes_to_the_same']:.1f} minutes, {share:.0%}"
        lines.append(f"| {row['text']} | {row['loss']['base']:.3f} | {' | '.join(cells)} | {same} |")
    shares = [row["share_of_the_minutes"] for row in rows if row["share_of_the_minutes"] is not None]
    if shares:
        mean = math.exp(statistics.mean(map(math.log, shares)))
        lines.append(f"\nthe same losses in {mean:.0%} of the minutes (geometric mean of {len(shares)} of {len(rows)} texts)")
    return "\n".join(lines)


def draw(done: list[dict[str, Any]], path: Path) -> None:
    """The plot, where matplotlib is there: loss by minutes, each text's runs in one colour."""
    from comigs_edge.simulate import plots

    if not plots.is_possible():
        print(plots.MISSING)
        return
    from matplotlib import pyplot

    pyplot.switch_backend("Agg")
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for number, text in enumerate(TEXTS):
        for run in (each for each in done if each["text"] == text):
            points = [[0.0, run["first"]], *run["curve"]]
            style, label = ("--", None) if run["variant"] == "before" else ("-", text if run["steps"] == RUNS[-1].steps else None)
            axes.plot(*zip(*points, strict=True), style, marker=".", color=f"C{number}", label=label)
    axes.set(xlabel="minutes of one core", ylabel="validation loss (nats a token); dashed: before")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    print(f"wrote {path}")


def main() -> None:
    """Reads the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--texts", default=",".join(TEXTS))
    parser.add_argument("--minutes", type=float, default=math.inf, help="begins no run after so many")
    parser.add_argument("--precision", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--work", type=Path, default=WORK / "quality")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    saved, end = options.work / "runs.json", time.monotonic() + 60 * options.minutes
    done = json.loads(saved.read_text()) if saved.exists() else {}
    for name in options.texts.split(","):
        source = text_file(options.text, name)
        for wanted in RUNS:
            key = f"{name}, {wanted.label}"
            if key not in done and time.monotonic() < end:
                done[key] = {
                    "text": name,
                    **measure(open_home(options.work, source, [*LINES, f"precision={options.precision}"]), wanted),
                }
                saved.write_text(json.dumps(done))
                print(key, done[key]["best"], done[key]["curve"][-1][0], flush=True)
    runs = list(done.values())
    print(markdown(rows := table(runs)))
    facts: dict[str, Any] = {"lines": LINES, "precision": options.precision, "bytes": BYTES, "variants": VARIANTS}
    facts["made_on"] = " and ".join(f"{each.count} x {each.kind}" for each in detect.detect().cores)
    write_json(result_file("quality-per-minute.json"), facts | {"texts": rows, "runs": runs})
    draw(runs, result_file("quality-per-minute.png"))


if __name__ == "__main__":
    main()
