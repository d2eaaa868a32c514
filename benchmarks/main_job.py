"""The main job on real text, measured: `python benchmarks/main_job.py TEXT_FOLDER [--work DIR] [--output FILE.json]`.

For each JSONL file below TEXT_FOLDER that is named in `JOBS`: init, data add, train, export at F16 and F32, evaluate, all
through the command line, each training in a process of its own whose peak memory is taken. Then the exactness of the
exported mixture: torch against llama.cpp, at F32, with 1 and with 3 specialists. Homes that are in DIR already trained
are measured again, not trained again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from profiles import detect

JOBS = {"de": 100, "user03": 40}  # file name -> expert steps of 8 x 128 tokens
EXACT_TOKENS = 512
COMMAND = Path(sys.executable).parent / "comigs-edge"


def run(home: Path, *arguments: str) -> str:
    """One command's standard output; its progress goes to the terminal."""
    environment = os.environ | {"COMIGS_EDGE_HOME": str(home)}
    return subprocess.run([COMMAND, *arguments], env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def measured(home: Path, *arguments: str) -> tuple[dict[str, Any], float]:
    """A command's JSON and its peak memory in MB."""
    environment = os.environ | {"COMIGS_EDGE_HOME": str(home)}
    process = subprocess.Popen([COMMAND, *arguments], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(arguments)} ended with {status}")
    return json.loads(out), usage.ru_maxrss * 1024 / 1e6


def make_home(home: Path, text: Path, specialists: int = 1) -> None:
    """A home with this text, whose personal model is exported at F16."""
    run(home, "init", "--specialists", str(specialists), "--expert-form", "lora")
    settings = home / "config.toml"
    settings.write_text(settings.read_text().replace('# format = "Q8_0"', 'format = "F16"'))
    run(home, "data", "add", str(text))


def job(home: Path, text: Path, steps: int) -> dict[str, Any]:
    """Trains if that is still to be done, and measures."""
    record = home / "benchmark.json"
    if not record.exists():
        make_home(home, text)
        trained, peak = measured(home, "train", "--no-pause", "--steps", str(steps), "--json")
        record.write_text(json.dumps({"training": trained, "peak_memory_mb": round(peak)}))
    result: dict[str, Any] = json.loads(record.read_text())
    result["device"] = json.loads(run(home, "plan", "--json"))["plan"]["device"]
    result["export_f16"] = json.loads(run(home, "export", "--format", "F16", "--json"))
    result["evaluation"] = json.loads(run(home, "evaluate", "--json"))
    bits = result["evaluation"]["bits_per_byte"]
    result["mixture_to_base"] = bits["mixture"] / bits["base"]
    for part in (result["export_f16"], result["training"]):
        part.pop("path", None)
    return result


def exactness(home: Path, work: Path) -> dict[str, Any]:
    """Mean KL and agreement of the likeliest token: torch against llama.cpp on the F32 export."""
    run(home, "export", "--format", "F32", "--output", str(work / "mixture-F32.gguf"))
    code = Path(__file__).parent / "exactness.py"
    environment = os.environ | {"COMIGS_EDGE_HOME": str(home)}
    command = [sys.executable, str(code), str(work / "mixture-F32.gguf"), str(EXACT_TOKENS)]
    out = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    (work / "mixture-F32.gguf").unlink()
    return dict(json.loads(out))


def help_seconds() -> float:
    """Median of 5 of `comigs-edge --help`."""
    times = []
    for _ in range(5):
        start = time.monotonic()
        subprocess.run([COMMAND, "--help"], check=True, stdout=subprocess.DEVNULL)
        times.append(time.monotonic() - start)
    return statistics.median(times)


def main() -> None:
    """Measures everything and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("--work", type=Path, default=Path("benchmark-work"))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "main-job.json")
    options = parser.parse_args()
    options.work.mkdir(exist_ok=True)
    results: dict[str, Any] = {
        "command": "make bench TEXT=FOLDER",
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, {platform.system()}",
        "gpu": detect.detect().gpu,
        "base": "SmolLM2-135M-Instruct Q4_1",
        "seed": 42,
        "help_seconds": round(help_seconds(), 3),
    }
    for name, steps in JOBS.items():
        found = sorted(options.text.rglob(f"{name}.jsonl"))
        if not found:
            raise SystemExit(f"{options.text} has no {name}.jsonl anywhere below it")
        results[name] = job(options.work / name, found[0], steps)
    results["exactness"] = {"1 generalist + 1 specialist": exactness(options.work / "de", options.work)}
    three = options.work / "de-3"
    if not (three / "adapters").exists():
        make_home(three, sorted(options.text.rglob("de.jsonl"))[0], specialists=3)
        run(three, "train", "--no-pause", "--steps", "3")
    results["exactness"]["1 generalist + 3 specialists"] = exactness(three, options.work)
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
