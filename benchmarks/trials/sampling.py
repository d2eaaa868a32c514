"""The base writes samples for ordinary text."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from comigs_edge.data.tokenizer import Encoded
from comigs_edge.nn.weights import Base
from comigs_edge.nn.writing import write

LENGTH = 128  # tokens of a sample, with its prompt


def samples(base: Base, source: str, table: dict[str, Any], tokens: int, rows: int) -> list[Encoded]:
    """Some `tokens` of ordinary text at temperature 1: from the start token, from first words, or answers to instructions."""
    prompts = {"start": table["starts"], "words": table["first_words"], "chat": table["rehearsed"]}[source]
    turn: Iterator[list[int]] = itertools.cycle(prompts[::7] + prompts if source == "chat" else prompts)
    made: list[Encoded] = []
    for seed in itertools.count():
        chosen = [next(turn) for _ in range(rows)]
        for prompt, ids in zip(chosen, write(base, chosen, LENGTH, 1.0, table["ends"], seed), strict=True):
            made.append(Encoded(ids, [place >= len(prompt) for place in range(len(ids))]))
        if sum(len(each.ids) for each in made) >= tokens:
            return made
    raise AssertionError
