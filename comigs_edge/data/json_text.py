"""JSON, JSONL and notebooks become documents and conversations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from comigs_edge.data import exports, shapes
from comigs_edge.data.conversation import Conversation
from comigs_edge.data.document import Document, Odd
from comigs_edge.data.json_values import values

Found = Document | Conversation | Odd


def read_json(text: str) -> Iterator[Found]:
    """What the values in a text hold, one after the other."""
    records = []  # of a messenger that writes one message a line
    for line, value in values(text):
        if (
            isinstance(value, dict)
            and ("sender" in value or "user" in value)
            and exports.is_message(value)
            and "subject" not in value
        ):
            records.append(value)
        else:
            yield from _of_value(value, line)
    yield from exports.conversations(records) or ()


def _of_value(value: Any, line: int) -> Iterator[Found]:
    if isinstance(value, Odd):
        yield value
    elif isinstance(value, dict | list) and not shapes.is_chat(value):
        if (chat := exports.tool_chat(value)) is not None:
            yield chat
        elif (found := exports.conversations(value)) is not None:
            yield from found
        elif own := exports.own_words(value):
            yield Document(text=own)
        elif isinstance(value, list):
            for each in value:
                yield from _of_value(each, line)
        else:
            yield from shapes.documents(value, line)
    else:
        yield from shapes.documents(value, line)


def read_notebook(text: str) -> Iterator[Found]:
    """The words and the code of a notebook's cells, without what the code printed."""
    for line, value in values(text):
        cells = _cells(value) if isinstance(value, dict) else None
        if cells is None:
            yield value if isinstance(value, Odd) else Odd("no notebook", line)
            continue
        sources = [
            cell.get("source", cell.get("input"))  # `input`: up to format 3
            for cell in cells
            if isinstance(cell, dict) and cell.get("cell_type") in ("markdown", "heading", "code")
        ]
        lines = ["".join(map(str, each)) if isinstance(each, list) else str(each or "") for each in sources]
        yield Document(text="\n\n".join(lines))


def _cells(notebook: dict[str, Any]) -> list[Any] | None:
    """The cells, which stood in worksheets up to format 3."""
    sheets = notebook.get("worksheets")
    if not isinstance(sheets, list):
        return cells if isinstance(cells := notebook.get("cells"), list) else None
    found = [sheet.get("cells") for sheet in sheets if isinstance(sheet, dict)]
    return [cell for cells in found if isinstance(cells, list) for cell in cells]
