"""The plan's memory model against what the system measures: bases and settings, each a real `comigs-edge train`.

    python -m benchmarks.figures.memory_model TEXT [--steps 2] [--only smollm2-135m]

TEXT is a folder or file that `comigs-edge data add` reads. Writes memory-model.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.common import COMMAND, change_settings, environment, result_file, write_json
from benchmarks.figures import shapes

SETTINGS = {  # the plan's lines
    "lean": {"batch": 8, "context": 128, "precision": "float32", "keep": "false", "checkpointing": "block"},
    "lean, half": {"batch": 4, "context": 128, "precision": "bfloat16", "keep": "false", "checkpointing": "block"},
    "fast": {"batch": 8, "context": 128, "precision": "float32", "keep": "true", "checkpointing": "attention"},
    "fastest": {"batch": 4, "context": 256, "precision": "bfloat16", "keep": "true", "checkpointing": "none"},
}
SMALL = {"batch": 4, "context": 128}  # for the base of a billion weights: a step of it takes half a minute


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("text", type=Path)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for base in ["smollm2-135m", *shapes.KINDS]:
            if not arguments.only or base in arguments.only.split(","):
                rows += _measure(base, arguments, Path(folder))
    table = Table("base", "setting", "predicted MB", "measured MB", "error")
    for row in rows:
        error = row["predicted"] / row["measured"] - 1
        table.add_row(
            row["base"], row["setting"], f"{row['predicted'] / 1e6:.0f}", f"{row['measured'] / 1e6:.0f}", f"{error:+.1%}"
        )
    Console().print(table)
    command = " ".join(["python -m benchmarks.figures.memory_model TEXT", *sys.argv[2:]])
    write_json(result_file("memory-model.json"), {"command": command, "rows": rows})


def _measure(base: str, arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    home, rows = folder / base, []
    named = [] if base not in shapes.KINDS else ["--base", shapes.write(folder / f"{base}.gguf", shapes.KINDS[base])]
    _run(home, "init", *named, "--specialists", "1")
    change_settings(home, {"train": "validation_rows = 4\nrouter_steps = 1"})
    _run(home, "data", "add", arguments.text)
    for name, lines in SETTINGS.items():
        lines = lines | (SMALL if base == "llama-3.2-1b" else {})
        flags = [part for key, value in lines.items() for part in ("--plan", f"{key}={value}")]
        plan = json.loads(_run(home, "plan", "--json", "--no-measure", *flags)[0])["plan"]
        _, peak = _run(home, "train", "--fresh", "--no-pause", "--steps", arguments.steps, *flags)
        error = round(plan["memory"] / peak - 1, 4)
        row = {"base": base, "setting": name, "lines": lines, "predicted": plan["memory"], "measured": peak, "error": error}
        rows.append(row)
        print(base, name, plan["memory"], peak, flush=True)
    return rows


def _run(home: Path, *command: Any) -> tuple[str, int]:
    """What the command prints, and the most memory that its process had, in bytes, as GNU time sees it."""
    words = [*COMMAND, *map(str, command)]
    # A process of its own counts the children, so that no earlier one is the largest.
    code = (
        "import resource, subprocess, sys; run = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, text=True); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); print(run.stdout); sys.exit(run.returncode)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], env=environment(home), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed: {done.stderr[-2000:]}")
    peak, _, out = done.stdout.partition("\n")
    return out, int(peak) * 1024


if __name__ == "__main__":
    main()
