"""Tokens as text, in pieces, as they come, up to a text at which an answer stops."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence

from comigs_edge.data.tokenizer import Tokenizer


def decode(tokenizer: Tokenizer, tokens: Iterable[int]) -> Iterator[str]:
    """The text of the tokens; a character can span two of them, and one that the last token only begins is left out."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for token in tokens:
        yield decoder.decode(tokenizer.piece(token))


def until(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """The pieces up to the first of the texts `stops`; what may be the beginning of one waits until that is known."""
    held = ""
    for piece in pieces:
        held += piece
        if found := [place for stop in stops if (place := held.find(stop)) >= 0]:
            yield held[: min(found)]
            return
        waits = max((size for stop in stops for size in range(1, len(stop)) if held.endswith(stop[:size])), default=0)
        yield held[: len(held) - waits]
        held = held[len(held) - waits :]
    yield held
