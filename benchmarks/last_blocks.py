"""Experts in the last blocks alone against experts in all, at equal time: `python benchmarks/last_blocks.py TEXT [--minutes 2]`.

TEXT is a folder with de.jsonl, nl.jsonl and user04.jsonl somewhere below it. Every run is a home of its own, trained by the
command line for so many minutes, exported as Q8_0 and measured in llama.cpp on its test text; runs that were done are kept
in `--work`, so it can be interrupted. Writes benchmarks/results/last-blocks.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

from four_bits import run, scores
from rich.console import Console
from rich.table import Table

RESULT = Path(__file__).parent / "results" / "last-blocks.json"
SETTINGS = "batch = 4\ncontext = 128\nrouter_period = 30\nrouter_steps = 5\nvalidation_rows = 16\n"
# Name -> blocks with experts, width of an expert, whether outputs of the other blocks are kept on disk
VARIANTS: dict[str, tuple[int, int, bool]] = {
    "all": (0, 32, False),
    "last 15, wide": (15, 64, True),
    "last 10, wide": (10, 96, True),
    "last 10": (10, 32, True),
    "last 10, wide, no cache": (10, 96, False),
}
RUNS = {"de": ("all", "last 15, wide", "last 10, wide", "last 10"), "nl": ("all", "last 15, wide")}
RUNS["user04"] = ("all", "last 15, wide", "last 10, wide", "last 10, wide, no cache")


def train(home: Path, text: Path, variant: tuple[int, int, bool], minutes: float) -> dict[str, Any]:
    """Trains a new home; what `train --json` says, and the seconds on the clock."""
    blocks, width, cache = variant
    shutil.rmtree(home, ignore_errors=True)
    run(home, "init", "--specialists", "1", "--expert-form", "parallel")
    settings = home / "config.toml"
    changed = settings.read_text().replace("[model]\n", f"[model]\nblocks = {blocks}\nexpert_width = {width}\n")
    settings.write_text(changed.replace("[train]\n", f"[train]\n{SETTINGS}"))
    run(home, "data", "add", str(text))
    start = time.monotonic()
    flags = ("--plan", f"cache={'true' if cache else 'false'}", "--plan", "precision=float32")
    found = run(home, "train", "--no-pause", "--minutes", str(minutes), "--json", *flags)
    return dict(json.loads(found)) | {"clock_seconds": time.monotonic() - start}


def one(text: str, name: str, variant: tuple[int, int, bool], options: argparse.Namespace) -> dict[str, Any]:
    """One run, or what was measured of it before."""
    home = options.work / f"{text} {name}".replace(", ", "-").replace(" ", "-")
    record: Path = home.with_suffix(".json")
    if record.exists():
        return dict(json.loads(record.read_text()))
    trained = train(home, next(options.text.rglob(f"{text}.jsonl")), variant, options.minutes)
    path = home / "model.gguf"
    exported = json.loads(run(home, "export", "--format", "Q8_0", "--output", str(path), "--json"))
    found = scores(home, {"base": home / "base.gguf", "model": path})
    kept = ("tokens", "seconds", "clock_seconds", "expert_steps", "validation_loss", "validation_loss_before")
    result = {
        "text": text, "variant": name, "blocks": variant[0], "width": variant[1], "cache": variant[2],
        "bits_per_byte": {key: score["bits_per_byte"] for key, score in found.items()}, "bytes": exported["bytes"],
        **{key: trained[key] for key in kept}, "measured": time.strftime("%Y-%m-%d %H:%M"),
    }  # fmt: skip
    record.write_text(json.dumps(result, indent=1))
    shutil.rmtree(home)
    return result


def report(runs: list[dict[str, Any]]) -> None:
    table = Table("text", "experts in", "expert steps", "s a step", "bits per byte", "of what all blocks learn")
    for each in runs:
        found = each["bits_per_byte"]
        reference = next(r["bits_per_byte"] for r in runs if r["text"] == each["text"] and r["variant"] == "all")
        share = (found["base"] - found["model"]) / (reference["base"] - reference["model"])
        each["share_of_all"] = share
        table.add_row(
            each["text"], each["variant"], str(each["expert_steps"]), f"{512 * each['seconds'] / each['tokens']:.2f}",
            f"{found['base']:.3f} to {found['model']:.3f}", f"{share:.0%}",
        )  # fmt: skip
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--work", type=Path, default=Path("benchmark-work/last-blocks"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    runs = []
    for text, names in RUNS.items():
        for name in names:
            runs.append(one(text, name, VARIANTS[name], options))
            print(json.dumps(runs[-1]), flush=True)
    report(runs)
    command = f"make bench-last-blocks TEXT=FOLDER (--minutes {options.minutes:g})"
    RESULT.write_text(json.dumps({"command": command, "minutes": options.minutes, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
