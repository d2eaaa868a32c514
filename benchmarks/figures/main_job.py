"""The main job on real text, measured: `python -m benchmarks.figures.main_job TEXT_FOLDER`.

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

from benchmarks.common import COMMAND, ROOT, WORK, environment, make_home, result_file, run, text_file, write_json
from profiles import detect

JOBS = {"de": 100, "user03": 40}  # file name -> expert steps of 8 x 128 tokens
EXACT_TOKENS = 512
SETTINGS = {"quantize": 'format = "F16"'}


def measured(home: Path, *arguments: str) -> tuple[dict[str, Any], float]:
    """A command's JSON and its peak memory in MB."""
    process = subprocess.Popen([*COMMAND, *arguments], env=environment(home), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(arguments)} ended with {status}")
    return json.loads(out), usage.ru_maxrss * 1024 / 1e6


def prepare(home: Path, text: Path, specialists: int = 1) -> None:
    """A home with this text, whose personal model is exported at F16."""
    make_home(home, text, "--specialists", specialists, "--expert-form", "lora", settings=SETTINGS)


def job(home: Path, text: Path, steps: int) -> dict[str, Any]:
    """Trains if that is still to be done, and measures."""
    record = home / "benchmark.json"
    if not record.exists():
        prepare(home, text)
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
    words = ["-m", "benchmarks.figures.exactness", str(work / "mixture-F32.gguf"), str(EXACT_TOKENS)]
    command = [sys.executable, *words]
    out = subprocess.run(command, cwd=ROOT, env=environment(home), check=True, stdout=subprocess.PIPE, text=True).stdout
    (work / "mixture-F32.gguf").unlink()
    return dict(json.loads(out))


def help_seconds() -> float:
    """Median of 5 of `comigs-edge --help`."""
    times = []
    for _ in range(5):
        start = time.monotonic()
        subprocess.run([*COMMAND, "--help"], check=True, stdout=subprocess.DEVNULL)
        times.append(time.monotonic() - start)
    return statistics.median(times)


def main() -> None:
    """Measures everything and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    options.work = options.work.absolute()
    options.work.mkdir(exist_ok=True)
    results: dict[str, Any] = {
        "command": "make bench WHAT=main-job TEXT=FOLDER",
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, {platform.system()}",
        "gpu": detect.detect().gpu,
        "base": "SmolLM2-135M-Instruct Q4_1",
        "seed": 42,
        "help_seconds": round(help_seconds(), 3),
    }
    for name, steps in JOBS.items():
        results[name] = job(options.work / name, text_file(options.text, name), steps)
    results["exactness"] = {"1 generalist + 1 specialist": exactness(options.work / "de", options.work)}
    three = options.work / "de-3"
    if not (three / "adapters").exists():
        prepare(three, text_file(options.text, "de"), specialists=3)
        run(three, "train", "--no-pause", "--steps", "3")
    results["exactness"]["1 generalist + 3 specialists"] = exactness(three, options.work)
    print(json.dumps(results, indent=1))
    write_json(options.output or result_file("main-job.json"), results)


if __name__ == "__main__":
    main()
