"""The values in a JSON or JSONL text: one a line, one over many lines, or several one after the other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from comigs_edge.data.document import Odd

_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\r\n]*")


def values(text: str) -> Iterator[tuple[int, Any]]:
    """Line number and value, or `Odd` in its place where a line is no JSON; a damaged line costs that line only."""
    position, line = 0, 1
    while (start := _SPACE.match(text, position).end()) < len(text):  # type: ignore[union-attr]
        line += text.count("\n", position, start)
        try:
            value, position = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            break
        behind = text[position : position + 1].strip(" \t\r\n")
        if behind and not (behind in "{[" and isinstance(value, dict | list)):
            break  # more stands on this line: it is no value by itself
        yield line, value
        line += text.count("\n", start, position)
    yield from _by_line(text, start, line)


def _by_line(text: str, start: int, line: int) -> Iterator[tuple[int, Any]]:
    for number, piece in enumerate(text[start:].split("\n"), line):
        content = piece.strip(" \t\r")
        if not content or content in ("[", "]"):
            continue
        try:
            value = json.loads(content.removesuffix(","))
        except RecursionError:
            yield number, Odd("nested too deeply", number)
        except json.JSONDecodeError as error:
            yield number, Odd(f"no JSON ({error.msg})", number)
        except ValueError:
            yield number, Odd("a number with more digits than are read", number)
        else:
            if isinstance(value, dict | list) or piece.startswith('"'):  # what is indented is a part of something
                yield number, value
