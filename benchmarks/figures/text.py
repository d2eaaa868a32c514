"""What much text costs: time and memory of `data add` and of what `train` does with it before its first step.

    python -m benchmarks.figures.text [--documents 50000] [--megabytes 100]

Random words, as frequent as words are (Zipf): short documents in one JSONL file, added twice; long documents as text files; one
document alone. Processor time, and the growth of the peak memory, each in a process of its own. Writes text.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import result_file, write_json
from comigs_edge.base.catalogue import DEFAULT_BASE, find_base
from comigs_edge.data import documents
from comigs_edge.data.corpus import Corpus

WORDS = 40  # of a short document
VOCABULARY = 50_000
Figures = dict[str, Any]


def texts(count: int, words: int, seed: int) -> Iterator[str]:
    """`count` random texts."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    vocabulary = ["".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(VOCABULARY)]
    weights = 1 / np.arange(1, VOCABULARY + 1)
    for _ in range(count):
        yield " ".join(vocabulary[place] for place in rng.choice(VOCABULARY, words, p=weights / weights.sum()))


def add(folder: Path, source: Path) -> Figures:
    """`data add`."""
    reading = documents.read([source])
    corpus, calls = Corpus(folder / "documents.db"), []
    started, before = time.process_time(), _peak()
    report = corpus.add(reading, [source] if source.is_dir() else [], lambda done, total: calls.append((done, total)))
    return {
        "documents": sum(map(len, reading.files.values())), "added": report.added,
        "seconds": round(time.process_time() - started, 1), "megabytes": round(_peak() - before, 1),
        "progress_calls": len(calls),
    }  # fmt: skip


def read_rows(folder: Path, source: Path) -> Figures:
    """What `train` does with the text before its first step."""
    from comigs_edge.data.tokenizer import Tokenizer, encode
    from comigs_edge.training.batches import Rows
    from comigs_edge.training.text import TOKENS

    corpus, tokenizer, calls = Corpus(folder / "documents.db"), Tokenizer(find_base(DEFAULT_BASE)[1]), []
    started, before = time.process_time(), _peak()
    for split, limit in (("training", TOKENS), ("validation", TOKENS // 8)):
        Rows(encode(corpus, tokenizer, split, [], lambda done, total: calls.append(done), limit), 128, 0)
    return {
        "seconds": round(time.process_time() - started, 1), "megabytes": round(_peak() - before, 1), "progress_calls": len(calls),
    }  # fmt: skip


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _apart(what: Callable[[Path, Path], Figures], folder: Path, source: Path) -> Figures:
    """The figures of a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        figures = pool.apply(what, (folder, source))
    print(what.__name__, source.name, figures, flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--documents", type=int, default=50_000)
    parser.add_argument("--megabytes", type=int, default=100)
    arguments = parser.parse_args()
    figures: Figures = {"command": " ".join(["python -m benchmarks.figures.text", *sys.argv[1:]])}
    with tempfile.TemporaryDirectory() as name:
        for each in ("short", "long", "single"):
            (Path(name) / each).mkdir()
        short, long, single = (Path(name) / each for each in ("short", "long", "single"))
        lines = (json.dumps({"text": text}) for text in texts(arguments.documents, WORDS, 1))
        (short / "short.jsonl").write_text("\n".join(lines))
        figures["short documents"] = _apart(add, short, short / "short.jsonl")
        figures["short documents, again"] = _apart(add, short, short / "short.jsonl")
        (long / "notes").mkdir()
        paragraph = 80  # words, about 500 bytes
        for number in range(arguments.megabytes):
            (long / "notes" / f"{number}.md").write_text("\n\n".join(texts(2000, paragraph, 2 + number)))
        figures["long text"] = {"bytes": sum(path.stat().st_size for path in (long / "notes").iterdir())}
        figures["long text"] |= _apart(add, long, long / "notes")
        figures["before the first step"] = _apart(read_rows, long, long / "notes")
        (single / "single.txt").write_text(" ".join(texts(20_000, paragraph, 3)))
        figures["one document"] = {"bytes": (single / "single.txt").stat().st_size} | _apart(add, single, single / "single.txt")
    write_json(result_file("text.json"), figures)


if __name__ == "__main__":
    main()
