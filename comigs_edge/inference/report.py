"""What a training has brought, on test text: for every token what base and personal model expect, and which expert speaks.

Shapes: M tokens that count, T tokens of a window, V vocabulary.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from comigs_edge.data.tokenizer import Tokenizer
from comigs_edge.inference.evaluate import Score, TestText, Window, in_torch
from comigs_edge.inference.explain import decode
from comigs_edge.nn.adapters import Adapters
from comigs_edge.nn.model import Model
from comigs_edge.nn.routing_stats import MeanWeights
from comigs_edge.nn.weights import Base
from comigs_edge.progress import Advance

MODELS = ("base", "generalist", "specialists", "mixture")
TOP = (1, 3)  # of the words that a keyboard would offer
PLACES = 12  # that are quoted
BEFORE, AFTER = 60, 20  # characters of a quotation around its token
ROWS = 128  # of logits at once
_WORD = re.compile(r"\S*?[^\W_]\S*")


class Expected(NamedTuple):
    """How a model expects the tokens that count, window after window."""

    nats: NDArray[np.float64]  # (M,) minus the logarithm of the token's probability
    ranks: NDArray[np.int64]  # (M,) how many tokens it holds more likely


class Place(NamedTuple):
    """A token in its text, and the probabilities that it had."""

    before: str
    token: str
    after: str
    base: float
    personal: float
    bits: float  # that it takes less with the personal model


class Hits(NamedTuple):
    """How many words of so many began with one of the `TOP` tokens."""

    words: int
    hits: tuple[int, ...]  # for each of `TOP`


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All of it."""

    scores: dict[str, Score | None]  # of base, generalist, specialists and mixture; None where there are no specialists
    shares: list[list[float]]  # mean weight of each expert, one list a block with a router
    gained: list[Place]  # where the personal model is most ahead of its base, the largest gain first
    lost: list[Place]  # and where it is most behind
    base_hits: Hits
    personal_hits: Hits


def find(
    base: Base, adapters: Adapters, block_format: str | None, text: TestText, tokenizer: Tokenizer, advance: Advance
) -> Findings:
    """Measures in torch, in the weights of the exported file; `advance` gets the text's tokens for each model."""

    def model(only: tuple[int, ...] | None = None) -> Model:
        made = Model(base, adapters, only)
        made.block_format = block_format
        return made

    weights, whole = MeanWeights(), model()
    theirs = expect(Model(base, None), text, advance)
    whole.watch = weights
    ours = expect(whole, text, advance)
    others = tuple(range(1, adapters.layout.num_experts))
    words = find_words(text, tokenizer)
    gained, lost = find_places(text, tokenizer, theirs, ours)
    return Findings(
        scores={
            "base": _score(theirs, text), "generalist": in_torch(model((0,)), text, advance),
            "specialists": in_torch(model(others), text, advance) if others else None, "mixture": _score(ours, text),
        },
        shares=weights.by_block() or [], gained=gained, lost=lost,
        base_hits=count_hits(theirs, words), personal_hits=count_hits(ours, words),
    )  # fmt: skip


def expect(model: Model, text: TestText, advance: Advance = lambda tokens: None) -> Expected:
    """One window after the other."""
    nats, ranks, device = [], [], model.base.device
    with torch.no_grad():
        for window in text.windows:
            hidden = model(torch.tensor([window.ids[:-1]], device=device)).hidden  # (T - 1, D)
            targets, where = torch.tensor(window.ids[1:], device=device), places(window)
            for start in range(0, len(where), ROWS):
                rows = where[start : start + ROWS]
                logits = model.logits(hidden[rows])  # (ROWS, V)
                at_target = logits.gather(1, targets[rows, None])  # (ROWS, 1)
                nats.append((logits.logsumexp(-1, keepdim=True) - at_target)[:, 0].cpu())
                ranks.append((logits > at_target).sum(-1).cpu())
            advance(len(window.ids))
    return Expected(torch.cat(nats).double().numpy(), torch.cat(ranks).numpy())


def places(window: Window) -> list[int]:
    """Where its tokens that count are predicted."""
    return [place for place, counts in enumerate(window.scored) if counts]


def _score(expected: Expected, text: TestText) -> Score:
    return Score(float(expected.nats.sum()), text.num_tokens, text.num_bytes)


# Words ---------------------------------------------------------------------------------------------------------------


def word_starts(pieces: Sequence[bytes]) -> set[int]:
    """The tokens with which words begin: with the first letter or digit of what stands between spaces."""
    text = b"".join(pieces).decode("utf-8", "surrogateescape")
    starts, place, written = set(), 0, len(pieces[0]) if pieces else 0
    for match in _WORD.finditer(text):
        letter = next(index for index in range(*match.span()) if text[index].isalnum())
        start = len(text[:letter].encode("utf-8", "surrogateescape"))
        while written <= start:
            place += 1
            written += len(pieces[place])
        starts.add(place)
    return starts


def find_words(text: TestText, tokenizer: Tokenizer) -> NDArray[np.bool_]:
    """For each of the M tokens whether a word begins with it."""
    begins: list[bool] = []
    for window in text.windows:
        starts = word_starts([tokenizer.piece(token) if tokenizer.written_bytes(token) else b"\n" for token in window.ids])
        begins += [place + 1 in starts for place in places(window)]
    return np.array(begins, bool)


def count_hits(expected: Expected, words: NDArray[np.bool_]) -> Hits:
    """Of the words whose first token counts."""
    ranks = expected.ranks[words]
    return Hits(len(ranks), tuple(int((ranks < top).sum()) for top in TOP))


# Places --------------------------------------------------------------------------------------------------------------


def find_places(text: TestText, tokenizer: Tokenizer, theirs: Expected, ours: Expected) -> tuple[list[Place], list[Place]]:
    """Where the personal model has gained most, and where it has lost most; the same token behind the same one counts once."""
    gains = theirs.nats - ours.nats
    where = [(window, place + 1) for window in text.windows for place in places(window)]

    def quote(order: Iterator[int]) -> list[Place]:
        quoted: dict[tuple[int, int], Place] = {}
        for index in order:
            window, place = where[index]
            pair = window.ids[place - 1], window.ids[place]
            if pair not in quoted:
                base, personal = (float(np.exp(-each.nats[index])) for each in (theirs, ours))
                bits = float(gains[index]) / math.log(2)
                quoted[pair] = Place(*_around(window, place, tokenizer), base, personal, bits)
            if len(quoted) == PLACES:
                break
        return list(quoted.values())

    order = gains.argsort(kind="stable")
    lost = quote(int(index) for index in order if gains[index] < 0)
    return quote(int(index) for index in order[::-1] if gains[index] > 0), lost


def _around(window: Window, place: int, tokenizer: Tokenizer) -> tuple[str, str, str]:
    """The token, and what stands before and behind it."""
    pieces = [tokenizer.piece(token) for token in window.ids]
    parts = (pieces[:place], pieces[place : place + 1], pieces[place + 1 : place + 1 + AFTER])
    before, token, after = ("".join(decode(part)) for part in parts)
    return before[-BEFORE:], token, after[:AFTER]
