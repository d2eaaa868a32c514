"""`make bench WHAT=NAME`: runs a benchmark by its name; without a name, or with an unknown one, prints the list.

make's variables come as variables of the environment: TEXT, RECORD, BEFORE, and those of `quick`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

from benchmarks.common import ROOT, WORK

Command = list[str]  # words behind `python`


class Benchmark(NamedTuple):
    """One line of the list, and the processes that it runs one after the other."""

    about: str
    commands: Callable[[], list[Command]]


def main() -> None:
    """Reads the name."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in BENCHMARKS:
        if name:
            print(f"there is no benchmark {name}; these are known:\n")
        width = max(map(len, BENCHMARKS))
        print("\n".join(f"make bench WHAT={each:<{width}}  {made.about}" for each, made in BENCHMARKS.items()))
        print("\nFigures are written to benchmark-work/results; with RECORD=1 over the shipped ones in benchmarks/results.")
        raise SystemExit(bool(name))
    for words in BENCHMARKS[name].commands():
        code = subprocess.run([sys.executable, *words], cwd=ROOT).returncode
        if code:
            raise SystemExit(code)


def _needed(variable: str, what: str) -> str:
    value = os.environ.get(variable)
    if not value:
        raise SystemExit(f"{variable}={what} is needed")
    return os.path.abspath(value)


def _figure(name: str, *arguments: str) -> Command:
    return ["-m", f"benchmarks.figures.{name}", *arguments]


def _homes() -> list[str]:
    _needed("HOMES", "'FOLDER FOLDER'")
    return [os.path.abspath(home) for home in os.environ["HOMES"].split()]


def _text() -> str:
    return _needed("TEXT", "FOLDER")


def _flags(*names: str) -> list[str]:
    """The options whose variables make was given; a list in quotes becomes one with commas."""
    flags = []
    for name in names:
        value = os.environ.get(name.upper())
        flags += [f"--{name}", ",".join(value.split())] if value else []
    return flags


def _quick() -> list[Command]:
    return [_figure("quick", _text(), *_flags("recipes", "methods", "size", "seeds", "precision", "device"))]


def _same_bits() -> list[Command]:
    script, work = "benchmarks/same_bits.py", str(WORK / "same-bits")
    return [[script, "make", work, "--checkout", _needed("BEFORE", "CHECKOUT")], [script, "check", work]]


def _mutants() -> list[Command]:
    flags = [part for name in ("only", "jobs") if (value := os.environ.get(name.upper())) for part in (f"--{name}", value)]
    return [["-m", "benchmarks.mutants", *flags]]


def _torture(name: str) -> Callable[[], list[Command]]:
    return lambda: [[f"benchmarks/torture/{name}.py"]]


