"""Long texts are cut into documents: between paragraphs, else lines, sentences, words, at the latest by length."""

from __future__ import annotations

import re
from collections.abc import Iterator

SECTION = 4000  # characters, about a thousand tokens: no document of a text is longer
_CUTS = (  # where a text is cut, the best place first, and what stands there in a section
    (re.compile(r"\n\s*\n"), "\n\n"),
    (re.compile(r"\n"), "\n"),
    (re.compile(r"(?<=[.!?…])\s+"), " "),
    (re.compile(r"(?<=[。！？])"), ""),
    (re.compile(r"\s+"), " "),
)


def sections(text: str) -> Iterator[str]:
    """Paragraphs joined to at most `SECTION` characters; a longer paragraph is cut at the best place that it has."""
    parts: list[str] = []
    length = 0
    for glue, piece in _pieces(text.replace("\r\n", "\n").replace("\r", "\n")):
        if length and length + len(glue) + len(piece) > SECTION:
            yield "".join(parts)
            parts, length = [], 0
        added = [glue, piece] if parts else [piece]
        parts += added
        length += sum(map(len, added))
    yield "".join(parts).strip()


def _pieces(text: str, level: int = 0) -> Iterator[tuple[str, str]]:
    """Pieces of at most `SECTION` characters, each with what stood before it."""
    if level == len(_CUTS):
        yield from (("", text[start : start + SECTION]) for start in range(0, len(text), SECTION))
        return
    cut, glue = _CUTS[level]
    for part in cut.split(text):
        if len(part) <= SECTION:
            yield glue, part
        else:
            for number, (inner, piece) in enumerate(_pieces(part, level + 1)):
                yield (inner if number else glue), piece
