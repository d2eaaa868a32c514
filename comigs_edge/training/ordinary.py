"""Ordinary text: what the base itself answers to short instructions, made on the device, once for each base.

A router learns from it where the base alone should speak, and other such text shows how much a model has lost elsewhere. What is
made is kept after every batch of answers, at most 64, so a making that was killed goes on. Bases without a chat template write
from their start.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from contextlib import suppress
from importlib.resources import files as package_files
from pathlib import Path
from typing import Literal, NamedTuple

from comigs_edge import files
from comigs_edge.data.document import Message
from comigs_edge.data.tokenizer import Encoded, Tokenizer
from comigs_edge.errors import EXPECTED
from comigs_edge.nn.weights import Base
from comigs_edge.nn.writing import rows_at_once, write
from comigs_edge.progress import SILENT, Progress

LENGTH = 128  # tokens of an answer with its instruction, at most
TEST_SHARE = 3  # the text that is only measured has a third of the tokens
TEMPERATURE = 1.0  # the base's own distribution
Part = Literal["learning", "test"]


class Asked(NamedTuple):
    """What the base writes behind, and the tokens that end an answer."""

    prompts: list[list[int]]
    ends: frozenset[int]


def instructions(part: Part) -> list[str]:
    """The instructions of this part; every eighth is for the test alone."""
    text = package_files("comigs_edge.training").joinpath("instructions.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [line for number, line in enumerate(lines, 1) if (number % 8 == 0) == (part == "test")]


def ask(tokenizer: Tokenizer, part: Part) -> Asked:
    """The instructions in the base's chat template, or the start of a text where it has none."""
    if not tokenizer.has_template:
        return Asked([[next((token for token in (tokenizer.bos, tokenizer.eos) if token >= 0), 0)]], tokenizer.ends())
    chats = ((Message("user", line),) for line in instructions(part))
    return Asked([tokenizer.chat(chat, for_answer=True).ids[: LENGTH - 1] for chat in chats], tokenizer.ends())


class OrdinaryText:
    """One part of the ordinary text of a base, in a file of `folder`, of which the first `tokens` tokens are wanted.

    What `make` will need of the tokenizer is read here: it is gone when the base is loaded. `tokens` may become fewer.
    """

    def __init__(self, folder: Path, base_sha256: str, part: Part, tokens: int, tokenizer: Tokenizer) -> None:
        self.path, self.part, self.tokens = folder / f"ordinary-{part}-{base_sha256[:16]}.json", part, tokens
        self._made = _read(self.path)
        self.asked = Asked([], frozenset()) if self.is_complete else ask(tokenizer, part)

    @property
    def num_tokens(self) -> int:
        """Those that were made."""
        return sum(len(answer.ids) for answer in self._made)

    @property
    def answers(self) -> list[Encoded]:
        """The first that were made, as many as are wanted."""
        before = itertools.accumulate((len(answer.ids) for answer in self._made), initial=0)
        return [answer for answer, count in zip(self._made, before, strict=False) if count < self.tokens]

    @property
    def is_complete(self) -> bool:
        """Whether there are enough."""
        return self.num_tokens >= self.tokens

    def make(self, base: Base, progress: Progress = SILENT) -> None:
        """Lets the base write what is missing; `progress` gets tokens. What cannot be kept is made again next time."""
        most, shown = rows_at_once(base, LENGTH), 0

        def show(done: float) -> None:
            nonlocal shown
            shown = max(shown, min(int(done), self.tokens))
            progress(shown, self.tokens)

        while not self.is_complete:
            self._write(base, min(most, math.ceil((self.tokens - self.num_tokens) / (LENGTH / 2))), show)
            with suppress(*EXPECTED):
                self._keep()
            show(self.num_tokens)

    def _write(self, base: Base, rows: int, show: Callable[[float], None]) -> None:
        before, done = self.num_tokens, len(self._made)  # the latter also says what is asked next, and the seed
        prompts, ends = self.asked
        chosen = [prompts[number % len(prompts)] for number in range(done, done + rows)]

        def expect(place: int, _: int) -> None:  # rows end where they end: half of their length is expected of each
            show(before + rows * place / 2)

        for prompt, ids in zip(chosen, write(base, chosen, LENGTH, TEMPERATURE, ends, done, expect), strict=True):
            self._made.append(_answer(ids, len(prompt)))

    def _keep(self) -> None:
        files.make_folder(self.path.parent)
        kept = [(ids, scored.count(False)) for ids, scored, _ in self._made]
        files.write_atomic(self.path, json.dumps(kept).encode())
        for path in self.path.parent.glob(f"ordinary-{self.part}-*.json"):
            if path != self.path:  # of another base
                path.unlink()


def _answer(ids: list[int], start: int) -> Encoded:
    return Encoded(ids, [place >= start for place in range(len(ids))])


def _read(path: Path) -> list[Encoded]:
    try:
        return [_answer(*answer) for answer in json.loads(path.read_bytes())]
    except (OSError, ValueError, TypeError):  # never made, closed or damaged: it is made anew
        return []
