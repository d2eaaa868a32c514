"""Tables (CSV, TSV), separated by a comma, a semicolon or a tab, become documents and conversations."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice

from comigs_edge.data import exports, shapes
from comigs_edge.data.conversation import Conversation
from comigs_edge.data.document import Document, Odd

_SEPARATORS = ",;\t"
_EXCEL = re.compile(r"\ufeff?sep=(.)\r?\n")  # its own first line
_PROSE, _VALUE = 6, 3  # words a cell: from as many on a column is text, up to as many it is dates, names, numbers
_LOOKED_AT = 200  # rows, for what separates them and what stands above the table
_NAMES_SHOWN = 8
_WANTED = "wanted are text, or two such as prompt and completion, question and answer"
csv.field_size_limit(2**31 - 1)

Row = tuple[int, dict[str, str]]  # its line, and its cells by column


def read_table(text: str) -> Iterator[Document | Conversation | Odd]:
    """What the rows of a table hold whose first row names the columns; where one column alone is text, it is that."""
    excel = _EXCEL.match(text)
    text = text[excel.end() :] if excel else text
    separator = excel[1] if excel else max(_SEPARATORS, key=lambda each: _columns(text, each))
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        cells = [(rows.line_num, row) for row in rows if any(map(str.strip, row))]
    except csv.Error as error:
        yield Odd(f"no table ({error})", rows.line_num)
        return
    start = _find_heading([row for _, row in cells])
    if start is None:
        yield Odd("a table without names above its columns", cells[0][0])
        return
    names = [name.strip() for name in cells[start][1]] if cells else []
    cells = cells[start + 1 :]
    if len(names) == 1:  # nothing separates anything there
        yield from (Document(text=separator.join(row)) for _, row in cells)
        return
    tables: list[Row] = []
    for line, row in cells:
        if any(map(str.strip, row[len(names) :])):
            yield Odd("a row with more cells than the table has columns", line)
        else:
            tables.append((line, dict(zip(names, row, strict=False))))
    yield from _of_rows(names, tables)


def _columns(text: str, separator: str) -> tuple[int, int, float]:
    """How many columns the first row has, how many most have, and the share of those."""
    try:
        rows = list(islice(csv.reader(io.StringIO(text, newline=""), delimiter=separator), _LOOKED_AT))
    except csv.Error:
        return 0, 0, 0.0
    first = len(rows[0]) if rows else 0
    (width, count), *_ = Counter(map(len, filter(None, rows))).most_common(1) or [(0, 0)]
    return first, width, count / max(1, len(rows))


def _find_heading(rows: Sequence[Sequence[str]]) -> int | None:
    """Which row names the columns: the first, or one below lines with fewer cells than the table has; None where none does."""
    widths = [_width(row) for row in rows[:_LOOKED_AT]]
    width = Counter(widths).most_common(1)[0][0] if widths else 0
    is_prose = bool(rows) and len(rows[0]) == 1 and sum(_is_prose(row) for row in rows) * 2 >= sum(len(row) > 1 for row in rows)
    if not widths or widths[0] >= width or is_prose:
        return 0
    return next((number for number, row in enumerate(rows[: len(widths)]) if widths[number] >= width and _names(row)), None)


def _width(row: Sequence[str]) -> int:
    """How many cells a row has up to the last that is not empty."""
    return max((place for place, cell in enumerate(row, 1) if cell.strip()), default=0)


def _is_prose(row: Sequence[str]) -> bool:
    """Whether a row has more than one cell because there are commas between its words."""
    return len(row) > 1 and all(cell.startswith(" ") for cell in row[1:])


def _names(row: Sequence[str]) -> bool:
    """Whether these can be the names of columns."""
    names = [name.strip() for name in row[: _width(row)]]
    return len(set(names)) == len(names) and all(name and not re.search(r"\d", name) and len(name) < 50 for name in names)


def _of_rows(names: Sequence[str], rows: Sequence[Row]) -> Iterator[Document | Conversation | Odd]:
    if "AuthorID" in names:  # a channel of Discord
        messages = [{name.lower(): each for name, each in row.items()} for _, row in rows]
        yield from exports.conversations({"messages": messages}) or ()
    elif names == ["Date", "User", "Message"]:  # a talk of KakaoTalk on a Mac
        messages = [{"date": row["Date"], "user": row.get("User", ""), "text": row.get("Message", "")} for _, row in rows]
        yield from exports.conversations({"messages": messages}) or ()
    elif own := exports.own_words([row for _, row in rows]):
        yield Document(text=own)
    elif shapes.is_known(names):
        for line, row in rows:
            yield from shapes.documents(row, line)
    elif column := _only_text(names, rows):
        yield from (Document(text=row.get(column, "")) for _, row in rows)
    elif rows:
        shown = ", ".join(name[:30] for name in names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")
        yield Odd(f"a table whose columns are unknown ({shown}); {_WANTED}", 1)


def _only_text(names: Sequence[str], rows: Sequence[Row]) -> str:
    """The one column that is text where all others are short values; empty where that is not certain."""
    lengths = {name: sum(len(row.get(name, "").split()) for _, row in rows) / max(1, len(rows)) for name in names}
    texts = [name for name, length in lengths.items() if length >= _PROSE]
    is_certain = len(texts) == 1 and all(length <= _VALUE for name, length in lengths.items() if name not in texts)
    return texts[0] if is_certain else ""
