"""How soon and how fast a personal model speaks: `python -m benchmarks.figures.speaking HOME [--rounds 10]`.

In a home that has a trained model (`make demo` leaves one in demo-home): seconds of `--help` and of a chat until its first
letter; tokens a second of the base, of the personal model and of the same through `comigs-edge serve`, in turn in every round,
one thread, greedy. Writes speaking.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests

from benchmarks.common import COMMAND, environment, result_file, write_json
from comigs_edge import llamacpp
from comigs_edge.data.document import Message
from comigs_edge.data.tokenizer import Tokenizer
from comigs_edge.export.current import find_current
from comigs_edge.home.folder import Home

TOKENS, PROMPT = 48, 256  # of an answer, and of what is read at once
QUESTION = "Tell me a long story about a hen."
STARTS = 7  # of each command


def seconds_of(home: Home, *arguments: str, whole: bool) -> list[float]:
    """Until a command has ended, or has printed its first letter; the first start, which may read the disk, is not counted."""
    found = []
    for _ in range(STARTS + 1):
        begun = time.monotonic()
        process = subprocess.Popen(
            [*COMMAND, *arguments], env=environment(home.root), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert process.stdout is not None
        process.stdout.read(-1 if whole else 1)
        found.append(round(time.monotonic() - begun, 3))
        process.kill()
        process.wait()
    return found[1:]


def speaker(path: Path, ids: list[int]) -> tuple[Callable[[], float], Callable[[], float]]:
    """Two measurements of a file in llama.cpp: tokens drawn a second, by the binding's own loop, and tokens read a second."""
    llama = llamacpp.load(path, n_ctx=2048, n_threads=1, n_threads_batch=1, n_batch=512, n_ubatch=512)

    def draw() -> float:
        begun = 0.0
        for number, _ in enumerate(llama.generate(ids, temp=0.0, repeat_penalty=1.1)):
            if number == 0:
                begun = time.perf_counter()
            if number == TOKENS:
                break
        return TOKENS / (time.perf_counter() - begun)

    def read() -> float:
        llama.reset()
        begun = time.perf_counter()
        llama.eval((ids * PROMPT)[:PROMPT])
        return PROMPT / (time.perf_counter() - begun)

    return draw, read


def served(address: str) -> float:
    """Tokens a second of one streamed answer."""
    asked = {
        "messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": TOKENS + 1, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    times, count = [], 0
    with requests.post(f"{address}/chat/completions", json=asked, stream=True, timeout=120) as answer:
        for line in answer.iter_lines(chunk_size=1):
            if line.startswith(b"data: {"):
                told = json.loads(line[6:])
                if told["choices"] and told["choices"][0]["delta"].get("content"):
                    times.append(time.perf_counter())
                count = (told.get("usage") or {}).get("completion_tokens", count)
    return (count - 1) / (times[-1] - times[0])


def in_turn(cases: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Case -> its rates, one a round; every other round goes backwards."""
    found: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, case in list(cases.items())[:: 1 if number % 2 else -1]:
            rate = case()
            found[name] += [round(rate, 1)] if number else []  # the first round wakes everything
    return found


def measure(home: Home, rounds: int) -> dict[str, Any]:
    """All figures of this home."""
    settings = home.settings()
    personal = find_current(home, settings, settings.storage(), print)
    if personal is None:
        raise SystemExit(f"{home.root} has no exported model; run: comigs-edge export")
    ids = Tokenizer(home.base_file).chat((Message("user", QUESTION),), for_answer=True).ids
    server = subprocess.Popen(
        [*COMMAND, "serve", "--port", "0", "--plan", "threads=1"], env=environment(home.root), stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert server.stdout is not None
    address = next(found[0] for line in server.stdout if (found := re.search(r"http://\S+", line)))
    (base, base_reads), (mine, mine_reads) = (speaker(path, ids) for path in (home.base_file, personal.path))
    cases: dict[str, Callable[[], float]] = {
        "base": base, "personal": mine, "served": lambda: served(address), "base, prompt": base_reads,
        "personal, prompt": mine_reads,
    }  # fmt: skip
    found = in_turn(cases, rounds)
    server.terminate()
    server.wait()

    def ratio(one: str, other: str) -> float:
        return round(statistics.median(a / b for a, b in zip(found[one], found[other], strict=True)), 3)

    return {
        "personal_to_base": ratio("personal", "base"), "personal_to_base_prompt": ratio("personal, prompt", "base, prompt"),
        "served_to_personal": ratio("served", "personal"), "tokens_per_second": found, "form": settings.model.expert_form,
        "bytes": {"base": settings.base.size, "personal": personal.size},
    }  # fmt: skip


def main() -> None:
    """Reads the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("home", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    home = Home(options.home.resolve())
    if not home.exists:
        raise SystemExit(f"there is no home in {home.root}; make demo makes one in demo-home")
    first = seconds_of(home, "chat", "--prompt", "What is the capital of France?", whole=False)
    seconds = {"help": seconds_of(home, "--help", whole=True), "first letter of a chat": first}
    figures = {
        "command": f"python -m benchmarks.figures.speaking HOME --rounds {options.rounds}",
        "load_of_the_machine": os.getloadavg()[0], "seconds": seconds,
        "median_seconds": {name: statistics.median(each) for name, each in seconds.items()},
    } | measure(home, options.rounds)  # fmt: skip
    print(json.dumps(figures, indent=1), file=sys.stderr)
    write_json(result_file("speaking.json"), figures)


if __name__ == "__main__":
    main()
