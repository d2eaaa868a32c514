"""All of the torture, one table of the shipped figures beside the new ones: `python benchmarks/torture/everything.py [--quick]`.

Each part is a script that writes JSON, or a selection of the tests that are marked `torture`. A new script is one row of `PARTS`.
A part that fails is named in the table, the others still run, and the exit code is 1. JSON of all goes to `torture.json`.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.common import RESULTS, result_file, write_json  # noqa: E402


class Part(NamedTuple):
    """A script and the figures of its JSON that the table shows, as paths; `quick` are its options for a short run."""

    script: str
    file: str
    figures: tuple[str, ...]
    quick: tuple[str, ...] = ()


PARTS = (
    Part(
        "kills.py", "kills.json", ("kills", "acknowledged", "lost", "doubled", "slowest_ready_seconds"),
        ("--points", "40", "--starts", "5", "--random", "20"),
    ),
    Part(
        "private_kills.py", "private-kills.json",
        ("kills", "generalists", "updates_counted", "windows", "windows_answered", "problems"), ("--kills", "20"),
    ),
    Part(
        "power_cuts.py", "power-cuts.json",
        ("synced/cuts", "synced/acknowledged", "synced/lost", "synced/doubled", "fsync_does_nothing/lost"),
        ("--cuts", "10", "--blind", "2"),
    ),
    Part(
        "load.py", "load.json",
        ("polls/requests_per_second", "polls/p99_ms", "flood/requests_per_second", "flood/p99_ms", "uploads/mb_per_second",
         "uploads/memory_mb/peak", "idle/bytes_written", "mixed/rss_slope_mb_per_hour"),
        ("--parts", "starts,polls,uploads"),
    ),
    Part("herd.py", "herd.json", ("5 s away/peak_requests_per_second", "3600 s away/peak_requests_per_second")),
    Part(
        "forgeries.py", "forgeries.json",
        ("signatures/tried", "signatures/let_in", "at_once/counted", "invitations/joined", "http/tried", "http/server_errors"),
        ("--quick",),
    ),
    Part(
        "strangers.py", "strangers.json",
        tuple(f"{way}/{name}" for way in ("many", "silent", "joins", "deaf") for name in ("p99_ms", "peak_mb", "5xx", "exit")),
        ("--seconds", "12"),
    ),
    Part(
        "exchanges.py", "exchanges.json",
        ("median/requests", "median/up", "median/down", "median/coordinator_cpu", "median/device_cpu"),
    ),
    Part(
        "answers.py", "answers.json",
        ("answers", "ends/other_exceptions", "longest_beyond_patience_seconds", "memory_mb/end", "largest_home_bytes"),
        ("--seconds", "30"),
    ),
    Part(
        "flips.py", "flips.json",
        ("places", "nothing relied on changed", "mended", "only a backup helps", "broken"),
        ("--every", "50"),
    ),
)  # fmt: skip
SHORT_TESTS = "slow"  # of the tests marked torture, in a quick run


def figure(table: Any, path: str) -> Any:
    """The value at a path like `synced/lost`; None where there is none."""
    for key in path.split("/"):
        table = table.get(key) if isinstance(table, dict) else None
    return table


def read(path: Path) -> Any:
    """JSON of a file; nothing where it is missing."""
    return json.loads(path.read_text()) if path.exists() else {}


def run(part: Part, is_quick: bool) -> dict[str, Any]:
    """Runs one script: its exit code, seconds, and the figures before (as shipped) and now."""
    before, output = read(RESULTS / part.file), result_file(part.file)
    output.unlink(missing_ok=True)
    begin = time.monotonic()
    command = [sys.executable, str(ROOT / "benchmarks" / "torture" / part.script), *(part.quick if is_quick else ())]
    code = subprocess.run(command, cwd=ROOT).returncode
    after = read(output)
    figures = {path: [figure(before, path), figure(after, path)] for path in part.figures}
    return {"code": code, "seconds": round(time.monotonic() - begin), "figures": figures}


def run_tests(is_quick: bool) -> dict[str, Any]:
    """Runs the tests that are marked `torture`: long fuzzing, slow senders, bad networks."""
    begin = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-m", "torture", "-q", *(("-k", SHORT_TESTS) if is_quick else ())]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    print(done.stdout[-6000:])
    before = read(RESULTS / "torture.json")
    found = {
        word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|errors?|skipped)", done.stdout.splitlines()[-1])
    }
    figures = {word: [(figure(before, f"parts/tests/figures/{word}") or [None])[-1], count] for word, count in found.items()}
    return {"code": done.returncode, "seconds": round(time.monotonic() - begin), "figures": figures}


def show(parts: dict[str, Any]) -> None:
    """The table."""
    row = "{:16}{:44}{!s:>12}{!s:>12}".format
    print("\n" + row("part", "figure", "shipped", "now"))
    for name, found in parts.items():
        print(row(name, "ended with code, after seconds", found["code"], found["seconds"]))
        for path, (before, after) in found["figures"].items():
            print(row("", path.replace("_", " "), *("-" if value is None else value for value in (before, after))))


def main() -> None:
    """Runs every part, prints the table, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few minutes; its counts are no measurement")
    parser.add_argument("--only", default="", help="parts by name, with commas: kills,tests")
    options = parser.parse_args()
    wanted = set(filter(None, options.only.split(",")))
    parts = {}
    for part in PARTS:
        if not wanted or Path(part.script).stem in wanted:
            parts[Path(part.script).stem] = run(part, options.quick)
    if not wanted or "tests" in wanted:
        parts["tests"] = run_tests(options.quick)
    show(parts)
    write_json(result_file("torture.json"), {"quick": options.quick, "parts": parts})
    sys.exit(1 if any(found["code"] for found in parts.values()) else 0)


if __name__ == "__main__":
    main()
