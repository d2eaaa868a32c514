"""Tables of a page: on a phone each row becomes a card, whose lines are named by data-of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """# before a head marks a column of numbers; the cells are HTML, the first of a row is its head."""
    kinds = [' class="number"' if head.startswith("#") else "" for head in heads]
    names = [escape(head.lstrip("#")) for head in heads]
    top = "".join(f'<th scope="col"{kind}>{name}</th>' for name, kind in zip(names, kinds, strict=True))
    body = ""
    for first, *rest in rows:
        cells = zip(rest, names[1:], kinds[1:], strict=True)
        body += f'<tr><th scope="row"{kinds[0]}>{first}</th>'
        body += "".join(f'<td{kind} data-of="{name}">{cell}</td>' for cell, name, kind in cells) + "</tr>"
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
