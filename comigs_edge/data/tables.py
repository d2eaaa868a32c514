"""Tables (CSV, TSV), separated by a comma, a semicolon or a tab, become documents and conversations."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence

from comigs_edge.data import exports, shapes
from comigs_edge.data.conversation import Conversation
from comigs_edge.data.document import Document, Odd

_SEPARATORS = ",;\t"
_EXCEL = re.compile(r"\ufeff?sep=(.)\r?\n")  # its own first line
_PROSE, _VALUE = 6, 3  # words a cell: from as many on a column is text, up to as many it is dates, names, numbers
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
        names = [name.strip() for name in next(rows, [])]
        cells = [(rows.line_num, row) for row in rows if any(map(str.strip, row))]
    except csv.Error as error:
        yield Odd(f"no table ({error})", rows.line_num)
        return
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


def _columns(text: str, separator: str) -> int:
    try:
        return len(next(csv.reader(io.StringIO(text, newline=""), delimiter=separator), ()))
    except csv.Error:
        return 0


def _of_rows(names: Sequence[str], rows: Sequence[Row]) -> Iterator[Document | Conversation | Odd]:
    if "AuthorID" in names:  # a channel of Discord
        messages = [{name.lower(): each for name, each in row.items()} for _, row in rows]
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
