"""A file that was added before, and what it holds now: every piece of text keeps the place that it had."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from comigs_edge.data.runs import Runs, find_origins, runs_of
from comigs_edge.data.sections import SECTION


class Piece(NamedTuple):
    """A text, and the number of the old one whose place it has; None for a new one."""

    text: str
    origin: int | None


class _Block(NamedTuple):
    """Lines that stand together in a new document, and the old text that they come from."""

    lines: list[str]
    document: int
    origin: int | None


def recut(new: Sequence[str], old: Sequence[str]) -> list[Piece]:
    """The sections `new` of a text, cut anew where the sections `old` were cut.

    Text that is there for the first time goes to an old section beside it that has room, else it is a section of its own.
    """
    blocks = _find_origins(_blocks(new, old), old)
    origins = _settle(blocks)
    parts: dict[tuple[int | None, int], list[str]] = {}
    last = -1
    for block, origin in zip(blocks, origins, strict=True):
        lines = parts.setdefault((origin, block.document if origin is None else 0), [])
        lines += [""] if lines and block.document != last else []  # sections were cut at a blank line
        lines += block.lines
        last = block.document
    pieces = []
    for (origin, _), lines in parts.items():
        text = "\n".join(lines).strip()
        if text:
            same = origin is not None and text == old[origin].strip()
            pieces.append(Piece(old[origin] if same and origin is not None else text, origin))
    return pieces


def _has_word(block: _Block) -> bool:
    return any(re.search(r"\w", line) for line in block.lines)


def _blocks(new: Sequence[str], old: Sequence[str]) -> list[_Block]:
    """The lines of the new sections: those with one origin together, unknown ones by paragraphs."""
    homes: dict[str, int | None] = {}
    for number, text in enumerate(old):
        for line in {line.strip() for line in text.split("\n")}:
            homes[line] = None if line in homes or not re.search(r"\w", line) else number  # in several it tells nothing
    blocks: list[_Block] = []
    for document, text in enumerate(new):
        for line in text.split("\n"):
            origin, before = homes.get(line.strip()), blocks[-1] if blocks else None
            ends = before is None or (before.document, before.origin) != (document, origin)
            if before is None or ends or (origin is None and bool(line.strip()) != bool(before.lines[-1].strip())):
                blocks.append(_Block([line], document, origin))
            else:
                before.lines.append(line)
    return blocks


def _find_origins(blocks: list[_Block], old: Sequence[str]) -> list[_Block]:
    """Unknown blocks that have most of their words from an old text get it as their origin."""
    unknown = [number for number, block in enumerate(blocks) if block.origin is None and _has_word(block)]
    if unknown:
        texts = [runs_of("\n".join(blocks[number].lines)) for number in unknown]
        for number, origin in zip(unknown, find_origins(texts, [runs_of(text) for text in old]), strict=True):
            blocks[number] = blocks[number]._replace(origin=origin)
    return blocks


def _settle(blocks: list[_Block]) -> list[int | None]:
    """Origins of all blocks: text that is new goes to the old one around it, before it or behind it where there is room."""
    origins = [block.origin for block in blocks]
    sizes = Counter[int | None]()
    for block in blocks:
        sizes[block.origin] += _length(block)
    start = 0
    while start < len(blocks):
        end = start
        while end < len(blocks) and origins[end] is None:
            end += 1
        run, length = blocks[start:end], sum(map(_length, blocks[start:end]))
        before, after = origins[start - 1] if start else None, origins[end] if end < len(blocks) else None
        for home in (before, after):
            room = 2 * SECTION if before == after else SECTION
            if home is not None and (sizes[home] + length <= room or not any(map(_has_word, run))):
                origins[start:end] = [home] * len(run)
                sizes[home] += length
                break
        start = end + 1
    return origins


def _length(block: _Block) -> int:
    return sum(map(len, block.lines)) + len(block.lines)


def match(new: Sequence[tuple[str, str]], old: Sequence[tuple[str, Runs]]) -> list[int | None]:
    """For each new document (SHA-256, words) the old one (SHA-256, runs) that it is, or is an edit of; each is given once."""
    places: dict[str, list[int]] = {}
    for number in range(len(old) - 1, -1, -1):
        places.setdefault(old[number][0], []).append(number)
    origins = [places[sha256].pop() if places.get(sha256) else None for sha256, _ in new]
    taken = {origin for origin in origins if origin is not None}
    rest = [number for number in range(len(old)) if number not in taken]
    edited = [number for number, origin in enumerate(origins) if origin is None]
    if rest and edited:
        texts = [runs_of(new[number][1]) for number in edited]
        for number, found in zip(edited, find_origins(texts, [old[n][1] for n in rest]), strict=True):
            if found is not None and rest[found] not in taken:
                origins[number] = rest[found]
                taken.add(rest[found])
    return origins