BENCHMARKS = {
    "main-job": Benchmark(
        "the main job: bits per byte before and after; TEXT has de.jsonl and user03.jsonl", lambda: [_figure("main_job", _text())]
    ),
    "formats": Benchmark(
        "forms of expert and block formats; TEXT also has fr.jsonl, nl.jsonl, user04.jsonl and legal.jsonl; quiet machine",
        lambda: [_figure("four_bits", _text(), "--report"), _figure("formats", str(WORK))],
    ),
    "memory": Benchmark(
        "the plan's memory model against the system's measure; TEXT is any text", lambda: [_figure("memory_model", _text())]
    ),
    "steps": Benchmark("what a step takes: two and four experts, expert and router step", lambda: [_figure("steps")]),
    "profile": Benchmark("where the time of an expert step goes", lambda: [_figure("profile")]),
    "graph": Benchmark(
        "what a step on a GPU starts and takes, with and without a CUDA graph; without a GPU its operations are counted",
        lambda: [_figure("graph", *_flags("device", "precision"))],
    ),
    "time": Benchmark("the plan's time model against real steps", lambda: [_figure("time_model")]),
    "last-blocks": Benchmark(
        "experts in the last blocks alone, at equal time; TEXT has de.jsonl, nl.jsonl and user04.jsonl; half an hour",
        lambda: [_figure("last_blocks", _text())],
    ),
    "further": Benchmark(
        "what it brings to train a finished model further, and how long little text is worth training on; TEXT has de, "
        "user03, legal, nl and perldoc_qa.jsonl; hours",
        lambda: [_figure("further", _text(), *_flags("texts", "minutes"))],
    ),
    "evenings": Benchmark(
        "what the new text of five evenings brings, each with a training of its own; TEXT has de and user03.jsonl; an hour",
        lambda: [_figure("evenings", _text(), *_flags("cases", "label"))],
    ),
    "quality": Benchmark(
        "what is learned in how many minutes, before and now; TEXT has de, user03, perldoc_qa, nl and encyclopedia.jsonl; two "
        "hours of a core, MINUTES ends it and the same command goes on",
        lambda: [_figure("quality", _text(), *_flags("texts", "minutes", "precision"))],
    ),
    "silence": Benchmark(
        "what a zero expert keeps and saves; TEXT has de, user03, en, nl, encyclopedia, code_python, dialogue.jsonl; with "
        "JUDGE=1 a folder judging with sv, manuals, user06, people, geography, guides, pt, code_perl.jsonl",
        lambda: [_figure("silence", _text(), *_flags("texts", "precision"), *(["--judge"] if os.environ.get("JUDGE") else []))],
    ),
    "closing-rows": Benchmark(
        "how many rows the closing phase needs where batches are small; TEXT has de, fr, it and nl.jsonl; half an hour",
        lambda: [_figure("closing_rows", _text(), *_flags("devices", "precision"))],
    ),
    "fleet": Benchmark(
        "four real devices in a fleet; TEXT has de.jsonl, fr.jsonl, it.jsonl and nl.jsonl; half an hour",
        lambda: [_figure("fleet", _text())],
    ),
    "private-fleet": Benchmark(
        "six real homes in a private and in a plain fleet; TEXT has person00, person02, person04, person06, person09 and "
        "person11.jsonl; a quarter of an hour",
        lambda: [_figure("private_fleet", _text())],
    ),
    "quick": Benchmark(
        "six methods on every recipe of `comigs-edge simulate`; TEXT as the recipes want it; a night. RECIPES, METHODS, "
        "SEEDS (lists in quotes), SIZE, PRECISION and DEVICE choose",
        _quick,
    ),
    "many": Benchmark(
        "what joining brings by number of devices and tokens; TEXT has person00 to person31.jsonl; days in all, MINUTES ends it "
        "and the same command goes on. DEVICES, TOKENS (lists in quotes), JOBS and DEVICE choose",
        lambda: [_figure("many", _text(), *_flags("devices", "tokens", "minutes", "jobs", "device", "precision"))],
    ),
    "one-device": Benchmark(
        "a lone device: the mixture against one LoRA of rank 16 at equal time; TEXT as the recipes want it; hours, MINUTES ends "
        "it and the same command goes on. RECIPES and STEPS choose",
        lambda: [_figure("one_device", _text(), *_flags("recipes", "steps", "minutes"))],
    ),
    "text": Benchmark("what 50,000 documents and 100 MB of text cost `data add` and `train`", lambda: [_figure("text")]),
    "status": Benchmark("how long `status` takes in a home with 1 and with 100 MB of text", lambda: [_figure("status")]),
    "speaking": Benchmark(
        "how soon and how fast the model of `make demo` speaks, against the base, alone and through `serve`; quiet machine",
        lambda: [_figure("speaking", str(ROOT / "demo-home"))],
    ),
    "rivals": Benchmark(
        "training speed and memory against the published formulation and PEFT; quiet machine", lambda: [_figure("rivals")]
    ),
    "sampling": Benchmark(
        "how answers end under ways of drawing them, with the default base; half an hour", lambda: [_figure("sampling")]
    ),
    "endings": Benchmark(
        "whether personal models still come to an end; HOMES are folders of homes, trained",
        lambda: [_figure("endings", *_homes())],
    ),
    "round-bytes": Benchmark("bytes that a device sends in a round", lambda: [_figure("round_bytes")]),
    "private": Benchmark("what private rounds cost a device and the coordinator", lambda: [_figure("private")]),
    "large-fleets": Benchmark(
        "fleets of 10^3 to 10^6 devices: queues, links and an outage, simulated, and the real coordinator with 200 beside it",
        lambda: [_figure("large_fleets")],
    ),
    "flare-rounds": Benchmark(
        "what a round costs on NVIDIA FLARE; wants the extra comigs-edge[flare]", lambda: [_figure("flare_rounds")]
    ),
    "kills": Benchmark("the coordinator is killed at 1,000 points; wants strace", _torture("kills")),
    "private-kills": Benchmark(
        "devices and coordinator of a private fleet are killed 200 times; wants strace and root", _torture("private_kills")
    ),
    "power-cuts": Benchmark("its disk loses power 200 times; wants root and xfs_io", _torture("power_cuts")),
    "load": Benchmark("200 devices and a memory cgroup of 1 GB; wants root", _torture("load")),
    "forgeries": Benchmark("forged, doubled and smuggled requests, races for an invitation", _torture("forgeries")),
    "bad-member": Benchmark(
        "what one of four members can do to the others' models, norm bound off and on; TEXT has user03, user04, user05 and "
        "user07.jsonl, or chitchat-dataset is installed; a quarter of an hour",
        _torture("bad_member"),
    ),
    "strangers": Benchmark("strangers against a coordinator whose members upload; four minutes", _torture("strangers")),
    "exchanges": Benchmark("what an exchange of SmolLM2's size costs: requests, bytes, processor seconds", _torture("exchanges")),
    "answers": Benchmark("a coordinator's odd answers over whole exchanges; four minutes", _torture("answers")),
    "flips": Benchmark("every 16 bytes of a ledger changed, one place after the other", _torture("flips")),
    "herd": Benchmark("requests a second when a coordinator comes back, simulated", _torture("herd")),
    "mutants": Benchmark(
        "faults put into the source one at a time, which the tests should notice; ONLY, JOBS; an hour", _mutants
    ),
    "same-bits": Benchmark("whether this checkout computes the bits of another one: BEFORE=CHECKOUT", _same_bits),
}


if __name__ == "__main__":
    main()
