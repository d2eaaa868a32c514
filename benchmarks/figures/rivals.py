"""Training speed and memory against what others do.

    python -m benchmarks.figures.rivals [--rounds R] [--steps N] [--only NAME,...]

One expert step of the published formulation, of Hugging Face transformers with peft, and of comigs-edge, on the same base
and the same tokens (`rival_models.py`). First a process proves that they compute the same function. Then every round runs
every case in a process of its own: its peak memory is that process's, and medians of a slow hour and a fast one stand side by
side. In each round the rate of plain matrix products is measured too. peft comes with: pip install '.[bench]'
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, result_file, write_json
from benchmarks.figures.rival_process import CASES

LIMITS = {"loss": 1e-3, "loss, experts moved": 1e-3, "gradients, relative error": 1e-3, "logits, largest difference": 1e-2}
REFERENCES = ("published", "peft")
REPORTED = ("rounds", "steps", "warm_up", "only", "batch", "context", "threads")


def in_process(job: str, options: argparse.Namespace) -> dict[str, Any]:
    """What one job gives, done in a process of its own."""
    values = json.dumps(vars(options) | {"job": job}, default=str)
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = os.environ | dict.fromkeys(names, str(options.threads)) | {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "benchmarks.figures.rival_process", values]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def prove(found: dict[str, dict[str, float]]) -> None:
    """Ends the benchmark where the cases do not compute the same function."""
    for kind, values in found.items():
        print(f"{kind}: " + ", ".join(f"{name} {value:.6g}" for name, value in values.items()))
        lowest = min(values.values()) if kind.startswith("loss") else 0
        if not max(values.values()) - lowest <= LIMITS[kind]:
            raise SystemExit("these do not compute the same function, so their times cannot be compared")


def summary(name: str, rounds: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """Medians over the rounds, ratios taken inside each round; seconds of the fastest and the slowest step."""

    def median(of: Any) -> float:
        return statistics.median(of(each, statistics.median(each[name]["seconds"])) for each in rounds)

    case, count = CASES[name], options.batch * options.context
    steps = [second for each in rounds for second in each[name]["seconds"]]
    peaks = [each[name]["peak_bytes"] for each in rounds]
    seconds = median(lambda each, own: own)

    def share(each: dict[str, Any], own: float) -> float:
        rate = each["products"]
        # The output's product is outside every checkpoint: it is computed once in each direction.
        operations = count * (case.passes * rate["block_weights"] + 4 * rate["output_weights"])
        return float(operations / own / rate["operations_per_second"])

    result = {
        "seconds": seconds, "fastest": min(steps), "slowest": max(steps), "tokens_per_second": count / seconds,
        "peak_bytes": statistics.median(peaks), "peak_bytes_range": [min(peaks), max(peaks)],
        "ready_bytes": statistics.median(each[name]["ready_bytes"] for each in rounds),
        "trainable_parameters": rounds[0][name]["trainable_parameters"], "share_of_product_rate": median(share),
        "round_medians": [statistics.median(each[name]["seconds"]) for each in rounds],
    }  # fmt: skip
    for other in REFERENCES:
        if other in rounds[0]:
            speed = median(lambda each, own, other=other: statistics.median(each[other]["seconds"]) / own)
            result[f"speed_to_{other}"] = speed
            result[f"memory_to_{other}"] = result["peak_bytes"] / statistics.median(each[other]["peak_bytes"] for each in rounds)
    return result


def show(cases: dict[str, dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("case", "s a step (fastest to slowest)", "tokens/s", "peak MB", "trainable", "of product rate")
    for other in REFERENCES:
        table.add_column(f"to {other}: speed, memory")
    for name, row in cases.items():
        ratios = [
            f"{row[f'speed_to_{other}']:.2f}x, {row[f'memory_to_{other}']:.2f}x" if f"speed_to_{other}" in row else "-"
            for other in REFERENCES
        ]
        table.add_row(
            name, f"{row['seconds']:.2f} ({row['fastest']:.2f} to {row['slowest']:.2f})",
            f"{row['tokens_per_second']:.0f}", f"{row['peak_bytes'] / 1e6:,.0f}", f"{row['trainable_parameters']:,}",
            f"{row['share_of_product_rate']:.0%}", *ratios,
        )  # fmt: skip
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def machine(threads: int) -> dict[str, Any]:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft") if is_there(name)}
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    return {"cpu": model, "cores": cores(), "threads": threads, "system": system, "versions": versions}


def is_there(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def possible() -> list[str]:
    """The cases in precisions that this processor has: what it emulates takes minutes a step."""
    from profiles import detect

    has_bfloat16 = detect.detect().has_bfloat16
    return [name for name, case in CASES.items() if has_bfloat16 or case.precision != "bfloat16"]


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def drive(options: argparse.Namespace) -> None:
    from comigs_edge.base.catalogue import find_base

    names = options.only.split(",")
    unknown = set(names) - CASES.keys()
    if unknown:
        raise SystemExit(f"there is no case {', '.join(sorted(unknown))}; choose from {', '.join(CASES)}")
    if not (is_there("peft") and is_there("transformers")):
        raise SystemExit("peft is not installed; get it with: pip install '.[bench]'")
    base, options.base_path = find_base(options.base)
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        options.ids = Path(folder) / "ids.npy"
        in_process("tokens", options)
        checked = in_process("check", options)
        prove(checked)
        for number in range(options.rounds):
            turn = number % len(names)  # every case is first once
            done = {"products": in_process("products", options)}
            for name in names[turn:] + names[:turn]:
                done[name] = in_process(name, options)
                middle = statistics.median(done[name]["seconds"])
                print(f"round {number + 1}: {name} {middle:.2f} s, {done[name]['peak_bytes'] / 1e6:,.0f} MB", flush=True)
            rounds.append(done)
    rates = [each["products"]["operations_per_second"] / 1e9 for each in rounds]
    cases = {name: summary(name, rounds, options) for name in names}
    show(cases)
    print(f"plain products: {statistics.median(rates):.1f} GFLOP/s ({min(rates):.1f} to {max(rates):.1f})")
    given = [f"--{name.replace('_', '-')} {getattr(options, name)}" for name in REPORTED]
    given += ["--tune-all"] * options.tune_all + ["--text FILE"] * (options.text is not None)
    report = {
        "command": " ".join(["python -m benchmarks.figures.rivals", *given]),
        "machine": machine(options.threads), "base": base, "batch": [options.batch, options.context],
        "measured": time.strftime("%Y-%m-%d %H:%M"), "check": checked,
        "product_gflops": {"median": statistics.median(rates), "range": [min(rates), max(rates)]},
        "cases": cases, "rounds": rounds,
    }  # fmt: skip
    write_json(options.output or result_file("rivals.json"), report)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="measured in every process")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before them")
    parser.add_argument("--only", default=",".join(possible()), help="cases, with commas between them")
    parser.add_argument("--base", default="smollm2-135m-instruct")
    parser.add_argument("--text", type=Path, help="takes its tokens in place of random ones")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--output", type=Path)
    parser.add_argument("--tune-all", action="store_true", help="comigs-edge's settings of glibc's malloc for every case")
    options = parser.parse_args()
    options.text = options.text and options.text.absolute()  # its process works in another folder
    drive(options)


if __name__ == "__main__":
    main()
